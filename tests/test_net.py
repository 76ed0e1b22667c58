"""The backend numba as a whole: the same network as on ONNX Runtime, the same bits however it is called."""

import dataclasses
import functools
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import exports
import oracle
import synthetic
from dfstream import Stream
from dfstream.backends.base import find_backend
from dfstream.errors import BackendError, DfstreamError, UnsupportedGraph, UsageError
from dfstream.gating import Stage, Thresholds
from dfstream.model import Model
from dfstream.modes.base import find_mode, mode_names
from dfstream.net.packing import PRECISIONS

RECIPE = find_mode("incremental").recipe()
FRAMES = 300

#: Sizes that no published model has: channels and hidden sizes that fill no vector, other numbers of
#: bands, bins and taps, other kernels, layers and groups.
_DFN3, _DFN2 = (synthetic.PRESETS[name] for name in ("dfn3", "dfn2"))
ODD = {
    "12 channels": dataclasses.replace(_DFN3, conv_ch=12, emb_hidden_dim=40, df_hidden_dim=56),
    "5 channels": dataclasses.replace(_DFN2, conv_ch=5, emb_hidden_dim=24, df_hidden_dim=104),
    "one channel": dataclasses.replace(_DFN3, conv_ch=1, enc_linear_groups=4, linear_groups=4),
    "20 bands": dataclasses.replace(_DFN3, nb_erb=20, nb_df=50, df_order=4, enc_linear_groups=8),
    "narrow": dataclasses.replace(
        _DFN3, nb_erb=4, nb_df=2, df_order=4, enc_linear_groups=8, min_nb_erb_freqs=1
    ),
    "groups of one": dataclasses.replace(_DFN2, conv_ch=2, df_hidden_dim=32, linear_groups=16),
    "one tap": dataclasses.replace(_DFN2, df_order=1, df_lookahead=0, nb_df=32),
    "ungrouped": dataclasses.replace(
        _DFN3, conv_depthwise=False, enc_linear_groups=1, linear_groups=1, df_linear_groups=1
    ),
    "wide kernels": dataclasses.replace(
        _DFN3, conv_kernel=(1, 5), conv_kernel_inp=(2, 5), df_pathway_kernel_size_t=2
    ),
    "long kernels": dataclasses.replace(_DFN3, conv_kernel=(3, 3), conv_kernel_inp=(4, 3), conv_ch=4),
    "point kernels": dataclasses.replace(
        _DFN2, conv_kernel=(1, 1), conv_kernel_inp=(1, 1), df_pathway_kernel_size_t=1
    ),
    "few layers": dataclasses.replace(_DFN3, emb_num_layers=2, df_num_layers=1, conv_lookahead=1),
    "many layers": dataclasses.replace(_DFN2, emb_num_layers=5, df_num_layers=4, df_lookahead=3),
    "large groups": dataclasses.replace(_DFN3, conv_ch=16, emb_hidden_dim=128, df_hidden_dim=128),
    "odd lean": dataclasses.replace(
        synthetic.PRESETS["lean"], conv_ch=7, emb_hidden_dim=50, df_hidden_dim=33, nb_df=30, df_order=3
    ),
}

#: Those that differ most from the published ones.
_QUICK = ("12 channels", "narrow", "groups of one", "ungrouped", "long kernels", "odd lean")

every_odd = pytest.mark.parametrize(
    "name", [name if name in _QUICK else pytest.param(name, marks=pytest.mark.slow) for name in ODD]
)
every_variant = oracle.every_model(quick=("dfn3", "dfn2", "dfn3-ll", "wideband16k"))
few = pytest.mark.parametrize("name", [*oracle.FEW, "bundled"])


@functools.cache
def _odd_folder():
    return tempfile.TemporaryDirectory()


@functools.cache
def odd(name):
    """An odd model, speech for it, and what its unpatched graphs make of it."""
    folder = synthetic.write(Path(_odd_folder().name) / name, ODD[name], seed=4)
    model = Model.load(folder)
    feats = oracle.speech(model.config, FRAMES)
    return oracle.Case(folder, model, feats, oracle.whole(folder, feats))


def running(model, batch=1, backend="numba", **options):
    return find_mode("incremental")(model, find_backend(backend, **options), batch)


def results(net):
    return dict(zip(net._fields, net, strict=True))


def step(mode, feats):
    return results(mode.step(feats["feat_erb"], feats["feat_spec"]))


def in_calls(mode, feats, sizes):
    return oracle.join(step(mode, piece) for piece in oracle.cut(feats, sizes))


def same_bits(a, b):
    return all((a[name].view(np.uint32) == b[name].view(np.uint32)).all() for name in a)


def some_frames(name, frames, batch=1, seed=5):
    return oracle.noise(oracle.case(name).model.config, frames, seed, batch)


# -- the same network ----------------------------------------------------------------------------------------


@every_variant
def test_equals_the_export_and_the_runtime(name):
    """From the first frame on, which the largest of all would hide."""
    case = oracle.case(name, FRAMES)
    ours = step(running(case.model), case.feats)
    oracle.check_equal(ours, case.want)
    oracle.check_equal(ours, case.want, frames=slice(0, 9))
    oracle.check_equal(ours, step(running(case.model, backend="ort-cpu"), case.feats))


@every_odd
def test_models_of_odd_sizes(name):
    case = odd(name)
    ours = step(running(case.model), case.feats)
    oracle.check_equal(ours, case.want)
    assert all(np.ptp(case.want[result]) > 0.01 for result in ours), "a network that is not alive"


@pytest.mark.slow
@pytest.mark.parametrize("name", ODD)
def test_models_of_odd_sizes_give_the_same_bits_in_any_calls(name):
    case = odd(name)
    feats = {key: value[:, :, :40] for key, value in case.feats.items()}
    whole = step(running(case.model), feats)
    for sizes in (1, 7, 33):
        assert same_bits(in_calls(running(case.model), feats, sizes), whole)


# -- the same bits -------------------------------------------------------------------------------------------


@few
def test_every_grouping_gives_the_same_bits(name):
    case = oracle.case(name, 110)
    whole = step(running(case.model), case.feats)
    for sizes in (1, 2, 3, 7, 32, 33, 100):
        assert same_bits(in_calls(running(case.model), case.feats, sizes), whole)


@pytest.mark.slow
@few
@given(st.data())
def test_any_grouping_gives_the_same_bits(name, data):
    case = oracle.case(name, 110)
    sizes = data.draw(oracle.splits(110))
    whole = step(running(case.model), case.feats)
    assert same_bits(in_calls(running(case.model), case.feats, sizes), whole)


@pytest.mark.parametrize(
    ("name", "batch"),
    [
        *(("dfn3", batch) for batch in (2, 3, 5, 32, 33, 64)),
        *((name, batch) for name in ("dfn2-ll", "dfn3-ll", "lean", "bundled") for batch in (5, 33)),
    ],
)
def test_a_batch_gives_each_stream_its_own_bits(name, batch):
    model, feats = oracle.case(name).model, some_frames(name, 9, batch)
    together = in_calls(running(model, batch), feats, [4, 1, 3, 1])
    alone = running(model)
    for b in {0, 1, batch // 2, batch - 1}:
        alone.reset()
        mine = step(alone, {key: value[b : b + 1] for key, value in feats.items()})
        assert same_bits({key: value[b : b + 1] for key, value in together.items()}, mine)


@settings(max_examples=25)
@given(batch=st.integers(1, 70), frames=st.integers(1, 40), cut=st.data(), seed=st.integers(0, 99))
def test_any_batch_of_any_length_gives_the_same_bits(batch, frames, cut, seed):
    model, feats = oracle.case("lean").model, some_frames("lean", frames, batch, seed)
    sizes = cut.draw(oracle.splits(frames)) if frames > 1 else 1
    together = in_calls(running(model, batch), feats, sizes)
    b = cut.draw(st.integers(0, batch - 1))
    alone = step(running(model), {key: value[b : b + 1] for key, value in feats.items()})
    assert same_bits({key: value[b : b + 1] for key, value in together.items()}, alone)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("batch", [1, 3, 33])
def test_every_precision_gives_the_same_bits_in_any_calls(precision, batch):
    model, feats = oracle.case("dfn3").model, some_frames("dfn3", 40, batch)
    whole = step(running(model, batch, precision=precision), feats)
    for sizes in (1, 7):
        assert same_bits(in_calls(running(model, batch, precision=precision), feats, sizes), whole)


def test_features_in_any_layout_give_the_same_bits():
    """Views of larger arrays, as slices of a batch are."""
    model, feats = oracle.case("dfn3").model, some_frames("dfn3", 9, 3)
    wide = {key: np.repeat(np.repeat(value, 2, axis=2), 2, axis=3) for key, value in feats.items()}
    views = {key: value[:, :, ::2, ::2] for key, value in wide.items()}
    assert not any(value.flags.c_contiguous for value in views.values())
    assert same_bits(step(running(model, 3), views), step(running(model, 3), feats))


# -- states --------------------------------------------------------------------------------------------------


@few
def test_a_copied_state_continues(name):
    case = oracle.case(name, 110)
    whole = in_calls(running(case.model), case.feats, [60, 50])
    first, second = running(case.model), running(case.model)
    pieces = list(oracle.cut(case.feats, [60, 50]))
    before = step(first, pieces[0])
    second.state = {key: value.copy() for key, value in first.state.items()}
    step(first, some_frames(name, 5))  # which does not reach the copy
    assert same_bits(oracle.join([before, step(second, pieces[1])]), whole)


def test_states_given_are_left_alone():
    mode = running(oracle.case("dfn3").model)
    step(mode, some_frames("dfn3", 5))
    given = mode.state
    copies = {key: value.copy() for key, value in given.items()}
    before = dict(given)
    mode.state = dict(given)
    step(mode, some_frames("dfn3", 5, seed=6))
    for key in copies:
        assert (before[key] == copies[key]).all()
        assert (mode.state[key] != copies[key]).any()


def test_states_are_the_runtimes_in_number():
    """As much is carried as the compact graph has states; each part of the network has one array."""
    model = oracle.case("dfn3").model
    mode = running(model, 3)
    assert {key: value.shape for key, value in mode.state.items()} == {
        "state_enc": (3, 480), "state_erb": (3, 64), "state_df": (3, 3120),
    }  # fmt: skip
    assert mode.sections == {"state_enc": "enc", "state_erb": "erb", "state_df": "df"}


@pytest.mark.parametrize("name", ["dfn3", "dfn3-ll"])
@pytest.mark.parametrize("parts", [{"erb"}, {"df"}, {"erb", "df"}], ids=lambda parts: "+".join(sorted(parts)))
def test_an_old_state_of_a_decoder_can_be_put_back(name, parts):
    """As gating does: the other parts move on, this one as if the frame had not been."""
    model = oracle.case(name).model
    pieces = [some_frames(name, 4, seed=seed) for seed in range(3)]
    both = {backend: running(model, backend=backend) for backend in ("numba", "ort-cpu")}
    found = {}
    for backend, mode in both.items():
        step(mode, pieces[0])
        before = dict(mode.state)
        step(mode, pieces[1])
        for key, section in mode.sections.items():
            if section in parts:
                mode.state[key] = before[key]
        found[backend] = step(mode, pieces[2])
    oracle.check_equal(found["numba"], found["ort-cpu"])


@few
def test_gating_is_that_of_the_runtime(name):
    """Thresholds that every stage passes: frames whose decoders keep their states are skipped alike."""
    case = oracle.case(name, FRAMES)
    levels = np.quantile(case.want["lsnr"], [0.25, 0.5, 0.75])
    thresholds = Thresholds(*(float(levels[i]) for i in (0, 2, 1)))
    found = []
    for backend in ("numba", "ort-cpu"):
        net, stages = running(case.model, backend=backend).step_gated(*case.feats.values(), thresholds)
        found.append((results(net), stages))
    (ours, stages), (theirs, wanted) = found
    assert (stages == wanted).all()
    assert set(stages) == {Stage.MUTED, Stage.PASSED, Stage.MASKED, Stage.FULL}
    oracle.check_equal(ours, theirs)


def test_streams_of_one_session_do_not_meet():
    model = oracle.case("dfn3").model
    one, other = running(model), running(model)
    assert one.sessions == other.sessions
    feats = [some_frames("dfn3", 12, seed=seed) for seed in (1, 2)]
    wanted = [step(running(model), f) for f in feats]
    pieces = [list(oracle.cut(f, [1, 5, 2, 4])) for f in feats]
    found = [[], []]
    for a, b in zip(*pieces, strict=True):
        found[0].append(step(one, a))
        found[1].append(step(other, b))
    assert all(same_bits(oracle.join(f), w) for f, w in zip(found, wanted, strict=True))


def test_threads_of_one_session_do_not_meet():
    """Each with its own features, two of each batch and number of frames, many times over."""
    model, found = oracle.case("dfn3").model, {}
    calls = [(1, 1), (1, 33), (3, 4)] * 2
    feats = [some_frames("dfn3", 40, batch, seed) for seed, (batch, _) in enumerate(calls)]
    wanted = [step(running(model, f["feat_erb"].shape[0]), f) for f in feats]

    def run(index):
        batch, size = calls[index]
        found[index] = [in_calls(running(model, batch), feats[index], size) for _ in range(10)]

    threads = [threading.Thread(target=run, args=[i]) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, expected in enumerate(wanted):
        assert len(found[index]) == 10
        assert all(same_bits(result, expected) for result in found[index])


def test_results_are_the_callers_to_keep():
    mode = running(oracle.case("dfn3").model)
    first = step(mode, some_frames("dfn3", 5))
    copies = {key: value.copy() for key, value in first.items()}
    step(mode, some_frames("dfn3", 5, seed=6))
    assert same_bits(first, copies)
    assert all(value.flags.writeable for value in first.values())


# -- precisions ----------------------------------------------------------------------------------------------

#: Least SNR against float32 weights: of the audio, the gains and the taps. Measured with the bundled model
#: 86.7, 94.3, 85.7 (int16), 73.6, 80.2, 72.5 (fp16), 40.0, 47.8, 35.4 dB (int8); with official DFN3
#: 84.4, 90.7, 81.1, then 76.1, 77.4, 69.0, then 37.6, 39.8, 32.2 dB.
FLOORS_DB = {"int16": (80, 87, 78), "fp16": (70, 74, 66), "int8": (34, 36, 29)}


def snr_db(y, want):
    y, want = y.astype(np.float64), want.astype(np.float64)
    return 10 * np.log10(np.sum(want**2) / np.sum((y - want) ** 2))


@pytest.mark.parametrize("precision", FLOORS_DB)
@pytest.mark.parametrize("name", ["bundled", "official dfn3"])
def test_what_a_precision_costs(name, precision, noisy):
    case, (audio, gains, taps) = oracle.case(name, FRAMES), FLOORS_DB[precision]
    full, reduced = (step(running(case.model, precision=p), case.feats) for p in ("float32", precision))
    assert snr_db(reduced["m"], full["m"]) >= gains
    assert snr_db(reduced["coefs"], full["coefs"]) >= taps
    backends = (find_backend("numba", precision=p) for p in ("float32", precision))
    want, y = (Stream(case.model, backend=b, block_frames=100).process(noisy) for b in backends)
    assert snr_db(y, want) >= audio


def test_precisions_differ():
    """Else an option would be without effect."""
    case = oracle.case("bundled", FRAMES)
    found = [step(running(case.model, precision=p), case.feats)["m"] for p in PRECISIONS]
    assert all((a != b).any() for i, a in enumerate(found) for b in found[:i])


def test_precisions_are_loaded_side_by_side():
    model = oracle.case("lean").model
    one, same, other = (
        model.open(find_backend("numba", precision=p), RECIPE) for p in ("fp16", "fp16", "int8")
    )
    assert one is same
    assert one is not other


# -- refusals ------------------------------------------------------------------------------------------------


def refusal(kind, call, *args, **options):
    with pytest.raises(kind) as caught:
        call(*args, **options)
    assert isinstance(caught.value, DfstreamError)
    assert str(caught.value).isprintable()
    return str(caught.value), caught.value.hint


@pytest.mark.parametrize("precision", ["", "float16", "INT8", "int4", None, 8])
def test_an_unknown_precision(precision):
    message, _ = refusal(UsageError, find_backend, "numba", precision=precision)
    assert message == f"precision = {precision!r}, expected one of 'float32', 'int16', 'fp16', 'int8'"


@pytest.mark.parametrize("mode", [name for name in mode_names() if name != "incremental"])
def test_other_modes(mode):
    message, hint = refusal(UnsupportedGraph, Stream, oracle.case("lean").model, mode=mode, backend="numba")
    assert message == f"the backend numba runs the mode incremental, not {mode}"
    assert hint == "use the backend ort-cpu"


def test_only_a_patched_graph_at_hand(tmp_path):
    """The compact graph can be made of the export alone."""
    (data,) = oracle.case("lean").model.graphs(RECIPE).values()
    model = Model.load(exports.write(tmp_path / "patched", {"combined_incremental.onnx": data}))
    assert Stream(model, backend="ort-cpu")
    message, hint = refusal(UnsupportedGraph, Stream, model, backend="numba")
    assert "at hand is only combined_incremental" in message
    assert hint == "load the original export: every mode can be made from it"


def test_a_merged_export_is_enough(tmp_path):
    case = oracle.case("lean")
    (tmp_path / "config.ini").write_bytes((case.folder / "config.ini").read_bytes())
    (tmp_path / "combined.onnx").write_bytes(exports.merged(case.model))
    model = Model.load(tmp_path)
    assert same_bits(step(running(model), case.feats), step(running(case.model), case.feats))


@pytest.fixture(scope="module")
def session():
    (session,) = oracle.case("dfn3").model.open(find_backend("numba"), RECIPE).values()
    return session


def feeds(session, batch=2, frames=3):
    states = {name: np.zeros((batch, size), np.float32) for name, (_, size) in session.states.items()}
    return {**some_frames("dfn3", frames, batch), **states}


WRONG = {
    "no features": lambda x: {k: v for k, v in x.items() if k != "feat_erb"},
    "no complex features": lambda x: {k: v for k, v in x.items() if k != "feat_spec"},
    "no state": lambda x: {k: v for k, v in x.items() if k != "state_df"},
    "narrower": lambda x: {**x, "feat_erb": x["feat_erb"][..., :-1]},
    "wider": lambda x: {**x, "feat_spec": np.pad(x["feat_spec"], ((0, 0), (0, 0), (0, 0), (0, 1)))},
    "other rank": lambda x: {**x, "feat_erb": x["feat_erb"][0]},
    "other type": lambda x: {**x, "feat_erb": x["feat_erb"].astype(np.float64)},
    "fewer streams": lambda x: {**x, "state_enc": x["state_enc"][:1]},
    "fewer frames": lambda x: {**x, "feat_spec": x["feat_spec"][:, :, :1]},
    "longer state": lambda x: {**x, "state_erb": np.pad(x["state_erb"], ((0, 0), (0, 1)))},
    "none": lambda x: {**x, "feat_erb": None},
    "text": lambda x: {**x, "feat_spec": "text"},
}  # fmt: skip


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_wrong_feeds(session, change):
    """Kernels do not look at sizes: what does not fit must not reach them."""
    right = feeds(session)
    assert session.run(right)["m"].shape == (2, 1, 3, 32)
    assert refusal(BackendError, session.run, change(right))[0].startswith("numba: ")


def test_shapes_of_results(session):
    out = session.run(feeds(session, 5, 4))
    assert {name: array.shape for name, array in out.items()} == {
        "lsnr": (5, 4, 1), "m": (5, 1, 4, 32), "coefs": (5, 4, 96, 10),
        "state_enc_out": (5, 480), "state_erb_out": (5, 64), "state_df_out": (5, 3120),
    }  # fmt: skip
    assert all(array.dtype == np.float32 for array in out.values())


# -- the whole stream ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"parity": "python", "block_frames": 7}, {"post_filter": 0.05}], ids=str
)
def test_a_stream_sounds_as_on_the_runtime(bundled, noisy, options):
    x = noisy[24_000:][:96_123]
    y, want = (
        np.concatenate([(s := Stream(bundled, backend=b, **options)).process(x), s.flush()])
        for b in ("numba", "ort-cpu")
    )
    assert snr_db(y, want) >= 110  # measured: 124 dB


def test_two_channels(bundled, noisy):
    x = np.stack([noisy[:48_000], noisy[48_000:96_000]], axis=1)
    both = Stream(bundled, backend="numba", channels=2).process(x)
    for c in (0, 1):
        alone = Stream(bundled, backend="numba").process(np.ascontiguousarray(x[:, c]))
        assert (both[:, c] == alone).all()


def test_a_snapshot_continues_bit_for_bit(bundled, noisy):
    one, other = (Stream(bundled, backend="numba") for _ in range(2))
    one.process(noisy[:50_000])
    other.restore(one.snapshot())
    assert (one.process(noisy[50_000:80_000]) == other.process(noisy[50_000:80_000])).all()
