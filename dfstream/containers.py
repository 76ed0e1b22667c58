"""Whether an audio file is whole: what libsndfile does not ask.

It takes what there is of a WAV or OGG file that was cut short, and nothing of a WAV file whose writer
could not go back to fill in its sizes, as into a pipe.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["complete_wav_sizes", "is_cut_short", "lacks_wav_sizes"]

#: Sizes from here on are what programs write into a pipe for "unknown": sox the largest signed number, in
#: whole blocks, ffmpeg the largest unsigned one. 0 stands for the same.
_UNKNOWN = 0x7FFF_0000

#: A page of OGG: its fixed head, at most 255 lengths, and what these can add up to (RFC 3533, section 6).
_PAGE_HEAD, _LONGEST_PAGE = 27, 27 + 255 + 255 * 255
_LAST_PAGE = 0x04


def is_cut_short(path: Path, format_: str) -> bool:
    """Say whether a readable file ends before its end, judged by its container.

    Parameters
    ----------
    path : Path
    format_ : str
        As libsndfile calls it. Other formats than WAV, RF64 and OGG are never called short: libsndfile
        itself notices in FLAC.
    """
    with path.open("rb") as file:
        if format_ in ("WAV", "WAVEX", "RF64"):
            return _wav_is_short(file)
        return format_ == "OGG" and _ogg_is_short(file)


def lacks_wav_sizes(path: Path) -> bool:
    """Say whether a file is a WAV file whose writer left the sizes at 0 and samples behind them."""
    with path.open("rb") as file:
        return _start_of_unsized(file) is not None


def complete_wav_sizes(path: Path) -> None:
    """Fill in the sizes that the writer of a WAV file left at 0; change nothing else, and no other file."""
    with path.open("r+b") as file:
        start, length = _start_of_unsized(file), _length(file)
        if start is None or length >= 1 << 32:
            return
        for offset, value in ((4, length - 8), (start - 4, length - start)):
            file.seek(offset)
            file.write(struct.pack("<I", value))


def _start_of_unsized(file: BinaryIO) -> int | None:
    found, length = _find_data(file), _length(file)
    if found is None:
        return None
    start, size = found
    file.seek(4)
    (riff_size,) = struct.unpack("<I", file.read(4))
    # an honest file without samples says how long it is as a whole
    return start if not size and start < length and riff_size + 8 != length else None


def _wav_is_short(file: BinaryIO) -> bool:
    found, length = _find_data(file), _length(file)
    if found is None:
        return False
    start, size = found
    # a size that a 32-bit counter cannot hold is a real one, of RF64
    unknown = _UNKNOWN <= size < 1 << 32
    return start + size > length and not unknown


def _find_data(file: BinaryIO) -> tuple[int, int] | None:
    """Return where the samples of a WAV file start and how many bytes they are said to take."""
    file.seek(0)
    head = file.read(12)
    if head[:4] not in (b"RIFF", b"RF64") or head[8:] != b"WAVE":
        return None
    long_size = None
    while len(head := file.read(8)) == 8:
        name, size = struct.unpack("<4sI", head)
        start = file.tell()
        if name == b"data":
            return start, size if long_size is None else long_size
        if name == b"ds64":  # sizes in 64 bits: of the file, of the data (EBU Tech 3306)
            _, long_size = struct.unpack("<QQ", file.read(16).ljust(16, b"\0"))
        file.seek(start + size + size % 2)
    return None


def _ogg_is_short(file: BinaryIO) -> bool:
    """Look for the last page: it has to be whole and to say that it is the last."""
    length = _length(file)
    file.seek(max(0, length - _LONGEST_PAGE))
    tail = file.read()
    page = tail[max(0, tail.rfind(b"OggS")) :]
    if len(page) < _PAGE_HEAD or len(page) < _PAGE_HEAD + page[_PAGE_HEAD - 1]:
        return True
    lengths = page[_PAGE_HEAD : _PAGE_HEAD + page[_PAGE_HEAD - 1]]
    return len(page) < _PAGE_HEAD + len(lengths) + sum(lengths) or not page[5] & _LAST_PAGE


def _length(file: BinaryIO) -> int:
    return file.seek(0, os.SEEK_END)
