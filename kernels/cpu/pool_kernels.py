"""The compiled loops of pooling: reductions along the strips of :mod:`.pool_walk`, and scatters and gathers by index.

A reduction writes rows of the output; one vector of outputs is reduced at a time, its window's taps innermost:

    for each row of the output -> for each strip -> for each vector of the strip:
        for each tap along the row -> for each row of the window:   accumulator = take(x[...], accumulator)

The masks of a vector at the edge depend on the tap and not on the window's row, hence the order. Only where indices
are wanted are rows outside, so that the first maximum is met first.

Every kernel is ``kernel(t, threads, *arguments)``, share t of the work, and ``kernel_parallel(threads, *arguments)``.
Names: r row of the output (p plane, d depth, h height), s strip, c output along the strip, i its position in the
input row, a and b rows of the window, j tap.
"""

# Functions here are typed by Numba. Loops with few iterations and many arguments are split into helpers that LLVM must
# inline: called with constants for ``step`` and ``whole``, each leaves only the loads that these select.

import numpy as np
from numba import njit, prange

from .compile import jit
from .vector import (
    add,
    add_square,
    add_where_valid,
    data,
    divide,
    gather,
    index_ramp,
    is_larger,
    is_smaller,
    keep_rolled,
    lane_count,
    largest,
    load,
    load_even,
    load_even_within,
    load_indices,
    load_within,
    maximum,
    minimum,
    multiply,
    number,
    ramp_within,
    smallest,
    splat,
    square_root,
    store_first,
    tap_positions,
    total,
    where,
)

CHANNEL_BLOCK = 64
"""Channels that one thread scatters at a time, channels-last: whole cache lines, and enough blocks to share out."""

inlined = njit(nogil=True, error_model="numpy", forceinline=True)


@inlined
def _fetch(x, row, i, step, limit, whole, fill):
    """The vector x[row + i + l * step], ``fill`` outside [0, limit); ``whole``: nothing is outside."""
    if step == 1:
        if whole:
            return load(x, row + i)
        return load_within(x, row, i, limit, fill)
    if step == 2:
        if whole:
            return load_even(x, row + i)
        return load_even_within(x, row, i, limit, fill)
    return gather(x, row, ramp_within(x, i, step, limit), fill)


@inlined
def _is_whole(x, i, taps, tap_step, step, limit):
    """Whether every load of the vector at i stays inside its row. (A load of stride 2 reads one element further.)"""
    return i >= 0 and i + (taps - 1) * tap_step + (lane_count(x) - 1) * step + (step == 2) < limit


@inlined
def _place(r, heights, depths):
    """Height, depth and plane of row r of the output."""
    return r % heights, r // heights % depths, r // heights // depths


@inlined
def _next(h, d, p, heights, depths):
    """Those of the next row, without the divisions, which cost as much as a short row's work."""
    h += 1
    if h == heights:
        h = 0
        d += 1
        if d == depths:
            d = 0
            p += 1
    return h, d, p


# --- values only: take is maximum, minimum, add or add_square ---


@inlined
def _taps(take, sums, x, fill, base, depths, depth_step, heights, height_step, i, taps, tap_step, step, limit, whole):
    result = splat(x, fill)
    for j in range(taps):
        # sums restart for each column of the window and are added up: shorter chains, smaller errors
        line = splat(x, fill) if sums else result
        for a in range(depths):
            for b in range(heights):
                row = base + a * depth_step + b * height_step
                line = take(_fetch(x, row, i + j * tap_step, step, limit, whole, fill), line)
                keep_rolled()
        result = add(line, result) if sums else line
    return result


@inlined
def _reduced(take, sums, x, fill, base, depths, depth_step, heights, height_step, i, taps, tap_step, step, limit):
    """One vector of windows, reduced."""
    whole = _is_whole(x, i, taps, tap_step, step, limit)
    if step == 1 and whole:
        return _taps(
            take, sums, x, fill, base, depths, depth_step, heights, height_step, i, taps, tap_step, 1, limit, True
        )
    if step == 1:
        return _taps(
            take, sums, x, fill, base, depths, depth_step, heights, height_step, i, taps, tap_step, 1, limit, False
        )
    if step == 2 and whole:
        return _taps(
            take, sums, x, fill, base, depths, depth_step, heights, height_step, i, taps, tap_step, 2, limit, True
        )
    if step == 2:
        return _taps(
            take, sums, x, fill, base, depths, depth_step, heights, height_step, i, taps, tap_step, 2, limit, False
        )
    return _taps(
        take, sums, x, fill, base, depths, depth_step, heights, height_step, i, taps, tap_step, step, limit, False
    )


@inlined
def _extremes(take, across_lanes, fill, t, threads, depth, height, strips, steps, x, y):
    plane_size, slice_size, row_size, depth_step, height_step, step, tap_step, out_row, _, across = steps
    source, target = data(x), data(y)
    empty = number(source, fill)
    rows = y.size // out_row
    first_row = rows * t // threads
    h, d, p = _place(first_row, len(height), len(depth))
    for r in range(first_row, rows * (t + 1) // threads):
        base = p * plane_size + depth[d, 0] * slice_size + height[h, 0] * row_size
        for s in range(len(strips)):
            start, taps, limit, out_start, length = strips[s, 0], strips[s, 1], strips[s, 2], strips[s, 3], strips[s, 4]
            for c in range(0, length, lane_count(source)):
                best = _reduced(
                    take, False, source, empty, base, depth[d, 1], depth_step, height[h, 1], height_step,
                    start + c * step, taps, tap_step, step, limit,
                )  # fmt: skip
                o = r * out_row + out_start + c
                if across:
                    y[o] = across_lanes(best)
                else:
                    store_first(target, o, best, length - c)
        h, d, p = _next(h, d, p, len(height), len(depth))


@jit
def largest_of_windows(t, threads, depth, height, strips, steps, x, y):
    _extremes(maximum, largest, -np.inf, t, threads, depth, height, strips, steps, x, y)


@jit
def smallest_of_windows(t, threads, depth, height, strips, steps, x, y):
    _extremes(minimum, smallest, np.inf, t, threads, depth, height, strips, steps, x, y)


@inlined
def _looked_up(x, fill, starts, counts, base, depths, depth_step, heights, height_step, taps, tap_step):
    """One vector of windows, summed, where each lane's window has its own start and count."""
    result = splat(x, fill)
    for j in range(taps):
        positions = tap_positions(starts, counts, j, tap_step)
        for a in range(depths):
            for b in range(heights):
                result = add(gather(x, base + a * depth_step + b * height_step, positions, fill), result)
                keep_rolled()
    return result


@inlined
def _sums(take, root, t, threads, depth, height, strips, steps, width, averages, by_depth, by_height, by_width, x, y):
    plane_size, slice_size, row_size, depth_step, height_step, step, tap_step, out_row, _, across = steps
    source, target, widths = data(x), data(y), data(by_width)
    zero, one = number(source, 0), number(source, 1)
    divisor_a_lane = by_width.size > len(strips)
    starts, counts = data(width[0]), data(width[1])
    rows = y.size // out_row
    first_row = rows * t // threads
    h, d, p = _place(first_row, len(height), len(depth))
    for r in range(first_row, rows * (t + 1) // threads):
        base = p * plane_size + depth[d, 0] * slice_size + height[h, 0] * row_size
        for s in range(len(strips)):
            start, taps, limit, out_start, length = strips[s, 0], strips[s, 1], strips[s, 2], strips[s, 3], strips[s, 4]
            for c in range(0, length, lane_count(source)):
                if step == 0:
                    result = _looked_up(
                        source, zero,
                        load_indices(source, starts, c, length - c), load_indices(source, counts, c, length - c),
                        base, depth[d, 1], depth_step, height[h, 1], height_step, taps, tap_step,
                    )  # fmt: skip
                else:
                    result = _reduced(
                        take, True, source, zero, base, depth[d, 1], depth_step, height[h, 1], height_step,
                        start + c * step, taps, tap_step, step, limit,
                    )  # fmt: skip
                if across:
                    result = splat(source, total(result))
                if averages:
                    divisor = splat(source, by_depth[d] * by_height[h])
                    if divisor_a_lane:
                        divisor = multiply(divisor, load_within(widths, c, 0, length - c, one))
                    else:
                        divisor = multiply(divisor, splat(source, by_width[s]))
                    result = divide(result, divisor)
                if root:
                    result = square_root(result)
                store_first(target, r * out_row + out_start + c, result, length - c)
        h, d, p = _next(h, d, p, len(height), len(depth))


@jit
def sum_of_windows(t, threads, depth, height, strips, steps, width, averages, by_depth, by_height, by_width, x, y):
    args = (t, threads, depth, height, strips, steps, width, averages, by_depth, by_height, by_width, x, y)
    _sums(add, False, *args)


@jit
def root_of_squares(t, threads, depth, height, strips, steps, width, averages, by_depth, by_height, by_width, x, y):
    args = (t, threads, depth, height, strips, steps, width, averages, by_depth, by_height, by_width, x, y)
    _sums(add_square, True, *args)


# --- values and indices: better is is_larger or is_smaller ---


@inlined
def _taps_at(
    better, x, fill, best_at, index, index_tap, index_lane, channels,
    base, depths, depth_step, heights, height_step, i, taps, tap_step, step, limit, whole,
):  # fmt: skip
    best = splat(x, fill)
    for a in range(depths):
        for b in range(heights):
            offset = a * depth_step + b * height_step
            row_index = index + offset // channels
            for j in range(taps):
                v = _fetch(x, base + offset, i + j * tap_step, step, limit, whole, fill)
                found = better(v, best)
                best = where(found, v, best)
                best_at = where(found, index_ramp(x, row_index + j * index_tap, index_lane), best_at)
                keep_rolled()
    return best, best_at


@inlined
def _reduced_at(
    better, x, fill, best_at, index, index_tap, index_lane, channels,
    base, depths, depth_step, heights, height_step, i, taps, tap_step, step, limit,
):  # fmt: skip
    """One vector of windows: its extremes and the index of each. ``best_at`` holds the windows' first indices."""
    whole = _is_whole(x, i, taps, tap_step, step, limit)
    if step == 1 and whole:
        return _taps_at(
            better, x, fill, best_at, index, index_tap, index_lane, channels,
            base, depths, depth_step, heights, height_step, i, taps, tap_step, 1, limit, True,
        )  # fmt: skip
    if step == 1:
        return _taps_at(
            better, x, fill, best_at, index, index_tap, index_lane, channels,
            base, depths, depth_step, heights, height_step, i, taps, tap_step, 1, limit, False,
        )  # fmt: skip
    if step == 2 and whole:
        return _taps_at(
            better, x, fill, best_at, index, index_tap, index_lane, channels,
            base, depths, depth_step, heights, height_step, i, taps, tap_step, 2, limit, True,
        )  # fmt: skip
    if step == 2:
        return _taps_at(
            better, x, fill, best_at, index, index_tap, index_lane, channels,
            base, depths, depth_step, heights, height_step, i, taps, tap_step, 2, limit, False,
        )  # fmt: skip
    return _taps_at(
        better, x, fill, best_at, index, index_tap, index_lane, channels,
        base, depths, depth_step, heights, height_step, i, taps, tap_step, step, limit, False,
    )  # fmt: skip


@inlined
def _extremes_at(better, fill, t, threads, depth, height, strips, steps, first, x, at, y):
    plane_size, slice_size, row_size, depth_step, height_step, step, tap_step, out_row, channels, _ = steps
    source, target, target_at, firsts = data(x), data(y), data(at), data(first)
    empty = number(source, fill)
    index_lane, index_tap = (step, tap_step) if channels == 1 else (0, tap_step // channels)
    rows = y.size // out_row
    first_row = rows * t // threads
    h, d, p = _place(first_row, len(height), len(depth))
    for r in range(first_row, rows * (t + 1) // threads):
        in_plane = depth[d, 0] * slice_size + height[h, 0] * row_size
        index = in_plane // channels  # of column 0 in the window's first row
        has_rows = depth[d, 1] * height[h, 1] > 0
        for s in range(len(strips)):
            start, taps, limit, out_start, length = strips[s, 0], strips[s, 1], strips[s, 2], strips[s, 3], strips[s, 4]
            for c in range(0, length, lane_count(source)):
                if not has_rows:
                    best_at = index_ramp(source, -1, 0)
                elif channels == 1:
                    best_at = add_where_valid(load_indices(source, firsts, c, length - c), index)
                else:
                    best_at = add_where_valid(index_ramp(source, first[s], 0), index)
                here = index + strips[s, 5] + c * index_lane
                best, best_at = _reduced_at(
                    better, source, empty, best_at, here, index_tap, index_lane, channels,
                    p * plane_size + in_plane, depth[d, 1], depth_step, height[h, 1], height_step,
                    start + c * step, taps, tap_step, step, limit,
                )  # fmt: skip
                o = r * out_row + out_start + c
                store_first(target, o, best, length - c)
                store_first(target_at, o, best_at, length - c)
        h, d, p = _next(h, d, p, len(height), len(depth))


@jit
def largest_of_windows_at(t, threads, depth, height, strips, steps, first, x, at, y):
    _extremes_at(is_larger, -np.inf, t, threads, depth, height, strips, steps, first, x, at, y)


@jit
def smallest_of_windows_at(t, threads, depth, height, strips, steps, first, x, at, y):
    _extremes_at(is_smaller, np.inf, t, threads, depth, height, strips, steps, first, x, at, y)


@jit
def find_in_windows(t, threads, depth, height, strips, steps, x, at, y):
    """Indices for windows reduced across: where the first element equal to y is (NaN equals NaN)."""
    plane_size, slice_size, row_size, depth_step, height_step, _, _, out_row, _, _ = steps
    rows = y.size // out_row
    first_row = rows * t // threads
    h, d, p = _place(first_row, len(height), len(depth))
    for r in range(first_row, rows * (t + 1) // threads):
        in_plane = depth[d, 0] * slice_size + height[h, 0] * row_size
        for s in range(len(strips)):
            start, limit, o = strips[s, 0], strips[s, 2], r * out_row + strips[s, 3]
            at[o] = -1
            for a in range(depth[d, 1]):
                for b in range(height[h, 1]):
                    offset = in_plane + a * depth_step + b * height_step
                    for i in range(start, limit if at[o] < 0 else start):
                        v = x[p * plane_size + offset + i]
                        if v == y[o] or (v != v and y[o] != y[o]):
                            at[o] = offset + i
                            break
        h, d, p = _next(h, d, p, len(height), len(depth))


# --- scatters and gathers by index: planes of ``channels`` interleaved, cut into blocks of channels ---


@inlined
def _put(plane, position, positions, channels, channel, value, accumulate):
    if np.uint64(position) < np.uint64(positions):  # unsigned: a negative position is a large one
        i = np.uint64(position) * np.uint64(channels) + np.uint64(channel)
        if accumulate:
            plane[i] += value
        else:
            plane[i] = value


@jit
def scatter_by_index(t, threads, accumulate, planes, channels, indices, x, y):
    """y = 0, then y[index] += x (``accumulate``) or = x, plane by plane in order; a share is whole channel blocks."""
    out_size, in_size = y.size // planes, x.size // planes
    blocks = -(-channels // CHANNEL_BLOCK)
    for work in range(planes * blocks * t // threads, planes * blocks * (t + 1) // threads):
        p, first = work // blocks, work % blocks * CHANNEL_BLOCK
        last = min(first + CHANNEL_BLOCK, channels)
        out_plane, in_plane = y[p * out_size : (p + 1) * out_size], x[p * in_size : (p + 1) * in_size]
        to = indices[p * in_size : (p + 1) * in_size]
        positions = out_size // channels
        if channels == 1:  # what follows, at half its cost
            out_plane[:] = 0
            for i in range(in_size):
                _put(out_plane, to[i], positions, 1, 0, in_plane[i], accumulate)
            continue
        for o in range(0, out_size, channels):
            out_plane[o + first : o + last] = 0
        for o in range(0, in_size, channels):
            for c in range(first, last):
                _put(out_plane, to[o + c], positions, channels, c, in_plane[o + c], accumulate)


@jit
def gather_by_index(t, threads, planes, channels, indices, x, y):
    """y = x[index], 0 where the index is outside the plane."""
    out_size, in_size = y.size // planes, x.size // planes
    positions = y.size // channels
    for o in range(positions * t // threads, positions * (t + 1) // threads):
        base = o * channels // out_size * in_size
        for c in range(channels):
            source = np.int64(indices[o * channels + c])
            inside = 0 <= source < in_size // channels
            y[o * channels + c] = x[base + source * channels + c] if inside else x.dtype.type(0)


# --- the same on all threads (prange counts in uint64, for which everything would be compiled once more) ---


@jit(parallel=True)
def largest_of_windows_parallel(threads, depth, height, strips, steps, x, y):
    for t in prange(threads):
        largest_of_windows(np.int64(t), threads, depth, height, strips, steps, x, y)


@jit(parallel=True)
def smallest_of_windows_parallel(threads, depth, height, strips, steps, x, y):
    for t in prange(threads):
        smallest_of_windows(np.int64(t), threads, depth, height, strips, steps, x, y)


@jit(parallel=True)
def sum_of_windows_parallel(
    threads, depth, height, strips, steps, width, averages, by_depth, by_height, by_width, x, y
):
    for t in prange(threads):
        args = (depth, height, strips, steps, width, averages, by_depth, by_height, by_width, x, y)
        sum_of_windows(np.int64(t), threads, *args)


@jit(parallel=True)
def root_of_squares_parallel(
    threads, depth, height, strips, steps, width, averages, by_depth, by_height, by_width, x, y
):
    for t in prange(threads):
        args = (depth, height, strips, steps, width, averages, by_depth, by_height, by_width, x, y)
        root_of_squares(np.int64(t), threads, *args)


@jit(parallel=True)
def largest_of_windows_at_parallel(threads, depth, height, strips, steps, first, x, at, y):
    for t in prange(threads):
        largest_of_windows_at(np.int64(t), threads, depth, height, strips, steps, first, x, at, y)


@jit(parallel=True)
def smallest_of_windows_at_parallel(threads, depth, height, strips, steps, first, x, at, y):
    for t in prange(threads):
        smallest_of_windows_at(np.int64(t), threads, depth, height, strips, steps, first, x, at, y)


@jit(parallel=True)
def find_in_windows_parallel(threads, depth, height, strips, steps, x, at, y):
    for t in prange(threads):
        find_in_windows(np.int64(t), threads, depth, height, strips, steps, x, at, y)


@jit(parallel=True)
def scatter_by_index_parallel(threads, accumulate, planes, channels, indices, x, y):
    for t in prange(threads):
        scatter_by_index(np.int64(t), threads, accumulate, planes, channels, indices, x, y)


@jit(parallel=True)
def gather_by_index_parallel(threads, planes, channels, indices, x, y):
    for t in prange(threads):
        gather_by_index(np.int64(t), threads, planes, channels, indices, x, y)
