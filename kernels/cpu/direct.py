"""Direct convolution: register tiles over input rows in place, no im2col matrix.

    out[n, k, p] = sum over c, r  w[k, c, r] * x[n, c, p * stride + r * dilation - padding]

Loops of ``forward``, outermost first; threads share the items:

    item: a block of output positions (images x rows x columns of one depth), one slab, a part of its output channels
        pack the input rows under the block: padded, channels-last slab, in L2          x -> slab [row][column][c]
        for each tile column of output channels (weights packed [k block][taps][c][COLUMNS])
            tiles: 14 output positions x 32 channels, or 6 x 64 (AVX-512, float32), bias, residual,
                   activation and store from registers where the output is channels-last      slab, w -> out
            else sums [position][k] transposed to the output's order, then finished      sums -> out

Tile columns are taken in pairs: tiles of 6 x 4 vectors load less than those of 14 x 2 and keep all addresses in
registers, and 6 rows of x may lie whole sets of the L1 cache apart (``CROWDED_BYTES``), 14 may not. Every 6 positions
the weights of a pair pass through L1, so they should come from L2: a window whose weights do not fit there is summed
some taps at a time (``blocking.PAIR_SHARE``). Meanwhile the weights that come next are asked for, in the end the next
pair's or the next item's channels-last input. What that gained, one thread, channels last, versions in turn: 1x1 of 64
to 256 channels on 56x56 16%, 512 to 128 on 28x28 18%, 1024 to 256 on 14x14 12%, 2048 to 512 on 7x7 5%; 3x3 at stride 2
of 128 channels on 56x56 7%, 512 on 38x38 8%; 64 channels on 56x56, dilation 2, 8%.

Weights that are not packed yet, those of a plain call, are packed a tile column at a time by the thread that multiplies
it, where there are at most two blocks of positions: they then lie in its L2 and pass through memory once (512 to 512
channels of 7 x 7, two threads: 765 us packed beforehand, 1180 packed first by all threads, 1050 now). Packing takes
0.19 ns a weight and thread, of which reading from L3 is hidden: neither asking for rows of w 8 lines ahead nor letting
the tiles ask for the next column's gained anything.

1x1 kernels read channels-last input where it lies, without a slab (24 to 144 channels, 56 x 56, one thread: 446 us with
slab, sums and finishing apart, 192 now, 103 of them products). Not so in tiles of 14 rows where positions lie whole
sets of the L1 cache apart. The bias is added last everywhere, so that the same bits come out whichever way they take.

A tile row's operand is one output position's input, read in place: for each kernel row the taps and channels of the
slab lie in one piece when the dilation is 1 (first layers with 1 to 4 channels too), else tap by tap. The whole
reduction stays in registers; a sum of n products rounds at most n times. Groups with few output channels, depthwise
above all, multiply lane by lane (see ``blocking.Slabs``).

``grad_input`` is one such correlation of dy for each phase of the stride. With padding that is not zeros the gradient
of the padded input is computed first and folded back. ``grad_weight`` packs dy the same way and exchanges roles: tile
rows are (tap, c) pairs, the reduction runs over positions:

    dw[k, c, r] = sum over n, p  x[n, c, p * stride + r * dilation - padding] * dy[n, k, p]

Up to 1,024 positions are summed in registers, those sums are added in memory: of N positions a sum rounds at most
1024 + N / 1024 times, not N.

Where the last output channels fill one vector only, tiles are one vector wide. Slab positions lie a line apart where
a tile's rows would otherwise share one or two sets of the L1 cache; the taps of a kernel row then do not touch.

Loses to ``planar`` where much is turned for few products: 1x1 kernels on large NCHW planes, 1 to 4 input channels.
"""

from __future__ import annotations

import itertools
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np

from ..geometry import ConvGeometry
from . import blocking
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
from .blocking import CROWDED_BYTES, LINE_BYTES, PAIR_SHARE, Block, Correlation, DirectWeight, Slabs
from .bound import Prepare
from .caches import caches
from .compile import jit
from .epilogue import add_run, write_channels, write_positions
from .gemm import gather, multiply, multiply_finished, multiply_lanes, multiply_wide, transpose, zero
from .half import in_float32
from .phases import entry_points
from .simd import (
    RELU6,
    VECTOR_BYTES,
    columns,
    keep_whole,
    load,
    pointer,
    prefetch_read,
    prefetch_write,
    shift,
    store,
    unpack,
    vector_lanes,
)
from .slab import pack_row
from .threads import run_shares
from .tiles import PAIRS, TILE_ROWS
from .weights import column_table, pack_column, pack_columns, unpack_columns


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
    out_height: int
    stride_w: int
    out_width: int


_FIELDS = len(Layout._fields)


@jit(inline=True)
def pack_slab(table, kind, slab, index, n0, images, od, oh0, rows, ow0, columns, first, last):
    """Rows ``first`` to ``last`` of the slab's (image, plane, row) list, for the block at (n0, od, oh0, ow0)."""
    keep_whole()
    g = Layout(*unpack(table, _FIELDS))  # handed over, it would be copied to the stack in each call
    lanes = vector_lanes(kind)
    source_d, source_h = pointer(g.source_d, table), pointer(g.source_h, table)
    segments, x = pointer(g.segments, table), pointer(g.x, kind)
    used = (rows - 1) * g.stride_h + g.slab_rows - (g.rows - 1) * g.stride_h
    wide = (columns - 1) * g.stride_w + g.slab_columns - (g.columns - 1) * g.stride_w
    for j in range(first, last):
        image, rest = j // (g.kernel_d * g.slab_rows), j % (g.kernel_d * g.slab_rows)
        plane, row = rest // g.slab_rows, rest % g.slab_rows
        if image >= images or row >= used:
            continue
        d = load(source_d, od * g.stride_d + plane * g.dilation_d)
        h = load(source_h, oh0 * g.stride_h + row)
        source = shift(x, (n0 + image) * g.x_n + d * g.x_d + h * g.x_h)
        target = shift(slab, j * g.slab_columns * g.pixel)
        pack_row(g, lanes, segments, source, d >= 0 and h >= 0, target, index, ow0 * g.stride_w, wide)


@jit(inline=True)
def place(g, item):
    """Image, depth, row, column, slab and part of the output channels at which an item begins."""
    rest, part = item // g.k_parts, item % g.k_parts
    rest, index = rest // g.slabs, rest % g.slabs
    column_blocks, row_blocks = -(-g.out_width // g.columns), -(-g.out_height // g.rows)
    rest, ow0 = rest // column_blocks, rest % column_blocks * g.columns
    rest, oh0 = rest // row_blocks, rest % row_blocks * g.rows
    return rest // g.out_depth * g.images, rest % g.out_depth, oh0, ow0, index, part


@jit(inline=True)
def input_of(table, kind, item):
    """The input under an item as ``(offset, length, step, count)``: pieces of NCHW memory, one a channel or an image.

    Of several depths only the last, which no item before has read.
    """
    keep_whole()
    g = Layout(*unpack(table, _FIELDS))
    n0, od, oh0, ow0, index, _ = place(g, item)
    d = load(pointer(g.source_d, table), od * g.stride_d + (g.kernel_d - 1) * g.dilation_d)
    source_h, low = pointer(g.source_h, table), oh0 * g.stride_h
    high = low + (min(g.rows, g.out_height - oh0) - g.rows) * g.stride_h + g.slab_rows - 1
    while low < high and load(source_h, low) < 0:
        low += 1
    while low < high and load(source_h, high) < 0:
        high -= 1
    h = load(source_h, low)
    offset = n0 * g.x_n + d * g.x_d + h * g.x_h + ow0 * g.stride_w + index * g.group_inputs * g.x_c
    if d < 0 or h < 0 or g.x_w != 1:
        return 0, 0, 0, 0
    if g.images > 1:
        return offset, g.group_inputs * g.x_c, g.x_n, min(g.images, g.batch - n0)
    return offset, (load(source_h, high) - h) * g.x_h + g.slab_columns, g.x_c, g.group_inputs


@jit(inline=True)
def input_after(table, kind, item, last_item):
    """Address and elements of the channels-last input under the item after this one, where that is one piece."""
    g = Layout(*unpack(table, _FIELDS))
    x = pointer(g.x, kind)
    if item + 1 >= last_item or g.x_c != 1 or g.columns < g.out_width or g.tap_count == 0:
        return x, 0
    n0, od, oh0, _, _, _ = place(g, item + 1)
    d = load(pointer(g.source_d, table), od * g.stride_d + (g.kernel_d - 1) * g.dilation_d)
    source_h, low = pointer(g.source_h, table), oh0 * g.stride_h
    high = low + (min(g.rows, g.out_height - oh0) - g.rows) * g.stride_h + g.slab_rows - 1
    first, last = load(source_h, low), load(source_h, high)
    if first < 0:
        first = 0
    if d < 0 or last < first:
        return x, 0
    return shift(x, n0 * g.x_n + d * g.x_d + first * g.x_h), (last + 1 - first) * g.x_h


@jit(inline=True)
def multiply_fetching(table, kind, item, slab, offsets, b, sums, runs, channel, channels, positions, bias, activation):
    """The products of a block's only tile column, while its output and the input of ``item`` are asked for (-1: none).

    The few products that a slab then serves do not hide that both lie beyond the L2: 512 channels in 32 groups, 14x14,
    batch 16, one thread: 6.6 ms became 5.3. Where a slab serves more columns it gained nothing (-2 to 2%).
    """
    keep_whole()
    g = Layout(*unpack(table, _FIELDS))
    lanes = vector_lanes(kind)
    width, line = 2 * lanes, lanes * LINE_BYTES // VECTOR_BYTES
    x, out, taps = pointer(g.x, kind), pointer(g.out, kind), pointer(g.taps, table)
    ahead, length, step, count = input_of(table, kind, item) if item >= 0 else (0, 0, 0, 0)
    share = -(-count * -(-length // line) // -(-positions // TILE_ROWS))
    piece, start, run = 0, 0, 0
    for i in range(0, positions, TILE_ROWS):
        height = min(TILE_ROWS, positions - i)
        while i >= load(runs, run) + load(runs, run + 1):
            run += 4
        # the line of the tile's last output: the tile before has asked for that of the first
        y = shift(out, load(runs, run + 2) + i + height - 1 - load(runs, run) + channel * g.out_c)
        for k in range(channels):
            prefetch_write(shift(y, k * g.out_c))
        for _ in range(share):
            if piece < count:
                prefetch_read(shift(x, ahead + piece * step + start))
                start += line
                if start >= length:
                    piece, start = piece + 1, 0
        multiply_finished(
            height, channels, g.tap_count, taps, g.tap_length, g.tap_step, slab, shift(offsets, i), b,
            shift(sums, i * width), width, bias, bias, -1, activation,
        )  # fmt: skip


@jit(inline=True)
def offsets_in_place(table, n, od, oh, ow0, columns, offsets):
    """Where in x the positions of a row of output lie that a 1x1 kernel reads."""
    g = Layout(*unpack(table, _FIELDS))
    d, h = load(pointer(g.source_d, table), od), load(pointer(g.source_h, table), oh)
    source_w = pointer(g.source_w, table)
    for q in range(columns):
        store(offsets, q, n * g.x_n + d * g.x_d + h * g.x_h + load(source_w, ow0 + q) * g.x_w)


@jit
def forward_range(t, threads, table, chunk, kind):
    """Share ``t`` of ``threads`` of a correlation."""
    g = Layout(*unpack(table, _FIELDS))
    lanes = vector_lanes(kind)
    width = 2 * lanes
    memory = g.scratch + t * g.thread_bytes
    slab, memory = pointer(memory, kind), memory + g.slab_bytes
    sums, memory = pointer(memory, kind), memory + g.sums_bytes
    turned, memory = pointer(memory, kind), memory + g.turned_bytes
    offsets, memory = pointer(memory, table), memory + g.offsets_bytes
    runs, own = pointer(memory, table), pointer(memory + g.runs_bytes, kind)
    weights, taps, x = pointer(g.weights, kind), pointer(g.taps, table), pointer(g.x, kind)
    out, residual, bias = pointer(g.out, kind), pointer(g.residual, kind), pointer(g.bias, kind)
    zeros = shift(sums, g.sums_bytes // VECTOR_BYTES * lanes - 2 * width)  # behind what the tiles store
    zero(zeros, 2 * width)
    block_weights = g.tap_count * g.tap_length * width
    pixel_bytes = g.source_step * g.x_w * (VECTOR_BYTES // lanes)
    in_place = g.single and g.x_c == 1 and (g.taps_at_once > 0 or pixel_bytes == 0 or pixel_bytes % CROWDED_BYTES != 0)
    # Tiles add the bias; they apply activations that only limit, unless a residual comes first that is not theirs to
    # add; they write to the output itself where its channels lie together.
    tiled = g.tap_count > 0 and not g.by_lane
    limited = tiled and g.activation <= RELU6
    one_pass = g.taps_at_once == 0 or g.taps_at_once >= g.tap_count
    added = one_pass and g.residual_c == 1 and g.residual_w >= 0
    straight = limited and g.out_c == 1 and (g.residual == 0 or added)
    activation = g.activation if limited and (g.residual == 0 or straight) else 0
    image_blocks, row_blocks = -(-g.batch // g.images), -(-g.out_height // g.rows)
    column_blocks = -(-g.out_width // g.columns)
    fetching = g.k_blocks == 1 and g.out_w == 1
    items = image_blocks * g.out_depth * row_blocks * column_blocks * g.slabs * g.k_parts
    last_item = items * (t + 1) // threads
    for item in range(items * t // threads, last_item):
        n0, od, oh0, ow0, index, part = place(g, item)
        images, rows = min(g.images, g.batch - n0), min(g.rows, g.out_height - oh0)
        columns = min(g.columns, g.out_width - ow0)
        a = shift(x, index * g.group_inputs) if in_place else slab
        if not in_place:
            slab_rows = g.images * g.kernel_d * g.slab_rows
            pack_slab(table, kind, slab, index, n0, images, od, oh0, rows, ow0, columns, 0, slab_rows)

        positions, run_count = 0, 0
        for i in range(images):
            for r in range(rows):
                row = (i * g.kernel_d * g.slab_rows + r * g.stride_h) * g.slab_columns
                if in_place:
                    offsets_in_place(table, n0 + i, od, oh0 + r, ow0, columns, shift(offsets, positions))
                else:
                    for q in range(columns):
                        store(offsets, positions + q, (row + q * g.stride_w) * g.pixel)
                y = (n0 + i) * g.out_n + od * g.out_d + (oh0 + r) * g.out_h + ow0 * g.out_w
                z = (n0 + i) * g.residual_n + od * g.residual_d + (oh0 + r) * g.residual_h + ow0 * g.residual_w
                run_count = add_run(runs, run_count, positions, columns, y, g.out_w, z, g.residual_w)
                positions += columns
        for i in range(positions, positions + TILE_ROWS):
            store(offsets, i, load(offsets, positions - 1))  # a tile beyond the end repeats the last position

        # which columns have sums of several passes must not depend on the threads: then parts begin with a pair
        unit = 1 if one_pass else 2
        units = -(-g.k_blocks // unit)
        k_block = units * part // g.k_parts * unit
        last_block = min(g.k_blocks, units * (part + 1) // g.k_parts * unit)
        while k_block < last_block:
            count = 2 if g.taps_at_once > 0 and last_block - k_block > 1 else 1
            wide, channel = count * width, index * g.slab_outputs + k_block * width
            channels = min(wide, g.slab_outputs - k_block * width, g.groups * g.group_outputs - channel)
            b = shift(weights, (index * g.k_blocks + k_block) * block_weights)
            if g.packing:
                b = own
                for j in range(count):
                    to = shift(own, j * block_weights)
                    pack_column(g.packing, kind, weights, index * g.k_blocks + k_block + j, to)
            k_block += count
            far, far_apart = shift(weights, (index * g.k_blocks + k_block) * block_weights), block_weights
            far_count = min(g.taps_at_once, g.tap_count) * g.tap_length * width
            if k_block == last_block:
                far, far_count = input_after(table, kind, item, last_item)
                far_apart = far_count = far_count // 2
            start = shift(bias, channel) if g.bias else zeros
            # PAIRS is a constant: where tiles are never wide, they are not compiled either
            if straight:
                for i in range(0, 4 * run_count, 4):
                    y = shift(out, load(runs, i + 2) + channel)
                    z = shift(residual, load(runs, i + 3) + channel * g.residual_c)
                    partial = shift(sums, load(runs, i) * wide)
                    places, ldr = shift(offsets, load(runs, i)), g.residual_w if g.residual else -1
                    if PAIRS and count == 2:
                        multiply_wide(
                            load(runs, i + 1), channels, g.tap_count, taps, g.tap_length, g.tap_step, a, places, b,
                            block_weights, g.taps_at_once, partial, zeros, far, far_apart, far_count, y, g.out_w, start,
                            z, ldr, activation,
                        )  # fmt: skip
                    else:
                        multiply_finished(
                            load(runs, i + 1), channels, g.tap_count, taps, g.tap_length, g.tap_step, a, places, b, y,
                            g.out_w, start, z, ldr, activation,
                        )  # fmt: skip
                continue
            if g.tap_count == 0:  # no tap of the kernel reaches here
                zero(sums, positions * wide)
            elif g.by_lane:
                multiply_lanes(positions, g.tap_count, taps, g.tap_length, g.tap_step, a, offsets, b, sums, width, 0)
            elif fetching:
                after = item + 1 if item + 1 < last_item else -1
                multiply_fetching(
                    table, kind, after, a, offsets, b, sums, runs, channel, channels, positions, start, activation
                )
            elif PAIRS and count == 2:
                multiply_wide(
                    positions, channels, g.tap_count, taps, g.tap_length, g.tap_step, a, offsets, b, block_weights,
                    g.taps_at_once, sums, zeros, far, far_apart, far_count, sums, wide, start, start, -1, activation,
                )  # fmt: skip
            else:
                multiply_finished(
                    positions, channels, g.tap_count, taps, g.tap_length, g.tap_step, a, offsets, b, sums, width,
                    start, start, -1, activation,
                )  # fmt: skip
            bias_left, activation_left = 0 if tiled else g.bias, g.activation - activation
            if g.out_c == 1:
                write_positions(g, kind, sums, wide, runs, run_count, channel, channels, bias_left, activation_left)
            elif bias_left == 0 and activation_left == 0 and g.residual == 0 and run_count == 1 and g.out_w == 1:
                y = shift(out, load(runs, 2) + channel * g.out_c)
                transpose(lanes, sums, wide, y, g.out_c, positions, channels)
            else:
                ld = -(-positions // lanes) * lanes
                transpose(lanes, sums, wide, turned, ld, ld, -(-channels // lanes) * lanes)
                write_channels(g, kind, turned, ld, runs, run_count, channel, channels, bias_left, activation_left)


def _fixed(
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
        depth.kernel, depth.stride, depth.dilation, depth.out, height.stride, height.out, width.stride, width.out,
    )  # fmt: skip
    return fixed, (depth.source, height.source, width.source, segments, rows, packing)


def _taps(c: Correlation, block: Block, pixel: int) -> np.ndarray:
    """Slab offsets of every tap, in the order of the packed weights: (depth, row, column)."""
    _, h, w = c.axes
    d, r, s = np.ogrid[: c.kernel[0], : c.kernel[1], : c.kernel[2]]
    return ((d * block.slab_rows + r * h.dilation) * block.slab_columns + s * w.dilation) * pixel


@lru_cache(maxsize=256)
def _prepare(
    c: Correlation, itemsize: int, threads: int, w: tuple[tuple[int, ...], tuple[int, ...]] | None = None
) -> tuple[tuple[int, ...], tuple[Any, ...]]:
    """The plan of one of blocking's cached correlations, which compare by identity. ``w``: shape and strides of weights
    that are not packed."""
    plan = blocking.direct_forward(c, itemsize, threads, columns(itemsize), w is not None)
    taps, length = _taps(c, plan.block, plan.slabs.pixel), c.group_inputs
    touching = plan.slabs.by_lane or plan.slabs.pixel == length
    if c.axes[2].dilation == 1 and c.taps and touching:  # the taps of a kernel row are one piece
        taps, length = taps[:, :, 0], length * c.axes[2].kernel
    step = columns(itemsize) if plan.slabs.by_lane else 1
    packing = column_table(*w, np.dtype(f"f{itemsize}"), columns(itemsize)) if w else ()
    pair = 2 * length * columns(itemsize) * itemsize  # bytes of a piece of the window, two tile columns
    most = caches().l2 // PAIR_SHARE // pair if PAIRS and plan.slabs.blocks > 1 and not plan.slabs.by_lane else 0
    at_once = blocking.even(taps.size, most) if most else 0
    return _fixed(c, plan.slabs, plan.block, plan.scratch, taps.ravel(), length, step, plan.k_parts, at_once, packing)


@lru_cache(maxsize=256)
def _own(
    c: Correlation, itemsize: int, threads: int, shape: tuple[int, ...], strides: tuple[int, ...]
) -> Prepare | None:
    plan = blocking.direct_forward(c, itemsize, c.useful_threads(threads), columns(itemsize), True)
    able = not plan.packed and column_table(shape, strides, np.dtype(f"f{itemsize}"), columns(itemsize))
    return partial(_prepare, w=(shape, strides)) if able else None


def _unpacked(c: Correlation, x: np.ndarray, w: np.ndarray, threads: int) -> Prepare | None:
    """``_prepare`` for weights that the threads pack as they need them; None where that would be too often, or where
    they do not lie in the order of their axes."""
    return _own(c, w.itemsize, threads, w.shape, w.strides)


def _pack(c: Correlation, w: np.ndarray, scratch: Workspace | None, threads: int) -> np.ndarray:
    """Weights (groups, K/groups, C/groups, D, R, S) packed for ``c``, in the workspace or an array of their own."""
    width = columns(w.itemsize)
    slabs = blocking.slabs(c, w.itemsize, width)
    size = slabs.count * slabs.blocks * c.taps * c.group_inputs * width
    packed = scratch.take(size, w.dtype) if scratch else aligned_empty(size, w.dtype)
    if size:
        pack_columns(w, packed, slabs.by_lane, width, threads)
    return packed


forward, grad_input, pack_forward, pack_grad_input = entry_points(_pack, forward_range, _prepare, unpacked=_unpacked)


# ------------------------------------------------------------------------------------------- weight gradient


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
    g, h = Layout(*unpack(table, _FIELDS)), Chunk(*unpack(chunk, _CHUNK_FIELDS))
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
    g, h = Layout(*unpack(table, _FIELDS)), Chunk(*unpack(chunk, _CHUNK_FIELDS))
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
    plan = blocking.direct_weight(c, itemsize, columns(itemsize))
    by_lane = plan.slabs.by_lane
    taps = _taps(c, plan.chunk, plan.slabs.pixel).reshape(-1, 1)
    rows = (taps + np.arange(c.group_inputs) * (columns(itemsize) if by_lane else 1)).ravel()
    rows = np.concatenate((rows, np.full(TILE_ROWS, rows[-1])))  # the last tile's spare rows repeat a valid one
    return plan, *_fixed(c, plan.slabs, plan.chunk, (plan.segments_bytes,), rows, 0, 0, 1, 0)


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
