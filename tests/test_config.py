"""ModelConfig: what an export's ``config.ini`` says, what follows from it, what is refused."""

import configparser
import contextlib
import dataclasses
import io
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import synthetic
from conftest import OFFICIAL, official_folder
from dfstream.config import ModelConfig, norm_alpha
from dfstream.errors import ModelError

#: The keys of DeepFilterNet3's file; DeepFilterNet2 has the last two of [df] in [deepfilternet].
DFN3 = {
    "train": {"model": "deepfilternet3"},
    "df": {
        "sr": "48000", "fft_size": "960", "hop_size": "480", "nb_erb": "32", "nb_df": "96", "norm_tau": "1",
        "min_nb_erb_freqs": "2", "df_order": "5", "df_lookahead": "2",
    },
    "deepfilternet": {"conv_lookahead": "2"},
}  # fmt: skip

#: Keys of a number in the file, by section.
NUMBERS = [("df", key) for key in DFN3["df"] if key != "norm_tau"] + [("deepfilternet", "conv_lookahead")]

OFFICIAL_NUMBERS = {
    "sample_rate": 48_000, "fft_size": 960, "hop_size": 480, "nb_erb": 32, "nb_df": 96, "df_order": 5,
    "min_nb_erb_freqs": 2, "norm_alpha": float(np.float32(0.99)),
}  # fmt: skip

#: Folder: variant, lookaheads of convolutions and filter, delay in samples.
OFFICIAL_VARIANTS = {
    "dfn3": ("DeepFilterNet3", 2, 2, 1440),
    "dfn3_h0": ("DeepFilterNet3", 2, 2, 1440),
    "dfn2": ("DeepFilterNet2", 2, 2, 2400),
    "dfn2_h0": ("DeepFilterNet2", 2, 2, 2400),
    "dfn2_ll": ("DeepFilterNet2 LL", 0, 0, 480),
}


def ini(changes=(), *, removed=()):
    """Text of the file with ``(section, key, value)`` changed or added and ``(section, key)`` removed."""
    sections = {name: dict(keys) for name, keys in DFN3.items()}
    for section, key, value in changes:
        sections.setdefault(section, {})[key] = value
    for section, key in removed:
        del sections[section][key]
    parser = configparser.ConfigParser(interpolation=None)
    parser.read_dict(sections)
    text = io.StringIO()
    parser.write(text)
    return text.getvalue()


def config(**changes):
    return dataclasses.replace(ModelConfig.from_ini(ini()), **changes)


def refusal(text):
    with pytest.raises(ModelError) as caught:
        ModelConfig.from_ini(text, source="here/config.ini")
    message = str(caught.value)
    assert "\n" not in message
    assert message
    return message


# -- reading --------------------------------------------------------------------------------------------


def test_reads_dfn3():
    assert ModelConfig.from_ini(ini()).to_dict() == {
        **OFFICIAL_NUMBERS, "architecture": "deepfilternet3", "conv_lookahead": 2, "df_lookahead": 2
    }  # fmt: skip


def test_dfn2_keeps_the_filter_with_the_network():
    moved = [("deepfilternet", "df_order", "4"), ("deepfilternet", "df_lookahead", "1")]
    text = ini(
        [("train", "model", "deepfilternet2"), *moved], removed=[("df", "df_order"), ("df", "df_lookahead")]
    )
    read = ModelConfig.from_ini(text)
    assert (read.architecture, read.df_order, read.df_lookahead) == ("deepfilternet2", 4, 1)


def test_df_section_wins_where_both_have_the_filter():
    read = ModelConfig.from_ini(
        ini([("deepfilternet", "df_order", "9"), ("deepfilternet", "df_lookahead", "7")])
    )
    assert (read.df_order, read.df_lookahead) == (5, 2)


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_files(name):
    read = ModelConfig.from_ini((official_folder(name) / "config.ini").read_text())
    variant, conv, df, delay = OFFICIAL_VARIANTS[name]
    assert {key: getattr(read, key) for key in OFFICIAL_NUMBERS} == OFFICIAL_NUMBERS
    assert (read.variant, read.conv_lookahead, read.df_lookahead, read.delay_samples) == (
        variant,
        conv,
        df,
        delay,
    )


@pytest.mark.parametrize("name", synthetic.PRESETS)
def test_synthetic_files_say_what_they_were_made_of(name):
    family = synthetic.PRESETS[name]
    read = ModelConfig.from_ini(synthetic.make(family)["config.ini"].decode())
    for field in dataclasses.fields(ModelConfig):
        if field.name != "norm_alpha":
            assert getattr(read, field.name) == getattr(family, field.name)
    assert read.norm_alpha == np.float32(0.99)


@pytest.mark.parametrize("spelling", ["deepfilternet3", "DeepFilterNet3", "  DEEPFILTERNET3 "])
def test_name_of_the_architecture_in_any_case(spelling):
    assert ModelConfig.from_ini(ini([("train", "model", spelling)])).architecture == "deepfilternet3"


def test_values_with_percent_signs_and_unknown_sections_are_no_matter():
    text = ini([("df", "comment", "50%(of)s"), ("optim", "lr", "0.1")])
    assert ModelConfig.from_ini(text) == ModelConfig.from_ini(ini())


def test_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        config().hop_size = 1


# -- norm_alpha -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rate", "hop", "tau", "expected"),
    [
        (48_000, 480, 1.0, 0.99),  # exp(-0.01) = 0.99005
        (16_000, 160, 1.0, 0.99),
        (48_000, 480, 0.5, 0.98),
        (48_000, 480, 2.0, 0.995),
        (48_000, 480, 19.0, 0.999),  # 0.99947
        (48_000, 480, 21.0, 0.9995),  # 0.99952: three decimals give 1
        (48_000, 480, 100.0, 0.9999),
        (48_000, 480, 300.0, 0.99997),  # four decimals give 1
        (48_000, 480, 3_000.0, 0.999997),
        (48_000, 48, 1.0, 0.999),
        (48_000, 8, 1.0, 0.9998),
        (48_000, 480, 0.001, 0.0),  # a time constant below the hop forgets everything
    ],
)
def test_norm_alpha_has_as_few_decimals_as_stay_below_one(rate, hop, tau, expected):
    assert norm_alpha(rate, hop, tau) == float(np.float32(expected))


@given(
    st.sampled_from([8_000, 16_000, 44_100, 48_000]),
    st.integers(8, 960),
    st.floats(0.01, 100.0),
)
def test_norm_alpha_is_a_float32_below_one_close_to_the_exact_decay(rate, hop, tau):
    alpha = norm_alpha(rate, hop, tau)
    exact = math.exp(-hop / rate / tau)
    assert 0 <= alpha < 1
    assert alpha == float(np.float32(alpha))
    assert abs(alpha - exact) <= 0.0005 + 1e-6


def test_norm_alpha_of_an_endless_time_constant_is_refused():
    with pytest.raises(ModelError, match="never move"):
        norm_alpha(48_000, 480, 1e9)
    assert "never move" in refusal(ini([("df", "norm_tau", "1e9")]))


def test_norm_alpha_in_the_file_wins_and_is_not_rounded():
    assert ModelConfig.from_ini(ini([("df", "norm_alpha", "0.98765")])).norm_alpha == 0.98765
    alone = ini([("df", "norm_alpha", "0.5")], removed=[("df", "norm_tau")])
    assert ModelConfig.from_ini(alone).norm_alpha == 0.5


# -- refusals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("section", "key"), [*NUMBERS, ("df", "norm_tau")])
def test_a_missing_key_is_named_with_its_section(section, key):
    message = refusal(ini(removed=[(section, key)]))
    assert message.startswith(f"here/config.ini: {key} is missing from [{section}]")


@pytest.mark.parametrize("text", ["", "two", "1.5", "0x10", "nan", "1e3", "48000 Hz", "9" * 5000])
@pytest.mark.parametrize(("section", "key"), NUMBERS)
def test_what_is_no_whole_number_is_named(section, key, text):
    message = refusal(ini([(section, key, text)]))
    assert f"[{section}] {key}" in message
    assert message.endswith("is not a whole number") or len(text) > 1000


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "-inf", "1e300", "1e-300", "", "one"])
@pytest.mark.parametrize("key", ["norm_tau", "norm_alpha"])
def test_a_decay_that_is_none_is_named(key, text):
    assert f"[df] {key} = {text!r}" in refusal(ini([("df", key, text)]))


@pytest.mark.parametrize("value", ["0", "-1", "9" * 15, "-" + "9" * 15, "9" * 400])
@pytest.mark.parametrize(("section", "key"), NUMBERS)
def test_absurd_numbers_are_refused_by_name(section, key, value):
    if value == "0" and "lookahead" in key:
        pytest.skip("no lookahead is what low-latency models have")
    message = refusal(ini([(section, key, value)]))
    assert key in message or (key == "sr" and "sample_rate" in message)


@pytest.mark.parametrize(
    "model", ["", "deepfilternet", "deepfilternet4", "multistagenet", "deepfilternet3\x1b[2J"]
)
def test_other_networks_are_refused_by_name(model):
    message = refusal(ini([("train", "model", model)]))
    assert "[train] model" in message
    assert message.isprintable()


def test_a_missing_architecture_is_refused():
    assert "[train] model = (missing)" in refusal(ini(removed=[("train", "model")]))


@pytest.mark.parametrize("section", DFN3)
def test_a_missing_section_is_refused(section):
    assert section in refusal(ini(removed=[(section, key) for key in DFN3[section]]))


@pytest.mark.parametrize("text", ["sr = 1", "[df", "[df]\nsr", "\0", "{}", "[df]\n= 3", "\ufeff[df]\nsr = 1"])
def test_what_is_no_ini_file_is_refused(text):
    assert refusal(text).startswith("here/config.ini: ")


@given(st.text(max_size=200))
def test_any_text_is_refused_as_a_model_error(text):
    refusal(text)


@given(
    st.lists(
        st.tuples(st.sampled_from(NUMBERS), st.text(st.characters(codec="utf-8"), max_size=12)), max_size=4
    )
)
def test_any_values_are_read_or_refused_as_a_model_error(changes):
    lines = ini().splitlines()
    for (_, key), value in changes:
        at = next(i for i, line in enumerate(lines) if line.startswith(f"{key} ="))
        lines[at] = f"{key} = {value}"
    with contextlib.suppress(ModelError):
        ModelConfig.from_ini("\n".join(lines))


# -- limits and consistency -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"sample_rate": 3_999}, "sample_rate"),
        ({"sample_rate": 384_001}, "sample_rate"),
        ({"fft_size": 961}, "fft_size"),
        ({"fft_size": 958}, "hop_size"),  # less than two hops
        ({"fft_size": 32_768}, "fft_size"),
        ({"hop_size": 481}, "hop_size"),
        ({"nb_erb": 0}, "nb_erb"),
        ({"nb_erb": 241}, "nb_erb"),  # 241 bands of two bins are more than 481
        ({"nb_df": 482}, "nb_df"),
        ({"df_order": 0}, "df_order"),
        ({"df_order": 65}, "df_order"),
        ({"df_lookahead": 5}, "df_lookahead"),  # as many as taps
        ({"conv_lookahead": 65}, "conv_lookahead"),
        ({"conv_lookahead": -1}, "conv_lookahead"),
        ({"norm_alpha": 1.01}, "norm_alpha"),
        ({"norm_alpha": -0.1}, "norm_alpha"),
        ({"norm_alpha": float("nan")}, "norm_alpha"),
        ({"min_nb_erb_freqs": 0}, "min_nb_erb_freqs"),
    ],
)
def test_limits(changes, named):
    with pytest.raises(ModelError, match=named):
        config(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"nb_erb": 240},
        {"nb_df": 481},
        {"df_lookahead": 4},
        {"conv_lookahead": 64},
        {"hop_size": 8},
        {"fft_size": 1024},
    ],
)
def test_what_the_limits_still_allow(changes):
    assert config(**changes).bins == config(**changes).fft_size // 2 + 1


# -- what follows -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "conv", "df", "frames", "samples", "variant"),
    [
        ("deepfilternet3", 2, 2, 2, 1440, "DeepFilterNet3"),
        ("deepfilternet3", 0, 0, 0, 480, "DeepFilterNet3 LL"),
        ("deepfilternet3", 2, 0, 2, 1440, "DeepFilterNet3"),
        ("deepfilternet3", 0, 2, 2, 1440, "DeepFilterNet3"),
        ("deepfilternet3", 1, 3, 3, 1920, "DeepFilterNet3"),
        ("deepfilternet2", 2, 2, 4, 2400, "DeepFilterNet2"),
        ("deepfilternet2", 0, 0, 0, 480, "DeepFilterNet2 LL"),
        ("deepfilternet2", 2, 0, 2, 1440, "DeepFilterNet2"),
        ("deepfilternet2", 0, 1, 1, 960, "DeepFilterNet2"),
        ("deepfilternet2", 1, 3, 4, 2400, "DeepFilterNet2"),
    ],
)
def test_delay_and_name(architecture, conv, df, frames, samples, variant):
    c = config(architecture=architecture, conv_lookahead=conv, df_lookahead=df)
    assert (c.delay_frames, c.delay_samples, c.variant) == (frames, samples, variant)
    assert c.filters_masked == (architecture == "deepfilternet2")


def test_delay_counts_the_overlap_of_any_window():
    assert (
        config(fft_size=1024, hop_size=256, conv_lookahead=1, df_lookahead=0).delay_samples
        == 1024 - 256 + 256
    )


# -- as a dictionary --------------------------------------------------------------------------------------


@st.composite
def configs(draw):
    hop = draw(st.integers(8, 960))
    fft = 2 * draw(st.integers(hop, 1200))
    order = draw(st.integers(1, 64))
    return ModelConfig(
        architecture=draw(st.sampled_from(["deepfilternet2", "deepfilternet3"])),
        sample_rate=draw(st.integers(4_000, 384_000)),
        fft_size=fft,
        hop_size=hop,
        nb_erb=draw(st.integers(1, min(512, fft // 2 + 1))),
        nb_df=draw(st.integers(1, fft // 2 + 1)),
        df_order=order,
        min_nb_erb_freqs=1,
        norm_alpha=draw(st.floats(0, 1)),
        conv_lookahead=draw(st.integers(0, 64)),
        df_lookahead=draw(st.integers(0, order - 1)),
    )


@given(configs())
def test_round_trip_through_json(c):
    assert ModelConfig.from_dict(json.loads(json.dumps(c.to_dict()))) == c


DAMAGED = {
    "none at all": lambda d: None,  # noqa: ARG005
    "a list": list,
    "empty": lambda d: {},  # noqa: ARG005
    "one more field": lambda d: {**d, "colour": 1},
    "another field": lambda d: {**{k: v for k, v in d.items() if k != "nb_df"}, "nb_fd": 96},
    "text for a number": lambda d: {**d, "hop_size": "480"},
    "a float for a whole number": lambda d: {**d, "nb_erb": 32.0},
    "true for a whole number": lambda d: {**d, "nb_erb": True},
    "a list for a number": lambda d: {**d, "nb_erb": [32]},
    "null": lambda d: {**d, "norm_alpha": None},
    "a whole number for a decay": lambda d: {**d, "norm_alpha": 0},
    "NaN": lambda d: {**d, "norm_alpha": float("nan")},
    "another architecture": lambda d: {**d, "architecture": "deepfilternet"},
    "a number for the architecture": lambda d: {**d, "architecture": 3},
    "out of range": lambda d: {**d, "df_order": 10**6},
    "an enormous number": lambda d: {**d, "sample_rate": 10**400},
}


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_damaged_dictionaries_are_refused(damage):
    with pytest.raises(ModelError) as caught:
        ModelConfig.from_dict(damage(config().to_dict()), source="there")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(ModelConfig)])
def test_every_field_is_needed(field):
    values = config().to_dict()
    del values[field]
    with pytest.raises(ModelError, match="there"):
        ModelConfig.from_dict(values, source="there")
