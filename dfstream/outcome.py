"""What becomes of each of many files."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from dfstream.planning import Job

__all__ = ["Event", "Outcome", "Status"]

Status = Literal["ok", "skipped", "failed", "interrupted"]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one file.

    Attributes
    ----------
    source, target : str
    status : "ok", "skipped", "failed" or "interrupted"
        Of those not "ok", "failed" and "interrupted" leave nothing behind.
    reason : str or None
        Why it is not "ok".
    hint : str or None
        What to do about it.
    seconds : float
        From opening to closing it; files that pass through the network together share the time.
    samples : int
        Length of input and output.
    sample_rate : int, Hz
    channels : int
    clipped : int
        Output samples beyond full scale, which an integer format cuts off.
    """

    source: str
    target: str
    status: Status
    reason: str | None = None
    hint: str | None = None
    seconds: float = 0.0
    samples: int = 0
    sample_rate: int = 0
    channels: int = 0
    clipped: int = 0

    @classmethod
    def without(cls, job: Job, status: Status, reason: str, hint: str | None = None) -> Outcome:
        """Return that of a file from which nothing was made."""
        return cls(str(job.source), str(job.target), status, reason, hint)

    @property
    def duration_s(self) -> float:
        """Length of the audio in seconds."""
        return self.samples / self.sample_rate if self.sample_rate else 0.0

    @property
    def real_time_factor(self) -> float | None:
        """Seconds of work per second of audio, None where there was none."""
        return self.seconds / self.duration_s if self.duration_s else None


@dataclasses.dataclass(frozen=True)
class Event:
    """News of one file.

    Attributes
    ----------
    job : Job
    done_s : float
        Seconds of its audio that are done; 0 when it begins.
    outcome : Outcome or None
        How it ended, None while it has not.
    """

    job: Job
    done_s: float = 0.0
    outcome: Outcome | None = None
