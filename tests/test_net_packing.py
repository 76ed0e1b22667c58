"""How weights lie in memory and what precisions keep of them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfstream.dsp.tile import LANES
from dfstream.net.packing import PANEL, PRECISIONS, Store, aligned, panels, quantised

LINE = 64
TYPES = {"float32": np.float32, "fp16": np.float16, "int16": np.int16, "int8": np.int8}
LARGEST = {"int16": 32767, "int8": 127}

seeds = st.integers(0, 2**31)


def matrices(seed, outputs, inputs, spread=0.0):
    """Weights whose rows differ in size by up to so many powers of ten."""
    rng = np.random.default_rng(seed)
    sizes = 10.0 ** rng.uniform(-spread, spread, (outputs, 1))
    return (rng.standard_normal((outputs, inputs)) * sizes).astype(np.float32)


# -- panels --------------------------------------------------------------------------------------------------


def test_a_panel_is_what_a_tile_of_one_row_computes():
    assert PANEL == 64
    assert LANES == 16


@given(outputs=st.integers(1, 300), inputs=st.integers(1, 40), seed=seeds)
def test_every_weight_has_its_place(outputs, inputs, seed):
    """[K][64] for whole panels, then [K][16]; what is filled up is zero."""
    matrix = matrices(seed, outputs, inputs)
    flat, whole, at = panels(matrix), outputs // PANEL * PANEL, 0
    for first in [*range(0, whole, PANEL), *range(whole, outputs, LANES)]:
        width = PANEL if first < whole else LANES
        panel = flat[at : at + inputs * width].reshape(inputs, width)
        rows = matrix[first : first + width]
        assert (panel[:, : len(rows)] == rows.T).all()
        assert not panel[:, len(rows) :].any()
        at += inputs * width
    assert at == flat.size


@pytest.mark.parametrize("dtype", TYPES.values())
def test_panels_keep_the_type(dtype):
    assert panels(np.ones((3, 2), dtype)).dtype == dtype


# -- precisions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", PRECISIONS)
@given(outputs=st.integers(1, 20), inputs=st.integers(1, 20), seed=seeds)
def test_weights_come_back_within_half_a_step(precision, outputs, inputs, seed):
    matrix = matrices(seed, outputs, inputs, spread=3.0)
    stored, scales = quantised(matrix, precision)
    assert (stored.dtype, stored.shape) == (TYPES[precision], matrix.shape)
    assert (scales.dtype, scales.shape) == (np.float32, (outputs,))
    error = np.abs(stored * scales.astype(np.float64)[:, None] - matrix)
    if precision in LARGEST:
        # half a step of a row's largest weight, and what rounding of the scale adds to 32767 steps
        peaks = np.abs(matrix).max(axis=1, keepdims=True).astype(np.float64)
        assert (error <= peaks * (0.5 / LARGEST[precision] + 2.0**-23)).all()
    elif precision == "fp16":
        # half a unit of 11 bits, or of the smallest subnormal number
        assert (error <= np.abs(matrix) * 2.0**-11 + 2.0**-25).all()
        assert (scales == 1).all()
    else:
        assert not error.any()
        assert (scales == 1).all()


@pytest.mark.parametrize("precision", LARGEST)
@given(outputs=st.integers(1, 20), inputs=st.integers(1, 20), seed=seeds)
def test_the_largest_weight_of_an_output_is_the_largest_integer(precision, outputs, inputs, seed):
    """No bit is given away, and -128 and -32768 are left out: scales serve both signs."""
    stored, _ = quantised(matrices(seed, outputs, inputs, spread=3.0), precision)
    assert (np.abs(stored.astype(int)).max(axis=1) == LARGEST[precision]).all()


@pytest.mark.parametrize("precision", LARGEST)
def test_each_sign_of_the_largest_weight(precision):
    stored, scales = quantised(np.array([[2.0, -2.0, 1.0], [-3.0, 0.0, 0.75]], np.float32), precision)
    largest = LARGEST[precision]
    assert stored[0, :2].tolist() == [largest, -largest]
    assert stored[1, 0] == -largest
    np.testing.assert_allclose(scales, np.array([2.0, 3.0]) / largest, rtol=1e-7)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-42, 1e-40])
def test_outputs_without_weights_or_with_very_small_ones(precision, size):
    """No warning, no number that is none; a scale that float32 does not have is 1."""
    stored, scales = quantised(np.full((2, 3), size, np.float32), precision)
    assert np.isfinite(scales).all()
    assert (scales > 0).all()
    np.testing.assert_allclose(stored * scales.astype(np.float64)[:, None], size, atol=1e-40)


def test_a_row_does_not_change_with_its_neighbours():
    matrix = matrices(3, 5, 7, spread=2.0)
    for precision in PRECISIONS:
        stored, scales = quantised(matrix, precision)
        alone, scale = quantised(matrix[2:3], precision)
        assert (stored[2] == alone[0]).all()
        assert scales[2] == scale[0]


# -- memory --------------------------------------------------------------------------------------------------


@given(size=st.integers(0, 500), dtype=st.sampled_from([np.uint8, np.int16, np.float32, np.float64]))
def test_memory_begins_at_a_cache_line(size, dtype):
    found = aligned(size, dtype)
    assert (found.shape, found.dtype) == ((size,), dtype)
    assert found.ctypes.data % LINE == 0 or size == 0
    assert not found.any()
    found[:] = 1  # writable


parts = st.lists(st.tuples(st.sampled_from(sorted(TYPES)), st.integers(1, 100)), min_size=1, max_size=12)


@given(parts=parts, seed=seeds)
def test_what_was_stored_is_found_where_it_was_said_to_be(parts, seed):
    store, rng = Store(), np.random.default_rng(seed)
    added = [rng.integers(1, 100, size).astype(TYPES[name]) for name, size in parts]
    places = [store.add(values) for values in added]
    joined = store.joined(np.uint8)
    assert joined.ctypes.data % LINE == 0
    taken = np.zeros(joined.size, int)
    for values, place in zip(added, places, strict=True):
        assert place * values.itemsize % LINE == 0
        start = place * values.itemsize
        assert (joined[start : start + values.nbytes].view(values.dtype) == values).all()
        taken[start : start + values.nbytes] += 1
    assert taken.max() == 1
    assert not joined[taken == 0].any()


def test_a_store_takes_any_layout():
    store, matrix = Store(), np.arange(12, dtype=np.float32).reshape(3, 4)
    assert [store.add(matrix.T), store.add(matrix[:, ::2])] == [0, 16]
    joined = store.joined(np.float32)
    assert (joined[:12] == matrix.T.ravel()).all()
    assert (joined[16:22] == matrix[:, ::2].ravel()).all()


def test_an_empty_store():
    assert Store().joined(np.uint8).size == 0
