"""Compare two recordings sample by sample: what a runtime made, with what another made of the same input.

python tools/compare_audio.py as-float noisy.wav noisy32.wav   # 16 bits would limit the comparison
python tools/compare_audio.py snr reference.wav enhanced.wav --least-db 60
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import soundfile

_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.group()
def main() -> None:
    """Compare recordings."""


@main.command("as-float")
@click.argument("source", type=_FILE)
@click.argument("target", type=click.Path(path_type=Path))
def as_float(source: Path, target: Path) -> None:
    """Write SOURCE as a WAV file of 32-bit floats."""
    audio, rate = soundfile.read(source, dtype="float32")
    soundfile.write(target, audio, rate, subtype="FLOAT", format="WAV")


@main.command()
@click.argument("reference", type=_FILE)
@click.argument("other", type=_FILE)
@click.option("--least-db", type=float, default=None, help="Fail below.")
def snr(reference: Path, other: Path, least_db: float | None) -> None:
    """Print the SNR of OTHER, whose noise is its difference to REFERENCE."""
    (want, rate), (got, other_rate) = (soundfile.read(path, dtype="float64") for path in (reference, other))
    if (want.shape, rate) != (got.shape, other_rate):
        raise click.ClickException(f"{want.shape} at {rate} Hz and {got.shape} at {other_rate} Hz")
    noise = np.sum((got - want) ** 2)
    found = 10 * np.log10(np.sum(want**2) / noise) if noise else np.inf
    click.echo(f"{other}: {found:.1f} dB against {reference}")
    if least_db is not None and not found >= least_db:
        raise click.ClickException(f"expected {least_db:g} dB")


if __name__ == "__main__":
    main()
