"""One run of the benchmark: what is measured in which order, and the report of it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, TypedDict

from dfstream.benchmark.children import measure_memory, measure_start
from dfstream.benchmark.configurations import first_of_each_backend
from dfstream.benchmark.contenders import file_caller, has_pools, pool_caller, stream_caller
from dfstream.benchmark.figures import hop_times, loop_figures, noise_warnings
from dfstream.benchmark.machine import environment
from dfstream.benchmark.statistics import latency, most_streams
from dfstream.benchmark.timing import Contender, interleave, pinned

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from dfstream.benchmark.configurations import BackendSpec, Configuration
    from dfstream.benchmark.figures import Rounds
    from dfstream.errors import DfstreamError
    from dfstream.model import Model

__all__ = ["Measured", "Plan", "header", "measure", "measure_file", "measure_streams", "run_loops"]

#: Longer calls are not those of live audio, and a stretch at its pace would hold few of them.
_LONGEST_PACED_CALL_S = 0.1

_POOL_SIZES = (1, 8, 64)
_FILE_S = 60.0


class Measured(TypedDict):
    """What comes out of a run: plain values for reports, and every time for pictures."""

    report: dict[str, Any]
    hops_us: dict[str, dict[str, NDArray[np.float64]]]
    """By loop and name, microseconds per hop."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes
    ----------
    rounds : int
    seconds : float
        Audio of one stretch.
    paced, start, streams, file : bool
        Whether to measure at the pace of audio, fresh processes, pools of streams, a whole file.
    repeats : int
        Fresh processes of each kind.
    core : int, optional
        The one everything is pinned to; see `pinned`.
    """

    rounds: int = 7
    seconds: float = 2.0
    paced: bool = True
    start: bool = True
    streams: bool = True
    file: bool = True
    repeats: int = 5
    core: int | None = None


def measure(
    source: str,
    model: Model,
    configurations: Sequence[Configuration],
    left_out: Mapping[str, DfstreamError],
    plan: Plan,
    progress: Callable[[str], None] = lambda _what: None,
) -> Measured:
    """Measure configurations of this installation against each other; the first is the base.

    Parameters
    ----------
    source : str
        What the model was loaded from, for processes that load it themselves.
    model : Model
    configurations : sequence of Configuration
    left_out : mapping of str to DfstreamError
        What cannot run here, for the report.
    plan : Plan
    progress : callable
        Told what is measured; only between stretches, so that it costs none of them anything.

    Raises
    ------
    DfstreamError
        A configuration failed on the way, or the core is not to be had.
    """
    first = first_of_each_backend(configurations)
    backends = [c.backend for c in first]
    with pinned(plan.core) as core:
        report = header(model, plan, core)
        report["left_out"] = {name: str(error) for name, error in left_out.items()}
        callers = [stream_caller(model, c, plan.seconds) for c in configurations]
        live = [c for c in callers if c.interval_s <= _LONGEST_PACED_CALL_S]
        loops = run_loops(callers, live, plan, progress)
        blocks = {c.name: c.block for c in configurations}
        hop_us = 1e6 * model.config.hop_size / model.config.sample_rate
        figures = loop_figures(loops, blocks, configurations[0].name, hop_us)
        report["base"] = configurations[0].name
        report["rows"] = [{"name": c.name, **c.plain(), "loops": figures[c.name]} for c in configurations]
        report["warnings"] = noise_warnings(report["rows"])
        if plan.streams:
            report["streams"] = measure_streams(model, backends, plan, progress)
        if plan.file:
            report["file"] = measure_file(model, backends, plan, progress)
        if plan.start:
            progress("memory")
            peaks = measure_memory(source, list(configurations))
            for row in report["rows"]:
                row["peak_bytes"] = peaks[row["name"]]
            report["start"] = measure_start(source, first, plan.repeats, progress)
    return {"report": report, "hops_us": hop_times(loops, blocks)}


def header(model: Model, plan: Plan, core: int | None) -> dict[str, Any]:
    """Return what stands at the top of a report."""
    c = model.config
    return {
        "environment": environment(core),
        "model": {
            "name": model.name,
            "sha256": model.sha256,
            "variant": c.variant,
            "hop_ms": 1e3 * c.hop_size / c.sample_rate,
        },
        "plan": dataclasses.asdict(plan),
    }


def run_loops(
    contenders: Sequence[Contender], live: Sequence[Contender], plan: Plan, progress: Callable[[str], None]
) -> dict[str, Rounds]:
    """Time all contenders back to back, then the live ones at the pace of audio, where that is planned."""
    tell = _round_teller("tight", plan, progress)
    loops: dict[str, Rounds] = {"tight": interleave(contenders, plan.rounds, progress=tell)}
    if plan.paced and live:
        tell = _round_teller("paced", plan, progress)
        loops["paced"] = interleave(live, plan.rounds, paced=True, dropped=0, progress=tell)
    return loops


def _round_teller(loop: str, plan: Plan, progress: Callable[[str], None]) -> Callable[[int], None]:
    def tell(index: int) -> None:
        progress(f"{loop}, round {index} of {plan.rounds}" if index > 0 else f"{loop}, warming up")

    return tell


# -- streams and files -----------------------------------------------------------------------------


def measure_streams(
    model: Model, backends: Sequence[BackendSpec], plan: Plan, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Return what many live streams cost when one call advances them all."""
    if not has_pools():
        return {"remark": "this version has no dfstream.StreamPool: not measured"}
    rows = []
    hop_us = 1e6 * model.config.hop_size / model.config.sample_rate
    for backend in backends:
        pools = {n: pool_caller(model, backend, n, plan.seconds) for n in _POOL_SIZES}
        rounds = interleave(
            [*pools.values()], plan.rounds, progress=_round_teller(f"streams, {backend}", plan, progress)
        )
        calls = {n: latency([s.seconds for s in rounds[pool.name]]) for n, pool in pools.items()}

        def p99_us(streams: int, backend: BackendSpec = backend) -> float:
            progress(f"streams, {backend}, {streams}")
            return latency([pool_caller(model, backend, streams, plan.seconds).stretch(False).seconds]).p99_us

        most = most_streams(p99_us, hop_us)
        rows += [
            {
                "backend": str(backend),
                "streams": n,
                "us_per_stream_and_hop": call.median_us / n,
                "rounds_us_per_stream": [us / n for us in call.rounds_us],
                "call_p99_us": call.p99_us,
                "most_streams_at_p99": most,
            }
            for n, call in calls.items()
        ]
    return {"rows": rows}


def measure_file(
    model: Model, backends: Sequence[BackendSpec], plan: Plan, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Return what a hop costs when a whole recording is enhanced in one call."""
    hops = _FILE_S * model.config.sample_rate / model.config.hop_size
    callers: list[Contender] = [file_caller(model, backend, _FILE_S) for backend in backends]
    rounds = interleave(callers, plan.rounds, progress=_round_teller("file", plan, progress))
    rows = []
    for name, stretches in rounds.items():
        figures = latency([stretch.seconds / hops for stretch in stretches])
        rows.append({"backend": name, "us_per_hop": figures.median_us, "rounds_us": figures.rounds_us})
    return {"seconds": _FILE_S, "rows": rows}
