"""Reading a saved ``.mlpackage`` straight from the file format, without coremltools and on any platform.

A package is a folder: ``Manifest.json`` names the model below ``Data/``, a serialised
``CoreML.Specification.Model``, whose weights lie in files beside it. What is refused: links, paths that
leave the package, absurd sizes, and whatever does not hold together; field numbers are those of
``Model.proto`` and ``FeatureTypes.proto`` in apple/coremltools.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from dfstream.coreml.program import Constant, Operation, Program, Tensor, read_program
from dfstream.coreml.protobuf import Message
from dfstream.coreml.weights import read_blob
from dfstream.errors import ArchiveError, UnsupportedGraph

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from dfstream.coreml.weights import DataType

__all__ = ["Constant", "Operation", "Package", "Program", "Tensor", "read_package"]

_MANIFEST = "Manifest.json"
_DATA = "Data"
_BESIDE = "@model_path/"

# the largest package of ours has a model of 0.2 MiB and weights of 9 MiB
_MAX_MANIFEST = 1 << 20
_MAX_MODEL = 4 << 20
_MAX_WEIGHTS = 64 << 20
_MAX_FILES = 16

_ML_PROGRAM = 502
#: Field numbers of the kinds of model in ``Model``, which are one field each.
_KINDS = (
    *range(200, 203), *range(300, 305), *range(400, 405), 500, 501, _ML_PROGRAM, 555, 556, 560,
    *range(600, 605), *range(606, 608), 609, 610, 900, *range(2000, 2007), 3000,
)  # fmt: skip

_MULTI_ARRAY, _STATE = 5, 8
_DTYPES = {65568: "float32", 65552: "float16", 65600: "float64", 131104: "int32", 131080: "int8"}
_FLOATS = ("float32", "float16")


@dataclasses.dataclass(frozen=True, eq=False)
class Package:
    """A Core ML package: what it takes and gives, and how that is computed. Made by `read_package`.

    Attributes
    ----------
    path : Path
    specification_version : int
        7 is iOS 16 and macOS 13, 9 is iOS 18 and macOS 15.
    inputs, outputs, states : mapping of str to Tensor
        Float32 or float16, of fixed shape; ``states`` are those that Core ML keeps.
    metadata : mapping of str to str
        ``userDefined`` of the model's metadata.
    program : Program
    sha256 : str
        Digest of the lines ``<sha256>  <file name>`` of the model and its weight files, sorted by name. The
        manifest, which has random identifiers, is left out.
    """

    path: Path
    specification_version: int
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    states: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    program: Program = dataclasses.field(repr=False)
    sha256: str


def read_package(path: Path) -> Package:
    """Read a package.

    Parameters
    ----------
    path : Path
        The folder ``X.mlpackage``.

    Raises
    ------
    ArchiveError
        Unreadable, damaged or unsafe: names the file.
    UnsupportedGraph
        A sound package that is not one ML Program of tensors of fixed shape: names what is not supported.
    """
    path = Path(path)
    if not path.is_dir():
        raise ArchiveError(f"{path}: not a Core ML package, which is a folder")
    root = PurePosixPath(_DATA, _root(path))
    where = str(path / root)
    data = _read(path, root, _MAX_MODEL)
    model = Message(data, where)
    if model.which(*_KINDS) != _ML_PROGRAM:
        raise UnsupportedGraph(f"{where}: not an ML Program but another kind of model")
    weights = _Weights(path, root.parent)
    program = read_program(model.message(_ML_PROGRAM), where, weights.read)
    description = model.message(2)
    if description.messages(20):
        raise UnsupportedGraph(f"{where}: a model of several functions")
    inputs, outputs, states = (_features(description.messages(field), where) for field in (1, 10, 13))
    if (inputs, outputs, states) != (program.inputs, program.outputs, program.states):
        raise model.damaged("its description is not that of its program")
    return Package(
        path, model.integer(1), inputs, outputs, states, _metadata(description.message(100)), program,
        _digest({root.name: data, **weights.files}),
    )  # fmt: skip


def _root(package: Path) -> str:
    """Path of the model below ``Data/``, as the manifest says."""
    where = package / _MANIFEST
    try:
        manifest = json.loads(_read(package, PurePosixPath(_MANIFEST), _MAX_MANIFEST))
        found: Any = manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArchiveError(f"{where}: not the manifest of a Core ML package") from error
    if not isinstance(found, str):
        raise ArchiveError(f"{where}: the path of the model is not text")
    return found


def _read(package: Path, inside: PurePosixPath, limit: int) -> bytes:
    """Read a file of the package; anything but a plain file below it might be somebody else's."""
    path = package / inside
    if inside.is_absolute() or ".." in inside.parts or any(c in str(inside) for c in "\\:\0"):
        raise ArchiveError(f"{package}: the path {str(inside)!r} leaves the package")
    try:
        if any((package / step).is_symlink() for step in (inside, *inside.parents) if step.parts):
            raise ArchiveError(f"{path}: a link, which no package holds")
        if not path.is_file():
            raise ArchiveError(f"{path}: not there, or not a plain file")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size  # read() takes as much memory as it is allowed to
            if size > limit:
                raise ArchiveError(f"{path}: more than {limit >> 20} MiB")
            return file.read(size)
    except OSError as error:
        raise ArchiveError(f"{path}: cannot be read ({error.strerror})") from error


class _Weights:
    """The weight files of a package, each read once."""

    def __init__(self, package: Path, folder: PurePosixPath) -> None:
        self._package, self._folder = package, folder
        self._left = _MAX_WEIGHTS
        self.files: dict[str, bytes] = {}

    def read(self, name: str, offset: int, kind: DataType, shape: tuple[int, ...]) -> NDArray[Any]:
        inside = self._folder / name.removeprefix(_BESIDE)
        if not name.startswith(_BESIDE):
            raise ArchiveError(f"{self._package}: weights in {name!r}, which is not in the package")
        if name not in self.files:
            if len(self.files) == _MAX_FILES:
                raise ArchiveError(f"{self._package}: more than {_MAX_FILES} weight files")
            self.files[name] = _read(self._package, inside, self._left)
            self._left -= len(self.files[name])
        return read_blob(self.files[name], offset, kind, shape, str(self._package / inside))


def _features(features: list[Message], where: str) -> dict[str, Tensor]:
    """Read inputs, outputs or states as the description of the model has them."""
    found: dict[str, Tensor] = {}
    for feature in features:
        name, kind = feature.text(1), feature.message(3)
        which = kind.which(*range(1, 9))
        array = kind.message(_STATE).message(1) if which == _STATE else kind.message(_MULTI_ARRAY)
        dtype = _DTYPES.get(array.integer(2))
        if which not in (_MULTI_ARRAY, _STATE) or dtype not in _FLOATS or array.which(21, 31):
            raise UnsupportedGraph(f"{where}: {name!r} is not an array of floats of one shape")
        found[name] = Tensor(tuple(array.integers(1)), dtype)
    return found


def _metadata(metadata: Message) -> dict[str, str]:
    return {entry.text(1): entry.text(2) for entry in metadata.messages(100)}


def _digest(files: Mapping[str, bytes]) -> str:
    names = {name.removeprefix(_BESIDE): data for name, data in files.items()}
    lines = [f"{hashlib.sha256(names[name]).hexdigest()}  {name}\n" for name in sorted(names)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
