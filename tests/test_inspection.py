"""The verb inspect: every variant, as an export and as patched graphs."""

import json
import shutil

import pytest

import synthetic
from conftest import SYNTHETIC
from dfstream import inspection, registry
from dfstream.backends.base import backend_names
from dfstream.errors import BackendUnavailable
from dfstream.inspection import inspect_model, measure_precisions
from dfstream.model import Model
from dfstream.modes.base import mode_names
from dfstream.patching import patch_model

#: Modes whose window no model with a time convolution behind a GRU has.
WINDOWED = {"stateful-h0", "stateless-window-last"}


@pytest.fixture(scope="module", params=SYNTHETIC)
def preset(request):
    return request.param


@pytest.fixture(scope="module")
def facts(synthetic_model, preset):
    return inspect_model(synthetic_model(preset))


def test_describes_every_variant(synthetic_model, preset, facts):
    model, family = synthetic_model(preset), synthetic.PRESETS[preset]
    assert json.loads(json.dumps(facts)) == facts, "plain values"
    assert (facts["name"], facts["sha256"]) == (preset, model.sha256)
    assert facts["config"]["hop_size"] == family.hop_size
    assert facts["delay"]["samples"] == model.config.delay_samples
    assert facts["delay"]["ms"] == pytest.approx(1000 * model.config.delay_samples / family.sample_rate)
    assert set(facts["graphs"]) == {"enc", "erb_dec", "df_dec"}
    assert {"feat_erb", "feat_spec"} <= set(facts["graphs"]["enc"]["inputs"])
    assert "coefs" in facts["graphs"]["df_dec"]["outputs"]


def test_counts_the_network(preset, facts):
    family, network = synthetic.PRESETS[preset], facts["network"]
    assert network["grus"]["enc"] == {"layers": 1, "hidden": family.emb_hidden_dim}
    assert network["grus"]["erb"]["layers"] == family.emb_num_layers - 1
    assert network["grus"]["df"] == {"layers": family.df_num_layers, "hidden": family.df_hidden_dim}
    assert network["parameters"] > 10_000
    assert network["macs_per_hop"] == sum(network["macs_by_operator"].values())


def test_tells_which_modes_are_possible(preset, facts):
    modes = facts["modes"]
    assert list(modes) == mode_names()
    impossible = {name for name, mode in modes.items() if not mode["possible"]}
    assert impossible == (WINDOWED if preset == "dfn3-ll" else set())
    for name, mode in modes.items():
        if not mode["possible"]:
            assert "behind a GRU" in mode["reason"]
            continue
        assert mode["at_hand"] is False
        assert mode["exact"] is (name != "stateless-window-last")
        assert all(graph.endswith(".onnx") for graph in mode["graphs"])
    states = modes["incremental"]["states"]
    assert {"h0", "erb_h0", "df_h0"} <= set(states)
    assert any(name.startswith("ctx_") for name in states)
    assert modes["incremental"]["frames_per_hop"] == modes["streaming"]["frames_per_hop"] == 1


def test_window_counts_the_frames_a_hop_computes(synthetic_model):
    facts = inspect_model(synthetic_model("dfn3"))
    modes, window = facts["modes"], facts["network"]["window_frames"]
    assert modes["stateful-h0"]["frames_per_hop"] == window == 7
    assert modes["stateless-window-last"]["frames_per_hop"] > window


def test_patched_graphs_alone(synthetic_model, tmp_path):
    model = synthetic_model("dfn3")
    patch_model(model, tmp_path, ["incremental"], check=False)
    facts = inspect_model(Model.load(tmp_path))
    assert facts["sha256"] == model.sha256
    assert facts["network"] is None
    assert facts["config"] == inspect_model(model)["config"]
    possible = {name for name, mode in facts["modes"].items() if mode["possible"]}
    assert possible == {"incremental"}
    assert facts["modes"]["incremental"]["at_hand"] is True
    assert "combined_incremental" in facts["modes"]["streaming"]["reason"]


def test_export_with_patched_graphs_beside_it(synthetic_folder, tmp_path):
    folder = tmp_path / "export"
    shutil.copytree(synthetic_folder("dfn3"), folder)
    patch_model(Model.load(folder), folder, ["streaming"], check=False)
    modes = inspect_model(Model.load(folder))["modes"]
    assert {name: mode["at_hand"] for name, mode in modes.items()} == {
        name: name == "streaming" for name in mode_names()
    }


@pytest.fixture
def everywhere(monkeypatch):
    """Only the backends that need nothing: packages are streamed in their own tests, for half a minute."""
    monkeypatch.setattr(inspection, "backend_names", lambda: ["numba", "ort-cpu"])


@pytest.mark.usefixtures("everywhere")
def test_measures_what_reduced_precision_does(bundled):
    rows = measure_precisions(bundled)
    assert json.loads(json.dumps(rows)) == rows, "plain values"
    absent = {row["backend"] for row in rows if "reason" in row}
    assert all(registry.find("backend", name).runs_on == "macOS" for name in absent)
    rows = [row for row in rows if row["backend"] not in absent]
    snr = {(row["backend"], row["precision"]): row["snr_db"] for row in rows}
    # 84, 76 and 43 dB were measured; eight bits are a world apart from sixteen
    assert snr["numba", "int16"] > 78
    assert snr["numba", "fp16"] > 70
    assert 30 < snr["numba", "int8"] < 55
    assert all(row["lsnr_change_db"] < 2 for row in rows)


def test_precisions_of_a_backend_that_is_not_here_come_with_the_reason(bundled, monkeypatch):
    def refuse(self, **_options):
        raise BackendUnavailable(f"{self.name}: not on this machine")

    for name in backend_names():
        monkeypatch.setattr(registry.find("backend", name), "__init__", refuse)
    rows = measure_precisions(bundled)
    assert {row["backend"] for row in rows} >= {"numba", "ort-cpu"}
    assert all(row["reason"] == f"{row['backend']}: not on this machine" for row in rows)


@pytest.mark.usefixtures("everywhere")
def test_precisions_that_a_model_cannot_have_come_with_the_reason(synthetic_model, tmp_path):
    patch_model(synthetic_model("dfn3"), tmp_path, ["stateful-h0"], check=False)
    rows = measure_precisions(Model.load(tmp_path / "combined_streaming.onnx"))
    assert rows
    reasons = "export", "at hand", "on macOS only"
    assert all(any(reason in row["reason"] for reason in reasons) for row in rows)
