"""canonicalise: one frame a call, in the operators every accelerator takes."""

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from dfstream.patches.canonical import canonicalise
from dfstream.patches.canonical_conv import TimeConv
from dfstream.patches.graph import constant, export_graph, variable
from dfstream.patches.gru_state import expose_gru_state

import oracle
from conftest import SYNTHETIC
from dfstream.errors import UnsupportedGraph
from dfstream.patching import canonical_recipe

RECIPE = canonical_recipe()
ALLOWED = {"Add", "Concat", "Conv", "Mul", "Relu", "Reshape", "Sigmoid", "Slice", "Sub", "Tanh", "Transpose"}


def graph_of(name):
    return oracle.case(name).model.graphs(RECIPE)["combined_canonical"]


def canonical_bytes(graph):
    return {stem: export_graph(made) for stem, made in canonicalise(graph).items()}


def step_by_step(graph, feats):
    """Run the canonical graph frame by frame from zero states; returns results in the export's layout."""
    inputs, outputs = oracle.ports(graph)
    states = {name: np.zeros(shape, np.float32) for name, shape in inputs.items() if f"{name}_out" in outputs}
    found = []
    for frame in oracle.cut(feats, 1):
        out = oracle.run(graph, {**frame, **states})
        states = {name: out[f"{name}_out"] for name in states}
        found.append(
            {"lsnr": out["lsnr"][:, 0], "m": out["mask"], "coefs": out["coefs"].transpose(0, 2, 3, 1)}
        )
    return oracle.join(found)


@oracle.every_model()
def test_stepped_equals_the_export_in_one_run(name):
    c = oracle.case(name)
    got = step_by_step(graph_of(name), c.feats)
    oracle.check_equal(got, c.want)
    oracle.check_equal(got, c.want, frames=slice(0, 9))


@oracle.every_model()
def test_only_operators_that_every_accelerator_takes(name):
    assert set(oracle.operators(graph_of(name))) <= ALLOWED


@oracle.every_model()
def test_every_tensor_is_static_and_of_rank_four(name):
    model = onnx.load_from_string(graph_of(name))
    inferred = onnx.shape_inference.infer_shapes(
        model, check_type=True, strict_mode=True, data_prop=False
    ).graph
    shapes = {
        v.name: [d.dim_value if d.HasField("dim_value") else 0 for d in v.type.tensor_type.shape.dim]
        for v in (*inferred.input, *inferred.output, *inferred.value_info)
    }
    for node in inferred.node:
        for output in node.output:
            assert len(shapes[output]) == 4, output
            assert all(size > 0 for size in shapes[output]), output
            assert shapes[output][0] == 1, output
    assert all(len(shapes[v.name]) == 4 for v in inferred.input)
    for weight in inferred.initializer:
        assert weight.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.INT64)
        # biases, sizes and bounds are vectors
        assert len(weight.dims) in ((4, 1) if weight.data_type == onnx.TensorProto.FLOAT else (1,))


@pytest.mark.parametrize("name", SYNTHETIC)
def test_states_are_those_of_its_docstring(name):
    c = oracle.case(name)
    m, f = c.model.config, c.model.facts
    inputs, outputs = oracle.ports(graph_of(name))
    past = f.time_kernels[0] - 1
    expected = {
        "feat_erb": [1, 1, 1, m.nb_erb],
        "feat_spec": [1, 2, 1, m.nb_df],
        "h": [1, sum(layers * hidden for layers, hidden in f.grus.values()), 1, 1],
        "s_erb": [1, past, 1, m.nb_erb],
        "s_spec": [1, 2 * past, 1, m.nb_df],
    }
    assert {k: inputs.get(k) for k in expected} == expected
    others = {k: v for k, v in inputs.items() if k not in expected}
    assert all(k.startswith(("s_fir", "s_ctx")) for k in others)
    # one state for each time convolution
    assert len(others) + 2 == len(f.time_kernels)
    assert outputs == {
        "lsnr": [1, 1, 1, 1], "mask": [1, 1, 1, m.nb_erb], "coefs": [1, 2 * m.df_order, 1, m.nb_df],
        **{f"{k}_out": v for k, v in inputs.items() if not k.startswith("feat_")},
    }  # fmt: skip
    assert list(outputs)[:3] == ["lsnr", "mask", "coefs"]
    assert list(outputs)[3:] == [f"{k}_out" for k in inputs if not k.startswith("feat_")]


@pytest.mark.parametrize("name", ["dfn3-h0", "lean"])
def test_doing_it_again_gives_the_same_bytes(name):
    """It leaves its source as it was; whether the states are exposed there does not matter."""
    graph = oracle.merged(name)
    before = export_graph(graph)
    first = canonical_bytes(graph)
    assert export_graph(graph) == before
    assert canonical_bytes(graph) == first
    expose_gru_state(graph)
    assert canonical_bytes(graph) == first


def count(data):
    """Nodes and multiply-accumulates, counted here: only convolutions multiply by weights."""
    model = onnx.shape_inference.infer_shapes(onnx.load_from_string(data))
    shapes = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*model.graph.value_info, *model.graph.output)
    }
    weights = {w.name: w.dims for w in model.graph.initializer}
    products = [
        int(np.prod(shapes[node.output[0]]) * np.prod(weights[node.input[1]][1:]))
        for node in model.graph.node
        if node.op_type == "Conv"
    ]
    return len(model.graph.node), sum(products)


@pytest.mark.parametrize(
    ("name", "nodes", "macs", "state"),
    [("dfn3", 156, 3_115_008, 5568), ("dfn2", 154, 3_285_760, 5568), ("dfn2-ll", 154, 3_162_880, 3648)],
)
def test_size_at_the_official_widths(name, nodes, macs, state):
    data = oracle.full_size(name).graphs(RECIPE)["combined_canonical"]
    inputs, _ = oracle.ports(data)
    assert count(data) == (nodes, macs)
    assert sum(np.prod(shape) for name, shape in inputs.items() if not name.startswith("feat_")) == state


@pytest.mark.slow
@pytest.mark.parametrize(("name", "nodes", "macs"), [("dfn3", 156, 3_115_008), ("dfn2", 154, 3_285_760)])
def test_size_of_official_models(name, nodes, macs):
    assert count(graph_of(f"official {name}")) == (nodes, macs)


def test_operators_of_dfn3_at_the_official_widths():
    assert oracle.operators(oracle.full_size("dfn3").graphs(RECIPE)["combined_canonical"]) == {
        "Conv": 51, "Relu": 20, "Add": 19, "Sigmoid": 12, "Mul": 11, "Concat": 9, "Slice": 9, "Reshape": 8,
        "Transpose": 6, "Tanh": 6, "Sub": 5,
    }  # fmt: skip


# -- convolutions -----------------------------------------------------------------------------------


def time_conv(node_attrs, weight, bias=None):
    inputs = [variable("x"), constant("w", weight, np.float32)]
    inputs += [] if bias is None else [constant("b", bias, np.float32)]
    return gs.Node("Conv", "conv", node_attrs, inputs, [variable("y")])


def test_dense_weights_are_the_grouped_ones_with_zeros_between():
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((6, 2, 3, 3))
    x = rng.standard_normal((1, 4, 5, 8)).astype(np.float32)
    conv = TimeConv.read(time_conv({"group": 2, "pads": [0, 1, 0, 1]}, weight))
    want = np.concatenate(
        [naive_conv(x[:, 2 * g : 2 * g + 2], weight[3 * g : 3 * g + 3]) for g in (0, 1)], axis=1
    )
    np.testing.assert_allclose(naive_conv(x, conv.dense()), want, atol=1e-6)


def naive_conv(x, weight):
    """Valid in time, padded by one in frequency, by its definition."""
    _, _, taps, width = weight.shape
    x = np.pad(x, ((0, 0), (0, 0), (0, 0), (1, 1)))
    T, F = x.shape[2] - taps + 1, x.shape[3] - width + 1
    y = np.zeros((1, len(weight), T, F))
    for o, t, f in np.ndindex(y.shape[1:]):
        y[0, o, t, f] = (x[0, :, t : t + taps, f : f + width] * weight[o]).sum()
    return y


# -- refusals -----------------------------------------------------------------------------------------


def refused(change, match, name="dfn3", op=None):
    graph = oracle.merged(name)
    change(oracle.first(graph, op) if op else graph)
    with pytest.raises(UnsupportedGraph, match=match):
        canonicalise(graph)


@pytest.mark.parametrize("op", ["Softplus", "Erf", "LeakyRelu"])
def test_refuses_an_operator_without_a_canonical_form(op):
    def change(node):
        node.op = op

    refused(change, f"canonicalise: no canonical form for {op} 'enc/", op="Sigmoid")


def test_refuses_a_gru_that_resets_before_the_product():
    def change(node):
        node.attrs["linear_before_reset"] = 0

    refused(change, "canonicalise: GRU 'enc/.*resets before the matrix product", op="GRU")


@pytest.mark.parametrize(
    "attributes",
    [
        {"strides": [1, 1]},
        {"strides": [2, 2]},
        {"output_padding": [0, 0]},
        {"pads": [0, 0, 0, 0]},
        {"dilations": [1, 2]},
    ],
    ids=str,
)
def test_refuses_a_transposed_convolution_of_another_form(attributes):
    graph = oracle.merged("dfn3")
    node = oracle.first(graph, "ConvTranspose")
    node.attrs.update(attributes)
    # shapes no longer fit further on, so the node itself is asked
    from dfstream.patches.canonical_conv import polyphase

    with pytest.raises(
        UnsupportedGraph, match=r"canonicalise: ConvTranspose 'erb_dec/.*not an upsampling by two"
    ):
        polyphase(node)


def test_refuses_a_wider_transposed_convolution():
    graph = oracle.merged("dfn3")
    node = oracle.first(graph, "ConvTranspose")
    weight = node.inputs[1].values
    node.inputs[1] = constant("wide", np.concatenate([weight, weight[..., :2]], -1), np.float32)
    node.attrs.update(kernel_shape=[1, 5], pads=[0, 2, 0, 2])
    with pytest.raises(UnsupportedGraph, match=r"canonicalise: ConvTranspose .*not an upsampling by two"):
        canonicalise(graph)


@pytest.mark.parametrize(
    "attributes", [{"dilations": [2, 1]}, {"pads": [2, 1, 0, 1]}, {"auto_pad": "SAME_UPPER"}], ids=str
)
def test_refuses_a_convolution_that_makes_its_own_past(attributes):
    graph = oracle.merged("dfn3")
    node = oracle.first(graph, "Conv")
    node.attrs.update(attributes)
    with pytest.raises(
        UnsupportedGraph, match=rf"canonicalise: Conv '{node.name}' is not a plain causal convolution"
    ):
        TimeConv.read(node)


def test_refuses_a_past_that_is_not_the_kernels():
    def change(node):
        node.inputs[1] = constant("amounts", [0, 0, 3, 0, 0, 0, 0, 0])

    refused(change, "canonicalise: Conv 'enc/.* spans 3 frames after a Pad of 3", op="Pad")


def test_refuses_another_einsum():
    def change(node):
        node.attrs["equation"] = "btgi,gih->btgh".replace("h", "o")

    refused(change, "canonicalise: no canonical form for Einsum", op="Einsum")


def test_refuses_a_product_with_something_computed_in_a_square_of_the_signal():
    def change(graph):
        node = oracle.first(graph, "Mul")
        node.inputs[1] = constant("odd", np.ones((1, 7, 1)), np.float32)

    refused(change, "canonicalise: Mul 'enc/.* with a constant of shape")
