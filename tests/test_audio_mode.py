"""The mode audio-graph: the laws of streams, what it refuses, its files, its commands."""

import json

import numpy as np
import onnx
import pytest
import soundfile
from dfstream.patches import audio_analysis
from hypothesis import given, settings
from hypothesis import strategies as st

from dfstream import Stream, StreamPool
from dfstream.backends.base import find_backend
from dfstream.cli import _run
from dfstream.errors import UnsupportedGraph, UsageError, VerifyFailed
from dfstream.model import Model
from dfstream.modes.audio_graph import AudioGraphEngine
from dfstream.patching import patch_model
from dfstream.snapshot import Snapshot
from dfstream.verify import serves

MODE = "audio-graph"
FILES = [f"dfstream_audio_{form}.{kind}" for form in ("hop", "block") for kind in ("onnx", "json")]

#: Largest difference from the mode incremental that another summation order explains.
ROUNDING = 3e-5


@pytest.fixture
def model(synthetic_model):
    return synthetic_model("wideband16k")


def stream_of(model, **options):
    return Stream(model, **{"mode": MODE, "sample_rate": model.config.sample_rate, **options})


def signal(samples, channels=1, seed=4):
    x = np.random.default_rng(seed).standard_normal((samples, channels), np.float32) / 10
    return x[:, 0] if channels == 1 else x


def joined(stream, x, sizes=()):
    parts, start = [], 0
    for size in (*sizes, len(x)):
        parts.append(stream.process(x[start : start + size]))
        start += size
    return np.concatenate([*parts, stream.flush()])


# -- laws of streams -------------------------------------------------------------------------------------


@settings(max_examples=15)
@given(
    sizes=st.lists(st.integers(0, 900), max_size=12),
    options=st.fixed_dictionaries(
        {
            "channels": st.sampled_from([1, 2]),
            "block_frames": st.sampled_from([1, 3]),
            "same_length": st.booleans(),
            "skip_silence": st.booleans(),
        }
    ),
)
def test_any_cut_gives_the_same_bits(synthetic_model, sizes, options):
    model, x = synthetic_model("wideband16k"), signal(6000, options["channels"])
    x[2000:3500] = 0
    whole = joined(stream_of(model, **options), x)
    assert np.array_equal(joined(stream_of(model, **options), x, sizes), whole)


@pytest.mark.parametrize("block_frames", [1, 4])
def test_reset_is_a_fresh_stream(model, block_frames):
    x, stream = signal(4000), stream_of(model, block_frames=block_frames, post_filter=0.02)
    want = joined(stream, x)
    stream.reset()
    assert np.array_equal(joined(stream, x), want)
    assert np.array_equal(joined(stream_of(model, block_frames=block_frames, post_filter=0.02), x), want)


@pytest.mark.parametrize("block_frames", [1, 4])
def test_snapshots_continue_bit_for_bit(model, block_frames):
    x = signal(6000, 2)
    stream = stream_of(model, channels=2, block_frames=block_frames, atten_lim_db=12)
    stream.process(x[:2345])
    kept = Snapshot.from_bytes(stream.snapshot().to_bytes())
    assert {name for name in kept.arrays if not name.startswith("stream/")} == {"state"}
    twin = stream.clone()
    want = [stream.process(x[2345:]), stream.lsnr, stream.flush()]
    late = stream_of(model, channels=2, block_frames=block_frames)
    late.restore(kept)
    for other in (twin, late):
        got = [other.process(x[2345:]), other.lsnr, other.flush()]
        assert all(np.array_equal(a, b) for a, b in zip(got, want, strict=True))


def test_a_snapshot_is_of_its_mode(model):
    with pytest.raises(UsageError, match="mode is"):
        stream_of(model).restore(stream_of(model, mode="incremental", backend="ort-cpu").snapshot())


@pytest.mark.parametrize("name", ["dfn3", "dfn2", "dfn2-ll"])
@pytest.mark.parametrize("block_frames", [1, 5])
def test_channels_are_streams(synthetic_model, name, block_frames):
    """The post-filter too: libDF leaves a few bins of the last channel alone, here it does of each."""
    model, x = synthetic_model(name), signal(20 * 480, 3)
    options = {"block_frames": block_frames, "post_filter": 0.05}
    y = joined(stream_of(model, channels=3, **options), x)
    for channel in range(3):
        alone = joined(stream_of(model, **options), x[:, channel])
        np.testing.assert_allclose(y[:, channel], alone, atol=ROUNDING)


@pytest.mark.parametrize("block_frames", [1, 5])
@pytest.mark.parametrize("name", ["dfn3", "dfn2-ll", "bundled"])
def test_settings_that_change_while_streaming(synthetic_model, bundled, name, block_frames):
    model = bundled if name == "bundled" else synthetic_model(name)
    x, hop = signal(60 * model.config.hop_size), model.config.hop_size
    streams = [
        stream_of(model, mode=mode, backend="ort-cpu", block_frames=block_frames)
        for mode in (MODE, "incremental")
    ]
    ys = []
    for stream in streams:
        parts = [stream.process(x[: 20 * hop])]
        stream.atten_lim_db, stream.post_filter = 6, 0.05
        parts.append(stream.process(x[20 * hop : 40 * hop]))
        stream.atten_lim_db, stream.post_filter = None, 0
        parts += [stream.process(x[40 * hop :]), stream.flush()]
        ys.append(np.concatenate(parts))
    np.testing.assert_allclose(ys[0], ys[1], atol=ROUNDING)
    plain = joined(stream_of(model, block_frames=block_frames), x)
    assert np.abs(plain - ys[0]).max() > 1e-3


@pytest.mark.parametrize("block_frames", [1, 3])
def test_silence_is_skipped_as_ever(synthetic_model, block_frames):
    model, x = synthetic_model("dfn3"), signal(30 * 480, 2)
    x[5 * 480 : 12 * 480] = x[20 * 480 : 21 * 480] = 0
    options = {"channels": 2, "block_frames": block_frames, "skip_silence": True}
    ours, theirs = (stream_of(model, mode=m, backend="ort-cpu", **options) for m in (MODE, "incremental"))
    np.testing.assert_allclose(ours.process(x), theirs.process(x), atol=ROUNDING)
    np.testing.assert_allclose(ours.lsnr, theirs.lsnr, atol=2e-3)
    assert (ours.lsnr == -15).sum() == 8


def test_blocks_longer_than_one_call(model):
    """The work for running means grows with the square of the hops: long blocks are several calls."""
    x = signal(1300 * model.config.hop_size)
    long, short = (stream_of(model, block_frames=frames) for frames in (1300, 100))
    y, lsnr = long.process(x), long.lsnr
    assert len(lsnr) == 1300
    np.testing.assert_allclose(y, short.process(x), atol=ROUNDING)


def test_lsnr_and_other_rates(synthetic_model):
    model = synthetic_model("dfn3")
    ours, theirs = (
        Stream(model, mode=mode, backend="ort-cpu", sample_rate=16_000) for mode in (MODE, "incremental")
    )
    x = signal(8000)
    np.testing.assert_allclose(joined(ours, x), joined(theirs, x), atol=ROUNDING)
    assert ours.delay_samples == theirs.delay_samples
    assert np.isfinite(ours.lsnr_db)


# -- what it does not do ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"min_db_thresh": -10}, "thresholds"),
        ({"max_db_erb_thresh": 30}, "thresholds"),
        ({"parity": "python"}, "parity 'python'"),
        ({"channels": 2, "channel_mask": "max"}, "channel_mask 'max'"),
        ({"post_filter_kind": "mask"}, "post-filter on the mask"),
    ],
)
def test_refuses_in_one_line(model, options, what):
    with pytest.raises(UsageError, match=what) as caught:
        stream_of(model, **options)
    assert str(caught.value).startswith("the mode audio-graph has no ")
    assert "\n" not in str(caught.value)
    assert caught.value.hint == "use the mode incremental"


def test_a_mask_shared_by_one_channel_is_its_own(model):
    stream_of(model, channel_mask="max")


@pytest.mark.parametrize("backend", ["numba", "mlpackage-reference"])
def test_backends_that_run_something_else_refuse(model, backend):
    with pytest.raises(UnsupportedGraph, match="runs the mode incremental, not audio-graph"):
        stream_of(model, backend=backend)


def test_a_pool_refuses(model):
    with pytest.raises(UsageError, match="inside a larger graph") as caught:
        StreamPool(model, mode=MODE)
    assert caught.value.hint == "use the mode incremental"


def test_refuses_a_graph_of_another_kind(model):
    class Foreign:
        states = {"h0": (1, "B", 8)}  # noqa: RUF012

    with pytest.raises(UnsupportedGraph, match="no packed state"):
        AudioGraphEngine(Foreign(), 160, stream_of(model)._options)


def test_refuses_results_of_other_shapes(model):
    class Odd:
        states = {"state": ("B", 8)}  # noqa: RUF012

        def run(self, feeds):
            return {"enhanced": feeds["audio"][:, 1:], "lsnr": np.zeros((1, 1)), "state_out": feeds["state"]}

    engine = AudioGraphEngine(Odd(), 160, stream_of(model)._options)
    with pytest.raises(UnsupportedGraph, match=r"audio of the shape \(1, 159\)"):
        engine.process(np.zeros((1, 160), np.float32))


def test_a_single_hop_has_a_graph_of_its_own(model):
    opened = {}
    for frames in (1, 2):
        backend = find_backend("ort-cpu")
        recipe = backend.choose(model, stream_of(model)._mode_class.recipe(), frames == 1)
        opened[frames] = recipe.stems
    assert opened == {1: ("dfstream_audio_hop",), 2: ("dfstream_audio_block",)}


# -- files ---------------------------------------------------------------------------------------------


@pytest.fixture
def cli(capsys):
    def run(*args):
        code = _run([str(arg) for arg in args])
        return code, capsys.readouterr().out

    return run


@pytest.mark.parametrize("written", ["audio", "audio-graph"])
def test_patch_writes_both_graphs_and_their_descriptions(cli, synthetic_folder, tmp_path, written):
    args = ("patch", synthetic_folder("dfn2-ll"), "-o", tmp_path, "--mode", written)
    code, out = cli(*args)
    assert code == 0
    assert out.startswith("audio-graph:\n")
    assert "comparisons with streams: lsnr " in out
    assert "SNR at least " in out
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["config.ini", *FILES])
    for form in ("hop", "block"):
        proto = onnx.load(tmp_path / f"dfstream_audio_{form}.onnx")
        properties = {entry.key: entry.value for entry in proto.metadata_props}
        beside = json.loads((tmp_path / f"dfstream_audio_{form}.json").read_text())
        assert beside == json.loads(properties["dfstream.audio"])
    code, out = cli(*args)
    assert code == 0
    assert out.count("  unchanged ") == 4


def test_written_graphs_run_without_the_export(synthetic_model, tmp_path):
    export = synthetic_model("dfn2-ll")
    patch_model(export, tmp_path, [MODE], check=False)
    x = signal(20 * 480)
    for source in (tmp_path, tmp_path / FILES[2]):
        for frames in (1, 3):
            y = stream_of(Model.load(source), block_frames=frames).process(x)
            want = stream_of(export, block_frames=frames).process(x)
            np.testing.assert_allclose(y, want, atol=ROUNDING)
    with pytest.raises(UnsupportedGraph, match="at hand is only"):
        stream_of(Model.load(tmp_path), mode="incremental", backend="ort-cpu")


def test_half_precision(bundled, tmp_path):
    (exact,) = patch_model(bundled, tmp_path, [MODE])
    (half,) = patch_model(bundled, tmp_path, [MODE], precision="fp16")
    assert set(half.files) == {name.replace(".", "_fp16.") for name in FILES}
    sizes = [(tmp_path / name).stat().st_size for name in (FILES[0], next(iter(half.files)))]
    assert sizes[1] < 0.55 * sizes[0]
    worst = [min(row.snr_db for row in result.checks) for result in (exact, half)]
    assert worst[0] > 90 > worst[1] > 30
    with pytest.raises(UsageError, match=r"no graphs of precision fp16 .* mode incremental"):
        patch_model(bundled, tmp_path, ["incremental"], precision="fp16")
    y, want = (stream_of(bundled, precision=p).process(signal(9600)) for p in ("fp16", "float32"))
    assert 0 < np.abs(y - want).max() < 0.01


def test_a_wrong_graph_is_not_written(synthetic_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(audio_analysis, "LEVEL_RANGE_DB", np.float32(41))
    with pytest.raises(VerifyFailed, match="audio"):
        patch_model(Model.load(synthetic_folder("dfn2-ll")), tmp_path / "out", [MODE])
    assert not (tmp_path / "out").exists()


def test_a_foreign_description_is_not_replaced(synthetic_model, tmp_path):
    (tmp_path / FILES[1]).write_text('{"mine": true}')
    with pytest.raises(UsageError, match="dfstream did not write it"):
        patch_model(synthetic_model("dfn2-ll"), tmp_path, [MODE], check=False)
    assert [path.name for path in tmp_path.iterdir()] == [FILES[1]]
    patch_model(synthetic_model("dfn2-ll"), tmp_path, [MODE], check=False, force=True)
    (tmp_path / FILES[1]).write_text((tmp_path / FILES[1]).read_text().replace("0", "1"))
    (again,) = patch_model(synthetic_model("dfn2-ll"), tmp_path, [MODE], check=False)
    assert again.files[FILES[1]] == "written"


# -- commands --------------------------------------------------------------------------------------------


def test_run_and_verify(cli, synthetic_folder, tmp_path):
    folder = synthetic_folder("dfn2-ll")
    x = signal(48_000, 2)
    soundfile.write(tmp_path / "x.wav", x, 48_000, subtype="FLOAT")
    for mode in (MODE, "audio", "incremental"):
        args = ("--model", folder, "--mode", mode, "--backend", "ort-cpu")
        assert cli("run", tmp_path / "x.wav", tmp_path / f"{mode}.wav", *args)[0] == 0
    ours, short, theirs = (
        soundfile.read(tmp_path / f"{mode}.wav", dtype="float32")[0]
        for mode in (MODE, "audio", "incremental")
    )
    assert np.array_equal(ours, short)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    code, out = cli("verify", "--mode", MODE)
    assert code == 0
    assert " audio-graph " in out


def test_run_on_a_folder(cli, synthetic_folder, tmp_path):
    """Files that would share a pool have streams of their own."""
    (tmp_path / "in").mkdir()
    for name in ("a", "b", "c"):
        soundfile.write(tmp_path / "in" / f"{name}.wav", signal(20_000), 48_000, subtype="FLOAT")
    args = ("--model", synthetic_folder("dfn2-ll"), "--mode", MODE)
    assert cli("run", tmp_path / "in", tmp_path / "out", "--jobs", 1, *args)[0] == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.wav", "b.wav", "c.wav"]


def test_bench(cli, tmp_path):
    target = tmp_path / "report.json"
    few = ("--rounds", 2, "--seconds", 0.05, "--no-start", "--no-file", "--no-paced", "--no-streams")
    args = ("--mode", "audio", "--mode", "incremental", "--backend", "ort-cpu", "--block", 1, "--block", 4)
    assert cli("bench", *few, *args, "--json", target)[0] == 0
    rows = json.loads(target.read_text())["rows"]
    assert {(row["mode"], row["block"]) for row in rows} == {
        (mode, block) for mode in (MODE, "incremental") for block in (1, 4)
    }


def test_goldens_that_it_cannot_serve_are_left_out():
    class Case:
        def __init__(self, max_df):
            self.params = {"min_db_thresh": -15.0, "max_db_erb_thresh": 35.0, "max_db_df_thresh": max_df}

    assert serves(MODE, Case(35.0))
    assert not serves(MODE, Case(20.0))
    assert serves("incremental", Case(20.0))
