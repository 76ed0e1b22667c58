"""A recipe: which patches turn a merged export into the graphs of one mode, in order."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

from dfstream.errors import ModelError, UnsupportedGraph
from dfstream.interface import state_inputs, state_output

from .fold import fold_constants
from .graph import constant_value, export_graph, sections
from .last_frame import window_frames

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import onnx
    import onnx_graphsurgeon as gs

    from dfstream.config import ModelConfig

__all__ = ["Metadata", "Part", "Patched", "Recipe", "parse_metadata", "read_metadata"]

_PREFIX = "dfstream."
_FORMAT = "1"

#: Longer than any window of convolutions; a mode keeps that many frames of features.
_LONGEST_WINDOW = 1024


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How the graphs of one mode are made.

    Attributes
    ----------
    name : str
        The mode, or what else the graphs are for.
    stems : tuple of str
        File names, without ``.onnx``, of the graphs it makes.
    patches : tuple of callable
        Each takes the graph, changes it in place and returns the sites it changed, none if it had
        nothing to do.
    finish : callable, optional
        Turns the patched graph into graphs by stem; without one it is saved as it is.
    surround : callable, optional
        Puts more around the one graph that is then there, by the configuration, and returns the result and
        properties for its metadata.
    """

    name: str
    stems: tuple[str, ...]
    patches: tuple[Callable[[gs.Graph], list[str]], ...]
    finish: Callable[[gs.Graph], Mapping[str, gs.Graph]] | None = None
    surround: Callable[[gs.Graph, ModelConfig], tuple[gs.Graph, Mapping[str, str]]] | None = None

    @property
    def steps(self) -> tuple[Callable[..., Any], ...]:
        """Everything that has a part in its graphs."""
        return (*self.patches, *(step for step in (self.finish, self.surround) if step is not None))

    def apply(self, merged: gs.Graph, config: ModelConfig, source_sha256: str) -> Patched:
        """Patch a merged graph, which is left as it is.

        Parameters
        ----------
        merged : Graph
        config : ModelConfig
            Written into the metadata.
        source_sha256 : str
            Digest of the export, the same.

        Raises
        ------
        UnsupportedGraph
            A patch does not fit; the message begins with the recipe's name.
        """
        graph = merged.copy()
        try:
            report = [(patch.__name__, tuple(patch(graph))) for patch in self.patches]
            graphs = {self.stems[0]: graph} if self.finish is None else self.finish(graph)
            if self.finish is not None:
                report.append((self.finish.__name__, tuple(graphs)))
            properties: Mapping[str, str] = {}
            if self.surround is not None:
                (inner,) = graphs.values()
                outer, properties = self.surround(inner, config)
                graphs = {self.stems[0]: outer}
                report.append((self.surround.__name__, self.stems))
            window = _exact_window(merged)
            common = {
                "format": _FORMAT,
                "recipe": self.name,
                "source_sha256": source_sha256,
                "patches": json.dumps(["merge", *(name for name, _ in report)]),
                "config": json.dumps(config.to_dict(), sort_keys=True),
                "delay_samples": str(config.delay_samples),
                **({"window_frames": str(window)} if window else {}),
                **properties,
            }
            files = {stem: export_graph(g, _metadata(stem, g, common)) for stem, g in graphs.items()}
        except UnsupportedGraph as error:
            raise UnsupportedGraph(f"{self.name}: {error}", hint=error.hint) from error
        return Patched(files, tuple(report))


@dataclasses.dataclass(frozen=True)
class Patched:
    """What a recipe made.

    Attributes
    ----------
    files : mapping of str to bytes
        Serialised graphs by stem.
    report : tuple of (str, tuple of str)
        Each patch and the sites it changed.
    """

    files: Mapping[str, bytes]
    report: tuple[tuple[str, tuple[str, ...]], ...]


def _exact_window(merged: gs.Graph) -> int | None:
    folded = merged.copy()
    fold_constants(folded)
    try:
        return window_frames(folded)
    except UnsupportedGraph:
        return None  # time convolutions behind a GRU: no window is exact


# -- metadata --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Part:
    """Channels of a state that belong to one part of the network.

    Attributes
    ----------
    section : str
        ``enc``, ``erb`` or ``df``.
    start, size : int
        First channel, and how many.
    """

    section: str
    start: int
    size: int


@dataclasses.dataclass(frozen=True)
class Metadata:
    """What dfstream wrote into a graph it patched.

    Attributes
    ----------
    recipe, stem : str
        Which recipe made it and under which file name.
    source_sha256 : str
        Digest of the export it comes from.
    patches : tuple of str
        Names of the patches, in order.
    config : dict
        Fields of `dfstream.config.ModelConfig`.
    window_frames : int or None
        Feature frames that make one frame exact, None where no window does.
    sections : mapping of str to str
        Which part of the network (``enc``, ``erb``, ``df``) each state belongs to.
    parts : mapping of str to tuple of Part
        The parts of states that hold several, in order.
    """

    recipe: str
    stem: str
    source_sha256: str
    patches: tuple[str, ...]
    config: dict[str, Any]
    window_frames: int | None
    sections: Mapping[str, str]
    parts: Mapping[str, tuple[Part, ...]]
    audio: Mapping[str, Any] | None


def read_metadata(model: onnx.ModelProto, name: str) -> Metadata | None:
    """Return what dfstream wrote into a graph, None for a graph it did not write.

    Raises
    ------
    ModelError
        Written by another version of dfstream, or damaged.
    """
    return parse_metadata({p.key: p.value for p in model.metadata_props}, name)


def parse_metadata(properties: Mapping[str, str], name: str) -> Metadata | None:
    """Return what dfstream wrote into a graph of these properties; as `read_metadata`."""
    values = {key.removeprefix(_PREFIX): v for key, v in properties.items() if key.startswith(_PREFIX)}
    if "format" not in values:
        return None
    if values["format"] != _FORMAT:
        raise ModelError(
            f"{name}: patched by another version of dfstream (format {values['format']!r}, not {_FORMAT})",
            hint="patch the original export again",
        )
    try:
        window = values.get("window_frames")
        states = json.loads(values["states"])
        return Metadata(
            recipe=values["recipe"],
            stem=values["graph"],
            source_sha256=values["source_sha256"],
            patches=tuple(json.loads(values["patches"])),
            config=json.loads(values["config"]),
            window_frames=None if window is None else _window(window),
            sections={state["name"]: state["section"] for state in states},
            parts={
                state["name"]: tuple(Part(**part) for part in state["parts"])
                for state in states
                if "parts" in state
            },
            audio=json.loads(values["audio"]) if "audio" in values else None,
        )
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise ModelError(f"{name}: its dfstream metadata is damaged ({error})") from error


def _section(graph: gs.Graph, state: gs.Variable) -> str:
    """Tell which part of the network reads a state; in a part by itself, the encoder's stands for all."""
    readers = {id(node) for node in state.outputs}
    return next((name for name, members in sections(graph).items() if members & readers), "enc")


def _parts(graph: gs.Graph, state: gs.Variable) -> dict[str, Any]:
    """Return which channels of a state belong where, nothing where all belong together."""
    slices = [node for node in state.outputs if node.op == "Slice"]
    if len(slices) < 2:
        return {}
    members = sections(graph)
    parts = []
    for node in slices:
        start, end, *_ = (constant_value(t) for t in node.inputs[1:])
        owner = next((name for name, nodes in members.items() if id(node) in nodes), "enc")
        if start is None or end is None:
            return {}
        parts.append(Part(owner, int(start[0]), int(end[0] - start[0])))
    parts.sort(key=lambda part: part.start)
    whole = len({part.section for part in parts}) == 1
    return {} if whole else {"parts": [dataclasses.asdict(part) for part in parts]}


def _window(text: str) -> int:
    if not 1 <= int(text) <= _LONGEST_WINDOW:
        raise ValueError(f"window_frames = {text} is outside 1 to {_LONGEST_WINDOW}")
    return int(text)


def _metadata(stem: str, graph: gs.Graph, common: dict[str, str]) -> dict[str, str]:
    inputs = {t.name: t for t in graph.inputs}
    states = [
        {
            "name": name,
            "output": state_output(name),
            "shape": list(inputs[name].shape),
            "initial": 0,
            "section": _section(graph, inputs[name]),
            **_parts(graph, inputs[name]),
        }
        for name in state_inputs(inputs, [t.name for t in graph.outputs])
    ]
    return {f"{_PREFIX}{k}": v for k, v in {**common, "graph": stem, "states": json.dumps(states)}.items()}
