"""Packages that backends make of models: made once, kept in the cache, made again for anything else."""

import sys
import types

import numpy as np
import pytest

import mil
import oracle
import packages
from dfstream import Stream, diskcache
from dfstream.backends import _package as module
from dfstream.backends.base import find_backend
from dfstream.coreml import conversion, toolbox
from dfstream.coreml.flavour import PRECISIONS, Flavour
from dfstream.errors import BackendError, BackendUnavailable, UsageError
from dfstream.model import Model
from dfstream.modes.base import find_mode

INCREMENTAL = find_mode("incremental").recipe()


def fresh(name="dfn3"):
    """A model that has loaded nothing yet."""
    return Model.load(oracle.case(name).folder)


def kept():
    folder = diskcache.cache_root() / "coreml" / "packages"
    return sorted(folder.iterdir()) if folder.exists() else []


@pytest.fixture
def made(monkeypatch):
    """Packages are written by hand; returns the flavours asked for."""
    asked = []

    def write(model, flavour, folder):
        asked.append((model.name, flavour))
        packages.by_hand(model, flavour).write(folder)

    monkeypatch.setattr(conversion, "write_package", write)
    monkeypatch.setattr(toolbox, "coremltools", lambda: types.SimpleNamespace(__version__="9.0"))
    return asked


def opened(name="dfn3", **options):
    (session,) = fresh(name).open(find_backend("mlpackage-reference", **options), INCREMENTAL).values()
    return session


def test_made_once(made):
    for _ in range(3):
        opened()
    assert made == [("dfn3", Flavour("fp32"))]
    (path,) = kept()
    assert path.suffix == ".mlpackage"


def test_made_for_every_model_and_flavour(made):
    wanted = [{}, {"frames": 2}, {"precision": "ane"}, {"precision": "fp16", "state": "coreml"}]
    for _ in range(2):
        for options in wanted:
            opened(**options)
        opened("dfn2-ll")
    assert made == [
        ("dfn3", Flavour("fp32")), ("dfn3", Flavour("fp32", block_frames=2)), ("dfn3", Flavour("ane")),
        ("dfn3", Flavour("fp16", "coreml")), ("dfn2-ll", Flavour("fp32")),
    ]  # fmt: skip
    assert len(kept()) == 5


def test_made_again_for_another_version(made, monkeypatch):
    """Of coremltools, or of whatever turns the export into it."""
    opened()
    monkeypatch.setattr(toolbox, "coremltools", lambda: types.SimpleNamespace(__version__="9.1"))
    opened()
    assert len(made) == len(kept()) == 2
    asked = []
    monkeypatch.setattr(diskcache, "source_digest", lambda *folders: asked.append(folders) or "another")
    opened()
    assert len(made) == len(kept()) == 3
    assert asked == [("coreml", "patches")]


@pytest.mark.usefixtures("made")
def test_a_model_runs_on_what_was_made_of_it(noisy):
    x = noisy[20_000:30_000]
    want, *got = (
        Stream(fresh(), backend=backend).process(x)
        for backend in ("ort-cpu", "mlpackage-reference", "mlpackage-reference:frames=4")
    )
    for y in got:
        np.testing.assert_allclose(y, want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("file", ["Manifest.json", "Data/com.apple.CoreML/model.mlmodel"])
@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"[")])
def test_a_damaged_one_is_made_again(made, file, damage):
    opened()
    (path,) = kept()
    damage(path / file)
    opened()
    assert len(made) == 2
    opened()
    assert len(made) == 2
    assert kept() == [path]


def test_a_failure_leaves_nothing(monkeypatch):
    def write(model, flavour, folder):
        packages.by_hand(model, flavour).write(folder)
        raise BackendError("no")

    monkeypatch.setattr(conversion, "write_package", write)
    monkeypatch.setattr(toolbox, "coremltools", lambda: types.SimpleNamespace(__version__="9.0"))
    with pytest.raises(BackendError, match="no"):
        opened()
    assert kept() == []


@pytest.mark.usefixtures("made")
def test_a_cache_that_cannot_be_written(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DFSTREAM_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UsageError) as caught:
        opened()
    assert str(caught.value).startswith(f"cannot make the folder {tmp_path}")


def test_without_coremltools(monkeypatch):
    monkeypatch.setitem(sys.modules, "coremltools", None)
    with pytest.raises(BackendUnavailable, match=r"^coremltools cannot be imported") as caught:
        opened()
    assert caught.value.hint == "pip install 'dfstream[coreml]'"
    assert kept() == []


def test_a_package_at_hand_is_not_made_again(made, tmp_path):
    path = packages.by_hand(oracle.case("dfn3").model).write(tmp_path / "p.mlpackage")
    Model.load(path).open(find_backend("mlpackage-reference"), INCREMENTAL)
    assert made == kept() == []


def test_names_of_precisions_are_those_of_flavours():
    assert {*module._PRECISIONS.values()} == {*PRECISIONS}
    assert {*find_backend("mlpackage-reference").precisions} == {"float32", "fp16", "int8", "palette", "ane"}


def test_with_coremltools(noisy):
    mil.load()
    x = noisy[20_000:24_800]
    want = Stream(oracle.case("lean").model, backend="ort-cpu").process(x)
    got = Stream(fresh("lean"), backend="mlpackage-reference").process(x)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)
    assert len(kept()) == 1
