"""Carry the past of every time convolution from call to call."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from dfstream.errors import UnsupportedGraph
from dfstream.interface import FEATURES, LINKS, state_output

from .graph import (
    BATCH,
    TIME,
    append_slice,
    consumers,
    export_graph,
    replace_input,
    sections,
    static_shapes,
    time_kernel,
    time_pad,
    variable,
)

__all__ = ["cache_causal_context"]


def cache_causal_context(graph: gs.Graph) -> list[str]:
    """Replace each time ``Pad`` by a ``Concat`` with a state input, and give the next state out.

    The exported ``Pad`` puts P zero frames before the first one. In the middle of a signal these must be
    the last P frames of the previous call; zeros as the first state are exactly what the ``Pad`` gave.
    Any number of frames a call is then exact and no frame is computed twice. States are called
    ``ctx_erb``, ``ctx_spec``, ``ctx_c0`` after the tensor they continue, [B, channels, P, width].

    Raises
    ------
    UnsupportedGraph
        A ``Pad`` of another kind, or a convolution that strides, dilates or pads along time itself.
    """
    for node in graph.nodes:
        if node.op in ("Conv", "ConvTranspose"):
            time_kernel(node)  # refuses one that makes its own past
    pads = [node for node in graph.nodes if time_pad(node)]
    if not pads:
        return []
    shapes = static_shapes(export_graph(graph))
    sites = []
    for node, name in zip(pads, _names(graph, pads), strict=True):
        source = node.inputs[0]
        if len(shapes.get(source.name, ())) != 4:
            raise UnsupportedGraph(f"Pad {node.name!r}: the width of its input {source.name!r} is not known")
        _, channels, _, width = shapes[source.name]
        shape = (BATCH, channels, time_pad(node), width)
        _replace(graph, node, name, shape)
        sites.append(f"{name} [{', '.join(map(str, shape))}]")
    graph.cleanup().toposort()
    return sites


def _names(graph: gs.Graph, pads: list[gs.Node]) -> list[str]:
    """Name each context after its tensor, or after its place where that has no name of its own."""
    section_of = {node_id: name for name, members in sections(graph).items() for node_id in members}
    names: dict[int, str] = {}
    # where two convolutions continue one tensor, the longer context takes the plain name
    for node in sorted(pads, key=time_pad, reverse=True):
        tensor = node.inputs[0].name
        if tensor in (*FEATURES, *LINKS):
            base = f"ctx_{tensor.removeprefix('feat_')}"
        else:
            base = f"ctx_{section_of.get(id(node), 'net')}"
        taken = list(names.values())
        names[id(node)] = next(
            n for n in (base, *(f"{base}_{i}" for i in range(2, len(pads) + 2))) if n not in taken
        )
    return [names[id(node)] for node in pads]


def _replace(graph: gs.Graph, pad: gs.Node, name: str, shape: tuple[int | str, ...]) -> None:
    source, padded = pad.inputs[0], pad.outputs[0]
    state, after = variable(name, shape), variable(state_output(name), shape)
    joined = variable(f"{name}/joined")
    for node in consumers(padded):
        replace_input(node, padded, joined)
    graph.nodes.append(gs.Node("Concat", f"{name}/join", {"axis": TIME}, [state, source], [joined]))
    append_slice(graph, joined, -int(shape[TIME]), None, TIME, after, f"{name}/next")
    pad.outputs.clear()
    graph.inputs.append(state)
    graph.outputs.append(after)
