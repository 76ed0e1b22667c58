"""Parsing a graph that may be broken or hostile, before any runtime sees it.

What is refused: bytes that are no ONNX model, text that is no text, tensors kept in other files, operators
of other domains or unknown in the family, own functions, control flow, training parts, absurd numbers of
nodes or tensors, tensors whose size and data disagree, constants that grow into something huge.

Known limits: bytes that are no graph may take 80 times their size in memory while they are parsed, and a
well-formed graph can still ask a runtime for much memory while it runs or, by sizes computed from its
inputs' shapes, shape inference.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from dfstream.errors import ArchiveError, UnsupportedGraph

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx
    from google.protobuf.message import Message

__all__ = ["parse_graph"]

# an official export has 375 nodes with 860 edges and 84 stored tensors when it is merged
_MAX_NODES = 2_000  # graph surgery takes time in the square of these
_MAX_EDGES = 20_000
_MAX_STORED = 4_000
_MAX_ELEMENTS = 1 << 24
_MAX_RANK = 8
_MAX_SHAPE_ELEMENTS = 1 << 16
_LOWEST_OPSET = 11  # Pad with its amounts as an input; older exports of the family do not exist
_DOMAINS = ("", "ai.onnx")

#: What exporters of the family write, and what like it computes each frame by itself. Patches follow the
#: time axis through these; nobody has looked at what another operator does to it.
_OPERATORS = (
    "Add", "BatchNormalization", "Cast", "Clip", "Concat", "Constant", "ConstantOfShape", "Conv",
    "ConvTranspose", "Div", "Einsum", "Elu", "Expand", "GRU", "Gather", "Gemm", "HardSigmoid", "Identity",
    "LeakyRelu", "MatMul", "Mul", "PRelu", "Pad", "Relu", "Reshape", "Shape", "Sigmoid", "Slice", "Split",
    "Squeeze", "Sub", "Tanh", "Transpose", "Unsqueeze",
)  # fmt: skip

#: What graphs of the whole signal path have besides; nothing is patched there.
_AUDIO_OPERATORS = (
    "Abs", "CumSum", "Equal", "Exp", "Less", "Log", "Max", "ReduceSum", "Sin", "Sqrt", "Where",
)  # fmt: skip


def parse_graph(data: bytes, name: str) -> onnx.ModelProto:
    """Parse one ONNX model and refuse what is broken, unsafe or outside the standard operators.

    Parameters
    ----------
    data : bytes
        Serialised ``ModelProto``.
    name : str
        Name used in errors.

    Raises
    ------
    ArchiveError
        Broken or unsafe.
    UnsupportedGraph
        A sound model that uses something the family never does.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_model_from_string(data)
    except (DecodeError, ValueError) as error:
        raise ArchiveError(f"{name}: not an ONNX model") from error
    if not model.graph.node or not model.graph.output:
        raise ArchiveError(f"{name}: not an ONNX model, or an empty one")
    _check_counts(model.graph, name)
    _check_text(model, name)
    _check_declared(model.graph, name)
    _check_operators(model, name)
    for tensor in _tensors(model.graph, name):
        _check_tensor(tensor, name)
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ArchiveError(f"{name}: not a valid ONNX graph ({reason})") from error
    _check_growth(model.graph, name)
    return model


def _check_counts(graph: onnx.GraphProto, name: str) -> None:
    stored = graph.initializer, graph.sparse_initializer, graph.value_info, graph.input, graph.output
    counts = (
        ("nodes", len(graph.node), _MAX_NODES),
        ("tensors", sum(map(len, stored)), _MAX_STORED),
        ("edges", sum(len(n.input) + len(n.output) + len(n.attribute) for n in graph.node), _MAX_EDGES),
    )
    for what, count, limit in counts:
        if count > limit:
            raise ArchiveError(f"{name}: {count} {what}, limit {limit}")


def _check_declared(graph: onnx.GraphProto, name: str) -> None:
    """Refuse absurd sizes of inputs and outputs: onnxruntime ends the process over some of them."""
    for value in (*graph.input, *graph.output, *graph.value_info):
        sizes = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        if min(sizes, default=0) < 0 or math.prod(max(size, 1) for size in sizes) > _MAX_ELEMENTS:
            raise ArchiveError(
                f"{name}: {value.name!r} is declared with the absurd shape {sizes[:_MAX_RANK]}"
            )


def _check_text(message: Message, name: str) -> None:
    """Refuse names that are not UTF-8: they come out as bytes, which no other code expects."""
    for field, value in message.ListFields():
        if field.type == field.TYPE_STRING:
            if any(
                isinstance(text, bytes) for text in ([value] if isinstance(value, str | bytes) else value)
            ):
                raise ArchiveError(f"{name}: not an ONNX model ({field.name} is not text)")
        elif field.type == field.TYPE_MESSAGE:
            for part in [value] if hasattr(value, "ListFields") else value:
                _check_text(part, name)


def _check_operators(model: onnx.ModelProto, name: str) -> None:
    import onnx

    if model.functions or model.training_info:
        raise UnsupportedGraph(f"{name}: defines functions or training parts")
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    newest = onnx.defs.onnx_opset_version()
    opset = max(opsets.get("", 0), opsets.get("ai.onnx", 0))
    if not _LOWEST_OPSET <= opset <= newest:
        raise UnsupportedGraph(f"{name}: opset {opset}, supported are {_LOWEST_OPSET} to {newest}")
    takes_audio = any(value.name == "audio" for value in model.graph.input)
    known = {*_OPERATORS, *(_AUDIO_OPERATORS if takes_audio else ())}
    for node in model.graph.node:
        if node.domain not in _DOMAINS:
            raise UnsupportedGraph(f"{name}: operator {node.op_type} of the unknown domain {node.domain!r}")
        if not onnx.defs.has(node.op_type, opset):
            raise UnsupportedGraph(f"{name}: operator {node.op_type} does not exist in opset {opset}")
        if node.op_type not in known:
            raise UnsupportedGraph(f"{name}: operator {node.op_type}, which no export of the family has")


def _tensors(graph: onnx.GraphProto, name: str) -> Iterator[onnx.TensorProto]:
    """All tensors stored in a graph; refuses sub-graphs and sparse tensors on the way."""
    if graph.sparse_initializer:
        raise UnsupportedGraph(f"{name}: sparse tensors")
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g") or attribute.graphs:
                raise UnsupportedGraph(f"{name}: control flow ({node.op_type})")
            if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
                raise UnsupportedGraph(f"{name}: sparse tensors")
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def _check_tensor(tensor: onnx.TensorProto, name: str) -> None:
    import onnx

    where = f"{name}: tensor {tensor.name!r}"
    if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
        raise ArchiveError(f"{where} keeps its data in another file")
    if tensor.HasField("segment"):
        raise ArchiveError(f"{where} is stored in segments")
    sizes = [max(dim, 1) for dim in tensor.dims]  # one zero must not hide other absurd sizes
    if len(sizes) > _MAX_RANK or min(tensor.dims, default=0) < 0 or math.prod(sizes) > _MAX_ELEMENTS:
        raise ArchiveError(f"{where} has the absurd shape {list(tensor.dims[:_MAX_RANK])}")
    T = onnx.TensorProto
    if tensor.data_type not in (T.FLOAT, T.INT64, T.INT32, T.BOOL, T.FLOAT16, T.DOUBLE):
        raise UnsupportedGraph(f"{where} has the type {tensor.data_type}, which the family does not use")
    if tensor.HasField("raw_data"):
        itemsize = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        if len(tensor.raw_data) != itemsize * math.prod(tensor.dims):
            raise ArchiveError(
                f"{where}: its shape {list(tensor.dims)} and its {len(tensor.raw_data)} bytes disagree"
            )
    else:
        stored = (
            len(tensor.float_data) + len(tensor.int64_data) + len(tensor.int32_data) + len(tensor.double_data)
        )
        if stored != math.prod(tensor.dims):
            raise ArchiveError(f"{where}: its shape {list(tensor.dims)} and its {stored} values disagree")


def _check_growth(graph: onnx.GraphProto, name: str) -> None:
    """Refuse vectors that grow without end: shape inference carries shape arithmetic out as it goes.

    Thirty nodes that join a vector with itself make 2^30 numbers of one. Only upper bounds are needed;
    what is no vector of constants counts as one.
    """
    from onnx import numpy_helper

    constants = {t.name: t for t in graph.initializer}
    constants |= {
        n.output[0]: a.t
        for n in graph.node
        if n.op_type == "Constant"
        for a in n.attribute
        if a.HasField("t")
    }
    sizes = {key: t.dims[0] for key, t in constants.items() if len(t.dims) == 1}
    for node in graph.node:
        parts = [sizes.get(key, 1) for key in node.input] or [1]
        size = sum(parts) if node.op_type in ("Concat", "Gather") else max(parts)
        if node.op_type in ("ConstantOfShape", "Expand") and node.input[-1] in constants:
            size = math.prod(max(int(n), 1) for n in numpy_helper.to_array(constants[node.input[-1]]).flat)
        if size > _MAX_SHAPE_ELEMENTS:
            raise ArchiveError(f"{name}: {node.op_type} {node.name!r} makes {size} numbers of constants")
        sizes.update((key, size) for key in node.output if key not in constants)
