"""How near a package is to the model it was made of, heard over a minute of speech.

Both networks get the same features; gains and taps of each pass through the same signal processing. A
minute, because half-precision states remember their rounding for many seconds: after ten of them a
package looks up to 12 dB better than it stays.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from dfstream.backends.base import find_backend
from dfstream.checking import speech_clip
from dfstream.modes.base import find_network_mode
from dfstream.signalpath import SignalPath

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from dfstream.backends.base import Backend
    from dfstream.coreml.flavour import Flavour
    from dfstream.model import Model
    from dfstream.modes.base import Mode, NetOutput

__all__ = ["BLOCK_S", "DURATION_S", "Fidelity", "least_snr_db", "measure_fidelity"]

#: Length of the comparison, and of the blocks of which the worst counts.
DURATION_S, BLOCK_S = 60, 10

#: Least SNR of the worst block by precision, dB: below what every official variant reaches, and above
#: what any mistake would leave.
_LEAST_SNR_DB = {"fp32": 110.0, "fp16": 62.0, "int8": 38.0, "palette": 38.0, "ane": 42.0}

#: Core ML keeps its states in half precision, whatever computes: no better than half precision throughout.
_HALF_STATES_DB = 42.0

#: Frames a call of either network.
_FRAMES = 100


@dataclasses.dataclass(frozen=True)
class Fidelity:
    """What a comparison found.

    Attributes
    ----------
    snr_db : tuple of float
        Audio SNR of each block of `BLOCK_S` seconds, infinite where both are the same.
    mask, coefs, lsnr_db : float
        Largest absolute differences of the network's results.
    least_snr_db : float
        What the worst block has to reach.
    """

    snr_db: tuple[float, ...]
    mask: float
    coefs: float
    lsnr_db: float
    least_snr_db: float

    @property
    def worst_snr_db(self) -> float:
        """SNR of the worst block."""
        return min(self.snr_db)

    @property
    def passed(self) -> bool:
        """Whether the worst block is good enough; NaN is not."""
        return self.worst_snr_db >= self.least_snr_db


def least_snr_db(flavour: Flavour) -> float:
    """Return the SNR that the worst block of a flavour has to reach, dB."""
    least = _LEAST_SNR_DB[flavour.precision]
    return min(least, _HALF_STATES_DB) if flavour.state == "coreml" else least


def measure_fidelity(
    model: Model,
    package: Model,
    flavour: Flavour,
    progress: Callable[[float], None] = lambda _: None,
    *,
    seconds: int = DURATION_S,
    backend: Backend | None = None,
) -> Fidelity:
    """Stream packaged speech through a model on ONNX Runtime and through a package, and compare.

    Parameters
    ----------
    model : Model
        Of which the export is at hand.
    package : Model
        Loaded from the package.
    flavour : Flavour
        Of the package.
    progress : callable
        Told which share is done.
    seconds : int
        Length of the comparison, a multiple of `BLOCK_S`.
    backend : Backend, optional
        What runs the package; the numpy interpreter by default.
    """
    mode = find_network_mode("incremental")
    ways = (
        _Way(mode(model, find_backend("ort-cpu"))),
        _Way(mode(package, backend or find_backend("mlpackage-reference"))),
    )
    hop = model.config.hop_size
    hops = seconds * model.config.sample_rate // hop
    audio = np.resize(speech_clip(), hops * hop)
    difference = _Difference(hops // (seconds // BLOCK_S))
    for start in range(0, hops, _FRAMES):
        x = audio[None, start * hop : (start + _FRAMES) * hop]
        (want, y), (got, z) = (way.process(x) for way in ways)
        difference.add(start, want, got, y.reshape(-1, hop), z.reshape(-1, hop))
        progress((start + _FRAMES) / hops)
    return difference.result(least_snr_db(flavour))


class _Way:
    """Audio through one network and the signal processing around it."""

    def __init__(self, network: Mode) -> None:
        self._network = network
        self._path = SignalPath(network.model.config, _FRAMES, 1)

    def process(self, x: NDArray[np.float32]) -> tuple[NetOutput, NDArray[np.float32]]:
        """Return what the network gave and the enhanced audio."""
        frames = self._path.analyse(x)
        net = self._network.step(frames.feat_erb.copy(), frames.feat_spec.copy())
        return net, self._path.synthesise(frames.spec, net.m[:, 0], net.coefs)[0]


class _Difference:
    """Sums of squares by block, and largest differences."""

    def __init__(self, hops: int) -> None:
        self._hops = hops
        self._power: dict[int, float] = {}
        self._error: dict[int, float] = {}
        self._largest = [0.0, 0.0, 0.0]

    def add(
        self, start: int, want: NetOutput, got: NetOutput, y: NDArray[np.float32], z: NDArray[np.float32]
    ) -> None:
        """Take some hops [n, hop] and what the networks gave for them."""
        for i, (a, b) in enumerate(zip(want, got, strict=True)):
            self._largest[i] = float(np.maximum(self._largest[i], np.abs(a - b).max()))  # NaN stays NaN
        power = np.sum(y.astype(np.float64) ** 2, axis=1)
        error = np.sum((z.astype(np.float64) - y) ** 2, axis=1)
        for i in range(len(y)):
            block = (start + i) // self._hops
            self._power[block] = self._power.get(block, 0.0) + power[i]
            self._error[block] = self._error.get(block, 0.0) + error[i]

    def result(self, least: float) -> Fidelity:
        """Return the figures."""
        snr = tuple(_decibels(self._power[block], self._error[block]) for block in sorted(self._power))
        lsnr, mask, coefs = self._largest
        return Fidelity(snr, mask, coefs, lsnr, least)


def _decibels(power: float, error: float) -> float:
    return float(10 * np.log10(power / error)) if error else float("inf")
