"""Runtimes that advance the canonical graph by a fixed number of frames, as sessions of ``incremental``.

The canonical graph (`dfstream.patches.canonical`) knows one stream, planar taps and one packed state of
all GRUs. Here it gets what the mode expects: any number of streams and frames, results in the layout of
the export, and a state for each part of the network, so that thresholds can let a decoder wait.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from dfstream.backends.base import Session
from dfstream.errors import BackendError, UnsupportedGraph
from dfstream.interface import FEATURES, MASK, RESULTS, state_output

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from dfstream.backends.base import Arrays
    from dfstream.patches.recipe import Part

__all__ = ["CanonicalSession", "CanonicalState", "check_incremental"]

#: States of a session of several frames: features that no whole call has covered yet, and how many.
_PENDING = {name: f"pending_{name}" for name in FEATURES}
_COUNT = "pending_frames"


@dataclasses.dataclass(frozen=True)
class CanonicalState:
    """One state of the canonical graph.

    Attributes
    ----------
    shape : tuple of int
        [1, channels, 1, width].
    section : str
        Part of the network it belongs to, where it belongs to one.
    parts : tuple of Part
        Which channels belong to which part, where it belongs to several; they cover all channels.
    """

    shape: tuple[int, ...]
    section: str = "enc"
    parts: tuple[Part, ...] = ()


def check_incremental(backend: str, recipe: str) -> None:
    """Refuse every mode but ``incremental``.

    Raises
    ------
    UnsupportedGraph
        Names the backend and the mode.
    """
    if recipe != "incremental":
        raise UnsupportedGraph(
            f"the backend {backend} runs the mode incremental, not {recipe}", hint="use the backend ort-cpu"
        )


class CanonicalSession(Session):
    """The canonical graph in some runtime; see `dfstream.backends.base.Session`.

    Where a call takes N > 1 frames, any other number of frames is computed all the same, exactly: frames
    that no whole call has covered are kept as features and computed again, together with the next ones.

    Parameters
    ----------
    advance : callable
        Takes the features of N frames and all states by name, returns the results and next states of the
        canonical graph by name, in arrays that it does not write to again.
    states : mapping of str to CanonicalState
    features : mapping of str to tuple of int
        Shapes of ``feat_erb`` and ``feat_spec``, [1, channels, N, width].
    """

    def __init__(
        self,
        advance: Callable[[Arrays], Arrays],
        states: Mapping[str, CanonicalState],
        features: Mapping[str, tuple[int, ...]],
    ) -> None:
        self._advance, self._canonical, self._features = advance, states, features
        self._frames = features[FEATURES[0]][2]
        self._pieces = {name: _pieces(name, state) for name, state in states.items()}
        own: dict[str, tuple[int | str, ...]] = {
            piece: ("B", sum(s.stop - s.start for s in where), *states[name].shape[2:])
            for name, pieces in self._pieces.items()
            for piece, where in pieces.items()
        }
        if self._frames > 1:
            for name, (_, channels, frames, width) in features.items():
                own[_PENDING[name]] = ("B", channels, frames - 1, width)
            own[_COUNT] = ("B", 1)
        self.states: Mapping[str, tuple[int | str, ...]] = own

    @property
    def sections(self) -> Mapping[str, str]:
        """As the canonical graph's metadata has it; refused where a call takes several frames."""
        if self._frames > 1:
            raise UnsupportedGraph(
                f"thresholds decide frame by frame, this package takes {self._frames} frames a call",
                hint="convert without --block",
            )
        return {
            piece: piece.removeprefix(f"{name}_") if state.parts else state.section
            for name, state in self._canonical.items()
            for piece in self._pieces[name]
        }

    def run(self, feeds: Arrays) -> Arrays:
        """Advance by T frames of B streams, one stream after another."""
        self._check(feeds)
        streams = [
            self._stream({name: array[b : b + 1] for name, array in feeds.items()})
            for b in range(len(feeds[FEATURES[0]]))
        ]
        if len(streams) == 1:
            return streams[0]
        return {name: np.concatenate([stream[name] for stream in streams]) for name in streams[0]}

    def _check(self, feeds: Arrays) -> None:
        """Refuse what is no input; a runtime might read past its end."""
        first = feeds.get(FEATURES[0])
        is_map = isinstance(first, np.ndarray) and first.ndim == 4
        B, _, T, _ = first.shape if first is not None and is_map else (1, 1, 1, 1)
        wanted: dict[str, tuple[int, ...]] = {
            name: (B, shape[1], T, shape[3]) for name, shape in self._features.items()
        }
        wanted |= {name: (B, *(int(size) for size in shape[1:])) for name, shape in self.states.items()}
        for name, shape in wanted.items():
            array = feeds.get(name)
            if not isinstance(array, np.ndarray) or array.dtype != np.float32 or array.shape != shape:
                raise BackendError(f"{name} is no float32 array of the shape {shape}")
        if not T:
            raise BackendError("no frames were given")

    def _stream(self, feeds: Arrays) -> Arrays:
        """Advance one stream."""
        features = {name: feeds[name] for name in FEATURES}
        done = self._pending(feeds) if self._frames > 1 else 0
        if done:
            features = {
                name: np.concatenate([feeds[_PENDING[name]][:, :, :done], array], axis=2)
                for name, array in features.items()
            }
        state = {name: self._packed(name, feeds).copy() for name in self._canonical}
        T, N = features[FEATURES[0]].shape[2], self._frames
        parts = []
        for start in range(0, T, N):
            frames = {name: _filled(array[:, :, start : start + N], N) for name, array in features.items()}
            out = self._advance({**frames, **state})
            parts.append(out)
            if start + N <= T:
                state = {name: out[state_output(name)] for name in state}
        results = self._results(parts, done, T)
        return results | self._after(state) | self._left_over(features, T - T % N)

    def _pending(self, feeds: Arrays) -> int:
        count = float(feeds[_COUNT][0, 0])
        if count not in range(self._frames):
            raise BackendError(f"{_COUNT} = {count:g}, expected a whole number below {self._frames}")
        return int(count)

    def _packed(self, name: str, feeds: Arrays) -> NDArray[np.float32]:
        """Put a state of the canonical graph together from ours."""
        pieces = self._pieces[name]
        if len(pieces) == 1:
            return feeds[next(iter(pieces))]
        packed = np.empty(self._canonical[name].shape, np.float32)
        for piece, where in pieces.items():
            start = 0
            for channels in where:
                end = start + channels.stop - channels.start
                packed[:, channels] = feeds[piece][:, start:end]
                start = end
        return packed

    def _after(self, state: Arrays) -> dict[str, NDArray[np.float32]]:
        """Take the canonical graph's states apart into ours."""
        after = {}
        for name, pieces in self._pieces.items():
            for piece, where in pieces.items():
                whole = len(pieces) == 1
                array = state[name] if whole else np.concatenate([state[name][:, c] for c in where], axis=1)
                after[state_output(piece)] = array
        return after

    def _left_over(self, features: Arrays, covered: int) -> dict[str, NDArray[np.float32]]:
        """Return the features that no whole call has covered, as states."""
        if self._frames == 1:
            return {}
        left = {  # copies: features may lie in a buffer that is used again
            state_output(_PENDING[name]): _filled(array[:, :, covered:], self._frames - 1).copy()
            for name, array in features.items()
        }
        count = features[FEATURES[0]].shape[2] - covered
        return left | {state_output(_COUNT): np.full((1, 1), count, np.float32)}

    def _results(self, parts: list[Arrays], start: int, end: int) -> dict[str, NDArray[np.float32]]:
        """Return the new frames of the results, in the layout of the export."""

        def joined(name: str) -> NDArray[np.float32]:
            arrays = [part[name] for part in parts]
            return (arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=2))[:, :, start:end]

        lsnr, m, coefs = joined("lsnr")[:, 0], joined(MASK), joined("coefs")
        planar = np.ascontiguousarray(coefs.transpose(0, 2, 3, 1))
        return dict(zip(RESULTS, (lsnr, m, planar), strict=True))


def _pieces(name: str, state: CanonicalState) -> dict[str, list[slice]]:
    """Return our states that a state of the canonical graph consists of, with its channels of each."""
    pieces: dict[str, list[slice]] = {}
    for part in state.parts:
        channels = slice(part.start, part.start + part.size)
        pieces.setdefault(f"{name}_{part.section}", []).append(channels)
    return pieces or {name: [slice(0, state.shape[1])]}


def _filled(array: NDArray[np.float32], frames: int) -> NDArray[np.float32]:
    """Return frames [1, C, T, W] with zeros behind them up to a number of frames, contiguous."""
    if array.shape[2] == frames:
        return np.ascontiguousarray(array)
    filled = np.zeros((*array.shape[:2], frames, array.shape[3]), np.float32)
    filled[:, :, : array.shape[2]] = array
    return filled
