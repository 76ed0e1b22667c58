"""The verb convert: a package and the file beside it, whole or not at all; by hand where that will do."""

import dataclasses
import json
import shutil
import sys

import numpy as np
import pytest

import mil
import oracle
import packages
from dfstream import converting
from dfstream.converting import convert_model
from dfstream.coreml import conversion, fidelity
from dfstream.coreml.contract import contract
from dfstream.coreml.flavour import Flavour
from dfstream.errors import BackendUnavailable, UnsupportedGraph, UsageError, VerifyFailed
from dfstream.model import Model
from dfstream.patching import patch_model

FP32 = Flavour("fp32")


@pytest.fixture
def by_hand(monkeypatch):
    """Packages are written without coremltools, and compared over two seconds."""

    def write(model, flavour, folder):
        model.graphs(packages.canonical_recipe())
        packages.by_hand(model, flavour).write(folder)
        return packages.facts_of(model, flavour)

    monkeypatch.setattr(conversion, "write_package", write)
    monkeypatch.setattr(fidelity, "BLOCK_S", 1)
    measure = fidelity.measure_fidelity
    monkeypatch.setattr(fidelity, "measure_fidelity", lambda *args: measure(*args, seconds=2))


def model(name="dfn3"):
    return oracle.case(name).model


def tree(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refusal(kind, *args, **options):
    with pytest.raises(kind) as caught:
        convert_model(*args, **options)
    assert str(caught.value).isprintable()
    return str(caught.value), caught.value.hint


# -- what is written -----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("by_hand")
@pytest.mark.parametrize("flavour", [
    FP32, Flavour("ane"), Flavour("fp16", "coreml"), Flavour("fp32", block_frames=4),
], ids=str)  # fmt: skip
def test_a_package_and_its_description(tmp_path, flavour):
    told = []
    made = convert_model(
        model(), tmp_path / "x.mlpackage", flavour, progress=lambda what, share: told.append((what, share))
    )
    assert (made.package, made.description) == (tmp_path / "x.mlpackage", tmp_path / "x.json")
    assert {p.name for p in tmp_path.iterdir()} == {"x.mlpackage", "x.json"}
    loaded = Model.load(made.package)
    assert loaded.package.sha256 == made.sha256
    assert made.size == sum(len(data) for name, data in tree(tmp_path).items() if name != "x.json")
    assert made.facts.flavour == flavour
    assert told[0] == ("converting", 0.0)
    assert told[-1] == ("checking", 1.0)
    text = made.description.read_text()
    said = json.loads(text)
    assert text.endswith("}\n")
    assert said["package_sha256"] == made.sha256
    assert said["contract"] == json.loads(json.dumps(contract(loaded.config)))
    assert said["fidelity"]["snr_db"] == list(made.fidelity.snr_db)
    assert said["block_frames"] == flavour.block_frames
    assert {state["name"] for state in said["states"]} == set(made.facts.states)
    assert "audio_out" in said["golden"]["stages"]


@pytest.mark.usefixtures("by_hand")
def test_unchecked(tmp_path, monkeypatch):
    monkeypatch.setattr(fidelity, "measure_fidelity", None)
    made = convert_model(model(), tmp_path / "x.mlpackage", FP32, check=False)
    assert made.fidelity is None
    assert json.loads(made.description.read_text())["fidelity"] is None


@pytest.mark.usefixtures("by_hand")
def test_mixed_half_precision_by_default(tmp_path):
    made = convert_model(model(), tmp_path / "x.mlpackage", check=False)
    assert made.facts.flavour == Flavour("fp16", "explicit", "", 1)


@pytest.mark.usefixtures("by_hand")
def test_doing_it_again(tmp_path):
    target = tmp_path / "x.mlpackage"
    convert_model(model(), target, FP32, check=False)
    before = tree(tmp_path)
    message, hint = refusal(UsageError, model(), target, Flavour("ane"))
    assert (message, hint) == (f"{target} exists", "use --force to replace it")
    assert tree(tmp_path) == before
    convert_model(model(), target, FP32, check=False, force=True)
    assert tree(tmp_path) == before
    convert_model(model("dfn2-ll"), target, Flavour("ane"), check=False, force=True)
    assert tree(tmp_path) != before
    assert Model.load(target).sha256 == model("dfn2-ll").sha256
    assert {p.name for p in tmp_path.iterdir()} == {"x.mlpackage", "x.json"}


# -- what is not ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("by_hand")
@pytest.mark.parametrize("name", ["x", "x.mlmodel", "x.mlpackage.zip", "mlpackage", "x.MLPACKAGE"])
def test_names_of_something_else(tmp_path, name):
    message, _ = refusal(UsageError, model(), tmp_path / name)
    assert message == f"{tmp_path / name}: the name of a package ends in .mlpackage"
    assert tree(tmp_path) == {}


@pytest.mark.usefixtures("by_hand")
@pytest.mark.parametrize("force", [True, False])
def test_a_folder_that_is_no_package(tmp_path, force):
    target = tmp_path / "x.mlpackage"
    target.mkdir()
    (target / "diary.txt").write_text("dear")
    message, _ = refusal(UsageError, model(), target, FP32, force=force)
    assert message == (f"{target} exists and is no package" if force else f"{target} exists")
    assert tree(tmp_path) == {"x.mlpackage/diary.txt": b"dear"}


@pytest.mark.usefixtures("by_hand")
def test_a_file_of_the_descriptions_name(tmp_path):
    (tmp_path / "x.json").write_text("mine")
    message, _ = refusal(UsageError, model(), tmp_path / "x.mlpackage", FP32)
    assert message == f"{tmp_path / 'x.json'} exists"
    assert tree(tmp_path) == {"x.json": b"mine"}


@pytest.mark.usefixtures("by_hand")
@pytest.mark.parametrize("place", ["missing", "file"])
def test_a_place_that_cannot_be_written_to(tmp_path, place):
    (tmp_path / "file").write_text("")
    target = tmp_path / place / "x.mlpackage"
    message, _ = refusal(UsageError, model(), target, FP32)
    assert message.startswith(f"cannot write {target}: ")
    assert tree(tmp_path) == {"file": b""}


@pytest.mark.usefixtures("by_hand")
@pytest.mark.parametrize("before", [True, False])
def test_a_package_that_is_too_far_off(tmp_path, monkeypatch, before):
    target = tmp_path / "x.mlpackage"
    if before:
        convert_model(model(), target, FP32, check=False)
    kept = tree(tmp_path)
    monkeypatch.setitem(fidelity._LEAST_SNR_DB, "ane", 200.0)
    message, hint = refusal(VerifyFailed, model(), target, Flavour("ane"), force=True)
    assert message.startswith("x.mlpackage: ")
    assert message.endswith(" dB to the model in the worst ten seconds, at least 200 dB expected of ane")
    assert "nothing was written" in hint
    assert tree(tmp_path) == kept
    assert {p.name for p in tmp_path.iterdir()} == ({"x.mlpackage", "x.json"} if before else set())


@pytest.mark.usefixtures("by_hand")
@pytest.mark.parametrize("when", ["converting", "checking", "describing"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interruption_leaves_nothing(tmp_path, monkeypatch, when, error):
    def stop(what, share):
        if what == when and (what == "converting" or share > 0.4):
            raise error

    def describe(*_):
        raise error

    if when == "describing":
        monkeypatch.setattr(converting, "_description", describe)
    with pytest.raises(error):
        convert_model(model(), tmp_path / "x.mlpackage", FP32, progress=stop)
    assert [*tmp_path.iterdir()] == []


@pytest.mark.usefixtures("by_hand")
def test_models_that_cannot_be_converted(tmp_path):
    folder = tmp_path / "patched"
    patch_model(model(), folder, ["streaming"], check=False)
    package = convert_model(model(), tmp_path / "x.mlpackage", FP32, check=False).package
    before = tree(tmp_path)
    for source, match in ((folder, "canonical needs combined_canonical"), (package, "is a Core ML package")):
        message, hint = refusal(UnsupportedGraph, Model.load(source), tmp_path / "y.mlpackage", FP32)
        assert match in message
        assert hint == "load the original export: every mode can be made from it"
    assert tree(tmp_path) == before


def test_without_coremltools(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "coremltools", None)
    _, hint = refusal(BackendUnavailable, model(), tmp_path / "x.mlpackage", FP32)
    assert hint == "pip install 'dfstream[coreml]'"
    assert [*tmp_path.iterdir()] == []


# -- with coremltools ----------------------------------------------------------------------------------------


def test_end_to_end(tmp_path, monkeypatch):
    """Compared over two seconds."""
    mil.load()
    monkeypatch.setattr(fidelity, "BLOCK_S", 1)
    measure = fidelity.measure_fidelity
    monkeypatch.setattr(fidelity, "measure_fidelity", lambda *args: measure(*args, seconds=2))
    made = convert_model(model("lean"), tmp_path / "x.mlpackage", FP32)
    assert made.fidelity.passed
    assert made.fidelity.worst_snr_db > 110
    assert {p.name for p in tmp_path.iterdir()} == {"x.mlpackage", "x.json"}
    shutil.move(tmp_path / "x.mlpackage", tmp_path / "y.mlpackage")
    assert Model.load(tmp_path / "y.mlpackage").sha256 == model("lean").sha256


@pytest.mark.slow
@pytest.mark.parametrize("flavour", [Flavour(), Flavour("fp16", block_frames=4)], ids=str)
def test_the_bundled_model_over_a_minute(tmp_path, flavour):
    mil.load()
    made = convert_model(Model.load(), tmp_path / "x.mlpackage", flavour)
    assert len(made.fidelity.snr_db) == 6
    assert made.fidelity.passed
    assert np.isfinite(dataclasses.astuple(made.fidelity)[1:]).all()
