"""What the two windowed modes share: a growing window of features, one call a frame."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING

import numpy as np

from dfstream.modes.base import Mode, NetOutput

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dfstream.backends.base import Backend
    from dfstream.model import Model


class WindowMode(Mode):
    """Feeds each new frame together with the frames before it, up to ``frames_per_hop``."""

    many_frames = False

    def __init__(self, model: Model, backend: Backend, batch: int = 1, *, single_frame: bool = False) -> None:
        self.window = self.frames_per_hop(model)
        super().__init__(model, backend, batch, single_frame=single_frame)

    def reset(self) -> None:
        """Forget the past: no frames in the window, zeros in every state."""
        super().reset()
        config, past = self.model.config, self.window - 1
        self.state["window_erb"] = np.zeros((self.batch, 1, past, config.nb_erb), np.float32)
        self.state["window_spec"] = np.zeros((self.batch, 2, past, config.nb_df), np.float32)
        self.state["window_filled"] = np.zeros(1, np.float32)

    @abc.abstractmethod
    def step_window(self, feat_erb: NDArray[np.float32], feat_spec: NDArray[np.float32]) -> NetOutput:
        """Compute the last frame of a window of one to ``window`` frames."""

    def step(self, feat_erb: NDArray[np.float32], feat_spec: NDArray[np.float32]) -> NetOutput:
        """Advance frame by frame; see `Mode.step`."""
        frames = [
            self.step_window(
                self._push("window_erb", feat_erb[:, :, t : t + 1]),
                self._push("window_spec", feat_spec[:, :, t : t + 1], advance=True),
            )
            for t in range(feat_erb.shape[2])
        ]
        return NetOutput.join(frames)

    def _push(self, name: str, frame: NDArray[np.float32], advance: bool = False) -> NDArray[np.float32]:
        """Append a frame to a window and return what is filled of it."""
        past, filled = self.state[name], int(self.state["window_filled"][0])
        joined = np.concatenate([past, frame], axis=2)
        self.state[name] = np.ascontiguousarray(joined[:, :, 1:])
        if advance:
            self.state["window_filled"] = np.array([min(filled + 1, self.window - 1)], np.float32)
        return np.ascontiguousarray(joined[:, :, -(filled + 1) :])


__all__ = ["WindowMode"]
