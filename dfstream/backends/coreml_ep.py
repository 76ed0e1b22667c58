"""Core ML through ONNX Runtime: its execution provider on the canonical graph, on macOS.

That graph is the one it takes in one piece; `dfstream.coreml.partitions` shows what becomes of others.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import numpy as np

from dfstream.arguments import check_choice
from dfstream.backends._onestep import CanonicalSession, CanonicalState, check_incremental
from dfstream.backends._onnxruntime import import_onnxruntime
from dfstream.backends.base import Backend, check_options
from dfstream.errors import BackendError, BackendUnavailable, UnsupportedGraph, UsageError, first_line

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dfstream.backends.base import Arrays, Session
    from dfstream.coreml.agreement import Mismatch
    from dfstream.model import Model
    from dfstream.patches.recipe import Recipe

Units = Literal["cpu", "cpu+gpu", "cpu+ane", "all"]
Precision = Literal["float32", "fp16"]
ModelFormat = Literal["MLProgram", "NeuralNetwork"]

_PROVIDER = "CoreMLExecutionProvider"

#: The provider's names of the units.
_UNITS: Mapping[str, str] = {
    "cpu": "CPUOnly", "cpu+gpu": "CPUAndGPU", "cpu+ane": "CPUAndNeuralEngine", "all": "ALL",
}  # fmt: skip

#: Options that came later than others and that results do not depend on.
_DISPENSABLE = ("ModelCacheDirectory",)

#: Where the provider looks in a graph for the name of its compiled form: letters and digits, fewer than 64.
_CACHE_KEY = "COREML_CACHE_KEY"
_KEY_LENGTH = 40


@dataclasses.dataclass(frozen=True)
class CoremlEp(Backend):
    """ONNX Runtime's Core ML execution provider.

    Attributes
    ----------
    units : "cpu", "cpu+gpu", "cpu+ane" or "all"
        Where Core ML may compute; whether it does is its own choice. A hop is so short that handing it to
        the Neural Engine costs about what the CPU needs for all of it.
    precision : "float32" or "fp16"
        Of everything, states and arithmetic included: the Neural Engine executes no typed float32. On the
        CPU alone float32 is right.
    format : "MLProgram" or "NeuralNetwork"
        What the provider makes of the graph. The older NeuralNetwork takes float32 only, and computes it as
        it likes where more than the CPU is allowed.
    cache : str or None
        Folder for compiled models; by default one in the user's cache. Without a folder to write to, each
        start compiles.
    mismatch : "refuse" or "warn"
        What to do when the first frames are not what ``ort-cpu`` computes.
    threads : int
        Core ML decides by itself; this is for what it might leave to ONNX Runtime.
    """

    name = "coreml-ep"
    summary = "Core ML through ONNX Runtime"
    precisions = get_args(Precision)
    modes: ClassVar[tuple[str, ...]] = ("incremental",)
    runs_on = "macOS"

    units: Units = "cpu"
    precision: Precision = "float32"
    format: ModelFormat = "MLProgram"
    cache: str | None = None
    mismatch: Mismatch = "refuse"
    threads: int = 1

    __hash__ = Backend.__hash__

    def __post_init__(self) -> None:
        check_options(self, self.threads, self.precision)
        check_choice("units", self.units, get_args(Units))
        check_choice("format", self.format, get_args(ModelFormat))
        check_choice("mismatch", self.mismatch, ("refuse", "warn"))
        if not isinstance(self.cache, str | None):
            raise UsageError(f"cache = {self.cache!r}, expected the name of a folder")
        if self.precision == "fp16" and self.format == "NeuralNetwork":
            raise UsageError("coreml-ep: a NeuralNetwork takes no fp16", hint="use format=MLProgram")
        _check_provider(_runtime())

    def open(self, model: Model, recipe: Recipe) -> dict[str, Session]:
        """Load the canonical graph and compare its first frames with ``ort-cpu``; see `Backend.open`.

        Raises
        ------
        UnsupportedGraph
            For any mode but ``incremental``, or a model without a canonical graph.
        BackendError
            Core ML computes something else.
        """
        from dfstream.coreml.agreement import check_agreement
        from dfstream.patching import canonical_recipe

        check_incremental(self.name, recipe.name)
        ((stem, graph),) = model.graphs(canonical_recipe()).items()
        session = self.load(graph, stem)
        exact = self.precision == "float32" and (self.format == "MLProgram" or self.units == "cpu")
        check_agreement(session, model, "fp32" if exact else "ane", self.mismatch, self.name)
        return {recipe.stems[0]: session}

    def load(self, graph: bytes, name: str) -> Session:
        """Load a canonical graph; see `Backend.load`."""
        from dfstream.patches.half import compute_half
        from dfstream.patches.recipe import parse_metadata

        ort = _runtime()
        half = self.precision == "fp16"
        keyed = _with_key(compute_half(graph) if half else graph, f"{self.format} {ort.__version__}")
        runtime = self._session(ort, keyed, name)
        metadata = parse_metadata(runtime.get_modelmeta().custom_metadata_map, name)
        if metadata is None or metadata.recipe != "canonical":
            raise UnsupportedGraph(f"the backend {self.name} runs the canonical graph, {name} is another")
        shapes = {port.name: tuple(port.shape) for port in runtime.get_inputs()}
        states = {
            state: CanonicalState(shapes.pop(state), section, metadata.parts.get(state, ()))
            for state, section in metadata.sections.items()
        }
        network = _Network(runtime, np.dtype(np.float16 if half else np.float32), name)
        return CanonicalSession(network.advance, states, shapes)

    def _session(self, ort: Any, graph: bytes, name: str) -> Any:
        """Make a session, without options that an older runtime does not know and that can be spared."""
        options = self._options()
        while True:
            settings = ort.SessionOptions()
            settings.intra_op_num_threads = self.threads
            settings.inter_op_num_threads = 1
            settings.log_severity_level = 4  # errors come as exceptions
            try:
                return ort.InferenceSession(
                    graph, settings, providers=[(_PROVIDER, options), "CPUExecutionProvider"],
                    enable_fallback=0,  # else it goes on without Core ML, and says so on standard output
                )  # fmt: skip
            except Exception as error:  # the runtime's errors share no base class
                unknown = re.search(r"Unknown option: (\w+)", str(error))
                if unknown and unknown[1] in options and unknown[1] in _DISPENSABLE:
                    options = {key: value for key, value in options.items() if key != unknown[1]}
                    continue
                hint = "pip install -U onnxruntime" if unknown else "use the backend ort-cpu, or other units"
                raise BackendError(
                    f"{self.name}: Core ML cannot load {name} ({first_line(error)})", hint=hint
                ) from error

    def _options(self) -> dict[str, str]:
        """Return the provider's options, those that are not its defaults."""
        options = {"ModelFormat": self.format, "MLComputeUnits": _UNITS[self.units]}
        folder = self._cache_folder()
        return options if folder is None else {**options, "ModelCacheDirectory": str(folder)}

    def _cache_folder(self) -> Path | None:
        """Return the folder for compiled models, which exists, or None for the default one that cannot."""
        from dfstream.diskcache import cache_root

        try:
            folder = cache_root() / "coreml" / "compiled" if self.cache is None else Path(self.cache)
            folder = folder.expanduser().absolute()
            folder.mkdir(parents=True, exist_ok=True)
        except (OSError, RuntimeError) as error:
            if self.cache is None:
                return None
            raise UsageError(f"coreml-ep: cannot make the folder {self.cache} ({error})") from error
        return folder


class _Network:
    """A session of the runtime that advances one frame; `CanonicalSession` drives it."""

    def __init__(self, session: Any, dtype: np.dtype[Any], name: str) -> None:
        self._session, self._dtype, self._name = session, dtype, name
        self._outputs = [port.name for port in session.get_outputs()]

    def advance(self, feeds: Arrays) -> Arrays:
        """Run the graph once; states of float16 pass through float32 unchanged."""
        given = {name: array.astype(self._dtype, copy=False) for name, array in feeds.items()}
        try:
            results = self._session.run(self._outputs, given)
        except Exception as error:
            raise BackendError(f"coreml-ep: {self._name} failed ({first_line(error)})") from error
        widened = (array.astype(np.float32, copy=False) for array in results)
        return dict(zip(self._outputs, widened, strict=True))


def _with_key(graph: bytes, compiled_by: str) -> bytes:
    """Return a graph with a key in it that changes with any bit of it, and with whatever compiles it.

    The provider's own key is one of the graph's structure: it would find another model's weights under it.
    """
    import onnx

    digest = hashlib.sha256(f"{compiled_by}\0".encode() + graph).hexdigest()
    model = onnx.load_model_from_string(graph)
    model.metadata_props.add(key=_CACHE_KEY, value=digest[:_KEY_LENGTH])
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def _check_provider(ort: Any) -> None:
    """Refuse an ONNX Runtime without the provider.

    Raises
    ------
    BackendUnavailable
        Says why it is not here, and what is.
    """
    if _PROVIDER in ort.get_available_providers():
        return
    if sys.platform != "darwin":
        raise BackendUnavailable(
            "coreml-ep: Core ML exists on macOS only",
            hint="ort-cpu and numba run the model here, and dfstream convert makes packages for Apple",
        )
    raise BackendUnavailable(
        f"coreml-ep: this onnxruntime {ort.__version__} was built without Core ML",
        hint="pip install onnxruntime from PyPI; ort-cpu and numba run the model here",
    )


def _runtime() -> Any:
    return import_onnxruntime(CoremlEp.name)


BACKEND = CoremlEp
