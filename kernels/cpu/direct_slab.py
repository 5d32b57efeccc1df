"""What direct convolution's kernels share: their table, and the slab of input rows that their tiles read."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .arrays import address
from .blocking import Correlation
from .compile import jit
from .direct_blocking import Block, Slabs
from .gemm import gather
from .simd import keep_whole, load, pointer, shift, unpack, vector_lanes
from .slab import pack_row


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
    sums_bytes: int
    turned_bytes: int
    offsets_bytes: int
    runs_bytes: int
    weights_bytes: int
    packing: int  # how to pack weights that are not (a Layout of ``weights``), else 0
    source_d: int
    source_h: int
    source_w: int
    segments: int  # the same, as progressions
    segment_count: int
    single: int  # whether the kernel is 1x1 and reads no padding: tiles may read x in place
    source_step: int  # of those, input columns from one output to the next
    taps: int  # slab offsets of the pieces of a window
    tap_count: int
    tap_length: int
    tap_step: int
    batch: int
    groups: int
    group_inputs: int
    group_outputs: int
    by_lane: int
    slabs: int
    pixel: int
    slab_outputs: int
    k_blocks: int
    k_parts: int
    taps_at_once: int  # by tiles of two tile columns, 0: tiles are never that wide
    images: int
    rows: int
    columns: int
    slab_rows: int
    slab_columns: int
    kernel_d: int
    stride_d: int
    dilation_d: int
    out_depth: int
    stride_h: int
    dilation_h: int
    out_height: int
    stride_w: int
    out_width: int


FIELDS = len(Layout._fields)


@jit(inline=True)
def pack_slab(table, kind, slab, index, n0, images, od, oh0, rows, ow0, columns, first, last):
    """Rows ``first`` to ``last`` of the slab's (image, plane, row) list, for the block at (n0, od, oh0, ow0)."""
    keep_whole()
    g = Layout(*unpack(table, FIELDS))  # handed over, it would be copied to the stack in each call
    lanes = vector_lanes(kind)
    source_d, source_h = pointer(g.source_d, table), pointer(g.source_h, table)
    segments, x = pointer(g.segments, table), pointer(g.x, kind)
    used = (rows - 1) * g.stride_h + g.slab_rows - (g.rows - 1) * g.stride_h
    wide = (columns - 1) * g.stride_w + g.slab_columns - (g.columns - 1) * g.stride_w
    if g.single and rows * wide > 0:
        h, w = load(source_h, oh0), load(pointer(g.source_w, table), ow0)
        down = load(source_h, oh0 + rows - 1) - h
        if g.source_step == 1 and down == rows - 1 and (rows == 1 or g.x_h == wide * g.x_w):
            # whole rows, one piece of each channel: rows of 7 or 14 pixels fill no squares, 49 or 98 pixels do
            for image in range(images):
                place = (n0 + image) * g.x_n + load(source_d, od) * g.x_d + h * g.x_h + w * g.x_w
                source = shift(x, place + index * g.group_inputs * g.x_c)
                target = shift(slab, image * g.slab_rows * g.slab_columns * g.pixel)
                gather(lanes, source, g.x_c, g.x_w, target, g.pixel, g.group_inputs, rows * wide)
            return
    for j in range(first, last):
        image, rest = j // (g.kernel_d * g.slab_rows), j % (g.kernel_d * g.slab_rows)
        plane, row = rest // g.slab_rows, rest % g.slab_rows
        if image >= images or row >= used or row % g.dilation_h > (rows - 1) * g.stride_h:
            continue  # no tap reads it: 33 x 33 at dilation 36 took four times as long
        d = load(source_d, od * g.stride_d + plane * g.dilation_d)
        h = load(source_h, oh0 * g.stride_h + row)
        source = shift(x, (n0 + image) * g.x_n + d * g.x_d + h * g.x_h)
        target = shift(slab, j * g.slab_columns * g.pixel)
        pack_row(g, lanes, segments, source, d >= 0 and h >= 0, target, index, ow0 * g.stride_w, wide)


def fixed_part(
    c: Correlation, slabs: Slabs, block: Block, scratch: tuple[int, ...], rows: np.ndarray, tap_length: int,
    tap_step: int, k_parts: int, taps_at_once: int, packing: tuple[np.ndarray, ...] = (),
) -> tuple[tuple[int, ...], tuple[Any, ...]]:  # fmt: skip
    """The constant part of a Layout, and the arrays whose addresses are in it."""
    depth, height, width = c.axes
    rows = np.ascontiguousarray(rows, np.int64)
    segments, segment_count = c.segments
    single = c.taps == 1 and not slabs.by_lane and all((axis.source >= 0).all() for axis in c.axes)
    step = int(width.source[1] - width.source[0]) if single and width.out > 1 else 0
    fixed = (
        sum(scratch), *(scratch + (0,) * 6)[:6], address(packing[0]) if packing else 0,
        address(depth.source), address(height.source), address(width.source), address(segments), segment_count,
        int(single), step,
        address(rows), rows.size, tap_length, tap_step,
        c.batch, c.groups, c.group_inputs, c.group_outputs,
        int(slabs.by_lane), slabs.count, slabs.pixel, slabs.outputs, slabs.blocks, k_parts, taps_at_once,
        block.images, block.rows, block.columns, block.slab_rows, block.slab_columns,
        depth.kernel, depth.stride, depth.dilation, depth.out,
        height.stride, height.dilation, height.out, width.stride, width.out,
    )  # fmt: skip
    return fixed, (depth.source, height.source, width.source, segments, rows, packing)


def tap_offsets(c: Correlation, block: Block, pixel: int) -> np.ndarray:
    """Slab offsets of every tap, in the order of the packed weights: (depth, row, column)."""
    _, h, w = c.axes
    d, r, s = np.ogrid[: c.kernel[0], : c.kernel[1], : c.kernel[2]]
    return ((d * block.slab_rows + r * h.dilation) * block.slab_columns + s * w.dilation) * pixel
