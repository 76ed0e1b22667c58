"""Every operation of the compiled network against its plain twin, run in small programs.

Frames of several streams, so that rows pass through tiles of several rows and of one. Where the twin is
linear, what rounding may change is known: the twin of all magnitudes, times the number of roundings.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import net_twins as twins
from dfstream.net.layout import Activation, Kind, Storage
from dfstream.net.packing import PANEL, panels, quantised
from dfstream.net.program import Buffer, View
from net_programs import Running, Small, as_map

HALF_ULP = 2.0**-24

#: Beyond what products round: bias, activation and the rounding of its argument.
ROUNDINGS = 4

#: Largest difference of the activations from float64; measured: 2.7e-7 and 1.6e-7.
TANH_LIMIT, SIGMOID_LIMIT = 3.5e-7, 2.5e-7

ACTIVATIONS = {
    Activation.NONE: (lambda x: x, 0.0),
    Activation.RELU: (twins.relu, 0.0),
    Activation.SIGMOID: (twins.sigmoid, SIGMOID_LIMIT),
    Activation.TANH: (np.tanh, TANH_LIMIT),
}

seeds = st.integers(0, 2**31)
activations = st.sampled_from(list(Activation))
calls = st.tuples(st.integers(1, 5), st.integers(1, 4))  # streams, frames


def random(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def frames_of(x):
    """Yield (stream, frame, map [channels, positions]) of x [B, channels, T, positions]."""
    for b, t in np.ndindex(x.shape[0], x.shape[2]):
        yield b, t, x[b, :, t]


def check(found, wanted, size, products, activation=Activation.NONE):
    """Compare before an activation that magnifies nothing; ``size`` is the twin of all magnitudes."""
    function, limit = ACTIVATIONS[activation]
    bound = (products + ROUNDINGS) * HALF_ULP * size + limit
    assert (np.abs(found - function(wanted)) <= bound).all()


# -- element by element ------------------------------------------------------------------------------------


@given(
    seed=seeds, call=calls, positions=st.integers(1, 20), channels=st.integers(1, 20), part=st.data(),
    activation=activations,
)  # fmt: skip
def test_copy_of_some_channels(seed, call, positions, channels, part, activation):
    """And into some channels of another map, whose others stay as they are."""
    (B, T), x = call, random(seed, call[0], channels, call[1], positions)
    first = part.draw(st.integers(0, channels - 1))
    count = part.draw(st.integers(1, channels - first))
    small = Small()
    source, target = small.fresh(positions, channels), small.fresh(positions, count + 3)
    some = View(source.buffer, first, positions, count, channels)
    small.emit(Kind.COPY, some, View(target.buffer, 1, positions, count, count + 3), activation=activation)
    found = Running(small.program(source, target), B, T)(x)
    for b, t, frame in frames_of(x):
        y = as_map(found[b, t], count + 3)
        wanted = frame[first : first + count].astype(np.float64)
        check(y[1:-2], wanted, np.abs(wanted), 0, activation)
        assert not y[[0, -2, -1]].any()


@given(
    seed=seeds, call=calls, positions=st.integers(1, 20), channels=st.integers(1, 20), activation=activations
)
def test_sum_of_two_maps(seed, call, positions, channels, activation):
    (B, T), shape = call, (call[0], channels, call[1], positions)
    x, z = random(seed, *shape), random(seed + 1, *shape)
    small = Small()
    views = [small.fresh(positions, channels) for _ in range(3)]
    small.emit(Kind.ADD, views[0], views[2], views[1], activation=activation)
    found = Running(small.program(views[0], views[2], views[1]), B, T)(x, z)
    for b, t, frame in frames_of(x):
        wanted = frame.astype(np.float64) + z[b, :, t]
        size = np.abs(frame) + np.abs(z[b, :, t])
        check(as_map(found[b, t], channels), wanted, size, 1, activation)


@given(seed=seeds, call=calls, positions=st.integers(1, 40), activation=activations)
def test_scale_and_offset(seed, call, positions, activation):
    (B, T), (scale, offset) = call, random(seed, 2)
    x = random(seed, B, 2, T, positions)
    small = Small()
    source, target, at = small.fresh(positions, 2), small.fresh(positions, 2), small.floats([scale, offset])
    small.emit(Kind.SCALE, source, target, weights=at, bias=at + 1, activation=activation)
    found = Running(small.program(source, target), B, T)(x)
    for b, t, frame in frames_of(x):
        wanted = frame * np.float64(scale) + np.float64(offset)
        check(as_map(found[b, t], 2), wanted, np.abs(frame * scale) + abs(offset), 1, activation)


def activated(values, activation):
    small = Small()
    source, target = small.fresh(values.size, 1), small.fresh(values.size, 1)
    small.emit(Kind.COPY, source, target, activation=activation)
    return Running(small.program(source, target), 1, 1)(values.reshape(1, 1, 1, -1))[0, 0]


GRID = np.concatenate([np.linspace(-20, 20, 400_001), np.geomspace(1e-38, 1, 20_001)]).astype(np.float32)


@pytest.mark.parametrize("activation", [Activation.TANH, Activation.SIGMOID])
def test_activations_over_a_dense_grid(activation):
    function, limit = ACTIVATIONS[activation]
    found = activated(GRID, activation)
    assert np.abs(found - function(GRID.astype(np.float64))).max() <= limit


def test_tanh_is_odd_and_keeps_small_numbers():
    found = activated(GRID, Activation.TANH)
    assert (activated(-GRID, Activation.TANH) == -found).all()
    small = np.abs(GRID) < 1e-4
    # products on the way are subnormal before the results are, from 2e-36 down
    np.testing.assert_allclose(found[small], GRID[small], rtol=3e-7, atol=2e-43)


@pytest.mark.parametrize(
    ("activation", "lowest", "highest"), [(Activation.TANH, -1, 1), (Activation.SIGMOID, 0, 1)]
)
def test_activations_saturate(activation, lowest, highest):
    values = np.array([-np.inf, -3e38, -1e4, -30, 30, 1e4, 3e38, np.inf], np.float32)
    found, limit = activated(values, activation), ACTIVATIONS[activation][1]
    np.testing.assert_allclose(found[:4], lowest, atol=limit)
    np.testing.assert_allclose(found[4:], highest, atol=limit)
    grid = activated(GRID, activation)
    assert grid.min() >= lowest - limit
    assert grid.max() <= highest + limit


def test_signs_of_zero():
    zeros = np.array([0.0, -0.0], np.float32)
    assert np.signbit(activated(zeros, Activation.TANH)).tolist() == [False, True]
    assert activated(zeros, Activation.SIGMOID).tolist() == [0.5, 0.5]
    assert activated(zeros, Activation.RELU).tolist() == [0.0, 0.0]
    assert np.signbit(activated(zeros, Activation.NONE)).tolist() == [False, True]


def test_relu_of_small_numbers():
    values = np.array([1e-45, -1e-45, 1e-38, -1e-38, 3e38, -3e38], np.float32)
    assert (activated(values, Activation.RELU) == np.maximum(values, 0)).all()


# -- maps ---------------------------------------------------------------------------------------------------


@st.composite
def convolutions(draw, outputs=None):
    """Sizes of a convolution that has at least one result."""
    taps, stride = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    pads = draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    positions = draw(st.integers(max(1, taps - sum(pads)), 20))
    channels = draw(st.integers(1, 40))
    outputs = channels if outputs is None else draw(outputs)
    return positions, channels, outputs, taps, stride, pads


def convolved(kind, sizes, weights, weight, bias, x, group, activation):
    """Run one convolution; results as maps by (stream, frame), and how far rounding may move them."""
    positions, channels, outputs, taps, stride, pads = sizes
    small = Small()
    source = small.fresh(positions, channels)
    target = small.fresh((positions + sum(pads) - taps) // stride + 1, outputs)
    fields = {"taps": taps, "stride": stride, "activation": activation}
    fields |= {"weights": small.floats(weights), "bias": small.floats(bias)}
    small.emit(kind, small.padded(source, *pads), target, **fields)
    found = Running(small.program(source, target), x.shape[0], x.shape[2])(x)
    options = {"stride": stride, "pads": pads, "group": group}
    for b, t, frame in frames_of(x):
        wanted = twins.convolution(frame, weight, bias, **options)
        size = twins.convolution(np.abs(frame), np.abs(weight), np.abs(bias), **options)
        check(as_map(found[b, t], outputs), wanted, size, weight[0].size, activation)


@settings(max_examples=40)
@given(
    seed=seeds,
    call=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    # one output has a kernel of its own, more than 64 take panels, others fill vectors or not
    sizes=convolutions(st.one_of(st.integers(1, 40), st.sampled_from([64, 80, 129]))),
    activation=activations,
)
def test_convolution(seed, call, sizes, activation):
    positions, channels, outputs, taps, *_ = sizes
    x, weight = random(seed, call[0], channels, call[1], positions), random(seed, outputs, channels, taps)
    matrix = weight.transpose(0, 2, 1).reshape(outputs, -1)
    weights = matrix if outputs == 1 else panels(matrix)
    convolved(Kind.CONV, sizes, weights, weight, random(seed, outputs), x, 1, activation)


@settings(max_examples=40)
@given(seed=seeds, call=calls, sizes=convolutions(), activation=activations)
def test_convolution_of_each_channel(seed, call, sizes, activation):
    positions, channels, outputs, taps, *_ = sizes
    x, weight = random(seed, call[0], channels, call[1], positions), random(seed, outputs, 1, taps)
    weights = weight[:, 0].T
    convolved(Kind.DEPTHWISE, sizes, weights, weight, random(seed, outputs), x, channels, activation)


@settings(max_examples=40)
@given(
    seed=seeds, call=calls, positions=st.integers(1, 12), channels=st.integers(1, 40), activation=activations
)
def test_upsampling(seed, call, positions, channels, activation):
    """``y[2f] = w1 x[f]`` and ``y[2f + 1] = w2 x[f] + w0 x[f + 1]``."""
    (B, T), x = call, random(seed, call[0], channels, call[1], positions)
    weight, bias = random(seed, channels, 3), random(seed, channels)
    small = Small()
    source, target = small.fresh(positions, channels), small.fresh(positions, 2 * channels)
    w0, w1, w2 = weight.T
    small.emit(
        Kind.UPSAMPLE, small.padded(source, 0, 1), target, taps=2, activation=activation,
        weights=small.floats([w1, w2, np.zeros(channels), w0]), bias=small.floats([bias, bias]),
    )  # fmt: skip
    found = Running(small.program(source, target), B, T)(x)
    for b, t, frame in frames_of(x):
        wanted = twins.upsampling(frame, weight, bias)
        size = twins.upsampling(np.abs(frame), np.abs(weight), np.abs(bias))
        check(as_map(found[b, t], channels), wanted, size, 2, activation)


@settings(max_examples=40)
@given(
    seed=seeds, call=st.tuples(st.integers(1, 3), st.integers(1, 7)), positions=st.integers(1, 8),
    channels=st.integers(1, 6), outputs=st.integers(1, 20), taps=st.integers(2, 4), activation=activations,
)  # fmt: skip
def test_time_convolution_by_partial_sums(seed, call, positions, channels, outputs, taps, activation):
    """Terms of a frame for all coming results, newest first, and the sums begun by earlier frames."""
    (B, T), x = call, random(seed, call[0], channels, call[1], positions)
    weight, bias = random(seed, outputs, channels, taps, 1), random(seed, outputs)
    newest_first = weight[:, :, ::-1, 0].transpose(2, 0, 1).reshape(taps * outputs, channels)
    small = Small()
    source, terms = small.fresh(positions, channels), small.fresh(positions, taps * outputs)
    target, waiting = small.fresh(positions, outputs), (taps - 1) * outputs
    state = View(Buffer(positions * waiting, section="df"), 0, positions, waiting, waiting)
    begun = np.concatenate([bias, np.zeros(waiting)])
    weights = small.floats(panels(newest_first))
    small.emit(Kind.CONV, source, terms, weights=weights, bias=small.floats(begun))
    small.emit(Kind.SUMS, terms, target, state, activation=activation)
    running = Running(small.program(source, target, states=[state.buffer]), B, T)
    found = np.concatenate([running(x[:, :, :1]), running(x[:, :, 1:])], axis=1) if T > 1 else running(x)
    for b in range(B):
        frames = list(x[b].transpose(1, 0, 2))
        wanted = twins.time_convolution(frames, weight, bias, (0, 0))
        sizes = twins.time_convolution([np.abs(f) for f in frames], np.abs(weight), np.abs(bias), (0, 0))
        for t in range(T):
            check(as_map(found[b, t], outputs), wanted[t], sizes[t], channels * taps + taps, activation)


# -- vectors ------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(
    seed=seeds, call=calls, inputs=st.integers(1, 70), activation=activations,
    outputs=st.one_of(st.integers(1, 40), st.sampled_from([64, 144])),
)  # fmt: skip
def test_linear_layer_over_all_frames(seed, call, inputs, outputs, activation):
    (B, T), x = call, random(seed, call[0], inputs, call[1], 1)
    weight, bias = random(seed, outputs, inputs), random(seed, outputs)
    small = Small()
    source, target = small.fresh(1, inputs), small.fresh(1, outputs)
    weights = small.floats(weight if outputs == 1 else panels(weight))
    small.emit_for_all(
        Kind.CONV, source, target, weights=weights, bias=small.floats(bias), activation=activation
    )
    found = Running(small.program(source, target), B, T)(x)
    for b, t, frame in frames_of(x):
        wanted = twins.linear_in_groups(frame[:, 0], weight[None], bias)
        size = twins.linear_in_groups(np.abs(frame[:, 0]), np.abs(weight[None]), np.abs(bias))
        check(found[b, t], wanted, size, inputs, activation)


@settings(max_examples=60)
@given(
    seed=seeds, call=calls, groups=st.integers(1, 19), inputs=st.integers(1, 20),
    outputs=st.one_of(st.just(16), st.integers(2, 40)), activation=activations,
)  # fmt: skip
def test_linear_layer_in_groups(seed, call, groups, inputs, outputs, activation):
    """Groups of 16 results go eight at a time where frames are few."""
    (B, T), x = call, random(seed, call[0], groups * inputs, call[1], 1)
    weight, bias = random(seed, groups, outputs, inputs), random(seed, groups * outputs)
    small = Small()
    source, target = small.fresh(1, groups * inputs), small.fresh(1, groups * outputs)
    a, b = View(source.buffer, 0, 1, inputs, inputs), View(target.buffer, 0, 1, outputs, outputs)
    weights = small.floats(np.concatenate([panels(part) for part in weight]))
    fields = {"weights": weights, "bias": small.floats(bias), "groups": groups, "activation": activation}
    small.emit_for_all(Kind.GROUPED, a, b, **fields)
    found = Running(small.program(source, target), B, T)(x)
    for stream, t, frame in frames_of(x):
        wanted = twins.linear_in_groups(frame[:, 0], weight, bias)
        size = twins.linear_in_groups(np.abs(frame[:, 0]), np.abs(weight), np.abs(bias))
        check(found[stream, t], wanted, size, inputs, activation)


# -- recurrent layers ---------------------------------------------------------------------------------------

STORAGES = {
    "float32": Storage.FLOAT32, "int16": Storage.INT16, "fp16": Storage.FLOAT16, "int8": Storage.INT8
}  # fmt: skip

#: Largest difference of a state; measured: 4.5e-7. Each step adds its activations' errors, and forgets.
GRU_LIMIT = 2e-6


class Layer:
    """A recurrent layer: its weights as they are stored, and as numbers."""

    def __init__(self, seed, inputs, hidden, precision):
        W, R = random(seed, 3 * hidden, inputs) / inputs**0.5, random(seed + 1, 3 * hidden, hidden)
        self.hidden, self.bias = hidden, random(seed + 2, 6 * hidden) / 2
        (self.w, scale_w), (self.r, scale_r) = (quantised(m, precision) for m in (W, R / hidden**0.5))
        self.scales = np.concatenate([scale_w, scale_r])
        self.weight = self.w * scale_w.astype(np.float64)[:, None]
        self.recurrent = self.r * scale_r.astype(np.float64)[:, None]

    def emit(self, small, x, y, state):
        sums = -(-3 * self.hidden // PANEL) * PANEL
        weights, recurrent = (
            small.stored.add(panels(np.pad(m, ((0, sums - len(m)), (0, 0))))) for m in (self.w, self.r)
        )
        small.emit_for_all(
            Kind.GRU, x, y, state, scratch=(sums, sums), weights=weights, recurrent=recurrent,
            bias=small.floats(self.bias), scales=small.floats(self.scales),
        )  # fmt: skip


@pytest.mark.parametrize("precision", STORAGES)
@settings(max_examples=15)
@given(
    seed=seeds, call=st.tuples(st.integers(1, 6), st.integers(1, 6)), inputs=st.integers(1, 70),
    hidden=st.one_of(st.integers(1, 40), st.sampled_from([64, 85, 128])),
)  # fmt: skip
def test_recurrent_layers(precision, seed, call, inputs, hidden):
    """Two layers in one state, from a random state on, in two calls."""
    (B, T), x = call, random(seed, call[0], inputs, call[1] + 1, 1)
    small = Small()
    layers = [Layer(seed, inputs, hidden, precision), Layer(seed + 9, hidden, hidden, precision)]
    source, between, target = small.fresh(1, inputs), small.fresh(1, hidden), small.fresh(1, hidden)
    state = Buffer(2 * hidden, section="enc")
    parts = [View(state, layer * hidden, 1, hidden, hidden) for layer in (0, 1)]
    layers[0].emit(small, source, between, parts[0])
    layers[1].emit(small, between, target, parts[1])
    running = Running(small.program(source, target, states=[state], storage=STORAGES[precision]), B, T)
    h = random(seed, B, 2, hidden) / 2
    running.placed.sides[0].states["enc"][...] = h.reshape(B, -1)
    found = np.concatenate([running(x[:, :, :T]), running(x[:, :, T:])], axis=1)
    h = h.astype(np.float64)
    for b, t, frame in sorted(frames_of(x), key=lambda entry: entry[1]):
        row = frame[:, 0]
        for layer, index in zip(layers, (0, 1), strict=True):
            row = h[b, index] = twins.gru_step(row, h[b, index], layer.weight, layer.recurrent, layer.bias)
        np.testing.assert_allclose(found[b, t], row, atol=GRU_LIMIT)
    np.testing.assert_allclose(running.placed.sides[0].states["enc"], h.reshape(B, -1), atol=GRU_LIMIT)


def test_a_gate_that_is_closed_keeps_the_state_exactly():
    """``n + z (h - n)``: with z = 1 the state does not creep, with z = 0 it is forgotten."""
    small, hidden = Small(), 5
    layer = Layer(1, 3, hidden, "float32")
    layer.w[:], layer.r[:] = 0, 0
    layer.bias[:] = 0
    layer.bias[: 2 * hidden : 2] = 100
    layer.bias[1 : 2 * hidden : 2] = -100
    source, target, state = small.fresh(1, 3), small.fresh(1, hidden), Buffer(hidden, section="df")
    layer.emit(small, source, target, View(state, 0, 1, hidden, hidden))
    running = Running(small.program(source, target, states=[state]), 1, 4)
    h = random(2, 1, hidden)
    running.placed.sides[0].states["df"][...] = h
    found = running(random(3, 1, 3, 4, 1))[0]
    np.testing.assert_allclose(found[:, 0::2], np.broadcast_to(h[:, 0::2], (4, 3)), rtol=2e-6)
    np.testing.assert_allclose(found[:, 1::2], 0, atol=1e-6)


# -- bits ---------------------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(
    seed=seeds, call=st.tuples(st.integers(1, 6), st.integers(1, 6)), inputs=st.integers(1, 40),
    outputs=st.one_of(st.just(16), st.integers(2, 40)), groups=st.integers(1, 10),
)  # fmt: skip
def test_frames_and_streams_alone_give_the_same_bits(seed, call, inputs, outputs, groups):
    """A grouped layer and a GRU behind it, whose products are cut otherwise for any number of rows."""
    (B, T), x = call, random(seed, call[0], groups * inputs, call[1], 1)
    small, hidden = Small(), 7
    source, middle = small.fresh(1, groups * inputs), small.fresh(1, groups * outputs)
    target, state = small.fresh(1, hidden), Buffer(hidden, section="enc")
    a, b = View(source.buffer, 0, 1, inputs, inputs), View(middle.buffer, 0, 1, outputs, outputs)
    weights = small.floats(np.concatenate([panels(random(seed + g, outputs, inputs)) for g in range(groups)]))
    fields = {"weights": weights, "bias": small.floats(random(seed, groups * outputs)), "groups": groups}
    small.emit_for_all(Kind.GROUPED, a, b, **fields, activation=Activation.TANH)
    layer = Layer(seed, groups * outputs, hidden, "float32")
    layer.emit(small, middle, target, View(state, 0, 1, hidden, hidden))
    program = small.program(source, target, states=[state])
    together = Running(program, B, T)(x)
    for b in range(B):
        alone = Running(program, 1, 1)
        one_by_one = [alone(x[b : b + 1, :, t : t + 1])[0, 0] for t in range(T)]
        assert (np.stack(one_by_one) == together[b]).all()
