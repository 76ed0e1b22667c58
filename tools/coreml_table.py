"""Convert models to Core ML packages of every kind and print what each weighs and how near it stays.

    python tools/coreml_table.py bundled dfn3 [--json FILE]

prints the tables of docs/coreml.md. A package is streamed for a minute through the numpy interpreter and
compared with the model on ONNX Runtime; the figure that counts is the worst ten seconds. With ``--json``
results are kept in a file, and a later run takes from it what it finds.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any, get_args

from dfstream.coreml.conversion import write_package
from dfstream.coreml.fidelity import least_snr_db, measure_fidelity
from dfstream.coreml.flavour import PRECISIONS, Flavour, StateStyle
from dfstream.errors import UsageError
from dfstream.model import Model

_HEAD = (
    "| package | MB | audio SNR, dB: worst 10 s | blocks of 10 s | mask | coefs | LSNR, dB | bound, dB |",
    "| --- | --- | --- | --- | --- | --- | --- | --- |",
)


def flavours() -> list[Flavour]:
    """Return every kind of package."""
    found: list[Flavour] = []
    for state in get_args(StateStyle):
        for precision in PRECISIONS:
            try:
                found.append(Flavour(precision, state))
            except UsageError:  # they do not go together
                continue
    return found


def measure(model: Model, flavour: Flavour) -> dict[str, Any]:
    """Return the figures of one package."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "X.mlpackage"
        write_package(model, flavour, path)
        found = measure_fidelity(model, Model.load(path), flavour)
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return {
        "bytes": size, "snr_db": list(found.snr_db), "mask": found.mask, "coefs": found.coefs,
        "lsnr_db": found.lsnr_db,
    }  # fmt: skip


def row(flavour: Flavour, found: dict[str, Any]) -> str:
    """Return a line of the table."""
    blocks, worst = " ".join(f"{snr:.1f}" for snr in found["snr_db"]), min(found["snr_db"])
    name = flavour.precision if flavour.state == "explicit" else f"{flavour.precision}, Core ML states"
    return (
        f"| {name} | {found['bytes'] / 1e6:.2f} | {worst:.1f} | {blocks} | {found['mask']:.1e} "
        f"| {found['coefs']:.1e} | {found['lsnr_db']:.1e} | {least_snr_db(flavour):g} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="+", help="names or paths, as for dfstream")
    parser.add_argument("--json", type=Path, help="file that keeps results")
    arguments = parser.parse_args()
    kept = json.loads(arguments.json.read_text()) if arguments.json and arguments.json.exists() else {}
    for source in arguments.models:
        model = Model.load(source)
        print(f"\n{model.config.variant} ({model.name}):\n", *_HEAD, sep="\n")
        for flavour in flavours():
            key = f"{model.sha256} {flavour}"
            if key not in kept:
                kept[key] = measure(model, flavour)
                if arguments.json:
                    arguments.json.write_text(json.dumps(kept, indent=1))
            print(row(flavour, kept[key]), flush=True)


if __name__ == "__main__":
    main()
