"""Long recordings in as few numbers as a picture can show, gathered block by block in constant memory."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_Float = TypeVar("_Float", np.float32, np.float64)

__all__ = ["MAX_COLUMNS", "SILENCE_DB", "Spectrogram", "Track", "decibel"]

#: Stands for silence: far below the noise of 24 bits.
SILENCE_DB = -200.0

#: Columns of a spectrogram: about as many as a picture has pixels across.
MAX_COLUMNS = 2000

#: Longest window of a spectrogram; the next power of two below is taken.
_WINDOW_S = 0.04

#: Steps of a track: two hops, or as many steps as stay apart in a picture.
_FINEST_STEP_S, _MAX_STEPS = 0.02, 1000


class Track:
    """Mean, least and largest of a quantity in equal steps of time.

    Parameters
    ----------
    duration_s : float
        What lies outside is left out.

    Attributes
    ----------
    times_s : ndarray[float64], shape (steps,)
        Middles of the steps.
    low, high : ndarray[float64], shape (steps,)
        Least and largest value; infinite where there was none.
    """

    def __init__(self, duration_s: float) -> None:
        self._step_s = max(_FINEST_STEP_S, duration_s / _MAX_STEPS)
        steps = max(1, math.ceil(duration_s / self._step_s))
        self.times_s: NDArray[np.float64] = (np.arange(steps, dtype=np.float64) + 0.5) * self._step_s
        self._sum, self._count = np.zeros(steps), np.zeros(steps)
        self.low, self.high = np.full(steps, np.inf), np.full(steps, -np.inf)

    def add(self, times_s: NDArray[np.float64], values: NDArray[np.floating[Any]]) -> None:
        """Take values [n] at their times [n], in any order; quick where the times rise."""
        # a time written with six decimals may be a hair before the step it begins
        index = np.floor(times_s / self._step_s + 1e-6).astype(np.int64)
        inside = (index >= 0) & (index < len(self._sum))
        index, values = index[inside], values[inside]
        _pool(np.add, self._sum, index, values)
        _pool(np.add, self._count, index, np.ones(len(index)))
        _pool(np.minimum, self.low, index, values)
        _pool(np.maximum, self.high, index, values)

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean in each step, NaN where there was nothing."""
        return np.where(self._count > 0, self._sum / np.maximum(self._count, 1), np.nan)

    @property
    def overall(self) -> float:
        """Mean of all values."""
        return float(self._sum.sum() / max(self._count.sum(), 1))


class Spectrogram:
    """Mean power spectra in at most `MAX_COLUMNS` equal columns.

    Parameters
    ----------
    frames : int, samples
        Length of the audio.
    sample_rate : int, Hz
    """

    def __init__(self, frames: int, sample_rate: int) -> None:
        self._rate = sample_rate
        self._size = 1 << int(math.log2(sample_rate * _WINDOW_S))
        # short audio: windows close together, one a column; long: half overlapping, many to a column
        self._hop = min(max(frames // MAX_COLUMNS, self._size // 16), self._size // 2)
        self._frames = math.ceil(frames / self._hop)
        self._per_column = math.ceil(self._frames / MAX_COLUMNS)
        columns = math.ceil(self._frames / self._per_column)
        self._sum = np.zeros((columns, self._size // 2 + 1), np.float32)
        self._window = np.hanning(self._size + 1)[:-1].astype(np.float32)
        self._waiting = np.zeros(self._size // 2, np.float32)  # centres the first window on time 0
        self._done = 0

    def add(self, x: NDArray[np.float32]) -> None:
        """Take the next samples."""
        x = np.concatenate([self._waiting, x])
        count = min(max(0, (len(x) - self._size) // self._hop + 1), self._frames - self._done)
        self._waiting = x[count * self._hop :]
        if not count:
            return
        windows = np.lib.stride_tricks.sliding_window_view(x, self._size)[:: self._hop][:count]
        spectra = np.fft.rfft(windows * self._window, axis=1)
        columns = np.arange(self._done, self._done + count) // self._per_column
        _pool(np.add, self._sum, columns, spectra.real**2 + spectra.imag**2)
        self._done += count

    def finish(self) -> tuple[NDArray[np.float32], tuple[float, float, float, float]]:
        """End it.

        Returns
        -------
        power_db : ndarray[float32], shape (bins, columns)
            Mean power; 0 dB is a sine of full scale in the middle of a bin.
        extent : tuple of four floats
            Edges of the array: s, s, kHz, kHz.
        """
        self.add(np.zeros(self._size + self._hop, np.float32))
        counts = np.full((len(self._sum), 1), self._per_column, np.float32)
        counts[-1] = self._frames - (len(counts) - 1) * self._per_column
        full_scale = (self._window.sum() / 2) ** 2
        power_db = decibel(self._sum / (counts * full_scale)).T
        bin_khz, step_s = self._rate / self._size / 1000, self._hop / self._rate
        first, width = -step_s / 2, step_s * self._per_column
        return power_db, (first, first + width * len(counts), -bin_khz / 2, self._rate / 2000 + bin_khz / 2)


def decibel(power: NDArray[_Float]) -> NDArray[_Float]:
    """Return ``10 log10(power)``, not below the level that stands for silence."""
    least = power.dtype.type(10 ** (SILENCE_DB / 10))
    level: NDArray[_Float] = 10 * np.log10(np.maximum(power, least))
    return level


def _pool(ufunc: np.ufunc, into: NDArray[Any], index: NDArray[np.int64], values: NDArray[Any]) -> None:
    """Combine values into the rows they belong to: ``ufunc.at``, but quick where neighbours share a row."""
    if len(index):
        starts = np.flatnonzero(np.diff(index, prepend=-1))
        ufunc.at(into, index[starts], ufunc.reduceat(values, starts, axis=0))
