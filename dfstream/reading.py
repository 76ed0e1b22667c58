"""Reading model files that may be broken or hostile, before any runtime sees them.

Everything is read into memory; nothing is ever unpacked to disk. What is refused:

* archives: truncated or not an archive, links and devices under a name we need, two members of one
  name, members or totals of absurd size;
* graphs: bytes that are no ONNX model, tensors kept in other files, operators of other domains, own
  functions, control flow, training parts, tensors whose size and data disagree or that are absurdly
  large.

Known limit: a well-formed graph can still ask a runtime for much memory while it runs.
"""

from __future__ import annotations

import math
import tarfile
import zlib
from typing import TYPE_CHECKING

from dfstream.errors import ArchiveError, UnsupportedGraph

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import onnx

__all__ = ["CONFIG", "is_archive", "parse_graph", "read_archive", "read_folder", "read_single"]

CONFIG = "config.ini"

_MAX_FILE = 256 << 20
_MAX_TOTAL = 512 << 20
_MAX_MEMBERS = 4096
_MAX_NODES = 20_000
_MAX_ELEMENTS = 1 << 26
_LOWEST_OPSET = 11  # Pad with its amounts as an input; older exports of the family do not exist
_DOMAINS = ("", "ai.onnx")


def is_archive(path: Path) -> bool:
    """Whether a path looks like a tar archive, by its first bytes."""
    with path.open("rb") as file:
        head = file.read(512)
    return head.startswith(b"\x1f\x8b") or head[257:262] == b"ustar"


def read_folder(folder: Path) -> dict[str, bytes]:
    """Read the graphs and the configuration that lie in a folder, by file name."""
    files = {}
    for path in sorted(folder.iterdir()):
        if _wanted(path.name) and path.is_file():
            files[path.name] = _read(path)
    return files


def read_single(path: Path) -> dict[str, bytes]:
    """Read one graph and, where it exists, the configuration beside it."""
    files = {path.name: _read(path)}
    config = path.with_name(CONFIG)
    if config.is_file():
        files[CONFIG] = _read(config)
    return files


def read_archive(path: Path) -> dict[str, bytes]:
    """Read the members of a tar archive that belong to a model, at any depth, by base name.

    Raises
    ------
    ArchiveError
        Truncated, not an archive, or unsafe; see the module's list.
    """
    try:
        # one pass over the stream, so that a compressed bomb is met member by member
        with tarfile.open(path, mode="r|*") as archive:
            return _members(archive, path)
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise ArchiveError(
            f"{path}: not a readable tar archive, or cut short ({error})", hint="download it again"
        ) from error


def _members(archive: tarfile.TarFile, path: Path) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    total = 0
    for count, member in enumerate(archive):
        total += member.size
        if count >= _MAX_MEMBERS or total > _MAX_TOTAL:
            raise ArchiveError(f"{path}: more than {_MAX_MEMBERS} members or {_MAX_TOTAL >> 20} MiB unpacked")
        name = member.name.replace("\\", "/").rsplit("/", 1)[-1]
        if member.isdir() or not _wanted(name):
            continue
        if not member.isreg() or member.issparse():
            raise ArchiveError(
                f"{path}: member {member.name!r} is a link or special file, expected a plain file"
            )
        if name in files:
            raise ArchiveError(f"{path}: holds more than one {name}")
        if member.size > _MAX_FILE:
            raise ArchiveError(
                f"{path}: member {member.name!r} has {member.size >> 20} MiB, limit {_MAX_FILE >> 20}"
            )
        stream = archive.extractfile(member)
        data = stream.read() if stream else b""
        if len(data) != member.size:
            raise ArchiveError(f"{path}: cut short inside {member.name!r}", hint="download it again")
        files[name] = data
    return files


def _wanted(name: str) -> bool:
    return name == CONFIG or (name.endswith(".onnx") and not name.startswith("."))


def _read(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise ArchiveError(f"{path}: not a plain file")
        if path.stat().st_size > _MAX_FILE:
            raise ArchiveError(f"{path}: {path.stat().st_size >> 20} MiB, limit {_MAX_FILE >> 20}")
        return path.read_bytes()
    except OSError as error:
        raise ArchiveError(f"{path}: cannot be read ({error.strerror})") from error


# -- graphs ----------------------------------------------------------------------------------------


def parse_graph(data: bytes, name: str) -> onnx.ModelProto:
    """Parse one ONNX model and refuse what is broken, unsafe or outside the standard operators.

    Parameters
    ----------
    data : bytes
        Serialised ``ModelProto``.
    name : str
        Name used in errors.

    Raises
    ------
    ArchiveError
        Broken or unsafe.
    UnsupportedGraph
        A sound model that uses something the family never does.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_model_from_string(data)
    except (DecodeError, ValueError) as error:
        raise ArchiveError(f"{name}: not an ONNX model") from error
    if not model.graph.node or not model.graph.output:
        raise ArchiveError(f"{name}: not an ONNX model, or an empty one")
    if len(model.graph.node) > _MAX_NODES:
        raise ArchiveError(f"{name}: {len(model.graph.node)} nodes, limit {_MAX_NODES}")
    _check_operators(model, name)
    for tensor in _tensors(model.graph, name):
        _check_tensor(tensor, name)
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError) as error:
        raise ArchiveError(f"{name}: not a valid ONNX graph ({str(error).splitlines()[0]})") from error
    return model


def _check_operators(model: onnx.ModelProto, name: str) -> None:
    import onnx

    if model.functions or model.training_info:
        raise UnsupportedGraph(f"{name}: defines functions or training parts")
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    newest = onnx.defs.onnx_opset_version()
    opset = max(opsets.get("", 0), opsets.get("ai.onnx", 0))
    if not _LOWEST_OPSET <= opset <= newest:
        raise UnsupportedGraph(f"{name}: opset {opset}, supported are {_LOWEST_OPSET} to {newest}")
    for node in model.graph.node:
        if node.domain not in _DOMAINS:
            raise UnsupportedGraph(f"{name}: operator {node.op_type} of the unknown domain {node.domain!r}")
        if not onnx.defs.has(node.op_type, opset):
            raise UnsupportedGraph(f"{name}: operator {node.op_type} does not exist in opset {opset}")


def _tensors(graph: onnx.GraphProto, name: str) -> Iterator[onnx.TensorProto]:
    """All tensors stored in a graph; refuses sub-graphs and sparse tensors on the way."""
    if graph.sparse_initializer:
        raise UnsupportedGraph(f"{name}: sparse tensors")
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g") or attribute.graphs:
                raise UnsupportedGraph(f"{name}: control flow ({node.op_type})")
            if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
                raise UnsupportedGraph(f"{name}: sparse tensors")
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def _check_tensor(tensor: onnx.TensorProto, name: str) -> None:
    import onnx

    where = f"{name}: tensor {tensor.name!r}"
    if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
        raise ArchiveError(f"{where} keeps its data in another file")
    if any(dim < 0 for dim in tensor.dims) or math.prod(tensor.dims) > _MAX_ELEMENTS:
        raise ArchiveError(f"{where} has the absurd shape {list(tensor.dims)}")
    T = onnx.TensorProto
    if tensor.data_type not in (T.FLOAT, T.INT64, T.INT32, T.BOOL, T.FLOAT16, T.DOUBLE):
        raise UnsupportedGraph(f"{where} has the type {tensor.data_type}, which the family does not use")
    if tensor.HasField("raw_data"):
        itemsize = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        if len(tensor.raw_data) != itemsize * math.prod(tensor.dims):
            raise ArchiveError(
                f"{where}: its shape {list(tensor.dims)} and its {len(tensor.raw_data)} bytes disagree"
            )
    else:
        stored = (
            len(tensor.float_data) + len(tensor.int64_data) + len(tensor.int32_data) + len(tensor.double_data)
        )
        if stored != math.prod(tensor.dims):
            raise ArchiveError(f"{where}: its shape {list(tensor.dims)} and its {stored} values disagree")
