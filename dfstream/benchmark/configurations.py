"""What is measured: a backend with its options, a mode, so many hops a call."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from dfstream.backends.base import backend_names, find_backend, split_backend
from dfstream.engine import EngineOptions
from dfstream.errors import DfstreamError, UsageError
from dfstream.modes.base import find_mode, mode_names

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dfstream.backends.base import Backend
    from dfstream.model import Model

__all__ = ["BackendSpec", "Configuration", "first_of_each_backend", "usable"]

#: Every other backend and mode is compared with these, so their configurations come first.
_REFERENCES = ("ort-cpu", "incremental")


@dataclasses.dataclass(frozen=True)
class BackendSpec:
    """A backend by name, with options that are not its defaults.

    Attributes
    ----------
    name : str
    options : tuple of (str, value)
    """

    name: str
    options: tuple[tuple[str, bool | int | float | str], ...] = ()

    @classmethod
    def parse(cls, text: str) -> BackendSpec:
        """Read ``name`` or ``name:option=value,option=value``.

        Raises
        ------
        UsageError
            An unknown backend, or options in another form.
        """
        name, options = split_backend(text)
        return cls(name, tuple(options.items()))

    def __str__(self) -> str:
        options = ",".join(f"{key}={value}" for key, value in self.options)
        return f"{self.name}:{options}" if options else self.name

    def make(self) -> Backend:
        """Make the backend; raises as `find_backend`."""
        return find_backend(self.name, **dict(self.options))


@dataclasses.dataclass(frozen=True)
class Configuration:
    """One way of running the model.

    Attributes
    ----------
    backend : BackendSpec
    mode : str
    block : int
        Hops a call.
    """

    backend: BackendSpec
    mode: str
    block: int = 1

    @property
    def name(self) -> str:
        """For tables."""
        return f"{self.backend} {self.mode}" + (f", {self.block} hops" if self.block > 1 else "")

    def plain(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {
            "backend": self.backend.name,
            "options": dict(self.backend.options),
            "mode": self.mode,
            "block": self.block,
        }


def usable(
    model: Model, backends: Sequence[str] = (), modes: Sequence[str] = (), blocks: Sequence[int] = (1,)
) -> tuple[list[Configuration], dict[str, DfstreamError]]:
    """Return what can run here, and why the rest cannot.

    Parameters
    ----------
    model : Model
    backends : sequence of str
        As `BackendSpec.parse` takes them; all when empty.
    modes : sequence of str
        All exact ones when empty.
    blocks : sequence of int
        Hops a call.

    Returns
    -------
    list of Configuration
        Those of the reference backend first where backends were not named.
    dict of str to DfstreamError
        By backend, or backend and mode.

    Raises
    ------
    UsageError
        An unknown backend, mode or option, or hops a call that no stream takes.
    """
    specs = [BackendSpec.parse(text) for text in backends or sorted(backend_names(), key=_reference_first)]
    exact = [name for name in mode_names() if find_mode(name).exact]
    chosen = modes or sorted(exact, key=_reference_first)
    for mode in chosen:
        find_mode(mode)
    if any(block < 1 for block in blocks):
        raise UsageError(f"blocks of {min(blocks)} hops: expected 1 or more")
    found: list[Configuration] = []
    left_out: dict[str, DfstreamError] = {}
    for spec in dict.fromkeys(specs):
        try:
            backend = spec.make()
        except UsageError:
            raise
        except DfstreamError as error:
            left_out[str(spec)] = error
            continue
        for mode in chosen:
            try:
                find_mode(mode).engine(model, backend, EngineOptions())
            except DfstreamError as error:
                left_out[f"{spec} {mode}"] = error
                continue
            found += [Configuration(spec, mode, block) for block in dict.fromkeys(blocks)]
    return found, left_out


def first_of_each_backend(configurations: Sequence[Configuration]) -> list[Configuration]:
    """Return one configuration of each backend and its options."""
    first: dict[BackendSpec, Configuration] = {}
    for configuration in configurations:
        first.setdefault(configuration.backend, configuration)
    return [*first.values()]


def _reference_first(name: str) -> tuple[bool, str]:
    return name not in _REFERENCES, name
