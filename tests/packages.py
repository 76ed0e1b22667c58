"""Packages of whole models, by hand and converted, and a stand-in for Core ML that runs them."""

import functools
import tempfile
import threading
import types
from pathlib import Path

import numpy as np
import onnx
from dfstream.patches.recipe import read_metadata

import mil
import oracle
from coreml_twins import operands
from dfstream.backends._onestep import CanonicalSession, CanonicalState
from dfstream.coreml.flavour import Flavour
from dfstream.coreml.interpreter import Interpreter
from dfstream.coreml.metadata import PackageFacts
from dfstream.coreml.package import read_package
from dfstream.interface import FEATURES
from dfstream.patching import canonical_recipe
from handmade import Handmade

STEM = "combined_canonical"


def graph_of(model):
    return model.graphs(canonical_recipe())[STEM]


def facts_of(model, flavour):
    """What a package of a model says of itself."""
    data = graph_of(model)
    metadata = read_metadata(onnx.load_from_string(data), STEM)
    inputs, outputs = oracle.ports(data)
    states = {
        name: CanonicalState(tuple(shape), metadata.sections[name], metadata.parts.get(name, ()))
        for name, shape in inputs.items()
        if f"{name}_out" in outputs
    }
    return PackageFacts(model.name, model.sha256, model.config, flavour, states, "nobody's")


# -- by hand -----------------------------------------------------------------------------------------------


def by_hand(model, flavour=None, facts=None):
    """A package of a model, which computes in float32 whatever its flavour: only its interface is that."""
    flavour = flavour or Flavour("fp32")
    facts = facts or facts_of(model, flavour)
    graph = onnx.shape_inference.infer_shapes(onnx.load_from_string(graph_of(model))).graph
    made = _Writing(graph, flavour).run()
    made.metadata = facts.to_properties()
    return made


class _Writing:
    """A frame after the other, an operation for each node."""

    def __init__(self, graph, flavour):
        self.graph, self.flavour = graph, flavour
        self.sizes = {
            v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim)
            for v in (*graph.input, *graph.value_info, *graph.output)
        }
        self.inputs = [v.name for v in graph.input]
        self.outputs = [v.name for v in graph.output]
        self.states = [name for name in self.inputs if f"{name}_out" in self.outputs]
        self.values = {w.name: onnx.numpy_helper.to_array(w) for w in graph.initializer}
        self.public = "float16" if flavour.half_interface else "float32"

    def run(self):
        flavour, frames = self.flavour, self.flavour.block_frames
        kept = self.states if flavour.state == "coreml" else []
        ports = {name: (self.public, self.size(name)) for name in self.inputs if name not in kept}
        inside = {name: ("float16", stored(self.sizes[name])) for name in kept}
        made = self.made = Handmade(ports, opset="CoreML8", version=9, states=inside)
        for name, array in self.values.items():
            if array.dtype == np.float32:
                (made.weight if array.size >= 10 else made.const)(name, array)
        self.text = {kind: made.const(f"to_{kind}", kind) for kind in ("fp16", "fp32")}
        now = {name: self.state(name) for name in self.states}
        frame_of = {name: self.wide(name, self.size(name)) for name in FEATURES}
        found = []
        for t in range(frames):
            now |= {name: self.frame(frame_of[name], name, t) for name in FEATURES}
            found.append(self.walk(now, t))
            now = {name: found[-1][f"{name}_out"] for name in self.states}
        for name in self.outputs:
            if name.removesuffix("_out") not in kept:
                parts = found[-1:] if name.endswith("_out") else found
                self.result(name, [part[name] for part in parts])
        for name in kept:
            rows = self.shaped(now[name], stored(self.sizes[name]), "rows")
            half = self.add("cast", {"x": rows, "dtype": self.text["fp16"]}, f"{name}/half", inside[name])
            made.add("coreml_update_state", {"state": name, "value": half}, {f"{name}/kept": inside[name]})
        return made

    def size(self, name):
        frames = self.flavour.block_frames if name in FEATURES else self.sizes[name][2]
        return (*self.sizes[name][:2], frames, self.sizes[name][3])

    def add(self, kind, bound, name, declared):
        return self.made.add(kind, bound, {name: declared})

    def wide(self, name, shape):
        if self.public == "float32":
            return name
        return self.add("cast", {"x": name, "dtype": self.text["fp32"]}, f"{name}/wide", ("float32", shape))

    def state(self, name):
        if self.flavour.state == "explicit":
            return self.wide(name, self.sizes[name])
        kept = stored(self.sizes[name])
        half = self.add("read_state", {"input": name}, f"{name}/read", ("float16", kept))
        wide = self.add("cast", {"x": half, "dtype": self.text["fp32"]}, f"{name}/wide", ("float32", kept))
        return self.shaped(wide, self.sizes[name], "vector")

    def shaped(self, name, shape, what):
        bound = {"x": name, "shape": self.made.const(f"{name}/{what}/shape", np.int32(shape))}
        return self.add("reshape", bound, f"{name}/{what}", ("float32", shape))

    def frame(self, value, name, t):
        if self.flavour.block_frames == 1:
            return value
        _, channels, _, width = self.sizes[name]
        bounds = {"begin": [0, 0, t, 0], "end": [1, channels, t + 1, width]}
        bound = {key: self.made.const(f"{name}/{t}/{key}", np.int32(at)) for key, at in bounds.items()}
        cut = ("float32", self.sizes[name])
        return self.add("slice_by_index", {"x": value, **bound}, f"{name}/{t}", cut)

    def walk(self, given, t):
        given = dict(given)
        for node in self.graph.node:
            (result,) = node.output
            bound = operands(node, self.values, self.sizes, given)
            kind = {"Slice": "slice_by_index"}.get(node.op_type, node.op_type.lower())
            given[result] = self.add(kind, bound, f"{t}/{result}", ("float32", self.sizes[result]))
        return given

    def result(self, name, parts):
        _, channels, _, width = shape = self.sizes[name]
        if len(parts) > 1:
            shape = (1, channels, len(parts), width)
            axis = self.made.const(f"{name}/axis", np.int32(2))
            joined = {"values": parts, "axis": axis}
            parts = [self.add("concat", joined, f"{name}/joined", ("float32", shape))]
        kind = "fp16" if self.public == "float16" else "fp32"
        self.add("cast", {"x": parts[0], "dtype": self.text[kind]}, name, (self.public, shape))
        self.made.result(name, self.public, shape)


def stored(shape):
    """Shape that Core ML keeps a state in: vectors in rows of 32."""
    return (1, shape[1] // 32, 1, 32) if shape[3] == 1 and shape[1] % 32 == 0 else tuple(shape)


# -- converted ---------------------------------------------------------------------------------------------


@functools.cache
def _scratch():
    return tempfile.TemporaryDirectory()


@functools.cache
def converted(name, flavour):
    """Path of a package of a model of `oracle.case`, made by coremltools once; skips without it."""
    mil.load()
    from dfstream.coreml.conversion import write_package

    path = Path(_scratch().name) / f"{name} {len(list(Path(_scratch().name).iterdir()))}.mlpackage"
    write_package(oracle.case(name).model, flavour, path)
    return path


@functools.cache
def running(name, flavour):
    """The interpreter of a converted package."""
    return Interpreter(read_package(converted(name, flavour)))


def streamed(interpreter, feats, frames, change=None):
    """Run a package of one frame a call, from zeros on; ``change`` is done to explicit states in between."""
    package = interpreter.package
    states = {
        n: np.zeros(t.shape, np.float32) for n, t in package.inputs.items() if f"{n}_out" in package.outputs
    }
    inside, found = None, []
    for t in range(frames):
        frame = {name: array[:, :, t : t + 1] for name, array in feats.items()}
        out, inside = interpreter.run({**frame, **states}, inside)
        found.append({name: out[name] for name in ("lsnr", "mask", "coefs")})
        states = {name: change(out[f"{name}_out"]) if change else out[f"{name}_out"] for name in states}
    return found


# -- one frame a call, by onnxruntime ------------------------------------------------------------------------


def looped(model, frames=1):
    """What `CanonicalSession` drives: the canonical graph so many times, by onnxruntime."""
    data = graph_of(model)

    def advance(feeds):
        states = {name: array for name, array in feeds.items() if name not in FEATURES}
        found = []
        for t in range(frames):
            frame = {name: np.ascontiguousarray(feeds[name][:, :, t : t + 1]) for name in FEATURES}
            found.append(oracle.run(data, {**frame, **states}))
            states = {name: found[-1][f"{name}_out"] for name in states}
        results = {n: np.concatenate([f[n] for f in found], 2) for n in ("lsnr", "mask", "coefs")}
        return {**results, **{f"{name}_out": array for name, array in states.items()}}

    return advance


def onestep(model, frames=1, advance=None):
    facts = facts_of(model, Flavour("fp32", block_frames=frames))
    return CanonicalSession(advance or looped(model, frames), facts.states, facts.features)


# -- Core ML -------------------------------------------------------------------------------------------------


class StandIn:
    """The part of coremltools that runs packages, as strict about arrays as Core ML; computes in numpy.

    ``change`` is done to every result of ``predict``, ``seconds`` is what a call takes on units other than
    the CPU, on a clock of its own.
    """

    def __init__(self, change=None, seconds=0.0):
        self.change, self.seconds, self.clock = change, seconds, 0.0
        self.loaded, self.calls = [], 0
        self.ComputeUnit = types.SimpleNamespace(
            **{name: name for name in ("CPU_ONLY", "CPU_AND_GPU", "CPU_AND_NE", "ALL")}
        )
        self.models = types.SimpleNamespace(MLModel=functools.partial(_MLModel, self))
        self.__version__ = "stand-in"


class _MLModel:
    def __init__(self, world, path, compute_units):
        assert isinstance(path, str)
        self.world, self.units = world, compute_units
        self.running = Interpreter(read_package(Path(path)))
        world.loaded.append((Path(path), compute_units))
        self.busy = threading.Lock()

    def make_state(self):
        return _MLState(self.running)

    def predict(self, data, state=None):
        package, world = self.running.package, self.world
        if (state is None) is bool(package.states):
            raise RuntimeError("Error: a state is needed by models that have one, and by no others\nmore")
        _check(data, package.inputs)
        if state is not None and not self.busy.acquire(blocking=False):
            raise RuntimeError("Error: a state is in use by another prediction")
        try:
            world.calls += 1
            world.clock += world.seconds if self.units != "CPU_ONLY" else 0.0
            out, after = self.running.run(data, None if state is None else state.arrays)
        finally:
            if state is not None:
                self.busy.release()
        if state is not None:
            state.arrays = after
        out = {name: array.astype(package.outputs[name].dtype) for name, array in out.items()}
        return {name: world.change(name, array) for name, array in out.items()} if world.change else out


class _MLState:
    def __init__(self, running):
        self.tensors, self.arrays = running.package.states, running.initial_states()

    def read_state(self, name):
        return self.arrays[name].astype(self.tensors[name].dtype)

    def write_state(self, name, value):
        _check({name: value}, {name: self.tensors[name]})
        self.arrays[name] = value.astype(np.float32)


def _check(arrays, tensors):
    if arrays.keys() != tensors.keys():
        raise ValueError(f"given {sorted(arrays)}, the model has {sorted(tensors)}")
    for name, tensor in tensors.items():
        array = arrays[name]
        if array.dtype != tensor.dtype or array.shape != tensor.shape or not array.flags.c_contiguous:
            raise ValueError(f"{name}: {array.dtype} {array.shape}, the model has {tensor}")
