"""Reading packages: written by hand here, broken in every way; and those that coremltools writes."""

import hashlib
import os
import struct
import subprocess
import sys
import threading
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import handmade
import mil
import oracle
from dfstream.coreml import package as module
from dfstream.coreml import program
from dfstream.coreml.interpreter import Interpreter
from dfstream.coreml.package import Tensor, read_package
from dfstream.errors import ArchiveError, ModelError, UnsupportedGraph
from dfstream.patching import canonical_recipe
from handmade import Handmade, data, entry, number

INNER = "Data/com.apple.CoreML"
MODEL, WEIGHTS = f"{INNER}/model.mlmodel", f"{INNER}/weights/weight.bin"


@pytest.fixture
def folder(tmp_path):
    """Where a package may be written, several times."""
    return lambda name="p": tmp_path / f"{name}.mlpackage"


def refusal(path, kind=ArchiveError, names=MODEL):
    """The message of a refused package; it names the file and is one line."""
    with pytest.raises(kind) as caught:
        read_package(path)
    message = str(caught.value)
    assert message.startswith(str(path / names if names else path))
    assert message.isprintable()
    return message


def refused(made, folder, match, kind=ArchiveError, names=MODEL, **files):
    """A changed package is refused; where it cannot be before it is compiled, then."""
    path = made.write(folder(), **files)
    message = refusal(path, kind, names)
    assert match in message, message


# -- packages that are fine ----------------------------------------------------------------------------------


def test_what_a_package_says_of_itself(folder):
    path = handmade.everything().write(folder())
    found = read_package(path)
    assert (found.path, found.specification_version) == (path, 8)
    assert found.inputs == {"x": Tensor((1, 2, 1, 8), "float32"), "s": Tensor((1, 2, 1, 8), "float32")}
    assert found.outputs == {"y": Tensor((1, 4, 1, 8), "float32"), "s_out": Tensor((1, 2, 1, 8), "float32")}
    assert found.states == {"m": Tensor((1, 4, 1, 8), "float16")}
    assert found.metadata == {"dfstream.format": "1", "licence": "none – of yours"}
    assert found.program.opset == "CoreML7"
    assert [operation.kind for operation in found.program.operations] == [
        "concat", "cast", "conv", "read_state", "add", "write_state", "sigmoid", "cast", "slice_by_index",
    ]  # fmt: skip
    concat, *_, conv = found.program.operations[:3]
    assert concat.arguments == {"values": ("s", "x"), "axis": ("axis",), "interleave": ("no",)}
    assert concat.outputs == {"both": Tensor((1, 4, 1, 8), "float32")}
    assert (conv.name, conv.arguments["weight"]) == ("conv", ("w",))
    constants = found.program.constants
    assert (constants["fp16"].dtype, constants["fp16"].values) == ("string", "fp16")
    assert (constants["no"].dtype, constants["no"].values.shape, bool(constants["no"].values)) == (
        "bool", (), False,
    )  # fmt: skip
    assert constants["pad"].values.tolist() == [0, 0, 1, 1]


def test_a_path_as_text(folder):
    assert read_package(str(handmade.everything().write(folder()))).inputs


def test_no_other_reader_is_needed():
    """Neither coremltools nor the protobuf library, nor what brings them along."""
    code = "import sys, dfstream.coreml.interpreter, dfstream.coreml.package; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"coremltools", "google.protobuf", "onnx", "onnxruntime", "numba"} & set(loaded.split())


@pytest.mark.parametrize("where", ["weight", "const"])
@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [
        ("float16", -3, 3), ("float32", -3, 3), ("int8", -128, 127), ("uint8", 0, 255),
        ("int16", -(2**15), 2**15 - 1), ("uint16", 0, 2**16 - 1), ("int32", -(2**31), 2**31 - 1),
        ("uint32", 0, 2**32 - 1), ("int4", -8, 7), ("uint4", 0, 15), ("uint1", 0, 1), ("uint2", 0, 3),
        ("uint3", 0, 7), ("uint6", 0, 63),
    ],
)  # fmt: skip
def test_constants_of_every_type(folder, where, dtype, low, high):
    rng = np.random.default_rng(2)
    held = dtype if (dtype[-1] in "28" and dtype[-2] != "t") or "16" in dtype or dtype == "int8" else None
    held = np.dtype(held or {"uint8": "uint8", "int8": "int8", "int4": "int8"}.get(dtype, "uint8"))
    values = rng.uniform(low, high + 1, (3, 7)) if held.kind == "f" else rng.integers(low, high + 1, (3, 7))
    values = values.astype(held)
    made = handmade.one("relu", {"x": (1,)}, (1,))
    getattr(made, where)("first", values[:1, :5], dtype)
    getattr(made, where)("c", values, dtype)
    found = read_package(made.write(folder())).program.constants
    assert found["c"].dtype == dtype
    assert found["c"].values.dtype == held
    np.testing.assert_array_equal(found["c"].values, values)
    np.testing.assert_array_equal(found["first"].values, values[:1, :5])


def test_constants_in_attributes_and_in_place_of_operands(folder):
    made = Handmade({"x": ("float32", (2,))})
    values = np.float32([3, 4])
    made.add("one", {"x": "x"}, {"a": ("float32", (2,))}, {"p": handmade.immediate(values, "float32")})
    made.add("two", {"x": ["a", handmade.immediate(values + 1, "float32")]}, {"b": ("float32", (2,))})
    found = read_package(made.result("b", "float32", (2,)).write(folder())).program
    assert found.operations[0].arguments == {"x": ("x",), "p": ("a.p",)}
    assert found.operations[1].arguments == {"x": ("a", "b.x.1")}
    assert found.constants["a.p"].values.tolist() == [3, 4]
    assert found.constants["b.x.1"].values.tolist() == [4, 5]


def test_the_digest_is_of_model_and_weights_alone(folder):
    made = handmade.everything()
    path = made.write(folder())
    lines = [
        f"{hashlib.sha256((path / file).read_bytes()).hexdigest()}  {file.removeprefix(INNER)[1:]}\n"
        for file in (MODEL, WEIGHTS)
    ]
    before = read_package(path).sha256
    assert before == hashlib.sha256("".join(lines).encode()).hexdigest()
    made.manifest["rootModelIdentifier"] = "2"
    made.manifest["itemInfoEntries"]["2"] = made.manifest["itemInfoEntries"].pop("1")
    assert read_package(made.write(folder("other"))).sha256 == before
    weights = bytearray(made.weights())
    weights[-1] ^= 1
    assert read_package(made.write(folder("weights"), weights=bytes(weights))).sha256 != before
    made.metadata["licence"] = "another"
    assert read_package(made.write(folder("model"))).sha256 != before


# -- the folder ----------------------------------------------------------------------------------------------


def test_what_is_no_package(tmp_path):
    refusal(tmp_path / "absent", names="")
    (tmp_path / "file").write_bytes(b"x")
    refusal(tmp_path / "file", names="")
    (tmp_path / "empty").mkdir()
    refusal(tmp_path / "empty", names="Manifest.json")


@pytest.mark.parametrize(
    ("missing", "names"), [("manifest", "Manifest.json"), ("model", MODEL), ("weights", WEIGHTS)]
)
def test_files_that_are_not_there(folder, missing, names):
    refused(handmade.everything(), folder, "not there", names=names, **{missing: None})


@pytest.mark.parametrize(
    "manifest",
    [b"", b"{", b"[]", b"{}", b'"x"', b"\xff", b"[" * 100_000, b'{"rootModelIdentifier": []}',
     b'{"rootModelIdentifier": "1", "itemInfoEntries": {"1": {"path": 5}}}',
     b'{"rootModelIdentifier": "1", "itemInfoEntries": {"2": {"path": "x"}}}',
     b'{"rootModelIdentifier": "1", "itemInfoEntries": []}',
     b'{"rootModelIdentifier": ' + b"9" * 5000 + b"}"],
    ids=range(12),
)  # fmt: skip
def test_manifests_that_are_none(folder, manifest):
    refused(handmade.everything(), folder, "", names="Manifest.json", manifest=manifest)


ELSEWHERE = "leaves the package"
NO_FILE = "not there, or not a plain file"


@pytest.mark.parametrize(
    ("path", "match"),
    [
        ("../../outside", ELSEWHERE),
        ("com.apple.CoreML/../../../outside", ELSEWHERE),
        ("com.apple.CoreML/../com.apple.CoreML/model.mlmodel", ELSEWHERE),
        ("/etc/hostname", ELSEWHERE),
        ("..", ELSEWHERE),
        ("a\\b", ELSEWHERE),
        ("C:/x", ELSEWHERE),
        ("x\0y", ELSEWHERE),
        ("", NO_FILE),
        (".", NO_FILE),
        ("com.apple.CoreML", NO_FILE),
        ("\n", NO_FILE),
        ("x" * 5000, ""),
    ],
)
def test_manifests_that_point_elsewhere(folder, path, match):
    made = handmade.everything()
    (folder().parent / "outside").write_bytes(made.model())
    made.manifest["itemInfoEntries"]["1"]["path"] = path
    refused(made, folder, match, names="")


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("weight.bin", "which is not in the package"),
        ("/etc/hostname", "which is not in the package"),
        ("@model_path/../../../outside", ELSEWHERE),
        ("@model_path//etc/hostname", ELSEWHERE),
        ("@model_path/", NO_FILE),
    ],
)
def test_weights_that_lie_elsewhere(folder, name, match):
    made = handmade.one("relu", {"x": (1,)}, (1,))
    (folder().parent / "outside").write_bytes(bytes(64))
    value = handmade.file_value("float32", (1,), 64, name)
    made.add("const", {}, {"c": ("float32", (1,))}, {"val": value})
    refused(made, folder, match, names="")


@pytest.mark.parametrize("inside", ["Manifest.json", "Data", INNER, MODEL, f"{INNER}/weights", WEIGHTS])
def test_links(folder, inside):
    path = handmade.everything().write(folder())
    elsewhere = path.parent / "elsewhere"
    (path / inside).rename(elsewhere)
    (path / inside).symlink_to(elsewhere)
    assert "a link" in refusal(path, names="")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this platform")
@pytest.mark.parametrize("inside", ["Manifest.json", MODEL, WEIGHTS])
def test_a_pipe_is_not_waited_for(folder, inside):
    path = handmade.everything().write(folder())
    (path / inside).unlink()
    os.mkfifo(path / inside)
    thread = threading.Thread(target=refusal, args=(path,), kwargs={"names": inside}, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()


@pytest.mark.parametrize(
    ("limit", "names"), [("_MAX_MANIFEST", "Manifest.json"), ("_MAX_MODEL", MODEL), ("_MAX_WEIGHTS", WEIGHTS)]
)
def test_files_that_are_too_large(folder, monkeypatch, limit, names):
    path = handmade.everything().write(folder())
    size = (path / names).stat().st_size
    monkeypatch.setattr(module, limit, size)
    read_package(path)
    monkeypatch.setattr(module, limit, size - 1)
    assert "MiB" in refusal(path, names=names)


def test_too_many_weight_files(folder):
    made = handmade.one("relu", {"x": (1,)}, (1,))
    made.weight("w0", np.float32([1]))
    for i in range(1, 17):
        value = handmade.file_value("float32", (1,), 64, f"@model_path/weights/{i}.bin")
        made.add("const", {}, {f"w{i}": ("float32", (1,))}, {"val": value})
    path = made.write(folder())
    for i in range(1, 17):
        (path / INNER / "weights" / f"{i}.bin").write_bytes(made.weights())
    assert "more than 16 weight files" in refusal(path, names="")


# -- the model -----------------------------------------------------------------------------------------------


def test_every_prefix_of_a_model(folder):
    """A cut that falls between fields leaves a message that says less, and no more does any other."""
    made = handmade.everything()
    whole = made.model()
    path = made.write(folder())
    for length in range(0, len(whole), 7):
        (path / MODEL).write_bytes(whole[:length])
        refusal(path, ModelError)


def test_every_prefix_of_the_weights(folder):
    made = handmade.everything()
    whole = made.weights()
    path = made.write(folder())
    for length in range(0, 64 + 64 + 96):
        (path / WEIGHTS).write_bytes(whole[:length])
        refusal(path, names=WEIGHTS)


def everything_with(**changes):
    made = handmade.everything()
    for name, value in changes.items():
        setattr(made, name, value)
    return made


UNSUPPORTED = {
    "another kind of model": lambda _: {"model": number(1, 8) + data(500, b"")},
    "3 functions": lambda m: {
        "model": model_of(m, number(1, 1) + b"".join(entry(2, n, m.function()) for n in "abc"))
    },
    "version 2 of ML Programs": lambda m: {"model": model_of(m, number(1, 2) + entry(2, "f", m.function()))},
    "a model of several functions": lambda m: {
        "model": number(1, 8) + data(2, data(20, b"")) + data(502, m.program())
    },
    "control flow": lambda m: m.operations.append(handmade.operation("cond", {}, {}) + data(4, b"")),
    "'c' has no fixed shape": lambda m: m.operations.append(
        handmade.operation("relu", {"x": "x"}, {"c": data(1, number(1, 11) + data(3, data(2, b"")))})
    ),
    "the type 13": lambda m: m.add("relu", {"x": "x"}, {"c": ("bfloat16", (1,))}),
    "the type 99": lambda m: m.operations.append(
        handmade.operation("relu", {"x": "x"}, {"c": data(1, number(1, 99))})
    ),
    "'c' is not a tensor": lambda m: m.operations.append(
        handmade.operation("split", {"x": "x"}, {"c": data(2, b"")})
    ),
    "'c.p' is not a tensor": lambda m: m.add(
        "relu", {"x": "x"}, {"c": ("float32", (1,))},
        {"p": data(2, handmade.tensor_type("float32", (1,))) + data(3, data(3, b""))},
    ),
}  # fmt: skip


def model_of(made, content):
    return number(1, 8) + data(2, made.description()) + data(502, content)


@pytest.mark.parametrize("match", UNSUPPORTED)
def test_sound_models_that_are_not_supported(folder, match):
    made = handmade.everything()
    files = UNSUPPORTED[match](made)
    refused(made, folder, match, UnsupportedGraph, **(files if isinstance(files, dict) else {}))


@pytest.mark.parametrize(
    "array",
    [
        data(4, b""),  # an image
        data(5, data(1, b"\x01") + number(2, 131104)),  # integers
        data(5, data(1, b"\x01") + number(2, 65600)),  # doubles
        data(5, data(1, b"\x01") + number(2, 65568) + data(31, b"")),  # any shape in a range
        data(5, data(1, b"\x01") + number(2, 65568) + data(21, b"")),  # one shape of several
    ],
)
def test_inputs_that_are_not_supported(folder, array):
    made = handmade.one("relu", {"x": (1,)}, (1,))
    made.description = lambda: data(1, data(1, "x") + data(3, array))
    refused(made, folder, "'x' is not an array of floats of one shape", UnsupportedGraph)


DAMAGED = {
    "'nobody', needed by z.x.0": lambda m: m.add("relu", {"x": "nobody"}, {"z": ("float32", (1,))}),
    "'z', needed by z.x.0": lambda m: m.add("relu", {"x": "z"}, {"z": ("float32", (1,))}),
    "the name 'y' is used twice": lambda m: m.add("relu", {"x": "x"}, {"y": ("float32", (1, 2, 1, 8))}),
    "the name 'x' is used twice": lambda m: m.const("x", 1),
    "the name 'm' is used twice": lambda m: m.const("m", 1),
    "a tensor without a name": lambda m: m.const("", 1),
    "'gone', needed by the results": lambda m: m.outputs.update(gone=("float32", (1,))),
    "a state among them": lambda m: m.outputs.update(m=("float16", (1, 4, 1, 8))),
    "no results": lambda m: m.outputs.clear(),
    "no block for the opset": lambda m: setattr(
        m, "function", lambda: data(2, "CoreML5") + entry(3, "CoreML6", b"")
    ),
    "const 'c' has not one value": lambda m: m.add("const", {}, {"c": ("int32", ())}),
    "const 'c' is not of its own type and shape": lambda m: m.add(
        "const", {}, {"c": ("int32", (2,))}, {"val": handmade.immediate(1, "int32")}
    ),
    "relu 'c' has x twice": lambda m: m.add(
        "relu", {"x": "x"}, {"c": ("float32", (1,))}, {"x": handmade.immediate(1, "int32")}
    ),
    "two results of one name": lambda m: m.operations.append(
        handmade.operation("split", {"x": "x"}, {"c": handmade.tensor_type("float32", (1,))})
        + data(3, handmade.named("c", handmade.tensor_type("float32", (1,))))
    ),
    "'c' has the absurd shape [0]": lambda m: m.const("c", np.zeros(0, np.int32)),
    "'c' has the absurd shape [-1]": lambda m: m.add("relu", {"x": "x"}, {"c": ("float32", (-1,))}),
    "'c' has the absurd shape [65536, 65536]": lambda m: m.add(
        "relu", {"x": "x"}, {"c": ("float32", (65536, 65536))}
    ),
    "'c' has the absurd shape [1, 1, 1, 1, 1, 1, 1, 1]": lambda m: m.add(
        "relu", {"x": "x"}, {"c": ("float32", (1,) * 9)}
    ),
    "'c' has the absurd shape [1]": lambda m: m.operations.append(
        handmade.operation(
            "relu", {"x": "x"}, {"c": data(1, number(1, 11) + number(2, 2) + data(3, data(1, number(1, 1))))}
        )
    ),
    "more than 16777216 elements in all tensors together": lambda m: [
        m.add("relu", {"x": "x"}, {f"c{i}": ("float32", (4096, 2048))}) for i in range(2)
    ],
    "limit 10000": lambda m: m.operations.extend([b""] * 10_000),
}


@pytest.mark.parametrize("match", DAMAGED)
def test_models_that_contradict_themselves(folder, match):
    made = handmade.everything()
    description = made.description()
    DAMAGED[match](made)
    made.description = lambda: description
    refused(made, folder, match)


@pytest.mark.parametrize(
    ("ports", "name", "kind"),
    [
        ("inputs", "x", ("float16", (1, 2, 1, 8))),
        ("outputs", "y", ("float32", (1, 4, 8, 1))),
        ("states", "m", ("float32", (1, 4, 1, 8))),
        ("inputs", "more", ("float32", (1,))),
        ("states", "m", None),
    ],
)
def test_descriptions_of_another_program(folder, ports, name, kind):
    made = handmade.everything()
    function = made.function()
    made.function = lambda: function
    getattr(made, ports)[name] = kind
    if kind is None:
        del getattr(made, ports)[name]
    refused(made, folder, "its description is not that of its program")


@pytest.mark.parametrize(
    ("dtype", "shape", "field", "content"),
    [
        ("int32", (2,), 2, data(1, b"\x01")),  # too few
        ("int32", (1,), 2, data(1, b"\x01\x02")),  # too many
        ("int32", (1,), 1, data(1, bytes(4))),  # floats for integers
        ("float32", (1,), 2, data(1, b"\x01")),
        ("float64", (1,), 1, data(1, bytes(4))),
        ("float32", (1,), 6, data(1, bytes(8))),
        ("float16", (1,), 1, data(1, bytes(4))),
        ("int8", (1,), 2, data(1, handmade.varint(200))),  # does not fit
        ("uint8", (1,), 2, data(1, handmade.varint(-1))),
        ("bool", (1,), 3, data(1, b"\x02")),
        ("uint4", (1,), 2, data(1, b"\x01")),
        ("float16", (2,), 7, data(1, bytes(3))),
        ("uint4", (3,), 7, data(1, bytes(1))),
        ("string", (1,), 4, data(1, "a")),  # a list of text
        ("string", (), 4, data(1, "a") + data(1, "b")),
        ("string", (), 7, data(1, b"a")),
        ("bool", (1,), 7, data(1, b"\x01")),
        ("float32", (), 4, data(1, "a")),
        ("float32", (), 9, b""),
    ],
)
def test_values_that_are_not_what_they_should_be(folder, dtype, shape, field, content):
    made = handmade.one("relu", {"x": (1,)}, (1,))
    value = data(2, handmade.tensor_type(dtype, shape)) + data(3, data(1, data(field, content)))
    made.add("const", {}, {"c": (dtype, shape)}, {"val": value})
    refused(made, folder, f"'c' does not hold {list(shape)} of {dtype}")


# -- weights -------------------------------------------------------------------------------------------------


def blob_refused(folder, match, change=None, kind=ArchiveError, dtype="float16", shape=(4, 4), offset=64):
    """A file with one blob of 4 x 4 halves at 64, changed, for a constant that expects something."""
    made = handmade.one("relu", {"x": (1,)}, (1,))
    value = made.blob(np.ones((4, 4), np.float16))
    if (dtype, shape, offset) != ("float16", (4, 4), 64):
        value = handmade.file_value(dtype, shape, offset)
    made.add("const", {}, {"c": (dtype, shape)}, {"val": value})
    weights = bytearray(made.weights())
    if change:
        layout, at, number = change
        struct.pack_into(layout, weights, at, number)
    refused(made, folder, match, kind, names=WEIGHTS, weights=bytes(weights))


def test_the_version_of_weight_files(folder):
    blob_refused(folder, "version 3 of weight files, supported is 2", ("<I", 4, 3), UnsupportedGraph)


@pytest.mark.parametrize("offset", [0, 32, 65, 128 + 64, 1 << 20, 1 << 62, -64])
def test_blobs_where_there_are_none(folder, offset):
    blob_refused(folder, "", offset=offset)


@pytest.mark.parametrize(
    ("layout", "at", "number"),
    [
        ("<I", 64, 0xDEADBEEE), ("<I", 64, 0), ("<I", 68, 2), ("<I", 68, 0), ("<I", 68, 99),
        ("<Q", 72, 31), ("<Q", 72, 33), ("<Q", 72, 34), ("<Q", 72, 64), ("<Q", 72, 1 << 63), ("<Q", 72, 0),
        ("<Q", 80, 64), ("<Q", 80, 0), ("<Q", 80, 129), ("<Q", 80, 192), ("<Q", 80, 256), ("<Q", 80, 1 << 63),
        ("<Q", 88, 1), ("<Q", 88, 8),
    ],
)  # fmt: skip
def test_metadata_of_blobs_that_is_wrong(folder, layout, at, number):
    blob_refused(folder, "blob at 64", (layout, at, number))


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [("float32", (4, 4)), ("float32", (4, 2)), ("float16", (4, 5)), ("float16", (15,)), ("int16", (4, 4)),
     ("bool", (32,)), ("string", ()), ("float64", (4,)), ("int64", (4,))],
)  # fmt: skip
def test_blobs_of_another_type_or_size(folder, dtype, shape):
    blob_refused(folder, "blob at 64", dtype=dtype, shape=shape)


@pytest.mark.parametrize("padding", [0, 3, 5, 12])
def test_padding_bits_of_small_integers(folder, padding):
    made = handmade.one("relu", {"x": (1,)}, (1,))
    made.weight("c", np.int8([1, 2, 3]), "int4")
    weights = bytearray(made.weights())
    assert struct.unpack_from("<QQQ", weights, 72) == (2, 128, 4)
    struct.pack_into("<Q", weights, 88, padding)
    refused(made, folder, "2 bytes are not [3] of int4", names=WEIGHTS, weights=bytes(weights))


# -- anything ------------------------------------------------------------------------------------------------


def outcome(path):
    """Read and run whatever can be; nothing but errors of ours may happen."""
    found, message = None, str(path)
    try:
        found = read_package(path)
        running = Interpreter(found)
    except (ArchiveError, UnsupportedGraph) as error:
        message = str(error)
    else:
        feeds = {name: np.ones(tensor.shape, np.float32) for name, tensor in found.inputs.items()}
        outputs, _ = running.run(feeds)
        assert {name: array.shape for name, array in outputs.items()} == {
            name: tensor.shape for name, tensor in found.outputs.items()
        }
    assert message.startswith(str(path))
    assert message.isprintable()


def compressed():
    """A product with each kind of compressed weights, as iOS 18 writes them and, once, as iOS 16."""
    made = Handmade({"x": ("float32", (1, 4, 1, 1))})
    operands = {
        "affine_dequantize": {
            "quantized_data": handmade.immediate(np.ones((4, 4, 1, 1), np.int8), "int8"),
            "scale": handmade.immediate(np.ones(4), "float16"), "zero_point": handmade.immediate(0, "int8"),
            "axis": handmade.immediate(1, "int32"),
        },
        "blockwise_shift_scale": {
            "data": made.blob(np.ones((4, 4, 1, 1), np.int8), "int4"),
            "scale": handmade.immediate(np.ones((2, 1, 1, 1)), "float16"),
        },
        "lut_to_dense": {
            "indices": made.blob(np.ones((4, 4, 1, 1), np.uint8), "uint3"),
            "lut": made.blob(np.ones((1, 1, 1, 1, 8, 1), np.float16)),
        },
    }  # fmt: skip
    packed = {
        "indices": handmade.immediate(np.ones(4, np.uint8), "uint8"),
        "lut": made.blob(np.ones(4, np.float16)), "shape": handmade.immediate([4, 4, 1, 1], "uint32"),
    }  # fmt: skip
    for kind, values in operands.items():
        made.add(f"constexpr_{kind}", values, {kind: ("float16", (4, 4, 1, 1))})
    made.add("constexpr_lut_to_dense", {}, {"packed": ("float16", (4, 4, 1, 1))}, packed)
    last = "x"
    for kind in (*operands, "packed"):
        last = made.add("conv", {"x": last, "weight": kind}, {f"{kind}_y": ("float32", (1, 4, 1, 1))})
    return made.result(last, "float32", (1, 4, 1, 1))


@pytest.mark.parametrize("make", [handmade.everything, compressed])
def test_what_is_damaged_below_is_sound_before(folder, make):
    found = read_package(make().write(folder()))
    feeds = {name: np.ones(tensor.shape, np.float32) for name, tensor in found.inputs.items()}
    outputs, _ = Interpreter(found).run(feeds)
    assert all(array.any() for array in outputs.values())


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from([handmade.everything, compressed]),
    st.sampled_from([MODEL, WEIGHTS, "Manifest.json"]),
    st.data(),
)
def test_flipped_bytes(tmp_path_factory, make, file, draw):
    path = make().write(tmp_path_factory.mktemp("flipped") / "p")
    content = bytearray((path / file).read_bytes())
    for _ in range(draw.draw(st.integers(1, 3))):
        at = draw.draw(st.integers(0, len(content) - 1))
        content[at] = draw.draw(st.integers(0, 255))
    (path / file).write_bytes(content)
    outcome(path)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_operations_that_come_and_go(tmp_path_factory, draw):
    """Left out, doubled, moved, or with a byte changed whose length still fits."""
    made = draw.draw(st.sampled_from([handmade.everything, compressed]))()
    for _ in range(draw.draw(st.integers(1, 3))):
        at = draw.draw(st.integers(0, len(made.operations) - 1))
        change = draw.draw(st.sampled_from(["drop", "double", "move", "byte"]))
        if change == "drop" and len(made.operations) > 1:
            made.operations.pop(at)
        elif change == "double":
            made.operations.insert(at, made.operations[at])
        elif change == "move":
            made.operations.append(made.operations.pop(at))
        else:
            content = bytearray(made.operations[at])
            content[draw.draw(st.integers(0, len(content) - 1))] = draw.draw(st.integers(0, 127))
            made.operations[at] = bytes(content)
    outcome(made.write(tmp_path_factory.mktemp("moved") / "p"))


def test_nothing_hostile_takes_much_memory(folder, monkeypatch):
    """Declared sizes are added up before anything is made; one blob may be named often."""
    made = handmade.one("relu", {"x": (1,)}, (1,))
    value = made.blob(np.zeros(1 << 20, np.uint8), "uint1")
    for i in range(40):
        made.add("const", {}, {f"c{i}": ("uint1", (1 << 20,))}, {"val": value})
    monkeypatch.setattr(program, "_MAX_ELEMENTS", 1 << 23)
    path = made.write(folder())
    tracemalloc.start()
    assert "more than 8388608 elements" in refusal(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16 << 20


def test_nesting_is_not_followed(folder):
    """Types in types in types: only one level means anything."""
    kind = handmade.tensor_type("float32", (1,))
    for _ in range(2000):
        kind = data(5, data(1, kind))
    made = handmade.one("relu", {"x": (1,)}, (1,))
    made.operations.append(handmade.operation("relu", {"x": "x"}, {"c": kind}))
    refused(made, folder, "'c' is not a tensor", UnsupportedGraph)
    made.operations.pop()
    made.function = lambda f=made.function: data(1, handmade.named("deep", kind)) + f()
    path = made.write(folder("state"))
    assert "'deep' is not a tensor" in refusal(path, UnsupportedGraph)


# -- what coremltools writes ---------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[("iOS16", False), ("iOS18", False), ("iOS18", True)], ids=str)
def written(request, tmp_path_factory):
    """A package of the canonical graph, and coremltools' own view of it."""
    target, stateful = request.param
    mil.load()
    graph = oracle.case("dfn3").model.graphs(canonical_recipe())["combined_canonical"]
    model = mil.canonical(graph, target, "FLOAT16", "fp16", stateful)
    model.user_defined_metadata["dfstream.name"] = "dfn3, é"
    return mil.save(model, tmp_path_factory.mktemp("written") / "p.mlpackage"), model.get_spec()


def arrays(features):
    names = {65568: "float32", 65552: "float16"}
    found = {}
    for feature in features:
        kind = feature.type
        array = kind.stateType.arrayType if kind.HasField("stateType") else kind.multiArrayType
        found[feature.name] = Tensor(tuple(array.shape), names[array.dataType])
    return found


def declared(kind):
    names = {1: "bool", 2: "string", 10: "float16", 11: "float32", 23: "int32"}
    tensor = kind.tensorType
    return Tensor(tuple(d.constant.size for d in tensor.dimensions), names[tensor.dataType])


def test_the_protobuf_library_says_the_same(written):
    path, spec = written
    found = read_package(path)
    description = spec.description
    assert found.specification_version == spec.specificationVersion
    assert found.inputs == arrays(description.input)
    assert found.outputs == arrays(description.output)
    assert found.states == arrays(description.state)
    assert found.metadata == dict(description.metadata.userDefined)
    assert found.metadata["dfstream.name"] == "dfn3, é"
    function = spec.mlProgram.functions["main"]
    operations = list(function.block_specializations[function.opset].operations)
    others = [operation for operation in operations if operation.type != "const"]
    assert found.program.opset == function.opset
    assert [operation.kind for operation in found.program.operations] == [o.type for o in others]
    for ours, theirs in zip(found.program.operations, others, strict=True):
        assert ours.outputs == {output.name: declared(output.type) for output in theirs.outputs}
        assert ours.arguments == {
            key: tuple(argument.name for argument in bound.arguments) for key, bound in theirs.inputs.items()
        }
    assert len(found.program.constants) == len(operations) - len(others) > 100


def test_every_constant_is_what_the_libraries_read(written):
    """Weights by the reader of coremltools' own storage library, values in place by protobuf's."""
    path, spec = written
    storage = pytest.importorskip("coremltools.libmilstoragepython")
    reader = storage._BlobStorageReader(str(path / WEIGHTS))
    read = {
        "float16": lambda offset: np.asarray(reader.read_fp16_data(offset), np.uint16).view(np.float16),
        "float32": lambda offset: np.asarray(reader.read_float_data(offset), np.float32),
    }
    function = spec.mlProgram.functions["main"]
    weights = 0
    found = read_package(path).program.constants
    for operation in function.block_specializations[function.opset].operations:
        if operation.type != "const":
            continue
        value, (output,) = operation.attributes["val"], operation.outputs
        ours = found[output.name]
        assert Tensor(np.shape(ours.values), ours.dtype) == declared(output.type)
        if value.HasField("blobFileValue"):
            theirs = read[ours.dtype](value.blobFileValue.offset)
            assert ours.values.tobytes() == theirs.tobytes()
            weights += 1
            continue
        tensor = value.immediateValue.tensor
        content = getattr(tensor, tensor.WhichOneof("value")).values
        if ours.dtype == "string":
            assert ours.values == content[0]
        elif ours.dtype == "float16":
            assert ours.values.tobytes() == content
        else:
            assert ours.values.ravel().tolist() == list(content)
    assert weights > 40


@pytest.mark.parametrize("seed", range(2))
def test_damaged_packages_of_coremltools(written, tmp_path, seed):
    path, _ = written
    rng = np.random.default_rng(seed)
    content = bytearray((path / MODEL).read_bytes())
    for trial in range(12):
        damaged = bytearray(content[: rng.integers(1, len(content)) if trial % 4 == 0 else None])
        damaged[rng.integers(len(damaged))] ^= 1 << rng.integers(8)
        copy = tmp_path / f"{trial}"
        (copy / INNER / "weights").mkdir(parents=True)
        for file in ("Manifest.json", WEIGHTS):
            (copy / file).write_bytes((path / file).read_bytes())
        (copy / MODEL).write_bytes(damaged)
        outcome(copy)
