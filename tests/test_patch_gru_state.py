"""expose_gru_state: names and shapes of the states, what it leaves alone, what it refuses."""

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from dfstream.patches.graph import constant, export_graph, sections, variable
from dfstream.patches.gru_state import expose_gru_state, find_grus

import oracle
from conftest import SYNTHETIC
from dfstream.errors import UnsupportedGraph

X, W, R, BIAS, LENGTHS, INITIAL = range(6)


@oracle.every_model()
def test_exposes_one_state_per_section(name):
    model = oracle.case(name).model
    graph = oracle.merged(name)
    before = {t.name for t in graph.inputs}
    expose_gru_state(graph)
    inputs, outputs = oracle.ports(export_graph(graph))
    for section, state in (("enc", "h0"), ("erb", "erb_h0"), ("df", "df_h0")):
        layers, hidden = model.facts.grus[section]
        assert inputs[state] == [layers, "B", hidden]
        assert outputs[oracle.after(state)] == [layers, "B", hidden]
    assert set(inputs) - before == {"h0", "erb_h0", "df_h0"} - before


@pytest.mark.parametrize("name", SYNTHETIC)
def test_twice_changes_nothing(name):
    sites = oracle.twice(oracle.merged(name), expose_gru_state)
    assert len(sites) == {"dfn3-h0": 0, "dfn2-h0": 2}.get(name, 3)


def test_layers_are_stacked_in_the_order_of_the_signal():
    """Each layer's own weights decide which slice of the state it must read."""
    graph = oracle.merged("dfn3-ll")
    order = [gru.node.name for gru in find_grus(graph)["df"]]
    expose_gru_state(graph)
    reads = {}
    for node in graph.nodes:
        if node.op == "GRU" and node.name in order:
            start = node.inputs[INITIAL].inputs[0].inputs[1].values
            reads[node.name] = int(start[0])
    assert [reads[name] for name in order] == [0, 1, 2]
    final = next(t for t in graph.outputs if t.name == "df_h1").inputs[0]
    assert [t.inputs[0].name for t in final.inputs] == order


def test_a_carried_state_is_the_state_of_the_whole_run():
    """The recurrent layers of a decoder alone, in two calls."""
    emb = oracle.whole_tensors("dfn3", oracle.noise(oracle.case("dfn3").model.config, 12, seed=1))["emb"]
    one, two = (np.ascontiguousarray(emb[:, part]) for part in (slice(0, 5), slice(5, None)))
    graph = oracle.parts("dfn3")["erb_dec"]
    graph.outputs = [[node for node in graph.nodes if node.op == "GRU"][-1].outputs[0]]
    graph.outputs[0].name = "m"  # by its result the section is found
    graph.outputs[0].dtype, graph.outputs[0].shape = np.dtype(np.float32), ["T", 1, "B", 32]
    graph.cleanup()
    want = oracle.run(export_graph(graph), {"emb": emb})["m"]
    assert expose_gru_state(graph) == ["erb_h0 [2, B, 32]"]
    data = export_graph(graph)
    begun = oracle.run(data, {"emb": one})
    resumed = oracle.run(data, {"emb": two, "erb_h0": begun["erb_h1"]})
    np.testing.assert_allclose(np.concatenate([begun["m"], resumed["m"]]), want, atol=1e-6)
    assert np.abs(oracle.run(data, {"emb": two})["m"] - want[5:]).max() > 1e-2  # without it, it shows


def test_sections_are_found_by_structure():
    graph = oracle.merged("dfn3")
    found = sections(graph)
    for node in graph.nodes:
        owner = {"enc": "enc", "erb_dec": "erb", "df_dec": "df"}[node.name.split("/")[0]]
        for section, members in found.items():
            assert (id(node) in members) == (section == owner)


def test_empty_and_missing_first_states_are_zeros():
    graph = oracle.merged("dfn3")
    grus = [node for node in graph.nodes if node.op == "GRU"]
    grus[0].inputs[INITIAL] = gs.Variable.empty()
    for gru in grus[1:]:
        del gru.inputs[INITIAL]
    graph.cleanup()
    assert len(expose_gru_state(graph)) == 3
    c = oracle.case("dfn3")
    # the contexts are still those of one call
    oracle.check_equal(oracle.streamed([export_graph(graph)], c.feats, None), c.want)


# -- refusals -----------------------------------------------------------------------------------------


def refused(change, match, name="dfn3"):
    graph = oracle.merged(name)
    change(graph, oracle.first(graph, "GRU"))
    with pytest.raises(UnsupportedGraph, match=match):
        expose_gru_state(graph)


def test_refuses_a_bidirectional_gru():
    for direction in ("bidirectional", "reverse"):
        refused(
            lambda _, gru, d=direction: gru.attrs.update(direction=d),
            "GRU 'enc/.*not a forward one: it cannot stream",
        )


@pytest.mark.parametrize(
    "attributes", [{"layout": 1}, {"clip": 3.0}, {"activations": ["Relu", "Tanh"]}], ids=str
)
def test_refuses_a_gru_of_its_own_kind(attributes):
    refused(lambda _, gru: gru.attrs.update(attributes), "GRU 'enc/.*layout, clip or activations")


def test_refuses_sequence_lengths():
    def change(_, gru):
        gru.inputs[LENGTHS] = constant("lengths", [7], np.int32)

    refused(change, "GRU 'enc/.*sequence lengths")


def test_refuses_computed_weights():
    def change(_, gru):
        gru.inputs[R] = gru.inputs[X]

    refused(change, "GRU 'enc/.*weights are not constants")


def test_refuses_a_first_state_that_is_computed():
    def change(graph, gru):
        mean = variable("mean")
        graph.nodes.append(gs.Node("ReduceMean", "mean", {"axes": [0]}, [gru.inputs[X]], [mean]))
        gru.inputs[INITIAL] = mean

    refused(change, "GRU 'enc/.*neither zero nor an input")


@pytest.mark.parametrize("between", ["Slice", "Identity"])
def test_refuses_a_first_state_cut_out_of_the_signal(between):
    """Features are an input of the graph too, but no state."""

    def change(graph, gru):
        cut = variable("cut")
        features = next(t for t in graph.inputs if t.name == "feat_erb")
        graph.nodes.append(gs.Node(between, "cut", {}, [features], [cut]))
        gru.inputs[INITIAL] = cut

    refused(change, "GRU 'enc/.*neither zero nor an input")


def test_refuses_a_first_state_that_is_a_constant_of_other_than_zeros():
    def change(_, gru):
        gru.inputs[INITIAL] = constant("warm", np.full((1, 1, 32), 0.1), np.float32)

    refused(change, "GRU 'enc/.*neither zero nor an input")


def test_refuses_a_first_state_filled_with_other_than_zeros():
    def change(_, gru):
        fill = gru.inputs[INITIAL].inputs[0]
        assert fill.op == "ConstantOfShape"
        fill.attrs["value"] = constant("one", [1], np.float32)

    refused(change, "GRU 'enc/.*neither zero nor an input")


def test_refuses_layers_of_different_sizes():
    graph = oracle.merged("lean")
    second = [gru.node for gru in find_grus(graph)["df"]][1]
    size = 16
    second.attrs["hidden_size"] = size
    second.inputs[W] = constant("w", np.zeros((1, 3 * size, 24)), np.float32)
    second.inputs[R] = constant("r", np.zeros((1, 3 * size, size)), np.float32)
    with pytest.raises(UnsupportedGraph, match=r"df_h0: layers of different hidden sizes \[16, 24\]"):
        expose_gru_state(graph)


def test_refuses_a_section_that_is_exposed_by_half():
    graph = oracle.merged("dfn3")
    grus = [gru.node for gru in find_grus(graph)["erb"]]
    state = variable("half_h0", [1, "B", 32])
    graph.inputs.append(state)
    grus[0].inputs[INITIAL] = state
    with pytest.raises(
        UnsupportedGraph, match=r"some GRUs of erb have their state exposed and some have not"
    ):
        expose_gru_state(graph)


def test_refuses_a_graph_without_a_gru():
    graph = oracle.merged("dfn3")
    graph.outputs = [next(t for t in graph.tensors().values() if t.name == "e0")]
    graph.cleanup()
    with pytest.raises(UnsupportedGraph, match=r"no GRU: not a DeepFilterNet"):
        expose_gru_state(graph)
