"""Model.load: every form a model comes in, its names, what is missing or does not fit, its digest."""

import dataclasses
import hashlib
import os
import shutil
import threading
import types

import numpy as np
import pytest

from conftest import OFFICIAL, SYNTHETIC
from dfstream import catalog
from dfstream.backends.base import find_backend
from dfstream.config import ModelConfig
from dfstream.errors import ArchiveError, ModelError, UnsupportedGraph, UsageError
from dfstream.interface import EXPORTS
from dfstream.model import Model
from dfstream.modes.base import find_mode
from exports import edited, graph_of, merged, outputs, pack, refusal


@pytest.fixture
def lean(tmp_path, synthetic_folder):
    """The quickest export, in a folder that may be changed."""
    return shutil.copytree(synthetic_folder("lean"), tmp_path / "lean")


# -- forms ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SYNTHETIC)
def test_an_archive_is_the_folder(name, tmp_path, synthetic_folder, synthetic_model):
    model = synthetic_model(name)
    packed = Model.load(pack(synthetic_folder(name), tmp_path / "export.tar.gz"))
    assert (packed.config, packed.sha256) == (model.config, model.sha256)
    assert packed.source_graphs() == model.source_graphs()
    assert set(model.source_graphs()) == {*EXPORTS}
    assert model.is_export
    assert packed.name == "export.tar.gz"
    assert (model.name, model.origin) == (name, str(synthetic_folder(name)))


@pytest.mark.parametrize("name", ["wideband16k", "dfn2-ll"])
def test_a_merged_graph_of_others_with_its_configuration(name, tmp_path, synthetic_model):
    model = synthetic_model(name)
    path = tmp_path / "combined.onnx"
    path.write_bytes(merged(model))
    (tmp_path / "config.ini").write_bytes(model.config_ini)
    for source in (path, tmp_path):
        loaded = Model.load(source)
        assert loaded.config == model.config
        assert set(loaded.source_graphs()) == {"combined"}


@pytest.mark.parametrize("name", SYNTHETIC)
def test_a_merged_graph_alone_gets_official_numbers(name, tmp_path, synthetic_model):
    model = synthetic_model(name)
    path = tmp_path / "some name.onnx"
    path.write_bytes(merged(model))
    loaded = Model.load(path)
    told_by_graph = ("architecture", "nb_erb", "nb_df", "df_order")
    official = {
        "sample_rate": 48_000, "fft_size": 960, "hop_size": 480, "min_nb_erb_freqs": 2,
        "norm_alpha": float(np.float32(0.99)), "conv_lookahead": 2, "df_lookahead": 2,
    }  # fmt: skip
    assert loaded.config.to_dict() == {key: getattr(model.config, key) for key in told_by_graph} | official
    assert loaded.config_ini is None
    assert loaded.name == "some name"
    if name in ("lean", "dfn2-h0"):
        np.testing.assert_allclose(outputs(loaded), outputs(model), atol=1e-5)


def test_a_model_is_returned_as_it_is(bundled):
    assert Model.load(bundled) is bundled


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_folders(name, official):
    model = official(name)
    assert model.is_export
    assert model.window_frames == (5 if name == "dfn2_ll" else 7)
    assert len(model.sha256) == 64


# -- names ------------------------------------------------------------------------------------------------


def test_none_is_the_bundled_model(bundled):
    assert (bundled.name, bundled.sha256) == ("bundled", Model.load("bundled").sha256)


@pytest.mark.parametrize(
    "name", ["dfn5", "", ".", "no/such/folder", "x" * 5000, "a\0b", "\udcff", "~", "Bundled"]
)
def test_what_is_no_model(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message, hint = refusal(name, (UsageError, ModelError))
    if name not in ("", "."):  # those are folders
        assert message.startswith("no model ")
        assert all(known.name in hint for known in catalog.KNOWN)


def test_a_name_wins_over_a_folder(tmp_path, monkeypatch, synthetic_folder, bundled):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(synthetic_folder("dfn2"), tmp_path / "bundled")
    assert Model.load("bundled").sha256 == bundled.sha256
    assert Model.load("./bundled").config.architecture == "deepfilternet2"
    assert Model.load(tmp_path / "bundled").name == "bundled"


# -- what is missing or does not fit ------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [*(f"{stem}.onnx" for stem in EXPORTS), "config.ini"])
def test_a_file_is_missing(missing, lean):
    (lean / missing).unlink()
    for source in (lean, pack(lean, lean.with_suffix(".tar.gz"))):
        message, hint = refusal(source)
        assert f"{missing} missing" in message
        assert hint


def test_no_graph_at_all(tmp_path):
    assert "no ONNX graph" in refusal(tmp_path)[0]
    (tmp_path / "config.ini").write_text("[df]\n")
    assert "no ONNX graph" in refusal(tmp_path)[0]
    assert "no ONNX graph" in refusal(tmp_path / "config.ini")[0]


@pytest.mark.parametrize("stem", EXPORTS)
def test_one_graph_of_three_is_no_model(stem, lean):
    message, hint = refusal(lean / f"{stem}.onnx", UnsupportedGraph)
    assert "not a merged DeepFilterNet graph" in message
    assert "folder" in hint


@pytest.mark.parametrize("stem", EXPORTS)
def test_graphs_under_each_others_names(stem, lean):
    other = EXPORTS[EXPORTS.index(stem) - 1]
    shutil.copy(lean / f"{other}.onnx", lean / f"{stem}.onnx")
    assert "merge" in refusal(lean, UnsupportedGraph)[0]


@pytest.mark.parametrize(
    ("old", "new", "tensor"),
    [("nb_erb = 32", "nb_erb = 24", "feat_erb"), ("nb_df = 96", "nb_df = 64", "feat_spec"),
     ("df_order = 5", "df_order = 3", "coefs")],
)  # fmt: skip
def test_a_configuration_of_another_model(old, new, tensor, lean):
    text = (lean / "config.ini").read_text()
    assert old in text
    (lean / "config.ini").write_text(text.replace(old, new))
    message, hint = refusal(lean, UnsupportedGraph)
    assert f"{tensor} has the shape" in message
    assert "config.ini" in hint


@pytest.mark.parametrize("text", [b"", b"\xff\xfe[df]", b"[train]\nmodel = deepfilternet3\n", b"\0" * 100])
def test_a_configuration_that_is_none(text, lean):
    (lean / "config.ini").write_bytes(text)
    assert "config.ini" in refusal(lean)[0]


def test_a_foreign_graph_cut_to_its_last_frame(tmp_path, synthetic_model):
    path = tmp_path / "combined_streaming.onnx"
    path.write_bytes(graph_of(synthetic_model("lean"), "stateful-h0"))
    message, hint = refusal(path, UnsupportedGraph)
    assert "for 7 frames" in message
    assert "cut to its last frame" in hint
    assert "enc.onnx" in refusal(tmp_path)[0]  # in a folder, its name tells nothing


def test_a_foreign_graph_with_states_of_its_own(tmp_path, synthetic_model):
    path = tmp_path / "combined.onnx"
    path.write_bytes(graph_of(synthetic_model("lean"), "incremental"))
    assert "unknown input 'ctx_" in refusal(path, UnsupportedGraph)[0]


def test_a_bad_graph_is_named(lean):
    (lean / "erb_dec.onnx").write_bytes(b"no graph")
    assert "erb_dec.onnx: not an ONNX model" in refusal(lean, ArchiveError)[0]


def test_a_link_to_nowhere_and_a_folder_of_that_name(lean):
    (lean / "enc.onnx").unlink()
    (lean / "enc.onnx").symlink_to(lean / "nowhere")
    assert "enc.onnx missing" in refusal(lean)[0]
    (lean / "enc.onnx").unlink()
    (lean / "enc.onnx").mkdir()
    assert "enc.onnx missing" in refusal(lean)[0]


# -- immutable and shared -----------------------------------------------------------------------------------


def test_nothing_of_a_model_can_be_changed(synthetic_model):
    model = synthetic_model("lean")
    for field in dataclasses.fields(model):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(model, field.name, None)
    for mapping in (model.source_graphs(), model.files_at_hand()):
        assert isinstance(mapping, types.MappingProxyType)


def test_patched_replacements_leave_the_model_alone(lean):
    model, recipe = Model.load(lean), find_mode("incremental").recipe()
    replaced = model.with_patched({"combined_incremental": b"other"})
    assert replaced.graphs(recipe) == {"combined_incremental": b"other"}
    assert model.graphs(recipe) != replaced.graphs(recipe)
    assert not model.has_patched(recipe)


def test_threads_share_what_is_patched_and_loaded_once(lean, monkeypatch):
    model, made, results = Model.load(lean), [], []
    patch = Model.patch
    monkeypatch.setattr(Model, "patch", lambda self, recipe: made.append(recipe.name) or patch(self, recipe))
    start = threading.Barrier(6)

    def run():
        recipe = find_mode("incremental").recipe()
        start.wait()
        graphs = model.graphs(recipe)
        results.append((graphs, model.open(find_backend("ort-cpu"), recipe), outputs(model)))

    threads = [threading.Thread(target=run) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == ["incremental"]
    assert len(results) == 6
    for graphs, sessions, row in results:
        assert graphs is results[0][0]
        assert sessions is results[0][1]
        assert (row == results[0][2]).all()


# -- digest -------------------------------------------------------------------------------------------------


def test_the_digest_is_that_of_sha256sum(lean):
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted(lean.iterdir())
    ]
    assert Model.load(lean).sha256 == hashlib.sha256("".join(lines).encode()).hexdigest()


def test_the_digest_depends_on_the_files_and_nothing_else(lean, tmp_path):
    expected = Model.load(lean).sha256
    for path in lean.iterdir():
        os.utime(path, (1, 1))
    assert Model.load(lean).sha256 == expected
    names = sorted(path.name for path in lean.iterdir())
    for order in (names, names[::-1], names[2:] + names[:2]):
        packed = pack(lean, tmp_path / "a.tar.gz", order, mtime=len(order[0]), uid=7)
        assert Model.load(packed).sha256 == expected
    (lean / "LICENSE").write_text("x")
    assert Model.load(lean).sha256 == expected


@pytest.mark.parametrize("name", ["config.ini", "enc.onnx", "erb_dec.onnx", "df_dec.onnx"])
def test_every_file_counts_for_the_digest(name, lean):
    before = Model.load(lean).sha256
    data = (lean / name).read_bytes()
    changed = data + b"\n" if name == "config.ini" else edited(data, lambda m: setattr(m, "doc_string", "x"))
    (lean / name).write_bytes(changed)
    assert Model.load(lean).sha256 != before


def test_configuration_and_origin_are_what_was_read(lean):
    model = Model.load(str(lean))
    assert model.config == ModelConfig.from_ini((lean / "config.ini").read_text())
    assert model.config_ini == (lean / "config.ini").read_bytes()
    assert model.origin == str(lean)
