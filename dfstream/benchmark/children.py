"""What only a fresh process shows: how long it takes to start, and how much memory it needs."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfstream.benchmark.statistics import quartiles
from dfstream.errors import DfstreamError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from dfstream.benchmark.configurations import Configuration

__all__ = ["FirstHop", "first_hop", "measure_memory", "measure_start"]

#: Names the folder that compiled kernels lie in.
_CACHE = "DFSTREAM_CACHE"

_COMMANDS = {
    "interpreter": ["-c", "pass"],
    "import": ["-c", "import dfstream"],
    "help": ["-m", "dfstream", "--help"],
}

#: Audio that a child enhances before it tells its peak memory.
_SECONDS = 2.0

_TIMEOUT_S = 600


@dataclasses.dataclass(frozen=True)
class FirstHop:
    """What a fresh process took.

    Attributes
    ----------
    seconds : float
        From its start to its first enhanced hop.
    peak_bytes : int or None
        The most memory it has held.
    """

    seconds: float
    peak_bytes: int | None


def first_hop(
    model: str, configuration: Configuration, environment: Mapping[str, str] | None = None
) -> FirstHop:
    """Run a configuration in a process of its own.

    Parameters
    ----------
    model : str
        As for `Model.load`.
    configuration : Configuration
    environment : mapping of str to str
        Variables set for it.

    Raises
    ------
    DfstreamError
        It failed; the message is its last line.
    """
    spec = {"model": model, **configuration.plain(), "backend": str(configuration.backend)}
    command = [sys.executable, "-m", "dfstream.benchmark.child", json.dumps({**spec, "seconds": _SECONDS})]
    begin = time.perf_counter()
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, **(environment or {})},
        ) as child,
    ):
        assert child.stdout is not None
        first = child.stdout.readline()
        seconds = time.perf_counter() - begin
        rest = child.stdout.read()
        if child.wait(_TIMEOUT_S) or first != "hop\n":
            errors.seek(0)
            raise DfstreamError(f"{configuration.name}: {last_line(errors.read())}")
    return FirstHop(seconds, json.loads(rest.replace("None", "null")))


def measure_memory(model: str, configurations: list[Configuration]) -> dict[str, int | None]:
    """Return the peak memory of each configuration in bytes, by name."""
    return {c.name: first_hop(model, c).peak_bytes for c in configurations}


def measure_start(
    model: str,
    configurations: list[Configuration],
    repeats: int,
    progress: Callable[[str], None] = lambda _what: None,
) -> dict[str, Any]:
    """Return how long fresh processes take, as plain values.

    Parameters
    ----------
    model : str
        As for `Model.load`; not one that only the user's cache knows, which these processes do not look into.
    configurations : list of Configuration
        Those whose first hop is waited for.
    repeats : int
    progress : callable
        Told what is measured.

    Returns
    -------
    dict
        ``interpreter``, ``import`` and ``help``: seconds from the start of the process to its end;
        ``first_hop`` by configuration: seconds to the first enhanced hop in a fresh folder for compiled
        kernels, how many files it wrote there, and seconds when they are found again.
    """
    start: dict[str, Any] = {}
    for name, arguments in _COMMANDS.items():
        progress(name)
        start[name] = _plain([_run_time(arguments) for _ in range(repeats)])
    start["first_hop"] = {}
    for configuration in configurations:
        progress(f"first hop, {configuration.name}")
        with tempfile.TemporaryDirectory(prefix="dfstream-kernels-") as folder:
            variables = {_CACHE: folder}
            fresh = first_hop(model, configuration, variables).seconds
            compiled = sum(path.is_file() for path in Path(folder, "kernels").rglob("*"))
            warm = [first_hop(model, configuration, variables).seconds for _ in range(repeats)]
        start["first_hop"][configuration.name] = {
            "fresh_cache_s": fresh,
            "kernels_compiled": compiled,
            "warm_cache": _plain(warm),
        }
    return start


def last_line(text: str) -> str:
    """Return the last line that says anything."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it ended without a word"


def _run_time(arguments: list[str]) -> float:
    begin = time.perf_counter()
    subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True, timeout=_TIMEOUT_S)
    return time.perf_counter() - begin


def _plain(seconds: list[float]) -> dict[str, float]:
    return {f"{name}_s": value for name, value in quartiles(seconds)._asdict().items()}
