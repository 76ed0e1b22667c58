"""Audio files in and out: formats, lengths, alignment with `enhance`, and refusal of what is no audio."""

import json
import struct

import numpy as np
import pytest
import soundfile

from dfstream import Stream, audiofile, enhance
from dfstream.containers import is_cut_short
from dfstream.errors import AudioError, UsageError
from dfstream.files import enhance_file

RATE = 48_000
FORMATS = ("wav", "flac", "ogg")
LENGTHS = (1, 479, 480, 481, RATE + 137)

#: Subtypes that must survive, by container.
KEPT = [(suffix, subtype) for suffix in ("wav", "flac") for subtype in ("PCM_16", "PCM_24")]
KEPT += [("wav", "FLOAT"), ("wav", "DOUBLE"), ("ogg", "VORBIS"), ("ogg", "OPUS")]

SUFFIX_OF = {"WAV": "wav", "WAVEX": "wav", "RF64": "wav", "OGG": "ogg", "FLAC": "flac"}


@pytest.fixture(scope="module")
def x(noisy):
    return noisy[: 2 * RATE + 321]


@pytest.fixture
def write(tmp_path):
    def write(name, x, subtype=None, rate=RATE, **options):
        soundfile.write(tmp_path / name, x, rate, subtype, **options)
        return tmp_path / name

    return write


def run(source, target, model, **options):
    """Enhance a file; return the report and what was written."""
    report = enhance_file(str(source), str(target), model, **options)
    return report, soundfile.read(target, dtype="float32")[0]


def expected(source, model, **options):
    return enhance(soundfile.read(source, dtype="float32")[0], RATE, model, **options)


def lag(y, reference):
    """Shift at which two signals agree best."""
    spectra = np.fft.rfft(y, 2 * len(y)), np.fft.rfft(reference, 2 * len(y))
    best = int(np.argmax(np.fft.irfft(spectra[0] * spectra[1].conj())))
    return best if best < len(y) else best - 2 * len(y)


def test_writes_nothing_else_than_enhance_computes(x, write, bundled, tmp_path):
    source = write("in.wav", x, "FLOAT")
    report, y = run(source, tmp_path / "out.wav", bundled)
    np.testing.assert_array_equal(y, expected(source, bundled))
    assert (report.samples, report.sample_rate, report.delay_samples) == (len(x), RATE, 1440)
    assert report.delay_compensated
    assert report.clipped == 0
    assert 0 < report.real_time_factor < 10


@pytest.mark.parametrize(("suffix", "subtype"), KEPT)
def test_keeps_the_sample_format(x, write, bundled, tmp_path, suffix, subtype):
    source = write(f"in.{suffix}", x, subtype)
    run(source, tmp_path / f"out.{suffix}", bundled)
    assert soundfile.info(tmp_path / f"out.{suffix}").subtype == subtype


@pytest.mark.parametrize("source_suffix", FORMATS)
@pytest.mark.parametrize("target_suffix", FORMATS)
def test_all_formats_into_all(x, write, bundled, tmp_path, source_suffix, target_suffix):
    source, target = write(f"in.{source_suffix}", x), tmp_path / f"out.{target_suffix}"
    _, y = run(source, target, bundled)
    reference = expected(source, bundled)
    assert len(y) == len(x)
    assert soundfile.info(target).format == target_suffix.upper()
    assert lag(y, reference) == 0
    if target_suffix == "ogg":  # lossy
        assert np.corrcoef(y, reference)[0, 1] > 0.95
    else:
        assert np.abs(y - reference).max() <= 0.5 / 2**15


@pytest.mark.parametrize(("subtype", "bits"), [("PCM_16", 16), ("PCM_24", 24)])
def test_integer_output_is_rounded_not_scaled(write, bundled, tmp_path, noisy, subtype, bits):
    loud = noisy[:RATE] * (0.9 / np.abs(noisy[:RATE]).max())
    source = write("in.wav", loud, subtype)
    _, y = run(source, tmp_path / "out.wav", bundled, atten_lim_db=0)
    # beside half a step only what float32 resolves near full scale
    assert (
        np.abs(y.astype(np.float64) - expected(source, bundled, atten_lim_db=0)).max()
        <= 0.5 / 2 ** (bits - 1) + np.finfo(np.float32).eps / 2
    )


@pytest.mark.parametrize("format_", ["WAV", "WAVEX", "RF64", "FLAC", "OGG"])
@pytest.mark.parametrize("length", LENGTHS)
def test_output_is_as_long_as_the_input(write, bundled, tmp_path, noisy, length, format_):
    suffix = SUFFIX_OF[format_]
    source = write(f"in.{suffix}", noisy[:length], format=format_)
    report, y = run(source, tmp_path / f"out.{suffix}", bundled)
    assert len(y) == report.samples == length
    assert soundfile.info(tmp_path / f"out.{suffix}").format == format_


@pytest.mark.parametrize("length", LENGTHS)
def test_short_files_are_exact(write, bundled, tmp_path, noisy, length):
    source = write("in.wav", noisy[:length], "FLOAT")
    _, y = run(source, tmp_path / "out.wav", bundled)
    np.testing.assert_array_equal(y, expected(source, bundled))


@pytest.mark.parametrize("parity", ["rust", "python"])
def test_several_blocks_with_a_rest(write, bundled, tmp_path, noisy, parity):
    source = write("in.flac", noisy[: 5 * RATE + 77], "PCM_24")
    _, y = run(source, tmp_path / "out.wav", bundled, parity=parity)
    assert np.abs(y - expected(source, bundled, parity=parity)).max() <= 2.0**-24


def test_options_reach_the_stream(x, write, bundled, tmp_path):
    source = write("in.wav", x, "FLOAT")
    plain = expected(source, bundled)
    for number, options in enumerate(({"atten_lim_db": 10.0}, {"post_filter": 0.05}, {"parity": "python"})):
        _, y = run(source, tmp_path / f"{number}.wav", bundled, **options)
        np.testing.assert_array_equal(y, expected(source, bundled, **options))
        assert not np.array_equal(y, plain)


def test_delay_can_be_left_in(x, write, bundled, tmp_path):
    source = write("in.wav", x, "FLOAT")
    report, y = run(source, tmp_path / "out.wav", bundled, compensate_delay=False)
    d = report.delay_samples
    assert not report.delay_compensated
    assert len(y) == len(x)
    np.testing.assert_array_equal(y[d:], expected(source, bundled)[:-d])


def test_copies_tags(x, bundled, tmp_path):
    source = tmp_path / "in.wav"
    tags = {"title": "A title", "artist": "Somebody", "comment": "ünïcode", "date": "2024"}
    with soundfile.SoundFile(source, "w", RATE, 1) as file:
        for name, text in tags.items():
            setattr(file, name, text)
        file.write(x)
    for suffix in FORMATS:
        run(source, tmp_path / f"out.{suffix}", bundled)
        with soundfile.SoundFile(tmp_path / f"out.{suffix}") as file:
            assert tags.items() <= file.copy_metadata().items(), suffix


def test_counts_what_integers_cut_off(write, bundled, tmp_path, noisy):
    source = write("in.wav", 40 * noisy[:RATE], "FLOAT")
    report, y = run(source, tmp_path / "float.wav", bundled)
    assert report.clipped == 0
    beyond = int(np.count_nonzero(np.abs(y) > 1))
    assert beyond > 0
    report, y = run(source, tmp_path / "out.flac", bundled)
    assert report.clipped == beyond
    assert np.abs(y).max() <= 1


def test_tells_progress(x, write, bundled, tmp_path):
    told = []
    run(
        write("in.wav", x),
        tmp_path / "out.wav",
        bundled,
        progress=lambda done, total: told.append((done, total)),
    )
    assert told[-1] == (len(x), len(x))
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_a_model_of_another_rate(synthetic_model, write, tmp_path, noisy):
    model = synthetic_model("wideband16k")
    source = write("in.wav", noisy[:20_001], "FLOAT", rate=16_000)
    _, y = run(source, tmp_path / "out.wav", model)
    np.testing.assert_array_equal(y, enhance(noisy[:20_001], 16_000, model))
    other = write("other.wav", noisy[:9000], "FLOAT")
    _, y = run(other, tmp_path / "other_out.wav", model)
    np.testing.assert_array_equal(y, enhance(noisy[:9000], 48_000, model))


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 96_000, 192_000])
@pytest.mark.parametrize(("channels", "subtype"), [(1, "PCM_16"), (2, "PCM_24"), (3, "FLOAT")])
def test_any_rate_and_number_of_channels(bundled, tmp_path, noisy, rate, channels, subtype):
    x = np.stack([noisy[1000 * c : 1000 * c + 20_011] for c in range(channels)], axis=1)
    source, target = tmp_path / "in.wav", tmp_path / "out.wav"
    soundfile.write(source, x, rate, subtype)
    report = enhance_file(str(source), str(target), bundled)
    info = soundfile.info(target)
    assert (info.samplerate, info.channels, info.frames, info.subtype) == (rate, channels, len(x), subtype)
    assert (report.sample_rate, report.channels, report.samples) == (rate, channels, len(x))
    read, _ = soundfile.read(source, dtype="float32", always_2d=True)
    expected = enhance(read if channels > 1 else read[:, 0], rate, bundled).reshape(len(x), -1)
    y, _ = soundfile.read(target, dtype="float32", always_2d=True)
    # half a step of the integer formats, and what float32 rounds of it
    step = {"PCM_16": 2.0**-15, "PCM_24": 2.0**-23, "FLOAT": 0.0}[subtype]
    assert np.max(np.abs(y - np.clip(expected, -1, 1 - step))) <= 0.5 * step + 1e-7 * (step > 0)


def test_the_lsnr_track_has_a_line_for_each_hop(bundled, tmp_path, noisy):
    source, track = tmp_path / "in.wav", tmp_path / "lsnr.jsonl"
    soundfile.write(source, noisy[:44_100], 44_100, "FLOAT")
    enhance_file(str(source), str(tmp_path / "out.wav"), bundled, lsnr=track)
    lines = [json.loads(line) for line in track.read_text().splitlines()]
    assert [line["hop"] for line in lines] == list(range(100))
    assert lines[7]["time_s"] == pytest.approx(0.07)
    stream = Stream(bundled, sample_rate=44_100)
    stream.process(noisy[:44_100])
    ahead = bundled.config.conv_lookahead
    np.testing.assert_allclose(
        [line["lsnr_db"] for line in lines[:90]], stream.lsnr[ahead : 90 + ahead], atol=1e-3
    )
    with pytest.raises(UsageError, match="exists"):
        enhance_file(str(source), str(tmp_path / "out2.wav"), bundled, lsnr=track)
    assert not (tmp_path / "out2.wav").exists()


# -- broken inputs ---------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("format_", ["WAV", "WAVEX", "RF64", "FLAC", "OGG"])
def test_refuses_a_file_cut_short(write, bundled, tmp_path, noisy, format_, share):
    source = write(f"in.{SUFFIX_OF[format_]}", noisy[: 3 * RATE], format=format_)
    source.write_bytes(source.read_bytes()[: int(share * source.stat().st_size)])
    with pytest.raises(AudioError, match=r"cut short|decoder lost|malformed"):
        run(source, tmp_path / "out.wav", bundled)
    assert [p.name for p in tmp_path.iterdir()] == [source.name]


@pytest.mark.parametrize("format_", ["WAV", "WAVEX", "RF64", "OGG"])
def test_whole_files_are_whole(write, noisy, format_):
    assert not is_cut_short(write(f"in.{SUFFIX_OF[format_]}", noisy, format=format_), format_)


def test_notices_that_the_last_page_of_ogg_is_missing(write, bundled, tmp_path, noisy):
    source = write("in.ogg", noisy)
    data = source.read_bytes()
    source.write_bytes(data[: data.rindex(b"OggS")])
    assert soundfile.info(source).frames > 0, "libsndfile sees nothing wrong"
    with pytest.raises(AudioError, match="cut short"):
        run(source, tmp_path / "out.wav", bundled)


def test_finds_the_samples_behind_chunks_of_odd_size(x, write):
    source = write("in.wav", x)
    data = source.read_bytes()
    source.write_bytes(data[:12] + b"note" + struct.pack("<I", 3) + b"abc\0" + data[12:])
    assert soundfile.info(source).frames == len(x)
    assert not is_cut_short(source, "WAV")
    source.write_bytes(source.read_bytes()[:-2])
    assert is_cut_short(source, "WAV")


def test_bytes_behind_the_samples_do_no_harm(x, write, bundled, tmp_path):
    source = write("in.wav", x[:-1], "PCM_24")  # an odd number of bytes, then padding
    with source.open("ab") as file:
        file.write(b"LIST" + struct.pack("<I", 4) + b"INFO")
    _, y = run(source, tmp_path / "out.wav", bundled)
    assert len(y) == len(x) - 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("position", [0, 47_999, 48_000, 60_001])
def test_names_the_sample_that_is_no_number(x, write, bundled, tmp_path, position, bad):
    broken = x.copy()
    broken[position] = bad
    broken[-1] = np.nan
    with pytest.raises(AudioError, match=f"sample {position} is {bad}"):
        run(write("in.wav", broken, "FLOAT"), tmp_path / "out.wav", bundled)
    assert not (tmp_path / "out.wav").exists()


def test_refuses_what_the_stream_would_silence(x, write, bundled, tmp_path):
    with pytest.raises(AudioError, match="beyond full scale"):
        run(write("in.wav", x * 2.0**31, "FLOAT"), tmp_path / "out.wav", bundled)


def test_refuses_flac_of_unknown_length(x, write, bundled, tmp_path):
    source = write("in.flac", x)
    data = bytearray(source.read_bytes())
    data[21] &= 0xF0  # the 36 bits of total samples in STREAMINFO
    data[22:26] = bytes(4)
    source.write_bytes(data)
    with pytest.raises(AudioError, match="does not say how long"):
        run(source, tmp_path / "out.wav", bundled)


@pytest.mark.parametrize("riff_size", [0, 36])
def test_tells_how_to_read_an_unfinished_header(x, write, bundled, tmp_path, riff_size):
    source = write("in.wav", x)
    data = bytearray(source.read_bytes())
    data[4:8], data[40:44] = struct.pack("<I", riff_size), bytes(4)
    source.write_bytes(data)
    with pytest.raises(AudioError, match="did not finish") as raised:
        run(source, tmp_path / "out.wav", bundled)
    assert "dfstream run - OUT < IN" in raised.value.hint
    assert source.read_bytes() == data


# -- targets ---------------------------------------------------------------------------------------


def test_replaces_only_when_told(x, write, bundled, tmp_path):
    source, target = write("in.wav", x), tmp_path / "out.wav"
    target.write_bytes(b"precious")
    with pytest.raises(UsageError, match="exists"):
        run(source, target, bundled)
    assert target.read_bytes() == b"precious"
    _, y = run(source, target, bundled, force=True)
    assert len(y) == len(x)


def test_a_failed_run_leaves_the_old_target(x, write, bundled, tmp_path):
    broken = x.copy()
    broken[-1] = np.nan
    source, target = write("in.wav", broken, "FLOAT"), tmp_path / "out.wav"
    target.write_bytes(b"precious")
    with pytest.raises(AudioError):
        run(source, target, bundled, force=True)
    assert target.read_bytes() == b"precious"


def test_in_place(x, write, bundled):
    source = write("in.wav", x, "FLOAT")
    reference = expected(source, bundled)
    _, y = run(source, source, bundled, force=True)
    np.testing.assert_array_equal(y, reference)


@pytest.mark.parametrize(("name", "found"), [("out.xyz", "'.xyz'"), ("out", r"'\(no suffix\)'")])
def test_refuses_unknown_suffixes(x, write, bundled, tmp_path, name, found):
    with pytest.raises(UsageError, match=f"unknown audio format {found}"):
        run(write("in.wav", x), tmp_path / name, bundled)


# -- more than 4 GiB -------------------------------------------------------------------------------


@pytest.mark.parametrize("format_", ["WAV", "WAVEX", "FLAC"])
def test_what_a_wav_file_cannot_hold_becomes_rf64(x, write, bundled, tmp_path, monkeypatch, format_):
    source = write(f"in.{SUFFIX_OF[format_]}", x, "PCM_24", format=format_)
    monkeypatch.setattr(audiofile, "_MAX_WAV_BYTES", 3 * len(x))
    run(source, tmp_path / "fits.wav", bundled)
    assert soundfile.info(tmp_path / "fits.wav").format in ("WAV", "WAVEX")
    monkeypatch.setattr(audiofile, "_MAX_WAV_BYTES", 3 * len(x) - 1)
    _, y = run(source, tmp_path / "large.wav", bundled)
    found = soundfile.info(tmp_path / "large.wav")
    assert (found.format, found.subtype, found.frames) == ("RF64", "PCM_24", len(x))
    np.testing.assert_array_equal(y, soundfile.read(tmp_path / "fits.wav", dtype="float32")[0])
    assert not is_cut_short(tmp_path / "large.wav", "RF64")


def test_the_limit_of_wav_is_that_of_its_sizes():
    assert 0.99 * 2**32 < audiofile._MAX_WAV_BYTES < 2**32


def test_what_rf64_cannot_hold_either_is_refused(x, write, bundled, tmp_path, monkeypatch):
    source = write("in.wav", x, "IMA_ADPCM")
    monkeypatch.setattr(audiofile, "_MAX_WAV_BYTES", len(x))
    with pytest.raises(UsageError, match="more than 4 GiB"):
        run(source, tmp_path / "out.wav", bundled)
    assert [path.name for path in tmp_path.iterdir()] == ["in.wav"]
