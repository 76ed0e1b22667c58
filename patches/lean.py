"""The one-frame graph for ONNX Runtime on a CPU: as little as possible besides the arithmetic.

A runtime of operators pays for every node of a graph, whatever it computes. So there is no arithmetic
of shapes, tensors are reshaped only where an operator wants another shape, every layer of a GRU has a
state of its own that needs neither Slice nor Concat, and upsampling is one dense convolution.
Results come out as those of the export, for any number of streams:

============== ========================== ===================================================
``feat_erb``   [B, 1, 1, bands]           ERB features of the frame
``feat_spec``  [B, 2, 1, df bins]         complex features (re, im)
``s_...``      [B, channels, 1, width]    as in the canonical graph (`dfstream.patches.canonical`)
``h0``         [1, B, hidden]             state of the encoder's GRU; of its decoders' layers ``erb_h0``,
                                          ``erb2_h0``, ..., ``df_h0``, ``df2_h0``, ...
``lsnr``       [B, 1, 1]                  dB
``m``          [B, 1, 1, bands]           ERB gains
``coefs``      [B, 1, df bins, 2 * taps]  deep-filter taps
============== ========================== ===================================================
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dfstream.errors import UnsupportedGraph
from dfstream.interface import batch_axis

from .canonical import MAP, VECTOR
from .canonical_conv import TimeConv, polyphase
from .compact import CompactLowering
from .fold import fold_constants
from .graph import BATCH, constant_value, consumers
from .gru_state import find_grus, layer_state
from .recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_graphsurgeon as gs
    from numpy.typing import NDArray

    Form = tuple[int | str, ...]

__all__ = ["LEAN", "LeanLowering", "lean", "lean_recipe"]

#: Name of the recipe and of its graph.
LEAN, _STEM = "lean", "combined_lean"


def lean_recipe() -> Recipe:
    """Return how the lean one-frame graph is made."""
    return Recipe(LEAN, (_STEM,), (fold_constants,), lean)


def lean(graph: gs.Graph) -> dict[str, gs.Graph]:
    """Build the lean one-frame graph of a merged graph, ``combined_lean``.

    Parameters
    ----------
    graph : Graph
        Merged and folded; whether its GRU states are exposed does not matter.

    Raises
    ------
    UnsupportedGraph
        Names the operator that has no such form.
    """
    return {_STEM: LeanLowering(graph).run()}


class LeanLowering(CompactLowering):
    """The walk of the compact graph, with a free batch and each tensor in the shape it was computed in.

    A map keeps the shape it has in the original graph. A vector is held in any shape whose row-major
    order is that of the original, and reshaped by its reader, if at all.
    """

    def __init__(self, graph: gs.Graph) -> None:
        super().__init__(graph)
        self.forms: dict[str, Form] = {}
        self.reshaped: dict[str, gs.Variable] = {}

    # -- shapes ------------------------------------------------------------------------------------

    def open_input(self, name: str, shape: Sequence[int]) -> gs.Variable:
        """Declare an input of any batch."""
        form: list[Any] = list(shape)
        form[batch_axis(name)] = BATCH
        self.forms[name] = tuple(form)
        return super().open_input(name, form)

    def keep(self, node: gs.Node, tensor: gs.Tensor, layout: str) -> None:
        """Hold what a node computes: a map in the shape of the original's, a vector as [B, N] or another."""
        super().keep(node, tensor, layout)
        output = node.outputs[0]
        if layout == MAP:
            self.forms[tensor.name] = (BATCH, *self.shape_of(output)[1:])
        else:
            self.forms.setdefault(tensor.name, (BATCH, self.size_of(output)))

    def shaped(self, tensor: gs.Tensor, form: Form) -> gs.Tensor:
        """Return a tensor of the original graph in a shape."""
        held, _ = self.held[tensor.name]
        if self.forms[held.name] == form:
            return held
        name = f"{held.name}/{'x'.join(map(str, form))}"
        if name not in self.reshaped:
            sizes = np.array([-1 if size == BATCH else size for size in form])
            self.reshaped[name] = self._formed(self.emit("Reshape", [held, sizes], name), form)
        return self.reshaped[name]

    def _formed(self, tensor: gs.Variable, form: Form) -> gs.Variable:
        self.forms[tensor.name] = form
        return tensor

    def vector(self, tensor: gs.Tensor) -> gs.Tensor:
        """Return a tensor as [B, N]."""
        return self.shaped(tensor, (BATCH, self.size_of(tensor)))

    def row(self, tensor: gs.Tensor) -> gs.Tensor:
        """Return a vector as a GRU reads it, [1, B, N]."""
        return self.shaped(tensor, (1, BATCH, self.size_of(tensor)))

    def from_row(self, state: gs.Variable, hidden: int) -> gs.Tensor:
        """Leave a new state [1, B, hidden] as it is."""
        return self._formed(state, (1, BATCH, hidden))

    def as_map(self, tensor: gs.Tensor) -> gs.Tensor:
        """Return a tensor in its own shape [B, ...] of rank 4."""
        shape = self.shape_of(tensor)
        if len(shape) != 4:
            raise UnsupportedGraph(f"lean: {tensor.name!r} of shape {shape} is used as a map")
        return self.shaped(tensor, (BATCH, *shape[1:]))

    def reshape(self, node: gs.Node) -> None:
        """Let the reader do it."""
        held, _ = self.held[node.inputs[0].name]
        self.held[node.outputs[0].name] = (held, VECTOR)

    def transpose(self, node: gs.Node) -> None:
        """Transpose where more than axes of size 1 move."""
        tensor, perm = node.inputs[0], list(node.attrs["perm"])
        order = [axis for axis in perm if self.shape_of(tensor)[axis] != 1]
        if order == sorted(order):
            self.reshape(node)
        elif len(perm) == 4 and perm[0] == 0:
            self.keep(node, self.emit("Transpose", [self.as_map(tensor)], node.name, perm=perm), MAP)
        else:
            self.refuse(node)

    # -- operators ---------------------------------------------------------------------------------

    def unary(self, node: gs.Node) -> None:
        """Apply it in whatever shape the tensor is held."""
        held, layout = self.held[node.inputs[0].name]
        result = self._formed(self.emit(node.op, [held], node.name), self.forms[held.name])
        self.held[node.outputs[0].name] = (result, layout)

    def arithmetic(self, node: gs.Node) -> None:
        """Bring vectors into the shape of the map, or of one of them."""
        signals = [t for t in node.inputs if t.name in self.held]
        if {self.size_of(t) for t in signals} != {self.size_of(node.outputs[0])}:
            self.refuse(node)
        layout = self.common_layout(signals)
        held = [t for t in signals if self.held[t.name][1] == layout]
        # of vectors not the row of a GRU: hardly anything else reads one
        form = max((self.forms[self.held[t.name][0].name] for t in held), key=len)
        operands = [
            self.shaped(t, form) if t.name in self.held else self._constant(node, t, layout, form)
            for t in node.inputs
        ]
        result = self._formed(self.emit(node.op, operands, node.name), form)
        self.held[node.outputs[0].name] = (result, layout)

    def _constant(self, node: gs.Node, tensor: gs.Tensor, layout: str, form: Form) -> NDArray[Any]:
        value = self.broadcast(node, constant_value(tensor), layout)
        if value.size > 1 and layout == MAP:
            return value
        return value.reshape([1 if size == BATCH or value.size == 1 else int(size) for size in form])

    def linear(
        self, tensor: gs.Tensor, matrix: NDArray[Any], bias: NDArray[Any] | None, name: str
    ) -> gs.Variable:
        """Emit the product of a matrix [outputs, inputs] and a vector, plus a bias."""
        operands = [self.vector(tensor), matrix, *([] if bias is None else [bias])]
        return self._formed(self.emit("Gemm", operands, name, transB=1), (BATCH, len(matrix)))

    def grouped_linear(self, tensor: gs.Tensor, weight: NDArray[Any], name: str) -> gs.Variable:
        """Emit a grouped linear layer [groups, inputs, outputs] as products of a batch of matrices."""
        groups, size, out = weight.shape
        rows = self.shaped(tensor, (BATCH, groups, 1, size))
        return self._formed(self.emit("MatMul", [rows, weight], name), (BATCH, groups, 1, out))

    def append_zeros(self, x: gs.Tensor, shape: Sequence[int], name: str) -> gs.Tensor:
        """Emit ``x`` and behind it channels of zeros, of the given shape, for any batch."""
        return self.emit("Pad", [x, np.array([0, 0, 0, 0, 0, shape[1], 0, 0])], name)

    def conv_transpose(self, node: gs.Node) -> None:
        """Upsample by two: both phases, and the 1x1 convolution behind them, in one; then interleave."""
        weight, bias, group = polyphase(node)
        conv = TimeConv(node, weight, bias, group, 1, (0, 1))
        inputs = conv.channels
        phases = conv.dense().reshape(-1, 2, inputs, 1, 2).swapaxes(0, 1)  # [phase, out, in, 1, 2]
        offset = np.zeros(phases.shape[1]) if bias is None else bias[::2]
        last = node
        point = self._only_reader(node, "Conv")
        if point is not None and (pointwise := TimeConv.read(point)).is_pointwise:
            last = point
            self.done.add(id(point))
            matrix = pointwise.weight[:, :, 0, 0]
            phases = np.einsum("po,koitf->kpitf", matrix, phases)
            offset = matrix @ offset + (0.0 if pointwise.bias is None else pointwise.bias)
        channels = len(offset)
        kernel = phases.reshape(2 * channels, inputs, 1, 2)
        x = self.emit_conv(self.as_map(node.inputs[0]), kernel, np.tile(offset, 2), node.name, pads=(0, 1))
        if (relu := self._only_reader(last, "Relu")) is not None:
            x, last = self.emit("Relu", [x], relu.name), relu
            self.done.add(id(relu))
        width = self.shape_of(last.outputs[0])[3]
        x = self.emit("Transpose", [x], f"{node.name}/last", perm=[0, 2, 3, 1])
        x = self.emit("Reshape", [x, np.array([-1, 1, width, channels])], f"{node.name}/interleaved")
        self.keep(last, self.emit("Transpose", [x], f"{node.name}/out", perm=[0, 3, 1, 2]), MAP)

    def _only_reader(self, node: gs.Node, op: str) -> gs.Node | None:
        """Return the one node that reads a result, if it is of that operator."""
        after = consumers(node.outputs[0])
        return after[0] if len(after) == 1 and after[0].op == op else None

    # -- beginning and end -------------------------------------------------------------------------

    def open_hidden(self) -> None:
        """Give every layer a state of its own."""
        self.layers, self._stacks = {}, []
        for section, layers in find_grus(self.source).items():
            for index, gru in enumerate(layers):
                state = self.open_state(layer_state(section, index), [1, 1, gru.hidden])
                self.layers[id(gru.node)] = state
                self._stacks.append((state, [id(gru.node)]))

    def close_results(self) -> list[gs.Variable]:
        """Give out the results as the export does."""
        tensors, outputs = {t.name: t for t in self.source.outputs}, []
        for name in self.results:
            form: Form = (BATCH, *self.shape_of(tensors[name])[1:])
            outputs.append(self.name_output(self.shaped(tensors[name], form), name, form))
        return outputs
