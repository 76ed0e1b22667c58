"""Mixtures of speech, noise, rooms, levels and faults; the same seed and number give the same mixture."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy import fft

import faults
from corpus import SAMPLE_RATE, active_rms, rms
from dfstream.errors import UsageError
from noises import envelope, noise_track, smooth_gains
from voices import SPEECH_RMS, Clips, speech_track

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from corpus import Clip

    Audio = NDArray[np.float32]
    Rng = np.random.Generator

#: Frames and samples of a mixture: five seconds.
FRAMES = 504
SAMPLES = FRAMES * SAMPLE_RATE // 100

#: Reflections up to here belong to the clean reference.
_EARLY = SAMPLE_RATE // 40

_LONGEST_ROOM = 36_000


@dataclasses.dataclass(frozen=True)
class Blend:
    """What share of mixtures is what.

    Attributes
    ----------
    noise_only, undisturbed : float
        Shares without speech and without noise.
    low_snr, middle_snr : float
        Shares at -6 to 8 and at 5 to 22 dB among the rest; what is left is at 20 to 40 dB.
    room, noise_room : float
        Shares of speech and of noise in a room.
    quiet : float
        Share far below the usual level, down to -70 dBFS.
    """

    noise_only: float = 0.05
    undisturbed: float = 0.12
    low_snr: float = 0.5
    middle_snr: float = 0.35
    room: float = 0.3
    noise_room: float = 0.15
    quiet: float = 0.2


class Item(NamedTuple):
    """One mixture."""

    noisy: Audio
    """[SAMPLES]."""
    clean: Audio
    """[SAMPLES], the reference at the same gain, with the early reflections of the room."""
    heard: Audio
    """[SAMPLES], as the teacher is to hear it: before its band was narrowed or parts were silenced."""
    snr_db: float
    """As drawn, before faults; infinite for undisturbed speech, minus infinite for noise alone."""


class Mixer:
    """Makes mixtures.

    Parameters
    ----------
    speech : list of Clip
    noise : list of Clip
        May be empty: then all noise is generated.
    rooms : list of ndarray[float32]
        Impulse responses; without them they are generated.
    blend : Blend
    """

    def __init__(
        self,
        speech: list[Clip],
        noise: list[Clip],
        rooms: list[Audio] | None = None,
        blend: Blend | None = None,
    ) -> None:
        self._speech = Clips(speech)
        self._noise = Clips(noise) if noise else None
        self._rooms, self._blend = rooms or [], blend or Blend()

    def item(self, seed: int, number: int) -> Item:
        """Return a mixture by number."""
        rng = np.random.default_rng([seed, number])
        blend, kind = self._blend, rng.random()
        if kind < blend.noise_only:
            speech, snr_db = np.zeros((2, SAMPLES), np.float32), -np.inf
        elif kind < blend.noise_only + blend.undisturbed:
            # what is clean already is to stay as it was recorded
            recorded = self._faded(rng, speech_track(self._speech, rng, SAMPLES))[0]
            speech, snr_db = self._placed(rng, np.stack([recorded, recorded]), 0.0, 8), np.inf
        else:
            track = self._faded(rng, speech_track(self._speech, rng, SAMPLES))
            speech, snr_db = self._placed(rng, track, blend.room, 8), self._draw_snr(rng)
        noise = np.zeros(SAMPLES, np.float32)
        if snr_db != np.inf:
            track = noise_track(rng, SAMPLES, self._noise, self._speech)[None]
            noise = self._placed(rng, track, blend.noise_room, 10)[0]
        mixed = np.stack([mix(speech[0], noise, snr_db), speech[1]])
        return Item(*self._received(rng, mixed), snr_db)

    def _draw_snr(self, rng: Rng) -> float:
        chance, blend = rng.random(), self._blend
        if chance < blend.low_snr:
            return float(rng.uniform(-6, 8))
        return float(rng.uniform(5, 22) if chance < blend.low_snr + blend.middle_snr else rng.uniform(20, 40))

    def _faded(self, rng: Rng, pair: Audio) -> Audio:
        """Let a tenth of the speakers move about, or a gain control follow them."""
        return pair * envelope(rng, pair.shape[1], 0.7, 0.5) if rng.random() < 0.1 else pair

    def _placed(self, rng: Rng, tracks: Audio, in_room: float, span_db: float) -> Audio:
        """Colour tracks, limit their band and put them in a room, in one pass over the spectrum.

        The second of two tracks is the reference: it gets the early part of the room only.
        """
        size = fft.next_fast_len(SAMPLES + _LONGEST_ROOM, real=True)
        bins = size // 2 + 1
        gains = (
            smooth_gains(rng, bins, rng.uniform(0, span_db))
            if rng.random() < 0.7
            else np.ones(bins, np.float32)
        )
        if rng.random() < 0.12:
            gains = gains * faults.random_band(rng, bins)
        spectra = fft.rfft(tracks, size) * gains
        if rng.random() < in_room:
            room = self._draw_room(rng)
            spectra[0] *= fft.rfft(room, size)
            if len(spectra) > 1:
                spectra[1] *= fft.rfft(room[: int(np.abs(room).argmax()) + _EARLY], size)
        placed: Audio = fft.irfft(spectra, size)[:, :SAMPLES].astype(np.float32)
        return placed

    def _draw_room(self, rng: Rng) -> Audio:
        """Return an impulse response that begins with its largest sample, near one."""
        if self._rooms and rng.random() < 0.6:
            room = self._rooms[int(rng.integers(len(self._rooms)))]
            room = room[max(int(np.abs(room).argmax()) - 30, 0) :][:_LONGEST_ROOM]
            return room / np.float32(np.abs(room).max())
        return generated_room(rng)

    def _received(self, rng: Rng, pair: Audio) -> tuple[Audio, Audio, Audio]:
        """Set the level and let faults happen; returns mixture, reference and what the teacher hears."""
        peak = float(np.abs(pair[0]).max()) + 1e-9
        quiet = rng.random() < self._blend.quiet
        level_db = rng.uniform(-70, -35) if quiet else -50 * rng.beta(1.1, 2.6)
        pair = pair * np.float32(10 ** (level_db / 20) / peak)
        pair[0] = faults.transmitted(rng, pair[0])
        heard = pair[0].copy()
        if rng.random() < 0.16:
            pair = faults.narrowed(rng, pair)
        if rng.random() < 0.07:
            pair = faults.silenced(rng, pair)
        if rng.random() < 0.03:
            pair[0] += np.float32(rng.normal(0, 0.01) * 10 ** (level_db / 20))
        if rng.random() < 0.4:
            pair[0] = np.round(pair[0] * 32_768) / 32_768
        return pair[0], pair[1], heard


def mix(speech: Audio, noise: Audio, snr_db: float) -> Audio:
    """Add noise to speech at an SNR: level of the active speech over that of all the noise.

    Without speech the noise keeps its share of the usual speech level.
    """
    if not np.any(noise):
        return speech
    level = active_rms(speech)
    if not level or not np.isfinite(snr_db):
        level, snr_db = SPEECH_RMS, 0.0
    return speech + noise * np.float32(level / rms(noise) * 10 ** (-snr_db / 20))


def generated_room(rng: Rng) -> Audio:
    """Return a direct sound and a tail of decaying noise."""
    decay_s = rng.uniform(0.12, 0.9)
    t = np.arange(int(min(decay_s, 0.7) * SAMPLE_RATE)) / SAMPLE_RATE
    room = rng.standard_normal(t.size) * np.exp(-6.9 * t / decay_s) * rng.uniform(0.005, 0.05)
    room[: int(rng.integers(40, 400))] = 0
    room[0] = 1
    return room.astype(np.float32)


def load_rooms(path: Path) -> list[Audio]:
    """Read impulse responses: ``flat`` holds them all, ``offset`` where each begins and the last ends.

    Raises
    ------
    UsageError
        Not such a file.
    """
    try:
        with np.load(path) as file:
            return np.split(file["flat"].astype(np.float32), file["offset"][1:-1])
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"{path}: no impulse responses ({error})") from error
