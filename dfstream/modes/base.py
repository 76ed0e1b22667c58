"""What a mode is: one strategy to drive the graphs of a model frame by frame.

A module ``dfstream/modes/<name>.py`` (dashes as underscores) holds one class called ``MODE``. It says
which graphs it needs and how they are made (its recipe), what it feeds them per frame and which state
it carries. Adding a mode adds a file and touches no other. All but one derive from `Mode`: they drive the
network and leave the signal to `dfstream.engine.Engine`.
"""

from __future__ import annotations

import abc
import functools
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np

from dfstream import registry
from dfstream.errors import UnsupportedGraph, UsageError
from dfstream.gating import Stage
from dfstream.interface import state_output

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from dfstream.backends.base import Backend, Session
    from dfstream.checking import CheckRow
    from dfstream.config import ModelConfig
    from dfstream.engine import EngineOptions, SignalEngine
    from dfstream.gating import Thresholds
    from dfstream.model import Model
    from dfstream.patches.recipe import Recipe

__all__ = [
    "Mode",
    "NetOutput",
    "Strategy",
    "check_results",
    "find_mode",
    "find_network_mode",
    "initial_states",
    "mode_names",
]


class NetOutput(NamedTuple):
    """Results of the network for T frames of B streams, all float32."""

    lsnr: NDArray[np.float32]
    """[B, T, 1], dB."""
    m: NDArray[np.float32]
    """[B, 1, T, bands], ERB gains 0 to 1."""
    coefs: NDArray[np.float32]
    """[B, T, df bins, 2 * taps], deep-filter taps, oldest first, (re, im) inside."""

    @classmethod
    def join(cls, parts: Sequence[NetOutput]) -> NetOutput:
        """Join results of consecutive frames."""
        axes = (1, 2, 1)
        return cls(
            *(
                np.concatenate(arrays, axis)
                for arrays, axis in zip(zip(*parts, strict=True), axes, strict=True)
            )
        )


class Strategy(abc.ABC):
    """What every mode says of itself, and the one thing that streams want of it: an engine."""

    name: ClassVar[str]
    #: One line for tables and help texts.
    summary: ClassVar[str]
    #: What it carries from frame to frame, one line.
    carries: ClassVar[str]
    #: Whether its results are the network's own to float32 rounding.
    exact: ClassVar[bool]
    #: Whether one call may take many frames.
    many_frames: ClassVar[bool]

    @classmethod
    @abc.abstractmethod
    def recipe(cls) -> Recipe:
        """Return how its graphs are made."""

    @classmethod
    def recipes(cls, precision: str = "float32") -> tuple[Recipe, ...]:
        """Return how all graphs are made that are written for it, by default those that it runs.

        Raises
        ------
        UsageError
            There are none of this precision.
        """
        if precision != "float32":
            raise UsageError(
                f"no graphs of precision {precision} are written for the mode {cls.name}",
                hint="the mode audio-graph has them, in fp16",
            )
        return (cls.recipe(),)

    @classmethod
    @abc.abstractmethod
    def frames_per_hop(cls, model: Model) -> int:
        """Return how many feature frames a call of one new frame computes."""

    @classmethod
    def unserved(cls, options: EngineOptions) -> str | None:  # noqa: ARG003
        """Return what of these options it cannot do, in a few words; None where it can do all."""
        return None

    @classmethod
    @abc.abstractmethod
    def check(cls, model: Model, precision: str = "float32") -> list[CheckRow]:
        """Compare what its graphs compute with what they should."""

    @classmethod
    @abc.abstractmethod
    def engine(cls, model: Model, backend: Backend, options: EngineOptions) -> SignalEngine:
        """Return what takes audio all the way.

        Raises
        ------
        UsageError
            It cannot do what the options ask for.
        UnsupportedGraph, BackendError
            The model cannot run in this mode, or not by this backend.
        """


class Mode(Strategy):
    """One way to drive the graphs of the network. Owns all its state.

    Parameters
    ----------
    model : Model
    backend : Backend
    batch : int
        Streams that advance together.
    single_frame : bool
        Whether every call of `step` will bring one frame: a backend may have a quicker graph for that.

    Raises
    ------
    UnsupportedGraph
        The model cannot run in this mode.
    """

    def __init__(self, model: Model, backend: Backend, batch: int = 1, *, single_frame: bool = False) -> None:
        self.model = model
        self.batch = batch
        self.sessions: dict[str, Session] = dict(
            model.open(backend, self.recipe(), single_frame=single_frame)
        )
        self._runners = {
            stem: (session.runner(batch), [(name, state_output(name)) for name in session.states])
            for stem, session in self.sessions.items()
        }
        self.state: dict[str, NDArray[np.float32]] = {}
        self.reset()

    @classmethod
    def check(cls, model: Model, precision: str = "float32") -> list[CheckRow]:  # noqa: ARG003
        """Stream features and compare with the unpatched graphs in one run."""
        from dfstream.checking import check_mode

        return check_mode(model, cls)

    @classmethod
    def engine(cls, model: Model, backend: Backend, options: EngineOptions) -> SignalEngine:
        """Return an engine around the network."""
        from dfstream.engine import Engine

        network = cls(model, backend, options.channels, single_frame=options.block_frames == 1)
        return Engine(network, options)

    @abc.abstractmethod
    def step(self, feat_erb: NDArray[np.float32], feat_spec: NDArray[np.float32]) -> NetOutput:
        """Advance by the given frames.

        Parameters
        ----------
        feat_erb : ndarray[float32], shape (B, 1, T, bands)
        feat_spec : ndarray[float32], shape (B, 2, T, df bins)
            T >= 1 new frames.
        """

    def step_gated(
        self, feat_erb: NDArray[np.float32], feat_spec: NDArray[np.float32], thresholds: Thresholds
    ) -> tuple[NetOutput, NDArray[np.int8]]:
        """Advance as `step`, but let a decoder that a frame does not need keep its state.

        Where one graph computes all, the old states are put back after the call. The local SNR of the
        first stream decides for all, as in libDF.

        Returns
        -------
        NetOutput
            Gains and taps of decoders that were not needed mean nothing.
        ndarray[int8], shape (T,)
            `dfstream.gating.Stage` of each frame.
        """
        outputs, stages = [], []
        for t in range(feat_erb.shape[2]):
            before = dict(self.state)
            frame = (np.ascontiguousarray(feat[:, :, t : t + 1]) for feat in (feat_erb, feat_spec))
            outputs.append(self.step(*frame))
            stage = thresholds.stage(float(outputs[-1].lsnr[0, 0, 0]))
            stages.append(stage)
            unused = {*(["erb"] if stage < Stage.MASKED else []), *(["df"] if stage < Stage.FULL else [])}
            for name, section in self.sections.items():
                if section in unused:
                    self.state[name] = before[name]
        return NetOutput.join(outputs), np.array(stages, np.int8)

    @functools.cached_property
    def sections(self) -> Mapping[str, str]:
        """Which part of the network (``enc``, ``erb``, ``df``) each state of a graph belongs to."""
        return {
            name: section for session in self.sessions.values() for name, section in session.sections.items()
        }

    def run(self, stem: str, feeds: Mapping[str, NDArray[np.float32]]) -> Mapping[str, NDArray[np.float32]]:
        """Run one graph on the given tensors and its states, and keep the states it returns."""
        run, states = self._runners[stem]
        outputs = _Outputs(run({**feeds, **{name: self.state[name] for name, _ in states}}))
        for name, after in states:
            self.state[name] = outputs[after]
        return outputs

    def reset(self) -> None:
        """Forget the past: zeros in every state."""
        self.state = {
            name: array
            for session in self.sessions.values()
            for name, array in initial_states(session, self.batch).items()
        }


class _Outputs(dict[str, "NDArray[np.float32]"]):
    """What a graph gave; asking for anything else tells that the graph is not the one it says it is."""

    def __missing__(self, name: str) -> NDArray[np.float32]:
        raise UnsupportedGraph(f"the graph gives no {name!r}", hint="patch the original export again")


def check_results(net: NetOutput, config: ModelConfig, streams: int, frames: int) -> None:
    """Refuse results that are not those of the given number of streams and frames.

    Raises
    ------
    UnsupportedGraph
        Names the result, its shape and the expected one.
    """
    B, T = streams, frames
    shapes = (B, T, 1), (B, 1, T, config.nb_erb), (B, T, config.nb_df, 2 * config.df_order)
    if (net.lsnr.shape, net.m.shape, net.coefs.shape) == shapes:  # every hop passes here
        return
    for name, result, shape in zip(NetOutput._fields, net, shapes, strict=True):
        if result.shape != shape:
            raise UnsupportedGraph(
                f"the graph gives {name} of the shape {result.shape}, expected {shape}",
                hint="patch the original export again",
            )


def initial_states(session: Session, batch: int) -> dict[str, NDArray[np.float32]]:
    """Return zeros for every state input of a graph."""
    return {
        name: np.zeros([batch if size == "B" else int(size) for size in shape], np.float32)
        for name, shape in session.states.items()
    }


def mode_names() -> list[str]:
    """Return the names of all modes."""
    return registry.names("mode")


def find_mode(name: str) -> type[Strategy]:
    """Return a mode by name.

    Raises
    ------
    UsageError
        No mode of that name.
    """
    mode: type[Strategy] = registry.find("mode", name)
    return mode


def find_network_mode(name: str) -> type[Mode]:
    """Return a mode by name, which must be one that drives the network by itself.

    Raises
    ------
    UsageError
        No mode of that name, or one that has the signal's way inside its graphs.
    """
    mode = find_mode(name)
    if not issubclass(mode, Mode):
        raise UsageError(
            f"the mode {name} has the network inside a larger graph", hint="use the mode incremental"
        )
    return mode
