"""An enhancer that knows the contract and nothing else: no module of the package, no number of its own.

It is the plain twin of the Swift in ``examples/swift``: the same classes, one frame a call, line by line.
The network is a function from two features to mask, taps and LSNR; what it carries is its own business.
"""

import base64
import json

import numpy as np


class Ring:
    """The newest frames of something, by age; zeros at first."""

    def __init__(self, count, shape, dtype):
        self.frames = np.zeros((count, *shape), dtype)

    def push(self, frame):
        self.frames = np.roll(self.frames, 1, axis=0)
        self.frames[0] = frame

    def at(self, age):
        return self.frames[age]


class Spectra:
    """Analysis and synthesis of one frame at a time."""

    def __init__(self, contract):
        self.fft_size, self.hop_size = contract["fft_size"], contract["hop_size"]
        self.window = np.array(contract["window"]["values"], np.float32)
        self.scale = np.float32(contract["analysis"]["scale"])
        self.recent = np.zeros(self.fft_size, np.float32)
        self.pending = np.zeros(self.fft_size, np.float32)

    def analyse(self, hop):
        self.recent = np.concatenate([self.recent[self.hop_size :], hop])
        return (np.fft.rfft(self.recent * self.window) * self.scale).astype(np.complex64)

    def synthesise(self, spectrum):
        spectrum = spectrum.copy()
        spectrum[[0, -1]] = spectrum[[0, -1]].real
        frame = np.fft.irfft(spectrum) * self.fft_size
        self.pending += (frame * self.window).astype(np.float32)
        hop = self.pending[: self.hop_size].copy()
        self.pending = np.concatenate([self.pending[self.hop_size :], np.zeros(self.hop_size, np.float32)])
        return hop


class Features:
    """Band levels and unit-normalised bins, with their running means."""

    def __init__(self, contract):
        features, self.widths = contract["features"], contract["mask"]["widths"]
        self.alpha = np.float32(features["alpha"])
        self.power_floor, self.range_db, self.least_mean = (
            np.float32(value)
            for value in (
                features["erb"]["power_floor"],
                features["erb"]["range_db"],
                features["spec"]["least_mean"],
            )
        )
        self.level_means = np.array(features["erb"]["initial"], np.float32)
        self.magnitude_means = np.array(features["spec"]["initial"], np.float32)

    def process(self, spectrum):
        return self.erb(spectrum), self.spec(spectrum)

    def erb(self, spectrum):
        power = spectrum.real**2 + spectrum.imag**2
        bands = np.split(power, np.cumsum(self.widths)[:-1])
        levels = 10 * np.log10(np.array([band.mean() for band in bands]) + self.power_floor)
        self.level_means = levels * (1 - self.alpha) + self.level_means * self.alpha
        return (levels - self.level_means) / self.range_db

    def spec(self, spectrum):
        low = spectrum[: len(self.magnitude_means)]
        means = np.abs(low) * (1 - self.alpha) + self.magnitude_means * self.alpha
        self.magnitude_means = np.maximum(means, self.least_mean)
        normalised = low / np.sqrt(self.magnitude_means)
        return np.stack([normalised.real, normalised.imag])


class SpectralFilter:
    """Mask and deep filter, in step with the lookaheads; post-filter and limit of the attenuation."""

    def __init__(self, contract):
        bins, network, deep = contract["bins"], contract["network"], contract["deep_filter"]
        self.widths, self.deep = contract["mask"]["widths"], deep
        self.frame_age = network["frame_age"]
        self.post, self.limit = contract["post_filter"], contract["attenuation_limit"]
        oldest = max(deep["output_age"], *deep["tap_ages"])
        results = oldest - self.frame_age + 1
        self.noisy = Ring(oldest + 1, (bins,), np.complex64)
        self.gains = Ring(results, (len(self.widths),), np.float32)
        self.taps = Ring(results, (deep["order"], deep["bins"]), np.complex64)

    def process(self, spectrum, mask, coefs, beta=0.0, limit_db=None):
        self.noisy.push(spectrum)
        self.gains.push(mask)
        self.taps.push(coefs[0::2] + 1j * coefs[1::2])
        output_age = self.deep["output_age"]
        enhanced = self.masked(output_age)
        enhanced[: self.deep["bins"]] = self.filtered()
        if beta > 0:
            self.sharpen(enhanced, self.noisy.at(output_age), beta)
        if limit_db is not None and limit_db < self.limit["none_from_db"]:
            share = 10 ** (-limit_db / 20)
            enhanced = enhanced * (1 - share) + self.noisy.at(output_age) * share
        return enhanced

    def masked(self, age):
        """Gains of the frame of this age came ``frame_age`` frames after it."""
        return self.noisy.at(age) * np.repeat(self.gains.at(age - self.frame_age), self.widths)

    def filtered(self):
        taps = self.taps.at(self.deep["output_age"] - self.frame_age)
        source = {"noisy": self.noisy.at, "masked": self.masked}[self.deep["reads"]]
        frames = [source(age)[: self.deep["bins"]] for age in self.deep["tap_ages"]]
        return sum(tap * frame for tap, frame in zip(taps, frames, strict=True))

    def sharpen(self, enhanced, noisy, beta):
        low, least = slice(self.post["bins"]), self.post["least_gain"]
        gain = np.clip(np.abs(enhanced[low]) / (np.abs(noisy[low]) + least), least, 1)
        enhanced[low] *= (1 + beta) / (1 + beta / np.sin(np.pi / 2 * gain) ** 2)


class Enhancer:
    """Audio in any cut to enhanced audio."""

    def __init__(self, text, network):
        self.contract = json.loads(text)
        self.network = network
        self.waiting = np.zeros(0, np.float32)
        self.spectra, self.features = Spectra(self.contract), Features(self.contract)
        self.filter = SpectralFilter(self.contract)

    def process(self, audio, **settings):
        audible = np.abs(audio) < self.contract["input"]["largest"]
        self.waiting = np.concatenate([self.waiting, np.where(audible, audio, 0).astype(np.float32)])
        done, hop_size = [np.zeros(0, np.float32)], self.contract["hop_size"]
        while len(self.waiting) >= hop_size:
            hop, self.waiting = self.waiting[:hop_size], self.waiting[hop_size:]
            done.append(self.enhance(hop, **settings))
        return np.concatenate(done)

    def enhance(self, hop, **settings):
        spectrum = self.spectra.analyse(hop)
        mask, coefs, _ = self.network(*self.features.process(spectrum))
        return self.spectra.synthesise(self.filter.process(spectrum, mask, coefs, **settings))


def unpacked(stage):
    """A stage of the golden vectors."""
    return np.frombuffer(base64.b64decode(stage["data"]), "<f4").reshape(stage["shape"])
