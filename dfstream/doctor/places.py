"""Probes of what lies on disk: the cache, models, compiled kernels."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

from dfstream import catalog, diskcache
from dfstream.diskcache import CACHE_VARIABLE

if TYPE_CHECKING:
    from dfstream.doctor.examination import Examination

__all__ = ["cache", "kernels", "models"]

#: Kernels, graphs and one official model take less.
_ENOUGH_BYTES = 100 << 20

_ELSEWHERE = f"set {CACHE_VARIABLE} to a folder that can be written"


def cache(case: Examination) -> dict[str, Any]:
    """Look at the folders of the cache, and whether they take anything new."""
    try:
        root = diskcache.cache_root()
    except (OSError, RuntimeError) as error:
        case.find("cache", "warning", f"nobody can tell where the cache is: {error}", _ELSEWHERE)
        return {"folder": None, "writable": False}
    writable, free = diskcache.is_writable(root), _free_bytes(root)
    if not writable:
        case.find("cache", "warning", f"{root} cannot be written: every program compiles anew", _ELSEWHERE)
    elif free is not None and free < _ENOUGH_BYTES:
        case.find("cache", "warning", f"{root}: only {free / 1e6:.0f} MB are free", _ELSEWHERE)
    usage = diskcache.usage()
    return {
        "folder": str(root),
        "models": str(catalog.cache_dir()),
        "writable": writable,
        "free_bytes": free,
        "kinds": {kind: {"files": files, "bytes": size} for kind, (files, size) in usage.items()},
    }


def _free_bytes(folder: Any) -> int | None:
    try:
        return shutil.disk_usage(diskcache.nearest(folder)).free
    except OSError:
        return None


def models(case: Examination) -> dict[str, Any]:
    """Look for every known model."""
    found = {}
    for known in catalog.KNOWN:
        location = catalog.locate(known.name)
        status = catalog.status(known, location)
        if location is None and known.archive is None:
            case.find("models", "problem", "the bundled model is missing", "install dfstream again")
        elif status == catalog.DAMAGED:
            case.find("models", "warning", f"{known.name}: {status}", f"dfstream models pull {known.name}")
        found[known.name] = {
            "variant": known.variant,
            "status": status,
            "path": str(location.path) if location else None,
        }
    return found


def kernels(case: Examination) -> dict[str, Any]:
    """Count the kernels that are kept compiled for this machine; compiles none."""
    from dfstream.warming import kept_kernels

    state = kept_kernels()
    missing = [name for name in state.names if name not in state.kept]
    if missing:
        case.find(
            "kernels", "note",
            f"{len(missing)} of {len(state.names)} kernels have yet to be compiled for this machine",
            "dfstream warm" if state.folder else "install dfstream so that its sources can be read",
        )  # fmt: skip
    return {"total": len(state.names), "kept": len(state.kept), "missing": missing, "folder": state.folder}
