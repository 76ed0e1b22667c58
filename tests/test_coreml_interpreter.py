"""Running packages: every operation against a plain twin, whole programs against onnxruntime."""

import itertools
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import handmade
import mil
import oracle
from conftest import SYNTHETIC
from dfstream.coreml.interpreter import Interpreter
from dfstream.coreml.package import read_package
from dfstream.coreml.rounding import to_half
from dfstream.errors import ArchiveError, UnsupportedGraph, UsageError
from dfstream.patching import canonical_recipe
from handmade import Handmade

RNG = np.random.default_rng(11)


def half(values):
    with np.errstate(over="ignore"):
        return np.asarray(values).astype(np.float16).astype(np.float32)


def noise(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def interpreter(made):
    with tempfile.TemporaryDirectory() as folder:
        return Interpreter(read_package(made.write(Path(folder) / "p")))


@pytest.fixture
def load():
    return interpreter


@pytest.fixture
def compute(load):
    """Run a package of one operation."""

    def run(made, **feeds):
        outputs, states = load(made).run(feeds)
        assert states == {}
        return outputs["result"]

    return run


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
def test_arithmetic(compute, kind, x, y, out):
    a, b = noise(*x), noise(*y)
    made = handmade.one(kind, {"x": x, "y": y}, np.broadcast_shapes(x, y), "float32", out)
    want = BINARY[kind](a, b)
    assert want.dtype == np.float32
    np.testing.assert_array_equal(compute(made, x=a, y=b), half(want) if out == "float16" else want)


@pytest.mark.parametrize("kind", BINARY)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_arithmetic_with_a_constant(compute, kind, dtype):
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
def test_functions_of_one(compute, kind, out):
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
def test_cast(compute, dtype, name):
    x = noise(2, 3)
    made = handmade.one("cast", {"x": (2, 3)}, (2, 3), "float32", dtype, dtype=name)
    np.testing.assert_array_equal(compute(made, x=x), half(x) if dtype == "float16" else x)


def test_what_overflows_is_infinite(compute):
    """In silence: no warning of numpy's gets out."""
    x = np.float32([60000, -60000, 3e38, 0])
    assert compute(handmade.one("add", {"x": (4,), "y": (4,)}, (4,), "float32", "float16"), x=x, y=x).tolist() == [
        np.inf, -np.inf, np.inf, 0,
    ]  # fmt: skip
    got = compute(handmade.one("real_div", {"x": (4,), "y": (4,)}, (4,)), x=x, y=np.zeros(4, np.float32))
    assert np.isnan(got[3])
    assert compute(handmade.one("sigmoid", {"x": (4,)}, (4,)), x=-x).tolist() == [0, 1, 0, 0.5]


# -- moving values -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -3])
def test_concat(compute, axis):
    sizes = [(2, 3, 4), (2, 3, 4), (2, 3, 4)]
    parts = [noise(*size) for size in sizes]
    want = np.concatenate(parts, axis)
    made = handmade.one("concat", {"values": sizes}, want.shape, axis=np.int32(axis), interleave=False)
    np.testing.assert_array_equal(compute(made, **{f"values{i}": p for i, p in enumerate(parts)}), want)


def test_concat_of_different_sizes(compute):
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
def test_slice_by_index(compute, begin, end, more, index):
    x = noise(2, 3, 4)
    masks = {k: np.array(v, bool if "mask" in k else np.int32) for k, v in more.items()}
    made = handmade.one(
        "slice_by_index", {"x": x.shape}, x[index].shape, begin=np.int32(begin), end=np.int32(end), **masks
    )
    np.testing.assert_array_equal(compute(made, x=x), x[index])


@pytest.mark.parametrize(
    "shape", [(6, 4), (1, 24, 1, 1), (-1,), (4, -1, 3), (0, 4, 3), (0, 0, 0), (2, -1, 0)]
)
def test_reshape(compute, shape):
    x = noise(2, 3, 4)
    target = [old if new == 0 else new for old, new in itertools.zip_longest((2, 3, 4), shape)][: len(shape)]
    want = x.reshape(target)
    made = handmade.one("reshape", {"x": (2, 3, 4)}, want.shape, shape=np.int32(shape))
    np.testing.assert_array_equal(compute(made, x=x), want)


@pytest.mark.parametrize("perm", [(0, 1, 2), (2, 0, 1), (-1, 0, -2)])
def test_transpose(compute, perm):
    x = noise(2, 3, 4)
    made = handmade.one("transpose", {"x": (2, 3, 4)}, x.transpose(perm).shape, perm=np.int32(perm))
    np.testing.assert_array_equal(compute(made, x=x), x.transpose(perm))


# -- convolutions --------------------------------------------------------------------------------------------


def onnx_conv(op, x, weight, bias, **attributes):
    """The same by onnxruntime."""
    names = ["x", "w", "b"] if bias is not None else ["x", "w"]
    node = onnx.helper.make_node(op, names, ["y"], **attributes)
    weights = [onnx.numpy_helper.from_array(weight, "w")]
    weights += [] if bias is None else [onnx.numpy_helper.from_array(bias, "b")]
    graph = onnx.helper.make_graph(
        [node], "g", [onnx.helper.make_tensor_value_info("x", 1, x.shape)],
        [onnx.helper.make_tensor_value_info("y", 1, None)], weights,
    )  # fmt: skip
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    return oracle.run(model.SerializeToString(), {"x": x})["y"]


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


def test_padding_that_is_not_asked_for_is_not_added(compute):
    """``pad`` counts for ``custom`` alone."""
    made = handmade.one(
        "conv", {"x": (1, 1, 1, 4)}, (1, 1, 1, 3), weight=np.ones((1, 1, 1, 2), np.float32),
        pad_type="valid", pad=np.int32([0, 0, 5, 5]),
    )  # fmt: skip
    assert compute(made, x=np.float32([[[[1, 2, 3, 4]]]])).ravel().tolist() == [3, 5, 7]


def test_wide_depthwise_kernels(compute):
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


def test_sums_inside_of_an_operation_are_float32(compute):
    """2048 and 24 ones: halves would never get beyond 2048."""
    weight = np.ones((1, 25, 1, 1), np.float16)
    x = np.ones((1, 25, 1, 1), np.float32)
    x[0, 0] = 2048
    made = handmade.one("conv", {"x": x.shape}, (1, 1, 1, 1), "float16", "float16", weight=weight)
    assert compute(made, x=x).item() == 2072


def test_bias_and_sum_are_rounded_together(compute):
    """2048 + 1 would be 2048, and 2048 + 1 again: rounded once it is 2050."""
    made = handmade.one(
        "conv", {"x": (1, 2, 1, 1)}, (1, 1, 1, 1), "float16", "float16",
        weight=np.float16([[[[1]], [[1]]]]), bias=np.float16([1]),
    )  # fmt: skip
    assert compute(made, x=np.float32([2048, 1]).reshape(1, 2, 1, 1)).item() == 2050


def test_inputs_that_are_declared_float16_are_rounded(compute):
    x = np.float32([1 + 2.0**-12, 2049])
    made = handmade.one("add", {"x": (2,), "y": (2,)}, (2,), "float16")
    assert compute(made, x=x, y=np.float32([0, 0])).tolist() == [1, 2048]


def test_every_operation_rounds(load):
    """A chain of halves: each result before it goes on."""
    made = Handmade({"x": ("float32", (3,))})
    made.add("add", {"x": "x", "y": made.const("c", np.float32(1e-4))}, {"a": ("float16", (3,))})
    made.add("mul", {"x": "a", "y": "a"}, {"b": ("float16", (3,))})
    made.add("cast", {"x": "b", "dtype": made.const("d", "fp32")}, {"e": ("float32", (3,))})
    made.add("sub", {"x": "e", "y": "x"}, {"f": ("float32", (3,))})
    x = np.float32([1, 1.7, 3.3])
    a = half(x + np.float32(1e-4))
    outputs, _ = load(made.result("f", "float32", (3,))).run({"x": x})
    np.testing.assert_array_equal(outputs["f"], half(a * a) - x)


@pytest.mark.parametrize(
    ("kind", "parameters"),
    [("relu", {}), ("identity", {}), ("reshape", {"shape": np.int32([4])}), ("transpose", {"perm": np.int32([0])}),
     ("slice_by_index", {"begin": np.int32([0]), "end": np.int32([4])}), ("concat", {"axis": np.int32(0)})],
)  # fmt: skip
def test_what_only_moves_values_rounds_those_that_were_not(compute, kind, parameters):
    x = np.float32([1.0001, -2.0002, 3.0003, 70000])
    port = {"values": [(4,)]} if kind == "concat" else {"x": (4,)}
    made = handmade.one(kind, port, (4,), "float32", "float16", **parameters)
    want = half(np.maximum(x, 0) if kind == "relu" else x)
    np.testing.assert_array_equal(compute(made, **{"values0" if kind == "concat" else "x": x}), want)


def test_a_half_and_a_float_side_by_side(compute):
    """One of two parts was never rounded: the whole is."""
    made = Handmade({"a": ("float16", (1,)), "b": ("float32", (1,))})
    values = {"values": ["a", "b"], "axis": made.const("axis", np.int32(0))}
    made.add("concat", values, {"result": ("float16", (2,))})
    made.result("result", "float16", (2,))
    assert compute(made, a=np.float32([1.0001]), b=np.float32([1.0001])).tolist() == [1, 1]


# -- states --------------------------------------------------------------------------------------------------


def test_states_of_both_kinds(load):
    """The plain twin of the package of everything."""
    running = load(handmade.everything())
    weight, bias = (running.package.program.constants[name].values.astype(np.float32) for name in "wb")
    states, s = running.initial_states(), np.zeros((1, 2, 1, 8), np.float32)
    assert {name: (array.shape, array.any()) for name, array in states.items()} == {
        "m": ((1, 4, 1, 8), False)
    }
    memory = np.zeros((1, 4, 1, 8), np.float32)
    for _ in range(5):
        x = noise(1, 2, 1, 8)
        both = np.concatenate([s, x], 1)
        outputs, states = running.run({"x": x, "s": s}, states)
        conv = onnx_conv("Conv", half(both), weight, bias, pads=[0, 1, 0, 1])
        # one more rounding may fall on the other side where the sum came out in another order
        np.testing.assert_allclose(states["m"], half(half(conv) + memory), rtol=2e-3, atol=2e-3)
        memory = states["m"]
        np.testing.assert_array_equal(outputs["y"], half(UNARY["sigmoid"](memory)))
        np.testing.assert_array_equal(outputs["s_out"], x)
        s = outputs["s_out"]


def counter(dtype="float16", kind="write_state"):
    """A state, read before and after it is written: results are x, what it was and what it is."""
    made = Handmade({"x": ("float32", (2,))}, states={"m": (dtype, (2,))}, opset="CoreML8")
    made.add("read_state", {"input": "m"}, {"before": (dtype, (2,))})
    made.add("add", {"x": "before", "y": "x"}, {"sum": ("float32", (2,))})
    if kind == "write_state":
        made.add(kind, {"input": "m", "data": "sum"}, {})
        made.add("read_state", {"input": "m"}, {"after": (dtype, (2,))})
    else:
        made.add(kind, {"state": "m", "value": "sum"}, {"after": (dtype, (2,))})
    for name in ("before", "after"):
        made.result(name, dtype, (2,))
    return made


@pytest.mark.parametrize("kind", ["write_state", "coreml_update_state"])
def test_a_state_is_read_in_the_order_of_the_program(load, kind):
    running = load(counter(kind=kind))
    x, states = np.float32([1, 2]), None
    for turn in range(3):
        outputs, states = running.run({"x": x}, states)
        np.testing.assert_array_equal(outputs["before"], turn * x)
        np.testing.assert_array_equal(outputs["after"], (turn + 1) * x)
        np.testing.assert_array_equal(states["m"], (turn + 1) * x)


def test_states_are_rounded_as_they_are_declared(load):
    x = np.float32([1.0001, 70000])
    outputs, states = load(counter("float16")).run({"x": x})
    assert states["m"].tolist() == outputs["after"].tolist() == [1, np.inf]
    outputs, states = load(counter("float32")).run({"x": x})
    assert states["m"].tolist() == outputs["after"].tolist() == x.tolist()
    outputs, _ = load(counter("float16")).run({"x": x}, {"m": np.float32([2049, 1.0001])})
    assert outputs["before"].tolist() == [2048, 1]


def test_nothing_is_kept_between_calls(load):
    """Two streams in turns, one run anew, and the same arrays given twice: always the same bits."""
    running = load(handmade.everything())
    frames = [{"x": noise(1, 2, 1, 8), "s": noise(1, 2, 1, 8)} for _ in range(4)]

    def stream(order):
        states, found = None, []
        for index in order:
            outputs, states = running.run(frames[index], states)
            yield found
            found += [outputs["y"].copy(), states["m"].copy()]
        yield found

    alone = list(stream(range(4)))[-1]
    one, other = stream(range(4)), stream(range(3, -1, -1))
    together = list(zip(one, other, strict=True))[-1][0]
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("kind", ["identity", "reshape", "transpose", "slice_by_index", "cast"])
def test_results_belong_to_the_caller(load, kind):
    """Neither inputs, states nor constants are changed by whoever writes into a result."""
    parameters = {
        "reshape": {"shape": np.int32([2, 2])}, "transpose": {"perm": np.int32([1, 0])},
        "slice_by_index": {"begin": np.int32([0, 0]), "end": np.int32([2, 2])}, "cast": {"dtype": "fp32"},
    }  # fmt: skip
    made = handmade.one(kind, {"x": (2, 2)}, (2, 2), **parameters.get(kind, {}))
    made.states["m"] = ("float32", (2,))
    made.add(kind, {"x": made.const("k", np.float32([[1, 2], [3, 4]])), **{p: f"c_{p}" for p in parameters.get(kind, {})}},
             {"z": ("float32", (2, 2))})  # fmt: skip
    running = load(made.result("z", "float32", (2, 2)))
    x, m = np.float32([[1, 2], [3, 4]]), np.float32([5, 6])
    first, states = running.run({"x": x}, {"m": m})
    for array in (*first.values(), *states.values()):
        assert array.flags.c_contiguous
        array[...] = -9
    assert (x.tolist(), m.tolist()) == ([[1, 2], [3, 4]], [5, 6])
    again, _ = running.run({"x": x}, {"m": m})
    np.testing.assert_array_equal(again["z"], again["result"])
    assert again["z"].max() == 4


def test_inputs_may_be_of_any_layout_and_type(load):
    running = load(handmade.everything())
    x = noise(8, 1, 2, 1).T
    want, _ = running.run({"x": np.ascontiguousarray(x), "s": x})
    got, _ = running.run({"x": x.astype(np.float64), "s": x})
    np.testing.assert_array_equal(got["y"], want["y"])


@pytest.mark.parametrize(
    ("feeds", "states", "match"),
    [
        ({"x": (1, 2, 1, 8)}, None, r"inputs \['x'\], the package has \['s', 'x'\]"),
        ({"x": (1, 2, 1, 8), "s": (1, 2, 1, 8), "z": (1,)}, None, "inputs"),
        ({"x": (1, 2, 1, 8), "s": (1, 2, 8, 1)}, None, r"s: shape \[1, 2, 8, 1\], the package has"),
        ({"x": (1, 2, 1, 8), "s": (1, 2, 1, 8)}, {}, r"states \[\], the package has \['m'\]"),
        ({"x": (1, 2, 1, 8), "s": (1, 2, 1, 8)}, {"m": (4,)}, r"m: shape \[4\]"),
    ],
)
def test_wrong_names_and_shapes(load, feeds, states, match):
    running = load(handmade.everything())
    states = None if states is None else {k: np.zeros(v, np.float32) for k, v in states.items()}
    with pytest.raises(UsageError, match=match):
        running.run({k: np.zeros(v, np.float32) for k, v in feeds.items()}, states)


# -- compressed weights --------------------------------------------------------------------------------------


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


def expanded(compute, *args):
    return compute(compressed(*args), x=np.zeros(args[1], np.float32))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("source", ["int8", "uint8"])
@pytest.mark.parametrize(("axis", "per_axis"), [(0, True), (1, True), (-1, True), (0, False)])
def test_scaled_integers(compute, dtype, source, axis, per_axis):
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
    got = expanded(compute, "constexpr_affine_dequantize", data.shape, dtype, operands, "CoreML6")
    np.testing.assert_array_equal(got, half(want) if dtype == "float16" else want)


@pytest.mark.parametrize("blocks", [(6, 4, 1, 1), (1, 1, 1, 1), (3, 2, 1, 1), (6, 1, 1, 1)])
@pytest.mark.parametrize("source", ["int4", "uint4", "int8", "uint8"])
@pytest.mark.parametrize("offset", [True, False])
def test_scaled_blocks(compute, blocks, source, offset):
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
    got = expanded(compute, "constexpr_blockwise_shift_scale", data.shape, "float16", operands, "CoreML8")
    np.testing.assert_array_equal(got, half(want))


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
@pytest.mark.parametrize("opset", ["CoreML6", "CoreML8"])
def test_palettes(compute, bits, opset):
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
    got = expanded(compute, "constexpr_lut_to_dense", shape, "float16", operands, opset)
    np.testing.assert_array_equal(got, table[indices].astype(np.float32))


def test_palettes_of_blocks(compute):
    """The example in coremltools' description of the operation."""
    operands = {
        "indices": (np.uint8([[2, 3], [3, 0], [1, 0], [3, 0], [2, 1], [0, 3]]), "uint2"),
        "lut": (np.float16([1, 5, 9, 13, 2, 10, 18, 26]).reshape(2, 1, 4, 1), "float16"),
    }
    got = expanded(compute, "constexpr_lut_to_dense", (6, 2), "float16", operands, "CoreML8")
    assert got.tolist() == [[9, 13], [13, 1], [5, 1], [26, 2], [18, 10], [2, 26]]


# -- refusals ------------------------------------------------------------------------------------------------


def refused(load, made, match, kind=ArchiveError):
    with pytest.raises(kind, match=match) as caught:
        load(made)
    assert str(caught.value).isprintable()


C = np.ones((1, 2, 1, 1), np.float32)
CONV = {"x": (1, 2, 1, 4)}, (1, 1, 1, 4)


@pytest.mark.parametrize(
    ("made", "match"),
    [
        (("softmax", {"x": (2,)}, (2,)), "softmax 'result': this operation is not supported"),
        (("constexpr_sparse_to_dense", {}, (2,)), "constexpr_sparse_to_dense 'result': this compression"),
        (("cast", {"x": (2,)}, (2,), {"dtype": "fp16"}), "cast 'result': to 'fp16'"),
        (("concat", {"values": [(2,), (2,)]}, (4,), {"axis": np.int32(0), "interleave": True}), "interleaved"),
        (("slice_by_index", {"x": (2,)}, (1,), {"begin": np.int32([0]), "end": np.int32([1]),
                                               "squeeze_mask": np.array([True])}), "squeezed"),
        (("conv", *CONV, {"weight": C, "pad_type": "explicit"}), "pad_type 'explicit'"),
        (("conv", {"x": (1, 2, 4)}, (1, 1, 4), {"weight": C[..., 0]}), "of a tensor of rank 3, supported is 4"),
        (("conv", {"x": (1, 2, 1, 4), "weight": (1, 2, 1, 1)}, (1, 1, 1, 4)), "weight is computed"),
        (("conv", {"x": (1, 2, 1, 4)}, (1, 1, 60001, 60004),
          {"weight": C, "pad_type": "custom", "pad": np.int32([30000, 30000, 30000, 30000])}), "the absurd shape"),
        (("conv_transpose", {"x": (1, 2, 1, 4)}, (1, 2, 1, 4), {"weight": np.ones((2, 2, 1, 1), np.float32),
                                                               "pad_type": "same"}), "pad_type valid or custom"),
        (("add", {"x": (2,)}, (2,), {"y": np.int32([1, 2])}), "computes with 'c_y' of type int32"),
        (("add", {"x": (2,)}, (2,), {"y": "text"}), "computes with 'c_y' of type string"),
    ],
    ids=range(12),
)  # fmt: skip
def test_what_is_not_supported(load, made, match):
    *positional, last = made
    made = handmade.one(*positional, **last) if isinstance(last, dict) else handmade.one(*made)
    refused(load, made, match, ArchiveError if "absurd" in match else UnsupportedGraph)


@pytest.mark.parametrize(
    ("kind", "match"), [("relu", "relu 'z': computes int32, supported"), ("cast", "cast 'z': to 'int32'")]
)
def test_integers_are_not_computed_with(load, kind, match):
    made = handmade.one("relu", {"x": (2,)}, (2,))
    made.add(kind, {"x": "x", "dtype": made.const("to", "int32")}, {"z": ("int32", (2,))})
    refused(load, made, match, UnsupportedGraph)


def test_convolutions_that_would_take_all_memory(load):
    """A kernel as wide as half of its map: every patch is a copy of half of the map."""
    made = handmade.one(
        "conv", {"x": (1, 2, 1, 16384)}, (1, 1, 1, 8193), weight=np.ones((1, 2, 1, 8192), np.float16)
    )
    refused(load, made, "an absurdly large convolution", UnsupportedGraph)
    made = handmade.one(
        "conv", {"x": (1, 2, 1, 2)}, (1, 1, 1, 1), weight=C, pad_type="custom", strides=np.int32([1, 2**31 - 1]),
        pad=np.int32([0, 0, 2**31 - 1, 0]),
    )  # fmt: skip
    refused(load, made, "an absurdly large convolution", UnsupportedGraph)
    made = handmade.one(
        "conv_transpose", {"x": (1, 2, 1, 2)}, (1, 2, 1, 1), weight=np.ones((2, 2, 1, 1), np.float32),
        pad_type="custom", strides=np.int32([1, 2**31 - 1]), pad=np.int32([0, 0, 2**31 - 1, 0]),
    )  # fmt: skip
    refused(load, made, "an absurdly large convolution", UnsupportedGraph)


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
        (("slice_by_index", {"x": (4,)}, (2,), {"begin": np.int32([0, 0]), "end": np.int32([2])}), "begin is not 1"),
        (("slice_by_index", {"x": (4,)}, (2,), {"begin": np.float32([0]), "end": np.int32([2])}), "begin is not 1"),
        (("slice_by_index", {"x": (4,)}, (2,), {"begin": np.int32([0]), "end": np.int32([2]),
                                               "stride": np.int32([0])}), "stride 0"),
        (("slice_by_index", {"x": (4,)}, (2,), {"begin": np.int32([2]), "end": np.int32([2])}), r"computes \[0\]"),
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
        (("conv_transpose", {"x": (1, 1, 1, 4)}, (1, 2, 1, 4),
          {"weight": C, "pad_type": "custom", "pad": np.int32([0, 0, 2, 2])}), "larger than the map"),
        (("read_state", {"input": (2,)}, (2,)), "'input' is no state"),
    ],
    ids=range(36),
)  # fmt: skip
def test_operands_that_contradict_each_other(load, made, match):
    *positional, last = made
    made = handmade.one(*positional, **last) if isinstance(last, dict) else handmade.one(*made)
    refused(load, made, match)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda m: m.add("relu", {"x": "m"}, {"z": ("float16", (2,))}), "'m' is a state, which has to be read"),
        (lambda m: m.add("write_state", {"input": "m", "data": "m"}, {}), "'m' is a state"),
        (lambda m: m.add("write_state", {"input": "x", "data": "x"}, {}), "'x' is no state"),
        (lambda m: m.add("write_state", {"input": "m", "data": m.const("c", np.float32(1))}, {}),
         r"\[\] into a state \[2\]"),
        (lambda m: m.add("read_state", {"input": "m"}, {"z": ("float16", (1, 2))}), r"declared as \[1, 2\]"),
        (lambda m: m.add("relu", {"x": "x"}, {"z": ("float32", (2,)), "z2": ("float32", (2,))}), "2 results"),
        (lambda m: m.add("relu", {"x": "x"}, {}), "0 results"),
    ],
)  # fmt: skip
def test_states_and_results_that_are_none(load, change, match):
    made = counter()
    change(made)
    refused(load, made, match)


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
        ("affine_dequantize", SCALED, (2, 3), {"zero_point": (np.int8([1, 2, 3]), "int8")}, "3 zero_point for 2"),
        ("affine_dequantize", SCALED, (3, 2), {}, r"\[2, 3\] of \[3, 2\] values"),
        ("affine_dequantize", SCALED, (2, 3), {"scale": ("text", "string")}, "scale is text"),
        ("blockwise_shift_scale", BLOCKS, (2, 4), {"scale": (np.ones((2, 3), np.float16), "float16")}, "blocks"),
        ("blockwise_shift_scale", BLOCKS, (2, 4), {"scale": (np.ones(2, np.float16), "float16")}, "blocks"),
        ("lut_to_dense", PACKED, (3, 4), {"indices": (np.uint8([1, 2]), "uint8")}, "2 bytes hold no 12 indices"),
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
)  # fmt: skip
def test_compressed_weights_that_are_none(load, kind, operands, shape, changes, match):
    made = compressed(f"constexpr_{kind}", shape, "float16", {**operands, **changes}, "CoreML8")
    refused(load, made, match, UnsupportedGraph if match == "vectors" else ArchiveError)


# -- whole programs, written by coremltools --------------------------------------------------------------------


def canonical_graph(name):
    return oracle.case(name).model.graphs(canonical_recipe())["combined_canonical"]


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """Packages of canonical graphs, each written once; ``compress`` is a function of models."""
    written = {}

    def get(name, target="iOS16", precision="FLOAT32", dtype="fp32", stateful=False, compress=None):
        mil.load()
        key = (name, target, precision, dtype, stateful, compress)
        if key not in written:
            model = mil.canonical(canonical_graph(name), target, precision, dtype, stateful)
            model = compress(model) if compress else model
            path = mil.save(model, tmp_path_factory.mktemp("package") / "p.mlpackage")
            written[key] = Interpreter(read_package(path))
        return written[key]

    return get


def stepped(running, feats, frames):
    """Run frame by frame; explicit states come out as ``<name>_out``, others are handed over."""
    names = [name for name in running.package.inputs if f"{name}_out" in running.package.outputs]
    carried = {name: np.zeros(running.package.inputs[name].shape, np.float32) for name in names}
    kept, found = running.initial_states(), []
    for frame in itertools.islice(oracle.cut(feats, 1), frames):
        outputs, kept = running.run({**frame, **carried}, kept)
        carried = {name: outputs[f"{name}_out"] for name in names}
        found.append(outputs)
    return found


def reference(graph, feats, frames):
    inputs, _ = oracle.ports(graph)
    states = {name: np.zeros(shape, np.float32) for name, shape in inputs.items() if name not in feats}
    found = []
    for frame in itertools.islice(oracle.cut(feats, 1), frames):
        out = oracle.run(graph, {**frame, **states})
        states = {name: out[f"{name}_out"] for name in states}
        found.append(out)
    return found


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in oracle.FEW else pytest.mark.slow) for n in SYNTHETIC]
)
def test_float32_as_onnxruntime_runs_the_same_graph(package, name):
    feats = oracle.case(name).feats
    got = stepped(package(name), feats, 30)
    for ours, theirs in zip(got, reference(canonical_graph(name), feats, 30), strict=True):
        assert ours.keys() == theirs.keys()
        for key, want in theirs.items():
            # another order of summation; lsnr is in dB, of a range of 50
            np.testing.assert_allclose(ours[key], want, rtol=0, atol=1e-4 if key == "lsnr" else 1e-5)


def test_a_trained_model(package):
    feats = oracle.case("bundled").feats
    got = stepped(package("bundled"), feats, 60)
    for ours, theirs in zip(got, reference(canonical_graph("bundled"), feats, 60), strict=True):
        for key in ("mask", "coefs"):
            np.testing.assert_allclose(ours[key], theirs[key], rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_float16_is_near(package, dtype):
    """Not equal to float32, and of the error that halves explain."""
    feats = oracle.case("dfn3").feats
    running = package("dfn3", precision="FLOAT16", dtype=dtype)
    assert running.package.inputs["h"].dtype == {"fp32": "float32", "fp16": "float16"}[dtype]
    got, want = stepped(running, feats, 30), stepped(package("dfn3"), feats, 30)
    error = max(np.abs(a["mask"] - b["mask"]).max() for a, b in zip(got, want, strict=True))
    assert 1e-5 < error < 1e-2
    if dtype == "fp16":
        assert all(np.array_equal(half(array), array) for out in got for array in out.values())


@pytest.mark.parametrize("name", ["dfn3", pytest.param("dfn2-ll", marks=pytest.mark.slow)])
def test_states_of_core_ml_and_explicit_ones_give_the_same_bits(package, name):
    """All in float16, where the same is rounded at the same places; and iOS 16 is iOS 18."""
    feats = oracle.case(name).feats
    first, second, third = (
        stepped(package(name, target, "FLOAT16", "fp16", stateful), feats, 40)
        for target, stateful in (("iOS16", False), ("iOS18", False), ("iOS18", True))
    )
    for a, b, c in zip(first, second, third, strict=True):
        for key in ("mask", "coefs", "lsnr"):
            np.testing.assert_array_equal(a[key], b[key])
            np.testing.assert_array_equal(a[key], c[key])
    assert first[-1]["mask"].std() > 0


def quantised(dtype, granularity, **more):
    def compress(model):
        coreml = mil.load().optimize.coreml
        config = coreml.OpLinearQuantizerConfig(
            mode="linear_symmetric" if "u" not in dtype else "linear", dtype=dtype, granularity=granularity,
            weight_threshold=16, **more,
        )  # fmt: skip
        return coreml.linear_quantize_weights(model, coreml.OptimizationConfig(global_config=config))

    return compress


def palettised(bits, **more):
    def compress(model):
        coreml = mil.load().optimize.coreml
        config = coreml.OpPalettizerConfig(mode="uniform", nbits=bits, weight_threshold=16, **more)
        return coreml.palettize_weights(model, coreml.OptimizationConfig(global_config=config))

    return compress


COMPRESSIONS = {
    "int8 per channel": ("iOS16", quantised("int8", "per_channel")),
    "uint8 per tensor": ("iOS16", quantised("uint8", "per_tensor")),
    "int8 per channel, iOS 18": ("iOS18", quantised("int8", "per_channel")),
    "int8 in blocks": ("iOS18", quantised("int8", "per_block", block_size=2)),
    "uint4 in blocks": ("iOS18", quantised("uint4", "per_block", block_size=2)),
    "palette of 8 bits": ("iOS16", palettised(8)),
    "palette of 6 bits": ("iOS16", palettised(6)),
    "palette of 4 bits": ("iOS16", palettised(4)),
    "palette of 6 bits, iOS 18": ("iOS18", palettised(6)),
    "palette of 3 bits, iOS 18": ("iOS18", palettised(3)),
    "palettes of groups": ("iOS18", palettised(4, granularity="per_grouped_channel", group_size=4)),
}


QUICK = ("uint8 per tensor", "int8 in blocks", "palette of 6 bits")


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind in QUICK else pytest.mark.slow) for kind in COMPRESSIONS]
)
def test_compressed_weights_as_coremltools_expands_them(package, tmp_path, kind):
    """The same package with its weights expanded by coremltools itself: the same bits come out."""
    target, compress = COMPRESSIONS[kind]
    ct = mil.load()
    model = compress(mil.canonical(canonical_graph("dfn3"), target, "FLOAT16", "fp16"))
    made = Interpreter(read_package(mil.save(model, tmp_path / "small.mlpackage")))
    constexprs = [o for o in made.package.program.operations if o.kind.startswith("constexpr_")]
    assert len(constexprs) > 20
    expanded = ct.optimize.coreml.decompress_weights(model)
    plain = Interpreter(read_package(mil.save(expanded, tmp_path / "large.mlpackage")))
    assert not any(o.kind.startswith("constexpr_") for o in plain.package.program.operations)
    feats = oracle.case("dfn3").feats
    for ours, theirs in zip(stepped(made, feats, 5), stepped(plain, feats, 5), strict=True):
        for key, want in theirs.items():
            np.testing.assert_array_equal(ours[key], want)


def test_several_frames_a_call(load):
    """A map of N frames, convolved over time as well."""
    weight, x = noise(4, 2, 3, 3), noise(1, 2, 6, 8)
    want = onnx_conv("Conv", x, weight, None, pads=[2, 1, 0, 1])
    made = handmade.one(
        "conv", {"x": x.shape}, want.shape, weight=weight, pad_type="custom", pad=np.int32([2, 0, 1, 1])
    )
    got, _ = load(made).run({"x": x})
    np.testing.assert_allclose(got["result"], want, atol=1e-5)
