"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from dfstream.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["replacing", "replacing_folder", "write_all"]


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Give a temporary path in the target's folder, which takes its place when the block succeeds.

    On any failure, interruption included, the temporary file goes and the target stays as it was.

    Raises
    ------
    UsageError
        The folder does not exist or cannot be written.
    """
    try:
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=target.suffix)
    except OSError as error:
        raise UsageError(f"cannot write {target}: {error.strerror}") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes files for its owner only; a result has the mode any new file would get
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(target: Path) -> Iterator[Path]:
    """Give a path of the target's name in a temporary folder beside it; a folder made there takes its place.

    On any failure, interruption included, the temporary folder goes and the target stays as it was.

    Raises
    ------
    UsageError
        The target's folder does not exist or cannot be written, or nothing may take the target's place.
    """
    try:
        holder = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    except OSError as error:
        raise UsageError(f"cannot write {target}: {error.strerror}") from error
    try:
        made, old = holder / target.name, holder / "old"
        yield made
        try:
            if target.exists():
                target.rename(old)
            made.rename(target)
        except OSError as error:
            if old.exists():
                old.rename(target)
            raise UsageError(f"cannot write {target}: {error.strerror}") from error
    finally:
        shutil.rmtree(holder, ignore_errors=True)


def write_all(folder: Path, files: dict[str, bytes]) -> None:
    """Write several files so that a failure leaves none of them half written.

    Raises
    ------
    UsageError
        The folder cannot be written.
    """
    with contextlib.ExitStack() as stack:
        for name, data in files.items():
            stack.enter_context(replacing(folder / name)).write_bytes(data)
