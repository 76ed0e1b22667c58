"""What commands show while they work: on standard error, on a terminal only, gone when they are done."""

from __future__ import annotations

import contextlib
import warnings
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Progress = Callable[[int, int | None], None]

__all__ = ["loading", "progress_bar", "stderr_console", "warnings_as_lines"]


def stderr_console() -> Any:
    """Console for progress and remarks: standard output belongs to results."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


@contextlib.contextmanager
def loading(quiet: bool = False) -> Iterator[Callable[[str], None]]:
    """Show that something is being loaded and, where kernels have to be compiled, that this takes a while.

    Gives a function that shows another text.
    """
    console = stderr_console()
    if quiet or not console.is_terminal:
        yield lambda _text: None
        return
    with console.status("loading") as status:
        from dfstream.dsp._kernelcache import watching

        done: list[str] = []

        def compiling(kernel: str) -> None:
            done.append(kernel)
            name = kernel.removeprefix("dfstream.")
            status.update(f"first run: compiling for this machine, {len(done)} so far ({name})")

        with watching(compiling):
            yield status.update


@contextlib.contextmanager
def progress_bar(label: str, *, quiet: bool = False, in_bytes: bool = False) -> Iterator[Progress]:
    """Give a function that draws how much of how much is done, None where nobody can tell."""
    console = stderr_console()
    if quiet or not console.is_terminal:
        yield lambda _done, _total: None
        return
    from rich import progress

    first = (progress.TextColumn("{task.description}", markup=False), progress.BarColumn())
    last = (
        (progress.DownloadColumn(), progress.TransferSpeedColumn())
        if in_bytes
        else (progress.TaskProgressColumn(), progress.TimeRemainingColumn())
    )
    with progress.Progress(*first, *last, console=console, transient=True) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextlib.contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Show each warning of the package as one line, once."""
    shown: set[str] = set()

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        if str(message) not in shown:
            shown.add(str(message))
            click.echo(f"warning: {message}", err=True)

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show
        yield
