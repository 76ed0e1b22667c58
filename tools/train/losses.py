"""How far the network's answer is from the target."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import TYPE_CHECKING

import torch

from corpus import SAMPLE_RATE
from dfstream.dsp.erb import erb_widths
from kernels import LowLoss

if TYPE_CHECKING:
    from torch import Tensor

    from batches import Batch
    from network import Net, Output

#: Exponent of compressed spectra, near that of loudness. With 0.3, what is uncertain comes out too quiet.
COMPRESSION = 0.5

#: What is added to gains and powers before they are compressed: the slope at zero has an end.
_GAIN_FLOOR, _POWER_FLOOR = 1e-4, 1e-6


@dataclasses.dataclass(frozen=True)
class Weights:
    """Weights of the terms of the loss.

    Attributes
    ----------
    magnitude, complex : float
        Of the compressed distances of the deep-filtered bins.
    band : float
        Of the compressed distance of their powers in bands, which the ear hears and bins of uncertain fine
        structure miss.
    per_db : float
        Per dB of error energy of an item: undisturbed speech counts as much as noisy speech.
    knee : float
        Inverse of the error, relative to the target, below which less error is no longer worth much.
    mask, lsnr : float
        Of the plain gains and of the local SNR.
    """

    magnitude: float = 0.85
    complex: float = 0.15
    band: float = 0.5
    per_db: float = 2e-3
    knee: float = 1e3
    mask: float = 0.1
    lsnr: float = 0.2


@dataclasses.dataclass(frozen=True)
class Losses:
    """Terms of the loss, each a scalar: deep-filtered bins, bands above them, plain gains, local SNR."""

    low: Tensor
    high: Tensor
    mask: Tensor
    lsnr: Tensor

    def total(self, weights: Weights) -> Tensor:
        """Return the loss to be made small."""
        return self.low + self.high + weights.mask * self.mask + weights.lsnr * self.lsnr


def losses(net: Net, out: Output, batch: Batch, weights: Weights) -> Losses:
    """Compare an answer with the target of its batch."""
    w = weights
    settings = (
        net.shape.coef_range, COMPRESSION, w.magnitude, w.complex, w.per_db, w.knee, _POWER_FLOOR, w.band,
    )  # fmt: skip
    edges = band_edges(net.shape.nb_erb, net.shape.nb_df)
    z = out.z.float()
    fast = z.device.type == "cpu" and torch.is_grad_enabled()
    low = (LowLoss.apply if fast else low_loss_plain)(z, batch.noisy, batch.target, edges, settings)
    gains = out.m[:, 0].float()
    far = ((gains + _GAIN_FLOOR) ** COMPRESSION - (batch.mask + _GAIN_FLOOR) ** COMPRESSION) ** 2
    # bands above weigh what their bins would, so the sum is a mean over the deep-filtered bins
    high = (far * batch.weight).sum() / (far.shape[0] * far.shape[1] * net.shape.nb_df)
    lsnr = ((out.lsnr.float() - batch.lsnr) / 50).square().mean()
    return Losses(low, high, far.mean(), lsnr)


@functools.cache
def band_edges(nb_erb: int, nb_df: int) -> tuple[int, ...]:
    """Return the edges of the bands of the gains as far as the deep filter goes, which ends the last one."""
    ends = itertools.accumulate(int(width) for width in erb_widths(SAMPLE_RATE, SAMPLE_RATE // 50, nb_erb, 2))
    return (0, *itertools.takewhile(lambda end: end < nb_df, ends), nb_df)


def filtered(z: Tensor, noisy: Tensor, reach: float) -> tuple[Tensor, Tensor]:
    """Apply taps ``reach tanh(z)`` to frames; shapes as `low_loss_plain`, returns re and im [B, T, D]."""
    coefs, T = reach * torch.tanh(z), z.shape[1]
    re = im = torch.zeros((), device=z.device)
    for tap in range(z.shape[-1] // 2):
        a, b = coefs[..., 2 * tap], coefs[..., 2 * tap + 1]
        x_re, x_im = noisy[:, tap : tap + T, 0], noisy[:, tap : tap + T, 1]
        re, im = re + a * x_re - b * x_im, im + a * x_im + b * x_re
    return re, im


def low_loss_plain(
    z: Tensor, noisy: Tensor, target: Tensor, edges: tuple[int, ...], settings: tuple[float, ...]
) -> Tensor:
    """Compressed magnitude and complex distance of the deep-filtered bins, and the error energy in dB.

    ``mean(a (|y|^c - |t|^c)^2 + b |y |y|^(c-1) - t |t|^(c-1)|^2) + d mean((P^(c/2) - Q^(c/2))^2)
    + w mean(10 log10(1 + k E / (R + 0.03 N)))`` with P and Q the mean powers of y and t in bands, and E, R
    and N the energies of error, target and noisy bins of an item.

    Parameters
    ----------
    z : Tensor, shape (B, T, D, 2 * taps)
    noisy : Tensor, shape (B, T + taps - 1, 2, D)
    target : Tensor, shape (B, T, 2, D)
    edges : tuple of int
        Of the bands, in bins.
    settings : tuple of float
        Reach of the taps, exponent c, weights a, b and w, knee k, floor of powers, weight d.
    """
    reach, c, magnitude, complex_, per_db, knee, floor, per_band = settings
    re, im = filtered(z, noisy, reach)
    want_re, want_im = target[:, :, 0], target[:, :, 1]
    p, q = re**2 + im**2 + floor, want_re**2 + want_im**2 + floor
    s, u = p ** ((c - 1) / 2), q ** ((c - 1) / 2)
    distance = magnitude * (p.sqrt() * s - q.sqrt() * u) ** 2
    distance = distance + complex_ * ((re * s - want_re * u) ** 2 + (im * s - want_im * u) ** 2)
    bands = [
        (_power(re, im, a, b) + floor) ** (c / 2) - (_power(want_re, want_im, a, b) + floor) ** (c / 2)
        for a, b in itertools.pairwise(edges)
    ]
    error = ((re - want_re) ** 2 + (im - want_im) ** 2).sum((1, 2))
    around = (z.shape[-1] // 2) // 2
    middle = noisy[:, around : around + z.shape[1]]
    energy = target.square().sum((1, 2, 3)) + 0.03 * middle.square().sum((1, 2, 3)) + 1e-9
    per_item = 10 * torch.log10(1 + knee * error / energy)
    return distance.mean() + per_band * torch.stack(bands).square().mean() + per_db * per_item.mean()


def _power(re: Tensor, im: Tensor, first: int, last: int) -> Tensor:
    """Return the mean power [B, T] of the bins of a band."""
    return (re[..., first:last] ** 2 + im[..., first:last] ** 2).mean(-1)
