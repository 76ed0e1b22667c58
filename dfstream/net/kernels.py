"""The operations of the network, one short kernel each, and the walk over a program of them.

All maps of all frames lie in one flat memory, channels side by side: what is read together lies
together, flattening and splitting into groups move nothing, and a convolution over positions is a
product with rows that overlap. No kernel allocates. Sums run in one order whatever the number of frames
and streams, so blocks and batches of any size give the same bits.

Arguments called like an operand of an operation (``x``, ``z``, ``y``) say where it begins in the memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numba import types

from dfstream.dsp._jit import float32, inner, inner_sum, intp, jit, reads, writes
from dfstream.dsp.tile import LANES, ROWS, TALL, WIDE, tile
from dfstream.net.layout import OPERATION, PHASE, Activation, Kind, Storage
from dfstream.net.packing import PANEL

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Bytes = NDArray[np.uint8]

__all__ = ["run"]

# members as plain numbers, which is what compiled code compares
_COPY, _ADD, _SCALE, _CONV, _DEPTHWISE, _UPSAMPLE, _SUMS, _GROUPED, _GRU = (int(kind) for kind in Kind)
_NONE, _RELU, _SIGMOID, _TANH = (int(activation) for activation in Activation)
_FLOAT32, _INT16, _FLOAT16, _INT8 = (int(storage) for storage in Storage)

_TALL_LANES, _SIDE_BY_SIDE = TALL * LANES, 8

_one, _several = tile(1, WIDE), tile(ROWS, TALL)
_one_narrow, _several_narrow = tile(1, 1), tile(ROWS, 1)
_one_int16, _several_int16 = tile(1, WIDE, "int16"), tile(ROWS, TALL, "int16")
_one_float16, _several_float16 = tile(1, WIDE, "float16"), tile(ROWS, TALL, "float16")
_one_int8, _several_int8 = tile(1, WIDE, "int8"), tile(ROWS, TALL, "int8")
_small = tile(_SIDE_BY_SIDE, 1, own=True)
_small_in_two = tile(_SIDE_BY_SIDE, 1, own=True, parts=2)
_small_in_four = tile(_SIDE_BY_SIDE, 1, own=True, parts=4)


# -- element by element --------------------------------------------------------------------------------


@inner
def _tanh(x: Any) -> Any:
    """Rational approximation of the hyperbolic tangent, odd degree 13 over even degree 6, within 3e-7.

    The coefficients are those of Eigen and onnxruntime. No library is called, so loops become vectors.
    """
    x = min(max(x, np.float32(-9.0)), np.float32(9.0))
    q = x * x
    p = np.float32(-2.76076847742355e-16)
    p = p * q + np.float32(2.00018790482477e-13)
    p = p * q + np.float32(-8.60467152213735e-11)
    p = p * q + np.float32(5.12229709037114e-08)
    p = p * q + np.float32(1.48572235717979e-05)
    p = p * q + np.float32(6.37261928875436e-04)
    p = p * q + np.float32(4.89352455891786e-03)
    d = np.float32(1.19825839466702e-06)
    d = d * q + np.float32(1.18534705686654e-04)
    d = d * q + np.float32(2.26843463243900e-03)
    d = d * q + np.float32(4.89352518554385e-03)
    return p * x / d


@inner
def _sigmoid(x: Any) -> Any:
    return np.float32(0.5) * _tanh(np.float32(0.5) * x) + np.float32(0.5)


@inner
def _activate(memory: Floats, at: int, count: int, activation: int) -> None:
    y = memory[at : at + count]
    if activation == _RELU:
        for i in range(count):
            y[i] = max(y[i], np.float32(0.0))
    elif activation == _SIGMOID:
        for i in range(count):
            y[i] = _sigmoid(y[i])
    elif activation == _TANH:
        for i in range(count):
            y[i] = _tanh(y[i])


@inner
def _move(source: Floats, x: int, memory: Floats, y: int, count: int) -> None:
    values, target = source[x : x + count], memory[y : y + count]
    for i in range(count):
        target[i] = values[i]


@inner
def _copy(op: Any, memory: Floats, x: int, y: int) -> None:
    if op.x_step == op.outputs and op.y_step == op.outputs:
        _move(memory, x, memory, y, op.positions * op.outputs)
    else:
        for f in range(op.positions):
            _move(memory, x + f * op.x_step, memory, y + f * op.y_step, op.outputs)


@inner
def _add(op: Any, memory: Floats, x: int, z: int, y: int) -> None:
    for f in range(op.positions):
        a, b, target = memory[x + f * op.x_step :], memory[z + f * op.z_step :], memory[y + f * op.y_step :]
        for c in range(op.outputs):
            target[c] = a[c] + b[c]


@inner
def _scale(op: Any, memory: Floats, weights: Floats, x: int, y: int) -> None:
    """``x * scale + offset`` with two numbers for all."""
    scale, offset = weights[op.weights], weights[op.bias]
    for f in range(op.positions):
        source, target = memory[x + f * op.x_step :], memory[y + f * op.y_step :]
        for c in range(op.outputs):
            target[c] = source[c] * scale + offset


# -- maps ------------------------------------------------------------------------------------------------


@inner
def _depthwise(op: Any, memory: Floats, weights: Floats, x: int, y: int) -> None:
    """Convolve each channel by itself; taps are read from ``x`` on, zeros lie beside the map."""
    C = op.outputs
    for f in range(op.positions):
        target, bias = memory[y + f * op.y_step :], weights[op.bias :]
        tap, w = memory[x + f * op.stride * op.x_step :], weights[op.weights :]
        for c in range(C):
            target[c] = bias[c] + tap[c] * w[c]
        for j in range(1, op.taps):
            tap, w = memory[x + (f * op.stride + j) * op.x_step :], weights[op.weights + j * C :]
            for c in range(C):
                target[c] += tap[c] * w[c]


@inner
def _upsample(op: Any, memory: Floats, weights: Floats, x: int, y: int) -> None:
    """Convolve each channel by itself into two results a position; weights [tap][phase][channel]."""
    C = op.inputs
    for f in range(op.positions):
        here, beyond = memory[x + f * op.x_step :], memory[x + (f + 1) * op.x_step :]
        for phase in range(2):
            target, bias = memory[y + f * op.y_step + phase * C :], weights[op.bias + phase * C :]
            w_here, w_beyond = weights[op.weights + phase * C :], weights[op.weights + (2 + phase) * C :]
            for c in range(C):
                target[c] = bias[c] + here[c] * w_here[c] + beyond[c] * w_beyond[c]


@inner
def _partial_sums(op: Any, memory: Floats, x: int, z: int, y: int) -> None:
    """Add what this frame gives to all coming results, and take out the first, which is complete.

    ``x`` holds a frame's terms [taps][outputs] at each position, ``z`` the sums begun by earlier frames.
    """
    done, waiting = op.outputs, op.z_step
    for f in range(op.positions):
        term, begun = x + f * op.x_step, z + f * waiting
        total, sums = memory[term : term + waiting], memory[begun:]
        for i in range(waiting):
            total[i] += sums[i]
        _move(memory, term, memory, y + f * op.y_step, done)
        _move(memory, term + done, memory, begun, waiting)


# -- matrix products ---------------------------------------------------------------------------------------


@inner_sum
def _dot(memory: Floats, x: int, weights: Floats, w: int, K: int) -> Any:
    a, b, total = memory[x:], weights[w:], np.float32(0.0)
    for k in range(K):
        total += a[k] * b[k]
    return total


@inner
def _product(
    memory: Floats, x: int, x_row: int, weights: Floats, w: int, bias: int, y: int, y_row: int, rows: int,
    K: int, N: int,
) -> None:  # fmt: skip
    """``y[r, :N] = bias + sum_k x[r, k] W[k, :N]`` with the weights in panels, or as one row."""
    if N == 1:
        for r in range(rows):
            memory[y + r * y_row] = weights[bias] + _dot(memory, x + r * x_row, weights, w, K)
        return
    for r in range(rows):
        _move(weights, bias, memory, y + r * y_row, N)
    whole, by_several = N - N % PANEL, rows - rows % ROWS
    for n in range(0, whole, PANEL):
        for r in range(0, by_several, ROWS):
            at, place = x + r * x_row, y + r * y_row + n
            for v in range(0, PANEL, _TALL_LANES):
                _several(memory, at, x_row, weights, w + v, PANEL, memory, place + v, y_row, K)
        for r in range(by_several, rows):
            _one(memory, x + r * x_row, x_row, weights, w, PANEL, memory, y + r * y_row + n, y_row, K)
        w += K * PANEL
    for n in range(whole, N, LANES):
        for r in range(0, by_several, ROWS):
            _several_narrow(
                memory, x + r * x_row, x_row, weights, w, LANES, memory, y + r * y_row + n, y_row, K
            )
        for r in range(by_several, rows):
            _one_narrow(memory, x + r * x_row, x_row, weights, w, LANES, memory, y + r * y_row + n, y_row, K)
        w += K * LANES


@inner
def _conv(
    op: Any, memory: Floats, weights: Floats, x: int, y: int, rows: int, x_row: int, y_row: int
) -> None:
    """All channels of ``taps`` neighbouring positions lie side by side: one product for the map."""
    _product(memory, x, x_row, weights, op.weights, op.bias, y, y_row, rows, op.taps * op.inputs, op.outputs)


@inner
def _grouped(op: Any, memory: Floats, weights: Floats, rows: int) -> None:
    """Linear layer in groups: a product for each, or, for few rows, several small ones side by side.

    A group has two outputs at least: the weights of one alone would not lie in a panel.
    """
    K, N, done = op.inputs, op.outputs, 0
    parts = -(-N // LANES)
    size = K * parts * LANES
    if rows < ROWS and N < PANEL and (parts == 1 or parts == 2 or parts == 4):
        together = _SIDE_BY_SIDE // parts
        done = op.groups - op.groups % together
        for r in range(rows):
            x, y = op.x + r * op.x_frame, op.y + r * op.y_frame
            _move(weights, op.bias, memory, y, done * N)
            for g in range(0, done, together):
                w = op.weights + g * size
                if parts == 1:
                    _small(memory, x + g * K, K, weights, w, LANES, memory, y + g * N, N, K)
                elif parts == 2:
                    _small_in_two(memory, x + g * K, K, weights, w, LANES, memory, y + g * N, N, K)
                else:
                    _small_in_four(memory, x + g * K, K, weights, w, LANES, memory, y + g * N, N, K)
    for g in range(done, op.groups):
        x, y, bias = op.x + g * K, op.y + g * N, op.bias + g * N
        _product(memory, x, op.x_frame, weights, op.weights + g * size, bias, y, op.y_frame, rows, K, N)


# -- recurrent layers ---------------------------------------------------------------------------------------


@inner
def _several_rows(
    memory: Floats, x: int, x_row: int, stored: Bytes, w: int, storage: int, y: int, y_row: int, K: int
) -> None:
    for v in range(0, PANEL, _TALL_LANES):
        if storage == _FLOAT32:
            _several(memory, x, x_row, stored, w + v, PANEL, memory, y + v, y_row, K)
        elif storage == _INT16:
            _several_int16(memory, x, x_row, stored, w + v, PANEL, memory, y + v, y_row, K)
        elif storage == _FLOAT16:
            _several_float16(memory, x, x_row, stored, w + v, PANEL, memory, y + v, y_row, K)
        else:
            _several_int8(memory, x, x_row, stored, w + v, PANEL, memory, y + v, y_row, K)


@inner
def _one_row(memory: Floats, x: int, stored: Bytes, w: int, storage: int, y: int, K: int) -> None:
    if storage == _FLOAT32:
        _one(memory, x, 0, stored, w, PANEL, memory, y, 0, K)
    elif storage == _INT16:
        _one_int16(memory, x, 0, stored, w, PANEL, memory, y, 0, K)
    elif storage == _FLOAT16:
        _one_float16(memory, x, 0, stored, w, PANEL, memory, y, 0, K)
    else:
        _one_int8(memory, x, 0, stored, w, PANEL, memory, y, 0, K)


@inner
def _gate_sums(
    memory: Floats, x: int, x_row: int, stored: Bytes, w: int, storage: int, y: int, rows: int, K: int, N: int
) -> None:
    """``y[r, :N] = sum_k x[r, k] W[k, :N]`` with the weights as they are stored, N in whole panels."""
    sums = memory[y : y + rows * N]
    for i in range(sums.size):
        sums[i] = np.float32(0.0)
    by_several = rows - rows % ROWS
    for n in range(0, N, PANEL):
        for r in range(0, by_several, ROWS):
            _several_rows(memory, x + r * x_row, x_row, stored, w, storage, y + r * N + n, N, K)
        for r in range(by_several, rows):
            _one_row(memory, x + r * x_row, stored, w, storage, y + r * N + n, K)
        w += K * PANEL


@inner
def _rescale(memory: Floats, y: int, count: int, weights: Floats, scales: int, bias: int) -> None:
    sums, scale, offset = memory[y : y + count], weights[scales:], weights[bias:]
    for i in range(count):
        sums[i] = sums[i] * scale[i] + offset[i]


@inner
def _gates(memory: Floats, from_x: int, from_h: int, count: int) -> None:
    """``sigmoid(from_x + from_h)``, in place of the first."""
    a, b = memory[from_x : from_x + count], memory[from_h : from_h + count]
    for i in range(count):
        a[i] = _sigmoid(a[i] + b[i])


@inner
def _candidate(memory: Floats, from_x: int, reset: int, from_h: int, count: int) -> None:
    """``tanh(from_x + reset * from_h)``, in place of the first."""
    a, r, b = memory[from_x : from_x + count], memory[reset:], memory[from_h:]
    for i in range(count):
        a[i] = _tanh(a[i] + r[i] * b[i])


@inner
def _blend(memory: Floats, h: int, update: int, candidate: int, count: int) -> None:
    """``h = n + z (h - n)``."""
    state, z, n = memory[h : h + count], memory[update:], memory[candidate:]
    for i in range(count):
        state[i] = n[i] + z[i] * (state[i] - n[i])


@inner
def _gru(
    op: Any, memory: Floats, weights: Floats, stored: Bytes, storage: int, streams: int, rows: int
) -> None:
    """A layer over all frames: what depends on its input at once, then step after step.

    Gates in the order of ONNX: update z, reset r, candidate n, with ``n = tanh(x_n + r (R h + c))``
    (``linear_before_reset``).
    """
    H, N = op.outputs, -(-3 * op.outputs // PANEL) * PANEL
    from_x, from_h = op.scratch, op.scratch + rows * N
    _gate_sums(memory, op.x, op.x_frame, stored, op.weights, storage, from_x, rows, op.inputs, N)
    for r in range(rows):
        _rescale(memory, from_x + r * N, 3 * H, weights, op.scales, op.bias)
    for t in range(rows // streams):
        _gate_sums(memory, op.z, op.z_frame, stored, op.recurrent, storage, from_h, streams, H, N)
        for b in range(streams):
            row = t * streams + b
            gx, gh, h = from_x + row * N, from_h + b * N, op.z + b * op.z_frame
            _rescale(memory, gh, 3 * H, weights, op.scales + 3 * H, op.bias + 3 * H)
            _gates(memory, gx, gh, 2 * H)
            _candidate(memory, gx + 2 * H, gx + H, gh + 2 * H, H)
            _blend(memory, h, gx, gx + 2 * H, H)
            _move(memory, h, memory, op.y + row * op.y_frame, H)


# -- the walk -----------------------------------------------------------------------------------------------


@inner
def _for_frame(op: Any, memory: Floats, weights: Floats, row: int, stream: int) -> None:
    """Do an operation on the map of one frame."""
    x = op.x + (stream if op.x_of_stream else row) * op.x_frame
    y = op.y + (stream if op.y_of_stream else row) * op.y_frame
    z = op.z + (stream if op.z_of_stream else row) * op.z_frame
    if op.kind == _CONV:
        _conv(op, memory, weights, x, y, op.positions, op.stride * op.x_step, op.y_step)
    elif op.kind == _DEPTHWISE:
        _depthwise(op, memory, weights, x, y)
    elif op.kind == _COPY:
        _copy(op, memory, x, y)
    elif op.kind == _ADD:
        _add(op, memory, x, z, y)
    elif op.kind == _UPSAMPLE:
        _upsample(op, memory, weights, x, y)
    elif op.kind == _SUMS:
        _partial_sums(op, memory, x, z, y)
    elif op.kind == _SCALE:
        _scale(op, memory, weights, x, y)
    if op.activation != _NONE:
        if op.y_step == op.outputs:
            _activate(memory, y, op.positions * op.outputs, op.activation)
        else:
            for f in range(op.positions):
                _activate(memory, y + f * op.y_step, op.outputs, op.activation)


@inner
def _for_all(
    op: Any, memory: Floats, weights: Floats, stored: Bytes, storage: int, streams: int, rows: int
) -> None:
    """Do an operation on the vectors of all frames, which are the rows of its products."""
    if op.kind == _GRU:
        _gru(op, memory, weights, stored, storage, streams, rows)
    elif op.kind == _GROUPED:
        _grouped(op, memory, weights, rows)
    else:
        _conv(op, memory, weights, op.x, op.y, rows, op.x_frame, op.y_frame)
    if op.activation != _NONE:
        for r in range(rows):
            _activate(memory, op.y + r * op.y_frame, op.outputs * op.groups, op.activation)


@inner
def _load(memory: Floats, at: int, frame: int, values: Floats) -> None:
    """Put [B, C, T, F] into rows t * B + b of [F][C]."""
    B, C, T, F = values.shape
    for t in range(T):
        for b in range(B):
            for c in range(C):
                channel, target = values[b, c, t], memory[at + (t * B + b) * frame + c :]
                for f in range(F):
                    target[f * C] = channel[f]


@inner
def _store(memory: Floats, at: int, frame: int, values: Floats) -> None:
    """Take [B, T, N] from rows t * B + b of [N]."""
    B, T, N = values.shape
    for t in range(T):
        for b in range(B):
            source, target = memory[at + (t * B + b) * frame :], values[b, t]
            for n in range(N):
                target[n] = source[n]


@jit(
    reads(types.int64, 1), reads(types.int64, 1), reads(intp, 2), writes(float32, 1), reads(float32, 1),
    reads(types.uint8, 1), intp,
    types.Array(float32, 4, "A", readonly=True), types.Array(float32, 4, "A", readonly=True),
    types.Array(float32, 3, "A"), types.Array(float32, 3, "A"), types.Array(float32, 3, "A"),
)  # fmt: skip
def run(
    operations: NDArray[np.int64], phases: NDArray[np.int64], ports: NDArray[np.intp], memory: Floats,
    weights: Floats, stored: Bytes, storage: int, feat_erb: Floats, feat_spec: Floats, lsnr: Floats,
    m: Floats, coefs: Floats,
) -> None:  # fmt: skip
    """Run the network on T frames of B streams whose states lie in the memory, and advance these.

    Shapes: feat_erb (B, 1, T, bands), feat_spec (B, 2, T, bins); lsnr (B, T, 1), m (B, T, bands) and coefs
    (B, T, bins * 2 * taps) written. ``ports`` (5, 2) says where these five lie in the memory and how far
    their frames are apart; the rest is what `dfstream.net.program.Placed` holds.
    """
    streams, T = feat_erb.shape[0], feat_erb.shape[2]
    rows = T * streams
    # records come as plain numbers: numba takes microseconds to recognise an array of records
    sequence, parts = operations.view(OPERATION), phases.view(PHASE)
    _load(memory, ports[0, 0], ports[0, 1], feat_erb)
    _load(memory, ports[1, 0], ports[1, 1], feat_spec)
    for p in range(parts.size):
        phase = parts[p]
        if phase.frame_by_frame:
            for row in range(rows):
                for i in range(phase.first, phase.last):
                    _for_frame(sequence[i], memory, weights, row, row % streams)
        else:
            for i in range(phase.first, phase.last):
                _for_all(sequence[i], memory, weights, stored, storage, streams, rows)
    _store(memory, ports[2, 0], ports[2, 1], lsnr)
    _store(memory, ports[3, 0], ports[3, 1], m)
    _store(memory, ports[4, 0], ports[4, 1], coefs)
