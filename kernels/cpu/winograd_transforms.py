"""Winograd's transforms as straight-line vector code, generated from the matrices.

    input_tiles     slab [row][column][lane]      ->  V = B' d B   [ξ][c // lanes][tile][lane]    lanes: input channels
    output_tiles    M [ξ][tile][k]                ->  Y = A' M A   [row][column][lane]    lanes: output channels
    weight_tiles    [tap][lane]                   ->  U = G g G'   [ξ][lane]          lanes: output channels

ξ counts the n x n elements of a transformed tile. A transform in two dimensions is the same small matrix applied to
the columns, then to the rows, of a square of vectors held in registers (a 1-D variant has F(1, 1) on the other axis).
Rows or columns of the matrices that belong to points ±p share an even and an odd part, so a pair costs one addition
and one subtraction beyond those: 12 instructions for B' of F(4, 3), 10 for A'.

Each function is compiled for a ``variant``, an index of VARIANTS, which is a *literal* in its signature: same
arguments at run time, other code. ``compiled`` gives the code's address; the kernel proper (``winograd.py``) calls it
there, so that it is itself compiled once for all variants.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import typeof, types
from numba.extending import intrinsic

from ..winograd_matrices import VARIANTS, Rows, Variant, matrices
from .compile import jit
from .simd import REGISTERS, Vectors, const, load, pointer, shift, unpack

# ------------------------------------------------------------------------------------------- matrix times vectors


def _sum(v: Vectors, terms: list[tuple[Fraction, ir.Value]]) -> ir.Value:
    """The sum of coefficient * vector; a term with coefficient 1 goes first and costs nothing."""
    total = None
    for c, x in sorted(terms, key=lambda term: (term[0] != 1, abs(term[0]) != 1)):
        if total is None:
            total = x if c == 1 else v.b.fmul(_constant(v, c), x)
        elif abs(c) == 1:
            total = v.b.fadd(total, x) if c == 1 else v.b.fsub(total, x)
        else:
            total = v.multiply_add(_constant(v, c), x, total)
    return v.zero if total is None else total


def _constant(v: Vectors, c: Fraction) -> ir.Constant:
    return ir.Constant(v.vector, [float(c)] * v.lanes)


def _terms(row: tuple[Fraction, ...], x: list[ir.Value]) -> list[tuple[Fraction, ir.Value]]:
    return [(c, value) for c, value in zip(row, x, strict=True) if c]


def _partner(matrix: Rows, j: int) -> int | None:
    """The later row that is (even - odd) where row j is (even + odd), up to its sign."""
    flipped = tuple(-c if k % 2 else c for k, c in enumerate(matrix[j]))
    mirrored = [flipped, tuple(-c for c in flipped)]
    return next((i for i in range(j + 1, len(matrix)) if matrix[i] in mirrored), None)


def _times_rows(v: Vectors, matrix: Rows, x: list[ir.Value], wanted: list[int]) -> dict[int, ir.Value]:
    """``matrix`` x for B' and G, whose rows come in pairs; rows ``wanted``, both of a pair or none.

    A factor such as 1/6, which floating point lacks, multiplies last: where the sum is a multiple of 6 the product
    is exact.
    """
    out: dict[int, ir.Value] = {}
    for j in wanted:
        row = matrix[j]
        if j in out:
            continue
        last = next(c for c in row[::-1] if c)
        scale = Fraction(1) if last.denominator & (last.denominator - 1) == 0 else last
        pair = _partner(matrix, j)
        unit = tuple(c / scale for c in row)
        if pair is None:
            values = [(j, _sum(v, _terms(unit, x)))]
        else:
            partner = tuple(c / scale for c in matrix[pair])
            even = tuple((p + q) / 2 for p, q in zip(unit, partner, strict=True))
            odd = tuple((p - q) / 2 for p, q in zip(unit, partner, strict=True))
            c = next(c for c in odd[::-1] if c)
            base, step = _sum(v, _terms(even, x)), _sum(v, _terms(tuple(o / c for o in odd), x))
            values = [
                (j, _sum(v, [(Fraction(1), base), (c, step)])),
                (pair, _sum(v, [(Fraction(1), base), (-c, step)])),
            ]
        for i, value in values:
            out[i] = value if scale == 1 else v.b.fmul(_constant(v, scale), value)
    return out


def _times_columns(v: Vectors, matrix: Rows, x: list[ir.Value], wanted: list[int]) -> dict[int, ir.Value]:
    """Rows ``wanted`` of ``matrix`` x for A', whose columns come in pairs: equal in even rows, opposite in odd ones."""
    columns = list(zip(*matrix, strict=True))
    terms: dict[int, list[tuple[Fraction, ir.Value]]] = {i: [] for i in wanted}
    used: set[int] = set()
    for j, column in enumerate(columns):
        if j in used:
            continue
        mirrored = tuple(-c if i % 2 else c for i, c in enumerate(column))
        pair = next((i for i in range(j + 1, len(columns)) if columns[i] == mirrored and len(matrix) > 1), None)
        if pair is None:
            for i in wanted:
                terms[i] += [(column[i], x[j])] if column[i] else []
            continue
        used.add(pair)
        for odd, join in enumerate((v.b.fadd, v.b.fsub)):
            both = None
            for i in wanted:
                if i % 2 == odd:
                    both = both or join(x[j], x[pair])
                    terms[i].append((column[i], both))
    return {i: _sum(v, t) for i, t in terms.items()}


def _row_groups(product: Any, down: Rows, across: Rows) -> list[list[int]]:
    """The rows of ``down`` whose results are held in registers together.

    All of them where there are 32 registers. With 16 a few, so that hardly anything is spilled: both rows of a pair of
    B', even or odd rows of A'. Inputs are then read more than once. ns a tile and vector on Zen 3, in L1:

        F(4x4) input 40 at once, 24 in groups    F(5x5) 80, 60    F(6x6) 102, 71       output 25, 23    44, 41    66, 62
    """
    n, few = len(down), REGISTERS // len(across[0])
    if REGISTERS >= 32 or n <= few:
        return [list(range(n))]
    if product is _times_columns:
        halves = [list(range(parity, n, 2)) for parity in range(2)]
        return [half[i : i + few] for half in halves for i in range(0, len(half), few)]
    partners = {j: _partner(down, j) for j in range(n)}
    firsts = set(range(n)) - set(partners.values())
    return [[j] if (i := partners[j]) is None else [j, i] for j in sorted(firsts)]


def _square(v: Vectors, product: Any, down: Rows, across: Rows, loaded: Any) -> Iterator[tuple[int, list[ir.Value]]]:
    """Rows of ``down`` times a square times the transpose of ``across``, each with its number.

    ``loaded(j)`` emits loads of column j of the square. What is not used of it LLVM drops.
    """
    every = list(range(len(across)))
    for number, rows in enumerate(_row_groups(product, down, across)):
        if number:
            v.barrier()
        half = [product(v, down, loaded(j), rows) for j in range(len(across[0]))]
        for i in rows:
            row = product(v, across, [column[i] for column in half], every)
            yield i, [row[j] for j in every]


# --------------------------------------------------------------------------------------------------- one tile each


def _variant(literal: Any) -> Variant:
    return VARIANTS[literal.literal_value]


def _opaque(v: Vectors, value: ir.Value) -> ir.Value:
    """See ``Vectors.opaque``. With 32 vector registers LLVM does better by itself: where V goes out to L3, 256 and 512
    channels on a Xeon, the input transform takes 11 to 37% less time (225 to 267 ns a tile and vector, now 158 to 224).
    """
    return v.opaque(value) if REGISTERS < 32 else value


def _steps(v: Vectors, start: ir.Value, step: ir.Value, count: int) -> list[ir.Value]:
    """Addresses, each a step after the one before."""
    out = [start]
    while len(out) < count:
        out.append(_opaque(v, v.b.gep(out[-1], [step])))
    return out


@intrinsic(prefer_literal=True)
def _input_tile(
    typingctx: Any, variant: Any, source: Any, row_step: Any, column_step: Any, target: Any, xi_step: Any
) -> Any:
    """``target[ξ * xi_step] = (B' d B)[ξ]`` of the tile d at ``source``, rows and columns so many elements apart."""
    i64 = types.int64

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, source, row_step, column_step, target, xi_step = args
        v, f = Vectors(builder, sig.args[1]), _variant(variant)
        down, across = matrices(*f.rows).b, matrices(*f.columns).b
        starts = _steps(v, source, _opaque(v, row_step), len(down))
        xi_step = _opaque(v, xi_step)
        targets = _steps(v, target, builder.mul(xi_step, const(len(across))), len(down))

        def loaded(j: int) -> list[ir.Value]:
            return [v.load(row, builder.mul(column_step, const(j))) for row in starts]

        for i, row in _square(v, _times_rows, down, across, loaded):
            for j, value in enumerate(row):
                v.store(value, targets[i], builder.mul(xi_step, const(j)))
        return context.get_dummy_value()

    return types.void(variant, source, i64, i64, target, i64), codegen


@intrinsic(prefer_literal=True)
def _output_tile(
    typingctx: Any, variant: Any, source: Any, xi_step: Any, target: Any, row_step: Any, column_step: Any,
    rows: Any, columns: Any, spare: Any, bias: Any, low: Any, high: Any,
) -> Any:  # fmt: skip
    """``target[i * row_step + j * column_step] = (A' M A)[i, j]`` + bias, clamped, for i < rows and j < columns."""
    i64 = types.int64

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, source, xi_step, target, row_step, column_step, rows, columns, spare, bias, low, high = args
        v, f = Vectors(builder, sig.args[1]), _variant(variant)
        down, across = matrices(*f.rows).a, matrices(*f.columns).a
        n = len(across[0])
        xi_step, row_step, column_step = (_opaque(v, step) for step in (xi_step, row_step, column_step))
        sources = _steps(v, source, builder.mul(xi_step, const(n)), len(down[0]))
        targets = _steps(v, target, row_step, len(down))
        middle = min(1, len(down[0]) - 1), min(1, n - 1)

        def loaded(j: int) -> list[ir.Value]:
            m = [v.load(row, builder.mul(xi_step, const(j))) for row in sources]
            # Both coordinates of this element belong to point 1, so it enters every output once: add the bias there.
            if j == middle[1]:
                m[middle[0]] = builder.fadd(m[middle[0]], v.load(bias, const(0)))
            return m

        whole = builder.and_(
            builder.icmp_signed(">=", rows, const(len(down))),
            builder.icmp_signed(">=", columns, const(len(across))),
        )
        floor, ceiling = v.splat(low), v.splat(high)
        for i, row in _square(v, _times_columns, down, across, loaded):
            for j, value in enumerate(row):
                value = builder.select(builder.fcmp_ordered("<", value, floor), floor, value)  # NaN stays NaN
                row[j] = builder.select(builder.fcmp_ordered(">", value, ceiling), ceiling, value)
            places = [builder.gep(targets[i], [builder.mul(column_step, const(j))]) for j in range(len(row))]

            def store_part(row: list[ir.Value] = row, i: int = i, places: list[ir.Value] = places) -> None:
                below = builder.icmp_signed("<", const(i), rows)
                for j, (value, place) in enumerate(zip(row, places, strict=True)):
                    inside = builder.and_(below, builder.icmp_signed("<", const(j), columns))
                    v.store(value, builder.select(inside, place, spare), const(0))

            if REGISTERS >= 32:  # branches between rows cost more in spills (F(6x6): 147 -> 220) than the selects
                store_part()
                continue
            with builder.if_else(whole, likely=True) as (all_of_it, part):
                with all_of_it:
                    for value, place in zip(row, places, strict=True):
                        v.store(value, place, const(0))
                with part:
                    store_part()
        return context.get_dummy_value()

    element = source.dtype
    signature = types.void(variant, source, i64, target, i64, i64, i64, i64, spare, bias, element, element)
    return signature, codegen


@intrinsic(prefer_literal=True)
def _weight_tile(typingctx: Any, variant: Any, source: Any, target: Any, xi_step: Any) -> Any:
    """``target[ξ * xi_step] = (G g G')[ξ]`` of the taps g at ``source``, a vector each."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, source, target, xi_step = args
        v, f = Vectors(builder, sig.args[1]), _variant(variant)
        down, across = matrices(*f.rows).g, matrices(*f.columns).g
        r, s = len(down[0]), len(across[0])

        def loaded(j: int) -> list[ir.Value]:
            return [v.load(source, const((i * s + j) * v.lanes)) for i in range(r)]

        for i, row in _square(v, _times_rows, down, across, loaded):
            for j, value in enumerate(row):
                v.store(value, target, builder.mul(xi_step, const(i * len(row) + j)))
        return context.get_dummy_value()

    return types.void(variant, source, target, types.int64), codegen


# ------------------------------------------------------------------------------------------------- a row of tiles


class Tiles(NamedTuple):
    """A row of tiles for ``input_tiles`` or ``output_tiles``: addresses, then steps in elements."""

    tiles: int
    source: int
    source_tile: int  # from one tile to the next
    source_step: int  # from one row of a slab, or ξ of M, to the next
    target: int
    target_tile: int
    target_step: int  # from one ξ of V, or row of the output, to the next
    target_column: int
    rows: int  # of the output that exist, from the first tile's
    columns: int
    column_tile: int  # m
    spare: int  # one vector of memory for the others
    bias: int  # one vector
    limits: int  # lowest and highest result
    source_column: int  # from one column of a tile's slab to the next: dilation


_FIELDS = len(Tiles._fields)


@jit
def input_tiles(table, kind, variant):
    """Transform a row of tiles of a slab, one vector of channels."""
    g = Tiles(*unpack(table, _FIELDS))
    source, target = pointer(g.source, kind), pointer(g.target, kind)
    for i in range(g.tiles):
        s, t = shift(source, i * g.source_tile), shift(target, i * g.target_tile)
        _input_tile(variant, s, g.source_step, g.source_column, t, g.target_step)


@jit
def output_tiles(table, kind, variant):
    """Transform a row of tiles of M, one vector of output channels."""
    g = Tiles(*unpack(table, _FIELDS))
    source, target, spare = pointer(g.source, kind), pointer(g.target, kind), pointer(g.spare, kind)
    limits, bias = pointer(g.limits, kind), pointer(g.bias, kind)
    low, high = load(limits, 0), load(limits, 1)
    for i in range(g.tiles):
        s, t, left = shift(source, i * g.source_tile), shift(target, i * g.target_tile), g.columns - i * g.column_tile
        _output_tile(variant, s, g.source_step, t, g.target_step, g.target_column, g.rows, left, spare, bias, low, high)


@jit
def weight_tiles(table, kind, variant):
    """Transform ``tiles`` sets of taps, one vector of output channels each."""
    g = Tiles(*unpack(table, _FIELDS))
    source, target = pointer(g.source, kind), pointer(g.target, kind)
    for i in range(g.tiles):
        _weight_tile(variant, shift(source, i * g.source_tile), shift(target, i * g.target_tile), g.target_step)


def _signature(kind: Any, variant: Any) -> tuple[Any, ...]:
    return (types.int64, kind, variant)


@cache
def compiled(function: Any, dtype: np.dtype, variant: int) -> int:
    """The address of the code of one of the functions above for a dtype and a variant."""
    signature = _signature(typeof(dtype.type(0)), types.literal(variant))
    function.compile(signature)
    code = function.overloads[signature]
    return int(code.library.get_pointer_to_function(code.fndesc.llvm_func_name))


@intrinsic
def transform(typingctx: Any, address: Any, table: Any, kind: Any) -> Any:
    """Call a compiled transform on the :class:`Tiles` at ``table``."""
    arguments = _signature(kind, types.int64)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        convention = context.call_conv
        target = builder.inttoptr(args[0], convention.get_function_type(types.none, arguments).as_pointer())
        convention.call_function(builder, target, types.none, arguments, [*args[1:], const(0)])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, kind), codegen
