"""The backend mlpackage, on a stand-in for Core ML that is as strict about arrays and computes in numpy."""

import re
import sys
import threading
import warnings

import numpy as np
import pytest
import soundfile

import oracle
import packages
from dfstream import Stream, StreamPool
from dfstream.backends import mlpackage
from dfstream.backends.base import backend_names, find_backend, parse_backend, pick_backend
from dfstream.cli import _run
from dfstream.coreml.flavour import Flavour
from dfstream.errors import BackendError, BackendUnavailable, UnsupportedGraph, UsageError
from dfstream.interface import FEATURES
from dfstream.model import Model
from dfstream.modes.base import find_mode, initial_states

INCREMENTAL = find_mode("incremental").recipe()

FLAVOURS = {
    "fp32": Flavour("fp32"), "ane": Flavour("ane"), "coreml": Flavour("fp16", "coreml"),
    "ane coreml": Flavour("ane", "coreml"), "block": Flavour("fp32", block_frames=3),
}  # fmt: skip


@pytest.fixture
def runtime(monkeypatch):
    """Put a stand-in in the place of Core ML."""

    def put(**options):
        made = packages.StandIn(**options)
        monkeypatch.setattr(mlpackage, "_runtime", lambda: made)
        monkeypatch.setattr(mlpackage.time, "perf_counter", lambda: made.clock)
        return made

    return put


@pytest.fixture
def mac(runtime):
    return runtime()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Packages made by hand, each written once."""
    made = {}

    def get(kind="fp32", name="dfn3"):
        if (kind, name) not in made:
            folder = tmp_path_factory.mktemp("package") / f"{name}.mlpackage"
            made[kind, name] = packages.by_hand(oracle.case(name).model, FLAVOURS[kind]).write(folder)
        return made[kind, name]

    return get


@pytest.fixture
def package(path):
    """Packages that have loaded nothing yet: sessions of one stand-in are no use to another."""
    return lambda kind="fp32", name="dfn3": Model.load(path(kind, name))


def refusal(kind, call, *args, **options):
    with pytest.raises(kind) as caught:
        call(*args, **options)
    assert str(caught.value).isprintable()
    return str(caught.value), caught.value.hint


def joined(stream, x, size=480):
    return np.concatenate(
        [*(stream.process(x[i : i + size]) for i in range(0, len(x), size)), stream.flush()]
    )


# -- where it can run ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("platform", ["linux", "win32"])
def test_off_macos_it_says_one_line(monkeypatch, capsys, tmp_path, noisy, platform, path):
    monkeypatch.setattr(mlpackage.sys, "platform", platform)
    message, hint = refusal(BackendUnavailable, find_backend, "mlpackage")
    assert message == "mlpackage: Core ML exists on macOS only"
    assert hint == "mlpackage-reference runs packages here, slowly; numba and ort-cpu run the model"
    assert "mlpackage" in backend_names()
    monkeypatch.undo()
    if sys.platform != "darwin":
        soundfile.write(tmp_path / "x.wav", noisy[:4800], 48_000)
        files = [str(tmp_path / "x.wav"), str(tmp_path / "y.wav")]
        assert _run(["run", *files, "-m", str(path()), "--backend", "mlpackage:units=all"]) == 4
        out, err = capsys.readouterr()
        assert (out, err.splitlines()) == ("", [f"error: {message}", f"hint: {hint}"])


def test_on_macos_without_coremltools(monkeypatch):
    monkeypatch.setattr(mlpackage.sys, "platform", "darwin")
    monkeypatch.setitem(sys.modules, "coremltools", None)
    message, hint = refusal(BackendUnavailable, find_backend, "mlpackage")
    assert message.startswith("coremltools cannot be imported (")
    assert hint == "pip install 'dfstream[coreml]'"


@pytest.mark.usefixtures("mac")
@pytest.mark.parametrize("options", [
    {"units": "ane"}, {"units": "CPU"}, {"mismatch": "ignore"}, {"precision": "fp32"}, {"threads": 0},
    {"state": "none"}, {"frames": 17}, {"device": 1},
])  # fmt: skip
def test_an_option_out_of_range(options):
    refusal(UsageError, find_backend, "mlpackage", **options)


@pytest.mark.usefixtures("mac")
def test_a_backend_in_one_line():
    made = parse_backend("mlpackage:units=cpu+ane,state=coreml,precision=ane,mismatch=warn")
    assert made == find_backend(
        "mlpackage", units="cpu+ane", state="coreml", precision="ane", mismatch="warn"
    )
    assert hash(made) == hash(
        parse_backend("mlpackage:units=cpu+ane,state=coreml,precision=ane,mismatch=warn")
    )
    assert made != find_backend("mlpackage")


@pytest.mark.usefixtures("mac")
def test_it_is_first_for_packages_and_never_for_exports(package):
    assert pick_backend("auto", package(), INCREMENTAL).name == "mlpackage"
    assert pick_backend("auto", oracle.case("dfn3").model, INCREMENTAL).name != "mlpackage"


@pytest.mark.usefixtures("mac")
def test_serves_the_mode_incremental_only(package):
    recipe = find_mode("streaming").recipe()
    message, _ = refusal(UnsupportedGraph, package().open, find_backend("mlpackage"), recipe)
    assert message == "the backend mlpackage runs the mode incremental, not streaming"


# -- what it computes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FLAVOURS)
def test_as_the_reference(mac, package, path, noisy, kind):
    """The stand-in computes as the interpreter: whatever differs, this backend did."""
    x = noisy[20_000:40_000]
    want = joined(Stream(package(kind), backend="mlpackage-reference"), x)
    np.testing.assert_array_equal(joined(Stream(package(kind), backend="mlpackage"), x), want)
    assert mac.loaded == [(path(kind), "CPU_ONLY")]
    assert mac.calls > 40 // FLAVOURS[kind].block_frames


@pytest.mark.usefixtures("mac")
@pytest.mark.parametrize("kind", ["fp32", "coreml", "ane coreml"])
def test_streams_on_one_package_do_not_mix(package, noisy, kind):
    """In turns, in a pool, in threads: each gives what it gives alone, whoever keeps the states."""
    made = package(kind)
    signals = [noisy[start : start + 7200] for start in (20_000, 40_000, 60_000)]
    want = [joined(Stream(package(kind), backend="mlpackage"), x) for x in signals]
    streams = [Stream(made, backend="mlpackage") for _ in signals]
    turns = [
        [s.process(x[i : i + 480]) for s, x in zip(streams, signals, strict=True)]
        for i in range(0, 7200, 480)
    ]
    for k, stream in enumerate(streams):
        got = np.concatenate([*(turn[k] for turn in turns), stream.flush()])
        np.testing.assert_array_equal(got, want[k])
    pool = StreamPool(made, capacity=3, backend="mlpackage")
    for key in range(3):
        pool.join(key)
    found = [pool.process({k: x[i : i + 480] for k, x in enumerate(signals)}) for i in range(0, 7200, 480)]
    for key in range(3):
        got = np.concatenate([*(turn[key] for turn in found), pool.leave(key)])
        np.testing.assert_array_equal(got, want[key])
    together: dict = {}
    threads = [
        threading.Thread(
            target=lambda k=k, x=x: together.update({k: joined(Stream(made, backend="mlpackage"), x)})
        )
        for k, x in enumerate(signals)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for key in range(3):
        np.testing.assert_array_equal(together[key], want[key])


@pytest.mark.usefixtures("mac")
@pytest.mark.parametrize("kind", FLAVOURS)
def test_snapshots_continue_bit_for_bit(package, noisy, kind):
    x, made = noisy[20_000:30_000], package(kind)
    want = joined(Stream(made, backend="mlpackage"), x)
    stream = Stream(made, backend="mlpackage")
    head = stream.process(x[:4321])
    snapshot, twin = stream.snapshot(), stream.clone()
    stream.process(x[::-1])
    stream.restore(type(snapshot).from_bytes(snapshot.to_bytes()))
    for other in (stream, twin):
        np.testing.assert_array_equal(np.concatenate([head, joined(other, x[4321:])]), want)
    stream.reset()
    np.testing.assert_array_equal(joined(stream, x), want)


# -- units ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("units", "name"), [
    ("cpu", "CPU_ONLY"), ("cpu+gpu", "CPU_AND_GPU"), ("cpu+ane", "CPU_AND_NE"), ("all", "ALL"),
])  # fmt: skip
def test_units_that_are_quick(mac, package, path, units, name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        package().open(find_backend("mlpackage", units=units), INCREMENTAL)
    assert mac.loaded == [(path(), name)]
    tested = mac.calls - 16  # frames of the comparison
    assert tested == (0 if units == "cpu" else 200)


@pytest.mark.parametrize(("seconds", "slow"), [(2.9e-3, False), (3.1e-3, True), (1.0, True)])
@pytest.mark.parametrize("kind", ["ane", "coreml"])
def test_units_that_are_slow_are_given_up(runtime, package, kind, seconds, slow):
    mac, backend = runtime(seconds=seconds), find_backend
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made = package(kind)
        made.open(backend("mlpackage", units="cpu+ane"), INCREMENTAL)
    units = [used for _, used in mac.loaded]
    assert units == ["CPU_AND_NE", *["CPU_ONLY"] * slow]
    said = [str(warning.message) for warning in caught]
    assert said == ["mlpackage: units=cpu+ane needs more than 3 ms for some calls: using cpu"] * slow
    before = mac.clock
    stream = Stream(made, backend=backend("mlpackage", units="cpu+ane"))
    stream.process(np.zeros(4800, np.float32))
    assert (mac.clock == before) is slow


# -- wrong numbers -------------------------------------------------------------------------------------------


def _wrong(name, change):
    return {"change": lambda key, array: change(array).astype(array.dtype) if key == name else array}


WRONG = {
    "gains": _wrong("mask", lambda x: np.clip(x + 0.3, 0, 2)),
    "taps": _wrong("coefs", lambda x: x[:, ::-1]),
    "not a number": _wrong("lsnr", lambda x: x * np.nan),
    "infinite": _wrong("coefs", lambda x: x + np.inf),
    "a state": _wrong("h_out", lambda x: x * np.nan),
    "the LSNR": _wrong("lsnr", lambda x: x + 20),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_numbers_are_refused_or_warned_about(runtime, package, wrong):
    runtime(**WRONG[wrong])
    message, hint = refusal(BackendError, package().open, find_backend("mlpackage"), INCREMENTAL)
    assert message.startswith("mlpackage: Core ML computes something else than mlpackage-reference here: ")
    assert hint == "try other units, use mlpackage-reference, or mismatch=warn to run it all the same"
    with pytest.warns(UserWarning, match="Core ML computes something else"):
        package().open(find_backend("mlpackage", mismatch="warn"), INCREMENTAL)


@pytest.mark.parametrize(("kind", "units", "off", "bound"), [
    ("fp32", "cpu", 5e-4, 1e-4), ("fp32", "cpu+gpu", 0.06, 0.05), ("ane", "cpu", 0.06, 0.05),
    ("coreml", "cpu", 0.06, 0.05),
])  # fmt: skip
def test_bounds_go_by_precision(runtime, package, kind, units, off, bound):
    """Float32 has to be exact where Core ML computes in float32, and nowhere else."""
    for error, fits in ((0.8 * bound, True), (off, False)):
        runtime(**_wrong("mask", lambda x, error=error: x + error))
        opened = package(kind).open, find_backend("mlpackage", units=units), INCREMENTAL
        if fits:
            opened[0](*opened[1:])
        else:
            assert f"{bound:g} would be rounding" in refusal(BackendError, *opened)[0]


# -- failures ------------------------------------------------------------------------------------------------


def test_a_package_that_core_ml_cannot_load(mac, package, path):
    def fail(*_, **__):
        raise RuntimeError("Error compiling model: \x1b[1mno\nstack of Core ML\nmore")

    mac.models.MLModel = fail
    message, _ = refusal(BackendError, package().open, find_backend("mlpackage"), INCREMENTAL)
    assert message == rf"mlpackage: Core ML cannot load {path()} (Error compiling model: \x1b[1mno)"


@pytest.mark.parametrize("kind", ["fp32", "coreml"])
def test_a_call_that_fails(mac, package, kind):
    """One line; the stream that comes after is none the worse."""
    made, x = package(kind), np.zeros(4800, np.float32)
    stream = Stream(made, backend="mlpackage")
    want = joined(Stream(made, backend="mlpackage"), x)

    def fail(*_):
        raise RuntimeError("")

    mac.change = fail
    message, _ = refusal(BackendError, stream.process, x)
    assert message == "mlpackage: Core ML failed (RuntimeError)"
    mac.change = None
    np.testing.assert_array_equal(joined(Stream(made, backend="mlpackage"), x), want)


@pytest.mark.usefixtures("mac")
def test_a_call_with_other_arrays_is_refused_before_core_ml_sees_them(package):
    (session,) = package("ane").open(find_backend("mlpackage"), INCREMENTAL).values()
    config = oracle.case("dfn3").model.config
    feeds = {**oracle.noise(config, 2, seed=1), **initial_states(session, 1)}
    session.run(feeds)
    for name in (*FEATURES, "h_erb"):
        message, _ = refusal(BackendError, session.run, {**feeds, name: feeds[name][..., :0]})
        assert re.match(f"{name} is no float32 array of the shape", message)
