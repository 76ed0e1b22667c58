"""Everything that tells one DeepFilterNet variant from another, read once and frozen.

The numbers come from the ``config.ini`` of an export (sections ``[df]``, ``[deepfilternet]`` and
``[train]``). No other module holds a literal 480, 96 or 0.99.
"""

from __future__ import annotations

import configparser
import dataclasses
from typing import Any, Literal

import numpy as np

from dfstream.errors import ModelError

__all__ = ["Architecture", "ModelConfig", "norm_alpha"]

Architecture = Literal["deepfilternet2", "deepfilternet3"]


def norm_alpha(sample_rate: int, hop_size: int, tau: float) -> float:
    """Decay of the feature norms for a time constant, by libDF's rounding rule.

    ``exp(-(hop/rate)/tau)`` is rounded to three decimals, or to the first number of decimals beyond
    three that gives less than one (libDF ``tract.rs: calc_norm_alpha``). All in float32.

    Parameters
    ----------
    sample_rate : int, Hz
    hop_size : int, samples
    tau : float, seconds

    Returns
    -------
    float
        0.99 for 480 samples at 48 kHz and one second, not ``exp(-0.01)``.
    """
    exact = np.exp(-(np.float32(hop_size) / np.float32(sample_rate)) / np.float32(tau))
    for decimals in range(3, 9):
        scale = np.float32(10.0**decimals)
        rounded = float(np.float32(np.round(exact * scale)) / scale)
        if rounded < 1.0:
            return float(np.float32(rounded))
    raise ModelError(f"norm_tau = {tau} s gives a decay of 1: the norms would never move")


@dataclasses.dataclass(frozen=True, slots=True)
class ModelConfig:
    """One variant of DeepFilterNet.

    Attributes
    ----------
    architecture : "deepfilternet2" or "deepfilternet3"
        Decides which spectrum the deep filter reads and with it the delay.
    sample_rate : int, Hz
    fft_size, hop_size : int, samples
    nb_erb : int
        ERB bands of the mask.
    nb_df : int
        Lowest bins, which the deep filter replaces.
    df_order : int
        Taps (frames) of the deep filter.
    min_nb_erb_freqs : int
        Fewest bins an ERB band may have.
    norm_alpha : float
        Decay of the two feature norms per hop.
    conv_lookahead, df_lookahead : int, frames
        Frames the encoder and the deep filter look ahead.
    """

    architecture: Architecture
    sample_rate: int
    fft_size: int
    hop_size: int
    nb_erb: int
    nb_df: int
    df_order: int
    min_nb_erb_freqs: int
    norm_alpha: float
    conv_lookahead: int
    df_lookahead: int

    def __post_init__(self) -> None:
        for name, low, high in _LIMITS:
            value = getattr(self, name)
            if not low <= value <= high:
                raise ModelError(f"config: {name} = {value} is outside {low} to {high}")
        if self.fft_size % 2 or not self.hop_size <= self.fft_size // 2:
            raise ModelError(
                f"config: fft_size = {self.fft_size} must be even, at least twice hop_size = {self.hop_size}"
            )
        if self.nb_df > self.bins or self.nb_erb * self.min_nb_erb_freqs > self.bins:
            raise ModelError(
                f"config: nb_df = {self.nb_df} or nb_erb = {self.nb_erb} is more than {self.bins} bins hold"
            )
        if self.df_lookahead >= self.df_order:
            raise ModelError(
                f"config: df_lookahead = {self.df_lookahead} needs more taps than df_order = {self.df_order}"
            )

    # -- what follows from the numbers ------------------------------------------------------------

    @property
    def bins(self) -> int:
        """Bins of a spectrum."""
        return self.fft_size // 2 + 1

    @property
    def filters_masked(self) -> bool:
        """Whether the deep filter reads the masked spectrum (DFN2) instead of the noisy one (DFN3)."""
        return self.architecture == "deepfilternet2"

    @property
    def delay_frames(self) -> int:
        """Frames between the newest input frame and the one that can be output."""
        if self.filters_masked:
            return self.conv_lookahead + self.df_lookahead
        return max(self.conv_lookahead, self.df_lookahead)

    @property
    def delay_samples(self) -> int:
        """Samples the output lags the input: the overlap of the transform and ``delay_frames`` hops."""
        return self.fft_size - self.hop_size + self.delay_frames * self.hop_size

    @property
    def variant(self) -> str:
        """Name of the variant for people, such as ``DeepFilterNet3`` or ``DeepFilterNet2 LL``."""
        name = "DeepFilterNet2" if self.filters_masked else "DeepFilterNet3"
        return name if self.delay_frames else f"{name} LL"

    # -- reading and writing -----------------------------------------------------------------------

    @classmethod
    def from_ini(cls, text: str, *, source: str = "config.ini") -> ModelConfig:
        """Read the ``config.ini`` of an export.

        Parameters
        ----------
        text : str
            Contents of the file.
        source : str
            Name used in errors.

        Raises
        ------
        ModelError
            Not an INI file, a missing key, or a value out of range.
        """
        ini = _parse(text, source)
        architecture = ini.get("train", "model", fallback="").strip().lower()
        if architecture not in ("deepfilternet2", "deepfilternet3"):
            raise ModelError(
                f"{source}: [train] model = {architecture or '(missing)'} is not supported",
                hint="dfstream runs deepfilternet2 and deepfilternet3 exports",
            )

        def number(key: str, *sections: str) -> int:
            for section in sections:
                if ini.has_option(section, key):
                    return _integer(ini.get(section, key), f"{source}: [{section}] {key}")
            raise ModelError(f"{source}: {key} is missing from [{'] and ['.join(sections)}]")

        sample_rate, hop_size = number("sr", "df"), number("hop_size", "df")
        if sample_rate <= 0 or hop_size <= 0:
            raise ModelError(f"{source}: sr and hop_size must be positive")
        return cls(
            architecture=architecture,  # type: ignore[arg-type]
            sample_rate=sample_rate,
            fft_size=number("fft_size", "df"),
            hop_size=hop_size,
            nb_erb=number("nb_erb", "df"),
            nb_df=number("nb_df", "df"),
            # DFN2's file keeps these two with the network; [df] wins where both have them
            df_order=number("df_order", "df", "deepfilternet"),
            df_lookahead=number("df_lookahead", "df", "deepfilternet"),
            min_nb_erb_freqs=number("min_nb_erb_freqs", "df"),
            norm_alpha=_alpha(ini, sample_rate, hop_size, source),
            conv_lookahead=number("conv_lookahead", "deepfilternet"),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values, for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any], *, source: str = "metadata") -> ModelConfig:
        """Read what `to_dict` wrote.

        Raises
        ------
        ModelError
            A field is missing, unknown, or of the wrong type.
        """
        fields = {f.name: f for f in dataclasses.fields(cls)}
        if not isinstance(values, dict) or set(values) != set(fields):
            raise ModelError(
                f"{source}: the embedded configuration is not one this version of dfstream wrote"
            )
        for name, value in values.items():
            wanted = str if name == "architecture" else float if name == "norm_alpha" else int
            if not isinstance(value, wanted) or isinstance(value, bool):
                raise ModelError(f"{source}: {name} = {value!r} is not a {wanted.__name__}")
        if values["architecture"] not in ("deepfilternet2", "deepfilternet3"):
            raise ModelError(f"{source}: architecture = {values['architecture']!r} is not supported")
        return cls(**values)


#: Ranges wide enough for any member of the family, narrow enough that no buffer becomes absurd.
_LIMITS = (
    ("sample_rate", 4_000, 384_000),
    ("fft_size", 16, 16_384),
    ("hop_size", 8, 8_192),
    ("nb_erb", 1, 512),
    ("nb_df", 1, 8_193),
    ("df_order", 1, 64),
    ("min_nb_erb_freqs", 1, 1_024),
    ("norm_alpha", 0.0, 1.0),
    ("conv_lookahead", 0, 64),
    ("df_lookahead", 0, 63),
)

#: Beyond any limit above; what is larger would overflow a float32 before it is compared with them.
_LARGEST = 2**31


def _parse(text: str, source: str) -> configparser.ConfigParser:
    ini = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        ini.read_string(text)
    except configparser.Error as error:
        raise ModelError(f"{source}: not a configuration file ({str(error).splitlines()[0]})") from error
    return ini


def _integer(text: str, where: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise ModelError(f"{where} = {text!r} is not a whole number") from None
    if abs(value) > _LARGEST:
        raise ModelError(f"{where} = {text} is absurdly large")
    return value


def _alpha(ini: configparser.ConfigParser, sample_rate: int, hop_size: int, source: str) -> float:
    """``norm_alpha`` where the file has it (libDF lets it win), else the rounded decay of ``norm_tau``."""
    key = "norm_alpha" if ini.has_option("df", "norm_alpha") else "norm_tau"
    if not ini.has_option("df", key):
        raise ModelError(f"{source}: norm_tau is missing from [df]")
    text = ini.get("df", key)
    try:
        value = float(text)
    except ValueError:
        raise ModelError(f"{source}: [df] {key} = {text!r} is not a number") from None
    if not 1.0 / _LARGEST <= value <= _LARGEST:
        raise ModelError(f"{source}: [df] {key} = {text!r} is not a positive number of a sensible size")
    return value if key == "norm_alpha" else norm_alpha(sample_rate, hop_size, value)
