"""Incremental: one graph with cached convolution context; any number of frames a call, exact."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfstream.modes.base import Mode, NetOutput

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dfstream.model import Model
    from dfstream.patches.recipe import Recipe

_GRAPH = "combined_incremental"


class Incremental(Mode):
    """Feeds the new frames only; every convolution and GRU continues from its state."""

    name = "incremental"
    summary = "one graph, cached convolution context and GRU state, any number of frames a call"
    carries = "GRU states, last frames in front of every time convolution"
    exact = True
    many_frames = True

    @classmethod
    def recipe(cls) -> Recipe:
        """Expose the GRU states and cache the context of the time convolutions."""
        from dfstream.patches.batch import free_batch
        from dfstream.patches.causal_context import cache_causal_context
        from dfstream.patches.fold import fold_constants
        from dfstream.patches.gru_state import expose_gru_state
        from dfstream.patches.recipe import Recipe

        patches = (fold_constants, expose_gru_state, cache_causal_context, free_batch)
        return Recipe(cls.name, (_GRAPH,), patches)

    @classmethod
    def frames_per_hop(cls, model: Model) -> int:  # noqa: ARG003
        """One: nothing is computed twice."""
        return 1

    def step(self, feat_erb: NDArray[np.float32], feat_spec: NDArray[np.float32]) -> NetOutput:
        """Advance by the given frames; see `Mode.step`."""
        out = self.run(_GRAPH, {"feat_erb": feat_erb, "feat_spec": feat_spec})
        return NetOutput(out["lsnr"], out["m"], out["coefs"])


MODE = Incremental
