"""The verb ``verify``: prove that what comes out is DeepFilterNet's, in every mode, case by case."""

from __future__ import annotations

import dataclasses
import math
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from dfstream.backends.base import AUTO
from dfstream.checking import reference_run, speech_clip
from dfstream.dsp.stft import Analysis, Synthesis
from dfstream.engine import EngineOptions
from dfstream.features import Features
from dfstream.filtering import SpectralFilter
from dfstream.gating import Thresholds
from dfstream.goldens import goldens_of, read_goldens
from dfstream.modes.base import find_mode
from dfstream.stream import Stream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from dfstream.backends.base import Backend
    from dfstream.goldens import Golden
    from dfstream.model import Model

__all__ = ["EXPORT_SNR_DB", "VerifyRow", "serves", "verify_export", "verify_golden", "verify_model"]

#: Least SNR against the unpatched graphs in one run; float32 in another order leaves 125 dB and more.
EXPORT_SNR_DB = 110.0

#: Above this peak the SNR decides, below it the error itself.
_AUDIBLE_DBFS = -40.0


@dataclasses.dataclass(frozen=True)
class VerifyRow:
    """One comparison.

    Attributes
    ----------
    case : str
        Golden case and run, or ``export`` for the unpatched graphs.
    mode : str
    snr_db : float
        Output over difference; infinite for identical, NaN for a silent reference.
    rms_dbfs : float
        Level of the difference.
    max_error : float
        Largest difference.
    lsnr_error_db : float or None
        Largest difference of the LSNR.
    limit : str
        What was asked for.
    passed : bool or None
        None for a mode that is measured, not judged.
    reason : str
        Why the limit is what it is.
    """

    case: str
    mode: str
    snr_db: float
    rms_dbfs: float
    max_error: float
    lsnr_error_db: float | None
    limit: str
    passed: bool | None
    reason: str


def verify_model(
    model: Model,
    modes: Sequence[str],
    backend: str | Backend = AUTO,
    goldens: Path | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Iterator[VerifyRow]:
    """Compare a model's output with its export's and with the Rust engine's, row by row.

    Parameters
    ----------
    model : Model
    modes : sequence of str
    backend : str or Backend
    goldens : Path, optional
        Folder of golden cases; those made with this model's graphs are used, where a mode can do what
        they ask for.
    progress : callable
        Told what is being compared.

    Raises
    ------
    DfstreamError
        A mode or backend cannot run the model.
    """
    cases = goldens_of(model, read_goldens(goldens)) if goldens is not None else []
    for mode in modes:
        progress(f"{mode}: export")
        yield verify_export(model, mode, backend)
        for golden in cases:
            if not serves(mode, golden):
                continue
            progress(f"{mode}: {golden.name}")
            yield verify_golden(model, golden, mode, backend)


def verify_export(model: Model, mode: str, backend: str | Backend = AUTO) -> VerifyRow:
    """Stream speech in noise and compare with the unpatched graphs run once over all of it."""
    x = speech_clip()
    stream = Stream(model, mode=mode, backend=backend, sample_rate=model.config.sample_rate)
    y = np.concatenate([stream.process(chunk) for chunk in _chunks(x)])
    limits = {"snr_db": EXPORT_SNR_DB, "rms_dbfs": -150.0, "lsnr_db": None, "reason": "float32 rounding"}
    return _row("export", mode, y, _whole(model, x)[: len(y)], None, limits)


def serves(mode: str, golden: Golden) -> bool:
    """Whether a mode can do what a golden case asks for."""
    p = golden.params
    thresholds = Thresholds(p["min_db_thresh"], p["max_db_erb_thresh"], p["max_db_df_thresh"])
    return find_mode(mode).unserved(EngineOptions(thresholds=thresholds)) is None


def verify_golden(model: Model, golden: Golden, mode: str, backend: str | Backend = AUTO) -> VerifyRow:
    """Stream a golden case in irregular chunks and compare with the Rust engine."""
    x, want, want_lsnr = golden.load()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # thresholds that ruin DFN3 are part of the proof
        stream = Stream(model, mode=mode, backend=backend, channels=x.shape[1], **_options(golden.params))
    y, lsnr = _streamed(stream, x, golden.params.get("schedule", []))
    if golden.compare == "bypass":
        y, want = _without_bypass(y, want, x, stream)
    error = None
    if want_lsnr is not None and golden.tolerance.get("lsnr_db") is not None:
        error = float(np.max(np.abs(lsnr - want_lsnr[: len(lsnr)])))
    return _row(golden.name, mode, y, want[: len(y)], error, golden.limits(mode))


def _options(params: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "atten_lim_db": params["atten_lim_db"],
        "post_filter": params["post_filter_beta"],
        "min_db_thresh": params["min_db_thresh"],
        "max_db_erb_thresh": params["max_db_erb_thresh"],
        "max_db_df_thresh": params["max_db_df_thresh"],
        "skip_silence": bool(params.get("skip_silence", False)),
    }


def _streamed(
    stream: Stream, x: NDArray[np.float32], schedule: Sequence[tuple[int, Mapping[str, float]]]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Feed irregular chunks, changing settings at the hops of a schedule."""
    changes = [(hop * stream.hop_size, settings) for hop, settings in schedule]
    ys, lsnrs, start = [], [], 0
    for stop, settings in [*changes, (len(x), {})]:
        for chunk in _chunks(x[start:stop]):
            ys.append(stream.process(chunk if stream.channels > 1 else chunk[:, 0]).reshape(-1, x.shape[1]))
            lsnrs.append(stream.lsnr)
        stream.atten_lim_db = settings.get("atten_lim_db", stream.atten_lim_db)
        stream.post_filter = settings.get("post_filter_beta", stream.post_filter)
        start = stop
    return np.concatenate(ys), np.concatenate(lsnrs)


def _chunks(x: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    sizes = np.random.default_rng(len(x)).integers(1, 2000, size=len(x) + 1)
    stops = np.minimum(np.cumsum(sizes), len(x))
    start = 0
    for stop in stops:
        if start == len(x):
            return
        yield x[start:stop]
        start = int(stop)


def _without_bypass(
    y: NDArray[np.float32], want: NDArray[np.float32], x: NDArray[np.float32], stream: Stream
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """At a limit of 0 dB the engine gives its input, undelayed, and zeros after some silent hops.

    Ours gives the delayed input, so that the output does not jump when the limit is moved there: shift,
    and leave out the hops that the engine muted.
    """
    y = y[stream.delay_samples :]
    want = want[: len(y)]
    hops = len(want) // stream.hop_size
    shape = hops, stream.hop_size, want.shape[1]
    cut = hops * stream.hop_size
    muted = ~want[:cut].reshape(shape).any(axis=(1, 2)) & x[:cut].reshape(shape).any(axis=(1, 2))
    return tuple(a[:cut].reshape(shape)[~muted].reshape(-1, want.shape[1]) for a in (y, want))  # type: ignore[return-value]


def _whole(model: Model, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Enhance a signal at once, with the unpatched graphs in one run."""
    c = model.config
    T = -(-len(x) // c.hop_size)
    padded = np.zeros(T * c.hop_size, np.float32)
    padded[: len(x)] = x
    spec = Analysis(c.fft_size, c.hop_size, T).process(padded[None])
    feat_erb, feat_spec = Features(c, T).process(spec)
    net = reference_run(model, {"feat_erb": feat_erb, "feat_spec": feat_spec})
    enhanced = SpectralFilter(c, T).process(spec, net.m[:, 0], net.coefs)
    y: NDArray[np.float32] = Synthesis(c.fft_size, c.hop_size, T).process(enhanced)[0]
    return y


def _row(
    case: str,
    mode: str,
    y: NDArray[np.float32],
    want: NDArray[np.float32],
    lsnr_error_db: float | None,
    limits: Mapping[str, Any],
) -> VerifyRow:
    difference = y.astype(np.float64) - want
    rms_dbfs = _db(float(np.mean(difference**2)))
    signal = float(np.mean(want.astype(np.float64) ** 2))
    snr_db = _db(signal) - rms_dbfs if signal else (math.nan if rms_dbfs == -math.inf else -math.inf)
    peak = float(np.max(np.abs(want), initial=0.0))
    if not peak:
        limit, passed = "identical", not difference.any()
    elif 20 * math.log10(peak) > _AUDIBLE_DBFS:
        limit, passed = f"{limits['snr_db']:g} dB", snr_db >= limits["snr_db"]
    else:
        limit, passed = f"{limits['rms_dbfs']:g} dBFS", rms_dbfs <= limits["rms_dbfs"]
    if lsnr_error_db is not None and limits.get("lsnr_db") is not None:
        passed = passed and lsnr_error_db <= limits["lsnr_db"]
    return VerifyRow(
        case,
        mode,
        snr_db,
        rms_dbfs,
        float(np.max(np.abs(difference), initial=0.0)),
        lsnr_error_db,
        limit,
        bool(passed) if find_mode(mode).exact else None,
        str(limits["reason"]),
    )


def _db(power: float) -> float:
    return 10 * math.log10(power) if power > 0 else -math.inf
