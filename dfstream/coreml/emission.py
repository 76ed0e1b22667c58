"""The canonical graph as a program of Core ML's intermediate language, an operation for a node.

A block of N frames is the one-frame program N times over the same weights. Every operation has the name
of its node, so that precision can be chosen by it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import numpy_helper

from dfstream.coreml.flavour import state_shape
from dfstream.coreml.toolbox import coremltools
from dfstream.errors import UnsupportedGraph
from dfstream.interface import FEATURES, MASK, state_inputs, state_output

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from dfstream.coreml.flavour import Flavour

__all__ = ["constant_name", "emit_program", "operation_name", "tensor_shapes"]

#: Names of the results, in the order of a package's outputs.
_RESULTS = (MASK, "coefs", "lsnr")

#: The axis of time, of which the canonical graph has one element.
_TIME = 2


def tensor_shapes(graph: onnx.GraphProto) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a canonical graph's inputs."""
    return {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim) for value in graph.input
    }


def emit_program(model: onnx.ModelProto, flavour: Flavour) -> Any:
    """Write the canonical graph as a MIL program.

    Parameters
    ----------
    model : ModelProto
        As `dfstream.patches.canonical` makes it.
    flavour : Flavour

    Returns
    -------
    coremltools.converters.mil.mil.Program

    Raises
    ------
    UnsupportedGraph
        An operator that the canonical graph does not have.
    BackendUnavailable
        coremltools is missing.
    """
    return _Emission(model.graph, flavour).run()


class _Emission:
    """One walk over the graph for each frame."""

    def __init__(self, graph: onnx.GraphProto, flavour: Flavour) -> None:
        self.ct = coremltools()
        from coremltools.converters.mil import Builder
        from coremltools.converters.mil.mil import types

        self.mb, self.types = Builder, types
        self.graph, self.flavour, self.frames = graph, flavour, flavour.block_frames
        self.shapes = tensor_shapes(graph)
        self.states = state_inputs(self.shapes, [value.name for value in graph.output])
        self.constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        self.shared: dict[str, Any] = {}

    def run(self) -> Any:
        from coremltools.converters.mil.mil import Function, Program

        opset = getattr(self.ct.target, self.flavour.generation.opset)
        program = Program()
        with Function(self._inputs(), opset_version=opset) as function:
            function.set_outputs(self._body(function.inputs))
        program.add_function("main", function)
        return program

    # -- beginning and end -------------------------------------------------------------------------

    def _inputs(self) -> dict[str, Any]:
        dtype = self.types.fp16 if self.flavour.half_interface else self.types.fp32
        inputs = {}
        for name, shape in self.shapes.items():
            if name in self.states and self.flavour.state == "coreml":
                inputs[name] = self.mb.state_tensor_placeholder(state_shape(shape), dtype=self.types.fp16)
            else:
                frames = self.frames if name in FEATURES else shape[_TIME]
                inputs[name] = self.mb.placeholder((*shape[:_TIME], frames, shape[3]), dtype=dtype)
        return inputs

    def _body(self, inputs: Mapping[str, Any]) -> list[Any]:
        state = {name: self._state(name, inputs[name]) for name in self.states}
        features = {name: self._wide(inputs[name], f"{name}_wide") for name in FEATURES}
        results: dict[str, list[Any]] = {name: [] for name in _RESULTS}
        for t in range(self.frames):
            frame = {name: self._frame(features[name], name, t) for name in FEATURES}
            out = self._walk({**frame, **state}, t)
            state = {name: out[state_output(name)] for name in self.states}
            for name, parts in results.items():
                parts.append(out[name])
        joined = {name: self._joined(name, parts) for name, parts in results.items()}
        after = self._close(state, inputs)
        return [self._public(name, value) for name, value in {**joined, **after}.items()]

    def _state(self, name: str, given: Any) -> Any:
        if self.flavour.state == "explicit":
            return self._wide(given, f"{name}_wide")
        value = self._wide(self.mb.read_state(input=given, name=f"{name}_read"), f"{name}_wide")
        return self._shaped(value, self.shapes[name], f"{name}_vector")

    def _close(self, state: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the next states as outputs, or write them where Core ML keeps them."""
        if self.flavour.state == "explicit":
            return {state_output(name): value for name, value in state.items()}
        for name, value in state.items():
            rows = self._shaped(value, state_shape(self.shapes[name]), f"{name}_rows")
            half = self.mb.cast(x=rows, dtype="fp16", name=f"{name}_half")
            self.mb.coreml_update_state(state=inputs[name], value=half, name=f"{name}_update")
        return {}

    def _wide(self, value: Any, name: str) -> Any:
        """Widen half-precision inputs: constants are float32 until precision is chosen, types may not mix."""
        return value if value.dtype == self.types.fp32 else self.mb.cast(x=value, dtype="fp32", name=name)

    def _frame(self, value: Any, name: str, t: int) -> Any:
        if self.frames == 1:
            return value
        begin, end = [0, 0, t, 0], [*value.shape[:_TIME], t + 1, value.shape[3]]
        return self.mb.slice_by_index(x=value, begin=begin, end=end, stride=[1] * 4, name=f"{name}_t{t}")

    def _joined(self, name: str, parts: list[Any]) -> Any:
        if len(parts) == 1:
            return parts[0]
        name = f"{name}_frames" if self.flavour.half_interface else name
        return self.mb.concat(values=parts, axis=_TIME, name=name)

    def _shaped(self, value: Any, shape: tuple[int, ...], name: str) -> Any:
        if tuple(value.shape) == shape:
            return value
        return self.mb.reshape(x=value, shape=np.array(shape, np.int32), name=name)

    def _public(self, name: str, value: Any) -> Any:
        """Give an output its name: outputs are called as the values that they are."""
        if self.flavour.half_interface:
            return self.mb.cast(x=value, dtype="fp16", name=name)
        if value.name != name:
            return self.mb.identity(x=value, name=name)
        return value

    # -- nodes -------------------------------------------------------------------------------------

    def _walk(self, values: dict[str, Any], t: int) -> dict[str, Any]:
        """Emit all nodes for one frame."""
        rules, after = self._rules(), {state_output(name) for name in self.states}
        for node in self.graph.node:
            emit = rules.get(node.op_type)
            if emit is None:
                raise UnsupportedGraph(f"convert: the canonical graph has no {node.op_type}")
            operands = [values[name] if name in values else self._constant(name) for name in node.input]
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            output = node.output[0]
            last = output in _RESULTS and self.frames == 1 and not self.flavour.half_interface
            state = output in after and t == self.frames - 1
            public = last or (state and self.flavour.state == "explicit" and not self.flavour.half_interface)
            name = output if public else f"{operation_name(node)}{f'_t{t}' if self.frames > 1 else ''}"
            if not public and name in (*self.shapes, *_RESULTS):
                name = f"{name}_value"
            values[output] = emit(operands, attributes, name)
        return values

    def _constant(self, name: str) -> Any:
        """Return a constant: small integers as they are, weights as an operation that all frames share."""
        array = self.constants[name]
        if array.dtype != np.float32:
            return array
        if name not in self.shared:
            self.shared[name] = self.mb.const(val=array, name=constant_name(name))
        return self.shared[name]

    def _rules(self) -> dict[str, Callable[[list[Any], dict[str, Any], str], Any]]:
        mb = self.mb
        unary = {"Relu": mb.relu, "Sigmoid": mb.sigmoid, "Tanh": mb.tanh, "Identity": mb.identity}
        binary = {"Add": mb.add, "Sub": mb.sub, "Mul": mb.mul, "Div": mb.real_div}

        def one(op: Any) -> Callable[[list[Any], dict[str, Any], str], Any]:
            return lambda x, _, name: op(x=x[0], name=name)

        def two(op: Any) -> Callable[[list[Any], dict[str, Any], str], Any]:
            return lambda x, _, name: op(x=x[0], y=x[1], name=name)

        return {
            **{op: one(emit) for op, emit in unary.items()},
            **{op: two(emit) for op, emit in binary.items()},
            "Concat": lambda x, a, name: mb.concat(values=x, axis=a["axis"], name=name),
            "Conv": self._conv,
            "Reshape": lambda x, _, name: mb.reshape(x=x[0], shape=x[1].astype(np.int32), name=name),
            "Slice": self._slice,
            "Transpose": lambda x, a, name: mb.transpose(x=x[0], perm=list(a["perm"]), name=name),
        }

    def _conv(self, operands: list[Any], attributes: dict[str, Any], name: str) -> Any:
        top, left, bottom, right = attributes["pads"]
        padded = any(attributes["pads"])
        extra: dict[str, Any] = {"bias": operands[2]} if len(operands) > 2 else {}
        if padded:
            extra["pad"] = [top, bottom, left, right]
        return self.mb.conv(
            x=operands[0], weight=operands[1], strides=list(attributes["strides"]), dilations=[1, 1],
            pad_type="custom" if padded else "valid", groups=attributes["group"], name=name, **extra,
        )  # fmt: skip

    def _slice(self, operands: list[Any], _: dict[str, Any], name: str) -> Any:
        """Cut channels: every bound is given, masks are not."""
        x, starts, ends, axes = operands[:4]
        begin, end = [0] * len(x.shape), list(x.shape)
        for axis, start, stop in zip(axes, starts, ends, strict=True):
            begin[axis], end[axis] = int(start), int(stop)
        return self.mb.slice_by_index(x=x, begin=begin, end=end, stride=[1] * len(end), name=name)


def operation_name(node: onnx.NodeProto) -> str:
    """Return the name of the operation of a node; in a block, ``_t<frame>`` follows it."""
    return _plain(node.name or node.output[0])


def constant_name(initializer: str) -> str:
    """Return the name of the constant of a weight; no operation has such a name."""
    return _plain(f"weight {initializer}")


def _plain(name: str) -> str:
    """Return a name that Core ML leaves as it is."""
    return "n" + re.sub(r"\W+", "_", name).strip("_").lower()
