"""Patched graphs on disk: the same bytes as made anew, for the same export, recipe and sources only."""

import dataclasses
import shutil

import pytest

from dfstream import graphstore
from dfstream.catalog import bundled_dir
from dfstream.diskcache import cache_root
from dfstream.errors import ModelError
from dfstream.model import Model
from dfstream.modes.base import find_mode, mode_names


@pytest.fixture
def patched(monkeypatch):
    """Names of the recipes that were applied rather than recalled."""
    names, patch = [], Model.patch
    monkeypatch.setattr(Model, "patch", lambda self, recipe: names.append(recipe.name) or patch(self, recipe))
    return names


def files():
    return sorted(path for path in (cache_root() / "graphs").rglob("*") if path.is_file())


@pytest.mark.parametrize("name", mode_names())
def test_recalled_graphs_are_those_made_before(patched, name):
    recipe = find_mode(name).recipe()
    made = dict(Model.load("bundled").graphs(recipe))
    recalled = dict(Model.load("bundled").graphs(recipe))
    assert recalled == made
    assert patched == [name]


def test_a_damaged_graph_is_made_again(patched):
    recipe = find_mode("incremental").recipe()
    made = dict(Model.load("bundled").graphs(recipe))
    for path in files():
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    assert dict(Model.load("bundled").graphs(recipe)) == made
    assert patched == ["incremental", "incremental"]


def test_one_missing_graph_of_four_is_a_miss():
    model, recipe = Model.load("bundled"), find_mode("streaming").recipe()
    model.graphs(recipe)
    assert graphstore.recall(model.sha256, recipe) is not None
    next(path for path in files() if "erb_dec" in path.name).unlink()
    assert graphstore.recall(model.sha256, recipe) is None


def test_another_export_or_recipe_is_a_miss():
    model, recipe = Model.load("bundled"), find_mode("incremental").recipe()
    model.graphs(recipe)
    assert graphstore.recall(model.sha256[:16] + "0" * 48, recipe) is None
    assert graphstore.recall(model.sha256, dataclasses.replace(recipe, name="other")) is None
    assert graphstore.recall(model.sha256, dataclasses.replace(recipe, patches=recipe.patches[:2])) is None


def test_foreign_patches_are_never_kept():
    recipe = dataclasses.replace(find_mode("incremental").recipe(), patches=(lambda _graph: [],))
    graphstore.remember("0" * 64, recipe, {"combined_incremental": b"graph"})
    assert files() == []
    assert graphstore.recall("0" * 64, recipe) is None


def test_an_export_seen_before_loads_without_parsing(monkeypatch):
    first = Model.load("bundled")
    monkeypatch.setattr("dfstream.reading.parse_graph", None)
    second = Model.load("bundled")
    assert (second.config, second.sha256, second.name) == (first.config, first.sha256, first.name)
    assert dict(second.source_graphs()) == dict(first.source_graphs())
    assert second.config_ini == first.config_ini


@pytest.mark.parametrize("name", ["enc.onnx", "config.ini"])
def test_other_bytes_are_checked_anew(tmp_path, name):
    folder = tmp_path / "export"
    shutil.copytree(bundled_dir(), folder)
    Model.load(folder)
    path = folder / name
    path.write_bytes(path.read_bytes().replace(b"nb_erb = 32", b"nb_erb = 31") if "ini" in name else b"\0")
    with pytest.raises(ModelError):
        Model.load(folder)


def test_refused_exports_are_not_noted(tmp_path):
    folder = tmp_path / "export"
    shutil.copytree(bundled_dir(), folder)
    (folder / "enc.onnx").write_bytes((folder / "erb_dec.onnx").read_bytes())
    for _ in range(2):
        with pytest.raises(ModelError):
            Model.load(folder)
    assert files() == []
