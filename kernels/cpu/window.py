"""Register tiles for sliding windows: each vector loaded serves several outputs.

Outputs lie on lines of vectors; the kernel's taps run down the lines, so a line of input serves as many lines of
output as the kernel is high (3 taps, 4 of the LINES of output):

    input lines  j            out[i] += weight[j - i] * in[j]          out lines  i
      0  ~~~~~~~~ ------------------------------------------------------>  0 ~~~~~~~~
      1  ~~~~~~~~ -------------------------------------------------> 0 1   1 ~~~~~~~~
      2  ~~~~~~~~ --------------------------------------------> 0 1 2      2 ~~~~~~~~
      3  ~~~~~~~~ ---------------------------------------> 1 2 3           3 ~~~~~~~~
      4  ~~~~~~~~ ----------------------------------> 2 3
      5  ~~~~~~~~ -----------------------------> 3                      LINES x WIDTH vectors of sums in registers

The lines are found through a table of addresses, so padding is a line of zeros, and a stride is an order of the table:
the even lines first, then the odd ones, and the taps of each parity run down consecutive entries. A tile sums one *run*
of consecutive taps a segment, or two (``(2, 1)``: three taps at stride 2). Taps across the lines, further input
channels and planes are the segments: rows of (table index, offset, first position).

Lanes are output pixels of a row, and a weight is one number; or lanes are channels, each with weights of its own.
Lanes outside ``[0, limit)`` are zeros. Where multiply-adds can skip lanes (AVX-512) whole vectors are loaded, and what
lies beside a row must be readable; elsewhere, and of the last channels, the loads are masked. On Intel a masked load
takes a slot of the FMA ports too (7x7 kernels on 56 pixel rows: 14% of the time, 5x5 at stride 2: 10%; with lanes of
channels 5 to 10%).
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .depthwise_plan import RUNS, TILES
from .simd import I32, INDEX, REGISTERS, VECTOR_BYTES, Vectors, close_phis, const, open_phis

LINES, WIDTH = (7, 2) if REGISTERS == 32 else (8, 1)
"""Lines of a tile, vectors in each. Of 32 registers 7 are left for weights; of 16, 8 x 1 leaves as many as 4 x 2, loads
less (10 vectors a segment of 3 taps instead of 12) and needs one mask instead of two."""
TALL = 2 * LINES if WIDTH > 1 else 0
"""Lines of a tile of one vector, where rows have no more and more than LINES are left: half as many tiles to begin and
end, and fewer lines are loaded twice (576 channels of 14 x 14: 65 to 57 us, 16 images 1000 to 830)."""
NARROW, WIDE, HIGH = 0, 1, 2
"""Forms of a tile: LINES x 1, LINES x WIDTH, TALL x 1."""
MERGES = VECTOR_BYTES == 64  # multiply-adds can skip lanes


class _Tile:
    """The IR of one tile at a builder's position."""

    def __init__(
        self, builder: ir.IRBuilder, v: Vectors, form: int, by_lane: bool, runs: tuple[int, ...] = (), step: int = 1
    ) -> None:
        self.b, self.v, self.by_lane, self.runs, self.step = builder, v, by_lane, runs, step
        self.width, self.lines = WIDTH if form == WIDE else 1, TALL if form == HIGH else LINES
        self.merges = MERGES and not by_lane

    def mask(self, position: ir.Value, limit: ir.Value, part: int, step: int = 1, again: bool = False) -> ir.Value:
        """Lanes l with 0 <= position + step * (part * lanes + l) < limit; ``again``: so that LLVM does not see that it
        is the same mask."""
        v, b = self.v, self.b
        undefined = ir.Constant(v.ints, ir.Undefined)

        def splat(value: ir.Value) -> ir.Value:
            vector = b.insert_element(undefined, b.trunc(value, I32), ir.Constant(I32, 0))
            return b.shuffle_vector(vector, undefined, ir.Constant(v.ints, [0] * v.lanes))

        ramp = ir.Constant(v.ints, [step * (part * v.lanes + lane) for lane in range(v.lanes)])
        lane = b.add(splat(position), ramp)
        if not again:
            return b.icmp_unsigned("<", lane, splat(limit))
        none = ir.Constant(v.ints, [0] * v.lanes)
        return b.and_(b.icmp_signed(">=", lane, none), b.icmp_signed("<", lane, splat(limit)))

    def weights(self, weights: ir.Value, first: int, height: int) -> list[list[ir.Value]]:
        """The weights of a run, ``[tap][vector]``."""
        v, b = self.v, self.b
        if self.by_lane:
            return [
                [v.load(weights, const((first + r) * WIDTH * v.lanes + j * v.lanes)) for j in range(self.width)]
                for r in range(height)
            ]
        numbers = [b.load(b.gep(weights, [const(first + r)]), align=v.align) for r in range(height)]
        return [[v.splat(number)] * self.width for number in numbers]

    def line(self, lines: ir.Value, index: ir.Value, offset: ir.Value, masks: list[ir.Value]) -> list[ir.Value]:
        address = self.b.load(self.b.gep(lines, [index]))
        start = self.b.gep(self.b.inttoptr(address, self.v.element.as_pointer()), [offset])
        if self.merges or not masks:
            loaded = [self.v.load(start, const(j * self.v.lanes)) for j in range(self.width * self.step)]
        else:
            loaded = [self.v.masked_load(start, const(j * self.v.lanes), mask) for j, mask in enumerate(masks)]
        if self.step == 1:
            return loaded
        evens = ir.Constant(self.v.ints, list(range(0, 2 * self.v.lanes, 2)))
        return [self.b.shuffle_vector(*loaded[j : j + 2], evens) for j in range(0, len(loaded), 2)]

    def add_runs(
        self, sums: list[ir.Value], lines: ir.Value, index: ir.Value, second: ir.Value, offset: ir.Value,
        masks: list[ir.Value], weights: ir.Value,
    ) -> list[ir.Value]:  # fmt: skip
        new, first = list(sums), 0
        for run, height in enumerate(self.runs):
            numbers = self.weights(weights, first, height)
            start = self.b.add(index, second) if run else index
            for j in range(self.lines + height - 1):
                values = self.line(lines, self.b.add(start, const(j)), offset, masks)
                for i in range(max(0, j - height + 1), min(self.lines, j + 1)):
                    for part in range(self.width):
                        at = i * self.width + part
                        after = self.v.multiply_add(values[part], numbers[j - i][part], new[at])
                        if self.merges:
                            mask = masks[part + (j - i) % 2 * self.width]
                            after = self.b.select(mask, after, new[at])
                        new[at] = after
            first += height
        return new

    def finished(self, sums: list[ir.Value], bias: ir.Value, masks: list[ir.Value], clamp: ir.Value) -> list[ir.Value]:
        """Bias added, and the rectifier: 1 relu, 2 relu6. A NaN stays one."""
        v, b = self.v, self.b
        if self.by_lane:
            numbers = [v.masked_load(bias, const(j * v.lanes), masks[j]) for j in range(self.width)]
        else:
            numbers = [v.splat(b.load(bias, align=v.align))] * self.width
        infinite = ir.Constant(v.element, float("inf"))
        low = b.select(b.icmp_signed(">", clamp, const(0)), ir.Constant(v.element, 0.0), b.fneg(infinite))
        high = b.select(b.icmp_signed("==", clamp, const(2)), ir.Constant(v.element, 6.0), infinite)
        low, high = v.splat(low), v.splat(high)
        out = []
        for i, value in enumerate(sums):
            value = b.fadd(value, numbers[i % self.width])
            value = b.select(b.fcmp_ordered("<", value, low), low, value)
            out.append(b.select(b.fcmp_ordered(">", value, high), high, value))
        return out

    def store(
        self, values: list[ir.Value], out: ir.Value, ld: ir.Value, height: ir.Value, spare: ir.Value, columns: ir.Value
    ) -> None:
        b, v = self.b, self.v
        ld = v.opaque(ld)  # else LLVM computes the rows' addresses, of every form, before the tiles of a row

        def rows(store: Any) -> None:
            for i in range(self.lines):
                inside = b.icmp_signed("<", const(i), height)
                row = b.select(inside, b.gep(out, [b.mul(ld, const(i))]), spare)
                for j in range(self.width):
                    store(values[i * self.width + j], row, const(j * v.lanes))

        def first(value: ir.Value, row: ir.Value, at: ir.Value) -> None:
            v.store_first(value, row, at, b.sub(columns, at))

        if VECTOR_BYTES == 64:
            rows(first)
            return
        with b.if_else(b.icmp_signed(">=", columns, const(self.width * v.lanes))) as (whole, part):
            with whole:
                rows(v.store)
            with part:
                rows(first)


def _sum_tile(tile: _Tile, args: Any, done: ir.Block) -> list[ir.Value]:
    """One tile, from the builder's position to a branch to ``done``: its sums, ``[line][vector]``."""
    builder, v, width, by_lane, taps = tile.b, tile.v, tile.width, tile.by_lane, sum(tile.runs)
    count, segments, lines, second, position, limit, weights, accumulate, earlier_sums = args
    before, loop = (builder.append_basic_block() for _ in range(2))
    places = [(i, j) for i in range(tile.lines) for j in range(width)]
    fixed_masks = [tile.mask(position, limit, j) for j in range(width)] if by_lane else []
    entry = builder.block
    builder.cbranch(builder.icmp_signed("!=", accumulate, const(0)), before, loop)

    builder.position_at_end(before)
    earlier = [v.load(earlier_sums, const((i * WIDTH + j) * v.lanes)) for i, j in places]
    builder.branch(loop)

    builder.position_at_end(loop)
    phis = open_phis(builder, [const(0), weights] + [v.zero] * len(places), entry)
    close_phis(phis, [const(0), weights, *earlier], before)
    t, numbers, sums = phis[0], phis[1], phis[2:]
    segment = builder.gep(segments, [builder.mul(t, const(3))])
    index, offset, shift = (builder.load(builder.gep(segment, [const(i)])) for i in range(3))
    first = builder.add(position, shift)
    if tile.merges:
        # A sum's taps take turns with two masks: of one, LLVM would make plain multiply-adds and a blend (50% slower).
        masks = [tile.mask(first, limit, j, tile.step, again) for again in (False, True) for j in range(width)]
    else:
        masks = fixed_masks
        first = position if by_lane else first
    start = builder.add(offset, position)
    if tile.merges:
        new = tile.add_runs(sums, lines, index, second, start, masks, numbers)
    else:
        new = _within_or_masked(
            tile, first, limit, lambda masks: tile.add_runs(sums, lines, index, second, start, masks, numbers)
        )
    after = builder.add(t, const(1))
    step = taps * WIDTH * v.lanes if by_lane else taps
    close_phis(phis, [after, builder.gep(numbers, [const(step)]), *new], builder.block)
    builder.cbranch(builder.icmp_signed("<", after, count), loop, done)
    return new


def _within_or_masked(tile: _Tile, first: ir.Value, limit: ir.Value, add: Any) -> list[ir.Value]:
    """What ``add`` makes without masks where all that is read lies in the row, else with them.

    Masked loads alone cost what plain ones do; but where each segment of 3 taps works its mask out, too, it took 7.6 ns
    on Zen 3 instead of 4.4 (a loop of nothing else; 24 multiply-adds need 3.7).
    """
    builder, v = tile.b, tile.v
    plain, masked, join = (builder.append_basic_block() for _ in range(3))
    vectors = tile.width * tile.step
    end = builder.add(first, const(vectors * v.lanes))
    inside = builder.and_(builder.icmp_signed(">=", first, const(0)), builder.icmp_signed("<=", end, limit))
    builder.cbranch(inside, plain, masked)
    results = []
    for block in (plain, masked):
        builder.position_at_end(block)
        masks = [] if block is plain else [tile.mask(first, limit, j) for j in range(vectors)]
        results.append((add(masks), builder.block))
        builder.branch(join)
    builder.position_at_end(join)
    joined = open_phis(builder, *results[0])
    close_phis(joined, *results[1])
    return joined


def _write_tile(tile: _Tile, sums: list[ir.Value], args: Any, spare: ir.Value, done: ir.Block) -> None:
    """Finish and store a tile's sums, from the builder's position to a branch to ``done``."""
    builder = tile.b
    finish, bias, clamp, out, ld, height, columns = args
    entry, finishing, storing = builder.block, *(builder.append_basic_block() for _ in range(2))
    valid = [tile.mask(const(0), columns, j) for j in range(tile.width)]
    builder.cbranch(builder.icmp_signed("!=", finish, const(0)), finishing, storing)
    builder.position_at_end(finishing)
    final = tile.finished(sums, bias, valid, clamp)
    builder.branch(storing)
    builder.position_at_end(storing)
    values = open_phis(builder, sums, entry)
    close_phis(values, final, finishing)
    tile.store(values, out, ld, height, spare, columns)
    builder.branch(done)


def _fetch_ahead(builder: ir.IRBuilder, v: Vectors, args: Any) -> None:
    """Ask for what lies ``ahead`` elements behind the tile's input, and for the output two tiles down, if not 0.

    Rows end every few lines of the cache and tiles jump from row to row, which the hardware does not foresee. Of 50 MB,
    32 channels of 112 x 112, the time fell by 6%, of 58 MB, 144 of 56 x 56, by 17% (5% without the output); where x and
    out were in L2 it rose by up to 15%. Asking for a whole band of rows at once, in the order of memory: 8% slower.

    Rows at stride 2 (3.5 KB of input a tile) have :func:`_fetch_upcoming`. Tried for them, without gain: this (10%
    slower), loads that serve two columns of taps, lines in the order of memory, padded copies in L1 (2 times slower).
    """
    segments, lines, position, out, ld, ahead = (args[i] for i in (3, 4, 6, 14, 15, 18))
    index, start = builder.load(segments), builder.add(position, ahead)

    def fetch(count: int, width: int) -> None:
        step = v.opaque(ld)
        for i in range(count):
            address = builder.load(builder.gep(lines, [builder.add(index, const(i + 1))]))
            row = builder.gep(builder.inttoptr(address, v.element.as_pointer()), [start])
            target = builder.gep(out, [builder.mul(step, const(i + 2 * count))])
            for j in range(width):
                v.prefetch(builder.gep(row, [const(j * v.lanes)]), write=False, level=1)
                v.prefetch(builder.gep(target, [const(j * v.lanes)]), write=True, level=1)

    high, some = builder.icmp_signed("==", args[1], const(HIGH)), builder.icmp_signed("!=", ahead, const(0))
    with builder.if_then(some), builder.if_else(high) as (one_vector, other):
        with one_vector:
            fetch(TALL, 1)
        with other:
            fetch(LINES, WIDTH)


def _fetch_upcoming(builder: ir.IRBuilder, v: Vectors, upcoming: ir.Value, at: ir.Value) -> None:
    """Ask for a tile's share, at stride 2, of what begins at the address ``upcoming``, if not 0, in memory's order.

    It is the same rows of the next plane, for L2: of 96 MB, 96 channels of 112 x 112 to 56 x 56, on AVX-512 the time
    fell by 12 to 34% in three runs of four (the fourth, disturbed, 2% slower). For rows at stride 1 it was slower than
    ``_fetch_ahead``, by up to 50%.
    """
    nbytes = LINES * 2 * WIDTH * 2 * VECTOR_BYTES
    with builder.if_then(builder.icmp_signed("!=", upcoming, const(0))):
        first = builder.add(upcoming, builder.mul(at, const(nbytes // (WIDTH * v.lanes))))
        for line in range(0, nbytes, 64):
            v.prefetch(builder.inttoptr(builder.add(first, const(line)), v.element.as_pointer()), write=False, level=2)


def _make(by_lane: bool) -> Any:
    """An intrinsic that sums the tiles of a row, of the shape and the form given by their numbers."""

    @intrinsic
    def window(
        typingctx: Any, shape: Any, form: Any, count: Any, segments: Any, lines: Any, second: Any, position: Any,
        limit: Any, weights: Any, accumulate: Any, sums: Any, finish: Any, bias: Any, clamp: Any,
        out: Any, ld: Any, height: Any, columns: Any, ahead: Any, upcoming: Any,
    ) -> Any:  # fmt: skip
        i64, element = types.int64, weights
        signature = types.void(
            i64, i64, i64, INDEX, INDEX, i64, i64, i64, element,
            i64, element, i64, element, i64, element, i64, i64, i64, i64, i64,
        )  # fmt: skip

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            v = Vectors(builder, sig.args[8])
            shape, form, _, _, lines, _, position = args[:7]
            out, ld, height, columns = args[14:18]
            choice = builder.add(builder.mul(shape, const(3)), form)
            entry = builder.block
            tile, following, done = (builder.append_basic_block(name) for name in ("tile", "following", "done"))
            if by_lane:
                starts = [const(0), lines, out, height]
            else:
                across = builder.select(
                    builder.icmp_signed("==", form, const(WIDE)), const(WIDTH * v.lanes), const(v.lanes)
                )
                evens = builder.icmp_signed(">=", shape, const(len(RUNS)))
                step = builder.select(evens, const(2), const(1))
                starts = [const(0), position, out, columns]
            builder.branch(tile)

            builder.position_at_end(tile)
            walk = open_phis(builder, starts, entry)
            args = list(args)
            for i, value in zip((4, 14, 16) if by_lane else (6, 14, 17), walk[1:], strict=True):
                args[i] = value
            if not by_lane:
                _fetch_ahead(builder, v, args)
                _fetch_upcoming(builder, v, args[19], walk[0])
            switch = builder.switch(choice, done)
            # A block of a few channels is computed in full: narrow tiles would take 0.5 s to compile.
            for number_of_form in (WIDE,) if by_lane or WIDTH == 1 else (NARROW, WIDE, HIGH):
                join, found = builder.append_basic_block("join"), []
                for number, (runs, distance) in enumerate(TILES):
                    if by_lane and distance > 1:
                        continue
                    block = builder.append_basic_block()
                    switch.add_case(const(3 * number + number_of_form), block)
                    builder.position_at_end(block)
                    sums = _sum_tile(_Tile(builder, v, number_of_form, by_lane, runs, distance), args[2:11], join)
                    found.append((sums, builder.block))
                builder.position_at_end(join)
                joined = open_phis(builder, *found[0])
                for sums, block in found[1:]:
                    close_phis(joined, sums, block)
                _write_tile(_Tile(builder, v, number_of_form, by_lane), joined, args[11:18], args[10], following)

            builder.position_at_end(following)
            at = walk[0]
            if by_lane:
                after = builder.add(at, const(LINES))
                more = builder.icmp_signed("<", after, height)
                rest = [
                    builder.gep(lines, [after]),
                    builder.gep(out, [builder.mul(ld, after)]),
                    builder.sub(height, after),
                ]
            else:
                after = builder.add(at, across)
                more = builder.icmp_signed("<", after, columns)
                if not MERGES:  # the last tile ends with the row, overlapping the one before it: no part of a vector
                    last = builder.sub(columns, across)
                    after = builder.select(builder.icmp_signed("<", after, last), after, last)
                moved = builder.add(position, builder.mul(after, step))
                rest = [moved, builder.gep(out, [after]), builder.sub(columns, after)]
            close_phis(walk, [after, *rest], following)
            builder.cbranch(more, tile, done)

            builder.position_at_end(done)
            return context.get_dummy_value()

        return signature, codegen

    return window


pixel_window = _make(by_lane=False)
channel_window = _make(by_lane=True)


@intrinsic
def copy_even(typingctx: Any, source: Any, target: Any, n: Any) -> Any:
    """``target[i] = source[2 * i]`` for i < n."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        source, target, n = args
        v = Vectors(builder, sig.args[0])
        entry = builder.block
        head, body, done = (builder.append_basic_block(name) for name in ("head", "body", "done"))
        last = builder.sub(builder.mul(n, const(2)), const(1))
        builder.branch(head)
        builder.position_at_end(head)
        (i,) = open_phis(builder, [const(0)], entry)
        builder.cbranch(builder.icmp_signed("<", i, n), body, done)
        builder.position_at_end(body)
        start = builder.mul(i, const(2))
        middle = builder.add(start, const(v.lanes))
        pair = [v.masked_load(source, at, v.first(builder.sub(last, at))) for at in (start, middle)]
        evens = builder.shuffle_vector(*pair, ir.Constant(v.ints, list(range(0, 2 * v.lanes, 2))))
        v.store_first(evens, target, i, builder.sub(n, i))
        i.add_incoming(builder.add(i, const(v.lanes)), builder.block)
        builder.branch(head)
        builder.position_at_end(done)
        return context.get_dummy_value()

    return types.void(source, target, types.int64), codegen
