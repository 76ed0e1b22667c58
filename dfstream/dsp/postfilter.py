"""What is done to the enhanced spectrum last: the post-filter and the attenuation limit."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from dfstream.dsp._jit import complex64, float32, intp, jit, reads, writes

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["limit_attenuation", "post_filter"]

_LEAST_GAIN = np.float32(1e-12)
_HALF_PI = np.float32(np.pi / 2)


@jit(reads(complex64, 2), writes(complex64, 2), float32, intp)
def post_filter(
    noisy: NDArray[np.complex64], enhanced: NDArray[np.complex64], beta: float, count: int
) -> None:
    """Attenuate further what is already attenuated (libDF ``lib.rs: post_filter``).

    With ``g = |Y| / |X|`` limited to 1e-12 ... 1, ``Y`` is multiplied by
    ``(1 + beta) / (1 + beta / sin^2(pi g / 2))``.

    Parameters
    ----------
    noisy : ndarray[complex64], shape (T, bins)
        X, of the same frames as ``enhanced``.
    enhanced : ndarray[complex64], shape (T, bins)
        Y, changed in place.
    beta : float
        Strength: 0 changes nothing, 0.02 is usual.
    count : int, bins
        The lowest bins, which are changed. libDF handles four at a time and leaves the rest of a frame
        alone: with 481 bins, the last.
    """
    one = np.float32(1)
    for t in range(enhanced.shape[0]):
        for k in range(count):
            gain = abs(enhanced[t, k]) / (abs(noisy[t, k]) + _LEAST_GAIN)
            sine = math.sin(_HALF_PI * max(min(gain, one), _LEAST_GAIN))
            enhanced[t, k] *= (one + beta) / (one + beta / (sine * sine))


@jit(reads(complex64, 2), writes(complex64, 2), float32)
def limit_attenuation(noisy: NDArray[np.complex64], enhanced: NDArray[np.complex64], lim: float) -> None:
    """Mix some of the noisy spectrum back in: ``Y (1 - lim) + X lim`` (libDF ``tract.rs: process``).

    Parameters
    ----------
    noisy : ndarray[complex64], shape (T, bins)
        X, of the same frames as ``enhanced``.
    enhanced : ndarray[complex64], shape (T, bins)
        Y, changed in place.
    lim : float
        ``10^(-dB / 20)`` of the largest attenuation: 0 keeps ``enhanced``, 1 gives ``noisy``.
    """
    T, bins = enhanced.shape
    for t in range(T):
        for k in range(bins):
            enhanced[t, k] = enhanced[t, k] * (np.float32(1) - lim) + noisy[t, k] * lim
