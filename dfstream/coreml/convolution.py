"""Convolutions of a program, as few products of matrices as their form allows."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from dfstream.coreml.operands import Plan

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from dfstream.coreml.operands import Operands

    Convolve = Callable[[NDArray[np.float32]], NDArray[np.float32]]

__all__ = ["conv", "conv_transpose"]

#: Batch and channels: the axes in front of those that a tap names.
_OUTER = (slice(None), slice(None))

#: From so many taps on, one product of matrices is quicker than a sum over taps.
_MANY_TAPS = 16

#: Elements of the patches that one convolution multiplies; the widest of ours has 6 000.
_MAX_PATCHES = 1 << 24


def conv(given: Operands) -> Plan:
    """Plan ``conv`` in two dimensions.

    ``same`` pads as TensorFlow does: results are ``ceil(size / stride)`` wide, and an odd zero goes behind
    (``same_lower``: in front).
    """
    batch, channels, *sizes = _shape(given)
    weight, groups = given.floats("weight"), given.integer("groups", 1)
    strides, dilations = (given.integers(key, 2, default=1) for key in ("strides", "dilations"))
    _check(given, weight, groups, strides, dilations)
    outputs, inputs, *kernel = weight.shape
    if inputs * groups != channels or outputs % groups:
        raise given.damaged(f"weights {list(weight.shape)} in {groups} groups on {channels} channels")
    spans = [(taps - 1) * apart + 1 for taps, apart in zip(kernel, dilations, strict=True)]
    pads = _pads(given, sizes, spans, strides)
    padded = [size + sum(pad) for size, pad in zip(sizes, pads, strict=True)]
    height, width = (
        (size - span) // stride + 1 for size, span, stride in zip(padded, spans, strides, strict=True)
    )
    if min(height, width) < 1:
        raise given.damaged("the kernel is larger than the map")
    positions = height * width
    if batch * max(channels * math.prod(kernel) * positions, channels * math.prod(padded)) > _MAX_PATCHES:
        raise given.unsupported("an absurdly large convolution")

    matrices = weight.reshape(groups, outputs // groups, inputs * math.prod(kernel))
    bias = _bias(given, outputs)

    def pointwise(x: NDArray[np.float32]) -> NDArray[np.float32]:
        y = np.matmul(matrices, x.reshape(batch, groups, inputs, positions))
        return _finish(y, bias, (batch, outputs, height, width))

    def of_patches(x: NDArray[np.float32]) -> NDArray[np.float32]:
        patches = _patches(_padded(x, pads), kernel, strides, dilations, (height, width))
        y = np.matmul(matrices, patches.reshape(batch, groups, -1, positions))
        return _finish(y, bias, (batch, outputs, height, width))

    taps = weight.reshape(groups, -1, *kernel, 1, 1)

    def by_taps(x: NDArray[np.float32]) -> NDArray[np.float32]:
        patches = _patches(_padded(x, pads), kernel, strides, dilations, (height, width))
        y = np.zeros((batch, groups, outputs // groups, height, width), np.float32)
        for tap in np.ndindex(*kernel):
            y += taps[(*_OUTER, *tap)] * patches[(*_OUTER, *tap)][:, :, None]
        return _finish(y, bias, (batch, outputs, height, width))

    plain = math.prod(kernel) == math.prod(strides) == 1 and padded == sizes
    depthwise = inputs == 1 and math.prod(kernel) < _MANY_TAPS
    compute: Convolve = by_taps if depthwise else pointwise if plain else of_patches
    return Plan((given.name("x"),), (batch, outputs, height, width), compute)


def conv_transpose(given: Operands) -> Plan:
    """Plan ``conv_transpose`` in two dimensions, ``valid`` or ``custom``."""
    batch, channels, *sizes = _shape(given)
    weight, groups = given.floats("weight"), given.integer("groups", 1)
    strides, dilations = (given.integers(key, 2, default=1) for key in ("strides", "dilations"))
    _check(given, weight, groups, strides, dilations)
    kind = given.text("pad_type", "valid")
    if kind not in ("valid", "custom") or "output_shape" in given:
        raise given.unsupported("supported is pad_type valid or custom, and no output_shape")
    pad = given.integers("pad", 4, default=0) if kind == "custom" else (0, 0, 0, 0)
    inputs, per_group, *kernel = weight.shape
    if inputs != channels or inputs % groups or min(pad) < 0:
        raise given.damaged(f"weights {list(weight.shape)} in {groups} groups on {channels} channels")
    whole = [
        (size - 1) * stride + (taps - 1) * apart + 1
        for size, stride, taps, apart in zip(sizes, strides, kernel, dilations, strict=True)
    ]
    height, width = whole[0] - pad[0] - pad[1], whole[1] - pad[2] - pad[3]
    outputs = groups * per_group
    if min(height, width) < 1:
        raise given.damaged("the padding is larger than the map")
    if batch * outputs * max(math.prod(whole), math.prod(sizes) * math.prod(kernel)) > _MAX_PATCHES:
        raise given.unsupported("an absurdly large convolution")

    # rows are the results of one group and tap
    matrices = weight.reshape(groups, channels // groups, -1).transpose(0, 2, 1).copy()
    bias = _bias(given, outputs)

    def compute(x: NDArray[np.float32]) -> NDArray[np.float32]:
        parts = np.matmul(matrices, x.reshape(batch, groups, channels // groups, -1))
        parts = parts.reshape(batch, outputs, *kernel, *sizes)
        y = np.zeros((batch, outputs, *whole), np.float32)
        for tap in np.ndindex(*kernel):
            across = (
                slice(at * apart, at * apart + (size - 1) * stride + 1, stride)
                for at, apart, size, stride in zip(tap, dilations, sizes, strides, strict=True)
            )
            y[(*_OUTER, *across)] += parts[(*_OUTER, *tap)]
        y = y[:, :, pad[0] : pad[0] + height, pad[2] : pad[2] + width]
        return _finish(y, bias, (batch, outputs, height, width))

    return Plan((given.name("x"),), (batch, outputs, height, width), compute)


def _shape(given: Operands) -> tuple[int, ...]:
    shape = given.shape("x")
    if len(shape) != 4:
        raise given.unsupported(f"of a tensor of rank {len(shape)}, supported is 4")
    return shape


def _check(
    given: Operands,
    weight: NDArray[np.float32],
    groups: int,
    strides: tuple[int, ...],
    *others: tuple[int, ...],
) -> None:
    if weight.ndim != 4 or groups < 1 or min(strides) < 1 or any(min(other) < 1 for other in others):
        raise given.damaged("weights, groups, strides or dilations that are none")


def _bias(given: Operands, outputs: int) -> NDArray[np.float32] | None:
    if "bias" not in given:
        return None
    bias = given.floats("bias")
    if bias.shape != (outputs,):
        raise given.damaged(f"bias {list(bias.shape)} for {outputs} outputs")
    return bias.reshape(outputs, 1, 1)


def _pads(
    given: Operands, sizes: list[int], spans: list[int], strides: tuple[int, ...]
) -> list[tuple[int, int]]:
    """Zeros before and after each axis."""
    kind = given.text("pad_type", "valid")
    if kind == "valid":
        return [(0, 0), (0, 0)]
    if kind == "custom":
        top, bottom, left, right = given.integers("pad", 4, default=0)
        if min(top, bottom, left, right) < 0:
            raise given.damaged("negative padding")
        return [(top, bottom), (left, right)]
    if kind not in ("same", "same_lower"):
        raise given.unsupported(f"pad_type {kind!r}")
    pads = []
    for size, span, stride in zip(sizes, spans, strides, strict=True):
        zeros = max(0, (-(-size // stride) - 1) * stride + span - size)
        less = zeros // 2
        pads.append((less, zeros - less) if kind == "same" else (zeros - less, less))
    return pads


def _padded(x: NDArray[np.float32], pads: list[tuple[int, int]]) -> NDArray[np.float32]:
    """Return ``x``, contiguous, with zeros around it."""
    (top, bottom), (left, right) = pads
    if not (top or bottom or left or right):
        return np.ascontiguousarray(x)
    *outer, height, width = x.shape
    padded = np.zeros((*outer, top + height + bottom, left + width + right), np.float32)
    padded[:, :, top : top + height, left : left + width] = x
    return padded


def _patches(
    x: NDArray[np.float32],
    kernel: list[int],
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
    sizes: tuple[int, int],
) -> NDArray[np.float32]:
    """View a contiguous map as [batch, channels, taps down, taps across, height, width]."""
    batch, channel, row, column = x.strides
    steps = (row * dilations[0], column * dilations[1], row * strides[0], column * strides[1])
    return np.ndarray((*x.shape[:2], *kernel, *sizes), np.float32, x, 0, (batch, channel, *steps))


def _finish(
    y: NDArray[np.float32], bias: NDArray[np.float32] | None, shape: tuple[int, ...]
) -> NDArray[np.float32]:
    y = y.reshape(shape)
    if bias is not None:
        y += bias
    return y
