"""Model.load of graphs that dfstream wrote: what they serve, when they are used, when they are refused."""

import shutil

import numpy as np
import onnx
import pytest

import synthetic
from conftest import NETWORK_MODES
from dfstream import Stream
from dfstream.backends.base import find_backend
from dfstream.errors import UnsupportedGraph
from dfstream.interface import EXPORTS
from dfstream.model import Model
from dfstream.modes.base import find_mode
from dfstream.patching import patch_model
from exports import edited, graph_of, outputs, refusal

#: What no reader of JSON can follow.
DEEP = "[" * 100_000

EXACT = [name for name in NETWORK_MODES if find_mode(name).exact]


@pytest.fixture
def lean(tmp_path, synthetic_folder):
    """The quickest export, in a folder that may be changed."""
    return shutil.copytree(synthetic_folder("lean"), tmp_path / "lean")


@pytest.mark.parametrize("mode", EXACT)
def test_a_patched_graph_serves_its_mode_only(mode, tmp_path, synthetic_model):
    model = synthetic_model("lean")
    patch_model(model, tmp_path, [mode], check=False)
    for with_config in (True, False):
        if not with_config:
            (tmp_path / "config.ini").unlink()
        loaded = Model.load(tmp_path)
        assert (loaded.config, loaded.sha256) == (model.config, model.sha256)
        assert not loaded.is_export
        np.testing.assert_array_equal(outputs(loaded, mode), outputs(model, mode))
    for other in NETWORK_MODES:
        if other != mode:
            with pytest.raises(UnsupportedGraph, match="at hand is only") as caught:
                find_mode(other)(loaded, find_backend("ort-cpu"))
            assert "original export" in caught.value.hint
    with pytest.raises(UnsupportedGraph, match="only patched graphs"):
        loaded.facts  # noqa: B018


@pytest.mark.parametrize("mode", ["incremental", "stateful-h0"])
def test_a_patched_graph_as_a_file(mode, tmp_path, synthetic_model):
    model = synthetic_model("wideband16k")
    (stem,) = find_mode(mode).recipe().stems
    patch_model(model, tmp_path, [mode], check=False)
    (tmp_path / "config.ini").unlink()
    loaded = Model.load(tmp_path / f"{stem}.onnx")
    assert loaded.config == model.config
    assert find_mode(mode).frames_per_hop(loaded) == find_mode(mode).frames_per_hop(model)
    np.testing.assert_array_equal(outputs(loaded, mode), outputs(model, mode))


def test_the_merged_graph_that_dfstream_wrote_serves_every_mode(tmp_path, synthetic_model):
    model = synthetic_model("lean")
    patch_model(model, tmp_path, ["stateless-window-last"], check=False)
    loaded = Model.load(tmp_path)
    assert (loaded.is_export, loaded.sha256) == (True, model.sha256)
    for mode in NETWORK_MODES:
        np.testing.assert_allclose(outputs(loaded, mode), outputs(model, mode), atol=1e-6)


def test_patched_graphs_are_used_where_they_come_from_the_export_beside_them(lean):
    patch_model(Model.load(lean), lean, ["incremental"], check=False)
    recipe = find_mode("incremental").recipe()
    assert Model.load(lean).has_patched(recipe)
    with (lean / "config.ini").open("a") as file:
        file.write("\n; another export now\n")
    changed = Model.load(lean)
    assert changed.is_export
    assert not changed.has_patched(recipe)
    assert set(changed.files_at_hand()) == {*EXPORTS}


def test_patched_graphs_of_other_weights_are_ignored(lean):
    patch_model(Model.load(lean), lean, ["stateful-h0"], check=False)
    synthetic.write(lean, synthetic.PRESETS["lean"], seed=3)
    model = Model.load(lean)
    assert not model.has_patched(find_mode("stateful-h0").recipe())
    assert np.isfinite(outputs(model, "stateful-h0")).all()


def test_graphs_of_others_beside_an_export_are_ignored(lean):
    model = Model.load(lean)
    (lean / "combined_streaming.onnx").write_bytes(graph_of(model, "stateful-h0"))
    (lean / "README.md").write_text("not a graph")
    again = Model.load(lean)
    assert (again.sha256, set(again.files_at_hand())) == (model.sha256, {*EXPORTS})


# -- what dfstream wrote ------------------------------------------------------------------------------------


@pytest.fixture
def patched(tmp_path, synthetic_model):
    """A folder with the graph of stateful-h0 and its configuration."""
    patch_model(synthetic_model("lean"), tmp_path / "patched", ["stateful-h0"], check=False)
    return tmp_path / "patched"


def rewrite(path, **values):
    """Change what dfstream wrote into a graph; None removes it."""

    def edit(model):
        for prop in list(model.metadata_props):
            key = prop.key.removeprefix("dfstream.")
            if key in values:
                model.metadata_props.remove(prop)
        for key, value in values.items():
            if value is not None:
                model.metadata_props.add(key=f"dfstream.{key}", value=value)

    path.write_bytes(edited(path.read_bytes(), edit))


@pytest.mark.parametrize(
    "values",
    [
        {"format": "2"}, {"format": ""}, {"recipe": None}, {"source_sha256": None}, {"patches": DEEP},
        {"patches": "3"}, {"patches": "no json"}, {"config": "null"}, {"config": "{}"}, {"config": DEEP},
        {"window_frames": "0"}, {"window_frames": "-7"}, {"window_frames": "1000000000000"},
        {"window_frames": "9" * 5000}, {"window_frames": "seven"}, {"graph": "combined\nother"},
    ],
    ids=lambda values: "-".join(f"{key}={str(value)[:12]}" for key, value in values.items()),
)  # fmt: skip
def test_damaged_metadata(values, patched):
    (patched / "config.ini").unlink()
    rewrite(patched / "combined_streaming.onnx", **values)
    refusal(patched)
    refusal(patched / "combined_streaming.onnx")


def test_a_patched_graph_under_another_name(patched):
    path = (patched / "combined_streaming.onnx").rename(patched / "my model.onnx")
    for source in (patched, path):
        message, hint = refusal(source)
        assert "my model.onnx was written as combined_streaming.onnx" in message
        assert "name" in hint


def test_patched_graphs_of_different_exports(patched, tmp_path):
    other = Model.load(synthetic.write(tmp_path / "other", synthetic.PRESETS["lean"], seed=9))
    patch_model(other, patched, ["incremental"], check=False)
    message, hint = refusal(patched)
    assert "different exports" in message
    assert "empty folder" in hint


def test_a_configuration_changed_after_patching(patched):
    text = (patched / "config.ini").read_text()
    (patched / "config.ini").write_text(text.replace("norm_tau = 1", "norm_tau = 2"))
    message, hint = refusal(patched)
    assert "config.ini is not the one combined_streaming.onnx was patched with" in message
    assert "patch" in hint


def dims(values, name):
    """The declared sizes of an input or output."""
    return next(value for value in values if value.name == name).type.tensor_type.shape.dim


def state_of_no_size(model):
    dims(model.graph.input, "h0")[2].dim_param = "Q"


def empty_state(model):
    dims(model.graph.input, "h0")[2].dim_value = 0


def enormous_state(model):
    dims(model.graph.input, "h0")[2].dim_value = 2**40


def enormous_state_of_one_frame(model):
    enormous_state(model)
    dims(model.graph.input, "feat_erb")[2].dim_value = 1


def fewer_bands(model):
    """The graph gives every second band only."""
    last = next(node for node in model.graph.node if "m" in node.output)
    last.output[0] = "every band"
    bounds = {"start": 0, "end": 1000, "axis": 3, "step": 2}
    model.graph.initializer.extend(
        onnx.helper.make_tensor(name, onnx.TensorProto.INT64, [1], [value]) for name, value in bounds.items()
    )
    model.graph.node.append(onnx.helper.make_node("Slice", ["every band", *bounds], ["m"]))
    dims(model.graph.output, "m")[3].dim_value = 16


@pytest.mark.parametrize(
    "edit", [state_of_no_size, empty_state, enormous_state, enormous_state_of_one_frame, fewer_bands]
)
def test_patched_graphs_that_no_mode_could_carry(edit, patched):
    path = patched / "combined_streaming.onnx"
    path.write_bytes(edited(path.read_bytes(), edit))
    assert "combined_streaming.onnx" in refusal(patched)[0]


@pytest.mark.parametrize("output", ["lsnr", "m", "coefs"])
def test_a_patched_graph_without_a_result(output, patched):
    def forget(model):
        model.graph.output.remove(next(value for value in model.graph.output if value.name == output))

    path = patched / "combined_streaming.onnx"
    path.write_bytes(edited(path.read_bytes(), forget))
    with pytest.raises(UnsupportedGraph, match=f"gives no '{output}'"):
        outputs(Model.load(patched), "stateful-h0")


def test_a_patched_graph_of_another_mode_under_a_wrong_name(patched):
    """Cut to its last frame, it gives one frame for a block of four; numpy would spread it over them."""
    path = (patched / "combined_streaming.onnx").rename(patched / "combined_incremental.onnx")
    rewrite(path, graph="combined_incremental", recipe="incremental")
    stream = Stream(Model.load(patched), mode="incremental", block_frames=4)
    with pytest.raises(UnsupportedGraph, match="of the shape"):
        stream.process(np.zeros(4 * stream.hop_size, np.float32))
