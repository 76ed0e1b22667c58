"""Carry the past of time convolutions through blocks of frames in the states of the lean one-frame graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfstream.errors import UnsupportedGraph
from dfstream.interface import FEATURES, state_output

from .canonical_conv import TimeConv, fold_pointwise
from .emitting import Emitter, sizes
from .graph import BATCH, TIME, export_graph, producer, static_shapes, time_pad, variable

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx_graphsurgeon as gs

__all__ = ["carry_lean_context"]


def carry_lean_context(graph: gs.Graph) -> list[str]:
    """Replace each time ``Pad`` and its convolution by one that continues from a state of the lean graph.

    Names, shapes and meaning of the states are those of `dfstream.patches.lean`, so that calls of one
    frame there and calls of many here may take turns. A convolution of few channels, or a grouped one,
    gets its last frames in front; of others the sums that this block adds to frames to come are kept.
    The 1x1 convolution behind is multiplied in where the lean graph does so.

    Raises
    ------
    UnsupportedGraph
        A convolution of another kind.
    """
    graph.toposort()
    shapes = static_shapes(export_graph(graph))
    emit = Emitter("context/")
    sites = []
    for node in list(graph.nodes):
        pad = producer(node.inputs[0]) if node.op == "Conv" else None
        if pad is None or not time_pad(pad):
            continue
        source = pad.inputs[0]
        conv, last = fold_pointwise(TimeConv.read(node))
        if time_pad(pad) != conv.taps - 1:
            raise UnsupportedGraph(
                f"Conv {node.name!r} spans {conv.taps} frames after a Pad of {time_pad(pad)}"
            )
        result = last.outputs[0]
        widths = [_width(shapes, tensor) for tensor in (source, node.outputs[0])]
        for replaced in (node, last):
            replaced.outputs.clear()
        feature = source.name.removeprefix("feat_") if source.name in FEATURES else None
        name = _unused(graph, conv.state_name(feature))
        carry, width = (_carry_sums, widths[1]) if conv.carries_sums else (_carry_frames, widths[0])
        state, after = carry(emit, conv, source, result, name, width)
        graph.inputs.append(state)
        graph.outputs.append(after)
        sites.append(f"{name} [{', '.join(map(str, state.shape))}]")
    graph.nodes.extend(emit.nodes)
    graph.cleanup().toposort()
    return sites


def _width(shapes: Mapping[str, tuple[int, ...]], tensor: gs.Tensor) -> int:
    if len(shapes.get(tensor.name, ())) != 4:
        raise UnsupportedGraph(f"the width of {tensor.name!r} is not known")
    return shapes[tensor.name][3]


def _unused(graph: gs.Graph, name: str) -> str:
    taken = {tensor.name for tensor in graph.inputs}
    return next(n for n in (name, *(f"{name}_{i}" for i in range(2, 99))) if n not in taken)


def _carry_frames(
    emit: Emitter, conv: TimeConv, source: gs.Tensor, result: gs.Tensor, name: str, width: int
) -> tuple[gs.Variable, gs.Variable]:
    """Put the last frames in front; in the state channels lie inside frames."""
    past, channels = conv.taps - 1, conv.channels
    state = variable(name, [BATCH, past * channels, 1, width])
    before = emit.reshape(state, (0, past, channels, width), f"{name}/by_frame")
    before = emit("Transpose", [before], f"{name}/past", perm=[0, 2, 1, 3])
    joined = emit("Concat", [before, source], f"{name}/joined", axis=TIME)
    _convolve(emit, conv, joined, result, padded=0)
    after = emit.slice(joined, -past, None, TIME, f"{name}/newest")
    return state, _close(emit, after, state)


def _carry_sums(
    emit: Emitter, conv: TimeConv, source: gs.Tensor, result: gs.Tensor, name: str, width: int
) -> tuple[gs.Variable, gs.Variable]:
    """Convolve with silence before and behind, and add what former blocks had left over."""
    past, channels = conv.taps - 1, len(conv.weight)
    state = variable(name, [BATCH, past * channels, 1, width])
    before = emit.reshape(state, (0, past, channels, width), f"{name}/by_frame")
    before = emit("Transpose", [before], f"{name}/pending", perm=[0, 2, 1, 3])
    frames = emit.length(source, TIME, f"{name}/frames")
    amounts = emit("Concat", [sizes(0, 0, 0, 0, 0, 0), frames, sizes(0)], f"{name}/amounts", axis=0)
    terms = variable(f"{name}/terms")
    _convolve(emit, conv, source, terms, padded=past)
    pending = emit("Pad", [before, amounts], f"{name}/padded")
    sums = emit("Add", [terms, pending], f"{name}/sums")
    bias = 0.0 if conv.bias is None else conv.bias.reshape(1, -1, 1, 1)
    emit.into(result, "Add", [emit.slice(sums, 0, -past, TIME, f"{name}/now"), bias])
    return state, _close(emit, emit.slice(sums, -past, None, TIME, f"{name}/later"), state)


def _convolve(emit: Emitter, conv: TimeConv, x: gs.Tensor, result: gs.Tensor, padded: int) -> None:
    operands = [x, conv.weight] if padded or conv.bias is None else [x, conv.weight, conv.bias]
    left, right = conv.pads
    emit.into(
        result, "Conv", operands, group=conv.group, strides=[1, conv.stride], dilations=[1, 1],
        pads=[padded, left, padded, right], kernel_shape=list(conv.weight.shape[2:]),
    )  # fmt: skip


def _close(emit: Emitter, after: gs.Tensor, state: gs.Variable) -> gs.Variable:
    """Emit the next state: of [B, C, frames, W]."""
    output = variable(state_output(state.name), state.shape)
    turned = emit("Transpose", [after], f"{state.name}/turned", perm=[0, 2, 1, 3])
    emit.into(output, "Reshape", [turned, sizes(*(-1 if n == BATCH else n for n in state.shape))])
    return output
