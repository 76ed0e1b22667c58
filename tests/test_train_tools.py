"""The commands around training: all the way on a small scale, and the table of scores."""

from __future__ import annotations

import json

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner

import evaluate
from dfstream.errors import UsageError
from dfstream.model import Model
from dfstream.offline import enhance

RATE = evaluate.SAMPLE_RATE


class Gain:
    """An enhancer that only changes the level."""

    def __init__(self, gain):
        self._gain = np.float32(gain)

    def __call__(self, x):
        return self._gain * x

    def with_lsnr(self, x):
        return self(x), np.full(x.size // 480, 20 * np.log10(self._gain))


@pytest.fixture
def table(tmp_path, noisy):
    """Two mixtures of noise and the example, with their list."""
    folder = tmp_path / "mixtures"
    folder.mkdir()
    rng = np.random.default_rng(17)
    clean = noisy[: 2 * RATE]
    lines = ["noisy,clean,snr_db"]
    for number, snr_db in enumerate((0, 10)):
        noise = rng.standard_normal(clean.size) * np.sqrt(np.mean(clean**2)) * 10 ** (-snr_db / 20)
        soundfile.write(folder / f"{number}_noisy.wav", clean + noise, RATE, subtype="FLOAT")
        soundfile.write(folder / f"{number}_clean.wav", clean, RATE, subtype="FLOAT")
        lines.append(f"{number}_noisy.wav,{number}_clean.wav,{snr_db}")
    path = folder / "mixtures.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_tables_are_read_with_their_snr(table, tmp_path):
    pairs = evaluate.read_table(table)
    assert [(pair.group, pair.snr_db) for pair in pairs] == [("mixtures", 0.0), ("mixtures", 10.0)]
    assert all(pair.noisy.dtype == np.float32 for pair in pairs)
    other = tmp_path / "other.csv"
    other.write_text("noisy,clean\na,b\n")
    with pytest.raises(UsageError, match="no table with the columns"):
        evaluate.read_table(other)


def test_scores_are_by_set_model_and_snr(table):
    pytest.importorskip("pesq")
    pytest.importorskip("pystoi")
    found = evaluate.score(evaluate.read_table(table), {"half": Gain(0.5)}, lambda _line: None)
    assert found.keys() == {"mixtures"}
    assert found["mixtures"].keys() == {"noisy input", "half"}
    noisy = found["mixtures"]["noisy input"]
    assert noisy.keys() == {"all", "0 dB", "10 dB"}
    # SI-SDR of white noise is its SNR, and no score minds the level
    assert noisy["0 dB"][2] == pytest.approx(0, abs=0.2)
    assert noisy["10 dB"][2] == pytest.approx(10, abs=0.2)
    assert noisy["all"][2] == pytest.approx(5, abs=0.2)
    np.testing.assert_allclose(found["mixtures"]["half"]["all"][2], noisy["all"][2], atol=1e-3)
    lines = evaluate.scores_table(found["mixtures"]).splitlines()
    assert lines[0] == "|  | SNR | PESQ-WB | STOI | SI-SDR dB |"
    assert [line.split(" | ")[1] for line in lines[2:5]] == ["all", "0 dB", "10 dB"]


def test_shares_of_the_way_are_between_input_and_goal():
    scores = {
        "noisy input": {"all": (1.0, 0.8, 0.0)},
        "new": {"all": (1.5, 0.9, 6.0)},
        "goal": {"all": (2.0, 0.9, 8.0)},
    }
    line = evaluate.shares_of_the_way(scores, "new", "goal")
    assert line == "new, of the way from the noisy input to goal: PESQ-WB 50 %, STOI 100 %, SI-SDR 75 %"


def test_noise_alone_and_lsnr_are_compared(table):
    pairs = evaluate.read_table(table)
    models = {"tenth": Gain(0.1), "whole": Gain(1.0)}
    lowered = evaluate.noise_alone([pair.noisy - pair.clean for pair in pairs], models)
    assert list(lowered["tenth"].values()) == pytest.approx([-20, -20], abs=1e-3)
    distance = evaluate.lsnr_distance(pairs, models, "whole")
    assert list(distance["tenth"].values()) == pytest.approx([20])


def test_narrow_bands_hold_nothing_above_their_rate(table):
    (narrow, _) = evaluate.narrowed(evaluate.read_table(table), 8_000)
    assert narrow.group == "mixtures at 8 kHz"
    spectrum = np.abs(np.fft.rfft(narrow.noisy))
    assert spectrum[int(4_500 * narrow.noisy.size / RATE) :].max() < 0.01 * spectrum.max()


@pytest.mark.slow
def test_evaluation_prints_tables_and_writes_figures(table, tmp_path):
    pytest.importorskip("pesq")
    pytest.importorskip("pystoi")
    out = tmp_path / "figures.json"
    arguments = [
        "--table",
        str(table),
        "--teacher",
        "bundled",
        "--model",
        "again=bundled",
        "--json",
        str(out),
    ]
    result = CliRunner().invoke(evaluate.main, arguments)
    assert result.exit_code == 0, result.output
    assert (
        "again, of the way from the noisy input to teacher: PESQ-WB 100 %, STOI 100 %, SI-SDR 100 %"
        in result.output
    )
    figures = json.loads(out.read_text())
    assert figures["scores"]["mixtures"]["again"] == figures["scores"]["mixtures"]["teacher"]
    assert "mixtures at 16 kHz" in figures["scores"]
    assert figures["other"]["again"]["level -40 dB, SI-SDR dB"] < 60


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--teacher", "bundled"], "no mixtures"),
        (["--model", "x"], "expected NAME=MODEL"),
        (["--teacher", "nowhere"], "nowhere"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, message):
    result = CliRunner().invoke(evaluate.main, arguments)
    assert result.exit_code in (2, 3)
    assert message in result.stderr
    assert "Traceback" not in result.stderr


@pytest.fixture
def where(noisy, tmp_path):
    """Options of every command: a folder with one voice and one noise, taught by the bundled model."""
    pytest.importorskip("torch")
    pytest.importorskip("scipy")
    audio = tmp_path / "audio"
    audio.mkdir()
    clean = enhance(noisy)
    lines = ["file,start_sample,n_samples,kind,split,source,speaker,licence"]
    for kind, recording in (("speech", clean), ("noise", noisy - clean)):
        soundfile.write(audio / f"{kind}.flac", recording, RATE)
        lines += [
            f"{kind}.flac,0,{noisy.size},{kind},{split},here,somebody,CC0" for split in ("train", "valid")
        ]
    (audio / "clips.csv").write_text("\n".join(lines) + "\n")
    return ["--audio", str(audio), "--teacher", "bundled", "--work", str(tmp_path / "work")]


@pytest.mark.slow
def test_all_the_way_on_a_small_scale(where, tmp_path, monkeypatch):
    import pool
    import train

    monkeypatch.setattr(pool, "SHARD_ITEMS", 8)
    result = CliRunner().invoke(train.cli, ["smoke", *where])
    assert result.exit_code == 0, result.output
    assert "MACs a hop" in result.output
    assert Model.load(tmp_path / "work" / "smoke" / "model").config.sample_rate == RATE
    again = CliRunner().invoke(train.cli, ["generate", *where, "--shards", "2"])
    assert again.exit_code == 0
    assert not again.output  # both are there already
    listed = CliRunner().invoke(train.cli, ["data", *where])
    assert listed.output.count("| here | CC0 | 1 | 1 | 0.1 |") == 2
    refused = CliRunner().invoke(train.cli, ["generate", *where, "--licences", "GPL"])
    assert isinstance(refused.exception, UsageError)


@pytest.mark.slow
def test_a_run_mixes_beside_the_training_and_goes_on(where, tmp_path, monkeypatch):
    import torch

    import train
    from training import CHECKPOINT

    monkeypatch.setattr(train, "_FIRST_SHARDS", 1)
    monkeypatch.setattr(train, "_VALID_SHARDS", 1)
    monkeypatch.setattr(train, "_VALID_BATCHES", 1)
    command = ["run", *where, "--batch", "8", "--generators", "1"]
    for steps in (1, 2):
        result = CliRunner().invoke(train.cli, [*command, "--steps", str(steps)])
        assert result.exit_code == 0, result.output
        stored = torch.load(tmp_path / "work" / "run" / CHECKPOINT, weights_only=True)
        assert stored["step"] == steps
    assert result.output.count("valid at step 2") == 1
