"""Pooling by windows of 2x2 at stride 2, channels first: two rows are reduced down in registers, then pairs along.

      a b c d e f g h     row 2 h                a' = a and i, ...: a vector, and the next one
      i j k l m n o p     row 2 h + 1            even lanes a' c' e' g', odd lanes b' d' f' h'  ->  y[h] = even and odd

Rows of at most half a vector of windows are taken two at a time, one a half. Through the buffer of :mod:`.pool_kernels`
(whose names and table these loops have) phases that read the input alternate with others that do not. One thread, us,
buffer and here: 512 channels of 14x14 12.0 and 8.6 (maximum 12.9 and 9.3), 32 of 56x56 9.6 and 7.0, 32 of 112x112 42
and 34, of which 1.5 call the kernel. Finding each row's place anew took all of that gain.
"""

import numpy as np

from .compile import jit
from .pool_kernels import finished, inlined, place
from .pool_walk import FIELD_COUNT, Fields
from .simd import from_bits, pointer, unpack
from .simd import load as element
from .vector import (
    add,
    add_square,
    evens,
    keep_rolled,
    lane_count,
    load,
    load_within,
    maximum,
    minimum,
    multiply,
    number,
    odds,
    splat,
    store,
    store_first,
    store_halves,
)


@inlined
def _itself(v):
    return v


@inlined
def _square(v):
    return multiply(v, v)


@inlined
def _down(begin, take, x, i, row_size, columns, empty, whole):
    """A vector of columns of two rows."""
    if whole:
        return take(load(x, i + row_size), begin(load(x, i)))
    return take(load_within(x, i + row_size, 0, columns, empty), begin(load_within(x, i, 0, columns, empty)))


@inlined
def _long_rows(begin, take, join, x, i, row_size, advance, rows, empty, by, inverse, how, root, y, o, n):
    """Rows of n windows, at least a vector."""
    lanes = lane_count(x)
    for _ in range(rows):
        for c in range(0, n, lanes):
            a = min(c, n - lanes)  # the last vector overlaps the one before: no mask
            low = _down(begin, take, x, i + 2 * a, row_size, lanes, empty, True)
            high = _down(begin, take, x, i + 2 * a + lanes, row_size, lanes, empty, True)
            store(y, o + a, finished(join(odds(low, high), evens(low, high)), by, inverse, how, root))
            keep_rolled()
        i += advance
        o += n
        keep_rolled()


@inlined
def _short_rows(begin, take, join, x, i, row_size, advance, rows, empty, by, inverse, how, root, y, o, n):
    """Rows of n windows, more than half a vector but not a whole one."""
    lanes = lane_count(x)
    for _ in range(rows):
        low = _down(begin, take, x, i, row_size, lanes, empty, True)
        high = _down(begin, take, x, i + lanes, row_size, 2 * n - lanes, empty, False)
        store_first(y, o, finished(join(odds(low, high), evens(low, high)), by, inverse, how, root), n)
        i += advance
        o += n
        keep_rolled()


@inlined
def _half_rows(begin, take, join, x, i, row_size, advance, rows, empty, by, inverse, how, root, y, o, n):
    """Rows of n windows, at most half a vector."""
    for _ in range(rows // 2):
        low = _down(begin, take, x, i, row_size, 2 * n, empty, False)
        high = _down(begin, take, x, i + advance, row_size, 2 * n, empty, False)
        store_halves(y, o, finished(join(odds(low, high), evens(low, high)), by, inverse, how, root), n)
        i += 2 * advance
        o += 2 * n
        keep_rolled()
    if rows % 2:
        low = _down(begin, take, x, i, row_size, 2 * n, empty, False)
        store_first(y, o, finished(join(odds(low, low), evens(low, low)), by, inverse, how, root), n)


@inlined
def _pairs(begin, take, join, root, fill, t, threads, table, kind):
    f = Fields(*unpack(table, FIELD_COUNT))
    x, y = pointer(f.x, kind), pointer(f.y, kind)
    depth = pointer(f.depth, table)
    lanes, empty, n = lane_count(x), number(x, fill), f.out_row
    by, inverse = splat(x, number(x, from_bits(f.divisor))), splat(x, number(x, from_bits(f.inverse)))
    r, last = f.rows * t // threads, f.rows * (t + 1) // threads
    while r < last:
        h, d, p = place(r, f.heights, f.depths)
        i = p * f.plane_size + element(depth, 2 * d) * f.slice_size + h * f.advance
        rows = last - r if f.alike_everywhere else min(f.heights - h, last - r)
        if n >= lanes:
            _long_rows(
                begin, take, join, x, i, f.row_size, f.advance, rows, empty, by, inverse, f.divide, root, y, r * n, n
            )
        elif 2 * n > lanes:
            _short_rows(
                begin, take, join, x, i, f.row_size, f.advance, rows, empty, by, inverse, f.divide, root, y, r * n, n
            )
        else:
            _half_rows(
                begin, take, join, x, i, f.row_size, f.advance, rows, empty, by, inverse, f.divide, root, y, r * n, n
            )
        r += rows


@jit
def largest_of_pairs(t, threads, table, chunk, kind):
    _pairs(_itself, maximum, maximum, False, -np.inf, t, threads, table, kind)


@jit
def smallest_of_pairs(t, threads, table, chunk, kind):
    _pairs(_itself, minimum, minimum, False, np.inf, t, threads, table, kind)


@jit
def sum_of_pairs(t, threads, table, chunk, kind):
    _pairs(_itself, add, add, False, 0, t, threads, table, kind)


@jit
def norm_of_pairs(t, threads, table, chunk, kind):
    _pairs(_square, add_square, add, True, 0, t, threads, table, kind)
