"""Audio files: opened whole or refused, written whole or not at all, in the form of their source."""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dfstream import atomic, containers
from dfstream.chunks import MAX_CHANNELS
from dfstream.errors import AudioError, UsageError
from dfstream.resampling import RATES_HZ

if TYPE_CHECKING:
    from collections.abc import Iterator

    import soundfile
    from numpy.typing import NDArray

__all__ = [
    "STANDARD_STREAM",
    "check_target",
    "cut_short",
    "display_name",
    "opened",
    "quantised",
    "read_block",
    "written",
]

#: Stands for standard input or output.
STANDARD_STREAM = "-"

#: Integer sample formats.
_BITS = {"PCM_S8": 8, "PCM_U8": 8, "PCM_16": 16, "PCM_24": 24, "PCM_32": 32}

#: libsndfile's length of a FLAC file that came through a pipe.
_ENDLESS = (1 << 63) - 1


def quantised(y: NDArray[np.float32], subtype: str) -> NDArray[np.float32] | NDArray[np.int32]:
    """Round to the steps of integer formats, at the head of int32 as libsndfile takes them.

    Left to itself it writes full scale as one step less than it reads it.
    """
    if subtype not in _BITS:
        return y
    bits = _BITS[subtype]
    full_scale = 1 << (bits - 1)
    steps = np.clip(np.rint(y.astype(np.float64) * full_scale), -full_scale, full_scale - 1)
    return steps.astype(np.int32) << (32 - bits)


def read_block(audio: soundfile.SoundFile, frames: int, source: str) -> NDArray[np.float32]:
    """Read the next frames, float32 [n, channels], fewer at the end.

    Raises
    ------
    AudioError
        Damaged.
    """
    import soundfile

    try:
        x: NDArray[np.float32] = audio.read(frames, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise AudioError(
            f"{display_name(source)}: cannot be read further ({_reason(error)})",
            hint="the file is damaged or cut short",
        ) from error
    return x


# -- opening ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def opened(source: str) -> Iterator[soundfile.SoundFile]:
    """Open an audio file, or standard input, for reading.

    Raises
    ------
    AudioError
        Missing, empty, not audio, cut short, or of a form that cannot be enhanced.
    """
    import soundfile

    with contextlib.ExitStack() as stack:
        path = stack.enter_context(_from_stdin()) if source == STANDARD_STREAM else Path(source)
        if not path.exists():
            raise AudioError(f"{source}: no such file")
        if not path.is_file():
            raise AudioError(f"{source}: not a file", hint="name one file; - is standard input")
        if not path.stat().st_size:
            raise AudioError(f"{display_name(source)}: empty")
        try:
            audio = stack.enter_context(soundfile.SoundFile(path))
        except (soundfile.LibsndfileError, OSError, TypeError) as error:
            raise AudioError(
                f"{display_name(source)}: not audio that can be read ({_reason(error)})",
                hint="WAV, FLAC and OGG are",
            ) from error
        if containers.is_cut_short(path, audio.format):
            raise cut_short(source)
        _check_audio(audio, source)
        yield audio


@contextlib.contextmanager
def _from_stdin() -> Iterator[Path]:
    """Spool standard input to disk: audio formats need to seek, a pipe cannot."""
    if sys.stdin is None or sys.stdin.isatty():
        raise UsageError("standard input is a terminal or closed", hint="pipe a WAV file in")
    with tempfile.TemporaryDirectory(prefix="dfstream-") as folder:
        path = Path(folder) / "stdin"
        with path.open("wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
        containers.complete_wav_sizes(path)
        yield path


def _check_audio(audio: soundfile.SoundFile, source: str) -> None:
    if audio.frames >= _ENDLESS:
        raise AudioError(
            f"{display_name(source)}: does not say how long it is",
            hint="write it to a file first, for example: ffmpeg -i IN OUT.wav",
        )
    if not audio.frames:
        if source != STANDARD_STREAM and containers.lacks_wav_sizes(Path(source)):
            raise AudioError(
                f"{source}: the sizes in its header are 0, its writer did not finish it",
                hint="read it as a pipe: dfstream run - OUT < IN",
            )
        raise AudioError(f"{display_name(source)}: holds no samples")
    low, high = RATES_HZ
    if not low <= audio.samplerate <= high:
        raise AudioError(
            f"{display_name(source)}: {audio.samplerate} Hz, expected {low} to {high} Hz",
            hint="resample it first, for example: ffmpeg -i IN -ar 48000 OUT.wav",
        )
    if audio.channels > MAX_CHANNELS:
        raise AudioError(
            f"{display_name(source)}: {audio.channels} channels, expected at most {MAX_CHANNELS}"
        )


def check_target(target: str, force: bool, *, audio: bool = True) -> None:
    """Refuse what could never be written before any work is done.

    Raises
    ------
    UsageError
        It exists, is a folder, lies in none, or (``audio``) has the suffix of no audio format.
    """
    if target == STANDARD_STREAM:
        if sys.stdout is None or sys.stdout.isatty():
            raise UsageError("standard output is a terminal or closed", hint="pipe it, or name a file")
        return
    path = Path(target)
    if path.is_dir():
        raise UsageError(f"{target} is a folder", hint="name the file to write")
    if path.exists() and not force:
        raise UsageError(f"{target} exists", hint="use --force to replace it")
    if not path.parent.is_dir():
        raise UsageError(f"the folder {path.parent} does not exist", hint="make it first")
    if audio:
        _format_of(path)


@contextlib.contextmanager
def written(target: str, audio: soundfile.SoundFile) -> Iterator[soundfile.SoundFile]:
    """Open a temporary file that becomes the target, or goes to standard output, on success.

    Rate, channels, tags and, where the format has it, sample format are those of ``audio``.

    Raises
    ------
    UsageError
        It cannot be written.
    """
    import soundfile

    with contextlib.ExitStack() as stack:
        if target == STANDARD_STREAM:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="dfstream-"))
            path, format_ = Path(folder) / "stdout.wav", "WAV"
        else:
            path = stack.enter_context(atomic.replacing(Path(target)))
            format_ = _format_of(Path(target), audio)
        # MP3 inside WAV is a format, but libsndfile only reads it
        keeps = soundfile.check_format(format_, audio.subtype) and not audio.subtype.startswith("MPEG")
        subtype = audio.subtype if keeps else None
        try:
            with soundfile.SoundFile(
                path, "w", audio.samplerate, audio.channels, subtype, format=format_
            ) as out:
                for tag, text in audio.copy_metadata().items():
                    with contextlib.suppress(soundfile.LibsndfileError):  # not every format has every tag
                        setattr(out, tag, text)
                yield out
        except (soundfile.LibsndfileError, OSError) as error:
            raise UsageError(f"{target}: cannot be written ({_reason(error)})") from error
        if target == STANDARD_STREAM:
            _to_stdout(path)


def _to_stdout(path: Path) -> None:
    try:
        with path.open("rb") as file:
            shutil.copyfileobj(file, sys.stdout.buffer)
        sys.stdout.buffer.flush()
    except BrokenPipeError:  # the reader has seen enough: not worth a word
        raise
    except OSError as error:
        raise UsageError(f"standard output: cannot be written ({error.strerror})") from error


def _format_of(path: Path, audio: soundfile.SoundFile | None = None) -> str:
    """Return the container for a file name; the source's own where the suffixes agree (RF64 is a .wav)."""
    import soundfile

    suffix = path.suffix.lower().lstrip(".")
    format_ = {"oga": "OGG", "opus": "OGG", "aif": "AIFF", "aifc": "AIFF"}.get(suffix, suffix.upper())
    if audio is not None and format_ == "WAV" and audio.format in ("WAV", "WAVEX", "RF64"):
        return str(audio.format)
    if format_ not in soundfile.available_formats():
        raise UsageError(
            f"{path}: unknown audio format {path.suffix or '(no suffix)'!r}", hint="use .wav, .flac or .ogg"
        )
    return format_


def cut_short(source: str) -> AudioError:
    """Return the error for a file that ends before its end."""
    return AudioError(
        f"{display_name(source)}: cut short, the file ends before its end",
        hint="get it again, or save what there is, for example: ffmpeg -i IN OUT.wav",
    )


def display_name(source: str) -> str:
    """Return how to speak of a source."""
    return "standard input" if source == STANDARD_STREAM else source


def _reason(error: Exception) -> str:
    return str(error).rsplit(": ", 1)[-1].rstrip(".")
