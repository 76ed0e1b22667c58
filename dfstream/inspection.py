"""The verb ``inspect``: what a model is and what can be done with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dfstream.errors import ModelError
from dfstream.modes.base import find_mode, mode_names

if TYPE_CHECKING:
    from dfstream.model import Model

__all__ = ["inspect_model"]


def inspect_model(model: Model) -> dict[str, Any]:
    """Describe a model in plain values, for tables and JSON.

    Returns
    -------
    dict
        ``name``, ``origin``, ``sha256``, ``variant``, ``config``, ``delay``, ``network`` (None where only
        patched graphs are at hand), ``graphs`` (inputs and outputs at hand) and ``modes``.
    """
    c = model.config
    return {
        "name": model.name,
        "origin": model.origin,
        "sha256": model.sha256,
        "variant": c.variant,
        "config": c.to_dict(),
        "delay": {
            "samples": c.delay_samples,
            "ms": 1000 * c.delay_samples / c.sample_rate,
            "lookahead_frames": c.delay_frames,
        },
        "network": _network(model) if model.is_export else None,
        "graphs": {stem: _interface(data) for stem, data in model.files_at_hand().items()},
        "modes": {name: _mode(model, name) for name in mode_names()},
    }


def _network(model: Model) -> dict[str, Any]:
    facts = model.facts
    return {
        "parameters": facts.parameters,
        "macs_per_hop": facts.macs_per_hop,
        "macs_by_operator": dict(facts.macs),
        "grus": {
            section: {"layers": layers, "hidden": size} for section, (layers, size) in facts.grus.items()
        },
        "time_kernels": list(facts.time_kernels),
        "window_frames": facts.window,
    }


def _interface(data: bytes) -> dict[str, Any]:
    import onnx

    model = onnx.load_model_from_string(data)

    def tensors(values: Any) -> dict[str, list[int | str]]:
        return {
            value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
            for value in values
        }

    return {
        "opset": max(entry.version for entry in model.opset_import),
        "nodes": len(model.graph.node),
        "bytes": len(data),
        "inputs": tensors(model.graph.input),
        "outputs": tensors(model.graph.output),
    }


def _mode(model: Model, name: str) -> dict[str, Any]:
    """Say whether a mode is possible, and what it would carry."""
    mode = find_mode(name)
    try:
        recipe = mode.recipe()
        frames = mode.frames_per_hop(model)
        graphs = model.graphs(recipe)
    except ModelError as error:
        return {"possible": False, "reason": str(error)}
    states = {}
    for data in graphs.values():
        interface = _interface(data)
        from dfstream.interface import state_inputs

        for state in state_inputs(interface["inputs"], interface["outputs"]):
            states[state] = interface["inputs"][state]
    return {
        "possible": True,
        "exact": mode.exact,
        "graphs": [f"{stem}.onnx" for stem in recipe.stems],
        "at_hand": model.has_patched(recipe),
        "frames_per_hop": frames,
        "states": states,
    }
