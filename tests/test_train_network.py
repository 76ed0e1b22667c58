"""The network in training: compiled parts and graphs against plain twins, and runs that go on."""

# ruff: noqa: E402

from __future__ import annotations

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("scipy")

import onnx

import batches
import export
import kernels
import losses
import network
import optimiser
import pool
import targets
import training
from dfstream import catalog
from dfstream.errors import UsageError, VerifyFailed
from dfstream.model import Model
from dfstream.stream import Stream
from mixing import Item

SMALL = network.Shape(conv_ch=4, enc_hidden=24, erb_hidden=16, df_hidden=24, cemb=16)


def small_net(seed=0):
    torch.manual_seed(seed)
    return network.Net(SMALL)


@pytest.fixture(scope="module")
def config(bundled):
    return bundled.config


@pytest.fixture(scope="module")
def shards(config, tmp_path_factory):
    """A pool of two small shards with random rows."""
    folder = tmp_path_factory.mktemp("pool")
    rng = np.random.default_rng(0)
    for number in range(2):
        rows = rng.standard_normal((4, 60, targets.Layout.of(config).width))
        np.save(folder / f"{number:07d}.npy", np.abs(rows).astype(np.float16))
    return folder


def some_batches(shards, config, seed=0, **settings):
    cropping = batches.Cropping(items=8, frames=24, seed=seed, **settings)
    return batches.Batches(pool.Pool(shards), targets.Layout.of(config), config, cropping, "cpu")


# -- the network ---------------------------------------------------------------------------------------


def test_the_network_keeps_to_its_size():
    net = network.Net()
    assert net.parameter_count <= 1_000_000
    assert net.macs_per_hop() <= 1_200_000


def test_outputs_have_the_shapes_of_the_interface():
    net = small_net().eval()
    out = net(torch.zeros(2, 1, 7, 32), torch.zeros(2, 2, 7, 96))
    assert out.m.shape == (2, 1, 7, 32)
    assert out.z.shape == (2, 7, 96, 10)
    assert out.lsnr.shape == (2, 7, 1)


def test_the_network_is_causal():
    net = small_net().eval()
    generator = torch.Generator().manual_seed(1)
    feat_erb, feat_spec = (
        torch.randn(1, 1, 9, 32, generator=generator),
        torch.randn(1, 2, 9, 96, generator=generator),
    )
    with torch.no_grad():
        whole, begun = net(feat_erb, feat_spec), net(feat_erb[:, :, :5], feat_spec[:, :, :5])
    torch.testing.assert_close(begun.m, whole.m[:, :, :5])
    torch.testing.assert_close(begun.z, whole.z[:, :5])


def test_the_compiled_recurrence_is_torchs():
    torch.manual_seed(2)
    layer = network.Recurrent(20, 24).double().float()
    x = torch.randn(3, 11, 20, requires_grad=True)
    want = torch.nn.GRU.forward(layer, x)[0]
    direction = torch.randn_like(want)
    wanted = torch.autograd.grad((want * direction).sum(), [x, *layer.parameters()])
    got = layer(x)
    gradients = torch.autograd.grad((got * direction).sum(), [x, *layer.parameters()])
    # the rational tanh is within 3e-7, eleven steps add up
    torch.testing.assert_close(got, want, atol=3e-6, rtol=0)
    for gradient, wanted_one in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, wanted_one, atol=2e-5, rtol=1e-4)


def test_the_compiled_loss_is_the_plain_one():
    torch.manual_seed(3)
    z = torch.randn(2, 6, 5, 10, requires_grad=True)
    noisy, target = torch.randn(2, 10, 2, 5), torch.randn(2, 6, 2, 5)
    edges, settings = (0, 1, 3, 5), (1.5, 0.3, 0.6, 0.4, 1e-2, 1e3, 1e-6, 0.5)
    want = losses.low_loss_plain(z, noisy, target, edges, settings)
    (wanted,) = torch.autograd.grad(want, z)
    got = kernels.LowLoss.apply(z, noisy, target, edges, settings)
    (gradient,) = torch.autograd.grad(got, z)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-6)


def test_a_perfect_answer_has_no_loss():
    z = torch.full((1, 4, 3, 10), 0.3)
    noisy = torch.randn(1, 8, 2, 3)
    target = torch.stack(losses.filtered(z, noisy, 1.5), 2)
    settings = (1.5, 0.3, 0.6, 0.4, 1e-2, 1e3, 1e-6, 0.5)
    assert losses.low_loss_plain(z, noisy, target, (0, 3), settings) < 1e-6
    assert losses.low_loss_plain(z, noisy, 0.5 * target, (0, 3), settings) > 1e-2


def test_bands_of_the_loss_hear_power_and_no_phase():
    torch.manual_seed(5)
    # one tap lets each bin pass with a gain and a phase of its own
    z = torch.zeros(1, 4, 6, 10)
    noisy, target = torch.randn(1, 8, 2, 6), torch.zeros(1, 4, 2, 6)
    middle = noisy[:, 2:6]
    gains = torch.tensor([0.5, 0.5, 0.5, 0.9, 0.9, 0.9])
    z[..., 4] = torch.atanh(gains / 1.5)
    target[:, :, 0], target[:, :, 1] = -gains * middle[:, :, 1], gains * middle[:, :, 0]
    bands_alone = (1.5, 0.5, 0.0, 0.0, 0.0, 1e3, 1e-6, 1.0)
    assert losses.low_loss_plain(z, noisy, target, (0, 3, 6), bands_alone) < 1e-10
    # twin: one band twice as loud as wanted
    target[:, :, :, :3] /= 2**0.5
    got = losses.low_loss_plain(z, noisy, target, (0, 3, 6), bands_alone)
    power = (gains[:3] ** 2 * (middle[0, :, 0, :3] ** 2 + middle[0, :, 1, :3] ** 2)).mean(-1)
    wanted = (power**0.25 * (1 - 0.5**0.25)).square().mean() / 2
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=0)


def test_bands_of_the_loss_are_those_of_the_gains(bundled):
    c = bundled.config
    edges = losses.band_edges(c.nb_erb, c.nb_df)
    widths = targets.erb_widths(c.sample_rate, c.fft_size, c.nb_erb, c.min_nb_erb_freqs)
    assert list(np.diff(edges)[:-1]) == list(widths[: len(edges) - 2])
    assert edges[-1] == c.nb_df


# -- the graphs ----------------------------------------------------------------------------------------


def test_graphs_compute_what_torch_does_and_stream(tmp_path, noisy):
    net = small_net()
    models = export.graphs(net)
    differences = export.differences(net, models)
    assert differences.keys() == {"m", "lsnr", "coefs"}
    assert max(differences.values()) < export.TOLERANCE
    export.export(net, tmp_path / "model")
    model = Model.load(tmp_path / "model")
    assert model.config.variant == "DeepFilterNet3"
    y = [
        Stream(model, mode=mode).process(noisy[:4_800])
        for mode in ("incremental", "streaming", "stateful-h0")
    ]
    # one network, three ways to drive it: rounding apart
    for other in y[1:]:
        np.testing.assert_allclose(other, y[0], atol=2e-6)


def test_graphs_have_the_official_interface():
    models = export.graphs(small_net())
    inputs = {name: [i.name for i in model.graph.input] for name, model in models.items()}
    assert inputs == {
        "enc": ["feat_erb", "feat_spec"], "erb_dec": ["emb", "e3", "e2", "e1", "e0"], "df_dec": ["emb", "c0"],
    }  # fmt: skip
    outputs = {name: [o.name for o in model.graph.output] for name, model in models.items()}
    assert outputs == {
        "enc": ["e0", "e1", "e2", "e3", "emb", "c0", "lsnr"], "erb_dec": ["m"], "df_dec": ["coefs"],
    }  # fmt: skip
    for model in models.values():
        for value in [*model.graph.input, *model.graph.output]:
            dims = value.type.tensor_type.shape.dim
            assert dims[0].dim_value == 1
            assert [dim.dim_param for dim in dims if dim.dim_param] == ["S"]
        for node in model.graph.node:
            assert node.op_type != "Pad" or len(node.input) == 3


def test_graphs_that_are_not_the_networks_are_not_written(tmp_path, monkeypatch):
    other = export.graphs(small_net(1))
    monkeypatch.setattr(export, "graphs", lambda _net: other)
    with pytest.raises(VerifyFailed, match="away from torch"):
        export.export(small_net(0), tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_model_is_where_its_training_can_go_on(tmp_path):
    net = network.Net().eval()
    export.export(net, tmp_path / "model")
    again = export.recovered(tmp_path / "model")
    for name, weight in net.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight), name
    # the model in the package is of that form, to the bit
    folder = catalog.bundled_dir()
    for name, graph in export.graphs(export.recovered(folder)).items():
        stored = onnx.load(folder / f"{name}.onnx").graph.initializer
        for mine, theirs in zip(graph.graph.initializer, stored, strict=True):
            np.testing.assert_array_equal(*(onnx.numpy_helper.to_array(one) for one in (mine, theirs)))


def test_graphs_of_another_network_are_no_beginning(tmp_path, synthetic_folder):
    with pytest.raises(UsageError, match="another network"):
        export.recovered(synthetic_folder("dfn3"))
    with pytest.raises(UsageError, match="cannot be read"):
        export.recovered(tmp_path)
    (tmp_path / "enc.onnx").write_bytes(b"no graph at all")
    with pytest.raises(UsageError, match="cannot be read"):
        export.recovered(tmp_path)


def test_blends_lie_between_two_networks():
    a, b = small_net(0), small_net(1)
    third = export.blended(a, b, 1 / 3)
    for x, y, z in zip(a.parameters(), b.parameters(), third.parameters(), strict=True):
        torch.testing.assert_close(z, (2 * x + y) / 3)
    with pytest.raises(UsageError, match="two shapes"):
        export.blended(a, network.Net(), 0.5)


def test_bundled_config_is_the_one_that_is_written(bundled):
    assert export.config_ini(network.Net()).encode() == bundled.config_ini
    shapes = {
        name: sorted(tuple(t.dims) for t in model.graph.initializer if len(t.dims) > 1)
        for name, model in export.graphs(network.Net()).items()
    }
    source = {name: onnx.load_from_string(data) for name, data in bundled.source_graphs().items()}
    assert sorted(source) == sorted(shapes)
    for name, model in source.items():
        assert sorted(tuple(t.dims) for t in model.graph.initializer if len(t.dims) > 1) == shapes[name]


# -- targets -------------------------------------------------------------------------------------------


def test_rows_hold_what_the_network_hears_and_the_teachers_answer(bundled, noisy, monkeypatch):
    monkeypatch.setattr(targets, "lift", np.ones_like)
    c = bundled.config
    samples = 100 * c.hop_size
    quiet = (0.01 * noisy[:samples]).astype(np.float32)
    items = [Item(x, x, x, snr) for x, snr in ((noisy[:samples], 0.0), (quiet, 0.0))]
    teacher = targets.Teacher(bundled, 2, samples)
    layout = teacher.layout
    rows = teacher.rows(items, np.random.default_rng(0)).astype(np.float32)
    assert rows.shape == (2, 100, layout.width)
    assert np.isfinite(rows).all()
    # twin: the teacher's output of a stream, transformed again
    stream = Stream(bundled, parity="python")
    y = np.concatenate([stream.process(noisy[:samples]), stream.flush()])[stream.delay_samples :]
    window = np.sin(0.5 * np.pi * np.sin(np.pi * (np.arange(c.fft_size) + 0.5) / c.fft_size) ** 2)

    def spectra(x):
        padded = np.concatenate([np.zeros(c.hop_size), x])
        frames = np.lib.stride_tricks.sliding_window_view(padded, c.fft_size)[:: c.hop_size]
        return np.fft.rfft(frames * window)[:, : c.nb_df] / c.fft_size

    noisy_bins, want = spectra(noisy[:samples]), spectra(y[:samples])
    gain = 1 / np.sqrt(np.mean(np.abs(noisy_bins) ** 2))
    got = rows[0, :, layout.target]
    got = got[:, : c.nb_df] + 1j * got[:, c.nb_df :]
    # analysis of a synthesis is a projection, and 15 % of the target is the reference, here the mixture
    blended = 0.85 * gain * want + 0.15 * gain * noisy_bins
    error = np.sum(np.abs(got - blended)[5:-5] ** 2) / np.sum(np.abs(blended)[5:-5] ** 2)
    plain = np.sum(np.abs(got - gain * noisy_bins)[5:-5] ** 2) / np.sum(np.abs(blended)[5:-5] ** 2)
    assert error < 0.1 * plain
    # the teacher hears both at a usual level, so what it makes of the quiet one is the same
    np.testing.assert_allclose(rows[1, 5:-5, layout.lsnr], rows[0, 5:-5, layout.lsnr], atol=6)


def test_targets_are_softened(bundled, noisy, monkeypatch):
    x = noisy[: 50 * bundled.config.hop_size]
    teacher = targets.Teacher(bundled, 1, x.size)
    soft = teacher.rows([Item(x, x, x, 0.0)], np.random.default_rng(0))[0].astype(np.float32)
    monkeypatch.setattr(targets, "lift", np.ones_like)
    plain = teacher.rows([Item(x, x, x, 0.0)], np.random.default_rng(0))[0].astype(np.float32)
    layout, bins = teacher.layout, bundled.config.nb_df

    def bins_of(rows, part):
        return rows[:, part][:, :bins] + 1j * rows[:, part][:, bins:]

    # what they take away is a fifth less in dB, 4 dB less at most
    before = bins_of(plain, layout.target)
    gains = np.abs(before) / (np.abs(bins_of(plain, layout.noisy)) + 1e-20)
    np.testing.assert_allclose(
        bins_of(soft, layout.target), before * np.clip(gains, 0.1, 1) ** -0.2, rtol=2e-3, atol=1e-6
    )
    mask = plain[:, layout.mask]
    np.testing.assert_allclose(soft[:, layout.mask], mask * np.clip(mask, 0.1, 1) ** -0.2, rtol=2e-3)
    for same in (layout.erb, layout.spec, layout.noisy, layout.weight, layout.lsnr):
        np.testing.assert_array_equal(soft[:, same], plain[:, same])


def test_softened_gains_keep_their_order_and_leave_one_alone():
    gains = np.array([1e-6, 1e-3, 0.1, 0.3, 0.7, 1.0])
    lifted_db = 20 * np.log10(targets.lift(gains))
    np.testing.assert_allclose(lifted_db, [4, 4, 4, 0.2 * 10.4576, 0.2 * 3.098, 0], atol=1e-3)
    assert (np.diff(gains * targets.lift(gains)) > 0).all()


def test_the_reference_counts_more_where_there_is_less_noise():
    shares = [targets.clean_share(snr) for snr in (-np.inf, -5.0, 5.0, 20.0, 35.0, 40.0, np.inf)]
    assert shares == sorted(shares)
    assert shares[0] == shares[1] == 0.15
    assert shares[-1] == 1.0


# -- the pool ------------------------------------------------------------------------------------------


def test_batches_depend_on_their_number_alone(shards, config):
    first, second = some_batches(shards, config), some_batches(shards, config)
    a = [first(number) for number in (3, 4)]
    b = [second(number) for number in (4, 3)][::-1]
    for x, y in zip(a, b, strict=True):
        assert all(torch.equal(getattr(x, name), getattr(y, name)) for name in vars(x))
    ahead = list(itertools.islice(second.ahead(3), 2))
    assert torch.equal(ahead[1].target, a[1].target)
    assert not torch.equal(a[0].target, some_batches(shards, config, seed=1)(3).target)


def test_parts_of_a_batch_are_of_the_same_frames(config, tmp_path):
    layout = targets.Layout.of(config)
    rows = np.zeros((1, 60, layout.width), np.float16)
    rows[0, :, :] = np.arange(60)[:, None]
    np.save(tmp_path / "0000000.npy", rows)
    batch = some_batches(tmp_path, config, augmented=False)(0)
    for item in range(8):
        frame = batch.mask[item, :, 0]
        torch.testing.assert_close(batch.target[item, :, 0, 0], frame)
        # features lead by the lookahead, taps reach from two frames before to two after
        torch.testing.assert_close(batch.feat_erb[item, 0, :, 0] - config.conv_lookahead, frame)
        torch.testing.assert_close(batch.feat_spec[item, 0, :, 0] * targets.SPEC_SCALE, frame + 2)
        torch.testing.assert_close(batch.noisy[item, : len(frame), 0, 0], (frame - 2).clamp(min=0))


def test_shards_come_in_turns_and_old_ones_go(tmp_path):
    class Mixer:
        def item(self, seed, number):
            return seed, number

    class Teacher:
        def rows(self, items, rng):  # noqa: ARG002
            return np.array(items, np.float16)[:, None]

    assert list(itertools.islice(pool.turns(1, 3), 3)) == [1, 4, 7]
    (tmp_path / "STOP").touch()
    assert not list(pool.turns(0, 1, tmp_path / "STOP"))
    written = list(pool.write_shards(Mixer(), Teacher(), tmp_path, 9, iter([0, 1, 2]), keep=2))
    assert [path.name for path in written] == ["0000000.npy", "0000001.npy", "0000002.npy"]
    assert [path.name for path in sorted(tmp_path.glob("*.npy"))] == ["0000001.npy", "0000002.npy"]
    second = np.load(tmp_path / "0000001.npy")
    np.testing.assert_array_equal(second[:, 0, 1], np.arange(pool.SHARD_ITEMS, 2 * pool.SHARD_ITEMS))


# -- training ------------------------------------------------------------------------------------------


def test_matrices_become_orthogonal_whatever_their_shape():
    torch.manual_seed(4)
    for rows, columns in ((24, 40), (40, 24)):
        result = optimiser.orthogonalised(torch.randn(3, rows, columns))
        values = torch.linalg.svdvals(result)
        # the iteration is tuned for speed: it ends between 0.7 and 1.2
        assert values.min() > 0.5
        assert values.max() < 1.4


def test_the_rate_rises_and_falls():
    schedule = optimiser.Schedule(peak=1.0, warmup=10, floor=0.1)
    assert schedule.rate(0, 0.0) == pytest.approx(0.1)
    assert schedule.rate(100, 0.0) == pytest.approx(1.0)
    assert schedule.rate(100, 0.5) == pytest.approx(0.55)
    assert schedule.rate(100, 1.0) == pytest.approx(0.1)


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run_in(folder, seed=0):
    settings = training.Settings(
        schedule=optimiser.Schedule(warmup=2), report_s=1e9, validate_s=1e9, save_s=1e9
    )
    return training.Run(folder, settings, small_net(seed))


def quiet(_line):
    pass


def test_a_stopped_run_goes_on_bit_for_bit(shards, config, tmp_path, one_thread):  # noqa: ARG001
    supply, budget = some_batches(shards, config), training.Budget(steps=6)
    whole = run_in(tmp_path / "whole")
    whole.train(supply, budget, say=quiet)
    part = run_in(tmp_path / "part")
    for _ in range(2):
        part._step(supply(part.step), part._settings.schedule.rate(part.step, budget.progress(part.step, 0)))
    part.save()
    rest = run_in(tmp_path / "part", seed=1)
    assert rest.step == 2
    rest.train(supply, budget, say=quiet)
    for (name, a), b in zip(whole.net.state_dict().items(), rest.net.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    stored = [network.load_weights(tmp_path / folder / training.WEIGHTS) for folder in ("whole", "part")]
    assert all(torch.equal(a, b) for a, b in zip(stored[0].parameters(), stored[1].parameters(), strict=True))


def test_training_lowers_the_loss_and_notes_the_course(shards, config, tmp_path):
    run = run_in(tmp_path)
    valid = [some_batches(shards, config, augmented=False)(0)]
    before = training.validate(run.averaged(), valid, losses.Weights())
    run.train(some_batches(shards, config), training.Budget(steps=30), valid, quiet)
    after = training.validate(run.averaged(), valid, losses.Weights())
    assert after["total"] < before["total"]
    header, line = (tmp_path / training.CURVE).read_text().splitlines()
    assert header.startswith("step,minutes,low,high,mask,lsnr,total,error_db")
    assert line.startswith("30,")


def test_a_file_stops_a_run(shards, config, tmp_path):
    run = run_in(tmp_path)
    (tmp_path / training.STOP).touch()
    run.train(some_batches(shards, config), training.Budget(minutes=60), say=quiet)
    assert run.step == 0
    assert (tmp_path / training.CHECKPOINT).exists()


def test_a_pause_ends_a_run_early_and_keeps_it(shards, config, tmp_path):
    run = run_in(tmp_path)
    run.train(some_batches(shards, config), training.Budget(steps=1000), say=quiet, pause_s=0.0)
    assert run.step == 0
    assert (tmp_path / training.CHECKPOINT).exists()


def test_bfloat16_is_for_the_network_alone(shards, config, tmp_path):
    settings = training.Settings(bf16=True, report_s=1e9, validate_s=1e9, save_s=1e9)
    run = training.Run(tmp_path, settings, small_net())
    run.train(some_batches(shards, config), training.Budget(steps=2), say=quiet)
    assert {p.dtype for p in run.net.parameters()} == {torch.float32}
    exact = training.Run(tmp_path / "exact", training.Settings(), small_net())
    exact.train(some_batches(shards, config), training.Budget(steps=2), say=quiet)
    for a, b in zip(run.net.parameters(), exact.net.parameters(), strict=True):
        # two steps from the same weights: as far as their rounding leads apart
        torch.testing.assert_close(a, b, atol=5e-3, rtol=0)


def test_gradients_that_are_no_numbers_move_nothing():
    net = small_net()
    before = [p.detach().clone() for p in net.parameters()]
    for p in net.parameters():
        p.grad = torch.full_like(p, float("nan"))
    assert np.isnan(optimiser.Optimiser(net).step(1e-3))
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_a_budget_is_minutes_or_steps(tmp_path):
    with pytest.raises(UsageError, match="after minutes or after steps"):
        training.Budget()
    with pytest.raises(UsageError, match="after minutes or after steps"):
        training.Budget(minutes=1, steps=1)
    assert training.Budget(minutes=2).progress(0, 60) == 0.5
    assert training.Budget(steps=4).progress(1, 1e9) == 0.25
    training.Run(tmp_path, training.Settings(), small_net()).save()
    with pytest.raises(UsageError, match="of another shape"):
        training.Run(tmp_path, training.Settings(), network.Net())
