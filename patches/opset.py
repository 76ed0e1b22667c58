"""Raise old exports to one opset."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfstream.errors import UnsupportedGraph

from .graph import constant

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

__all__ = ["OPSET", "raise_opset"]

#: Lowest opset whose shape inference follows the shape arithmetic of the exports; Core ML tools want 13.
OPSET = 14

#: Attributes that became inputs in opset 13, by operator.
_BECAME_INPUT = {"Squeeze": "axes", "Unsqueeze": "axes", "Split": "split"}

#: Operators that compute something else from opset 13 or 14 on; the family does not use them.
_CHANGED = ("BatchNormalization", "Hardmax", "LogSoftmax", "ReduceSum", "Softmax")


def raise_opset(graph: gs.Graph) -> list[str]:
    """Bring a graph of opset 11 to 13 to opset 14, where it computes the same.

    Raises
    ------
    UnsupportedGraph
        An operator that changed its meaning in between.
    """
    if graph.opset >= OPSET:
        return []
    for node in graph.nodes:
        if node.op in _CHANGED:
            raise UnsupportedGraph(f"{node.op} {node.name!r} changed its meaning after opset {graph.opset}")
        key = _BECAME_INPUT.get(node.op)
        if key is not None and graph.opset < 13 and key in node.attrs:
            node.inputs.append(constant(f"{node.name or node.outputs[0].name}/{key}", node.attrs.pop(key)))
    sites = [f"opset {graph.opset} to {OPSET}"]
    graph.opset = OPSET
    graph.import_domains = None  # as read; it would be written in place of the opset
    graph.ir_version = max(graph.ir_version or 0, 7)
    return sites
