"""The verb ``warm``: everything that a first run would compile and patch, done ahead and kept on disk."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import pkgutil
from typing import TYPE_CHECKING

import numpy as np

from dfstream.diskcache import source_folders

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from dfstream.model import Model

__all__ = ["KeptKernels", "WarmKernels", "kept_kernels", "kernel_modules", "warm_kernels", "warm_model"]


@dataclasses.dataclass(frozen=True)
class WarmKernels:
    """What warming the kernels did.

    Attributes
    ----------
    compiled : tuple of str
        Kernels that had to be compiled.
    total : int
        Kernels there are.
    folder : str or None
        Where they are kept, None where they cannot be.
    """

    compiled: tuple[str, ...]
    total: int
    folder: str | None


@dataclasses.dataclass(frozen=True)
class KeptKernels:
    """Which kernels need not be compiled any more.

    Attributes
    ----------
    names : tuple of str
        All there are.
    kept : tuple of str
        Those of them that are kept on disk for this machine.
    folder : str or None
        Where they are, or would be; None where they cannot be kept.
    """

    names: tuple[str, ...]
    kept: tuple[str, ...]
    folder: str | None


def kept_kernels() -> KeptKernels:
    """Tell which kernels are kept for this machine, without compiling or loading any."""
    from dfstream.dsp._kernelcache import kept_names, store_here

    names, place = tuple(_kernel_names()), store_here()
    if place is None:
        return KeptKernels(names, (), None)
    kept = kept_names(place)
    return KeptKernels(names, tuple(name for name in names if name in kept), str(place.folder))


def _kernel_names() -> Iterator[str]:
    """Read the names of all kernels out of the sources: importing one compiles it."""
    from dfstream.dsp._kernelcache import PACKAGES

    for folder in source_folders(*PACKAGES):
        for path in sorted(folder.rglob("*.py")):
            module = ".".join(["dfstream", folder.name, *path.relative_to(folder).with_suffix("").parts])
            for node in ast.parse(path.read_bytes()).body:
                if isinstance(node, ast.FunctionDef) and any(map(_is_jit, node.decorator_list)):
                    yield f"{module}.{node.name}"


def _is_jit(decorator: ast.expr) -> bool:
    return (
        isinstance(decorator, ast.Call)
        and isinstance(decorator.func, ast.Name)
        and decorator.func.id == "jit"
    )


def kernel_modules() -> list[str]:
    """Return the names of the modules that may hold kernels."""
    from dfstream.dsp._kernelcache import PACKAGES

    return [
        module.name
        for folder in source_folders(*PACKAGES)
        for module in pkgutil.walk_packages([str(folder)], f"dfstream.{folder.name}.")
    ]


def warm_kernels(modules: Sequence[str], progress: Callable[[int], None] = lambda _: None) -> WarmKernels:
    """Import modules, which compiles their kernels or takes them from the cache.

    Parameters
    ----------
    modules : sequence of str
    progress : callable
        Told how many modules are done.
    """
    from dfstream.dsp._kernelcache import full_name, kept_in, kernels_in, watching

    compiled: list[str] = []
    with watching(compiled.append):
        for done, module in enumerate(modules, 1):
            importlib.import_module(module)
            progress(done)
    kernels = kernels_in(modules)
    new = tuple(name for name in map(full_name, kernels) if name in compiled)
    return WarmKernels(new, len(kernels), kept_in(kernels))


def warm_model(model: Model) -> None:
    """Enhance a little, as live audio and as a file, which patches the graphs and touches every library."""
    from dfstream.offline import OFFLINE_BLOCK_FRAMES
    from dfstream.stream import Stream

    for frames in (1, OFFLINE_BLOCK_FRAMES):
        stream = Stream(model, sample_rate=model.config.sample_rate, block_frames=frames)
        stream.process(np.zeros(stream.hop_size * frames, np.float32))
