"""What tests of programs outside Python need: audio graphs and goldens on disk, Node and its packages."""

import shutil
import subprocess

import numpy as np
import pytest
import soundfile

from conftest import ROOT
from dfstream.goldens import read_goldens
from dfstream.patching import patch_model

JS = ROOT / "js"

#: Cases of the bundled model that hold speech; the stereo one gives its first channel.
SPEECH = ("babble_snr10", "clean_speech", "silence_speech_silence", "stereo", "white_snr5")


def audio_graphs(model, folder):
    """Write the audio graphs of a model; return the path of the one of a hop a call."""
    patch_model(model, folder, ["audio-graph"], check=False)
    return folder / "dfstream_audio_hop.onnx"


def goldens(model="bundled", cases=SPEECH):
    """Input and output [n, channels] of the Rust engine by case."""
    found = {g.case: g for g in read_goldens(ROOT / "golden") if g.model == model and g.run == "default"}
    return {case: found[case].load()[:2] for case in cases}


def write_goldens(folder):
    """Write the first channels as ``<case>.in.wav`` and ``<case>.out.wav``, in floats."""
    folder.mkdir()
    for case, (x, y) in goldens().items():
        for name, samples in ((f"{case}.in.wav", x), (f"{case}.out.wav", y)):
            soundfile.write(folder / name, samples[:, 0], 48_000, subtype="FLOAT")


def snr(wanted, found):
    """Return dB of a signal over its difference to another."""
    wanted = np.asarray(wanted, np.float64)
    error = wanted - np.asarray(found, np.float64)
    return 10 * np.log10(np.sum(wanted**2) / max(np.sum(error**2), 1e-30))


def node(*packages):
    """Path of Node; skips the test where it or a package is missing."""
    program = shutil.which("node")
    if program is None:
        pytest.skip("needs Node: apt-get install nodejs npm")
    for package in packages:
        if not (JS / "node_modules" / package).is_dir():
            pytest.skip(f"needs the npm package {package}: npm ci --prefix js --ignore-scripts")
    return program


def run_program(*command, **more):
    """Run a program to its end; return the completed process."""
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=300, check=False, **more
    )
