"""What a package says of itself: written and read back, damaged, and held against its tensors."""

import contextlib
import dataclasses
import json
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

import oracle
import packages
from conftest import SYNTHETIC
from dfstream import __version__
from dfstream.coreml.flavour import PRECISIONS, TARGETS, Flavour
from dfstream.coreml.metadata import PackageFacts
from dfstream.coreml.package import Tensor, read_package
from dfstream.errors import ModelError, UsageError

FLAVOURS = [
    Flavour(), Flavour("fp32", target="macos14", block_frames=4), Flavour("ane", block_frames=16),
    Flavour("int8", "coreml"), Flavour("ane", "coreml", "ios26"), Flavour("palette", target="tvos17"),
]  # fmt: skip


def facts(flavour=None, name="dfn3"):
    return packages.facts_of(oracle.case(name).model, flavour or Flavour())


def refusal(properties, kind=ModelError):
    with pytest.raises(kind) as caught:
        PackageFacts.from_properties(properties, "p.mlpackage")
    assert str(caught.value).startswith("p.mlpackage: ")
    assert str(caught.value).isprintable()
    return str(caught.value), caught.value.hint


@pytest.mark.parametrize("flavour", FLAVOURS, ids=str)
@pytest.mark.parametrize("name", [*SYNTHETIC, "bundled"])
def test_reads_what_it_wrote(name, flavour):
    made = facts(flavour, name)
    properties = {"author": "me", **made.to_properties()}
    assert all(isinstance(value, str) for value in properties.values())
    found = PackageFacts.from_properties(json.loads(json.dumps(properties)), "p")
    # the oldest system is written out
    assert found == dataclasses.replace(
        made, flavour=dataclasses.replace(flavour, target=flavour.generation.names[0])
    )
    assert found.to_dict() == made.to_dict()


@given(
    precision=st.sampled_from([*PRECISIONS]), state=st.sampled_from(["explicit", "coreml"]),
    target=st.sampled_from(["", *(name for t in TARGETS for name in t.names)]), frames=st.integers(1, 16),
    name=st.text(), licence=st.text(),
)  # fmt: skip
def test_any_flavour_and_any_text_comes_back(precision, state, target, frames, name, licence):
    try:
        flavour = Flavour(precision, state, target, frames)
    except UsageError:
        return
    made = dataclasses.replace(facts(flavour), model=name, licence=licence)
    found = PackageFacts.from_properties(made.to_properties(), "p")
    assert (found.model, found.licence) == (name, licence)
    assert found.to_dict() == made.to_dict()


def test_says_what_a_program_needs():
    c = oracle.case("dfn3").model.config
    said = facts(Flavour("ane", block_frames=4)).to_dict()
    assert said["version"] == __version__
    assert (said["delay_samples"], said["block_delay_samples"]) == (c.delay_samples, 3 * c.hop_size)
    assert said["inputs"] == {"feat_erb": [1, 1, 4, c.nb_erb], "feat_spec": [1, 2, 4, c.nb_df]}
    assert said["outputs"]["coefs"] == [1, 2 * c.df_order, 4, c.nb_df]
    assert said["dtype"] == "float16"
    states = {state["name"]: state for state in said["states"]}
    assert states["h"]["output"] == "h_out"
    assert [part["section"] for part in states["h"]["parts"]] == ["enc", "erb", "df", "erb", "df"]
    assert {state["dtype"] for state in said["states"]} == {"float16"}
    inside = facts(Flavour("fp32", "coreml")).to_dict()
    assert {(state["output"], state["dtype"]) for state in inside["states"]} == {(None, "float16")}
    assert inside["dtype"] == "float32"
    assert {state["dtype"] for state in facts(Flavour("fp32")).to_dict()["states"]} == {"float32"}


# -- damaged -------------------------------------------------------------------------------------------------


def test_a_package_of_somebody_else():
    for properties in ({}, {"author": "me", "format": "1"}):
        message, hint = refusal(properties)
        assert message == "p.mlpackage: not a package that dfstream made"
        assert hint == "make one: dfstream convert MODEL -o X.mlpackage"


@pytest.mark.parametrize(
    ("key", "value"), [("format", "2"), ("features", "2"), ("format", ""), ("features", None)]
)
def test_a_package_of_another_version(key, value):
    properties = facts().to_properties()
    properties.pop(f"dfstream.{key}")
    message, hint = refusal(properties | ({} if value is None else {f"dfstream.{key}": value}))
    assert message == f"p.mlpackage: of another version of dfstream ({key} {value!r}, not 1)"
    assert hint == "convert the model again"


@pytest.mark.parametrize("key", [
    "model", "source_sha256", "precision", "state", "target", "block_frames", "states", "config",
])  # fmt: skip
def test_a_missing_entry(key):
    properties = facts().to_properties()
    properties.pop(f"dfstream.{key}")
    assert refusal(properties)[0] == f"p.mlpackage: its dfstream metadata is damaged ('{key}')"


def _state(**changes):
    made = {"name": "h", "shape": [1, 64, 1, 1], "section": "enc", "parts": []}
    return json.dumps([{**made, **changes}])


def _parts(*parts):
    return _state(parts=[dict(zip(("section", "start", "size"), part, strict=True)) for part in parts])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("precision", "fp8"), ("state", "both"), ("target", "macos9"), ("block_frames", "0"),
        ("block_frames", "17"), ("block_frames", "1.5"), ("block_frames", ""), ("block_frames", "9" * 5000),
        ("states", "["), ("states", "5"), ("states", "null"), ("states", "[5]"), ("states", "[" * 10000),
        ("states", _state(shape=[1, 64, 1])), ("states", _state(shape=[1, 64, 1, 0])),
        ("states", _state(shape=[1, 64, 1, 1 << 20])), ("states", _state(shape=[1, 64.0, 1, 1])),
        ("states", _state(shape=[1, True, 1, 1])), ("states", _state(shape=5)), ("states", _state(parts=5)),
        ("states", _state(shape="1234")), ("states", _state(name=["h"])), ("states", _state(name=5)),
        ("states", _state(name="feat_erb")),
        ("states", _state(section="dec")), ("states", _state(section=5)), ("states", _state(section=["enc"])),
        ("states", _parts(("enc", 0, 32))), ("states", _parts(("enc", 0, 65))),
        ("states", _parts(("enc", 0, 32), ("erb", 33, 31))), ("states", _parts(("enc", 1, 63))),
        ("states", _parts(("enc", 0, 64), ("erb", 64, 0))), ("states", _parts(("dec", 0, 64))),
        ("states", _parts(("enc", 0, 80), ("erb", 80, -16))), ("states", _parts(("enc", "0", 64))),
        ("states", _parts(("enc", 0.0, 64.0))), ("states", _parts(("enc", 0, True))),
        ("states", '[{"name": "h"}]'), ("config", "5"), ("config", "{}"), ("config", "{"),
        ("config", json.dumps({"hop_size": 480})), ("config", "[" * 10000),
    ],
    ids=range(43),
)  # fmt: skip
def test_damaged_entries(key, value):
    refusal(facts().to_properties() | {f"dfstream.{key}": value})


@given(st.data())
def test_anything_damaged_is_a_model_error(data):
    """Entries cut, replaced by text, or by JSON of another form: read as it is, or refused in a line."""
    properties = facts().to_properties()
    for key in data.draw(st.lists(st.sampled_from(sorted(properties)), min_size=1, max_size=3)):
        value = properties[key]
        cut = st.integers(0, len(value)).map(lambda n, value=value: value[:n])
        plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
        nested = st.recursive(
            plain,
            lambda s: (
                st.lists(s, max_size=4)
                | st.dictionaries(st.sampled_from(["name", "shape", "parts", "section", "start", "size"]), s)
            ),
        )
        properties[key] = data.draw(cut | st.text() | nested.map(json.dumps))
    with contextlib.suppress(ModelError):
        PackageFacts.from_properties(properties, "p.mlpackage")


# -- against the tensors -------------------------------------------------------------------------------------


def package_of(made):
    """Only what `check` looks at, by the table of the names."""
    dtype = "float16" if made.flavour.half_interface else "float32"
    explicit = made.flavour.state == "explicit"
    states = {name: state.shape for name, state in made.states.items()}
    after = {f"{name}_out": shape for name, shape in states.items()}

    def tensors(shapes, dtype=dtype):
        return {name: Tensor(shape, dtype) for name, shape in shapes.items()}

    return types.SimpleNamespace(
        path="p.mlpackage",
        inputs=tensors({**made.features, **(states if explicit else {})}),
        outputs=tensors({**made.results, **(after if explicit else {})}),
        states={} if explicit else tensors({n: packages.stored(s) for n, s in states.items()}, "float16"),
    )


@pytest.mark.parametrize("flavour", FLAVOURS, ids=str)
def test_its_own_package_fits(flavour, tmp_path):
    made = facts(flavour)
    made.check(package_of(made))
    if flavour.block_frames < 8:
        package = packages.by_hand(oracle.case("dfn3").model, flavour).write(tmp_path / "p.mlpackage")
        made.check(read_package(package))


@pytest.mark.parametrize("flavour", [Flavour(), Flavour("ane", "coreml")], ids=str)
def test_any_tensor_that_differs_is_named(flavour):
    made = facts(flavour)
    for kind in ("inputs", "outputs", "states"):
        for name, tensor in getattr(package_of(made), kind).items():
            other = Tensor((*tensor.shape[:3], tensor.shape[3] + 1), tensor.dtype)
            for change in ({}, {name: other}, {name: tensor, "extra": tensor}):
                package = package_of(made)
                held = getattr(package, kind)
                del held[name]
                held.update(change)
                wrong = "extra" if "extra" in change else name
                with pytest.raises(ModelError, match=rf": the {kind[:-1]} {wrong} has the sh") as caught:
                    made.check(package)
                assert str(caught.value).isprintable()
