"""Masks, deep filter, post-filter and limit, against the float64 twin on random spectra and results."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import naive_engine
from dfstream.config import ModelConfig
from dfstream.dsp.lanes import LaneSet
from dfstream.filtering import SpectralFilter, attenuation_gain

FRAMES = 40

#: Of the peak. A deep filter sums ten products; largest seen 1.8e-7.
ROUNDING = 16 * np.finfo(np.float32).eps

#: Lookaheads of the network and of the deep filter.
LOOKAHEADS = ((2, 2), (0, 0), (2, 0), (0, 2), (1, 3), (3, 1), (1, 4))
RULES = ("deepfilternet3", "deepfilternet2")
DFN3 = ModelConfig("deepfilternet3", 48_000, 960, 480, 32, 96, 5, 2, 0.99, 2, 2)
WIDEBAND = ModelConfig("deepfilternet3", 16_000, 320, 160, 24, 64, 3, 1, 0.99, 1, 1)
CONFIGS = {
    f"dfn{rule[-1]} {conv}/{df}": dataclasses.replace(
        DFN3, architecture=rule, conv_lookahead=conv, df_lookahead=df
    )
    for rule, (conv, df) in itertools.product(RULES, LOOKAHEADS)
}
CONFIGS["16k"] = WIDEBAND
CONFIGS["16k masked"] = dataclasses.replace(WIDEBAND, architecture="deepfilternet2")


@pytest.fixture(params=CONFIGS)
def config(request):
    return CONFIGS[request.param]


def random_inputs(c, frames=FRAMES, seed=1):
    """Spectra, gains and coefs of so many frames, as the network would give them hop by hop."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((2, frames, c.bins))
    gains = rng.random((frames, c.nb_erb), np.float32)
    coefs = rng.standard_normal((frames, c.nb_df, 2 * c.df_order), np.float32)
    return (noise[0] + 1j * noise[1]).astype(np.complex64), gains, coefs


def filtered(c, inputs, sizes=(FRAMES,), filt=None, **options):
    """All output frames, the inputs cut into blocks."""
    filt = filt or SpectralFilter(c, max(sizes))
    starts = itertools.accumulate(sizes[:-1], initial=0)
    blocks = (
        tuple(part[None, a : a + size] for part in inputs) for a, size in zip(starts, sizes, strict=True)
    )
    strengths = {name: np.full(1, strength, np.float32) for name, strength in options.items()}
    return np.concatenate([filt.process(*block, **strengths)[0].copy() for block in blocks])


def expected(c, inputs, post_filter=0.0, atten_lim_db=None):
    """The twin's frames from ``-delay_frames`` on."""
    spec, gains, coefs = inputs
    numbers = {
        f.name: getattr(c, f.name) for f in dataclasses.fields(naive_engine.Config) if hasattr(c, f.name)
    }
    twin = naive_engine.Config(**numbers, sr=c.sample_rate, alpha=c.norm_alpha)
    results = naive_engine.Results(-c.conv_lookahead, gains, coefs)
    times = range(-c.delay_frames, len(spec) - c.delay_frames)
    spec = spec.astype(np.complex128)
    return np.array(
        [naive_engine.enhanced_frame(twin, spec, results, t, post_filter, atten_lim_db) for t in times]
    )


def assert_near(actual, wanted):
    np.testing.assert_allclose(actual, wanted, rtol=0, atol=ROUNDING * np.abs(wanted).max())


@pytest.mark.parametrize(
    ("post_filter", "atten_lim_db"), [(0.0, None), (0.05, None), (0.0, 6.0), (0.02, 12.0)]
)
def test_equals_the_twin(config, post_filter, atten_lim_db):
    inputs = random_inputs(config)
    options = {"beta": post_filter, "noisy_gain": attenuation_gain(atten_lim_db)}
    assert_near(filtered(config, inputs, **options), expected(config, inputs, post_filter, atten_lim_db))


@settings(max_examples=40)
@given(data=st.data())
def test_blocks_do_not_matter(data):
    c = CONFIGS[data.draw(st.sampled_from(sorted(CONFIGS)))]
    sizes, options = [], {"beta": 0.02, "noisy_gain": 0.1}
    while sum(sizes) < FRAMES:
        sizes.append(data.draw(st.integers(1, min(15, FRAMES - sum(sizes)))))
    inputs = random_inputs(c)
    assert np.array_equal(filtered(c, inputs, sizes, **options), filtered(c, inputs, **options))


@pytest.mark.parametrize("tap", range(5))
@pytest.mark.parametrize("name", ["dfn3 2/2", "dfn2 2/2", "dfn3 0/2", "dfn2 1/3"])
def test_one_tap_is_one_frame(name, tap):
    """With one tap of one, the low bins are the frame that this tap stands for, oldest first."""
    c = CONFIGS[name]
    spec, gains, coefs = random_inputs(c)
    gains[:], coefs[:] = 1, 0
    coefs[:, :, 2 * tap] = 1
    y = filtered(c, (spec, gains, coefs))
    later = tap - (c.df_order - 1 - c.df_lookahead)  # frames after the one that is output
    begun = slice(20, None)
    assert np.array_equal(y[begun, : c.nb_df], np.roll(spec, c.delay_frames - later, 0)[begun, : c.nb_df])
    assert np.array_equal(y[begun, c.nb_df :], np.roll(spec, c.delay_frames, 0)[begun, c.nb_df :])


def test_imaginary_part_turns_by_plus_90_degrees():
    c = CONFIGS["dfn3 0/0"]
    spec, gains, coefs = random_inputs(c)
    coefs[:] = 0
    coefs[:, :, -1] = 1
    assert np.array_equal(filtered(c, (spec, gains, coefs))[:, : c.nb_df], 1j * spec[:, : c.nb_df])


def test_dfn3_filters_the_noisy_spectrum_and_dfn2_the_masked():
    for rule, share in (("dfn3", 1.0), ("dfn2", 0.5)):
        c = CONFIGS[f"{rule} 0/0"]
        spec, gains, coefs = random_inputs(c)
        gains[:], coefs[:] = 0.5, 0
        coefs[:, :, -2] = 1
        y = filtered(c, (spec, gains, coefs))
        assert np.array_equal(y[:, : c.nb_df], np.float32(share) * spec[:, : c.nb_df])
        assert np.array_equal(y[:, c.nb_df :], np.float32(0.5) * spec[:, c.nb_df :])


def test_output_before_the_network_speaks_is_silent(config):
    """Frames whose results would have come before the first hop: nothing is known, nothing is output."""
    silent = config.delay_frames - config.conv_lookahead
    y = filtered(config, random_inputs(config))
    assert not y[:silent].any()
    assert y[silent + config.df_order :].any(axis=1).all()


def test_limit_of_0_db_is_the_delayed_noisy_spectrum(config):
    inputs = random_inputs(config)
    y = filtered(config, inputs, noisy_gain=attenuation_gain(0), beta=0.02)
    delay = config.delay_frames
    assert np.array_equal(y[delay:], inputs[0][: FRAMES - delay])
    assert not y[:delay].any()


def test_limit_mixes_after_the_post_filter(config):
    inputs = random_inputs(config)
    share = attenuation_gain(10)
    delayed = np.concatenate([np.zeros((config.delay_frames, config.bins)), inputs[0]])[:FRAMES]
    sharper = filtered(config, inputs, beta=0.05)
    both = filtered(config, inputs, beta=0.05, noisy_gain=share)
    assert_near(both, sharper * (1 - share) + delayed * share)
    assert np.abs(sharper - filtered(config, inputs)).max() > 0.1


def test_reset_is_a_fresh_filter(config):
    inputs, other = random_inputs(config), random_inputs(config, seed=2)
    filt = SpectralFilter(config, FRAMES)
    first = filtered(config, inputs, filt=filt)
    filtered(config, other, filt=filt)
    filt.reset()
    fresh = SpectralFilter(config, FRAMES).state
    assert all(np.array_equal(array, fresh[name]) for name, array in filt.state.items())
    assert np.array_equal(filtered(config, inputs, filt=filt), first)


def test_state_is_all_that_is_remembered(config):
    """A new filter given the state of another goes on as that one does."""
    inputs = random_inputs(config)
    whole = filtered(config, inputs)
    head, tail = (tuple(part[a:b] for part in inputs) for a, b in ((0, 23), (23, FRAMES)))
    old, new = SpectralFilter(config, FRAMES), SpectralFilter(config, FRAMES)
    filtered(config, head, (23,), old)
    for name, array in new.state.items():
        array[:] = old.state[name]
    assert np.array_equal(filtered(config, tail, (FRAMES - 23,), new), whole[23:])


def test_inputs_are_left_alone(config):
    inputs = random_inputs(config)
    copies = [part.copy() for part in inputs]
    filtered(config, inputs, beta=0.02, noisy_gain=0.3)
    assert all(map(np.array_equal, inputs, copies))


def test_lanes_advance_by_themselves(config):
    """Three lanes of their own strengths, some at a time: each is where a filter of its own would be."""
    lanes, sizes = 3, {0: (7, 3, 30), 1: (3, 7, 30), 2: (40,)}
    inputs = [random_inputs(config, seed=seed) for seed in range(lanes)]
    beta, noisy_gain = np.array([0, 0.05, 0.5], np.float32), np.array([0.3, 0, 0.1], np.float32)
    together, done, parts = SpectralFilter(config, FRAMES, lanes), [0] * lanes, [[], [], []]
    together.post_filter_bins[:] = bins = [40, config.bins, 80]
    for turn in ([0], [2], [1], [1], [0], [1, 0]):
        size = sizes[turn[0]][len(parts[turn[0]])]
        block = [np.stack([inputs[lane][i][done[lane] :][:size] for lane in turn]) for i in range(3)]
        y = together.process(*block, beta=beta[turn], noisy_gain=noisy_gain[turn], lanes=LaneSet(lanes, turn))
        for row, lane in enumerate(turn):
            parts[lane].append(y[row].copy())
            done[lane] += size
    for lane in range(lanes):
        by_itself = SpectralFilter(config, FRAMES)
        by_itself.post_filter_bins[:] = bins[lane]
        alone = filtered(config, inputs[lane], filt=by_itself, beta=beta[lane], noisy_gain=noisy_gain[lane])
        assert np.array_equal(np.concatenate(parts[lane]), alone)


@pytest.mark.parametrize(
    ("limit_db", "gain"),
    [
        (None, 0.0),
        (100, 0.0),
        (100.0, 0.0),
        (1000.0, 0.0),
        (float("inf"), 0.0),
        (0, 1.0),
        (0.0, 1.0),
        (6.0, 10 ** (-6 / 20)),
        (12, 10 ** (-12 / 20)),
        (-12, 10 ** (-12 / 20)),
        (20.0, 0.1),
        (99.0, 10 ** (-99 / 20)),
    ],
)
def test_attenuation_gain(limit_db, gain):
    assert attenuation_gain(limit_db) == pytest.approx(gain, rel=1e-6, abs=0)
