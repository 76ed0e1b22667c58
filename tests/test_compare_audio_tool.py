"""The comparison of recordings that the macOS workflow relies on."""

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner

import compare_audio


@pytest.fixture
def write(tmp_path):
    def make(name, audio, rate=48_000):
        soundfile.write(tmp_path / name, audio, rate, subtype="FLOAT")
        return str(tmp_path / name)

    return make


def run(*args):
    done = CliRunner().invoke(compare_audio.main, [str(arg) for arg in args])
    assert not isinstance(done.exception, Exception) or isinstance(done.exception, SystemExit)
    return done.exit_code, done.output


def test_the_ratio_of_signal_and_difference(write):
    x = np.random.default_rng(1).standard_normal(4800) / 8
    want, got = write("a.wav", x), write("b.wav", x * 1.001)
    assert run("snr", want, got, "--least-db", 59.9) == (0, f"{got}: 60.0 dB against {want}\n")
    code, output = run("snr", want, got, "--least-db", 60.1)
    assert code == 1
    assert "expected 60.1 dB" in output
    assert run("snr", want, want, "--least-db", 200)[0] == 0


def test_silence_and_nan_never_pass(write):
    x = np.random.default_rng(1).standard_normal(4800) / 8
    for other in (np.zeros(4800), np.where(np.arange(4800) == 7, np.nan, x)):
        assert run("snr", write("a.wav", x), write("b.wav", other), "--least-db", 1)[0] == 1


@pytest.mark.parametrize(("length", "rate"), [(4799, 48_000), (4800, 44_100)])
def test_other_lengths_and_rates_are_refused(write, length, rate):
    code, output = run("snr", write("a.wav", np.ones(4800) / 2), write("b.wav", np.ones(length) / 2, rate))
    assert code == 1
    assert str(rate) in output


def test_floats_keep_every_sample(tmp_path):
    x = np.random.default_rng(1).integers(-9000, 9000, 4800).astype(np.int16)
    soundfile.write(tmp_path / "a.wav", x, 16_000)
    assert run("as-float", tmp_path / "a.wav", tmp_path / "b.wav")[0] == 0
    y, rate = soundfile.read(tmp_path / "b.wav", dtype="float32")
    assert (soundfile.info(tmp_path / "b.wav").subtype, rate) == ("FLOAT", 16_000)
    assert (y == x / np.float32(32768)).all()
