"""The JavaScript package: its own tests, run by Node, on graphs and goldens that are written for them."""

import json
import os
import re

import pytest

import dfstream
from programs import JS, audio_graphs, node, run_program, write_goldens


@pytest.mark.slow
def test_its_own_tests_pass(bundled, tmp_path):
    program = node("onnxruntime-node")
    audio_graphs(bundled, tmp_path / "model")
    write_goldens(tmp_path / "goldens")
    places = {"DFSTREAM_JS_MODEL": tmp_path / "model", "DFSTREAM_JS_GOLDENS": tmp_path / "goldens"}
    environment = {**os.environ, **{name: str(path) for name, path in places.items()}}
    tests = sorted((JS / "test").glob("*.test.js"))
    done = run_program(program, "--test", "--test-reporter=tap", *tests, cwd=JS, env=environment)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    counts = dict(re.findall(r"^# (pass|skipped) (\d+)$", done.stdout, re.MULTILINE))
    assert int(counts["pass"]) >= 24
    assert int(counts["skipped"]) == 0
    print("\n".join(re.findall(r"\w+ \d+\.\d dB", done.stdout)))


@pytest.mark.slow
def test_its_types_are_its_code():
    program = node("typescript")
    done = run_program(program, JS / "node_modules" / "typescript" / "bin" / "tsc", "-p", JS)
    assert done.returncode == 0, done.stdout


def test_versions_agree():
    package = json.loads((JS / "package.json").read_text())
    lock = json.loads((JS / "package-lock.json").read_text())
    assert package["version"] == lock["version"] == dfstream.__version__
    assert "resolved" not in (JS / "package-lock.json").read_text(), "addresses of somebody's registry"


def test_what_is_published_is_there():
    package = json.loads((JS / "package.json").read_text())
    for entry in package["exports"].values():
        for path in entry.values():
            assert (JS / path).is_file(), path
    assert package["files"] == ["src"]
