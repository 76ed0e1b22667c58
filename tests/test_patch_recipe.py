"""Recipes: what they write into their graphs, and that they always write the same bytes."""

import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import onnx
import pytest
from dfstream.patches.graph import export_graph, import_graph, sections
from dfstream.patches.lean import lean_recipe
from dfstream.patches.recipe import read_metadata

import oracle
from conftest import ROOT
from dfstream.config import ModelConfig
from dfstream.errors import ModelError, UnsupportedGraph
from dfstream.model import Model
from dfstream.modes.base import find_mode
from dfstream.patching import canonical_recipe

RECIPES = {
    name: find_mode(name).recipe()
    for name in ("incremental", "streaming", "stateful-h0", "stateless-window-last")
}
RECIPES |= {"canonical": canonical_recipe(), "lean": lean_recipe()}

STEMS = {
    "incremental": {"combined_incremental"},
    "streaming": {"enc_conv_streaming", "enc_gru_streaming", "erb_dec_streaming", "df_dec_streaming"},
    "stateful-h0": {"combined_streaming"},
    "stateless-window-last": {"combined"},
    "canonical": {"combined_canonical"},
    "lean": {"combined_lean"},
}

PATCHES = {
    "incremental": ("merge", "fold_constants", "expose_gru_state", "cache_causal_context", "free_batch"),
    "stateful-h0": ("merge", "fold_constants", "expose_gru_state", "keep_last_frame", "free_batch"),
    "streaming": (
        "merge", "fold_constants", "expose_gru_state", "cache_causal_context", "free_batch", "split_encoder",
    ),
    "stateless-window-last": ("merge",),
    "canonical": ("merge", "fold_constants", "canonicalise"),
    "lean": ("merge", "fold_constants", "lean"),
}  # fmt: skip


def values(data):
    return {p.key: p.value for p in onnx.load_from_string(data).metadata_props}


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", ["dfn3", "dfn2-ll", "lean", "bundled"])
def test_metadata_is_complete_and_read_back(name, recipe):
    c = oracle.case(name)
    files = c.model.graphs(RECIPES[recipe])
    assert set(files) == STEMS[recipe]
    for stem, data in files.items():
        found = read_metadata(onnx.load_from_string(data), stem)
        assert (found.recipe, found.stem) == (recipe, stem)
        assert found.source_sha256 == c.model.sha256
        assert found.patches == PATCHES[recipe]
        assert ModelConfig.from_dict(found.config) == c.model.config
        assert found.window_frames == c.model.window_frames
        assert values(data)["dfstream.delay_samples"] == str(c.model.config.delay_samples)


@pytest.mark.parametrize("recipe", ["incremental", "streaming", "canonical", "lean"])
def test_the_window_is_absent_where_none_is_exact(recipe):
    for data in oracle.case("dfn3-ll").graphs(RECIPES[recipe]):
        assert "dfstream.window_frames" not in values(data)
        assert read_metadata(onnx.load_from_string(data), "").window_frames is None


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", ["dfn3", "dfn3-h0"])
def test_states_are_listed_as_the_graph_has_them(name, recipe):
    for stem, data in oracle.case(name).model.graphs(RECIPES[recipe]).items():
        inputs, outputs = oracle.ports(data)
        states = json.loads(values(data)["dfstream.states"])
        public = {"feat_erb", "feat_spec", "emb", "e0", "e1", "e2", "e3", "c0"}
        assert [state["name"] for state in states] == [n for n in inputs if n not in public], stem
        for state in states:
            assert state["shape"] == inputs[state["name"]]
            assert state["output"] in outputs
            assert state["initial"] == 0


def test_the_digest_is_that_of_the_export():
    c = oracle.case("dfn3")
    names = sorted(["enc.onnx", "erb_dec.onnx", "df_dec.onnx", "config.ini"])
    lines = [f"{hashlib.sha256((c.folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (data,) = c.graphs(RECIPES["incremental"])
    assert values(data)["dfstream.source_sha256"] == hashlib.sha256("".join(lines).encode()).hexdigest()


@pytest.mark.parametrize("name", ["lean", pytest.param("dfn3-ll", marks=pytest.mark.slow)])
def test_two_runs_give_the_same_bytes(name):
    c = oracle.case(name)
    again = Model.load(c.folder)
    for recipe in ("streaming", "canonical", "lean"):
        assert again.patch(RECIPES[recipe]).files == c.model.graphs(RECIPES[recipe])


def test_another_process_gives_the_same_bytes():
    """Python hashes strings differently in each."""
    script = (
        "import hashlib, sys\n"
        "from dfstream.model import Model\n"
        "from dfstream.modes.base import find_mode\n"
        "from dfstream.patches.lean import lean_recipe\n"
        "from dfstream.patching import canonical_recipe\n"
        "model = Model.load(sys.argv[1])\n"
        "modes = [find_mode(name).recipe() for name in ('incremental', 'streaming', 'stateful-h0')]\n"
        "for recipe in (*modes, canonical_recipe(), lean_recipe()):\n"
        "    for stem, data in model.patch(recipe).files.items():\n"
        "        print(stem, hashlib.sha256(data).hexdigest())\n"
    )
    found = set()
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", script, str(oracle.case("lean").folder)]
        found.add(subprocess.run(command, env=environment, cwd=ROOT, check=True, capture_output=True).stdout)
    assert len(found) == 1
    assert len(found.pop().splitlines()) == 8


def test_a_recipe_leaves_its_graph_as_it_was():
    c = oracle.case("lean")
    graph = oracle.merged("lean", folded=False)
    before = export_graph(graph)
    for recipe in ("incremental", "streaming", "canonical", "lean"):
        RECIPES[recipe].apply(graph, c.model.config, "")
    assert export_graph(graph) == before


def test_the_report_names_every_patch_and_its_sites():
    report = dict(oracle.case("dfn3").model.patch(RECIPES["incremental"]).report)
    assert tuple(report) == PATCHES["incremental"]
    assert report["expose_gru_state"] == ("h0 [1, B, 32]", "erb_h0 [2, B, 32]", "df_h0 [2, B, 24]")
    assert report["cache_causal_context"] == (
        "ctx_erb [B, 1, 2, 32]",
        "ctx_spec [B, 2, 2, 96]",
        "ctx_c0 [B, 8, 4, 96]",
    )


def test_a_refusal_begins_with_the_recipe_and_keeps_its_hint():
    with pytest.raises(UnsupportedGraph, match=r"^stateful-h0: Pad 'erb_dec/") as refusal:
        oracle.case("dfn3-ll").model.patch(RECIPES["stateful-h0"])
    assert "incremental" in refusal.value.hint


# -- reading ------------------------------------------------------------------------------------------


def changed(**changes):
    model = onnx.load_from_string(oracle.case("dfn3").graphs(RECIPES["incremental"])[0])
    for prop in list(model.metadata_props):
        key = prop.key.removeprefix("dfstream.")
        if key in changes:
            if changes[key] is None:
                model.metadata_props.remove(prop)
            else:
                prop.value = changes[key]
    return model


def test_a_foreign_graph_has_none():
    folder = oracle.case("dfn3").folder
    assert read_metadata(onnx.load(folder / "enc.onnx"), "enc") is None
    assert read_metadata(changed(format=None), "x") is None


def test_refuses_another_format():
    with pytest.raises(ModelError, match=r"combined: patched by another version of dfstream \(format '2'"):
        read_metadata(changed(format="2"), "combined")


@pytest.mark.parametrize(
    "changes",
    [
        {"recipe": None}, {"graph": None}, {"source_sha256": None}, {"patches": "["}, {"patches": "3"},
        {"config": "{"}, {"window_frames": "many"},
    ],
    ids=str,
)  # fmt: skip
def test_refuses_damaged_metadata(changes):
    with pytest.raises(ModelError, match=r"combined: its dfstream metadata is damaged"):
        read_metadata(changed(**changes), "combined")


# -- parts of the network ------------------------------------------------------------------------------


@oracle.every_model()
def test_parts_of_the_packed_state_are_the_vectors_of_the_grus(name):
    """They cover all channels; each is a hidden vector, as many in each section as it has layers."""
    c = oracle.case(name)
    (data,) = c.graphs(RECIPES["canonical"])
    found = read_metadata(onnx.load_from_string(data), "")
    assert found.parts.keys() == {"h"}
    parts, (_, channels, _, _) = found.parts["h"], oracle.ports(data)[0]["h"]
    assert [part.start for part in parts] == np.cumsum([0, *(part.size for part in parts[:-1])]).tolist()
    assert sum(part.size for part in parts) == channels
    by_section = {s: [p.size for p in parts if p.section == s] for s in ("enc", "erb", "df")}
    assert by_section == {s: [size] * layers for s, (layers, size) in c.model.facts.grus.items()}


@pytest.mark.parametrize("name", ["dfn3", "dfn2-ll", "dfn3-ll", "bundled"])
def test_sections_of_canonical_states_are_what_their_results_depend_on(name):
    """Told by trying: a state of a decoder moves that decoder's result, and nothing else."""
    c = oracle.case(name)
    (data,) = c.graphs(RECIPES["canonical"])
    found = read_metadata(onnx.load_from_string(data), "")
    inputs, outputs = oracle.ports(data)
    feats = {key: array[:, :, :1] for key, array in c.feats.items()}
    rng = np.random.default_rng(6)
    states = {n: rng.uniform(-0.5, 0.5, s).astype(np.float32) for n, s in inputs.items() if n not in feats}
    before = oracle.run(data, {**feats, **states})
    regions = [(n, found.sections[n], slice(None)) for n in states if n not in found.parts]
    regions += [
        (n, part.section, slice(part.start, part.start + part.size))
        for n, parts in found.parts.items()
        for part in parts
    ]
    assert {section for _, section, _ in regions} == {"enc", "erb", "df"}
    moved = {"enc": {"lsnr", "mask", "coefs"}, "erb": {"mask"}, "df": {"coefs"}}
    for state, section, channels in regions:
        changed = states[state].copy()
        changed[:, channels] += rng.uniform(0.1, 0.5, changed[:, channels].shape).astype(np.float32)
        after = oracle.run(data, {**feats, **states, state: changed})
        touched = {key for key in ("lsnr", "mask", "coefs") if not np.array_equal(after[key], before[key])}
        assert touched == moved[section], (state, channels)
    assert outputs.keys() >= {f"{name}_out" for name in states}


@pytest.mark.parametrize("recipe", ["incremental", "streaming", "stateful-h0"])
def test_states_of_one_part_have_no_parts(recipe):
    for data in oracle.case("dfn3").graphs(RECIPES[recipe]):
        assert read_metadata(onnx.load_from_string(data), "").parts == {}
        assert not any("parts" in state for state in json.loads(values(data)["dfstream.states"]))


@pytest.mark.parametrize("parts", [
    None, 5, "enc", [5], [{"section": "enc"}], [{"section": "enc", "start": 0, "size": 1, "more": 1}],
])  # fmt: skip
def test_damaged_parts_are_refused(parts):
    (data,) = oracle.case("dfn3").graphs(RECIPES["canonical"])
    model = onnx.load_from_string(data)
    (entry,) = [p for p in model.metadata_props if p.key == "dfstream.states"]
    states = json.loads(entry.value)
    states[0]["parts"] = parts
    entry.value = json.dumps(states)
    with pytest.raises(ModelError, match="x: its dfstream metadata is damaged") as caught:
        read_metadata(model, "x")
    assert str(caught.value).isprintable()


def test_sections_go_by_structure():
    """The encoder is what the LSNR depends on; the mask of a canonical graph is called otherwise."""
    for recipe, mask in (("canonical", "mask"), ("incremental", "m")):
        (data,) = oracle.case("dfn3").graphs(RECIPES[recipe])
        graph = import_graph(onnx.load_from_string(data))
        found = sections(graph)
        of = {name: {id(n) for n in graph.nodes if id(n) in members} for name, members in found.items()}
        assert all(of.values())
        assert of["enc"].isdisjoint(of["erb"] | of["df"])
        makers = {t.name: id(t.inputs[0]) for t in graph.outputs}
        assert makers["lsnr"] in of["enc"]
        assert makers[mask] in of["erb"] - of["df"]
        assert makers["coefs"] in of["df"] - of["erb"]
