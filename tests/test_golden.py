"""Model x mode x case against the Rust engine's own output, through the public Stream in irregular chunks.

The table of all comparisons is printed at the end of the run.
"""

import dataclasses
import warnings
from pathlib import Path

import numpy as np
import pytest

from conftest import NETWORK_MODES
from dfstream import Stream, features, filtering, verify
from dfstream.config import ModelConfig
from dfstream.goldens import Golden, goldens_of, read_goldens
from dfstream.model import Model
from dfstream.modes.base import find_mode, mode_names
from dfstream.verify import serves, verify_export, verify_golden

GOLDENS = read_goldens(Path(__file__).resolve().parent.parent / "golden")
NAMES = {name: sorted({g.name for g in GOLDENS if g.model == name}) for name in ("bundled", "dfn3")}
EXACT = [name for name in mode_names() if find_mode(name).exact]


def golden(model: str, name: str):
    return next(g for g in GOLDENS if g.model == model and g.name == name)


def test_there_are_goldens_for_both_models():
    assert len(NAMES["bundled"]) >= 6
    assert len(NAMES["dfn3"]) >= 40


def test_goldens_are_found_by_the_hashes_of_the_graphs(bundled):
    assert {g.name for g in goldens_of(bundled, GOLDENS)} == set(NAMES["bundled"])


def served(model: str, modes: list[str]) -> list[tuple[str, str]]:
    """Cases and the modes that can do what they ask for."""
    return [(case, mode) for case in NAMES[model] for mode in modes if serves(mode, golden(model, case))]


@pytest.mark.parametrize(("case", "mode"), served("bundled", mode_names()))
def test_bundled(bundled, case, mode, table):
    row = table("bundled", verify_golden(bundled, golden("bundled", case), mode))
    assert row.passed is not False, row


@pytest.mark.slow
@pytest.mark.parametrize(("case", "mode"), served("dfn3", EXACT))
def test_dfn3(dfn3, case, mode, table):
    row = table("dfn3", verify_golden(dfn3(), golden("dfn3", case), mode))
    assert row.passed, row


@pytest.mark.parametrize("case", ["white_snr5.default", "fan_long.schedule"])
def test_dfn3_in_short(dfn3, case, table):
    """Two of the slow cases, for runs by hand."""
    row = table("dfn3", verify_golden(dfn3(), golden("dfn3", case), "incremental"))
    assert row.passed, row


@pytest.mark.slow
def test_dfn3_in_the_stateless_window_is_measured(dfn3, table):
    row = table("dfn3", verify_golden(dfn3(), golden("dfn3", "white_snr5.default"), "stateless-window-last"))
    assert row.passed is None
    assert row.snr_db < 40, "better than its documentation says"


@pytest.mark.parametrize("mode", EXACT)
@pytest.mark.parametrize("name", ["dfn3", "dfn2", "dfn2-ll", "dfn3-h0", "dfn2-h0", "lean", "wideband16k"])
def test_synthetic_models_against_their_export(synthetic_model, name, mode):
    row = verify_export(synthetic_model(name), mode)
    # random weights amplify the rounding of the features a thousandfold
    assert row.snr_db > 90, row


@pytest.mark.parametrize("mode", EXACT)
@pytest.mark.parametrize("name", ["dfn3", "dfn2", "dfn2_ll", "dfn3_h0", "dfn2_h0"])
def test_official_models_against_their_export(official, name, mode, table):
    row = table(name, verify_export(official(name), mode))
    assert row.passed, row


# -- the backend numba -----------------------------------------------------------------------------

#: Least SNR against onnxruntime's output of the same case, and what may differ where that is inaudible.
RUNTIME = {"snr_db": 110.0, "rms_dbfs": -150.0, "lsnr_db": 1e-3, "reason": "float32 rounding"}


def streamed(model: Model, case: Golden, backend: str, block_frames: int):
    """Output and LSNR of a case in irregular chunks, as far as blocks were full."""
    x, _, _ = case.load()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # thresholds that ruin DFN3
        stream = Stream(
            model, backend=backend, channels=x.shape[1], block_frames=block_frames,
            **verify._options(case.params),
        )  # fmt: skip
    return verify._streamed(stream, x, case.params.get("schedule", []))


def compare_numba(model: Model, case: Golden, table) -> None:
    """Against the Rust engine and onnxruntime; in blocks of 100 hops bit for bit as hop by hop."""
    row = table(f"{case.model} (numba)", verify_golden(model, case, "incremental", "numba"))
    assert row.passed, row
    y, lsnr = streamed(model, case, "numba", 1)
    found = [(1, y, lsnr), (100, *streamed(model, case, "numba", 100))]
    if not case.params.get("schedule"):  # which blocks reach later
        _, blocks, levels = found.pop()
        np.testing.assert_array_equal(blocks, y[: len(blocks)])
        np.testing.assert_array_equal(levels, lsnr[: len(levels)])
    for block_frames, ours, levels in found:
        want, want_levels = streamed(model, case, "ort-cpu", block_frames)
        error = float(np.max(np.abs(levels - want_levels), initial=0.0))
        row = verify._row(case.name, "incremental", ours, want, error, RUNTIME)
        assert row.passed, row


@pytest.mark.parametrize("case", NAMES["bundled"])
def test_bundled_on_numba(bundled, case, table):
    compare_numba(bundled, golden("bundled", case), table)


@pytest.mark.slow
@pytest.mark.parametrize("case", NAMES["dfn3"])
def test_dfn3_on_numba(dfn3, case, table):
    compare_numba(dfn3(), golden("dfn3", case), table)


@pytest.mark.parametrize("case", ["white_snr5.thr_m5_10_5"])
def test_dfn3_on_numba_in_short(dfn3, case, table):
    """One of the slow cases, of which few decoders run."""
    compare_numba(dfn3(), golden("dfn3", case), table)


# -- the suite notices -----------------------------------------------------------------------------


def fails(model: Model, case: str = "white_snr5.default", mode: str = "incremental") -> bool:
    return verify_golden(model, golden("bundled", case), mode).passed is False


def with_config(model: Model, **changes: object) -> Model:
    config = ModelConfig.from_dict({**model.config.to_dict(), **changes})
    return dataclasses.replace(model, config=config, _graphs={}, _sessions={})


def test_notices_the_unrounded_decay(bundled):
    assert fails(with_config(bundled, norm_alpha=float(np.exp(-0.01))))


def test_notices_erb_widths_off_by_one_bin(bundled, monkeypatch):
    right = filtering.erb_widths

    def wrong(*args):
        widths = right(*args).copy()
        widths[20] += 1
        widths[21] -= 1
        return widths

    monkeypatch.setattr(filtering, "erb_widths", wrong)
    monkeypatch.setattr(features, "erb_widths", wrong)
    assert fails(bundled)


def test_notices_zeros_where_the_deep_filter_reads_the_past(bundled, monkeypatch):
    def forgetful(history, *args):
        history = history.copy()
        history[:, 0] = 0
        right(history, *args)

    right = filtering.deep_filter
    monkeypatch.setattr(filtering, "deep_filter", forgetful)
    assert fails(bundled)


@pytest.mark.parametrize("mode", [mode for mode in EXACT if mode in NETWORK_MODES])
def test_notices_decoders_that_run_while_gated(dfn3, mode, monkeypatch):
    case = golden("dfn3", "white_snr5.thr_m5_10_5")
    model = dfn3()
    assert verify_golden(model, case, mode).passed
    mode_class = find_mode(mode)

    def ungated(self, feat_erb, feat_spec, thresholds):
        net = self.step(feat_erb, feat_spec)
        return net, np.array([thresholds.stage(float(v)) for v in net.lsnr[0, :, 0]], np.int8)

    monkeypatch.setattr(mode_class, "step_gated", ungated)
    assert verify_golden(model, case, mode).passed is False
