"""ONNX Runtime for browsers: the three files that a page needs, fetched once, verified."""

from __future__ import annotations

import hashlib
import time
from typing import TYPE_CHECKING

from dfstream import atomic, download
from dfstream.diskcache import CACHE_VARIABLE, cache_root
from dfstream.errors import DownloadError, IntegrityError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from dfstream.download import Progress

__all__ = ["BASE_URL", "FILES", "PACKAGE", "VERSION", "cached_folder", "runtime_folder"]

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"

#: A public mirror of the files of npm packages; what it gives is taken only if it is what was pinned.
BASE_URL = f"https://cdn.jsdelivr.net/npm/{PACKAGE}@{VERSION}/dist"

#: The build for WebAssembly alone, and the SHA-256 of its files; the other builds are ten times as large.
FILES = {
    "ort.wasm.min.mjs": "219e6a1fc8a9938268d18efca3c91d310bd2f4a59bbd13744df5b2b7fc6cee3b",
    "ort-wasm-simd-threaded.mjs": "e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}

_HINT = (
    f"--runtime DIR names a folder with {', '.join(FILES)}: "
    f"`npm install {PACKAGE}@{VERSION}` puts one at node_modules/{PACKAGE}/dist"
)


def runtime_folder(
    given: Path | None = None,
    *,
    base_url: str = BASE_URL,
    files: Mapping[str, str] = FILES,
    progress: Progress | None = None,
    sleep: Callable[[float], object] = time.sleep,
) -> Path:
    """Return a folder that holds `FILES`, after downloading them into the cache where they are not there.

    Parameters
    ----------
    given : Path, optional
        A folder of the caller's own, of any version; then nothing is downloaded.
    base_url : str
        Where the files lie.
    files : mapping of str to str
        Their names, and the SHA-256 of each.
    progress : callable, optional
        Called with the bytes received so far of each file and the expected total, None where the server
        does not tell.
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
        missing = [name for name in files if not (given / name).is_file()]
        if missing:
            raise UsageError(f"{given} has no {', '.join(missing)}", hint=_HINT)
        return given
    folder = cached_folder()
    try:
        if all(_is_intact(folder / name, digest) for name, digest in files.items()):
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        with atomic.replacing_folder(folder) as fetched:
            fetched.mkdir()
            for name, digest in files.items():
                with (fetched / name).open("wb") as file:
                    download.fetch(f"{base_url}/{name}", file, progress=progress, sleep=sleep)
                if not _is_intact(fetched / name, digest):
                    raise IntegrityError(
                        f"{base_url}/{name} is not the file of {PACKAGE} {VERSION}; nothing was kept",
                        hint=_HINT,
                    )
    except DownloadError as error:
        raise DownloadError(str(error), hint=_HINT) from error
    except OSError as error:  # of the disk: those of the network were translated before
        hint = f"set {CACHE_VARIABLE} to a folder that can be written"
        raise UsageError(f"cannot write {folder}: {error.strerror}", hint=hint) from error
    return folder


def cached_folder() -> Path:
    """Return where the files lie once they were downloaded."""
    return cache_root() / "web" / f"{PACKAGE}-{VERSION}"


def _is_intact(path: Path, sha256: str) -> bool:
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256
