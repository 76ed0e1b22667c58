"""Reads the compact graph and writes the program: one rule for each ONNX operator it may hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dfstream.interface import FEATURES, RESULTS, is_gru_state, state_inputs, state_output
from dfstream.net.layout import Activation, Kind, Storage
from dfstream.net.packing import PANEL, Store, panels, quantised
from dfstream.net.program import Operation, Program, View, in_phases
from dfstream.net.views import Views, numbers, refuse
from dfstream.patches.graph import constant_value, consumers, import_graph

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import onnx
    import onnx_graphsurgeon as gs
    from numpy.typing import NDArray

    from dfstream.net.packing import Precision
    from dfstream.net.views import Shape

__all__ = ["translate"]

_ACTIVATIONS = {"Relu": Activation.RELU, "Sigmoid": Activation.SIGMOID, "Tanh": Activation.TANH}
_STORAGES = {
    "float32": Storage.FLOAT32, "int16": Storage.INT16, "fp16": Storage.FLOAT16, "int8": Storage.INT8
}  # fmt: skip


def translate(
    model: onnx.ModelProto, sections: Mapping[str, str], precision: Precision = "float32"
) -> Program:
    """Translate a compact graph.

    Parameters
    ----------
    model : ModelProto
        ``combined_compact``, see `dfstream.patches.compact`.
    sections : mapping of str to str
        Which part of the network (``enc``, ``erb``, ``df``) each of its states belongs to.
    precision : str
        Storage of the GRUs' weights.

    Raises
    ------
    UnsupportedGraph
        Names the operator that has no kernel.
    """
    return _Translation(import_graph(model), precision).run(sections)


class _Translation(Views):
    """One walk over the graph in the order of the signal."""

    def __init__(self, graph: gs.Graph, precision: Precision) -> None:
        super().__init__()
        self.graph, self.precision = graph.toposort(), precision
        self.weights, self.stored = Store(), Store()
        self.done: set[int] = set()
        #: States that are still to be updated.
        self.updates: list[str] = []
        #: Partial sums with room for the last ones: their state, and how many the last ones are.
        self.begun: dict[str, tuple[str, int]] = {}

    def run(self, sections: Mapping[str, str]) -> Program:
        inputs = {t.name: t for t in self.graph.inputs}
        names = state_inputs(inputs, [t.name for t in self.graph.outputs])
        self.updates = [name for name in names if not is_gru_state(name)]
        states = self.place_states({name: inputs[name].shape for name in names}, sections)
        for name in FEATURES:
            _, channels, _, width = inputs[name].shape
            self.hold(name, self.fresh(width, channels), (channels, 1, width))
        for node in self.graph.nodes:
            if id(node) not in self.done:
                self._rules().get(node.op, refuse)(node)
        for name in self.updates:
            self.emit(Kind.COPY, self.views[state_output(name)], self.views[name])
        feat_erb, feat_spec = (self.views[name] for name in FEATURES)
        lsnr, m, coefs = (self.dense(self.views[name]) for name in RESULTS)
        return Program(
            phases=in_phases(self.operations),
            inputs=(feat_erb, feat_spec),
            results=(lsnr, m, coefs),
            states=states,
            weights=self.weights.joined(np.float32),
            stored=self.stored.joined(np.uint8),
            storage=int(_STORAGES[self.precision]),
        )

    def _rules(self) -> dict[str, Callable[[gs.Node], None]]:
        return {
            "Add": self._arithmetic, "Mul": self._arithmetic, **dict.fromkeys(_ACTIVATIONS, self._activation),
            "Concat": self._concat, "Conv": self._conv, "GRU": self._gru, "Identity": self.identity,
            "Reshape": self.reshape, "Slice": self.slice, "Transpose": self.transpose,
        }  # fmt: skip

    def _activated(self, node: gs.Node) -> tuple[gs.Tensor, Activation]:
        """Take in an activation that alone reads a result; return the tensor computed with it."""
        result = node.outputs[0]
        after = consumers(result)
        if (
            len(after) == 1
            and after[0].op in _ACTIVATIONS
            and not any(result is t for t in self.graph.outputs)
        ):
            self.done.add(id(after[0]))
            return after[0].outputs[0], _ACTIVATIONS[after[0].op]
        return result, Activation.NONE

    # -- element by element ------------------------------------------------------------------------------

    def _activation(self, node: gs.Node) -> None:
        name = node.inputs[0].name
        view = self.views[name]
        result = self.fresh(view.positions, view.channels)
        self.emit(Kind.COPY, view, result, activation=_ACTIVATIONS[node.op])
        self.hold(node.outputs[0], result, self.shapes[name])

    def _arithmetic(self, node: gs.Node) -> None:
        if any(t.name in self.begun for t in node.inputs):
            self._partial_sums(node)
            return
        held = [t.name for t in node.inputs if t.name in self.views]
        view, shape = self.views[held[0]], self.shapes[held[0]]
        result = self.fresh(view.positions, view.channels)
        tensor, activation = self._activated(node)
        if len(held) == 1:
            at = self.weights.add(self._scale_and_offset(node))
            self.emit(Kind.SCALE, view, result, weights=at, bias=at + 1, activation=activation)
        elif node.op == "Add" and shape == self.shapes[held[1]]:
            self.emit(Kind.ADD, view, result, self.views[held[1]], activation=activation)
        else:
            refuse(node, "of two maps that is not a plain sum")
        self.hold(tensor, result, shape)

    def _scale_and_offset(self, node: gs.Node) -> NDArray[np.float32]:
        value = next(constant_value(t) for t in node.inputs if t.name not in self.views)
        if value is None or value.size != 1:
            refuse(node, "with a constant that is not one number")
        number = value.item()
        return np.array([number, 0.0] if node.op == "Mul" else [1.0, number], np.float32)

    def _concat(self, node: gs.Node) -> None:
        if node.attrs["axis"] == 0:  # layers of a state, each of which its GRU updates in place
            return
        first, last = node.inputs[0].name, constant_value(node.inputs[-1])
        if first in self.updates and last is not None and len(node.inputs) == 2 and not np.any(last):
            self.begun[node.outputs[0].name] = first, last.shape[1]
            return
        if any(t.name not in self.views for t in node.inputs):
            refuse(node, "of a constant")
        shapes = [self.shapes[t.name] for t in node.inputs]
        channels, (_, H, W) = sum(shape[0] for shape in shapes), shapes[0]
        joined, at = self.fresh(H * W, channels), 0
        for tensor, shape in zip(node.inputs, shapes, strict=True):
            part = View(joined.buffer, at, H * W, shape[0], channels)
            self.emit(Kind.COPY, self.views[tensor.name], part)
            at += shape[0]
        self.hold(node.outputs[0], joined, (channels, H, W))

    def _partial_sums(self, node: gs.Node) -> None:
        """Take in what a time convolution carries: ``[state, 0] + terms``, whose first part is complete."""
        begun, terms = sorted(node.inputs, key=lambda t: t.name not in self.begun)
        name, done = self.begun[begun.name]
        parts = {int(numbers(n, 1)[0]): n for n in consumers(node.outputs[0]) if n.op == "Slice"}
        known = node.op == "Add" and terms.name in self.views and set(parts) == {0, done}
        if not known or parts[done].outputs[0].name != state_output(name):
            refuse(node, "carries partial sums in an unknown form")
        state, (_, H, W) = self.views[name], self.shapes[terms.name]
        tensor, activation = self._activated(parts[0])
        result = self.fresh(state.positions, done)
        self.emit(Kind.SUMS, self.dense(self.views[terms.name]), result, state, activation=activation)
        self.hold(tensor, result, (done, H, W))
        self.updates.remove(name)
        self.done |= {id(n) for n in parts.values()}

    # -- convolutions --------------------------------------------------------------------------------------

    def _conv(self, node: gs.Node) -> None:
        weight, (channels, height, width) = numbers(node, 1), self.shapes[node.inputs[0].name]
        if weight.shape[2] != 1 or height != 1:
            refuse(node, "not over the positions of one frame")
        outputs, _, _, taps = weight.shape
        bias = numbers(node, 2) if len(node.inputs) > 2 else np.zeros(outputs, np.float32)
        group, stride = int(node.attrs.get("group", 1)), int(node.attrs.get("strides", [1, 1])[1])
        _, before, _, after = node.attrs.get("pads", [0, 0, 0, 0])
        x = self.padded(self.views[node.inputs[0].name], before, after)
        if end := self._interleaving(node):
            self._upsampling(end, x, weight, bias, group)
            return
        tensor, activation = self._activated(node)
        positions = (width + before + after - taps) // stride + 1
        y = self.fresh(positions, outputs)
        fields = {"taps": taps, "stride": stride, "activation": activation, "bias": self._floats(bias)}
        if group == outputs == channels:
            self.emit(Kind.DEPTHWISE, x, y, weights=self._floats(weight[:, 0, 0].T), **fields)
        elif width == positions == taps == 1 and outputs > group > 1:
            self._linear_in_groups(x, y, weight[:, :, 0, 0], group, fields)
        else:
            fields["weights"] = self._panels(_dense(weight, group))
            self.operations.append(Operation(Kind.CONV, x, y, None, fields, for_all=width == positions == 1))
        self.hold(tensor, y, (outputs, 1, positions))

    def _linear_in_groups(
        self, x: View, y: View, weight: NDArray[Any], group: int, fields: dict[str, int]
    ) -> None:
        """A product for each group; the operation speaks of one group's sizes."""
        outputs, inputs = weight.shape
        fields["weights"] = self._floats(np.concatenate([panels(part) for part in np.split(weight, group)]))
        fields["groups"] = group
        a = View(x.buffer, x.offset, 1, inputs, inputs)
        b = View(y.buffer, y.offset, 1, outputs // group, outputs // group)
        self.operations.append(Operation(Kind.GROUPED, a, b, None, fields, for_all=True))

    def _interleaving(self, node: gs.Node) -> gs.Node | None:
        """Return the end of an interleaving of two phases that follows a convolution, and take it in."""
        found: list[gs.Node] = []
        for op in ("Reshape", "Transpose", "Reshape"):
            after = consumers((found[-1] if found else node).outputs[0])
            if len(after) != 1 or after[0].op != op:
                return None
            found.append(after[0])
        if list(found[1].attrs["perm"]) != [0, 1, 3, 2]:
            return None
        self.done |= {id(n) for n in found}
        return found[-1]

    def _upsampling(
        self, end: gs.Node, x: View, weight: NDArray[Any], bias: NDArray[Any], group: int
    ) -> None:
        """Two phases of each channel; with the phase in front of the channel, they lie interleaved."""
        outputs, _, _, taps = weight.shape
        channels, shape = outputs // 2, (outputs // 2, 1, 2 * x.positions)
        by_phase = np.arange(outputs).reshape(channels, 2).T.ravel()
        tensor, activation = self._activated(end)
        y = self.fresh(x.positions, outputs)
        fields = {"bias": self._floats(bias[by_phase]), "taps": taps, "activation": activation}
        if group == channels == x.channels and taps == 2:
            kernel = weight[by_phase, 0, 0].T  # [tap][phase, channel]
            self.emit(Kind.UPSAMPLE, x, y, weights=self._floats(kernel), **fields)
        else:
            self.emit(Kind.CONV, x, y, weights=self._panels(_dense(weight, group)[by_phase]), **fields)
        self.hold(tensor, View(y.buffer, 0, shape[2], channels, channels), shape)

    def _floats(self, values: NDArray[Any]) -> int:
        return self.weights.add(values.astype(np.float32))

    def _panels(self, matrix: NDArray[Any]) -> int:
        return self._floats(matrix if len(matrix) == 1 else panels(matrix))

    # -- recurrent layers ----------------------------------------------------------------------------------

    def _gru(self, node: gs.Node) -> None:
        hidden = int(node.attrs["hidden_size"])
        W, R = numbers(node, 1)[0], numbers(node, 2)[0]
        biases = np.zeros(6 * hidden) if node.inputs[3].is_empty() else numbers(node, 3)[0]
        view, state = self.dense(self.views[node.inputs[0].name]), self.views[node.inputs[5].name]
        x = View(view.buffer, view.offset, 1, view.positions * view.channels, 1)
        y = self.fresh(1, hidden)
        (weights, scales_x), (recurrent, scales_h) = self._gates(W), self._gates(R)
        fields = {
            "weights": weights, "recurrent": recurrent, "bias": self._floats(biases),
            "scales": self._floats(np.concatenate([scales_x, scales_h])),
        }  # fmt: skip
        sums = -(-3 * hidden // PANEL) * PANEL
        gru = Operation(Kind.GRU, x, y, state, fields, for_all=True, scratch=(sums, sums))
        self.operations.append(gru)
        shape: Shape = (1, 1, hidden)
        self.hold(node.outputs[1], y, shape)

    def _gates(self, matrix: NDArray[np.float32]) -> tuple[int, NDArray[np.float32]]:
        """Store the weights of the three gates, filled up to whole panels."""
        stored, scales = quantised(matrix, self.precision)
        return self.stored.add(panels(np.pad(stored, ((0, -len(stored) % PANEL), (0, 0))))), scales


def _dense(weight: NDArray[Any], group: int) -> NDArray[Any]:
    """Return [out, taps * in] of a grouped kernel [out, in per group, 1, taps], zeros between the groups."""
    outputs, per_group, _, taps = weight.shape
    full = np.zeros((outputs, taps, per_group * group), np.float32)
    for o in range(outputs):
        start = o // (outputs // group) * per_group
        full[o, :, start : start + per_group] = weight[o, :, 0].T
    return full.reshape(outputs, -1)
