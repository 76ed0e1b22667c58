"""Many files: which of them are read, and what each becomes. Decided, and refused, before any work."""

from __future__ import annotations

import dataclasses
import glob
import os
from pathlib import Path
from typing import TYPE_CHECKING

from dfstream.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

__all__ = ["AUDIO_SUFFIXES", "Job", "Plan", "is_folder_like", "is_pattern", "plan_files"]

#: Files in a folder that are taken for audio, by the ends of their names.
AUDIO_SUFFIXES = (
    ".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3",
    ".aif", ".aiff", ".aifc", ".au", ".caf", ".w64", ".rf64",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Job:
    """One file to enhance, and where to."""

    source: Path
    target: Path


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to do with many files.

    Attributes
    ----------
    jobs : tuple of Job
        In the order of their names.
    ignored : int
        Files in the folders that are hidden or have no suffix of audio.
    unreadable : mapping of Path to str
        Folders that could not be looked into, and why.
    """

    jobs: tuple[Job, ...]
    ignored: int
    unreadable: Mapping[Path, str]


def is_pattern(text: str) -> bool:
    """Whether a text has wildcards and is not the name of a file all the same."""
    return glob.has_magic(text) and not os.path.lexists(text)


def is_folder_like(text: str) -> bool:
    """Whether a name is that of a folder: it is one, or ends as only folders do."""
    return Path(text).is_dir() or text.endswith(("/", os.sep))


def plan_files(
    inputs: Sequence[str], folder: Path, *, recursive: bool = False, suffix: str | None = None
) -> Plan:
    """Say which files become which.

    Parameters
    ----------
    inputs : sequence of str
        Files, folders, and patterns of them (``**`` stands for any depth). A file comes to lie directly
        in the target folder, one of a folder keeps its place below that.
    folder : Path
        Where the results go. What lies in it already is never read from an input folder.
    recursive : bool
        Also read the folders inside folders. Links to folders are not followed.
    suffix : str, optional
        Ending of all results, with its dot; by default each keeps its own.

    Raises
    ------
    UsageError
        A pattern matches nothing, the target is a file, two files would become one, or one would take
        the place of an input.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file", hint="name the folder to write to")
    found = _Found(folder.resolve(), recursive)
    for text in inputs:
        found.add_all(_expanded(text))
    jobs = tuple(
        Job(source, folder / (place if suffix is None else place.with_suffix(suffix)))
        for source, place in sorted(found.places.items(), key=lambda item: str(item[1]))
    )
    _check_targets(jobs)
    return Plan(jobs, found.ignored, found.unreadable)


def _expanded(text: str) -> list[Path]:
    if text == "-":
        raise UsageError("standard input is one file, it cannot be one of several", hint="dfstream run - OUT")
    if not is_pattern(text):
        return [Path(text)]
    matches = sorted(glob.glob(text, recursive=True))  # noqa: PTH207
    # a file called "-" must not be taken for standard input
    paths = [Path.cwd() / match if match == "-" else Path(match) for match in matches]
    if not paths:
        raise UsageError(f"{text!r} matches no file")
    return paths


class _Found:
    """Collects sources, each once, and their places below the target folder."""

    def __init__(self, target: Path, recursive: bool) -> None:
        self._target, self._recursive = target, recursive
        self._known: set[str] = set()
        self.places: dict[Path, Path] = {}
        self.unreadable: dict[Path, str] = {}
        self.ignored = 0

    def add_all(self, paths: Iterable[Path]) -> None:
        """Take files, and the files of folders."""
        for path in paths:
            if not path.is_dir():
                self._add(path, Path(path.name))
                continue
            if path.resolve() == self._target:
                raise UsageError(f"{path} is both input and output", hint="name another folder to write to")
            for file in self._walk(path):
                if file.name.startswith(".") or file.suffix.lower() not in AUDIO_SUFFIXES:
                    self.ignored += 1
                else:
                    self._add(file, file.relative_to(path))

    def _add(self, path: Path, place: Path) -> None:
        if (identity := _identity(path)) not in self._known:
            self._known.add(identity)
            self.places[path] = place

    def _walk(self, folder: Path) -> Iterator[Path]:
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            self.unreadable[folder] = f"cannot be read ({error.strerror})"
            return
        for entry in entries:
            path = folder / entry.name
            if not entry.is_dir():
                yield path
            elif self._recursive and not entry.is_symlink() and path.resolve() != self._target:
                yield from self._walk(path)


def _check_targets(jobs: Sequence[Job]) -> None:
    sources = {_identity(job.source): job for job in jobs}
    targets: dict[str, Job] = {}
    for job in jobs:
        other = targets.setdefault(_identity(job.target), job)
        if other is not job:
            raise UsageError(
                f"{other.source} and {job.source} would both become {job.target}",
                hint="enhance them into different folders, or leave out --format",
            )
    for target, job in targets.items():
        if target in sources:
            raise UsageError(
                f"{job.target} would take the place of an input", hint="name another folder to write to"
            )


def _identity(path: Path) -> str:
    return os.path.normcase(path.resolve())
