"""The verb ``run``: enhance an audio file block by block, in constant memory."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from dfstream import atomic
from dfstream.audiofile import check_target, cut_short, display_name, opened, quantised, read_block, written
from dfstream.chunks import LOUDEST
from dfstream.errors import AudioError
from dfstream.offline import OFFLINE_BLOCK_FRAMES
from dfstream.resampling import lead_in
from dfstream.stream import Stream

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from pathlib import Path
    from typing import TextIO

    import soundfile
    from numpy.typing import NDArray

    from dfstream.config import ModelConfig
    from dfstream.model import Model

    Passage = Generator[NDArray[np.float32] | None, NDArray[np.float32], int]

__all__ = ["FileReport", "block_of", "enhance_file", "pass_through"]


@dataclasses.dataclass(frozen=True)
class FileReport:
    """What enhancing a file took.

    Attributes
    ----------
    samples : int
        Length of input and output.
    sample_rate : int, Hz
    channels : int
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
    channels: int
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
    lsnr: Path | None = None,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
    **options: Any,
) -> FileReport:
    """Enhance one file into another of the same length, rate and channels.

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
    lsnr : Path, optional
        Where to write the local SNR of every hop, one JSON object a line: ``hop``, ``time_s`` (of its
        beginning), ``lsnr_db``.
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
        A target exists, or its format is unknown.
    AudioError
        The source is missing, empty, not audio, cut short, of an absurd rate, or holds NaN or infinity.

    Notes
    -----
    Targets appear only when everything has succeeded. Memory does not grow with length.
    """
    check_target(target, force)
    if lsnr is not None:
        check_target(str(lsnr), force, audio=False)
    with opened(source) as audio:
        stream = Stream(
            model,
            sample_rate=audio.samplerate,
            channels=audio.channels,
            block_frames=OFFLINE_BLOCK_FRAMES,
            **options,
        )
        with written(target, audio) as out, _lsnr_track(lsnr, model, audio) as note:
            start = time.perf_counter()
            delay = stream.delay_samples if compensate_delay else 0
            passage = pass_through(audio, out, source, block_of(model), delay, progress)
            clipped = _drive(passage, stream, note)
            seconds = time.perf_counter() - start
        return FileReport(
            audio.frames,
            audio.samplerate,
            audio.channels,
            seconds,
            stream.delay_samples,
            compensate_delay,
            clipped,
        )


def block_of(model: Model) -> int:
    """Return how many samples of a file to read at a time."""
    return OFFLINE_BLOCK_FRAMES * model.config.hop_size


def _drive(passage: Passage, stream: Stream, note: Callable[[NDArray[np.float32]], None]) -> int:
    """Send all blocks of a file through a stream; return what the passage returns."""
    x = next(passage)
    while True:
        y = stream.flush() if x is None else stream.process(x[:, 0] if stream.channels == 1 else x)
        note(stream.lsnr)
        try:
            x = passage.send(y)
        except StopIteration as end:
            clipped: int = end.value
            return clipped


def pass_through(
    audio: soundfile.SoundFile,
    out: soundfile.SoundFile,
    source: str,
    block: int,
    delay_samples: int,
    progress: Callable[[int, int], None],
) -> Passage:
    """Give block after block of a file, then None for its end, and write what is sent back for each.

    Parameters
    ----------
    audio, out : SoundFile
        To read from and to write to.
    source : str
        How errors call it.
    block : int
        Samples to read at a time.
    delay_samples : int
        Samples to leave out at the beginning of what is sent.
    progress : callable
        Told how many samples of how many are written.

    Yields
    ------
    ndarray[float32], shape (n, channels), or None

    Returns
    -------
    int
        Samples beyond full scale, which an integer format cuts off.

    Raises
    ------
    AudioError
        Cut short, or with samples that are no audio.
    """
    to_drop, to_write, clipped = delay_samples, audio.frames, 0
    for x in _blocks(audio, source, block):
        y = yield x
        dropped = min(to_drop, len(y))
        y = y[dropped : dropped + to_write]
        to_drop, to_write = to_drop - dropped, to_write - len(y)
        clipped += int(np.count_nonzero(np.abs(y) > 1.0))
        out.write(quantised(y, out.subtype))
        progress(audio.frames - to_write, audio.frames)
    return clipped if "PCM" in out.subtype else 0


def _blocks(audio: soundfile.SoundFile, source: str, block: int) -> Iterator[NDArray[np.float32] | None]:
    read = 0
    while len(x := read_block(audio, block, source)):
        _check_samples(x, read, source)
        read += len(x)
        yield x
    if read != audio.frames:
        raise cut_short(source)
    yield None


def _check_samples(x: NDArray[np.float32], read: int, source: str) -> None:
    fine = np.abs(x) < LOUDEST  # false for NaN
    if fine.all():
        return
    finite = np.isfinite(x)
    if finite.all():
        raise AudioError(
            f"{display_name(source)}: samples a million times beyond full scale",
            hint="full scale is 1 in a file of floating-point numbers",
        )
    first = int(np.argmin(finite.all(axis=1)))
    wrong = x[first][~finite[first]][0]
    raise AudioError(
        f"{display_name(source)}: sample {read + first} is {wrong}, expected a finite number",
        hint="the file is damaged; make it again, best as integer PCM",
    )


@contextlib.contextmanager
def _lsnr_track(
    path: Path | None, model: Model, audio: soundfile.SoundFile
) -> Iterator[Callable[[NDArray[np.float32]], None]]:
    """Give a function that takes the LSNR of hop after hop and writes a line for each hop of the audio."""
    if path is None:
        yield lambda _lsnr: None
        return
    c = model.config
    lead = lead_in(audio.samplerate, c.sample_rate, c.delay_samples, c.hop_size)
    hops = -(-(audio.frames * c.sample_rate + lead * audio.samplerate) // (audio.samplerate * c.hop_size))
    with atomic.replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        yield _LsnrWriter(file, c, lead, hops).write


@dataclasses.dataclass
class _LsnrWriter:
    """Writes a line for each of ``hops`` hops, the first of which begins with ``lead`` zeros.

    The network speaks of the frame ``conv_lookahead`` hops back.
    """

    file: TextIO
    config: ModelConfig
    lead: int
    hops: int
    taken: int = 0

    def write(self, lsnr: NDArray[np.float32]) -> None:
        """Take the LSNR of the next hops."""
        c = self.config
        for value in lsnr:
            hop = self.taken - c.conv_lookahead
            self.taken += 1
            if 0 <= hop < self.hops:
                time_s = max(0, hop * c.hop_size - self.lead) / c.sample_rate
                line = {"hop": hop, "time_s": round(time_s, 6), "lsnr_db": round(float(value), 4)}
                self.file.write(json.dumps(line) + "\n")
