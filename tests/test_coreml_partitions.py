"""Core ML partitions: counts for the family, the provider's rules, grouping against onnxruntime's own."""

import json
import re
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.tools.mobile_helpers import usability_checker

import oracle
from conftest import SYNTHETIC
from dfstream import parsing
from dfstream.coreml import ep_rules
from dfstream.coreml.ep_rules import FORMATS, TRIVIAL
from dfstream.coreml.partitions import partition, simplified
from dfstream.errors import BackendError
from dfstream.inspection import coreml_partitions
from dfstream.model import Model
from dfstream.modes.base import find_mode
from dfstream.patching import canonical_recipe, patch_model

INCREMENTAL, CANONICAL = "combined_incremental", "combined_canonical"
PROGRAM, NETWORK = FORMATS

#: Partitions by format of the graphs at the official widths: worked out with a simulator of its own before
#: this one was written, and all but trivial ones.
COUNTS = {
    "dfn3": {
        PROGRAM: {"enc": 5, "erb_dec": 7, "df_dec": 5, INCREMENTAL: 11, CANONICAL: 1},
        NETWORK: {"enc": 5, "erb_dec": 7, "df_dec": 5, INCREMENTAL: 11, CANONICAL: 1},
    },
    "dfn2": {
        PROGRAM: {"enc": 4, "erb_dec": 7, "df_dec": 5, INCREMENTAL: 10, CANONICAL: 1},
        NETWORK: {"enc": 5, "erb_dec": 7, "df_dec": 5, INCREMENTAL: 11, CANONICAL: 1},
    },
}


def counts(rows):
    return {f: {row["graph"]: row["partitions"] for row in rows if row["format"] == f} for f in FORMATS}


# -- the family ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(COUNTS))
def test_counts_at_the_official_widths(name):
    rows = coreml_partitions(oracle.full_size(name))
    assert counts(rows) == COUNTS[name]
    assert json.loads(json.dumps(rows)) == rows, "plain values"


@pytest.mark.parametrize("name", sorted(COUNTS))
def test_counts_of_official_models(official, name):
    rows = coreml_partitions(official(name))
    assert counts(rows) == COUNTS[name]
    refused = {(r["graph"], r["format"]): {k: len(v) for k, v in r["refused"].items()} for r in rows}
    linears = {"dfn3": 3, "dfn2": 2}[name]
    assert refused["enc", PROGRAM] == {"Einsum: no builder": linears, "GRU: no builder": 1}
    assert refused["erb_dec", PROGRAM]["ConvTranspose: pads that differ"] == 2
    assert refused["erb_dec", NETWORK]["ConvTranspose: no builder for NeuralNetwork"] == 2


@pytest.mark.parametrize("model_format", FORMATS)
@oracle.every_model()
def test_takes_all_of_the_canonical_graph_in_one_piece(name, model_format):
    graph = oracle.case(name).model.graphs(canonical_recipe())[CANONICAL]
    found = partition(simplified(graph), model_format)
    assert (found.count, found.trivial, found.refused) == (1, 0, {})
    assert found.taken == found.nodes == sum(found.sizes) > 100


@pytest.mark.parametrize("name", SYNTHETIC)
def test_every_node_is_taken_or_refused(synthetic_model, name):
    for row in coreml_partitions(synthetic_model(name)):
        refused = sum(map(len, row["refused"].values()))
        assert row["taken"] + refused == row["nodes"]
        assert sum(row["sizes"]) == row["taken"]
        assert len(row["sizes"]) == row["partitions"]


def listed_by_onnxruntime(model_format):
    folder = Path(usability_checker.__file__).parent
    return usability_checker._SupportedOpsChecker(folder / f"coreml_supported_{model_format.lower()}_ops.md")


def test_onnxruntimes_own_checker_agrees_on_the_canonical_graph(bundled):
    model = onnx.shape_inference.infer_shapes(simplified(bundled.graphs(canonical_recipe())[CANONICAL]))
    for model_format in FORMATS:
        checker = listed_by_onnxruntime(model_format)
        theirs = usability_checker.check_partitioning(model.graph, checker, True, 5)
        assert (theirs.num_partitions, theirs.num_supported_nodes) == (1, theirs.num_nodes)


@pytest.mark.parametrize("model_format", FORMATS)
def test_knows_the_operators_that_onnxruntime_lists(model_format):
    checker = listed_by_onnxruntime(model_format)
    listed = {name.removeprefix("ai.onnx:") for name in checker._ops} & {*parsing._OPERATORS}
    assert len(listed) > 15
    assert listed <= {*ep_rules._RULES}


# -- simplifying -----------------------------------------------------------------------------------


def test_leaves_no_file_behind(monkeypatch, tmp_path, synthetic_model):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    graph = synthetic_model("dfn3").source_graphs()["enc"]
    model = simplified(graph)
    assert len(model.graph.node) < len(onnx.load_from_string(graph).graph.node)
    assert not list(tmp_path.iterdir())
    broken = onnx.load_from_string(graph)
    next(node for node in broken.graph.node if node.op_type == "Conv").attribute[0].ints[:] = [-1, -1]
    with pytest.raises(BackendError, match="cannot load the graph for one frame") as caught:
        simplified(broken.SerializeToString())
    assert str(caught.value).isprintable()
    assert not list(tmp_path.iterdir())


def test_simplifies_for_one_frame_of_one_stream(bundled):
    (graph,) = bundled.graphs(find_mode("incremental").recipe()).values()
    for value in simplified(graph).graph.input:
        assert all(dim.dim_value > 0 for dim in value.type.tensor_type.shape.dim), value.name


# -- rules -----------------------------------------------------------------------------------------


def node_model(op, shapes, constants=None, outputs=1, opset=17, dtype=TensorProto.FLOAT, **attributes):
    """One node that reads inputs of the given shapes, then constants; None stands for one left out."""
    names, stored = [f"x{i}" for i in range(len(shapes))], []
    inputs = [helper.make_tensor_value_info(n, dtype, s) for n, s in zip(names, shapes, strict=True)]
    for index, array in enumerate(constants or ()):
        names.append("" if array is None else f"c{index}")
        if array is not None:
            stored.append(numpy_helper.from_array(np.asarray(array), f"c{index}"))
    results = [f"y{i}" for i in range(outputs)]
    node = helper.make_node(op, names, results, name="it", **attributes)
    made = [helper.make_value_info(name, helper.make_tensor_type_proto(dtype, None)) for name in results]
    graph = helper.make_graph([node], "one", inputs, made, stored)
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    )


def verdicts(model):
    """Reason by format, None where the node is taken."""
    found = []
    for model_format in FORMATS:
        refused = partition(model, model_format).refused
        assert all(names == ("it",) for names in refused.values())
        found.append(next((key.partition(": ")[2] for key in refused), None))
    return tuple(found)


def f(*shape):
    return np.ones(shape, np.float32)


def i(*values):
    return np.array(values, np.int64)


MAP, VECTOR = (1, 4, 3, 8), (1, 16)
NO_NN = "no builder for NeuralNetwork"
UP = {"strides": [1, 2], "pads": [0, 0, 0, 0]}

RULES = [
    # operator, inputs, constants, attributes, reason for MLProgram, reason for NeuralNetwork
    ("Relu", [MAP], [], {}, None, None),
    ("Relu", [(1, 1, 1, 1, 1, 2)], [], {}, "an input of rank over 5", "an input of rank over 5"),
    ("Relu", [(1, 0)], [], {}, "an empty input", "an empty input"),
    ("Relu", [MAP], [], {"dtype": TensorProto.FLOAT16}, None, "elements of type FLOAT16"),
    ("Relu", [MAP], [], {"dtype": TensorProto.DOUBLE}, "elements of type DOUBLE", "elements of type DOUBLE"),
    ("Einsum", [VECTOR, VECTOR], [], {"equation": "ab,cb->ac"}, "no builder", "no builder"),
    ("Expand", [VECTOR], [i(2, 16)], {}, "no builder", "no builder"),
    ("Relu", [MAP], [], {"domain": "com.microsoft"}, "no builder", "no builder"),
    ("Conv", [MAP], [f(2, 4, 1, 3)], {}, None, None),
    ("Conv", [MAP], [f(2, 4, 1, 3), f(2)], {"kernel_shape": [1, 3]}, None, None),
    ("Conv", [(1, 4, 8)], [f(2, 4, 3)], {}, None, None),
    ("Conv", [(1, 4, 3, 3, 8)], [f(2, 4, 1, 1, 3)], {}, *["not in one or two dimensions"] * 2),
    ("Conv", [MAP, (2, 4, 1, 3)], [], {}, None, "weight not constant"),
    ("Conv", [MAP, (2, 4, 1, 3), (2,)], [], {}, "bias not constant", "weight not constant"),
    ("Conv", [(1, 1, 1, 16_385)], [f(1, 1, 1, 1)], {}, *["a size above 16384"] * 2),
    ("Conv", [(1, 4, "n", 8)], [f(2, 4, 1, 3)], {}, *["a size is not known"] * 2),
    ("ConvTranspose", [MAP], [f(4, 2, 1, 3)], UP, None, NO_NN),
    ("ConvTranspose", [MAP], [f(4, 2, 1, 3)], {"strides": [1, 2], "pads": [1, 1, 1, 1]}, None, NO_NN),
    ("ConvTranspose", [MAP], [f(4, 2, 1, 3)], {**UP, "pads": [0, 1, 0, 1]}, "pads that differ", NO_NN),
    ("ConvTranspose", [MAP], [f(4, 2, 1, 3)], {**UP, "output_padding": [0, 1]}, "output_padding", NO_NN),
    ("ConvTranspose", [MAP], [f(4, 2, 1, 3)], {**UP, "output_shape": [3, 17]}, "output_shape", NO_NN),
    ("ConvTranspose", [MAP], [f(4, 2, 1, 3)], {"auto_pad": "SAME_UPPER"}, "auto_pad", NO_NN),
    ("ConvTranspose", [MAP, (4, 2, 1, 3)], [], UP, "weight or bias not constant", NO_NN),
    ("Gemm", [VECTOR], [f(16, 4), f(4)], {}, None, None),
    ("Gemm", [VECTOR], [f(4, 16), f(1, 4)], {"transB": 1}, None, None),
    ("Gemm", [VECTOR], [f(16, 4), f()], {}, None, None),
    ("Gemm", [(2, 16)], [f(16, 4), f(2, 4)], {}, *["C of another shape than one row"] * 2),
    ("Gemm", [VECTOR], [f(16, 4), f(4)], {"alpha": 0.5}, *["transA, alpha or beta"] * 2),
    ("Gemm", [(16, 1)], [f(16, 4), f(4)], {"transA": 1}, *["transA, alpha or beta"] * 2),
    ("Gemm", [VECTOR, (16, 4)], [], {}, *["B not constant"] * 2),
    ("Gemm", [VECTOR], [f(16, 4)], {}, None, None),
    ("MatMul", [VECTOR], [f(16, 4)], {}, None, None),
    ("MatMul", [VECTOR, (16, 4)], [], {}, None, "B not constant"),
    ("MatMul", [(1, 1, 16)], [f(16, 4)], {}, None, "not a product of matrices"),
    ("MatMul", [(16,)], [f(16, 4)], {}, "an operand of one dimension", "not a product of matrices"),
    ("Concat", [MAP, MAP], [], {"axis": 1}, None, None),
    ("Concat", [MAP, MAP], [], {"axis": -3}, None, None),
    ("Concat", [MAP, MAP], [], {"axis": 2}, None, "not along the channels"),
    ("Concat", [VECTOR, VECTOR], [], {"axis": 1}, None, "input not of rank 4"),
    ("Concat", [MAP], [], {"axis": 1}, *["only one input"] * 2),
    ("Slice", [MAP], [i(0), i(2), i(1), i(1)], {}, None, None),
    ("Slice", [MAP], [i(0), i(2), None, i(1)], {}, None, None),
    ("Slice", [MAP], [i(2), i(2), i(1)], {}, *["an empty range"] * 2),
    ("Slice", [(1, "n")], [i(0), i(2), i(1)], {}, *["a size is not known"] * 2),
    ("Slice", [MAP], [i(0), i(2), i(1)], {"dtype": TensorProto.INT64}, None, None),
    ("Reshape", [MAP], [i(1, 96)], {}, None, None),
    ("Reshape", [MAP], [i(1, 1, 1, 1, 1, 96)], {}, *["result of rank over 5"] * 2),
    ("Reshape", [MAP], [i(0, 96)], {}, None, None),
    ("Reshape", [(1, "n")], [i(-1)], {}, *["input is no tensor of known sizes"] * 2),
    ("Reshape", [()], [i(1)], {}, *["input is no tensor of known sizes"] * 2),
    ("Transpose", [MAP], [], {"perm": [0, 3, 1, 2]}, None, None),
    ("Squeeze", [MAP], [i(0)], {}, None, None),
    ("Squeeze", [MAP], [], {"opset": 11, "axes": [0]}, None, None),
    ("Unsqueeze", [MAP], [i(0)], {}, None, NO_NN),
    ("Unsqueeze", [MAP], [i(0, 1)], {}, "result of rank over 5", NO_NN),
    ("Unsqueeze", [MAP], [], {"opset": 11, "axes": [0, 1]}, "result of rank over 5", NO_NN),
    ("Pad", [MAP], [i(0, 0, 2, 1, 0, 0, 0, 1), f()], {}, None, None),
    ("Pad", [MAP], [i(0, 0, 2, 1, 0, 0, 0, 1)], {}, None, "no constant_value"),
    ("Pad", [MAP], [i(0, 1, 0, 0, 0, 0, 0, 0), f()], {}, None, "not in the last two dimensions"),
    ("Pad", [MAP], [i(0, 0, -1, 0, 0, 0, 0, 0), f()], {}, *["negative amounts"] * 2),
    ("Pad", [MAP], [i(0, 0, 1, 0, 0, 0, 0, 0), f()], {"mode": "reflect"}, None, "mode reflect"),
    ("Pad", [MAP], [i(0, 1, 0, 0, 0, 0, 0, 0), f()], {"mode": "reflect"},
     "not in the last two dimensions", "mode reflect"),
    ("Pad", [MAP], [i(0, 0, 1, 0, 0, 0, 0, 0), f()], {"mode": "edge"}, "mode edge", "mode edge"),
    ("Pad", [MAP], [i(1, 1), f(), i(1)], {"opset": 18}, None, "not in the last two dimensions"),
    ("Gather", [MAP], [i(0, 1)], {"axis": 1}, None, None),
    ("Gather", [(1, 1, 1, 1, 2)], [i(0)], {"axis": 4}, None, None),
    ("Gather", [(1, 1, 1, 1, 2)], [np.int64(0)], {"axis": 4},
     *["a single index into rank over 4 or unknown sizes"] * 2),
    ("Gather", [(1, 1, 1, 1, 2)], [np.zeros((1, 1), np.int64)], {"axis": 4}, *["result of rank over 5"] * 2),
    ("Split", [MAP], [i(1, 3)], {"outputs": 2, "axis": 1}, None, None),
    ("Split", [MAP], [], {"opset": 11, "outputs": 2, "axis": 1}, None, None),
    ("Split", [MAP], [i(4)], {"axis": 1}, *["fewer than two parts"] * 2),
    ("BatchNormalization", [MAP], [f(4)] * 4, {}, None, None),
    ("BatchNormalization", [(1, 4, 8)], [f(4)] * 4, {}, *["input not of rank 4"] * 2),
    ("BatchNormalization", [MAP, (4,)], [f(4)] * 3, {}, *["statistics not constant"] * 2),
    ("PRelu", [MAP], [f(4, 1, 1)], {}, None, None),
    ("PRelu", [MAP], [f(1)], {}, None, None),
    ("PRelu", [MAP], [f(8)], {}, *["slopes not one a channel"] * 2),
    ("PRelu", [(1, 1, 1, 8)], [f(1)], {}, *["one slope for one channel"] * 2),
    ("PRelu", [VECTOR], [f(1)], {}, *["input not of rank 3 or 4"] * 2),
    ("Clip", [MAP], [np.float32(0), np.float32(6)], {}, None, None),
    ("Clip", [MAP, ()], [], {}, *["bounds not constant"] * 2),
    ("Cast", [MAP], [], {"to": TensorProto.FLOAT16}, *["nothing computes its input"] * 2),
    ("Shape", [MAP], [], {}, None, None),
    ("Shape", [MAP], [], {"start": 1}, None, "start or end"),
]  # fmt: skip


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule[0]}-{rule[4]}-{rule[5]}".replace(" ", "_"))
def test_a_rule(rule):
    op, shapes, constants, attributes, *want = rule
    assert verdicts(node_model(op, shapes, constants, **attributes)) == tuple(want)


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule[4] is None], ids=lambda rule: rule[0])
def test_partitions_that_are_not_worth_handing_over(rule):
    op, shapes, constants, attributes, *_ = rule
    found = partition(node_model(op, shapes, constants, **attributes), PROGRAM)
    # as the methods IsTrivial in the macOS build of onnxruntime 1.31.1 answer; Flatten, Tile and Ceil besides
    assert found.trivial == (op in ("Cast", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"))


def test_every_operator_has_a_rule_that_is_tested():
    plain = {*ep_rules._PLAIN} - {"Relu", "Transpose"}
    assert {*ep_rules._RULES} - plain == {rule[0] for rule in RULES} - {"Einsum", "Expand"}


def test_a_cast_behind_another_node():
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="first"),
        helper.make_node("Cast", ["a"], ["y"], name="it", to=TensorProto.FLOAT16),
    ]
    graph = helper.make_graph(
        nodes, "two", [helper.make_tensor_value_info("x", TensorProto.FLOAT, MAP)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, MAP)],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    assert verdicts(model) == (None, "only behind ArgMax in a NeuralNetwork")


# -- grouping --------------------------------------------------------------------------------------


class _Takes:
    """What onnxruntime's checker asks instead of its list of operators."""

    def __init__(self, refused):
        self.refused = refused

    def is_op_supported(self, node):
        return node.name not in self.refused

    def get_caveats(self):
        return []


def theirs(model, refused):
    """Sizes of the partitions that onnxruntime's own copy of the partitioner makes."""
    found = usability_checker.check_partitioning(model.graph, _Takes(refused), False)
    return [len(group) for group in found.supported_groups]


@pytest.mark.parametrize("name", ["dfn3", "dfn2-ll", "dfn3-ll", "lean"])
def test_groups_as_onnxruntimes_own_copy_does(synthetic_model, name):
    model = synthetic_model(name)
    graphs = {**model.source_graphs(), **model.graphs(find_mode("incremental").recipe())}
    for data in graphs.values():
        simple = simplified(data)
        for index, node in enumerate(simple.graph.node):
            node.name = node.name or f"unnamed {index}"
        for model_format in FORMATS:
            found = partition(simple, model_format)
            assert list(found.sizes) == theirs(simple, {n for names in found.refused.values() for n in names})


@st.composite
def graphs(draw):
    """A graph of nodes that are taken, trivial or refused, each reading one or two earlier tensors."""
    operators = draw(st.lists(st.sampled_from(["Add", "Identity", "Einsum"]), min_size=1, max_size=24))
    nodes = []
    for index, op in enumerate(operators):
        sources = st.integers(-1, index - 1)
        count = 1 if op == "Identity" else 2
        inputs = [f"t{draw(sources)}" for _ in range(count)]
        attributes = {"equation": "ab,ab->ab"} if op == "Einsum" else {}
        nodes.append(helper.make_node(op, inputs, [f"t{index}"], name=f"n{index}", **attributes))
    given = helper.make_tensor_value_info("t-1", TensorProto.FLOAT, [2, 2])
    made = [helper.make_tensor_value_info(f"t{len(nodes) - 1}", TensorProto.FLOAT, [2, 2])]
    graph = helper.make_graph(nodes, "random", [given], made)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


@settings(max_examples=200)
@given(graphs())
def test_groups_of_any_graph(model):
    found = partition(model, PROGRAM)
    refused = {name for names in found.refused.values() for name in names}
    assert list(found.sizes) == theirs(model, refused)
    nodes = {node.name: node for node in model.graph.node}
    grouped = [name for group in found.groups for name in group]
    assert sorted(grouped) == sorted(set(nodes) - refused)
    assert found.trivial == sum(all(nodes[n].op_type in TRIVIAL for n in group) for group in found.groups)
    # no group may need something that in turn needs a part of it
    above = {}
    for name, node in nodes.items():
        direct = {f"n{source[1:]}" for source in node.input if source != "t-1"}
        above[name] = direct.union(*(above[source] for source in direct))
    for group in found.groups:
        for name in group:
            assert not any(above[outside] & {*group} for outside in above[name] - {*group})


# -- dfstream inspect ------------------------------------------------------------------------------


def test_inspect_shows_a_row_for_every_graph_and_format(cli, synthetic_folder):
    code, out, err = cli("inspect", synthetic_folder("dfn3"), "--coreml")
    assert (code, err) == (0, "")
    table = out[out.index("Core ML in ONNX Runtime") :].splitlines()
    assert table[1].split() == ["graph", "format", "nodes", "taken", "partitions"]
    rows = [line.split() for line in table[2:12]]
    stems = "enc", "erb_dec", "df_dec", INCREMENTAL, CANONICAL
    assert [(row[0], row[1]) for row in rows] == [(f"{s}.onnx", f) for s in stems for f in FORMATS]
    assert [row[4] for row in rows[-2:]] == ["1", "1"]
    assert "trivial partition" in table[12]
    assert table[13] == "left to the CPU:"
    assert "  enc.onnx, MLProgram and NeuralNetwork:" in table
    assert re.search("^    GRU: no builder, 1 node: .*GRU", out, re.MULTILINE)
    assert "ConvTranspose: pads that differ, 2 nodes: " in out
    assert not [line for line in table[13:] if CANONICAL in line]
    assert "Core ML" not in cli("inspect", synthetic_folder("dfn3"))[1]


def test_inspect_json(cli, synthetic_folder, synthetic_model):
    code, out, _ = cli("inspect", synthetic_folder("dfn2"), "--coreml", "--json")
    assert code == 0
    assert json.loads(out)["coreml"] == coreml_partitions(synthetic_model("dfn2"))
    assert "coreml" not in json.loads(cli("inspect", synthetic_folder("dfn2"), "--json")[1])


def test_inspect_shows_the_patched_graphs_at_hand(cli, synthetic_model, tmp_path):
    patch_model(synthetic_model("dfn3"), tmp_path, ["streaming"], canonical=True, check=False)
    rows = coreml_partitions(Model.load(tmp_path))
    assert {row["graph"] for row in rows} == {
        "df_dec_streaming", "enc_conv_streaming", "enc_gru_streaming", "erb_dec_streaming", CANONICAL,
    }  # fmt: skip
    assert {row["partitions"] for row in rows if row["graph"] == CANONICAL} == {1}
    code, out, _ = cli("inspect", tmp_path, "--coreml")
    assert code == 0
    assert "  enc_gru_streaming.onnx" in out


def test_a_graph_that_cannot_be_made_comes_with_the_reason(cli, monkeypatch, bundled):
    from dfstream.coreml import partitions

    def refuse(graph):  # noqa: ARG001
        raise BackendError("no such thing")

    monkeypatch.setattr(partitions, "simplified", refuse)
    assert {row["reason"] for row in coreml_partitions(bundled)} == {"no such thing"}
    code, out, _ = cli("inspect", "--coreml")
    assert code == 0
    assert "  enc.onnx                   no such thing" in out
