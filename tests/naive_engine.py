"""The obviously right twin of the whole engine: the whole signal at hand, one output frame at a time.

It reads the export's own files: ``config.ini`` by its own rules, and the graphs, unpatched, in one run of
plain onnxruntime over all frames. What is done to the spectra is written as the equations index it: frame t
is a time, never a place in a buffer. Nothing here uses the package.

All is float64 but for the network, which exists in float32 only, and for one number: the running mean of the
band levels, which libDF keeps in float32. Its steps are 8e-6 dB around -70 dB, every frame rounds it once
more, and a network with random weights can make -104 dB of its output of that. Trained ones hardly notice.
``mean_dtype=np.float64`` gives the engine without this.
"""

import configparser
import dataclasses
import functools
import itertools
from pathlib import Path

import numpy as np

import naive
import oracle


@dataclasses.dataclass(frozen=True)
class Config:
    """The numbers of one ``config.ini``."""

    filters_masked: bool
    sr: int
    fft_size: int
    hop_size: int
    nb_erb: int
    nb_df: int
    min_nb_erb_freqs: int
    df_order: int
    df_lookahead: int
    conv_lookahead: int
    alpha: float

    @property
    def bins(self):
        return self.fft_size // 2 + 1

    @property
    def delay_frames(self):
        """DFN2 masks only when the network has looked ahead, and its filter then waits for masked frames."""
        lookaheads = self.conv_lookahead, self.df_lookahead
        return sum(lookaheads) if self.filters_masked else max(lookaheads)

    @property
    def delay(self):
        return self.fft_size - self.hop_size + self.delay_frames * self.hop_size


@functools.cache
def read_config(folder):
    ini = configparser.ConfigParser(interpolation=None)
    ini.read_string((Path(folder) / "config.ini").read_text())
    merged = {**ini["deepfilternet"], **ini["df"]}
    names = [field.name for field in dataclasses.fields(Config)][1:-1]
    numbers = {name: int(merged[name]) for name in names}
    seconds = numbers["hop_size"] / numbers["sr"] / float(merged["norm_tau"])
    decay = next(a for a in (round(np.exp(-seconds), n) for n in itertools.count(3)) if a < 1)
    return Config(ini["train"]["model"].strip() == "deepfilternet2", **numbers, alpha=float(decay))


@functools.cache
def erb_widths(c):
    """Bins of each band: ideal edges, at least so many bins, the difference owed to the next band."""
    top_erb = 9.265 * np.log1p(c.sr / 2 / (24.7 * 9.265))
    widths, previous, owed = [], 0, 0
    for band in range(1, c.nb_erb + 1):
        edge_hz = 24.7 * 9.265 * np.expm1(band * top_erb / c.nb_erb / 9.265)
        edge = int(np.floor(edge_hz * c.fft_size / c.sr + 0.5))
        width = edge - previous - owed
        owed = max(0, c.min_nb_erb_freqs - width)
        widths.append(width + owed)
        previous = edge
    widths[-1] += 1
    widths[-1] -= max(0, sum(widths) - c.bins)
    return tuple(widths)


# -- the network -------------------------------------------------------------------------------------


def features(c, spec, mean_dtype):
    """Features in the graphs' shapes; float32, which is all that the graphs take."""
    levels = naive.band_mean_power_db(spec, erb_widths(c)).astype(mean_dtype)
    erb = _mean_norm(levels, mean_dtype(c.alpha))
    low = naive.unit_norm(spec[:, : c.nb_df], c.alpha)
    return {
        "feat_erb": erb[None, None].astype(np.float32),
        "feat_spec": np.stack([low.real, low.imag])[None].astype(np.float32),
    }


def _mean_norm(levels, alpha):
    mean = np.linspace(-60, -90, levels.shape[1], dtype=levels.dtype)
    out = []
    for level in levels:
        mean = level * (1 - alpha) + mean * alpha
        out.append((level - mean) / 40)
    return np.array(out)


@dataclasses.dataclass(frozen=True)
class Results:
    """What the network says about the frames from ``first`` on; None about all others."""

    first: int
    m: np.ndarray  # (T, bands)
    coefs: np.ndarray  # (T, df bins, 2 * taps)

    def gains(self, t):
        return self._at(self.m, t)

    def taps(self, t):
        """Complex taps (df bins, taps), the one for the oldest frame first."""
        pairs = self._at(self.coefs, t)
        return None if pairs is None else pairs[:, 0::2].astype(np.float64) + 1j * pairs[:, 1::2]

    def _at(self, results, t):
        return results[t - self.first] if 0 <= t - self.first < len(results) else None


def run_network(folder, c, spec, parity, mean_dtype):
    feats, Lc = features(c, spec, mean_dtype), c.conv_lookahead
    if parity == "python":  # DeepFilterNet's pad_feat: Lc frames cut off in front, Lc zero frames behind
        feats = {k: np.pad(v[:, :, Lc:], ((0, 0), (0, 0), (0, Lc), (0, 0))) for k, v in feats.items()}
    out = oracle.whole(Path(folder), feats)
    return Results(0 if parity == "python" else -Lc, out["m"][0, 0], out["coefs"][0])


# -- the engine --------------------------------------------------------------------------------------


def enhance(folder, x, *, parity="rust", post_filter=0.0, atten_lim_db=None, mean_dtype=np.float32):
    """All that a stream gives for ``x``, flushed, not aligned: float64, ``len(x)`` samples and the delay."""
    c = read_config(folder)
    if parity == "rust":
        padding, after = c.delay + c.hop_size, 0
    else:  # one window of zeros, then frames still due when the last spectrum is known
        padding, after = c.fft_size, c.delay_frames
    padded = np.concatenate([np.asarray(x, np.float64), np.zeros(padding)])
    spec = naive.analysis(padded, c.fft_size, c.hop_size)
    results = run_network(folder, c, spec, parity, mean_dtype)
    times = range(-c.delay_frames, len(spec) - c.delay_frames + after)
    frames = [enhanced_frame(c, spec, results, t, post_filter, atten_lim_db) for t in times]
    return naive.synthesis(np.array(frames), c.fft_size, c.hop_size)[: len(x) + c.delay]


def enhanced_frame(c, spec, results, t, post_filter=0.0, atten_lim_db=None):
    """Spectrum of the output at frame t; before and behind the signal there are zeros."""

    def noisy(t):
        return spec[t] if 0 <= t < len(spec) else np.zeros(c.bins, np.complex128)

    def masked(t):
        gains = results.gains(t)
        return noisy(t) * (0.0 if gains is None else np.repeat(gains.astype(np.float64), erb_widths(c)))

    y = masked(t)
    y[: c.nb_df] = 0
    taps = results.taps(t)
    if taps is not None:
        source = masked if c.filters_masked else noisy
        oldest = t + c.df_lookahead - (c.df_order - 1)
        for o in range(c.df_order):
            y[: c.nb_df] += taps[:, o] * source(oldest + o)[: c.nb_df]
    if post_filter:
        y = _post_filtered(noisy(t), y, post_filter)
    if atten_lim_db is not None and atten_lim_db < 100:
        share = 10 ** (-atten_lim_db / 20)
        y = y * (1 - share) + noisy(t) * share
    return y


def _post_filtered(noisy, y, beta):
    gain = np.clip(np.abs(y) / (np.abs(noisy) + 1e-12), 1e-12, 1)
    factor = (1 + beta) / (1 + beta / np.sin(np.pi / 2 * gain) ** 2)
    factor[len(y) // 4 * 4 :] = 1  # libDF works on four bins at a time and leaves the rest
    return y * factor


# -- comparing ---------------------------------------------------------------------------------------


def snr_db(got, want):
    """Level of ``want`` over that of the difference."""
    assert got.shape == want.shape, (got.shape, want.shape)
    want = np.asarray(want, np.float64)
    noise = np.sum((got - want) ** 2)
    return np.inf if noise == 0 else 10 * np.log10(np.sum(want**2) / noise)


def cut(x, sizes, most=400):
    """Cut a signal into pieces of the given sizes, over and over; after ``most`` pieces the rest is one."""
    start = 0
    for size in itertools.islice(itertools.cycle(sizes), most):
        if start >= len(x):
            return
        yield x[start : start + size]
        start += size
    yield x[start:]


def streamed(stream, x, sizes=None):
    """Feed a stream in pieces, flush it, join what it gave."""
    pieces = [x] if sizes is None else cut(x, sizes)
    return np.concatenate([*map(stream.process, pieces), stream.flush()])
