"""The weight gradient of direct convolution: ``direct`` with roles exchanged.

    dw[k, c, r] = sum over n, p  x[n, c, p * stride + r * dilation - padding] * dy[n, k, p]

Tile rows are (tap, c) pairs, tile columns output channels, and the reduction runs over positions, a chunk of them at a
time, for which all threads pack x (the slab of ``direct_slab``) and dy first:

    for each slab, for each chunk of positions
        pack the chunk's input rows and dy, channels-last               x -> slab, dy -> [k block][position][COLUMNS]
        for each k block, for each tile of (tap, c) rows: sums (+)= slab, dy    whole tiles, so no sum has two owners
    sums -> dw

Up to 1,024 positions are summed in registers, those sums are added in memory: of N positions a sum rounds at most
1024 + N / 1024 times, not N.
"""

from __future__ import annotations

import itertools
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from ..geometry import ConvGeometry
from . import blocking, direct_blocking
from .arrays import KIND, Workspace, address, layout, lifted, weight_view, writable
from .blocking import Correlation
from .compile import jit
from .direct_blocking import DirectWeight
from .direct_slab import FIELDS, Layout, fixed_part, pack_slab, tap_offsets
from .gemm import gather, multiply, multiply_lanes, zero
from .half import in_float32
from .simd import columns, pointer, shift, store, unpack, vector_lanes
from .threads import run_shares
from .tiles import TILE_ROWS
from .weights import unpack_columns


class Chunk(NamedTuple):
    """A chunk of output positions whose products are added to ``sums``; all threads share its packed operands."""

    slab: int
    dy: int
    sums: int
    rows: int  # of a k block of sums
    padded_rows: int
    pass_rows: int
    slab_index: int
    n0: int
    od: int
    oh0: int
    ow0: int
    accumulate: int


_CHUNK_FIELDS = len(Chunk._fields)


@jit
def pack_chunk_range(t, threads, table, chunk, kind):
    """Share ``t`` of packing a chunk's input rows and dy; the Layout's ``out`` is dy."""
    g, h = Layout(*unpack(table, FIELDS)), Chunk(*unpack(chunk, _CHUNK_FIELDS))
    lanes = vector_lanes(kind)
    width = 2 * lanes
    images, rows = min(g.images, g.batch - h.n0), min(g.rows, g.out_height - h.oh0)
    columns = min(g.columns, g.out_width - h.ow0)
    n = g.images * g.kernel_d * g.slab_rows
    slab, first, last = pointer(h.slab, kind), n * t // threads, n * (t + 1) // threads
    pack_slab(table, kind, slab, h.slab_index, h.n0, images, h.od, h.oh0, rows, h.ow0, columns, first, last)
    n = g.k_blocks * images * rows
    for j in range(n * t // threads, n * (t + 1) // threads):
        k_block, image, row = j // (images * rows), j // rows % images, j % rows
        channel = h.slab_index * g.slab_outputs + k_block * width
        channels = min(width, g.slab_outputs - k_block * width, g.groups * g.group_outputs - channel)
        where = (h.n0 + image) * g.out_n + h.od * g.out_d + (h.oh0 + row) * g.out_h + h.ow0 * g.out_w
        source = shift(pointer(g.out, kind), where + channel * g.out_c)
        target = shift(pointer(h.dy, kind), j * columns * width)
        if channels < width:
            zero(target, columns * width)  # stale bits may be subnormal numbers, which multiply slowly
        gather(lanes, source, g.out_c, g.out_w, target, width, channels, columns)


@jit
def sum_chunk_range(t, threads, table, chunk, kind):
    """Share ``t`` of the sums over a chunk: whole tiles of the weight gradient, so no sum has two owners."""
    g, h = Layout(*unpack(table, FIELDS)), Chunk(*unpack(chunk, _CHUNK_FIELDS))
    width = 2 * vector_lanes(kind)
    images, rows = min(g.images, g.batch - h.n0), min(g.rows, g.out_height - h.oh0)
    columns = min(g.columns, g.out_width - h.ow0)
    slab, dy, sums = pointer(h.slab, kind), pointer(h.dy, kind), pointer(h.sums, kind)
    taps, segments = pointer(g.taps, table), pointer(g.scratch + t * g.thread_bytes, table)
    n = images * rows
    for j in range(n):
        row = j // rows * g.kernel_d * g.slab_rows + j % rows * g.stride_h
        store(segments, j, row * g.slab_columns * g.pixel)
    row_tiles = -(-h.rows // TILE_ROWS)
    items = g.k_blocks * row_tiles
    for j in range(0, n, h.pass_rows):
        count = min(h.pass_rows, n - j)
        accumulate = h.accumulate or j > 0
        for item in range(items * t // threads, items * (t + 1) // threads):
            k_block, i = item // row_tiles, item % row_tiles * TILE_ROWS
            height = min(TILE_ROWS, h.rows - i)
            b = shift(dy, (k_block * n + j) * columns * width)
            c = shift(sums, (k_block * h.padded_rows + i) * width)
            rows_at, pieces, step = shift(taps, i), shift(segments, j), g.stride_w * g.pixel
            if g.by_lane:
                multiply_lanes(height, count, pieces, columns, step, slab, rows_at, b, c, width, accumulate)
            else:
                multiply(height, count, pieces, columns, step, slab, rows_at, b, c, width, accumulate)


@lru_cache(maxsize=256)
def _prepare_weight(c: Correlation, itemsize: int) -> tuple[DirectWeight, tuple[int, ...], tuple[np.ndarray, ...]]:
    plan = direct_blocking.weight_gradient(c, itemsize, columns(itemsize))
    by_lane = plan.slabs.by_lane
    taps = tap_offsets(c, plan.chunk, plan.slabs.pixel).reshape(-1, 1)
    rows = (taps + np.arange(c.group_inputs) * (columns(itemsize) if by_lane else 1)).ravel()
    rows = np.concatenate((rows, np.full(TILE_ROWS, rows[-1])))  # the last tile's spare rows repeat a valid one
    return plan, *fixed_part(c, plan.slabs, plan.chunk, (plan.segments_bytes,), rows, 0, 0, 1, 0)


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
    plan, fixed, _ = _prepare_weight(c, out.itemsize)
    chunk, scratch = plan.chunk, Workspace(workspace)
    slab, packed_dy, sums = (
        scratch.take(n, np.dtype(np.uint8)) for n in (plan.slab_bytes, plan.dy_bytes, plan.sum_bytes)
    )
    x, dy = lifted(x), lifted(dy)
    call = (*layout(x), *layout(dy), *(0,) * 6, 0, 0, 0, scratch.rest())
    table, kind = np.array(Layout._make(call + fixed), np.int64), KIND[out.dtype]
    starts = itertools.product(
        range(0, c.batch, chunk.images),
        range(c.out[0]),
        range(0, c.out[1], chunk.rows),
        range(0, c.out[2], chunk.columns),
    )
    starts_list = list(starts)
    block_stride = plan.padded_rows * width
    with writable(out) as target:
        w = weight_view(geometry, target)
        for index in range(plan.slabs.count):
            for i, (n0, od, oh0, ow0) in enumerate(starts_list):
                fields = Chunk(
                    address(slab), address(packed_dy), address(sums), plan.rows, plan.padded_rows, plan.pass_rows,
                    index, n0, od, oh0, ow0, int(i > 0),
                )  # fmt: skip
                arguments = (table, np.array(fields, np.int64), kind)
                run_shares(pack_chunk_range, threads, *arguments)
                run_shares(sum_chunk_range, threads, *arguments)
            first = index * plan.slabs.blocks
            blocks = range(first, first + plan.slabs.blocks)
            unpack_columns(sums, blocks, block_stride, w, plan.slabs.by_lane, width, threads)
