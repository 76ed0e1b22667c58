"""Reading model files that may be broken or hostile.

Everything is read into memory; nothing is ever unpacked to disk. What is refused: files that are no plain
files or absurdly large; archives that are truncated or no archives, that hold links or devices under a
name we need, two members of one name, or more unpacked bytes (headers included) than any model has.
"""

from __future__ import annotations

import gzip
import tarfile
import zlib
from typing import TYPE_CHECKING, Any

from dfstream.errors import ArchiveError
from dfstream.parsing import parse_graph

if TYPE_CHECKING:
    from pathlib import Path
    from typing import IO

__all__ = ["CONFIG", "is_archive", "parse_graph", "read_archive", "read_folder", "read_single"]

CONFIG = "config.ini"

# an official export has three graphs of up to 3.2 MiB
_MAX_FILE = 64 << 20
_MAX_TOTAL = 128 << 20
_MAX_MEMBERS = 4096
_GZIP = b"\x1f\x8b"
_BLOCK = 1 << 16


def is_archive(path: Path) -> bool:
    """Whether a file looks like a tar archive, by its first bytes.

    Raises
    ------
    ArchiveError
        Not a plain file, or not readable.
    """
    head = _head(path)
    return head.startswith(_GZIP) or head[257:262] == b"ustar"


def read_folder(folder: Path) -> dict[str, bytes]:
    """Read the graphs and the configuration that lie in a folder, by file name."""
    try:
        paths = [p for p in sorted(folder.iterdir()) if _wanted(p.name) and p.is_file()]
    except OSError as error:
        raise ArchiveError(f"{folder}: cannot be read ({error.strerror})") from error
    return {path.name: _read(path) for path in paths}


def read_single(path: Path) -> dict[str, bytes]:
    """Read one graph and, where it exists, the configuration beside it."""
    files = {path.name: _read(path)}
    config = path.with_name(CONFIG)
    if config.is_file():
        files[CONFIG] = _read(config)
    return files


def read_archive(path: Path) -> dict[str, bytes]:
    """Read the members of a tar archive that belong to a model, at any depth, by base name.

    Raises
    ------
    ArchiveError
        Truncated, not an archive, or unsafe; see the module's list.
    """
    is_gzip = _head(path).startswith(_GZIP)
    try:
        # one pass over a stream that ends a compressed bomb wherever in the archive it hides
        with gzip.open(path) if is_gzip else path.open("rb") as stream:
            bounded: Any = _Bounded(stream, path)
            with tarfile.open(fileobj=bounded, mode="r|") as archive:
                files = _members(archive, path)
            while bounded.read(_BLOCK):  # gzip keeps its checksum behind the end of the archive
                pass
            return files
    except (tarfile.TarError, EOFError, zlib.error, OSError, RecursionError) as error:
        raise ArchiveError(
            f"{path}: not a readable tar archive, or cut short ({error})", hint="download it again"
        ) from error


class _Bounded:
    """Stops an unpacking that goes on for too long: tar headers are unpacked before anybody sees a member."""

    def __init__(self, stream: IO[bytes] | gzip.GzipFile, path: Path) -> None:
        self._stream, self._path = stream, path
        self._left = _MAX_TOTAL

    def read(self, size: int) -> bytes:
        """Read from the stream."""
        data = self._stream.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise ArchiveError(f"{self._path}: more than {_MAX_TOTAL >> 20} MiB unpacked")
        return data


def _members(archive: tarfile.TarFile, path: Path) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for count, member in enumerate(archive):
        if count >= _MAX_MEMBERS:
            raise ArchiveError(f"{path}: more than {_MAX_MEMBERS} members")
        name = member.name.replace("\\", "/").rsplit("/", 1)[-1]
        if member.isdir() or not _wanted(name):
            continue
        if not member.isreg() or member.issparse():
            raise ArchiveError(
                f"{path}: member {member.name!r} is a link or special file, expected a plain file"
            )
        if name in files:
            raise ArchiveError(f"{path}: holds more than one {name}")
        if member.size > _MAX_FILE:
            raise ArchiveError(
                f"{path}: member {member.name!r} has {member.size >> 20} MiB, limit {_MAX_FILE >> 20}"
            )
        stream = archive.extractfile(member)
        data = stream.read() if stream else b""
        if len(data) != member.size:
            raise ArchiveError(f"{path}: cut short inside {member.name!r}", hint="download it again")
        files[name] = data
    return files


def _wanted(name: str) -> bool:
    return name == CONFIG or (name.endswith(".onnx") and not name.startswith("."))


def _read(path: Path) -> bytes:
    data = _head(path, _MAX_FILE + 1)
    if len(data) > _MAX_FILE:
        raise ArchiveError(f"{path}: more than {_MAX_FILE >> 20} MiB")
    return data


def _head(path: Path, size: int = 512) -> bytes:
    """Read the first bytes of a plain file; any other kind might block or never end."""
    try:
        if not path.is_file():
            raise ArchiveError(f"{path}: not a plain file")
        with path.open("rb") as file:
            return file.read(size)
    except OSError as error:
        raise ArchiveError(f"{path}: cannot be read ({error.strerror})") from error
