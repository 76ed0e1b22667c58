"""The verb ``warm``: everything that a first run would compile and patch, done ahead and kept on disk."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from typing import TYPE_CHECKING

import numpy as np

from dfstream.diskcache import source_folders

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dfstream.model import Model

__all__ = ["WarmKernels", "kernel_modules", "warm_kernels", "warm_model"]


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
