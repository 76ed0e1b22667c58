"""Every operation of a package against a plain twin, convolutions against onnxruntime's; rounding."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import handmade
from coreml_twins import compute, half, interpreter, noise, onnx_conv, refused
from dfstream.coreml.rounding import to_half
from dfstream.errors import ArchiveError, UnsupportedGraph
from handmade import Handmade

# -- rounding ------------------------------------------------------------------------------------------------

HALVES = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
FINITE = HALVES[np.isfinite(HALVES)]


def same(got, want):
    """Equal in every bit, but for what a NaN carries."""
    nan = np.isnan(want)
    np.testing.assert_array_equal(np.isnan(got), nan)
    np.testing.assert_array_equal(got[~nan].view(np.uint32), want[~nan].view(np.uint32))


def rounded(values, few):
    with np.errstate(all="ignore"):
        if few:
            return np.concatenate([to_half(part) for part in np.array_split(values, len(values) // 500)])
        return to_half(values)


@pytest.mark.parametrize("few", [True, False])
def test_halves_are_left_alone(few):
    same(rounded(HALVES, few), HALVES)


@pytest.mark.parametrize("few", [True, False])
def test_between_two_halves_the_nearer_one(few):
    """And of two that are equally near the even one: all 2^16 and what lies between and beside them."""
    low, high = np.sort(FINITE)[:-1].astype(np.float64), np.sort(FINITE)[1:].astype(np.float64)
    low, high = low[low < high], high[low < high]
    middle = ((low + high) / 2).astype(np.float32)  # exact: one bit more than a half has
    below, above = np.nextafter(middle, np.float32(-np.inf)), np.nextafter(middle, np.float32(np.inf))
    same(np.abs(rounded(below, few)), np.abs(low.astype(np.float32)))
    same(np.abs(rounded(above, few)), np.abs(high.astype(np.float32)))
    is_even = low.astype(np.float16).view(np.uint16) % 2 == 0
    np.testing.assert_array_equal(rounded(middle, few), np.where(is_even, low, high).astype(np.float32))


@pytest.mark.parametrize("few", [True, False])
def test_edges_of_the_range(few):
    tiny = 2.0**-24
    cases = [
        (65504.0, 65504.0), (65519.996, 65504.0), (65520.0, np.inf), (-65520.0, -np.inf), (1e30, np.inf),
        (np.finfo(np.float32).max, np.inf), (np.inf, np.inf), (-np.inf, -np.inf), (np.nan, np.nan),
        (0.0, 0.0), (-0.0, -0.0), (tiny, tiny), (tiny / 2, 0.0), (-tiny / 2, -0.0), (tiny * 0.50001, tiny),
        (tiny * 1.5, 2 * tiny), (1e-45, 0.0), (-1e-45, -0.0), (2.0**-14, 2.0**-14),
        (2.0**-14 - 2.0**-26, 2.0**-14), (1 + 2.0**-11, 1.0), (1 + 3 * 2.0**-11, 1 + 2.0**-9),
    ]  # fmt: skip
    given, wanted = (
        np.resize(np.float32(column), 500 if few else 5000) for column in zip(*cases, strict=True)
    )
    same(rounded(given, few), wanted)


@pytest.mark.parametrize("few", [True, False])
def test_any_bits_as_numpy_rounds_them(few):
    values = np.random.default_rng(1).integers(0, 1 << 32, 1 << 20, np.uint32).view(np.float32)
    with np.errstate(all="ignore"):
        same(rounded(values, few), values.astype(np.float16).astype(np.float32))


def test_any_layout_and_a_new_array():
    values = noise(40, 60, 3)
    for view in (values, values.T, values[::2, ::-3], values[:2], values[0, 0, 0]):
        before = view.copy()
        got = to_half(view)
        assert got.shape == view.shape
        assert not np.shares_memory(got, values)
        np.testing.assert_array_equal(got, half(view))
        np.testing.assert_array_equal(view, before)


# -- element by element --------------------------------------------------------------------------------------

BINARY = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "real_div": np.divide}


@pytest.mark.parametrize("kind", BINARY)
@pytest.mark.parametrize(
    ("x", "y"),
    [((2, 3, 4), (2, 3, 4)), ((2, 3, 4), (1, 3, 1)), ((1, 1, 4), (2, 3, 1)), ((3,), (2, 3)), ((2,), ())],
)
@pytest.mark.parametrize("out", ["float32", "float16"])
def test_arithmetic(kind, x, y, out):
    a, b = noise(*x), noise(*y)
    made = handmade.one(kind, {"x": x, "y": y}, np.broadcast_shapes(x, y), "float32", out)
    want = BINARY[kind](a, b)
    assert want.dtype == np.float32
    np.testing.assert_array_equal(compute(made, x=a, y=b), half(want) if out == "float16" else want)


@pytest.mark.parametrize("kind", BINARY)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_arithmetic_with_a_constant(kind, dtype):
    a, b = noise(2, 3), noise(3).astype(dtype)
    made = handmade.one(kind, {"x": (2, 3)}, (2, 3), y=b)
    np.testing.assert_array_equal(compute(made, x=a), BINARY[kind](a, b.astype(np.float32)))
    made = Handmade({"y": ("float32", (2, 3))})
    made.add(kind, {"x": made.const("c", b), "y": "y"}, {"z": ("float32", (2, 3))})
    outputs, _ = interpreter(made.result("z", "float32", (2, 3))).run({"y": a})
    np.testing.assert_array_equal(outputs["z"], BINARY[kind](b.astype(np.float32), a))


UNARY = {
    "relu": lambda x: np.where(x > 0, x, 0),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x.astype(np.longdouble))),
    "tanh": lambda x: np.tanh(x.astype(np.longdouble)),
    "identity": lambda x: x,
}


@pytest.mark.parametrize("kind", UNARY)
@pytest.mark.parametrize("out", ["float32", "float16"])
def test_functions_of_one(kind, out):
    x = np.concatenate(
        [noise(500), np.linspace(-120, 120, 501, dtype=np.float32), np.float32([0, -0.0, 1e-8])]
    )
    made = handmade.one(kind, {"x": x.shape}, x.shape, "float32", out)
    got, want = compute(made, x=x), UNARY[kind](x)
    assert got.dtype == np.float32
    if out == "float16":
        np.testing.assert_array_equal(got, half(want))
    else:
        np.testing.assert_array_equal(got, want.astype(np.float32))


@pytest.mark.parametrize(("dtype", "name"), [("float16", "fp16"), ("float32", "fp32")])
def test_cast(dtype, name):
    x = noise(2, 3)
    made = handmade.one("cast", {"x": (2, 3)}, (2, 3), "float32", dtype, dtype=name)
    np.testing.assert_array_equal(compute(made, x=x), half(x) if dtype == "float16" else x)


def test_what_overflows_is_infinite():
    """In silence: no warning of numpy's gets out."""
    x = np.float32([60000, -60000, 3e38, 0])
    made = handmade.one("add", {"x": (4,), "y": (4,)}, (4,), "float32", "float16")
    assert compute(made, x=x, y=x).tolist() == [np.inf, -np.inf, np.inf, 0]
    got = compute(handmade.one("real_div", {"x": (4,), "y": (4,)}, (4,)), x=x, y=np.zeros(4, np.float32))
    assert np.isnan(got[3])
    assert compute(handmade.one("sigmoid", {"x": (4,)}, (4,)), x=-x).tolist() == [0, 1, 0, 0.5]


# -- moving values -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -3])
def test_concat(axis):
    sizes = [(2, 3, 4), (2, 3, 4), (2, 3, 4)]
    parts = [noise(*size) for size in sizes]
    want = np.concatenate(parts, axis)
    made = handmade.one("concat", {"values": sizes}, want.shape, axis=np.int32(axis), interleave=False)
    np.testing.assert_array_equal(compute(made, **{f"values{i}": p for i, p in enumerate(parts)}), want)


def test_concat_of_different_sizes():
    made = handmade.one("concat", {"values": [(1, 2), (1, 5)]}, (1, 7), axis=np.int32(1))
    assert compute(made, values0=np.float32([[1, 2]]), values1=np.float32([[3, 4, 5, 6, 7]])).tolist() == [
        [1, 2, 3, 4, 5, 6, 7]
    ]


@pytest.mark.parametrize(
    ("begin", "end", "more", "index"),
    [
        ([1, 0, 0], [2, 3, 4], {}, np.s_[1:2]),
        ([0, 1, 2], [2, 2, 3], {}, np.s_[:, 1:2, 2:3]),
        ([0, 0, 1], [2, 3, 4], {"stride": [1, 2, 3]}, np.s_[:, ::2, 1::3]),
        ([0, -2, -3], [2, -1, -1], {}, np.s_[:, -2:-1, -3:-1]),
        ([1, 1, 1], [1, 1, 1], {"begin_mask": [True, False, True], "end_mask": [True, True, False]},
         np.s_[:, 1:, :1]),
        ([1, 2, 3], [0, 0, 0], {"stride": [1, -1, -2], "begin_mask": [1, 0, 0], "end_mask": [1, 1, 0]},
         np.s_[:, 2::-1, 3:0:-2]),
        ([0, 0, 0], [9, 3, 4], {"squeeze_mask": [False, False, False]}, np.s_[:]),
    ],
    ids=range(7),
)  # fmt: skip
def test_slice_by_index(begin, end, more, index):
    x = noise(2, 3, 4)
    masks = {k: np.array(v, bool if "mask" in k else np.int32) for k, v in more.items()}
    made = handmade.one(
        "slice_by_index", {"x": x.shape}, x[index].shape, begin=np.int32(begin), end=np.int32(end), **masks
    )
    np.testing.assert_array_equal(compute(made, x=x), x[index])


@pytest.mark.parametrize(
    "shape", [(6, 4), (1, 24, 1, 1), (-1,), (4, -1, 3), (0, 4, 3), (0, 0, 0), (2, -1, 0)]
)
def test_reshape(shape):
    x = noise(2, 3, 4)
    target = [old if new == 0 else new for old, new in itertools.zip_longest((2, 3, 4), shape)][: len(shape)]
    want = x.reshape(target)
    made = handmade.one("reshape", {"x": (2, 3, 4)}, want.shape, shape=np.int32(shape))
    np.testing.assert_array_equal(compute(made, x=x), want)


@pytest.mark.parametrize("perm", [(0, 1, 2), (2, 0, 1), (-1, 0, -2)])
def test_transpose(perm):
    x = noise(2, 3, 4)
    made = handmade.one("transpose", {"x": (2, 3, 4)}, x.transpose(perm).shape, perm=np.int32(perm))
    np.testing.assert_array_equal(compute(made, x=x), x.transpose(perm))


# -- convolutions --------------------------------------------------------------------------------------------


@st.composite
def convolutions(draw):
    """Channels, groups, kernel, strides, dilations and padding of a convolution whose result is not empty."""
    small = st.integers(1, 3)
    groups, per_group, outputs = draw(st.sampled_from([1, 2, 3])), draw(small), draw(small)
    kernel, strides = draw(st.tuples(small, st.integers(1, 5))), draw(st.tuples(small, small))
    kind = draw(st.sampled_from(["valid", "custom", "same", "same_lower", None]))
    # onnxruntime does not pad by itself for both
    dilations = (1, 1) if kind in ("same", "same_lower") else draw(st.sampled_from([(1, 1), (1, 2), (2, 1)]))
    pad = draw(st.tuples(*[st.integers(0, 2)] * 4)) if kind == "custom" else (0, 0, 0, 0)
    sizes = [(k - 1) * d + draw(st.integers(1, 6)) for k, d in zip(kernel, dilations, strict=True)]
    shape = (draw(st.integers(1, 2)), groups * per_group, *sizes)
    return (
        shape,
        (groups * outputs, per_group, *kernel),
        groups,
        strides,
        dilations,
        kind,
        pad,
        draw(st.booleans()),
    )


@settings(max_examples=150)
@given(convolutions())
def test_convolutions(case):
    shape, weight_shape, groups, strides, dilations, kind, pad, has_bias = case
    rng = np.random.default_rng(0)
    # small integers: any order of summation gives the same
    x, weight = (rng.integers(-8, 9, s).astype(np.float32) for s in (shape, weight_shape))
    bias = rng.integers(-8, 9, weight_shape[0]).astype(np.float32) if has_bias else None
    auto = {"same": "SAME_UPPER", "same_lower": "SAME_LOWER"}
    padding = {"auto_pad": auto[kind]} if kind in auto else {"pads": [pad[0], pad[2], pad[1], pad[3]]}
    want = onnx_conv("Conv", x, weight, bias, group=groups, strides=strides, dilations=dilations, **padding)
    parameters = {"weight": weight, "groups": np.int32(groups), "strides": np.int32(strides)}
    parameters |= {"dilations": np.int32(dilations)} if dilations != (1, 1) else {}
    parameters |= {"bias": bias} if has_bias else {}
    parameters |= {"pad_type": kind} if kind else {}
    parameters |= {"pad": np.int32(pad)} if kind == "custom" else {}
    for out in ("float32", "float16"):
        made = handmade.one("conv", {"x": shape}, want.shape, "float32", out, **parameters)
        outputs, _ = interpreter(made).run({"x": x})
        np.testing.assert_array_equal(outputs["result"], half(want) if out == "float16" else want)


def test_padding_that_is_not_asked_for_is_not_added():
    """``pad`` counts for ``custom`` alone."""
    made = handmade.one(
        "conv", {"x": (1, 1, 1, 4)}, (1, 1, 1, 3), weight=np.ones((1, 1, 1, 2), np.float32),
        pad_type="valid", pad=np.int32([0, 0, 5, 5]),
    )  # fmt: skip
    assert compute(made, x=np.float32([[[[1, 2, 3, 4]]]])).ravel().tolist() == [3, 5, 7]


def test_wide_depthwise_kernels():
    x, weight = noise(1, 3, 1, 40), noise(3, 1, 1, 20)
    want = onnx_conv("Conv", x, weight, None, group=3)
    made = handmade.one("conv", {"x": x.shape}, want.shape, weight=weight, groups=np.int32(3))
    np.testing.assert_allclose(compute(made, x=x), want, atol=1e-5)  # 20 products of ones


@settings(max_examples=80)
@given(convolutions())
def test_transposed_convolutions(case):
    shape, weight_shape, groups, strides, dilations, _, pad, has_bias = case
    rng = np.random.default_rng(0)
    outputs = weight_shape[0] // groups
    weight_shape = (shape[1], outputs, *weight_shape[2:])
    x, weight = (rng.integers(-8, 9, s).astype(np.float32) for s in (shape, weight_shape))
    bias = rng.integers(-8, 9, outputs * groups).astype(np.float32) if has_bias else None
    whole = [
        (n - 1) * s + (k - 1) * d + 1
        for n, s, k, d in zip(shape[2:], strides, weight_shape[2:], dilations, strict=True)
    ]
    if whole[0] <= pad[0] + pad[1] or whole[1] <= pad[2] + pad[3]:
        pad = (0, 0, 0, 0)
    want = onnx_conv(
        "ConvTranspose", x, weight, bias, group=groups, strides=strides, dilations=dilations,
        pads=[pad[0], pad[2], pad[1], pad[3]],
    )  # fmt: skip
    parameters = {"weight": weight, "groups": np.int32(groups), "strides": np.int32(strides)}
    parameters |= {"dilations": np.int32(dilations)} if dilations != (1, 1) else {}
    parameters |= {"bias": bias} if has_bias else {}
    parameters |= {"pad_type": "custom", "pad": np.int32(pad)} if any(pad) else {}
    made = handmade.one("conv_transpose", {"x": shape}, want.shape, **parameters)
    found, _ = interpreter(made).run({"x": x})
    np.testing.assert_array_equal(found["result"], want)


# -- where is rounded ----------------------------------------------------------------------------------------


def test_sums_inside_of_an_operation_are_float32():
    """2048 and 24 ones: halves would never get beyond 2048."""
    weight = np.ones((1, 25, 1, 1), np.float16)
    x = np.ones((1, 25, 1, 1), np.float32)
    x[0, 0] = 2048
    made = handmade.one("conv", {"x": x.shape}, (1, 1, 1, 1), "float16", "float16", weight=weight)
    assert compute(made, x=x).item() == 2072


def test_bias_and_sum_are_rounded_together():
    """2048 + 1 would be 2048, and 2048 + 1 again: rounded once it is 2050."""
    made = handmade.one(
        "conv", {"x": (1, 2, 1, 1)}, (1, 1, 1, 1), "float16", "float16",
        weight=np.float16([[[[1]], [[1]]]]), bias=np.float16([1]),
    )  # fmt: skip
    assert compute(made, x=np.float32([2048, 1]).reshape(1, 2, 1, 1)).item() == 2050


def test_inputs_that_are_declared_float16_are_rounded():
    x = np.float32([1 + 2.0**-12, 2049])
    made = handmade.one("add", {"x": (2,), "y": (2,)}, (2,), "float16")
    assert compute(made, x=x, y=np.float32([0, 0])).tolist() == [1, 2048]


def test_every_operation_rounds():
    """A chain of halves: each result before it goes on."""
    made = Handmade({"x": ("float32", (3,))})
    made.add("add", {"x": "x", "y": made.const("c", np.float32(1e-4))}, {"a": ("float16", (3,))})
    made.add("mul", {"x": "a", "y": "a"}, {"b": ("float16", (3,))})
    made.add("cast", {"x": "b", "dtype": made.const("d", "fp32")}, {"e": ("float32", (3,))})
    made.add("sub", {"x": "e", "y": "x"}, {"f": ("float32", (3,))})
    x = np.float32([1, 1.7, 3.3])
    a = half(x + np.float32(1e-4))
    outputs, _ = interpreter(made.result("f", "float32", (3,))).run({"x": x})
    np.testing.assert_array_equal(outputs["f"], half(a * a) - x)


@pytest.mark.parametrize(
    ("kind", "parameters"),
    [
        ("relu", {}),
        ("identity", {}),
        ("reshape", {"shape": np.int32([4])}),
        ("transpose", {"perm": np.int32([0])}),
        ("slice_by_index", {"begin": np.int32([0]), "end": np.int32([4])}),
        ("concat", {"axis": np.int32(0)}),
    ],
)
def test_what_only_moves_values_rounds_those_that_were_not(kind, parameters):
    x = np.float32([1.0001, -2.0002, 3.0003, 70000])
    port = {"values": [(4,)]} if kind == "concat" else {"x": (4,)}
    made = handmade.one(kind, port, (4,), "float32", "float16", **parameters)
    want = half(np.maximum(x, 0) if kind == "relu" else x)
    np.testing.assert_array_equal(compute(made, **{"values0" if kind == "concat" else "x": x}), want)


def test_what_was_computed_in_float32_is_rounded_by_a_cast():
    made = Handmade({"x": ("float16", (2,))})
    made.add("add", {"x": "x", "y": "x"}, {"sum": ("float32", (2,))})
    made.add("mul", {"x": "sum", "y": made.const("c", np.float32(1.0001))}, {"a": ("float32", (2,))})
    made.add("cast", {"x": "a", "dtype": made.const("d", "fp16")}, {"result": ("float16", (2,))})
    made.result("result", "float16", (2,))
    assert compute(made, x=np.float32([1, 3])).tolist() == [2, 6]


def test_a_half_and_a_float_side_by_side():
    """One of two parts was never rounded: the whole is."""
    made = Handmade({"a": ("float16", (1,)), "b": ("float32", (1,))})
    values = {"values": ["a", "b"], "axis": made.const("axis", np.int32(0))}
    made.add("concat", values, {"result": ("float16", (2,))})
    made.result("result", "float16", (2,))
    assert compute(made, a=np.float32([1.0001]), b=np.float32([1.0001])).tolist() == [1, 1]


# -- refusals ------------------------------------------------------------------------------------------------


C = np.ones((1, 2, 1, 1), np.float32)
CONV = {"x": (1, 2, 1, 4)}, (1, 1, 1, 4)


@pytest.mark.parametrize(
    ("made", "match"),
    [
        (("softmax", {"x": (2,)}, (2,)), "softmax 'result': this operation is not supported"),
        (("constexpr_sparse_to_dense", {}, (2,)), "constexpr_sparse_to_dense 'result': this compression"),
        (("cast", {"x": (2,)}, (2,), {"dtype": "fp16"}), "cast 'result': to 'fp16'"),
        (
            ("concat", {"values": [(2,), (2,)]}, (4,), {"axis": np.int32(0), "interleave": True}),
            "interleaved",
        ),
        (
            (
                "slice_by_index",
                {"x": (2,)},
                (1,),
                {"begin": np.int32([0]), "end": np.int32([1]), "squeeze_mask": np.array([True])},
            ),
            "squeezed",
        ),
        (("conv", *CONV, {"weight": C, "pad_type": "explicit"}), "pad_type 'explicit'"),
        (
            ("conv", {"x": (1, 2, 4)}, (1, 1, 4), {"weight": C[..., 0]}),
            "of a tensor of rank 3, supported is 4",
        ),
        (("conv", {"x": (1, 2, 1, 4), "weight": (1, 2, 1, 1)}, (1, 1, 1, 4)), "weight is computed"),
        (
            (
                "conv",
                {"x": (1, 2, 1, 4)},
                (1, 1, 60001, 60004),
                {"weight": C, "pad_type": "custom", "pad": np.int32([30000, 30000, 30000, 30000])},
            ),
            "the absurd shape",
        ),
        (
            (
                "conv_transpose",
                {"x": (1, 2, 1, 4)},
                (1, 2, 1, 4),
                {"weight": np.ones((2, 2, 1, 1), np.float32), "pad_type": "same"},
            ),
            "pad_type valid or custom",
        ),
        (("add", {"x": (2,)}, (2,), {"y": np.int32([1, 2])}), "computes with 'c_y' of type int32"),
        (("add", {"x": (2,)}, (2,), {"y": "text"}), "computes with 'c_y' of type string"),
    ],
    ids=range(12),
)
def test_what_is_not_supported(made, match):
    *positional, last = made
    made = handmade.one(*positional, **last) if isinstance(last, dict) else handmade.one(*made)
    refused(made, match, ArchiveError if "absurd" in match else UnsupportedGraph)


@pytest.mark.parametrize(
    ("kind", "match"), [("relu", "relu 'z': computes int32, supported"), ("cast", "cast 'z': to 'int32'")]
)
def test_integers_are_not_computed_with(kind, match):
    made = handmade.one("relu", {"x": (2,)}, (2,))
    made.add(kind, {"x": "x", "dtype": made.const("to", "int32")}, {"z": ("int32", (2,))})
    refused(made, match, UnsupportedGraph)


def test_convolutions_that_would_take_all_memory():
    """A kernel as wide as half of its map: every patch is a copy of half of the map."""
    made = handmade.one(
        "conv", {"x": (1, 2, 1, 16384)}, (1, 1, 1, 8193), weight=np.ones((1, 2, 1, 8192), np.float16)
    )
    refused(made, "an absurdly large convolution", UnsupportedGraph)
    made = handmade.one(
        "conv", {"x": (1, 2, 1, 2)}, (1, 1, 1, 1), weight=C, pad_type="custom",
        strides=np.int32([1, 2**31 - 1]), pad=np.int32([0, 0, 2**31 - 1, 0]),
    )  # fmt: skip
    refused(made, "an absurdly large convolution", UnsupportedGraph)
    made = handmade.one(
        "conv_transpose", {"x": (1, 2, 1, 2)}, (1, 2, 1, 1), weight=np.ones((2, 2, 1, 1), np.float32),
        pad_type="custom", strides=np.int32([1, 2**31 - 1]), pad=np.int32([0, 0, 2**31 - 1, 0]),
    )  # fmt: skip
    refused(made, "an absurdly large convolution", UnsupportedGraph)


@pytest.mark.parametrize(
    ("made", "match"),
    [
        (("relu", {"x": (2,)}, (3,)), r"declared as \[3\], computes \[2\]"),
        (("relu", {"y_": (2,)}, (2,)), "relu 'result': 0 operands x"),
        (("relu", {"x": [(2,), (2,)]}, (2,)), "relu 'result': 2 operands x"),
        (("add", {"x": (2,), "y": (3,)}, (3,)), r"of \[2\] and \[3\]"),
        (("concat", {"values": [(2, 1), (2, 2, 1)]}, (4, 1), {"axis": np.int32(0)}), "along axis 0"),
        (("concat", {"values": [(2, 1), (2, 2)]}, (4, 1), {"axis": np.int32(0)}), "along axis 0"),
        (("concat", {"values": [(2,)]}, (2,), {"axis": np.int32(1)}), "axis 1 of 1"),
        (("concat", {"values": [(2,)]}, (2,), {"axis": np.int32(-2)}), "axis -2 of 1"),
        (("concat", {"values": []}, (2,), {"axis": np.int32(0)}), "axis 0 of 0"),
        (("concat", {"values": [(2,)]}, (2,)), "0 operands axis"),
        (
            ("slice_by_index", {"x": (4,)}, (2,), {"begin": np.int32([0, 0]), "end": np.int32([2])}),
            "begin is not 1",
        ),
        (
            ("slice_by_index", {"x": (4,)}, (2,), {"begin": np.float32([0]), "end": np.int32([2])}),
            "begin is not 1",
        ),
        (
            (
                "slice_by_index",
                {"x": (4,)},
                (2,),
                {"begin": np.int32([0]), "end": np.int32([2]), "stride": np.int32([0])},
            ),
            "stride 0",
        ),
        (
            ("slice_by_index", {"x": (4,)}, (2,), {"begin": np.int32([2]), "end": np.int32([2])}),
            r"computes \[0\]",
        ),
        (("reshape", {"x": (4,)}, (3,), {"shape": np.int32([3])}), r"\[4\] to \[3\]"),
        (("reshape", {"x": (4,)}, (4,), {"shape": np.int32([-1, -1])}), r"\[4\] to \[-1, -1\]"),
        (("reshape", {"x": (4,)}, (4,), {"shape": np.int32([-2, -2])}), r"\[4\] to \[-2, -2\]"),
        (("reshape", {"x": (4,)}, (4,), {"shape": np.int32([-1, 0])}), r"\[4\] to \[0, 0\]"),
        (("reshape", {"x": (4,)}, (4,), {"shape": np.int32([3, -1])}), r"\[4\] to \[3, 1\]"),
        (("reshape", {"x": (4,)}, (4,), {"shape": "text"}), "shape is text"),
        (("transpose", {"x": (2, 2)}, (2, 2), {"perm": np.int32([0, 0])}), "no permutation"),
        (("transpose", {"x": (2, 2)}, (2, 2), {"perm": np.int32([0, 2])}), "no permutation"),
        (("conv", *CONV, {"weight": C, "groups": np.int32(0)}), "that are none"),
        (("conv", *CONV, {"weight": C, "strides": np.int32([1, 0])}), "that are none"),
        (("conv", *CONV, {"weight": C, "dilations": np.int32([1, 0])}), "that are none"),
        (("conv", *CONV, {"weight": C[..., 0]}), "that are none"),
        (("conv", *CONV, {"weight": C[:, :1]}), "in 1 groups on 2 channels"),
        (("conv", *CONV, {"weight": C[:, :1], "groups": np.int32(2)}), "in 2 groups on 2 channels"),
        (("conv", *CONV, {"weight": C, "bias": np.ones(2, np.float32)}), r"bias \[2\] for 1 outputs"),
        (("conv", *CONV, {"weight": C, "pad_type": np.int32(1)}), "pad_type is not text"),
        (("conv", *CONV, {"weight": C, "pad_type": "custom", "pad": np.int32([0, 0, 0, -1])}), "negative"),
        (("conv", *CONV, {"weight": C, "groups": np.int32([1, 1])}), "groups is not one integer"),
        (("conv", *CONV, {"weight": np.ones((1, 2, 2, 1), np.float32)}), "larger than the map"),
        (("conv_transpose", {"x": (1, 2, 1, 4)}, (1, 2, 1, 4), {"weight": C}), "in 1 groups on 2 channels"),
        (
            (
                "conv_transpose",
                {"x": (1, 1, 1, 4)},
                (1, 2, 1, 4),
                {"weight": C, "pad_type": "custom", "pad": np.int32([0, 0, 2, 2])},
            ),
            "larger than the map",
        ),
        (("read_state", {"input": (2,)}, (2,)), "'input' is no state"),
    ],
    ids=range(36),
)
def test_operands_that_contradict_each_other(made, match):
    *positional, last = made
    made = handmade.one(*positional, **last) if isinstance(last, dict) else handmade.one(*made)
    refused(made, match)
