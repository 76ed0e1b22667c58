"""Samples to spectra and back: the transform pair of libDF.

Both directions use the same window. A frame ends with the newest hop, so analysis followed by
synthesis delays by ``fft_size - hop_size`` samples and, where the overlap is a whole even number of
hops, changes nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dfstream.dsp._checks import check_geometry, check_sizes, checked_samples, checked_spec
from dfstream.dsp._jit import complex64, float32, intp, jit, reads, writes
from dfstream.dsp.lanes import LaneSet, Scratch

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Analysis", "Synthesis", "vorbis_window"]


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
        # libDF scales by 2H/N^2 after the transform: the transform does 1/N, the window 2H/N, which
        # is a power of two for the usual overlaps and then costs no rounding
        self._window = vorbis_window(fft_size) * np.float32(2 * hop_size / fft_size)
        self._memory = np.zeros((lanes, fft_size - hop_size), np.float32)
        self._frames = Scratch(lanes * max_frames * fft_size, np.float32)
        self._spec = Scratch(lanes * max_frames * (fft_size // 2 + 1), np.complex64)

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
        frames = self._frames.shaped(n, T, self._fft_size)
        spec: NDArray[np.complex64] = self._spec.shaped(n, T, self._fft_size // 2 + 1)
        _window_frames(x, lanes.index, self._window, self._memory, frames)
        np.fft.rfft(frames, norm="forward", out=spec)  # type: ignore[arg-type]  # stubs know float64 only
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
        self._fft_size, self._hop_size, self._max_frames = fft_size, hop_size, max_frames
        self._all, self._bins = LaneSet(lanes), fft_size // 2 + 1
        # libDF's inverse is not normalised. Asked for that, numpy 2.4 converts to float64 and back; its 1/N
        # therefore stays in the transform, and the window takes it back
        self._window = vorbis_window(fft_size) * np.float32(fft_size)
        self._memory = np.zeros((lanes, fft_size - hop_size), np.float32)
        self._spec = Scratch(lanes * max_frames * self._bins, np.complex64)
        self._frames = Scratch(lanes * max_frames * fft_size, np.float32)
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
        n, T, bins = spec.shape
        hermitian, frames = self._spec.shaped(n, T, bins), self._frames.shaped(n, T, self._fft_size)
        out: NDArray[np.float32] = self._out.shaped(n, T * self._hop_size)
        _copy_with_real_ends(spec, hermitian)
        np.fft.irfft(hermitian, self._fft_size, out=frames)
        _overlap_add(frames, lanes.index, self._window, self._memory, out)
        return out


@jit(reads(float32, 2), reads(intp, 1), reads(float32, 1), writes(float32, 2), writes(float32, 3))
def _window_frames(
    x: NDArray[np.float32],
    lanes: NDArray[np.intp],
    window: NDArray[np.float32],
    memory: NDArray[np.float32],
    frames: NDArray[np.float32],
) -> None:
    """Write memory and hop, windowed, for each hop; shift the hop into the memory.

    Shapes: x (n, T * hop), lanes (n,), window (fft,), memory (lanes, fft - hop) changed,
    frames (n, T, fft) written.
    """
    n, T, fft_size = frames.shape
    overlap = memory.shape[1]
    hop = fft_size - overlap
    for row in range(n):
        past = memory[lanes[row]]
        for t in range(T):
            frame, newest = frames[row, t], x[row, t * hop : (t + 1) * hop]
            for i in range(overlap):
                frame[i] = past[i] * window[i]
            for i in range(hop):
                frame[overlap + i] = newest[i] * window[overlap + i]
            for i in range(overlap - hop):
                past[i] = past[i + hop]
            for i in range(hop):
                past[overlap - hop + i] = newest[i]


@jit(reads(complex64, 3), writes(complex64, 3))
def _copy_with_real_ends(spec: NDArray[np.complex64], out: NDArray[np.complex64]) -> None:
    """Copy spectra, making their first and last bin real. Shapes: both (n, T, bins).

    Deep filtering makes the first bin complex; what an inverse transform does then is up to the library.
    """
    n, T, bins = spec.shape
    for row in range(n):
        for t in range(T):
            for k in range(bins):
                out[row, t, k] = spec[row, t, k]
            out[row, t, 0] = spec[row, t, 0].real
            out[row, t, bins - 1] = spec[row, t, bins - 1].real


@jit(reads(float32, 3), reads(intp, 1), reads(float32, 1), writes(float32, 2), writes(float32, 2))
def _overlap_add(
    frames: NDArray[np.float32],
    lanes: NDArray[np.intp],
    window: NDArray[np.float32],
    memory: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    """Window frames, emit what each completes, keep the rest in the memory.

    Shapes: frames (n, T, fft), lanes (n,), window (fft,), memory (lanes, fft - hop) changed,
    out (n, T * hop) written.
    """
    n, T, fft_size = frames.shape
    overlap = memory.shape[1]
    hop = fft_size - overlap
    for row in range(n):
        past = memory[lanes[row]]
        for t in range(T):
            frame, done = frames[row, t], out[row, t * hop : (t + 1) * hop]
            for i in range(hop):
                done[i] = frame[i] * window[i] + past[i]
            for i in range(overlap - hop):
                past[i] = past[i + hop] + frame[hop + i] * window[hop + i]
            for i in range(overlap - hop, overlap):
                past[i] = frame[hop + i] * window[hop + i]
