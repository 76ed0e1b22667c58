"""The page that enhances speech in a browser: what it consists of, and a server of nothing else."""

from __future__ import annotations

import contextlib
import dataclasses
import http.server
import json
import shutil
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dfstream
from dfstream import atomic
from dfstream.errors import UsageError
from dfstream.webruntime import FILES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from dfstream.model import Model

__all__ = ["HEADERS", "Resource", "address", "serving", "site", "write_site"]

#: By the endings of the site's files; nothing else is served.
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".wasm": "application/wasm",
    ".onnx": "application/octet-stream",
    ".wav": "audio/wav",
}

#: Sent with every answer: nothing from elsewhere, nothing to elsewhere, a process of its own.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; "
    "connect-src 'self'; style-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


@dataclasses.dataclass(frozen=True)
class Resource:
    """One file of the site.

    Attributes
    ----------
    content : bytes or Path
    """

    content: bytes | Path

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size

    def read(self) -> bytes:
        """Return all of it."""
        return self.content if isinstance(self.content, bytes) else self.content.read_bytes()


def site(model: Model, runtime: Path) -> Mapping[str, Resource]:
    """Return all files of the page by their paths, ``index.html`` among them.

    Parameters
    ----------
    model : Model
        What the page shall run: an export, whose graph from audio to audio is made here.
    runtime : Path
        Folder with `dfstream.webruntime.FILES`.

    Raises
    ------
    UnsupportedGraph
        No such graph can be made of the model.
    """
    examples = _folder("examples")
    files: dict[str, bytes | Path] = {
        path.name: path for path in sorted((examples / "web").iterdir()) if path.suffix in _TYPES
    }
    files |= {f"dfstream/{path.name}": path for path in sorted(_folder("js").glob("*.js"))}
    files |= {f"ort/{name}": runtime / name for name in FILES}
    files |= _graph(model)
    files["model/about.json"] = json.dumps({"name": model.name}).encode()
    files["example.wav"] = examples / "noisy.wav"
    return {name: Resource(content) for name, content in files.items()}


def write_site(files: Mapping[str, Resource], folder: Path) -> None:
    """Write the page into a new folder, for any web server.

    Raises
    ------
    UsageError
        The folder exists, or cannot be written.
    """
    if folder.exists():
        raise UsageError(f"{folder} exists", hint="choose a name that is free")
    with atomic.replacing_folder(folder) as made:
        for name, resource in files.items():
            target = made / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(resource.read())


@contextlib.contextmanager
def serving(
    files: Mapping[str, Resource], host: str = "127.0.0.1", port: int = 0
) -> Iterator[http.server.ThreadingHTTPServer]:
    """Give a server of the files, bound and not yet answering; ``serve_forever`` makes it answer.

    Parameters
    ----------
    files : mapping of str to Resource
    host : str
    port : int
        0 for any that is free.

    Raises
    ------
    UsageError
        The address cannot be bound.
    """

    class Handler(_Handler):
        site = files

    class Server(_Server):
        pass

    try:
        Server.address_family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        server = Server((host, port), Handler)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        hint = "--port 0 takes any free one"
        raise UsageError(f"cannot serve at {host}, port {port}: {reason}", hint=hint) from error
    with server:
        yield server


def address(server: http.server.ThreadingHTTPServer) -> str:
    """Return where a browser on this machine finds the page."""
    host, port = str(server.server_address[0]), server.server_address[1]
    # browsers give the microphone to secure pages and to those of the machine itself
    if host in ("0.0.0.0", "::"):
        host = "localhost"
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def _folder(name: str) -> Path:
    """Find what lies beside the package in a checkout, and inside it once installed."""
    package = Path(dfstream.__file__).parent
    inside = package / name
    return inside if inside.is_dir() else package.parent / {"js": "js/src"}.get(name, name)


def _graph(model: Model) -> dict[str, bytes]:
    import onnx

    from dfstream.patches.audio_graph import HOP, description_beside, hop_recipe

    graph = model.graphs(hop_recipe())[HOP]
    description = description_beside(onnx.load_from_string(graph), HOP)
    assert description is not None, "audio graphs carry their description"
    return {f"model/{HOP}.onnx": graph, f"model/{HOP}.json": description}


class _Server(http.server.ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Let browsers leave in the middle of an answer; say what else goes wrong."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(http.server.BaseHTTPRequestHandler):
    """Answers for the names in ``site``: there is no path to climb."""

    protocol_version = "HTTP/1.1"
    site: Mapping[str, Resource] = {}

    def do_GET(self) -> None:
        resource = self._begin()
        if resource is None:
            return
        if isinstance(resource.content, bytes):
            self.wfile.write(resource.content)
        else:
            with resource.content.open("rb") as file:
                shutil.copyfileobj(file, self.wfile)

    def do_HEAD(self) -> None:
        self._begin()

    def _begin(self) -> Resource | None:
        name = self.path.partition("?")[0].removeprefix("/") or "index.html"
        resource = self.site.get(name)
        self.send_response(http.HTTPStatus.OK if resource else http.HTTPStatus.NOT_FOUND)
        for header, value in HEADERS.items():
            self.send_header(header, value)
        if resource:
            self.send_header("Content-Type", _TYPES[Path(name).suffix])
        self.send_header("Content-Length", str(resource.size if resource else 0))
        self.end_headers()
        return resource

    def log_message(self, *_: object) -> None:
        """Say nothing: the terminal is the user's."""
