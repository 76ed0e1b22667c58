"""A converted package, computed from its files, against the Rust engine's own output."""

from pathlib import Path

import pytest

from dfstream.goldens import read_goldens
from dfstream.verify import verify_export, verify_golden

pytest.importorskip("coremltools", reason="packages are made with coremltools: pip install -e '.[coreml]'")

BACKEND = "mlpackage-reference"
GOLDENS = read_goldens(Path(__file__).resolve().parent.parent / "golden")
NAMES = {name: sorted({g.name for g in GOLDENS if g.model == name}) for name in ("bundled", "dfn3")}


def golden(model, name):
    return next(g for g in GOLDENS if g.model == model and g.name == name)


@pytest.mark.parametrize("case", NAMES["bundled"])
def test_bundled(bundled, case, table):
    row = table("bundled, Core ML", verify_golden(bundled, golden("bundled", case), "incremental", BACKEND))
    assert row.passed, row


@pytest.mark.slow
@pytest.mark.parametrize("case", NAMES["dfn3"])
def test_dfn3(dfn3, case, table):
    row = table("dfn3, Core ML", verify_golden(dfn3(), golden("dfn3", case), "incremental", BACKEND))
    assert row.passed, row


@pytest.mark.parametrize("name", ["dfn3", "dfn2", "dfn2_ll", "dfn3_h0", "dfn2_h0"])
def test_official_models_against_their_export(official, name, table):
    row = table(f"{name}, Core ML", verify_export(official(name), "incremental", BACKEND))
    assert row.passed, row
