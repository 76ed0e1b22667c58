"""StatelessWindowLast: the export as it is, a long window, its last frame; a diagnostic fallback."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dfstream.modes._window import WindowMode
from dfstream.modes.base import NetOutput, initial_states

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dfstream.model import Model
    from dfstream.patches.recipe import Recipe

_GRAPH = "combined"

#: Frames of warm-up the GRUs get, the field's usual number.
_WINDOW = 40


class StatelessWindowLast(WindowMode):
    """Feeds the last 40 frames to GRUs that start from zero and keeps the last frame of the result.

    Neither exact nor quick: the GRUs remember seconds, the window holds 0.4 s.
    """

    name = "stateless-window-last"
    summary = "the unpatched graph over the last 40 frames, last frame kept; inexact, for comparison"
    carries = "the window of features"
    exact = False

    @classmethod
    def recipe(cls) -> Recipe:
        """Merge only."""
        from dfstream.patches.recipe import Recipe

        return Recipe(cls.name, (_GRAPH,), ())

    @classmethod
    def frames_per_hop(cls, model: Model) -> int:
        """The window; refuses a model whose convolutions behind a GRU no window can serve."""
        return max(_WINDOW, model.window_frames)

    def step_window(self, feat_erb: NDArray[np.float32], feat_spec: NDArray[np.float32]) -> NetOutput:
        """Run one window from zero states; keep the last frame."""
        session = self.sessions[_GRAPH]
        zeros = initial_states(session, 1)
        # the unpatched graph takes one stream at a time
        out = [
            session.run({"feat_erb": feat_erb[b : b + 1], "feat_spec": feat_spec[b : b + 1], **zeros})
            for b in range(self.batch)
        ]
        return NetOutput(
            np.concatenate([o["lsnr"][:, -1:] for o in out]),
            np.concatenate([o["m"][:, :, -1:] for o in out]),
            np.concatenate([o["coefs"][:, -1:] for o in out]),
        )


MODE = StatelessWindowLast
