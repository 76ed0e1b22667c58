"""lean: one frame a call for ONNX Runtime on a CPU, any number of streams."""

import numpy as np
import onnx
import pytest
from dfstream.patches.graph import constant, consumers, export_graph
from dfstream.patches.gru_state import expose_gru_state
from dfstream.patches.lean import lean, lean_recipe
from dfstream.patches.recipe import read_metadata

import oracle
from conftest import SYNTHETIC
from dfstream.errors import UnsupportedGraph

RECIPE = lean_recipe()
ALLOWED = {
    "Add", "Concat", "Conv", "GRU", "Gemm", "MatMul", "Mul", "Pad", "Relu", "Reshape", "Sigmoid", "Slice",
    "Tanh", "Transpose",
}  # fmt: skip


def graph_of(name):
    return oracle.case(name).model.graphs(RECIPE)["combined_lean"]


def lean_bytes(graph):
    return {stem: export_graph(made) for stem, made in lean(graph).items()}


@oracle.every_model()
def test_stepped_equals_the_export_in_one_run(name):
    c = oracle.case(name)
    got = oracle.streamed([graph_of(name)], c.feats, 1)
    oracle.check_equal(got, c.want)
    oracle.check_equal(got, c.want, frames=slice(0, 9))


@oracle.every_model(quick=oracle.FEW)
def test_streams_of_a_batch_do_not_meet(name):
    c = oracle.case(name)
    others = {key: np.concatenate([x[:, :, ::-1], x, 0.5 * x]) for key, x in c.feats.items()}
    got = oracle.streamed([graph_of(name)], others, 1, batch=3)
    oracle.check_equal({key: x[1:2] for key, x in got.items()}, c.want)
    assert np.abs(got["m"][0] - got["m"][1]).max() > 0.01


@oracle.every_model()
def test_no_arithmetic_of_shapes(name):
    model = onnx.load_from_string(graph_of(name))
    assert {node.op_type for node in model.graph.node} <= ALLOWED
    fixed = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in ("Reshape", "Slice", "Pad"):
            assert set(node.input[1:]) <= fixed, node.name


@pytest.mark.parametrize("name", SYNTHETIC)
def test_states_are_those_of_its_docstring(name):
    c = oracle.case(name)
    m, f = c.model.config, c.model.facts
    inputs, outputs = oracle.ports(graph_of(name))
    past = f.time_kernels[0] - 1
    hidden = {
        {"enc1": "h0", "erb1": "erb_h0", "df1": "df_h0"}.get(
            f"{section}{n + 1}", f"{section}{n + 1}_h0"
        ): size
        for section, (layers, size) in f.grus.items()
        for n in range(layers)
    }
    expected = {
        "feat_erb": ["B", 1, 1, m.nb_erb],
        "feat_spec": ["B", 2, 1, m.nb_df],
        **{state: [1, "B", size] for state, size in hidden.items()},
        "s_erb": ["B", past, 1, m.nb_erb],
        "s_spec": ["B", 2 * past, 1, m.nb_df],
    }
    assert {k: inputs.get(k) for k in expected} == expected
    others = {k: v for k, v in inputs.items() if k not in expected}
    assert all(k.startswith(("s_fir", "s_ctx")) for k in others)
    assert len(others) + 2 == len(f.time_kernels)
    assert outputs == {
        "lsnr": ["B", 1, 1], "m": ["B", 1, 1, m.nb_erb], "coefs": ["B", 1, m.nb_df, 2 * m.df_order],
        **{oracle.after(k): v for k, v in inputs.items() if not k.startswith("feat_")},
    }  # fmt: skip


def test_every_state_knows_its_part_of_the_network():
    metadata = read_metadata(onnx.load_from_string(graph_of("dfn3-ll")), "lean")
    assert metadata.sections == {
        "h0": "enc", "erb_h0": "erb", "erb2_h0": "erb", "df_h0": "df", "df2_h0": "df", "df3_h0": "df",
        "s_erb": "enc", "s_spec": "enc", "s_ctx": "enc", "s_ctx_2": "enc", "s_ctx_3": "df", "s_ctx_4": "enc",
        "s_ctx_5": "enc", "s_ctx_6": "erb", "s_fir": "erb",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["dfn3-h0", "lean"])
def test_doing_it_again_gives_the_same_bytes(name):
    """It leaves its source as it was; whether the states are exposed there does not matter."""
    graph = oracle.merged(name)
    before = export_graph(graph)
    first = lean_bytes(graph)
    assert export_graph(graph) == before
    assert lean_bytes(graph) == first
    expose_gru_state(graph)
    assert lean_bytes(graph) == first


@pytest.mark.parametrize(
    ("name", "nodes", "state"), [("dfn3", 98, 5568), ("dfn2", 96, 5568), ("dfn2-ll", 96, 3648)]
)
def test_size_at_the_official_widths(name, nodes, state):
    data = oracle.full_size(name).graphs(RECIPE)["combined_lean"]
    inputs, _ = oracle.ports(data)
    assert sum(oracle.operators(data).values()) == nodes
    sizes = [np.prod([1 if size == "B" else size for size in shape]) for shape in inputs.values()]
    features = sum(np.prod(inputs[name][1:]) for name in ("feat_erb", "feat_spec"))
    assert sum(sizes) - features == state


def test_operators_of_dfn3_at_the_official_widths():
    assert oracle.operators(oracle.full_size("dfn3").graphs(RECIPE)["combined_lean"]) == {
        "Conv": 20, "Relu": 20, "Reshape": 16, "Add": 9, "MatMul": 8, "Transpose": 8, "GRU": 5, "Slice": 4,
        "Concat": 2, "Sigmoid": 2, "Gemm": 1, "Mul": 1, "Pad": 1, "Tanh": 1,
    }  # fmt: skip


# -- upsampling ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lean", "dfn3"])
def test_an_upsampling_with_a_second_reader_takes_nothing_in(name):
    """Neither the 1x1 convolution nor the Relu behind it is then the only way on."""
    graph = oracle.merged(name)
    up = oracle.first(graph, "ConvTranspose")
    node = up
    while node.op != "Add":
        before, node = node, consumers(node.outputs[0])[0]
    node.inputs[1 - node.inputs.index(before.outputs[0])] = up.outputs[0]
    graph.cleanup().toposort()
    feats = oracle.noise(oracle.case(name).model.config, 9, seed=3)
    (data,) = lean_bytes(graph).values()
    oracle.check_equal(oracle.streamed([data], feats, 1), oracle.run(export_graph(graph), feats))


# -- refusals -----------------------------------------------------------------------------------------


def refused(change, match, name="dfn3", op=None):
    graph = oracle.merged(name)
    change(oracle.first(graph, op) if op else graph)
    with pytest.raises(UnsupportedGraph, match=match):
        lean(graph)


def test_refuses_an_operator_without_a_lean_form():
    def change(node):
        node.op = "Softplus"

    refused(change, "no canonical form for Softplus 'enc/", op="Sigmoid")


def test_refuses_a_gru_that_resets_before_the_product():
    def change(node):
        node.attrs["linear_before_reset"] = 0

    refused(change, "GRU 'enc/.*resets before the matrix product", op="GRU")


def test_refuses_a_product_with_a_constant_of_an_odd_shape():
    def change(graph):
        node = oracle.first(graph, "Mul")
        node.inputs[1] = constant("odd", np.ones((1, 7, 1)), np.float32)

    refused(change, "no canonical form for Mul 'enc/")


def test_refuses_to_spread_an_operand_over_another():
    """Reshaping it would be wrong."""
    graph = oracle.merged("lean")
    matmul = next(n for n in graph.nodes if n.op == "MatMul" and n.name.startswith("erb_dec"))
    (add,) = consumers(matmul.outputs[0])
    add.inputs = [matmul.outputs[0], oracle.first(graph, "Sigmoid").outputs[0]]
    with pytest.raises(UnsupportedGraph, match="no canonical form for Add"):
        lean(graph)
