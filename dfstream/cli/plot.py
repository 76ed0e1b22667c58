"""``dfstream plot``."""

from __future__ import annotations

import warnings
from pathlib import Path

import click

from dfstream.cli._progress import loading, progress_bar


@click.command(short_help="Draw a recording before and after.")
@click.argument("source", metavar="IN", type=click.Path())
@click.argument("target", metavar="OUT", type=click.Path())
@click.option(
    "-o", "--output", "report", type=click.Path(path_type=Path), default="report.png", show_default=True,
    metavar="PICTURE", help="Where to draw: .png, .svg or .pdf.",
)  # fmt: skip
@click.option(
    "-m", "--model", default=None,
    help="What estimates the local SNR of IN: a name, a folder, an archive or a graph.  [default: bundled]",
)  # fmt: skip
@click.option(
    "--lsnr", type=click.Path(path_type=Path), default=None, metavar="FILE",
    help="Take the local SNR from a file that 'dfstream run --lsnr' wrote.",
)  # fmt: skip
@click.option("--title", default=None, help="A heading.")
@click.option("-f", "--force", is_flag=True, help="Replace PICTURE if it exists.")
@click.option("-q", "--quiet", is_flag=True, help="No progress bar, no closing line.")
def command(
    source: str,
    target: str,
    report: Path,
    model: str | None,
    lsnr: Path | None,
    title: str | None,
    force: bool,
    quiet: bool,
) -> None:
    """Draw the noisy IN and the enhanced OUT: spectrograms, the local SNR of IN, levels of both.

    IN and OUT may differ in rate (8 to 192 kHz), length and channels; of several channels the first is
    shown. A dash stands for standard input. Needs matplotlib: pip install 'dfstream[plot]'.

    \b
    dfstream plot noisy.wav enhanced.wav
    dfstream plot noisy.wav enhanced.wav -o report.pdf --title "fan, 5 dB"
    dfstream run noisy.wav - | dfstream plot noisy.wav -
    """
    if model is not None and lsnr is not None:
        raise click.UsageError("--model and --lsnr exclude each other: both say where the local SNR is from")
    with loading(quiet):
        from dfstream.plotting import check_before, plot_files

        check_before(report, force)
        from dfstream.model import Model

        origin = lsnr if lsnr is not None else Model.load(model)
    with warnings.catch_warnings(), progress_bar("listening", quiet=quiet) as progress:
        # a name with letters that the font lacks gets boxes in their place: it is seen in the picture
        warnings.filterwarnings("ignore", "Glyph")
        plot_files(source, target, report, origin, title=title, force=force, progress=progress)
    if not quiet:
        click.echo(f"drawn: {report}", err=True)
