"""Recordings gathered to train on: which are taken, how they are cut, what is written about them."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("scipy")

import soundfile

import collect
import corpus

RATE = corpus.SAMPLE_RATE


def sentence(rng, seconds, rate=RATE, level=0.1):
    """Syllables of a buzz with silent pauses, quiet at both ends."""
    n = int(seconds * rate)
    pitch = np.interp(np.arange(n), np.linspace(0, n, 9), rng.uniform(90, 220, 9))
    buzz = np.sin(2 * np.pi * np.cumsum(pitch) / rate) + np.sin(6 * np.pi * np.cumsum(pitch) / rate)
    loud = np.repeat(rng.random(-(-n // (rate // 10))) > 0.3, rate // 10)[:n]
    loud[rate // 10 : rate // 4] = loud[-rate // 4 : -rate // 10] = True
    loud[: rate // 10] = loud[-rate // 10 :] = False
    return (level * buzz * loud).astype(np.float32)


@pytest.fixture(autouse=True)
def origin(monkeypatch):
    """A repository with two voices under one licence and one voice under another."""
    found = collect.Origin(
        "example.org/voices", "0" * 40,
        (
            collect.Recordings(r"free/(?P<voice>\w+)/\d+\.wav", "CC0-1.0", "Ann and Bob"),
            collect.Recordings(r"shared/\d+\.flac", "CC-BY-SA", "Eve", minutes=0.2),
        ),
    )  # fmt: skip
    monkeypatch.setitem(collect.ORIGINS, "example", found)


@pytest.fixture
def checkout(tmp_path):
    """Its files: stereo at 44.1 kHz, and 16 kHz; one broken, one clipped, one noisy, one of another kind."""
    rng = np.random.default_rng(5)
    folder = tmp_path / "checkout"
    for voice in ("ann", "bob"):
        (folder / "free" / voice).mkdir(parents=True)
        for number in range(3):
            x = sentence(rng, 3, 44_100)
            soundfile.write(folder / f"free/{voice}/{number}.wav", np.stack([x, x], 1), 44_100)
    (folder / "free/ann/3.wav").write_bytes(b"RIFF nothing that follows")
    clipped = np.clip(100 * sentence(rng, 3), -1, 1)
    soundfile.write(folder / "free/ann/4.wav", clipped, RATE)
    noisy = sentence(rng, 3) + 0.01 * rng.standard_normal(3 * RATE).astype(np.float32)
    soundfile.write(folder / "free/ann/5.wav", noisy, RATE)
    (folder / "free/ann/6.txt").write_text("three")
    (folder / "shared").mkdir()
    for number in range(8):
        soundfile.write(folder / f"shared/{number}.flac", sentence(rng, 4, 16_000), 16_000)
    return folder


def rows_of(folder):
    """The table of an audio folder."""
    with (folder / "clips.csv").open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def test_a_checkout_becomes_an_audio_folder(checkout, tmp_path):
    result = CliRunner().invoke(
        collect.main, ["--checkout", f"example={checkout}", "--out", str(tmp_path / "out")]
    )
    assert result.exit_code == 0, result.output
    rows = rows_of(tmp_path / "out")
    assert {(row["speaker"], row["licence"]) for row in rows} == {
        ("example/ann", "CC0-1.0"), ("example/bob", "CC0-1.0"), ("example/Eve", "CC-BY-SA"),
    }  # fmt: skip
    assert {(row["kind"], row["split"], row["source"]) for row in rows} == {
        ("speech", "train", "example.org/voices")
    }
    names = " ".join(row["original_name"] for row in rows)
    assert "free/ann/0.wav" in names
    assert not any(f"free/ann/{number}" in names for number in (3, 4, 5, 6))
    assert "left out" in result.output
    assert "free/ann/3.wav" in result.output
    # a voice has its minutes, and every clip is where the table says, at one level, silence behind it
    assert sum(int(row["n_samples"]) for row in rows if row["speaker"] == "example/Eve") <= 0.2 * 60 * RATE
    for row in rows:
        audio = corpus.read_recording(tmp_path / "out" / row["file"])
        start, length = int(row["start_sample"]), int(row["n_samples"])
        assert abs(20 * np.log10(corpus.active_rms(audio[start : start + length]) / 0.05)) < 1
        assert not audio[start + length : start + length + RATE // 20].any()
        assert audio[start : start + RATE // 10].any()
    # the families of the licences are those that training may be asked for
    assert {corpus.family(row["licence"]) for row in rows} == {"CC0", "CC-BY-SA"}


def test_the_same_checkout_gives_the_same_bytes(checkout, tmp_path):
    for name in ("one", "two"):
        collect.write({"example": checkout}, tmp_path / name)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_long_recordings_are_cut_in_pauses():
    rng = np.random.default_rng(1)
    spoken = np.concatenate([np.r_[sentence(rng, 4), np.zeros(RATE // 2, np.float32)] for _ in range(8)])
    parts = list(collect.clips([collect.Take(spoken, ("long.wav",))]))
    assert len(parts) > 2
    for part in parts:
        assert 2 * RATE <= part.audio.size <= 12 * RATE
    # what is cut is cut in silence: pieces begin or end there
    for part in parts[:-1]:
        assert not part.audio[-480:].any() or not part.audio[:480].any()
    joined = np.concatenate([part.audio for part in parts])
    assert abs(np.count_nonzero(joined) / np.count_nonzero(spoken) - 1) < 0.01


def test_words_are_strung_together_with_gaps():
    rng = np.random.default_rng(2)
    words = [
        collect.Take(sentence(rng, 0.7, level=level), (f"{k}.wav",))
        for k, level in enumerate(np.geomspace(0.01, 0.3, 20))
    ]
    parts = list(collect.clips(words))
    assert all(part.audio.size >= 6 * RATE for part in parts[:-1])
    assert [name for part in parts for name in part.names] == [f"{k}.wav" for k in range(20)]
    levels = [corpus.active_rms(part.audio) for part in parts]
    assert max(levels) / min(levels) < 1.2
    # words begin and end with up to a tenth of a second of silence, the gap is a quarter
    spoken = np.flatnonzero(parts[0].audio)
    assert np.count_nonzero(np.diff(spoken) >= RATE // 4) >= 8


def test_peaks_have_their_limit():
    rng = np.random.default_rng(8)
    x = sentence(rng, 3)
    x[RATE] = 40.0
    (part,) = collect.clips([collect.Take(x, ("spike.wav",))])
    assert np.abs(part.audio).max() == pytest.approx(0.94, abs=1e-6)


@pytest.mark.parametrize(("noise", "quiet"), [(0.0, True), (1e-4, True), (1e-2, False)])
def test_noise_in_pauses_is_heard(noise, quiet):
    rng = np.random.default_rng(4)
    x = sentence(rng, 3) + noise * rng.standard_normal(3 * RATE).astype(np.float32)
    assert collect.quiet_in_pauses(x) is quiet


@pytest.mark.parametrize(("peak", "flat", "found"), [(1.0, 4, True), (1.0, 3, False), (0.99, 9, False)])
def test_a_run_at_full_scale_is_clipping(peak, flat, found):
    x = 0.5 * np.sin(np.arange(4_800) / 20)[:, None]
    x[100 : 100 + flat] = -peak
    assert collect.clipped(x.astype(np.float32)) is found


def test_silence_at_the_ends_is_cut():
    rng = np.random.default_rng(6)
    x = np.concatenate([np.zeros(RATE), sentence(rng, 2), np.zeros(2 * RATE)]).astype(np.float32)
    x[RATE // 2 : RATE] = 1e-5
    x[3 * RATE : 3 * RATE + RATE // 2] += 0.1 * 10 ** (-30 / 20)
    short = collect.trimmed(x)
    assert 2.2 * RATE < short.size < 2.5 * RATE


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkout", "nothing=."], "nothing is known of 'nothing'"),
        (["--checkout", "example=absent"], "absent: no folder"),
        (["--checkout", "example"], "example: no folder"),
        (["--checkout", "example=."], "no file is like free"),
    ],
)
def test_bad_arguments_are_one_line(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(collect.main, [*arguments, "--out", "out"])
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output


def test_every_origin_is_told_whole():
    for origin in collect.ORIGINS.values():
        assert len(origin.commit) == 40
        for recordings in origin.recordings:
            assert corpus.family(recordings.licence) != "GPL"
            assert recordings.author
            assert recordings.minutes > 0
