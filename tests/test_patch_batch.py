"""free_batch: N streams in one call are N streams."""

import numpy as np
import pytest
from dfstream.patches.batch import free_batch
from dfstream.patches.graph import export_graph

import oracle
from conftest import SYNTHETIC
from dfstream.backends.base import find_backend
from dfstream.errors import BackendError
from dfstream.modes.base import find_mode

N = 3


def streams(config, frames):
    """Three different streams, and the same as a batch."""
    single = [oracle.noise(config, frames, seed=seed) for seed in range(N)]
    return single, {name: np.concatenate([s[name] for s in single]) for name in single[0]}


def check_batch(batch, single):
    for index, want in enumerate(single):
        oracle.check_equal({name: x[index : index + 1] for name, x in batch.items()}, want)


@pytest.mark.parametrize(("mode", "frames"), [("incremental", 1), ("incremental", 7), ("streaming", 7)])
@oracle.every_model(quick=oracle.FEW)
def test_a_batch_is_its_streams(name, mode, frames):
    c = oracle.case(name)
    graphs = c.graphs(find_mode(mode).recipe())
    single, batch = streams(c.model.config, 21)
    got = oracle.streamed(graphs, batch, frames, batch=N)
    check_batch(got, [oracle.streamed(graphs, x, frames) for x in single])
    assert np.abs(got["m"][0] - got["m"][1]).max() > 1e-2  # else it would show nothing


@oracle.every_model(oracle.WINDOWED, quick=oracle.FEW)
def test_a_batch_of_windows_is_its_streams(name):
    c = oracle.case(name)
    (graph,), W = c.graphs(find_mode("stateful-h0").recipe()), c.model.window_frames
    single, batch = streams(c.model.config, 10)
    check_batch(oracle.windowed(graph, batch, W, batch=N), [oracle.windowed(graph, x, W) for x in single])


@pytest.mark.parametrize("name", [name for name in SYNTHETIC if name != "lean"])
def test_the_export_itself_takes_a_batch_after_it(name):
    """Against the export, one stream after the other. Lean ones start their GRUs from constants for one."""
    c = oracle.case(name)
    graph = oracle.merged(name)
    assert free_batch(graph)[:2] == ["feat_erb", "feat_spec"]
    data = export_graph(graph)
    single, batch = streams(c.model.config, 20)
    inputs, _ = oracle.ports(data)
    states = {
        port: np.zeros([N if size == "B" else size for size in shape], np.float32)
        for port, shape in inputs.items()
        if port.endswith("h0")
    }
    got = oracle.run(data, {**batch, **states})
    check_batch({k: got[k] for k in oracle.RESULTS}, [oracle.whole(c.folder, x) for x in single])


@pytest.mark.parametrize("name", SYNTHETIC)
def test_twice_changes_nothing(name):
    assert oracle.twice(oracle.merged(name), free_batch)


def test_constant_reshapes_take_their_batch_from_their_input():
    graph = oracle.merged("lean")
    sites = free_batch(graph)
    assert sites[2:]
    shapes = {n.name: n.inputs[1].values.tolist() for n in graph.nodes if n.op == "Reshape"}
    for site in sites[2:]:
        assert shapes[site.removeprefix("Reshape ")][0] == 0


def test_declares_gru_states_on_their_second_axis():
    graph = oracle.merged("dfn3-h0")
    for tensor in graph.inputs:
        if tensor.name == "h0":
            tensor.shape = [1, 1, 32]
    assert "h0" in free_batch(graph)
    inputs, outputs = oracle.ports(export_graph(graph))
    assert inputs["h0"] == outputs["h1"] == [1, "B", 32]


def test_without_it_a_batch_is_refused():
    c = oracle.case("dfn3")
    _, batch = streams(c.model.config, 4)
    graph = c.model.graphs(find_mode("stateless-window-last").recipe())["combined"]
    with pytest.raises(BackendError, match=r"combined failed"):
        find_backend("ort-cpu").load(graph, "combined").run(batch)
