"""The verb ``convert``: a model becomes a Core ML package, proven, with a file beside it that explains it."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

from dfstream import atomic
from dfstream.coreml.flavour import Flavour
from dfstream.errors import UsageError, VerifyFailed
from dfstream.model import Model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dfstream.coreml.fidelity import Fidelity
    from dfstream.coreml.metadata import PackageFacts

__all__ = ["SUFFIX", "Conversion", "convert_model"]

SUFFIX = ".mlpackage"


@dataclasses.dataclass(frozen=True)
class Conversion:
    """What a conversion made.

    Attributes
    ----------
    package, description : Path
        The package and the JSON file beside it.
    facts : PackageFacts
    size : int, bytes
        Of all files of the package.
    sha256 : str
        Digest of the network and its weights; the same wherever the same versions made it.
    fidelity : Fidelity or None
        How near it is to the model, None if nobody asked.
    """

    package: Path
    description: Path
    facts: PackageFacts
    size: int
    sha256: str
    fidelity: Fidelity | None


def convert_model(
    model: Model,
    target: Path,
    flavour: Flavour | None = None,
    *,
    check: bool = True,
    force: bool = False,
    progress: Callable[[str, float], None] = lambda *_: None,
) -> Conversion:
    """Write a package and the JSON file beside it, or, on any failure, nothing.

    Parameters
    ----------
    model : Model
        Of which the export is at hand.
    target : Path
        Name of the package, which ends in ``.mlpackage``.
    flavour : Flavour, optional
        Mixed half precision, explicit states and one frame a call by default.
    check : bool
        Stream a minute of speech through the package and compare with the model first.
    force : bool
        Replace what is there.
    progress : callable
        Told what is being done, and which share of it is done.

    Raises
    ------
    UsageError
        A name without ``.mlpackage``, or something of that name is there.
    UnsupportedGraph
        The model has no canonical graph.
    VerifyFailed
        The package is further from the model than its precision explains.
    BackendUnavailable
        coremltools is missing.
    """
    from dfstream.coreml.conversion import write_package

    flavour = flavour or Flavour()
    description = _check_target(target, force)
    # the package takes its place before the file: where that fails, neither does
    with atomic.replacing(description) as file, atomic.replacing_folder(target) as temporary:
        progress("converting", 0.0)
        facts = write_package(model, flavour, temporary)
        made = Model.load(temporary)
        assert made.package is not None
        fidelity = None
        if check:
            fidelity = _checked(model, made, flavour, target, progress)
        file.write_text(json.dumps(_description(model, facts, made.package.sha256, fidelity)) + "\n")
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    return Conversion(target, description, facts, size, made.package.sha256, fidelity)


def _check_target(target: Path, force: bool) -> Path:
    """Return the name of the JSON file; refuse what must not be replaced."""
    if target.suffix != SUFFIX:
        raise UsageError(f"{target}: the name of a package ends in {SUFFIX}")
    if not target.parent.is_dir():
        raise UsageError(f"cannot write {target}: {target.parent} is no folder")
    description = target.with_suffix(".json")
    for path in (target, description):
        if path.exists() and not force:
            raise UsageError(f"{path} exists", hint="use --force to replace it")
    if target.exists() and not (target / "Manifest.json").is_file():
        raise UsageError(f"{target} exists and is no package", hint="choose another name")
    return description


def _checked(
    model: Model, made: Model, flavour: Flavour, target: Path, progress: Callable[[str, float], None]
) -> Fidelity:
    from dfstream.coreml.fidelity import measure_fidelity

    fidelity = measure_fidelity(model, made, flavour, lambda share: progress("checking", share))
    if not fidelity.passed:
        raise VerifyFailed(
            f"{target.name}: {fidelity.worst_snr_db:.1f} dB to the model in the worst ten seconds, at least "
            f"{fidelity.least_snr_db:g} dB expected of {flavour.precision}",
            hint="nothing was written; try another precision, or --no-check to have it all the same",
        )
    return fidelity


def _description(model: Model, facts: PackageFacts, sha256: str, fidelity: Fidelity | None) -> dict[str, Any]:
    """Return all that a program around the package has to know, and what to test it with."""
    from dfstream.coreml.contract import description, golden_vectors

    values = facts.to_dict()
    states, _ = values.pop("states"), values.pop("config")  # the contract has it
    return {
        **description(facts.config, states, **values, package_sha256=sha256),
        "fidelity": None if fidelity is None else dataclasses.asdict(fidelity),
        "golden": golden_vectors(model),
    }
