"""Patched graphs kept on disk: patching takes a good part of the time until the first enhanced hop.

A graph depends on the export, by its digest, on the recipe, and on the sources of dfstream, all of which
are in its key. Recipes with foreign patches are never kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfstream.diskcache import Store, source_digest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dfstream.patches.recipe import Recipe

__all__ = ["is_checked", "note_checked", "recall", "remember"]


def recall(sha256: str, recipe: Recipe) -> dict[str, bytes] | None:
    """Return the graphs of a recipe, by stem, None where they are not all at hand.

    Parameters
    ----------
    sha256 : str
        Digest of the export.
    recipe : Recipe
    """
    store = _store(recipe)
    if store is None:
        return None
    files = {stem: store.get(*_key(sha256, recipe, stem)) for stem in recipe.stems}
    whole = {stem: data for stem, data in files.items() if data is not None}
    return whole if len(whole) == len(files) else None


def remember(sha256: str, recipe: Recipe, files: Mapping[str, bytes]) -> None:
    """Keep the graphs of a recipe, if they can be kept."""
    store = _store(recipe)
    if store is not None:
        for stem, data in files.items():
            store.put(*_key(sha256, recipe, stem), data)


def is_checked(sha256: str) -> bool:
    """Say whether this version of dfstream has read and checked an export of this digest before."""
    store = _store()
    return store is not None and store.get(f"{sha256[:16]}-checked", sha256) is not None


def note_checked(sha256: str) -> None:
    """Note that an export has passed all checks."""
    store = _store()
    if store is not None:
        store.put(f"{sha256[:16]}-checked", sha256, b"")


def _store(recipe: Recipe | None = None) -> Store | None:
    steps = () if recipe is None else recipe.steps
    ours = all((step.__module__ or "").startswith("dfstream.") for step in steps)
    sources = source_digest(".", "patches")
    return Store("graphs", sources) if ours and sources else None


def _key(sha256: str, recipe: Recipe, stem: str) -> tuple[str, str]:
    steps = [step.__qualname__ for step in recipe.steps]
    return f"{sha256[:16]}-{recipe.name}-{stem}", " ".join([sha256, recipe.name, stem, *steps])
