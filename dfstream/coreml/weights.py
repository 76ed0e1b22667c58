"""Types of values in a program, and the files that weights lie in.

A weight file is little-endian, everything in it begins at a multiple of 64 bytes: a header (number of
blobs, version), then metadata and data of each blob. Values of less than a byte are packed from the lowest
bit on. Source: ``MILBlob/Blob/StorageFormat.hpp`` and ``BlobDataType.hpp`` of apple/coremltools.
"""

from __future__ import annotations

import dataclasses
import math
import struct
from typing import TYPE_CHECKING, Any

import numpy as np

from dfstream.errors import ArchiveError, UnsupportedGraph

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["DataType", "read_blob", "type_of", "unpack"]

_ALIGNMENT = 64
_SENTINEL = 0xDEADBEEF
_VERSION = 2


@dataclasses.dataclass(frozen=True)
class DataType:
    """A type of values.

    Attributes
    ----------
    name : str
    bits : int
        Of a stored value.
    held : dtype
        In which numpy holds it, exactly.
    code : int, optional
        In weight files; None where they do not hold it.
    """

    name: str
    bits: int
    held: np.dtype[Any]
    code: int | None = None


def _of(held: Any, code: int | None = None) -> DataType:
    held = np.dtype(held)
    return DataType(held.name, 8 * held.itemsize, held, code)


#: By their numbers in a program, ``MILSpec.DataType``.
_TYPES = {
    1: _of(np.bool_), 2: DataType("string", 0, np.dtype(np.str_)), 10: _of(np.float16, 1),
    11: _of(np.float32, 2), 12: _of(np.float64), 21: _of(np.int8, 4), 22: _of(np.int16, 6),
    23: _of(np.int32, 14), 24: _of(np.int64), 31: _of(np.uint8, 3), 32: _of(np.uint16, 7),
    33: _of(np.uint32, 15), 34: _of(np.uint64), 25: DataType("int4", 4, np.dtype(np.int8), 8),
    35: DataType("uint4", 4, np.dtype(np.uint8), 11), 36: DataType("uint2", 2, np.dtype(np.uint8), 10),
    37: DataType("uint1", 1, np.dtype(np.uint8), 9), 38: DataType("uint6", 6, np.dtype(np.uint8), 13),
    39: DataType("uint3", 3, np.dtype(np.uint8), 12),
}  # fmt: skip


def type_of(number: int, where: str) -> DataType:
    """Return the type of a number in a program.

    Raises
    ------
    UnsupportedGraph
        No such type, or one that programs of ours never use (bfloat16, 8-bit floats).
    """
    if number not in _TYPES:
        raise UnsupportedGraph(f"{where}: values of the type {number}, which is not supported")
    return _TYPES[number]


def unpack(data: bytes | memoryview, kind: DataType, count: int) -> NDArray[Any] | None:
    """Return stored values as a vector; None if there are not as many as there should be."""
    if len(data) != -(-count * kind.bits // 8):
        return None
    if kind.bits >= 8:
        return np.frombuffer(data, kind.held.newbyteorder("<")).astype(kind.held, copy=False)
    bits = np.unpackbits(np.frombuffer(data, np.uint8), count=count * kind.bits, bitorder="little")
    values = np.zeros(count, np.uint8)
    for bit in range(kind.bits):
        values |= bits[bit :: kind.bits] << bit
    if kind.held == np.int8:
        return ((values ^ 8).astype(np.int8) - 8).astype(np.int8)
    return values


def read_blob(file: bytes, offset: int, kind: DataType, shape: Sequence[int], where: str) -> NDArray[Any]:
    """Read one blob of a weight file.

    Parameters
    ----------
    file : bytes
        All of it.
    offset : int
        Where the metadata of the blob begins.
    kind : DataType
    shape : sequence of int
    where : str
        The file, for errors.

    Returns
    -------
    ndarray
        Read-only where nothing had to be unpacked.

    Raises
    ------
    ArchiveError
        The blob is not there, or not what the program says.
    UnsupportedGraph
        Another version of the file.
    """

    def damaged(reason: str) -> ArchiveError:
        return ArchiveError(f"{where}: damaged, or no weight file (blob at {offset}: {reason})")

    if len(file) < _ALIGNMENT:
        raise damaged("the file is cut short")
    version = struct.unpack_from("<II", file)[1]
    if version != _VERSION:
        raise UnsupportedGraph(f"{where}: version {version} of weight files, supported is {_VERSION}")
    if offset % _ALIGNMENT or not _ALIGNMENT <= offset <= len(file) - _ALIGNMENT:
        raise damaged("there can be none")
    sentinel, code, size, start, padding = struct.unpack_from("<IIQQQ", file, offset)
    if sentinel != _SENTINEL:
        raise damaged("there is none")
    if code != kind.code:
        raise damaged(f"holds another type than {kind.name}")
    if start % _ALIGNMENT or start < offset + _ALIGNMENT or start > len(file) or size > len(file) - start:
        raise damaged("its data lie outside of the file")
    count = math.prod(shape)
    values = unpack(memoryview(file)[start : start + size], kind, count)
    if values is None or padding != (8 * size - count * kind.bits if kind.bits < 8 else 0):
        raise damaged(f"{size} bytes are not {list(shape)} of {kind.name}")
    return values.reshape(shape)
