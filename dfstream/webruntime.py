"""ONNX Runtime for browsers: the files of the npm package that a page needs, fetched once, verified."""

from __future__ import annotations

import base64
import hashlib
import tarfile
import tempfile
import time
from typing import TYPE_CHECKING, BinaryIO

from dfstream import atomic, download
from dfstream.diskcache import CACHE_VARIABLE, cache_root
from dfstream.errors import ArchiveError, DownloadError, IntegrityError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dfstream.download import Progress

__all__ = ["FILES", "INTEGRITY", "PACKAGE", "URL", "VERSION", "cached_folder", "runtime_folder"]

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"

#: Where npm keeps the package, and the SHA-512 it states for it.
URL = f"https://registry.npmjs.org/{PACKAGE}/-/{PACKAGE}-{VERSION}.tgz"
INTEGRITY = "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="

#: The build for WebAssembly alone; the others of the package are ten times as large.
FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")

#: Folder of `FILES` in the package.
_DIST = "package/dist"

_HINT = (
    f"--runtime DIR names a folder with {', '.join(FILES)}: "
    f"`npm install {PACKAGE}@{VERSION}` puts one at node_modules/{PACKAGE}/dist"
)


def runtime_folder(
    given: Path | None = None,
    *,
    url: str = URL,
    integrity: str = INTEGRITY,
    progress: Progress | None = None,
    sleep: Callable[[float], object] = time.sleep,
) -> Path:
    """Return a folder that holds `FILES`, after downloading them into the cache where they are not there.

    Parameters
    ----------
    given : Path, optional
        A folder of the caller's own, of any version; then nothing is downloaded.
    url, integrity : str
        The package, and its hash as npm writes it.
    progress : callable, optional
        Called with the bytes received so far and the expected total, None where the server does not tell.
    sleep : callable
        Waits the given seconds between two tries.

    Raises
    ------
    UsageError
        The given folder lacks a file, or the cache cannot be written.
    DownloadError
        The server cannot be reached or does not deliver.
    IntegrityError
        The bytes received are not the expected ones.
    """
    if given is not None:
        missing = _missing(given)
        if missing:
            raise UsageError(f"{given} has no {', '.join(missing)}", hint=_HINT)
        return given
    folder = cached_folder()
    if not _missing(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder.parent) as package:
            download.fetch(url, package, progress=progress, sleep=sleep)
            _verify(url, package, integrity)
            with atomic.replacing_folder(folder) as unpacked:
                unpacked.mkdir()
                _unpack(package, unpacked)
    except DownloadError as error:
        raise DownloadError(str(error), hint=_HINT) from error
    except OSError as error:  # of the disk: those of the network were translated before
        hint = f"set {CACHE_VARIABLE} to a folder that can be written"
        raise UsageError(f"cannot write {folder}: {error.strerror}", hint=hint) from error
    return folder


def cached_folder() -> Path:
    """Return where the files lie once they were downloaded."""
    return cache_root() / "web" / f"{PACKAGE}-{VERSION}"


def _missing(folder: Path) -> list[str]:
    return [name for name in FILES if not (folder / name).is_file()]


def _verify(url: str, package: BinaryIO, integrity: str) -> None:
    package.seek(0)
    digest = base64.b64encode(hashlib.sha512(package.read()).digest()).decode()
    if f"sha512-{digest}" != integrity:
        raise IntegrityError(f"{url}: SHA-512 {digest}, expected {integrity}; nothing was kept", hint=_HINT)


def _unpack(package: BinaryIO, folder: Path) -> None:
    """Write `FILES` and nothing else of the package."""
    package.seek(0)
    try:
        with tarfile.open(fileobj=package) as archive:
            for name in FILES:
                member = archive.extractfile(f"{_DIST}/{name}")
                if member is None:
                    raise KeyError(name)
                (folder / name).write_bytes(member.read())
    except (tarfile.TarError, KeyError) as error:
        raise ArchiveError(f"not the package {PACKAGE} ({error})", hint=_HINT) from error
