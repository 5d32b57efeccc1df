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
some taps at a time (``direct_blocking.PAIR_SHARE``). Meanwhile the weights that come next are asked for, in the end the
next pair's or the next item's channels-last input. What that gained, one thread, channels last, versions in turn: 1x1
of 64 to 256 channels on 56x56 16%, 512 to 128 on 28x28 18%, 1024 to 256 on 14x14 12%, 2048 to 512 on 7x7 5%; 3x3 at
stride 2 of 128 channels on 56x56 7%, 512 on 38x38 8%; 64 channels on 56x56, dilation 2, 8%.

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
above all, multiply lane by lane (see ``direct_blocking.Slabs``).

``grad_input`` is one such correlation of dy for each phase of the stride. With padding that is not zeros the gradient
of the padded input is computed first and folded back. ``grad_weight``: see ``direct_weight``.

Where the last output channels fill one vector only, tiles are one vector wide. Slab positions lie a line apart where
a tile's rows would otherwise share one or two sets of the L1 cache; the taps of a kernel row then do not touch.

Loses to ``planar`` where much is turned for few products: 1x1 kernels on large NCHW planes, 1 to 4 input channels.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any

import numpy as np

from . import blocking, direct_blocking
from .arrays import (
    Workspace,
    aligned_empty,
)
from .blocking import LINE_BYTES, Correlation
from .bound import Prepare
from .caches import caches
from .compile import jit
from .direct_blocking import CROWDED_BYTES, PAIR_SHARE
from .direct_slab import FIELDS, Layout, fixed_part, pack_slab, tap_offsets
from .direct_weight import grad_weight as grad_weight
from .epilogue import add_run, write_channels, write_positions
from .gemm import (
    Ahead,
    Finish,
    Pair,
    Window,
    multiply_finished,
    multiply_lanes,
    multiply_wide,
    transpose,
    zero,
)
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
from .tiles import PAIRS, TILE_ROWS
from .weights import column_table, pack_column, pack_columns


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
    g = Layout(*unpack(table, FIELDS))
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
    """Address and elements of the input under the item after this one, where that is one piece: channels-last, or
    whole planes, of which a 1x1 kernel reads part after part; the first asks for all of them."""
    g = Layout(*unpack(table, FIELDS))
    x = pointer(g.x, kind)
    if item + 1 >= last_item or g.columns < g.out_width or g.tap_count == 0:
        return x, 0
    n0, od, oh0, _, index, part = place(g, item + 1)
    if g.x_c != 1 and g.single and oh0 + part == 0 and g.x_c == g.out_height * g.out_width and g.out_depth == 1:
        length = g.group_inputs * g.x_c
        if g.images > 1 and g.x_n == length:
            length *= min(g.images, g.batch - n0)
        return shift(x, n0 * g.x_n + index * g.group_inputs * g.x_c), length
    if g.x_c != 1:
        return x, 0
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
    g = Layout(*unpack(table, FIELDS))
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
        window, finish = Window(g.tap_count, taps, g.tap_length, g.tap_step), Finish(bias, bias, -1, activation)
        multiply_finished(height, channels, window, slab, shift(offsets, i), b, shift(sums, i * width), width, finish)


@jit(inline=True)
def list_positions(table, n0, od, oh0, ow0, images, rows, columns, in_place, offsets, runs):
    """Where the input of each of a block's output positions lies, and the runs of positions that lie together in out.

    ``in_place``: the one input that a 1x1 kernel reads, in x; else the first of a window, in the slab.
    """
    g = Layout(*unpack(table, FIELDS))
    source_d, source_h, source_w = pointer(g.source_d, table), pointer(g.source_h, table), pointer(g.source_w, table)
    positions, run_count = 0, 0
    for i in range(images):
        n = n0 + i
        for r in range(rows):
            if in_place:
                row = n * g.x_n + load(source_d, od) * g.x_d + load(source_h, oh0 + r) * g.x_h
                for q in range(columns):
                    store(offsets, positions + q, row + load(source_w, ow0 + q) * g.x_w)
            else:
                row = (i * g.kernel_d * g.slab_rows + r * g.stride_h) * g.slab_columns
                for q in range(columns):
                    store(offsets, positions + q, (row + q * g.stride_w) * g.pixel)
            y = n * g.out_n + od * g.out_d + (oh0 + r) * g.out_h + ow0 * g.out_w
            z = n * g.residual_n + od * g.residual_d + (oh0 + r) * g.residual_h + ow0 * g.residual_w
            run_count = add_run(runs, run_count, positions, columns, y, g.out_w, z, g.residual_w)
            positions += columns
    for i in range(positions, positions + TILE_ROWS):
        store(offsets, i, load(offsets, positions - 1))  # a tile beyond the end repeats the last position
    return run_count


@jit
def forward_range(t, threads, table, chunk, kind):
    """Share ``t`` of ``threads`` of a correlation."""
    g = Layout(*unpack(table, FIELDS))
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
    window = Window(g.tap_count, taps, g.tap_length, g.tap_step)
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

        positions = images * rows * columns
        run_count = list_positions(table, n0, od, oh0, ow0, images, rows, columns, in_place, offsets, runs)
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
            following, apart = shift(weights, (index * g.k_blocks + k_block) * block_weights), block_weights
            half = min(g.taps_at_once, g.tap_count) * g.tap_length * width
            if k_block == last_block:
                following, half = input_after(table, kind, item, last_item)
                apart = half = half // 2
            ahead = Ahead(following, apart, half)
            pair, start = Pair(b, block_weights, g.taps_at_once, zeros), shift(bias, channel) if g.bias else zeros
            # PAIRS is a constant: where tiles are never wide, they are not compiled either
            if straight:
                for i in range(0, 4 * run_count, 4):
                    n, first = load(runs, i + 1), load(runs, i)
                    y = shift(out, load(runs, i + 2) + channel)
                    z = shift(residual, load(runs, i + 3) + channel * g.residual_c)
                    places, ldr = shift(offsets, first), g.residual_w if g.residual else -1
                    finish = Finish(start, z, ldr, activation)
                    if PAIRS and count == 2:
                        between = shift(sums, first * wide)
                        multiply_wide(n, channels, window, a, places, pair, between, ahead, y, g.out_w, finish)
                    else:
                        multiply_finished(n, channels, window, a, places, b, y, g.out_w, finish)
                continue
            finish = Finish(start, start, -1, activation)
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
                multiply_wide(positions, channels, window, a, offsets, pair, sums, ahead, sums, wide, finish)
            else:
                multiply_finished(positions, channels, window, a, offsets, b, sums, width, finish)
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


@lru_cache(maxsize=256)
def _prepare(
    c: Correlation, itemsize: int, threads: int, w: tuple[tuple[int, ...], tuple[int, ...]] | None = None
) -> tuple[tuple[int, ...], tuple[Any, ...]]:
    """The plan of one of blocking's cached correlations, which compare by identity. ``w``: shape and strides of weights
    that are not packed."""
    plan = direct_blocking.forward(c, itemsize, threads, columns(itemsize), w is not None)
    taps, length = tap_offsets(c, plan.block, plan.slabs.pixel), c.group_inputs
    touching = plan.slabs.by_lane or plan.slabs.pixel == length
    if c.axes[2].dilation == 1 and c.taps and touching:  # the taps of a kernel row are one piece
        taps, length = taps[:, :, 0], length * c.axes[2].kernel
    step = columns(itemsize) if plan.slabs.by_lane else 1
    packing = column_table(*w, np.dtype(f"f{itemsize}"), columns(itemsize)) if w else ()
    pair = 2 * length * columns(itemsize) * itemsize  # bytes of a piece of the window, two tile columns
    most = caches().l2 // PAIR_SHARE // pair if PAIRS and plan.slabs.blocks > 1 and not plan.slabs.by_lane else 0
    at_once = blocking.even(taps.size, most) if most else 0
    return fixed_part(
        c, plan.slabs, plan.block, plan.scratch, taps.ravel(), length, step, plan.k_parts, at_once, packing
    )


@lru_cache(maxsize=256)
def _own(
    c: Correlation, itemsize: int, threads: int, shape: tuple[int, ...], strides: tuple[int, ...]
) -> Prepare | None:
    plan = direct_blocking.forward(c, itemsize, c.useful_threads(threads), columns(itemsize), True)
    able = not plan.packed and column_table(shape, strides, np.dtype(f"f{itemsize}"), columns(itemsize))
    return partial(_prepare, w=(shape, strides)) if able else None


def _unpacked(c: Correlation, x: np.ndarray, w: np.ndarray, threads: int) -> Prepare | None:
    """``_prepare`` for weights that the threads pack as they need them; None where that would be too often, or where
    they do not lie in the order of their axes."""
    return _own(c, w.itemsize, threads, w.shape, w.strides)


def _pack(c: Correlation, w: np.ndarray, scratch: Workspace | None, threads: int) -> np.ndarray:
    """Weights (groups, K/groups, C/groups, D, R, S) packed for ``c``, in the workspace or an array of their own."""
    width = columns(w.itemsize)
    slabs = direct_blocking.slabs(c, w.itemsize, width)
    size = slabs.count * slabs.blocks * c.taps * c.group_inputs * width
    packed = scratch.take(size, w.dtype) if scratch else aligned_empty(size, w.dtype)
    if size:
        pack_columns(w, packed, slabs.by_lane, width, threads)
    return packed


forward, grad_input, pack_forward, pack_grad_input = entry_points(_pack, forward_range, _prepare, unpacked=_unpacked)
