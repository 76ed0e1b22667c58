"""What all patches need: reading and writing graphs, walking them, telling constants apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.logger import G_LOGGER

from dfstream.errors import UnsupportedGraph
from dfstream.interface import FEATURES, LINKS, MASK, RESULTS, batch_axis

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

__all__ = [
    "BATCH",
    "FRAMES",
    "TIME",
    "ancestors",
    "append_slice",
    "constant",
    "constant_value",
    "consumers",
    "export_graph",
    "find_output",
    "import_graph",
    "producer",
    "replace_input",
    "sections",
    "static_shapes",
    "time_kernel",
    "time_pad",
    "variable",
    "with_sizes",
]

# its warnings about strange graphs go to stdout, where a program's results go
G_LOGGER.severity = G_LOGGER.ERROR

#: Symbols of the two dynamic axes.
BATCH, FRAMES = "B", "T"

#: End of a Slice that means "to the last one".
_TO_THE_END = 2**62

#: Time axis of the convolution maps [B, channels, T, width].
TIME = 2


def import_graph(model: onnx.ModelProto) -> gs.Graph:
    """Make an editable graph; shapes of inner tensors are dropped, exporters write meaningless ones."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.graph.value_info[:]
    try:
        graph = gs.import_onnx(bare)
    except Exception as error:  # for strange graphs it raises whatever it ran into
        raise UnsupportedGraph(f"the graph cannot be edited ({type(error).__name__}: {error})") from error
    for tensor in graph.outputs:
        tensor.dtype = tensor.dtype or np.dtype(np.float32)
    _name_nodes(graph)
    return graph


def _name_nodes(graph: gs.Graph) -> None:
    """Give every node a name of its own: ONNX asks for none, but patches name new tensors after nodes."""
    taken: set[str] = set()
    for index, node in enumerate(graph.nodes):
        node.name = node.name or f"{node.op}_{index}"
        while node.name in taken:
            node.name += f"_{index}"
        taken.add(node.name)


def export_graph(graph: gs.Graph, metadata: dict[str, str] | None = None) -> bytes:
    """Serialise a graph, the same bytes for the same graph.

    Raises
    ------
    UnsupportedGraph
        The result is not a valid ONNX graph.
    """
    for tensor in graph.tensors().values():
        if isinstance(tensor, gs.Variable) and not any(tensor is t for t in (*graph.inputs, *graph.outputs)):
            tensor.shape = None  # stale after surgery
    model = gs.export_onnx(graph, do_type_check=False)
    del model.graph.value_info[:]
    del model.metadata_props[:]
    model.producer_name, model.producer_version = "dfstream", ""
    for key, value in sorted((metadata or {}).items()):
        model.metadata_props.add(key=key, value=value)
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise UnsupportedGraph(f"the patched graph is not valid ONNX: {_first_line(error)}") from error
    data: bytes = model.SerializeToString(deterministic=True)
    return data


# -- tensors ---------------------------------------------------------------------------------------


def variable(name: str, shape: Iterable[int | str] | None = None) -> gs.Variable:
    """Make a float32 tensor that is computed or fed."""
    return gs.Variable(name, dtype=np.dtype(np.float32), shape=None if shape is None else list(shape))


def constant(name: str, values: Any, dtype: Any = np.int64) -> gs.Constant:
    """Make a tensor with a fixed value."""
    return gs.Constant(name, np.array(values, dtype=dtype))


def constant_value(tensor: gs.Tensor) -> NDArray[Any] | None:
    """Return the value of a tensor that is fixed in the graph, else None."""
    if isinstance(tensor, gs.Constant):
        values: NDArray[Any] = tensor.values
        return values
    node = producer(tensor)
    if node is not None and node.op == "Constant" and "value" in node.attrs:
        return node.attrs["value"].values  # type: ignore[no-any-return]
    return None


def producer(tensor: gs.Tensor) -> gs.Node | None:
    """Return the node that computes a tensor, None for inputs and constants."""
    return tensor.inputs[0] if tensor.inputs else None


def consumers(tensor: gs.Tensor) -> list[gs.Node]:
    """Return the nodes that read a tensor, each once, in the order they appear."""
    return list({id(node): node for node in tensor.outputs}.values())


def replace_input(node: gs.Node, old: gs.Tensor, new: gs.Tensor) -> None:
    """Let a node read ``new`` wherever it reads ``old``."""
    for index, tensor in enumerate(node.inputs):
        if tensor is old:
            node.inputs[index] = new


def append_slice(
    graph: gs.Graph, tensor: gs.Tensor, start: int, end: int | None, axis: int, output: gs.Variable, name: str
) -> None:
    """Add a Slice of one axis that computes ``output``; ``end`` None is to the last one."""
    bounds = (("start", start), ("end", _TO_THE_END if end is None else end), ("axis", axis))
    constants = [constant(f"{name}/{what}", [value]) for what, value in bounds]
    graph.nodes.append(gs.Node("Slice", name, {}, [tensor, *constants], [output]))


def find_output(graph: gs.Graph, name: str) -> gs.Variable:
    """Return a graph output by name."""
    for tensor in graph.outputs:
        if tensor.name == name:
            return tensor
    raise UnsupportedGraph(f"the graph has no output {name!r}; it has {[t.name for t in graph.outputs]}")


# -- structure -------------------------------------------------------------------------------------


def ancestors(*tensors: gs.Tensor) -> set[int]:
    """Return the ids of all nodes that the given tensors depend on."""
    seen: set[int] = set()
    stack = list(tensors)
    while stack:
        node = producer(stack.pop())
        if node is not None and id(node) not in seen:
            seen.add(id(node))
            stack.extend(node.inputs)
    return seen


def sections(graph: gs.Graph) -> dict[str, set[int]]:
    """Sort the nodes of a graph, whole or partial, into ``enc``, ``erb`` and ``df``, as sets of node ids.

    By structure: the encoder is what the LSNR depends on, a decoder what its own result needs besides.
    """
    results = {t.name: t for t in graph.outputs if t.name in (*RESULTS, MASK)}
    encoder = ancestors(results["lsnr"]) if "lsnr" in results else set()
    found = {"enc": encoder, "erb": set[int](), "df": set[int]()}
    for result, section in (("m", "erb"), (MASK, "erb"), ("coefs", "df")):
        if result in results:
            found[section] = ancestors(results[result]) - encoder
    return found


def time_pad(node: gs.Node) -> int:
    """Return by how many frames a Pad lengthens the past of a convolution map, 0 if it is no such Pad.

    Raises
    ------
    UnsupportedGraph
        A Pad that reaches into the future, or anything else but zeros before the first frame.
    """
    if node.op != "Pad":
        return 0
    optional = [t for t in node.inputs[2:] if not t.is_empty()]
    amounts = constant_value(node.inputs[1]) if len(node.inputs) > 1 else None
    if amounts is None or len(amounts) != 8 or any(constant_value(t) is None for t in optional):
        raise UnsupportedGraph(f"Pad {node.name!r}: its amounts are not constants of a rank-4 map")
    before = int(amounts[TIME])
    # the amounts may also come with their axes, from opset 18 on: no exporter of the family does that
    plain = node.attrs.get("mode", "constant") == "constant" and len(optional) < 2
    zeros = not any(np.any(constant_value(t)) for t in optional)
    if not plain or not zeros or before <= 0 or np.any(np.delete(amounts, TIME)):
        raise UnsupportedGraph(
            f"Pad {node.name!r} with amounts {amounts.tolist()}: expected zeros before the first frame only"
        )
    wrong = [n.op for n in consumers(node.outputs[0]) if n.op not in ("Conv", "Slice")]
    if wrong:
        raise UnsupportedGraph(f"Pad {node.name!r} feeds {wrong[0]}, expected a Conv")
    return before


def time_kernel(node: gs.Node) -> int:
    """Return how many frames a convolution spans; all of its past must come from a Pad.

    Raises
    ------
    UnsupportedGraph
        It strides, dilates or pads along time itself, or is a transposed one over several frames.
    """
    weight = constant_value(node.inputs[1])
    if weight is None or weight.ndim != 4:
        raise UnsupportedGraph(f"{node.op} {node.name!r}: its weight is not a constant of rank 4")
    strides, dilations = node.attrs.get("strides", [1, 1]), node.attrs.get("dilations", [1, 1])
    pads = node.attrs.get("pads", [0, 0, 0, 0])
    automatic = node.attrs.get("auto_pad", "NOTSET") != "NOTSET"
    if strides[0] != 1 or dilations[0] != 1 or pads[0] or pads[2] or automatic:
        raise UnsupportedGraph(f"{node.op} {node.name!r} strides, dilates or pads along time")
    if node.op == "ConvTranspose" and weight.shape[2] != 1:
        raise UnsupportedGraph(f"ConvTranspose {node.name!r} spans {weight.shape[2]} frames, expected 1")
    return int(weight.shape[2])


def with_sizes(data: bytes, batch: int = 1, frames: int = 1) -> onnx.ModelProto:
    """Return a graph whose inputs are declared with a given batch and number of frames."""
    model = onnx.load_model_from_string(data)
    del model.graph.value_info[:]
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        dims[batch_axis(value.name)].dim_value = batch
        if value.name in (*FEATURES, *LINKS):
            dims[TIME if len(dims) == 4 else 1].dim_value = frames
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    return model


def static_shapes(data: bytes, batch: int = 1, frames: int = 1) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all tensors of a graph for a given batch and number of frames.

    Raises
    ------
    UnsupportedGraph
        The shapes cannot be worked out.
    """
    model = with_sizes(data, batch, frames)
    try:
        model = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        raise UnsupportedGraph(
            f"the shapes of the graph do not fit together: {_first_line(error)}"
        ) from error
    return dict(_shapes(model.graph))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _shapes(graph: onnx.GraphProto) -> Iterator[tuple[str, tuple[int, ...]]]:
    for value in (*graph.input, *graph.value_info, *graph.output):
        dims = value.type.tensor_type.shape.dim
        if all(dim.HasField("dim_value") for dim in dims):
            yield value.name, tuple(dim.dim_value for dim in dims)
    for tensor in graph.initializer:
        yield tensor.name, tuple(tensor.dims)
