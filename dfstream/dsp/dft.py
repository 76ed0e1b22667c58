"""The discrete Fourier transform of a frame, as two small matrix products.

For ``N = N1 N2`` the transform falls into transforms of length N1 and of length N2 with a rotation
between them (Cooley and Tukey, 1965). At a window's length both are so short that plain matrices with
all lanes of the processor busy are quicker than a fast transform, and far quicker than calling one: numpy
takes as long for the call as for the work. Written for kernels, which put their windows around it.

Forward sums run in float64: a loud bin must not leak rounding errors into quiet ones, whose logarithm the
network looks at. Back, errors stay as far below the samples as float32 has them anyway.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from dfstream.dsp._jit import inner
from dfstream.dsp.tile import LANES, ROWS, tile

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Doubles = NDArray[np.float64]

__all__ = ["Transform", "forward", "inverse"]

_several, _one = tile(ROWS, 1), tile(1, 1)


@dataclasses.dataclass(frozen=True)
class Transform:
    """Tables for frames of one length; samples are seen as [N1][N2], rows filled up to whole vectors.

    Attributes
    ----------
    first : ndarray[float64], shape (2 K, N1)
        Transform along N1 of real samples, whose upper half mirrors the lower: K = N1 // 2 + 1 values, real
        parts before imaginary ones.
    last : ndarray[float32], shape (N1, 2 K)
        The way back, which counts twice what was left out.
    turn : ndarray[float64], shape (2, K, N2)
        Cosine and sine of the rotation between the two.
    second : ndarray[float64], shape (2 N2, 2 N2)
        Transform along N2, real parts before imaginary ones.
    back : ndarray[float32], shape (2 N2, 2 N2)
        Its inverse but for a factor.
    place : ndarray[intp], shape (N / 2 + 1,)
        Where each bin lies in what ``second`` gives; where it is mirrored, ``sign`` is -1.
    source : ndarray[intp], shape (N2, K)
        Which bin ``back`` takes in each place; mirrored ones have the ``source_sign`` -1, those whose
        imaginary part does not count, 0.
    """

    first: Doubles
    last: Floats
    turn: Doubles
    second: Doubles
    back: Floats
    place: NDArray[np.intp]
    sign: Floats
    source: NDArray[np.intp]
    source_sign: Floats

    @classmethod
    def of_size(cls, size: int) -> Transform:
        """Work the tables out in float64, for an even number of samples."""
        rows = next(n for n in range(math.isqrt(size), 0, -1) if size % n == 0)
        columns, half = size // rows, rows // 2 + 1
        along = np.exp(-2j * np.pi * np.outer(np.arange(half), np.arange(rows)) / rows)
        counts = np.where(np.arange(half) * 2 % rows == 0, 1, 2)[:, None]
        turn = np.exp(-2j * np.pi * np.outer(np.arange(half), np.arange(columns)) / size)
        across = np.exp(-2j * np.pi * np.outer(np.arange(columns), np.arange(columns)) / columns)
        second = np.block([[across.real, -across.imag], [across.imag, across.real]])
        bins = np.arange(size // 2 + 1)
        mirrored = bins % rows >= half
        found = np.where(mirrored, size - bins, bins)
        wanted = np.arange(half) + rows * np.arange(columns)[:, None]
        source = np.minimum(wanted, size - wanted)
        return cls(
            first=_parts(along),
            last=_float32(_parts(counts * along).T),
            turn=np.stack([turn.real, turn.imag]),
            second=second,
            back=_float32(second.T),
            place=(found // rows * _filled(half) + found % rows).astype(np.intp),
            sign=_float32(np.where(mirrored, -1, 1)),
            source=source.astype(np.intp),
            source_sign=_float32(np.sign(size - 2 * wanted) * np.sign(wanted)),
        )

    def scratch(self, dtype: Any) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Return memory for the stages of one frame at a time: frame, samples in rows, halves, bins.

        Parameters
        ----------
        dtype : dtype
            float64 for `forward`, float32 for `inverse`.
        """
        twice_half, rows = self.first.shape
        columns = len(self.second) // 2
        width, half = _filled(columns), _filled(twice_half // 2)
        shapes = (rows * columns,), (rows, width), (twice_half, width), (4 * columns, half)
        frame, samples, halves, bins = (np.zeros(shape, dtype) for shape in shapes)
        return frame, samples, halves, bins


def _filled(count: int) -> int:
    return -(-count // LANES) * LANES


def _parts(values: NDArray[Any]) -> NDArray[Any]:
    return np.concatenate([values.real, values.imag])


def _float32(values: NDArray[Any]) -> Floats:
    return np.ascontiguousarray(values, np.float32)


@inner
def _product(matrix: NDArray[Any], of: NDArray[Any], result: NDArray[Any]) -> None:
    """``result = matrix @ of``, rows of both in whole vectors."""
    M, K = matrix.shape
    width = of.shape[1]
    a, b, c = matrix.ravel(), of.ravel(), result.ravel()
    for i in range(c.size):
        c[i] = 0
    whole = M - M % ROWS
    for n in range(0, width, LANES):
        for m in range(0, whole, ROWS):
            _several(a, m * K, K, b, n, width, c, m * width + n, width, K)
        for m in range(whole, M):
            _one(a, m * K, K, b, n, width, c, m * width + n, width, K)


@inner
def forward(
    first: Doubles, turn: Doubles, second: Doubles, place: NDArray[np.intp], sign: Floats, frame: Doubles,
    samples: Doubles, halves: Doubles, bins: Doubles, spec: NDArray[np.complex64],
) -> None:  # fmt: skip
    """Transform ``frame``; the memory is that of `Transform.scratch`."""
    _, half, columns = turn.shape
    before, after = bins[: 2 * columns], bins[2 * columns :]
    # values one by one: assigning slices compiles all of numba's ways to say that they do not fit
    for j in range(samples.shape[0]):
        row, given = samples[j], frame[j * columns :]
        for i in range(columns):
            row[i] = given[i]
    _product(first, samples, halves)
    for k in range(half):
        for i in range(columns):
            re, im, c, s = halves[k, i], halves[half + k, i], turn[0, k, i], turn[1, k, i]
            before[i, k], before[columns + i, k] = re * c - im * s, re * s + im * c
    _product(second, before, after)
    found, imaginary = after.ravel(), columns * after.shape[1]
    for b in range(place.size):
        spec[b] = complex(found[place[b]], sign[b] * found[imaginary + place[b]])


@inner
def inverse(
    last: Floats, turn: Doubles, back: Floats, source: NDArray[np.intp], sign: Floats, frame: Floats,
    samples: Floats, halves: Floats, bins: Floats, spec: NDArray[np.complex64],
) -> None:  # fmt: skip
    """Put the samples of a spectrum into ``frame``, not scaled; its ends count as real."""
    _, half, columns = turn.shape
    before, after = bins[: 2 * columns], bins[2 * columns :]
    for i in range(columns):
        for k in range(half):
            value = spec[source[i, k]]
            before[i, k], before[columns + i, k] = value.real, sign[i, k] * value.imag
    _product(back, before, after)
    for k in range(half):
        for i in range(columns):
            re, im, c, s = after[i, k], after[columns + i, k], turn[0, k, i], turn[1, k, i]
            halves[k, i], halves[half + k, i] = re * c + im * s, im * c - re * s
    _product(last, halves, samples)
    for j in range(samples.shape[0]):
        row, result = samples[j], frame[j * columns :]
        for i in range(columns):
            result[i] = row[i]
