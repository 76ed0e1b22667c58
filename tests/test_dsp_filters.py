"""Deep filter, post-filter and attenuation limit against their float64 twins and at their ends."""

import numpy as np
import pytest

import naive
from dfstream.dsp.deepfilter import deep_filter
from dfstream.dsp.postfilter import limit_attenuation, post_filter

EPS = np.finfo(np.float32).eps


#: Stages as plain numbers, and the least of those that a filter works on.
LOW, LEAST = 1, 2


def spectra(frames, bins, seed, scale=1e-2, lanes=1):
    noise = np.random.default_rng(seed).normal(0, scale, (2, lanes, frames, bins))
    return (noise[0] + 1j * noise[1]).astype(np.complex64)


def reached(lanes, frames):
    return np.full((lanes, frames), LEAST, np.int8)


def strengths(*values):
    return np.array(values, np.float32)


@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize(("T", "taps", "D"), [(1, 5, 96), (7, 5, 96), (4, 1, 20), (3, 8, 161)])
def test_deep_filter_equals_twin(T, taps, D, lanes):
    history = spectra(T + taps, 161, seed=8, lanes=lanes)
    # more results than frames: those that came early wait
    coefs = np.random.default_rng(9).normal(0, 1, (lanes, T + 1, D, 2 * taps)).astype(np.float32)
    out = np.full((lanes, T, 161), 7 + 7j, np.complex64)
    deep_filter(history, coefs, reached(lanes, T + 1), LEAST, out)
    expected = np.array(
        [naive.deep_filter(h[: T + taps - 1], c[:T]) for h, c in zip(history, coefs, strict=True)]
    )
    # a float32 sum of 2 * taps products; largest seen: 1.3e-7 of the peak
    np.testing.assert_allclose(out[..., :D], expected, rtol=0, atol=4 * EPS * np.abs(expected).max())
    assert np.all(out[..., D:] == 7 + 7j), "bins that are not filtered were touched"


def test_deep_filter_tap_order_and_parts():
    history = spectra(9, 10, seed=10, lanes=2)
    for tap in range(5):
        coefs = np.zeros((2, 3, 10, 10), np.float32)
        coefs[..., 2 * tap] = 1
        out = np.empty((2, 3, 10), np.complex64)
        deep_filter(history, coefs, reached(2, 3), LEAST, out)
        assert np.array_equal(out, history[:, tap : 3 + tap])
        coefs[..., 2 * tap], coefs[..., 2 * tap + 1] = 0, 1
        deep_filter(history, coefs, reached(2, 3), LEAST, out)
        assert np.array_equal(out, history[:, tap : 3 + tap] * 1j)


def test_frames_of_a_lower_stage_are_left_alone():
    history, enhanced = spectra(8, 20, seed=10, lanes=2), spectra(4, 20, seed=16, lanes=2)
    coefs = np.ones((2, 4, 20, 10), np.float32)
    stages = np.array([[LEAST, LOW, LEAST, LOW], [LOW, LEAST + 1, LOW, LOW]], np.int8)
    everything, given = enhanced.copy(), enhanced.copy()
    deep_filter(history, coefs, reached(2, 4), LEAST, everything)
    deep_filter(history, coefs, stages, LEAST, enhanced)
    assert np.array_equal(enhanced, np.where((stages >= LEAST)[..., None], everything, given))
    sharper, given = enhanced.copy(), enhanced.copy()
    counts = np.array([20, 20])
    post_filter(history, 2, sharper, reached(2, 4), LEAST, strengths(0.5, 0.5), counts)
    post_filter(history, 2, enhanced, stages, LEAST, strengths(0.5, 0.5), counts)
    assert np.array_equal(enhanced, np.where((stages >= LEAST)[..., None], sharper, given))
    assert not np.array_equal(enhanced, given)


@pytest.mark.parametrize("bins", [481, 161, 257, 480, 482, 483])
@pytest.mark.parametrize("beta", [0.02, 0.05, 1.0])
def test_post_filter_equals_twin(bins, beta):
    """Two lanes: one of another strength and another number of bins."""
    history = spectra(14, bins, seed=11, lanes=2)
    noisy = history[:, 2:]
    enhanced = (noisy * np.linspace(1.2, 0.1, bins)).astype(np.complex64)
    given = enhanced.copy()
    counts = np.array([bins - bins % 4, 8])
    post_filter(history, 2, enhanced, reached(2, 12), LEAST, strengths(beta, 0.3), counts)
    # a quotient, a sine squared and another quotient: about ten roundings; largest seen: 3.9e-7
    expected = naive.post_filter(noisy[0], given[0], beta)
    np.testing.assert_allclose(enhanced[0], expected, rtol=16 * EPS, atol=0)
    other = naive.post_filter(noisy[1], given[1], 0.3)
    np.testing.assert_allclose(enhanced[1, :, :8], other[:, :8], rtol=16 * EPS, atol=0)
    assert np.array_equal(enhanced[1, :, 8:], given[1, :, 8:])
    left = bins % 4
    assert np.array_equal(enhanced[0, :, bins - left :], given[0, :, bins - left :]), (
        "the incomplete chunk was filtered"
    )
    half_gain = slice(bins // 2, bins * 3 // 4)
    assert not np.any(enhanced[0, :, half_gain] == given[0, :, half_gain]), "nothing was filtered"


def test_post_filter_of_strength_zero_changes_nothing():
    noisy, enhanced = spectra(3, 481, seed=12, lanes=2), spectra(3, 481, seed=13, lanes=2)
    enhanced[:, 1], noisy[:, 2] = 0, 0
    given = enhanced.copy()
    post_filter(noisy, 0, enhanced, reached(2, 3), LEAST, strengths(0, 0.02), np.array([480, 480]))
    assert np.array_equal(enhanced[0], given[0])
    assert not np.array_equal(enhanced[1], given[1])


def test_post_filter_ends():
    enhanced = np.array([[[0, 1, 0, 1, 1e-14, 2, 1, 0]]], np.complex64)
    noisy = np.array([[[1, 0, 0, 1, 1, 1, 1e-30, 1e-30]]], np.complex64)
    post_filter(noisy, 0, enhanced, reached(1, 1), LEAST, strengths(0.02), np.array([8]))
    # nothing stays nothing; a gain of one or more, also over silence, stays; the least gain is still finite
    np.testing.assert_allclose(enhanced[0, 0, [0, 1, 2, 3, 5, 6, 7]], [0, 1, 0, 1, 2, 1, 0], rtol=4 * EPS)
    assert 0 <= enhanced[0, 0, 4].real < 1e-34


def test_limit_equals_twin_and_ends():
    history, enhanced = spectra(6, 481, seed=14, lanes=3), spectra(4, 481, seed=15, lanes=3)
    noisy = history[:, 2:]
    mixed = enhanced.copy()
    limit_attenuation(history, 2, mixed, strengths(0.25, 0, 1))
    expected = naive.limit_attenuation(noisy[0], enhanced[0], 0.25)
    np.testing.assert_allclose(
        mixed[0], expected, rtol=0, atol=2 * EPS * np.abs(expected).max()
    )  # two roundings
    assert np.array_equal(mixed[1], enhanced[1])
    assert np.array_equal(mixed[2], noisy[2])
    limit_attenuation(np.zeros_like(history), 0, mixed, strengths(1, 1, 1))
    assert np.all(mixed == 0)
