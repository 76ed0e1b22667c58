"""What the network is to do with a mixture: the teacher's answer, as one row of numbers a frame."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dfstream.backends.base import pick_backend
from dfstream.dsp.deepfilter import deep_filter
from dfstream.dsp.erb import erb_widths
from dfstream.dsp.stft import Analysis
from dfstream.features import Features
from dfstream.gating import Stage
from dfstream.modes.base import find_network_mode

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dfstream.config import ModelConfig
    from dfstream.model import Model
    from mixing import Item

    Audio = NDArray[np.float32]
    Spectra = NDArray[np.complex64]

#: Exponent of spectra where loud and quiet parts are to count nearly alike: contradiction, weights of bands.
_EVENNESS = 0.3

#: Share of the clean reference in the target by SNR in dB, the rest being the teacher's output: where there
#: is little noise the teacher does more harm than the noise.
_CLEAN_SHARE = ((-np.inf, 0.15), (20.0, 0.15), (35.0, 0.8), (np.inf, 1.0))

#: The teacher takes away more than is good for speech: with its gains raised to this power its own answers
#: score higher in PESQ, STOI and SI-SDR. Gains below the floor are lifted by what one at it is.
_SOFTNESS, _SOFT_FLOOR = 0.8, 0.1

#: Relative compressed distance from which the reference contradicts the teacher.
_CONTRADICTION = 0.25

#: Normalised bins are stored this much larger, clear of the subnormal numbers of float16.
SPEC_SCALE = 32.0

_HALF_MAX = 6e4

#: Power that stands for none: far below what 16 bits resolve, so that quiet mixtures keep their upper bands.
_NOTHING = np.float32(1e-20)


class Layout(NamedTuple):
    """Where the parts of a row lie.

    ``erb`` and ``spec`` are the features, ``noisy`` and ``target`` the deep-filtered bins before and after
    (real parts, then imaginary ones), ``mask`` the gains of the bands, ``weight`` the compressed energy of a
    band above the deep filter, ``lsnr`` the local SNR in dB.
    """

    erb: slice
    spec: slice
    noisy: slice
    target: slice
    mask: slice
    weight: slice
    lsnr: slice

    @classmethod
    def of(cls, config: ModelConfig) -> Layout:
        """Return the layout for the sizes of a model."""
        E, D = config.nb_erb, 2 * config.nb_df
        ends = list(itertools.accumulate([E, D, D, D, E, E, 1]))
        return cls(*(slice(a, b) for a, b in zip([0, *ends], ends, strict=False)))

    @property
    def width(self) -> int:
        """Numbers in a row."""
        return int(self.lsnr.stop)


class Teacher:
    """Turns mixtures into rows of features and targets.

    Parameters
    ----------
    model : Model
        The teacher; the student has its sizes of spectra and features.
    items, samples : int
        Mixtures a call, and samples of each.

    Notes
    -----
    The teacher mutes very quiet input and does badly with narrow bands, so it always hears a mixture at a
    usual level and in its full band, and its taps and gains are applied to what the student gets. Below the
    deep filter's edge the teacher's own gains mean nothing (its deep filter replaces them): there the gains
    are what the deep filter effects in each band.
    """

    def __init__(self, model: Model, items: int, samples: int) -> None:
        self.config = c = model.config
        self.layout = Layout.of(c)
        self._frames = samples // c.hop_size
        self._analysis = Analysis(c.fft_size, c.hop_size, self._frames, items)
        self._features = Features(c, self._frames, items)
        mode = find_network_mode("incremental")
        self._mode = mode(model, pick_backend("auto", model, mode.recipe()), items)
        self._widths = erb_widths(c.sample_rate, c.fft_size, c.nb_erb, c.min_nb_erb_freqs)
        self._starts = np.cumsum(self._widths) - self._widths
        self._deep = np.arange(c.bins) < c.nb_df
        self._stages = np.full((items, self._frames), Stage.FULL, np.int8)

    def rows(self, items: list[Item], rng: np.random.Generator) -> NDArray[np.float16]:
        """Return [items, frames, Layout.width]; ``rng`` draws the level at which the teacher hears each."""
        x, reference, heard = (
            self._spectra(np.stack(tracks)) for tracks in list(zip(*items, strict=True))[:3]
        )
        peaks = np.array([np.abs(item.heard).max() for item in items]) + 1e-6
        usual = 10 ** (-rng.uniform(2, 14, len(items)) / 20) / peaks
        lsnr, gains, deep = self._answer(heard * usual[:, None, None].astype(np.float32), x)
        feat_erb, feat_spec = self._encoded(x)
        agrees = self._contradiction(deep, reference) < _CONTRADICTION
        wanted = np.array([clean_share(item.snr_db) for item in items], np.float32)
        share: Audio = np.where(agrees, wanted, np.float32(0))[:, None, None]
        target: Spectra = (1 - share) * deep + share * reference[..., self._deep]
        gain = 1 / np.sqrt(np.mean(_power(x[..., self._deep]), axis=(1, 2), keepdims=True) + _NOTHING)

        rows = np.empty((*x.shape[:2], self.layout.width), np.float16)
        rows[..., self.layout.erb] = feat_erb
        rows[..., self.layout.spec] = _halves(feat_spec * SPEC_SCALE)
        rows[..., self.layout.noisy] = _parts(x[..., self._deep] * gain)
        rows[..., self.layout.target] = _parts(target * lift(_ratio(target, x[..., self._deep])) * gain)
        mask = self._gains(x, reference, target, gains, share)
        rows[..., self.layout.mask] = mask * lift(mask)
        rows[..., self.layout.weight] = self._weights(x, gain)
        rows[..., self.layout.lsnr] = lsnr
        return rows

    def _spectra(self, x: Audio) -> Spectra:
        self._analysis.reset()
        return self._analysis.process(
            np.ascontiguousarray(x[:, : self._frames * self.config.hop_size])
        ).copy()

    def _encoded(self, x: Spectra) -> tuple[Audio, Audio]:
        """Return features [n, T, bands] and [n, T, 2 * df bins], real parts first."""
        self._features.reset()
        feat_erb, feat_spec = self._features.process(x)
        n, T = x.shape[:2]
        return feat_erb[:, 0].copy(), feat_spec.transpose(0, 2, 1, 3).reshape(n, T, -1)

    def _answer(self, heard: Spectra, x: Spectra) -> tuple[Audio, Audio, Spectra]:
        """Return local SNR [n, T, 1] and gains [n, T, bands] of what is heard, and x deep-filtered [n, T, D].

        The network's frames come ``conv_lookahead`` later than the spectra; the last ones see zero features.
        """
        c, T = self.config, x.shape[1]
        self._features.reset()
        ahead = ((0, 0), (0, 0), (0, c.conv_lookahead), (0, 0))
        features = (np.pad(f[:, :, c.conv_lookahead :], ahead) for f in self._features.process(heard))
        self._mode.reset()
        net = self._mode.step(*features)
        before = c.df_order - 1 - c.df_lookahead
        history = np.pad(x, ((0, 0), (before, c.df_lookahead), (0, 0)))
        filtered = np.empty_like(x)
        deep_filter(history, net.coefs, self._stages, Stage.FULL, filtered)
        return net.lsnr[:, :T], net.m[:, 0], filtered[..., self._deep].copy()

    def _contradiction(self, deep: Spectra, reference: Spectra) -> Audio:
        said, meant = _evened(deep), _evened(reference[..., self._deep])
        distance: Audio = np.square(said - meant).sum((1, 2)) / (np.square(said).sum((1, 2)) + 1e-9)
        return distance

    def _gains(self, x: Spectra, reference: Spectra, target: Spectra, taught: Audio, share: Audio) -> Audio:
        power = _power(x)
        optimal = np.clip(self._bands((reference * x.conj()).real) / (self._bands(power) + _NOTHING), 0, 1)
        filled = np.zeros_like(power)
        filled[..., self._deep] = _power(target)
        effected = np.sqrt(self._bands(filled) / (self._bands(power * self._deep) + _NOTHING))
        above = self._starts + self._widths > self.config.nb_df
        gains: Audio = np.where(above, (1 - share) * taught + share * optimal, np.clip(effected, 0, 1))
        return gains

    def _weights(self, x: Spectra, gain: Audio) -> Audio:
        compressed = (_power(x) * gain**2 + 1e-6) ** _EVENNESS
        return self._bands(np.where(self._deep, 0, compressed))

    def _bands(self, values: Audio) -> Audio:
        sums: Audio = np.add.reduceat(values, self._starts, axis=-1)
        return sums


def clean_share(snr_db: float) -> float:
    """Return the share of the clean reference in the target of a mixture."""
    points = _CLEAN_SHARE[1:-1]
    if not np.isfinite(snr_db):
        return _CLEAN_SHARE[0 if snr_db < 0 else -1][1]
    return float(np.interp(snr_db, [snr for snr, _ in points], [share for _, share in points]))


def lift(gain: Audio) -> Audio:
    """Return the factors that soften gains: of 0 dB at a gain of one, of 4 dB from a gain of -20 dB down."""
    factors: Audio = np.clip(gain, _SOFT_FLOOR, 1) ** (_SOFTNESS - 1)
    return factors


def _ratio(target: Spectra, x: Spectra) -> Audio:
    ratio: Audio = np.sqrt(_power(target) / (_power(x) + _NOTHING))
    return ratio


def _power(x: Spectra) -> Audio:
    power: Audio = x.real**2 + x.imag**2
    return power


def _evened(x: Spectra) -> Audio:
    power: Audio = _power(x) ** (_EVENNESS / 2)
    return power


def _halves(values: Audio) -> Audio:
    clipped: Audio = np.clip(values, -_HALF_MAX, _HALF_MAX)
    return clipped


def _parts(x: Spectra) -> Audio:
    return _halves(np.concatenate([x.real, x.imag], axis=-1))
