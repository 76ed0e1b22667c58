"""Compressed weights: scaled integers and palettes, as iOS 16 and iOS 18 write them.

A program holds them as ``constexpr`` operations on constants. They are expanded once; the result is rounded
to the type it is declared with, sums and products before that are float32.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from dfstream.coreml.program import Constant
from dfstream.coreml.weights import DataType, unpack

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dfstream.coreml.operands import Operands

__all__ = ["expand", "is_compressed"]

_BITS = {"uint1": 1, "uint2": 2, "uint3": 3, "uint4": 4, "uint6": 6, "uint8": 8}


def is_compressed(kind: str) -> bool:
    """Whether an operation expands a constant."""
    return kind.startswith("constexpr_")


def expand(given: Operands) -> Constant:
    """Expand the weights of one ``constexpr`` operation.

    Raises
    ------
    ArchiveError
        Its operands contradict each other.
    UnsupportedGraph
        Another compression.
    """
    rules = {
        "constexpr_affine_dequantize": _affine,
        "constexpr_blockwise_shift_scale": _blockwise,
        "constexpr_lut_to_dense": _palette,
    }
    if given.operation.kind not in rules:
        raise given.unsupported("this compression is not supported")
    _, declared = given.result()
    if declared.dtype not in ("float32", "float16"):
        raise given.unsupported(f"weights of {declared.dtype}, supported are float32 and float16")
    values = rules[given.operation.kind](given, declared.shape)
    if values.shape != declared.shape:
        raise given.damaged(f"{list(values.shape)} of {list(declared.shape)} values")
    return Constant(declared.dtype, values.astype(declared.dtype))


def _affine(given: Operands, _shape: tuple[int, ...]) -> NDArray[Any]:
    """``scale * (data - zero_point)``, both for all values or for each index of an axis."""
    data = given.floats("quantized_data")
    axis = given.integer("axis")
    if not -data.ndim <= axis < data.ndim:
        raise given.damaged(f"axis {axis} of {data.ndim}")
    along = [1] * data.ndim
    along[axis] = -1

    def fitted(parameter: str) -> NDArray[np.float32]:
        values = given.floats(parameter)
        if values.size not in (1, data.shape[axis]):
            raise given.damaged(f"{values.size} {parameter} for {data.shape[axis]} rows")
        return values.reshape(along)

    offset = fitted("zero_point") if "zero_point" in given else np.float32(0)
    return (data - offset) * fitted("scale")


def _blockwise(given: Operands, _shape: tuple[int, ...]) -> NDArray[Any]:
    """``scale * (data - offset)``, both for each block of values; its size follows from the shapes."""
    data = given.floats("data")
    offset = _spread(given, given.floats("offset"), data.shape) if "offset" in given else np.float32(0)
    scale = _spread(given, given.floats("scale"), data.shape)
    return np.asarray((data - offset) * scale)


def _spread(given: Operands, values: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """Repeat values along every axis so that they have a shape."""
    if values.ndim != len(shape) or any(n % m for n, m in zip(shape, values.shape, strict=True)):
        raise given.damaged(f"blocks {list(values.shape)} of {list(shape)}")
    for axis, size in enumerate(shape):
        values = np.repeat(values, size // values.shape[axis], axis)
    return values


def _palette(given: Operands, shape: tuple[int, ...]) -> NDArray[Any]:
    """Values of a table by their indices: iOS 16 packs these into bytes and has one table for all."""
    indices, table = given.array("indices"), given.array("lut")
    if "shape" in given:
        wanted = given.integers("shape", len(shape))
        bits = table.size.bit_length() - 1
        if wanted != shape or table.shape != (1 << bits,) or not 1 <= bits <= 8 or indices.dtype != np.uint8:
            raise given.damaged(f"a table {list(table.shape)} for weights {list(wanted)[:8]}")
        unpacked = unpack(indices.tobytes(), DataType("", bits, np.dtype(np.uint8)), math.prod(shape))
        if unpacked is None:
            raise given.damaged(f"{indices.size} bytes hold no {math.prod(shape)} indices of {bits} bits")
        return np.asarray(table[unpacked].reshape(shape))
    size = 1 << _BITS.get(given.constant("indices").dtype, 0)
    if table.ndim != indices.ndim + 2 or size < 2 or table.shape[-2] != size:
        raise given.damaged(f"a table {list(table.shape)} for {list(indices.shape)} indices")
    if table.shape[-1] != 1:
        raise given.unsupported("tables of vectors")
    blocks = table.shape[:-2]
    starts = np.arange(math.prod(blocks)).reshape(blocks) * table.shape[-2]
    starts = _spread(given, starts, indices.shape)
    return np.asarray(table.reshape(-1)[starts + indices])
