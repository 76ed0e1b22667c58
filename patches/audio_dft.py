"""The discrete Fourier transform of real frames as ordinary operators: two small matrix products each way.

ONNX has an operator for it, which ONNX Runtime computes slowly and 50 dB less exactly at the lengths of
the family. For ``N = N1 N2`` the transform falls into one along N1 (of real samples, so that half of its
results are enough) and one along N2. Where N1 and N2 are coprime, sorting the samples by
``n = (N2 n1 + N1 n2) mod N`` and the bins by ``(k mod N1, k mod N2)`` leaves no rotation between the two
(Good, 1958; Thomas, 1963). Elsewhere the rotation is multiplied into the matrices of the second one, of
which each k1 then has its own (Cooley and Tukey, 1965). Tables are worked out in float64.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs
    from numpy.typing import NDArray

    from .emitting import Emitter

    Table = NDArray[np.float64]
    Places = NDArray[np.int64]

__all__ = ["Dft", "Factors", "factorise"]


@dataclasses.dataclass(frozen=True)
class Factors:
    """How a length is cut.

    Attributes
    ----------
    rows, columns : int
        N1 and N2; one row is the plain matrix of the whole transform.
    """

    rows: int
    columns: int

    @property
    def coprime(self) -> bool:
        """Whether there is no rotation between the two transforms."""
        return math.gcd(self.rows, self.columns) == 1

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one frame."""
        half = self.rows // 2 + 1
        if self.rows == 1:
            return self.columns * (self.columns + 2)
        return 2 * half * self.rows * self.columns + half * 4 * self.columns**2


def factorise(size: int) -> Factors:
    """Cut an even length: into coprime factors if that pays, else into any, else not at all."""
    dense = Factors(1, size)
    pairs = [Factors(rows, size // rows) for rows in range(2, size) if size % rows == 0]
    for some in ([pair for pair in pairs if pair.coprime], pairs):
        best = min(some, key=lambda pair: pair.macs, default=dense)
        if best.macs < dense.macs // 2:
            return best
    return dense


@dataclasses.dataclass(frozen=True)
class Dft:
    """Tables for one length, and the operators that use them.

    Attributes
    ----------
    factors : Factors
    order : ndarray[int64], shape (N1, N2)
        Which sample lies where.
    first : ndarray[float64], shape (2 K, N1)
        Transform along N1, K = N1 // 2 + 1; rows are (k1, re and im).
    second : ndarray[float64], shape (2 N2, 2 N2) or (K, 2 N2, 2 N2)
        Transform along N2, real parts before imaginary ones.
    place : ndarray[int64], shape (2, bins)
        Where the parts of each bin lie in what ``second`` gives.
    sign : ndarray[float64], shape (2, bins)
        -1 for the imaginary part of a bin that is read where its mirror lies.
    source : ndarray[int64], shape (K, 2 N2)
        Which part of which bin the way back takes in each place, imaginary ones behind all real ones.
    source_sign : ndarray[float64], shape (K, 2 N2)
        -1 for the imaginary part of a mirrored bin. Those of a real signal's first and last bin, which it
        does not have but deep filtering makes, meet nothing but zeros in ``first``.
    """

    factors: Factors
    order: Places
    first: Table
    second: Table
    place: Places
    sign: Table
    source: Places
    source_sign: Table

    @classmethod
    def of_size(cls, size: int) -> Dft:
        """Work the tables out for an even number of samples."""
        factors = factorise(size)
        N1, N2 = factors.rows, factors.columns
        half, bins = N1 // 2 + 1, size // 2 + 1
        n1, n2 = np.arange(N1)[:, None], np.arange(N2)
        if factors.coprime:
            order = (N2 * n1 + N1 * n2) % size
            bin_of = np.empty((N1, N2), np.int64)
            bin_of[np.arange(size) % N1, np.arange(size) % N2] = np.arange(size)
            second = _parts(np.outer(n2, n2), N2)
        else:
            order = N2 * n1 + n2
            bin_of = n1 + N1 * n2
            second = np.stack([_parts(np.outer(n2, k1 + N1 * n2), size) for k1 in range(half)])
        cosine, sine = _turn(np.outer(np.arange(half), n1), N1)
        place, sign = _places(bin_of[:half], bins)
        mirrored = bin_of[:half] >= bins
        source = np.where(mirrored, size - bin_of[:half], bin_of[:half])
        return cls(
            factors=factors,
            order=order.astype(np.int64),
            first=np.stack([cosine, -sine], axis=1).reshape(2 * half, N1),
            second=second,
            place=place,
            sign=sign,
            source=np.concatenate([source, bins + source], axis=1),
            source_sign=np.concatenate([np.ones(source.shape), np.where(mirrored, -1, 1)], axis=1),
        )

    def forward(self, emit: Emitter, x: gs.Tensor, name: str) -> gs.Tensor:
        """Emit the transform of frames [B, T, N1, N2], sorted by ``order``, to bins [B, T, 2, bins]."""
        rows, half = self.factors.columns * 2, len(self.first) // 2
        x = emit("MatMul", [self.first, x], f"{name}/rows")
        if self.second.ndim == 2:
            x = emit("MatMul", [emit.reshape(x, (0, 0, half, rows), f"{name}/turned"), self.second], name)
        else:
            x = emit("MatMul", [emit.reshape(x, (0, 0, half, 1, rows), f"{name}/turned"), self.second], name)
        x = emit.reshape(x, (0, 0, half * rows), f"{name}/flat")
        x = emit("Gather", [x, self.place], f"{name}/bins", axis=2)
        return emit("Mul", [x, self.sign], f"{name}/spectrum") if (self.sign < 0).any() else x

    def inverse(self, emit: Emitter, x: gs.Tensor, name: str) -> gs.Tensor:
        """Emit the way back from bins [B, T, 2, bins] to frames [B, T, N]; not divided by N."""
        N1, N2 = self.factors.rows, self.factors.columns
        half = len(self.first) // 2
        # the rows of which the first transform leaves the mirror out count twice
        counts = np.where(np.arange(half) * 2 % N1 == 0, 1.0, 2.0)
        x = emit.reshape(x, (0, 0, -1), f"{name}/parts")
        x = emit("Gather", [x, self.source], f"{name}/halves", axis=2)
        back = np.swapaxes(self.second, -1, -2)
        if self.second.ndim == 2:
            x = emit("MatMul", [emit("Mul", [x, self.source_sign], f"{name}/signed"), back], name)
        else:
            x = emit.reshape(x, (0, 0, half, 1, 2 * N2), f"{name}/rows")
            x = emit("MatMul", [x, self.source_sign[:, :, None] * back], name)
        x = emit.reshape(x, (0, 0, 2 * half, N2), f"{name}/turned")
        x = emit("MatMul", [self.first.T * np.repeat(counts, 2), x], f"{name}/columns")
        x = emit.reshape(x, (0, 0, N1 * N2), f"{name}/flat")
        unsorted = np.argsort(self.order.ravel())
        if (unsorted == np.arange(len(unsorted))).all():
            return x
        return emit("Gather", [x, unsorted], f"{name}/samples", axis=2)


def _turn(steps: NDArray[Any], size: int) -> tuple[Table, Table]:
    """Cosine and sine of so many steps of a circle of ``size``; what should be zero is."""
    angle = 2 * np.pi * (steps % size) / size
    parts = np.cos(angle), np.sin(angle)
    return tuple(np.where(np.abs(part) < 1e-12, 0.0, part) for part in parts)  # type: ignore[return-value]


def _parts(steps: NDArray[Any], size: int) -> Table:
    """Multiplication with rotations as a real matrix, (re, im) to (re, im)."""
    cosine, sine = _turn(steps, size)
    return np.block([[cosine, -sine], [sine, cosine]])


def _places(bin_of: Places, bins: int) -> tuple[Places, Table]:
    """Find every bin, or its mirror, among the rows that are computed."""
    columns = bin_of.shape[1]
    found = {int(k): divmod(at, columns) for at, k in reversed([*enumerate(bin_of.ravel())])}
    size = 2 * (bins - 1)
    place, sign = np.empty((2, bins), np.int64), np.ones((2, bins))
    for k in range(bins):
        row, column = found[k] if k in found else found[size - k]
        place[:, k] = row * 2 * columns + column, (row * 2 + 1) * columns + column
        sign[1, k] = 1 if k in found else -1
    return place, sign
