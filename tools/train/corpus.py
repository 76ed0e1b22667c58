"""Recordings to mix from: decoded once, listed with their licences, each speech clip beside its clean twin.

An audio folder holds Opus, FLAC or WAV files at 48 kHz and ``clips.csv`` with at least the columns
``file, start_sample, n_samples, kind, split, source, speaker, licence``. Recordings offered as clean carry
noise and room sound that the teacher removes, so what the teacher makes of a clip is its clean reference, and
clips that the teacher changes beyond recognition are left out.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import multiprocessing
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import soundfile

from dfstream.atomic import replacing
from dfstream.errors import UsageError
from dfstream.model import Model
from dfstream.offline import enhance

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

    Audio = NDArray[np.float32]
    Pcm = NDArray[np.int16]

Kind = Literal["speech", "noise"]
Split = Literal["train", "valid"]

SAMPLE_RATE = 48_000

#: Licence families, the first that a licence begins with; longer names before what they begin with.
FAMILIES = ("CC0", "CC-BY-SA", "CC-BY", "Public-Domain", "MIT", "GPL", "BSD", "Apache-2.0")

#: Shorter clips hold no phrase.
_SHORTEST = SAMPLE_RATE // 2

#: RMS at which the teacher is at ease: it mutes very quiet speech.
_TEACHER_RMS = 0.05

#: Clips whose teacher output is further from them than this hold more than one voice in a room.
_LEAST_AGREEMENT_DB = 3.0

_FULL_SCALE = 32_768.0


@dataclasses.dataclass(frozen=True)
class Clip:
    """One recording of one voice or noise.

    Attributes
    ----------
    path, clean_path : Path
        Decoded file, and what the teacher made of it (the same file for noise).
    start, length : int, samples
    source, speaker, licence : str
    """

    path: Path
    clean_path: Path
    start: int
    length: int
    source: str
    speaker: str
    licence: str

    def read(self, start: int = 0, length: int | None = None) -> Audio:
        """Return a part as it was recorded."""
        return _part(self.path, self, start, length)

    def read_clean(self, start: int = 0, length: int | None = None) -> Audio:
        """Return the same part as the teacher cleans it."""
        return _part(self.clean_path, self, start, length)


def family(licence: str) -> str:
    """Return the family of a licence, such as ``GPL`` for ``GPL-3.0-or-later``.

    Raises
    ------
    UsageError
        It belongs to none.
    """
    for name in FAMILIES:
        if licence.startswith(name):
            return name
    raise UsageError(f"licence {licence!r} is of no known family", hint=f"there are {', '.join(FAMILIES)}")


def list_clips(
    folders: Iterable[Path], work: Path, kind: Kind, split: Split, licences: Iterable[str] = FAMILIES
) -> list[Clip]:
    """Return the clips of a kind and split whose licence is of one of the given families.

    Parameters
    ----------
    folders : iterable of Path
        Audio folders.
    work : Path
        Where `prepare` put the decoded files.
    kind, split, licences

    Raises
    ------
    UsageError
        Unknown family, or no clip is left.
    """
    wanted = set(licences)
    if unknown := wanted - set(FAMILIES):
        raise UsageError(f"no licence family {min(unknown)!r}", hint=f"there are {', '.join(FAMILIES)}")
    clips = []
    for folder in folders:
        far = _far_clips(work, folder) if kind == "speech" else set()
        for row in _rows(folder):
            key = (row["file"], int(row["start_sample"]))
            chosen = row["kind"] == kind and row["split"] == split and int(row["n_samples"]) >= _SHORTEST
            if chosen and key not in far and family(row["licence"]) in wanted:
                path = _decoded(work, folder, row["file"])
                clean = _cleaned(path) if kind == "speech" else path
                facts = row["source"], row["speaker"], row["licence"]
                clips.append(Clip(path, clean, key[1], int(row["n_samples"]), *facts))
    if not clips:
        raise UsageError(f"no {split} {kind} of the licences {', '.join(sorted(wanted))}")
    return clips


def data_table(clips: Iterable[Clip]) -> str:
    """Return where clips come from and under which licences, in Markdown."""
    minutes: dict[tuple[str, str], list[float]] = {}
    voices: dict[tuple[str, str], set[str]] = {}
    for clip in clips:
        key = clip.source, clip.licence
        minutes.setdefault(key, []).append(clip.length / SAMPLE_RATE / 60)
        voices.setdefault(key, set()).add(clip.speaker)
    lines = [
        "| source | licence of the recordings | clips | voices or recordings | minutes |",
        "| --- " * 5 + "|",
    ]
    for (source, licence), lengths in sorted(minutes.items()):
        counts = len(lengths), len(voices[source, licence])
        lines.append(f"| {source} | {licence} | {counts[0]} | {counts[1]} | {sum(lengths):.1f} |")
    return "\n".join(lines)


def prepare(
    folders: Iterable[Path], work: Path, teacher: str, progress: Callable[[str], None], processes: int = 1
) -> None:
    """Decode the audio folders' files and let the teacher clean the speech; keeps what is there.

    Files of the test split are left alone. ``teacher`` is what `Model.load` takes.
    """
    tasks = []
    for folder in folders:
        rows = [row for row in _rows(folder) if row["split"] != "test"]
        for name in dict.fromkeys(row["file"] for row in rows):
            path = _decoded(work, folder, name)
            speech = [row for row in rows if row["file"] == name and row["kind"] == "speech"]
            if not path.exists() or (speech and not _cleaned(path).exists()):
                tasks.append((folder / name, path, speech, teacher))
    if processes == 1:
        for task in tasks:
            progress(f"prepared {_prepare_file(task)}")
        return
    with multiprocessing.get_context("spawn").Pool(processes) as workers:
        for name in workers.imap_unordered(_prepare_file, tasks, chunksize=1):
            progress(f"prepared {name}")


def rms(x: Audio) -> float:
    """Return the root of the mean square."""
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64)))) if x.size else 0.0


def active_rms(x: Audio, range_db: float = 30.0) -> float:
    """Return the RMS of 10 ms frames within a range of the loudest: the level of speech without pauses."""
    frame = SAMPLE_RATE // 100
    powers = np.mean(np.square(x[: x.size // frame * frame].reshape(-1, frame), dtype=np.float64), axis=1)
    if not powers.size or not powers.max():
        return 0.0
    return float(np.sqrt(powers[powers >= powers.max() * 10 ** (-range_db / 10)].mean()))


def _rows(folder: Path) -> list[dict[str, str]]:
    try:
        with (folder / "clips.csv").open(newline="", encoding="utf-8") as lines:
            return list(csv.DictReader(lines))
    except OSError as error:
        raise UsageError(f"{folder}: no readable clips.csv ({error.strerror})") from error


def _decoded(work: Path, folder: Path, name: str) -> Path:
    return work / "audio" / folder.resolve().name / f"{Path(name).stem}.npy"


def _cleaned(path: Path) -> Path:
    return path.with_name(f"{path.stem}.clean.npy")


def _agreements(path: Path) -> Path:
    return path.with_name(f"{path.stem}.agreement.csv")


def read_recording(path: Path) -> Audio:
    """Read one channel at `SAMPLE_RATE`.

    Raises
    ------
    UsageError
        It cannot be read, or is of another form.
    """
    try:
        audio, rate = soundfile.read(path, dtype="float32")
    except (soundfile.LibsndfileError, OSError) as error:
        raise UsageError(f"{path}: cannot be read ({error})") from error
    if rate != SAMPLE_RATE or audio.ndim != 1:
        raise UsageError(f"{path}: expected one channel at {SAMPLE_RATE} Hz")
    return np.ascontiguousarray(audio)


def _to_pcm(x: Audio) -> Pcm:
    pcm: Pcm = np.clip(np.round(x * _FULL_SCALE), -_FULL_SCALE, _FULL_SCALE - 1).astype(np.int16)
    return pcm


def _prepare_file(task: tuple[Path, Path, list[dict[str, str]], str]) -> str:
    source, path, speech, teacher = task
    if not path.exists():
        _save(path, _to_pcm(read_recording(source)))
    if speech:
        _clean(path, speech, Model.load(teacher))
    return source.name


def _clean(path: Path, rows: list[dict[str, str]], teacher: Model) -> None:
    """Clean clip by clip, each from a fresh state, and note how far each moved."""
    noisy = np.load(path, mmap_mode="r")
    clean, lines = np.zeros_like(noisy), ["start_sample,agreement_db"]
    for row in rows:
        start, stop = int(row["start_sample"]), int(row["start_sample"]) + int(row["n_samples"])
        x = noisy[start:stop].astype(np.float32) / np.float32(_FULL_SCALE)
        gain = np.float32(_TEACHER_RMS / max(rms(x), 1e-4))
        y = enhance(x * gain, SAMPLE_RATE, teacher, parity="python") / gain
        clean[start:stop] = _to_pcm(y)
        moved = max(rms(x - y), 1e-6)
        lines.append(f"{start},{20 * np.log10(max(rms(y), 1e-6) / moved):.2f}")
    with replacing(_agreements(path)) as temporary:
        temporary.write_text("\n".join(lines) + "\n")
    _save(_cleaned(path), clean)


def _far_clips(work: Path, folder: Path) -> set[tuple[str, int]]:
    far = set()
    names = {row["file"] for row in _rows(folder) if row["kind"] == "speech" and row["split"] != "test"}
    for name in names:
        table = _agreements(_decoded(work, folder, name))
        if not table.exists():
            raise UsageError(f"{name} is not prepared", hint="run train.py prepare first")
        for row in csv.DictReader(table.read_text().splitlines()):
            if float(row["agreement_db"]) < _LEAST_AGREEMENT_DB:
                far.add((name, int(row["start_sample"])))
    return far


def _save(path: Path, pcm: Pcm) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.save(file, pcm)


@functools.lru_cache(maxsize=64)
def _mapped(path: Path) -> Pcm:
    pcm: Pcm = np.load(path, mmap_mode="r")
    return pcm


def _part(path: Path, clip: Clip, start: int, length: int | None) -> Audio:
    stop = clip.length if length is None else min(start + length, clip.length)
    part = _mapped(path)[clip.start + start : clip.start + stop]
    return part.astype(np.float32) / np.float32(_FULL_SCALE)
