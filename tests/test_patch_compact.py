"""compact: one frame a call as in the canonical graph, but with whole GRUs and a state for each section."""

import numpy as np
import onnx
import pytest
from dfstream.patches.compact import compact
from dfstream.patches.fold import fold_constants
from dfstream.patches.graph import constant, export_graph
from dfstream.patches.gru_state import expose_gru_state
from dfstream.patches.recipe import Recipe, read_metadata

import oracle
from conftest import SYNTHETIC
from dfstream.errors import UnsupportedGraph
from dfstream.modes.base import find_mode
from dfstream.patching import canonical_recipe

RECIPE = Recipe("compact", ("combined_compact",), (fold_constants,), compact)
INCREMENTAL = find_mode("incremental").recipe()
ALLOWED = {
    "Add", "Concat", "Conv", "GRU", "Identity", "Mul", "Relu", "Reshape", "Sigmoid", "Slice", "Tanh",
    "Transpose",
}  # fmt: skip


def graph_of(name):
    return oracle.case(name).model.graphs(RECIPE)["combined_compact"]


def compact_bytes(graph):
    return {stem: export_graph(made) for stem, made in compact(graph).items()}


def frame_by_frame(graph, feats):
    """Run the compact graph from zero states; returns results in the export's layout, and the last states."""
    stepper, found = oracle.Stepper(graph), []
    for frame in oracle.cut(feats, 1):
        out = stepper(frame)
        found.append({**out, "lsnr": out["lsnr"][:, 0], "coefs": out["coefs"].transpose(0, 2, 3, 1)})
    return oracle.join(found), stepper.states


@oracle.every_model(quick=oracle.FEW)
def test_stepped_equals_the_incremental_graph_and_the_export(name):
    c = oracle.case(name)
    got, _ = frame_by_frame(graph_of(name), c.feats)
    oracle.check_equal(got, oracle.streamed(c.graphs(INCREMENTAL), c.feats, 1))
    oracle.check_equal(got, c.want)
    oracle.check_equal(got, c.want, frames=slice(0, 9))


@pytest.mark.parametrize("name", SYNTHETIC)
def test_states_of_grus_are_those_of_the_incremental_graph(name):
    """Under the same names, layer by layer: one can be taken up by the other."""
    c = oracle.case(name)
    _, states = frame_by_frame(graph_of(name), c.feats)
    stepper = oracle.Stepper(*c.graphs(INCREMENTAL))
    stepper(c.feats)
    grus = {key: value for key, value in stepper.states.items() if key.endswith("h0")}
    assert set(grus) == {"h0", "erb_h0", "df_h0"}
    for key, value in grus.items():
        assert states[key].shape == value.shape
        np.testing.assert_allclose(states[key], value, atol=1e-5)


@oracle.every_model()
def test_operators(name):
    """What `dfstream.net` has kernels for; as many GRUs as the network has layers."""
    counts = oracle.operators(graph_of(name))
    assert set(counts) <= ALLOWED
    layers = oracle.case(name).model.facts.grus.values()
    assert counts["GRU"] == sum(count for count, _ in layers)


@pytest.mark.parametrize("name", SYNTHETIC)
def test_states_and_results(name):
    c = oracle.case(name)
    m, f = c.model.config, c.model.facts
    inputs, outputs = oracle.ports(graph_of(name))
    past = f.time_kernels[0] - 1
    hidden = {
        state: f.grus[section] for section, state in (("enc", "h0"), ("erb", "erb_h0"), ("df", "df_h0"))
    }
    expected = {
        "feat_erb": [1, 1, 1, m.nb_erb],
        "feat_spec": [1, 2, 1, m.nb_df],
        **{state: [layers, 1, size] for state, (layers, size) in hidden.items()},
        "s_erb": [1, past, 1, m.nb_erb],
        "s_spec": [1, 2 * past, 1, m.nb_df],
    }
    assert {k: inputs.get(k) for k in expected} == expected
    others = {k: v for k, v in inputs.items() if k not in expected}
    assert all(k.startswith(("s_fir", "s_ctx")) for k in others)
    assert len(others) + 2 == len(f.time_kernels)
    states = {oracle.after(k): v for k, v in inputs.items() if not k.startswith("feat_")}
    results = {"lsnr": [1, 1, 1, 1], "m": [1, 1, 1, m.nb_erb], "coefs": [1, 2 * m.df_order, 1, m.nb_df]}
    assert outputs == {**results, **states}
    assert list(outputs)[:3] == ["lsnr", "m", "coefs"]


@pytest.mark.parametrize("name", SYNTHETIC)
def test_every_state_belongs_to_a_part(name):
    data = graph_of(name)
    sections = read_metadata(onnx.load_from_string(data), "combined_compact").sections
    inputs, _ = oracle.ports(data)
    assert set(sections) == {k for k in inputs if not k.startswith("feat_")}
    own = {"h0": "enc", "erb_h0": "erb", "df_h0": "df", "s_erb": "enc", "s_spec": "enc"}
    assert {k: sections[k] for k in own} == own
    assert set(sections.values()) == {"enc", "erb", "df"}


@pytest.mark.parametrize("name", SYNTHETIC)
def test_every_tensor_is_static(name):
    model = onnx.load_from_string(graph_of(name))
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    for value in (*inferred.input, *inferred.output, *inferred.value_info):
        sizes = [d.dim_value for d in value.type.tensor_type.shape.dim]
        assert sizes, value.name
        assert all(size > 0 for size in sizes), value.name


def test_only_the_grus_differ_from_the_canonical_graph():
    for name in ("dfn3", "lean"):
        ours = oracle.operators(graph_of(name))
        theirs = oracle.operators(oracle.case(name).model.graphs(canonical_recipe())["combined_canonical"])
        grus = ours["GRU"]
        assert theirs["Conv"] - ours["Conv"] == 4 * grus
        assert theirs["Relu"] == ours["Relu"]
        assert theirs["Sigmoid"] - ours["Sigmoid"] == 2 * grus
        assert theirs["Tanh"] - ours["Tanh"] == grus


@pytest.mark.parametrize("name", ["dfn3-h0", "dfn2", "lean"])
def test_doing_it_again_gives_the_same_bytes(name):
    """It leaves its source as it was; whether the states are exposed there does not matter."""
    graph = oracle.merged(name)
    before = export_graph(graph)
    first = compact_bytes(graph)
    assert list(first) == ["combined_compact"]
    assert export_graph(graph) == before
    assert compact_bytes(graph) == first
    expose_gru_state(graph)
    assert compact_bytes(graph) == first


def test_grus_keep_their_weights_to_the_bit():
    """No algebra on them: what a backend reduces or keeps is the export's own."""
    source = {
        node.name: [t.values for t in node.inputs[1:4]]
        for node in oracle.merged("dfn3").nodes
        if node.op == "GRU"
    }
    assert len(source) == 5
    (graph,) = compact(oracle.merged("dfn3")).values()
    for node in graph.nodes:
        if node.op == "GRU":
            for mine, theirs in zip(node.inputs[1:4], source.pop(node.name), strict=True):
                np.testing.assert_array_equal(mine.values, theirs)
    assert not source


def test_grus_without_biases():
    """As the exporter writes ``bias=False``: the input is left out."""
    graph = oracle.merged("dfn3")
    for node in graph.nodes:
        if node.op == "GRU":
            node.inputs[3] = constant(f"{node.name}/none", np.zeros(node.inputs[3].shape), np.float32)
    (zeros,) = compact_bytes(graph).values()
    for node in graph.nodes:
        if node.op == "GRU":
            node.inputs[3] = type(graph.inputs[0]).empty()
    (without,) = compact_bytes(graph).values()
    feats = oracle.noise(oracle.case("dfn3").model.config, 12, seed=1)
    (one, _), (other, _) = frame_by_frame(zeros, feats), frame_by_frame(without, feats)
    oracle.check_equal(one, other)


# -- refusals ------------------------------------------------------------------------------------------------


def refused(change, match, op):
    graph = oracle.merged("dfn3")
    change(oracle.first(graph, op))
    with pytest.raises(UnsupportedGraph, match=match):
        compact(graph)


@pytest.mark.parametrize("op", ["Softplus", "Erf", "LeakyRelu"])
def test_refuses_an_operator_without_such_a_form(op):
    def change(node):
        node.op = op

    refused(change, f"no canonical form for {op} 'enc/", "Sigmoid")


def test_refuses_a_gru_that_resets_before_the_product():
    def change(node):
        node.attrs["linear_before_reset"] = 0

    refused(change, "compact: GRU 'enc/.*resets before the matrix product", "GRU")


def test_refuses_a_gru_that_runs_backwards():
    def change(node):
        node.attrs["direction"] = "reverse"

    refused(change, "GRU 'enc/.*not a forward one", "GRU")


def test_refuses_other_activations():
    def change(node):
        node.attrs["activations"] = ["HardSigmoid", "Tanh"]

    refused(change, "GRU 'enc/.*activations of its own", "GRU")
