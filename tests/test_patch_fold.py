"""fold_constants: integer arithmetic between constants, against onnx's own evaluator."""

import warnings

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from dfstream.patches import fold
from dfstream.patches.fold import fold_constants
from dfstream.patches.graph import constant_value, export_graph, import_graph, time_pad
from hypothesis import assume, given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import oracle
from conftest import SYNTHETIC
from dfstream.errors import UnsupportedGraph

LIMIT = 1 << 16


class Sum:
    """A graph of nodes on constants under construction."""

    def __init__(self, opset=14):
        self.nodes, self.weights, self.opset = [], [], opset

    def constant(self, values, dtype=np.int64):
        self.weights.append(numpy_helper.from_array(np.array(values, dtype), f"c{len(self.weights)}"))
        return self.weights[-1].name

    def node(self, op, *inputs, **attributes):
        name = f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def model(self, result, kind=TensorProto.INT64):
        output = helper.make_tensor_value_info(result, kind, None)
        output.type.tensor_type.ClearField("shape")
        graph = helper.make_graph(self.nodes, "sum", [], [output], self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)

    def folded(self, result, kind=TensorProto.INT64):
        """What folding makes of a result: its value, or None where it is left to the runtime."""
        model = self.model(result, kind)
        # a reader keeps the result from being a graph output itself, which no constant can be
        model.graph.node.append(helper.make_node("Identity", [result], ["read"], name="read"))
        model.graph.output[0].name = "read"
        graph = import_graph(model)
        read = graph.nodes[-1]
        read.op = "Keep"
        fold_constants(graph)
        return constant_value(read.inputs[0])


def test_evaluates_the_pad_arithmetic_of_an_export():
    """What the exporter of PyTorch 1.x writes between constants for each Pad."""
    graph = oracle.parts("dfn3")["enc"]
    pads = [node for node in graph.nodes if node.op == "Pad"]
    with pytest.raises(UnsupportedGraph, match=r"not constants"):
        time_pad(pads[0])
    arithmetic = {"Cast", "Concat", "Constant", "ConstantOfShape", "Reshape", "Slice", "Transpose"}
    assert all(set(behind(pad.inputs[1])) == arithmetic for pad in pads)
    fold_constants(graph)
    assert [constant_value(pad.inputs[1]).tolist() for pad in pads] == [[0, 0, 2, 0, 0, 0, 0, 0]] * 2
    assert [time_pad(pad) for pad in pads] == [2, 2]


def behind(tensor):
    for node in tensor.inputs:
        yield node.op
        for source in node.inputs:
            yield from behind(source)


@oracle.every_model()
def test_what_is_left_computes_the_same(name):
    c = oracle.case(name)
    graph = oracle.merged(name)
    ops = {node.op for node in graph.nodes}
    assert "Constant" not in ops
    assert all(any(isinstance(t, gs.Variable) for t in node.inputs) for node in graph.nodes)
    got = oracle.run(export_graph(graph), c.feats)
    assert oracle.errors({k: got[k] for k in oracle.RESULTS}, c.want) == {"lsnr": 0, "m": 0, "coefs": 0}


@pytest.mark.parametrize("name", SYNTHETIC)
def test_twice_changes_nothing(name):
    sites = oracle.twice(oracle.merged(name, folded=False), fold_constants)
    assert bool(sites) == (name != "lean")


def test_constants_of_rank_zero_stay_so():
    """A Gather index of rank 1 would give its result one axis more."""
    graph = oracle.merged("dfn3")
    indices = [n.inputs[1] for n in graph.nodes if n.op == "Gather"]
    assert indices
    assert all(constant_value(index).shape == () for index in indices)

    s = Sum()
    four = s.node("Gather", s.constant([2, 3, 4]), s.constant(2), axis=0)
    value = s.folded(s.node("Mul", four, s.constant(3)))
    assert isinstance(value, np.ndarray)
    assert value.shape == ()
    assert value == 12


@pytest.mark.parametrize(
    ("key", "values", "dtype"),
    [
        ("value_int", 3, np.int64),
        ("value_ints", [1, 2], np.int64),
        ("value_float", 0.5, np.float32),
        ("value_floats", [0.5], np.float32),
    ],
)
def test_takes_over_every_form_of_a_constant_node(key, values, dtype):
    s = Sum()
    value = s.folded(s.node("Constant", **{key: values}))
    assert value.dtype == dtype
    np.testing.assert_array_equal(value, values)


def test_leaves_strings_alone():
    s = Sum()
    assert s.folded(s.node("Constant", value_string="x"), TensorProto.STRING) is None


# -- bounds -------------------------------------------------------------------------------------------


def test_refuses_to_fill_an_absurd_shape():
    for shape in ([1 << 40], [1 << 20, 1 << 20], [1 << 62, 1 << 62], [-1], [LIMIT + 1]):
        s = Sum()
        with pytest.raises(UnsupportedGraph, match=r"ConstantOfShape 'n0': cannot be evaluated .*absurd"):
            s.folded(s.node("ConstantOfShape", s.constant(shape)), TensorProto.FLOAT)


def test_fills_up_to_the_limit():
    s = Sum()
    assert s.folded(s.node("ConstantOfShape", s.constant([LIMIT])), TensorProto.FLOAT).shape == (LIMIT,)


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul"])
def test_refuses_to_broadcast_to_an_absurd_shape(op):
    """Two vectors well within the limit; their outer sum has a thousand million elements."""
    s = Sum()
    row, column = (
        s.node("ConstantOfShape", s.constant(shape)) for shape in ([1, LIMIT // 3], [LIMIT // 3, 1])
    )
    with pytest.raises(UnsupportedGraph, match=rf"{op} 'n2': cannot be evaluated .*absurd"):
        s.folded(s.node(op, row, column), TensorProto.FLOAT)


def test_refuses_to_gather_an_absurd_shape():
    s = Sum()
    rows = s.node("ConstantOfShape", s.constant([1, LIMIT // 3]))
    zeros = numpy_helper.from_array(np.zeros(1, np.int64))
    indices = s.node("ConstantOfShape", s.constant([LIMIT // 3]), value=zeros)
    with pytest.raises(UnsupportedGraph, match=r"Gather 'n2': cannot be evaluated .*absurd"):
        s.folded(s.node("Gather", rows, indices, axis=0), TensorProto.FLOAT)


def test_never_evaluates_large_constants():
    s = Sum()
    large = s.constant(np.ones(LIMIT + 1), np.float32)
    assert s.folded(s.node("Add", large, large), TensorProto.FLOAT) is None
    half = s.constant(np.ones(LIMIT // 2 + 1), np.float32)
    assert s.folded(s.node("Concat", half, half, axis=0), TensorProto.FLOAT) is None


def test_takes_over_large_weights():
    s = Sum()
    weight = numpy_helper.from_array(np.ones(2 * LIMIT, np.float32))
    assert s.folded(s.node("Constant", value=weight), TensorProto.FLOAT).size == 2 * LIMIT


def test_a_doubling_chain_ends():
    """Forty times twice as long: stops at the limit, not at the end of the memory."""
    s = Sum()
    x = s.constant([1, 2])
    for _ in range(40):
        x = s.node("Concat", x, x, axis=0)
    assert s.folded(x) is None


@pytest.mark.parametrize(
    ("op", "values", "attributes"),
    [
        ("Reshape", ([1, 2, 3], [2, 2]), {}),
        ("Reshape", ([1, 2, 3], [3, 0]), {}),
        ("Gather", ([1, 2, 3], 3), {"axis": 0}),
        ("Gather", ([1, 2, 3], 0), {"axis": 1}),
        ("Concat", ([1], [[2]]), {"axis": 0}),
        ("Squeeze", ([1, 2], [0]), {}),
        ("Add", ([1, 2], [1, 2, 3]), {}),
        ("Transpose", ([1, 2],), {"perm": [0, 1]}),
        ("Slice", ([1, 2, 3], [0, 0], [1, 1], [0]), {}),
        ("ConstantOfShape", ([1] * 100,), {}),
    ],
)
def test_refuses_arithmetic_that_does_not_fit_by_name(op, values, attributes):
    s = Sum()
    with pytest.raises(UnsupportedGraph, match=rf"{op} 'n0': cannot be evaluated"):
        s.folded(s.node(op, *map(s.constant, values), **attributes))


def test_what_depends_on_the_signal_is_left():
    graph = oracle.merged("dfn3")
    assert any(node.op == "Shape" for node in graph.nodes)
    assert not any(node.op in fold._EVALUATORS and not node.inputs for node in graph.nodes)


# -- against onnx's evaluator ----------------------------------------------------------------------


def of(shape):
    """Strategy of an axis, counted from either end."""
    return st.integers(-len(shape), len(shape) - 1)


def replaced(shape, axis, *sizes):
    axis %= len(shape)
    return [*shape[:axis], *sizes, *shape[axis + 1 :]]


def axes(s, where):
    """Axes of (Un)squeeze: an attribute up to opset 12, an input from 13 on."""
    return ((), {"axes": [where]}) if s.opset < 13 else ((s.constant([where]),), {})


# each appends one operator on ``x`` and returns its result and the shape of that


def calculate(draw, s, x, shape):
    length = shape[-1] if shape else 1
    other = draw(st.lists(st.integers(-9, 9), min_size=length, max_size=length))
    op = draw(st.sampled_from(["Add", "Sub", "Mul"]))
    return s.node(op, x, s.constant(other)), shape or [1]


def unsqueeze(draw, s, x, shape):
    where = draw(st.integers(0, len(shape)))
    inputs, attributes = axes(s, where)
    return s.node("Unsqueeze", x, *inputs, **attributes), [*shape[:where], 1, *shape[where:]]


def squeeze(draw, s, x, shape):
    ones = [axis for axis, size in enumerate(shape) if size == 1]
    assume(ones)
    where = draw(st.sampled_from(ones))
    inputs, attributes = axes(s, where)
    return s.node("Squeeze", x, *inputs, **attributes), replaced(shape, where)


def reshape(draw, s, x, shape):
    size = int(np.prod(shape, dtype=int))
    forms = [([-1], [size]), ([size, 1], [size, 1]), ([1, -1], [1, size])]
    if shape:
        forms += [([*shape[:-1], -1], shape), ([0, -1], [shape[0], size // shape[0]])]
    to, result = draw(st.sampled_from(forms))
    return s.node("Reshape", x, s.constant(to)), result


def cut(draw, s, x, shape):
    axis = draw(of(shape))
    length = shape[axis]
    start, end = (draw(st.integers(-length - 2, length + 2)) for _ in range(2))
    if draw(st.booleans()):
        start, end = -1, draw(st.sampled_from([-(2**63) + 1, -length - 1]))  # to the first one, backwards
    stride = draw(st.sampled_from([1, 2, -1, -2]))
    kept = len(range(length)[start:end:stride])
    assume(kept)
    bounds = [s.constant([n]) for n in (start, end, axis, stride)]
    return s.node("Slice", x, *bounds), replaced(shape, axis, kept)


def gather(draw, s, x, shape):
    axis = draw(of(shape))
    one = st.integers(-shape[axis], shape[axis] - 1)
    index = draw(one | st.lists(one, min_size=1, max_size=3))
    return s.node("Gather", x, s.constant(index), axis=axis), replaced(shape, axis, *np.shape(index))


def concat(draw, s, x, shape):
    axis = draw(of(shape))
    return s.node("Concat", x, x, axis=axis), replaced(shape, axis, 2 * shape[axis])


def transpose(draw, s, x, shape):
    perm = draw(st.permutations(range(len(shape))))
    return s.node("Transpose", x, perm=perm), [shape[axis] for axis in perm]


def cast(draw, s, x, shape):
    kind = draw(st.sampled_from([TensorProto.INT32, TensorProto.FLOAT]))
    return s.node("Cast", s.node("Cast", x, to=kind), to=TensorProto.INT64), shape


def identity(draw, s, x, shape):  # noqa: ARG001
    return s.node("Identity", x), shape


FOR_ANY_RANK = (calculate, unsqueeze, reshape, cast, identity)
FOR_AXES = (squeeze, cut, gather, concat, transpose)


@st.composite
def arithmetic(draw):
    """A few operators, one on the other, on small numbers."""
    s = Sum(draw(st.sampled_from([11, 12, 13, 14])))
    shape = draw(st.lists(st.integers(1, 3), max_size=3))
    x = s.constant(np.arange(1, np.prod(shape, dtype=int) + 1).reshape(shape))
    for _ in range(draw(st.integers(1, 5))):
        step = draw(st.sampled_from(FOR_ANY_RANK + FOR_AXES * bool(shape)))
        x, shape = step(draw, s, x, shape)
    return s, x, shape


@given(arithmetic())
def test_equals_the_reference_evaluator(drawn):
    s, result, shape = drawn
    model = s.model(result)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        (want,) = ReferenceEvaluator(model).run(None, {})
    got = s.folded(result)
    assert got.shape == np.shape(want) == tuple(shape)
    assert got.dtype == np.int64
    np.testing.assert_array_equal(got, want)
