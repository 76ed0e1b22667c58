"""The tools around the benchmark: workers and their protocol, targets, the cost column of MODES.md."""

from __future__ import annotations

import copy
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import pytest
from click.testing import CliRunner

import bench
import bench_peers
import bench_targets
import bench_worker
import modes_table
from bench_peers import Peer, Worker, prepare_venv
from dfstream.benchmark.configurations import BackendSpec, Configuration
from dfstream.benchmark.measuring import Plan
from dfstream.errors import BackendError, BackendUnavailable, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from dfstream.model import Model

TOOLS = Path(bench.__file__).resolve().parent

# -- the worker's side -----------------------------------------------------------------------------


def served(requests: list[bool], **spec: Any) -> list[dict[str, Any]]:
    """Let a worker serve, in this process; return its replies."""
    replies = io.StringIO()
    lines = "".join(json.dumps({"paced": paced}) + "\n" for paced in requests)
    bench_worker.serve(spec, io.StringIO(lines), replies)
    return [json.loads(line) for line in replies.getvalue().splitlines()]


def fake_engine(calls: list[int]) -> Callable[[Any], bench_worker.Timed]:
    return lambda spec: bench_worker.Timed(calls.append, range(spec["calls"]), 2, 1e-4)


def test_a_worker_times_a_stretch_for_each_request(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setitem(bench_worker.ENGINES, "fake", (fake_engine(calls), ("numpy", "no-such-package")))
    ready, tight, paced = served([False, True], engine="fake", calls=5)
    assert ready == {"versions": {"numpy": np.__version__}}
    assert calls == [0, *range(5), *range(5)]
    for reply in (tight, paced):
        assert len(reply["seconds"]) == 3
        assert min(reply["seconds"]) > 0
        assert reply["collections"] >= 0
        assert reply["cpu_seconds"] >= 0
        assert reply["peak_bytes"] is None or reply["peak_bytes"] > 1 << 20
    assert tight["late"] == 0


def test_a_worker_tells_why_an_engine_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> bench_worker.Timed:
        raise RuntimeError("no model\nand more")

    monkeypatch.setitem(bench_worker.ENGINES, "fake", (broken, ()))
    assert served([False], engine="fake") == [{"error": "RuntimeError: no model\nand more"}]


def test_what_engines_print_does_not_come_between_the_replies(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys\n"
        f"sys.path.insert(0, {str(TOOLS)!r})\n"
        "import bench_worker\n"
        "def call(_):\n"
        "    print('from Python')\n"
        "    os.write(1, b'from C')\n"
        "bench_worker.ENGINES['loud'] = (lambda spec: bench_worker.Timed(call, [1, 2], 0, 0.0)), ()\n"
        "bench_worker.main(sys.argv[1])\n"
    )
    done = subprocess.run(
        [sys.executable, str(script), '{"engine": "loud"}'],
        input='{"paced": false}\n', capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    ready, reply = map(json.loads, done.stdout.splitlines())
    assert ready == {"versions": {}}
    assert len(reply["seconds"]) == 2
    assert "from C" in done.stderr


def test_what_other_environments_need_is_only_numpy() -> None:
    """Peers run where none of our dependencies is installed."""
    code = (
        f"import sys; sys.path.insert(0, {str(TOOLS)!r})\n"
        "import bench_worker, rust_engine\n"
        "print('\\n'.join({m.partition('.')[0] for m in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {*done.stdout.split()}
    assert {"dfstream", "numpy"} <= loaded
    assert loaded.isdisjoint({"numba", "onnx", "onnxruntime", "soundfile", "click", "rich", "platformdirs"})


# -- the parent's side -----------------------------------------------------------------------------


@pytest.fixture
def fake_peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Worker]:
    """Start a worker that runs a script of ours instead of the real one."""
    script = tmp_path / "peer.py"
    monkeypatch.setattr(bench_peers, "_WORKER", script)

    def start(code: str) -> Worker:
        script.write_text("import json, os, sys, time\nspec = json.loads(sys.argv[1])\n" + code)
        return Worker("peer", sys.executable, {"number": 7}, 3)

    return start


ANSWERS = """
print(json.dumps({"versions": {"peer": "1.0"}}), flush=True)
for i, line in enumerate(sys.stdin):
    seconds = [spec["number"] + json.loads(line)["paced"], i]
    counted = {"collections": 1, "late": 2, "cpu_seconds": 0.5, "peak_bytes": 99}
    print(json.dumps({"seconds": seconds, **counted}), flush=True)
"""


def test_a_peer_answers_round_by_round(fake_peer: Callable[[str], Worker]) -> None:
    worker = fake_peer(ANSWERS)
    try:
        assert (worker.name, worker.hops, worker.versions) == ("peer", 3, {"peer": "1.0"})
        assert worker.peak_bytes is None
        for i, paced in enumerate([False, True]):
            found = worker.stretch(paced)
            assert found.seconds.tolist() == [7 + paced, i]
            assert (found.collections, found.late, found.cpu_seconds) == (1, 2, 0.5)
        assert worker.peak_bytes == 99
    finally:
        worker.close()
    assert worker._process.returncode is not None


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (
            "print(json.dumps({'error': 'RuntimeError: no\\nmodel ' + 300 * 'x '}))",
            r"peer: RuntimeError: no model x .* \.\.\.",
        ),
        ("raise ImportError('no such engine')", "peer: ImportError: no such engine"),
        ("sys.exit(3)", "peer: it ended without a word"),
    ],
)  # fmt: skip
def test_a_peer_that_cannot_run_tells_why_in_one_line(
    fake_peer: Callable[[str], Worker], code: str, reason: str
) -> None:
    with pytest.raises(BackendUnavailable, match=f"^{reason}$") as caught:
        fake_peer(code)
    assert len(str(caught.value)) < 180


def test_a_peer_that_dies_on_the_way_is_an_error(fake_peer: Callable[[str], Worker]) -> None:
    worker = fake_peer(
        "print(json.dumps({'versions': {}}), flush=True)\nsys.stdin.readline()\nraise MemoryError('full')"
    )
    with pytest.raises(BackendError, match="peer: MemoryError: full"):
        worker.stretch(False)
    with pytest.raises(BackendError):
        worker.stretch(False)
    worker.close()


def test_a_peer_that_hangs_is_given_up(
    fake_peer: Callable[[str], Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_peers, "_TIMEOUT_S", 0.2)
    with pytest.raises(BackendError, match=r"peer: no answer within 0\.2 s"):
        fake_peer("time.sleep(60)")


# -- the environment of the peers ------------------------------------------------------------------


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Commands that would have been run; installing ``bad`` fails, and nothing is installed before."""
    ran: list[list[str]] = []
    installed = {"there"}

    def failure(command: list[str]) -> str | None:
        ran.append(command)
        if command[-2] == "-c":
            return None if any(f"'{name}'" in command[-1] for name in installed) else "not found"
        return "ERROR: no wheel for this platform" if command[-1] == "bad" else None

    monkeypatch.setattr(bench_peers, "_failure", failure)
    return ran


def test_only_what_is_missing_is_installed(commands: list[list[str]], tmp_path: Path) -> None:
    peers = {name: Peer(name, name, name) for name in ("there", "good", "bad")}
    folder = tmp_path / "venv"
    assert prepare_venv(folder, peers) == {"bad": "cannot be installed: ERROR: no wheel for this platform"}
    assert commands[0][1:] == ["-m", "venv", str(folder)]
    assert [c[-1] for c in commands if "install" in c] == ["numpy", "good", "bad"]
    commands.clear()
    python = bench_peers.venv_python(folder)
    python.parent.mkdir(parents=True)
    python.touch()
    prepare_venv(folder, peers)
    assert [c[-1] for c in commands if "install" in c] == ["good", "bad"]


def test_no_environment_at_all_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bench_peers, "_failure", lambda _: "disk full")
    with pytest.raises(BackendUnavailable, match="disk full"):
        prepare_venv(tmp_path / "venv", {})


def test_failures_of_commands_end_in_their_reason() -> None:
    run = bench_peers._failure
    assert run([sys.executable, "-c", "pass"]) is None
    noise = "import sys; print('ERROR: real\\nWARNING: pip is old', file=sys.stderr); sys.exit(1)"
    assert run([sys.executable, "-c", noise]) == "ERROR: real"
    assert run([sys.executable, "-c", "raise OSError('x')"]) == "OSError: x"
    assert "no-such-program" in str(run(["no-such-program"]))


# -- a run -----------------------------------------------------------------------------------------


def test_own_configurations_that_do_not_exist_are_left_out(bundled: Model) -> None:
    found, left_out = bench.own_configurations(bundled, ("ort-cpu", "abacus:beads=3", "ort-cpu:beads=1"), ())
    assert [c.name for c in found] == ["ort-cpu incremental"]
    assert left_out["abacus:beads=3"] == "unknown backend 'abacus'"
    assert "beads" in left_out["ort-cpu:beads=1"]


def test_a_run_with_a_fake_peer(bundled: Model, tmp_path: Path) -> None:
    """Real workers: one of this environment, one that cannot run."""
    plan = Plan(rounds=2, seconds=0.05, streams=False, start=False, file=False)
    own = [Configuration(BackendSpec("ort-cpu"), "incremental")]
    left_out = {"abacus": "no beads"}

    def contestants(folder: Path) -> Any:
        peers = list(bench.peer_contestants(folder, bundled, tmp_path, ["dpdfnet"], plan))
        hops = np.load(folder / "hops.npy")
        assert hops.shape == (15, 480)
        assert np.abs(hops).max() > 0.01
        peers[0].spec["engine"] = "no such engine"
        yield from peers
        yield from bench.own_contestants("bundled", own, plan)

    report, times = bench.compare(
        "bundled", contestants, left_out, Path(sys.executable), plan, lambda _: None
    )
    assert report["base"] == "ort-cpu incremental"
    assert not report["base_is_rust"]
    assert {*report["left_out"]} == {"abacus", "dpdfnet2_48khz_hr"}
    assert "no such engine" in report["left_out"]["dpdfnet2_48khz_hr"]
    (row,) = report["rows"]
    assert (row["kind"], row["backend"], row["mode"], row["block"]) == ("stream", "ort-cpu", "incremental", 1)
    assert row["versions"]["dfstream"]
    assert {*row["loops"]} == {"tight", "paced"}
    assert times["paced"]["ort-cpu incremental"].shape == (10,)
    assert json.dumps(report, allow_nan=False)
    assert [r["met"] for r in bench_targets.standing(report)].count(None) == len(bench_targets.TARGETS) - 1


def test_models_of_other_hops_are_refused(synthetic_model: Callable[[str], Model], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"hops of \d+ samples at 16000 Hz"):
        next(bench.peer_contestants(tmp_path, synthetic_model("wideband16k"), None, ["dpdfnet"], Plan()))


@pytest.mark.slow
def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With no peers to be had: what is missing is said, and the rest measured."""
    monkeypatch.setattr(bench_peers, "_failure", lambda _: None)
    monkeypatch.setattr(bench_peers, "venv_python", lambda _: Path(sys.executable))
    target = tmp_path / "report.json"
    args = [
        "--model",
        "bundled",
        "--peer",
        "dpdfnet",
        "--backend",
        "ort-cpu",
        "--rounds",
        "1",
        "--seconds",
        "0.05",
    ]
    args += ["--venv", str(tmp_path / "venv"), "--no-start", "--no-paced", "--targets", "--json", str(target)]
    done = CliRunner().invoke(bench.main, args)
    assert done.exit_code == 0, done.output
    assert "left out: dpdfnet2_48khz_hr: ModuleNotFoundError" in done.output
    assert "ratios to ort-cpu incremental" in done.output
    assert "the Rust engine did not run" in done.output
    report = json.loads(target.read_text())
    assert {row["kind"] for row in report["rows"]} >= {"stream", "file"}
    assert len(report["targets"]) == len(bench_targets.TARGETS)
    refused = CliRunner().invoke(bench.main, args)
    assert refused.exit_code == 1
    assert "exists" in refused.output


# -- targets ---------------------------------------------------------------------------------------


def loop(ratio: float, median_us: float = 100.0, p99_us: float = 150.0) -> dict[str, Any]:
    return {
        "median_us": median_us, "p99_us": p99_us,
        "ratio": {"median": ratio, "low": ratio - 0.01, "high": ratio + 0.01},
    }  # fmt: skip


def row(kind: str, backend: str, options: dict[str, str], **loops: dict[str, Any]) -> dict[str, Any]:
    named = {"name": f"{kind} {backend} {options}", "kind": kind, "backend": backend, "options": options}
    return {**named, "mode": "incremental", "loops": loops}


def full_report() -> dict[str, Any]:
    """All that the targets ask for, each just good enough."""
    seconds = {"median_s": 0.15, "low_s": 0.1, "high_s": 0.2}
    hop = {"warm_cache": {**seconds, "median_s": 1.5}}
    return {
        "base_is_rust": True,
        "rows": [
            {"name": "Rust", "kind": "peer", "loops": {"tight": loop(1.0), "paced": loop(1.0)}},
            row("stream", "ort-cpu", {}, tight=loop(0.47), paced=loop(0.6, 200.0, 500.0)),
            row(
                "stream", "numba", {"precision": "float32"},
                tight=loop(0.32), paced=loop(0.31, 100.0, 200.0),
            ),
            row("stream", "numba", {"precision": "int16"}, tight=loop(0.22), paced=loop(0.1, 50.0, 300.0)),
            row("stream", "numba", {"precision": "int8"}, tight=loop(0.16), paced=loop(0.1, 40.0, 300.0)),
            row("streams", "ort-cpu", {}, tight=loop(0.2)),
            row("streams", "numba", {}, tight=loop(0.08)),
            row("streams", "numba", {"precision": "int8"}, tight=loop(0.01)),
            row("file", "ort-cpu", {}, tight=loop(0.25)),
            row("file", "numba", {}, tight=loop(0.1)),
        ],
        "left_out": {},
        "streams": {"rows": [{"backend": b, "most_streams_at_p99": n} for b, n in (("a", 60), ("b", 100))]},
        "start": {
            "import": seconds, "help": {**seconds, "median_s": 0.3},
            "first_hop": {
                "stream ort-cpu {}": hop,
                "stream numba {'precision': 'int8'}": {"warm_cache": {**seconds, "median_s": 0.1}},
            },
        },
    }  # fmt: skip


def test_targets_are_met_at_their_limits() -> None:
    rows = bench_targets.standing(full_report())
    assert [r["met"] for r in rows] == [True] * len(rows)
    # each figure is the limit itself, so that each was taken from the right place
    for r in rows:
        assert r["value"] == pytest.approx(0.31 if "paced, x Rust" in r["target"] else r["limit"]), r[
            "target"
        ]


def test_every_target_can_be_missed() -> None:
    report = full_report()
    for entry in report["rows"][1:]:
        for figures in entry["loops"].values():
            figures["ratio"]["median"] += 0.02
            figures["p99_us"] *= 2
    for entry in report["streams"]["rows"]:
        entry["most_streams_at_p99"] -= 1
    for seconds in (report["start"]["import"], report["start"]["help"]):
        seconds["median_s"] += 0.01
    for first in report["start"]["first_hop"].values():
        first["warm_cache"]["median_s"] += 0.01
    assert [r["met"] for r in bench_targets.standing(report)] == [False] * len(bench_targets.TARGETS)


def test_targets_without_a_figure_say_why() -> None:
    report = full_report()
    report["rows"] = [r for r in report["rows"] if r.get("backend") != "numba" and r["kind"] != "streams"]
    report["left_out"] = {"numba": "not installed"}
    report["streams"] = {"remark": "no pools"}
    del report["start"]
    found = {r["target"]: r for r in bench_targets.standing(report)}
    reasons = {target: r.get("reason") for target, r in found.items()}
    assert reasons["hop, float32, tight, x Rust"] == "not installed"
    assert reasons["hop, int16, x Rust"] == "numba:precision=int16 was not measured"
    assert reasons["64 live streams, per stream and hop, x Rust"] == "no pool of streams was measured"
    assert reasons["live streams of a core, p99 below a hop"] == "no pools"
    assert reasons["import dfstream, s"] == "not measured"
    assert found["hop, ort-cpu, x Rust"]["met"]
    assert found["file of 60 s, per hop, x Rust"]["met"] is False
    report["base_is_rust"] = False
    assert bench_targets.standing(report)[0]["reason"] == "the Rust engine did not run"


def test_the_table_of_targets() -> None:
    report = full_report()
    report["rows"] = report["rows"][:2]
    text = bench.target_lines(bench_targets.standing(report))
    assert len(text) == 1 + len(bench_targets.TARGETS)
    line = next(line for line in text if line.startswith("hop, ort-cpu"))
    assert line.split() == [
        "hop,",
        "ort-cpu,",
        "x",
        "Rust",
        "<=",
        "0.47",
        "0.470",
        "0.460-0.480",
        "met:",
        "stream",
        "ort-cpu",
        "{}",
    ]
    assert any(line.endswith("numba was not measured") for line in text)


# -- MODES.md --------------------------------------------------------------------------------------


def mode_row(mode: str, rounds_us: list[float], **other: Any) -> dict[str, Any]:
    loops = {"tight": {"rounds_us": rounds_us}}
    return {"backend": "ort-cpu", "options": {}, "mode": mode, "block": 1, "loops": loops, **other}


REPORT = {
    "model": {"name": "dfn3"},
    "rows": [
        mode_row("streaming", [110.0, 260.0, 130.0]),
        mode_row("incremental", [100.0, 200.0, 100.0]),
        mode_row("incremental", [1.0, 1.0, 1.0], block=100),
        mode_row("stateful-h0", [1.0, 1.0, 1.0], options={"threads": 2}),
    ],
}


def test_measured_costs_are_ratios_round_by_round() -> None:
    assert modes_table.measured(REPORT) == {"incremental": "1", "streaming": "1.30 (1.20 to 1.30)"}


def test_the_column_stands_beside_the_table(bundled: Model) -> None:
    plain, more = modes_table.table(bundled).splitlines(), modes_table.table(bundled, REPORT).splitlines()
    columns = [longer.removeprefix(line) for line, longer in zip(plain, more, strict=True)]
    assert columns == [
        " time of a hop, dfn3 |", " --- |", " not run |", " 1 |", " not run |", " not run |",
        " 1.30 (1.20 to 1.30) |",
    ]  # fmt: skip


def test_other_reports_are_refused(tmp_path: Path) -> None:
    for change in ({"rows": []}, {"rows": REPORT["rows"][:1]}, {"rows": None}):
        with pytest.raises(click.ClickException, match="not a report of dfstream bench"):
            modes_table.measured({**copy.deepcopy(REPORT), **change})
    path = tmp_path / "report.json"
    path.write_text("{")
    done = CliRunner().invoke(modes_table.main, ["--bench", str(path)])
    assert done.exit_code == 1
    assert "not JSON" in done.output
