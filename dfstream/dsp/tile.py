"""The one kernel that needs control over registers: a tile of a matrix product, as LLVM vector code.

A tile holds ``rows`` x ``vectors`` accumulators in registers while it walks along k, so that weights are
read once per tile, in order, and results are stored once. Loops over whole panels stay with the callers.
Written in vectors of 16 lanes, which LLVM splits for narrower machines. The sum over k runs in order for
every shape of tile, so all shapes give the same bits.
"""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Any

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["LANES", "ROWS", "TALL", "WIDE", "tile"]

#: Values of a vector.
LANES = 16

_FLOAT, _DOUBLE = ir.FloatType(), ir.DoubleType()
_INT8, _INT16, _INT32, _INT64 = (ir.IntType(n) for n in (8, 16, 32, 64))


def tile(
    rows: int, vectors: int, weight: str = "as x", *, own: bool = False, parts: int = 1
) -> Callable[..., None]:
    """Make the kernel ``y[r, :n] += sum_k x[r, k] w[k, :n]`` for ``n = 16 * vectors``.

    Parameters
    ----------
    rows, vectors : int
        Shape of the tile; their product must fit the machine's vector registers.
    weight : str
        How weights are stored: as ``x``, float32 or float64, or one of ``float16``, ``int16``, ``int8``;
        sums are of the type of ``x``.
    own : bool
        Every row has weights of its own, one block of ``K * w_row`` behind the other: small products side
        by side, none of which would keep the processor busy.
    parts : int
        So many rows after each other are parts of one row: they read the same ``x``, and write one behind
        the other.

    Returns
    -------
    function of (x, x_at, x_row, w, w_at, w_row, y, y_at, y_row, K)
        For kernels only. ``x`` and ``y`` are flat arrays of one type, ``w`` one of it or of bytes; ``_at``
        says where the tile begins, ``_row`` how far its rows are apart, all counted in values.
    """

    @intrinsic
    def multiply(
        _typing: Any, x: Any, x_at: Any, x_row: Any, w: Any, w_at: Any, w_row: Any, y: Any, y_at: Any,
        y_row: Any, K: Any,
    ) -> Any:  # fmt: skip
        del x_at, x_row, w_at, w_row, y_at, y_row, K  # all counts, whatever type they come in
        n = types.intp
        signature = types.void(x, n, n, w, n, n, y, n, n, n)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            real = _DOUBLE if signature.args[0].dtype == types.float64 else _FLOAT
            _Tile(builder, real, rows, vectors, weight, own, parts).emit(
                [_data(context, builder, signature, arguments, i) for i in (0, 3, 6)],
                [arguments[i] for i in (1, 4, 7)],
                [arguments[i] for i in (2, 5, 8)],
                arguments[9],
            )
            return context.get_dummy_value()

        return signature, generate

    return multiply


def _data(context: Any, builder: Any, signature: Any, arguments: Any, index: int) -> Any:
    return context.make_array(signature.args[index])(context, builder, arguments[index]).data


class _Tile:
    """Emits the code of one tile."""

    def __init__(
        self, builder: Any, real: Any, rows: int, vectors: int, weight: str, own: bool, parts: int
    ) -> None:
        self.builder, self.real, self.own, self.parts = builder, real, own, parts
        self.rows, self.vectors = range(rows), range(vectors)
        self.stored, self.read = _STORED[weight] if weight != "as x" else (real, lambda _b, stored: stored)

    def emit(self, data: list[Any], at: list[Any], apart: list[Any], size: Any) -> None:
        b = self.builder
        w = b.bitcast(data[1], self.stored.as_pointer())
        x, w, y = (b.gep(p, [a]) for p, a in zip((data[0], w, data[2]), at, strict=True))
        x_rows = [b.gep(x, [b.mul(apart[0], _int(r // self.parts))]) for r in self.rows]
        width = len(self.vectors) * LANES
        y_rows = [
            b.gep(b.gep(y, [b.mul(apart[2], _int(r // self.parts))]), [_int(r % self.parts * width)])
            for r in self.rows
        ]
        places = [b.gep(row, [_int(v * LANES)]) for row in y_rows for v in self.vectors]
        blocks = [b.gep(w, [b.mul(b.mul(size, apart[1]), _int(r))]) for r in self.rows] if self.own else [w]
        sums = self._along_k(x_rows, blocks, apart[1], [self._load(p, self.real) for p in places], size)
        # in this order: a row that is no multiple of 16 long spills its unchanged tail into the next one
        for place, value in zip(places, sums, strict=True):
            b.store(value, b.bitcast(place, _vector(self.real).as_pointer())).align = 4

    def _along_k(
        self, x_rows: list[Any], blocks: list[Any], w_row: Any, sums: list[Any], size: Any
    ) -> list[Any]:
        b = self.builder
        before, loop, after = b.block, b.append_basic_block("along_k"), b.append_basic_block("done")
        b.branch(loop)
        b.position_at_end(loop)
        k, carried = b.phi(_INT64), [b.phi(_vector(self.real)) for _ in sums]
        k.add_incoming(_int(0), before)
        for phi, value in zip(carried, sums, strict=True):
            phi.add_incoming(value, before)
        at_k = b.mul(k, w_row)
        following = self._step(x_rows, [b.gep(w, [at_k]) for w in blocks], k, list(carried))
        k_next = b.add(k, _int(1))
        k.add_incoming(k_next, b.block)
        for phi, value in zip(carried, following, strict=True):
            phi.add_incoming(value, b.block)
        b.cbranch(b.icmp_signed("<", k_next, size), loop, after)
        b.position_at_end(after)
        return following

    def _step(self, x_rows: list[Any], blocks: list[Any], k: Any, sums: list[Any]) -> list[Any]:
        b = self.builder
        vector, name = _vector(self.real), f"llvm.fma.v{LANES}f{64 if self.real is _DOUBLE else 32}"
        kind = ir.FunctionType(vector, [vector] * 3)
        fma = b.module.globals.get(name) or ir.Function(b.module, kind, name)
        weights = self._weights(blocks[0])
        for r, x_row in enumerate(x_rows):
            x = self._splat(b.load(b.gep(x_row, [k])))
            if self.own and r:
                weights = self._weights(blocks[r])
            for v in self.vectors:
                index = r * len(self.vectors) + v
                sums[index] = b.call(fma, [x, weights[v], sums[index]])
        return sums

    def _weights(self, w: Any) -> list[Any]:
        b = self.builder
        return [self.read(b, self._load(b.gep(w, [_int(v * LANES)]), self.stored)) for v in self.vectors]

    def _load(self, place: Any, kind: Any) -> Any:
        b = self.builder
        value = b.load(b.bitcast(place, _vector(kind).as_pointer()))
        value.align = {_DOUBLE: 4, _FLOAT: 4, _INT16: 2, _INT8: 1}[kind]
        return value

    def _splat(self, value: Any) -> Any:
        b, empty = self.builder, ir.Constant(_vector(self.real), ir.Undefined)
        first = b.insert_element(empty, value, ir.Constant(_INT32, 0))
        return b.shuffle_vector(first, empty, ir.Constant(_vector(_INT32), [0] * LANES))


def _int(value: int) -> Any:
    return ir.Constant(_INT64, value)


def _vector(kind: Any = _FLOAT) -> Any:
    return ir.VectorType(kind, LANES)


def _from_integer(b: Any, stored: Any) -> Any:
    return b.sitofp(b.sext(stored, _vector(_INT32)), _vector())


def _from_half(b: Any, stored: Any) -> Any:
    return b.fpext(b.bitcast(stored, _vector(ir.HalfType())), _vector())


def _from_half_bits(b: Any, stored: Any) -> Any:
    """Move exponent and fraction into place, then scale: for machines that would call a function.

    Exact for all finite numbers; infinities, which weights never are, would come out as 65536.
    """

    def ints(value: int) -> Any:
        return ir.Constant(_vector(_INT32), [value] * LANES)

    bits = b.zext(stored, _vector(_INT32))
    magnitude = b.bitcast(b.shl(b.and_(bits, ints(0x7FFF)), ints(13)), _vector())
    scaled = b.fmul(magnitude, ir.Constant(_vector(), [2.0**112] * LANES))
    sign = b.shl(b.and_(bits, ints(0x8000)), ints(16))
    return b.bitcast(b.or_(b.bitcast(scaled, _vector(_INT32)), sign), _vector())


_FEATURES = llvmlite.binding.get_host_cpu_features()
_CONVERTS_HALF = _FEATURES.get("f16c", platform.machine().lower() in ("arm64", "aarch64"))

_STORED: dict[str, tuple[Any, Callable[[Any, Any], Any]]] = {
    "float16": (_INT16, _from_half if _CONVERTS_HALF else _from_half_bits),
    "int16": (_INT16, _from_integer),
    "int8": (_INT8, _from_integer),
}

# 16 accumulators of 16 lanes need the 32 wide registers of AVX-512; elsewhere a vector takes two or more
_HAS_WIDE_REGISTERS = _FEATURES.get("avx512f", False)

#: Vectors of a tile of one row, and of a tile of several rows.
WIDE, TALL = 4, 4 if _HAS_WIDE_REGISTERS else 1

#: Rows of a tile of several rows.
ROWS = 4
