"""From the network's results to the enhanced spectrum: masks, deep filter, post-filter, limit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dfstream.dsp.deepfilter import deep_filter
from dfstream.dsp.erb import apply_band_gains, erb_widths
from dfstream.dsp.postfilter import limit_attenuation, post_filter
from dfstream.gating import Stage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from dfstream.config import ModelConfig

__all__ = ["SpectralFilter", "attenuation_gain", "mask_post_filter"]

#: From this attenuation on, a limit is none (libDF ``tract.rs: set_atten_lim``).
_NO_LIMIT_DB = 100.0


def attenuation_gain(limit_db: float | None) -> float:
    """Return how much of the noisy signal stays for a limit of the attenuation.

    Parameters
    ----------
    limit_db : float or None, dB
        Largest attenuation; its sign is ignored. None, or 100 dB and more, is no limit.

    Returns
    -------
    float
        ``10^(-dB / 20)``, 0 for no limit, 1 at 0 dB: the delayed noisy signal.
    """
    if limit_db is None or abs(limit_db) >= _NO_LIMIT_DB:
        return 0.0
    return float(np.float32(10.0) ** np.float32(-abs(limit_db) / 20.0))


def mask_post_filter(m: NDArray[np.float32], beta: float) -> NDArray[np.float32]:
    """Sharpen band gains as DeepFilterNet2's Python package does (``modules.py: Mask.pf``).

    ``s = max(m sin(pi m / 2), 1e-12)``, then ``m (1 + beta) / (1 + beta (m / s)^2)``.

    Parameters
    ----------
    m : ndarray[float32], any shape
    beta : float
        0.02 there.
    """
    sine = np.maximum(m * np.sin(np.pi * m / 2), np.float32(1e-12))
    sharpened: NDArray[np.float32] = ((1 + beta) * m / (1 + beta * (m / sine) ** 2)).astype(np.float32)
    return sharpened


class SpectralFilter:
    """Apply gains and deep-filter taps to spectra, in step with the lookaheads.

    The network's results for its newest input frame n belong to frame ``n - conv_lookahead``. Gains are
    applied there; the deep filter's output frame is ``n - delay_frames``, so that the taps reach
    ``df_lookahead`` frames beyond it. DFN3 filters the noisy spectrum and takes the bins above the deep
    filter from the masked one; DFN2 filters the masked spectrum, which is why it lags longer.

    Parameters
    ----------
    config : ModelConfig
    max_frames : int
        Longest block of one call.
    """

    def __init__(self, config: ModelConfig, max_frames: int = 1) -> None:
        self._config = config
        self._widths = erb_widths(config.sample_rate, config.fft_size, config.nb_erb, config.min_nb_erb_freqs)
        past_taps = config.df_order - 1 - config.df_lookahead
        self._held = config.delay_frames - config.conv_lookahead
        # rows of each buffer: past frames first, then those of this call
        self._noisy_past = config.delay_frames + past_taps
        self._masked_past = config.df_order - 1 if config.filters_masked else 0
        self._past_taps = past_taps
        self._noisy = np.zeros((self._noisy_past + max_frames, config.bins), np.complex64)
        self._masked = np.zeros((self._masked_past + max_frames, config.bins), np.complex64)
        self._gains = np.zeros((self._held + max_frames, config.nb_erb), np.float32)
        self._coefs = np.zeros((self._held + max_frames, config.nb_df, 2 * config.df_order), np.float32)
        self._stages = np.full(self._held + max_frames, Stage.FULL, np.int8)
        self._out = np.empty((max_frames, config.bins), np.complex64)
        #: Bins that the post-filter works on; libDF leaves a few at the end alone.
        self.post_filter_bins = config.bins - config.bins % 4

    @property
    def state(self) -> dict[str, NDArray[np.generic]]:
        """Live arrays: the frames and results that coming calls still need, at first zeros."""
        return {
            "noisy": self._noisy[: self._noisy_past],
            "masked": self._masked[: self._masked_past],
            "gains": self._gains[: self._held],
            "coefs": self._coefs[: self._held],
            "stages": self._stages[: self._held],
        }

    def reset(self) -> None:
        """Forget the past."""
        for array in self.state.values():
            array[:] = 0
        self._stages[:] = Stage.FULL

    def process(
        self,
        spec: NDArray[np.complex64],
        gains: NDArray[np.float32],
        coefs: NDArray[np.float32],
        stages: NDArray[np.int8] | None = None,
        post_filter_beta: float = 0.0,
        noisy_gain: float = 0.0,
    ) -> NDArray[np.complex64]:
        """Return the enhanced spectra of the frames ``delay_frames`` back.

        Parameters
        ----------
        spec : ndarray[complex64], shape (T, bins)
            Noisy spectra of the newest frames.
        gains : ndarray[float32], shape (T, bands)
            What the network gave for these frames, ``m``.
        coefs : ndarray[float32], shape (T, df bins, 2 * taps)
            The same, ``coefs``.
        stages : ndarray[int8], shape (T,), optional
            `dfstream.gating.Stage` of these frames; `Stage.FULL` for all by default.
        post_filter_beta : float
            Strength of the post-filter, 0 for none. Not on frames that are muted or passed on.
        noisy_gain : float
            Share of the noisy spectrum that stays; see `attenuation_gain`.

        Returns
        -------
        ndarray[complex64], shape (T, bins)
            View of an internal buffer, overwritten by the next call.
        """
        T = len(spec)
        held, past = self._held, self._noisy_past
        self._noisy[past : past + T] = spec
        self._gains[held : held + T] = gains
        self._coefs[held : held + T] = coefs
        self._stages[held : held + T] = Stage.FULL if stages is None else stages
        self._gains[held : held + T][self._stages[held : held + T] == Stage.MUTED] = 0
        self._gains[held : held + T][self._stages[held : held + T] == Stage.PASSED] = 1
        out, delayed = self._out[:T], self._noisy[self._past_taps : self._past_taps + T]
        (self._filter_masked if self._config.filters_masked else self._filter_noisy)(T, out)
        if post_filter_beta > 0:
            for run in self._runs(T, Stage.MASKED):
                post_filter(delayed[run], out[run], post_filter_beta, self.post_filter_bins)
        if noisy_gain > 0:
            limit_attenuation(delayed, out, noisy_gain)
        self._move_on(T)
        return out

    def _filter_noisy(self, T: int, out: NDArray[np.complex64]) -> None:
        """DFN3: mask frame t, then replace its lowest bins from the noisy frames around it."""
        current = self._noisy[self._past_taps : self._past_taps + T]
        apply_band_gains(current, self._gains[:T], self._widths, out)
        self._deep_filter(self._noisy, T, out)

    def _filter_masked(self, T: int, out: NDArray[np.complex64]) -> None:
        """DFN2: mask the frame that just became known, then filter the masked frames around t."""
        known = self._noisy_past - self._config.conv_lookahead
        newest = self._masked[self._masked_past : self._masked_past + T]
        gains = self._gains[self._held : self._held + T]
        apply_band_gains(self._noisy[known : known + T], gains, self._widths, newest)
        out[:] = self._masked[self._past_taps : self._past_taps + T]
        self._deep_filter(self._masked, T, out)

    def _deep_filter(self, history: NDArray[np.complex64], T: int, out: NDArray[np.complex64]) -> None:
        for run in self._runs(T, Stage.FULL):
            deep_filter(history, self._coefs[run], run.start, out[run])

    def _runs(self, T: int, least: Stage) -> Iterator[slice]:
        """Yield the runs of output frames that have reached a stage; nearly always one, of all frames."""
        reached = self._stages[:T] >= least
        if reached.all():
            yield slice(0, T)
            return
        edges = np.flatnonzero(np.diff(reached, prepend=False, append=False))
        for start, stop in edges.reshape(-1, 2):
            yield slice(int(start), int(stop))

    def _move_on(self, T: int) -> None:
        for buffer, past in (
            (self._noisy, self._noisy_past),
            (self._masked, self._masked_past),
            (self._gains, self._held),
            (self._coefs, self._held),
            (self._stages, self._held),
        ):
            buffer[:past] = buffer[T : T + past]
