"""The page in a real browser, without a window: the sound it makes, its keys, its errors, its microphone."""

import json
import re
import shutil
import threading

import numpy as np
import pytest
import soundfile
import soxr

from conftest import ROOT
from dfstream import Stream, demo
from programs import JS, node, run_program, snr, write_goldens

pytestmark = pytest.mark.slow

#: What a page and `Stream` may differ in: sums in another order, and 24 bits.
LEAST_SNR = 90

NO_LIMIT = 41


@pytest.fixture(scope="module")
def url(bundled):
    node("onnxruntime-web")
    with demo.serving(demo.site(bundled, JS / "node_modules" / "onnxruntime-web" / "dist")) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield demo.address(server)
        server.shutdown()


@pytest.fixture
def drive(url, tmp_path):
    """Let a browser do what a scenario of `js/browser/drive.js` says; return what it saw."""
    program = node("playwright-core")
    browser = shutil.which("chromium") or pytest.skip("needs a browser: apt-get install chromium")

    def run(scenario, **plan):
        plan |= {"scenario": scenario, "url": url, "browser": browser, "folder": str(tmp_path)}
        (tmp_path / "plan.json").write_text(json.dumps(plan))
        done = run_program(program, JS / "browser" / "drive.js", tmp_path / "plan.json", cwd=JS)
        assert done.returncode == 0, done.stderr
        seen = json.loads(done.stdout)
        assert seen["isolated"]
        assert not seen["wide"], "the page is wider than the window"
        assert not seen["complaints"]
        assert not seen["elsewhere"], "the page asked for something from elsewhere"
        return seen

    return run


def enhanced(model, x, **settings):
    """Enhance [n, channels] by the Python engine, aligned."""
    columns = []
    for channel in x.T:
        stream = Stream(model, mode="incremental", backend="ort-cpu", **settings)
        columns.append(np.concatenate([stream.process(channel), stream.flush()])[stream.delay_samples :])
    return np.stack(columns, 1)


def read(path):
    return soundfile.read(path, dtype="float32", always_2d=True)[0]


def test_files_come_out_as_from_the_python_engine(drive, bundled, noisy, tmp_path):
    stereo = np.stack([noisy[:96_000], -0.5 * noisy[48_000:144_000]], 1)
    soundfile.write(tmp_path / "stereo.wav", stereo, 48_000, subtype="FLOAT")
    seen = drive(
        "files",
        files=[
            {"file": str(ROOT / "examples" / "noisy.wav"), "limit": NO_LIMIT, "filter": 0, "result": "plain"},
            {"file": str(tmp_path / "stereo.wav"), "limit": 12, "filter": 0.02, "result": "limited"},
        ],
    )
    assert seen["names"] == ["noisy-enhanced.wav", "stereo-enhanced.wav"]
    assert (seen["limit"], seen["filter"]) == ("12 dB", "0.020")
    plain = snr(enhanced(bundled, noisy[:, None]), read(tmp_path / "plain"))
    limited = snr(enhanced(bundled, stereo, atten_lim_db=12, post_filter=0.02), read(tmp_path / "limited"))
    print(f"Chromium against Python: {plain:.1f} dB, with settings {limited:.1f} dB")
    assert min(plain, limited) >= LEAST_SNR


def test_goldens_come_out_as_from_the_rust_engine(drive, tmp_path):
    write_goldens(tmp_path / "goldens")
    names = sorted(path.name.removesuffix(".in.wav") for path in (tmp_path / "goldens").glob("*.in.wav"))
    files = [{"file": str(tmp_path / "goldens" / f"{name}.in.wav"), "result": name} for name in names]
    drive("files", files=[{**file, "limit": NO_LIMIT, "filter": 0} for file in files])
    for name in names:
        # without its delay, the golden ends before the signal does
        wanted = read(tmp_path / "goldens" / f"{name}.out.wav")[1440:]
        ratio = snr(wanted, read(tmp_path / name)[: len(wanted)])
        print(f"Chromium against Rust, {name}: {ratio:.1f} dB")
        assert ratio >= LEAST_SNR


def test_other_rates_are_converted_by_the_browser(drive, bundled, noisy, tmp_path):
    slow = soxr.resample(noisy, 48_000, 16_000, quality="VHQ")
    soundfile.write(tmp_path / "slow.flac", slow, 16_000)
    file = {"file": str(tmp_path / "slow.flac"), "limit": NO_LIMIT, "filter": 0, "result": "out"}
    drive("files", files=[file])
    found, wanted = read(tmp_path / "out"), enhanced(bundled, soxr.resample(slow, 16_000, 48_000)[:, None])
    length = min(len(found), len(wanted))
    assert abs(len(found) - len(wanted)) <= 1
    # resamplers differ; what was said does not
    assert snr(wanted[:length], found[:length]) > 20


def test_the_example_is_heard_and_seen(drive):
    seen = drive("playing")
    assert seen["playing"]
    assert seen["paused"]
    assert re.fullmatch(r"0:0\d / 0:06", seen["time"])
    assert re.fullmatch(r"0:0[45] / 0:06", seen["sought"])
    assert 0 < float(seen["load"]) < 100
    assert -16 < float(seen["lsnr"]) < 36
    assert int(seen["delay"].removesuffix(" ms")) >= 70  # a buffer of 40 ms and the model's 30
    assert seen["heard"] == "figure-before"
    before, after = seen["colours"]
    assert before > after + 5, "noise is bright"


def test_keys_and_drops_reach_everything(drive):
    seen = drive("keyboard")
    order = [name for name in seen["order"] if name]
    assert order[:7] == ["theme", "example", "file", "microphone", "play", "seek", "hear-after"]
    assert {"download", "limit", "filter", "buffer"} <= set(order)
    assert (seen["limit"], seen["spoken"]) == ("40 dB", "40 dB")
    assert seen["before"]
    assert seen["after"]
    assert seen["label"] == "Play"
    assert not seen["curtain"]
    assert seen["theme"] == "light"


def test_wrong_files_are_refused_in_words(drive, tmp_path):
    (tmp_path / "text.wav").write_text("no sound at all")
    (tmp_path / "cut.wav").write_bytes((ROOT / "examples" / "noisy.wav").read_bytes()[:40])
    soundfile.write(tmp_path / "empty.wav", np.zeros(0, np.float32), 48_000)
    files = [str(tmp_path / name) for name in ("text.wav", "cut.wav", "empty.wav")]
    seen = drive("wrong", files=files)
    for error, name in zip(seen["errors"], ("text.wav", "cut.wav", "empty.wav"), strict=True):
        assert error.startswith(name)
    assert seen["errors"][2] == "empty.wav holds no sound"
    assert (seen["name"], seen["role"]) == ("example.wav", "alert")


def test_a_failure_of_the_worker_is_said(drive):
    assert drive("failing")["error"] == "the runtime is out of memory"


def test_a_refused_microphone_is_said(drive):
    seen = drive("refused")
    assert "microphone" in seen["error"].lower()
    assert seen["pressed"] != "true"


@pytest.mark.parametrize("width", [360, 768])
def test_fits_other_windows(drive, width):
    drive("screenshot", width=width, height=800, seconds=0.5)


def test_the_microphone_for_a_minute(drive, bundled, noisy, tmp_path):
    """Every gap is counted, and what was heard is what the Python engine makes of what was recorded."""
    soundfile.write(tmp_path / "speech.wav", np.tile(noisy, 11), 48_000, subtype="PCM_16")
    seen = drive("microphone", seconds=58, held=600, microphone=str(tmp_path / "speech.wav"))
    gaps = {name: [int(n) for n in re.findall(r"\d+", seen[name])] for name in ("steady", "held")}
    # the Worker was held up for longer than the buffer lasts: that must be seen, as long as it was
    assert gaps["held"][0] > gaps["steady"][0]
    before = gaps["steady"][1] if gaps["steady"][0] else 0
    assert gaps["held"][1] - before >= 600 - 40 - 10
    recorded, heard = read(tmp_path / "recorded.wav"), read(tmp_path / "heard.wav")
    assert len(recorded) == len(heard) >= 55 * 48_000
    assert np.sqrt(np.mean(recorded**2)) > 1e-3, "silence proves nothing"
    ratio = snr(enhanced(bundled, recorded), heard)
    print(f"a minute of the microphone: {ratio:.1f} dB, underruns {seen['steady']}")
    assert ratio >= LEAST_SNR
