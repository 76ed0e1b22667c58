"""Expose the state of every GRU."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs

from dfstream.errors import UnsupportedGraph
from dfstream.interface import FEATURES, LINKS, is_gru_state, state_output

from .graph import BATCH, append_slice, constant_value, producer, sections, variable

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Gru", "expose_gru_layers", "expose_gru_state", "find_grus", "layer_state"]

#: State input of each section; all layers of a section share one tensor [layers, B, hidden].
STATES = {"enc": "h0", "erb": "erb_h0", "df": "df_h0"}

_X, _W, _R, _B, _LENGTHS, _INITIAL = range(6)


@dataclasses.dataclass(frozen=True)
class Gru:
    """One GRU layer: its node and where its first state comes from."""

    node: gs.Node
    initial: str  # "zero" or "input"

    @property
    def hidden(self) -> int:
        """Size of the state."""
        return int(self.node.attrs["hidden_size"])


def expose_gru_state(graph: gs.Graph) -> list[str]:
    """Turn every zero-initialised GRU state into a graph input and output.

    An export builds ``initial_h`` from zeros, so each call forgets the past. Afterwards the caller owns
    the state: feed ``h0``, ``erb_h0``, ``df_h0``, read ``h1``, ``erb_h1``, ``df_h1``, each float32
    [layers, B, hidden]. Sections whose state already is an input are left as they are.

    Raises
    ------
    UnsupportedGraph
        A GRU that is not a plain forward one or starts from something else than zeros or an input.
    """
    sites = []
    for section, grus in find_grus(graph).items():
        starts = {gru.initial for gru in grus}
        if starts == {"zero"}:
            _expose(graph, STATES[section], grus)
            sites.append(f"{STATES[section]} [{len(grus)}, {BATCH}, {grus[0].hidden}]")
        elif len(starts) > 1:
            raise UnsupportedGraph(f"some GRUs of {section} have their state exposed and some have not")
    return sites


def layer_state(section: str, index: int) -> str:
    """Name of the state of one layer by itself: ``erb_h0``, ``erb2_h0``, ..."""
    return f"{section}{index + 1}_h0" if index else STATES[section]


def expose_gru_layers(graph: gs.Graph) -> list[str]:
    """Give every GRU layer a state of its own, [1, B, hidden], whether or not there were states before.

    Raises
    ------
    UnsupportedGraph
        As `expose_gru_state`.
    """
    found = find_grus(graph)
    _hide_states(graph)
    sites = []
    for section, grus in found.items():
        for index, gru in enumerate(grus):
            _expose(graph, layer_state(section, index), [gru])
            sites.append(f"{layer_state(section, index)} [1, {BATCH}, {gru.hidden}]")
    return sites


def _hide_states(graph: gs.Graph) -> None:
    """Make tensors like any others of the states of an export that has them."""
    after = {state_output(name) for name in STATES.values()}
    states = [t for t in graph.inputs if is_gru_state(t.name)] + [t for t in graph.outputs if t.name in after]
    for tensor in states:
        tensor.name += "/exported"
    graph.inputs = [t for t in graph.inputs if not any(t is state for state in states)]
    graph.outputs = [t for t in graph.outputs if not any(t is state for state in states)]


def find_grus(graph: gs.Graph) -> dict[str, list[Gru]]:
    """Return the GRU layers of each section that has any, in the order the signal passes them."""
    graph.toposort()
    found: dict[str, list[Gru]] = {}
    for section, members in sections(graph).items():
        grus = [Gru(n, _initial(graph, n)) for n in graph.nodes if n.op == "GRU" and id(n) in members]
        if grus:
            found[section] = grus
    if not found:
        raise UnsupportedGraph("the graph has no GRU: not a DeepFilterNet export")
    return found


def _initial(graph: gs.Graph, node: gs.Node) -> str:
    """Tell where the first state of a GRU comes from."""
    _check_plain(node)
    if len(node.inputs) <= _INITIAL or node.inputs[_INITIAL].is_empty():
        return "zero"
    for tensor in _origins(node.inputs[_INITIAL]):
        if any(tensor is t for t in graph.inputs if t.name not in (*FEATURES, *LINKS)):
            return "input"
        value = constant_value(tensor)
        if value is not None and not np.any(value):
            return "zero"
        source = producer(tensor)
        if source is not None and source.op == "ConstantOfShape":
            fill = source.attrs.get("value")
            if fill is None or not np.any(fill.values):
                return "zero"
    raise UnsupportedGraph(f"GRU {node.name!r}: its first state is neither zero nor an input")


def _origins(tensor: gs.Tensor) -> Iterator[gs.Tensor]:
    """Walk back through the slicing of layers out of one tensor."""
    yield tensor
    node = producer(tensor)
    while node is not None and node.op in ("Slice", "Expand", "Identity", "Unsqueeze", "Squeeze", "Gather"):
        tensor = node.inputs[0]
        yield tensor
        node = producer(tensor)


def _check_plain(node: gs.Node) -> None:
    if node.attrs.get("direction", "forward") != "forward":
        raise UnsupportedGraph(f"GRU {node.name!r} is not a forward one: it cannot stream")
    if node.attrs.get("layout", 0) or "clip" in node.attrs or "activations" in node.attrs:
        raise UnsupportedGraph(f"GRU {node.name!r} has a layout, clip or activations of its own")
    if len(node.inputs) > _LENGTHS and not node.inputs[_LENGTHS].is_empty():
        raise UnsupportedGraph(f"GRU {node.name!r} has sequence lengths")
    hidden = node.attrs.get("hidden_size", 0)
    for index in (_W, _R):
        weight = constant_value(node.inputs[index])
        if weight is None:
            raise UnsupportedGraph(f"GRU {node.name!r}: its weights are not constants")
        if hidden < 1 or weight.ndim != 3 or weight.shape[:2] != (1, 3 * hidden):
            raise UnsupportedGraph(f"GRU {node.name!r}: its weights do not have the shapes of {hidden} units")


def _expose(graph: gs.Graph, name: str, grus: list[Gru]) -> None:
    hidden = {gru.hidden for gru in grus}
    if len(hidden) > 1:
        raise UnsupportedGraph(
            f"{name}: layers of different hidden sizes {sorted(hidden)} do not fit one tensor"
        )
    shape: list[int | str] = [len(grus), BATCH, hidden.pop()]
    state, after = variable(name, shape), variable(state_output(name), shape)
    layers = [_take_layer(graph, state, i) for i in range(len(grus))] if len(grus) > 1 else [state]
    finals = []
    for gru, layer in zip(grus, layers, strict=True):
        _set_initial(gru.node, layer)
        finals.append(_final(gru.node))
    if len(finals) > 1:
        graph.nodes.append(gs.Node("Concat", f"{name}/next", {"axis": 0}, finals, [after]))
    else:
        graph.nodes.append(gs.Node("Identity", f"{name}/next", {}, finals, [after]))
    graph.inputs.append(state)
    graph.outputs.append(after)
    graph.cleanup().toposort()


def _take_layer(graph: gs.Graph, state: gs.Variable, index: int) -> gs.Variable:
    layer = variable(f"{state.name}/layer{index}")
    append_slice(graph, state, index, index + 1, 0, layer, layer.name)
    return layer


def _set_initial(node: gs.Node, state: gs.Tensor) -> None:
    while len(node.inputs) <= _INITIAL:
        node.inputs.append(gs.Variable.empty())
    node.inputs[_INITIAL] = state


def _final(node: gs.Node) -> gs.Tensor:
    """Return the GRU's second output, its last state."""
    if len(node.outputs) < 2:
        node.outputs.append(variable(f"{node.outputs[0].name}/final"))
    elif node.outputs[1].is_empty():
        node.outputs[1] = variable(f"{node.outputs[0].name}/final")
    return node.outputs[1]
