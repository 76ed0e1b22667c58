"""``dfstream run`` for many files: what it shows and reports."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dfstream import atomic
from dfstream.cli._options import print_json
from dfstream.cli._progress import loading, stderr_console, warnings_as_lines
from dfstream.errors import AudioError, DfstreamError, UsageError, one_line
from dfstream.planning import AUDIO_SUFFIXES, is_folder_like, plan_files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from dfstream.folder import FolderRun
    from dfstream.outcome import Event, Outcome
    from dfstream.planning import Job, Plan

__all__ = ["ManyFiles", "run_folder"]


@dataclasses.dataclass(frozen=True)
class ManyFiles:
    """Options of ``dfstream run`` that are for many files alone; the command explains them."""

    recursive: bool
    jobs: int
    suffix: str | None
    resume: bool
    report: Path | None

    @property
    def given(self) -> bool:
        """Whether any was given."""
        return bool(self.recursive or self.jobs > 1 or self.suffix or self.resume or self.report)


def run_folder(
    sources: Sequence[str],
    target: str,
    model: str,
    many: ManyFiles,
    *,
    compensate_delay: bool,
    force: bool,
    quiet: bool,
    as_json: bool,
    lsnr: Path | None,
    **options: Any,
) -> None:
    """Enhance files into a folder and report.

    Raises
    ------
    UsageError
        Options that exclude each other, or an impossible plan; nothing has been done.
    AudioError
        There is no file to enhance.
    DfstreamError
        A file failed.
    """
    if force and many.resume:
        raise click.UsageError("--force and --resume exclude each other")
    if lsnr is not None:
        raise click.UsageError("--lsnr is for one file")
    plan = _plan(sources, target, many, replace=force or many.resume)
    with loading(quiet):
        from dfstream.filepool import batch_maker
        from dfstream.folder import FolderRun
        from dfstream.model import Model

        loaded = Model.load(model)
    with warnings_as_lines():
        run = FolderRun(
            plan,
            loaded,
            batch_maker(loaded, len(plan.jobs), many.jobs, **options),
            jobs=many.jobs,
            compensate_delay=compensate_delay,
            existing="replace" if force else "resume" if many.resume else "refuse",
        )
        result = _finish(plan, run, {"model": loaded.name, "output": target}, many.report, quiet, as_json)
    if result["failed"]:
        raise DfstreamError(f"{result['failed']} of {len(result['files'])} files failed")


def _plan(sources: Sequence[str], target: str, many: ManyFiles, *, replace: bool) -> Plan:
    from dfstream.audiofile import check_target

    suffix = None if many.suffix is None else f".{many.suffix.lower().lstrip('.')}"
    if suffix is not None and suffix not in AUDIO_SUFFIXES:
        raise UsageError(f"unknown format {many.suffix!r}", hint=f"known: {' '.join(AUDIO_SUFFIXES)}")
    if target == "-" or (Path(target).suffix.lower() in AUDIO_SUFFIXES and not is_folder_like(target)):
        raise UsageError(f"{target}: OUT has to be a folder for many files", hint="end its name with /")
    if many.report is not None:
        check_target(str(many.report), replace, audio=False)
    plan = plan_files(sources, Path(target), recursive=many.recursive, suffix=suffix)
    if not plan.jobs and not plan.unreadable:
        others = f", {plan.ignored} other files ignored" if plan.ignored else ""
        raise AudioError(f"no audio files found{others}", hint=f"looked for {' '.join(AUDIO_SUFFIXES)}")
    return plan


def _finish(
    plan: Plan, run: FolderRun, facts: dict[str, Any], report: Path | None, quiet: bool, as_json: bool
) -> dict[str, Any]:
    """Do the work and report it, also where it is interrupted."""
    start = time.perf_counter()
    for outcome in run.outcomes:
        _tell(outcome)
    try:
        with _display(plan, quiet) as note:
            run.finish(note)
    finally:
        result = {**facts, **_result(plan, run.outcomes, time.perf_counter() - start)}
        if report is not None:
            with atomic.replacing(report) as temporary:
                temporary.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        if as_json:
            print_json(result)
        elif not quiet:
            click.echo(_closing_line(result), err=True)
    return result


def _result(plan: Plan, outcomes: list[Outcome], seconds: float) -> dict[str, Any]:
    order = {str(job.source): number for number, job in enumerate(plan.jobs)}
    audio_s = sum(outcome.duration_s for outcome in outcomes)
    statuses = [outcome.status for outcome in outcomes]
    return {
        **{status: statuses.count(status) for status in ("ok", "skipped", "failed", "interrupted")},
        "ignored": plan.ignored,
        "audio_seconds": audio_s,
        "seconds": seconds,
        "real_time_factor": seconds / audio_s if audio_s else None,
        "files": [
            {**dataclasses.asdict(outcome), "real_time_factor": outcome.real_time_factor}
            for outcome in sorted(outcomes, key=lambda outcome: order.get(outcome.source, -1))
        ],
    }


def _closing_line(result: dict[str, Any]) -> str:
    factor, cut_off = result["real_time_factor"], sum(entry["clipped"] for entry in result["files"])
    parts = [
        f"{result['ok']} of {len(result['files'])} files enhanced",
        *(f"{result[status]} {status}" for status in ("skipped", "failed", "interrupted") if result[status]),
        f"{result['audio_seconds']:.1f} s of audio in {result['seconds']:.1f} s",
    ]
    if factor is not None:
        parts.append(f"real-time factor {factor:.3f}")
    if result["ignored"]:
        parts.append(f"{result['ignored']} other files ignored")
    if cut_off:
        parts.append(f"{cut_off} samples beyond full scale cut off")
    return ", ".join(parts)


# -- while it runs ---------------------------------------------------------------------------------


@contextlib.contextmanager
def _display(plan: Plan, quiet: bool) -> Iterator[Callable[[Event], None]]:
    """Give a function that shows news: a line for each failure, and on a terminal a bar over all audio."""
    console = stderr_console()
    if quiet or not console.is_terminal:
        yield lambda event: _tell(event.outcome)
        return
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.table import Column

    names = Column(no_wrap=True, overflow="ellipsis", ratio=1)
    columns = (
        TextColumn("{task.description}"), BarColumn(20), TaskProgressColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[names]}", markup=False, table_column=names),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True, expand=True) as bar:
        lengths_s = {job: _duration_s(job) for job in plan.jobs}
        task = bar.add_task("", total=sum(lengths_s.values()), names="")
        done_s: dict[Job, float] = {}
        under_way: dict[Job, None] = {}
        ended = 0

        def note(event: Event) -> None:
            nonlocal ended
            under_way[event.job] = None
            now_s = event.done_s
            if event.outcome is not None:
                del under_way[event.job]
                now_s = lengths_s[event.job]  # also what failed or was skipped is no longer ahead
                ended += 1
                _tell(event.outcome)
            before_s, done_s[event.job] = done_s.get(event.job, 0.0), now_s
            bar.update(
                task,
                advance=now_s - before_s,
                description=f"{ended} of {len(lengths_s)} files",
                names=", ".join(one_line(job.source.name) for job in under_way),
            )

        yield note


def _tell(outcome: Outcome | None) -> None:
    if outcome is not None and outcome.status == "failed":
        click.echo(one_line(f"failed: {outcome.source}: {outcome.reason}"), err=True)


def _duration_s(job: Job) -> float:
    import soundfile

    from dfstream.audiofile import native_name

    try:
        return float(soundfile.info(native_name(job.source)).duration)
    except (soundfile.LibsndfileError, OSError, TypeError):
        return 0.0
