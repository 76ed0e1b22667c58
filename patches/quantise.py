"""Weights of fewer bits for ONNX Runtime: float16 on disk, or eight bits in the GRUs.

Neither is exact. Activations, states, biases and sums stay float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from dfstream.errors import UnsupportedGraph

from .canonical import VECTOR
from .fold import fold_constants
from .graph import BATCH, constant_value
from .lean import LEAN, LeanLowering
from .recipe import Recipe

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["eight_bit_recipe", "half_recipe", "lean_eight_bit", "quantise_rows", "store_half"]

_STEM = "combined_lean_int8"
_DOMAIN = "com.microsoft"

#: Weights of one row that share a scale. Larger blocks are read a little faster and are less exact.
BLOCK = 32

#: Level at which the runtime multiplies integers; below it unpacks the weights on each call, and is slow.
_INTEGER_PRODUCTS = 4

#: Tensors below this many elements are not worth a Cast.
_FEW = 64


# -- float16 ---------------------------------------------------------------------------------------


def half_recipe(recipe: Recipe) -> Recipe:
    """Return a recipe for the same graphs with their weights stored as float16."""

    def half(graph: gs.Graph) -> dict[str, gs.Graph]:
        made = {recipe.stems[0]: graph} if recipe.finish is None else recipe.finish(graph)
        return {f"{stem}_fp16": store_half(one) for stem, one in made.items()}

    stems = tuple(f"{stem}_fp16" for stem in recipe.stems)
    return Recipe(f"{recipe.name}-fp16", stems, recipe.patches, half, recipe.surround)


def store_half(graph: gs.Graph) -> gs.Graph:
    """Store the weights of a graph as float16, each behind a Cast to float32.

    That halves the file. ONNX Runtime evaluates the Casts when it loads the graph: a call reads and
    multiplies float32 as before, so it costs the same, and only the rounding of the weights is left.
    Weights beyond the range of float16 stay as they are.
    """
    for name, tensor in graph.tensors().items():
        if not isinstance(tensor, gs.Constant) or tensor.values.dtype != np.float32:
            continue
        half = tensor.values.astype(np.float16) if np.abs(tensor.values).max(initial=0) < 65504 else None
        if half is None or tensor.values.size < _FEW:
            continue
        whole = gs.Variable(f"{name}/float32", np.dtype(np.float32))
        for node in list(tensor.outputs):
            node.inputs = [whole if given is tensor else given for given in node.inputs]
        stored = gs.Constant(f"{name}/float16", half)
        graph.nodes.append(gs.Node("Cast", f"{name}/cast", {"to": onnx.TensorProto.FLOAT}, [stored], [whole]))
    return graph.cleanup().toposort()


# -- eight bits ------------------------------------------------------------------------------------


def eight_bit_recipe() -> Recipe:
    """Return how the lean one-frame graph with GRUs of eight bits is made."""
    return Recipe(f"{LEAN}-int8", (_STEM,), (fold_constants,), lean_eight_bit)


def lean_eight_bit(graph: gs.Graph) -> dict[str, gs.Graph]:
    """Build the lean graph with the matrices of its GRUs in eight bits, ``combined_lean_int8``.

    Inputs, outputs and states are those of `dfstream.patches.lean`. The products are ONNX Runtime's
    ``MatMulNBits``, which rounds their inputs to eight bits as well.

    Raises
    ------
    UnsupportedGraph
        Names the operator that has no such form.
    """
    made = EightBitLowering(graph).run()
    made.import_domains = [onnx.helper.make_opsetid("", made.opset), onnx.helper.make_opsetid(_DOMAIN, 1)]
    return {_STEM: made}


class EightBitLowering(LeanLowering):
    """The walk of the lean graph with GRUs written out as gates."""

    def gru(self, node: gs.Node) -> None:
        """Write a GRU step out; update and reset gate are one product with ``[x; h]``.

        ``h' = n + z (h - n)`` with ``n = tanh(W x + b + r (R h + c))``, as the operator has it with
        ``linear_before_reset``.
        """
        if not node.attrs.get("linear_before_reset", 0):
            raise UnsupportedGraph(f"lean: GRU {node.name!r} resets before the matrix product")
        size, name = int(node.attrs["hidden_size"]), node.name
        x, h = self.row(node.inputs[0]), self.layers[id(node)]
        W, R = (constant_value(node.inputs[i])[0] for i in (1, 2))  # type: ignore[index]
        b, c = self.gru_biases(node, size)
        gates, candidate = slice(0, 2 * size), slice(2 * size, 3 * size)
        both = self.emit("Concat", [x, h], f"{name}/xh", axis=2)
        zr = self._product(both, np.hstack([W, R])[gates], (b + c)[gates], f"{name}/zr")
        z, r = self._halves(self.emit("Sigmoid", [zr], f"{name}/gates"))
        xn = self._product(x, W[candidate], b[candidate], f"{name}/xn")
        hn = self._product(h, R[candidate], c[candidate], f"{name}/hn")
        recalled = self.emit("Mul", [r, hn], f"{name}/recalled")
        n = self.emit("Tanh", [self.emit("Add", [xn, recalled], f"{name}/sum")], f"{name}/n")
        kept = self.emit("Mul", [z, self.emit("Sub", [h, n], f"{name}/step")], f"{name}/kept")
        after = self._formed(self.emit("Add", [n, kept], f"{name}/state"), (1, BATCH, size))
        self.layers[id(node)] = after
        for output in node.outputs:
            self.held[output.name] = (after, VECTOR)

    def _halves(self, x: gs.Variable) -> list[gs.Variable]:
        halves = [gs.Variable(f"{x.name}/{half}", np.dtype(np.float32)) for half in ("first", "second")]
        self.nodes.append(gs.Node("Split", f"{x.name}/halves", {"axis": 2}, [x], halves))
        return halves

    def _product(self, x: gs.Tensor, matrix: NDArray[Any], bias: NDArray[Any], name: str) -> gs.Variable:
        """Emit the product of a matrix [outputs, inputs] in eight bits and rows, plus a bias."""
        weights, scales = quantise_rows(matrix, BLOCK)
        constants = {"weights": weights, "scales": scales, "bias": bias.astype(np.float32)}
        quantised, scaled, added = (gs.Constant(f"{name}/{key}", value) for key, value in constants.items())
        no_zero_points = no_order = gs.Variable.empty()
        product = self.emit(
            "MatMulNBits", [x, quantised, scaled, no_zero_points, no_order, added], name,
            K=matrix.shape[1], N=matrix.shape[0], bits=8, block_size=BLOCK, accuracy_level=_INTEGER_PRODUCTS,
        )  # fmt: skip
        self.nodes[-1].domain = _DOMAIN
        return product


def quantise_rows(matrix: NDArray[Any], block: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Round a matrix to eight bits, with one scale for every block of a row.

    Parameters
    ----------
    matrix : ndarray, shape (outputs, inputs)
    block : int

    Returns
    -------
    weights : ndarray[uint8], shape (outputs, blocks, block)
        128 stands for 0; blocks beyond the inputs are filled with it.
    scales : ndarray[float32], shape (outputs, blocks)
        ``matrix`` is about ``(weights - 128) * scales``.
    """
    outputs, inputs = matrix.shape
    padded = np.zeros((outputs, -(-inputs // block) * block), np.float32)
    padded[:, :inputs] = matrix
    blocks = padded.reshape(outputs, -1, block)
    scales = np.abs(blocks).max(axis=2) / np.float32(127)
    steps = blocks / np.where(scales > 0, scales, 1)[..., None]
    return (np.round(steps) + 128).astype(np.uint8), scales
