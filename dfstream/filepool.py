"""Files that pass through the network together, in a pool of streams."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dfstream.filebatch import Batch, OwnStreams
from dfstream.gating import Thresholds
from dfstream.modes.base import Mode, find_mode
from dfstream.pool import StreamPool

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping

    from dfstream.filebatch import Block
    from dfstream.model import Model

__all__ = ["PooledStreams", "batch_maker"]

#: Files that one thread has under way, and hops of each in one call: beyond 100 in all nothing is gained.
_WIDTH, _BLOCK_FRAMES = 4, 25

#: Which arguments of `Stream` a pool takes for all its streams, and which for each of them.
_SHARED = ("mode", "backend", "precision", "parity", "post_filter_kind", "threads")
_EACH = ("atten_lim_db", "post_filter")

#: Arguments of `Stream` and the fields of `Thresholds` that they are.
_THRESHOLDS = {
    "min_db_thresh": "min_db", "max_db_erb_thresh": "max_erb_db", "max_db_df_thresh": "max_df_db",
}  # fmt: skip


class PooledStreams(Batch):
    """Mono sources at the model's rate share a pool; others have streams to themselves.

    Parameters
    ----------
    model : Model
    width : int
    **options
        Further arguments of `Stream`.

    Raises
    ------
    DfstreamError
        As `Stream` and `StreamPool`.
    """

    def __init__(self, model: Model, width: int, **options: Any) -> None:
        self.width = width
        self._own = OwnStreams(model, **options)
        shared = {name: options[name] for name in _SHARED if name in options}
        self._pool = StreamPool(model, width, block_frames=_BLOCK_FRAMES, **shared)
        self._each = {name: options[name] for name in _EACH if name in options}

    def join(self, source: int, sample_rate: int, channels: int) -> int:
        """Begin a source; see `Batch.join`."""
        if (sample_rate, channels) != (self._pool.model.config.sample_rate, 1):
            return self._own.join(source, sample_rate, channels)
        self._pool.join(source, **self._each)
        return self._pool.delay_samples

    def process(self, blocks: Mapping[int, Block]) -> Mapping[int, Block]:
        """Take the next blocks; see `Batch.process`."""
        together: dict[Hashable, Block] = {n: x[:, 0] for n, x in blocks.items() if n in self._pool}
        alone = {source: x for source, x in blocks.items() if source not in self._pool}
        results: dict[int, Block] = dict(self._own.process(alone))
        for source, y in self._pool.process(together).items():
            assert isinstance(source, int)
            results[source] = y
        return results

    def leave(self, source: int) -> Block:
        """End a source; see `Batch.leave`."""
        return self._pool.leave(source) if source in self._pool else self._own.leave(source)

    def abandon(self, source: int) -> None:
        """Forget a source; see `Batch.abandon`."""
        if source in self._pool:
            self._pool.leave(source)
        self._own.abandon(source)


def batch_maker(model: Model, files: int, jobs: int, **options: Any) -> Callable[[], Batch]:
    """Return what makes the quickest batch for so many files in so many threads.

    Parameters
    ----------
    model : Model
    files, jobs : int
    **options
        Further arguments of `Stream`. A pool skips no decoders and no silence.
    """
    width = min(_WIDTH, -(-files // jobs))  # not at the cost of a thread without work
    limits = {field: options[name] for name, field in _THRESHOLDS.items() if name in options}
    gated = not Thresholds(**limits).never_trigger or options.get("skip_silence", False)
    mode = find_mode(options.get("mode", "incremental"))
    pools = issubclass(mode, Mode) and mode.many_frames
    if width < 2 or gated or not pools:
        return lambda: OwnStreams(model, **options)
    return lambda: PooledStreams(model, width, **options)
