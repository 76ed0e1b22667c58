"""The register tile against plain products in float64, in every shape and storage that kernels use."""

import functools

import numba
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfstream.dsp import tile as tiles
from dfstream.dsp.tile import LANES, ROWS, TALL, WIDE, tile
from dfstream.net.packing import aligned

STORED = {"as x": np.float32, "float16": np.float16, "int16": np.int16, "int8": np.int8}

#: (rows, vectors) of one row and of several, as `dfstream.net.kernels` makes them, by storage.
WHOLE = ((1, WIDE), (ROWS, TALL))
SHAPES = [(*shape, "as x") for shape in (*WHOLE, (1, 1), (ROWS, 1))]
SHAPES += [(*shape, storage) for storage in ("float16", "int16", "int8") for shape in WHOLE]
every_shape = pytest.mark.parametrize(("rows", "vectors", "storage"), SHAPES)

SIDE_BY_SIDE = 8

#: Half a unit in the last place: what one rounding may change. A sum of K products is rounded K times.
HALF_ULP = 2.0**-24


@functools.cache
def compiled(rows, vectors, storage="as x", *, own=False):
    """A tile as a function that can be called; weights are given as bytes."""
    multiply = tile(rows, vectors, storage, own=own)

    @numba.njit
    def call(x, x_at, x_row, w, w_at, w_row, y, y_at, y_row, K):
        multiply(x, x_at, x_row, w, w_at, w_row, y, y_at, y_row, K)

    return call


def random_weights(rng, storage, shape):
    """Weights as they may be stored, integers up to the largest."""
    if storage in ("int16", "int8"):
        limits = np.iinfo(STORED[storage])
        return rng.integers(limits.min, limits.max, shape, dtype=STORED[storage], endpoint=True)
    return rng.standard_normal(shape).astype(STORED[storage])


def in_bytes(weights):
    return np.frombuffer(np.ascontiguousarray(weights).tobytes(), np.uint8)


def product(x, w, y):
    """``y + x w`` in float64, and how far float32 may be from it."""
    x, w, y = (a.astype(np.float64) for a in (x, w, y))
    size = np.abs(y) + np.abs(x) @ np.abs(w)
    return y + x @ w, (x.shape[-1] + 1) * HALF_ULP * size


sizes = st.one_of(st.integers(1, 9), st.sampled_from([16, 31, 64, 257, 640]))
seeds = st.integers(0, 2**31)
gaps = st.integers(0, 5)


@every_shape
@given(seed=seeds, K=sizes, at=st.tuples(gaps, gaps, gaps), apart=st.tuples(gaps, gaps, gaps))
def test_equals_the_product(rows, vectors, storage, seed, K, at, apart):
    rng, n = np.random.default_rng(seed), vectors * LANES
    x_row, w_row, y_row = K + apart[0], n + apart[1], n + apart[2]
    x = rng.standard_normal(at[0] + rows * x_row).astype(np.float32)
    w = random_weights(rng, storage, at[1] + K * w_row)
    y = rng.standard_normal(at[2] + rows * y_row).astype(np.float32)
    wanted, bound = product(
        x[at[0] :].reshape(rows, x_row)[:, :K],
        w[at[1] :].reshape(K, w_row)[:, :n],
        y[at[2] :].reshape(rows, y_row)[:, :n],
    )
    after = y.copy()
    compiled(rows, vectors, storage)(x, at[0], x_row, in_bytes(w), at[1], w_row, after, at[2], y_row, K)
    written = np.zeros(len(y), bool)
    written[at[2] :].reshape(rows, y_row)[:, :n] = True
    assert (np.abs(after[written].reshape(rows, n) - wanted) <= bound).all()
    assert (after[~written] == y[~written]).all()


@given(seed=seeds, K=sizes, apart=st.tuples(gaps, gaps))
def test_every_row_may_have_weights_of_its_own(seed, K, apart):
    rng, rows = np.random.default_rng(seed), SIDE_BY_SIDE
    w_row, y_row = LANES + apart[0], LANES + apart[1]
    x = rng.standard_normal((rows, K)).astype(np.float32)
    w = rng.standard_normal((rows, K, w_row)).astype(np.float32)
    y = rng.standard_normal((rows, y_row)).astype(np.float32)
    after = y.ravel().copy()
    compiled(rows, 1, own=True)(x.ravel(), 0, K, in_bytes(w), 0, w_row, after, 0, y_row, K)
    after = after.reshape(rows, y_row)
    for r in range(rows):
        wanted, bound = product(x[r], w[r, :, :LANES], y[r, :LANES])
        assert (np.abs(after[r, :LANES] - wanted) <= bound).all()
    assert (after[:, LANES:] == y[:, LANES:]).all()


@given(seed=seeds, K=sizes, step=st.integers(0, 4))
def test_rows_read_may_overlap(seed, K, step):
    """As in a convolution over positions; a step of zero is one row for all."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(K + step * ROWS).astype(np.float32)
    w, y = rng.standard_normal((K, LANES)).astype(np.float32), np.zeros(ROWS * LANES, np.float32)
    compiled(ROWS, 1)(x, 0, step, in_bytes(w), 0, LANES, y, 0, LANES, K)
    wanted, bound = product(np.stack([x[step * r :][:K] for r in range(ROWS)]), w, np.zeros((1, 1)))
    assert (np.abs(y.reshape(ROWS, LANES) - wanted) <= bound).all()


@given(seed=seeds, K=sizes, n=st.integers(1, LANES))
def test_what_spills_over_a_row_changes_nothing(seed, K, n):
    """Rows of fewer values than a vector, weights filled up with zeros: each row's tail is the next row."""
    rng, behind = np.random.default_rng(seed), LANES
    x = rng.standard_normal((ROWS, K)).astype(np.float32)
    w = np.zeros((K, LANES), np.float32)
    w[:, :n] = rng.standard_normal((K, n))
    y = rng.standard_normal(ROWS * n + behind).astype(np.float32)
    rows = y[: ROWS * n].reshape(ROWS, n)
    wanted, bound = product(x, w[:, :n], rows)
    alone = np.zeros((ROWS, LANES), np.float32)
    alone[:, :n] = rows
    after, alone = y.copy(), alone.ravel()
    compiled(ROWS, 1)(x.ravel(), 0, K, in_bytes(w), 0, LANES, after, 0, n, K)
    compiled(ROWS, 1)(x.ravel(), 0, K, in_bytes(w), 0, LANES, alone, 0, LANES, K)
    found = after[: ROWS * n].reshape(ROWS, n)
    assert (np.abs(found - wanted) <= bound).all()
    assert (found == alone.reshape(ROWS, LANES)[:, :n]).all()
    assert (after[ROWS * n :] == y[ROWS * n :]).all()


@pytest.mark.parametrize("storage", STORED)
@given(seed=seeds, K=sizes)
def test_every_shape_gives_the_same_bits(storage, seed, K):
    rng, n = np.random.default_rng(seed), LANES * max(WIDE, TALL)
    x = rng.standard_normal((ROWS, K)).astype(np.float32)
    w, y = random_weights(rng, storage, (K, n)), rng.standard_normal((ROWS, n)).astype(np.float32)
    found = []
    for rows, vectors in {(rows, vectors) for rows, vectors, stored in SHAPES if stored == storage}:
        after = y.ravel().copy()
        for r in range(0, ROWS, rows):
            for v in range(0, n, vectors * LANES):
                place = r * n + v
                compiled(rows, vectors, storage)(x.ravel(), r * K, K, in_bytes(w), v, n, after, place, n, K)
        found.append(after)
    assert all((after == found[0]).all() for after in found)


def test_small_products_give_the_bits_of_others():
    rng, K, rows = np.random.default_rng(1), 37, SIDE_BY_SIDE
    x = rng.standard_normal((rows, K)).astype(np.float32)
    w, y = (rng.standard_normal(s).astype(np.float32) for s in ((rows, K, LANES), rows * LANES))
    together, one_by_one = y.copy(), y.copy()
    compiled(rows, 1, own=True)(x.ravel(), 0, K, in_bytes(w), 0, LANES, together, 0, LANES, K)
    for r in range(rows):
        compiled(1, 1)(x[r], 0, 0, in_bytes(w[r]), 0, LANES, one_by_one, r * LANES, 0, K)
    assert (together == one_by_one).all()


# -- storages ----------------------------------------------------------------------------------------------


def decoded(storage, weights):
    """What a tile reads: one times each weight, on top of -0, which keeps the sign of every zero."""
    n, one = WIDE * LANES, np.ones(1, np.float32)
    assert len(weights) % n == 0
    y = np.full(len(weights), -0.0, np.float32)
    for at in range(0, len(weights), n):
        compiled(1, WIDE, storage)(one, 0, 0, in_bytes(weights), at, n, y, at, 0, 1)
    return y


@pytest.mark.parametrize("read", [tiles._from_half, tiles._from_half_bits])
def test_every_half_precision_number_is_read_exactly(read, monkeypatch):
    """All bit patterns but those of infinities and NaN: normal and subnormal numbers, both zeros."""
    if read is tiles._from_half and not tiles._CONVERTS_HALF:
        pytest.skip("this machine would call a function")
    stored, _ = tiles._STORED["float16"]
    monkeypatch.setitem(tiles._STORED, "float16", (stored, read))
    compiled.cache_clear()
    weights = np.arange(2**16, dtype=np.uint16).view(np.float16)
    finite = np.isfinite(weights)
    assert finite.sum() == 2**16 - 2 * 2**10
    found, wanted = decoded("float16", weights)[finite], weights[finite].astype(np.float32)
    assert (found.view(np.uint32) == wanted.view(np.uint32)).all()


@pytest.mark.parametrize("storage", ["int16", "int8"])
def test_every_integer_is_read_exactly(storage):
    limits = np.iinfo(STORED[storage])
    weights = np.arange(limits.min, limits.max + 1).astype(STORED[storage])
    assert (decoded(storage, weights) == np.arange(limits.min, limits.max + 1)).all()


@pytest.mark.parametrize("storage", ["int16", "int8"])
def test_sums_of_the_largest_integers(storage):
    """They are float32: a sum that no integer register of their width would hold."""
    limits, K, n = np.iinfo(STORED[storage]), 255, WIDE * LANES
    for extreme in (limits.min, limits.max):
        w, y = np.full((K, n), extreme, STORED[storage]), np.zeros(n, np.float32)
        compiled(1, WIDE, storage)(np.ones(K, np.float32), 0, 0, in_bytes(w), 0, n, y, 0, 0, K)
        assert (y == K * int(extreme)).all()


def test_weights_need_no_alignment():
    """Panels of 16 values of one byte begin anywhere."""
    rng, K = np.random.default_rng(2), 5
    w = rng.integers(-128, 128, (K, LANES * WIDE)).astype(np.int8)
    shifted = aligned(w.size + 3, np.uint8)
    shifted[3:] = in_bytes(w)
    x, found = rng.standard_normal(K).astype(np.float32), []
    for data, at in ((in_bytes(w), 0), (shifted, 3)):
        y = np.zeros(LANES * WIDE, np.float32)
        compiled(1, WIDE, "int8")(x, 0, 0, data, at, LANES * WIDE, y, 0, 0, K)
        found.append(y)
    assert (found[0] == found[1]).all()
