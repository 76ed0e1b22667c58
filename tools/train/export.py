"""Weights as graphs: enc, erb_dec and df_dec with the interface of the official export, and their config.ini.

    python tools/train/export.py WEIGHTS FOLDER [--blend WEIGHTS --share 0.3]

Batch is the constant 1 and time the one free axis, every Pad states its value, recurrent layers start from
zeros.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import onnx
import torch
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper, numpy_helper

from dfstream.atomic import replacing_folder
from dfstream.errors import UsageError, VerifyFailed
from network import Net, load_weights
from reporting import errors_in_a_line

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from network import Recurrent

#: Largest difference between torch and the graphs, relative to the largest value of a tensor.
TOLERANCE = 1e-5

_TIME = "S"
_OPSET, _IR = 12, 7


class Graph:
    """A graph in the making; methods append nodes and return the name of what they give."""

    def __init__(self, name: str) -> None:
        self._name, self._nodes = name, []  # type: str, list[onnx.NodeProto]
        self._constants: list[onnx.TensorProto] = []

    def node(self, op: str, *inputs: str, out: str | None = None, extra: int = 0, **attributes: Any) -> str:
        """Append a node; ``extra`` counts outputs that nobody reads."""
        label = f"{op.lower()}_{len(self._nodes)}"
        outputs = [out or label, *(f"{label}_{index + 1}" for index in range(extra))]
        self._nodes.append(helper.make_node(op, inputs, outputs, f"/{label}", **attributes))
        return outputs[0]

    def constant(self, values: Tensor | np.ndarray[Any, Any]) -> str:
        """Store a constant."""
        array = values.detach().numpy() if isinstance(values, torch.Tensor) else values
        name = f"const_{len(self._constants)}"
        # ascontiguousarray would make a vector of a scalar
        self._constants.append(numpy_helper.from_array(np.array(array, order="C"), name))
        return name

    def conv(
        self, layer: nn.Conv2d, x: str, *, out: str | None = None, act: str | None = "Relu", past: int = 0
    ) -> str:
        """Append a convolution, behind zero frames of the past, and what follows it."""
        if past:
            pads = self.constant(np.array([0, 0, past, 0, 0, 0, 0, 0]))
            x = self.node("Pad", x, pads, self.constant(np.array(0, np.float32)), mode="constant")
        width = layer.padding[1]
        attributes: dict[str, Any] = {
            "kernel_shape": [*layer.kernel_size], "strides": [*layer.stride], "pads": [0, width, 0, width],
            "dilations": [1, 1], "group": 1,
        }  # fmt: skip
        transposed = isinstance(layer, torch.nn.ConvTranspose2d)
        if transposed:
            attributes["output_padding"] = [*layer.output_padding]
        op = "ConvTranspose" if transposed else "Conv"
        weights = self.constant(layer.weight), self.constant(layer.bias)
        return self._activated(self.node(op, x, *weights, out=None if act else out, **attributes), act, out)

    def linear(self, layer: nn.Linear, x: str, *, out: str | None = None, act: str | None = None) -> str:
        """Append a matrix product with its bias, and what follows it."""
        x = self.node("MatMul", x, self.constant(layer.weight.t()))
        return self._activated(
            self.node("Add", x, self.constant(layer.bias), out=None if act else out), act, out
        )

    def recurrent(self, layer: Recurrent, x: str) -> str:
        """Append a GRU over [1, S, n]; torch's gates r, z, n become ONNX's z, r, h."""
        H = layer.hidden_size

        def ordered(weight: Tensor) -> Tensor:
            r, z, n = weight.split(H)
            return torch.cat((z, r, n))

        biases = torch.cat((ordered(layer.bias_ih_l0), ordered(layer.bias_hh_l0)))
        weights = [ordered(layer.weight_ih_l0)[None], ordered(layer.weight_hh_l0)[None], biases[None]]
        start = self.constant(np.zeros((1, 1, H), np.float32))
        x = self.node("Transpose", x, perm=[1, 0, 2])
        constants = [self.constant(weight) for weight in weights]
        x = self.node("GRU", x, *constants, "", start, extra=1, hidden_size=H, linear_before_reset=1)
        return self.node("Transpose", self.node("Squeeze", x, axes=[1]), perm=[1, 0, 2])

    def shaped(self, x: str, *sizes: int) -> str:
        """Append a reshape to [1, S, *sizes]."""
        return self.node("Reshape", x, self.constant(np.array([1, -1, *sizes])))

    def flat(self, x: str, width: int) -> str:
        """Append what turns a map [1, C, S, F] into vectors [1, S, F * C]."""
        return self.shaped(self.node("Transpose", x, perm=[0, 2, 3, 1]), width)

    def model(self, inputs: Mapping[str, list[Any]], outputs: Mapping[str, list[Any]]) -> onnx.ModelProto:
        """Return the graph with its interface, checked."""
        read, written = (
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in side.items()]
            for side in (inputs, outputs)
        )
        graph = helper.make_graph(self._nodes, self._name, read, written, self._constants)
        opsets = [helper.make_opsetid("", _OPSET)]
        model = helper.make_model(graph, opset_imports=opsets, producer_name="dfstream", ir_version=_IR)
        onnx.checker.check_model(model, full_check=True)
        return model

    def _activated(self, x: str, act: str | None, out: str | None) -> str:
        return self.node(act, x, out=out) if act else x


def graphs(net: Net) -> dict[str, onnx.ModelProto]:
    """Return the three graphs of a network by name."""
    shape = net.shape
    C, E, D, W = shape.conv_ch, shape.nb_erb, shape.nb_df, shape.emb
    maps: dict[str, list[Any]] = {
        "e0": [1, C, _TIME, E], "e1": [1, C, _TIME, E // 2], "e2": [1, C, _TIME, E // 4],
        "e3": [1, C, _TIME, E // 4], "emb": [1, _TIME, W], "c0": [1, C, _TIME, D],
    }  # fmt: skip
    features: dict[str, list[Any]] = {"feat_erb": [1, 1, _TIME, E], "feat_spec": [1, 2, _TIME, D]}
    gains = {name: maps[name] for name in ("emb", "e3", "e2", "e1", "e0")}
    taps = {name: maps[name] for name in ("emb", "c0")}
    return {
        "enc": _encoder(net).model(features, maps | {"lsnr": [1, _TIME, 1]}),
        "erb_dec": _erb_decoder(net).model(gains, {"m": [1, 1, _TIME, E]}),
        "df_dec": _df_decoder(net).model(taps, {"coefs": [1, _TIME, D, 2 * shape.df_order]}),
    }


def _encoder(net: Net) -> Graph:
    shape, enc, g = net.shape, net.enc, Graph("enc")
    past = shape.kernel_t - 1
    e1 = g.conv(enc.erb_conv1, g.conv(enc.erb_conv0, "feat_erb", out="e0", past=past), out="e1")
    e3 = g.conv(enc.erb_conv3, g.conv(enc.erb_conv2, e1, out="e2"), out="e3")
    c1 = g.conv(enc.df_conv1, g.conv(enc.df_conv0, "feat_spec", out="c0", past=past))
    cemb = g.linear(enc.df_fc_emb, g.flat(c1, shape.conv_ch * shape.nb_df // 2), act="Relu")
    x = g.recurrent(enc.gru, g.node("Concat", g.flat(e3, shape.emb), cemb, axis=-1))
    x = g.linear(enc.lsnr, g.linear(enc.out, x, act="Relu", out="emb"), act="Sigmoid")
    x = g.node("Mul", x, g.constant(np.array(50, np.float32)))
    g.node("Add", x, g.constant(np.array(-15, np.float32)), out="lsnr")
    return g


def _erb_decoder(net: Net) -> Graph:
    shape, dec, g, x = net.shape, net.erb_dec, Graph("erb_dec"), "emb"
    for layer in dec.grus:
        x = g.recurrent(layer, x)
    x = g.shaped(g.linear(dec.out, x, act="Relu"), shape.nb_erb // 4, shape.conv_ch)
    x = g.node("Transpose", x, perm=[0, 3, 1, 2])
    for name, skip, up in (
        ("e3", dec.conv3p, dec.convt3), ("e2", dec.conv2p, dec.convt2), ("e1", dec.conv1p, dec.convt1),
    ):  # fmt: skip
        x = g.conv(up, g.node("Add", g.conv(skip, name), x))
    g.conv(dec.conv0_out, g.node("Add", g.conv(dec.conv0p, "e0"), x), out="m", act="Sigmoid")
    return g


def _df_decoder(net: Net) -> Graph:
    shape, dec, g = net.shape, net.df_dec, Graph("df_dec")
    x = g.recurrent(dec.grus[0], "emb")
    for layer in dec.grus[1:]:
        x = g.node("Add", x, g.recurrent(layer, x))
    x = g.shaped(g.linear(dec.df_out, x), shape.nb_df, 2 * shape.df_order)
    pathway = g.node("Transpose", g.conv(dec.df_convp, "c0", act=None), perm=[0, 2, 3, 1])
    x = g.node("Tanh", g.node("Add", x, pathway))
    g.node("Mul", x, g.constant(np.array(shape.coef_range, np.float32)), out="coefs")
    return g


def config_ini(net: Net) -> str:
    """Return the config.ini that goes with the graphs."""
    shape = net.shape
    return f"""[train]
model = deepfilternet3

[df]
sr = 48000
fft_size = 960
hop_size = 480
nb_erb = {shape.nb_erb}
nb_df = {shape.nb_df}
norm_tau = 1
lsnr_max = 35
lsnr_min = -15
min_nb_erb_freqs = 2
pad_mode = output
df_order = {shape.df_order}
df_lookahead = 2

[deepfilternet]
conv_lookahead = 2
conv_ch = {shape.conv_ch}
conv_depthwise = False
convt_depthwise = False
conv_kernel = 1,3
convt_kernel = 1,3
conv_kernel_inp = {shape.kernel_t},3
emb_hidden_dim = {shape.enc_hidden}
emb_num_layers = {1 + shape.erb_layers}
df_hidden_dim = {shape.df_hidden}
df_num_layers = {shape.df_layers}
df_pathway_kernel_size_t = 1
enc_concat = True
enc_linear_groups = 1
linear_groups = 1
emb_gru_skip = none
df_gru_skip = none
df_n_iter = 1
group_shuffle = False
mask_pf = False
"""


def differences(net: Net, models: Mapping[str, onnx.ModelProto], frames: int = 120) -> dict[str, float]:
    """Return the largest difference between torch and the graphs on random features, by tensor.

    Relative to the largest value of the tensor.
    """
    import onnxruntime

    rng = np.random.default_rng(0)
    shape = net.shape
    feat_erb = rng.standard_normal((1, 1, frames, shape.nb_erb)).astype(np.float32)
    feat_spec = (0.1 * rng.standard_normal((1, 2, frames, shape.nb_df))).astype(np.float32)
    tensors = {"feat_erb": feat_erb, "feat_spec": feat_spec}
    for name in ("enc", "erb_dec", "df_dec"):
        session = onnxruntime.InferenceSession(
            models[name].SerializeToString(), providers=["CPUExecutionProvider"]
        )
        outputs = [output.name for output in session.get_outputs()]
        results = session.run(outputs, {given.name: tensors[given.name] for given in session.get_inputs()})
        tensors |= dict(zip(outputs, results, strict=True))
    with torch.no_grad():
        out = net.eval()(torch.from_numpy(feat_erb), torch.from_numpy(feat_spec))
    wanted = {"m": out.m, "lsnr": out.lsnr, "coefs": shape.coef_range * torch.tanh(out.z)}
    return {
        name: float(np.abs(tensors[name] - want.numpy()).max() / np.abs(want.numpy()).max())
        for name, want in wanted.items()
    }


def export(net: Net, folder: Path) -> str:
    """Write a folder that dfstream loads, once it is the network's twin; returns a line about it.

    Raises
    ------
    VerifyFailed
        The graphs do not compute what torch does.
    """
    models = graphs(net)
    worst = max(differences(net, models).values())
    if not worst <= TOLERANCE:
        raise VerifyFailed(f"the graphs are {worst:.1e} away from torch")
    with replacing_folder(folder) as made:
        made.mkdir()
        for name, model in models.items():
            onnx.save(model, made / f"{name}.onnx")
        (made / "config.ini").write_text(config_ini(net))
    return (
        f"{folder}: {net.parameter_count} parameters, {net.macs_per_hop()} MACs a hop, {worst:.1e} from torch"
    )


def recovered(folder: Path) -> Net:
    """Return the network whose graphs are in a folder: a bundled model is where its training can go on.

    A network whose weights are their own numbers shows, in its graphs, where each weight went.

    Raises
    ------
    UsageError
        The graphs are of another network, or cannot be read.
    """
    net, numbered = Net(), Net()
    first = 1_000  # clear of the constants that are no weights
    count = net.parameter_count
    numbers = torch.arange(first, first + count, dtype=torch.float32)
    torch.nn.utils.vector_to_parameters(numbers, numbered.parameters())
    weights = np.full(count, np.nan, np.float32)
    for name, wanted in graphs(numbered).items():
        try:
            stored = onnx.load(folder / f"{name}.onnx", load_external_data=False)
        except (OSError, DecodeError) as error:
            raise UsageError(f"{folder / name}.onnx cannot be read ({error})") from error
        found = {constant.name: numpy_helper.to_array(constant) for constant in stored.graph.initializer}
        for constant in wanted.graph.initializer:
            places, values = numpy_helper.to_array(constant), found.get(constant.name)
            if values is None or values.shape != places.shape:
                raise UsageError(f"{folder / name}.onnx is of another network")
            ours = places >= first
            weights[places[ours].astype(np.int64) - first] = values[ours]
    torch.nn.utils.vector_to_parameters(torch.from_numpy(weights), net.parameters())
    net.eval()
    return net


def blended(net: Net, other: Net, share: float) -> Net:
    """Return a network between two of one shape, the first the beginning of the other's training."""
    if net.shape != other.shape:
        raise UsageError("networks of two shapes cannot be blended")
    between = Net(net.shape)
    theirs = other.state_dict()
    between.load_state_dict({name: own.lerp(theirs[name], share) for name, own in net.state_dict().items()})
    return between


@click.command()
@click.argument("weights", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--blend", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="Other weights.")
@click.option("--share", type=click.FloatRange(0, 1), default=0.5, show_default=True, help="Of the others.")
def main(weights: Path, folder: Path, blend: Path | None, share: float) -> None:
    """Write the graphs of trained weights, or of a blend of two."""
    with errors_in_a_line():
        net = load_weights(weights)
        click.echo(export(blended(net, load_weights(blend), share) if blend else net, folder))


if __name__ == "__main__":
    main()
