"""The signal's way, block by block: the one place that knows the order of the steps."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from dfstream.filtering import mask_post_filter
from dfstream.gating import Stage, Thresholds
from dfstream.modes.base import NetOutput, check_results
from dfstream.signalpath import Analysed, SignalPath
from dfstream.silence import heard_hops, process_heard

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from dfstream.config import ModelConfig
    from dfstream.modes.base import Mode

__all__ = [
    "ChannelMask",
    "Engine",
    "EngineOptions",
    "Parity",
    "PostFilterKind",
    "SignalEngine",
    "no_output",
]

Parity = Literal["rust", "python"]
ChannelMask = Literal["none", "max", "mean"]
PostFilterKind = Literal["spectrum", "mask"]


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


class SignalEngine(Protocol):
    """What takes blocks of hops all the way, for a stream; `Engine` says of each method what it does."""

    def reset(self) -> None:
        """Forget the past."""

    def process(
        self,
        x: NDArray[np.float32],
        beta: NDArray[np.float32] | None = None,
        noisy_gain: NDArray[np.float32] | None = None,
        skip_silence: bool | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Take T hops all the way."""
        ...

    def finish(
        self, beta: NDArray[np.float32] | None = None, noisy_gain: NDArray[np.float32] | None = None
    ) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """End as the Python package does."""
        ...

    def save(self) -> dict[str, NDArray[np.generic]]:
        """Return a copy of all state, by name."""
        ...

    def load(self, saved: dict[str, NDArray[np.generic]]) -> None:
        """Continue from what `save` returned."""


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
        self._signal = SignalPath(config, options.block_frames, options.channels)
        # libDF runs its post-filter over all channels end to end, four values at a time, and leaves the
        # rest alone: the last bins of the last channel
        self._signal.post_filter_bins[:] = config.bins
        self._signal.post_filter_bins[-1] -= config.bins * options.channels % 4
        #: First frames that the network is not fed.
        self._unfed = config.conv_lookahead if options.parity == "python" else 0
        self._gated = not options.thresholds.never_trigger
        self._shares_mask = options.channel_mask != "none" and options.channels > 1
        self._sharpens_mask = options.post_filter_kind == "mask"
        self.reset()

    def reset(self) -> None:
        """Forget the past."""
        self._mode.reset()
        self._signal.reset()
        self.frames = 0

    # -- the signal's way --------------------------------------------------------------------------

    def process(
        self,
        x: NDArray[np.float32],
        beta: NDArray[np.float32] | None = None,
        noisy_gain: NDArray[np.float32] | None = None,
        skip_silence: bool | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Take T hops all the way.

        Parameters
        ----------
        x : ndarray[float32], shape (channels, T * hop)
            One to ``block_frames`` hops.
        beta : ndarray[float32], shape (channels,), optional
            Strength of the post-filter; none at all by default.
        noisy_gain : ndarray[float32], shape (channels,), optional
            Share of the noisy spectrum that stays; nothing by default.
        skip_silence : bool, optional
            Overrides the option, for the end of a stream.

        Returns
        -------
        y : ndarray[float32], shape (channels, T * hop)
            May be a view of an internal buffer, overwritten by the next call.
        lsnr : ndarray[float32], shape (T,), dB
        """
        if self._options.skip_silence if skip_silence is None else skip_silence:
            heard = heard_hops(x, self._config.hop_size)
            if not heard.all():
                return process_heard(lambda kept: self.process(kept, beta, noisy_gain, False), x, heard)
        return self._enhance(self._signal.analyse(x), beta, noisy_gain)

    def finish(
        self, beta: NDArray[np.float32] | None = None, noisy_gain: NDArray[np.float32] | None = None
    ) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """Feed zero spectra and zero *features* for the lookahead, as the Python package does at the end."""
        c, channels = self._config, self._options.channels
        for start in range(0, c.delay_frames, self._options.block_frames):
            T = min(self._options.block_frames, c.delay_frames - start)
            silence = Analysed(
                np.zeros((channels, T, c.bins), np.complex64),
                np.zeros((channels, 1, T, c.nb_erb), np.float32),
                np.zeros((channels, 2, T, c.nb_df), np.float32),
            )
            yield self._enhance(silence, beta, noisy_gain)

    def _enhance(
        self, frames: Analysed, beta: NDArray[np.float32] | None, noisy_gain: NDArray[np.float32] | None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Take frames from the network on; as `process`."""
        net, stages = self._step(frames.feat_erb, frames.feat_spec)
        gains = self._shared(net.m[:, 0]) if self._shares_mask else net.m[:, 0]
        if self._sharpens_mask and beta is not None:
            gains, beta = mask_post_filter(gains, beta[:, None, None]), None
        y = self._signal.synthesise(frames.spec, gains, net.coefs, stages, beta, noisy_gain)
        return y, net.lsnr[0, :, 0]

    def _step(
        self, feat_erb: NDArray[np.float32], feat_spec: NDArray[np.float32]
    ) -> tuple[NetOutput, NDArray[np.int8] | None]:
        """Run the network; in Python's way not on the frames that only look ahead of the first one.

        The stages are None where all are `Stage.FULL`.
        """
        T = feat_erb.shape[2]
        before = self.frames
        self.frames += T
        if before < self._unfed:
            return self._step_unfed(feat_erb, feat_spec, min(T, self._unfed - before))
        stages = None
        if self._gated:
            net, stages = self._mode.step_gated(feat_erb, feat_spec, self._options.thresholds)
        else:
            net = self._mode.step(feat_erb, feat_spec)
        check_results(net, self._config, self._options.channels, T)
        return net, stages

    def _step_unfed(
        self, feat_erb: NDArray[np.float32], feat_spec: NDArray[np.float32], unfed: int
    ) -> tuple[NetOutput, NDArray[np.int8] | None]:
        """Put silence, of which nothing is known, in the place of the first frames; run the rest."""
        before = no_output(self._config, self._options.channels, unfed)
        rest = feat_erb.shape[2] - unfed
        if not rest:
            return before, None
        self.frames -= rest
        net, stages = self._step(*(np.ascontiguousarray(f[:, :, unfed:]) for f in (feat_erb, feat_spec)))
        if stages is not None:
            stages = np.concatenate([np.full(unfed, Stage.FULL, np.int8), stages])
        return NetOutput.join([before, net]), stages

    def _shared(self, m: NDArray[np.float32]) -> NDArray[np.float32]:
        """Give all channels the largest or the mean of their masks [channels, T, bands]."""
        reduce = np.max if self._options.channel_mask == "max" else np.mean
        return np.broadcast_to(reduce(m, axis=0, keepdims=True), m.shape)

    # -- state -------------------------------------------------------------------------------------

    def save(self) -> dict[str, NDArray[np.generic]]:
        """Return a copy of all state, by name."""
        saved: dict[str, NDArray[np.generic]] = {"frames": np.array([self.frames])}
        saved |= {f"net/{name}": array.copy() for name, array in self._mode.state.items()}
        return saved | {f"signal/{name}": array.copy() for name, array in self._signal.state.items()}

    def load(self, saved: dict[str, NDArray[np.generic]]) -> None:
        """Continue from what `save` returned."""
        self.frames = int(saved["frames"][0])
        for name in self._mode.state:
            self._mode.state[name] = saved[f"net/{name}"].copy()  # type: ignore[assignment]
        for name, array in self._signal.state.items():
            array[...] = saved[f"signal/{name}"]


def no_output(config: ModelConfig, streams: int, frames: int) -> NetOutput:
    """Results for frames that the network is not fed: silence, and nothing known of it."""
    return NetOutput(
        np.full((streams, frames, 1), np.nan, np.float32),
        np.zeros((streams, 1, frames, config.nb_erb), np.float32),
        np.zeros((streams, frames, config.nb_df, 2 * config.df_order), np.float32),
    )
