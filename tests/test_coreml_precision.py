"""Which operations of a package are float32, which weights are compressed, and what follows for states."""

import numpy as np
import onnx
import pytest
from dfstream.patches.graph import import_graph, sections

import oracle
import packages
from conftest import SYNTHETIC
from dfstream.coreml.emission import constant_name, operation_name
from dfstream.coreml.flavour import Flavour
from dfstream.coreml.package import read_package
from dfstream.coreml.precision import decoder_matrices, feature_maps

FP16, ANE = Flavour("fp16"), Flavour("ane")
STATEFUL = {precision: Flavour(precision, "coreml") for precision in ("fp16", "fp32", "int8", "ane")}


def graph_of(name):
    return onnx.load_from_string(packages.graph_of(oracle.case(name).model)).graph


def half(array):
    return array.astype(np.float16).astype(np.float32)


# -- which operations ----------------------------------------------------------------------------------------


def maps_by_definition(name):
    """Nodes on maps that nothing but maps goes into, back to the inputs: shapes by onnxruntime."""
    graph = onnx.shape_inference.infer_shapes(
        onnx.load_from_string(packages.graph_of(oracle.case(name).model))
    ).graph
    width = {
        v.name: v.type.tensor_type.shape.dim[3].dim_value
        for v in (*graph.input, *graph.value_info, *graph.output)
    }
    makers = {node.output[0]: node for node in graph.node}
    constants = {w.name for w in graph.initializer}

    def is_map(tensor):
        if width[tensor] == 1:
            return False
        return tensor not in makers or all(map(is_map, set(makers[tensor].input) - constants))

    return {operation_name(node) for node in graph.node if all(map(is_map, set(node.input) - constants))}


@pytest.mark.parametrize("name", [*SYNTHETIC, "bundled"])
def test_maps_of_features_are_those_by_definition(name):
    found = feature_maps(graph_of(name))
    assert found == maps_by_definition(name)
    assert len(found) > 10
    assert not any("gru" in kept and "joined" not in kept for kept in found)


@pytest.mark.parametrize("name", ["dfn3", "bundled"])
def test_in_a_mixed_package_maps_of_features_are_float32(name):
    package = read_package(packages.converted(name, FP16))
    dtypes = {n: t.dtype for o in package.program.operations for n, t in o.outputs.items()}
    for kept in feature_maps(graph_of(name)):
        assert dtypes.get(kept, "float32") == "float32"
        assert f"{kept}_cast_fp16" not in dtypes
    grus = [n for n, dtype in dtypes.items() if dtype == "float16" and "gru" in n]
    assert len(grus) > 20, "nothing is in half precision"
    constants = package.program.constants
    weights = {
        n: c for n, c in constants.items() if c.dtype in ("float16", "float32") and np.ndim(c.values) == 4
    }
    assert {c.dtype for c in weights.values() if c.values.size > 4096} <= {"float16"}
    assert name != "bundled" or max(c.values.size for c in weights.values()) > 4096


@pytest.mark.parametrize("precision", ["ane", "fp32"])
def test_in_a_package_of_one_precision_there_is_one(precision):
    package = read_package(packages.converted("dfn3", Flavour(precision)))
    dtypes = {t.dtype for o in package.program.operations for t in o.outputs.values()}
    assert dtypes == {"float16" if precision == "ane" else "float32"}


# -- states --------------------------------------------------------------------------------------------------


def one_frame(name, flavour, states):
    running = packages.running(name, flavour)
    frame = {key: array[:, :, :1] for key, array in oracle.case(name).feats.items()}
    return running.run({**frame, **states})[0]


@pytest.mark.parametrize(("name", "precision", "kept"), [
    ("dfn3", "fp16", True), ("bundled", "fp16", True), ("bundled", "int8", True), ("dfn3", "palette", True),
    ("dfn3", "fp32", True), ("dfn3", "ane", False),
])  # fmt: skip
def test_states_never_pass_through_half_precision(name, precision, kept):
    """What is too small for half precision to see is still there in the next state, but in ``ane``."""
    flavour, rng = Flavour(precision), np.random.default_rng(4)
    ports = packages.running(name, flavour).package.inputs
    states = {
        state: half(rng.uniform(0.3, 0.9, tensor.shape).astype(np.float32))
        for state, tensor in ports.items()
        if not state.startswith("feat_")
    }
    before = one_frame(name, flavour, states)
    for state, array in states.items():
        small = np.float32(0.2) * np.spacing(array.astype(np.float16)).astype(np.float32)
        np.testing.assert_array_equal(half(array + small), array)
        after = one_frame(name, flavour, {**states, state: array + small})
        moved = np.abs(after[f"{state}_out"] - before[f"{state}_out"])
        if not kept:
            assert not moved.any(), state
        elif state == "h":
            # h + u (n - h), where u is a gate: most units keep some of what they were
            assert np.mean(moved > 0.02 * small) > 0.8
        else:
            assert moved.max() > 0.9 * small.min(), state


@pytest.mark.parametrize("name", ["dfn3", pytest.param("bundled", marks=pytest.mark.slow)])
def test_half_precision_throughout_is_the_same_whoever_keeps_the_states(name):
    feats, frames = oracle.case(name).feats, 120
    explicit, inside = (
        packages.streamed(packages.running(name, flavour), feats, frames)
        for flavour in (ANE, STATEFUL["ane"])
    )
    check_same_bits(explicit, inside)


@pytest.mark.parametrize(("name", "precision"), [
    ("dfn3", "fp16"), ("dfn3", "fp32"), ("bundled", "int8"),
    pytest.param("bundled", "fp16", marks=pytest.mark.slow),
    pytest.param("dfn2-ll", "fp16", marks=pytest.mark.slow),
])  # fmt: skip
def test_states_of_core_ml_are_explicit_ones_rounded_after_each_frame(name, precision):
    feats, frames = oracle.case(name).feats, 120
    explicit = packages.streamed(packages.running(name, Flavour(precision)), feats, frames, change=half)
    inside = packages.streamed(packages.running(name, STATEFUL[precision]), feats, frames)
    check_same_bits(explicit, inside)
    unrounded = packages.streamed(packages.running(name, Flavour(precision)), feats, frames)
    assert any(not np.array_equal(a["mask"], b["mask"]) for a, b in zip(unrounded, inside, strict=True))


def check_same_bits(one, other):
    for t, (a, b) in enumerate(zip(one, other, strict=True)):
        for key in ("mask", "coefs", "lsnr"):
            np.testing.assert_array_equal(a[key], b[key], err_msg=f"{key}, frame {t}")
    assert one[-1]["mask"].std() > 0


# -- weights -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*SYNTHETIC, "bundled"])
def test_matrices_of_decoders_are_those_by_structure(name):
    """Large weights that act on vectors, in what only the mask or the taps depend on."""
    data = packages.graph_of(oracle.case(name).model)
    graph = import_graph(onnx.load_from_string(data))
    decoders = sections(graph)["erb"] | sections(graph)["df"]
    vectors = _vectors(data)
    wanted = {
        node.inputs[1].name
        for node in graph.nodes
        if id(node) in decoders and node.op == "Conv" and node.inputs[0].name in vectors
        and np.prod(node.inputs[1].values.shape) > 2048
    }  # fmt: skip
    found = decoder_matrices(graph_of(name))
    assert len(found) == len(set(found))
    assert set(found) == wanted


def _vectors(data):
    graph = onnx.shape_inference.infer_shapes(onnx.load_from_string(data)).graph
    values = (*graph.input, *graph.value_info, *graph.output)
    return {v.name for v in values if v.type.tensor_type.shape.dim[3].dim_value == 1}


@pytest.mark.parametrize(("name", "precision"), [
    ("bundled", "int8"), ("dfn3", "palette"), pytest.param("dfn3", "int8", marks=pytest.mark.slow),
    pytest.param("bundled", "palette", marks=pytest.mark.slow),
])  # fmt: skip
def test_compressed_are_exactly_the_matrices_of_the_decoders(name, precision):
    made = packages.running(name, Flavour(precision))
    plain = read_package(packages.converted(name, FP16)).program.constants
    matrices = {f"{constant_name(m)}_to_fp16" for m in decoder_matrices(graph_of(name))}
    ending = {"int8": "_quantized", "palette": "_palettized"}[precision]
    compressed = [o for o in made.package.program.operations if o.kind.startswith("constexpr_")]
    assert {name for o in compressed for name in o.outputs} == {f"{m}{ending}" for m in matrices}
    assert matrices <= plain.keys()
    others = {n for n, c in plain.items() if np.ndim(c.values) == 4} - matrices
    constants = made.package.program.constants
    for weight in others:
        np.testing.assert_array_equal(constants[weight].values, plain[weight].values)


@pytest.mark.parametrize("precision", ["int8", pytest.param("palette", marks=pytest.mark.slow)])
def test_compressed_matrices_are_near(precision):
    """Half a step of each row's scale; or any of a table of 256 values, nearer than as many even steps."""
    from dfstream.coreml.compression import expand
    from dfstream.coreml.operands import Operands

    package = read_package(packages.converted("bundled", Flavour(precision)))
    plain = read_package(packages.converted("bundled", FP16)).program.constants
    program = package.program
    shapes = {name: np.shape(c.values) for name, c in program.constants.items()}
    checked = 0
    for operation in program.operations:
        if operation.kind.startswith("constexpr_"):
            (name,) = operation.outputs
            got = expand(Operands(operation, shapes, program.constants, "p")).values.astype(np.float32)
            want = plain[name.rpartition("_")[0]].values.astype(np.float32)
            step = np.abs(want).max(axis=(1, 2, 3), keepdims=True) / 127
            error = np.abs(got - want)
            if precision == "int8":
                assert (error <= 0.51 * step + 1e-3 * np.abs(want)).all()
            else:
                assert len(np.unique(got)) <= 256
                assert np.sqrt(np.mean(error**2)) < step.max() / np.sqrt(12)
            checked += 1
    assert checked > 5


@pytest.mark.parametrize("precision", ["int8", pytest.param("palette", marks=pytest.mark.slow)])
def test_eight_bits_are_smaller(precision):
    sizes = {
        kind: next(packages.converted("bundled", Flavour(kind)).rglob("weight.bin")).stat().st_size
        for kind in ("fp32", "fp16", precision)
    }
    assert sizes["fp16"] < 0.52 * sizes["fp32"]
    assert sizes[precision] < 0.75 * sizes["fp16"]
