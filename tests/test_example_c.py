"""The example in C compiles without a warning and does what the Rust engine does."""

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from conftest import ROOT
from programs import audio_graphs, goldens, snr

HEADER = "onnxruntime_c_api.h"

#: Where packages put the header.
PLACES = ("/usr/include/onnxruntime", "/usr/include", "/usr/local/include/onnxruntime", "/usr/local/include")


def include():
    """Folder of the header."""
    for place in (os.environ.get("DFSTREAM_ORT_INCLUDE"), *PLACES):
        if place and (Path(place) / HEADER).is_file():
            return place
    pytest.skip(f"needs {HEADER}: DFSTREAM_ORT_INCLUDE may name its folder")


@pytest.fixture(scope="module")
def graph(bundled, tmp_path_factory):
    return audio_graphs(bundled, tmp_path_factory.mktemp("c") / "model")


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The compiled example, with the library of the Python wheel."""
    headers = include()
    compiler = shutil.which("cc") or pytest.skip("needs a C compiler")
    libraries = [*Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.1*")]
    if not libraries:
        pytest.skip("the wheel of onnxruntime holds no library of the name libonnxruntime.so.1")
    folder = tmp_path_factory.mktemp("program")
    library = folder / "libonnxruntime.so.1"
    library.symlink_to(libraries[0])
    command = [
        compiler, "-std=c99", "-Wall", "-Wextra", "-Werror", "-O2", f"-I{headers}",
        str(ROOT / "examples" / "c" / "enhance.c"), str(library), f"-Wl,-rpath,{folder}",
        "-o", str(folder / "enhance"),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "enhance"


def run(program, graph, samples):
    done = subprocess.run(
        [program, graph], input=samples.astype("<f4").tobytes(), capture_output=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return np.frombuffer(done.stdout, "<f4")


@pytest.mark.parametrize("case", ["white_snr5", "clean_speech", "silence_speech_silence"])
def test_gives_what_the_rust_engine_gives(program, graph, case):
    x, wanted = goldens(cases=[case])[case]
    found = run(program, graph, x[:, 0])
    assert len(found) == len(x)
    wanted = wanted[1440:, 0]
    ratio = snr(wanted, found[: len(wanted)])
    print(f"C against Rust, {case}: {ratio:.1f} dB")
    assert ratio >= 100


@pytest.mark.parametrize("length", [0, 1, 479, 480, 481, 1440, 5000])
def test_gives_as_much_as_it_takes(program, graph, length):
    x, _ = goldens(cases=["white_snr5"])["white_snr5"]
    whole = run(program, graph, x[:9600, 0])
    found = run(program, graph, x[:length, 0])
    assert len(found) == length
    # the last of them know of the end
    known = max(0, length - 2400)
    np.testing.assert_array_equal(found[:known], whole[:known])


def test_says_in_a_line_what_is_wrong(program, tmp_path):
    (tmp_path / "text.onnx").write_text("no graph")
    for arguments, code in [([], 2), (["nowhere.onnx"], 1), ([tmp_path / "text.onnx"], 1)]:
        done = subprocess.run(
            [program, *arguments], input=b"", capture_output=True, text=False, timeout=60, check=False
        )
        assert done.returncode == code
        assert done.stderr.count(b"\n") == 1
        assert not done.stdout
