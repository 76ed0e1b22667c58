"""Make ``examples/noisy.wav``: synthetic speech in generated noise, free of anybody's rights.

python tools/make_example.py            # needs the program espeak-ng
python tools/make_example.py --check    # only look whether the file is what it should be
"""

from __future__ import annotations

import io
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
import soundfile

from dfstream.errors import AudioError, DfstreamError, UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["check", "example", "resample"]

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "noisy.wav"
SENTENCE = "The fan runs all day, so a small program keeps the voice and takes away the wind."

SAMPLE_RATE = 48_000
LENGTH_S = 6.0
LEAD_S = 0.4
SNR_DB = 5.0
PEAK = 0.8
MAX_BYTES = 700_000


def example(seed: int = 0) -> NDArray[np.float64]:
    """Make the signal: `SENTENCE` after `LEAD_S` of noise alone, `SNR_DB` over the whole clip.

    Returns
    -------
    ndarray[float64], shape (samples,)
    """
    rng = np.random.default_rng(seed)
    samples = round(LENGTH_S * SAMPLE_RATE)
    speech = np.zeros(samples)
    voice = speak(SENTENCE)
    start = round(LEAD_S * SAMPLE_RATE)
    if start + len(voice) > samples:
        raise AudioError(
            f"the sentence takes {len(voice) / SAMPLE_RATE:.1f} s, {LENGTH_S - LEAD_S:.1f} s are free",
            hint="shorten SENTENCE or raise LENGTH_S",
        )
    speech[start : start + len(voice)] = voice
    noise = pink(rng, samples) + 0.7 * fan(rng, samples)
    noise *= np.sqrt(np.mean(speech**2) / np.mean(noise**2)) * 10 ** (-SNR_DB / 20)
    x: NDArray[np.float64] = speech + noise
    x *= PEAK / np.abs(x).max()
    return x


def speak(text: str) -> NDArray[np.float64]:
    """Let espeak-ng speak, at `SAMPLE_RATE`.

    Raises
    ------
    UsageError
        The program is missing.
    """
    program = shutil.which("espeak-ng")
    if program is None:
        raise UsageError(
            "the program espeak-ng is not installed", hint="Debian and Ubuntu: apt-get install espeak-ng"
        )
    command = [program, "-v", "en-gb", "-s", "165", "--stdout", text]
    spoken = subprocess.run(command, check=True, capture_output=True).stdout
    x, rate = soundfile.read(io.BytesIO(spoken), dtype="float64")
    return resample(x, rate, SAMPLE_RATE)


def resample(x: NDArray[np.float64], rate: int, new_rate: int) -> NDArray[np.float64]:
    """Resample a whole clip by cutting or extending its spectrum; the clip should start and end silent."""
    samples = round(len(x) * new_rate / rate)
    spectrum = np.fft.rfft(x)
    keep = min(len(spectrum), samples // 2 + 1)
    y: NDArray[np.float64] = np.fft.irfft(spectrum[:keep], n=samples) * (samples / len(x))
    return y


def pink(rng: np.random.Generator, samples: int) -> NDArray[np.float64]:
    """Noise that falls by 3 dB an octave above 60 Hz, of power 1."""
    frequency = np.fft.rfftfreq(samples, 1 / SAMPLE_RATE)
    spectrum = np.fft.rfft(rng.standard_normal(samples)) / np.sqrt(np.maximum(frequency, 60.0))
    spectrum[frequency < 20.0] = 0.0
    x: NDArray[np.float64] = np.fft.irfft(spectrum, n=samples)
    x /= np.sqrt(np.mean(x**2))
    return x


def fan(rng: np.random.Generator, samples: int) -> NDArray[np.float64]:
    """Hum of a fan whose speed and loudness drift over seconds, of power 1."""
    t = np.arange(samples) / SAMPLE_RATE
    speed_hz = 88.0 + 3.0 * np.sin(2 * np.pi * 0.21 * t + rng.uniform(0, 2 * np.pi))
    angle = 2 * np.pi * np.cumsum(speed_hz) / SAMPLE_RATE
    loudness = 1.0 + 0.3 * np.sin(2 * np.pi * 0.37 * t + rng.uniform(0, 2 * np.pi))
    harmonics = (np.sin(k * angle + rng.uniform(0, 2 * np.pi)) / k for k in range(1, 13))
    x: NDArray[np.float64] = loudness * sum(harmonics)
    x /= np.sqrt(np.mean(x**2))
    return x


def check(path: Path) -> str:
    """Compare a file with what the example should be; returns one line about it.

    Raises
    ------
    AudioError
        Missing, or not of the expected form.
    """
    if not path.is_file():
        raise AudioError(f"{path}: missing", hint="python tools/make_example.py makes it")
    info = soundfile.info(str(path))
    found = (info.format, info.subtype, info.samplerate, info.channels, info.duration)
    wanted = ("WAV", "PCM_16", SAMPLE_RATE, 1, LENGTH_S)
    if found != wanted:
        raise AudioError(f"{path}: found {found}, expected {wanted}")
    size = path.stat().st_size
    peak = float(np.abs(soundfile.read(str(path))[0]).max())
    if size >= MAX_BYTES or not 0.1 < peak < 0.9:
        raise AudioError(f"{path}: {size} bytes, peak {peak:.2f}; expected below {MAX_BYTES} and 0.1 to 0.9")
    return f"{path.name}: {info.duration:.1f} s at {info.samplerate} Hz, mono, 16 bit, peak {peak:.2f}"


@click.command()
@click.option("--check", "only_check", is_flag=True, help="Verify the file that is there, write nothing.")
@click.option("--seed", default=0, show_default=True, help="Seed of the noise.")
def main(only_check: bool, seed: int) -> None:
    """Write examples/noisy.wav, or check it."""
    try:
        if not only_check:
            x = example(seed)
            EXAMPLE.parent.mkdir(exist_ok=True)
            soundfile.write(str(EXAMPLE), x, SAMPLE_RATE, subtype="PCM_16")
        click.echo(check(EXAMPLE))
    except DfstreamError as error:
        raise click.ClickException("\nhint: ".join(filter(None, (str(error), error.hint)))) from error


if __name__ == "__main__":
    main()
