"""A process of its own that enhances one hop and says so, then runs on and tells its peak memory.

Usage: python -m dfstream.benchmark.child JSON, an object of ``model``, ``backend``, ``mode``, ``block``
and ``seconds``. Two lines come out: ``hop``, as soon as a hop is enhanced, and the peak in bytes or None.
"""

from __future__ import annotations

import json
import sys


def main(argument: str) -> None:
    """Enhance noise as the argument says."""
    import numpy as np

    from dfstream import Model, Stream
    from dfstream.benchmark.configurations import BackendSpec
    from dfstream.benchmark.machine import peak_bytes

    spec = json.loads(argument)
    model = Model.load(spec["model"])
    rate, size = model.config.sample_rate, spec["block"] * model.config.hop_size
    stream = Stream(
        model,
        mode=spec["mode"],
        backend=BackendSpec.parse(spec["backend"]).make(),
        sample_rate=rate,
        block_frames=spec["block"],
    )
    noise = np.random.default_rng(0).standard_normal(size).astype(np.float32) / 10
    assert len(stream.process(noise))
    print("hop", flush=True)
    for _ in range(max(1, round(spec["seconds"] * rate / size))):
        stream.process(noise)
    print(peak_bytes(), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
