"""Packages on disk: the same bytes from anybody, readable by anybody, explained, or refused in a line."""

import json
import logging
import os
import stat
import subprocess
import sys
import warnings

import pytest

import mil
import oracle
import packages
from dfstream import __version__, catalog
from dfstream.coreml import conversion, toolbox
from dfstream.coreml.conversion import write_package
from dfstream.coreml.flavour import Flavour
from dfstream.coreml.metadata import PackageFacts
from dfstream.coreml.package import read_package
from dfstream.errors import BackendError, BackendUnavailable, UnsupportedGraph
from dfstream.model import Model

FP32 = Flavour("fp32")


def files_of(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refusal(kind, *args):
    with pytest.raises(kind) as caught:
        write_package(*args)
    assert str(caught.value).isprintable()
    return str(caught.value), caught.value.hint


@pytest.mark.parametrize("flavour", [
    Flavour("int8", "coreml"), pytest.param(FP32, marks=pytest.mark.slow),
    pytest.param(Flavour("palette"), marks=pytest.mark.slow),
    pytest.param(Flavour("ane"), marks=pytest.mark.slow),
    pytest.param(Flavour("fp16", block_frames=2), marks=pytest.mark.slow),
], ids=str)  # fmt: skip
def test_another_process_writes_the_same_bytes(capfd, tmp_path, flavour):
    """Python hashes strings differently in each, coremltools draws identifiers. And it keeps quiet."""
    mil.load()
    here = packages.converted("lean", flavour)
    assert capfd.readouterr() == ("", ""), "coremltools laments its missing runtime and draws progress bars"
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from dfstream.coreml.conversion import write_package\n"
        "from dfstream.coreml.flavour import Flavour\n"
        "from dfstream.model import Model\n"
        "precision, state, frames = sys.argv[3:]\n"
        "flavour = Flavour(precision, state, block_frames=int(frames))\n"
        "write_package(Model.load(sys.argv[1]), flavour, Path(sys.argv[2]))\n"
    )
    words = flavour.precision, flavour.state, flavour.block_frames
    there = tmp_path / "p.mlpackage"
    command = [sys.executable, "-c", script, oracle.case("lean").folder, there, *words]
    done = subprocess.run(
        [*map(str, command)], check=True, env={**os.environ, "PYTHONHASHSEED": "5"}, capture_output=True
    )
    assert (done.stdout, done.stderr) == (b"", b"")
    assert files_of(here) == files_of(there)
    assert files_of(here).keys() == {
        "Manifest.json", "Data/com.apple.CoreML/model.mlmodel", "Data/com.apple.CoreML/weights/weight.bin",
    }  # fmt: skip


@pytest.mark.skipif(os.name == "nt", reason="files have no such modes there")
def test_others_may_read_it():
    """Whoever made it: coremltools keeps packages to their maker."""
    path = packages.converted("dfn3", FP32)
    modes = {p: stat.S_IMODE(p.stat().st_mode) for p in path.rglob("*")}
    assert {mode for p, mode in modes.items() if p.is_dir()} == {0o755}
    assert {mode for p, mode in modes.items() if p.is_file()} == {0o644}


def test_manifest():
    path = packages.converted("dfn3", FP32)
    text = (path / "Manifest.json").read_text()
    values = json.loads(text)
    entries = values["itemInfoEntries"]
    assert values["rootModelIdentifier"] in entries
    assert entries[values["rootModelIdentifier"]]["path"] == "com.apple.CoreML/model.mlmodel"
    assert all((path / "Data" / entry["path"]).exists() for entry in entries.values())
    assert text == json.dumps(values, indent=4, sort_keys=True) + "\n"
    other = json.loads((packages.converted("bundled", FP32) / "Manifest.json").read_text())
    assert other == values


@pytest.mark.parametrize("flavour", [FP32, Flavour("ane", "coreml")], ids=str)
def test_says_what_it_is(flavour):
    package = read_package(packages.converted("dfn3", flavour))
    said = PackageFacts.from_properties(package.metadata, "p")
    said.check(package)
    assert said.to_dict() == packages.facts_of(oracle.case("dfn3").model, flavour).to_dict() | {
        "licence": "that of the model"
    }
    known = PackageFacts.from_properties(read_package(packages.converted("bundled", FP32)).metadata, "p")
    assert known.model == "bundled"
    assert known.licence == catalog.get("bundled").licence


def test_what_xcode_shows():
    mil.load()
    from coremltools.proto import Model_pb2

    data = (packages.converted("dfn3", FP32) / "Data/com.apple.CoreML/model.mlmodel").read_bytes()
    description = Model_pb2.Model.FromString(data).description
    shown = description.metadata
    assert shown.author == f"dfstream {__version__}"
    assert shown.shortDescription.startswith("DeepFilterNet3 (dfn3): features of one hop in")
    assert shown.license == "that of the model"
    texts = {t.name: t.shortDescription for t in (*description.input, *description.output)}
    assert texts["mask"] == "Gains of the ERB bands, 0 to 1, [1, 1, frames, bands]."
    assert all(texts[name] for name in ("feat_erb", "feat_spec", "mask", "coefs", "lsnr"))


def test_runs_where_it_was_written():
    """`Model.load` takes what was written, of the digest of the export."""
    made = Model.load(packages.converted("dfn3", FP32))
    assert made.sha256 == oracle.case("dfn3").model.sha256
    assert made.config == oracle.case("dfn3").model.config


# -- refusals ------------------------------------------------------------------------------------------------


def test_a_package_cannot_be_converted(tmp_path):
    mil.load()
    path = packages.by_hand(oracle.case("dfn3").model).write(tmp_path / "p.mlpackage")
    message, _ = refusal(UnsupportedGraph, Model.load(path), FP32, tmp_path / "q.mlpackage")
    assert message.startswith(f"{path} is a Core ML package")
    assert not (tmp_path / "q.mlpackage").exists()


def test_without_coremltools(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "coremltools", None)
    message, hint = refusal(BackendUnavailable, oracle.case("dfn3").model, FP32, tmp_path / "p.mlpackage")
    assert message.startswith("coremltools cannot be imported (")
    assert hint == "pip install 'dfstream[coreml]'"


def test_what_coremltools_cannot_do(monkeypatch, tmp_path):
    ct = mil.load()

    def fail(*_, **__):
        raise ValueError("Op \x1b[31m'x' is odd\nand so on\n")

    monkeypatch.setattr(ct, "convert", fail)
    message, _ = refusal(BackendError, oracle.case("dfn3").model, FP32, tmp_path / "p.mlpackage")
    assert message == r"coremltools cannot convert dfn3 (Op \x1b[31m'x' is odd)"
    assert [*tmp_path.iterdir()] == []


def test_names_that_coremltools_changes(monkeypatch, tmp_path):
    mil.load()
    emit = conversion.emit_program

    def renamed(model, flavour):
        program = emit(model, flavour)
        (lsnr,) = [v for v in program.functions["main"].outputs if v.name == "lsnr"]
        lsnr.name = "lsnr_1"
        return program

    monkeypatch.setattr(conversion, "emit_program", renamed)
    message, hint = refusal(BackendError, oracle.case("dfn3").model, FP32, tmp_path / "p.mlpackage")
    assert message.startswith("coremltools calls the outputs mask, coefs, lsnr_1, ")
    assert "version of coremltools" in hint
    assert [*tmp_path.iterdir()] == []


def test_quiet_only_as_long_as_asked():
    before = logging.root.manager.disable, warnings.filters[:]
    with pytest.raises(KeyError), toolbox.quietly():
        raise KeyError
    assert (logging.root.manager.disable, warnings.filters[:]) == before
