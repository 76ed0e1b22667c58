"""Graphs that are broken or hostile: refused with one clear error before any runtime sees them."""

import random

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import synthetic
from dfstream import parsing
from dfstream.errors import ArchiveError, ModelError, UnsupportedGraph

LEAN = synthetic.make(synthetic.PRESETS["lean"], seed=2)


def refusal(call, *args, kind=ArchiveError):
    with pytest.raises(kind) as caught:
        call(*args)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1100
    return str(caught.value)


def graph(part="erb_dec"):
    return onnx.load_model_from_string(LEAN[f"{part}.onnx"])


def parse(model, name="some.onnx"):
    data = model if isinstance(model, bytes) else model.SerializeToString()
    return parsing.parse_graph(data, name)


def constant(name, values, dtype=np.int64):
    return numpy_helper.from_array(np.asarray(values, dtype), name)


def vector_graph(*nodes, constants=()):
    """A graph whose nodes compute ``out``."""
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])
    out = helper.make_tensor_value_info("out", TensorProto.INT64, ["n"])
    return helper.make_model(
        helper.make_graph(nodes, "g", [given], [out], list(constants)),
        opset_imports=[helper.make_opsetid("", 14)],
    )


def test_the_real_ones_parse():
    for name, data in LEAN.items():
        if name.endswith(".onnx"):
            assert parse(data).graph.node


@pytest.mark.parametrize(
    "data", [b"", b"\0", b"hello", b"\x08", b"\xff" * 100, b"\x1f\x8b", b"PK\x03\x04", LEAN["config.ini"]]
)
def test_no_graph(data):
    assert refusal(parse, data).startswith("some.onnx: not a")


@given(st.binary(max_size=500))
def test_random_bytes_are_no_graph(data):
    refusal(parse, data)


@pytest.mark.parametrize("size", range(1, 60_000, 1_999))
def test_a_graph_cut_short(size):
    data = LEAN["enc.onnx"]
    if size >= len(data):
        pytest.skip("shorter than that")
    refusal(parse, data[:size], kind=ModelError)


def test_flipped_bits_are_refused_or_do_no_harm():
    """Bits outside the weights: of names, types, shapes, attributes and lengths."""
    data = LEAN["enc.onnx"]
    weights = [
        t.raw_data for t in onnx.load_model_from_string(data).graph.initializer if len(t.raw_data) > 64
    ]
    inside = {at + i for raw in weights for at in [data.find(raw)] for i in range(len(raw))}
    positions = [i for i in range(len(data)) if i not in inside]
    rng, outcomes = random.Random(4), {True: 0, False: 0}
    for _ in range(400):
        damaged = bytearray(data)
        for _ in range(rng.choice([1, 1, 4])):
            damaged[rng.choice(positions)] ^= 1 << rng.randrange(8)
        try:
            parse(bytes(damaged))
        except ModelError as error:
            outcomes[False] += 1
            message = str(error)
        else:
            outcomes[True] += 1
            message = ""
        assert not message or message.isprintable()
    assert min(outcomes.values()) > 20  # the test sees both


@pytest.mark.parametrize("depth", [3, 40, 200, 20_000])
def test_deeply_nested_messages(depth):
    data = b""
    for tag in (b"\x32", b"\x2a", b"\x0a") * depth:  # a graph in an attribute of a node of a graph
        size, length = len(data), b""
        while size > 127:
            length, size = length + bytes([size & 127 | 128]), size >> 7
        data = (tag + length + bytes([size]) + data)[: 1 << 20]
    refusal(parse, b"\x3a" + data)


def edit_external(model):
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL
    model.graph.initializer[0].external_data.add(key="location", value="../../secret")


def edit_external_without_a_place(model):
    model.graph.initializer[0].external_data.add(key="location", value="/etc/passwd")


def edit_external_in_a_node(model):
    tensor = TensorProto(name="t", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    model.graph.node.append(helper.make_node("Constant", [], ["other"], value=tensor))


def edit_function(model):
    model.functions.add(name="f", domain="")


def edit_training(model):
    model.training_info.add()


def edit_if(model):
    branch = helper.make_graph([helper.make_node("Identity", ["e0"], ["y"])], "branch", [], [])
    model.graph.node.append(helper.make_node("If", ["e0"], ["y"], then_branch=branch, else_branch=branch))


def edit_loop_in_disguise(model):
    body = helper.make_graph([helper.make_node("Identity", ["e0"], ["y"])], "body", [], [])
    model.graph.node[0].attribute.append(helper.make_attribute("anything", body))


def edit_sparse(model):
    model.graph.sparse_initializer.add()


def edit_sparse_in_a_node(model):
    model.graph.node.add(op_type="Constant", output=["s"]).attribute.add(
        name="sparse_value"
    ).sparse_tensor.dims.append(1)


def edit_unknown_domain(model):
    model.graph.node[0].domain = "com.microsoft"


def edit_unknown_operator(model):
    model.graph.node[0].op_type = "Frobnicate"


def edit_operator_of_other_networks(model):
    model.graph.node[0].op_type = "CumSum"


def edit_operator_of_several_lines(model):
    model.graph.node[0].op_type = "Relu\n\x1b[31mhint: run this"


def edit_enormous_operator(model):
    model.graph.node[0].op_type = "n" * 10**6


def edit_name_that_is_no_text(model):
    data = model.SerializeToString().replace(b"Sigmoid", b"Sigmoi\xff")
    model.ParseFromString(data)


def edit_node_name_that_is_no_text(model):
    model.graph.node[0].name = "NAME-NAME"
    model.ParseFromString(model.SerializeToString().replace(b"NAME-NAME", b"NAME\xff\xfeAME"))


def edit_old(model):
    model.opset_import[0].version = 10


def edit_future(model):
    model.opset_import[0].version = 10_000


def edit_overflowing_opset(model):
    model.opset_import[0].version = 2**63 - 1


def edit_no_opset(model):
    del model.opset_import[:]


def edit_negative_size(model):
    model.graph.initializer[0].dims[0] = -1


def edit_absurd_size(model):
    model.graph.initializer[0].dims[0] = 2**40


def edit_product_that_overflows(model):
    model.graph.initializer.add(name="t", data_type=TensorProto.FLOAT, dims=[2**32, 2**32], raw_data=b"")


def edit_absurd_size_behind_a_zero(model):
    model.graph.initializer.add(name="t", data_type=TensorProto.FLOAT, dims=[0, 2**62], raw_data=b"")


def edit_rank(model):
    model.graph.initializer.add(name="t", data_type=TensorProto.FLOAT, dims=[1] * 10_000, raw_data=bytes(4))


def edit_absurd_input(model):
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 2**31


def edit_negative_output(model):
    model.graph.output[0].type.tensor_type.shape.dim[2].dim_value = -5


def edit_absurd_inner_tensor(model):
    model.graph.value_info.append(helper.make_tensor_value_info("e0", TensorProto.FLOAT, [2**20] * 3))


def edit_too_little_data(model):
    tensor = model.graph.initializer[0]
    tensor.raw_data = tensor.raw_data[:-4]


def edit_too_much_data(model):
    model.graph.initializer[0].raw_data += bytes(4)


def edit_no_data(model):
    model.graph.initializer.add(name="t", data_type=TensorProto.FLOAT, dims=[3])


def edit_values_that_do_not_fill(model):
    model.graph.initializer.add(name="t", data_type=TensorProto.FLOAT, dims=[3], float_data=[1.0, 2.0])


def edit_segments(model):
    model.graph.initializer.add(
        name="t", data_type=TensorProto.FLOAT, dims=[1], raw_data=bytes(4)
    ).segment.end = 1


def edit_strings(model):
    model.graph.initializer.add(name="t", data_type=TensorProto.STRING, dims=[1], string_data=[b"x"])


def edit_type_that_does_not_exist(model):
    model.graph.initializer.add(name="t", data_type=99, dims=[1], raw_data=bytes(4))


def edit_cycle(model):
    node = model.graph.node[0]
    node.input[0] = node.output[0]


def edit_missing_input(model):
    model.graph.node[0].input[0] = "nobody computes this"


def edit_computed_twice(model):
    model.graph.node.append(model.graph.node[-1])


def edit_no_nodes(model):
    del model.graph.node[:]


def edit_no_outputs(model):
    del model.graph.output[:]


def edit_nodes(model):
    model.graph.node.extend(helper.make_node("Relu", ["e0"], [f"r{i}"]) for i in range(parsing._MAX_NODES))


def edit_tensors(model):
    model.graph.initializer.extend(constant(f"t{i}", 1) for i in range(parsing._MAX_STORED))


def edit_declared_tensors(model):
    for i in range(parsing._MAX_STORED):
        model.graph.value_info.add(name=f"t{i}")


def edit_edges(model):
    model.graph.node.append(helper.make_node("Concat", ["e0"] * parsing._MAX_EDGES, ["r"], axis=0))


def edit_attributes(model):
    for i in range(parsing._MAX_EDGES):
        model.graph.node[0].attribute.add(name=f"a{i}")


EDITS = {
    name.removeprefix("edit_"): edit for name, edit in list(globals().items()) if name.startswith("edit_")
}
UNSUPPORTED = (
    "function", "training", "if", "loop_in_disguise", "sparse", "sparse_in_a_node", "unknown_domain",
    "unknown_operator", "operator_of_other_networks", "operator_of_several_lines", "enormous_operator", "old",
    "future", "overflowing_opset", "no_opset", "strings", "type_that_does_not_exist",
)  # fmt: skip


@pytest.mark.parametrize("edit", EDITS)
def test_graphs_that_are_refused(edit):
    model = graph()
    EDITS[edit](model)
    kind = UnsupportedGraph if edit in UNSUPPORTED else ArchiveError
    assert refusal(parse, model, kind=kind).startswith("some.onnx: ")


def test_a_large_graph_of_the_family_is_still_allowed():
    model = graph()
    names = [f"r{i}" for i in range(parsing._MAX_NODES // 2)]
    model.graph.node.extend(helper.make_node("Relu", ["e0"], [name], name=name) for name in names)
    assert len(parse(model).graph.node) > len(names)


# -- graphs that grow ---------------------------------------------------------------------------------------


def doubled(times):
    pairs = [helper.make_node("Concat", [f"c{i}"] * 2, [f"c{i + 1}"], axis=0) for i in range(times)]
    return [*pairs, helper.make_node("Identity", [f"c{times}"], ["out"])]


GROWING = {
    "doubled constant": vector_graph(*doubled(40), constants=[constant("c0", [1])]),
    "doubled Constant node": vector_graph(
        helper.make_node("Constant", [], ["c0"], value=constant("v", [1, 2])), *doubled(40)
    ),
    "doubled shape": vector_graph(helper.make_node("Shape", ["x"], ["c0"]), *doubled(40)),
    "one Concat of everything": vector_graph(
        helper.make_node("Concat", ["long"] * 100, ["out"], axis=0),
        constants=[constant("long", np.zeros(2_000))],
    ),
    "constant of a shape": vector_graph(
        helper.make_node("ConstantOfShape", ["size"], ["out"]), constants=[constant("size", [2**40])]
    ),
    "constant of an overflowing shape": vector_graph(
        helper.make_node("ConstantOfShape", ["size"], ["out"]),
        constants=[constant("size", [2**32, 2**32, 0])],
    ),
    "expanded": vector_graph(
        helper.make_node("Expand", ["one", "size"], ["out"]),
        constants=[constant("size", [2**33]), constant("one", [1])],
    ),
}


@pytest.mark.parametrize("name", GROWING)
def test_vectors_that_grow_without_end(name):
    assert "numbers of constants" in refusal(parse, GROWING[name])


@pytest.mark.parametrize("operator", ["Tile", "Range", "Resize", "OneHot", "NonZero", "RandomNormal", "Loop"])
def test_growing_operators_that_the_family_does_not_use(operator):
    model = vector_graph(helper.make_node(operator, ["x"], ["out"]))
    assert operator in refusal(parse, model, kind=UnsupportedGraph)


def test_shape_arithmetic_of_the_usual_size_is_allowed():
    nodes = [
        helper.make_node("Shape", ["x"], ["c0"]),
        *doubled(5)[:-1],
        helper.make_node("Gather", ["c5", "ends"], ["out"]),
    ]
    parse(vector_graph(*nodes, constants=[constant("ends", [0, -1])]))
