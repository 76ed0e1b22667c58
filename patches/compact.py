"""The one-frame graph for the processor: as the canonical one, but with the GRU operator kept.

What runs on a CPU has a fast GRU of its own, and wants the states as the other modes have them: ``h0``,
``erb_h0``, ``df_h0`` [layers, 1, hidden] instead of one ``h``, results under the export's names.
`dfstream.net` compiles this graph.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs

from dfstream.errors import UnsupportedGraph
from dfstream.interface import RESULTS

from .canonical import VECTOR, Lowering
from .fold import fold_constants
from .graph import constant_value
from .gru_state import STATES, find_grus
from .recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["CompactLowering", "compact", "compact_recipe"]


def compact_recipe() -> Recipe:
    """Return how the compact one-frame graph is made."""
    return Recipe("compact", ("combined_compact",), (fold_constants,), compact)


def compact(graph: gs.Graph) -> dict[str, gs.Graph]:
    """Build the compact one-frame graph of a merged graph, ``combined_compact``.

    Parameters
    ----------
    graph : Graph
        Merged and folded; whether its GRU states are exposed does not matter.

    Raises
    ------
    UnsupportedGraph
        Names the operator that has no such form.
    """
    return {"combined_compact": CompactLowering(graph).run()}


class CompactLowering(Lowering):
    """The canonical walk with GRUs left whole and a state per section."""

    results = RESULTS

    def open_hidden(self) -> None:
        """Give every GRU layer its part of its section's state."""
        self.layers: dict[int, gs.Tensor] = {}
        self._stacks: list[tuple[gs.Variable, list[int]]] = []
        for section, layers in find_grus(self.source).items():
            state = self.open_state(STATES[section], [len(layers), 1, layers[0].hidden])
            self._stacks.append((state, [id(gru.node) for gru in layers]))
            for index, gru in enumerate(layers):
                bounds = [np.array([n]) for n in (index, index + 1, 0)]
                layer = self.emit("Slice", [state, *bounds], f"{state.name}/layer{index}")
                self.layers[id(gru.node)] = layer if len(layers) > 1 else state

    def gru(self, node: gs.Node) -> None:
        """Keep the operator: a frame in, [1, 1, hidden], and its new state out."""
        if not node.attrs.get("linear_before_reset", 0):
            raise UnsupportedGraph(f"compact: GRU {node.name!r} resets before the matrix product")
        row = self.row(node.inputs[0])
        weights = [constant_value(t) for t in node.inputs[1:4] if not t.is_empty()]
        operands = [gs.Constant(f"{node.name}/{i}", w) for i, w in enumerate(weights, 1) if w is not None]
        after = gs.Variable(f"{node.name}/state", np.dtype(np.float32))
        missing = [gs.Variable.empty()] * (4 - len(operands))  # biases if there are none, sequence lengths
        inputs = [row, *operands, *missing, self.layers[id(node)]]
        attrs = {"hidden_size": node.attrs["hidden_size"], "linear_before_reset": 1}
        self.nodes.append(gs.Node("GRU", node.name, attrs, inputs, [gs.Variable.empty(), after]))
        self.layers[id(node)] = after
        state = self.from_row(after, int(node.attrs["hidden_size"]))
        for output in node.outputs:
            self.held[output.name] = (state, VECTOR)

    def row(self, tensor: gs.Tensor) -> gs.Tensor:
        """Return a vector as a GRU reads it, [1, 1, N]."""
        return self.emit("Reshape", [self.vector(tensor), np.array([1, 1, -1])], f"{tensor.name}/row")

    def from_row(self, state: gs.Variable, hidden: int) -> gs.Tensor:  # noqa: ARG002
        """Return a new state [1, 1, hidden] as a vector."""
        return self.emit("Reshape", [state, np.array([1, -1, 1, 1])], f"{state.name}/vector")

    def close_hidden(self) -> None:
        """Put the layers' new states together, section by section."""
        for state, layers in self._stacks:
            afters = [self.layers[layer] for layer in layers]
            self.close_state(state, self._stacked(afters, f"{state.name}/next"))

    def _stacked(self, layers: Sequence[gs.Tensor], name: str) -> gs.Tensor:
        if len(layers) == 1:
            return layers[0]
        joined = gs.Variable(name, np.dtype(np.float32))
        self.nodes.append(gs.Node("Concat", name, {"axis": 0}, list(layers), [joined]))
        return joined
