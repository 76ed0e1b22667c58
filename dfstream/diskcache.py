"""What dfstream works out once and keeps on disk: compiled kernels, patched graphs, Core ML packages.

Everything here may vanish, be damaged or be unwritable at any time: then it is worked out again, without
a word. A file begins with the SHA-256 of its key and its contents, so that a torn, flipped or misplaced
one is a miss and never reaches a linker.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from dfstream import __version__, atomic
from dfstream.errors import DfstreamError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "CACHE_VARIABLE",
    "KINDS",
    "Store",
    "cache_root",
    "clear",
    "is_writable",
    "nearest",
    "source_digest",
    "source_folders",
    "usage",
]

#: Environment variable that names the cache folder.
CACHE_VARIABLE = "DFSTREAM_CACHE"

#: Folders of the cache that hold what can be worked out again.
KINDS = ("kernels", "graphs", "coreml")

#: Unused for this long, or the oldest beyond so many bytes of a kind: removed when something is added.
_KEPT_S = 90 * 24 * 3600
_MAX_BYTES = 512 << 20

#: How old the note of the last use may be; a note at every read would wear disks for nothing.
_NOTED_S = 24 * 3600


def cache_root() -> Path:
    """Return the user's cache folder for dfstream, which may not exist yet: ``$DFSTREAM_CACHE`` if set.

    Raises
    ------
    RuntimeError, OSError
        Nobody can tell where: no home folder.
    """
    override = os.environ.get(CACHE_VARIABLE)
    if override:
        return Path(override).expanduser().absolute()
    import platformdirs

    return platformdirs.user_cache_path("dfstream", appauthor=False)


def source_folders(*packages: str) -> list[Path]:
    """Return the folders of subpackages of dfstream, those that exist as folders."""
    import dfstream

    folders = []
    for package in packages:
        # patches lie beside the package in an editable installation
        module = Path(dfstream.__file__).parent / package
        folder = module if module.is_dir() else module.parent.parent / package
        if (folder / "__init__.py").is_file():
            folders.append(folder)
    return folders


@functools.cache
def source_digest(*packages: str) -> str:
    """Return a short digest of all source files of subpackages of dfstream, empty where none can be read."""
    digest, found = hashlib.sha256(), False
    for folder in source_folders(*packages):
        for path in sorted(folder.rglob("*.py")):
            data = path.read_bytes()
            digest.update(
                f"{folder.name}/{path.relative_to(folder).as_posix()} {len(data)}\n".encode() + data
            )
            found = True
    return digest.hexdigest()[:12] if found else ""


@dataclasses.dataclass(frozen=True)
class Store:
    """One folder of the cache.

    Attributes
    ----------
    kind : str
        One of `KINDS`.
    tag : str
        Folder inside it: whatever all files here depend on, this version of dfstream included.
    """

    kind: str
    tag: str

    @property
    def folder(self) -> Path:
        """Where the files lie."""
        return cache_root() / self.kind / f"{__version__}-{self.tag}"

    def get(self, name: str, key: str) -> bytes | None:
        """Return what was put under a name with the same key, None where there is nothing whole."""
        with contextlib.suppress(OSError, RuntimeError):
            path = self.folder / name
            data = path.read_bytes()
            if data[:32] == _digest(key, data[32:]):
                if time.time() - path.stat().st_mtime > _NOTED_S:
                    os.utime(path)
                return data[32:]
        return None

    def put(self, name: str, key: str, contents: bytes) -> bool:
        """Keep something; say whether it worked."""
        with contextlib.suppress(OSError, RuntimeError, DfstreamError):
            folder = self.folder
            folder.mkdir(parents=True, exist_ok=True)
            with atomic.replacing(folder / name) as temporary:
                temporary.write_bytes(_digest(key, contents) + contents)
            _prune(folder.parent)
            return True
        return False


def clear() -> list[tuple[Path, int]]:
    """Delete all kernels and graphs; return the folders that were there, with their bytes.

    Raises
    ------
    OSError
        A folder cannot be deleted.
    """
    gone = []
    for kind in KINDS:
        folder = cache_root() / kind
        if folder.is_dir():
            gone.append((folder, sum(size for _, size, _ in _files(folder))))
            shutil.rmtree(folder)
    return gone


def usage() -> dict[str, tuple[int, int]]:
    """Return the number of files of each kind and their bytes."""
    found = {}
    for kind in KINDS:
        sizes = [size for _, size, _ in _files(cache_root() / kind)]
        found[kind] = len(sizes), sum(sizes)
    return found


def nearest(folder: Path) -> Path:
    """Return the folder itself, or the lowest one above it that exists."""
    return next((path for path in (folder, *folder.parents) if path.exists()), folder)


def is_writable(folder: Path) -> bool:
    """Whether files can be written into a folder, which may have to be made first; leaves nothing behind."""
    try:
        with tempfile.TemporaryFile(dir=nearest(folder)):
            return True
    except OSError:
        return False


def _digest(key: str, contents: bytes) -> bytes:
    digest = hashlib.sha256(key.encode() + b"\0")
    digest.update(contents)
    return digest.digest()


def _prune(kind: Path) -> None:
    left = _MAX_BYTES
    for used, size, path in sorted(_files(kind), reverse=True):
        left -= size
        if left < 0 or time.time() - used > _KEPT_S:
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # others are left in it
                path.parent.rmdir()


def _files(folder: Path) -> Iterator[tuple[float, int, Path]]:
    """When each file below a folder was last used, how large it is, and where."""
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # another process was quicker
            if path.is_file():
                status = path.stat()
                yield status.st_mtime, status.st_size, path
