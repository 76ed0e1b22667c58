"""Pulling from a server of the test's own: what is kept, what is refused, what is tried again."""

import contextlib
import dataclasses
import hashlib
import http.server
import socket
import threading
import time

import pytest

from dfstream import atomic, catalog, download
from dfstream.errors import DownloadError, IntegrityError, UsageError

#: More than two blocks of the downloader, and no whole number of them.
PAYLOAD = bytes(range(256)) * 600 + b"end"
NAME = "dfn2"


class Server(http.server.ThreadingHTTPServer):
    """Answers requests one after the other from a script; the last answer repeats."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script = [whole(PAYLOAD)]
        self.asked = []
        self.headers = []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/models"

    def handle_error(self, request, client_address):
        """Stay silent: clients of these tests go away early."""


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        script = self.server.script
        self.server.asked.append(self.path)
        self.server.headers.append(self.headers)
        script[min(len(self.server.asked), len(script)) - 1](self)

    def log_message(self, *args):
        pass


def whole(data):
    def answer(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    return answer


def cut(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(PAYLOAD)))
    handler.end_headers()
    handler.wfile.write(PAYLOAD[:70_000])


def without_length(data):
    def answer(handler):
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(data)

    return answer


def chunked(handler, *, end=b"0\r\n\r\n"):
    handler.protocol_version = "HTTP/1.1"
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.send_header("Connection", "close")
    handler.end_headers()
    handler.wfile.write(b"%x\r\n" % len(PAYLOAD) + PAYLOAD + b"\r\n" + end)
    handler.close_connection = True


def chunked_cut(handler):
    chunked(handler, end=b"ff\r\nonly a part")


def status(code, **headers):
    def answer(handler):
        handler.send_response(code)
        for key, value in headers.items():
            handler.send_header(key, value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


def hang_up(handler):
    handler.connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache of the test's own, no proxies, and no way to any other machine."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("DFSTREAM_CACHE", str(folder))
    monkeypatch.delenv("DFSTREAM_MODELS_URL", raising=False)
    for variable in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.upper(), raising=False)
    connect = socket.create_connection

    def local_only(address, *args, **kwargs):
        assert address[0] == "127.0.0.1", f"a test asked for {address}"
        return connect(address, *args, **kwargs)

    monkeypatch.setattr(socket, "create_connection", local_only)
    return folder


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def known(monkeypatch):
    """The model under test, its git blob id that of the payload; size and SHA-256 unknown as in the table."""
    blob = hashlib.sha1(b"blob %d\0" % len(PAYLOAD) + PAYLOAD).hexdigest()
    return replace_known(monkeypatch, git_blob=blob)


def replace_known(monkeypatch, **changes):
    changed = dataclasses.replace(catalog.get(NAME), **changes)
    others = tuple(other for other in catalog.KNOWN if other.name != NAME)
    monkeypatch.setattr(catalog, "KNOWN", (*others, changed))
    return changed


@pytest.fixture
def pauses():
    """Seconds the downloader asked to wait."""
    return []


@pytest.fixture
def pull(server, pauses):
    def pull(**options):
        return download.pull(NAME, **{"base_url": server.url, "sleep": pauses.append} | options)

    return pull


def files(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


# -- success ---------------------------------------------------------------------------------------


def test_pull_keeps_the_archive_alone(pull, server, cache, known):
    path = pull()
    assert path == cache / known.archive == catalog.find(NAME)
    assert path.read_bytes() == PAYLOAD
    assert files(cache) == [known.archive]
    assert server.asked == [f"/models/{known.archive}"]
    assert server.headers[0]["User-Agent"].startswith("dfstream/")


def test_pull_is_checked_against_size_and_sha256_where_known(pull, monkeypatch):
    replace_known(monkeypatch, size=len(PAYLOAD), sha256=hashlib.sha256(PAYLOAD).hexdigest())
    assert pull().read_bytes() == PAYLOAD


def test_address_from_the_environment(server, monkeypatch, known):
    monkeypatch.setenv("DFSTREAM_MODELS_URL", server.url + "/")
    assert download.pull(NAME).read_bytes() == PAYLOAD
    assert server.asked == [f"/models/{known.archive}"]


def test_argument_wins_over_the_environment(pull, monkeypatch):
    monkeypatch.setenv("DFSTREAM_MODELS_URL", "http://127.0.0.1:1/nothing")
    assert pull().read_bytes() == PAYLOAD


def test_default_address_is_pinned_to_a_commit():
    assert download.url_of(catalog.get("dfn3")) == (
        "https://raw.githubusercontent.com/Rikorose/DeepFilterNet/"
        "d375b2d8309e0935d165700c91da9de862a99c31/models/DeepFilterNet3_onnx.tar.gz"
    )


@pytest.mark.parametrize("answer", [without_length(PAYLOAD), chunked], ids=["until the end", "chunked"])
def test_server_that_does_not_tell_the_length(pull, server, answer):
    server.script = [answer]
    seen = []
    assert pull(progress=lambda *counts: seen.append(counts)).read_bytes() == PAYLOAD
    assert {total for _, total in seen} == {None}


def test_progress_counts_to_the_total(pull):
    seen = []
    pull(progress=lambda *counts: seen.append(counts))
    done = [count for count, _ in seen]
    assert done[0] == 0
    assert done[-1] == len(PAYLOAD)
    assert done == sorted(done)
    assert len(done) > 2
    assert {total for _, total in seen} == {len(PAYLOAD)}


def test_redirect_is_followed(pull, server, known):
    server.script = [status(302, Location="/other/place"), whole(PAYLOAD)]
    assert pull().read_bytes() == PAYLOAD
    assert server.asked == [f"/models/{known.archive}", "/other/place"]


def test_archive_gets_the_mode_of_any_new_file(pull, tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    assert pull().stat().st_mode == (tmp_path / "plain").stat().st_mode


# -- what is cached already ------------------------------------------------------------------------


def test_intact_copy_is_not_pulled_again(pull, server):
    first = pull()
    before = first.stat().st_mtime_ns
    assert pull() == first
    assert len(server.asked) == 1
    assert first.stat().st_mtime_ns == before


def test_intact_copy_needs_no_server():
    path = catalog.cache_path(catalog.get(NAME))
    path.parent.mkdir(parents=True)
    path.write_bytes(PAYLOAD)
    assert download.pull(NAME, base_url="http://127.0.0.1:1") == path


def test_force_pulls_again(pull, server):
    pull()
    assert pull(force=True).read_bytes() == PAYLOAD
    assert len(server.asked) == 2


def test_damaged_copy_is_replaced(pull, server, cache):
    pull().write_bytes(PAYLOAD[:-1])
    assert pull().read_bytes() == PAYLOAD
    assert len(server.asked) == 2
    assert len(files(cache)) == 1


def test_failure_leaves_the_old_copy(pull, server):
    path = pull()
    server.script = [whole(b"wrong")]
    with pytest.raises(IntegrityError):
        pull(force=True)
    assert path.read_bytes() == PAYLOAD
    assert files(path.parent) == [path.name]


# -- wrong bytes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [PAYLOAD[:-1] + b"X", PAYLOAD + b"more", b"", b"<html>log in first</html>"])
def test_wrong_bytes_are_not_kept(pull, server, cache, pauses, data):
    server.script = [whole(data)]
    with pytest.raises(IntegrityError, match=r"git blob id [0-9a-f]{40}, expected [0-9a-f]{40}"):
        pull()
    assert files(cache) == []
    assert (len(server.asked), pauses) == (1, []), "the same bytes would come again"


@pytest.mark.parametrize(("field", "value"), [("size", 7), ("sha256", "0" * 64)])
def test_every_pinned_value_is_checked(pull, cache, monkeypatch, field, value):
    replace_known(monkeypatch, **{field: value})
    with pytest.raises(IntegrityError, match=f"expected {value}"):
        pull()
    assert files(cache) == []


@pytest.mark.parametrize("answer", [whole(PAYLOAD), without_length(PAYLOAD)], ids=["told", "not told"])
def test_absurd_size_is_refused_early(pull, server, cache, monkeypatch, answer):
    server.script = [answer]
    monkeypatch.setattr(download, "MAX_BYTES", 1000)
    seen = []
    with pytest.raises(IntegrityError, match="over 1000 bytes"):
        pull(progress=lambda done, _: seen.append(done))
    assert seen == [0]
    assert files(cache) == []


def test_archive_is_checked_before_it_has_its_name(pull, cache, known, monkeypatch):
    present = []
    verify = download._verify
    monkeypatch.setattr(download, "_verify", lambda *args: (present.append(files(cache)), verify(*args)))
    pull()
    assert len(present) == 1
    assert known.archive not in present[0]


# -- failures that may pass ------------------------------------------------------------------------


PASSING = {
    "500": status(500),
    "503": status(503),
    "429": status(429),
    "hang up": hang_up,
    "cut": cut,
    "chunked, cut": chunked_cut,
}


@pytest.mark.parametrize("failure", PASSING.values(), ids=PASSING)
def test_second_and_third_try(pull, server, cache, pauses, failure):
    server.script = [failure, failure, whole(PAYLOAD)]
    assert pull().read_bytes() == PAYLOAD
    assert len(server.asked) == 3
    assert pauses == [1.0, 2.0]
    assert len(files(cache)) == 1


@pytest.mark.parametrize("failure", PASSING.values(), ids=PASSING)
def test_no_fourth_try(pull, server, cache, pauses, failure):
    server.script = [failure]
    with pytest.raises(DownloadError) as caught:
        pull()
    assert len(server.asked) == 3
    assert pauses == [1.0, 2.0]
    assert caught.value.hint
    assert files(cache) == []


def test_short_body_says_so(pull, server):
    server.script = [cut]
    with pytest.raises(DownloadError, match=f"ended after 70000 of {len(PAYLOAD)} bytes"):
        pull()


def test_known_size_shows_a_short_body_of_untold_length(pull, server, monkeypatch):
    replace_known(monkeypatch, size=len(PAYLOAD))
    server.script = [without_length(PAYLOAD[:-1]), without_length(PAYLOAD)]
    assert pull().read_bytes() == PAYLOAD
    assert len(server.asked) == 2


def test_a_try_starts_from_nothing(pull, server):
    server.script = [cut, whole(PAYLOAD)]
    seen = []
    assert pull(progress=lambda done, _: seen.append(done)).read_bytes() == PAYLOAD
    assert seen.count(0) == 2


def test_silent_server_runs_into_the_timeout(pull, server, cache, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT_S", 0.1)
    over = threading.Event()
    server.script = [lambda _: over.wait(10)]
    begun = time.monotonic()
    try:
        with pytest.raises(DownloadError, match="timed out"):
            pull()
    finally:
        over.set()
    assert time.monotonic() - begun < 5
    assert len(server.asked) == 3
    assert files(cache) == []


def test_body_that_stops_runs_into_the_timeout(pull, server, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT_S", 0.1)
    over = threading.Event()
    server.script = [lambda handler: (cut(handler), handler.wfile.flush(), over.wait(10)), whole(PAYLOAD)]
    try:
        assert pull().read_bytes() == PAYLOAD
    finally:
        over.set()
    assert len(server.asked) == 2


def test_nobody_listens(cache, pauses):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: nobody else gets the port
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(DownloadError, match=f"cannot reach {address}: .*refused") as caught:
            download.pull(NAME, base_url=f"http://{address}/models", sleep=pauses.append)
    assert "DFSTREAM_MODELS_URL" in caught.value.hint
    assert pauses == [1.0, 2.0]
    assert files(cache) == []


# -- failures that will not ------------------------------------------------------------------------


@pytest.mark.parametrize("code", [401, 403, 404, 410])
def test_refusal_is_not_tried_again(pull, server, cache, pauses, code):
    server.script = [status(code)]
    with pytest.raises(DownloadError, match=f"the server answered {code}"):
        pull()
    assert (len(server.asked), pauses) == (1, [])
    assert files(cache) == []


@pytest.mark.parametrize("target", ["ftp://127.0.0.1/x", "file:///etc/hostname", "data:,x"])
def test_redirect_away_from_http_is_refused(pull, server, cache, pauses, target):
    server.script = [status(302, Location=target)]
    with pytest.raises(DownloadError):
        pull()
    assert (len(server.asked), pauses) == (1, [])
    assert files(cache) == []


def test_redirect_in_a_circle_ends(pull, server, pauses):
    server.script = [status(302, Location="/again")]
    with pytest.raises(DownloadError):
        pull()
    assert pauses == []


@pytest.mark.parametrize(
    "base",
    [
        "file:///tmp",
        "ftp://127.0.0.1",
        "models",
        "http://",
        "http://[",
        "data:,x",
        "http://127.0.0.1:no/x",
        "http://127.0.0.1/a b",
        "http://127.0.0.1/x?y=1",
        "http://127.0.0.1/#x",
    ],
)
def test_address_that_is_not_http(cache, base):
    with pytest.raises(UsageError, match="expected an http or https address"):
        download.pull(NAME, base_url=base)
    assert not cache.exists()


@pytest.mark.parametrize("base", ["http://127.0.0.1\x7f/x", "http://127.0.0.1/\x01"])
def test_address_no_client_takes(cache, pauses, base):
    with pytest.raises(DownloadError):
        download.pull(NAME, base_url=base, sleep=pauses.append)
    assert pauses == []
    assert files(cache) == []


def test_bundled_model_has_nothing_to_pull():
    with pytest.raises(UsageError, match="nothing to pull"):
        download.pull("bundled")
    with pytest.raises(UsageError, match="nothing to pull"):
        download.url_of(catalog.get("bundled"))


def test_unknown_model():
    with pytest.raises(UsageError, match="'dfn4'"):
        download.pull("dfn4")


# -- interruption, disk, company -------------------------------------------------------------------


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit, RuntimeError])
def test_interruption_leaves_nothing(pull, cache, interruption):
    partial = []

    def interrupt(done, _):
        if done:
            partial.extend(files(cache))
            raise interruption

    with pytest.raises(interruption):
        pull(progress=interrupt)
    assert len(partial) == 1, "there was something to leave"
    assert files(cache) == []


def test_interruption_between_tries_leaves_nothing(pull, server, cache):
    server.script = [cut]

    def interrupt(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull(sleep=interrupt)
    assert files(cache) == []


def test_cache_that_is_a_file(pull, cache):
    cache.write_bytes(b"")
    with pytest.raises(UsageError, match="cannot write") as caught:
        pull()
    assert "DFSTREAM_CACHE" in caught.value.hint


def test_folder_in_place_of_the_archive(pull, cache, known):
    (cache / known.archive).mkdir(parents=True)
    with pytest.raises(UsageError, match="cannot write"):
        pull()
    assert files(cache) == []


def test_full_disk_is_no_failure_of_the_network(pull, server, cache, pauses, monkeypatch):
    replacing = atomic.replacing

    class Full:
        """A temporary file whose disk is full."""

        def __init__(self, path):
            self.path = path

        def open(self, mode):
            file = self.path.open(mode, buffering=0)

            class Writer:
                def __enter__(self):
                    return self

                def __exit__(self, *failure):
                    file.close()

                def __getattr__(self, name):
                    return getattr(file, name)

                def write(self, _):
                    raise OSError(28, "No space left on device")

            return Writer()

    @contextlib.contextmanager
    def full(target):
        with replacing(target) as temporary:
            yield Full(temporary)

    monkeypatch.setattr(atomic, "replacing", full)
    with pytest.raises(UsageError, match="No space left"):
        pull()
    assert (len(server.asked), pauses) == (1, [])
    assert files(cache) == []


def test_pulls_at_the_same_time(pull, cache, known):
    """All are half way at once; each has its own temporary file and all end with the same archive."""
    count = 4
    together = threading.Barrier(count, timeout=10)
    temporaries, results = [], []

    def progress(done, _):
        if 0 < done < len(PAYLOAD) and threading.current_thread() not in met:
            met.add(threading.current_thread())
            together.wait()
            temporaries.append(len(files(cache)))
            together.wait()

    met = set()
    threads = [
        threading.Thread(
            target=lambda: results.append(pull(force=True, progress=progress).read_bytes() == PAYLOAD)
        )
        for _ in range(count)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * count
    assert temporaries == [count] * count
    assert files(cache) == [known.archive]


# -- removal ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", [b"", b"x"])
def test_remove(pull, cache, damage):
    path = pull()
    path.write_bytes(PAYLOAD + damage)
    assert download.remove(NAME) == path
    assert files(cache) == []
    with pytest.raises(UsageError, match="not in the cache"):
        download.remove(NAME)


def test_bundled_model_cannot_be_removed():
    with pytest.raises(UsageError, match="comes with dfstream"):
        download.remove("bundled")
    assert catalog.bundled_dir().is_dir()
