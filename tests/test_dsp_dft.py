"""The transform as matrix products, against numpy's in float64."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from dfstream.dsp.dft import Transform, forward, inverse

SIZES = [2, 6, 14, 30, 48, 320, 512, 600, 768, 960, 1024, 1920]

#: Relative to the root mean square of the result. Forward, float64 is rounded once. Back, two sums of up to
#: 2 sqrt(N) float32 products each, whose rounding errors add like a random walk; largest seen: 2e-7.
ROUNDED_ONCE = 0.5 * np.finfo(np.float32).eps
ROUNDING = 4 * np.finfo(np.float32).eps


@njit
def run_forward(first, turn, second, place, sign, frame, samples, halves, bins, spec):
    forward(first, turn, second, place, sign, frame, samples, halves, bins, spec)


@njit
def run_inverse(last, turn, back, source, sign, frame, samples, halves, bins, spec):
    inverse(last, turn, back, source, sign, frame, samples, halves, bins, spec)


def transformed(x):
    """Return the spectrum of real samples."""
    t = Transform.of_size(len(x))
    scratch, spec = t.scratch(np.float64), np.empty(len(x) // 2 + 1, np.complex64)
    scratch[0][:] = x
    run_forward(t.first, t.turn, t.second, t.place, t.sign, *scratch, spec)
    return spec


def transformed_back(spec):
    """Return the samples of a spectrum, not scaled."""
    t = Transform.of_size(2 * (len(spec) - 1))
    scratch = t.scratch(np.float32)
    run_inverse(t.last, t.turn, t.back, t.source, t.source_sign, *scratch, spec)
    return scratch[0]


def error(got, want):
    return np.sqrt(np.mean(np.abs(got - want) ** 2) / np.mean(np.abs(want) ** 2))


def noise(size, seed=0):
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


def noisy_spectrum(size, seed=0):
    return (noise(size // 2 + 1, seed) + 1j * noise(size // 2 + 1, seed + 1)).astype(np.complex64)


@pytest.mark.parametrize("size", SIZES)
def test_is_the_transform_of_numpy(size):
    x = noise(size)
    assert error(transformed(x), np.fft.rfft(x.astype(np.float64))) < ROUNDED_ONCE


@pytest.mark.parametrize("size", SIZES)
def test_is_the_inverse_of_numpy_but_for_the_length(size):
    spec = noisy_spectrum(size)
    want = np.fft.irfft(spec.astype(np.complex128), size) * size
    assert error(transformed_back(spec), want) < ROUNDING


@pytest.mark.parametrize("size", [14, 320, 960])
def test_every_single_bin(size):
    """Permutations and mirror images are right one by one: noise would average a few wrong bins away."""
    n = np.arange(size)
    for k in range(size // 2 + 1):
        x = np.cos(2 * np.pi * k * n / size + 0.3).astype(np.float32)
        want = np.fft.rfft(x.astype(np.float64))
        assert np.abs(transformed(x) - want).max() < ROUNDED_ONCE * size
        one = np.zeros(size // 2 + 1, np.complex64)
        one[k] = 0.5 - 0.7j
        back = np.fft.irfft(one.astype(np.complex128), size) * size
        assert np.abs(transformed_back(one) - back).max() < 4 * ROUNDING


def test_a_loud_bin_leaks_nothing_into_quiet_ones():
    """The network hears the logarithm of each band: float32 sums would leave -135 dB of a step everywhere."""
    found = np.abs(transformed(np.ones(960, np.float32)))
    assert found[0] == 960
    assert found[1:].max() < 1e-10


def test_the_ends_of_a_spectrum_count_as_real():
    spec = noisy_spectrum(960)
    real = spec.copy()
    real[[0, -1]] = spec[[0, -1]].real
    assert np.array_equal(transformed_back(spec), transformed_back(real))


@settings(deadline=None, max_examples=25)
@given(st.sampled_from([30, 320, 960]), st.integers(0, 2**32 - 1), st.floats(-120, 0))
def test_there_and_back(size, seed, level_db):
    x = noise(size, seed) * np.float32(10 ** (level_db / 20))
    assert error(transformed_back(transformed(x)) / np.float32(size), x) < 2 * ROUNDING
