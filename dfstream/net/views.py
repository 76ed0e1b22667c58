"""Where the tensors of a graph lie: most of what a graph does to shapes moves nothing in the memory.

A tensor [1, C, H, W] lies in the memory as positions (H, W) of C channels each.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NoReturn

from dfstream.errors import UnsupportedGraph
from dfstream.interface import is_gru_state
from dfstream.net.layout import Kind
from dfstream.net.program import Buffer, Operation, View
from dfstream.patches.graph import constant_value

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx_graphsurgeon as gs
    from numpy.typing import NDArray

__all__ = ["Shape", "Views", "numbers", "refuse"]

#: Channels, height, width.
Shape = tuple[int, int, int]


def refuse(node: gs.Node, why: str = "no kernel for it") -> NoReturn:
    """Give up on a graph."""
    raise UnsupportedGraph(
        f"compiled kernels: {node.op} {node.name!r}: {why}", hint="use the backend ort-cpu"
    )


def numbers(node: gs.Node, index: int) -> NDArray[Any]:
    """Return an input that must be a constant."""
    value = constant_value(node.inputs[index]) if index < len(node.inputs) else None
    if value is None:
        refuse(node, f"input {index} is not a constant")
    return value


class Views:
    """The view and shape of every tensor seen so far, and the operations that compute them."""

    def __init__(self) -> None:
        self.views: dict[str, View] = {}
        self.shapes: dict[str, Shape] = {}
        self.operations: list[Operation] = []

    def hold(self, tensor: gs.Tensor | str, view: View, shape: Shape) -> None:
        """Say where a tensor lies."""
        name = tensor if isinstance(tensor, str) else tensor.name
        self.views[name], self.shapes[name] = view, shape

    def fresh(self, positions: int, channels: int) -> View:
        """Return a map with a buffer of its own."""
        return View(Buffer(positions * channels), 0, positions, channels, channels)

    def emit(self, kind: Kind, x: View, y: View, z: View | None = None, **fields: int) -> None:
        """Add an operation on one frame at a time."""
        self.operations.append(Operation(kind, x, y, z, fields))

    def place_states(self, shapes: Mapping[str, Any], sections: Mapping[str, str]) -> tuple[Buffer, ...]:
        """Give every state a buffer."""
        buffers = []
        for name, shape in shapes.items():
            in_layers = is_gru_state(name)
            positions, channels = (shape[0], shape[2]) if in_layers else (shape[3], shape[1])
            buffers.append(Buffer(positions * channels, section=sections[name]))
            seen = (positions, 1, channels) if in_layers else (channels, 1, positions)
            self.hold(name, View(buffers[-1], 0, positions, channels, channels), seen)
        return tuple(buffers)

    def dense(self, view: View) -> View:
        """Return the view itself if nothing lies between its values, else a copy where nothing does."""
        return view if view.contiguous else self._copied(view)

    def padded(self, view: View, before: int, after: int) -> View:
        """Return a view that begins with ``before`` positions of zeros; ``after`` more lie behind the map."""
        if (before or after) and (not view.whole or view.buffer.section):
            view = self._copied(view)
        view = self.dense(view)
        view.buffer.before = max(view.buffer.before, before * view.step)
        view.buffer.after = max(view.buffer.after, after * view.step)
        return View(view.buffer, view.offset - before * view.step, view.positions, view.channels, view.step)

    def _copied(self, view: View) -> View:
        copy = self.fresh(view.positions, view.channels)
        self.emit(Kind.COPY, view, copy)
        return copy

    # -- operators that move nothing ---------------------------------------------------------------------

    def identity(self, node: gs.Node) -> None:
        """Another name."""
        name = node.inputs[0].name
        self.hold(node.outputs[0], self.views[name], self.shapes[name])

    def reshape(self, node: gs.Node) -> None:
        """Row-major order of [C, H, W] is that of the memory where there is one channel or one position."""
        name, wanted = node.inputs[0].name, [int(n) for n in numbers(node, 1)]
        before = self.shapes[name]
        wanted = [math.prod(before) // -math.prod(wanted) if n == -1 else n for n in wanted]
        after = (1, 1, wanted[-1]) if len(wanted) == 3 else (wanted[1], wanted[2], wanted[3])
        if not (_in_row_major_order(before) and _in_row_major_order(after)):
            refuse(node, f"{before} to {after} moves values")
        self._seen_as(node, after)

    def transpose(self, node: gs.Node) -> None:
        """To channels last and back: that is how maps lie in the memory anyway."""
        (C, H, W), perm = self.shapes[node.inputs[0].name], list(node.attrs["perm"])
        if perm == [0, 2, 3, 1] and H == 1:
            self._seen_as(node, (1, W, C))
        elif perm == [0, 3, 1, 2] and C == 1:
            self._seen_as(node, (W, 1, H))
        else:
            refuse(node, f"{(C, H, W)} by {perm} moves values")

    def _seen_as(self, node: gs.Node, shape: Shape) -> None:
        view, (channels, height, width) = self.dense(self.views[node.inputs[0].name]), shape
        seen = View(view.buffer, view.offset, height * width, channels, channels)
        self.hold(node.outputs[0], seen, shape)

    def slice(self, node: gs.Node) -> None:
        """Some channels of a map, or a layer of a state."""
        start, end, axis = (int(numbers(node, i)[0]) for i in (1, 2, 3))
        name, view = node.inputs[0].name, self.views[node.inputs[0].name]
        C, H, W = self.shapes[name]
        if is_gru_state(name) and axis == 0:
            layer = View(view.buffer, view.offset + start * view.step, 1, view.channels, view.channels)
            self.hold(node.outputs[0], layer, (1, 1, view.channels))
        elif axis == 1:
            channels = min(end, C) - start
            part = View(view.buffer, view.offset + start, view.positions, channels, view.step)
            self.hold(node.outputs[0], part, (channels, H, W))
        else:
            refuse(node, f"along axis {axis}")


def _in_row_major_order(shape: Shape) -> bool:
    channels, height, width = shape
    return channels == 1 or height * width == 1
