"""``dfstream plot``: the local SNR in the picture, the picture, and what is refused."""

from __future__ import annotations

import importlib.util
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import soundfile

from dfstream.cli import _run
from dfstream.files import enhance_file
from dfstream.picture import Recording, draw
from dfstream.plotting import _Listener, _read_lsnr
from dfstream.pooling import Spectrogram, Track

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from dfstream.model import Model

NOISY = Path(__file__).resolve().parent.parent / "examples" / "noisy.wav"

draws = pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="needs matplotlib")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture(scope="module")
def enhanced(tmp_path_factory: pytest.TempPathFactory, bundled: Model) -> tuple[Path, Path]:
    """The example enhanced, and the track of its local SNR."""
    folder = tmp_path_factory.mktemp("enhanced")
    enhance_file(str(NOISY), str(folder / "out.wav"), bundled, lsnr=folder / "lsnr.jsonl")
    return folder / "out.wav", folder / "lsnr.jsonl"


@pytest.fixture
def track_file(tmp_path: Path) -> Path:
    path = tmp_path / "one.jsonl"
    path.write_text('{"hop": 0, "time_s": 0.0, "lsnr_db": 3.5}\n')
    return path


def plot(*args: object) -> int:
    return _run(["plot", *map(str, args)])


def written(path: Path, x: NDArray[Any], rate: int = 48_000, **options: Any) -> Path:
    soundfile.write(path, x, rate, **options)
    return path


def pixels(path: Path) -> NDArray[np.float32]:
    from matplotlib.image import imread

    image: NDArray[np.float32] = imread(path)
    assert image.shape == (1100, 1600, 4)
    return image[..., :3]


def part(image: NDArray[np.float32], panel: int) -> NDArray[np.float32]:
    """The inside of a panel without its frame: what lies between its edges, as fractions of the height."""
    top, bottom = ((0.05, 0.275), (0.345, 0.57), (0.64, 0.75), (0.815, 0.925))[panel]
    return image[int(1100 * top) : int(1100 * bottom), 130:1430]


# -- local SNR -------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["dfn3", "dfn2"])
def test_local_snr_is_the_one_run_writes(
    tmp_path: Path, synthetic_model: Callable[[str], Model], preset: str
) -> None:
    """Also in time: DeepFilterNet2's output lags further behind than its estimates."""
    model = synthetic_model(preset)
    path = tmp_path / "track.jsonl"
    enhance_file(str(NOISY), str(tmp_path / "out.wav"), model, lsnr=path)
    with soundfile.SoundFile(NOISY) as audio:
        x = audio.read(dtype="float32")
        # longer than the audio: nothing may be said about what comes after it
        estimated, read = Track(7.0), Track(7.0)
        listener = _Listener(model, audio, estimated)
    for start in range(0, len(x), 10_001):
        listener.hear(x[start : start + 10_001])
    listener.finish()
    _read_lsnr(path, read)
    np.testing.assert_allclose(estimated.mean, read.mean, atol=1e-3)
    assert np.isfinite(read.mean).sum() == 300
    assert np.ptp(read.mean[:300]) > 1e-2  # something to align


@pytest.mark.parametrize("other_rate", [44_100, 96_000])
def test_local_snr_does_not_depend_on_the_rate(bundled: Model, tmp_path: Path, other_rate: int) -> None:
    import soxr

    x, rate = soundfile.read(NOISY, dtype="float32")
    tracks = []
    for other in (rate, other_rate):
        path = written(tmp_path / f"{other}.wav", soxr.resample(x, rate, other), other, subtype="FLOAT")
        with soundfile.SoundFile(path) as audio:
            track = Track(6.0)
            listener = _Listener(bundled, audio, track)
            listener.hear(audio.read(dtype="float32"))
            listener.finish()
            tracks.append(track.mean)
    matches = [np.corrcoef(tracks[0][5:-5], np.roll(tracks[1], s)[5:-5])[0, 1] for s in (-1, 0, 1)]
    assert np.argmax(matches) == 1
    assert matches[1] > 0.99


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "[]",
        "7",
        '{"hop": 0, "time_s": 0.0}',
        '{"time_s": null, "lsnr_db": 1}',
        '{"time_s": 0, "lsnr_db": NaN}',
        '{"time_s": 0, "lsnr_db": 1}\nRIFF',
        "[" * 5000,
        "\xff\xfe",
    ],
)
@draws
def test_a_file_that_is_no_track_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    path = tmp_path / "track.jsonl"
    path.write_bytes(text.encode("latin-1"))
    assert plot(NOISY, NOISY, "--lsnr", path, "-o", tmp_path / "r.png") == 2
    error = capsys.readouterr().err
    assert str(path) in error
    assert "hint: give a file that dfstream run --lsnr wrote" in error
    assert "line 2" in error or "\nRIFF" not in text
    assert not (tmp_path / "r.png").exists()


# -- the picture -----------------------------------------------------------------------------------


@draws
def test_picture_shows_noise_and_its_absence(
    tmp_path: Path, enhanced: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "r.png"
    assert plot(NOISY, enhanced[0], "-o", report) == 0
    assert capsys.readouterr() == ("", f"drawn: {report}\n")
    image = pixels(report)
    before, after, lsnr, levels = (part(image, panel) for panel in range(4))
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 1000
    assert before.mean() > after.mean() + 0.15  # noise is bright
    assert (before.max(axis=2) < 0.1).mean() < 0.01
    assert (after.max(axis=2) < 0.1).mean() > 0.4
    # white panels with a few coloured lines
    for panel in (lsnr, levels):
        assert (panel.min(axis=2) > 0.99).mean() > 0.6
        assert 0.002 < (np.ptp(panel, axis=2) > 0.2).mean() < 0.2


@draws
def test_a_track_from_a_file_draws_the_same_line(tmp_path: Path, enhanced: tuple[Path, Path]) -> None:
    out, track = enhanced
    assert plot(NOISY, out, "-o", tmp_path / "a.png", "-q") == 0
    assert plot(NOISY, out, "-o", tmp_path / "b.png", "--lsnr", track, "-q") == 0
    a, b = pixels(tmp_path / "a.png"), pixels(tmp_path / "b.png")
    for panel in range(4):
        different = np.abs(part(a, panel) - part(b, panel)).max(axis=2) > 0.1
        assert different.mean() < 1e-4


def recording(rate: int, seconds: float, loudness: float) -> Recording:
    x = (loudness * np.random.default_rng(1).standard_normal(int(rate * seconds))).astype(np.float32)
    spectrogram, level = Spectrogram(len(x), rate), Track(3.0)
    spectrogram.add(x)
    level.add(np.arange(len(x)) / rate, x.astype(np.float64) ** 2)
    return Recording("a file", *spectrogram.finish(), level)


@draws
def test_panels_share_scales_and_name_their_axes() -> None:
    lsnr = Track(3.0)
    lsnr.add(np.linspace(0, 2.9, 50), np.linspace(-20, 40, 50))
    figure = draw(recording(48_000, 2, 0.1), recording(16_000, 3, 0.01), lsnr, 3.0, "LSNR", "A title $")
    before, after, track, levels, bar = figure.axes
    images = [panel.images[0] for panel in (before, after)]
    assert images[0].get_clim() == images[1].get_clim()
    assert {image.get_cmap().name for image in images} == {"magma"}
    assert [image.get_extent()[3] for image in images] == pytest.approx([24.02, 8.02], abs=0.01)
    assert before.get_ylim() == after.get_ylim() == (0, pytest.approx(24, abs=0.05))
    assert {panel.get_xlim() for panel in (before, after, track, levels)} == {(0, 3)}
    assert before.get_ylabel() == after.get_ylabel() == "frequency in kHz"
    assert (levels.get_xlabel(), bar.get_ylabel()) == ("time in s", "power in dBFS")
    assert (track.get_ylabel(), levels.get_ylabel()) == ("LSNR in dB", "RMS in dBFS")
    assert before.get_title("left") == "before: a file"
    assert figure.get_suptitle() == "A title $"
    low, high = track.get_ylim()
    assert low < -20 < 40 < high
    # the line is the level, gaps are gaps
    line_db = levels.lines[0].get_ydata()
    assert np.nanmean(line_db) == pytest.approx(-20, abs=0.5)
    assert np.isnan(line_db[-40:]).all()
    assert [text.get_text() for text in levels.get_legend().get_texts()] == [
        "before (overall −20.0 dBFS)",
        "after (overall −40.0 dBFS)",
    ]


@draws
@pytest.mark.parametrize("suffix", [".svg", ".PDF", ".png"])
def test_suffix_decides_the_format(tmp_path: Path, track_file: Path, suffix: str) -> None:
    path = tmp_path / f"r{suffix}"
    assert plot(NOISY, NOISY, "-o", path, "--lsnr", track_file, "--title", "t") == 0
    head = path.read_bytes()[:1000]
    assert {".svg": b"<svg", ".PDF": b"%PDF", ".png": b"\x89PNG"}[suffix] in head


@draws
@pytest.mark.parametrize("rate", [8_000, 48_000, 192_000])
def test_silence(tmp_path: Path, rate: int) -> None:
    source = written(tmp_path / "silence.wav", np.zeros(rate // 2), rate)
    assert plot(source, source, "-o", tmp_path / "r.png") == 0
    image = pixels(tmp_path / "r.png")
    assert part(image, 0).max() < 0.05
    assert part(image, 1).max() < 0.05
    assert (part(image, 2).min(axis=2) < 0.9).any()


@draws
def test_one_sample_is_seen(tmp_path: Path) -> None:
    source = written(tmp_path / "one.wav", np.full(1, 0.5))
    assert plot(source, source, "-o", tmp_path / "r.png") == 0
    image = pixels(tmp_path / "r.png")
    for panel in (0, 1):
        lit = np.ptp(image[100:300, 100:1450], axis=2) > 0.1
        assert 0 < lit.mean() < 0.05, panel
    for panel in (2, 3):
        assert (np.ptp(part(image, panel), axis=2) > 0.2).any()


@draws
def test_rates_lengths_channels_and_containers_may_differ(
    tmp_path: Path,
    rng: np.random.Generator,
    capsys: pytest.CaptureFixture[str],
    recwarn: pytest.WarningsRecorder,
) -> None:
    """Channels that cancel out are not silent, and no name is too odd."""
    x = 0.1 * rng.standard_normal(66_150)
    stereo = written(tmp_path / "noisy.flac", np.stack([x, -x], 1), 44_100)
    name = "名\u200f\x07" + "x" * 80 + "$^^$.ogg"
    other = written(tmp_path / name, x[:8000], 16_000, format="OGG")
    assert plot(stereo, other, "-o", tmp_path / "r.png") == 0
    assert capsys.readouterr().err == f"drawn: {tmp_path / 'r.png'}\n"
    assert not recwarn.list
    image = pixels(tmp_path / "r.png")
    assert (np.ptp(part(image, 0), axis=2) > 0.2).mean() > 0.95
    after = part(image, 1)
    nothing = (np.abs(after - 0xDD / 255) < 0.01).all(axis=2)
    # audio up to 8 of 22.05 kHz for 0.5 of 1.5 s
    assert nothing.mean() == pytest.approx(1 - 8 / 22.05 / 3, abs=0.03)
    assert nothing[: len(nothing) // 2].all()


@draws
def test_standard_input(tmp_path: Path, track_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(NOISY.read_bytes())))
    assert plot(NOISY, "-", "-o", tmp_path / "r.png", "--lsnr", track_file) == 0
    image = pixels(tmp_path / "r.png")
    assert np.abs(part(image, 0).mean() - part(image, 1).mean()) < 0.02


@draws
def test_nothing_global_is_touched(tmp_path: Path, track_file: Path) -> None:
    """No pyplot, no backend chosen, nothing of matplotlib before it is needed."""
    script = f"""if True:
        import sys
        from dfstream.cli import _run
        import dfstream, dfstream.cli.plot, dfstream.plotting
        assert "matplotlib" not in sys.modules
        import matplotlib
        before = matplotlib.rcParams.copy()
        args = ["plot", {str(NOISY)!r}, {str(NOISY)!r}, "-q"]
        args += ["-o", {str(tmp_path / "r.png")!r}, "--lsnr", {str(track_file)!r}]
        assert _run(args) == 0
        assert "matplotlib.pyplot" not in sys.modules
        assert matplotlib.rcParams.copy() == before
    """
    subprocess.run([sys.executable, "-c", script], check=True)


# -- refused ---------------------------------------------------------------------------------------


def test_without_matplotlib(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    # said before anything else is looked at
    assert plot(tmp_path / "missing.wav", "missing.wav", "-o", tmp_path / "r.png") == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: matplotlib, which draws the picture, is not installed",
        "hint: pip install 'dfstream[plot]'",
    ]


def bad_files(folder: Path) -> dict[str, Path]:
    x = np.full(1000, 0.1, np.float32)
    (folder / "empty.wav").touch()
    (folder / "text.wav").write_text("not audio")
    whole = written(folder / "whole.wav", x).read_bytes()
    (folder / "cut.wav").write_bytes(whole[:-500])
    ogg = written(folder / "whole.ogg", np.random.default_rng(0).standard_normal(48_000) * 0.1).read_bytes()
    (folder / "torn.wav").write_bytes(ogg[: len(ogg) // 2])
    flac = written(folder / "whole.flac", np.random.default_rng(0).standard_normal(48_000) * 0.1).read_bytes()
    (folder / "torn_flac.wav").write_bytes(flac[: len(flac) // 2])
    written(folder / "nan.wav", np.where(np.arange(1000) == 700, np.nan, x), subtype="FLOAT")
    written(folder / "slow.wav", x, 4_000)
    return {path.stem: path for path in folder.glob("*.wav")} | {"missing": folder / "missing.wav"}


@draws
@pytest.mark.parametrize("kind", ["missing", "empty", "text", "cut", "torn", "torn_flac", "slow", "nan"])
@pytest.mark.parametrize("place", ["in", "out"])
def test_wrong_files_are_refused_as_run_does(
    tmp_path: Path, track_file: Path, capsys: pytest.CaptureFixture[str], kind: str, place: str
) -> None:
    (tmp_path / "audio").mkdir()
    bad = bad_files(tmp_path / "audio")[kind]
    pair = (bad, NOISY) if place == "in" else (NOISY, bad)
    assert _run(["run", str(bad), str(tmp_path / "o.wav"), "-q"]) == 5
    expected = capsys.readouterr().err
    before = sorted(tmp_path.iterdir())
    assert plot(*pair, "-o", tmp_path / "r.png", "--lsnr", track_file) == 5
    error = capsys.readouterr().err
    if kind == "nan":
        assert f"{bad}: sample 700 is nan, expected" in error
        assert f"{bad}: sample 700 is nan, expected" in expected
    else:
        assert error == expected
    assert sorted(tmp_path.iterdir()) == before


@draws
def test_a_file_that_ends_early_is_refused(
    tmp_path: Path, track_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As decoders do that stop at damage without a word."""
    blocks = iter([np.zeros((1000, 1), np.float32), np.zeros((0, 1), np.float32)])
    monkeypatch.setattr("dfstream.plotting.read_block", lambda *_: next(blocks))
    assert plot(NOISY, NOISY, "-o", tmp_path / "r.png", "--lsnr", track_file) == 5
    assert f"{NOISY}: cut short" in capsys.readouterr().err


@draws
def test_absurdly_loud_samples_are_refused(
    tmp_path: Path, track_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loud = written(tmp_path / "loud.wav", np.array([0.0, 1e30]), subtype="FLOAT")
    assert plot(loud, NOISY, "-o", tmp_path / "r.png", "--lsnr", track_file) == 5
    assert "sample 1 is 1e+30" in capsys.readouterr().err


@draws
def test_pictures_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "old.png").write_text("mine")
    (tmp_path / "folder.png").mkdir()
    for name, text in (
        ("old.png", "exists"),
        ("r.jpg", "unknown picture format '.jpg'"),
        ("r", "(no suffix)"),
        ("folder.png", "is a folder"),
        ("nowhere/r.png", "does not exist"),
    ):
        # before the audio is looked at
        assert plot("missing.wav", "missing.wav", "-o", tmp_path / name) == 2, name
        assert text in capsys.readouterr().err
    assert (tmp_path / "old.png").read_text() == "mine"


@draws
def test_force_replaces_and_a_failure_leaves_the_old(
    tmp_path: Path, track_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "old.png"
    old.write_text("mine")
    arguments = (NOISY, NOISY, "-o", old, "--lsnr", track_file, "--force")

    def disk_full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    from matplotlib.figure import Figure

    with monkeypatch.context() as broken:
        broken.setattr(Figure, "savefig", disk_full)
        assert plot(*arguments) == 2
    assert old.read_text() == "mine"
    assert sorted(tmp_path.iterdir()) == sorted([old, track_file])
    assert plot(*arguments) == 0
    assert pixels(old).std() > 0.1


def test_model_and_file_exclude_each_other(track_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plot(NOISY, NOISY, "--model", "bundled", "--lsnr", track_file) == 2
    assert "exclude each other" in capsys.readouterr().err


@draws
def test_unknown_model(tmp_path: Path) -> None:
    assert plot(NOISY, NOISY, "-o", tmp_path / "r.png", "--model", "no-such-model") == 2


# -- resources -------------------------------------------------------------------------------------

PEAK = """
import resource, sys
from dfstream.plotting import plot_files
plot_files(sys.argv[1], sys.argv[1], sys.argv[2], sys.argv[3], force=True)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))
"""


@draws
@pytest.mark.slow
def test_memory_does_not_grow_with_length(tmp_path: Path) -> None:
    pytest.importorskip("resource")
    x, rate = soundfile.read(NOISY, dtype="float32")
    track = tmp_path / "track.jsonl"
    with track.open("w") as file:
        for hop in range(120_000):
            file.write(json.dumps({"hop": hop, "time_s": hop / 100, "lsnr_db": hop % 50 - 15}) + "\n")
    peaks = []
    for minutes in (1, 20):
        path = tmp_path / f"{minutes}.wav"
        with soundfile.SoundFile(path, "w", rate, 1) as audio:
            for _ in range(minutes * 10):
                audio.write(x)
        command = [sys.executable, "-c", PEAK, path, tmp_path / "r.png", track]
        peaks.append(int(subprocess.run(command, capture_output=True, check=True, text=True).stdout))
        path.unlink()
    # twenty minutes are 230 MB of float32
    assert peaks[1] - peaks[0] < 20e6
