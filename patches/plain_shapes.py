"""Say with constants what exporters work out of the sizes of tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .graph import constant, constant_value, export_graph, static_shapes

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

__all__ = ["plain_shapes"]

#: Two batches and numbers of frames, of which no size inside a network is a multiple by chance.
_PROBES = (1009, 1013), (1019, 1021)


def plain_shapes(graph: gs.Graph) -> list[str]:
    """Give every ``Reshape`` constant sizes where these follow from batch and frames.

    A PyTorch export asks tensors for their sizes and puts those together again, a dozen nodes for each
    reshaping. In ``Reshape`` 0 stands for a size that stays where it is and -1 for one other.
    """
    waiting = [n for n in graph.nodes if n.op == "Reshape" and constant_value(n.inputs[1]) is None]
    if not waiting:
        return []
    data = export_graph(graph)
    probes = [static_shapes(data, batch=batch, frames=frames) for batch, frames in _PROBES]
    sites = []
    for node in waiting:
        names = node.inputs[0].name, node.outputs[0].name
        if any(name not in shapes for shapes in probes for name in names):
            continue
        (given, wanted), (_, other) = ([shapes[name] for name in names] for shapes in probes)
        kept = _plain(given, wanted, other)
        if kept is not None:
            node.inputs[1] = constant(f"{node.name}/plain", kept)
            sites.append(node.name)
    graph.cleanup().toposort()
    return sites


def _plain(given: tuple[int, ...], wanted: tuple[int, ...], other: tuple[int, ...]) -> list[int] | None:
    """Return the constant sizes of a Reshape, None where two sizes vary in other places than before."""
    varying = np.not_equal(wanted, other) if len(wanted) == len(other) else np.ones(len(wanted), bool)
    plain = [
        size if not varies else 0 if i < len(given) and given[i] == size else -1
        for i, (size, varies) in enumerate(zip(wanted, varying, strict=True))
    ]
    return plain if plain.count(-1) < 2 else None
