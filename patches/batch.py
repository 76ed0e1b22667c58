"""Make the batch axis dynamic."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfstream.interface import batch_axis, state_output

from .graph import BATCH, constant, constant_value

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

__all__ = ["free_batch"]


def free_batch(graph: gs.Graph) -> list[str]:
    """Declare the batch axis of every input and state as the symbol B: one call then serves many streams.

    Exports declare batch 1 on their inputs; some also write it as the first size of a ``Reshape``, which
    becomes "as the input has it". Axis 0 of data and contexts, axis 1 of GRU states.
    """
    sites = []
    outputs = {tensor.name: tensor for tensor in graph.outputs}
    for tensor in graph.inputs:
        shape, axis = list(tensor.shape), batch_axis(tensor.name)
        if shape[axis] != BATCH:
            shape[axis] = BATCH
            tensor.shape = shape
            sites.append(tensor.name)
        if state_output(tensor.name) in outputs:
            outputs[state_output(tensor.name)].shape = list(shape)
    return sites + [f"Reshape {node.name}" for node in graph.nodes if _free_reshape(node)]


def _free_reshape(node: gs.Node) -> bool:
    """Let a Reshape to [1, -1, ...] copy its first size from its input."""
    shape = constant_value(node.inputs[1]) if node.op == "Reshape" else None
    if shape is None or shape.ndim != 1 or len(shape) < 2 or node.attrs.get("allowzero", 0):
        return False
    if shape[0] != 1 or -1 not in shape:
        return False
    node.inputs[1] = constant(f"{node.name}/shape", [0, *shape[1:]])
    return True
