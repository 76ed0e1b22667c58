"""Deep filter, post-filter and attenuation limit against their float64 twins and at their ends."""

import numpy as np
import pytest

import naive
from dfstream.dsp.deepfilter import deep_filter
from dfstream.dsp.postfilter import limit_attenuation, post_filter

EPS = np.finfo(np.float32).eps


def spectra(frames, bins, seed, scale=1e-2):
    noise = np.random.default_rng(seed).normal(0, scale, (2, frames, bins))
    return (noise[0] + 1j * noise[1]).astype(np.complex64)


@pytest.mark.parametrize(
    ("T", "taps", "D", "first"), [(1, 5, 96, 0), (7, 5, 96, 3), (4, 1, 20, 0), (3, 8, 161, 2)]
)
def test_deep_filter_equals_twin(T, taps, D, first):
    history = spectra(first + T + taps, 161, seed=8)
    coefs = np.random.default_rng(9).normal(0, 1, (T, D, 2 * taps)).astype(np.float32)
    out = np.full((T, 161), 7 + 7j, np.complex64)
    deep_filter(history, coefs, first, out)
    expected = naive.deep_filter(history[first : first + T + taps - 1], coefs)
    # a float32 sum of 2 * taps products; largest seen: 1.3e-7 of the peak
    np.testing.assert_allclose(out[:, :D], expected, rtol=0, atol=4 * EPS * np.abs(expected).max())
    assert np.all(out[:, D:] == 7 + 7j), "bins that are not filtered were touched"


def test_deep_filter_tap_order_and_parts():
    history = spectra(9, 10, seed=10)
    for tap in range(5):
        coefs = np.zeros((3, 10, 10), np.float32)
        coefs[:, :, 2 * tap] = 1
        out = np.empty((3, 10), np.complex64)
        deep_filter(history, coefs, 1, out)
        assert np.array_equal(out, history[1 + tap : 4 + tap])
        coefs[:, :, 2 * tap], coefs[:, :, 2 * tap + 1] = 0, 1
        deep_filter(history, coefs, 1, out)
        assert np.array_equal(out, history[1 + tap : 4 + tap] * 1j)


@pytest.mark.parametrize("bins", [481, 161, 257, 480, 482, 483])
@pytest.mark.parametrize("beta", [0.02, 0.05, 1.0])
def test_post_filter_equals_twin(bins, beta):
    noisy = spectra(12, bins, seed=11)
    enhanced = (noisy * np.linspace(1.2, 0.1, bins)).astype(np.complex64)
    given = enhanced.copy()
    post_filter(noisy, enhanced, beta, bins - bins % 4)
    expected = naive.post_filter(noisy, given, beta)
    # a quotient, a sine squared and another quotient: about ten roundings; largest seen: 3.9e-7
    np.testing.assert_allclose(enhanced, expected, rtol=16 * EPS, atol=0)
    left = bins % 4
    assert np.array_equal(enhanced[:, bins - left :], given[:, bins - left :]), (
        "the incomplete chunk was filtered"
    )
    half_gain = slice(bins // 2, bins * 3 // 4)
    assert not np.any(enhanced[:, half_gain] == given[:, half_gain]), "nothing was filtered"


def test_post_filter_of_strength_zero_changes_nothing():
    noisy, enhanced = spectra(3, 481, seed=12), spectra(3, 481, seed=13)
    enhanced[1], noisy[2] = 0, 0
    given = enhanced.copy()
    post_filter(noisy, enhanced, 0.0, 480)
    assert np.array_equal(enhanced, given)


def test_post_filter_ends():
    beta = np.float32(0.02)
    enhanced = np.array([[0, 1, 0, 1, 1e-14, 2, 1, 0]], np.complex64)
    noisy = np.array([[1, 0, 0, 1, 1, 1, 1e-30, 1e-30]], np.complex64)
    post_filter(noisy, enhanced, beta, 8)
    # nothing stays nothing; a gain of one or more, also over silence, stays; the least gain is still finite
    np.testing.assert_allclose(enhanced[0, [0, 1, 2, 3, 5, 6, 7]], [0, 1, 0, 1, 2, 1, 0], rtol=4 * EPS)
    assert 0 <= enhanced[0, 4].real < 1e-34


def test_limit_equals_twin_and_ends():
    noisy, enhanced = spectra(4, 481, seed=14), spectra(4, 481, seed=15)
    mixed = enhanced.copy()
    limit_attenuation(noisy, mixed, 0.25)
    expected = naive.limit_attenuation(noisy, enhanced, 0.25)
    np.testing.assert_allclose(
        mixed, expected, rtol=0, atol=2 * EPS * np.abs(expected).max()
    )  # two roundings
    kept, bypassed = enhanced.copy(), enhanced.copy()
    limit_attenuation(noisy, kept, 0.0)
    limit_attenuation(noisy, bypassed, 1.0)
    assert np.array_equal(kept, enhanced)
    assert np.array_equal(bypassed, noisy)
    silent = np.zeros_like(enhanced)
    limit_attenuation(silent, mixed, 1.0)
    assert np.all(mixed == 0)
