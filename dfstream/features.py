"""Spectra to what the encoder reads: band levels and normalised low bins."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dfstream.dsp._checks import check_max_frames, checked_spec
from dfstream.dsp.erb import band_mean_power_db, erb_widths
from dfstream.dsp.norm import initial_erb_norm, initial_unit_norm, mean_norm, unit_norm

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dfstream.config import ModelConfig

__all__ = ["Features"]


class Features:
    """Compute the two inputs of the encoder and own their running means.

    Parameters
    ----------
    config : ModelConfig
    max_frames : int
        Longest block of one call.

    Raises
    ------
    UsageError
        ``max_frames`` below one.
    ModelError
        The bands of ``config`` do not fit its bins.
    """

    def __init__(self, config: ModelConfig, max_frames: int = 1) -> None:
        check_max_frames(max_frames)
        self._bins, self._max_frames = config.bins, max_frames
        self._alpha = config.norm_alpha
        self._widths = erb_widths(config.sample_rate, config.fft_size, config.nb_erb, config.min_nb_erb_freqs)
        self._erb_norm = initial_erb_norm(config.nb_erb)
        self._unit_norm = initial_unit_norm(config.nb_df)
        # flat, so that shorter blocks are contiguous too
        self._feat_erb = np.empty(max_frames * config.nb_erb, np.float32)
        self._feat_spec = np.empty(2 * max_frames * config.nb_df, np.float32)

    @property
    def state(self) -> dict[str, NDArray[np.float32]]:
        """Live arrays: ``erb_norm`` (nb_erb,) in dB and ``unit_norm`` (nb_df,), both running means."""
        return {"erb_norm": self._erb_norm, "unit_norm": self._unit_norm}

    def reset(self) -> None:
        """Put both means to libDF's initial values."""
        self._erb_norm[:] = initial_erb_norm(self._erb_norm.size)
        self._unit_norm[:] = initial_unit_norm(self._unit_norm.size)

    def process(self, spec: NDArray[np.complex64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the features of a block of spectra.

        Parameters
        ----------
        spec : ndarray[complex64], shape (T, bins)
            One to ``max_frames`` frames. Results do not depend on how frames are grouped into calls.

        Returns
        -------
        feat_erb : ndarray[float32], shape (1, 1, T, nb_erb)
        feat_spec : ndarray[float32], shape (1, 2, T, nb_df)
            Real and imaginary parts. Both are views of internal buffers, overwritten by the next call.

        Raises
        ------
        UsageError
            Wrong dtype or shape.
        """
        spec = checked_spec(spec, self._bins, self._max_frames)
        T, E, D = spec.shape[0], self._erb_norm.size, self._unit_norm.size
        feat_erb = self._feat_erb[: T * E].reshape(1, 1, T, E)
        feat_spec = self._feat_spec[: 2 * T * D].reshape(1, 2, T, D)
        levels = feat_erb[0, 0]
        band_mean_power_db(spec, self._widths, levels)
        mean_norm(levels, self._alpha, self._erb_norm, levels)
        unit_norm(spec, self._alpha, self._unit_norm, feat_spec[0])
        return feat_erb, feat_spec
