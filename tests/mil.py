"""Builds Core ML packages from the canonical graph with coremltools, for the tests of `dfstream.coreml`.

One MIL operation for each ONNX node; apart from `load`, nothing works without coremltools.
"""

import functools
import logging
import warnings

import numpy as np
import onnx
import pytest


@functools.cache
def load():
    """Import coremltools, which tells the whole world what it lacks on this platform; skips without it."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tools = pytest.importorskip("coremltools")
    finally:
        logging.disable(logging.NOTSET)
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    return tools


def convert(program, target="iOS16", precision="FLOAT32"):
    """A program as a model; ``precision`` FLOAT16 is coremltools' own pass."""
    ct = load()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ct.convert(
            program, convert_to="mlprogram", minimum_deployment_target=getattr(ct.target, target),
            compute_precision=getattr(ct.precision, precision), skip_model_load=True,
        )  # fmt: skip


def save(model, path):
    """Write a model as a package."""
    model.save(str(path))
    return path


def build(target, specs, body):
    """A MIL program of named inputs; ``body`` takes and returns mappings of tensors by name."""
    ct = load()
    mb = ct.converters.mil.Builder
    namespace = {"body": lambda *tensors: body(mb, dict(zip(specs, tensors, strict=True)))}
    # the builder reads the names of inputs off a function's own
    exec(f"def named({', '.join(specs)}): return body({', '.join(specs)})", namespace)
    decorate = mb.program(input_specs=list(specs.values()), opset_version=getattr(ct.target, target))
    return decorate(namespace["named"])


def spec(shape, dtype="fp32", state=False):
    """Declare an input or a state."""
    ct = load()
    mb, types = ct.converters.mil.Builder, ct.converters.mil.mil.types
    kind = mb.StateTensorSpec if state else mb.TensorSpec
    return kind(tuple(int(size) for size in shape), dtype=getattr(types, dtype))


def small(body, shapes, target="iOS16", precision="FLOAT32", dtype="fp32"):
    """A model of a few operations: ``body(mb, x, y, ...)`` returns one tensor or several."""
    specs = {name: spec(shape, dtype) for name, shape in shapes.items()}
    program = build(target, specs, lambda mb, tensors: body(mb, **tensors))
    return convert(program, target, precision)


def canonical(data, target="iOS16", precision="FLOAT32", dtype="fp32", stateful=False):
    """A model of the canonical graph.

    Parameters
    ----------
    data : bytes
        The graph, ONNX.
    dtype : str
        Of inputs and outputs.
    stateful : bool
        Hold states as MIL states, ``h`` as [1, size / 32, 1, 32] where that is possible.
    """
    graph = onnx.load_from_string(data).graph
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in graph.input}
    outputs = [v.name for v in graph.output]
    states = [name for name in shapes if stateful and f"{name}_out" in outputs]
    specs = {
        name: spec(stored(name, shape), "fp16", state=True) if name in states else spec(shape, dtype)
        for name, shape in shapes.items()
    }

    def body(mb, tensors):
        held = {}
        for name, tensor in tensors.items():
            value = tensor
            if name in states:
                value = mb.read_state(input=tensor, name=f"{name}_read")
            if value.dtype.__name__ != "fp32":
                value = mb.cast(x=value, dtype="fp32", name=f"{name}_fp32")
            if name in states and stored(name, shapes[name]) != list(shapes[name]):
                value = mb.reshape(x=value, shape=np.int32(shapes[name]), name=f"{name}_shaped")
            held[name] = value
        held |= {w.name: onnx.numpy_helper.to_array(w) for w in graph.initializer}
        taken = {f"{name}_out" for name in states} | (set(outputs) if dtype == "fp16" else set())
        for node in graph.node:
            (result,) = node.output
            held[result] = _emit(mb, node, [held[i] for i in node.input], result + "_v" * (result in taken))
        for name in states:
            value = held[f"{name}_out"]
            if stored(name, shapes[name]) != list(shapes[name]):
                value = mb.reshape(x=value, shape=np.int32(stored(name, shapes[name])), name=f"{name}_flat")
            value = mb.cast(x=value, dtype="fp16", name=f"{name}_fp16")
            mb.coreml_update_state(state=tensors[name], value=value, name=f"{name}_update")
        public = [name for name in outputs if name.removesuffix("_out") not in states]
        if dtype == "fp16":
            return tuple(mb.cast(x=held[name], dtype="fp16", name=name) for name in public)
        return tuple(held[name] for name in public)

    return convert(build(target, specs, body), target, precision)


def stored(name, shape):
    """Shape in which a MIL state is kept: accelerators want a last axis of 32."""
    return [1, shape[1] // 32, 1, 32] if name == "h" and shape[1] % 32 == 0 else list(shape)


def _emit(mb, node, inputs, name):
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    x, *others = inputs
    name = name.replace("/", "_")
    if node.op_type == "Conv":
        top, left, bottom, right = attributes.get("pads", [0] * 4)
        padding = {"pad_type": "custom", "pad": [top, bottom, left, right]}
        return mb.conv(
            x=x, weight=others[0], bias=others[1] if len(others) > 1 else None, name=name,
            strides=attributes.get("strides", [1, 1]), groups=attributes.get("group", 1),
            **(padding if any(padding["pad"]) else {"pad_type": "valid"}),
        )  # fmt: skip
    if node.op_type == "Slice":
        begin, end = [0] * 4, list(x.shape)
        for start, stop, axis in zip(others[0], others[1], others[2], strict=True):
            begin[axis], end[axis] = int(start), int(min(stop, x.shape[axis]))
        return mb.slice_by_index(x=x, begin=begin, end=end, stride=[1] * 4, name=name)
    if node.op_type == "Concat":
        return mb.concat(values=inputs, axis=attributes["axis"], name=name)
    if node.op_type == "Reshape":
        return mb.reshape(x=x, shape=others[0].astype(np.int32), name=name)
    if node.op_type == "Transpose":
        return mb.transpose(x=x, perm=attributes["perm"], name=name)
    if node.op_type in ("Relu", "Sigmoid", "Tanh"):
        return getattr(mb, node.op_type.lower())(x=x, name=name)
    return getattr(mb, node.op_type.lower())(x=x, y=others[0], name=name)
