"""How kernels are compiled: one signature each, never in the middle of a stream, with or without a cache."""

import importlib
import pkgutil

import numba
import numpy as np
import pytest
from numba.core.dispatcher import Dispatcher

import dfstream.dsp
from dfstream.dsp import dft
from dfstream.dsp._jit import float32, jit, reads, writes

MODULES = [
    importlib.import_module(f"dfstream.dsp.{m.name}") for m in pkgutil.iter_modules(dfstream.dsp.__path__)
]
KERNELS = {
    f"{module.__name__}.{name}": value
    for module in MODULES
    for name, value in vars(module).items()
    if isinstance(value, Dispatcher)
}

#: Compiled with the kernels that call them, never by themselves.
PARTS = {dft.forward, dft.inverse, dft._product}
KERNELS = {name: kernel for name, kernel in KERNELS.items() if kernel not in PARTS}


def test_kernels_were_found():
    assert len(KERNELS) == 9


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__name__)
def test_parts_of_kernels_may_fuse_but_not_reorder(part):
    assert part.targetoptions["nogil"]
    assert part.targetoptions["fastmath"] == {"contract"}


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_each_kernel_has_one_signature_and_exact_arithmetic(kernel):
    assert len(kernel.signatures) == 1
    assert not kernel._can_compile, "an unexpected argument would start the compiler"
    assert kernel.targetoptions["nogil"]
    assert not kernel.targetoptions["fastmath"]
    for argument in kernel.signatures[0]:
        assert argument in (numba.float32, numba.int8, numba.intp) or argument.layout == "C"


def test_without_a_place_for_the_cache_a_kernel_still_compiles():
    namespace = {}
    exec("def double(x, out):\n    for i in range(x.size):\n        out[i] = x[i] + x[i]\n", namespace)
    with pytest.raises(
        RuntimeError, match="cannot cache"
    ):  # no file, hence no place: what jit has to survive
        numba.njit(cache=True)(namespace["double"])
    double = jit(reads(float32, 1), writes(float32, 1))(namespace["double"])
    x, out = np.arange(3, dtype=np.float32), np.empty(3, np.float32)
    x.flags.writeable = False
    double(x, out)
    assert out.tolist() == [0, 2, 4]
    assert len(double.signatures) == 1


def test_writing_to_what_a_kernel_only_reads_does_not_compile():
    def spoil(x):
        x[0] = 1

    with pytest.raises(numba.TypingError):
        jit(reads(float32, 1))(spoil)
