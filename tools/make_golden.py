"""Make the golden suite again: what DeepFilterNet's Rust engine makes of the inputs in ``golden/inputs``.

::

    pip install -e '.[golden]'
    python tools/make_golden.py                               # everything
    python tools/make_golden.py --model dfn3 --case sweep     # one case
    python tools/make_golden.py --check                       # compare, write nothing

The engines choose their kernels by CPU, so another machine gives other last digits: ``--check`` allows
2e-6 of the peak of input or output, whichever is larger (seen between AVX2 and AVX-512: 1e-6).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import soundfile

import rust_engine
from dfstream.errors import DfstreamError, UsageError, VerifyFailed
from dfstream.model import Model
from golden_cases import BUNDLED, DEFAULTS, DFN3, Case, Run

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    Audio = NDArray[np.float32]

__all__ = ["SUITES", "params_of", "read_input", "run_engine", "write_sums"]

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
SUITES: dict[str, dict[str, Case]] = {"dfn3": DFN3, "bundled": BUNDLED}

#: Of the peak of input or output, between CPUs. Largest seen: 1.0e-6.
KERNELS = 2e-6

#: Between CPUs. Largest seen: 5e-5 dB.
KERNELS_LSNR_DB = 1e-3

_FULL_SCALE = 32768
_ENGINE_SETTINGS = (
    "atten_lim_db", "post_filter_beta", "min_db_thresh", "max_db_erb_thresh", "max_db_df_thresh"
)  # fmt: skip


# -- running the engine ----------------------------------------------------------------------------


def params_of(run: Run) -> dict[str, Any]:
    """Return all settings of a run."""
    return {**DEFAULTS, **run.changes}


def read_input(path: Path, gain: float = 1.0) -> Audio:
    """Read an input as the engines are fed: int16 / 32768 times the gain, float32 [channels, samples]."""
    samples, _ = soundfile.read(path, dtype="int16", always_2d=True)
    return np.ascontiguousarray(samples.T.astype(np.float32) / _FULL_SCALE * np.float32(gain))


def run_engine(
    engine: str, archive: Path, x: Audio, params: Mapping[str, Any], frames: int | None = None
) -> tuple[Audio, NDArray[np.float32] | None]:
    """Feed each channel to a fresh engine, hop by hop; a last partial hop is dropped.

    Parameters
    ----------
    engine : str
        ``main`` or ``v0.5.6``.
    archive : Path
        The model.
    x : ndarray[float32], shape (channels, samples)
    params : mapping
        As in the descriptions.
    frames : int, optional
        Hops to feed.

    Returns
    -------
    y : ndarray[float32], shape (channels, frames * hop)
        As it comes, delay included.
    lsnr : ndarray[float32] or None, shape (channels, frames), dB
    """
    results = [_run_channel(engine, archive, channel, params, frames) for channel in x]
    lsnr = [values for _, values in results]
    given = all(value is not None for values in lsnr for value in values)
    return np.stack([y for y, _ in results]), np.array(lsnr, np.float32) if given else None


def _run_channel(
    engine: str, archive: Path, x: Audio, params: Mapping[str, Any], frames: int | None
) -> tuple[Audio, list[float | None]]:
    rust = rust_engine.create(engine, archive, {name: params[name] for name in _ENGINE_SETTINGS})
    schedule: dict[int, dict[str, float]] = dict(params.get("schedule", []))
    hop = rust.hop_size
    y, lsnr = [], []
    for index in range(len(x) // hop if frames is None else frames):
        for name, value in schedule.get(index, {}).items():
            setattr(rust, name, value)
        out, snr = rust.process(x[index * hop : (index + 1) * hop])
        y.append(out)
        lsnr.append(snr)
    return np.concatenate(y), lsnr


def _output(run: Run, archive: Path, path: Path) -> dict[str, NDArray[np.float32]]:
    """Return the arrays of a run."""
    params = params_of(run)
    x = read_input(path, params["input_gain"])
    y, lsnr = run_engine(run.engine, archive, x, params, run.frames)
    if lsnr is None and not params["skip_silence"]:
        # this build keeps it to itself, but the encoder runs on every hop whatever the thresholds
        _, lsnr = run_engine("main", archive, x, DEFAULTS, run.frames)
    arrays = {"y": y} if lsnr is None else {"y": y, "lsnr": lsnr}
    return arrays if len(x) > 1 else {name: array[0] for name, array in arrays.items()}


# -- describing it ---------------------------------------------------------------------------------


def _tolerance(run: Run, arrays: Mapping[str, NDArray[np.float32]]) -> dict[str, Any]:
    bypassed = params_of(run)["atten_lim_db"] == 0
    reason = (
        "float32 rounding in another order of operations; below a peak of -40 dBFS the error itself counts"
    )
    if bypassed:
        reason += "; no LSNR, the bypass does not run the network"
    elif "lsnr" not in arrays:
        reason += "; no LSNR from this build"
    lsnr_db = None if bypassed or "lsnr" not in arrays else 0.01
    return {"snr_db": 100, "rms_dbfs": -140, "lsnr_db": lsnr_db, "reason": reason}


#: Looser limits for one mode, by model, case and run.
_MODES: dict[tuple[str, str, str], dict[str, Any]] = {
    ("dfn3", "narrowband_8k", "thr_m5_10_5"): {
        "stateful-h0": {
            "snr_db": 60,
            "reason": "this mode computes the deep-filter pathway's convolutions from a window of "
            "consecutive features; a decoder that was skipped should still see those of its own last calls, "
            "which may be older",
        }
    }
}


def _branches(run: Run, arrays: Mapping[str, NDArray[np.float32]]) -> dict[str, int]:
    """Count the frames in each branch of the thresholds."""
    p, lsnr = params_of(run), arrays["lsnr"]
    muted = lsnr < p["min_db_thresh"]
    passed = ~muted & (lsnr > p["max_db_erb_thresh"])
    masked = ~muted & ~passed & (lsnr > p["max_db_df_thresh"])
    counts = {"muted": muted, "passed": passed, "masked": masked, "full": ~(muted | passed | masked)}
    return {name: int(np.count_nonzero(frames)) for name, frames in counts.items()}


def _describe_run(
    model: str, case: str, run: Run, arrays: Mapping[str, NDArray[np.float32]], hop: int, digest: str
) -> dict[str, Any]:
    params = params_of(run)
    entry: dict[str, Any] = {
        "run": run.name,
        "shows": run.shows,
        "file": f"{case}.{run.name}.npz",
        "sha256": digest,
        "engine": run.engine,
        "frames": arrays["y"].shape[-1] // hop,
        "params": params,
        "compare": "bypass" if params["atten_lim_db"] == 0 else "raw",
        "tolerance": _tolerance(run, arrays),
    }
    if run.name.startswith("thr_"):
        entry["branches"] = _branches(run, arrays)
    if (model, case, run.name) in _MODES:
        entry["modes"] = _MODES[model, case, run.name]
    return entry


def _describe_input(case: str, description: str) -> dict[str, Any]:
    path = GOLDEN / "inputs" / f"{case}.flac"
    info = soundfile.info(path)
    return {
        "file": f"inputs/{case}.flac",
        "description": description,
        "samples": info.frames,
        "channels": info.channels,
        "sample_rate": info.samplerate,
        "sha256": _sha256(path.read_bytes()),
    }


def _made_by(builds: Mapping[str, Mapping[str, str]], case: Case) -> dict[str, Any]:
    used = {run.engine for run in case.runs} | {"main"}
    return {
        "tool": "tools/make_golden.py",
        "engines": {engine: dict(build) for engine, build in builds.items() if engine in used},
        "python": platform.python_version(),
        "numpy": np.__version__,
        "machine": platform.machine(),
    }


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# -- writing and checking --------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Maker:
    """One model's part of the suite."""

    name: str
    model: Model
    archive: Path
    builds: Mapping[str, Mapping[str, str]]

    def make(self, case_name: str, case: Case) -> Iterator[str]:
        """Write a case; yield a line for each run."""
        folder = GOLDEN / self.name
        folder.mkdir(exist_ok=True)
        hop = self.model.config.hop_size
        runs = []
        for run in case.runs:
            arrays = _output(run, self.archive, GOLDEN / "inputs" / f"{case_name}.flac")
            path = folder / f"{case_name}.{run.name}.npz"
            np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
            digest = _sha256(path.read_bytes())
            runs.append(_describe_run(self.name, case_name, run, arrays, hop, digest))
            yield f"{path.name}: {runs[-1]['frames']} hops"
        description = {
            "case": case_name,
            "proves": case.proves,
            "input": _describe_input(case_name, case.input),
            "model": {
                "name": self.name,
                "sha256": {n: _sha256(data) for n, data in rust_engine.model_files(self.model).items()},
            },
            "made_by": _made_by(self.builds, case),
            "delay_samples": self.model.config.delay_samples,
            "runs": runs,
        }
        text = json.dumps(description, indent=1, ensure_ascii=False) + "\n"
        (folder / f"{case_name}.json").write_text(text, encoding="utf-8")

    def check(self, case_name: str, case: Case) -> Iterator[str]:
        """Compare a case with what is there; yield a line for each run, raise at the end if one differs."""
        failed = []
        for run in case.runs:
            path = GOLDEN / "inputs" / f"{case_name}.flac"
            arrays = _output(run, self.archive, path)
            with np.load(GOLDEN / self.name / f"{case_name}.{run.name}.npz") as file:
                there = dict(file)
            peak = float(np.max(np.abs(read_input(path, params_of(run)["input_gain"]))))
            same, line = _compare(arrays, there, max(peak, float(np.max(np.abs(there["y"])))))
            failed += [] if same else [run.name]
            yield f"{case_name}.{run.name}: {line}{'' if same else '  DIFFERS'}"
        if failed:
            raise VerifyFailed(f"{case_name}: {', '.join(failed)} differ from the engine's output")


def _compare(
    arrays: Mapping[str, NDArray[np.float32]], there: Mapping[str, NDArray[np.float32]], peak: float
) -> tuple[bool, str]:
    """Tell whether two outputs are the same but for the choice of kernels, and by how much they differ."""
    if {k: v.shape for k, v in there.items()} != {k: v.shape for k, v in arrays.items()}:
        return False, "other arrays"
    errors = {name: float(np.max(np.abs(arrays[name] - there[name]))) for name in there}
    same = errors["y"] <= KERNELS * peak and errors.get("lsnr", 0.0) <= KERNELS_LSNR_DB
    relative = errors["y"] / peak if peak else errors["y"]
    lsnr = f", LSNR {errors['lsnr']:.1e} dB" if "lsnr" in errors else ""
    return same, f"{errors['y']:.1e}, {relative:.1e} of the peak{lsnr}"


def write_sums(folder: Path = GOLDEN) -> None:
    """Write ``SHA256SUMS`` over all files of the folder but itself and the README."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in ("SHA256SUMS", "README.md"))
    lines = [f"{_sha256(p.read_bytes())}  {p.relative_to(folder).as_posix()}\n" for p in paths]
    (folder / "SHA256SUMS").write_text("".join(lines), encoding="utf-8")


def _make(names: list[str], case: str | None, check: bool, any_build: bool) -> None:
    builds = rust_engine.check_builds(any_build)
    cases = {name: {c: s for c, s in SUITES[name].items() if case in (None, c)} for name in names}
    if not any(cases.values()):
        raise UsageError(f"no case {case!r}", hint=f"known: {', '.join(DFN3)}")
    differing = []
    with tempfile.TemporaryDirectory() as folder:
        for name, suite in cases.items():
            model = Model.load(name)
            maker = _Maker(name, model, rust_engine.archive(model, Path(folder)), builds)
            for case_name, described in suite.items():
                try:
                    for line in (maker.check if check else maker.make)(case_name, described):
                        click.echo(f"{name}  {line}")
                except VerifyFailed as error:
                    differing.append(str(error))
    if differing:
        raise VerifyFailed("; ".join(differing))
    if not check:
        write_sums()


@click.command()
@click.option("--model", type=click.Choice([*SUITES, "all"]), default="all", show_default=True)
@click.option("--case", metavar="NAME", help="This case only.")
@click.option("--check", is_flag=True, help="Compare with what is there, write nothing.")
@click.option(
    "--any-build", is_flag=True, help="Take other builds of the engine than the suite was made with."
)
def main(model: str, case: str | None, check: bool, any_build: bool) -> None:
    """Make the golden suite, or check it, with the Rust engine itself."""
    try:
        _make([*SUITES] if model == "all" else [model], case, check, any_build)
    except DfstreamError as error:
        hint = f" ({error.hint})" if error.hint else ""
        raise click.ClickException(f"{error}{hint}") from error


if __name__ == "__main__":
    main()
