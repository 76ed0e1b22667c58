"""The signal's way, block by block: the one place that knows the order of the steps."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Literal

import numpy as np

from dfstream.dsp.stft import Analysis, Synthesis
from dfstream.features import Features
from dfstream.filtering import SpectralFilter, mask_post_filter
from dfstream.gating import Stage, Thresholds
from dfstream.modes.base import NetOutput, check_results

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dfstream.config import ModelConfig
    from dfstream.modes.base import Mode

__all__ = ["ChannelMask", "Engine", "EngineOptions", "Parity", "PostFilterKind"]

Parity = Literal["rust", "python"]
ChannelMask = Literal["none", "max", "mean"]
PostFilterKind = Literal["spectrum", "mask"]

#: Mean square below which a hop is silent (libDF ``tract.rs: process``), about -70 dBFS.
_SILENCE = 1e-7

#: LSNR that libDF reports for a hop it skips.
_SKIPPED_LSNR_DB = -15.0


@dataclasses.dataclass(frozen=True)
class EngineOptions:
    """What an engine does besides enhancing; fixed for its life. `dfstream.Stream` explains each."""

    channels: int = 1
    channel_mask: ChannelMask = "none"
    parity: Parity = "rust"
    block_frames: int = 1
    thresholds: Thresholds = dataclasses.field(default_factory=Thresholds)
    skip_silence: bool = False
    post_filter_kind: PostFilterKind = "spectrum"


class _Channel:
    """Signal processing and its memory for one channel."""

    def __init__(self, config: ModelConfig, max_frames: int) -> None:
        self.analysis = Analysis(config.fft_size, config.hop_size, max_frames)
        self.features = Features(config, max_frames)
        self.filter = SpectralFilter(config, max_frames)
        self.synthesis = Synthesis(config.fft_size, config.hop_size, max_frames)
        self.parts = (self.analysis, self.features, self.filter, self.synthesis)


class Engine:
    """Enhance blocks of hops at the model's rate.

    Parameters
    ----------
    mode : Mode
        Drives the network; its batch is the number of channels.
    options : EngineOptions
    """

    def __init__(self, mode: Mode, options: EngineOptions) -> None:
        self._mode = mode
        self._options = options
        self._config = config = mode.model.config
        self._channels = [_Channel(config, options.block_frames) for _ in range(options.channels)]
        # libDF runs its post-filter over all channels end to end, four values at a time, and leaves the
        # rest alone: the last bins of the last channel
        left_alone = config.bins * options.channels % 4
        for index, channel in enumerate(self._channels):
            last = index == options.channels - 1
            channel.filter.post_filter_bins = config.bins - (left_alone if last else 0)
        self.reset()

    def reset(self) -> None:
        """Forget the past."""
        self._mode.reset()
        for channel in self._channels:
            for part in channel.parts:
                part.reset()
        self.frames = 0

    # -- the signal's way --------------------------------------------------------------------------

    def process(
        self, x: NDArray[np.float32], beta: float, noisy_gain: float, skip_silence: bool | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Take T hops all the way.

        Parameters
        ----------
        x : ndarray[float32], shape (channels, T * hop)
            One to ``block_frames`` hops.
        beta : float
            Strength of the post-filter.
        noisy_gain : float
            Share of the noisy spectrum that stays.
        skip_silence : bool, optional
            Overrides the option, for the end of a stream.

        Returns
        -------
        y : ndarray[float32], shape (channels, T * hop)
            Fresh.
        lsnr : ndarray[float32], shape (T,), dB
        """
        if skip_silence is None:
            skip_silence = self._options.skip_silence
        if skip_silence:
            heard = self._heard(x)
            if not heard.all():
                return self._process_heard(x, heard, beta, noisy_gain)
        specs = [c.analysis.process(samples) for c, samples in zip(self._channels, x, strict=True)]
        features = [c.features.process(spec) for c, spec in zip(self._channels, specs, strict=True)]
        feat_erb, feat_spec = (_batch([f[i] for f in features]) for i in (0, 1))
        return self.process_frames(specs, feat_erb, feat_spec, beta, noisy_gain)

    def process_frames(
        self,
        specs: list[NDArray[np.complex64]],
        feat_erb: NDArray[np.float32],
        feat_spec: NDArray[np.float32],
        beta: float,
        noisy_gain: float,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Take T spectra of every channel and their features from the network on; as `process`."""
        net, stages = self._step(feat_erb, feat_spec)
        gains = self._gains(net.m[:, 0], beta)
        beta = beta if self._options.post_filter_kind == "spectrum" else 0.0
        y = np.empty((len(specs), feat_erb.shape[2] * self._config.hop_size), np.float32)
        for index, (channel, spec) in enumerate(zip(self._channels, specs, strict=True)):
            enhanced = channel.filter.process(spec, gains[index], net.coefs[index], stages, beta, noisy_gain)
            y[index] = channel.synthesis.process(enhanced)
        return y, net.lsnr[0, :, 0]

    def finish(self, beta: float, noisy_gain: float) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """Feed zero spectra and zero *features* for the lookahead, as the Python package does at the end."""
        c, channels, results = self._config, self._options.channels, []
        for start in range(0, c.delay_frames, self._options.block_frames):
            T = min(self._options.block_frames, c.delay_frames - start)
            results.append(
                self.process_frames(
                    [np.zeros((T, c.bins), np.complex64)] * channels,
                    np.zeros((channels, 1, T, c.nb_erb), np.float32),
                    np.zeros((channels, 2, T, c.nb_df), np.float32),
                    beta,
                    noisy_gain,
                )
            )
        return results

    def _step(
        self, feat_erb: NDArray[np.float32], feat_spec: NDArray[np.float32]
    ) -> tuple[NetOutput, NDArray[np.int8]]:
        """Run the network; in Python's way not on the frames that only look ahead of the first one."""
        T = feat_erb.shape[2]
        skipped = 0
        if self._options.parity == "python":
            skipped = min(T, max(0, self._config.conv_lookahead - self.frames))
        self.frames += T
        before = self._no_output(skipped)
        if skipped == T:
            return before, np.full(T, Stage.FULL, np.int8)
        if skipped:
            feat_erb, feat_spec = (np.ascontiguousarray(f[:, :, skipped:]) for f in (feat_erb, feat_spec))
        if self._options.thresholds.never_trigger:
            net, stages = self._mode.step(feat_erb, feat_spec), np.full(T - skipped, Stage.FULL, np.int8)
        else:
            net, stages = self._mode.step_gated(feat_erb, feat_spec, self._options.thresholds)
        check_results(net, self._config, self._options.channels, T - skipped)
        if skipped:
            net = NetOutput.join([before, net])
            stages = np.concatenate([np.full(skipped, Stage.FULL, np.int8), stages])
        return net, stages

    def _gains(self, m: NDArray[np.float32], beta: float) -> NDArray[np.float32]:
        """Share the mask among channels where asked, and sharpen it where that is the post-filter."""
        if self._options.channel_mask != "none" and len(m) > 1:
            reduce = np.max if self._options.channel_mask == "max" else np.mean
            m = np.broadcast_to(reduce(m, axis=0, keepdims=True), m.shape)
        if beta > 0 and self._options.post_filter_kind == "mask":
            m = mask_post_filter(m, beta)
        return m

    def _no_output(self, T: int) -> NetOutput:
        """Results for frames before the signal: silence, and nothing known of it."""
        c, channels = self._config, self._options.channels
        return NetOutput(
            np.full((channels, T, 1), np.nan, np.float32),
            np.zeros((channels, 1, T, c.nb_erb), np.float32),
            np.zeros((channels, T, c.nb_df, 2 * c.df_order), np.float32),
        )

    # -- silence -----------------------------------------------------------------------------------

    def _heard(self, x: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Tell which hops are not silent, over all channels together."""
        hops = x.reshape(len(x), -1, self._config.hop_size)
        heard: NDArray[np.bool_] = np.mean(hops * hops, axis=(0, 2)) >= _SILENCE
        return heard

    def _process_heard(
        self, x: NDArray[np.float32], heard: NDArray[np.bool_], beta: float, noisy_gain: float
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Cut silent hops out, as libDF v0.5.6 does: zeros come out for them and nothing moves on."""
        T, hop = len(heard), self._config.hop_size
        y = np.zeros((len(x), T, hop), np.float32)
        lsnr = np.full(T, _SKIPPED_LSNR_DB, np.float32)
        if heard.any():
            kept = np.ascontiguousarray(x.reshape(len(x), T, hop)[:, heard].reshape(len(x), -1))
            enhanced, lsnr[heard] = self.process(kept, beta, noisy_gain, skip_silence=False)
            y[:, heard] = enhanced.reshape(len(x), -1, hop)
        return y.reshape(len(x), -1), lsnr

    # -- state -------------------------------------------------------------------------------------

    def save(self) -> dict[str, NDArray[np.generic]]:
        """Return a copy of all state, by name."""
        saved: dict[str, NDArray[np.generic]] = {"frames": np.array([self.frames])}
        saved |= {f"net/{name}": array.copy() for name, array in self._mode.state.items()}
        return saved | {name: array.copy() for name, array in self._signal_state().items()}

    def load(self, saved: dict[str, NDArray[np.generic]]) -> None:
        """Continue from what `save` returned."""
        self.frames = int(saved["frames"][0])
        for name in self._mode.state:
            self._mode.state[name] = saved[f"net/{name}"].copy()  # type: ignore[assignment]
        for name, array in self._signal_state().items():
            array[...] = saved[name]

    def _signal_state(self) -> dict[str, NDArray[np.generic]]:
        return {
            f"channel{index}/{name}": array
            for index, channel in enumerate(self._channels)
            for part in channel.parts
            for name, array in part.state.items()
        }


def _batch(arrays: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
