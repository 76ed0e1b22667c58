"""Mixtures to train on: what they hold, that they can be made again, which recordings they may come from."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("scipy")

import soundfile

import corpus
import faults
import mixing
import noises
import voices
from dfstream.errors import UsageError

RATE = corpus.SAMPLE_RATE
LICENCES = ("GPL-3.0-or-later", "CC0-1.0", "CC-BY-SA-3.0", "CC-BY-4.0", "Public-Domain")


def speech_like(rng, n):
    """A buzz with pauses and a wandering pitch."""
    pitch = np.interp(np.arange(n), np.linspace(0, n, 9), rng.uniform(90, 220, 9))
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    buzz = sum(np.sin(k * phase) / k for k in range(1, 20))
    syllables = np.repeat(rng.random(-(-n // 4800)) > 0.3, 4800)[:n]
    return (0.1 * buzz * syllables).astype(np.float32)


def level_over_frames(x):
    """Active level by a plain loop: 10 ms frames within 30 dB of the loudest."""
    powers = [float(np.mean(x[at : at + 480].astype(np.float64) ** 2)) for at in range(0, x.size - 479, 480)]
    return np.sqrt(np.mean([power for power in powers if power >= max(powers) / 1000]))


@pytest.fixture(scope="module")
def audio(tmp_path_factory):
    """An audio folder with speech and noise of five licences."""
    folder = tmp_path_factory.mktemp("audio")
    rng = np.random.default_rng(3)
    lines = ["file,start_sample,n_samples,kind,split,source,speaker,licence"]
    for kind in ("speech", "noise"):
        make = speech_like if kind == "speech" else lambda rng, n: 0.1 * rng.standard_normal(n)
        soundfile.write(folder / f"{kind}.wav", np.concatenate([make(rng, 3 * RATE) for _ in LICENCES]), RATE)
        for index, licence in enumerate(LICENCES):
            lines.append(
                f"{kind}.wav,{3 * RATE * index},{3 * RATE},{kind},train,here,voice {index},{licence}"
            )
    (folder / "clips.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def prepared(audio, tmp_path_factory):
    """A work folder as `corpus.prepare` leaves it, of a teacher that changes nothing but one clip."""
    work = tmp_path_factory.mktemp("work")
    folder = work / "audio" / audio.resolve().name
    folder.mkdir(parents=True)
    for kind in ("speech", "noise"):
        pcm, _ = soundfile.read(audio / f"{kind}.wav", dtype="int16")
        np.save(folder / f"{kind}.npy", pcm)
        np.save(folder / f"{kind}.clean.npy", pcm)
    rows = [f"{3 * RATE * index},{1.0 if index == 4 else 20.0}" for index in range(len(LICENCES))]
    (folder / "speech.agreement.csv").write_text("\n".join(["start_sample,agreement_db", *rows]) + "\n")
    return work


@pytest.fixture(scope="module")
def mixer(audio, prepared):
    speech, noise = (corpus.list_clips([audio], prepared, kind, "train") for kind in ("speech", "noise"))
    return mixing.Mixer(speech, noise)


@given(st.floats(-20, 40), st.floats(0.01, 3), st.integers(0, 5))
@settings(deadline=None, max_examples=20)
def test_mixtures_have_the_snr_that_was_asked_for(snr_db, noise_level, seed):
    rng = np.random.default_rng(seed)
    speech = speech_like(rng, 2 * RATE)
    noise = (noise_level * rng.standard_normal(2 * RATE)).astype(np.float32)
    added = mixing.mix(speech, noise, snr_db) - speech
    level = np.sqrt(np.mean(added.astype(np.float64) ** 2))
    # float32 holds the sum of a loud and a quiet part to about 1e-7 of the loud one
    assert 20 * np.log10(level_over_frames(speech) / level) == pytest.approx(snr_db, abs=0.01)


def test_speech_alone_and_noise_alone_stay_so():
    speech = speech_like(np.random.default_rng(0), RATE)
    nothing = np.zeros_like(speech)
    np.testing.assert_array_equal(mixing.mix(speech, nothing, np.inf), speech)
    alone = mixing.mix(nothing, speech, -np.inf)
    assert corpus.rms(alone) == pytest.approx(voices.SPEECH_RMS, rel=1e-5)


def test_a_mixture_depends_on_its_seed_and_number_alone(mixer):
    first = mixer.item(1, 7)
    mixer.item(1, 8)
    again = mixer.item(1, 7)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(first.noisy, mixer.item(2, 7).noisy)
    assert not np.array_equal(first.noisy, mixer.item(1, 8).noisy)


def test_items_are_of_every_kind_and_within_full_scale(audio, prepared):
    speech, noise = (corpus.list_clips([audio], prepared, kind, "train") for kind in ("speech", "noise"))
    mixer = mixing.Mixer(speech, noise, blend=mixing.Blend(noise_only=0.25, undisturbed=0.25))
    items = [mixer.item(5, number) for number in range(32)]
    for item in items:
        assert item.noisy.dtype == item.clean.dtype == item.heard.dtype == np.float32
        assert item.noisy.shape == item.clean.shape == item.heard.shape == (mixing.SAMPLES,)
        assert np.isfinite(item.noisy).all()
        # a narrowed band and a codec overshoot the level that was set
        assert np.abs(item.noisy).max() < 2.0
    snrs = np.array([item.snr_db for item in items])
    assert (snrs == np.inf).any()
    assert (snrs == -np.inf).any()
    assert ((snrs > -7) & (snrs < 41)).sum() > 8
    for item in items:
        if item.snr_db == -np.inf:
            assert not item.clean.any()


def test_undisturbed_speech_is_its_own_reference(mixer):
    found = [item for item in (mixer.item(9, number) for number in range(60)) if item.snr_db == np.inf]
    alike = [
        corpus.rms(item.noisy - item.clean) < 1e-3 * max(corpus.rms(item.noisy), 1e-9) + 2e-5
        for item in found
    ]
    # some of them pass through a fault, which the reference does not
    assert np.mean(alike) > 0.6


def test_licences_decide_which_clips_there_are(audio, prepared):
    def licences(*families):
        return [clip.licence for clip in corpus.list_clips([audio], prepared, "noise", "train", families)]

    assert licences(*corpus.FAMILIES) == list(LICENCES)
    assert licences("GPL") == ["GPL-3.0-or-later"]
    assert licences("CC-BY") == ["CC-BY-4.0"]
    assert licences("CC0", "CC-BY-SA") == ["CC0-1.0", "CC-BY-SA-3.0"]
    with pytest.raises(UsageError, match="no licence family 'WTFPL'"):
        licences("WTFPL")
    with pytest.raises(UsageError, match="no train noise of the licences MIT"):
        licences("MIT")
    with pytest.raises(UsageError, match="of no known family"):
        corpus.family("proprietary")


def test_sources_are_listed_with_their_licences(audio, prepared):
    clips = corpus.list_clips([audio], prepared, "noise", "train", ["CC0", "GPL"])
    assert corpus.data_table([*clips, clips[0]]).splitlines()[2:] == [
        "| here | CC0-1.0 | 1 | 1 | 0.1 |",
        "| here | GPL-3.0-or-later | 2 | 1 | 0.1 |",
    ]


def test_clips_that_the_teacher_takes_apart_are_left_out(audio, prepared):
    speech = corpus.list_clips([audio], prepared, "speech", "train")
    assert [clip.licence for clip in speech] == list(LICENCES[:4])
    assert speech[1].read().size == 3 * RATE
    recorded, _ = soundfile.read(audio / "speech.wav", dtype="float32")
    np.testing.assert_allclose(speech[1].read(100, 50), recorded[3 * RATE + 100 : 3 * RATE + 150], atol=1e-4)
    assert speech[1].read(3 * RATE - 10, 50).size == 10


def test_preparing_decodes_and_cleans_once(audio, synthetic_folder, tmp_path):
    said = []
    with pytest.raises(UsageError, match="not prepared"):
        corpus.list_clips([audio], tmp_path, "speech", "train")
    corpus.prepare([audio], tmp_path, str(synthetic_folder("dfn3")), said.append)
    assert said == ["prepared speech.wav", "prepared noise.wav"]
    folder = tmp_path / "audio" / audio.resolve().name
    pcm, _ = soundfile.read(audio / "speech.wav", dtype="int16")
    np.testing.assert_allclose(np.load(folder / "speech.npy"), pcm, atol=1)
    assert np.load(folder / "speech.clean.npy").any()
    assert len((folder / "speech.agreement.csv").read_text().splitlines()) == 1 + len(LICENCES)
    corpus.prepare([audio], tmp_path, str(synthetic_folder("dfn3")), said.append)
    assert len(said) == 2


def test_a_folder_without_a_list_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"no readable clips\.csv"):
        corpus.list_clips([tmp_path], tmp_path, "noise", "train")


@pytest.mark.parametrize("make", [*noises._GENERATED])
def test_generated_noise_has_unit_level(make):
    x = make(np.random.default_rng(2), RATE)
    assert x.shape == (RATE,)
    assert x.dtype == np.float32
    assert corpus.rms(x) == pytest.approx(1, rel=1e-4)


def pitch_hz(x):
    spectrum = np.abs(np.fft.rfft(x * np.hanning(x.size)))
    return np.argmax(spectrum) * RATE / x.size


@pytest.mark.parametrize("speed", [0.8, 1.3])
def test_stretching_keeps_the_pitch(speed):
    tone = np.sin(2 * np.pi * 220 * np.arange(2 * RATE) / RATE).astype(np.float32)
    stretched = voices.stretched(np.stack([tone, 0.5 * tone]), speed)
    # the search leaves out the last frame and its reach
    assert stretched.shape[1] == pytest.approx(2 * RATE / speed, abs=6_000)
    assert pitch_hz(stretched[0]) == pytest.approx(220, abs=2)
    np.testing.assert_allclose(stretched[1], 0.5 * stretched[0], atol=1e-6)


@pytest.mark.parametrize(("throat", "tempo"), [(0.8, 1.0), (1.25, 1.0), (1.0, 1.2), (1.2, 0.9)])
def test_throat_moves_frequencies_and_tempo_does_not(throat, tempo):
    tone = np.sin(2 * np.pi * 300 * np.arange(2 * RATE) / RATE).astype(np.float32)
    spoken = voices.Voice(throat, tempo)(np.stack([tone, tone]))
    assert pitch_hz(spoken[0]) == pytest.approx(300 * throat, rel=0.01)
    assert spoken.shape[1] == pytest.approx(2 * RATE / tempo, abs=6_000)


def test_faults_do_what_they_say():
    rng = np.random.default_rng(4)
    x = speech_like(rng, RATE)
    assert np.abs(faults.clipped(rng, x)).max() < 0.75 * np.abs(x).max()
    assert corpus.rms(faults.companded(x) - x) < 0.05 * corpus.rms(x)
    coded = faults.coded(rng, x)
    assert coded.shape == x.shape
    assert np.corrcoef(coded, x)[0, 1] > 0.9
    narrow = faults.narrowed(rng, np.stack([x, x]))
    above = np.abs(np.fft.rfft(narrow))[:, 17_000:].max()
    assert above < 1e-3 * np.abs(np.fft.rfft(narrow)).max()
    lost = [faults.lost_packets(rng, x) for _ in range(20)]
    assert any(not np.array_equal(y, x) for y in lost)


def test_rooms_are_read_and_a_broken_file_is_refused(tmp_path):
    path = tmp_path / "rirs.npz"
    np.savez(path, flat=np.arange(5, dtype=np.float16), offset=[0, 2, 5])
    assert [room.tolist() for room in mixing.load_rooms(path)] == [[0, 1], [2, 3, 4]]
    path.write_bytes(b"nothing")
    with pytest.raises(UsageError, match="no impulse responses"):
        mixing.load_rooms(path)
