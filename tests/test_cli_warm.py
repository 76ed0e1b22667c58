"""``dfstream warm``: the first run's work done ahead, said, and undone."""

import json
import subprocess
import sys

import pytest

from dfstream.cli import _run


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DFSTREAM_CACHE", str(tmp_path))
    return tmp_path


def dfstream(*args):
    done = subprocess.run(
        [sys.executable, "-m", "dfstream", *args], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.slow
def test_warm_fills_the_cache_and_clear_empties_it(cache):
    first, second = (json.loads(dfstream("warm", "--json")) for _ in range(2))
    assert first["kernels"]["compiled"] == first["kernels"]["total"] > 0
    assert second["kernels"] == {**first["kernels"], "compiled": 0}
    assert first["models"] == ["bundled"]
    assert first["seconds"] > 0
    folder = cache / "kernels"
    assert first["kernels"]["folder"].startswith(str(folder))
    assert len([p for p in folder.rglob("*") if p.is_file()]) == first["kernels"]["total"]
    assert any("compact" in path.name for path in (cache / "graphs").rglob("*"))

    removed = json.loads(dfstream("warm", "--clear", "--json"))["removed"]
    assert [entry["folder"] for entry in removed] == [str(folder), str(cache / "graphs")]
    assert all(entry["bytes"] > 0 for entry in removed)
    assert [*cache.iterdir()] == []
    assert dfstream("warm", "--clear") == "nothing to remove\n"


def test_clear(cache, capsys):
    (cache / "kernels" / "tag").mkdir(parents=True)
    (cache / "kernels" / "tag" / "kernel").write_bytes(bytes(3_000_000))
    (cache / "archive.tar.gz").touch()
    assert _run(["warm", "--clear"]) == 0
    assert capsys.readouterr().out == f"removed {cache / 'kernels'}: 3.0 MB\n"
    assert [path.name for path in cache.iterdir()] == ["archive.tar.gz"]


def test_for_people(capsys):
    assert _run(["warm"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert " compiled now, and the graphs of bundled: " in out
    assert "kept in " in out


def test_unknown_models_are_refused(cache, capsys):
    assert _run(["warm", "-m", "nonsense"]) == 2
    assert capsys.readouterr().err.startswith("error: no model 'nonsense'")
    assert not (cache / "graphs").exists()
