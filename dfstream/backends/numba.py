"""Compiled kernels: the network in numba, for one stream, many streams or blocks of frames."""

from __future__ import annotations

import dataclasses
import threading
from typing import TYPE_CHECKING, ClassVar, get_args

import numpy as np

from dfstream.backends._onestep import check_incremental
from dfstream.backends.base import Backend, Session, check_options
from dfstream.errors import BackendError, UnsupportedGraph
from dfstream.interface import FEATURES, RESULTS, state_output
from dfstream.net.packing import Precision
from dfstream.net.program import SECTIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from dfstream.backends.base import Arrays
    from dfstream.model import Model
    from dfstream.net.program import Placed, Program, Side
    from dfstream.patches.recipe import Recipe

    _Array = NDArray[np.float32]

#: Frames of all streams together that pass through the network at a time: what caches hold.
FRAMES_TOGETHER = 16

_FLOAT32 = np.dtype(np.float32)

#: States of a session, one for each section.
_STATES = tuple(f"state_{section}" for section in SECTIONS)
_OUTPUTS = (*RESULTS, *map(state_output, _STATES))


@dataclasses.dataclass(frozen=True)
class Numba(Backend):
    """The network as compiled kernels.

    Attributes
    ----------
    precision : "float32", "int16", "fp16" or "int8"
        How the weights of the GRUs are stored; sums are always float32.
    threads : int
        Not more than one is used: a hop is too short to share.
    """

    name = "numba"
    summary = "the network as compiled kernels on the CPU"
    precisions = get_args(Precision)
    modes: ClassVar[tuple[str, ...]] = ("incremental",)

    precision: Precision = "float32"
    threads: int = 1

    __hash__ = Backend.__hash__

    def __post_init__(self) -> None:
        check_options(self, self.threads, self.precision)

    @classmethod
    def preference(cls, model: Model) -> int:  # noqa: ARG003
        """Before all others: it is the quickest."""
        return 2

    def choose(self, model: Model, recipe: Recipe, single_frame: bool) -> Recipe:  # noqa: ARG002
        """Take the compact graph, whatever the number of frames.

        Raises
        ------
        UnsupportedGraph
            For any mode but ``incremental``: kernels are made for the whole network, a frame at a time.
        """
        from dfstream.patches.compact import compact_recipe

        check_incremental(self.name, recipe.name)
        return compact_recipe()

    def load(self, graph: bytes, name: str) -> Session:
        """Compile the compact graph; see `Backend.load`."""
        from dfstream import reading
        from dfstream.net.translate import translate
        from dfstream.patches.recipe import read_metadata

        proto = reading.parse_graph(graph, name)
        metadata = read_metadata(proto, name)
        if metadata is None or metadata.recipe != "compact":
            raise UnsupportedGraph(f"the backend numba runs the compact graph, {name} is another")
        return _NumbaSession(translate(proto, metadata.sections, self.precision))


class _NumbaSession(Session):
    """A compiled network; see `dfstream.backends.base.Session`. Each thread has memory of its own."""

    def __init__(self, program: Program) -> None:
        from dfstream.net.kernels import run

        self.program, self._kernel = program, run
        self._mine = threading.local()
        self.states: Mapping[str, tuple[int | str, ...]] = {
            name: ("B", program.state_sizes[section]) for name, section in zip(_STATES, SECTIONS, strict=True)
        }
        lsnr, m, coefs = (view.positions * view.channels for view in program.results)
        self._sizes = lsnr, m, coefs
        self._taps = program.results[2].channels

    @property
    def sections(self) -> Mapping[str, str]:
        """Each section has one state."""
        return dict(zip(_STATES, SECTIONS, strict=True))

    def run(self, feeds: Arrays) -> Arrays:
        """Advance by T frames of B streams; results do not depend on how they are grouped into calls."""
        self._check(feeds)
        features = [feeds[name] for name in FEATURES]
        before = [feeds[name] for name in _STATES]
        after = [np.empty_like(state) for state in before]
        B, _, T, _ = features[0].shape
        results = self.room(B, T)
        for i in range(0, B, FRAMES_TOGETHER):
            some = slice(i, i + FRAMES_TOGETHER)
            self._pass(*([array[some] for array in arrays] for arrays in (features, results, before, after)))
        return self.outputs(results, after)

    def shapes(self, B: int, T: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of features and states."""
        views = zip(FEATURES, self.program.inputs, strict=True)
        features = {name: (B, view.channels, T, view.positions) for name, view in views}
        return features | {name: (B, int(size)) for name, (_, size) in self.states.items()}

    def _check(self, feeds: Arrays) -> None:
        """Refuse what is no input: kernels do not look at sizes."""
        first = feeds.get(FEATURES[0])
        B, T = (first.shape[0], first.shape[2]) if first is not None and np.ndim(first) == 4 else (1, 1)
        for name, shape in self.shapes(B, T).items():
            array = feeds.get(name)
            if not isinstance(array, np.ndarray) or array.dtype != np.float32 or array.shape != shape:
                raise BackendError(f"numba: {name} is no float32 array of the shape {shape}")

    def _pass(
        self, features: list[_Array], results: list[_Array], before: list[_Array], after: list[_Array]
    ) -> None:
        """Let up to `FRAMES_TOGETHER` streams pass through this thread's memory."""
        B, _, T, _ = features[0].shape
        placed = self._placed(B, T)
        side = placed.sides[0]
        own = [state[:B] for state in side.states.values()]
        for mine, state in zip(own, before, strict=True):
            mine[...] = state
        for i in range(0, T, placed.frames):
            t = slice(i, i + placed.frames)
            self.advance(side, [f[:, :, t] for f in features], [r[:, t] for r in results])
        for mine, state in zip(own, after, strict=True):
            state[...] = mine

    def runner(self, batch: int) -> Callable[[Arrays], Arrays]:
        """Return a function that keeps few streams in memory of their own."""
        return _Resident(self, self.program.place(batch, 1)).run if batch <= FRAMES_TOGETHER else self.run

    def advance(self, side: Side, features: list[_Array], results: list[_Array]) -> None:
        """Advance the streams whose states lie on a side."""
        self._kernel(*side.arguments, *features, *results)

    def room(self, B: int, T: int) -> list[_Array]:
        """Return arrays for the results: lsnr (B, T, 1), m (B, T, bands), coefs (B, T, bins * 2 * taps)."""
        return [np.empty((B, T, size), np.float32) for size in self._sizes]

    def outputs(self, results: list[_Array], states: list[_Array]) -> Arrays:
        """Return results and states as the network's outputs."""
        lsnr, m, coefs = results
        B, T, size = coefs.shape
        arrays = lsnr, m[:, None], coefs.reshape(B, T, size // self._taps, self._taps), *states
        return dict(zip(_OUTPUTS, arrays, strict=True))

    def _placed(self, streams: int, frames: int) -> Placed:
        """Return this thread's memory for so many streams, made once for each rounded-up size."""
        streams = 1 << (streams - 1).bit_length()
        frames = 1 if frames == 1 else max(1, FRAMES_TOGETHER // streams)
        mine: dict[tuple[int, int], Placed]
        try:
            mine = self._mine.placed
        except AttributeError:
            mine = self._mine.placed = {}
        if (streams, frames) not in mine:
            mine[streams, frames] = self.program.place(streams, frames)
        return mine[streams, frames]


class _Resident:
    """Keeps the states of some streams where the kernels work on them, for calls of one frame.

    There are two places for them. A call copies the states of before from one to the other and advances
    these: what it was given stays as it is, and nothing is allocated but the results.
    """

    def __init__(self, session: _NumbaSession, placed: Placed) -> None:
        self._session, self._streams = session, placed.streams
        self._from, self._to = placed.sides
        shapes = list(session.shapes(placed.streams, 1).values())
        self._features, self._states = shapes[: len(FEATURES)], shapes[len(FEATURES) :]

    def run(self, feeds: Arrays) -> Arrays:
        """Advance by a frame; see `dfstream.backends.base.Session.runner`."""
        try:
            features, before = [feeds[name] for name in FEATURES], [feeds[name] for name in _STATES]
        except KeyError:
            return self._session.run(feeds)  # which says what is missing
        if not _fit(features, self._features) or not self._take(before):
            return self._session.run(feeds)
        side = self._to
        results = self._session.room(self._streams, 1)
        self._session.advance(side, features, results)
        self._from, self._to = self._to, self._from
        return self._session.outputs(results, list(side.states.values()))

    def _take(self, before: list[_Array]) -> bool:
        """Copy states to where they will be advanced, if they are such and that overwrites none of them."""
        here, there = self._from.states.values(), self._to.states.values()
        if all(given is state for given, state in zip(before, here, strict=True)):
            self._to.flat[...] = self._from.flat
            return True
        if not _fit(before, self._states) or any(np.may_share_memory(a, self._to.flat) for a in before):
            return False
        for given, state in zip(before, there, strict=True):
            state[...] = given
        return True


def _fit(arrays: list[_Array], shapes: list[tuple[int, ...]]) -> bool:
    return all(a.shape == shape and a.dtype == _FLOAT32 for a, shape in zip(arrays, shapes, strict=True))


BACKEND = Numba
