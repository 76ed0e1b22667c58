"""Obviously right twins of the signal processing: float64, one frame and one bin at a time, no state.

They follow the equations (libDF, and Schröter et al., "DeepFilterNet") and share nothing with the package.
Each takes a whole signal from its first frame on.
"""

import itertools

import numpy as np


def window(fft_size):
    i = np.arange(fft_size)
    return np.sin(np.pi / 2 * np.sin(np.pi * (i + 0.5) / fft_size) ** 2)


def analysis(x, fft_size, hop_size):
    """Spectra (T, bins) of all whole hops; zeros come before the signal."""
    overlap = fft_size - hop_size
    padded = np.concatenate([np.zeros(overlap), np.asarray(x, np.float64)])
    starts = range(0, len(x) - hop_size + 1, hop_size)
    frames = [padded[start : start + fft_size] * window(fft_size) for start in starts]
    return np.array([np.fft.rfft(frame) for frame in frames]) / (fft_size**2 / (2 * hop_size))


def synthesis(spec, fft_size, hop_size):
    """Samples (T * hop,) of spectra (T, bins)."""
    out = np.zeros((len(spec) - 1) * hop_size + fft_size)
    for t, frame in enumerate(np.array(spec, np.complex128)):
        frame[[0, -1]] = frame[[0, -1]].real
        out[t * hop_size : t * hop_size + fft_size] += np.fft.irfft(frame) * fft_size * window(fft_size)
    return out[: len(spec) * hop_size]


def band_slices(widths):
    edges = np.concatenate([[0], np.cumsum(widths)])
    return [slice(low, high) for low, high in itertools.pairwise(edges)]


def band_mean_power_db(spec, widths):
    """Levels (T, bands) in dB."""
    power = np.abs(np.asarray(spec, np.complex128)) ** 2
    bands = [power[:, band].mean(axis=1) for band in band_slices(widths)]
    return 10 * np.log10(np.stack(bands, axis=1) + 1e-10)


def apply_band_gains(spec, gains, widths):
    out = np.array(spec, np.complex128)
    for band, where in enumerate(band_slices(widths)):
        out[:, where] *= np.asarray(gains, np.float64)[:, band, None]
    return out


def mean_norm(levels, alpha):
    """Normalised levels (T, bands) from the documented initial means."""
    mean = np.linspace(-60, -90, np.shape(levels)[1])
    out = []
    for level in np.asarray(levels, np.float64):
        mean = level * (1 - alpha) + mean * alpha
        out.append((level - mean) / 40)
    return np.array(out)


def unit_norm(spec, alpha):
    """Normalised bins (T, D), complex, from the documented initial means. No floor."""
    mean = np.linspace(1e-3, 1e-4, np.shape(spec)[1])
    out = []
    for frame in np.asarray(spec, np.complex128):
        mean = np.abs(frame) * (1 - alpha) + mean * alpha
        out.append(frame / np.sqrt(mean))
    return np.array(out)


def deep_filter(frames, coefs):
    """Filtered bins (T, D) of frames (T + taps - 1, bins) and coefficients (T, D, 2 * taps)."""
    T, D, parts = coefs.shape
    out = np.zeros((T, D), np.complex128)
    for t in range(T):
        for k in range(D):
            for o in range(parts // 2):
                coef = complex(coefs[t, k, 2 * o], coefs[t, k, 2 * o + 1])
                out[t, k] += coef * complex(frames[t + o, k])
    return out


def post_filter(noisy, enhanced, beta):
    out = np.array(enhanced, np.complex128)
    T, bins = out.shape
    for t in range(T):
        for k in range(bins // 4 * 4):
            gain = np.clip(abs(out[t, k]) / (abs(noisy[t, k].astype(np.complex128)) + 1e-12), 1e-12, 1)
            out[t, k] *= (1 + beta) / (1 + beta / np.sin(np.pi * gain / 2) ** 2)
    return out


def limit_attenuation(noisy, enhanced, lim):
    return np.asarray(enhanced, np.complex128) * (1 - lim) + np.asarray(noisy, np.complex128) * lim
