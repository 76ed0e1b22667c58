"""The deep filter: a short complex filter over frames, another one for each bin and frame."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dfstream.dsp._jit import complex64, float32, intp, jit, reads, writes

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["deep_filter"]


@jit(reads(complex64, 2), reads(float32, 3), intp, writes(complex64, 2))
def deep_filter(
    history: NDArray[np.complex64], coefs: NDArray[np.float32], first: int, out: NDArray[np.complex64]
) -> None:
    """Write the filtered lowest bins (libDF ``tract.rs: df``).

    ``out[t, k] = sum over o of C[t, k, o] history[first + t + o, k]``, a plain complex product.

    Parameters
    ----------
    history : ndarray[complex64], shape (R, bins)
        Frames, oldest first; ``R >= first + T + O - 1``.
    coefs : ndarray[float32], shape (T, D, 2 * O)
        Tap by tap, each real part first; tap 0 takes the oldest frame.
    first : int, frames
        Row of ``history`` for tap 0 of output frame 0.
    out : ndarray[complex64], shape (T, bins)
        Bins below D written, the others left alone. Must not share memory with ``history``.
    """
    T, D, parts = coefs.shape
    for t in range(T):
        for k in range(D):
            re = im = np.float32(0)
            for o in range(parts // 2):
                x = history[first + t + o, k]
                c_re, c_im = coefs[t, k, 2 * o], coefs[t, k, 2 * o + 1]
                re += x.real * c_re - x.imag * c_im
                im += x.real * c_im + x.imag * c_re
            out[t, k] = complex(re, im)
