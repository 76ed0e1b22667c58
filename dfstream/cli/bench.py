"""``dfstream bench``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dfstream.cli._options import MODE, print_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from dfstream.benchmark.measuring import Plan


__all__ = ["check_outputs", "command", "plan_of", "teller", "write_outputs"]

#: What ``--json`` without a file stands for.
_STDOUT = "-"


@click.command(short_help="Measure how long a hop takes on this machine.")
@click.option("-m", "--model", default="bundled", show_default=True)
@click.option(
    "--backend", "backends", multiple=True, metavar="NAME[:OPTION=VALUE,...]",
    help="May be repeated; all that work here by default.",
)  # fmt: skip
@click.option(
    "--mode", "modes", type=MODE, multiple=True, help="May be repeated; all exact modes by default."
)
@click.option(
    "--block", "blocks", type=click.IntRange(1, 4096), multiple=True, default=[1, 100], show_default=True,
    help="Hops a call. May be repeated.",
)  # fmt: skip
@click.option(
    "--rounds", type=click.IntRange(1, 1000), default=7, show_default=True, help="Stretches of each."
)
@click.option(
    "--seconds", type=click.FloatRange(0.05, 600), default=2.0, show_default=True, help="Audio of a stretch."
)
@click.option("--quick", is_flag=True, help="Short and rough: as --rounds 3 --seconds 0.5.")
@click.option("--no-paced", is_flag=True, help="Leave out hops at the pace of audio, 10 ms apart.")
@click.option("--no-streams", is_flag=True, help="Leave out many streams a call.")
@click.option("--no-file", is_flag=True, help="Leave out a file of a minute.")
@click.option("--no-start", is_flag=True, help="Leave out start-up times and peak memory.")
@click.option("--core", type=click.IntRange(0), default=None, help="Pin to this core.  [default: the last]")
@click.option(
    "--json", "as_json", is_flag=False, flag_value=_STDOUT, default=None, metavar="[FILE]",
    help="Print the result as JSON, or write it to FILE beside the table.",
)  # fmt: skip
@click.option(
    "--plot", "picture", type=click.Path(path_type=Path), default=None, metavar="PICTURE",
    help="Draw how the times are distributed: .png, .svg or .pdf. Needs matplotlib.",
)  # fmt: skip
@click.option("-f", "--force", is_flag=True, help="Replace FILE and PICTURE if they exist.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
def command(
    model: str,
    backends: tuple[str, ...],
    modes: tuple[str, ...],
    blocks: tuple[int, ...],
    quick: bool,
    as_json: str | None,
    picture: Path | None,
    force: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Time hops through the public Stream: backends, modes and blocks in turn, on one core.

    Each configuration runs a stretch a round, first back to back (tight), then 10 ms apart (paced), where
    caches go cold. Compare only figures of one run. The garbage collector stays on. Options of a backend
    follow its name.

    \b
    dfstream bench --quick
    dfstream bench --model dfn3 --json report.json --plot report.png
    dfstream bench --backend ort-cpu:threads=2 --mode incremental --block 1
    """
    from dfstream.errors import UsageError

    check_outputs(as_json, picture, force)
    tell = teller(quiet)
    tell("loading")
    from dfstream.benchmark.configurations import usable
    from dfstream.benchmark.measuring import measure
    from dfstream.benchmark.report import lines
    from dfstream.model import Model

    loaded = Model.load(model)
    found, left_out = usable(loaded, backends, modes, blocks)
    if not found:
        raise next(iter(left_out.values()), UsageError("nothing to measure"))
    measured = measure(loaded.origin, loaded, found, left_out, plan_of(quick, options), tell)
    tell("")
    report = measured["report"]
    write_outputs(report, lines(report), measured["hops_us"], as_json, picture)


def check_outputs(as_json: str | None, picture: Path | None, force: bool) -> None:
    """Refuse what could never be written before any work is done; raises `UsageError`."""
    if as_json not in (None, _STDOUT):
        from dfstream.audiofile import check_target

        check_target(str(as_json), force, audio=False)
    if picture is not None:
        from dfstream.plotting import check_before

        check_before(picture, force)


def write_outputs(
    report: dict[str, Any], text: list[str], hops_us: Any, as_json: str | None, picture: Path | None
) -> None:
    """Print a report as text or JSON, and write the files that were asked for."""
    if as_json == _STDOUT:
        print_json(report)
    else:
        click.echo("\n".join(text))
    if as_json not in (None, _STDOUT):
        from dfstream import atomic

        with atomic.replacing(Path(str(as_json))) as path:
            path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if picture is not None:
        from dfstream.benchmark.picture import save

        save(picture, hops_us, report)


def plan_of(quick: bool, options: dict[str, Any]) -> Plan:
    """Return what the options ask for."""
    from dfstream.benchmark.measuring import Plan

    length = {"rounds": 3, "seconds": 0.5, "repeats": 2} if quick else {}
    switches = {name: not options[f"no_{name}"] for name in ("paced", "streams", "file", "start")}
    return Plan(
        **{"rounds": options["rounds"], "seconds": options["seconds"], **length},
        **switches,
        core=options["core"],
    )


def teller(quiet: bool) -> Callable[[str], None]:
    """Return what shows progress on a terminal: one line, written between measurements.

    A live display redraws from a thread of its own, in the middle of what is timed.
    """
    shown = not quiet and sys.stderr.isatty()

    def tell(what: str) -> None:
        if shown:
            click.echo(f"\r\x1b[K{what}", nl=False, err=True)

    return tell
