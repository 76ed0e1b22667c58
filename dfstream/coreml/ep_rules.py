"""Which nodes ONNX Runtime's Core ML execution provider takes: its rules for the operators of the family.

They are those of onnxruntime 1.31, read from its sources (``core/providers/coreml/builders``) and compared
with the messages in its macOS build. Only operators that `dfstream.parsing` lets in are known here.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnx

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    Shape = tuple[int | None, ...]

__all__ = ["FORMATS", "TRIVIAL", "ModelFormat", "Site", "Tensors", "refusal"]

#: What the provider can make of a graph: its option ``ModelFormat``.
ModelFormat = Literal["MLProgram", "NeuralNetwork"]

FORMATS: tuple[ModelFormat, ...] = ("MLProgram", "NeuralNetwork")

#: What makes no partition worth handing over by itself.
TRIVIAL = frozenset({"Cast", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})

_T = onnx.TensorProto
_HIGHEST_RANK = 5
_LARGEST_SIZE = 16_384

#: Operators that are asked nothing else.
_PLAIN = (
    "Add", "Div", "Elu", "HardSigmoid", "Identity", "LeakyRelu", "Mul", "Relu", "Sigmoid", "Sub", "Tanh",
    "Transpose",
)  # fmt: skip

#: Operators whose first input may also hold int64.
_INDEXABLE = ("Gather", "Slice")


@dataclasses.dataclass(frozen=True)
class Tensors:
    """What is known of the tensors of a graph, by name.

    Attributes
    ----------
    shapes : mapping of str to tuple
        None for a size that is not known; a tensor of unknown rank is left out.
    types : mapping of str to int
        Element types, as ``TensorProto`` has them.
    constants : mapping of str to ndarray
    computed : frozenset of str
        Tensors that a node computes.
    """

    shapes: Mapping[str, Shape]
    types: Mapping[str, int]
    constants: Mapping[str, NDArray[Any]]
    computed: frozenset[str]

    @classmethod
    def of(cls, graph: onnx.GraphProto) -> Tensors:
        """Collect what a graph declares; its shapes are to be inferred before."""
        constants = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
        shapes: dict[str, Shape] = {name: array.shape for name, array in constants.items()}
        types = {t.name: t.data_type for t in graph.initializer}
        for value in (*graph.input, *graph.value_info, *graph.output):
            tensor = value.type.tensor_type
            types[value.name] = tensor.elem_type
            if tensor.HasField("shape"):
                dims = tensor.shape.dim
                shapes[value.name] = tuple(d.dim_value if d.HasField("dim_value") else None for d in dims)
        computed = frozenset(name for node in graph.node for name in node.output)
        return cls(shapes, types, constants, computed)


class Site:
    """One node, as its rule sees it.

    Parameters
    ----------
    node : NodeProto
    tensors : Tensors
    model_format : "MLProgram" or "NeuralNetwork"
    """

    def __init__(self, node: onnx.NodeProto, tensors: Tensors, model_format: ModelFormat) -> None:
        self.op, self.inputs, self.outputs = node.op_type, list(node.input), list(node.output)
        self.standard = node.domain in ("", "ai.onnx")
        self.program = model_format == "MLProgram"
        self.attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        self.tensors = tensors

    def given(self, index: int) -> bool:
        """Whether an input is there at all."""
        return index < len(self.inputs) and bool(self.inputs[index])

    def fixed(self, *indices: int) -> bool:
        """Whether inputs, as far as they are given, are constants."""
        return all(self.inputs[i] in self.tensors.constants for i in indices if self.given(i))

    def value(self, index: int) -> NDArray[Any]:
        """Return a constant input."""
        return self.tensors.constants[self.inputs[index]]

    def shape(self, index: int = 0) -> Shape:
        """Return the shape of an input."""
        return self.tensors.shapes[self.inputs[index]]

    def type(self, index: int = 0) -> int:
        """Return the element type of an input."""
        return self.tensors.types.get(self.inputs[index], _T.UNDEFINED)

    @functools.cached_property
    def result(self) -> Shape | None:
        """Shape of the first output, None where it is not known."""
        return self.tensors.shapes.get(self.outputs[0])


def refusal(site: Site) -> str | None:
    """Say why the provider leaves a node to the CPU, None for one that it takes."""
    rule = _RULES.get(site.op) if site.standard else None
    if rule is None:
        return "no builder"
    return _inputs(site) or rule(site)


def _inputs(site: Site) -> str | None:
    """Look at what every operator is asked."""
    for index, name in enumerate(site.inputs):
        if not name:
            continue
        if name not in site.tensors.shapes:
            return "an input of unknown shape"
        if 0 in site.shape(index):
            return "an empty input"
        if len(site.shape(index)) > _HIGHEST_RANK:
            return f"an input of rank over {_HIGHEST_RANK}"
    types = {_T.FLOAT, *([_T.FLOAT16] if site.program else [])}
    types |= {_T.INT64} if site.op in _INDEXABLE else set()
    if site.op != "Cast" and site.type() not in types:
        return f"elements of type {_T.DataType.Name(site.type())}"
    return None


# -- operators -------------------------------------------------------------------------------------


def _plain(site: Site) -> str | None:  # noqa: ARG001
    return None


def _batch_norm(site: Site) -> str | None:
    if len(site.shape()) != 4:
        return "input not of rank 4"
    if len(site.outputs) != 1:
        return "more than one output"
    return None if site.fixed(1, 2, 3, 4) else "statistics not constant"


def _cast(site: Site) -> str | None:
    if site.inputs[0] not in site.tensors.computed:
        return "nothing computes its input"
    return None if site.program else "only behind ArgMax in a NeuralNetwork"


def _clip(site: Site) -> str | None:
    return None if site.fixed(1, 2) else "bounds not constant"


def _concat(site: Site) -> str | None:
    rank = len(site.shape())
    if len(site.inputs) < 2:
        return "only one input"
    if not site.program and rank != 4:
        return "input not of rank 4"
    if not site.program and site.attributes["axis"] % rank != 1:
        return "not along the channels"
    return None


def _kernel(site: Site) -> str | None:
    declared = site.attributes.get("kernel_shape")
    return "kernel_shape not the weight's" if declared and (*declared,) != site.shape(1)[2:] else None


def _conv(site: Site) -> str | None:
    if not site.program and not site.fixed(1):
        return "weight not constant"
    if len(site.shape(1)) not in (3, 4):
        return "not in one or two dimensions"
    if not site.fixed(2):
        return "bias not constant"
    sizes = (*site.shape(), *site.shape(1), *(site.result or (None,)))
    if None in sizes:
        return "a size is not known"
    if any(size > _LARGEST_SIZE for size in sizes if size):
        return f"a size above {_LARGEST_SIZE}"
    return _kernel(site)


def _conv_transpose(site: Site) -> str | None:
    if not site.program:
        return "no builder for NeuralNetwork"
    if not site.fixed(1, 2):
        return "weight or bias not constant"
    automatic = site.attributes.get("auto_pad", b"NOTSET")
    if automatic in (b"SAME_UPPER", b"SAME_LOWER"):
        return "auto_pad"
    if automatic == b"NOTSET" and len({*site.attributes.get("pads", ())}) > 1:
        return "pads that differ"
    if any(site.attributes.get("output_padding", ())):
        return "output_padding"
    return "output_shape" if "output_shape" in site.attributes else _kernel(site)


def _gather(site: Site) -> str | None:
    data, indices = len(site.shape()), len(site.shape(1))
    if site.type(1) not in (_T.INT32, _T.INT64):
        return "indices not of integers"
    if not indices and (data > 4 or None in site.shape()):
        return "a single index into rank over 4 or unknown sizes"
    return f"result of rank over {_HIGHEST_RANK}" if data + indices - 1 > _HIGHEST_RANK else None


def _gemm(site: Site) -> str | None:
    a = site.attributes
    if not site.fixed(1):
        return "B not constant"
    if a.get("transA", 0) or a.get("alpha", 1.0) != 1.0 or a.get("beta", 1.0) != 1.0:
        return "transA, alpha or beta"
    if not site.fixed(2):
        return "C not constant"
    N = site.shape(1)[0 if a.get("transB", 0) else 1]
    if site.given(2) and site.shape(2) not in ((), (1,), (N,), (1, N)):
        return "C of another shape than one row"
    return None


def _matmul(site: Site) -> str | None:
    ranks = len(site.shape()), len(site.shape(1))
    if site.program:
        return "an operand of one dimension" if 1 in ranks else None
    if not site.fixed(1):
        return "B not constant"
    return None if ranks == (2, 2) else "not a product of matrices"


def _pad(site: Site) -> str | None:
    mode = site.attributes.get("mode", b"constant")
    if mode not in ((b"constant", b"reflect") if site.program else (b"constant",)):
        return f"mode {mode.decode()}"
    if not site.program and not site.given(2):
        return "no constant_value"
    if not site.fixed(1, 2, 3):
        return "amounts not constant"
    rank = len(site.shape())
    axes = site.value(3) % rank if site.given(3) else np.arange(rank)
    amounts = site.value(1).reshape(2, -1)
    if (amounts < 0).any():
        return "negative amounts"
    if not (site.program and mode == b"constant") and amounts[:, axes < rank - 2].any():
        return "not in the last two dimensions"
    return None


def _prelu(site: Site) -> str | None:
    if len(site.shape()) not in (3, 4):
        return "input not of rank 3 or 4"
    if not site.fixed(1):
        return "slope not constant"
    slope = site.value(1)
    if slope.size == 1:
        return "one slope for one channel" if site.shape()[-3] == 1 else None
    return None if slope.ndim == 3 and slope.shape[1:] == (1, 1) else "slopes not one a channel"


def _reshape(site: Site) -> str | None:
    if not site.fixed(1):
        return "shape not constant"
    if not site.shape() or None in site.shape():
        return "input is no tensor of known sizes"
    if len(site.value(1)) > _HIGHEST_RANK:
        return f"result of rank over {_HIGHEST_RANK}"
    return "allowzero" if site.attributes.get("allowzero", 0) and 0 in site.value(1) else None


def _shape(site: Site) -> str | None:
    partial = site.attributes.get("start", 0) or "end" in site.attributes
    return "start or end" if partial and not site.program else None


def _slice(site: Site) -> str | None:
    if None in site.shape():
        return "a size is not known"
    if not site.fixed(1, 2, 3, 4):
        return "bounds not constant"
    return "an empty range" if site.result is not None and 0 in site.result else None


def _split(site: Site) -> str | None:
    if not site.fixed(1):
        return "sizes not constant"
    return "fewer than two parts" if len(site.outputs) < 2 else None


def _squeeze(site: Site) -> str | None:
    return None if site.fixed(1) else "axes not constant"


def _unsqueeze(site: Site) -> str | None:
    if not site.program:
        return "no builder for NeuralNetwork"
    if not site.fixed(1):
        return "axes not constant"
    added = site.value(1) if site.given(1) else site.attributes.get("axes", ())
    rank = len(site.shape()) + len(added)
    return f"result of rank over {_HIGHEST_RANK}" if rank > _HIGHEST_RANK else None


_RULES: dict[str, Callable[[Site], str | None]] = {
    **dict.fromkeys(_PLAIN, _plain), "BatchNormalization": _batch_norm, "Cast": _cast, "Clip": _clip,
    "Concat": _concat, "Conv": _conv, "ConvTranspose": _conv_transpose, "Gather": _gather, "Gemm": _gemm,
    "MatMul": _matmul, "PRelu": _prelu, "Pad": _pad, "Reshape": _reshape, "Shape": _shape, "Slice": _slice,
    "Split": _split, "Squeeze": _squeeze, "Unsqueeze": _unsqueeze,
}  # fmt: skip
