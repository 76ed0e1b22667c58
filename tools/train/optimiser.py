"""How weights move: orthogonalised momentum for matrices, AdamW for the rest, and their running mean."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from network import Net

_MOMENTUM, _DECAY = 0.95, 0.01

#: Matrices narrower than this have no directions worth making equal.
_NARROWEST = 16

#: Coefficients of the quintic iteration that brings all singular values near one (Jordan, 2024).
_QUINTIC = (3.4445, -4.7750, 2.0315)


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Learning rate over the course of training.

    Attributes
    ----------
    peak : float
    warmup : int, steps
    floor : float
        Share of the peak that is left at the end of a half cosine.
    """

    peak: float = 2e-3
    warmup: int = 200
    floor: float = 0.02

    def rate(self, step: int, progress: float) -> float:
        """Return the rate of a step, with ``progress`` from 0 to 1 over the whole training."""
        cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
        return self.peak * min(1.0, (step + 1) / self.warmup) * (self.floor + (1 - self.floor) * cosine)


def orthogonalised(matrices: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Bring the singular values of matrices [n, rows, columns] near one, by a Newton-Schulz iteration."""
    x = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-12)
    wide = x.shape[1] <= x.shape[2]
    x = x if wide else x.mT
    a, b, c = _QUINTIC
    for _ in range(steps):
        square = x @ x.mT
        x = a * x + (b * square + c * (square @ square)) @ x
    return x if wide else x.mT


class Optimiser:
    """Moves the weights of a network.

    Matrices follow Muon (Jordan, 2024): momentum, orthogonalised, as large as a step of AdamW would be; the
    three gates of a recurrent layer are matrices of their own.

    Parameters
    ----------
    net : Net
    clip : float
        Longest gradient.
    """

    def __init__(self, net: Net, clip: float = 1.0) -> None:
        self._clip = clip
        named = dict(net.named_parameters())
        self._gates = {
            name: 3 if "gru" in name else 1
            for name, p in named.items()
            if p.dim() == 2 and min(p.shape) >= _NARROWEST
        }
        self._all = list(named.values())
        self._matrices = {name: named[name] for name in self._gates}
        self._momentum = {name: torch.zeros_like(p) for name, p in self._matrices.items()}
        rest = [p for name, p in named.items() if name not in self._gates]
        self._adam = torch.optim.AdamW(rest, lr=0.0, betas=(0.9, 0.98), weight_decay=_DECAY)

    @torch.no_grad()
    def step(self, rate: float) -> float:
        """Move by the gradients and clear them; returns their norm.

        Gradients that are no numbers move nothing.
        """
        norm = float(torch.nn.utils.clip_grad_norm_(self._all, self._clip))
        if math.isfinite(norm):
            for name, p in self._matrices.items():
                self._step_matrix(name, p, rate)
            self._adam.param_groups[0]["lr"] = rate
            self._adam.step()
        for p in self._all:
            p.grad = None
        return norm

    def _step_matrix(self, name: str, p: torch.nn.Parameter, rate: float) -> None:
        assert p.grad is not None
        momentum = self._momentum[name].lerp_(p.grad, 1 - _MOMENTUM)
        ahead = p.grad.lerp(momentum, _MOMENTUM)
        gates = ahead.view(self._gates[name], -1, p.shape[1])
        size = 0.2 * max(gates.shape[1:]) ** 0.5
        p.mul_(1 - rate * _DECAY).add_(orthogonalised(gates).reshape(p.shape), alpha=-rate * size)

    def state(self) -> dict[str, Any]:
        """Return everything that a continuation needs."""
        return {"momentum": self._momentum, "adam": self._adam.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        for name, momentum in self._momentum.items():
            momentum.copy_(state["momentum"][name])
        self._adam.load_state_dict(state["adam"])


class RunningMean:
    """Exponential mean of the weights, younger at the beginning.

    Parameters
    ----------
    net : Net
    keep : float
        Share of the mean that a step keeps.
    """

    def __init__(self, net: Net, keep: float = 0.999) -> None:
        self._keep = keep
        self.weights = {name: p.detach().clone() for name, p in net.state_dict().items()}

    @torch.no_grad()
    def update(self, net: Net, step: int) -> None:
        """Let the weights after a step in."""
        keep = min(self._keep, (1 + step) / (20 + step))
        for name, p in net.state_dict().items():
            self.weights[name].lerp_(p, 1 - keep)
