"""A stream: chunks of audio in, enhanced audio out, in any cut, rate and number of channels."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from typing import TYPE_CHECKING, get_args

import numpy as np

from dfstream.arguments import check_choice, check_range, check_whole
from dfstream.backends.base import AUTO, Backend, pick_backend
from dfstream.chunks import MAX_CHANNELS, checked_chunk, cleaned_chunk
from dfstream.engine import ChannelMask, EngineOptions, Parity, PostFilterKind
from dfstream.errors import UsageError
from dfstream.filtering import attenuation_gain
from dfstream.gating import Thresholds
from dfstream.model import Model
from dfstream.modes.base import find_mode
from dfstream.resampling import RateConverter, check_rate, lead_in, longest_wait
from dfstream.snapshot import Snapshot

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import ArrayLike, NDArray

    from dfstream.engine import SignalEngine

__all__ = ["Stream", "StreamStats"]

_MAX_BLOCK_FRAMES = 4096

_NO_LSNR = np.zeros(0, np.float32)


@dataclasses.dataclass
class StreamStats:
    """What a stream has counted since it began.

    Attributes
    ----------
    samples_in, samples_out : int
        Samples of each channel.
    replaced : int
        Samples that were NaN, infinite or beyond 1e6 (120 dB over full scale) and became zero.
    """

    samples_in: int = 0
    samples_out: int = 0
    replaced: int = 0


class Stream:
    """Enhance speech as it arrives.

    `process` takes any number of samples and returns those that became ready (maybe none). Joined
    together and ended with `flush`, ``y[delay_samples:]`` lines up with the input and has its length.
    The joined output does not depend on how the input was cut, bit for bit.

    Parameters
    ----------
    model : Model, str, Path or None
        As for `Model.load`; None is the bundled model.
    mode : str
        How the graphs are driven: ``incremental``, ``streaming``, ``stateful-h0``, ``audio-graph`` (all
        exact) or ``stateless-window-last`` (see MODES.md).
    backend : str or Backend
        What runs them: ``auto`` (the quickest that serves), or a name, such as ``numba`` or ``ort-cpu``, with
        or without options of its own: ``coreml-ep:units=all``.
    precision : str
        How weights are stored: ``float32`` (exact), or, declared and never by default, ``int16``, ``fp16``
        or ``int8``, as the backend has them; MODES.md says what each costs in quality.
    sample_rate : int, Hz
        Rate of the audio, 8 to 192 kHz; other rates than the model's pass through soxr.
    channels : int
        1 takes arrays [n]; more take [n, channels].
    channel_mask : "none", "max" or "mean"
        Whether channels get their own masks, or all the largest or the mean (libDF's ``reduce_mask``),
        which keeps the stereo image steady.
    parity : "rust" or "python"
        Whether the stream starts and ends as DeepFilterNet's streaming Rust engine does, or as its
        Python package on a whole file (the first ``conv_lookahead`` feature frames are not fed, zero
        *features* follow the last). They differ in the first and last frames only.
    block_frames : int
        Hops that go through the network in one call. One is right for live audio. Larger blocks are
        quicker and return their samples later; results differ within float32 rounding.
    same_length : bool
        Return exactly as many samples as were given, beginning with silence. The longest wait for
        samples, at the model's rate ``hop * block_frames - 1``, is then part of `delay_samples`.
    atten_lim_db : float or None, dB
        Largest attenuation of the noise; None is no limit, 0 the noisy signal, delayed. May be changed
        while streaming.
    post_filter : float
        Strength (beta) of libDF's post-filter: 0 is off, 0.02 usual, 0.05 strong. May be changed while
        streaming.
    post_filter_kind : "spectrum" or "mask"
        libDF's and DeepFilterNet3's, on the enhanced spectrum, or DeepFilterNet2's older one, on the mask.
    min_db_thresh, max_db_erb_thresh, max_db_df_thresh : float, dB
        Frames of a local SNR below the first are muted, above the second passed on, above the third only
        masked, not deep filtered. The defaults never trigger. A ``max_db_df_thresh`` below 35 ruins the
        output of DeepFilterNet3 and is warned about.
    skip_silence : bool
        Let silent hops (mean square below 1e-7) pass by as zeros without moving anything on, as libDF
        v0.5.6 does. Later versions practically never do.
    threads : int
        Threads of the backend; more than one does not help a stream.

    Raises
    ------
    UsageError
        An argument out of range or an unknown name.
    AudioError
        A sample rate outside 8 to 192 kHz.
    ModelError, BackendError
        The model cannot be loaded, or not in this mode, or not by this backend.

    Notes
    -----
    NaN, infinite and absurdly large samples are replaced by zero and counted in `stats`: one of them
    would otherwise turn every later sample into NaN.

    Examples
    --------
    >>> import numpy as np
    >>> from dfstream import Stream
    >>> stream = Stream()
    >>> x = np.zeros(1000, np.float32)
    >>> y = np.concatenate([stream.process(x), stream.flush()])
    >>> len(y) - len(x) == stream.delay_samples
    True
    """

    stats: StreamStats
    _waiting: NDArray[np.float32]
    _ready: NDArray[np.float32]
    _lsnr: NDArray[np.float32]
    _flushed: bool

    def __init__(
        self,
        model: Model | str | Path | None = None,
        *,
        mode: str = "incremental",
        backend: str | Backend = AUTO,
        precision: str = "float32",
        sample_rate: int = 48_000,
        channels: int = 1,
        channel_mask: ChannelMask = "none",
        parity: Parity = "rust",
        block_frames: int = 1,
        same_length: bool = False,
        atten_lim_db: float | None = None,
        post_filter: float = 0.0,
        post_filter_kind: PostFilterKind = "spectrum",
        min_db_thresh: float = -15.0,
        max_db_erb_thresh: float = 35.0,
        max_db_df_thresh: float = 35.0,
        skip_silence: bool = False,
        threads: int = 1,
    ) -> None:
        check_choice("parity", parity, get_args(Parity))
        check_choice("channel_mask", channel_mask, get_args(ChannelMask))
        check_choice("post_filter_kind", post_filter_kind, get_args(PostFilterKind))
        check_whole("block_frames", block_frames, 1, _MAX_BLOCK_FRAMES)
        check_whole("channels", channels, 1, MAX_CHANNELS)
        check_rate(sample_rate)
        thresholds = _thresholds(min_db_thresh, max_db_erb_thresh, max_db_df_thresh)
        # plain numbers, whatever numpy type they came in: snapshots write them as JSON
        channels, block_frames = int(channels), int(block_frames)
        self._options = EngineOptions(
            channels, channel_mask, parity, block_frames, thresholds, bool(skip_silence), post_filter_kind
        )
        self._mode_class = find_mode(mode)
        self._model = Model.load(model)
        self._backend = pick_backend(
            backend,
            self._model,
            self._mode_class.recipe(),
            single_frame=block_frames == 1,
            precision=precision,
            threads=threads,
        )
        config = self._config = self._model.config
        if max_db_df_thresh < 35 and not config.filters_masked:
            warnings.warn(
                f"max_db_df_thresh = {max_db_df_thresh:g} dB: frames above it are only masked, and the mask "
                "of DeepFilterNet3 means nothing below 4.8 kHz; expect a ruined output",
                stacklevel=2,
            )
        self._sample_rate = int(sample_rate)
        self._same_length = bool(same_length)
        self._block = block_frames * config.hop_size
        self.post_filter = post_filter
        self.atten_lim_db = atten_lim_db
        self._engine = self._new_engine()
        self._to_engine = RateConverter(self._sample_rate, config.sample_rate, channels)
        self._from_engine = RateConverter(config.sample_rate, self._sample_rate, channels)
        self._lead_in = lead_in(self._sample_rate, config.sample_rate, config.delay_samples, config.hop_size)
        self._wait = longest_wait(self._sample_rate, config.sample_rate, self._block) if same_length else 0
        self._rest = {
            "model": self._model.sha256, "mode": mode, "backend": self._backend.name,
            "sample_rate": self._sample_rate, "same_length": self._same_length,
        }  # fmt: skip
        self._begin()

    # -- what it is --------------------------------------------------------------------------------

    @property
    def model(self) -> Model:
        """The model it runs."""
        return self._model

    @property
    def sample_rate(self) -> int:
        """Rate of the audio in Hz."""
        return self._sample_rate

    @property
    def channels(self) -> int:
        """Number of channels."""
        return self._options.channels

    @property
    def delay_samples(self) -> int:
        """Samples by which the output lags the input, at the stream's own rate."""
        inner = self._config.delay_samples + self._lead_in
        return round(inner * self._sample_rate / self._config.sample_rate) + self._wait

    @property
    def hop_size(self) -> int:
        """Samples of one hop, at the model's rate."""
        return self._config.hop_size

    @property
    def lsnr(self) -> NDArray[np.float32]:
        """Local SNR in dB of every hop that the last call of `process` or `flush` took, float32 [hops]."""
        return self._lsnr

    @property
    def lsnr_db(self) -> float:
        """Local SNR of the newest hop so far in dB; NaN before the first."""
        return self._newest_lsnr

    @property
    def post_filter(self) -> float:
        """Strength of the post-filter; holds from the next block on when set."""
        return self._post_filter

    @post_filter.setter
    def post_filter(self, beta: float) -> None:
        check_range("post_filter", beta, 0.0, 1.0)
        self._post_filter = float(beta)
        self._beta = self._for_channels(self._post_filter)

    @property
    def atten_lim_db(self) -> float | None:
        """Largest attenuation in dB, None for no limit; holds from the next block on when set."""
        return self._atten_lim_db

    @atten_lim_db.setter
    def atten_lim_db(self, limit_db: float | None) -> None:
        if limit_db is not None:
            check_range("atten_lim_db", limit_db, 0.0, float("inf"))
        self._atten_lim_db = None if limit_db is None else float(limit_db)
        self._noisy_gain = self._for_channels(attenuation_gain(limit_db))

    def _for_channels(self, strength: float) -> NDArray[np.float32] | None:
        """As the engine takes it: None where there is nothing to do."""
        return np.full(self.channels, strength, np.float32) if strength else None

    # -- audio -------------------------------------------------------------------------------------

    def process(self, x: ArrayLike) -> NDArray[np.float32]:
        """Take the next samples and return those that became ready.

        Parameters
        ----------
        x : array_like of floats, shape (n,) or (n, channels)
            Any n, 0 included. Full scale is 1; nothing is clipped.

        Returns
        -------
        ndarray[float32], shape (k,) or (k, channels)
            Whole blocks, or n samples with ``same_length``. Yours to keep.

        Raises
        ------
        AudioError
            Another shape, or not of a floating type.
        UsageError
            The stream has been flushed; `reset` begins a new one.
        """
        if self._flushed:
            raise UsageError("the stream has been flushed", hint="call reset() to begin a new one")
        samples, replaced = cleaned_chunk(checked_chunk(x, self.channels))
        self.stats.samples_in += len(samples)
        self.stats.replaced += replaced
        results = [self._run(block) for block in self._blocks(self._to_engine.process(samples))]
        ready = [self._from_engine.process(y) for y in self._note_lsnr(results)]
        return self._give(ready, len(samples) if self._same_length else None)

    def flush(self) -> NDArray[np.float32]:
        """End the stream: return all samples that are still inside, so that none of the input is lost.

        Returns
        -------
        ndarray[float32], shape (k,) or (k, channels)
            Brings the joined output to the input's length plus `delay_samples`. Empty when called again.
        """
        if self._flushed:
            return self._shaped(np.zeros((0, self.channels), np.float32))
        self._flushed = True
        total = self.stats.samples_in + self.delay_samples
        late = self._to_engine.process(np.zeros((0, self.channels), np.float32), last=True)
        results = [self._run(block) for block in self._blocks(late)]
        results += self._waiting_hops()
        results += self._tail_python() if self._options.parity == "python" else self._tail_rust()
        tail = np.concatenate([*self._note_lsnr(results)])
        ready = [self._from_engine.process(tail, last=True)]
        # resampling may round the end by a sample
        left = total - self.stats.samples_out
        short = max(0, left - len(self._ready) - len(ready[0]))
        return self._give([*ready, np.zeros((short, self.channels), np.float32)], left)

    def reset(self) -> None:
        """Forget everything and begin anew, as a fresh stream does; settings stay as they are."""
        self._engine.reset()
        self._to_engine.reset()
        self._from_engine.reset()
        self._begin()

    # -- snapshots ---------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """Return everything the stream remembers; `restore` continues from it, bit for bit.

        Raises
        ------
        UsageError
            The stream resamples: soxr does not give out its state.
        """
        self._check_snapshots()
        arrays = self._engine.save()
        arrays |= {"stream/waiting": self._waiting.copy(), "stream/ready": self._ready.copy()}
        settings = {**self._rest, **dataclasses.asdict(self._options)}
        counters = {
            **dataclasses.asdict(self.stats), "flushed": self._flushed, "lsnr_db": self._newest_lsnr,
            "post_filter": self._post_filter, "atten_lim_db": self._atten_lim_db,
        }  # fmt: skip
        return Snapshot(settings, counters, arrays)

    def restore(self, snapshot: Snapshot) -> None:
        """Continue from a snapshot of a stream of the same model and settings.

        Raises
        ------
        UsageError
            It is of another model, or of other settings.
        """
        snapshot.check_fits(self.snapshot())
        counters = dict(snapshot.counters)
        self._engine.load(dict(snapshot.arrays))
        self._waiting = np.array(snapshot.arrays["stream/waiting"], np.float32)
        self._ready = np.array(snapshot.arrays["stream/ready"], np.float32)
        self._flushed = bool(counters.pop("flushed"))
        self._newest_lsnr = float(counters.pop("lsnr_db"))
        self.post_filter = counters.pop("post_filter")
        self.atten_lim_db = counters.pop("atten_lim_db")
        self._lsnr = np.zeros(0, np.float32)
        self.stats = StreamStats(**counters)

    def clone(self) -> Stream:
        """Return a second stream that continues from where this one stands; they share the model only."""
        snapshot = self.snapshot()
        twin = copy.copy(self)
        twin._engine = self._new_engine()
        twin.restore(snapshot)
        return twin

    def _check_snapshots(self) -> None:
        if self._sample_rate != self._config.sample_rate:
            raise UsageError(
                f"a stream at {self._sample_rate} Hz cannot be saved: its resampler hides its state",
                hint=f"stream at the model's {self._config.sample_rate} Hz and resample outside",
            )

    # -- blocks ------------------------------------------------------------------------------------

    def _new_engine(self) -> SignalEngine:
        return self._mode_class.engine(self._model, self._backend, self._options)

    def _run(
        self, block: NDArray[np.float32], skip_silence: bool | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Take one block [samples, channels] through the engine."""
        y, lsnr = self._engine.process(
            np.ascontiguousarray(block.T), self._beta, self._noisy_gain, skip_silence
        )
        return y.T.copy(), lsnr

    def _blocks(self, x: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Cut into blocks what waits and what is new; keep the rest."""
        if len(x) == self._block and not len(self._waiting):
            return [x]
        if len(self._waiting):
            x = np.concatenate([self._waiting, x])
            self._waiting = self._waiting[:0]
        whole = len(x) - len(x) % self._block
        if whole < len(x):
            self._waiting = x[whole:].copy()
        return [x[start : start + self._block] for start in range(0, whole, self._block)]

    def _waiting_hops(self) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """Run the whole hops that still wait for their block: silence among them is silence as ever."""
        whole = len(self._waiting) - len(self._waiting) % self.hop_size
        hops, self._waiting = self._waiting[:whole], self._waiting[whole:]
        return [self._run(hops)] if whole else []

    def _tail_rust(self) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """Feed zero samples: to the end of the hop, then as many hops as the delay."""
        hops = -(-len(self._waiting) // self.hop_size) + -(-self._config.delay_samples // self.hop_size)
        return self._feed_zeros(hops)

    def _tail_python(self) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """Feed one window of zero samples, drop the last part hop, then zero *features* and spectra."""
        hops = (len(self._waiting) + self._config.fft_size) // self.hop_size
        finished = self._feed_zeros(hops)
        finished += [(y.T.copy(), lsnr) for y, lsnr in self._engine.finish(self._beta, self._noisy_gain)]
        return finished

    def _feed_zeros(self, hops: int) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """Run what is left of the last hop, followed by zeros, ``hops`` in all."""
        rest = np.zeros((hops * self.hop_size, self.channels), np.float32)
        rest[: len(self._waiting)] = self._waiting
        self._waiting = self._waiting[:0]
        blocks = (rest[i : i + self._block] for i in range(0, len(rest), self._block))
        return [self._run(block, skip_silence=False) for block in blocks]

    # -- in and out --------------------------------------------------------------------------------

    def _begin(self) -> None:
        self.stats = StreamStats()
        self._waiting = np.zeros((self._lead_in, self.channels), np.float32)
        # what same_length gives out before the first block is ready
        self._ready = np.zeros((self._wait, self.channels), np.float32)
        self._lsnr = np.zeros(0, np.float32)
        self._newest_lsnr = float("nan")
        self._flushed = False

    def _note_lsnr(
        self, results: list[tuple[NDArray[np.float32], NDArray[np.float32]]]
    ) -> list[NDArray[np.float32]]:
        """Keep the LSNR of a call's hops; return the audio."""
        lsnrs = [lsnr for _, lsnr in results]
        self._lsnr = lsnrs[0] if len(lsnrs) == 1 else np.concatenate([_NO_LSNR, *lsnrs])
        if lsnrs:
            self._newest_lsnr = float(self._lsnr[-1])
        return [y for y, _ in results]

    def _give(self, ready: list[NDArray[np.float32]], count: int | None) -> NDArray[np.float32]:
        """Return what is ready, or the first ``count`` samples of it, keeping the rest."""
        joined = (
            ready[0] if len(ready) == 1 and not len(self._ready) else np.concatenate([self._ready, *ready])
        )
        count = len(joined) if count is None else count
        if count < len(joined) or len(self._ready):
            self._ready = joined[count:].copy()
        self.stats.samples_out += count
        return self._shaped(joined[:count])

    def _shaped(self, y: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return [n] for one channel, [n, channels] for more, contiguous and the caller's own."""
        return np.ascontiguousarray(y[:, 0] if self.channels == 1 else y)


def _thresholds(min_db: float, max_erb_db: float, max_df_db: float) -> Thresholds:
    for name, value in (
        ("min_db_thresh", min_db), ("max_db_erb_thresh", max_erb_db), ("max_db_df_thresh", max_df_db)
    ):  # fmt: skip
        check_range(name, value, float("-inf"), float("inf"))
    return Thresholds(float(min_db), float(max_erb_db), float(max_df_db))
