"""The golden suite as a table: which inputs, which settings, how long, and what each is there to catch."""

from __future__ import annotations

import dataclasses
from typing import Any

__all__ = ["BUNDLED", "DEFAULTS", "DFN3", "Case", "Run"]

#: Settings of the engine unless a run says otherwise: nothing triggers, no limit, no post-filter.
DEFAULTS: dict[str, Any] = {
    "atten_lim_db": 100.0,
    "post_filter_beta": 0.0,
    "min_db_thresh": -15.0,
    "max_db_erb_thresh": 35.0,
    "max_db_df_thresh": 35.0,
    "input_gain": 1.0,
    "skip_silence": False,
    "schedule": [],
}


@dataclasses.dataclass(frozen=True)
class Run:
    """One set of settings on one input.

    Attributes
    ----------
    name : str
    shows : str
        What would go unnoticed without it.
    frames : int or None
        Hops of the input that are fed, from its beginning; None for all.
    engine : str
        Which build of libDF.
    changes : dict
        Settings that differ from `DEFAULTS`.
    """

    name: str
    shows: str
    frames: int | None
    engine: str = "main"
    changes: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Case:
    """One input and its runs.

    Attributes
    ----------
    input : str
        What is in the recording.
    proves : str
    runs : tuple of Run
    """

    input: str
    proves: str
    runs: tuple[Run, ...]


def _default(shows: str = "The plain way through both stages.", frames: int | None = 120) -> Run:
    return Run("default", shows, frames)


def _post_filter(name: str, beta: float, shows: str, frames: int, **more: float) -> Run:
    return Run(name, shows, frames, changes={"post_filter_beta": beta, **more})


def _limit(db: float, shows: str, frames: int) -> Run:
    return Run(f"atten{db:g}", shows, frames, changes={"atten_lim_db": db})


def _thresholds(name: str, min_db: float, erb_db: float, df_db: float, shows: str, frames: int) -> Run:
    limits = {"min_db_thresh": min_db, "max_db_erb_thresh": erb_db, "max_db_df_thresh": df_db}
    return Run(name, shows, frames, "v0.5.6", limits)


def _library_thresholds(shows: str, frames: int) -> Run:
    return _thresholds("thr_m10_30_20", -10.0, 30.0, 20.0, shows, frames)


def _narrow_thresholds(shows: str, frames: int) -> Run:
    return _thresholds("thr_m5_10_5", -5.0, 10.0, 5.0, shows, frames)


def _v056(shows: str, frames: int) -> Run:
    return Run("v056", shows, frames, "v0.5.6", {"skip_silence": True})


_SCHEDULE = [
    [100, {"atten_lim_db": 6.0}],
    [150, {"post_filter_beta": 0.05}],
    [200, {"atten_lim_db": 100.0}],
    [250, {"post_filter_beta": 0.0}],
]

DFN3: dict[str, Case] = {
    "white_snr5": Case(
        "Voice a in white noise, SNR 5 dB, -26 dBFS RMS, seed 101; 137 samples more than whole hops.",
        "The everyday signal, over 3 s: any slip in spectrum, features, network, deep filter or "
        "synthesis, and "
        "any drift of a state. Its other runs put every setting on the same signal.",
        (
            _default("Both stages on every hop, long enough for drift of the normalisation to show.", None),
            _post_filter("pf005", 0.05, "The post-filter at its strongest.", 100),
            _post_filter(
                "pf002_atten12",
                0.02,
                "Post-filter before attenuation limit: swapped, they differ.",
                100,
                atten_lim_db=12.0,
            ),
            _limit(0.0, "The bypass: what goes in comes out.", 50),
            Run(
                "gain2e-12",
                "Levels of 1e-5, where added constants or a silence rule would show.",
                100,
                changes={"input_gain": 2.0**-12},
            ),
            _library_thresholds(
                "Muted frames between full ones: a decoder that is not run keeps its state.", 120
            ),
            _narrow_thresholds(
                "All four branches in turn, decoders stopping and going on at different times.", 120
            ),
        ),
    ),
    "pink_snrm5": Case(
        "Voice b in pink noise, SNR -5 dB, -24 dBFS RMS, seed 102.",
        "Noise above the voice: low local SNR and small gains, where errors of the mask weigh most.",
        (
            _default(),
            _post_filter(
                "pf002", 0.02, "The post-filter at its usual strength, on strongly attenuated bins.", 100
            ),
            _limit(
                12.0, "The noisy share that a limit of 12 dB leaves, two hops late as the output is.", 100
            ),
        ),
    ),
    "babble_snr10": Case(
        "Voice c among seven other voices, SNR 10 dB, -28 dBFS RMS, seed 103.",
        "Noise that is speech: the recurrent states carry the decision, and a state that is reset shows.",
        (_default(), _limit(12.0, "The limit where little is attenuated.", 100)),
    ),
    "hum_snr15": Case(
        "Voice d over 50 Hz hum with 40 harmonics, SNR 15 dB, -30 dBFS RMS, seed 104; 479 samples more than "
        "whole hops.",
        "Steady lines in the spectrum: wrong bins, taps or conjugates of the deep filter show as beats.",
        (
            _default(),
            _library_thresholds(
                "Muted, masked and full frames: the deep filter pauses while the mask goes on.", 100
            ),
        ),
    ),
    "clicks_snr30": Case(
        "Voice a with decaying clicks of noise, SNR 30 dB, -23 dBFS RMS, seed 105; begins with "
        "digital silence.",
        "Steep onsets: frames out of order by one, or a window in the wrong place, smear them.",
        (_default(),),
    ),
    "music_snr0": Case(
        "Voice b over synthetic chords, SNR 0 dB, -25 dBFS RMS, seed 106.",
        "Tones that stay while speech comes and goes: deep filter and mask work against each other.",
        (_default(), _post_filter("pf002", 0.02, "The post-filter on tonal bins.", 100)),
    ),
    "clean_speech": Case(
        "Voice c alone, digital silence in its pauses, -22 dBFS RMS.",
        "LSNR up to its upper end, and short pauses of exact zeros: they must go through the network "
        "like any "
        "other hop.",
        (
            _default("Zeros in the pauses do not stop the states."),
            _post_filter("pf002", 0.02, "The post-filter where |Y|/|X| is 0/0.", 100),
            _v056("The older silence rule: each silent hop is cut out and nothing moves on.", 110),
        ),
    ),
    "speech_snr40": Case(
        "Voice a in faint white noise, SNR 40 dB, -20 dBFS RMS, seed 107; no silent hop.",
        "High local SNR on most frames.",
        (
            _default(),
            _library_thresholds("All four branches at the library's own default thresholds.", 100),
        ),
    ),
    "noise_only": Case(
        "White noise alone, -30 dBFS RMS, seed 108.",
        "Nothing to keep: gains near zero, output 30 dB and more below the input.",
        (
            _default(),
            _library_thresholds("Every frame below the lower threshold: exact zeros.", 60),
        ),
    ),
    "silence_speech_silence": Case(
        "1.0 s zeros, 1.2 s voice d in pink noise, 1.5 s zeros, 0.8 s voice a in pink noise, 0.5 s "
        "zeros; SNR "
        "12 dB, active parts -27 dBFS RMS, seeds 109 and 110.",
        "Silence before, between and after: initial states, their decay, and where each build drops "
        "silent hops.",
        (
            _default("Silence goes through the network; speech returns after 1.5 s of it.", 400),
            _post_filter("pf002", 0.02, "Zeros in, zeros out, also through the post-filter.", 180),
            _limit(12.0, "Zeros in, zeros out, also with a noisy share.", 180),
            _v056(
                "The older rule: zeros at once, and the three hops in flight come out when speech returns.",
                400,
            ),
        ),
    ),
    "digital_silence": Case(
        "Zeros.",
        "Exact zeros out, no NaN from a logarithm or a quotient, and the LSNR of silence.",
        (_default(frames=None),),
    ),
    "impulses": Case(
        "Zeros with single samples: +1 at 480, -1 at 9840, +0.5 at 24000, -0.5 at 24003, +0.01 at "
        "48479, +0.999 at "
        "72000.",
        "Delay and window to the sample, and states far from anything a signal leaves behind.",
        (_default("All six impulses.", None),),
    ),
    "dc_step": Case(
        "0 until sample 12000, then 0.25.",
        "Everything in the lowest bins: the real-only bin 0, and bands that see nothing.",
        (_default(),),
    ),
    "square_clip": Case(
        "220 Hz square wave at full scale, 32767.",
        "Full scale with loud harmonics up to the top: output beyond 1 must not be clipped.",
        (_default(),),
    ),
    "quiet_m60": Case(
        "Voice a in pink noise, SNR 10 dB, -60 dBFS RMS, seed 114, with the rounding noise of 16 bit.",
        "Hops on both sides of the silence limit: the newer build processes them all.",
        (_default("No hop is dropped for being quiet."),),
    ),
    "level_ramp": Case(
        "Voice d in white noise, SNR 6 dB, from -50 dBFS down to -88 and up again (turns at 0.3, 1.8 "
        "and 2.4 s), "
        "seed 115.",
        "Crosses the silence limit hop by hop in both directions.",
        (
            _default("Down through the limit and back: no hop is dropped.", 320),
            _limit(0.0, "The bypass with its own silence rule: zeros after more than five silent hops.", 320),
            _v056("The older rule at the limit itself: which hops count as silent.", 320),
        ),
    ),
    "narrowband_8k": Case(
        "Voice c in pink noise, SNR 8 dB, nothing above 4 kHz, about -24 dBFS RMS, seed 116.",
        "Empty upper bands: levels near -100 dB, where the smallest additive constants show.",
        (
            _default(),
            _narrow_thresholds("All four branches, with long stops of the deep filter's decoder.", 150),
        ),
    ),
    "stereo": Case(
        "Left: voice a in pink noise, SNR 5 dB, -26 dBFS, seed 117. Right: voice e over hum, SNR 8 "
        "dB, -32 dBFS, "
        "seed 118.",
        "Channels that have nothing to do with each other, each with an engine of its own: leaks "
        "between them.",
        (_default("LSNR is given for both channels."),),
    ),
    "loud_clipped": Case(
        "Voice d in pink noise, SNR 10 dB, -6 dBFS RMS, clipped at full scale, seed 119.",
        "Loud input, output beyond 1.",
        (
            _default(),
            Run(
                "gain4",
                "Input up to 4: nothing is clipped, nothing is scaled.",
                100,
                changes={"input_gain": 4.0},
            ),
        ),
    ),
    "sweep": Case(
        "Logarithmic sine sweep from 20 Hz to 23 kHz, peak 0.25.",
        "One bin after the other, across the border of the deep filter at 4.8 kHz: widths and order "
        "of the bands.",
        (_default("All the way up.", None),),
    ),
    "fan_long": Case(
        "Voice b in low-frequency fan noise with slow changes of level, SNR 0 dB, -22 dBFS RMS, "
        "seeds 120 and 121.",
        "Slow changes, and settings that change on the way.",
        (
            _default(),
            Run(
                "schedule",
                "Limit and post-filter switched on and off between hops: each holds from its hop on, "
                "with no state lost.",
                300,
                changes={"schedule": _SCHEDULE},
            ),
        ),
    ),
}

#: Our own model: the default settings on six inputs, in full.
BUNDLED: dict[str, Case] = {
    name: dataclasses.replace(DFN3[name], runs=(_default(frames=None),))
    for name in ("white_snr5", "babble_snr10", "clean_speech", "silence_speech_silence", "impulses", "stereo")
}
