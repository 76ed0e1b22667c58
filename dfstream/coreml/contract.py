"""What a program has to do around the network, as plain values: for ports of the signal processing.

The network is the smaller half of an enhancer. A port in another language reads the numbers here instead
of copying them, and checks itself stage by stage with `golden_vectors`.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import numpy as np

from dfstream.backends.base import find_backend
from dfstream.chunks import LOUDEST
from dfstream.dsp.erb import POWER_FLOOR, erb_widths
from dfstream.dsp.norm import LEAST_MEAN, LEVEL_RANGE_DB, initial_erb_norm, initial_unit_norm
from dfstream.dsp.postfilter import LEAST_GAIN
from dfstream.dsp.stft import Analysis, Synthesis, analysis_scale, vorbis_window
from dfstream.features import Features
from dfstream.filtering import NO_LIMIT_DB, SpectralFilter, attenuation_gain
from dfstream.modes.base import find_network_mode

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from dfstream.config import ModelConfig
    from dfstream.coreml.flavour import StateStyle
    from dfstream.model import Model

__all__ = ["FORMAT", "contract", "description", "golden_vectors"]

#: Version of the layout of all that is written here.
FORMAT = 1

#: How the last golden vectors are made: both settings that a listener may change.
_ATTEN_LIM_DB, _BETA = 12.0, 0.02


def contract(config: ModelConfig) -> dict[str, Any]:
    """Return everything that turns the canonical graph into an enhancer.

    Ages count frames back from the newest input frame, whose age is 0. The network is called once for
    each input frame, from the first on; what it gives at once (age 0) belongs to the frame whose age is
    ``network.frame_age``. Before the first frame everything is zero but the two running means.

    Parameters
    ----------
    config : ModelConfig

    Returns
    -------
    dict of str to JSON values
        Numbers that are float32 in dfstream are the shortest decimals that read back as the same float32.
        Entries called ``formula`` and ``note`` are for people.
    """
    c = config
    return {
        "format": FORMAT,
        "sample_rate": c.sample_rate,
        "fft_size": c.fft_size,
        "hop_size": c.hop_size,
        "bins": c.bins,
        "delay_samples": c.delay_samples,
        "input": {
            "largest": LOUDEST,
            "formula": "x <- 0 where x is not a number or not |x| < largest",
            "note": "one NaN would stay in the recurrent states for ever; no hop is skipped for silence",
        },
        "window": {
            "formula": "w[i] = sin(pi/2 sin^2(pi (i + 1/2) / fft_size)), in float64",
            "values": _floats(vorbis_window(c.fft_size)),
        },
        "analysis": {
            "scale": analysis_scale(c.fft_size, c.hop_size),
            "formula": "X[k] = scale sum_i w[i] x[i] exp(-2 pi j i k / fft_size)",
            "note": "x: the last fft_size - hop_size samples, at first zeros, and the new hop behind them",
        },
        "features": _features(c),
        "network": _network(c),
        "mask": {
            "widths": erb_widths(c.sample_rate, c.fft_size, c.nb_erb, c.min_nb_erb_freqs).tolist(),
            "formula": "every bin of a band times the band's gain; lowest band first",
        },
        "deep_filter": _deep_filter(c),
        "post_filter": {
            "bins": int(SpectralFilter(c).post_filter_bins[0]),
            "least_gain": _float(LEAST_GAIN),
            "formula": "g = clip(|Y| / (|X| + least_gain), least_gain, 1); "
            "Y <- Y (1 + beta) / (1 + beta / sin^2(pi g / 2))",
            "note": "lowest bins only; X is the noisy frame of the output's age; beta 0 is off, 0.02 usual",
        },
        "attenuation_limit": {
            "none_from_db": NO_LIMIT_DB,
            "formula": "lim = 10^(-dB / 20), 0 from none_from_db on; Y <- Y (1 - lim) + X lim",
            "note": "behind the post-filter; X as there",
        },
        "synthesis": {
            "formula": "y[i] = w[i] sum over all fft_size bins k of Y[k] exp(2 pi j i k / fft_size), "
            "Y mirrored above bin fft_size / 2, imaginary parts of its first and last bin taken as zero",
            "note": "not divided by fft_size; overlapping frames are added, the first hop_size sums are done",
        },
    }


def _features(c: ModelConfig) -> dict[str, Any]:
    return {
        "alpha": _float(np.float32(c.norm_alpha)),
        "erb": {
            "power_floor": _float(POWER_FLOOR),
            "range_db": _float(LEVEL_RANGE_DB),
            "initial": _floats(initial_erb_norm(c.nb_erb)),
            "formula": "e = 10 log10(mean of |X|^2 over the band + power_floor); "
            "s <- e (1 - alpha) + s alpha; feat_erb = (e - s) / range_db",
        },
        "spec": {
            "least_mean": _float(LEAST_MEAN),
            "initial": _floats(initial_unit_norm(c.nb_df)),
            "formula": "s <- max(|X| (1 - alpha) + s alpha, least_mean); feat_spec = X / sqrt(s)",
            "note": "lowest bins only",
        },
    }


def _network(c: ModelConfig) -> dict[str, Any]:
    return {
        "inputs": {"feat_erb": [1, 1, 1, c.nb_erb], "feat_spec": [1, 2, 1, c.nb_df]},
        "outputs": {
            "lsnr": [1, 1, 1, 1],
            "mask": [1, 1, 1, c.nb_erb],
            "coefs": [1, 2 * c.df_order, 1, c.nb_df],
        },
        "lookahead": c.conv_lookahead,
        "frame_age": c.conv_lookahead,
        "note": "feat_spec: real parts, imaginary parts; coefs: channel 2 tap + (0 real, 1 imaginary); "
        "lsnr in dB, for display: no threshold acts on it",
    }


def _deep_filter(c: ModelConfig) -> dict[str, Any]:
    past_taps = c.df_order - 1 - c.df_lookahead
    return {
        "bins": c.nb_df,
        "order": c.df_order,
        "lookahead": c.df_lookahead,
        "reads": "masked" if c.filters_masked else "noisy",
        "output_age": c.delay_frames,
        "tap_ages": [c.delay_frames + past_taps - tap for tap in range(c.df_order)],
        "formula": "Y[k] = sum over taps of C[tap, k] S[k] at the tap's age, for the lowest bins; the others "
        "are the masked frame of output_age",
        "note": "taps oldest first, no conjugate; C belongs to the frame of output_age; S is the noisy or "
        "the masked frame, zero before the signal; every frame is masked with its own gains",
    }


def description(
    config: ModelConfig,
    states: Sequence[Mapping[str, Any]],
    /,
    *,
    state: StateStyle = "explicit",
    block_frames: int = 1,
    **facts: Any,
) -> dict[str, Any]:
    """Return what stands beside a package, ``X.json``: the contract, and what a caller has to carry.

    Parameters
    ----------
    config : ModelConfig
    states : sequence of mappings
        ``name``, ``output`` (of the next value; None where states live inside), ``shape``, ``dtype``.
    state : "explicit" or "coreml"
        Whether states are inputs and outputs, or live inside the package.
    block_frames : int
        Frames of one call.
    **facts
        Whatever else is known of the package.
    """
    return {
        **facts,
        "format": FORMAT,
        "state": state,
        "block_frames": block_frames,
        "states": [dict(entry) for entry in states],
        "contract": contract(config),
    }


def golden_vectors(model: Model, frames: int | None = None) -> dict[str, Any]:
    """Return a few frames of every stage, from zero states, to check a port stage by stage.

    Parameters
    ----------
    model : Model
    frames : int, optional
        Hops of the signal; two more than the delay by default, so that two frames come out.

    Returns
    -------
    dict of str to JSON values
        ``stages``, by name, in the order of the signal: ``shape``, and ``data``, base64 of little-endian
        float32 in C order. The first axis counts frames. Spectra are [frames, 2, bins], real parts first;
        features and results of the network are as the contract has them, without axes of length one.
        ``audio_out_limited`` is the output with the settings ``atten_lim_db`` and ``post_filter``.
    """
    c = model.config
    frames = c.delay_frames + 2 if frames is None else frames
    x = _signal(frames * c.hop_size, c.sample_rate)
    spec = Analysis(c.fft_size, c.hop_size, frames).process(x[None])
    feat_erb, feat_spec = Features(c, frames).process(spec)
    net = find_network_mode("incremental")(model, find_backend("ort-cpu")).step(feat_erb, feat_spec)
    beta, gain = (np.array([v], np.float32) for v in (_BETA, attenuation_gain(_ATTEN_LIM_DB)))
    results = spec, net.m[:, 0], net.coefs
    enhanced = SpectralFilter(c, frames).process(*results)
    limited = SpectralFilter(c, frames).process(*results, beta=beta, noisy_gain=gain)
    audio, audio_limited = (
        Synthesis(c.fft_size, c.hop_size, frames).process(Y).reshape(frames, -1) for Y in (enhanced, limited)
    )
    stages = {
        "audio_in": x.reshape(frames, -1),
        "spectrum": _planar(spec[0]),
        "feat_erb": feat_erb[0, 0],
        "feat_spec": feat_spec[0].swapaxes(0, 1),
        "lsnr": net.lsnr[0],
        "mask": net.m[0, 0],
        "coefs": net.coefs[0].swapaxes(1, 2),
        "enhanced": _planar(enhanced[0]),
        "audio_out": audio,
        "audio_out_limited": audio_limited,
    }
    return {
        "frames": frames,
        "atten_lim_db": _ATTEN_LIM_DB,
        "post_filter": _BETA,
        "stages": {name: _packed(array) for name, array in stages.items()},
    }


def _signal(samples: int, sample_rate: int) -> NDArray[np.float32]:
    """A gliding voice-like tone in noise, in steps of 16-bit audio, the same on every machine."""
    t = np.arange(samples) / sample_rate
    tone = sum(np.sin(2 * np.pi * 150 * h * (t + 2 * t * t)) / h for h in range(1, 20))
    noise = np.random.default_rng(1).integers(-1000, 1001, samples)
    return (np.round(3000 * tone + noise) / 32768).astype(np.float32)


def _planar(spec: NDArray[np.complex64]) -> NDArray[np.float32]:
    return np.stack([spec.real, spec.imag], axis=1)


def _packed(array: NDArray[np.float32]) -> dict[str, Any]:
    data = np.ascontiguousarray(array, "<f4").tobytes()
    return {"shape": list(array.shape), "data": base64.b64encode(data).decode("ascii")}


def _float(value: np.float32) -> float:
    """The shortest decimal that reads back as the same float32."""
    return float(str(value))


def _floats(values: NDArray[np.float32]) -> list[float]:
    return [_float(value) for value in values]
