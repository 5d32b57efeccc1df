"""Building blocks around the register tiles: products of any height, transposed and strided copies.

All take pointers (see ``simd``), so none cares which array an address lies in.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from .blocking import LINE_BYTES
from .compile import jit
from .simd import (
    VECTOR_BYTES,
    copy,
    copy_every_fourth,
    copy_every_second,
    keep_whole,
    load,
    shift,
    store,
    transpose_columns,
    transpose_part,
    transpose_square,
    vector_lanes,
)
from .tiles import (
    SMALL_ROWS,
    TILE_ROWS,
    WIDE_ROWS,
    asking_tile,
    asking_tile_1,
    asking_tile_2,
    lane_tile,
    low_wide_output_tile,
    moving_tile,
    moving_tile_1,
    moving_tile_2,
    narrow_output_tile,
    output_tile,
    pixel_tile,
    pixel_tile_1,
    pixel_tile_2,
    small_lane_tile,
    small_output_tile,
    small_tile,
    tile,
    wide_output_tile,
)


class Window(NamedTuple):
    """What a tile sums: ``total`` pieces of ``length`` products each.

    Product k of piece t takes row i's operand from ``a[rows[i] + pieces[t] + k * step]`` and the next row of b.
    """

    total: int
    pieces: Any  # pointer to offsets
    length: int
    step: int


class Finish(NamedTuple):
    """What becomes of the sums: activation(bias[:] + sums[i] + residual[i * ldr])."""

    bias: Any
    residual: Any
    ldr: int  # -1: no residual
    activation: int  # none, RELU or RELU6


class Pair(NamedTuple):
    """Weights of two tile columns, the second one ``apart`` behind the first."""

    b: Any
    apart: int
    at_once: int  # pieces of the window summed before the next rows: they should stay in the L2
    zeros: Any  # both columns' bias where sums are not complete


class Ahead(NamedTuple):
    """What is asked for: ``half`` elements from ``first`` on, and as many from ``apart`` behind it on."""

    first: Any
    apart: int
    half: int


@jit(inline=True)
def multiply(height, segment_count, segments, length, step, a, rows, b, c, ldc, accumulate):
    """C[i][:] (+)= the tiles' sum for i < height; C and ``rows`` must reach to a whole tile (see ``tiles``)."""
    keep_whole()
    i = 0
    while i < height:
        if height - i <= SMALL_ROWS:
            small_tile(segment_count, segments, length, step, a, shift(rows, i), b, shift(c, i * ldc), ldc, accumulate)
            i += SMALL_ROWS
        else:
            tile(segment_count, segments, length, step, a, shift(rows, i), b, shift(c, i * ldc), ldc, accumulate)
            i += TILE_ROWS


@jit(inline=True)
def multiply_finished(height, columns, window, a, rows, b, c, ldc, finish):
    """C[i][:columns] = activation(bias + the tiles' sum + residual[i]) for i < height; see ``tiles.output_tile``. Only
    ``rows`` must reach to a whole tile."""
    keep_whole()
    count, pieces, length, step = window
    bias, residual, ldr, activation = finish
    wide = columns > vector_lanes(load(b, 0))
    i = 0
    while i < height:
        n, r, y, z = height - i, shift(rows, i), shift(c, i * ldc), shift(residual, max(i * ldr, 0))
        if not wide:
            narrow_output_tile(count, pieces, length, step, a, r, b, y, ldc, n, columns, bias, z, ldr, activation)
            i += TILE_ROWS
        elif n <= SMALL_ROWS:
            small_output_tile(count, pieces, length, step, a, r, b, y, ldc, n, columns, bias, z, ldr, activation)
            i += SMALL_ROWS
        else:
            output_tile(count, pieces, length, step, a, r, b, y, ldc, n, columns, bias, z, ldr, activation)
            i += TILE_ROWS


@jit(inline=True)
def multiply_wide(height, columns, window, a, rows, pair, between, ahead, c, ldc, finish):
    """``multiply_finished`` for two tile columns, whose ``pair`` of weights is taken some pieces at a time.

    In between the sums lie at ``between``, [position][both columns]; then there must be no residual. Meanwhile what is
    multiplied next is asked for, in the end what ``ahead`` says. Tiles have 6 rows or 5: from 20 on any number is made
    of those.
    """
    keep_whole()
    pieces, length, step = window.pieces, window.length, window.step
    lanes = vector_lanes(load(pair.b, 0))
    tiles, width, line = -(-height // WIDE_ROWS), 2 * lanes, lanes * LINE_BYTES // VECTOR_BYTES
    half = max(1, tiles // 2)
    for first in range(0, window.total, pair.at_once):
        count = min(pair.at_once, window.total - first)
        left, steps, b = window.total - first - count, count * length, shift(pair.b, first * length * width)
        last = left == 0
        asked = ahead.first if last else shift(b, steps * width)
        asked_apart = ahead.apart if last else pair.apart
        asked_step = -(-(ahead.half if last else min(pair.at_once, left) * length * width) // (half * steps))
        asked_step = max(0, min(line, asked_step))
        to, ldt = (c, ldc) if last else (between, 2 * width)
        more, ldm = (between, 2 * width) if first else (finish.residual, finish.ldr)
        bias, limits = (finish.bias, finish.activation) if last else (pair.zeros, 0)
        for j in range(tiles):
            i = height * j // tiles
            n = height * (j + 1) // tiles - i
            p, r, y, z = shift(pieces, first), shift(rows, i), shift(to, i * ldt), shift(more, max(i * ldm, 0))
            f = shift(asked, j * steps * asked_step if j < half else asked_apart + (j - half) * steps * asked_step)
            if n == WIDE_ROWS:
                wide_output_tile(
                    count, p, length, step, a, r, b, pair.apart, f, asked_step, y, ldt, n, columns, bias, z, ldm, limits
                )
            else:
                low_wide_output_tile(
                    count, p, length, step, a, r, b, pair.apart, f, asked_step, y, ldt, n, columns, bias, z, ldm, limits
                )


@jit(inline=True)
def multiply_lanes(height, segment_count, segments, length, step, a, rows, b, c, ldc, accumulate):
    """``multiply`` with lane-by-lane products."""
    keep_whole()
    i = 0
    while i < height:
        if height - i <= SMALL_ROWS:
            small_lane_tile(
                segment_count, segments, length, step, a, shift(rows, i), b, shift(c, i * ldc), ldc, accumulate
            )
            i += SMALL_ROWS
        else:
            lane_tile(segment_count, segments, length, step, a, shift(rows, i), b, shift(c, i * ldc), ldc, accumulate)
            i += TILE_ROWS


@jit(inline=True)
def multiply_pixels(vectors, depth, offsets, a, b, c, ldc, columns, bias, residual, ldr, activation):
    """C[i][:columns] = the pixel tile's sums, ``vectors`` wide (1 to 3)."""
    keep_whole()
    if vectors == 3:
        pixel_tile(depth, offsets, a, b, c, ldc, columns, bias, residual, ldr, activation)
    elif vectors == 2:
        pixel_tile_2(depth, offsets, a, b, c, ldc, columns, bias, residual, ldr, activation)
    else:
        pixel_tile_1(depth, offsets, a, b, c, ldc, columns, bias, residual, ldr, activation)


@jit(inline=True)
def multiply_asking(vectors, depth, offsets, a, b, c, ldc, columns, bias, residual, ldr, activation, ahead, ahead_step):
    """The same, while ``depth`` lines are asked for."""
    keep_whole()
    if vectors == 3:
        asking_tile(depth, offsets, a, b, c, ldc, columns, bias, residual, ldr, activation, ahead, ahead_step)
    elif vectors == 2:
        asking_tile_2(depth, offsets, a, b, c, ldc, columns, bias, residual, ldr, activation, ahead, ahead_step)
    else:
        asking_tile_1(depth, offsets, a, b, c, ldc, columns, bias, residual, ldr, activation, ahead, ahead_step)


@jit(inline=True)
def multiply_moving(
    vectors, depth, panel, a, b, c, ldc, columns, bias, residual, ldr, activation, source, target, wide, left,
    source_step, target_step,
):  # fmt: skip
    """The same of rows ``panel`` elements apart, while ``depth`` vectors are copied from source to target (see
    ``tiles``)."""
    keep_whole()
    if vectors == 3:
        moving_tile(
            depth, panel, a, b, c, ldc, columns, bias, residual, ldr, activation, source, target, wide, left,
            source_step, target_step,
        )  # fmt: skip
    elif vectors == 2:
        moving_tile_2(
            depth, panel, a, b, c, ldc, columns, bias, residual, ldr, activation, source, target, wide, left,
            source_step, target_step,
        )  # fmt: skip
    else:
        moving_tile_1(
            depth, panel, a, b, c, ldc, columns, bias, residual, ldr, activation, source, target, wide, left,
            source_step, target_step,
        )  # fmt: skip


@jit(inline=True)
def copy_strided(source, step, target, n):
    """``target[i] = source[i * step]``."""
    keep_whole()
    if step == 1:
        copy(source, target, n)
    elif step == 2:
        copy_every_second(source, target, n)
    elif step == 4:
        copy_every_fourth(source, target, n)
    else:
        for i in range(n):
            store(target, i, load(source, i * step))


@jit(inline=True)
def zero(target, n):
    for i in range(n):
        store(target, i, 0.0)


@jit(inline=True)
def transpose(lanes, source, lds, target, ldt, n, m):
    """``target[j * ldt + i] = source[i * lds + j]`` for i < n, j < m, in squares of ``lanes``.

    The last square of a row or column overlaps the one before; only where there is none is it a part of a square,
    which takes several times as long.
    """
    keep_whole()
    height, width = min(lanes, n), min(lanes, m)
    for i in range(0, n, lanes):
        first = min(i, n - height)
        for j in range(0, m, lanes):
            left = min(j, m - width)
            s, t = shift(source, first * lds + left), shift(target, left * ldt + first)
            if height == lanes and width == lanes:
                transpose_square(s, lds, t, ldt)
            elif height == lanes:
                transpose_columns(s, lds, t, ldt, width)
            else:
                transpose_part(s, lds, t, ldt, height, width)


@jit(inline=True)
def gather(lanes, source, channel_stride, position_stride, target, ldt, channels, positions):
    """``target[p * ldt + c] = source[c * channel_stride + p * position_stride]``: a channels-last copy."""
    keep_whole()
    if position_stride == 1 and channels > 1:
        transpose(lanes, source, channel_stride, target, ldt, channels, positions)
    elif channel_stride == 1:
        for p in range(positions):
            copy(shift(source, p * position_stride), shift(target, p * ldt), channels)
    elif ldt == 1 and position_stride == 1:
        copy(source, target, positions)
    else:
        for p in range(positions):
            for c in range(channels):
                store(target, p * ldt + c, load(source, c * channel_stride + p * position_stride))
