"""The verb doctor: what it sees, what it makes of what is wrong, and that nothing stops it."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import llvmlite.binding
import numpy as np
import pytest

from dfstream import catalog, diskcache, hardware, registry, verify
from dfstream.backends.base import AUTO, backend_names, pick_backend
from dfstream.benchmark import timing
from dfstream.cli import _run
from dfstream.cli import doctor as command
from dfstream.doctor import examination, installation, network, places
from dfstream.doctor.examination import PROBES, Examination, examine
from dfstream.dsp import _kernelcache
from dfstream.errors import BackendUnavailable, DfstreamError, ModelError, VerifyFailed
from dfstream.model import Model
from dfstream.modes.base import find_mode
from dfstream.patching import patch_model
from dfstream.warming import kept_kernels, kernel_modules, warm_kernels

ROOT = Path(__file__).resolve().parent.parent
NEEDED = ("model", "backends", "self-test", "kernels")


@pytest.fixture(autouse=True)
def _at_ease(monkeypatch, bundled):
    """Load the model once, and let no test wait for the pace of audio."""
    load = Model.load
    monkeypatch.setattr(Model, "load", lambda source=None: bundled if source == "bundled" else load(source))
    monkeypatch.setattr(network, "_PACED_HOPS", 5)


@pytest.fixture
def case(bundled):
    return Examination(model=bundled)


@pytest.fixture
def unavailable(monkeypatch):
    def make(*names):
        def refuse(self, **_options):
            raise BackendUnavailable(f"{self.name}: not on this machine", hint="buy another")

        for name in names:
            monkeypatch.setattr(registry.find("backend", name), "__init__", refuse)

    return make


def only(case):
    (finding,) = case.findings
    assert finding.what.isprintable()
    assert finding.advice, "a finding says what to do"
    return finding


# -- all of it ----------------------------------------------------------------------------------------------


def test_a_healthy_machine():
    told = []
    case = examine(progress=told.append)
    report = case.plain()
    assert json.loads(json.dumps(report)) == report, "plain values"
    assert told == [*report["sections"]] == [*PROBES]
    assert not any("error" in values for values in report["sections"].values())
    assert (case.exit_code, [f for f in case.findings if f.exit_code]) == (0, [])
    parity, speed = (report["sections"]["self-test"][key] for key in ("parity", "speed"))
    assert parity["passed"] is True
    assert parity["snr_db"] > verify.EXPORT_SNR_DB
    assert speed["hop_ms"] == 10
    for times in (speed["back_to_back"], speed["paced"]):
        assert 0 < times["p50_ms"] <= times["p99_ms"]
    assert report["sections"]["kernels"]["missing"] == []


def test_quick_compiles_nothing_and_tests_nothing(tmp_path):
    # variables that only tests know would be findings
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DFSTREAM_")}
    environment["DFSTREAM_CACHE"] = str(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "dfstream", "doctor", "--quick", "--json"],
        capture_output=True, text=True, timeout=120, env=environment,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert not (tmp_path / "kernels").exists()
    assert report["sections"]["self-test"] == {"skipped": "quick"}
    assert report["sections"]["backends"]["loaded"] is False
    assert report["sections"]["backends"]["auto"] == "numba"
    assert report["sections"]["kernels"]["kept"] == 0
    (finding,) = report["findings"]
    assert (finding["level"], finding["advice"]) == ("note", "dfstream warm")


def test_quick_loads_no_graph(monkeypatch, bundled):
    def refuse(*_args, **_options):
        raise AssertionError("a graph was loaded")

    monkeypatch.setattr(type(bundled), "open", refuse)
    assert examine(quick=True).sections["backends"]["auto"] == "numba"
    assert not any(tried["usable"] for tried in examine().sections["backends"]["tried"])


@pytest.mark.parametrize("section", PROBES)
@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("first\nsecond"),
        ImportError("no module", name="numba.core"),
        OSError(5, "broken"),
        ModelError("no", hint="h"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_probe_that_fails_is_a_finding_and_the_others_go_on(section, error, monkeypatch):
    def fail(_case):
        raise error

    for name in PROBES:
        monkeypatch.setitem(PROBES, name, fail if name == section else lambda _case: {"fine": True})
    case = examine()
    assert [name for name in PROBES if case.sections[name] != {"fine": True}] == [section]
    finding = only(case)
    assert case.sections[section] == {"error": finding.what}
    assert finding.section == section
    expected = getattr(error, "exit_code", 1) if section in NEEDED else 0
    assert (finding.exit_code, case.exit_code) == (expected, expected)
    assert finding.level == ("problem" if section in NEEDED else "warning")
    if isinstance(error, DfstreamError):
        assert (finding.what, finding.advice) == ("no", "h")
    if isinstance(error, ImportError):
        assert finding.advice == "pip install --force-reinstall numba"


def test_the_first_that_decides_gives_the_exit_code():
    case = Examination()
    case.find("cache", "problem", "a", "b")
    case.find("backends", "problem", "a", "b", exit_code=4)
    case.find("self-test", "problem", "a", "b", exit_code=6)
    case.find("machine", "warning", "a", "b")
    assert case.exit_code == 4
    levels = [finding["level"] for finding in case.plain()["findings"]]
    assert levels == ["problem"] * 3 + ["warning"]


# -- machine ------------------------------------------------------------------------------------------------


def test_the_machine(case):
    found = installation.machine(case)
    assert all(found[name] for name in ("system", "architecture", "processor", "python", "executable"))
    assert 0 < found["cores"]["usable"] <= found["cores"]["logical"]
    assert found["cores"]["physical"] is None or 0 < found["cores"]["physical"] <= found["cores"]["logical"]
    assert found["memory_bytes"] is None or found["memory_bytes"] > 1 << 28


def test_a_processor_without_avx2(case, monkeypatch):
    monkeypatch.setattr(hardware, "processor_features", lambda: {"avx2": False})
    installation.machine(case)
    assert "AVX2" in only(case).what


@pytest.mark.parametrize(("machine", "neon"), [("arm64", True), ("aarch64", True), ("x86_64", None)])
def test_features_that_the_compiler_cannot_ask_for(machine, neon, monkeypatch):
    def refuse():
        raise RuntimeError("failed to get host cpu features")

    monkeypatch.setattr(hardware.platform, "machine", lambda: machine)
    monkeypatch.setattr(llvmlite.binding, "get_host_cpu_features", refuse)
    assert hardware.processor_features().get("neon") is neon


def test_features_are_those_of_the_compiler(monkeypatch):
    monkeypatch.setattr(hardware.platform, "machine", lambda: "AMD64")
    monkeypatch.setattr(llvmlite.binding, "get_host_cpu_features", lambda: {"avx2": True, "mmx": True})
    found = hardware.processor_features()
    assert found["avx2"]
    assert not found["avx512f"]
    assert "mmx" not in found


@pytest.fixture
def mac(monkeypatch, tmp_path):
    """Pretend to be Apple silicon: what it says by sysctl, and no files of Linux."""
    answers = {
        "machdep.cpu.brand_string": "Apple M9", "hw.physicalcpu": "12", "hw.memsize": "17179869184",
        "sysctl.proc_translated": "1",
    }  # fmt: skip

    def run(args, **_options):
        assert args[:2] == ["/usr/sbin/sysctl", "-n"]
        known = args[2] in answers
        return SimpleNamespace(returncode=int(not known), stdout=answers.get(args[2], "") + "\n")

    monkeypatch.setattr(hardware.sys, "platform", "darwin")
    monkeypatch.setattr(hardware.subprocess, "run", run)
    monkeypatch.setattr(hardware, "Path", lambda _path: tmp_path / "none")
    monkeypatch.setattr(hardware.os, "sysconf", lambda _name: (_ for _ in ()).throw(ValueError()))
    return answers


def test_a_mac(mac, case):
    found = installation.machine(case)
    assert (found["processor"], found["cores"]["physical"]) == ("Apple M9", 12)
    assert found["memory_bytes"] == 16 << 30
    assert "Rosetta" in only(case).what
    mac.clear()
    assert (hardware.physical_cores(), hardware.memory_bytes(), hardware.under_rosetta()) == (
        None,
        None,
        False,
    )


def test_a_mac_that_answers_nothing(mac, monkeypatch):  # noqa: ARG001
    def run(*_args, **_options):
        raise subprocess.TimeoutExpired("sysctl", 10)

    monkeypatch.setattr(hardware.subprocess, "run", run)
    assert (hardware.physical_cores(), hardware.memory_bytes(), hardware.under_rosetta()) == (
        None,
        None,
        False,
    )


# -- packages -----------------------------------------------------------------------------------------------


@pytest.fixture
def asks_for(monkeypatch):
    def make(*requirements):
        monkeypatch.setattr(metadata, "requires", lambda _name: [*requirements])

    return make


def test_all_that_is_needed_is_installed(case):
    entries = {entry["name"]: entry for entry in installation.packages(case)["required"]}
    assert {"numpy", "numba", "onnxruntime", "matplotlib", "packaging"} <= set(entries)
    assert entries["matplotlib"]["extra"] == "plot"
    assert not {"pytest", "hypothesis"} & set(entries)
    assert entries["numpy"]["version"] == np.__version__
    assert case.findings == []


def test_a_missing_package(case, asks_for):
    asks_for("no-such-package>=2.1")
    (entry,) = installation.packages(case)["required"]
    assert (entry["version"], entry["fits"]) == (None, False)
    finding = only(case)
    assert (finding.level, finding.advice) == ("problem", "pip install -U 'no-such-package>=2.1'")
    assert finding.what == "no-such-package is missing: dfstream asks for no-such-package>=2.1"


def test_a_package_that_is_too_old(case, asks_for):
    asks_for("numpy>=99")
    installation.packages(case)
    assert only(case).what.startswith(f"numpy {np.__version__} does not fit")


def test_extras_are_no_findings_unless_too_old(case, asks_for):
    asks_for('no-such-package; extra == "plot"', 'numpy>=99; extra == "plot"', 'other; extra == "test"')
    missing, old = installation.packages(case)["required"]
    assert missing["advice"] == old["advice"] == "pip install -U 'dfstream[plot]'"
    assert (only(case).level, only(case).what[:5]) == ("warning", "numpy")


def test_packages_of_other_machines_are_none_of_ours(case, asks_for):
    asks_for('no-such-package; sys_platform == "another"')
    assert installation.packages(case)["required"] == []


def test_onnxruntime(case):
    found = installation.runtime(case)
    assert "CPUExecutionProvider" in found["providers"]
    assert case.findings == []


def test_onnxruntime_that_cannot_be_imported(case, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert installation.runtime(case)["providers"] == []
    assert "onnxruntime" in only(case).advice


def test_two_runtimes_at_once(case, monkeypatch):
    monkeypatch.setattr(installation, "versions", lambda _names: {"onnxruntime": "1", "onnxruntime-gpu": "1"})
    installation.runtime(case)
    assert only(case).what == "onnxruntime and onnxruntime-gpu overwrite one another's files"


# -- environment --------------------------------------------------------------------------------------------


@pytest.fixture
def variables(monkeypatch):
    for name in [name for name in os.environ if name.startswith(("DFSTREAM_", "NUMBA_"))]:
        monkeypatch.delenv(name)
    return monkeypatch.setenv


def test_variables_that_are_set(variables, case):
    assert installation.environment(case) == {}
    variables("DFSTREAM_MODELS_URL", "https://me:secret@example.org/models")
    variables("DFSTREAM_CACHE", "/tmp/somewhere")
    assert installation.environment(case) == {
        "DFSTREAM_CACHE": "/tmp/somewhere", "DFSTREAM_MODELS_URL": "https://***@example.org/models",
    }  # fmt: skip
    assert case.findings == []


def test_a_variable_that_nothing_reads(variables, case):
    variables("DFSTREAM_CAHCE", "x")
    installation.environment(case)
    assert only(case).what.startswith("DFSTREAM_CAHCE")


@pytest.mark.parametrize(("value", "findings"), [("1", 1), ("0", 0)])
def test_kernels_that_are_not_compiled(variables, case, value, findings):
    variables("NUMBA_DISABLE_JIT", value)
    installation.environment(case)
    assert len(case.findings) == findings


def test_every_variable_of_dfstream_is_known():
    folders = ("dfstream", "patches", "tests/conftest.py")
    files = [
        path
        for name in folders
        for path in ([ROOT / name] if name.endswith("py") else (ROOT / name).rglob("*.py"))
    ]
    read = {name for path in files for name in re.findall(r'"(DFSTREAM_[A-Z_]+)"', path.read_text("utf-8"))}
    assert read == set(installation.VARIABLES)


# -- cache, models, kernels ---------------------------------------------------------------------------------


def test_the_cache(case, tmp_path, monkeypatch):
    monkeypatch.setenv("DFSTREAM_CACHE", str(tmp_path / "deep" / "cache"))
    found = places.cache(case)
    assert found["writable"]
    assert found["kinds"]["kernels"] == {"files": 0, "bytes": 0}
    assert [*tmp_path.iterdir()] == [], "looking leaves nothing behind"
    diskcache.Store("graphs", "tag").put("name", "key", b"12345")
    assert places.cache(case)["kinds"]["graphs"] == {"files": 1, "bytes": 32 + 5}
    assert case.findings == []


def test_a_cache_that_cannot_be_written(case, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("DFSTREAM_CACHE", str(tmp_path / "file" / "cache"))
    assert places.cache(case)["writable"] is False
    assert only(case).advice == "set DFSTREAM_CACHE to a folder that can be written"


def test_a_cache_without_a_place(case, monkeypatch):
    def nowhere():
        raise RuntimeError("no home")

    monkeypatch.setattr(diskcache, "cache_root", nowhere)
    assert places.cache(case) == {"folder": None, "writable": False}
    assert "no home" in only(case).what


def test_a_full_disk(case, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=3_000_000))
    places.cache(case)
    assert "only 3 MB" in only(case).what


def test_models(case):
    found = places.models(case)
    assert [*found] == [known.name for known in catalog.KNOWN]
    assert found["bundled"]["status"] == "bundled"
    assert case.findings == []


def test_a_damaged_model(case):
    path = catalog.cache_path(catalog.get("dfn2-ll"))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"torn")
    assert places.models(case)["dfn2-ll"] == {
        "variant": "DeepFilterNet2 LL", "status": "damaged copy in the cache", "path": None,
    }  # fmt: skip
    assert only(case).advice == "dfstream models pull dfn2-ll"


def test_no_bundled_model(case, monkeypatch, tmp_path):
    monkeypatch.setattr(catalog, "bundled_dir", lambda: tmp_path / "none")
    places.models(case)
    assert only(case).level == "problem"


def test_kernels_are_counted_without_compiling(case, monkeypatch, tmp_path):
    warm_kernels(kernel_modules())
    assert set(kept_kernels().names) == {
        _kernelcache.full_name(kernel) for kernel in _kernelcache.kernels_in(kernel_modules())
    }
    assert places.kernels(case)["missing"] == []
    assert case.findings == []
    (one, *_) = Path(kept_kernels().folder).iterdir()
    folder = shutil.copytree(kept_kernels().folder, tmp_path / "kernels" / Path(kept_kernels().folder).name)
    (folder / one.name).unlink()
    monkeypatch.setenv("DFSTREAM_CACHE", str(tmp_path))
    assert places.kernels(case)["missing"] == [one.name.rpartition("-")[0]]
    assert only(case).advice == "dfstream warm"


def test_sources_that_cannot_be_read(case, monkeypatch):
    monkeypatch.setattr(_kernelcache, "store_here", lambda: None)
    assert places.kernels(case)["folder"] is None
    assert "sources" in only(case).advice


# -- model and backends -------------------------------------------------------------------------------------


def test_an_unknown_model():
    case = examine("no-such-model", quick=True)
    assert case.exit_code == 2
    assert case.sections["backends"] == {"skipped": "no model"}


def test_a_model_that_cannot_be_loaded(tmp_path):
    (tmp_path / "enc.onnx").write_bytes(b"no graph")
    case = examine(str(tmp_path))
    assert case.exit_code == ModelError.exit_code
    assert case.sections["self-test"] == {"skipped": "nothing to test"}


@pytest.mark.parametrize("missing", [(), ("numba",)])
def test_auto_is_what_a_stream_takes(missing, case, unavailable, bundled):
    unavailable(*missing)
    found = network.backends(case)
    recipe = find_mode("incremental").recipe()
    assert found["auto"] == pick_backend(AUTO, bundled, recipe, single_frame=True).name
    assert sorted(tried["name"] for tried in found["tried"]) == backend_names()
    assert len(case.findings) == len(missing)


def test_the_reason_of_a_backend_that_cannot_run_here(case, unavailable):
    unavailable("numba")
    tried = {tried["name"]: tried for tried in network.backends(case)["tried"]}
    assert (tried["numba"]["usable"], tried["numba"]["hint"]) == (False, "buy another")
    assert tried["ort-cpu"]["usable"]
    finding = only(case)
    assert (finding.level, finding.advice) == ("note", "buy another")
    assert finding.what == "numba would come first: numba: not on this machine"


def test_no_backend_works(unavailable):
    unavailable(*backend_names())
    case = examine()
    assert case.exit_code == 4
    (finding,) = [finding for finding in case.findings if finding.exit_code]
    assert finding.what == "no backend runs bundled: ort-cpu: not on this machine"
    assert case.sections["self-test"] == {"skipped": "nothing to test"}


def test_a_backend_that_breaks_is_no_end(monkeypatch):
    def broken(*_args, **_options):
        raise MemoryError("too much")

    monkeypatch.setattr(registry.find("backend", "numba"), "choose", broken)
    case = examine()
    tried = {tried["name"]: tried for tried in case.sections["backends"]["tried"]}
    assert tried["numba"]["reason"] == "numba: MemoryError: too much"
    (problem,) = (found for found in case.findings if found.level == "problem")
    assert problem.section == "backends", "auto fails with it"
    assert case.sections["backends"]["auto"] is None
    assert (case.exit_code, case.backend.name) == (4, "ort-cpu")


def test_a_fault_that_auto_does_not_meet(monkeypatch):
    def broken(*_args, **_options):
        raise MemoryError("too much")

    monkeypatch.setattr(registry.find("backend", "ort-cpu"), "choose", broken)
    case = examine(quick=True)
    (finding,) = [finding for finding in case.findings if finding.section == "backends"]
    assert (finding.level, finding.what) == ("warning", "ort-cpu: MemoryError: too much")
    assert (case.exit_code, case.sections["backends"]["auto"]) == (0, "numba")


# -- self-test ----------------------------------------------------------------------------------------------


@pytest.fixture
def patient(case):
    network.backends(case)
    return case


def test_output_that_is_wrong(patient, monkeypatch):
    whole = verify._whole
    monkeypatch.setattr(verify, "_whole", lambda model, x: 1.0001 * whole(model, x))
    assert network.self_test(patient)["parity"]["passed"] is False
    finding = only(patient)
    assert (finding.section, finding.exit_code) == ("self-test", VerifyFailed.exit_code)
    assert patient.exit_code == 6


def test_patched_graphs_are_timed_but_not_compared(synthetic_model, tmp_path):
    patch_model(synthetic_model("dfn3"), tmp_path, ["incremental"], check=False)
    case = examine(str(tmp_path / "combined_incremental.onnx"))
    assert "skipped" in case.sections["self-test"]["parity"]
    assert case.sections["self-test"]["speed"]["paced"]["hops"] == 5
    assert case.exit_code == 0


@pytest.mark.parametrize(("p99_ms", "verdict"), [(4.9, "fine"), (6.0, "tight"), (11.0, "too slow")])
def test_live_audio_needs_time_to_spare(p99_ms, verdict, patient, monkeypatch):
    times = {"hops": 1, "p50_ms": 0.4, "p99_ms": p99_ms}
    monkeypatch.setattr(network, "_hop_times", lambda *_: times)
    speed = network.self_test(patient)["speed"]
    assert speed["verdict"] == verdict
    assert speed["times_real_time"] == pytest.approx(25)
    assert patient.exit_code == 0
    if verdict != "fine":
        assert only(patient).what.startswith(verdict)


def test_hops_are_timed_at_the_pace_of_audio(patient, monkeypatch):
    intervals, time_stretch = [], timing.time_stretch

    def watched(call, chunks, warm_up, interval_s):
        intervals.append((interval_s, len(chunks) - warm_up, {len(chunk) for chunk in chunks}))
        return time_stretch(call, chunks, warm_up, interval_s)

    monkeypatch.setattr(timing, "time_stretch", watched)
    network.self_test(patient)
    assert intervals == [(None, 250, {480}), (0.01, 5, {480})]


# -- the command --------------------------------------------------------------------------------------------


def test_every_section_can_be_shown():
    assert [*command._SECTIONS] == [*PROBES]


def test_for_people(capsys):
    assert _run(["doctor"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for section in PROBES:
        assert f"{section}\n" in out
    assert "auto takes it" in out
    assert re.search(r"live audio +real time \d+ x: (fine|tight|too slow) \(numba\)", out)
    assert "not compared" not in out


@pytest.mark.parametrize("quick", [[], ["--quick"]])
def test_as_json(capsys, quick):
    assert _run(["doctor", "--json", *quick]) == 0
    report = json.loads(capsys.readouterr().out)
    assert {*report} == {"dfstream", "quick", "sections", "findings", "exit_code"}
    assert [*report["sections"]] == [*PROBES]
    assert report["quick"] is bool(quick)


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_everything_fails(form, capsys, monkeypatch):
    def fail(_case):
        raise ZeroDivisionError("by zero")

    for name in PROBES:
        monkeypatch.setitem(PROBES, name, fail)
    assert _run(["doctor", *form]) == 1
    out, err = capsys.readouterr()
    assert err == ""
    assert "Traceback" not in out
    assert out.count("ZeroDivisionError") == 2 * len(PROBES)


def test_what_to_do_stands_below_what_is_wrong(capsys, unavailable):
    unavailable(*backend_names())
    assert _run(["doctor", "--quick"]) == 4
    out = capsys.readouterr().out
    assert (
        "findings\n  problem, backends: no backend runs bundled: ort-cpu: not on this machine\n"
        "    hint: buy another\n"
    ) in out
    assert "no: numba: not on this machine (buy another)" in out


def test_findings_are_whole_in_json():
    fields = {field.name for field in dataclasses.fields(examination.Finding)}
    case = Examination()
    case.find("cache", "note", "line\nbreak", None)
    (finding,) = case.plain()["findings"]
    assert {*finding} == fields
    assert finding["what"] == "line\\nbreak"
    assert [*command.findings_lines([finding])] == ["findings", "  note, cache: line\\nbreak"]


def test_a_model_that_is_not_there(capsys):
    assert _run(["doctor", "--quick", "--model", "nonsense"]) == 2
    assert "no model 'nonsense'" in capsys.readouterr().out
