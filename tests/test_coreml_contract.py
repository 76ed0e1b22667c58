"""The contract suffices: an engine that knows nothing else gives the audio of `dfstream.Stream`."""

import dataclasses
import json

import numpy as np
import onnxruntime
import pytest

import oracle
from contract_engine import Enhancer, Features, Spectra, SpectralFilter, unpacked
from dfstream.coreml.contract import FORMAT, contract, description, golden_vectors
from dfstream.dsp.norm import initial_unit_norm
from dfstream.dsp.stft import vorbis_window
from dfstream.patching import canonical_recipe
from dfstream.stream import Stream

#: Largest difference between samples; measured: 3e-7 with trained weights, 8e-7 with random ones.
LIMIT = 1e-5

#: Presets that differ in the signal's way.
PRESETS = ("dfn3", "dfn2", "dfn2-ll", "dfn3-ll", "wideband16k")


class Canonical:
    """Advances one frame of the canonical graph; carries its states."""

    def __init__(self, model, shapes):
        graph = model.graphs(canonical_recipe())["combined_canonical"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self.shapes = shapes
        self.outputs = [output.name for output in self.session.get_outputs()]
        self.states = {
            i.name: np.zeros(i.shape, np.float32)
            for i in self.session.get_inputs()
            if i.name not in shapes["inputs"]
        }

    def __call__(self, feat_erb, feat_spec):
        feats = zip(self.shapes["inputs"].items(), (feat_erb, feat_spec), strict=True)
        feeds = {name: np.float32(value).reshape(shape) for (name, shape), value in feats}
        out = dict(zip(self.outputs, self.session.run(None, {**feeds, **self.states}), strict=True))
        self.states = {name: out[f"{name}_out"] for name in self.states}
        return out["mask"].ravel(), out["coefs"][0, :, 0], float(out["lsnr"].item())


def enhancer(model):
    text = json.dumps(contract(model.config))
    return Enhancer(text, Canonical(model, json.loads(text)["network"]))


def signal(config, seconds=1.5):
    """Tones that come and go in noise, with silence, a click and samples that are none."""
    rng, n = np.random.default_rng(3), int(seconds * config.sample_rate)
    t = np.arange(n) / config.sample_rate
    x = 0.2 * np.sin(2 * np.pi * 300 * t * (1 + t)) * (np.sin(9 * t) > 0) + 0.03 * rng.standard_normal(n)
    x[n // 2 : n // 2 + n // 10] = 0
    x[n // 3], x[n // 3 + 1], x[n // 5] = np.nan, np.inf, 1
    return x.astype(np.float32)


def in_pieces(process, x, sizes=(1, 480, 37, 1000, 479)):
    ends = np.cumsum(np.resize(sizes, len(x)))
    return np.concatenate([process(piece) for piece in np.split(x, ends[ends < len(x)])])


@oracle.every_model(PRESETS)
def test_the_contract_is_enough(name):
    model = oracle.case(name).model
    x = signal(model.config)
    want = Stream(model, backend="ort-cpu", sample_rate=model.config.sample_rate).process(x)
    got = in_pieces(enhancer(model).process, x)
    assert got.shape == want.shape
    assert np.abs(want).max() > 1e-3
    assert np.abs(got - want).max() <= LIMIT


@pytest.mark.parametrize("name", ["bundled", "dfn2"])
def test_settings_of_the_listener(name):
    model = oracle.case(name).model
    x = signal(model.config, seconds=0.5)
    for limit_db, beta in ((12.0, 0.0), (0.0, 0.0), (None, 0.05), (18.0, 0.02), (150.0, 0.0)):
        stream = Stream(model, backend="ort-cpu", atten_lim_db=limit_db, post_filter=beta)
        got = enhancer(model).process(x, limit_db=limit_db, beta=beta)
        assert np.abs(got - stream.process(x)).max() <= LIMIT


@pytest.mark.parametrize("name", ["bundled", *PRESETS])
def test_golden_vectors_stage_by_stage(name):
    """As a port would use them: each stage from the golden one before it, so that the fault is found."""
    model = oracle.case(name).model
    golden = json.loads(json.dumps(golden_vectors(model)))
    stages = {name: unpacked(stage) for name, stage in golden["stages"].items()}
    constants = json.loads(json.dumps(contract(model.config)))
    spectra, features, network = (
        Spectra(constants),
        Features(constants),
        Canonical(model, constants["network"]),
    )
    plain, limited, back, limited_back = (
        *(SpectralFilter(constants) for _ in "12"),
        *map(Spectra, [constants] * 2),
    )
    stream = Stream(model, backend="ort-cpu", sample_rate=model.config.sample_rate)
    assert np.abs(stream.process(stages["audio_in"].ravel()) - stages["audio_out"].ravel()).max() <= LIMIT
    assert all(len(stage) == golden["frames"] for stage in stages.values())
    assert np.abs(stages["audio_out"]).max() > 1e-3

    def close(got, want, limit):
        assert got.shape == want.shape
        assert np.abs(got - want).max() <= limit * max(1, np.abs(want).max())

    for t in range(golden["frames"]):
        frame = {name: stage[t] for name, stage in stages.items()}
        spectrum, enhanced = (frame[k][0] + 1j * frame[k][1] for k in ("spectrum", "enhanced"))
        close(spectra.analyse(frame["audio_in"]), spectrum, 1e-6)
        feat_erb, feat_spec = features.process(spectrum)
        close(feat_erb, frame["feat_erb"], 1e-5)
        close(feat_spec, frame["feat_spec"], 1e-5)
        mask, coefs, lsnr = network(frame["feat_erb"], frame["feat_spec"])
        close(mask, frame["mask"], 1e-5)
        close(coefs, frame["coefs"], 1e-5)
        assert lsnr == pytest.approx(frame["lsnr"].item(), abs=1e-3)
        results = spectrum, frame["mask"], frame["coefs"]
        close(plain.process(*results), enhanced, 1e-6)
        close(back.synthesise(enhanced), frame["audio_out"], 1e-6)
        settings = {"beta": golden["post_filter"], "limit_db": golden["atten_lim_db"]}
        audio = limited_back.synthesise(limited.process(*results, **settings))
        close(audio, frame["audio_out_limited"], 1e-6)


def test_golden_vectors_reach_the_output_and_stay_small(bundled):
    golden = golden_vectors(bundled)
    assert len(json.dumps(golden)) < 110_000
    audio = unpacked(golden["stages"]["audio_out"])
    assert golden["frames"] == bundled.config.delay_frames + 2
    assert np.abs(audio[-1]).max() > 1e-3


def test_numbers_read_back_as_the_same_float32(bundled):
    """Also with a parser that has float32 only, and none of them is longer than it has to be."""
    text = json.dumps(contract(bundled.config))
    values = json.loads(text, parse_float=np.float32)
    assert np.array_equal(values["window"]["values"], vorbis_window(960))
    assert np.array_equal(values["features"]["spec"]["initial"], initial_unit_norm(96))
    assert values["features"]["alpha"] == np.float32(bundled.config.norm_alpha)
    assert '"alpha": 0.99,' in text


def test_what_tells_variants_apart(bundled):
    three = contract(bundled.config)
    two = contract(dataclasses.replace(bundled.config, architecture="deepfilternet2"))
    assert (three["deep_filter"]["reads"], two["deep_filter"]["reads"]) == ("noisy", "masked")
    assert three["deep_filter"]["tap_ages"] == [4, 3, 2, 1, 0]
    assert two["deep_filter"]["tap_ages"] == [6, 5, 4, 3, 2]
    assert (three["delay_samples"], two["delay_samples"]) == (1440, 2400)
    changed = {key for key in three if three[key] != two[key]}
    assert changed == {"delay_samples", "deep_filter"}


def test_description_holds_the_contract_and_the_states(bundled):
    states = [{"name": "h", "output": "h_out", "shape": [1, 8, 1, 1], "dtype": "float32", "initial": 0}]
    made = description(bundled.config, states, precision="fp16")
    assert made["format"] == FORMAT
    assert made["contract"] == contract(bundled.config)
    assert (made["states"], made["state"], made["block_frames"]) == (states, "explicit", 1)
    assert made["precision"] == "fp16"
