"""Merge the three graphs of an export into one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_graphsurgeon as gs

from dfstream.errors import UnsupportedGraph
from dfstream.interface import EXPORTS, FEATURES, LINKS, RESULTS, state_output

from .graph import BATCH, FRAMES, consumers, replace_input
from .opset import OPSET, raise_opset

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["merge"]

#: What each graph may read and must give, besides its own states.
_READS = {"enc": FEATURES, "erb_dec": ("emb", "e3", "e2", "e1", "e0"), "df_dec": ("emb", "c0")}
_GIVES = {"enc": (*LINKS, "lsnr"), "erb_dec": ("m",), "df_dec": ("coefs",)}


def merge(parts: Mapping[str, gs.Graph]) -> gs.Graph:
    """Join ``enc``, ``erb_dec`` and ``df_dec`` at the tensors they share by name.

    The results are ``lsnr``, ``m`` and ``coefs``; further outputs (DFN2's unused ``alpha``, without a
    name of its own in the exports) are dropped. States that a graph already exposes stay inputs and
    outputs. Nodes and inner tensors get the graph's name in front.

    Raises
    ------
    UnsupportedGraph
        A graph is missing, reads or gives something else, or the opsets do not go together.
    """
    missing = [name for name in EXPORTS if name not in parts]
    if missing:
        raise UnsupportedGraph(f"merge: {', '.join(missing)} missing, an export has {', '.join(EXPORTS)}")
    opset = _common_opset(parts)
    links: dict[str, gs.Tensor] = {}
    nodes, inputs, outputs = [], [], []
    for name in EXPORTS:
        graph = parts[name].copy()
        raise_opset(graph)
        _check_interface(name, graph)
        graph.outputs = [t for t in graph.outputs if t.name in _GIVES[name] or _is_next_state(graph, t.name)]
        graph.cleanup().toposort()
        _prefix(graph, name)
        for tensor in list(graph.inputs):
            if tensor.name in links:
                _join(tensor, links[tensor.name])
            else:
                inputs.append(tensor)
        links |= {t.name: t for t in graph.outputs if t.name in LINKS}
        outputs += [t for t in graph.outputs if t.name not in LINKS]
        nodes += graph.nodes
    order = {name: index for index, name in enumerate((*FEATURES, *RESULTS))}
    merged = gs.Graph(
        nodes=nodes,
        inputs=sorted(inputs, key=lambda t: order.get(t.name, len(order))),
        outputs=sorted(outputs, key=lambda t: order.get(t.name, len(order))),
        name="dfstream",
        opset=opset,
        ir_version=parts["enc"].ir_version,
    )
    _declare(merged)
    return merged.cleanup().toposort()


def _common_opset(parts: Mapping[str, gs.Graph]) -> int:
    opsets = {max(OPSET, parts[name].opset) for name in EXPORTS}
    if len(opsets) > 1:
        raise UnsupportedGraph(f"merge: the graphs have different opsets {sorted(opsets)}")
    return int(opsets.pop())


def _check_interface(name: str, graph: gs.Graph) -> None:
    reads = {t.name for t in graph.inputs}
    gives = {t.name for t in graph.outputs}
    for wanted, found, verb in ((_READS[name], reads, "input"), (_GIVES[name], gives, "output")):
        for tensor in wanted:
            if tensor not in found:
                raise UnsupportedGraph(f"merge: {name} has no {verb} {tensor!r}, it has {sorted(found)}")
    for extra in sorted(reads - set(_READS[name])):
        if state_output(extra) not in gives:
            raise UnsupportedGraph(
                f"merge: {name} has the input {extra!r} but no output {state_output(extra)!r}"
            )


def _is_next_state(graph: gs.Graph, name: str) -> bool:
    return any(state_output(t.name) == name for t in graph.inputs)


def _prefix(graph: gs.Graph, name: str) -> None:
    public = {id(t) for t in (*graph.inputs, *graph.outputs)}
    for items in graph.nodes, [t for t in graph.tensors().values() if id(t) not in public]:
        taken: set[str] = set()
        for item in items:
            item.name = f"{name}/{item.name.lstrip('/')}"
            while item.name in taken:  # "x" and "/x" may both be there
                item.name += "_"
            taken.add(item.name)


def _join(reader: gs.Tensor, source: gs.Tensor) -> None:
    for node in consumers(reader):
        replace_input(node, reader, source)


def _declare(graph: gs.Graph) -> None:
    """Give the results the shapes they have; what exporters write on outputs means nothing."""
    bands = next(t for t in graph.inputs if t.name == "feat_erb").shape[-1]
    bins = next(t for t in graph.inputs if t.name == "feat_spec").shape[-1]
    shapes = {
        "feat_erb": [1, 1, FRAMES, bands],
        "feat_spec": [1, 2, FRAMES, bins],
        "lsnr": [BATCH, FRAMES, 1],
        "m": [BATCH, 1, FRAMES, bands],
        "coefs": [BATCH, FRAMES, bins, "2 * taps"],
    }
    for tensor in (*graph.inputs, *graph.outputs):
        tensor.shape = shapes.get(tensor.name, tensor.shape)
