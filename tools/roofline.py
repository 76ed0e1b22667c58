"""How far the compiled network is from what this machine can do: bytes, operations, floors, measured, gap.

Two limits are measured with kernels of the same kind: how fast one core reads weights that lie in its
largest cache (as many bytes as the model has), and how many multiply-accumulates a second a tile of a
matrix product reaches on data in the smallest. No hop can be quicker than its bytes over the first, nor
than its multiply-accumulates over the second.

    python tools/roofline.py --model dfn3
"""

from __future__ import annotations

import json
import os
import statistics
import time
from typing import TYPE_CHECKING, Any

import click
import numba
import numpy as np
from dfstream.patches.facts import multiply_accumulates
from dfstream.patches.graph import import_graph

from dfstream.backends.base import find_backend
from dfstream.backends.numba import FRAMES_TOGETHER
from dfstream.dsp.tile import LANES, ROWS, TALL, tile
from dfstream.model import Model
from dfstream.modes.base import find_network_mode
from dfstream.net.packing import aligned
from dfstream.reading import parse_graph

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from dfstream.net.program import Program

_ROUNDS = 15
_IN_SMALLEST_CACHE = 64

_several = tile(ROWS, TALL)


@numba.njit(fastmath=True)
def _read(values: NDArray[np.float32]) -> Any:
    total = np.float32(0.0)
    for i in range(values.size):
        total += values[i]
    return total


@numba.njit
def _multiply(x: Any, w: Any, y: Any, K: int, repeats: int) -> None:
    width = TALL * LANES
    for _ in range(repeats):
        _several(x, 0, K, w, 0, width, y, 0, width, K)


def bandwidth(size: int) -> float:
    """Return how many bytes a second one core reads, over and over, of an array of so many bytes."""
    values = aligned(size // 4, np.float32)
    return size / _quickest(lambda: _read(values), 20)


def multiplications() -> float:
    """Return how many multiply-accumulates a second a tile reaches."""
    K, width, repeats = _IN_SMALLEST_CACHE, TALL * LANES, 2000
    x, w, y = (aligned(n, np.float32) for n in (ROWS * K, K * width, ROWS * width))
    return repeats * ROWS * K * width / _quickest(lambda: _multiply(x, w, y, K, repeats), 20)


def _quickest(call: Callable[[], object], count: int) -> float:
    times = []
    for _ in range(count + 1):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def measured(model: Model, precision: str, streams: int, frames: int) -> float:
    """Return the seconds the network takes per stream and hop: the least of medians."""
    mode = find_network_mode("incremental")(model, find_backend("numba", precision=precision), streams)
    rng, c = np.random.default_rng(0), model.config
    feat_erb = rng.standard_normal((streams, 1, frames, c.nb_erb), np.float32)
    feat_spec = rng.standard_normal((streams, 2, frames, c.nb_df), np.float32)
    medians = []
    for _ in range(_ROUNDS):
        times = []
        for _ in range(max(3, 100 // (streams * frames))):
            start = time.perf_counter()
            mode.step(feat_erb, feat_spec)
            times.append(time.perf_counter() - start)
        medians.append(statistics.median(times))
    return min(medians) / (streams * frames)


def program_of(model: Model, precision: str) -> Program:
    """Return the compiled program of a model."""
    sessions = model.open(
        find_backend("numba", precision=precision), find_network_mode("incremental").recipe()
    )
    (session,) = sessions.values()
    return session.program  # type: ignore[attr-defined, no-any-return]


def rows(model: Model, read: float, multiplied: float) -> list[dict[str, Any]]:
    """Return what is known of each case."""
    from dfstream.patches.compact import compact_recipe

    ((stem, data),) = model.graphs(compact_recipe()).items()
    macs = sum(multiply_accumulates(import_graph(parse_graph(data, stem))).values())
    found = []
    for name, precision, streams, frames in (
        ("one stream", "float32", 1, 1),
        ("one stream, int16", "int16", 1, 1),
        ("one stream, fp16", "fp16", 1, 1),
        ("one stream, int8", "int8", 1, 1),
        ("8 streams", "float32", 8, 1),
        ("64 streams", "float32", 64, 1),
        ("one file, blocks of 100", "float32", 1, 100),
        ("8 files, blocks of 4", "float32", 8, 4),
    ):
        program = program_of(model, precision)
        weights = program.weights.nbytes + program.stored.nbytes
        per_hop = weights / min(streams * frames, FRAMES_TOGETHER)
        floors = {"reading": per_hop / read, "multiplying": macs / multiplied}
        bound = max(floors, key=floors.__getitem__)
        took = measured(model, precision, streams, frames)
        found.append({
            "case": name, "bytes": round(per_hop), "macs": macs, "floor_us": floors[bound] * 1e6,
            "bound_by": bound, "us": took * 1e6, "gap": took / floors[bound] - 1,
        })  # fmt: skip
    return found


@click.command()
@click.option("--model", default="bundled", show_default=True)
@click.option("--core", type=int, help="Core to run on; the last one by default.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def main(model: str, core: int | None, as_json: bool) -> None:
    """Compare the time of the compiled network with what this machine allows."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0)) if core is None else core})
    loaded = Model.load(model)
    program = program_of(loaded, "float32")
    read, multiplied = bandwidth(program.weights.nbytes + program.stored.nbytes), multiplications()
    table = rows(loaded, read, multiplied)
    if as_json:
        limits = {"bytes_per_s": read, "macs_per_s": multiplied}
        click.echo(json.dumps({"model": loaded.name, **limits, "cases": table}, indent=2))
        return
    click.echo(
        f"{loaded.name}: one core reads {read / 1e9:.0f} GB/s and does {multiplied / 1e9:.0f} G "
        "multiply-accumulates a second\n"
    )
    click.echo("| case | bytes a hop | MAC a hop | floor, us | bound by | measured, us | gap |")
    click.echo("| --- | ---: | ---: | ---: | --- | ---: | ---: |")
    for row in table:
        sizes = f"{row['bytes'] / 1e6:.2f} M | {row['macs'] / 1e6:.2f} M"
        times = f"{row['floor_us']:.0f} | {row['bound_by']} | {row['us']:.0f} | {100 * row['gap']:.0f} %"
        click.echo(f"| {row['case']} | {sizes} | {times} |")


if __name__ == "__main__":
    main()
