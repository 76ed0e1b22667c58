"""Running packages: states, and whole programs against onnxruntime."""

import itertools
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import handmade
import mil
import oracle
from conftest import SYNTHETIC
from coreml_twins import canonical, half, interpreter, noise, onnx_conv, refused
from dfstream.coreml.interpreter import Interpreter
from dfstream.coreml.package import read_package
from dfstream.errors import UsageError
from dfstream.patching import canonical_recipe
from handmade import Handmade

# -- states --------------------------------------------------------------------------------------------------


def test_states_of_both_kinds():
    """The plain twin of the package of everything."""
    running = interpreter(handmade.everything())
    weight, bias = (running.package.program.constants[name].values.astype(np.float32) for name in "wb")
    states, s = running.initial_states(), np.zeros((1, 2, 1, 8), np.float32)
    assert {name: (array.shape, array.any()) for name, array in states.items()} == {
        "m": ((1, 4, 1, 8), False)
    }
    memory = np.zeros((1, 4, 1, 8), np.float32)
    for _ in range(5):
        x = noise(1, 2, 1, 8)
        both = np.concatenate([s, x], 1)
        outputs, states = running.run({"x": x, "s": s}, states)
        conv = onnx_conv("Conv", half(both), weight, bias, pads=[0, 1, 0, 1])
        # one more rounding may fall on the other side where the sum came out in another order
        np.testing.assert_allclose(states["m"], half(half(conv) + memory), rtol=2e-3, atol=2e-3)
        memory = states["m"]
        np.testing.assert_array_equal(outputs["y"], half(1 / (1 + np.exp(-memory.astype(np.float64)))))
        np.testing.assert_array_equal(outputs["s_out"], x)
        s = outputs["s_out"]


def counter(dtype="float16", kind="write_state"):
    """A state, read before and after it is written: results are x, what it was and what it is."""
    made = Handmade({"x": ("float32", (2,))}, states={"m": (dtype, (2,))}, opset="CoreML8")
    made.add("read_state", {"input": "m"}, {"before": (dtype, (2,))})
    made.add("add", {"x": "before", "y": "x"}, {"sum": ("float32", (2,))})
    if kind == "write_state":
        made.add(kind, {"input": "m", "data": "sum"}, {})
        made.add("read_state", {"input": "m"}, {"after": (dtype, (2,))})
    else:
        made.add(kind, {"state": "m", "value": "sum"}, {"after": (dtype, (2,))})
    for name in ("before", "after"):
        made.result(name, dtype, (2,))
    return made


@pytest.mark.parametrize("kind", ["write_state", "coreml_update_state"])
def test_a_state_is_read_in_the_order_of_the_program(kind):
    running = interpreter(counter(kind=kind))
    x, states = np.float32([1, 2]), None
    for turn in range(3):
        outputs, states = running.run({"x": x}, states)
        np.testing.assert_array_equal(outputs["before"], turn * x)
        np.testing.assert_array_equal(outputs["after"], (turn + 1) * x)
        np.testing.assert_array_equal(states["m"], (turn + 1) * x)


def test_states_are_rounded_as_they_are_declared():
    x = np.float32([1.0001, 70000])
    outputs, states = interpreter(counter("float16")).run({"x": x})
    assert states["m"].tolist() == outputs["after"].tolist() == [1, np.inf]
    outputs, states = interpreter(counter("float32")).run({"x": x})
    assert states["m"].tolist() == outputs["after"].tolist() == x.tolist()
    outputs, _ = interpreter(counter("float16")).run({"x": x}, {"m": np.float32([2049, 1.0001])})
    assert outputs["before"].tolist() == [2048, 1]


def test_nothing_is_kept_between_calls():
    """Two streams in turns, one run anew, and the same arrays given twice: always the same bits."""
    running = interpreter(handmade.everything())
    frames = [{"x": noise(1, 2, 1, 8), "s": noise(1, 2, 1, 8)} for _ in range(4)]

    def stream(order):
        states, found = None, []
        for index in order:
            outputs, states = running.run(frames[index], states)
            yield found
            found += [outputs["y"].copy(), states["m"].copy()]
        yield found

    alone = list(stream(range(4)))[-1]
    one, other = stream(range(4)), stream(range(3, -1, -1))
    together = list(zip(one, other, strict=True))[-1][0]
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_array_equal(a, b)


def test_threads_share_an_interpreter():
    """Interrupted as often as can be, each computes what it computes alone."""
    running = interpreter(handmade.everything())
    feeds = [{"x": noise(1, 2, 1, 8), "s": noise(1, 2, 1, 8)} for _ in range(4)]

    def sums(feed):
        return [running.run(feed)[0]["y"].tobytes() for _ in range(300)]

    alone = [running.run(feed)[0]["y"].tobytes() for feed in feeds]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(sums, feeds))
    finally:
        sys.setswitchinterval(before)
    for results, want in zip(found, alone, strict=True):
        assert set(results) == {want}


@pytest.mark.parametrize("kind", ["identity", "reshape", "transpose", "slice_by_index", "cast"])
def test_results_belong_to_the_caller(kind):
    """Neither inputs, states nor constants are changed by whoever writes into a result."""
    parameters = {
        "reshape": {"shape": np.int32([2, 2])}, "transpose": {"perm": np.int32([1, 0])},
        "slice_by_index": {"begin": np.int32([0, 0]), "end": np.int32([2, 2])}, "cast": {"dtype": "fp32"},
    }  # fmt: skip
    made = handmade.one(kind, {"x": (2, 2)}, (2, 2), **parameters.get(kind, {}))
    made.states["m"] = ("float32", (2,))
    constants = {key: f"c_{key}" for key in parameters.get(kind, {})}
    k = made.const("k", np.float32([[1, 2], [3, 4]]))
    made.add(kind, {"x": k, **constants}, {"z": ("float32", (2, 2))})
    running = interpreter(made.result("z", "float32", (2, 2)))
    x, m = np.float32([[1, 2], [3, 4]]), np.float32([5, 6])
    first, states = running.run({"x": x}, {"m": m})
    for array in (*first.values(), *states.values()):
        assert array.flags.c_contiguous
        array[...] = -9
    assert (x.tolist(), m.tolist()) == ([[1, 2], [3, 4]], [5, 6])
    again, _ = running.run({"x": x}, {"m": m})
    np.testing.assert_array_equal(again["z"], again["result"])
    assert again["z"].max() == 4


def test_inputs_may_be_of_any_layout_and_type():
    running = interpreter(handmade.everything())
    x = noise(8, 1, 2, 1).T
    want, _ = running.run({"x": np.ascontiguousarray(x), "s": x})
    got, _ = running.run({"x": x.astype(np.float64), "s": x})
    np.testing.assert_array_equal(got["y"], want["y"])


@pytest.mark.parametrize(
    ("feeds", "states", "match"),
    [
        ({"x": (1, 2, 1, 8)}, None, r"inputs \['x'\], the package has \['s', 'x'\]"),
        ({"x": (1, 2, 1, 8), "s": (1, 2, 1, 8), "z": (1,)}, None, "inputs"),
        ({"x": (1, 2, 1, 8), "s": (1, 2, 8, 1)}, None, r"s: shape \[1, 2, 8, 1\], the package has"),
        ({"x": (1, 2, 1, 8), "s": (1, 2, 1, 8)}, {}, r"states \[\], the package has \['m'\]"),
        ({"x": (1, 2, 1, 8), "s": (1, 2, 1, 8)}, {"m": (4,)}, r"m: shape \[4\]"),
    ],
)
def test_wrong_names_and_shapes(feeds, states, match):
    running = interpreter(handmade.everything())
    states = None if states is None else {k: np.zeros(v, np.float32) for k, v in states.items()}
    with pytest.raises(UsageError, match=match):
        running.run({k: np.zeros(v, np.float32) for k, v in feeds.items()}, states)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            lambda m: m.add("relu", {"x": "m"}, {"z": ("float16", (2,))}),
            "'m' is a state, which has to be read",
        ),
        (lambda m: m.add("write_state", {"input": "m", "data": "m"}, {}), "'m' is a state"),
        (lambda m: m.add("write_state", {"input": "x", "data": "x"}, {}), "'x' is no state"),
        (
            lambda m: m.add("write_state", {"input": "m", "data": m.const("c", np.float32(1))}, {}),
            r"\[\] into a state \[2\]",
        ),
        (lambda m: m.add("read_state", {"input": "m"}, {"z": ("float16", (1, 2))}), r"declared as \[1, 2\]"),
        (lambda m: m.add("relu", {"x": "x"}, {"z": ("float32", (2,)), "z2": ("float32", (2,))}), "2 results"),
        (lambda m: m.add("relu", {"x": "x"}, {}), "0 results"),
    ],
)
def test_states_and_results_that_are_none(change, match):
    made = counter()
    change(made)
    refused(made, match)


# -- whole programs ------------------------------------------------------------------------------------------


def canonical_graph(name):
    return oracle.case(name).model.graphs(canonical_recipe())["combined_canonical"]


def stepped(running, feats, frames):
    """Run frame by frame; explicit states come out as ``<name>_out``, others are handed over."""
    names = [name for name in running.package.inputs if f"{name}_out" in running.package.outputs]
    carried = {name: np.zeros(running.package.inputs[name].shape, np.float32) for name in names}
    kept, found = running.initial_states(), []
    for frame in itertools.islice(oracle.cut(feats, 1), frames):
        outputs, kept = running.run({**frame, **carried}, kept)
        carried = {name: outputs[f"{name}_out"] for name in names}
        found.append(outputs)
    return found


def reference(graph, feats, frames):
    inputs, _ = oracle.ports(graph)
    states = {name: np.zeros(shape, np.float32) for name, shape in inputs.items() if name not in feats}
    found = []
    for frame in itertools.islice(oracle.cut(feats, 1), frames):
        out = oracle.run(graph, {**frame, **states})
        states = {name: out[f"{name}_out"] for name in states}
        found.append(out)
    return found


def check_as_onnxruntime(running, name, frames=30):
    feats = oracle.case(name).feats
    wanted = reference(canonical_graph(name), feats, frames)
    for ours, theirs in zip(stepped(running, feats, frames), wanted, strict=True):
        assert ours.keys() == theirs.keys()
        for key, want in theirs.items():
            # another order of summation; lsnr is in dB, of a range of 50
            np.testing.assert_allclose(ours[key], want, rtol=0, atol=1e-4 if key == "lsnr" else 1e-5)


@pytest.mark.parametrize("name", [*SYNTHETIC, "bundled"])
def test_a_graph_written_by_hand_as_onnxruntime_runs_it(name):
    check_as_onnxruntime(interpreter(canonical(canonical_graph(name))), name)


# -- whole programs, written by coremltools ------------------------------------------------------------------


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """Packages of canonical graphs, each written once; ``compress`` is a function of models."""
    written = {}

    def get(name, target="iOS16", precision="FLOAT32", dtype="fp32", stateful=False, compress=None):
        mil.load()
        key = (name, target, precision, dtype, stateful, compress)
        if key not in written:
            model = mil.canonical(canonical_graph(name), target, precision, dtype, stateful)
            model = compress(model) if compress else model
            path = mil.save(model, tmp_path_factory.mktemp("package") / "p.mlpackage")
            written[key] = Interpreter(read_package(path))
        return written[key]

    return get


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in oracle.FEW else pytest.mark.slow) for n in SYNTHETIC]
)
def test_float32_as_onnxruntime_runs_the_same_graph(package, name):
    check_as_onnxruntime(package(name), name)


@pytest.mark.parametrize("name", ["bundled", pytest.param("official dfn3", marks=pytest.mark.slow)])
def test_a_trained_model(package, name):
    check_as_onnxruntime(package(name), name, frames=60)


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_float16_is_near(package, dtype):
    """Not equal to float32, and of the error that halves explain."""
    feats = oracle.case("dfn3").feats
    running = package("dfn3", precision="FLOAT16", dtype=dtype)
    assert running.package.inputs["h"].dtype == {"fp32": "float32", "fp16": "float16"}[dtype]
    got, want = stepped(running, feats, 30), stepped(package("dfn3"), feats, 30)
    error = max(np.abs(a["mask"] - b["mask"]).max() for a, b in zip(got, want, strict=True))
    assert 1e-5 < error < 1e-2
    if dtype == "fp16":
        assert all(np.array_equal(half(array), array) for out in got for array in out.values())


@pytest.mark.parametrize("name", ["dfn3", pytest.param("dfn2-ll", marks=pytest.mark.slow)])
def test_states_of_core_ml_and_explicit_ones_give_the_same_bits(package, name):
    """All in float16, where the same is rounded at the same places; and iOS 16 is iOS 18."""
    feats = oracle.case(name).feats
    first, second, third = (
        stepped(package(name, target, "FLOAT16", "fp16", stateful), feats, 40)
        for target, stateful in (("iOS16", False), ("iOS18", False), ("iOS18", True))
    )
    for a, b, c in zip(first, second, third, strict=True):
        for key in ("mask", "coefs", "lsnr"):
            np.testing.assert_array_equal(a[key], b[key])
            np.testing.assert_array_equal(a[key], c[key])
    assert first[-1]["mask"].std() > 0


def quantised(dtype, granularity, **more):
    def compress(model):
        coreml = mil.load().optimize.coreml
        config = coreml.OpLinearQuantizerConfig(
            mode="linear_symmetric" if "u" not in dtype else "linear", dtype=dtype, granularity=granularity,
            weight_threshold=16, **more,
        )  # fmt: skip
        return coreml.linear_quantize_weights(model, coreml.OptimizationConfig(global_config=config))

    return compress


def palettised(bits, **more):
    def compress(model):
        coreml = mil.load().optimize.coreml
        config = coreml.OpPalettizerConfig(mode="uniform", nbits=bits, weight_threshold=16, **more)
        return coreml.palettize_weights(model, coreml.OptimizationConfig(global_config=config))

    return compress


COMPRESSIONS = {
    "int8 per channel": ("iOS16", quantised("int8", "per_channel")),
    "uint8 per tensor": ("iOS16", quantised("uint8", "per_tensor")),
    "int8 per channel, iOS 18": ("iOS18", quantised("int8", "per_channel")),
    "int8 in blocks": ("iOS18", quantised("int8", "per_block", block_size=2)),
    "uint4 in blocks": ("iOS18", quantised("uint4", "per_block", block_size=2)),
    "palette of 8 bits": ("iOS16", palettised(8)),
    "palette of 6 bits": ("iOS16", palettised(6)),
    "palette of 4 bits": ("iOS16", palettised(4)),
    "palette of 6 bits, iOS 18": ("iOS18", palettised(6)),
    "palette of 3 bits, iOS 18": ("iOS18", palettised(3)),
    "palettes of groups": ("iOS18", palettised(4, granularity="per_grouped_channel", group_size=4)),
}


QUICK = ("uint8 per tensor", "int8 in blocks", "palette of 6 bits")


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind in QUICK else pytest.mark.slow) for kind in COMPRESSIONS]
)
def test_compressed_weights_as_coremltools_expands_them(tmp_path, kind):
    """The same package with its weights expanded by coremltools itself: the same bits come out."""
    target, compress = COMPRESSIONS[kind]
    ct = mil.load()
    model = compress(mil.canonical(canonical_graph("dfn3"), target, "FLOAT16", "fp16"))
    made = Interpreter(read_package(mil.save(model, tmp_path / "small.mlpackage")))
    constexprs = [o for o in made.package.program.operations if o.kind.startswith("constexpr_")]
    assert len(constexprs) > 20
    expanded = ct.optimize.coreml.decompress_weights(model)
    plain = Interpreter(read_package(mil.save(expanded, tmp_path / "large.mlpackage")))
    assert not any(o.kind.startswith("constexpr_") for o in plain.package.program.operations)
    feats = oracle.case("dfn3").feats
    for ours, theirs in zip(stepped(made, feats, 5), stepped(plain, feats, 5), strict=True):
        for key, want in theirs.items():
            np.testing.assert_array_equal(ours[key], want)


def test_several_frames_a_call():
    """A map of N frames, convolved over time as well."""
    weight, x = noise(4, 2, 3, 3), noise(1, 2, 6, 8)
    want = onnx_conv("Conv", x, weight, None, pads=[2, 1, 0, 1])
    made = handmade.one(
        "conv", {"x": x.shape}, want.shape, weight=weight, pad_type="custom", pad=np.int32([2, 0, 1, 1])
    )
    got, _ = interpreter(made).run({"x": x})
    np.testing.assert_allclose(got["result"], want, atol=1e-5)
