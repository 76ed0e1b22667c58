"""Compiled kernels: the network in numba, for one stream, many streams or blocks of frames."""

from __future__ import annotations

import dataclasses
import threading
from typing import TYPE_CHECKING, get_args

import numpy as np

from dfstream.backends.base import Backend
from dfstream.errors import BackendError, UnsupportedGraph, UsageError
from dfstream.interface import FEATURES, state_output
from dfstream.net.packing import Precision
from dfstream.net.program import SECTIONS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from dfstream.backends.base import Arrays, Session
    from dfstream.model import Model
    from dfstream.net.program import Placed, Program
    from dfstream.patches.recipe import Recipe

    _Array = NDArray[np.float32]

#: Frames of all streams together that pass through the network at a time: what caches hold.
_ROWS = 32

#: States of a session, one of each section for each stream.
_STATES = [f"state_{section}" for section in SECTIONS]
_STATES_AFTER = [state_output(name) for name in _STATES]


@dataclasses.dataclass(frozen=True)
class Numba(Backend):
    """The network as compiled kernels.

    Attributes
    ----------
    precision : "float32", "int16", "fp16" or "int8"
        How the weights of the GRUs are stored; sums are always float32.
    threads : int
        One: a hop is too short to share.
    """

    name = "numba"
    summary = "the network as compiled kernels on the CPU"

    precision: Precision = "float32"
    threads: int = 1

    __hash__ = Backend.__hash__

    def __post_init__(self) -> None:
        if self.precision not in get_args(Precision):
            raise UsageError(
                f"precision = {self.precision!r}, expected {' or '.join(map(repr, get_args(Precision)))}"
            )

    def open(self, model: Model, recipe: Recipe) -> dict[str, Session]:
        """Compile the compact graph in place of the recipe's; see `Backend.open`."""
        from dfstream import reading
        from dfstream.net.translate import translate
        from dfstream.patches.recipe import read_metadata

        if recipe.name != "incremental":
            raise UnsupportedGraph(
                f"the backend numba runs the mode incremental, not {recipe.name}",
                hint="use the backend ort-cpu",
            )
        own = _recipe()
        ((stem, data),) = model.graphs(own).items()
        graph = reading.parse_graph(data, stem)
        metadata = read_metadata(graph, stem)
        assert metadata is not None
        return {recipe.stems[0]: _Session(translate(graph, metadata.sections, self.precision))}

    def sections(self, model: Model, recipe: Recipe) -> Mapping[str, str]:
        """Return that there is one state for each part; see `Backend.sections`."""
        del model, recipe
        return dict(zip(_STATES, SECTIONS, strict=True))

    def load(self, graph: bytes, name: str) -> Session:
        """Not possible: kernels are made for the network, not for any graph."""
        raise NotImplementedError


def _recipe() -> Recipe:
    from dfstream.patches.compact import compact
    from dfstream.patches.fold import fold_constants
    from dfstream.patches.recipe import Recipe

    return Recipe("compact", ("combined_compact",), (fold_constants,), compact)


class _Session:
    """A compiled network; see `dfstream.backends.base.Session`. Each thread has memory of its own."""

    def __init__(self, program: Program) -> None:
        from dfstream.net.kernels import run

        self._program, self._run = program, run
        self._mine = threading.local()
        self.states: Mapping[str, tuple[int | str, ...]] = {
            name: ("B", program.state_sizes[section]) for name, section in zip(_STATES, SECTIONS, strict=True)
        }

    def run(self, feeds: Arrays) -> Arrays:
        """Advance by T frames of B streams; results do not depend on how they are grouped into calls."""
        features, before = self._checked(feeds)
        B, _, T, bands = features[0].shape
        bins, taps = features[1].shape[3], self._program.results[2].channels
        results = [np.empty((B, T, n), np.float32) for n in (1, bands, bins * taps)]
        after = [np.empty_like(state) for state in before]
        for i in range(0, B, _ROWS):
            some = slice(i, i + _ROWS)
            self._advance(
                *([array[some] for array in arrays] for arrays in (features, results, before, after))
            )
        lsnr, m, coefs = results
        outputs = {"lsnr": lsnr, "m": m[:, None], "coefs": coefs.reshape(B, T, bins, taps)}
        outputs.update(zip(_STATES_AFTER, after, strict=True))
        return outputs

    def _checked(self, feeds: Arrays) -> tuple[list[_Array], list[_Array]]:
        """Return features and states, which kernels read without looking at their sizes."""
        first = feeds.get(FEATURES[0])
        B, T = (first.shape[0], first.shape[2]) if first is not None and np.ndim(first) == 4 else (1, 1)
        shapes: dict[str, tuple[int, ...]] = {
            name: (B, view.channels, T, view.positions)
            for name, view in zip(FEATURES, self._program.inputs, strict=True)
        }
        shapes.update((name, (B, int(size))) for name, (_, size) in self.states.items())
        for name, shape in shapes.items():
            array = feeds.get(name)
            if not isinstance(array, np.ndarray) or array.dtype != np.float32 or array.shape != shape:
                raise BackendError(f"numba: {name} is no float32 array of the shape {shape}")
        return [feeds[name] for name in FEATURES], [feeds[name] for name in _STATES]

    def _advance(
        self, features: list[_Array], results: list[_Array], before: list[_Array], after: list[_Array]
    ) -> None:
        """Let up to `_ROWS` streams pass through this thread's memory."""
        B, _, T, _ = features[0].shape
        placed, program = self._placed(B, T), self._program
        own = [placed.states[section][:B] for section in SECTIONS]
        for mine, state in zip(own, before, strict=True):
            mine[...] = state
        network = placed.operations, placed.phases, placed.ports, placed.memory
        weights = program.weights, program.stored, program.storage
        for i in range(0, T, placed.frames):
            t = slice(i, i + placed.frames)
            self._run(*network, *weights, *(f[:, :, t] for f in features), *(r[:, t] for r in results))
        for mine, state in zip(own, after, strict=True):
            state[...] = mine

    def _placed(self, streams: int, frames: int) -> Placed:
        """Return this thread's memory for so many streams, made once for each rounded-up size."""
        streams = 1 << (streams - 1).bit_length()
        frames = 1 if frames == 1 else max(1, _ROWS // streams)
        mine: dict[str, Placed] = self._mine.__dict__
        size = f"{streams} x {frames}"
        if size not in mine:
            mine[size] = self._program.place(streams, frames)
        return mine[size]


BACKEND = Numba
