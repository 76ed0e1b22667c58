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
