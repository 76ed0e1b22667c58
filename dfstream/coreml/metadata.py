"""What a package says of itself: strings under ``dfstream.*`` in its user-defined metadata."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

from dfstream import __version__
from dfstream.backends._onestep import CanonicalState
from dfstream.config import ModelConfig
from dfstream.coreml.flavour import Flavour, state_shape
from dfstream.errors import ModelError, UsageError
from dfstream.interface import FEATURES, MASK, state_output
from dfstream.patches.recipe import Part

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dfstream.coreml.package import Package

__all__ = ["PackageFacts"]

_PREFIX = "dfstream."
_FORMAT = "1"

#: Version of the definition of the features; a package of another one needs another signal processing.
_FEATURES_VERSION = "1"

#: Parts of the network, as `dfstream.patches.graph.sections` calls them.
_SECTIONS = ("enc", "erb", "df")


@dataclasses.dataclass(frozen=True)
class PackageFacts:
    """What has to be known of a package to stream through it.

    Attributes
    ----------
    model : str
        Name of the model it was made of.
    source_sha256 : str
        Digest of the export, as `dfstream.Model.sha256`.
    config : ModelConfig
    flavour : Flavour
    states : mapping of str to CanonicalState
        By the canonical graph's names.
    licence : str
        Of the model.
    """

    model: str
    source_sha256: str
    config: ModelConfig
    flavour: Flavour
    states: Mapping[str, CanonicalState]
    licence: str

    @property
    def features(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the features of a call."""
        frames, c = self.flavour.block_frames, self.config
        erb, spec = FEATURES
        return {erb: (1, 1, frames, c.nb_erb), spec: (1, 2, frames, c.nb_df)}

    @property
    def results(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the results of a call."""
        frames, c = self.flavour.block_frames, self.config
        return {
            MASK: (1, 1, frames, c.nb_erb),
            "coefs": (1, 2 * c.df_order, frames, c.nb_df),
            "lsnr": (1, 1, frames, 1),
        }

    def check(self, package: Package) -> None:
        """Refuse a package whose tensors are not the ones that its metadata tells of.

        Raises
        ------
        ModelError
            Names the tensor.
        """
        states = {name: state.shape for name, state in self.states.items()}
        explicit = self.flavour.state == "explicit"
        inputs = {**self.features, **(states if explicit else {})}
        after = {state_output(name): shape for name, shape in states.items()} if explicit else {}
        kept = {} if explicit else {name: state_shape(shape) for name, shape in states.items()}
        for kind, wanted, tensors in (
            ("input", inputs, package.inputs),
            ("output", {**self.results, **after}, package.outputs),
            ("state", kept, package.states),
        ):
            given = {name: tensor.shape for name, tensor in tensors.items()}
            for name in sorted({*wanted, *given}):
                if wanted.get(name) != given.get(name):
                    raise ModelError(
                        f"{package.path}: the {kind} {name} has the shape {given.get(name)}, "
                        f"in its metadata {wanted.get(name)}",
                        hint="convert the model again",
                    )

    @property
    def block_delay_samples(self) -> int:
        """Samples that waiting for a whole call adds to the model's delay in live audio."""
        return (self.flavour.block_frames - 1) * self.config.hop_size

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, for JSON."""
        from dfstream.dsp.erb import erb_widths  # not above: it compiles kernels, backends are but looked at

        c, explicit = self.config, self.flavour.state == "explicit"
        half = self.flavour.half_interface or not explicit
        return {
            "format": _FORMAT,
            "version": __version__,
            "model": self.model,
            "source_sha256": self.source_sha256,
            "licence": self.licence,
            "precision": self.flavour.precision,
            "state": self.flavour.state,
            "target": self.flavour.generation.names[0],
            "block_frames": self.flavour.block_frames,
            "delay_samples": c.delay_samples,
            "block_delay_samples": self.block_delay_samples,
            "features": _FEATURES_VERSION,
            "erb_widths": erb_widths(c.sample_rate, c.fft_size, c.nb_erb, c.min_nb_erb_freqs).tolist(),
            "inputs": {name: list(shape) for name, shape in self.features.items()},
            "outputs": {name: list(shape) for name, shape in self.results.items()},
            "dtype": "float16" if self.flavour.half_interface else "float32",
            "states": [
                {
                    "name": name,
                    "output": state_output(name) if explicit else None,
                    "shape": list(state.shape),
                    "dtype": "float16" if half else "float32",
                    "initial": 0,
                    "section": state.section,
                    "parts": [dataclasses.asdict(part) for part in state.parts],
                }
                for name, state in self.states.items()
            ],
            "config": c.to_dict(),
        }

    def to_properties(self) -> dict[str, str]:
        """Return everything as a package's metadata: strings, JSON where they are more than one value."""
        values = self.to_dict()
        return {
            f"{_PREFIX}{key}": value if isinstance(value, str) else json.dumps(value, sort_keys=True)
            for key, value in values.items()
        }

    @classmethod
    def from_properties(cls, properties: Mapping[str, str], source: str) -> PackageFacts:
        """Read what `to_properties` wrote.

        Parameters
        ----------
        properties : mapping of str to str
        source : str
            Name used in errors.

        Raises
        ------
        ModelError
            dfstream did not write it, or another version did, or it is damaged.
        """
        values = {k.removeprefix(_PREFIX): v for k, v in properties.items() if k.startswith(_PREFIX)}
        if "format" not in values:
            raise ModelError(
                f"{source}: not a package that dfstream made",
                hint="make one: dfstream convert MODEL -o X.mlpackage",
            )
        wanted = {"format": _FORMAT, "features": _FEATURES_VERSION}
        for key, version in wanted.items():
            if values.get(key) != version:
                raise ModelError(
                    f"{source}: of another version of dfstream ({key} {values.get(key)!r}, not {version})",
                    hint="convert the model again",
                )
        try:
            flavour = Flavour(
                values["precision"],
                values["state"],  # type: ignore[arg-type]  # it looks itself
                values["target"],
                int(values["block_frames"]),
            )
            states = {state["name"]: _state(state) for state in json.loads(values["states"])}
            config = ModelConfig.from_dict(json.loads(values["config"]), source=source)
            return cls(
                values["model"], values["source_sha256"], config, flavour, states, values.get("licence", "")
            )
        except (KeyError, ValueError, TypeError, RecursionError, UsageError) as error:
            raise ModelError(f"{source}: its dfstream metadata is damaged ({error})") from error


def _state(values: dict[str, Any]) -> CanonicalState:
    shape = tuple(values["shape"])
    if len(shape) != 4 or not all(type(size) is int and 0 < size < 1 << 20 for size in shape):
        raise ValueError(f"a state of the shape {shape}")
    if not isinstance(values["name"], str) or values["name"] in FEATURES:
        raise ValueError(f"a state called {values['name']!r}")
    if values["section"] not in _SECTIONS:
        raise ValueError(f"a state of the section {values['section']!r}")
    parts = tuple(Part(**part) for part in values["parts"])
    end = 0
    for part in parts:
        whole = type(part.start) is type(part.size) is int
        if not whole or part.start != end or part.size < 1 or part.section not in _SECTIONS:
            raise ValueError("parts of a state that do not cover it")
        end += part.size
    if parts and end != shape[1]:
        raise ValueError("parts of a state that do not cover it")
    return CanonicalState(shape, values["section"], parts)
