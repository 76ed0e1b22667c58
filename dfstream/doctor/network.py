"""Probes of what runs the network: the model, the backends, and a test of what comes out and how fast."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from dfstream import registry
from dfstream.errors import BackendError, VerifyFailed

if TYPE_CHECKING:
    from dfstream.backends.base import Backend, Candidate
    from dfstream.benchmark.timing import Stretch
    from dfstream.doctor.examination import Examination
    from dfstream.model import Model

__all__ = ["backends", "load", "self_test"]

#: What live audio uses.
_MODE = "incremental"

#: Hops back to back, and at the pace of audio; the first are not counted.
_TIGHT_HOPS, _PACED_HOPS, _WARM_UP = 250, 150, 10

#: Share of a hop that one in a hundred may take before other programs could make it late.
_COMFORTABLE = 0.5


def load(case: Examination) -> dict[str, Any]:
    """Load the model."""
    from dfstream.model import Model

    model = case.model = Model.load(case.model_name)
    c = model.config
    return {
        "name": model.name,
        "origin": model.origin,
        "variant": c.variant,
        "sha256": model.sha256,
        "export": model.is_export,
        "delay_ms": 1000 * c.delay_samples / c.sample_rate,
    }


# -- backends --------------------------------------------------------------------------------------


def backends(case: Examination) -> dict[str, Any]:
    """Try every backend on the model, as a live stream with defaults would."""
    if case.model is None:
        return {"skipped": "no model"}
    from dfstream.backends.base import survey
    from dfstream.modes.base import find_mode

    recipe = find_mode(_MODE).recipe()
    found: list[Candidate] = []
    for candidate in survey(case.model, recipe, single_frame=True, load=not case.quick):
        found.append(candidate)
        if case.backend is None and candidate.preference >= 0:
            case.backend = candidate.backend
    working = _judge(case, found)
    return {
        "mode": _MODE,
        "loaded": not case.quick,
        "auto": case.backend.name if case.backend and working else None,
        "tried": [_backend(candidate) for candidate in found],
    }


def _backend(candidate: Candidate) -> dict[str, Any]:
    cls: type[Backend] = registry.find("backend", candidate.name)
    return {
        "name": candidate.name,
        "summary": cls.summary,
        "usable": candidate.usable,
        "preference": candidate.preference,
        "reason": candidate.reason,
        "hint": candidate.hint,
        "precisions": list(cls.precisions),
        "runs_on": cls.runs_on,
    }


def _judge(case: Examination, found: list[Candidate]) -> bool:
    """Note what is in the way of a backend; return whether `AUTO` works."""
    broken = [candidate for candidate in found if candidate.reason and not candidate.refused]
    asked = [candidate for candidate in found if candidate.preference >= 0]
    first = next((candidate for candidate in asked if candidate.usable or candidate in broken), None)
    for candidate in broken:
        case.find(
            "backends", "problem" if candidate is first else "warning", str(candidate.reason),
            "a fault: dfstream run --backend takes another meanwhile",
            exit_code=BackendError.exit_code if candidate is first else 0,
        )  # fmt: skip
    if first is None:
        last = asked[-1] if asked else None
        case.find(
            "backends", "problem",
            f"no backend runs {case.model_name}" + (f": {last.reason}" if last else ""),
            last.hint if last else None, exit_code=BackendError.exit_code,
        )  # fmt: skip
        return False
    for candidate in asked[: asked.index(first)]:
        case.find(
            "backends", "note", f"{candidate.name} would come first: {candidate.reason}", candidate.hint
        )
    return first.usable


# -- self-test -------------------------------------------------------------------------------------


def self_test(case: Examination) -> dict[str, Any]:
    """Compare the output with the unpatched export's, and time hops."""
    if case.quick:
        return {"skipped": "quick"}
    if case.model is None or case.backend is None:
        return {"skipped": "nothing to test"}
    parity = _parity(case, case.model, case.backend)
    return {"backend": case.backend.name, "parity": parity, "speed": _speed(case, case.model, case.backend)}


def _parity(case: Examination, model: Model, backend: Backend) -> dict[str, Any]:
    if not model.is_export:
        return {"skipped": "the export is not at hand, nothing to compare with"}
    from dfstream.verify import verify_export

    row = verify_export(model, _MODE, backend)
    if not row.passed:
        case.find(
            "self-test", "problem",
            f"{backend.name}: the output is not the export's: {row.snr_db:.1f} dB, expected {row.limit}",
            "dfstream warm --clear, then again; dfstream verify has the details",
            exit_code=VerifyFailed.exit_code,
        )  # fmt: skip
    return {
        "reference": "the unpatched export in one run, ort-cpu",
        "snr_db": row.snr_db if math.isfinite(row.snr_db) else None,
        "max_error": row.max_error,
        "limit": row.limit,
        "passed": bool(row.passed),
    }


def _speed(case: Examination, model: Model, backend: Backend) -> dict[str, Any]:
    hop_s = model.config.hop_size / model.config.sample_rate
    tight, paced = (
        _hop_times(model, backend, n, pace) for n, pace in ((_TIGHT_HOPS, None), (_PACED_HOPS, hop_s))
    )
    verdict, p99_ms = "fine", paced["p99_ms"]
    if p99_ms > 1000 * hop_s * _COMFORTABLE:
        verdict = "too slow" if p99_ms > 1000 * hop_s else "tight"
        case.find(
            "self-test", "warning",
            f"{verdict} for live audio: 1 hop in 100 takes {p99_ms:.1f} ms or more of {1000 * hop_s:g}",
            "close other programs, or pass more hops a call (block_frames=4)",
        )  # fmt: skip
    return {
        "hop_ms": 1000 * hop_s,
        "back_to_back": tight,
        "paced": paced,
        "times_real_time": 1000 * hop_s / tight["p50_ms"],
        "verdict": verdict,
    }


def _hop_times(model: Model, backend: Backend, hops: int, interval_s: float | None) -> dict[str, Any]:
    import numpy as np

    from dfstream.benchmark.statistics import latency
    from dfstream.benchmark.timing import time_stretch
    from dfstream.checking import speech_clip
    from dfstream.stream import Stream

    c = model.config
    stream = Stream(model, backend=backend, sample_rate=c.sample_rate)
    speech = np.resize(speech_clip(), (hops + _WARM_UP, c.hop_size))
    stretch: Stretch = time_stretch(stream.process, [*speech], _WARM_UP, interval_s)
    figures = latency([stretch.seconds])
    return {"hops": hops, "p50_ms": figures.median_us / 1000, "p99_ms": figures.p99_us / 1000}
