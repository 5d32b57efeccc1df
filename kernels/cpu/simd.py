"""Vectors and register tiles for Numba: intrinsics that emit LLVM IR.

Numba compiles plain loops well, but it cannot be told "keep these 28 accumulators in registers". An intrinsic
can: every accumulator is a phi node of a loop that we write down ourselves, and LLVM keeps each in a register.

    C[i][:] (+)= sum over segments t and k < length of  a[rows[i] + segments[t] + k * step] * b[t, k][:]

            b: one row of COLUMNS numbers a step, packed            A tile holds TILE_ROWS x 2 vectors. The rows
              +--------+--------+                                   of ``a`` are read in place: ``rows`` says where
    a[..] ->  |  acc   |  acc   |  x TILE_ROWS                      each begins, ``segments`` where its pieces are.
              +--------+--------+

``tile`` multiplies a vector of b by one number of ``a`` (a matrix product); ``output_tile`` does so and finishes its
sums in registers: bias, residual, activation; narrow ones use the first vector of each row of b alone. ``lane_tile``
multiplies it by a vector of ``a`` (every lane is a product of its own: depthwise and grouped convolution).
``pixel_tile`` is the product with the operands' roles exchanged:

    C[i][:] = sum over k < depth of  a[k, i] * b[offsets[k] + :]

The numbers are packed (weights), the vectors are read in place (pixels, through a table of offsets): PIXEL_ROWS x 3
vectors, or 2 or 1 at the end of a row. All serve float32 and float64.

The vector length and the number of registers come from Numba's target: NUMBA_CPU_NAME and NUMBA_CPU_FEATURES
where set, else the host. Pointers are Numba's ``CPointer``; offsets count elements.
"""

from __future__ import annotations

import itertools
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from .. import ACTIVATIONS
from .blocking import PIXEL_VECTORS, TILE_VECTORS


def _target() -> tuple[int, int]:
    """Vector length in bytes and number of vector registers."""
    triple, _, features = cpu_target.target_context.codegen().magic_tuple()
    enabled = set(features.split(","))
    if "+avx512f" in enabled:
        return 64, 32
    if "+avx2" in enabled:
        return 32, 16
    return 16, 32 if triple.startswith(("aarch64", "arm64")) else 16


VECTOR_BYTES, REGISTERS = _target()
TILE_ROWS = (REGISTERS - TILE_VECTORS - 1) // TILE_VECTORS  # the others hold a row of b and a number of a
SMALL_ROWS = TILE_ROWS // 2
AHEAD = 64
"""Steps by which output tiles ask for weights before they use them: in a network those lie beyond the caches. 512 to
2048 channels on 7 x 7, weights from memory, two threads: 696 us without, 575 with 24, 64 or 128 steps; 3x3 stride 2 of
512 channels on 14 x 14 1497 and 1090. Weights in L2: no difference. Asking for the next tile column instead, a line a
step, gained 5% more on the first and nothing on the second, whose columns are too large for L2."""
RELU6 = 1 + ACTIVATIONS.index("relu6")
PIXEL_ROWS = 8 if REGISTERS == 32 else 4  # of three vectors each: 24 or 12 sums, a row of b and a number of a
I1, I32, I64 = ir.IntType(1), ir.IntType(32), ir.IntType(64)
_INDEX = types.CPointer(types.int64)


def lanes(itemsize: int) -> int:
    """Elements in one vector."""
    return VECTOR_BYTES // itemsize


def columns(itemsize: int) -> int:
    """Elements in one row of a tile."""
    return TILE_VECTORS * VECTOR_BYTES // itemsize


class _Vectors:
    """Vector operations on one element type at a builder's position."""

    def __init__(self, builder: ir.IRBuilder, pointer: Any) -> None:
        bits = pointer.dtype.bitwidth
        self.b = builder
        self.element = ir.FloatType() if bits == 32 else ir.DoubleType()
        self.align = bits // 8
        self.lanes = lanes(self.align)
        self.vector = ir.VectorType(self.element, self.lanes)
        self.ints = ir.VectorType(I32, self.lanes)
        self.mask = ir.VectorType(I1, self.lanes)
        self.name = f"v{self.lanes}f{bits}"
        self.zero = ir.Constant(self.vector, [0.0] * self.lanes)
        self.undefined = ir.Constant(self.vector, ir.Undefined)

    def call(self, name: str, result: ir.Type, *arguments: ir.Value) -> ir.Value:
        signature = ir.FunctionType(result, [a.type for a in arguments])
        return self.b.call(cgutils.get_or_insert_function(self.b.module, signature, name), arguments)

    def at(self, pointer: ir.Value, offset: ir.Value) -> ir.Value:
        return self.b.bitcast(self.b.gep(pointer, [offset]), self.vector.as_pointer())

    def load(self, pointer: ir.Value, offset: ir.Value) -> ir.Value:
        return self.b.load(self.at(pointer, offset), align=self.align)

    def store(self, value: ir.Value, pointer: ir.Value, offset: ir.Value) -> None:
        self.b.store(value, self.at(pointer, offset), align=self.align)

    def splat(self, scalar: ir.Value) -> ir.Value:
        v = self.b.insert_element(self.undefined, scalar, ir.Constant(I32, 0))
        return self.b.shuffle_vector(v, self.undefined, ir.Constant(self.ints, [0] * self.lanes))

    def multiply_add(self, x: ir.Value, y: ir.Value, z: ir.Value) -> ir.Value:
        return self.call(f"llvm.fmuladd.{self.name}", self.vector, x, y, z)

    def prefetch(self, pointer: ir.Value, *, write: bool, level: int) -> None:
        """Ask for the cache line, for reading or writing, in the cache of that level (1 or 2)."""
        options = [ir.Constant(I32, n) for n in (int(write), 4 - level, 1)]
        self.call("llvm.prefetch.p0", ir.VoidType(), pointer, *options)

    def barrier(self) -> None:
        """No instruction, but what is in memory before must be loaded again after."""
        self.b.asm(ir.FunctionType(ir.VoidType(), []), "", "~{memory}", [], side_effect=True)

    def opaque(self, value: ir.Value) -> ir.Value:
        """The same i64 or address, not known to be the same: what follows from it is computed where it is used.

        Else LLVM computes it before the loop, and where that is more than there are registers loads it from the stack.
        """
        return self.b.asm(ir.FunctionType(value.type, [value.type]), "", "=r,0", [value], side_effect=True)

    def first(self, n: ir.Value) -> ir.Value:
        """The mask of the lanes below n, an i64."""
        none = ir.Constant(self.ints, ir.Undefined)
        v = self.b.insert_element(none, self.b.trunc(n, I32), ir.Constant(I32, 0))
        v = self.b.shuffle_vector(v, none, ir.Constant(self.ints, [0] * self.lanes))
        return self.b.icmp_signed("<", ir.Constant(self.ints, list(range(self.lanes))), v)

    def masked_load(self, pointer: ir.Value, offset: ir.Value, mask: ir.Value) -> ir.Value:
        align = ir.Constant(I32, self.align)
        name = f"llvm.masked.load.{self.name}.p0"
        return self.call(name, self.vector, self.at(pointer, offset), align, mask, self.zero)

    def store_first(self, value: ir.Value, pointer: ir.Value, offset: ir.Value, n: ir.Value) -> None:
        """The lanes below n, an i64."""
        store_lanes(self.b, value, self.b.gep(pointer, [offset]), n, self.align)

    def limits(self, activation: ir.Value) -> tuple[ir.Value, ir.Value]:
        """The lowest and highest results of an activation that only limits them: none, RELU or RELU6."""
        none, six = (self.b.icmp_signed("==", activation, _int(n)) for n in (0, RELU6))
        vectors = (ir.Constant(self.vector, [value] * self.lanes) for value in (float("-inf"), 6.0, float("inf")))
        low, upper, high = vectors
        return self.b.select(none, low, self.zero), self.b.select(six, upper, high)

    def sums_if(
        self, condition: ir.Value, values: list[ir.Value], pointer: ir.Value, offsets: list[ir.Value],
        masks: list[Any] | None = None,
    ) -> list[ir.Value]:  # fmt: skip
        """Vectors in memory added to ``values``, where the condition holds; with a mask only its lanes are read."""
        before, added = self.b.block, []
        with self.b.if_then(condition):
            for value, offset, mask in zip(values, offsets, masks or [None] * len(values), strict=True):
                more = self.load(pointer, offset) if mask is None else self.masked_load(pointer, offset, mask)
                added.append(self.b.fadd(value, more))
            adding = self.b.block
        joined = [self.b.phi(self.vector) for _ in values]
        for phi, value, more in zip(joined, values, added, strict=True):
            phi.add_incoming(value, before)
            phi.add_incoming(more, adding)
        return joined

    def clamp(self, value: ir.Value, lowest: ir.Value, highest: ir.Value) -> ir.Value:
        """The value within its limits; this way round NaN stays NaN."""
        value = self.b.select(self.b.fcmp_ordered("<", value, lowest), lowest, value)
        return self.b.select(self.b.fcmp_ordered(">", value, highest), highest, value)

    def load_pair(self, low: ir.Value, high: ir.Value) -> ir.Value:
        """A vector of half a vector from each address."""
        half = ir.VectorType(self.element, self.lanes // 2)
        parts = [self.b.load(self.b.bitcast(p, half.as_pointer()), align=self.align) for p in (low, high)]
        return self.b.shuffle_vector(*parts, ir.Constant(self.ints, list(range(self.lanes))))

    def load_square(self, source: ir.Value, step: ir.Value) -> list[ir.Value]:
        """The rows of a square, ``step`` apart, after the first stage of ``transposed``.

        Where a vector has two blocks of 16 bytes, loads exchange them: x86 inserts half a vector from memory without
        a shuffle. (Of four blocks two shuffles would join the halves: 12.4 ns a square instead of 14.1, but whole calls
        the same.)
        """
        n, half = self.lanes, self.lanes // 2
        rows = [self.b.gep(source, [self.b.mul(step, _int(i))]) for i in range(n)]
        if n * self.align != 32:
            return self.transposed([self.load(row, _int(0)) for row in rows], stages=1)
        low = [self.load_pair(rows[i], rows[i + half]) for i in range(half)]
        ends = [self.b.gep(row, [_int(half)]) for row in rows]
        return low + [self.load_pair(ends[i], ends[i + half]) for i in range(half)]

    def transposed(self, rows: list[ir.Value], first: int = 0, stages: int = 9) -> list[ir.Value]:
        """A square of vectors transposed, by log2(lanes) two-input shuffles a vector; or only some of those stages.

        First blocks of 16 bytes trade places: of two rows as far apart as two blocks, the second's block for the
        first's. Within a block rows are interleaved, half a block at a time: what x86 does in one instruction (trading
        single numbers, 0, n, 2, n + 2, took two).
        """
        n, block = self.lanes, 16 // self.align
        steps = [n >> i for i in range(1, n.bit_length())]
        for step in steps[first : first + stages]:
            if step >= block:
                low = [k + (n - step) * bool(k & step) for k in range(n)]
                high = [k + step if not k & step else n + k for k in range(n)]
            else:
                low = [(k - k % block) + k % block // 2 + n * (k % 2) for k in range(n)]
                high = [k + block // 2 for k in low]
            masks = [ir.Constant(self.ints, lanes) for lanes in (low, high)]
            out = list(rows)
            for i in range(n):
                if not i & step:
                    out[i], out[i + step] = (self.b.shuffle_vector(rows[i], rows[i + step], mask) for mask in masks)
            rows = out
        return rows

    def transposed_half(self, rows: list[ir.Value]) -> list[ir.Value]:
        """Half a square, ``lanes / 2`` rows, transposed: a vector holds two columns, one behind the other.

        Each stage sorts two vectors by a bit of the column, so a column's number ends as that of its vector.
        """
        n, h = self.lanes, self.lanes // 2
        held = [[(column, i) for column in range(n)] for i in range(h)]  # of every vector: (column, row) by lane
        for bit in [1 << b for b in range(h.bit_length() - 1)]:
            for i in range(h):
                if i & bit:
                    continue
                both, pair = held[i] + held[i + bit], rows[i : i + bit + 1 : bit]
                for number, j in enumerate((i, i + bit)):
                    lanes = sorted(
                        (k for k in range(2 * n) if both[k][0] // 2 & bit == number * bit), key=both.__getitem__
                    )
                    held[j] = [both[k] for k in lanes]
                    rows[j] = self.b.shuffle_vector(*pair, ir.Constant(self.ints, lanes))
        return rows


def _int(value: int) -> ir.Constant:
    return ir.Constant(I64, value)


def store_lanes(b: ir.IRBuilder, value: ir.Value, pointer: ir.Value, n: ir.Value, align: int) -> None:
    """``pointer[l]`` = lane l of a vector for l < n, an i64.

    Below AVX-512 a part of a vector goes in halves, 7 lanes as 4, 2 and 1: AMD's VMASKMOVPS to memory takes 6.3 ns on
    Zen 3, where a plain store takes 0.5 (its loads cost what plain ones do), and without AVX LLVM branches a lane.
    """
    kind = value.type
    if VECTOR_BYTES == 64:
        lane = ir.VectorType(I32, kind.count)
        none = ir.Constant(lane, ir.Undefined)
        limit = b.insert_element(none, b.trunc(n, I32), ir.Constant(I32, 0))
        limit = b.shuffle_vector(limit, none, ir.Constant(lane, [0] * kind.count))
        mask = b.icmp_signed("<", ir.Constant(lane, list(range(kind.count))), limit)
        letter = "i" if isinstance(kind.element, ir.IntType) else "f"
        name = f"llvm.masked.store.v{kind.count}{letter}{8 * align}.p0"
        arguments = [value, b.bitcast(pointer, kind.as_pointer()), ir.Constant(I32, align), mask]
        signature = ir.FunctionType(ir.VoidType(), [a.type for a in arguments])
        b.call(cgutils.get_or_insert_function(b.module, signature, name), arguments)
        return
    with b.if_else(b.icmp_signed(">=", n, _int(kind.count))) as (whole, part):
        with whole:
            b.store(value, b.bitcast(pointer, kind.as_pointer()), align=align)
        with part:
            left = b.select(b.icmp_signed(">", n, _int(0)), n, _int(0))
            half = kind.count // 2
            while half:
                ints = ir.VectorType(I32, half)
                low, high = (
                    b.shuffle_vector(value, value, ir.Constant(ints, list(range(first, first + half))))
                    for first in (0, half)
                )
                taken, before = b.icmp_unsigned("!=", b.and_(left, _int(half)), _int(0)), b.block
                with b.if_then(taken):
                    b.store(low, b.bitcast(pointer, low.type.as_pointer()), align=align)
                    stored = b.block
                value = b.phi(low.type)
                value.add_incoming(low, before)
                value.add_incoming(high, stored)
                pointer = b.gep(pointer, [b.and_(left, _int(half))])
                half //= 2


def _phis(b: ir.IRBuilder, initial: list[ir.Value], source: ir.Block) -> list[ir.PhiInstr]:
    phis = [b.phi(value.type) for value in initial]
    for phi, value in zip(phis, initial, strict=True):
        phi.add_incoming(value, source)
    return phis


def _close(phis: list[ir.PhiInstr], values: list[ir.Value], source: ir.Block) -> None:
    for phi, value in zip(phis, values, strict=True):
        phi.add_incoming(value, source)


def _tile_sums(
    builder: ir.IRBuilder, v: _Vectors, first: list[ir.Value], height: int, width: int, by_lane: bool, ahead: int,
    segment_count: ir.Value, segments: ir.Value, length: ir.Value, step: ir.Value, a: ir.Value, rows: ir.Value,
    b: ir.Value,
) -> list[ir.Value]:  # fmt: skip
    """The loops of a tile: ``first`` and its products, ``height x width`` vectors; the builder is left behind them.

    Each step asks for the row of b that is ``ahead`` steps on (0: none).
    """
    starts = [builder.gep(a, [builder.load(builder.gep(rows, [_int(i)]))]) for i in range(height)]
    entry = builder.block
    segment, inner, following, end = (builder.append_basic_block(n) for n in ("segment", "k", "next", "end"))
    builder.branch(segment)

    builder.position_at_end(segment)
    outer_phis = _phis(builder, [_int(0), b, *first], entry)
    t, b_segment, outer_sums = outer_phis[0], outer_phis[1], outer_phis[2:]
    offset = builder.load(builder.gep(segments, [t]))
    pointers = [builder.gep(start, [offset]) for start in starts]
    builder.branch(inner)

    builder.position_at_end(inner)
    inner_phis = _phis(builder, [_int(0), _int(0), b_segment, *outer_sums], segment)
    k, position, b_row, sums = inner_phis[0], inner_phis[1], inner_phis[2], inner_phis[3:]
    right = [v.load(b_row, _int(j * v.lanes)) for j in range(width)]
    for j in range(width if ahead else 0):
        v.prefetch(builder.gep(b_row, [_int((ahead * TILE_VECTORS + j) * v.lanes)]), write=False, level=2)
    new = []
    for i in range(height):
        if by_lane:
            left = [v.load(pointers[i], builder.add(position, _int(j * v.lanes))) for j in range(width)]
        else:
            left = [v.splat(builder.load(builder.gep(pointers[i], [position]), align=v.align))] * width
        new += [v.multiply_add(left[j], right[j], sums[i * width + j]) for j in range(width)]
    next_k = builder.add(k, _int(1))
    next_b = builder.gep(b_row, [_int(TILE_VECTORS * v.lanes)])
    _close(inner_phis, [next_k, builder.add(position, step), next_b, *new], inner)
    builder.cbranch(builder.icmp_signed("<", next_k, length), inner, following)

    builder.position_at_end(following)
    next_t = builder.add(t, _int(1))
    _close(outer_phis, [next_t, next_b, *new], following)
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
        signature = types.void(i64, _INDEX, i64, i64, a, _INDEX, b, c, i64, i64)

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            *operands, c, ldc, accumulate = args
            v = _Vectors(builder, sig.args[4])
            first = [v.zero] * (height * TILE_VECTORS)
            sums = _tile_sums(builder, v, first, height, TILE_VECTORS, by_lane, 0, *operands)
            # C is read last: loading it first would stall the first products
            plain, plus, done = (builder.append_basic_block(n) for n in ("plain", "plus", "done"))
            builder.cbranch(builder.icmp_signed("!=", accumulate, _int(0)), plus, plain)
            for block in (plain, plus):
                builder.position_at_end(block)
                for n, value in enumerate(sums):
                    i, j = divmod(n, TILE_VECTORS)
                    where = builder.add(builder.mul(ldc, _int(i)), _int(j * v.lanes))
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
    activation)``: a tile that finishes its sums in registers.

        C[i][:columns] = activation(bias[:columns] + the tile's sums + residual[i][:columns])    for i < count

    ``ldr`` -1: no residual. ``activation``: none, RELU or RELU6. Nothing else is read of bias and residual, nothing
    else is written.

    Asking for the next tile's rows of ``a`` as well, a line a step, took 3% more time where they were in L2 and saved 4
    to 10% where they were not (256 to 64 channels on 56 x 56): not done.
    """

    @intrinsic
    def output_tile(
        typingctx: Any, segment_count: Any, segments: Any, length: Any, step: Any, a: Any, rows: Any, b: Any, c: Any,
        ldc: Any, count: Any, columns: Any, bias: Any, residual: Any, ldr: Any, activation: Any,
    ) -> Any:  # fmt: skip
        i64 = types.int64
        signature = types.void(i64, _INDEX, i64, i64, a, _INDEX, b, c, i64, i64, i64, bias, residual, i64, i64)

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            *operands, c, ldc, count, columns, bias, residual, ldr, activation = args
            v = _Vectors(builder, sig.args[4])
            at = [_int(j * v.lanes) for j in range(width)]
            left = [builder.sub(columns, offset) for offset in at]
            masks = [v.first(n) for n in left]
            alone = builder.icmp_signed("<", ldr, _int(0))
            places = [[builder.add(builder.mul(ldc, _int(i)), offset) for offset in at] for i in range(height)]
            extras = [[builder.add(builder.mul(ldr, _int(i)), offset) for offset in at] for i in range(height)]
            # rows past ``count`` too: asking for a line never fails
            for where in itertools.chain(*places):
                v.prefetch(builder.gep(c, [where]), write=True, level=1)
            with builder.if_then(builder.not_(alone)):
                for where in itertools.chain(*extras):
                    v.prefetch(builder.gep(residual, [where]), write=False, level=1)
            sums = _tile_sums(builder, v, [v.zero] * (height * width), height, width, False, AHEAD, *operands)
            # added last: were a large bias the first term, every product would round to its last place
            extra = [v.masked_load(bias, offset, mask) for offset, mask in zip(at, masks, strict=True)] * height
            sums = [builder.fadd(value, more) for value, more in zip(sums, extra, strict=True)]

            whole, part, done = (builder.append_basic_block(n) for n in ("whole", "part", "done"))
            lowest, highest = v.limits(activation)
            full = builder.icmp_signed(">=", columns, _int(width * v.lanes))
            every = builder.icmp_signed(">=", count, _int(height))
            builder.cbranch(builder.and_(full, every), whole, part)
            builder.position_at_end(whole)
            finished = v.sums_if(builder.not_(alone), sums, residual, list(itertools.chain(*extras)))
            for value, where in zip(finished, itertools.chain(*places), strict=True):
                v.store(v.clamp(value, lowest, highest), c, where)
            builder.branch(done)
            builder.position_at_end(part)
            for i in range(height):
                row = sums[i * width : (i + 1) * width]
                with builder.if_then(builder.icmp_signed("<", _int(i), count)):
                    row = v.sums_if(builder.not_(alone), row, residual, extras[i], masks)
                    for value, where, n in zip(row, places[i], left, strict=True):
                        v.store_first(v.clamp(value, lowest, highest), c, where, n)
            builder.branch(done)
            builder.position_at_end(done)
            return context.get_dummy_value()

        return signature, codegen

    return output_tile


output_tile = _make_output_tile(TILE_ROWS, TILE_VECTORS)
small_output_tile = _make_output_tile(SMALL_ROWS, TILE_VECTORS)
narrow_output_tile = _make_output_tile(TILE_ROWS, 1)
small_narrow_output_tile = _make_output_tile(SMALL_ROWS, 1)


def _make_pixel_tile(height: int, width: int, moving: bool = False) -> Any:
    """An intrinsic ``(depth, offsets, a, b, c, ldc, columns, bias, residual, ldr, activation, ahead, ahead_step)``.

        C[i][:columns] = activation(bias[i] + the tile's sums + residual[i][:columns])

    The first ``columns`` sums end in the last vector. ``ldr`` -1: no residual. ``activation``: none, RELU or RELU6.
    Each step asks for one line at ``ahead``, which moves on by ``ahead_step``: what is packed next is fetched while
    the products run.

    ``moving``: ``offsets`` is a number, the elements from one row of b to the next, and four arguments follow,
    ``source, target, source_step, target_step``: each step also copies one vector, the next one that far on. The
    ports for loads and stores are half idle in a step of 24 products.
    """

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        depth, offsets, a, b, c, ldc, columns, bias, residual, ldr, activation, ahead, ahead_step, *moved = args
        v = _Vectors(builder, sig.args[2])
        rows = [builder.gep(c, [builder.mul(ldc, _int(i))]) for i in range(height)]
        for row in rows:
            for j in range(width):
                v.prefetch(builder.gep(row, [_int(j * v.lanes)]), write=True, level=1)
        sums = [v.zero] * (height * width)
        entry, loop, end = builder.block, builder.append_basic_block("k"), builder.append_basic_block("end")
        builder.branch(loop)

        builder.position_at_end(loop)
        walks = [b, *moved[:2]] if moving else []
        phis = _phis(builder, [_int(0), a, ahead, *walks, *sums], entry)
        k, a_row, fetched, walks, sums = phis[0], phis[1], phis[2], phis[3 : 3 + len(walks)], phis[3 + len(walks) :]
        v.prefetch(fetched, write=False, level=2)
        where = _int(0) if moving else builder.load(builder.gep(offsets, [k]))
        b_row = walks[0] if moving else b
        right = [v.load(b_row, builder.add(where, _int(j * v.lanes))) for j in range(width)]
        new = []
        for i in range(height):
            left = v.splat(builder.load(builder.gep(a_row, [_int(i)]), align=v.align))
            new += [v.multiply_add(left, right[j], sums[i * width + j]) for j in range(width)]
        if moving:
            v.store(v.load(walks[1], _int(0)), walks[2], _int(0))
        next_k = builder.add(k, _int(1))
        steps = zip(walks, (offsets, *moved[2:]), strict=True) if moving else ()
        following = [next_k, builder.gep(a_row, [_int(height)]), builder.gep(fetched, [ahead_step])]
        _close(phis, [*following, *(builder.gep(walk, [step]) for walk, step in steps), *new], loop)
        builder.cbranch(builder.icmp_signed("<", next_k, depth), loop, end)

        builder.position_at_end(end)
        added = [v.splat(builder.load(builder.gep(bias, [_int(i)]), align=v.align)) for i in range(height)]
        new = [builder.fadd(value, added[n // width]) for n, value in enumerate(new)]
        left = builder.sub(columns, _int((width - 1) * v.lanes))
        extras = [builder.add(builder.mul(ldr, _int(n // width)), _int(n % width * v.lanes)) for n in range(len(new))]
        masks = ([None] * (width - 1) + [v.first(left)]) * height
        new = v.sums_if(builder.icmp_signed(">=", ldr, _int(0)), new, residual, extras, masks)
        lowest, highest = v.limits(activation)
        new = [v.clamp(value, lowest, highest) for value in new]
        for i, row in enumerate(rows):
            for j in range(width - 1):
                v.store(new[i * width + j], row, _int(j * v.lanes))
        with builder.if_else(builder.icmp_signed(">=", left, _int(v.lanes))) as (whole, part):
            with whole:
                for i, row in enumerate(rows):
                    v.store(new[(i + 1) * width - 1], row, _int((width - 1) * v.lanes))
            with part:
                for i, row in enumerate(rows):
                    v.store_first(new[(i + 1) * width - 1], row, _int((width - 1) * v.lanes), left)
        return context.get_dummy_value()

    i64 = types.int64
    if moving:

        @intrinsic
        def moving_tile(
            typingctx: Any, depth: Any, pitch: Any, a: Any, b: Any, c: Any, ldc: Any, columns: Any, bias: Any,
            residual: Any, ldr: Any, activation: Any, ahead: Any, ahead_step: Any, source: Any, target: Any,
            source_step: Any, target_step: Any,
        ) -> Any:  # fmt: skip
            tile = i64, i64, a, b, c, i64, i64, bias, residual, i64, i64, ahead, i64
            return types.void(*tile, source, target, i64, i64), codegen

        return moving_tile

    @intrinsic
    def pixel_tile(
        typingctx: Any, depth: Any, offsets: Any, a: Any, b: Any, c: Any, ldc: Any, columns: Any, bias: Any,
        residual: Any, ldr: Any, activation: Any, ahead: Any, ahead_step: Any,
    ) -> Any:  # fmt: skip
        return types.void(i64, _INDEX, a, b, c, i64, i64, bias, residual, i64, i64, ahead, i64), codegen

    return pixel_tile


pixel_tile = _make_pixel_tile(PIXEL_ROWS, PIXEL_VECTORS)
pixel_tile_2 = _make_pixel_tile(PIXEL_ROWS, 2)
pixel_tile_1 = _make_pixel_tile(PIXEL_ROWS, 1)
moving_tile = _make_pixel_tile(PIXEL_ROWS, PIXEL_VECTORS, moving=True)
moving_tile_2 = _make_pixel_tile(PIXEL_ROWS, 2, moving=True)
moving_tile_1 = _make_pixel_tile(PIXEL_ROWS, 1, moving=True)


@intrinsic
def transpose_square(typingctx: Any, source: Any, lds: Any, target: Any, ldt: Any) -> Any:
    """``target[j * ldt + i] = source[i * lds + j]`` for a full square of one vector's lanes a side."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        source, lds, target, ldt = args
        v = _Vectors(builder, sig.args[0])
        for i, row in enumerate(v.transposed(v.load_square(source, lds), first=1)):
            v.store(row, target, builder.mul(ldt, _int(i)))
        return context.get_dummy_value()

    return types.void(source, types.int64, target, types.int64), codegen


@intrinsic
def transpose_to(typingctx: Any, source: Any, lds: Any, target: Any, places: Any) -> Any:
    """``transpose_square`` whose rows go where a table says: ``target[places[j] + i] = source[i * lds + j]``."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        source, lds, target, places = args
        v = _Vectors(builder, sig.args[0])
        for i, row in enumerate(v.transposed(v.load_square(source, lds), first=1)):
            v.store(row, target, builder.load(builder.gep(places, [_int(i)])))
        return context.get_dummy_value()

    return types.void(source, types.int64, target, _INDEX), codegen


@intrinsic
def transpose_half(typingctx: Any, source: Any, lds: Any, target: Any) -> Any:
    """``target[j * h + i] = source[i * lds + j]`` for i < h and j < 2 h: h rows, half of a vector's lanes."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        source, lds, target = args
        v = _Vectors(builder, sig.args[0])
        rows = [v.load(source, builder.mul(lds, _int(i))) for i in range(v.lanes // 2)]
        for i, row in enumerate(v.transposed_half(rows)):
            v.store(row, target, _int(i * v.lanes))
        return context.get_dummy_value()

    return types.void(source, types.int64, target), codegen


@intrinsic
def transpose_part(typingctx: Any, source: Any, lds: Any, target: Any, ldt: Any, n: Any, m: Any) -> Any:
    """As ``transpose_square`` for i < n and j < m; nothing else is read or written."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        source, lds, target, ldt, n, m = args
        v = _Vectors(builder, sig.args[0])
        reading, none = v.first(m), ir.Constant(v.mask, [0] * v.lanes)
        rows = []
        for i in range(v.lanes):
            mask = builder.select(builder.icmp_signed("<", _int(i), n), reading, none)
            rows.append(v.masked_load(source, builder.mul(lds, _int(i)), mask))
        for i, row in enumerate(v.transposed(rows)):
            width = builder.select(builder.icmp_signed("<", _int(i), m), n, _int(0))
            v.store_first(row, target, builder.mul(ldt, _int(i)), width)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(source, i64, target, i64, i64, i64), codegen


@intrinsic
def copy(typingctx: Any, source: Any, target: Any, n: Any) -> Any:
    """``target[:n] = source[:n]``, a vector at a time, the last one masked."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        source, target, n = args
        v = _Vectors(builder, sig.args[0])
        entry = builder.block
        head, body, tail = (builder.append_basic_block(name) for name in ("head", "body", "tail"))
        builder.branch(head)
        builder.position_at_end(head)
        (i,) = _phis(builder, [_int(0)], entry)
        after = builder.add(i, _int(v.lanes))
        builder.cbranch(builder.icmp_signed("<=", after, n), body, tail)
        builder.position_at_end(body)
        v.store(v.load(source, i), target, i)
        i.add_incoming(after, body)
        builder.branch(head)
        builder.position_at_end(tail)
        left = builder.sub(n, i)
        v.store_first(v.masked_load(source, i, v.first(left)), target, i, left)
        return context.get_dummy_value()

    return types.void(source, target, types.int64), codegen


@intrinsic
def copy_every_second(typingctx: Any, source: Any, target: Any, n: Any) -> Any:
    """``target[i] = source[2 * i]`` for i < n, a vector at a time; nothing past ``source[2 * n - 2]`` is read."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        source, target, n = args
        v = _Vectors(builder, sig.args[0])
        entry = builder.block
        head, body, done = (builder.append_basic_block(name) for name in ("head", "body", "done"))
        builder.branch(head)
        builder.position_at_end(head)
        (i,) = _phis(builder, [_int(0)], entry)
        builder.cbranch(builder.icmp_signed("<", i, n), body, done)
        builder.position_at_end(body)
        left = builder.sub(n, i)
        read = builder.sub(builder.mul(left, _int(2)), _int(1))
        low, high = builder.mul(i, _int(2)), builder.add(builder.mul(i, _int(2)), _int(v.lanes))
        first = v.masked_load(source, low, v.first(read))
        second = v.masked_load(source, high, v.first(builder.sub(read, _int(v.lanes))))
        even = ir.Constant(v.ints, list(range(0, 2 * v.lanes, 2)))
        v.store_first(builder.shuffle_vector(first, second, even), target, i, left)
        i.add_incoming(builder.add(i, _int(v.lanes)), builder.block)
        builder.branch(head)
        builder.position_at_end(done)
        return context.get_dummy_value()

    return types.void(source, target, types.int64), codegen


@intrinsic
def pointer(typingctx: Any, address: Any, like: Any) -> Any:
    """The address as a pointer to elements of ``like``'s type."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(sig.return_type))

    return types.CPointer(like)(types.int64, like), codegen


@intrinsic
def shift(typingctx: Any, pointer: Any, offset: Any) -> Any:
    """The pointer, ``offset`` elements on."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.gep(args[0], [args[1]])

    return pointer(pointer, types.int64), codegen


@intrinsic
def load(typingctx: Any, pointer: Any, offset: Any) -> Any:
    """``pointer[offset]``."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load(builder.gep(args[0], [args[1]]))

    return pointer.dtype(pointer, types.int64), codegen


@intrinsic
def store(typingctx: Any, pointer: Any, offset: Any, value: Any) -> Any:
    """``pointer[offset] = value``, converted to the pointer's type."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store(args[2], builder.gep(args[0], [args[1]]))
        return context.get_dummy_value()

    return types.void(pointer, types.int64, pointer.dtype), codegen


@intrinsic
def from_bits(typingctx: Any, bits: Any) -> Any:
    """The float64 with the bits of an int64."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.DoubleType())

    return types.float64(types.int64), codegen


def _prefetch(write: bool) -> Any:
    @intrinsic
    def prefetch(typingctx: Any, address: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            _Vectors(builder, sig.args[0]).prefetch(args[0], write=write, level=1 if write else 2)
            return context.get_dummy_value()

        return types.void(address), codegen

    return prefetch


prefetch_read, prefetch_write = _prefetch(False), _prefetch(True)  # of the line at a pointer, into L2; to write there


@intrinsic
def vector_lanes(typingctx: Any, like: Any) -> Any:
    """Lanes of a vector of ``like``'s type, a constant."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _int(lanes(like.bitwidth // 8))

    return types.int64(like), codegen


@intrinsic(prefer_literal=True)
def unpack(typingctx: Any, address: Any, count: Any) -> Any:
    """The int64 numbers at an address as a tuple of ``count``, which is a constant."""
    result = types.UniTuple(types.int64, count.literal_value)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        numbers = builder.inttoptr(args[0], I64.as_pointer())
        values = [builder.load(builder.gep(numbers, [_int(i)])) for i in range(result.count)]
        return context.make_tuple(builder, result, values)

    return result(types.int64, count), codegen


@intrinsic
def keep_whole(typingctx: Any) -> Any:
    """Forbid inlining the function that calls this: a helper used in several places is compiled once in each kernel."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.function.attributes.add("noinline")
        return context.get_dummy_value()

    return types.void(), codegen


def fuses_multiply_add() -> bool:
    """Whether the target multiplies and adds in one instruction."""
    triple, _, features = cpu_target.target_context.codegen().magic_tuple()
    return triple.startswith(("aarch64", "arm64")) or not {"+fma", "+avx512f"}.isdisjoint(features.split(","))
