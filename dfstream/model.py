"""A model: the graphs and the configuration of one DeepFilterNet export, immutable and shared."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import threading
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from dfstream import catalog, reading
from dfstream.config import ModelConfig
from dfstream.errors import ArchiveError, ModelError, UnsupportedGraph, UsageError
from dfstream.interface import EXPORTS, FEATURES, RESULTS, state_output

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx
    import onnx_graphsurgeon as gs

    from dfstream.backends.base import Backend, Session
    from dfstream.patches.facts import Facts
    from dfstream.patches.recipe import Metadata, Patched, Recipe

__all__ = ["Model"]

_COMBINED = "combined"


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
    """

    name: str
    config: ModelConfig
    sha256: str
    origin: str
    _sources: Mapping[str, bytes] = dataclasses.field(repr=False)
    _patched: Mapping[str, bytes] = dataclasses.field(repr=False)
    _window: int | None = dataclasses.field(repr=False)
    _config_ini: bytes | None = dataclasses.field(repr=False)
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
            merged ``combined.onnx``; or a graph that ``dfstream patch`` wrote. Beside a merged graph a
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
        name = "bundled" if source is None else str(source)
        if catalog.is_known(name):
            path = catalog.find(name)
        else:
            path = Path(name)
            if not path.exists():
                known = ", ".join(sorted(known.name for known in catalog.KNOWN))
                raise UsageError(
                    f"no model {name!r}: neither a file or folder nor a known name", hint=f"known: {known}"
                )
            name = path.name.removesuffix(".onnx") if path.is_file() else path.resolve().name
        return _read(name, path)

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
            Only patched graphs are at hand.
        """
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
            No window can: a time convolution stands behind a GRU.
        """
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
                if all(stem in self._patched for stem in recipe.stems):
                    self._graphs[recipe.name] = {stem: self._patched[stem] for stem in recipe.stems}
                else:
                    self._graphs[recipe.name] = self.patch(recipe).files
            return self._graphs[recipe.name]

    def patch(self, recipe: Recipe) -> Patched:
        """Apply a recipe to the export.

        Raises
        ------
        UnsupportedGraph
            As `graphs`.
        """
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

    def open(self, backend: Backend, recipe: Recipe) -> Mapping[str, Session]:
        """Return the loaded graphs of a recipe, loaded once per backend and its options."""
        with self._lock:
            key = (backend, recipe.name)
            if key not in self._sessions:
                self._sessions[key] = backend.open(self, recipe)
            return self._sessions[key]

    def _merged(self) -> gs.Graph:
        from dfstream.patches.graph import import_graph
        from dfstream.patches.merge import merge
        from dfstream.patches.opset import raise_opset

        parts = {stem: import_graph(reading.parse_graph(data, stem)) for stem, data in self._sources.items()}
        if _COMBINED not in parts:
            return merge(parts)
        raise_opset(parts[_COMBINED])
        return parts[_COMBINED]


# -- reading ---------------------------------------------------------------------------------------


def _read(name: str, path: Path) -> Model:
    if path.is_dir():
        files = reading.read_folder(path)
    elif reading.is_archive(path):
        files = reading.read_archive(path)
    else:
        files = reading.read_single(path)
    config_ini = files.pop(reading.CONFIG, None)
    if not files:
        raise ModelError(
            f"{path}: holds no ONNX graph", hint=f"an export has {', '.join(f'{e}.onnx' for e in EXPORTS)}"
        )
    return _assemble(name, path, files, config_ini)


def _assemble(name: str, path: Path, files: Mapping[str, bytes], config_ini: bytes | None) -> Model:
    from dfstream.patches.recipe import read_metadata

    protos = {
        file.removesuffix(".onnx"): reading.parse_graph(data, f"{path}: {file}")
        for file, data in files.items()
    }
    written = {stem: read_metadata(proto, f"{path}: {stem}.onnx") for stem, proto in protos.items()}
    data = {file.removesuffix(".onnx"): content for file, content in files.items()}
    if path.is_file() and len(data) == 1 and not any(written.values()):
        # one foreign graph is a merged one, whatever its file is called
        data, protos = {_COMBINED: next(iter(data.values()))}, {_COMBINED: next(iter(protos.values()))}
        written = {_COMBINED: None}
    sources = _sources(path, data, protos, written)
    metadata = {stem: m for stem, m in written.items() if m is not None and m.stem == stem}
    config = _config(path, config_ini, sources, protos, metadata)
    sha256 = _digest(sources, config_ini, metadata)
    patched = {
        stem: data[stem]
        for stem, m in metadata.items()
        if m.source_sha256 == sha256 and m.patches != ("merge",)
    }
    if not sources and not patched:
        raise ModelError(
            f"{path}: the patched graphs come from different exports",
            hint="patch one export into an empty folder",
        )
    window = next((m.window_frames for m in metadata.values()), None)
    model = Model(
        name,
        config,
        sha256,
        str(path),
        MappingProxyType(sources),
        MappingProxyType(patched),
        window,
        config_ini,
    )
    if sources:
        _check_against_config(model)
    return model


def _sources(
    path: Path,
    data: Mapping[str, bytes],
    protos: Mapping[str, onnx.ModelProto],
    written: Mapping[str, Metadata | None],
) -> dict[str, bytes]:
    """Pick the unpatched graphs: three of an export, else a merged one, else none (all are patched)."""
    if all(stem in data and written[stem] is None for stem in EXPORTS):
        return {stem: data[stem] for stem in EXPORTS}
    merged = written.get(_COMBINED)
    if _COMBINED in data and (merged is None or merged.patches == ("merge",)):
        _check_merged(path, protos[_COMBINED])
        return {_COMBINED: data[_COMBINED]}
    if not any(written.values()):
        missing = [f"{stem}.onnx" for stem in EXPORTS if stem not in data]
        raise ModelError(
            f"{path}: {', '.join(missing)} missing", hint="an export has enc, erb_dec and df_dec"
        )
    return {}


def _check_merged(path: Path, proto: onnx.ModelProto) -> None:
    """Refuse a graph that is not a whole network over many frames."""
    inputs = {value.name for value in proto.graph.input} - {tensor.name for tensor in proto.graph.initializer}
    outputs = {value.name for value in proto.graph.output}
    missing = [n for n in FEATURES if n not in inputs] + [n for n in RESULTS if n not in outputs]
    if missing:
        raise UnsupportedGraph(f"{path}: no input or output {missing[0]!r}: not a merged DeepFilterNet graph")
    for extra in sorted(inputs - {*FEATURES}):
        if not (extra == "h0" or extra.endswith("_h0")) or state_output(extra) not in outputs:
            raise UnsupportedGraph(f"{path}: unknown input {extra!r}", hint="load the original export")


def _config(
    path: Path,
    config_ini: bytes | None,
    sources: Mapping[str, bytes],
    protos: Mapping[str, onnx.ModelProto],
    metadata: Mapping[str, Metadata],
) -> ModelConfig:
    if config_ini is not None:
        try:
            return ModelConfig.from_ini(config_ini.decode(), source=f"{path}: {reading.CONFIG}")
        except UnicodeDecodeError as error:
            raise ArchiveError(f"{path}: {reading.CONFIG} is not text") from error
    if metadata:
        stem, written = next(iter(metadata.items()))
        return ModelConfig.from_dict(written.config, source=f"{path}: {stem}.onnx")
    if _COMBINED in sources:
        return _default_config(protos[_COMBINED])
    raise ModelError(
        f"{path}: {reading.CONFIG} missing", hint="it is part of every export and decides the variant"
    )


def _default_config(proto: onnx.ModelProto) -> ModelConfig:
    """Configuration of a merged graph that has lost it: shapes where they tell, else official numbers."""
    from dfstream.patches.graph import find_output, import_graph, producer, static_shapes

    shapes = static_shapes(proto.SerializeToString(), frames=7)
    # DFN2's embedding is the state of the GRU itself, DFN3 has a linear layer behind it
    graph = import_graph(proto).toposort()
    node = producer(find_output(graph, "lsnr"))
    while node is not None and node.op not in ("GRU", "Relu"):
        node = next((p for p in map(producer, node.inputs) if p is not None), None)
    return ModelConfig(
        architecture="deepfilternet2" if node is not None and node.op == "GRU" else "deepfilternet3",
        sample_rate=48_000,
        fft_size=960,
        hop_size=480,
        nb_erb=shapes["m"][3],
        nb_df=shapes["coefs"][2],
        df_order=shapes["coefs"][3] // 2,
        min_nb_erb_freqs=2,
        norm_alpha=0.99,
        conv_lookahead=2,
        df_lookahead=2,
    )


def _digest(sources: Mapping[str, bytes], config_ini: bytes | None, metadata: Mapping[str, Metadata]) -> str:
    """Digest of the export, also where only graphs made from it are left."""
    if metadata and not all(stem in sources for stem in EXPORTS):
        return next(iter(metadata.values())).source_sha256
    files = {f"{stem}.onnx": data for stem, data in sources.items()}
    if config_ini is not None:
        files[reading.CONFIG] = config_ini
    lines = [f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _check_against_config(model: Model) -> None:
    """Refuse a graph whose shapes are not those of the configuration."""
    from dfstream.patches.fold import fold_constants
    from dfstream.patches.graph import export_graph, static_shapes

    config, frames = model.config, 7
    graph = model._merged()
    fold_constants(graph)
    shapes = static_shapes(export_graph(graph), frames=frames)
    expected = {
        "feat_erb": (1, 1, frames, config.nb_erb),
        "feat_spec": (1, 2, frames, config.nb_df),
        "lsnr": (1, frames, 1),
        "m": (1, 1, frames, config.nb_erb),
        "coefs": (1, frames, config.nb_df, 2 * config.df_order),
    }
    for name, shape in expected.items():
        if shapes.get(name) != shape:
            raise UnsupportedGraph(
                f"{model.origin}: {name} has the shape {shapes.get(name)} for {frames} frames, "
                f"the configuration says {shape}",
                hint="the graph is cut to its last frame already, or config.ini is another model's",
            )
