"""Plain twins of the network's operations, one frame at a time, in float64, as textbooks have them.

A map is [channels, positions], a vector has one axis.
"""

import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def relu(x):
    return np.maximum(x, 0)


def convolution(x, weight, bias, *, stride=1, pads=(0, 0), group=1):
    """Cross-correlation as ONNX ``Conv`` defines it; weight [out, in per group, taps]."""
    outputs, per_group, taps = weight.shape
    x = np.pad(x.astype(np.float64), ((0, 0), pads))
    positions = (x.shape[1] - taps) // stride + 1
    y = np.zeros((outputs, positions))
    for o, f in np.ndindex(y.shape):
        first = o // (outputs // group) * per_group
        y[o, f] = bias[o] + np.sum(
            x[first : first + per_group, f * stride : f * stride + taps] * weight[o].astype(np.float64)
        )
    return y


def upsampling(x, weight, bias):
    """ONNX ``ConvTranspose`` of each channel by itself: every input adds its kernel [channel, 3] at 2 f.

    One value is cut off in front (padding 1) and one more added behind (output padding 1).
    """
    channels, positions = x.shape
    y = np.zeros((channels, 2 * positions + 2))
    for c, f in np.ndindex(channels, positions):
        y[c, 2 * f : 2 * f + 3] += x[c, f] * weight[c].astype(np.float64)
    return y[:, 1:-1] + bias[:, None]


def time_convolution(frames, weight, bias, pads):
    """Convolution over time and positions, zero frames in front; weight [out, in, frames, taps]."""
    past = weight.shape[2] - 1
    padded = [np.zeros_like(frames[0])] * past + list(frames)
    none = np.zeros(len(bias))
    return [
        sum(
            convolution(padded[t + k], weight[:, :, k], bias if k == past else none, pads=pads)
            for k in range(past + 1)
        )
        for t in range(len(frames))
    ]


def linear_in_groups(x, weight, bias):
    """Part g of the input times its matrix; weight [groups, out, in]."""
    parts = x.astype(np.float64).reshape(len(weight), -1)
    return np.concatenate([w @ part for w, part in zip(weight.astype(np.float64), parts, strict=True)]) + bias


def gru_step(x, h, weight, recurrent, bias):
    """One step as ONNX ``GRU`` defines it with ``linear_before_reset``: gates z, r, h.

    weight [3 hidden, in], recurrent [3 hidden, hidden], bias [6 hidden]: of the input, then recurrent.
    """
    size = len(h)
    w_z, w_r, w_h = np.split(weight.astype(np.float64), 3)
    r_z, r_r, r_h = np.split(recurrent.astype(np.float64), 3)
    wb_z, wb_r, wb_h, rb_z, rb_r, rb_h = np.split(bias.astype(np.float64), 6)
    assert w_z.shape == (size, len(x))
    z = sigmoid(w_z @ x + r_z @ h + wb_z + rb_z)
    r = sigmoid(w_r @ x + r_r @ h + wb_r + rb_r)
    n = np.tanh(w_h @ x + r * (r_h @ h + rb_h) + wb_h)
    return (1 - z) * n + z * h
