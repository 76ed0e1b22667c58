"""The registry of modes and what every mode promises, whatever it computes."""

import sys

import numpy as np
import pytest

from dfstream import Stream
from dfstream.backends.base import find_backend
from dfstream.errors import UnsupportedGraph, UsageError
from dfstream.interface import state_output
from dfstream.modes.base import (
    Mode,
    NetOutput,
    Strategy,
    find_mode,
    find_network_mode,
    initial_states,
    mode_names,
)

NAMES = ("incremental", "stateful-h0", "stateless-window-last", "streaming")

ALL = (*NAMES, "audio-graph")

every_mode = pytest.mark.parametrize("name", NAMES)


def make(name, model, batch=1):
    return find_mode(name)(model, find_backend("ort-cpu"), batch)


def noise(model, frames, batch=1, seed=0):
    rng, c = np.random.default_rng(seed), model.config
    return (
        rng.standard_normal((batch, 1, frames, c.nb_erb), np.float32),
        rng.standard_normal((batch, 2, frames, c.nb_df), np.float32),
    )


@pytest.fixture
def model(synthetic_model):
    return synthetic_model("lean")


# -- registry -----------------------------------------------------------------------------------------------


def test_names():
    assert mode_names() == sorted(ALL)


@pytest.mark.parametrize("name", ALL)
def test_every_mode_says_what_it_is(name):
    mode = find_mode(name)
    assert issubclass(mode, Strategy)
    assert issubclass(mode, Mode) is (name in NAMES)
    assert mode.name == name
    for text in (mode.summary, mode.carries):
        assert text
        assert text.isprintable()
    assert isinstance(mode.exact, bool)
    assert isinstance(mode.many_frames, bool)


def test_only_some_modes_drive_the_network_by_itself():
    assert all(find_network_mode(name) is find_mode(name) for name in NAMES)
    with pytest.raises(UsageError, match="audio-graph has the network inside"):
        find_network_mode("audio-graph")


def test_recipes_have_names_and_files_of_their_own():
    recipes = [find_mode(name).recipe() for name in ALL]
    stems = [stem for recipe in recipes for stem in recipe.stems]
    assert [recipe.name for recipe in recipes] == list(ALL)
    assert len(set(stems)) == len(stems)


@pytest.mark.parametrize(
    "name", ["", "base", "_window", "-window", "Incremental", "stateful_h0", "../x", "incremental\n"]
)
def test_an_unknown_mode(name, model):
    for call in (find_mode, lambda n: Stream(model, mode=n)):
        with pytest.raises(UsageError, match="unknown mode") as caught:
            call(name)
        assert str(caught.value).isprintable()
        assert all(known in caught.value.hint for known in NAMES)


SOURCE = """
import numpy as np
from dfstream.modes.base import Mode, NetOutput
from dfstream.patches.fold import fold_constants
from dfstream.patches.recipe import Recipe

class Silence(Mode):
    name, summary, carries, exact, many_frames = "all-silent", "gains of zero", "nothing", False, True

    @classmethod
    def recipe(cls):
        return Recipe(cls.name, ("combined_silent",), (fold_constants,))

    @classmethod
    def frames_per_hop(cls, model):
        return 1

    def step(self, feat_erb, feat_spec):
        B, _, T, bands = feat_erb.shape
        c = self.model.config
        shapes = (B, T, 1), (B, 1, T, bands), (B, T, c.nb_df, 2 * c.df_order)
        return NetOutput(*(np.zeros(shape, np.float32) for shape in shapes))

MODE = Silence
"""


@pytest.fixture
def added(tmp_path, monkeypatch):
    """A file in the folder of modes."""
    import dfstream.modes as package

    (tmp_path / "all_silent.py").write_text(SOURCE)
    (tmp_path / "_helper.py").write_text("raise RuntimeError\n")
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    yield
    sys.modules.pop("dfstream.modes.all_silent", None)


@pytest.mark.usefixtures("added")
def test_a_file_adds_a_mode(model):
    from dfstream.inspection import inspect_model

    assert mode_names() == sorted([*ALL, "all-silent"])
    x = noise(model, 5)[0].ravel()
    stream = Stream(model, mode="all-silent")
    y = np.concatenate([stream.process(x), stream.flush()])
    assert len(y) == len(x) + stream.delay_samples
    assert not y.any()
    assert inspect_model(model)["modes"]["all-silent"]["possible"]


def test_without_the_file_the_mode_is_gone():
    assert mode_names() == sorted(ALL)
    with pytest.raises(UsageError):
        find_mode("all-silent")


# -- what every mode promises -------------------------------------------------------------------------------


@every_mode
@pytest.mark.parametrize(("frames", "batch"), [(1, 1), (4, 1), (2, 3)])
def test_results_have_the_documented_shapes(name, frames, batch, model):
    if batch > 1 and not find_mode(name).exact:
        pytest.skip("the export itself, which this mode runs, takes one stream")
    c, mode = model.config, make(name, model, batch)
    out = mode.step(*noise(model, frames, batch))
    assert isinstance(out, NetOutput)
    assert out.lsnr.shape == (batch, frames, 1)
    assert out.m.shape == (batch, 1, frames, c.nb_erb)
    assert out.coefs.shape == (batch, frames, c.nb_df, 2 * c.df_order)
    for result in out:
        assert result.dtype == np.float32
        assert np.isfinite(result).all()
    assert out.m.min() >= 0
    assert out.m.max() <= 1


@every_mode
def test_states_are_visible_float32_and_zero_at_the_start(name, model):
    mode = make(name, model, batch=2)
    assert mode.state
    for array in mode.state.values():
        assert array.dtype == np.float32
        assert not array.any()
    for session in mode.sessions.values():
        for state, zeros in initial_states(session, 2).items():
            if mode.exact:  # the other one starts its graph from zeros each time
                assert mode.state[state].shape == zeros.shape


@every_mode
def test_states_move_and_keep_their_shapes(name, model):
    mode = make(name, model)
    shapes = {key: array.shape for key, array in mode.state.items()}
    mode.step(*noise(model, 3))
    assert {key: array.shape for key, array in mode.state.items()} == shapes
    carried = [array for key, array in mode.state.items() if mode.exact or key.startswith("window_")]
    assert all(array.any() for array in carried)


@every_mode
def test_reset_makes_it_new(name, model):
    mode, given = make(name, model), noise(model, 5)
    first = mode.step(*given)
    again = mode.step(*given)
    assert any((a != b).any() for a, b in zip(first, again, strict=True))
    mode.reset()
    for a, b in zip(first, mode.step(*given), strict=True):
        np.testing.assert_array_equal(a, b)


@every_mode
def test_state_can_be_taken_away_and_put_back(name, model):
    """All memory is in ``state``: a stream can be saved, moved, and taken up elsewhere."""
    mode, before, after = make(name, model), noise(model, 5), noise(model, 2, seed=1)
    mode.step(*before)
    saved = {key: array.copy() for key, array in mode.state.items()}
    expected = mode.step(*after)
    other = make(name, model)
    other.state = saved
    for a, b in zip(expected, other.step(*after), strict=True):
        np.testing.assert_array_equal(a, b)


@every_mode
def test_two_streams_of_one_model_do_not_meet(name, model):
    one, other, alone = make(name, model), make(name, model), make(name, model)
    assert one.sessions == other.sessions
    first, second = noise(model, 2), noise(model, 2, seed=1)
    expected = [alone.step(*first), alone.step(*second)]
    got = one.step(*first)
    other.step(*second)
    for a, b in zip([*got, *one.step(*second)], [*expected[0], *expected[1]], strict=True):
        np.testing.assert_array_equal(a, b)


@every_mode
def test_features_are_not_written_to(name, model):
    given = noise(model, 3)
    copies = [array.copy() for array in given]
    make(name, model).step(*given)
    for array, copy in zip(given, copies, strict=True):
        np.testing.assert_array_equal(array, copy)


@every_mode
def test_frames_per_hop(name, synthetic_model):
    frames = find_mode(name).frames_per_hop(synthetic_model("dfn3"))
    assert frames == {"incremental": 1, "streaming": 1, "stateful-h0": 7, "stateless-window-last": 40}[name]


@pytest.mark.parametrize("name", ["stateful-h0", "stateless-window-last"])
def test_no_window_serves_a_convolution_behind_a_gru(name, synthetic_model):
    with pytest.raises(UnsupportedGraph, match="no window of features") as caught:
        make(name, synthetic_model("dfn3-ll"))
    assert "incremental" in caught.value.hint


@pytest.mark.parametrize("name", ["incremental", "streaming"])
def test_contexts_serve_it(name, synthetic_model):
    mode = make(name, synthetic_model("dfn3-ll"))
    assert np.isfinite(mode.step(*noise(mode.model, 3)).m).all()
    assert any(state.startswith("ctx_") for state in mode.state)


def test_every_state_has_a_next_value(model):
    for name in NAMES:
        for session in make(name, model).sessions.values():
            assert all(state_output(state) != state for state in session.states)
