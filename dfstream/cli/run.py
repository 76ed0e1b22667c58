"""``dfstream run``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dfstream.cli._folder import ManyFiles, run_folder
from dfstream.cli._options import BACKEND, MODE, json_option, print_json
from dfstream.cli._progress import loading, progress_bar, warnings_as_lines

if TYPE_CHECKING:
    from dfstream.files import FileReport


@click.command(short_help="Enhance audio files.")
@click.argument("sources", metavar="IN...", type=click.Path(), nargs=-1, required=True)
@click.argument("target", metavar="OUT", type=click.Path())
@click.option(
    "-m", "--model", default="bundled", show_default=True,
    help="A name ('dfstream models' lists them), a folder, an archive or a graph.",
)  # fmt: skip
@click.option(
    "--mode", type=MODE, default="incremental", show_default=True, help="How the graphs are driven."
)
@click.option(
    "--backend", type=BACKEND, default="auto", show_default=True,
    help="What runs them; auto takes the quickest that serves, dfstream doctor lists all.",
)  # fmt: skip
@click.option(
    "--precision", type=click.Choice(["float32", "int16", "fp16", "int8"]), default="float32",
    show_default=True,
    help="How weights are stored: less than float32 is quicker and inexact; see MODES.md.",
)  # fmt: skip
@click.option(
    "--parity", type=click.Choice(["rust", "python"]), default="rust", show_default=True,
    help="Begin and end as DeepFilterNet's Rust engine or as its Python package.",
)  # fmt: skip
@click.option(
    "--atten-lim-db", type=click.FloatRange(min=0), default=None, metavar="DB",
    help="Attenuate noise by DB at most; 12 to 20 keeps a natural residue. No limit by default.",
)  # fmt: skip
@click.option(
    "--post-filter", type=click.FloatRange(0, 1), default=0.0, show_default=True, metavar="BETA",
    help="Strength of the post-filter; 0.02 is usual, 0 is off.",
)  # fmt: skip
@click.option(
    "--post-filter-kind", type=click.Choice(["spectrum", "mask"]), default="spectrum", show_default=True,
    help="libDF's on the spectrum, or DeepFilterNet2's on the mask.",
)  # fmt: skip
@click.option(
    "--channel-mask", type=click.Choice(["none", "max", "mean"]), default="none", show_default=True,
    help="Whether channels share the largest or the mean mask.",
)  # fmt: skip
@click.option(
    "--min-db-thresh", type=float, default=-15.0, show_default=True, metavar="DB",
    help="Mute frames of a lower local SNR.",
)  # fmt: skip
@click.option(
    "--max-db-erb-thresh", type=float, default=35.0, show_default=True, metavar="DB",
    help="Pass frames of a higher local SNR on as they are.",
)  # fmt: skip
@click.option(
    "--max-db-df-thresh", type=float, default=35.0, show_default=True, metavar="DB",
    help="Do not deep filter frames of a higher local SNR.",
)  # fmt: skip
@click.option("--skip-silence", is_flag=True, help="Pass over silent hops as DeepFilterNet 0.5.6 does.")
@click.option(
    "--lsnr", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="Write the local SNR of every hop to FILE, one JSON object a line.",
)  # fmt: skip
@click.option("--no-compensate-delay", is_flag=True, help="Leave the output delayed against the input.")
@click.option(
    "--threads", type=click.IntRange(1, 256), default=1, show_default=True, help="Threads of the backend."
)
@click.option("-r", "--recursive", is_flag=True, help="Many files: also those of folders inside folders.")
@click.option(
    "-j", "--jobs", type=click.IntRange(1, 256), default=1, show_default=True,
    help="Many files: how many at the same time, each on a core of its own.",
)  # fmt: skip
@click.option(
    "--format", "suffix", metavar="SUFFIX", default=None,
    help="Many files: write wav, flac, ogg, ...; each as its source by default.",
)  # fmt: skip
@click.option("--resume", is_flag=True, help="Many files: skip those whose result is newer than they are.")
@click.option(
    "--report", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="Many files: write what became of each to FILE, as JSON.",
)  # fmt: skip
@click.option("-f", "--force", is_flag=True, help="Replace what exists.")
@click.option("-q", "--quiet", is_flag=True, help="No progress bar, no closing line.")
@json_option
def command(
    sources: tuple[str, ...],
    target: str,
    model: str,
    no_compensate_delay: bool,
    force: bool,
    quiet: bool,
    as_json: bool,
    recursive: bool,
    jobs: int,
    suffix: str | None,
    resume: bool,
    report: Path | None,
    **options: Any,
) -> None:
    """Enhance the speech in IN and write it to OUT, as long as IN and aligned with it.

    IN is a file of any rate from 8 to 192 kHz and any number of channels: WAV, FLAC, OGG. OUT has the same
    rate and channels; its suffix decides its format. A dash stands for standard input or output, as WAV.

    With a folder, a pattern or several files as IN, OUT is a folder: it gets a file of the same name for
    each, at the same place below it. One file that fails does not stop the others; the exit code is then 1.

    \b
    dfstream run noisy.wav enhanced.wav
    dfstream run noisy.flac enhanced.flac --model dfn3 --atten-lim-db 18
    ffmpeg -i call.mp4 -f wav - | dfstream run - - > clean.wav
    dfstream run recordings/ enhanced/ --recursive --jobs 4 --resume
    """
    from dfstream.planning import is_folder_like, is_pattern

    many = ManyFiles(recursive, jobs, suffix, resume, report)
    if len(sources) > 1 or is_pattern(sources[0]) or is_folder_like(sources[0]) or is_folder_like(target):
        run_folder(
            sources,
            target,
            model,
            many,
            compensate_delay=not no_compensate_delay,
            force=force,
            quiet=quiet,
            as_json=as_json,
            **options,
        )
    elif many.given:
        names = "--recursive, --jobs, --format, --resume and --report"
        raise click.UsageError(f"{names} are for many files; a folder's name may end with /")
    else:
        _run_one(sources[0], target, model, not no_compensate_delay, force, quiet, as_json, options)


def _run_one(
    source: str,
    target: str,
    model: str,
    compensate_delay: bool,
    force: bool,
    quiet: bool,
    as_json: bool,
    options: dict[str, Any],
) -> None:
    if as_json and target == "-":
        raise click.UsageError("--json and OUT '-' both want standard output")
    with loading(quiet):
        from dfstream.files import enhance_file
        from dfstream.model import Model

        loaded = Model.load(model)
    with warnings_as_lines(), progress_bar("enhancing", quiet=quiet) as progress:
        report = enhance_file(
            source,
            target,
            loaded,
            compensate_delay=compensate_delay,
            force=force,
            progress=progress,
            **options,
        )
    if report.clipped and not quiet:
        click.echo(
            f"warning: {report.clipped} samples beyond full scale were cut off; lower the input's level",
            err=True,
        )
    if as_json:
        print_json(_as_dict(report, target, loaded.name))
    elif not quiet:
        click.echo(_closing_line(report, target), err=True)


def _closing_line(report: FileReport, target: str) -> str:
    delay_ms = 1000 * report.delay_samples / report.sample_rate
    aligned = "compensated" if report.delay_compensated else "not compensated"
    return (
        f"{'standard output' if target == '-' else target}: "
        f"{report.duration_s:.2f} s of audio in {report.seconds:.2f} s, "
        f"real-time factor {report.real_time_factor:.3f}, "
        f"delay {report.delay_samples} samples ({delay_ms:.0f} ms) {aligned}"
    )


def _as_dict(report: FileReport, target: str, model: str) -> dict[str, Any]:
    return {
        "output": target,
        "model": model,
        "samples": report.samples,
        "sample_rate": report.sample_rate,
        "channels": report.channels,
        "seconds": report.seconds,
        "real_time_factor": report.real_time_factor,
        "delay_samples": report.delay_samples,
        "delay_compensated": report.delay_compensated,
        "clipped": report.clipped,
    }
