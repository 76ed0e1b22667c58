"""What the stateful classes refuse at their border, so that kernels never have to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dfstream.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["check_geometry", "check_sizes", "checked_samples", "checked_spec"]

_FLOAT32, _COMPLEX64 = np.dtype(np.float32), np.dtype(np.complex64)


def check_geometry(fft_size: int, hop_size: int) -> None:
    """Refuse windows that libDF's overlap-add cannot handle."""
    if hop_size < 1 or fft_size % 2 or fft_size < 2 * hop_size:
        raise UsageError(
            f"fft_size = {fft_size}, hop_size = {hop_size}: expected an even fft_size of at least two hops"
        )


def check_sizes(max_frames: int, lanes: int) -> None:
    """Refuse an empty buffer."""
    for name, value in (("max_frames", max_frames), ("lanes", lanes)):
        if value < 1:
            raise UsageError(f"{name} = {value}, expected at least 1")


def checked_samples(
    x: NDArray[np.float32], lanes: int, hop_size: int, max_frames: int
) -> NDArray[np.float32]:
    """Return ``x`` as kernels take it: float32, ``(lanes, T * hop_size)``, T from one to ``max_frames``."""
    _check_array("x", x, _FLOAT32, ndim=2)
    rows, samples = x.shape
    if rows != lanes or samples % hop_size or not 0 < samples <= max_frames * hop_size:
        raise UsageError(
            f"x has shape {x.shape}, expected {lanes} lanes of 1 to {max_frames} hops of {hop_size}",
            hint="raise max_frames for longer blocks",
        )
    return _for_kernels(x)


def checked_spec(
    spec: NDArray[np.complex64], lanes: int, bins: int, max_frames: int
) -> NDArray[np.complex64]:
    """Return ``spec`` as kernels take it: complex64, ``(lanes, T, bins)``, T from one to ``max_frames``."""
    _check_array("spec", spec, _COMPLEX64, ndim=3)
    rows, T, width = spec.shape
    if rows != lanes or width != bins or not 0 < T <= max_frames:
        raise UsageError(
            f"spec has shape {spec.shape}, expected {lanes} lanes of 1 to {max_frames} frames of {bins} bins",
            hint="raise max_frames for longer blocks",
        )
    return _for_kernels(spec)


def _check_array(name: str, array: Any, dtype: np.dtype[Any], ndim: int) -> None:
    if not isinstance(array, np.ndarray) or array.dtype != dtype or array.ndim != ndim:
        found = f"{array.ndim}-D {array.dtype}" if isinstance(array, np.ndarray) else type(array).__name__
        raise UsageError(f"{name} is {found}, expected a {ndim}-D {dtype} array")


def _for_kernels(array: NDArray[Any]) -> NDArray[Any]:
    """Contiguous and aligned, as the one compiled signature wants it; copies only what is neither."""
    return array if array.flags.carray else np.require(array, requirements=("C", "A"))
