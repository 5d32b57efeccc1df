"""Tiles of bfloat16 products, of bfloat16 numbers as they are and of float32 numbers in three parts (``bf16x3``).

Both instructions multiply *pairs* of bfloat16 numbers and add the two products to a float32 sum:

    TDPBF16PS (AMX)       C[16][16] += A[16][16 pairs] * B[16 pairs][16]     8,192 products an instruction
    VDPBF16PS (AVX-512)   c[lane]   += a pair of A * b[lane], a pair of B       32 products

Rows of A are positions, a step of the sum multiplies a chunk of 32 input channels. What an element type decides:

               a row of A             pairs are channels    a tile          B, a step of it
    bfloat16   32 numbers             2 p and 2 p + 1       32 x 32         [2][16 pairs][16 columns][2]
    float32    3 parts of 32, AMX     p and p + 16          32 x 32         [2][16 pairs][3 parts][16 columns][2]

The intrinsics here take the type from their pointers, so that one kernel serves both.

TDPBF16PS takes 16 cycles, loading a register 8 beside it: see ``bf16x3`` for what that makes. VDPBF16PS reaches 116
GFLOP/s a core, half of float32's FMA: Intel's cores execute it in two steps. On AMD's Zen 4 and 5 it runs at twice the
rate of FMA. Hence :data:`FORM`.

Inputs that are subnormal count as zero, subnormal results become zero: the instructions know no others.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from .amx import AMX, emit, features
from .bf16x3 import CHUNK, PARTS, SIDE, STEPS, byte_pointer, multiply_chunk, store_parts
from .simd import I1, I32, INDEX, Vectors, close_phis, const, open_phis
from .vector import Vector

ROWS = COLUMNS = 32  # of a tile
I16 = ir.IntType(16)
LANES = 16
FLOATS, INTS, SHORTS = (ir.VectorType(t, LANES) for t in (ir.FloatType(), I32, I16))
MASK = ir.VectorType(I1, LANES)
ZEROS = ir.Constant(FLOATS, [0.0] * LANES)
SIXTEEN = ir.Constant(INTS, [16] * LANES)


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

_SHORT, _FLOAT = types.CPointer(types.int16), types.CPointer(types.float32)


def _parts(kind: Any) -> int:
    return PARTS if kind == types.float32 else 1


def _constant(of: Any) -> Any:
    @intrinsic
    def constant(typingctx: Any, kind: Any) -> Any:
        return types.int64(kind), lambda context, builder, sig, args: const(of(kind))

    return constant


row_shorts = _constant(lambda kind: _parts(kind) * CHUNK)  # elements of 2 bytes in a row of A


# --- products ---


@intrinsic
def multiply(typingctx: Any, kind: Any, height: Any, steps: Any, a_steps: Any, a: Any, b: Any, c: Any) -> Any:
    """``C[i][:] = sum over j < steps of A(j)[i] B(j)``, a tile in rows one behind the other, as they are in A and B.

    A(j) begins at ``a[a_steps[j]]``. Where ``height`` is at most 16, only the upper half of the tile is computed.
    """

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, height, *rest = args
        if FORM != "amx":
            for i in range(0, ROWS, _DOT_ROWS):
                _multiply_by_dots(builder, i, *rest)
            return context.get_dummy_value()
        with builder.if_else(builder.icmp_signed("<=", height, const(SIDE))) as (half, whole):
            with half:
                _multiply_by_tiles(builder, sig.args[0], 1, *rest)
            with whole:
                _multiply_by_tiles(builder, sig.args[0], 2, *rest)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(kind, i64, i64, INDEX, _SHORT, _SHORT, _FLOAT), codegen


def _loop(b: ir.IRBuilder, n: ir.Value, carried: list[ir.Value], step: Any) -> list[ir.Value]:
    """``for i in range(n)``, n > 0: ``step(i, values)`` returns the next values, which never go to memory."""
    source, body, after = b.block, b.append_basic_block("step"), b.append_basic_block("after")
    b.branch(body)
    b.position_at_end(body)
    phis = open_phis(b, [const(0), *carried], source)
    values: list[ir.Value] = step(phis[0], phis[1:])
    following = b.add(phis[0], const(1))
    close_phis(phis, [following, *values], b.block)
    b.cbranch(b.icmp_signed("<", following, n), body, after)
    b.position_at_end(after)
    return values


def _multiply_by_tiles(
    b: ir.IRBuilder, kind: Any, height: int, steps: ir.Value, a_steps: ir.Value, a: ir.Value, right: ir.Value,
    c: ir.Value,
) -> None:  # fmt: skip
    """``height`` times 16 rows by AMX; registers 0 to 3 are the sums."""
    parts, width = _parts(kind), COLUMNS // SIDE
    block = SIDE * parts * CHUNK
    for t in range(height * width):
        emit(b, "tilezero", t)

    def step(j: ir.Value, values: list[ir.Value]) -> list[ir.Value]:
        left, (right,) = b.gep(a, [b.load(b.gep(a_steps, [j]))]), values
        which = STEPS if parts == PARTS else ((0, 0),)
        multiply_chunk(b, height, width, which, left, const(block), right, const(block), const(2 * parts * CHUNK))
        return [b.gep(right, [const(width * block)])]

    _loop(b, steps, [right], step)
    for t in range(height * width):
        corner = byte_pointer(b, c, const(t // width * SIDE * COLUMNS + t % width * SIDE))
        emit(b, "tilestored64", t, corner, const(4 * COLUMNS))


_DOT_ROWS = 8


def _multiply_by_dots(
    b: ir.IRBuilder, first: int, steps: ir.Value, a_steps: ir.Value, a: ir.Value, right: ir.Value, c: ir.Value
) -> None:
    """Eight rows of a tile from row ``first`` on, by VDPBF16PS."""

    def splat(pair: ir.Value) -> ir.Value:
        none = ir.Constant(INTS, ir.Undefined)
        v = b.insert_element(none, pair, ir.Constant(I32, 0))
        return b.bitcast(b.shuffle_vector(v, none, ir.Constant(INTS, [0] * LANES)), PAIRS)

    def step(j: ir.Value, values: list[ir.Value]) -> list[ir.Value]:
        left, right, sums = b.gep(a, [b.load(b.gep(a_steps, [j]))]), values[0], values[1:]
        rows = [b.gep(left, [const((first + i) * CHUNK)]) for i in range(_DOT_ROWS)]

        def pair(p: ir.Value, values: list[ir.Value]) -> list[ir.Value]:
            shorts, columns = b.mul(p, const(2)), []
            sums: list[ir.Value] = []
            for k in range(2):
                where = b.gep(right, [b.add(b.mul(p, const(2 * LANES)), const(k * SIDE * CHUNK))])
                columns.append(b.bitcast(b.load(b.bitcast(where, INTS.as_pointer()), align=4), PAIRS))
            for i, row in enumerate(rows):
                mine = splat(b.load(b.bitcast(b.gep(row, [shorts]), I32.as_pointer()), align=2))
                sums.extend(_dot(b, values[2 * i + k], mine, columns[k]) for k in range(2))
            return sums

        return [b.gep(right, [const(2 * SIDE * CHUNK)]), *_loop(b, const(CHUNK // 2), sums, pair)]

    sums = _loop(b, steps, [right] + [ZEROS] * (2 * _DOT_ROWS), step)[1:]
    for n, value in enumerate(sums):
        where = b.gep(c, [const((first + n // 2) * 2 * LANES + n % 2 * LANES)])
        b.store(value, b.bitcast(where, FLOATS.as_pointer()), align=4)


def _call(b: ir.IRBuilder, name: str, result: ir.Type, *arguments: ir.Value) -> ir.Value:
    signature = ir.FunctionType(result, [a.type for a in arguments])
    return b.call(cgutils.get_or_insert_function(b.module, signature, name), arguments)


def _dot(b: ir.IRBuilder, total: ir.Value, left: ir.Value, right: ir.Value) -> ir.Value:
    return _call(b, "llvm.x86.avx512bf16.dpbf16ps.512", FLOATS, total, left, right)


# --- rows of A and B ---


def _first(b: ir.IRBuilder, n: ir.Value) -> ir.Value:
    """The mask of the lanes below n."""
    none = ir.Constant(INTS, ir.Undefined)
    v = b.insert_element(none, b.trunc(n, I32), ir.Constant(I32, 0))
    v = b.shuffle_vector(v, none, ir.Constant(INTS, [0] * LANES))
    return b.icmp_signed("<", ir.Constant(INTS, list(range(LANES))), v)


def _load(b: ir.IRBuilder, vector: ir.VectorType, pointer: ir.Value, mask: ir.Value | None) -> ir.Value:
    """16 numbers, or the masked ones and zeros."""
    letter, size = ("f", 4) if vector == FLOATS else ("i", 2)
    where, align = b.bitcast(pointer, vector.as_pointer()), ir.Constant(I32, size)
    if mask is None:
        return b.load(where, align=size)
    none = ir.Constant(vector, [0] * LANES)
    return _call(b, f"llvm.masked.load.v16{letter}{8 * size}.p0", vector, where, align, mask, none)


def _store(b: ir.IRBuilder, value: ir.Value, pointer: ir.Value, mask: ir.Value | None) -> None:
    letter, size = ("f", 4) if value.type == FLOATS else ("i", 2)
    where, align = b.bitcast(pointer, value.type.as_pointer()), ir.Constant(I32, size)
    if mask is None:
        b.store(value, where, align=size)
    else:
        _call(b, f"llvm.masked.store.v16{letter}{8 * size}.p0", ir.VoidType(), value, where, align, mask)


def _either(b: ir.IRBuilder, whole: ir.Value, emit: Any) -> list[ir.Value]:
    """What ``emit(True)`` returns where ``whole`` holds, else what ``emit(False)`` does: masks cost an instruction of
    the shuffles' port each."""
    with b.if_else(whole) as (then, otherwise):
        with then:
            first, first_block = emit(True), b.block
        with otherwise:
            second, second_block = emit(False), b.block
    joined = [b.phi(value.type) for value in first]
    for phi, one, other in zip(joined, first, second, strict=True):
        phi.add_incoming(one, first_block)
        phi.add_incoming(other, second_block)
    return joined


@intrinsic
def pack_pixel(typingctx: Any, source: Any, target: Any, n: Any) -> Any:
    """A row of A from 32 channels one behind the other, those from the n-th on zeros."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        source, target, n = args
        vector = FLOATS if sig.args[0].dtype == types.float32 else SHORTS

        def load(whole: bool) -> list[ir.Value]:
            halves = []
            for first in (0, LANES):
                mask = None if whole else _first(builder, builder.sub(n, const(first)))
                halves.append(_load(builder, vector, builder.gep(source, [const(first)]), mask))
            return halves

        halves = _either(builder, builder.icmp_signed(">=", n, const(CHUNK)), load)
        if vector == FLOATS:
            store_parts(Vectors(builder, sig.args[0]), halves, target)
        else:
            for i, half in enumerate(halves):
                where = builder.gep(target, [const(i * LANES)])
                builder.store(half, builder.bitcast(where, SHORTS.as_pointer()), align=2)
        return context.get_dummy_value()

    return types.void(source, _SHORT, types.int64), codegen


@intrinsic
def pack_pairs(typingctx: Any, kind: Any, lower: Any, upper: Any, target: Any) -> Any:
    """A row of B from the weights of two channels for 16 outputs each, in float32."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        v = Vectors(builder, sig.args[1])
        store_parts(v, [v.load(p, const(0)) for p in args[1:3]], args[3], _parts(sig.args[0]))
        return context.get_dummy_value()

    return types.void(kind, _FLOAT, _FLOAT, _SHORT), codegen


@intrinsic
def transpose_pixels(typingctx: Any, source: Any, channel_step: Any, target: Any, channels: Any, positions: Any) -> Any:
    """``target[32 j + c] = source[c * channel_step + j]`` for 16 positions j of 32 channels c; what is not below
    ``channels`` or ``positions`` is not read, and zero."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        source, channel_step, target, channels, positions = args
        wanted, none = _first(builder, positions), ir.Constant(MASK, [0] * LANES)
        is_float = sig.args[0].dtype == types.float32
        v = Vectors(builder, _FLOAT)

        def row(c: int, whole: bool) -> ir.Value:
            mask = None if whole else builder.select(builder.icmp_signed("<", const(c), channels), wanted, none)
            where = builder.gep(source, [builder.mul(channel_step, const(c))])
            return _load(builder, FLOATS if is_float else SHORTS, where, mask)

        def pair(c: int, whole: bool) -> ir.Value:
            lower, upper = (builder.zext(row(n, whole), INTS) for n in (c, c + 1))
            return builder.bitcast(builder.or_(lower, builder.shl(upper, SIXTEEN)), FLOATS)

        def write(whole: bool) -> list[ir.Value]:
            for first in (0, LANES) if is_float else (0,):  # two bfloat16 channels are one number of 32 bits
                rows = [row(first + i, whole) if is_float else pair(2 * i, whole) for i in range(LANES)]
                for j, value in enumerate(v.transposed(rows)):
                    where = builder.gep(target, [const(CHUNK * j + first)])
                    builder.store(value, builder.bitcast(where, FLOATS.as_pointer()), align=2)
            return []

        whole = [builder.icmp_signed(">=", n, const(least)) for n, least in ((channels, CHUNK), (positions, LANES))]
        _either(builder, builder.and_(*whole), write)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(source, i64, source, i64, i64), codegen


# --- numbers in and out ---

SINGLES = Vector(types.float32, LANES)


@intrinsic
def load_numbers(typingctx: Any, source: Any, offset: Any, n: Any) -> Any:
    """The first n of 16 numbers from ``source[offset]`` on, as float32; zeros behind them."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        where, vector = builder.gep(args[0], [args[1]]), FLOATS if sig.args[0].dtype == types.float32 else SHORTS

        def load(whole: bool) -> list[ir.Value]:
            return [_load(builder, vector, where, None if whole else _first(builder, args[2]))]

        (value,) = _either(builder, builder.icmp_signed(">=", args[2], const(LANES)), load)
        if vector == FLOATS:
            return value
        return builder.bitcast(builder.shl(builder.zext(value, INTS), SIXTEEN), FLOATS)

    return SINGLES(source, types.int64, types.int64), codegen


@intrinsic
def store_numbers(typingctx: Any, target: Any, offset: Any, value: Any, n: Any) -> Any:
    """The first n of 16 float32 numbers to ``target[offset]`` on, rounded to the nearest bfloat16 where those are."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        target, offset, value, n = args
        if sig.args[0].dtype != types.float32:
            value = builder.bitcast(builder.fptrunc(value, BFLOATS), SHORTS)

        def store(whole: bool) -> list[ir.Value]:
            _store(builder, value, builder.gep(target, [offset]), None if whole else _first(builder, n))
            return []

        _either(builder, builder.icmp_signed(">=", n, const(LANES)), store)
        return context.get_dummy_value()

    return types.void(target, types.int64, value, types.int64), codegen
