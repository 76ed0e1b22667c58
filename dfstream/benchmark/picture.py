"""The picture of a benchmark: how the times of a hop are distributed, and how far their tails reach."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dfstream import atomic
from dfstream.benchmark.statistics import latency
from dfstream.errors import UsageError
from dfstream.picture import DPI

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    Times = Mapping[str, NDArray[np.float64]]

__all__ = ["draw", "save"]

#: Inches: the whole, without and with the lines of a long legend; what lies above and below the panels.
_WIDTH, _HEIGHT, _TOP, _BOTTOM = 10.0, 6.875, 0.85, 0.85
_LEGEND_LINE, _MANY = 0.17, 8
_TITLES = {"tight": "back to back", "paced": "at the pace of audio"}

#: Columns of the histogram, equally wide on the axis of logarithms.
_BINS = 120

_STYLES = ("-", "--", ":", "-.")


def save(path: Path, hops_us: Mapping[str, Times], report: Mapping[str, Any]) -> None:
    """Draw and write a picture, whole or not at all.

    Parameters
    ----------
    path : Path
        Its suffix decides the format.
    hops_us, report
        As of `dfstream.benchmark.measuring.Measured`.

    Raises
    ------
    UsageError
        It cannot be written.
    """
    figure = draw(hops_us, report)
    try:
        with atomic.replacing(path) as temporary:
            figure.savefig(temporary, format=path.suffix[1:].lower(), dpi=DPI)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror or error})") from error


def draw(hops_us: Mapping[str, Times], report: Mapping[str, Any]) -> Figure:
    """Draw, for each loop, a histogram above and the share of slower hops below."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    loops = [loop for loop in _TITLES if loop in hops_us]
    names = [row["name"] for row in report["rows"]]
    every = np.concatenate([times for loop in loops for times in hops_us[loop].values()])
    height = _HEIGHT + _LEGEND_LINE * max(0, len(names) - _MANY)
    bottom = _BOTTOM + _LEGEND_LINE * (len(names) + 1)
    figure = Figure(figsize=(_WIDTH, height))
    grid = figure.add_gridspec(
        2, len(loops), left=0.075, right=0.975, top=1 - _TOP / height, bottom=bottom / height,
        height_ratios=[2, 3], hspace=0.12, wspace=0.12,
    )  # fmt: skip
    edges = np.geomspace(
        every.min() / 1.1, max(every.max(), 1e3 * report["model"]["hop_ms"]) * 1.1, _BINS + 1
    )
    for column, loop in enumerate(loops):
        top, below = (figure.add_subplot(grid[row, column]) for row in (0, 1))
        for name, times in hops_us[loop].items():
            index = names.index(name)
            style: dict[str, Any] = {
                "color": f"C{index % 10}",
                "linestyle": _STYLES[index // 10 % len(_STYLES)],
            }
            _draw_histogram(top, times, edges, style)
            _draw_tail(below, times, style, _label(name, times))
        _finish(top, edges, report)
        _finish(below, edges, report)
        top.set_title(_TITLES[loop], loc="left", fontsize=9, pad=4)
        top.tick_params(labelbottom=False)
        hop_ms = report["model"]["hop_ms"]
        top.annotate(
            f"a hop, {hop_ms:g} ms", (1e3 * hop_ms, 1.02), xycoords=("data", "axes fraction"),
            ha="center", va="bottom", fontsize=7.5, color="#666666",
        )  # fmt: skip
        below.set_yscale("log")
        below.yaxis.set_major_formatter(FuncFormatter(_plain_number))
        below.set_xlabel("time of a hop in us", fontsize=9)
        below.legend(
            loc="upper left", bbox_to_anchor=(-0.02, -0.55 / _in_inches(below)), fontsize=7.5, frameon=False,
            title="median and 99th percentile in us", title_fontsize=8, alignment="left",
        )  # fmt: skip
        if not column:
            top.set_ylabel("share of hops in %", fontsize=9)
            below.set_ylabel("share of slower hops in %", fontsize=9)
    e = report["environment"]
    figure.suptitle(
        f"{report['model']['name']}, one thread of {e['cpu']}, dfstream {e['versions'].get('dfstream', '')}",
        fontsize=11, fontweight="bold", y=1 - 0.24 / height, parse_math=False,
    )  # fmt: skip
    return figure


def _label(name: str, times: NDArray[np.float64]) -> str:
    figures = latency([1e-6 * times])
    return f"{name}: {figures.median_us:.0f}, {figures.p99_us:.0f}"


def _draw_histogram(
    panel: Axes, times: NDArray[np.float64], edges: NDArray[np.float64], style: dict[str, Any]
) -> None:
    counts, _ = np.histogram(times, edges)
    panel.stairs(100 * counts / len(times), edges, linewidth=1.1, **style)


def _draw_tail(panel: Axes, times: NDArray[np.float64], style: dict[str, Any], label: str) -> None:
    """Draw which share of hops took longer; the longest ends the line at the share of one hop."""
    ordered = np.sort(times)
    slower = 100 * (len(ordered) - np.arange(len(ordered))) / len(ordered)
    panel.step(ordered, slower, where="pre", linewidth=1.2, label=label, **style)


def _finish(panel: Axes, edges: NDArray[np.float64], report: Mapping[str, Any]) -> None:
    from matplotlib.ticker import FuncFormatter

    panel.set_xscale("log")
    panel.xaxis.set_major_formatter(FuncFormatter(_plain_number))
    panel.set_xlim(edges[0], edges[-1])
    panel.axvline(1e3 * report["model"]["hop_ms"], color="#888888", linewidth=0.9, linestyle=(0, (4, 3)))
    panel.grid(alpha=0.3, which="both", linewidth=0.5)
    panel.tick_params(labelsize=8)


def _in_inches(panel: Axes) -> float:
    """Return the height of a panel."""
    return float(panel.get_position().height * panel.figure.get_figheight())  # type: ignore[union-attr]


def _plain_number(value: float, _position: int) -> str:
    return f"{value:g}"
