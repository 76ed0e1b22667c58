"""From stretches of timed calls to the figures of a report, as plain values."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from dfstream.benchmark.statistics import Quartiles, compare, latency, quartiles

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from dfstream.benchmark.timing import Stretch

    #: The stretches of each contender, by name.
    Rounds = Mapping[str, Sequence[Stretch]]

__all__ = ["hop_times", "loop_figures", "noise_warnings"]

#: Spread between rounds, relative to the median, from which on a machine is called noisy.
_NOISY = 0.1


def hop_times(
    loops: Mapping[str, Rounds], blocks: Mapping[str, int]
) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Return every time in microseconds per hop, by loop and name; parameters as of `loop_figures`."""
    return {
        loop: {
            name: 1e6 * np.concatenate([stretch.seconds for stretch in stretches]) / blocks[name]
            for name, stretches in rounds.items()
        }
        for loop, rounds in loops.items()
    }


def loop_figures(
    loops: Mapping[str, Rounds], blocks: Mapping[str, int], base: str, hop_us: float
) -> dict[str, dict[str, Any]]:
    """Return the figures of each contender and loop.

    Parameters
    ----------
    loops : mapping of str to Rounds
        By loop.
    blocks : mapping of str to int
        Hops of a call, by name.
    base : str
        Name of the one that the others are compared with, in the same loop.
    hop_us : float, microseconds
        Audio of a hop.
    """
    found: dict[str, dict[str, Any]] = {name: {} for name in blocks}
    for loop, rounds in loops.items():
        figures = {
            name: latency([stretch.seconds / blocks[name] for stretch in stretches])
            for name, stretches in rounds.items()
        }
        for name, own in figures.items():
            entry = dataclasses.asdict(own) | {
                "real_time_factor": own.median_us / hop_us,
                "streams_per_core": hop_us / own.median_us,
                "streams_per_core_p99": hop_us / own.p99_us,
                "gc_collections": sum(stretch.collections for stretch in rounds[name]),
                "processor_share": _processor_share(rounds[name]),
                "late_calls": sum(stretch.late for stretch in rounds[name]),
            }
            if base in figures:
                entry["ratio"] = compare(own.rounds_us, figures[base].rounds_us)._asdict()
            found[name][loop] = entry
    return found


def noise_warnings(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what the rows of a report say about figures that another run may not give again."""
    found = {f"{row['name']}, {loop}": figures for row in rows for loop, figures in row["loops"].items()}
    times = {name: quartiles(figures["rounds_us"]).spread for name, figures in found.items()}
    ratios = {
        name: Quartiles(**figures["ratio"]).spread for name, figures in found.items() if "ratio" in figures
    }
    lost = {name: 1 - figures["processor_share"] for name, figures in found.items()}
    late = {name: figures["late_calls"] for name, figures in found.items() if figures["late_calls"]}
    return [
        *_moved("times", times),
        *_moved("ratios", ratios),
        *_shared_core(lost),
        *(f"{name}: {calls} calls could not begin in time" for name, calls in late.items()),
    ]


def _processor_share(stretches: Sequence[Stretch]) -> float:
    """Return how much of the time of the calls this process really ran."""
    return sum(s.cpu_seconds for s in stretches) / sum(float(s.seconds.sum()) for s in stretches)


def _shared_core(lost: Mapping[str, float]) -> list[str]:
    worst = max(lost, key=lambda name: lost[name], default="")
    if lost.get(worst, 0.0) < _NOISY:
        return []
    return [
        f"others took up to {lost[worst]:.0%} of the core's time ({worst}): "
        "long calls suffer more than medians of short ones"
    ]


def _moved(what: str, spreads: Mapping[str, float]) -> list[str]:
    moved = [name for name, spread in spreads.items() if spread > _NOISY]
    if not moved:
        return []
    worst = max(moved, key=lambda name: spreads[name])
    return [
        f"noisy machine: {len(moved)} of {len(spreads)} {what} moved by more than {_NOISY:.0%} "
        f"between rounds (quartiles), at worst by {spreads[worst]:.0%}: {worst}"
    ]
