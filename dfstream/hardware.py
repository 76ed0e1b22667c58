"""What the machine is: its processor, cores and memory. None stands for what the system does not tell."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
from pathlib import Path

__all__ = [
    "memory_bytes",
    "physical_cores",
    "processor_features",
    "processor_name",
    "under_rosetta",
    "usable_cores",
]

#: What makes a difference to vector code, by the names LLVM has for it; other processors have others.
_FEATURES = {
    "x86": ("avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512vnni"),
    "arm": ("neon", "dotprod", "fullfp16", "i8mm", "sve"),
}


def processor_name() -> str:
    """Return the name of the processor, or at least its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return _sysctl("machdep.cpu.brand_string") or platform.processor() or platform.machine()


def processor_features() -> dict[str, bool]:
    """Return the vector instructions that matter here, as the compiler of the kernels sees them.

    Returns
    -------
    dict of str to bool
        Empty for a processor of another family than x86 and ARM.
    """
    family = "arm" if platform.machine().lower() in ("arm64", "aarch64") else "x86"
    from llvmlite import binding

    found: dict[str, bool] = {}
    with contextlib.suppress(RuntimeError):  # LLVM cannot ask every system
        found = dict(binding.get_host_cpu_features())
    if family == "arm":
        found.setdefault("neon", True)  # no 64-bit ARM is without
    return {name: bool(found.get(name)) for name in _FEATURES[family]} if found else {}


def physical_cores() -> int | None:
    """Return the number of cores, without the second threads of each."""
    siblings = set()
    with contextlib.suppress(OSError):
        for path in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/topology/thread_siblings_list"):
            siblings.add(path.read_text(encoding="ascii").strip())
    if siblings:
        return len(siblings)
    found = _sysctl("hw.physicalcpu")
    return int(found) if found and found.isdigit() else None


def usable_cores() -> int | None:
    """Return how many logical cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def memory_bytes() -> int | None:
    """Return the size of the main memory."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # no such call, or it does not know
        found = _sysctl("hw.memsize")
        return int(found) if found and found.isdigit() else None


def under_rosetta() -> bool:
    """Whether this is a program for Intel processors that Apple silicon translates."""
    return _sysctl("sysctl.proc_translated") == "1"


def _sysctl(name: str) -> str | None:
    """Ask macOS."""
    if sys.platform != "darwin":
        return None
    try:
        command = ["/usr/sbin/sysctl", "-n", name]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
