"""Variety of voices: other throats, other tempi, other rooms of the mouth than those that were recorded.

Everything is done to a recording and its clean twin alike: arrays are float32 [2, n], as recorded and clean.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import soxr

from corpus import SAMPLE_RATE, active_rms
from dfstream.dsp._jit import float32, float64, jit, reads, writes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from corpus import Clip

    Audio = NDArray[np.float32]
    Rng = np.random.Generator

#: RMS of a phrase while it is spoken, before anything else is decided about its level.
SPEECH_RMS = 0.1

_FRAME, _SEARCH, _SEARCH_STEP = 1_440, 360, 4


@dataclasses.dataclass(frozen=True)
class Voice:
    """How a recorded voice is changed.

    Attributes
    ----------
    throat : float
        Factor of all frequencies, pitch and formants together: below 1 a longer throat.
    tempo : float
        Factor of the speed of speech.
    """

    throat: float = 1.0
    tempo: float = 1.0

    @classmethod
    def draw(cls, rng: Rng) -> Voice:
        """Draw a voice; about a third stays as it was recorded."""
        throat = float(np.exp2(rng.uniform(-0.42, 0.42))) if rng.random() < 0.5 else 1.0
        tempo = float(np.exp2(rng.uniform(-0.3, 0.4))) if rng.random() < 0.35 else 1.0
        return cls(throat, tempo)

    def samples_needed(self, n: int) -> int:
        """Return how many recorded samples become n of this voice, and some more."""
        return int(n * self.tempo) + 2 * _FRAME

    def __call__(self, pair: Audio) -> Audio:
        """Return a recording [2, n] in this voice."""
        if self.throat == 1.0 and self.tempo == 1.0:
            return pair
        # played faster by the throat's factor, it has to last as much longer to keep the tempo
        stretch = self.tempo / self.throat
        if not 0.97 < stretch < 1.03:
            pair = stretched(pair, stretch)
        if self.throat != 1.0:
            pair = soxr.resample(pair.T, SAMPLE_RATE * self.throat, SAMPLE_RATE, quality="LQ").T
        return np.ascontiguousarray(pair, np.float32)


def stretched(pair: Audio, speed: float) -> Audio:
    """Change the duration, not the pitch, by waveform-similarity overlap-add (Verhelst and Roelands, 1993).

    The positions are found in the clean twin and used for both.

    Parameters
    ----------
    pair : ndarray[float32], shape (2, n)
    speed : float
        Factor of the speed.

    Returns
    -------
    ndarray[float32], shape (2, about n / speed)
    """
    hop = _FRAME // 2
    frames = int((pair.shape[1] - _FRAME - _SEARCH - hop) / (hop * speed))
    if frames < 2:
        return pair
    ramp = np.sin(np.pi * (np.arange(_FRAME) + 0.5) / _FRAME).astype(np.float32) ** 2
    out = np.zeros((2, (frames + 1) * hop), np.float32)
    _overlap_add(np.ascontiguousarray(pair), speed, ramp, out)
    return out


def speech_track(clips: Clips, rng: Rng, n: int) -> Audio:
    """Return phrases of random voices with pauses between them, [2, n]: as recorded, and clean."""
    track = np.zeros((2, n), np.float32)
    at = int(rng.integers(0, SAMPLE_RATE)) if rng.random() < 0.5 else 0
    while at < n:
        phrase = _phrase(clips.draw(rng), rng, n - at)
        track[:, at : at + phrase.shape[1]] = phrase
        pause_s = rng.exponential(0.4) if rng.random() < 0.6 else 0.0
        at += phrase.shape[1] + int(pause_s * SAMPLE_RATE) + 1
    return track


class Clips:
    """Clips drawn so that long ones come more often, but not in full proportion."""

    def __init__(self, clips: list[Clip]) -> None:
        self._clips = clips
        weights = np.array([clip.length for clip in clips], np.float64) ** 0.7
        self._chances = np.cumsum(weights / weights.sum())

    def __len__(self) -> int:
        return len(self._clips)

    def draw(self, rng: Rng) -> Clip:
        """Draw one."""
        return self._clips[min(int(np.searchsorted(self._chances, rng.random())), len(self._clips) - 1)]


def _phrase(clip: Clip, rng: Rng, longest: int) -> Audio:
    voice = Voice.draw(rng)
    start = int(rng.integers(0, max(clip.length - SAMPLE_RATE, 1))) if rng.random() < 0.6 else 0
    needed = voice.samples_needed(longest)
    pair = voice(np.stack([clip.read(start, needed), clip.read_clean(start, needed)]))[:, :longest]
    if rng.random() < 0.4:
        pair = np.stack([pair[1], pair[1]])  # the cleaned recording is a recording as well
    level = active_rms(pair[1])
    if level < 1e-5:
        return np.zeros_like(pair)
    return pair * np.float32(SPEECH_RMS / level * 10 ** (rng.uniform(-4, 4) / 20))


@jit(reads(float32, 2), float64, reads(float32, 1), writes(float32, 2))
def _overlap_add(pair: Audio, speed: float, ramp: Audio, out: Audio) -> None:
    """Add windowed frames taken about ``speed`` hops apart, each where it best continues the one before."""
    length = ramp.size
    hop = length // 2
    lead = pair[1]
    taken = 0
    for frame in range(out.shape[1] // hop - 1):
        nominal = int(frame * hop * speed)
        best = nominal
        if frame > 0:
            wanted, highest = taken + hop, np.float32(-1e30)
            for start in range(max(nominal - _SEARCH, 0), nominal + _SEARCH, _SEARCH_STEP):
                if start + length > pair.shape[1]:
                    break
                likeness = np.float32(0)
                for i in range(0, length, _SEARCH_STEP):
                    likeness += lead[start + i] * lead[wanted + i]
                if likeness > highest:
                    best, highest = start, likeness
        taken = best
        for row in range(2):
            for i in range(length):
                out[row, frame * hop + i] += ramp[i] * pair[row, taken + i]
