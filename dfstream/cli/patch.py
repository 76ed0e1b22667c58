"""``dfstream patch``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dfstream.cli._options import MODE, json_option, print_json
from dfstream.cli._progress import loading

if TYPE_CHECKING:
    from dfstream.patching import PatchResult


@click.command(short_help="Make streaming graphs from an export, and prove them.")
@click.argument("model", metavar="MODEL")
@click.option(
    "-o", "--output", "folder", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
    help="Where to write; beside MODEL by default.",
)  # fmt: skip
@click.option(
    "--mode", "modes", type=MODE, multiple=True, default=["stateful-h0"], show_default=True,
    help="What the graphs are for; may be given more than once.",
)  # fmt: skip
@click.option(
    "--canonical", is_flag=True, help="Also write combined_canonical.onnx, one frame a call for accelerators."
)
@click.option(
    "--lean", is_flag=True, help="Also write combined_lean.onnx, one frame a call for ONNX Runtime on a CPU."
)
@click.option(
    "--precision", type=click.Choice(["float32", "fp16"]), default="float32", show_default=True,
    help="How the weights of audio graphs are stored: fp16 halves the files, at a loss that is measured.",
)  # fmt: skip
@click.option(
    "--check/--no-check", default=True, show_default=True,
    help="Stream features through the graphs and compare with the export; write nothing if they differ.",
)  # fmt: skip
@click.option(
    "-f", "--force", is_flag=True, help="Replace files of the same name that dfstream did not write."
)
@json_option
def command(
    model: str,
    folder: Path | None,
    modes: tuple[str, ...],
    canonical: bool,
    lean: bool,
    precision: str,
    check: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Write the graphs of a mode, made from MODEL: a name, a folder, an archive or a merged graph.

    \b
    stateful-h0            combined_streaming.onnx
    streaming              enc_conv_, enc_gru_, erb_dec_, df_dec_streaming.onnx
    incremental            combined_incremental.onnx
    stateless-window-last  combined.onnx
    audio-graph            dfstream_audio_hop, dfstream_audio_block: .onnx, .json
    --canonical            combined_canonical.onnx
    --lean                 combined_lean.onnx
    """
    with loading() as show:
        from dfstream.model import Model
        from dfstream.patching import patch_model, target_folder

        folder = folder or target_folder(model)
        results = patch_model(
            Model.load(model),
            folder,
            modes,
            canonical=canonical,
            lean=lean,
            precision=precision,
            check=check,
            force=force,
            progress=show,
        )
    if as_json:
        print_json({"folder": str(folder), "results": [_as_dict(result) for result in results]})
        return
    for result in results:
        _print(result, folder)


def _print(result: PatchResult, folder: Path) -> None:
    click.echo(f"{result.name}:")
    if not result.report:
        click.echo("  already patched, nothing to do")
    for patch, sites in result.report:
        click.echo(f"  {patch}: {'nothing to do' if not sites else ''}{', '.join(sites)}")
    if result.checks:
        worst = {name: max(row.errors[name] for row in result.checks) for name in result.checks[0].errors}
        errors = ", ".join(
            f"{name} {value:.1e}{' dB' if name == 'lsnr' else ''}" for name, value in worst.items()
        )
        reference = "the export" if "m" in worst else "streams"
        figures = [row.snr_db for row in result.checks if row.snr_db is not None]
        snr = f"; SNR at least {min(figures):.1f} dB" if figures else ""
        click.echo(
            f"  check: largest errors over {len(result.checks)} comparisons with {reference}: {errors}{snr}"
        )
    for name, action in result.files.items():
        click.echo(f"  {action} {folder / name}")


def _as_dict(result: PatchResult) -> dict[str, Any]:
    return {
        "mode": result.name,
        "patches": [{"name": name, "sites": list(sites)} for name, sites in result.report],
        "checks": [
            {
                "features": row.features,
                "frames_per_call": row.chunking,
                "errors": dict(row.errors),
                **({} if row.snr_db is None else {"snr_db": row.snr_db}),
            }
            for row in result.checks
        ],
        "files": result.files,
    }
