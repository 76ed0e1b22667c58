"""``dfstream bench``: a tiny real run, its report, its picture, and what is refused."""

from __future__ import annotations

import importlib.util
import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import dfstream
from dfstream.benchmark import measuring
from dfstream.benchmark.configurations import BackendSpec
from dfstream.benchmark.measuring import Plan, measure_streams
from dfstream.benchmark.picture import draw
from dfstream.cli import _run
from dfstream.cli.bench import plan_of, teller
from dfstream.model import Model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from dfstream.benchmark.configurations import Configuration

TINY = ("--rounds", 2, "--seconds", 0.05, "--no-start", "--no-file")

draws = pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="needs matplotlib")


@pytest.fixture(autouse=True)
def _load_once(monkeypatch: pytest.MonkeyPatch, bundled: Model) -> None:
    load = Model.load
    monkeypatch.setattr(Model, "load", lambda source=None: bundled if source == "bundled" else load(source))


@pytest.fixture
def bench(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*args: object) -> tuple[int, str, str]:
        """Run the command; return its exit code and what it printed."""
        code = _run(["bench", *map(str, args)])
        return code, *capsys.readouterr()

    return run


def test_a_tiny_run_reports_everything(bench: Any) -> None:
    modes = ("--mode", "incremental", "--mode", "stateless-window-last")
    code, out, err = bench(*TINY, "--backend", "ort-cpu", *modes, "--block", 1, "--block", 4, "--json")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert report["model"]["name"] == "bundled"
    assert len(report["model"]["sha256"]) == 64
    assert {"date", "command", "versions", "cpu", "cores", "load_average", "pinned_to_core"} <= {
        *report["environment"]
    }
    assert report["plan"]["rounds"] == 2
    assert report["base"] == report["rows"][0]["name"] == "ort-cpu incremental"
    assert [(row["mode"], row["block"]) for row in report["rows"]] == [
        (mode, block) for mode in ("incremental", "stateless-window-last") for block in (1, 4)
    ]
    for row in report["rows"]:
        assert (row["backend"], row["options"]) == ("ort-cpu", {})
        assert [*row["loops"]] == ["tight", "paced"]
        for figures in row["loops"].values():
            assert figures["calls"] == 2 * 5
            assert len(figures["rounds_us"]) == 2
            assert 0 < figures["median_us"] <= figures["p95_us"] <= figures["p99_us"] <= figures["p999_us"]
            assert figures["p999_us"] <= figures["max_us"]
            assert figures["ratio"]["low"] <= figures["ratio"]["median"] <= figures["ratio"]["high"]
            assert figures["streams_per_core"] == pytest.approx(1e4 / figures["median_us"])
            assert figures["streams_per_core_p99"] == pytest.approx(1e4 / figures["p99_us"])
    assert "file" not in report
    assert "start" not in report


def test_a_tiny_run_prints_a_table(bench: Any, tmp_path: Path) -> None:
    target = tmp_path / "report.json"
    code, out, err = bench(
        *TINY, "--mode", "incremental", "--block", 1, "--no-paced", "--no-streams", "--json", target
    )
    assert (code, err) == (0, "")
    assert out.startswith("bundled (DeepFilterNet3), sha256 ")
    assert "ratios to ort-cpu incremental" in out
    assert "paced" not in out
    report = json.loads(target.read_text())
    assert "streams" not in report
    assert [*report["rows"][0]["loops"]] == ["tight"]


def test_a_file_and_processes_where_they_are_wanted(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"median_s": 0.5, "low_s": 0.4, "high_s": 0.6}
    first = {"fresh_cache_s": 9.0, "kernels_compiled": 3, "warm_cache": seconds}

    def memory(_model: str, found: list[Configuration]) -> dict[str, int]:
        return {c.name: 7 << 20 for c in found}

    def start(_model: str, found: list[Configuration], _repeats: int, _tell: object) -> dict[str, Any]:
        own = dict.fromkeys(("interpreter", "import", "help"), seconds)
        return {**own, "first_hop": {c.name: first for c in found}}

    monkeypatch.setattr(measuring, "measure_memory", memory)
    monkeypatch.setattr(measuring, "measure_start", start)
    monkeypatch.setattr(measuring, "_FILE_S", 2.0)
    code, out, _ = bench(
        *TINY[:4],
        "--backend",
        "ort-cpu",
        "--mode",
        "streaming",
        "--mode",
        "incremental",
        "--no-paced",
        "--json",
    )
    assert code == 0
    report = json.loads(out)
    assert report["base"] == "ort-cpu streaming"
    assert {row["peak_bytes"] for row in report["rows"]} == {7 << 20}
    # one configuration of each backend is started anew: the first
    assert [*report["start"]["first_hop"]] == ["ort-cpu streaming"]
    assert report["file"]["seconds"] == 2.0
    (row,) = report["file"]["rows"]
    assert row["backend"] == "ort-cpu"
    assert 0 < row["us_per_hop"] < 1e4


# -- many streams ----------------------------------------------------------------------------------


def test_pools_are_skipped_with_a_remark_where_there_are_none(
    monkeypatch: pytest.MonkeyPatch, bundled: Model
) -> None:
    monkeypatch.setattr("dfstream.benchmark.measuring.has_pools", lambda: False)
    found = measure_streams(bundled, [BackendSpec("ort-cpu")], Plan(), lambda _: None)
    assert [*found] == ["remark"]


class FakePool:
    """As a pool of streams is called."""

    def __init__(self, model: Model, *, capacity: int, backend: object) -> None:
        self.model, self.capacity, self.backend = model, capacity, backend
        self.joined: set[int] = set()

    def join(self, key: int) -> None:
        assert len(self.joined) < self.capacity
        self.joined.add(key)

    def process(self, chunks: dict[int, NDArray[np.float32]]) -> dict[int, NDArray[np.float32]]:
        assert {*chunks} == self.joined
        assert len({*map(id, chunks.values())}) > min(4, len(chunks)) - 1  # not one signal for all
        assert all(chunk.shape == (480,) for chunk in chunks.values())
        return chunks


def test_pools_are_measured_where_there_are_some(monkeypatch: pytest.MonkeyPatch, bundled: Model) -> None:
    monkeypatch.setattr(dfstream, "StreamPool", FakePool, raising=False)
    plan = Plan(rounds=1, seconds=0.05)
    found = measure_streams(bundled, [BackendSpec("ort-cpu")], plan, lambda _: None)
    assert [row["streams"] for row in found["rows"]] == [1, 8, 64]
    assert {row["backend"] for row in found["rows"]} == {"ort-cpu"}
    assert all(row["us_per_stream_and_hop"] > 0 for row in found["rows"])
    assert {row["most_streams_at_p99"] for row in found["rows"]} == {1024}


# -- options ---------------------------------------------------------------------------------------


def test_quick_is_short_whatever_else_is_asked_for() -> None:
    options: dict[str, Any] = {"rounds": 50, "seconds": 9.0, "core": 1}
    options |= {f"no_{name}": name == "paced" for name in ("paced", "streams", "file", "start")}
    plan = plan_of(True, options)
    assert (plan.rounds, plan.seconds, plan.paced, plan.file, plan.core) == (3, 0.5, False, True, 1)
    assert plan_of(False, options).rounds == 50


def test_progress_is_for_terminals(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    teller(False)("round 1")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(
        "dfstream.cli.bench.sys", SimpleNamespace(stderr=SimpleNamespace(isatty=lambda: True))
    )
    teller(True)("round 1")
    assert capsys.readouterr().err == ""
    teller(False)("round 1")
    assert capsys.readouterr().err.endswith("round 1")


@pytest.mark.parametrize(
    ("code", "args", "word"),
    [
        (2, ["--backend", "abacus"], "unknown backend 'abacus'"),
        (2, ["--backend", "ort-cpu:threads"], "'threads' is not option=value"),
        (2, ["--backend", "ort-cpu:threads=0"], "threads = 0"),
        (2, ["--backend", "ort-cpu:beads=1"], "'beads'"),
        (2, ["--mode", "guess"], "unknown mode 'guess'"),
        (2, ["--block", "0"], "--block"),
        (2, ["--rounds", "0"], "--rounds"),
        (2, ["--core", "98765"], "core 98765"),
        (2, ["--model", "nowhere"], "nowhere"),
        (2, ["--json", "no/such/folder/report.json"], "no/such/folder"),
        (2, ["--plot", "picture.txt"], "unknown picture format"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, args: list[str], word: str
) -> None:
    if "--plot" in args:
        pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    actual, out, err = bench(*TINY, *args)
    assert (actual, out) == (code, "")
    first, *hints = err.splitlines()
    assert first.startswith("error: ")
    assert word in err
    assert all(line.startswith("hint: ") for line in hints)
    assert not [*tmp_path.iterdir()]


def test_files_that_exist_are_kept(bench: Any, tmp_path: Path) -> None:
    target = tmp_path / "report.json"
    target.write_text("mine")
    code, out, err = bench(*TINY, "--json", target)
    assert (code, out) == (2, "")
    assert "exists" in err
    assert target.read_text() == "mine"
    code, _, _ = bench(
        *TINY, "--no-paced", "--mode", "incremental", "--block", 1, "--json", target, "--force"
    )
    assert code == 0
    assert json.loads(target.read_text())["rows"]


def test_nothing_to_measure_is_an_error_with_the_reason(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from dfstream.errors import BackendUnavailable

    def missing(_: BackendSpec) -> None:
        raise BackendUnavailable("the runtime is not installed", hint="install it")

    monkeypatch.setattr(BackendSpec, "make", missing)
    assert bench(*TINY) == (4, "", "error: the runtime is not installed\nhint: install it\n")


# -- the picture -----------------------------------------------------------------------------------


def pixels(path: Path) -> NDArray[np.float32]:
    from matplotlib.image import imread

    image: NDArray[np.float32] = imread(path)
    assert image.shape == (1100, 1600, 4)
    return image[..., :3]


def shown(image: NDArray[np.float32], colour: tuple[int, int, int]) -> int:
    """Count the pixels of a colour."""
    return int((np.abs(255 * image - np.array(colour)).max(axis=2) < 8).sum())


@draws
def test_the_picture_shows_every_configuration(bench: Any, tmp_path: Path) -> None:
    target = tmp_path / "bench.png"
    args = ("--backend", "ort-cpu", "--mode", "incremental", "--mode", "streaming", "--block", 1)
    code, _, err = bench(*TINY, *args, "--plot", target)
    assert (code, err) == (0, "")
    image = pixels(target)
    first, second, third = (31, 119, 180), (255, 127, 14), (44, 160, 44)
    for half in (image[:, :800], image[:, 800:]):  # tight and paced
        for panel in (half[:400], half[400:800]):  # histogram and tail
            assert shown(panel, first) > 50
            assert shown(panel, second) > 50
            assert shown(panel, third) == 0


@draws
def test_the_picture_of_one_loop_and_many_lines() -> None:
    names = [f"configuration {i}" for i in range(12)]
    report = {
        "rows": [{"name": name} for name in names], "model": {"name": "some", "hop_ms": 10.0},
        "environment": {"cpu": "$a processor$", "versions": {}},
    }  # fmt: skip
    times = {name: np.array([100.0, 200.0, 400.0]) * (i + 1) for i, name in enumerate(names)}
    figure = draw({"tight": times}, report)
    histogram, tail = figure.axes
    assert [line.get_label() for line in tail.get_lines()[:12]] == [
        f"{name}: {200 * (i + 1)}, {400 * (i + 1)}" for i, name in enumerate(names)
    ]
    line = tail.get_lines()[0]
    # all were slower than the quickest or as slow, a third of them than the slowest
    assert np.array_equal(line.get_xdata(), [100.0, 200.0, 400.0])
    assert line.get_ydata() == pytest.approx([100.0, 200 / 3, 100 / 3])
    assert histogram.get_xlim()[0] < 100
    assert histogram.get_xlim()[1] > 10_000
    styles = {(line.get_color(), line.get_linestyle()) for line in tail.get_lines()[:12]}
    assert len(styles) == 12
