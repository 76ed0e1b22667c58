"""Rounding to half precision."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["to_half"]

_EXPONENT = 0x7F800000
#: Exponents of float32 between which the last place of a half moves: of 2^-14 and of 2^16.
_LOWEST, _HIGHEST = 0x38800000, 0x47800000

#: 1.5 * 2^13: added to a number of exponent e, leaves 2^(e - 10) as the last place of the sum.
_SHIFT = np.float32(12288)

#: Between them, what is too large for a half is too large for a float32.
_UP, _DOWN = np.float32(2.0**112), np.float32(2.0**-112)

#: From so many values on, nine operations of numpy are quicker than its conversions, which work one by one.
_MANY = 1024


def to_half(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Round to the nearest half-precision value, ties to even, as float32.

    Subnormal halves are kept, what is beyond the largest half becomes infinite, signs of zeros stay. Where
    an overflow or a NaN may warn is left to the caller's `numpy.errstate`.

    Parameters
    ----------
    values : ndarray[float32]

    Returns
    -------
    ndarray[float32]
        A new array.
    """
    if values.size < _MANY:
        return values.astype(np.float16).astype(np.float32)
    values = np.ascontiguousarray(values)
    exponents = values.view(np.int32) & _EXPONENT
    np.maximum(exponents, _LOWEST, out=exponents)
    np.minimum(exponents, _HIGHEST, out=exponents)
    scale = exponents.view(np.float32)
    scale *= _SHIFT
    result: NDArray[np.float32] = values + scale
    result -= scale
    result *= _UP
    result *= _DOWN
    np.copysign(result, values, out=result)
    return result
