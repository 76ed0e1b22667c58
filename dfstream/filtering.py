"""From the network's results to the enhanced spectrum: masks, deep filter, post-filter, limit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dfstream.dsp.deepfilter import deep_filter
from dfstream.dsp.erb import apply_band_gains, erb_widths
from dfstream.dsp.lanes import DelayLine, LaneSet, Scratch
from dfstream.dsp.postfilter import limit_attenuation, post_filter
from dfstream.gating import Stage

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dfstream.config import ModelConfig

__all__ = ["NO_LIMIT_DB", "SpectralFilter", "attenuation_gain", "mask_post_filter"]

#: From this attenuation on, a limit is none (libDF ``tract.rs: set_atten_lim``).
NO_LIMIT_DB = 100.0

#: As plain numbers, for kernels.
_MUTED, _PASSED, _MASKED, _FULL = map(int, Stage)


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
    if limit_db is None or abs(limit_db) >= NO_LIMIT_DB:
        return 0.0
    return float(np.float32(10.0) ** np.float32(-abs(limit_db) / 20.0))


def mask_post_filter(m: NDArray[np.float32], beta: float | NDArray[np.float32]) -> NDArray[np.float32]:
    """Sharpen band gains as DeepFilterNet2's Python package does (``modules.py: Mask.pf``).

    ``s = max(m sin(pi m / 2), 1e-12)``, then ``m (1 + beta) / (1 + beta (m / s)^2)``.

    Parameters
    ----------
    m : ndarray[float32], any shape
    beta : float or ndarray[float32] that broadcasts to ``m``
        0.02 there; 0 changes nothing.
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
    lanes : int

    Attributes
    ----------
    post_filter_bins : ndarray[intp], shape (lanes,)
        Lowest bins, on which the post-filter works; libDF leaves a few at the end alone.
    """

    def __init__(self, config: ModelConfig, max_frames: int = 1, lanes: int = 1) -> None:
        self._config, self._all = config, LaneSet(lanes)
        self._widths = erb_widths(config.sample_rate, config.fft_size, config.nb_erb, config.min_nb_erb_freqs)
        past_taps = config.df_order - 1 - config.df_lookahead
        held = config.delay_frames - config.conv_lookahead

        def line(past: int, *frame: int, dtype: type = np.float32, initial: int = 0) -> DelayLine:
            return DelayLine(past, frame, dtype, max_frames, lanes, initial)

        #: Row of the noisy frames that belongs to output frame 0.
        self._current = past_taps
        self._noisy = line(config.delay_frames + past_taps, config.bins, dtype=np.complex64)
        self._masked = line(
            config.df_order - 1 if config.filters_masked else 0, config.bins, dtype=np.complex64
        )
        self._gains = line(0 if config.filters_masked else held, config.nb_erb)
        self._coefs = line(held, config.nb_df, 2 * config.df_order)
        self._stages = line(held, dtype=np.int8, initial=_FULL)
        self._newest = Scratch(lanes * max_frames * config.bins, np.complex64)
        self._out = Scratch(lanes * max_frames * config.bins, np.complex64)
        self._full = Scratch(lanes * max_frames, np.int8)
        self._full.shaped(lanes * max_frames)[:] = _FULL
        self.post_filter_bins = np.full(lanes, config.bins - config.bins % 4, np.intp)

    @property
    def _lines(self) -> dict[str, DelayLine]:
        return {
            "noisy": self._noisy,
            "masked": self._masked,
            "gains": self._gains,
            "coefs": self._coefs,
            "stages": self._stages,
        }

    @property
    def state(self) -> dict[str, NDArray[np.generic]]:
        """Live arrays [lanes, frames, ...]: what coming calls still need, at first zeros."""
        return {name: line.past for name, line in self._lines.items() if line.past.size}

    def reset(self, lanes: LaneSet | None = None) -> None:
        """Forget the past of some lanes, or of all."""
        for line in self._lines.values():
            line.reset(lanes or self._all)

    def process(
        self,
        spec: NDArray[np.complex64],
        gains: NDArray[np.float32],
        coefs: NDArray[np.float32],
        stages: NDArray[np.int8] | None = None,
        beta: NDArray[np.float32] | None = None,
        noisy_gain: NDArray[np.float32] | None = None,
        lanes: LaneSet | None = None,
    ) -> NDArray[np.complex64]:
        """Return the enhanced spectra of the frames ``delay_frames`` back.

        Parameters
        ----------
        spec : ndarray[complex64], shape (n, T, bins)
            Noisy spectra of the newest frames.
        gains : ndarray[float32], shape (n, T, bands)
            What the network gave for these frames, ``m``.
        coefs : ndarray[float32], shape (n, T, df bins, 2 * taps)
            The same, ``coefs``.
        stages : ndarray[int8], shape (T,) or (n, T), optional
            `dfstream.gating.Stage` of these frames; `Stage.FULL` for all by default.
        beta : ndarray[float32], shape (n,), optional
            Strength of the post-filter, 0 for none. Not on frames that are muted or passed on.
        noisy_gain : ndarray[float32], shape (n,), optional
            Share of the noisy spectrum that stays; see `attenuation_gain`.
        lanes : LaneSet, optional
            Which lanes; all in order by default.

        Returns
        -------
        ndarray[complex64], shape (n, T, bins)
            View of an internal buffer, overwritten by the next call.
        """
        lanes = lanes or self._all
        n, T, bins = spec.shape
        gains, coefs = np.ascontiguousarray(gains, np.float32), np.ascontiguousarray(coefs, np.float32)
        if stages is None:
            stages = self._full.shaped(n, T)
        else:
            stages = np.ascontiguousarray(np.broadcast_to(stages, (n, T)))
            gains = _staged(gains, stages)
        noisy = self._noisy.extend(spec, lanes)
        coefs = self._coefs.extend(coefs, lanes)
        stages = self._stages.extend(stages, lanes)
        out: NDArray[np.complex64] = self._out.shaped(n, T, bins)
        deep_filter(self._mask(noisy, gains, out, lanes), coefs, stages, _FULL, out)
        if beta is not None:
            counts = self.post_filter_bins[lanes.index]
            post_filter(noisy, self._current, out, stages, _MASKED, beta, counts)
        if noisy_gain is not None:
            limit_attenuation(noisy, self._current, out, noisy_gain)
        return out

    def _mask(
        self,
        noisy: NDArray[np.complex64],
        gains: NDArray[np.float32],
        out: NDArray[np.complex64],
        lanes: LaneSet,
    ) -> NDArray[np.complex64]:
        """Write the masked frames t; return the frames around them that the deep filter reads."""
        n, T, bins = out.shape
        if not self._config.filters_masked:
            apply_band_gains(noisy, self._current, self._gains.extend(gains, lanes), self._widths, out)
            return noisy
        # DFN2 filters masked frames: of the newest ones to be known, those ahead of frame t too
        newest = self._newest.shaped(n, T, bins)
        known = noisy.shape[1] - T - self._config.conv_lookahead
        apply_band_gains(noisy, known, gains, self._widths, newest)
        masked = self._masked.extend(newest, lanes)
        out[:] = masked[:, self._current : self._current + T]
        return masked


def _staged(gains: NDArray[np.float32], stages: NDArray[np.int8]) -> NDArray[np.float32]:
    """Gains [n, T, bands] where frames that are muted have zeros, and those passed on have ones."""
    gains = gains.copy()
    gains[stages == _MUTED] = 0
    gains[stages == _PASSED] = 1
    return gains
