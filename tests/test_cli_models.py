"""``dfstream models``: the table, the JSON, and the exit codes scripts rely on."""

import dataclasses
import hashlib
import http.server
import json
import os
import threading
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner

from dfstream import catalog, download
from dfstream.cli import _run, cli

PAYLOAD = b"the bytes of an archive\n" * 5000
NAMES = [known.name for known in catalog.KNOWN]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache, no wheels, no proxies, nobody who listens, no pauses, and a small archive for dfn2."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("DFSTREAM_CACHE", str(folder))
    monkeypatch.setenv("DFSTREAM_MODELS_URL", "http://127.0.0.1:1/models")
    monkeypatch.delenv("DFSTREAM_DEBUG", raising=False)
    for variable in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.upper(), raising=False)
    monkeypatch.setattr(download, "PAUSES_S", ())
    monkeypatch.setattr(catalog, "_WHEELS", ())
    blob = hashlib.sha1(b"blob %d\0" % len(PAYLOAD) + PAYLOAD).hexdigest()
    table = [
        dataclasses.replace(known, git_blob=blob) if known.name == "dfn2" else known
        for known in catalog.KNOWN
    ]
    monkeypatch.setattr(catalog, "KNOWN", tuple(table))
    return folder


@pytest.fixture
def server(monkeypatch):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            known = self.path == f"/models/{catalog.get('dfn2').archive}"
            self.send_response(200 if known else 404)
            self.send_header("Content-Length", str(len(server.payload) if known else 0))
            self.end_headers()
            self.wfile.write(server.payload if known else b"")

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.payload = PAYLOAD
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("DFSTREAM_MODELS_URL", f"http://127.0.0.1:{server.server_port}/models")
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def cached(cache):
    path = cache / catalog.get("dfn2").archive
    cache.mkdir()
    path.write_bytes(PAYLOAD)
    return path


@pytest.fixture
def run():
    return lambda *args: CliRunner().invoke(cli, ["models", *args])


def listed(run):
    result = run("--json")
    assert result.exit_code == 0
    return {entry["name"]: entry for entry in json.loads(result.stdout)}


# -- the list --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("cached")
@pytest.mark.parametrize("columns", ["20", "80"])
def test_table_in_a_pipe_is_whole(run, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    lines = run().stdout.splitlines()
    assert lines[0].split() == ["name", "variant", "where", "size", "licence", "delay", "sha256"]
    rows = {line.split()[0]: line for line in lines[1 : 1 + len(NAMES)]}
    assert list(rows) == NAMES
    for text in ("bundled (default)", "3.6 MB", "see MODEL_CARD.md", "30 ms, 1440", bundled_digest()[:12]):
        assert text in rows["bundled"]
    for text in ("not here", "8.0 MB", "MIT OR Apache-2.0", "30 ms, 1440", "c94d91f70911"):
        assert text in rows["dfn3"]
    assert "c94d91f709110" not in rows["dfn3"]
    for text in ("cached", "0.1 MB", "50 ms, 2400", hashlib.sha256(PAYLOAD).hexdigest()[:12]):
        assert text in rows["dfn2"]
    assert rows["dfn3-ll"].count("unknown") == 2
    assert "\x1b" not in "".join(lines)
    assert "dfstream models pull NAME" in lines[-1]


def bundled_digest():
    return catalog.directory_digest(catalog.bundled_dir())


def test_json_has_full_values_and_null_for_the_unknown(run, cached):
    entries = listed(run)
    assert list(entries) == NAMES
    bundled, dfn3, dfn2 = entries["bundled"], entries["dfn3"], entries["dfn2"]
    assert (bundled["status"], bundled["path"]) == ("bundled", str(catalog.bundled_dir()))
    assert bundled["sha256"] == bundled_digest()
    assert bundled["size"] == sum((catalog.bundled_dir() / name).stat().st_size for name in catalog.MEMBERS)
    assert [name for name, entry in entries.items() if entry["default"]] == ["bundled"]
    assert (dfn3["status"], dfn3["path"]) == ("not here", None)
    assert (dfn3["size"], dfn3["sha256"]) == (catalog.get("dfn3").size, catalog.get("dfn3").sha256)
    assert dfn3["git_blob"] == catalog.get("dfn3").git_blob
    assert (dfn2["status"], dfn2["path"]) == ("cached", str(cached))
    assert (dfn2["size"], dfn2["sha256"]) == (len(PAYLOAD), hashlib.sha256(PAYLOAD).hexdigest())
    assert (dfn2["delay_samples"], dfn2["delay_ms"]) == (2400, 50.0)
    assert (entries["dfn3-ll"]["size"], entries["dfn3-ll"]["sha256"]) == (None, None)


def test_damaged_copy_is_named(run, cached):
    cached.write_bytes(b"damaged")
    assert listed(run)["dfn2"]["status"] == "damaged copy in the cache"
    assert listed(run)["dfn2"]["path"] is None
    assert "damaged copy in the cache" in run().stdout


def test_list_makes_no_folder(run, cache):
    run()
    assert not cache.exists()


def test_json_belongs_to_the_list(capsys):
    assert _run(["models", "--json", "path", "bundled"]) == 2
    assert "--json" in capsys.readouterr().err


# -- path ------------------------------------------------------------------------------------------


def test_path(capsys, cached):
    for name, expected in (("bundled", catalog.bundled_dir()), ("dfn2", cached)):
        assert _run(["models", "path", name]) == 0
        assert capsys.readouterr().out == f"{expected}\n"


def test_path_of_a_model_that_is_not_here(capsys):
    assert _run(["models", "path", "dfn3"]) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert "error: model 'dfn3'" in err
    assert "hint: dfstream models pull dfn3, or pip install 'dfstream[dfn3]'" in err


@pytest.mark.parametrize("verb", ["path", "pull", "remove"])
def test_unknown_name(capsys, verb):
    assert _run(["models", verb, "dfn4"]) == 2
    err = capsys.readouterr().err
    assert all(name in err for name in ("dfn4", *NAMES))


# -- pull ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("server")
def test_pull_says_one_line(capsys, cache):
    path = cache / catalog.get("dfn2").archive
    assert _run(["models", "pull", "dfn2"]) == 0
    assert capsys.readouterr() == (f"dfn2: pulled, {path}\n", "")
    assert path.read_bytes() == PAYLOAD
    assert _run(["models", "pull", "dfn2"]) == 0
    assert capsys.readouterr() == (f"dfn2: already cached, {path}\n", "")
    assert _run(["models", "pull", "dfn2", "--force"]) == 0
    assert capsys.readouterr() == (f"dfn2: pulled, {path}\n", "")
    path.write_bytes(b"damaged")
    assert _run(["models", "pull", "dfn2"]) == 0
    assert capsys.readouterr() == (f"dfn2: pulled, {path}\n", "")


@pytest.mark.usefixtures("server")
def test_quiet_pull_says_nothing(capsys, cache):
    assert _run(["models", "pull", "--quiet", "dfn2"]) == 0
    assert capsys.readouterr() == ("", "")
    assert len(list(cache.iterdir())) == 1


@pytest.mark.usefixtures("server")
def test_pull_of_several_stops_at_the_first_failure(capsys, cache):
    assert _run(["models", "pull", "dfn2", "dfn3"]) == 3
    out, err = capsys.readouterr()
    assert out.startswith("dfn2: pulled")
    assert "404" in err
    assert [path.name for path in cache.iterdir()] == [catalog.get("dfn2").archive]


def test_pull_of_wrong_bytes(capsys, server, cache):
    server.payload = b"something else"
    assert _run(["models", "pull", "dfn2"]) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert "git blob id" in err
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("quiet", [[], ["--quiet"]])
def test_pull_without_a_network(capsys, cache, quiet):
    assert _run(["models", "pull", "dfn2", *quiet]) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert "error: cannot reach 127.0.0.1:1: " in err
    assert "hint: check the connection" in err
    assert list(cache.iterdir()) == []


@pytest.mark.usefixtures("server")
def test_interrupted_pull(capsys, cache, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(download, "_verify", interrupt)
    assert _run(["models", "pull", "dfn2"]) == 130
    assert "error: interrupted" in capsys.readouterr().err
    assert list(cache.iterdir()) == []


def test_pull_of_the_bundled_model(capsys):
    assert _run(["models", "pull", "bundled"]) == 2
    assert "nothing to pull" in capsys.readouterr().err


def test_pull_of_nothing(capsys):
    assert _run(["models", "pull"]) == 2
    assert "NAME..." in capsys.readouterr().err


@pytest.mark.usefixtures("server")
@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
@pytest.mark.parametrize("quiet", [False, True])
def test_progress_bar_on_a_terminal(capfd, monkeypatch, quiet):
    """Stderr is a terminal, stdout a pipe: the bar goes to the one, the result to the other."""
    import pty
    import sys

    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setenv("TERM", "xterm")
        assert _run(["models", "pull", "dfn2", *["--quiet"] * quiet]) == 0
        terminal.flush()
        terminal.write(".")  # there is something to read in any case
        terminal.flush()
        drawn = os.read(ours, 65536).decode()
    os.close(ours)
    assert ("dfn2" in drawn) == (not quiet)
    result = f"dfn2: pulled, {catalog.find('dfn2')}\n"
    assert capfd.readouterr().out == ("" if quiet else result)


# -- remove ----------------------------------------------------------------------------------------


def test_remove(capsys, cached):
    assert _run(["models", "remove", "dfn2"]) == 0
    assert capsys.readouterr().out == f"dfn2: removed, {cached}\n"
    assert not cached.exists()
    assert _run(["models", "remove", "dfn2"]) == 2
    assert "not in the cache" in capsys.readouterr().err


def test_bundled_model_stays(capsys):
    assert _run(["models", "remove", "bundled"]) == 2
    assert "comes with dfstream" in capsys.readouterr().err
    assert (Path(catalog.bundled_dir()) / "enc.onnx").is_file()


# -- shell -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["path", "pull", "remove"])
def test_names_complete(verb):
    completions = ShellComplete(cli, {}, "dfstream", "_DFSTREAM_COMPLETE").get_completions(
        ["models", verb], "dfn2"
    )
    assert [item.value for item in completions] == ["dfn2", "dfn2-ll"]
