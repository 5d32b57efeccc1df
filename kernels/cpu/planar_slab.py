"""Packing planes into a slab whose rows tiles read with pixels in their lanes: what ``planar`` and its gradient share.

    input (N, C, D, H, W), any strides   ->   slab [channel][plane][row phase][column phase][row][column]

Padding of every mode is written here, once. Rows and columns are sorted by their phase (number mod stride), so that the
pixels under neighbouring outputs are neighbours, and those under the next row of outputs are ``pitch`` behind them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from . import vector
from .arrays import address
from .blocking import Correlation
from .compile import jit
from .gemm import copy_strided, zero
from .planar_blocking import PlanarForward
from .simd import keep_whole, load, pointer, shift, unpack, vector_lanes


class Layout(NamedTuple):
    """What the compiled functions are told, as integers: addresses, then strides and sizes in elements."""

    x: int
    x_n: int
    x_c: int
    x_d: int
    x_h: int
    x_w: int
    out: int
    out_n: int
    out_c: int
    out_d: int
    out_h: int
    out_w: int
    residual: int  # 0: none
    residual_n: int
    residual_c: int
    residual_d: int
    residual_h: int
    residual_w: int
    bias: int  # 0: none
    activation: int
    weights: int  # packed
    scratch: int  # thread t's begins at scratch + t * thread_bytes
    # from here on the same in every call with this geometry
    thread_bytes: int
    slab_bytes: int
    line_bytes: int
    tile_bytes: int
    own_bytes: int
    w_g: int  # strides of weights that each thread packs for itself, their taps side by side; w_k 0: they are packed
    w_k: int
    w_c: int
    source_d: int
    source_h: int
    segments: int
    segment_count: int
    run_start: int  # where a padded row is one run of the input's row: its first position, the element there and the
    run_first: int  # length, 0: not so
    run_length: int
    offsets: int  # slab offset of each (c, tap)
    depth: int  # how many
    batch: int
    groups: int
    group_inputs: int
    group_outputs: int
    k_blocks: int
    k_parts: int
    rows: int
    columns: int
    row_blocks: int
    column_blocks: int
    slab_rows: int
    slab_columns: int
    phases: int
    row_phases: int
    pitch: int
    phase_step: int
    plane_step: int
    channel_step: int
    joined: int
    kernel_d: int
    stride_d: int
    dilation_d: int
    out_depth: int
    stride_h: int
    out_height: int
    stride_w: int
    out_width: int


FIELDS = len(Layout._fields)


@jit(inline=True)
def pack_line(segments, segment_count, step_w, source, target, first_column, columns):
    """``columns`` padded positions of an input row of one channel, from ``first_column``."""
    keep_whole()
    for i in range(0, 4 * segment_count, 4):
        start, first, count = load(segments, i), load(segments, i + 1), load(segments, i + 3)
        begin = max(start, first_column)
        n = min(start + count, first_column + columns) - begin
        if n <= 0:
            continue
        t, step = shift(target, begin - first_column), load(segments, i + 2)
        if first < 0:
            zero(t, n)
        else:
            copy_strided(shift(source, (first + (begin - start) * step) * step_w), step * step_w, t, n)


@jit(inline=True)
def split_phases(phases, line, target, apart, n):
    """``target[f * apart + i] = line[i * phases + f]``: positions of one residue side by side. A stride of 4 is split
    twice by 2, whose shuffles are five times as fast as a loop."""
    keep_whole()
    if phases == 4:
        half = shift(line, n)
        for f in range(2):
            m = (n - f + 1) // 2
            copy_strided(shift(line, f), 2, half, m)
            copy_strided(half, 2, shift(target, f * apart), (m + 1) // 2)
            copy_strided(shift(half, 1), 2, shift(target, (f + 2) * apart), m // 2)
    else:
        for f in range(min(phases, n)):
            copy_strided(shift(line, f), phases, shift(target, f * apart), (n - f + phases - 1) // phases)


@jit(inline=True)
def pack_run(phases, x, start, length, target, pitch, apart):
    """A slab row of ``phases`` 1, 2 or 4 that is one run of an input row, between zeros: element ``start`` of x is its
    first. Whole vectors: the last may begin the next row, to be packed later.

    Of 512 channels of 14 x 14 in 32 groups ``pack_line`` and zeros around it took 375 us instead of 284 (one thread).
    """
    lanes = vector.lane_count(x)
    if phases == 1:  # the others apart and rolled, that this may be part of the loop over rows: 8% of that convolution
        for i in range(0, pitch, lanes):
            vector.keep_rolled()
            vector.store(target, i, vector.load_within(x, 0, start + i, length, 0.0))
    else:
        split_run(phases, x, start, length, target, pitch, apart)


@jit(inline=True)
def split_run(phases, x, start, length, target, pitch, apart):
    keep_whole()
    lanes = vector.lane_count(x)
    for i in range(0, pitch, lanes):
        vector.keep_rolled()
        for f in range(2):
            low = vector.load_even_within(x, 0, start + phases * i + f, length, 0.0)
            if phases == 2:
                vector.store(target, f * apart + i, low)
            else:
                high = vector.load_even_within(x, 0, start + 4 * i + f + 2 * lanes, length, 0.0)
                vector.store(target, f * apart + i, vector.evens(low, high))
                vector.store(target, (f + 2) * apart + i, vector.odds(low, high))


@jit(inline=True)
def pack_planes(table, kind, slab, line, n, channel, od, oh0, rows, ow0, columns):
    """The slab under the block at (n, od, oh0, ow0), for a group's input channels from ``channel``."""
    keep_whole()
    g = Layout(*unpack(table, FIELDS))
    lanes = vector_lanes(kind)
    source_d, source_h = pointer(g.source_d, table), shift(pointer(g.source_h, table), oh0 * g.stride_h)
    segments, x = pointer(g.segments, table), shift(pointer(g.x, kind), n * g.x_n)
    used = (rows - 1) * g.stride_h + g.slab_rows - (g.rows - 1) * g.stride_h
    wide = (columns - 1) * g.stride_w + g.slab_columns - (g.columns - 1) * g.stride_w
    one_run = g.run_length > 0 and g.x_w == 1 and (g.phases <= 2 or g.phases == 4)
    nothing, start = vector.splat(slab, vector.number(slab, 0.0)), ow0 * g.stride_w
    for c in range(g.group_inputs):
        for i in range(g.kernel_d):
            d = load(source_d, od * g.stride_d + i * g.dilation_d)
            plane = shift(x, (channel + c) * g.x_c + d * g.x_d)
            for first in range(g.row_phases):
                place = c * g.channel_step + i * g.plane_step + first * g.phases * g.phase_step
                for j in range(first, used, g.row_phases):
                    h, target = load(source_h, j), shift(slab, place)
                    place += g.pitch
                    if d < 0 or h < 0:
                        for f in range(g.phases):
                            for q in range(0, g.pitch, lanes):  # into the next row, too, which is packed later
                                vector.store(target, f * g.phase_step + q, nothing)
                        continue
                    row = shift(plane, h * g.x_h)
                    if one_run:
                        x_row = shift(row, g.run_first)
                        pack_run(g.phases, x_row, start - g.run_start, g.run_length, target, g.pitch, g.phase_step)
                    elif g.phases == 1:
                        pack_line(segments, g.segment_count, g.x_w, row, target, start, wide)
                        zero(shift(target, wide), g.pitch - wide)
                    else:
                        pack_line(segments, g.segment_count, g.x_w, row, line, start, wide)
                        split_phases(g.phases, line, target, g.phase_step, wide)
                        for f in range(g.phases):
                            filled = (wide - f + g.phases - 1) // g.phases
                            zero(shift(target, f * g.phase_step + filled), g.pitch - filled)
                # tiles read whole vectors: past the end must be no subnormal numbers, which multiply slowly
                for f in range(g.phases):
                    vector.store(slab, place + f * g.phase_step, nothing)


def _run(source: np.ndarray) -> tuple[int, int, int]:
    """First position, element there and length of the run that a padded row is between zeros; length 0: it is none."""
    inside = np.flatnonzero(source >= 0)
    if not inside.size or (np.diff(source[inside]) != 1).any() or (np.diff(inside) != 1).any():
        return 0, 0, 0
    return int(inside[0]), int(source[inside[0]]), inside.size


def constants(
    c: Correlation, plan: PlanarForward, offsets: np.ndarray, w: tuple[int, ...] = (0, 0, 0)
) -> tuple[tuple[int, ...], Any]:
    """The fields of a layout that do not change from call to call, and the arrays that they point to."""
    depth, height, width = c.axes
    segments, segment_count = c.segments
    fixed = (
        sum(plan.scratch), *plan.scratch[:4], *w,
        address(depth.source), address(height.source), address(segments), segment_count,
        *_run(width.source), address(offsets), offsets.size,
        c.batch, c.groups, c.group_inputs, c.group_outputs, plan.k_blocks, plan.k_parts,
        plan.rows, plan.columns, plan.row_blocks, plan.column_blocks, plan.slab_rows, plan.slab_columns,
        plan.phases, plan.row_phases, plan.pitch, plan.phase_step, plan.plane_step, plan.channel_step, int(plan.joined),
        depth.kernel, depth.stride, depth.dilation, depth.out, height.stride, height.out, width.stride, width.out,
    )  # fmt: skip
    return fixed, (depth.source, height.source, segments, offsets)
