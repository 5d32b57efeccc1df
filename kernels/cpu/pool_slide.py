"""Pooling by windows of three taps at stride 1: each row of the input is reduced once, for the three windows it is in.

    columns of a vector of outputs            walked down a batch of rows, in registers

      x  .aaa.....    3 loads, shifted by a   a = reduced input row h - 1
         ..aaa....    tap: lane l reduces     b =                   h          y[h] = a, b and c
         ...aaa...    window l's row          c =                   h + 1      then a, b = b, c

Three loads a vector and no buffer, where rows reduced down into a buffer and then along it take six loads and two
stores. Channels last, a pixel's channels are columns and the taps lie that far apart.

The loop of :mod:`.pool_kernels` for all other windows of rows has the names and the table of this one.
"""

import numpy as np

from .compile import jit
from .pool_kernels import finished, inlined, next_row, place
from .pool_walk import FIELD_COUNT, Fields
from .simd import from_bits, pointer, unpack
from .simd import load as element
from .vector import (
    add,
    add_square,
    keep_rolled,
    lane_count,
    load,
    load_within,
    maximum,
    minimum,
    number,
    splat,
    store,
    store_first,
)


@inlined
def _tap(x, row, position, columns, empty, whole):
    return load(x, row + position) if whole else load_within(x, row, position, columns, empty)


@inlined
def _across_row(take, x, h, heights, base, row_size, position, tap_step, columns, empty, whole):
    """One vector of windows' taps in row h of the input, reduced; outside of the input there are none."""
    result = splat(x, empty)
    if 0 <= h < heights:
        row = base + h * row_size
        for j in range(3):
            result = take(_tap(x, row, position + j * tap_step, columns, empty, whole), result)
    return result


@inlined
def _down(
    take, join, x, h, rows, heights, base, row_size, position, tap_step, columns, empty, whole, by, inverse, how,
    root, y, o, out_row, n,
):  # fmt: skip
    """A vector of windows, and those below it: the first one's taps begin in row h of the input."""
    lanes = lane_count(x)
    a = _across_row(take, x, h, heights, base, row_size, position, tap_step, columns, empty, whole)
    b = _across_row(take, x, h + 1, heights, base, row_size, position, tap_step, columns, empty, whole)
    for i in range(rows):
        c = _across_row(take, x, h + 2 + i, heights, base, row_size, position, tap_step, columns, empty, whole)
        result = finished(join(c, join(b, a)), by, inverse, how, root)
        if n < lanes:
            store_first(y, o, result, n)
        else:
            store(y, o, result)
        a, b = b, c
        o += out_row
        keep_rolled()


@inlined
def _slides(take, join, root, fill, t, threads, table, kind):
    f = Fields(*unpack(table, FIELD_COUNT))
    x, y = pointer(f.x, kind), pointer(f.y, kind)
    depth, strips = pointer(f.depth, table), pointer(f.strips, table)
    lanes, empty = lane_count(x), number(x, fill)
    by, inverse = splat(x, number(x, from_bits(f.divisor))), splat(x, number(x, from_bits(f.inverse)))
    start, columns, in_heights = element(strips, 0), f.row_size, f.slice_size // f.row_size
    r, last = f.rows * t // threads, f.rows * (t + 1) // threads
    h, d, p = place(r, f.heights, f.depths)
    while r < last:
        rows = min(f.batch, last - r, f.heights - h)
        base, o = p * f.plane_size + element(depth, 2 * d) * f.slice_size, r * f.out_row
        for c in range(0, f.out_row, lanes):
            at = max(0, min(c, f.out_row - lanes))  # the last vector overlaps the one before
            position = start + at
            if position >= 0 and position + 2 * f.tap_step + lanes <= columns:
                _down(
                    take, join, x, h + f.above, rows, in_heights, base, f.row_size, position, f.tap_step, columns,
                    empty, True, by, inverse, f.divide, root, y, o + at, f.out_row, lanes,
                )  # fmt: skip
            else:
                _down(
                    take, join, x, h + f.above, rows, in_heights, base, f.row_size, position, f.tap_step, columns,
                    empty, False, by, inverse, f.divide, root, y, o + at, f.out_row, f.out_row,
                )  # fmt: skip
        r += rows
        h, d, p = next_row(h + rows - 1, d, p, f.heights, f.depths)


@jit
def largest_of_slides(t, threads, table, chunk, kind):
    _slides(maximum, maximum, False, -np.inf, t, threads, table, kind)


@jit
def smallest_of_slides(t, threads, table, chunk, kind):
    _slides(minimum, minimum, False, np.inf, t, threads, table, kind)


@jit
def sum_of_slides(t, threads, table, chunk, kind):
    _slides(add, add, False, 0, t, threads, table, kind)


@jit
def norm_of_slides(t, threads, table, chunk, kind):
    _slides(add_square, add, True, 0, t, threads, table, kind)
