"""A matrix product whose right operand is too large for the cache: panels that are prefetched one ahead.

    C[i, j] = sum over k < length of  a[i, k] * b[k, j]

    a: [k // lanes][row][k % lanes], blocks ``a_block`` apart                 b: one panel, [k][COLUMNS]
    C: [j // lanes][row][j % lanes], blocks ``c_block`` apart

A tile's rows of ``a`` are neighbours, a vector each: one pointer reaches them all. (With a pointer a row, x86 has too
few registers: 7 of 14 were loaded from the stack at every step of k, 73 instructions for 28 products instead of 57.)

While a panel is multiplied, the next one is asked for: one cache line a step of k, spread over all the steps, so that
it arrives in L2 at the pace at which it will be needed. Left to the hardware, the first tile of each panel waits for
L3 (without it 512 channels of 28x28 take 23 to 37% longer, 64 channels of 56x56 as long). A second line a step is for
whatever will be wanted after the products; see ``aim``. As it costs 6% where all operands are in L1 (172 instead of
182 GFLOP/s of a peak of 203), tiles that have nothing to ask for leave it out.

Tried: prefetching C for writing (nothing, or some percent slower); a nested walk over [channel][row][line] in the loop:
LLVM loads all rows first and spills accumulators (half the speed). With everything in L1, tiles of 9 x 3 and 6 x 4
vectors, which load less, and loops unrolled by 2 and 4 are no faster than 14 x 2.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .blocking import TILE_VECTORS
from .compile import jit
from .simd import (
    I32,
    TILE_ROWS,
    _close,
    _int,
    _phis,
    _Vectors,
    keep_whole,
    load,
    pointer,
    shift,
    store,
    vector_lanes,
)

MIDDLE_ROWS = 8 if TILE_ROWS > 8 else 4
LOW_ROWS = MIDDLE_ROWS // 2


def _make_panel_tile(height: int, second: bool = True) -> Any:
    """An intrinsic ``(length, a, a_block, b, c, c_block, ahead, ahead_step, far, far_step)``: ``height`` rows of C.

    ``second`` says whether it prefetches ``far``, too.
    """

    @intrinsic
    def panel_tile(
        typingctx: Any, length: Any, a: Any, a_block: Any, b: Any, c: Any, c_block: Any, ahead: Any, ahead_step: Any,
        far: Any, far_step: Any,
    ) -> Any:  # fmt: skip
        i64 = types.int64
        signature = types.void(i64, a, i64, b, c, i64, ahead, i64, ahead, i64)

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            length, a, a_block, b, c, c_block, ahead, ahead_step, far, far_step = args
            v = _Vectors(builder, sig.args[1])
            width = TILE_VECTORS
            jump = builder.sub(a_block, _int(v.lanes))
            entry = builder.block
            loop, end = (builder.append_basic_block(name) for name in ("k", "end"))
            builder.branch(loop)
            builder.position_at_end(loop)
            phis = _phis(builder, [_int(0), b, ahead, far] + [v.zero] * (height * width), entry)
            k, b_row, line, other, sums = phis[0], phis[1], phis[2], phis[3], phis[4:]
            hint = [ir.Constant(I32, n) for n in (0, 2, 1)]  # for reading, into L2, data
            v.call("llvm.prefetch.p0", ir.VoidType(), line, *hint)
            if second:
                v.call("llvm.prefetch.p0", ir.VoidType(), other, *hint)
            right = [v.load(b_row, _int(j * v.lanes)) for j in range(width)]
            blocks = builder.mul(builder.lshr(k, _int(v.lanes.bit_length() - 1)), jump)
            column = builder.gep(a, [builder.add(k, blocks)])
            new = []
            for i in range(height):
                left = v.splat(builder.load(builder.gep(column, [_int(i * v.lanes)]), align=v.align))
                new += [v.multiply_add(left, right[j], sums[i * width + j]) for j in range(width)]
            next_k = builder.add(k, _int(1))
            next_row = builder.gep(b_row, [_int(width * v.lanes)])
            _close(
                phis, [next_k, next_row, builder.gep(line, [ahead_step]), builder.gep(other, [far_step]), *new], loop
            )
            builder.cbranch(builder.icmp_signed("<", next_k, length), loop, end)
            builder.position_at_end(end)
            for i in range(height):
                for j in range(width):
                    v.store(new[i * width + j], c, builder.add(builder.mul(c_block, _int(j)), _int(i * v.lanes)))
            return context.get_dummy_value()

        return signature, codegen

    return panel_tile


_high = _make_panel_tile(TILE_ROWS)
_plain = _make_panel_tile(TILE_ROWS, second=False)
_middle = _make_panel_tile(MIDDLE_ROWS)
_low = _make_panel_tile(LOW_ROWS)


@jit(inline=True)
def multiply_panel(height, length, a, a_block, b, c, c_block, ahead, aimed, kind):
    """The product for ``height`` rows; C and ``a`` must reach ``TILE_ROWS`` further.

    ``ahead`` is the next panel; ``aimed`` says what else to prefetch (see ``aim``).
    """
    keep_whole()
    lanes = vector_lanes(kind)
    width = 2 * lanes
    step = width // max(1, -(-height // TILE_ROWS))  # each of so many tiles asks for its share of the next panel
    i, place, pieces, far_step, far_jump = 0, load(aimed, 0), load(aimed, 1), load(aimed, 2), load(aimed, 3)
    while i < height:
        left = height - i
        r, to = shift(a, i * lanes), shift(c, i * lanes)
        if left <= LOW_ROWS:
            _low(length, r, a_block, b, to, c_block, ahead, step, pointer(place, kind), far_step)
            i += LOW_ROWS
        elif left <= MIDDLE_ROWS or left == 2 * MIDDLE_ROWS or MIDDLE_ROWS < left <= MIDDLE_ROWS + LOW_ROWS < TILE_ROWS:
            _middle(length, r, a_block, b, to, c_block, ahead, step, pointer(place, kind), far_step)
            i += MIDDLE_ROWS
        elif pieces > 0:
            _high(length, r, a_block, b, to, c_block, ahead, step, pointer(place, kind), far_step)
            i += TILE_ROWS
        else:
            _plain(length, r, a_block, b, to, c_block, ahead, step, pointer(place, kind), far_step)
            i += TILE_ROWS
        ahead = shift(ahead, length * step)
        if pieces > 0:
            pieces -= 1
            place += far_jump
    store(aimed, 0, place)
    store(aimed, 1, pieces)


@jit(inline=True)
def aim(aimed, place, pieces, length, jump, steps, size):
    """Let each of the next ``pieces`` tiles prefetch ``length`` elements from ``place``, then ``jump`` elements on."""
    store(aimed, 0, place)
    store(aimed, 1, pieces)
    store(aimed, 2, -(-length // steps))
    store(aimed, 3, jump * size)
