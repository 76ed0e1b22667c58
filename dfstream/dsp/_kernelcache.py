"""Where compiled kernels are kept between processes: the only module that knows numba's insides.

numba keeps machine code beside the source, or where a variable for the whole process says. Here a
dispatcher gets a cache of its own: `dfstream.diskcache`, in a folder named after everything the code
depends on (versions, CPU, all sources of kernels, since one kernel may inline another module's).
"""

from __future__ import annotations

import contextlib
import hashlib
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numba
from numba.core import compiler, dispatcher, event, serialize
from numba.core.caching import _Cache
from numba.core.registry import cpu_target
from numba.core.runtime.nrt import rtsys

from dfstream.diskcache import Store, source_digest, source_folders

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = [
    "PACKAGES",
    "full_name",
    "keep_on_disk",
    "kept_in",
    "kept_names",
    "kernels_in",
    "store",
    "store_here",
    "watching",
]

#: numba says little about its types.
_dumps: Any = serialize.dumps
_Dispatcher: Any = dispatcher.Dispatcher
_rebuild: Any = compiler.CompileResult._rebuild

#: Subpackages that hold kernels.
PACKAGES = ("dsp", "net")


def store(codegen: Any) -> Store | None:
    """Return where kernels for this machine are kept; None where the sources cannot be read.

    Parameters
    ----------
    codegen : numba code generator
        Knows the CPU it generates for.
    """
    sources = source_digest(*PACKAGES)
    if not sources:
        return None
    cpu = hashlib.sha256(repr(codegen.magic_tuple()).encode()).hexdigest()[:12]
    python = f"{platform.python_implementation().lower()}{platform.python_version()}"
    return Store("kernels", f"numba{numba.__version__}-{python}-{cpu}-{sources}")


def store_here() -> Store | None:
    """Return `store` for the processor of this machine."""
    return store(cpu_target.target_context.codegen())


def kept_names(place: Store) -> set[str]:
    """Return the full names of the kernels that are kept in a place."""
    try:
        return {path.name.rpartition("-")[0] for path in place.folder.iterdir()}
    except (OSError, RuntimeError):
        return set()


def keep_on_disk(kernel: Any) -> None:
    """Give a dispatcher that has not compiled yet a cache on disk, if its source is one of ours."""
    path = Path(kernel.py_func.__code__.co_filename)
    if any(path.is_relative_to(folder) for folder in source_folders(*PACKAGES)):
        place = store(kernel.targetctx.codegen())
        if place is not None:
            kernel._cache = _KernelCache(kernel.py_func, place)


@contextlib.contextmanager
def watching(compiling: Callable[[str], None]) -> Iterator[None]:
    """Call a function with the name of each kernel, or part of one, that is compiled inside the block."""

    class Listener(event.Listener):
        def on_start(self, event: Any) -> None:
            kernel = event.data["dispatcher"]
            if kernel.__module__.startswith("dfstream."):
                compiling(full_name(kernel))

        def on_end(self, event: Any) -> None:
            pass

    with event.install_listener("numba:compile", Listener()):
        yield


def full_name(kernel: Any) -> str:
    """Return a kernel's name with that of its module."""
    return f"{kernel.__module__}.{kernel.__name__}"


def kernels_in(modules: Sequence[str]) -> list[Any]:
    """Return the kernels that imported modules define; parts that are compiled with others are none."""
    values = (value for name in modules for value in vars(sys.modules[name]).values())
    kernels = (v for v in values if isinstance(v, _Dispatcher) and not v._can_compile)
    return list({full_name(kernel): kernel for kernel in kernels if kernel.__module__ in modules}.values())


def kept_in(kernels: Sequence[Any]) -> str | None:
    """Return the folder that kernels are kept in, None where they are not."""
    folders = (kernel._cache.cache_path for kernel in kernels if isinstance(kernel._cache, _KernelCache))
    return next((folder for folder in folders if Path(folder).is_dir()), None)


class _KernelCache(_Cache):
    """What a dispatcher asks before it compiles, and tells after it has."""

    def __init__(self, function: Any, place: Store) -> None:
        self._function, self._store = function, place
        self._name = f"{function.__module__}.{function.__qualname__}".replace("<", "").replace(">", "")

    @property
    def cache_path(self) -> str:
        """The folder."""
        return str(self._store.folder)

    def load_overload(self, signature: Any, target_context: Any) -> Any:
        """Return the compiled code for a signature, or None."""
        name, key = self._key(signature, target_context.codegen())
        data = self._store.get(name, key)
        if data is None:
            return None
        # numba's own cache loads all implementations of Python and NumPy first, 0.15 s: finished code
        # calls none of them, only the runtime
        rtsys.initialize(target_context)
        try:
            return _rebuild(target_context, *serialize.loads(data))
        except Exception:  # whatever another numba cannot rebuild can be compiled
            return None

    def save_overload(self, signature: Any, result: Any) -> None:
        """Keep compiled code; that which holds addresses of this process cannot be kept."""
        if not result.lifted and not result.library.has_dynamic_globals:
            name, key = self._key(signature, result.library.codegen)
            self._store.put(name, key, _dumps(result._reduce()))

    def _key(self, signature: Any, codegen: Any) -> tuple[str, str]:
        cells = tuple(cell.cell_contents for cell in self._function.__closure__ or ())
        parts = (
            self._name, self._function.__code__.co_firstlineno, str(signature), codegen.magic_tuple(),
            self._function.__code__.co_code, _dumps(cells) if cells else b"",
        )  # fmt: skip
        key = repr(parts)
        return f"{self._name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}", key

    def enable(self) -> None:
        """Nothing to do: it is always on."""

    def disable(self) -> None:
        """Nothing to do: it is always on."""

    def flush(self) -> None:
        """Nothing to do: a new source has a new folder."""
