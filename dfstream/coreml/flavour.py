"""What kind of package is wanted: precision, where states live, oldest system, frames a call."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

from dfstream.errors import UsageError

__all__ = ["PRECISIONS", "TARGETS", "Flavour", "StateStyle", "Target", "state_shape"]

StateStyle = Literal["explicit", "coreml"]

#: How weights and arithmetic may be stored.
PRECISIONS: dict[str, str] = {
    "fp16": "half precision, but states, their update and all that only features reach in fp32",
    "fp32": "exact to rounding",
    "int8": "as fp16, the matrices of the decoders in 8 bits, a scale for each row",
    "palette": "as int8, but 256 values chosen for each matrix by k-means",
    "ane": "half precision throughout, interface included: what the Neural Engine takes without casts",
}


@dataclasses.dataclass(frozen=True)
class Target:
    """A generation of systems.

    Attributes
    ----------
    opset : str
        Its name in coremltools, and the generation for iOS.
    names : tuple of str
        What people call it.
    year : int
        To compare by.
    """

    opset: str
    names: tuple[str, ...]
    year: int


TARGETS = (
    Target("iOS16", ("macos13", "ios16", "tvos16", "watchos9"), 2022),
    Target("iOS17", ("macos14", "ios17", "tvos17", "watchos10"), 2023),
    Target("iOS18", ("macos15", "ios18", "tvos18", "watchos11"), 2024),
    Target("iOS26", ("macos26", "ios26", "tvos26", "watchos26"), 2025),
)

#: Core ML states came with this one.
_STATEFUL = TARGETS[2]

_MOST_FRAMES = 16

#: A Core ML state works on the Neural Engine if its last axis is a multiple of this (apple/coremltools#2631).
_LANES = 32


@dataclasses.dataclass(frozen=True)
class Flavour:
    """One kind of package.

    Attributes
    ----------
    precision : str
        One of `PRECISIONS`.
    state : "explicit" or "coreml"
        Whether states are inputs and outputs, so that the caller holds them, or inside Core ML.
    target : str
        Oldest system it has to run on, such as ``macos13``; empty for the oldest that can.
    block_frames : int
        Frames a call.

    Raises
    ------
    UsageError
        A value out of range, or values that do not go together.
    """

    precision: str = "fp16"
    state: StateStyle = "explicit"
    target: str = ""
    block_frames: int = 1

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise UsageError(
                f"precision = {self.precision!r}, expected one of {', '.join(map(repr, PRECISIONS))}"
            )
        if self.state not in get_args(StateStyle):
            raise UsageError(f"state = {self.state!r}, expected 'explicit' or 'coreml'")
        if type(self.block_frames) is not int or not 1 <= self.block_frames <= _MOST_FRAMES:
            raise UsageError(
                f"block_frames = {self.block_frames!r}, expected a whole number, 1 to {_MOST_FRAMES}",
                hint="a block is unrolled: longer ones make programs that take long to load",
            )
        if self.generation.year < _STATEFUL.year and self.state == "coreml":
            raise UsageError(
                f"Core ML states need {' or '.join(_STATEFUL.names[:2])}, not {self.target}",
                hint="use explicit states, or another target",
            )
        if self.state == "coreml" and self.precision == "palette":
            raise UsageError(
                "palettes and Core ML states crash together on the Neural Engine (apple/coremltools#2716)",
                hint="use int8, or explicit states",
            )

    @property
    def generation(self) -> Target:
        """The oldest generation of systems that it runs on."""
        if not self.target:
            return _STATEFUL if self.state == "coreml" else TARGETS[0]
        for target in TARGETS:
            if self.target.lower() in (target.opset.lower(), *target.names):
                return target
        known = ", ".join(name for target in TARGETS for name in target.names[:2])
        raise UsageError(f"target = {self.target!r} is not known", hint=f"known: {known}")

    @property
    def half_interface(self) -> bool:
        """Whether inputs and outputs are float16."""
        return self.precision == "ane"


def state_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape that Core ML keeps a state in: vectors lie in rows."""
    _, channels, _, width = shape
    return (1, channels // _LANES, 1, _LANES) if width == 1 and channels % _LANES == 0 else shape
