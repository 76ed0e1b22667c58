"""Whole arrays: length, alignment, and that it is the stream and nothing else."""

import numpy as np
import pytest

from conftest import SYNTHETIC
from dfstream import Stream, enhance
from dfstream.errors import AudioError, UsageError
from dfstream.offline import OFFLINE_BLOCK_FRAMES
from naive_engine import snr_db, streamed


@pytest.fixture(scope="session")
def x(noisy):
    return noisy[24_000:][:48_137]


@pytest.mark.parametrize("parity", ["rust", "python"])
def test_is_the_stream_without_its_delay(bundled, x, parity):
    options = {"parity": parity, "post_filter": 0.02, "atten_lim_db": 20.0}
    stream = Stream(bundled, block_frames=OFFLINE_BLOCK_FRAMES, **options)
    assert np.array_equal(enhance(x, model=bundled, **options), streamed(stream, x)[stream.delay_samples :])


@pytest.mark.parametrize("mode", ["incremental", "streaming", "stateful-h0"])
def test_agrees_with_live_hops(bundled, x, mode):
    """To rounding; on some processors bit for bit."""
    live = Stream(bundled, mode=mode)
    assert snr_db(enhance(x, model=bundled, mode=mode), streamed(live, x, [480])[live.delay_samples :]) >= 118


@pytest.mark.parametrize("parity", ["rust", "python"])
@pytest.mark.parametrize("name", [*SYNTHETIC, "bundled"])
def test_aligned_and_as_long_as_the_input(synthetic_model, bundled, x, name, parity):
    model = bundled if name == "bundled" else synthetic_model(name)
    options = {"sample_rate": model.config.sample_rate, "model": model, "parity": parity}
    for count in (0, 1, 100, model.config.hop_size - 1, model.config.hop_size, 5001):
        y = enhance(x[:count], **options, atten_lim_db=0.0)
        assert y.shape == (count,)
        assert y.dtype == np.float32
        np.testing.assert_allclose(y, x[:count], rtol=0, atol=1e-6)
        assert enhance(x[:count], **options).shape == (count,)


def test_same_length_and_blocks_change_nothing_but_rounding(bundled, x):
    want = enhance(x, model=bundled)
    assert np.array_equal(enhance(x, model=bundled, same_length=True), want)
    assert snr_db(enhance(x, model=bundled, block_frames=1), want) >= 118


def test_empty():
    y = enhance([])
    assert y.shape == (0,)
    assert y.dtype == np.float32


def test_the_bundled_model_is_the_default(bundled, x):
    assert np.array_equal(enhance(x), enhance(x, 48_000, bundled))


def test_one_call_does_not_touch_the_next(bundled, x):
    first = enhance(x, model=bundled)
    kept = first.copy()
    enhance(x[::-1], model=bundled)
    assert np.array_equal(first, kept)
    assert np.array_equal(enhance(x, model=bundled), kept)


def test_denoises(bundled, noisy):
    """Not a matter of quality, but of the signal's way: the pause before the first word gets quieter."""
    y = enhance(noisy, model=bundled)
    quiet = slice(4800, 9600)
    assert np.sum(y[quiet] ** 2) < 0.1 * np.sum(noisy[quiet] ** 2)
    assert np.sum(y**2) > 0.1 * np.sum(noisy**2)


def test_refusals(x):
    with pytest.raises(AudioError, match="4000 Hz"):
        enhance(x, 4_000)
    with pytest.raises(AudioError, match="int16"):
        enhance((x * 32767).astype(np.int16))
    with pytest.raises(AudioError, match="shape"):
        enhance(np.stack([[x, x]]))
    with pytest.raises(UsageError, match="mode"):
        enhance(x, mode="quick")
