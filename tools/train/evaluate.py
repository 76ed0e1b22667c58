"""Score models on mixtures with references: what they remove, leave alone, and do at other levels.

    python tools/train/evaluate.py --model new=WORK/run/model --table synth48/mixtures.csv \\
        --pair noisy_snr0 NOISY.wav CLEAN.wav

Prints tables in Markdown: PESQ-WB, STOI (both at 16 kHz) and SI-SDR per set and per SNR, beside the noisy
input, the bundled model and DeepFilterNet3; clean speech passed through; dependence on the level; noise
alone. A table is a CSV with the columns ``noisy, clean, snr_db``, paths relative to it.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import soxr

# the scores are those of the tool one folder up
sys.path.append(str(Path(__file__).resolve().parent.parent))
from corpus import SAMPLE_RATE, read_recording
from dfstream.errors import UsageError
from dfstream.model import Model
from dfstream.offline import OFFLINE_BLOCK_FRAMES
from dfstream.stream import Stream
from precision import Judge, si_sdr_db
from reporting import errors_in_a_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    Audio = NDArray[np.float32]


#: Levels of clean speech that are compared with the full one.
_LEVELS_DB = (-10, -20, -30, -40)

#: What counts as the start of a stream: there musical noise shows first.
_START = SAMPLE_RATE // 2


@dataclasses.dataclass(frozen=True)
class Pair:
    """One mixture and its reference.

    Attributes
    ----------
    group : str
        The set it belongs to.
    snr_db : float
        As its table says, NaN where it does not.
    """

    group: str
    noisy: Audio
    clean: Audio
    snr_db: float = float("nan")


class Enhancer:
    """A model over whole recordings, as the Python package runs it."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def __call__(self, x: Audio) -> Audio:
        """Return the recording enhanced and aligned."""
        return self.with_lsnr(x)[0]

    def with_lsnr(self, x: Audio) -> tuple[Audio, Audio]:
        """Return the recording enhanced, and the local SNR of every hop in dB."""
        stream = Stream(self._model, parity="python", block_frames=OFFLINE_BLOCK_FRAMES)
        begun, lsnr = stream.process(x), stream.lsnr
        y = np.concatenate([begun, stream.flush()])[stream.delay_samples :]
        return y, np.concatenate([lsnr, stream.lsnr])


def read_table(path: Path) -> list[Pair]:
    """Return the mixtures of a table.

    Raises
    ------
    UsageError
        A column or a file is missing.
    """
    with path.open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    if not rows or not {"noisy", "clean", "snr_db"} <= rows[0].keys():
        raise UsageError(f"{path}: no table with the columns noisy, clean, snr_db")
    folder = path.parent
    return [
        Pair(
            folder.name or path.stem,
            read_recording(folder / row["noisy"]),
            read_recording(folder / row["clean"]),
            float(row["snr_db"]),
        )
        for row in rows
    ]


def narrowed(pairs: Sequence[Pair], rate: int) -> list[Pair]:
    """Return mixtures as they are after a stretch at a lower sample rate."""

    def there_and_back(x: Audio) -> Audio:
        low = soxr.resample(x, SAMPLE_RATE, rate)
        return np.pad(soxr.resample(low, rate, SAMPLE_RATE), (0, 8))[: x.size].astype(np.float32)

    name = f"at {rate // 1000} kHz"
    return [
        Pair(f"{p.group} {name}", there_and_back(p.noisy), there_and_back(p.clean), p.snr_db) for p in pairs
    ]


def score(
    pairs: Sequence[Pair], models: dict[str, Enhancer], progress: Callable[[str], None]
) -> dict[str, Any]:
    """Return the figures by set, model and SNR; ``all`` is the mean over the set."""
    found: dict[str, Any] = {}
    for number, pair in enumerate(pairs, 1):
        progress(f"{pair.group}: {number} of {len(pairs)}")
        judge = Judge(pair.clean, SAMPLE_RATE)
        estimates = {
            "noisy input": pair.noisy,
            **{name: enhance(pair.noisy) for name, enhance in models.items()},
        }
        for name, y in estimates.items():
            figures = judge(y)
            by_snr = found.setdefault(pair.group, {}).setdefault(name, {})
            keys = ["all"] if np.isnan(pair.snr_db) else ["all", f"{pair.snr_db:g} dB"]
            for key in keys:
                by_snr.setdefault(key, []).append((figures.pesq, figures.stoi, figures.si_sdr_db))
    return {
        group: {
            name: {key: tuple(np.nanmean(rows, axis=0)) for key, rows in by_snr.items()}
            for name, by_snr in by_model.items()
        }
        for group, by_model in found.items()
    }


def faithfulness(clean: Sequence[Audio], models: dict[str, Enhancer]) -> dict[str, dict[str, float]]:
    """Return what models do to clean speech, and how their output at lower levels differs."""
    found: dict[str, dict[str, list[float]]] = {name: {} for name in models}
    for x in clean:
        judge = Judge(x, SAMPLE_RATE)
        for name, enhance in models.items():
            figures, full = judge(y := enhance(x)), y
            values = {"clean, SI-SDR dB": figures.si_sdr_db, "clean, PESQ-WB": figures.pesq}
            for level_db in _LEVELS_DB:
                gain = np.float32(10 ** (level_db / 20))
                values[f"level {level_db} dB, SI-SDR dB"] = si_sdr_db(full, enhance(x * gain) / gain)
            for key, value in values.items():
                found[name].setdefault(key, []).append(value)
    return {name: {key: float(np.mean(v)) for key, v in values.items()} for name, values in found.items()}


def noise_alone(noises: Sequence[Audio], models: dict[str, Enhancer]) -> dict[str, dict[str, float]]:
    """Return by how much models lower noise without speech, in the first half second and after it."""
    found: dict[str, dict[str, float]] = {}
    for name, enhance in models.items():
        outputs = [enhance(x) for x in noises]
        parts = {"start": slice(_START), "rest": slice(_START, None)}
        found[name] = {
            f"noise alone, {label}, dB": float(
                np.mean(
                    [_level_db(y[part]) - _level_db(x[part]) for x, y in zip(noises, outputs, strict=True)]
                )
            )
            for label, part in parts.items()
        }
    return found


def lsnr_distance(
    pairs: Sequence[Pair], models: dict[str, Enhancer], reference: str
) -> dict[str, dict[str, float]]:
    """Return how far the local SNR of models is from that of one of them, in the mean over all hops."""
    wanted = [models[reference].with_lsnr(pair.noisy)[1] for pair in pairs]
    return {
        name: {
            f"LSNR, mean distance to {reference}, dB": float(
                np.mean([
                    np.nanmean(np.abs(enhance.with_lsnr(pair.noisy)[1] - want))
                    for pair, want in zip(pairs, wanted, strict=True)
                ])
            )
        }
        for name, enhance in models.items()
    }  # fmt: skip


def scores_table(by_model: dict[str, dict[str, tuple[float, float, float]]]) -> str:
    """Return one set as a table, a line for each model and SNR."""
    lines = [("", "SNR", "PESQ-WB", "STOI", "SI-SDR dB"), ("---",) * 5]
    for name, by_snr in by_model.items():
        for key in sorted(by_snr, key=lambda key: (key != "all", _leading(key))):
            pesq, stoi, si_sdr = by_snr[key]
            lines.append((name, key, f"{pesq:.3f}", f"{stoi:.4f}", f"{si_sdr:.2f}"))
    return _markdown(lines)


def columns_table(by_model: dict[str, dict[str, float]]) -> str:
    """Return figures as a table with a column for each model."""
    names = list(by_model)
    lines = [("", *names), ("---",) * (len(names) + 1)]
    for key in by_model[names[0]]:
        lines.append((key, *(f"{by_model[name][key]:.2f}" for name in names)))
    return _markdown(lines)


def shares_of_the_way(
    by_model: dict[str, dict[str, tuple[float, float, float]]], name: str, goal: str
) -> str:
    """Say what share of the way from the noisy input to a goal a model goes in each score."""
    noisy, reached, there = (by_model[key]["all"] for key in ("noisy input", name, goal))
    parts = [
        f"{label} {100 * (b - a) / (c - a):.0f} %"
        for label, a, b, c in zip(("PESQ-WB", "STOI", "SI-SDR"), noisy, reached, there, strict=True)
    ]
    return f"{name}, of the way from the noisy input to {goal}: {', '.join(parts)}"


def _leading(key: str) -> float:
    return 0.0 if key == "all" else float(key.split()[0])


def _level_db(x: Audio) -> float:
    return float(10 * np.log10(np.mean(x.astype(np.float64) ** 2) + 1e-12))


def _markdown(lines: Iterable[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _distinct(recordings: Iterable[Audio]) -> list[Audio]:
    return list({x.tobytes(): x for x in recordings}.values())


@click.command()
@click.option("--model", "models", multiple=True, metavar="NAME=MODEL", help="May be repeated.")
@click.option("--teacher", default="dfn3", show_default=True, help="Model to compare with; empty for none.")
@click.option(
    "--table", "tables", multiple=True, type=click.Path(path_type=Path, exists=True, dir_okay=False)
)
@click.option("--pair", "single", type=(str, Path, Path), multiple=True, metavar="SET NOISY CLEAN")
@click.option("--quick", is_flag=True, help="The scores of the mixtures alone.")
@click.option(
    "--json", "as_json", type=click.Path(path_type=Path, dir_okay=False), help="Write all figures here."
)
def main(
    models: tuple[str, ...], teacher: str, tables: tuple[Path, ...],
    single: tuple[tuple[str, Path, Path], ...], quick: bool, as_json: Path | None,
) -> None:  # fmt: skip
    """Score models on mixtures with references."""
    with errors_in_a_line():
        named = {"bundled": "bundled", **dict(text.split("=", 1) for text in models if "=" in text)}
        if teacher:
            named["teacher"] = teacher
        if bad := [text for text in models if "=" not in text]:
            raise UsageError(f"--model {bad[0]}: expected NAME=MODEL")
        enhancers = {name: Enhancer(Model.load(source)) for name, source in named.items()}
        pairs = [pair for table in tables for pair in read_table(table)]
        pairs += [Pair(name, read_recording(noisy), read_recording(clean)) for name, noisy, clean in single]
        if not pairs:
            raise UsageError("no mixtures", hint="give --table FILE or --pair SET NOISY CLEAN")
        report = _report(pairs, enhancers, bool(teacher), quick)
    if as_json:
        as_json.write_text(json.dumps(report, indent=2) + "\n")


def _report(
    pairs: list[Pair], models: dict[str, Enhancer], with_teacher: bool, quick: bool
) -> dict[str, Any]:
    """Measure and print."""
    tabled = [pair for pair in pairs if np.isfinite(pair.snr_db)]
    if not quick:
        pairs = pairs + [narrow for rate in (16_000, 8_000) for narrow in narrowed(tabled[::3], rate)]
    scores = score(pairs, models, lambda line: click.echo(line, err=True))
    for group, by_model in scores.items():
        click.echo(f"\n{group}\n\n{scores_table(by_model)}")
        if with_teacher:
            for name in models.keys() - {"teacher"}:
                click.echo(shares_of_the_way(by_model, name, "teacher"))
    report: dict[str, Any] = {"scores": scores}
    if not quick:
        plain = pairs[: len(tabled)] or pairs
        clean = _distinct(pair.clean for pair in plain)
        parts = [faithfulness(clean, models), noise_alone([p.noisy - p.clean for p in plain], models)]
        if with_teacher:
            parts.append(lsnr_distance(plain, models, "teacher"))
        joined = {name: {key: v for part in parts for key, v in part[name].items()} for name in models}
        click.echo(f"\n{len(clean)} clean recordings\n\n{columns_table(joined)}")
        report["other"] = joined
    return report


if __name__ == "__main__":
    main()
