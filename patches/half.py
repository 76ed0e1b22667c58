"""Every tensor of a graph in float16, its interface included: for accelerators that compute in nothing else.

Unlike `dfstream.patches.quantise.store_half`, which only stores weights in less, this changes what is
computed: states keep eleven bits from frame to frame. There is no Cast in the result, which the Neural
Engine of the first Apple processors does not have, and Core ML's execution provider does not take in front
of a graph.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx

from dfstream.errors import UnsupportedGraph

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["compute_half"]

_T = onnx.TensorProto

#: Operators that compute in whatever type they are given.
_GENERIC = frozenset(
    ("Add", "Concat", "Conv", "Mul", "Relu", "Reshape", "Sigmoid", "Slice", "Sub", "Tanh", "Transpose")
)


def compute_half(graph: bytes) -> bytes:
    """Return a graph of float32 operators, such as the canonical one, in float16.

    Parameters
    ----------
    graph : bytes
        Serialised.

    Raises
    ------
    UnsupportedGraph
        A weight is beyond the range of float16, or an operator may not exist for it.
    """
    model = onnx.load_model_from_string(graph)
    others = {node.op_type for node in model.graph.node} - _GENERIC
    if others:
        raise UnsupportedGraph(f"no float16 form for {', '.join(sorted(others))}")
    for tensor in model.graph.initializer:
        if tensor.data_type == _T.FLOAT:
            tensor.CopyFrom(_rounded(tensor))
    _retype((*model.graph.input, *model.graph.output, *model.graph.value_info))
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def _rounded(tensor: onnx.TensorProto) -> onnx.TensorProto:
    values = onnx.numpy_helper.to_array(tensor)
    if np.abs(values).max(initial=0) > np.finfo(np.float16).max:
        raise UnsupportedGraph(f"the weight {tensor.name!r} is beyond the range of float16")
    return onnx.numpy_helper.from_array(values.astype(np.float16), tensor.name)


def _retype(values: Iterable[onnx.ValueInfoProto]) -> None:
    for value in values:
        if value.type.tensor_type.elem_type == _T.FLOAT:
            value.type.tensor_type.elem_type = _T.FLOAT16
