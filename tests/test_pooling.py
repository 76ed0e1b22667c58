"""Spectrograms and tracks of any length: against naive twins, in any cut."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from dfstream.pooling import MAX_COLUMNS, SILENCE_DB, Spectrogram, Track, decibel

if TYPE_CHECKING:
    from numpy.typing import NDArray


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def naive_power(x: NDArray[np.float32], size: int, hop: int, per_column: int) -> NDArray[np.float64]:
    """Mean power spectra, window after window."""
    padded = np.concatenate([np.zeros(size // 2), x.astype(np.float64), np.zeros(size + hop)])
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
    frames = [
        np.abs(np.fft.rfft(padded[i : i + size] * window) / window.sum() * 2) ** 2
        for i in range(0, len(x), hop)
    ]
    columns = [frames[i : i + per_column] for i in range(0, len(frames), per_column)]
    return np.array([np.mean(column, axis=0) for column in columns])


@pytest.mark.parametrize(
    ("length", "rate", "size", "hop", "per_column"),
    [
        (1, 48_000, 1024, 64, 1),
        (1000, 8_000, 256, 16, 1),
        (300_000, 48_000, 1024, 150, 1),
        (700_001, 16_000, 512, 256, 2),
        (20_000, 192_000, 4096, 256, 1),
    ],
)
@pytest.mark.parametrize("chunk", [3001, 1 << 30])
def test_spectrogram_is_the_naive_one(
    rng: np.random.Generator, length: int, rate: int, size: int, hop: int, per_column: int, chunk: int
) -> None:
    x = rng.standard_normal(length).astype(np.float32) * 0.1
    spectrogram = Spectrogram(length, rate)
    for start in range(0, length, chunk):
        spectrogram.add(x[start : start + chunk])
    power_db, extent = spectrogram.finish()
    expected = naive_power(x, size, hop, per_column)
    assert power_db.shape == expected.T.shape
    assert power_db.shape[1] <= MAX_COLUMNS
    np.testing.assert_allclose(10 ** (power_db / 10), expected.T, rtol=1e-3, atol=1e-3 * expected.mean())
    # frame j is about time j * hop
    width = hop * per_column / rate
    edges = (-hop / 2 / rate, len(expected) * width - hop / 2 / rate, -rate / size / 2000)
    np.testing.assert_allclose(extent, [*edges, rate / 2000 * (1 + 1 / size)], rtol=1e-9)


def test_full_scale_sine_is_0_db_where_it_belongs() -> None:
    rate, f = 48_000, 3000
    x = np.sin(2 * np.pi * f / rate * np.arange(rate)).astype(np.float32)
    spectrogram = Spectrogram(rate, rate)
    spectrogram.add(x)
    power_db, extent = spectrogram.finish()
    middle = power_db[:, power_db.shape[1] // 2]
    assert middle.max() == pytest.approx(0, abs=0.01)
    bin_khz = (extent[3] - extent[2]) / len(power_db)
    assert extent[2] + (np.argmax(middle) + 0.5) * bin_khz == pytest.approx(f / 1000, abs=bin_khz / 2)


@pytest.mark.parametrize("frames", [3_600 * 48_000, 24 * 3_600 * 192_000])
def test_columns_are_bounded_for_any_length(frames: int) -> None:
    assert Spectrogram(frames, 48_000)._sum.shape[0] <= MAX_COLUMNS
    assert len(Track(frames / 48_000).mean) <= 1001


def test_track_is_mean_least_and_largest(rng: np.random.Generator) -> None:
    track, times_s = Track(1.0), rng.uniform(-0.1, 1.1, 400)  # in no order, some outside
    values = rng.standard_normal(400)
    for part_ in np.array_split(np.arange(400), 7):
        track.add(times_s[part_], values[part_])
    step = 0.02
    for k in range(50):
        held = values[(times_s >= k * step) & (times_s < (k + 1) * step)]
        if len(held):
            assert track.mean[k] == pytest.approx(held.mean())
            assert (track.low[k], track.high[k]) == (held.min(), held.max())
        else:
            assert np.isnan(track.mean[k])
    inside = values[(times_s >= 0) & (times_s < 1)]
    assert track.overall == pytest.approx(inside.mean())


def test_silence_has_a_level() -> None:
    assert decibel(np.array([0.0, 1e-30, 1.0])).tolist() == [SILENCE_DB, SILENCE_DB, 0.0]
