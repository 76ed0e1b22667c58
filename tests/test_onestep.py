"""CanonicalSession over plain onnxruntime against ort-cpu: chunks, streams, cuts, parts, thresholds."""

import dataclasses

import numpy as np
import pytest
from dfstream.patches.recipe import Part
from hypothesis import given, settings
from hypothesis import strategies as st

import oracle
import packages
from conftest import SYNTHETIC
from dfstream.backends._onestep import CanonicalSession, CanonicalState, check_incremental
from dfstream.backends.base import Backend, find_backend
from dfstream.errors import BackendError, UnsupportedGraph
from dfstream.gating import Thresholds
from dfstream.interface import FEATURES, state_output
from dfstream.modes.base import find_mode, initial_states

FRAMES = (1, 2, 3, 4, 8)
T = 29

RESULTS = ("lsnr", "m", "coefs")


def short(feats, frames=T):
    return {name: np.ascontiguousarray(array[:, :, :frames]) for name, array in feats.items()}


def run(session, feats, sizes, states=None, batch=1):
    """All results in the export's layout, and the states after them."""
    states = initial_states(session, batch) if states is None else states
    pieces = []
    for piece in oracle.cut(feats, sizes):
        out = session.run({**piece, **states})
        assert {*out} == {*RESULTS, *map(state_output, states)}
        states = {name: out[state_output(name)] for name in states}
        pieces.append(out)
    return oracle.join(pieces), states


def check_same_bits(got, want):
    assert got.keys() == want.keys()
    for name in want:
        np.testing.assert_array_equal(got[name], want[name], err_msg=name)


@pytest.fixture(scope="module")
def incremental():
    """What the incremental graph gives in plain onnxruntime, frame by frame."""

    def get(name, feats):
        (data,) = oracle.case(name).graphs(find_mode("incremental").recipe())
        return oracle.streamed((data,), feats, 1, batch=len(feats["feat_erb"]))

    return get


# -- frames ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [1, 4])
@oracle.every_model(quick=("dfn3", "dfn2-ll"))
def test_as_the_incremental_graph(incremental, name, frames):
    c = oracle.case(name)
    feats = short(c.feats)
    got, _ = run(packages.onestep(c.model, frames), feats, 7)
    oracle.check_equal(got, incremental(name, feats))


@pytest.mark.parametrize("frames", FRAMES)
@settings(max_examples=6)
@given(sizes=oracle.splits(T))
def test_any_cut_gives_the_same_bits(frames, sizes):
    """Each frame comes from the same sums, however often it is computed."""
    c = oracle.case("dfn3")
    feats = short(c.feats)
    want, after = run(packages.onestep(c.model), feats, 1)
    session = packages.onestep(c.model, frames)
    got, states = run(session, feats, sizes)
    check_same_bits(got, want)
    covered = T - T % frames
    _, earlier = run(packages.onestep(c.model), short(feats, covered), covered)
    check_same_bits({name: states[name] for name in after}, earlier)
    if frames > 1:
        assert states["pending_frames"].tolist() == [[T % frames]]
        for name in FEATURES:
            pending = states[f"pending_{name}"]
            np.testing.assert_array_equal(pending[:, :, : T % frames], feats[name][:, :, covered:])
            assert not pending[:, :, T % frames :].any()


@pytest.mark.parametrize("frames", FRAMES)
@settings(max_examples=5)
@given(cut=st.integers(1, T - 1), sizes=st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_states_after_any_cut_continue_in_another_session(frames, cut, sizes):
    c = oracle.case("dfn2-ll")
    feats = short(c.feats)
    want, _ = run(packages.onestep(c.model, frames), feats, T)
    head, states = run(packages.onestep(c.model, frames), short(feats, cut), sizes[0])
    kept = {name: array.copy() for name, array in states.items()}
    rest = {name: np.ascontiguousarray(array[:, :, cut:]) for name, array in feats.items()}
    tail, _ = run(packages.onestep(c.model, frames), rest, sizes[1], states)
    check_same_bits(oracle.join([head, tail]), want)
    check_same_bits(states, kept)  # feeds are left as they are


@pytest.mark.parametrize("frames", [1, 3])
def test_streams_of_a_batch_are_strangers(frames):
    """Three streams, of which one has run before: each gives what it gives alone."""
    model = oracle.case("lean").model
    feats = oracle.noise(model.config, 11, seed=8, batch=3)
    session = packages.onestep(model, frames)
    states = initial_states(session, 3)
    alone = [{name: array[b : b + 1] for name, array in feats.items()} for b in range(3)]
    _, warm = run(session, oracle.noise(model.config, 5, seed=9), 5)
    for name, array in warm.items():
        states[name][1] = array[0]
    got, after = run(session, feats, 4, states, batch=3)
    for b in range(3):
        want, ended = run(session, alone[b], 4, warm if b == 1 else None)
        check_same_bits({name: array[b : b + 1] for name, array in got.items()}, want)
        check_same_bits({name: array[b : b + 1] for name, array in after.items()}, ended)


def test_a_call_is_made_for_every_frame_but_of_whole_blocks():
    """Left-over frames are computed again with the next ones, no others are."""
    model, calls = oracle.case("dfn3").model, []
    looped = packages.looped(model, 4)

    def advance(feeds):
        calls.append(feeds["feat_erb"].copy())
        return looped(feeds)

    feats = short(oracle.case("dfn3").feats, 6)
    session = packages.onestep(model, 4, advance)
    for size, wanted in ((6, 2), (3, 3), (1, 6)):
        calls.clear()
        run(session, feats, size)
        assert len(calls) == wanted
    erb = feats["feat_erb"]
    np.testing.assert_array_equal(calls[4], np.pad(erb[:, :, 4:5], ((0, 0), (0, 0), (0, 3), (0, 0))))
    np.testing.assert_array_equal(calls[5], np.pad(erb[:, :, 4:6], ((0, 0), (0, 0), (0, 2), (0, 0))))


# -- states ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SYNTHETIC)
def test_states_are_those_of_the_parts(name):
    """Every section has its GRUs' states; all of one sum to the packed one."""
    model = oracle.case(name).model
    session = packages.onestep(model)
    sizes = {section: layers * size for section, (layers, size) in model.facts.grus.items()}
    assert {f"h_{section}": ("B", size, 1, 1) for section, size in sizes.items()} == {
        name: shape for name, shape in session.states.items() if name.startswith("h")
    }
    assert {f"h_{section}": section for section in sizes}.items() <= session.sections.items()
    assert session.sections["s_erb"] == session.sections["s_spec"] == "enc"
    assert session.sections.keys() == session.states.keys()


def test_states_of_several_frames_hold_the_features_that_wait():
    model = oracle.case("dfn3").model
    own = packages.onestep(model, 4).states
    assert own["pending_feat_erb"] == ("B", 1, 3, 32)
    assert own["pending_feat_spec"] == ("B", 2, 3, 96)
    assert own["pending_frames"] == ("B", 1)
    assert not any(name.startswith("pending") for name in packages.onestep(model).states)


@st.composite
def _parts(draw):
    """Any parts that cover a state, of which some belong together."""
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=7))
    starts = np.cumsum([0, *sizes[:-1]]).tolist()
    sections = [draw(st.sampled_from(["enc", "erb", "df"])) for _ in sizes]
    return tuple(map(Part, sections, starts, sizes)), sum(sizes)


@given(made=_parts())
def test_parts_are_taken_apart_and_put_together(made):
    """What comes in by section goes to the right channels, and back."""
    check_round_trip(*made)


def test_parts_of_deepfilternet3():
    sections = ("enc", "erb", "df", "erb", "df")
    parts = tuple(Part(section, 2 * i, 2) for i, section in enumerate(sections))
    assert check_round_trip(parts, 10) == {"h_enc": [0, 1], "h_erb": [2, 3, 6, 7], "h_df": [4, 5, 8, 9]}


def check_round_trip(parts, channels):
    """An advance that adds a thousand to a state; returns which channel each of ours holds."""
    given_h = []

    def advance(feeds):
        given_h.append(feeds["h"].copy())
        zeros = {"lsnr": (1, 1, 1, 1), "mask": (1, 1, 1, 3), "coefs": (1, 4, 1, 5)}
        results = {name: np.zeros(shape, np.float32) for name, shape in zeros.items()}
        return {**results, "h_out": feeds["h"] + 1000}

    states = {"h": CanonicalState((1, channels, 1, 1), "enc", parts)}
    features = {"feat_erb": (1, 1, 1, 3), "feat_spec": (1, 2, 1, 5)}
    session = CanonicalSession(advance, states, features)
    feeds = {name: np.zeros(shape, np.float32) for name, shape in features.items()}
    held = {f"h_{part.section}": [] for part in parts}
    for part in parts:
        held[f"h_{part.section}"] += range(part.start, part.start + part.size)
    own = {name: np.float32(where).reshape(1, -1, 1, 1) for name, where in held.items()}
    out = session.run({**feeds, **own})
    np.testing.assert_array_equal(given_h[0].ravel(), np.arange(channels))
    for name, where in held.items():
        assert session.sections[name] == name[2:]
        np.testing.assert_array_equal(out[f"{name}_out"].ravel(), np.float32(where) + 1000)
    return held


# -- thresholds ----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _OneStep(Backend):
    """The canonical graph in onnxruntime as a backend."""

    name = "onestep"
    frames: int = 1

    __hash__ = Backend.__hash__

    def open(self, model, recipe):
        return {recipe.stems[0]: packages.onestep(model, self.frames)}

    def load(self, graph, name):
        raise NotImplementedError


@pytest.mark.parametrize("name", ["bundled", "dfn3", "dfn2-ll", "dfn3-ll"])
def test_thresholds_let_decoders_wait_as_on_ort_cpu(name):
    """Limits between the levels that occur: every stage, on the same frames, and the states go on alike."""
    c = oracle.case(name)
    feats = short(c.feats, 100)
    levels = np.unique(c.want["lsnr"][0, :100, 0])
    limits = [float(levels[int(q * (len(levels) - 1)) :][:2].mean()) for q in (0.2, 0.8, 0.5)]
    modes = [find_mode("incremental")(c.model, backend) for backend in (_OneStep(), find_backend("ort-cpu"))]
    (got, stages), (want, wanted) = (
        mode.step_gated(feats["feat_erb"], feats["feat_spec"], Thresholds(*limits)) for mode in modes
    )
    assert {*wanted.tolist()} == {0, 1, 2, 3}, "the limits are of no use"
    np.testing.assert_array_equal(stages, wanted)
    oracle.check_equal(got._asdict(), want._asdict())
    ungated = modes[1]
    ungated.reset()
    other = ungated.step(feats["feat_erb"], feats["feat_spec"])
    assert np.abs(other.m - want.m).max() > 1e-4, "the decoders never waited"


def test_thresholds_need_one_frame_a_call():
    session = packages.onestep(oracle.case("dfn3").model, 4)
    with pytest.raises(
        UnsupportedGraph, match="frame by frame, this package takes 4 frames a call"
    ) as caught:
        session.sections  # noqa: B018
    assert caught.value.hint == "convert without --block"


# -- refusals ------------------------------------------------------------------------------------------------


def _without(name):
    return lambda feeds: feeds.pop(name)


def _changed(name, change):
    return lambda feeds: feeds.update({name: change(feeds[name])})


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize(
    ("change", "name"),
    [
        (_without("feat_erb"), "feat_erb"),
        (_without("s_spec"), "s_spec"),
        (_changed("feat_erb", lambda x: x.astype(np.float64)), "feat_erb"),
        (_changed("feat_erb", lambda x: x[0]), "feat_erb"),
        (_changed("feat_erb", lambda x: x[:, :, :, 1:]), "feat_erb"),
        (_changed("feat_erb", np.ndarray.tolist), "feat_erb"),
        (_changed("feat_spec", lambda x: x[:, :, 1:]), "feat_spec"),
        (_changed("feat_spec", lambda x: np.concatenate([x, x])), "feat_spec"),
        (_changed("h_erb", lambda x: x[:, 1:]), "h_erb"),
        (_changed("h_enc", lambda x: np.concatenate([x, x])), "h_enc"),
        (_changed("s_erb", lambda x: x.astype(np.float16)), "s_erb"),
    ],
    ids=range(11),
)
def test_refuses_what_is_no_input(frames, change, name):
    session = packages.onestep(oracle.case("dfn3").model, frames)
    feeds = {**oracle.noise(oracle.case("dfn3").model.config, 4, seed=1), **initial_states(session, 1)}
    session.run(feeds)
    change(feeds)
    with pytest.raises(BackendError, match=rf"^{name} is no float32 array of the shape \(") as caught:
        session.run(feeds)
    assert str(caught.value).isprintable()


def test_refuses_no_frames():
    session = packages.onestep(oracle.case("dfn3").model)
    feeds = {**oracle.noise(oracle.case("dfn3").model.config, 0, seed=1), **initial_states(session, 1)}
    with pytest.raises(BackendError, match=r"^no frames were given$"):
        session.run(feeds)


def test_serves_one_mode():
    check_incremental("mlpackage", "incremental")
    only = "^the backend mlpackage runs the mode incremental, not streaming$"
    with pytest.raises(UnsupportedGraph, match=only):
        check_incremental("mlpackage", "streaming")


@pytest.mark.parametrize("size", [1, 3])
def test_the_caller_may_overwrite_what_it_fed(size):
    """The engine hands out views of its buffers, and states of before are the caller's to change."""
    c = oracle.case("dfn3")
    feats = short(c.feats, 12)
    want, _ = run(packages.onestep(c.model, 4), feats, size)
    session, pieces = packages.onestep(c.model, 4), []
    states = initial_states(session, 1)
    buffer = {name: np.empty_like(array[:, :, :size]) for name, array in feats.items()}
    for piece in oracle.cut(feats, size):
        for name, array in piece.items():
            buffer[name][...] = array
        out = session.run({**buffer, **states})
        for array in (*buffer.values(), *states.values()):
            array.fill(np.nan)
        states = {name: out[state_output(name)] for name in states}
        pieces.append({name: array.copy() for name, array in out.items()})
    check_same_bits(oracle.join(pieces), want)


@pytest.mark.parametrize("count", [np.nan, np.inf, -1.0, 0.5, 4.0])
def test_a_number_of_pending_frames_that_cannot_be(count):
    c = oracle.case("dfn3")
    session = packages.onestep(c.model, 4)
    states = initial_states(session, 1) | {"pending_frames": np.full((1, 1), count, np.float32)}
    with pytest.raises(BackendError, match="pending_frames = "):
        session.run({**short(c.feats, 1), **states})
