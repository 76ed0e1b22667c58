"""The canonical forms of convolutions: over time with an explicit state, and upsampling."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from dfstream.errors import UnsupportedGraph

from .graph import constant_value, consumers

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_graphsurgeon as gs
    from numpy.typing import NDArray

__all__ = ["Emitter", "TimeConv", "fold_pointwise", "polyphase"]

#: Up to this many channels the past of a map is cheaper to carry than the partial sums of its outputs.
_FEW_CHANNELS = 4


class Emitter(Protocol):
    """What a convolution needs of the graph under construction."""

    def emit_conv(
        self, x: gs.Tensor, weight: NDArray[Any], bias: NDArray[Any] | None, name: str,
        group: int = 1, stride: int = 1, pads: tuple[int, int] = (0, 0),
    ) -> gs.Variable:  # fmt: skip
        """Emit a convolution over one frame; ``pads`` are left and right in frequency."""

    def emit_slice(self, x: gs.Tensor, start: int, end: int, name: str) -> gs.Variable:
        """Emit a slice of channels."""

    def emit_concat(self, parts: Sequence[Any], name: str) -> gs.Tensor:
        """Emit a concatenation of channels."""

    def append_zeros(self, x: gs.Tensor, shape: Sequence[int], name: str) -> gs.Tensor:
        """Emit ``x`` and behind it channels of zeros, of the given shape."""

    def emit(self, op: str, inputs: Sequence[Any], name: str) -> gs.Variable:
        """Emit an element-wise operator."""

    def open_state(self, name: str, shape: Sequence[int]) -> gs.Variable:
        """Declare a state; a second one of the same name gets a number."""

    def close_state(self, state: gs.Variable, value: gs.Tensor) -> None:
        """Say what a state becomes."""


@dataclasses.dataclass(frozen=True)
class TimeConv:
    """A convolution over [1, C, T, F] maps that is causal in time.

    Attributes
    ----------
    node : Node
        Where it stands in the original graph.
    weight : ndarray[float64], shape (out, in per group, taps, width)
    bias : ndarray[float64], shape (out,), or None
    group, stride : int
    pads : (int, int)
        Zeros left and right in frequency.
    """

    node: gs.Node
    weight: NDArray[Any]
    bias: NDArray[Any] | None
    group: int
    stride: int
    pads: tuple[int, int]

    @classmethod
    def read(cls, node: gs.Node) -> TimeConv:
        """Read a Conv node; refuses strides, dilations or pads in time."""
        weight = constant_value(node.inputs[1])
        bias = (
            constant_value(node.inputs[2]) if len(node.inputs) > 2 and not node.inputs[2].is_empty() else None
        )
        strides, pads = node.attrs.get("strides", [1, 1]), node.attrs.get("pads", [0, 0, 0, 0])
        plain = (
            strides[0] == 1 and not pads[0] and not pads[2] and set(node.attrs.get("dilations", [1])) == {1}
        )
        if (
            weight is None
            or weight.ndim != 4
            or not plain
            or node.attrs.get("auto_pad", "NOTSET") != "NOTSET"
        ):
            raise UnsupportedGraph(f"canonicalise: Conv {node.name!r} is not a plain causal convolution")
        return cls(
            node, weight.astype(np.float64), None if bias is None else bias.astype(np.float64),
            int(node.attrs.get("group", 1)), int(strides[1]), (int(pads[1]), int(pads[3])),
        )  # fmt: skip

    @property
    def taps(self) -> int:
        """Frames it spans."""
        return int(self.weight.shape[2])

    @property
    def channels(self) -> int:
        """Channels it reads."""
        return int(self.weight.shape[1]) * self.group

    @property
    def is_pointwise(self) -> bool:
        """Whether it is a plain 1x1 convolution."""
        one = self.weight.shape[2:] == (1, 1)
        return one and self.stride == 1 and self.pads == (0, 0) and self.group == 1

    def dense(self) -> NDArray[Any]:
        """Return the weight without groups, zeros between them."""
        out, per_group = self.weight.shape[:2]
        full = np.zeros((out, self.channels, *self.weight.shape[2:]))
        for o in range(out):
            start = o // (out // self.group) * per_group
            full[o, start : start + per_group] = self.weight[o]
        return full

    @property
    def carries_sums(self) -> bool:
        """Whether the partial sums of its outputs are a smaller state than the past of its input."""
        return self.taps > 1 and self.channels > _FEW_CHANNELS and self.group == 1

    def state_name(self, feature: str | None) -> str:
        """Return what its state is called; ``feature`` is the name of the feature it reads, if it does."""
        if self.carries_sums:
            return "s_fir"
        return f"s_{feature}" if feature and self.channels <= _FEW_CHANNELS else "s_ctx"

    def emit(self, to: Emitter, x: gs.Tensor, feature: str | None, width: int, width_out: int) -> gs.Tensor:
        """Emit the convolution for one frame in the form that carries the smallest state."""
        if self.taps == 1:
            return to.emit_conv(x, self.weight, self.bias, self.node.name, self.group, self.stride, self.pads)
        state_name = self.state_name(feature)
        if self.carries_sums:
            return self._transposed_fir(to, x, state_name, width_out)
        if self.channels <= _FEW_CHANNELS:
            return self._time_as_channels(to, x, state_name, width)
        return self._tap_by_tap(to, x, state_name, width)

    def _time_as_channels(self, to: Emitter, x: gs.Tensor, state_name: str, width: int) -> gs.Tensor:
        """Carry the past frames as further channels, oldest first."""
        name, C = self.node.name, self.channels
        state = to.open_state(state_name, [1, C * (self.taps - 1), 1, width])
        joined = to.emit_concat([state, x], f"{name}/joined")
        to.close_state(state, to.emit_slice(joined, C, C * self.taps, f"{name}/past"))
        weight = np.swapaxes(self.dense(), 1, 2).reshape(len(self.weight), self.taps * C, 1, -1)
        return to.emit_conv(joined, weight, self.bias, name, 1, self.stride, self.pads)

    def _transposed_fir(self, to: Emitter, x: gs.Tensor, state_name: str, width_out: int) -> gs.Tensor:
        """Compute what this frame adds to all coming outputs, and carry those partial sums."""
        name, outputs = self.node.name, len(self.weight)
        newest_first = self.weight[:, :, ::-1]
        weight = np.moveaxis(newest_first, 2, 0).reshape(self.taps * outputs, self.channels, 1, -1)
        bias = np.zeros(self.taps * outputs)
        bias[:outputs] = 0.0 if self.bias is None else self.bias
        state = to.open_state(state_name, [1, outputs * (self.taps - 1), 1, width_out])
        terms = to.emit_conv(x, weight, bias, name, 1, self.stride, self.pads)
        pending = to.append_zeros(state, (1, outputs, 1, width_out), f"{name}/pending")
        sums = to.emit("Add", [terms, pending], f"{name}/sums")
        to.close_state(state, to.emit_slice(sums, outputs, outputs * self.taps, f"{name}/later"))
        return to.emit_slice(sums, 0, outputs, f"{name}/now")

    def _tap_by_tap(self, to: Emitter, x: gs.Tensor, state_name: str, width: int) -> gs.Tensor:
        """One grouped convolution a frame, summed: keeps the groups of wide maps."""
        name, C = self.node.name, self.channels
        state = to.open_state(state_name, [1, C * (self.taps - 1), 1, width])
        past = [
            to.emit_slice(state, C * t, C * (t + 1), f"{name}/past{t}") if self.taps > 2 else state
            for t in range(self.taps - 1)
        ]
        to.close_state(state, to.emit_concat([*past[1:], x], f"{name}/past"))
        total = to.emit_conv(x, self.weight[:, :, -1:], self.bias, name, self.group, self.stride, self.pads)
        for t, frame in enumerate(past):
            term = to.emit_conv(
                frame,
                self.weight[:, :, t : t + 1],
                None,
                f"{name}/tap{t}",
                self.group,
                self.stride,
                self.pads,
            )
            total = to.emit("Add", [total, term], f"{name}/sum{t}")
        return total


def fold_pointwise(conv: TimeConv) -> tuple[TimeConv, gs.Node]:
    """Multiply a grouped time convolution with the 1x1 convolution that alone follows it.

    Pays where the first has few inputs (df_conv0: a quarter of the products) or the second few outputs
    (df_convp: its partial sums become the state). Returns the convolution and the node whose output it
    now computes.
    """
    after = consumers(conv.node.outputs[0])
    if conv.taps == 1 or conv.group == 1 or len(after) != 1 or after[0].op != "Conv":
        return conv, conv.node
    point = TimeConv.read(after[0])
    if not point.is_pointwise:
        return conv, conv.node
    if conv.channels > _FEW_CHANNELS and len(point.weight) >= conv.channels:
        return conv, conv.node
    matrix = point.weight[:, :, 0, 0]
    weight = np.einsum("po,oitf->pitf", matrix, conv.dense())
    bias = point.bias
    if conv.bias is not None:
        bias = matrix @ conv.bias + (0.0 if bias is None else bias)
    return TimeConv(conv.node, weight, bias, 1, conv.stride, conv.pads), after[0]


def polyphase(node: gs.Node) -> tuple[NDArray[Any], NDArray[Any] | None, int]:
    """Return the convolution (weight, bias, group) that gives both phases of an upsampling by two.

    A transposed convolution with kernel 3, stride 2, padding 1 and output padding 1 computes
    ``y[2j] = w1 x[j]`` and ``y[2j + 1] = w2 x[j] + w0 x[j + 1]``: a kernel of two over (x[j], x[j + 1])
    with the outputs (channel, phase).
    """
    weight = constant_value(node.inputs[1])
    bias = constant_value(node.inputs[2]) if len(node.inputs) > 2 and not node.inputs[2].is_empty() else None
    attrs, group = node.attrs, int(node.attrs.get("group", 1))
    wanted = {"strides": [1, 2], "pads": [0, 1, 0, 1], "output_padding": [0, 1]}
    if (
        weight is None
        or weight.shape[2:] != (1, 3)
        or any(list(attrs.get(key, [])) != value for key, value in wanted.items())
        or set(attrs.get("dilations", [1])) != {1}
    ):
        raise UnsupportedGraph(
            f"canonicalise: ConvTranspose {node.name!r} is not an upsampling by two with a 1x3 kernel"
        )
    inputs, per_group = weight.shape[:2]
    w0, w1, w2 = np.moveaxis(weight.reshape(group, inputs // group, per_group, 3), 3, 0)
    phases = np.stack([np.stack([w1, np.zeros_like(w1)], -1), np.stack([w2, w0], -1)], axis=3)
    # (group, in, out, phase, tap) -> (group, out, phase) x in x tap
    kernel = phases.transpose(0, 2, 3, 1, 4).reshape(group * per_group * 2, inputs // group, 1, 2)
    return kernel, None if bias is None else np.repeat(bias, 2), group
