"""How near a package is to its model: the figures against plain ones, and what fails."""

import dataclasses
import math

import numpy as np
import pytest

import mil
import oracle
import packages
from dfstream import Stream
from dfstream.backends.base import Backend, find_backend
from dfstream.checking import speech_clip
from dfstream.coreml import fidelity
from dfstream.coreml.fidelity import Fidelity, least_snr_db, measure_fidelity
from dfstream.coreml.flavour import PRECISIONS, Flavour
from dfstream.errors import UsageError
from dfstream.interface import RESULTS
from dfstream.model import Model

FP32, ANE = Flavour("fp32"), Flavour("ane")


@pytest.fixture
def seconds(monkeypatch):
    """Blocks of a second, two of them."""
    monkeypatch.setattr(fidelity, "BLOCK_S", 1)
    return 2


@pytest.fixture
def package(tmp_path):
    """Packages made by hand; ``edit`` is done to them before they are written."""

    def get(flavour=FP32, name="dfn3", edit=lambda _: None):
        made = packages.by_hand(oracle.case(name).model, flavour)
        edit(made)
        return Model.load(made.write(tmp_path / f"{len(list(tmp_path.iterdir()))}.mlpackage"))

    return get


# -- figures -------------------------------------------------------------------------------------------------


def test_figures_are_those_of_two_streams(package, seconds):
    """Their audio, second by second."""
    model, made, told = oracle.case("dfn3").model, package(ANE), []
    found = measure_fidelity(model, made, ANE, told.append, seconds=seconds)
    x = np.resize(speech_clip(), seconds * model.config.sample_rate)
    want, got = (Stream(m, backend=b).process(x).astype(np.float64) for m, b in (
        (model, "ort-cpu"), (made, "mlpackage-reference"),
    ))  # fmt: skip
    snr = [
        10 * np.log10(np.sum(a**2) / np.sum((b - a) ** 2))
        for a, b in zip(np.split(want, seconds), np.split(got, seconds), strict=True)
    ]
    # float32 sums of another order, far below the rounding of half precision
    np.testing.assert_allclose(found.snr_db, snr, atol=0.05)
    assert 20 < found.worst_snr_db == min(found.snr_db) < 100
    assert (found.least_snr_db, found.passed) == (42, found.worst_snr_db >= 42)
    assert told == [0.5, 1.0]


def test_differences_of_results_are_the_largest(package, seconds):
    model, made = oracle.case("dfn3").model, package(ANE)
    found = measure_fidelity(model, made, ANE, seconds=seconds)
    backend = _Changed(lambda key, x: x + {"lsnr": 0.5, "m": 0.25, "coefs": 0.125}.get(key, 0))
    off = measure_fidelity(model, model, FP32, seconds=seconds, backend=backend)
    assert (off.lsnr_db, off.mask, off.coefs) == pytest.approx((0.5, 0.25, 0.125), abs=1e-5)
    assert not off.passed
    assert 0 < found.mask < 0.02
    assert 0 < found.coefs < 0.05
    assert 0 < found.lsnr_db < 1


@dataclasses.dataclass(frozen=True)
class _Changed(Backend):
    """ort-cpu, with something done to what it gives, states included, from a call on."""

    change: object = None
    from_call: int = 0

    name = "changed"
    __hash__ = Backend.__hash__

    def open(self, model, recipe):
        (session,) = find_backend("ort-cpu").open(model, recipe).values()
        return {recipe.stems[0]: _ChangedSession(session, self.change, self.from_call)}

    def load(self, graph, name):
        raise NotImplementedError


class _ChangedSession:
    def __init__(self, session, change, from_call):
        self.session, self.change, self.from_call, self.calls = session, change, from_call, 0
        self.states = session.states

    def runner(self, _):
        return self.run

    def run(self, feeds):
        out = self.session.run(feeds)
        self.calls += 1
        changed = self.calls > self.from_call
        return {name: self.change(name, x) if changed else x for name, x in out.items()}


def test_the_same_network_is_infinitely_near(seconds):
    model = oracle.case("dfn3").model
    found = measure_fidelity(model, model, FP32, seconds=seconds, backend=find_backend("ort-cpu"))
    assert found.snr_db == (math.inf, math.inf)
    assert (found.mask, found.coefs, found.lsnr_db) == (0, 0, 0)
    assert found.passed


def test_float32_is_near_enough(package, seconds):
    found = measure_fidelity(oracle.case("dfn3").model, package(), FP32, seconds=seconds)
    assert found.passed
    assert found.worst_snr_db > 110


# -- what fails ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dfn3", "bundled"])
def test_one_changed_weight_fails(package, seconds, name):
    """A single element of a matrix of a GRU, by a tenth."""

    def edit(made):
        sizes = [len(blob[1]) for blob in made.blobs]
        index = int(np.argmax(sizes))
        code, content, used = made.blobs[index]
        values = np.frombuffer(content, np.float32).copy()
        values[np.argmax(np.abs(values))] *= np.float32(1.1)
        made.blobs[index] = code, values.tobytes(), used

    found = measure_fidelity(oracle.case(name).model, package(name=name, edit=edit), FP32, seconds=seconds)
    assert not found.passed
    assert found.worst_snr_db < 100


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("key", ["m", "coefs"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the signal path, which never sees such
def test_what_is_no_number_fails_whenever_it_comes(seconds, key, value):
    """In the last block, too: NaN is neither below nor above anything."""
    model = oracle.case("dfn3").model
    backend = _Changed(lambda name, x: x * 0 + np.float32(value) if name == key else x, from_call=1)
    found = measure_fidelity(model, model, FP32, seconds=seconds, backend=backend)
    assert found.snr_db[0] == math.inf
    assert not np.isfinite(found.snr_db[1])
    assert not found.passed


@pytest.mark.parametrize("key", ["lsnr", "m", "coefs"])
def test_a_difference_that_is_no_number_stays_one(seconds, key):
    model, names = oracle.case("dfn3").model, {"lsnr": "lsnr_db", "m": "mask", "coefs": "coefs"}
    backend = _Changed(lambda name, x: x * np.float32(np.nan) if name == key else x)
    found = measure_fidelity(model, model, FP32, seconds=seconds, backend=backend)
    assert np.isnan(getattr(found, names[key]))


def test_states_that_are_lost_fail(seconds):
    model = oracle.case("dfn3").model
    backend = _Changed(lambda name, x: x if name in RESULTS else x * 0)
    assert not measure_fidelity(model, model, ANE, seconds=seconds, backend=backend).passed


@pytest.mark.parametrize(("snr", "passed"), [
    ((70.0, 62.0), True), ((70.0, 61.9), False), ((math.inf,), True), ((math.nan, 70.0), False),
    ((70.0, math.nan), False), ((70.0, math.nan, 80.0), False), ((-math.inf, 70.0), False),
])  # fmt: skip
def test_the_worst_block_counts(snr, passed):
    assert Fidelity(snr, 0.0, 0.0, 0.0, 62.0).passed is passed


def test_bounds():
    """Exact is exact; Core ML's own states are half precision, whatever computes."""
    for precision in PRECISIONS:
        explicit = least_snr_db(Flavour(precision))
        assert 30 < explicit <= 110
        try:
            inside = least_snr_db(Flavour(precision, "coreml"))
        except UsageError:
            assert precision == "palette"
            continue
        assert inside == min(explicit, 42)
    assert least_snr_db(FP32) > least_snr_db(Flavour()) > least_snr_db(ANE) > least_snr_db(Flavour("int8"))


@pytest.mark.slow
@pytest.mark.parametrize("flavour", [
    FP32, Flavour(), ANE, Flavour("int8"), Flavour("palette"), Flavour("fp16", "coreml"),
    Flavour("fp32", "coreml"), Flavour("int8", "coreml"), Flavour("ane", "coreml"),
], ids=str)  # fmt: skip
def test_every_kind_of_the_bundled_model_over_a_minute(flavour):
    mil.load()
    made = Model.load(packages.converted("bundled", flavour))
    found = measure_fidelity(oracle.case("bundled").model, made, flavour)
    assert len(found.snr_db) == 6
    assert found.passed, found
