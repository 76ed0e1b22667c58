"""Names of the tensors that go in and out of the graphs, and the one rule that pairs states.

An export has three graphs: ``enc`` (features to skips, embedding and LSNR), ``erb_dec`` (to the mask)
and ``df_dec`` (to the deep-filter coefficients). B is the batch (streams), T the number of frames.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "EXPORTS",
    "FEATURES",
    "LINKS",
    "MASK",
    "RESULTS",
    "batch_axis",
    "is_gru_state",
    "state_inputs",
    "state_output",
]

#: Graphs of an official export.
EXPORTS = ("enc", "erb_dec", "df_dec")

#: ``feat_erb`` float32 [B, 1, T, bands] and ``feat_spec`` float32 [B, 2, T, df bins] (re, im).
FEATURES = ("feat_erb", "feat_spec")

#: Tensors that the encoder hands to the decoders, under one name in every export.
LINKS = ("e0", "e1", "e2", "e3", "emb", "c0")

#: ``lsnr`` [B, T, 1] in dB, ``m`` [B, 1, T, bands], ``coefs`` [B, T, df bins, 2 * taps].
RESULTS = ("lsnr", "m", "coefs")

#: What the canonical graph, whose tensors accelerators show to people, calls ``m``.
MASK = "mask"


def is_gru_state(name: str) -> bool:
    """Whether an input is the state of GRUs, [layers, B, hidden]: ``h0``, ``erb_h0``, ``df_h0``."""
    return name == "h0" or name.endswith("_h0")


def batch_axis(name: str) -> int:
    """Return the axis of an input that counts streams: GRU states have their layers first."""
    return 1 if is_gru_state(name) else 0


def state_output(name: str) -> str:
    """Name of the output that carries the next value of a state input.

    GRU states are called ``h0``, ``erb_h0``, ``df_h0`` and come out as ``h1``, ``erb_h1``, ``df_h1``;
    every other state ``x`` comes out as ``x_out``.
    """
    return f"{name[:-1]}1" if is_gru_state(name) else f"{name}_out"


def state_inputs(inputs: Iterable[str], outputs: Iterable[str]) -> list[str]:
    """Return which inputs of a graph are states: those whose next value is an output."""
    given = set(outputs)
    signal = {*FEATURES, *LINKS}  # ``emb`` goes in and ``emb_out`` out, but it is no state
    return [name for name in inputs if name not in signal and state_output(name) in given]
