"""A stream: chunks of audio in, enhanced audio out. The one place that knows the order of the steps."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dfstream.backends.base import Backend, find_backend
from dfstream.dsp.stft import Analysis, Synthesis
from dfstream.errors import AudioError, UsageError
from dfstream.features import Features
from dfstream.filtering import SpectralFilter, attenuation_gain
from dfstream.model import Model
from dfstream.modes.base import NetOutput, find_mode

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import ArrayLike, NDArray

__all__ = ["Parity", "Stream", "StreamStats"]

Parity = Literal["rust", "python"]

_MAX_BLOCK_FRAMES = 4096

#: Beyond this nothing is audio, and squares of spectra would leave float32.
_LOUDEST = 1e6


@dataclasses.dataclass
class StreamStats:
    """What a stream has counted since it began.

    Attributes
    ----------
    samples_in, samples_out : int
    replaced : int
        Samples that were NaN, infinite or beyond 1e6 (120 dB over full scale) and became zero.
    """

    samples_in: int = 0
    samples_out: int = 0
    replaced: int = 0


class Stream:
    """Enhance speech as it arrives.

    `process` takes any number of samples and returns those that became ready (whole hops, maybe none).
    Joined together and ended with `flush`, ``y[delay_samples:]`` lines up with the input and has its
    length. The joined output does not depend on how the input was cut, bit for bit.

    Parameters
    ----------
    model : Model, str, Path or None
        As for `Model.load`; None is the bundled model.
    mode : str
        How the graphs are driven: ``incremental``, ``streaming``, ``stateful-h0`` (all exact) or
        ``stateless-window-last`` (see MODES.md).
    backend : str or Backend
        What runs them.
    sample_rate : int, Hz
        Rate of the audio; must be the model's.
    parity : "rust" or "python"
        Whether the stream starts and ends as DeepFilterNet's streaming Rust engine does, or as its
        Python package on a whole file (the first ``conv_lookahead`` feature frames are not fed, zero
        *features* follow the last). They differ in the first and last frames only.
    block_frames : int
        Hops that go through the network in one call. One is right for live audio. Larger blocks are
        quicker and return their samples later; results differ within float32 rounding.
    same_length : bool
        Return exactly as many samples as were given, beginning with silence. The wait for a whole block,
        up to ``hop * block_frames - 1`` samples, is then part of `delay_samples`.
    atten_lim_db : float or None, dB
        Largest attenuation of the noise; None is no limit, 0 the noisy signal, delayed.
    post_filter : float
        Strength (beta) of libDF's post-filter: 0 is off, 0.02 usual, 0.05 strong.
    threads : int
        Threads of the backend; more than one does not help a stream.

    Raises
    ------
    UsageError
        An argument out of range or an unknown name.
    AudioError
        A sample rate other than the model's.
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
    _filled: int
    _frames: int
    _flushed: bool
    _lsnr_db: float

    def __init__(
        self,
        model: Model | str | Path | None = None,
        *,
        mode: str = "incremental",
        backend: str | Backend = "ort-cpu",
        sample_rate: int = 48_000,
        parity: Parity = "rust",
        block_frames: int = 1,
        same_length: bool = False,
        atten_lim_db: float | None = None,
        post_filter: float = 0.0,
        threads: int = 1,
    ) -> None:
        if parity not in ("rust", "python"):
            raise UsageError(f"parity = {parity!r}, expected 'rust' or 'python'")
        _check_range("block_frames", block_frames, 1, _MAX_BLOCK_FRAMES)
        _check_range("post_filter", post_filter, 0.0, 1.0)
        if atten_lim_db is not None:
            _check_range("atten_lim_db", atten_lim_db, 0.0, float("inf"))
        mode_class = find_mode(mode)
        self._backend = backend if isinstance(backend, Backend) else find_backend(backend, threads=threads)
        self._model = Model.load(model)
        config = self._config = self._model.config
        if sample_rate != config.sample_rate:
            raise AudioError(
                f"sample rate {sample_rate} Hz, the model {self._model.name} runs at {config.sample_rate} Hz",
                hint=f"resample the audio to {config.sample_rate} Hz first",
            )
        self._parity = parity
        self._same_length = same_length
        self._post_filter = float(post_filter)
        self._noisy_gain = attenuation_gain(atten_lim_db)
        self._block = block_frames * config.hop_size

        self._analysis = Analysis(config.fft_size, config.hop_size, block_frames)
        self._features = Features(config, block_frames)
        self._mode = mode_class(self._model, self._backend)
        self._filter = SpectralFilter(config, block_frames)
        self._synthesis = Synthesis(config.fft_size, config.hop_size, block_frames)
        self._pending = np.zeros(self._block, np.float32)
        self._begin()

    # -- what it is --------------------------------------------------------------------------------

    @property
    def model(self) -> Model:
        """The model it runs."""
        return self._model

    @property
    def delay_samples(self) -> int:
        """Samples by which the output lags the input."""
        return self._config.delay_samples + (self._block - 1 if self._same_length else 0)

    @property
    def hop_size(self) -> int:
        """Samples of one hop."""
        return self._config.hop_size

    @property
    def lsnr_db(self) -> float:
        """The network's estimate of the local SNR at the newest frame, in dB; NaN before the first."""
        return self._lsnr_db

    # -- audio -------------------------------------------------------------------------------------

    def process(self, x: ArrayLike) -> NDArray[np.float32]:
        """Take the next samples and return those that became ready.

        Parameters
        ----------
        x : array_like of floats, shape (n,)
            Any n, 0 included. Full scale is 1; nothing is clipped.

        Returns
        -------
        ndarray[float32], shape (k,)
            A multiple of the block, or n with ``same_length``. Yours to keep.

        Raises
        ------
        AudioError
            Not one-dimensional, or not of a floating type.
        UsageError
            The stream has been flushed; `reset` begins a new one.
        """
        if self._flushed:
            raise UsageError("the stream has been flushed", hint="call reset() to begin a new one")
        samples = self._clean(_checked(x))
        self.stats.samples_in += len(samples)
        ready = [self._run_block(block) for block in self._blocks(samples)]
        return self._give(ready, len(samples) if self._same_length else None)

    def flush(self) -> NDArray[np.float32]:
        """End the stream: return all samples that are still inside, so that none of the input is lost.

        Returns
        -------
        ndarray[float32], shape (k,)
            Brings the joined output to the input's length plus `delay_samples`. Empty when called again.
        """
        if self._flushed:
            return np.zeros(0, np.float32)
        self._flushed = True
        total = self.stats.samples_in + self.delay_samples
        ready = self._tail_python() if self._parity == "python" else self._tail_rust()
        return self._give(ready, total - self.stats.samples_out)

    def reset(self) -> None:
        """Forget everything and begin anew, as a fresh stream does."""
        for part in (self._analysis, self._features, self._mode, self._filter, self._synthesis):
            part.reset()
        self._begin()

    # -- the signal's way --------------------------------------------------------------------------

    def _run_block(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Take T hops all the way."""
        spec = self._analysis.process(x)
        feat_erb, feat_spec = self._features.process(spec)
        return self._run_frames(spec, feat_erb, feat_spec)

    def _run_frames(
        self, spec: NDArray[np.complex64], feat_erb: NDArray[np.float32], feat_spec: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        net = self._step(feat_erb, feat_spec)
        enhanced = self._filter.process(spec, net.m[0, 0], net.coefs[0], self._post_filter, self._noisy_gain)
        return self._synthesis.process(enhanced).copy()

    def _step(self, feat_erb: NDArray[np.float32], feat_spec: NDArray[np.float32]) -> NetOutput:
        """Run the network; in Python's way not on the frames that only look ahead of the first one."""
        T = feat_erb.shape[2]
        skipped = (
            min(T, max(0, self._config.conv_lookahead - self._frames)) if self._parity == "python" else 0
        )
        self._frames += T
        if skipped == T:
            return self._no_output(T)
        net = self._mode.step(
            np.ascontiguousarray(feat_erb[:, :, skipped:]), np.ascontiguousarray(feat_spec[:, :, skipped:])
        )
        self._lsnr_db = float(net.lsnr[0, -1, 0])
        if not skipped:
            return net
        before = self._no_output(skipped)
        return NetOutput(
            *(np.concatenate(pair, axis) for *pair, axis in zip(before, net, (1, 2, 1), strict=True))
        )

    def _no_output(self, T: int) -> NetOutput:
        """Silence for frames before the signal."""
        c = self._config
        shapes = (1, T, 1), (1, 1, T, c.nb_erb), (1, T, c.nb_df, 2 * c.df_order)
        return NetOutput(*(np.zeros(shape, np.float32) for shape in shapes))

    # -- the end -----------------------------------------------------------------------------------

    def _tail_rust(self) -> list[NDArray[np.float32]]:
        """Feed zero samples: whole hops, then as many hops as the delay."""
        hops = -(-self._filled // self.hop_size) + -(-self._config.delay_samples // self.hop_size)
        return self._feed_zeros(hops)

    def _tail_python(self) -> list[NDArray[np.float32]]:
        """Feed one window of zero samples and drop the last part hop, then zero *features* and spectra."""
        hops = (self._filled + self._config.fft_size) // self.hop_size
        ready = self._feed_zeros(hops)
        c, block = self._config, self._block // self.hop_size
        for start in range(0, c.delay_frames, block):
            T = min(block, c.delay_frames - start)
            feat_erb, feat_spec = (
                np.zeros((1, 1, T, c.nb_erb), np.float32),
                np.zeros((1, 2, T, c.nb_df), np.float32),
            )
            ready.append(self._run_frames(np.zeros((T, c.bins), np.complex64), feat_erb, feat_spec))
        return ready

    def _feed_zeros(self, hops: int) -> list[NDArray[np.float32]]:
        """Run the samples that wait for their block, followed by zeros, ``hops`` in all."""
        rest = np.zeros(hops * self.hop_size, np.float32)
        rest[: self._filled] = self._pending[: self._filled]
        self._filled = 0
        return [self._run_block(rest[i : i + self._block]) for i in range(0, len(rest), self._block)]

    # -- chunks ------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self.stats = StreamStats()
        self._filled = 0
        self._frames = 0
        self._flushed = False
        self._lsnr_db = float("nan")
        # what same_length gives out before the first block is ready
        self._ready = np.zeros(self._block - 1 if self._same_length else 0, np.float32)

    def _blocks(self, x: NDArray[np.float32]) -> Any:
        """Cut into blocks what waits and what is new; keep the rest."""
        start = 0
        if self._filled:
            start = min(self._block - self._filled, len(x))
            self._pending[self._filled : self._filled + start] = x[:start]
            self._filled += start
            if self._filled == self._block:
                self._filled = 0
                yield self._pending
        while len(x) - start >= self._block:
            yield x[start : start + self._block]
            start += self._block
        if start < len(x):
            self._filled = len(x) - start
            self._pending[: self._filled] = x[start:]

    def _give(self, ready: list[NDArray[np.float32]], count: int | None) -> NDArray[np.float32]:
        """Return what is ready, or the first ``count`` samples of it, keeping the rest."""
        if not len(self._ready) and len(ready) == 1 and (count is None or count == len(ready[0])):
            y = ready[0]
        else:
            joined = np.concatenate([self._ready, *ready])
            count = len(joined) if count is None else count
            y, self._ready = joined[:count], joined[count:].copy()
        self.stats.samples_out += len(y)
        return y

    def _clean(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Replace what is no audio: one such sample would poison the recurrent states for ever."""
        if np.dot(x, x) < _LOUDEST**2:  # one cheap sum, false for NaN too; looked into only if it fails
            return x
        audible = np.abs(x) < _LOUDEST
        self.stats.replaced += int(x.size - np.count_nonzero(audible))
        return np.where(audible, x, np.float32(0))


def _checked(x: ArrayLike) -> NDArray[np.float32]:
    samples = np.asarray(x)
    if samples.ndim != 1:
        raise AudioError(
            f"audio of shape {samples.shape}, expected one channel of shape (n,)",
            hint="run one Stream per channel",
        )
    if not np.issubdtype(samples.dtype, np.floating) and samples.size:
        raise AudioError(
            f"audio of type {samples.dtype}, expected float32 with full scale 1",
            hint="divide 16-bit samples by 32768",
        )
    return np.ascontiguousarray(samples, dtype=np.float32)


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not isinstance(value, (int, float, np.integer, np.floating)) or not low <= value <= high:
        raise UsageError(f"{name} = {value!r}, expected {low:g} to {high:g}")
