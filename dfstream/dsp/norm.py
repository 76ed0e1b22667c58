"""The two running normalisations of the features."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from dfstream.dsp._jit import complex64, float32, intp, jit, reads, writes

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "LEAST_MEAN",
    "LEVEL_RANGE_DB",
    "initial_erb_norm",
    "initial_unit_norm",
    "mean_norm",
    "unit_norm",
]

#: Range of the band levels in training, to which libDF scales (``lib.rs: band_mean_norm_erb``).
LEVEL_RANGE_DB = np.float32(40)

#: Least mean magnitude of a bin. In digital silence the mean decays for ever: after 78 s at 10 ms hops it
#: would be a float32 denormal (slow), or zero where the CPU flushes those, and 0 / sqrt(0) is NaN, which the
#: recurrent network never forgets. This value is reached after more than half a minute and is far below any
#: sound: one least significant bit of 24-bit audio is about 1e-7.
LEAST_MEAN = np.float32(1e-20)


def initial_erb_norm(nb_erb: int) -> NDArray[np.float32]:
    """Return the mean levels before the first frame: -60 dB in the lowest band to -90 dB in the highest.

    Returns
    -------
    ndarray[float32], shape (nb_erb,), dB
    """
    return _ramp(-60.0, -90.0, nb_erb)


def initial_unit_norm(nb_df: int) -> NDArray[np.float32]:
    """Return the mean magnitudes before the first frame: 1e-3 in the lowest bin to 1e-4 in the highest.

    Returns
    -------
    ndarray[float32], shape (nb_df,)
    """
    return _ramp(1e-3, 1e-4, nb_df)


def _ramp(first: float, last: float, count: int) -> NDArray[np.float32]:
    """Equally spaced values, in the float32 steps of libDF (``lib.rs: init_mean_norm_state``)."""
    step = (np.float32(last) - np.float32(first)) / np.float32(max(count - 1, 1))
    return np.float32(first) + np.arange(count, dtype=np.float32) * step


@jit(reads(float32, 3), reads(intp, 1), float32, writes(float32, 2), writes(float32, 3))
def mean_norm(
    band_db: NDArray[np.float32],
    lanes: NDArray[np.intp],
    alpha: float,
    state: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    """Write how far each level is from its running mean (libDF ``lib.rs: band_mean_norm_erb``).

    ``s <- e (1 - alpha) + s alpha``, then ``(e - s) / 40``.

    Parameters
    ----------
    band_db : ndarray[float32], shape (n, T, E), dB
    lanes : ndarray[intp], shape (n,)
        Row of ``state`` for each row of ``band_db``.
    alpha : float
        Decay of the mean, per frame.
    state : ndarray[float32], shape (lanes, E), dB
        The means; updated frame by frame, before use.
    out : ndarray[float32], shape (n, T, E)
        Written; may be ``band_db``.
    """
    n, T, E = band_db.shape
    for row in range(n):
        means = state[lanes[row]]
        for t in range(T):
            for band in range(E):
                level = band_db[row, t, band]
                mean = level * (np.float32(1) - alpha) + means[band] * alpha
                means[band] = mean
                out[row, t, band] = (level - mean) / LEVEL_RANGE_DB


@jit(reads(complex64, 3), reads(intp, 1), float32, writes(float32, 2), writes(float32, 4))
def unit_norm(
    spec: NDArray[np.complex64],
    lanes: NDArray[np.intp],
    alpha: float,
    state: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    """Write the lowest bins over the root of their running mean magnitude (libDF ``lib.rs: band_unit_norm``).

    ``s <- |X| (1 - alpha) + s alpha``, then ``X / sqrt(s)``. Unlike libDF's, ``s`` stays above 1e-20.

    Parameters
    ----------
    spec : ndarray[complex64], shape (n, T, bins)
        Bins from D on are not read.
    lanes : ndarray[intp], shape (n,)
        Row of ``state`` for each row of ``spec``.
    alpha : float
        Decay of the mean, per frame.
    state : ndarray[float32], shape (lanes, D)
        The means; updated frame by frame, before use.
    out : ndarray[float32], shape (n, 2, T, D)
        Real and imaginary parts, written.
    """
    n, T, _ = spec.shape
    for row in range(n):
        means = state[lanes[row]]
        for t in range(T):
            for k in range(means.size):
                x = spec[row, t, k]
                mean = abs(x) * (np.float32(1) - alpha) + means[k] * alpha
                if mean < LEAST_MEAN:
                    mean = LEAST_MEAN
                means[k] = mean
                root = math.sqrt(mean)
                out[row, 0, t, k] = x.real / root
                out[row, 1, t, k] = x.imag / root
