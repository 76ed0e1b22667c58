"""What a figure depends on besides the code: the machine, its load, and the versions of what ran."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import sys
from pathlib import Path
from typing import Any

from dfstream.hardware import processor_name

__all__ = ["environment", "peak_bytes", "versions"]

_PACKAGES = ("dfstream", "numpy", "numba", "onnxruntime")


def environment(core: int | None) -> dict[str, Any]:
    """Return where and when the figures were measured, as plain values.

    Parameters
    ----------
    core : int or None
        The one everything is pinned to.
    """
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "versions": {"python": platform.python_version(), **versions(_PACKAGES)},
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": processor_name(),
        "cores": os.cpu_count(),
        "pinned_to_core": core,
        "load_average": [round(load, 2) for load in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "niceness": os.nice(0) if hasattr(os, "nice") else None,
        "garbage_collector": "on; one full collection before every stretch, outside the timed calls",
    }


def versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    found = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def peak_bytes() -> int | None:
    """Return the most memory this process has held so far, None where the system does not tell."""
    try:
        # of this program only; getrusage would count its parent's before the program was loaded, too
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10
