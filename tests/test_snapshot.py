"""Saving and restoring a stream: bit for bit, whatever it was doing, and nothing else is accepted."""

import contextlib
import dataclasses
import functools
import io
import json
import pickle
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import NETWORK_MODES
from dfstream import Stream
from dfstream.errors import UsageError
from dfstream.modes.base import mode_names
from dfstream.snapshot import Snapshot

CHANNELS = 2


@functools.cache
def signal(samples=8000):
    rng = np.random.default_rng(5)
    x = 0.1 * rng.standard_normal((samples, CHANNELS), np.float32)
    x[samples // 4 : samples // 2] *= 1e-4  # some of it counts as silence
    return x


def stream_of(model, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return Stream(model, sample_rate=model.config.sample_rate, **{"channels": CHANNELS, **options})


def rest(stream, x):
    """What a stream still gives: audio, and the LSNR of each call."""
    if stream._flushed:
        return [stream.flush()]
    parts = []
    for piece in (x[:333], x[333:]):
        parts += [stream.process(piece), stream.lsnr]
    return [*parts, stream.flush(), stream.lsnr, np.array(dataclasses.astuple(stream.stats))]


def assert_same(actual, expected):
    assert len(actual) == len(expected)
    for a, b in zip(actual, expected, strict=True):
        assert np.array_equal(a, b, equal_nan=True)


@pytest.fixture
def advanced(synthetic_model):
    """A stream in the middle of something, and its snapshot."""
    stream = stream_of(synthetic_model("wideband16k"), post_filter=0.02)
    stream.process(signal()[:1234])
    return stream, stream.snapshot()


# -- continuing -----------------------------------------------------------------------------------------


@given(
    name=st.sampled_from(["wideband16k", "dfn2"]),
    split=st.integers(0, 8000),
    flushed=st.booleans(),
    options=st.fixed_dictionaries(
        {},
        optional={
            "mode": st.sampled_from(NETWORK_MODES),
            "channel_mask": st.sampled_from(["none", "max", "mean"]),
            "parity": st.sampled_from(["rust", "python"]),
            "block_frames": st.sampled_from([1, 3, 10]),
            "same_length": st.booleans(),
            "post_filter": st.sampled_from([0.0, 0.05]),
            "post_filter_kind": st.sampled_from(["spectrum", "mask"]),
            "atten_lim_db": st.sampled_from([None, 0, 12]),
            "min_db_thresh": st.sampled_from([-15, -6]),
            "max_db_erb_thresh": st.sampled_from([35, -3]),
            "max_db_df_thresh": st.sampled_from([35, -4]),
            "skip_silence": st.booleans(),
        },
    ),
)
@settings(max_examples=30)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_continues_bit_for_bit(synthetic_model, name, split, flushed, options):
    model, x = synthetic_model(name), signal()
    stream = stream_of(model, **options)
    stream.process(x[: split // 2])
    stream.process(x[split // 2 : split])
    if flushed:
        stream.flush()
    snapshot = stream.snapshot()
    stored, twin = snapshot.to_bytes(), stream.clone()
    expected = rest(stream, x[split:])

    assert_same(rest(twin, x[split:]), expected)  # untouched by what the first did meanwhile
    stream.restore(snapshot)
    assert_same(rest(stream, x[split:]), expected)
    other = stream_of(model, **options)
    other.process(x[:777])
    other.post_filter, other.atten_lim_db = 0.7, 3
    other.restore(Snapshot.from_bytes(stored))
    assert (other.post_filter, other.atten_lim_db) == (stream.post_filter, stream.atten_lim_db)
    assert_same(rest(other, x[split:]), expected)


@pytest.mark.parametrize("mode", mode_names())
def test_bundled_model(bundled, noisy, mode):
    one = Stream(bundled, mode=mode)
    one.process(noisy[:10_007])
    two = Stream(bundled, mode=mode)
    two.restore(one.snapshot())
    assert np.array_equal(one.process(noisy[10_007:20_000]), two.process(noisy[10_007:20_000]))
    assert np.array_equal(one.flush(), two.flush())


def test_a_snapshot_does_not_change(advanced):
    stream, snapshot = advanced
    before = snapshot.to_bytes()
    stream.process(signal()[1234:])
    stream.restore(snapshot)
    stream.process(signal()[1234:])
    stream.flush()
    assert snapshot.to_bytes() == before


def test_clone_is_independent(advanced):
    stream, _ = advanced
    twin, plain = stream.clone(), stream.clone()
    assert twin.post_filter == stream.post_filter
    twin.atten_lim_db = 0
    twin.process(signal())
    twin.reset()
    assert stream.atten_lim_db is None
    assert np.array_equal(stream.process(signal()[1234:]), plain.process(signal()[1234:]))


def test_settings_that_may_change_come_back(advanced):
    stream, snapshot = advanced
    expected = rest(stream.clone(), signal()[1234:])
    stream.post_filter, stream.atten_lim_db = 0.5, 6
    stream.restore(snapshot)
    assert stream.post_filter == 0.02
    assert stream.atten_lim_db is None
    assert_same(rest(stream, signal()[1234:]), expected)


def test_newest_lsnr_comes_back_the_last_calls_does_not(advanced):
    stream, snapshot = advanced
    twin = stream_of(stream.model)
    twin.restore(snapshot)
    assert twin.lsnr_db == stream.lsnr_db
    assert twin.lsnr.shape == (0,)


def test_fresh_stream(synthetic_model):
    stream = stream_of(synthetic_model("dfn3"))
    stream.restore(Snapshot.from_bytes(stream.snapshot().to_bytes()))
    assert np.isnan(stream.lsnr_db)


# -- storing --------------------------------------------------------------------------------------------


def assert_equal(a, b):
    assert a.settings == b.settings
    assert a.counters == b.counters
    assert a.arrays.keys() == b.arrays.keys()
    for name, array in a.arrays.items():
        assert array.dtype == b.arrays[name].dtype
        assert np.array_equal(array, b.arrays[name])


@pytest.mark.parametrize("store", ["bytes", "pickle"])
def test_round_trip(advanced, store):
    _, snapshot = advanced
    if store == "bytes":
        assert_equal(Snapshot.from_bytes(snapshot.to_bytes()), snapshot)
    else:
        assert_equal(pickle.loads(pickle.dumps(snapshot)), snapshot)


@pytest.mark.parametrize(
    ("mode", "frames", "size"),
    [
        ("incremental", 1, 46_500),
        ("incremental", 2, 46_500),
        ("streaming", 1, 130_200),
        ("stateful-h0", 1, 35_500),
    ],
)
def test_size(official, noisy, mode, frames, size):
    """What the documentation says of DeepFilterNet3."""
    stream = Stream(official("dfn3"), mode=mode, block_frames=frames)
    stream.process(noisy[:5000])
    assert abs(len(stream.snapshot().to_bytes()) - size) < 1000


def test_size_does_not_grow(synthetic_model, noisy):
    stream = Stream(synthetic_model("lean"), block_frames=20)
    sizes = []
    for _ in range(3):
        stream.process(noisy[: 100 * 480])
        sizes.append(len(stream.snapshot().to_bytes()))
    assert max(sizes) - min(sizes) < 100  # digits of the counters


def test_numpys_numbers_can_be_stored(synthetic_model):
    stream = stream_of(
        synthetic_model("dfn3"),
        channels=np.int64(2), block_frames=np.int32(2), min_db_thresh=np.float32(-10),
        post_filter=np.float32(0.5),
    )  # fmt: skip
    stream.atten_lim_db = np.float32(12)
    twin = stream_of(synthetic_model("dfn3"), block_frames=2, min_db_thresh=-10)
    twin.restore(Snapshot.from_bytes(stream.snapshot().to_bytes()))
    assert twin.atten_lim_db == 12


# -- refusing -------------------------------------------------------------------------------------------

BASE = {"mode": "incremental", "block_frames": 2}


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("mode", "streaming", "mode is 'incremental' there, 'streaming' here"),
        ("channels", 3, "channels is 2 there, 3 here"),
        ("channel_mask", "max", "channel_mask is 'none' there, 'max' here"),
        ("parity", "python", "parity is 'rust' there, 'python' here"),
        ("block_frames", 4, "block_frames is 2 there, 4 here"),
        ("same_length", True, "same_length is False there, True here"),
        ("post_filter_kind", "mask", "post_filter_kind is 'spectrum' there, 'mask' here"),
        ("min_db_thresh", -10, "thresholds is"),
        ("skip_silence", True, "skip_silence is False there, True here"),
    ],
)
def test_other_settings_are_refused(synthetic_model, name, value, shown):
    model = synthetic_model("dfn3")
    snapshot = stream_of(model, **BASE).snapshot()
    stream = stream_of(model, **{**BASE, name: value})
    before = stream.process(signal()[:4000, [0] * stream.channels])
    stream.reset()
    with pytest.raises(UsageError) as caught:
        stream.restore(snapshot)
    assert shown in str(caught.value)
    assert "\n" not in str(caught.value)
    # and the stream is as it was
    assert np.array_equal(stream.process(signal()[:4000, [0] * stream.channels]), before)


def test_another_model_is_refused(synthetic_model):
    snapshot = stream_of(synthetic_model("dfn3")).snapshot()
    with pytest.raises(UsageError, match=r"^the snapshot does not fit this stream: model is "):
        stream_of(synthetic_model("dfn3-h0")).restore(snapshot)


@pytest.mark.parametrize("act", ["snapshot", "clone", "restore"])
def test_resampling_streams_refuse(synthetic_model, advanced, act):
    stream = Stream(synthetic_model("wideband16k"), sample_rate=44_100)
    with pytest.raises(UsageError, match="44100 Hz cannot be saved"):
        getattr(stream, act)(*([advanced[1]] if act == "restore" else []))


def test_truncated(advanced):
    data = advanced[1].to_bytes()
    for length in (*range(0, len(data), len(data) // 97), len(data) - 1):
        with pytest.raises(UsageError, match="not a snapshot"):
            Snapshot.from_bytes(data[:length])


def damaged(advanced, data):
    """Restore it: refused in one way, or nothing was harmed."""
    stream, snapshot = advanced
    with contextlib.suppress(UsageError):
        found = Snapshot.from_bytes(data)
        stream.restore(found)
        assert_equal(
            dataclasses.replace(found, arrays={name: found.arrays[name] for name in snapshot.arrays}),
            snapshot,
        )


def test_random_damage(advanced):
    data, rng = advanced[1].to_bytes(), np.random.default_rng(6)
    for _ in range(400):
        broken = bytearray(data)
        for position in rng.integers(0, len(data), rng.integers(1, 4)):
            broken[position] = rng.integers(256)
        damaged(advanced, bytes(broken))


def test_damage_in_the_directories_of_the_archive(advanced):
    """Nothing protects these bytes: each flag, method, size and name can be wrong."""
    data = advanced[1].to_bytes()
    with io.BytesIO(data) as file, np.load(file) as archive:
        infos, start = archive.zip.infolist(), archive.zip.start_dir
    first = infos[0].header_offset
    for position in (
        *range(first, first + 40),
        *range(start, start + 110),
        *range(len(data) - 22, len(data)),
    ):
        for value in (0, 255, data[position] ^ 1, data[position] ^ 8):
            damaged(advanced, data[:position] + bytes([value]) + data[position + 1 :])


def archive(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def header(**entries):
    return np.frombuffer(json.dumps(entries).encode(), np.uint8)


def npy():
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        b"", b"hello", bytes(100), npy(), archive(), archive(a=np.zeros(3)), pickle.dumps({"a": 1}),
        "text", None,
        archive(**{"header.json": np.frombuffer(b"[1]", np.uint8)}),
        archive(**{"header.json": np.frombuffer(b"\xff{", np.uint8)}),
        archive(**{"header.json": header(format=2)}),
        archive(**{"header.json": header(format=2, settings="x", counters=[])}),
        archive(**{"header.json": header(format=3, settings={}, counters={})}),
        archive(**{"header.json": np.array([{}], object)}),
    ],
)  # fmt: skip
def test_other_things_are_refused(data):
    with pytest.raises(UsageError, match="snapshot") as caught:
        Snapshot.from_bytes(data)
    assert "\n" not in str(caught.value)


def test_pickles_inside_are_not_run(advanced):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("run",))

    arrays = dict(advanced[1].arrays)
    arrays["frames"] = np.array([Bomb()], object)
    data = dataclasses.replace(advanced[1], arrays=arrays).to_bytes()
    with pytest.raises(UsageError, match="not a snapshot"):
        Snapshot.from_bytes(data)


@pytest.mark.parametrize("change", ["missing", "short", "dtype", "counter"])
def test_incomplete_snapshots_are_refused_and_change_nothing(advanced, change):
    stream, snapshot = advanced
    expected = rest(stream.clone(), signal()[1234:])
    for name, array in snapshot.arrays.items():
        if not array.size:
            continue
        arrays, counters = dict(snapshot.arrays), dict(snapshot.counters)
        if change == "missing":
            del arrays[name]
        elif change == "short":
            arrays[name] = arrays[name][..., :-1]
        elif change == "dtype":
            arrays[name] = arrays[name].astype(np.complex128)
        else:
            del counters["flushed"]
        with pytest.raises(UsageError, match="does not fit"):
            stream.restore(Snapshot(snapshot.settings, counters, arrays))
    assert_same(rest(stream, signal()[1234:]), expected)
