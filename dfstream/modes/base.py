"""What a mode is: one strategy to drive the graphs of a model frame by frame.

A module ``dfstream/modes/<name>.py`` (dashes as underscores) holds one class called ``MODE``. It says
which graphs it needs and how they are made (its recipe), what it feeds them per frame and which state
it carries. Adding a mode adds a file and touches no other.
"""

from __future__ import annotations

import abc
import importlib
import pkgutil
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np

from dfstream.errors import UsageError
from dfstream.interface import state_output

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from dfstream.backends.base import Backend, Session
    from dfstream.model import Model
    from dfstream.patches.recipe import Recipe

__all__ = ["Mode", "NetOutput", "find_mode", "initial_states", "mode_names"]


class NetOutput(NamedTuple):
    """Results of the network for T frames of B streams, all float32."""

    lsnr: NDArray[np.float32]
    """[B, T, 1], dB."""
    m: NDArray[np.float32]
    """[B, 1, T, bands], ERB gains 0 to 1."""
    coefs: NDArray[np.float32]
    """[B, T, df bins, 2 * taps], deep-filter taps, oldest first, (re, im) inside."""


class Mode(abc.ABC):
    """One way to drive the graphs. Owns all state of the network.

    Parameters
    ----------
    model : Model
    backend : Backend
    batch : int
        Streams that advance together.

    Raises
    ------
    UnsupportedGraph
        The model cannot run in this mode.
    """

    name: ClassVar[str]
    #: One line for tables and help texts.
    summary: ClassVar[str]
    #: What it carries from frame to frame, one line.
    carries: ClassVar[str]
    #: Whether its results are the network's own to float32 rounding.
    exact: ClassVar[bool]
    #: Whether one call may take many frames.
    many_frames: ClassVar[bool]

    def __init__(self, model: Model, backend: Backend, batch: int = 1) -> None:
        self.model = model
        self.batch = batch
        self.sessions: dict[str, Session] = dict(model.open(backend, self.recipe()))
        self.state: dict[str, NDArray[np.float32]] = {}
        self.reset()

    @classmethod
    @abc.abstractmethod
    def recipe(cls) -> Recipe:
        """Return how its graphs are made."""

    @classmethod
    @abc.abstractmethod
    def frames_per_hop(cls, model: Model) -> int:
        """Return how many feature frames a call of one new frame computes."""

    @abc.abstractmethod
    def step(self, feat_erb: NDArray[np.float32], feat_spec: NDArray[np.float32]) -> NetOutput:
        """Advance by the given frames.

        Parameters
        ----------
        feat_erb : ndarray[float32], shape (B, 1, T, bands)
        feat_spec : ndarray[float32], shape (B, 2, T, df bins)
            T >= 1 new frames.
        """

    def run(self, stem: str, feeds: Mapping[str, NDArray[np.float32]]) -> Mapping[str, NDArray[np.float32]]:
        """Run one graph on the given tensors and its states, and keep the states it returns."""
        session = self.sessions[stem]
        outputs = session.run({**feeds, **{name: self.state[name] for name in session.states}})
        for name in session.states:
            self.state[name] = outputs[state_output(name)]
        return outputs

    def reset(self) -> None:
        """Forget the past: zeros in every state."""
        self.state = {
            name: array
            for session in self.sessions.values()
            for name, array in initial_states(session, self.batch).items()
        }


def initial_states(session: Session, batch: int) -> dict[str, NDArray[np.float32]]:
    """Return zeros for every state input of a graph."""
    return {
        name: np.zeros([batch if size == "B" else int(size) for size in shape], np.float32)
        for name, shape in session.states.items()
    }


def mode_names() -> list[str]:
    """Return the names of all modes."""
    import dfstream.modes as package

    modules = (m.name for m in pkgutil.iter_modules(package.__path__))
    return sorted(name.replace("_", "-") for name in modules if name != "base" and not name.startswith("_"))


def find_mode(name: str) -> type[Mode]:
    """Return a mode by name.

    Raises
    ------
    UsageError
        No mode of that name.
    """
    if name not in mode_names():
        raise UsageError(f"unknown mode {name!r}", hint=f"modes are {', '.join(mode_names())}")
    mode: type[Mode] = importlib.import_module(f"dfstream.modes.{name.replace('-', '_')}").MODE
    return mode
