"""The two normalisations against their float64 twins and libDF, and through digital silence."""

import numpy as np
import pytest

import naive
from dfstream.dsp.norm import initial_erb_norm, initial_unit_norm, mean_norm, unit_norm

FRAMES = 1000
ALPHA = 0.99
FIRST = np.zeros(1, np.intp)


@pytest.fixture
def levels():
    return np.random.default_rng(6).normal(-70, 15, (FRAMES, 32)).astype(np.float32)


@pytest.fixture
def spec():
    """Spectra wider than the normalised part, fading from loud to faint over 200 dB."""
    noise = np.random.default_rng(7).normal(0, 1, (2, FRAMES, 120))
    return ((noise[0] + 1j * noise[1]) * np.logspace(0, -10, FRAMES)[:, None]).astype(np.complex64)


def run_mean_norm(levels):
    out = np.empty_like(levels)
    mean_norm(levels[None], FIRST, ALPHA, initial_erb_norm(levels.shape[1])[None], out[None])
    return out


def run_unit_norm(spec, state):
    out = np.empty((2, len(spec), state.size), np.float32)
    unit_norm(spec[None], FIRST, ALPHA, state[None], out[None])
    return out[0] + 1j * out[1]


def test_initial_means():
    assert initial_erb_norm(32)[[0, -1]].tolist() == [-60, -90]
    np.testing.assert_allclose(initial_unit_norm(96)[[0, -1]], [1e-3, 1e-4], rtol=1e-6)
    np.testing.assert_allclose(np.diff(initial_unit_norm(96)), -9e-4 / 95, rtol=1e-4)  # float32 differences
    assert initial_erb_norm(1).tolist() == [-60], "a single band must not divide by zero"


@pytest.mark.parametrize("count", [2, 64, 96])
def test_initial_unit_norm_equals_libdf(count):
    libdf = pytest.importorskip("libdf", reason="the wheel DeepFilterLib is not installed")
    assert np.array_equal(initial_unit_norm(count), libdf.unit_norm_init(count).ravel())


def test_mean_norm_equals_twin(levels):
    # a mean of -70 dB resolves 8e-6 dB; rounding accumulates over 1 / (1 - alpha) frames, then / 40
    np.testing.assert_allclose(run_mean_norm(levels), naive.mean_norm(levels, ALPHA), rtol=0, atol=5e-6)


def test_mean_norm_equals_libdf(levels):
    libdf = pytest.importorskip("libdf", reason="the wheel DeepFilterLib is not installed")
    # nothing but additions and products in the same order: equal
    assert np.array_equal(run_mean_norm(levels), libdf.erb_norm(levels[None].copy(), ALPHA)[0])


def test_unit_norm_equals_twin(spec):
    out = run_unit_norm(spec, initial_unit_norm(96))
    # a frame rounds the mean by up to 1e-7 of itself, 1 / (1 - alpha) frames add up and the root halves it;
    # largest seen: 5.2e-6
    np.testing.assert_allclose(out, naive.unit_norm(spec[:, :96], ALPHA), rtol=1e-5, atol=0)


def test_unit_norm_equals_libdf(spec):
    libdf = pytest.importorskip("libdf", reason="the wheel DeepFilterLib is not installed")
    expected = libdf.unit_norm(spec[None, :, :96].copy(), ALPHA)[0]
    # equal where both use one hypotf; a last digit of |X| otherwise
    np.testing.assert_allclose(run_unit_norm(spec, initial_unit_norm(96)), expected, rtol=5e-7, atol=0)


def test_unit_norm_survives_minutes_of_digital_silence():
    state = initial_unit_norm(96)
    silence = np.zeros((FRAMES, 96), np.complex64)
    for _ in range(18):  # 3 minutes of 10 ms hops
        assert np.all(run_unit_norm(silence, state) == 0)
    assert np.all(state == np.float32(1e-20))
    # without the floor the means would be denormal or zero by now
    assert initial_unit_norm(96).max() * ALPHA**18_000 < np.finfo(np.float32).tiny
    sound = np.full((1, 96), 1e-3, np.complex64)
    np.testing.assert_allclose(run_unit_norm(sound, state), 1e-3 / np.sqrt(1e-5), rtol=1e-6)


def test_floor_changes_nothing_within_half_a_minute():
    libdf = pytest.importorskip("libdf", reason="the wheel DeepFilterLib is not installed")
    spec = np.zeros((3001, 96), np.complex64)
    spec[3000] = 1e-15  # faint enough that the decayed mean (8e-17 and less) still matters
    expected = libdf.unit_norm(spec[None].copy(), ALPHA)[0]
    np.testing.assert_allclose(run_unit_norm(spec, initial_unit_norm(96)), expected, rtol=5e-7, atol=0)


def test_silent_levels_stay_finite():
    state = initial_erb_norm(32)
    silence, out = np.full((FRAMES, 32), -100, np.float32), np.empty((FRAMES, 32), np.float32)
    for _ in range(18):
        mean_norm(silence[None], FIRST, ALPHA, state[None], out[None])
    assert np.all(np.isfinite(out))
    np.testing.assert_allclose(state, -100, atol=1e-3)  # the mean stalls where 1 % of the step rounds away
