"""The deep filter: a short complex filter over frames, another one for each bin and frame."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dfstream.dsp._jit import complex64, float32, int8, jit, reads, writes

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["deep_filter"]


@jit(reads(complex64, 3), reads(float32, 4), reads(int8, 2), int8, writes(complex64, 3))
def deep_filter(
    history: NDArray[np.complex64],
    coefs: NDArray[np.float32],
    stages: NDArray[np.int8],
    least: int,
    out: NDArray[np.complex64],
) -> None:
    """Write the filtered lowest bins (libDF ``tract.rs: df``).

    ``out[t, k] = sum over o of C[t, k, o] history[t + o, k]``, a plain complex product.

    Parameters
    ----------
    history : ndarray[complex64], shape (n, R, bins)
        Frames, oldest first; ``R >= T + O - 1``.
    coefs : ndarray[float32], shape (n, at least T, D, 2 * O)
        Tap by tap, each real part first; tap 0 takes the oldest frame.
    stages : ndarray[int8], shape (n, at least T)
        Of each output frame.
    least : int
        Frames of a lower stage are left alone.
    out : ndarray[complex64], shape (n, T, bins)
        Bins below D written, the others left alone. Must not share memory with ``history``.
    """
    n, _, D, parts = coefs.shape
    for row in range(n):
        for t in range(out.shape[1]):
            if stages[row, t] < least:
                continue
            for k in range(D):
                re = im = np.float32(0)
                for o in range(parts // 2):
                    x = history[row, t + o, k]
                    c_re, c_im = coefs[row, t, k, 2 * o], coefs[row, t, k, 2 * o + 1]
                    re += x.real * c_re - x.imag * c_im
                    im += x.real * c_im + x.imag * c_re
                out[row, t, k] = complex(re, im)
