"""Evaluate the integer arithmetic that exporters leave between constants.

A PyTorch export computes the amounts of each time `Pad` in nine nodes from constants, and stores some
weights as `Constant` nodes. After this patch both are plain constants, so that the other patches can
read them. Evaluated here in numpy, in a fixed list of operators and with a bound on sizes: no runtime
sees a graph before it has been looked at.
"""

from __future__ import annotations

import math
import operator
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from dfstream.errors import UnsupportedGraph

from .graph import constant_value

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import onnx_graphsurgeon as gs
    from numpy.typing import NDArray

    Arrays = list[NDArray[Any]]
    Evaluator = Callable[[dict[str, Any], Arrays], NDArray[Any]]

__all__ = ["fold_constants"]

#: More elements than any shape arithmetic needs; weights are never evaluated, only taken over.
_MAX_ELEMENTS = 1 << 16


def fold_constants(graph: gs.Graph) -> list[str]:
    """Turn ``Constant`` nodes and arithmetic on constants into constants."""
    graph.toposort()
    folded = 0
    for node in graph.nodes:
        value = _evaluate(node)
        if value is None:
            continue
        output = node.outputs[0]
        node.outputs.clear()
        output.to_constant(value)
        folded += 1
    graph.cleanup()
    return [f"{folded} nodes of constants"] if folded else []


def _evaluate(node: gs.Node) -> NDArray[Any] | None:
    if node.op == "Constant":
        return _stored(node)
    evaluator = _EVALUATORS.get(node.op)
    if evaluator is None:
        return None
    values = [constant_value(tensor) for tensor in node.inputs]
    arrays = [v for v in values if v is not None]
    if len(arrays) < len(values) or not arrays or sum(a.size for a in arrays) > _MAX_ELEMENTS:
        return None
    try:
        with np.errstate(all="ignore"):  # wraps and casts as a runtime would
            return np.asarray(evaluator(node.attrs, arrays))
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        raise UnsupportedGraph(f"{node.op} {node.name!r}: cannot be evaluated ({error})") from error


def _stored(node: gs.Node) -> NDArray[Any] | None:
    if "value" in node.attrs:
        values: NDArray[Any] = node.attrs["value"].values
        return values
    for key, dtype in (("value_int", np.int64), ("value_ints", np.int64), ("value_float", np.float32),
                       ("value_floats", np.float32)):  # fmt: skip
        if key in node.attrs:
            return np.array(node.attrs[key], dtype=dtype)
    return None


def _bounded(shape: Sequence[int]) -> Sequence[int]:
    """Return a shape if shape arithmetic may have it: the operators that grow ask before they do."""
    if min(shape, default=0) < 0 or math.prod(shape) > _MAX_ELEMENTS:
        raise ValueError(f"the shape {list(shape)} is absurd for shape arithmetic")
    return shape


def _arithmetic(function: Callable[[Any, Any], NDArray[Any]]) -> Evaluator:
    def evaluate(attrs: dict[str, Any], arrays: Arrays) -> NDArray[Any]:  # noqa: ARG001
        a, b = arrays
        _bounded(np.broadcast_shapes(a.shape, b.shape))
        return function(a, b)

    return evaluate


def _gather(attrs: dict[str, Any], arrays: Arrays) -> NDArray[Any]:
    data, indices = arrays
    axis = attrs.get("axis", 0)
    _bounded([*np.delete(data.shape, axis), *indices.shape])
    return np.take(data, indices, axis=axis)


def _constant_of_shape(attrs: dict[str, Any], arrays: Arrays) -> NDArray[Any]:
    shape = _bounded([int(n) for n in arrays[0]])
    fill = attrs["value"].values if "value" in attrs else np.zeros(1, np.float32)
    return np.full(shape, fill.reshape(-1)[0], dtype=fill.dtype)


def _cast(attrs: dict[str, Any], arrays: Arrays) -> NDArray[Any]:
    to = attrs["to"]
    return arrays[0].astype(onnx.helper.tensor_dtype_to_np_dtype(to) if isinstance(to, int) else to)


def _slice(attrs: dict[str, Any], arrays: Arrays) -> NDArray[Any]:  # noqa: ARG001
    data, starts, ends, *rest = arrays
    axes = rest[0] if rest else np.arange(len(starts))
    steps = rest[1] if len(rest) > 1 else np.ones(len(starts), np.int64)
    index = [slice(None)] * data.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        # bounds beyond either end mean the same to ONNX and to Python
        index[int(axis)] = slice(int(start), int(end), int(step))
    return data[tuple(index)]


def _reshape(attrs: dict[str, Any], arrays: Arrays) -> NDArray[Any]:
    data, shape = arrays
    keep = not attrs.get("allowzero", 0)
    return data.reshape([data.shape[i] if keep and n == 0 else int(n) for i, n in enumerate(shape)])


def _axes(attrs: dict[str, Any], arrays: Arrays) -> tuple[int, ...]:
    """Axes of (Un)squeeze: an attribute up to opset 12, an input from 13 on."""
    axes = attrs["axes"] if "axes" in attrs else arrays[1]
    return tuple(int(axis) for axis in np.atleast_1d(axes))


_EVALUATORS: dict[str, Evaluator] = {
    "Add": _arithmetic(operator.add),
    "Cast": _cast,
    "Concat": lambda attrs, a: np.concatenate(a, axis=attrs["axis"]),
    "ConstantOfShape": _constant_of_shape,
    "Gather": _gather,
    "Identity": lambda _, a: a[0],
    "Mul": _arithmetic(operator.mul),
    "Reshape": _reshape,
    "Slice": _slice,
    "Squeeze": lambda attrs, a: np.squeeze(a[0], axis=_axes(attrs, a)),
    "Sub": _arithmetic(operator.sub),
    "Transpose": lambda attrs, a: np.transpose(a[0], attrs.get("perm")),
    "Unsqueeze": lambda attrs, a: np.expand_dims(a[0], _axes(attrs, a)),
}
