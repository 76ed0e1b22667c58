"""``dfstream convert``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dfstream.cli._options import NameOf, json_option, print_json
from dfstream.cli._progress import progress_bar

if TYPE_CHECKING:
    from dfstream.converting import Conversion


def _precisions() -> list[str]:
    from dfstream.coreml.flavour import PRECISIONS

    return [*PRECISIONS]


def _targets() -> list[str]:
    from dfstream.coreml.flavour import TARGETS

    return [name for target in TARGETS for name in target.names]


@click.command(short_help="Make a Core ML package of a model, on any system, and prove it.")
@click.argument("model", metavar="MODEL")
@click.option(
    "-o", "--output", "target", type=click.Path(path_type=Path, file_okay=False), metavar="X.mlpackage",
    required=True, help="The package to write; X.json is written beside it.",
)  # fmt: skip
@click.option(
    "--precision", type=NameOf("precision", _precisions), default="fp16", show_default=True,
    help="How weights and arithmetic are stored.",
)  # fmt: skip
@click.option(
    "--state", type=click.Choice(["explicit", "coreml"]), default="explicit", show_default=True,
    help="Whether the caller holds the states, or Core ML (macOS 15, iOS 18).",
)  # fmt: skip
@click.option(
    "--target", "generation", type=NameOf("target", _targets), metavar="SYSTEM",
    help="Oldest system it has to run on, macos13 to macos26 or ios16 to ios26.  [default: macos13; "
    "macos15 with --state coreml]",
)  # fmt: skip
@click.option(
    "--block", type=click.IntRange(1, 16), default=1, show_default=True,
    help="Frames a call: fewer calls, more delay.",
)  # fmt: skip
@click.option(
    "--check/--no-check", default=True, show_default=True,
    help="Stream a minute of speech through the package and compare; write nothing if it is too far off.",
)  # fmt: skip
@click.option("-f", "--force", is_flag=True, help="Replace a package of that name.")
@json_option
def command(
    model: str,
    target: Path,
    precision: str,
    state: Any,
    generation: str | None,
    block: int,
    check: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Convert MODEL, a name, a folder, an archive or a merged graph, for macOS and iOS.

    \b
    fp16     half precision, but states and all that only features reach in fp32
    fp32     exact to rounding
    int8     as fp16, the matrices of the decoders in 8 bits
    palette  the same, as indices into 256 values found by k-means
    ane      half precision throughout, for the Neural Engine

    Needs coremltools: pip install 'dfstream[coreml]'. Runs on Linux, macOS and Windows alike.
    """
    from dfstream.converting import convert_model
    from dfstream.coreml.flavour import Flavour
    from dfstream.model import Model

    flavour = Flavour(precision, state, generation or "", block)
    with progress_bar("converting", quiet=as_json) as show:
        result = convert_model(
            Model.load(model), target, flavour, check=check, force=force,
            progress=lambda what, share: show(round(100 * share), 100 if what == "checking" else None),
        )  # fmt: skip
    if as_json:
        print_json(_as_dict(result))
    else:
        click.echo("\n".join(_lines(result)))


def _lines(result: Conversion) -> list[str]:
    facts, found = result.facts, result.fidelity
    rate, ms = facts.config.sample_rate, 1000
    lines = [
        f"{result.package}: {facts.config.variant} ({facts.model}), {facts.flavour.precision}, "
        f"{facts.flavour.state} states, {facts.flavour.generation.names[0]}, {result.size / 1e6:.2f} MB",
        f"{result.description}: names, states, signal processing, test vectors",
        f"delay    {facts.config.delay_samples * ms / rate:.0f} ms",
    ]
    if facts.flavour.block_frames > 1:
        added = facts.block_delay_samples * ms / rate
        lines[-1] += f", and {added:.0f} ms more in calls of {facts.flavour.block_frames} frames"
    if found is not None:
        lines.append(
            f"checked  {found.worst_snr_db:.1f} dB to the model in the worst 10 s of a minute "
            f"(at least {found.least_snr_db:g}); largest differences: mask {found.mask:.1e}, "
            f"coefs {found.coefs:.1e}, lsnr {found.lsnr_db:.1e} dB"
        )
    return [*lines, f"sha256   {result.sha256}"]


def _as_dict(result: Conversion) -> dict[str, Any]:
    found = result.fidelity
    figures = found and {**dataclasses.asdict(found), "worst_snr_db": found.worst_snr_db}
    return {
        "package": str(result.package),
        "description": str(result.description),
        "bytes": result.size,
        "sha256": result.sha256,
        "facts": result.facts.to_dict(),
        "fidelity": figures,
    }
