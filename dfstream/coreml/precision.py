"""Which operations stay in float32 and which weights may lose bits."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from dfstream.coreml.flavour import Flavour

__all__ = ["compress_weights", "compute_precision"]

#: Operations that touch states, by the last part of their names in the canonical graph: a rounding there
#: stays for seconds. DeepFilterNet2 gains 10 to 16 dB on long streams, DeepFilterNet3 up to 15.
_STATEFUL = re.compile(
    r"^(?!n)\w+_out$|(^nh_layer\d+|^nh_next|_(step|moved|h|joined|past\d*|pending|sums|later|now)|_(wide|vector|rows|read))(_t\d+)?$"
)

#: A convolution behind an operation of this name reads features, now and past: the most sensitive layers
#: (40 times the error of any other in DeepFilterNet2).
_FEATURES = re.compile(r"_joined(_t\d+)?$")

#: Smallest matrix worth compressing, elements.
_MATRIX = 2048


def compute_precision(ct: Any, flavour: Flavour) -> Any:
    """Return what decides the arithmetic of each operation, as `coremltools.convert` takes it.

    Parameters
    ----------
    ct : module
        coremltools.
    flavour : Flavour
    """
    if flavour.precision == "fp32":
        return ct.precision.FLOAT32
    if flavour.precision == "ane":
        return ct.precision.FLOAT16
    return ct.transform.FP16ComputePrecision(op_selector=_may_be_half)


def _may_be_half(op: Any) -> bool:
    """Whether an operation of a mixed package computes in half precision."""
    name = op.name
    if _STATEFUL.search(name):
        return False
    return not (op.op_type == "conv" and op.x.op is not None and _FEATURES.search(op.x.op.name))


def compress_weights(package: Any, flavour: Flavour) -> Any:
    """Store the recurrent matrices and grouped layers in 8 bits, where the flavour says so.

    These are 98 % of the bytes. Compressing everything saves one percent more and costs DeepFilterNet2
    15 dB: its first and last convolutions do not bear it.

    Parameters
    ----------
    package : coremltools.models.MLModel
    flavour : Flavour

    Returns
    -------
    coremltools.models.MLModel
    """
    if flavour.precision not in ("int8", "palette"):
        return package
    import coremltools.optimize.coreml as cto

    names = _matrices(package)
    if flavour.precision == "int8":
        rows = cto.OpLinearQuantizerConfig(
            mode="linear_symmetric", dtype="int8", granularity="per_channel", weight_threshold=_MATRIX
        )
        config = cto.OptimizationConfig(op_name_configs=dict.fromkeys(names, rows))
        return cto.linear_quantize_weights(package, config)
    values = cto.OpPalettizerConfig(mode="kmeans", nbits=8, weight_threshold=_MATRIX)
    config = cto.OptimizationConfig(op_name_configs=dict.fromkeys(names, values))
    return cto.palettize_weights(package, config)


def _matrices(package: Any) -> list[str]:
    """Return the names of the weights that act on vectors: of all layers but those on maps."""
    main = package.get_spec().mlProgram.functions["main"]
    operations = main.block_specializations[main.opset].operations
    values = [*main.inputs, *(output for op in operations for output in op.outputs)]
    shapes = {value.name: [dim.constant.size for dim in value.type.tensorType.dimensions] for value in values}
    found = set()
    for op in operations:
        if op.type == "conv" and shapes[op.inputs["x"].arguments[0].name][2:] == [1, 1]:
            weight = op.inputs["weight"].arguments[0].name
            if np.prod(shapes[weight]) >= _MATRIX:
                found.add(weight)
    return sorted(found)
