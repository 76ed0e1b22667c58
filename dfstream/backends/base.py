"""What a backend is: something that loads graphs and runs them. Arrays in, arrays out, no idea of audio.

A module ``dfstream/backends/<name>.py`` (dashes as underscores) holds one class called ``BACKEND``, a
frozen dataclass of its options. It is imported when asked for; where its runtime is missing or cannot
work, making it raises `BackendUnavailable` with one line that says why and what to install. Adding a
backend adds a file and touches no other.
"""

from __future__ import annotations

import abc
import importlib
import pkgutil
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from dfstream.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from dfstream.model import Model
    from dfstream.patches.recipe import Recipe

    Arrays = Mapping[str, NDArray[np.float32]]

__all__ = ["Backend", "Session", "backend_names", "find_backend"]


class Session(Protocol):
    """One loaded graph. May be run by several threads at once; holds no state of a stream."""

    #: State inputs and their shapes; "B" stands for the batch. Their next values come out under
    #: `dfstream.interface.state_output`.
    states: Mapping[str, tuple[int | str, ...]]

    def run(self, feeds: Arrays) -> Arrays:
        """Run the graph once.

        Parameters
        ----------
        feeds : mapping of str to ndarray[float32]
            Every input by name, C-contiguous.

        Returns
        -------
        mapping of str to ndarray[float32]
            Every output by name; fresh arrays that the caller may keep.

        Raises
        ------
        BackendError
            The runtime failed.
        """
        ...


class Backend(abc.ABC):
    """Loads graphs. Equal options make equal backends, so that loaded graphs can be shared."""

    name: ClassVar[str]
    #: One line for tables and help texts.
    summary: ClassVar[str]

    def __hash__(self) -> int:
        return hash((self.name, repr(self)))

    def open(self, model: Model, recipe: Recipe) -> dict[str, Session]:
        """Load all graphs of a recipe.

        A backend that wants another form of the graphs (say, the canonical one) overrides this and
        returns sessions that take and give the features and results of the recipe's own. Where their
        states are others, it overrides `sections` too.
        """
        return {stem: self.load(data, stem) for stem, data in model.graphs(recipe).items()}

    def sections(self, model: Model, recipe: Recipe) -> Mapping[str, str]:
        """Return which part of the network (``enc``, ``erb``, ``df``) each state of a session belongs to."""
        return model.state_sections(recipe)

    @abc.abstractmethod
    def load(self, graph: bytes, name: str) -> Session:
        """Load one serialised ONNX graph.

        Raises
        ------
        BackendError
            The runtime refuses it.
        """


def backend_names() -> list[str]:
    """Return the names of all backends, whether or not they can run here."""
    import dfstream.backends as package

    modules = (m.name for m in pkgutil.iter_modules(package.__path__))
    return sorted(name.replace("_", "-") for name in modules if name != "base" and not name.startswith("_"))


def find_backend(name: str, **options: Any) -> Backend:
    """Make a backend by name.

    Parameters
    ----------
    name : str
        One of `backend_names`.
    **options
        Fields of the backend's class, such as ``threads``.

    Raises
    ------
    UsageError
        No backend of that name, or an option it does not have.
    BackendUnavailable
        Its runtime is missing or does not work on this platform.
    """
    if name not in backend_names():
        raise UsageError(f"unknown backend {name!r}", hint=f"backends are {', '.join(backend_names())}")
    cls: type[Backend] = importlib.import_module(f"dfstream.backends.{name.replace('-', '_')}").BACKEND
    try:
        return cls(**options)
    except TypeError as error:
        raise UsageError(f"backend {name}: {error}") from error
