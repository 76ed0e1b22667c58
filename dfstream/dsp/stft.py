"""Samples to spectra and back: the transform pair of libDF.

Both directions use the same window. A frame ends with the newest hop, so analysis followed by
synthesis delays by ``fft_size - hop_size`` samples and, where the overlap is a whole even number of
hops, changes nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dfstream.dsp._checks import check_geometry, check_max_frames, checked_samples, checked_spec
from dfstream.dsp._jit import complex64, float32, jit, reads, writes

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

    Raises
    ------
    UsageError
        Sizes outside these limits.
    """

    def __init__(self, fft_size: int, hop_size: int, max_frames: int = 1) -> None:
        check_geometry(fft_size, hop_size)
        check_max_frames(max_frames)
        self._hop_size, self._max_frames = hop_size, max_frames
        # libDF scales by 2H/N^2 after the transform: the transform does 1/N, the window 2H/N, which
        # is a power of two for the usual overlaps and then costs no rounding
        self._window = vorbis_window(fft_size) * np.float32(2 * hop_size / fft_size)
        self._memory = np.zeros(fft_size - hop_size, np.float32)
        self._frames = np.empty((max_frames, fft_size), np.float32)
        self._spec = np.empty((max_frames, fft_size // 2 + 1), np.complex64)

    @property
    def state(self) -> dict[str, NDArray[np.float32]]:
        """Live arrays: ``analysis_mem``, the newest ``fft_size - hop_size`` samples, at first zeros."""
        return {"analysis_mem": self._memory}

    def reset(self) -> None:
        """Forget the past: as if only zeros had come before."""
        self._memory[:] = 0

    def process(self, x: NDArray[np.float32]) -> NDArray[np.complex64]:
        """Return one spectrum for each hop.

        Parameters
        ----------
        x : ndarray[float32], shape (T * hop_size,)
            One to ``max_frames`` hops. Results do not depend on how hops are grouped into calls.

        Returns
        -------
        ndarray[complex64], shape (T, bins)
            View of an internal buffer, overwritten by the next call.

        Raises
        ------
        UsageError
            Wrong dtype or length.
        """
        x = checked_samples(x, self._hop_size, self._max_frames)
        T = x.size // self._hop_size
        frames, spec = self._frames[:T], self._spec[:T]
        _window_frames(x, self._window, self._memory, frames)
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

    Raises
    ------
    UsageError
        Sizes outside these limits.
    """

    def __init__(self, fft_size: int, hop_size: int, max_frames: int = 1) -> None:
        check_geometry(fft_size, hop_size)
        check_max_frames(max_frames)
        self._fft_size, self._hop_size, self._max_frames = fft_size, hop_size, max_frames
        # libDF's inverse is not normalised. Asked for that, numpy 2.4 converts to float64 and back; its 1/N
        # therefore stays in the transform, and the window takes it back
        self._window = vorbis_window(fft_size) * np.float32(fft_size)
        self._memory = np.zeros(fft_size - hop_size, np.float32)
        self._spec = np.empty((max_frames, fft_size // 2 + 1), np.complex64)
        self._frames = np.empty((max_frames, fft_size), np.float32)
        self._out = np.empty(max_frames * hop_size, np.float32)

    @property
    def state(self) -> dict[str, NDArray[np.float32]]:
        """Live arrays: ``synthesis_mem``, what past frames add to hops to come, at first zeros."""
        return {"synthesis_mem": self._memory}

    def reset(self) -> None:
        """Forget the frames that still overlap hops to come."""
        self._memory[:] = 0

    def process(self, spec: NDArray[np.complex64]) -> NDArray[np.float32]:
        """Return one hop for each spectrum.

        Parameters
        ----------
        spec : ndarray[complex64], shape (T, bins)
            One to ``max_frames`` frames; not changed. Imaginary parts of the first and last bin are
            ignored. Results do not depend on how frames are grouped into calls.

        Returns
        -------
        ndarray[float32], shape (T * hop_size,)
            View of an internal buffer, overwritten by the next call.

        Raises
        ------
        UsageError
            Wrong dtype or shape.
        """
        spec = checked_spec(spec, self._spec.shape[1], self._max_frames)
        T = spec.shape[0]
        hermitian, frames, out = self._spec[:T], self._frames[:T], self._out[: T * self._hop_size]
        _copy_with_real_ends(spec, hermitian)
        np.fft.irfft(hermitian, self._fft_size, out=frames)  # type: ignore[arg-type]
        _overlap_add(frames, self._window, self._memory, out)
        return out


@jit(reads(float32, 1), reads(float32, 1), writes(float32, 1), writes(float32, 2))
def _window_frames(
    x: NDArray[np.float32],
    window: NDArray[np.float32],
    memory: NDArray[np.float32],
    frames: NDArray[np.float32],
) -> None:
    """Write memory and hop, windowed, for each hop; shift the hop into the memory.

    Shapes: x (T * hop,), window (fft,), memory (fft - hop,) changed, frames (T, fft) written.
    """
    T, fft_size = frames.shape
    overlap = memory.size
    hop = fft_size - overlap
    for t in range(T):
        frame, newest = frames[t], x[t * hop : (t + 1) * hop]
        for i in range(overlap):
            frame[i] = memory[i] * window[i]
        for i in range(hop):
            frame[overlap + i] = newest[i] * window[overlap + i]
        for i in range(overlap - hop):
            memory[i] = memory[i + hop]
        for i in range(hop):
            memory[overlap - hop + i] = newest[i]


@jit(reads(complex64, 2), writes(complex64, 2))
def _copy_with_real_ends(spec: NDArray[np.complex64], out: NDArray[np.complex64]) -> None:
    """Copy spectra, making their first and last bin real. Shapes: both (T, bins).

    Deep filtering makes the first bin complex; what an inverse transform does then is up to the library.
    """
    T, bins = spec.shape
    for t in range(T):
        for k in range(bins):
            out[t, k] = spec[t, k]
        out[t, 0] = spec[t, 0].real
        out[t, bins - 1] = spec[t, bins - 1].real


@jit(reads(float32, 2), reads(float32, 1), writes(float32, 1), writes(float32, 1))
def _overlap_add(
    frames: NDArray[np.float32],
    window: NDArray[np.float32],
    memory: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    """Window frames, emit what each completes, keep the rest in the memory.

    Shapes: frames (T, fft), window (fft,), memory (fft - hop,) changed, out (T * hop,) written.
    """
    T, fft_size = frames.shape
    overlap = memory.size
    hop = fft_size - overlap
    for t in range(T):
        frame, done = frames[t], out[t * hop : (t + 1) * hop]
        for i in range(hop):
            done[i] = frame[i] * window[i] + memory[i]
        for i in range(overlap - hop):
            memory[i] = memory[i + hop] + frame[hop + i] * window[hop + i]
        for i in range(overlap - hop, overlap):
            memory[i] = frame[hop + i] * window[hop + i]
