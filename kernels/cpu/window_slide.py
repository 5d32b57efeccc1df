"""Windows of 3x3 that slide down whole rows: each row of the input is read once, in the order of memory.

    out[i, q] = sum over r, s < 3  weight[r, s] * in[i * step + r, position + q * step + s]        step 1 or 2

A strip is up to 4 vectors wide. Where a row of the input ends one row of sums it continues the next and begins another,
so that what is open at any time, and the nine weights, stay in registers:

    in row j, step 1      * weight row 2   -> out row j - 2, which is then complete and is stored
                          * weight row 1   -> out row j - 1
                          * weight row 0   -> out row j

Per vector that is 3 loads for 9 multiply-adds, where a tile of 7 lines by 2 vectors (``window``) loads each of its 9
rows three times and 3 numbers a column of taps, and jumps from row to row, which the hardware foresees less. In C with
intrinsics, ns a vector of output: L1 1.9 instead of 2.7 (9 multiply-adds take 1.4), L2 2.6 and 3.6 (28 x 28). Two
threads, one image, us with tiles and with strips: 32 channels of 112 x 112 68 and 56, 144 of 56 x 56 82 and 65, 96 of
112 x 112 at stride 2 165 and 123, 192 of 28 x 28 36 and 32; 16 images, from memory, 0 to 8% less.

Lost: making the outer taps' vectors of aligned ones by ``valignd`` instead of loading them, most across two lines
(within 5% either way); asking for what lies 4 rows below (0 to 5% gained from memory), 8 or 16 (0 to 10% lost);
computing the rows' addresses instead of reading the table (0 to 5% lost).

Only what is at the ends of a row may be padding: of the first vector the first tap, of the last the last tap (see
``slides``), so that no more than two loads of a row are masked.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .simd import INDEX, Vectors, close_phis, const, open_phis
from .window import MERGES

STRIP = 4 if MERGES else 0  # vectors; three rows of sums, nine weights and three vectors of input in 32 registers


def slides(
    kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int], first: int, limit: int, outputs: int,
    lanes: int,
) -> bool:  # fmt: skip
    """Whether strips serve: windows of 3x3 over rows whose elements ``[0, limit)`` are seen from ``first`` on, where
    only the first vector's first tap and the last vector's last tap see anything else.

    Rows of one vector at stride 1 are left to tiles of 14 lines: 576 channels of 14 x 14 took 6% more in strips.
    """
    if not STRIP or kernel != (3, 3) or stride not in ((1, 1), (2, 2)) or dilation != (1, 1):
        return False
    step, before_last = stride[1], (outputs - 1) // lanes * lanes - 1
    if step == 1 and before_last < 0:
        return False
    middle = first + 1 >= 0 and first + (outputs - 1) * step + 1 < limit
    return middle and (before_last < 0 or (first + lanes * step >= 0 and first + before_last * step + 2 < limit))


def _kept(v: Vectors, mask: ir.Value) -> ir.Value:
    """The mask in a register of its own: LLVM would compare again in each row."""
    return v.b.asm(ir.FunctionType(mask.type, [mask.type]), "", "=k,0", [mask], side_effect=True)


class _Strip:
    """The IR of one strip at a builder's position."""

    def __init__(self, builder: ir.IRBuilder, v: Vectors, step: int, width: int, lines: ir.Value, second: ir.Value,
                 position: ir.Value, limit: ir.Value, weights: list[ir.Value]) -> None:  # fmt: skip
        self.b, self.v, self.step, self.width, self.weights = builder, v, step, width, weights
        self.lines, self.second, self.position = lines, second, position
        end = builder.sub(limit, builder.add(position, const(2 + (width - 1) * step * v.lanes)))
        if step == 2:
            end = builder.ashr(builder.add(end, const(1)), const(1))
            start = builder.ashr(builder.sub(const(1), position), const(1))
        else:
            start = builder.sub(const(0), position)
        self.inside = {(0, 0): _kept(v, builder.not_(v.first(start))), (width - 1, 2): _kept(v, v.first(end))}

    def taps(self, index: ir.Value) -> list[list[ir.Value]]:
        """The vectors that the taps of a row of the table see, ``[vector][tap]``."""
        b, v = self.b, self.v
        address = b.load(b.gep(self.lines, [index]))
        start = b.gep(b.inttoptr(address, v.element.as_pointer()), [self.position])
        return [self._of_vector(start, j) for j in range(self.width)]

    def _of_vector(self, start: ir.Value, j: int) -> list[ir.Value]:
        b, v, at = self.b, self.v, j * self.step * self.v.lanes
        if self.step == 1:
            masks = [self.inside.get((j, tap)) for tap in range(3)]
            return [
                v.load(start, const(at + tap)) if mask is None else v.masked_load(start, const(at + tap), mask)
                for tap, mask in enumerate(masks)
            ]
        # Of these two pairs the one that serves two taps lies on lines, where a row does that is padded by one.
        pairs = [[v.load(start, const(at + tap + half)) for half in (0, v.lanes)] for tap in (0, 1)]
        choices = [(pairs[0], 0), (pairs[1], 0), (pairs[1], 1)]
        found = [
            b.shuffle_vector(*pair, ir.Constant(v.ints, list(range(odd, 2 * v.lanes, 2)))) for pair, odd in choices
        ]
        masks = [self.inside.get((j, tap)) for tap in range(3)]
        return [x if mask is None else b.select(mask, x, v.zero) for x, mask in zip(found, masks, strict=True)]

    def add(self, sums: list[ir.Value] | None, taps: list[list[ir.Value]], row: int) -> list[ir.Value]:
        """A row of weights times what its taps see, added to the sums, if any."""
        out = []
        for j, seen in enumerate(taps):
            total = None if sums is None else sums[j]
            for weight, x in zip(self.weights[3 * row : 3 * row + 3], seen, strict=True):
                total = self.b.fmul(weight, x) if total is None else self.v.multiply_add(weight, x, total)
            out.append(total)
        return out

    def advance(self, i: ir.Value, open_sums: list[list[ir.Value]]) -> tuple[list[ir.Value], list[list[ir.Value]]]:
        """Row i of the input (at step 2 rows 2 i and 2 i + 1): the sums that it completes, and those left open."""
        taps = self.taps(i)
        if self.step == 1:
            oldest, older = open_sums
            return self.add(oldest, taps, 2), [self.add(older, taps, 1), self.add(None, taps, 0)]
        (oldest,) = open_sums
        complete, begun = self.add(oldest, taps, 2), self.add(None, taps, 0)
        return complete, [self.add(begun, self.taps(self.b.add(self.second, i)), 1)]


def _write(v: Vectors, sums: list[ir.Value], finish: ir.Value, bias: ir.Value, limits: Any, row: ir.Value,
           columns: ir.Value) -> None:  # fmt: skip
    """The bias added and the sums limited where that is wanted, and the first ``columns`` stored."""
    b, before = v.b, v.b.block
    with b.if_then(b.icmp_signed("!=", finish, const(0))):
        final = [v.clamp(b.fadd(value, bias), *limits) for value in sums]
        finishing = b.block
    values = open_phis(b, sums, before)
    close_phis(values, final, finishing)
    for j, value in enumerate(values[:-1]):
        v.store(value, row, const(j * v.lanes))
    last = const((len(values) - 1) * v.lanes)
    v.store_first(values[-1], row, last, b.sub(columns, last))


@intrinsic
def slide(
    typingctx: Any, step: Any, vectors: Any, rows: Any, lines: Any, second: Any, position: Any, limit: Any,
    weights: Any, finish: Any, bias: Any, activation: Any, out: Any, ld: Any, columns: Any, spare: Any,
) -> Any:  # fmt: skip
    """A strip of ``rows`` rows and ``columns`` columns of the output, in ``vectors`` vectors.

    ``lines`` are the addresses of the input's rows (at step 2 those of the second phase from ``second`` on);
    ``weights`` are ``[column][row]``, the rows of step 2 in the order 0, 2, 1. ``spare`` has room for a row of the
    strip. ``finish``, ``bias`` and ``activation`` as in ``window``.
    """
    i64 = types.int64
    signature = types.void(
        i64, i64, i64, INDEX, i64, i64, i64, weights, i64, weights, i64, weights, i64, i64, weights
    )  # fmt: skip

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        step, vectors, rows, lines, second, position, limit, weights, finish, bias, activation, *rest = args
        out, ld, columns, spare = rest
        v = Vectors(builder, sig.args[7])
        done = builder.append_basic_block("done")
        added = v.splat(builder.load(bias, align=v.align))
        limits = v.limits(activation)
        numbers = [v.splat(builder.load(builder.gep(weights, [const(i)]), align=v.align)) for i in range(9)]
        switch = builder.switch(builder.add(builder.mul(step, const(STRIP)), vectors), done)
        for distance, order in ((1, (0, 1, 2)), (2, (0, 2, 1))):
            by_row = [numbers[3 * tap + order[row]] for row in range(3) for tap in range(3)]
            for width in range(1, STRIP + 1):
                entry = builder.append_basic_block("strip")
                switch.add_case(const(distance * STRIP + width), entry)
                builder.position_at_end(entry)
                strip = _Strip(builder, v, distance, width, lines, second, position, limit, by_row)
                ahead = 3 - distance  # rows of the table before the first row is complete
                loop, entry = builder.append_basic_block("row"), builder.block
                builder.branch(loop)

                builder.position_at_end(loop)
                walk = open_phis(builder, [const(0), *[v.zero] * (ahead * width)], entry)
                i, sums = walk[0], walk[1:]
                complete, left_open = strip.advance(i, [sums[n : n + width] for n in range(0, len(sums), width)])
                place = builder.sub(i, const(ahead))
                begun = builder.icmp_signed(">=", place, const(0))
                row = builder.select(begun, builder.gep(out, [builder.mul(ld, place)]), spare)
                _write(v, complete, finish, added, limits, row, columns)
                after = builder.add(i, const(1))
                close_phis(walk, [after, *[value for row in left_open for value in row]], builder.block)
                builder.cbranch(builder.icmp_signed("<", place, builder.sub(rows, const(1))), loop, done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    return signature, codegen
