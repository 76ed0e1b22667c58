"""The signal's way on both sides of the network, for many lanes at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from dfstream.dsp.stft import Analysis, Synthesis
from dfstream.features import Features
from dfstream.filtering import SpectralFilter

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dfstream.config import ModelConfig
    from dfstream.dsp.lanes import LaneSet

__all__ = ["Analysed", "SignalPath"]


class Analysed(NamedTuple):
    """T frames of n lanes on their way into the network."""

    spec: NDArray[np.complex64]
    """[n, T, bins]."""
    feat_erb: NDArray[np.float32]
    """[n, 1, T, bands]."""
    feat_spec: NDArray[np.float32]
    """[n, 2, T, df bins], re and im."""


class SignalPath:
    """Signal processing and its memory for a number of lanes.

    Parameters
    ----------
    config : ModelConfig
    max_frames : int
        Longest block of one call.
    lanes : int

    Attributes
    ----------
    state : dict of str to ndarray, shape (lanes, ...)
        Live arrays: everything that is remembered.
    """

    def __init__(self, config: ModelConfig, max_frames: int, lanes: int) -> None:
        self._analysis = Analysis(config.fft_size, config.hop_size, max_frames, lanes)
        self._features = Features(config, max_frames, lanes)
        self._filter = SpectralFilter(config, max_frames, lanes)
        self._synthesis = Synthesis(config.fft_size, config.hop_size, max_frames, lanes)
        self._parts = (self._analysis, self._features, self._filter, self._synthesis)
        self.state: dict[str, NDArray[np.generic]] = {}
        for part in self._parts:
            self.state |= part.state
        self.post_filter_bins = self._filter.post_filter_bins

    def reset(self, lanes: LaneSet | None = None) -> None:
        """Forget the past of some lanes, or of all."""
        for part in self._parts:
            part.reset(lanes)

    def analyse(self, x: NDArray[np.float32], lanes: LaneSet | None = None) -> Analysed:
        """Take samples [n, T * hop] to spectra and features, all views of internal buffers."""
        spec = self._analysis.process(x, lanes)
        return Analysed(spec, *self._features.process(spec, lanes))

    def synthesise(
        self,
        spec: NDArray[np.complex64],
        gains: NDArray[np.float32],
        coefs: NDArray[np.float32],
        stages: NDArray[np.int8] | None = None,
        beta: NDArray[np.float32] | None = None,
        noisy_gain: NDArray[np.float32] | None = None,
        lanes: LaneSet | None = None,
    ) -> NDArray[np.float32]:
        """Take spectra and what the network gave for them to samples; as `SpectralFilter.process`.

        Returns
        -------
        ndarray[float32], shape (n, T * hop)
            View of an internal buffer, overwritten by the next call.
        """
        enhanced = self._filter.process(spec, gains, coefs, stages, beta, noisy_gain, lanes)
        return self._synthesis.process(enhanced, lanes)
