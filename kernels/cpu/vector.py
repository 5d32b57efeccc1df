"""SIMD vectors as ordinary values in compiled Python.

Numba vectorises plain loops, but neither comparisons that let NaN through nor loops with short or strided rows.
Here a vector is a Numba type, its operations are intrinsics of one or two LLVM instructions, and a kernel is a
plain loop over vectors:

    x, y = pointer(x_address, kind), pointer(y_address, kind)
    best = splat(x, number(x, -inf))
    for j in range(taps):
        best = maximum(load(x, i + j), best)
    store_first(y, o, best, n)

``x`` and ``y`` are pointers to the elements of contiguous arrays (:func:`.simd.pointer`), a vector has
``lane_count(x)`` elements of x's dtype (a whole register of the target), offsets count elements. Loads and stores need
no alignment beyond the element's. Index vectors are int32 with as many lanes as the values that they belong to.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

from .pool_walk import SCRATCH_BYTES
from .simd import fuses_multiply_add, lanes, store_lanes

I1, I32, I64 = ir.IntType(1), ir.IntType(32), ir.IntType(64)
FUSES = fuses_multiply_add()
"""Whether the target has fused multiply-add; without, LLVM would call a library function for each lane."""

_ELEMENTS = {types.float32: ir.FloatType(), types.float64: ir.DoubleType(), types.int32: I32, types.boolean: I1}


class Vector(types.Type):
    """``count`` elements of ``dtype`` in a register; of booleans, a mask."""

    def __init__(self, dtype: types.Type, count: int) -> None:
        self.dtype = dtype
        self.count = count
        self.llvm = ir.VectorType(_ELEMENTS[dtype], count)
        super().__init__(name=f"vector({count} x {dtype})")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, vector: Vector) -> None:
        super().__init__(manager, vector, vector.llvm)


def _vector_of(pointer: Any) -> Vector:
    return Vector(pointer.dtype, lanes(pointer.dtype.bitwidth // 8))


# --- IR helpers ---


def _ints(values: Any) -> ir.Constant:
    values = list(values)
    return ir.Constant(ir.VectorType(I32, len(values)), values)


def _splat(builder: Any, scalar: ir.Value, count: int) -> ir.Value:
    none = ir.Constant(ir.VectorType(scalar.type, count), ir.Undefined)
    one = builder.insert_element(none, scalar, ir.Constant(I32, 0))
    return builder.shuffle_vector(one, none, _ints([0] * count))


def _call(builder: Any, name: str, result: ir.Type, *arguments: ir.Value) -> ir.Value:
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(result, [a.type for a in arguments]), name
    )
    return builder.call(function, arguments)


def _suffix(vector: ir.VectorType) -> str:
    """How LLVM spells the type in the names of its intrinsics."""
    element = {ir.FloatType(): "f32", ir.DoubleType(): "f64", I32: "i32", I64: "i64"}[vector.element]
    return f"v{vector.count}{element}"


def _load(builder: Any, vector: Vector, address: ir.Value, mask: Any = None, fill: Any = None) -> ir.Value:
    pointer = builder.bitcast(address, vector.llvm.as_pointer())
    align = vector.dtype.bitwidth // 8
    if mask is None:
        return builder.load(pointer, align=align)
    name = f"llvm.masked.load.{_suffix(vector.llvm)}.p0"
    return _call(builder, name, vector.llvm, pointer, ir.Constant(I32, align), mask, fill)


def _below(builder: Any, position: ir.Value, limit: ir.Value, count: int) -> ir.Value:
    """Mask of the lanes l with 0 <= position + l < limit."""
    positions = builder.add(_splat(builder, builder.trunc(position, I32), count), _ints(range(count)))
    return builder.icmp_unsigned("<", positions, _splat(builder, builder.trunc(limit, I32), count))


def _tree(builder: Any, value: ir.Value, combine: Any) -> ir.Value:
    """All lanes combined, halves first."""
    half = value.type.count // 2
    while half:
        swapped = builder.shuffle_vector(
            value, value, _ints((lane + half) % value.type.count for lane in range(value.type.count))
        )
        value, half = combine(builder, swapped, value), half // 2
    return builder.extract_element(value, ir.Constant(I32, 0))


def _extreme(builder: Any, which: str, a: ir.Value, b: ir.Value) -> ir.Value:
    """``llvm.maximum`` or ``llvm.minimum``: NaN if either is; without order among zeros, which x86 would pay for."""
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(a.type, [a.type, b.type]), f"llvm.{which}.{_suffix(a.type)}"
    )
    return builder.call(function, [a, b], fastmath=["nsz"])


def _beats(builder: Any, relation: str, v: ir.Value, best: ir.Value) -> ir.Value:
    first_nan = builder.and_(builder.fcmp_unordered("uno", v, v), builder.fcmp_ordered("ord", best, best))
    return builder.or_(builder.fcmp_ordered(relation, v, best), first_nan)


# --- vectors from scalars and memory ---


@intrinsic
def scratch(typingctx: Any, kind: Any) -> Any:
    """A pointer to ``SCRATCH_BYTES`` of this call's stack, on a cache line."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        memory = cgutils.alloca_once(builder, ir.IntType(8), size=SCRATCH_BYTES)
        memory.align = 64
        return builder.bitcast(memory, context.get_value_type(sig.return_type))

    return types.CPointer(kind)(kind), codegen


@intrinsic
def lane_count(typingctx: Any, like: Any) -> Any:
    """Lanes of a vector of the elements pointed to."""
    count = lanes(like.dtype.bitwidth // 8)
    return types.int64(like), lambda context, builder, sig, args: ir.Constant(I64, count)


@intrinsic
def number(typingctx: Any, like: Any, value: Any) -> Any:
    """A number as an element of the dtype pointed to."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return context.cast(builder, args[1], sig.args[1], sig.return_type)

    return like.dtype(like, value), codegen


@intrinsic
def splat(typingctx: Any, pointer: Any, scalar: Any) -> Any:
    """A vector of the dtype pointed to, ``scalar`` in every lane."""
    vector = _vector_of(pointer)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _splat(builder, args[1], vector.count)

    return vector(pointer, pointer.dtype), codegen


@intrinsic
def load(typingctx: Any, pointer: Any, offset: Any) -> Any:
    """pointer[offset + l] in lane l."""
    vector = _vector_of(pointer)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _load(builder, vector, builder.gep(args[0], [args[1]]))

    return vector(pointer, types.int64), codegen


@intrinsic
def load_within(typingctx: Any, pointer: Any, row: Any, position: Any, limit: Any, fill: Any) -> Any:
    """pointer[row + p] for p = position + l where 0 <= p < limit, elsewhere ``fill``. Nothing else is read."""
    vector = _vector_of(pointer)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer, row, position, limit, fill = args
        address = builder.gep(pointer, [builder.add(row, position)])
        mask = _below(builder, position, limit, vector.count)
        return _load(builder, vector, address, mask, _splat(builder, fill, vector.count))

    i64 = types.int64
    return vector(pointer, i64, i64, i64, pointer.dtype), codegen


@intrinsic
def load_first(typingctx: Any, pointer: Any, offset: Any, n: Any) -> Any:
    """pointer[offset + l] for l < n, elsewhere 0; nothing else is read."""
    vector = _vector_of(pointer)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer, offset, n = args
        address = builder.gep(pointer, [offset])
        whole = builder.icmp_signed(">=", n, ir.Constant(I64, vector.count))
        with builder.if_else(whole) as (then, otherwise):
            with then:
                all_lanes, then_block = _load(builder, vector, address), builder.block
            with otherwise:
                mask = _below(builder, ir.Constant(I64, 0), n, vector.count)
                zeros = ir.Constant(vector.llvm, [0] * vector.count)
                some, otherwise_block = _load(builder, vector, address, mask, zeros), builder.block
        value = builder.phi(vector.llvm)
        value.add_incoming(all_lanes, then_block)
        value.add_incoming(some, otherwise_block)
        return value

    return vector(pointer, types.int64, types.int64), codegen


def _alternate(builder: Any, low: ir.Value, high: ir.Value, first: int = 0) -> ir.Value:
    return builder.shuffle_vector(low, high, _ints(range(first, 2 * low.type.count, 2)))


def _alternating_load(first: int) -> Any:
    """Of two vectors every second lane. Both loads of the same offset share theirs."""

    def typed(typingctx: Any, pointer: Any, offset: Any) -> Any:
        vector = _vector_of(pointer)

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            low = builder.gep(args[0], [args[1]])
            high = builder.gep(low, [ir.Constant(I64, vector.count)])
            return _alternate(builder, _load(builder, vector, low), _load(builder, vector, high), first)

        return vector(pointer, types.int64), codegen

    return typed


@intrinsic
def load_even(typingctx: Any, pointer: Any, offset: Any) -> Any:
    """pointer[offset + 2 l] in lane l; pointer[offset + 2 lanes - 1] is read too."""
    return _alternating_load(0)(typingctx, pointer, offset)


@intrinsic
def load_odd(typingctx: Any, pointer: Any, offset: Any) -> Any:
    """pointer[offset + 2 l + 1] in lane l."""
    return _alternating_load(1)(typingctx, pointer, offset)


def _interleaved(first: int) -> Any:
    def typed(typingctx: Any, even: Any, odd: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            half, count = first * even.count // 2, even.count
            lanes_of_both = [half + lane // 2 + lane % 2 * count for lane in range(count)]
            return builder.shuffle_vector(*args, _ints(lanes_of_both))

        return even(even, odd), codegen

    return typed


@intrinsic
def interleaved_low(typingctx: Any, even: Any, odd: Any) -> Any:
    """even[0] odd[0] even[1] odd[1] ..., as far as one vector goes."""
    return _interleaved(0)(typingctx, even, odd)


@intrinsic
def interleaved_high(typingctx: Any, even: Any, odd: Any) -> Any:
    """What follows ``interleaved_low``."""
    return _interleaved(1)(typingctx, even, odd)


@intrinsic
def load_even_within(typingctx: Any, pointer: Any, row: Any, position: Any, limit: Any, fill: Any) -> Any:
    """As ``load_within`` for p = position + 2 l."""
    vector = _vector_of(pointer)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer, row, position, limit, fill = args
        address = builder.gep(pointer, [builder.add(row, position)])
        other = _splat(builder, fill, vector.count)
        halves = []
        for part in range(2):
            skip = ir.Constant(I64, part * vector.count)
            mask = _below(builder, builder.add(position, skip), limit, vector.count)
            halves.append(_load(builder, vector, builder.gep(address, [skip]), mask, other))
        return _alternate(builder, *halves)

    i64 = types.int64
    return vector(pointer, i64, i64, i64, pointer.dtype), codegen


def _alternating(first: int) -> Any:
    def typed(typingctx: Any, low: Any, high: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return _alternate(builder, args[0], args[1], first)

        return low(low, high), codegen

    return typed


@intrinsic
def evens(typingctx: Any, low: Any, high: Any) -> Any:
    """low[0] low[2] ... high[0] high[2] ..."""
    return _alternating(0)(typingctx, low, high)


@intrinsic
def odds(typingctx: Any, low: Any, high: Any) -> Any:
    """low[1] low[3] ... high[1] high[3] ..."""
    return _alternating(1)(typingctx, low, high)


@intrinsic
def gather(typingctx: Any, pointer: Any, row: Any, positions: Any, fill: Any) -> Any:
    """pointer[row + p] for the p >= 0 of an index vector, elsewhere ``fill``. Nothing else is read."""
    vector = _vector_of(pointer)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer, row, positions, fill = args
        count, align = vector.count, vector.dtype.bitwidth // 8
        longs = ir.VectorType(I64, count)
        offsets = builder.mul(builder.sext(positions, longs), ir.Constant(longs, [align] * count))
        start = _splat(builder, builder.ptrtoint(builder.gep(pointer, [row]), I64), count)
        addresses = builder.inttoptr(builder.add(offsets, start), ir.VectorType(pointer.type, count))
        mask = builder.icmp_signed(">=", positions, _ints([0] * count))
        name = f"llvm.masked.gather.{_suffix(vector.llvm)}.v{count}p0"
        other = _splat(builder, fill, count)
        return _call(builder, name, vector.llvm, addresses, ir.Constant(I32, align), mask, other)

    return vector(pointer, types.int64, positions, pointer.dtype), codegen


@intrinsic
def store(typingctx: Any, pointer: Any, offset: Any, value: Any) -> Any:
    """pointer[offset + l] = lane l."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer, offset, value = args
        target = builder.bitcast(builder.gep(pointer, [offset]), value.type.as_pointer())
        builder.store(value, target, align=sig.args[0].dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(pointer, types.int64, value), codegen


@intrinsic
def store_first(typingctx: Any, pointer: Any, offset: Any, value: Any, n: Any) -> Any:
    """pointer[offset + l] = lane l for l < n; an int32 vector may go to int64 elements."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer, offset, value, n = args
        count = value.type.count
        element = context.get_data_type(sig.args[0].dtype)
        if value.type.element != element:
            value = builder.sext(value, ir.VectorType(element, count))
        align = sig.args[0].dtype.bitwidth // 8
        pointer = builder.gep(pointer, [offset])
        whole = builder.icmp_signed(">=", n, ir.Constant(I64, count))
        with builder.if_else(whole) as (then, otherwise):
            with then:
                builder.store(value, builder.bitcast(pointer, value.type.as_pointer()), align=align)
            with otherwise:
                store_lanes(builder, value, pointer, n, align)
        return context.get_dummy_value()

    return types.void(pointer, types.int64, value, types.int64), codegen


@intrinsic
def store_halves(typingctx: Any, pointer: Any, offset: Any, value: Any, n: Any) -> Any:
    """The first n lanes of the vector's lower half, and behind them those of its upper half, n at most as many."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer, offset, value, n = args
        half, nbytes = value.type.count // 2, sig.args[0].dtype.bitwidth // 8
        for first, at in ((0, offset), (half, builder.add(offset, n))):
            part = builder.shuffle_vector(value, value, _ints(range(first, first + half)))
            store_lanes(builder, part, builder.gep(pointer, [at]), n, nbytes)
        return context.get_dummy_value()

    return types.void(pointer, types.int64, value, types.int64), codegen


@intrinsic
def keep_rolled(typingctx: Any) -> Any:
    """No instruction, but LLVM does not unroll the loops around it.

    It would unroll a nest of loops over a window eightfold each, for windows of two or three: three times the compile
    time, and slower. (An empty inline assembly counts as a call; being empty, no assembler is needed.)
    """

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.asm(ir.FunctionType(ir.VoidType(), []), "", "", [], side_effect=True)
        return context.get_dummy_value()

    return types.void(), codegen


# --- arithmetic ---


@intrinsic
def add(typingctx: Any, a: Any, b: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.add(*args) if a.dtype == types.int32 else builder.fadd(*args)

    return a(a, b), codegen


@intrinsic
def add_square(typingctx: Any, v: Any, sum: Any) -> Any:
    """sum + v * v, fused where the target can."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _call(builder, f"llvm.fmuladd.{_suffix(v.llvm)}", v.llvm, args[0], args[0], args[1])

    return v(v, sum), codegen


@intrinsic
def add_product(typingctx: Any, a: Any, b: Any, sum: Any) -> Any:
    """sum + a * b, fused where the target can."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _call(builder, f"llvm.fmuladd.{_suffix(a.llvm)}", a.llvm, *args)

    return a(a, b, sum), codegen


@intrinsic
def multiply(typingctx: Any, a: Any, b: Any) -> Any:
    return a(a, b), lambda context, builder, sig, args: builder.fmul(*args)


@intrinsic
def divide(typingctx: Any, a: Any, b: Any) -> Any:
    return a(a, b), lambda context, builder, sig, args: builder.fdiv(*args)


@intrinsic
def quotient(typingctx: Any, a: Any, b: Any, inverse: Any) -> Any:
    """a / b, correctly rounded, given 1 / b: 5 instructions, where a division of 16 lanes takes 10 cycles and more.

    With q = a * inverse, off by a unit in the last place at most, the remainder a - q * b is exact, and one more step
    of Newton's rounds correctly (Markstein, Computation of elementary functions on the IBM RISC System/6000, 1990;
    subnormal quotients may be off by one unit). Where the remainder is NaN, q is infinite or NaN, and right.
    """

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        a, b, inverse = args
        if not FUSES:
            return builder.fdiv(a, b)
        fma = f"llvm.fma.{_suffix(a.type)}"
        q = builder.fmul(a, inverse)
        remainder = _call(builder, fma, a.type, builder.fneg(q), b, a)
        exact = _call(builder, fma, a.type, remainder, inverse, q)
        return builder.select(builder.fcmp_ordered("ord", remainder, remainder), exact, q)

    return a(a, b, inverse), codegen


@intrinsic
def square_root(typingctx: Any, a: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _call(builder, f"llvm.sqrt.{_suffix(a.llvm)}", a.llvm, *args)

    return a(a), codegen


@intrinsic
def maximum(typingctx: Any, v: Any, best: Any) -> Any:
    """The larger of each pair, NaN if either is NaN."""
    return v(v, best), lambda context, builder, sig, args: _extreme(builder, "maximum", *args)


@intrinsic
def minimum(typingctx: Any, v: Any, best: Any) -> Any:
    """The smaller of each pair, NaN if either is NaN."""
    return v(v, best), lambda context, builder, sig, args: _extreme(builder, "minimum", *args)


@intrinsic
def largest(typingctx: Any, v: Any) -> Any:
    """The largest lane, NaN if any is NaN."""
    return v.dtype(v), lambda c, builder, sig, args: _tree(
        builder, args[0], lambda b, x, y: _extreme(b, "maximum", x, y)
    )


@intrinsic
def smallest(typingctx: Any, v: Any) -> Any:
    """The smallest lane, NaN if any is NaN."""
    return v.dtype(v), lambda c, builder, sig, args: _tree(
        builder, args[0], lambda b, x, y: _extreme(b, "minimum", x, y)
    )


@intrinsic
def total(typingctx: Any, v: Any) -> Any:
    """The sum of the lanes, in log2(lanes) steps."""
    return v.dtype(v), lambda context, builder, sig, args: _tree(builder, args[0], lambda b, x, y: b.fadd(x, y))


def _combined_rows(combine: Any) -> Any:
    """An intrinsic's typing: as many vectors as lanes, at ``pointer[offset + l * lanes]``, each reduced to lane l.

    Halves of lanes are combined as in ``_tree``, for all vectors at once, so that the bits are those of ``_tree``:

        a: a0 a1 a2 a3     lanes' bit 2: 0 -> from a, 1 -> from b      a0+a2 a1+a3 | b2+b0 b3+b1     and so on
        b: b0 b1 b2 b3
    """

    def typed(typingctx: Any, pointer: Any, offset: Any) -> Any:
        vector = _vector_of(pointer)

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            start, n = builder.gep(args[0], [args[1]]), vector.count
            rows = [_load(builder, vector, builder.gep(start, [ir.Constant(I64, i * n)])) for i in range(n)]
            while len(rows) > 1:
                step = len(rows) // 2
                kept = _ints(n + i if i & step else i for i in range(n))
                swapped = _ints(n + i - step if i & step else i + step for i in range(n))
                rows = [
                    combine(builder, builder.shuffle_vector(a, b, swapped), builder.shuffle_vector(a, b, kept))
                    for a, b in zip(rows[:step], rows[step:], strict=True)
                ]
            return rows[0]

        return vector(pointer, types.int64), codegen

    return typed


@intrinsic
def totals(typingctx: Any, pointer: Any, offset: Any) -> Any:
    """The sum of each of ``lanes`` vectors in memory."""
    return _combined_rows(lambda b, x, y: b.fadd(x, y))(typingctx, pointer, offset)


@intrinsic
def all_largest(typingctx: Any, pointer: Any, offset: Any) -> Any:
    """The largest lane of each of ``lanes`` vectors in memory."""
    return _combined_rows(lambda b, x, y: _extreme(b, "maximum", x, y))(typingctx, pointer, offset)


@intrinsic
def all_smallest(typingctx: Any, pointer: Any, offset: Any) -> Any:
    """The smallest lane of each of ``lanes`` vectors in memory."""
    return _combined_rows(lambda b, x, y: _extreme(b, "minimum", x, y))(typingctx, pointer, offset)


# --- masks and indices ---


@intrinsic
def is_larger(typingctx: Any, v: Any, best: Any) -> Any:
    """Mask of the lanes where v is larger than best, or the first NaN."""
    mask = Vector(types.boolean, v.count)
    return mask(v, best), lambda context, builder, sig, args: _beats(builder, ">", *args)


@intrinsic
def is_smaller(typingctx: Any, v: Any, best: Any) -> Any:
    """Mask of the lanes where v is smaller than best, or the first NaN."""
    mask = Vector(types.boolean, v.count)
    return mask(v, best), lambda context, builder, sig, args: _beats(builder, "<", *args)


@intrinsic
def where(typingctx: Any, mask: Any, a: Any, b: Any) -> Any:
    """Lane by lane, a where the mask is set, else b."""
    return a(mask, a, b), lambda context, builder, sig, args: builder.select(*args)


@intrinsic
def index_ramp(typingctx: Any, like: Any, start: Any, step: Any) -> Any:
    """The index vector start + l * step, with the lanes of ``like``'s vectors."""
    vector = Vector(types.int32, lanes(like.dtype.bitwidth // 8))

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        start, step = (_splat(builder, builder.trunc(a, I32), vector.count) for a in args[1:])
        return builder.add(start, builder.mul(step, _ints(range(vector.count))))

    return vector(like, types.int64, types.int64), codegen


@intrinsic
def ramp_within(typingctx: Any, like: Any, start: Any, step: Any, limit: Any) -> Any:
    """The index vector p = start + l * step where 0 <= p < limit, else -1."""
    vector = Vector(types.int32, lanes(like.dtype.bitwidth // 8))

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        start, step, limit = (_splat(builder, builder.trunc(a, I32), vector.count) for a in args[1:])
        ramp = builder.add(start, builder.mul(step, _ints(range(vector.count))))
        return builder.select(builder.icmp_unsigned("<", ramp, limit), ramp, _ints([-1] * vector.count))

    return vector(like, types.int64, types.int64, types.int64), codegen


@intrinsic
def tap_positions(typingctx: Any, starts: Any, counts: Any, tap: Any, step: Any) -> Any:
    """The index vector starts + tap * step where tap < counts, else -1."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        starts, counts, tap, step = args
        count = starts.type.count
        positions = builder.add(starts, _splat(builder, builder.trunc(builder.mul(tap, step), I32), count))
        has_tap = builder.icmp_signed("<", _splat(builder, builder.trunc(tap, I32), count), counts)
        return builder.select(has_tap, positions, _ints([-1] * count))

    return starts(starts, counts, types.int64, types.int64), codegen


@intrinsic
def load_indices(typingctx: Any, like: Any, table: Any, offset: Any, n: Any) -> Any:
    """table[offset + l] of an int32 table for l < n, else -1, with the lanes of ``like``'s vectors."""
    vector = Vector(types.int32, lanes(like.dtype.bitwidth // 8))

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, table, offset, n = args
        address = builder.gep(table, [offset])
        mask = _below(builder, ir.Constant(I64, 0), n, vector.count)
        return _load(builder, vector, address, mask, _ints([-1] * vector.count))

    return vector(like, table, types.int64, types.int64), codegen


@intrinsic
def add_where_valid(typingctx: Any, indices: Any, offset: Any) -> Any:
    """indices + offset; -1 stays -1."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        indices, offset = args
        moved = builder.add(indices, _splat(builder, builder.trunc(offset, I32), indices.type.count))
        valid = builder.icmp_signed(">=", indices, _ints([0] * indices.type.count))
        return builder.select(valid, moved, indices)

    return indices(indices, types.int64), codegen
