"""bfloat16 for Numba: register tiles of real bfloat16 products, and 16-bit rows in and out.

Both instructions multiply *pairs* of neighbouring bfloat16 numbers and add the two products to a float32 sum:

    TDPBF16PS (AMX)       C[16][16] += A[16][16 pairs] * B[16 pairs][16]     8,192 products an instruction
    VDPBF16PS (AVX-512)   c[lane]   += a pair of A * b[lane], a pair of B       32 products

so both read the same packed weights: 16 rows of 32 output channels, each a pair of input channels.

    C[i][k] = sum over segments t, chunks j, pairs p of  A[i][segments[t] + 32 j + 2 p + (0, 1)] * B[t][j][p][k][(0, 1)]

A tile is 32 x 32. Rows of A are ``row_step`` apart, because AMX loads rows at one distance only. On one core of a
Sapphire Rapids server AMX reaches 890 GFLOP/s and VDPBF16PS 116, half of float32's FMA: Intel's cores execute it in two
steps. On AMD's Zen 4 and 5 it runs at twice the rate of FMA. Hence :data:`FORM`.

Inputs that are subnormal count as zero, subnormal results become zero: the instructions know no others.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from .amx import AMX, I8, I64, emit, features

ROWS = COLUMNS = 32  # of a tile
CHUNK = 32  # input channels that a step multiplies
I1, I16, I32 = (ir.IntType(bits) for bits in (1, 16, 32))
LANES = 16
FLOATS, INTS, SHORTS = (ir.VectorType(t, LANES) for t in (ir.FloatType(), I32, I16))
MASK = ir.VectorType(I1, LANES)


class _BFloat(ir.types.Type):
    """LLVM's bfloat, which llvmlite does not know."""

    def __str__(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


BFLOATS, PAIRS = ir.VectorType(_BFloat(), LANES), ir.VectorType(_BFloat(), 2 * LANES)


def _form() -> str | None:
    """``"amx"``, ``"dot"``, or None where the CPU multiplies float32 faster than bfloat16."""
    if AMX:
        return "amx"
    cpu = cpu_target.target_context.codegen().magic_tuple()[1]
    return "dot" if cpu.startswith("znver") and {"+avx512bf16", "+avx512bw"} <= features() else None


FORM = _form()


def _int(value: int) -> ir.Constant:
    return ir.Constant(I64, value)


def _call(b: ir.IRBuilder, name: str, result: ir.Type, *arguments: ir.Value) -> ir.Value:
    signature = ir.FunctionType(result, [a.type for a in arguments])
    return b.call(cgutils.get_or_insert_function(b.module, signature, name), arguments)


class _Loop:
    """``for i in range(n)`` with values carried from step to step, none of them in memory."""

    def __init__(self, b: ir.IRBuilder, n: ir.Value, carried: list[ir.Value]) -> None:
        self.b, self.n, source = b, n, b.block
        self.body, self.after = b.append_basic_block("step"), b.append_basic_block("after")
        b.branch(self.body)
        b.position_at_end(self.body)
        self.phis = [b.phi(v.type) for v in (_int(0), *carried)]
        for phi, value in zip(self.phis, (_int(0), *carried), strict=True):
            phi.add_incoming(value, source)
        self.i, self.values = self.phis[0], self.phis[1:]

    def close_phis(self, values: list[ir.Value]) -> None:
        following = self.b.add(self.i, _int(1))
        for phi, value in zip(self.phis, (following, *values), strict=True):
            phi.add_incoming(value, self.b.block)
        self.b.cbranch(self.b.icmp_signed("<", following, self.n), self.body, self.after)
        self.b.position_at_end(self.after)


_SHORT, _INDEX, _FLOAT = (types.CPointer(t) for t in (types.int16, types.int64, types.float32))


@intrinsic
def amx_tile(
    typingctx: Any, segment_count: Any, segments: Any, chunks: Any, a: Any, row_step: Any, b: Any, c: Any
) -> Any:
    """A 32 x 32 tile of C in four tile registers, by AMX. Steps and segments count bfloat16 elements."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        segment_count, segments, chunks, a, row_step, weights, c = args
        row_bytes, lower = builder.mul(row_step, _int(2)), builder.mul(row_step, _int(ROWS // 2))
        for t in range(4):
            emit(builder, "tilezero", t)

        def at(pointer: ir.Value, offset: ir.Value | int) -> ir.Value:
            offset = _int(offset) if isinstance(offset, int) else offset
            return builder.bitcast(builder.gep(pointer, [offset]), I8.as_pointer())

        outer = _Loop(builder, segment_count, [weights])
        start = builder.gep(a, [builder.load(builder.gep(segments, [outer.i]))])
        inner = _Loop(builder, chunks, [start, outer.values[0]])
        left, right = inner.values
        emit(builder, "tileloadd64", 6, at(right, 0), _int(4 * COLUMNS))
        emit(builder, "tileloadd64", 4, at(left, 0), row_bytes)
        emit(builder, "tdpbf16ps", 0, 4, 6)
        emit(builder, "tileloadd64", 7, at(right, COLUMNS), _int(4 * COLUMNS))
        emit(builder, "tdpbf16ps", 1, 4, 7)
        emit(builder, "tileloadd64", 5, at(left, lower), row_bytes)
        emit(builder, "tdpbf16ps", 2, 5, 6)
        emit(builder, "tdpbf16ps", 3, 5, 7)
        following = builder.gep(right, [_int(CHUNK * COLUMNS)])
        inner.close_phis([builder.gep(left, [_int(CHUNK)]), following])
        outer.close_phis([following])
        for i in range(2):
            for j in range(2):
                corner = builder.gep(c, [_int(i * COLUMNS * ROWS // 2 + j * COLUMNS // 2)])
                emit(builder, "tilestored64", 2 * i + j, builder.bitcast(corner, I8.as_pointer()), _int(4 * COLUMNS))
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(i64, _INDEX, i64, _SHORT, i64, _SHORT, _FLOAT), codegen


_DOT_ROWS = 8


@intrinsic
def dot_tile(
    typingctx: Any, segment_count: Any, segments: Any, chunks: Any, a: Any, row_step: Any, b: Any, c: Any
) -> Any:
    """Eight rows of a tile of C, by VDPBF16PS."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        segment_count, segments, chunks, a, row_step, weights, c = args
        pairs = builder.mul(chunks, _int(CHUNK // 2))
        zero = ir.Constant(FLOATS, [0.0] * LANES)
        undefined = ir.Constant(INTS, ir.Undefined)
        outer = _Loop(builder, segment_count, [weights] + [zero] * (2 * _DOT_ROWS))
        start = builder.gep(a, [builder.load(builder.gep(segments, [outer.i]))])
        rows = [builder.gep(start, [builder.mul(row_step, _int(i))]) for i in range(_DOT_ROWS)]
        inner = _Loop(builder, pairs, outer.values)
        right = inner.values[0]
        columns = []
        for j in range(2):
            where = builder.bitcast(builder.gep(right, [_int(2 * LANES * j)]), INTS.as_pointer())
            columns.append(builder.bitcast(builder.load(where, align=4), PAIRS))
        sums = []
        for i, row in enumerate(rows):
            where = builder.bitcast(builder.gep(row, [builder.mul(inner.i, _int(2))]), I32.as_pointer())
            pair = builder.insert_element(undefined, builder.load(where, align=2), ir.Constant(I32, 0))
            pair = builder.shuffle_vector(pair, undefined, ir.Constant(INTS, [0] * LANES))
            pair = builder.bitcast(pair, PAIRS)
            for j in range(2):
                total = inner.values[1 + 2 * i + j]
                sums.append(_call(builder, "llvm.x86.avx512bf16.dpbf16ps.512", FLOATS, total, pair, columns[j]))
        following = builder.gep(right, [_int(2 * COLUMNS)])
        inner.close_phis([following, *sums])
        outer.close_phis([following, *sums])
        for n, value in enumerate(sums):
            where = builder.gep(c, [_int(n // 2 * COLUMNS + n % 2 * LANES)])
            builder.store(value, builder.bitcast(where, FLOATS.as_pointer()), align=4)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(i64, _INDEX, i64, _SHORT, i64, _SHORT, _FLOAT), codegen


def _first(b: ir.IRBuilder, n: ir.Value) -> ir.Value:
    """The mask of the lanes below n."""
    none = ir.Constant(INTS, ir.Undefined)
    v = b.insert_element(none, b.trunc(n, I32), ir.Constant(I32, 0))
    v = b.shuffle_vector(v, none, ir.Constant(INTS, [0] * LANES))
    return b.icmp_signed("<", ir.Constant(INTS, list(range(LANES))), v)


def _load_shorts(b: ir.IRBuilder, pointer: ir.Value, mask: ir.Value) -> ir.Value:
    where, align = b.bitcast(pointer, SHORTS.as_pointer()), ir.Constant(I32, 2)
    return _call(b, "llvm.masked.load.v16i16.p0", SHORTS, where, align, mask, ir.Constant(SHORTS, [0] * LANES))


@intrinsic
def transpose_pairs(
    typingctx: Any, source: Any, channel_step: Any, target: Any, odd: Any, even: Any, channels: Any, positions: Any
) -> Any:
    """Up to 16 positions of 32 channels, from rows of one channel to pixels of 32, the missing channels zeros:

    ``target[j // 2 * even + j % 2 * odd + c] = source[c * channel_step + j]``. (With two distances pixels of even and
    odd columns can go to places of their own: what a stride of 2 wants.)
    """

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        source, channel_step, target, odd, even, channels, positions = args
        wanted, none = _first(builder, positions), ir.Constant(MASK, [0] * LANES)
        rows = []
        for i in range(LANES):
            halves = []
            for c in (2 * i, 2 * i + 1):
                mask = builder.select(builder.icmp_signed("<", _int(c), channels), wanted, none)
                row = builder.gep(source, [builder.mul(channel_step, _int(c))])
                halves.append(builder.zext(_load_shorts(builder, row, mask), INTS))
            rows.append(builder.or_(halves[0], builder.shl(halves[1], ir.Constant(INTS, [16] * LANES))))
        for step in (8, 4, 2, 1):
            low = ir.Constant(INTS, [i if not i & step else LANES + i - step for i in range(LANES)])
            high = ir.Constant(INTS, [i + step if not i & step else LANES + i for i in range(LANES)])
            turned = list(rows)
            for i in range(LANES):
                if not i & step:
                    turned[i] = builder.shuffle_vector(rows[i], rows[i + step], low)
                    turned[i + step] = builder.shuffle_vector(rows[i], rows[i + step], high)
            rows = turned
        every = ir.Constant(MASK, [1] * LANES)
        for j, row in enumerate(rows):
            offset = builder.add(builder.mul(even, _int(j // 2)), odd if j % 2 else _int(0))
            where = builder.bitcast(builder.gep(target, [offset]), INTS.as_pointer())
            mask = builder.select(builder.icmp_signed("<", _int(j), positions), every, none)
            align = ir.Constant(I32, 2)
            _call(builder, "llvm.masked.store.v16i32.p0", ir.VoidType(), row, where, align, mask)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(_SHORT, i64, _SHORT, i64, i64, i64, i64), codegen


@intrinsic
def widen(typingctx: Any, source: Any, target: Any, n: Any) -> Any:
    """``target[:16] = source[:16]``, bfloat16 as float32, for the lanes below n."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        source, target, n = args
        mask = _first(builder, n)
        bits = builder.zext(_load_shorts(builder, source, mask), INTS)
        value = builder.bitcast(builder.shl(bits, ir.Constant(INTS, [16] * LANES)), FLOATS)
        where, align = builder.bitcast(target, FLOATS.as_pointer()), ir.Constant(I32, 4)
        _call(builder, "llvm.masked.store.v16f32.p0", ir.VoidType(), value, where, align, mask)
        return context.get_dummy_value()

    return types.void(_SHORT, _FLOAT, types.int64), codegen


@intrinsic
def narrow(typingctx: Any, source: Any, target: Any, n: Any) -> Any:
    """``target[:16] = source[:16]``, float32 rounded to the nearest bfloat16, for the lanes below n."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        source, target, n = args
        mask, align = _first(builder, n), ir.Constant(I32, 4)
        where = builder.bitcast(source, FLOATS.as_pointer())
        zero = ir.Constant(FLOATS, [0.0] * LANES)
        value = _call(builder, "llvm.masked.load.v16f32.p0", FLOATS, where, align, mask, zero)
        rounded = builder.bitcast(builder.fptrunc(value, BFLOATS), SHORTS)
        where = builder.bitcast(target, SHORTS.as_pointer())
        _call(builder, "llvm.masked.store.v16i16.p0", ir.VoidType(), rounded, where, ir.Constant(I32, 2), mask)
        return context.get_dummy_value()

    return types.void(_FLOAT, _SHORT, types.int64), codegen
