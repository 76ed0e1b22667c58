"""``dfstream doctor``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from dfstream.cli._options import json_option, print_json
from dfstream.cli._progress import loading

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Row = tuple[str, str]

#: Columns where nobody has told how wide the output may be: a pipe or a file.
_PIPE_WIDTH = 200


@click.command(short_help="Show what works on this machine, and what to do about the rest.")
@click.option("-m", "--model", default="bundled", show_default=True)
@click.option("--quick", is_flag=True, help="Load no graph, compile nothing, and leave the self-test out.")
@json_option
@click.pass_context
def command(ctx: click.Context, model: str, quick: bool, as_json: bool) -> None:
    """Examine this machine: processor, packages, caches, models, backends; test the output and its speed.

    Exits with 0 if a backend runs the model and its output is the export's; 2 or 3 if the model cannot be
    loaded, 4 if no backend runs it, 6 if the output is wrong, 1 if anything else fails that is needed.
    Warnings and notes do not change that.
    """
    from dfstream.doctor.examination import examine

    with loading() as show:
        case = examine(model, quick=quick, progress=show)
    report = case.plain()
    if as_json:
        print_json(report)
    else:
        _print(report)
    ctx.exit(case.exit_code)


def _print(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH, markup=False, highlight=False)
    for section, values in report["sections"].items():
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
        table.add_column(min_width=14, no_wrap=True)
        table.add_column(overflow="fold")
        for name, text in _rows(section, values):
            table.add_row(f"  {name}", text)
        console.print(section)
        console.print(table)
    for line in findings_lines(report["findings"]):
        console.print(line)


def _rows(section: str, values: dict[str, Any]) -> Iterator[Row]:
    for key in ("error", "skipped"):
        if key in values:
            yield key, values[key]
            return
    yield from _SECTIONS[section](values)


def findings_lines(findings: list[dict[str, Any]]) -> Iterator[str]:
    """Say what was found, and what to do about it."""
    yield "findings" if findings else "nothing found that stands in the way"
    for finding in findings:
        yield f"  {finding['level']}, {finding['section']}: {finding['what']}"
        if finding["advice"]:
            yield f"    hint: {finding['advice']}"


# -- sections --------------------------------------------------------------------------------------


def _machine(values: dict[str, Any]) -> Iterator[Row]:
    yield "system", f"{values['system']}, {values['architecture']}"
    yield "processor", values["processor"]
    if values["features"]:
        yield (
            "features",
            ", ".join(name if there else f"no {name}" for name, there in values["features"].items()),
        )
    cores = values["cores"]
    physical = "" if cores["physical"] is None else f", {cores['physical']} physical"
    yield "cores", f"{cores['usable']} of {cores['logical']} to be used{physical}"
    if values["memory_bytes"] is not None:
        yield "memory", f"{values['memory_bytes'] / 2**30:.1f} GiB"
    yield "python", f"{values['implementation']} {values['python']}, {values['executable']}"


def _packages(values: dict[str, Any]) -> Iterator[Row]:
    yield "dfstream", values["dfstream"]
    for entry in values["required"]:
        extra = f" (extra {entry['extra']})" if entry["extra"] else ""
        wrong = "" if entry["fits"] else f": {entry['advice']}"
        yield entry["name"], f"{entry['version'] or 'not installed'}{extra}{wrong}"


def _runtime(values: dict[str, Any]) -> Iterator[Row]:
    yield "version", values["version"] or "cannot be imported"
    yield "providers", ", ".join(values["providers"]) or "none"


def _environment(values: dict[str, Any]) -> Iterator[Row]:
    yield from values.items() or [("none", "no variable of dfstream or numba is set")]


def _cache(values: dict[str, Any]) -> Iterator[Row]:
    yield "folder", f"{values['folder']}, {'can' if values['writable'] else 'cannot'} be written"
    if values.get("free_bytes") is not None:
        yield "free", f"{values['free_bytes'] / 1e9:.1f} GB"
    for kind, size in values.get("kinds", {}).items():
        yield kind, f"{size['files']} files, {size['bytes'] / 1e6:.1f} MB"


def _models(values: dict[str, Any]) -> Iterator[Row]:
    for name, entry in values.items():
        yield name, entry["status"] + (f", {entry['path']}" if entry["path"] else "")


def _model(values: dict[str, Any]) -> Iterator[Row]:
    yield values["name"], f"{values['variant']}, delay {values['delay_ms']:g} ms, from {values['origin']}"


def _backends(values: dict[str, Any]) -> Iterator[Row]:
    for tried in values["tried"]:
        if not tried["usable"]:
            text = f"no: {tried['reason']}" + (f" ({tried['hint']})" if tried["hint"] else "")
        else:
            text = "yes" if values["loaded"] else "yes, as far as can be told without loading it"
            text += _choice(tried, values["auto"])
        yield tried["name"], text


def _choice(tried: dict[str, Any], auto: str | None) -> str:
    if tried["name"] == auto:
        return "; auto takes it: the first choice of those that run this model"
    return "; only when asked for" if tried["preference"] < 0 else "; auto would take it next"


def _self_test(values: dict[str, Any]) -> Iterator[Row]:
    parity, speed = values["parity"], values["speed"]
    if "skipped" in parity:
        yield "output", f"not compared: {parity['skipped']}"
    else:
        snr = "identical" if parity["snr_db"] is None else f"{parity['snr_db']:.1f} dB"
        passed = "pass" if parity["passed"] else "FAIL"
        yield "output", f"{passed}: {snr} against {parity['reference']} (expected {parity['limit']})"
    for name, key in (("back to back", "back_to_back"), (f"{speed['hop_ms']:g} ms apart", "paced")):
        times = speed[key]
        yield (
            name,
            f"{times['p50_ms']:.2f} ms a hop, 99 % within {times['p99_ms']:.2f} ms ({times['hops']} hops)",
        )
    yield (
        "live audio",
        f"real time {speed['times_real_time']:.0f} x: {speed['verdict']} ({values['backend']})",
    )


def _kernels(values: dict[str, Any]) -> Iterator[Row]:
    yield "kept", f"{values['kept']} of {values['total']}, in {values['folder'] or 'no folder'}"


_SECTIONS: dict[str, Callable[[dict[str, Any]], Iterator[Row]]] = {
    "machine": _machine,
    "packages": _packages,
    "onnxruntime": _runtime,
    "environment": _environment,
    "cache": _cache,
    "models": _models,
    "model": _model,
    "backends": _backends,
    "self-test": _self_test,
    "kernels": _kernels,
}
