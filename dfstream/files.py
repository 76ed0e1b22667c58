"""The verb ``run``: enhance an audio file block by block, in constant memory."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dfstream import atomic
from dfstream.errors import AudioError, UsageError
from dfstream.offline import OFFLINE_BLOCK_FRAMES
from dfstream.stream import Stream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import soundfile
    from numpy.typing import NDArray

    from dfstream.model import Model

__all__ = ["STANDARD_STREAM", "FileReport", "enhance_file"]

#: Stands for standard input or output.
STANDARD_STREAM = "-"


@dataclasses.dataclass(frozen=True)
class FileReport:
    """What enhancing a file took.

    Attributes
    ----------
    samples : int
        Length of input and output.
    sample_rate : int, Hz
    seconds : float
        Time it took, without loading the model.
    delay_samples : int
        Delay of the stream.
    delay_compensated : bool
        Whether the output is aligned with the input.
    clipped : int
        Output samples beyond full scale, which an integer format cuts off.
    """

    samples: int
    sample_rate: int
    seconds: float
    delay_samples: int
    delay_compensated: bool
    clipped: int

    @property
    def duration_s(self) -> float:
        """Length of the audio in seconds."""
        return self.samples / self.sample_rate

    @property
    def real_time_factor(self) -> float:
        """Seconds of work per second of audio."""
        return self.seconds / self.duration_s


def enhance_file(
    source: str,
    target: str,
    model: Model,
    *,
    compensate_delay: bool = True,
    force: bool = False,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
    **options: Any,
) -> FileReport:
    """Enhance one file into another of the same length.

    Parameters
    ----------
    source, target : str
        Paths, or ``-`` for standard input and output (as WAV). The target's suffix decides its format;
        its sample format is the source's where the format has it.
    model : Model
    compensate_delay : bool
        Align the output with the input; otherwise it lags by the delay and loses as much at its end.
    force : bool
        Replace an existing target.
    progress : callable
        Told how many samples of how many are done.
    **options
        Further arguments of `Stream`.

    Returns
    -------
    FileReport

    Raises
    ------
    UsageError
        The target exists, or its format is unknown.
    AudioError
        The source is missing, empty, not audio, of another rate, not mono, or holds NaN or infinity.

    Notes
    -----
    The target appears only when everything has succeeded. Memory does not grow with length.
    """
    _check_target(target, force)
    stream = Stream(model, block_frames=OFFLINE_BLOCK_FRAMES, **options)
    with _opened(source) as audio:
        _check_audio(audio, source, model)
        with _written(target, audio) as out:
            start = time.perf_counter()
            clipped = _run(stream, audio, out, source, compensate_delay, progress)
            seconds = time.perf_counter() - start
        return FileReport(
            audio.frames, audio.samplerate, seconds, stream.delay_samples, compensate_delay, clipped
        )


def _run(
    stream: Stream,
    audio: soundfile.SoundFile,
    out: soundfile.SoundFile,
    source: str,
    compensate_delay: bool,
    progress: Callable[[int, int], None],
) -> int:
    """Pass all blocks through the stream; return how many output samples were beyond full scale."""
    to_drop = stream.delay_samples if compensate_delay else 0
    to_write, done, clipped = audio.frames, 0, 0
    for y in _enhanced(stream, audio, source):
        dropped = min(to_drop, len(y))
        y = y[dropped : dropped + to_write]
        to_drop, to_write = to_drop - dropped, to_write - len(y)
        clipped += int(np.count_nonzero(np.abs(y) > 1.0))
        out.write(y)
        done += len(y)
        progress(done, audio.frames)
    return clipped if "PCM" in out.subtype else 0


def _enhanced(stream: Stream, audio: soundfile.SoundFile, source: str) -> Iterator[NDArray[np.float32]]:
    read, block = 0, OFFLINE_BLOCK_FRAMES * stream.hop_size
    while len(x := _read(audio, block, source)):
        finite = np.isfinite(x)
        if not finite.all():
            raise AudioError(
                f"{source}: sample {read + int(np.argmin(finite))} is not a number",
                hint="the file is damaged; write it again as integer PCM",
            )
        read += len(x)
        yield stream.process(x)
    if read != audio.frames:
        raise AudioError(
            f"{source}: ends after {read} of {audio.frames} samples", hint="the file is cut short"
        )
    yield stream.flush()


def _read(audio: soundfile.SoundFile, frames: int, source: str) -> NDArray[np.float32]:
    import soundfile

    try:
        x: NDArray[np.float32] = audio.read(frames, dtype="float32")
    except soundfile.LibsndfileError as error:
        raise AudioError(f"{source}: cannot be read further ({error})", hint="the file is damaged") from error
    return x


# -- opening ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def _opened(source: str) -> Iterator[soundfile.SoundFile]:
    import soundfile

    with contextlib.ExitStack() as stack:
        path = stack.enter_context(_from_stdin()) if source == STANDARD_STREAM else Path(source)
        if not path.exists():
            raise AudioError(f"{source}: no such file")
        if not path.is_file():
            raise AudioError(f"{source}: not a file", hint="one file at a time")
        if not path.stat().st_size:
            raise AudioError(f"{_name(source)}: empty")
        try:
            audio = stack.enter_context(soundfile.SoundFile(path))
        except (soundfile.LibsndfileError, OSError, TypeError) as error:
            raise AudioError(
                f"{_name(source)}: not audio that can be read ({_reason(error)})",
                hint="WAV, FLAC and OGG are",
            ) from error
        yield audio


@contextlib.contextmanager
def _from_stdin() -> Iterator[Path]:
    """Spool standard input to disk: audio formats need to seek, a pipe cannot."""
    if sys.stdin.isatty():
        raise UsageError("standard input is a terminal", hint="pipe a WAV file in")
    with tempfile.TemporaryDirectory(prefix="dfstream-") as folder:
        path = Path(folder) / "stdin"
        with path.open("wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
        yield path


def _check_audio(audio: soundfile.SoundFile, source: str, model: Model) -> None:
    rate = model.config.sample_rate
    if not audio.frames:
        raise AudioError(f"{_name(source)}: holds no samples")
    if audio.samplerate != rate:
        raise AudioError(
            f"{_name(source)}: {audio.samplerate} Hz, the model {model.name} runs at {rate} Hz",
            hint=f"resample it first, for example: ffmpeg -i IN -ar {rate} OUT.wav",
        )
    if audio.channels != 1:
        raise AudioError(
            f"{_name(source)}: {audio.channels} channels, expected one",
            hint="mix or split it first, for example: ffmpeg -i IN -ac 1 OUT.wav",
        )


def _check_target(target: str, force: bool) -> None:
    """Refuse what could never be written before any work is done."""
    if target == STANDARD_STREAM:
        if sys.stdout.isatty():
            raise UsageError("standard output is a terminal", hint="pipe it, or name a file")
        return
    path = Path(target)
    if path.is_dir():
        raise UsageError(f"{target} is a folder", hint="name the file to write")
    if path.exists() and not force:
        raise UsageError(f"{target} exists", hint="use --force to replace it")
    if not path.parent.is_dir():
        raise UsageError(f"the folder {path.parent} does not exist")
    _format_of(path)


@contextlib.contextmanager
def _written(target: str, audio: soundfile.SoundFile) -> Iterator[soundfile.SoundFile]:
    """Open a temporary file that becomes the target, or goes to standard output, on success."""
    import soundfile

    with contextlib.ExitStack() as stack:
        if target == STANDARD_STREAM:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="dfstream-"))
            path, format_ = Path(folder) / "stdout.wav", "WAV"
        else:
            path, format_ = (
                stack.enter_context(atomic.replacing(Path(target))),
                _format_of(Path(target), audio),
            )
        subtype = audio.subtype if soundfile.check_format(format_, audio.subtype) else None
        try:
            with soundfile.SoundFile(path, "w", audio.samplerate, 1, subtype, format=format_) as out:
                for tag, text in audio.copy_metadata().items():
                    with contextlib.suppress(soundfile.LibsndfileError):  # not every format has every tag
                        setattr(out, tag, text)
                yield out
        except (soundfile.LibsndfileError, OSError) as error:
            raise UsageError(f"{target}: cannot be written ({_reason(error)})") from error
        if target == STANDARD_STREAM:
            with path.open("rb") as file:
                shutil.copyfileobj(file, sys.stdout.buffer)
            sys.stdout.buffer.flush()


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


def _name(source: str) -> str:
    return "standard input" if source == STANDARD_STREAM else source


def _reason(error: Exception) -> str:
    return str(error).rsplit(": ", 1)[-1].rstrip(".")
