"""Silent hops that pass by as zeros, without moving anything on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Results = tuple[NDArray[np.float32], NDArray[np.float32]]

__all__ = ["heard_hops", "process_heard"]

#: Mean square below which a hop is silent (libDF ``tract.rs: process``), about -70 dBFS.
_SILENCE = 1e-7

#: LSNR that libDF reports for a hop it skips.
_SKIPPED_LSNR_DB = -15.0


def heard_hops(x: NDArray[np.float32], hop_size: int) -> NDArray[np.bool_]:
    """Tell which hops of samples [channels, T * hop] are not silent, over all channels together."""
    hops = x.reshape(len(x), -1, hop_size)
    heard: NDArray[np.bool_] = np.mean(hops * hops, axis=(0, 2)) >= _SILENCE
    return heard


def process_heard(
    process: Callable[[NDArray[np.float32]], Results], x: NDArray[np.float32], heard: NDArray[np.bool_]
) -> Results:
    """Cut silent hops out, as libDF v0.5.6 does: zeros come out for them and nothing moves on.

    Parameters
    ----------
    process : callable
        Takes the hops that are left, [channels, n * hop], and returns as many and their LSNR.
    x : ndarray[float32], shape (channels, T * hop)
    heard : ndarray[bool], shape (T,)

    Returns
    -------
    y : ndarray[float32], shape (channels, T * hop)
    lsnr : ndarray[float32], shape (T,), dB
    """
    T = len(heard)
    hops = x.reshape(len(x), T, -1)
    y = np.zeros_like(hops)
    lsnr = np.full(T, _SKIPPED_LSNR_DB, np.float32)
    if heard.any():
        enhanced, lsnr[heard] = process(np.ascontiguousarray(hops[:, heard].reshape(len(x), -1)))
        y[:, heard] = enhanced.reshape(len(x), -1, hops.shape[2])
    return y.reshape(len(x), -1), lsnr
