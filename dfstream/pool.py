"""Many live streams served together: one call of the network for all that have a hop ready."""

from __future__ import annotations

import dataclasses
import itertools
from typing import TYPE_CHECKING

import numpy as np

from dfstream.arguments import check_whole
from dfstream.backends.base import AUTO, Backend, pick_backend
from dfstream.batching import BatchEngine
from dfstream.chunks import checked_chunk, cleaned_chunk
from dfstream.dsp.lanes import LaneSet
from dfstream.engine import EngineOptions
from dfstream.errors import AudioError, UsageError
from dfstream.filtering import attenuation_gain
from dfstream.members import Member, PoolSettings
from dfstream.model import Model
from dfstream.modes.base import find_network_mode
from dfstream.snapshot import Snapshot
from dfstream.stream import Stream

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Mapping
    from pathlib import Path
    from types import EllipsisType

    from numpy.typing import ArrayLike, NDArray

    from dfstream.engine import Parity, PostFilterKind
    from dfstream.stream import StreamStats

__all__ = ["StreamPool"]

_MAX_CAPACITY = 4096


class StreamPool:
    """Enhance many live mono streams at the model's rate, together.

    Each stream gives what a `Stream` of its own would, within float32 rounding (the network sums in
    another order when it multiplies for several), whatever the others do. What it costs is less: the
    weights of the network are read once per call, for all streams that have a hop ready.

    Parameters
    ----------
    model, mode, backend, precision, block_frames, parity, post_filter_kind, threads
        As for `Stream`; the same for all streams. The windowed modes cannot serve a pool.
    capacity : int
        Most streams at a time, 1 to 4096. Memory is taken for all of them.

    Raises
    ------
    UsageError
        An argument out of range, an unknown name, or a mode that cannot serve a pool.
    ModelError, BackendError
        As for `Stream`.

    Notes
    -----
    One thread at a time may call a pool; several pools, in as many threads, may share a `Model`.

    Examples
    --------
    >>> import numpy as np
    >>> from dfstream import StreamPool
    >>> pool = StreamPool(capacity=2)
    >>> ann, bob = pool.join("ann"), pool.join("bob", atten_lim_db=12)
    >>> y = pool.process({ann: np.zeros(480, np.float32), bob: np.zeros(100, np.float32)})
    >>> len(y[ann]), len(y[bob])
    (480, 0)
    >>> len(pool.leave(bob)) == 100 + pool.delay_samples
    True
    """

    def __init__(
        self,
        model: Model | str | Path | None = None,
        capacity: int = 64,
        *,
        mode: str = "incremental",
        backend: str | Backend = AUTO,
        precision: str = "float32",
        block_frames: int = 1,
        parity: Parity = "rust",
        post_filter_kind: PostFilterKind = "spectrum",
        threads: int = 1,
    ) -> None:
        check_whole("capacity", capacity, 1, _MAX_CAPACITY)
        mode_class = find_network_mode(mode)
        if not mode_class.many_frames:
            raise UsageError(
                f"the mode {mode} cannot serve a pool: all its streams would have to begin together",
                hint="use the mode incremental or streaming",
            )
        self._model = Model.load(model)
        backend = pick_backend(
            backend,
            self._model,
            mode_class.recipe(),
            single_frame=block_frames == 1,
            precision=precision,
            threads=threads,
        )
        # stands for any one stream: it checks the arguments, takes snapshots in, and lets streams end
        self._single = Stream(
            self._model,
            mode=mode,
            backend=backend,
            sample_rate=self._model.config.sample_rate,
            block_frames=block_frames,
            parity=parity,
            post_filter_kind=post_filter_kind,
        )
        self._fresh = self._single.snapshot()
        options = EngineOptions(
            parity=parity, block_frames=int(block_frames), post_filter_kind=post_filter_kind
        )
        network = mode_class(self._model, backend, int(capacity), single_frame=block_frames == 1)
        self._engine = BatchEngine(network, options)
        self._block = int(block_frames) * self._model.config.hop_size
        self._capacity = int(capacity)
        self._members: dict[Hashable, Member] = {}
        self._free = list(range(self._capacity - 1, -1, -1))
        self._numbers = itertools.count()
        self._slots = LaneSet(self._capacity)

    # -- what it is --------------------------------------------------------------------------------

    @property
    def model(self) -> Model:
        """The model it runs."""
        return self._model

    @property
    def capacity(self) -> int:
        """Most streams at a time."""
        return self._capacity

    @property
    def delay_samples(self) -> int:
        """Samples by which the output of each stream lags its input."""
        return self._single.delay_samples

    @property
    def ids(self) -> tuple[Hashable, ...]:
        """The streams that are in it, in the order in which they joined."""
        return tuple(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, id: Hashable) -> bool:
        return id in self._members

    def __iter__(self) -> Iterator[Hashable]:
        return iter(self.ids)

    # -- coming and going --------------------------------------------------------------------------

    def join(
        self,
        id: Hashable | None = None,
        *,
        atten_lim_db: float | None = None,
        post_filter: float = 0.0,
        snapshot: Snapshot | None = None,
    ) -> Hashable:
        """Let a stream begin, or continue.

        Parameters
        ----------
        id : hashable, optional
            Its name; a number is made up by default.
        atten_lim_db : float or None, dB
        post_filter : float
            As for `Stream`.
        snapshot : Snapshot, optional
            Where it continues from: of a stream of a pool, or of a mono `Stream` at the model's rate,
            with the same model, mode, backend and options. Brings its own settings.

        Returns
        -------
        hashable
            Its id.

        Raises
        ------
        UsageError
            The pool is full, the id is taken or not hashable, a setting is out of range, settings are
            given beside a snapshot, or the snapshot does not fit.
        """
        settings = PoolSettings(atten_lim_db, post_filter)
        if id is None:
            id = next(number for number in self._numbers if number not in self._members)
        try:
            taken = id in self._members
        except TypeError:
            raise UsageError(f"id = {id!r} is not hashable", hint="take a string or a number") from None
        if taken:
            raise UsageError(f"a stream {id!r} is in the pool already")
        if not self._free:
            raise UsageError(f"the pool is full: {self._capacity} streams", hint="raise capacity")
        if snapshot is None:
            self._members[id] = self._begin(self._free[-1], settings)
        elif settings != PoolSettings():
            raise UsageError("a snapshot brings its own settings", hint="change them with configure()")
        else:
            self._members[id] = self._continue(self._free[-1], snapshot)
        self._free.pop()
        return id

    def leave(self, id: Hashable) -> NDArray[np.float32]:
        """End a stream and free its place.

        Returns
        -------
        ndarray[float32], shape (k,)
            All samples that were still inside, as `Stream.flush`.

        Raises
        ------
        UsageError
            No such stream.
        """
        self._single.restore(self.snapshot(id))
        tail = self._single.flush()
        self._free.append(self._members.pop(id).slot)
        return tail

    def reset(self, id: Hashable) -> None:
        """Let a stream forget everything and begin anew; its settings stay as they are.

        Raises
        ------
        UsageError
            No such stream.
        """
        member = self._member(id)
        self._members[id] = self._begin(member.slot, member.settings)

    # -- audio -------------------------------------------------------------------------------------

    def process(self, chunks: Mapping[Hashable, ArrayLike]) -> dict[Hashable, NDArray[np.float32]]:
        """Take the next samples of some streams and return those that became ready.

        Parameters
        ----------
        chunks : mapping of id to array_like of floats, shape (n,)
            Any n, another for each stream. Streams that are not named stand still.

        Returns
        -------
        dict of id to ndarray[float32], shape (k,)
            Whole blocks, maybe none, of every stream that was named, aligned as by `Stream.process`.
            Yours to keep.

        Raises
        ------
        UsageError
            No such stream.
        AudioError
            A chunk of another shape, or not of a floating type. Either way no stream has advanced.
        """
        named = {id: (self._member(id), _samples(id, chunk)) for id, chunk in chunks.items()}
        if not named:
            return {}
        # all chunks at once: nearly always there is nothing to replace
        _, replaced = cleaned_chunk(np.concatenate([samples for _, samples in named.values()]))
        waiting = [
            (id, member, member.take(samples, self._block, clean=not replaced))
            for id, (member, samples) in sorted(named.items(), key=lambda entry: entry[1][0].slot)
        ]
        outputs = {id: np.empty_like(samples) for id, _, samples in waiting}
        for start in range(0, max(len(samples) for *_, samples in waiting), self._block):
            ready = [entry for entry in waiting if len(entry[2]) > start]
            self._round(ready, slice(start, start + self._block), outputs)
        return {id: outputs[id] for id in named}

    def _round(
        self,
        ready: list[tuple[Hashable, Member, NDArray[np.float32]]],
        block: slice,
        outputs: dict[Hashable, NDArray[np.float32]],
    ) -> None:
        """Take one block of each of these streams, which are in the order of their slots."""
        slots = [member.slot for _, member, _ in ready]
        if self._slots.index.tolist() != slots:
            self._slots = LaneSet(self._capacity, slots)
        y, lsnr = self._engine.process(np.array([samples[block] for *_, samples in ready]), self._slots)
        for (id, member, _), enhanced, lsnr_db in zip(ready, y, lsnr[:, -1].tolist(), strict=True):
            outputs[id][block] = enhanced
            member.lsnr_db = lsnr_db

    # -- one of them -------------------------------------------------------------------------------

    def lsnr_db(self, id: Hashable) -> float:
        """Local SNR of a stream's newest hop in dB; NaN before the first."""
        return self._member(id).lsnr_db

    def stats(self, id: Hashable) -> StreamStats:
        """What was counted of a stream since it began."""
        return dataclasses.replace(self._member(id).stats)

    def settings(self, id: Hashable) -> PoolSettings:
        """Settings of a stream."""
        return self._member(id).settings

    def configure(
        self,
        id: Hashable,
        *,
        atten_lim_db: float | EllipsisType | None = ...,
        post_filter: float | EllipsisType = ...,
    ) -> None:
        """Change the settings of a stream from its next block on; what is not given stays as it is.

        Raises
        ------
        UsageError
            No such stream, or a value out of range.
        """
        member = self._member(id)
        given = {"atten_lim_db": atten_lim_db, "post_filter": post_filter}
        changes = {name: value for name, value in given.items() if value is not ...}
        member.settings = dataclasses.replace(member.settings, **changes)  # type: ignore[arg-type]
        self._apply(member)

    def snapshot(self, id: Hashable) -> Snapshot:
        """Return everything a stream remembers: for `join`, or for `Stream.restore`.

        Raises
        ------
        UsageError
            No such stream.
        """
        member = self._member(id)
        arrays = {
            **self._engine.save(member.slot),
            "stream/waiting": member.waiting[:, None].copy(),
            "stream/ready": self._fresh.arrays["stream/ready"],
        }
        return Snapshot(self._fresh.settings, member.counters(), arrays)

    def _member(self, id: Hashable) -> Member:
        try:
            return self._members[id]
        except (KeyError, TypeError):
            raise UsageError(f"no stream {id!r} in the pool", hint="join() lets one begin") from None

    def _begin(self, slot: int, settings: PoolSettings) -> Member:
        self._engine.reset(slot)
        member = Member(slot, settings)
        self._apply(member)
        return member

    def _continue(self, slot: int, snapshot: Snapshot) -> Member:
        snapshot.check_fits(self._fresh)
        member = Member.of_snapshot(slot, snapshot)
        self._engine.load(slot, snapshot.arrays)
        self._apply(member)
        return member

    def _apply(self, member: Member) -> None:
        self._engine.beta[member.slot] = member.settings.post_filter
        self._engine.noisy_gain[member.slot] = attenuation_gain(member.settings.atten_lim_db)


def _samples(id: Hashable, chunk: ArrayLike) -> NDArray[np.float32]:
    try:
        return checked_chunk(chunk, 1)[:, 0]
    except AudioError as error:
        hint = "the streams of a pool are mono, float32, at the model's rate"
        raise AudioError(f"stream {id!r}: {error}", hint=hint) from error
