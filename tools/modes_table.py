"""Print the tables of modes and backends in MODES.md from the code, for a model of DeepFilterNet3's size.

With a report of ``dfstream bench --json`` a column tells what a hop of each mode took there.

    python tools/modes_table.py
    python tools/modes_table.py --backends
    python tools/modes_table.py --bench report.json
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from dfstream.patches.facts import multiply_accumulates
from dfstream.patches.graph import import_graph

import synthetic
from dfstream import registry
from dfstream.backends.base import Backend, backend_names
from dfstream.benchmark.statistics import compare
from dfstream.model import Model
from dfstream.modes.base import Strategy, find_mode, mode_names
from dfstream.reading import parse_graph

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_HEADER = ("mode", "graphs", "state", "context, frames", "delay", "exactness", "cost, MAC per hop")
_BACKENDS = ("backend", "what it is", "modes", "precisions", "runs on", "`auto`, for an export")

#: The mode whose hop is 1.
_BASE = "incremental"


def table(model: Model, report: Mapping[str, Any] | None = None) -> str:
    """Return the table in Markdown, with a column of times where there is a report."""
    rows = [_HEADER, *(_row(find_mode(name), model) for name in mode_names())]
    if report is not None:
        times = measured(report)
        column = (
            f"time of a hop, {report['model']['name']}",
            *(times.get(n, "not run") for n in mode_names()),
        )
        rows = [(*row, cell) for row, cell in zip(rows, column, strict=True)]
    return _markdown(rows)


def backends_table(model: Model) -> str:
    """Return the table of backends in Markdown; nothing of them is needed but their classes."""
    classes: list[type[Backend]] = [registry.find("backend", name) for name in backend_names()]
    taken = sorted((c for c in classes if c.preference(model) >= 0), key=lambda c: -c.preference(model))
    return _markdown([_BACKENDS, *(_backend_row(cls, taken) for cls in classes)])


def _backend_row(cls: type[Backend], taken: list[type[Backend]]) -> tuple[str, ...]:
    place = taken.index(cls) + 1 if cls in taken else None
    return (
        f"`{cls.name}`",
        cls.summary,
        "all" if cls.modes is None else ", ".join(f"`{name}`" for name in cls.modes),
        ", ".join(cls.precisions),
        cls.runs_on,
        "when asked for" if place is None else f"choice {place}",
    )


def _markdown(rows: Iterable[tuple[str, ...]]) -> str:
    header, *others = rows
    lines = (header, tuple("---" for _ in header), *others)
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)


def measured(report: Mapping[str, Any]) -> dict[str, str]:
    """Return the time of a hop by mode, as the ratio to `incremental` with its quartiles.

    It is that of the report's first backend, one hop a call, back to back.

    Raises
    ------
    click.ClickException
        Not a report of ``dfstream bench``, or without that mode.
    """
    try:
        first = report["rows"][0]
        own = first["backend"], first["options"]
        rounds = {
            row["mode"]: row["loops"]["tight"]["rounds_us"]
            for row in report["rows"]
            if (row["backend"], row["options"]) == own and row["block"] == 1
        }
        ratios = {mode: compare(values, rounds[_BASE]) for mode, values in rounds.items()}
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise click.ClickException(
            f"not a report of dfstream bench that tells of {_BASE}, one hop a call ({error!r})"
        ) from error
    return {
        mode: "1" if mode == _BASE else f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"
        for mode, ratio in ratios.items()
    }


def _row(mode: type[Strategy], model: Model) -> tuple[str, ...]:
    frames = mode.frames_per_hop(model)
    recipes = mode.recipes()
    # of several forms of one graph the first is that of a single frame
    graphs = model.graphs(recipes[0])
    delay = model.config.delay_samples
    return (
        f"`{mode.name}`",
        ", ".join(f"`{stem}`" for recipe in recipes for stem in recipe.stems),
        mode.carries,
        str(frames),
        f"{delay} samples ({1000 * delay // model.config.sample_rate} ms)",
        "exact" if mode.exact else "inexact",
        f"{_macs(graphs.values(), frames) / 1e6:.2f} M",
    )


def _macs(graphs: object, frames: int) -> int:
    total = 0
    for data in graphs:  # type: ignore[attr-defined]
        graph = import_graph(parse_graph(data, "graph"))
        total += sum(multiply_accumulates(graph, frames=frames).values())
    return total


def full_size_model(folder: Path) -> Model:
    """Return a model of DeepFilterNet3's size with random weights: the official ones are not ours to ship."""
    return Model.load(synthetic.write(folder / "dfn3", synthetic.preset("dfn3", full=True)))


@click.command()
@click.option("--backends", is_flag=True, help="Print the table of backends instead.")
@click.option(
    "--bench", type=click.Path(path_type=Path, exists=True, dir_okay=False), default=None, metavar="REPORT",
    help="Add what a hop took, from a report of dfstream bench --json.",
)  # fmt: skip
def main(backends: bool, bench: Path | None) -> None:
    """Print the table of modes, or of backends."""
    try:
        report = None if bench is None else json.loads(bench.read_text(encoding="utf-8"))
    except ValueError as error:
        raise click.ClickException(f"{bench}: not JSON ({error})") from error
    with tempfile.TemporaryDirectory() as folder:
        model = full_size_model(Path(folder))
        click.echo(backends_table(model) if backends else table(model, report))


if __name__ == "__main__":
    main()
