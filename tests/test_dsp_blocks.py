"""What every stateful class of the signal processing promises, for all of them alike."""

import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfstream.config import ModelConfig
from dfstream.dsp.lanes import LaneSet
from dfstream.dsp.stft import Analysis, Synthesis
from dfstream.errors import UsageError
from dfstream.features import Features

FRAMES = 60
LANES = 3
CONFIGS = {
    "48k": ModelConfig("deepfilternet3", 48_000, 960, 480, 32, 96, 5, 2, 0.99, 2, 2),
    "16k": ModelConfig("deepfilternet2", 16_000, 320, 160, 24, 64, 5, 2, 0.99, 2, 2),
    "overlap 4": ModelConfig("deepfilternet3", 48_000, 512, 128, 32, 64, 5, 1, 0.997, 0, 0),
}


class Subject:
    """One class with an input of FRAMES frames of each of LANES lanes."""

    def __init__(self, cls, config):
        rng = np.random.default_rng(3)
        self.cls, self.config = cls, config
        if cls is Analysis:
            self.input = rng.normal(0, 0.1, (LANES, FRAMES, config.hop_size)).astype(np.float32)
        else:
            noise = rng.normal(0, 1e-3, (2, LANES, FRAMES, config.bins))
            self.input = (noise[0] + 1j * noise[1]).astype(np.complex64)

    def make(self, max_frames=FRAMES, lanes=LANES):
        if self.cls is Features:
            return Features(self.config, max_frames, lanes)
        return self.cls(self.config.fft_size, self.config.hop_size, max_frames, lanes)

    def block(self, start=0, stop=FRAMES, lanes=slice(None)):
        """Part of the input in the form the class takes."""
        part = self.input[lanes, start:stop]
        return part.reshape(len(part), -1) if self.cls is Analysis else part

    def run(self, obj, start=0, stop=FRAMES, lanes=None):
        """Feed a block; a list of results, each with its frames on the first axis, copied."""
        y = obj.process(self.block(start, stop, slice(None) if lanes is None else lanes.index), lanes)
        if self.cls is Features:
            return [np.moveaxis(part, 2, 0).copy() for part in y]
        return [np.moveaxis(y.reshape(len(y), stop - start, -1), 1, 0).copy()]


@pytest.fixture(params=CONFIGS)
def config(request):
    return CONFIGS[request.param]


@pytest.fixture(params=[Analysis, Synthesis, Features], ids=lambda cls: cls.__name__)
def subject(request, config):
    return Subject(request.param, config)


def assert_same(results, expected):
    for result, wanted in zip(results, expected, strict=True):
        assert result.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("size", [1, 2, 7, 59])
def test_blocks_of_any_length_give_the_same_bits(subject, size):
    obj, whole = subject.make(size), subject.run(subject.make())
    blocks = [subject.run(obj, start, min(start + size, FRAMES)) for start in range(0, FRAMES, size)]
    assert_same([np.concatenate(parts) for parts in zip(*blocks, strict=True)], whole)


@pytest.mark.parametrize("cls", [Analysis, Synthesis, Features])
def test_random_grouping_gives_the_same_bits(cls):
    subject = Subject(cls, CONFIGS["16k"])
    obj, whole = subject.make(), subject.run(subject.make())

    @settings(max_examples=30, deadline=None, derandomize=True)
    @given(st.sets(st.integers(1, FRAMES - 1), max_size=20))
    def check(cuts):
        obj.reset()
        edges = [0, *sorted(cuts), FRAMES]
        blocks = [subject.run(obj, *pair) for pair in itertools.pairwise(edges)]
        assert_same([np.concatenate(parts) for parts in zip(*blocks, strict=True)], whole)

    check()


def test_reset_forgets_everything(subject):
    obj = subject.make()
    initial = {name: array.copy() for name, array in obj.state.items()}
    first = subject.run(obj)
    assert all(not np.array_equal(array, initial[name]) for name, array in obj.state.items())
    obj.reset()
    assert_same(obj.state.values(), initial.values())
    assert_same(subject.run(obj), first)


def test_state_is_live_and_complete(subject):
    obj, other = subject.make(), subject.make()
    arrays = obj.state
    subject.run(obj, 0, 30)
    for name, array in other.state.items():
        array[:] = arrays[name]
    assert_same(subject.run(other, 30, 60), subject.run(obj, 30, 60))


def test_results_are_views_and_nothing_is_allocated(subject):
    obj = subject.make()
    block = subject.block()
    first = obj.process(block)
    tracemalloc.start()
    try:
        second = obj.process(block)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    pairs = zip(first, second, strict=True) if isinstance(first, tuple) else [(first, second)]
    assert all(np.shares_memory(*pair) for pair in pairs)
    assert peak < 8 * FRAMES * 8, f"{peak} bytes: only the objects of a few views are expected"


@pytest.mark.parametrize("lane", range(LANES))
def test_a_lane_is_as_if_alone(subject, lane):
    alone, together = subject.make(lanes=1), subject.run(subject.make())
    subject.input, whole = subject.input[lane : lane + 1], subject.input
    assert_same(subject.run(alone), [part[:, lane : lane + 1] for part in together])
    subject.input = whole


def test_lanes_advance_by_themselves(subject):
    """Some of the lanes at a time, in any order: each is where it would be alone."""
    obj, whole = subject.make(7), subject.run(subject.make())
    done, parts = np.zeros(LANES, int), [[] for _ in range(LANES)]
    rng = np.random.default_rng(4)
    while done.min() < FRAMES:
        behind = rng.permutation(np.flatnonzero(done == done.min()) if rng.random() < 0.3 else LANES)
        start = done[behind[0]]
        some = [int(lane) for lane in behind if done[lane] == start][: rng.integers(1, LANES + 1)]
        stop = min(start + int(rng.integers(1, 8)), FRAMES)
        if start == FRAMES:
            continue
        results = subject.run(obj, start, stop, LaneSet(LANES, some))
        for row, lane in enumerate(some):
            parts[lane].append([part[:, row] for part in results])
        done[some] = stop
    for lane in range(LANES):
        joined = [np.concatenate(blocks) for blocks in zip(*parts[lane], strict=True)]
        assert_same(joined, [part[:, lane] for part in whole])


def test_reset_of_one_lane_leaves_the_others(subject):
    obj, whole = subject.make(), subject.run(subject.make())
    subject.run(obj, 0, 30)
    obj.reset(LaneSet(LANES, [1]))
    rest = subject.run(obj, 30, 60)
    fresh = subject.run(subject.make(), 30, 60)
    for part, continued, begun in zip(rest, whole, fresh, strict=True):
        assert np.array_equal(part[:, [0, 2]], continued[30:, [0, 2]])
        assert np.array_equal(part[:, 1], begun[:, 1])
        assert not np.array_equal(part[:, 1], continued[30:, 1])


@pytest.mark.parametrize("index", [[0, 0], [3], [-1], []])
def test_lanes_that_do_not_exist(index):
    with pytest.raises(UsageError, match="lanes"):
        LaneSet(LANES, index)


def test_lane_sets():
    assert LaneSet(3).everything
    assert LaneSet(3, [0, 1, 2]).everything
    assert not LaneSet(3, [0, 2, 1]).everything
    assert not LaneSet(3, [0, 1]).everything
    with pytest.raises(ValueError, match="read-only"):
        LaneSet(3).index[0] = 7


def test_any_memory_layout_is_taken(subject):
    expected = subject.run(subject.make())
    given_block = subject.block()
    read_only = given_block.copy()
    read_only.flags.writeable = False
    strided = np.repeat(given_block, 2, axis=-1)[..., ::2]
    by_sample = np.asfortranarray(given_block)
    raw = np.zeros(given_block.nbytes + 1, np.uint8)
    unaligned = raw[1:].view(given_block.dtype).reshape(given_block.shape)
    unaligned[:] = given_block
    for block in (read_only, strided, by_sample, unaligned):
        subject.block = lambda *_, block=block: block
        assert_same(subject.run(subject.make()), expected)


def test_wrong_inputs_are_refused(subject):
    obj = subject.make(FRAMES - 1)
    good = subject.block(0, 3)
    wide = np.float64 if good.dtype == np.float32 else np.complex128
    empty, odd_length, fewer = good[:, :0], good[..., :-1], good[1:]
    for bad in (subject.block(), empty, odd_length, fewer, good.astype(wide), good[None], list(good), None):
        before = {name: array.copy() for name, array in obj.state.items()}
        with pytest.raises(UsageError, match="expected"):
            obj.process(bad)
        assert_same(obj.state.values(), before.values())
    with pytest.raises(UsageError, match="max_frames"):
        subject.make(0)
    with pytest.raises(UsageError, match="lanes"):
        subject.make(lanes=0)


def test_feature_shapes(config):
    feat_erb, feat_spec = Features(config, 5, 2).process(np.ones((2, 3, config.bins), np.complex64))
    assert feat_erb.shape == (2, 1, 3, config.nb_erb)
    assert feat_spec.shape == (2, 2, 3, config.nb_df)
    for array in (feat_erb, feat_spec):
        assert array.dtype == np.float32
        assert array.flags.c_contiguous
