"""From operations to a program: their order, where their maps lie, and which graphs are refused."""

import functools
from itertools import pairwise

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from dfstream.patches.compact import compact
from dfstream.patches.graph import constant, export_graph, import_graph
from dfstream.patches.recipe import Recipe, read_metadata
from hypothesis import given, settings
from hypothesis import strategies as st

import oracle
from conftest import SYNTHETIC
from dfstream.errors import UnsupportedGraph
from dfstream.net.layout import OPERATION, PHASE, Kind
from dfstream.net.program import SECTIONS, Buffer, Operation, View, in_phases
from dfstream.net.translate import translate
from net_programs import Running, Small

LINE = 16  # values of a cache line

# -- the order -----------------------------------------------------------------------------------------------


def view():
    return View(Buffer(1), 0, 1, 1, 1)


@st.composite
def graphs(draw):
    """Operations in an order of the signal; some read states, each of which one operation updates."""
    states = [View(Buffer(1, section="enc"), 0, 1, 1, 1) for _ in range(draw(st.integers(0, 4)))]
    maps, operations = [view()], []
    for _ in range(draw(st.integers(1, 14))):
        read = draw(st.lists(st.sampled_from(maps + states), min_size=1, max_size=2))
        # two operations may each write a part of one map
        target = draw(st.sampled_from([None, *(op.y for op in operations[-1:])]))
        target = view() if target is None or target in read else target
        operations.append(Operation(Kind.COPY, read[0], target, *read[1:], for_all=draw(st.booleans())))
        maps += [target] if target not in maps else []
    for state in states:
        operations.append(Operation(Kind.COPY, draw(st.sampled_from(maps)), state))
    return draw(st.permutations(operations))


def needs(operations):
    """Pairs (before, after) by the law: maps are written before they are read, states after."""
    return [
        (w, r)
        for w in operations
        for r in operations
        if w is not r and w.y.buffer in r.reads and not w.y.buffer.section
    ] + [(r, u) for u in updates(operations) for r in readers(operations, u)]


def updates(operations):
    return [op for op in operations if op.y.buffer.section]


def readers(operations, update):
    return [op for op in operations if update.y.buffer in op.reads and op is not update]


def possible(operations):
    """Whether no operation on all frames stands on a circle where a state's readers and update are one."""
    group = {id(op): id(op) for op in operations}
    for update in updates(operations):
        mine = {group[id(op)] for op in [update, *readers(operations, update)]}
        group = {op: min(mine) if name in mine else name for op, name in group.items()}
    reach = {(group[id(a)], group[id(b)]) for a, b in needs(operations) if group[id(a)] != group[id(b)]}
    while new := {(a, d) for a, b in reach for c, d in reach if b == c} - reach:
        reach |= new
    size = {name: list(group.values()).count(name) for name in group.values()}
    return not any(
        (group[id(op)],) * 2 in reach or size[group[id(op)]] > 1 for op in operations if op.for_all
    )


@settings(max_examples=200)
@given(graphs())
def test_order(operations):
    if not possible(operations):
        with pytest.raises(UnsupportedGraph, match="for all frames at once"):
            in_phases(operations)
        return
    phases = in_phases(operations)
    place = {id(op): (p, i) for p, phase in enumerate(phases) for i, op in enumerate(phase)}
    assert len(place) == sum(map(len, phases)) == len(operations)
    assert all(len({op.for_all for op in phase}) == 1 for phase in phases)
    # one kind follows the other, else two phases would be one
    assert all(a[0].for_all != b[0].for_all for a, b in pairwise(phases))
    assert all(place[id(before)] < place[id(after)] for before, after in needs(operations))
    for update in updates(operations):
        together = [update, *readers(operations, update)]
        assert len({place[id(op)][0] for op in together}) == 1
        assert not any(op.for_all for op in together) or len(together) == 1


def test_a_state_that_a_layer_on_all_frames_would_need():
    """The next value comes from the value by way of a layer that is to see all frames first."""
    state, a, b = View(Buffer(1, section="df"), 0, 1, 1, 1), view(), view()
    layer = Operation(Kind.GRU, a, b, for_all=True)
    circle = [Operation(Kind.COPY, state, a), layer, Operation(Kind.COPY, b, state)]
    with pytest.raises(UnsupportedGraph, match=r"compiled kernels: .* for all frames at once") as caught:
        in_phases(circle)
    assert caught.value.hint == "use the backend ort-cpu"


def test_states_of_each_other():
    """Both next values come from both values: one phase, no circle."""
    one, other = (View(Buffer(1, section="enc"), 0, 1, 1, 1) for _ in range(2))
    both = view()
    operations = [
        Operation(Kind.ADD, one, both, other),
        Operation(Kind.COPY, both, one),
        Operation(Kind.COPY, both, other),
    ]
    assert in_phases(operations) == [operations]


def test_states_in_a_row():
    """The first one's update needs the second, which waits for a layer on all frames: so must the first."""
    one, other = (View(Buffer(1, section="enc"), 0, 1, 1, 1) for _ in range(2))
    source, a, b, layer = view(), view(), view(), view()
    before = Operation(Kind.CONV, source, layer, for_all=True)
    reads_one, reads_both = Operation(Kind.COPY, one, a), Operation(Kind.ADD, a, b, other)
    updates = [Operation(Kind.COPY, b, one), Operation(Kind.COPY, layer, other)]
    assert in_phases([before, reads_one, reads_both, *updates]) == [
        [before],
        [reads_one, reads_both, *updates],
    ]


def test_no_operations():
    assert in_phases([]) == []


# -- the memory ----------------------------------------------------------------------------------------------


def own_recipe():
    from dfstream.patches.fold import fold_constants

    return Recipe("compact", ("combined_compact",), (fold_constants,), compact)


@functools.cache
def compact_graph(name):
    return oracle.case(name).model.graphs(own_recipe())["combined_compact"]


def translated(data, precision="float32"):
    model = onnx.load_from_string(data)
    return translate(model, read_metadata(model, "combined_compact").sections, precision)


@functools.cache
def program(name, precision="float32"):
    return translated(compact_graph(name), precision)


def memory_of(placed):
    return placed.sides[0].arguments[3]


def extents(program, placed, streams, frames, side=0):
    """Name, first and last value of everything that lies in the memory, padding included."""
    operations, _, ports, *_ = placed.sides[side].arguments
    sequence = operations.view(OPERATION)
    operations = [op for phase in program.phases for op in phase]
    buffers = {}
    for row, op in zip(sequence, operations, strict=True):
        for name, seen in (("x", op.x), ("y", op.y), ("z", op.z)):
            if seen is not None:
                at = int(row[name]) - seen.offset
                place = buffers.setdefault(id(seen.buffer), (seen.buffer, at, int(row[f"{name}_frame"])))
                assert place == (seen.buffer, at, int(row[f"{name}_frame"]))
                assert row[f"{name}_of_stream"] == (seen.buffer.section is not None)
    for port, seen in zip(ports, (*program.inputs, *program.results), strict=True):
        at, frame = int(port[0]) - seen.offset, int(port[1])
        assert buffers.setdefault(id(seen.buffer), (seen.buffer, at, frame)) == (seen.buffer, at, frame)
        assert frame > 0, "inputs and results are there for all frames"
    for buffer, at, frame in buffers.values():
        rows = streams if buffer.section else streams * frames if frame else 1
        for row in range(rows):
            start = at + row * frame
            yield (
                buffer,
                start - buffer.before,
                start,
                start + buffer.size,
                start + buffer.size + buffer.after,
            )
    for row, op in zip(sequence, operations, strict=True):
        if op.scratch[0]:
            start = int(row["scratch"])
            end = start + op.scratch[0] * streams * frames + op.scratch[1] * streams
            yield None, start, start, end, end


sizes = st.tuples(st.integers(1, 5), st.integers(1, 5))


@pytest.mark.parametrize("name", SYNTHETIC)
@settings(max_examples=5)
@given(sizes)
def test_nothing_overlaps(name, size):
    net = program(name)
    placed = net.place(*size)
    other_states = (
        extent for extent in extents(net, placed, *size, side=1) if extent[0] and extent[0].section
    )
    found = sorted([*extents(net, placed, *size), *other_states], key=lambda extent: extent[1:])
    assert found[0][1] >= 0
    assert found[-1][-1] + LINE <= memory_of(placed).size  # a product may touch 15 values behind its last one
    assert all(a[-1] <= b[1] for a, b in pairwise(found))
    assert memory_of(placed).ctypes.data % (4 * LINE) == 0
    # maps begin at cache lines, each frame's own; states lie side by side
    assert all(start % LINE == 0 for buffer, _, start, *_ in found if buffer is None or not buffer.section)


@pytest.mark.parametrize("name", SYNTHETIC)
def test_states_lie_in_the_memory_by_section(name):
    net = program(name)
    placed = net.place(3, 2)
    for index, side in enumerate(placed.sides):
        assert tuple(side.states) == SECTIONS
        for section, states in side.states.items():
            assert states.shape == (3, net.state_sizes[section])
            states[...] = 1
        inside = np.zeros(memory_of(placed).size, bool)
        for buffer, _, start, end, _ in extents(net, placed, 3, 2, index):
            if buffer is not None and buffer.section:
                inside[start:end] = True
        assert (memory_of(placed) == inside).all()
        assert side.flat.sum() == inside.sum()
        side.flat[...] = 0


def features(net, streams, frames):
    rng = np.random.default_rng(3)
    widths = [(v.channels, v.positions) for v in net.inputs]
    return [rng.standard_normal((streams, c, frames, w)).astype(np.float32) for c, w in widths]


@pytest.mark.parametrize("name", SYNTHETIC)
def test_zeros_beside_maps_stay_zeros(name):
    """And whatever else lies between: products spill over their results and change nothing."""
    net, (streams, frames) = program(name), (2, 5)
    running = Running(net, streams, frames)
    feat_erb, feat_spec = features(net, streams, frames)
    written = np.zeros(memory_of(running.placed).size, bool)
    padded = 0
    for buffer, first, start, end, last in extents(net, running.placed, streams, frames):
        written[start:end] = True
        padded += (start - first) + (last - end) if buffer is not None else 0
    assert padded > 0
    for _ in range(3):
        running(feat_spec, feat_erb)
    assert memory_of(running.placed)[written].any()
    assert not memory_of(running.placed)[~written].any()


def test_a_map_of_one_phase_has_room_for_one_frame():
    """It is used up before the next one comes; what crosses phases is there for every frame."""
    small = Small()
    source, within, across, kept, between, target = (small.fresh(4, 4) for _ in range(6))
    small.emit(Kind.COPY, source, within)
    small.emit(Kind.COPY, within, across)
    small.emit(Kind.COPY, within, kept)
    weights, bias = small.floats(np.zeros((16, 16))), small.floats(np.zeros(16))
    vector, result = (View(v.buffer, 0, 1, 16, 16) for v in (across, between))
    small.emit_for_all(Kind.CONV, vector, result, weights=weights, bias=bias)
    small.emit(Kind.ADD, between, target, kept)
    placed = small.program(source, target).place(1, 3)
    operations, phases, *_ = placed.sides[0].arguments
    rows = operations.view(OPERATION)
    assert [int(row["y_frame"]) for row in rows] == [0, 16, 16, 16, 16]
    assert [tuple(map(int, phase)) for phase in phases.view(PHASE)] == [(0, 3, 1), (3, 4, 0), (4, 5, 1)]


def test_memory_of_a_block_grows_with_frames_and_streams():
    net = program("dfn3")
    one, frames, streams = (memory_of(net.place(*size)).size for size in ((1, 1), (1, 8), (8, 1)))
    assert one < frames < 8 * one
    assert one < streams < 8 * one


def test_what_is_stored_by_precision():
    sizes = {p: program("dfn3", p).stored.nbytes for p in ("float32", "int16", "fp16", "int8")}
    assert sizes["float32"] == 2 * sizes["int16"] == 2 * sizes["fp16"] == 4 * sizes["int8"] > 0


def test_weights_are_found_at_cache_lines():
    net = program("dfn3")
    for array in (net.weights, net.stored):
        assert array.ctypes.data % (4 * LINE) == 0


# -- what exporters leave out ------------------------------------------------------------------------------


def with_change(change, name="dfn3"):
    graph = import_graph(onnx.load_from_string(compact_graph(name)))
    change(graph)
    return export_graph(graph)


def edited(change, name="dfn3"):
    """The program of a compact graph with a change."""
    sections = read_metadata(onnx.load_from_string(compact_graph(name)), "combined_compact").sections
    return translate(onnx.load_from_string(with_change(change, name)), sections)


def results(net):
    feat_erb, feat_spec = features(net, 1, 9)
    return Running(net, 1, 9)(feat_spec, feat_erb)


def test_biases_that_are_left_out_are_zeros():
    def zeros(graph):
        for node in graph.nodes:
            for op, index in (("GRU", 3), ("Conv", 2)):
                if node.op == op and len(node.inputs) > index:
                    values = np.zeros(node.inputs[index].shape)
                    node.inputs[index] = constant(f"{node.name}/zeros", values, np.float32)

    def nothing(graph):
        for node in graph.nodes:
            if node.op == "GRU":
                node.inputs[3] = gs.Variable.empty()
            elif node.op == "Conv":
                node.inputs = node.inputs[:2]

    assert (results(edited(zeros)) == results(edited(nothing))).all()
    assert (results(edited(zeros)) != results(program("dfn3"))).any()


def test_attributes_that_are_left_out_have_the_defaults_of_onnx():
    def change(graph):
        for node in graph.nodes:
            for key, default in (("group", 1), ("strides", [1, 1]), ("pads", [0] * 4)):
                if node.op == "Conv" and node.attrs.get(key) == default:
                    del node.attrs[key]

    assert (results(edited(change)) == results(program("dfn3"))).all()


def test_a_result_that_not_only_its_activation_reads():
    """Both values are there: the one before and the one after."""

    def change(graph):
        relu = named(graph, "df_dec/df_convp/Relu")
        named(graph, "df_dec/Add_1").inputs = [relu.inputs[0], relu.outputs[0]]

    feats = dict(zip(("feat_erb", "feat_spec"), features(program("dfn3"), 1, 9), strict=True))
    stepper = oracle.Stepper(with_change(change))
    wanted = [stepper(frame)["coefs"][0, :, 0].T.ravel() for frame in oracle.cut(feats, 1)]
    np.testing.assert_allclose(results(edited(change))[0], wanted, atol=1e-5)


# -- refusals ------------------------------------------------------------------------------------------------


def refused(change, match, name="dfn3"):
    """The compact graph with a change; the untouched one is taken."""
    with pytest.raises(UnsupportedGraph, match=f"^compiled kernels: {match}") as caught:
        edited(change, name)
    assert caught.value.hint == "use the backend ort-cpu"
    assert str(caught.value).isprintable()


def named(graph, name):
    return next(node for node in graph.nodes if node.name == name)


def with_input(node_name, index, values, dtype=np.float32):
    def change(graph):
        named(graph, node_name).inputs[index] = constant(f"{node_name}/changed", np.asarray(values), dtype)

    return change


def with_attribute(node_name, **attributes):
    def change(graph):
        named(graph, node_name).attrs.update(attributes)

    return change


def with_operator(node_name, op):
    def change(graph):
        named(graph, node_name).op = op

    return change


@pytest.mark.parametrize("op", ["Erf", "LeakyRelu", "Softplus"])
def test_refuses_an_operator_without_a_kernel(op):
    refused(with_operator("enc/lsnr_fc/Sigmoid", op), f"{op} 'enc/lsnr_fc/Sigmoid': no kernel for it")


def test_refuses_a_reshape_that_moves_values():
    node = "erb_dec/convt2/ConvTranspose/out"

    def change(graph):
        source = named(graph, "enc/erb_conv1/Relu").outputs[0]
        named(graph, node).inputs = [source, constant("rows", [1, 8, 2, 8], np.int64)]

    refused(change, rf"Reshape '{node}': \(8, 1, 16\) to \(8, 2, 8\) moves values")


@pytest.mark.parametrize("perm", [[0, 1, 3, 2], [0, 3, 2, 1], [0, 2, 1, 3], [0, 3, 1, 2]])
def test_refuses_a_transpose_that_moves_values(perm):
    node = "enc/Transpose_output_0/flat/last"
    refused(with_attribute(node, perm=perm), rf"Transpose '{node}': \(8, 1, 48\) by .* moves values")


@pytest.mark.parametrize("axis", [2, 3])
def test_refuses_a_slice_of_positions(axis):
    node = "enc/df_conv0/Conv/past"
    refused(with_input(node, 3, [axis], np.int64), f"Slice '{node}': along axis {axis}")


def test_refuses_a_product_of_maps():
    refused(with_operator("enc/Add", "Mul"), "Mul 'enc/Add': of two maps that is not a plain sum")


def test_refuses_a_sum_of_maps_of_different_shapes():
    def change(graph):
        node = named(graph, "erb_dec/Add_3")
        node.inputs[1] = named(graph, "enc/lsnr_fc/MatMul").outputs[0]

    refused(change, "Add 'erb_dec/Add_3': of two maps that is not a plain sum")


def test_refuses_a_scale_for_each_channel():
    refused(with_input("enc/Mul", 1, np.ones((1, 2, 1, 1))), "Mul 'enc/Mul': with a constant that is not one")


def test_refuses_a_constant_beside_a_map():
    node = "enc/erb_conv0/Conv/joined"
    refused(with_input(node, 0, np.zeros((1, 2, 1, 32))), f"Concat '{node}': of a constant")


def test_refuses_weights_that_are_computed():
    node = "enc/erb_conv1/Conv_1"

    def change(graph):
        made = gs.Variable("computed", np.dtype(np.float32))
        graph.nodes.append(gs.Node("Relu", "relu", {}, [graph.inputs[0]], [made]))
        named(graph, node).inputs[1] = made
        graph.toposort()

    refused(change, f"Conv '{node}': input 1 is not a constant")


def test_refuses_a_convolution_over_time():
    node = "enc/erb_conv1/Conv"
    refused(with_input(node, 1, np.ones((8, 1, 2, 3))), f"Conv '{node}': not over the positions of one frame")


@pytest.mark.parametrize("op", ["Mul", "Sub"])
def test_refuses_partial_sums_of_another_form(op):
    node = "erb_dec/conv0_out/Conv/sums"
    why = "carries partial sums in an unknown form" if op == "Mul" else "no kernel for it"
    refused(with_operator(node, op), f"{op} '{node}': {why}", name="dfn3-ll")


def test_refuses_partial_sums_that_are_cut_elsewhere():
    node = "erb_dec/conv0_out/Conv/now"
    refused(
        with_input(node, 1, [2], np.int64), r"Add .*carries partial sums in an unknown form", name="dfn3-ll"
    )
