"""Streams side by side in one batch, of which any may advance while the others stand still."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dfstream.dsp.lanes import LaneSet
from dfstream.engine import no_output
from dfstream.filtering import mask_post_filter
from dfstream.interface import batch_axis
from dfstream.modes.base import NetOutput, check_results
from dfstream.signalpath import SignalPath

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from dfstream.engine import EngineOptions
    from dfstream.modes.base import Mode

__all__ = ["BatchEngine", "BatchedNet"]


class BatchedNet:
    """A mode for many streams, of which some advance per call.

    The states of those that advanced last stay in the mode, where they came out of the graphs. Only when
    others are to advance are states copied: back to their rows in the store, and out of it.

    Parameters
    ----------
    mode : Mode
        Its batch is the number of slots. Every state must have the batch as an axis.
    """

    def __init__(self, mode: Mode) -> None:
        self._mode = mode
        self._store = {name: array.copy() for name, array in mode.state.items()}
        self._at_hand: LaneSet | None = None

    def step(
        self, slots: LaneSet, feat_erb: NDArray[np.float32], feat_spec: NDArray[np.float32]
    ) -> NetOutput:
        """Advance these slots by the given frames [n, ..., T, ...]; as `Mode.step`."""
        if slots is not self._at_hand:
            self._put_back()
            self._mode.state = {
                name: np.ascontiguousarray(array.take(slots.index, batch_axis(name)))
                for name, array in self._store.items()
            }
            self._at_hand = slots
        return self._mode.step(feat_erb, feat_spec)

    def save(self, slot: int) -> dict[str, NDArray[np.float32]]:
        """Return a copy of the states of one slot, each as a batch of one."""
        states, row = self._store, slot
        if self._at_hand is not None and slot in self._at_hand.index:
            states, row = self._mode.state, int(np.flatnonzero(self._at_hand.index == slot)[0])
        return {name: array.take([row], batch_axis(name)) for name, array in states.items()}

    def load(self, slot: int, saved: Mapping[str, NDArray[np.float32]] | None = None) -> None:
        """Continue one slot from what `save` returned, or from zeros."""
        self._put_back()
        for name, array in self._store.items():
            _by_stream(name, array)[slot] = 0 if saved is None else _by_stream(name, saved[name])[0]

    def _put_back(self) -> None:
        if self._at_hand is not None:
            for name, array in self._mode.state.items():
                _by_stream(name, self._store[name])[self._at_hand.index] = _by_stream(name, array)
            self._at_hand = None


def _by_stream(name: str, array: NDArray[np.float32]) -> NDArray[np.float32]:
    """View a state with its streams first."""
    return np.moveaxis(array, batch_axis(name), 0)


class BatchEngine:
    """Enhance blocks of hops of many mono streams, as `dfstream.engine.Engine` does those of one.

    Parameters
    ----------
    mode : Mode
        Drives the network; its batch is the number of slots.
    options : EngineOptions
        Of each stream; thresholds and silence are not looked at.

    Attributes
    ----------
    beta, noisy_gain : ndarray[float32], shape (slots,)
        Strength of the post-filter and share of the noisy spectrum that stays; may be changed.
    """

    def __init__(self, mode: Mode, options: EngineOptions) -> None:
        slots = mode.batch
        self._config = config = mode.model.config
        self._net = BatchedNet(mode)
        self._signal = SignalPath(config, options.block_frames, slots)
        self._frames = np.zeros(slots, np.int64)
        #: First frames of a stream that the network is not fed.
        self._unfed = config.conv_lookahead if options.parity == "python" else 0
        self._sharpens_mask = options.post_filter_kind == "mask"
        self.beta, self.noisy_gain = np.zeros(slots, np.float32), np.zeros(slots, np.float32)

    def process(
        self, x: NDArray[np.float32], slots: LaneSet
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Take T hops of some streams all the way.

        Parameters
        ----------
        x : ndarray[float32], shape (n, T * hop)
            One to ``block_frames`` hops.
        slots : LaneSet
            Slots of the n streams.

        Returns
        -------
        y : ndarray[float32], shape (n, T * hop)
            May be a view of an internal buffer, overwritten by the next call.
        lsnr : ndarray[float32], shape (n, T), dB
        """
        T = x.shape[1] // self._config.hop_size
        before = self._frames[slots.index]
        self._frames[slots.index] = before + T
        if not self._unfed or before.min() >= self._unfed:
            return self._enhance(x, slots, 0)
        # streams that are not yet fed the same frames cannot share a call
        y, lsnr = np.empty_like(x), np.empty((len(x), T), np.float32)
        unfed = np.clip(self._unfed - before, 0, T)
        for count in np.unique(unfed):
            rows = np.flatnonzero(unfed == count)
            some = LaneSet(slots.total, slots.index[rows])
            y[rows], lsnr[rows] = self._enhance(x[rows], some, int(count))
        return y, lsnr

    def _enhance(
        self, x: NDArray[np.float32], slots: LaneSet, unfed: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        spec, feat_erb, feat_spec = self._signal.analyse(x, slots)
        net = self._step(feat_erb, feat_spec, slots, unfed)
        gains = net.m[:, 0]
        beta, noisy_gain = _in_use(self.beta[slots.index]), _in_use(self.noisy_gain[slots.index])
        if self._sharpens_mask and beta is not None:
            gains, beta = mask_post_filter(gains, beta[:, None, None]), None
        y = self._signal.synthesise(spec, gains, net.coefs, None, beta, noisy_gain, slots)
        return y, net.lsnr[:, :, 0]

    def _step(
        self, feat_erb: NDArray[np.float32], feat_spec: NDArray[np.float32], slots: LaneSet, unfed: int
    ) -> NetOutput:
        """Run the network, but not on the first frames."""
        n, T = len(slots), feat_erb.shape[2]
        before = [no_output(self._config, n, unfed)] if unfed else []
        if unfed == T:
            return before[0]
        if unfed:
            feat_erb, feat_spec = (np.ascontiguousarray(f[:, :, unfed:]) for f in (feat_erb, feat_spec))
        net = self._net.step(slots, feat_erb, feat_spec)
        check_results(net, self._config, n, T - unfed)
        return NetOutput.join([*before, net]) if before else net

    # -- state -------------------------------------------------------------------------------------

    def save(self, slot: int) -> dict[str, NDArray[np.generic]]:
        """Return a copy of all state of one slot, as `dfstream.engine.Engine.save` of a stream by itself."""
        saved: dict[str, NDArray[np.generic]] = {"frames": self._frames[[slot]]}
        saved |= {f"net/{name}": array for name, array in self._net.save(slot).items()}
        return saved | {f"signal/{name}": array[[slot]] for name, array in self._signal.state.items()}

    def load(self, slot: int, saved: Mapping[str, NDArray[np.generic]]) -> None:
        """Continue one slot from what `save` returned."""
        net = {name[4:]: array for name, array in saved.items() if name.startswith("net/")}
        self._net.load(slot, net)  # type: ignore[arg-type]
        self._frames[slot] = int(saved["frames"][0])
        for name, array in self._signal.state.items():
            array[slot] = saved[f"signal/{name}"][0]

    def reset(self, slot: int) -> None:
        """Forget the past of one slot."""
        self._net.load(slot)
        self._frames[slot] = 0
        self._signal.reset(LaneSet(len(self._frames), [slot]))


def _in_use(strengths: NDArray[np.float32]) -> NDArray[np.float32] | None:
    return strengths if strengths.any() else None
