"""Packages as programs: what they compute, in any block, what their tensors are called."""

import numpy as np
import onnx
import pytest

import mil
import oracle
import packages
from conftest import SYNTHETIC
from dfstream.coreml.emission import constant_name, emit_program, operation_name, tensor_shapes
from dfstream.coreml.flavour import TARGETS, Flavour
from dfstream.coreml.package import Tensor, read_package
from dfstream.errors import UnsupportedGraph

FP32 = Flavour("fp32")
T = 24

#: Another order of summation; the LSNR is in dB, of a range of 50.
LIMITS = {"mask": 1e-5, "coefs": 1e-5, "lsnr": 1e-4}


def slow_but(names, quick):
    return [pytest.param(name, marks=[] if name in quick else pytest.mark.slow) for name in names]


def frame_by_frame(name):
    """The canonical graph in plain onnxruntime."""
    c = oracle.case(name)
    advance = packages.looped(c.model)
    inputs, _ = oracle.ports(packages.graph_of(c.model))
    states = {n: np.zeros(s, np.float32) for n, s in inputs.items() if not n.startswith("feat_")}
    found = []
    for t in range(T):
        out = advance({**{n: array[:, :, t : t + 1] for n, array in c.feats.items()}, **states})
        states = {n: out[f"{n}_out"] for n in states}
        found.append(out)
    return found, states


def in_blocks(name, frames, states=None):
    """A package of so many frames a call, in the interpreter."""
    running = packages.running(name, Flavour("fp32", block_frames=frames))
    feats = oracle.case(name).feats
    ports = running.package.inputs
    states = {n: np.zeros(t.shape, np.float32) for n, t in ports.items() if not n.startswith("feat_")}
    found = []
    for t in range(0, T, frames):
        out, _ = running.run({**{n: array[:, :, t : t + frames] for n, array in feats.items()}, **states})
        states = {n: out[f"{n}_out"] for n in states}
        found.append(out)
    return found, states


# -- numbers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", slow_but([*SYNTHETIC, "bundled"], ("dfn3", "dfn2-ll", "bundled")))
def test_float32_as_onnxruntime(name):
    (got, states), (want, after) = in_blocks(name, 1), frame_by_frame(name)
    for ours, theirs in zip(got, want, strict=True):
        assert ours.keys() == theirs.keys()
        for key, array in theirs.items():
            np.testing.assert_allclose(ours[key], array, rtol=0, atol=LIMITS.get(key, 1e-5))
    assert all(np.abs(states[name] - after[name]).max() <= 1e-5 for name in after)
    assert np.std([out["mask"] for out in want]) > 1e-3


@pytest.mark.parametrize("frames", slow_but([2, 4, 8], (2,)))
@pytest.mark.parametrize("name", slow_but(["dfn3", "bundled"], ("dfn3",)))
def test_blocks_give_the_same_frames(name, frames):
    (got, states), (want, after) = in_blocks(name, frames), in_blocks(name, 1)
    for key, limit in LIMITS.items():
        ours, theirs = (np.concatenate([out[key] for out in found], 2) for found in (got, want))
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=limit)
    for key, array in after.items():
        np.testing.assert_allclose(states[key], array, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("name", "frames"), [
    ("dfn3", 2), pytest.param("bundled", 8, marks=pytest.mark.slow),
])  # fmt: skip
def test_blocks_share_their_weights(name, frames):
    """The same weight file; what grows is the program, by its operations."""
    one, block = (packages.converted(name, Flavour("fp32", block_frames=n)) for n in (1, frames))
    weights = [next(path.rglob("weight.bin")).read_bytes() for path in (one, block)]
    assert weights[0] == weights[1]
    sizes = [sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) for path in (one, block)]
    if name == "bundled":
        assert sizes[1] < 1.2 * sizes[0]


# -- tensors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flavour",
    [
        FP32, Flavour("fp16"), Flavour("ane"), Flavour("fp16", "coreml"), Flavour("ane", "coreml"),
        Flavour("fp32", block_frames=2), pytest.param(Flavour("ane", block_frames=3), marks=pytest.mark.slow),
        pytest.param(Flavour("int8", "coreml", block_frames=2), marks=pytest.mark.slow),
    ],
    ids=str,
)  # fmt: skip
def test_names_shapes_and_types_of_tensors(flavour):
    package = read_package(packages.converted("dfn3", flavour))
    c, n = oracle.case("dfn3").model.config, flavour.block_frames
    dtype = "float16" if flavour.precision == "ane" else "float32"
    states = {"h": (1, 144, 1, 1), "s_erb": (1, 2, 1, 32), "s_spec": (1, 4, 1, 96), "s_ctx": (1, 32, 1, 96)}
    inputs = {"feat_erb": (1, 1, n, c.nb_erb), "feat_spec": (1, 2, n, c.nb_df)}
    outputs = {"mask": (1, 1, n, c.nb_erb), "coefs": (1, 2 * c.df_order, n, c.nb_df), "lsnr": (1, 1, n, 1)}
    kept = {}
    if flavour.state == "explicit":
        inputs |= states
        outputs |= {f"{name}_out": shape for name, shape in states.items()}
    else:
        kept = {name: Tensor(shape, "float16") for name, shape in states.items()}
    assert package.inputs == {name: Tensor(shape, dtype) for name, shape in inputs.items()}
    assert package.outputs == {name: Tensor(shape, dtype) for name, shape in outputs.items()}
    assert package.states == kept


def test_vectors_are_kept_in_rows_where_they_can_be():
    package = read_package(packages.converted("bundled", Flavour("ane", "coreml")))
    (_, size, _, _) = packages.facts_of(oracle.case("bundled").model, FP32).states["h"].shape
    assert size % 32 == 0
    assert package.states["h"] == Tensor((1, size // 32, 1, 32), "float16")


@pytest.mark.parametrize("frames", [1, 2])
def test_operations_are_called_after_their_nodes(frames):
    """Precision is chosen by these names: every node has one of its own, in every frame."""
    mil.load()
    model = onnx.load_from_string(packages.graph_of(oracle.case("dfn3").model))
    program = emit_program(model, Flavour("fp32", block_frames=frames))
    emitted = [operation.name for operation in program.functions["main"].operations]
    assert len(set(emitted)) == len(emitted)
    names = [operation_name(node) for node in model.graph.node]
    assert len(set(names)) == len(names)
    for node, name in zip(model.graph.node, names, strict=True):
        for t in range(frames):
            assert {f"{name}_t{t}" if frames > 1 else name, *node.output} & {*emitted}, name
    weights = [constant_name(w.name) for w in model.graph.initializer]
    assert len(set(weights)) == len(weights)
    assert all(name.isidentifier() and name == name.lower() for name in (*names, *weights))
    assert not {*names, *weights} & {*tensor_shapes(model.graph)}
    # a weight is one constant, however many frames
    large = [w.name for w in model.graph.initializer if np.prod(w.dims) > 9]
    assert {*map(constant_name, large)} <= {*emitted}


@pytest.mark.parametrize("target", slow_but([t.names[0] for t in TARGETS], ("macos14",)))
def test_written_for_the_system_asked_for(target):
    package = read_package(packages.converted("lean", Flavour("fp32", target=target)))
    version = {"macos13": 7, "macos14": 8, "macos15": 9, "macos26": 10}[target]
    assert package.specification_version == version
    # of operations that have not changed since, coremltools may write an older set
    assert int(package.program.opset.removeprefix("CoreML")) <= version - 1


def test_an_operator_that_the_canonical_graph_does_not_have():
    mil.load()
    model = onnx.load_from_string(packages.graph_of(oracle.case("dfn3").model))
    next(node for node in model.graph.node if node.op_type == "Tanh").op_type = "Softplus"
    with pytest.raises(UnsupportedGraph, match=r"^convert: the canonical graph has no Softplus$"):
        emit_program(model, FP32)
