"""merge: three graphs into one, by the names they share."""

import onnx
import onnx_graphsurgeon as gs
import pytest
from dfstream.patches.graph import constant, export_graph, import_graph, variable
from dfstream.patches.merge import merge

import oracle
from conftest import SYNTHETIC
from dfstream.errors import UnsupportedGraph
from dfstream.modes.base import find_mode
from dfstream.patching import canonical_recipe


@oracle.every_model(quick=oracle.FEW)
def test_computes_the_same_bytes_as_the_three(name):
    c = oracle.case(name)
    got = oracle.run(export_graph(oracle.merged(name, folded=False)), c.feats)
    assert oracle.errors({k: got[k] for k in oracle.RESULTS}, c.want) == {"lsnr": 0, "m": 0, "coefs": 0}


@pytest.mark.parametrize("name", SYNTHETIC)
def test_interface(name):
    c = oracle.case(name)
    m = c.model.config
    inputs, outputs = oracle.ports(export_graph(oracle.merged(name, folded=False)))
    states = {"dfn3-h0": ["h0", "erb_h0", "df_h0"], "dfn2-h0": ["h0"]}.get(name, [])
    assert list(inputs) == ["feat_erb", "feat_spec", *states]
    assert list(outputs) == ["lsnr", "m", "coefs", *map(oracle.after, states)]
    assert inputs["feat_erb"] == [1, 1, "T", m.nb_erb]
    assert inputs["feat_spec"] == [1, 2, "T", m.nb_df]
    assert outputs["lsnr"] == ["B", "T", 1]
    assert outputs["m"] == ["B", 1, "T", m.nb_erb]
    assert outputs["coefs"][:3] == ["B", "T", m.nb_df]


def test_drops_the_alpha_head():
    """The second output of the DF decoder, which nothing uses, and the layers only it needs."""
    parts = oracle.parts("dfn3")
    assert len(parts["df_dec"].outputs) == 2
    graph = merge(parts)
    assert not [node.name for node in graph.nodes if "df_fc_a" in node.name]


def test_names_say_where_they_come_from():
    graph = oracle.merged("dfn3", folded=False)
    public = {*oracle.RESULTS, "feat_erb", "feat_spec", "e0", "e1", "e2", "e3", "c0", "emb"}
    prefixes = ("enc/", "erb_dec/", "df_dec/")
    assert all(node.name.startswith(prefixes) for node in graph.nodes)
    assert all(name in public or name.startswith(prefixes) for name in graph.tensors())


@pytest.mark.parametrize("name", ["dfn2", "lean"])
def test_leaves_the_parts_as_they_were(name):
    parts = oracle.parts(name)
    before = {stem: export_graph(graph) for stem, graph in parts.items()}
    first = export_graph(merge(parts))
    assert {stem: export_graph(graph) for stem, graph in parts.items()} == before
    assert export_graph(merge(parts)) == first


def renamed(model, rename):
    for node in model.graph.node:
        node.name = rename(node)
    return import_graph(model)


@pytest.mark.parametrize("name", ["lean", pytest.param("dfn3", marks=pytest.mark.slow)])
@pytest.mark.parametrize("rename", [lambda _: "", lambda node: node.op_type], ids=["none", "by operator"])
def test_nodes_without_names_of_their_own(name, rename):
    """ONNX asks for no names; what patches name after nodes must not get mixed up."""
    c = oracle.case(name)
    merged = merge({stem: renamed(onnx.load(c.folder / f"{stem}.onnx"), rename) for stem in oracle.EXPORTS})
    before = renamed(onnx.load_from_string(export_graph(oracle.merged(name, folded=False))), rename)
    for graph in (merged, before):
        for recipe in (find_mode("incremental").recipe(), find_mode("streaming").recipe()):
            files = recipe.apply(graph, c.model.config, "").files
            oracle.check_equal(oracle.streamed(files.values(), c.feats, 7), c.want)
        (canonical,) = canonical_recipe().apply(graph, c.model.config, "").files.values()
        (named,) = c.graphs(canonical_recipe())
        assert oracle.operators(canonical) == oracle.operators(named)


# -- refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stem", oracle.EXPORTS)
def test_refuses_a_missing_part(stem):
    parts = oracle.parts("dfn3")
    del parts[stem]
    with pytest.raises(UnsupportedGraph, match=rf"merge: {stem} missing"):
        merge(parts)


@pytest.mark.parametrize(
    ("stem", "old"),
    [("enc", "feat_erb"), ("enc", "feat_spec"), ("erb_dec", "e2"), ("erb_dec", "emb"), ("df_dec", "c0")],
)
def test_refuses_another_input(stem, old):
    parts = oracle.parts("dfn3")
    next(t for t in parts[stem].inputs if t.name == old).name = "other"
    with pytest.raises(UnsupportedGraph, match=rf"merge: {stem} has no input '{old}', it has .*'other'"):
        merge(parts)


@pytest.mark.parametrize(
    ("stem", "old"), [("enc", "e1"), ("enc", "lsnr"), ("erb_dec", "m"), ("df_dec", "coefs")]
)
def test_refuses_another_output(stem, old):
    parts = oracle.parts("dfn3")
    next(t for t in parts[stem].outputs if t.name == old).name = "other"
    with pytest.raises(UnsupportedGraph, match=rf"merge: {stem} has no output '{old}'"):
        merge(parts)


@pytest.mark.parametrize("stem", oracle.EXPORTS)
def test_refuses_a_state_that_does_not_come_out_again(stem):
    parts = oracle.parts("dfn3-h0")
    state = next(t.name for t in parts[stem].inputs if t.name.endswith("h0"))
    parts[stem].outputs = [t for t in parts[stem].outputs if t.name != oracle.after(state)]
    message = f"merge: {stem} has the input '{state}' but no output '{oracle.after(state)}'"
    with pytest.raises(UnsupportedGraph, match=message):
        merge(parts)


def test_refuses_an_input_it_does_not_know():
    parts = oracle.parts("dfn3")
    parts["enc"].inputs.append(variable("atten_lim", [1]))
    with pytest.raises(UnsupportedGraph, match=r"merge: enc has the input 'atten_lim' but no output"):
        merge(parts)


def test_refuses_opsets_that_differ():
    parts = oracle.parts("dfn3")
    parts["df_dec"].opset = 17
    with pytest.raises(UnsupportedGraph, match=r"merge: the graphs have different opsets \[14, 17\]"):
        merge(parts)


def test_opsets_below_the_common_one_are_raised():
    parts = oracle.parts("dfn3-h0") | {"erb_dec": oracle.parts("dfn3")["erb_dec"]}
    assert {graph.opset for graph in parts.values()} == {12, 14}
    assert merge(parts).opset == 14


def test_refuses_a_result_that_is_no_valid_graph():
    graph = oracle.merged("lean")
    graph.nodes.append(gs.Node("NoSuchOperator", "x", {}, [constant("c", [1])], [graph.outputs[0]]))
    with pytest.raises(UnsupportedGraph, match=r"not valid ONNX"):
        export_graph(graph)
