"""The oracle of the graph tests: unpatched exports run once by plain onnxruntime; drivers for patched graphs.

Nothing here uses ``dfstream.modes``, ``dfstream.backends`` or ``dfstream.checking``: sessions are made here,
states are paired by the rule written here, windows are cut here.
"""

import dataclasses
import functools
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import soundfile
from dfstream.patches.fold import fold_constants
from dfstream.patches.graph import export_graph, import_graph
from dfstream.patches.merge import merge
from hypothesis import strategies as st

import synthetic
from conftest import OFFICIAL, ROOT, SYNTHETIC, official_folder
from dfstream.dsp.stft import Analysis
from dfstream.features import Features
from dfstream.model import Model

EXPORTS = ("enc", "erb_dec", "df_dec")
RESULTS = {"lsnr": 1, "m": 2, "coefs": 1}  # and their time axes

#: Largest absolute differences that another order of summation explains; measured: 3.2e-5 dB, 1.7e-6, 5.8e-6.
LIMITS = {"lsnr": 1e-3, "m": 1e-5, "coefs": 1e-5}

#: Frames per call; None is all at once.
CHUNKS = (1, 2, 3, 7, 100, None)

#: Lengths of the runs, such that no chunking but that by two leaves a single frame at the end.
FRAMES, TRAINED_FRAMES = 131, 230

#: Presets that a window of features can serve: all time convolutions stand in front of the recurrent layers.
WINDOWED = tuple(name for name in SYNTHETIC if name != "dfn3-ll")

BUNDLED = ROOT / "dfstream" / "data" / "bundled"


#: Presets that differ most from each other.
FEW = ("dfn3", "dfn2-ll", "dfn3-ll", "lean")


def every_model(presets=SYNTHETIC, quick=SYNTHETIC):
    """Parametrise over presets, the bundled model and the official exports; slow if not ``quick``."""
    quick = [*(name for name in presets if name in quick), "bundled"]
    slow = [*(name for name in presets if name not in quick), *(f"official {name}" for name in OFFICIAL)]
    return pytest.mark.parametrize(
        "name", [*quick, *(pytest.param(name, marks=pytest.mark.slow) for name in slow)]
    )


# -- models and what they compute ---------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Case:
    """One export, features for it, and what its unpatched graphs make of them in one run."""

    folder: Path
    model: Model
    feats: dict
    want: dict

    def graphs(self, recipe):
        return tuple(self.model.graphs(recipe).values())


@functools.cache
def case(name, frames=None):
    folder = folder_of(name)
    model = Model.load(folder)
    trained = name == "bundled" or name.startswith("official ")
    frames = frames or (TRAINED_FRAMES if trained else FRAMES)
    # trained weights get speech, whose levels they are made for
    feats = speech(model.config, frames) if trained else noise(model.config, frames, seed=5)
    return Case(folder, model, feats, whole(folder, feats))


@functools.cache
def full_size(name):
    """A synthetic model as wide as the official ones."""
    return Model.load(
        synthetic.write(Path(_scratch().name) / f"{name} full", synthetic.preset(name, full=True))
    )


def folder_of(name):
    if name == "bundled":
        return BUNDLED
    if name.startswith("official "):
        return official_folder(name.removeprefix("official "))
    return _written(name)


@functools.cache
def _scratch():
    return tempfile.TemporaryDirectory()


@functools.cache
def _written(name):
    return synthetic.write(Path(_scratch().name) / name, synthetic.PRESETS[name], seed=7)


def noise(config, frames, seed, batch=1):
    rng = np.random.default_rng(seed)
    return {
        "feat_erb": rng.standard_normal((batch, 1, frames, config.nb_erb), np.float32),
        "feat_spec": rng.standard_normal((batch, 2, frames, config.nb_df), np.float32),
    }


def speech(config, frames):
    audio, _ = soundfile.read(ROOT / "examples" / "noisy.wav", dtype="float32")
    start = 40 * config.hop_size  # into the first word
    spec = Analysis(config.fft_size, config.hop_size, frames).process(
        audio[None, start:][:, : frames * config.hop_size]
    )
    erb, low = Features(config, frames).process(spec)
    return {"feat_erb": erb.copy(), "feat_spec": low.copy()}


def whole(folder, feats):
    """Run the three graphs as they were exported, once, over all frames."""
    tensors = dict(feats)
    for stem in EXPORTS:
        tensors |= run((folder / f"{stem}.onnx").read_bytes(), tensors)
    return {name: tensors[name] for name in RESULTS}


# -- running ----------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=64)
def session(data):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def run(data, tensors):
    """Run one graph on what it reads of ``tensors``; states that are not given are zeros."""
    s = session(data)
    feeds = {}
    for port in s.get_inputs():
        zeros = np.zeros([1 if isinstance(size, str) else size for size in port.shape], np.float32)
        feeds[port.name] = tensors.get(port.name, zeros)
    names = [port.name for port in s.get_outputs()]
    return dict(zip(names, s.run(names, feeds), strict=True))


def after(name):
    """Name under which the next value of a state comes out."""
    return name[:-1] + "1" if name.endswith("h0") else f"{name}_out"


class Stepper:
    """Drives patched graphs, one or the four of Streaming, call by call."""

    def __init__(self, *graphs, batch=1):
        self.graphs, self.states = graphs, {}
        for data in graphs:
            outputs = {port.name for port in session(data).get_outputs()}
            for port in session(data).get_inputs():
                if after(port.name) in outputs and port.name != "emb":
                    shape = [batch if size == "B" else size for size in port.shape]
                    self.states[port.name] = np.zeros(shape, np.float32)

    def __call__(self, feats):
        tensors = dict(feats)
        for data in self.graphs:
            out = run(data, {**tensors, **self.states})
            self.states |= {name: out[after(name)] for name in self.states if after(name) in out}
            tensors |= out
            if "emb_out" in out:
                tensors["emb"] = out["emb_out"]
        return {name: tensors[name] for name in RESULTS}


def cut(feats, sizes):
    """Cut features into pieces of the given numbers of frames; one number is repeated, None is all."""
    frames = feats["feat_erb"].shape[2]
    if sizes is None or isinstance(sizes, int):
        sizes = [sizes or frames] * -(-frames // (sizes or frames))
    start = 0
    for size in sizes:
        yield {k: np.ascontiguousarray(v[:, :, start : start + size]) for k, v in feats.items()}
        start += size
    assert start >= frames


def splits(frames):
    """Strategy of sizes that add up to a number of frames."""
    cuts = st.sets(st.integers(1, frames - 1), max_size=12)
    return cuts.map(lambda found: np.diff([0, *sorted(found), frames]).tolist())


def windows(feats, length, *, grow=True):
    """Yield the last ``length`` frames up to each frame; at the start fewer (grow), or zero features."""
    for t in range(feats["feat_erb"].shape[2]):
        past = {k: v[:, :, max(0, t + 1 - length) : t + 1] for k, v in feats.items()}
        missing = 0 if grow else length - past["feat_erb"].shape[2]
        yield {k: np.pad(v, ((0, 0), (0, 0), (missing, 0), (0, 0))) for k, v in past.items()}


def join(pieces):
    pieces = list(pieces)
    return {name: np.concatenate([piece[name] for piece in pieces], axis) for name, axis in RESULTS.items()}


def streamed(graphs, feats, sizes, batch=1):
    return join(map(Stepper(*graphs, batch=batch), cut(feats, sizes)))


def windowed(graph, feats, length, *, grow=True, batch=1):
    return join(map(Stepper(graph, batch=batch), windows(feats, length, grow=grow)))


def errors(got, want, frames=slice(None)):
    """Largest absolute differences, over all frames or some."""
    found = {}
    for name, axis in RESULTS.items():
        assert got[name].shape == want[name].shape, name
        assert np.isfinite(got[name]).all(), name
        difference = np.abs(got[name].astype(np.float64) - want[name])
        found[name] = float(np.moveaxis(difference, axis, 0)[frames].max())
    return found


def check_equal(got, want, limits=LIMITS, frames=slice(None)):
    found = errors(got, want, frames)
    assert all(found[name] <= limit for name, limit in limits.items()), found


# -- graphs -------------------------------------------------------------------------------------------


def parts(name):
    """Editable graphs of an export."""
    return {stem: graph.copy() for stem, graph in _parts(name).items()}


@functools.cache
def _parts(name):
    return {stem: import_graph(onnx.load(folder_of(name) / f"{stem}.onnx")) for stem in EXPORTS}


def merged(name, *, folded=True):
    """Editable merged graph of an export."""
    return _merged(name, folded).copy()


@functools.cache
def _merged(name, folded):
    graph = merge(_parts(name))
    if folded:
        fold_constants(graph)
    return graph


def first(graph, op):
    return next(node for node in graph.nodes if node.op == op)


def twice(graph, patch):
    """Apply a patch twice; the second time must find nothing to do and leave the same bytes."""
    sites = patch(graph)
    once = export_graph(graph)
    assert patch(graph) == []
    assert export_graph(graph) == once
    return sites


def ports(data):
    """Return declared inputs and outputs of a graph with their shapes, in order."""
    graph = onnx.load_from_string(data).graph

    def shape(value):
        return [
            d.dim_value if d.HasField("dim_value") else d.dim_param for d in value.type.tensor_type.shape.dim
        ]

    return {v.name: shape(v) for v in graph.input}, {v.name: shape(v) for v in graph.output}


def operators(data):
    """Count the operators of a graph."""
    counts = {}
    for node in onnx.load_from_string(data).graph.node:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return counts


def whole_tensors(name, feats):
    """Every public tensor of an unpatched run."""
    tensors = dict(feats)
    for stem in EXPORTS:
        tensors |= run((folder_of(name) / f"{stem}.onnx").read_bytes(), tensors)
    return tensors
