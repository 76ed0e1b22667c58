"""Values that a program holds in place, not in a weight file: ``TensorValue`` of ``MIL.proto``."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from dfstream.coreml.weights import unpack

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dfstream.coreml.protobuf import Message
    from dfstream.coreml.weights import DataType

__all__ = ["read_immediate"]

#: Fields, one for each way of writing.
_FLOATS, _INTS, _BOOLS, _STRINGS, _LONG_INTS, _DOUBLES, _BYTES = range(1, 8)


def read_immediate(value: Message, kind: DataType, shape: tuple[int, ...]) -> NDArray[Any] | str | None:
    """Read values.

    Parameters
    ----------
    value : Message
    kind : DataType
    shape : tuple of int

    Returns
    -------
    ndarray, str or None
        Text only as a single one; None if these are no values of the type and the shape.
    """
    field = value.which(*range(_FLOATS, _BYTES + 1))
    if field is None:
        return None
    content = value.message(field)
    if field == _STRINGS:
        texts = content.texts(1)
        return texts[0] if kind.name == "string" and not shape and len(texts) == 1 else None
    found: NDArray[Any] | None
    if field == _BYTES:
        packs = kind.held.kind in "iuf"
        found = unpack(content.data(1), kind, math.prod(shape)) if packs else None
    elif field in (_FLOATS, _DOUBLES):
        found = content.floats(1, np.float32 if field == _FLOATS else np.float64)
    else:
        found = _exactly(content.integers(1), kind)
    if found is None or found.dtype != kind.held or found.size != math.prod(shape):
        return None
    return found.reshape(shape)


def _exactly(numbers: list[int], kind: DataType) -> NDArray[Any] | None:
    """Return integers or truth values in the type they are declared with; None if one does not fit."""
    if kind.held.kind not in "biu" or kind.bits < 8:
        return None
    low, high = (0, 1) if kind.name == "bool" else (np.iinfo(kind.held).min, np.iinfo(kind.held).max)
    return np.array(numbers, kind.held) if all(low <= n <= high for n in numbers) else None
