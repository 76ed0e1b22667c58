"""Against arrays made once by libDF (golden/README.md), on every platform, with or without its wheel."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from dfstream.config import ModelConfig
from dfstream.dsp.erb import band_mean_power_db, erb_widths
from dfstream.dsp.stft import Analysis, Synthesis, vorbis_window
from dfstream.features import Features

GOLDEN = Path(__file__).parent.parent / "golden"
CONFIG = ModelConfig("deepfilternet3", 48_000, 960, 480, 32, 96, 5, 2, 0.99, 2, 2)

#: Of the peak. A float32 transform of this length rounds in each of about ten stages, and each library in its
#: own order. Largest seen: 7e-7, resynthesis of the full-scale square wave.
ROUNDING = 16 * np.finfo(np.float32).eps

#: Level of a band. Rounding in a loud bin is relatively large in a faint one (5e-5 dB seen between the
#: harmonics of the square wave) and float32 itself resolves 8e-6 dB at -100 dB.
LEVEL_DB = 2e-4


@pytest.fixture(params=["white_snr5", "silence_speech_silence", "square_clip"])
def case(request):
    with np.load(GOLDEN / "dsp" / f"dsp_{request.param}.npz") as file:
        golden = dict(file)
    x, _ = soundfile.read(GOLDEN / "inputs" / f"{request.param}.flac", dtype="float32")
    frames = len(golden["feat_erb"])
    spec = Analysis(CONFIG.fft_size, CONFIG.hop_size, frames).process(x[None, : frames * CONFIG.hop_size])
    return spec, golden


def assert_near(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=ROUNDING * np.abs(expected).max())


def test_window_and_widths_are_equal(case):
    _, golden = case
    assert np.array_equal(vorbis_window(CONFIG.fft_size), golden["window"])
    assert np.array_equal(erb_widths(48_000, 960, 32, 2), golden["erb_widths"])


def test_spectrum_and_resynthesis(case):
    spec, golden = case
    frames = len(golden["spec"])
    assert_near(spec[0, :frames], golden["spec"])
    assert_near(Synthesis(960, 480, frames).process(spec[:, :frames])[0], golden["resyn"])


def test_features(case):
    spec, golden = case
    levels = np.empty_like(golden["erb_db"])
    band_mean_power_db(spec, erb_widths(48_000, 960, 32, 2), levels[None])
    np.testing.assert_allclose(levels, golden["erb_db"], rtol=0, atol=LEVEL_DB)
    feat_erb, feat_spec = Features(CONFIG, spec.shape[1]).process(spec)
    np.testing.assert_allclose(feat_erb[0, 0], golden["feat_erb"], rtol=0, atol=LEVEL_DB / 40)
    assert_near(feat_spec[0, 0] + 1j * feat_spec[0, 1], golden["feat_cplx"])
