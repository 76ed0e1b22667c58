"""ONNX Runtime on the CPU: the reference every other backend is compared with."""

from __future__ import annotations

import dataclasses
import functools
import operator
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from dfstream.backends._onnxruntime import import_onnxruntime
from dfstream.backends.base import Backend, Session, check_options
from dfstream.errors import BackendError, UnsupportedGraph, UsageError, first_line
from dfstream.interface import FEATURES, RESULTS, state_inputs, state_output

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from dfstream.backends.base import Arrays
    from dfstream.model import Model
    from dfstream.patches.recipe import Recipe

Precision = Literal["float32", "fp16", "int8"]


@dataclasses.dataclass(frozen=True)
class OrtCpu(Backend):
    """ONNX Runtime's CPU execution provider.

    Attributes
    ----------
    threads : int
        Threads one call may use. One is right for a stream: the graphs are small, and a second thread
        costs more in waiting than it saves.
    precision : "float32", "fp16" or "int8"
        Of the weights. ``fp16`` halves graphs that are written, and neither time nor memory: the runtime
        widens them when it loads them. ``int8`` is for single frames of the mode ``incremental``, rounds
        the GRUs to eight bits, and is quicker.
    """

    name = "ort-cpu"
    summary = "ONNX Runtime on the CPU"
    precisions = get_args(Precision)

    threads: int = 1
    precision: Precision = "float32"

    __hash__ = Backend.__hash__

    def __post_init__(self) -> None:
        check_options(self, self.threads, self.precision)

    @classmethod
    def preference(cls, model: Model) -> int:  # noqa: ARG003
        """For what quicker ones do not take: it takes everything."""
        return 1

    def choose(self, model: Model, recipe: Recipe, single_frame: bool) -> Recipe:
        """Take the lean graph for single frames of ``incremental``, that of hops for ``audio-graph``.

        Raises
        ------
        UsageError
            There are no graphs of this precision for that.
        """
        from dfstream.patches.quantise import eight_bit_recipe, half_recipe

        if self.precision == "int8":
            if recipe.name != "incremental" or not single_frame:
                raise UsageError(
                    f"ort-cpu: no graphs of precision int8 for blocks of frames or the mode {recipe.name}",
                    hint="use the mode incremental with block_frames=1, or precision float32",
                )
            return eight_bit_recipe()
        if single_frame and (one_frame := _one_frame(recipe)) is not None:
            try:
                model.graphs(one_frame)
                recipe = one_frame
            except UnsupportedGraph:
                pass
        return half_recipe(recipe) if self.precision == "fp16" else recipe

    def load(self, graph: bytes, name: str) -> _OrtSession:
        """Load one graph; see `Backend.load`."""
        ort = import_onnxruntime(self.name)
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # errors come as exceptions
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime's errors share no base class
            hint = "int8 needs a recent onnxruntime: pip install -U onnxruntime"
            raise BackendError(
                f"{self.name}: cannot load {name} ({first_line(error)})",
                hint=hint if self.precision == "int8" else None,
            ) from error
        return _OrtSession(session, name)


def _one_frame(recipe: Recipe) -> Recipe | None:
    """Return the graph that is quicker for single frames of a mode, if there is one."""
    if recipe.name == "incremental":
        from dfstream.patches.lean import lean_recipe

        return lean_recipe()
    if recipe.name == "audio-graph":
        from dfstream.patches.audio_graph import hop_recipe

        return hop_recipe()
    return None


class _OrtSession(Session):
    """One loaded graph; see `dfstream.backends.base.Session`."""

    def __init__(self, session: Any, name: str) -> None:
        self._session = session
        self._name = name
        self._inputs = {given.name: tuple(given.shape) for given in session.get_inputs()}
        self._outputs = {output.name: tuple(output.shape) for output in session.get_outputs()}
        self.states: Mapping[str, tuple[int | str, ...]] = {
            name: self._inputs[name] for name in state_inputs(self._inputs, self._outputs)
        }

    @functools.cached_property
    def sections(self) -> Mapping[str, str]:
        """As the graph's metadata has it."""
        from dfstream.patches.recipe import parse_metadata

        metadata = parse_metadata(self._session.get_modelmeta().custom_metadata_map, self._name)
        return metadata.sections if metadata else {}

    def run(self, feeds: Arrays) -> Arrays:
        """Run the graph once."""
        try:
            return dict(zip(self._outputs, self._session.run([*self._outputs], feeds), strict=True))
        except Exception as error:
            raise BackendError(f"ort-cpu: {self._name} failed ({first_line(error)})") from error

    def runner(self, batch: int) -> Callable[[Arrays], Arrays]:
        """Return bound buffers where every tensor has one size, else `run`."""
        sizes = {**self._inputs, **self._outputs}
        shapes = {name: tuple(batch if size == "B" else size for size in sizes[name]) for name in sizes}
        whole = all(isinstance(size, int) for shape in shapes.values() for size in shape)
        public = {*FEATURES, *RESULTS, *self.states, *map(state_output, self.states)}
        return _Bound(self, shapes).run if whole and public == {*shapes} else self.run

    def bind(self, inputs: Arrays, outputs: Arrays) -> Callable[[], None]:
        """Return a function that runs the graph from and to the given memory."""
        binding = self._session.io_binding()
        for bind, arrays in ((binding.bind_input, inputs), (binding.bind_output, outputs)):
            for name, array in arrays.items():
                bind(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)

        def call() -> None:
            try:
                self._session.run_with_iobinding(binding)
            except Exception as error:
                raise BackendError(f"ort-cpu: {self._name} failed ({first_line(error)})") from error

        return call


@dataclasses.dataclass(frozen=True)
class _Way:
    """One direction of a `_Bound`: the states it reads, the next ones it writes by name, and the call."""

    given: list[NDArray[np.float32]]
    after: dict[str, NDArray[np.float32]]
    call: Callable[[], None]


class _Bound:
    """Runs a graph on memory that is bound once: features, results, and two places for the states.

    Each call reads the states in one place and writes them to the other. That saves a tenth of `run`,
    which makes a tensor of every input and an array of every output.
    """

    def __init__(self, session: _OrtSession, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._session = session
        self._features = [(name, np.zeros(shapes[name], np.float32)) for name in FEATURES]
        self._results = [(name, np.zeros(shapes[name], np.float32)) for name in RESULTS]
        self._states = [*session.states]
        here, there = ([np.zeros(shapes[name], np.float32) for name in self._states] for _ in "12")
        self._ours = {id(array) for array in (*here, *there)}
        self._way, self._back = self._bind(here, there), self._bind(there, here)

    def _bind(self, given: list[NDArray[np.float32]], to: list[NDArray[np.float32]]) -> _Way:
        inputs = {**dict(self._features), **dict(zip(self._states, given, strict=True))}
        after = {state_output(name): array for name, array in zip(self._states, to, strict=True)}
        return _Way(given, after, self._session.bind(inputs, {**dict(self._results), **after}))

    def run(self, feeds: Arrays) -> Arrays:
        """Run the graph once; see `dfstream.backends.base.Session.runner`."""
        if any(feeds[name].shape != array.shape for name, array in self._features):
            return self._session.run(feeds)
        way = self._find([feeds[name] for name in self._states])
        if way is None:
            return self._session.run(feeds)
        for name, array in self._features:
            array[...] = feeds[name]
        way.call()
        return {**way.after, **{name: array.copy() for name, array in self._results}}

    def _find(self, states: list[NDArray[np.float32]]) -> _Way | None:
        """Return the way that reads these states, copying in those of somebody else; None for a mixture."""
        for way in (self._back, self._way):
            if all(map(operator.is_, states, way.given)):
                self._way, self._back = self._back, self._way
                return way
        for state, own in zip(states, self._way.given, strict=True):
            if id(state) in self._ours or state.shape != own.shape:
                return None
        for state, own in zip(states, self._way.given, strict=True):
            own[...] = state
        return self._way


BACKEND = OrtCpu
