"""A report of the benchmark as text: one line a configuration, aligned."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

__all__ = ["aligned", "lines"]

_LOOPS = {"tight": "back to back (tight)", "paced": "at the pace of audio (paced)"}

_HEADER = ("", "median", "p95", "p99", "p99.9", "max us", "RTF", "streams", "at p99", "ratio", "quartiles")


def lines(report: Mapping[str, Any]) -> list[str]:
    """Return a report of `dfstream.benchmark.measuring.measure`, or of its tools, as lines of text."""
    found = [*_machine(report)]
    for loop, title in _LOOPS.items():
        rows = [_loop_row(row["name"], row["loops"][loop]) for row in report["rows"] if loop in row["loops"]]
        if rows:
            found += ["", *aligned([(f"{title}, per hop", *_HEADER[1:]), *rows])]
    found += ["", f"ratios to {report['base']}; RTF and streams: of one core, at the median and at p99"]
    if "streams" in report:
        found += ["", *_streams(report["streams"])]
    if "file" in report:
        rows = [(row["backend"], _us(row["us_per_hop"])) for row in report["file"]["rows"]]
        title = f"file of {report['file']['seconds']:g} s through enhance"
        found += ["", *aligned([(title, "us per hop"), *rows])]
    found += _start(report)
    found += [f"left out: {name}: {reason}" for name, reason in report["left_out"].items()]
    return found + [f"warning: {text}" for text in report["warnings"]]


def aligned(rows: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> list[str]:
    """Return rows of equal length as lines, the given columns to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _machine(report: Mapping[str, Any]) -> Iterator[str]:
    model, e, plan = report["model"], report["environment"], report["plan"]
    core = "not pinned" if e["pinned_to_core"] is None else f"pinned to core {e['pinned_to_core']}"
    load = "unknown" if e["load_average"] is None else " ".join(map(str, e["load_average"]))
    yield f"{model['name']} ({model['variant']}), sha256 {model['sha256'][:16]}"
    nice = f", niceness {e['niceness']}" if e["niceness"] else ""
    yield f"{e['cpu']}, {e['cores']} cores, {core}{nice}, load {load}, {e['system']}, {e['date']}"
    yield ", ".join(f"{name} {version}" for name, version in e["versions"].items())
    yield f"{plan['rounds']} rounds of {plan['seconds']:g} s each; garbage collector {e['garbage_collector']}"


def _loop_row(name: str, figures: Mapping[str, Any]) -> tuple[str, ...]:
    times = (_us(figures[key]) for key in ("median_us", "p95_us", "p99_us", "p999_us", "max_us"))
    ratio = figures.get("ratio")
    return (
        name,
        *times,
        f"{figures['real_time_factor']:.4f}",
        f"{figures['streams_per_core']:.1f}",
        f"{figures['streams_per_core_p99']:.1f}",
        f"{ratio['median']:.3f}" if ratio else "",
        f"{ratio['low']:.3f}-{ratio['high']:.3f}" if ratio else "",
    )


def _us(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}"


def _streams(streams: Mapping[str, Any]) -> list[str]:
    if "remark" in streams:
        return [f"many streams a call: {streams['remark']}"]
    header = (
        "many streams a call",
        "us per stream and hop",
        "p99 of the call, us",
        "most streams, p99 < hop",
    )
    rows = [
        (
            f"{row['backend']}, {row['streams']}",
            _us(row["us_per_stream_and_hop"]),
            _us(row["call_p99_us"]),
            str(row["most_streams_at_p99"]),
        )
        for row in streams["rows"]
    ]
    return aligned([header, *rows])


def _start(report: Mapping[str, Any]) -> list[str]:
    peaks = [(row["name"], row["peak_bytes"]) for row in report["rows"] if row.get("peak_bytes")]
    found: list[str] = []
    if peaks:
        rows = [(name, f"{peak / 1e6:.0f} MB") for name, peak in peaks]
        found += ["", *aligned([("peak memory of a process", ""), *rows])]
    if "start" not in report:
        return found
    start = report["start"]
    rows = [
        (what, f"{start[key]['median_s']:.2f} s")
        for key, what in (
            ("interpreter", "python alone"),
            ("import", "import dfstream"),
            ("help", "dfstream --help"),
        )
    ]
    for name, first in start["first_hop"].items():
        compiled = f"{first['kernels_compiled']} kernels compiled"
        rows += [
            (f"first hop, {name}", f"{first['warm_cache']['median_s']:.2f} s"),
            (f"  no kernel cache yet, {compiled}", f"{first['fresh_cache_s']:.2f} s"),
        ]
    return [*found, "", *aligned([("fresh processes, whole", ""), *rows])]
