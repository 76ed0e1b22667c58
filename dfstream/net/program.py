"""From the compact graph to a program: operations, where their operands lie, and in which order they run."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from dfstream.errors import UnsupportedGraph
from dfstream.net.layout import OPERATION, PHASE, Kind
from dfstream.net.packing import aligned

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

__all__ = ["SECTIONS", "Buffer", "Operation", "Placed", "Program", "Side", "View", "in_phases"]

#: Values that a product may touch, unchanged, behind its last result.
_SLACK = 16

#: Values between two buffers are filled up to whole cache lines.
_LINE = 16

#: Parts of the network, in the order their states lie in the memory.
SECTIONS = ("enc", "erb", "df")


@dataclasses.dataclass(eq=False)
class Buffer:
    """Memory of one map of each frame, or of the state of each stream.

    Attributes
    ----------
    size : int
        Values of a frame, or of a stream.
    before, after : int
        Zeros beside the map, for convolutions that reach over its edges.
    section : str, optional
        The part of the network, if it is a state of it: one for each stream, not for each frame.
    """

    size: int
    before: int = 0
    after: int = 0
    section: str | None = None


@dataclasses.dataclass(frozen=True)
class View:
    """A map in a buffer: ``positions`` x ``channels``, positions ``step`` apart, from ``offset`` on."""

    buffer: Buffer
    offset: int
    positions: int
    channels: int
    step: int

    @property
    def contiguous(self) -> bool:
        """Whether nothing lies between its values."""
        return self.step == self.channels or self.positions == 1

    @property
    def whole(self) -> bool:
        """Whether it is all of its buffer."""
        return self.contiguous and self.positions * self.channels == self.buffer.size


@dataclasses.dataclass(frozen=True, eq=False)
class Operation:
    """One step of the program; fields as in `dfstream.net.layout.OPERATION`.

    Attributes
    ----------
    kind : Kind
    x, y : View
        Read and written.
    z : View, optional
        Second operand; for a GRU its state, read and written.
    numbers : mapping of str to int
        Further fields.
    for_all : bool
        Works on vectors of all frames at once, not frame by frame.
    scratch : (int, int)
        Values needed on the way, per frame and per stream.
    """

    kind: Kind
    x: View
    y: View
    z: View | None = None
    numbers: Mapping[str, int] = dataclasses.field(default_factory=dict)
    for_all: bool = False
    scratch: tuple[int, int] = (0, 0)

    @property
    def reads(self) -> list[Buffer]:
        """Buffers it needs."""
        return [self.x.buffer] + ([self.z.buffer] if self.z else [])


def in_phases(operations: Sequence[Operation]) -> list[list[Operation]]:
    """Order operations in few phases, each frame by frame or for all frames at once.

    What reads a state and what updates it from frame to frame must run in one phase: an operation that
    reads a state waits for all operations on all frames that the state's update needs.

    Raises
    ------
    UnsupportedGraph
        An operation on all frames needs a state and the state's update needs the operation.
    """
    waits = _dependencies(operations)
    left, done, phases = list(operations), set[int](), list[list[Operation]]()
    for_all, idle = False, 0
    while left:
        phase: list[Operation] = []
        while ready := [op for op in left if op.for_all == for_all and waits[id(op)] <= done]:
            phase += ready
            done |= {id(op) for op in ready}
            left = [op for op in left if id(op) not in done]
        if phase:
            phases.append(phase)
        for_all, idle = not for_all, 0 if phase else idle + 1
        if idle == 2:
            raise UnsupportedGraph(
                "compiled kernels: a layer of the state's own update cannot run for all frames at once",
                hint="use the backend ort-cpu",
            )
    return phases


def _dependencies(operations: Sequence[Operation]) -> dict[int, set[int]]:
    """Which operations must have run before each one, as sets of ids."""
    writers: dict[int, list[Operation]] = {}
    for op in operations:
        if not op.y.buffer.section:
            writers.setdefault(id(op.y.buffer), []).append(op)
    waits = {
        id(op): {id(w) for buffer in op.reads for w in writers.get(id(buffer), ()) if w is not op}
        for op in operations
    }
    states = [
        (id(update), {id(op) for op in operations if update.y.buffer in op.reads and op is not update})
        for update in operations
        if update.y.buffer.section
    ]
    for update, readers in states:
        waits[update] |= readers
    for_all = {id(op) for op in operations if op.for_all}
    grown = True
    while grown:  # what the readers of one state wait for, the update of another may need
        grown = False
        for update, readers in states:
            needed = _ancestors(update, waits) & for_all
            grown |= any(not needed <= waits[reader] for reader in readers)
            for reader in readers:
                waits[reader] |= needed
    return waits


def _ancestors(start: int, waits: Mapping[int, set[int]]) -> set[int]:
    found: set[int] = set()
    stack = [start]
    while stack:
        new = waits[stack.pop()] - found
        found |= new
        stack.extend(new)
    return found


@dataclasses.dataclass(frozen=True)
class Program:
    """The network of one model, ready to be placed in memory for any number of streams and frames.

    Attributes
    ----------
    phases : list of list of Operation
    inputs : (View, View)
        ``feat_erb`` and ``feat_spec``.
    results : (View, View, View)
        ``lsnr``, ``m``, ``coefs``.
    states : tuple of Buffer
        What is carried from frame to frame.
    weights : ndarray[float32]
        Of the small layers, biases and scales.
    stored : ndarray[uint8]
        Of the GRUs.
    storage : int
        How these are stored.
    """

    phases: list[list[Operation]]
    inputs: tuple[View, View]
    results: tuple[View, View, View]
    states: tuple[Buffer, ...]
    weights: NDArray[np.float32]
    stored: NDArray[np.uint8]
    storage: int

    @property
    def state_sizes(self) -> dict[str, int]:
        """Values that a stream carries in each section."""
        return {
            section: sum(buffer.size for buffer in self.states if buffer.section == section)
            for section in SECTIONS
        }

    def place(self, streams: int, frames: int) -> Placed:
        """Lay all buffers out for up to so many streams and frames a call."""
        return Placed(self, streams, frames)


@dataclasses.dataclass(frozen=True)
class Side:
    """One of two places for the states, and how to run the network on it.

    Attributes
    ----------
    arguments : tuple
        What `dfstream.net.kernels.run` takes in front of features and results.
    flat : ndarray[float32]
        All states, live.
    states : dict of str to ndarray[float32], shape (streams, size)
        The same by section, in the order of `SECTIONS`.
    """

    arguments: tuple[Any, ...]
    flat: NDArray[np.float32]
    states: dict[str, NDArray[np.float32]]


class Placed:
    """A program with its own memory, for one thread at a time.

    Attributes
    ----------
    streams, frames : int
        Most of a call.
    sides : tuple of Side
        Two, so that the states of before can be kept.
    """

    def __init__(self, program: Program, streams: int, frames: int) -> None:
        self.streams, self.frames, self._rows = streams, frames, streams * frames
        self._at: dict[int, int] = {}
        self._frame: dict[int, int] = {}
        self._end = 0
        for section in SECTIONS:
            self._place_section([buffer for buffer in program.states if buffer.section == section])
        states_end = self._end
        self._end *= 2
        local = _passed_on(program)
        for buffer in _maps(program):
            self._place(buffer, shared=id(buffer) in local)
        operations, phases, ports = self._operations(program), _phases(program), self._ports(program)
        memory = aligned(self._end + _SLACK, np.float32)
        weights = program.weights, program.stored, program.storage

        def side(start: int) -> Side:
            moved = _moved(operations, start).view(np.int64)
            flat = memory[start : start + states_end]
            states = {
                section: flat[at : at + streams * size].reshape(streams, size)
                for section, at, size in self._sections(program)
            }
            return Side((moved, phases.view(np.int64), ports, memory, *weights), flat, states)

        self.sides = side(0), side(states_end)

    def _operations(self, program: Program) -> NDArray[Any]:
        sequence = [op for phase in program.phases for op in phase]
        operations = np.zeros(len(sequence), OPERATION)
        for index, op in enumerate(sequence):
            self._write(operations[index], op)
        return operations

    def _ports(self, program: Program) -> NDArray[np.intp]:
        views = (*program.inputs, *program.results)
        return np.array([(self._start(view), self._frame[id(view.buffer)]) for view in views], np.intp)

    def _sections(self, program: Program) -> list[tuple[str, int, int]]:
        """Where the states of each section begin, and their size."""
        sizes = list(program.state_sizes.values())
        starts = np.cumsum([0, *(_filled(self.streams * size) for size in sizes[:-1])])
        return list(zip(SECTIONS, starts.tolist(), sizes, strict=True))

    def _place_section(self, states: list[Buffer]) -> None:
        """Put the states of a section side by side, stream after stream."""
        size, at = sum(buffer.size for buffer in states), self._end
        for buffer in states:
            self._at[id(buffer)], self._frame[id(buffer)] = at, size
            at += buffer.size
        self._end += _filled(self.streams * size)

    def _place(self, buffer: Buffer, *, shared: bool) -> None:
        """Give a buffer its place; ``shared`` ones are used up before the next frame comes."""
        frame = _filled(_filled(buffer.before) + buffer.size + buffer.after)
        self._at[id(buffer)] = self._end + _filled(buffer.before)
        self._frame[id(buffer)] = 0 if shared else frame
        self._end += frame if shared else frame * self._rows

    def _start(self, view: View) -> int:
        return self._at[id(view.buffer)] + view.offset

    def _write(self, row: Any, op: Operation) -> None:
        row["kind"] = op.kind
        for name, view in (("x", op.x), ("y", op.y), ("z", op.z)):
            if view is not None:
                row[name], row[f"{name}_frame"] = self._start(view), self._frame[id(view.buffer)]
                row[f"{name}_step"], row[f"{name}_of_stream"] = view.step, view.buffer.section is not None
        row["positions"], row["outputs"], row["inputs"] = op.y.positions, op.y.channels, op.x.channels
        row["taps"] = row["stride"] = row["groups"] = 1
        for name, value in op.numbers.items():
            row[name] = value
        per_frame, per_stream = op.scratch
        if per_frame:
            row["scratch"] = self._end
            self._end += _filled(per_frame * self._rows + per_stream * self.streams)


def _filled(size: int) -> int:
    return -(-size // _LINE) * _LINE


def _phases(program: Program) -> NDArray[Any]:
    lengths = [len(phase) for phase in program.phases]
    phases = np.zeros(len(lengths), PHASE)
    phases["last"] = np.cumsum(lengths)
    phases["first"] = phases["last"] - lengths
    phases["frame_by_frame"] = [not phase[0].for_all for phase in program.phases]
    return phases


def _moved(operations: NDArray[Any], distance: int) -> NDArray[Any]:
    """Return operations whose states lie that much further on."""
    moved = operations.copy()
    for operand in "xyz":
        moved[operand] += distance * operations[f"{operand}_of_stream"]
    return moved


def _maps(program: Program) -> Iterable[Buffer]:
    used = [view.buffer for phase in program.phases for op in phase for view in (op.x, op.y, op.z) if view]
    used += [view.buffer for view in (*program.inputs, *program.results)]
    return {id(buffer): buffer for buffer in used if buffer.section is None}.values()


def _passed_on(program: Program) -> set[int]:
    """Ids of the maps that only one frame-by-frame phase touches: one frame's worth is enough."""
    touched: dict[int, set[int]] = {}
    for index, phase in enumerate(program.phases):
        for op in phase:
            for buffer in (*op.reads, op.y.buffer):
                touched.setdefault(id(buffer), set()).add(-1 if op.for_all else index)
    for view in (*program.inputs, *program.results):
        touched[id(view.buffer)] = {-1}
    return {key for key, phases in touched.items() if len(phases) == 1 and -1 not in phases}
