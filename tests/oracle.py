"""The oracle of the graph tests: unpatched exports run once by plain onnxruntime.

Independent of ``dfstream.modes``, ``dfstream.backends`` and ``dfstream.checking``: sessions are made here, states are paired
by the rule written here, windows are cut here.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import soundfile

import synthetic
from conftest import OFFICIAL, SYNTHETIC, official_folder
from dfstream.dsp.stft import Analysis
from dfstream.features import Features
from dfstream.model import Model

RESULTS = ("lsnr", "m", "coefs")

#: Largest absolute differences that another order of summation explains.
LIMITS = {"lsnr": 1e-3, "m": 1e-5, "coefs": 1e-5}

#: Frames per call; None is all at once.
CHUNKS = (1, 2, 3, 7, 100, None)

EXPORTS = ("enc", "erb_dec", "df_dec")
BUNDLED = Path(synthetic.__file__).parent.parent / "dfstream" / "data" / "bundled"

#: Presets whose time convolutions all stand in front of the recurrent layers: a window can serve them.
WINDOWED = tuple(name for name in SYNTHETIC if name != "dfn3-ll")


def every_model(synthetic_names=SYNTHETIC):
    """Parametrise over synthetic presets, the bundled model and the official exports (slow)."""
    official = [pytest.param(f"official {name}", marks=pytest.mark.slow) for name in OFFICIAL]
    return pytest.mark.parametrize("name", [*synthetic_names, "bundled", *official])


# -- models and features ----------------------------------------------------------------------------


@functools.cache
def folder_of(name: str, root: Path) -> Path:
    if name == "bundled":
        return BUNDLED
    if name.startswith("official "):
        return official_folder(name.removeprefix("official "))
    return synthetic.write(root / name, synthetic.PRESETS[name], seed=7)


@functools.cache
def load(folder: Path) -> Model:
    return Model.load(folder)


@functools.cache
def features(folder: Path, frames: int = 230) -> dict[str, np.ndarray]:
    """Noise for synthetic weights; our noisy speech for trained ones, whose activations it is made for."""
    c = load(folder).config
    if folder == BUNDLED or folder.name in OFFICIAL:
        audio, _ = soundfile.read(BUNDLED.parents[2] / "examples" / "noisy.wav", dtype="float32")
        spec = Analysis(c.fft_size, c.hop_size, frames).process(audio[40 * c.hop_size :][: frames * c.hop_size])
        erb, low = Features(c, frames).process(spec)
        return {"feat_erb": erb.copy(), "feat_spec": low.copy()}
    return noise(c, frames, seed=5)


def noise(config, frames: int, seed: int, batch: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "feat_erb": rng.standard_normal((batch, 1, frames, config.nb_erb), np.float32),
        "feat_spec": rng.standard_normal((batch, 2, frames, config.nb_df), np.float32),
    }


# -- running ----------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=64)
def session(data: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def run(data: bytes, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run one graph on what it reads of ``tensors``; states that are not given are zeros."""
    s = session(data)
    feeds = {
        port.name: tensors[port.name] if port.name in tensors else np.zeros([1 if isinstance(n, str) else n for n in port.shape], np.float32)
        for port in s.get_inputs()
    }  # fmt: skip
    names = [port.name for port in s.get_outputs()]
    return dict(zip(names, s.run(names, feeds), strict=True))


@functools.cache
def _whole(folder: Path, frames: int) -> dict[str, np.ndarray]:
    return whole(folder, features(folder, frames))


def whole(folder: Path, feats: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run the three graphs as they were exported, once, over all frames."""
    tensors = dict(feats)
    for stem in EXPORTS:
        tensors |= run((folder / f"{stem}.onnx").read_bytes(), tensors)
    return {name: tensors[name] for name in RESULTS}


def expected(folder: Path, frames: int = 230) -> dict[str, np.ndarray]:
    return _whole(folder, frames)


class Stepper:
    """Drives patched graphs, one or the four of Streaming, call by call."""

    def __init__(self, *graphs: bytes, batch: int = 1) -> None:
        self.graphs = graphs
        self.states = {}
        for data in graphs:
            outputs = {port.name for port in session(data).get_outputs()}
            for port in session(data).get_inputs():
                after = port.name[:-1] + "1" if port.name.endswith("h0") else f"{port.name}_out"
                if after in outputs and port.name not in ("emb", "h"):
                    shape = [batch if size == "B" else size for size in port.shape]
                    self.states[port.name] = np.zeros(shape, np.float32)
        self._after = {name: name[:-1] + "1" if name.endswith("h0") else f"{name}_out" for name in self.states}

    def __call__(self, feats):
        tensors = dict(feats)
        for data in self.graphs:
            out = run(data, {**tensors, **self.states})
            self.states |= {name: out[after] for name, after in self._after.items() if after in out}
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


def windows(feats, length, *, grow=True):
    """The last ``length`` frames up to each frame; before the first ones, less (grow) or zero features."""
    for t in range(feats["feat_erb"].shape[2]):
        past = {k: v[:, :, max(0, t + 1 - length) : t + 1] for k, v in feats.items()}
        missing = 0 if grow else length - past["feat_erb"].shape[2]
        yield {k: np.pad(v, ((0, 0), (0, 0), (missing, 0), (0, 0))) for k, v in past.items()}


def join(pieces) -> dict[str, np.ndarray]:
    pieces = list(pieces)
    return {name: np.concatenate([p[name] for p in pieces], axis) for name, axis in zip(RESULTS, (1, 2, 1), strict=True)}


def streamed(graphs, feats, sizes, batch: int = 1) -> dict[str, np.ndarray]:
    return join(map(Stepper(*graphs, batch=batch), cut(feats, sizes)))


def windowed(graph: bytes, feats, length: int, *, grow: bool = True, batch: int = 1) -> dict[str, np.ndarray]:
    return join(map(Stepper(graph, batch=batch), windows(feats, length, grow=grow)))


def errors(got, want, frames=slice(None)) -> dict[str, float]:
    """Largest absolute differences, in all frames or some."""
    found = {}
    for name, axis in zip(RESULTS, (1, 2, 1), strict=True):
        assert got[name].shape == want[name].shape, name
        assert np.isfinite(got[name]).all(), name
        difference = np.abs(got[name].astype(np.float64) - want[name])
        found[name] = float(np.moveaxis(difference, axis, 0)[frames].max())
    return found


def agrees(got, want) -> bool:
    found = errors(got, want)
    return all(found[name] <= limit for name, limit in LIMITS.items()) or pytest.fail(f"errors {found}")


# -- looking into graphs ------------------------------------------------------------------------------


def ports(data: bytes) -> tuple[dict[str, list], dict[str, list]]:
    """Declared inputs and outputs of a graph with their shapes, in order."""
    graph = onnx.load_from_string(data).graph
    return tuple(
        {v.name: [d.dim_value if d.HasField("dim_value") else d.dim_param for d in v.type.tensor_type.shape.dim] for v in values}
        for values in (graph.input, graph.output)
    )  # type: ignore[return-value]


def operators(data: bytes) -> dict[str, int]:
    counts: dict[str, int] = {}
    for node in onnx.load_from_string(data).graph.node:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return counts
