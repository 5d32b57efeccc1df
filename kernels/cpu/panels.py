"""A matrix product whose right operand is too large for the cache: panels that are prefetched one ahead.

    C[i, j] = sum over k < length of  a[i, k] * b[k, j]

    a: [k // lanes][row][k % lanes], blocks ``a_block`` apart                 b: one panel, [k][COLUMNS]
    C: [j // lanes][row][j % lanes], blocks ``c_block`` apart

A tile's rows of ``a`` are neighbours, a vector each: one pointer reaches them all, and the walk is nested, [k // lanes]
[k % lanes]. (With a pointer a row, x86 has too few registers: 7 of 14 were loaded from the stack at every step of k, 73
instructions for 28 products. With one pointer and one loop over k, 54 and the prefetches; now 50 and those.)

At most ``PASS`` steps of k are done at a time, all rows of C after one another, so that b stays in L1: 512 channels
gain 3 to 4%. While the highest tile multiplies, it asks L1 for the next block of ``a`` and for b some steps on, 3 to 5%
from 128 channels on, neither of them anything alone. In lower tiles, whose loads are as many as their products,
this lost 2 to 6%.

While a panel is multiplied, the next one is asked for: one cache line a step of k, spread over all the steps, so that
it arrives in L2 at the pace at which it will be needed. Left to the hardware, the first tile of each panel waits for
L3 (without it 512 channels of 28x28 take 23 to 37% longer, 64 channels of 56x56 as long). A second line a step is for
whatever will be wanted after the products; see ``aim``. As it costs 6% where all operands are in L1 (172 instead of
182 GFLOP/s of a peak of 203), tiles that have nothing to ask for leave it out.

Tried: prefetching C for writing (nothing, or some percent slower). With everything in L1, tiles of 9 x 3 and 6 x 4
vectors, which load less, and loops unrolled by 2 and 4 are no faster than 14 x 2.
"""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import intrinsic

from .blocking import LINE_BYTES, TILE_VECTORS
from .compile import jit
from .simd import (
    REGISTERS,
    VECTOR_BYTES,
    Vectors,
    close_phis,
    const,
    keep_whole,
    load,
    open_phis,
    pointer,
    shift,
    store,
    vector_lanes,
)
from .tiles import TILE_ROWS

MIDDLE_ROWS = 8 if TILE_ROWS > 8 else 4
LOW_ROWS = MIDDLE_ROWS // 2
NARROW_ROWS = 2 * TILE_ROWS  # of tiles of one vector
PASS = 256  # steps of k: 32 KB of b with AVX-512, 16 KB with AVX2
ROW_LINES = max(1, TILE_VECTORS * VECTOR_BYTES // LINE_BYTES)
NEAR = 8 if REGISTERS == 32 else 0  # steps by which the highest tile asks L1 for b ahead


def _make_panel_tile(height: int, second: bool = True, near: int = 0, width: int = TILE_VECTORS) -> Any:
    """An intrinsic ``(length, a, a_block, b, c, c_block, ahead, ahead_step, far, far_step, more)``.

    ``height`` rows of C, to which the products are added where ``more``. ``second`` says whether the tile prefetches
    ``far``, too, ``near`` whether ``a`` and b, and how many steps ahead. ``width``: vectors of a row
    of b and C.
    """

    @intrinsic
    def panel_tile(
        typingctx: Any, length: Any, a: Any, a_block: Any, b: Any, c: Any, c_block: Any, ahead: Any, ahead_step: Any,
        far: Any, far_step: Any, more: Any,
    ) -> Any:  # fmt: skip
        i64 = types.int64
        signature = types.void(i64, a, i64, b, c, i64, ahead, i64, ahead, i64, i64)

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            length, a, a_block, b, c, c_block, ahead, ahead_step, far, far_step, more = args
            v = Vectors(builder, sig.args[1])
            tile = [(i, j) for i in range(height) for j in range(width)]
            places = [builder.add(builder.mul(c_block, const(j)), const(i * v.lanes)) for i, j in tile]
            entry = builder.block
            again, block, step, following, end = (
                builder.append_basic_block(name) for name in ("again", "block", "step", "following", "end")
            )
            builder.cbranch(builder.icmp_signed("==", more, const(0)), block, again)
            builder.position_at_end(again)
            before = [v.load(c, place) for place in places]
            builder.branch(block)

            builder.position_at_end(block)
            start = [const(0), a, b, ahead, far]
            outer = open_phis(builder, start + [v.zero] * len(tile), entry)
            for phi, value in zip(outer, start + before, strict=True):
                phi.add_incoming(value, again)
            k, first = outer[:2]
            left = builder.sub(length, k)
            steps = builder.select(builder.icmp_signed("<", left, const(v.lanes)), left, const(v.lanes))
            last, beyond = builder.gep(first, [steps]), builder.gep(first, [a_block])
            builder.branch(step)

            builder.position_at_end(step)
            phis = open_phis(builder, [first, beyond, *outer[2:]], block)
            column, row, b_row, line, other, sums = *phis[:5], phis[5:]
            v.prefetch(line, write=False, level=2)
            if second:
                v.prefetch(other, write=False, level=2)
            if near:  # at each step a row of the next block
                v.prefetch(row, write=False, level=1)
                for j in range(width):
                    v.prefetch(builder.gep(b_row, [const((near * width + j) * v.lanes)]), write=False, level=1)
            right = [v.load(b_row, const(j * v.lanes)) for j in range(width)]
            new = []
            for i in range(height):
                splat = v.splat(builder.load(builder.gep(column, [const(i * v.lanes)]), align=v.align))
                new += [v.multiply_add(splat, right[j], sums[i * width + j]) for j in range(width)]
            column, row = builder.gep(column, [const(1)]), builder.gep(row, [const(v.lanes)])
            b_row = builder.gep(b_row, [const(width * v.lanes)])
            line, other = builder.gep(line, [ahead_step]), builder.gep(other, [far_step])
            close_phis(phis, [column, row, b_row, line, other, *new], step)
            builder.cbranch(builder.icmp_unsigned("!=", column, last), step, following)

            builder.position_at_end(following)
            k = builder.add(k, const(v.lanes))
            close_phis(outer, [k, beyond, b_row, line, other, *new], following)
            builder.cbranch(builder.icmp_signed("<", k, length), block, end)

            builder.position_at_end(end)
            for value, place in zip(new, places, strict=True):
                v.store(value, c, place)
            return context.get_dummy_value()

        return signature, codegen

    return panel_tile


high_tile = _make_panel_tile(TILE_ROWS, near=NEAR)
plain_tile = _make_panel_tile(TILE_ROWS, second=False, near=NEAR)
upper_tile = _make_panel_tile(MIDDLE_ROWS + LOW_ROWS)
middle_tile = _make_panel_tile(MIDDLE_ROWS)
low_tile = _make_panel_tile(LOW_ROWS)
narrow_high_tile = _make_panel_tile(NARROW_ROWS, width=1)
narrow_middle_tile = _make_panel_tile(2 * MIDDLE_ROWS, width=1)
narrow_low_tile = _make_panel_tile(MIDDLE_ROWS, width=1)


@jit(inline=True)
def pass_length(length, lanes):
    """The steps of a pass: all the same but the last, whole vectors."""
    passes = -(-length // PASS)
    return -(-length // (passes * lanes)) * lanes


@jit(inline=True)
def multiply_panel(height, length, a, a_block, b, c, c_block, more, ahead, aimed, kind):
    """The product for ``height`` rows; C and ``a`` must reach ``TILE_ROWS`` further.

    It is added to C where ``more`` is not 0. ``ahead`` is the next panel; ``aimed`` says what else to prefetch (see
    ``aim``).
    """
    keep_whole()
    lanes = vector_lanes(kind)
    width = 2 * lanes
    tiles = -(-height // TILE_ROWS)
    place, pieces, far_step, far_jump = load(aimed, 0), load(aimed, 1), load(aimed, 2), load(aimed, 3)
    halves = tiles < ROW_LINES and pieces == 0  # a tile by itself asks for two lines a step, one of either half
    step = width // (ROW_LINES if halves else max(1, tiles))  # each tile asks for its share of the next panel
    depth, both = pass_length(length, lanes), MIDDLE_ROWS + LOW_ROWS
    for k in range(0, length, depth):
        n = min(depth, length - k)
        a_pass, b_pass, i = shift(a, k // lanes * a_block), shift(b, k * width), 0
        while i < height:
            left = height - i
            r, to = shift(a_pass, i * lanes), shift(c, i * lanes)
            far, other_step = pointer(place, kind), far_step
            if halves:
                far, other_step = shift(ahead, length * step), step
            if left <= LOW_ROWS:
                low_tile(n, r, a_block, b_pass, to, c_block, ahead, step, far, other_step, more + k)
                i += LOW_ROWS
            elif left <= MIDDLE_ROWS or left == 2 * MIDDLE_ROWS:
                middle_tile(n, r, a_block, b_pass, to, c_block, ahead, step, far, other_step, more + k)
                i += MIDDLE_ROWS
            elif left <= both < TILE_ROWS:
                upper_tile(n, r, a_block, b_pass, to, c_block, ahead, step, far, other_step, more + k)
                i += both
            elif pieces > 0 or halves:
                high_tile(n, r, a_block, b_pass, to, c_block, ahead, step, far, other_step, more + k)
                i += TILE_ROWS
            else:
                plain_tile(n, r, a_block, b_pass, to, c_block, ahead, step, far, other_step, more + k)
                i += TILE_ROWS
            ahead = shift(ahead, n * step)
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
