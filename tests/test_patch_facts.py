"""describe: parameters, multiply-accumulates and structure, against a count from the layers of the family."""

import math

import onnx
import pytest
from dfstream.patches.facts import describe, multiply_accumulates
from onnx import numpy_helper

import oracle
import synthetic
from conftest import SYNTHETIC
from dfstream.errors import UnsupportedGraph

#: Weights and multiply-accumulates per hop of the official exports with all they hold, by another count.
OFFICIAL = {"dfn3": (2_134_646, 3_307_648), "dfn2": (2_305_398, 3_478_400), "dfn2_ll": (2_304_758, 3_416_960),
            "dfn3_h0": (2_134_389, 3_307_392), "dfn2_h0": (2_305_398, 3_478_400)}  # fmt: skip

#: That count takes single numbers for weights too: the zeros of three Pads, range and offset of the LSNR.
SCALARS = 5

#: What a decoder computes besides, and nobody uses: a weight for each of 256 hidden values, and a bias.
ALPHA = {"weights": 256 + 1, "macs": 256}


@pytest.mark.slow
@pytest.mark.parametrize("name", OFFICIAL)
def test_official_models(name):
    facts = oracle.case(f"official {name}").model.facts
    parameters, macs = OFFICIAL[name]
    alpha = name != "dfn3_h0"  # exported without it
    assert parameters - facts.parameters == SCALARS + ALPHA["weights"] * alpha
    assert macs - facts.macs_per_hop == ALPHA["macs"] * alpha
    assert facts.macs["GRU"] == 1_966_080
    assert facts.grus == {"enc": (1, 256), "erb": (2, 256), "df": (2, 256)}


@pytest.mark.parametrize(("name", "official"), [("dfn3", "dfn3"), ("dfn2", "dfn2"), ("dfn2-ll", "dfn2_ll")])
def test_synthetic_models_at_the_official_widths(name, official):
    facts = oracle.full_size(name).facts
    parameters, macs = OFFICIAL[official]
    assert facts.parameters == parameters - SCALARS - ALPHA["weights"]
    assert facts.macs_per_hop == macs - ALPHA["macs"]


def count(f):
    """Weights and multiply-accumulates of one hop of a family, layer by layer."""
    weights, macs = [], []

    def conv(channels, kernel, width, stride=1, transposed=False):
        before, after = channels
        groups = math.gcd(before, after) if f.conv_depthwise else 1
        mixed = groups > 1 and max(kernel) > 1
        out = width * stride if transposed else width // stride
        size = before * after // groups * math.prod(kernel)
        weights.append(size + after + after * after * mixed)
        macs.append(size * (width if transposed else out) + after * after * mixed * out)
        return out

    def linear(before, after, groups):
        weights.append(before * after // groups + after * f.lean)
        macs.append(before * after // groups)

    def gru(inputs, hidden, layers):
        for index in range(layers):
            products = 3 * hidden * ((inputs if index == 0 else hidden) + hidden)
            weights.append(products + 6 * hidden)
            macs.append(products)

    def recurrent(inputs, hidden, layers, groups):
        if not f.lean:
            linear(inputs, hidden, groups)
        gru(inputs if f.lean else hidden, hidden, layers)

    ch, taps = f.conv_ch, 2 * f.df_order
    width = conv((1, ch), f.conv_kernel_inp, f.nb_erb)
    for stride in (2, 2, 1):
        width = conv((ch, ch), f.conv_kernel, width, stride)
    conv((2, ch), f.conv_kernel_inp, f.nb_df)
    conv((ch, ch), f.conv_kernel, f.nb_df, 2)
    linear(ch * f.nb_df // 2, f.flat_dim, f.enc_linear_groups)
    recurrent(f.flat_dim * (1 + f.enc_concat), f.emb_hidden_dim, 1, f.linear_groups)
    if not f.projects_skip:
        linear(f.emb_hidden_dim, f.emb_dim, f.linear_groups)
    weights.append(f.emb_dim + 1)  # LSNR
    macs.append(f.emb_dim)

    hidden = f.emb_dim if f.lean else f.emb_hidden_dim
    recurrent(f.emb_dim, hidden, f.emb_num_layers - 1, f.linear_groups)
    linear(hidden, f.flat_dim, f.linear_groups)
    for i in (3, 2, 1, 0):
        conv((ch, ch), (1, 1), f.nb_erb >> min(i, 2))
    width = conv((ch, ch), f.conv_kernel, width)
    for _ in range(2):
        width = conv((ch, ch), f.convt_kernel, width, 2, transposed=True)
    conv((ch, 1), f.conv_kernel, width)

    recurrent(f.emb_dim, f.df_hidden_dim, f.df_num_layers, f.df_linear_groups)
    if f.df_gru_skip == "groupedlinear":
        linear(f.emb_dim, f.df_hidden_dim, f.linear_groups)
    conv((ch, taps), (f.df_pathway_kernel_size_t, 1), f.nb_df)
    linear(f.df_hidden_dim, f.nb_df * taps, f.linear_groups)
    return sum(weights), sum(macs)


@pytest.mark.parametrize("name", SYNTHETIC)
def test_against_a_count_from_the_layers(name):
    facts = oracle.case(name).model.facts
    assert (facts.parameters, facts.macs_per_hop) == count(synthetic.PRESETS[name])


def test_parameters_of_the_bundled_model():
    """All stored weights, less the zeros its recurrent layers start from."""
    stored = sum(
        numpy_helper.to_array(tensor).size
        for stem in oracle.EXPORTS
        for tensor in onnx.load(oracle.BUNDLED / f"{stem}.onnx").graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT and tensor.dims
    )
    facts = oracle.case("bundled").model.facts
    zeros = sum(layers * hidden for layers, hidden in facts.grus.values())
    assert facts.parameters == stored - zeros
    card = (oracle.BUNDLED / "MODEL_CARD.md").read_text()
    assert f"{facts.parameters:,}".replace(",", " ") in card
    assert f"{facts.macs_per_hop / 1e6:.2f} M per 10 ms hop" in card


@pytest.mark.parametrize("name", SYNTHETIC)
def test_structure(name):
    f, facts = synthetic.PRESETS[name], oracle.case(name).model.facts
    erb = f.emb_dim if f.lean else f.emb_hidden_dim
    assert facts.grus == {
        "enc": (1, f.emb_hidden_dim),
        "erb": (f.emb_num_layers - 1, erb),
        "df": (f.df_num_layers, f.df_hidden_dim),
    }
    kernels = [f.conv_kernel_inp[0]] * 2 + [f.conv_kernel[0]] * 6 + [f.df_pathway_kernel_size_t]
    assert sorted(facts.time_kernels) == sorted(k for k in kernels if k > 1)
    if name == "dfn3-ll":
        assert facts.window is None
        assert "erb_dec/convt3/Pad" in facts.window_reason
    else:
        assert facts.window == f.conv_kernel_inp[0] + f.df_pathway_kernel_size_t - 1
        assert facts.window_reason == ""


def test_multiply_accumulates_of_many_frames():
    graph = oracle.merged("dfn3")
    one, ten = multiply_accumulates(graph), multiply_accumulates(graph, frames=10)
    assert ten == {op: 10 * n for op, n in one.items()}


def test_leaves_its_graph_as_it_was():
    graph = oracle.merged("dfn3", folded=False)
    before = len(graph.nodes), sorted(graph.tensors())
    describe(graph)
    assert (len(graph.nodes), sorted(graph.tensors())) == before


def test_refuses_a_graph_without_a_gru():
    graph = oracle.merged("dfn3")
    graph.outputs = [graph.tensors()["c0"]]
    graph.cleanup()
    with pytest.raises(UnsupportedGraph, match=r"not a DeepFilterNet export"):
        describe(graph)
