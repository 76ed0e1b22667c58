"""The whole engine by hand: float64 equations around the four streaming graphs, one frame a call.

An independent second opinion on ``dfstream.engine``, ``filtering``, ``gating`` and ``modes``. The graphs are
run by plain onnxruntime; the order of the steps is libDF's ``tract.rs: process``, the decisions are those of
its ``apply_stages``.
"""

from __future__ import annotations

import dataclasses

import numpy as np

import naive
import oracle
from dfstream.dsp.erb import erb_widths
from dfstream.modes.base import find_mode

LEAST_GAIN = 1e-12


@dataclasses.dataclass
class Options:
    """As the arguments of `dfstream.Stream`; ``beta`` and ``noisy_gain`` may be one value for each hop."""

    thresholds: tuple[float, float, float] = (-15.0, 35.0, 35.0)
    channel_mask: str = "none"
    kind: str = "spectrum"
    beta: float | np.ndarray = 0.0
    noisy_gain: float | np.ndarray = 0.0
    #: False: the post-filter reaches every bin, which libDF's does not
    leave_remainder: bool = True
    #: True: of a deep-filter decoder that is not run, only the GRU waits, its convolution moves on
    context_moves: bool = False


@dataclasses.dataclass
class Result:
    y: np.ndarray
    """[C, n], as late as the stream's."""
    lsnr: np.ndarray
    """[frames], dB."""
    decisions: list[str]
    """One of ``zeros``, ``noisy``, ``mask`` and ``both`` a frame."""


def decide(lsnr: float, thresholds: tuple[float, float, float]) -> str:
    """The first condition that holds, strictly."""
    low, max_erb, max_df = thresholds
    if lsnr < low:
        return "zeros"
    if lsnr > max_erb:
        return "noisy"
    return "mask" if lsnr > max_df else "both"


def features(spec, config, widths):
    """Spectra [C, T, bins] to what the encoder reads, float32."""
    levels = [naive.mean_norm(naive.band_mean_power_db(s, widths), config.norm_alpha) for s in spec]
    low = np.array([naive.unit_norm(s[:, : config.nb_df], config.norm_alpha) for s in spec])
    return {
        "feat_erb": np.array(levels, np.float32)[:, None],
        "feat_spec": np.stack([low.real, low.imag], axis=1).astype(np.float32),
    }


def network(model, feats, thresholds, context_moves=False):
    """Gains [C, T, bands], taps [C, T, df bins, 2 taps], local SNR, decisions; decoders wait their turn."""
    graphs = model.graphs(find_mode("streaming").recipe())
    c, (C, _, T, _) = model.config, feats["feat_erb"].shape
    states = dict(oracle.Stepper(*graphs.values(), batch=C).states)
    gains, coefs = np.zeros((C, T, c.nb_erb)), np.zeros((C, T, c.nb_df, 2 * c.df_order))
    lsnr, decisions = np.zeros(T), []
    for t in range(T):
        tensors = {name: np.ascontiguousarray(feat[:, :, t : t + 1]) for name, feat in feats.items()}

        def call(stem):
            out = oracle.run(graphs[stem], {**tensors, **states})  # noqa: B023
            tensors.update(out)  # noqa: B023
            for name in states:
                after = name[:-1] + "1" if name.endswith("h0") else f"{name}_out"
                states[name] = out.get(after, states[name])

        call("enc_conv_streaming")
        call("enc_gru_streaming")
        tensors["emb"] = tensors["emb_out"]
        lsnr[t] = tensors["lsnr"][0, 0, 0]
        decisions.append(decide(lsnr[t], thresholds))
        if decisions[t] in ("mask", "both"):
            call("erb_dec_streaming")
            gains[:, t] = tensors["m"][:, 0, 0]
        if decisions[t] == "noisy":
            gains[:, t] = 1
        if decisions[t] == "both":
            call("df_dec_streaming")
            coefs[:, t] = tensors["coefs"][:, 0]
        elif context_moves:
            waiting = {name: state for name, state in states.items() if name.endswith("h0")}
            call("df_dec_streaming")
            states.update(waiting)
    return gains, coefs, lsnr, decisions


def mask_post_filter(m, beta):
    """DeepFilterNet2's, on gains."""
    s = np.maximum(m * np.sin(np.pi * m / 2), LEAST_GAIN)
    return (1 + beta) * m / (1 + beta * (m / s) ** 2)


def spectrum_post_filter(noisy, enhanced, beta, leave_remainder=True):
    """libDF's, over all channels of a frame end to end, four values at a time."""
    gain = np.clip(np.abs(enhanced) / (np.abs(noisy) + LEAST_GAIN), LEAST_GAIN, 1)
    factor = (1 + beta) / (1 + beta / np.sin(np.pi * gain / 2) ** 2)
    remainder = factor.size % 4
    if remainder and leave_remainder:
        factor.reshape(-1)[-remainder:] = 1
    return enhanced * factor


def noisy_frame(spec, t):
    """Frame t; zeros before the first. Those are deep filtered too, by taps that reach the first frames."""
    return spec[:, t] if t >= 0 else np.zeros_like(spec[:, 0])


def masked_frame(spec, gains, t, config, widths):
    """Frame t under its gains, which the network gives ``conv_lookahead`` frames later."""
    if t < 0:
        return noisy_frame(spec, t)
    now = gains[:, t + config.conv_lookahead, None]
    rows = [naive.apply_band_gains(s[t : t + 1], g, widths) for s, g in zip(spec, now, strict=True)]
    return np.concatenate(rows)


def enhanced_frame(spec, gains, coefs, decision, t, config, widths):
    """Frame t masked and, where that was decided, its low bins deep filtered."""
    out = masked_frame(spec, gains, t, config, widths)
    if decision == "both":
        past = config.df_order - 1 - config.df_lookahead
        taps = coefs[:, t + config.conv_lookahead]
        out[:, : config.nb_df] = 0
        for o, source in enumerate(range(t - past, t + config.df_lookahead + 1)):
            if config.filters_masked:
                frame = masked_frame(spec, gains, source, config, widths)
            else:
                frame = noisy_frame(spec, source)
            out[:, : config.nb_df] += frame[:, : config.nb_df] * (
                taps[..., 2 * o] + 1j * taps[..., 2 * o + 1]
            )
    return out


def enhance(model, x, options: Options | None = None) -> Result:
    """Enhance [C, n], whole hops, as a stream of one frame a block does."""
    options, c = options or Options(), model.config
    widths = erb_widths(c.sample_rate, c.fft_size, c.nb_erb, c.min_nb_erb_freqs)
    spec = np.array([naive.analysis(channel, c.fft_size, c.hop_size) for channel in x])
    C, T, _ = spec.shape
    beta, noisy_gain = np.broadcast_to(options.beta, T), np.broadcast_to(options.noisy_gain, T)
    gains, coefs, lsnr, decisions = network(
        model, features(spec, c, widths), options.thresholds, options.context_moves
    )
    if options.channel_mask != "none":
        reduce = {"max": np.max, "mean": np.mean}[options.channel_mask]
        gains[:] = reduce(gains, axis=0)
    if options.kind == "mask":
        from_network = np.isin(decisions, ("mask", "both"))
        for n in np.flatnonzero(from_network & (beta > 0)):
            gains[:, n] = mask_post_filter(gains[:, n], beta[n])
    out = np.zeros_like(spec)
    for n in range(c.delay_frames - c.conv_lookahead, T):
        t = n - c.delay_frames
        decision = decisions[t + c.conv_lookahead]
        noisy = noisy_frame(spec, t)
        frame = enhanced_frame(spec, gains, coefs, decision, t, c, widths)
        if options.kind == "spectrum" and beta[n] > 0 and decision in ("mask", "both"):
            frame = spectrum_post_filter(noisy, frame, beta[n], options.leave_remainder)
        out[:, n] = frame * (1 - noisy_gain[n]) + noisy * noisy_gain[n]
    y = np.array([naive.synthesis(frames, c.fft_size, c.hop_size) for frames in out])
    return Result(y.reshape(C, -1), lsnr, decisions)


def enhance_heard(model, x, options: Options | None = None, limit=1e-7) -> Result:
    """libDF v0.5.6: hops of a mean square below the limit give zeros, and nothing moves on meanwhile."""
    hops = x.reshape(len(x), -1, model.config.hop_size)
    heard = np.mean(hops.astype(np.float64) ** 2, axis=(0, 2)) >= limit
    kept = enhance(model, hops[:, heard].reshape(len(x), -1), options)
    y, lsnr = np.zeros(hops.shape), np.full(len(heard), -15.0)
    y[:, heard] = kept.y.reshape(len(x), -1, model.config.hop_size)
    lsnr[heard] = kept.lsnr
    return Result(y.reshape(len(x), -1), lsnr, kept.decisions)


def error(actual, expected) -> float:
    """Largest difference, of the expected peak."""
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    assert np.isfinite(actual).all()
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def between(values, share) -> float:
    """A limit that leaves about this share of the values below, in the widest gap thereabouts."""
    values = np.sort(values)
    near = round(share * len(values))
    around = values[max(0, near - 4) : near + 4]
    gap = int(np.argmax(np.diff(around)))
    assert around[gap + 1] - around[gap] > 4e-3, "rounding could decide"
    return float(around[gap] + around[gap + 1]) / 2


def mixed_thresholds(lsnr) -> tuple[float, float, float]:
    """Thresholds that make about a quarter of frames each mute, full, masked only and passed on."""
    return between(lsnr, 0.25), between(lsnr, 0.75), between(lsnr, 0.5)
