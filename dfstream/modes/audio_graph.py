"""AudioGraph: the signal's whole way inside one graph, samples in, samples out, one packed state."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dfstream.errors import UnsupportedGraph, UsageError
from dfstream.modes.base import Strategy
from dfstream.silence import heard_hops, process_heard

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from dfstream.backends.base import Backend, Session
    from dfstream.checking import CheckRow
    from dfstream.engine import EngineOptions
    from dfstream.model import Model
    from dfstream.patches.recipe import Recipe

#: Hops of one call at most: what a block computes for its running means grows with their square.
_MOST_HOPS = 512


class AudioGraph(Strategy):
    """The graphs that `dfstream patch` writes for programs without dfstream; here, to be proved and compared.

    Every channel is a row of the batch, a stream by itself. What is no part of the graphs is refused.
    """

    name = "audio-graph"
    summary = "the whole signal path in the graph, audio in and out, for runtimes without dfstream"
    carries = "one packed state: everything, the signal's and the network's"
    exact = True
    many_frames = True

    @classmethod
    def recipe(cls) -> Recipe:
        """Return how the graph of blocks is made; for single hops backends may have the other."""
        from dfstream.patches.audio_graph import block_recipe

        return block_recipe()

    @classmethod
    def recipes(cls, precision: str = "float32") -> tuple[Recipe, ...]:
        """Return how both graphs are made; ``fp16`` stores the weights of the network in half."""
        from dfstream.patches.audio_graph import block_recipe, hop_recipe
        from dfstream.patches.quantise import half_recipe

        both = hop_recipe(), block_recipe()
        if precision == "fp16":
            return tuple(map(half_recipe, both))
        return both if precision == "float32" else super().recipes(precision)

    @classmethod
    def frames_per_hop(cls, model: Model) -> int:  # noqa: ARG003
        """One: nothing is computed twice."""
        return 1

    @classmethod
    def unserved(cls, options: EngineOptions) -> str | None:
        """Everything that would have to be another graph."""
        if not options.thresholds.never_trigger:
            return "thresholds of the local SNR"
        if options.parity != "rust":
            return f"parity {options.parity!r}"
        if options.channel_mask != "none" and options.channels > 1:
            return f"channel_mask {options.channel_mask!r}"
        return None if options.post_filter_kind == "spectrum" else "post-filter on the mask"

    @classmethod
    def check(cls, model: Model, precision: str = "float32") -> list[CheckRow]:
        """Stream audio through the graphs and compare with `Stream`."""
        from dfstream.audiochecking import check_audio

        return check_audio(model, cls.recipes(precision), exact=precision == "float32")

    @classmethod
    def engine(cls, model: Model, backend: Backend, options: EngineOptions) -> AudioGraphEngine:
        """Return an engine that has everything done by the graph."""
        if (what := cls.unserved(options)) is not None:
            raise UsageError(
                f"the mode {cls.name} has no {what}: it is no part of its graphs",
                hint="use the mode incremental",
            )
        (session,) = model.open(backend, cls.recipe(), single_frame=options.block_frames == 1).values()
        return AudioGraphEngine(session, model.config.hop_size, options)


class AudioGraphEngine:
    """One session and its state; see `dfstream.engine.SignalEngine`.

    Parameters
    ----------
    session : Session
        Of an audio graph.
    hop_size : int, samples
    options : EngineOptions
    """

    def __init__(self, session: Session, hop_size: int, options: EngineOptions) -> None:
        if [*session.states] != ["state"]:
            raise UnsupportedGraph(
                "this is not an audio graph: it has no packed state", hint="patch the original export again"
            )
        self._session, self._hop = session, hop_size
        self._skips_silence = options.skip_silence
        self._shape = options.channels, int(session.states["state"][1])
        self._off = np.zeros(1, np.float32)
        self.reset()

    def reset(self) -> None:
        """Forget the past: zeros are a fresh stream."""
        self._state = np.zeros(self._shape, np.float32)

    def process(
        self,
        x: NDArray[np.float32],
        beta: NDArray[np.float32] | None = None,
        noisy_gain: NDArray[np.float32] | None = None,
        skip_silence: bool | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Take T hops all the way; see `dfstream.engine.Engine.process`."""
        if self._skips_silence if skip_silence is None else skip_silence:
            heard = heard_hops(x, self._hop)
            if not heard.all():
                return process_heard(lambda kept: self.process(kept, beta, noisy_gain, False), x, heard)
        size = _MOST_HOPS * self._hop
        if x.shape[1] <= size:
            return self._call(x, beta, noisy_gain)
        parts = [
            self._call(np.ascontiguousarray(x[:, start : start + size]), beta, noisy_gain)
            for start in range(0, x.shape[1], size)
        ]
        return np.concatenate([y for y, _ in parts], axis=1), np.concatenate([lsnr for _, lsnr in parts])

    def _call(
        self, x: NDArray[np.float32], beta: NDArray[np.float32] | None, noisy_gain: NDArray[np.float32] | None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        results = self._session.run({
            "audio": x,
            "state": self._state,
            "atten_lim": self._off if noisy_gain is None else noisy_gain,
            "pf_beta": self._off if beta is None else beta,
        })  # fmt: skip
        self._state = results["state_out"]
        y, lsnr = results["enhanced"], results["lsnr"]
        if y.shape != x.shape or self._state.shape != self._shape:
            raise UnsupportedGraph(
                f"the graph gives audio of the shape {y.shape} and a state of {self._state.shape}, "
                f"expected {x.shape} and {self._shape}",
                hint="patch the original export again",
            )
        return y, lsnr[0]

    def finish(
        self,
        beta: NDArray[np.float32] | None = None,  # noqa: ARG002
        noisy_gain: NDArray[np.float32] | None = None,  # noqa: ARG002
    ) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """Give nothing: a stream ends here with zero samples only."""
        return iter(())

    def save(self) -> dict[str, NDArray[np.generic]]:
        """Return a copy of the state."""
        return {"state": self._state.copy()}

    def load(self, saved: Mapping[str, NDArray[np.generic]]) -> None:
        """Continue from what `save` returned."""
        self._state = np.array(saved["state"], np.float32)


MODE = AudioGraph
