"""split_encoder, and the mode made with it: streaming, four graphs with states of their own."""

import numpy as np
import pytest
from dfstream.patches.causal_context import cache_causal_context
from dfstream.patches.graph import export_graph
from dfstream.patches.gru_state import expose_gru_state
from dfstream.patches.split_encoder import split_encoder
from hypothesis import given, settings

import oracle
from dfstream.errors import UnsupportedGraph
from dfstream.modes.base import find_mode

RECIPE = find_mode("streaming").recipe()
STEMS = ("enc_conv_streaming", "enc_gru_streaming", "erb_dec_streaming", "df_dec_streaming")


def prepared(name):
    graph = oracle.merged(name)
    expose_gru_state(graph)
    cache_causal_context(graph)
    return graph


@oracle.every_model(quick=oracle.FEW)
@pytest.mark.parametrize("frames", oracle.CHUNKS)
def test_streamed_equals_the_export_in_one_run(name, frames):
    c = oracle.case(name)
    oracle.check_equal(oracle.streamed(c.graphs(RECIPE), c.feats, frames), c.want)


@pytest.mark.parametrize("name", ["dfn3-ll", "dfn2", "lean"])
@settings(max_examples=10)
@given(sizes=oracle.splits(oracle.FRAMES))
def test_any_split_of_a_stream_equals_one_run(name, sizes):
    c = oracle.case(name)
    oracle.check_equal(oracle.streamed(c.graphs(RECIPE), c.feats, sizes), c.want)


@oracle.every_model()
def test_four_graphs_compute_what_the_one_of_incremental_does(name):
    c = oracle.case(name)
    one = oracle.streamed(c.graphs(find_mode("incremental").recipe()), c.feats, 7)
    assert oracle.errors(oracle.streamed(c.graphs(RECIPE), c.feats, 7), one) == {
        "lsnr": 0,
        "m": 0,
        "coefs": 0,
    }


def test_the_parts_of_a_hop_can_be_left_out():
    """A decoder that was not run for a while has an old state, the encoder does not depend on it."""
    c = oracle.case("dfn3")
    conv, gru, *_ = c.graphs(RECIPE)
    lsnr, states = [], {}
    for piece in oracle.cut(c.feats, 20):
        for data in (conv, gru):
            out = oracle.run(data, {**piece, **states})
            states |= {
                name: out[oracle.after(name)]
                for name in ("h0", "ctx_erb", "ctx_spec")
                if oracle.after(name) in out
            }
            piece |= out
        lsnr.append(piece["lsnr"])
    assert abs(np.concatenate(lsnr, 1) - c.want["lsnr"]).max() <= oracle.LIMITS["lsnr"]


@pytest.mark.parametrize("name", ["dfn3", "dfn3-h0"])
def test_interfaces(name):
    graphs = oracle.case(name).model.graphs(RECIPE)
    assert tuple(graphs) == STEMS
    conv, gru, erb, df = (
        {**dict(zip(("in", "out"), oracle.ports(graphs[stem]), strict=True))} for stem in STEMS
    )
    maps = {"e0": 32, "e1": 16, "e2": 8, "e3": 8, "c0": 96}
    skips = {k: ["B", 8, "T", width] for k, width in maps.items()}
    contexts = {"ctx_erb": ["B", 1, 2, 32], "ctx_spec": ["B", 2, 2, 96]}

    assert conv["in"] == {"feat_erb": ["B", 1, "T", 32], "feat_spec": ["B", 2, "T", 96], **contexts}
    assert list(conv["out"]) == ["e0", "e1", "e2", "e3", "c0", "emb", "ctx_erb_out", "ctx_spec_out"]
    assert {k: conv["out"][k] for k in skips} == skips
    assert conv["out"]["emb"] == ["B", "T", 32]
    assert gru["in"] == {"emb": ["B", "T", 32], "h0": [1, "B", 32]}
    assert list(gru["out"]) == ["emb_out", "lsnr", "h1"]
    assert gru["out"]["emb_out"] == ["B", "T", 64]
    assert erb["in"] == {
        "emb": ["B", "T", 64], "e3": skips["e3"], "e2": skips["e2"], "e1": skips["e1"], "e0": skips["e0"],
        "erb_h0": [2, "B", 32],
    }  # fmt: skip
    assert list(erb["out"]) == ["m", "erb_h1"]
    assert df["in"] == {
        "emb": ["B", "T", 64],
        "c0": skips["c0"],
        "df_h0": [2, "B", 24],
        "ctx_c0": ["B", 8, 4, 96],
    }
    assert list(df["out"]) == ["coefs", "df_h1", "ctx_c0_out"]


@pytest.mark.parametrize("name", ["dfn3-ll", "dfn3-h0", "lean"])
def test_every_state_is_in_exactly_one_part(name):
    graph = prepared(name)
    states = sorted(t.name for t in graph.inputs if not t.name.startswith("feat_"))
    found = [n for part in split_encoder(graph).values() for n in oracle.ports(export_graph(part))[0]]
    assert sorted(n for n in found if n.endswith("h0") or n.startswith("ctx_")) == states


@pytest.mark.parametrize("name", ["dfn3-ll", "lean"])
def test_splitting_again_gives_the_same_bytes(name):
    """It leaves the merged graph as it was."""
    graph = prepared(name)
    before = export_graph(graph)
    first = {stem: export_graph(part) for stem, part in split_encoder(graph).items()}
    assert export_graph(graph) == before
    assert {stem: export_graph(part) for stem, part in split_encoder(graph).items()} == first


# -- refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["e0", "e1", "e2", "e3", "c0", "emb"])
def test_refuses_a_graph_without_a_tensor_to_cut_at(name):
    graph = prepared("dfn3")
    graph.tensors()[name].name = "renamed"
    with pytest.raises(
        UnsupportedGraph, match=rf"split_encoder: no tensor '{name}' between encoder and decoders"
    ):
        split_encoder(graph)


def test_refuses_an_encoder_whose_gru_does_not_read_a_turned_embedding():
    graph = prepared("dfn3")
    turn = next(n for n in graph.nodes if n.op == "GRU").inputs[0].inputs[0]
    turn.op = "Identity"
    turn.attrs.clear()
    with pytest.raises(UnsupportedGraph, match=r"does not read a transposed embedding"):
        split_encoder(graph)


def test_refuses_a_decoder_that_reads_more_than_it_is_given():
    """A decoder that looked at the features itself could not be run from what the encoder hands on."""
    graph = prepared("dfn3")
    tensors = graph.tensors()
    reader = next(n for n in graph.nodes if n.name.endswith("conv0p/Conv"))
    reader.inputs[0] = tensors["enc/erb_conv0/Conv_output_0"]
    with pytest.raises(UnsupportedGraph, match=r"split_encoder: .* also reads"):
        split_encoder(graph)
