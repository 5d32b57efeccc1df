"""1x1 convolution of planes as they lie: the matrix product of the weights and the pixels, nothing is transposed.

    out[n, k, p] = sum over c  w[k, c] * x[n, c, p * stride - padding]

Loops of ``forward``, outermost first; threads share the items:

    item: a block of pixels of one image's output plane, one group, a part of its output channels
        pack the pixels into panels of a tile's width, in L2                            x -> slab [panel][c][column]
        for each 8 output channels (weights packed [k block][c][8])
            for each panel
                tile: 8 channels x 48 pixels (AVX-512, float32), straight into out      slab, w -> out

    x: a plane a channel                        slab: a panel a tile
    c0 |........========........|               |====|    48 pixels of c0      While the tiles multiply one slab, the
    c1 |........========........|       ->      |====|    48 pixels of c1      next block's pixels go to the other: a
    c2 |........========........|               |====|    48 pixels of c2      vector a step, inside the tile's loop.

The products leave the ports for loads and stores half idle, so a vector copied with each step costs little, while
packing between the blocks took 19% of the time (256 to 64 channels, 56 x 56, batch 16: the caches' own bandwidth; 333
GFLOP/s became 360; 512 to 128 on 28 x 28 went from 311 to 406). That needs planes without gaps, stride or padding, and
one group; all else is packed between the blocks, rows gathered where the stride or the padding puts them. Without
padding, at stride 1 or 2, that is done by pieces of rows, a vector at a time, the pieces found once for all channels:
256 to 512 on 56 x 56 at stride 2, batch 16, one thread, 30.6 to 25.1 ms, of which the products are 21.6 (before, asking
for the lines of those rows during the products gained nothing).

Where NCHW planes lie as a tile wants them it could read them in place. Tried: 5 to 10% slower (256 to 64 channels on
56 x 56), because every step of the tile then touches another page and rows of one channel share a few cache sets;
letting the first tile copy the very vectors that it multiplies was up to 30% slower.

Loses to channels-last arrays, whose pixels lie far apart, and on small planes with many channels (``direct``).
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from .arrays import Workspace, address, aligned_empty
from .blocking import PIXEL_VECTORS, Correlation
from .compile import jit
from .epilogue import RELU6, add_run, finish
from .gemm import multiply_asking, multiply_moving, zero
from .phases import entry_points
from .planar_blocking import pointwise_forward
from .planar_slab import pack_line
from .simd import copy, keep_whole, lanes, load, pointer, prefetch_read, shift, store, unpack, vector_lanes
from .tiles import PIXEL_ROWS
from .vector import keep_rolled, lane_count, load_even_within, load_first, store_first
from .weights import pack_rows


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
    source_d: int
    source_h: int
    segments: int
    segment_count: int
    step_w: int  # from one input column to the next where no position is padding, else 0
    offsets: int  # of a panel's rows: elements
    whole: int  # output position p reads input position p
    taps: int  # 1, or 0 in a phase of a gradient that no tap reaches
    batch: int
    groups: int
    group_inputs: int
    group_outputs: int
    k_blocks: int
    k_parts: int
    blocks: int  # of a plane
    panels: int  # whole ones of ``unit`` pixels in a plane
    unit: int
    out_depth: int
    out_height: int
    out_width: int


_FIELDS = len(Layout._fields)


@jit(inline=True)
def place(block, groups, blocks, depth):
    """Image, depth, block of the plane, and group of the ``block``-th block of all."""
    rest, group = block // groups, block % groups
    rest, i = rest // blocks, rest % blocks
    return rest // depth, rest % depth, i, group


@jit(inline=True)
def part_of(i, panels, blocks, unit, plane):
    """The first pixel of block i of a plane and how many it has: the last one has those that fill no panel, too."""
    first, last = panels * i // blocks * unit, panels * (i + 1) // blocks * unit
    return first, (plane if i == blocks - 1 else last) - first


@jit(inline=True)
def pack_pieces(pieces, count, step, x, x_c, slab, channels, panel):
    """Pieces of rows, (source, target, length) in each channel, whose pixels lie ``step``, 1 or 2, apart."""
    keep_whole()
    vector = lane_count(x)
    for c in range(channels):
        for i in range(0, 3 * count, 3):
            source = shift(x, c * x_c + load(pieces, i))
            target, n = shift(slab, c * panel + load(pieces, i + 1)), load(pieces, i + 2)
            for j in range(0, n, vector):
                keep_rolled()
                prefetch_read(shift(source, 4 * x_c + step * j))  # 4 channels on, 3% of 256 to 512 on 56 x 56
                if step == 2:
                    prefetch_read(shift(source, 4 * x_c + step * j + vector))
                    store_first(target, j, load_even_within(source, 0, 2 * j, 2 * n - 1, 0.0), n - j)
                else:
                    store_first(target, j, load_first(source, j, n - j), n - j)


@jit(inline=True)
def pack_panels(table, kind, slab, line, pieces, n, channel, od, first, last, done):
    """Output pixels ``first`` to ``last`` of a plane in panels, of which ``done`` are there already."""
    keep_whole()
    g = Layout(*unpack(table, _FIELDS))
    vector = vector_lanes(kind)
    panel = 3 * vector
    source_d, source_h, segments = pointer(g.source_d, table), pointer(g.source_h, table), pointer(g.segments, table)
    d = load(source_d, od)
    x = shift(pointer(g.x, kind), n * g.x_n + d * g.x_d)
    in_place = g.whole and g.x_w == 1 and (g.x_h == g.out_width or g.out_height == 1)
    begin, step = first + done, g.step_w * g.x_w
    if not in_place and (step == 1 or step == 2):
        count, end = 0, last - first
        if end % vector:  # tiles read whole vectors, and stale bits may be subnormal: those multiply slowly
            p = end // vector * vector
            for c in range(g.group_inputs):
                zero(shift(slab, p // panel * panel * g.group_inputs + c * panel + p % panel), vector)
        p = 0
        while p < end:
            row, column = (first + p) // g.out_width, (first + p) % g.out_width
            length = min(g.out_width - column, end - p, panel - p % panel)
            store(pieces, count, load(source_h, row) * g.x_h + load(segments, 1) * g.x_w + column * step)
            store(pieces, count + 1, p // panel * panel * g.group_inputs + p % panel)
            store(pieces, count + 2, length)
            count, p = count + 3, p + length
        source = shift(x, channel * g.x_c)
        pack_pieces(pieces, count // 3, step, source, g.x_c, slab, g.group_inputs, panel)
        return
    for c in range(g.group_inputs):
        plane = shift(x, (channel + c) * g.x_c)
        source = shift(plane, begin)
        if not in_place:
            source, p = line, begin
            while p < last:
                row, column = p // g.out_width, p % g.out_width
                columns, h, target = min(g.out_width - column, last - p), load(source_h, row), shift(line, p - begin)
                if h < 0 or d < 0:
                    zero(target, columns)
                else:
                    pack_line(segments, g.segment_count, g.x_w, shift(plane, h * g.x_h), target, column, columns)
                p += columns
        p = done
        while p < last - first:
            column = p % panel
            columns = min(panel - column, last - first - p)
            target = shift(slab, (p - column) * g.group_inputs + c * panel + column)
            if columns % vector:
                zero(shift(target, columns // vector * vector), vector)
            copy(shift(source, p - done), target, columns)
            p += columns


@jit
def forward_range(t, threads, table, chunk, kind):
    """Share ``t`` of ``threads`` of a correlation."""
    g = Layout(*unpack(table, _FIELDS))
    vector = vector_lanes(kind)
    panel = 3 * vector
    memory = g.scratch + t * g.thread_bytes
    following, memory = pointer(memory + g.slab_bytes, kind), memory + 2 * g.slab_bytes
    slab = following
    line, memory = pointer(memory, kind), memory + g.line_bytes
    sums, runs = pointer(memory, kind), pointer(memory + g.tile_bytes, table)
    none = pointer(0, kind)
    weights, x, offsets = pointer(g.weights, kind), pointer(g.x, kind), pointer(g.offsets, table)
    out, residual, bias = pointer(g.out, kind), pointer(g.residual, kind), pointer(g.bias, kind)
    added = g.residual_c if g.residual else -1
    plain = (
        g.activation <= RELU6
        and g.out_w == 1
        and g.taps > 0
        and (g.residual == 0 or (g.residual_w == 1 and g.residual_c >= 0))
    )
    plane = g.out_height * g.out_width
    in_place = g.whole and g.x_w == 1 and (g.x_h == g.out_width or g.out_height == 1)
    moving = in_place and g.groups == 1 and g.k_parts == 1
    blocks = g.batch * g.out_depth * g.blocks * g.groups
    packed_block, vectors, moved, run_count, turn = -1, 0, 0, 0, 1
    begin, end = blocks * g.k_parts * t // threads, blocks * g.k_parts * (t + 1) // threads
    for item in range(begin, end):
        block, part = item // g.k_parts, item % g.k_parts
        n, od, i, group = place(block, g.groups, g.blocks, g.out_depth)
        first, pixels = part_of(i, g.panels, g.blocks, g.unit, plane)
        if block != packed_block:
            packed_block = block
            # Slabs begin 512 bytes lower in a page each time: a load that follows a store 4 KiB away waits for it, and
            # this way the tiles' loads reach the low bits of an address long after the copies stored there (0 to 2%).
            turn += 1
            slab = following
            following = pointer(g.scratch + t * g.thread_bytes + turn % 2 * g.slab_bytes + (7 * turn) % 8 * 512, kind)
            if g.taps:
                done = (vectors if moved == vectors else max(0, moved) // PIXEL_VECTORS * PIXEL_VECTORS) * vector
                pack_panels(table, kind, slab, line, runs, n, group * g.group_inputs, od, first, first + pixels, done)
            run_count, p = 0, first
            while p < first + pixels:
                row, column = p // g.out_width, p % g.out_width
                columns = min(g.out_width - column, first + pixels - p)
                y = n * g.out_n + od * g.out_d + row * g.out_h + column * g.out_w
                z = n * g.residual_n + od * g.residual_d + row * g.residual_h + column * g.residual_w
                run_count = add_run(runs, run_count, p - first, columns, y, g.out_w, z, g.residual_w)
                p += columns

        # What the tiles copy meanwhile: whole vectors of the next block, in turns of as many vectors as there are
        # channels. A turn goes through the channels with all of a panel's vectors of one before the next channel's, and
        # asks for the same of the panel after; the first panel is asked for by turns before. (With one vector of each
        # channel a turn every line came from another page: two threads, 16 images of 56 x 56, 256 to 64 channels 11.0
        # ms instead of 6.7, 64 to 256 8.0 instead of 6.3; where planes began on a line, 8.3 and 6.3 where they did not.
        # Lines asked for a block before were gone from L2 once many outputs had passed through it: 13% slower.)
        vectors, moved, tile = 0, 0, 0
        source = x
        if moving and item + 1 < end:
            n, od, i, _ = place(block + 1, 1, g.blocks, g.out_depth)
            next_first, next_pixels = part_of(i, g.panels, g.blocks, g.unit, plane)
            source = shift(x, n * g.x_n + od * g.x_d + next_first)
            vectors, moved = next_pixels // vector, -PIXEL_VECTORS
        tiles = -(-pixels // panel) * g.k_blocks

        for k_block in range(g.k_blocks * part // g.k_parts, g.k_blocks * (part + 1) // g.k_parts):
            w = shift(weights, (group * g.k_blocks + k_block) * g.group_inputs * PIXEL_ROWS)
            channel = group * g.group_outputs + k_block * PIXEL_ROWS
            height = min(PIXEL_ROWS, g.group_outputs - k_block * PIXEL_ROWS)
            for j in range(0, 4 * run_count, 4):
                position, length, y, z = load(runs, j), load(runs, j + 1), load(runs, j + 2), load(runs, j + 3)
                p = 0
                while p < length:
                    column = (position + p) % panel
                    b = shift(slab, (position + p - column) * g.group_inputs + column)
                    wide = min(panel - column, length - p)
                    width = -(-wide // vector)
                    source_at, target_at, in_row, left, line_at, line_step = w, sums, 0, 0, w, 0
                    if moved < vectors and (moved + PIXEL_VECTORS) * tiles <= tile * (vectors + PIXEL_VECTORS):
                        if moved < 0:
                            line_at, line_step = shift(source, (moved + PIXEL_VECTORS + 1) * vector - 1), g.x_c
                        else:
                            at = moved // PIXEL_VECTORS * PIXEL_VECTORS
                            in_row, copied = min(PIXEL_VECTORS, vectors - at), (moved - at) * g.group_inputs
                            row, left = copied // in_row, in_row - copied % in_row
                            column = (in_row - left) * vector
                            source_at = shift(source, at * vector + row * g.x_c + column)
                            target_at = shift(following, at * vector * g.group_inputs + row * panel + column)
                        moved += 1
                    tile += 1
                    whole = plain and height == PIXEL_ROWS
                    to = shift(out, y + p + channel * g.out_c) if whole else sums
                    ld, activation = (g.out_c, g.activation) if whole else (panel, 0)
                    more, ldr = (shift(residual, z + p + channel * g.residual_c), added) if whole else (none, -1)
                    stored = wide if whole else panel
                    start = shift(bias, channel) if whole and g.bias else none
                    if not g.taps:  # no tap of the kernel reaches here
                        zero(sums, PIXEL_ROWS * panel)
                    elif in_row:
                        multiply_moving(
                            width, g.group_inputs, panel, w, b, to, ld, stored, start, more, ldr, activation,
                            source_at, target_at, in_row, left, g.x_c, panel,
                        )  # fmt: skip
                    else:
                        multiply_asking(
                            width, g.group_inputs, offsets, w, b, to, ld, stored, start, more, ldr, activation, line_at,
                            line_step,
                        )  # fmt: skip
                    if not whole:
                        for k in range(height):
                            to = shift(out, y + p * g.out_w + (channel + k) * g.out_c)
                            other = shift(residual, z + p * g.residual_w + (channel + k) * g.residual_c)
                            finish(
                                shift(sums, k * panel), wide, g.bias, shift(bias, channel + k), 0, g.residual, other,
                                g.residual_w, g.activation, to, g.out_w,
                            )  # fmt: skip
                    p += wide


@lru_cache(maxsize=256)
def _prepare(c: Correlation, itemsize: int, threads: int) -> tuple[tuple[int, ...], tuple[np.ndarray, ...]]:
    """The plan of one of blocking's cached correlations, which compare by identity."""
    plan = pointwise_forward(c, itemsize, threads, PIXEL_ROWS)
    depth, height, width = c.axes
    segments, segment_count = c.segments
    whole = all(np.array_equal(axis.source, np.arange(axis.out)) for axis in c.axes)
    inside = segment_count == 1 and all((axis.source >= 0).all() for axis in c.axes)
    offsets = np.arange(c.group_inputs, dtype=np.int64) * (PIXEL_VECTORS * lanes(itemsize))
    fixed = (
        plan.thread_bytes, *plan.scratch[:3],
        address(depth.source), address(height.source), address(segments), segment_count,
        int(segments[0, 2]) if inside else 0, address(offsets), int(whole), c.taps,
        c.batch, c.groups, c.group_inputs, c.group_outputs, plan.k_blocks, plan.k_parts,
        plan.blocks, plan.panels, plan.unit, depth.out, height.out, width.out,
    )  # fmt: skip
    return fixed, (depth.source, height.source, segments, offsets)


def _pack(c: Correlation, w: np.ndarray, scratch: Workspace | None, threads: int) -> np.ndarray:
    """Weights (groups, K/groups, C/groups, D, R, S) packed for ``c``, in the workspace or an array of their own."""
    size = pointwise_forward(c, w.itemsize, threads, PIXEL_ROWS).packed
    packed = scratch.take(size, w.dtype) if scratch else aligned_empty(size, w.dtype)
    if size:
        pack_rows(w, packed, PIXEL_ROWS, threads)
    return packed


forward, grad_input, pack_forward, pack_grad_input = entry_points(_pack, forward_range, _prepare)
