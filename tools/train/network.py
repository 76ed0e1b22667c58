"""The network in torch: encoder, decoder of gains, decoder of deep-filter taps.

The form is that of DeepFilterNet3 with the graphs and tensors of its official export. Differences make it
small and quick: 16 channels, dense 1x3 convolutions, kernels over time in the two input convolutions only,
narrower recurrent layers with plain projections, and no batch norm, so that training and export compute the
same.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from kernels import RecurrentScan

if TYPE_CHECKING:
    from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of the network.

    Attributes
    ----------
    conv_ch : int
        Channels of all maps.
    nb_erb, nb_df, df_order : int
        Bands, deep-filtered bins and taps.
    kernel_t : int, frames
        Of the input convolutions.
    enc_hidden, erb_hidden, df_hidden : int
        Widths of recurrent layers.
    erb_layers, df_layers : int
        Their number in the decoders.
    cemb : int
        Width of the deep-filter part of the encoder's vector.
    coef_range : float
        Largest tap.
    spec_scale : float
        Initial gain of the deep-filter input, whose values are small.
    """

    conv_ch: int = 16
    nb_erb: int = 32
    nb_df: int = 96
    df_order: int = 5
    kernel_t: int = 3
    enc_hidden: int = 160
    erb_hidden: int = 128
    erb_layers: int = 1
    df_hidden: int = 160
    df_layers: int = 2
    cemb: int = 128
    coef_range: float = 1.5
    spec_scale: float = 10.0

    @property
    def emb(self) -> int:
        """Width of the tensor ``emb``."""
        return self.conv_ch * self.nb_erb // 4


class Output(NamedTuple):
    """What the network gives for B items of T frames."""

    m: Tensor
    """[B, 1, T, bands]."""
    z: Tensor
    """[B, T, df bins, 2 * taps], taps before their activation ``coef_range * tanh``."""
    lsnr: Tensor
    """[B, T, 1], dB."""


class Recurrent(nn.GRU):
    """One GRU layer over [B, T, n], from a state of zeros."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__(inputs, hidden, batch_first=True)
        nn.init.orthogonal_(self.weight_hh_l0.data[-hidden:])

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, T, hidden], the recurrence in float32 throughout: states add up over seconds."""
        if x.device.type == "cpu" and torch.is_grad_enabled():
            projected = F.linear(x.transpose(0, 1), self.weight_ih_l0, self.bias_ih_l0)
            h: Tensor = RecurrentScan.apply(projected.float(), self.weight_hh_l0, self.bias_hh_l0)
            return h.transpose(0, 1)
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())[0]


def conv(inputs: int, outputs: int, kernel_t: int = 1, kernel_f: int = 3, stride: int = 1) -> nn.Conv2d:
    """Make a convolution over maps [B, C, T, F] whose width changes by the stride alone."""
    return nn.Conv2d(inputs, outputs, (kernel_t, kernel_f), stride=(1, stride), padding=(0, kernel_f // 2))


def pointwise(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """Apply a 1x1 convolution as a matrix product, quick where channels come last in memory."""
    return F.linear(x.permute(0, 2, 3, 1), layer.weight.flatten(1), layer.bias).permute(0, 3, 1, 2)


def flat(x: Tensor) -> Tensor:
    """Turn a map [B, C, T, F] into vectors [B, T, F * C]."""
    return x.permute(0, 2, 3, 1).flatten(2)


class Encoder(nn.Module):
    """Features to maps and one vector a frame."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        C = shape.conv_ch
        self.past = (0, 0, shape.kernel_t - 1, 0)
        self.erb_conv0 = conv(1, C, shape.kernel_t)
        self.erb_conv1 = conv(C, C, stride=2)
        self.erb_conv2 = conv(C, C, stride=2)
        self.erb_conv3 = conv(C, C)
        self.df_conv0 = conv(2, C, shape.kernel_t)
        self.df_conv0.weight.data *= shape.spec_scale
        self.df_conv1 = conv(C, C, stride=2)
        self.df_fc_emb = nn.Linear(C * shape.nb_df // 2, shape.cemb)
        self.gru = Recurrent(shape.emb + shape.cemb, shape.enc_hidden)
        self.out = nn.Linear(shape.enc_hidden, shape.emb)
        self.lsnr = nn.Linear(shape.emb, 1)

    def forward(self, feat_erb: Tensor, feat_spec: Tensor) -> tuple[Tensor, ...]:
        """Take [B, 1, T, bands] and [B, 2, T, df bins] to e0, e1, e2, e3, emb, c0, lsnr."""
        e0 = F.relu(self.erb_conv0(F.pad(feat_erb, self.past)))
        # one channel in leaves the layout of the output open
        e0 = e0.contiguous(memory_format=torch.channels_last)
        e1 = F.relu(self.erb_conv1(e0))
        e2 = F.relu(self.erb_conv2(e1))
        e3 = F.relu(self.erb_conv3(e2))
        c0 = F.relu(self.df_conv0(F.pad(feat_spec, self.past)))
        c1 = F.relu(self.df_conv1(c0))
        x = torch.cat((flat(e3), F.relu(self.df_fc_emb(flat(c1)))), -1)
        emb = F.relu(self.out(self.gru(x)))
        return e0, e1, e2, e3, emb, c0, torch.sigmoid(self.lsnr(emb)) * 50.0 - 15.0


class ErbDecoder(nn.Module):
    """Maps and vectors to gains of bands."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        C = shape.conv_ch
        widths = [shape.emb] + [shape.erb_hidden] * shape.erb_layers
        self.grus = nn.ModuleList(Recurrent(a, b) for a, b in itertools.pairwise(widths))
        self.out = nn.Linear(shape.erb_hidden, shape.emb)
        self.conv3p, self.conv2p = conv(C, C, kernel_f=1), conv(C, C, kernel_f=1)
        self.conv1p, self.conv0p = conv(C, C, kernel_f=1), conv(C, C, kernel_f=1)
        self.convt3 = conv(C, C)
        up: dict[str, Any] = {"stride": (1, 2), "padding": (0, 1), "output_padding": (0, 1)}
        self.convt2 = nn.ConvTranspose2d(C, C, (1, 3), **up)
        self.convt1 = nn.ConvTranspose2d(C, C, (1, 3), **up)
        self.conv0_out = conv(C, 1)

    def forward(self, emb: Tensor, e3: Tensor, e2: Tensor, e1: Tensor, e0: Tensor) -> Tensor:
        """Return [B, 1, T, bands]."""
        B, C, T, width = e3.shape
        for gru in self.grus:
            emb = gru(emb)
        x = F.relu(self.out(emb)).view(B, T, width, C).permute(0, 3, 1, 2)
        x = F.relu(self.convt3(F.relu(pointwise(self.conv3p, e3)) + x))
        x = F.relu(self.convt2(F.relu(pointwise(self.conv2p, e2)) + x))
        x = F.relu(self.convt1(F.relu(pointwise(self.conv1p, e1)) + x))
        return torch.sigmoid(self.conv0_out(F.relu(pointwise(self.conv0p, e0)) + x))


class DfDecoder(nn.Module):
    """Vectors and the first deep-filter map to taps."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        widths = [shape.emb] + [shape.df_hidden] * shape.df_layers
        self.grus = nn.ModuleList(Recurrent(a, b) for a, b in itertools.pairwise(widths))
        self.df_convp = conv(shape.conv_ch, 2 * shape.df_order, kernel_f=1)
        self.df_out = nn.Linear(shape.df_hidden, shape.nb_df * 2 * shape.df_order)
        # the first guess is to let the frame in the middle pass
        self.df_out.weight.data *= 0.3
        bias = self.df_out.bias.data.zero_().view(shape.nb_df, shape.df_order, 2)
        bias[:, shape.df_order // 2, 0] = 0.35

    def forward(self, emb: Tensor, c0: Tensor) -> Tensor:
        """Return [B, T, df bins, 2 * taps], before the activation."""
        x = self.grus[0](emb)
        for gru in self.grus[1:]:
            x = x + gru(x)
        pathway = pointwise(self.df_convp, c0).permute(0, 2, 3, 1)
        return self.df_out(x).view(pathway.shape) + pathway


class Net(nn.Module):
    """The whole network."""

    def __init__(self, shape: Shape | None = None) -> None:
        super().__init__()
        self.shape = shape or Shape()
        self.enc = Encoder(self.shape)
        self.erb_dec = ErbDecoder(self.shape)
        self.df_dec = DfDecoder(self.shape)
        self.to(memory_format=torch.channels_last)

    def forward(self, feat_erb: Tensor, feat_spec: Tensor) -> Output:
        """Take features [B, 1, T, bands] and [B, 2, T, df bins] all the way."""
        e0, e1, e2, e3, emb, c0, lsnr = self.enc(feat_erb, feat_spec)
        return Output(self.erb_dec(emb, e3, e2, e1, e0), self.df_dec(emb, c0), lsnr)

    @property
    def parameter_count(self) -> int:
        """Numbers in all weights."""
        return sum(p.numel() for p in self.parameters())

    def macs_per_hop(self) -> int:
        """Count multiply-accumulates of one frame by running the layers on one."""
        counts: list[int] = []

        def count(layer: Any, inputs: Any, output: Any) -> None:
            if isinstance(layer, nn.GRU):
                counts.append(sum(p.numel() for name, p in layer.named_parameters() if "weight" in name))
            elif isinstance(layer, nn.ConvTranspose2d):
                counts.append(layer.weight.numel() * inputs[0].shape[-1])
            elif isinstance(layer, nn.Conv2d):
                counts.append(layer.weight.numel() * output.shape[-1])
            elif isinstance(layer, nn.Linear):
                counts.append(layer.weight.numel())

        handles = [m.register_forward_hook(count) for m in self.modules() if not list(m.children())]
        with torch.no_grad():
            self(torch.zeros(1, 1, 1, self.shape.nb_erb), torch.zeros(1, 2, 1, self.shape.nb_df))
        for handle in handles:
            handle.remove()
        # 1x1 convolutions run as products of their weights and call no layer
        shape = self.shape
        widths = {"conv3p": 4, "conv2p": 4, "conv1p": 2, "conv0p": 1}
        counts += [shape.conv_ch**2 * shape.nb_erb // divisor for divisor in widths.values()]
        return sum(counts) + 2 * shape.df_order * shape.conv_ch * shape.nb_df


def load_weights(path: Path) -> Net:
    """Read a network: ``config`` holds its shape, ``model`` its weights of any floating type."""
    stored = torch.load(path, map_location="cpu", weights_only=True)
    net = Net(Shape(**stored["config"]))
    net.load_state_dict({name: value.float() for name, value in stored["model"].items()})
    net.eval()
    return net
