"""raise_opset: opset 11 to 13 becomes 14 and computes the same."""

import onnx
import onnx_graphsurgeon as gs
import pytest
from dfstream.patches.graph import constant, constant_value, export_graph, variable
from dfstream.patches.opset import OPSET, raise_opset

import oracle
from dfstream.errors import UnsupportedGraph
from dfstream.model import Model
from dfstream.modes.base import find_mode


@pytest.mark.parametrize("stem", oracle.EXPORTS)
@oracle.every_model(quick=oracle.FEW)
def test_computes_the_same(name, stem):
    tensors = oracle.whole_tensors(name, oracle.case(name).feats)
    graph = oracle.parts(name)[stem]
    raise_opset(graph)
    got = oracle.run(export_graph(graph), tensors)
    for output in oracle.RESULTS.keys() & got.keys():
        assert (got[output] == tensors[output]).all()


@pytest.mark.parametrize("stem", oracle.EXPORTS)
def test_is_valid_and_done_once(stem):
    graph = oracle.parts("dfn3")[stem]
    assert graph.opset == 12
    assert oracle.twice(graph, raise_opset) == ["opset 12 to 14"]
    model = onnx.load_from_string(export_graph(graph))
    assert [entry.version for entry in model.opset_import] == [OPSET]
    onnx.checker.check_model(model, full_check=True)
    # axes are inputs now
    for node in graph.nodes:
        if node.op in ("Squeeze", "Unsqueeze"):
            assert "axes" not in node.attrs
            assert constant_value(node.inputs[1]) is not None


def test_newer_graphs_are_left_alone():
    graph = oracle.parts("dfn3-h0")["enc"]
    before = export_graph(graph)
    assert raise_opset(graph) == []
    assert export_graph(graph) == before
    graph.opset = 17
    assert raise_opset(graph) == []
    assert graph.opset == 17


@pytest.mark.parametrize("opset", [11, 12, 13])
def test_every_older_opset_is_raised(opset):
    graph = oracle.parts("lean")["enc"]
    graph.opset = opset
    if opset == 13:
        for node in graph.nodes:
            if node.op in ("Squeeze", "Unsqueeze"):
                node.inputs.append(constant(f"{node.name}/axes", node.attrs.pop("axes")))
    assert raise_opset(graph) == [f"opset {opset} to 14"]
    onnx.checker.check_model(onnx.load_from_string(export_graph(graph)), full_check=True)


def test_sizes_of_a_split_become_an_input():
    graph = oracle.parts("dfn3")["enc"]
    parts = [variable("low"), variable("high")]
    source = next(t for t in graph.inputs if t.name == "feat_spec")
    graph.nodes.append(gs.Node("Split", "", {"axis": 1, "split": [1, 1]}, [source], parts))
    raise_opset(graph)
    assert constant_value(graph.nodes[-1].inputs[1]).tolist() == [1, 1]
    assert graph.nodes[-1].attrs == {"axis": 1}


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Hardmax", "ReduceSum", "BatchNormalization"])
def test_refuses_operators_that_changed_their_meaning(op):
    graph = oracle.parts("dfn3")["erb_dec"]
    node = oracle.first(graph, "Sigmoid")
    node.op = op
    with pytest.raises(UnsupportedGraph, match=rf"{op} '{node.name}' changed its meaning after opset 12"):
        raise_opset(graph)
    assert graph.opset == 12


def test_a_merged_graph_of_an_old_opset_can_be_used(tmp_path, monkeypatch):
    """Such as other tools leave behind: merging by dfstream raises it first."""
    c = oracle.case("lean")
    monkeypatch.setattr("dfstream.patches.merge.OPSET", 12)
    monkeypatch.setattr("dfstream.patches.merge.raise_opset", lambda _: [])
    (tmp_path / "combined.onnx").write_bytes(export_graph(oracle.merged("lean", folded=False)))
    (tmp_path / "config.ini").write_bytes((c.folder / "config.ini").read_bytes())
    model = Model.load(tmp_path / "combined.onnx")
    files = model.patch(find_mode("incremental").recipe()).files
    oracle.check_equal(oracle.streamed(files.values(), c.feats, 7), c.want)
