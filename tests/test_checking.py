"""The proof itself: it passes for good graphs, and sees every kind of damage that patching could do."""

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from dfstream.patches.graph import constant, export_graph, import_graph, variable
from dfstream.patches.lean import lean_recipe

import oracle
from dfstream import checking
from dfstream.checking import (
    TOLERANCES,
    CheckRow,
    check_canonical,
    check_lean,
    check_mode,
    reference_run,
    test_features,
)
from dfstream.errors import BackendError
from dfstream.modes.base import find_mode
from dfstream.patching import canonical_recipe

EXACT = ("incremental", "streaming", "stateful-h0")
CANONICAL = "combined_canonical"


def passed(rows):
    return all(row.passed for row in rows)


# -- good graphs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", EXACT)
@oracle.every_model(("dfn3", "lean"))
def test_good_graphs_pass(name, mode):
    rows = check_mode(oracle.case(name).model, find_mode(mode))
    assert passed(rows), rows
    chunkings = ["1", "2", "3", "7", "100", "whole"] if mode != "stateful-h0" else ["1"]
    assert [row.chunking for row in rows if row.features == "speech"] == [*chunkings, "batch of 3"]
    assert [row.chunking for row in rows if row.features == "random"] == [*chunkings, "batch of 3"]


@pytest.mark.slow
@pytest.mark.parametrize("mode", EXACT)
@pytest.mark.parametrize("name", ["dfn2", "dfn2-ll", "dfn3-ll", "dfn3-h0", "dfn2-h0", "wideband16k"])
def test_good_graphs_of_the_other_variants_pass(name, mode):
    if (name, mode) == ("dfn3-ll", "stateful-h0"):
        pytest.skip("no window is exact for a time convolution behind a GRU")
    assert passed(check_mode(oracle.case(name).model, find_mode(mode)))


@oracle.every_model()
def test_good_canonical_graphs_pass(name):
    model = oracle.case(name).model
    rows = check_canonical(model, model.graphs(canonical_recipe())[CANONICAL])
    assert passed(rows), rows
    assert [(row.features, row.chunking) for row in rows] == [("random", "1"), ("speech", "1")]


@oracle.every_model()
def test_good_lean_graphs_pass(name):
    rows = check_lean(oracle.case(name).model)
    assert passed(rows), rows
    assert [(row.features, row.chunking) for row in rows] == [
        (kind, chunking) for kind in ("random", "speech") for chunking in ("1", "1, batch of 3")
    ]


@pytest.mark.parametrize("name", ["dfn3", "dfn3-h0"])
def test_the_inexact_mode_is_compared_on_its_graph(name):
    rows = check_mode(oracle.case(name).model, find_mode("stateless-window-last"))
    assert passed(rows)
    assert [row.chunking for row in rows] == ["whole", "whole"]


# -- damage -------------------------------------------------------------------------------------------


def damaged(mode, change, name="dfn3"):
    """A model whose graph for a mode was changed behind the patches' back."""
    model = oracle.case(name).model
    files = dict(model.graphs(find_mode(mode).recipe()))
    changed = False
    for stem in files:
        graph = import_graph(onnx.load_from_string(files[stem]))
        if change(graph):
            changed = True
            files[stem] = export_graph(graph.toposort())
    assert changed
    return model.with_patched(files)


def between(graph, source, reader, op, *operands, **attributes):
    """Put an operator between a tensor and one of its readers."""
    result = variable(f"{source.name}/{op}")
    graph.nodes.append(gs.Node(op, f"{source.name}/{op}", attributes, [source, *operands], [result]))
    for index, tensor in enumerate(reader.inputs):
        if tensor is source:
            reader.inputs[index] = result
    return True


def forget(name):
    """Feed zeros for a state."""

    def change(graph):
        state = next((t for t in graph.inputs if t.name == name), None)
        if state is None:
            return False
        return between(graph, state, state.outputs[0], "Mul", constant("none", 0.0, np.float32))

    return change


def one_frame_of_c0(graph):
    """The usual mistake: the last frame alone goes into the pathway's convolution, its past is lost."""
    c0 = graph.tensors()["c0"]
    pad = next(node for node in c0.outputs if node.op == "Pad")
    return between(graph, c0, pad, "Slice", *(constant(f"bound{n}", [n]) for n in (-1, 2**62, 2)))


def swap_gates(graph):
    """Update and reset gate of the recurrent weights of one layer."""
    gru = next((node for node in graph.nodes if node.op == "GRU"), None)
    if gru is None:
        return False
    weights = gru.inputs[2].values
    z, r, n = np.split(weights, 3, axis=1)
    gru.inputs[2] = constant("swapped", np.concatenate([r, z, n], axis=1), np.float32)
    return True


def scale(op, factor=1.001):
    """One layer's weights a thousandth too large."""

    def change(graph):
        node = next((node for node in graph.nodes if node.op == op), None)
        if node is None:
            return False
        node.inputs[1] = constant("scaled", factor * node.inputs[1].values, np.float32)
        return True

    return change


def not_a_number(graph):
    return scale("Conv", np.nan)(graph)


@pytest.fixture
def short(monkeypatch):
    """Damage shows in a few frames."""
    monkeypatch.setattr(checking, "_FRAMES", 40)
    monkeypatch.setattr(checking, "_CHUNKINGS", (1, 7, None))


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(
    ("mode", "name", "state"),
    [
        ("incremental", "dfn3", "ctx_c0"),
        ("streaming", "dfn3", "ctx_c0"),
        *(("incremental", "lean", state) for state in ("ctx_erb", "ctx_spec", "h0", "erb_h0", "df_h0")),
        *(("streaming", "lean", state) for state in ("ctx_erb", "df_h0")),
    ],
)
def test_a_state_that_is_not_carried_fails(mode, name, state):
    rows = check_mode(damaged(mode, forget(state), name), find_mode(mode))
    failed = {row.chunking for row in rows if not row.passed}
    assert failed == {"1", "7", "batch of 3"}  # in one call there is nothing to carry


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("state", ["h0", "erb_h0", "df_h0"])
def test_a_recurrent_state_that_is_not_carried_fails_with_windows(state):
    rows = check_mode(damaged("stateful-h0", forget(state), "lean"), find_mode("stateful-h0"))
    assert not any(row.passed for row in rows)


@pytest.mark.usefixtures("short")
def test_one_frame_of_c0_fails():
    rows = check_mode(damaged("stateful-h0", one_frame_of_c0), find_mode("stateful-h0"))
    assert not any(row.passed for row in rows)
    assert all(row.errors["lsnr"] <= TOLERANCES["lsnr"] for row in rows)  # nothing else notices
    assert all(row.errors["m"] <= TOLERANCES["m"] for row in rows)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("name", ["dfn3", "lean"])
def test_a_window_too_short_fails(name, monkeypatch):
    mode = find_mode("stateful-h0")
    model = oracle.case(name).model
    short = model.window_frames - 1
    monkeypatch.setattr(mode, "frames_per_hop", classmethod(lambda *_: short))
    assert not any(row.passed for row in check_mode(model, mode))


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(
    ("mode", "name", "change"),
    [
        *(
            ("incremental", "dfn3", change)
            for change in (swap_gates, scale("Conv"), scale("GRU"), scale("Einsum"))
        ),
        *((mode, "lean", change) for mode in EXACT for change in (swap_gates, scale("MatMul"), not_a_number)),
    ],
)
def test_wrong_weights_fail(mode, name, change):
    rows = check_mode(damaged(mode, change, name), find_mode(mode))
    assert not any(row.passed for row in rows)


@pytest.mark.usefixtures("short")
def test_streams_of_a_batch_that_mix_fail():
    """A state shared by the streams of a batch shows only there."""

    def first_of_all(graph):
        state = next(t for t in graph.inputs if t.name == "ctx_erb")
        shape = variable("as many")
        one = variable("first")
        graph.nodes.append(gs.Node("Shape", "as many", {}, [state], [shape]))
        bounds = [constant(f"first{n}", [n]) for n in (0, 1)]
        reader = state.outputs[0]
        graph.nodes.append(gs.Node("Slice", "first", {}, [state, *bounds, bounds[0]], [one]))
        result = variable("shared")
        graph.nodes.append(gs.Node("Expand", "shared", {}, [one, shape], [result]))
        reader.inputs[list(reader.inputs).index(state)] = result
        return True

    rows = check_mode(damaged("incremental", first_of_all, "lean"), find_mode("incremental"))
    assert {row.chunking for row in rows if not row.passed} == {"batch of 3"}


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("lean", scale("Conv")),
        ("lean", not_a_number),
        *(("lean", forget(state)) for state in ("h", "s_erb", "s_spec")),
        ("wideband16k", forget("s_fir")),
    ],
)
def test_damaged_canonical_graphs_fail(name, change):
    model = oracle.case(name).model
    graph = import_graph(onnx.load_from_string(model.graphs(canonical_recipe())[CANONICAL]))
    assert change(graph)
    assert not any(row.passed for row in check_canonical(model, export_graph(graph.toposort())))


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("lean", scale("Conv")),
        ("lean", not_a_number),
        *(("lean", forget(state)) for state in ("h0", "df_h0", "s_erb", "s_spec")),
        ("wideband16k", forget("s_fir")),
    ],
)
def test_damaged_lean_graphs_fail(name, change):
    model, recipe = oracle.case(name).model, lean_recipe()
    graph = import_graph(onnx.load_from_string(model.graphs(recipe)["combined_lean"]))
    assert change(graph)
    changed = model.with_patched({"combined_lean": export_graph(graph.toposort())})
    assert not any(row.passed for row in check_lean(changed))


# -- its parts ----------------------------------------------------------------------------------------


@oracle.every_model()
def test_the_reference_is_the_unpatched_export(name):
    c = oracle.case(name)
    got = reference_run(c.model, c.feats)
    for result in oracle.RESULTS:
        np.testing.assert_array_equal(getattr(got, result), c.want[result])


def test_features_are_those_of_the_model():
    for name in ("dfn3", "wideband16k"):
        m = oracle.case(name).model.config
        found = test_features(oracle.case(name).model)
        assert list(found) == ["random", "speech"]
        for feats in found.values():
            frames = feats["feat_erb"].shape[2]
            assert frames > 200
            assert feats["feat_erb"].shape == (1, 1, frames, m.nb_erb)
            assert feats["feat_spec"].shape == (1, 2, frames, m.nb_df)
            assert all(x.dtype == np.float32 for x in feats.values())
            assert all(x.std() > 0.03 for x in feats.values())


def test_features_are_the_same_each_time():
    model = oracle.case("dfn3").model
    for one, two in zip(test_features(model).values(), test_features(model).values(), strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], two[name])


@pytest.mark.parametrize("result", TOLERANCES)
def test_a_row_fails_by_any_result(result):
    within = dict(TOLERANCES)
    assert CheckRow("random", "1", within).passed
    assert not CheckRow("random", "1", within | {result: np.nextafter(within[result], 1)}).passed
    assert not CheckRow("random", "1", within | {result: float("inf")}).passed


def test_values_that_are_not_finite_fail():
    c = oracle.case("dfn3")
    want = reference_run(c.model, c.feats)
    for value in (np.nan, np.inf):
        got = want._replace(m=np.full_like(want.m, value))
        row = checking._compare("random", "1", got, want)
        assert not row.passed
        assert row.errors["m"] == float("inf")
    row = checking._compare("random", "1", want._replace(lsnr=want.lsnr[:, 1:]), want)
    assert row.errors["lsnr"] == float("inf")


def test_an_export_that_reads_what_nothing_computes_is_refused(monkeypatch):
    model = oracle.case("dfn3").model
    sources = {"df_dec": model.source_graphs()["df_dec"], "enc": model.source_graphs()["enc"]}
    monkeypatch.setattr(type(model), "source_graphs", lambda _: sources)
    monkeypatch.setattr(checking, "EXPORTS", ("df_dec", "enc"))
    with pytest.raises(BackendError, match=r"the export reads 'emb', which nothing computes"):
        reference_run(model, oracle.case("dfn3").feats)
