"""How weights lie in memory: in the order the kernels read them, in the storage that was asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from dfstream.dsp.tile import LANES

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["PANEL", "PRECISIONS", "Precision", "Store", "aligned", "panels", "quantised"]

Precision = Literal["float32", "int16", "fp16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

#: Outputs of a panel: what a tile of one row computes at a time.
PANEL = 4 * LANES

#: Bytes of a cache line; a panel's rows begin at one.
_LINE = 64

_LARGEST = {"int16": 32767, "int8": 127}


def panels(matrix: NDArray[Any]) -> NDArray[Any]:
    """Lay a matrix out panel by panel.

    Parameters
    ----------
    matrix : ndarray, shape (N, K)
        Row n holds the weights of output n.

    Returns
    -------
    ndarray, flat
        Panels [K][64], then [K][16] for the rest, the last one filled up with zeros.
    """
    outputs, size = matrix.shape
    whole = outputs - outputs % PANEL
    rest = -(-(outputs - whole) // LANES) * LANES
    filled = np.zeros((whole + rest, size), matrix.dtype)
    filled[:outputs] = matrix
    widths = [PANEL] * (whole // PANEL) + [LANES] * (rest // LANES)
    starts = np.cumsum([0, *widths[:-1]])
    parts = [filled[start : start + width].T.ravel() for start, width in zip(starts, widths, strict=True)]
    return np.concatenate(parts)


def quantised(matrix: NDArray[np.float32], precision: Precision) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Reduce a matrix to what a precision stores, with one scale for each output.

    Parameters
    ----------
    matrix : ndarray[float32], shape (N, K)
    precision : str
        Integers are rounded to multiples of an output's largest weight over 127 or 32767.

    Returns
    -------
    stored : ndarray, shape (N, K)
        float32, float16, int16 or int8.
    scales : ndarray[float32], shape (N,)
        What sums over stored weights are multiplied with.
    """
    ones = np.ones(len(matrix), np.float32)
    if precision == "float32":
        return matrix, ones
    if precision == "fp16":
        return matrix.astype(np.float16), ones
    largest = _LARGEST[precision]
    scales = (np.abs(matrix).max(axis=1) / largest).astype(np.float32)
    scales[scales == 0] = 1  # zeros, or so small that float32 has no scale for them
    stored = np.rint(matrix / scales[:, None]).clip(-largest, largest)
    return stored.astype(np.int16 if precision == "int16" else np.int8), scales


def aligned(size: int, dtype: Any) -> NDArray[Any]:
    """Return a flat array of zeros that begins at a cache line."""
    raw = np.zeros(size * np.dtype(dtype).itemsize + _LINE, np.uint8)
    start = -raw.ctypes.data % _LINE
    return raw[start : start + size * np.dtype(dtype).itemsize].view(dtype)


class Store:
    """Arrays that go into one flat array, each at a cache line."""

    def __init__(self) -> None:
        self._parts: list[tuple[int, NDArray[Any]]] = []
        self._end = 0

    def add(self, values: NDArray[Any]) -> int:
        """Return where the values will begin, counted in values of their own type."""
        start = -(-self._end // _LINE) * _LINE
        self._parts.append((start, np.ascontiguousarray(values).ravel()))
        self._end = start + values.nbytes
        return start // values.itemsize

    def joined(self, dtype: Any) -> NDArray[Any]:
        """Return all that was added."""
        flat = aligned(self._end + -self._end % _LINE, np.uint8)
        for start, values in self._parts:
            flat[start : start + values.nbytes] = values.view(np.uint8)
        return flat.view(dtype)
