"""The command line: what it prints, how it ends, what it leaves behind."""

import io
import json
import os
import signal
import struct
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from conftest import SYNTHETIC
from dfstream import checking, enhance
from dfstream.interface import EXPORTS
from dfstream.model import Model
from dfstream.modes.base import find_mode, mode_names

RATE = 48_000
COMMANDS = ("run", "patch", "inspect", "models", "warm", "demo")
OFFICIAL_NOT_HERE = "dfn2-ll"

as_root = hasattr(os, "geteuid") and os.geteuid() == 0


@pytest.fixture(autouse=True)
def _load_once(monkeypatch, bundled, synthetic_folder, synthetic_model):
    """Loading and patching in memory take a second each time: share the models that are never written to."""
    load = Model.load
    known = {str(synthetic_folder(name)): name for name in SYNTHETIC}

    def load_once(source=None):
        if source in ("bundled", None):
            return bundled
        return synthetic_model(known[source]) if source in known else load(source)

    monkeypatch.setattr(Model, "load", load_once)


@pytest.fixture
def refused(cli, tmp_path):
    """Run a command that must fail cleanly, in one ``error:`` line; return its text."""

    def run(code, *args):
        before = tree(tmp_path)
        actual, out, err = cli(*args)
        assert actual == code, err
        assert out == ""
        assert tree(tmp_path) == before
        return check_error(err)

    return run


def check_error(err):
    lines = err.strip().splitlines()
    assert lines[0].startswith("error: "), err
    assert len(lines) == 1 or (len(lines) == 2 and lines[1].startswith("hint: ")), err
    assert "Traceback" not in err
    assert "internal error" not in err
    return err


def tree(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")
    }


@pytest.fixture
def noisy_wav(tmp_path, noisy):
    path = tmp_path / "noisy.wav"
    soundfile.write(path, noisy[:30_137], RATE, "FLOAT")
    return path


def read(path):
    return soundfile.read(path, dtype="float32")[0]


def process(*args, **options):
    return subprocess.run(
        [sys.executable, "-m", "dfstream", *map(str, args)], capture_output=True, timeout=120, **options
    )


# -- the program as a whole ------------------------------------------------------------------------


def test_help_lists_the_commands(cli):
    code, out, err = cli("--help")
    assert (code, err) == (0, "")
    assert all(f"  {name} " in out for name in COMMANDS)
    assert "130 interrupted" in out.replace("\n", " ").replace("  ", " ")


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_every_command_has_help(cli, name, flag):
    code, out, err = cli(name, flag)
    assert (code, err) == (0, "")
    assert out.startswith(f"Usage: dfstream {name} ")
    assert all(len(line) <= 80 for line in out.splitlines()), "click wraps where no terminal is known"


def test_help_names_all_modes(cli):
    for name in ("run", "patch"):
        assert "|".join(mode_names()) in cli(name, "--help")[1]


def test_version(cli):
    from dfstream import __version__

    assert cli("--version")[:2] == (0, f"dfstream {__version__}\n")


def test_no_command_is_usage(cli):
    code, _, err = cli()
    assert code == 2
    assert err.startswith("Usage: dfstream")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["nonsense"], "nonsense"),
        (["--nonsense"], "--nonsense"),
        (["run"], "IN"),
        (["run", "a.wav"], "IN"),
        (["run", "--jobs", "2", "a.wav", "b.wav"], "--jobs"),
        (["run", "--report", "r.json", "a.wav", "b.wav"], "--report"),
        (["run", "--threads", "0", "a", "b"], "--threads"),
        (["patch"], "MODEL"),
        (["inspect", "--nonsense"], "--nonsense"),
    ],
)
def test_wrong_command_lines(refused, args, says):
    err = refused(2, *args)
    assert says in err.splitlines()[0]
    assert "--help" in err.splitlines()[1]


def test_a_bug_is_called_a_bug(cli, noisy_wav, tmp_path, monkeypatch):
    def fail(*_args, **_options):
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("dfstream.files.enhance_file", fail)
    code, _, err = cli("run", noisy_wav, tmp_path / "out.wav")
    assert code == 70
    assert err.splitlines()[0] == "error: internal error: ZeroDivisionError: oops"
    monkeypatch.setenv("DFSTREAM_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        cli("run", noisy_wav, tmp_path / "out.wav")


@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("dfstream run --mode st", "streaming"),
        ("dfstream ", "patch"),
        ("dfstream run --backend o", "ort-cpu"),
    ],
)
def test_shell_completion(line, completed):
    words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)}
    done = process(env={**os.environ, **words, "_DFSTREAM_COMPLETE": "bash_complete"})
    offered = done.stdout.decode().split()
    assert f"plain,{completed}" in offered
    if "mode" in line:
        assert offered == [f"plain,{name}" for name in mode_names() if name.startswith("st")]


# -- run -------------------------------------------------------------------------------------------


def test_run(cli, noisy_wav, tmp_path, bundled):
    code, out, err = cli("run", noisy_wav, tmp_path / "out.wav")
    assert (code, out) == (0, "")
    np.testing.assert_array_equal(read(tmp_path / "out.wav"), enhance(read(noisy_wav), model=bundled))
    assert f"{tmp_path / 'out.wav'}: 0.63 s of audio" in err
    assert "delay 1440 samples (30 ms) compensated" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("args", "options"),
    [
        *((["--mode", mode], {"mode": mode}) for mode in mode_names()),
        (["--parity", "python"], {"parity": "python"}),
        (["--atten-lim-db", "12"], {"atten_lim_db": 12.0}),
        (["--atten-lim-db", "0"], {"atten_lim_db": 0.0}),
        (["--post-filter", "0.05"], {"post_filter": 0.05}),
        (["--threads", "2"], {}),
    ],
    ids=lambda value: "-".join(value).strip("-") if isinstance(value, list) else "",
)
def test_run_options(cli, synthetic_folder, synthetic_model, noisy_wav, tmp_path, args, options):
    code, _, err = cli(
        "run", noisy_wav, tmp_path / "out.wav", "--model", synthetic_folder("dfn3"), "-q", *args
    )
    assert (code, err) == (0, "")
    reference = enhance(read(noisy_wav), model=synthetic_model("dfn3"), **options)
    np.testing.assert_array_equal(read(tmp_path / "out.wav"), reference)


@pytest.mark.parametrize("name", [name for name in SYNTHETIC if name != "wideband16k"])
def test_run_every_variant(cli, synthetic_folder, synthetic_model, noisy_wav, tmp_path, name):
    assert cli("run", noisy_wav, tmp_path / "out.wav", "-m", synthetic_folder(name))[0] == 0
    reference = enhance(read(noisy_wav), model=synthetic_model(name))
    np.testing.assert_array_equal(read(tmp_path / "out.wav"), reference)


def test_run_leaves_the_delay_in(cli, noisy_wav, tmp_path, bundled):
    code, _, err = cli("run", noisy_wav, tmp_path / "out.wav", "--no-compensate-delay")
    y, delay = read(tmp_path / "out.wav"), bundled.config.delay_samples
    assert code == 0
    assert "delay 1440 samples (30 ms) not compensated" in err
    np.testing.assert_array_equal(y[delay:], enhance(read(noisy_wav), model=bundled)[:-delay])


def test_run_json(cli, noisy_wav, tmp_path):
    code, out, err = cli("run", noisy_wav, tmp_path / "out.wav", "--json")
    result = json.loads(out)
    assert (code, err) == (0, "")
    assert result["samples"] == 30_137
    assert result["output"] == str(tmp_path / "out.wav")
    assert {"model": "bundled", "sample_rate": RATE, "delay_samples": 1440, "delay_compensated": True,
            "clipped": 0}.items() <= result.items()  # fmt: skip


def test_run_quiet(cli, noisy_wav, tmp_path):
    assert cli("run", noisy_wav, tmp_path / "out.wav", "--quiet") == (0, "", "")


def test_run_warns_of_clipping(cli, tmp_path, noisy):
    soundfile.write(tmp_path / "loud.wav", 40 * noisy[:30_000], RATE, "FLOAT")
    code, _, err = cli("run", tmp_path / "loud.wav", tmp_path / "out.flac")
    assert code == 0
    assert err.startswith("warning: ")
    assert "beyond full scale" in err


def test_run_in_place(cli, noisy_wav, bundled):
    reference = enhance(read(noisy_wav), model=bundled)
    assert cli("run", noisy_wav, noisy_wav, "--force")[0] == 0
    np.testing.assert_array_equal(read(noisy_wav), reference)
    assert [p.name for p in noisy_wav.parent.iterdir()] == [noisy_wav.name]


# -- run: pipes ------------------------------------------------------------------------------------


def header_of_pipe(data, size):
    """Do to a WAV file what programs do that cannot go back: leave both sizes at a dummy."""
    data = bytearray(data)
    at = data.index(b"data") + 4
    data[4:8] = data[at : at + 4] = struct.pack("<I", size)
    return bytes(data)


@pytest.mark.parametrize("size", [None, 0, 0xFFFF_FFFF, 0x7FFF_F000])
def test_run_in_a_pipe(noisy_wav, tmp_path, bundled, size):
    data = noisy_wav.read_bytes()
    (tmp_path / "temporary").mkdir()
    environment = {**os.environ, "TMPDIR": str(tmp_path / "temporary")}
    given = data if size is None else header_of_pipe(data, size)
    done = process("run", "-", "-", input=given, env=environment)
    assert done.returncode == 0, done.stderr.decode()
    assert b"standard output: 0.63 s" in done.stderr
    (tmp_path / "out.wav").write_bytes(done.stdout)
    np.testing.assert_array_equal(
        read(tmp_path / "out.wav"), enhance(read(noisy_wav), model=bundled), strict=True
    )
    assert list((tmp_path / "temporary").glob("dfstream*")) == []


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "standard input: empty"),
        (b"hello\n", "standard input: not audio"),
        ("cut", "standard input: cut short"),
    ],
)
def test_run_refuses_a_broken_pipe(refused, noisy_wav, tmp_path, monkeypatch, data, says):
    given = noisy_wav.read_bytes()[:-100] if data == "cut" else data
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given)))
    assert says in refused(5, "run", "-", tmp_path / "out.wav")


@pytest.mark.skipif(sys.platform == "win32", reason="/dev/full is of POSIX")
def test_run_a_full_disk(noisy_wav):
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "dfstream", "run", noisy_wav, "-"], stdout=full, stderr=subprocess.PIPE
        )
    assert done.returncode == 2
    assert "standard output: cannot be written (No space left" in check_error(done.stderr.decode())


@pytest.mark.skipif(sys.platform == "win32", reason="pipes end otherwise")
def test_run_ends_in_silence_when_its_reader_has_gone(noisy_wav):
    child = subprocess.Popen(
        [sys.executable, "-m", "dfstream", "run", noisy_wav, "-"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    child.stdout.close()
    assert (child.stderr.read(), child.wait(timeout=60)) == (b"", 1)
    child.stderr.close()


def test_run_json_and_audio_cannot_share_stdout(refused, noisy_wav):
    assert "--json" in refused(2, "run", noisy_wav, "-", "--json")


@pytest.mark.skipif(sys.platform == "win32", reason="signals are of POSIX")
@pytest.mark.parametrize(
    ("number", "code", "says"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_run_interrupted(tmp_path, number, code, says):
    source = tmp_path / "long.wav"
    soundfile.write(source, np.zeros(RATE, np.int16), RATE)
    size = 3600 * RATE * 2
    data = header_of_pipe(source.read_bytes()[:44], size)
    source.write_bytes(data)
    os.truncate(source, 44 + size)
    (tmp_path / "out").mkdir()
    child = subprocess.Popen(
        [sys.executable, "-m", "dfstream", "run", source, tmp_path / "out" / "out.wav"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    while not any(p.stat().st_size > 100_000 for p in (tmp_path / "out").iterdir()):
        assert child.poll() is None
        time.sleep(0.02)
    child.send_signal(number)
    out, err = child.communicate(timeout=60)
    assert (child.returncode, out) == (code, b"")
    assert err.decode().strip() == f"error: {says}"
    assert list((tmp_path / "out").iterdir()) == []


# -- run: refusals ---------------------------------------------------------------------------------


@pytest.fixture
def broken(tmp_path, noisy):
    """Make an input that must be refused, by kind; return its path."""

    def make(kind):
        x, path = noisy[:30_000].copy(), tmp_path / f"in.{kind.partition('.')[2] or 'wav'}"
        if kind == "missing":
            return path
        if kind == "empty":
            path.touch()
        elif kind == "text":
            path.write_text("This is no audio.\n" * 100)
        elif kind == "rate":
            soundfile.write(path, x, 4_000)
        elif kind == "channels":
            soundfile.write(path, np.stack([x[:100]] * 65, 1), RATE)
        elif kind == "no samples":
            soundfile.write(path, x[:0], RATE)
        elif kind == "nan":
            x[12_345] = np.nan
            soundfile.write(path, x, RATE, "FLOAT")
        else:
            soundfile.write(path, x, RATE)
            path.write_bytes(path.read_bytes()[: int(0.6 * path.stat().st_size)])
        return path

    return make


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("missing", "no such file"),
        ("empty", "empty"),
        ("text", "not audio"),
        ("rate", "4000 Hz, expected 8000 to 192000 Hz"),
        ("channels", "65 channels, expected at most 64"),
        ("no samples", "holds no samples"),
        ("nan", "sample 12345 is nan"),
        ("cut.wav", "cut short"),
        ("cut.flac", "cut short"),
        ("cut.ogg", "cut short"),
    ],
)
def test_run_refuses_inputs(refused, broken, tmp_path, kind, says):
    source = broken(kind)
    err = refused(5, "run", source, tmp_path / "out.wav")
    assert err.startswith(f"error: {source}: ")
    assert says in err


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["--model", "nonsense"], 2, "no model 'nonsense'"),
        (["--model", OFFICIAL_NOT_HERE], 3, f"hint: dfstream models pull {OFFICIAL_NOT_HERE}"),
        (["--mode", "nonsense"], 2, "unknown mode 'nonsense', choose from audio-graph, incremental"),
        (["--backend", "nonsense"], 2, "unknown backend 'nonsense', choose from auto, "),
        (["--parity", "nonsense"], 2, "'rust', 'python'"),
        (["--atten-lim-db", "-1"], 2, "--atten-lim-db"),
        (["--atten-lim-db", "nan"], 2, "nan"),
        (["--post-filter", "2"], 2, "--post-filter"),
    ],
)
def test_run_refuses_options(refused, noisy_wav, tmp_path, args, code, says):
    assert says in refused(code, "run", noisy_wav, tmp_path / "out.wav", *args)


def test_run_refuses_a_model_that_is_none(refused, noisy_wav, tmp_path):
    assert "not an ONNX model" in refused(3, "run", noisy_wav, tmp_path / "out.wav", "-m", noisy_wav)
    assert "no ONNX graph" in refused(3, "run", noisy_wav, tmp_path / "out.wav", "-m", tmp_path)


def test_run_refuses_a_mode_without_window(refused, noisy_wav, tmp_path, synthetic_folder):
    err = refused(
        3, "run", noisy_wav, tmp_path / "o.wav", "-m", synthetic_folder("dfn3-ll"), "--mode", "stateful-h0"
    )
    assert "behind a GRU" in err
    assert "hint: use the mode incremental or streaming" in err


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("noisy.wav", "exists\nhint: use --force"),
        ("none/out.wav", "none does not exist"),
        (".", "would take the place of an input"),
        ("out.xyz", "unknown audio format '.xyz'"),
        ("out", "unknown audio format '(no suffix)'"),
    ],
)
def test_run_refuses_targets(refused, noisy_wav, tmp_path, target, says):
    assert says in refused(2, "run", noisy_wav, tmp_path / target)


@pytest.mark.skipif(as_root, reason="root may write everywhere")
def test_run_refuses_an_unwritable_folder(refused, noisy_wav, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    assert "cannot write" in refused(2, "run", noisy_wav, tmp_path / "locked" / "out.wav")


# -- patch -----------------------------------------------------------------------------------------

STREAMING = ["enc_conv_streaming", "enc_gru_streaming", "erb_dec_streaming", "df_dec_streaming"]

#: Of each mode: its files, and what its report has to tell.
GRUS, CONTEXT = "expose_gru_state: h0 ", "cache_causal_context: ctx_"
PATCHED = {
    "stateful-h0": (
        ["combined_streaming"],
        ["merge: enc, erb_dec, df_dec", GRUS, "keep_last_frame: ", "free_batch: "],
    ),
    "streaming": (STREAMING, ["merge: enc, ", GRUS, CONTEXT, "split_encoder: enc_conv_streaming, "]),
    "incremental": (["combined_incremental"], ["merge: enc, ", GRUS, CONTEXT]),
    "stateless-window-last": (["combined"], ["merge: enc, erb_dec, df_dec"]),
}


def onnx_names(folder):
    return sorted(path.stem for path in folder.glob("*.onnx"))


@pytest.mark.parametrize("mode", PATCHED)
def test_patch(cli, synthetic_folder, tmp_path, mode):
    files, told = PATCHED[mode]
    code, out, err = cli("patch", synthetic_folder("dfn3"), "-o", tmp_path / "out", "--mode", mode)
    assert (code, err) == (0, "")
    assert onnx_names(tmp_path / "out") == sorted(files)
    assert (tmp_path / "out" / "config.ini").exists()
    lines = out.splitlines()
    assert lines[0] == f"{mode}:"
    for text in told:
        assert any(line.startswith(f"  {text}") for line in lines), (text, out)
    assert any(line.startswith("  check: largest errors over ") for line in lines)
    for name in files:
        assert f"  written {tmp_path / 'out' / name}.onnx" in lines


@pytest.mark.parametrize("preset", [name for name in SYNTHETIC if name not in ("dfn3", "dfn3-ll")])
def test_patch_every_variant(cli, synthetic_folder, tmp_path, preset):
    code, out, err = cli("patch", synthetic_folder(preset), "-o", tmp_path, "--no-check")
    assert (code, err) == (0, "")
    assert onnx_names(tmp_path) == ["combined_streaming"]
    assert "  keep_last_frame: " in out


def test_patch_says_where_a_mode_is_impossible(refused, cli, synthetic_folder, tmp_path):
    err = refused(3, "patch", synthetic_folder("dfn3-ll"), "-o", tmp_path / "out")
    assert "behind a GRU" in err
    assert "hint: use the mode incremental or streaming" in err
    code, *_ = cli("patch", synthetic_folder("dfn3-ll"), "-o", tmp_path / "out", "--mode", "incremental")
    assert code == 0


def test_patch_several_at_once_and_again(cli, synthetic_folder, tmp_path):
    args = ("patch", synthetic_folder("lean"), "-o", tmp_path, "--canonical", "--lean", "--no-check")
    args += ("--mode", "streaming", "--mode", "stateful-h0", "--mode", "streaming")
    code, out, _ = cli(*args)
    assert code == 0
    assert [line for line in out.splitlines() if not line.startswith(" ")] == [
        "streaming:",
        "stateful-h0:",
        "canonical:",
        "lean:",
    ]
    combined = [f"combined_{form}" for form in ("streaming", "canonical", "lean")]
    assert onnx_names(tmp_path) == sorted([*STREAMING, *combined])
    assert "check:" not in out
    before = tree(tmp_path)
    code, out, _ = cli(*args)
    assert code == 0
    assert "written" not in out
    assert out.count("  unchanged ") == 7
    assert tree(tmp_path) == before


def test_patch_json(cli, synthetic_folder, tmp_path):
    code, out, err = cli("patch", synthetic_folder("dfn3"), "-o", tmp_path, "--json")
    result = json.loads(out)
    assert (code, err) == (0, "")
    assert result["folder"] == str(tmp_path)
    (only,) = result["results"]
    assert only["mode"] == "stateful-h0"
    assert only["files"] == {"combined_streaming.onnx": "written"}
    assert {"merge", "expose_gru_state", "keep_last_frame"} <= {patch["name"] for patch in only["patches"]}
    assert all(
        set(check["errors"]) == {"lsnr", "m", "coefs"} and max(check["errors"].values()) < 1e-3
        for check in only["checks"]
    )


def copy_of(folder, target):
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


@pytest.mark.parametrize("form", ["folder", "archive", "merged"])
def test_patch_writes_beside_its_input(cli, synthetic_folder, tmp_path, form):
    source = folder = copy_of(synthetic_folder("dfn3"), tmp_path / "export")
    if form == "archive":
        source = folder / "export.tar.gz"
        with tarfile.open(source, "w:gz") as archive:
            for path in sorted(folder.glob("[!.]*.*")):
                if path != source:
                    archive.add(path, f"tmp/export/{path.name}")
                    path.unlink()
    elif form == "merged":
        assert cli("patch", folder, "--mode", "stateless-window-last", "--no-check")[0] == 0
        source = folder / "combined.onnx"
        for stem in EXPORTS:
            (folder / f"{stem}.onnx").unlink()
    before = set(tree(folder))
    code, out, _ = cli("patch", source, "--no-check")
    assert code == 0
    assert set(tree(folder)) - before <= {"combined_streaming.onnx", "config.ini"}
    assert f"written {folder / 'combined_streaming.onnx'}" in out
    assert Model.load(folder).has_patched(find_mode("stateful-h0").recipe())


def test_patched_graphs_run(cli, synthetic_folder, synthetic_model, noisy_wav, tmp_path):
    assert cli("patch", synthetic_folder("dfn3"), "-o", tmp_path / "p", "--mode", "incremental")[0] == 0
    assert cli("run", noisy_wav, tmp_path / "out.wav", "-m", tmp_path / "p")[0] == 0
    reference = enhance(read(noisy_wav), model=synthetic_model("dfn3"))
    np.testing.assert_allclose(read(tmp_path / "out.wav"), reference, atol=1e-6)
    code, out, _ = cli("patch", tmp_path / "p", "--mode", "incremental")
    assert code == 0
    assert "already patched, nothing to do" in out


def test_patch_of_a_name_wants_a_folder(refused, cli, tmp_path):
    assert "hint: name a folder with -o" in refused(2, "patch", "bundled")
    assert cli("patch", "bundled", "-o", tmp_path / "out", "--no-check")[0] == 0
    assert onnx_names(tmp_path / "out") == ["combined_streaming"]


def test_patch_writes_nothing_that_is_not_proven(refused, synthetic_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(checking, "TOLERANCES", {"lsnr": -1.0, "m": 1.0, "coefs": 1.0})
    err = refused(6, "patch", synthetic_folder("dfn3"), "-o", tmp_path / "out", "--mode", "incremental")
    assert "differ from the export" in err
    assert "hint: nothing was written" in err


def test_patch_spares_files_of_others(refused, cli, synthetic_folder, tmp_path):
    (tmp_path / "combined_streaming.onnx").write_bytes(b"somebody's")
    args = ("patch", synthetic_folder("dfn3"), "-o", tmp_path, "--no-check")
    assert "dfstream did not write it" in refused(2, *args)
    assert "dfstream did not write it" in refused(2, *args, "--canonical")
    assert cli(*args, "--force")[0] == 0
    assert (tmp_path / "combined_streaming.onnx").stat().st_size > 1000


def test_patch_replaces_its_own_of_another_model(cli, synthetic_folder, tmp_path):
    for preset in ("dfn3", "dfn2"):
        code, out, _ = cli("patch", synthetic_folder(preset), "-o", tmp_path, "--no-check")
        assert code == 0
        assert "  written " in out


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["none"], 2, "no model"),
        ([OFFICIAL_NOT_HERE], 2, "name a folder with -o"),
        ([OFFICIAL_NOT_HERE, "-o", "out"], 3, "models pull"),
        (["{dfn3}", "--mode", "nonsense"], 2, "unknown mode 'nonsense'"),
        (["{dfn3}", "-o", "{file}"], 2, "is a file"),
        (["{dfn3}", "-o", "{file}/below", "--no-check"], 2, "cannot make the folder"),
        (["{file}", "-o", "out"], 3, "not an ONNX model"),
    ],
)
def test_patch_refuses(refused, synthetic_folder, noisy_wav, args, code, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = [arg.format(dfn3=synthetic_folder("dfn3"), file=noisy_wav) for arg in args]
    assert says in refused(code, "patch", *args)


def test_patch_refuses_what_patched_graphs_cannot_become(refused, cli, synthetic_folder, tmp_path):
    assert cli("patch", synthetic_folder("dfn3"), "-o", tmp_path, "--no-check")[0] == 0
    err = refused(3, "patch", tmp_path, "--mode", "streaming")
    assert "at hand is only combined_streaming" in err
    assert "hint: load the original export" in err


# -- inspect ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", SYNTHETIC)
def test_inspect(cli, synthetic_folder, synthetic_model, preset):
    config = synthetic_model(preset).config
    code, out, err = cli("inspect", synthetic_folder(preset))
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == f"{preset}: {config.variant}, from {synthetic_folder(preset)}"
    assert f"{config.sample_rate} Hz, hop {config.hop_size}" in out
    assert f"  delay      {config.delay_samples} samples" in out
    assert [line for line in lines if line.startswith("  enc.onnx: opset ")]
    for mode in mode_names():
        assert [line for line in lines if line.startswith(f"  {mode}: ")]
    assert ("not possible" in out) is (preset == "dfn3-ll")


def test_inspect_json(cli, synthetic_folder, synthetic_model):
    code, out, err = cli("inspect", synthetic_folder("dfn2"), "--json")
    facts = json.loads(out)
    assert (code, err) == (0, "")
    assert facts["variant"] == synthetic_model("dfn2").config.variant
    assert set(facts["modes"]) == set(mode_names())


def test_inspect_archives_and_patched_graphs(cli, synthetic_folder, synthetic_model, tmp_path):
    with tarfile.open(tmp_path / "model.tar.gz", "w:gz") as archive:
        archive.add(synthetic_folder("dfn3"), "export")
    code, out, _ = cli("inspect", tmp_path / "model.tar.gz")
    assert code == 0
    assert synthetic_model("dfn3").sha256 in out
    assert cli("patch", synthetic_folder("dfn3"), "-o", tmp_path, "--no-check")[0] == 0
    code, out, _ = cli("inspect", tmp_path / "combined_streaming.onnx")
    assert code == 0
    assert synthetic_model("dfn3").sha256 in out
    assert "only patched graphs at hand" in out
    assert "  stateful-h0: exact, 7 frames per hop, combined_streaming.onnx (at hand)" in out
    assert "  incremental: not possible: " in out


def test_inspect_defaults_to_the_bundled_model(cli):
    code, out, _ = cli("inspect")
    assert code == 0
    assert out.startswith("bundled: ")


@pytest.mark.parametrize(("kind", "code"), [("missing", 2), ("empty", 3), ("text", 3), ("cut.flac", 3)])
def test_inspect_refuses(refused, broken, kind, code):
    refused(code, "inspect", broken(kind))


# -- resources -------------------------------------------------------------------------------------

#: Peak of a process in KiB. Linux lets a child begin with its parent's in `getrusage`, not in ``VmHWM``.
_PEAK = """
import re, resource, sys
from pathlib import Path
from dfstream.cli import _run
code, status = _run(sys.argv[1:]), Path("/proc/self/status")
if status.exists():
    print(code, re.search(r"VmHWM:\\s+(\\d+) kB", status.read_text())[1])
else:
    print(code, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="getrusage is of POSIX")
def test_memory_does_not_grow_with_the_file(tmp_path, noisy):
    peaks = {}
    for minutes in (1, 20):
        source = tmp_path / f"{minutes}.wav"
        with soundfile.SoundFile(source, "w", RATE, 1) as file:
            for _ in range(10 * minutes):
                file.write(noisy)
        child = [sys.executable, "-c", _PEAK, "run", str(source), str(tmp_path / f"{minutes}.flac")]
        done = subprocess.run(child, capture_output=True, text=True, timeout=600)
        code, peak = map(int, done.stdout.split())
        assert code == 0
        peaks[minutes] = peak / 1024
    assert abs(peaks[20] - peaks[1]) < 60, f"MiB: {peaks}"
