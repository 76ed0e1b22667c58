"""Writing operators down one after the other: what the parts of a graph of our own have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike

__all__ = ["Emitter", "sizes"]

#: End of a Slice that means "to the last one".
_TO_THE_END = 2**31 - 1


def sizes(*values: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return whole numbers as operators take them: shapes, axes, bounds."""
    return np.array(values, np.int64)


class Emitter:
    """Collects nodes; every operator it emits returns the tensor that it computes.

    Parameters
    ----------
    prefix : str
        Of the names of constants.

    Attributes
    ----------
    nodes : list of Node
    """

    def __init__(self, prefix: str = "") -> None:
        self.nodes: list[gs.Node] = []
        self._prefix = prefix
        self._constants: dict[tuple[Any, ...], gs.Constant] = {}
        self._taken: set[str] = set()

    def __call__(self, op: str, inputs: Sequence[Any], name: str, **attrs: Any) -> gs.Variable:
        """Emit an operator with one result.

        Parameters
        ----------
        op : str
        inputs : sequence of Tensor or array_like
            Whatever is no tensor becomes a constant: integers int64, all else float32.
        name : str
            Of node and tensor; a second one of the same name gets a number.
        """
        result = gs.Variable(self._unique(name), np.dtype(np.float32))
        self.nodes.append(gs.Node(op, result.name, attrs, [self._tensor(t) for t in inputs], [result]))
        return result

    def into(self, result: gs.Variable, op: str, inputs: Sequence[Any], **attrs: Any) -> None:
        """Emit an operator that computes a given tensor."""
        name = self._unique(result.name)
        self.nodes.append(gs.Node(op, name, attrs, [self._tensor(t) for t in inputs], [result]))

    def split(self, x: gs.Tensor, parts: Sequence[int], axis: int, name: str) -> list[gs.Variable]:
        """Cut an axis into parts of the given sizes."""
        results = [gs.Variable(self._unique(f"{name}/{i}"), np.dtype(np.float32)) for i in range(len(parts))]
        inputs = [x, self._tensor(sizes(*parts))]
        self.nodes.append(gs.Node("Split", self._unique(name), {"axis": axis}, inputs, results))
        return results

    def slice(self, x: gs.Tensor, start: int, end: int | None, axis: int, name: str) -> gs.Variable:
        """Take a range of one axis; ``end`` None is to the last one."""
        stop = _TO_THE_END if end is None else end
        return self("Slice", [x, sizes(start), sizes(stop), sizes(axis)], name)

    def reshape(self, x: gs.Tensor, shape: Sequence[int], name: str) -> gs.Variable:
        """Take another shape: 0 is the size that stood there, -1 what is left."""
        return self("Reshape", [x, sizes(*shape)], name)

    def length(self, x: gs.Tensor, axis: int, name: str) -> gs.Variable:
        """Return a size as a tensor [1]."""
        return self.slice(self("Shape", [x], f"{name}/shape"), axis, axis + 1, 0, name)

    def _tensor(self, value: gs.Tensor | ArrayLike) -> gs.Tensor:
        if isinstance(value, gs.Tensor):
            return value
        array = np.asarray(value)
        kind = np.int64 if np.issubdtype(array.dtype, np.integer) else np.float32
        array = np.array(array, kind, order="C")  # rank 0 stays rank 0
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = gs.Constant(f"{self._prefix}constant_{len(self._constants)}", array)
        return self._constants[key]

    def _unique(self, name: str) -> str:
        unique = next(n for n in (name, *(f"{name}_{i}" for i in range(2, 999))) if n not in self._taken)
        self._taken.add(unique)
        return unique
