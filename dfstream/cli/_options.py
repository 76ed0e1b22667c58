"""Options that several commands share."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["json_option", "mode_names", "print_json"]


class NameOf(click.ParamType):  # type: ignore[type-arg]  # generic only in newer click
    """One of the names a registry lists; looked up when used, so that help stays quick."""

    def __init__(self, kind: str, names: Callable[[], list[str]], **short: str) -> None:
        self.name = kind
        self._names = names
        self._short = short

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Accept a listed name, or what is short for one."""
        names = self._names()
        value = self._short.get(value, value)
        if value not in names:
            self.fail(f"unknown {self.name} {value!r}, choose from {', '.join(names)}", param, ctx)
        return str(value)

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:  # noqa: ARG002
        """Show the names in the help text."""
        return "[" + "|".join(self._names()) + "]"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:  # noqa: ARG002
        """Complete a name."""
        from click.shell_completion import CompletionItem

        return [CompletionItem(name) for name in self._names() if name.startswith(incomplete)]


def mode_names() -> list[str]:
    """Names of the modes."""
    from dfstream.modes.base import mode_names

    return mode_names()


def backend_names() -> list[str]:
    """Names of the backends, and what stands for the quickest one."""
    from dfstream.backends.base import AUTO, backend_names

    return [AUTO, *backend_names()]


class BackendLine(NameOf):
    """The name of a backend, with or without options of its own."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Accept a listed name, whatever follows a colon; `dfstream.backends.base.split_backend` reads it."""
        super().convert(str(value).partition(":")[0], param, ctx)
        return str(value)

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """Show the names and the form."""
        return f"{super().get_metavar(param, ctx)}[:OPTION=VALUE,...]"


MODE = NameOf("mode", mode_names, audio="audio-graph")
BACKEND = BackendLine("backend", backend_names)

json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


def print_json(value: Any) -> None:
    """Print a result for scripts."""
    click.echo(json.dumps(value, indent=2))
