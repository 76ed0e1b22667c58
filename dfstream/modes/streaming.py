"""Streaming: four graphs with their own states, so that each part can be run, or not, by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfstream.modes.base import Mode, NetOutput

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dfstream.model import Model
    from dfstream.patches.recipe import Recipe

_CONV, _GRU, _ERB, _DF = "enc_conv_streaming", "enc_gru_streaming", "erb_dec_streaming", "df_dec_streaming"


class Streaming(Mode):
    """Encoder convolutions, encoder GRU, ERB decoder, deep-filter decoder: one graph each."""

    name = "streaming"
    summary = "four graphs, encoder cut in front of its GRU, decoders with state of their own"
    carries = "as incremental, per graph"
    exact = True
    many_frames = True

    @classmethod
    def recipe(cls) -> Recipe:
        """Patch as for incremental, then split."""
        from dfstream.patches.batch import free_batch
        from dfstream.patches.causal_context import cache_causal_context
        from dfstream.patches.fold import fold_constants
        from dfstream.patches.gru_state import expose_gru_state
        from dfstream.patches.recipe import Recipe
        from dfstream.patches.split_encoder import split_encoder

        patches = (fold_constants, expose_gru_state, cache_causal_context, free_batch)
        return Recipe(cls.name, (_CONV, _GRU, _ERB, _DF), patches, split_encoder)

    @classmethod
    def frames_per_hop(cls, model: Model) -> int:  # noqa: ARG003
        """One: nothing is computed twice."""
        return 1

    def step(self, feat_erb: NDArray[np.float32], feat_spec: NDArray[np.float32]) -> NetOutput:
        """Advance by the given frames; see `Mode.step`."""
        skips = self.run(_CONV, {"feat_erb": feat_erb, "feat_spec": feat_spec})
        encoded = self.run(_GRU, {"emb": skips["emb"]})
        emb = encoded["emb_out"]
        erb = self.run(_ERB, {"emb": emb, **{name: skips[name] for name in ("e3", "e2", "e1", "e0")}})
        df = self.run(_DF, {"emb": emb, "c0": skips["c0"]})
        return NetOutput(encoded["lsnr"], erb["m"], df["coefs"])


MODE = Streaming
