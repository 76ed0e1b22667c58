"""``dfstream inspect``."""

from __future__ import annotations

import itertools
from typing import Any

import click

from dfstream.cli._options import json_option, print_json
from dfstream.errors import one_line


@click.command(short_help="Show what a model is and which modes it allows.")
@click.argument("model", default="bundled")
@click.option("--precision", is_flag=True, help="Also measure what reduced precision does to the sound.")
@click.option("--coreml", is_flag=True, help="Also show what Core ML would take in ONNX Runtime.")
@json_option
def command(model: str, precision: bool, coreml: bool, as_json: bool) -> None:
    """Show variant, delay, size, inputs, states and possible modes of MODEL (default: the bundled one)."""
    from dfstream.inspection import coreml_partitions, inspect_model, measure_precisions
    from dfstream.model import Model

    loaded = Model.load(model)
    facts = inspect_model(loaded)
    if precision:
        facts["precisions"] = measure_precisions(loaded)
    if coreml:
        facts["coreml"] = coreml_partitions(loaded)
    if as_json:
        print_json(facts)
    else:
        click.echo("\n".join(_lines(facts)))


def _lines(facts: dict[str, Any]) -> list[str]:
    c, delay = facts["config"], facts["delay"]
    lines = [
        f"{facts['name']}: {facts['variant']}, from {facts['origin']}",
        f"  sha256     {facts['sha256']}",
        f"  audio      {c['sample_rate']} Hz, hop {c['hop_size']}, FFT {c['fft_size']}, {c['nb_erb']} bands, "
        f"{c['df_order']} taps on {c['nb_df']} bins, norm decay {c['norm_alpha']:g}",
        f"  delay      {delay['samples']} samples ({delay['ms']:.0f} ms), "
        f"{delay['lookahead_frames']} frames of lookahead",
    ]
    if facts["package"] is None:
        lines += [*_network(facts["network"]), *_graphs(facts["graphs"])]
    else:
        lines += _package(facts["package"], c)
    lines += _modes(facts["modes"])
    lines += _precisions(facts["precisions"]) if "precisions" in facts else []
    lines += _coreml(facts["coreml"]) if "coreml" in facts else []
    return lines


def _network(network: dict[str, Any] | None) -> list[str]:
    if network is None:
        return ["  network    only patched graphs at hand"]
    grus = ", ".join(f"{name} {gru['layers']} x {gru['hidden']}" for name, gru in network["grus"].items())
    kernels = ", ".join(map(str, network["time_kernels"]))
    return [
        f"  network    {network['parameters']:,} parameters, {network['macs_per_hop']:,} MAC per hop",
        f"  layers     GRUs {grus}; time kernels {kernels}",
    ]


def _graphs(graphs: dict[str, Any]) -> list[str]:
    lines = ["graphs at hand:"]
    for stem, graph in graphs.items():
        lines.append(
            f"  {stem}.onnx: opset {graph['opset']}, {graph['nodes']} nodes, {graph['bytes']:,} bytes"
        )
        inputs = ", ".join(
            f"{name} [{', '.join(map(str, shape))}]" for name, shape in graph["inputs"].items()
        )
        # exporters write meaningless symbols into the shapes of outputs: names only
        lines += [f"    inputs: {inputs}", f"    outputs: {', '.join(graph['outputs'])}"]
    return lines


def _package(package: dict[str, Any], config: dict[str, Any]) -> list[str]:
    keeper = "Core ML keeps the states" if package["state"] == "coreml" else "explicit states"
    frames = package["block_frames"]
    call = f"{frames} frame{'s' if frames > 1 else ''} a call"
    if frames > 1:
        ms = 1000 * package["block_delay_samples"] / config["sample_rate"]
        call += f", {ms:.0f} ms more delay in live audio"
    lines = [
        f"Core ML package: {package['precision']}, {keeper}, from {package['target']} on, {call}",
        f"  {package['operations']} operations, specification {package['specification_version']}, "
        f"sha256 {package['sha256']}",
    ]
    for kind in ("inputs", "outputs", "states"):
        tensors = ", ".join(
            f"{name} {t['dtype']} [{', '.join(map(str, t['shape']))}]" for name, t in package[kind].items()
        )
        lines += [f"  {kind}: {tensors}"] if tensors else []
    return [one_line(line) for line in lines]


def _modes(modes: dict[str, Any]) -> list[str]:
    lines = ["modes:"]
    for name, mode in modes.items():
        if not mode["possible"]:
            lines.append(f"  {name}: not possible: {mode['reason']}")
            continue
        exact = "exact" if mode["exact"] else "inexact"
        made = "at hand" if mode["at_hand"] else "patched in memory"
        frames = f"{mode['frames_per_hop']} frame{'s' if mode['frames_per_hop'] > 1 else ''} per hop"
        lines.append(f"  {name}: {exact}, {frames}, {', '.join(mode['graphs'])} ({made})")
        states = ", ".join(
            f"{state} [{', '.join(map(str, shape))}]" for state, shape in mode["states"].items()
        )
        lines.append(f"    states: {states or 'none'}")
    return lines


def _precisions(measured: list[dict[str, Any]]) -> list[str]:
    lines = ["precision, against float32 on packaged speech:"]
    for row in measured:
        name = f"  {row['backend']} {row['precision']}"
        if "reason" in row:
            lines.append(f"{name}: {row['reason']}")
        elif row["snr_db"] is None:
            lines.append(f"{name}: the same samples")
        else:
            change = row["lsnr_change_db"]
            lines.append(f"{name}: {row['snr_db']:.1f} dB; LSNR changes by {change:.3f} dB at most")
    return lines


#: Nodes of one reason that are named one by one.
_FEW = 3


def _coreml(rows: list[dict[str, Any]]) -> list[str]:
    width = max(len(row["graph"]) for row in rows) + len(".onnx")
    lines = [
        "Core ML in ONNX Runtime, one frame a call:",
        f"  {'graph':{width}}  {'format':13}  nodes  taken  partitions",
    ]
    for row in rows:
        name = f"  {row['graph'] + '.onnx':{width}}"
        if "reason" in row:
            lines.append(f"{name}  {row['reason']}")
            continue
        trivial = f" ({row['trivial']} trivial)" if row["trivial"] else ""
        numbers = f"{row['nodes']:5}  {row['taken']:5}  {row['partitions']:10}"
        lines.append(f"{name}  {row['format']:13}  {numbers}{trivial}")
    if any(row.get("trivial") for row in rows):
        lines.append("  a trivial partition only reshapes data: recent versions leave it to the CPU")
    return [*lines, *_refused([row for row in rows if row.get("refused")])]


def _refused(rows: list[dict[str, Any]]) -> list[str]:
    lines = ["left to the CPU:"] if rows else []
    for (graph, refused), same in itertools.groupby(rows, lambda row: (row["graph"], row["refused"])):
        lines.append(f"  {graph}.onnx, {' and '.join(row['format'] for row in same)}:")
        for reason, names in refused.items():
            few = f": {', '.join(names)}" if len(names) <= _FEW else ""
            lines.append(f"    {reason}, {len(names)} node{'s' if len(names) > 1 else ''}{few}")
    return [one_line(line) for line in lines]
