"""Whole arrays: a stream fed and flushed, its delay taken off."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dfstream.stream import Stream

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import ArrayLike, NDArray

    from dfstream.model import Model

__all__ = ["OFFLINE_BLOCK_FRAMES", "enhance"]

#: Hops per call where nobody waits for the next one: a fifth of the time per hop, one second of audio.
OFFLINE_BLOCK_FRAMES = 100


def enhance(
    audio: ArrayLike, sample_rate: int = 48_000, model: Model | str | Path | None = None, **options: Any
) -> NDArray[np.float32]:
    """Enhance a recording that is in memory.

    Parameters
    ----------
    audio : array_like of floats, shape (n,) or (n, channels)
    sample_rate : int, Hz
        8 to 192 kHz.
    model : Model, str, Path or None
        As for `Model.load`.
    **options
        Further arguments of `Stream`.

    Returns
    -------
    ndarray[float32], shape (n,) or (n, channels)
        Aligned with the input, as long as it.

    Raises
    ------
    DfstreamError
        As `Stream` and `Stream.process`.
    """
    shape = np.shape(audio)
    options.setdefault("channels", shape[1] if len(shape) == 2 else 1)
    options.setdefault("block_frames", OFFLINE_BLOCK_FRAMES)
    stream = Stream(model, sample_rate=sample_rate, **options)
    joined = np.concatenate([stream.process(audio), stream.flush()])
    return joined[stream.delay_samples :]
