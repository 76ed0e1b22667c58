"""The example for Node does what its README says, as the Rust engine does."""

import json

import numpy as np
import pytest
import soundfile

from conftest import ROOT
from programs import JS, audio_graphs, goldens, node, run_program, snr

EXAMPLE = ROOT / "examples" / "node"


@pytest.fixture(scope="module")
def graph(bundled, tmp_path_factory):
    return audio_graphs(bundled, tmp_path_factory.mktemp("node") / "model")


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """Run the example as if it were installed with its dependencies."""
    program = node("onnxruntime-node")
    folder = tmp_path_factory.mktemp("example")
    (folder / "enhance.mjs").write_bytes((EXAMPLE / "enhance.mjs").read_bytes())
    (folder / "node_modules").mkdir()
    (folder / "node_modules" / "dfstream").symlink_to(JS, target_is_directory=True)
    return lambda *args: run_program(program, folder / "enhance.mjs", *args)


def test_dependencies_are_those_of_the_package():
    mine, theirs = (json.loads((path / "package.json").read_text()) for path in (EXAMPLE, JS))
    assert mine["dependencies"]["onnxruntime-node"] == theirs["devDependencies"]["onnxruntime-node"]
    assert (EXAMPLE / mine["dependencies"]["dfstream"].removeprefix("file:")).resolve() == JS


@pytest.mark.parametrize("case", ["white_snr5", "clean_speech", "stereo"])
def test_gives_what_the_rust_engine_gives(example, graph, tmp_path, case):
    x, wanted = goldens(cases=[case])[case]
    soundfile.write(tmp_path / "in.wav", x, 48_000, subtype="FLOAT")
    done = example(graph, tmp_path / "in.wav", tmp_path / "out.wav")
    assert done.returncode == 0, done.stderr
    found, rate = soundfile.read(tmp_path / "out.wav", dtype="float32", always_2d=True)
    assert (rate, found.shape) == (48_000, x.shape)
    # without its delay, the golden ends before the signal does
    wanted = wanted[1440:]
    assert snr(wanted, found[: len(wanted)]) >= 100


def test_takes_settings(example, graph, tmp_path):
    x, _ = goldens(cases=["white_snr5"])["white_snr5"]
    soundfile.write(tmp_path / "in.wav", x[:48_000], 48_000, subtype="FLOAT")
    settings = ["--atten-lim-db", "0", "--post-filter", "0.02"]
    done = example(graph, tmp_path / "in.wav", tmp_path / "out.wav", *settings)
    assert done.returncode == 0, done.stderr
    found, _ = soundfile.read(tmp_path / "out.wav", dtype="float32", always_2d=True)
    assert snr(x[:48_000], found) > 100  # 0 dB: the input


def test_says_in_a_line_what_is_wrong(example, graph, tmp_path):
    soundfile.write(tmp_path / "slow.wav", np.zeros(100, np.float32), 16_000)
    (tmp_path / "text.wav").write_text("no sound")
    for arguments, text in [
        ([], "expected MODEL.onnx IN.wav OUT.wav"),
        ([tmp_path / "none.onnx", "a.wav", "b.wav"], "cannot read"),
        ([graph, tmp_path / "slow.wav", tmp_path / "out.wav"], "16000 Hz"),
        ([graph, tmp_path / "text.wav", tmp_path / "out.wav"], "not a WAV file"),
        ([graph, tmp_path / "none.wav", tmp_path / "out.wav"], "no such file"),
    ]:
        done = example(*arguments)
        assert done.returncode == 1
        assert text in done.stderr
        assert done.stderr.startswith("error: ")
        assert "    at " not in done.stderr
    assert not (tmp_path / "out.wav").exists()
