"""``dfstream models``: what is known, what is here, and fetching the rest."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from dfstream import catalog
from dfstream.cli._progress import progress_bar

#: Columns where nobody has told how wide the output may be: a pipe or a file.
_PIPE_WIDTH = 200
_SHORT_HASH = 12

_NAME = click.Choice([known.name for known in catalog.KNOWN])


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON, with full values.")
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """List the known models; pull, find or remove one.

    Without a subcommand, prints a table of all known models and where each of them lies.
    """
    if ctx.invoked_subcommand is not None:
        if as_json:
            raise click.UsageError(f"--json goes with the list, not with {ctx.invoked_subcommand!r}")
        return
    entries = [_entry(known) for known in catalog.KNOWN]
    if as_json:
        click.echo(json.dumps(entries, indent=2))
        return
    _print_table(entries)
    click.echo("\nA model that is not here is fetched by: dfstream models pull NAME")


@command.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True, type=_NAME)
@click.option("--force", is_flag=True, help="Download even if the archive is cached and intact.")
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
def pull(names: tuple[str, ...], force: bool, quiet: bool) -> None:
    """Download official models into the cache.

    Every archive is checked against its known hash before it takes its place. DFSTREAM_CACHE names
    another cache folder, DFSTREAM_MODELS_URL another place to download from.
    """
    from dfstream import download

    for name in names:
        location = catalog.locate(name)
        cached = not force and location is not None and location.origin == "cached"
        with progress_bar(name, quiet=quiet, in_bytes=True) as progress:
            path = download.pull(name, progress=progress, force=force)
        if not quiet:
            click.echo(f"{name}: {'already cached' if cached else 'pulled'}, {path}")


@command.command()
@click.argument("name", type=_NAME)
def path(name: str) -> None:
    """Print the folder or archive of a model, for scripts."""
    click.echo(catalog.find(name))


@command.command()
@click.argument("name", type=_NAME)
def remove(name: str) -> None:
    """Delete a pulled model from the cache."""
    from dfstream import download

    click.echo(f"{name}: removed, {download.remove(name)}")


# -- the list --------------------------------------------------------------------------------------


def _entry(known: catalog.KnownModel) -> dict[str, Any]:
    """Describe a model: of what is here the measured size and hash, of what is not the known ones."""
    location = catalog.locate(known.name)
    size, sha256 = known.size, known.sha256
    if location is not None and location.path.is_dir():
        size = sum((location.path / name).stat().st_size for name in catalog.MEMBERS)
        sha256 = catalog.directory_digest(location.path)
    elif location is not None:
        found = catalog.digests(location.path)
        size, sha256 = found.size, found.sha256
    return {
        "name": known.name,
        "default": known.name == catalog.DEFAULT,
        "variant": known.variant,
        "summary": known.summary,
        "status": catalog.status(known, location),
        "path": str(location.path) if location else None,
        "size": size,
        "sha256": sha256,
        "git_blob": known.git_blob,
        "archive": known.archive,
        "licence": known.licence,
        "delay_samples": known.delay_samples,
        "delay_ms": known.delay_ms,
        "sample_rate": known.sample_rate,
    }


def _print_table(entries: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in ("name", "variant", "where", "size", "licence", "delay", "sha256"):
        # fold, not cut: on a narrow terminal every character stays
        table.add_column(title, justify="right" if title in ("size", "delay") else "left", overflow="fold")
    for entry in entries:
        table.add_row(
            f"{entry['name']} (default)" if entry["default"] else entry["name"],
            entry["variant"],
            entry["status"],
            f"{entry['size'] / 1e6:.1f} MB" if entry["size"] is not None else "unknown",
            entry["licence"],
            f"{entry['delay_ms']:g} ms, {entry['delay_samples']}",
            entry["sha256"][:_SHORT_HASH] if entry["sha256"] is not None else "unknown",
        )
    Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH, markup=False, highlight=False).print(table)
