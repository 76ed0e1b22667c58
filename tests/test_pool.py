"""Streams of a pool: each as by itself, whatever the others do, and nothing of one in another."""

import dataclasses
import functools
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import emulation
from dfstream import Stream, StreamPool
from dfstream.errors import AudioError, UsageError
from dfstream.members import PoolSettings
from dfstream.snapshot import Snapshot

#: Of the peak: the runtime sums in another order when it multiplies for several. Largest seen: 2e-6.
ROUNDING = 1e-5

MODES = ("incremental", "streaming")


@pytest.fixture(scope="module")
def audio(noisy):
    """Speech in noise of any length, another for each seed."""

    def get(seed, samples):
        return noisy[20_000 + 7919 * seed :][:samples] * np.float32(1 / (1 + seed))

    return get


def rate(model):
    return {"sample_rate": model.config.sample_rate}


def alone(model, x, settings=None, **options):
    """What a stream by itself gives for all of the audio, flushed."""
    stream = Stream(model, **rate(model), **dataclasses.asdict(settings or PoolSettings()), **options)
    return np.concatenate([stream.process(x), stream.flush()])


def assert_near(actual, expected):
    assert actual.dtype == np.float32
    assert actual.shape == expected.shape
    if len(expected) and expected.any():
        assert emulation.error(actual, expected) < ROUNDING


@dataclasses.dataclass
class Client:
    """One stream of a pool and all that it gave and got."""

    x: np.ndarray
    settings: PoolSettings
    given: int = 0
    got: list = dataclasses.field(default_factory=list)

    def next(self, size):
        chunk = self.x[self.given : self.given + size]
        self.given += len(chunk)
        return chunk

    def check(self, pool, id, model, options):
        self.got.append(pool.leave(id))
        expected = alone(model, self.x[: self.given], self.settings, **options)
        assert_near(np.concatenate(self.got), expected)


# -- each as by itself ----------------------------------------------------------------------------------


@given(data=st.data())
@settings(max_examples=40)
def test_random_lives(synthetic_model, audio, data):
    """Streams come, go, and send what they like when they like."""
    name = data.draw(st.sampled_from(["dfn3", "dfn2", "dfn3-ll", "wideband16k"]))
    options = {
        "mode": data.draw(st.sampled_from(MODES)),
        "parity": data.draw(st.sampled_from(["rust", "python"])),
        "block_frames": data.draw(st.sampled_from([1, 1, 3])),
        "post_filter_kind": data.draw(st.sampled_from(["spectrum", "mask"])),
    }
    model = synthetic_model(name)
    pool, clients = StreamPool(model, 4, **options), {}
    for turn in range(data.draw(st.integers(1, 25))):
        if len(pool) < pool.capacity and data.draw(st.integers(0, 2)) == 0:
            chosen = PoolSettings(
                data.draw(st.sampled_from([None, 12.0, 0.0])), data.draw(st.sampled_from([0.0, 0.05]))
            )
            id = pool.join(**dataclasses.asdict(chosen))
            clients[id] = Client(audio(turn, 12_000), chosen)
        elif len(pool) and data.draw(st.integers(0, 9)) == 0:
            id = data.draw(st.sampled_from(pool.ids))
            clients.pop(id).check(pool, id, model, options)
        talking = [id for id in pool if data.draw(st.booleans())]
        sizes = st.one_of(st.sampled_from([0, 1, 160, 480, 960]), st.integers(0, 2500))
        results = pool.process({id: clients[id].next(data.draw(sizes)) for id in talking})
        assert list(results) == talking
        for id, y in results.items():
            clients[id].got.append(y)
    for id in pool.ids:
        clients[id].check(pool, id, model, options)
    assert len(pool) == 0


@pytest.mark.parametrize("mode", MODES)
def test_bundled_model(bundled, audio, mode):
    """Five streams in step, cut in hops, against five streams by themselves."""
    pool = StreamPool(bundled, 8, mode=mode)
    clients = {pool.join(): Client(audio(seed, 48_000), PoolSettings()) for seed in range(5)}
    for _ in range(100):
        for id, y in pool.process({id: client.next(480) for id, client in clients.items()}).items():
            assert len(y) == 480
            clients[id].got.append(y)
    for id, client in clients.items():
        client.check(pool, id, bundled, {"mode": mode})


@pytest.mark.parametrize("name", ["dfn3", "dfn2"])
def test_official_models(official, audio, name):
    model = official(name)
    pool = StreamPool(model, 3, block_frames=10)
    clients = {id: Client(audio(id, 48_000), PoolSettings()) for id in map(pool.join, range(3))}
    for id, y in pool.process({id: client.next(48_000) for id, client in clients.items()}).items():
        clients[id].got.append(y)
    for id, client in clients.items():
        client.check(pool, id, model, {"block_frames": 10})


def test_one_stream_alone_is_a_stream_bit_for_bit(bundled, audio):
    pool, x = StreamPool(bundled, 4), audio(0, 20_000)
    pool.join("a")
    pool.join("b")
    y = np.concatenate(
        [pool.process({"b": x[:7777]})["b"], pool.process({"b": x[7777:]})["b"], pool.leave("b")]
    )
    assert np.array_equal(y, alone(bundled, x))


@pytest.mark.parametrize("parity", ["rust", "python"])
@pytest.mark.parametrize("mode", MODES)
def test_the_others_do_not_matter(synthetic_model, audio, mode, parity):
    """As long as as many take part, not a bit of one depends on what the others say or where they stand."""
    model = synthetic_model("dfn3")

    @functools.cache
    def heard(others, late):
        pool = StreamPool(model, 4, mode=mode, parity=parity)
        ids = [pool.join() for _ in range(4)]
        x = {id: audio(id, 12_000) for id in ids}
        if others == "loud":
            x |= {id: 1e5 * x[id] for id in ids[:3]}
        if others == "bad":
            x |= {id: np.full(12_000, np.nan, np.float32) for id in ids[:3]}
        if late:
            pool.process({id: audio(9, 4800) for id in ids[:3]})
        parts = [pool.process({id: x[id][a : a + 600] for id in ids})[ids[3]] for a in range(0, 12_000, 600)]
        return np.concatenate(parts)

    # the frames that the network is not fed differ from stream to stream: then fewer share the first calls
    for late in (False, True) if parity == "rust" else (False,):
        for others in ("loud", "bad"):
            assert np.array_equal(heard(others, late), heard("plain", False))
    assert emulation.error(heard("plain", True), heard("plain", False)) < ROUNDING


def test_streams_that_are_not_named_stand_still(synthetic_model, audio):
    model, x = synthetic_model("wideband16k"), audio(0, 5000)
    pool = StreamPool(model, 2)
    pool.join("slow")
    pool.join("quick")
    pool.process({"slow": x[:1000]})
    before = pool.snapshot("slow")
    pool.process({"quick": audio(1, 9000)})
    assert pool.process({}) == {}
    assert pool.snapshot("slow").to_bytes() == before.to_bytes()


def test_threads_share_a_model(synthetic_model, audio):
    model, results = synthetic_model("dfn3"), {}

    def serve(seed):
        pool = StreamPool(model, 2)
        a, b = pool.join(), pool.join()
        y = [
            pool.process({a: audio(seed, 9000)[i : i + 700], b: audio(5, 700)})[a]
            for i in range(0, 9000, 700)
        ]
        results[seed] = np.concatenate(y)

    for seed in (0, 1):
        serve(seed)
    expected, results = results, {}
    threads = [threading.Thread(target=serve, args=(seed,)) for seed in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all(np.array_equal(results[seed], expected[seed]) for seed in (0, 1))


# -- coming and going -----------------------------------------------------------------------------------


def test_a_freed_place_holds_nothing_of_who_left(synthetic_model, audio):
    model, x = synthetic_model("dfn2"), audio(1, 8000)
    pool = StreamPool(model, 1)
    for _ in range(2):
        id = pool.join(post_filter=0.5)
        pool.process({id: audio(0, 7000)})
        pool.leave(id)
    id = pool.join()
    y = np.concatenate([pool.process({id: x})[id], pool.leave(id)])
    assert np.array_equal(y, alone(model, x))


def test_reset_begins_anew(synthetic_model, audio):
    model, x = synthetic_model("dfn3"), audio(1, 8000)
    pool = StreamPool(model, 2, parity="python")
    pool.join("a", post_filter=0.05)
    pool.join("b")
    pool.process({"a": audio(0, 7001), "b": x[:3333]})
    pool.reset("a")
    assert pool.stats("a").samples_in == 0
    assert np.isnan(pool.lsnr_db("a"))
    y = np.concatenate([pool.process({"a": x})["a"], pool.leave("a")])
    assert np.array_equal(y, alone(model, x, PoolSettings(post_filter=0.05), parity="python"))
    b = np.concatenate([pool.process({"b": x[3333:]})["b"], pool.leave("b")])
    assert_near(b, alone(model, x, parity="python")[-len(b) :])


def test_who_is_in_it(synthetic_model):
    pool = StreamPool(synthetic_model("dfn3"), 3)
    assert pool.capacity == 3
    assert pool.delay_samples == Stream(synthetic_model("dfn3")).delay_samples
    assert pool.model is synthetic_model("dfn3")
    assert (len(pool), pool.ids) == (0, ())
    assert pool.join("x") == "x"
    assert pool.join(0) == 0
    assert pool.join() == 1, "a number that is not taken"
    assert pool.ids == tuple(pool) == ("x", 0, 1)
    assert "x" in pool
    pool.leave("x")
    assert "x" not in pool
    assert pool.ids == (0, 1)
    pool.join(("any", 1))
    assert len(pool) == 3


# -- settings and counters ------------------------------------------------------------------------------


def test_settings_hold_from_the_next_block(synthetic_model, audio):
    model, x = synthetic_model("dfn3"), audio(0, 40 * 480)
    pool, stream = StreamPool(model, 2), Stream(model)
    pool.join("a")
    pool.join("b")
    schedule = [{"post_filter": 0.05}, {"atten_lim_db": 6}, {"post_filter": 0.0}, {"atten_lim_db": None}]
    for start, change in zip(range(0, len(x), 4800), schedule, strict=True):
        pool.configure("a", **change)
        for name, value in change.items():
            setattr(stream, name, value)
        chunk = x[start : start + 4800]
        y = pool.process({"a": chunk, "b": chunk})
        assert_near(y["a"], stream.process(chunk))
        assert pool.settings("a") == PoolSettings(stream.atten_lim_db, stream.post_filter)
    assert pool.settings("b") == PoolSettings()
    assert not np.array_equal(y["a"], y["b"])


def test_lsnr_and_stats(synthetic_model, audio):
    model = synthetic_model("wideband16k")
    pool, stream = StreamPool(model, 2), Stream(model, **rate(model))
    pool.join("a")
    pool.join("b")
    assert np.isnan(pool.lsnr_db("a"))
    x = audio(0, 1700).copy()
    x[[5, 1600]] = np.nan, np.inf
    pool.process({"a": x, "b": audio(1, 100)})
    stream.process(x)
    assert pool.lsnr_db("a") == pytest.approx(stream.lsnr_db, abs=1e-3)
    assert np.isnan(pool.lsnr_db("b"))
    assert pool.stats("a") == stream.stats
    assert (pool.stats("b").samples_in, pool.stats("b").samples_out, pool.stats("b").replaced) == (100, 0, 0)
    pool.stats("a").samples_in = 7
    assert pool.stats("a") == stream.stats, "a copy"


def test_arrays_belong_to_the_caller(synthetic_model, audio):
    model, x = synthetic_model("dfn3"), audio(0, 6000)
    pool, parts = StreamPool(model, 1), []
    pool.join("a")
    for start in range(0, 6000, 720):
        chunk = x[start : start + 720].copy()
        y = pool.process({"a": chunk})["a"]
        parts.append(y.copy())
        chunk[:], y[:] = 9, 9
    assert np.array_equal(np.concatenate([*parts, pool.leave("a")]), alone(model, x))


# -- snapshots ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"mode": "streaming", "parity": "python", "block_frames": 2}])
def test_snapshots_go_from_pool_to_stream_and_back(synthetic_model, audio, options):
    model, x = synthetic_model("dfn2"), audio(0, 12_000)
    expected = alone(model, x, PoolSettings(12, 0.05), **options)
    pool, stream = StreamPool(model, 3, **options), Stream(model, **options)
    pool.join("other")
    pool.process({"other": audio(3, 4000)})
    pool.join("a", atten_lim_db=12, post_filter=0.05)
    parts = [pool.process({"a": x[:4001]})["a"]]
    stream.restore(Snapshot.from_bytes(pool.snapshot("a").to_bytes()))
    parts.append(stream.process(x[4001:8002]))
    assert pool.join("b", snapshot=stream.snapshot()) == "b"
    assert pool.settings("b") == PoolSettings(12, 0.05)
    assert pool.stats("b") == stream.stats
    assert pool.lsnr_db("b") == stream.lsnr_db
    parts += [pool.process({"b": x[8002:]})["b"], pool.leave("b")]
    assert np.array_equal(np.concatenate(parts), expected)


def test_snapshots_that_do_not_fit(synthetic_model):
    model = synthetic_model("dfn3")
    pool = StreamPool(model, 2)
    pool.join("a")
    flushed = Stream(model)
    flushed.flush()
    for snapshot, shown in (
        (Stream(synthetic_model("dfn2")).snapshot(), "model is"),
        (Stream(model, channels=2).snapshot(), "channels is 2 there, 1 here"),
        (Stream(model, mode="streaming").snapshot(), "mode is"),
        (Stream(model, same_length=True).snapshot(), "same_length"),
        (Stream(model, skip_silence=True).snapshot(), "skip_silence"),
        (flushed.snapshot(), "flushed"),
    ):
        with pytest.raises(UsageError, match=shown):
            pool.join("b", snapshot=snapshot)
    with pytest.raises(UsageError, match="its own settings"):
        pool.join("b", snapshot=pool.snapshot("a"), post_filter=0.1)
    assert pool.ids == ("a",)
    pool.join("b", snapshot=pool.snapshot("a"))


# -- refusing -------------------------------------------------------------------------------------------


def test_full(synthetic_model):
    pool = StreamPool(synthetic_model("dfn3"), 1)
    pool.join("a")
    with pytest.raises(UsageError, match="full: 1 streams"):
        pool.join("b")
    assert pool.ids == ("a",)
    pool.leave("a")
    pool.join("b")


def test_ids_that_are_refused(synthetic_model):
    pool = StreamPool(synthetic_model("dfn3"), 2)
    pool.join("a")
    with pytest.raises(UsageError, match="'a' is in the pool already"):
        pool.join("a")
    with pytest.raises(UsageError, match="hashable"):
        pool.join(["b"])
    for act in (
        pool.leave, pool.reset, pool.snapshot, pool.lsnr_db, pool.stats, pool.settings, pool.configure,
        lambda id: pool.process({id: [0.0]}),
    ):  # fmt: skip
        with pytest.raises(UsageError, match="no stream 'b'"):
            act("b")
    assert pool.ids == ("a",)


@pytest.mark.parametrize("bad", [np.zeros(9, np.int16), np.zeros((9, 2)), ["x"], [[1.0], [1.0, 2.0]]])
def test_a_bad_chunk_disturbs_nobody(synthetic_model, audio, bad):
    pool = StreamPool(synthetic_model("dfn3"), 2)
    pool.join("a")
    pool.join("b")
    pool.process({"a": audio(0, 1000), "b": audio(1, 1000)})
    before = pool.snapshot("a").to_bytes(), pool.snapshot("b").to_bytes()
    with pytest.raises(AudioError, match=r"^stream 'b': audio"):
        pool.process({"a": audio(0, 1000), "b": bad})
    with pytest.raises(UsageError, match="no stream 'c'"):
        pool.process({"a": audio(0, 1000), "b": audio(1, 1000), "c": audio(2, 1000)})
    assert (pool.snapshot("a").to_bytes(), pool.snapshot("b").to_bytes()) == before


@pytest.mark.parametrize("name", ["post_filter", "atten_lim_db"])
@pytest.mark.parametrize("value", [-1, "x", np.nan])
def test_settings_that_are_refused(synthetic_model, name, value):
    pool = StreamPool(synthetic_model("dfn3"), 2)
    pool.join("a", post_filter=0.5, atten_lim_db=6)
    with pytest.raises(UsageError, match=name):
        pool.configure("a", **{name: value})
    assert pool.settings("a") == PoolSettings(6, 0.5)
    with pytest.raises(UsageError, match=name):
        pool.join("b", **{name: value})
    assert pool.ids == ("a",)


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ({"capacity": 0}, "capacity"), ({"capacity": 2.0}, "capacity"), ({"block_frames": 0}, "block_frames"),
        ({"parity": "perl"}, "parity"), ({"mode": "quick"}, "unknown mode"),
        ({"backend": "abacus"}, "unknown backend"), ({"post_filter_kind": "x"}, "post_filter_kind"),
        ({"mode": "stateful-h0"}, "cannot serve a pool"),
        ({"mode": "stateless-window-last"}, "cannot serve a pool"),
    ],
)  # fmt: skip
def test_arguments_that_are_refused(synthetic_model, options, shown):
    with pytest.raises(UsageError, match=shown):
        StreamPool(synthetic_model("dfn3"), **options)
