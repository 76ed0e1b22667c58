"""What the backends that run Core ML packages share: which package serves a model, and how it is driven."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import hashlib
from typing import TYPE_CHECKING, ClassVar

from dfstream import atomic, diskcache
from dfstream.backends._onestep import CanonicalSession, check_incremental
from dfstream.backends.base import Backend, check_options
from dfstream.coreml.flavour import Flavour
from dfstream.coreml.metadata import PackageFacts
from dfstream.coreml.package import Package, read_package
from dfstream.errors import ModelError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from dfstream.backends.base import Arrays, Session
    from dfstream.coreml.flavour import StateStyle
    from dfstream.model import Model
    from dfstream.patches.recipe import Recipe

__all__ = ["PackageBackend"]

#: Precisions of packages by the names that all backends use.
_PRECISIONS = {"float32": "fp32", "fp16": "fp16", "int8": "int8", "palette": "palette", "ane": "ane"}


@dataclasses.dataclass(frozen=True)
class PackageBackend(Backend):
    """Runs the package that a model was loaded from, or one that is made of the model and kept.

    Attributes
    ----------
    precision : "float32", "fp16", "int8", "palette" or "ane"
        Of a package that has to be made; one that is there has its own.
    state : "explicit" or "coreml"
        Where such a package keeps its states.
    frames : int
        How many frames such a package takes a call.
    threads : int
        Core ML decides by itself.
    """

    precisions = tuple(_PRECISIONS)
    modes: ClassVar[tuple[str, ...] | None] = ("incremental",)

    precision: str = "float32"
    state: StateStyle = "explicit"
    frames: int = 1
    threads: int = 1

    __hash__ = Backend.__hash__

    def __post_init__(self) -> None:
        check_options(self, self.threads, self.precision)
        self._flavour()  # refuses what does not go together

    def _flavour(self) -> Flavour:
        """Return the kind of package that is made."""
        return Flavour(_PRECISIONS[self.precision], self.state, block_frames=self.frames)

    def open(self, model: Model, recipe: Recipe) -> dict[str, Session]:
        """Load the package; see `Backend.open`.

        Raises
        ------
        UnsupportedGraph
            For any mode but ``incremental``, or a model without a canonical graph.
        UsageError
            Another precision was asked for than the package has.
        BackendUnavailable
            A package has to be made, and coremltools is missing.
        """
        check_incremental(self.name, recipe.name)
        package = model.package or self._kept(model)
        facts = PackageFacts.from_properties(package.metadata, str(package.path))
        wanted = _PRECISIONS[self.precision]
        if model.package and self.precision != "float32" and wanted != facts.flavour.precision:
            raise UsageError(
                f"{model.origin} is a package of precision {facts.flavour.precision}, not {wanted}",
                hint=f"convert the model again: dfstream convert MODEL --precision {wanted}",
            )
        session = CanonicalSession(self.advancer(package, facts), facts.states, facts.features)
        self.examine(session, model, facts)
        return {recipe.stems[0]: session}

    def load(self, graph: bytes, name: str) -> Session:  # noqa: ARG002
        """Refuse ONNX graphs: packages are folders."""
        raise UsageError(f"the backend {self.name} runs packages, not the graph {name}")

    @abc.abstractmethod
    def advancer(self, package: Package, facts: PackageFacts) -> Callable[[Arrays], Arrays]:
        """Return what advances a package by a call; see `CanonicalSession`."""

    def examine(self, session: Session, model: Model, facts: PackageFacts) -> None:
        """Refuse a session that does not compute what it should; by default nothing is doubted."""

    def _kept(self, model: Model) -> Package:
        """Return a package of a model, from the cache or made now."""
        from dfstream.coreml.conversion import write_package
        from dfstream.coreml.toolbox import coremltools

        flavour = self._flavour()
        key = f"{model.sha256} {flavour} {coremltools().__version__}"
        sources = diskcache.source_digest("coreml", "patches")
        digest = hashlib.sha256(f"{key} {sources}".encode()).hexdigest()[:32]
        path = diskcache.cache_root() / "coreml" / "packages" / f"{digest}.mlpackage"
        with contextlib.suppress(ModelError):  # what is damaged is made again
            if path.exists():
                return read_package(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"cannot make the folder {path.parent}: {error.strerror}") from error
        with atomic.replacing_folder(path) as temporary:
            write_package(model, flavour, temporary)
        return read_package(path)
