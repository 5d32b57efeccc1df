"""The compiled loops of pooling that reduce windows to values, as :mod:`.pool_walk` lays them out.

Three loops reduce windows, each the shortest way for how they lie:

    rows      channels first: down the window's rows into a buffer in L1, whole vectors side by side, then along it

                  x  a a a a a a a a        buffer  . m m m m m m m m .        y  max(. m m) max(m m m) ...
                     b b b b b b b b   ->           (. is padding)       ->
                     c c c c c c c c                                           stride 2: even and odd lanes

              A batch of rows at a time. Where windows neither overlap nor leave gaps, the batch is one long row.
    pixels    channels last: lanes are channels, four vectors at a time, the window's taps innermost
    planes    channels first, windows that are whole planes: a vector a plane, then as many vectors as they have
              lanes are combined into one, by a tree of shuffles

(With indices: :mod:`.pool_indices`.)

Every kernel is ``kernel(t, threads, table, chunk, kind)``, share t of the work; ``table`` is the address of a
:class:`~.pool_walk.Fields` of integers, ``kind`` a number of the element type.
Names: r row of the output (p plane, d depth, h height), s strip, c output along the strip, i its position in the
input row, a and b rows of the window, j tap.
"""

# Functions here are typed by Numba. Loops with few iterations and many arguments are split into helpers that LLVM must
# inline, so that what is constant in a call costs nothing.

import numpy as np
from numba import njit

from .compile import jit
from .pool_walk import DIVIDE, DIVIDE_EACH, FIELD_COUNT, MULTIPLY, UNDIVIDED, Fields
from .simd import from_bits, pointer, unpack
from .simd import load as element
from .vector import (
    add,
    add_square,
    all_largest,
    all_smallest,
    divide,
    gather,
    index_ramp,
    interleaved_high,
    interleaved_low,
    keep_rolled,
    lane_count,
    largest,
    load,
    load_even,
    load_indices,
    load_odd,
    load_within,
    maximum,
    minimum,
    multiply,
    number,
    quotient,
    scratch,
    smallest,
    splat,
    square_root,
    store,
    store_first,
    tap_positions,
    total,
    totals,
)

PARTIAL = 64
"""Vectors of a plane that are summed before the sum is added to the plane's: shorter chains, smaller errors."""

inlined = njit(nogil=True, error_model="numpy", forceinline=True)
# As helpers of ``jit(inline=True)`` they would take 1.5 s to compile instead of 4.2, but then nothing is optimised
# before it is inlined: up to 5% more time, with indices, gradients and unequal divisors 5 to 15%.


@inlined
def place(r, heights, depths):
    """Height, depth and plane of row r of the output."""
    return r % heights, r // heights % depths, r // heights // depths


@inlined
def next_row(h, d, p, heights, depths):
    """Those of the next row, without the divisions, which cost as much as a short row's work."""
    h += 1
    if h == heights:
        h = 0
        d += 1
        if d == depths:
            d = 0
            p += 1
    return h, d, p


@inlined
def finished(result, by, inverse, divide_how, root):
    """Divided as Fields.divide says (DIVIDE_EACH is a division too), and the root taken if it is to be."""
    if divide_how == MULTIPLY:
        result = multiply(result, by)
    elif divide_how == DIVIDE:
        result = quotient(result, by, inverse)
    elif divide_how != UNDIVIDED:
        result = divide(result, by)
    return square_root(result) if root else result


# --- rows: take reduces elements of x, join what take has reduced ---


@inlined
def _column(take, x, i, depths, depth_step, heights, height_step, n, empty, whole):
    """One vector of columns, reduced down the window."""
    result = splat(x, empty)
    if depths == 1 and heights == 2:
        result = take(_at(x, i, n, empty, whole), result)
        return take(_at(x, i + height_step, n, empty, whole), result)
    if depths == 1 and heights == 3:
        result = take(_at(x, i, n, empty, whole), result)
        result = take(_at(x, i + height_step, n, empty, whole), result)
        return take(_at(x, i + 2 * height_step, n, empty, whole), result)
    for a in range(depths):
        for b in range(heights):
            result = take(_at(x, i + a * depth_step + b * height_step, n, empty, whole), result)
            keep_rolled()
    return result


@inlined
def _at(x, i, n, empty, whole):
    return load(x, i) if whole else load_within(x, i, 0, n, empty)


@inlined
def _down_each(
    take, x, i, advance, rows, depths, depth_step, heights, height_step, columns, empty, buffer, o, pitch
):  # fmt: skip
    lanes = lane_count(x)
    for _ in range(rows):
        if columns < lanes:
            last = _column(take, x, i, depths, depth_step, heights, height_step, columns, empty, False)
            store(buffer, o, last)
        else:  # the last vector overlaps the one before: no mask
            for c in range(0, columns, lanes):
                a = min(c, columns - lanes)
                down = _column(take, x, i + a, depths, depth_step, heights, height_step, lanes, empty, True)
                store(buffer, o + a, down)
                keep_rolled()
        i += advance
        o += pitch
        keep_rolled()


@inlined
def _down(take, x, i, advance, rows, depths, depth_step, heights, height_step, columns, empty, buffer, o, pitch):
    """Rows of windows, each the same number of input rows and ``advance`` further, reduced down to the buffer.

    Nothing neutral in the buffer is overwritten but by what is neutral.
    """
    if depths == 1 and heights == 2:
        _down_each(take, x, i, advance, rows, 1, 0, 2, height_step, columns, empty, buffer, o, pitch)
    elif depths == 1 and heights == 3:
        _down_each(take, x, i, advance, rows, 1, 0, 3, height_step, columns, empty, buffer, o, pitch)
    else:
        _down_each(
            take, x, i, advance, rows, depths, depth_step, heights, height_step, columns, empty, buffer, o, pitch
        )


@inlined
def _along(join, v, i, taps, tap_step, step, empty):
    """One vector of windows, reduced along the buffer from position i."""
    if step == 1 and taps == 3:
        return join(load(v, i + 2 * tap_step), join(load(v, i + tap_step), load(v, i)))
    if step == 2 and tap_step == 1 and taps == 2:
        return join(load_odd(v, i), load_even(v, i))
    if step == 2 and tap_step == 1 and taps == 3:
        return join(load_even(v, i + 2), join(load_odd(v, i), load_even(v, i)))
    result = splat(v, empty)
    if step == 1:
        for j in range(taps):
            result = join(load(v, i + j * tap_step), result)
            keep_rolled()
    elif step == 2:
        for j in range(taps):
            result = join(load_even(v, i + j * tap_step), result)
            keep_rolled()
    else:
        for j in range(taps):
            result = join(gather(v, i + j * tap_step, index_ramp(v, 0, step), empty), result)
            keep_rolled()
    return result


@inlined
def _along_each(
    join, v, i, pitch, rows, taps, tap_step, step, empty, by, inverse, how, root, y, o, n, out_pitch
):  # fmt: skip
    lanes = lane_count(v)
    for _ in range(rows):
        if n < lanes:
            result = _along(join, v, i, taps, tap_step, step, empty)
            store_first(y, o, finished(result, by, inverse, how, root), n)
        else:
            for c in range(0, n, lanes):
                a = min(c, n - lanes)
                result = _along(join, v, i + a * step, taps, tap_step, step, empty)
                store(y, o + a, finished(result, by, inverse, how, root))
                keep_rolled()
        i += pitch
        o += out_pitch
        keep_rolled()


@inlined
def _along_rows(
    join, v, i, pitch, rows, taps, tap_step, step, empty, by, inverse, how, root, y, o, n, out_pitch
):  # fmt: skip
    """Rows of n windows, reduced along the buffer, finished and stored: compiled for the usual windows, and for all."""
    if step == 1 and taps == 3:
        _along_each(join, v, i, pitch, rows, 3, tap_step, 1, empty, by, inverse, how, root, y, o, n, out_pitch)
    elif step == 2 and tap_step == 1 and taps == 2:
        _along_each(join, v, i, pitch, rows, 2, 1, 2, empty, by, inverse, how, root, y, o, n, out_pitch)
    elif step == 2 and tap_step == 1 and taps == 3:
        _along_each(join, v, i, pitch, rows, 3, 1, 2, empty, by, inverse, how, root, y, o, n, out_pitch)
    else:
        _along_each(join, v, i, pitch, rows, taps, tap_step, step, empty, by, inverse, how, root, y, o, n, out_pitch)


@inlined
def _looked_up(join, v, i, starts, counts, taps, tap_step, empty):
    """One vector of windows, each lane's with a start and a count of its own."""
    result = splat(v, empty)
    for j in range(taps):
        result = join(gather(v, i, tap_positions(starts, counts, j, tap_step), empty), result)
        keep_rolled()
    return result


@inlined
def _along_pairs(join, v, i, even_taps, j, odd_taps, empty, by, inverse, how, root, y, o, n):
    """n elements, the even ones reduced from runs that begin at i, i + 1, ..., the odd ones at j, j + 1, ..."""
    lanes = lane_count(v)
    for c in range(0, n, 2 * lanes):
        even = finished(_along(join, v, i + c // 2, even_taps, 1, 1, empty), by, inverse, how, root)
        odd = finished(_along(join, v, j + c // 2, odd_taps, 1, 1, empty), by, inverse, how, root)
        store_first(y, o + c, interleaved_low(even, odd), n - c)
        if n - c > lanes:
            store_first(y, o + c + lanes, interleaved_high(even, odd), n - c - lanes)
        keep_rolled()


@inlined
def _run(join, across, v, i, n, empty):
    """n neighbouring elements reduced to one."""
    lanes = lane_count(v)
    result = load_within(v, i, 0, n, empty)
    for c in range(lanes, n, lanes):
        result = join(load_within(v, i, c, n, empty), result)
        keep_rolled()
    return across(result)


@inlined
def _rows(take, join, across, root, fill, t, threads, table, kind):
    f = Fields(*unpack(table, FIELD_COUNT))
    x, y, buffer = pointer(f.x, kind), pointer(f.y, kind), scratch(kind)
    if f.scratch:
        buffer = pointer(f.scratch + t * f.scratch_bytes, kind)
    depth, height, strips = pointer(f.depth, table), pointer(f.height, table), pointer(f.strips, table)
    starts, counts = pointer(f.starts, np.int32(0)), pointer(f.counts, np.int32(0))
    by_depth, by_height, by_width = pointer(f.by_depth, kind), pointer(f.by_height, kind), pointer(f.by_width, kind)
    lanes, empty, one = lane_count(x), number(x, fill), number(x, 1)
    by, inverse = splat(x, number(x, from_bits(f.divisor))), splat(x, number(x, from_bits(f.inverse)))
    for i in range(0, f.buffer_size, lanes):
        store(buffer, i, splat(x, empty))
    first, last = f.rows * t // threads, f.rows * (t + 1) // threads
    h, d, p = place(first, f.heights, f.depths)
    for r in range(first, last, f.batch):
        rows = min(f.batch, last - r)
        hh, dd, i = h, d, 0
        while i < rows:
            base = p * f.plane_size + element(depth, 2 * d) * f.slice_size + element(height, 2 * h) * f.row_size
            alike = 1
            if f.alike_everywhere:
                alike = rows
            elif f.alike_from <= h < f.alike_to:
                alike = min(f.alike_to - h, rows - i)
            _down(
                take, x, base + f.skip, f.advance, alike, element(depth, 2 * d + 1), f.depth_step,
                element(height, 2 * h + 1), f.height_step, f.columns, empty, buffer, f.lead + i * f.pitch, f.pitch,
            )  # fmt: skip
            i += alike
            if f.alike_everywhere:
                h, d, p = place(r + i, f.heights, f.depths)
            else:
                h, d, p = next_row(h + alike - 1, d, p, f.heights, f.depths)
        pieces, length = (1, rows * f.out_row) if f.flat else (rows, f.out_row)
        if not f.across and f.step != 0 and f.divide != DIVIDE_EACH:
            _along_rows(
                join, buffer, f.origin, f.pitch, pieces, f.taps, f.tap_step, f.step, empty, by, inverse, f.divide, root,
                y, r * f.out_row, length, f.out_row,
            )  # fmt: skip
            continue
        for i in range(pieces):
            here, o = f.origin + i * f.pitch, (r + i) * f.out_row
            if f.pairs:
                here += f.lead
                _along_pairs(
                    join, buffer, here + f.even_first, f.even_taps, here + f.odd_first, f.odd_taps, empty, by, inverse,
                    f.divide, root, y, o, length,
                )  # fmt: skip
                continue
            by_rows = number(x, 1)
            if f.divide == DIVIDE_EACH:
                by_rows = element(by_depth, dd) * element(by_height, hh)
                hh, dd, _ = next_row(hh, dd, 0, f.heights, f.depths)
            for c in range(0, length, 1 if f.across else lanes):
                n = 1 if f.across else length - c
                if f.across:
                    start = here + f.lead + element(strips, 6 * c)
                    count = element(strips, 6 * c + 2) - element(strips, 6 * c)
                    result = splat(x, _run(join, across, buffer, start, count, empty))
                elif f.spread:
                    result = splat(x, element(buffer, here + f.lead))
                elif f.step == 0:
                    result = _looked_up(
                        join, buffer, here + f.lead, load_indices(x, starts, c, n), load_indices(x, counts, c, n),
                        f.taps, f.tap_step, empty,
                    )  # fmt: skip
                else:
                    result = _along(join, buffer, here + c * f.step, f.taps, f.tap_step, f.step, empty)
                if f.divide == DIVIDE_EACH:
                    by = multiply(splat(x, by_rows), load_within(by_width, c, 0, n, one))
                store_first(y, o + c, finished(result, by, inverse, f.divide, root), n)


# --- pixels ---


@inlined
def _four(take, join, x, i, depths, depth_step, heights, height_step, taps, tap_step, empty):
    """Four vectors of channels, reduced: along each row of the window, then down."""
    lanes, none = lane_count(x), splat(x, empty)
    r0, r1, r2, r3 = none, none, none, none
    for a in range(depths):
        for b in range(heights):
            at = i + a * depth_step + b * height_step
            s0, s1, s2, s3 = none, none, none, none
            for _ in range(taps):
                s0, s1 = take(load(x, at), s0), take(load(x, at + lanes), s1)
                s2, s3 = take(load(x, at + 2 * lanes), s2), take(load(x, at + 3 * lanes), s3)
                at += tap_step
                keep_rolled()
            r0, r1, r2, r3 = join(s0, r0), join(s1, r1), join(s2, r2), join(s3, r3)
    return r0, r1, r2, r3


@inlined
def _one(take, join, x, i, n, depths, depth_step, heights, height_step, taps, tap_step, empty):
    """At most one vector of channels, reduced."""
    result = splat(x, empty)
    for a in range(depths):
        for b in range(heights):
            at = i + a * depth_step + b * height_step
            line = splat(x, empty)
            for _ in range(taps):
                line = take(load_within(x, at, 0, n, empty), line)
                at += tap_step
                keep_rolled()
            result = join(line, result)
    return result


@inlined
def _pixels(take, join, root, fill, t, threads, table, kind):
    f = Fields(*unpack(table, FIELD_COUNT))
    x, y = pointer(f.x, kind), pointer(f.y, kind)
    depth, height, strips = pointer(f.depth, table), pointer(f.height, table), pointer(f.strips, table)
    by_depth, by_height, by_width = pointer(f.by_depth, kind), pointer(f.by_height, kind), pointer(f.by_width, kind)
    lanes, empty = lane_count(x), number(x, fill)
    blocks = -(-f.channels // f.block)
    for work in range(f.rows * blocks * t // threads, f.rows * blocks * (t + 1) // threads):
        r, first = work // blocks, work % blocks * f.block
        last = min(first + f.block, f.channels)
        h, d, p = place(r, f.heights, f.depths)
        base = p * f.plane_size + element(depth, 2 * d) * f.slice_size + element(height, 2 * h) * f.row_size
        depths, heights = element(depth, 2 * d + 1), element(height, 2 * h + 1)
        divisor = number(x, from_bits(f.divisor))
        for s in range(f.strip_count):
            i, taps, o = base + element(strips, 6 * s), element(strips, 6 * s + 1), element(strips, 6 * s + 3)
            o += r * f.out_row
            if f.divide == DIVIDE_EACH:
                divisor = element(by_depth, d) * element(by_height, h) * element(by_width, s)
            by, inverse = splat(x, divisor), splat(x, number(x, from_bits(f.inverse)))
            whole = first + (last - first) // (4 * lanes) * (4 * lanes)
            for c in range(first, whole, 4 * lanes):
                r0, r1, r2, r3 = _four(
                    take, join, x, i + c, depths, f.depth_step, heights, f.height_step, taps, f.tap_step, empty
                )
                store(y, o + c, finished(r0, by, inverse, f.divide, root))
                store(y, o + c + lanes, finished(r1, by, inverse, f.divide, root))
                store(y, o + c + 2 * lanes, finished(r2, by, inverse, f.divide, root))
                store(y, o + c + 3 * lanes, finished(r3, by, inverse, f.divide, root))
            for c in range(whole, last, lanes):
                result = _one(
                    take, join, x, i + c, last - c, depths, f.depth_step, heights, f.height_step, taps, f.tap_step,
                    empty,
                )  # fmt: skip
                store_first(y, o + c, finished(result, by, inverse, f.divide, root), last - c)


# --- planes ---


@inlined
def _some(take, join, x, i, n, empty):
    """At most 4 * PARTIAL vectors of neighbouring elements, reduced to one vector."""
    lanes, none = lane_count(x), splat(x, empty)
    whole, last = n // (4 * lanes) * (4 * lanes), n // lanes * lanes
    r0, r1, r2, r3 = none, none, none, none
    for c in range(0, whole, 4 * lanes):
        r0, r1 = take(load(x, i + c), r0), take(load(x, i + c + lanes), r1)
        r2, r3 = take(load(x, i + c + 2 * lanes), r2), take(load(x, i + c + 3 * lanes), r3)
        keep_rolled()
    for c in range(whole, last, lanes):
        r0 = take(load(x, i + c), r0)
        keep_rolled()
    if last < n:
        r1 = take(load_within(x, i + last, 0, n - last, empty), r1)
    return join(join(r0, r1), join(r2, r3))


@inlined
def _small_plane(take, join, x, i, n, empty):
    """A plane of at most four vectors reduced to one, without a loop: the masks are those of every such plane."""
    lanes, none = lane_count(x), splat(x, empty)
    low = take(load_within(x, i, lanes, n, empty), take(load_within(x, i, 0, n, empty), none))
    high = take(load_within(x, i, 3 * lanes, n, empty), take(load_within(x, i, 2 * lanes, n, empty), none))
    return join(high, low)


@inlined
def _plane(take, join, x, i, n, empty):
    """A plane reduced to one vector."""
    block = 4 * PARTIAL * lane_count(x)
    result = _some(take, join, x, i, min(n, block), empty)
    for c in range(block, n, block):
        result = join(_some(take, join, x, i + c, min(n - c, block), empty), result)
    return result


@inlined
def _planes(take, join, across, across_each, root, fill, t, threads, table, kind):
    f = Fields(*unpack(table, FIELD_COUNT))
    x, y, buffer = pointer(f.x, kind), pointer(f.y, kind), scratch(kind)
    lanes, empty = lane_count(x), number(x, fill)
    by, inverse = splat(x, number(x, from_bits(f.divisor))), splat(x, number(x, from_bits(f.inverse)))
    p, last, small = f.rows * t // threads, f.rows * (t + 1) // threads, f.plane_size <= 4 * lanes
    while p + lanes <= last:
        if small:
            for i in range(lanes):
                store(buffer, i * lanes, _small_plane(take, join, x, (p + i) * f.plane_size, f.plane_size, empty))
                keep_rolled()
        else:
            for i in range(lanes):
                store(buffer, i * lanes, _plane(take, join, x, (p + i) * f.plane_size, f.plane_size, empty))
        store(y, p, finished(across_each(buffer, 0), by, inverse, f.divide, root))
        p += lanes
    while p < last:
        if small:
            result = _small_plane(take, join, x, p * f.plane_size, f.plane_size, empty)
        else:
            result = _plane(take, join, x, p * f.plane_size, f.plane_size, empty)
        store_first(y, p, finished(splat(x, across(result)), by, inverse, f.divide, root), 1)
        p += 1


# --- the three loops for each reduction ---


@jit
def largest_of_rows(t, threads, table, chunk, kind):
    _rows(maximum, maximum, largest, False, -np.inf, t, threads, table, kind)


@jit
def largest_of_pixels(t, threads, table, chunk, kind):
    _pixels(maximum, maximum, False, -np.inf, t, threads, table, kind)


@jit
def largest_of_planes(t, threads, table, chunk, kind):
    _planes(maximum, maximum, largest, all_largest, False, -np.inf, t, threads, table, kind)


@jit
def smallest_of_rows(t, threads, table, chunk, kind):
    _rows(minimum, minimum, smallest, False, np.inf, t, threads, table, kind)


@jit
def smallest_of_pixels(t, threads, table, chunk, kind):
    _pixels(minimum, minimum, False, np.inf, t, threads, table, kind)


@jit
def smallest_of_planes(t, threads, table, chunk, kind):
    _planes(minimum, minimum, smallest, all_smallest, False, np.inf, t, threads, table, kind)


@jit
def sum_of_rows(t, threads, table, chunk, kind):
    _rows(add, add, total, False, 0, t, threads, table, kind)


@jit
def sum_of_pixels(t, threads, table, chunk, kind):
    _pixels(add, add, False, 0, t, threads, table, kind)


@jit
def sum_of_planes(t, threads, table, chunk, kind):
    _planes(add, add, total, totals, False, 0, t, threads, table, kind)


@jit
def norm_of_rows(t, threads, table, chunk, kind):
    _rows(add_square, add, total, True, 0, t, threads, table, kind)


@jit
def norm_of_pixels(t, threads, table, chunk, kind):
    _pixels(add_square, add, True, 0, t, threads, table, kind)


@jit
def norm_of_planes(t, threads, table, chunk, kind):
    _planes(add_square, add, total, totals, True, 0, t, threads, table, kind)
