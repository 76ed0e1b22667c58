"""What arguments of the public classes may be."""

from __future__ import annotations

import numpy as np

from dfstream.errors import UsageError

__all__ = ["check_choice", "check_range", "check_whole"]


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Refuse what is none of the choices."""
    if value not in choices:
        raise UsageError(f"{name} = {value!r}, expected {' or '.join(map(repr, choices))}")


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Refuse what is no number from ``low`` to ``high``."""
    kinds = (int, float, np.integer, np.floating)
    if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
        raise UsageError(f"{name} = {value!r}, expected {low:g} to {high:g}")


def check_whole(name: str, value: int, low: int, high: int) -> None:
    """Refuse what is no whole number from ``low`` to ``high``."""
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or not low <= value <= high:
        raise UsageError(f"{name} = {value!r}, expected a whole number, {low} to {high}")
