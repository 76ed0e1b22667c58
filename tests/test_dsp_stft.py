"""The transform pair against its float64 twin, against libDF, and against what it promises."""

import numpy as np
import pytest

import naive
from dfstream.dsp.stft import Analysis, Synthesis, vorbis_window
from dfstream.errors import UsageError

GEOMETRIES = [(960, 480), (320, 160), (512, 128), (600, 100), (960, 400)]
FRAMES = 40

#: Of the peak. A float32 transform of this length rounds in each of about ten stages, and each library in its
#: own order. Largest seen: 3e-7.
ROUNDING = 16 * np.finfo(np.float32).eps


@pytest.fixture(params=GEOMETRIES, ids=lambda sizes: f"{sizes[0]}/{sizes[1]}")
def sizes(request):
    return request.param


@pytest.fixture
def x(sizes):
    return np.random.default_rng(1).normal(0, 0.1, FRAMES * sizes[1]).astype(np.float32)


@pytest.fixture
def spec(sizes):
    """Any spectra, not those of a signal: neighbours disagree and the end bins are complex."""
    noise = np.random.default_rng(2).normal(0, 1e-3, (2, FRAMES, sizes[0] // 2 + 1))
    return (noise[0] + 1j * noise[1]).astype(np.complex64)


def analyse(x, sizes):
    return Analysis(*sizes, FRAMES).process(x[None])[0].copy()


def synthesise(spec, sizes):
    return Synthesis(*sizes, FRAMES).process(spec[None])[0].copy()


def assert_near(actual, expected):
    assert actual.dtype in (np.float32, np.complex64)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=ROUNDING * np.abs(expected).max())


def test_window_is_power_complementary():
    window = vorbis_window(960)
    np.testing.assert_allclose(window[:480] ** 2 + window[480:] ** 2, 1, atol=2e-7)  # two float32 roundings
    np.testing.assert_allclose(window, naive.window(960), atol=6e-8)  # one


def test_analysis_equals_twin(x, sizes):
    assert_near(analyse(x, sizes), naive.analysis(x, *sizes))


def test_synthesis_equals_twin(spec, sizes):
    assert_near(synthesise(spec, sizes), naive.synthesis(spec, *sizes))


def test_equals_libdf(x, sizes):
    libdf = pytest.importorskip("libdf", reason="the wheel DeepFilterLib is not installed")
    reference = libdf.DF(48_000, *sizes, 32, 2)
    assert np.array_equal(vorbis_window(sizes[0]), reference.fft_window())
    spec = reference.analysis(x[None])[0]
    assert_near(analyse(x, sizes), spec)
    assert_near(synthesise(spec, sizes), reference.synthesis(spec[None].copy())[0])


def test_synthesis_of_complex_ends_equals_libdf(spec, sizes):
    libdf = pytest.importorskip("libdf", reason="the wheel DeepFilterLib is not installed")
    assert_near(synthesise(spec, sizes), libdf.DF(48_000, *sizes, 32, 2).synthesis(spec[None].copy())[0])


@pytest.mark.parametrize("sizes", [s for s in GEOMETRIES if s[0] // s[1] % 2 == 0 and s[0] % s[1] == 0])
def test_round_trip_only_delays(x, sizes):
    delay = sizes[0] - sizes[1]
    y = synthesise(analyse(x, sizes), sizes)
    assert_near(y[delay:], x[:-delay])
    assert np.abs(y[:delay]).max() < ROUNDING


def test_impulse_comes_out_after_the_delay():
    impulse = np.zeros(FRAMES * 480, np.float32)
    impulse[1000] = 1
    assert np.argmax(synthesise(analyse(impulse, (960, 480)), (960, 480))) == 1000 + 960 - 480


def test_imaginary_parts_of_end_bins_are_ignored(spec, sizes):
    real_ends, given = spec.copy(), spec.copy()
    real_ends[:, [0, -1]] = real_ends[:, [0, -1]].real
    assert np.array_equal(synthesise(spec, sizes), synthesise(real_ends, sizes))
    assert np.array_equal(spec, given), "the caller's array was changed"


@pytest.mark.parametrize("sizes", [(961, 480), (960, 481), (960, 0), (0, 0)])
@pytest.mark.parametrize("transform", [Analysis, Synthesis])
def test_impossible_sizes_are_refused(transform, sizes):
    with pytest.raises(UsageError, match="at least two hops"):
        transform(*sizes)
