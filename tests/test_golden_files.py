"""The golden suite's files: complete, unharmed, and as their descriptions say."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

import make_golden
import rust_engine
from dfstream.errors import BackendUnavailable, VerifyFailed
from golden_cases import DEFAULTS

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
MAX_BYTES = 15_000_000
DESCRIPTIONS = sorted(
    GOLDEN / name / f"{case}.json" for name, cases in make_golden.SUITES.items() for case in cases
)
HOP = 480

CASE_KEYS = {"case", "proves", "input", "model", "made_by", "delay_samples", "runs"}
INPUT_KEYS = {"file", "description", "samples", "channels", "sample_rate", "sha256"}
RUN_KEYS = {"run", "shows", "file", "sha256", "engine", "frames", "params", "compare", "tolerance"}
TOLERANCE_KEYS = {"snr_db", "rms_dbfs", "lsnr_db", "reason"}


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_sums_list_exactly_the_files_and_their_hashes():
    lines = (GOLDEN / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    listed = {name: digest for digest, name in (line.split(maxsplit=1) for line in lines)}
    outside = {"SHA256SUMS", "README.md"}
    present = {p.relative_to(GOLDEN).as_posix() for p in GOLDEN.rglob("*") if p.is_file()} - outside
    assert present == set(listed), "run tools/make_golden.py"
    for name, digest in listed.items():
        assert sha256(GOLDEN / name) == digest, name


def test_all_of_it_stays_small():
    assert sum(p.stat().st_size for p in GOLDEN.rglob("*") if p.is_file()) < MAX_BYTES


@pytest.mark.parametrize("model", make_golden.SUITES)
def test_descriptions_and_table_agree(model):
    described = {}
    for path in (GOLDEN / model).glob("*.json"):
        case = json.loads(path.read_text(encoding="utf-8"))
        if "runs" not in case:
            continue
        described[case["case"]] = {
            run["run"]: (run["engine"], run["params"], run["shows"]) for run in case["runs"]
        }
    table = {
        name: {
            # through JSON and back, as the descriptions went
            run.name: (run.engine, json.loads(json.dumps(make_golden.params_of(run))), run.shows)
            for run in case.runs
        }
        for name, case in make_golden.SUITES[model].items()
    }
    assert described == table, "run tools/make_golden.py"


@pytest.mark.parametrize("path", DESCRIPTIONS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_case(path):
    case = json.loads(path.read_text(encoding="utf-8"))
    assert set(case) == CASE_KEYS
    assert case["case"] == path.stem
    assert case["model"]["name"] == path.parent.name
    assert set(case["model"]["sha256"]) == {"enc.onnx", "erb_dec.onnx", "df_dec.onnx", "config.ini"}
    assert case["proves"].endswith(".")
    _check_input(case["input"])
    for run in case["runs"]:
        _check_run(path, case, run)


def _check_input(described):
    assert set(described) == INPUT_KEYS
    path = GOLDEN / described["file"]
    assert sha256(path) == described["sha256"]
    info = soundfile.info(path)
    facts = (info.frames, info.channels, info.samplerate)
    assert facts == (described["samples"], described["channels"], described["sample_rate"])
    assert info.subtype == "PCM_16"
    assert described["description"].endswith(".")


def _check_run(path, case, run):
    assert set(run) - {"modes", "branches"} == RUN_KEYS, run["run"]
    assert set(run["params"]) == set(DEFAULTS)
    assert set(run["tolerance"]) == TOLERANCE_KEYS
    assert all(changes["reason"] for changes in run.get("modes", {}).values())
    assert run["engine"] in case["made_by"]["engines"]
    assert run["frames"] <= case["input"]["samples"] // HOP
    assert run["compare"] == ("bypass" if run["params"]["atten_lim_db"] == 0 else "raw")
    assert all(0 < hop < run["frames"] for hop, _ in run["params"]["schedule"])
    output = path.with_name(run["file"])
    assert sha256(output) == run["sha256"]
    channels = () if case["input"]["channels"] == 1 else (case["input"]["channels"],)
    with np.load(output, allow_pickle=False) as arrays:
        shapes = {"y": (*channels, run["frames"] * HOP), "lsnr": (*channels, run["frames"])}
        if run["tolerance"]["lsnr_db"] is not None:
            assert "lsnr" in arrays.files
        for name in arrays.files:
            assert arrays[name].dtype == np.float32
            assert arrays[name].shape == shapes[name], name
            assert np.isfinite(arrays[name]).all()
    if "branches" in run:
        assert sum(run["branches"].values()) == run["frames"]


# -- what runs are there to show, they show --------------------------------------------------------


def output(name):
    with np.load(GOLDEN / "dfn3" / f"{name}.npz") as arrays:
        return arrays["y"].reshape(-1, HOP)


def fed(case):
    x = make_golden.read_input(GOLDEN / "inputs" / f"{case}.flac")[0]
    return x[: len(x) // HOP * HOP].reshape(-1, HOP)


def runs_of(kind):
    for path in DESCRIPTIONS:
        for run in json.loads(path.read_text(encoding="utf-8"))["runs"]:
            if run["run"].startswith(kind):
                yield run


def test_thresholds_visit_every_branch_both_ways():
    for kind in ("thr_m10", "thr_m5"):
        counts = [list(run["branches"].values()) for run in runs_of(kind)]
        assert np.sum(counts, axis=0).min() >= 10, kind
    everywhere = [run["file"] for run in runs_of("thr_") if min(run["branches"].values()) >= 5]
    assert len(everywhere) >= 3


@pytest.mark.parametrize("case", ["clean_speech", "silence_speech_silence", "level_ramp"])
def test_the_older_silence_rule_acts_and_speech_follows(case):
    y = output(f"{case}.v056")
    silent = np.mean(fed(case)[: len(y)] ** 2, axis=1) < 1e-7
    assert not y[silent].any()
    assert np.count_nonzero(silent) >= 20
    first = int(np.argmax(silent))
    assert y[first:][~silent[first:]].any(axis=1).sum() > 10, "nothing follows the silence"
    assert not np.array_equal(y, output(f"{case}.default")[: len(y)])


def test_the_bypass_mutes_after_some_silent_hops():
    y, x = output("level_ramp.atten0"), fed("level_ramp")
    muted = ~y.any(axis=1)
    assert np.array_equal(y[~muted], x[: len(y)][~muted])
    assert muted.sum() > 100
    assert not muted[-1]


def test_the_schedule_has_all_its_changes():
    (run,) = runs_of("schedule")
    assert [hop for hop, _ in run["params"]["schedule"]] == [100, 150, 200, 250]
    assert run["frames"] == 300


# -- the tool ---------------------------------------------------------------------------------------


@pytest.fixture
def engines():
    try:
        rust_engine.check_builds()
    except BackendUnavailable as error:
        pytest.skip(f"not the engines the goldens were made with: {error}")


@pytest.mark.usefixtures("engines")
def test_the_engine_still_gives_this(capsys):
    make_golden._make(["bundled"], "impulses", check=True, any_build=False)
    assert "impulses.default" in capsys.readouterr().out


@pytest.mark.usefixtures("engines")
def test_the_check_notices(monkeypatch):
    monkeypatch.setitem(make_golden.DEFAULTS, "post_filter_beta", 0.001)
    with pytest.raises(VerifyFailed, match=r"impulses: default"):
        make_golden._make(["bundled"], "impulses", check=True, any_build=False)


def test_another_build_is_refused(monkeypatch):
    monkeypatch.setattr(rust_engine, "library", lambda _: Path(__file__))
    monkeypatch.setattr(rust_engine.importlib.metadata, "version", lambda _: "0.1.0")
    with pytest.raises(BackendUnavailable, match=r"expected 0.1.0 with 2b9a2125d78c") as caught:
        rust_engine.check_builds()
    assert "--any-build" in caught.value.hint
    assert rust_engine.check_builds(any_build=True)["main"]["library_sha256"] == sha256(Path(__file__))
