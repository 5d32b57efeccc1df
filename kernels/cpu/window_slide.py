"""Windows that slide down whole rows: each row of the input is read once, in the order of memory.

    out[i, q] = sum over r, s < kernel  weight[r, s] * in[i * step + r, position + q * step + s]

A strip is a few vectors wide. Where a row of the input ends one row of sums it continues the next ones and begins
another, so that what is open at any time stays in registers. For a kernel of 3 at step 1:

    in row j      * weight row 2   -> out row j - 2, which is then complete and is stored
                  * weight row 1   -> out row j - 1
                  * weight row 0   -> out row j

A vector of output takes 3, 5 or 7 loads and 9, 25 or 49 multiply-adds. A tile of 7 lines by 2 vectors (``window``)
loads each of its 9, 11 or 13 rows as often, 1.3 to 1.9 times as many, and jumps from row to row, which the hardware
foresees less. What loads cost most is that nearly all cross lines: 12 multiply-adds in registers take 1.80 ns, with 4
aligned loads among them 2.03, with 4 that cross lines 2.49. Nine weights stay in registers; of 25 or 49 each is loaded
for a column of taps, once for two rows of the input and two vectors, 4 multiply-adds. Rows of padding are left out.

Two threads, us, tiles and strips; 3x3: 32 channels of 112 x 112 68 and 56, 144 of 56 x 56 82 and 65, 96 of 112 x 112
at stride 2 165 and 123, 192 of 28 x 28 36 and 30, 576 of 14 x 14 32 and 28, 960 of 7 x 7 35 and 28; 5x5: 240 of 28 x 28
66 and 53, 16 images 920 and 670, 144 of 56 x 56 at stride 2 75 and 51; 7x7: 96 of 56 x 56 143 and 115, 16 images 2270
and 1720.

Lost: making the outer taps' vectors of aligned ones by ``valignd``, which takes a port of the multiply-adds (3x3 within
5% either way; in C 5x5 3% faster, 7x7 equal); asking for what lies 4 rows below (0 to 5% gained from memory), 8 or 16
(0 to 10% lost); strips of 7 vectors, a whole row of 112 pixels, with 3x3 (56 to 78 us); two or more chains of sums for
rows of one vector (0 to 7% slower, though one chain takes 4 cycles a multiply-add).

Only what is at the ends of a row may be padding: of the first vector the first half of the taps, of the last the last
half (see ``slides``), so that no more than two vectors of a row are masked.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .depthwise_plan import ABSENT, passes
from .simd import INDEX, Vectors, close_phis, const, open_phis
from .window import MERGES

STRIPS = {3: (4, 1), 5: (2, 2), 7: (2, 2)}
"""By kernel: vectors of a strip, and at step 1 the rows of the input that are read at a time."""
AHEAD = max(rows for _, rows in STRIPS.values()) - 1
"""Lines of the table behind those of the last row that may be read."""


def slides(
    kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int], first: int, limit: int, outputs: int,
    lanes: int,
) -> bool:  # fmt: skip
    """Whether strips serve: square windows over rows whose elements ``[0, limit)`` are seen from ``first`` on, where
    only the first half of the first vector's taps and the last half of the last vector's see anything else.
    """
    size, step = kernel[0], stride[0]
    if not MERGES or size not in STRIPS or step not in (1, 2):
        return False
    if (kernel, stride, dilation) != ((size, size), (step, step), (1, 1)):
        return False
    before_last = (outputs - 1) // lanes * lanes - 1
    half = size // 2
    middle = first + half >= 0 and first + (outputs - 1) * step + half < limit
    inner = first + lanes * step >= 0 and first + before_last * step + size - 1 < limit
    return middle and (before_last < 0 or inner)


def _kept(v: Vectors, mask: ir.Value) -> ir.Value:
    """The mask in a register of its own: LLVM would compare again in each row."""
    return v.b.asm(ir.FunctionType(mask.type, [mask.type]), "", "=k,0", [mask], side_effect=True)


class _Source(NamedTuple):
    """What a strip reads, as ``slide`` is told."""

    base: ir.Value
    lines: ir.Value
    zeros: ir.Value
    second: ir.Value
    position: ir.Value
    limit: ir.Value
    weights: ir.Value


class _Strip:
    """The IR of one strip at a builder's position."""

    def __init__(self, v: Vectors, kernel: int, step: int, width: int, source: _Source) -> None:
        b = v.b
        self.b, self.v, self.kernel, self.step, self.width, self.source = b, v, kernel, step, width, source
        self.rows = STRIPS[kernel][1] if step == 1 else 1  # completed at a time
        self.open = -(-kernel // step) - 1  # rows of sums
        self.places: dict[tuple[int, int], int] = {}
        at = 0
        for p in passes(kernel, step, 1):
            for i, tap in enumerate(p.taps):
                self.places.update({(tap, column): at + column * len(p.taps) + i for column in range(kernel)})
            at += kernel * len(p.taps)
        self.numbers: dict[tuple[int, int], ir.Value] = {}
        if kernel == 3:  # all of them fit in registers
            self.numbers = {place: self.weight(*place) for place in self.places}
        half = kernel // 2
        self.inside = {}
        for s in range(half):
            right = half + 1 + s
            start = b.sub(const(step - 1 - s), source.position)
            last = b.add(source.position, const((width - 1) * step * v.lanes + right))
            end = b.add(b.sub(source.limit, last), const(step - 1))
            if step == 2:
                start, end = (b.ashr(n, const(1)) for n in (start, end))
            self.inside[0, s] = _kept(v, b.not_(v.first(start)))
            self.inside[width - 1, right] = _kept(v, v.first(end))

    def weight(self, row: int, column: int) -> ir.Value:
        place = row, column
        if place in self.numbers:
            return self.numbers[place]
        number = self.b.load(self.b.gep(self.source.weights, [const(self.places[place])]), align=self.v.align)
        return self.v.splat(number)

    def line(self, index: ir.Value) -> ir.Value:
        """Where the strip begins in a line of the table."""
        b, source = self.b, self.source
        offset = b.load(b.gep(source.lines, [index]))
        absent = b.icmp_signed("==", offset, const(ABSENT))
        address = b.select(absent, source.zeros, b.add(source.base, offset))
        return b.gep(b.inttoptr(address, self.v.element.as_pointer()), [source.position])

    def odd(self, column: int) -> int:
        """1 where a column's taps are the odd elements of two vectors that begin a column before, at an even place of
        the row if that is padded by half a window; 0 where they are those from its own column on."""
        return (column + self.kernel // 2) % 2 if self.step == 2 and column else 0

    def tap(self, start: ir.Value, column: int) -> list[ir.Value]:
        """The vectors that a column of taps sees."""
        b, v = self.b, self.v
        found = []
        for j in range(self.width):
            mask, at = self.inside.get((j, column)), j * self.step * v.lanes
            if self.step == 1:
                where = const(at + column)
                found.append(v.load(start, where) if mask is None else v.masked_load(start, where, mask))
                continue
            odd = self.odd(column)
            pair = [v.load(start, const(at + column - odd + half)) for half in (0, v.lanes)]
            x = b.shuffle_vector(*pair, ir.Constant(v.ints, list(range(odd, 2 * v.lanes, 2))))
            found.append(x if mask is None else b.select(mask, x, v.zero))
        return found

    def add(self, sums: list[Any], starts: list[ir.Value], phase: int) -> None:
        """Lines' products added to the sums that are open and those that they begin, ``[row][vector]``."""
        v = self.v
        for column in range(self.kernel):
            if (self.kernel > 3 or self.step == 2) and not self.odd(column):
                self._settle(sums)
            seen = [self.tap(start, column) for start in starts]
            for row in reversed(range(phase, self.kernel, self.step)):
                weight = self.weight(row, column)
                for i, x in enumerate(seen, self.open - row // self.step):
                    for j, value in enumerate(x):
                        total = sums[i][j]
                        begun = total is not None
                        sums[i][j] = v.multiply_add(weight, value, total) if begun else v.b.fmul(weight, value)

    def _settle(self, sums: list[Any]) -> None:
        """Nothing later is loaded before, and nothing earlier added after: else LLVM loads all weights and taps first
        and keeps most of them on the stack."""
        kind = ir.FunctionType(self.v.vector, [self.v.vector])
        for row in sums:
            row[:] = [x and self.b.asm(kind, "", "=v,0", [x], side_effect=True) for x in row]
        self.v.barrier()

    def advance(self, i: ir.Value, open_sums: list[list[ir.Value]]) -> tuple[list[Any], list[Any]]:
        """Rows i, i + 1, ... of the input (at step 2 rows 2 i and 2 i + 1): the sums complete and those open."""
        sums = [*map(list, open_sums), *([None] * self.width for _ in range(self.rows))]
        for phase in range(self.step):
            index = self.b.add(self.source.second, i) if phase else i
            self.add(sums, [self.line(self.b.add(index, const(row))) for row in range(self.rows)], phase)
        return sums[: self.rows], sums[self.rows :]


class _Target:
    """Where a strip's rows of sums go."""

    def __init__(self, v: Vectors, finish: ir.Value, bias: ir.Value, activation: ir.Value, out: ir.Value,
                 ld: ir.Value, rows: ir.Value, columns: ir.Value, spare: ir.Value) -> None:  # fmt: skip
        self.v, self.finish, self.out, self.ld, self.rows, self.columns = v, finish, out, ld, rows, columns
        self.spare = spare
        self.added = v.splat(v.b.load(bias, align=v.align))
        self.limits = v.limits(activation)

    def write(self, sums: list[list[ir.Value]], first: ir.Value) -> None:
        """Store rows from ``first`` on, where the strip has them, the bias added and limited where that is wanted."""
        v, b = self.v, self.v.b
        flat, before = [value for row in sums for value in row], b.block
        with b.if_then(b.icmp_signed("!=", self.finish, const(0))):
            final = [v.clamp(b.fadd(value, self.added), *self.limits) for value in flat]
            finishing = b.block
        values = open_phis(b, flat, before)
        close_phis(values, final, finishing)
        width = len(sums[0])
        for i in range(len(sums)):
            place = b.add(first, const(i))
            inside = b.icmp_unsigned("<", place, self.rows)
            row = b.select(inside, b.gep(self.out, [b.mul(self.ld, place)]), self.spare)
            for j, value in enumerate(values[i * width : i * width + width - 1]):
                v.store(value, row, const(j * v.lanes))
            last = const((width - 1) * v.lanes)
            v.store_first(values[i * width + width - 1], row, last, b.sub(self.columns, last))


def _walk(strip: _Strip, target: _Target, begin: ir.Value, end: ir.Value, done: ir.Block) -> None:
    """The strip over lines ``begin`` to ``end`` of the table, from the builder's position to a branch to ``done``."""
    b, width = strip.b, strip.width
    loop, flush = b.append_basic_block("rows"), b.append_basic_block("flush")
    entry = b.block
    b.branch(loop)

    b.position_at_end(loop)
    walk = open_phis(b, [begin, *[strip.v.zero] * (strip.open * width)], entry)
    i, sums = walk[0], walk[1:]
    complete, left = strip.advance(i, [sums[n : n + width] for n in range(0, len(sums), width)])
    target.write(complete, b.sub(i, const(strip.open)))
    after = b.add(i, const(strip.rows))
    close_phis(walk, [after, *[value for row in left for value in row]], b.block)
    first = b.sub(after, const(strip.open))
    check = b.append_basic_block("check")
    b.cbranch(b.icmp_signed("<", after, end), loop, check)
    b.position_at_end(check)
    b.cbranch(b.icmp_signed("<", first, target.rows), flush, done)

    b.position_at_end(flush)
    target.write(left, first)
    b.branch(done)


def _make(kernel: int) -> Any:
    @intrinsic
    def slide(
        typingctx: Any, step: Any, vectors: Any, rows: Any, begin: Any, end: Any,
        base: Any, lines: Any, zeros: Any, second: Any, position: Any, limit: Any, weights: Any,
        finish: Any, bias: Any, activation: Any, out: Any, ld: Any, columns: Any, spare: Any,
    ) -> Any:  # fmt: skip
        """A strip of ``rows`` rows and ``columns`` columns of the output, in ``vectors`` vectors.

        ``lines`` are the places of the input's rows, in bytes from ``base``, or ABSENT, which means ``zeros`` (at step
        2 those of the second phase from ``second`` on). Only those from ``begin`` to before ``end`` are multiplied:
        ``begin`` is at most the number of rows open at a time, ``end`` at least ``rows``, so that all are completed.
        ``weights`` are in the order of ``depthwise_plan.passes``, ``spare`` has room for a row of the strip.
        Where ``finish`` is set a ``bias`` is added and the ``activation`` (none, relu, relu6) applied.
        """
        i64 = types.int64
        signature = types.void(
            i64, i64, i64, i64, i64, i64, INDEX, i64, i64, i64, i64, weights,
            i64, weights, i64, weights, i64, i64, weights,
        )  # fmt: skip

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            step, vectors, rows, begin, end = args[:5]
            source = _Source(*args[5:12])
            finish, bias, activation, out, ld, columns, spare = args[12:]
            v = Vectors(builder, sig.args[11])
            done = builder.append_basic_block("done")
            widest = STRIPS[kernel][0]
            target = _Target(v, finish, bias, activation, out, ld, rows, columns, spare)
            switch = builder.switch(builder.add(builder.mul(step, const(widest)), vectors), done)
            for distance in (1, 2):
                for width in range(1, widest + 1):
                    entry = builder.append_basic_block("strip")
                    switch.add_case(const(distance * widest + width), entry)
                    builder.position_at_end(entry)
                    _walk(_Strip(v, kernel, distance, width, source), target, begin, end, done)
            builder.position_at_end(done)
            return context.get_dummy_value()

        return signature, codegen

    return slide


slide3, slide5, slide7 = (_make(kernel) for kernel in (3, 5, 7))
