"""Which decoders a frame needs, by its local SNR: libDF's three-way decision."""

from __future__ import annotations

import dataclasses
import enum

__all__ = ["Stage", "Thresholds"]


class Stage(enum.IntEnum):
    """What is done with a frame."""

    #: Muted: a zero mask. No decoder runs.
    MUTED = 0
    #: Passed on as it is, delayed. No decoder runs.
    PASSED = 1
    #: Masked. The ERB decoder runs.
    MASKED = 2
    #: Masked and deep filtered. Both decoders run.
    FULL = 3


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """Limits of the local SNR (libDF ``tract.rs: apply_stages``).

    A decoder that is not run keeps its state. The defaults are those of libDF's command line and never
    trigger: the LSNR lies strictly between -15 and 35 dB. In DeepFilterNet3 the mask means nothing below
    4.8 kHz, where training always let the deep filter replace it: ``max_df_db`` below 35 ruins its output.

    Attributes
    ----------
    min_db : float, dB
        Frames below are muted.
    max_erb_db : float, dB
        Frames above are passed on.
    max_df_db : float, dB
        Frames above are only masked.
    """

    min_db: float = -15.0
    max_erb_db: float = 35.0
    max_df_db: float = 35.0

    def stage(self, lsnr_db: float) -> Stage:
        """Return what is done with a frame of this local SNR; the first condition that holds decides."""
        if lsnr_db < self.min_db:
            return Stage.MUTED
        if lsnr_db > self.max_erb_db:
            return Stage.PASSED
        return Stage.MASKED if lsnr_db > self.max_df_db else Stage.FULL

    @property
    def never_trigger(self) -> bool:
        """Whether every frame is `Stage.FULL`, whatever its LSNR."""
        return self.min_db <= -15.0 and self.max_erb_db >= 35.0 and self.max_df_db >= 35.0
