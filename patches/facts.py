"""What a merged graph is made of: parameters, multiply-accumulates, GRUs, time kernels, window."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from dfstream.errors import UnsupportedGraph

from .fold import fold_constants
from .graph import constant_value, export_graph, sections, static_shapes, time_pad
from .gru_state import find_grus
from .last_frame import window_frames

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Facts", "describe", "multiply_accumulates"]


@dataclasses.dataclass(frozen=True)
class Facts:
    """Read from the graph, never from a name.

    Attributes
    ----------
    parameters : int
        Weights of the layers whose results are used.
    macs : mapping of str to int
        Multiply-accumulates of one frame by operator.
    grus : mapping of str to (int, int)
        Layers and hidden size of each section (``enc``, ``erb``, ``df``).
    time_kernels : tuple of int
        Frames each time convolution spans, in the order of the signal.
    window : int or None
        Feature frames that make one frame of all results exact; None where no window can.
    window_reason : str
        Why ``window`` is None.
    """

    parameters: int
    macs: Mapping[str, int]
    grus: Mapping[str, tuple[int, int]]
    time_kernels: tuple[int, ...]
    window: int | None
    window_reason: str

    @property
    def macs_per_hop(self) -> int:
        """Multiply-accumulates of one hop."""
        return sum(self.macs.values())


def describe(merged: gs.Graph) -> Facts:
    """Describe a merged graph.

    Raises
    ------
    UnsupportedGraph
        Not a graph of the family.
    """
    graph = merged.copy()
    fold_constants(graph)
    window, reason = None, ""
    try:
        window = window_frames(graph)
    except UnsupportedGraph as error:
        reason = str(error)
    in_order = sections(graph)
    return Facts(
        parameters=_parameters(graph),
        macs=multiply_accumulates(graph),
        grus={section: (len(layers), layers[0].hidden) for section, layers in find_grus(graph).items()},
        time_kernels=tuple(
            time_pad(node) + 1
            for members in in_order.values()
            for node in graph.nodes
            if id(node) in members and time_pad(node)
        ),
        window=window,
        window_reason=reason,
    )


def multiply_accumulates(graph: gs.Graph, frames: int = 1) -> dict[str, int]:
    """Return the multiply-accumulates of one call by operator."""
    graph = graph.copy()
    fold_constants(graph)
    shapes = static_shapes(export_graph(graph), frames=frames)
    counts: dict[str, int] = {}
    for node in graph.nodes:
        try:
            count = _macs(node, shapes)
        except (KeyError, IndexError, ValueError) as error:
            raise UnsupportedGraph(f"{node.op} {node.name!r}: unusual or unknown shapes") from error
        if count:
            counts[node.op] = counts.get(node.op, 0) + count
    return counts


def _macs(node: gs.Node, shapes: Mapping[str, tuple[int, ...]]) -> int:
    if node.op not in ("Conv", "ConvTranspose", "GRU", "Einsum", "MatMul", "Gemm"):
        return 0
    weight = constant_value(node.inputs[1])
    if node.op == "MatMul":
        first = constant_value(node.inputs[0])
        if weight is None and first is None:
            return 0
        length = weight.shape[-2] if weight is not None else first.shape[-1]  # type: ignore[union-attr]
        return int(math.prod(shapes[node.outputs[0].name]) * length)
    if weight is None:
        return 0
    if node.op == "GRU":
        _, gates, size = weight.shape
        steps, batch, _ = shapes[node.inputs[0].name]
        return int(steps * batch * gates * (size + int(node.attrs["hidden_size"])))
    if node.op == "Conv":
        return math.prod(shapes[node.outputs[0].name]) * math.prod(weight.shape[1:])
    if node.op == "ConvTranspose":
        return math.prod(shapes[node.inputs[0].name]) * math.prod(weight.shape[1:])
    # a linear layer uses each weight once a row
    rows = math.prod(shapes[node.inputs[0].name]) // _inputs_of_linear(node.op, weight)
    return rows * weight.size


def _inputs_of_linear(op: str, weight: Any) -> int:
    return int(math.prod(weight.shape[:2]) if op == "Einsum" else weight.shape[0])


def _parameters(graph: gs.Graph) -> int:
    seen: dict[int, int] = {}
    for node in graph.nodes:
        # some exports store the zeros that a GRU starts from: a state, not a weight
        for tensor in node.inputs[:4] if node.op == "GRU" else node.inputs:
            if isinstance(tensor, gs.Constant) and np.issubdtype(tensor.values.dtype, np.floating):
                seen[id(tensor)] = tensor.values.size if tensor.values.ndim else 0
    return sum(seen.values())
