"""How blocks of several files become enhanced blocks: the seam between files and streams.

Whatever serves it, a file's result is that of a stream of its own, to float32 rounding.
"""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Any

from dfstream.offline import OFFLINE_BLOCK_FRAMES
from dfstream.stream import Stream

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from dfstream.model import Model

    Block = NDArray[np.float32]

__all__ = ["Batch", "OwnStreams"]


class Batch(abc.ABC):
    """Enhances some audio sources at a time, each known by a number of the caller's choice.

    Belongs to one thread.
    """

    #: Sources that it is best given at a time.
    width: int

    @abc.abstractmethod
    def join(self, source: int, sample_rate: int, channels: int) -> int:
        """Begin a source.

        Parameters
        ----------
        source : int
        sample_rate : int, Hz
            8 to 192 kHz.
        channels : int

        Returns
        -------
        int, samples
            By how much its output will lag its input.
        """

    @abc.abstractmethod
    def process(self, blocks: Mapping[int, Block]) -> Mapping[int, Block]:
        """Take the next block of some of the sources, float32 [n, channels], and return what is ready.

        Returns
        -------
        mapping of int to ndarray[float32], shape (k,) or (k, channels)
            For the same sources; k may be 0.
        """

    @abc.abstractmethod
    def leave(self, source: int) -> Block:
        """End a source and return its last samples; with them it is as long as its input plus the lag."""

    @abc.abstractmethod
    def abandon(self, source: int) -> None:
        """Forget a source that failed, whether or not it has joined."""


class OwnStreams(Batch):
    """One source at a time, which has a stream to itself: blocks gain from length, not from company.

    Parameters
    ----------
    model : Model
    **options
        Further arguments of `Stream`.

    Raises
    ------
    DfstreamError
        As `Stream`; an impossible option is refused here, not at the first file.
    """

    width = 1

    def __init__(self, model: Model, **options: Any) -> None:
        self._model, self._options = model, options
        self._streams: dict[int, Stream] = {}
        self._stream(model.config.sample_rate, 1)

    def _stream(self, sample_rate: int, channels: int) -> Stream:
        return Stream(
            self._model,
            sample_rate=sample_rate,
            channels=channels,
            block_frames=OFFLINE_BLOCK_FRAMES,
            **self._options,
        )

    def join(self, source: int, sample_rate: int, channels: int) -> int:
        """Begin a source; see `Batch.join`."""
        stream = self._streams[source] = self._stream(sample_rate, channels)
        return stream.delay_samples

    def process(self, blocks: Mapping[int, Block]) -> Mapping[int, Block]:
        """Take the next blocks; see `Batch.process`."""
        return {
            source: self._streams[source].process(x[:, 0] if self._streams[source].channels == 1 else x)
            for source, x in blocks.items()
        }

    def leave(self, source: int) -> Block:
        """End a source; see `Batch.leave`."""
        return self._streams.pop(source).flush()

    def abandon(self, source: int) -> None:
        """Forget a source; see `Batch.abandon`."""
        self._streams.pop(source, None)
