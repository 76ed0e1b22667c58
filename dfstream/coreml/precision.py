"""Which operations stay in float32 and which weights may lose bits."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from dfstream.coreml.emission import constant_name, operation_name, tensor_shapes
from dfstream.interface import FEATURES

if TYPE_CHECKING:
    import onnx

    from dfstream.coreml.flavour import Flavour

__all__ = ["compress_weights", "compute_precision"]

#: Operations that touch states, by the last part of their names in the canonical graph: a rounding there
#: stays for seconds. DeepFilterNet2 gains 10 to 16 dB on long streams, DeepFilterNet3 up to 15.
_STATEFUL = re.compile(
    r"^(?!n)\w+_out$|"
    r"(^nh_layer\d+|^nh_next|_(step|moved|h|joined|past\d*|pending|sums|later|now)|_(wide|vector|rows|read))$"
)

#: What a block adds to the names of a frame's operations.
_FRAME = re.compile(r"_t\d+$")

#: A matrix is worth compressing if it has more elements; coremltools takes it the same way.
_MATRIX = 2048

#: What coremltools adds to the name of a constant that it stores in half precision.
_HALVED = "_to_fp16"


def compute_precision(ct: Any, graph: onnx.GraphProto, flavour: Flavour) -> Any:
    """Return what decides the arithmetic of each operation, as `coremltools.convert` takes it.

    Parameters
    ----------
    ct : module
        coremltools.
    graph : GraphProto
        The canonical graph.
    flavour : Flavour
    """
    if flavour.precision == "fp32":
        return ct.precision.FLOAT32
    if flavour.precision == "ane":
        return ct.precision.FLOAT16
    kept = feature_maps(graph)

    def may_be_half(op: Any) -> bool:
        name = _FRAME.sub("", op.name)
        return not (name in kept or _STATEFUL.search(name))

    return ct.transform.FP16ComputePrecision(op_selector=may_be_half)


def feature_maps(graph: onnx.GraphProto) -> set[str]:
    """Return the names of the operations on maps that only features go into, now and past.

    They see the whole range of the features, and all else depends on them: half precision there costs
    DeepFilterNet3 four decibels and DeepFilterNet2 ten, for a hundredth of the weights.
    """
    widths = _widths(graph)
    behind = {*FEATURES, *(name for name in tensor_shapes(graph) if widths[name] > 1)}
    found = set()
    for node in graph.node:  # in the order of the signal
        given = [name for name in node.input if name in widths]
        if all(name in behind for name in given) and all(widths[name] > 1 for name in given):
            behind.update(node.output)
            found.add(operation_name(node))
    return found


def _widths(graph: onnx.GraphProto) -> dict[str, int]:
    """Return the size of the last axis of every tensor that is no constant; 1 for vectors."""
    import onnx

    inferred = onnx.shape_inference.infer_shapes(onnx.helper.make_model(graph)).graph
    values = [*inferred.input, *inferred.value_info, *inferred.output]
    return {value.name: value.type.tensor_type.shape.dim[-1].dim_value for value in values}


def compress_weights(package: Any, graph: onnx.GraphProto, flavour: Flavour) -> Any:
    """Store the matrices of both decoders in 8 bits, where the flavour says so.

    These are three quarters of the bytes. The encoder, which both decoders hear, would cost DeepFilterNet3
    another 5 dB, convolutions on maps DeepFilterNet2 another 15.

    Parameters
    ----------
    package : coremltools.models.MLModel
    graph : GraphProto
        The canonical graph.
    flavour : Flavour

    Returns
    -------
    coremltools.models.MLModel
    """
    if flavour.precision not in ("int8", "palette"):
        return package
    import coremltools.optimize.coreml as cto

    if flavour.precision == "int8":
        chosen = cto.OpLinearQuantizerConfig(
            mode="linear_symmetric", dtype="int8", granularity="per_channel", weight_threshold=_MATRIX
        )
        compress = cto.linear_quantize_weights
    else:
        chosen = cto.OpPalettizerConfig(mode="kmeans", nbits=8, weight_threshold=_MATRIX)
        compress = cto.palettize_weights
    # in half precision, a constant of another name takes the place of each
    names = [f"{constant_name(name)}{_HALVED}" for name in decoder_matrices(graph)]
    return compress(package, cto.OptimizationConfig(op_name_configs=dict.fromkeys(names, chosen)))


def decoder_matrices(graph: onnx.GraphProto) -> list[str]:
    """Return the names of the large weights that act on vectors, and that the LSNR does not depend on."""
    widths = _widths(graph)
    sizes = {tensor.name: int(np.prod(tensor.dims)) for tensor in graph.initializer}
    encoder, found = {"lsnr"}, []
    for node in reversed(graph.node):
        if encoder.intersection(node.output):
            encoder.update(node.input)
        elif node.op_type == "Conv" and widths[node.input[0]] == 1 and sizes[node.input[1]] > _MATRIX:
            found.append(node.input[1])
    return found
