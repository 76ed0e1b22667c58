"""ERB bands against the table of the published models, the float64 twin and libDF."""

import numpy as np
import pytest

import naive
from dfstream.dsp.erb import apply_band_gains, band_mean_power_db, erb_widths
from dfstream.errors import ModelError

#: Sample rate, FFT size, bands, fewest bins.
GEOMETRIES = [
    (48_000, 960, 32, 2),
    (48_000, 960, 32, 1),
    (48_000, 960, 24, 3),
    (48_000, 512, 32, 2),
    (48_000, 2048, 64, 2),
    (44_100, 882, 32, 2),
    (16_000, 320, 24, 2),
    (16_000, 320, 32, 2),
    (8_000, 160, 16, 2),
    (11_025, 256, 20, 2),
    (48_000, 960, 1, 2),
]


@pytest.fixture(params=GEOMETRIES, ids=str)
def geometry(request):
    return request.param


def spectrum(bins, frames=20, seed=4):
    noise = np.random.default_rng(seed).normal(0, 1e-3, (2, frames, bins))
    return (noise[0] + 1j * noise[1]).astype(np.complex64)


def measured_levels(spec, widths):
    """Levels of spectra [T, bins], taken as T / 2 frames of two lanes."""
    lanes = spec.reshape(2, -1, spec.shape[1])
    levels = np.empty((*lanes.shape[:2], widths.size), np.float32)
    band_mean_power_db(lanes, widths, levels)
    return levels.reshape(len(spec), -1)


def test_widths_of_the_published_models():
    rest = [5, 5, 7, 7, 8, 10, 12, 13, 15, 18, 20, 24, 28, 31, 37, 42, 50, 56, 67]
    assert erb_widths(48_000, 960, 32, 2).tolist() == [2] * 13 + rest


def test_widths_cover_all_bins(geometry):
    _, fft_size, nb_erb, least = geometry
    widths = erb_widths(*geometry)
    assert widths.dtype == np.intp
    assert widths.shape == (nb_erb,)
    assert widths.sum() == fft_size // 2 + 1
    assert widths.min() >= least


def test_widths_equal_libdf(geometry):
    libdf = pytest.importorskip("libdf", reason="the wheel DeepFilterLib is not installed")
    sample_rate, fft_size, nb_erb, least = geometry
    reference = libdf.DF(sample_rate, fft_size, fft_size // 2, nb_erb, least)
    assert np.array_equal(erb_widths(*geometry), reference.erb_widths())


@pytest.mark.parametrize(
    "geometry", [(48_000, 960, 32, 16), (16_000, 320, 170, 1), (48_000, 64, 35, 1)], ids=str
)
def test_impossible_bands_are_refused(geometry):
    with pytest.raises(ModelError, match="do not fit"):
        erb_widths(*geometry)


def test_levels_equal_twin(geometry):
    widths = erb_widths(*geometry)
    spec = spectrum(widths.sum())
    spec[3], spec[4] = 0, 1e-9  # silence, and a level next to the floor
    levels = measured_levels(spec, widths)
    # a serial float32 sum rounds at every bin, and float32 resolves 8e-6 at -100 dB; largest seen: 6.3e-6
    np.testing.assert_allclose(levels, naive.band_mean_power_db(spec, widths), rtol=0, atol=5e-5)
    assert np.all(levels[3] == -100)


def test_levels_equal_libdf(geometry):
    libdf = pytest.importorskip("libdf", reason="the wheel DeepFilterLib is not installed")
    widths = erb_widths(*geometry)
    spec = spectrum(widths.sum())
    levels = measured_levels(spec, widths)
    expected = libdf.erb(spec[None], widths.astype(np.uintp))[0]
    # the same sums in the same order: equal where both use one log10f, one unit at -60 dB (4e-6) elsewhere
    np.testing.assert_allclose(levels, expected, rtol=0, atol=8e-6)


def test_gains_equal_twin(geometry):
    widths = erb_widths(*geometry)
    spec = spectrum(widths.sum()).reshape(2, 10, -1)
    gains = np.random.default_rng(5).random((2, 10, widths.size), np.float32)
    gains[0, 0], gains[0, 1] = 0, 1
    out = np.empty_like(spec)
    apply_band_gains(spec, 0, gains, widths, out)
    expected = np.array([naive.apply_band_gains(*lane, widths) for lane in zip(spec, gains, strict=True)])
    np.testing.assert_allclose(out, expected, rtol=2e-7, atol=0)  # one rounding
    assert np.all(out[0, 0] == 0)
    assert np.array_equal(out[0, 1], spec[0, 1])
    later = np.empty_like(spec[:, :7])
    apply_band_gains(spec, 3, gains, widths, later)
    expected = [naive.apply_band_gains(s[3:], g[:7], widths) for s, g in zip(spec, gains, strict=True)]
    np.testing.assert_allclose(later, expected, rtol=2e-7, atol=0)
    apply_band_gains(spec, 0, gains, widths, spec)
    assert np.array_equal(spec, out), "in place"
