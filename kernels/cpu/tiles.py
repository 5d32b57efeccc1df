"""Register tiles: the inner loops of every product, generated for the target's vectors and registers.

    C[i][:] (+)= sum over segments t and k < length of  a[rows[i] + segments[t] + k * step] * b[t, k][:]

            b: one row of COLUMNS numbers a step, packed            A tile holds TILE_ROWS x 2 vectors. The rows
              +--------+--------+                                   of ``a`` are read in place: ``rows`` says where
    a[..] ->  |  acc   |  acc   |  x TILE_ROWS                      each begins, ``segments`` where its pieces are.
              +--------+--------+

``tile`` multiplies a vector of b by one number of ``a`` (a matrix product); ``output_tile`` does so and finishes its
sums in registers: bias, residual, activation; narrow ones use the first vector of each row of b alone, wide ones hold
WIDE_ROWS x 4 vectors of two tile columns, and load 10 times for 24 products instead of 16 for 28. ``lane_tile``
multiplies a vector of b by a vector of ``a`` (every lane is a product of its own: depthwise and grouped convolution).
``pixel_tile`` is the product with the operands' roles exchanged:

    C[i][:] = sum over k < depth of  a[k, i] * b[offsets[k] + :]

The numbers are packed (weights), the vectors are read in place (pixels, through a table of offsets): PIXEL_ROWS x 3
vectors, or 2 or 1 at the end of a row. All serve float32 and float64. Winograd's tiles are in ``panels``.
"""

from __future__ import annotations

import itertools
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .blocking import PIXEL_VECTORS, TILE_VECTORS
from .simd import INDEX, REGISTERS, Vectors, close_phis, const, open_phis

TILE_ROWS = (REGISTERS - TILE_VECTORS - 1) // TILE_VECTORS  # the others hold a row of b and a number of a
SMALL_ROWS = TILE_ROWS // 2
WIDE_ROWS = (REGISTERS - 2 * TILE_VECTORS - 1) // (2 * TILE_VECTORS)
PAIRS = REGISTERS == 32  # of 16 registers, wide tiles would have 8 sums
NEAR = 16
"""Steps by which wide tiles ask L1 for weights; 4 to 64 make no difference, none costs 2 to 4% from 256 channels on."""
AHEAD = 64
"""Steps by which output tiles ask for weights before they use them: in a network those lie beyond the caches. 512 to
2048 channels on 7 x 7, weights from memory, two threads: 696 us without, 575 with 24, 64 or 128 steps; 3x3 stride 2 of
512 channels on 14 x 14 1497 and 1090. Weights in L2: no difference. Asking for the next tile column instead, a line a
step, gained 5% more on the first and nothing on the second, whose columns are too large for L2."""
PIXEL_ROWS = 8 if REGISTERS == 32 else 4  # of three vectors each: 24 or 12 sums, a row of b and a number of a


def _tile_sums(
    builder: ir.IRBuilder, v: Vectors, first: list[ir.Value], height: int, width: int, by_lane: bool, ahead: int,
    segment_count: ir.Value, segments: ir.Value, length: ir.Value, step: ir.Value, a: ir.Value, rows: ir.Value,
    b: ir.Value, apart: ir.Value | None = None, far: ir.Value | None = None, far_step: ir.Value | None = None,
) -> list[ir.Value]:  # fmt: skip
    """The loops of a tile: ``first`` and its products, ``height x width`` vectors; the builder is left behind them.

    Each step asks for the row of b that is ``ahead`` steps on (0: none). In wide tiles, those of two tile columns
    ``apart`` elements apart, L1 is asked for it, and L2 for a line at ``far``, which moves on by ``far_step``.
    """
    starts = [builder.gep(a, [builder.load(builder.gep(rows, [const(i)]))]) for i in range(height)]
    entry = builder.block
    segment, inner, following, end = (builder.append_basic_block(n) for n in ("segment", "k", "next", "end"))
    builder.branch(segment)

    builder.position_at_end(segment)
    walks = [b] if far is None else [b, far]
    outer_phis = open_phis(builder, [const(0), *walks, *first], entry)
    t, outer_walks, outer_sums = outer_phis[0], outer_phis[1 : 1 + len(walks)], outer_phis[1 + len(walks) :]
    offset = builder.load(builder.gep(segments, [t]))
    pointers = [builder.gep(start, [offset]) for start in starts]
    builder.branch(inner)

    builder.position_at_end(inner)
    inner_phis = open_phis(builder, [const(0), const(0), *outer_walks, *outer_sums], segment)
    k, position, walks, sums = *inner_phis[:2], inner_phis[2 : 2 + len(walks)], inner_phis[2 + len(walks) :]
    b_rows = [walks[0]] if apart is None else [walks[0], builder.gep(walks[0], [apart])]
    places = [(row, j) for row in b_rows for j in range(min(width, TILE_VECTORS))]
    right = [v.load(row, const(j * v.lanes)) for row, j in places]
    for line in walks[1:]:
        v.prefetch(line, write=False, level=2)
    for row, j in places if ahead else ():
        line = builder.gep(row, [const((ahead * TILE_VECTORS + j) * v.lanes)])
        v.prefetch(line, write=False, level=2 if apart is None else 1)
    new = []
    for i in range(height):
        if by_lane:
            left = [v.load(pointers[i], builder.add(position, const(j * v.lanes))) for j in range(width)]
        else:
            left = [v.splat(builder.load(builder.gep(pointers[i], [position]), align=v.align))] * width
        new += [v.multiply_add(left[j], right[j], sums[i * width + j]) for j in range(width)]
    next_k = builder.add(k, const(1))
    steps = [const(TILE_VECTORS * v.lanes), far_step]
    next_walks = [builder.gep(walk, [step]) for walk, step in zip(walks, steps, strict=False)]
    close_phis(inner_phis, [next_k, builder.add(position, step), *next_walks, *new], inner)
    builder.cbranch(builder.icmp_signed("<", next_k, length), inner, following)

    builder.position_at_end(following)
    next_t = builder.add(t, const(1))
    close_phis(outer_phis, [next_t, *next_walks, *new], following)
    builder.cbranch(builder.icmp_signed("<", next_t, segment_count), segment, end)
    builder.position_at_end(end)
    return new


def _make_tile(height: int, by_lane: bool) -> Any:
    """An intrinsic ``(segment_count, segments, length, step, a, rows, b, c, ldc, accumulate)``."""

    @intrinsic
    def tile(
        typingctx: Any, segment_count: Any, segments: Any, length: Any, step: Any,
        a: Any, rows: Any, b: Any, c: Any, ldc: Any, accumulate: Any,
    ) -> Any:  # fmt: skip
        i64 = types.int64
        signature = types.void(i64, INDEX, i64, i64, a, INDEX, b, c, i64, i64)

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            *operands, c, ldc, accumulate = args
            v = Vectors(builder, sig.args[4])
            first = [v.zero] * (height * TILE_VECTORS)
            sums = _tile_sums(builder, v, first, height, TILE_VECTORS, by_lane, 0, *operands)
            # C is read last: loading it first would stall the first products
            plain, plus, done = (builder.append_basic_block(n) for n in ("plain", "plus", "done"))
            builder.cbranch(builder.icmp_signed("!=", accumulate, const(0)), plus, plain)
            for block in (plain, plus):
                builder.position_at_end(block)
                for n, value in enumerate(sums):
                    i, j = divmod(n, TILE_VECTORS)
                    where = builder.add(builder.mul(ldc, const(i)), const(j * v.lanes))
                    v.store(value if block is plain else builder.fadd(v.load(c, where), value), c, where)
                builder.branch(done)
            builder.position_at_end(done)
            return context.get_dummy_value()

        return signature, codegen

    return tile


tile = _make_tile(TILE_ROWS, by_lane=False)
small_tile = _make_tile(SMALL_ROWS, by_lane=False)
lane_tile = _make_tile(TILE_ROWS, by_lane=True)
small_lane_tile = _make_tile(SMALL_ROWS, by_lane=True)


def _make_output_tile(height: int, width: int) -> Any:
    """An intrinsic ``(segment_count, segments, length, step, a, rows, b, c, ldc, count, columns, bias, residual, ldr,
    activation)``: a tile that finishes its sums in registers. Wide tiles take ``apart, far, far_step`` after b.

        C[i][:columns] = activation(bias[:columns] + the tile's sums + residual[i][:columns])    for i < count

    ``ldr`` -1: no residual. ``activation``: none, RELU or RELU6. Nothing else is read of bias and residual, nothing
    else is written.

    Asking for the next tile's rows of ``a`` as well, a line a step, took 3% more time where they were in L2 and saved 4
    to 10% where they were not (256 to 64 channels on 56 x 56), in wide tiles took 0 to 4% more: not done. Wide tiles do
    not ask for their output: 24 lines at once hold up the first loads (1x1 layers 3 to 5% slower). Storing rows beyond
    ``count`` first, where the last one will be, instead of branching for each: 1 to 7% slower in wide tiles.
    """

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        *operands, c, ldc, count, columns, bias, residual, ldr, activation = args
        v, ahead = Vectors(builder, sig.args[4]), AHEAD if width <= TILE_VECTORS else NEAR
        at = [const(j * v.lanes) for j in range(width)]
        left = [builder.sub(columns, offset) for offset in at]
        masks = [v.first(n) for n in left]
        alone = builder.icmp_signed("<", ldr, const(0))
        places = [[builder.add(builder.mul(ldc, const(i)), offset) for offset in at] for i in range(height)]
        extras = [[builder.add(builder.mul(ldr, const(i)), offset) for offset in at] for i in range(height)]
        if width <= TILE_VECTORS:  # rows past ``count`` too: asking for a line never fails
            for where in itertools.chain(*places):
                v.prefetch(builder.gep(c, [where]), write=True, level=1)
        with builder.if_then(builder.not_(alone)):
            for where in itertools.chain(*extras):
                v.prefetch(builder.gep(residual, [where]), write=False, level=1)
        sums = _tile_sums(builder, v, [v.zero] * (height * width), height, width, False, ahead, *operands)
        # added last: were a large bias the first term, every product would round to its last place
        extra = [v.masked_load(bias, offset, mask) for offset, mask in zip(at, masks, strict=True)] * height
        sums = [builder.fadd(value, more) for value, more in zip(sums, extra, strict=True)]

        whole, part, done = (builder.append_basic_block(n) for n in ("whole", "part", "done"))
        lowest, highest = v.limits(activation)
        full = builder.icmp_signed(">=", columns, const(width * v.lanes))
        every = builder.icmp_signed(">=", count, const(height))
        builder.cbranch(builder.and_(full, every), whole, part)
        builder.position_at_end(whole)
        finished = v.sums_if(builder.not_(alone), sums, residual, list(itertools.chain(*extras)))
        for value, where in zip(finished, itertools.chain(*places), strict=True):
            v.store(v.clamp(value, lowest, highest), c, where)
        builder.branch(done)
        builder.position_at_end(part)
        for i in range(height):
            row = sums[i * width : (i + 1) * width]
            with builder.if_then(builder.icmp_signed("<", const(i), count)):
                row = v.sums_if(builder.not_(alone), row, residual, extras[i], masks)
                for value, where, n in zip(row, places[i], left, strict=True):
                    v.store_first(v.clamp(value, lowest, highest), c, where, n)
        builder.branch(done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    i64 = types.int64
    if width > TILE_VECTORS:

        @intrinsic
        def wide_tile(
            typingctx: Any, segment_count: Any, segments: Any, length: Any, step: Any, a: Any, rows: Any, b: Any,
            apart: Any, far: Any, far_step: Any, c: Any, ldc: Any, count: Any, columns: Any, bias: Any, residual: Any,
            ldr: Any, activation: Any,
        ) -> Any:  # fmt: skip
            operands = i64, INDEX, i64, i64, a, INDEX, b, i64, far, i64
            return types.void(*operands, c, i64, i64, i64, bias, residual, i64, i64), codegen

        return wide_tile

    @intrinsic
    def output_tile(
        typingctx: Any, segment_count: Any, segments: Any, length: Any, step: Any, a: Any, rows: Any, b: Any, c: Any,
        ldc: Any, count: Any, columns: Any, bias: Any, residual: Any, ldr: Any, activation: Any,
    ) -> Any:  # fmt: skip
        return types.void(i64, INDEX, i64, i64, a, INDEX, b, c, i64, i64, i64, bias, residual, i64, i64), codegen

    return output_tile


output_tile = _make_output_tile(TILE_ROWS, TILE_VECTORS)
small_output_tile = _make_output_tile(SMALL_ROWS, TILE_VECTORS)
narrow_output_tile = _make_output_tile(TILE_ROWS, 1)
wide_output_tile = _make_output_tile(WIDE_ROWS, 2 * TILE_VECTORS)
low_wide_output_tile = _make_output_tile(WIDE_ROWS - 1, 2 * TILE_VECTORS)


def _make_pixel_tile(height: int, width: int, meanwhile: str = "") -> Any:
    """An intrinsic ``(depth, offsets, a, b, c, ldc, columns, bias, residual, ldr, activation)``.

        C[i][:columns] = activation(bias[i] + the tile's sums + residual[i][:columns])

    The first ``columns`` sums end in the last vector. ``bias`` 0: none, ``ldr`` -1: no residual. ``activation``: none,
    RELU or RELU6. What there is not is passed by: of 27 steps, bias and limits take 10%.

    ``meanwhile`` "asking": each step asks for one line at ``ahead``, which moves on by ``ahead_step``, two more
    arguments: what is packed next is fetched while the products run. That takes 4% of their time.

    ``meanwhile`` "moving": ``offsets`` is a number, the elements from one row of b to the next, and there are six more
    arguments, ``source, target, wide, left, source_step, target_step``: each step also copies one vector. They lie in
    rows of ``wide`` vectors, a step apart; of the first row ``left`` are to be copied. What lies PIXEL_VECTORS vectors
    behind each is asked for. The ports for loads and stores are half idle in a step of 24 products.
    """
    moving = meanwhile == "moving"

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        depth, offsets, a, b, c, ldc, columns, bias, residual, ldr, activation, *more = args
        v = Vectors(builder, sig.args[2])
        rows = [builder.gep(c, [builder.mul(ldc, const(i))]) for i in range(height)]
        for row in rows:
            for j in range(width):
                v.prefetch(builder.gep(row, [const(j * v.lanes)]), write=True, level=1)
        sums = [v.zero] * (height * width)
        entry, loop, end = builder.block, builder.append_basic_block("k"), builder.append_basic_block("end")
        builder.branch(loop)

        builder.position_at_end(loop)
        walks = [b, *more[:2], more[3]] if moving else more[:1]
        phis = open_phis(builder, [const(0), a, *walks, *sums], entry)
        k, a_row, walks, sums = phis[0], phis[1], phis[2 : 2 + len(walks)], phis[2 + len(walks) :]
        if moving:
            b_row, source, target, left = walks
            _, _, wide, _, source_step, target_step = more
            v.prefetch(builder.gep(source, [const((PIXEL_VECTORS + 1) * v.lanes - 1)]), write=False, level=2)
            where = const(0)
        else:
            b_row, where = b, builder.load(builder.gep(offsets, [k]))
        if meanwhile == "asking":
            v.prefetch(walks[0], write=False, level=2)
        right = [v.load(b_row, builder.add(where, const(j * v.lanes))) for j in range(width)]
        new = []
        for i in range(height):
            number = v.splat(builder.load(builder.gep(a_row, [const(i)]), align=v.align))
            new += [v.multiply_add(number, right[j], sums[i * width + j]) for j in range(width)]
        if moving:
            v.store(v.load(source, const(0)), target, const(0))
            last = builder.icmp_signed("==", left, const(1))  # of the row: on to the next one
            back = builder.mul(builder.sub(wide, const(1)), const(v.lanes))
            steps = [builder.select(last, builder.sub(n, back), const(v.lanes)) for n in (source_step, target_step)]
            left = builder.select(last, wide, builder.sub(left, const(1)))
            after = [builder.gep(b_row, [offsets]), *map(builder.gep, (source, target), ([n] for n in steps)), left]
        else:
            after = [builder.gep(walk, more[1:]) for walk in walks]
        next_k = builder.add(k, const(1))
        close_phis(phis, [next_k, builder.gep(a_row, [const(height)]), *after, *new], loop)
        builder.cbranch(builder.icmp_signed("<", next_k, depth), loop, end)

        builder.position_at_end(end)
        given = builder.icmp_unsigned("!=", builder.ptrtoint(bias, const(0).type), const(0))
        new = v.biased_if(given, new, bias, width)
        left = builder.sub(columns, const((width - 1) * v.lanes))
        extras = [builder.add(builder.mul(ldr, const(n // width)), const(n % width * v.lanes)) for n in range(len(new))]
        masks = ([None] * (width - 1) + [v.first(left)]) * height
        new = v.sums_if(builder.icmp_signed(">=", ldr, const(0)), new, residual, extras, masks)
        new = v.limited_if(builder.icmp_signed("!=", activation, const(0)), new, activation)
        for i, row in enumerate(rows):
            for j in range(width - 1):
                v.store(new[i * width + j], row, const(j * v.lanes))
        with builder.if_else(builder.icmp_signed(">=", left, const(v.lanes))) as (whole, part):
            with whole:
                for i, row in enumerate(rows):
                    v.store(new[(i + 1) * width - 1], row, const((width - 1) * v.lanes))
            with part:
                for i, row in enumerate(rows):
                    v.store_first(new[(i + 1) * width - 1], row, const((width - 1) * v.lanes), left)
        return context.get_dummy_value()

    i64 = types.int64
    if moving:

        @intrinsic
        def moving_tile(
            typingctx: Any, depth: Any, pitch: Any, a: Any, b: Any, c: Any, ldc: Any, columns: Any, bias: Any,
            residual: Any, ldr: Any, activation: Any, source: Any, target: Any, wide: Any, left: Any, source_step: Any,
            target_step: Any,
        ) -> Any:  # fmt: skip
            tile = i64, i64, a, b, c, i64, i64, bias, residual, i64, i64
            return types.void(*tile, source, target, i64, i64, i64, i64), codegen

        return moving_tile

    if meanwhile:

        @intrinsic
        def asking_tile(
            typingctx: Any, depth: Any, offsets: Any, a: Any, b: Any, c: Any, ldc: Any, columns: Any, bias: Any,
            residual: Any, ldr: Any, activation: Any, ahead: Any, ahead_step: Any,
        ) -> Any:  # fmt: skip
            return types.void(i64, INDEX, a, b, c, i64, i64, bias, residual, i64, i64, ahead, i64), codegen

        return asking_tile

    @intrinsic
    def pixel_tile(
        typingctx: Any, depth: Any, offsets: Any, a: Any, b: Any, c: Any, ldc: Any, columns: Any, bias: Any,
        residual: Any, ldr: Any, activation: Any,
    ) -> Any:  # fmt: skip
        return types.void(i64, INDEX, a, b, c, i64, i64, bias, residual, i64, i64), codegen

    return pixel_tile


pixel_tile = _make_pixel_tile(PIXEL_ROWS, PIXEL_VECTORS)
pixel_tile_2 = _make_pixel_tile(PIXEL_ROWS, 2)
pixel_tile_1 = _make_pixel_tile(PIXEL_ROWS, 1)
asking_tile = _make_pixel_tile(PIXEL_ROWS, PIXEL_VECTORS, "asking")
asking_tile_2 = _make_pixel_tile(PIXEL_ROWS, 2, "asking")
asking_tile_1 = _make_pixel_tile(PIXEL_ROWS, 1, "asking")
moving_tile = _make_pixel_tile(PIXEL_ROWS, PIXEL_VECTORS, "moving")
moving_tile_2 = _make_pixel_tile(PIXEL_ROWS, 2, "moving")
moving_tile_1 = _make_pixel_tile(PIXEL_ROWS, 1, "moving")
