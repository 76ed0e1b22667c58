"""A folder of shards: mixtures written while the network trains, read several times, then thrown away.

A shard is a float16 array [items, frames, Layout.width]. Its name is the number of its first mixture, so that
generators that share a seed and take turns never make the same one.
"""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING

import numpy as np

from dfstream.atomic import replacing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from mixing import Mixer
    from targets import Teacher

    Rows = NDArray[np.float16]

#: Mixtures of one shard, and of one call of the teacher.
SHARD_ITEMS, TEACHER_ITEMS = 32, 8

#: How often a reader looks for new shards.
_LOOK_S = 10.0


def write_shards(
    mixer: Mixer, teacher: Teacher, folder: Path, seed: int, numbers: Iterator[int], keep: int | None = None
) -> Iterator[Path]:
    """Write one shard for each of the given numbers; yields what it wrote.

    Parameters
    ----------
    mixer, teacher
    folder : Path
    seed : int
    numbers : iterator of int
        Numbers of shards; shard k holds the mixtures from ``SHARD_ITEMS * k``.
    keep : int, optional
        Shards that stay; the oldest are removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        path = folder / f"{number:07d}.npy"
        if path.exists():
            continue
        rng = np.random.default_rng([seed, number, 1])
        first = number * SHARD_ITEMS
        rows = [
            teacher.rows([mixer.item(seed, at + k) for k in range(TEACHER_ITEMS)], rng)
            for at in range(first, first + SHARD_ITEMS, TEACHER_ITEMS)
        ]
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.save(file, np.concatenate(rows))
        if keep is not None:
            for old in sorted(folder.glob("[0-9]*.npy"))[:-keep]:
                old.unlink(missing_ok=True)
        yield path


def turns(worker: int, workers: int, stop: Path | None = None) -> Iterator[int]:
    """Count every ``workers``-th number from ``worker`` on, until a file exists."""
    for number in itertools.count(worker, workers):
        if stop is not None and stop.exists():
            return
        yield number


class Pool:
    """Random crops of the shards in a folder that may grow and shrink.

    Parameters
    ----------
    folder : Path
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._names: list[Path] = []
        self._looked = -np.inf

    def __len__(self) -> int:
        self._look()
        return len(self._names)

    def crops(self, rng: np.random.Generator, count: int, frames: int, before: int, after: int) -> Rows:
        """Return [count, before + frames + after, width]: crops with frames in front of and behind them.

        About a third begin with their mixture; what would be in front of it is zeros.
        """
        while not len(self):
            time.sleep(1.0)
        return np.stack([self._crop(rng, frames, before, after) for _ in range(count)])

    def _crop(self, rng: np.random.Generator, frames: int, before: int, after: int) -> Rows:
        rows = self._draw_item(rng)
        last = len(rows) - frames - after
        start = 0 if rng.random() < 0.3 else int(rng.integers(0, last + 1))
        missing = max(before - start, 0)
        crop: Rows = np.pad(rows[start - before + missing : start + frames + after], ((missing, 0), (0, 0)))
        return crop

    def _draw_item(self, rng: np.random.Generator) -> Rows:
        while True:
            path = self._names[int(rng.integers(len(self._names)))]
            try:
                shard: Rows = np.load(path, mmap_mode="r")
            except FileNotFoundError:  # the writer has just thrown it away
                self._looked = -np.inf
                self._look()
                continue
            item: Rows = shard[int(rng.integers(len(shard)))]
            return item

    def _look(self) -> None:
        if time.monotonic() - self._looked > _LOOK_S:
            self._names, self._looked = sorted(self._folder.glob("[0-9]*.npy")), time.monotonic()
