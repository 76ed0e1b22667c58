"""``dfstream demo``: what the page consists of, how it is served, how it fails."""

import contextlib
import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path, PurePosixPath

import onnx
import pytest

from conftest import ROOT
from dfstream import demo
from dfstream.cli import _run
from dfstream.errors import UsageError
from dfstream.webruntime import FILES


@pytest.fixture(scope="module")
def runtime(tmp_path_factory):
    """Stand-ins for the files of ONNX Runtime: nothing here runs them."""
    folder = tmp_path_factory.mktemp("runtime")
    for name in FILES:
        (folder / name).write_bytes(f"// {name}".encode())
    return folder


@pytest.fixture(scope="module")
def site(bundled, runtime):
    return demo.site(bundled, runtime)


@pytest.fixture(scope="module")
def ask(site):
    """Send a request to a server of the page; return status, headers and body."""
    with demo.serving(site) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()

        def request(path, method="GET"):
            connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
            with contextlib.closing(connection):
                connection.request(method, path)
                answer = connection.getresponse()
                return answer.status, dict(answer.getheaders()), answer.read()

        yield request
        server.shutdown()


# -- the site ----------------------------------------------------------------------------------------


def test_it_is_complete(site):
    """Whatever a module of the page imports or asks for is part of the site."""
    found = set()
    for name, resource in site.items():
        if PurePosixPath(name).suffix not in (".js", ".html") or name.startswith("ort/"):
            continue
        text = resource.read().decode()
        paths = re.findall(r'(?:from|new URL\(|fetch\(|src=|href=)\s*"(\.?[./\w-]+\.\w+)"', text)
        found |= {str(Path("/", PurePosixPath(name).parent, path).resolve())[1:] for path in paths}
    assert found <= site.keys(), found - site.keys()
    assert {"main.js", "style.css", "dfstream/index.js", "ort/ort.wasm.min.mjs", "example.wav"} <= found
    assert {"worker.js", "worklet.js", "model/dfstream_audio_hop.onnx", "model/about.json"} <= found


def test_nothing_comes_from_elsewhere(site):
    for name, resource in site.items():
        if PurePosixPath(name).suffix in (".js", ".html", ".css") and not name.startswith("ort/"):
            addresses = set(re.findall(r"https?://[\w.]+", resource.read().decode()))
            assert not addresses, name
            assert "innerHTML" not in resource.read().decode(), name


def test_the_page_says_the_policy_for_servers_that_do_not(site):
    text = re.sub(r"\s+", " ", site["index.html"].read().decode())
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)[1]
    # the one directive that pages cannot set
    assert f"{policy}; frame-ancestors 'none'" == demo.HEADERS["Content-Security-Policy"]
    assert "unsafe-inline" not in policy
    assert not re.search(r"<script(?![^>]*src=)|\sstyle=|\son\w+=", text)


def test_the_graph_is_the_models(site, bundled):
    graph = onnx.load_from_string(site["model/dfstream_audio_hop.onnx"].read())
    layout = json.loads(site["model/dfstream_audio_hop.json"].read())
    assert [i.name for i in graph.graph.input] == ["audio", "state", "atten_lim", "pf_beta"]
    assert layout["delay_samples"] == bundled.config.delay_samples
    assert json.loads(site["model/about.json"].read()) == {"name": "bundled"}


def test_every_control_has_a_name(site):
    text = site["index.html"].read().decode()
    labelled = set(re.findall(r'<label[^>]* for="([\w-]+)"', text))
    wrapped = set(re.findall(r'<label[^>]*>\s*<input id="([\w-]+)"', text))
    for kind, attributes in re.findall(r"<(input|select|meter|canvas)\b([^>]*)>", text):
        name = re.search(r'id="([\w-]+)"', attributes)
        assert name, attributes
        hidden = 'aria-hidden="true"' in attributes
        assert hidden or "aria-label=" in attributes or name[1] in labelled | wrapped, (kind, attributes)
    ids = re.findall(r'\bid="([\w-]+)"', text)
    assert len(ids) == len(set(ids))
    asked = re.findall(r'(?:element|on|#element)\("([\w-]+)"', site["main.js"].read().decode())
    asked += re.findall(r'#element\("([\w-]+)"', site["meters.js"].read().decode())
    assert set(asked) <= set(ids), set(asked) - set(ids)


def test_it_can_be_written_for_another_server(site, tmp_path):
    demo.write_site(site, tmp_path / "page")
    files = [path for path in (tmp_path / "page").rglob("*") if path.is_file()]
    assert {path.relative_to(tmp_path / "page").as_posix() for path in files} == site.keys()
    assert all((tmp_path / "page" / name).read_bytes() == file.read() for name, file in site.items())
    with pytest.raises(UsageError, match="exists"):
        demo.write_site(site, tmp_path / "page")
    with pytest.raises(UsageError):
        demo.write_site(site, tmp_path / "none" / "page")


# -- the server --------------------------------------------------------------------------------------


def test_answers_with_types_and_protection(ask, site):
    for name, kind in [
        ("", "text/html; charset=utf-8"),
        ("index.html", "text/html; charset=utf-8"),
        ("main.js", "text/javascript; charset=utf-8"),
        ("ort/ort.wasm.min.mjs", "text/javascript; charset=utf-8"),
        ("ort/ort-wasm-simd-threaded.wasm", "application/wasm"),
        ("model/dfstream_audio_hop.onnx?x=1", "application/octet-stream"),
        ("example.wav", "audio/wav"),
    ]:
        status, headers, body = ask(f"/{name}")
        assert (status, headers["Content-Type"]) == (200, kind)
        assert body == site[name.partition("?")[0] or "index.html"].read()
        assert headers["Content-Length"] == str(len(body))
        assert demo.HEADERS.items() <= headers.items()
        assert ask(f"/{name}", "HEAD") == (200, {**headers, "Date": ask(f"/{name}", "HEAD")[1]["Date"]}, b"")
    assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"


@pytest.mark.parametrize(
    "path", ["/none.js", "/../README.md", "/%2e%2e/README.md", "//etc/passwd", "/web", "/dfstream/", "*"]
)
def test_has_nothing_but_the_site(ask, path):
    status, headers, body = ask(path)
    assert (status, body) == (404, b"")
    assert demo.HEADERS.items() <= headers.items()


def test_takes_no_other_method(ask):
    assert ask("/", "POST")[0] == 501


def test_tells_where_browsers_find_it(site):
    for host, start in [("127.0.0.1", "http://127.0.0.1:"), ("0.0.0.0", "http://localhost:")]:
        with demo.serving(site, host) as server:
            assert demo.address(server) == f"{start}{server.server_port}/"


def test_an_address_that_is_taken(site):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UsageError, match=f"port {port}") as caught, demo.serving(site, port=port):
            pass
    assert "--port 0" in caught.value.hint
    with pytest.raises(UsageError, match="nowhere"), demo.serving(site, "nowhere.invalid"):
        pass


# -- the command -------------------------------------------------------------------------------------


def test_serves_until_interrupted(runtime):
    arguments = ["demo", "--port", "0", "--no-browser", "--runtime", str(runtime)]
    command = [sys.executable, "-m", "dfstream", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        line = process.stdout.readline()
        port = re.match(r"http://127\.0\.0\.1:(\d+)/ serves bundled", line)[1]
        for _ in range(3):  # a browser that leaves in the middle of an answer
            connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=30)
            with contextlib.closing(connection):
                connection.request("GET", "/model/dfstream_audio_hop.onnx")
                assert connection.getresponse().status == 200
        process.send_signal(signal.SIGINT)
        _, remarks = process.communicate(timeout=30)
    assert (process.returncode, remarks) == (0, "")


def test_writes_a_folder(runtime, tmp_path, capsys):
    assert _run(["demo", "--runtime", str(runtime), "-o", str(tmp_path / "page")]) == 0
    assert "wrote" in capsys.readouterr().out
    assert (tmp_path / "page" / "index.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--runtime", "{empty}"], 2, "has no ort.wasm.min.mjs"),
        (["--runtime", "{runtime}", "-o", "{empty}"], 2, "exists"),
        (["nonsense", "--runtime", "{runtime}"], 2, "nonsense"),
        (["--runtime", "{runtime}", "--host", "nowhere.invalid"], 2, "nowhere.invalid"),
    ],
)
def test_says_in_a_line_what_is_wrong(runtime, tmp_path, capsys, arguments, code, text):
    places = {"empty": str(tmp_path), "runtime": str(runtime)}
    assert _run(["demo", "--no-browser", *(a.format(**places) for a in arguments)]) == code
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("error: ")
    assert text in err
    assert err.count("\n") <= 2


def test_the_page_lies_in_the_repository_where_the_package_looks():
    assert (ROOT / "examples" / "web" / "index.html").is_file()
    assert (ROOT / "js" / "src" / "index.js").is_file()
