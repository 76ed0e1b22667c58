"""ONNX Runtime for browsers: downloaded once from a server of the test's own, verified, or not kept."""

import base64
import functools
import hashlib
import http.server
import io
import json
import tarfile
import threading

import pytest

from conftest import ROOT
from dfstream import webruntime
from dfstream.errors import ArchiveError, DownloadError, IntegrityError, UsageError
from dfstream.webruntime import FILES, runtime_folder


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def published(tmp_path):
    """Publish a package of some files; return the arguments that fetch it, and what was asked for."""
    folder = tmp_path / "registry"
    folder.mkdir()
    asked = []

    class Handler(Quiet):
        def do_GET(self):
            asked.append(self.path)
            super().do_GET()

    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()

        def publish(files):
            data = io.BytesIO()
            with tarfile.open(fileobj=data, mode="w:gz") as archive:
                for name, content in files.items():
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
            (folder / "package.tgz").write_bytes(data.getvalue())
            digest = base64.b64encode(hashlib.sha512(data.getvalue()).digest()).decode()
            url = f"http://127.0.0.1:{server.server_port}/package.tgz"
            return {"url": url, "integrity": f"sha512-{digest}", "sleep": lambda _: None}

        yield publish, asked
        server.shutdown()


@pytest.fixture(autouse=True)
def _own_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DFSTREAM_CACHE", str(tmp_path / "cache"))


GOOD = {f"package/dist/{name}": name.encode() for name in FILES} | {"package/dist/ort.all.mjs": b"much more"}


def test_downloads_once_and_keeps_what_a_page_needs(published):
    publish, asked = published
    where = publish(GOOD)
    folder = runtime_folder(**where)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {n: n.encode() for n in FILES}
    assert runtime_folder(**where) == folder == webruntime.cached_folder()
    assert asked == ["/package.tgz"]
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize(
    ("files", "spoil", "error"),
    [
        (GOOD, {"integrity": "sha512-other"}, IntegrityError),
        ({"package/dist/ort.wasm.min.mjs": b"alone"}, {}, ArchiveError),
        (GOOD, {"url": "http://127.0.0.1:9/package.tgz"}, DownloadError),
    ],
)
def test_keeps_nothing_of_what_is_wrong(published, files, spoil, error):
    publish, _ = published
    with pytest.raises(error) as caught:
        runtime_folder(**{**publish(files), **spoil})
    assert "--runtime DIR" in caught.value.hint
    assert not webruntime.cached_folder().exists()
    assert not [*webruntime.cached_folder().parent.iterdir()]


def test_an_incomplete_folder_is_replaced(published):
    publish, _ = published
    folder = webruntime.cached_folder()
    folder.mkdir(parents=True)
    (folder / FILES[0]).write_bytes(b"old")
    assert runtime_folder(**publish(GOOD)) == folder
    assert (folder / FILES[0]).read_bytes() == FILES[0].encode()


def test_a_given_folder_is_taken_as_it_is(tmp_path):
    for name in FILES[:-1]:
        (tmp_path / name).touch()
    with pytest.raises(UsageError, match=FILES[-1]):
        runtime_folder(tmp_path)
    (tmp_path / FILES[-1]).touch()
    assert runtime_folder(tmp_path) == tmp_path


def test_the_pinned_package_is_the_one_of_the_javascript_package():
    lock = json.loads((ROOT / "js" / "package-lock.json").read_text())
    locked = lock["packages"][f"node_modules/{webruntime.PACKAGE}"]
    assert (locked["version"], locked["integrity"]) == (webruntime.VERSION, webruntime.INTEGRITY)
