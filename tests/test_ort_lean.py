"""ort-cpu on single frames: which graph it takes, and that its bound buffers never show."""

import threading

import numpy as np
import pytest
from dfstream.patches import lean as lean_patch
from hypothesis import given, settings
from hypothesis import strategies as st

import oracle
from dfstream import Stream
from dfstream.backends.base import find_backend
from dfstream.errors import BackendError, UnsupportedGraph
from dfstream.interface import RESULTS, state_output
from dfstream.model import Model
from dfstream.modes.base import find_mode, initial_states
from dfstream.patching import patch_model


def incremental(model, batch=1, *, single_frame=True):
    return find_mode("incremental")(model, find_backend("ort-cpu"), batch, single_frame=single_frame)


def is_lean(mode):
    (session,) = mode.sessions.values()
    return "s_erb" in session.states


def frame(model, seed, batch=1):
    return oracle.noise(model.config, 1, seed, batch)


# -- which graph ----------------------------------------------------------------------------------------


def test_single_frames_take_the_lean_graph_and_blocks_the_incremental(synthetic_model):
    model = synthetic_model("dfn3")
    assert is_lean(incremental(model))
    assert not is_lean(incremental(model, single_frame=False))


@pytest.mark.parametrize(("frames", "names"), [(1, {"net/s_erb"}), (2, {"net/ctx_erb"})])
def test_a_stream_says_which_it_will_bring(synthetic_model, frames, names):
    saved = Stream(synthetic_model("dfn3"), block_frames=frames, backend="ort-cpu").snapshot().arrays
    assert names == {"net/s_erb", "net/ctx_erb"} & set(saved)


def test_other_modes_keep_their_graphs(synthetic_model):
    model = synthetic_model("dfn3")
    for name in ("streaming", "stateful-h0"):
        mode_class = find_mode(name)
        one, many = (
            mode_class(model, find_backend("ort-cpu"), single_frame=single) for single in (True, False)
        )
        assert one.sessions == many.sessions


def test_a_patched_incremental_graph_alone_serves_single_frames_too(synthetic_model, tmp_path):
    patch_model(synthetic_model("lean"), tmp_path, ["incremental"], check=False)
    assert not is_lean(incremental(Model.load(tmp_path)))


def test_a_patched_lean_graph_alone_serves_single_frames(synthetic_model, tmp_path):
    model = synthetic_model("lean")
    patch_model(model, tmp_path, ["incremental"], lean=True, check=False)
    (tmp_path / "combined_incremental.onnx").unlink()
    loaded, feats = Model.load(tmp_path), frame(model, 1).values()
    for a, b in zip(incremental(loaded).step(*feats), incremental(model).step(*feats), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(UnsupportedGraph, match="at hand is only combined_lean"):
        incremental(loaded, single_frame=False)


def test_a_model_without_a_lean_form_keeps_the_incremental(synthetic_folder, monkeypatch):
    def refuse(_):
        raise UnsupportedGraph("no such form")

    monkeypatch.setattr(lean_patch, "lean", refuse)
    model = Model.load(synthetic_folder("lean"))
    assert not is_lean(incremental(model))
    x = np.zeros(2 * model.config.hop_size, np.float32)
    assert len(Stream(model).process(x)) == len(x)


# -- the buffers ----------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(
    batch=st.sampled_from([1, 3]),
    steps=st.lists(
        st.dictionaries(st.integers(0, 20), st.sampled_from(["put back", "copied"]), max_size=6), max_size=8
    ),
)
def test_bound_runs_equal_plain_ones_whatever_states_are_given(synthetic_model, batch, steps):
    """As thresholds and snapshots do: any state may be an older one, or someone else's array."""
    model = synthetic_model("dfn3")
    (session,) = incremental(model).sessions.values()
    bound, plain = session.runner(batch), session.run
    ours = initial_states(session, batch)
    theirs = {name: array.copy() for name, array in ours.items()}
    names = [*session.states]
    for number, changes in enumerate([{}, *steps, {}, {}, {}]):
        feats = frame(model, number, batch)
        before_ours, before_theirs = ours, theirs
        given = {name: array.copy() for name, array in ours.items()}
        out, want = bound({**feats, **ours}), plain({**feats, **theirs})
        for name, array in given.items():
            np.testing.assert_array_equal(before_ours[name], array, err_msg="wrote into what it was given")
        for name in RESULTS:
            np.testing.assert_array_equal(out[name], want[name])
        ours = {name: out[state_output(name)] for name in names}
        theirs = {name: want[state_output(name)] for name in names}
        for index, change in changes.items():
            name = names[index % len(names)]
            if change == "put back":
                ours[name], theirs[name] = before_ours[name], before_theirs[name]
            else:
                ours[name] = ours[name].copy()
        for name in names:
            np.testing.assert_array_equal(ours[name], theirs[name])


def test_results_are_the_callers_to_keep(synthetic_model):
    mode = incremental(synthetic_model("dfn3"))
    results = [mode.step(*frame(mode.model, seed).values()) for seed in range(4)]
    kept = [[x.copy() for x in result] for result in results]
    for seed in range(4, 8):
        mode.step(*frame(mode.model, seed).values())
    for result, copies in zip(results, kept, strict=True):
        assert all(np.array_equal(x, copy) for x, copy in zip(result, copies, strict=True))


def test_streams_in_threads_share_a_session_and_nothing_else(synthetic_model):
    model, found = synthetic_model("dfn3"), {}
    alone = incremental(model)
    want = [alone.step(*frame(model, seed).values()) for seed in range(60)]

    def run(key):
        mode = incremental(model)
        found[key] = [mode.step(*frame(model, seed).values()) for seed in range(60)]

    threads = [threading.Thread(target=run, args=(key,)) for key in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for got in found.values():
        for a, b in zip(got, want, strict=True):
            assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_features_of_another_shape_are_an_error(synthetic_model):
    mode = incremental(synthetic_model("dfn3"))
    feats = frame(mode.model, 0)
    for wrong in (
        oracle.noise(mode.model.config, 2, 0),
        {**feats, "feat_erb": feats["feat_erb"][..., :1].copy()},
        {**feats, "feat_spec": feats["feat_spec"][:, :1].copy()},
    ):
        with pytest.raises(BackendError, match="ort-cpu: combined_lean failed"):
            mode.step(*wrong.values())


def test_a_state_of_another_shape_is_an_error(synthetic_model):
    mode = incremental(synthetic_model("dfn3"))
    mode.state["s_erb"] = mode.state["s_erb"][..., :1].copy()
    with pytest.raises(BackendError, match="ort-cpu: combined_lean failed"):
        mode.step(*frame(mode.model, 0).values())
