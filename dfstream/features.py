"""Spectra to what the encoder reads: band levels and normalised low bins."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dfstream.dsp._checks import check_sizes, checked_spec
from dfstream.dsp.erb import band_mean_power_db, erb_widths
from dfstream.dsp.lanes import LaneSet, Scratch
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
    lanes : int

    Raises
    ------
    UsageError
        ``max_frames`` or ``lanes`` below one.
    ModelError
        The bands of ``config`` do not fit its bins.
    """

    def __init__(self, config: ModelConfig, max_frames: int = 1, lanes: int = 1) -> None:
        check_sizes(max_frames, lanes)
        self._bins, self._max_frames, self._all = config.bins, max_frames, LaneSet(lanes)
        self._alpha = config.norm_alpha
        self._widths = erb_widths(config.sample_rate, config.fft_size, config.nb_erb, config.min_nb_erb_freqs)
        self._erb_norm = np.tile(initial_erb_norm(config.nb_erb), (lanes, 1))
        self._unit_norm = np.tile(initial_unit_norm(config.nb_df), (lanes, 1))
        self._feat_erb = Scratch(lanes * max_frames * config.nb_erb, np.float32)
        self._feat_spec = Scratch(lanes * 2 * max_frames * config.nb_df, np.float32)

    @property
    def state(self) -> dict[str, NDArray[np.float32]]:
        """Live arrays, running means: ``erb_norm`` (lanes, nb_erb) in dB and ``unit_norm`` (lanes, nb_df)."""
        return {"erb_norm": self._erb_norm, "unit_norm": self._unit_norm}

    def reset(self, lanes: LaneSet | None = None) -> None:
        """Put both means of some lanes, or of all, to libDF's initial values."""
        rows = (lanes or self._all).index
        self._erb_norm[rows] = initial_erb_norm(self._erb_norm.shape[1])
        self._unit_norm[rows] = initial_unit_norm(self._unit_norm.shape[1])

    def process(
        self, spec: NDArray[np.complex64], lanes: LaneSet | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the features of a block of spectra.

        Parameters
        ----------
        spec : ndarray[complex64], shape (n, T, bins)
            One to ``max_frames`` frames of n lanes. Results do not depend on how frames are grouped into
            calls, nor on what other lanes there are.
        lanes : LaneSet, optional
            Which lanes; all in order by default.

        Returns
        -------
        feat_erb : ndarray[float32], shape (n, 1, T, nb_erb)
        feat_spec : ndarray[float32], shape (n, 2, T, nb_df)
            Real and imaginary parts. Both are views of internal buffers, overwritten by the next call.

        Raises
        ------
        UsageError
            Wrong dtype or shape.
        """
        lanes = lanes or self._all
        spec = checked_spec(spec, len(lanes), self._bins, self._max_frames)
        n, T, _ = spec.shape
        feat_erb = self._feat_erb.shaped(n, 1, T, self._erb_norm.shape[1])
        feat_spec = self._feat_spec.shaped(n, 2, T, self._unit_norm.shape[1])
        levels = feat_erb[:, 0]
        band_mean_power_db(spec, self._widths, levels)
        mean_norm(levels, lanes.index, self._alpha, self._erb_norm, levels)
        unit_norm(spec, lanes.index, self._alpha, self._unit_norm, feat_spec)
        return feat_erb, feat_spec
