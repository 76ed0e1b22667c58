"""Rewrite a merged graph for one frame a call in the operators every accelerator takes.

The canonical graph has one static shape per tensor, rank 4 throughout, no shape arithmetic, and only
convolutions, element-wise operators, and Concat, Slice, Reshape and Transpose with constants. States
are inputs and outputs, zeros at the start of a stream:

============ ====================== =====================================================
``feat_erb`` [1, 1, 1, bands]       ERB features of the frame
``feat_spec``[1, 2, 1, df bins]     complex features (re, im)
``s_erb``    [1, k-1, 1, bands]     past ERB features, time as channels
``s_spec``   [1, 2(k-1), 1, bins]   past complex features, (re, im) per frame, oldest first
``s_fir``    [1, O(k-1), 1, bins]   partial sums of the deep-filter pathway's time convolution
``s_ctx``    [1, C(k-1), 1, width]  past maps of a grouped time convolution (LL variants)
``h``        [1, sum of hidden, 1, 1] all GRU states, in the order of the graph
``mask``     [1, 1, 1, bands]       ERB gains
``coefs``    [1, 2 taps, 1, bins]   deep-filter taps, channel 2 * tap + (re, im): planar
``lsnr``     [1, 1, 1, 1]           dB
============ ====================== =====================================================

Every state ``x`` comes out as ``x_out``. How each operator is rewritten stands at its method; all of it
is exact algebra, products of weights are taken in float64.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from dfstream.errors import UnsupportedGraph
from dfstream.interface import FEATURES, MASK, state_output

from .canonical_conv import TimeConv, fold_pointwise, polyphase
from .graph import constant_value, consumers, export_graph, static_shapes, time_pad
from .gru_state import find_grus
from .opset import OPSET

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

__all__ = ["Lowering", "canonicalise"]

#: How a tensor of the original graph is held: as it is ([1, C, 1, F]), with its channels-last view
#: [1, 1, F, C] held as [1, C, 1, F], or flattened to [1, N, 1, 1].
MAP, LAST, VECTOR = "map", "channels-last", "vector"


def canonicalise(graph: gs.Graph) -> dict[str, gs.Graph]:
    """Build the canonical one-frame graph of a merged graph, ``combined_canonical``.

    Parameters
    ----------
    graph : Graph
        Merged and folded; whether its GRU states are exposed does not matter.

    Raises
    ------
    UnsupportedGraph
        Names the operator that has no canonical form.
    """
    return {"combined_canonical": Lowering(graph).run()}


class Lowering:
    """One walk over the original graph in the order of the signal, emitting the canonical one.

    Other one-frame forms of the graph derive from it and say which operators they hold differently.
    """

    #: Public names of the results, in the order of `dfstream.interface.RESULTS`.
    results = ("lsnr", MASK, "coefs")

    def __init__(self, graph: gs.Graph) -> None:
        self.source = graph.copy().toposort()
        self.shapes = static_shapes(export_graph(self.source))
        self.held: dict[str, tuple[gs.Tensor, str]] = {}
        self.pads: dict[str, tuple[gs.Tensor, int]] = {}
        self.nodes: list[gs.Node] = []
        self.inputs: list[gs.Variable] = []
        self.states: list[tuple[gs.Variable, gs.Tensor]] = []
        self.hidden: list[gs.Tensor] = []
        self.steps: list[gs.Tensor] = []
        self.done: set[int] = set()

    def run(self) -> gs.Graph:
        """Return the one-frame graph."""
        for name in FEATURES:
            tensor = self.open_input(name, self.shapes[name])
            self.held[name] = (tensor, MAP)
        self.open_hidden()
        for node in self.source.nodes:
            if id(node) not in self.done and self._carries_data(node):
                self._rules().get(node.op, self.refuse)(node)
        outputs = self.close_results()
        self.close_hidden()
        outputs += self._close_states()
        graph = gs.Graph(
            nodes=self.nodes, inputs=self.inputs, outputs=outputs, name="dfstream", opset=OPSET,
            ir_version=self.source.ir_version,
        )  # fmt: skip
        return graph.cleanup().toposort()

    def _rules(self) -> dict[str, Callable[[gs.Node], None]]:
        elementwise = dict.fromkeys(("Add", "Sub", "Mul", "Div"), self.arithmetic)
        unary = dict.fromkeys(("Relu", "Sigmoid", "Tanh"), self.unary)
        same_order = dict.fromkeys(("Reshape", "Squeeze", "Unsqueeze", "Identity"), self.reshape)
        return {
            **elementwise, **unary, **same_order, "Concat": self._concat, "Conv": self._conv,
            "ConvTranspose": self.conv_transpose, "Einsum": self._einsum, "Gemm": self._matmul,
            "GRU": self.gru, "MatMul": self._matmul, "Pad": self._pad, "Transpose": self.transpose,
        }  # fmt: skip

    def refuse(self, node: gs.Node) -> None:
        """Say that an operator has no such form."""
        raise UnsupportedGraph(f"canonicalise: no canonical form for {node.op} {node.name!r}")

    # -- emitting ----------------------------------------------------------------------------------

    def open_input(self, name: str, shape: Sequence[int]) -> gs.Variable:
        """Declare an input."""
        tensor = gs.Variable(name, np.dtype(np.float32), list(shape))
        self.inputs.append(tensor)
        return tensor

    def emit(self, op: str, inputs: Sequence[Any], name: str, **attrs: Any) -> gs.Variable:
        """Emit an operator; arrays among its inputs become constants."""
        tensors = [
            t if isinstance(t, gs.Tensor) else self._weight(t, f"{name}/{i}") for i, t in enumerate(inputs)
        ]
        result = gs.Variable(name, np.dtype(np.float32))
        self.nodes.append(gs.Node(op, name, attrs, tensors, [result]))
        return result

    def _weight(self, values: NDArray[Any], name: str) -> gs.Constant:
        kind = np.int64 if np.issubdtype(values.dtype, np.integer) else np.float32
        return gs.Constant(name, np.ascontiguousarray(values, dtype=kind))

    def emit_conv(
        self, x: gs.Tensor, weight: NDArray[Any], bias: NDArray[Any] | None, name: str,
        group: int = 1, stride: int = 1, pads: tuple[int, int] = (0, 0),
    ) -> gs.Variable:  # fmt: skip
        """Emit a convolution over one frame; ``pads`` are left and right in frequency."""
        operands = [x, weight] if bias is None else [x, weight, bias]
        return self.emit(
            "Conv", operands, name, group=group, strides=[1, stride], dilations=[1, 1],
            pads=[0, pads[0], 0, pads[1]], kernel_shape=list(weight.shape[2:]),
        )  # fmt: skip

    def emit_slice(self, x: gs.Tensor, start: int, end: int, name: str) -> gs.Variable:
        """Emit a slice of channels."""
        return self.emit("Slice", [x, *(np.array([n]) for n in (start, end, 1))], name)

    def emit_concat(self, parts: Sequence[Any], name: str) -> gs.Tensor:
        """Emit a concatenation of channels."""
        return parts[0] if len(parts) == 1 else self.emit("Concat", parts, name, axis=1)

    def append_zeros(self, x: gs.Tensor, shape: Sequence[int], name: str) -> gs.Tensor:
        """Emit ``x`` and behind it channels of zeros, of the given shape."""
        return self.emit_concat([x, np.zeros(shape, np.float32)], name)

    def open_state(self, name: str, shape: Sequence[int]) -> gs.Variable:
        """Declare a state; a second one of the same name gets a number."""
        taken = {t.name for t in self.inputs}
        name = next(n for n in (name, *(f"{name}_{i}" for i in range(2, 99))) if n not in taken)
        return self.open_input(name, shape)

    def close_state(self, state: gs.Variable, value: gs.Tensor) -> None:
        """Say what a state becomes."""
        self.states.append((state, value))

    # -- layouts -----------------------------------------------------------------------------------

    def _carries_data(self, node: gs.Node) -> bool:
        """Whether a node works on the signal, not on shapes or on the first state of a GRU."""
        data = node.inputs if node.op in ("Concat", "Add", "Sub", "Mul", "Div") else node.inputs[:1]
        return node.op != "Shape" and any(t.name in self.held or t.name in self.pads for t in data)

    def keep(self, node: gs.Node, tensor: gs.Tensor, layout: str) -> None:
        """Say what holds the result of a node, and in which layout."""
        self.held[node.outputs[0].name] = (tensor, layout)

    def shape_of(self, tensor: gs.Tensor) -> tuple[int, ...]:
        """Return the shape of a tensor of the original graph, for one stream and one frame."""
        if tensor.name not in self.shapes:
            raise UnsupportedGraph(f"canonicalise: the shape of {tensor.name!r} is not known")
        return self.shapes[tensor.name]

    def vector(self, tensor: gs.Tensor) -> gs.Tensor:
        """Return the [1, N, 1, 1] form of a tensor."""
        held, layout = self.held[tensor.name]
        if layout == VECTOR:
            return held
        name = f"{tensor.name}/flat"
        if layout == LAST:
            held = self.emit("Transpose", [held], f"{name}/last", perm=[0, 2, 3, 1])
        return self.emit("Reshape", [held, np.array([1, self.size_of(tensor), 1, 1])], name)

    def as_map(self, tensor: gs.Tensor) -> gs.Tensor:
        """Return a tensor as [1, C, 1, F]."""
        held, layout = self.held[tensor.name]
        if layout == MAP:
            return held
        if layout == LAST:
            return self.emit("Transpose", [held], f"{tensor.name}/turned", perm=[0, 2, 3, 1])
        shape = self.shape_of(tensor)
        if len(shape) != 4:
            raise UnsupportedGraph(f"canonicalise: {tensor.name!r} of shape {shape} is used as a map")
        return self.emit("Reshape", [held, np.array(shape)], f"{tensor.name}/map")

    def as_last(self, tensor: gs.Tensor) -> gs.Tensor:
        """Return the [1, C, 1, F] form of a tensor whose view is [1, 1, F, C]."""
        held, layout = self.held[tensor.name]
        if layout == LAST:
            return held
        return self.emit("Transpose", [self.as_map(tensor)], f"{tensor.name}/planar", perm=[0, 3, 1, 2])

    def size_of(self, tensor: gs.Tensor) -> int:
        """Return the number of elements of a tensor of the original graph."""
        return int(np.prod(self.shape_of(tensor)))

    # -- operators ---------------------------------------------------------------------------------

    def reshape(self, node: gs.Node) -> None:
        """Row-major order stays, so a vector is a vector under any shape."""
        if node.op == "Identity":
            self.held[node.outputs[0].name] = self.held[node.inputs[0].name]
        else:
            self.keep(node, self.vector(node.inputs[0]), VECTOR)

    def transpose(self, node: gs.Node) -> None:
        """Exchange views where the original exchanges layouts."""
        tensor, perm = node.inputs[0], list(node.attrs["perm"])
        shape = self.shape_of(tensor)
        order = [axis for axis in perm if shape[axis] != 1]
        if order == sorted(order) and len(shape) != 4:
            self.keep(node, self.vector(tensor), VECTOR)  # only axes of size 1 move
        elif perm == [0, 2, 3, 1]:
            self.keep(node, self.as_map(tensor), LAST)
        elif perm == [0, 3, 1, 2]:
            self.keep(node, self.as_last(tensor), MAP)
        else:
            self.refuse(node)

    def unary(self, node: gs.Node) -> None:
        """Apply it in whatever layout the tensor is held."""
        held, layout = self.held[node.inputs[0].name]
        self.keep(node, self.emit(node.op, [held], node.name), layout)

    def arithmetic(self, node: gs.Node) -> None:
        """Bring all operands into one layout."""
        layout = self.common_layout([t for t in node.inputs if t.name in self.held])
        read = {MAP: self.as_map, LAST: self.as_last, VECTOR: self.vector}[layout]
        operands = [
            read(t) if t.name in self.held else self.broadcast(node, constant_value(t), layout)
            for t in node.inputs
        ]
        self.keep(node, self.emit(node.op, operands, node.name), layout)

    def common_layout(self, tensors: list[gs.Tensor]) -> str:
        """Return the layout that operands meet in."""
        layouts = {self.held[t.name][1] for t in tensors}
        if len(layouts) == 1:
            return layouts.pop()
        return LAST if LAST in layouts else MAP if len(self.shape_of(tensors[0])) == 4 else VECTOR

    def broadcast(self, node: gs.Node, value: NDArray[Any] | None, layout: str) -> NDArray[Any]:
        """Return a constant operand in the shape of a layout."""
        if value is None:
            raise UnsupportedGraph(
                f"canonicalise: {node.op} {node.name!r} mixes the signal with something else"
            )
        if value.size == 1:
            return value.reshape(1, 1, 1, 1)
        if layout == VECTOR and value.size == value.shape[-1] == self.size_of(node.outputs[0]):
            return value.reshape(1, -1, 1, 1)
        if layout == MAP and value.ndim == 4:
            return value
        raise UnsupportedGraph(
            f"canonicalise: {node.op} {node.name!r} with a constant of shape {value.shape}"
        )

    def _concat(self, node: gs.Node) -> None:
        shape, axis = self.shape_of(node.inputs[0]), node.attrs["axis"]
        if any(size != 1 for size in shape[: axis % len(shape)]):
            self.refuse(node)
        self.keep(node, self.emit_concat([self.vector(t) for t in node.inputs], node.name), VECTOR)

    def _matmul(self, node: gs.Node) -> None:
        """Take a bias that is added next along with the matrix product."""
        weight = constant_value(node.inputs[1])
        if weight is None or weight.ndim != 2:
            self.refuse(node)
            return
        matrix = weight if node.op == "Gemm" and node.attrs.get("transB", 0) else weight.T
        bias, last = None, node
        if node.op == "Gemm":
            bias = constant_value(node.inputs[2]) if len(node.inputs) > 2 else None
            if (
                node.attrs.get("alpha", 1.0) != 1.0
                or node.attrs.get("beta", 1.0) != 1.0
                or node.attrs.get("transA", 0)
            ):
                self.refuse(node)
        else:
            after = consumers(node.outputs[0])
            if len(after) == 1 and after[0].op == "Add":
                values = [constant_value(t) for t in after[0].inputs if t is not node.outputs[0]]
                if values and values[0] is not None and values[0].shape == (len(matrix),):
                    bias, last = values[0], after[0]
                    self.done.add(id(last))
        self.keep(last, self.linear(node.inputs[0], matrix, bias, node.name), VECTOR)

    def linear(
        self, tensor: gs.Tensor, matrix: NDArray[Any], bias: NDArray[Any] | None, name: str
    ) -> gs.Variable:
        """Emit the product of a matrix [outputs, inputs] and a vector, plus a bias."""
        return self.emit_conv(self.vector(tensor), matrix[:, :, None, None], bias, name)

    def _einsum(self, node: gs.Node) -> None:
        weight = constant_value(node.inputs[1])
        equation = str(node.attrs.get("equation", "")).replace(" ", "")
        if equation != "btgi,gih->btgh" or weight is None:
            self.refuse(node)
            return
        self.keep(node, self.grouped_linear(node.inputs[0], weight, node.name), VECTOR)

    def grouped_linear(self, tensor: gs.Tensor, weight: NDArray[Any], name: str) -> gs.Variable:
        """Emit a grouped linear layer [groups, inputs, outputs]: a grouped 1x1 convolution, in order."""
        groups, size, out = weight.shape
        kernel = np.swapaxes(weight, 1, 2).reshape(groups * out, size, 1, 1)
        return self.emit_conv(self.vector(tensor), kernel, None, name, group=groups)

    def gru(self, node: gs.Node) -> None:
        """Write a GRU step out as gates.

        ``u = 1 - z`` is computed by itself, from negated weights, instead of ``z``: a slow unit has z
        close to 1, where half precision would lose ``1 - z``. The recurrent bias of the candidate stays
        inside the product with the reset gate (``linear_before_reset``).
        """
        if not node.attrs.get("linear_before_reset", 0):
            raise UnsupportedGraph(f"canonicalise: GRU {node.name!r} resets before the matrix product")
        x, h, size = (
            self.vector(node.inputs[0]),
            self.hidden[len(self.steps)],
            int(node.attrs["hidden_size"]),
        )
        W, R = (constant_value(node.inputs[i])[0].astype(np.float64) for i in (1, 2))  # type: ignore[index]
        b, c = self.gru_biases(node, size)
        joint = np.concatenate([W, R], axis=1)
        z, r, n = slice(0, size), slice(size, 2 * size), slice(2 * size, 3 * size)
        both = self.emit_concat([x, h], f"{node.name}/xh")

        def linear(of: gs.Tensor, weight: NDArray[Any], bias: NDArray[Any], gate: str) -> gs.Variable:
            return self.emit_conv(of, weight[:, :, None, None], bias, f"{node.name}/{gate}")

        update = self.emit("Sigmoid", [linear(both, -joint[z], -(b[z] + c[z]), "u")], f"{node.name}/update")
        reset = self.emit("Sigmoid", [linear(both, joint[r], b[r] + c[r], "r")], f"{node.name}/reset")
        recalled = self.emit("Mul", [reset, linear(h, R[n], c[n], "hn")], f"{node.name}/recalled")
        summed = self.emit("Add", [linear(x, W[n], b[n], "xn"), recalled], f"{node.name}/sum")
        candidate = self.emit("Tanh", [summed], f"{node.name}/candidate")
        step = self.emit("Sub", [candidate, h], f"{node.name}/step")
        state = self.emit(
            "Add", [h, self.emit("Mul", [update, step], f"{node.name}/moved")], f"{node.name}/h"
        )
        self.steps.append(state)
        for output in node.outputs:
            self.held[output.name] = (state, VECTOR)

    def gru_biases(self, node: gs.Node, size: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return the biases of the input's and of the state's products, of all three gates each."""
        value = (
            constant_value(node.inputs[3]) if len(node.inputs) > 3 and not node.inputs[3].is_empty() else None
        )
        biases = np.zeros(6 * size) if value is None else value[0].astype(np.float64)
        return biases[: 3 * size], biases[3 * size :]

    def _pad(self, node: gs.Node) -> None:
        self.pads[node.outputs[0].name] = (node.inputs[0], time_pad(node))

    def _conv(self, node: gs.Node) -> None:
        conv, last = fold_pointwise(TimeConv.read(node))
        if last is not node:
            self.done.add(id(last))
        source, past = self.pads.get(node.inputs[0].name, (node.inputs[0], 0))
        if past != conv.taps - 1:
            raise UnsupportedGraph(
                f"canonicalise: Conv {node.name!r} spans {conv.taps} frames after a Pad of {past}"
            )
        width = self.shape_of(node.outputs[0])[3]
        feature = source.name.removeprefix("feat_") if source.name in FEATURES else None
        self.keep(last, conv.emit(self, self.as_map(source), feature, self.shape_of(source)[3], width), MAP)

    def conv_transpose(self, node: gs.Node) -> None:
        """Upsampling by two: both phases in one convolution, then interleaved."""
        weight, bias, group = polyphase(node)
        _, _, _, width = self.shape_of(node.inputs[0])
        channels = self.shape_of(node.outputs[0])[1]
        phases = self.emit_conv(
            self.as_map(node.inputs[0]), weight, bias, node.name, group=group, pads=(0, 1)
        )
        x = self.emit("Reshape", [phases, np.array([1, channels, 2, width])], f"{node.name}/phases")
        x = self.emit("Transpose", [x], f"{node.name}/interleave", perm=[0, 1, 3, 2])
        x = self.emit("Reshape", [x, np.array([1, channels, 1, 2 * width])], f"{node.name}/out")
        self.keep(node, x, MAP)

    # -- beginning and end -------------------------------------------------------------------------

    def open_hidden(self) -> None:
        """Give every GRU layer its part of ``h``."""
        layers = [gru for section in find_grus(self.source).values() for gru in section]
        order = {id(node): index for index, node in enumerate(self.source.nodes)}
        layers.sort(key=lambda gru: order[id(gru.node)])
        self._packed = self.open_state("h", [1, sum(gru.hidden for gru in layers), 1, 1])
        start = 0
        for index, gru in enumerate(layers):
            self.hidden.append(self.emit_slice(self._packed, start, start + gru.hidden, f"h/layer{index}"))
            start += gru.hidden

    def close_hidden(self) -> None:
        """Put the layers' new states together."""
        self.close_state(self._packed, self.emit_concat(self.steps, "h/next"))

    def close_results(self) -> list[gs.Variable]:
        """Give out the results."""
        tensors = {t.name: t for t in self.source.outputs}
        bands, bins = (self.shape_of(self.source.tensors()[name])[-1] for name in FEATURES)
        taps = self.size_of(tensors["coefs"]) // bins
        outputs = []
        held = self.vector(tensors["lsnr"]), self.as_map(tensors["m"]), self.as_last(tensors["coefs"])
        shapes = [1, 1, 1, 1], [1, 1, 1, bands], [1, taps, 1, bins]
        for name, tensor, shape in zip(self.results, held, shapes, strict=True):
            outputs.append(self.name_output(tensor, name, shape))
        return outputs

    def _close_states(self) -> list[gs.Variable]:
        after = {state.name: value for state, value in self.states}
        return [
            self.name_output(after[state.name], state_output(state.name), state.shape)
            for state in self.inputs
            if state.name in after
        ]

    def name_output(self, tensor: gs.Tensor, name: str, shape: Sequence[int | str]) -> gs.Variable:
        """Give a tensor its public name; one that already has a public name is passed on under a second."""
        if isinstance(tensor, gs.Variable) and tensor not in self.inputs and not tensor.shape:
            tensor.name, tensor.shape = name, list(shape)
            return tensor
        output = gs.Variable(name, np.dtype(np.float32), list(shape))
        self.nodes.append(gs.Node("Identity", f"{name}/out", {}, [tensor], [output]))
        return output
