"""Model.load of graphs that nobody in their senses would write."""

import contextlib
import random
import shutil

import numpy as np
import onnx
import pytest

import synthetic
from dfstream.errors import DfstreamError, UnsupportedGraph
from dfstream.interface import EXPORTS
from dfstream.model import Model
from dfstream.modes.base import find_mode, mode_names
from exports import edited, outputs, write

EXACT = [name for name in mode_names() if find_mode(name).exact]


@pytest.fixture
def lean(tmp_path, synthetic_folder):
    """The quickest export, in a folder that may be changed."""
    return shutil.copytree(synthetic_folder("lean"), tmp_path / "lean")


def damage(model, rng):
    """Change one thing of a graph so that it may still look like one."""
    graph = model.graph
    node, other = rng.choice(graph.node), rng.choice(graph.node)
    value = rng.choice([*graph.input, *graph.output])
    numbers = [0, -1, 1, 3, 7, 96, 2**31, 2**40, 2**62, -(2**63)]
    kind = rng.randrange(9)
    if kind == 0:
        graph.node.remove(node)
    elif kind == 1 and node.input:
        node.input[rng.randrange(len(node.input))] = rng.choice([*other.input, *other.output, ""])
    elif kind == 2:
        node.op_type = rng.choice(
            ["Relu", "GRU", "Conv", "Pad", "Reshape", "Concat", "Transpose", "Squeeze", "Einsum"]
        )
    elif kind == 3 and node.attribute:
        del node.attribute[rng.randrange(len(node.attribute))]
    elif kind == 4 and node.attribute and (ints := rng.choice(node.attribute).ints):
        ints[rng.randrange(len(ints))] = rng.choice(numbers)
    elif kind == 5 and (dims := value.type.tensor_type.shape.dim):
        rng.choice(dims).dim_value = rng.choice(numbers)
    elif kind == 6:
        value.type.tensor_type.elem_type = rng.choice([0, 1, 7, 8, 99])
    elif kind == 7:
        value.name = rng.choice(["feat_erb", "lsnr", "h0", "emb", "m", ""])
    elif kind == 8:
        tensor = rng.choice(
            [t for t in graph.initializer if t.data_type == onnx.TensorProto.INT64] or [graph.initializer[0]]
        )
        tensor.CopyFrom(onnx.numpy_helper.from_array(np.array(rng.choice(numbers)), tensor.name))


@pytest.mark.parametrize("seed", range(24))
def test_damaged_graphs_are_refused_or_harmless(seed, tmp_path, capfd):
    """Whatever a graph looks like, patching ends with graphs or with an error of ours, and in silence."""
    rng = random.Random(seed)
    files = synthetic.make(synthetic.PRESETS["lean"], seed=2)
    name = f"{rng.choice(EXPORTS)}.onnx"
    files[name] = edited(files[name], lambda model: damage(model, rng))
    try:
        model = Model.load(write(tmp_path, files))
        assert model.facts.parameters > 0
        for mode in EXACT:
            model.graphs(find_mode(mode).recipe())
    except DfstreamError as error:
        message = str(error)
    else:
        message = ""
    assert not message or message.isprintable()
    assert capfd.readouterr().out == ""


def gru_without_a_size(model):
    node = next(node for node in model.graph.node if node.op_type == "GRU")
    node.attribute.remove(next(a for a in node.attribute if a.name == "hidden_size"))


def gru_of_another_size(model):
    node = next(node for node in model.graph.node if node.op_type == "GRU")
    next(a for a in node.attribute if a.name == "hidden_size").i = 7


def gru_with_flat_weights(model):
    node = next(node for node in model.graph.node if node.op_type == "GRU")
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == node.input[1])
    weight.dims[:] = [1, weight.dims[1] * weight.dims[2]]


@pytest.mark.parametrize("edit", [gru_without_a_size, gru_of_another_size, gru_with_flat_weights])
def test_grus_that_are_none(edit, lean):
    path = lean / "enc.onnx"
    path.write_bytes(edited(path.read_bytes(), edit))
    with pytest.raises(UnsupportedGraph):  # by the patch, or by shapes that do not fit before
        Model.load(lean).graphs(find_mode("incremental").recipe())


def test_names_that_differ_in_a_slash_only(lean):
    before = outputs(Model.load(lean))
    data = onnx.load_model_from_string((lean / "erb_dec.onnx").read_bytes())
    inner = [node.output[0] for node in data.graph.node if node.output[0] != "m"][:2]
    new = dict(zip(inner, ["same", "/same"], strict=True))
    for node in data.graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                names[index] = new.get(name, name)
    (lean / "erb_dec.onnx").write_bytes(data.SerializeToString())
    np.testing.assert_array_equal(outputs(Model.load(lean)), before)


def test_warnings_of_the_graph_library_do_not_go_where_results_go(lean, capfd):
    def forget_type(model):
        for value in model.graph.output:
            value.type.tensor_type.elem_type = onnx.TensorProto.UNDEFINED

    path = lean / "enc.onnx"
    path.write_bytes(edited(path.read_bytes(), forget_type))
    with contextlib.suppress(DfstreamError):
        Model.load(lean)
    assert capfd.readouterr().out == ""


def test_nodes_without_names_print_nothing(lean, capfd):
    before = outputs(Model.load(lean))

    def forget(model):
        for node in model.graph.node:
            node.name = ""

    for stem in EXPORTS:
        path = lean / f"{stem}.onnx"
        path.write_bytes(edited(path.read_bytes(), forget))
    np.testing.assert_array_equal(outputs(Model.load(lean)), before)
    assert capfd.readouterr() == ("", "")
