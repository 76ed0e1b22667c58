"""Proof that audio graphs compute what streams do: the same audio through both."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dfstream.backends.base import find_backend
from dfstream.checking import CheckRow, largest_difference, speech_clip
from dfstream.filtering import attenuation_gain
from dfstream.modes.base import initial_states
from dfstream.stream import Stream

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from dfstream.backends.base import Session
    from dfstream.model import Model
    from dfstream.patches.recipe import Recipe

__all__ = ["check_audio"]

_HOPS = 210

#: Hops a call for graphs that take any number; all of them divide the number of hops.
_BLOCKS = (1, 2, 7, 105)

#: Settings of `Stream`: none, and all that the graphs have.
_SETTINGS: tuple[dict[str, float], ...] = ({}, {"post_filter": 0.05, "atten_lim_db": 12.0})

#: Largest absolute difference that another summation order explains, and that weights of eleven bits do.
_EXACT, _HALF = {"lsnr": 2e-3, "audio": 3e-5}, {"lsnr": 0.5, "audio": 1e-2}


class _Enhanced(NamedTuple):
    audio: NDArray[np.float32]
    lsnr: NDArray[np.float32]


def check_audio(model: Model, recipes: Sequence[Recipe], *, exact: bool = True) -> list[CheckRow]:
    """Stream audio through audio graphs and compare with a `Stream` in the mode ``incremental``.

    Parameters
    ----------
    model : Model
    recipes : sequence of Recipe
        Of graphs of one hop a call, or of any number.
    exact : bool
        Whether the weights are stored exactly.
    """
    rows, hop = [], model.config.hop_size
    for recipe in recipes:
        ((stem, data),) = model.graphs(recipe).items()
        session = find_backend("ort-cpu").load(data, stem)
        for kind, x in _test_audio(hop).items():
            for settings in _SETTINGS:
                want = _reference(model, x, settings)
                for block in (1,) if _one_hop(data) else _BLOCKS:
                    got = _second_of_two(session, x, block * hop, settings)
                    rows.append(_compare(f"{stem}, {kind}", str(block), got, want, exact))
    return rows


def _one_hop(data: bytes) -> bool:
    import onnx

    (audio,) = [i for i in onnx.load_model_from_string(data).graph.input if i.name == "audio"]
    return bool(audio.type.tensor_type.shape.dim[1].HasField("dim_value"))


def _test_audio(hop: int) -> dict[str, NDArray[np.float32]]:
    noise = np.random.default_rng(20_240_925).standard_normal(_HOPS * hop, np.float32)
    return {"noise": noise / np.float32(10), "speech": np.resize(speech_clip(), _HOPS * hop)}


def _reference(model: Model, x: NDArray[np.float32], settings: dict[str, Any]) -> _Enhanced:
    stream = Stream(model, backend="ort-cpu", sample_rate=model.config.sample_rate, **settings)
    return _Enhanced(stream.process(x), stream.lsnr)


def _second_of_two(
    session: Session, x: NDArray[np.float32], size: int, settings: dict[str, float]
) -> _Enhanced:
    """Stream the audio beside another stream in a batch."""
    streams = np.stack([x[::-1], x])
    state = initial_states(session, 2)["state"]
    strengths = {
        "atten_lim": np.array([attenuation_gain(settings.get("atten_lim_db"))], np.float32),
        "pf_beta": np.array([settings.get("post_filter", 0.0)], np.float32),
    }
    results = []
    for start in range(0, len(x), size):
        audio = np.ascontiguousarray(streams[:, start : start + size])
        results.append(session.run({"audio": audio, "state": state, **strengths}))
        state = results[-1]["state_out"]
    return _Enhanced(*(np.concatenate([r[name][1] for r in results]) for name in ("enhanced", "lsnr")))


def _compare(kind: str, chunking: str, got: _Enhanced, want: _Enhanced, exact: bool) -> CheckRow:
    errors = {name: largest_difference(getattr(got, name), getattr(want, name)) for name in ("lsnr", "audio")}
    noise = float(np.mean((got.audio.astype(np.float64) - want.audio) ** 2))
    snr_db = float(10 * np.log10(np.mean(want.audio.astype(np.float64) ** 2) / noise)) if noise else np.inf
    return CheckRow(kind, chunking, errors, _EXACT if exact else _HALF, snr_db)
