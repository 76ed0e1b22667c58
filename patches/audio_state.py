"""The packed state of an audio graph: one row of floats for each stream, all zeros at its beginning."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs

from dfstream.interface import batch_axis

from .graph import BATCH

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .emitting import Emitter

__all__ = ["STATE", "STATE_OUT", "PackedState", "StatePart"]

STATE, STATE_OUT = "state", "state_out"

#: Axis of maps and spectra [B, channels, T, width] that counts frames.
_TIME = 2


@dataclasses.dataclass(frozen=True)
class StatePart:
    """A range of the packed state.

    Attributes
    ----------
    name : str
    shape : tuple of int
        Of what the range is when unpacked, for one stream.
    meaning : str
        One line.
    """

    name: str
    shape: tuple[int, ...]
    meaning: str

    @property
    def size(self) -> int:
        """Floats it takes."""
        return math.prod(self.shape)


class PackedState:
    """Hands out the parts of the state, and takes what they become.

    Parameters
    ----------
    emit : Emitter

    Attributes
    ----------
    parts : list of StatePart
        In their order in the state.
    """

    def __init__(self, emit: Emitter) -> None:
        self._emit = emit
        self.parts: list[StatePart] = []
        self._given: list[gs.Variable] = []
        self._after: dict[str, gs.Tensor] = {}

    def take(self, name: str, shape: Sequence[int], meaning: str) -> gs.Variable:
        """Return a part of the state as [B, *shape]."""
        part = StatePart(name, tuple(shape), meaning)
        packed = gs.Variable(f"{STATE}/{name}", np.dtype(np.float32))
        self.parts.append(part)
        self._given.append(packed)
        return packed if len(shape) == 1 else self._emit.reshape(packed, (0, *shape), f"{name}/before")

    def keep(self, name: str, value: gs.Tensor) -> None:
        """Say what a part becomes, in any shape whose row-major order is that of [B, *shape]."""
        self._after[name] = value

    def history(self, x: gs.Tensor, frames: int, name: str, meaning: str, shape: Sequence[int]) -> gs.Tensor:
        """Put the last frames in front of [B, C, T, W]; the newest ones become the state.

        Parameters
        ----------
        x : Tensor
        frames : int
            How many; none gives ``x``.
        name, meaning : str
        shape : sequence of int
            [C, W] of ``x``.
        """
        if not frames:
            return x
        past = self.take(name, (shape[0], frames, shape[1]), meaning)
        joined = self._emit("Concat", [past, x], f"{name}/frames", axis=_TIME)
        self.keep(name, self._emit.slice(joined, -frames, None, _TIME, f"{name}/after"))
        return joined

    def adopt(self, state: gs.Variable, after: gs.Tensor, meaning: str) -> None:
        """Make the state of a network, input and output of its graph, a part of this one."""
        axis = batch_axis(state.name)
        shape = [int(size) for i, size in enumerate(state.shape) if i != axis]
        packed = self.take(state.name, [math.prod(shape)], meaning)
        self.parts[-1] = StatePart(state.name, tuple(shape), meaning)
        # a GRU's [1, B, hidden] is [B, hidden] in the same order
        unpacked = [size if isinstance(size, int) else -1 for size in state.shape]
        self._emit.into(state, "Reshape", [packed, np.array(unpacked, np.int64)])
        self.keep(state.name, after)

    def close(self) -> tuple[gs.Variable, gs.Variable]:
        """Emit packing and unpacking; return input and output, [B, S]."""
        size = sum(part.size for part in self.parts)
        before = gs.Variable(STATE, np.dtype(np.float32), [BATCH, size])
        after = gs.Variable(STATE_OUT, np.dtype(np.float32), [BATCH, size])
        widths = np.array([part.size for part in self.parts], np.int64)
        split = gs.Node("Split", "unpack", {"axis": 1}, [before, gs.Constant("unpack/sizes", widths)])
        split.outputs = self._given
        self._emit.nodes.insert(0, split)
        rows = [
            self._emit.reshape(self._after[part.name], (-1, part.size), f"{part.name}/packed")
            for part in self.parts
        ]
        self._emit.into(after, "Concat", rows, axis=1)
        return before, after
