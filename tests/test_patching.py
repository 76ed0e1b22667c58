"""patch_model: all graphs of all modes, proved, written whole or not at all."""

import os
import shutil

import dfstream.patches.lean
import onnx
import pytest
from dfstream.patches.recipe import Recipe

import dfstream.patching
import oracle
from dfstream.errors import UnsupportedGraph, UsageError, VerifyFailed
from dfstream.model import Model
from dfstream.modes.base import find_mode
from dfstream.patching import patch_model, target_folder

FILES = {
    "incremental": {"combined_incremental.onnx"},
    "streaming": {f"{stem}_streaming.onnx" for stem in ("enc_conv", "enc_gru", "erb_dec", "df_dec")},
    "stateful-h0": {"combined_streaming.onnx"},
    "stateless-window-last": {"combined.onnx"},
    "canonical": {"combined_canonical.onnx"},
    "lean": {"combined_lean.onnx"},
}
ONE_FRAME = ("canonical", "lean")
MODES = [name for name in FILES if name not in ONE_FRAME]


@pytest.fixture
def model():
    return oracle.case("lean").model


@pytest.fixture
def export(tmp_path):
    """An export in a folder that may be written."""
    return shutil.copytree(oracle.case("lean").folder, tmp_path / "export")


def listing(folder):
    """Names, contents and times of the files in a folder."""
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}


def age(folder):
    """Make files look old, so that any write shows."""
    for path in folder.iterdir():
        os.utime(path, ns=(10**18, 10**18))


# -- writing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_writes_the_graphs_of_a_mode(mode, model, tmp_path):
    (result,) = patch_model(model, tmp_path / "new" / "folder", [mode])
    folder = tmp_path / "new" / "folder"
    assert {path.name for path in folder.iterdir()} == FILES[mode] | {"config.ini"}
    assert result.name == mode
    assert result.files == dict.fromkeys(FILES[mode], "written")
    assert result.checks
    assert all(row.passed for row in result.checks)
    assert next(name for name, _ in result.report) == "merge"
    assert (folder / "config.ini").read_bytes() == model.config_ini
    for name in FILES[mode]:
        assert (folder / name).read_bytes() == model.graphs(find_mode(mode).recipe())[
            name.removesuffix(".onnx")
        ]
        onnx.checker.check_model(onnx.load(folder / name), full_check=True)


@pytest.mark.parametrize("form", ONE_FRAME)
def test_writes_the_default_mode_and_a_one_frame_graph(form, model, tmp_path):
    results = patch_model(model, tmp_path, **{form: True})
    assert [result.name for result in results] == ["stateful-h0", form]
    assert {path.name for path in tmp_path.iterdir()} == FILES["stateful-h0"] | FILES[form] | {"config.ini"}
    assert all(result.checks for result in results)
    assert all(row.passed for result in results for row in result.checks)


def test_several_modes_at_once(model, tmp_path):
    results = patch_model(model, tmp_path, [*MODES, "incremental"], canonical=True, lean=True, check=False)
    assert [result.name for result in results] == [*MODES, "canonical", "lean"]
    assert {path.name for path in tmp_path.iterdir()} == {"config.ini"}.union(*FILES.values())
    assert all(result.checks == () for result in results)


def test_what_was_written_can_be_loaded_and_streams_exactly(model, tmp_path):
    c = oracle.case("lean")
    patch_model(model, tmp_path, ["incremental", "streaming"], check=False)
    loaded = Model.load(tmp_path)
    assert not loaded.is_export
    assert loaded.config == model.config
    assert loaded.sha256 == model.sha256
    for mode in ("incremental", "streaming"):
        graphs = loaded.graphs(find_mode(mode).recipe()).values()
        oracle.check_equal(oracle.streamed(graphs, c.feats, 7), c.want)


def test_a_model_without_config_ini_gets_none(tmp_path):
    patch_model(oracle.case("lean").model, tmp_path / "one", ["stateless-window-last"], check=False)
    (tmp_path / "one" / "config.ini").unlink()
    merged = Model.load(tmp_path / "one" / "combined.onnx")
    patch_model(merged, tmp_path / "two", ["incremental"], check=False)
    assert [path.name for path in (tmp_path / "two").iterdir()] == ["combined_incremental.onnx"]


def test_tells_what_it_does(model, tmp_path):
    told = []
    patch_model(model, tmp_path, ["incremental"], canonical=True, progress=told.append)
    assert told == [
        "incremental: patching",
        "incremental: checking against the export",
        "canonical: patching",
        "canonical: checking against the export",
    ]
    told.clear()
    patch_model(model, tmp_path, ["incremental"], check=False, progress=told.append)
    assert told == ["incremental: patching"]


# -- again ------------------------------------------------------------------------------------------


def test_a_second_run_touches_nothing(export):
    model = Model.load(export)
    patch_model(model, export, ["incremental", "streaming"], canonical=True, check=False)
    age(export)
    before = listing(export)
    results = patch_model(
        Model.load(export), export, ["incremental", "streaming"], canonical=True, check=False
    )
    assert {action for result in results for action in result.files.values()} == {"unchanged"}
    assert listing(export) == before


def test_only_what_changed_is_written(export):
    model = Model.load(export)
    patch_model(model, export, ["incremental"], check=False)
    age(export)
    before = listing(export)
    incremental, streaming = patch_model(model, export, ["incremental", "streaming"], check=False)
    assert incremental.files == {"combined_incremental.onnx": "unchanged"}
    assert set(streaming.files.values()) == {"written"}
    after = listing(export)
    assert {name: after[name] for name in before} == before


def test_patched_graphs_of_another_export_are_replaced(model, tmp_path):
    """They are ours to replace."""
    patch_model(oracle.case("dfn2").model, tmp_path, ["incremental"], check=False)
    (result,) = patch_model(model, tmp_path, ["incremental"], check=False)
    assert result.files == {"combined_incremental.onnx": "written"}


def test_a_patched_model_is_passed_on_as_it_is(model, tmp_path):
    patch_model(model, tmp_path, ["incremental"], check=False)
    age(tmp_path)
    before = listing(tmp_path)
    told = []
    (result,) = patch_model(Model.load(tmp_path), tmp_path, ["incremental"], progress=told.append)
    assert (result.report, result.checks) == ((), ())
    assert result.files == {"combined_incremental.onnx": "unchanged"}
    assert listing(tmp_path) == before
    assert told == []
    with pytest.raises(UnsupportedGraph, match=r"streaming needs enc_conv_streaming"):
        patch_model(Model.load(tmp_path), tmp_path, ["streaming"])


# -- failures -----------------------------------------------------------------------------------------


def wrong_recipe(monkeypatch):
    """A patch that looks well but loses the contexts: exactly what the check is for."""
    from dfstream.patches.batch import free_batch
    from dfstream.patches.fold import fold_constants
    from dfstream.patches.gru_state import expose_gru_state

    patches = (fold_constants, expose_gru_state, free_batch)
    recipe = Recipe("incremental", ("combined_incremental",), patches)
    monkeypatch.setattr(find_mode("incremental"), "recipe", classmethod(lambda _: recipe))


def test_a_wrong_patch_writes_nothing_at_all(export, monkeypatch):
    wrong_recipe(monkeypatch)
    age(export)
    before = listing(export)
    with pytest.raises(
        VerifyFailed, match=r"incremental: the patched graphs differ from the export by lsnr"
    ) as failure:
        patch_model(Model.load(export), export, ["stateless-window-last", "incremental"], canonical=True)
    assert "nothing was written" in failure.value.hint
    assert failure.value.exit_code == 6
    assert listing(export) == before


def test_a_wrong_patch_makes_no_folder(model, tmp_path, monkeypatch):
    wrong_recipe(monkeypatch)
    with pytest.raises(VerifyFailed):
        patch_model(model, tmp_path / "new", ["incremental"])
    assert not (tmp_path / "new").exists()


def test_a_wrong_patch_leaves_good_files_of_before(export, monkeypatch):
    patch_model(Model.load(export), export, ["incremental"], check=False)
    age(export)
    before = listing(export)
    wrong_recipe(monkeypatch)
    with pytest.raises(VerifyFailed):
        patch_model(Model.load(export), export, ["incremental"], force=True)
    assert listing(export) == before


def test_a_wrong_canonical_graph_writes_nothing(tmp_path, monkeypatch):
    good = dfstream.patching.canonical_recipe()

    def scaled(graph):
        node = oracle.first(graph, "Conv")
        node.inputs[1].values = 1.001 * node.inputs[1].values
        return good.finish(graph)

    recipe = Recipe(good.name, good.stems, good.patches, scaled)
    monkeypatch.setattr(dfstream.patching, "canonical_recipe", lambda: recipe)
    with pytest.raises(VerifyFailed, match=r"^canonical: "):
        patch_model(
            Model.load(oracle.case("lean").folder),
            tmp_path / "new",
            ["stateless-window-last"],
            canonical=True,
        )
    assert not (tmp_path / "new").exists()


def test_a_wrong_lean_graph_writes_nothing(tmp_path, monkeypatch):
    good = dfstream.patches.lean.lean_recipe()

    def scaled(graph):
        node = oracle.first(graph, "Conv")
        node.inputs[1].values = 1.001 * node.inputs[1].values
        return good.finish(graph)

    recipe = Recipe(good.name, good.stems, good.patches, scaled)
    monkeypatch.setattr(dfstream.patches.lean, "lean_recipe", lambda: recipe)
    model = Model.load(oracle.case("lean").folder)
    with pytest.raises(VerifyFailed, match=r"^lean: "):
        patch_model(model, tmp_path / "new", ["stateless-window-last"], lean=True)
    assert not (tmp_path / "new").exists()


def test_a_mode_that_does_not_fit_writes_nothing(tmp_path):
    with pytest.raises(UnsupportedGraph, match=r"erb_dec/convt3/Pad"):
        patch_model(
            oracle.case("dfn3-ll").model, tmp_path / "new", ["incremental", "stateful-h0"], check=False
        )
    assert not (tmp_path / "new").exists()


def test_an_unknown_mode_writes_nothing(model, tmp_path):
    with pytest.raises(UsageError, match=r"unknown mode 'turbo'"):
        patch_model(model, tmp_path / "new", ["incremental", "turbo"], check=False)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("content", [b"not a graph", "enc"], ids=["noise", "a foreign graph"])
def test_a_file_of_someone_else_is_kept(content, model, tmp_path):
    data = (
        content
        if isinstance(content, bytes)
        else (oracle.case("lean").folder / f"{content}.onnx").read_bytes()
    )
    target = tmp_path / "combined_incremental.onnx"
    target.write_bytes(data)
    with pytest.raises(
        UsageError, match=r"combined_incremental.onnx exists and dfstream did not write it"
    ) as refusal:
        patch_model(model, tmp_path, ["streaming", "incremental"], check=False)
    assert "--force" in refusal.value.hint
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {target.name: data}
    (result,) = patch_model(model, tmp_path, ["incremental"], check=False, force=True)
    assert result.files == {target.name: "written"}
    assert target.read_bytes() != data


def test_a_folder_in_the_place_of_a_file_is_refused(model, tmp_path):
    (tmp_path / "combined_incremental.onnx").mkdir()
    with pytest.raises(UsageError, match=r"combined_incremental.onnx exists and cannot be replaced"):
        patch_model(model, tmp_path, ["incremental"], check=False, force=True)


def test_a_configuration_that_is_there_is_kept(model, tmp_path):
    (tmp_path / "config.ini").write_bytes(model.config_ini + b"\n# mine\n")
    patch_model(model, tmp_path, ["incremental"], check=False)
    assert (tmp_path / "config.ini").read_bytes().endswith(b"# mine\n")


def test_a_file_in_the_place_of_the_folder_is_refused(model, tmp_path):
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "file", tmp_path / "file" / "inside"):
        with pytest.raises(UsageError, match=r"cannot make the folder"):
            patch_model(model, folder, ["incremental"], check=False)


def test_a_folder_that_cannot_be_written_is_refused(model, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("dfstream.atomic.tempfile.mkstemp", refuse)
    with pytest.raises(UsageError, match=r"cannot write .*combined_incremental.onnx: Permission denied"):
        patch_model(model, tmp_path, ["incremental"], check=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(
    os.name == "nt" or not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere"
)
def test_a_read_only_folder_is_refused(model, tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(UsageError, match=r"cannot write"):
            patch_model(model, tmp_path, ["incremental"], check=False)
    finally:
        tmp_path.chmod(0o700)


# -- where to -----------------------------------------------------------------------------------------


def test_graphs_go_beside_their_source(tmp_path):
    (tmp_path / "model.tar.gz").write_bytes(b"")
    assert target_folder(str(tmp_path)) == tmp_path
    assert target_folder(str(tmp_path / "model.tar.gz")) == tmp_path


def test_a_name_is_no_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"bundled is a model's name") as refusal:
        target_folder("bundled")
    assert "-o" in refusal.value.hint
