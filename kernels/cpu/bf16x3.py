"""bf16x3: float32 matrix products by AMX's bfloat16 tiles, twice as fast as float32's FMA and as exact.

A float32 number has 24 significant bits, a bfloat16 number 8, so three of them make one up, exactly:

    x = x1 + x2 + x3        x1: x rounded to 8 bits                 |x2| <= 2**-8 |x|
                            x2: what is left, rounded to 8 bits     |x3| <= 2**-17 |x|
    x w = x1 w1 + x1 w2 + x2 w1 + x1 w3 + x2 w2 + x3 w1  (+ x2 w3 + x3 w2 + x3 w3, left out: less than 2**-23.9 |x w|)

Six bfloat16 products of 8 x 8 bits are exact in float32, where they are summed. On a core at 3.1 GHz that is 528
GFLOP/s of float32 products at most, where FMA's registers end at 198; 310 to 430 were measured with operands in L2, FMA
tiles reach 165 to 180. (The core slows down by what the numbers are: 20% faster with zeros.) The same idea: oneMKL's
FLOAT_TO_BF16X3, cuBLAS's BF16x9; Henry, Tang and Heinecke, "Leveraging the bfloat16 Artificial Intelligence Datatype
For Higher-Precision Computations", 2019.

Rows of both operands hold 32 numbers along the sum in three parts, 64 bytes each: the numbers c and c + 16 of a chunk
of 32 are a pair, so :func:`split` makes a row of two vectors without a shuffle.

    A  row i     [part 1 | part 2 | part 3]   a part: (x[i][0], x[i][16]), (x[i][1], x[i][17]), ...  32 numbers of a row
    B  row p     [part 1 | part 2 | part 3]   a part: (w[p][0], w[p + 16][0]), (w[p][1], w[p + 16][1]), ...  16 columns

Infinities and NaNs make every sum that they enter NaN or infinite (inf - inf is the remainder of an infinity), and
numbers from 2**128 - 2**119 on, that a bfloat16 number rounds to infinity, count as infinite. What is below 2**-126
counts as zero, parts as well as their products: numbers below 2**-103 lose digits, and so do products below 2**-102.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .amx import I8, emit
from .simd import Vectors, const

CHUNK = 32  # numbers along the sum that a step multiplies
SIDE = 16  # rows and columns of a tile of C
PARTS = 3
ROW = PARTS * CHUNK  # elements of a split row, 192 bytes
BLOCK = SIDE * ROW  # of 16 rows
STEPS = ((2, 0), (1, 0), (1, 1), (0, 1), (0, 2), (0, 0))  # parts of A and of B that are multiplied in turn
SHORTS = types.CPointer(types.int16)


def store_parts(v: Vectors, rows: list[ir.Value], target: ir.Value, parts: int = PARTS) -> None:
    """Two vectors, lane by lane a pair, in parts that lie one behind the other."""
    b = v.b
    high, half, sixteen = (ir.Constant(v.ints, [n] * v.lanes) for n in (0xFFFF0000, 0x8000, 16))
    for part in range(parts):
        taken = [b.bitcast(x, v.ints) for x in rows]
        if part < PARTS - 1:  # rounded, half away from zero
            taken = [b.and_(b.add(x, half), high) for x in taken]
            rows = [b.fsub(x, b.bitcast(y, v.vector)) for x, y in zip(rows, taken, strict=True)]
        # of the last part the lower half is zero; a NaN's spoils its pair, but both are in one sum
        row = b.or_(b.lshr(taken[0], sixteen), taken[1])
        b.store(row, b.bitcast(b.gep(target, [const(part * CHUNK)]), v.ints.as_pointer()), align=2)


@intrinsic
def split(typingctx: Any, lower: Any, upper: Any, target: Any) -> Any:
    """One row: 16 float32 numbers at ``lower`` and 16 at ``upper`` as ``target[:96]``, three parts of pairs."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        v = Vectors(builder, sig.args[0])
        store_parts(v, [v.load(p, const(0)) for p in args[:2]], args[2])
        return context.get_dummy_value()

    return types.void(lower, lower, SHORTS), codegen


def multiply_chunk(
    b: ir.IRBuilder, height: int, width: int, steps: tuple[tuple[int, int], ...], left: ir.Value, a_block: ir.Value,
    right: ir.Value, b_block: ir.Value, row_bytes: ir.Value,
) -> None:  # fmt: skip
    """Add the products of those parts of a chunk to ``height * width`` blocks of C, held in the first registers.

    Parts are loaded when they are needed, each time only those of one side: 14 loads for 24 products of 2 x 2 blocks.
    The largest products come last, so that less of the small ones is lost to rounding.
    """
    mine = [height * width + n for n in range(height)]  # registers of A, then of B
    other = [height * width + height + n for n in range(width)]
    held = (-1, -1)
    for parts in steps:
        for k, (registers, operand, block) in enumerate(((mine, left, a_block), (other, right, b_block))):
            for n, register in enumerate(registers if held[k] != parts[k] else ()):
                offset = b.add(b.mul(block, const(n)), const(parts[k] * CHUNK))
                emit(b, "tileloadd64", register, byte_pointer(b, operand, offset), row_bytes)
        held = parts
        for n in range(height * width):
            emit(b, "tdpbf16ps", n, mine[n // width], other[n % width])


def byte_pointer(b: ir.IRBuilder, pointer: ir.Value, offset: ir.Value) -> ir.Value:
    return b.bitcast(b.gep(pointer, [offset]), I8.as_pointer())
