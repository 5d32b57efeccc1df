"""The vector vocabulary of compiled kernels: intrinsics that emit LLVM IR.

Numba compiles plain loops well, but it cannot be told "keep these 28 accumulators in registers". An intrinsic
can: every accumulator is a phi node of a loop that we write down ourselves, and LLVM keeps each in a register.
:class:`Vectors` writes such code: loads, stores, masks, broadcasts, multiply-adds, transposes. What needs no loop of
its own is an intrinsic below; the register tiles are in ``tiles`` and ``panels``, and ``vector`` makes vectors
ordinary values of compiled Python.

The vector length and the number of registers come from Numba's target: NUMBA_CPU_NAME and NUMBA_CPU_FEATURES
where set, else the host. Pointers are Numba's ``CPointer``; offsets count elements.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from .. import ACTIVATIONS
from .blocking import TILE_VECTORS


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
RELU6 = 1 + ACTIVATIONS.index("relu6")
I1, I32, I64 = ir.IntType(1), ir.IntType(32), ir.IntType(64)
INDEX = types.CPointer(types.int64)


def lanes(itemsize: int) -> int:
    """Elements in one vector."""
    return VECTOR_BYTES // itemsize


def columns(itemsize: int) -> int:
    """Elements in one row of a tile."""
    return TILE_VECTORS * VECTOR_BYTES // itemsize


class Vectors:
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
        none, six = (self.b.icmp_signed("==", activation, const(n)) for n in (0, RELU6))
        vectors = (ir.Constant(self.vector, [value] * self.lanes) for value in (float("-inf"), 6.0, float("inf")))
        low, upper, high = vectors
        return self.b.select(none, low, self.zero), self.b.select(six, upper, high)

    def sums_if(
        self, condition: ir.Value, values: list[ir.Value], pointer: ir.Value, offsets: list[ir.Value],
        masks: list[Any] | None = None,
    ) -> list[ir.Value]:  # fmt: skip
        """Vectors in memory added to ``values``, where the condition holds; with a mask only its lanes are read."""
        after = []
        before = self.b.block
        with self.b.if_then(condition):
            for value, offset, mask in zip(values, offsets, masks or [None] * len(values), strict=True):
                more = self.load(pointer, offset) if mask is None else self.masked_load(pointer, offset, mask)
                after.append(self.b.fadd(value, more))
            adding = self.b.block
        return self.joined(values, before, after, adding)

    def biased_if(self, condition: ir.Value, values: list[ir.Value], bias: ir.Value, width: int) -> list[ir.Value]:
        """A number from memory added to each ``width`` vectors, where the condition holds."""
        before = self.b.block
        with self.b.if_then(condition):
            rows = range(len(values) // width)
            more = [self.splat(self.b.load(self.b.gep(bias, [const(i)]), align=self.align)) for i in rows]
            after = [self.b.fadd(value, more[n // width]) for n, value in enumerate(values)]
            changing = self.b.block
        return self.joined(values, before, after, changing)

    def limited_if(self, condition: ir.Value, values: list[ir.Value], activation: ir.Value) -> list[ir.Value]:
        """The values within their activation's limits, where the condition holds."""
        before = self.b.block
        with self.b.if_then(condition):
            lowest, highest = self.limits(activation)
            after = [self.clamp(value, lowest, highest) for value in values]
            changing = self.b.block
        return self.joined(values, before, after, changing)

    def joined(
        self, values: list[ir.Value], before: ir.Block, changed: list[ir.Value], block: ir.Block
    ) -> list[ir.Value]:  # fmt: skip
        """``changed`` after the block that changed them, ``values`` where it was passed by."""
        phis = [self.b.phi(self.vector) for _ in values]
        for phi, value, other in zip(phis, values, changed, strict=True):
            phi.add_incoming(value, before)
            phi.add_incoming(other, block)
        return phis

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
        rows = [self.b.gep(source, [self.b.mul(step, const(i))]) for i in range(n)]
        if n * self.align != 32:
            return self.transposed([self.load(row, const(0)) for row in rows], stages=1)
        low = [self.load_pair(rows[i], rows[i + half]) for i in range(half)]
        ends = [self.b.gep(row, [const(half)]) for row in rows]
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


def const(value: int) -> ir.Constant:
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
    with b.if_else(b.icmp_signed(">=", n, const(kind.count))) as (whole, part):
        with whole:
            b.store(value, b.bitcast(pointer, kind.as_pointer()), align=align)
        with part:
            left = b.select(b.icmp_signed(">", n, const(0)), n, const(0))
            half = kind.count // 2
            while half:
                ints = ir.VectorType(I32, half)
                low, high = (
                    b.shuffle_vector(value, value, ir.Constant(ints, list(range(first, first + half))))
                    for first in (0, half)
                )
                taken, before = b.icmp_unsigned("!=", b.and_(left, const(half)), const(0)), b.block
                with b.if_then(taken):
                    b.store(low, b.bitcast(pointer, low.type.as_pointer()), align=align)
                    stored = b.block
                value = b.phi(low.type)
                value.add_incoming(low, before)
                value.add_incoming(high, stored)
                pointer = b.gep(pointer, [b.and_(left, const(half))])
                half //= 2


def open_phis(b: ir.IRBuilder, initial: list[ir.Value], source: ir.Block) -> list[ir.PhiInstr]:
    phis = [b.phi(value.type) for value in initial]
    for phi, value in zip(phis, initial, strict=True):
        phi.add_incoming(value, source)
    return phis


def close_phis(phis: list[ir.PhiInstr], values: list[ir.Value], source: ir.Block) -> None:
    for phi, value in zip(phis, values, strict=True):
        phi.add_incoming(value, source)


@intrinsic
def transpose_square(typingctx: Any, source: Any, lds: Any, target: Any, ldt: Any) -> Any:
    """``target[j * ldt + i] = source[i * lds + j]`` for a full square of one vector's lanes a side."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        source, lds, target, ldt = args
        v = Vectors(builder, sig.args[0])
        for i, row in enumerate(v.transposed(v.load_square(source, lds), first=1)):
            v.store(row, target, builder.mul(ldt, const(i)))
        return context.get_dummy_value()

    return types.void(source, types.int64, target, types.int64), codegen


@intrinsic
def transpose_to(typingctx: Any, source: Any, lds: Any, target: Any, places: Any) -> Any:
    """``transpose_square`` whose rows go where a table says: ``target[places[j] + i] = source[i * lds + j]``."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        source, lds, target, places = args
        v = Vectors(builder, sig.args[0])
        for i, row in enumerate(v.transposed(v.load_square(source, lds), first=1)):
            v.store(row, target, builder.load(builder.gep(places, [const(i)])))
        return context.get_dummy_value()

    return types.void(source, types.int64, target, INDEX), codegen


@intrinsic
def transpose_half(typingctx: Any, source: Any, lds: Any, target: Any) -> Any:
    """``target[j * h + i] = source[i * lds + j]`` for i < h and j < 2 h: h rows, half of a vector's lanes."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        source, lds, target = args
        v = Vectors(builder, sig.args[0])
        rows = [v.load(source, builder.mul(lds, const(i))) for i in range(v.lanes // 2)]
        for i, row in enumerate(v.transposed_half(rows)):
            v.store(row, target, const(i * v.lanes))
        return context.get_dummy_value()

    return types.void(source, types.int64, target), codegen


@intrinsic
def transpose_part(typingctx: Any, source: Any, lds: Any, target: Any, ldt: Any, n: Any, m: Any) -> Any:
    """As ``transpose_square`` for i < n and j < m; nothing else is read or written."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        source, lds, target, ldt, n, m = args
        v = Vectors(builder, sig.args[0])
        reading, none = v.first(m), ir.Constant(v.mask, [0] * v.lanes)
        rows = []
        for i in range(v.lanes):
            mask = builder.select(builder.icmp_signed("<", const(i), n), reading, none)
            rows.append(v.masked_load(source, builder.mul(lds, const(i)), mask))
        for i, row in enumerate(v.transposed(rows)):
            width = builder.select(builder.icmp_signed("<", const(i), m), n, const(0))
            v.store_first(row, target, builder.mul(ldt, const(i)), width)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(source, i64, target, i64, i64, i64), codegen


@intrinsic
def transpose_columns(typingctx: Any, source: Any, lds: Any, target: Any, ldt: Any, m: Any) -> Any:
    """As ``transpose_square`` for j < m: all rows are there, so one mask does, and what is stored is whole vectors.

    16 rows of 14 pixels: 17 ns instead of the 45 of ``transpose_part``.
    """

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        source, lds, target, ldt, m = args
        v = Vectors(builder, sig.args[0])
        mask = v.first(m)
        rows = [v.masked_load(source, builder.mul(lds, const(i)), mask) for i in range(v.lanes)]
        for i, row in enumerate(v.transposed(rows)):
            with builder.if_then(builder.icmp_signed("<", const(i), m)):
                v.store(row, target, builder.mul(ldt, const(i)))
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(source, i64, target, i64, i64), codegen


@intrinsic
def copy(typingctx: Any, source: Any, target: Any, n: Any) -> Any:
    """``target[:n] = source[:n]``, a vector at a time, the last one masked."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        source, target, n = args
        v = Vectors(builder, sig.args[0])
        entry = builder.block
        head, body, tail = (builder.append_basic_block(name) for name in ("head", "body", "tail"))
        builder.branch(head)
        builder.position_at_end(head)
        (i,) = open_phis(builder, [const(0)], entry)
        after = builder.add(i, const(v.lanes))
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


def _copy_every(step: int) -> Any:
    """An intrinsic ``(source, target, n)``: ``target[i] = source[i * step]`` for i < n, ``step`` a power of two.

    A vector at a time; nothing past the last element is read.
    """

    @intrinsic
    def copy_every(typingctx: Any, source: Any, target: Any, n: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            source, target, n = args
            v = Vectors(builder, sig.args[0])
            entry = builder.block
            head, body, done = (builder.append_basic_block(name) for name in ("head", "body", "done"))
            builder.branch(head)
            builder.position_at_end(head)
            (i,) = open_phis(builder, [const(0)], entry)
            builder.cbranch(builder.icmp_signed("<", i, n), body, done)
            builder.position_at_end(body)
            left, first = builder.sub(n, i), builder.mul(i, const(step))
            read = builder.sub(builder.mul(left, const(step)), const(step - 1))
            vectors = []
            for k in range(0, step * v.lanes, v.lanes):
                mask = v.first(builder.sub(read, const(k)))
                vectors.append(v.masked_load(source, builder.add(first, const(k)), mask))
            even = ir.Constant(v.ints, list(range(0, 2 * v.lanes, 2)))
            while len(vectors) > 1:
                pairs = zip(vectors[::2], vectors[1::2], strict=True)
                vectors = [builder.shuffle_vector(low, high, even) for low, high in pairs]
            v.store_first(vectors[0], target, i, left)
            i.add_incoming(builder.add(i, const(v.lanes)), builder.block)
            builder.branch(head)
            builder.position_at_end(done)
            return context.get_dummy_value()

        return types.void(source, target, types.int64), codegen

    return copy_every


copy_every_second, copy_every_fourth = _copy_every(2), _copy_every(4)


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
            Vectors(builder, sig.args[0]).prefetch(args[0], write=write, level=1 if write else 2)
            return context.get_dummy_value()

        return types.void(address), codegen

    return prefetch


prefetch_read, prefetch_write = _prefetch(False), _prefetch(True)  # of the line at a pointer, into L2; to write there


@intrinsic
def vector_lanes(typingctx: Any, like: Any) -> Any:
    """Lanes of a vector of ``like``'s type, a constant."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return const(lanes(like.bitwidth // 8))

    return types.int64(like), codegen


@intrinsic(prefer_literal=True)
def unpack(typingctx: Any, address: Any, count: Any) -> Any:
    """The int64 numbers at an address as a tuple of ``count``, which is a constant."""
    result = types.UniTuple(types.int64, count.literal_value)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        numbers = builder.inttoptr(args[0], I64.as_pointer())
        values = [builder.load(builder.gep(numbers, [const(i)])) for i in range(result.count)]
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
