"""What counts as audio: the border where arrays of anybody's become samples of ours."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dfstream.errors import AudioError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["LOUDEST", "MAX_CHANNELS", "checked_chunk", "cleaned_chunk"]

MAX_CHANNELS = 64

#: Beyond this nothing is audio, and squares of spectra would leave float32.
LOUDEST = 1e6

_FLOAT32, _MOST_ENERGY = np.dtype(np.float32), LOUDEST**2


def checked_chunk(x: ArrayLike, channels: int) -> NDArray[np.float32]:
    """Return samples as engines take them.

    Parameters
    ----------
    x : array_like of floats, shape (n,) or (n, channels)

    Returns
    -------
    ndarray[float32], shape (n, channels)
        C-contiguous; a view where ``x`` is float32 and contiguous.

    Raises
    ------
    AudioError
        Another shape, or not of a floating type.
    """
    if type(x) is np.ndarray and x.dtype == _FLOAT32 and x.ndim == channels == 1:
        return np.ascontiguousarray(x).reshape(-1, 1)  # live audio; what follows would come to the same
    expected = "(n,)" if channels == 1 else f"(n, {channels})"
    try:
        samples = np.asarray(x)
    except ValueError as error:
        raise AudioError(f"audio of uneven nested sequences, expected shape {expected}") from error
    if samples.ndim == 1 and (channels == 1 or not samples.size):
        samples = samples.reshape(-1, channels)
    if samples.ndim != 2 or samples.shape[1] != channels:
        raise AudioError(
            f"audio of shape {np.shape(x)}, expected {expected}",
            hint="say how many channels there are: Stream(channels=...)",
        )
    if not np.issubdtype(samples.dtype, np.floating) and samples.size:
        raise AudioError(
            f"audio of type {samples.dtype}, expected float32 with full scale 1",
            hint="divide 16-bit samples by 32768",
        )
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinite, and is replaced as such
        return np.ascontiguousarray(samples, dtype=np.float32)


def cleaned_chunk(x: NDArray[np.float32]) -> tuple[NDArray[np.float32], int]:
    """Replace by zero what is no audio: one such sample would poison the recurrent states for ever.

    Returns
    -------
    ndarray[float32]
        ``x`` itself where all of it is audio.
    int
        How many samples were NaN, infinite or beyond 1e6 (120 dB over full scale).
    """
    # one cheap sum, false for NaN too; looked into only if it fails. vdot, unlike dot, does not warn
    if np.vdot(x, x) < _MOST_ENERGY:
        return x, 0
    audible = np.abs(x) < LOUDEST
    return np.where(audible, x, np.float32(0)), int(x.size - np.count_nonzero(audible))
