"""The verb ``inspect``: what a model is and what can be done with it."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from dfstream import registry
from dfstream.backends.base import backend_names
from dfstream.errors import BackendError, ModelError, UsageError
from dfstream.modes.base import find_mode, mode_names

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dfstream.coreml.package import Package
    from dfstream.model import Model
    from dfstream.patches.recipe import Recipe

    #: Audio, and the local SNR of each hop.
    Heard = tuple[NDArray[np.float64], NDArray[np.float32]]

__all__ = ["coreml_partitions", "inspect_model", "measure_precisions"]

#: The mode that Core ML packages run in.
_PACKAGE_MODE = "incremental"


def inspect_model(model: Model) -> dict[str, Any]:
    """Describe a model in plain values, for tables and JSON.

    Returns
    -------
    dict
        ``name``, ``origin``, ``sha256``, ``variant``, ``config``, ``delay``, ``network`` (None where only
        patched graphs are at hand), ``graphs`` (inputs and outputs at hand), ``package`` (None for all but
        Core ML packages) and ``modes``.
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
        "package": _package(model),
        "modes": {name: _mode(model, name) for name in mode_names()},
    }


def measure_precisions(model: Model) -> list[dict[str, Any]]:
    """Compare every way to store weights with float32 on the same backend, on packaged speech in noise.

    Returns
    -------
    list of dict
        ``backend``, ``precision``, ``snr_db`` of the audio, ``lsnr_change_db``, the largest change of the
        local SNR; or ``reason`` where it cannot run.
    """
    found = []
    for name in backend_names():
        exact, *reduced = registry.find("backend", name).precisions
        heard = functools.cache(functools.partial(_heard, model, name))  # the exact one once for all
        for precision in reduced:
            try:
                figures = _compare(heard(exact), heard(precision))
            except (BackendError, ModelError, UsageError) as error:
                figures = {"reason": str(error)}
            found.append({"backend": name, "precision": precision, **figures})
    return found


def coreml_partitions(model: Model) -> list[dict[str, Any]]:
    """Work out what ONNX Runtime's Core ML execution provider would take of a model's graphs, on any system.

    Returns
    -------
    list of dict
        For every graph of the export, the incremental and the canonical one (of a model without its export,
        those at hand) and both formats: ``graph``, ``format``, ``nodes``, ``taken``, ``partitions``, their
        ``sizes``, how many of them are ``trivial``, and ``refused``, names of nodes by operator and reason;
        see `dfstream.coreml.partitions`. Or ``graph`` and the ``reason`` why there is no such graph.
    """
    from dfstream.coreml.ep_rules import FORMATS
    from dfstream.coreml.partitions import partition, simplified
    from dfstream.patching import canonical_recipe

    if model.package is not None:
        return [{"graph": model.name, "reason": "a Core ML package already: ONNX Runtime has no part in it"}]
    at_hand = model.source_graphs() if model.is_export else model.files_at_hand()
    graphs: dict[str, Recipe | None] = dict.fromkeys(at_hand)
    for recipe in (find_mode("incremental").recipe(), canonical_recipe()) if model.is_export else ():
        graphs[recipe.stems[0]] = recipe
    rows: list[dict[str, Any]] = []
    for stem, made_by in graphs.items():
        try:
            simple = simplified(at_hand[stem] if made_by is None else model.graphs(made_by)[stem])
        except (BackendError, ModelError) as error:
            rows.append({"graph": stem, "reason": str(error)})
            continue
        for model_format in FORMATS:
            found = partition(simple, model_format)
            rows.append({
                "graph": stem,
                "format": model_format,
                "nodes": found.nodes,
                "taken": found.taken,
                "partitions": found.count,
                "sizes": list(found.sizes),
                "trivial": found.trivial,
                "refused": {key: list(names) for key, names in found.refused.items()},
            })  # fmt: skip
    return rows


def _heard(model: Model, backend: str, precision: str) -> Heard:
    """Return packaged speech as a stream gives it, and its local SNR."""
    from dfstream.checking import speech_clip
    from dfstream.stream import Stream

    stream = Stream(model, backend=backend, precision=precision, sample_rate=model.config.sample_rate)
    return stream.process(speech_clip()).astype(np.float64), stream.lsnr


def _compare(exact: Heard, reduced: Heard) -> dict[str, Any]:
    (want, before), (got, after) = exact, reduced
    power, error = np.mean(want**2), np.mean((got - want) ** 2)
    return {
        "snr_db": float(10 * np.log10(power / error)) if error else None,
        "lsnr_change_db": float(np.abs(after - before).max()),
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


def _package(model: Model) -> dict[str, Any] | None:
    """Return what a Core ML package says of itself, and what its files are."""
    from dfstream.coreml.metadata import PackageFacts

    if (package := model.package) is None:
        return None
    said = PackageFacts.from_properties(package.metadata, model.origin).to_dict()
    keys = ("precision", "state", "target", "block_frames", "block_delay_samples", "licence")
    ports = {"inputs": package.inputs, "outputs": package.outputs, "states": package.states}
    return {
        **{key: said[key] for key in keys},
        "sha256": package.sha256,
        "specification_version": package.specification_version,
        "operations": len(package.program.operations),
        **{
            kind: {name: {"shape": list(t.shape), "dtype": t.dtype} for name, t in tensors.items()}
            for kind, tensors in ports.items()
        },
    }


def _package_mode(model: Model, package: Package) -> dict[str, Any]:
    """Return what the one mode of a package carries."""
    from dfstream.coreml.metadata import PackageFacts

    facts = PackageFacts.from_properties(package.metadata, model.origin)
    return {
        "possible": True,
        "exact": facts.flavour.precision == "fp32" and facts.flavour.state == "explicit",
        "graphs": [package.path.name],
        "at_hand": True,
        "frames_per_hop": 1,
        "states": {name: list(state.shape) for name, state in facts.states.items()},
    }


def _mode(model: Model, name: str) -> dict[str, Any]:
    """Say whether a mode is possible, and what it would carry."""
    mode = find_mode(name)
    if model.package is not None and name == _PACKAGE_MODE:
        return _package_mode(model, model.package)
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
