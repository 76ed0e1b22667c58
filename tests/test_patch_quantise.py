"""store_half and lean_eight_bit: what is rounded, that nothing else changes, and how ort-cpu uses them."""

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from dfstream.patches import quantise
from dfstream.patches.graph import constant, export_graph
from dfstream.patches.lean import lean, lean_recipe
from dfstream.patches.quantise import eight_bit_recipe, half_recipe, lean_eight_bit, quantise_rows, store_half
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import oracle
from dfstream import Stream
from dfstream.backends.base import find_backend
from dfstream.errors import BackendError, UnsupportedGraph, UsageError
from dfstream.model import Model
from dfstream.modes.base import find_mode
from dfstream.patching import patch_model

TRAINED = ["bundled", *(pytest.param(f"official {n}", marks=pytest.mark.slow) for n in ("dfn3", "dfn2"))]


def snr_db(want, got):
    return 10 * np.log10((want.astype(np.float64) ** 2).sum() / ((want.astype(np.float64) - got) ** 2).sum())


# -- eight bits -----------------------------------------------------------------------------------------


def rounded(matrix, block):
    """By the definition: each block of a row to 255 steps between minus and plus its largest weight."""
    result = np.zeros_like(matrix)
    for row in range(len(matrix)):
        for start in range(0, matrix.shape[1], block):
            part = matrix[row, start : start + block]
            step = np.float32(np.abs(part).max()) / np.float32(127)
            if step > 0:
                result[row, start : start + block] = np.round(part / step) * step
    return result


@given(
    hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 5), st.integers(1, 70)),
        elements=st.floats(-2, 2, width=32, allow_subnormal=False),
    ),
    st.sampled_from([16, 32]),
)
def test_rows_are_rounded_block_by_block(matrix, block):
    weights, scales = quantise_rows(matrix, block)
    outputs, inputs = matrix.shape
    assert weights.shape == (outputs, -(-inputs // block), block)
    assert (weights.dtype, scales.dtype, scales.shape) == (np.uint8, np.float32, weights.shape[:2])
    values = ((weights.astype(np.float32) - 128) * scales[..., None]).reshape(outputs, -1)
    assert not values[:, inputs:].any()
    limit = np.repeat(scales, block, axis=1)[:, :inputs] * 0.5001
    assert (np.abs(values[:, :inputs] - matrix) <= limit + 1e-37).all()
    assert weights.min(initial=255) >= 1


@pytest.mark.parametrize("name", ["dfn3", "dfn2", "dfn3-ll", "lean", "bundled"])
def test_equals_the_export_with_rounded_matrices(name, monkeypatch):
    """With products in float32 nothing but the weights is rounded."""
    monkeypatch.setattr(quantise, "_INTEGER_PRODUCTS", 1)
    graph, c = oracle.merged(name), oracle.case(name)
    (data,) = map(export_graph, lean_eight_bit(graph).values())
    for node in (n for n in graph.nodes if n.op == "GRU"):
        W, R = (node.inputs[i].values[0] for i in (1, 2))
        gates = 2 * len(W) // 3
        both = rounded(np.hstack([W, R])[:gates], quantise.BLOCK)
        new_w = np.concatenate([both[:, : W.shape[1]], rounded(W[gates:], quantise.BLOCK)])
        new_r = np.concatenate([both[:, W.shape[1] :], rounded(R[gates:], quantise.BLOCK)])
        node.inputs[1] = constant(f"{node.name}/W", new_w[None], np.float32)
        node.inputs[2] = constant(f"{node.name}/R", new_r[None], np.float32)
    want = oracle.run(export_graph(graph.toposort()), c.feats)
    oracle.check_equal(oracle.streamed([data], c.feats, 1), want)
    assert oracle.errors(want, c.want)["m"] > 1e-4, "nothing was rounded"


@pytest.mark.parametrize("name", TRAINED)
def test_stays_near_the_export(name):
    """Products of eight bits round the inputs too. Measured: 38 dB and more."""
    c = oracle.case(name)
    got = oracle.streamed([c.model.graphs(eight_bit_recipe())["combined_lean_int8"]], c.feats, 1)
    assert snr_db(c.want["m"], got["m"]) > 33
    assert snr_db(c.want["coefs"], got["coefs"]) > 33


@pytest.mark.parametrize("name", ["dfn3", "dfn3-ll"])
def test_has_the_inputs_and_outputs_of_the_lean_graph(name):
    model = oracle.case(name).model
    (small,), (exact,) = (model.graphs(r).values() for r in (eight_bit_recipe(), lean_recipe()))
    assert oracle.ports(small) == oracle.ports(exact)
    counts = oracle.operators(small)
    assert "GRU" not in counts
    assert counts["MatMulNBits"] == 3 * oracle.operators(exact)["GRU"]


def test_refuses_a_gru_that_resets_before_the_product():
    graph = oracle.merged("dfn3")
    oracle.first(graph, "GRU").attrs["linear_before_reset"] = 0
    with pytest.raises(UnsupportedGraph, match=r"GRU 'enc/.*resets before the matrix product"):
        lean_eight_bit(graph)


# -- float16 --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dfn3", "bundled"])
def test_half_equals_the_graph_with_weights_rounded_to_half(name):
    c = oracle.case(name)
    (graph,) = lean(oracle.merged(name)).values()
    (twin,) = lean(oracle.merged(name)).values()
    for tensor in twin.tensors().values():
        if isinstance(tensor, gs.Constant) and tensor.values.dtype == np.float32 and tensor.values.size >= 64:
            tensor.values = tensor.values.astype(np.float16).astype(np.float32)
    got, want = (oracle.streamed([export_graph(g)], c.feats, 1) for g in (store_half(graph), twin))
    for result in oracle.RESULTS:
        np.testing.assert_allclose(got[result], want[result], atol=1e-6)
    assert oracle.errors(got, c.want)["m"] > 1e-5, "nothing was rounded"


def test_half_is_half_as_large():
    model = oracle.full_size("dfn3")
    (half,), (whole,) = (model.graphs(r).values() for r in (half_recipe(lean_recipe()), lean_recipe()))
    assert len(half) < 0.51 * len(whole)


def test_weights_beyond_half_stay():
    graph = lean(oracle.merged("lean"))["combined_lean"]
    conv = oracle.first(graph, "Conv")
    conv.inputs[1].values = conv.inputs[1].values + np.float32(1e5)
    store_half(graph)
    assert oracle.first(graph, "Conv").inputs[1].values.dtype == np.float32
    assert any(node.op == "Cast" for node in graph.nodes)


# -- in the backend -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["incremental", "streaming", "stateful-h0"])
@pytest.mark.parametrize("frames", [1, 4])
def test_half_serves_every_mode(bundled, noisy, mode, frames):
    exact, half = (
        Stream(bundled, mode=mode, backend=find_backend("ort-cpu", precision=p), block_frames=frames)
        for p in ("float32", "fp16")
    )
    y, want = half.process(noisy[:48_000]), exact.process(noisy[:48_000])
    assert 60 < snr_db(want, y) < 100


def test_eight_bits_serve_single_frames(bundled, noisy):
    exact, small = (
        Stream(bundled, backend=find_backend("ort-cpu", precision=p)) for p in ("float32", "int8")
    )
    y, want = small.process(noisy[:48_000]), exact.process(noisy[:48_000])
    assert 30 < snr_db(want, y) < 70


@pytest.mark.parametrize(("mode", "frames"), [("incremental", 2), ("streaming", 1), ("stateful-h0", 1)])
def test_eight_bits_refuse_what_they_have_no_graphs_for(bundled, mode, frames):
    with pytest.raises(UsageError, match=rf"no graphs of precision int8 .*{mode}$") as caught:
        Stream(bundled, mode=mode, backend=find_backend("ort-cpu", precision="int8"), block_frames=frames)
    assert "block_frames=1" in caught.value.hint


@pytest.mark.parametrize(("precision", "stem"), [("int8", "combined_lean_int8"), ("fp16", "_fp16")])
def test_patched_graphs_alone_are_of_one_precision(precision, stem, synthetic_model, tmp_path):
    patch_model(synthetic_model("lean"), tmp_path, ["incremental"], lean=True, check=False)
    with pytest.raises(UnsupportedGraph, match=rf"{stem}; at hand is only"):
        Stream(Model.load(tmp_path), backend=find_backend("ort-cpu", precision=precision))


def test_the_default_is_exact(synthetic_model):
    model, recipe = synthetic_model("lean"), find_mode("incremental").recipe()
    default, *others = (
        model.open(find_backend("ort-cpu", **options), recipe, single_frame=True)
        for options in ({}, {"precision": "float32"}, {"precision": "fp16"}, {"precision": "int8"})
    )
    assert [other is default for other in others] == [True, False, False]


def test_a_runtime_without_the_operator_is_said_to_be_too_old(synthetic_model):
    data = synthetic_model("lean").graphs(eight_bit_recipe())["combined_lean_int8"]
    model = onnx.load_from_string(data)
    for node in model.graph.node:
        if node.op_type == "MatMulNBits":
            node.op_type = "MatMulOfTheFuture"
    broken = synthetic_model("lean").with_patched({"combined_lean_int8": model.SerializeToString()})
    with pytest.raises(BackendError, match="cannot load combined_lean_int8") as caught:
        Stream(broken, backend=find_backend("ort-cpu", precision="int8"))
    assert "onnxruntime" in caught.value.hint
