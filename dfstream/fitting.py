"""Whether graphs have the shapes that the configuration says."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from dfstream.errors import UnsupportedGraph
from dfstream.interface import FEATURES, RESULTS, state_inputs

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx_graphsurgeon as gs

    from dfstream.config import ModelConfig

    Shapes = Mapping[str, tuple[int, ...]]

__all__ = ["check_export", "check_patched"]

#: Frames to try a graph with: more than any kernel, so that a result cut to its last frame is noticed.
_FRAMES = 7

#: More numbers than any tensor of the family has, for a few frames.
_MAX_ELEMENTS = 1 << 24


def check_export(merged: gs.Graph, config: ModelConfig, origin: str) -> None:
    """Refuse an unpatched graph whose shapes are not those of the configuration; changes the graph.

    Raises
    ------
    UnsupportedGraph
        Names the tensor, its shape and the expected one.
    """
    from dfstream.patches.fold import fold_constants
    from dfstream.patches.graph import export_graph, static_shapes

    fold_constants(merged)
    shapes = static_shapes(export_graph(merged), frames=_FRAMES)
    _check_sizes(shapes, origin)
    for name, shape in _expected(config, _FRAMES).items():
        if shapes.get(name) != shape:
            raise UnsupportedGraph(
                f"{origin}: {name} has the shape {shapes.get(name)} for {_FRAMES} frames, "
                f"the configuration says {shape}",
                hint="the graph is cut to its last frame already, or config.ini is another model's",
            )


def check_patched(files: Mapping[str, bytes], config: ModelConfig, origin: str) -> None:
    """Refuse patched graphs whose states or results no mode could carry.

    Raises
    ------
    UnsupportedGraph
        Names the file and the tensor.
    """
    import onnx

    from dfstream.patches.graph import BATCH, TIME, static_shapes

    for stem, data in files.items():
        graph = onnx.load_model_from_string(data).graph
        outputs = [value.name for value in graph.output]
        declared = {
            value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
            for value in graph.input
        }
        for state in state_inputs(declared, outputs):
            if not all(size == BATCH or (isinstance(size, int) and size > 0) for size in declared[state]):
                raise UnsupportedGraph(
                    f"{origin}: {stem}.onnx: state {state} has the shape {declared[state]}"
                )
        if "audio" in declared or any(
            isinstance(size, int) for name in FEATURES for size in declared.get(name, ())[TIME : TIME + 1]
        ):
            continue  # an audio graph or a one-frame form: what it gives is looked at when it is run
        shapes = static_shapes(data, frames=_FRAMES)
        _check_sizes(shapes, origin)
        whole, last = _expected(config, _FRAMES), _expected(config, 1)
        for name in RESULTS:
            if name in outputs and shapes.get(name) not in (whole[name], last[name]):
                raise UnsupportedGraph(
                    f"{origin}: {stem}.onnx: {name} has the shape {shapes.get(name)} for {_FRAMES} frames, "
                    f"the configuration says {whole[name]}",
                    hint="patch the original export again",
                )


def _expected(config: ModelConfig, frames: int) -> dict[str, tuple[int, ...]]:
    return {
        "feat_erb": (1, 1, frames, config.nb_erb),
        "feat_spec": (1, 2, frames, config.nb_df),
        "lsnr": (1, frames, 1),
        "m": (1, 1, frames, config.nb_erb),
        "coefs": (1, frames, config.nb_df, 2 * config.df_order),
    }


def _check_sizes(shapes: Shapes, origin: str) -> None:
    for name, shape in shapes.items():
        if math.prod(shape) > _MAX_ELEMENTS:
            raise UnsupportedGraph(f"{origin}: {name} has the absurd shape {shape} for {_FRAMES} frames")
