"""Let convolutions see a window of frames while GRUs and results advance by one."""

from __future__ import annotations

import math

import onnx_graphsurgeon as gs

from dfstream.errors import UnsupportedGraph
from dfstream.interface import FEATURES, RESULTS

from .graph import TIME, ancestors, append_slice, consumers, replace_input, time_kernel, time_pad, variable
from .gru_state import find_grus

__all__ = ["check_window_exact", "keep_last_frame", "window_frames"]


def keep_last_frame(graph: gs.Graph) -> list[str]:
    """Insert ``[-n:]`` slices along time so that each call of a window computes its last frame only.

    How many of the last frames each tensor must have follows from the results backwards: one frame of
    every result and every GRU, k frames in front of a convolution with time kernel k. A slice goes
    where a tensor has more frames than its reader needs. The slice in front of a time convolution comes
    *behind* its ``Pad``: a window shorter than the exact one (the first calls of a stream) is then
    completed by the zeros the export would have put there, and the first frames are exact too.

    The deep-filter pathway's own time kernel is why its input keeps several frames: cutting it to one,
    as is often done, loses the convolution's past.

    Raises
    ------
    UnsupportedGraph
        A time convolution behind a GRU: its past cannot come from a window of features.
    """
    check_window_exact(graph)
    needed = _frames_needed(graph)
    if all(_is_sliced(t) for t in graph.inputs if t.name in FEATURES):
        return []
    sites = []
    supply = {id(t): math.inf for t in graph.inputs if t.name in FEATURES}
    for node in list(graph.toposort().nodes):
        for tensor in _data_inputs(node):
            have, want = supply.get(id(tensor), 1), _reads(node, needed)
            if have > want and node.op != "Pad":
                supply[id(_slice_edge(graph, tensor, node, want))] = want
                sites.append(f"{tensor.name}[-{want}:] -> {node.op} {node.name}")
        for tensor in node.outputs:
            supply[id(tensor)] = _supplies(node, supply, needed)
    graph.cleanup().toposort()
    return sites


def window_frames(graph: gs.Graph) -> int:
    """Return how many feature frames one exact frame of all results needs.

    Raises
    ------
    UnsupportedGraph
        As `keep_last_frame`.
    """
    check_window_exact(graph)
    needed = _frames_needed(graph)
    return max(needed.get(id(t), 1) for t in graph.inputs if t.name in FEATURES)


def check_window_exact(graph: gs.Graph) -> None:
    """Refuse a graph with a time convolution behind a GRU.

    Raises
    ------
    UnsupportedGraph
        Names the convolution.
    """
    grus = [gru.node for layers in find_grus(graph).values() for gru in layers]
    behind = {id(gru) for gru in grus}
    for node in graph.nodes:
        if time_pad(node) and ancestors(node.inputs[0]) & behind:
            raise UnsupportedGraph(
                f"Pad {node.name!r} serves a convolution behind a GRU: no window of features holds its past",
                hint="use the mode incremental or streaming, which carry it as a state",
            )


def _frames_needed(graph: gs.Graph) -> dict[int, int]:
    """Return for every tensor (by id) how many of its last frames its readers need together."""
    needed = {id(t): 1 for t in graph.outputs if t.name in RESULTS}
    for node in reversed(graph.toposort().nodes):
        for tensor in _data_inputs(node):
            needed[id(tensor)] = max(needed.get(id(tensor), 0), _reads(node, needed))
    return needed


def _reads(node: gs.Node, needed: dict[int, int]) -> int:
    """Return how many last frames a node must read to give what is needed of its outputs."""
    if node.op in ("GRU", "Shape"):
        return 1
    after = max((needed.get(id(t), 1) for t in node.outputs), default=1)
    if node.op == "Conv":
        return after + time_kernel(node) - 1
    return after  # a Pad too: what it adds must be past frames, not zeros, for an exact window


def _supplies(node: gs.Node, supply: dict[int, float], needed: dict[int, int]) -> float:
    """Return how many frames a node's output has, at most, once its inputs are sliced."""
    inputs = [min(supply.get(id(t), 1), math.inf) for t in _data_inputs(node)]
    if time_pad(node):
        return max(inputs) + time_pad(node)
    have = min(max(inputs, default=1), _reads(node, needed))
    return have - (time_kernel(node) - 1) if node.op == "Conv" else have


def _data_inputs(node: gs.Node) -> list[gs.Variable]:
    """Return the inputs that carry frames; constants do not, nor does the state of a GRU."""
    tensors = node.inputs[:1] if node.op in ("GRU", "Reshape", "Pad", "Slice") else node.inputs
    return [t for t in tensors if isinstance(t, gs.Variable) and not t.is_empty()]


def _slice_edge(graph: gs.Graph, tensor: gs.Variable, reader: gs.Node, frames: int) -> gs.Variable:
    name = f"{tensor.name}/last{frames}"
    present = next((n.outputs[0] for n in consumers(tensor) if n.name == name), None)
    if present is None:
        present = variable(name)
        append_slice(graph, tensor, -frames, None, TIME, present, name)
    replace_input(reader, tensor, present)
    return present


def _is_sliced(tensor: gs.Variable) -> bool:
    """Whether everything behind a feature input is cut to its last frames already."""
    frontier = consumers(tensor)
    inner = [n for node in frontier for n in (consumers(node.outputs[0]) if time_pad(node) else [node])]
    return bool(inner) and all(node.op == "Slice" for node in inner)
