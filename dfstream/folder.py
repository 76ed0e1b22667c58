"""The verb ``run`` for many files: each by itself, some at a time, none of them able to stop the others."""

from __future__ import annotations

import contextlib
import functools
import queue
import threading
import time
from operator import methodcaller
from typing import TYPE_CHECKING, Literal

from dfstream.audiofile import opened, written
from dfstream.errors import DfstreamError, UsageError, one_line
from dfstream.files import block_of, pass_through
from dfstream.outcome import Event, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from dfstream.filebatch import Batch
    from dfstream.model import Model
    from dfstream.planning import Job, Plan

    Block = NDArray[np.float32]

__all__ = ["FolderRun", "OnExisting"]

#: What to do where a target exists: refuse the file, replace it, or skip the file where the target is newer.
OnExisting = Literal["refuse", "replace", "resume"]

#: How long to wait for news at a time; Windows cannot interrupt a wait without end.
_POLL_S = 0.5


class FolderRun:
    """Enhances the files of a plan.

    Parameters
    ----------
    plan : Plan
    model : Model
    make_batch : callable
        Makes a `Batch`; called once for each thread.
    jobs : int
        Threads. They share the model; kernels and the network run outside the interpreter's lock.
    compensate_delay : bool
        As for `enhance_file`.
    existing : "refuse", "replace" or "resume"
        What to do where a target exists. A target is always whole, so that one newer than its source is
        done.

    Attributes
    ----------
    outcomes : list of Outcome
        Of all files that have ended so far, in the order of the ends; of every file after `finish`, also
        after one that was interrupted.

    Notes
    -----
    Each thread holds `Batch.width` files open, and of each one block and one stream: memory depends
    neither on the number nor on the length of the files.
    """

    def __init__(
        self,
        plan: Plan,
        model: Model,
        make_batch: Callable[[], Batch],
        *,
        jobs: int = 1,
        compensate_delay: bool = True,
        existing: OnExisting = "refuse",
    ) -> None:
        self._plan, self._model = plan, model
        self._compensate, self._existing = compensate_delay, existing
        self._stop = threading.Event()
        self._waiting: queue.SimpleQueue[tuple[int, Job]] = queue.SimpleQueue()
        self._news: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        for numbered in enumerate(plan.jobs):
            self._waiting.put(numbered)
        batches = [make_batch() for _ in range(max(1, min(jobs, len(plan.jobs))))]
        self._threads = [threading.Thread(target=self._work, args=(batch,)) for batch in batches]
        self.outcomes = [
            Outcome(str(folder), "", "failed", reason) for folder, reason in plan.unreadable.items()
        ]

    def finish(self, note: Callable[[Event], None] = lambda _: None) -> None:
        """Enhance all files.

        Parameters
        ----------
        note : callable
            Told what happens, in the calling thread.

        Raises
        ------
        KeyboardInterrupt
            The user wants it to end: files that are done stay, those being worked on leave nothing.
        """
        try:
            for thread in self._threads:
                thread.start()
            left = len(self._threads)
            while left:
                with contextlib.suppress(queue.Empty):
                    event = self._news.get(timeout=_POLL_S)
                    left -= event is None
                    if event is not None:
                        note(event)
        finally:
            self._stop.set()
            for thread in self._threads:
                if thread.ident is not None:  # it has been started
                    thread.join()
            ended = {outcome.source for outcome in self.outcomes}
            self.outcomes += [
                Outcome.without(job, "interrupted", "interrupted before it was done")
                for job in self._plan.jobs
                if str(job.source) not in ended
            ]

    # -- in the threads ----------------------------------------------------------------------------

    def _work(self, batch: Batch) -> None:
        try:
            _Worker(self, batch).run()
        finally:
            self._news.put(None)

    def next_job(self) -> tuple[int, Job] | None:
        """Return the number of the next file that has to be enhanced, and the file; None after the last."""
        while not self.stopped:
            try:
                number, job = self._waiting.get_nowait()
            except queue.Empty:
                return None
            found = self._look(job)
            if found is None:
                return number, job
            self.tell(Event(job, outcome=found))
        return None

    def tell(self, event: Event) -> None:
        """Pass news on to the thread that waits for them."""
        if event.outcome is not None:  # not left to the other thread, which may be interrupted at any point
            self.outcomes.append(event.outcome)
        self._news.put(event)

    @property
    def stopped(self) -> bool:
        """Whether all work has to end."""
        return self._stop.is_set()

    def passage(self, job: Job, join: Callable[[int, int], int]) -> _Passage:
        """Open a file, pass it through as `pass_through` does, and close it.

        Parameters
        ----------
        job : Job
        join : callable
            Told sample rate and channels, says the delay.
        """
        start = time.perf_counter()
        with opened(str(job.source)) as audio:
            rate = audio.samplerate
            delay = join(rate, audio.channels)
            _make_folder(job.target.parent)
            with written(str(job.target), audio) as out:
                clipped = yield from pass_through(
                    audio,
                    out,
                    str(job.source),
                    block_of(self._model),
                    delay if self._compensate else 0,
                    lambda done, _total: self.tell(Event(job, done / rate)),
                )
            frames, channels = audio.frames, audio.channels
        seconds = time.perf_counter() - start
        return Outcome(
            str(job.source), str(job.target), "ok", None, None, seconds, frames, rate, channels, clipped
        )

    def _look(self, job: Job) -> Outcome | None:
        """Say how a file ends that has a target already, None where it has to be enhanced."""
        if self._existing == "replace" or not job.target.exists():
            return None
        if self._existing == "refuse":
            hint = "use --force to replace it, or --resume to skip what is done"
            return Outcome.without(job, "failed", f"{job.target} exists", hint)
        return Outcome.without(job, "skipped", f"{job.target} is newer") if _is_done(job) else None


if TYPE_CHECKING:
    _Passage = Generator[Block | None, Block, Outcome]


class _Worker:
    """Keeps one batch in work: some files under way, the next one opened when one ends."""

    def __init__(self, run: FolderRun, batch: Batch) -> None:
        self._run, self._batch = run, batch
        self._passages: dict[int, tuple[Job, _Passage]] = {}
        self._blocks: dict[int, Block | None] = {}

    def run(self) -> None:
        """Work until no file is left, or until told to stop."""
        try:
            while not self._run.stopped:
                self._fill()
                if not self._passages:
                    return
                self._round()
        finally:
            for _, passage in self._passages.values():
                passage.close()

    def _fill(self) -> None:
        while len(self._passages) < self._batch.width and (numbered := self._run.next_job()):
            number, job = numbered
            self._run.tell(Event(job))
            self._passages[number] = job, self._run.passage(job, functools.partial(self._batch.join, number))
            self._step(number, next)

    def _round(self) -> None:
        """Pass one block of each file through the batch, and end those that have no more."""
        for number in [number for number, x in self._blocks.items() if x is None]:
            self._step(number, functools.partial(self._end, number))
        blocks = {number: x for number, x in self._blocks.items() if x is not None}
        if not blocks:
            return
        try:
            results = self._batch.process(blocks)
        except Exception as failure:  # whatever it is, it is that of these files
            for number in blocks:
                self._step(number, methodcaller("throw", failure))
            return
        for number, y in results.items():
            self._step(number, methodcaller("send", y))

    def _end(self, number: int, passage: _Passage) -> Block | None:
        return passage.send(self._batch.leave(number))

    def _step(self, number: int, action: Callable[[_Passage], Block | None]) -> None:
        """Carry one file on by a step that may be its last, in one way or the other."""
        job, passage = self._passages[number]
        try:
            self._blocks[number] = action(passage)
            return
        except StopIteration as end:
            outcome = end.value
        except DfstreamError as error:
            reason = str(error).removeprefix(one_line(f"{job.source}: "))
            outcome = Outcome.without(job, "failed", reason, error.hint)
        except Exception as error:
            outcome = Outcome.without(job, "failed", f"internal error: {type(error).__name__}: {error}")
        passage.close()
        del self._passages[number]
        self._blocks.pop(number, None)
        self._batch.abandon(number)
        self._run.tell(Event(job, outcome=outcome))


def _is_done(job: Job) -> bool:
    try:
        return job.target.stat().st_mtime >= job.source.stat().st_mtime
    except OSError:
        return False


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make the folder {folder}: {error.strerror}") from error
