"""What a compiled network consists of: operations as rows of numbers that kernels can read."""

from __future__ import annotations

import enum

import numpy as np

__all__ = ["OPERATION", "PHASE", "Activation", "Kind", "Storage"]


class Kind(enum.IntEnum):
    """What an operation does; `dfstream.net.kernels` has one function for each."""

    COPY = 0
    ADD = 1
    SCALE = 2
    CONV = 3
    DEPTHWISE = 4
    UPSAMPLE = 5
    SUMS = 6
    GROUPED = 7
    GRU = 8


class Activation(enum.IntEnum):
    """What becomes of an operation's results."""

    NONE = 0
    RELU = 1
    SIGMOID = 2
    TANH = 3


class Storage(enum.IntEnum):
    """How the weights of the GRUs are stored."""

    FLOAT32 = 0
    INT16 = 1
    FLOAT16 = 2
    INT8 = 3


#: One operation on maps of ``positions`` x ``channels``, channels side by side. An operand stands at
#: ``x + row * x_frame + position * x_step`` in the memory, where row is that of the frame, t * B + b, or,
#: for operands that belong to a stream, b. All in float32 values.
OPERATION = np.dtype(
    [
        ("kind", np.int64),
        ("x", np.int64), ("x_frame", np.int64), ("x_step", np.int64), ("x_of_stream", np.int64),
        ("y", np.int64), ("y_frame", np.int64), ("y_step", np.int64), ("y_of_stream", np.int64),
        # the second operand: of a sum, or the state of a GRU
        ("z", np.int64), ("z_frame", np.int64), ("z_step", np.int64), ("z_of_stream", np.int64),
        # weights, biases and scales in the flat array of small weights; for GRUs, weights in bytes
        ("weights", np.int64), ("recurrent", np.int64), ("bias", np.int64), ("scales", np.int64),
        # sizes of the result, and how many channels are read
        ("positions", np.int64), ("outputs", np.int64), ("inputs", np.int64),
        # positions read for one result, positions between results, groups
        ("taps", np.int64), ("stride", np.int64), ("groups", np.int64),
        ("activation", np.int64),
        # a place of its own for sums on the way
        ("scratch", np.int64),
    ],
    align=True,
)  # fmt: skip

#: Operations ``first`` to ``last``, done frame after frame, or each for all frames at once.
PHASE = np.dtype([("first", np.int64), ("last", np.int64), ("frame_by_frame", np.int64)], align=True)
