"""Running the program of a package by numpy: what Core ML should compute, on any platform.

Everything is float32. Where a result is declared float16 it is rounded once, after the operation; sums and
products inside of one are float32. Inputs and states that are declared float16 are rounded as they are given.
This is how Apple's hardware is described; the errors of its tables for sigmoid and tanh are not imitated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dfstream.coreml.compression import expand, is_compressed
from dfstream.coreml.operands import Operands, Plan
from dfstream.coreml.operations import plan
from dfstream.coreml.rounding import to_half
from dfstream.errors import UnsupportedGraph, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from dfstream.coreml.package import Package
    from dfstream.coreml.program import Tensor

    Array = NDArray[np.float32]
    Step = tuple[Callable[..., Array], tuple[int, ...], int]

__all__ = ["Interpreter"]

_FLOATS = ("float32", "float16")


class Interpreter:
    """Runs one package, any number of streams in any number of threads: it keeps nothing between calls.

    States that a package has among its inputs and outputs are inputs and outputs here; those that Core ML
    keeps are handed in and come back.

    Parameters
    ----------
    package : Package

    Raises
    ------
    UnsupportedGraph
        Names the operation that is not supported.
    ArchiveError
        Operands contradict each other, or what they are declared to give.
    """

    def __init__(self, package: Package) -> None:
        self.package = package
        with np.errstate(all="ignore"):
            compiled = _Compiler(package)
        self._steps = tuple(compiled.steps)
        self._start = tuple(compiled.start)
        self._inputs = _ports(package.inputs, compiled.slots)
        self._states = _ports(package.states, compiled.slots)
        self._outputs = {name: compiled.slots[name] for name in package.outputs}

    def initial_states(self) -> dict[str, Array]:
        """Return the states that Core ML begins a stream with: zeros."""
        return {name: np.zeros(tensor.shape, np.float32) for name, (_, tensor) in self._states.items()}

    def run(
        self, feeds: Mapping[str, Array], states: Mapping[str, Array] | None = None
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """Run the program once.

        Parameters
        ----------
        feeds : mapping of str to ndarray[float32]
            All inputs, in their shapes. They are left as they are.
        states : mapping of str to ndarray[float32], optional
            The states that Core ML would keep; `initial_states` if left out.

        Returns
        -------
        outputs, states : dict of str to ndarray[float32]
            Results, and the states for the next call; contiguous, and of the caller alone.

        Raises
        ------
        UsageError
            Names or shapes are not those of the package.
        """
        values = list(self._start)
        _feed(values, self._inputs, feeds, "inputs")
        _feed(values, self._states, self.initial_states() if states is None else states, "states")
        with np.errstate(all="ignore"):  # what overflows becomes infinite, as on the hardware
            for compute, sources, target in self._steps:
                values[target] = compute(*[values[source] for source in sources])
        outputs = {name: _own(values[slot]) for name, slot in self._outputs.items()}
        return outputs, {name: _own(values[slot]) for name, (slot, _) in self._states.items()}


def _ports(tensors: Mapping[str, Tensor], slots: Mapping[str, int]) -> dict[str, tuple[int, Tensor]]:
    return {name: (slots[name], tensor) for name, tensor in tensors.items()}


def _feed(
    values: list[Array], ports: Mapping[str, tuple[int, Tensor]], given: Mapping[str, Array], what: str
) -> None:
    if given.keys() != ports.keys():
        raise UsageError(f"{what} {sorted(given)}, the package has {sorted(ports)}")
    for name, (slot, tensor) in ports.items():
        array = np.asarray(given[name], np.float32)
        if array.shape != tensor.shape:
            raise UsageError(f"{name}: shape {list(array.shape)}, the package has {list(tensor.shape)}")
        with np.errstate(all="ignore"):
            values[slot] = to_half(array) if tensor.dtype == "float16" else array


def _own(values: Array) -> Array:
    return np.array(values, np.float32, order="C")


class _Compiler:
    """Turns operations into steps over a list of arrays, one slot for each tensor."""

    def __init__(self, package: Package) -> None:
        program = package.program
        self._where = str(package.path)
        self._constants = dict(program.constants)
        self._states = program.states
        tensors = {**program.inputs, **program.states}
        self._shapes = {name: tensor.shape for name, tensor in tensors.items()}
        self._shapes |= {name: np.shape(constant.values) for name, constant in self._constants.items()}
        # tensors that hold nothing a float16 could not hold
        self._halves = {name for name, tensor in tensors.items() if tensor.dtype == "float16"}
        self.slots = {name: slot for slot, name in enumerate(tensors)}
        self.start: list[Array] = [np.zeros((), np.float32)] * len(self.slots)
        self.steps: list[Step] = []
        for operation in program.operations:
            given = Operands(operation, self._shapes, self._constants, self._where)
            if is_compressed(operation.kind):
                self._expand(given)
            elif operation.kind == "read_state":
                self._read_state(given, "input")
            elif operation.kind in ("write_state", "coreml_update_state"):
                self._write_state(given)
            else:
                planned = plan(given)
                self._emit(given, planned, [self._source(given, name) for name in planned.sources])
        for name in program.outputs:
            self._slot(name)

    def _expand(self, given: Operands) -> None:
        name, declared = given.result()
        self._constants[name] = expand(given)
        self._shapes[name] = declared.shape

    def _read_state(self, given: Operands, parameter: str) -> None:
        name = self._state(given, parameter)
        planned = Plan((name,), self._states[name].shape, _same, selects=True)
        self._emit(given, planned, [self.slots[name]])

    def _write_state(self, given: Operands) -> None:
        """Put a value into the slot of a state; what was read from it before stays as it is."""
        updates = given.operation.kind == "coreml_update_state"
        name = self._state(given, "state" if updates else "input")
        value, state = given.name("value" if updates else "data"), self._states[name]
        if given.shapes[value] != state.shape:
            raise given.damaged(f"{list(given.shapes[value])[:8]} into a state {list(state.shape)}")
        rounds = name in self._halves and value not in self._halves
        self.steps.append((to_half if rounds else _same, (self._source(given, value),), self.slots[name]))
        if updates:
            self._read_state(given, "state")

    def _state(self, given: Operands, parameter: str) -> str:
        name = given.name(parameter)
        if name not in self._states:
            raise given.damaged(f"{name!r} is no state")
        return name

    def _emit(self, given: Operands, planned: Plan, sources: list[int]) -> None:
        """Append a step that reads some slots, and round what it computes if it has to be."""
        name, declared = given.result()
        if declared.dtype not in _FLOATS:
            raise given.unsupported(f"computes {declared.dtype}, supported are float32 and float16")
        if declared.shape != planned.shape:
            raise given.damaged(f"declared as {list(declared.shape)}, computes {list(planned.shape)[:8]}")
        is_half = planned.selects and self._halves.issuperset(planned.sources)
        compute = planned.compute
        if declared.dtype == "float16" and not is_half:
            compute, is_half = _rounded(compute), True
        if is_half:
            self._halves.add(name)
        self._shapes[name] = declared.shape
        self.slots[name] = len(self.start)
        self.start.append(self.start[0])
        self.steps.append((compute, tuple(sources), self.slots[name]))

    def _source(self, given: Operands, name: str) -> int:
        if name in self._states:
            raise given.damaged(f"{name!r} is a state, which has to be read first")
        return self._slot(name)

    def _slot(self, name: str) -> int:
        """Slot of a tensor; constants get theirs when something reads them."""
        if name not in self.slots:
            constant = self._constants[name]
            if constant.dtype not in _FLOATS or isinstance(constant.values, str):
                raise UnsupportedGraph(f"{self._where}: computes with {name!r} of type {constant.dtype}")
            if constant.dtype == "float16":
                self._halves.add(name)
            self.slots[name] = len(self.start)
            self.start.append(constant.values.astype(np.float32))
        return self.slots[name]


def _same(values: Array) -> Array:
    return values


def _rounded(compute: Callable[..., Array]) -> Callable[..., Array]:
    if compute is _same:
        return to_half
    return lambda *sources: to_half(compute(*sources))
