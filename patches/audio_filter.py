"""From the network's results to the enhanced spectrum inside a graph; see `dfstream.filtering`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dfstream.dsp.postfilter import LEAST_GAIN

from .audio_analysis import band_of_bin
from .emitting import sizes

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

    from dfstream.config import ModelConfig

    from .audio_state import PackedState
    from .emitting import Emitter

__all__ = ["SpectralFilter"]

_TIME, _WIDTH, _INT64 = 2, 3, 7


class SpectralFilter:
    """Mask and deep filter in step with the lookaheads, post-filter, limit of the attenuation.

    Spectra are [B, 2, T, bins], re and im.

    Parameters
    ----------
    config : ModelConfig
    numbers : Tensor, [T], optional
        As for `dfstream.patches.audio_analysis.Transforms`.
    """

    def __init__(self, config: ModelConfig, numbers: gs.Tensor | None) -> None:
        self._config, self._numbers = config, numbers
        self._past_taps = config.df_order - 1 - config.df_lookahead
        #: Frames by which the network's results wait for the output frame.
        self._held = config.delay_frames - config.conv_lookahead

    def apply(
        self, emit: Emitter, state: PackedState, spec: gs.Tensor, m: gs.Tensor, coefs: gs.Tensor,
        beta: gs.Variable, noisy_gain: gs.Variable,
    ) -> gs.Tensor:  # fmt: skip
        """Emit the enhanced spectra of the frames ``delay_frames`` back.

        Parameters
        ----------
        emit : Emitter
        state : PackedState
        spec : Tensor
            Noisy spectra of the newest frames.
        m : Tensor, [B, 1, T, bands]
        coefs : Tensor, [B, T, df bins, 2 * taps]
            What the network gave for them.
        beta, noisy_gain : Variable, [P]
        """
        c = self._config
        if c.filters_masked:
            noisy, filtered, above = self._masked_first(emit, state, spec, m)
        else:
            noisy, filtered, above = self._noisy_first(emit, state, spec, m)
        taps = emit("Transpose", [coefs], "taps/planar", perm=[0, 3, 1, 2])
        taps = state.history(
            taps, self._held, "coefs", "taps that wait, (tap, re and im)", (2 * c.df_order, c.nb_df)
        )
        low = self._deep_filter(emit, filtered, self._frames(emit, taps, 0, self._held, "taps"))
        enhanced = low if c.nb_df == c.bins else emit("Concat", [low, above], "enhanced/bins", axis=_WIDTH)
        enhanced = self._post_filter(emit, enhanced, noisy, beta)
        share = emit.reshape(noisy_gain, (-1, 1, 1, 1), "limit/share")
        difference = emit("Sub", [noisy, enhanced], "limit/difference")
        return emit("Add", [enhanced, emit("Mul", [share, difference], "limit/noisy")], "limit/limited")

    def _frames(self, emit: Emitter, history: gs.Tensor, first: int, past: int, name: str) -> gs.Tensor:
        """Take the T frames from ``first`` on of a history with ``past`` old ones."""
        if not past:
            return history
        if self._numbers is None:
            return emit.slice(history, first, first + 1, _TIME, f"{name}/frame")
        return emit.slice(history, first, None if first == past else first - past, _TIME, f"{name}/frame")

    # -- masks -------------------------------------------------------------------------------------

    def _noisy_first(
        self, emit: Emitter, state: PackedState, spec: gs.Tensor, m: gs.Tensor
    ) -> tuple[gs.Tensor, gs.Tensor, gs.Tensor]:
        """DFN3: return noisy frames t, the frames that the deep filter reads, masked bins above it."""
        c = self._config
        past = c.delay_frames + self._past_taps
        history = state.history(spec, past, "noisy", "noisy spectra, re and im", (2, c.bins))
        noisy = self._frames(emit, history, self._past_taps, past, "noisy")
        gains = state.history(m, self._held, "gains", "band gains that wait", (1, c.nb_erb))
        gains = self._frames(emit, gains, 0, self._held, "gains")
        return noisy, history, self._masked(emit, noisy, gains, c.nb_df)

    def _masked_first(
        self, emit: Emitter, state: PackedState, spec: gs.Tensor, m: gs.Tensor
    ) -> tuple[gs.Tensor, gs.Tensor, gs.Tensor]:
        """DFN2: the same, where the deep filter reads masked frames, also those ahead of frame t."""
        c = self._config
        history = state.history(spec, c.delay_frames, "noisy", "noisy spectra, re and im", (2, c.bins))
        known = self._frames(emit, history, self._held, c.delay_frames, "known")
        masked = state.history(
            self._masked(emit, known, m, 0),
            c.df_order - 1,
            "masked",
            "masked spectra, re and im",
            (2, c.bins),
        )
        noisy = self._frames(emit, history, 0, c.delay_frames, "noisy")
        current = self._frames(emit, masked, self._past_taps, c.df_order - 1, "masked")
        return noisy, masked, emit.slice(current, c.nb_df, None, _WIDTH, "masked/above")

    def _masked(self, emit: Emitter, spec: gs.Tensor, m: gs.Tensor, first: int) -> gs.Tensor:
        """Emit the bins from ``first`` on, each times the gain of its band."""
        bands = band_of_bin(self._config)[first:]
        # a product with ones and zeros: exact, and quicker than picking values one by one
        gains = emit("MatMul", [m, np.eye(self._config.nb_erb)[:, bands]], "mask/gains")
        above = emit.slice(spec, first, None, _WIDTH, "mask/noisy") if first else spec
        return emit("Mul", [above, gains], "mask/masked")

    # -- deep filter -------------------------------------------------------------------------------

    def _deep_filter(self, emit: Emitter, history: gs.Tensor, taps: gs.Tensor) -> gs.Tensor:
        """Emit ``sum over o of C[o, t] X[t + o]``, [B, 2, T, df bins].

        Parameters
        ----------
        emit : Emitter
        history : Tensor
            Spectra; the oldest that frame 0 needs comes first.
        taps : Tensor, [B, 2 * taps, T, df bins]
            Oldest first, (re, im) inside.
        """
        c = self._config
        parts, bins = 2 * c.df_order, c.nb_df
        low = history if bins == c.bins else emit.slice(history, 0, bins, _WIDTH, "taps/low")
        spectra = emit.reshape(self._windows(emit, low), (0, 1, parts, -1, bins), "taps/spectra")
        re, im = np.arange(0, parts, 2), np.arange(1, parts, 2)
        # (re, im) of X times (re, im) of C, minus in the second half; then times (im, re) of C
        turned = emit("Gather", [taps, np.stack([[*re, *im], [*im, *re]])], "taps/turned", axis=1)
        products = emit("Mul", [spectra, turned], "taps/products")
        products = emit.reshape(products, (0, 2, parts, -1), "taps/flat")
        signs = np.ones((2, 1, parts))
        signs[0, 0, c.df_order :] = -1
        return emit.reshape(emit("MatMul", [signs, products], "taps/sums"), (0, 2, -1, bins), "taps/filtered")

    def _windows(self, emit: Emitter, low: gs.Tensor) -> gs.Tensor:
        """Emit the frames that each tap meets, [B, 2, taps, T, df bins] or, of one frame, without T."""
        c = self._config
        if self._numbers is not None:
            first = emit("Cast", [self._numbers], "taps/first", to=_INT64)
            index = emit("Add", [np.arange(c.df_order)[:, None], first], "taps/index")
            return emit("Gather", [low, index], "taps/window", axis=_TIME)
        past = c.df_order - 1 if c.filters_masked else c.delay_frames + self._past_taps
        return low if past < c.df_order else emit.slice(low, 0, c.df_order, _TIME, "taps/window")

    # -- what comes last ---------------------------------------------------------------------------

    def _post_filter(self, emit: Emitter, spec: gs.Tensor, noisy: gs.Tensor, beta: gs.Variable) -> gs.Tensor:
        """Emit ``Y (1 + beta) / (1 + beta / sin^2(pi g / 2))``; beta 0 changes nothing."""

        def size(of: gs.Tensor, name: str) -> gs.Tensor:
            squares = emit("Mul", [of, of], f"post_filter/{name}_squares")
            power = emit("ReduceSum", [squares, sizes(1)], f"post_filter/{name}_power")
            return emit("Sqrt", [power], f"post_filter/{name}")

        least = emit("Add", [size(noisy, "noisy"), LEAST_GAIN], "post_filter/least")
        gain = emit("Div", [size(spec, "enhanced"), least], "post_filter/ratio")
        gain = emit("Clip", [gain, LEAST_GAIN, np.float32(1)], "post_filter/gain")
        sine = emit(
            "Sin", [emit("Mul", [gain, np.float32(np.pi / 2)], "post_filter/phase")], "post_filter/sine"
        )
        bins = self._config.bins
        reached = (np.arange(bins) < bins - bins % 4).astype(np.float32)  # libDF leaves the last ones alone
        beta = emit.reshape(beta, (-1, 1, 1, 1), "post_filter/beta")
        strength = emit("Mul", [beta, reached], "post_filter/strength")
        over = emit("Div", [strength, emit("Mul", [sine, sine], "post_filter/square")], "post_filter/over")
        divisor = emit("Add", [over, np.float32(1)], "post_filter/divisor")
        raised = emit("Add", [strength, np.float32(1)], "post_filter/raised")
        factor = emit("Div", [raised, divisor], "post_filter/factor")
        return emit("Mul", [spec, factor], "post_filter/filtered")
