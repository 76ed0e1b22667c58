"""tools/coreml_table.py: its rows, which kinds it lists, and what it keeps."""

import json
import sys

import pytest

import coreml_table
import oracle
from dfstream.coreml.flavour import PRECISIONS, Flavour
from dfstream.model import Model

FOUND = {
    "bytes": 4_371_234, "snr_db": [72.04, 69.96, 70.0], "mask": 1.234e-3, "coefs": 0.05, "lsnr_db": 0.1,
}  # fmt: skip


@pytest.mark.parametrize(("flavour", "name", "bound"), [
    (Flavour(), "fp16", "62"), (Flavour("fp32"), "fp32", "110"), (Flavour("ane"), "ane", "42"),
    (Flavour("int8", "coreml"), "int8, Core ML states", "38"),
    (Flavour("fp32", "coreml"), "fp32, Core ML states", "42"),
])  # fmt: skip
def test_a_row(flavour, name, bound):
    assert coreml_table.row(flavour, FOUND) == (
        f"| {name} | 4.37 | 70.0 | 72.0 70.0 70.0 | 1.2e-03 | 5.0e-02 | 1.0e-01 | {bound} |"
    )
    assert all(line.count("|") == 9 for line in (*coreml_table._HEAD, coreml_table.row(flavour, FOUND)))


def test_every_kind_once():
    found = coreml_table.flavours()
    assert len(set(found)) == len(found) == 2 * len(PRECISIONS) - 1
    assert Flavour("palette") in found
    assert not any((f.precision, f.state) == ("palette", "coreml") for f in found)


def test_the_table_and_what_it_keeps(monkeypatch, capsys, tmp_path):
    """Measured once; a later run prints the same from the file."""
    measured = []
    monkeypatch.setattr(coreml_table, "measure", lambda _, flavour: measured.append(flavour) or FOUND)
    monkeypatch.setattr(Model, "load", lambda _: oracle.case("dfn3").model)
    monkeypatch.setattr(sys, "argv", ["coreml_table.py", "dfn3", "--json", str(tmp_path / "kept.json")])
    coreml_table.main()
    first = capsys.readouterr().out
    assert measured == coreml_table.flavours()
    lines = first.strip().splitlines()
    assert lines[0] == "DeepFilterNet3 (dfn3):"
    assert lines[2].startswith("| package | MB |")
    assert len(lines) == 4 + len(measured)
    assert len(json.loads((tmp_path / "kept.json").read_text())) == len(measured)
    coreml_table.main()
    assert capsys.readouterr().out == first
    assert len(measured) == len(coreml_table.flavours())
