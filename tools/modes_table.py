"""Print the table of modes in MODES.md from the code, for a model of DeepFilterNet3's size.

With a report of ``dfstream bench --json`` a column tells what a hop of each mode took there.

    python tools/modes_table.py
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
from dfstream.benchmark.statistics import compare
from dfstream.model import Model
from dfstream.modes.base import Mode, find_mode, mode_names
from dfstream.reading import parse_graph

if TYPE_CHECKING:
    from collections.abc import Mapping

_HEADER = ("mode", "graphs", "state", "context, frames", "delay", "exactness", "cost, MAC per hop")


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
    rows.insert(1, tuple("---" for _ in rows[0]))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


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


def _row(mode: type[Mode], model: Model) -> tuple[str, ...]:
    frames = mode.frames_per_hop(model)
    graphs = model.graphs(mode.recipe())
    delay = model.config.delay_samples
    return (
        f"`{mode.name}`",
        ", ".join(f"`{stem}`" for stem in graphs),
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
@click.option(
    "--bench", type=click.Path(path_type=Path, exists=True, dir_okay=False), default=None, metavar="REPORT",
    help="Add what a hop took, from a report of dfstream bench --json.",
)  # fmt: skip
def main(bench: Path | None) -> None:
    """Print the table of modes."""
    try:
        report = None if bench is None else json.loads(bench.read_text(encoding="utf-8"))
    except ValueError as error:
        raise click.ClickException(f"{bench}: not JSON ({error})") from error
    with tempfile.TemporaryDirectory() as folder:
        click.echo(table(full_size_model(Path(folder)), report))


if __name__ == "__main__":
    main()
