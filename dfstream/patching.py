"""The verb ``patch``: make the graphs of modes from a model, prove them, write them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from dfstream import atomic, catalog, reading
from dfstream.checking import CheckRow, check_canonical, check_lean
from dfstream.errors import ModelError, UsageError, VerifyFailed
from dfstream.modes.base import find_mode

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dfstream.model import Model
    from dfstream.patches.recipe import Patched, Recipe

__all__ = ["CANONICAL", "LEAN", "PatchResult", "patch_model", "target_folder"]

#: Names of the one-frame recipes where a mode's name is expected.
CANONICAL, LEAN = "canonical", "lean"


@dataclasses.dataclass(frozen=True)
class PatchResult:
    """What patching for one mode did.

    Attributes
    ----------
    name : str
        The mode, or "canonical" or "lean".
    report : tuple of (str, tuple of str)
        Each patch and the sites it changed; empty if the model was patched for this before.
    checks : tuple of CheckRow
        Comparisons with the export, none if not asked for.
    files : mapping of str to str
        What happened to each file: "written" or "unchanged".
    """

    name: str
    report: tuple[tuple[str, tuple[str, ...]], ...]
    checks: tuple[CheckRow, ...]
    files: dict[str, str]


def canonical_recipe() -> Recipe:
    """Return how the canonical one-frame graph is made."""
    from dfstream.patches.canonical import canonicalise
    from dfstream.patches.fold import fold_constants
    from dfstream.patches.recipe import Recipe

    return Recipe(CANONICAL, ("combined_canonical",), (fold_constants,), canonicalise)


def _one_frame_recipe(name: str) -> Recipe:
    from dfstream.patches.lean import lean_recipe

    return canonical_recipe() if name == CANONICAL else lean_recipe()


def target_folder(source: str) -> Path:
    """Return the folder beside a model's source.

    Raises
    ------
    UsageError
        The model came by name: nobody wants graphs in a package or a cache.
    """
    if catalog.is_known(source):
        raise UsageError(f"{source} is a model's name, not a place to write to", hint="name a folder with -o")
    path = Path(source)
    return path if path.is_dir() else path.parent


def patch_model(
    model: Model,
    folder: Path,
    modes: Sequence[str] = ("stateful-h0",),
    *,
    canonical: bool = False,
    lean: bool = False,
    precision: str = "float32",
    check: bool = True,
    force: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> list[PatchResult]:
    """Write the graphs of the given modes into a folder, all of them or, on any failure, none.

    Parameters
    ----------
    model : Model
    folder : Path
        Made if it does not exist.
    modes : sequence of str
    canonical, lean : bool
        Also write the one-frame graph for accelerators, the one for ONNX Runtime on a CPU.
    precision : "float32" or "fp16"
        How the weights of the modes' graphs are stored.
    check : bool
        Compare the graphs with the export first.
    force : bool
        Replace files of the same name that dfstream did not write.
    progress : callable
        Told what is being done.

    Raises
    ------
    VerifyFailed
        A graph differs from the export by more than rounding; nothing is written.
    UnsupportedGraph
        A patch does not fit; nothing is written.
    UsageError
        A file would be replaced that dfstream did not write, or a mode has no graphs of this precision.
    """
    names = [*dict.fromkeys(modes), *[CANONICAL] * canonical, *[LEAN] * lean]
    recipes = {name: _recipes(name, precision) for name in names}
    made = [_make(model, name, recipes[name], precision, check, progress) for name in names]
    written = [_files(patched) for _, patched, _ in made]
    files = {name: data for some in written for name, data in some.items()}
    actions = {name: _action(folder / name, data, force) for name, data in files.items()}
    if any(action == "written" for action in actions.values()):
        _write(model, folder, {name: files[name] for name, action in actions.items() if action == "written"})
    return [
        PatchResult(name, patched.report, checks, {file: actions[file] for file in some})
        for (name, patched, checks), some in zip(made, written, strict=True)
    ]


def _recipes(name: str, precision: str) -> tuple[Recipe, ...]:
    one_frame = name in (CANONICAL, LEAN)
    return (_one_frame_recipe(name),) if one_frame else find_mode(name).recipes(precision)


def _files(patched: Patched) -> dict[str, bytes]:
    """Return what is written, by file name: graphs, and what stands beside some of them."""
    from dfstream.patches.audio_graph import description_beside

    files = {}
    for stem, data in patched.files.items():
        files[f"{stem}.onnx"] = data
        if (beside := description_beside(reading.parse_graph(data, stem), stem)) is not None:
            files[f"{stem}.json"] = beside
    return files


def _make(
    model: Model,
    name: str,
    recipes: Sequence[Recipe],
    precision: str,
    check: bool,
    progress: Callable[[str], None],
) -> tuple[str, Patched, tuple[CheckRow, ...]]:
    from dfstream.patches.recipe import Patched

    mode = None if name in (CANONICAL, LEAN) else find_mode(name)
    if not model.is_export and all(map(model.has_patched, recipes)):
        return name, Patched({s: d for recipe in recipes for s, d in model.graphs(recipe).items()}, ()), ()
    if mode is not None:
        mode.frames_per_hop(model)  # refuses a model that the mode cannot serve
    progress(f"{name}: patching")
    each = [model.patch(recipe) for recipe in recipes]
    patched = Patched(
        {stem: data for one in each for stem, data in one.files.items()},
        tuple(dict.fromkeys(entry for one in each for entry in one.report)),
    )
    checks: list[CheckRow] = []
    if check:
        progress(f"{name}: checking against the export")
        ready = model.with_patched(patched.files)
        if mode is not None:
            checks = mode.check(ready, precision)
        elif name == LEAN:
            checks = check_lean(ready)
        else:
            checks = check_canonical(model, next(iter(patched.files.values())))
    failed = [row for row in checks if not row.passed]
    if failed:
        worst = max(failed, key=lambda row: max(row.errors.values()))
        errors = ", ".join(f"{key} {value:.2g}" for key, value in worst.errors.items())
        raise VerifyFailed(
            f"{name}: the patched graphs differ from the export by {errors} "
            f"({worst.features} features, {worst.chunking} frames a call)",
            hint="nothing was written; please report this with the model",
        )
    return name, patched, tuple(checks)


def _action(path: Path, data: bytes, force: bool) -> str:
    if not path.exists():
        return "written"
    try:
        present = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} exists and cannot be replaced: {error.strerror}") from error
    if present == data:
        return "unchanged"
    if not force and not _is_ours(present, path):
        raise UsageError(
            f"{path} exists and dfstream did not write it", hint="use --force, or another folder with -o"
        )
    return "written"


def _is_ours(data: bytes, path: Path) -> bool:
    from dfstream.patches.recipe import read_metadata

    if path.suffix == ".json":
        return b'"producer": "dfstream"' in data
    try:
        return read_metadata(reading.parse_graph(data, str(path)), str(path)) is not None
    except ModelError:
        return False


def _write(model: Model, folder: Path, files: dict[str, bytes]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make the folder {folder}: {error.strerror}") from error
    if model.config_ini is not None and not (folder / reading.CONFIG).exists():
        files = {**files, reading.CONFIG: model.config_ini}
    atomic.write_all(folder, files)
