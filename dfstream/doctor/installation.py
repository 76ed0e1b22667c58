"""Probes of what dfstream runs on: machine, packages, ONNX Runtime, environment variables."""

from __future__ import annotations

import os
import platform
import re
import sys
from importlib import metadata
from typing import TYPE_CHECKING, Any

from dfstream import hardware
from dfstream.benchmark.machine import versions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dfstream.doctor.examination import Examination, Level

__all__ = ["VARIABLES", "environment", "machine", "packages", "runtime"]

#: Environment variables that dfstream reads.
VARIABLES = {
    "DFSTREAM_CACHE": "where kernels, graphs and pulled models are kept",
    "DFSTREAM_DEBUG": "stack traces of failures",
    "DFSTREAM_MODELS": "official weights for the tests",
    "DFSTREAM_MODELS_URL": "where models are pulled from",
}

#: Extras for working on dfstream, not with it.
_DEVELOPMENT = ("golden", "test")

#: Distributions that all bring the module ``onnxruntime``.
_RUNTIMES = (
    "onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino", "onnxruntime-qnn",
    "onnxruntime-silicon",
)  # fmt: skip


def machine(case: Examination) -> dict[str, Any]:
    """Look at system, processor, memory and Python."""
    features = hardware.processor_features()
    if hardware.under_rosetta():
        case.find(
            "machine", "warning", "this Python is one for Intel processors, translated by Rosetta",
            "install a Python for arm64, and dfstream with it",
        )  # fmt: skip
    if "avx2" in features and not features["avx2"]:
        case.find(
            "machine", "warning", "the processor has no AVX2: kernels take fewer numbers at a time",
            "see in the self-test whether it keeps up",
        )  # fmt: skip
    mac = platform.mac_ver()[0]
    return {
        "system": f"macOS {mac}" if mac else f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "processor": hardware.processor_name(),
        "features": features,
        "cores": {
            "physical": hardware.physical_cores(),
            "logical": os.cpu_count(),
            "usable": hardware.usable_cores(),
        },
        "memory_bytes": hardware.memory_bytes(),
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "executable": sys.executable,
    }


def packages(case: Examination) -> dict[str, Any]:
    """Compare what is installed with what dfstream asks for, without importing it."""
    entries = []
    for name, asked, extra in _requirements():
        version = versions((name,)).get(name)
        fits = version is not None and asked.contains(version, prereleases=True)
        advice = f"pip install -U '{f'dfstream[{extra}]' if extra else f'{name}{asked}'}'"
        if not fits and (extra is None or version is not None):
            have = f"{name} {version} does not fit" if version else f"{name} is missing"
            level: Level = "problem" if extra is None else "warning"
            case.find("packages", level, f"{have}: dfstream asks for {name}{asked}", advice)
        entries.append(
            {
                "name": name,
                "version": version,
                "asked": str(asked),
                "extra": extra,
                "fits": fits,
                "advice": None if fits else advice,
            }
        )
    return {"dfstream": metadata.version("dfstream"), "required": entries}


def _requirements() -> Iterator[tuple[str, Any, str | None]]:
    """Give name, versions and extra of each package that dfstream asks for on this machine."""
    from packaging.requirements import Requirement

    about = metadata.metadata("dfstream")
    extras = [extra for extra in about.get_all("Provides-Extra") or [] if extra not in _DEVELOPMENT]
    for line in metadata.requires("dfstream") or []:
        asked = Requirement(line)
        marker = asked.marker
        if marker is None or marker.evaluate({"extra": ""}):
            yield asked.name, asked.specifier, None
        else:
            for extra in extras:
                if marker.evaluate({"extra": extra}):
                    yield asked.name, asked.specifier, extra


def runtime(case: Examination) -> dict[str, Any]:
    """Ask ONNX Runtime what it can run on."""
    found = versions(_RUNTIMES)
    if len(found) > 1:
        case.find(
            "onnxruntime", "warning", f"{' and '.join(found)} overwrite one another's files",
            f"pip uninstall {' '.join(found)}, then install one of them",
        )  # fmt: skip
    try:
        import onnxruntime
    except Exception as error:  # a library that does not fit the system fails in ways of its own
        case.find(
            "onnxruntime", "problem", f"onnxruntime cannot be imported ({type(error).__name__}: {error})",
            "pip install -U --force-reinstall onnxruntime",
        )  # fmt: skip
        return {"version": None, "distributions": found, "providers": []}
    return {
        "version": onnxruntime.__version__,
        "distributions": found,
        "providers": list(onnxruntime.get_available_providers()),
    }


def environment(case: Examination) -> dict[str, Any]:
    """Look at the environment variables of dfstream, and those of numba, which compiles its kernels."""
    names = sorted(name for name in os.environ if name.startswith(("DFSTREAM_", "NUMBA_")))
    for name in names:
        if name.startswith("DFSTREAM_") and name not in VARIABLES:
            case.find(
                "environment", "warning", f"{name} is set, which nothing reads",
                f"dfstream reads {', '.join(sorted(VARIABLES))}",
            )  # fmt: skip
    if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        case.find(
            "environment", "problem", "NUMBA_DISABLE_JIT is set: kernels run as plain Python, far too slow",
            "unset NUMBA_DISABLE_JIT",
        )  # fmt: skip
    return {name: _without_password(os.environ[name]) for name in names}


def _without_password(value: str) -> str:
    return re.sub(r"(?<=://)[^/@]*@", "***@", value)
