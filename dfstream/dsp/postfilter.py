"""What is done to the enhanced spectrum last: the post-filter and the attenuation limit."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from dfstream.dsp._jit import complex64, float32, int8, intp, jit, reads, writes

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["LEAST_GAIN", "limit_attenuation", "post_filter"]

LEAST_GAIN = np.float32(1e-12)
_HALF_PI = np.float32(np.pi / 2)


@jit(reads(complex64, 3), intp, writes(complex64, 3), reads(int8, 2), int8, reads(float32, 1), reads(intp, 1))
def post_filter(
    history: NDArray[np.complex64],
    first: int,
    enhanced: NDArray[np.complex64],
    stages: NDArray[np.int8],
    least: int,
    beta: NDArray[np.float32],
    count: NDArray[np.intp],
) -> None:
    """Attenuate further what is already attenuated (libDF ``lib.rs: post_filter``).

    With ``g = |Y| / |X|`` limited to 1e-12 ... 1, ``Y`` is multiplied by
    ``(1 + beta) / (1 + beta / sin^2(pi g / 2))``.

    Parameters
    ----------
    history : ndarray[complex64], shape (n, R, bins)
        X; frame ``first`` is that of enhanced frame 0.
    first : int, frames
    enhanced : ndarray[complex64], shape (n, T, bins)
        Y, changed in place.
    stages : ndarray[int8], shape (n, at least T)
        Of each enhanced frame.
    least : int
        Frames of a lower stage are left alone.
    beta : ndarray[float32], shape (n,)
        Strength: 0 changes nothing, 0.02 is usual.
    count : ndarray[intp], shape (n,), bins
        The lowest bins, which are changed. libDF handles four at a time and leaves the rest of a frame
        alone: with 481 bins, the last.
    """
    one = np.float32(1)
    n, T, _ = enhanced.shape
    for row in range(n):
        if beta[row] == 0:
            continue
        for t in range(T):
            if stages[row, t] < least:
                continue
            for k in range(count[row]):
                gain = abs(enhanced[row, t, k]) / (abs(history[row, first + t, k]) + LEAST_GAIN)
                sine = math.sin(_HALF_PI * max(min(gain, one), LEAST_GAIN))
                enhanced[row, t, k] *= (one + beta[row]) / (one + beta[row] / (sine * sine))


@jit(reads(complex64, 3), intp, writes(complex64, 3), reads(float32, 1))
def limit_attenuation(
    history: NDArray[np.complex64], first: int, enhanced: NDArray[np.complex64], lim: NDArray[np.float32]
) -> None:
    """Mix some of the noisy spectrum back in: ``Y (1 - lim) + X lim`` (libDF ``tract.rs: process``).

    Parameters
    ----------
    history : ndarray[complex64], shape (n, R, bins)
        X; frame ``first`` is that of enhanced frame 0.
    first : int, frames
    enhanced : ndarray[complex64], shape (n, T, bins)
        Y, changed in place.
    lim : ndarray[float32], shape (n,)
        ``10^(-dB / 20)`` of the largest attenuation: 0 keeps ``enhanced``, 1 gives the noisy spectrum.
    """
    n, T, bins = enhanced.shape
    for row in range(n):
        if lim[row] == 0:
            continue
        for t in range(T):
            for k in range(bins):
                noisy = history[row, first + t, k]
                enhanced[row, t, k] = enhanced[row, t, k] * (np.float32(1) - lim[row]) + noisy * lim[row]
