"""A model: the graphs and the configuration of one DeepFilterNet export, immutable and shared."""

from __future__ import annotations

import dataclasses
import functools
import threading
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from dfstream import graphstore, reading
from dfstream.errors import UnsupportedGraph
from dfstream.interface import EXPORTS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import onnx_graphsurgeon as gs

    from dfstream.backends.base import Backend, Session
    from dfstream.config import ModelConfig
    from dfstream.coreml.package import Package
    from dfstream.patches.facts import Facts
    from dfstream.patches.recipe import Patched, Recipe

__all__ = ["Model"]

#: A merged graph.
COMBINED = "combined"


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """One DeepFilterNet export, read and checked. Make one with `Model.load`.

    A model holds no state of a stream: any number of streams, in any number of threads, may share it.
    Graphs are patched and loaded when a mode first asks for them, once per model.

    Attributes
    ----------
    name : str
        Short name, for people.
    config : ModelConfig
        What tells the variant from others.
    sha256 : str
        Digest of the export: of the lines ``<sha256>  <file name>`` of its files, sorted by name.
    origin : str
        Where it was read from.
    package : Package or None
        The Core ML package that it is.
    """

    name: str
    config: ModelConfig
    sha256: str
    origin: str
    _sources: Mapping[str, bytes] = dataclasses.field(repr=False)
    _patched: Mapping[str, bytes] = dataclasses.field(repr=False)
    _window: int | None = dataclasses.field(repr=False)
    _config_ini: bytes | None = dataclasses.field(repr=False)
    package: Package | None = dataclasses.field(default=None, repr=False)
    _graphs: dict[str, Mapping[str, bytes]] = dataclasses.field(default_factory=dict, repr=False)
    _sessions: dict[Any, Mapping[str, Session]] = dataclasses.field(default_factory=dict, repr=False)
    _lock: threading.RLock = dataclasses.field(default_factory=threading.RLock, repr=False)

    @classmethod
    def load(cls, source: Model | str | Path | None = None) -> Model:
        """Load a model.

        Parameters
        ----------
        source : Model, str, Path or None
            A name (``dfstream models`` lists them; None is the bundled one); a folder with ``enc.onnx``,
            ``erb_dec.onnx``, ``df_dec.onnx`` and ``config.ini``; an official ``*.tar.gz`` of these; a
            merged ``combined.onnx``; a graph that ``dfstream patch`` wrote; or a Core ML package that
            ``dfstream convert`` wrote. Beside a merged graph a
            ``config.ini`` is read; without one its numbers are taken from the graph's shapes, and the
            rest are those of the official models: 48 kHz, FFT 960, hop 480, two frames of lookahead,
            norm decay 0.99, two bins per band at least. A model is returned as it is. A name wins over a
            folder of the same name; write ``./dfn3`` for the folder.

        Raises
        ------
        UsageError
            No such name or file.
        ModelError
            Unreadable, unsafe, incomplete, or not a DeepFilterNet.

        Examples
        --------
        >>> Model.load("bundled").config.delay_samples
        1440
        """
        if isinstance(source, Model):
            return source
        from dfstream.loading import load_model

        return load_model(source)

    # -- facts -------------------------------------------------------------------------------------

    @functools.cached_property
    def _facts(self) -> Facts | None:
        from dfstream.patches.facts import describe

        return describe(self._merged()) if self._sources else None

    @property
    def facts(self) -> Facts:
        """What the network is made of.

        Raises
        ------
        UnsupportedGraph
            Only patched graphs are at hand, or a Core ML package.
        """
        self._refuse_package()
        if self._facts is None:
            raise UnsupportedGraph(f"{self.origin}: only patched graphs are at hand, not the export")
        return self._facts

    @property
    def is_export(self) -> bool:
        """Whether the unpatched graphs are at hand, so that any mode can be made from them."""
        return bool(self._sources)

    @property
    def window_frames(self) -> int:
        """Feature frames that make one frame of all results exact.

        Raises
        ------
        UnsupportedGraph
            No window can: a time convolution stands behind a GRU. Or it is a Core ML package.
        """
        self._refuse_package()
        window = self._facts.window if self._facts else self._window
        if window is None:
            reason = self._facts.window_reason if self._facts else "a time convolution stands behind a GRU"
            raise UnsupportedGraph(
                f"no window of features is exact for this model: {reason}",
                hint="use the mode incremental or streaming",
            )
        return window

    @property
    def config_ini(self) -> bytes | None:
        """The configuration file as it was read, None where there was none."""
        return self._config_ini

    # -- graphs ------------------------------------------------------------------------------------

    def graphs(self, recipe: Recipe) -> Mapping[str, bytes]:
        """Return the serialised graphs of a recipe, patching in memory what is not at hand.

        Raises
        ------
        UnsupportedGraph
            The export is not at hand, or a patch does not fit it.
        """
        with self._lock:
            if recipe.name not in self._graphs:
                if self.has_patched(recipe):
                    self._graphs[recipe.name] = {stem: self._patched[stem] for stem in recipe.stems}
                elif self._sources and (kept := graphstore.recall(self.sha256, recipe)):
                    self._graphs[recipe.name] = kept
                else:
                    self._graphs[recipe.name] = self.patch(recipe).files
                    graphstore.remember(self.sha256, recipe, self._graphs[recipe.name])
            return self._graphs[recipe.name]

    def patch(self, recipe: Recipe) -> Patched:
        """Apply a recipe to the export.

        Raises
        ------
        UnsupportedGraph
            As `graphs`.
        """
        self._refuse_package()
        if not self._sources:
            have = ", ".join(sorted(self._patched))
            raise UnsupportedGraph(
                f"{self.origin}: {recipe.name} needs {', '.join(recipe.stems)}; at hand is only {have}",
                hint="load the original export: every mode can be made from it",
            )
        patched = recipe.apply(self._merged(), self.config, self.sha256)
        merged = ("merge", tuple(EXPORTS) if len(self._sources) > 1 else ())
        return dataclasses.replace(patched, report=(merged, *patched.report))

    def has_patched(self, recipe: Recipe) -> bool:
        """Whether the graphs of a recipe were found already patched."""
        return all(stem in self._patched for stem in recipe.stems)

    def with_patched(self, files: Mapping[str, bytes]) -> Model:
        """Return this model with the given graphs, by stem, in place of patching."""
        return dataclasses.replace(
            self, _patched=MappingProxyType(dict(files)), _graphs={}, _sessions={}, _lock=threading.RLock()
        )

    def source_graphs(self) -> Mapping[str, bytes]:
        """Return the unpatched graphs: the three of an export, or ``combined``."""
        return MappingProxyType(dict(self._sources))

    def files_at_hand(self) -> Mapping[str, bytes]:
        """Return every graph that was read, patched or not, by stem."""
        return MappingProxyType({**self._sources, **self._patched})

    def open(self, backend: Backend, recipe: Recipe, *, single_frame: bool = False) -> Mapping[str, Session]:
        """Return the loaded graphs of a recipe, loaded once per backend and its options.

        They are those of another recipe where the backend knows a better one for calls of a single frame;
        see `dfstream.backends.base.Backend.choose`.
        """
        with self._lock:
            chosen = backend.choose(self, recipe, single_frame)
            key = (backend, recipe.name, chosen.name)
            if key not in self._sessions:
                sessions = backend.open(self, chosen).values()
                self._sessions[key] = dict(zip(recipe.stems, sessions, strict=True))
            return self._sessions[key]

    def _refuse_package(self) -> None:
        """Refuse what a Core ML package cannot tell or become."""
        if self.package is not None:
            raise UnsupportedGraph(
                f"{self.origin} is a Core ML package: it runs in the mode incremental, on mlpackage and "
                "mlpackage-reference",
                hint="load the original export: every mode can be made from it",
            )

    def _merged(self) -> gs.Graph:
        from dfstream.patches.graph import import_graph
        from dfstream.patches.merge import merge
        from dfstream.patches.opset import raise_opset

        parts = {stem: import_graph(reading.parse_graph(data, stem)) for stem, data in self._sources.items()}
        if COMBINED not in parts:
            return merge(parts)
        raise_opset(parts[COMBINED])
        return parts[COMBINED]
