"""Direct convolution in bfloat16 products, summed in float32: of bfloat16 arrays, and of float32 arrays in three parts.

The loops are ``direct``'s; what differs follows from the tile (see ``bfloat16_tiles``), whose rows must lie at one
distance: the slab is sorted by the phases of the stride, and a block is computed as one run of positions, with those
between its rows thrown away.

    item: a block of output positions, a group, a part of its output channels
        pack the input rows under the block, a chunk of 32 channels a row
                                         x -> slab [chunk][plane][row phase][column phase][row][column][part][32]
        for each tile column of output channels (weights packed [k block][chunk][tap][...])
            for each 32 positions: the tile                                   slab, w -> sums, float32
            finish: transpose unless channels-last, bias, residual, activation, round      sums -> out

With one tap, 1x1, the positions of all images are one sequence, and a tile's chunks lie one behind the other, as the
products walk through them: slab [tile][chunk][position][part][32].

What float32 in three parts waits for: in 3x3 kernels the products (64 channels of 56x56, one thread: 707 of 790 us, as
fast as operands from L2 can be multiplied); in 1x1 kernels also packing and finishing, whose time is that of the caches
(64 to 64 channels of 56x56, channels last: 36 us packing, 80 products, 37 finishing).

Tried in vain: asking for the next tile column's weights during the products, where those do not stay in L2 (512
channels of 7x7, 3x3: 40% slower, the caches' own prefetchers do that); asking for a tile's output and for the next
block's input (-20 to +8%); sums of all channels of a tile, finished in long rows (bfloat16, channels last: 40% slower).

Loses to the float32 kernels where 32 input channels are mostly padding.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from . import bfloat16_blocking as blocking
from .activations import activated
from .amx import CONFIGURATION, begin_tiles, end_tiles
from .arrays import address
from .bfloat16_blocking import CHUNK, COLUMNS, ROWS
from .bfloat16_tiles import (
    FORM,
    load_numbers,
    multiply,
    pack_pixel,
    row_shorts,
    store_numbers,
    transpose_pixels,
)
from .bfloat16_weights import pack
from .blocking import Correlation
from .compile import jit
from .epilogue import add_run
from .gemm import transpose, zero
from .phases import entry_points
from .simd import keep_whole, load, pointer, shift, store, unpack
from .vector import add, number, splat
from .vector import load as load_vector


class Layout(NamedTuple):
    """What the compiled function is told: addresses, then strides and sizes in elements."""

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
    bias: int  # float32; 0: none
    activation: int
    weights: int  # packed
    scratch: int  # thread t's begins at scratch + t * thread_bytes
    # from here on the same in every call with this geometry
    thread_bytes: int
    slab_bytes: int
    sums_bytes: int
    turned_bytes: int
    square_bytes: int
    runs_bytes: int
    configuration: int  # of AMX's tile registers
    source_d: int
    source_h: int
    segments: int
    segment_count: int
    whole: int  # output row r reads input row r, and so on
    steps: int  # slab offsets of every chunk's taps
    step_count: int
    batch: int
    groups: int
    group_inputs: int
    group_outputs: int
    single: int
    all_rows: int
    rows: int
    columns: int
    small: int  # rows of a block of channels-last output, if not 0
    slab_rows: int
    slab_columns: int
    phase_rows: int
    pitch: int
    chunks: int
    chunk_step: int
    tile_step: int
    positions: int
    k_blocks: int
    k_parts: int
    kernel_d: int
    stride_d: int
    dilation_d: int
    out_depth: int
    stride_h: int
    out_height: int
    stride_w: int
    out_width: int


_FIELDS = len(Layout._fields)


class Scratch(NamedTuple):
    """A thread's memory."""

    slab: Any
    sums: Any  # of a tile
    turned: Any  # of a block of positions, [channel][position]
    square: Any  # 16 positions of 32 channels
    runs: Any


@jit(inline=True)
def place(g, kind, position):
    """Where a position's first chunk lies in the slab."""
    return (position >> 5) * g.tile_step + (position & (ROWS - 1)) * row_shorts(kind)


@jit(inline=True)
def phase_of(g, column):
    """A padded column's position in a slab row, its phase, and from one phase to the next."""
    if g.stride_w == 1:  # no division
        return column, 0, 0
    step = g.phase_rows * g.pitch
    return column // g.stride_w + column % g.stride_w * step, column % g.stride_w, step


@jit(inline=True)
def pack_positions(table, kind, source, step, memory, first, p0, n):
    """``n`` positions of the slab: padded columns from ``p0`` on of the row that begins at position ``first``."""
    keep_whole()
    g = Layout(*unpack(table, _FIELDS))  # handed over, it would be copied in each call
    slab, square = memory.slab, memory.square
    position, phase, phase_step = phase_of(g, p0)
    position += first
    back = g.stride_w * phase_step - 1
    if g.x_c == 1:
        for p in range(n):
            s, t = shift(source, p * step), shift(slab, place(g, kind, position))
            for j in range(g.chunks):
                pack_pixel(shift(s, j * CHUNK), shift(t, j * g.chunk_step), g.group_inputs - j * CHUNK)
            position, phase = position + phase_step, phase + 1
            if phase >= g.stride_w:
                position, phase = position - back, 0
        return
    for j in range(g.chunks):  # rows of 32 planes at a time, whose lines the caches' prefetchers foresee
        channels, chunk = g.group_inputs - j * CHUNK, shift(slab, j * g.chunk_step)
        at, turn = position, phase
        for p in range(0, n, 16):
            s, positions = shift(source, j * CHUNK * g.x_c + p * step), min(16, n - p)
            if step == 1:
                transpose_pixels(s, g.x_c, square, channels, positions)
            else:
                for c in range(min(channels, CHUNK)):
                    for q in range(positions):
                        store(square, q * CHUNK + c, load(s, c * g.x_c + q * step))
            for q in range(positions):
                pack_pixel(shift(square, q * CHUNK), shift(chunk, place(g, kind, at)), channels)
                at, turn = at + phase_step, turn + 1
                if turn >= g.stride_w:
                    at, turn = at - back, 0


@jit(inline=True)
def zero_positions(g, kind, memory, first, p0, n):
    """The same for zeros."""
    for p in range(n):
        position, _, _ = phase_of(g, p0 + p)
        for j in range(g.chunks):
            zero(shift(memory.slab, place(g, kind, first + position) + j * g.chunk_step), row_shorts(kind))


@jit(inline=True)
def pack_row(g, table, kind, source, inside, memory, first, first_column, columns):
    """One slab row, which begins at position ``first``; zeros where not ``inside``."""
    segments = pointer(g.segments, table)
    for i in range(0, 4 * g.segment_count, 4):
        start, column = load(segments, i), load(segments, i + 1)
        step, count = load(segments, i + 2) * g.x_w, load(segments, i + 3)
        begin = max(start, first_column)
        n = min(start + count, first_column + columns) - begin
        if n <= 0:
            continue
        if inside and column >= 0:
            s = shift(source, column * g.x_w + (begin - start) * step)
            pack_positions(table, kind, s, step, memory, first, begin - first_column, n)
        else:
            zero_positions(g, kind, memory, first, begin - first_column, n)


@jit(inline=True)
def pack_run(table, kind, memory, group, first, positions):
    """The input under ``positions`` of a 1x1 kernel from the ``first`` of all on."""
    keep_whole()
    g = Layout(*unpack(table, _FIELDS))
    source_d, source_h = pointer(g.source_d, table), pointer(g.source_h, table)
    x = shift(pointer(g.x, kind), group * g.group_inputs * g.x_c)
    gapless = g.whole and g.x_h == g.out_width * g.x_w
    p = 0
    while p < positions:
        r, q = (first + p) // g.out_width, (first + p) % g.out_width
        n, od, oh = r // (g.out_height * g.out_depth), r // g.out_height % g.out_depth, r % g.out_height
        d, h = load(source_d, od), load(source_h, oh)
        source = shift(x, n * g.x_n + d * g.x_d + h * g.x_h)
        if gapless:  # the rows of a plane lie in one piece
            count = min(positions - p, (g.out_height - oh) * g.out_width - q)
            pack_positions(table, kind, shift(source, q * g.x_w), g.x_w, memory, p, 0, count)
        else:
            count = min(positions - p, g.out_width - q)
            pack_row(g, table, kind, source, d >= 0 and h >= 0, memory, p, q, count)
        p += count


@jit(inline=True)
def pack_slab(table, kind, memory, group, n, od, oh0, rows, ow0, columns):
    """The input under a block."""
    keep_whole()
    g = Layout(*unpack(table, _FIELDS))
    source_d, source_h = pointer(g.source_d, table), pointer(g.source_h, table)
    x = shift(pointer(g.x, kind), group * g.group_inputs * g.x_c)
    used = g.slab_rows - (g.rows - rows) * g.stride_h
    wide = g.slab_columns - (g.columns - columns) * g.stride_w
    plane_step = g.stride_h * g.stride_w * g.phase_rows * g.pitch
    for plane in range(g.kernel_d):
        d = load(source_d, od * g.stride_d + plane * g.dilation_d)
        for j in range(used):
            h = load(source_h, oh0 * g.stride_h + j)
            source = shift(x, n * g.x_n + d * g.x_d + h * g.x_h)
            row = j % g.stride_h * g.stride_w * g.phase_rows + j // g.stride_h
            first = plane * plane_step + row * g.pitch
            pack_row(g, table, kind, source, d >= 0 and h >= 0, memory, first, ow0 * g.stride_w, wide)


@jit(inline=True)
def find_runs(g, runs, first, positions, pitch, columns):
    """Runs of positions that lie evenly in the output and the residual (see ``epilogue.add_run``); their count.

    The block's rows, which begin at output position ``first`` of all, are ``pitch`` apart; 0: they follow one another.
    """
    count, p = 0, 0
    while p < positions:
        at = first + (p // pitch * g.out_width if pitch else p)
        r, q = at // g.out_width, at % g.out_width
        n, od, oh = r // (g.out_height * g.out_depth), r // g.out_height % g.out_depth, r % g.out_height
        y = n * g.out_n + od * g.out_d + oh * g.out_h + q * g.out_w
        z = n * g.residual_n + od * g.residual_d + oh * g.residual_h + q * g.residual_w
        length = columns if pitch else min(positions - p, g.out_width - q)
        count = add_run(runs, count, p, length, y, g.out_w, z, g.residual_w)
        p += pitch if pitch else length
    return count


@jit(inline=True)
def load_some(source, step, row, i, n):
    """16 numbers from ``source[i * step]`` on, ``step`` apart, of which n are there; ``row[i:]`` is scratch."""
    if step == 1:
        return load_numbers(source, i, n)
    for k in range(i, i + min(16, n)):
        store_numbers(row, k, load_numbers(source, k * step, 1), 1)
    return load_numbers(row, i, n)


@jit(inline=True)
def store_some(target, step, row, i, v, n):
    """The same for storing."""
    if step == 1:
        store_numbers(target, i, v, n)
        return
    store_numbers(row, i, v, n)
    for k in range(i, i + min(16, n)):
        store_numbers(target, k * step, load_numbers(row, k, 1), 1)


@jit(inline=True)
def finish_positions(table, sums, positions, channels, bias, residual, out):
    """Sums [position][channel] with bias, residual and activation, rounded into channels-last output."""
    keep_whole()
    g = Layout(*unpack(table, _FIELDS))
    for i in range(0, channels, 16):
        n = channels - i
        added = splat(sums, number(sums, 0.0))
        if g.bias:
            added = load_numbers(bias, i, n)
        for p in range(positions):
            row, z = shift(sums, p * COLUMNS), shift(residual, p * g.residual_w)
            v = add(load_vector(row, i), added)
            if g.residual:
                v = add(v, load_some(z, g.residual_c, row, i, n))
            store_numbers(out, p * g.out_w + i, activated(row, v, g.activation), n)


@jit(inline=True)
def finish_channels(table, sums, positions, channels, bias, residual, out):
    """Sums [channel][position] with bias, residual and activation, rounded into the output."""
    keep_whole()
    g = Layout(*unpack(table, _FIELDS))
    for c in range(channels):
        row, y, z = shift(sums, c * g.positions), shift(out, c * g.out_c), shift(residual, c * g.residual_c)
        added = splat(row, load(bias, c) if g.bias else number(row, 0.0))
        for i in range(0, positions, 16):
            n = positions - i
            v = add(load_vector(row, i), added)
            if g.residual:
                v = add(v, load_some(z, g.residual_w, row, i, n))
            store_some(y, g.out_w, row, i, activated(row, v, g.activation), n)


@jit(inline=True)
def forward_share(t, threads, table, kind):
    """Share ``t`` of ``threads`` of a correlation; ``kind`` is a number of the element type, bfloat16's an int16."""
    keep_whole()
    g = Layout(*unpack(table, _FIELDS))
    short, single = np.int16(0), np.float32(0)
    here = g.scratch + t * g.thread_bytes
    slab, here = pointer(here, short), here + g.slab_bytes
    sums, here = pointer(here, single), here + g.sums_bytes
    turned, here = pointer(here, single), here + g.turned_bytes
    square, runs = pointer(here, kind), pointer(here + g.square_bytes, table)
    memory = Scratch(slab, sums, turned, square, runs)
    steps, weights = pointer(g.steps, table), pointer(g.weights, short)
    bias, residual, out = pointer(g.bias, single), pointer(g.residual, kind), pointer(g.out, kind)
    step_weights = COLUMNS * row_shorts(kind)
    block_rows = min(g.rows, g.small) if g.small and g.out_c == 1 else g.rows
    row_blocks, column_blocks = -(-g.all_rows // block_rows), 1 if g.single else -(-g.out_width // g.columns)
    items = (1 if g.single else g.batch * g.out_depth) * row_blocks * column_blocks * g.groups * g.k_parts
    if FORM == "amx":
        begin_tiles(g.configuration)
    for item in range(items * t // threads, items * (t + 1) // threads):
        rest, part = item // g.k_parts, item % g.k_parts
        rest, group = rest // g.groups, rest % g.groups
        rest, ow0 = rest // column_blocks, rest % column_blocks * g.columns
        rest, row = rest // row_blocks, rest % row_blocks * block_rows
        rows, columns = min(block_rows, g.all_rows - row), min(g.columns, g.out_width - ow0)
        if g.single:
            used = rows
            pack_run(table, kind, memory, group, row, rows)
            run_count = find_runs(g, runs, row, used, 0, 0)
        else:
            used = (rows - 1) * g.pitch + columns
            pack_slab(table, kind, memory, group, rest // g.out_depth, rest % g.out_depth, row, rows, ow0, columns)
            first = (rest * g.all_rows + row) * g.out_width + ow0
            run_count = find_runs(g, runs, first, used, g.pitch, columns)
        for k_block in range(g.k_blocks * part // g.k_parts, g.k_blocks * (part + 1) // g.k_parts):
            channels = min(COLUMNS, g.group_outputs - k_block * COLUMNS)
            channel = group * g.group_outputs + k_block * COLUMNS
            b = shift(weights, (group * g.k_blocks + k_block) * g.step_count * step_weights)
            added, run = shift(bias, channel), 0
            for first in range(0, used, ROWS):
                if g.step_count:
                    a = shift(slab, first // ROWS * g.tile_step)
                    multiply(kind, used - first, g.step_count, steps, a, b, sums)
                else:  # no tap of the kernel reaches here
                    zero(sums, ROWS * COLUMNS)
                if g.out_c != 1:
                    transpose(16, sums, COLUMNS, shift(turned, first), g.positions, ROWS, COLUMNS)
                    continue
                while run < 4 * run_count and load(runs, run) < first + ROWS:
                    position, length = load(runs, run), load(runs, run + 1)
                    p = max(position, first)
                    n = min(position + length, first + ROWS) - p
                    y = shift(out, load(runs, run + 2) + (p - position) * g.out_w + channel)
                    z = load(runs, run + 3) + (p - position) * g.residual_w + channel * g.residual_c
                    sum_rows = shift(sums, (p - first) * COLUMNS)
                    finish_positions(table, sum_rows, n, channels, added, shift(residual, z), y)
                    if position + length > first + ROWS:
                        break
                    run += 4
            if g.out_c == 1:
                continue
            for run in range(0, 4 * run_count, 4):
                y = shift(out, load(runs, run + 2) + channel * g.out_c)
                z = shift(residual, load(runs, run + 3) + channel * g.residual_c)
                finish_channels(table, shift(turned, load(runs, run)), load(runs, run + 1), channels, added, z, y)
    if FORM == "amx":
        end_tiles()


@jit
def bfloat16_range(t, threads, table, chunk, kind):
    """Share ``t`` of a correlation of bfloat16 arrays."""
    forward_share(t, threads, table, np.int16(0))


@jit
def float32_range(t, threads, table, chunk, kind):
    """Share ``t`` of a correlation of float32 arrays."""
    forward_share(t, threads, table, np.float32(0))


@lru_cache(maxsize=256)
def _prepare(c: Correlation, itemsize: int, threads: int) -> tuple[tuple[int, ...], tuple[np.ndarray, ...]]:
    plan = blocking.plan(c, itemsize, threads)
    depth, height, width = c.axes
    d, r, s = np.ogrid[: depth.kernel, : height.kernel, : width.kernel]
    r, s = r * height.dilation, s * width.dilation
    phase = (d * height.stride + r % height.stride) * width.stride + s % width.stride
    taps = (phase * plan.phase_rows + r // height.stride) * plan.pitch + s // width.stride
    chunks = np.arange(plan.chunks)[:, None] * plan.chunk_step
    steps = np.ascontiguousarray(chunks + taps.ravel() * blocking.row_shorts(itemsize), np.int64)
    whole = all(np.array_equal(axis.source, np.arange(axis.out)) for axis in (height, width))
    segments, segment_count = c.segments
    fixed = (
        plan.thread_bytes, *plan.scratch, address(CONFIGURATION),
        address(depth.source), address(height.source), address(segments), segment_count,
        int(whole and bool((depth.source >= 0).all())), address(steps), steps.size,
        c.batch, c.groups, c.group_inputs, c.group_outputs, int(plan.single), plan.all_rows,
        plan.rows, plan.columns, plan.small, plan.slab_rows, plan.slab_columns, plan.phase_rows, plan.pitch,
        plan.chunks, plan.chunk_step, plan.tile_step, plan.positions, plan.k_blocks, plan.k_parts,
        depth.kernel, depth.stride, depth.dilation, depth.out, height.stride, height.out, width.stride, width.out,
    )  # fmt: skip
    return fixed, (depth.source, height.source, segments, steps)


forward, grad_input, pack_forward, pack_grad_input = entry_points(pack, bfloat16_range, _prepare, native16=True)
bf16x3 = entry_points(pack, float32_range, _prepare)


def unavailable() -> str | None:
    """Why this CPU does not multiply bfloat16 arrays as they are, or None."""
    return None if FORM else "the CPU has neither AMX-BF16 nor bfloat16 products that beat float32's"
