"""The tool that compares the network with the machine: what the floors are made of."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

import roofline
from dfstream.backends.numba import FRAMES_TOGETHER


@pytest.fixture
def quick(monkeypatch):
    """Times that are told, not taken."""
    monkeypatch.setattr(
        roofline, "measured", lambda _model, _precision, streams, frames: 1e-3 / streams / frames
    )


def test_floors_are_bytes_and_operations_over_the_rates(synthetic_model, quick):  # noqa: ARG001
    model = synthetic_model("dfn3")
    found = {row["case"]: row for row in roofline.rows(model, read=1e9, multiplied=1e12)}
    program = roofline.program_of(model, "float32")
    one = found["one stream"]
    assert one["bytes"] == program.weights.nbytes + program.stored.nbytes
    assert one["bound_by"] == "reading"
    assert one["floor_us"] == pytest.approx(one["bytes"] / 1e9 * 1e6)
    assert one["us"] == pytest.approx(1000)
    assert one["gap"] == pytest.approx(1e-3 / (one["floor_us"] * 1e-6) - 1)
    assert found["64 streams"]["bytes"] == round(one["bytes"] / FRAMES_TOGETHER)
    assert found["one stream, int8"]["bytes"] < found["one stream, int16"]["bytes"] < one["bytes"]
    assert {row["bound_by"] for row in roofline.rows(model, read=1e15, multiplied=1e9)} == {"multiplying"}


def test_rates_are_those_of_a_machine():
    assert 1e8 < roofline.bandwidth(1 << 20) < 1e13
    assert 1e8 < roofline.multiplications() < 1e13


def test_prints_a_table_and_json(quick):  # noqa: ARG001
    result = CliRunner().invoke(roofline.main, ["--model", "bundled"])
    assert result.exit_code == 0
    assert "| one stream |" in result.output
    report = json.loads(CliRunner().invoke(roofline.main, ["--model", "bundled", "--json"]).output)
    assert report["bytes_per_s"] > 0
    assert len(report["cases"]) == 8
