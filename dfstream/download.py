"""Fetching official archives into the cache: verified, then put in place, or not kept at all."""

from __future__ import annotations

import contextlib
import http.client
import os
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import TYPE_CHECKING, BinaryIO

import dfstream
from dfstream import atomic, catalog, diskcache
from dfstream.errors import DownloadError, IntegrityError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Progress = Callable[[int, int | None], None]

__all__ = ["BASE_URL", "URL_VARIABLE", "fetch", "pull", "remove", "url_of"]

#: ``models/`` of the DeepFilterNet repository at the commit whose git blob ids the catalogue holds.
BASE_URL = (
    "https://raw.githubusercontent.com/Rikorose/DeepFilterNet/d375b2d8309e0935d165700c91da9de862a99c31/models"
)

#: Environment variable that names another place with the same files, such as a mirror.
URL_VARIABLE = "DFSTREAM_MODELS_URL"

#: No model of the family comes near this size; what is larger is something else.
MAX_BYTES = 200_000_000

#: Longest wait for a connection or for the next bytes.
TIMEOUT_S = 30.0

#: Pauses between the tries: three tries in all.
PAUSES_S = (1.0, 2.0)

_BLOCK = 1 << 16


def pull(
    name: str,
    *,
    base_url: str | None = None,
    progress: Progress | None = None,
    force: bool = False,
    sleep: Callable[[float], object] = time.sleep,
) -> Path:
    """Download the archive of a model into the cache.

    The bytes go to a temporary file beside the target, are checked against all that the catalogue
    knows of them, and only then take their name. On any failure, interruption included, nothing new is
    kept. An intact copy in the cache is left alone; a damaged one is replaced.

    Parameters
    ----------
    name : str
        A name of the catalogue.
    base_url : str, optional
        Address of a folder with the archives, http or https. The default is ``$DFSTREAM_MODELS_URL``,
        else the DeepFilterNet repository at a fixed commit.
    progress : callable, optional
        Called with the bytes received so far and the expected total, None where the server does not
        tell. Starts again from 0 with each try.
    force : bool
        Download even where an intact copy is cached.
    sleep : callable
        Waits the given seconds between two tries.

    Returns
    -------
    Path
        The archive in the cache.

    Raises
    ------
    UsageError
        Unknown name, a model that comes with the package, an unusable address, or a cache that cannot
        be written.
    DownloadError
        The server cannot be reached or does not deliver.
    IntegrityError
        The bytes received are not the expected ones.
    """
    known = catalog.get(name)
    target = catalog.cache_path(known)
    if not force and catalog.is_intact(known, target):
        return target
    url = url_of(known, base_url)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic.replacing(target) as temporary:
            with temporary.open("wb") as file:
                fetch(url, file, size=known.size, progress=progress, sleep=sleep)
            _verify(known, url, temporary)
    except OSError as error:  # of the disk: those of the network were translated before
        raise UsageError(f"cannot write {target}: {error.strerror}", hint=_CACHE_HINT) from error
    return target


def remove(name: str) -> Path:
    """Delete the archive of a model from the cache, damaged or not, and return where it was.

    Raises
    ------
    UsageError
        Unknown name, a model that comes with the package, or nothing to delete.
    """
    path = catalog.cache_path(catalog.get(name))
    try:
        path.unlink()
    except FileNotFoundError:
        raise UsageError(f"model {name!r} is not in the cache ({path.parent})") from None
    except OSError as error:
        raise UsageError(f"cannot remove {path}: {error.strerror}") from error
    return path


def url_of(known: catalog.KnownModel, base_url: str | None = None) -> str:
    """Return the address of a model's archive.

    Raises
    ------
    UsageError
        The model has no archive, or the base is not an http or https address.
    """
    if known.archive is None:
        raise UsageError(f"model {known.name!r} comes with dfstream: nothing to pull")
    base = base_url or os.environ.get(URL_VARIABLE) or BASE_URL
    try:
        parts = urllib.parse.urlsplit(base)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        usable = usable and not (parts.query or parts.fragment or " " in base)
    except ValueError:  # brackets or a port that are none
        usable = False
    if not usable:
        raise UsageError(f"cannot pull from {base!r}: expected an http or https address", hint=_URL_HINT)
    return f"{base.rstrip('/')}/{known.archive}"


# -- one file --------------------------------------------------------------------------------------

_CACHE_HINT = f"set {diskcache.CACHE_VARIABLE} to a folder that can be written"
_URL_HINT = f"{URL_VARIABLE} names another place to pull from"
_OFFLINE_HINT = f"check the connection; {_URL_HINT}; the bundled model needs no network"


def fetch(
    url: str,
    file: BinaryIO,
    *,
    size: int | None = None,
    progress: Progress | None = None,
    sleep: Callable[[float], object] = time.sleep,
) -> None:
    """Download into an open file, trying again after failures that may pass; nothing is verified.

    Parameters
    ----------
    url : str
        http or https.
    file : binary file
        Written from its beginning.
    size : int, optional, bytes
        What is expected where the server does not tell.
    progress, sleep : callable
        As in `pull`.

    Raises
    ------
    DownloadError
        The server cannot be reached or does not deliver.
    IntegrityError
        Absurdly large.
    """
    opener = _opener()
    for pause in (*PAUSES_S, None):
        try:
            _receive(opener, url, file, size, progress)
            return
        except _MayPass as failure:
            if pause is None:
                raise failure.error from failure.__cause__
        sleep(pause)


def _receive(
    opener: urllib.request.OpenerDirector,
    url: str,
    file: BinaryIO,
    size: int | None,
    progress: Progress | None,
) -> None:
    """Download into an open file, once, from its beginning."""
    headers = {"User-Agent": f"dfstream/{dfstream.__version__}", "Accept-Encoding": "identity"}
    file.seek(0)
    file.truncate()
    with _network(url):
        response = opener.open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S)
    with response:
        total: int | None = response.length if response.length is not None else size
        done = 0
        _report(progress, done, total)
        while True:
            with _network(url):
                block = response.read(_BLOCK)
            if not block:
                break
            done += len(block)
            if max(done, total or 0) > MAX_BYTES:
                raise IntegrityError(f"{url}: over {MAX_BYTES} bytes, no model is that large", hint=_URL_HINT)
            file.write(block)
            _report(progress, done, total)
    # http.client does not complain when a read of some bytes meets an early end
    if total is not None and done < total:
        cut = f"{url}: the transfer ended after {done} of {total} bytes"
        raise _MayPass(DownloadError(cut, hint=_OFFLINE_HINT))


def _report(progress: Progress | None, done: int, total: int | None) -> None:
    if progress is not None:
        progress(done, total)


def _verify(known: catalog.KnownModel, url: str, path: Path) -> None:
    problem = catalog.mismatch(known, catalog.digests(path))
    if problem is not None:
        raise IntegrityError(f"{url}: {problem}; nothing was kept", hint=_URL_HINT)


# -- the network -----------------------------------------------------------------------------------


def _opener() -> urllib.request.OpenerDirector:
    """Make an opener for http and https alone; urllib's own also opens local files and ftp."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.UnknownHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPErrorProcessor,
    ):
        opener.add_handler(handler())
    return opener


class _MayPass(Exception):
    """A failure after which the same request may succeed a moment later."""

    def __init__(self, error: DownloadError) -> None:
        super().__init__(str(error))
        self.error = error


@contextlib.contextmanager
def _network(url: str) -> Iterator[None]:
    """Translate failures of the network, and of nothing else: the disk raises OSError too."""
    try:
        yield
    except (OSError, http.client.HTTPException, UnicodeError) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        explained = _explain(url, error)
        raise (_MayPass(explained) if _passes(error) else explained) from error


def _passes(error: Exception) -> bool:
    if isinstance(error, urllib.error.HTTPError):
        return error.code >= 500 or error.code in (408, 429)
    if isinstance(error, urllib.error.URLError):
        # a wrong certificate stays wrong
        return isinstance(error.reason, OSError) and not isinstance(error.reason, ssl.CertificateError)
    return not isinstance(error, (http.client.InvalidURL, UnicodeError))


def _explain(url: str, error: Exception) -> DownloadError:
    if isinstance(error, urllib.error.HTTPError):
        return DownloadError(f"{url}: the server answered {error.code} {error.reason}", hint=_URL_HINT)
    if isinstance(error, http.client.IncompleteRead):
        return DownloadError(f"{url}: the transfer ended early", hint=_OFFLINE_HINT)
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    text = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
    return DownloadError(f"cannot reach {urllib.parse.urlsplit(url).netloc}: {text}", hint=_OFFLINE_HINT)
