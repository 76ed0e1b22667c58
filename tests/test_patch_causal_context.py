"""cache_causal_context, and the mode made with it: incremental, exact for any number of frames a call."""

import platform

import numpy as np
import pytest
from dfstream.patches.causal_context import cache_causal_context
from dfstream.patches.graph import constant, export_graph
from dfstream.patches.gru_state import expose_gru_state
from hypothesis import given, settings

import oracle
from conftest import SYNTHETIC
from dfstream.errors import UnsupportedGraph
from dfstream.modes.base import find_mode

RECIPE = find_mode("incremental").recipe()

#: Three frames take the same path through the runtime's matrix product as the whole does; on x86-64 only.
SAME_BYTES = platform.machine().lower() in ("x86_64", "amd64")


@oracle.every_model()
@pytest.mark.parametrize("frames", oracle.CHUNKS)
def test_streamed_equals_the_export_in_one_run(name, frames):
    c = oracle.case(name)
    got = oracle.streamed(c.graphs(RECIPE), c.feats, frames)
    oracle.check_equal(got, c.want)
    if SAME_BYTES and frames not in (1, 2):
        assert oracle.errors(got, c.want) == {"lsnr": 0, "m": 0, "coefs": 0}


@oracle.every_model()
def test_the_first_frames_are_exact(name):
    c = oracle.case(name)
    got = oracle.streamed(c.graphs(RECIPE), c.feats, 1)
    oracle.check_equal(got, c.want, frames=slice(0, 9))


@pytest.mark.parametrize("name", ["dfn3", "dfn2-ll", "dfn3-ll", "lean"])
@settings(max_examples=10)
@given(sizes=oracle.splits(oracle.FRAMES))
def test_any_split_of_a_stream_equals_one_run(name, sizes):
    c = oracle.case(name)
    oracle.check_equal(oracle.streamed(c.graphs(RECIPE), c.feats, sizes), c.want)


@pytest.mark.parametrize("name", SYNTHETIC)
def test_inputs_and_outputs(name):
    c = oracle.case(name)
    m, f = c.model.config, c.model.facts
    inputs, outputs = oracle.ports(c.graphs(RECIPE)[0])
    contexts = [n for n in inputs if n.startswith("ctx_")]
    layers = {section: [count, "B", hidden] for section, (count, hidden) in f.grus.items()}
    states = {"h0": layers["enc"], "erb_h0": layers["erb"], "df_h0": layers["df"]}
    assert list(inputs)[:2] == ["feat_erb", "feat_spec"]
    assert inputs["feat_erb"] == ["B", 1, "T", m.nb_erb]
    assert inputs["feat_spec"] == ["B", 2, "T", m.nb_df]
    assert {n: inputs[n] for n in inputs if n.endswith("h0")} == states
    assert inputs["ctx_erb"] == ["B", 1, 2, m.nb_erb]
    assert inputs["ctx_spec"] == ["B", 2, 2, m.nb_df]
    assert len(contexts) == len(f.time_kernels)
    if name != "dfn3-ll":
        path = f.time_kernels[2:]
        assert [inputs[n] for n in contexts[2:]] == [["B", 8, k - 1, m.nb_df] for k in path]
        assert contexts == ["ctx_erb", "ctx_spec", "ctx_c0"][: 2 + len(path)]
    assert list(outputs)[:3] == ["lsnr", "m", "coefs"]
    # states come out in the order they go in
    assert list(outputs)[3:] == [oracle.after(n) for n in list(inputs)[2:]]
    assert all(outputs[oracle.after(n)] == inputs[n] for n in list(inputs)[2:])
    assert "Pad" not in oracle.operators(c.graphs(RECIPE)[0])


def test_a_longer_context_takes_the_plain_name():
    """In dfn3-ll two convolutions continue c0: the pathway by four frames, df_conv1 by one."""
    inputs, _ = oracle.ports(oracle.case("dfn3-ll").graphs(RECIPE)[0])
    assert inputs["ctx_c0"] == ["B", 8, 4, 96]
    assert inputs["ctx_c0_2"] == ["B", 8, 1, 96]


@pytest.mark.parametrize("name", SYNTHETIC)
def test_twice_changes_nothing(name):
    graph = oracle.merged(name)
    assert len(oracle.twice(graph, cache_causal_context)) >= 2


def test_order_of_patches_does_not_matter():
    c = oracle.case("dfn3")
    graph = oracle.merged("dfn3")
    cache_causal_context(graph)
    expose_gru_state(graph)
    oracle.check_equal(oracle.streamed([export_graph(graph)], c.feats, 7), c.want)


# -- refusals -----------------------------------------------------------------------------------------


def refused(change, match, op="Pad"):
    graph = oracle.merged("dfn3")
    change(oracle.first(graph, op))
    with pytest.raises(UnsupportedGraph, match=match):
        cache_causal_context(graph)


def set_amounts(*amounts):
    def change(node):
        node.inputs[1] = constant("amounts", amounts)

    return change


@pytest.mark.parametrize(
    "amounts",
    [
        pytest.param((0, 0, 1, 0, 0, 0, 1, 0), id="future"),
        pytest.param((0, 0, 0, 0, 0, 0, 2, 0), id="future only"),
        pytest.param((0, 0, -1, 0, 0, 0, 1, 0), id="shift"),
        pytest.param((0, 0, 0, 2, 0, 0, 0, 0), id="frequency"),
        pytest.param((0, 0, 2, 1, 0, 0, 0, 1), id="time and frequency"),
        pytest.param((0, 1, 2, 0, 0, 0, 0, 0), id="channels"),
    ],
)
def test_refuses_a_pad_of_other_than_past_frames(amounts):
    refused(set_amounts(*amounts), r"Pad 'enc/.*zeros before the first frame only")


@pytest.mark.parametrize("mode", ["reflect", "edge"])
def test_refuses_a_pad_of_other_than_zeros_by_mode(mode):
    refused(lambda node: node.attrs.update(mode=mode), "zeros before the first frame only")


def test_refuses_a_pad_of_other_than_zeros_by_value():
    def change(node):
        node.inputs[2] = constant("value", 0.5, np.float32)

    refused(change, "zeros before the first frame only")


def test_refuses_a_pad_with_a_computed_value():
    def change(node):
        node.inputs[2] = node.inputs[0]

    refused(change, "not constants")


def test_refuses_a_pad_with_axes_of_its_own():
    def change(node):
        node.inputs.append(constant("axes", [0, 1, 3, 2]))

    refused(change, "zeros before the first frame only")


def test_refuses_a_pad_with_computed_amounts():
    def change(node):
        node.inputs[1] = node.inputs[0]

    refused(change, r"Pad 'enc/.*its amounts are not constants")


def test_refuses_a_pad_that_feeds_no_convolution():
    graph = oracle.merged("dfn3")
    pad = oracle.first(graph, "Pad")
    pad.outputs[0].outputs[0].op = "MaxPool"
    with pytest.raises(UnsupportedGraph, match=r"feeds MaxPool, expected a Conv"):
        cache_causal_context(graph)


@pytest.mark.parametrize(
    "attributes",
    [
        {"strides": [2, 1]},
        {"dilations": [2, 1]},
        {"pads": [2, 1, 0, 1]},
        {"pads": [0, 1, 1, 1]},
        {"auto_pad": "SAME_UPPER"},
    ],
    ids=str,
)
def test_refuses_a_convolution_that_makes_its_own_past(attributes):
    """As an optimiser leaves it that moves a Pad into its Conv: the zeros would come back in every call."""
    refused(
        lambda node: node.attrs.update(attributes), "Conv 'enc/.*strides, dilates or pads along time", "Conv"
    )
