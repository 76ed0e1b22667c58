"""A Core ML package in place of a model: loaded, inspected, streamed by the numpy interpreter, damaged."""

import dataclasses
import json

import numpy as np
import pytest
import soundfile

import oracle
import packages
from dfstream import Stream, StreamPool, enhance
from dfstream.backends.base import find_backend, pick_backend
from dfstream.cli import _run
from dfstream.coreml.flavour import Flavour
from dfstream.errors import BackendError, ModelError, UnsupportedGraph, UsageError
from dfstream.inspection import coreml_partitions, inspect_model, measure_precisions
from dfstream.model import Model
from dfstream.modes.base import find_mode, mode_names
from dfstream.patching import canonical_recipe
from exports import refusal

#: The reference in float32; packages made by hand compute in float32 and round their interface only.
REFERENCE = find_backend("ort-cpu")

FP32, ANE, COREML = Flavour("fp32"), Flavour("ane"), Flavour("fp16", "coreml")
FLAVOURS = {"fp32": FP32, "ane": ANE, "coreml": COREML, "block": Flavour("fp32", block_frames=3)}

#: Audio of those, largest difference to float32: states and results rounded to half precision.
LIMITS = {"fp32": 2e-6, "ane": 2e-3, "coreml": 2e-3, "block": 2e-6}


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """Packages made by hand, each loaded once."""
    made = {}

    def get(kind="fp32", name="dfn3"):
        if (kind, name) not in made:
            path = tmp_path_factory.mktemp("package") / f"{name}.mlpackage"
            packages.by_hand(oracle.case(name).model, FLAVOURS[kind]).write(path)
            made[kind, name] = Model.load(path)
        return made[kind, name]

    return get


@pytest.fixture(params=FLAVOURS)
def kind(request):
    return request.param


def joined(stream, x, sizes=(480,)):
    cuts = np.cumsum(np.resize(sizes, len(x)))
    pieces = np.split(x, cuts[cuts < len(x)])
    return np.concatenate([*map(stream.process, pieces), stream.flush()])


# -- loading -------------------------------------------------------------------------------------------------


def test_a_package_is_a_model(package, kind):
    made, source = package(kind), oracle.case("dfn3").model
    assert (made.name, made.config, made.sha256) == ("dfn3", source.config, source.sha256)
    assert made.package is not None
    assert source.package is None
    assert not made.is_export
    assert made.source_graphs() == made.files_at_hand() == {}


def test_runs_in_one_mode(package):
    for mode in mode_names():
        if mode != "incremental":
            with pytest.raises(UnsupportedGraph) as caught:
                Stream(package(), mode=mode, backend="mlpackage-reference")
            assert str(caught.value).isprintable()
            assert "the mode incremental" in str(caught.value)
    with pytest.raises(UnsupportedGraph, match="is a Core ML package: it runs in the mode incremental"):
        package().graphs(canonical_recipe())
    for name in ("ort-cpu", "numba"):
        with pytest.raises((UnsupportedGraph, BackendError)) as caught:
            Stream(package(), backend=name)
        assert str(caught.value).isprintable()


def test_auto_is_the_reference_off_macos(package):
    picked = pick_backend("auto", package(), find_mode("incremental").recipe(), single_frame=True)
    assert picked.name == "mlpackage-reference"
    assert Stream(package())._backend.name == "mlpackage-reference"


@pytest.mark.parametrize("mode", ["streaming", "stateful-h0"])
def test_auto_in_another_mode_says_why(package, mode):
    with pytest.raises((UnsupportedGraph, BackendError)) as caught:
        Stream(package(), mode=mode)
    assert "incremental" in str(caught.value)


@pytest.mark.parametrize("precision", ["fp16", "int8", "palette", "ane"])
def test_another_precision_than_its_own(package, precision):
    with pytest.raises(UsageError, match=f"is a package of precision fp32, not {precision}") as caught:
        Stream(package(), backend="mlpackage-reference", precision=precision)
    assert caught.value.hint == f"convert the model again: dfstream convert MODEL --precision {precision}"


def test_its_own_precision_may_be_named(package):
    Stream(package("ane"), backend="mlpackage-reference", precision="ane")
    Stream(package("coreml"), backend="mlpackage-reference:precision=fp16")


def test_graphs_are_not_for_it():
    with pytest.raises(UsageError, match="runs packages, not the graph x"):
        find_backend("mlpackage-reference").load(b"", "x")


@pytest.mark.parametrize("options", [
    {"precision": "fp32"}, {"precision": "int16"}, {"threads": 0}, {"state": "both"}, {"frames": 0},
    {"frames": 17}, {"state": "coreml", "precision": "palette"}, {"units": "cpu"},
])  # fmt: skip
def test_options_out_of_range(options):
    with pytest.raises(UsageError) as caught:
        find_backend("mlpackage-reference", **options)
    assert str(caught.value).isprintable()


# -- damaged -------------------------------------------------------------------------------------------------


def written(tmp_path, edit=lambda _: None, **files):
    made = packages.by_hand(oracle.case("dfn3").model)
    edit(made)
    return made.write(tmp_path / "p.mlpackage", **files)


def _metadata(**changes):
    def edit(made):
        for key, value in changes.items():
            made.metadata.pop(f"dfstream.{key}")
            made.metadata |= {} if value is None else {f"dfstream.{key}": value}

    return edit


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        (lambda made: made.metadata.clear(), "not a package that dfstream made"),
        (_metadata(format="7"), "another version of dfstream"),
        (_metadata(config=None), "metadata is damaged"),
        (_metadata(states="[]"), "the input h has the shape"),
        (_metadata(block_frames="2"), "feat_erb has the shape (1, 1, 1, 32), in its metadata (1, 1, 2, 32)"),
        (_metadata(state="coreml", target="macos15"), "h has the shape (1, 144, 1, 1), in its metadata None"),
    ],
    ids=range(6),
)  # fmt: skip
def test_a_package_that_is_not_what_it_says(tmp_path, edit, match):
    message, hint = refusal(written(tmp_path, edit))
    assert match in message
    assert message.startswith(str(tmp_path))
    assert hint or "damaged" in message


def test_a_package_with_a_file_missing_or_cut(tmp_path):
    path = written(tmp_path)
    for file in [p for p in path.rglob("*") if p.is_file()]:
        whole = file.read_bytes()
        for content in (None, b"", whole[: len(whole) // 2]):
            file.unlink()
            if content is not None:
                file.write_bytes(content)
            assert str(path) in refusal(path)[0]
            file.write_bytes(whole)
    Model.load(path)


def test_a_package_that_is_no_folder(tmp_path):
    path = tmp_path / "p.mlpackage"
    path.write_bytes(b"x")
    assert "not a Core ML package, which is a folder" in refusal(path)[0]


def test_the_command_line_refuses_in_a_line(capsys, tmp_path):
    path = written(tmp_path, lambda made: made.metadata.clear())
    for command in (["inspect", path], ["run", path, tmp_path / "y.wav", "-m", path]):
        assert _run([*map(str, command)]) != 0
        out, err = capsys.readouterr()
        assert out == ""
        assert [line.split(":")[0] for line in err.splitlines()] in (["error", "hint"], ["error"])


# -- audio ---------------------------------------------------------------------------------------------------


def test_a_stream_as_on_ort_cpu(package, kind, noisy):
    x = noisy[20_000:50_000]
    want = joined(Stream(oracle.case("dfn3").model, backend=REFERENCE), x)
    got = joined(Stream(package(kind)), x)
    assert got.shape == want.shape
    error = np.abs(got - want).max()
    assert error <= LIMITS[kind]
    assert (float(error) > 1e-5) is (kind in ("ane", "coreml")), "states are rounded, or not"


def test_laws_of_streams(package, kind, noisy):
    """Any cut, a reset, a clone and a snapshot in the midst of a block: the same bits."""
    x, made = noisy[20_000:32_345], package(kind)
    want = joined(Stream(made), x)
    stream = Stream(made)
    np.testing.assert_array_equal(joined(stream, x, (1, 700, 33, 2000)), want)
    stream.reset()
    head = stream.process(x[:6000])
    snapshot, twin = stream.snapshot(), stream.clone()
    for other in (stream, twin):
        np.testing.assert_array_equal(np.concatenate([head, joined(other, x[6000:])]), want)
    fresh = Stream(made)
    fresh.process(x[::-1])
    fresh.restore(type(snapshot).from_bytes(snapshot.to_bytes()))
    np.testing.assert_array_equal(np.concatenate([head, joined(fresh, x[6000:])]), want)


def test_streams_of_a_pool_are_those_alone(package, kind, noisy):
    made = package(kind)
    signals = {"a": noisy[20_000:26_000], "b": noisy[40_000:46_000]}
    pool = StreamPool(made, capacity=2)
    for key in signals:
        pool.join(key)
    found = {key: [] for key in signals}
    for start in range(0, 6000, 480):
        for key, y in pool.process({key: x[start : start + 480] for key, x in signals.items()}).items():
            found[key].append(y)
    for key, x in signals.items():
        alone = Stream(made)
        want = np.concatenate([alone.process(x[start : start + 480]) for start in range(0, 6000, 480)])
        np.testing.assert_array_equal(np.concatenate(found[key]), want)


@pytest.mark.parametrize("kind", ["fp32", "coreml"])
def test_thresholds_let_decoders_wait(package, kind, noisy):
    x = noisy[20_000:40_000]
    plain = Stream(oracle.case("dfn3").model, backend=REFERENCE)
    joined(plain, x)
    probe = Stream(oracle.case("dfn3").model, backend=REFERENCE)
    probe.process(x)
    low, high = np.quantile(np.unique(probe.lsnr), [0.25, 0.75])
    limits = {"min_db_thresh": float(low), "max_db_erb_thresh": float(high)}
    want = joined(Stream(oracle.case("dfn3").model, backend=REFERENCE, **limits), x)
    got = joined(Stream(package(kind), **limits), x)
    if kind == "fp32":
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)
    assert np.abs(got - joined(Stream(package(kind)), x)).max() > 1e-3


def test_thresholds_and_blocks_do_not_go_together(package, noisy):
    with pytest.raises(UnsupportedGraph, match="this package takes 3 frames a call"):
        Stream(package("block"), min_db_thresh=0.0).process(noisy[:4800])


def test_stereo_and_other_rates(package, noisy):
    x = np.stack([noisy[20_000:28_000], noisy[40_000:48_000]], 1)
    want = joined(Stream(oracle.case("dfn3").model, channels=2, backend=REFERENCE), x)
    np.testing.assert_allclose(joined(Stream(package(), channels=2), x), want, rtol=0, atol=1e-5)
    assert len(joined(Stream(package(), sample_rate=16_000), x[:, 0])) > 8000


def test_a_whole_file(package, noisy):
    x = noisy[20_000:50_000]
    want = enhance(x, 48_000, model=oracle.case("dfn3").model, backend="ort-cpu")
    np.testing.assert_allclose(enhance(x, 48_000, model=package()), want, rtol=0, atol=1e-5)


def test_the_command_line_runs_it(capsys, package, tmp_path, noisy):
    soundfile.write(tmp_path / "x.wav", noisy[:24_000], 48_000)
    assert _run(["run", str(tmp_path / "x.wav"), str(tmp_path / "y.wav"), "-m", package().origin]) == 0
    capsys.readouterr()
    assert soundfile.info(tmp_path / "y.wav").frames == 24_000


# -- inspect -------------------------------------------------------------------------------------------------


def test_inspected(package, kind):
    facts, flavour = inspect_model(package(kind)), FLAVOURS[kind]
    assert json.loads(json.dumps(facts)) == facts, "plain values"
    assert (facts["network"], facts["graphs"]) == (None, {})
    said = facts["package"]
    assert said["precision"] == flavour.precision
    assert (said["state"], said["block_frames"]) == (flavour.state, flavour.block_frames)
    assert said["target"] == flavour.generation.names[0]
    assert said["sha256"] == package(kind).package.sha256
    half = kind == "ane"
    shape = [1, 1, flavour.block_frames, 32]
    assert said["inputs"]["feat_erb"] == {"shape": shape, "dtype": "float16" if half else "float32"}
    assert bool(said["states"]) is (kind == "coreml")
    assert ("h" in said["inputs"]) is (kind != "coreml")
    modes = facts["modes"]
    assert [name for name, mode in modes.items() if mode["possible"]] == ["incremental"]
    assert modes["incremental"]["states"]["h"] == [1, 144, 1, 1]
    assert modes["incremental"]["exact"] is (kind in ("fp32", "block"))
    assert all("Core ML package" in mode["reason"] for mode in modes.values() if not mode["possible"])


def test_an_export_is_no_package():
    assert inspect_model(oracle.case("dfn3").model)["package"] is None


def test_inspected_on_the_command_line(capsys, package, kind):
    assert _run(["inspect", package(kind).origin]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    flavour = FLAVOURS[kind]
    (line,) = [line for line in out.splitlines() if line.startswith("Core ML package: ")]
    assert (
        line
        == {
            "fp32": "Core ML package: fp32, explicit states, from macos13 on, 1 frame a call",
            "ane": "Core ML package: ane, explicit states, from macos13 on, 1 frame a call",
            "coreml": "Core ML package: fp16, Core ML keeps the states, from macos15 on, 1 frame a call",
            "block": "Core ML package: fp32, explicit states, from macos13 on, 3 frames a call, "
            "20 ms more delay in live audio",
        }[kind]
    )
    assert ("  states: h float16" in out) is (flavour.state == "coreml")
    assert "graphs at hand" not in out
    assert _run(["inspect", package(kind).origin, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == inspect_model(package(kind))


def test_what_onnx_runtime_would_take_of_it(capsys, package):
    (row,) = coreml_partitions(package())
    assert row["reason"] == "a Core ML package already: ONNX Runtime has no part in it"
    assert _run(["inspect", package().origin, "--coreml"]) == 0
    assert row["reason"] in capsys.readouterr().out


def test_precisions_come_with_the_reason(package):
    rows = measure_precisions(package())
    assert rows
    assert all("reason" in row for row in rows)
    (row,) = [r for r in rows if (r["backend"], r["precision"]) == ("mlpackage-reference", "int8")]
    assert "is a package of precision fp32, not int8" in row["reason"]


def test_a_hostile_name_of_a_tensor_stays_in_its_line(package, capsys, monkeypatch):
    made = package()
    inputs = {"feat\x1b[31m\nx": next(iter(made.package.inputs.values()))}
    changed = dataclasses.replace(made, package=dataclasses.replace(made.package, inputs=inputs))
    monkeypatch.setattr(Model, "load", lambda _: changed)
    assert _run(["inspect", "x"]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_patching_and_converting_want_the_export(capsys, package, tmp_path):
    for error in (UnsupportedGraph, ModelError):
        with pytest.raises(error, match="Core ML package"):
            package().patch(canonical_recipe())
    assert _run(["patch", package().origin, "-o", str(tmp_path)]) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert "is a Core ML package" in err.splitlines()[0]
    assert [*tmp_path.iterdir()] == []
