"""Modes and backends by name: a package of modules, one thing a file."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from dfstream.errors import UsageError

__all__ = ["find", "names"]


def names(kind: str) -> list[str]:
    """Return the names of all modules of the package ``dfstream.<kind>s``, with dashes.

    ``base`` and modules that begin with an underscore are no members.
    """
    package = importlib.import_module(f"dfstream.{kind}s")
    modules = (module.name for module in pkgutil.iter_modules(package.__path__))
    return sorted(name.replace("_", "-") for name in modules if name != "base" and not name.startswith("_"))


def find(kind: str, name: str) -> Any:
    """Import a module by name and return its class, which stands there as ``MODE`` or ``BACKEND``.

    Raises
    ------
    UsageError
        Nothing of that name.
    """
    known = names(kind)
    if name not in known:
        raise UsageError(f"unknown {kind} {name!r}", hint=f"{kind}s are {', '.join(known)}")
    module = importlib.import_module(f"dfstream.{kind}s.{name.replace('-', '_')}")
    return getattr(module, kind.upper())
