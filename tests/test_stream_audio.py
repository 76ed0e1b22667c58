"""What goes into a stream and comes out: which arrays it takes and refuses, and whose they are."""

import functools

import numpy as np
import pytest

from dfstream import DfstreamError, Stream
from dfstream.errors import AudioError, UsageError
from naive_engine import cut, streamed


@pytest.fixture(scope="session")
def stream(bundled):
    """A stream of the bundled model with the given options, as new; made once."""
    made = functools.cache(lambda **options: Stream(bundled, **options))

    def get(**options):
        made(**options).reset()
        return made(**options)

    return get


@pytest.fixture(scope="session")
def x(noisy):
    return noisy[24_000:][:16_137]


# -- what is no audio ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30, -3e38, 1e6, 1e300])
def test_bad_samples_become_zeros(stream, x, bad):
    where = [0, 700, 701, 5000, len(x) - 1]
    spoilt, zeroed = x.astype(np.float64), x.copy()
    spoilt[where], zeroed[where] = bad, 0
    s = stream()
    y = streamed(s, spoilt, [1234])
    assert s.stats.replaced == len(where)
    assert np.isfinite(y).all()
    assert np.array_equal(y, streamed(stream(), zeroed))


def test_loud_audio_is_audio(stream, x):
    """Nothing is clipped or replaced far above full scale, as in int16 values taken for floats."""
    s = stream(atten_lim_db=0.0)
    loud = x * np.float32(32768)
    y = streamed(s, loud)
    assert s.stats.replaced == 0
    np.testing.assert_allclose(y[s.delay_samples :], loud, rtol=0, atol=1e-6 * 32768)


@pytest.mark.parametrize("parity", ["rust", "python"])
def test_a_minute_of_digital_silence(stream, parity):
    s = stream(parity=parity, block_frames=100)
    y = streamed(s, np.zeros(60 * 48_000, np.float32), [48_000])
    assert not y.any()
    assert np.isfinite(s.lsnr_db)


def test_speech_after_a_minute_of_digital_silence(stream, x):
    s = stream(block_frames=100)
    s.process(np.zeros(60 * 48_000, np.float32))
    y = np.concatenate([s.process(x), s.flush()])
    assert np.isfinite(y).all()
    assert np.abs(y).max() > 0.01


@pytest.mark.parametrize(
    ("audio", "said"),
    [
        (np.zeros(10, np.int16), "int16"),
        ([0, 1, 2], "int64"),
        (np.zeros(10, bool), "bool"),
        (np.zeros(10, np.complex64), "complex64"),
        (np.array([None, 1.0]), "object"),
        (np.zeros((10, 2), np.float32), r"\(10, 2\)"),
        (np.zeros((1, 10), np.float32), r"\(1, 10\)"),
        (np.float32(0.5), r"\(\)"),
        ("speech", r"\(\)"),
        ([[0.0], [0.0, 0.0]], "uneven"),
    ],
)
def test_refused_audio(stream, audio, said, x):
    want = streamed(stream(), x)
    s = stream()
    s.process(x[:1000])
    with pytest.raises(AudioError, match=said):
        s.process(audio)
    y = np.concatenate([s.process(x[1000:]), s.flush()])
    assert np.array_equal(y, want[960:]), "a refused chunk has left its traces"


@pytest.mark.parametrize(
    "option",
    [
        {"mode": "fast"},
        {"mode": None},
        {"backend": "abacus"},
        {"parity": "c"},
        {"block_frames": 0},
        {"block_frames": 4097},
        {"block_frames": 1.5},
        {"block_frames": True},
        {"post_filter": -0.01},
        {"post_filter": 1.01},
        {"post_filter": float("nan")},
        {"post_filter": None},
        {"atten_lim_db": -1.0},
        {"atten_lim_db": float("nan")},
        {"atten_lim_db": "12"},
        {"threads": 0},
        {"threads": 1.5},
    ],
    ids=str,
)
def test_refused_options(bundled, option):
    (name,) = option
    with pytest.raises(UsageError, match=f"{name}.*"):
        Stream(bundled, **option)


def test_refused_rates_and_models(synthetic_model, bundled, tmp_path):
    for rate in (7_999, 192_001, 44_100.5, "48000", None):
        with pytest.raises(AudioError, match="8000 to 192000 Hz"):
            Stream(bundled, sample_rate=rate)
    with pytest.raises(UsageError, match="no model"):
        Stream("no such model")
    with pytest.raises(DfstreamError):
        Stream(tmp_path)
    with pytest.raises(DfstreamError, match="no window"):
        Stream(synthetic_model("dfn3-ll"), mode="stateful-h0")


# -- arrays ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"block_frames": 3}, {"same_length": True}], ids=str)
def test_output_is_the_callers(stream, x, options):
    s = stream(**options)
    pieces = [s.process(chunk) for chunk in cut(x, [480, 480, 480, 1440, 1000])]
    kept = [piece.copy() for piece in pieces]
    s.process(x)
    last = s.flush()
    assert all(map(np.array_equal, pieces, kept))
    assert all(piece.flags.writeable for piece in (*pieces, last))
    again = stream(**options)
    for chunk, want in zip(cut(x, [480, 480, 480, 1440, 1000]), kept, strict=True):
        y = again.process(chunk)
        assert np.array_equal(y, want)
        y[:] = np.nan  # which must not reach the stream


def test_input_is_left_alone(stream, x):
    for chunks in ([480], [1000], [len(x)]):
        s, given = stream(), x.copy()
        given[100] = np.nan
        kept = given.copy()
        for chunk in cut(given, chunks):
            s.process(chunk)
        s.flush()
        assert np.array_equal(given, kept, equal_nan=True)


def test_input_may_be_overwritten(stream, x):
    """A caller reads every chunk into the same buffer; the waiting part of one is the stream's own."""
    s, buffer, pieces = stream(), np.empty(700, np.float32), []
    for chunk in cut(x, [700]):
        buffer[: len(chunk)] = chunk
        pieces.append(s.process(buffer[: len(chunk)]))
        buffer[:] = np.nan
    assert np.array_equal(np.concatenate([*pieces, s.flush()]), streamed(stream(), x))


def forms(x):
    """The same samples as other arrays and sequences that a stream takes."""
    strided = np.repeat(x, 2)[::2]
    reversed_twice = x[::-1].copy()[::-1]
    frozen = x.copy()
    frozen.flags.writeable = False
    column = np.stack([x, -x], axis=1)[:, 0]
    return {
        "float64": x.astype(np.float64), "longdouble": x.astype(np.longdouble), "list": x.tolist(),
        "tuple": tuple(x.tolist()), "big-endian": x.astype(">f4"), "strided": strided,
        "reversed": reversed_twice, "read-only": frozen, "column": column, "shared": memoryview(x),
    }  # fmt: skip


@pytest.mark.parametrize("form", list(forms(np.zeros(2, np.float32))))
def test_accepted_forms(stream, x, form):
    y = streamed(stream(block_frames=16), forms(x)[form])
    assert y.dtype == np.float32
    assert y.flags.c_contiguous
    assert np.array_equal(y, streamed(stream(block_frames=16), x))


def test_half_precision_is_its_float32(stream, x):
    half = x.astype(np.float16)
    y = streamed(stream(), half)
    assert np.array_equal(y, streamed(stream(), half.astype(np.float32)))
