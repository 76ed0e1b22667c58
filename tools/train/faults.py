"""What recording and transmission do to a mixture before anybody enhances it."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
import soundfile
from scipy import fft

from corpus import SAMPLE_RATE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Audio = NDArray[np.float32]
    Rng = np.random.Generator

#: Packet of a voice codec.
_PACKET = SAMPLE_RATE // 50

#: Upper edges of common channels, Hz: telephone, wide band, old codecs, lossy music.
_BANDS_HZ = (3_400, 4_000, 5_500, 7_000, 8_000, 11_000, 16_000)


def band_limit(bins: int, edge_hz: float) -> Audio:
    """Return gains that fall from one to zero above an edge, over 4 % of it."""
    hz = np.linspace(0, SAMPLE_RATE / 2, bins)
    return np.clip((edge_hz * 1.04 - hz) / (edge_hz * 0.04), 0, 1).astype(np.float32)


def random_band(rng: Rng, bins: int) -> Audio:
    """Return the gains of a common channel."""
    return band_limit(bins, float(rng.choice(_BANDS_HZ)))


def narrowed(rng: Rng, pair: Audio) -> Audio:
    """Take mixture and clean reference, [2, n], through the same narrow channel."""
    spectrum = fft.rfft(pair) * random_band(rng, pair.shape[1] // 2 + 1)
    narrow: Audio = fft.irfft(spectrum, pair.shape[1]).astype(np.float32)
    return narrow


def clipped(rng: Rng, x: Audio) -> Audio:
    """Overdrive: hard, or soft as an amplifier does it."""
    limit = np.float32(np.abs(x).max() * rng.uniform(0.15, 0.7) + 1e-9)
    driven: Audio = np.clip(x, -limit, limit) if rng.random() < 0.6 else limit * np.tanh(x / limit)
    return driven


def coded(rng: Rng, x: Audio) -> Audio:
    """Opus or Vorbis at a low rate, as the decoder gives it back."""
    peak = np.float32(max(np.abs(x).max(), 1e-9))
    buffer = io.BytesIO()
    subtype = "OPUS" if rng.random() < 0.7 else "VORBIS"
    soundfile.write(
        buffer, x * (0.5 / peak), SAMPLE_RATE, format="OGG", subtype=subtype,
        compression_level=float(rng.uniform(0.5, 1.0)),
    )  # fmt: skip
    buffer.seek(0)
    y, _ = soundfile.read(buffer, dtype="float32")
    return np.pad(y, (0, max(x.size - y.size, 0)))[: x.size] * (peak / np.float32(0.5))


def companded(x: Audio) -> Audio:
    """Eight bits on the curve of G.711, relative to the loudest sample."""
    peak = np.float32(max(np.abs(x).max(), 1e-9))
    log = np.sign(x) * np.log1p(255 * np.abs(x) / peak) / np.log(256)
    steps = np.round(log * 127) / 127
    expanded: Audio = (np.sign(steps) * (256 ** np.abs(steps) - 1) / 255 * peak).astype(np.float32)
    return expanded


def lost_packets(rng: Rng, x: Audio) -> Audio:
    """Lose packets, or have the one before in their place."""
    y = x.copy()
    lost = np.flatnonzero(rng.random(x.size // _PACKET) < rng.uniform(0.005, 0.05))
    repeated = rng.random() < 0.5
    for packet in lost[lost > 0]:
        at = packet * _PACKET
        y[at : at + _PACKET] = y[at - _PACKET : at] if repeated else 0.0
    return y


def silenced(rng: Rng, pair: Audio) -> Audio:
    """Put digital silence at the start or somewhere inside both."""
    start = int(rng.integers(0, pair.shape[1] // 2)) if rng.random() < 0.5 else 0
    pair = pair.copy()
    pair[:, start : start + int(rng.integers(0, SAMPLE_RATE))] = 0.0
    return pair


def transmitted(rng: Rng, x: Audio) -> Audio:
    """Let a mixture pass through what is between a microphone and us; most pass unharmed."""
    chance = rng.random()
    if chance < 0.05:
        return clipped(rng, x)
    if chance < 0.10:
        return coded(rng, x)
    if chance < 0.115:
        return companded(x)
    if chance < 0.14:
        return lost_packets(rng, x)
    return x
