"""One stream of a pool: its settings, its counters, and the samples that wait for the rest of their block."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from dfstream.arguments import check_range
from dfstream.chunks import cleaned_chunk
from dfstream.errors import UsageError
from dfstream.stream import StreamStats

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dfstream.snapshot import Snapshot

__all__ = ["Member", "PoolSettings"]


@dataclasses.dataclass(frozen=True)
class PoolSettings:
    """What may change while a stream of a pool runs; as the arguments of `dfstream.Stream`.

    Attributes
    ----------
    atten_lim_db : float or None, dB
    post_filter : float

    Raises
    ------
    UsageError
        A value out of range.
    """

    atten_lim_db: float | None = None
    post_filter: float = 0.0

    def __post_init__(self) -> None:
        check_range("post_filter", self.post_filter, 0.0, 1.0)
        if self.atten_lim_db is not None:
            check_range("atten_lim_db", self.atten_lim_db, 0.0, float("inf"))


@dataclasses.dataclass
class Member:
    """One stream of a pool, but for what stands in the rows of its slot.

    Attributes
    ----------
    slot : int
    settings : PoolSettings
    stats : StreamStats
    lsnr_db : float
        Local SNR of the newest hop, NaN before the first.
    waiting : ndarray[float32], shape (n,)
        Less than a block.
    """

    slot: int
    settings: PoolSettings
    stats: StreamStats = dataclasses.field(default_factory=StreamStats)
    lsnr_db: float = float("nan")
    waiting: NDArray[np.float32] = dataclasses.field(default_factory=lambda: np.zeros(0, np.float32))

    def take(self, samples: NDArray[np.float32], block: int, clean: bool) -> NDArray[np.float32]:
        """Return the whole blocks that new samples complete; keep the rest.

        Parameters
        ----------
        samples : ndarray[float32], shape (n,)
        block : int, samples
        clean : bool
            Whether it is known that all of it is audio.
        """
        if not clean:
            samples, replaced = cleaned_chunk(samples)
            self.stats.replaced += replaced
        self.stats.samples_in += len(samples)
        if len(self.waiting):
            samples = np.concatenate([self.waiting, samples])
            self.waiting = self.waiting[:0]
        whole = len(samples) - len(samples) % block
        if whole < len(samples):
            self.waiting = samples[whole:].copy()
        self.stats.samples_out += whole
        return samples[:whole]

    # -- as part of a snapshot of a stream ---------------------------------------------------------

    def counters(self) -> dict[str, Any]:
        """Counters and settings, as plain values."""
        limit = self.settings.atten_lim_db
        return {
            **dataclasses.asdict(self.stats),
            "flushed": False,
            "lsnr_db": self.lsnr_db,
            "post_filter": float(self.settings.post_filter),
            "atten_lim_db": None if limit is None else float(limit),
        }

    @classmethod
    def of_snapshot(cls, slot: int, snapshot: Snapshot) -> Member:
        """Continue from a snapshot that fits.

        Raises
        ------
        UsageError
            The stream has ended.
        """
        counters = dict(snapshot.counters)
        if counters.pop("flushed"):
            raise UsageError("the snapshot is of a stream that has been flushed")
        lsnr_db = float(counters.pop("lsnr_db"))
        settings = PoolSettings(counters.pop("atten_lim_db"), counters.pop("post_filter"))
        waiting = np.array(snapshot.arrays["stream/waiting"][:, 0], np.float32)
        return cls(slot, settings, StreamStats(**counters), lsnr_db, waiting)
