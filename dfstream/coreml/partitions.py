"""Into how many pieces ONNX Runtime's Core ML execution provider would cut a graph, worked out on any system.

Every piece becomes a Core ML model of its own, and whatever lies between two of them runs on the CPU: a
graph in one piece is worth handing over, one in eleven is not. One piece says nothing about where Core ML
runs it.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from dfstream.coreml.ep_rules import TRIVIAL, ModelFormat, Site, Tensors, refusal
from dfstream.errors import BackendError, BackendUnavailable, first_line

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Partitions", "partition", "simplified"]


@dataclasses.dataclass(frozen=True)
class Partitions:
    """What the provider would take of a graph.

    Attributes
    ----------
    model_format : "MLProgram" or "NeuralNetwork"
    nodes : int
        Nodes of the simplified graph.
    groups : tuple of tuple of str
        Names of the nodes that it takes, one tuple for each partition.
    trivial : int
        How many partitions only reshape, transpose or cast. Recent versions of the provider, 1.31 among them,
        leave these to the CPU after all.
    refused : mapping of str to tuple of str
        ``operator: reason`` to the names of the nodes that it leaves to the CPU.
    """

    model_format: ModelFormat
    nodes: int
    groups: tuple[tuple[str, ...], ...]
    trivial: int
    refused: Mapping[str, tuple[str, ...]]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Nodes of each partition."""
        return tuple(map(len, self.groups))

    @property
    def taken(self) -> int:
        """Nodes of all partitions."""
        return sum(self.sizes)

    @property
    def count(self) -> int:
        """How many partitions there are."""
        return len(self.groups)


def partition(model: onnx.ModelProto, model_format: ModelFormat) -> Partitions:
    """Work out which nodes the provider takes and how it groups them.

    Parameters
    ----------
    model : ModelProto
        As the provider gets to see it: `simplified`, with whatever constant sizes it will have.
    model_format : "MLProgram" or "NeuralNetwork"
    """
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    tensors = Tensors.of(graph)
    reasons = [refusal(Site(node, tensors, model_format)) for node in graph.node]
    names = [node.name or f"{node.op_type}_{index}" for index, node in enumerate(graph.node)]
    refused: dict[str, tuple[str, ...]] = {}
    for node, name, reason in zip(graph.node, names, reasons, strict=True):
        if reason is not None:
            key = f"{node.op_type}: {reason}"
            refused[key] = (*refused.get(key, ()), name)
    groups = _groups(graph.node, [reason is None for reason in reasons])
    trivial = sum(all(graph.node[i].op_type in TRIVIAL for i in group) for group in groups)
    named = tuple(tuple(names[i] for i in group) for group in groups)
    return Partitions(model_format, len(graph.node), named, trivial, refused)


def simplified(graph: bytes) -> onnx.ModelProto:
    """Return a graph for one frame of one stream as ONNX Runtime's basic optimisation leaves it.

    Parameters
    ----------
    graph : bytes
        Serialised, checked before.

    Raises
    ------
    BackendError
        The runtime is missing or cannot load it.
    """
    from dfstream.patches.graph import with_sizes

    try:
        import onnxruntime as ort
    except ImportError as error:
        raise BackendUnavailable("onnxruntime cannot be imported", hint="pip install onnxruntime") from error
    sized = with_sizes(graph).SerializeToString()
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 4  # errors come as exceptions
    options.intra_op_num_threads = 1
    with tempfile.TemporaryDirectory(prefix="dfstream") as folder:
        path = Path(folder) / "simplified.onnx"  # the runtime hands the result out no other way
        options.optimized_model_filepath = str(path)
        try:
            ort.InferenceSession(sized, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime's errors share no base class
            reason = first_line(error)
            raise BackendError(f"onnxruntime cannot load the graph for one frame ({reason})") from error
        return onnx.load_model(path)


def _groups(nodes: Sequence[onnx.NodeProto], taken: Sequence[bool]) -> list[list[int]]:
    """Group the nodes that are taken, in waves over the graph, as ``partitioning_utils.cc`` does.

    A wave goes on for as long as it can without a refused node that reads from its group; the next one
    begins with these.
    """
    producer = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    readers: list[set[int]] = [set() for _ in nodes]
    waiting = [0] * len(nodes)
    for index, node in enumerate(nodes):
        for source in {producer[name] for name in node.input if name in producer}:
            readers[source].add(index)
            waiting[index] += 1
    ready = deque(index for index, count in enumerate(waiting) if not count)
    later: deque[int] = deque()
    groups: list[list[int]] = [[]]
    border: set[int] = set()
    while ready or later:
        if not ready:
            groups.append([])
            border.clear()
            ready, later = later, ready
            continue
        index = ready.popleft()
        if not taken[index] and index in border:
            later.append(index)
            continue
        if taken[index]:
            groups[-1].append(index)
            border |= readers[index]
        for reader in sorted(readers[index]):
            waiting[reader] -= 1
            if not waiting[reader]:
                ready.append(reader)
    return [group for group in groups if group]
