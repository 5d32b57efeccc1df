"""bf16x3: float32 matrix products by AMX's bfloat16 tiles, three times as fast as float32's FMA and as exact.

A float32 number has 24 significant bits, a bfloat16 number 8, so three of them make one up, exactly:

    x = x1 + x2 + x3        x1: the first 8 bits of x, cut off      |x2| <= 2**-7 |x|
                            x2: 8 bits of what is left, rounded     |x3| <= 2**-16 |x|
    x w = x1 w1 + x1 w2 + x2 w1 + x1 w3 + x2 w2 + x3 w1  (+ x2 w3 + x3 w2 + x3 w3, left out: less than 2**-21.9 |x w|)

Six bfloat16 products of 8 x 8 bits are exact in float32, where they are summed: 528 GFLOP/s of float32 products on a
core at 3.1 GHz, where FMA's registers end at 198. The same idea: oneMKL's FLOAT_TO_BF16X3, cuBLAS's BF16x9; Henry, Tang
and Heinecke, "Leveraging the bfloat16 Artificial Intelligence Datatype For Higher-Precision Computations", 2019.

Rows of both operands hold 32 numbers along the sum in three parts, 64 bytes each: the numbers c and c + 16 of a chunk
of 32 are a pair, so :func:`split` makes a row of two vectors without a shuffle.

    A  row i     [part 1 | part 2 | part 3]   a part: (x[i][0], x[i][16]), (x[i][1], x[i][17]), ...  32 numbers of a row
    B  row p     [part 1 | part 2 | part 3]   a part: (w[p][0], w[p + 16][0]), (w[p][1], w[p + 16][1]), ...  16 columns

Infinities and NaNs make every sum that they enter NaN or infinite (inf - inf is the remainder of an infinity). Parts
below 2**-126 count as zero: numbers below 2**-103 lose digits.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .amx import I8, emit
from .simd import INDEX, Vectors, close_phis, const, open_phis

CHUNK = 32  # numbers along the sum that a step multiplies
SIDE = 16  # rows and columns of a tile of C
PARTS = 3
ROW = PARTS * CHUNK  # elements of a split row, 192 bytes
BLOCK = SIDE * ROW  # of 16 rows
ORDER = ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 0))  # parts of A and of B whose product is computed
SHORTS = types.CPointer(types.int16)


def emit_split(v: Vectors, lower: ir.Value, upper: ir.Value, target: ir.Value) -> None:
    """The code of :func:`split`."""
    b = v.b
    high, half, sixteen = (ir.Constant(v.ints, [n] * v.lanes) for n in (0xFFFF0000, 0x8000, 16))
    rest = [v.load(p, const(0)) for p in (lower, upper)]
    for part in range(PARTS):
        taken = [b.bitcast(x, v.ints) for x in rest]
        if part == 1:  # rounded, where adding cannot overflow
            taken = [b.add(x, half) for x in taken]
        if part < 2:  # of the last the lower half is zero
            taken = [b.and_(x, high) for x in taken]
            rest = [b.fsub(x, b.bitcast(y, v.vector)) for x, y in zip(rest, taken, strict=True)]
        row = b.or_(b.lshr(taken[0], sixteen), taken[1])
        b.store(row, b.bitcast(b.gep(target, [const(part * CHUNK)]), v.ints.as_pointer()), align=2)


@intrinsic
def split(typingctx: Any, lower: Any, upper: Any, target: Any) -> Any:
    """One row: 16 float32 numbers at ``lower`` and 16 at ``upper`` as ``target[:96]``, three parts of pairs."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        emit_split(Vectors(builder, sig.args[0]), *args)
        return context.get_dummy_value()

    return types.void(lower, lower, SHORTS), codegen


def _make_product(height: int) -> Any:
    """An intrinsic that multiplies ``height`` blocks of 16 rows of A, ``a_block`` apart, by 16 columns of B.

    ``(segment_count, a_segments, b_segments, chunks, a, a_row, a_block, a_chunk, b, b_row, b_chunk, c, c_row, more)``:

        C[i][:] (+)= sum over segments t and chunks j of  A(t, j)[i] B(t, j)

    A(t, j) begins at ``a[a_segments[t] + j * a_chunk]``, its rows are ``a_row`` apart; B likewise. Steps count
    elements, of 2 bytes in A and B, of 4 in C, whose 16 ``height`` rows are ``c_row`` apart. ``more`` is not 0 where
    the products are added to C. B's three parts stay in registers while A's parts take turns in one: 9 loads for 12
    products of two blocks.
    """

    @intrinsic
    def product(
        typingctx: Any, segment_count: Any, a_segments: Any, b_segments: Any, chunks: Any, a: Any, a_row: Any,
        a_block: Any, a_chunk: Any, b: Any, b_row: Any, b_chunk: Any, c: Any, c_row: Any, more: Any,
    ) -> Any:  # fmt: skip
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            (
                segment_count,
                a_segments,
                b_segments,
                chunks,
                a,
                a_row,
                a_block,
                a_chunk,
                b,
                b_row,
                b_chunk,
                c,
                c_row,
                more,
            ) = args
            a_bytes, b_bytes, c_bytes = (
                builder.mul(step, const(size)) for step, size in ((a_row, 2), (b_row, 2), (c_row, 4))
            )

            def at(pointer: ir.Value, offset: ir.Value) -> ir.Value:
                return builder.bitcast(builder.gep(pointer, [offset]), I8.as_pointer())

            def corner(i: int) -> ir.Value:
                return at(c, builder.mul(c_row, const(i * SIDE)))

            with builder.if_else(builder.icmp_signed("==", more, const(0))) as (alone, added):
                with alone:
                    for i in range(height):
                        emit(builder, "tilezero", i)
                with added:
                    for i in range(height):
                        emit(builder, "tileloadd64", i, corner(i), c_bytes)
            entry = builder.block
            segment, step, following, end = (
                builder.append_basic_block(name) for name in ("segment", "step", "following", "end")
            )
            builder.branch(segment)

            builder.position_at_end(segment)
            outer = open_phis(builder, [const(0)], entry)
            (t,) = outer
            left, right = (
                builder.gep(p, [builder.load(builder.gep(table, [t]))])
                for p, table in ((a, a_segments), (b, b_segments))
            )
            builder.branch(step)

            builder.position_at_end(step)
            inner = open_phis(builder, [const(0), left, right], segment)
            j, left, right = inner
            first = height + 1  # the register of B's first part
            for part in range(PARTS):
                emit(builder, "tileloadd64", first + part, at(right, const(part * CHUNK)), b_bytes)
            for part in range(PARTS):
                for i in range(height):
                    offset = builder.add(builder.mul(a_block, const(i)), const(part * CHUNK))
                    emit(builder, "tileloadd64", height, at(left, offset), a_bytes)
                    for mine, other in ORDER:
                        if mine == part:
                            emit(builder, "tdpbf16ps", i, height, first + other)
            after = builder.add(j, const(1))
            close_phis(inner, [after, builder.gep(left, [a_chunk]), builder.gep(right, [b_chunk])], step)
            builder.cbranch(builder.icmp_signed("<", after, chunks), step, following)

            builder.position_at_end(following)
            t = builder.add(t, const(1))
            close_phis(outer, [t], following)
            builder.cbranch(builder.icmp_signed("<", t, segment_count), segment, end)

            builder.position_at_end(end)
            for i in range(height):
                emit(builder, "tilestored64", i, corner(i), c_bytes)
            return context.get_dummy_value()

        i64 = types.int64
        return types.void(
            i64, INDEX, INDEX, i64, SHORTS, i64, i64, i64, SHORTS, i64, i64, types.CPointer(types.float32), i64, i64
        ), codegen

    return product


product_1, product_2 = _make_product(1), _make_product(2)
