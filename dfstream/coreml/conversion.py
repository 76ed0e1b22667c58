"""From the canonical graph of a model to a package on disk, without torch and without a Mac."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any

import onnx

from dfstream import __version__, catalog
from dfstream.backends._onestep import CanonicalState
from dfstream.coreml.emission import emit_program, tensor_shapes
from dfstream.coreml.metadata import PackageFacts
from dfstream.coreml.precision import compress_weights, compute_precision
from dfstream.coreml.toolbox import coremltools, quietly
from dfstream.errors import BackendError, first_line
from dfstream.interface import state_inputs, state_output
from dfstream.patches.recipe import read_metadata
from dfstream.patching import canonical_recipe

if TYPE_CHECKING:
    from pathlib import Path

    from dfstream.coreml.flavour import Flavour
    from dfstream.model import Model

__all__ = ["write_package"]

#: Namespace of the identifiers in manifests: equal contents give equal packages, byte for byte.
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "dfstream.mlpackage")

_NETWORK = "com.apple.CoreML/model.mlmodel"
_DATE = "com.github.apple.coremltools.conversion_date"


def write_package(model: Model, flavour: Flavour, folder: Path) -> PackageFacts:
    """Convert a model and save the package as a folder.

    Parameters
    ----------
    model : Model
        Of which the export is at hand, or the canonical graph.
    flavour : Flavour
    folder : Path
        Does not exist yet, and ends in ``.mlpackage``.

    Raises
    ------
    UnsupportedGraph
        The model has no canonical graph.
    BackendUnavailable
        coremltools is missing.
    BackendError
        coremltools cannot convert it.
    """
    ct = coremltools()
    proto = onnx.load_model_from_string(model.graphs(canonical_recipe())["combined_canonical"])
    facts = _facts(model, proto, flavour)
    with quietly():
        program = emit_program(proto, flavour)
        try:
            package = ct.convert(
                program,
                convert_to="mlprogram",
                minimum_deployment_target=getattr(ct.target, flavour.generation.opset),
                compute_precision=compute_precision(ct, proto.graph, flavour),
                skip_model_load=True,
            )
            package = compress_weights(package, proto.graph, flavour)
        except Exception as error:  # its errors share no base class
            raise BackendError(f"coremltools cannot convert {model.name} ({first_line(error)})") from error
        _check_names(package.get_spec().description, facts)
        _describe(package, facts)
        package.save(str(folder))
    _tidy(folder)
    return facts


def _facts(model: Model, proto: onnx.ModelProto, flavour: Flavour) -> PackageFacts:
    shapes = tensor_shapes(proto.graph)
    metadata = read_metadata(proto, "combined_canonical")
    sections = metadata.sections if metadata else {}
    parts = metadata.parts if metadata else {}
    states = {
        name: CanonicalState(shapes[name], sections.get(name, "enc"), parts.get(name, ()))
        for name in state_inputs(shapes, [value.name for value in proto.graph.output])
    }
    return PackageFacts(model.name, model.sha256, model.config, flavour, states, _licence(model))


def _licence(model: Model) -> str:
    """Return the licence of a model that came by its name; a folder may be called like one."""
    known = catalog.locate(model.name) if catalog.is_known(model.name) else None
    official = known is not None and str(known.path) == model.origin
    return catalog.get(model.name).licence if official else "that of the model"


def _check_names(description: Any, facts: PackageFacts) -> None:
    """Refuse a package whose tensors are not called as they should be: coremltools renames without a word."""
    explicit = facts.flavour.state == "explicit"
    states = list(facts.states)
    wanted = {
        "input": [*facts.features, *(states if explicit else [])],
        "output": [*facts.results, *(map(state_output, states) if explicit else [])],
        "state": [] if explicit else states,
    }
    for kind, names in wanted.items():
        given = [tensor.name for tensor in getattr(description, kind)]
        if sorted(given) != sorted(names):
            raise BackendError(
                f"coremltools calls the {kind}s {', '.join(given)}, expected {', '.join(names)}",
                hint="please report this with the version of coremltools",
            )


def _describe(package: Any, facts: PackageFacts) -> None:
    """Write what people see in Xcode, and what programs read."""
    frames = facts.flavour.block_frames
    hops = "one hop" if frames == 1 else f"{frames} hops"
    package.short_description = (
        f"{facts.config.variant} ({facts.model}): features of {hops} in, ERB gains and deep-filter taps out. "
        "Framing, features and filtering stand around it: see the JSON file beside the package."
    )
    package.author = f"dfstream {__version__}"
    package.license = facts.licence
    package.version = __version__
    for name, text in _TENSORS.items():
        for given in (package.input_description, package.output_description):
            if name in given:
                given[name] = text
    for key, value in facts.to_properties().items():
        package.user_defined_metadata[key] = value


_TENSORS = {
    "feat_erb": "ERB features, running mean taken off, [1, 1, frames, bands].",
    "feat_spec": "Unit-normalised spectrum, real and imaginary parts, [1, 2, frames, bins].",
    "mask": "Gains of the ERB bands, 0 to 1, [1, 1, frames, bands].",
    "coefs": "Deep-filter taps, channel 2 * tap + (re, im), oldest tap first, [1, 2 * taps, frames, bins].",
    "lsnr": "Local SNR in dB, [1, 1, frames, 1].",
}


def _tidy(folder: Path) -> None:
    """Make a package that is byte for byte that of anybody else, and that others may read.

    As saved, identifiers are random, entries of maps come in any order, a date is inside, and files are
    private.
    """
    from coremltools.proto import Model_pb2

    network = folder / "Data" / _NETWORK
    spec = Model_pb2.Model.FromString(network.read_bytes())
    spec.description.metadata.userDefined.pop(_DATE, None)
    network.write_bytes(spec.SerializeToString(deterministic=True))
    manifest = folder / "Manifest.json"
    values = json.loads(manifest.read_text())
    names = {}
    for identifier, entry in values["itemInfoEntries"].items():
        names[identifier] = str(uuid.uuid5(_NAMESPACE, entry["path"])).upper()
    values["itemInfoEntries"] = {
        names[identifier]: entry for identifier, entry in sorted(values["itemInfoEntries"].items(), key=_path)
    }
    values["rootModelIdentifier"] = names[values["rootModelIdentifier"]]
    manifest.write_text(json.dumps(values, indent=4, sort_keys=True) + "\n")
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


def _path(item: tuple[str, dict[str, str]]) -> str:
    return item[1]["path"]
