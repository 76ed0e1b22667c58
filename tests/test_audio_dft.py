"""The transform of audio graphs, as operators, against numpy's in float64."""

import numpy as np
import onnx_graphsurgeon as gs
import onnxruntime
import pytest
from dfstream.patches.audio_dft import Dft, Factors, factorise
from dfstream.patches.emitting import Emitter
from dfstream.patches.graph import export_graph

#: Least SNR in float32; measured are 131 dB and more.
LEAST_DB = 125

#: Coprime factors, powers of two, twice a prime, and the lengths of the family.
SIZES = (16, 30, 320, 480, 512, 882, 960, 1024, 1152, 1920, 502, 964)


def transforms(size):
    """Frames [2, 3, N] to bins [2, 3, 2, N / 2 + 1], and back."""
    dft, emit = Dft.of_size(size), Emitter()
    given = [
        gs.Variable("frames", np.float32, ["B", "T", *dft.order.shape]),
        gs.Variable("bins", np.float32, ["B", "T", 2, size // 2 + 1]),
    ]
    made = [dft.forward(emit, given[0], "forward"), dft.inverse(emit, given[1], "inverse")]
    for tensor, name in zip(made, ("spectrum", "samples"), strict=True):
        emit("Identity", [tensor], name)
    outputs = [node.outputs[0] for node in emit.nodes if node.op == "Identity"]
    for tensor in outputs:
        tensor.shape = ["B", "T", *(["K", "F"] if tensor.name == "spectrum" else ["N"])]
    graph = gs.Graph(emit.nodes, given, outputs, opset=14, ir_version=8)
    session = onnxruntime.InferenceSession(export_graph(graph), providers=["CPUExecutionProvider"])
    some = {port.name: np.zeros([2, 3, *port.shape[2:]], np.float32) for port in session.get_inputs()}
    return (
        lambda x: session.run(["spectrum"], {**some, "frames": x[..., dft.order]})[0],
        lambda bins: session.run(["samples"], {**some, "bins": bins})[0],
    )


def snr_db(want, got):
    return 10 * np.log10(np.sum(np.abs(want) ** 2) / np.sum(np.abs(got - want) ** 2))


@pytest.mark.parametrize("size", SIZES)
def test_forward_is_numpys(size):
    x = np.random.default_rng(size).standard_normal((2, 3, size), np.float32)
    got = transforms(size)[0](x)
    assert snr_db(np.fft.rfft(x.astype(np.float64)), got[:, :, 0] + 1j * got[:, :, 1]) > LEAST_DB
    assert not got[:, :, 1, [0, -1]].any(), "a real signal's first and last bin are real, exactly"


@pytest.mark.parametrize("size", SIZES)
def test_inverse_is_numpys_and_ignores_what_a_real_signal_does_not_have(size):
    inverse = transforms(size)[1]
    bins = np.random.default_rng(size).standard_normal((2, 3, 2, size // 2 + 1), np.float32)
    got = inverse(bins)
    whole = bins[:, :, 0].astype(np.float64) + 1j * bins[:, :, 1]
    whole[..., [0, -1]] = whole[..., [0, -1]].real
    assert snr_db(np.fft.irfft(whole) * size, got) > LEAST_DB
    bins[:, :, 1, [0, -1]] = 7
    assert np.array_equal(inverse(bins), got)


@pytest.mark.parametrize(
    ("size", "rows", "columns", "coprime"),
    [
        (960, 64, 15, True),
        (320, 64, 5, True),
        (1920, 128, 15, True),
        (512, 32, 16, False),
        (1024, 64, 16, False),
        (502, 1, 502, True),
    ],
)
def test_how_lengths_are_cut(size, rows, columns, coprime):
    factors = factorise(size)
    assert (factors, factors.coprime) == (Factors(rows, columns), coprime)
    assert factors.macs <= size * (size + 2)


def test_products_of_the_official_length():
    assert factorise(960).macs == 93_060
    dft = Dft.of_size(960)
    assert dft.first.size + dft.second.size < 6000
