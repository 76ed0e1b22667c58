"""``dfstream warm``."""

from __future__ import annotations

import time
from typing import Any

import click

from dfstream.cli._options import json_option, print_json
from dfstream.cli._progress import progress_bar


@click.command(short_help="Do the work of the very first run now.")
@click.option(
    "-m", "--model", "models", multiple=True, default=["bundled"], show_default=True,
    help="A name, a folder, an archive or a graph; may be repeated.",
)  # fmt: skip
@click.option("--clear", is_flag=True, help="Delete all compiled kernels and patched graphs instead.")
@json_option
def command(models: tuple[str, ...], clear: bool, as_json: bool) -> None:
    """Compile the kernels for this machine and patch the graphs of models, and keep both on disk.

    The first run does the same by itself where this was not done. DFSTREAM_CACHE names another cache
    folder. Pulled models stay where they are in any case.
    """
    result = _clear() if clear else _warm(models)
    if as_json:
        print_json(result)
    elif clear:
        for entry in result["removed"]:
            click.echo(f"removed {entry['folder']}: {entry['bytes'] / 1e6:.1f} MB")
        if not result["removed"]:
            click.echo("nothing to remove")
    else:
        _print(result)


def _clear() -> dict[str, Any]:
    from dfstream import diskcache
    from dfstream.errors import UsageError

    try:
        return {"removed": [{"folder": str(path), "bytes": size} for path, size in diskcache.clear()]}
    except (OSError, RuntimeError) as error:
        raise UsageError(f"cannot empty the cache: {error}") from error


def _warm(models: tuple[str, ...]) -> dict[str, Any]:
    from dfstream.model import Model
    from dfstream.warming import kernel_modules, warm_kernels, warm_model

    loaded = [Model.load(name) for name in models]
    names = kernel_modules()
    steps = len(names) + len(loaded)
    start = time.perf_counter()
    with progress_bar("compiling") as progress:
        progress(0, steps)
        kernels = warm_kernels(names, lambda done: progress(done, steps))
        for done, model in enumerate(loaded, len(names) + 1):
            warm_model(model)
            progress(done, steps)
    return {
        "seconds": time.perf_counter() - start,
        "kernels": {"compiled": len(kernels.compiled), "total": kernels.total, "folder": kernels.folder},
        "models": [model.name for model in loaded],
    }


def _print(result: dict[str, Any]) -> None:
    kernels = result["kernels"]
    click.echo(
        f"{kernels['total']} kernels, {kernels['compiled']} of them compiled now, and the graphs of "
        f"{', '.join(result['models'])}: {result['seconds']:.1f} s"
    )
    click.echo(f"kept in {kernels['folder']}" if kernels["folder"] else "not kept: no folder can be written")
