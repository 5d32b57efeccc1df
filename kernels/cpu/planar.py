"""Direct convolution with pixels in the lanes: planes are read and written as NCHW has them, nothing is transposed.

    out[n, k, p] = sum over c, r  w[k, c, r] * x[n, c, p * stride + r * dilation - padding]

Loops of ``forward``, outermost first; threads share the items:

    item: a block of output rows of one depth of one image, one group, a part of its output channels
        pack the input rows under the block: padded, a plane a channel, in L2    x -> slab [c][d][phases][row][column]
        for each 8 output channels (weights packed [k block][c][tap][8])
            for each 48 pixels of each output row (AVX-512, float32)
                tile: 8 channels x 48 pixels, straight into the output              slab, w -> out

              48 columns of the slab from offsets[k], k = (c, tap)     Every step of the tile reads three vectors of a
                +--------+--------+--------+                           slab row: the output row's pixels seen through
    w[..][k] -> |  acc   |  acc   |  acc   |  x 8 output channels      tap k. Only their place differs from tap to tap,
                +--------+--------+--------+                           so a table of offsets is all that a kernel of any
                                                                       size, dilation and number of channels needs.

A stride would spread a tile's pixels: slab rows and columns are split in phases (their number mod the stride), each of
which is read as if the stride were 1, and what the next output row reads is always one slab row further on. Sums are
complete when they leave the registers (n products round at most n times), and go straight to the output where nothing
is to be added to them but the bias; else through one tile of memory in the L1 cache, to which bias, residual and
activation are applied. To channels-last output tiles are turned.

Of a row of 55 pixels a tile of three vectors leaves 7, and a tile of one vector, with 9 loads for 8 products, takes 40%
of the time of three. There slab rows lie close together and tiles go on from row to row, so that all are full; what is
between two rows is left out when the sums are copied (11x11 at stride 4: 1090 to 930 us, one thread). Two tiles of two
vectors instead of three and one gained nothing.

Wins where ``direct`` must turn much data for few products: first layers of 1 to 4 channels, 8 output channels (direct's
vectors stand half empty); ``pointwise`` is its sister for 1x1 kernels. Loses where rows are short (of a row of 7 pixels
a vector wastes 9 lanes) and to channels-last input, whose pixels lie far apart.

Input gradients with a stride in the columns have a kernel of their own, ``planar_phases``.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from .arrays import Workspace, aligned_empty
from .blocking import Correlation
from .bound import Call
from .compile import jit
from .epilogue import RELU6, add_run, finish
from .gemm import multiply_pixels, zero
from .phases import entry_points
from .planar_blocking import Joined, joined_phases, planar_forward
from .planar_phases import pack_phases, phase_constants, phases_range
from .planar_slab import FIELDS, Layout, constants, pack_planes
from .simd import keep_whole, load, pointer, shift, transpose_part, transpose_square, unpack, vector_lanes
from .tiles import PIXEL_ROWS
from .vector import load as load_vector
from .vector import store_first
from .weights import pack_rows


@jit(inline=True)
def turn_tiles(table, kind, slab, runs, run_count, group, first, last, sums):
    """Channel blocks ``first`` to ``last`` of channels-last output: tiles one below the other, until their rows are a
    vector of channels, then transposed straight into the output. All channels of some pixels come before the next
    pixels, so that lines of the output are written together."""
    keep_whole()
    g = Layout(*unpack(table, FIELDS))
    lanes = vector_lanes(kind)
    ld, step = 3 * lanes, max(1, lanes // PIXEL_ROWS)
    out, offsets, bias, none = pointer(g.out, kind), pointer(g.offsets, table), pointer(g.bias, kind), pointer(0, kind)
    for i in range(0, 4 * run_count, 4):
        position, length, y = load(runs, i), load(runs, i + 1), load(runs, i + 2)
        for p in range(0, length, ld):
            wide = min(ld, length - p)
            for k_block in range(first, last, step):
                tiles = min(step, last - k_block)
                channel, channels = group * g.group_outputs + k_block * PIXEL_ROWS, tiles * PIXEL_ROWS
                w = shift(pointer(g.weights, kind), (group * g.k_blocks + k_block) * g.depth * PIXEL_ROWS)
                for j in range(tiles):
                    row = j * PIXEL_ROWS
                    start = shift(bias, channel + row) if g.bias else none
                    multiply_pixels(
                        -(-wide // lanes), g.depth, offsets, shift(w, g.depth * row), shift(slab, position + p),
                        shift(sums, row * ld), ld, ld, start, none, -1, g.activation,
                    )  # fmt: skip
                for q in range(0, wide, lanes):
                    columns = min(lanes, wide - q)
                    for row in range(0, channels, lanes):
                        square, to = shift(sums, row * ld + q), shift(out, y + (p + q) * g.out_w + channel + row)
                        if row + lanes <= channels and columns == lanes:
                            transpose_square(square, ld, to, g.out_w)
                        else:
                            transpose_part(square, ld, to, g.out_w, channels - row, columns)


@jit(inline=True)
def multiply_joined(table, kind, slab, runs, run_count, w, channel, height, plain, sums):
    """``height`` channels of all rows: tiles go on from run to run, and of their sums each run gets its piece."""
    keep_whole()
    g = Layout(*unpack(table, FIELDS))
    lanes = vector_lanes(kind)
    ld, offsets, none = 3 * lanes, pointer(g.offsets, table), pointer(0, kind)
    out, residual, bias = pointer(g.out, kind), pointer(g.residual, kind), shift(pointer(g.bias, kind), channel)
    finished = plain and g.residual == 0 and height == PIXEL_ROWS
    start, activation = bias if finished and g.bias else none, g.activation if finished else 0
    end, i = load(runs, 4 * run_count - 4) + load(runs, 4 * run_count - 3), 0
    for p in range(0, end, ld):
        after = min(p + ld, end)
        vectors = -(-(after - p) // lanes)
        multiply_pixels(vectors, g.depth, offsets, w, shift(slab, p), sums, ld, ld, start, none, -1, activation)
        while i < 4 * run_count:
            position, y, z = load(runs, i), load(runs, i + 2), load(runs, i + 3)
            begin, last = max(p, position), position + load(runs, i + 1)
            n, at = min(after, last) - begin, begin - position
            for k in range(0 if n <= 0 else height):
                row, to = shift(sums, k * ld + begin - p), shift(out, y + at * g.out_w + (channel + k) * g.out_c)
                if finished:
                    store_first(to, 0, load_vector(row, 0), n)
                    if n > lanes:
                        store_first(to, lanes, load_vector(row, lanes), n - lanes)
                    if n > 2 * lanes:
                        store_first(to, 2 * lanes, load_vector(row, 2 * lanes), n - 2 * lanes)
                else:
                    other = shift(residual, z + at * g.residual_w + (channel + k) * g.residual_c)
                    finish(
                        row, n, g.bias, shift(bias, k), 0, g.residual, other, g.residual_w, g.activation, to, g.out_w
                    )
            if last > after:
                break
            i += 4


@jit
def forward_range(t, threads, table, chunk, kind):
    """Share ``t`` of ``threads`` of a correlation."""
    g = Layout(*unpack(table, FIELDS))
    lanes = vector_lanes(kind)
    memory = g.scratch + t * g.thread_bytes
    slab, memory = pointer(memory, kind), memory + g.slab_bytes
    line, memory = pointer(memory, kind), memory + g.line_bytes
    sums, runs = pointer(memory, kind), pointer(memory + g.tile_bytes, table)
    weights, offsets = pointer(g.weights, kind), pointer(g.offsets, table)
    out, residual, bias, none = pointer(g.out, kind), pointer(g.residual, kind), pointer(g.bias, kind), pointer(0, kind)
    plain = (
        g.activation <= RELU6
        and g.out_w == 1
        and g.depth > 0
        and (g.residual == 0 or (g.residual_w == 1 and g.residual_c >= 0))
    )
    turned = g.out_c == 1 and g.residual == 0 and g.activation <= RELU6 and g.depth > 0
    turned = turned and g.group_outputs % PIXEL_ROWS == 0 and not plain
    packed_block, run_count = -1, 0
    items = g.batch * g.out_depth * g.row_blocks * g.column_blocks * g.groups * g.k_parts
    for item in range(items * t // threads, items * (t + 1) // threads):
        block, part = item // g.k_parts, item % g.k_parts
        rest, group = block // g.groups, block % g.groups
        rest, ow0 = rest // g.column_blocks, rest % g.column_blocks * g.columns
        rest, oh0 = rest // g.row_blocks, rest % g.row_blocks * g.rows
        n, od = rest // g.out_depth, rest % g.out_depth
        rows, columns = min(g.rows, g.out_height - oh0), min(g.columns, g.out_width - ow0)
        if block != packed_block:
            packed_block = block
            channel = group * g.group_inputs
            pack_planes(table, kind, slab, line, n, channel, od, oh0, rows, ow0, columns)
            run_count = 0
            for r in range(rows):
                y = n * g.out_n + od * g.out_d + (oh0 + r) * g.out_h + ow0 * g.out_w
                z = n * g.residual_n + od * g.residual_d + (oh0 + r) * g.residual_h + ow0 * g.residual_w
                run_count = add_run(runs, run_count, r * g.pitch, columns, y, g.out_w, z, g.residual_w)

        first, last = g.k_blocks * part // g.k_parts, g.k_blocks * (part + 1) // g.k_parts
        if turned:
            turn_tiles(table, kind, slab, runs, run_count, group, first, last, sums)
            continue
        for k_block in range(first, last):
            w = shift(weights, (group * g.k_blocks + k_block) * g.depth * PIXEL_ROWS)
            channel = group * g.group_outputs + k_block * PIXEL_ROWS
            height = min(PIXEL_ROWS, g.group_outputs - k_block * PIXEL_ROWS)
            if g.joined:
                multiply_joined(table, kind, slab, runs, run_count, w, channel, height, plain, sums)
                continue
            for i in range(0, 4 * run_count, 4):
                position, length, y, z = load(runs, i), load(runs, i + 1), load(runs, i + 2), load(runs, i + 3)
                p = 0
                while p < length:
                    b, wide = shift(slab, position + p), min(3 * lanes, length - p)
                    vectors = -(-wide // lanes)
                    if plain and height == PIXEL_ROWS:
                        to = shift(out, y + p + channel * g.out_c)
                        start = shift(bias, channel) if g.bias else none
                        more, ldr = shift(residual, z + p + channel * g.residual_c), g.residual_c if g.residual else -1
                        multiply_pixels(
                            vectors, g.depth, offsets, w, b, to, g.out_c, wide, start, more, ldr, g.activation
                        )
                    else:
                        ld = 3 * lanes
                        if g.depth:
                            multiply_pixels(vectors, g.depth, offsets, w, b, sums, ld, ld, none, none, -1, 0)
                        else:  # no tap of the kernel reaches here
                            zero(sums, PIXEL_ROWS * ld)
                        for k in range(height):
                            to = shift(out, y + p * g.out_w + (channel + k) * g.out_c)
                            other = shift(residual, z + p * g.residual_w + (channel + k) * g.residual_c)
                            finish(
                                shift(sums, k * ld), wide, g.bias, shift(bias, channel + k), 0, g.residual, other,
                                g.residual_w, g.activation, to, g.out_w,
                            )  # fmt: skip
                    p += wide


def _kernel(c: Correlation, call: Call) -> Any:
    return phases_range if isinstance(c, Joined) else forward_range


@lru_cache(maxsize=256)
def _prepare(c: Correlation, itemsize: int, threads: int) -> tuple[tuple[int, ...], Any]:
    """The plan of one of blocking's cached correlations, which compare by identity."""
    plan = planar_forward(c, itemsize, threads, PIXEL_ROWS)
    if isinstance(c, Joined):
        return phase_constants(c, plan)
    _, height, width = c.axes
    channel, d, r, s = np.ogrid[: c.group_inputs, : c.kernel[0], : c.kernel[1], : c.kernel[2]]
    column = s * width.dilation
    row = r * height.dilation
    phase = row % plan.row_phases * plan.phases + column % plan.phases
    place = row // plan.row_phases * plan.pitch + column // plan.phases
    offsets = channel * plan.channel_step + d * plan.plane_step + phase * plan.phase_step + place
    return constants(c, plan, np.ascontiguousarray(offsets.ravel(), np.int64))


def _pack(c: Correlation, w: np.ndarray, scratch: Workspace | None, threads: int) -> np.ndarray:
    """Weights (groups, K/groups, C/groups, D, R, S) packed for ``c``, in the workspace or an array of their own."""
    size = planar_forward(c, w.itemsize, threads, PIXEL_ROWS).packed
    packed = scratch.take(size, w.dtype) if scratch else aligned_empty(size, w.dtype)
    if isinstance(c, Joined):
        pack_phases(c, w, packed, threads)
    elif size:
        pack_rows(w, packed, PIXEL_ROWS, threads)
    return packed


forward, grad_input, pack_forward, pack_grad_input = entry_points(_pack, _kernel, _prepare, phases=joined_phases)
