"""Graph builders for synthetic DeepFilterNet exports, one for each exporter that is imitated.

A `Builder` collects nodes and weights. How an exporter spells a padding, a reshape or a recurrent
layer differs much, what they mean does not: `TorchBuilder` writes them as ``torch.onnx`` does, with
shapes computed inside the graph, `LeanBuilder` as constants.
"""

from __future__ import annotations

import collections
import contextlib
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from synthetic_weights import GruWeights

__all__ = ["Builder", "LeanBuilder", "TorchBuilder"]

#: End of a backward slice that includes element 0, as ``torch.onnx`` writes it.
_BEFORE_FIRST = -(2**63) + 1


class Builder:
    """A graph under construction; tensors are known by their names.

    Parameters
    ----------
    name : str
        Name of the graph.
    opset : int
    producer : tuple of str
        Name and version of the exporter that is imitated.
    """

    def __init__(self, name: str, opset: int, producer: tuple[str, str]) -> None:
        self.name, self.opset, self._producer = name, opset, producer
        self._scope: list[str] = []
        self._used: collections.Counter[str] = collections.Counter()
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []

    @contextlib.contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Name what is built inside after a module of the network."""
        self._scope.append(name)
        yield
        self._scope.pop()

    def input(self, name: str, shape: Sequence[int | str]) -> str:
        """Declare a graph input."""
        self._inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        return name

    def output(self, name: str, shape: Sequence[int | str]) -> None:
        """Declare a graph output."""
        self._outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))

    def node(self, op: str, *inputs: str, out: str | None = None, **attributes: Any) -> str:
        """Append a node of one output and return the name of that output."""
        return self._append(op, inputs, [out], attributes)[0]

    def weight(self, op: str, values: NDArray[Any]) -> str:
        """Store a weight that a node of type ``op`` will read."""
        name = self._weight_name(op)
        self._weights.append(numpy_helper.from_array(values, name))
        return name

    def model(self) -> bytes:
        """Check and serialise what was built, the same bytes for the same graph."""
        graph = helper.make_graph(self._nodes, self.name, self._inputs, self._outputs, self._weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=7)
        model.producer_name, model.producer_version = self._producer
        onnx.checker.check_model(model, full_check=True)
        data: bytes = model.SerializeToString(deterministic=True)
        return data

    def _append(
        self, op: str, inputs: Sequence[str], outputs: Sequence[str | None], attributes: dict[str, Any]
    ) -> list[str]:
        name, fresh = self._names(op, len(outputs))
        named = [wanted or made for wanted, made in zip(outputs, fresh, strict=True)]
        self._nodes.append(helper.make_node(op, inputs, named, name=name, **attributes))
        return named

    # -- what exporters spell differently -----------------------------------------------------------

    def _names(self, op: str, outputs: int) -> tuple[str, list[str]]:
        raise NotImplementedError

    def _weight_name(self, op: str) -> str:
        raise NotImplementedError

    def constant(self, values: Any, dtype: Any = np.int64) -> str:
        """Store a small constant, of any rank."""
        raise NotImplementedError

    def time_pad(self, x: str, frames: int) -> str:
        """Put zero frames before the first frame of a map [B, C, T, F]."""
        raise NotImplementedError

    def split_last(self, x: str, sizes: Sequence[int], *, like: str | None = None) -> str:
        """Reshape [B, T, N] to [B, T, *sizes]; B and T may be taken from another tensor."""
        raise NotImplementedError

    def merge_last(self, x: str, width: int) -> str:
        """Reshape [B, T, G, N] to [B, T, width]."""
        raise NotImplementedError

    def as_map(self, x: str, like: str, channels: int, width: int) -> str:
        """Turn vectors [B, T, F * C] into a map [B, C, T, F] of the size of the map ``like``."""
        raise NotImplementedError

    def gru(
        self, x: str, layers: Sequence[GruWeights], *, state: tuple[str, str] | None, out: str | None
    ) -> list[str]:
        """Append recurrent layers over [B, T, N]; return those outputs that exist as [B, T, H], in order.

        With ``state`` (names of a graph input and output) the caller keeps it, else it starts as zeros.
        """
        raise NotImplementedError

    def flatten(self, x: str, width: int) -> str:
        """Turn a map [B, C, T, F] into vectors [B, T, F * C], frequency-major."""
        return self.merge_last(self.node("Transpose", x, perm=[0, 2, 3, 1]), width)

    def _gru_node(
        self, x: str, weights: GruWeights, initial: str, last: str | None = None
    ) -> tuple[str, str]:
        """Append one layer; returns ``Y`` [T, 1, B, H] and ``Y_h`` [1, B, H]."""
        named = [self.weight("GRU", w) for w in weights]
        attributes = {"hidden_size": weights[1].shape[-1], "linear_before_reset": 1}
        y, y_h = self._append("GRU", [x, *named, "", initial], [None, last], attributes)
        return y, y_h


class TorchBuilder(Builder):
    """Writes graphs as ``torch.onnx.export`` does.

    Parameters
    ----------
    name, opset
        As `Builder`; from opset 13 on, the axes of Squeeze and Unsqueeze are inputs.
    gru_constants : bool
        Keep the weights of recurrent layers in Constant nodes instead of initializers.
    """

    def __init__(self, name: str, opset: int, *, gru_constants: bool = False) -> None:
        super().__init__(name, opset, ("pytorch", "1.13.1" if opset < 13 else "2.6.0"))
        self._gru_constants = gru_constants
        self._lengths: dict[str, list[str]] = {}

    def _names(self, op: str, outputs: int) -> tuple[str, list[str]]:
        stem = "/" + "/".join([*self._scope, op])
        count = self._used[stem]
        self._used[stem] += 1
        name = f"{stem}_{count}" if count else stem
        return name, [f"{name}_output_{index}" for index in range(outputs)]

    def _weight_name(self, op: str) -> str:
        self._used["onnx::"] += 1
        return f"onnx::{op}_{self._used['onnx::'] + 267}"

    def anonymous(self) -> str:
        """Return a name for an output that the exporting call did not name: a bare number."""
        return str(len(self._nodes) + len(self._weights) + 100)

    def weight(self, op: str, values: NDArray[Any]) -> str:
        if op == "GRU" and self._gru_constants:
            return self.constant(values, np.float32)
        return super().weight(op, values)

    def constant(self, values: Any, dtype: Any = np.int64) -> str:
        return self.node("Constant", value=numpy_helper.from_array(np.array(values, dtype=dtype)))

    def time_pad(self, x: str, frames: int) -> str:
        """The exporter reorders the amounts, width first in PyTorch, inside the graph."""
        none = self.node(
            "ConstantOfShape", self.constant([4]), value=numpy_helper.from_array(np.zeros(1, np.int64))
        )
        pairs = self.node("Concat", self.constant([0, 0, frames, 0]), none, axis=0)
        pairs = self._reshape(pairs, self.constant([-1, 2]))
        pairs = self._slice(pairs, -1, _BEFORE_FIRST, step=-1)
        amounts = self._reshape(self.node("Transpose", pairs, perm=[1, 0]), self.constant([-1]))
        amounts = self.node("Cast", amounts, to=TensorProto.INT64)
        return self.node("Pad", x, amounts, self.constant(0.0, np.float32), mode="constant")

    def split_last(self, x: str, sizes: Sequence[int], *, like: str | None = None) -> str:
        lengths = [*self._dims(like or x, 0, 1), *(self.constant([size]) for size in sizes)]
        return self._reshape(x, self.node("Concat", *lengths, axis=0))

    def merge_last(self, x: str, width: int) -> str:  # noqa: ARG002
        lengths = self._slice(self.node("Shape", x), 0, 2)
        return self._reshape(x, self.node("Concat", lengths, self.constant([-1]), axis=0))

    def as_map(self, x: str, like: str, channels: int, width: int) -> str:  # noqa: ARG002
        lengths = [*self._dims(like, 0, 2, 3), self.constant([-1])]
        x = self._reshape(x, self.node("Concat", *lengths, axis=0))
        return self.node("Transpose", x, perm=[0, 3, 1, 2])

    def gru(
        self, x: str, layers: Sequence[GruWeights], *, state: tuple[str, str] | None, out: str | None
    ) -> list[str]:
        initial = state[0] if state else self._zero_state(x, len(layers), layers[0][1].shape[-1])
        single = len(layers) == 1
        x = self.node("Transpose", x, perm=[1, 0, 2])
        finals = []
        for index, weights in enumerate(layers):
            first = initial if single else self._slice(initial, index, index + 1)
            y, final = self._gru_node(x, weights, first, state[1] if state and single else None)
            x = self._axes("Squeeze", y, 1)
            finals.append(final)
        if state and not single:
            self.node("Concat", *finals, axis=0, out=state[1])
        return [self.node("Transpose", x, perm=[1, 0, 2], out=out)]

    def _zero_state(self, x: str, layers: int, hidden: int) -> str:
        batch = self._dims(x, 0)
        shape = self.node("Concat", self.constant([layers]), *batch, self.constant([hidden]), axis=0)
        return self.node("ConstantOfShape", shape, value=numpy_helper.from_array(np.zeros(1, np.float32)))

    def _dims(self, x: str, *axes: int) -> list[str]:
        """Return lengths of a tensor, each as a vector of one element; reads of one tensor share them."""
        if x not in self._lengths:
            shape = self.node("Shape", x)
            self._lengths[x] = [self.node("Gather", shape, self.constant(axis), axis=0) for axis in axes]
        return [self._axes("Unsqueeze", length, 0) for length in self._lengths[x][: len(axes)]]

    def _axes(self, op: str, x: str, axis: int) -> str:
        if self.opset < 13:
            return self.node(op, x, axes=[axis])
        return self.node(op, x, self.constant([axis]))

    def _reshape(self, x: str, shape: str) -> str:
        return (
            self.node("Reshape", x, shape) if self.opset < 14 else self.node("Reshape", x, shape, allowzero=0)
        )

    def _slice(self, x: str, start: int, end: int, *, step: int | None = None) -> str:
        bounds = [self.constant([value]) for value in (start, end, 0, *([] if step is None else [step]))]
        return self.node("Slice", x, *bounds)


class LeanBuilder(Builder):
    """Writes graphs whose shapes, paddings and initial states are constants, for one stream."""

    def __init__(self, name: str) -> None:
        super().__init__(name, 12, ("synthetic", ""))

    def _names(self, op: str, outputs: int) -> tuple[str, list[str]]:
        self._used["node"] += 1
        name = f"{op.lower()}_{self._used['node']}"
        return name, [name, *(f"{name}_{index}" for index in range(1, outputs))]

    def _weight_name(self, op: str) -> str:  # noqa: ARG002
        return f"const_{len(self._weights)}"

    def constant(self, values: Any, dtype: Any = np.int64) -> str:
        return self.weight("", np.array(values, dtype=dtype))

    def time_pad(self, x: str, frames: int) -> str:
        amounts = self.constant([0, 0, frames, 0, 0, 0, 0, 0])
        return self.node("Pad", x, amounts, self.constant(0.0, np.float32), mode="constant")

    def split_last(self, x: str, sizes: Sequence[int], *, like: str | None = None) -> str:  # noqa: ARG002
        return self.node("Reshape", x, self.constant([1, -1, *sizes]))

    def merge_last(self, x: str, width: int) -> str:
        return self.node("Reshape", x, self.constant([1, -1, width]))

    def as_map(self, x: str, like: str, channels: int, width: int) -> str:  # noqa: ARG002
        return self.node("Transpose", self.split_last(x, [width, channels]), perm=[0, 3, 1, 2])

    def gru(
        self, x: str, layers: Sequence[GruWeights], *, state: tuple[str, str] | None, out: str | None
    ) -> list[str]:
        assert state is None, "the lean exporter has no stateful form"
        outputs = []
        for weights in layers:
            initial = self.constant(np.zeros((1, 1, weights[1].shape[-1])), np.float32)
            y, _ = self._gru_node(self.node("Transpose", x, perm=[1, 0, 2]), weights, initial)
            last = out if weights is layers[-1] else None
            x = self.node("Transpose", self.node("Squeeze", y, axes=[1]), perm=[1, 0, 2], out=last)
            outputs.append(x)
        return outputs
