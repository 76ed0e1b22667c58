"""Writes Core ML packages byte by byte: no coremltools, no protobuf library, anything may be wrong in them.

Field numbers are those of ``Model.proto``, ``FeatureTypes.proto`` and ``MIL.proto``; a weight file is
written as ``StorageFormat.hpp`` has it.
"""

import json
import struct

import numpy as np

#: ``MILSpec.DataType`` and, for what weight files hold, ``BlobDataType``.
DTYPES = {
    "bool": (1, None), "string": (2, None), "float16": (10, 1), "float32": (11, 2), "float64": (12, None),
    "bfloat16": (13, 5), "int8": (21, 4), "int16": (22, 6), "int32": (23, 14), "int64": (24, None),
    "int4": (25, 8), "uint8": (31, 3), "uint16": (32, 7), "uint32": (33, 15), "uint4": (35, 11),
    "uint2": (36, 10), "uint1": (37, 9), "uint6": (38, 13), "uint3": (39, 12),
}  # fmt: skip
ARRAYS = {"float32": 65568, "float16": 65552, "float64": 65600, "int32": 131104}

#: Field of ``TensorValue`` that each type is written in.
FIELDS = {"float32": 1, "int32": 2, "int16": 2, "uint16": 2, "bool": 3, "string": 4, "int64": 5, "float64": 6}
BYTES = 7


# -- the wire ------------------------------------------------------------------------------------------


def varint(value):
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def number(field, value):
    return varint(field << 3) + varint(value)


def data(field, content):
    content = content.encode() if isinstance(content, str) else content
    return varint(field << 3 | 2) + varint(len(content)) + content


def entry(field, key, value):
    """One entry of a map."""
    return data(field, data(1, key) + data(2, value))


def packed(values):
    return b"".join(varint(int(value)) for value in values)


def bits(values, width):
    """Pack small integers from the lowest bit on, plainly."""
    text = "".join(format(int(value) & (1 << width) - 1, f"0{width}b")[::-1] for value in values)
    text += "0" * (-len(text) % 8)
    return bytes(int(text[i : i + 8][::-1], 2) for i in range(0, len(text), 8))


# -- types and values ----------------------------------------------------------------------------------


def tensor_type(dtype, shape):
    sizes = b"".join(data(3, data(1, number(1, size))) for size in shape)
    return data(1, number(1, DTYPES[dtype][0]) + number(2, len(shape)) + sizes)


def named(name, kind):
    return data(1, name) + data(2, kind)


def width_of(dtype):
    """Bits of a value of less than a byte, None of others."""
    return int(dtype[-1]) if dtype in ("int4", "uint4", "uint2", "uint1", "uint6", "uint3") else None


def stored(values, dtype):
    if width := width_of(dtype):
        return bits(np.ravel(values), width)
    return np.asarray(values, np.dtype(dtype).newbyteorder("<")).tobytes()


def immediate(values, dtype, shape=None):
    """``Value`` with its content in place."""
    shape = np.shape(values) if shape is None else shape
    field = FIELDS.get(dtype, BYTES)
    if dtype == "string":
        content = data(1, values)
    elif dtype in ("float32", "float64") or field == BYTES:
        content = data(1, stored(values, dtype))
    else:
        content = data(1, packed(np.ravel(values)))
    return data(2, tensor_type(dtype, shape)) + data(3, data(1, data(field, content)))


def constant(values):
    """``Value`` of integers or text."""
    dtype = _dtype(values)
    return immediate(str(values) if dtype == "string" else values, dtype, np.shape(values))


def operation(kind, inputs, outputs, attributes=None):
    """``inputs`` are names, values (bytes) or lists of these; ``outputs`` maps names to types (bytes)."""
    content = data(1, kind)
    for key, bound in inputs.items():
        bindings = b"".join(
            data(1, data(1, item) if isinstance(item, str) else data(2, item))
            for item in (bound if isinstance(bound, (list, tuple)) else [bound])
        )
        content += entry(2, key, bindings)
    content += b"".join(data(3, named(name, declared)) for name, declared in outputs.items())
    name = immediate(next(iter(outputs), kind), "string", ())
    return content + b"".join(
        entry(5, key, value) for key, value in {"name": name, **(attributes or {})}.items()
    )


# -- a package -----------------------------------------------------------------------------------------


class Handmade:
    """A package in the making; what belongs to a correct one can be replaced before it is written.

    Inputs, outputs and states map names to (dtype, shape). ``weights`` is the file of weights so far.
    """

    def __init__(self, inputs, opset="CoreML7", version=8, states=None):
        self.opset, self.version = opset, version
        self.inputs, self.outputs, self.states = dict(inputs), {}, dict(states or {})
        self.operations, self.blobs = [], []
        self.metadata = {}
        self.manifest = {
            "fileFormatVersion": "1.0.0",
            "itemInfoEntries": {"1": {"name": "model.mlmodel", "path": "com.apple.CoreML/model.mlmodel"}},
            "rootModelIdentifier": "1",
        }

    def const(self, name, values, dtype=None):
        """A constant that is written in place."""
        dtype = dtype or _dtype(values)
        shape = () if dtype == "string" else np.shape(values)
        self.add("const", {}, {name: (dtype, shape)}, {"val": immediate(values, dtype, shape)})
        return name

    def weight(self, name, values, dtype=None):
        """A constant that lies in the weight file."""
        self.add(
            "const", {}, {name: (dtype or values.dtype.name, values.shape)}, {"val": self.blob(values, dtype)}
        )
        return name

    def blob(self, values, dtype=None):
        """``Value`` of an array in the weight file."""
        dtype = dtype or values.dtype.name
        offset = len(self.weights())
        self.blobs.append((DTYPES[dtype][1], stored(values, dtype), values.size * (width_of(dtype) or 0)))
        return file_value(dtype, values.shape, offset)

    def add(self, kind, inputs, outputs, attributes=None):
        """Append an operation; ``outputs`` maps names to (dtype, shape)."""
        types = {name: tensor_type(*declared) for name, declared in outputs.items()}
        self.operations.append(operation(kind, inputs, types, attributes))
        return next(iter(outputs), None)

    def result(self, name, dtype, shape):
        self.outputs[name] = (dtype, shape)
        return self

    def weights(self):
        out = bytearray(struct.pack("<II", len(self.blobs), 2).ljust(64, b"\0"))
        for code, content, used in self.blobs:
            start = len(out) + 64
            padding = 8 * len(content) - used if used else 0
            out += struct.pack("<IIQQQ", 0xDEADBEEF, code, len(content), start, padding).ljust(64, b"\0")
            out += content.ljust(-(-len(content) // 64) * 64, b"\0")
        return bytes(out)

    def function(self):
        inputs = b"".join(data(1, named(name, tensor_type(*kind))) for name, kind in self.inputs.items())
        inputs += b"".join(
            data(1, named(name, data(5, data(1, tensor_type(*kind))))) for name, kind in self.states.items()
        )
        block = b"".join(data(2, name) for name in self.outputs)
        block += b"".join(data(3, made) for made in self.operations)
        return inputs + data(2, self.opset) + entry(3, self.opset, block)

    def program(self):
        return number(1, 1) + entry(2, "main", self.function())

    def description(self):
        content = b"".join(data(1, feature(name, *kind)) for name, kind in self.inputs.items())
        content += b"".join(data(10, feature(name, *kind)) for name, kind in self.outputs.items())
        content += b"".join(data(13, feature(name, *kind, state=True)) for name, kind in self.states.items())
        return content + data(
            100, b"".join(data(100, data(1, k) + data(2, v)) for k, v in self.metadata.items())
        )

    def model(self):
        return number(1, self.version) + data(2, self.description()) + data(502, self.program())

    def write(self, folder, **files):
        """Write the package; ``model``, ``weights``, ``manifest`` may be given as bytes, None is no file."""
        inner = folder / "Data" / "com.apple.CoreML"
        (inner / "weights").mkdir(parents=True)
        contents = {
            "manifest": json.dumps(self.manifest).encode(),
            "model": self.model(),
            "weights": self.weights() if self.blobs else None,
            **files,
        }
        paths = (folder / "Manifest.json", inner / "model.mlmodel", inner / "weights" / "weight.bin")
        for path, name in zip(paths, ("manifest", "model", "weights"), strict=True):
            if contents[name] is not None:
                path.write_bytes(contents[name])
        return folder


def _dtype(values):
    values = np.asarray(values)
    return {"i": "int32", "b": "bool", "U": "string"}.get(values.dtype.kind, values.dtype.name)


def file_value(dtype, shape, offset, name="@model_path/weights/weight.bin"):
    return data(2, tensor_type(dtype, shape)) + data(5, data(1, name) + number(2, offset))


def feature(name, dtype, shape, *, state=False):
    """``FeatureDescription`` of an array."""
    array = data(1, packed(shape)) + number(2, ARRAYS[dtype])
    return data(1, name) + data(3, data(8, data(1, array)) if state else data(5, array))


def one(kind, inputs, shape, dtype="float32", out="float32", /, **parameters):
    """A package of one operation and its ``result``.

    ``inputs`` maps parameters to shapes; a list of them is a parameter of several tensors. All other
    parameters are constants.
    """
    many = {k: v for k, v in inputs.items() if isinstance(v, list)}
    ports = {k: (dtype, v) for k, v in inputs.items() if k not in many}
    for key, shapes in many.items():
        ports |= {f"{key}{i}": (dtype, s) for i, s in enumerate(shapes)}
    made = Handmade(ports)
    bound = {k: [f"{k}{i}" for i in range(len(many[k]))] if k in many else k for k in inputs}
    for key, value in parameters.items():
        large = isinstance(value, np.ndarray) and value.size >= 10
        bound[key] = (made.weight if large else made.const)(f"c_{key}", value)
    made.add(kind, bound, {"result": (out, shape)})
    return made.result("result", out, shape)


def everything():
    """A small package of all that real ones have: a convolution, states of both kinds, a weight file."""
    made = Handmade(
        {"x": ("float32", (1, 2, 1, 8)), "s": ("float32", (1, 2, 1, 8))},
        states={"m": ("float16", (1, 4, 1, 8))},
    )
    rng = np.random.default_rng(3)
    weight = made.weight("w", rng.standard_normal((4, 4, 1, 3)).astype(np.float16))
    bias = made.weight("b", rng.standard_normal(16).astype(np.float16)[:4])
    both = made.add(
        "concat",
        {
            "values": ["s", "x"],
            "axis": made.const("axis", np.int32(1)),
            "interleave": made.const("no", False),
        },
        {"both": ("float32", (1, 4, 1, 8))},
    )
    half = made.add(
        "cast", {"x": both, "dtype": made.const("fp16", "fp16")}, {"half": ("float16", (1, 4, 1, 8))}
    )
    conv = made.add(
        "conv",
        {
            "x": half, "weight": weight, "bias": bias, "pad_type": made.const("pad_type", "custom"),
            "pad": made.const("pad", np.int32([0, 0, 1, 1])), "groups": made.const("groups", np.int32(1)),
            "strides": made.const("strides", np.int32([1, 1])),
        },
        {"conv": ("float16", (1, 4, 1, 8))},
    )  # fmt: skip
    memory = made.add("read_state", {"input": "m"}, {"memory": ("float16", (1, 4, 1, 8))})
    total = made.add("add", {"x": conv, "y": memory}, {"sum": ("float16", (1, 4, 1, 8))})
    made.add("write_state", {"input": "m", "data": total}, {})
    result = made.add("sigmoid", {"x": total}, {"sigmoid": ("float16", (1, 4, 1, 8))})
    made.add("cast", {"x": result, "dtype": made.const("fp32", "fp32")}, {"y": ("float32", (1, 4, 1, 8))})
    made.add(
        "slice_by_index",
        {
            "x": both, "begin": made.const("begin", np.int32([0, 2, 0, 0])),
            "end": made.const("end", np.int32([1, 4, 1, 8])),
        },
        {"s_out": ("float32", (1, 2, 1, 8))},
    )  # fmt: skip
    made.metadata = {"dfstream.format": "1", "licence": "none – of yours"}
    made.result("y", "float32", (1, 4, 1, 8))
    return made.result("s_out", "float32", (1, 2, 1, 8))
