"""Timing calls: a stretch of them, back to back or at the pace of audio, and several takers in turn.

Only the standard library and numpy are imported, so that a worker process of another environment can
time its calls by the same code.
"""

from __future__ import annotations

import contextlib
import gc
import os
import time
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from dfstream.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

__all__ = ["Contender", "Stretch", "interleave", "pinned", "time_stretch"]


class Stretch(NamedTuple):
    """One stretch of timed calls.

    Attributes
    ----------
    seconds : ndarray[float64], shape (calls,)
    collections : int
        Times the garbage collector ran.
    late : int
        Calls of a paced stretch that could not begin in time, because the one before took too long.
    cpu_seconds : float
        Processor time of this process for all of them: less than their sum where others took the core away.
    """

    seconds: NDArray[np.float64]
    collections: int
    late: int
    cpu_seconds: float


class Contender(Protocol):
    """Something whose calls are timed."""

    @property
    def name(self) -> str:
        """For tables."""

    def stretch(self, paced: bool) -> Stretch:
        """Time one stretch of calls, at the pace of audio or back to back."""


def time_stretch(
    call: Callable[[Any], object], chunks: Sequence[Any], warm_up: int, interval_s: float | None = None
) -> Stretch:
    """Call once for each chunk and time each call by itself.

    The garbage collector stays on, as in any program: what it costs belongs to the call it interrupts. A
    full collection before the stretch keeps one taker's garbage out of the next one's time.

    Parameters
    ----------
    call : callable
    chunks : sequence
    warm_up : int
        The first calls, made like the others, whose times are dropped.
    interval_s : float, optional, seconds
        Begin calls this far apart, at deadlines that do not drift, and sleep in between, where other
        programs take the caches and the core may slow down. None calls back to back.
    """
    seconds = np.zeros(len(chunks), np.float64)
    clock, late, cpu = time.perf_counter_ns, 0, 0.0
    gc.collect()
    collections = _collections()
    start = time.perf_counter()
    for i, chunk in enumerate(chunks):
        if interval_s is not None:
            left = start + i * interval_s - time.perf_counter()
            if left > 0:
                time.sleep(left)
            late += left < 0 and i > warm_up
        if i == warm_up:
            cpu = time.process_time()
        begin = clock()
        call(chunk)
        seconds[i] = 1e-9 * (clock() - begin)
    return Stretch(seconds[warm_up:], _collections() - collections, late, time.process_time() - cpu)


def _collections() -> int:
    return sum(generation["collections"] for generation in gc.get_stats())


def interleave(
    contenders: Sequence[Contender],
    rounds: int,
    *,
    paced: bool = False,
    dropped: int = 1,
    progress: Callable[[int], None] = lambda _round: None,
) -> dict[str, list[Stretch]]:
    """Let each contender in turn time a stretch, round by round, in the reverse order every other round.

    What slows the machine down for a while then meets all of them, and none always follows the same other.

    Parameters
    ----------
    contenders : sequence of Contender
    rounds : int
    paced : bool
        At the pace of audio.
    dropped : int
        Rounds before these, whose times are not kept.
    progress : callable
        Told the number of each round as it begins; 0 and below are those to be dropped.

    Returns
    -------
    dict of str to list of Stretch
        By name, a stretch for each round.
    """
    kept: dict[str, list[Stretch]] = {contender.name: [] for contender in contenders}
    for index in range(1 - dropped, rounds + 1):
        progress(index)
        for contender in contenders if index % 2 else reversed(contenders):
            stretch = contender.stretch(paced)
            if index > 0:
                kept[contender.name].append(stretch)
    return kept


@contextlib.contextmanager
def pinned(core: int | None = None) -> Iterator[int | None]:
    """Keep this thread, and threads and processes it starts, on one core; give the core's number.

    Parameters
    ----------
    core : int, optional
        None takes the last one allowed: the first tends to serve the devices. Where the system cannot
        pin, nothing happens and None is given.

    Raises
    ------
    UsageError
        No such core, or not allowed.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield None
        return
    allowed = os.sched_getaffinity(0)
    chosen = max(allowed) if core is None else core
    if chosen not in allowed:
        raise UsageError(f"core {chosen} is not to be had", hint=f"cores are {sorted(allowed)}")
    os.sched_setaffinity(0, {chosen})
    try:
        yield chosen
    finally:
        os.sched_setaffinity(0, allowed)
