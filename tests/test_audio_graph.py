"""The whole engine as one graph, run by plain onnxruntime and nothing of the package."""

import dataclasses
import functools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from dfstream.patches.audio_graph import block_recipe, description_beside, hop_recipe
from dfstream.patches.quantise import half_recipe

import emulation
import oracle
import synthetic
from conftest import SYNTHETIC
from dfstream import Stream
from dfstream.filtering import attenuation_gain
from dfstream.goldens import read_goldens
from dfstream.model import Model
from dfstream.parsing import parse_graph

GOLDENS = [
    golden
    for golden in read_goldens(Path(__file__).resolve().parent.parent / "golden")
    if golden.compare == "raw"
    and not golden.params.get("skip_silence")
    and golden.params["min_db_thresh"] <= -15
    and min(golden.params["max_db_erb_thresh"], golden.params["max_db_df_thresh"]) >= 35
]
NAMES = {name: sorted({g.name for g in GOLDENS if g.model == name}) for name in ("bundled", "dfn3")}

#: Against the Rust engine: SNR, or, where the output is next to nothing, the error itself.
LEAST_DB, LARGEST = 90.0, 3e-5

ALLOWED = {
    "Abs", "Add", "Cast", "Clip", "Concat", "Conv", "ConvTranspose", "CumSum", "Div", "Einsum", "Equal",
    "Exp", "Expand", "GRU", "Gather", "Gemm", "Identity", "Less", "Log", "MatMul", "Max", "Mul", "Pad",
    "ReduceSum",
    "Relu", "Reshape", "Shape", "Sigmoid", "Sin", "Slice", "Split", "Sqrt", "Squeeze", "Sub", "Tanh",
    "Transpose", "Unsqueeze", "Where",
}  # fmt: skip

RECIPES = {"hop": hop_recipe(), "block": block_recipe()}


@functools.cache
def session_of(data):
    return onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])


def graph_of(model, form):
    (data,) = model.graphs(RECIPES[form]).values()
    return data


class Runner:
    """One graph and its state, as a program without the package has them."""

    def __init__(self, data, batch=1):
        self.session = session_of(data)
        shapes = {port.name: port.shape for port in self.session.get_inputs()}
        self.state = np.zeros((batch, shapes["state"][1]), np.float32)

    def __call__(self, x, atten_lim=(0.0,), pf_beta=(0.0,)):
        feeds = {"audio": np.ascontiguousarray(x), "state": self.state}
        feeds |= {"atten_lim": np.array(atten_lim, np.float32), "pf_beta": np.array(pf_beta, np.float32)}
        y, lsnr, self.state = self.session.run(["enhanced", "lsnr", "state_out"], feeds)
        return y, lsnr


def streamed(data, x, size, **settings):
    """Stream [B, n] in calls of so many samples; output and LSNR."""
    run = Runner(data, len(x))
    results = [run(x[:, i : i + size], **settings) for i in range(0, x.shape[1], size)]
    return tuple(np.concatenate(parts, axis=1) for parts in zip(*results, strict=True))


def noise(config, hops, batch=1, seed=0):
    return np.random.default_rng(seed).standard_normal((batch, hops * config.hop_size), np.float32) / 10


def snr_db(want, got):
    error = np.sum((got.astype(np.float64) - want) ** 2)
    return 10 * np.log10(np.sum(want.astype(np.float64) ** 2) / error) if error else np.inf


# -- what it computes ---------------------------------------------------------------------------------


def schedule_of(golden):
    """Limit and strength of the post-filter by hop."""
    changes = {0: golden.params, **{int(hop): change for hop, change in golden.params.get("schedule", [])}}
    settings = {"atten_lim_db": None, "post_filter_beta": 0.0}
    return {
        hop: dict(settings := {**settings, **{k: v for k, v in change.items() if k in settings}})
        for hop, change in sorted(changes.items())
    }


def run_golden(model, golden, form, hops):
    x, want, want_lsnr = golden.load()
    run, hop = Runner(graph_of(model, form), x.shape[1]), model.config.hop_size
    schedule, results = schedule_of(golden), []
    for start in range(0, len(x) // hop, hops):
        settings = schedule[max(at for at in schedule if at <= start)]
        piece = x[start * hop : min((start + hops) * hop, len(x) // hop * hop)].T
        limit = attenuation_gain(settings["atten_lim_db"])
        results.append(run(piece, [limit], [settings["post_filter_beta"]]))
    y, lsnr = (np.concatenate(parts, axis=1) for parts in zip(*results, strict=True))
    return y, want[: y.shape[1]].T, lsnr[0], want_lsnr


def check_golden(model, golden, form, hops, least_db):
    y, want, lsnr, want_lsnr = run_golden(model, golden, form, hops)
    largest = float(np.abs(y - want).max())
    assert snr_db(want, y) >= least_db or largest <= LARGEST, (golden.name, snr_db(want, y), largest)
    if not want.any():
        assert not y.any()
    if want_lsnr is not None and want.any():
        assert np.abs(lsnr - want_lsnr[: len(lsnr)]).max() < 0.01


@pytest.mark.parametrize("case", NAMES["bundled"])
@pytest.mark.parametrize(("form", "hops"), [("hop", 1), ("block", 10)])
def test_bundled_against_the_rust_engine(bundled, case, form, hops):
    golden = next(g for g in GOLDENS if g.model == "bundled" and g.name == case)
    check_golden(bundled, golden, form, 1 if golden.params.get("schedule") else hops, LEAST_DB)


@pytest.mark.slow
@pytest.mark.parametrize("case", NAMES["dfn3"])
@pytest.mark.parametrize(("form", "hops"), [("hop", 1), ("block", 10)])
def test_dfn3_against_the_rust_engine(dfn3, case, form, hops):
    golden = next(g for g in GOLDENS if g.model == "dfn3" and g.name == case)
    check_golden(dfn3(), golden, form, 1 if golden.params.get("schedule") else hops, LEAST_DB)


@pytest.mark.parametrize("case", ["white_snr5.default", "clean_speech.default", "fan_long.schedule"])
def test_dfn3_in_short(dfn3, case):
    """Speech, hop by hop: nothing but the rounding of the signal's way is left."""
    golden = next(g for g in GOLDENS if g.model == "dfn3" and g.name == case)
    check_golden(dfn3(), golden, "hop", 1, 100)


@pytest.mark.parametrize("name", SYNTHETIC)
@pytest.mark.parametrize("form", RECIPES)
def test_against_the_engine_by_hand(name, form):
    """Limit and post-filter on; random weights amplify the rounding of the features a thousandfold."""
    model = oracle.case(name).model
    x = noise(model.config, 40)
    options = emulation.Options(beta=0.05, noisy_gain=0.2)
    want = emulation.enhance(model, x, options)
    y, lsnr = streamed(
        graph_of(model, form), x, model.config.hop_size * (1 if form == "hop" else 8), atten_lim=[0.2],
        pf_beta=[0.05],
    )  # fmt: skip
    assert snr_db(want.y, y) > LEAST_DB
    assert np.abs(lsnr[0] - want.lsnr).max() < 2e-3


@pytest.mark.parametrize(
    ("size", "hop"), [(960, 240), (960, 320), (960, 400), (512, 256), (512, 128), (502, 251)]
)
@pytest.mark.parametrize("name", ["lean", "dfn2"])
def test_other_windows_and_overlaps(tmp_path, name, size, hop):
    """Lengths that have no coprime factors, or none at all; frames that overlap several times or unevenly."""
    family = dataclasses.replace(synthetic.PRESETS[name], fft_size=size, hop_size=hop, nb_erb=16, nb_df=48)
    model = Model.load(synthetic.write(tmp_path / name, family))
    x = noise(model.config, 24)
    want = Stream(model, backend="ort-cpu", post_filter=0.05, atten_lim_db=20).process(x[0])
    for form, hops in (("hop", 1), ("block", 8)):
        y, _ = streamed(graph_of(model, form), x, hop * hops, atten_lim=[0.1], pf_beta=[0.05])
        assert snr_db(want, y[0]) > LEAST_DB


@pytest.mark.parametrize(("conv", "df"), [(2, 0), (0, 2), (1, 3), (3, 1), (4, 0), (0, 4)])
@pytest.mark.parametrize("name", ["lean", "dfn2"])
def test_lookaheads_that_differ(tmp_path, name, conv, df):
    """Gains or taps then wait for the output frame."""
    family = dataclasses.replace(synthetic.PRESETS[name], conv_lookahead=conv, df_lookahead=df)
    model = Model.load(synthetic.write(tmp_path / name, family))
    x, hop = noise(model.config, 24), model.config.hop_size
    want = Stream(model, backend="ort-cpu", post_filter=0.05).process(x[0])
    for form, hops in (("hop", 1), ("block", 8), ("block", 1)):
        y, _ = streamed(graph_of(model, form), x, hop * hops, pf_beta=[0.05])
        assert snr_db(want, y[0]) > LEAST_DB


@oracle.every_model(quick=oracle.FEW)
@pytest.mark.parametrize("hops", [1, 2, 7, 100])
def test_blocks_are_hops(name, hops):
    model = oracle.case(name).model
    x = noise(model.config, 120 if hops == 100 else 42)
    want, levels = streamed(graph_of(model, "hop"), x, model.config.hop_size)
    y, lsnr = streamed(graph_of(model, "block"), x, hops * model.config.hop_size)
    assert snr_db(want, y) > LEAST_DB
    assert np.abs(lsnr - levels).max() < 2e-3


@pytest.mark.parametrize("name", [*oracle.FEW, "wideband16k", "bundled"])
def test_hops_and_blocks_take_turns(name):
    """They have the same state."""
    model = oracle.case(name).model
    hop, x = model.config.hop_size, noise(model.config, 30)
    want, _ = streamed(graph_of(model, "hop"), x, hop)
    runs = {form: Runner(graph_of(model, form)) for form in RECIPES}
    state, parts, start = runs["hop"].state, [], 0
    for form, hops in [("hop", 1), ("block", 3), ("hop", 1), ("block", 1), ("block", 20), ("hop", 1)] + [
        ("hop", 1)
    ] * 3:
        runs[form].state = state
        parts.append(runs[form](x[:, start * hop : (start + hops) * hop])[0])
        state, start = runs[form].state, start + hops
    assert snr_db(want, np.concatenate(parts, axis=1)) > LEAST_DB


@pytest.mark.parametrize("name", ["dfn2", "bundled"])
def test_the_reference_evaluator_agrees(name):
    """Nothing but what the standard says is in it."""
    from onnx.reference import ReferenceEvaluator

    model = oracle.case(name).model
    hop, x = model.config.hop_size, noise(model.config, 6)
    for form in RECIPES:
        data = graph_of(model, form)
        want, _ = streamed(data, x, hop * (1 if form == "hop" else 3))
        evaluator, parts = ReferenceEvaluator(onnx.load_from_string(data)), []
        state, off = Runner(data).state, np.zeros(1, np.float32)
        for start in range(0, x.shape[1], hop * (1 if form == "hop" else 3)):
            piece = x[:, start : start + hop * (1 if form == "hop" else 3)]
            y, _, state = evaluator.run(
                ["enhanced", "lsnr", "state_out"],
                {"audio": piece, "state": state, "atten_lim": off, "pf_beta": off},
            )
            parts.append(y)
        assert snr_db(want, np.concatenate(parts, axis=1)) > LEAST_DB


# -- settings, streams, state ----------------------------------------------------------------------------


def test_a_limit_of_one_is_the_delayed_input(bundled):
    x = noise(bundled.config, 20)
    y, _ = streamed(graph_of(bundled, "hop"), x, 480, atten_lim=[1.0], pf_beta=[0.05])
    np.testing.assert_allclose(y[:, 1440:], x[:, :-1440], atol=1e-6)


@pytest.mark.parametrize("form", RECIPES)
@pytest.mark.parametrize("name", ["dfn3", "dfn2"])
def test_settings_of_each_stream(form, name):
    model = oracle.case(name).model
    x, limits, strengths = noise(model.config, 12, batch=3), [0.0, 0.5, 0.1], [0.05, 0.0, 0.02]
    size = model.config.hop_size * (1 if form == "hop" else 4)
    together, _ = streamed(graph_of(model, form), x, size, atten_lim=limits, pf_beta=strengths)
    for row, (limit, strength) in enumerate(zip(limits, strengths, strict=True)):
        alone, _ = streamed(
            graph_of(model, form), x[row : row + 1], size, atten_lim=[limit], pf_beta=[strength]
        )
        assert snr_db(alone, together[row : row + 1]) > LEAST_DB
        other, _ = streamed(graph_of(model, form), x[row : row + 1], size)
        assert snr_db(other, together[row : row + 1]) < 60


@pytest.mark.parametrize("form", RECIPES)
@pytest.mark.parametrize("name", [*oracle.FEW, "bundled"])
def test_streams_of_a_batch_do_not_meet(form, name):
    model = oracle.case(name).model
    x = noise(model.config, 12, batch=3)
    size = model.config.hop_size * (1 if form == "hop" else 4)
    y, lsnr = streamed(graph_of(model, form), x, size)
    x[0] *= 0.1
    x[2] = 0
    again, levels = streamed(graph_of(model, form), x, size)
    assert np.array_equal(again[1], y[1])
    assert np.array_equal(levels[1], lsnr[1])
    assert snr_db(y[1:2], streamed(graph_of(model, form), x[1:2], size)[0]) > LEAST_DB


@pytest.mark.parametrize("form", RECIPES)
def test_zeros_in_a_row_of_the_state_begin_a_stream_anew(bundled, form):
    x, run = noise(bundled.config, 24, batch=2), Runner(graph_of(bundled, form), 2)
    size = 480 * (1 if form == "hop" else 4)
    for start in range(0, 5760, size):
        run(x[:, start : start + size])
    run.state[1] = 0
    parts = [run(x[:, start : start + size])[0] for start in range(5760, 11520, size)]
    fresh, _ = streamed(graph_of(bundled, form), x[:, 5760:], size)
    joined = np.concatenate(parts, axis=1)
    assert np.array_equal(joined[1], fresh[1])
    assert not np.array_equal(joined[0], fresh[0])


@pytest.mark.parametrize("form", RECIPES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e7, -1e30])
def test_what_is_no_audio_counts_as_zero(bundled, form, bad):
    x = noise(bundled.config, 12)
    spoilt, silenced = x.copy(), x.copy()
    spoilt[0, [700, 701, 3000]], silenced[0, [700, 701, 3000]] = bad, 0
    size = 480 * (1 if form == "hop" else 4)
    y, lsnr = streamed(graph_of(bundled, form), spoilt, size)
    assert np.isfinite(y).all()
    want, levels = streamed(graph_of(bundled, form), silenced, size)
    assert np.array_equal(y, want)
    assert np.array_equal(lsnr, levels)


def test_silence_for_long_leaves_no_denormals(bundled):
    data = graph_of(bundled, "block")
    run = Runner(data)
    run(noise(bundled.config, 50))
    for _ in range(24):
        y, _ = run(np.zeros((1, 480 * 500), np.float32))
    assert not y.any()
    state = run.state[run.state != 0]
    assert np.abs(state).min() > np.finfo(np.float32).tiny
    (norms,) = [
        part
        for part in json.loads(description_beside(onnx.load_from_string(data), "block"))["state"]["parts"]
        if part["name"] == "norms"
    ]
    end = norms["offset"] + norms["size"]
    assert np.all(run.state[0, end - bundled.config.nb_df : end] == np.float32(1e-20))


# -- its form --------------------------------------------------------------------------------------------


@oracle.every_model()
@pytest.mark.parametrize("form", RECIPES)
def test_nothing_but_standard_operators(name, form):
    data = graph_of(oracle.case(name).model, form)
    model = parse_graph(data, "audio")
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 14)]
    assert {node.op_type for node in model.graph.node} <= ALLOWED
    if form == "hop":
        assert not {node.op_type for node in model.graph.node} & {"Shape", "Expand", "CumSum", "Cast"}
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    assert all(names)
    assert not model.graph.value_info
    stored = {tensor.data_type for tensor in model.graph.initializer}
    assert stored <= {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64}


@pytest.mark.parametrize("name", [*SYNTHETIC, "bundled"])
def test_inputs_and_outputs(name):
    model = oracle.case(name).model
    hop = model.config.hop_size
    ports = {form: oracle.ports(graph_of(model, form)) for form in RECIPES}
    size = ports["hop"][0]["state"][1]
    for form, samples, hops in (("hop", hop, 1), ("block", "N", "T")):
        inputs, outputs = ports[form]
        assert list(inputs.items()) == [
            ("audio", ["B", samples]), ("state", ["B", size]), ("atten_lim", ["P"]), ("pf_beta", ["P"]),
        ]  # fmt: skip
        assert list(outputs.items()) == [
            ("enhanced", ["B", samples]), ("lsnr", ["B", hops]), ("state_out", ["B", size]),
        ]  # fmt: skip


@pytest.mark.parametrize("name", [*SYNTHETIC, "bundled"])
def test_the_description_is_that_of_the_graph(name):
    model = oracle.case(name).model
    described = {}
    for form in RECIPES:
        proto = onnx.load_from_string(graph_of(model, form))
        properties = {entry.key: entry.value for entry in proto.metadata_props}
        beside = description_beside(proto, form)
        text = described[form] = json.loads(beside)
        assert text == json.loads(properties["dfstream.audio"])
        c = model.config
        assert (text["sample_rate"], text["hop_size"], text["delay_samples"]) == (
            c.sample_rate, c.hop_size, c.delay_samples,
        )  # fmt: skip
        inputs, outputs = oracle.ports(graph_of(model, form))
        for kind, ports in (("inputs", inputs), ("outputs", outputs)):
            assert {name: entry["shape"] for name, entry in text[kind].items()} == ports
        offset = 0
        for part in text["state"]["parts"]:
            assert part["offset"] == offset
            assert part["size"] == np.prod(part["shape"])
            assert part["meaning"]
            offset += part["size"]
        assert offset == text["state"]["size"] == inputs["state"][1]
        assert set(text["settings"]) == {"atten_lim", "pf_beta"}
    assert described["hop"]["state"] == described["block"]["state"]
    assert description_beside(onnx.load_from_string(model.source_graphs()["enc"]), "enc") is None


def test_parts_of_the_state_are_what_they_say(bundled):
    data = graph_of(bundled, "hop")
    run, x = Runner(data), noise(bundled.config, 9)
    for start in range(0, x.shape[1], 480):
        run(x[:, start : start + 480])
    text = json.loads(description_beside(onnx.load_from_string(data), "hop"))
    parts = {
        part["name"]: run.state[0, part["offset"] : part["offset"] + part["size"]].reshape(part["shape"])
        for part in text["state"]["parts"]
    }
    assert np.array_equal(parts["analysis_mem"], x[0, -480:])
    spec = (
        np.fft.rfft(x[0, -960:] * np.sin(np.pi / 2 * np.sin(np.pi * (np.arange(960) + 0.5) / 960) ** 2)) / 960
    )
    re, im = parts["noisy"][:, -1]
    np.testing.assert_allclose(re + 1j * im, spec, atol=1e-8)
    assert parts["norms"].shape == (128,)
    assert np.all(parts["norms"][:32] < 0)
    assert np.all(parts["norms"][32:] > 0)


@pytest.mark.parametrize(
    ("name", "size", "hop_nodes", "block_nodes"),
    [("dfn3", 10_504, 210, 273), ("dfn2", 16_272, 219, 278), ("dfn2-ll", 8_584, 208, 267)],
)
def test_sizes_at_the_official_widths(name, size, hop_nodes, block_nodes):
    model = oracle.full_size(name)
    counts = {form: sum(oracle.operators(graph_of(model, form)).values()) for form in RECIPES}
    assert counts == {"hop": hop_nodes, "block": block_nodes}
    assert oracle.ports(graph_of(model, "hop"))[0]["state"] == ["B", size]


def test_doing_it_again_gives_the_same_bytes(synthetic_folder):
    once, again = (Model.load(synthetic_folder("dfn2")) for _ in range(2))
    for recipe in RECIPES.values():
        assert once.patch(recipe).files == again.patch(recipe).files


def test_the_same_bytes_in_another_process(synthetic_folder):
    code = (
        "import hashlib, sys\n"
        "from dfstream.model import Model\n"
        "from dfstream.patches.audio_graph import block_recipe, hop_recipe\n"
        "model = Model.load(sys.argv[1])\n"
        "for recipe in (hop_recipe(), block_recipe()):\n"
        "    for data in model.patch(recipe).files.values():\n"
        "        print(hashlib.sha256(data).hexdigest())\n"
    )
    texts = {
        subprocess.run(
            [sys.executable, "-c", code, str(synthetic_folder("dfn3"))],
            capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(texts) == 1


def test_half_precision_is_of_the_network_only(bundled, noisy):
    exact, half = (graph_of(bundled, "hop"), *bundled.graphs(half_recipe(RECIPES["hop"])).values())
    assert len(half) < 0.55 * len(exact)
    stored = [
        t for t in onnx.load_from_string(half).graph.initializer if t.data_type == onnx.TensorProto.FLOAT16
    ]
    assert stored
    assert all(tensor.name.startswith("network/") for tensor in stored)
    x = noisy[None, : 300 * 480]
    want, _ = streamed(exact, x, 480)
    y, _ = streamed(half, x, 480)
    assert 50 < snr_db(want, y) < 90
