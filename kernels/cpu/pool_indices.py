"""The compiled loops of pooling that find or follow positions: extremes with indices, scatters and gathers by index.

The strips of :mod:`.pool_walk` are reduced a vector at a time, the window's rows outside and its columns inside, so
that the first maximum is met first. The masks of a vector at the edge are those of its row.

Every kernel is ``kernel(t, threads, table, chunk, kind)``, as in :mod:`.pool_kernels`, with its names.
"""

# Functions here are typed by Numba. Helpers that LLVM must inline are called with constants for ``step`` and ``whole``:
# each call leaves only the loads that these select.

import numpy as np

from .compile import jit
from .pool_kernels import inlined, next_row, place
from .pool_walk import FIELD_COUNT, Fields
from .simd import load as element
from .simd import pointer, shift, unpack
from .simd import store as put
from .vector import (
    add_where_valid,
    gather,
    index_ramp,
    is_larger,
    is_smaller,
    keep_rolled,
    lane_count,
    load,
    load_even,
    load_even_within,
    load_indices,
    load_within,
    number,
    ramp_within,
    splat,
    store_first,
    where,
)

CHANNEL_BLOCK = 64
"""Channels that one thread scatters at a time, channels-last: whole cache lines, and enough blocks to share out."""


# --- values and indices: better is is_larger or is_smaller ---


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
def _put_index(f, o, value, n):
    """Indices to an array of int64 or int32."""
    if f.index_bytes == 8:
        store_first(pointer(f.at, np.int64(0)), o, value, n)
    else:
        store_first(pointer(f.at, np.int32(0)), o, value, n)


@inlined
def _extremes_at(better, fill, t, threads, table, kind):
    f = Fields(*unpack(table, FIELD_COUNT))
    x, y = pointer(f.x, kind), pointer(f.y, kind)
    depth, height, strips = pointer(f.depth, table), pointer(f.height, table), pointer(f.strips, table)
    firsts = pointer(f.starts, np.int32(0))
    empty = number(x, fill)
    index_lane, index_tap = (f.step, f.tap_step) if f.channels == 1 else (0, f.tap_step // f.channels)
    first_row = f.rows * t // threads
    h, d, p = place(first_row, f.heights, f.depths)
    for r in range(first_row, f.rows * (t + 1) // threads):
        in_plane = element(depth, 2 * d) * f.slice_size + element(height, 2 * h) * f.row_size
        depths, heights = element(depth, 2 * d + 1), element(height, 2 * h + 1)
        index = in_plane // f.channels  # of column 0 in the window's first row
        for s in range(f.strip_count):
            start, taps, limit = element(strips, 6 * s), element(strips, 6 * s + 1), element(strips, 6 * s + 2)
            out_start, length = element(strips, 6 * s + 3), element(strips, 6 * s + 4)
            for c in range(0, length, lane_count(x)):
                if depths * heights == 0:
                    best_at = index_ramp(x, -1, 0)
                elif f.channels == 1:
                    best_at = add_where_valid(load_indices(x, firsts, c, length - c), index)
                else:
                    best_at = add_where_valid(index_ramp(x, element(firsts, s), 0), index)
                here = index + element(strips, 6 * s + 5) + c * index_lane
                best, best_at = _reduced_at(
                    better, x, empty, best_at, here, index_tap, index_lane, f.channels,
                    p * f.plane_size + in_plane, depths, f.depth_step, heights, f.height_step,
                    start + c * f.step, taps, f.tap_step, f.step, limit,
                )  # fmt: skip
                o = r * f.out_row + out_start + c
                store_first(y, o, best, length - c)
                _put_index(f, o, best_at, length - c)
        h, d, p = next_row(h, d, p, f.heights, f.depths)


@jit
def largest_of_windows_at(t, threads, table, chunk, kind):
    _extremes_at(is_larger, -np.inf, t, threads, table, kind)


@jit
def smallest_of_windows_at(t, threads, table, chunk, kind):
    _extremes_at(is_smaller, np.inf, t, threads, table, kind)


@jit
def find_in_windows(t, threads, table, chunk, kind):
    """Indices for windows reduced across: where the first element equal to y is (NaN equals NaN)."""
    f = Fields(*unpack(table, FIELD_COUNT))
    x, y = pointer(f.x, kind), pointer(f.y, kind)
    depth, height, strips = pointer(f.depth, table), pointer(f.height, table), pointer(f.strips, table)
    first_row = f.rows * t // threads
    h, d, p = place(first_row, f.heights, f.depths)
    for r in range(first_row, f.rows * (t + 1) // threads):
        in_plane = element(depth, 2 * d) * f.slice_size + element(height, 2 * h) * f.row_size
        for s in range(f.strip_count):
            start, limit = element(strips, 6 * s), element(strips, 6 * s + 2)
            o = r * f.out_row + element(strips, 6 * s + 3)
            wanted, found = element(y, o), -1
            for a in range(element(depth, 2 * d + 1)):
                for b in range(element(height, 2 * h + 1)):
                    offset = in_plane + a * f.depth_step + b * f.height_step
                    for i in range(start, limit if found < 0 else start):
                        v = element(x, p * f.plane_size + offset + i)
                        if v == wanted or (v != v and wanted != wanted):
                            found = offset + i
                            break
            if f.index_bytes == 8:
                put(pointer(f.at, np.int64(0)), o, found)
            else:
                put(pointer(f.at, np.int32(0)), o, np.int32(found))
        h, d, p = next_row(h, d, p, f.heights, f.depths)


# --- scatters and gathers by index: planes of ``channels`` interleaved, cut into blocks of channels ---


@inlined
def _put(plane, position, positions, channels, channel, value, accumulate):
    if np.uint64(position) < np.uint64(positions):  # unsigned: a negative position is a large one
        i = np.int64(position) * channels + channel
        if accumulate:
            put(plane, i, element(plane, i) + value)
        else:
            put(plane, i, value)


@inlined
def _scatter(index, t, threads, table, kind):
    f = Fields(*unpack(table, FIELD_COUNT))
    x, y, indices = pointer(f.x, kind), pointer(f.y, kind), pointer(f.at, index)
    channels, in_size, out_size = f.channels, f.plane_size, f.out_row
    zero, lanes = splat(y, number(y, 0)), lane_count(y)
    blocks = -(-channels // CHANNEL_BLOCK)
    for work in range(f.rows * blocks * t // threads, f.rows * blocks * (t + 1) // threads):
        p, first = work // blocks, work % blocks * CHANNEL_BLOCK
        last = min(first + CHANNEL_BLOCK, channels)
        plane, positions = shift(y, p * out_size), out_size // channels
        values, to = shift(x, p * in_size), shift(indices, p * in_size)
        if channels == 1:  # what follows, at half its cost
            for o in range(0, out_size, lanes):
                store_first(plane, o, zero, out_size - o)
            for i in range(in_size):
                _put(plane, element(to, i), positions, 1, 0, element(values, i), f.accumulate)
            continue
        for o in range(0, out_size, channels):
            for c in range(first, last, lanes):
                store_first(plane, o + c, zero, last - c)
        for o in range(0, in_size, channels):
            for c in range(first, last):
                _put(plane, element(to, o + c), positions, channels, c, element(values, o + c), f.accumulate)


@jit
def scatter_by_int32(t, threads, table, chunk, kind):
    """y = 0, then y[index] += x (``accumulate``) or = x, plane by plane in order; a share is whole channel blocks."""
    _scatter(np.int32(0), t, threads, table, kind)


@jit
def scatter_by_int64(t, threads, table, chunk, kind):
    _scatter(np.int64(0), t, threads, table, kind)


@inlined
def _gather(index, t, threads, table, kind):
    f = Fields(*unpack(table, FIELD_COUNT))
    x, y, indices = pointer(f.x, kind), pointer(f.y, kind), pointer(f.at, index)
    channels, in_size, out_size = f.channels, f.plane_size, f.out_row
    rows = out_size // channels
    for r in range(f.rows * rows * t // threads, f.rows * rows * (t + 1) // threads):
        base = r // rows * in_size
        for c in range(channels):
            source = np.int64(element(indices, r * channels + c))
            value = number(x, 0)
            if 0 <= source < in_size // channels:
                value = element(x, base + source * channels + c)
            put(y, r * channels + c, value)


@jit
def gather_by_int32(t, threads, table, chunk, kind):
    """y = x[index], 0 where the index is outside the plane."""
    _gather(np.int32(0), t, threads, table, kind)


@jit
def gather_by_int64(t, threads, table, chunk, kind):
    _gather(np.int64(0), t, threads, table, kind)
