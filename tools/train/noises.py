"""Noise that nobody recorded, and recorded noise made into more of it. All tracks have an RMS of one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import soxr
from scipy import fft
from scipy.signal import lfilter

from corpus import SAMPLE_RATE, active_rms, rms

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from voices import Clips

    Audio = NDArray[np.float32]
    Rng = np.random.Generator


def unit(x: NDArray[np.floating]) -> Audio:
    """Scale to an RMS of one; silence stays."""
    level = rms(x)
    return (x / level if level > 1e-9 else x).astype(np.float32)


def smooth_gains(rng: Rng, bins: int, span_db: float, knots: int = 6) -> Audio:
    """Draw gains that vary smoothly over log frequency, within plus and minus a span."""
    octave = np.log2(np.linspace(20, SAMPLE_RATE / 2, bins))
    at = np.linspace(octave[0], octave[-1], knots)
    return (10 ** (np.interp(octave, at, rng.uniform(-span_db, span_db, knots)) / 20)).astype(np.float32)


def envelope(rng: Rng, n: int, rate_hz: float, spread: float) -> Audio:
    """Draw a positive modulation of mean one; ``spread`` is the standard deviation of its logarithm."""
    knots = max(int(n / SAMPLE_RATE * rate_hz), 1) + 3
    levels = np.exp(rng.normal(0, spread, knots))
    curve = np.interp(np.linspace(0, knots - 1, n), np.arange(knots), levels)
    gains: Audio = (curve / curve.mean()).astype(np.float32)
    return gains


def coloured(rng: Rng, n: int) -> Audio:
    """Stationary noise of a random slope and colour: fans, hiss, traffic far away."""
    bins = n // 2 + 1
    slope = np.maximum(np.arange(bins), 4) ** -rng.uniform(-0.2, 1.2)
    shape = slope * smooth_gains(rng, bins, rng.uniform(0, 15), 9)
    spectrum = shape * (rng.standard_normal(bins) + 1j * rng.standard_normal(bins))
    return unit(fft.irfft(spectrum.astype(np.complex64), n))


def gusts(rng: Rng, n: int) -> Audio:
    """Wind on a microphone: low noise that comes and goes."""
    pole = np.exp(-2 * np.pi * rng.uniform(30, 400) / SAMPLE_RATE)
    rumble = lfilter([1 - pole], [1, -pole], rng.standard_normal(n).astype(np.float32))
    return unit(rumble * envelope(rng, n, rng.uniform(0.5, 4), rng.uniform(0.5, 1.5)))


def hum(rng: Rng, n: int) -> Audio:
    """Mains hum and machines: harmonics of a fundamental that may wander."""
    wander = 1 + (rng.uniform(0, 0.03) * np.interp(np.arange(n), np.linspace(0, n, 8), rng.normal(0, 1, 8)))
    fundamental = rng.choice([50, 60, 100, 120, rng.uniform(40, 400)])
    phase = 2 * np.pi * fundamental * np.cumsum(wander) / SAMPLE_RATE
    slope = rng.uniform(0.4, 1.5)
    x = np.zeros(n)
    for k in range(1, int(rng.integers(4, 24))):
        x += rng.uniform(0, 1) * k**-slope * np.sin(k * phase + rng.uniform(0, 2 * np.pi))
    return unit(x)


def beeps(rng: Rng, n: int) -> Audio:
    """Tones that are switched on and off, and tones that glide."""
    t = np.arange(n) / SAMPLE_RATE
    x = np.zeros(n)
    for _ in range(int(rng.integers(1, 5))):
        if rng.random() < 0.6:
            pitch = np.exp(rng.uniform(np.log(150), np.log(9_000)))
            on = np.sin(2 * np.pi * rng.uniform(0.3, 6) * t) > rng.uniform(-1, 0.9)
            x += rng.uniform(0.2, 1) * on * np.sin(2 * np.pi * pitch * t)
        else:
            knots = rng.uniform(np.log(200), np.log(5_000), 8)
            pitch = np.exp(np.interp(t, np.linspace(0, t[-1], 8), knots))
            x += rng.uniform(0.2, 1) * np.sin(2 * np.pi * np.cumsum(pitch) / SAMPLE_RATE)
    return unit(x)


def notes(rng: Rng, n: int) -> Audio:
    """Something like music: plucked and held notes of a scale, with harmonics, over a beat."""
    x = np.zeros(n)
    beat = int(SAMPLE_RATE * rng.uniform(0.12, 0.5))
    scale = rng.choice([0, 2, 3, 4, 5, 7, 9, 10], 5, replace=False) + rng.integers(36, 72)
    decay = rng.uniform(1, 12)
    for start in range(0, n, beat):
        if rng.random() < 0.25:
            continue
        m = min(int(SAMPLE_RATE * rng.uniform(0.15, 1.2)), n - start)
        t = np.arange(m) / SAMPLE_RATE
        pitch = 440 * 2 ** ((rng.choice(scale) + 12 * rng.integers(0, 2) - 69) / 12)
        body = sum(k ** -rng.uniform(0.5, 2) * np.sin(2 * np.pi * k * pitch * t) for k in range(1, 7))
        x[start : start + m] += rng.uniform(0.2, 1) * body * np.exp(-decay * t) * np.minimum(t * 200, 1)
    return unit(x)


def clicks(rng: Rng, n: int) -> Audio:
    """Keys, crockery, crackling: short resonances at random times."""
    x = np.zeros(n)
    length = int(rng.integers(200, 4_000))
    t = np.arange(length) / SAMPLE_RATE
    for _ in range(int(rng.integers(1, 4))):
        ring = np.exp(-t * rng.uniform(80, 2_500)) * rng.standard_normal(length)
        tone = np.sin(2 * np.pi * rng.uniform(150, 6_000) * t)
        ring += rng.uniform(0, 1.5) * np.exp(-t * rng.uniform(50, 600)) * tone
        for at in rng.integers(0, n - length, int(rng.integers(3, 60))):
            x[at : at + length] += rng.lognormal(0, 0.7) * ring
    return unit(x)


def drops(rng: Rng, n: int) -> Audio:
    """Rain and frying: very many very short clicks, coloured."""
    impulses = (rng.random(n) < rng.uniform(20, 2_000) / SAMPLE_RATE) * rng.lognormal(0, 1, n)
    ring = np.exp(-np.arange(480) / rng.uniform(4, 120)) * rng.standard_normal(480)
    return unit(np.convolve(impulses, ring)[:n])


def babble(rng: Rng, n: int, speech: Clips) -> Audio:
    """Four to ten voices at once."""
    x = np.zeros(n, np.float32)
    for _ in range(int(rng.integers(4, 11))):
        clip = speech.draw(rng)
        voice = clip.read(int(rng.integers(0, max(clip.length - n, 1))), n)
        voice = np.roll(np.resize(voice, n), int(rng.integers(n)))
        x += voice * np.float32(rng.uniform(0.3, 1) / max(active_rms(voice), 1e-4))
    return unit(x)


def recorded(rng: Rng, n: int, noise: Clips) -> Audio:
    """A recording, at another speed or backwards now and then; short ones are repeated after a gap."""
    clip = noise.draw(rng)
    speed = float(np.exp2(rng.uniform(-0.7, 0.7))) if rng.random() < 0.5 else 1.0
    needed = int(n * speed) + 64
    x = clip.read(int(rng.integers(0, max(clip.length - needed, 1))), needed)
    if speed != 1.0:
        x = soxr.resample(x, SAMPLE_RATE * speed, SAMPLE_RATE, quality="LQ")
    if rng.random() < 0.1:
        x = x[::-1]
    if x.size < n:
        gap = np.zeros(int(rng.uniform(0, 0.5) * SAMPLE_RATE), np.float32)
        x = np.roll(np.resize(np.concatenate([x, gap]), n), int(rng.integers(n)))
    return unit(x[:n])


_GENERATED: dict[Callable[[Rng, int], Audio], float] = {
    coloured: 0.40, gusts: 0.08, hum: 0.10, beeps: 0.07, notes: 0.10, clicks: 0.15, drops: 0.10,
}  # fmt: skip


def noise_track(rng: Rng, n: int, noise: Clips | None, speech: Clips) -> Audio:
    """Draw one to three noises at once, some of them coming and going."""
    x = np.zeros(n, np.float32)
    for index in range(int(rng.choice([1, 2, 3], p=[0.5, 0.33, 0.17]))):
        chance = rng.random()
        if noise is not None and chance < 0.62:
            layer = recorded(rng, n, noise)
        elif chance > 0.92:
            layer = babble(rng, n, speech)
        else:
            make = list(_GENERATED)[int(rng.choice(len(_GENERATED), p=list(_GENERATED.values())))]
            layer = make(rng, n)
        if rng.random() < 0.25:
            layer = layer * envelope(
                rng, n, np.exp(rng.uniform(np.log(0.3), np.log(12))), rng.uniform(0.2, 1.3)
            )
        x += layer * np.float32(1.0 if index == 0 else 10 ** (rng.uniform(-12, 0) / 20))
    return unit(x)
