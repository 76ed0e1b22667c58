"""The verb ``plot``: measure a recording before and after, block by block, and draw it."""

from __future__ import annotations

import json
import math
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dfstream import atomic
from dfstream.audiofile import check_target, cut_short, display_name, opened, read_block
from dfstream.chunks import LOUDEST
from dfstream.errors import AudioError, UsageError
from dfstream.offline import OFFLINE_BLOCK_FRAMES
from dfstream.picture import DPI, Recording, draw, short_name
from dfstream.pooling import Spectrogram, Track
from dfstream.stream import Stream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import soundfile
    from numpy.typing import NDArray

    from dfstream.model import Model

__all__ = ["FORMATS", "check_before", "plot_files"]

#: Suffixes a picture may have.
FORMATS = (".png", ".svg", ".pdf")

#: Shortest time axis: matplotlib has no good ticks for microseconds.
_SHORTEST_AXIS_S = 0.05

#: Longest line of a file of LSNRs that is read.
_MAX_LINE = 4096

#: Lines taken at once.
_MANY_LINES = 1000

#: Values of all channels read at once, about a second of mono.
_BLOCK = 1 << 16

_LSNR_HINT = "give a file that dfstream run --lsnr wrote"


def plot_files(
    source: str,
    target: str,
    report: str | Path,
    lsnr: Model | str | Path,
    *,
    title: str | None = None,
    force: bool = False,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> None:
    """Draw the spectrograms and levels of two files and the local SNR of the first.

    Parameters
    ----------
    source, target : str
        Paths of the noisy and the enhanced file, or ``-`` for standard input. Lengths, rates and numbers of
        channels may differ; of several channels the first is shown.
    report : str or Path
        The picture. Its suffix, one of `FORMATS`, decides its format; PNG is 1600 x 1100 pixels.
    lsnr : Model, str or Path
        What estimates the local SNR of ``source``, or a file ``dfstream run --lsnr`` wrote: JSON lines with
        ``time_s`` and ``lsnr_db``.
    title : str, optional
        A heading.
    force : bool
        Replace an existing picture.
    progress : callable
        Told how many samples of how many are read.

    Raises
    ------
    UsageError
        matplotlib is not installed, the picture exists or has another suffix, the file of LSNRs is not one.
    AudioError
        A file is missing, empty, not audio, cut short, holds NaN or infinity, or has a rate no stream takes.

    Notes
    -----
    The picture appears only when everything has succeeded. Memory does not grow with length: spectra are
    averaged, in power, over the time a column of the picture stands for.
    """
    check_before(report, force)
    report = Path(report)
    with opened(source) as noisy, opened(target) as enhanced:
        axis_s = max(_duration_s(noisy), _duration_s(enhanced), _SHORTEST_AXIS_S)
        total = noisy.frames + enhanced.frames
        track = Track(axis_s)
        if isinstance(lsnr, (str, Path)):
            _read_lsnr(Path(lsnr), track)
            listen, origin = None, f"from {short_name(str(lsnr))}"
        else:
            listen, origin = (
                _Listener(lsnr, noisy, track),
                f"estimated by model {short_name(lsnr.name)}",
            )
        before = _measure(noisy, source, axis_s, lambda done: progress(done, total), listen)
        after = _measure(enhanced, target, axis_s, lambda done: progress(noisy.frames + done, total))
    figure = draw(before, after, track, axis_s, f"local SNR of the noisy signal, {origin}", title)
    try:
        with atomic.replacing(report) as path:
            figure.savefig(path, format=report.suffix[1:].lower(), dpi=DPI)
    except OSError as error:
        raise UsageError(f"{report}: cannot be written ({error.strerror or error})") from error


def check_before(report: str | Path, force: bool) -> None:
    """Refuse what could never be drawn before any work is done.

    Raises
    ------
    UsageError
        matplotlib is not installed, or the picture exists, or has another suffix, or no folder.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise UsageError(
            "matplotlib, which draws the picture, is not installed", hint="pip install 'dfstream[plot]'"
        ) from error
    report = Path(report)
    if report.suffix.lower() not in FORMATS:
        raise UsageError(
            f"{report}: unknown picture format {report.suffix or '(no suffix)'!r}",
            hint=f"use {', '.join(FORMATS[:-1])} or {FORMATS[-1]}",
        )
    check_target(str(report), force, audio=False)


# -- measuring -------------------------------------------------------------------------------------


def _read_lsnr(path: Path, track: Track) -> None:
    """Take the LSNRs of a file of JSON lines.

    Raises
    ------
    UsageError
        It is missing, or a line is not what ``dfstream run --lsnr`` writes.
    """
    taken = 0
    try:
        with path.open(encoding="utf-8") as file:
            lines = enumerate(iter(lambda: file.readline(_MAX_LINE), ""), 1)
            while points := [_point(line, f"{path}: line {n}") for n, line in islice(lines, _MANY_LINES)]:
                taken += len(points)
                track.add(*np.array(points).T)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not a file of JSON lines", hint=_LSNR_HINT) from error
    if not taken:
        raise UsageError(f"{path}: empty", hint=_LSNR_HINT)


def _point(line: str, where: str) -> tuple[float, float]:
    try:
        entry = json.loads(line)
        point = float(entry["time_s"]), float(entry["lsnr_db"])
    except (ValueError, TypeError, KeyError, RecursionError):
        point = math.nan, math.nan
    if not all(map(math.isfinite, point)):
        raise UsageError(f'{where} is not {{"time_s": seconds, "lsnr_db": dB}}', hint=_LSNR_HINT)
    return point


class _Listener:
    """Estimates the local SNR of what it hears.

    Parameters
    ----------
    model : Model
    audio : SoundFile
        Tells rate and length.
    track : Track
        Gets the estimates.
    """

    def __init__(self, model: Model, audio: soundfile.SoundFile, track: Track) -> None:
        self._stream = Stream(model, sample_rate=audio.samplerate, block_frames=OFFLINE_BLOCK_FRAMES)
        self._end_s = _duration_s(audio)
        self._track = track
        self._hops = 0

    def hear(self, x: NDArray[np.float32]) -> None:
        """Take the next samples."""
        self._stream.process(x)
        self._note()

    def finish(self) -> None:
        """Take the estimates that are still inside."""
        self._stream.flush()
        self._note()

    def _note(self) -> None:
        """Place each hop's estimate at the middle of the window it is about.

        The output of that hop begins with the same window where only the encoder looks ahead; a deep
        filter that adds its own lookahead (DeepFilterNet2) is that much later than the estimate.
        """
        c, lsnr = self._stream.model.config, self._stream.lsnr
        hops = self._hops + np.arange(len(lsnr)) + c.delay_frames - c.conv_lookahead
        middles = (hops * c.hop_size + c.fft_size / 2) / c.sample_rate
        times_s = middles - self._stream.delay_samples / self._stream.sample_rate
        heard = times_s < self._end_s  # the stream ends with hops of zeros
        self._track.add(times_s[heard], lsnr[heard])
        self._hops += len(lsnr)


def _measure(
    audio: soundfile.SoundFile,
    name: str,
    axis_s: float,
    progress: Callable[[int], None],
    listener: _Listener | None = None,
) -> Recording:
    spectrogram, level = Spectrogram(audio.frames, audio.samplerate), Track(axis_s)
    read = 0
    for x in _first_channel(audio, name):
        spectrogram.add(x)
        level.add(np.arange(read, read + len(x)) / audio.samplerate, x.astype(np.float64) ** 2)
        if listener:
            listener.hear(x)
        read += len(x)
        progress(read)
    if listener:
        listener.finish()
    channels = "mono" if audio.channels == 1 else f"channel 1 of {audio.channels}"
    caption = (
        f"{short_name(display_name(name))} ({audio.samplerate / 1000:g} kHz, {channels}, {_length(audio)})"
    )
    return Recording(caption, *spectrogram.finish(), level)


def _first_channel(audio: soundfile.SoundFile, name: str) -> Iterator[NDArray[np.float32]]:
    """Read block by block the first channel, which is never the mean of channels that cancel out."""
    read = 0
    while len(block := read_block(audio, max(1, _BLOCK // audio.channels), name)):
        x = np.ascontiguousarray(block[:, 0])
        audible = np.abs(x) < LOUDEST
        if not audible.all():
            first = int(np.argmin(audible))
            raise AudioError(
                f"{display_name(name)}: sample {read + first} is {x[first]:g}, expected audio",
                hint="the file is damaged; make it again, best as integer PCM",
            )
        read += len(x)
        yield x
    if read != audio.frames:
        raise cut_short(name)


def _duration_s(audio: soundfile.SoundFile) -> float:
    return float(audio.frames / audio.samplerate)


def _length(audio: soundfile.SoundFile) -> str:
    duration_s = _duration_s(audio)
    return f"{duration_s:.2f} s" if duration_s >= 0.01 else f"{audio.frames} sample{'s' * (audio.frames > 1)}"
