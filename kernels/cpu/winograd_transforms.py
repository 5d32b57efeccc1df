"""Winograd's transforms as straight-line vector code, generated from the matrices.

    input_tiles     slab [row][column][lane]      ->  V = B' d B   [ξ][tile][c]       lanes: input channels
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

from fractions import Fraction
from functools import cache
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import typeof, types
from numba.extending import intrinsic

from ..winograd_matrices import VARIANTS, Rows, Variant, matrices
from .compile import jit
from .simd import _int, _Vectors, load, pointer, shift, unpack

# ------------------------------------------------------------------------------------------- matrix times vectors


def _sum(v: _Vectors, terms: list[tuple[Fraction, ir.Value]]) -> ir.Value:
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


def _constant(v: _Vectors, c: Fraction) -> ir.Constant:
    return ir.Constant(v.vector, [float(c)] * v.lanes)


def _terms(row: tuple[Fraction, ...], x: list[ir.Value]) -> list[tuple[Fraction, ir.Value]]:
    return [(c, value) for c, value in zip(row, x, strict=True) if c]


def _times_rows(v: _Vectors, matrix: Rows, x: list[ir.Value]) -> list[ir.Value]:
    """``matrix`` x for B' and G, whose rows come in pairs (even + odd, even - odd).

    A factor such as 1/6, which floating point lacks, multiplies last: where the sum is a multiple of 6 the product
    is exact.
    """
    out: list[ir.Value | None] = [None] * len(matrix)
    for j, row in enumerate(matrix):
        if out[j] is not None:
            continue
        last = next(c for c in row[::-1] if c)
        scale = Fraction(1) if last.denominator & (last.denominator - 1) == 0 else last
        flipped = tuple(-c if k % 2 else c for k, c in enumerate(row))
        mirrored = [flipped, tuple(-c for c in flipped)]
        pair = next((i for i in range(j + 1, len(matrix)) if matrix[i] in mirrored), None)
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
    return [value for value in out if value is not None]


def _times_columns(v: _Vectors, matrix: Rows, x: list[ir.Value]) -> list[ir.Value]:
    """``matrix`` x for A', whose columns come in pairs: equal in even rows, opposite in odd ones."""
    columns = list(zip(*matrix, strict=True))
    terms: list[list[tuple[Fraction, ir.Value]]] = [[] for _ in matrix]
    used: set[int] = set()
    for j, column in enumerate(columns):
        if j in used:
            continue
        mirrored = tuple(-c if i % 2 else c for i, c in enumerate(column))
        pair = next((i for i in range(j + 1, len(columns)) if columns[i] == mirrored and len(matrix) > 1), None)
        if pair is None:
            for i, c in enumerate(column):
                terms[i] += [(c, x[j])] if c else []
            continue
        used.add(pair)
        plus, minus = v.b.fadd(x[j], x[pair]), v.b.fsub(x[j], x[pair])
        for i, c in enumerate(column):
            terms[i].append((c, minus if i % 2 else plus))
    return [_sum(v, t) for t in terms]


def _square(v: _Vectors, product: Any, down: Rows, across: Rows, columns: list[list[ir.Value]]) -> list[list[ir.Value]]:
    """``down`` times a square given by columns, times the transpose of ``across``: the result by rows."""
    half = [product(v, down, column) for column in columns]
    return [product(v, across, [column[i] for column in half]) for i in range(len(down))]


# --------------------------------------------------------------------------------------------------- one tile each


def _variant(literal: Any) -> Variant:
    return VARIANTS[literal.literal_value]


@intrinsic(prefer_literal=True)
def _input_tile(typingctx: Any, variant: Any, source: Any, row_step: Any, target: Any, xi_step: Any) -> Any:
    """``target[ξ * xi_step] = (B' d B)[ξ]`` of the tile d at ``source``, rows ``row_step`` apart."""
    i64 = types.int64

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, source, row_step, target, xi_step = args
        v, f = _Vectors(builder, sig.args[1]), _variant(variant)
        down, across = matrices(*f.rows).b, matrices(*f.columns).b
        starts = [builder.gep(source, [builder.mul(row_step, _int(i))]) for i in range(len(down))]
        columns = [[v.load(row, _int(j * v.lanes)) for row in starts] for j in range(len(across))]
        for xi, value in enumerate(chain.from_iterable(_square(v, _times_rows, down, across, columns))):
            v.store(value, target, builder.mul(xi_step, _int(xi)))
        return context.get_dummy_value()

    return types.void(variant, source, i64, target, i64), codegen


@intrinsic(prefer_literal=True)
def _output_tile(
    typingctx: Any, variant: Any, source: Any, xi_step: Any, target: Any, row_step: Any, column_step: Any,
    rows: Any, columns: Any, spare: Any, bias: Any, low: Any, high: Any,
) -> Any:  # fmt: skip
    """``target[i * row_step + j * column_step] = (A' M A)[i, j]`` + bias, clamped, for i < rows and j < columns."""
    i64 = types.int64

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, source, xi_step, target, row_step, column_step, rows, columns, spare, bias, low, high = args
        v, f = _Vectors(builder, sig.args[1]), _variant(variant)
        down, across = matrices(*f.rows).a, matrices(*f.columns).a
        n = len(across[0])
        m = [[v.load(source, builder.mul(xi_step, _int(i * n + j))) for i in range(len(down[0]))] for j in range(n)]
        # Both coordinates of this element belong to the point 1, so it enters every output once: add the bias there.
        i, j = min(1, len(down[0]) - 1), min(1, n - 1)
        m[j][i] = builder.fadd(m[j][i], v.load(bias, _int(0)))
        floor, ceiling = v.splat(low), v.splat(high)
        for i, row in enumerate(_square(v, _times_columns, down, across, m)):
            below = builder.icmp_signed("<", _int(i), rows)
            start = builder.gep(target, [builder.mul(row_step, _int(i))])
            for j, value in enumerate(row):
                value = builder.select(builder.fcmp_ordered("<", value, floor), floor, value)  # NaN stays NaN
                value = builder.select(builder.fcmp_ordered(">", value, ceiling), ceiling, value)
                inside = builder.and_(below, builder.icmp_signed("<", _int(j), columns))
                place = builder.gep(start, [builder.mul(column_step, _int(j))])
                v.store(value, builder.select(inside, place, spare), _int(0))
        return context.get_dummy_value()

    element = source.dtype
    signature = types.void(variant, source, i64, target, i64, i64, i64, i64, spare, bias, element, element)
    return signature, codegen


@intrinsic(prefer_literal=True)
def _weight_tile(typingctx: Any, variant: Any, source: Any, target: Any, xi_step: Any) -> Any:
    """``target[ξ * xi_step] = (G g G')[ξ]`` of the taps g at ``source``, a vector each."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, source, target, xi_step = args
        v, f = _Vectors(builder, sig.args[1]), _variant(variant)
        down, across = matrices(*f.rows).g, matrices(*f.columns).g
        r, s = len(down[0]), len(across[0])
        columns = [[v.load(source, _int((i * s + j) * v.lanes)) for i in range(r)] for j in range(s)]
        for xi, value in enumerate(chain.from_iterable(_square(v, _times_rows, down, across, columns))):
            v.store(value, target, builder.mul(xi_step, _int(xi)))
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


_FIELDS = len(Tiles._fields)


@jit
def input_tiles(table, kind, variant):
    """Transform a row of tiles of a slab, one vector of channels."""
    g = Tiles(*unpack(table, _FIELDS))
    source, target = pointer(g.source, kind), pointer(g.target, kind)
    for i in range(g.tiles):
        s, t = shift(source, i * g.source_tile), shift(target, i * g.target_tile)
        _input_tile(variant, s, g.source_step, t, g.target_step)


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
        convention.call_function(builder, target, types.none, arguments, [*args[1:], _int(0)])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, kind), codegen
