"""The two running normalisations of the features."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from dfstream.dsp._jit import complex64, float32, jit, reads, writes

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["initial_erb_norm", "initial_unit_norm", "mean_norm", "unit_norm"]

#: Range of the band levels in training, to which libDF scales (``lib.rs: band_mean_norm_erb``).
_LEVEL_RANGE_DB = np.float32(40)

#: Least mean magnitude of a bin. In digital silence the mean decays for ever: after 78 s at 10 ms hops it
#: would be a float32 denormal (slow), or zero where the CPU flushes those, and 0 / sqrt(0) is NaN, which the
#: recurrent network never forgets. This value is reached after more than half a minute and is far below any
#: sound: one least significant bit of 24-bit audio is about 1e-7.
_LEAST_MEAN = np.float32(1e-20)


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


@jit(reads(float32, 2), float32, writes(float32, 1), writes(float32, 2))
def mean_norm(
    band_db: NDArray[np.float32], alpha: float, state: NDArray[np.float32], out: NDArray[np.float32]
) -> None:
    """Write how far each level is from its running mean (libDF ``lib.rs: band_mean_norm_erb``).

    ``s <- e (1 - alpha) + s alpha``, then ``(e - s) / 40``.

    Parameters
    ----------
    band_db : ndarray[float32], shape (T, E), dB
    alpha : float
        Decay of the mean, per frame.
    state : ndarray[float32], shape (E,), dB
        The means; updated frame by frame, before use.
    out : ndarray[float32], shape (T, E)
        Written; may be ``band_db``.
    """
    for t in range(band_db.shape[0]):
        for band in range(state.size):
            level = band_db[t, band]
            mean = level * (np.float32(1) - alpha) + state[band] * alpha
            state[band] = mean
            out[t, band] = (level - mean) / _LEVEL_RANGE_DB


@jit(reads(complex64, 2), float32, writes(float32, 1), writes(float32, 3))
def unit_norm(
    spec: NDArray[np.complex64], alpha: float, state: NDArray[np.float32], out: NDArray[np.float32]
) -> None:
    """Write the lowest bins over the root of their running mean magnitude (libDF ``lib.rs: band_unit_norm``).

    ``s <- |X| (1 - alpha) + s alpha``, then ``X / sqrt(s)``. Unlike libDF's, ``s`` stays above 1e-20.

    Parameters
    ----------
    spec : ndarray[complex64], shape (T, bins)
        Bins from D on are not read.
    alpha : float
        Decay of the mean, per frame.
    state : ndarray[float32], shape (D,)
        The means; updated frame by frame, before use.
    out : ndarray[float32], shape (2, T, D)
        Real and imaginary parts, written.
    """
    for t in range(spec.shape[0]):
        for k in range(state.size):
            x = spec[t, k]
            mean = abs(x) * (np.float32(1) - alpha) + state[k] * alpha
            if mean < _LEAST_MEAN:
                mean = _LEAST_MEAN
            state[k] = mean
            root = math.sqrt(mean)
            out[0, t, k] = x.real / root
            out[1, t, k] = x.imag / root
