"""Direct convolution of bfloat16 arrays in real bfloat16 products, summed in float32.

The loops are ``direct``'s; what differs follows from the tile (see ``bfloat16_tiles``), whose rows must lie at one
distance: the slab is sorted by the phases of the stride, and a block is computed as one run of positions, with those
between its rows thrown away.

    item: a block of output positions, a group, a part of its output channels
        pack the input rows under the block: channels-last, in whole 32 channels     x -> slab [phase][row][column][c]
        for each 32 output channels (weights packed [k block][tap][chunk][pair][32][2])
            for each 32 positions: the tile                                         slab, w -> sums 32 x 32, float32
            finish: transpose unless channels-last, bias, residual, activation, round      sums -> out

Rounded once, when the result is stored. Loses to the float32 kernels where 32 input channels are mostly padding.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from . import bfloat16_blocking as blocking
from .amx import CONFIGURATION, begin_tiles, end_tiles
from .arrays import Workspace, address, aligned_empty
from .bfloat16_blocking import CHUNK, COLUMNS, ROWS
from .bfloat16_tiles import (
    FORM,
    amx_tile,
    dot_tile,
    narrow,
    transpose_pairs,
    widen,
)
from .blocking import Correlation
from .bound import Bound
from .compile import jit
from .epilogue import finish
from .gemm import transpose, zero
from .phases import entry_points
from .simd import keep_whole, load, pointer, shift, store, unpack


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
    configuration: int  # of AMX's tile registers
    source_d: int
    source_h: int
    segments: int
    segment_count: int
    taps: int  # slab offsets
    tap_count: int
    batch: int
    groups: int
    group_inputs: int
    group_outputs: int
    k_blocks: int
    k_parts: int
    pixel: int
    rows: int
    columns: int
    slab_rows: int
    slab_columns: int
    phase_rows: int
    pitch: int
    positions: int
    kernel_d: int
    stride_d: int
    dilation_d: int
    out_depth: int
    stride_h: int
    out_height: int
    stride_w: int
    out_width: int


_FIELDS = len(Layout._fields)


@jit(inline=True)
def tile(segment_count, segments, chunks, a, row_step, b, c):
    """A 32 x 32 tile by the form that this CPU has."""
    if FORM == "amx":
        amx_tile(segment_count, segments, chunks, a, row_step, b, c)
    else:
        for i in range(0, ROWS, 8):
            dot_tile(segment_count, segments, chunks, shift(a, i * row_step), row_step, b, shift(c, i * COLUMNS))


@jit(inline=True)
def place(g, position):
    """Where a padded column of a slab row lies, in elements: its phase first."""
    return (position % g.stride_w * g.phase_rows * g.pitch + position // g.stride_w) * g.pixel


@jit(inline=True)
def pack_positions(g, source, step, target, first, n):
    """Slab positions ``first`` to ``first + n`` of a row from input positions ``step`` apart."""
    keep_whole()
    if step == 1 and g.stride_w <= 2:
        for p in range(0, n, 16):
            here = place(g, first + p)
            odd, even = place(g, first + p + 1) - here, place(g, first + p + 2) - here
            for c in range(0, g.pixel, CHUNK):
                s, t = shift(source, c * g.x_c + p), shift(target, here + c)
                transpose_pairs(s, g.x_c, t, odd, even, g.group_inputs - c, min(16, n - p))
        return
    for p in range(n):
        s, t = shift(source, p * step), shift(target, place(g, first + p))
        if g.x_c == 1:
            for c in range(g.group_inputs):
                store(t, c, load(s, c))
        else:
            for c in range(g.group_inputs):
                store(t, c, load(s, c * g.x_c))
        zero(shift(t, g.group_inputs), g.pixel - g.group_inputs)


@jit(inline=True)
def pack_row(g, table, source, inside, target, first_column, columns):
    """One slab row: ``columns`` positions from padded column ``first_column``; zeros where not ``inside``."""
    segments = pointer(g.segments, table)
    for i in range(0, 4 * g.segment_count, 4):
        start, first = load(segments, i), load(segments, i + 1)
        step, count = load(segments, i + 2) * g.x_w, load(segments, i + 3)
        begin = max(start, first_column)
        n = min(start + count, first_column + columns) - begin
        if n <= 0:
            continue
        if inside and first >= 0:
            s = shift(source, first * g.x_w + (begin - start) * step)
            pack_positions(g, s, step, target, begin - first_column, n)
        else:
            for p in range(n):
                zero(shift(target, place(g, begin - first_column + p)), g.pixel)


@jit(inline=True)
def pack_slab(g, table, slab, n, group, od, oh0, rows, ow0, columns):
    """The input under a block."""
    short = np.int16(0)
    source_d, source_h = pointer(g.source_d, table), pointer(g.source_h, table)
    used = g.slab_rows - (g.rows - rows) * g.stride_h
    wide = g.slab_columns - (g.columns - columns) * g.stride_w
    plane_step = g.stride_h * g.stride_w * g.phase_rows * g.pitch * g.pixel
    for plane in range(g.kernel_d):
        d = load(source_d, od * g.stride_d + plane * g.dilation_d)
        for j in range(used):
            h = load(source_h, oh0 * g.stride_h + j)
            source = shift(pointer(g.x, short), n * g.x_n + group * g.group_inputs * g.x_c + d * g.x_d + h * g.x_h)
            row = j % g.stride_h * g.stride_w * g.phase_rows + j // g.stride_h
            target = shift(slab, plane * plane_step + row * g.pitch * g.pixel)
            pack_row(g, table, source, d >= 0 and h >= 0, target, ow0 * g.stride_w, wide)


@jit(inline=True)
def widen_row(source, step, target, n):
    """``n`` bfloat16 numbers, ``step`` apart, as float32."""
    keep_whole()
    if step == 1:
        for i in range(0, n, 16):
            widen(shift(source, i), shift(target, i), n - i)
    else:
        for i in range(n):
            widen(shift(source, i * step), shift(target, i), 1)


@jit(inline=True)
def narrow_row(source, target, step, n):
    """``n`` float32 numbers rounded to bfloat16, ``step`` apart."""
    keep_whole()
    if step == 1:
        for i in range(0, n, 16):
            narrow(shift(source, i), shift(target, i), n - i)
    else:
        for i in range(n):
            narrow(shift(source, i), shift(target, i * step), 1)


@jit(inline=True)
def finish_row(g, row, n, bias, bias_step, residual, residual_step, extra, out, out_step):
    """Bias, residual and activation in float32, in place, then rounded into ``out``."""
    keep_whole()
    if g.residual:
        widen_row(residual, residual_step, extra, n)
    finish(row, n, g.bias, bias, bias_step, g.residual, extra, 1, g.activation, row, 1)
    narrow_row(row, out, out_step, n)


@jit
def forward_range(t, threads, table, chunk, kind):
    """Share ``t`` of ``threads`` of a correlation; ``kind`` is float32's, of the sums."""
    g = Layout(*unpack(table, _FIELDS))
    short = np.int16(0)
    memory = g.scratch + t * g.thread_bytes
    slab, memory = pointer(memory, short), memory + g.slab_bytes
    sums, memory = pointer(memory, kind), memory + g.sums_bytes
    turned, extra = pointer(memory, kind), pointer(memory + g.turned_bytes, kind)
    taps, weights = pointer(g.taps, table), pointer(g.weights, short)
    bias, residual, out = pointer(g.bias, kind), pointer(g.residual, short), pointer(g.out, short)
    block_weights = g.tap_count * g.pixel * COLUMNS
    row_blocks, column_blocks = -(-g.out_height // g.rows), -(-g.out_width // g.columns)
    items = g.batch * g.out_depth * row_blocks * column_blocks * g.groups * g.k_parts
    if FORM == "amx":
        begin_tiles(g.configuration)
    for item in range(items * t // threads, items * (t + 1) // threads):
        rest, part = item // g.k_parts, item % g.k_parts
        rest, group = rest // g.groups, rest % g.groups
        rest, ow0 = rest // column_blocks, rest % column_blocks * g.columns
        rest, oh0 = rest // row_blocks, rest % row_blocks * g.rows
        n, od = rest // g.out_depth, rest % g.out_depth
        rows, columns = min(g.rows, g.out_height - oh0), min(g.columns, g.out_width - ow0)
        pack_slab(g, table, slab, n, group, od, oh0, rows, ow0, columns)
        used = (rows - 1) * g.pitch + columns
        # rows without a gap in the slab, the output and the residual are one run
        gapless = g.pitch == columns and g.out_h == columns * g.out_w
        gapless = gapless and (g.residual == 0 or g.residual_h == columns * g.residual_w)
        runs, length = (1, used) if gapless else (rows, columns)
        corner = n * g.out_n + od * g.out_d + oh0 * g.out_h + ow0 * g.out_w
        other = n * g.residual_n + od * g.residual_d + oh0 * g.residual_h + ow0 * g.residual_w
        for k_block in range(g.k_blocks * part // g.k_parts, g.k_blocks * (part + 1) // g.k_parts):
            channels = min(COLUMNS, g.group_outputs - k_block * COLUMNS)
            channel = group * g.group_outputs + k_block * COLUMNS
            b = shift(weights, (group * g.k_blocks + k_block) * block_weights)
            for first in range(0, used, ROWS):
                if g.tap_count:
                    tile(g.tap_count, taps, g.pixel // CHUNK, shift(slab, first * g.pixel), g.pixel, b, sums)
                else:  # no tap of the kernel reaches here
                    zero(sums, ROWS * COLUMNS)
                if g.out_c != 1:
                    transpose(16, sums, COLUMNS, shift(turned, first), g.positions, ROWS, COLUMNS)
                    continue
                for p in range(first, min(first + ROWS, used)):
                    r, q = p // g.pitch, p % g.pitch
                    if q < columns:
                        row = shift(sums, (p - first) * COLUMNS)
                        y = shift(out, corner + r * g.out_h + q * g.out_w + channel)
                        z = shift(residual, other + r * g.residual_h + q * g.residual_w + channel * g.residual_c)
                        finish_row(g, row, channels, shift(bias, channel), 1, z, g.residual_c, extra, y, 1)
            if g.out_c == 1:
                continue
            for k in range(channels):
                for r in range(runs):
                    row = shift(turned, k * g.positions + r * g.pitch)
                    y = shift(out, corner + (channel + k) * g.out_c + r * g.out_h)
                    z = shift(residual, other + (channel + k) * g.residual_c + r * g.residual_h)
                    finish_row(g, row, length, shift(bias, channel + k), 0, z, g.residual_w, extra, y, g.out_w)
    if FORM == "amx":
        end_tiles()


@lru_cache(maxsize=256)
def _prepare(c: Correlation, itemsize: int, threads: int) -> tuple[tuple[int, ...], tuple[np.ndarray, ...]]:
    plan = blocking.plan(c, threads)
    depth, height, width = c.axes
    d, r, s = np.ogrid[: depth.kernel, : height.kernel, : width.kernel]
    r, s = r * height.dilation, s * width.dilation
    phase = (d * height.stride + r % height.stride) * width.stride + s % width.stride
    taps = ((phase * plan.phase_rows + r // height.stride) * plan.pitch + s // width.stride) * plan.pixel
    taps = np.ascontiguousarray(taps.ravel(), np.int64)
    segments, segment_count = c.segments
    fixed = (
        plan.thread_bytes, *plan.scratch[:3], address(CONFIGURATION),
        address(depth.source), address(height.source), address(segments), segment_count, address(taps), taps.size,
        c.batch, c.groups, c.group_inputs, c.group_outputs, plan.k_blocks, plan.k_parts, plan.pixel,
        plan.rows, plan.columns, plan.slab_rows, plan.slab_columns, plan.phase_rows, plan.pitch, plan.positions,
        depth.kernel, depth.stride, depth.dilation, depth.out, height.stride, height.out, width.stride, width.out,
    )  # fmt: skip
    return fixed, (depth.source, height.source, segments, taps)


class Weights(NamedTuple):
    """What ``pack_range`` is told: the 6-D weights, their strides in elements, and where they go."""

    w: int
    groups: int
    outputs: int
    inputs: int
    depth: int
    rows: int
    columns: int
    w_g: int
    w_k: int
    w_c: int
    w_d: int
    w_r: int
    w_s: int
    packed: int


_WEIGHT_FIELDS = len(Weights._fields)


@jit
def pack_range(t, threads, table, chunk, kind):
    """Share ``t`` of the weights: [group, k block][tap][chunk][pair of inputs][32 outputs][2], missing ones zeros."""
    g = Weights(*unpack(table, _WEIGHT_FIELDS))
    short = np.int16(0)
    w, packed = pointer(g.w, short), pointer(g.packed, short)
    k_blocks, taps = -(-g.outputs // COLUMNS), g.depth * g.rows * g.columns
    pixel = -(-g.inputs // CHUNK) * CHUNK
    for block in range(g.groups * k_blocks * t // threads, g.groups * k_blocks * (t + 1) // threads):
        group, k0 = block // k_blocks, block % k_blocks * COLUMNS
        target = shift(packed, block * taps * pixel * COLUMNS)
        outputs = min(COLUMNS, g.outputs - k0)
        if outputs < COLUMNS or g.inputs < pixel:
            zero(target, taps * pixel * COLUMNS)
        for k in range(outputs):
            for c in range(g.inputs):
                source = shift(w, group * g.w_g + (k0 + k) * g.w_k + c * g.w_c)
                place = shift(target, c // 2 * 2 * COLUMNS + 2 * k + c % 2)
                for tap in range(taps):
                    d, r, s = tap // (g.rows * g.columns), tap // g.columns % g.rows, tap % g.columns
                    store(place, tap * pixel * COLUMNS, load(source, d * g.w_d + r * g.w_r + s * g.w_s))


THREAD_ELEMENTS = 1 << 14  # that pay for another thread


@lru_cache(maxsize=256)
def _bind_pack(shape: tuple[int, ...], strides: tuple[int, ...], threads: int) -> Bound:
    fields = Weights._make((0, *shape, *(stride // 2 for stride in strides), 0))
    return Bound(pack_range, np.float32(0), threads, fields, (0, len(fields) - 1))


def _pack(c: Correlation, w: np.ndarray, scratch: Workspace | None, threads: int) -> np.ndarray:
    """Weights (groups, K/groups, C/groups, D, R, S) packed for ``c``, in the workspace or an array of their own."""
    size = blocking.plan(c, 1).packed
    packed = scratch.take(size, w.dtype) if scratch else aligned_empty(size, w.dtype)
    if size:
        threads = min(threads, max(1, w.size // THREAD_ELEMENTS))
        _bind_pack(w.shape, w.strides, threads)(address(w), address(packed))
    return packed


forward, grad_input, pack_forward, pack_grad_input = entry_points(_pack, forward_range, _prepare, native16=True)


def unavailable() -> str | None:
    """Why this CPU does not run these kernels, or None."""
    return None if FORM else "the CPU has neither AMX-BF16 nor bfloat16 products that beat float32's"
