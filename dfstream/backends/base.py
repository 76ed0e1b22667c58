"""What a backend is: something that loads graphs and runs them. Arrays in, arrays out, no idea of audio.

A module ``dfstream/backends/<name>.py`` (dashes as underscores) holds one class called ``BACKEND``, a
frozen dataclass of its options. It is imported when asked for; where its runtime is missing or cannot
work, making it raises `BackendUnavailable` with one line that says why and what to install. Adding a
backend adds a file and touches no other.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from dfstream import registry
from dfstream.errors import BackendError, DfstreamError, UnsupportedGraph, UsageError, one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from dfstream.model import Model
    from dfstream.patches.recipe import Recipe

    Arrays = Mapping[str, NDArray[np.float32]]

__all__ = [
    "AUTO",
    "Backend",
    "Candidate",
    "Session",
    "backend_names",
    "check_options",
    "find_backend",
    "parse_backend",
    "pick_backend",
    "split_backend",
    "survey",
]

#: Stands for the quickest backend that serves.
AUTO = "auto"

_MOST_THREADS = 256


class Session(Protocol):
    """One loaded graph. May be run by several threads at once; holds no state of a stream."""

    #: State inputs and their shapes; "B" stands for the batch. Their next values come out under
    #: `dfstream.interface.state_output`.
    states: Mapping[str, tuple[int | str, ...]]

    @property
    def sections(self) -> Mapping[str, str]:
        """Which part of the network (``enc``, ``erb``, ``df``) each state belongs to.

        Asked for where thresholds let a decoder wait; see `dfstream.patches.recipe.Metadata`.
        """
        ...

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

    def runner(self, batch: int) -> Callable[[Arrays], Arrays]:  # noqa: ARG002
        """Return a function like `run` for the calls of one mode, none of which overlap.

        It may own buffers: it never writes into an array that it is given, and may write into any other
        state that it returned. Results are the caller's to keep, as those of `run`.

        Parameters
        ----------
        batch : int
            Streams that advance together.
        """
        return self.run


class Backend(abc.ABC):
    """Loads graphs. Equal options make equal backends, so that loaded graphs can be shared."""

    name: ClassVar[str]
    #: One line for tables and help texts.
    summary: ClassVar[str]
    #: How it can store weights, exact first.
    precisions: ClassVar[tuple[str, ...]] = ("float32",)
    #: Names of the modes it can serve, None for all.
    modes: ClassVar[tuple[str, ...] | None] = None
    #: Systems and processors it exists for, in words.
    runs_on: ClassVar[str] = "everywhere"

    def __hash__(self) -> int:
        return hash((self.name, repr(self)))

    @classmethod
    def preference(cls, model: Model) -> int:  # noqa: ARG003
        """Return its place: among those that serve a model, `AUTO` takes the highest; none below 0."""
        return -1

    def choose(self, model: Model, recipe: Recipe, single_frame: bool) -> Recipe:  # noqa: ARG002
        """Return the recipe whose graphs serve a mode's recipe best, by default itself.

        Another must have as many graphs in the same order, which take the same features and give the same
        results; states may differ.

        Parameters
        ----------
        model : Model
        recipe : Recipe
        single_frame : bool
            Whether every call will bring one frame.
        """
        return recipe

    def open(self, model: Model, recipe: Recipe) -> dict[str, Session]:
        """Load all graphs of a recipe.

        A backend that runs graphs of its own making (say, of the canonical one) overrides this and
        returns sessions that take and give the tensors of the recipe's own.
        """
        return {stem: self.load(data, stem) for stem, data in model.graphs(recipe).items()}

    @abc.abstractmethod
    def load(self, graph: bytes, name: str) -> Session:
        """Load one serialised ONNX graph.

        Raises
        ------
        BackendError
            The runtime refuses it.
        """


def check_options(backend: Backend, threads: int, precision: str) -> None:
    """Refuse what is no number of threads, or no precision of this backend."""
    if type(threads) is not int or not 1 <= threads <= _MOST_THREADS:
        raise UsageError(f"threads = {threads!r}, expected a whole number, 1 to {_MOST_THREADS}")
    if precision not in backend.precisions:
        choices = ", ".join(map(repr, backend.precisions))
        raise UsageError(f"precision = {precision!r}, expected one of {choices}")


def backend_names() -> list[str]:
    """Return the names of all backends, whether or not they can run here."""
    return registry.names("backend")


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
    cls: type[Backend] = registry.find("backend", name)
    known = [field.name for field in dataclasses.fields(cls)] if dataclasses.is_dataclass(cls) else [*options]
    if unknown := [option for option in options if option not in known]:
        raise UsageError(
            f"backend {name} has no option {unknown[0]!r}", hint=f"its options are {', '.join(known)}"
        )
    try:
        return cls(**options)
    except TypeError as error:
        raise UsageError(f"backend {name}: {error}") from error


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One backend, tried on a model.

    Attributes
    ----------
    name : str
    preference : int
        For this model; see `Backend.preference`.
    backend : Backend or None
        Ready, None where it cannot serve.
    error : Exception or None
        Why it cannot; `refused` tells whether on purpose.
    """

    name: str
    preference: int
    backend: Backend | None = None
    error: Exception | None = None

    @property
    def usable(self) -> bool:
        """Whether it can serve."""
        return self.backend is not None

    @property
    def refused(self) -> bool:
        """Whether it said that it cannot; anything else that was raised is a fault."""
        return isinstance(self.error, (BackendError, UnsupportedGraph, UsageError))

    @property
    def reason(self) -> str | None:
        """Why it cannot, in one line."""
        if self.error is None or isinstance(self.error, DfstreamError):
            return None if self.error is None else str(self.error)
        return one_line(f"{self.name}: {type(self.error).__name__}: {self.error}")

    @property
    def hint(self) -> str | None:
        """What to do about that, in one line, where anything is known."""
        return self.error.hint if isinstance(self.error, DfstreamError) else None


def survey(
    model: Model, recipe: Recipe, *, single_frame: bool = False, load: bool = True, **options: Any
) -> Iterator[Candidate]:
    """Try all backends on a model, one whenever asked for the next, those that `AUTO` prefers first.

    Parameters
    ----------
    model : Model
    recipe : Recipe
        Of the mode.
    single_frame : bool
        Whether every call will bring one frame.
    load : bool
        Without, no graph is loaded: a backend that would refuse it then counts as usable.
    **options
        Fields of the backends' classes.
    """
    classes: list[type[Backend]] = [registry.find("backend", name) for name in backend_names()]
    for preference, cls in sorted(((c.preference(model), c) for c in classes), key=lambda entry: -entry[0]):
        try:
            backend = find_backend(cls.name, **options)
            if load:
                model.open(backend, recipe, single_frame=single_frame)
            else:
                backend.choose(model, recipe, single_frame)
        except Exception as error:  # a fault of one keeps nobody from trying the others
            yield Candidate(cls.name, preference, error=error)
        else:
            yield Candidate(cls.name, preference, backend)


def pick_backend(
    backend: str | Backend, model: Model, recipe: Recipe, *, single_frame: bool = False, **options: Any
) -> Backend:
    """Return the backend that was asked for, or for `AUTO` the quickest that serves.

    Parameters
    ----------
    backend : str or Backend
        A name, or one line as for `parse_backend`, whose options win over the others.
    model : Model
    recipe : Recipe
        Of the mode.
    single_frame : bool
        Whether every call will bring one frame.
    **options
        Fields of the backend's class, where it is asked for by name.

    Raises
    ------
    UsageError
        As `find_backend`.
    BackendError, UnsupportedGraph
        None serves; the reason is that of the last one tried, which takes most.
    """
    if isinstance(backend, Backend):
        return backend
    if backend != AUTO:
        name, own = split_backend(backend)
        return find_backend(name, **{**options, **own})
    reason: Exception = BackendError("no backend is made for this model")
    for candidate in survey(model, recipe, single_frame=single_frame, **options):
        if candidate.preference < 0:
            break
        if candidate.backend is not None:
            return candidate.backend
        reason = candidate.error or reason
        if not candidate.refused:
            break
    raise reason


def parse_backend(text: str) -> Backend:
    """Make a backend from one line, ``name`` or ``name:option=value,option=value``.

    Raises
    ------
    UsageError
        As `find_backend`, or not of that form.

    Examples
    --------
    >>> parse_backend("ort-cpu:threads=2").threads
    2
    """
    name, options = split_backend(text)
    return find_backend(name, **options)


def split_backend(text: str) -> tuple[str, dict[str, Any]]:
    """Return the name and options of a backend in one line; see `parse_backend`.

    Values that look like whole numbers, other numbers or true and false become such.

    Raises
    ------
    UsageError
        No backend of that name, or not of that form.
    """
    name, colon, rest = text.partition(":")
    registry.find("backend", name)
    options: dict[str, Any] = {}
    for part in rest.split(",") if colon else []:
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not (key.isidentifier() and equals and value) or key in options:
            raise UsageError(
                f"backend {text!r}: {part!r} is not option=value",
                hint=f"write {name}:option=value,option=value",
            )
        options[key] = _value(value)
    return name, options


def _value(text: str) -> bool | int | float | str:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
