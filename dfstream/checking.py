"""Proof that patched graphs compute what the export does: streamed against one run over the whole."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dfstream.backends.base import find_backend
from dfstream.errors import BackendError
from dfstream.interface import EXPORTS, FEATURES, RESULTS, state_inputs
from dfstream.modes.base import NetOutput, find_network_mode, initial_states

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

    from dfstream.backends.base import Session
    from dfstream.model import Model
    from dfstream.modes.base import Mode

    Arrays = Mapping[str, NDArray[np.float32]]

__all__ = [
    "TOLERANCES",
    "CheckRow",
    "check_canonical",
    "check_lean",
    "check_mode",
    "largest_difference",
    "reference_run",
    "speech_clip",
    "test_features",
]

#: Largest absolute difference that another summation order explains (measured: 3e-5 dB, 6e-6, 5e-6).
TOLERANCES = {"lsnr": 1e-3, "m": 1e-5, "coefs": 1e-5, "audio": 3e-5}

#: Frames per call, None for all at once.
_CHUNKINGS: tuple[int | None, ...] = (1, 2, 3, 7, 100, None)

_FRAMES = 240
_CLIP = Path(__file__).parent / "data" / "speech_in_noise.flac"


@dataclasses.dataclass(frozen=True)
class CheckRow:
    """One comparison.

    Attributes
    ----------
    features : str
        Which features went in.
    chunking : str
        How they were cut.
    errors : mapping of str to float
        Largest absolute difference of ``lsnr`` (dB), ``m`` and ``coefs``, or of ``lsnr`` and ``audio``;
        infinite where not finite.
    tolerances : mapping of str to float
    snr_db : float or None
        Of audio.
    """

    features: str
    chunking: str
    errors: Mapping[str, float]
    tolerances: Mapping[str, float] = dataclasses.field(default_factory=lambda: TOLERANCES)
    snr_db: float | None = None

    @property
    def passed(self) -> bool:
        """Whether every error is within its tolerance."""
        return all(error <= self.tolerances[name] for name, error in self.errors.items())


def test_features(model: Model) -> dict[str, Arrays]:
    """Return features to compare graphs on: random ones, and those of speech in noise.

    Returns
    -------
    mapping of str to mapping
        ``feat_erb`` float32 [1, 1, T, bands] and ``feat_spec`` float32 [1, 2, T, df bins] by kind.
    """
    c = model.config
    rng = np.random.default_rng(20_240_925)
    random = {
        "feat_erb": rng.standard_normal((1, 1, _FRAMES, c.nb_erb), np.float32),
        "feat_spec": rng.standard_normal((1, 2, _FRAMES, c.nb_df), np.float32),
    }
    return {"random": random, "speech": _speech_features(model)}


test_features.__test__ = False  # type: ignore[attr-defined]  # not a pytest test


def speech_clip() -> NDArray[np.float32]:
    """Return the packaged 2.5 s of speech in noise, float32 [n]; a model of another rate hears it slower."""
    import soundfile

    audio, _ = soundfile.read(_CLIP, dtype="float32")
    return np.ascontiguousarray(audio)


def _speech_features(model: Model) -> Arrays:
    from dfstream.dsp.stft import Analysis
    from dfstream.features import Features

    c, audio = model.config, speech_clip()
    T = min(_FRAMES, len(audio) // c.hop_size)
    spec = Analysis(c.fft_size, c.hop_size, T).process(audio[None, : T * c.hop_size])
    return dict(zip(FEATURES, Features(c, T).process(spec), strict=True))


def reference_run(model: Model, features: Arrays) -> NetOutput:
    """Run the unpatched graphs of a model once over all frames, as they were exported.

    Raises
    ------
    BackendError
        onnxruntime cannot run them.
    """
    backend = find_backend("ort-cpu")
    tensors = dict(features)
    sources = model.source_graphs()
    for stem in EXPORTS if len(sources) > 1 else tuple(sources):
        tensors |= _run_export(backend.load(sources[stem], stem), sources[stem], tensors)
    return NetOutput(*(tensors[name] for name in RESULTS))


def _run_export(session: Session, data: bytes, tensors: Arrays) -> Arrays:
    import onnx

    graph = onnx.load_model_from_string(data).graph
    inputs = [value.name for value in graph.input]
    states = state_inputs(inputs, [value.name for value in graph.output])
    zeros = initial_states(session, 1)
    try:
        feeds = {name: zeros[name] if name in states else tensors[name] for name in inputs}
    except KeyError as error:
        raise BackendError(f"the export reads {error}, which nothing computes") from error
    return session.run(feeds)


def check_mode(model: Model, mode_class: type[Mode]) -> list[CheckRow]:
    """Stream features through a mode and compare with the unpatched graphs in one run.

    A mode that is not exact by design is compared on its graph: all frames at once.
    """
    rows = []
    for kind, features in test_features(model).items():
        reference = reference_run(model, features)
        if not mode_class.exact:
            rows.append(_compare(kind, "whole", _whole(model, mode_class, features), reference))
            continue
        for size in _CHUNKINGS if mode_class.many_frames else (1,):
            mode = mode_class(model, find_backend("ort-cpu"))
            rows.append(_compare(kind, _name(size), _streamed(mode.step, features, size), reference))
        batch = mode_class(model, find_backend("ort-cpu"), batch=3)
        rows.append(_compare(kind, "batch of 3", _batched(batch.step, features, 7), reference))
    return rows


def check_lean(model: Model) -> list[CheckRow]:
    """Step the lean graph frame by frame, as live streams do, and compare as `check_mode`."""
    rows, mode_class = [], find_network_mode("incremental")
    for kind, features in test_features(model).items():
        reference = reference_run(model, features)
        one, batch = (mode_class(model, find_backend("ort-cpu"), n, single_frame=True) for n in (1, 3))
        rows.append(_compare(kind, "1", _streamed(one.step, features, 1), reference))
        rows.append(_compare(kind, "1, batch of 3", _batched(batch.step, features, 1), reference))
    return rows


def check_canonical(model: Model, graph: bytes) -> list[CheckRow]:
    """Step the canonical graph frame by frame and compare as `check_mode`."""
    session = find_backend("ort-cpu").load(graph, "combined_canonical")
    rows = []
    for kind, features in test_features(model).items():
        state = initial_states(session, 1)

        def step(feat_erb: NDArray[Any], feat_spec: NDArray[Any], state: dict[str, Any] = state) -> NetOutput:
            out = session.run({"feat_erb": feat_erb, "feat_spec": feat_spec, **state})
            state.update({name: out[f"{name}_out"] for name in state})
            return NetOutput(out["lsnr"][:, 0], out["mask"], out["coefs"].transpose(0, 2, 3, 1))

        rows.append(_compare(kind, "1", _streamed(step, features, 1), reference_run(model, features)))
    return rows


def _streamed(step: Callable[..., NetOutput], features: Arrays, size: int | None) -> NetOutput:
    return NetOutput.join([step(*piece) for piece in _pieces(features, size)])


def _batched(step: Callable[..., NetOutput], features: Arrays, size: int) -> NetOutput:
    """Run three different streams as one batch; return the middle one, which is the real one."""
    others = {name: np.concatenate([x[:, :, ::-1], x, 0.5 * x]) for name, x in features.items()}
    return NetOutput(*(x[1:2] for x in _streamed(step, others, size)))


def _whole(model: Model, mode_class: type[Mode], features: Arrays) -> NetOutput:
    mode = mode_class(model, find_backend("ort-cpu"))
    (session,) = mode.sessions.values()
    out = session.run({**features, **initial_states(session, 1)})
    return NetOutput(*(out[name] for name in RESULTS))


def _pieces(features: Arrays, size: int | None) -> Iterator[list[NDArray[np.float32]]]:
    frames = features["feat_erb"].shape[2]
    for start in range(0, frames, size or frames):
        yield [
            np.ascontiguousarray(features[name][:, :, start : start + (size or frames)]) for name in FEATURES
        ]


def _compare(kind: str, chunking: str, got: NetOutput, want: NetOutput) -> CheckRow:
    errors = {name: largest_difference(a, b) for name, a, b in zip(RESULTS, got, want, strict=True)}
    return CheckRow(kind, chunking, errors)


def largest_difference(got: NDArray[np.float32], want: NDArray[np.float32]) -> float:
    """Return the largest absolute difference; infinite where not finite, or of another shape."""
    if got.shape != want.shape:
        return float("inf")
    error = float(np.max(np.abs(got.astype(np.float64) - want)))
    return error if np.isfinite(error) else float("inf")


def _name(size: int | None) -> str:
    return "whole" if size is None else str(size)
