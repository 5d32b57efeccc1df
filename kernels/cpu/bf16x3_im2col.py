"""im2col whose products are bf16x3: for few input channels, and for NCHW, where nothing has to be transposed.

The matrix and its blocks are ``im2col``'s; a block has all rows (c, r), or as many as stay in L2:

    item: a block of positions, a group, a part of its output channels
        for each ``channels`` input channels
            unroll                                                      x -> rows [(c, r)][position], float32
            split: rows (c, r) and (c, r) + 16 of 32 are pairs          rows -> B [panel of 32][chunk][2 blocks]
            for each 32 output channels (weights split [k block][chunk][2 blocks]), for each panel
                32 output channels x 32 positions                       weights, B -> sums [k][position]
        finish: bias, residual, activation, store                       sums -> out

Splitting a number takes 0.3 cycles, its products with 64 output channels 0.9: that, and copying it once for each tap,
is why 3x3 kernels with many channels are better served by ``bfloat16``'s loops, in three parts, and Winograd.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from . import bf16x3_blocking as blocking
from .amx import CONFIGURATION, begin_tiles, end_tiles
from .arrays import Workspace, address, aligned_empty
from .bf16x3 import BLOCK, CHUNK, ROW, SIDE, product, split
from .blocking import Correlation
from .bound import Bound
from .compile import jit
from .epilogue import write_channels, write_positions
from .gemm import transpose, zero
from .im2col import FIELDS, Layout, constants, place, unroll
from .im2col import split as split_runs
from .phases import entry_points
from .simd import copy, pointer, shift, unpack, vector_lanes

WIDTH = 2 * SIDE  # positions of a panel, output channels of a tile


@jit(inline=True)
def split_rows(source, step, target, count, chunks):
    """B of ``count`` panels, from ``chunks`` times 32 rows, ``step`` apart."""
    for panel in range(count):
        to = shift(target, panel * chunks * 2 * BLOCK)
        for chunk in range(chunks):
            for block in range(2):
                lower = shift(source, chunk * CHUNK * step + panel * WIDTH + block * SIDE)
                for row in range(SIDE):
                    low = shift(lower, row * step)
                    split(low, shift(low, SIDE * step), shift(to, ((2 * chunk + block) * SIDE + row) * ROW))


@jit(inline=True)
def split_planes(source, step, channels, positions, rows, target, chunks):
    """B of ``positions`` neighbours in planes ``step`` apart, a 1x1 kernel's matrix: split as they lie.

    Copying them first takes as long again (256 channels of 56 x 56: 204 of 753 us).
    """
    whole = positions // WIDTH
    last = channels % CHUNK
    if last == 0:
        split_rows(source, step, target, whole, chunks)
    first = whole if last == 0 else 0
    for panel in range(first, -(-positions // WIDTH)):
        n = min(WIDTH, positions - panel * WIDTH)
        zero(rows, chunks * CHUNK * WIDTH)
        for c in range(channels):
            copy(shift(source, c * step + panel * WIDTH), shift(rows, c * WIDTH), n)
        split_rows(rows, WIDTH, shift(target, panel * chunks * 2 * BLOCK), 1, chunks)


@jit
def forward_range(t, threads, table, chunk, kind):
    """Share ``t`` of ``threads`` of a correlation."""
    g = Layout(*unpack(table, FIELDS))
    lanes, short = vector_lanes(kind), np.int16(0)
    memory = g.scratch + t * g.thread_bytes
    taps = g.kernel_d * g.kernel_h * g.kernel_w
    most = -(-g.channels * taps // CHUNK)  # chunks of a step
    rows, b = pointer(memory, kind), pointer(memory + g.pixels * most * CHUNK * 4, short)
    memory += g.panel_bytes
    sums, memory = pointer(memory, kind), memory + g.sums_bytes
    turned, memory = pointer(memory, kind), memory + g.turned_bytes
    runs, out_runs = pointer(memory, table), pointer(memory + g.runs_bytes, table)
    weights = pointer(g.weights, short)
    chunks = -(-g.group_inputs * taps // CHUNK)
    plane = g.out_depth * g.out_height * g.out_width
    total = g.batch * plane
    in_place = g.whole and g.x_w == 1 and (g.x_h == g.out_width or g.out_height == 1)
    in_place = in_place and (g.x_d == g.out_height * g.out_width or g.out_depth == 1)
    items = g.blocks * g.groups * g.k_parts
    run_block, run_count, out_count = -1, 0, 0  # the block that the runs describe
    begin_tiles(g.configuration)
    for item in range(items * t // threads, items * (t + 1) // threads):
        rest, part = item // g.k_parts, item % g.k_parts
        block, group = rest // g.groups, rest % g.groups
        first, last = block * g.pixels, min((block + 1) * g.pixels, total)
        first_tile, last_tile = g.tiles * part // g.k_parts, g.tiles * (part + 1) // g.k_parts
        count = -(-(last - first) // WIDTH)
        if block != run_block:
            run_block, run_count = block, split_runs(g, runs, first, last, g.pixels, 0)
            out_count = place(g, runs, run_count, out_runs)
            if (last - first) % WIDTH:  # what is left of the last panel: splitting subnormal numbers is slow
                zero(rows, most * CHUNK * g.pixels)
        for c0 in range(0, g.group_inputs, g.channels):
            channels = min(g.channels, g.group_inputs - c0)
            x = shift(pointer(g.x, kind), (group * g.group_inputs + c0) * g.x_c)
            used = -(-channels * taps // CHUNK)
            if in_place and first // plane == (last - 1) // plane:
                source = shift(x, first // plane * g.x_n + first % plane)
                split_planes(source, g.x_c, channels, last - first, rows, b, used)
            else:
                row = g.pixels
                unroll(g, lanes, table, x, channels, runs, run_count, rows, taps * row, row, 0, taps * run_count)
                zero(shift(rows, channels * taps * row), (used * CHUNK - channels * taps) * row)
                split_rows(rows, row, b, count, used)
            for tile in range(first_tile, last_tile):
                a = shift(weights, ((group * g.tiles + tile) * chunks + c0 * taps // CHUNK) * 2 * BLOCK)
                held = 0 if g.channels == g.group_inputs else tile - first_tile
                to = shift(sums, held * WIDTH * g.pixels)
                for panel in range(count):
                    right = shift(b, panel * used * 2 * BLOCK)
                    if taps:
                        product(used, a, right, shift(to, panel * WIDTH), g.pixels, c0)
                if c0 + channels < g.group_inputs:
                    continue
                if not taps:  # no tap of the kernel reaches here
                    zero(to, WIDTH * g.pixels)
                channel = group * g.group_outputs + tile * WIDTH
                outputs = min(WIDTH, g.group_outputs - tile * WIDTH)
                if g.out_c == 1 and g.out_w != 1:
                    transpose(lanes, to, g.pixels, turned, outputs, outputs, last - first)
                    write_positions(
                        g, kind, turned, outputs, out_runs, out_count, channel, outputs, g.bias, g.activation
                    )
                else:
                    write_channels(g, kind, to, g.pixels, out_runs, out_count, channel, outputs, g.bias, g.activation)
    end_tiles()


@lru_cache(maxsize=256)
def _prepare(c: Correlation, itemsize: int, threads: int) -> tuple[tuple[int, ...], tuple[np.ndarray, ...]]:
    """The plan of one of blocking's cached correlations, which compare by identity."""
    plan = blocking.im2col(c, threads)
    sizes = (plan.pixels, plan.blocks, plan.channels, 1, plan.tiles, plan.k_parts)
    whole = all(np.array_equal(axis.source, np.arange(axis.out)) for axis in c.axes) and c.taps == 1
    return constants(c, plan.scratch, sizes, address(CONFIGURATION), whole)


@jit
def split_range(t, threads, table, chunk, kind):
    """Share ``t`` of rows of weights: whole chunks of 32 numbers, split."""
    source, target, rows, chunks = unpack(table, 4)
    for row in range(rows * t // threads, rows * (t + 1) // threads):
        for i in range(chunks):
            s = shift(pointer(source, kind), (row * chunks + i) * CHUNK)
            place = ((row // (2 * SIDE) * chunks + i) * 2 * SIDE + row % (2 * SIDE)) * ROW
            split(s, shift(s, SIDE), shift(pointer(target, np.int16(0)), place))


def _pack(c: Correlation, w: np.ndarray, scratch: Workspace | None, threads: int) -> np.ndarray:
    """Weights (groups, K/groups, C/groups, D, R, S) split: [group][k block][chunk][32 outputs][part][32]."""
    plan, short = blocking.im2col(c, 1), np.dtype(np.int16)
    packed = scratch.take(plan.packed, short) if scratch else aligned_empty(plan.packed, short)
    if plan.packed:
        shape, depth = (c.groups, plan.tiles * WIDTH, plan.depth), w.shape[2] * c.taps
        rows = (scratch.take(shape, w.dtype) if scratch else aligned_empty(plan.packed // 3, w.dtype)).reshape(shape)
        rows[:, :, depth:] = 0
        rows[:, w.shape[1] :] = 0
        rows[:, : w.shape[1], :depth] = w.reshape(*w.shape[:2], depth)
        fields = (address(rows), address(packed), rows.size // plan.depth, plan.depth // CHUNK)
        Bound(split_range, np.float32(0), threads, fields, ())()
    return packed


forward, grad_input, pack_forward, pack_grad_input = entry_points(_pack, forward_range, _prepare)
