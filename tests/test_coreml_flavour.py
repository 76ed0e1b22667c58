"""Kinds of packages: which values go together, and what is said of those that do not."""

import dataclasses

import pytest

from dfstream.coreml.flavour import PRECISIONS, TARGETS, Flavour, state_shape
from dfstream.errors import UsageError

SYSTEMS = [name for target in TARGETS for name in target.names]
STATEFUL = [name for name in SYSTEMS if name[-2:] in ("15", "18", "11", "26")]


def refusal(**options):
    with pytest.raises(UsageError) as caught:
        Flavour(**options)
    for text in (str(caught.value), caught.value.hint):
        assert text is None or text.isprintable()
    return str(caught.value), caught.value.hint


def test_defaults():
    made = Flavour()
    assert dataclasses.asdict(made) == {
        "precision": "fp16", "state": "explicit", "target": "", "block_frames": 1,
    }  # fmt: skip
    assert made.generation.names[0] == "macos13"
    assert Flavour(state="coreml").generation.names[0] == "macos15"


@pytest.mark.parametrize("state", ["explicit", "coreml"])
@pytest.mark.parametrize("target", ["", *SYSTEMS, "iOS18", "macOS26"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_combination_is_made_or_refused_with_a_reason(precision, target, state):
    """Core ML has states since 2024, and palettes with states crash on the Neural Engine."""
    options = {"precision": precision, "target": target, "state": state}
    old = target.lower() not in ("", "ios18", "macos26", *STATEFUL)
    if state == "coreml" and old:
        message, hint = refusal(**options)
        assert message == f"Core ML states need macos15 or ios18, not {target}"
        assert hint == "use explicit states, or another target"
    elif state == "coreml" and precision == "palette":
        assert "apple/coremltools#2716" in refusal(**options)[0]
    else:
        made = Flavour(**options)
        assert made.half_interface is (precision == "ane")
        if target:
            assert target.lower() in (made.generation.opset.lower(), *made.generation.names)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"precision": "float32"}, "precision = 'float32', expected one of 'fp16', 'fp32', 'int8'"),
        ({"precision": ""}, "precision = ''"),
        ({"precision": None}, "precision = None"),
        ({"state": "CoreML"}, "state = 'CoreML', expected 'explicit' or 'coreml'"),
        ({"state": None}, "state = None"),
        ({"block_frames": 0}, "block_frames = 0, expected a whole number, 1 to 16"),
        ({"block_frames": 17}, "block_frames = 17"),
        ({"block_frames": -1}, "block_frames = -1"),
        ({"block_frames": 2.0}, "block_frames = 2.0"),
        ({"block_frames": True}, "block_frames = True"),
        ({"block_frames": "2"}, "block_frames = '2'"),
        ({"target": "macos12"}, "target = 'macos12' is not known"),
        ({"target": "ios"}, "target = 'ios' is not known"),
        ({"target": "a\nb"}, "target = 'a"),
        ({"target": "macos12", "state": "coreml"}, "target = 'macos12' is not known"),
    ],
    ids=str,
)
def test_values_out_of_range(options, match):
    message, hint = refusal(**options)
    assert message.startswith(match)
    if "not known" in message:
        assert hint == "known: macos13, ios16, macos14, ios17, macos15, ios18, macos26, ios26"


def test_generations_grow():
    years = [target.year for target in TARGETS]
    assert years == sorted(set(years))
    assert len(SYSTEMS) == len(set(SYSTEMS))


@pytest.mark.parametrize(("shape", "kept"), [
    ((1, 1280, 1, 1), (1, 40, 1, 32)), ((1, 32, 1, 1), (1, 1, 1, 32)), ((1, 48, 1, 1), (1, 48, 1, 1)),
    ((1, 2, 1, 32), (1, 2, 1, 32)), ((1, 32, 1, 96), (1, 32, 1, 96)),
])  # fmt: skip
def test_vectors_lie_in_rows_of_lanes(shape, kept):
    assert state_shape(shape) == kept
