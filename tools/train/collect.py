"""Make an audio folder for training from checkouts of public repositories with licensed speech.

    git clone https://github.com/rhasspy/dataset-voice-kathleen
    python tools/train/collect.py --checkout kathleen=dataset-voice-kathleen --out AUDIO

Takes the files that a table names, with the licence it names; leaves out what is clipped or noisy; trims,
cuts and joins to clips of some seconds, and writes FLAC files with ``clips.csv`` (see ``corpus.py``). Nothing
of it belongs in this repository.
"""

from __future__ import annotations

import csv
import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
import soundfile
import soxr
from scipy import signal

from corpus import SAMPLE_RATE, active_rms
from dfstream.atomic import replacing
from dfstream.errors import UsageError
from reporting import errors_in_a_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    Audio = NDArray[np.float32]

#: Clips are about as long as a sentence; shorter recordings of one voice are strung together.
_SHORTEST_S, _LONGEST_S, _JOINED_S = 2.0, 12.0, 6.0

#: Recordings with less between their loud and their quietest frames carry too much noise for a reference.
_LEAST_RANGE_DB = 30.0

_FRAME = SAMPLE_RATE // 50
_RMS, _PEAK = 0.05, 0.94

#: Silence between clips of one file, and minutes of audio in one.
_BETWEEN, _FILE_MINUTES = SAMPLE_RATE // 20, 20.0

_COLUMNS = (
    "file", "start_sample", "n_samples", "kind", "split", "source", "speaker", "licence", "original_name",
    "author",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Recordings:
    """Files of a repository under one licence.

    Attributes
    ----------
    files : str
        Pattern of their paths in it; the group ``voice`` names the voice, without it they are of one.
    licence, author : str
    minutes : float
        Of one voice, at most.
    """

    files: str
    licence: str
    author: str
    minutes: float = 30.0


@dataclasses.dataclass(frozen=True)
class Origin:
    """A repository, and the commit whose files the bundled model learned from."""

    repository: str
    commit: str
    recordings: tuple[Recordings, ...]


def _synthesised(voices: str, made_from: str) -> Recordings:
    files = rf"samples/(?P<voice>(?:{voices})/\w+)\.wav"
    return Recordings(files, "CC-BY-SA-4.0", f"Mycroft AI; {made_from}")


#: What can be collected. The synthesised samples are CC BY-SA as a whole; what the recordings ask for that a
#: voice was made from stands with the author. Voices from recordings without a free licence are not listed.
ORIGINS = {
    "kathleen": Origin(
        "github:rhasspy/dataset-voice-kathleen",
        "c51cb971036a127359b43c621f26ca5081eab13e",
        (Recordings(r"data/.*\.wav", "CC0-1.0", "Kathleen", minutes=25),),
    ),
    "kerstin": Origin(
        "github:rhasspy/dataset-voice-kerstin",
        "f73127135cf80d6ef52aef6af58c49774f4fd625",
        (Recordings(r"verified/.*\.flac", "CC0-1.0", "Kerstin", minutes=25),),
    ),
    "commands": Origin(
        "github:Picovoice/speech-to-intent-benchmark",
        "47b1ca63afe4f08cb83e1f70fec16764879bd130",
        (Recordings(r"data/speech/clean/.*\.wav", "Apache-2.0", "Picovoice", minutes=60),),
    ),
    "words": Origin(
        "github:Picovoice/wake-word-benchmark",
        "84919190fb1891bf0936dcb577d9268e467f876f",
        (Recordings(r"audio/[^/]+/.*\.(?:flac|wav)", "Apache-2.0", "Picovoice", minutes=30),),
    ),
    "mandarin": Origin(
        "github:hugolpz/audio-cmn",
        "ff9ed3d0c631195bd2c06f39450f3264c7124040",
        (
            Recordings(r"96k/hsk/.*\.mp3", "CC-BY-SA", "Yue Tan", minutes=15),
            Recordings(r"64k/syllabs/.*\.mp3", "CC-BY-SA", "Chen Wang", minutes=10),
        ),
    ),
    "synthesised": Origin(
        "github:MycroftAI/mimic3-voices",
        "b239a9084e21fbaa7ac78ea6e31f5de1c31c8f42",
        (
            _synthesised("en_US/vctk_low", "voices: VCTK (CC BY 4.0)"),
            _synthesised("en_US/hifi-tts_low", "voices: Hi-Fi TTS (CC BY 4.0)"),
            _synthesised("it_IT/mls_low", "voices: MLS (CC BY 4.0)"),
            _synthesised("fr_FR/siwis_low", "voice: SIWIS (CC BY 4.0)"),
            _synthesised("vi_VN/vais1000_low", "voice: VAIS-1000 (CC BY 4.0)"),
            _synthesised(
                "af_ZA/google-nwu_low|tn_ZA/google-nwu_low|jv_ID/google-gmu_low|ne_NP/ne-google_low",
                "voices: Google and universities (CC BY-SA 4.0)",
            ),
            _synthesised(
                "ha_NE/openbible_low|yo/openbible_low",
                "voices: Open Bible (CC BY-SA 4.0)",
            ),
            _synthesised(
                "bn/multi_low|en_US/cmu-arctic_low|gu_IN/cmu-indic_low|te_IN/cmu-indic_low",
                "voices: Carnegie Mellon University (BSD), Google (CC BY-SA 4.0)",
            ),
            _synthesised(
                r"\w+/m-ailabs_low|ru_RU/multi_low|it_IT/riccardo-fasol_low",
                "voices: M-AILABS (BSD), CSS10 (CC0)",
            ),
            _synthesised(
                "de_DE/thorsten_low|de_DE/thorsten-emotion_low|el_GR/rapunzelina_low|fa/haaniye_low"
                "|fi_FI/harri-tapani-ylilammi_low|hu_HU/diana-majlinger_low|nl/[a-z-]+_low"
                "|en_US/ljspeech_low|es_ES/carlfm_low",
                "voices: CC0 or public domain",
            ),
        ),
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Take:
    """A part of a voice's recordings that may become a clip.

    Attributes
    ----------
    audio : ndarray[float32]
    names : tuple of str
        Of the files it is from.
    """

    audio: Audio
    names: tuple[str, ...]


def collect(origin: Origin, checkout: Path) -> Iterator[tuple[Recordings, str, Take]]:
    """Yield the clips of a checkout with their licence and voice.

    Raises
    ------
    UsageError
        The checkout holds none of the files.
    """
    paths = sorted(path.relative_to(checkout).as_posix() for path in checkout.rglob("*") if path.is_file())
    for recordings in origin.recordings:
        voices: dict[str, list[str]] = {}
        for path in paths:
            if match := re.fullmatch(recordings.files, path):
                voices.setdefault(match.groupdict().get("voice", recordings.author), []).append(path)
        if not voices:
            raise UsageError(f"{checkout}: no file is like {recordings.files}")
        for voice, files in voices.items():
            left = recordings.minutes * 60 * SAMPLE_RATE
            for take in clips(_takes(checkout, files)):
                left -= take.audio.size
                if left < 0:
                    break
                yield recordings, voice, take


def clips(takes: Iterable[Take]) -> Iterator[Take]:
    """Cut what is too long in pauses, string what is short together, bring all to one level."""
    waiting: list[Take] = []
    for take in takes:
        for part in _cut(take.audio):
            waiting.append(Take(part, take.names))
            seconds = sum(one.audio.size for one in waiting) / SAMPLE_RATE
            if seconds >= (_SHORTEST_S if len(waiting) == 1 else _JOINED_S):
                yield _joined(waiting)
                waiting = []
    if waiting and sum(one.audio.size for one in waiting) >= SAMPLE_RATE:
        yield _joined(waiting)


def clipped(audio: Audio) -> bool:
    """Say whether four samples in a row are at full scale: of a recording as it is in its file."""
    full = np.abs(audio) >= 0.999
    return bool((full[3:] & full[2:-1] & full[1:-2] & full[:-3]).any())


def quiet_in_pauses(x: Audio) -> bool:
    """Say whether there is little noise where nobody speaks."""
    levels = _levels_db(x)
    return bool(np.percentile(levels, 92) - levels.min() >= _LEAST_RANGE_DB)


def trimmed(x: Audio) -> Audio:
    """Cut silence off both ends, all but 40 ms of it."""
    levels = _levels_db(x)
    loud = np.flatnonzero(levels > np.percentile(levels, 92) - 40)
    return x[max(loud[0] - 2, 0) * _FRAME : (loud[-1] + 3) * _FRAME]


def _takes(checkout: Path, files: Iterable[str]) -> Iterator[Take]:
    for name in files:
        try:
            audio, rate = soundfile.read(checkout / name, dtype="float32", always_2d=True)
        except (soundfile.LibsndfileError, OSError) as error:
            click.echo(f"left out {checkout / name}: {error}", err=True)
            continue
        x = _received(audio, rate)
        if x.size >= 10 * _FRAME and not clipped(audio) and quiet_in_pauses(x):
            yield Take(trimmed(x), (name,))


def _received(audio: Audio, rate: int) -> Audio:
    """Return one channel at `SAMPLE_RATE` without rumble."""
    x = soxr.resample(audio.mean(axis=1), rate, SAMPLE_RATE, quality="VHQ")
    rumble = signal.butter(2, 40, "highpass", fs=SAMPLE_RATE, output="sos")
    high_passed: Audio = signal.sosfilt(rumble, x).astype(np.float32)
    return high_passed


def _levels_db(x: Audio) -> Audio:
    frames = x[: x.size // _FRAME * _FRAME].reshape(-1, _FRAME)
    levels: Audio = 10 * np.log10(np.square(frames).mean(axis=1) + 1e-10)
    return levels


def _cut(x: Audio) -> Iterator[Audio]:
    """Cut where it is quietest in the second half of a longest clip, until the rest is no longer than one."""
    longest = int(_LONGEST_S * SAMPLE_RATE)
    while x.size > longest:
        first = longest // 2
        at = first + int(np.argmin(_levels_db(x[first:longest]))) * _FRAME
        yield x[:at]
        x = x[at:]
    yield x


def _joined(takes: list[Take]) -> Take:
    gap = np.zeros(SAMPLE_RATE // 4, np.float32)
    parts = [
        part for take in takes for part in (take.audio * (_RMS / max(active_rms(take.audio), 1e-5)), gap)
    ]
    x = np.concatenate(parts[:-1])
    x *= _PEAK / max(float(np.abs(x).max()), _PEAK)
    return Take(x.astype(np.float32), tuple(dict.fromkeys(name for take in takes for name in take.names)))


def write(checkouts: dict[str, Path], out: Path) -> str:
    """Write the audio folder; returns a line that says what is in it."""
    out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, str]] = []
    for name, checkout in checkouts.items():
        origin = ORIGINS[name]
        for number, group in enumerate(_files(collect(origin, checkout))):
            file = f"speech-{name}-{number}.flac"
            at, parts = 0, []
            for recordings, voice, take in group:
                parts += [take.audio, np.zeros(_BETWEEN, np.float32)]
                facts = ("speech", "train", origin.repository, f"{name}/{voice}", recordings.licence)
                places = (file, str(at), str(take.audio.size))
                names = " ".join(take.names)
                rows.append(dict(zip(_COLUMNS, (*places, *facts, names, recordings.author), strict=True)))
                at += take.audio.size + _BETWEEN
            with replacing(out / file) as temporary:
                soundfile.write(temporary, np.concatenate(parts), SAMPLE_RATE, "PCM_16", format="FLAC")
    with (
        replacing(out / "clips.csv") as temporary,
        temporary.open("w", newline="", encoding="utf-8") as lines,
    ):
        table = csv.DictWriter(lines, _COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    minutes = sum(int(row["n_samples"]) for row in rows) / SAMPLE_RATE / 60
    return f"{out}: {len(rows)} clips, {len({row['speaker'] for row in rows})} voices, {minutes:.0f} minutes"


def _files(
    found: Iterable[tuple[Recordings, str, Take]],
) -> Iterator[list[tuple[Recordings, str, Take]]]:
    group: list[tuple[Recordings, str, Take]] = []
    for entry in found:
        group.append(entry)
        if sum(take.audio.size for _, _, take in group) >= _FILE_MINUTES * 60 * SAMPLE_RATE:
            yield group
            group = []
    if group:
        yield group


@click.command()
@click.option(
    "--checkout", "pairs", multiple=True, required=True, metavar="NAME=FOLDER", help="May be repeated."
)
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False))
def main(pairs: tuple[str, ...], out: Path) -> None:
    """Make an audio folder for training from checkouts of public repositories."""
    with errors_in_a_line():
        checkouts = {}
        for text in pairs:
            name, _, folder = text.partition("=")
            if name not in ORIGINS:
                raise UsageError(f"nothing is known of {name!r}", hint=f"there are {', '.join(ORIGINS)}")
            if not folder or not Path(folder).is_dir():
                raise UsageError(f"{folder or text}: no folder")
            checkouts[name] = Path(folder)
        click.echo(write(checkouts, out))


if __name__ == "__main__":
    main()
