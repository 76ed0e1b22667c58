"""Blocks and graphs of a synthetic DeepFilterNet, from the layers of the family to three ONNX files."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from dfstream.errors import UsageError
from synthetic_graph import Builder, LeanBuilder, TorchBuilder
from synthetic_weights import Random

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from synthetic import Family

__all__ = ["PARTS", "build"]

#: Norms of weight vectors by what they read, for outputs of order 1: rectified maps, recurrent
#: states (which are smaller).
_FROM_RELU, _FROM_GRU = 1.7, 3.0


def build(family: Family, part: str, seed: int) -> bytes:
    """Make one graph of an export.

    Parameters
    ----------
    family : Family
    part : str
        One of `PARTS`.
    seed : int

    Returns
    -------
    bytes
        Serialised model, checked.
    """
    graph = _builder(family, part)
    PARTS[part](_Net(family, graph, Random(seed, list(PARTS).index(part)), _state(family, part)))
    return graph.model()


def _builder(family: Family, part: str) -> Builder:
    if family.lean:
        return LeanBuilder(part)
    opset = 12 if family.exporter == "pytorch12" else 14
    # exports of opset 12 keep these weights in nodes; which graphs do differs between the official models
    in_nodes = ("erb_dec",) if family.projects_skip else ("enc", "erb_dec")
    return TorchBuilder(part, opset, gru_constants=opset == 12 and part in in_nodes)


def _state(family: Family, part: str) -> tuple[str, str] | None:
    """Names of the recurrent state of a graph, None where it is not exposed."""
    if family.exporter == "h0" or (family.exporter == "h0-enc" and part == "enc"):
        prefix = {"enc": "", "erb_dec": "erb_", "df_dec": "df_"}[part]
        return f"{prefix}h0", f"{prefix}h1"
    return None


# -- blocks ------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Net:
    """What the blocks of one graph share."""

    family: Family
    graph: Builder
    random: Random
    state: tuple[str, str] | None

    def conv(
        self, name: str, x: str, channels: tuple[int, int], kernel: tuple[int, int], *,
        stride: int = 1, transposed: bool = False, activation: str | None = "Relu", gain: float = _FROM_RELU,
        offset: float = 0.0, out: str | None = None,
    ) -> str:  # fmt: skip
        """Append a causal convolution block: zero frames in front, grouped kernel, 1x1 mix, activation.

        The second convolution exists where the first has groups and a kernel; the last one has a bias.
        """
        g, (before, after), (frames, width) = self.graph, channels, kernel
        groups = math.gcd(before, after) if self.family.conv_depthwise else 1
        mixed = groups > 1 and max(kernel) > 1
        shape = (before, after // groups, *kernel) if transposed else (after, before // groups, *kernel)
        fan_in = (0, 2, 3) if transposed and groups == 1 else (1, 2, 3)
        weight = self.random.weight(shape, fan_in, 1.0 if mixed else gain, centred=before // groups > 1)
        attributes: dict[str, Any] = {
            "dilations": [1, 1], "group": groups, "kernel_shape": list(kernel), "strides": [1, stride],
            "pads": [0, width // 2, 0, width // 2],
        }  # fmt: skip
        if transposed:
            attributes["output_padding"] = [0, stride - 1]
        with g.scope(name):
            if frames > 1:
                x = g.time_pad(x, frames - 1)
            op = "ConvTranspose" if transposed else "Conv"
            bias = self.random.bias(after, offset=offset)
            stored = [g.weight("Conv", weight), *([] if mixed else [g.weight("Conv", bias)])]
            last = None if mixed or activation else out
            x = g.node(op, x, *stored, **attributes, out=last)
            if mixed:
                x = self._mix(x, after, gain, bias, None if activation else out)
            return g.node(activation, x, out=out) if activation else x

    def _mix(self, x: str, channels: int, gain: float, bias: NDArray[np.float32], out: str | None) -> str:
        weight = self.random.weight((channels, channels, 1, 1), 1, gain, centred=True)
        stored = [self.graph.weight("Conv", w) for w in (weight, bias)]
        ones = [1, 1]
        attributes: dict[str, Any] = {"dilations": ones, "group": 1, "kernel_shape": ones, "strides": ones}
        attributes["pads"] = [0, 0, 0, 0]
        return self.graph.node("Conv", x, *stored, **attributes, out=out)

    def linear(
        self, name: str, x: str, size: tuple[int, int], groups: int, gain: float, *,
        activation: str | None = "Relu", out: str | None = None,
    ) -> str:  # fmt: skip
        """Append a linear layer over [B, T, N]: in groups without a bias, or plain with one (lean)."""
        g, (before, after) = self.graph, size
        if before % groups or after % groups:
            raise UsageError(
                f"{name}: {before} inputs and {after} outputs do not divide into {groups} groups"
            )
        with g.scope(name):
            if self.family.lean:
                x = self.dense(x, size, gain)
            else:
                shape = (groups, before // groups, after // groups)
                weight = self.random.weight(shape, 1, gain, centred=before > 2 * groups)
                x = g.split_last(x, shape[:2])
                x = g.node("Einsum", x, g.weight("Einsum", weight), equation="btgi,gih->btgh")
                x = g.merge_last(x, after)
            return g.node(activation, x, out=out) if activation else x

    def dense(self, x: str, size: tuple[int, int], gain: float) -> str:
        """Append a matrix product over the last axis and a bias."""
        weight = self.random.weight(size, 0, gain, centred=True)
        x = self.graph.node("MatMul", x, self.graph.weight("MatMul", weight))
        return self.graph.node("Add", x, self.graph.weight("Add", self.random.bias(size[1])))

    def recurrent(self, x: str, sizes: tuple[int, int, int], groups: int, *, out: str | None = None) -> str:
        """Append recurrent layers of (inputs, hidden, layers), with a projection in front unless lean."""
        inputs, hidden, layers = sizes
        skip = None
        if not self.family.lean:
            x = skip = self.linear("linear_in", x, (inputs, hidden), groups, _FROM_RELU)
            inputs = hidden
        weights = [self.random.gru(inputs if index == 0 else hidden, hidden) for index in range(layers)]
        with self.graph.scope("gru"):
            outputs = self.graph.gru(x, weights, state=self.state, out=out)
        if self.state:
            self.graph.input(self.state[0], [layers, "B", hidden])
        if skip and self.family.projects_skip and out is None:
            return self.graph.node("Add", outputs[-1], skip)
        for other in outputs[:-1]:
            outputs[-1] = self.graph.node("Add", other, outputs[-1])
        return outputs[-1]


# -- graphs ------------------------------------------------------------------------------------------


def _encoder(net: _Net) -> None:
    """Features -> skip maps e0 to e3 and c0, embedding, local SNR."""
    f, g, ch = net.family, net.graph, net.family.conv_ch
    feat_erb = g.input("feat_erb", [1, 1, "S", f.nb_erb])
    feat_spec = g.input("feat_spec", [1, 2, "S", f.nb_df])
    e0 = net.conv("erb_conv0", feat_erb, (1, ch), f.conv_kernel_inp, out="e0")
    e1 = net.conv("erb_conv1", e0, (ch, ch), f.conv_kernel, stride=2, out="e1")
    e2 = net.conv("erb_conv2", e1, (ch, ch), f.conv_kernel, stride=2, out="e2")
    e3 = net.conv("erb_conv3", e2, (ch, ch), f.conv_kernel, out="e3")
    c0 = net.conv("df_conv0", feat_spec, (2, ch), f.conv_kernel_inp, out="c0")
    c1 = net.conv("df_conv1", c0, (ch, ch), f.conv_kernel, stride=2)
    wide = ch * f.nb_df // 2
    cemb = net.linear("df_fc_emb", g.flatten(c1, wide), (wide, f.flat_dim), f.enc_linear_groups, _FROM_RELU)
    flat = g.flatten(e3, f.flat_dim)
    emb = g.node("Concat", flat, cemb, axis=-1) if f.enc_concat else g.node("Add", flat, cemb)
    with g.scope("emb_gru"):
        sizes = (f.flat_dim * (1 + f.enc_concat), f.emb_hidden_dim, 1)
        emb = net.recurrent(emb, sizes, f.linear_groups, out="emb" if f.projects_skip else None)
        if not f.projects_skip:
            emb = net.linear(
                "linear_out", emb, (f.emb_hidden_dim, f.emb_dim), f.linear_groups, _FROM_GRU, out="emb"
            )
    with g.scope("lsnr_fc"):
        lsnr = g.node("Sigmoid", net.dense(emb, (f.emb_dim, 1), 1.0 if not f.projects_skip else 2.0))
    lsnr = g.node("Mul", lsnr, g.constant(50.0, np.float32))
    g.node("Add", lsnr, g.constant(-15.0, np.float32), out="lsnr")

    widths = {"e0": f.nb_erb, "e1": f.nb_erb // 2, "e2": f.nb_erb // 4, "e3": f.nb_erb // 4, "c0": f.nb_df}
    for name in ("e0", "e1", "e2", "e3"):
        _declare(net, name, [1, ch, "S", widths[name]])
    _declare(net, "emb", [1, "S", f.emb_dim])
    _declare(net, "c0", [1, ch, "S", widths["c0"]])
    _declare(net, "lsnr", [1, "S", 1])
    _declare_state(net, 1, f.emb_hidden_dim)


def _erb_decoder(net: _Net) -> None:
    """Embedding and skip maps -> gains of the ERB bands."""
    f, g, ch = net.family, net.graph, net.family.conv_ch
    emb = g.input("emb", [1, "S", f.emb_dim])
    width = f.nb_erb // 4
    e3, e2 = (g.input(name, [1, ch, "S", width]) for name in ("e3", "e2"))
    e1, e0 = (g.input(f"e{i}", [1, ch, "S", f.nb_erb >> i]) for i in (1, 0))
    hidden = f.emb_dim if f.lean else f.emb_hidden_dim
    with g.scope("emb_gru"):
        x = net.recurrent(emb, (f.emb_dim, hidden, f.emb_num_layers - 1), f.linear_groups)
        x = net.linear("linear_out", x, (hidden, f.flat_dim), f.linear_groups, _FROM_GRU)
    x = g.as_map(x, e3, ch, width)

    def join(skip: str, name: str, x: str) -> str:
        return g.node("Add", net.conv(name, skip, (ch, ch), (1, 1)), x)

    x = net.conv("convt3", join(e3, "conv3p", x), (ch, ch), f.conv_kernel)
    x = net.conv("convt2", join(e2, "conv2p", x), (ch, ch), f.convt_kernel, stride=2, transposed=True)
    x = net.conv("convt1", join(e1, "conv1p", x), (ch, ch), f.convt_kernel, stride=2, transposed=True)
    net.conv(
        "conv0_out", join(e0, "conv0p", x), (ch, 1), f.conv_kernel, activation="Sigmoid", gain=0.8, out="m"
    )
    _declare(net, "m", [1, 1, "S", f.nb_erb])
    _declare_state(net, f.emb_num_layers - 1, hidden)


def _df_decoder(net: _Net) -> None:
    """Embedding and skip map c0 -> coefs of the deep filter."""
    f, g, ch = net.family, net.graph, net.family.conv_ch
    emb = g.input("emb", [1, "S", f.emb_dim])
    c0 = g.input("c0", [1, ch, "S", f.nb_df])
    parts = 2 * f.df_order
    with g.scope("df_gru"):
        x = net.recurrent(emb, (f.emb_dim, f.df_hidden_dim, f.df_num_layers), f.df_linear_groups)
    if f.df_gru_skip == "groupedlinear":
        size = (f.emb_dim, f.df_hidden_dim)
        x = g.node("Add", x, net.linear("df_skip", emb, size, f.linear_groups, 1.0, activation=None))
    # the offset lets the pathway speak most of the time; in the official models it hardly ever does
    kernel = (f.df_pathway_kernel_size_t, 1)
    activation = None if f.lean else "Relu"
    pathway = net.conv("df_convp", c0, (ch, parts), kernel, activation=activation, gain=0.5, offset=0.2)
    pathway = g.node("Transpose", pathway, perm=[0, 2, 3, 1])
    size = (f.df_hidden_dim, f.nb_df * parts)
    y = net.linear("df_out", x, size, f.linear_groups, 0.6, activation=None if f.lean else "Tanh")
    y = g.split_last(y, [f.nb_df, parts], like=emb)
    if f.lean:
        y = g.node("Tanh", g.node("Add", y, pathway))
        g.node("Mul", y, g.constant(1.5, np.float32), out="coefs")
    else:
        g.node("Add", y, pathway, out="coefs")
    _declare(net, "coefs", [1, "S", f.nb_df, parts])
    if isinstance(g, TorchBuilder) and not net.state:
        # alpha, which nothing uses and the exporting call did not name
        with g.scope("df_fc_a"):
            alpha = g.node("Sigmoid", net.dense(x, (f.df_hidden_dim, 1), 1.0), out=g.anonymous())
        g.output(alpha, [1, "S", 1])
    _declare_state(net, f.df_num_layers, f.df_hidden_dim)


def _declare_state(net: _Net, layers: int, hidden: int) -> None:
    """Declare the recurrent state a graph returns, where it returns it."""
    if net.state:
        net.graph.output(net.state[1], [layers, "B", hidden])


def _declare(net: _Net, name: str, shape: list[int | str]) -> None:
    """Declare a result; PyTorch writes symbols without meaning on all axes but channels and time."""
    if not net.family.lean:
        known = (1, 2) if len(shape) == 4 and name != "coefs" else (1, len(shape) - 1)
        shape = [size if axis in known else f"{name}_dim_{axis}" for axis, size in enumerate(shape)]
    net.graph.output(name, shape)


PARTS: dict[str, Callable[[_Net], None]] = {"enc": _encoder, "erb_dec": _erb_decoder, "df_dec": _df_decoder}
