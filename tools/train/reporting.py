"""Errors of the commands around training: one line, a hint, the exit code of dfstream."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

import click

from dfstream.errors import DfstreamError

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def errors_in_a_line() -> Iterator[None]:
    """Print an expected failure and exit."""
    try:
        yield
    except DfstreamError as error:
        click.echo(f"error: {error}" + (f"\nhint: {error.hint}" if error.hint else ""), err=True)
        sys.exit(error.exit_code)
