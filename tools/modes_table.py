"""Print the table of modes in MODES.md from the code, for a model of DeepFilterNet3's size.

Usage: python tools/modes_table.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from dfstream.patches.facts import multiply_accumulates
from dfstream.patches.graph import import_graph

import synthetic
from dfstream.model import Model
from dfstream.modes.base import Mode, find_mode, mode_names
from dfstream.reading import parse_graph

_HEADER = ("mode", "graphs", "state", "context, frames", "delay", "exactness", "cost, MAC per hop")


def table(model: Model) -> str:
    """Return the table in Markdown."""
    rows = [_HEADER, tuple("---" for _ in _HEADER), *(_row(find_mode(name), model) for name in mode_names())]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


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


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        print(table(full_size_model(Path(folder))))
