"""Write the golden vectors that the tests of ``examples/swift`` compare with.

    python tools/swift_golden.py

One file is of the bundled model, one of a miniature DeepFilterNet2 with random weights, whose deep filter
reads the other spectrum and whose frames have another length. ``golden_vectors`` describes their layout.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

import synthetic
from dfstream.coreml.contract import description, golden_vectors
from dfstream.model import Model

FOLDER = Path(__file__).resolve().parent.parent / "examples" / "swift" / "Tests" / "DFStreamTests" / "Golden"

#: Small enough to read; 192 = 3 * 2^6 is one of the lengths that vDSP transforms.
SMALL_DFN2 = dataclasses.replace(
    synthetic.preset("dfn2"), fft_size=192, hop_size=96, nb_erb=8, nb_df=16, min_nb_erb_freqs=1
)


def files() -> dict[str, dict[str, Any]]:
    """All golden files, by name."""
    with tempfile.TemporaryDirectory() as folder:
        small = Model.load(synthetic.write(Path(folder) / "dfn2", SMALL_DFN2, seed=3))
        return {"bundled.json": golden(Model.load("bundled")), "dfn2-small.json": golden(small)}


def golden(model: Model, frames: int | None = None) -> dict[str, Any]:
    """The description of a package without states, and the vectors."""
    return description(model.config, [], model=model.name) | {"golden": golden_vectors(model, frames)}


if __name__ == "__main__":
    for name, content in files().items():
        (FOLDER / name).write_text(json.dumps(content) + "\n", encoding="utf-8")
        print(FOLDER / name)
