"""Protocol Buffers as they stand on the wire, read defensively.

A message is split into its fields one level at a time, when somebody asks for it: nothing recurses, nothing
is copied. What is refused: bytes that end early, numbers that do not end, groups, fields twice where there
is one (readers differ in which they take), absurd numbers of fields.

The format: https://protobuf.dev/programming-guides/encoding
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from dfstream.errors import ArchiveError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Message"]

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED = {_FIXED64: 8, _FIXED32: 4}
_LONGEST_VARINT = 10

# a block of the largest program we make has 1 500 operations
_MAX_FIELDS = 1 << 16
_MAX_REPEATED = 1 << 16


class Message:
    """One message; its fields are named by their numbers.

    Parameters
    ----------
    data : bytes-like
    where : str
        The file, for errors.

    Raises
    ------
    ArchiveError
        By every method: these bytes are no message, or the field is of another type.
    """

    def __init__(self, data: bytes | memoryview, where: str) -> None:
        self._data, self._where = memoryview(data), where

    @functools.cached_property
    def _fields(self) -> dict[int, list[tuple[int, int | memoryview]]]:
        """Wire types and values of all fields, split when the first of them is asked for."""
        fields: dict[int, list[tuple[int, int | memoryview]]] = {}
        at = count = 0
        while at < len(self._data):
            key, at = self._varint(self._data, at)
            number, kind = key >> 3, key & 7
            value, at = self._value(kind, at)
            count += 1
            if not number or count > _MAX_FIELDS:
                raise self.damaged("field number 0" if not number else f"more than {_MAX_FIELDS} fields")
            fields.setdefault(number, []).append((kind, value))
        return fields

    def _value(self, kind: int, at: int) -> tuple[int | memoryview, int]:
        if kind == _VARINT:
            return self._varint(self._data, at)
        if kind == _BYTES:
            size, at = self._varint(self._data, at)
        elif kind in _FIXED:
            size = _FIXED[kind]
        else:
            raise self.damaged(f"a field of wire type {kind}")
        if size > len(self._data) - at:
            raise self.damaged("cut short")
        return self._data[at : at + size], at + size

    def damaged(self, reason: str) -> ArchiveError:
        """Error that names the file."""
        return ArchiveError(f"{self._where}: damaged, or no Core ML model ({reason})")

    def _varint(self, data: memoryview, at: int) -> tuple[int, int]:
        value = 0
        for index, byte in enumerate(data[at : at + _LONGEST_VARINT]):
            value |= (byte & 0x7F) << (7 * index)
            if byte < 0x80:
                return value & (1 << 64) - 1, at + index + 1
        raise self.damaged("a number that does not end")

    def _one(self, number: int, kind: int) -> Any:
        found = self._all(number, kind)
        if len(found) > 1:
            raise self.damaged(f"field {number} more than once")
        return found[0] if found else None

    def _all(self, number: int, kind: int) -> list[Any]:
        found = self._fields.get(number, [])
        if any(other != kind for other, _ in found):
            raise self.damaged(f"field {number} of another type")
        return [value for _, value in found]

    # -- single fields ---------------------------------------------------------------------------------

    def which(self, *numbers: int) -> int | None:
        """Return the one of these fields that is there; None if none is, an error if several are."""
        found = [number for number in numbers if number in self._fields]
        if len(found) > 1:
            raise self.damaged(f"fields {found[0]} and {found[1]} at once")
        return found[0] if found else None

    def integer(self, number: int) -> int:
        """Return a signed or small unsigned number, 0 where it is left out."""
        return _signed(self._one(number, _VARINT) or 0)

    def data(self, number: int) -> memoryview:
        """Return bytes, none where they are left out."""
        found: memoryview | None = self._one(number, _BYTES)
        return memoryview(b"") if found is None else found

    def text(self, number: int) -> str:
        """Return text, empty where it is left out."""
        return self._text(self.data(number))

    def message(self, number: int) -> Message:
        """Return a message, an empty one where it is left out."""
        return Message(self.data(number), self._where)

    # -- repeated fields -------------------------------------------------------------------------------

    def messages(self, number: int) -> list[Message]:
        """Return repeated messages, not split yet."""
        return [Message(data, self._where) for data in self._all(number, _BYTES)]

    def texts(self, number: int) -> list[str]:
        """Return repeated text."""
        return [self._text(data) for data in self._all(number, _BYTES)]

    def entries(self, number: int) -> dict[str, Message]:
        """Return a map from text to messages."""
        entries = self.messages(number)
        found = {entry.text(1): entry.message(2) for entry in entries}
        if len(found) < len(entries):
            raise self.damaged(f"field {number} has a key more than once")
        return found

    def integers(self, number: int) -> list[int]:
        """Return repeated numbers, packed or not."""
        found: list[int] = []
        for kind, value in self._fields.get(number, []):
            if isinstance(value, int):
                found.append(_signed(value))
            elif kind == _BYTES:
                found += self._packed(value)
            else:
                raise self.damaged(f"field {number} of another type")
        return found

    def floats(self, number: int, dtype: type[np.float32] | type[np.float64]) -> NDArray[Any]:
        """Return repeated numbers of fixed size, packed or not."""
        size = np.dtype(dtype).itemsize
        parts: list[bytes] = []
        for kind, value in self._fields.get(number, []):
            if isinstance(value, int) or (kind != _BYTES and _FIXED[kind] != size) or len(value) % size:
                raise self.damaged(f"field {number} of another type")
            parts.append(bytes(value))
        return np.frombuffer(b"".join(parts), np.dtype(dtype).newbyteorder("<")).astype(dtype)

    def _packed(self, data: memoryview) -> list[int]:
        found, at = [], 0
        while at < len(data):
            value, at = self._varint(data, at)
            found.append(_signed(value))
            if len(found) > _MAX_REPEATED:
                raise self.damaged(f"more than {_MAX_REPEATED} numbers where few belong")
        return found

    def _text(self, data: memoryview) -> str:
        try:
            return str(data, "utf-8")
        except UnicodeDecodeError as error:
            raise self.damaged("a name that is not text") from error


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value
