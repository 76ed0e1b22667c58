"""Compare the cost of a hop with other engines: DeepFilterNet's Rust engine, and other projects.

Every engine, and every configuration of dfstream, runs in a process of its own and times its own calls;
all are pinned to the same core, and one works at a time, in turns. The others come from PyPI into a virtual
environment of their own. Ratios are to the Rust engine where it runs. Compare only figures of one run.

    python tools/bench.py --targets
    python tools/bench.py --model bundled --peer rust-main --quick

``dfstream bench`` measures this installation alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

import bench_peers
import bench_targets
import rust_engine
from bench_peers import PEERS, Worker
from dfstream.benchmark.children import measure_start
from dfstream.benchmark.configurations import Configuration, first_of_each_backend, usable
from dfstream.benchmark.contenders import has_pools, repeated_speech
from dfstream.benchmark.figures import hop_times, loop_figures, noise_warnings
from dfstream.benchmark.measuring import Plan, header, measure_streams, run_loops
from dfstream.benchmark.report import aligned, lines
from dfstream.benchmark.timing import pinned
from dfstream.cli._options import MODE
from dfstream.cli.bench import check_outputs, plan_of, teller, write_outputs
from dfstream.errors import BackendUnavailable, DfstreamError, UsageError
from dfstream.model import Model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Tell = Callable[[str], None]
    Row = dict[str, Any]

#: Configurations of dfstream; those that do not exist here are named with the reason.
_BACKENDS = ("ort-cpu", "numba", "numba:precision=int16", "numba:precision=int8")

_WARM_UP_HOPS = 10
_STREAMS = 64
_FILE_S = 60

#: Sample rate in Hz and samples of a hop, of every other engine.
_HOP = 48_000, 480

#: Kinds of rows that are measured at the pace of audio, too.
_LIVE = ("peer", "stream")


@dataclasses.dataclass(frozen=True)
class Contestant:
    """What gets a worker.

    Attributes
    ----------
    row : dict
        What the report says of it besides figures: ``name``, ``kind`` and what it is made of.
    spec : dict
        As `bench_worker` takes it.
    hops : int
        Hops of one stream that a call stands for.
    is_own : bool
        Whether it runs in this environment.
    """

    row: dict[str, Any]
    spec: dict[str, Any]
    hops: int = 1
    is_own: bool = True


def own_configurations(
    model: Model, backends: tuple[str, ...], modes: tuple[str, ...]
) -> tuple[list[Configuration], dict[str, str]]:
    """Return the configurations of dfstream that run here, and why the rest do not.

    Unlike for ``dfstream bench``, a backend that this version does not know is left out, not refused.
    """
    found, left_out = [], {}
    for text in backends or _BACKENDS:
        try:
            configurations, reasons = usable(model, [text], modes or ["incremental"])
        except UsageError as error:
            left_out[text] = str(error)
            continue
        found += configurations
        left_out |= {name: str(error) for name, error in reasons.items()}
    return found, left_out


def own_contestants(source: str, configurations: list[Configuration], plan: Plan) -> Iterator[Contestant]:
    """Give the configurations of dfstream; and for each backend many streams and a file, where planned."""
    shared: dict[str, Any] = {"model": source, "seconds": plan.seconds}
    for c in configurations:
        row = {"name": c.name, "kind": "stream", **c.plain()}
        yield Contestant(row, {**shared, "engine": "dfstream-stream", **c.plain(), "backend": str(c.backend)})
    for backend in (c.backend for c in first_of_each_backend(configurations)):
        row = {"backend": backend.name, "options": dict(backend.options)}
        spec = {**shared, "backend": str(backend)}
        if plan.streams and has_pools():
            row |= {"name": f"{backend}, {_STREAMS} streams", "kind": "streams"}
            yield Contestant(dict(row), {**spec, "engine": "dfstream-pool", "streams": _STREAMS}, _STREAMS)
        if plan.file:
            row |= {"name": f"{backend}, file of {_FILE_S} s", "kind": "file"}
            yield Contestant(
                dict(row), {**spec, "engine": "dfstream-file", "seconds": _FILE_S}, 100 * _FILE_S
            )


def peer_contestants(
    folder: Path, model: Model, archive: Path | None, peers: list[str], plan: Plan
) -> Iterator[Contestant]:
    """Give other engines, and lay down in the folder what they read: the recording, and the model.

    Raises
    ------
    UsageError
        The model has other hops than they.
    """
    if (model.config.sample_rate, model.config.hop_size) != _HOP:
        raise UsageError(
            f"{model.name}: hops of {model.config.hop_size} samples at {model.config.sample_rate} Hz; "
            f"other engines take {_HOP[1]} at {_HOP[0]} Hz",
            hint="dfstream bench measures it alone",
        )
    hops = _WARM_UP_HOPS + round(plan.seconds * model.config.sample_rate / model.config.hop_size)
    path = folder / "hops.npy"
    np.save(path, repeated_speech(hops * model.config.hop_size).reshape(hops, -1))
    archive = archive or rust_engine.archive(model, folder)
    shared = {"hops": str(path), "warm_up": _WARM_UP_HOPS, "archive": str(archive)}
    for name in peers:
        row = {"name": PEERS[name].what, "kind": "peer", "engine": name}
        yield Contestant(row, {**shared, "engine": name}, is_own=False)


def compare(
    source: str,
    contestants: Callable[[Path], Iterator[Contestant]],
    left_out: dict[str, str],
    python: Path,
    plan: Plan,
    tell: Tell,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Measure engines and configurations in turns.

    Parameters
    ----------
    source : str
        The model of dfstream.
    contestants : callable
        Takes a folder for what they share.
    left_out : dict of str to str
        Why others are not measured; more may come to it.
    python : Path
        The interpreter of the other engines' environment.
    plan : Plan
    tell : callable

    Returns
    -------
    dict
        The report, as of ``dfstream bench``; its first row is the base.
    dict
        Every time, by loop and name, in microseconds per hop.
    """
    model = Model.load(source)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="dfstream-bench-"))
        report = header(model, plan, stack.enter_context(pinned(plan.core)))
        rows, workers = [], []
        for c in contestants(Path(folder)):
            name = c.row["name"]
            tell(f"loading {name}")
            try:
                worker = Worker(name, sys.executable if c.is_own else python, c.spec, c.hops)
            except BackendUnavailable as error:
                left_out[name] = str(error).removeprefix(f"{name}: ")
                continue
            stack.callback(worker.close)
            rows.append(c.row)
            workers.append(worker)
        if not workers:
            raise BackendUnavailable("nothing runs here", hint="; ".join(left_out.values()))
        live = [w for w, row in zip(workers, rows, strict=True) if row["kind"] in _LIVE]
        loops = run_loops(workers, live, plan, tell)
        blocks = {worker.name: worker.hops for worker in workers}
        figures = loop_figures(loops, blocks, workers[0].name, 1e3 * report["model"]["hop_ms"])
        for row, worker in zip(rows, workers, strict=True):
            row |= {"versions": worker.versions, "peak_bytes": worker.peak_bytes}
            row["loops"] = figures[worker.name]
    report |= {"base": workers[0].name, "base_is_rust": rows[0].get("engine", "").startswith("rust")}
    report |= {"rows": rows, "left_out": left_out, "warnings": noise_warnings(rows)}
    return report, hop_times(loops, blocks)


def measure_the_rest(
    report: dict[str, Any], source: str, configurations: list[Configuration], plan: Plan, tell: Tell
) -> None:
    """Add to a report what needs no other engine to compare with: most streams of a core, and start-up."""
    first = first_of_each_backend(configurations)
    with pinned(plan.core):
        if plan.streams:
            report["streams"] = measure_streams(Model.load(source), [c.backend for c in first], plan, tell)
        if plan.start:
            report["start"] = measure_start(source, first, plan.repeats, tell)


def target_lines(rows: list[dict[str, Any]]) -> list[str]:
    """Return the table of targets as lines of text."""
    table = [("target", "limit", "here", "quartiles", "")]
    for row in rows:
        limit = f"{'>=' if row['at_least'] else '<='} {row['limit']:g}"
        if row["met"] is None:
            table.append((row["target"], limit, "", "", row["reason"]))
            continue
        between = "" if row["low"] is None else f"{row['low']:.3f}-{row['high']:.3f}"
        word = "met" if row["met"] else "missed"
        table.append((row["target"], limit, f"{row['value']:.3f}", between, f"{word}: {row['what']}"))
    return aligned(table, left=(0, 4))


@click.command()
@click.option(
    "-m", "--model", "name", default=None, help="[default: the official DeepFilterNet3 of the Rust engine]"
)
@click.option("--peer", "peers", type=click.Choice(list(PEERS)), multiple=True, help="May be repeated.")
@click.option(
    "--backend", "backends", multiple=True, metavar="NAME[:OPTION=VALUE,...]", help="May be repeated."
)
@click.option("--mode", "modes", type=MODE, multiple=True, help="May be repeated.  [default: incremental]")
@click.option("--rounds", type=click.IntRange(1, 1000), default=9, show_default=True)
@click.option("--seconds", type=click.FloatRange(0.05, 600), default=2.0, show_default=True)
@click.option("--quick", is_flag=True, help="Short and rough.")
@click.option("--no-paced", is_flag=True, help="Leave out hops at the pace of audio.")
@click.option("--no-streams", is_flag=True, help="Leave out many streams a call.")
@click.option("--no-file", is_flag=True, help="Leave out a file of a minute.")
@click.option("--no-start", is_flag=True, help="Leave out start-up times.")
@click.option("--core", type=click.IntRange(0), default=None, help="Pin to this core.  [default: the last]")
@click.option("--targets", is_flag=True, help="Say where this run stands against the targets.")
@click.option(
    "--venv", type=click.Path(path_type=Path, file_okay=False), default=None,
    help="Environment of the other engines, made where it is missing.  [default: in the user's cache]",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=False, flag_value="-", default=None, metavar="[FILE]")
@click.option("--plot", "picture", type=click.Path(path_type=Path), default=None, metavar="PICTURE")
@click.option("-f", "--force", is_flag=True, help="Replace FILE and PICTURE if they exist.")
def main(
    name: str | None,
    peers: tuple[str, ...],
    backends: tuple[str, ...],
    modes: tuple[str, ...],
    targets: bool,
    venv: Path | None,
    as_json: str | None,
    picture: Path | None,
    force: bool,
    quick: bool,
    **options: Any,
) -> None:
    """Compare the cost of a hop through the public Stream with other engines, one process each."""
    try:
        check_outputs(as_json, picture, force)
        plan, tell = plan_of(quick, options), teller(False)
        folder = (venv or bench_peers.default_venv()).absolute()
        chosen = {key: peer for key, peer in PEERS.items() if key in (peers or PEERS)}
        failed = bench_peers.prepare_venv(folder, chosen, tell)
        archive = bench_peers.installed_archive(folder) if name is None else None
        source = name or (str(archive) if archive else "dfn3")
        model = Model.load(source)
        configurations, left_out = own_configurations(model, backends, modes)
        left_out |= {PEERS[peer].what: reason for peer, reason in failed.items()}
        running = [peer for peer in chosen if peer not in failed]

        def contestants(shared: Path) -> Iterator[Contestant]:
            yield from peer_contestants(shared, model, archive, running, plan)
            yield from own_contestants(source, configurations, plan)

        python = bench_peers.venv_python(folder)
        report, hops_us = compare(source, contestants, left_out, python, plan, tell)
        measure_the_rest(report, source, configurations, plan, tell)
        tell("")
        if targets:
            report["targets"] = bench_targets.standing(report)
        text = lines(report) + (["", *target_lines(report["targets"])] if targets else [])
        write_outputs(report, text, hops_us, as_json, picture)
    except DfstreamError as error:
        raise click.ClickException(f"{error}" + (f"\nhint: {error.hint}" if error.hint else "")) from error


if __name__ == "__main__":
    main()
