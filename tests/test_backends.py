"""The protocol of backends, ort-cpu, and that another backend needs no change anywhere else."""

import dataclasses
import sys
import threading

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from dfstream import Stream, registry
from dfstream.backends.base import (
    AUTO,
    Backend,
    Session,
    backend_names,
    find_backend,
    parse_backend,
    pick_backend,
    survey,
)
from dfstream.errors import BackendError, BackendUnavailable, DfstreamError, UnsupportedGraph, UsageError
from dfstream.interface import FEATURES, RESULTS, state_inputs, state_output
from dfstream.modes.base import find_mode, mode_names

FRAMES = 3


def refusal(kind, call, *args, **options):
    with pytest.raises(kind) as caught:
        call(*args, **options)
    assert isinstance(caught.value, DfstreamError)
    assert str(caught.value).isprintable()
    return str(caught.value), caught.value.hint


@pytest.fixture(scope="module")
def graph(synthetic_model):
    """The graph of incremental: features, states and contexts in, results and next states out."""
    (data,) = synthetic_model("lean").graphs(find_mode("incremental").recipe()).values()
    return data


@pytest.fixture(scope="module")
def session(graph):
    return find_backend("ort-cpu").load(graph, "net")


def feeds(session, config, batch=1, frames=FRAMES):
    rng = np.random.default_rng(7)
    shapes = {
        "feat_erb": (batch, 1, frames, config.nb_erb),
        "feat_spec": (batch, 2, frames, config.nb_df),
        **{
            name: [batch if size == "B" else size for size in shape] for name, shape in session.states.items()
        },
    }
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


# -- finding one --------------------------------------------------------------------------------------------


def test_every_backend_says_what_it_is():
    assert "ort-cpu" in backend_names()
    assert backend_names() == sorted(set(backend_names()))
    backend = find_backend("ort-cpu")
    assert (backend.name, bool(backend.summary)) == ("ort-cpu", True)


@pytest.mark.parametrize("name", ["", "ort_cpu", "ORT-CPU", "base", "cuda", "../ort_cpu", "ort-cpu\n"])
def test_an_unknown_backend(name):
    message, hint = refusal(UsageError, find_backend, name)
    assert "unknown backend" in message
    assert "ort-cpu" in hint


@pytest.mark.parametrize(
    ("options", "unknown"), [({"thread": 2}, "thread"), ({"threads": 1, "device": 0}, "device")]
)
def test_an_unknown_option(options, unknown):
    message, hint = refusal(UsageError, find_backend, "ort-cpu", **options)
    assert message == f"backend ort-cpu has no option '{unknown}'"
    assert hint == "its options are threads, precision"


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("ort-cpu", {}),
        ("ort-cpu:threads=2", {"threads": 2}),
        ("ort-cpu:precision=int8,threads=3", {"precision": "int8", "threads": 3}),
    ],
)
def test_a_backend_in_one_line(text, options):
    assert parse_backend(text) == find_backend("ort-cpu", **options)


@pytest.mark.parametrize(
    "text",
    [
        "", ":", "cuda", "ort-cpu:threads", "ort-cpu:=2", "ort-cpu:threads=1,threads=2", "ort-cpu:threads=1,",
        "ort-cpu:threads=many", "ort-cpu:threads=2.5", "ort-cpu:threads=true", "ort-cpu:speed=2",
        "ort-cpu:precision=int9", "ort-cpu:a b=1", "ort-cpu;threads=2",
    ],
)  # fmt: skip
def test_a_line_that_names_no_backend(text):
    refusal(UsageError, parse_backend, text)


@pytest.mark.parametrize("precision", ["", "float16", "INT8", 8, None])
def test_an_unknown_precision(precision):
    assert "precision" in refusal(UsageError, find_backend, "ort-cpu", precision=precision)[0]


@pytest.mark.parametrize("threads", [0, -1, 257, 10**9, 1.5, "2", None, True, float("nan")])
def test_threads_out_of_range(threads):
    assert "threads" in refusal(UsageError, find_backend, "ort-cpu", threads=threads)[0]


@pytest.mark.parametrize("threads", [1, 2, 256])
def test_threads_in_range(threads):
    assert find_backend("ort-cpu", threads=threads).threads == threads


def test_options_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        find_backend("ort-cpu").threads = 2


def test_equal_options_make_equal_backends():
    one, same, other = (find_backend("ort-cpu", threads=n) for n in (1, 1, 2))
    assert (one, hash(one)) == (same, hash(same))
    assert one != other


def test_sessions_are_shared_by_equal_backends(synthetic_model):
    model, recipe = synthetic_model("lean"), find_mode("incremental").recipe()
    one, same, other = (model.open(find_backend("ort-cpu", threads=n), recipe) for n in (1, 1, 2))
    assert one is same
    assert one is not other


def test_a_missing_runtime(monkeypatch, graph):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    message, hint = refusal(BackendUnavailable, find_backend("ort-cpu").load, graph, "net")
    assert "onnxruntime" in message
    assert hint == "pip install onnxruntime"


# -- the protocol -------------------------------------------------------------------------------------------


def test_states_are_the_inputs_whose_next_value_comes_out(session, graph):
    model = onnx.load_model_from_string(graph)
    declared = {
        value.name: tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in model.graph.input
    }
    names = state_inputs(declared, [value.name for value in model.graph.output])
    assert names
    assert session.states == {name: declared[name] for name in names}
    assert not set(session.states) & set(FEATURES)
    assert all("B" in shape for shape in session.states.values())


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("frames", [1, FRAMES])
def test_results_of_any_batch_and_number_of_frames(session, synthetic_model, batch, frames):
    c = synthetic_model("lean").config
    given = feeds(session, c, batch, frames)
    before = {name: array.copy() for name, array in given.items()}
    out = session.run(given)
    shapes = {
        "lsnr": (batch, frames, 1),
        "m": (batch, 1, frames, c.nb_erb),
        "coefs": (batch, frames, c.nb_df, 2 * c.df_order),
    }
    assert {name: out[name].shape for name in RESULTS} == shapes
    assert {state_output(name) for name in session.states} == set(out) - set(RESULTS)
    for name in session.states:
        assert out[state_output(name)].shape == given[name].shape
    assert all(array.dtype == np.float32 for array in out.values())
    assert all((given[name] == before[name]).all() for name in given)


def test_results_are_the_callers_to_keep(session, synthetic_model):
    given = feeds(session, synthetic_model("lean").config)
    first = session.run(given)
    kept = {name: array.copy() for name, array in first.items()}
    session.run({name: array + 1 for name, array in given.items()})
    for name, array in first.items():
        assert (array == kept[name]).all()
        assert array.flags.writeable


def test_a_session_remembers_nothing_and_serves_many_threads(session, synthetic_model):
    given, results = feeds(session, synthetic_model("lean").config), []
    expected = session.run(given)

    def run():
        results.extend(session.run(given) for _ in range(20))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 80
    assert all((result[name] == expected[name]).all() for result in results for name in expected)


def test_more_threads_compute_the_same(graph, session, synthetic_model):
    given = feeds(session, synthetic_model("lean").config, frames=20)
    other, one = find_backend("ort-cpu", threads=2).load(graph, "net").run(given), session.run(given)
    for name in one:
        np.testing.assert_allclose(other[name], one[name], atol=1e-5)


@pytest.mark.parametrize("data", [b"", b"no graph", b"\x08\x07" * 100])
def test_a_graph_that_is_none(data):
    message, _ = refusal(BackendError, find_backend("ort-cpu").load, data, "net")
    assert message.startswith("ort-cpu: cannot load net (")


def test_a_graph_of_an_operator_that_does_not_exist():
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    made = helper.make_graph([helper.make_node("Frobnicate", ["x"], ["y"])], "g", [x], [y])
    data = helper.make_model(
        made, opset_imports=[helper.make_opsetid("", 14)], ir_version=8
    ).SerializeToString()
    assert "Frobnicate" in refusal(BackendError, find_backend("ort-cpu").load, data, "net")[0]


@pytest.mark.parametrize(
    "change",
    [
        lambda x: {k: v for k, v in x.items() if k != "feat_erb"},
        lambda x: {k: v for k, v in x.items() if k != "h0"},
        lambda x: {**x, "colour": x["h0"]},
        lambda x: {**x, "feat_erb": x["feat_erb"][..., :-1].copy()},
        lambda x: {**x, "feat_erb": x["feat_erb"][0]},
        lambda x: {**x, "feat_erb": x["feat_erb"].astype(np.float64)},
        lambda x: {**x, "feat_erb": None},
        lambda x: {**x, "feat_erb": "text"},
    ],
    ids=["no features", "no state", "one more", "other width", "other rank", "other type", "none", "text"],
)
def test_wrong_feeds(session, synthetic_model, change):
    given = change(feeds(session, synthetic_model("lean").config))
    assert refusal(BackendError, session.run, given)[0].startswith("ort-cpu: net failed (")


def test_a_failure_inside_the_runtime_is_an_error_and_no_log(capfd):
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [3])
    three = helper.make_tensor("three", TensorProto.INT64, [1], [3])
    made = helper.make_graph([helper.make_node("Reshape", ["x", "three"], ["y"])], "g", [x], [y], [three])
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    session = find_backend("ort-cpu").load(model.SerializeToString(), "net")
    assert session.run({"x": np.zeros(3, np.float32)})["y"].shape == (3,)
    refusal(BackendError, session.run, {"x": np.zeros(2, np.float32)})
    assert capfd.readouterr() == ("", "")


# -- which one auto takes -----------------------------------------------------------------------------------


@pytest.fixture
def unavailable(monkeypatch):
    """Make a backend as one whose runtime is missing."""

    def make(name):
        def refuse(self, **_options):
            raise BackendUnavailable(f"{self.name}: not on this machine", hint="buy another")

        monkeypatch.setattr(registry.find("backend", name), "__init__", refuse)

    return make


@pytest.fixture
def opened(monkeypatch, synthetic_model):
    """Which backends are asked to open the model, in order."""
    model, names = synthetic_model("lean"), []
    open_graphs = type(model).open

    def watched(self, backend, recipe, *, single_frame=False):
        names.append(backend.name)
        return open_graphs(self, backend, recipe, single_frame=single_frame)

    monkeypatch.setattr(type(model), "open", watched)
    return names


@pytest.mark.parametrize("mode", mode_names())
@pytest.mark.parametrize("missing", [None, "numba"])
def test_auto_takes_the_first_usable_candidate(mode, missing, synthetic_model, unavailable, opened):
    model, recipe = synthetic_model("lean"), find_mode(mode).recipe()
    if missing:
        unavailable(missing)
    quick = mode == "incremental" and missing is None
    assert pick_backend(AUTO, model, recipe).name == ("numba" if quick else "ort-cpu")
    assert opened[-1] == ("numba" if quick else "ort-cpu")
    assert "ort-cpu" not in opened or not quick, "it looked further than it had to"
    candidates = [*survey(model, recipe)]
    assert sorted(c.name for c in candidates) == backend_names()
    assert [c.preference for c in candidates] == sorted((c.preference for c in candidates), reverse=True)
    first = next(c for c in candidates if c.usable)
    assert (first.name, first.backend) == (pick_backend(AUTO, model, recipe).name, find_backend(first.name))
    assert (first.reason, first.hint) == (None, None)


def test_a_candidate_says_why_it_cannot_serve(synthetic_model, unavailable):
    unavailable("numba")
    found = {c.name: c for c in survey(synthetic_model("lean"), find_mode("incremental").recipe())}
    assert not found["numba"].usable
    assert (found["numba"].reason, found["numba"].hint) == ("numba: not on this machine", "buy another")


def test_a_fault_is_told_by_the_survey_and_not_hidden_by_auto(synthetic_model, monkeypatch):
    def broken(*_args, **_options):
        raise MemoryError("too much")

    monkeypatch.setattr(registry.find("backend", "numba"), "choose", broken)
    model, recipe = synthetic_model("lean"), find_mode("incremental").recipe()
    found = {c.name: c for c in survey(model, recipe)}
    assert (found["numba"].refused, found["numba"].hint) == (False, None)
    assert found["numba"].reason == "numba: MemoryError: too much"
    assert found["ort-cpu"].usable
    with pytest.raises(MemoryError, match="too much"):
        pick_backend(AUTO, model, recipe)


def test_options_that_no_backend_takes(synthetic_model):
    found = [*survey(synthetic_model("lean"), find_mode("incremental").recipe(), threads=0)]
    assert len(found) == len(backend_names())
    assert not any(c.usable for c in found)
    assert {type(c.error) for c in found if c.preference >= 0} == {UsageError}


@pytest.mark.usefixtures("added")
def test_auto_never_takes_what_has_to_be_asked_for(synthetic_model, unavailable):
    model, recipe = synthetic_model("lean"), find_mode("incremental").recipe()
    mine = {c.name: c for c in survey(model, recipe)}["my-own"]
    assert (mine.preference, mine.usable) == (-1, True)
    for name in ("numba", "ort-cpu"):
        unavailable(name)
    message, hint = refusal(BackendUnavailable, pick_backend, AUTO, model, recipe)
    assert (message, hint) == ("ort-cpu: not on this machine", "buy another"), "the one that takes most"


@pytest.mark.usefixtures("added")
def test_the_model_has_a_say_in_what_auto_takes(synthetic_model, monkeypatch):
    model, recipe = synthetic_model("lean"), find_mode("incremental").recipe()
    mine = registry.find("backend", "my-own")
    monkeypatch.setattr(mine, "preference", lambda m: 9 if m is model else -1)
    assert pick_backend(AUTO, model, recipe).name == "my-own"
    assert pick_backend(AUTO, synthetic_model("dfn3"), recipe).name == "numba"


@pytest.mark.parametrize("name", backend_names())
@pytest.mark.parametrize("mode", mode_names())
def test_backends_serve_the_modes_that_they_name(name, mode, synthetic_model):
    model, recipe = synthetic_model("lean"), find_mode(mode).recipe()
    try:
        backend = find_backend(name)
        if serves := backend.modes is None or mode in backend.modes:
            model.open(backend, recipe)
    except BackendUnavailable as error:  # of an extra, some of them when they convert
        pytest.skip(str(error))
    if not serves:
        assert f"not {mode}" in refusal(UnsupportedGraph, model.open, backend, recipe)[0]


# -- a backend of one's own ---------------------------------------------------------------------------------


class StandIn(Backend):
    """Another way to run graphs: nothing but what `Backend` and `Session` ask for."""

    name = "stand-in"
    summary = "for a test"

    def __init__(self):
        self.loaded, self.calls = [], 0

    def load(self, graph, name):
        self.loaded.append(name)
        runtime = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        outputs = [port.name for port in runtime.get_outputs()]
        shapes = {port.name: tuple(port.shape) for port in runtime.get_inputs()}
        backend = self

        class Loaded(Session):
            sections = {}  # noqa: RUF012
            states = {name: shapes[name] for name in state_inputs(shapes, outputs)}  # noqa: RUF012

            def run(self, feeds):
                assert feeds.keys() == shapes.keys()
                assert all(x.flags.c_contiguous and x.dtype == np.float32 for x in feeds.values())
                backend.calls += 1
                return dict(zip(outputs, runtime.run(outputs, dict(feeds)), strict=True))

        return Loaded()


@pytest.mark.parametrize("mode", mode_names())
def test_another_backend_runs_every_mode(mode, synthetic_model):
    model, backend = synthetic_model("lean"), StandIn()
    x = np.random.default_rng(3).standard_normal(6 * model.config.hop_size).astype(np.float32) / 10
    theirs, ours = (Stream(model, mode=mode, backend=b) for b in (backend, "ort-cpu"))
    y, expected = (np.concatenate([s.process(x), s.flush()]) for s in (theirs, ours))
    np.testing.assert_allclose(y, expected, atol=1e-6)
    assert np.abs(expected).max() > 0
    assert backend.loaded == list(find_mode(mode).recipe().stems)
    assert backend.calls >= 6 * len(backend.loaded)


def test_a_backend_needs_nothing_but_load():
    with pytest.raises(TypeError, match="load"):
        type("Empty", (Backend,), {"name": "empty", "summary": ""})()


@pytest.fixture
def added(tmp_path, monkeypatch):
    """A file in the folder of backends."""
    import dfstream.backends as package

    (tmp_path / "my_own.py").write_text(
        "import dataclasses\n"
        "from dfstream.backends.base import Backend, find_backend\n"
        "@dataclasses.dataclass(frozen=True)\n"
        "class BACKEND(Backend):\n"
        "    name, summary = 'my-own', 'added by a file'\n"
        "    speed: int = 1\n"
        "    __hash__ = Backend.__hash__\n"
        "    def load(self, graph, name):\n"
        "        return find_backend('ort-cpu').load(graph, name)\n"
    )
    (tmp_path / "_helper.py").write_text("raise RuntimeError\n")
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    yield
    sys.modules.pop("dfstream.backends.my_own", None)


@pytest.mark.usefixtures("added")
def test_a_file_adds_a_backend(synthetic_model):
    assert "my-own" in backend_names()
    assert backend_names() == sorted(backend_names())
    assert find_backend("my-own", speed=2).speed == 2
    assert "my-own" in refusal(UsageError, find_backend, "other")[1]
    x = np.zeros(2 * synthetic_model("lean").config.hop_size, np.float32)
    assert len(Stream(synthetic_model("lean"), backend=find_backend("my-own")).process(x)) == len(x)
