"""Convolution as a matrix product with im2col, a block of the matrix at a time.

    M[(c, r), (n, p)] = x[n, c, p * stride + r * dilation - padding]
    out[k, (n, p)] = sum over (c, r)  W[k, (c, r)] M[(c, r), (n, p)]

                   (n, p): a block of 192 output positions, in panels of one tile's columns
                 +--------+--------+--- ... ---+
    (c, r): up   |        |        |           |    Row (c, r) is input channel c shifted by tap r: where the stride
    to 384 rows  | panel  | panel  |           |    is 1, copies of pieces of input rows as they lie in NCHW.
                 |        |        |           |
                 +--------+--------+--- ... ---+

Loops of ``forward``, outermost first; threads share the items:

    item: a block of positions (flat over image, depth, row, column: none is wasted on small maps), a group, a part of
          its output channels
        for each 384 rows of M
            unroll them                                                       x -> panels [(c, r)][COLUMNS], in L2
            for each 14 output channels (weights packed [k block][(c, r)][14]), for each panel
                tile: 14 output channels x 32 positions (AVX-512, float32)    weights, panel -> sums [k][position]
        finish: bias, residual, activation, store                             sums -> out

Lanes are positions, so NCHW needs no transposition on the way in or out, and blocks run on from image to image. But
unrolling costs R * S copies of the input, which direct and planar save. ``grad_input`` is one such
product for each phase of the stride. ``grad_weight`` multiplies M, unrolled in chunks that all threads share, with dy:

    dw[k, (c, r)] = sum over (n, p)  M[(c, r), (n, p)] dy[k, (n, p)]

Sums of up to 1,024 positions stay in registers and are added in memory, as in ``direct``; ``forward`` adds its
partial sums of 384 products in memory too.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from ..geometry import ConvGeometry
from . import blocking, im2col_blocking
from .arrays import (
    KIND,
    Workspace,
    address,
    aligned_empty,
    layout,
    lifted,
    weight_view,
    writable,
)
from .blocking import REDUCTION_PIXELS, Correlation
from .compile import jit
from .epilogue import add_run, write_channels, write_positions
from .gemm import copy_strided, gather, multiply, transpose, zero
from .half import in_float32
from .im2col_blocking import Im2colWeight
from .phases import entry_points
from .simd import columns, copy, load, pointer, shift, store, unpack, vector_lanes
from .threads import run_shares
from .tiles import TILE_ROWS
from .weights import pack_rows, unpack_columns


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
    panel_bytes: int
    sums_bytes: int
    turned_bytes: int
    runs_bytes: int
    source_d: int
    source_h: int
    segments: int  # of the last axis, one list for each of its taps
    segment_starts: int
    batch: int
    groups: int
    group_inputs: int
    group_outputs: int
    kernel_d: int
    kernel_h: int
    kernel_w: int
    stride_d: int
    stride_h: int
    dilation_d: int
    dilation_h: int
    out_depth: int
    out_height: int
    out_width: int
    pixels: int
    blocks: int
    channels: int
    group_batch: int
    tiles: int
    k_parts: int
    row_numbers: int  # 0, 1, 2, ...: where the rows of a tile's weights begin


_FIELDS = len(Layout._fields)


@jit(inline=True)
def split(g, runs, first, last, panel, panel_stride):
    """The positions ``first`` to ``last`` as runs, pieces of output rows that no panel boundary cuts: rows of
    (place in the panels, image, depth, row, first column, length). Returns how many."""
    count, position = 0, first
    while position < last:
        rest, q = position // g.out_width, position % g.out_width
        rest, oh = rest // g.out_height, rest % g.out_height
        n, od = rest // g.out_depth, rest % g.out_depth
        local = position - first
        length = min(g.out_width - q, last - position, panel - local % panel)
        run = shift(runs, 6 * count)
        store(run, 0, local // panel * panel_stride + local % panel)
        store(run, 1, n)
        store(run, 2, od)
        store(run, 3, oh)
        store(run, 4, q)
        store(run, 5, length)
        count, position = count + 1, position + length
    return count


@jit(inline=True)
def place(g, runs, run_count, out_runs):
    """The same runs as places in ``out`` and the residual (see ``epilogue.add_run``)."""
    out_count, position = 0, 0
    for i in range(run_count):
        run = shift(runs, 6 * i)
        n, d, h, q, length = load(run, 1), load(run, 2), load(run, 3), load(run, 4), load(run, 5)
        y = n * g.out_n + d * g.out_d + h * g.out_h + q * g.out_w
        z = n * g.residual_n + d * g.residual_d + h * g.residual_h + q * g.residual_w
        out_count = add_run(out_runs, out_count, position, length, y, g.out_w, z, g.residual_w)
        position += length
    return out_count


@jit(inline=True)
def unroll(g, lanes, table, x, channels, runs, run_count, target, channel_step, tap_step, first, last):
    """Items ``first`` to ``last`` of the (tap, run) list, for ``channels`` input channels from ``x``: row (c, tap) of
    the matrix begins at ``target + c * channel_step + tap * tap_step``."""
    source_d, source_h = pointer(g.source_d, table), pointer(g.source_h, table)
    all_segments, starts = pointer(g.segments, table), pointer(g.segment_starts, table)
    for item in range(first, last):
        tap, run = item // run_count, shift(runs, item % run_count * 6)
        s, r, plane = tap % g.kernel_w, tap // g.kernel_w % g.kernel_h, tap // (g.kernel_w * g.kernel_h)
        d = load(source_d, load(run, 2) * g.stride_d + plane * g.dilation_d)
        h = load(source_h, load(run, 3) * g.stride_h + r * g.dilation_h)
        begin, end = load(run, 4), load(run, 4) + load(run, 5)
        to = shift(target, load(run, 0) + tap * tap_step)
        if d < 0 or h < 0:
            for c in range(channels):
                zero(shift(to, c * channel_step), end - begin)
            continue
        source = shift(x, load(run, 1) * g.x_n + d * g.x_d + h * g.x_h)
        for i in range(load(starts, s), load(starts, s + 1)):
            segment = shift(all_segments, 4 * i)
            start, column, step = load(segment, 0), load(segment, 1), load(segment, 2) * g.x_w
            q = max(begin, start)
            n = min(end, start + load(segment, 3)) - q
            if n <= 0:
                continue
            t = shift(to, q - begin)
            if column < 0:
                for c in range(channels):
                    zero(shift(t, c * channel_step), n)
                continue
            f = shift(source, column * g.x_w + (q - start) * step)
            if step == 1:
                for c in range(channels):
                    copy(shift(f, c * g.x_c), shift(t, c * channel_step), n)
            elif g.x_c == 1 and channels > 1:
                transpose(lanes, f, step, t, channel_step, n, channels)
            else:
                for c in range(channels):
                    copy_strided(shift(f, c * g.x_c), step, shift(t, c * channel_step), n)


@jit
def forward_range(t, threads, table, chunk, kind):
    """Share ``t`` of ``threads`` of a correlation."""
    g = Layout(*unpack(table, _FIELDS))
    lanes = vector_lanes(kind)
    width = 2 * lanes
    memory = g.scratch + t * g.thread_bytes
    panels, memory = pointer(memory, kind), memory + g.panel_bytes
    sums, memory = pointer(memory, kind), memory + g.sums_bytes
    turned, memory = pointer(memory, kind), memory + g.turned_bytes
    runs, out_runs = pointer(memory, table), pointer(memory + g.runs_bytes, table)
    weights, rows, nothing = pointer(g.weights, kind), pointer(g.row_numbers, table), pointer(g.row_numbers, table)
    taps = g.kernel_d * g.kernel_h * g.kernel_w
    depth = taps * g.group_inputs
    total = g.batch * g.out_depth * g.out_height * g.out_width
    batches = -(-g.groups // g.group_batch)
    items = g.blocks * batches * g.k_parts
    group_panel = min(g.channels, g.group_inputs) * taps * width  # elements of one group in a panel
    panel_stride = g.group_batch * group_panel
    run_block, run_count, out_count = -1, 0, 0  # the block that the runs describe
    for item in range(items * t // threads, items * (t + 1) // threads):
        rest, part = item // g.k_parts, item % g.k_parts
        block, first_group = rest // batches, rest % batches * g.group_batch
        last_group = min(first_group + g.group_batch, g.groups)
        first, last = block * g.pixels, min((block + 1) * g.pixels, total)
        first_tile, last_tile = g.tiles * part // g.k_parts, g.tiles * (part + 1) // g.k_parts
        first_channel = first_tile * TILE_ROWS
        out_channels = min(g.group_outputs, last_tile * TILE_ROWS) - first_channel
        if block != run_block:
            run_block, run_count = block, split(g, runs, first, last, width, panel_stride)
            out_count = place(g, runs, run_count, out_runs)
            if (last - first) % width:  # its last panel's stale bits may be subnormal numbers, which multiply slowly
                zero(shift(panels, (last - first) // width * panel_stride), panel_stride)
        for c0 in range(0, g.group_inputs, g.channels):  # in one step where several groups are unrolled at once
            channels = min(g.channels, g.group_inputs - c0)
            x = shift(pointer(g.x, kind), (first_group * g.group_inputs + c0) * g.x_c)
            n = channels * (last_group - first_group)
            unroll(g, lanes, table, x, n, runs, run_count, panels, taps * width, width, 0, taps * run_count)
            for group in range(first_group, last_group):
                for tile in range(first_tile, last_tile):
                    a = shift(weights, ((group * g.tiles + tile) * depth + c0 * taps) * TILE_ROWS)
                    height = min(TILE_ROWS, g.group_outputs - tile * TILE_ROWS)
                    for panel in range(-(-(last - first) // width)):
                        c = shift(sums, (tile - first_tile) * TILE_ROWS * g.pixels + panel * width)
                        b = shift(panels, panel * panel_stride + (group - first_group) * group_panel)
                        if taps:
                            multiply(height, 1, nothing, channels * taps, TILE_ROWS, a, rows, b, c, g.pixels, c0 > 0)
                if taps == 0:  # no tap of the kernel reaches here
                    zero(sums, out_channels * g.pixels)
                if c0 + channels < g.group_inputs:
                    continue
                channel = group * g.group_outputs + first_channel
                if g.out_c == 1 and g.out_w != 1:
                    transpose(lanes, sums, g.pixels, turned, out_channels, out_channels, last - first)
                    write_positions(
                        g, kind, turned, out_channels, out_runs, out_count, channel, out_channels, g.bias, g.activation
                    )
                else:
                    write_channels(
                        g, kind, sums, g.pixels, out_runs, out_count, channel, out_channels, g.bias, g.activation
                    )


_ROWS = np.arange(2 * TILE_ROWS, dtype=np.int64)


def _fixed(
    c: Correlation, scratch: tuple[int, ...], sizes: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[np.ndarray, ...]]:
    """The constant part of a Layout, and the arrays whose addresses are in it."""
    depth, height, width = c.axes
    lists = [
        blocking.progressions(width.source[tap * width.dilation :][: (width.out - 1) * width.stride + 1 : width.stride])
        for tap in range(width.kernel)
    ]
    segments = np.concatenate([rows for rows, _ in lists]) if lists else np.empty((0, 4), np.int64)
    starts = np.cumsum([0, *(count for _, count in lists)], dtype=np.int64)
    fixed = (
        sum(scratch), *(scratch + (0,) * 4)[:4],
        address(depth.source), address(height.source), address(segments), address(starts),
        c.batch, c.groups, c.group_inputs, c.group_outputs, *c.kernel,
        depth.stride, height.stride, depth.dilation, height.dilation, *c.out, *sizes, address(_ROWS),
    )  # fmt: skip
    return fixed, (depth.source, height.source, segments, starts)


@lru_cache(maxsize=256)
def _prepare(c: Correlation, itemsize: int, threads: int) -> tuple[tuple[int, ...], tuple[np.ndarray, ...]]:
    """The plan of one of blocking's cached correlations, which compare by identity."""
    plan = im2col_blocking.forward(c, itemsize, threads, TILE_ROWS)
    return _fixed(
        c, plan.scratch, (plan.pixels, plan.blocks, plan.channels, plan.group_batch, plan.tiles, plan.k_parts)
    )


def _pack(c: Correlation, w: np.ndarray, scratch: Workspace | None, threads: int) -> np.ndarray:
    """Weights (groups, K/groups, C/groups, D, R, S) packed for ``c``, in the workspace or an array of their own."""
    size = im2col_blocking.forward(c, w.itemsize, 1, TILE_ROWS).packed
    packed = scratch.take(size, w.dtype) if scratch else aligned_empty(size, w.dtype)
    if size:
        pack_rows(w, packed, TILE_ROWS, threads)
    return packed


forward, grad_input, pack_forward, pack_grad_input = entry_points(_pack, forward_range, _prepare)


# ------------------------------------------------------------------------------------------- weight gradient


class Chunk(NamedTuple):
    """A chunk of output positions whose products are added to ``sums``; all threads share its packed operands."""

    matrix: int
    row_stride: int
    dy: int
    sums: int
    rows: int
    padded_rows: int
    k_blocks: int
    row_offsets: int
    nothing: int  # a zero: the only segment begins at 0
    group_step: int  # from a group's rows to the next group's
    first_group: int
    groups: int
    first: int  # position
    last: int


_CHUNK_FIELDS = len(Chunk._fields)


@jit
def pack_chunk_range(t, threads, table, chunk, kind):
    """Share ``t`` of unrolling a chunk and packing its dy; the Layout's ``out`` is dy."""
    g, h = Layout(*unpack(table, _FIELDS)), Chunk(*unpack(chunk, _CHUNK_FIELDS))
    lanes = vector_lanes(kind)
    width = 2 * lanes
    runs = pointer(g.scratch + t * g.thread_bytes, table)
    run_count = split(g, runs, h.first, h.last, h.last - h.first, 0)
    x = shift(pointer(g.x, kind), h.first_group * g.group_inputs * g.x_c)
    n = g.kernel_d * g.kernel_h * g.kernel_w * run_count
    first, last = n * t // threads, n * (t + 1) // threads
    channels = h.groups * g.group_inputs
    tap_step, matrix = g.group_batch * g.group_inputs * h.row_stride, pointer(h.matrix, kind)
    unroll(g, lanes, table, x, channels, runs, run_count, matrix, h.row_stride, tap_step, first, last)
    n = h.groups * h.k_blocks * run_count
    for j in range(n * t // threads, n * (t + 1) // threads):
        block, run = j // run_count, shift(runs, j % run_count * 6)
        group, k_block = h.first_group + block // h.k_blocks, block % h.k_blocks
        channels = min(width, g.group_outputs - k_block * width)
        where = load(run, 1) * g.out_n + load(run, 2) * g.out_d + load(run, 3) * g.out_h + load(run, 4) * g.out_w
        channel = group * g.group_outputs + k_block * width
        source = shift(pointer(g.out, kind), where + channel * g.out_c)
        target = shift(pointer(h.dy, kind), (block * (h.last - h.first) + load(run, 0)) * width)
        if channels < width:
            zero(target, load(run, 5) * width)  # stale bits may be subnormal numbers, which multiply slowly
        gather(lanes, source, g.out_c, g.out_w, target, width, channels, load(run, 5))


@jit
def sum_chunk_range(t, threads, table, chunk, kind):
    """Share ``t`` of the sums over a chunk: whole tiles of the weight gradient, so no sum has two owners."""
    h = Chunk(*unpack(chunk, _CHUNK_FIELDS))
    width = 2 * vector_lanes(kind)
    matrix, dy, sums = pointer(h.matrix, kind), pointer(h.dy, kind), pointer(h.sums, kind)
    offsets, nothing = pointer(h.row_offsets, chunk), pointer(h.nothing, chunk)
    positions = h.last - h.first
    row_tiles = -(-h.rows // TILE_ROWS)
    items = h.groups * row_tiles * h.k_blocks
    for j in range(0, positions, REDUCTION_PIXELS):
        n = min(REDUCTION_PIXELS, positions - j)
        for item in range(items * t // threads, items * (t + 1) // threads):
            rest, k_block = item // h.k_blocks, item % h.k_blocks
            group, i = rest // row_tiles, rest % row_tiles * TILE_ROWS
            block = group * h.k_blocks + k_block
            a = shift(matrix, group * h.group_step + j)
            b = shift(dy, (block * positions + j) * width)
            c = shift(sums, (block * h.padded_rows + i) * width)
            height = min(TILE_ROWS, h.rows - i)
            accumulate = h.first + j > 0
            multiply(height, 1, nothing, n, 1, a, shift(offsets, i), b, c, width, accumulate)


@lru_cache(maxsize=256)
def _prepare_weight(c: Correlation, itemsize: int) -> tuple[Im2colWeight, np.ndarray, tuple[int, ...], Any]:
    plan = im2col_blocking.weight_gradient(c, itemsize, columns(itemsize))
    channels = c.group_inputs * plan.group_batch
    tap, channel = np.divmod(
        np.minimum(np.arange(plan.rows + TILE_ROWS, dtype=np.int64), plan.rows - 1), c.group_inputs
    )
    offsets = (tap * channels + channel) * plan.row_stride  # a tile's spare rows repeat the last
    return plan, offsets, *_fixed(c, (plan.runs_bytes,), (0, 0, 0, plan.group_batch, 0, 0))


@in_float32
def grad_weight(
    geometry: ConvGeometry, x: np.ndarray, dy: np.ndarray, out: np.ndarray, *, workspace: np.ndarray, threads: int = 1
) -> None:
    """``out[k, c, r] = sum over n, p  x[n, c, p * stride + r * dilation - padding] * dy[n, k, p]``."""
    if not dy.size or not x.size:
        out[...] = 0
        return
    c = blocking.correlation(geometry)
    threads = c.useful_threads(threads)
    width = columns(out.itemsize)
    plan, offsets, fixed, _ = _prepare_weight(c, out.itemsize)
    scratch = Workspace(workspace)
    sizes = (plan.matrix_bytes, plan.dy_bytes, plan.sum_bytes)
    matrix, packed_dy, sums = (scratch.take(n, np.dtype(np.uint8)) for n in sizes)
    x, dy = lifted(x), lifted(dy)
    call = (*layout(x), *layout(dy), *(0,) * 6, 0, 0, 0, scratch.rest())
    table, kind = np.array(Layout._make(call + fixed), np.int64), KIND[out.dtype]
    with writable(out) as target:
        w = weight_view(geometry, target)
        for first_group in range(0, c.groups, plan.group_batch):
            groups = min(plan.group_batch, c.groups - first_group)
            for first in range(0, c.pixels, plan.pixels):
                fields = Chunk(
                    address(matrix), plan.row_stride, address(packed_dy), address(sums), plan.rows, plan.padded_rows,
                    plan.k_blocks, address(offsets), address(_ROWS), c.group_inputs * plan.row_stride,
                    first_group, groups, first, min(first + plan.pixels, c.pixels),
                )  # fmt: skip
                chunk = np.array(fields, np.int64)
                run_shares(pack_chunk_range, threads, table, chunk, kind)
                run_shares(sum_chunk_range, threads, table, chunk, kind)
            blocks = range(first_group * plan.k_blocks, (first_group + groups) * plan.k_blocks)
            unpack_columns(sums, blocks, plan.padded_rows * width, w, False, width, threads)
