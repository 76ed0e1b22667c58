"""Audio of any rate around an engine of one rate: soxr's streaming resampler at both ends."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from dfstream.errors import AudioError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["RATES_HZ", "RateConverter", "check_rate", "lead_in", "longest_wait"]

#: Sample rates a stream takes.
RATES_HZ = (8_000, 192_000)

#: Step in which `longest_wait` feeds its trials.
_TRIAL_CHUNK = 16

#: What they may miss, in samples: up to a step each, and the worst case creeps up afterwards, by 20
#: samples at most in minutes at any rate tried.
_TRIAL_MARGIN = 48


def check_rate(sample_rate: int) -> None:
    """Refuse rates that are no audio of ours.

    Raises
    ------
    AudioError
        Outside 8 to 192 kHz, or not a whole number.
    """
    low, high = RATES_HZ
    if not isinstance(sample_rate, (int, np.integer)) or not low <= sample_rate <= high:
        raise AudioError(f"sample rate {sample_rate} Hz, expected a whole number from {low} to {high} Hz")


class RateConverter:
    """Convert a stream from one rate to another; the identity where they are equal.

    The output does not depend on how the input is cut, bit for bit, and is aligned with it: sample k
    stands for time k / rate. soxr keeps back what it cannot compute yet.

    Parameters
    ----------
    rate_in, rate_out : int, Hz
    channels : int
    """

    def __init__(self, rate_in: int, rate_out: int, channels: int) -> None:
        self._rates = rate_in, rate_out
        self._channels = channels
        self.reset()

    def reset(self) -> None:
        """Forget the past."""
        self._soxr: Any = None
        if self._rates[0] != self._rates[1]:
            import soxr

            self._soxr = soxr.ResampleStream(*self._rates, self._channels, dtype="float32", quality="HQ")

    def process(self, x: NDArray[np.float32], last: bool = False) -> NDArray[np.float32]:
        """Return what becomes ready.

        Parameters
        ----------
        x : ndarray[float32], shape (n, channels)
        last : bool
            Whether this is the end: everything comes out.

        Returns
        -------
        ndarray[float32], shape (k, channels)
        """
        if self._soxr is None:
            return x
        y: NDArray[np.float32] = self._soxr.resample_chunk(x, last=last)
        return y.reshape(-1, self._channels)


def lead_in(sample_rate: int, engine_rate: int, delay: int, hop_size: int) -> int:
    """Return how many zeros to put in front of the engine so that its delay is whole samples outside.

    Parameters
    ----------
    sample_rate, engine_rate : int, Hz
    delay : int, samples at ``engine_rate``
    hop_size : int, samples at ``engine_rate``

    Returns
    -------
    int, samples at ``engine_rate``
        At most one hop. 0 also where not even that makes it whole: such rates (44 101 Hz) have their
        delay rounded to the nearest sample.
    """
    step = engine_rate // math.gcd(sample_rate, engine_rate)
    extra = -delay % step
    return extra if extra <= hop_size else 0


def longest_wait(sample_rate: int, engine_rate: int, block: int) -> int:
    """Return by how many samples a stream's output may fall behind the number it was given.

    The sum of three worst cases: what the converter in front keeps back, what waits for a whole block,
    what the converter behind keeps back. They rarely coincide, and where they do may be hours away:
    the sum holds for ever. How the input is cut does not matter, soxr goes by the number of samples.

    Parameters
    ----------
    sample_rate, engine_rate : int, Hz
    block : int, samples at ``engine_rate``

    Returns
    -------
    int, samples at ``sample_rate``
    """
    if sample_rate == engine_rate:
        return block - 1
    ratio = sample_rate / engine_rate
    kept = _longest_kept(sample_rate, engine_rate) + _longest_kept(engine_rate, sample_rate) * ratio
    return math.ceil(kept + (block - 1) * ratio) + _TRIAL_MARGIN


def _longest_kept(rate_in: int, rate_out: int) -> float:
    """Return how many input samples a converter is behind at worst, found by trial on two seconds."""
    converter, chunk = RateConverter(rate_in, rate_out, 1), np.zeros((_TRIAL_CHUNK, 1), np.float32)
    calls = np.arange(1, 2 * rate_in // _TRIAL_CHUNK)
    got = np.cumsum([len(converter.process(chunk)) for _ in calls])
    return float(np.max(calls * _TRIAL_CHUNK - got * (rate_in / rate_out)))
