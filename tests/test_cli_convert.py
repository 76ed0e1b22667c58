"""dfstream convert: what it prints, how it ends, what it leaves behind."""

import functools
import json
import sys

import pytest

import mil
import oracle
import packages
from dfstream.cli import _run
from dfstream.coreml import conversion, fidelity
from dfstream.coreml.flavour import PRECISIONS, TARGETS, Flavour
from dfstream.model import Model
from dfstream.patching import patch_model


@pytest.fixture
def cli(cli):
    """Run one command; as the fixture of all commands."""
    return functools.partial(cli, "convert")


@pytest.fixture
def refused(cli, tmp_path):
    """Run a command that must fail cleanly; return its ``error:`` line and hint."""

    def run(code, *args):
        before = sorted(tmp_path.rglob("*"))
        actual, out, err = cli(*args)
        assert (actual, out) == (code, ""), err
        assert sorted(tmp_path.rglob("*")) == before
        lines = err.strip().splitlines()
        assert lines[0].startswith("error: "), err
        assert len(lines) == 1 or (len(lines) == 2 and lines[1].startswith("hint: ")), err
        assert "internal error" not in err
        return err

    return run


@pytest.fixture
def asked(monkeypatch):
    """Packages are written without coremltools, and compared over a second; returns the flavours."""
    found = []

    def write(model, flavour, folder):
        model.graphs(packages.canonical_recipe())
        packages.by_hand(model, flavour).write(folder)
        found.append(flavour)
        return packages.facts_of(model, flavour)

    monkeypatch.setattr(conversion, "write_package", write)
    monkeypatch.setattr(fidelity, "BLOCK_S", 1)
    measure = fidelity.measure_fidelity
    monkeypatch.setattr(fidelity, "measure_fidelity", lambda *args: measure(*args, seconds=1))
    return found


@pytest.fixture
def export():
    return oracle.case("dfn3").folder


def test_convert(cli, export, tmp_path, asked):
    code, out, err = cli(export, "-o", tmp_path / "x.mlpackage", "--precision", "fp32")
    assert (code, err) == (0, "")
    package, description, delay, checked, digest = out.splitlines()
    size = sum(p.stat().st_size for p in (tmp_path / "x.mlpackage").rglob("*") if p.is_file())
    kind = "DeepFilterNet3 (dfn3), fp32, explicit states, macos13"
    assert package == f"{tmp_path / 'x.mlpackage'}: {kind}, {size / 1e6:.2f} MB"
    assert description == f"{tmp_path / 'x.json'}: names, states, signal processing, test vectors"
    delay_ms = 1000 * oracle.case("dfn3").model.config.delay_samples / 48_000
    assert delay == f"delay    {delay_ms:.0f} ms"
    assert checked.startswith("checked  1")
    assert "dB to the model in the worst 10 s of a minute (at least 110)" in checked
    assert digest == f"sha256   {Model.load(tmp_path / 'x.mlpackage').package.sha256}"
    assert asked == [Flavour("fp32")]


@pytest.mark.usefixtures("asked")
def test_json(cli, export, tmp_path):
    code, out, err = cli(export, "-o", tmp_path / "x.mlpackage", "--precision", "ane", "--json")
    assert (code, err) == (0, "")
    said = json.loads(out)
    made = Model.load(tmp_path / "x.mlpackage")
    assert said["package"] == str(tmp_path / "x.mlpackage")
    assert said["description"] == str(tmp_path / "x.json")
    assert said["sha256"] == made.package.sha256
    assert said["facts"]["precision"] == "ane"
    assert said["fidelity"]["worst_snr_db"] == min(said["fidelity"]["snr_db"])
    assert said["bytes"] > 100_000
    code, out, _ = cli(export, "-o", tmp_path / "x.mlpackage", "--no-check", "--json", "--force")
    assert (code, json.loads(out)["fidelity"]) == (0, None)


def test_a_block_costs_delay_and_says_so(cli, export, tmp_path, asked):
    code, out, _ = cli(export, "-o", tmp_path / "x.mlpackage", "--block", 4, "--no-check")
    assert code == 0
    assert out.splitlines()[2].endswith(" ms, and 30 ms more in calls of 4 frames")
    assert asked == [Flavour("fp16", block_frames=4)]


@pytest.mark.parametrize("options", [
    {"state": "coreml"}, {"target": "ios17"}, {"target": "macos26", "state": "coreml"},
    {"precision": "palette"},
    {"precision": "int8", "state": "coreml", "target": "ios18"}, {"block": 2, "precision": "ane"},
], ids=str)  # fmt: skip
def test_options_are_those_of_flavours(cli, export, tmp_path, asked, options):
    words = [word for key, value in options.items() for word in (f"--{key}", value)]
    assert cli(export, "-o", tmp_path / "x.mlpackage", "--no-check", *words)[0] == 0
    assert asked == [
        Flavour(options.get("precision", "fp16"), options.get("state", "explicit"), options.get("target", ""),
                options.get("block", 1))
    ]  # fmt: skip


def test_help_names_all_choices(cli):
    code, out, _ = cli("--help")
    assert code == 0
    assert f"[{'|'.join(PRECISIONS)}]" in out
    assert all(f"  {precision} " in out for precision in PRECISIONS)
    assert TARGETS[0].names[0] in out


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--precision", "fp8"], "unknown precision 'fp8', choose from fp16, fp32, int8, palette, ane"),
        (["--target", "macos12"], "unknown target 'macos12', choose from macos13"),
        (["--state", "both"], "'both' is not one of"),
        (["--block", "0"], "0 is not in the range"),
        (["--block", "17"], "17 is not in the range"),
        (["--block", "x"], "'x' is not a valid integer"),
        (["--state", "coreml", "--target", "macos14"], "Core ML states need macos15 or ios18, not macos14"),
        (["--state", "coreml", "--precision", "palette"], "palettes and Core ML states crash together"),
        (["--colour"], "No such option"),
    ],
    ids=str,
)
def test_options_that_do_not_go_together(refused, export, tmp_path, words, says):
    assert says in refused(2, export, "-o", tmp_path / "x.mlpackage", *words)


@pytest.mark.usefixtures("asked")
def test_a_target_has_to_be_named(refused, export):
    assert "Missing option '-o'" in refused(2, export)


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize("name", ["x", "x.onnx", "x.mlmodel"])
def test_names_of_something_else(refused, export, tmp_path, name):
    assert "the name of a package ends in .mlpackage" in refused(2, export, "-o", tmp_path / name)


@pytest.mark.usefixtures("asked")
def test_a_package_that_is_there(refused, cli, export, tmp_path):
    words = export, "-o", tmp_path / "x.mlpackage", "--no-check"
    assert cli(*words)[0] == 0
    err = refused(2, *words)
    assert f"error: {tmp_path / 'x.mlpackage'} exists" in err
    assert "hint: use --force to replace it" in err
    assert cli(*words, "--force")[0] == 0
    (tmp_path / "y.mlpackage").write_text("")
    assert "file" in refused(2, export, "-o", tmp_path / "y.mlpackage", "--force")


@pytest.mark.usefixtures("asked")
def test_places_that_cannot_be_written_to(refused, export, tmp_path):
    assert "cannot write" in refused(2, export, "-o", tmp_path / "no" / "x.mlpackage")


@pytest.mark.usefixtures("asked")
def test_models_that_cannot_be_converted(refused, cli, export, tmp_path):
    patch_model(oracle.case("dfn3").model, tmp_path / "patched", ["streaming"], check=False)
    assert cli(export, "-o", tmp_path / "x.mlpackage", "--no-check")[0] == 0
    assert "canonical needs" in refused(3, tmp_path / "patched", "-o", tmp_path / "y.mlpackage")
    assert "is a Core ML package" in refused(3, tmp_path / "x.mlpackage", "-o", tmp_path / "y.mlpackage")
    assert "no model 'nobody'" in refused(2, "nobody", "-o", tmp_path / "y.mlpackage")


@pytest.mark.usefixtures("asked")
def test_a_package_that_is_too_far_off(refused, export, tmp_path, monkeypatch):
    monkeypatch.setitem(fidelity._LEAST_SNR_DB, "fp32", 300.0)
    err = refused(6, export, "-o", tmp_path / "x.mlpackage", "--precision", "fp32")
    assert "at least 300 dB expected of fp32" in err
    assert "--no-check" in err


@pytest.mark.usefixtures("asked")
def test_interrupted(refused, export, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(fidelity, "measure_fidelity", interrupt)
    assert "error: interrupted" in refused(130, export, "-o", tmp_path / "x.mlpackage")


def test_without_coremltools(refused, export, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "coremltools", None)
    err = refused(4, export, "-o", tmp_path / "x.mlpackage")
    assert err.startswith("error: coremltools cannot be imported (")
    assert err.splitlines()[1] == "hint: pip install 'dfstream[coreml]'"


@pytest.mark.slow
def test_the_bundled_model(cli, tmp_path):
    """As a user does it: converted, compared over a minute, run; nothing of coremltools is heard."""
    mil.load()
    code, out, err = cli("bundled", "-o", tmp_path / "x.mlpackage")
    assert (code, err) == (0, "")
    assert "fp16, explicit states, macos13" in out
    assert "(at least 62)" in out
    assert _run(["inspect", str(tmp_path / "x.mlpackage")]) == 0
