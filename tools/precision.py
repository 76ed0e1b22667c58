"""Measure what reduced weights do to the sound: options of backends against float32 of the same backend.

Mixtures are pairs of files ``<name>_noisy.<ext>`` and ``<name>_clean.<ext>`` in a folder, or two files
given with ``--pair``. Every mixture is streamed hop by hop. Printed are a table in Markdown, or all
figures of all mixtures as JSON.

    pip install pesq pystoi
    python tools/precision.py --model dfn3 --mixtures FOLDER --backend ort-cpu:precision=int8
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import soundfile
import soxr

from dfstream.backends.base import find_backend, parse_backend
from dfstream.errors import DfstreamError, UsageError
from dfstream.model import Model
from dfstream.stream import Stream

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from dfstream.backends.base import Backend

    Audio = NDArray[np.float32]

#: What PESQ in its wide-band form is defined at; STOI looks below 5 kHz only.
_SCORE_RATE = 16_000

#: Columns: what of the mixtures' figures is shown, and how.
_COLUMNS: dict[str, tuple[str, Callable[[list[float]], Any], str]] = {
    "audio SNR, dB": ("snr_db", np.mean, "{:.1f}"),
    "lowest": ("snr_db", np.min, "{:.1f}"),
    "largest LSNR change, dB": ("lsnr_change_db", np.max, "{:.3f}"),
    "SI-SDR, dB": ("si_sdr_db", np.mean, "{:.3f}"),
    "PESQ-WB": ("pesq", np.mean, "{:.3f}"),
    "STOI": ("stoi", np.mean, "{:.4f}"),
}


@dataclasses.dataclass(frozen=True)
class Figures:
    """Figures of one mixture.

    Attributes
    ----------
    snr_db, lsnr_change_db : float, dB
        Of the audio to that of float32, and the largest change of the local SNR.
    si_sdr_db, pesq, stoi : float
        Against the clean reference.
    """

    snr_db: float
    lsnr_change_db: float
    si_sdr_db: float
    pesq: float
    stoi: float


def pairs_of(folder: Path) -> list[tuple[Path, Path]]:
    """Return the mixtures of a folder, each noisy and clean.

    Raises
    ------
    UsageError
        There are none, or a clean one is missing.
    """
    found = []
    for noisy in sorted(folder.glob("*_noisy.*")):
        clean = noisy.with_name(noisy.name.replace("_noisy.", "_clean."))
        if not clean.exists():
            raise UsageError(f"{noisy}: no {clean.name} beside it")
        found.append((noisy, clean))
    if not found:
        raise UsageError(f"{folder}: no files *_noisy.*")
    return found


def si_sdr_db(reference: Audio, estimate: Audio) -> float:
    """Return the scale-invariant SDR as DeepFilterNet's own test computes it (``evaluation_utils.py``).

    Float32 throughout and no mean is removed, as there.
    """
    eps = np.finfo(np.float32).eps
    scale = (eps + reference @ estimate) / (reference @ reference + eps)
    target = scale * reference
    error = estimate - target
    return float(10 * np.log10((eps + target @ target) / (error @ error + eps)))


def snr_db(reference: Audio, estimate: Audio) -> float:
    """Return the power of the reference over that of the difference, infinite where there is none."""
    error = np.mean((estimate.astype(np.float64) - reference) ** 2)
    return float(10 * np.log10(np.mean(reference.astype(np.float64) ** 2) / error)) if error else float("inf")


class Judge:
    """Scores estimates of one clean reference.

    Parameters
    ----------
    clean : ndarray[float32], shape (n,)
    sample_rate : int, Hz

    Raises
    ------
    UsageError
        The packages of PESQ and STOI are missing.
    """

    def __init__(self, clean: Audio, sample_rate: int) -> None:
        try:
            import pesq
            import pystoi
        except ImportError as error:
            raise UsageError(
                f"PESQ and STOI cannot be computed ({error})", hint="pip install pesq pystoi"
            ) from error
        self._pesq, self._stoi = pesq, pystoi.stoi
        self._clean, self._rate = clean, sample_rate
        self._narrow = self._resampled(clean)

    def __call__(self, y: Audio, snr: float = float("nan"), lsnr_change: float = float("nan")) -> Figures:
        """Return the figures of an estimate."""
        narrow = self._resampled(y)
        try:
            pesq = float(self._pesq.pesq(_SCORE_RATE, self._narrow, narrow, "wb"))
        except self._pesq.NoUtterancesError:
            pesq = float("nan")
        stoi = float(self._stoi(self._narrow, narrow, _SCORE_RATE))
        return Figures(snr, lsnr_change, si_sdr_db(self._clean, y), pesq, stoi)

    def _resampled(self, audio: Audio) -> Audio:
        result: Audio = soxr.resample(audio, self._rate, _SCORE_RATE)
        return result


def enhanced(model: Model, backend: Backend, noisy: Audio) -> tuple[Audio, Audio]:
    """Stream a mixture hop by hop as the Python package aligns it; returns audio and LSNR."""
    stream = Stream(model, backend=backend, parity="python")
    begun, lsnr = stream.process(noisy), stream.lsnr
    y = np.concatenate([begun, stream.flush()])
    return y[stream.delay_samples :], np.concatenate([lsnr, stream.lsnr])


def measure(
    model: Model, backends: list[str], pairs: list[tuple[Path, Path]], progress: Callable[[str], None]
) -> dict[str, list[Figures]]:
    """Return the figures of every mixture by backend, those of the noisy input and of float32 first."""
    reduced = {text: parse_backend(text) for text in backends}
    exact = {backend.name: find_backend(backend.name) for backend in reduced.values()}
    rows: dict[str, list[Figures]] = {"noisy input": [], **{f"{name}, float32": [] for name in exact}}
    rows |= {text: [] for text in reduced}
    for noisy_path, clean_path in pairs:
        progress(noisy_path.name)
        noisy, clean = (_read(path, model.config.sample_rate) for path in (noisy_path, clean_path))
        judge = Judge(clean, model.config.sample_rate)
        rows["noisy input"].append(judge(noisy))
        bases = {name: enhanced(model, backend, noisy) for name, backend in exact.items()}
        for name, (y, _) in bases.items():
            rows[f"{name}, float32"].append(judge(y))
        for text, backend in reduced.items():
            (y, lsnr), (want, lsnr_want) = enhanced(model, backend, noisy), bases[backend.name]
            rows[text].append(judge(y, snr_db(want, y), float(np.nanmax(np.abs(lsnr - lsnr_want)))))
    return rows


def table(rows: dict[str, list[Figures]]) -> str:
    """Return means over the mixtures, and extremes where a mean would hide them, in Markdown."""
    lines = [("", *_COLUMNS), tuple("---" for _ in ("", *_COLUMNS))]
    for name, figures in rows.items():
        cells = []
        for field, reduce, form in _COLUMNS.values():
            value = float(reduce([getattr(one, field) for one in figures]))
            cells.append(form.format(value) if np.isfinite(value) else "")
        lines.append((name, *cells))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _read(path: Path, sample_rate: int) -> Audio:
    try:
        audio, rate = soundfile.read(path, dtype="float32")
    except (soundfile.LibsndfileError, OSError) as error:
        raise UsageError(f"{path}: cannot be read ({error})") from error
    if rate != sample_rate or audio.ndim != 1:
        raise UsageError(f"{path}: expected one channel at the model's {sample_rate} Hz")
    return np.ascontiguousarray(audio)


@click.command()
@click.option("--model", default="bundled", show_default=True)
@click.option("--backend", "backends", multiple=True, required=True, metavar="NAME:KEY=VALUE,...")
@click.option("--mixtures", "folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--pair", type=(Path, Path), multiple=True, metavar="NOISY CLEAN")
@click.option("--json", "as_json", is_flag=True, help="Print all figures of all mixtures as JSON.")
def main(
    model: str,
    backends: tuple[str, ...],
    folder: Path | None,
    pair: tuple[tuple[Path, Path], ...],
    as_json: bool,
) -> None:
    """Compare backends of reduced precision with float32."""
    try:
        pairs = [*pair, *(pairs_of(folder) if folder else [])]
        if not pairs:
            raise UsageError("no mixtures", hint="give --mixtures FOLDER or --pair NOISY CLEAN")
        loaded = Model.load(model)
        rows = measure(loaded, [*backends], pairs, lambda name: click.echo(name, err=True))
    except DfstreamError as error:
        click.echo(f"error: {error}" + (f"\nhint: {error.hint}" if error.hint else ""), err=True)
        sys.exit(error.exit_code)
    if as_json:
        names = [noisy.name for noisy, _ in pairs]
        click.echo(json.dumps({"model": loaded.name, "rows": _as_dict(rows, names)}, indent=2))
    else:
        click.echo(f"{loaded.name} ({loaded.config.variant}), {len(pairs)} mixtures\n\n{table(rows)}")


def _as_dict(rows: dict[str, list[Figures]], names: list[str]) -> dict[str, Any]:
    """Put what is not a number, or infinite, as null: JSON has neither."""
    return {
        backend: {
            name: {key: v if np.isfinite(v) else None for key, v in dataclasses.asdict(one).items()}
            for name, one in zip(names, figures, strict=True)
        }
        for backend, figures in rows.items()
    }


if __name__ == "__main__":
    main()
