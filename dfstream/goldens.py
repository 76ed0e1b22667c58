"""Golden cases: outputs of DeepFilterNet's Rust engine for fixed inputs, and how close we must come."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from dfstream.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from dfstream.model import Model

__all__ = ["Golden", "goldens_of", "read_goldens"]


@dataclasses.dataclass(frozen=True)
class Golden:
    """One run of the Rust engine on one input.

    Attributes
    ----------
    model : str
        Name of the model it was made with.
    case, run : str
        The input, and with which settings.
    model_sha256 : mapping of str to str
        Hashes of the model's files.
    params : mapping
        Settings of the engine.
    compare : "raw" or "bypass"
        Sample by sample, or against the undelayed input that the engine gives at a limit of 0 dB.
    tolerance : mapping
        ``snr_db``, ``rms_dbfs``, ``lsnr_db`` (or None) and ``reason``; ``modes`` may hold others by mode.
    """

    model: str
    case: str
    run: str
    model_sha256: Mapping[str, str]
    params: Mapping[str, Any]
    compare: str
    tolerance: Mapping[str, Any]
    _input: Path = dataclasses.field(repr=False)
    _output: Path = dataclasses.field(repr=False)

    @property
    def name(self) -> str:
        """Case and run."""
        return f"{self.case}.{self.run}"

    def load(self) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32] | None]:
        """Return input [n, channels], output [n, channels] and LSNR [hops] (None where there is none).

        Raises
        ------
        UsageError
            A file is missing or damaged.
        """
        import soundfile

        try:
            x, _ = soundfile.read(self._input, dtype="float32", always_2d=True)
            with np.load(self._output, allow_pickle=False) as arrays:
                y = np.atleast_2d(arrays["y"]).T
                lsnr = np.atleast_2d(arrays["lsnr"])[0] if "lsnr" in arrays.files else None
        except (OSError, ValueError, KeyError, soundfile.LibsndfileError) as error:
            raise UsageError(f"golden {self.name}: cannot be read ({error})") from error
        x = x[: len(y)] * np.float32(self.params.get("input_gain", 1.0))
        return np.ascontiguousarray(x), np.ascontiguousarray(y, dtype=np.float32), lsnr

    def limits(self, mode: str) -> Mapping[str, Any]:
        """Return the tolerance in a mode."""
        return {**self.tolerance, **self.tolerance.get("modes", {}).get(mode, {})}


def read_goldens(folder: Path) -> list[Golden]:
    """Read the descriptions of all goldens in a folder of models, cases and runs.

    Raises
    ------
    UsageError
        No such folder, or a damaged description.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no folder of goldens", hint="the project's repository has one: golden/")
    found = []
    for path in sorted(folder.glob("*/*.json")):
        try:
            case = json.loads(path.read_text(encoding="utf-8"))
            if "runs" not in case:
                continue
            for run in case["runs"]:
                found.append(
                    Golden(
                        case["model"]["name"],
                        case["case"],
                        run["run"],
                        case["model"]["sha256"],
                        run["params"],
                        run["compare"],
                        run["tolerance"] | ({"modes": run["modes"]} if "modes" in run else {}),
                        folder / case["input"]["file"],
                        path.with_name(run["file"]),
                    )
                )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{path}: not a description of a golden case ({error})") from error
    return found


def goldens_of(model: Model, goldens: list[Golden]) -> list[Golden]:
    """Return those made with the graphs of a model, whatever it is called."""
    mine = {f"{stem}.onnx": hashlib.sha256(data).hexdigest() for stem, data in model.source_graphs().items()}
    return [
        g
        for g in goldens
        if mine and all(g.model_sha256.get(name) == digest for name, digest in mine.items())
    ]
