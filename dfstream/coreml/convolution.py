"""Convolutions of a program, as few products of matrices as their form allows."""

from __future__ import annotations

import dataclasses
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


@dataclasses.dataclass(frozen=True)
class _Form:
    """Where a kernel goes on a map: all pairs are (down, across).

    Attributes
    ----------
    groups : int
    kernel, strides, dilations : (int, int)
    pads : pair of (int, int)
        Zeros before and after.
    shape : (int, int, int, int)
        Of the result.
    """

    groups: int
    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    pads: tuple[tuple[int, int], tuple[int, int]]
    shape: tuple[int, int, int, int]

    @property
    def is_pointwise(self) -> bool:
        """Whether each value of the map is seen once, by itself."""
        return self.kernel == self.strides == (1, 1) and self.pads == ((0, 0), (0, 0))

    def patches(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """View what the kernel sees as [batch, channels, taps down, taps across, height, width]."""
        x = self._padded(x)
        batch, channel, *along = x.strides
        taps = (step * apart for step, apart in zip(along, self.dilations, strict=True))
        positions = (step * stride for step, stride in zip(along, self.strides, strict=True))
        shape = (*x.shape[:2], *self.kernel, *self.shape[2:])
        return np.ndarray(shape, np.float32, x, 0, (batch, channel, *taps, *positions))

    def _padded(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return ``x``, contiguous, with zeros around it."""
        (top, bottom), (left, right) = self.pads
        if not (top or bottom or left or right):
            return np.ascontiguousarray(x)
        *outer, height, width = x.shape
        padded = np.zeros((*outer, top + height + bottom, left + width + right), np.float32)
        padded[:, :, top : top + height, left : left + width] = x
        return padded


def conv(given: Operands) -> Plan:
    """Plan ``conv`` in two dimensions.

    ``same`` pads as TensorFlow does: results are ``ceil(size / stride)`` wide, and an odd zero goes behind
    (``same_lower``: in front).
    """
    weight = given.floats("weight")
    form = _form(given, weight)
    bias = _bias(given, form.shape[1])
    if weight.shape[1] == 1 and math.prod(form.kernel) < _MANY_TAPS:
        compute = _depthwise(weight, bias, form)
    else:
        compute = _product(weight, bias, form)
    return Plan((given.name("x"),), form.shape, compute)


def _form(given: Operands, weight: NDArray[np.float32]) -> _Form:
    batch, channels, *sizes = _shape(given)
    groups, strides, dilations = _steps(given, weight)
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
    if batch * channels * max(math.prod(kernel) * height * width, math.prod(padded)) > _MAX_PATCHES:
        raise given.unsupported("an absurdly large convolution")
    return _Form(
        groups, (kernel[0], kernel[1]), strides, dilations, pads, (batch, outputs, height, width)
    )  # fmt: skip


def _product(weight: NDArray[np.float32], bias: NDArray[np.float32] | None, form: _Form) -> Convolve:
    """One product of matrices for each group."""
    batch, outputs, *_ = form.shape
    matrices = weight.reshape(form.groups, outputs // form.groups, -1)
    columns = (batch, form.groups, matrices.shape[2], math.prod(form.shape[2:]))

    def pointwise(x: NDArray[np.float32]) -> NDArray[np.float32]:
        return _finish(np.matmul(matrices, x.reshape(columns)), bias, form.shape)

    def of_patches(x: NDArray[np.float32]) -> NDArray[np.float32]:
        return _finish(np.matmul(matrices, form.patches(x).reshape(columns)), bias, form.shape)

    return pointwise if form.is_pointwise else of_patches


def _depthwise(weight: NDArray[np.float32], bias: NDArray[np.float32] | None, form: _Form) -> Convolve:
    """A sum over taps: products of single rows would be many and tiny."""
    batch, outputs, *sizes = form.shape
    per_group = outputs // form.groups
    taps = [(*_OUTER, *tap) for tap in np.ndindex(*form.kernel)]
    scales = [weight.reshape(form.groups, per_group, *form.kernel)[tap][:, :, None, None] for tap in taps]

    def compute(x: NDArray[np.float32]) -> NDArray[np.float32]:
        patches = form.patches(x)
        y = np.zeros((batch, form.groups, per_group, *sizes), np.float32)
        for tap, scale in zip(taps, scales, strict=True):
            y += scale * patches[tap][:, :, None]
        return _finish(y, bias, form.shape)

    return compute


def conv_transpose(given: Operands) -> Plan:
    """Plan ``conv_transpose`` in two dimensions, ``valid`` or ``custom``."""
    batch, channels, *sizes = _shape(given)
    weight = given.floats("weight")
    groups, strides, dilations = _steps(given, weight)
    top, bottom, left, right = _cut(given)
    inputs, per_group, *kernel = weight.shape
    if inputs != channels or inputs % groups:
        raise given.damaged(f"weights {list(weight.shape)} in {groups} groups on {channels} channels")
    whole = [
        (size - 1) * stride + (taps - 1) * apart + 1
        for size, stride, taps, apart in zip(sizes, strides, kernel, dilations, strict=True)
    ]
    shape = (batch, groups * per_group, whole[0] - top - bottom, whole[1] - left - right)
    if min(shape) < 1:
        raise given.damaged("the padding is larger than the map")
    if math.prod(shape[:2]) * max(math.prod(whole), math.prod(sizes) * math.prod(kernel)) > _MAX_PATCHES:
        raise given.unsupported("an absurdly large convolution")
    # rows are the results of one group, tap by tap
    matrices = weight.reshape(groups, channels // groups, -1).transpose(0, 2, 1).copy()
    bias = _bias(given, shape[1])

    def compute(x: NDArray[np.float32]) -> NDArray[np.float32]:
        parts = np.matmul(matrices, x.reshape(batch, groups, channels // groups, -1))
        parts = parts.reshape(*shape[:2], *kernel, *sizes)
        y = np.zeros((*shape[:2], *whole), np.float32)
        for tap in np.ndindex(*kernel):
            across = (
                slice(at * apart, at * apart + (size - 1) * stride + 1, stride)
                for at, apart, size, stride in zip(tap, dilations, sizes, strides, strict=True)
            )
            y[(*_OUTER, *across)] += parts[(*_OUTER, *tap)]
        return _finish(y[:, :, top : top + shape[2], left : left + shape[3]], bias, shape)

    return Plan((given.name("x"),), shape, compute)


def _cut(given: Operands) -> tuple[int, ...]:
    """How much of the result of a transposed convolution is cut off: top, bottom, left, right."""
    kind = given.text("pad_type", "valid")
    if kind not in ("valid", "custom") or "output_shape" in given:
        raise given.unsupported("supported is pad_type valid or custom, and no output_shape")
    return _custom_pads(given) if kind == "custom" else (0, 0, 0, 0)


def _shape(given: Operands) -> tuple[int, ...]:
    shape = given.shape("x")
    if len(shape) != 4:
        raise given.unsupported(f"of a tensor of rank {len(shape)}, supported is 4")
    return shape


def _steps(given: Operands, weight: NDArray[np.float32]) -> tuple[int, tuple[int, int], tuple[int, int]]:
    """Return groups, strides and dilations."""
    groups = given.integer("groups", 1)
    down, across = given.integers("strides", 2, default=1)
    apart_down, apart_across = given.integers("dilations", 2, default=1)
    if weight.ndim != 4 or min(groups, down, across, apart_down, apart_across) < 1:
        raise given.damaged("weights, groups, strides or dilations that are none")
    return groups, (down, across), (apart_down, apart_across)


def _bias(given: Operands, outputs: int) -> NDArray[np.float32] | None:
    if "bias" not in given:
        return None
    bias = given.floats("bias")
    if bias.shape != (outputs,):
        raise given.damaged(f"bias {list(bias.shape)} for {outputs} outputs")
    return bias.reshape(outputs, 1, 1)


def _pads(
    given: Operands, sizes: list[int], spans: list[int], strides: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    kind = given.text("pad_type", "valid")
    if kind == "valid":
        return (0, 0), (0, 0)
    if kind == "custom":
        top, bottom, left, right = _custom_pads(given)
        return (top, bottom), (left, right)
    if kind not in ("same", "same_lower"):
        raise given.unsupported(f"pad_type {kind!r}")
    pads = []
    for size, span, stride in zip(sizes, spans, strides, strict=True):
        zeros = max(0, (-(-size // stride) - 1) * stride + span - size)
        less = zeros // 2
        pads.append((less, zeros - less) if kind == "same" else (zeros - less, less))
    return pads[0], pads[1]


def _custom_pads(given: Operands) -> tuple[int, ...]:
    pads = given.integers("pad", 4, default=0)
    if min(pads) < 0:
        raise given.damaged("negative padding")
    return pads


def _finish(
    y: NDArray[np.float32], bias: NDArray[np.float32] | None, shape: tuple[int, ...]
) -> NDArray[np.float32]:
    y = y.reshape(shape)
    if bias is not None:
        y += bias
    return y
