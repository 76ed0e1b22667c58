"""``dfstream verify``."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dfstream.cli._options import BACKEND, MODE, json_option, print_json
from dfstream.cli._progress import loading

if TYPE_CHECKING:
    from dfstream.verify import VerifyRow

_HEADER = f"{'case':34s} {'mode':22s} {'SNR':>9s} {'largest':>9s} {'error rms':>11s} {'LSNR':>9s}  result"


@click.command(short_help="Prove that the output is DeepFilterNet's.")
@click.option(
    "-m", "--model", "models", multiple=True, default=["bundled"], show_default=True, help="May be repeated."
)
@click.option("--mode", "modes", type=MODE, multiple=True, help="May be repeated; all modes by default.")
@click.option("--backend", type=BACKEND, default="auto", show_default=True)
@click.option(
    "--golden", type=click.Path(path_type=Path), metavar="DIR",
    help="Outputs of the Rust engine to compare with; ./golden if it is there.",
)  # fmt: skip
@json_option
def command(
    models: tuple[str, ...], modes: tuple[str, ...], backend: str, golden: Path | None, as_json: bool
) -> None:
    """Stream speech through each mode and compare, sample by sample.

    The reference is the unpatched export in one run and, where a folder of golden cases is found, the
    output of DeepFilterNet's own Rust engine. Exits with 6 if a comparison fails.
    """
    from dfstream.errors import VerifyFailed
    from dfstream.model import Model
    from dfstream.modes.base import mode_names
    from dfstream.verify import verify_model

    if golden is None and Path("golden").is_dir():
        golden = Path("golden")
    rows: list[tuple[str, VerifyRow]] = []
    with loading() as show:
        for name in models:
            model = Model.load(name)
            for row in verify_model(model, modes or mode_names(), backend, golden, show):
                rows.append((model.name, row))
    if as_json:
        print_json([{"model": model, **_plain(row)} for model, row in rows])
    else:
        _print(rows, golden)
    failed = [row for _, row in rows if row.passed is False]
    if failed:
        raise VerifyFailed(f"{len(failed)} of {len(rows)} comparisons failed")


def _print(rows: list[tuple[str, VerifyRow]], golden: Path | None) -> None:
    for model in dict.fromkeys(model for model, _ in rows):
        click.echo(f"{model}\n{_HEADER}")
        for row in (row for name, row in rows if name == model):
            click.echo(line(row))
    judged = [row for _, row in rows if row.passed is not None]
    click.echo(f"{sum(bool(row.passed) for row in judged)} of {len(judged)} passed")
    if golden is None:
        click.echo("compared with the export only: name a folder of Rust outputs with --golden", err=True)


def line(row: VerifyRow) -> str:
    """Return a row of the table."""
    result = {True: "pass", False: "FAIL", None: "measured"}[row.passed]
    lsnr = "" if row.lsnr_error_db is None else f"{row.lsnr_error_db:.4f} dB"
    return (
        f"{row.case:34s} {row.mode:22s} {_number(row.snr_db, 'dB'):>9s} {row.max_error:9.1e} "
        f"{_number(row.rms_dbfs, 'dBFS'):>11s} {lsnr:>9s}  {result} ({row.limit})"
    )


def _number(value: float, unit: str) -> str:
    if math.isnan(value):
        return "silent"
    return "exact" if math.isinf(value) else f"{value:.1f} {unit}"


def _plain(row: VerifyRow) -> dict[str, Any]:
    """Return plain values; JSON has no infinity."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in dataclasses.asdict(row).items()
    }
