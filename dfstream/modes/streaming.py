"""Streaming: four graphs with their own states, so that each part can be run, or not, by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dfstream.gating import Stage
from dfstream.modes.base import Mode, NetOutput

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dfstream.gating import Thresholds
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

    def step_gated(
        self, feat_erb: NDArray[np.float32], feat_spec: NDArray[np.float32], thresholds: Thresholds
    ) -> tuple[NetOutput, NDArray[np.int8]]:
        """Run each decoder on the frames that need it, and on no other; see `Mode.step_gated`."""
        skips = self.run(_CONV, {"feat_erb": feat_erb, "feat_spec": feat_spec})
        encoded = self.run(_GRU, {"emb": skips["emb"]})
        emb, lsnr = encoded["emb_out"], encoded["lsnr"]
        stages = np.array([thresholds.stage(float(value)) for value in lsnr[0, :, 0]], np.int8)
        c, (B, T) = self.model.config, lsnr.shape[:2]
        m = np.zeros((B, 1, T, c.nb_erb), np.float32)
        coefs = np.zeros((B, T, c.nb_df, 2 * c.df_order), np.float32)
        masked, full = stages >= Stage.MASKED, stages >= Stage.FULL
        if masked.any():
            maps = {name: _frames(skips[name], masked, 2) for name in ("e3", "e2", "e1", "e0")}
            m[:, :, masked] = self.run(_ERB, {"emb": _frames(emb, masked, 1), **maps})["m"]
        if full.any():
            feeds = {"emb": _frames(emb, full, 1), "c0": _frames(skips["c0"], full, 2)}
            coefs[:, full] = self.run(_DF, feeds)["coefs"]
        return NetOutput(lsnr, m, coefs), stages


def _frames(x: NDArray[np.float32], wanted: NDArray[np.bool_], axis: int) -> NDArray[np.float32]:
    return np.ascontiguousarray(np.compress(wanted, x, axis=axis))


MODE = Streaming
