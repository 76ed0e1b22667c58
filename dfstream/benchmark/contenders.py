"""Callables of this installation whose calls can be timed: streams, pools of streams, whole files."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

import dfstream
from dfstream.benchmark.timing import time_stretch
from dfstream.checking import speech_clip
from dfstream.offline import enhance
from dfstream.stream import Stream

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from dfstream.benchmark.configurations import BackendSpec, Configuration
    from dfstream.benchmark.timing import Stretch
    from dfstream.model import Model

__all__ = ["Caller", "file_caller", "has_pools", "pool_caller", "repeated_speech", "stream_caller"]

#: Hops that are run before those that are timed, in every stretch: the others have had the caches.
_WARM_UP_HOPS = 10

#: Timed calls of a stretch at least, however many hops each one takes.
_FEWEST_CALLS = 5


@dataclasses.dataclass(frozen=True)
class Caller:
    """A contender of this process; see `dfstream.benchmark.timing.Contender`.

    Attributes
    ----------
    name : str
    call : callable
    chunks : sequence
        What it is called with, one after the other, in a stretch.
    warm_up : int
        As of `time_stretch`.
    interval_s : float, seconds
        Audio of a call.
    """

    name: str
    call: Callable[[Any], object]
    chunks: Sequence[Any]
    warm_up: int
    interval_s: float

    def stretch(self, paced: bool) -> Stretch:
        """Time one stretch of calls."""
        return time_stretch(self.call, self.chunks, self.warm_up, self.interval_s if paced else None)


def repeated_speech(samples: int) -> NDArray[np.float32]:
    """Return speech in noise, the packaged clip over and over, float32 [samples]."""
    return np.resize(speech_clip(), samples)


def stream_caller(model: Model, configuration: Configuration, seconds: float) -> Caller:
    """Return a stream that takes so many seconds of audio in a stretch, and what warms it up."""
    c, block = model.config, configuration.block
    stream = Stream(
        model,
        mode=configuration.mode,
        backend=configuration.backend.make(),
        sample_rate=c.sample_rate,
        block_frames=block,
    )
    size = block * c.hop_size
    chunks, warm_up = _chunks(size, seconds * c.sample_rate, -(-_WARM_UP_HOPS // block))
    return Caller(configuration.name, stream.process, chunks, warm_up, size / c.sample_rate)


def has_pools() -> bool:
    """Whether this version advances many streams in one call."""
    return hasattr(dfstream, "StreamPool")


def pool_caller(model: Model, backend: BackendSpec, streams: int, seconds: float) -> Caller:
    """Return a pool of live streams, full, that takes one hop of each a call."""
    c = model.config
    pool_class: Any = getattr(dfstream, "StreamPool", None)
    pool = pool_class(model, capacity=streams, backend=backend.make())
    for i in range(streams):
        pool.join(i)
    chunks, warm_up = _chunks(c.hop_size, seconds * c.sample_rate, _WARM_UP_HOPS)
    # each stream somewhere else in the clip, as callers of different rooms are
    calls = [{i: chunks[(t + 7 * i) % len(chunks)] for i in range(streams)} for t in range(len(chunks))]
    name = f"{backend}, {streams} stream{'s' if streams > 1 else ''}"
    return Caller(name, pool.process, calls, warm_up, c.hop_size / c.sample_rate)


def file_caller(model: Model, backend: BackendSpec, seconds: float) -> Caller:
    """Return `dfstream.enhance` on a recording of so many seconds."""
    rate = model.config.sample_rate
    audio, made = repeated_speech(round(seconds * rate)), backend.make()

    def call(x: NDArray[np.float32]) -> object:
        return enhance(x, rate, model, backend=made)

    return Caller(str(backend), call, [audio], 0, seconds)


def _chunks(size: int, samples: float, warm_up: int) -> tuple[list[NDArray[np.float32]], int]:
    """Cut speech into the chunks of a stretch."""
    timed = max(_FEWEST_CALLS, round(samples / size))
    audio = repeated_speech((warm_up + timed) * size)
    return [*audio.reshape(-1, size)], warm_up
