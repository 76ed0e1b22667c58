"""The speed this project wants, and where a run of `tools/bench.py` says it stands."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    Report = Mapping[str, Any]

__all__ = ["TARGETS", "Figure", "Target", "standing"]

#: What needs the Rust engine cannot be judged without it.
_NO_RUST = "the Rust engine did not run"

#: What a backend that has the option does without it.
_FLOAT32 = {"precision": "float32"}

_NOT_MEASURED = {"streams": "no pool of streams was measured", "file": "no file was measured"}


@dataclasses.dataclass(frozen=True)
class Figure:
    """A measured value, with its quartiles where there are rounds, and what it was measured on."""

    value: float
    what: str
    low: float | None = None
    high: float | None = None


@dataclasses.dataclass(frozen=True)
class Target:
    """A value to stay at or below, or to reach.

    Attributes
    ----------
    text : str
    limit : float
    find : callable
        Takes a report; returns the figure, or a reason why there is none.
    at_least : bool
    """

    text: str
    limit: float
    find: Callable[[Report], Figure | str]
    at_least: bool = False


def standing(report: Report) -> list[dict[str, Any]]:
    """Return each target with its figure as plain values; ``met`` is None where there is none."""
    rows = []
    for target in TARGETS:
        row: dict[str, Any] = {"target": target.text, "limit": target.limit, "at_least": target.at_least}
        found = target.find(report)
        if isinstance(found, str):
            rows.append({**row, "met": None, "reason": found})
        else:
            met = found.value >= target.limit if target.at_least else found.value <= target.limit
            rows.append({**row, "met": met, **dataclasses.asdict(found)})
    return rows


# -- where the figures are found -------------------------------------------------------------------


def _rows(report: Report, kind: str, backend: str, options: dict[str, str]) -> Iterator[Mapping[str, Any]]:
    """Give the rows of a kind, of one backend and its options; ``exact`` is any that computes in float32."""
    wanted = _FLOAT32 | options
    for row in report["rows"]:
        if row["kind"] == kind and row.get("mode", "incremental") == "incremental":
            chosen = _FLOAT32 | row["options"]
            if backend == "exact":
                fits = chosen["precision"] == "float32"
            else:
                fits = (row["backend"], chosen) == (backend, wanted)
            if fits:
                yield row


def _against_rust(loop: str, kind: str, backend: str, **options: str) -> Callable[[Report], Figure | str]:
    def find(report: Report) -> Figure | str:
        if not report["base_is_rust"]:
            return _NO_RUST
        rows = [r for r in _rows(report, kind, backend, options) if "ratio" in r["loops"].get(loop, {})]
        if not rows:
            return _missing(report, kind, backend, options)
        row = min(rows, key=lambda r: r["loops"][loop]["ratio"]["median"])
        ratio = row["loops"][loop]["ratio"]
        return Figure(ratio["median"], row["name"], ratio["low"], ratio["high"])

    return find


def _missing(report: Report, kind: str, backend: str, options: dict[str, str]) -> str:
    if kind != "stream":
        return _NOT_MEASURED[kind]
    wanted = backend + "".join(f":{key}={value}" for key, value in options.items())
    reasons = [reason for name, reason in report["left_out"].items() if name.split()[0] == wanted]
    return reasons[0] if reasons else f"{wanted} was not measured"


def _paced_tail(report: Report) -> Figure | str:
    rows = [row for row in _rows(report, "stream", "exact", {}) if "paced" in row["loops"]]
    if not rows:
        return "no paced loop"
    row = min(rows, key=lambda r: r["loops"]["paced"]["median_us"])
    paced = row["loops"]["paced"]
    return Figure(paced["p99_us"] / paced["median_us"], row["name"])


def _most_streams(report: Report) -> Figure | str:
    rows = report.get("streams", {}).get("rows", [])
    if not rows:
        return str(report.get("streams", {}).get("remark", "not measured"))
    row = max(rows, key=lambda r: r["most_streams_at_p99"])
    return Figure(row["most_streams_at_p99"], row["backend"])


def _start(what: str) -> Callable[[Report], Figure | str]:
    def find(report: Report) -> Figure | str:
        if "start" not in report:
            return "not measured"
        seconds = report["start"][what]
        return Figure(seconds["median_s"], "whole process", seconds["low_s"], seconds["high_s"])

    return find


def _first_hop(report: Report) -> Figure | str:
    if "start" not in report:
        return "not measured"
    names = {row["name"] for row in _rows(report, "stream", "exact", {})}
    found = {
        name: first["warm_cache"] for name, first in report["start"]["first_hop"].items() if name in names
    }
    if not found:
        return "not measured"
    name, seconds = min(found.items(), key=lambda item: item[1]["median_s"])
    return Figure(seconds["median_s"], name, seconds["low_s"], seconds["high_s"])


TARGETS = (
    Target("hop, float32, tight, x Rust", 0.32, _against_rust("tight", "stream", "numba")),
    Target("hop, float32, paced, x Rust", 0.32, _against_rust("paced", "stream", "numba")),
    Target("paced p99, x paced median", 2.0, _paced_tail),
    Target("hop, int16, x Rust", 0.22, _against_rust("tight", "stream", "numba", precision="int16")),
    Target("hop, int8, x Rust", 0.16, _against_rust("tight", "stream", "numba", precision="int8")),
    Target("hop, ort-cpu, x Rust", 0.47, _against_rust("tight", "stream", "ort-cpu")),
    Target("64 live streams, per stream and hop, x Rust", 0.08, _against_rust("tight", "streams", "exact")),
    Target("live streams of a core, p99 below a hop", 100, _most_streams, at_least=True),
    Target("file of 60 s, per hop, x Rust", 0.10, _against_rust("tight", "file", "exact")),
    Target("import dfstream, s", 0.15, _start("import")),
    Target("dfstream --help, s", 0.3, _start("help")),
    Target("first enhanced hop, warm kernel cache, s", 1.5, _first_hop),
)
