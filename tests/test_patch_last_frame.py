"""keep_last_frame, and the mode made with it: stateful-h0, exact from frame 0 with a window that grows."""

import pytest
from dfstream.patches.gru_state import expose_gru_state
from dfstream.patches.last_frame import check_window_exact, keep_last_frame, window_frames

import oracle
from dfstream.errors import UnsupportedGraph
from dfstream.modes.base import find_mode, mode_names

RECIPE = find_mode("stateful-h0").recipe()
STEM = "combined_streaming"

#: What the time kernels ask for: those of the input convolutions and of the pathway, less one.
WINDOWS = {
    "dfn3": 7, "dfn2": 7, "dfn2-ll": 5, "dfn3-h0": 7, "dfn2-h0": 7, "lean": 3, "wideband16k": 5, "bundled": 3,
    "official dfn3": 7, "official dfn2": 7, "official dfn2_ll": 5,
    "official dfn3_h0": 7, "official dfn2_h0": 7,
}  # fmt: skip

#: The pathway of these gives zeros on all signals, so what its past is does not show.
DEAD_PATHWAY = ("official dfn3", "official dfn3_h0")


@oracle.every_model(oracle.WINDOWED)
def test_a_growing_window_is_exact_from_the_first_frame(name):
    c = oracle.case(name)
    assert c.model.window_frames == WINDOWS[name]
    got = oracle.windowed(*c.graphs(RECIPE), c.feats, WINDOWS[name])
    oracle.check_equal(got, c.want)
    oracle.check_equal(got, c.want, frames=slice(0, WINDOWS[name]))


@oracle.every_model(oracle.WINDOWED)
def test_a_longer_window_changes_nothing(name):
    c = oracle.case(name)
    oracle.check_equal(oracle.windowed(*c.graphs(RECIPE), c.feats, WINDOWS[name] + 5), c.want)


@oracle.every_model(oracle.WINDOWED)
def test_a_window_one_frame_shorter_is_not_exact(name):
    """So that the window is not just enough but the least."""
    c = oracle.case(name)
    short = oracle.errors(oracle.windowed(*c.graphs(RECIPE), c.feats, WINDOWS[name] - 1), c.want)
    if name in DEAD_PATHWAY:
        assert short["coefs"] <= oracle.LIMITS["coefs"]
    else:
        assert short["coefs"] > 1e3 * oracle.LIMITS["coefs"]


@oracle.every_model(oracle.WINDOWED)
def test_a_window_filled_with_zero_features_errs_at_the_start_only(name):
    """Zero features give relu(bias) behind a convolution, where the export has zeros."""
    c, W = oracle.case(name), WINDOWS[name]
    got = oracle.windowed(*c.graphs(RECIPE), c.feats, W, grow=False)
    oracle.check_equal(got, c.want, frames=slice(W, None))
    start = oracle.errors(got, c.want, slice(0, W))
    if W == 3 or name in DEAD_PATHWAY:  # nothing but the features has a past, or none that matters
        oracle.check_equal(got, c.want)
    else:
        assert start["coefs"] > 5 * oracle.LIMITS["coefs"]


def test_a_whole_run_of_the_graph_gives_its_last_frame():
    c = oracle.case("dfn3")
    out = oracle.run(*c.graphs(RECIPE), c.feats)
    assert (out["lsnr"].shape, out["m"].shape, out["coefs"].shape) == (
        (1, 1, 1),
        (1, 1, 1, 32),
        (1, 1, 96, 10),
    )


@pytest.mark.parametrize("name", ["dfn3", "dfn2", "dfn3-h0", "dfn2-h0"])
def test_combined_streaming_is_a_drop_in(name):
    """Names and order of the file that other programs load by this name."""
    inputs, outputs = oracle.ports(oracle.case(name).model.graphs(RECIPE)[STEM])
    hidden = {"h0": [1, "B", 32], "erb_h0": [2, "B", 32], "df_h0": [2, "B", 24]}
    assert inputs == {"feat_erb": ["B", 1, "T", 32], "feat_spec": ["B", 2, "T", 96], **hidden}
    assert list(inputs) == ["feat_erb", "feat_spec", "h0", "erb_h0", "df_h0"]
    assert list(outputs) == ["lsnr", "m", "coefs", "h1", "erb_h1", "df_h1"]
    assert {name: outputs[oracle.after(name)] for name in hidden} == hidden


def test_convolutions_keep_what_they_need_and_no_more():
    graph = oracle.merged("dfn3")
    expose_gru_state(graph)
    sites = keep_last_frame(graph)
    assert [site.split(" -> ")[0] for site in sites] == [
        "enc/erb_conv0/Pad_output_0[-3:]",
        "enc/df_conv0/Pad_output_0[-7:]",
        "c0[-1:]",
        "df_dec/df_convp/Pad_output_0[-5:]",
    ]


@pytest.mark.parametrize("name", oracle.WINDOWED)
def test_twice_changes_nothing(name):
    assert oracle.twice(oracle.merged(name), keep_last_frame)


@pytest.mark.parametrize("name", oracle.WINDOWED)
def test_the_window_is_the_same_before_and_after(name):
    graph = oracle.merged(name)
    assert window_frames(graph) == WINDOWS[name]
    keep_last_frame(graph)
    expose_gru_state(graph)
    check_window_exact(graph)


# -- refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("patch", [keep_last_frame, window_frames, check_window_exact])
def test_refuses_a_time_convolution_behind_a_gru(patch):
    graph = oracle.merged("dfn3-ll")
    with pytest.raises(UnsupportedGraph, match=r"Pad 'erb_dec/convt3/Pad'.*behind a GRU") as refusal:
        patch(graph)
    assert "incremental" in refusal.value.hint


def test_a_model_with_such_a_convolution_refuses_the_windowed_modes():
    model = oracle.case("dfn3-ll").model
    windowed = [name for name in mode_names() if not find_mode(name).many_frames]
    assert windowed == ["stateful-h0", "stateless-window-last"]
    for name in windowed:
        with pytest.raises(UnsupportedGraph, match=r"Pad 'erb_dec/convt3/Pad'"):
            find_mode(name).frames_per_hop(model)
    with pytest.raises(UnsupportedGraph, match=r"stateful-h0: Pad 'erb_dec/convt3/Pad'"):
        model.patch(RECIPE)


@pytest.mark.parametrize("key", ["strides", "dilations"])
def test_refuses_strides_and_dilations_in_time(key):
    graph = oracle.merged("dfn3")
    conv = oracle.first(graph, "Conv")
    conv.attrs[key] = [2, 1]
    with pytest.raises(UnsupportedGraph, match=rf"Conv '{conv.name}' strides, dilates or pads along time"):
        keep_last_frame(graph)


@pytest.mark.parametrize("pads", [[2, 1, 0, 1], [0, 1, 2, 1]])
def test_refuses_a_convolution_that_pads_in_time_itself(pads):
    graph = oracle.merged("dfn3")
    oracle.first(graph, "Conv").attrs["pads"] = pads
    with pytest.raises(UnsupportedGraph, match=r"strides, dilates or pads along time"):
        keep_last_frame(graph)
