"""Compressed weights in both encodings, against plain loops."""

import numpy as np
import pytest

import handmade
from coreml_twins import RNG, compute, half, refused
from dfstream.errors import ArchiveError, UnsupportedGraph
from handmade import Handmade


def compressed(kind, shape, dtype, operands, opset):
    """A program that adds compressed weights to zeros; ``operands`` are (values, dtype)."""
    made = Handmade({"x": ("float32", shape)}, opset=opset)
    values = {
        key: made.blob(v, d) if np.size(v) >= 10 else handmade.immediate(v, d)
        for key, (v, d) in operands.items()
    }
    in_attributes = opset == "CoreML6"
    made.add(kind, {} if in_attributes else values, {"w": (dtype, shape)}, values if in_attributes else {})
    made.add("add", {"x": "x", "y": "w"}, {"result": ("float32", shape)})
    return made.result("result", "float32", shape)


def expanded(*args):
    return compute(compressed(*args), x=np.zeros(args[1], np.float32))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("source", ["int8", "uint8"])
@pytest.mark.parametrize(("axis", "per_axis"), [(0, True), (1, True), (-1, True), (0, False)])
def test_scaled_integers(dtype, source, axis, per_axis):
    low = -128 if source == "int8" else 0
    data = RNG.integers(low, low + 256, (3, 4, 5)).astype(source)
    count = data.shape[axis] if per_axis else 1
    scale = RNG.uniform(0.01, 0.1, count).astype(dtype)
    zero = RNG.integers(0, 50, count).astype(source)
    want = np.zeros(data.shape, np.float32)
    for index in np.ndindex(*data.shape):
        at = index[axis] if per_axis else 0
        want[index] = np.float32(scale[at]) * (np.float32(data[index]) - np.float32(zero[at]))
    operands = {
        "quantized_data": (data, source), "scale": (scale if per_axis else scale[0], dtype),
        "zero_point": (zero if per_axis else zero[0], source), "axis": (np.int32(axis), "int32"),
    }  # fmt: skip
    got = expanded("constexpr_affine_dequantize", data.shape, dtype, operands, "CoreML6")
    np.testing.assert_array_equal(got, half(want) if dtype == "float16" else want)


@pytest.mark.parametrize("blocks", [(6, 4, 1, 1), (1, 1, 1, 1), (3, 2, 1, 1), (6, 1, 1, 1)])
@pytest.mark.parametrize("source", ["int4", "uint4", "int8", "uint8"])
@pytest.mark.parametrize("offset", [True, False])
def test_scaled_blocks(blocks, source, offset):
    low, high = {"int4": (-8, 8), "uint4": (0, 16), "int8": (-128, 128), "uint8": (0, 256)}[source]
    held = np.int8 if source.startswith("i") else np.uint8
    data = RNG.integers(low, high, (6, 4, 1, 1)).astype(held)
    scale = RNG.uniform(0.01, 0.1, blocks).astype(np.float16)
    shift = RNG.integers(0, 8, blocks).astype(held)
    want = np.zeros(data.shape, np.float32)
    for index in np.ndindex(*data.shape):
        at = tuple(i * b // n for i, b, n in zip(index, blocks, data.shape, strict=True))
        want[index] = np.float32(scale[at]) * (np.float32(data[index]) - offset * np.float32(shift[at]))
    operands = {"data": (data, source), "scale": (scale, "float16")}
    operands |= {"offset": (shift, source)} if offset else {}
    got = expanded("constexpr_blockwise_shift_scale", data.shape, "float16", operands, "CoreML8")
    np.testing.assert_array_equal(got, half(want))


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
@pytest.mark.parametrize("opset", ["CoreML6", "CoreML8"])
def test_palettes(bits, opset):
    shape = (5, 7, 1, 3)
    indices = RNG.integers(0, 1 << bits, shape).astype(np.uint8)
    table = RNG.standard_normal(1 << bits).astype(np.float16)
    if opset == "CoreML6":
        packed = np.frombuffer(handmade.bits(indices.ravel(), bits), np.uint8)
        operands = {
            "indices": (packed, "uint8"), "lut": (table, "float16"), "shape": (np.uint32(shape), "uint32"),
        }  # fmt: skip
    else:
        operands = {"indices": (indices, f"uint{bits}"), "lut": (table.reshape(1, 1, 1, 1, -1, 1), "float16")}
    got = expanded("constexpr_lut_to_dense", shape, "float16", operands, opset)
    np.testing.assert_array_equal(got, table[indices].astype(np.float32))


def test_palettes_of_blocks():
    """The example in coremltools' description of the operation."""
    operands = {
        "indices": (np.uint8([[2, 3], [3, 0], [1, 0], [3, 0], [2, 1], [0, 3]]), "uint2"),
        "lut": (np.float16([1, 5, 9, 13, 2, 10, 18, 26]).reshape(2, 1, 4, 1), "float16"),
    }
    got = expanded("constexpr_lut_to_dense", (6, 2), "float16", operands, "CoreML8")
    assert got.tolist() == [[9, 13], [13, 1], [5, 1], [26, 2], [18, 10], [2, 26]]


SCALED = {
    "quantized_data": (np.ones((2, 3), np.int8), "int8"), "scale": (np.ones(2, np.float16), "float16"),
    "zero_point": (np.int8(0), "int8"), "axis": (np.int32(0), "int32"),
}  # fmt: skip
BLOCKS = {"data": (np.ones((2, 4), np.int8), "int8"), "scale": (np.ones((2, 2), np.float16), "float16")}
PACKED = {
    "indices": (np.uint8([1, 2, 3]), "uint8"), "lut": (np.ones(4, np.float16), "float16"),
    "shape": (np.uint32([3, 4]), "uint32"),
}  # fmt: skip
INDEXED = {
    "indices": (np.ones((3, 4), np.uint8), "uint2"),
    "lut": (np.ones((1, 1, 4, 1), np.float16), "float16"),
}


@pytest.mark.parametrize(
    ("kind", "operands", "shape", "changes", "match"),
    [
        ("affine_dequantize", SCALED, (2, 3), {"axis": (np.int32(2), "int32")}, "axis 2 of 2"),
        ("affine_dequantize", SCALED, (2, 3), {"axis": (np.int32(1), "int32")}, "2 scale for 3 rows"),
        (
            "affine_dequantize",
            SCALED,
            (2, 3),
            {"zero_point": (np.int8([1, 2, 3]), "int8")},
            "3 zero_point for 2",
        ),
        ("affine_dequantize", SCALED, (3, 2), {}, r"\[2, 3\] of \[3, 2\] values"),
        ("affine_dequantize", SCALED, (2, 3), {"scale": ("text", "string")}, "scale is text"),
        (
            "blockwise_shift_scale",
            BLOCKS,
            (2, 4),
            {"scale": (np.ones((2, 3), np.float16), "float16")},
            "blocks",
        ),
        ("blockwise_shift_scale", BLOCKS, (2, 4), {"scale": (np.ones(2, np.float16), "float16")}, "blocks"),
        (
            "lut_to_dense",
            PACKED,
            (3, 4),
            {"indices": (np.uint8([1, 2]), "uint8")},
            "2 bytes hold no 12 indices",
        ),
        ("lut_to_dense", PACKED, (3, 4), {"indices": (np.int8([1, 2, 3]), "int8")}, "a table"),
        ("lut_to_dense", PACKED, (3, 4), {"lut": (np.ones(5, np.float16), "float16")}, "a table"),
        ("lut_to_dense", PACKED, (3, 4), {"lut": (np.ones(1, np.float16), "float16")}, "a table"),
        ("lut_to_dense", PACKED, (3, 4), {"lut": (np.ones(512, np.float16), "float16")}, "a table"),
        ("lut_to_dense", PACKED, (4, 3), {}, "a table"),
        ("lut_to_dense", INDEXED, (3, 4), {"lut": (np.ones((1, 1, 2, 1), np.float16), "float16")}, "a table"),
        ("lut_to_dense", INDEXED, (3, 4), {"lut": (np.ones((1, 4, 1), np.float16), "float16")}, "a table"),
        ("lut_to_dense", INDEXED, (3, 4), {"indices": (np.ones((3, 4), np.int32), "int32")}, "a table"),
        ("lut_to_dense", INDEXED, (3, 4), {"lut": (np.ones((2, 1, 4, 1), np.float16), "float16")}, "blocks"),
        ("lut_to_dense", INDEXED, (3, 4), {"lut": (np.ones((1, 1, 4, 2), np.float16), "float16")}, "vectors"),
    ],
    ids=range(18),
)
def test_compressed_weights_that_are_none(kind, operands, shape, changes, match):
    made = compressed(f"constexpr_{kind}", shape, "float16", {**operands, **changes}, "CoreML8")
    refused(made, match, UnsupportedGraph if match == "vectors" else ArchiveError)


@pytest.mark.parametrize("dtype", ["int8", "uint6", "string"])
def test_weights_that_are_no_floats(dtype):
    made = Handmade({"x": ("float32", (2, 3))})
    values = {key: handmade.immediate(*operand) for key, operand in SCALED.items()}
    made.add("constexpr_affine_dequantize", values, {"w": (dtype, (2, 3))})
    made.add("relu", {"x": "x"}, {"result": ("float32", (2, 3))})
    refused(made.result("result", "float32", (2, 3)), f"weights of {dtype}", UnsupportedGraph)


def test_scales_that_overflow():
    """In silence, as everywhere."""
    operands = {**SCALED, "scale": (np.float32([1e30, 1e5]), "float32")}
    got = expanded("constexpr_affine_dequantize", (2, 3), "float16", operands, "CoreML8")
    assert np.isinf(got).all()
