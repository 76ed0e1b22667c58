"""The whole engine as one graph, audio in, audio out: the signal's way around a network, all state packed.

========================= ==================== ======================================================
``audio``                 [B, hop] or [B, N]   samples, N a whole number of hops; what is no audio (NaN,
                                               beyond 1e6) counts as zero
``state``                 [B, S]               zeros at the beginning of a stream
``atten_lim``             [P]                  share of the noisy signal that stays, 0 to 1: 0 for no
                                               limit, else ``10^(-dB / 20)``
``pf_beta``               [P]                  strength of the post-filter: 0 is off, 0.02 usual
``enhanced``              like ``audio``       ``delay_samples`` late
``lsnr``                  [B, hops]            local SNR of the newest frames in dB
``state_out``             [B, S]               ``state`` of the next call
========================= ==================== ======================================================

B streams are independent of each other; P is 1, for one value for all, or B. There are two forms, one hop
a call around the lean graph and any number of hops a call around the incremental one, of the same state:
they may take turns. Only standard operators are used, no control flow. Where the state's parts lie and what
they are stands in the property ``dfstream.audio``, as JSON.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from dfstream.interface import FEATURES, RESULTS, is_gru_state, state_inputs, state_output

from .audio_state import STATE, STATE_OUT, PackedState
from .batch import free_batch
from .block_context import carry_lean_context
from .emitting import Emitter, sizes
from .fold import fold_constants
from .graph import BATCH
from .gru_state import expose_gru_layers
from .lean import lean
from .opset import OPSET
from .plain_shapes import plain_shapes
from .recipe import Recipe, read_metadata

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx

    from dfstream.config import ModelConfig

__all__ = [
    "BLOCK",
    "HOP",
    "audio_of_a_hop",
    "audio_of_hops",
    "block_recipe",
    "description_beside",
    "hop_recipe",
]

#: Names of the graphs.
HOP, BLOCK = "dfstream_audio_hop", "dfstream_audio_block"

#: What states of the network are, by the beginning of their names.
_MEANINGS = {
    "s_erb": "last frames of the ERB features",
    "s_spec": "last frames of the complex features, oldest first, (re, im) inside frames",
    "s_fir": "sums that a time convolution adds to frames to come, next first",
    "s_ctx": "last frames in front of a time convolution, oldest first, channels inside frames",
}


def hop_recipe() -> Recipe:
    """Return how the graph of one hop a call is made."""
    return Recipe("audio-graph-hop", (HOP,), (fold_constants,), lean, audio_of_a_hop)


def block_recipe() -> Recipe:
    """Return how the graph of any number of hops a call is made."""
    patches = (fold_constants, carry_lean_context, expose_gru_layers, free_batch, plain_shapes)
    return Recipe("audio-graph", (BLOCK,), patches, None, audio_of_hops)


def description_beside(graph: onnx.ModelProto, name: str) -> bytes | None:
    """Return the description of an audio graph for runtimes that do not give out metadata, None for others.

    Raises
    ------
    ModelError
        As `read_metadata`.
    """
    metadata = read_metadata(graph, name)
    if metadata is None or metadata.audio is None:
        return None
    return (json.dumps(metadata.audio, indent=2) + "\n").encode()


def audio_of_a_hop(network: gs.Graph, config: ModelConfig) -> tuple[gs.Graph, dict[str, str]]:
    """Put the signal's way around a network of one frame a call; see `audio_of_hops`."""
    return _surround(network, config, one_hop=True)


def audio_of_hops(network: gs.Graph, config: ModelConfig) -> tuple[gs.Graph, dict[str, str]]:
    """Put the signal's way around a network of any number of frames a call.

    Parameters
    ----------
    network : Graph
        Takes features, gives results, and has its states as inputs and outputs; becomes a part of the result.
    config : ModelConfig

    Returns
    -------
    Graph
    dict of str to str
        Its description, for the metadata.
    """
    return _surround(network, config, one_hop=False)


def _surround(network: gs.Graph, config: ModelConfig, one_hop: bool) -> tuple[gs.Graph, dict[str, str]]:
    # not above: what makes a recipe need not compile the kernels of the signal processing
    from .audio_analysis import Features, Transforms, frame_numbers
    from .audio_filter import SpectralFilter

    samples, hops = (config.hop_size, 1) if one_hop else ("N", "T")
    audio, atten_lim, pf_beta, enhanced, lsnr = (
        gs.Variable(name, np.dtype(np.float32), shape)
        for name, shape in (
            ("audio", [BATCH, samples]), ("atten_lim", ["P"]), ("pf_beta", ["P"]),
            ("enhanced", [BATCH, samples]), ("lsnr", [BATCH, hops]),
        )
    )  # fmt: skip
    inputs, outputs = ({t.name: t for t in tensors} for tensors in (network.inputs, network.outputs))
    states = sorted(state_inputs(inputs, outputs))
    emit = Emitter()
    state = PackedState(emit)
    numbers = None if one_hop else frame_numbers(emit, audio, config.hop_size)
    transforms = Transforms(config, numbers)
    spec = transforms.analyse(emit, state, audio)
    Features(config, numbers).compute(emit, state, spec, *(inputs[name] for name in FEATURES))
    _, m, coefs = (outputs[name] for name in RESULTS)
    filtered = SpectralFilter(config, numbers).apply(emit, state, spec, m, coefs, pf_beta, atten_lim)
    transforms.synthesise(emit, state, filtered, enhanced)
    emit.into(lsnr, "Reshape", [outputs["lsnr"], sizes(0, -1)])
    for name in states:
        state.adopt(inputs[name], outputs[state_output(name)], _meaning(name))
    before, after = state.close()
    _rename(network)
    graph = gs.Graph(
        nodes=[*network.nodes, *emit.nodes],
        inputs=[audio, before, atten_lim, pf_beta],
        outputs=[enhanced, lsnr, after],
        name="dfstream", opset=OPSET, ir_version=network.ir_version,
    )  # fmt: skip
    return graph.cleanup().toposort(), {"audio": json.dumps(_description(graph, config, state, one_hop))}


def _rename(network: gs.Graph) -> None:
    """Keep names of the network apart from those of the signal's way."""
    for tensor in network.tensors().values():
        tensor.name = f"network/{tensor.name}"
    for node in network.nodes:
        node.name = f"network/{node.name}"


def _meaning(name: str) -> str:
    if is_gru_state(name):
        return "network: state of a GRU"
    return f"network: {next(text for start, text in _MEANINGS.items() if name.startswith(start))}"


def _description(graph: gs.Graph, c: ModelConfig, state: PackedState, one_hop: bool) -> dict[str, Any]:
    """Everything that a caller in any language has to know."""
    offset, parts = 0, []
    for part in state.parts:
        parts.append(
            {
                "name": part.name, "offset": offset, "size": part.size, "shape": list(part.shape),
                "meaning": part.meaning,
            }
        )  # fmt: skip
        offset += part.size
    return {
        "producer": "dfstream",
        "format": 1,
        "variant": c.variant,
        "sample_rate": c.sample_rate,
        "hop_size": c.hop_size,
        "hops_per_call": 1 if one_hop else None,
        "delay_samples": c.delay_samples,
        "inputs": _interface(graph.inputs),
        "outputs": _interface(graph.outputs),
        "state": {"size": offset, "initial": 0, "input": STATE, "output": STATE_OUT, "parts": parts},
        "settings": _SETTINGS,
    }


def _interface(tensors: list[gs.Variable]) -> Mapping[str, Any]:
    return {
        tensor.name: {"dtype": "float32", "shape": list(tensor.shape), "meaning": _TENSORS[tensor.name]}
        for tensor in tensors
    }


_TENSORS = {
    "audio": "samples of B streams, full scale 1; N, where the graph has it, is T hops, T at least 1",
    "state": "zeros at the beginning of a stream, then state_out of the call before",
    "atten_lim": "see settings; P is 1, one value for all streams, or B",
    "pf_beta": "see settings; P is 1, one value for all streams, or B",
    "enhanced": "samples, delay_samples late",
    "lsnr": "local SNR of the newest frames in dB",
    "state_out": "state of the next call",
}

_SETTINGS = {
    "atten_lim": {
        "range": [0, 1],
        "off": 0,
        "meaning": "share of the noisy signal that stays: 10^(-dB / 20) limits the attenuation to dB, "
        "1 gives the delayed input",
    },
    "pf_beta": {
        "range": [0, 1],
        "off": 0,
        "meaning": "strength of the post-filter, 0.02 usual, 0.05 strong",
    },
}
