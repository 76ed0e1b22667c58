"""Split a merged graph into the four graphs of Streaming mode."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs

from dfstream.errors import UnsupportedGraph
from dfstream.interface import FEATURES, state_output

from .graph import BATCH, FRAMES, export_graph, producer, sections, static_shapes
from .gru_state import find_grus

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["split_encoder"]

_SKIPS = ("e0", "e1", "e2", "e3")


def split_encoder(graph: gs.Graph) -> dict[str, gs.Graph]:
    """Cut a merged graph with exposed states into ``enc_conv``, ``enc_gru``, ``erb_dec`` and ``df_dec``.

    The encoder is cut where its GRU begins, so that a caller can look at the LSNR before it runs a
    decoder. ``enc_conv`` gives ``e0..e3``, ``c0`` and ``emb``, the embedding in front of the GRU;
    ``enc_gru`` turns it into ``emb_out``, which both decoders read as ``emb``, and ``lsnr``. Each graph
    keeps the states of its own layers.

    Returns
    -------
    dict of str to Graph
        By these names and ``_streaming``, in the order they run.

    Raises
    ------
    UnsupportedGraph
        A shared tensor is missing under its usual name, or a part reads more than it is given.
    """
    tensors = graph.tensors()
    absent = [name for name in (*_SKIPS, "c0", "emb") if name not in tensors]
    if absent:
        raise UnsupportedGraph(f"split_encoder: no tensor {absent[0]!r} between encoder and decoders")
    before_gru = _gru_input(graph).name
    _declare_links(graph, before_gru)
    states = _states_by_part(graph, before_gru)
    conv = _extract(graph, [*FEATURES], [*_SKIPS, "c0", before_gru], states["enc_conv"])
    gru = _extract(graph, [before_gru], ["emb", "lsnr"], states["enc_gru"])
    erb = _extract(graph, ["emb", "e3", "e2", "e1", "e0"], ["m"], states["erb_dec"])
    df = _extract(graph, ["emb", "c0"], ["coefs"], states["df_dec"])
    gru.outputs[0].name = "emb_out"
    conv.outputs[5].name = gru.inputs[0].name = "emb"
    parts = {"enc_conv": conv, "enc_gru": gru, "erb_dec": erb, "df_dec": df}
    return {f"{name}_streaming": part for name, part in parts.items()}


def _gru_input(graph: gs.Graph) -> gs.Variable:
    """Return the tensor [B, T, n] that the encoder's first GRU reads, before it is turned time first."""
    first = find_grus(graph)["enc"][0].node
    turn = producer(first.inputs[0])
    if turn is None or turn.op != "Transpose" or list(turn.attrs.get("perm", ())) != [1, 0, 2]:
        raise UnsupportedGraph(f"split_encoder: GRU {first.name!r} does not read a transposed embedding")
    return turn.inputs[0]


def _declare_links(graph: gs.Graph, before_gru: str) -> None:
    """Write the shapes of the tensors that become inputs and outputs."""
    shapes, tensors = static_shapes(export_graph(graph)), graph.tensors()
    for name in (*_SKIPS, "c0", "emb", before_gru):
        sizes = shapes[name]
        tensor = tensors[name]
        tensor.dtype = np.dtype(np.float32)
        tensor.shape = [BATCH, sizes[1], FRAMES, sizes[3]] if len(sizes) == 4 else [BATCH, FRAMES, sizes[2]]


def _states_by_part(graph: gs.Graph, before_gru: str) -> dict[str, list[str]]:
    """Sort the state inputs by the part whose nodes read them."""
    members = sections(graph)
    conv = _extract(graph, [*FEATURES], [before_gru], None)
    conv_inputs = {t.name for t in conv.inputs}
    parts: dict[str, list[str]] = {"enc_conv": [], "enc_gru": [], "erb_dec": [], "df_dec": []}
    for tensor in graph.inputs:
        if tensor.name in FEATURES:
            continue
        readers = {id(node) for node in tensor.outputs}
        if readers & members["enc"]:
            parts["enc_conv" if tensor.name in conv_inputs else "enc_gru"].append(tensor.name)
        else:
            parts["erb_dec" if readers & members["erb"] else "df_dec"].append(tensor.name)
    return parts


def _extract(
    graph: gs.Graph, inputs: Sequence[str], outputs: Sequence[str], states: Sequence[str] | None
) -> gs.Graph:
    """Copy what lies between tensors; ``states`` None takes whatever state inputs turn out to be read."""
    part = graph.copy()
    tensors = part.tensors()
    given = {t.name: t for t in part.inputs}
    wanted = list(states if states is not None else [n for n in given if n not in FEATURES])
    part.outputs = [tensors[n] for n in outputs] + [tensors[state_output(n)] for n in states or ()]
    for name in inputs:
        tensors[name].inputs.clear()
    part.inputs = [tensors[n] for n in (*inputs, *wanted)]
    part.cleanup(remove_unused_graph_inputs=states is None).toposort()
    if states is not None:
        fed = {id(t) for t in part.inputs}
        for node in part.nodes:
            for tensor in node.inputs:
                if (
                    isinstance(tensor, gs.Variable)
                    and not tensor.is_empty()
                    and not tensor.inputs
                    and id(tensor) not in fed
                ):
                    raise UnsupportedGraph(
                        f"split_encoder: {node.op} {node.name!r} also reads {tensor.name!r}"
                    )
    return part
