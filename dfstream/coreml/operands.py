"""What an operation of a program is given, and the plan that a rule makes of it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from dfstream.errors import ArchiveError, UnsupportedGraph

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from dfstream.coreml.program import Constant, Operation, Tensor

__all__ = ["Operands", "Plan"]


@dataclasses.dataclass(frozen=True)
class Plan:
    """How one operation is computed.

    Attributes
    ----------
    sources : tuple of str
        Names of the tensors it reads as it runs.
    shape : tuple of int
        Of what it computes.
    compute : callable
        From float32 arrays to a float32 array; changes none of them.
    selects : bool
        All it returns are values it was given, or zeros: nothing to round that was not rounded before.
    """

    sources: tuple[str, ...]
    shape: tuple[int, ...]
    compute: Callable[..., NDArray[np.float32]]
    selects: bool = False


@dataclasses.dataclass(frozen=True)
class Operands:
    """The operands of one operation, by parameter.

    Attributes
    ----------
    operation : Operation
    shapes : mapping of str to tuple of int
        Of all tensors so far.
    constants : mapping of str to Constant
    where : str
        The package, for errors.
    """

    operation: Operation
    shapes: Mapping[str, tuple[int, ...]]
    constants: Mapping[str, Constant]
    where: str

    def __contains__(self, parameter: str) -> bool:
        return parameter in self.operation.arguments

    def damaged(self, reason: str) -> ArchiveError:
        """Error of operands that contradict each other."""
        return ArchiveError(f"{self.where}: {self.operation.kind} {self.operation.name!r}: {reason}")

    def unsupported(self, reason: str) -> UnsupportedGraph:
        """Error of an operation that is sound and beyond us."""
        return UnsupportedGraph(f"{self.where}: {self.operation.kind} {self.operation.name!r}: {reason}")

    def name(self, parameter: str) -> str:
        """Return the name of an operand that is given as it runs."""
        names = self.operation.arguments.get(parameter, ())
        if len(names) != 1:
            raise self.damaged(f"{len(names)} operands {parameter}, expected one")
        return names[0]

    def result(self) -> tuple[str, Tensor]:
        """Return name and declared type of what it computes."""
        if len(self.operation.outputs) != 1:
            raise self.damaged(f"{len(self.operation.outputs)} results, expected one")
        return next(iter(self.operation.outputs.items()))

    def shape(self, parameter: str) -> tuple[int, ...]:
        """Return the shape of an operand."""
        return self.shapes[self.name(parameter)]

    def constant(self, parameter: str) -> Constant:
        """Return the value of an operand that has to be constant."""
        name = self.name(parameter)
        if name not in self.constants:
            raise self.unsupported(f"{parameter} is computed, supported are constants")
        return self.constants[name]

    def array(self, parameter: str) -> NDArray[Any]:
        """Return a constant that is no text."""
        values = self.constant(parameter).values
        if isinstance(values, str):
            raise self.damaged(f"{parameter} is text")
        return values

    def floats(self, parameter: str) -> NDArray[np.float32]:
        """Return a constant as float32."""
        return self.array(parameter).astype(np.float32)

    def integers(self, parameter: str, length: int, default: int | None = None) -> tuple[int, ...]:
        """Return a constant vector of some length, or so many times the default where it is left out."""
        if default is not None and parameter not in self:
            return (default,) * length
        values = self.array(parameter)
        if values.shape != (length,) or values.dtype.kind not in "iub":
            raise self.damaged(f"{parameter} is not {length} integers")
        return tuple(int(value) for value in values)

    def integer(self, parameter: str, default: int | None = None) -> int:
        """Return a constant number, or the default where it is left out."""
        if default is not None and parameter not in self:
            return default
        values = self.array(parameter)
        if values.size != 1 or values.dtype.kind not in "iub":
            raise self.damaged(f"{parameter} is not one integer")
        return int(values.reshape(()))

    def text(self, parameter: str, default: str) -> str:
        """Return a constant text, or the default where it is left out."""
        if parameter not in self:
            return default
        value = self.constant(parameter).values
        if not isinstance(value, str):
            raise self.damaged(f"{parameter} is not text")
        return value
