"""One rule for each operation that a program may hold: how it is computed on float32 arrays."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from dfstream.coreml.convolution import conv, conv_transpose
from dfstream.coreml.operands import Plan

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from dfstream.coreml.operands import Operands

__all__ = ["plan"]

_CASTS = {"fp16": "float16", "fp32": "float32"}


def plan(given: Operands) -> Plan:
    """Plan one operation.

    Raises
    ------
    ArchiveError
        Its operands contradict each other.
    UnsupportedGraph
        Names the operation, or the form of it, that is not supported.
    """
    rule = _RULES.get(given.operation.kind)
    if rule is None:
        raise given.unsupported("this operation is not supported")
    return rule(given)


# -- element by element ------------------------------------------------------------------------------------


def _arithmetic(given: Operands, compute: Callable[..., NDArray[np.float32]]) -> Plan:
    try:
        shape = np.broadcast_shapes(given.shape("x"), given.shape("y"))
    except ValueError:
        raise given.damaged(f"of {list(given.shape('x'))} and {list(given.shape('y'))}") from None
    return Plan((given.name("x"), given.name("y")), shape, compute)


def _unary(given: Operands, compute: Callable[..., NDArray[np.float32]], *, selects: bool = False) -> Plan:
    return Plan((given.name("x"),), given.shape("x"), compute, selects)


def _relu(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.maximum(x, np.float32(0))


def _sigmoid(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """In float64: what the hardware's table makes of it is the hardware's."""
    return (1 / (1 + np.exp(-x.astype(np.float64)))).astype(np.float32)


def _tanh(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.tanh(x.astype(np.float64)).astype(np.float32)


def _same(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return x


def _cast(given: Operands) -> Plan:
    _, declared = given.result()
    if _CASTS.get(given.text("dtype", "")) != declared.dtype:
        raise given.unsupported(f"to {given.text('dtype', '')!r}, supported are fp16 and fp32")
    return _unary(given, _same, selects=True)


# -- moving values -----------------------------------------------------------------------------------------


def _concat(given: Operands) -> Plan:
    names = given.operation.arguments.get("values", ())
    shapes = [given.shapes[name] for name in names]
    if given.integer("interleave", 0):
        raise given.unsupported("interleaved")
    rank = len(shapes[0]) if shapes else 0
    axis = given.integer("axis")
    if not -rank <= axis < rank:
        raise given.damaged(f"axis {axis} of {rank}")
    axis %= rank
    around = {(*shape[:axis], *shape[axis + 1 :]) for shape in shapes}
    if len(around) != 1 or any(len(shape) != rank for shape in shapes):
        raise given.damaged(f"shapes {[list(shape) for shape in shapes[:4]]} along axis {axis}")
    shape = (*shapes[0][:axis], sum(shape[axis] for shape in shapes), *shapes[0][axis + 1 :])

    def compute(*parts: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.concatenate(parts, axis)

    return Plan(names, shape, compute, selects=True)


def _slice_by_index(given: Operands) -> Plan:
    sizes = given.shape("x")
    rank = len(sizes)
    begin, end = given.integers("begin", rank), given.integers("end", rank)
    stride = given.integers("stride", rank, default=1)
    from_first, to_last, squeeze = (
        given.integers(key, rank, default=0) for key in ("begin_mask", "end_mask", "squeeze_mask")
    )
    if any(squeeze):
        raise given.unsupported("squeezed")
    if 0 in stride:
        raise given.damaged("stride 0")
    index = tuple(
        slice(None if from_first[i] else begin[i], None if to_last[i] else end[i], stride[i])
        for i in range(rank)
    )
    shape = tuple(len(range(*s.indices(size))) for s, size in zip(index, sizes, strict=True))
    return Plan((given.name("x"),), shape, lambda x: x[index], selects=True)


def _reshape(given: Operands) -> Plan:
    before, wanted = given.shape("x"), given.array("shape")
    after = list(given.integers("shape", wanted.size))
    if len(after) == len(before):
        after = [old if new == 0 else new for old, new in zip(before, after, strict=True)]
    if after.count(-1) == 1:
        known = int(np.prod([size for size in after if size != -1]))
        after[after.index(-1)] = int(np.prod(before)) // known if known > 0 else 0
    shape = tuple(after)
    if min(shape, default=1) < 1 or np.prod(shape, dtype=object) != np.prod(before, dtype=object):
        raise given.damaged(f"{list(before)} to {list(after)[:8]}")
    return Plan((given.name("x"),), shape, lambda x: x.reshape(shape), selects=True)


def _transpose(given: Operands) -> Plan:
    shape = given.shape("x")
    rank = len(shape)
    axes = tuple(axis % rank if -rank <= axis < rank else rank for axis in given.integers("perm", rank))
    if sorted(axes) != list(range(rank)):
        raise given.damaged("perm is no permutation of the axes")
    return Plan(
        (given.name("x"),), tuple(shape[axis] for axis in axes), lambda x: x.transpose(axes), selects=True
    )


_RULES: dict[str, Callable[[Operands], Plan]] = {
    "add": partial(_arithmetic, compute=np.add),
    "sub": partial(_arithmetic, compute=np.subtract),
    "mul": partial(_arithmetic, compute=np.multiply),
    "real_div": partial(_arithmetic, compute=np.divide),
    "relu": partial(_unary, compute=_relu, selects=True),
    "sigmoid": partial(_unary, compute=_sigmoid),
    "tanh": partial(_unary, compute=_tanh),
    "identity": partial(_unary, compute=_same, selects=True),
    "cast": _cast,
    "concat": _concat,
    "slice_by_index": _slice_by_index,
    "reshape": _reshape,
    "transpose": _transpose,
    "conv": conv,
    "conv_transpose": conv_transpose,
}
