"""The two parts of a training step that torch is slow at on a processor, compiled: recurrence and loss.

Each has a plain twin in torch (`torch.nn.GRU`, `losses.low_loss_plain`), which is what runs on a GPU and
what the tests compare with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dfstream.dsp._jit import float32, inner, intp, jit, reads, writes
from dfstream.net.kernels import _sigmoid, _tanh

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Edges = NDArray[np.intp]

_DB = np.float32(10 / np.log(10))


class RecurrentScan(torch.autograd.Function):
    """``h`` of a GRU from the projections of its inputs; all tensors time first."""

    @staticmethod
    def forward(ctx: Any, projected: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """Take [T, B, 3H], [3H, H], [3H] to [T, B, H]; gates in torch's order r, z, n."""
        T, B, _ = projected.shape
        H = weight.shape[1]
        h, gates = torch.empty(T, B, H), torch.empty(T, B, 4 * H)
        _scan(_array(projected), _array(weight.t()), _array(bias), _array(h), _array(gates))
        ctx.save_for_backward(weight, h, gates)
        return h

    @staticmethod
    def backward(ctx: Any, dh: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the gradients in the order of the inputs."""
        weight, h, gates = ctx.saved_tensors
        T, B, H = h.shape
        dx, dg = torch.empty(T, B, 3 * H), torch.empty(T, B, 3 * H)
        _scan_back(_array(dh), _array(weight), _array(h), _array(gates), _array(dx), _array(dg))
        before = torch.nn.functional.pad(h, (0, 0, 0, 0, 1, 0))[:-1].reshape(-1, H)
        flat = dg.view(-1, 3 * H)
        return dx, flat.t() @ before, flat.sum(0)


class LowLoss(torch.autograd.Function):
    """Loss of the deep-filtered bins and its gradient, in two passes over the coefficients."""

    @staticmethod
    def forward(
        ctx: Any,
        z: torch.Tensor,
        noisy: torch.Tensor,
        target: torch.Tensor,
        edges: tuple[int, ...],
        settings: tuple[float, ...],
    ) -> torch.Tensor:
        """As `losses.low_loss_plain`."""
        gradient, losses = torch.empty(z.shape), torch.empty(len(z))
        bands, numbers = np.array(edges, np.intp), np.array(settings, np.float32)
        _low_loss(_array(z), _array(noisy), _array(target), bands, numbers, _array(gradient), _array(losses))
        ctx.save_for_backward(gradient)
        return losses.sum()

    @staticmethod
    def backward(ctx: Any, d: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradient over ``z``; nothing else has one."""
        return ctx.saved_tensors[0] * d, None, None, None, None


def _array(tensor: torch.Tensor) -> Any:
    return tensor.detach().contiguous().numpy()


@inner
def _advance(x: Floats, g: Floats, bias: Floats, before: Floats, gates: Floats, h: Floats) -> None:
    H = h.size
    for i in range(2 * H):
        gates[i] = _sigmoid(x[i] + g[i] + bias[i])
    r, z, n, u = gates[:H], gates[H : 2 * H], gates[2 * H : 3 * H], gates[3 * H :]
    x_n, g_n, bias_n = x[2 * H :], g[2 * H :], bias[2 * H :]
    for i in range(H):
        u[i] = g_n[i] + bias_n[i]
        n[i] = _tanh(x_n[i] + r[i] * u[i])
        h[i] = n[i] + z[i] * (before[i] - n[i])


@jit(reads(float32, 3), reads(float32, 2), reads(float32, 1), writes(float32, 3), writes(float32, 3))
def _scan(projected: Floats, weight: Floats, bias: Floats, h: Floats, gates: Floats) -> None:
    """Write states and what the gradient needs of each step: r, z, n, and the recurrent part u of n.

    ``n = tanh(x_n + r u)``, ``h' = n + z (h - n)``.
    """
    T, B, H = h.shape
    recurrent, before = np.empty((B, 3 * H), np.float32), np.zeros((B, H), np.float32)
    for t in range(T):
        np.dot(before, weight, recurrent)
        for row in range(B):
            _advance(projected[t, row], recurrent[row], bias, before[row], gates[t, row], h[t, row])
        before[:] = h[t]


@inner
def _retreat(
    dh: Floats, before: Floats, gates: Floats, through: Floats, kept: Floats, dx: Floats, dg: Floats
) -> None:
    one, H = np.float32(1), dh.size
    r, z, n, u = gates[:H], gates[H : 2 * H], gates[2 * H : 3 * H], gates[3 * H :]
    dx_r, dx_z, dx_n = dx[:H], dx[H : 2 * H], dx[2 * H :]
    dg_r, dg_z, dg_n = dg[:H], dg[H : 2 * H], dg[2 * H :]
    for i in range(H):
        q = dh[i] + through[i] + kept[i]
        dn = q * (one - z[i]) * (one - n[i] * n[i])
        dz = q * (before[i] - n[i]) * z[i] * (one - z[i])
        dr = dn * u[i] * r[i] * (one - r[i])
        dx_r[i] = dg_r[i] = dr
        dx_z[i] = dg_z[i] = dz
        dx_n[i] = dn
        dg_n[i] = dn * r[i]
        kept[i] = q * z[i]


@jit(
    reads(float32, 3), reads(float32, 2), reads(float32, 3), reads(float32, 3), writes(float32, 3),
    writes(float32, 3),
)  # fmt: skip
def _scan_back(dh: Floats, weight: Floats, h: Floats, gates: Floats, dx: Floats, dg: Floats) -> None:
    """Write the gradients over the projected inputs and over the recurrent sums."""
    T, B, H = h.shape
    through, kept = np.zeros((B, H), np.float32), np.zeros((B, H), np.float32)
    nothing = np.zeros(H, np.float32)
    for t in range(T - 1, -1, -1):
        for row in range(B):
            before = h[t - 1, row] if t > 0 else nothing
            _retreat(dh[t, row], before, gates[t, row], through[row], kept[row], dx[t, row], dg[t, row])
        np.dot(dg[t], weight, through)


@inner
def _filtered(z: Floats, frames: Floats, reach: Any, coefs: Floats, y: Floats) -> None:
    """Write coefficients ``reach tanh(z)`` and what they make of the frames (taps, 2, D)."""
    D, parts = z.shape
    flat_z, flat_coefs = z.reshape(D * parts), coefs.reshape(D * parts)
    for i in range(D * parts):
        flat_coefs[i] = reach * _tanh(flat_z[i])
    y[:] = np.float32(0)
    for tap in range(parts // 2):
        for k in range(D):
            re, im = coefs[k, 2 * tap], coefs[k, 2 * tap + 1]
            y[0, k] += re * frames[tap, 0, k] - im * frames[tap, 1, k]
            y[1, k] += re * frames[tap, 1, k] + im * frames[tap, 0, k]


@inner
def _distance(
    y: Floats,
    target: Floats,
    c: Any,
    magnitude: Any,
    complex_: Any,
    floor: Any,
    each: Any,
    pull: Any,
    dy: Floats,
) -> Any:
    """Return the compressed distance of one frame; writes the gradient of the whole loss over it."""
    total, two, half = np.float32(0), np.float32(2), np.float32(0.5)
    for k in range(y.shape[1]):
        y_re, y_im, want_re, want_im = y[0, k], y[1, k], target[0, k], target[1, k]
        p, q = y_re * y_re + y_im * y_im + floor, want_re * want_re + want_im * want_im + floor
        s, u = p ** (half * (c - 1)), q ** (half * (c - 1))
        above = np.sqrt(p) * s - np.sqrt(q) * u
        miss_re, miss_im = y_re * s - want_re * u, y_im * s - want_im * u
        total += magnitude * above * above + complex_ * (miss_re * miss_re + miss_im * miss_im)
        along = two * magnitude * above * c * s / np.sqrt(p)
        along += two * complex_ * (c - 1) * s * (miss_re * y_re + miss_im * y_im) / p
        dy[0, k] = each * (along * y_re + two * complex_ * s * miss_re) + pull * (y_re - want_re)
        dy[1, k] = each * (along * y_im + two * complex_ * s * miss_im) + pull * (y_im - want_im)
    return total


@inner
def _band_distance(
    y: Floats, target: Floats, edges: Edges, c: Any, floor: Any, share: Any, each: Any, dy: Floats
) -> Any:
    """Return the compressed distance of the bands of one frame; adds its gradient over the bins."""
    total, two, half = np.float32(0), np.float32(2), np.float32(0.5)
    for band in range(edges.size - 1):
        first, last = edges[band], edges[band + 1]
        width = np.float32(last - first)
        p, q = np.float32(0), np.float32(0)
        for k in range(first, last):
            p += y[0, k] * y[0, k] + y[1, k] * y[1, k]
            q += target[0, k] * target[0, k] + target[1, k] * target[1, k]
        p, q = p / width + floor, q / width + floor
        compressed = p ** (half * c)
        above = compressed - q ** (half * c)
        total += share * above * above
        along = each * share * two * above * c * compressed / (p * width)
        for k in range(first, last):
            dy[0, k] += along * y[0, k]
            dy[1, k] += along * y[1, k]
    return total


@jit(
    reads(float32, 4), reads(float32, 4), reads(float32, 4), reads(intp, 1), reads(float32, 1),
    writes(float32, 4), writes(float32, 1),
)  # fmt: skip
def _low_loss(
    z: Floats,
    noisy: Floats,
    target: Floats,
    edges: Edges,
    numbers: Floats,
    gradient: Floats,
    losses: Floats,
) -> None:
    """Write the loss of every item and its gradient over the coefficients before their activation.

    Shapes: z and gradient (B, T, D, 2 * taps), noisy (B, T + taps - 1, 2, D), target (B, T, 2, D). The error
    in dB couples all frames of an item, so a first pass measures it.
    """
    B, T, D, parts = z.shape
    taps = parts // 2
    reach, exponent, magnitude, complex_, per_db, knee, floor, per_band = numbers
    coefs, y, dy = (
        np.empty((D, parts), np.float32),
        np.empty((2, D), np.float32),
        np.empty((2, D), np.float32),
    )
    each = np.float32(1) / np.float32(B * T * D)
    share = per_band * np.float32(D) / np.float32(edges.size - 1)
    for item in range(B):
        error, energy = np.float64(0), np.float64(1e-9)
        for t in range(T):
            _filtered(z[item, t], noisy[item, t : t + taps], reach, coefs, y)
            for part in range(2):
                for k in range(D):
                    miss, x = y[part, k] - target[item, t, part, k], noisy[item, t + taps // 2, part, k]
                    error += miss * miss
                    energy += target[item, t, part, k] ** 2 + np.float32(0.03) * x * x
        ratio = knee * error / energy
        total = np.float64(per_db / B * _DB * np.log(1 + ratio))
        pull = np.float32(2 * per_db / B * _DB * knee / energy / (1 + ratio))
        for t in range(T):
            _filtered(z[item, t], noisy[item, t : t + taps], reach, coefs, y)
            total += each * _distance(
                y, target[item, t], exponent, magnitude, complex_, floor, each, pull, dy
            )
            total += each * _band_distance(y, target[item, t], edges, exponent, floor, share, each, dy)
            for k in range(D):
                for tap in range(taps):
                    x_re, x_im = noisy[item, t + tap, 0, k], noisy[item, t + tap, 1, k]
                    gradient[item, t, k, 2 * tap] = dy[0, k] * x_re + dy[1, k] * x_im
                    gradient[item, t, k, 2 * tap + 1] = dy[1, k] * x_re - dy[0, k] * x_im
                for i in range(parts):
                    gradient[item, t, k, i] *= reach - coefs[k, i] * coefs[k, i] / reach
        losses[item] = total
