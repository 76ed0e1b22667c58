"""Samples to spectra and back: the transform pair of libDF.

Both directions use the same window. A frame ends with the newest hop, so analysis followed by
synthesis delays by ``fft_size - hop_size`` samples and, where the overlap is a whole even number of
hops, changes nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dfstream.dsp._checks import check_geometry, check_sizes, checked_samples, checked_spec
from dfstream.dsp._jit import complex64, float32, float64, intp, jit, reads, writes
from dfstream.dsp.dft import Transform, forward, inverse
from dfstream.dsp.lanes import LaneSet, Scratch

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Doubles = NDArray[np.float64]

__all__ = ["Analysis", "Synthesis", "analysis_scale", "vorbis_window"]


def analysis_scale(fft_size: int, hop_size: int) -> float:
    """Return what libDF multiplies spectra by, ``2 hop / fft^2``; nothing is left for the way back.

    Parameters
    ----------
    fft_size, hop_size : int, samples
    """
    return 2 * hop_size / fft_size**2


def vorbis_window(fft_size: int) -> NDArray[np.float32]:
    """Return the power-complementary window of Vorbis (libDF ``lib.rs: DFState::new``).

    ``sin(pi/2 sin^2(pi (i + 1/2) / fft_size))``, computed in float64 and rounded once.

    Parameters
    ----------
    fft_size : int, samples

    Returns
    -------
    ndarray[float32], shape (fft_size,)
    """
    phase = np.pi * (np.arange(fft_size) + 0.5) / fft_size
    return np.sin(np.pi / 2 * np.sin(phase) ** 2).astype(np.float32)


class Analysis:
    """Turn hops into spectra (libDF ``lib.rs: frame_analysis``).

    Parameters
    ----------
    fft_size, hop_size : int, samples
        ``fft_size`` is even and at least ``2 * hop_size``.
    max_frames : int
        Longest block of one call.
    lanes : int

    Raises
    ------
    UsageError
        Sizes outside these limits.
    """

    def __init__(self, fft_size: int, hop_size: int, max_frames: int = 1, lanes: int = 1) -> None:
        check_geometry(fft_size, hop_size)
        check_sizes(max_frames, lanes)
        self._fft_size, self._hop_size, self._max_frames = fft_size, hop_size, max_frames
        self._all = LaneSet(lanes)
        # libDF scales after the transform: here the window does
        scale = np.float64(analysis_scale(fft_size, hop_size))
        self._window = (vorbis_window(fft_size) * scale).astype(np.float32)
        self._memory = np.zeros((lanes, fft_size - hop_size), np.float32)
        self._spec = Scratch(lanes * max_frames * (fft_size // 2 + 1), np.complex64)
        t = Transform.of_size(fft_size)
        self._tables = (t.first, t.turn, t.second, t.place, t.sign, *t.scratch(np.float64))

    @property
    def state(self) -> dict[str, NDArray[np.float32]]:
        """Live arrays: ``analysis_mem`` (lanes, fft_size - hop_size), the newest samples, at first zeros."""
        return {"analysis_mem": self._memory}

    def reset(self, lanes: LaneSet | None = None) -> None:
        """Forget the past of some lanes, or of all: as if only zeros had come before."""
        self._memory[(lanes or self._all).index] = 0

    def process(self, x: NDArray[np.float32], lanes: LaneSet | None = None) -> NDArray[np.complex64]:
        """Return one spectrum for each hop.

        Parameters
        ----------
        x : ndarray[float32], shape (n, T * hop_size)
            One to ``max_frames`` hops of n lanes. Results do not depend on how hops are grouped into
            calls, nor on what other lanes there are.
        lanes : LaneSet, optional
            Which lanes; all in order by default.

        Returns
        -------
        ndarray[complex64], shape (n, T, bins)
            View of an internal buffer, overwritten by the next call.

        Raises
        ------
        UsageError
            Wrong dtype or shape.
        """
        lanes = lanes or self._all
        x = checked_samples(x, len(lanes), self._hop_size, self._max_frames)
        n, T = len(x), x.shape[1] // self._hop_size
        spec: NDArray[np.complex64] = self._spec.shaped(n, T, self._fft_size // 2 + 1)
        _analyse(x, lanes.index, self._window, self._memory, *self._tables, spec)
        return spec


class Synthesis:
    """Turn spectra into hops (libDF ``lib.rs: frame_synthesis``).

    Parameters
    ----------
    fft_size, hop_size : int, samples
        ``fft_size`` is even and at least ``2 * hop_size``.
    max_frames : int
        Longest block of one call.
    lanes : int

    Raises
    ------
    UsageError
        Sizes outside these limits.
    """

    def __init__(self, fft_size: int, hop_size: int, max_frames: int = 1, lanes: int = 1) -> None:
        check_geometry(fft_size, hop_size)
        check_sizes(max_frames, lanes)
        self._hop_size, self._max_frames = hop_size, max_frames
        self._all, self._bins = LaneSet(lanes), fft_size // 2 + 1
        self._window = vorbis_window(fft_size)
        self._memory = np.zeros((lanes, fft_size - hop_size), np.float32)
        t = Transform.of_size(fft_size)
        self._tables = (t.last, t.turn, t.back, t.source, t.source_sign, *t.scratch(np.float32))
        self._out = Scratch(lanes * max_frames * hop_size, np.float32)

    @property
    def state(self) -> dict[str, NDArray[np.float32]]:
        """Live arrays: ``synthesis_mem`` (lanes, fft_size - hop_size), what is added to hops to come."""
        return {"synthesis_mem": self._memory}

    def reset(self, lanes: LaneSet | None = None) -> None:
        """Forget the frames of some lanes, or of all, that still overlap hops to come."""
        self._memory[(lanes or self._all).index] = 0

    def process(self, spec: NDArray[np.complex64], lanes: LaneSet | None = None) -> NDArray[np.float32]:
        """Return one hop for each spectrum.

        Parameters
        ----------
        spec : ndarray[complex64], shape (n, T, bins)
            One to ``max_frames`` frames of n lanes; not changed. Imaginary parts of the first and last
            bin are ignored. Results do not depend on how frames are grouped into calls, nor on what
            other lanes there are.
        lanes : LaneSet, optional
            Which lanes; all in order by default.

        Returns
        -------
        ndarray[float32], shape (n, T * hop_size)
            View of an internal buffer, overwritten by the next call.

        Raises
        ------
        UsageError
            Wrong dtype or shape.
        """
        lanes = lanes or self._all
        spec = checked_spec(spec, len(lanes), self._bins, self._max_frames)
        n, T, _ = spec.shape
        out: NDArray[np.float32] = self._out.shaped(n, T * self._hop_size)
        _synthesise(spec, lanes.index, self._window, self._memory, *self._tables, out)
        return out


@jit(
    reads(float32, 2), reads(intp, 1), reads(float32, 1), writes(float32, 2), reads(float64, 2),
    reads(float64, 3), reads(float64, 2), reads(intp, 1), reads(float32, 1), writes(float64, 1),
    writes(float64, 2), writes(float64, 2), writes(float64, 2), writes(complex64, 3),
)  # fmt: skip
def _analyse(
    x: Floats, lanes: NDArray[np.intp], window: Floats, memory: Floats, first: Doubles, turn: Doubles,
    second: Doubles, place: NDArray[np.intp], sign: Floats, frame: Doubles, samples: Doubles, halves: Doubles,
    bins: Doubles, spec: NDArray[np.complex64],
) -> None:  # fmt: skip
    """Transform memory and hop, windowed, for each hop; shift the hop into the memory.

    Shapes: x (n, T * hop), lanes (n,), window (fft,), memory (lanes, fft - hop) changed, spec (n, T, bins)
    written; the rest is a `Transform` and its scratch.
    """
    n, T, _ = spec.shape
    overlap = memory.shape[1]
    hop = window.size - overlap
    # slices counted from zero: the compiler does not vectorise where an index might be negative
    frame_newest, window_newest = frame[overlap:], window[overlap:]
    for row in range(n):
        past = memory[lanes[row]]
        later, end = past[hop:], past[overlap - hop :]
        for t in range(T):
            newest = x[row, t * hop : (t + 1) * hop]
            for i in range(overlap):
                frame[i] = past[i] * window[i]
            for i in range(hop):
                frame_newest[i] = newest[i] * window_newest[i]
            forward(first, turn, second, place, sign, frame, samples, halves, bins, spec[row, t])
            for i in range(overlap - hop):
                past[i] = later[i]
            for i in range(hop):
                end[i] = newest[i]


@jit(
    reads(complex64, 3), reads(intp, 1), reads(float32, 1), writes(float32, 2), reads(float32, 2),
    reads(float64, 3), reads(float32, 2), reads(intp, 2), reads(float32, 2), writes(float32, 1),
    writes(float32, 2), writes(float32, 2), writes(float32, 2), writes(float32, 2),
)  # fmt: skip
def _synthesise(
    spec: NDArray[np.complex64], lanes: NDArray[np.intp], window: Floats, memory: Floats, last: Floats,
    turn: Doubles, back: Floats, source: NDArray[np.intp], sign: Floats, frame: Floats, samples: Floats,
    halves: Floats, bins: Floats, out: Floats,
) -> None:  # fmt: skip
    """Transform back and window frames, emit what each completes, keep the rest in the memory.

    Shapes: spec (n, T, bins), lanes (n,), window (fft,), memory (lanes, fft - hop) changed, out
    (n, T * hop) written; the rest is a `Transform` and its scratch.
    """
    n, T, _ = spec.shape
    overlap = memory.shape[1]
    hop = window.size - overlap
    frame_rest, frame_end, window_rest, window_end = (
        frame[hop:],
        frame[overlap:],
        window[hop:],
        window[overlap:],
    )
    for row in range(n):
        past = memory[lanes[row]]
        later, end = past[hop:], past[overlap - hop :]
        for t in range(T):
            inverse(last, turn, back, source, sign, frame, samples, halves, bins, spec[row, t])
            done = out[row, t * hop : (t + 1) * hop]
            for i in range(hop):
                done[i] = frame[i] * window[i] + past[i]
            for i in range(overlap - hop):
                past[i] = later[i] + frame_rest[i] * window_rest[i]
            for i in range(hop):
                end[i] = frame_end[i] * window_end[i]
