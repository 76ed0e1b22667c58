"""The backend coreml-ep, on a stand-in for ONNX Runtime that looks at options as on macOS."""

import dataclasses
import re
import warnings

import numpy as np
import onnx
import onnxruntime
import pytest
import soundfile
from dfstream.patches.half import compute_half
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnxruntime.capi.onnxruntime_inference_collection import check_and_normalize_provider_args

import oracle
from dfstream import Stream, StreamPool
from dfstream.backends import coreml_ep
from dfstream.backends.base import find_backend, parse_backend
from dfstream.cli import _run
from dfstream.coreml.agreement import check_agreement
from dfstream.coreml.partitions import partition
from dfstream.diskcache import cache_root
from dfstream.errors import BackendError, BackendUnavailable, UnsupportedGraph, UsageError
from dfstream.interface import RESULTS
from dfstream.modes.base import find_mode
from dfstream.patching import canonical_recipe

PROVIDER = "CoreMLExecutionProvider"
STEM = "combined_canonical"

#: Every option of the provider in onnxruntime 1.31, with the values it takes; None is anything.
DOCUMENTED = {
    "ModelFormat": {"MLProgram", "NeuralNetwork"},
    "MLComputeUnits": {"ALL", "CPUOnly", "CPUAndGPU", "CPUAndNeuralEngine"},
    "RequireStaticInputShapes": {"0", "1"},
    "EnableOnSubgraphs": {"0", "1"},
    "SpecializationStrategy": {"Default", "FastPrediction"},
    "ProfileComputePlan": {"0", "1"},
    "AllowLowPrecisionAccumulationOnGPU": {"0", "1"},
    "ModelCacheDirectory": None,
}


class StandIn:
    """The runtime as it is on macOS: looks at the provider's options as it does, computes on the CPU."""

    SessionOptions = onnxruntime.SessionOptions

    def __init__(self, known=DOCUMENTED, providers=(PROVIDER, "CPUExecutionProvider"), version="1.31.1"):
        self.known, self.providers, self.__version__ = known, list(providers), version
        self.attempts, self.graphs, self.change = [], [], None

    def get_available_providers(self):
        return self.providers

    def InferenceSession(self, graph, sess_options, providers, enable_fallback):
        assert enable_fallback == 0, "onnxruntime would print to standard output and go on without Core ML"
        names, (options, _) = check_and_normalize_provider_args(providers, None, self.providers)
        assert names == [PROVIDER, "CPUExecutionProvider"]
        assert options == providers[0][1], "names and values are text"
        self.attempts.append(options)
        for key, value in options.items():
            if key not in self.known:
                raise RuntimeError(
                    "/onnxruntime/core/providers/coreml/coreml_options.cc:91 void onnxruntime::CoreMLOptions"
                    f"::ValidateAndParseProviderOption(const ProviderOptions &) Unknown option: {key}\n"
                )
            assert DOCUMENTED[key] is None or value in DOCUMENTED[key]
        self.graphs.append(graph)
        made = onnxruntime.InferenceSession(graph, sess_options, providers=["CPUExecutionProvider"])
        return _Changed(made, self.change) if self.change else made

    @property
    def options(self):
        """Of the last attempt."""
        return self.attempts[-1]

    @property
    def key(self):
        """The cache key in the last graph."""
        (entry,) = [
            p for p in onnx.load_from_string(self.graphs[-1]).metadata_props if p.key == "COREML_CACHE_KEY"
        ]
        return entry.value


class _Changed:
    """A session whose results are not what they should be."""

    def __init__(self, session, change):
        self._session, self._change = session, change

    def __getattr__(self, name):
        return getattr(self._session, name)

    def run(self, names, feeds):
        return [self._change(name, x) for name, x in zip(names, self._session.run(names, feeds), strict=True)]


@pytest.fixture
def runtime(monkeypatch):
    """Put a stand-in in the runtime's place."""

    def put(**options):
        made = StandIn(**options)
        monkeypatch.setattr(coreml_ep, "_runtime", lambda: made)
        return made

    return put


@pytest.fixture
def mac(runtime):
    return runtime()


@pytest.fixture
def fresh(synthetic_model):
    """A model that has loaded nothing yet: sessions of one stand-in are no use to another."""

    def get(name="dfn3"):
        model = synthetic_model(name)
        recipes = canonical_recipe(), find_mode("incremental").recipe()
        return model.with_patched({s: data for recipe in recipes for s, data in model.graphs(recipe).items()})

    return get


def canonical(model):
    return model.graphs(canonical_recipe())[STEM]


def refusal(kind, call, *args, **options):
    with pytest.raises(kind) as caught:
        call(*args, **options)
    assert str(caught.value).isprintable()
    return str(caught.value), caught.value.hint


# -- where it can run ------------------------------------------------------------------------------


@pytest.mark.parametrize(("platform", "reason"), [
    ("linux", "coreml-ep: Core ML exists on macOS only"),
    ("win32", "coreml-ep: Core ML exists on macOS only"),
    ("darwin", "coreml-ep: this onnxruntime 1.31.1 was built without Core ML"),
])  # fmt: skip
def test_without_the_provider(runtime, monkeypatch, platform, reason):
    runtime(providers=["CPUExecutionProvider"])
    monkeypatch.setattr(coreml_ep.sys, "platform", platform)
    message, hint = refusal(BackendUnavailable, find_backend, "coreml-ep")
    assert message == reason
    assert "ort-cpu" in hint
    assert "numba" in hint
    assert ("dfstream convert" in hint) is (platform != "darwin")


@pytest.mark.skipif(PROVIDER in onnxruntime.get_available_providers(), reason="runs here")
def test_off_macos_a_stream_and_the_command_line_say_one_line(capsys, tmp_path, noisy):
    message, _ = refusal(BackendUnavailable, Stream, backend="coreml-ep")
    soundfile.write(tmp_path / "in.wav", noisy[:9600], 48_000)
    for line in ("coreml-ep", "coreml-ep:units=all"):
        assert _run(["run", str(tmp_path / "in.wav"), str(tmp_path / "out.wav"), "--backend", line]) == 4
        out, err = capsys.readouterr()
        assert out == ""
        assert err.splitlines()[0] == f"error: {message}"
        assert len(err.splitlines()) == 2
    assert not (tmp_path / "out.wav").exists()


def test_a_missing_runtime(monkeypatch):
    monkeypatch.setitem(coreml_ep.sys.modules, "onnxruntime", None)
    message, hint = refusal(BackendUnavailable, find_backend, "coreml-ep")
    assert "onnxruntime cannot be imported" in message
    assert hint == "pip install onnxruntime"


@pytest.mark.usefixtures("mac")
@pytest.mark.parametrize("options", [
    {"units": "gpu"}, {"units": "ALL"}, {"precision": "int8"}, {"precision": "fp32"}, {"format": "mlprogram"},
    {"mismatch": "ignore"}, {"threads": 0}, {"cache": 5}, {"cache": True}, {"device": "ane"},
    {"precision": "fp16", "format": "NeuralNetwork"},
])  # fmt: skip
def test_an_option_out_of_range(options):
    refusal(UsageError, find_backend, "coreml-ep", **options)


@pytest.mark.usefixtures("mac")
def test_a_backend_in_one_line():
    made = parse_backend("coreml-ep:units=cpu+ane,precision=fp16,mismatch=warn")
    assert made == find_backend("coreml-ep", units="cpu+ane", precision="fp16", mismatch="warn")
    assert made != find_backend("coreml-ep")
    assert hash(made) == hash(parse_backend("coreml-ep:units=cpu+ane,precision=fp16,mismatch=warn"))


@pytest.mark.usefixtures("mac")
@pytest.mark.parametrize("mode", ["streaming", "stateful-h0", "stateless-window-last"])
def test_serves_the_mode_incremental_only(fresh, mode):
    recipe = find_mode(mode).recipe()
    message, _ = refusal(UnsupportedGraph, fresh().open, find_backend("coreml-ep"), recipe)
    assert message == f"the backend coreml-ep runs the mode incremental, not {mode}"


@pytest.mark.usefixtures("mac")
def test_loads_the_canonical_graph_only(fresh):
    (graph,) = fresh().graphs(find_mode("incremental").recipe()).values()
    message, _ = refusal(UnsupportedGraph, find_backend("coreml-ep").load, graph, "net")
    assert message == "the backend coreml-ep runs the canonical graph, net is another"


# -- what the provider is told ---------------------------------------------------------------------


@pytest.mark.parametrize(("units", "told"), [
    ("cpu", "CPUOnly"), ("cpu+gpu", "CPUAndGPU"), ("cpu+ane", "CPUAndNeuralEngine"), ("all", "ALL"),
])  # fmt: skip
@pytest.mark.parametrize("model_format", ["MLProgram", "NeuralNetwork"])
def test_options_of_the_provider(mac, fresh, units, told, model_format):
    backend = find_backend("coreml-ep", units=units, format=model_format)
    backend.load(canonical(fresh()), STEM)
    assert mac.options == {
        "ModelFormat": model_format,
        "MLComputeUnits": told,
        "ModelCacheDirectory": str(cache_root() / "coreml" / "compiled"),
    }
    assert {*mac.options} <= {*DOCUMENTED}
    assert len(mac.attempts) == 1


def test_by_default_on_the_cpu_as_a_program(mac, fresh):
    find_backend("coreml-ep").load(canonical(fresh()), STEM)
    assert mac.options["ModelFormat"] == "MLProgram"
    assert mac.options["MLComputeUnits"] == "CPUOnly"


def test_an_older_runtime_without_the_cache(runtime, fresh):
    older = runtime(known={"ModelFormat", "MLComputeUnits", "RequireStaticInputShapes", "EnableOnSubgraphs"})
    find_backend("coreml-ep").load(canonical(fresh()), STEM)
    first, second = older.attempts
    assert {*first} - {*second} == {"ModelCacheDirectory"}
    assert {key: first[key] for key in second} == second


@pytest.mark.parametrize("missing", ["ModelFormat", "MLComputeUnits"])
def test_an_older_runtime_without_what_results_depend_on(runtime, fresh, missing):
    older = runtime(known={*DOCUMENTED} - {missing})
    message, hint = refusal(BackendError, find_backend("coreml-ep").load, canonical(fresh()), STEM)
    assert f"Unknown option: {missing}" in message
    assert hint == "pip install -U onnxruntime"
    assert len(older.attempts) == 1


def test_a_graph_that_core_ml_cannot_load(mac, fresh):
    def fail(*_args, **_options):
        raise RuntimeError("The current system does not have Apple Neural Engine.\nmore")

    mac.InferenceSession = fail
    message, hint = refusal(BackendError, find_backend("coreml-ep").load, canonical(fresh()), STEM)
    assert message == (
        f"coreml-ep: Core ML cannot load {STEM} (The current system does not have Apple Neural Engine.)"
    )
    assert "units" in hint


def test_a_call_that_fails(mac, fresh):
    def fail(*_):
        raise RuntimeError("it broke\nhere")

    mac.change = fail
    recipe = find_mode("incremental").recipe()
    message, _ = refusal(BackendError, fresh().open, find_backend("coreml-ep"), recipe)
    assert message == f"coreml-ep: {STEM} failed (it broke)"


# -- the cache -------------------------------------------------------------------------------------


def test_the_cache_key_is_one_of_the_contents(mac, runtime, fresh):
    graph = canonical(fresh())

    def key(data=graph, stand_in=mac, **options):
        find_backend("coreml-ep", **options).load(data, STEM)
        return stand_in.key

    first = key()
    assert re.fullmatch(r"[0-9a-zA-Z]{32,63}", first)
    assert key() == key(units="all") == first
    nudged = onnx.load_from_string(graph)
    weight = next(t for t in nudged.graph.initializer if t.data_type == onnx.TensorProto.FLOAT)
    weight.raw_data = bytes([weight.raw_data[0] ^ 1]) + weight.raw_data[1:]
    others = [
        key(nudged.SerializeToString()), key(format="NeuralNetwork"), key(precision="fp16"),
        key(canonical(fresh("lean"))), key(stand_in=runtime(version="1.32.0")),
    ]  # fmt: skip
    assert len({first, *others}) == 6


def test_the_cache_lies_where_it_is_wanted(mac, fresh, tmp_path):
    folder = tmp_path / "not" / "there"
    find_backend("coreml-ep", cache=str(folder)).load(canonical(fresh()), STEM)
    assert mac.options["ModelCacheDirectory"] == str(folder)
    assert folder.is_dir()


def test_without_a_place_for_the_cache(mac, fresh, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    message, _ = refusal(
        UsageError, find_backend("coreml-ep", cache=str(tmp_path / "file")).load, canonical(fresh()), STEM
    )
    assert "cannot make the folder" in message
    graph = canonical(fresh())
    monkeypatch.setenv("DFSTREAM_CACHE", str(tmp_path / "file"))
    find_backend("coreml-ep").load(graph, STEM)
    assert "ModelCacheDirectory" not in mac.options


# -- the first frames ------------------------------------------------------------------------------


def off_by(amount, result):
    return lambda name, x: x + x.dtype.type(amount) if name == result else x


@pytest.mark.parametrize(("options", "result", "amount", "passes"), [
    ({}, "mask", 5e-5, True), ({}, "mask", 1e-3, False), ({}, "coefs", 1e-3, False), ({}, "lsnr", 0.1, False),
    ({}, "lsnr", 1e-3, True), ({}, "mask", np.nan, False), ({}, "h_out", np.inf, False),
    ({"precision": "fp16"}, "mask", 2e-2, True), ({"precision": "fp16"}, "mask", 0.1, False),
    ({"units": "all"}, "mask", 1e-3, False), ({"format": "NeuralNetwork"}, "mask", 1e-3, False),
    ({"units": "cpu+gpu", "format": "NeuralNetwork"}, "mask", 2e-2, True),
])  # fmt: skip
def test_wrong_numbers_are_refused(mac, fresh, options, result, amount, passes):
    mac.change = off_by(amount, result)
    recipe = find_mode("incremental").recipe()
    if passes:
        fresh().open(find_backend("coreml-ep", **options), recipe)
        return
    message, hint = refusal(BackendError, fresh().open, find_backend("coreml-ep", **options), recipe)
    assert message.startswith(
        "coreml-ep: Core ML computes something else than ort-cpu here: gains differ by "
    )
    assert "mismatch=warn" in hint
    with pytest.warns(UserWarning, match="coreml-ep: Core ML computes something else"):
        fresh().open(find_backend("coreml-ep", **options, mismatch="warn"), recipe)


LIMITS = {"fp32": 1e-4, "fp16": 0.05, "ane": 0.05, "int8": 0.2, "palette": 0.2}


@pytest.mark.parametrize("name", RESULTS)
@pytest.mark.parametrize("precision", LIMITS)
def test_bounds_of_the_first_frames(fresh, name, precision):
    """Of any runtime: twice the bound is refused, as is another shape, half of it passes."""
    model = fresh()
    (exact,) = model.open(find_backend("ort-cpu"), find_mode("incremental").recipe()).values()
    scale = 50 if name == "lsnr" else 1

    class Off:
        states = exact.states

        def run(self, feeds):
            return {**exact.run(feeds), name: self.change(exact.run(feeds)[name])}

    off, limit = Off(), np.float32(LIMITS[precision] * scale)
    off.change = lambda x: x + limit / 2
    check_agreement(off, model, precision, "refuse", "mine")
    for off.change in (lambda x: x + limit * 2, lambda x: x[..., :1, :]):
        message, _ = refusal(BackendError, check_agreement, off, model, precision, "refuse", "mine")
        assert message.startswith("mine: ")


@pytest.mark.parametrize("preset", ["dfn3", "dfn2", "dfn2-ll", "dfn3-ll", "lean"])
@pytest.mark.usefixtures("mac")
def test_every_variant_agrees(fresh, preset):
    for precision in ("float32", "fp16"):
        fresh(preset).open(find_backend("coreml-ep", precision=precision), find_mode("incremental").recipe())


# -- the network -----------------------------------------------------------------------------------


@pytest.fixture
def network(mac, fresh):
    """Streams of one model, on coreml-ep by default."""
    assert mac
    model = fresh()

    def stream(backend="coreml-ep", **options):
        return Stream(model, backend=backend, **options)

    return stream


def joined(stream, *chunks):
    return np.concatenate([*map(stream.process, chunks), stream.flush()])


def test_sounds_as_ort_cpu_does(network, noisy):
    x = noisy[:24_000]
    for options in ({}, {"block_frames": 7}):
        y, expected = (joined(network(backend, **options), x) for backend in ("coreml-ep", "ort-cpu"))
        np.testing.assert_allclose(y, expected, atol=1e-6)  # measured 1e-7: another order of sums
        assert np.abs(expected).max() > 0.01


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.sets(st.integers(1, 9_599), max_size=6))
def test_output_does_not_depend_on_chunks(network, noisy, cuts):
    x = noisy[:9_600]
    whole = joined(network(), x)
    np.testing.assert_array_equal(joined(network(), *np.split(x, sorted(cuts))), whole)


@pytest.mark.parametrize("precision", ["float32", "fp16"])
def test_reset_and_snapshot(network, noisy, precision):
    stream, x, rest = network(precision=precision), noisy[:7_000], noisy[7_000:14_000]
    first = stream.process(x)
    saved = stream.snapshot()
    after = joined(stream, rest)
    other = network(precision=precision)
    other.restore(saved)
    np.testing.assert_array_equal(joined(other, rest), after)
    stream.reset()
    np.testing.assert_array_equal(stream.process(x), first)


def test_two_streams_are_two_streams(network, noisy):
    x = np.stack([noisy[:9_600], noisy[9_600:19_200]], 1)
    both = joined(network(channels=2), x)
    for i in range(2):
        np.testing.assert_array_equal(both[:, i], joined(network(), np.ascontiguousarray(x[:, i])))


def test_a_pool_of_streams(mac, fresh, noisy):
    assert mac
    model = fresh()
    pool = StreamPool(model, capacity=2, backend="coreml-ep")
    one, two = pool.join(), pool.join()
    out = pool.process({one: noisy[:4_800], two: noisy[4_800:9_600]})
    alone = Stream(model, backend="coreml-ep").process(noisy[4_800:9_600])
    np.testing.assert_array_equal(out[two], alone)


@pytest.mark.parametrize(("low", "high", "highest"), [(-15, 35, 35), (5, 12, 10), (0, 3, 35), (35, 35, 35)])
def test_thresholds_act_as_with_ort_cpu(network, noisy, low, high, highest):
    options = {"min_db_thresh": low, "max_db_erb_thresh": high, "max_db_df_thresh": highest}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        streams = [network(backend, **options) for backend in ("coreml-ep", "ort-cpu")]
    y, expected = (joined(stream, noisy[:48_000]) for stream in streams)
    np.testing.assert_allclose(y, expected, atol=1e-6)


@pytest.mark.usefixtures("mac")
def test_a_decoder_that_waits_keeps_its_own_states(fresh):
    """The one hidden state of the graph is three here."""
    (session,) = fresh().open(find_backend("coreml-ep"), find_mode("incremental").recipe()).values()
    assert {*session.sections} == {*session.states}
    assert {"enc", "erb", "df"} == {*session.sections.values()}
    assert {name for name in session.states if name.startswith("h_")} == {"h_enc", "h_erb", "h_df"}


def test_the_whole_command_line(mac, bundled, monkeypatch, capsys, tmp_path, noisy):
    from dfstream.model import Model

    mine = bundled.with_patched({})
    monkeypatch.setattr(Model, "load", lambda *_: mine)
    soundfile.write(tmp_path / "in.wav", noisy[:24_000], 48_000, "FLOAT")
    for backend in ("coreml-ep:units=all", "ort-cpu"):
        target = tmp_path / f"{backend.partition(':')[0]}.wav"
        code = _run(["run", str(tmp_path / "in.wav"), str(target), "--backend", backend])
        assert code == 0, capsys.readouterr().err
    assert mac.options["MLComputeUnits"] == "ALL"
    y, expected = (soundfile.read(tmp_path / f"{name}.wav")[0] for name in ("coreml-ep", "ort-cpu"))
    np.testing.assert_allclose(y, expected, atol=1e-6)
    assert (
        _run(["run", str(tmp_path / "in.wav"), str(tmp_path / "x.wav"), "--backend", "coreml-ep:units=gpu"])
        == 2
    )
    assert (
        _run(["run", str(tmp_path / "in.wav"), str(tmp_path / "x.wav"), "--backend", "core-ml:units=all"])
        == 2
    )
    assert not (tmp_path / "x.wav").exists()


def test_options_in_the_line_win_over_the_others(network):
    assert network("numba:precision=int16", precision="float32")._backend.precision == "int16"
    assert network("coreml-ep:units=all", precision="fp16")._backend.precision == "fp16"


# -- float16 ---------------------------------------------------------------------------------------


def test_half_precision_is_half_throughout(fresh):
    data = compute_half(canonical(fresh()))
    half, whole = onnx.load_from_string(data), onnx.load_from_string(canonical(fresh()))
    kinds = {t.data_type for t in half.graph.initializer}
    assert kinds == {onnx.TensorProto.FLOAT16, onnx.TensorProto.INT64}
    for value in (*half.graph.input, *half.graph.output):
        assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16, value.name
    assert [n.op_type for n in half.graph.node] == [n.op_type for n in whole.graph.node], "no Cast"
    assert list(half.metadata_props) == list(whole.metadata_props)
    inferred = onnx.shape_inference.infer_shapes(half, check_type=True, strict_mode=True)
    assert {v.type.tensor_type.elem_type for v in inferred.graph.value_info} == {onnx.TensorProto.FLOAT16}


@oracle.every_model()
def test_core_ml_takes_the_half_graph_in_one_piece(name):
    # not simplified: on a processor without float16 the runtime would put Casts in
    half = onnx.load_from_string(compute_half(canonical(oracle.case(name).model)))
    assert partition(half, "MLProgram").sizes == (len(half.graph.node),)
    assert partition(half, "NeuralNetwork").taken == 0


def test_half_precision_is_inexact_and_near(mac, bundled, noisy):
    assert mac
    model, x = bundled.with_patched({}), noisy[:96_000]
    exact = joined(Stream(model, backend="ort-cpu"), x).astype(np.float64)
    half = joined(Stream(model, backend="coreml-ep", precision="fp16"), x)
    snr = 10 * np.log10(np.mean(exact**2) / np.mean((half - exact) ** 2))
    assert 55 < snr < 90  # measured 68; rounding to float32 would be above 120


def test_half_precision_refuses_what_does_not_fit(fresh):
    model = onnx.load_from_string(canonical(fresh()))
    weight = next(t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT)
    values = onnx.numpy_helper.to_array(weight).copy()
    values.flat[0] = 7e4
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    assert (
        "beyond the range of float16" in refusal(UnsupportedGraph, compute_half, model.SerializeToString())[0]
    )
    (graph,) = fresh().graphs(find_mode("incremental").recipe()).values()
    assert "no float16 form for " in refusal(UnsupportedGraph, compute_half, graph)[0]


def test_every_option_is_described():
    described = re.findall(r"^    (\w+) : ", coreml_ep.CoremlEp.__doc__, re.MULTILINE)
    assert described == [field.name for field in dataclasses.fields(coreml_ep.CoremlEp)]
