"""Small programs for the tests of kernels and placement: a few operations, placed and run."""

import dataclasses

import numpy as np

from dfstream.net.kernels import run
from dfstream.net.layout import Storage
from dfstream.net.packing import Store
from dfstream.net.program import Operation, Program, in_phases
from dfstream.net.views import Views


class Small(Views):
    """Operations that read ``x`` and perhaps ``z`` and write ``y``, as `dfstream.net.translate` does."""

    def __init__(self):
        super().__init__()
        self.weights, self.stored = Store(), Store()

    def floats(self, values):
        return self.weights.add(np.asarray(values, np.float32))

    def emit_for_all(self, kind, x, y, z=None, scratch=(0, 0), **fields):
        self.operations.append(Operation(kind, x, y, z, fields, for_all=True, scratch=scratch))

    def program(self, x, y, z=None, states=(), storage=Storage.FLOAT32):
        return Program(
            phases=in_phases(self.operations),
            inputs=(z or x, x),
            results=(y, y, y),
            states=tuple(states),
            weights=self.weights.joined(np.float32),
            stored=self.stored.joined(np.uint8),
            storage=int(storage),
        )


@dataclasses.dataclass
class Running:
    """A program in its memory, which keeps its states from call to call."""

    program: Program
    streams: int
    frames: int

    def __post_init__(self):
        self.placed = self.program.place(self.streams, self.frames)

    def __call__(self, x, z=None):
        """Take x and z [B, channels, T, positions]; give y [B, T, positions * channels]."""
        B, _, T, _ = x.shape
        y = self.program.results[2]
        nothing, found = (
            np.empty((B, T, 0), np.float32),
            np.empty((B, T, y.positions * y.channels), np.float32),
        )
        if z is None:
            z = np.empty((B, 1, T, 0), np.float32)
        run(*self.placed.sides[0].arguments, z, x, nothing, nothing, found)
        return found


def as_map(row, channels):
    """A frame as it lies in memory, channels side by side, as [channels, positions]."""
    return row.reshape(-1, channels).T
