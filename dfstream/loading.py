"""From files to a model: which graphs are the export, which are patched, which configuration holds."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from dfstream import catalog, graphstore, reading
from dfstream.config import ModelConfig, norm_alpha
from dfstream.errors import ArchiveError, ModelError, UnsupportedGraph, UsageError
from dfstream.fitting import check_export, check_patched
from dfstream.interface import EXPORTS, FEATURES, RESULTS, is_gru_state, state_output
from dfstream.model import COMBINED, Model

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx

    from dfstream.patches.recipe import Metadata

__all__ = ["load_model"]


def load_model(source: str | Path | None) -> Model:
    """Load a model by name or path; `Model.load` explains."""
    name = "bundled" if source is None else str(source)
    if catalog.is_known(name):
        path = catalog.find(name)
    else:
        path = Path(name)
        if not _exists(path):
            known = ", ".join(sorted(known.name for known in catalog.KNOWN))
            raise UsageError(
                f"no model {name!r}: neither a file or folder nor a known name", hint=f"known: {known}"
            )
        name = path.name.removesuffix(".onnx") if path.is_file() else path.resolve().name
    return _read(name, path)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that no file can have, or a folder nobody may look into
        return False


def _read(name: str, path: Path) -> Model:
    if path.suffix == ".mlpackage":
        return _read_package(name.removesuffix(".mlpackage"), path)
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


def _read_package(name: str, path: Path) -> Model:
    from dfstream.coreml.metadata import PackageFacts
    from dfstream.coreml.package import read_package

    package = read_package(path)
    facts = PackageFacts.from_properties(package.metadata, str(path))
    facts.check(package)
    nothing: MappingProxyType[str, bytes] = MappingProxyType({})
    return Model(
        name, facts.config, facts.source_sha256, str(path), nothing, nothing, None, None, package=package
    )


def _assemble(name: str, path: Path, files: Mapping[str, bytes], config_ini: bytes | None) -> Model:
    if (known := _checked_before(name, path, files, config_ini)) is not None:
        return known
    from dfstream.patches.recipe import read_metadata

    protos = {
        file.removesuffix(".onnx"): reading.parse_graph(data, f"{path}: {file}")
        for file, data in files.items()
    }
    written = {stem: read_metadata(proto, f"{path}: {stem}.onnx") for stem, proto in protos.items()}
    data = {file.removesuffix(".onnx"): content for file, content in files.items()}
    if path.is_file() and len(data) == 1 and not any(written.values()):
        # one foreign graph is a merged one, whatever its file is called
        data, protos = {COMBINED: next(iter(data.values()))}, {COMBINED: next(iter(protos.values()))}
        written = {COMBINED: None}
    sources = _sources(path, data, protos, written)
    metadata = {stem: m for stem, m in written.items() if m is not None and m.stem == stem}
    if not sources and not metadata:
        stem, renamed = next((stem, m.stem) for stem, m in written.items() if m is not None)
        raise ModelError(f"{path}: {stem}.onnx was written as {renamed}.onnx", hint="give it its name back")
    config = _config(path, config_ini, sources, protos, metadata)
    sha256 = _digest(sources, config_ini, metadata)
    patched = {
        stem: data[stem]
        for stem, m in metadata.items()
        if m.source_sha256 == sha256 and m.patches != ("merge",)
    }
    if not sources and len({m.source_sha256 for m in metadata.values()}) > 1:
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
        check_export(model._merged(), config, str(path))
    check_patched(patched, config, str(path))
    if not metadata and config_ini is not None:
        graphstore.note_checked(sha256)
    return model


def _checked_before(
    name: str, path: Path, files: Mapping[str, bytes], config_ini: bytes | None
) -> Model | None:
    """Return the model made of a plain export whose very bytes have passed all checks before."""
    sources = {file.removesuffix(".onnx"): content for file, content in files.items()}
    if config_ini is None or {*sources} != {*EXPORTS}:
        return None
    sha256 = _digest(sources, config_ini, {})
    if not graphstore.is_checked(sha256):
        return None
    config = ModelConfig.from_ini(config_ini.decode(), source=f"{path}: {reading.CONFIG}")
    ordered = MappingProxyType({stem: sources[stem] for stem in EXPORTS})
    return Model(name, config, sha256, str(path), ordered, MappingProxyType({}), None, config_ini)


def _sources(
    path: Path,
    data: Mapping[str, bytes],
    protos: Mapping[str, onnx.ModelProto],
    written: Mapping[str, Metadata | None],
) -> dict[str, bytes]:
    """Pick the unpatched graphs: three of an export, else a merged one, else none (all are patched)."""
    if all(stem in data and written[stem] is None for stem in EXPORTS):
        return {stem: data[stem] for stem in EXPORTS}
    merged = written.get(COMBINED)
    if COMBINED in data and (merged is None or merged.patches == ("merge",)):
        _check_merged(path, protos[COMBINED])
        return {COMBINED: data[COMBINED]}
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
        raise UnsupportedGraph(
            f"{path}: no input or output {missing[0]!r}: not a merged DeepFilterNet graph",
            hint="an export has three graphs: load their folder or archive",
        )
    for extra in sorted(inputs - {*FEATURES}):
        if not is_gru_state(extra) or state_output(extra) not in outputs:
            raise UnsupportedGraph(f"{path}: unknown input {extra!r}", hint="load the original export")


def _config(
    path: Path,
    config_ini: bytes | None,
    sources: Mapping[str, bytes],
    protos: Mapping[str, onnx.ModelProto],
    metadata: Mapping[str, Metadata],
) -> ModelConfig:
    given = embedded = None
    if config_ini is not None:
        try:
            given = ModelConfig.from_ini(config_ini.decode(), source=f"{path}: {reading.CONFIG}")
        except UnicodeDecodeError as error:
            raise ArchiveError(f"{path}: {reading.CONFIG} is not text") from error
    if metadata and not all(stem in sources for stem in EXPORTS):
        stem, written = next(iter(metadata.items()))
        embedded = ModelConfig.from_dict(written.config, source=f"{path}: {stem}.onnx")
        if given not in (None, embedded):
            raise ModelError(
                f"{path}: {reading.CONFIG} is not the one {stem}.onnx was patched with",
                hint="patch the original export again",
            )
    if (config := given or embedded) is not None:
        return config
    if COMBINED in sources:
        return _default_config(protos[COMBINED])
    raise ModelError(
        f"{path}: {reading.CONFIG} missing", hint="it is part of every export and decides the variant"
    )


def _default_config(proto: onnx.ModelProto) -> ModelConfig:
    """Configuration of a merged graph that has lost it: shapes where they tell, else official numbers."""
    from dfstream.patches.fold import fold_constants
    from dfstream.patches.graph import export_graph, find_output, import_graph, producer, static_shapes
    from dfstream.patches.opset import raise_opset

    graph = import_graph(proto)
    raise_opset(graph)
    fold_constants(graph)
    shapes = static_shapes(export_graph(graph), frames=7)
    if any(len(shapes.get(name, ())) != 4 for name in ("m", "coefs")):
        raise UnsupportedGraph(
            "the shapes of the results cannot be told from the graph", hint=f"put {reading.CONFIG} beside it"
        )
    # DFN2's embedding is the state of the GRU itself, DFN3 has a linear layer behind it
    node = producer(find_output(graph, "lsnr"))
    while node is not None and node.op not in ("GRU", "Relu"):
        node = next((p for p in map(producer, node.inputs) if p is not None), None)
    sample_rate, hop_size = 48_000, 480
    return ModelConfig(
        architecture="deepfilternet2" if node is not None and node.op == "GRU" else "deepfilternet3",
        sample_rate=sample_rate,
        fft_size=2 * hop_size,
        hop_size=hop_size,
        nb_erb=shapes["m"][3],
        nb_df=shapes["coefs"][2],
        df_order=shapes["coefs"][3] // 2,
        min_nb_erb_freqs=2,
        norm_alpha=norm_alpha(sample_rate, hop_size, tau=1.0),
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
