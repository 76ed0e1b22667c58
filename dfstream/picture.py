"""The picture of a recording before and after: two spectrograms, the local SNR, the levels."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dfstream.pooling import SILENCE_DB, Track, decibel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

__all__ = ["DPI", "Recording", "draw", "short_name"]

#: Inches and dots per inch: 1600 x 1100 pixels, letters still readable at half that size.
_SIZE, DPI = (10.0, 6.875), 160

#: Colours and levels reach from the loudest down to this much below.
_RANGE_DB = 80.0

#: The range a network of the family can estimate.
_LSNR_RANGE_DB = (-15.0, 35.0)

_BEFORE, _AFTER, _LSNR = "#c8553d", "#1f4e8c", "#3b7a57"

#: Longer file names lose their middle.
_LONGEST_NAME = 60


@dataclasses.dataclass(frozen=True)
class Recording:
    """What the picture shows of a file.

    Attributes
    ----------
    caption : str
    power_db, extent
        As of `Spectrogram.finish`.
    level : Track
        Mean squares.
    """

    caption: str
    power_db: NDArray[np.float32]
    extent: tuple[float, float, float, float]
    level: Track


def draw(
    before: Recording, after: Recording, lsnr: Track, axis_s: float, lsnr_caption: str, title: str | None
) -> Figure:
    """Draw on a figure of its own: pyplot, with its global state and its windows, stays out of it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE)
    grid = figure.add_gridspec(
        4, 2, left=0.065, right=0.935, top=0.92 if title else 0.955, bottom=0.07,
        width_ratios=[1, 0.014], height_ratios=[2, 2, 1, 1], hspace=0.34, wspace=0.025,
    )  # fmt: skip
    panels = [figure.add_subplot(grid[0, 0])]
    panels += [figure.add_subplot(grid[row, 0], sharex=panels[0]) for row in (1, 2, 3)]
    _draw_spectrograms(panels[:2], figure.add_subplot(grid[:2, 1]), before, after)
    _draw_lsnr(panels[2], lsnr, lsnr_caption)
    _draw_levels(panels[3], before, after)
    panels[0].set_xlim(0, axis_s)
    for panel in panels:
        panel.tick_params(labelsize=8, labelbottom=panel is panels[-1])
    panels[-1].set_xlabel("time in s", fontsize=9)
    figure.align_ylabels(panels)
    if title:
        figure.suptitle(_clean(title), fontsize=12, fontweight="bold", y=0.985, parse_math=False)
    return figure


def _draw_spectrograms(panels: list[Axes], bar: Axes, before: Recording, after: Recording) -> None:
    """Both in one scale of colours, which ends at the loudest but 0.1 % of all bins."""
    top = max(float(np.percentile(r.power_db, 99.9)) for r in (before, after))
    top = 5 * math.ceil(top / 5) if top > SILENCE_DB else 0
    highest_khz = max(before.extent[3], after.extent[3])
    for panel, recording, word in zip(panels, (before, after), ("before", "after"), strict=True):
        image = panel.imshow(
            recording.power_db, origin="lower", aspect="auto", extent=recording.extent,
            cmap="magma", vmin=top - _RANGE_DB, vmax=top,
        )  # fmt: skip
        panel.set_facecolor("#dddddd")  # no audio here: another rate or length
        panel.set_ylim(0, highest_khz)
        panel.set_ylabel("frequency in kHz", fontsize=9)
        _caption(panel, f"{word}: {recording.caption}")
    colours = panels[0].figure.colorbar(image, cax=bar, extend="both")
    colours.set_label("power in dBFS", fontsize=9)
    bar.tick_params(labelsize=8)


def _draw_lsnr(panel: Axes, lsnr: Track, caption: str) -> None:
    known = np.isfinite(lsnr.mean)
    low, high = _LSNR_RANGE_DB
    if known.any():
        low, high = min(low, lsnr.low.min()), max(high, lsnr.high[known].max())
    panel.fill_between(
        lsnr.times_s, np.where(known, lsnr.low, np.nan), np.where(known, lsnr.high, np.nan),
        color=_LSNR, alpha=0.25, linewidth=0,
    )  # fmt: skip
    _line(panel, lsnr.times_s, lsnr.mean, _LSNR)
    panel.set_ylim(low - 2, high + 2)
    panel.set_ylabel("LSNR in dB", fontsize=9)
    _grid(panel, 10)
    _caption(panel, caption)


def _draw_levels(panel: Axes, before: Recording, after: Recording) -> None:
    tops = []
    for recording, word, colour in ((before, "before", _BEFORE), (after, "after", _AFTER)):
        level_db = decibel(recording.level.mean)
        overall_db = float(decibel(np.array([recording.level.overall]))[0])
        overall = f"{overall_db:.1f} dBFS".replace("-", "−") if overall_db > SILENCE_DB else "silent"
        label = f"{word} (overall {overall})"
        _line(panel, recording.level.times_s, level_db, colour, label)
        tops.append(float(np.nanmax(level_db)))
    top = max(tops) if max(tops) > SILENCE_DB else 0.0
    panel.set_ylim(top - _RANGE_DB, top + 5)
    panel.set_ylabel("RMS in dBFS", fontsize=9)
    _grid(panel, 20)
    panel.legend(
        loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.1, ncol=2, fontsize=8, frameon=False
    )
    _caption(panel, "level")


def _line(
    panel: Axes,
    times_s: NDArray[np.float64],
    values: NDArray[np.float64],
    colour: str,
    label: str | None = None,
) -> None:
    """Draw a line; a single value, of the shortest recordings, as a dot."""
    marker = "o" if np.count_nonzero(np.isfinite(values)) == 1 else ""
    panel.plot(times_s, values, color=colour, linewidth=1.1, marker=marker, markersize=4, label=label)


def _grid(panel: Axes, step_db: float) -> None:
    from matplotlib.ticker import MultipleLocator

    panel.yaxis.set_major_locator(MultipleLocator(step_db))
    panel.grid(alpha=0.3)


def _caption(panel: Axes, text: str) -> None:
    panel.set_title(text, loc="left", fontsize=9, pad=4, parse_math=False)


def short_name(path: str) -> str:
    """Return the name of a file, short and without what no font has."""
    name = _clean(Path(path).name)
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 12]}...{name[-9:]}"


def _clean(text: str) -> str:
    """Replace control characters, and the undecodable bytes of a file name."""
    return "".join(c if c.isprintable() else "?" for c in text)
