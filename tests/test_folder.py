"""Many files at once: each as if it were alone, whatever becomes of the others."""

import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from dfstream.errors import BackendError, ModelError
from dfstream.filebatch import Batch, OwnStreams
from dfstream.filepool import PooledStreams, batch_maker
from dfstream.files import enhance_file
from dfstream.folder import FolderRun
from dfstream.model import Model
from dfstream.planning import plan_files

RATE = 48_000

as_root = hasattr(os, "geteuid") and os.geteuid() == 0


@pytest.fixture(autouse=True)
def _load_once(monkeypatch, bundled):
    load = Model.load
    monkeypatch.setattr(Model, "load", lambda source: bundled if source == "bundled" else load(source))


@pytest.fixture
def recordings(tmp_path, noisy):
    """A folder of files of several rates, channels, lengths and formats, with hostile names."""
    folder = tmp_path / "in"
    (folder / "deep er").mkdir(parents=True)
    soundfile.write(folder / "a.wav", noisy[: RATE + 7], RATE, "FLOAT")
    soundfile.write(folder / "-dash.wav", noisy[:300], RATE)
    soundfile.write(folder / "ünï 日本.flac", np.stack([noisy[:RATE], noisy[RATE : 2 * RATE]], 1), RATE)
    soundfile.write(folder / "deep er" / "a.ogg", noisy[: 3 * RATE], 16_000)
    (folder / "notes.txt").write_text("not audio")
    return folder


@pytest.fixture
def cli(cli):
    """Run one command; as the fixture of all commands."""
    return functools.partial(cli, "run")


def process(*args):
    command = [sys.executable, "-m", "dfstream", "run", *map(str, args)]
    return subprocess.run(command, capture_output=True, timeout=120)


def tree(folder):
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def statuses(report):
    return {Path(entry["source"]).name: entry["status"] for entry in report["files"]}


# -- results ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("jobs", [1, 3])
def test_each_file_is_as_if_it_were_alone(cli, recordings, tmp_path, bundled, jobs):
    code, out, err = cli(recordings, tmp_path / "out", "-r", "--jobs", jobs, "--backend", "ort-cpu")
    assert (code, out) == (0, "")
    names = {"a.wav", "-dash.wav", "ünï 日本.flac", "deep er/a.ogg"}
    assert tree(tmp_path / "out") == names
    for name in names:
        alone = tmp_path / f"alone{Path(name).suffix}"
        enhance_file(str(recordings / name), str(alone), bundled, force=True, backend="ort-cpu")
        # one step of 16 bits, where rounding in other company tips it over
        np.testing.assert_allclose(
            soundfile.read(tmp_path / "out" / name)[0], soundfile.read(alone)[0], rtol=0, atol=1.1 / 2**15
        )
    assert err.startswith("4 of 4 files enhanced, ")
    assert err.endswith(", 1 other files ignored\n")
    assert len(err.splitlines()) == 1


def test_json_and_report_say_what_became_of_each(cli, recordings, tmp_path):
    (recordings / "broken.wav").write_text("no audio at all")
    report = tmp_path / "report.json"
    code, out, err = cli(recordings, tmp_path / "out", "--json", "--report", report)
    assert code == 1
    assert json.loads(out) == json.loads(report.read_text())
    result = json.loads(out)
    assert statuses(result) == {
        "-dash.wav": "ok", "a.wav": "ok", "broken.wav": "failed", "ünï 日本.flac": "ok",
    }  # fmt: skip
    assert (result["ok"], result["failed"], result["skipped"], result["ignored"]) == (3, 1, 0, 1)
    entry = next(entry for entry in result["files"] if entry["source"].endswith("a.wav"))
    assert (entry["samples"], entry["sample_rate"], entry["channels"]) == (RATE + 7, RATE, 1)
    assert entry["clipped"] == 0
    assert entry["real_time_factor"] == pytest.approx(entry["seconds"] / (entry["samples"] / RATE))
    assert result["audio_seconds"] == pytest.approx((RATE + 7 + 300 + RATE) / RATE)
    failed = next(entry for entry in result["files"] if entry["status"] == "failed")
    assert failed["reason"].startswith("not audio that can be read")
    assert failed["hint"] == "WAV, FLAC and OGG are"
    lines = err.splitlines()
    assert lines[0].startswith(f"failed: {recordings / 'broken.wav'}: not audio")
    assert lines[-1] == "error: 1 of 4 files failed"


def test_another_format(cli, recordings, tmp_path):
    assert cli(recordings, tmp_path / "out", "--format", "FLAC", "-q") == (0, "", "")
    assert tree(tmp_path / "out") == {"a.flac", "-dash.flac", "ünï 日本.flac"}
    assert soundfile.info(tmp_path / "out" / "a.flac").format == "FLAC"


def test_a_single_file_into_a_folder(cli, recordings, tmp_path):
    (tmp_path / "out").mkdir()
    assert cli(recordings / "a.wav", tmp_path / "out")[0] == 0
    assert cli(f"{recordings}/*.flac", f"{tmp_path}/new/")[0] == 0
    assert tree(tmp_path / "out") == {"a.wav"}
    assert tree(tmp_path / "new") == {"ünï 日本.flac"}


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names are text there")
def test_names_that_are_no_text(recordings, tmp_path):
    name = os.fsdecode(b"not \xff text.wav")
    (recordings / "a.wav").rename(recordings / name)
    done = process(recordings, tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    assert statuses(json.loads(done.stdout))[name] == "ok"
    assert (tmp_path / "out" / name).exists()


def test_names_do_not_command_the_terminal(recordings, tmp_path):
    (recordings / "evil\x1b[31m\n.wav").write_text("not audio")
    done = process(recordings, tmp_path / "out")
    assert done.returncode == 1
    assert b"\x1b" not in done.stderr
    assert len(done.stderr.splitlines()) == 3  # the failure, the closing line, the error


def test_clipped_samples_are_counted(cli, tmp_path, noisy):
    (tmp_path / "in").mkdir()
    loud = noisy[:RATE] * (1.5 / np.abs(noisy[:RATE]).max())
    soundfile.write(tmp_path / "in" / "a.wav", loud, RATE, "FLOAT")
    soundfile.write(tmp_path / "in" / "b.wav", np.clip(loud, -1, 1), RATE)
    code, out, err = cli(
        tmp_path / "in", tmp_path / "out", "--json", "--format", "flac", "--atten-lim-db", "0"
    )
    assert code == 0
    counts = [entry["clipped"] for entry in json.loads(out)["files"]]
    assert counts[0] == np.count_nonzero(np.abs(loud) > 1)
    assert err == ""


# -- failures --------------------------------------------------------------------------------------


def test_bad_files_do_not_stop_the_rest(cli, recordings, tmp_path, noisy):
    (recordings / "empty.wav").touch()
    soundfile.write(recordings / "nan.wav", np.full(RATE, np.nan), RATE, "FLOAT")
    soundfile.write(recordings / "cut.wav", noisy[:RATE], RATE)
    os.truncate(recordings / "cut.wav", RATE)
    (recordings / "dir.wav").mkdir()
    (recordings / "gone.wav").symlink_to(recordings / "nowhere")
    code, out, _ = cli(recordings, tmp_path / "missing.wav", tmp_path / "out", "--json")
    assert code == 1
    reasons = {
        Path(e["source"]).name: e["reason"] for e in json.loads(out)["files"] if e["status"] == "failed"
    }
    assert reasons == {
        "empty.wav": "empty",
        "nan.wav": "sample 0 is nan, expected a finite number",
        "cut.wav": "cut short, the file ends before its end",
        "gone.wav": "no such file",
        "missing.wav": "no such file",
    }
    assert tree(tmp_path / "out") == {"a.wav", "-dash.wav", "ünï 日本.flac"}


@pytest.mark.skipif(as_root, reason="root may read everything")
def test_unreadable_files_do_not_stop_the_rest(cli, recordings, tmp_path):
    (recordings / "a.wav").chmod(0)
    code, out, _ = cli(recordings, tmp_path / "out", "--json")
    assert code == 1
    assert statuses(json.loads(out))["a.wav"] == "failed"
    assert tree(tmp_path / "out") == {"-dash.wav", "ünï 日本.flac"}


def test_a_place_that_cannot_be_written_fails_its_file(cli, recordings, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "deep er").write_text("a file in the place of a folder")
    code, out, _ = cli(recordings, tmp_path / "out", "-r", "--json")
    assert code == 1
    (failed,) = (entry for entry in json.loads(out)["files"] if entry["status"] == "failed")
    assert failed["reason"].startswith("cannot make the folder")
    assert len(tree(tmp_path / "out")) == 4


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_nothing_to_do_is_an_error(cli, tmp_path, options):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "notes.txt").touch()
    code, out, err = cli(tmp_path / "in", tmp_path / "out", *options)
    assert (code, out) == (5, "")
    assert err.startswith("error: no audio files found, 1 other files ignored\nhint: looked for .wav .flac")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["in", "out.wav"], 2, "OUT has to be a folder"),
        (["in", "-"], 2, "OUT has to be a folder"),
        (["-", "in/a.wav", "out"], 2, "standard input is one file"),
        (["in", "out", "--format", "doc"], 2, "unknown format 'doc'"),
        (["in", "out", "--force", "--resume"], 2, "exclude each other"),
        (["in", "out", "--lsnr", "l.jsonl"], 2, "--lsnr is for one file"),
        (["in", "out", "--report", "in/notes.txt"], 2, "in/notes.txt exists"),
        (["in", "out", "--model", "none"], 2, "no model 'none'"),
        (["in/a.wav", "in/*.wav", "in"], 2, "would take the place of an input"),
        (["none/*.wav", "out"], 2, "matches no file"),
    ],
)
@pytest.mark.usefixtures("recordings")
def test_refused_before_anything_is_done(cli, tmp_path, monkeypatch, args, code, says):
    monkeypatch.chdir(tmp_path)
    before = tree(tmp_path)
    actual, out, err = cli(*args)
    assert (actual, out) == (code, ""), err
    assert says in err
    assert tree(tmp_path) == before
    assert not (tmp_path / "out").exists()


def test_an_impossible_mode_is_refused_once(recordings, tmp_path, synthetic_model):
    plan = plan_files([str(recordings)], tmp_path / "out")
    model = synthetic_model("dfn3-ll")
    with pytest.raises(ModelError, match="no window of features"):
        FolderRun(plan, model, lambda: OwnStreams(model, mode="stateful-h0"))


# -- what exists -----------------------------------------------------------------------------------


def test_existing_results_are_refused_replaced_or_kept(cli, recordings, tmp_path):
    out = tmp_path / "out"
    assert cli(recordings, out)[0] == 0
    whole = soundfile.read(out / "a.wav")[0]
    (out / "a.wav").write_bytes(b"somebody's")

    code, _, err = cli(recordings, out)
    assert code == 1
    assert f"failed: {recordings / 'a.wav'}: {out / 'a.wav'} exists" in err
    assert (out / "a.wav").read_bytes() == b"somebody's"

    code, _, err = cli(recordings, out, "--resume")
    assert code == 0
    assert err.startswith("0 of 3 files enhanced, 3 skipped, 0.0 s of audio in ")
    assert (out / "a.wav").read_bytes() == b"somebody's"

    os.utime(recordings / "a.wav", (time.time() + 10,) * 2)
    code, printed, _ = cli(recordings, out, "--resume", "--json")
    assert code == 0
    assert statuses(json.loads(printed)) == {
        "-dash.wav": "skipped",
        "a.wav": "ok",
        "ünï 日本.flac": "skipped",
    }
    np.testing.assert_array_equal(soundfile.read(out / "a.wav")[0], whole)

    (out / "a.wav").write_bytes(b"somebody's")
    assert cli(recordings, out, "--force")[0] == 0
    np.testing.assert_array_equal(soundfile.read(out / "a.wav")[0], whole)


def test_results_inside_the_input_are_not_enhanced_again(cli, recordings):
    for _ in range(2):
        assert cli(recordings, recordings / "out", "--recursive", "--force")[0] == 0
    assert tree(recordings / "out") == {"a.wav", "-dash.wav", "ünï 日本.flac", "deep er/a.ogg"}


# -- interruptions ---------------------------------------------------------------------------------


@pytest.fixture
def many(tmp_path, noisy):
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(12):
        soundfile.write(folder / f"{number:02}.wav", np.tile(noisy, 12), RATE)
    return folder


def start(*args):
    command = [sys.executable, "-m", "dfstream", "run", *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def wait_for_results(child, folder, count):
    """Wait until some results are there and another is being made."""
    while True:
        assert child.poll() is None, child.communicate()
        names = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
        if sum(not name.startswith(".") for name in names) >= count and names[0].startswith("."):
            return
        time.sleep(0.005)


def is_whole(path, sources):
    return soundfile.info(path).frames == soundfile.info(sources / path.name).frames


@pytest.mark.skipif(sys.platform == "win32", reason="signals are of POSIX")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted(many, tmp_path, number, code):
    out, report = tmp_path / "out", tmp_path / "report.json"
    child = start(many, out, "--jobs", 2, "--json", "--report", report)
    wait_for_results(child, out, 2)
    child.send_signal(number)
    printed, err = child.communicate(timeout=60)
    assert child.returncode == code, err
    result = json.loads(printed)
    assert result == json.loads(report.read_text())
    assert result["failed"] == result["skipped"] == 0
    assert result["ok"] >= 2
    assert result["interrupted"] == 12 - result["ok"] > 0
    assert tree(out) == {name for name, status in statuses(result).items() if status == "ok"}
    assert all(
        soundfile.info(path).frames == soundfile.info(many / path.name).frames for path in out.iterdir()
    )


@pytest.mark.skipif(sys.platform == "win32", reason="signals are of POSIX")
def test_resumed_after_a_kill(many, tmp_path):
    out = tmp_path / "out"
    child = start(many, out)
    wait_for_results(child, out, 2)
    child.kill()
    child.communicate(timeout=60)
    done = {path.name: path.read_bytes() for path in out.glob("[!.]*")}
    assert 2 <= len(done) < 12
    again = start(many, out, "--resume", "--json")
    printed, err = again.communicate(timeout=120)
    assert again.returncode == 0, err
    assert {name for name, status in statuses(json.loads(printed)).items() if status == "skipped"} == set(
        done
    )
    assert {path.name for path in out.glob("[!.]*")} == {path.name for path in many.iterdir()}
    assert {name: (out / name).read_bytes() for name in done} == done
    assert all(
        soundfile.info(path).frames == soundfile.info(many / path.name).frames for path in out.glob("[!.]*")
    )


# -- files that pass together ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"atten_lim_db": 10.0, "post_filter": 0.03}, {"parity": "python"}, {"mode": "streaming"}]
)
def test_pooled_files_are_those_of_own_streams(bundled, noisy, options):
    """In mono at the model's rate, in stereo, at another rate; of several lengths, in blocks of any size."""
    sources = {
        number: (rate, noisy[number * RATE : number * RATE + length].reshape(-1, channels))
        for number, (rate, channels, length) in enumerate(
            [(RATE, 1, 70_000), (RATE, 1, 30_001), (RATE, 2, 50_000), (16_000, 1, 20_000), (RATE, 1, 100)]
        )
    }
    pooled, own = PooledStreams(bundled, 3, **options), OwnStreams(bundled, **options)
    results = {}
    for batch in (pooled, own):
        delays = {number: batch.join(number, rate, x.shape[1]) for number, (rate, x) in sources.items()}
        parts = {number: [] for number in sources}
        for start in range(0, 70_000, 7_777):
            blocks = {n: x[start : start + 7_777] for n, (_, x) in sources.items() if len(x) > start}
            for number, y in batch.process(blocks).items():
                parts[number].append(y)
        results[batch] = {n: np.concatenate([*part, batch.leave(n)]) for n, part in parts.items()}
        assert {n: len(y) - delays[n] for n, y in results[batch].items()} == {
            n: len(x) for n, (_, x) in sources.items()
        }
    for number in sources:
        # sums in another order, and once more where a resampler follows
        np.testing.assert_allclose(results[pooled][number], results[own][number], rtol=0, atol=2e-5)


def test_places_in_a_pool_are_free_again(bundled, noisy):
    batch = PooledStreams(bundled, 2)
    for number in range(5):
        batch.join(number, RATE, 1)
        batch.process({number: noisy[:5000, None]})
        batch.abandon(number)
    batch.abandon(99)


@pytest.mark.parametrize(
    ("files", "jobs", "options", "width"),
    [
        (32, 1, {}, 4),
        (4, 2, {}, 2),
        (3, 3, {}, 1),
        (32, 1, {"skip_silence": True}, 1),
        (32, 1, {"min_db_thresh": -10.0, "max_db_erb_thresh": 35.0, "max_db_df_thresh": 35.0}, 1),
        (32, 1, {"mode": "stateful-h0"}, 1),
        (32, 1, {"mode": "streaming", "max_db_df_thresh": 35.0}, 4),
    ],
)
def test_how_many_pass_together(bundled, files, jobs, options, width):
    assert batch_maker(bundled, files, jobs, **options)().width == width


# -- another implementation of the seam ------------------------------------------------------------


class Together(Batch):
    """Several sources at a time, each of which is passed through; the call for some of them may fail."""

    width = 3

    def __init__(self, poison=None):
        self.poison, self.seen, self.now = poison, [], set()

    def join(self, source, sample_rate, channels):  # noqa: ARG002
        self.now.add(source)
        return 0

    def process(self, blocks):
        self.seen.append(set(blocks))
        if self.poison in blocks:
            raise BackendError("the network failed")
        return dict(blocks)

    def leave(self, source):  # noqa: ARG002
        return np.zeros(0, np.float32)

    def abandon(self, source):
        self.now.discard(source)


@pytest.fixture
def five(tmp_path, noisy):
    (tmp_path / "in").mkdir()
    for number in range(5):
        soundfile.write(tmp_path / "in" / f"{number}.wav", noisy[: (number + 1) * RATE], RATE)
    return plan_files([str(tmp_path / "in")], tmp_path / "out")


def test_sources_pass_together_and_the_next_takes_a_free_place(five, bundled):
    batch, events = Together(), []
    run = FolderRun(five, bundled, lambda: batch)
    run.finish(events.append)
    assert [outcome.status for outcome in run.outcomes] == ["ok"] * 5
    assert batch.seen[0] == {0, 1, 2}
    assert max(map(len, batch.seen)) == 3
    assert any(3 in seen and 2 in seen for seen in batch.seen)
    assert batch.now == set()
    for job in five.jobs:
        np.testing.assert_array_equal(soundfile.read(job.target)[0], soundfile.read(job.source)[0])
    ends = [event.job for event in events if event.outcome is not None]
    assert sorted(ends, key=five.jobs.index) == list(five.jobs)


def test_a_failing_call_fails_its_sources_only(five, bundled, tmp_path):
    batch = Together(poison=1)
    run = FolderRun(five, bundled, lambda: batch)
    run.finish()
    by_name = {Path(outcome.source).stem: outcome for outcome in run.outcomes}
    assert by_name["1"].status == "failed"
    assert by_name["1"].reason == "the network failed"
    assert by_name["4"].status == "ok"
    assert batch.now == set()
    assert tree(tmp_path / "out") == {f"{name}.wav" for name, o in by_name.items() if o.status == "ok"}


def test_a_bug_in_one_file_is_said_and_stops_nothing(five, bundled, monkeypatch):
    from dfstream import folder

    opened = folder.opened

    def fail(source):
        if source.endswith("2.wav"):
            raise ZeroDivisionError("oops")
        return opened(source)

    monkeypatch.setattr(folder, "opened", fail)
    run = FolderRun(five, bundled, lambda: OwnStreams(bundled), jobs=2)
    run.finish()
    reasons = {Path(outcome.source).stem: outcome.reason for outcome in run.outcomes}
    assert reasons == {**dict.fromkeys("0134"), "2": "internal error: ZeroDivisionError: oops"}


def test_an_interruption_of_the_calling_thread_ends_all(five, bundled, tmp_path):
    def interrupt(event):
        if event.done_s:
            raise KeyboardInterrupt

    run = FolderRun(five, bundled, lambda: OwnStreams(bundled))
    with pytest.raises(KeyboardInterrupt):
        run.finish(interrupt)
    assert len(run.outcomes) == 5
    assert {outcome.status for outcome in run.outcomes} <= {"ok", "interrupted"}
    kept = {Path(outcome.source).name for outcome in run.outcomes if outcome.status == "ok"}
    assert tree(tmp_path / "out") == kept
