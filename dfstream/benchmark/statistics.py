"""From times to figures: percentiles that were really observed, and ratios with their spread."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

__all__ = ["Latency", "Quartiles", "compare", "latency", "most_streams", "quartiles"]


class Quartiles(NamedTuple):
    """A median and what half of the values lie between."""

    median: float
    low: float
    high: float

    @property
    def spread(self) -> float:
        """Interquartile range, relative to the median."""
        return (self.high - self.low) / self.median


@dataclasses.dataclass(frozen=True)
class Latency:
    """How long calls took, in microseconds.

    Attributes
    ----------
    calls : int
    median_us : float
    p95_us, p99_us, p999_us : float
        So many per cent (99.9 in the last) of the calls took no longer. Values that were observed: of
        fewer than a thousand calls ``p999_us`` is the longest.
    max_us : float
    rounds_us : tuple of float
        Median of each round.
    """

    calls: int
    median_us: float
    p95_us: float
    p99_us: float
    p999_us: float
    max_us: float
    rounds_us: tuple[float, ...]


def latency(rounds: Sequence[NDArray[np.float64]]) -> Latency:
    """Return the figures of calls.

    Parameters
    ----------
    rounds : sequence of ndarray[float64], shape (calls,), seconds
        One for each round.
    """
    every = 1e6 * np.sort(np.concatenate([*rounds]))
    return Latency(
        calls=len(every),
        median_us=float(np.median(every)),
        p95_us=_reached(every, 950),
        p99_us=_reached(every, 990),
        p999_us=_reached(every, 999),
        max_us=float(every[-1]),
        rounds_us=tuple(1e6 * float(np.median(times)) for times in rounds),
    )


def _reached(ordered: NDArray[np.float64], per_mille: int) -> float:
    """Return the smallest value that so many of all do not exceed."""
    count = -(-per_mille * len(ordered) // 1000)  # whole numbers: 99.9 % of 1000 is 999.0000000000001 else
    return float(ordered[count - 1])


def quartiles(values: Sequence[float]) -> Quartiles:
    """Return median and quartiles of some values."""
    low, median, high = np.percentile(values, [25, 50, 75])
    return Quartiles(float(median), float(low), float(high))


def compare(rounds_us: Sequence[float], base_us: Sequence[float]) -> Quartiles:
    """Return the ratio to a base, round by round: what slows both down in a round drops out."""
    return quartiles([own / base for own, base in zip(rounds_us, base_us, strict=True)])


def most_streams(p99_us: Callable[[int], float], limit_us: float, first: int = 8, most: int = 1024) -> int:
    """Return how many streams fit into a call of limited duration, to within a sixteenth.

    Parameters
    ----------
    p99_us : callable
        Measures a call for so many streams.
    limit_us : float, microseconds
    first, most : int
        Where to begin, and where to stop looking.

    Returns
    -------
    int
        0 if not even one fits, ``most`` if no limit was found.
    """
    fits, fails = 0, first
    while fails <= most and p99_us(fails) < limit_us:
        fits, fails = fails, 2 * fails
    if fails > most:
        return fits
    while fails - fits > max(1, fits // 16):
        middle = (fits + fails) // 2
        if p99_us(middle) < limit_us:
            fits = middle
        else:
            fails = middle
    return fits
