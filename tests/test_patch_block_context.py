"""carry_lean_context, expose_gru_layers, plain_shapes: blocks of frames on the states of the lean graph."""

import pytest
from dfstream.patches.batch import free_batch
from dfstream.patches.block_context import carry_lean_context
from dfstream.patches.fold import fold_constants
from dfstream.patches.graph import consumers, time_pad
from dfstream.patches.gru_state import expose_gru_layers
from dfstream.patches.lean import lean_recipe
from dfstream.patches.plain_shapes import plain_shapes
from dfstream.patches.recipe import Recipe

import oracle
from conftest import SYNTHETIC
from dfstream.errors import UnsupportedGraph

RECIPE = Recipe(
    "blocks", ("blocks",), (fold_constants, carry_lean_context, expose_gru_layers, free_batch, plain_shapes)
)


def blocks_of(name):
    return oracle.case(name).model.patch(RECIPE).files["blocks"]


def states(data):
    inputs, outputs = oracle.ports(data)
    return (
        {name: shape for name, shape in inputs.items() if not name.startswith("feat_")},
        {name: shape for name, shape in outputs.items() if name not in oracle.RESULTS},
    )


@oracle.every_model()
def test_its_states_are_those_of_the_lean_graph(name):
    (lean,) = oracle.case(name).model.graphs(lean_recipe()).values()
    ours, theirs = states(blocks_of(name)), states(lean)
    assert ours == theirs
    assert len(ours[0]) == len(ours[1]) > 4


@oracle.every_model(quick=oracle.FEW)
@pytest.mark.parametrize("frames", [1, 2, 3, 7, 100, None])
def test_any_number_of_frames_a_call_equals_the_export(name, frames):
    c = oracle.case(name)
    oracle.check_equal(oracle.streamed([blocks_of(name)], c.feats, frames), c.want)


@pytest.mark.parametrize("name", ["dfn3", "dfn2", "dfn2-h0", "lean"])
def test_no_sizes_are_worked_out_where_constants_do(name):
    """Of the exports' shape arithmetic nothing is left; the sums of a long convolution need one size."""
    operators = oracle.operators(blocks_of(name))
    assert operators.get("Shape", 0) <= 1
    assert not {"ConstantOfShape", "Gather", "Unsqueeze", "Expand"} & set(operators)
    assert (
        oracle.operators(oracle.case(name).model.graphs(lean_recipe())["combined_lean"])["GRU"]
        == operators["GRU"]
    )


def test_a_graph_without_arithmetic_of_shapes_stays_as_it_is():
    graph = oracle.merged("lean")
    assert plain_shapes(graph) == []
    assert carry_lean_context(graph)
    assert carry_lean_context(graph) == []


@pytest.mark.parametrize("name", SYNTHETIC)
def test_states_that_an_export_has_are_replaced(name):
    graph = oracle.merged(name)
    sites = expose_gru_layers(graph)
    facts = oracle.case(name).model.facts
    assert len(sites) == sum(layers for layers, _ in facts.grus.values())
    named = [tensor.name for tensor in graph.inputs if tensor.name not in ("feat_erb", "feat_spec")]
    assert named == [site.split(" ")[0] for site in sites]


def test_refuses_a_pad_that_does_not_fit_its_convolution():
    graph = oracle.merged("dfn3")
    pad = next(node for node in graph.nodes if time_pad(node))
    amounts = pad.inputs[1].values.copy()
    amounts[2] += 1
    pad.inputs[1].values = amounts
    conv = consumers(pad.outputs[0])[0]
    with pytest.raises(UnsupportedGraph, match=f"{conv.name}.* spans 3 frames after a Pad of 3"):
        carry_lean_context(graph)
