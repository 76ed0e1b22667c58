"""The benchmark's parts: timing on a made-up clock, figures of made-up times, configurations, children."""

from __future__ import annotations

import gc
import json
import os
import statistics
import subprocess
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfstream.backends.base import backend_names
from dfstream.benchmark import timing
from dfstream.benchmark.children import first_hop, last_line, measure_start
from dfstream.benchmark.configurations import BackendSpec, Configuration, usable
from dfstream.benchmark.contenders import file_caller, stream_caller
from dfstream.benchmark.figures import hop_times, loop_figures, noise_warnings
from dfstream.benchmark.machine import environment
from dfstream.benchmark.report import aligned, lines
from dfstream.benchmark.statistics import compare, latency, most_streams, quartiles
from dfstream.benchmark.timing import Stretch, interleave, pinned, time_stretch
from dfstream.errors import BackendUnavailable, DfstreamError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from dfstream.model import Model

ORT = BackendSpec("ort-cpu")

times_s = st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=300)


def stretch(seconds: Sequence[float], late: int = 0) -> Stretch:
    """A stretch of which others took a quarter of the core."""
    return Stretch(np.array(seconds), 0, late, 0.75 * sum(seconds))


# -- statistics ------------------------------------------------------------------------------------


@given(times_s)
def test_percentiles_are_what_so_many_calls_did_not_exceed(times: list[float]) -> None:
    """By definition, counted: the smallest observed time that so many of the calls did not exceed."""
    found = latency([np.array(times)])
    for per_mille, value in ((950, found.p95_us), (990, found.p99_us), (999, found.p999_us)):
        enough = [t for t in times if 1000 * sum(other <= t for other in times) >= per_mille * len(times)]
        assert value == pytest.approx(1e6 * min(enough), rel=1e-12)
    assert found.median_us == pytest.approx(1e6 * statistics.median(times), rel=1e-12)
    assert found.max_us == pytest.approx(1e6 * max(times), rel=1e-12)
    assert found.calls == len(times)


def test_rounds_of_any_length_count_by_their_calls() -> None:
    found = latency([np.array([1e-6, 3e-6, 5e-6]), np.array([9e-6])])
    assert found.rounds_us == pytest.approx((3.0, 9.0))
    assert found.median_us == pytest.approx(4.0)


def test_the_last_of_a_thousand_is_not_the_99_9th() -> None:
    assert latency([np.arange(1, 1001) * 1e-6]).p999_us == pytest.approx(999.0)
    assert latency([np.arange(1, 1000) * 1e-6]).p999_us == pytest.approx(999.0)


@given(times_s)
def test_quartiles_agree_with_the_standard_library(values: list[float]) -> None:
    if len(values) < 2:
        values = values * 2
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    assert quartiles(values) == pytest.approx((median, low, high), rel=1e-9)


def test_what_slows_a_round_down_for_both_drops_out_of_the_ratio() -> None:
    base = np.array([100.0, 300.0, 120.0, 900.0])
    assert compare(tuple(base / 4), tuple(base)) == pytest.approx((0.25, 0.25, 0.25))
    with pytest.raises(ValueError, match="longer"):
        compare([1.0], [1.0, 2.0])


@pytest.mark.parametrize("truth", [0, 1, 3, 7, 8, 9, 63, 64, 100, 333, 1000])
def test_the_most_streams_are_found(truth: int) -> None:
    asked: list[int] = []

    def p99_us(streams: int) -> float:
        asked.append(streams)
        return 1.0 if streams <= truth else 3.0

    found = most_streams(p99_us, 2.0)
    assert found <= truth <= found + max(1, found // 16) - (truth < 1)
    assert len(asked) == len(set(asked)) <= 14


def test_the_search_for_streams_ends() -> None:
    assert most_streams(lambda _: 0.0, 1.0, most=100) == 64


# -- timing ----------------------------------------------------------------------------------------


class Clock:
    """A clock that only moves when somebody works or sleeps."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.slept: list[float] = []

    def perf_counter_ns(self) -> int:
        return self.now_ns

    def perf_counter(self) -> float:
        return self.now_ns * 1e-9

    def process_time(self) -> float:
        """Of this process, which works half of the time that passes."""
        return self.now_ns * 0.5e-9

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.work(seconds)

    def work(self, seconds: float) -> None:
        self.now_ns += round(seconds * 1e9)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(timing, "time", made)
    return made


def test_every_call_is_timed_by_itself(clock: Clock) -> None:
    found = time_stretch(clock.work, [0.5, 0.25, 0.001, 0.002, 0.003], warm_up=2)
    assert found.seconds == pytest.approx([0.001, 0.002, 0.003])
    assert found.cpu_seconds == pytest.approx(0.003)
    assert not clock.slept


def test_the_pace_does_not_drift_and_late_calls_are_counted(clock: Clock) -> None:
    begins: list[float] = []

    def call(seconds: float) -> None:
        begins.append(clock.perf_counter())
        clock.work(seconds)

    found = time_stretch(call, [0.003, 0.004, 0.025, 0.003, 0.003, 0.003], warm_up=1, interval_s=0.01)
    # the slow third call delays the fourth and not those after it
    assert begins == pytest.approx([0.0, 0.01, 0.02, 0.045, 0.048, 0.051])
    found = time_stretch(call, [0.003, 0.004, 0.015, 0.002, 0.003, 0.003], warm_up=1, interval_s=0.01)
    assert np.diff(begins[6:]) == pytest.approx([0.01, 0.01, 0.015, 0.005, 0.01])
    assert found.seconds == pytest.approx([0.004, 0.015, 0.002, 0.003, 0.003])
    assert found.late == 1


def test_the_collector_stays_on_and_its_runs_are_counted() -> None:
    seen: list[bool] = []

    def call(collect: bool) -> None:
        seen.append(gc.isenabled())
        if collect:
            gc.collect()

    assert time_stretch(call, [True, False, True], warm_up=0).collections == 2
    assert all(seen)


class Turn:
    def __init__(self, name: str, log: list[tuple[str, bool]]) -> None:
        self.name, self._log = name, log

    def stretch(self, paced: bool) -> Stretch:
        self._log.append((self.name, paced))
        return stretch([float(len(self._log))])


def test_the_order_turns_around_every_other_round() -> None:
    log: list[tuple[str, bool]] = []
    told: list[int] = []
    kept = interleave([Turn(name, log) for name in "abc"], 3, paced=True, progress=told.append)
    assert "".join(name for name, _ in log) == "cba" + "abc" + "cba" + "abc"
    assert all(paced for _, paced in log)
    assert told == [0, 1, 2, 3]
    # the first round warms up: its times are not kept
    assert {name: [s.seconds[0] for s in stretches] for name, stretches in kept.items()} == {
        "a": [4.0, 9.0, 10.0], "b": [5.0, 8.0, 11.0], "c": [6.0, 7.0, 12.0],
    }  # fmt: skip


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not pin")
def test_pinning_holds_inside_and_is_undone_by_errors_too() -> None:
    before = os.sched_getaffinity(0)

    def fail_when_pinned() -> None:
        with pinned() as core:
            assert os.sched_getaffinity(0) == {core} == {max(before)}
            raise KeyError

    with pytest.raises(KeyError):
        fail_when_pinned()
    assert os.sched_getaffinity(0) == before
    with pinned(min(before)) as core:
        assert os.sched_getaffinity(0) == {core} == {min(before)}
    with pytest.raises(UsageError, match="core 98765"), pinned(98765):
        pass


def test_nothing_is_pinned_where_the_system_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_setaffinity", raising=False)
    with pinned(98765) as core:
        assert core is None
    assert environment(None)["pinned_to_core"] is None


# -- configurations --------------------------------------------------------------------------------


def test_a_backend_is_read_with_its_options() -> None:
    assert BackendSpec.parse("ort-cpu") == ORT
    spec = BackendSpec.parse("ort-cpu:threads=2, kind=int16,flag=True")
    assert spec.options == (("threads", 2), ("kind", "int16"), ("flag", True))
    assert BackendSpec.parse(str(spec)) == spec
    assert BackendSpec.parse("ort-cpu:threads=3").make() == type(ORT.make())(threads=3)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    "text", ["ort-cpu:", "ort-cpu:threads", "ort-cpu:=2", "ort-cpu:threads=", "ort-cpu:a b=1"]
)
def test_options_in_another_form_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not option=value") as caught:
        BackendSpec.parse(text)
    assert caught.value.hint == "write ort-cpu:option=value,option=value"


def test_what_does_not_exist_is_refused(bundled: Model) -> None:
    with pytest.raises(UsageError, match="unknown backend 'abacus'"):
        usable(bundled, ["abacus"])
    with pytest.raises(UsageError, match=r"backend ort-cpu has no option 'beads'"):
        usable(bundled, ["ort-cpu:beads=3"])
    with pytest.raises(UsageError, match="unknown mode 'guess'"):
        usable(bundled, ["ort-cpu"], ["guess"])
    with pytest.raises(UsageError, match="blocks of 0 hops"):
        usable(bundled, ["ort-cpu"], blocks=[0])


def test_all_backends_and_exact_modes_by_default(bundled: Model) -> None:
    found, left_out = usable(bundled, blocks=(1, 100, 1))
    assert found[0].name == "ort-cpu incremental"
    assert {c.backend.name for c in found} | {name.split()[0] for name in left_out} == {*backend_names()}
    own = [c for c in found if c.backend == ORT]
    assert [(c.mode, c.block) for c in own] == [
        (mode, block)
        for mode in ("incremental", "audio-graph", "stateful-h0", "streaming")
        for block in (1, 100)
    ]
    assert own[1].name == "ort-cpu incremental, 100 hops"


def test_what_cannot_run_is_left_out_with_its_reason(
    synthetic_model: Any, bundled: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, left_out = usable(synthetic_model("dfn3-ll"), ["ort-cpu"])
    assert [c.mode for c in found] == ["incremental", "audio-graph", "streaming"]
    assert [*left_out] == ["ort-cpu stateful-h0"]
    assert "behind a GRU" in str(left_out["ort-cpu stateful-h0"])

    def missing(_: BackendSpec) -> None:
        raise BackendUnavailable("not installed")

    monkeypatch.setattr(BackendSpec, "make", missing)
    found, left_out = usable(bundled, ["ort-cpu"])
    assert not found
    assert str(left_out["ort-cpu"]) == "not installed"


# -- contenders ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("block", "calls", "warm_up"), [(1, 30, 10), (4, 8, 3), (100, 5, 1)])
def test_a_stretch_of_a_stream(bundled: Model, block: int, calls: int, warm_up: int) -> None:
    caller = stream_caller(bundled, Configuration(ORT, "incremental", block), 0.3)
    assert caller.warm_up == warm_up
    assert len(caller.chunks) == warm_up + calls
    assert all(chunk.shape == (480 * block,) for chunk in caller.chunks)
    assert caller.interval_s == pytest.approx(0.01 * block)
    assert caller.call(caller.chunks[0]).shape == (480 * block,)  # type: ignore[attr-defined]
    assert len(caller.stretch(False).seconds) == calls


def test_a_stretch_of_a_file(bundled: Model) -> None:
    caller = file_caller(bundled, ORT, 4.0)
    (audio,) = caller.chunks
    assert audio.shape == caller.call(audio).shape == (192_000,)  # type: ignore[attr-defined]
    # the clip over and over, not silence
    assert np.array_equal(audio[:1000], audio[120_000:121_000])
    assert np.abs(audio).max() > 0.01


# -- figures and reports ---------------------------------------------------------------------------

LOOPS = {
    "tight": {
        "base": [stretch([400e-6, 500e-6, 600e-6]), stretch([800e-6, 1000e-6, 1200e-6])],
        "block": [stretch([10_000e-6]), stretch([30_000e-6], late=2)],
    },
    "paced": {"base": [stretch([1000e-6]), stretch([2000e-6])]},
}
BLOCKS = {"base": 1, "block": 100}


def test_figures_are_per_hop_and_ratios_by_round() -> None:
    found = loop_figures(LOOPS, BLOCKS, "base", 10_000.0)
    block = found["block"]["tight"]
    assert block["median_us"] == pytest.approx(200.0)
    assert block["rounds_us"] == pytest.approx((100.0, 300.0))
    assert block["ratio"] == pytest.approx({"median": 0.25, "low": 0.225, "high": 0.275})
    assert block["real_time_factor"] == pytest.approx(0.02)
    assert block["streams_per_core"] == pytest.approx(50.0)
    assert block["streams_per_core_p99"] == pytest.approx(10_000 / 300)
    assert block["late_calls"] == 2
    assert block["processor_share"] == pytest.approx(0.75)
    assert found["base"]["tight"]["ratio"]["median"] == 1.0
    assert [*found["block"]] == ["tight"]
    assert hop_times(LOOPS, BLOCKS)["tight"]["block"] == pytest.approx([100.0, 300.0])


def made_up_report() -> dict[str, Any]:
    figures = loop_figures(LOOPS, BLOCKS, "base", 10_000.0)
    rows = [{"name": name, "peak_bytes": 200_000_000, "loops": figures[name]} for name in BLOCKS]
    seconds = {"median_s": 0.12, "low_s": 0.1, "high_s": 0.2}
    first = {"fresh_cache_s": 4.5, "kernels_compiled": 10, "warm_cache": {**seconds, "median_s": 1.25}}
    return {
        "environment": environment(3),
        "model": {
            "name": "some",
            "sha256": "0123456789abcdef" * 4,
            "variant": "DeepFilterNet3",
            "hop_ms": 10.0,
        },
        "plan": {"rounds": 2, "seconds": 0.5},
        "base": "base",
        "rows": rows,
        "left_out": {"abacus": "no beads"},
        "warnings": noise_warnings(rows),
        "streams": {"remark": "none here"},
        "file": {"seconds": 60.0, "rows": [{"backend": "ort-cpu", "us_per_hop": 77.25}]},
        "start": {"interpreter": seconds, "import": seconds, "help": seconds, "first_hop": {"base": first}},
    }


def test_a_report_says_everything_in_aligned_lines() -> None:
    report = made_up_report()
    text = lines(json.loads(json.dumps(report)))
    joined = "\n".join(text)
    for word in ("pinned to core 3", "0123456789abcdef", "python ", "numpy ", "left out: abacus: no beads"):
        assert word in joined
    for word in ("none here", "77.2", "200 MB", "1.25 s", "4.50 s", "10 kernels compiled"):
        assert word in joined
    start = next(i for i, line in enumerate(text) if line.startswith("back to back"))
    header, base, block = text[start : start + 3]
    # 600 of 6 calls is the 50th, 1200 the last: taken off the table by the ends of its columns
    for word, cells in {
        "median": ("700.0", "200.0"),
        "max us": ("1200", "300.0"),
        "ratio": ("1.000", "0.250"),
    }.items():
        end = header.index(word) + len(word)
        assert (base[:end].split()[-1], block[:end].split()[-1]) == cells
    assert block.endswith("0.225-0.275")


def test_a_report_of_little_is_short() -> None:
    report = made_up_report()
    for key in ("streams", "file", "start"):
        del report[key]
    for row in report["rows"]:
        del row["peak_bytes"]
        row["loops"].pop("paced", None)
    joined = "\n".join(lines(report))
    assert "paced" not in joined
    assert "memory" not in joined


def test_tables_are_aligned() -> None:
    assert aligned([("a", "1"), ("bcd", "234")]) == ["a      1", "bcd  234"]
    assert aligned([("1", "a"), ("234", "bc")], left=(1,)) == ["  1  a", "234  bc"]


def rows_of(
    rounds_us: Sequence[float], low: float, high: float, late: int = 0, share: float = 0.99
) -> list[dict[str, Any]]:
    ratio = {"median": 1.0, "low": low, "high": high}
    figures = {"rounds_us": rounds_us, "late_calls": late, "processor_share": share, "ratio": ratio}
    return [{"name": "quiet", "loops": {}}, {"name": "one", "loops": {"tight": figures}}]


def test_a_noisy_machine_is_named() -> None:
    assert noise_warnings(rows_of([100.0, 101.0, 102.0], 0.98, 1.02)) == []
    (warning,) = noise_warnings(rows_of([100.0, 100.0, 140.0, 140.0], 0.98, 1.02))
    assert warning.startswith("noisy machine: 1 of 1 times")
    assert warning.endswith("at worst by 33%: one, tight")
    (warning,) = noise_warnings(rows_of([100.0, 101.0], 0.9, 1.3))
    assert "1 of 1 ratios" in warning
    (warning,) = noise_warnings(rows_of([1.0], 1, 1, share=0.6))
    assert warning.startswith("others took up to 40% of the core's time (one, tight)")
    assert noise_warnings(rows_of([1.0], 1, 1, late=3)) == ["one, tight: 3 calls could not begin in time"]


# -- processes -------------------------------------------------------------------------------------


def test_peak_memory_is_that_of_the_process_alone() -> None:
    """A child of a large process: what the parent holds must not count, what it takes itself must."""
    code = "import sys\nfrom dfstream.benchmark.machine import peak_bytes\n" \
        "x = bytearray(int(sys.argv[1]) << 20)\nprint(peak_bytes())"  # fmt: skip
    held = np.ones(400 << 17)  # 400 MiB
    small, large = (
        int(subprocess.run([sys.executable, "-c", code, mib], capture_output=True, check=True).stdout)
        for mib in ("0", "200")
    )
    assert held[-1] == 1
    assert small < 150 << 20
    assert 190 << 20 < large - small < 210 << 20


def test_a_child_enhances_a_hop() -> None:
    found = first_hop("bundled", Configuration(ORT, "incremental", 2))
    assert found.seconds > 0
    assert found.peak_bytes is None or 30 << 20 < found.peak_bytes < 1 << 30


def test_a_child_that_fails_tells_why(tmp_path: Path) -> None:
    with pytest.raises(DfstreamError, match=r"ort-cpu incremental: .*none") as caught:
        first_hop(str(tmp_path / "none"), Configuration(ORT, "incremental"))
    assert "\n" not in str(caught.value)
    assert last_line("") == "it ended without a word"


@pytest.mark.skipif(os.name == "nt", reason="needs an interpreter that is a script")
def test_a_child_that_dies_after_its_hop_is_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "python"
    fake.write_text(f"#!{sys.executable}\nprint('hop\\n7')\nraise SystemExit('out of memory')\n")
    fake.chmod(0o755)
    monkeypatch.setattr("dfstream.benchmark.children.sys", SimpleNamespace(executable=str(fake)))
    with pytest.raises(DfstreamError, match="ort-cpu incremental: out of memory"):
        first_hop("bundled", Configuration(ORT, "incremental"))


@pytest.mark.slow
def test_starting_with_and_without_compiled_kernels() -> None:
    told: list[str] = []
    found = measure_start("bundled", [Configuration(ORT, "incremental")], 1, told.append)
    assert told == ["interpreter", "import", "help", "first hop, ort-cpu incremental"]
    first = found["first_hop"]["ort-cpu incremental"]
    # ten and more kernels are written into a folder that was empty, and none is left elsewhere
    assert first["kernels_compiled"] >= 5
    assert first["fresh_cache_s"] > first["warm_cache"]["median_s"]
    assert found["interpreter"]["median_s"] < found["help"]["median_s"] + found["import"]["median_s"]


def test_cpu_and_versions_are_told() -> None:
    told = environment(None)
    assert told["cpu"]
    assert {"dfstream", "numpy", "numba", "onnxruntime", "python"} <= {*told["versions"]}
    assert told["date"].endswith("+00:00")
