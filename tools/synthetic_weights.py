"""Random weights for synthetic exports."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["GruWeights", "Random"]

#: ``(W, R, B)`` of one layer, gates in ONNX order z, r, h.
GruWeights = tuple["NDArray[np.float32]", "NDArray[np.float32]", "NDArray[np.float32]"]


class Random:
    """Random weights that keep signals alive.

    Every output of a layer gets a weight vector of exactly the asked norm, so that activations keep
    their order of magnitude whatever the seed and however narrow the layer. Vectors over rectified
    inputs are also made zero in the mean: the common positive part of these cancels instead of
    pushing whole channels to one side.
    """

    def __init__(self, *seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def weight(
        self, shape: Sequence[int], fan_in: int | tuple[int, ...], gain: float, *, centred: bool
    ) -> NDArray[np.float32]:
        """Draw a weight whose vectors along the axes ``fan_in`` have the norm ``gain``."""
        w = self._rng.standard_normal(shape)
        if centred:
            w -= w.mean(axis=fan_in, keepdims=True)
        w *= gain / np.sqrt((w**2).sum(axis=fan_in, keepdims=True))
        return w.astype(np.float32)

    def bias(self, size: int, spread: float = 0.1, offset: float = 0.0) -> NDArray[np.float32]:
        """Draw a bias vector."""
        return (offset + spread * self._rng.standard_normal(size)).astype(np.float32)

    def gru(self, inputs: int, hidden: int) -> GruWeights:
        """Draw one recurrent layer whose state moves by about 0.5."""
        w = self.weight((1, 3 * hidden, inputs), 2, 1.5, centred=True)
        r = self.weight((1, 3 * hidden, hidden), 2, 1.0, centred=False)
        return w, r, self.bias(6 * hidden, 0.2)[None]
