"""How every kernel is compiled: for one signature, at the import of its module.

The signature is explicit, so no call ever compiles in the middle of a stream, whatever arrays a
caller brings. It also says which arrays a kernel only reads, and the compiler refuses a kernel that
writes to one of those.
"""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numba
from numba import types

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["complex64", "float32", "float64", "inner", "inner_sum", "int8", "intp", "jit", "reads", "writes"]

float32, float64, complex64 = types.float32, types.float64, types.complex64
int8, intp = types.int8, types.intp

#: No reordering of sums: blocks of any length must give the same bits.
_njit: Any = partial(numba.njit, nogil=True, fastmath=False, error_model="numpy")

_Kernel = TypeVar("_Kernel", bound="Callable[..., None]")
_Part = TypeVar("_Part", bound="Callable[..., Any]")


def reads(dtype: Any, ndim: int) -> Any:
    """Type of a C-contiguous array that a kernel leaves alone; writable arrays may be passed too."""
    return types.Array(dtype, ndim, "C", readonly=True)


def writes(dtype: Any, ndim: int) -> Any:
    """Type of a C-contiguous array that a kernel changes."""
    return types.Array(dtype, ndim, "C")


def jit(*arguments: Any) -> Callable[[_Kernel], _Kernel]:
    """Compile a kernel that takes these types and returns nothing.

    The machine code is kept in the user's cache folder (`dfstream.diskcache`). Where it cannot be, each
    process compiles its own.

    Parameters
    ----------
    *arguments : numba types
        One for each parameter: `reads`, `writes`, or a scalar type.
    """
    signature = types.void(*arguments)

    def compile_kernel(function: _Kernel) -> _Kernel:
        kernel: Any = _njit(function)
        if kernel is function:  # NUMBA_DISABLE_JIT
            return function
        _keep_on_disk(kernel)
        kernel.compile(signature)
        kernel.disable_compile()
        compiled: _Kernel = kernel
        return compiled

    return compile_kernel


def inner(function: _Part) -> _Part:
    """Compile a part of kernels, together with each of them; ``a * b + c`` may round once."""
    return _part(function, {"contract"})


def inner_sum(function: _Part) -> _Part:
    """As `inner`, for a sum whose order the compiler may choose, once for all callers."""
    return _part(function, {"contract", "reassoc"})


def _part(function: _Part, fastmath: set[str]) -> _Part:
    part: Any = numba.njit(nogil=True, fastmath=fastmath, error_model="numpy")(function)
    return part  # type: ignore[no-any-return]


def _keep_on_disk(kernel: Any) -> None:
    """Let a kernel come from disk if it can; what looks inside numba may fail with any other numba."""
    with contextlib.suppress(Exception):
        from dfstream.dsp import _kernelcache

        _kernelcache.keep_on_disk(kernel)
