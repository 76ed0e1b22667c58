"""tools/precision.py: its figures, which files it takes, and what it says when something is missing."""

import json
import sys
import types

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner

import precision
from dfstream.errors import UsageError

RATE = 48_000


@pytest.fixture
def packages(monkeypatch):
    """Stand-ins for pesq and pystoi, which need a compiler to install."""

    class NoUtterancesError(Exception):
        pass

    def pesq(rate, clean, estimate, band):
        assert (rate, band, clean.shape) == (16_000, "wb", estimate.shape)
        if not estimate.any():
            raise NoUtterancesError
        return 1 + 3 * float(np.corrcoef(clean, estimate)[0, 1] > 0.5)

    scores = types.SimpleNamespace(pesq=pesq, NoUtterancesError=NoUtterancesError)
    monkeypatch.setitem(sys.modules, "pesq", scores)
    monkeypatch.setitem(sys.modules, "pystoi", types.SimpleNamespace(stoi=lambda *_: 0.5))


@pytest.fixture
def folder(tmp_path, noisy):
    for name, start in (("a", 40_000), ("b", 90_000)):
        clean = noisy[start : start + RATE // 2]
        soundfile.write(tmp_path / f"{name}_clean.wav", clean, RATE)
        noise = np.random.default_rng(1).standard_normal(len(clean)).astype(np.float32) / 30
        soundfile.write(tmp_path / f"{name}_noisy.wav", clean + noise, RATE)
    return tmp_path


def run(*args):
    result = CliRunner().invoke(precision.main, [*map(str, args)])
    return result.exit_code, result.stdout, result.stderr


def test_si_sdr_by_its_definition():
    rng = np.random.default_rng(3)
    clean = rng.standard_normal(9000).astype(np.float32)
    noise = rng.standard_normal(9000).astype(np.float32)
    noise -= clean * (noise @ clean) / (clean @ clean)
    for gain in (0.1, 1.0, 7.0):
        want = 10 * np.log10((clean @ clean) / (0.01 * noise @ noise))
        assert precision.si_sdr_db(clean, gain * (clean + 0.1 * noise)) == pytest.approx(want, abs=1e-3)


def test_snr_by_its_definition():
    x = np.ones(8, np.float32)
    assert precision.snr_db(x, 1.1 * x) == pytest.approx(20, abs=1e-4)
    assert precision.snr_db(x, x) == float("inf")


def test_mixtures_of_a_folder(folder):
    assert [(n.name, c.name) for n, c in precision.pairs_of(folder)] == [
        ("a_noisy.wav", "a_clean.wav"), ("b_noisy.wav", "b_clean.wav"),
    ]  # fmt: skip
    (folder / "b_clean.wav").unlink()
    with pytest.raises(UsageError, match=r"no b_clean\.wav beside it"):
        precision.pairs_of(folder)
    with pytest.raises(UsageError, match="no files"):
        precision.pairs_of(folder.parent)


@pytest.mark.usefixtures("packages")
def test_compares_options_with_float32_of_the_same_backend(folder):
    code, out, _ = run("--backend", "ort-cpu:precision=int8", "--mixtures", folder, "--json")
    assert code == 0
    rows = json.loads(out)["rows"]
    assert list(rows) == ["noisy input", "ort-cpu, float32", "ort-cpu:precision=int8"]
    for name in ("a_noisy.wav", "b_noisy.wav"):
        assert rows["noisy input"][name]["snr_db"] is None
        assert rows["ort-cpu, float32"][name]["pesq"] == 4
        reduced = rows["ort-cpu:precision=int8"][name]
        assert 25 < reduced["snr_db"] < 70
        assert 0 < reduced["lsnr_change_db"] < 3
        assert abs(reduced["si_sdr_db"] - rows["ort-cpu, float32"][name]["si_sdr_db"]) < 0.5


@pytest.mark.usefixtures("packages")
def test_prints_a_table_and_more_pairs(folder):
    pair = folder / "a_noisy.wav", folder / "a_clean.wav"
    code, out, err = run("--backend", "ort-cpu:threads=1", "--pair", *pair, "--pair", *pair)
    assert code == 0
    lines = out.splitlines()
    assert "2 mixtures" in lines[0]
    assert [line.count("|") for line in lines[2:]] == [8] * 5
    assert err.splitlines() == ["a_noisy.wav"] * 2


@pytest.mark.usefixtures("packages")
def test_what_nobody_speaks_in_has_no_pesq(folder):
    judge = precision.Judge(soundfile.read(folder / "a_clean.wav", dtype="float32")[0], RATE)
    assert np.isnan(judge(np.zeros(RATE // 2, np.float32)).pesq)


def test_missing_packages_are_one_line(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "pesq", None)
    code, out, err = run("--backend", "ort-cpu", "--mixtures", folder)
    assert (code, out) == (2, "")
    assert "PESQ and STOI cannot be computed" in err
    assert "hint: pip install pesq pystoi" in err


@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--backend", "cuda"), "unknown backend 'cuda'"),
        (("--backend", "ort-cpu:x"), "is not option=value"),
        (("--backend", "ort-cpu", "--model", "none"), "no model 'none'"),
    ],
)
def test_refusals_are_one_line(folder, args, said):
    code, out, err = run(*args, "--mixtures", folder)
    assert (code > 1, out) == (True, "")
    assert said in err.splitlines()[0]


@pytest.mark.usefixtures("packages")
def test_files_that_do_not_fit(folder):
    assert "no mixtures" in run("--backend", "ort-cpu")[2]
    soundfile.write(folder / "a_clean.wav", np.zeros((99, 2)), RATE)
    assert "expected one channel" in run("--backend", "ort-cpu", "--mixtures", folder)[2]
    (folder / "a_clean.wav").write_bytes(b"no audio")
    assert "cannot be read" in run("--backend", "ort-cpu", "--mixtures", folder)[2]
