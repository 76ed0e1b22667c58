"""StatefulH0: a window of features for the convolutions, explicit GRU state, one frame a call."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfstream.modes._window import WindowMode
from dfstream.modes.base import NetOutput

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dfstream.model import Model
    from dfstream.patches.recipe import Recipe

_GRAPH = "combined_streaming"


class StatefulH0(WindowMode):
    """Feeds the last few frames; convolutions see them all, GRUs and results advance by one.

    The window grows from one frame at the start of a stream to its full length: the graph then puts
    zeros where the export would, and the first frames are exact too.
    """

    name = "stateful-h0"
    summary = "one graph, a short window of features, GRU state in and out (h0, erb_h0, df_h0)"
    carries = "GRU states, the window of features"
    exact = True

    @classmethod
    def recipe(cls) -> Recipe:
        """Expose the GRU states and cut everything behind the convolutions to its last frame."""
        from dfstream.patches.batch import free_batch
        from dfstream.patches.fold import fold_constants
        from dfstream.patches.gru_state import expose_gru_state
        from dfstream.patches.last_frame import keep_last_frame
        from dfstream.patches.recipe import Recipe

        patches = (fold_constants, expose_gru_state, keep_last_frame, free_batch)
        return Recipe(cls.name, (_GRAPH,), patches)

    @classmethod
    def frames_per_hop(cls, model: Model) -> int:
        """The window that the time kernels need, for example 7."""
        return model.window_frames

    def step_window(self, feat_erb: NDArray[np.float32], feat_spec: NDArray[np.float32]) -> NetOutput:
        """Run one window; the graph gives one frame."""
        out = self.run(_GRAPH, {"feat_erb": feat_erb, "feat_spec": feat_spec})
        return NetOutput(out["lsnr"], out["m"], out["coefs"])


MODE = StatefulH0
