"""The command line: one module a command, found by its name.

A module ``dfstream/cli/<name>.py`` whose name has no leading underscore holds one `click.Command`
(or group) called ``command``; dashes in the command's name are underscores in the module's. Adding a
command adds a file and touches no other. Modules import what is heavy inside the command, so that
``dfstream --help`` stays quick.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import signal
import sys
from typing import Any

import click

from dfstream.errors import DfstreamError

__all__ = ["main"]

#: Exit code of a failure that is our fault (``sysexits.h: EX_SOFTWARE``).
INTERNAL_ERROR = 70


class _Commands(click.Group):
    """Commands of this folder, imported when asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return the names of all commands."""
        modules = pkgutil.iter_modules(__path__)
        return sorted(m.name.replace("_", "-") for m in modules if not m.name.startswith("_"))

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Import one command."""
        if name not in self.list_commands(ctx):
            return None
        command = importlib.import_module(f"{__name__}.{name.replace('-', '_')}").command
        assert isinstance(command, click.Command)
        return command


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 done, 1 failure, 2 usage, 3 model, 4 backend, 5 audio, 6 verification failed, "
    '130 interrupted, 143 terminated. Shell completion: eval "$(_DFSTREAM_COMPLETE=bash_source dfstream)".',
)
@click.version_option(package_name="dfstream", message="%(prog)s %(version)s")
def cli() -> None:
    """Speech enhancement with DeepFilterNet: patch its exports, stream audio through them."""


def main(args: list[str] | None = None) -> None:
    """Run the command line and exit with a documented code.

    Expected failures print ``error:`` and ``hint:`` lines, never a stack trace; ``DFSTREAM_DEBUG=1`` in
    the environment shows the trace of any failure.
    """
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(_run(args))


class _Terminated(KeyboardInterrupt):
    """Asked to end by another program: cleans up as Ctrl-C does."""


def _terminate(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # one is enough; a second must not stop the cleaning up
    raise _Terminated


def _run(args: list[str] | None) -> int:
    debug = bool(os.environ.get("DFSTREAM_DEBUG"))
    try:
        result: Any = cli.main(args, prog_name="dfstream", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as request:
        return request.exit_code
    except click.Abort as abort:
        if isinstance(abort.__cause__, _Terminated):
            return _fail("terminated", None, 143)
        return _fail("interrupted", None, 130)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else None
        return _fail(error.format_message(), f"{command} --help" if command else None, error.exit_code)
    except DfstreamError as error:
        if debug:
            raise
        return _fail(str(error), error.hint, error.exit_code)
    except BrokenPipeError:
        # the reader of a pipe has gone: nothing left to say, and stdout must not be flushed at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if debug:
            raise
        return _fail(
            f"internal error: {type(error).__name__}: {error}",
            "this is a bug in dfstream; DFSTREAM_DEBUG=1 shows where",
            INTERNAL_ERROR,
        )


def _fail(message: str, hint: str | None, code: int) -> int:
    click.echo(f"error: {message}", err=True)
    if hint:
        click.echo(f"hint: {hint}", err=True)
    return code
