"""ONNX Runtime for browsers: downloaded once from a server of the test's own, verified, or not kept."""

import functools
import hashlib
import http.server
import json
import threading

import pytest

from conftest import ROOT
from dfstream import webruntime
from dfstream.errors import DownloadError, IntegrityError, UsageError
from dfstream.webruntime import FILES, runtime_folder

CONTENTS = {name: name.encode() for name in FILES}
DIGESTS = {name: hashlib.sha256(content).hexdigest() for name, content in CONTENTS.items()}


@pytest.fixture
def published(tmp_path):
    """Publish some files; return the arguments that fetch them, and what was asked for."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            super().do_GET()

        def log_message(self, *args):
            pass

    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()

        def publish(contents):
            for name, content in contents.items():
                (folder / name).write_bytes(content)
            url = f"http://127.0.0.1:{server.server_port}"
            return {"base_url": url, "files": DIGESTS, "sleep": lambda _: None}

        yield publish, asked
        server.shutdown()


@pytest.fixture(autouse=True)
def _own_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DFSTREAM_CACHE", str(tmp_path / "cache"))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_downloads_once(published):
    publish, asked = published
    where = publish(CONTENTS)
    folder = runtime_folder(**where)
    assert contents(folder) == CONTENTS
    assert runtime_folder(**where) == folder == webruntime.cached_folder()
    assert asked == [f"/{name}" for name in FILES]
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize(
    ("served", "spoil", "error"),
    [
        (CONTENTS | {"ort-wasm-simd-threaded.wasm": b"another"}, {}, IntegrityError),
        ({"ort.wasm.min.mjs": b"ort.wasm.min.mjs"}, {}, DownloadError),
        (CONTENTS, {"base_url": "http://127.0.0.1:9"}, DownloadError),
    ],
)
def test_keeps_nothing_of_what_is_wrong(published, served, spoil, error):
    publish, _ = published
    with pytest.raises(error) as caught:
        runtime_folder(**{**publish(served), **spoil})
    assert "--runtime DIR" in caught.value.hint
    assert not [*webruntime.cached_folder().parent.iterdir()]


@pytest.mark.parametrize("damage", ["incomplete", "flipped"])
def test_a_damaged_folder_is_replaced(published, damage):
    publish, _ = published
    folder = webruntime.cached_folder()
    folder.mkdir(parents=True)
    for name in [*FILES][: 1 if damage == "incomplete" else 3]:
        (folder / name).write_bytes(b"old")
    assert runtime_folder(**publish(CONTENTS)) == folder
    assert contents(folder) == CONTENTS


def test_a_given_folder_is_taken_as_it_is(tmp_path):
    *first, last = FILES
    for name in first:
        (tmp_path / name).touch()
    with pytest.raises(UsageError, match=last):
        runtime_folder(tmp_path)
    (tmp_path / last).touch()
    assert runtime_folder(tmp_path) == tmp_path


def test_the_pinned_files_are_those_of_the_javascript_package():
    lock = json.loads((ROOT / "js" / "package-lock.json").read_text())
    assert lock["packages"][f"node_modules/{webruntime.PACKAGE}"]["version"] == webruntime.VERSION
    installed = ROOT / "js" / "node_modules" / webruntime.PACKAGE / "dist"
    if not installed.is_dir():
        pytest.skip("onnxruntime-web is not installed: npm ci --ignore-scripts in js")
    assert {n: hashlib.sha256((installed / n).read_bytes()).hexdigest() for n in FILES} == FILES
