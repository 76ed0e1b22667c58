"""Make DeepFilterNet exports with random weights, for tests that need the form of a model and not its skill.

    python tools/synthetic.py dfn3-ll -o DIR --seed 0

Every member of the family that dfstream supports can be made, small by default. The graphs have the
layers, the tensor names and the exporter's idioms of the real ones; activations are alive: masks
spread over 0 to 1 and recurrent states move.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import click

import synthetic_net
from dfstream.errors import DfstreamError, UsageError

__all__ = ["PRESETS", "Family", "make", "preset", "write"]

Exporter = Literal["pytorch12", "h0", "h0-enc", "lean"]


@dataclasses.dataclass(frozen=True)
class Family:
    """One member of the DeepFilterNet family; the fields are named as in ``config.ini``.

    The defaults are DeepFilterNet3 in miniature. Kernels are (frames, frequencies). ``conv_depthwise``
    chooses grouped convolutions followed by 1x1 ones, else dense ones. ``exporter`` is the form of the
    graphs: "pytorch12" (stateless, opset 12), "h0" and "h0-enc" (opset 14, recurrent states as inputs
    and outputs of all graphs or of the encoder alone), "lean" (constant shapes; no projections around
    recurrent layers, DF layers summed, the pathway inside the tanh, no alpha).
    """

    architecture: Literal["deepfilternet2", "deepfilternet3"] = "deepfilternet3"
    exporter: Exporter = "pytorch12"
    sample_rate: int = 48_000
    fft_size: int = 960
    hop_size: int = 480
    nb_erb: int = 32
    nb_df: int = 96
    df_order: int = 5
    min_nb_erb_freqs: int = 2
    conv_lookahead: int = 2
    df_lookahead: int = 2
    conv_ch: int = 8
    conv_depthwise: bool = True
    conv_kernel: tuple[int, int] = (1, 3)
    conv_kernel_inp: tuple[int, int] = (3, 3)
    convt_kernel: tuple[int, int] = (1, 3)
    df_pathway_kernel_size_t: int = 5
    emb_hidden_dim: int = 32
    emb_num_layers: int = 3
    df_hidden_dim: int = 24
    df_num_layers: int = 2
    enc_linear_groups: int = 16
    linear_groups: int = 8
    df_linear_groups: int = 8
    enc_concat: bool = False
    df_gru_skip: Literal["none", "groupedlinear"] = "groupedlinear"

    def __post_init__(self) -> None:
        if self.nb_erb % 4 or self.nb_df % 2:
            raise UsageError(
                f"nb_erb = {self.nb_erb} must divide by 4, nb_df = {self.nb_df} by 2, as the encoder strides"
            )
        if self.convt_kernel[0] != 1:
            raise UsageError(f"convt_kernel = {self.convt_kernel}: transposed convolutions span one frame")
        if self.emb_num_layers < 2:
            raise UsageError(
                f"emb_num_layers = {self.emb_num_layers}: the ERB decoder has one layer less, at least one"
            )

    @property
    def lean(self) -> bool:
        """Whether the graphs have the layers of the lean exporter."""
        return self.exporter == "lean"

    @property
    def projects_skip(self) -> bool:
        """Whether decoders add the projected input of their recurrent layers to the output (DFN2)."""
        return self.architecture == "deepfilternet2"

    @property
    def flat_dim(self) -> int:
        """Width of the flattened map e3."""
        return self.conv_ch * self.nb_erb // 4

    @property
    def emb_dim(self) -> int:
        """Width of the tensor ``emb``: DFN2 hands on the recurrent state itself."""
        return self.emb_hidden_dim if self.projects_skip else self.flat_dim


_DFN2 = Family(architecture="deepfilternet2", enc_concat=True, enc_linear_groups=8, df_gru_skip="none")
_LOW_LATENCY: dict[str, Any] = {"conv_lookahead": 0, "df_lookahead": 0}
_LEAN = Family(
    exporter="lean", conv_depthwise=False, enc_concat=True, enc_linear_groups=1, linear_groups=1,
    df_linear_groups=1, emb_num_layers=2, df_pathway_kernel_size_t=1, df_gru_skip="none",
)  # fmt: skip
_WIDEBAND = Family(
    sample_rate=16_000, fft_size=320, hop_size=160, nb_erb=24, nb_df=64, df_order=3, min_nb_erb_freqs=1,
    conv_lookahead=1, df_lookahead=1, df_pathway_kernel_size_t=3,
)  # fmt: skip

#: Miniatures by name. A time kernel of 2 in "dfn3-ll" puts padded convolutions behind recurrent layers.
PRESETS: dict[str, Family] = {
    "dfn3": Family(),
    "dfn2": _DFN2,
    "dfn2-ll": dataclasses.replace(_DFN2, **_LOW_LATENCY, df_pathway_kernel_size_t=3),
    "dfn3-ll": Family(**_LOW_LATENCY, conv_kernel=(2, 3), df_num_layers=3),
    "dfn3-h0": Family(exporter="h0"),
    "dfn2-h0": dataclasses.replace(_DFN2, exporter="h0-enc"),
    "lean": _LEAN,
    "wideband16k": _WIDEBAND,
}

_FULL_DFN3: dict[str, Any] = {
    "conv_ch": 64, "emb_hidden_dim": 256, "df_hidden_dim": 256, "enc_linear_groups": 32, "linear_groups": 16,
}  # fmt: skip
_FULL_DFN2: dict[str, Any] = {"conv_ch": 64, "emb_hidden_dim": 256, "df_hidden_dim": 256}
_FULL: dict[str, dict[str, Any]] = {
    "dfn2": _FULL_DFN2,
    "dfn2-ll": _FULL_DFN2,
    "dfn2-h0": _FULL_DFN2,
    "dfn3-ll": {**_FULL_DFN3, "emb_hidden_dim": 512, "df_hidden_dim": 512},
    "lean": {"conv_ch": 16, "emb_hidden_dim": 160, "df_hidden_dim": 160},
}


def preset(name: str, *, full: bool = False) -> Family:
    """Return a preset by name, in miniature or in the size of the official models.

    Raises
    ------
    UsageError
        No such preset.
    """
    if name not in PRESETS:
        raise UsageError(f"no preset {name!r}", hint=f"there are {', '.join(PRESETS)}")
    return dataclasses.replace(PRESETS[name], **_FULL.get(name, _FULL_DFN3)) if full else PRESETS[name]


def make(family: Family, seed: int = 0) -> dict[str, bytes]:
    """Make an export.

    Parameters
    ----------
    family : Family
    seed : int
        The same seed gives the same bytes.

    Returns
    -------
    dict of str to bytes
        ``enc.onnx``, ``erb_dec.onnx``, ``df_dec.onnx`` and ``config.ini``.
    """
    files = {f"{part}.onnx": synthetic_net.build(family, part, seed) for part in synthetic_net.PARTS}
    return {**files, "config.ini": _config(family).encode()}


def write(folder: Path, family: Family, seed: int = 0) -> Path:
    """Make an export in a folder, which is created where it is missing; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in make(family, seed).items():
        (folder / name).write_bytes(data)
    return folder


def _config(f: Family) -> str:
    """The keys of ``config.ini`` that describe the network, in the sections where the exports have them."""
    filter_keys = {"df_order": f.df_order, "df_lookahead": f.df_lookahead}
    in_df = f.architecture == "deepfilternet3"
    sections: dict[str, dict[str, Any]] = {
        "train": {"model": f.architecture},
        "df": {
            "sr": f.sample_rate, "fft_size": f.fft_size, "hop_size": f.hop_size, "nb_erb": f.nb_erb,
            "nb_df": f.nb_df, "norm_tau": 1, "lsnr_max": 35, "lsnr_min": -15,
            "min_nb_erb_freqs": f.min_nb_erb_freqs,
            **(filter_keys if in_df else {}),
        },
        "deepfilternet": {
            **({} if in_df else filter_keys),
            "conv_lookahead": f.conv_lookahead, "conv_ch": f.conv_ch, "conv_depthwise": f.conv_depthwise,
            "conv_kernel": "{},{}".format(*f.conv_kernel),
            "conv_kernel_inp": "{},{}".format(*f.conv_kernel_inp),
            "convt_kernel": "{},{}".format(*f.convt_kernel),
            "df_pathway_kernel_size_t": f.df_pathway_kernel_size_t, "emb_hidden_dim": f.emb_hidden_dim,
            "emb_num_layers": f.emb_num_layers, "df_hidden_dim": f.df_hidden_dim,
            "df_num_layers": f.df_num_layers, "enc_linear_groups": f.enc_linear_groups,
            "linear_groups": f.linear_groups, "enc_concat": f.enc_concat, "df_gru_skip": f.df_gru_skip,
        },
    }  # fmt: skip
    blocks = (
        "\n".join([f"[{name}]", *(f"{k} = {v}" for k, v in keys.items())]) for name, keys in sections.items()
    )
    return "\n\n".join(blocks) + "\n"


@click.command()
@click.argument("name", type=click.Choice(list(PRESETS)))
@click.option(
    "-o", "--output", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder to fill."
)
@click.option("--seed", default=0, show_default=True, help="Seed of the weights.")
@click.option("--full", is_flag=True, help="Sizes of the official models instead of a miniature.")
def main(name: str, output: Path, seed: int, full: bool) -> None:
    """Write a synthetic export of the preset NAME: three graphs and config.ini."""
    try:
        write(output, preset(name, full=full), seed)
    except DfstreamError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{output}: {name}, seed {seed}")


if __name__ == "__main__":
    main()
