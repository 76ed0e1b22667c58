"""Lanes: many channels side by side, whose states are the rows of batched arrays.

A lane is one channel of one stream. The stateful classes keep one row of state for each of their lanes
and take blocks [n, T, ...] of any n of them at a time.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from dfstream.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import DTypeLike, NDArray

__all__ = ["DelayLine", "LaneSet", "Scratch"]


class LaneSet:
    """Which lanes the rows of a block belong to, checked once so that kernels never have to.

    Parameters
    ----------
    total : int
        How many lanes there are.
    index : sequence of int, optional
        Lane of each row, none of them twice; all lanes in order by default.

    Raises
    ------
    UsageError
        A lane that does not exist, or twice the same.

    Attributes
    ----------
    index : ndarray[intp], shape (n,), read-only
    everything : bool
        Whether these are all lanes in order.
    """

    def __init__(self, total: int, index: Sequence[int] | NDArray[np.intp] | None = None) -> None:
        lanes = range(total) if index is None else [int(lane) for lane in index]
        if total < 1 or len(set(lanes)) < max(1, len(lanes)) or not 0 <= min(lanes) <= max(lanes) < total:
            raise UsageError(f"lanes {list(lanes)}, expected some of {total}, each once")
        self.total = total
        self.index: NDArray[np.intp] = np.array(lanes, np.intp)
        self.index.flags.writeable = False
        self.everything = list(lanes) == list(range(total))

    def __len__(self) -> int:
        return len(self.index)


class Scratch:
    """Memory for results, given out in the shape of the moment; contiguous, and one at a time.

    Parameters
    ----------
    size : int
        Most elements of any shape.
    dtype : dtype
    """

    def __init__(self, size: int, dtype: DTypeLike) -> None:
        self._flat: NDArray[Any] = np.zeros(size, dtype)
        self._view = self._flat

    def shaped(self, *shape: int) -> NDArray[Any]:
        """Return the memory in this shape; what is in it is left from before."""
        if self._view.shape != shape:
            self._view = self._flat[: math.prod(shape)].reshape(shape)
        return self._view


class DelayLine:
    """Frames of the past in front of those of the moment.

    Parameters
    ----------
    past : int, frames
        How many stay from call to call; none makes it a wire.
    frame : tuple of int
        Shape of one frame.
    dtype : dtype
    max_frames : int
        Longest block of one call.
    lanes : int
    initial : float
        What every frame before the first one holds.

    Attributes
    ----------
    past : ndarray, shape (lanes, past, *frame)
        The state.
    """

    def __init__(
        self,
        past: int,
        frame: tuple[int, ...],
        dtype: DTypeLike,
        max_frames: int,
        lanes: int,
        initial: float = 0,
    ) -> None:
        self._frame, self._initial = frame, initial
        self.past: NDArray[Any] = np.full((lanes, past, *frame), initial, dtype)
        self._joined = Scratch(lanes * (past + max_frames) * math.prod(frame) if past else 0, dtype)
        #: Parts of the memory in the shape of the moment: making them costs more than copying one hop.
        self._cut = self._joined.shaped(0)
        self._cuts = self._cut, self._cut, self._cut

    def reset(self, lanes: LaneSet) -> None:
        """Forget the past of these lanes."""
        self.past[lanes.index] = self._initial

    def extend(self, new: NDArray[Any], lanes: LaneSet) -> NDArray[Any]:
        """Return the past followed by new frames, and remember the newest.

        Parameters
        ----------
        new : ndarray, shape (n, T, *frame)
        lanes : LaneSet
            Of n lanes.

        Returns
        -------
        ndarray, shape (n, past + T, *frame)
            Overwritten by the next call; ``new`` itself where there is no past.
        """
        past, T = self.past.shape[1], new.shape[1]
        if not past:
            return new
        joined = self._joined.shaped(len(new), past + T, *self._frame)
        if joined is not self._cut:
            self._cut, self._cuts = joined, (joined[:, :past], joined[:, past:], joined[:, T:])
        before, now, newest = self._cuts
        rows = ... if lanes.everything else lanes.index
        before[...] = self.past[rows]
        now[...] = new
        self.past[rows] = newest
        return joined
