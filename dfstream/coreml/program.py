"""The ML Program of a package: its operations in order, with all constants read and every size checked.

Field numbers are those of ``MIL.proto`` in apple/coremltools. Constants are one thing here, whichever of the
three ways they are written: as a ``const`` operation, in the attributes of an operation (iOS 16 writes
compressed weights so), or in the place of an operand (iOS 18).
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

from dfstream.coreml.values import read_immediate
from dfstream.coreml.weights import type_of
from dfstream.errors import ArchiveError, UnsupportedGraph

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

    from dfstream.coreml.protobuf import Message
    from dfstream.coreml.weights import DataType

__all__ = ["Constant", "Operation", "Program", "Tensor", "read_program"]

_VERSION = 1

# a program of ours has 190 operations and 450 constants; all results of a frame have 130 000 elements
_MAX_OPERATIONS = 10_000
_MAX_RANK = 8

#: Elements of all results and constants together; what a program needs in memory follows from these.
_MAX_ELEMENTS = 1 << 24


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Shape and type of a tensor.

    Attributes
    ----------
    shape : tuple of int
    dtype : str
        As numpy calls it, or ``int4``, ``uint1``, ``uint2``, ``uint3``, ``uint4``, ``uint6``, ``string``.
    """

    shape: tuple[int, ...]
    dtype: str


@dataclasses.dataclass(frozen=True, eq=False)
class Constant:
    """A constant of a program.

    Attributes
    ----------
    dtype : str
        As in `Tensor`.
    values : ndarray or str
        In the type numpy holds them in: 4-bit integers in 8 bits.
    """

    dtype: str
    values: NDArray[Any] | str


@dataclasses.dataclass(frozen=True)
class Operation:
    """One operation.

    Attributes
    ----------
    kind : str
        As MIL calls it: ``conv``, ``add``, ...
    name : str
    arguments : mapping of str to tuple of str
        Names of tensors, states and constants, by parameter.
    outputs : mapping of str to Tensor
    """

    kind: str
    name: str
    arguments: Mapping[str, tuple[str, ...]]
    outputs: Mapping[str, Tensor]


@dataclasses.dataclass(frozen=True)
class Program:
    """The one function of a program.

    Attributes
    ----------
    opset : str
    inputs, states, outputs : mapping of str to Tensor
    constants : mapping of str to Constant
        Those of ``const`` operations under their names; others under the operation's and the parameter's.
    operations : tuple of Operation
        All others, in order: each reads what stands in front of it.
    """

    opset: str
    inputs: Mapping[str, Tensor]
    states: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    constants: Mapping[str, Constant]
    operations: tuple[Operation, ...]


def read_program(
    message: Message, where: str, blob: Callable[[str, int, DataType, tuple[int, ...]], NDArray[Any]]
) -> Program:
    """Read ``MILSpec.Program``.

    Parameters
    ----------
    message : Message
    where : str
        The file, for errors.
    blob : callable
        Reads values from a weight file: its name, the offset, the type, the shape.

    Raises
    ------
    ArchiveError
        Not a program, or a damaged one.
    UnsupportedGraph
        A program with several functions, control flow, sizes that are not fixed, foreign types.
    """
    version, functions = message.integer(1), message.entries(2)
    if version != _VERSION:
        raise UnsupportedGraph(f"{where}: version {version} of ML Programs, supported is {_VERSION}")
    if len(functions) != 1:
        raise UnsupportedGraph(f"{where}: {len(functions)} functions, supported is one")
    return _Reader(where, blob).read(next(iter(functions.values())))


class _Reader:
    """Reads one function; knows what has been defined so far, and how much of everything there is."""

    def __init__(
        self, where: str, blob: Callable[[str, int, DataType, tuple[int, ...]], NDArray[Any]]
    ) -> None:
        self._where, self._blob = where, blob
        self._elements = 0
        self._defined: dict[str, Tensor] = {}
        self._constants: dict[str, Constant] = {}

    def read(self, function: Message) -> Program:
        opset = function.text(2)
        blocks = function.entries(3)
        if opset not in blocks:
            raise self._damaged(f"no block for the opset {opset!r}")
        inputs, states = self._inputs(function)
        operations = tuple(self._operations(blocks[opset]))
        names = blocks[opset].texts(2)
        for name in names:
            self._check_defined(name, "the results")
        outputs = {name: self._defined[name] for name in names}
        if not outputs or len(outputs) < len(names) or any(name in states for name in outputs):
            raise self._damaged("no results, or one twice, or a state among them")
        return Program(opset, inputs, states, outputs, self._constants, operations)

    def _inputs(self, function: Message) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        inputs: dict[str, Tensor] = {}
        states: dict[str, Tensor] = {}
        for entry in function.messages(1):
            name, kind = entry.text(1), entry.message(2)
            is_state = kind.which(1, 2, 3, 4, 5) == 5
            tensor, _ = self._tensor(kind.message(5).message(1) if is_state else kind, name)
            self._define(name, tensor)
            (states if is_state else inputs)[name] = tensor
        return inputs, states

    def _operations(self, block: Message) -> Iterator[Operation]:
        found = block.messages(3)
        if len(found) > _MAX_OPERATIONS:
            raise self._damaged(f"{len(found)} operations, limit {_MAX_OPERATIONS}")
        for message in found:
            operation = self._operation(message)
            if operation is not None:
                yield operation

    def _operation(self, message: Message) -> Operation | None:
        """Return an operation; a ``const`` is kept among the constants instead."""
        kind = message.text(1)
        attributes = message.entries(5)
        outputs = [(entry.text(1), entry.message(2)) for entry in message.messages(3)]
        name = outputs[0][0] if outputs else f"{kind}_{len(self._defined)}"
        if message.messages(4):
            raise UnsupportedGraph(f"{self._where}: {kind} {name!r}: control flow is not supported")
        attributes.pop("name", None)
        if kind == "const":
            if len(outputs) != 1 or list(attributes) != ["val"]:
                raise self._damaged(f"const {name!r} has not one value")
            declared, _ = self._tensor(outputs[0][1], name)
            if self._constant(name, attributes["val"]) != declared:
                raise self._damaged(f"const {name!r} is not of its own type and shape")
            return None
        arguments = {
            key: tuple(
                self._binding(binding, f"{name}.{key}.{index}")
                for index, binding in enumerate(argument.messages(1))
            )
            for key, argument in message.entries(2).items()
        }
        for key, value in attributes.items():
            if key in arguments:
                raise self._damaged(f"{kind} {name!r} has {key} twice")
            self._constant(f"{name}.{key}", value)
            arguments[key] = (f"{name}.{key}",)
        made = {output: self._tensor(declared, output)[0] for output, declared in outputs}
        for output, declared in made.items():
            self._define(output, declared)
        if len(made) < len(outputs):
            raise self._damaged(f"{kind} {name!r} has two results of one name")
        return Operation(kind, name, arguments, made)

    def _binding(self, binding: Message, name: str) -> str:
        if binding.which(1, 2) == 2:
            self._constant(name, binding.message(2))
            return name
        found = binding.text(1)
        self._check_defined(found, name)
        return found

    # -- values ----------------------------------------------------------------------------------------

    def _constant(self, name: str, value: Message) -> Tensor:
        """Read a value and keep it under a name."""
        tensor, kind = self._tensor(value.message(2), name)
        values: NDArray[Any] | str | None
        if value.which(3, 5) == 5:
            file = value.message(5)
            values = self._blob(file.text(1), file.integer(2), kind, tensor.shape)
        else:
            immediate = value.message(3)
            if immediate.which(1, 2, 3, 4) != 1:
                raise UnsupportedGraph(f"{self._where}: {name!r} is not a tensor")
            values = read_immediate(immediate.message(1), kind, tensor.shape)
        if values is None:
            raise self._damaged(f"{name!r} does not hold {list(tensor.shape)} of {kind.name}")
        self._define(name, tensor)
        self._constants[name] = Constant(kind.name, values)
        return tensor

    # -- types -----------------------------------------------------------------------------------------

    def _tensor(self, kind: Message, name: str) -> tuple[Tensor, DataType]:
        """Read ``ValueType``; only tensors of fixed shape will do."""
        if kind.which(1, 2, 3, 4, 5) != 1:
            raise UnsupportedGraph(f"{self._where}: {name!r} is not a tensor")
        tensor = kind.message(1)
        dtype, sizes = type_of(tensor.integer(1), self._where), []
        for dimension in tensor.messages(3):
            if dimension.which(1, 2) != 1:
                raise UnsupportedGraph(f"{self._where}: {name!r} has no fixed shape")
            sizes.append(dimension.message(1).integer(1))
        if (
            len(sizes) != tensor.integer(2)
            or len(sizes) > _MAX_RANK
            or any(size < 1 for size in sizes)
            or math.prod(sizes) > _MAX_ELEMENTS
        ):
            raise self._damaged(f"{name!r} has the absurd shape {sizes[:_MAX_RANK]}")
        return Tensor(tuple(sizes), dtype.name), dtype

    # -- names -----------------------------------------------------------------------------------------

    def _define(self, name: str, tensor: Tensor) -> None:
        if not name or name in self._defined:
            raise self._damaged(f"the name {name!r} is used twice" if name else "a tensor without a name")
        self._elements += math.prod(tensor.shape)
        if self._elements > _MAX_ELEMENTS:
            raise self._damaged(f"more than {_MAX_ELEMENTS} elements in all tensors together")
        self._defined[name] = tensor

    def _check_defined(self, name: str, by: str) -> None:
        if name not in self._defined:
            raise self._damaged(f"{name!r}, needed by {by}, is defined nowhere before")

    def _damaged(self, reason: str) -> ArchiveError:
        return ArchiveError(f"{self._where}: damaged, or no Core ML model ({reason})")
