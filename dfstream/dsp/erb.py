"""Bands that are equally wide on the ERB scale: their table, their power, their gains."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dfstream.dsp._jit import complex64, float32, intp, jit, reads, writes
from dfstream.errors import ModelError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["POWER_FLOOR", "apply_band_gains", "band_mean_power_db", "erb_widths"]

#: Glasberg and Moore's scale as libDF writes it: 24.7 Hz is the bandwidth at 0 Hz, 9.265 the Q factor.
_MIN_BANDWIDTH_HZ, _Q = np.float32(24.7), np.float32(9.265)

#: Power of digital silence, so that its level is a number.
POWER_FLOOR = np.float32(1e-10)


def erb_widths(sample_rate: int, fft_size: int, nb_erb: int, min_nb_erb_freqs: int) -> NDArray[np.intp]:
    """Return how many bins each band has (libDF ``lib.rs: erb_fb``).

    Bands cover all bins, lowest first. Ideal edges are equally spaced on the ERB scale, all in
    float32. A band with fewer than ``min_nb_erb_freqs`` bins gets that many and owes the difference to
    the next, and what is still owed at the top is taken from the last band.

    Parameters
    ----------
    sample_rate : int, Hz
    fft_size : int, samples
    nb_erb, min_nb_erb_freqs : int

    Returns
    -------
    ndarray[intp], shape (nb_erb,)

    Raises
    ------
    ModelError
        No such table exists: the top band has nothing left.
    """
    bins = fft_size // 2 + 1
    widths = np.empty(nb_erb, np.intp)
    previous_edge = debt = 0
    for band, edge in enumerate(_ideal_edges(sample_rate, fft_size, nb_erb)):
        width = int(edge) - previous_edge - debt
        # the debt is measured from the ideal edge, not from the bins given so far
        debt = max(0, min_nb_erb_freqs - width)
        widths[band] = width + debt
        previous_edge = int(edge)
    widths[-1] += 1  # the edges count up to fft_size / 2, and that bin belongs to a band as well
    widths[-1] -= max(0, widths.sum() - bins)
    if widths.sum() != bins or widths.min() < 1:
        raise ModelError(
            f"{nb_erb} bands of at least {min_nb_erb_freqs} bins do not fit {bins} bins at {sample_rate} Hz",
            hint="use fewer bands, a smaller min_nb_erb_freqs or a larger fft_size",
        )
    return widths


def _ideal_edges(sample_rate: int, fft_size: int, nb_erb: int) -> NDArray[np.intp]:
    """Upper edge of each band, in bins, halves rounded up. Shape (nb_erb,)."""
    scale = _MIN_BANDWIDTH_HZ * _Q
    nyquist_erb = _Q * np.log1p(np.float32(sample_rate // 2) / scale)
    band = np.arange(1, nb_erb + 1, dtype=np.float32)
    edges_hz = scale * (np.exp(band * (nyquist_erb / np.float32(nb_erb)) / _Q) - np.float32(1))
    edges = edges_hz / (np.float32(sample_rate) / np.float32(fft_size))
    rounded: NDArray[np.intp] = np.floor(edges.astype(np.float64) + 0.5).astype(np.intp)
    return rounded


@jit(reads(complex64, 3), reads(intp, 1), writes(float32, 3))
def band_mean_power_db(
    spec: NDArray[np.complex64], widths: NDArray[np.intp], out: NDArray[np.float32]
) -> None:
    """Write the level of each band, in dB (libDF ``lib.rs: compute_band_corr, feat_erb``).

    ``10 log10(mean |X|^2 + 1e-10)``.

    Parameters
    ----------
    spec : ndarray[complex64], shape (n, T, bins)
    widths : ndarray[intp], shape (E,)
        Bins of each band; their sum is ``bins``.
    out : ndarray[float32], shape (n, T, E), dB
        Written.
    """
    n, T, _ = spec.shape
    for row in range(n):
        for t in range(T):
            frame, levels = spec[row, t], out[row, t]
            k = 0
            for band in range(widths.size):
                share = np.float32(1) / np.float32(widths[band])
                power = np.float32(0)
                for _ in range(widths[band]):
                    x = frame[k]
                    power += (x.real * x.real + x.imag * x.imag) * share
                    k += 1
                levels[band] = np.float32(10) * np.log10(power + POWER_FLOOR)


@jit(reads(complex64, 3), intp, reads(float32, 3), reads(intp, 1), writes(complex64, 3))
def apply_band_gains(
    history: NDArray[np.complex64],
    first: int,
    gains: NDArray[np.float32],
    widths: NDArray[np.intp],
    out: NDArray[np.complex64],
) -> None:
    """Write spectra with all bins of a band times its gain (libDF ``lib.rs: apply_interp_band_gain``).

    Parameters
    ----------
    history : ndarray[complex64], shape (n, R, bins)
        ``R >= first + T``.
    first : int, frames
        The frame of ``history`` that becomes output frame 0.
    gains : ndarray[float32], shape (n, at least T, E)
    widths : ndarray[intp], shape (E,)
        Bins of each band; their sum is ``bins``.
    out : ndarray[complex64], shape (n, T, bins)
        Written; may be ``history`` where ``first`` is 0.
    """
    n, T, _ = out.shape
    for row in range(n):
        for t in range(T):
            frame, masked = history[row, first + t], out[row, t]
            k = 0
            for band in range(widths.size):
                gain, stop = gains[row, t, band], k + widths[band]
                bins, scaled = frame[k:stop], masked[k:stop]
                for i in range(bins.size):
                    scaled[i] = bins[i] * gain
                k = stop
