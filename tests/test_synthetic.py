"""The makers of test material themselves: synthetic exports, and the example recording."""

import collections
import dataclasses
import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import soundfile
from click.testing import CliRunner

import make_example
import synthetic
from dfstream.config import ModelConfig
from dfstream.errors import AudioError, UsageError
from dfstream.interface import EXPORTS, LINKS, RESULTS
from dfstream.reading import parse_graph

BUNDLED = Path(__file__).parent.parent / "dfstream" / "data" / "bundled"

#: Folders of real exports under ``$DFSTREAM_MODELS`` and the presets that imitate them.
REAL = {"dfn3": "dfn3", "dfn2": "dfn2", "dfn2-ll": "dfn2_ll", "dfn3-h0": "dfn3_h0", "dfn2-h0": "dfn2_h0"}

#: Operators that compute; what is left are shapes, which no two exporters write alike.
COMPUTING = (
    "Conv",
    "ConvTranspose",
    "GRU",
    "Einsum",
    "MatMul",
    "Relu",
    "Sigmoid",
    "Tanh",
    "Add",
    "Mul",
    "Pad",
)

every_preset = pytest.mark.parametrize("name", synthetic.PRESETS)


def parts(files):
    return {part: onnx.load_from_string(files[f"{part}.onnx"]) for part in EXPORTS}


def run(models, feeds):
    """Run the three graphs one after the other; returns all tensors by name. States not fed are zeros."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    values = dict(feeds)
    for model in models.values():
        session = onnxruntime.InferenceSession(model.SerializeToString(), options)
        for port in session.get_inputs():
            if port.name not in values:
                assert port.name.endswith("h0")
                values[port.name] = np.zeros([port.shape[0], 1, port.shape[2]], np.float32)
        wanted = {port.name: values[port.name] for port in session.get_inputs()}
        names = [port.name for port in session.get_outputs()]
        values.update(zip(names, session.run(None, wanted), strict=True))
    return values


def features(family, frames, seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"feat_erb": (1, 1, frames, family.nb_erb), "feat_spec": (1, 2, frames, family.nb_df)}
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def time_pads(model):
    return sum(node.op_type == "Pad" for node in model.graph.node)


# -- form ---------------------------------------------------------------------------------------------


@every_preset
@pytest.mark.parametrize("frames", [1, 7])
def test_graphs_run_and_give_the_documented_shapes(name, frames):
    f = synthetic.preset(name)
    values = run(parts(synthetic.make(f)), features(f, frames))
    bands, ch = f.nb_erb, f.conv_ch
    widths = {"e0": bands, "e1": bands // 2, "e2": bands // 4, "e3": bands // 4, "c0": f.nb_df}
    expected = {
        **{tensor: (1, ch, frames, width) for tensor, width in widths.items()},
        "emb": (1, frames, f.emb_hidden_dim if "dfn2" in name else ch * bands // 4),
        "lsnr": (1, frames, 1),
        "m": (1, 1, frames, bands),
        "coefs": (1, frames, f.nb_df, 2 * f.df_order),
    }
    assert set(expected) == {*LINKS, *RESULTS}
    assert {tensor: values[tensor].shape for tensor in expected} == expected


@every_preset
def test_declared_inputs_have_batch_one_and_time_s(name):
    for model in parts(synthetic.make(synthetic.preset(name))).values():
        for port in model.graph.input:
            dims = [d.dim_param or d.dim_value for d in port.type.tensor_type.shape.dim]
            if port.name.endswith("h0"):
                assert dims[1] == "B"
            else:
                assert dims[0] == 1
                assert dims.index("S") == (1 if port.name == "emb" else 2)


@every_preset
def test_package_reads_the_files(name):
    f = synthetic.preset(name)
    files = synthetic.make(f)
    assert list(files) == ["enc.onnx", "erb_dec.onnx", "df_dec.onnx", "config.ini"]
    for part in EXPORTS:
        parse_graph(files[f"{part}.onnx"], part)
    config = ModelConfig.from_ini(files["config.ini"].decode()).to_dict()
    config.pop("norm_alpha")
    assert config == {key: getattr(f, key) for key in config}


@pytest.mark.parametrize(
    ("name", "pads"),
    [("dfn3", (2, 0, 1)), ("dfn2-ll", (2, 0, 1)), ("lean", (2, 0, 0)), ("dfn3-ll", (6, 2, 1))],
)
def test_every_time_kernel_is_padded(name, pads):
    models = parts(synthetic.make(synthetic.preset(name)))
    assert tuple(time_pads(models[part]) for part in EXPORTS) == pads


@pytest.mark.parametrize(
    ("name", "states"),
    [("dfn3", []), ("dfn2-h0", ["h0"]), ("dfn3-h0", ["h0", "erb_h0", "df_h0"])],
)
def test_state_inputs(name, states):
    models = parts(synthetic.make(synthetic.preset(name)))
    inputs = [port.name for model in models.values() for port in model.graph.input]
    assert [port for port in inputs if port.endswith("h0")] == states


def structure(model):
    """What makes two graphs the same network: inputs, results, computing nodes, shapes of the weights."""
    graph = model.graph
    tensors = [*graph.initializer, *(n.attribute[0].t for n in graph.node if n.op_type == "Constant")]
    return {
        "inputs": [port.name for port in graph.input],
        "outputs": ["(unnamed)" if port.name.isdigit() else port.name for port in graph.output],
        "nodes": collections.Counter(n.op_type for n in graph.node if n.op_type in COMPUTING),
        "weights": sorted(tuple(t.dims) for t in tensors if t.data_type == onnx.TensorProto.FLOAT and t.dims),
    }


def test_full_lean_preset_is_the_bundled_network():
    ours = parts(synthetic.make(synthetic.preset("lean", full=True)))
    for part in EXPORTS:
        assert structure(ours[part]) == structure(onnx.load(BUNDLED / f"{part}.onnx"))


@pytest.mark.parametrize("name", REAL)
def test_full_preset_is_the_official_network(name):
    folder = Path(os.environ.get("DFSTREAM_MODELS", "")) / REAL[name]
    if "DFSTREAM_MODELS" not in os.environ or not folder.is_dir():
        pytest.skip("DFSTREAM_MODELS names no folder with this export")
    ours = parts(synthetic.make(synthetic.preset(name, full=True)))
    for part in EXPORTS:
        assert structure(ours[part]) == structure(onnx.load(folder / f"{part}.onnx"))


# -- behaviour ----------------------------------------------------------------------------------------


@every_preset
@pytest.mark.parametrize("seed", [0, 1])
def test_activations_are_alive(name, seed):
    f = synthetic.preset(name)
    models = parts(synthetic.make(f, seed))
    watched = []
    for model in models.values():
        for node in model.graph.node:
            if node.op_type == "GRU" or (node.op_type == "Relu" and "df_convp" in node.name):
                watched.append(f"{model.graph.name}:{node.output[0]}")
                model.graph.output.append(onnx.helper.make_empty_tensor_value_info(node.output[0]))
    values = {}
    feeds = features(f, 200)
    for part, model in models.items():  # one by one: tensors of two graphs may share a name
        feeds = run({part: model}, feeds)
        values.update({f"{part}:{tensor}": value for tensor, value in feeds.items()})

    for tensor in ("e0", "e1", "e2", "e3", "c0"):
        active = (values[f"enc:{tensor}"] > 0).mean((0, 2, 3))
        assert active.min() > 0, f"{tensor}: a channel is dead"
    low, high = np.quantile(feeds["m"], [0.1, 0.9])
    assert low < 0.45
    assert high > 0.65
    assert feeds["m"].std(axis=2).mean() > 0.08
    assert 0.3 < feeds["coefs"].std() < 0.9
    assert feeds["lsnr"].std() > 4
    for tensor in watched:
        if "convp" in tensor:
            assert 0.2 < (values[tensor] > 0).mean() < 0.95
        else:
            assert 0.3 < np.sqrt(np.mean(values[tensor] ** 2)) < 0.8


@every_preset
def test_results_remember_the_past_and_ignore_the_future(name):
    f = synthetic.preset(name)
    models = parts(synthetic.make(f))
    feeds = features(f, 12)
    whole = run(models, feeds)
    head = run(models, {tensor: x[:, :, :5] for tensor, x in feeds.items()})
    tail = run(models, {tensor: x[:, :, 5:] for tensor, x in feeds.items()})
    for result, axis in (("lsnr", 1), ("m", 2), ("coefs", 1)):
        before, after = np.split(whole[result], [5], axis=axis)
        np.testing.assert_allclose(before, head[result], rtol=0, atol=1e-4)
        assert np.abs(after - tail[result]).max() > 0.02


def test_exposed_state_continues_where_it_stopped():
    """With constant zero maps a Pad changes nothing, so only the recurrent state can."""
    f = synthetic.preset("dfn3-h0")
    models = parts(synthetic.make(f))
    feeds = features(f, 8)
    skips = run(models, feeds)
    for part, prefix, result, axis in (("erb_dec", "erb_", "m", 2), ("df_dec", "df_", "coefs", 1)):
        inputs = {name: skips[name] for name in LINKS} | {"c0": np.zeros_like(skips["c0"])}
        whole = run({part: models[part]}, inputs)[result]
        blocks, state = [], {}
        for block in (slice(0, 3), slice(3, 8)):
            cut = {k: v[:, block] if k == "emb" else v[:, :, block] for k, v in inputs.items()}
            out = run({part: models[part]}, cut | state)
            state = {f"{prefix}h0": out[f"{prefix}h1"]}
            blocks.append(out[result])
        np.testing.assert_allclose(np.concatenate(blocks, axis), whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("name", "stateful"), [("dfn3", "dfn3-h0"), ("dfn2", "dfn2-h0")])
def test_exporters_write_the_same_network(name, stateful):
    f = synthetic.preset(name)
    feeds = features(f, 7)
    plain, exposed = (run(parts(synthetic.make(synthetic.preset(n))), feeds) for n in (name, stateful))
    for result in RESULTS:
        np.testing.assert_allclose(exposed[result], plain[result], rtol=0, atol=1e-4)


# -- use ----------------------------------------------------------------------------------------------


@every_preset
def test_seed_decides_every_byte(name):
    f = synthetic.preset(name)
    first, again, other = (synthetic.make(f, seed) for seed in (3, 3, 4))
    assert first == again
    assert all(first[f"{part}.onnx"] != other[f"{part}.onnx"] for part in EXPORTS)


def test_command_writes_what_make_returns(tmp_path):
    folder = tmp_path / "new" / "model"
    result = CliRunner().invoke(synthetic.main, ["dfn2-ll", "-o", str(folder), "--seed", "5"])
    assert result.exit_code == 0, result.output
    written = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert written == synthetic.make(synthetic.preset("dfn2-ll"), 5)


def test_impossible_families_are_refused():
    with pytest.raises(UsageError, match="no preset 'dfn1'"):
        synthetic.preset("dfn1")
    with pytest.raises(UsageError, match="nb_erb = 30"):
        synthetic.Family(nb_erb=30)
    with pytest.raises(UsageError, match="one frame"):
        synthetic.Family(convt_kernel=(2, 3))
    with pytest.raises(UsageError, match="at least one"):
        synthetic.Family(emb_num_layers=1)
    with pytest.raises(UsageError, match=r"df_fc_emb: .* 7 groups"):
        synthetic.make(dataclasses.replace(synthetic.preset("dfn3"), enc_linear_groups=7))


# -- the example recording ----------------------------------------------------------------------------


def test_committed_example_has_its_form():
    assert make_example.check(make_example.EXAMPLE).startswith("noisy.wav: 6.0 s at 48000 Hz, mono, 16 bit")


@pytest.mark.parametrize(
    ("rate", "seconds", "peak"),
    [(16_000, 6.0, 0.8), (48_000, 5.0, 0.8), (48_000, 6.0, 0.95), (48_000, 6.0, 0.0)],
)
def test_other_files_are_no_example(tmp_path, rate, seconds, peak):
    path = tmp_path / "x.wav"
    soundfile.write(path, np.full(round(rate * seconds), peak), rate, subtype="PCM_16")
    with pytest.raises(AudioError, match="expected"):
        make_example.check(path)
    with pytest.raises(AudioError, match="missing"):
        make_example.check(tmp_path / "none.wav")


def test_example_starts_with_noise_and_has_the_snr(monkeypatch):
    voice = np.sin(2 * np.pi * 1000 * np.arange(3 * make_example.SAMPLE_RATE) / make_example.SAMPLE_RATE)
    monkeypatch.setattr(make_example, "speak", lambda _: voice)
    x = make_example.example()
    start = round(make_example.LEAD_S * make_example.SAMPLE_RATE)
    # the tone is found by correlation over whole periods; what is left over is noise
    part = x[start : start + len(voice)]
    speech = voice * (part @ voice) / (voice @ voice)
    x[start : start + len(voice)] -= speech
    snr_db = 10 * np.log10((speech @ speech) / (x @ x))
    assert abs(snr_db - make_example.SNR_DB) < 0.2
    assert np.sqrt(np.mean(x[:start] ** 2)) > 0.05


def test_missing_synthesiser_is_one_clear_error(monkeypatch):
    monkeypatch.setattr(make_example.shutil, "which", lambda _: None)
    with pytest.raises(UsageError, match="espeak-ng is not installed"):
        make_example.speak("hello")


@pytest.mark.parametrize("rate", [22_050, 96_000])
def test_resampling_keeps_a_tone(rate):
    x = np.sin(2 * np.pi * 1000 * np.arange(rate) / rate)
    y = make_example.resample(x, rate, 48_000)
    np.testing.assert_allclose(y, np.sin(2 * np.pi * 1000 * np.arange(48_000) / 48_000), rtol=0, atol=1e-9)
