"""Crops of the pool as tensors: inputs of the network and what its answer is compared with."""

from __future__ import annotations

import dataclasses
import itertools
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import torch

from targets import SPEC_SCALE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from torch import Tensor

    from dfstream.config import ModelConfig
    from pool import Pool
    from targets import Layout


@dataclasses.dataclass(frozen=True)
class Batch:
    """B crops of T frames; a frame's features are those that the network sees when it answers for it."""

    feat_erb: Tensor
    """[B, 1, T, bands]."""
    feat_spec: Tensor
    """[B, 2, T, df bins]."""
    noisy: Tensor
    """[B, T + taps - 1, 2, df bins]."""
    target: Tensor
    """[B, T, 2, df bins]."""
    mask: Tensor
    """[B, T, bands]."""
    weight: Tensor
    """[B, T, bands]."""
    lsnr: Tensor
    """[B, T, 1], dB."""


@dataclasses.dataclass(frozen=True)
class Cropping:
    """How batches are cut.

    Attributes
    ----------
    items : int
        Crops of a batch.
    frames : int
        Frames of a crop.
    seed : int
        Batch n is the same for the same seed and pool.
    augmented : bool
        Turn the phase of every crop, and half of them quieter or louder to the deep-filter features.
    threads : int
        That make batches ahead of their use.
    """

    items: int = 16
    frames: int = 300
    seed: int = 0
    augmented: bool = True
    threads: int = 1


class Batches:
    """Batches by number.

    Parameters
    ----------
    pool : Pool
    layout : Layout
    config : ModelConfig
    cropping : Cropping
    device : str
    """

    def __init__(
        self, pool: Pool, layout: Layout, config: ModelConfig, cropping: Cropping, device: str
    ) -> None:
        self._pool, self._layout, self._cropping, self._device = pool, layout, cropping, device
        self._bins, self._after = config.nb_df, config.df_lookahead
        self._before = config.df_order - 1 - config.df_lookahead
        self._turns = cropping.augmented

    def __call__(self, number: int) -> Batch:
        """Return a batch."""
        cropping = self._cropping
        rng = np.random.default_rng([cropping.seed, number])
        rows = self._pool.crops(rng, cropping.items, cropping.frames, self._before, self._after)
        turn = rng.uniform(0, 2 * np.pi, cropping.items)
        shift_db = rng.uniform(-12, 12, cropping.items) * (rng.random(cropping.items) < 0.5)
        if not self._turns:
            turn, shift_db = np.zeros_like(turn), np.zeros_like(shift_db)
        return self._unpacked(rows, turn, shift_db)

    def ahead(self, first: int, depth: int = 4) -> Iterator[Batch]:
        """Give batches from a number on, made by other threads while the last ones are used."""
        with ThreadPoolExecutor(self._cropping.threads) as workers:
            coming = deque(workers.submit(self, number) for number in range(first, first + depth))
            for number in itertools.count(first + depth):
                yield coming.popleft().result()
                coming.append(workers.submit(self, number))

    def _unpacked(
        self, rows: NDArray[np.float16], turn: NDArray[np.float64], shift_db: NDArray[np.float64]
    ) -> Batch:
        values = torch.from_numpy(rows).to(self._device).float()
        # features lead their frame by the lookahead: the frames in front lend bins only, those behind both
        middle = slice(self._before, -self._after or None)
        leading = slice(self._before + self._after, None)
        cos, sin = (
            torch.from_numpy(f(turn)).float().to(self._device).view(-1, 1, 1) for f in (np.cos, np.sin)
        )
        gain = torch.from_numpy(10 ** (shift_db / 40)).float().to(self._device)

        def turned(part: slice) -> Tensor:
            re, im = values[..., part].split(self._bins, -1)
            return torch.stack((re * cos - im * sin, re * sin + im * cos), 2)

        spec = turned(self._layout.spec)[:, leading] / SPEC_SCALE * gain.view(-1, 1, 1, 1)
        return Batch(
            values[:, leading, self._layout.erb].unsqueeze(1).contiguous(),
            spec.permute(0, 2, 1, 3).contiguous(memory_format=torch.channels_last),
            turned(self._layout.noisy).contiguous(),
            turned(self._layout.target)[:, middle].contiguous(),
            *(
                values[:, middle, part]
                for part in (self._layout.mask, self._layout.weight, self._layout.lsnr)
            ),
        )
