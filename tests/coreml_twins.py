"""Packages made by hand as they run, and plain twins of what they compute."""

import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest

import oracle
from dfstream.coreml.interpreter import Interpreter
from dfstream.coreml.package import read_package
from dfstream.errors import ArchiveError
from handmade import Handmade, constant

RNG = np.random.default_rng(11)


def half(values):
    with np.errstate(over="ignore"):
        return np.asarray(values).astype(np.float16).astype(np.float32)


def noise(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def interpreter(made):
    with tempfile.TemporaryDirectory() as folder:
        return Interpreter(read_package(made.write(Path(folder) / "p")))


def compute(made, **feeds):
    """Run a package of one operation."""
    outputs, states = interpreter(made).run(feeds)
    assert states == {}
    return outputs["result"]


def refused(made, match, kind=ArchiveError):
    with pytest.raises(kind, match=match) as caught:
        interpreter(made)
    assert str(caught.value).isprintable()


def onnx_conv(op, x, weight, bias, **attributes):
    """The same by onnxruntime."""
    names = ["x", "w", "b"] if bias is not None else ["x", "w"]
    node = onnx.helper.make_node(op, names, ["y"], **attributes)
    weights = [onnx.numpy_helper.from_array(weight, "w")]
    weights += [] if bias is None else [onnx.numpy_helper.from_array(bias, "b")]
    graph = onnx.helper.make_graph(
        [node], "g", [onnx.helper.make_tensor_value_info("x", 1, x.shape)],
        [onnx.helper.make_tensor_value_info("y", 1, None)], weights,
    )  # fmt: skip
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    return oracle.run(model.SerializeToString(), {"x": x})["y"]


def canonical(data):
    """A package of the canonical graph in float32, one operation for each node."""
    graph = onnx.shape_inference.infer_shapes(onnx.load_from_string(data)).graph
    sizes = {
        v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim)
        for v in (*graph.input, *graph.value_info, *graph.output)
    }
    made = Handmade({v.name: ("float32", sizes[v.name]) for v in graph.input})
    values = {w.name: onnx.numpy_helper.to_array(w) for w in graph.initializer}
    for name, array in values.items():
        if array.dtype == np.float32:
            (made.weight if array.size >= 10 else made.const)(name, array)
    for node in graph.node:
        (result,) = node.output
        kind = {"Slice": "slice_by_index"}.get(node.op_type, node.op_type.lower())
        made.add(kind, operands(node, values, sizes), {result: ("float32", sizes[result])})
    for value in graph.output:
        made.result(value.name, "float32", sizes[value.name])
    return made


def operands(node, values, sizes, names=None):
    """Operands by their names in MIL: tensors as ``names`` calls them, constants in their place."""
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    given = [(names or {}).get(name, name) for name in node.input]
    x, *others = given
    if node.op_type == "Conv":
        top, left, bottom, right = attributes.get("pads", [0] * 4)
        return {
            "x": x, "weight": others[0], **({"bias": others[1]} if len(others) > 1 else {}),
            "strides": constant(attributes.get("strides", [1, 1])),
            "groups": constant(attributes.get("group", 1)),
            "pad_type": constant("custom"), "pad": constant([top, bottom, left, right]),
        }  # fmt: skip
    if node.op_type == "Concat":
        return {"values": given, "axis": constant(attributes["axis"])}
    if node.op_type == "Slice":
        begin, end = [0] * 4, list(sizes[node.input[0]])
        for start, stop, axis in zip(*(values[name] for name in others[:3]), strict=True):
            begin[axis], end[axis] = start, min(stop, end[axis])
        return {"x": x, "begin": constant(begin), "end": constant(end)}
    if node.op_type == "Reshape":
        return {"x": x, "shape": constant(values[others[0]])}
    if node.op_type == "Transpose":
        return {"x": x, "perm": constant(attributes["perm"])}
    return {"x": x, **({"y": others[0]} if others else {})}
