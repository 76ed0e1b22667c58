"""The memory of a stream as a value: small, comparable with its settings, and storable."""

from __future__ import annotations

import dataclasses
import io
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from dfstream.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

__all__ = ["Snapshot"]

_HEADER = "header.json"
_FORMAT = 2


#: Arrays of samples that wait, of any length.
_SAMPLES = "stream/"


@dataclasses.dataclass(frozen=True, eq=False)
class Snapshot:
    """What a stream remembers. Made by `Stream.snapshot`, taken by `Stream.restore`.

    Attributes
    ----------
    settings : mapping
        Model, mode and options of the stream: a snapshot fits streams of the same only.
    counters : mapping
        Counters, and the settings that may change while streaming.
    arrays : mapping of str to ndarray
        All state: for DeepFilterNet3 47 kB with the backend ``numba``; with ``ort-cpu`` as much in blocks of
        one frame, 130 kB in larger ones and in the mode ``streaming``, 36 kB in ``stateful-h0``, 42 kB in
        ``audio-graph``.
    """

    settings: Mapping[str, Any]
    counters: Mapping[str, Any]
    arrays: Mapping[str, NDArray[Any]]

    def check_fits(self, own: Snapshot) -> None:
        """Refuse a stream of other settings, of which a snapshot is given.

        Raises
        ------
        UsageError
            Names the first difference.
        """
        described = self._described()
        for name, here in own._described().items():
            there = described.get(name)
            if there != here:
                raise UsageError(
                    f"the snapshot does not fit this stream: {name} is {there!r} there, {here!r} here"
                )

    def _described(self) -> dict[str, Any]:
        """Return what must be equal in every stream it fits: the settings, and the form of the rest."""
        arrays = {
            name: f"{array.dtype} {list(array.shape[name.startswith(_SAMPLES) :])}"
            for name, array in self.arrays.items()
        }
        return {**self.settings, "counters": sorted(self.counters), **arrays}

    def to_bytes(self) -> bytes:
        """Serialise, as an npz archive."""
        header = {"format": _FORMAT, "settings": self.settings, "counters": self.counters}
        text = np.frombuffer(json.dumps(header).encode(), np.uint8)
        buffer = io.BytesIO()
        np.savez(buffer, **{_HEADER: text, **self.arrays})  # type: ignore[arg-type]
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Snapshot:
        """Read what `to_bytes` wrote.

        Raises
        ------
        UsageError
            Damaged, or not a snapshot.
        """
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
            header = json.loads(arrays.pop(_HEADER).tobytes())
            written, settings, counters = header["format"], {**header["settings"]}, {**header["counters"]}
        except Exception as error:  # what damage looks like to zipfile and numpy has no common base
            raise UsageError(f"not a snapshot of a stream ({error})") from error
        if written != _FORMAT:
            raise UsageError(f"the snapshot is of format {written!r}, this version reads {_FORMAT}")
        return cls(settings, counters, arrays)
