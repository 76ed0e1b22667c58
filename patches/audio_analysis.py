"""Samples to spectra and features inside a graph, and spectra back to samples.

The formulas are those of `dfstream.dsp`, whose constants they share. Frames are cut and put together for
any number of hops a call; the running means of a block are a matrix product, as no loop may be needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dfstream.chunks import LOUDEST
from dfstream.dsp.erb import POWER_FLOOR, erb_widths
from dfstream.dsp.norm import LEAST_MEAN, LEVEL_RANGE_DB, initial_erb_norm, initial_unit_norm
from dfstream.dsp.stft import analysis_scale, vorbis_window

from .audio_dft import Dft
from .emitting import sizes

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs
    from numpy.typing import NDArray

    from dfstream.config import ModelConfig

    from .audio_state import PackedState
    from .emitting import Emitter

__all__ = ["Features", "Transforms", "band_of_bin", "frame_numbers"]

_INT64 = 7

#: Stands below the means of levels, which have no least value.
_NO_LEAST = -1e30


def frame_numbers(emit: Emitter, audio: gs.Tensor, hop_size: int) -> gs.Tensor:
    """Emit 0, 1, 2, ... for the frames of samples [B, T * hop]: float32 [T]."""
    count = emit("Div", [emit.length(audio, 1, "frames/samples"), sizes(hop_size)], "frames/count")
    ones = emit("Expand", [np.float32(1), count], "frames/ones")
    return emit("Sub", [emit("CumSum", [ones, np.int64(0)], "frames/sums"), np.float32(1)], "frames/numbers")


class Transforms:
    """Analysis and synthesis; see `dfstream.dsp.stft`.

    Parameters
    ----------
    config : ModelConfig
    numbers : Tensor, [T], optional
        Those of `frame_numbers`; None where every call brings one hop.
    """

    def __init__(self, config: ModelConfig, numbers: gs.Tensor | None) -> None:
        self._config, self._numbers, self._one_hop = config, numbers, numbers is None
        self._dft = Dft.of_size(config.fft_size)
        self._window = vorbis_window(config.fft_size).astype(np.float64)

    def analyse(self, emit: Emitter, state: PackedState, audio: gs.Tensor) -> gs.Tensor:
        """Emit the spectra [B, 2, T, bins], re and im, of samples [B, T * hop]."""
        c, order = self._config, self._dft.order
        # a NaN compares false: what is no audio becomes zero before it gets into a state
        audible = emit("Less", [emit("Abs", [audio], "input/size"), np.float32(LOUDEST)], "input/audible")
        audio = emit("Where", [audible, audio, np.float32(0)], "input/clean")
        overlap = c.fft_size - c.hop_size
        past = state.take("analysis_mem", [overlap], "newest samples of the input")
        joined = emit("Concat", [past, audio], "analysis/samples", axis=1)
        replaced = self._one_hop and overlap == c.hop_size
        after = audio if replaced else emit.slice(joined, -overlap, None, 1, "analysis/after")
        state.keep("analysis_mem", after)
        index = order[None] if self._numbers is None else self._frame_indices(emit, self._numbers)
        frames = emit("Gather", [joined, index], "analysis/frames", axis=1)
        scale = analysis_scale(c.fft_size, c.hop_size)
        windowed = emit("Mul", [frames, (self._window * scale)[order]], "analysis/windowed")
        spec = self._dft.forward(emit, windowed, "analysis/dft")
        if self._one_hop:
            return emit.reshape(spec, (0, 2, 1, -1), "spectrum")
        return emit("Transpose", [spec], "spectrum", perm=[0, 2, 1, 3])

    def _frame_indices(self, emit: Emitter, numbers: gs.Tensor) -> gs.Tensor:
        """Emit which samples make up each frame, [T, N1, N2]."""
        starts = emit("Mul", [numbers, np.float32(self._config.hop_size)], "analysis/starts")
        starts = emit("Cast", [starts], "analysis/whole_starts", to=_INT64)
        column = emit.reshape(starts, (-1, 1, 1), "analysis/column")
        return emit("Add", [column, self._dft.order], "analysis/indices")

    def synthesise(self, emit: Emitter, state: PackedState, spec: gs.Tensor, audio: gs.Variable) -> None:
        """Emit ``audio`` [B, T * hop] of spectra [B, 2, T, bins]."""
        hop, size = self._config.hop_size, self._config.fft_size
        if self._one_hop:
            spec = emit.reshape(spec, (0, 1, 2, -1), "synthesis/bins")
        else:
            spec = emit("Transpose", [spec], "synthesis/bins", perm=[0, 2, 1, 3])
        frames = emit(
            "Mul", [self._dft.inverse(emit, spec, "synthesis/dft"), self._window], "synthesis/frames"
        )
        cuts = [min(hop, size - start) for start in range(0, size, hop)]
        total, *later = emit.split(frames, cuts, 2, "synthesis/parts")
        for age, part in enumerate(later, 1):
            width = cuts[age]
            name = "synthesis_mem" if age == 1 else f"synthesis_mem_{age}"
            meaning = f"part {age} of the last {age} frames, which coming hops add"
            past = state.take(name, (age, width), meaning)
            if self._one_hop and age == 1:
                due, after = past, part
            else:
                waiting = emit("Concat", [past, part], f"{name}/waiting", axis=1)
                due = emit.slice(waiting, 0, -age, 1, f"{name}/due")
                after = emit.slice(waiting, -age, None, 1, f"{name}/after")
            state.keep(name, after)
            if width < hop:
                due = emit("Pad", [due, sizes(0, 0, 0, 0, 0, hop - width)], f"{name}/filled")
            total = emit("Add", [total, due], "synthesis/sum")
        emit.into(audio, "Reshape", [total, sizes(0, -1)])


class Features:
    """What the encoder reads, with its running means; see `dfstream.features`.

    Parameters
    ----------
    config : ModelConfig
    numbers : Tensor, [T], optional
        As for `Transforms`.
    """

    def __init__(self, config: ModelConfig, numbers: gs.Tensor | None) -> None:
        self._config, self._numbers = config, numbers

    def compute(
        self,
        emit: Emitter,
        state: PackedState,
        spec: gs.Tensor,
        feat_erb: gs.Variable,
        feat_spec: gs.Variable,
    ) -> None:
        """Emit ``feat_erb`` [B, 1, T, bands] and ``feat_spec`` [B, 2, T, df bins] of spectra."""
        E, D = self._config.nb_erb, self._config.nb_df
        power = emit("ReduceSum", [emit("Mul", [spec, spec], "features/squares"), sizes(1)], "features/power")
        shares = np.zeros((self._config.bins, E))
        bands = band_of_bin(self._config)
        shares[np.arange(len(bands)), bands] = 1 / np.bincount(bands)[bands]
        mean = emit("Add", [emit("MatMul", [power, shares], "features/bands"), POWER_FLOOR], "features/floor")
        levels = emit("Mul", [emit("Log", [mean], "features/log"), 10 / np.log(10)], "features/levels")
        size = emit("Sqrt", [emit.slice(power, 0, D, 3, "features/low_power")], "features/size")
        values = emit("Concat", [levels, size], "features/values", axis=3)
        means = self._means(emit, state, values)
        level_mean, size_mean = emit.split(means, (E, D), 3, "features/mean")
        above = emit("Sub", [levels, level_mean], "features/above")
        emit.into(feat_erb, "Div", [above, LEVEL_RANGE_DB])
        low = emit.slice(spec, 0, D, 3, "features/low")
        emit.into(feat_spec, "Div", [low, emit("Sqrt", [size_mean], "features/root")])

    def _means(self, emit: Emitter, state: PackedState, values: gs.Tensor) -> gs.Tensor:
        """Emit the running means of values [B, 1, T, E + D], that frame included."""
        E, D = self._config.nb_erb, self._config.nb_df
        meaning = f"running means: {E} band levels in dB, {D} magnitudes; all zero stands for the first ones"
        given = state.take("norms", [E + D], meaning)
        first = np.concatenate([initial_erb_norm(E), initial_unit_norm(D)])
        # a mean magnitude is never zero once there was a frame
        fresh = emit(
            "Equal", [emit.slice(given, E + D - 1, None, 1, "norms/last"), np.float32(0)], "norms/new"
        )
        before = emit("Where", [fresh, first, given], "norms/first")
        before = emit.reshape(before, (0, 1, 1, -1), "norms/row")
        least = np.concatenate([np.full(E, _NO_LEAST), np.full(D, LEAST_MEAN)])
        if self._numbers is None:
            means = emit("Max", [self._one_step(emit, values, before), least], "norms/means")
            state.keep("norms", means)
        else:
            means = emit("Max", [self._many_steps(emit, values, before, self._numbers), least], "norms/means")
            state.keep("norms", emit.slice(means, -1, None, 2, "norms/after"))
        return means

    def _one_step(self, emit: Emitter, values: gs.Tensor, before: gs.Tensor) -> gs.Tensor:
        alpha = np.float32(self._config.norm_alpha)
        new = emit("Mul", [values, np.float32(1) - alpha], "norms/new_share")
        return emit("Add", [new, emit("Mul", [before, alpha], "norms/old_share")], "norms/step")

    def _many_steps(
        self, emit: Emitter, values: gs.Tensor, before: gs.Tensor, numbers: gs.Tensor
    ) -> gs.Tensor:
        """``s[t] = a^(t+1) s + (1 - a) sum over u <= t of a^(t-u) v[u]``, with a triangular matrix [T, T]."""
        alpha = np.float32(self._config.norm_alpha)
        log = np.log(np.float64(alpha))
        column = emit.reshape(numbers, (-1, 1), "norms/column")
        age = emit("Sub", [column, numbers], "norms/age")
        decay = emit("Exp", [emit("Mul", [age, log], "norms/exponent")], "norms/decay")
        weight = emit("Mul", [decay, np.float32(1) - alpha], "norms/weight")
        future = emit("Less", [age, np.float32(0)], "norms/future")
        matrix = emit("Where", [future, np.float32(0), weight], "norms/matrix")
        elapsed = emit("Add", [column, np.float32(1)], "norms/elapsed")
        left = emit("Exp", [emit("Mul", [elapsed, log], "norms/old_exponent")], "norms/old_decay")
        new = emit("MatMul", [matrix, values], "norms/new_share")
        return emit("Add", [new, emit("Mul", [left, before], "norms/old_share")], "norms/steps")


def band_of_bin(config: ModelConfig) -> NDArray[np.int64]:
    """Return the ERB band of each bin, int64 [bins]."""
    widths = erb_widths(config.sample_rate, config.fft_size, config.nb_erb, config.min_nb_erb_freqs)
    return np.repeat(np.arange(len(widths)), widths).astype(np.int64)
