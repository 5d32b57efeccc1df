"""Winograd convolution: tiles of m x m outputs from n x n inputs by n² multiplications a channel, n = m + r - 1.

    Y = A' [ sum over c of (G w[k, c] G') ⊙ (B' x[c] B) ] A                      matrices: ``winograd_matrices``

The n² elements ξ of a transformed tile never meet each other, so the sum over c is n² matrix products. Loops of
``forward_range``, outermost first; threads share the items (buffers: ``winograd_blocking``):

    item: a block of tiles, a group, a part of its output channels
        for each vector of input channels                                        n = 6
            pack a row of tiles' input: padded, channels-last        x -> slab   +-----------+
            transform every tile                                   slab -> V[ξ]  | m = 4 |   |   tiles overlap
        for ``k_group`` tile columns of output channels at a time                |       |   |   by r - 1 inputs
            for each ξ, for each column                                          +-------+   |
                M[ξ][k][tile] = sum over c of V[ξ][tile][c] U[ξ][c][k]           |           |
            for each vector of output channels                                   +-----------+
                transform every tile, bias, relu                   M[ξ] -> rows
                transpose to the output's order; other epilogues   rows -> out

With stride 2 the input has 4 phases, every second row and column, each a convolution of stride 1 by every second tap
(``parts``); one more loop around the transform puts them into V one after another, as 4 times the channels. Where a
phase has one tap less, its product at ∞ is zero and left out: F(2x2) of 3x3 kernels has 25 products for 36, of 4x4
kernels, where no phase lacks one, F(2x2) 36 for 64 and F(4x4) 100 for 256. Entering takes 4 times as long as for a
stride of 1, so less than that is gained: 1.1 to 1.3 and 1.3 to 1.9. Other strides: ``winograd_phases``. An input
gradient of any stride is one correlation for each phase of its output, here where each has as many taps as F has.

A volume's depth has no tiles: an output plane sums over the slices under the depth's taps as it sums over channels, so
they are ``parts`` of V, too (volumes with stride 2 have none). Slices of padding that no plane of a block needs are
neither transformed nor multiplied. Each slice is transformed for every plane that sees it.

    out[d] = sum over t of F(x[d * stride + t * dilation - pad], w[:, :, t])

With weights that serve one call, U of a tile column is made chunk by chunk just before its products (``multiply_once``;
when, and why, in ``winograd_blocking``). Groups of few outputs have products of their own (``winograd_few``).

Lanes are channels throughout, so a transform is the same few additions on every lane. An output that is channels-last
is written by its transform directly. Blocks are ranges of cells, not rectangles, so all threads get equal shares.

Taps d apart see every d-th input: outputs p, p + d, p + 2 d... are a convolution without dilation, and there are d such
phases an axis. A *cell* is one tile of each column phase, side by side: m d columns without gaps, so that rows are
packed and written in one piece whatever the dilation, and phases are only strides of the transforms. A row of tiles is
of one row phase. So without dilation a cell is a tile; with d = 2 a tile takes as long as without.

    d = 2, m = 2     columns  0 1 0 1 | 0 1 0 1      two cells of phases 0 and 1, 4 columns each

Fast because F(4x4, 3x3) needs a quarter of direct's multiplications, at the rate of direct's register tiles: 1000 to
1450 GFLOP/s of direct convolution on two threads where direct's peak is 470. The transforms take 10% of the time with
512 channels, 35% with 64; of that, half waits for memory. Loses to direct with few channels on either side, and where
the transformed weights, 4 times larger, serve few tiles: at batch 1 F(2x2) wins on 7x7 maps, F(3x3) on 14x14.

Non-finite inputs: an output whose window holds an infinity or NaN is not finite; others of its tile may
become NaN.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any

import numpy as np

from ..winograd_matrices import VARIANTS, Variant
from .blocking import LINE_BYTES, Correlation
from .bound import Call, Prepare
from .compile import jit
from .epilogue import RELU, RELU6, add_run, write_channels, write_positions
from .gemm import gather, transpose, zero
from .panels import aim, multiply_panel, pass_length
from .phases import EntryPoints, entry_points
from .simd import columns, copy, load, pointer, shift, store, unpack, vector_lanes
from .tiles import TILE_ROWS
from .winograd_blocking import few_outputs, plan
from .winograd_few import list_lines, multiply_few
from .winograd_layout import FIELDS, Layout, prepare
from .winograd_transforms import transform
from .winograd_weights import Taps, gather_taps, pack, panel_at, strides


@jit(inline=True)
def fill_row(g, lanes, table, source, inside, target, first_column, columns, channels):
    """One slab row of a vector of channels from padded column ``first_column``; zeros where not ``inside``."""
    if not inside or channels < lanes:
        zero(target, columns * lanes)
    if not inside:
        return
    segments = pointer(g.segments, table)
    for i in range(0, 4 * g.segment_count, 4):
        start, first, step = load(segments, i), load(segments, i + 1), load(segments, i + 2)
        begin = max(start, first_column)
        n = min(start + load(segments, i + 3), first_column + columns) - begin
        if n <= 0:
            continue
        to = shift(target, (begin - first_column) * lanes)
        if first < 0:
            zero(to, n * lanes)
        else:
            place = shift(source, (first + (begin - start) * step) * g.x_w)
            gather(lanes, place, g.x_c, step * g.x_w, to, lanes, channels, n)


@jit(inline=True)
def cell_run(g, f, end):
    """The cells from flat number ``f`` that lie in one row of one strip: plane, tile row, cell column, count."""
    plane = g.tile_rows * g.cell_columns
    n, rest = f // plane, f % plane
    strip = rest // (g.tile_rows * g.strip)
    rest -= strip * g.tile_rows * g.strip
    width = min(g.strip, g.cell_columns - strip * g.strip)
    return n, rest // width, strip * g.strip + rest % width, min(width - rest % width, end - f)


@jit(inline=True)
def transform_block(g, kind, table, tiles, slab, v, start, end, group, tap_first, tap_end):
    """V of the cells ``start`` to ``end`` under some taps of a volume's kernel, and how many tiles the cells are.

    Slab, V and ``tiles`` are addresses.
    """
    lanes, size = vector_lanes(kind), g.itemsize
    source_h, rows, x = pointer(g.source_h, table), pointer(g.rows_of_tiles, table), pointer(g.x, kind)
    t = pointer(tiles, table)
    step = g.slab_columns * lanes  # from one slab row to the next
    input_h, input_w = g.stride_h * g.tile_h, g.stride_w * g.cell_w  # from one row of tiles, one cell, to the next
    store(t, 2, input_w * lanes)
    store(t, 3, g.stride_h * step)
    store(t, 5, lanes)
    store(t, 6, g.v_xi)
    store(t, 14, g.dilation_w * g.stride_w * lanes)
    done, vectors = 0, -(-g.group_inputs // lanes)
    for vector in range(tap_first * vectors, tap_end * vectors):
        tap, c = vector // vectors, vector % vectors * lanes
        channels = min(lanes, g.group_inputs - c)
        f, first, last_n, last_h, last_j, filled, done = start, 0, -1, -1, -1, 0, 0
        while f < end:
            n, i, j, count = cell_run(g, f, end)
            first_h = load(rows, 3 * i)
            if last_n == n and last_h + input_h == first_h and last_j == j:  # below the last run: rows in common
                first += input_h
            else:
                first, filled = 0, 0
            last_n, last_h, last_j = n, first_h, j
            f += count
            columns = count * input_w + g.overlap_w
            plane = shift(pointer(g.plane_table, table), g.plane_numbers * n)
            d = load(plane, 2 + tap)
            place = load(plane, 0) * g.x_n + d * g.x_d + (group * g.group_inputs + c) * g.x_c
            while filled < first + input_h + g.overlap_h:  # just before use: the rows are still in L1
                h = load(source_h, first_h + filled - first)
                target = shift(pointer(slab, kind), filled * step)
                filled += 1
                source, inside = shift(x, place + h * g.x_h), h >= 0 and d >= 0
                fill_row(g, lanes, table, source, inside, target, j * input_w, columns, channels)
            width = min(count * g.cell_w, g.out_width - j * g.cell_w)
            for phase in range(min(g.dilation_w, width)):
                count = -(-(width - phase) // g.cell_w)
                store(t, 0, count)
                for part in range(g.stride_h * g.stride_w):
                    row, column = first + part // g.stride_w, phase + part % g.stride_w
                    store(t, 1, slab + (row * step + column * lanes) * size)
                    block = ((tap + part) * g.part + c) // lanes  # there are several taps, or phases, or neither
                    store(t, 4, v + (done * lanes + block * g.v_block) * size)
                    transform(g.transform_input, tiles, kind)
                done += count
    return done


@jit(inline=True)
def write_block(g, kind, table, tiles, m, rows, turned, vectors, runs, start, end, channel, channels):
    """The output of cells ``start`` to ``end`` for one vector of channels, whose products begin at ``m``."""
    lanes, size = vector_lanes(kind), g.itemsize
    out, t, rows_of_tiles = pointer(g.out, kind), pointer(tiles, table), pointer(g.rows_of_tiles, table)
    fused = g.residual == 0 and (g.activation == 0 or g.activation == RELU or g.activation == RELU6)
    bias, limits = pointer(vectors, kind), pointer(vectors + 2 * lanes * size, kind)
    zero(bias, lanes)
    store(limits, 0, -np.inf)
    store(limits, 1, np.inf)
    if fused and g.bias != 0:
        copy(shift(pointer(g.bias, kind), channel), bias, channels)
    if fused and g.activation != 0:
        store(limits, 0, 0.0)
        if g.activation == RELU6:
            store(limits, 1, 6.0)
    in_place = fused and g.out_c == 1 and channels == lanes
    position = g.out_w if in_place else lanes
    out_h, residual_h = g.dilation_h * g.out_h, g.dilation_h * g.residual_h
    store(t, 2, lanes)
    store(t, 3, g.m_xi)
    store(t, 5, g.cell_w * position)
    store(t, 7, g.dilation_w * position)
    store(t, 10, g.tile_w)
    store(t, 11, vectors + lanes * size)
    store(t, 12, vectors)
    store(t, 13, vectors + 2 * lanes * size)
    f, done = start, 0
    while f < end:
        n, i, j, count = cell_run(g, f, end)
        f += count
        first, height = load(rows_of_tiles, 3 * i + 1), load(rows_of_tiles, 3 * i + 2)
        width = min(count * g.cell_w, g.out_width - j * g.cell_w)
        plane = shift(pointer(g.plane_table, table), g.plane_numbers * n)
        image, depth = load(plane, 0), load(plane, 1)
        y = image * g.out_n + depth * g.out_d + first * g.out_h + j * g.cell_w * g.out_w
        store(t, 6, out_h if in_place else width * lanes)
        store(t, 8, height)
        for phase in range(min(g.dilation_w, width)):
            count = -(-(width - phase) // g.cell_w)
            store(t, 0, count)
            store(t, 1, m + done * lanes * size)
            store(t, 4, (g.out + (y + channel) * size if in_place else rows) + phase * position * size)
            store(t, 9, -(-(width - phase) // g.dilation_w))
            done += count
            transform(g.transform_output, tiles, kind)
        if in_place:
            continue
        source, positions = pointer(rows, kind), height * width
        if fused and g.out_w == 1 and out_h == width:
            transpose(lanes, source, lanes, shift(out, y + channel * g.out_c), g.out_c, positions, channels)
        elif fused and g.out_w == 1:
            for r in range(height):
                to = shift(out, y + r * out_h + channel * g.out_c)
                transpose(lanes, shift(source, r * width * lanes), lanes, to, g.out_c, width, channels)
        else:
            z = image * g.residual_n + depth * g.residual_d + first * g.residual_h + j * g.cell_w * g.residual_w
            run_count = 0
            for r in range(height):
                a, b = y + r * out_h, z + r * residual_h
                run_count = add_run(runs, run_count, r * width, width, a, g.out_w, b, g.residual_w)
            if fused and g.out_c == 1:
                copy_rows(g, kind, source, lanes, runs, run_count, channel, channels)
            elif g.out_c == 1:
                write_positions(g, kind, source, lanes, runs, run_count, channel, channels, g.bias, g.activation)
            else:
                ld = -(-positions // lanes) * lanes
                transpose(lanes, source, lanes, pointer(turned, kind), ld, ld, lanes)
                has_bias, activation = (0, 0) if fused else (g.bias, g.activation)
                write_channels(
                    g, kind, pointer(turned, kind), ld, runs, run_count, channel, channels, has_bias, activation
                )


@jit(inline=True)
def copy_rows(g, kind, source, lds, runs, run_count, channel, channels):
    """Finished positions to a channels-last output."""
    for i in range(0, 4 * run_count, 4):
        for p in range(load(runs, i + 1)):
            row = shift(source, (load(runs, i) + p) * lds)
            copy(row, shift(pointer(g.out, kind), load(runs, i + 2) + p * g.out_w + channel), channels)


@jit(inline=True)
def output_pieces(g, table, steps, start, end, channel, channels):
    """What products can ask for of the outputs of cells ``start`` to ``end``: address, pieces, length of each, jump.

    A piece is a channel's rows, or where channels follow each other a line for every other step of a tile: then few
    products ask for anything but weights (a line a step: 128 channels of 14x14 5% slower, one in four: weights from
    memory 2 to 15% slower). Stores to lines that are not in L2 wait for L3 one by one (64 channels of 224x224: 4% of
    the call). The same for the next block's inputs gained 2% there and cost as much elsewhere.
    """
    n, i, j, _ = cell_run(g, start, end)
    first = load(pointer(g.rows_of_tiles, table), 3 * i + 1)
    rows = -(-(end - start + j) // (g.cell_columns * g.dilation_h)) * g.tile_h * g.dilation_h
    rows = min(g.out_height - first, rows)
    plane = shift(pointer(g.plane_table, table), g.plane_numbers * n)
    y = load(plane, 0) * g.out_n + load(plane, 1) * g.out_d + first * g.out_h
    place = g.out + (y + channel * g.out_c) * g.itemsize
    length, lines = rows * g.out_h, steps * (LINE_BYTES // g.itemsize) // 2
    if g.out_c == length:
        return place, -(-channels * length // lines), lines, lines
    return place, channels, length, g.out_c


@jit(inline=True)
def aim_at_input(g, table, far, steps, start, end, group, part, parts):
    """Let the next products prefetch the images under the cells ``start`` to ``end``: one of ``parts`` of the channels.

    Where x lies in memory: 2 to 3% less time for 64 channels of 224x224 and 16 images of 56x56 on Zen 3, and 1% more
    where it was in the caches.
    """
    n, i, j, _ = cell_run(g, start, end)
    rows = -(-(end - start + j) // g.cell_columns) * g.stride_h * g.tile_h * g.dilation_h
    h = max(0, load(pointer(g.source_h, table), load(pointer(g.rows_of_tiles, table), 3 * i) + g.overlap_h))
    c = g.group_inputs * part // parts
    place = g.x + (n * g.x_n + h * g.x_h + (group * g.group_inputs + c) * g.x_c) * g.itemsize
    aim(far, place, g.group_inputs * (part + 1) // parts - c, rows * g.x_h, g.x_c, steps, g.itemsize)


@jit(inline=True)
def multiply_packed(g, kind, table, v, m, far, count, start, end, group, k, k_end, k_first, k_last, tap_first, tap_end):
    """M of ``count`` tiles for the tile columns ``k`` to ``k_end`` of a part from ``k_first`` to ``k_last``."""
    lanes, size, weights = vector_lanes(kind), g.itemsize, pointer(g.weights, kind)
    begin, whole = tap_first * g.part, (tap_end - tap_first) * g.stride_h * g.stride_w * g.part
    width, steps = g.width, pass_length(whole, lanes)
    total = g.planes * g.tile_rows * g.cell_columns
    if g.fetch_input != 0 and g.x_w == 1 and end < total:
        done, parts = (k - k_first) // g.k_group, -(-(k_last - k_first) // g.k_group)
        aim_at_input(g, table, far, steps, end, min(total, 2 * end - start), group, done, parts)
    first, panels = group * g.group_outputs + k * width, g.products * (k_end - k)
    outputs = min((k_end - k) * width, g.group_outputs - k * width)
    calls = -(-count // TILE_ROWS) * -(-whole // steps)  # of a panel
    place, pieces, length, jump = output_pieces(g, table, steps, start, end, first, outputs)
    aiming = max(0, panels - 1 - pieces // calls) if g.out_w == 1 else panels
    for panel in range(panels):
        xi, kb = panel // (k_end - k), k + panel % (k_end - k)
        if panel == aiming:
            aim(far, place, pieces, length, jump, steps, g.itemsize)
        b = shift(weights, panel_at(g, group, kb, xi, width))
        c = pointer(m + (xi * g.m_xi + (kb - k) * 2 * g.m_block) * size, kind)
        after = panel_at(g, group, kb + 1, xi, width)
        if kb + 1 == k_end:
            after = panel_at(g, group, k, xi + 1, width)
            if xi + 1 == g.products:
                after = panel_at(g, group, k_end % g.k_blocks, 0, width)
        runs, depth = 1, whole
        if g.lacking != 0:  # phases whose last tap is none are zero at infinity
            down = 1 if xi // g.points_w == g.points_h - 1 else g.stride_h
            last = xi % g.points_w == g.points_w - 1
            runs, depth = (down, g.part) if last else (1, down * g.stride_w * g.part)
        for run in range(runs):
            skipped = begin + run * g.stride_w * g.part
            a = pointer(v + (xi * g.v_xi + skipped // lanes * g.v_block) * size, kind)
            ahead = shift(b, (skipped + g.stride_w * g.part) * width)
            if run + 1 == runs:
                ahead = shift(weights, after + begin * width)
            multiply_panel(count, depth, a, g.v_block, shift(b, skipped * width), c, g.m_block, run, ahead, far, kind)


@jit(inline=True)
def make_weights(g, kind, tiles, u, far, group, k, first, tap, c):
    """U of a tile column of outputs for ``chunk`` input channels from ``c`` on, under a volume's ``tap``; how many they
    are. Taps of all slices are gathered with those of the ``first``."""
    lanes, size, t = vector_lanes(kind), g.itemsize, pointer(tiles, g.w_k)
    width, w, gathered = g.width, pointer(g.weights, kind), u + g.products * g.u_xi * g.itemsize
    outputs, channels = min(width, g.group_outputs - k * width), min(g.chunk, g.group_inputs - c)
    slices = g.depth // g.part
    step = slices * g.taps * lanes
    store(t, 0, channels)
    store(t, 2, step)
    store(t, 5, width)
    store(t, 6, g.u_xi)
    for i in range(0, width, lanes):
        place = gathered + (i // lanes * g.group_inputs + c) * step * size if slices > 1 else gathered
        if tap == first:
            source = shift(w, group * g.w_g + (k * width + i) * g.w_k + c * g.w_c)
            gather_taps(g, slices, g.taps, lanes, source, pointer(place, kind), min(lanes, outputs - i), channels)
        store(t, 1, place + tap * g.taps * lanes * size)
        store(t, 4, u + i * size)
        transform(g.transform_weights, tiles, kind)
    if tap == first and c + channels < g.group_inputs:  # ask for the next, an output channel with each product
        place = g.weights + (group * g.w_g + k * width * g.w_k + (c + channels) * g.w_c) * size
        aim(far, place, outputs, channels * slices * g.taps, g.w_k, channels, size)
    return channels


@jit(inline=True)
def multiply_once(g, kind, table, tiles, v, m, u, far, count, group, k, tap_first, tap_end):
    """M of one tile column of outputs, whose U is made for ``chunk`` input channels at a time and used at once."""
    lanes, size, chunks = vector_lanes(kind), g.itemsize, -(-g.group_inputs // g.chunk)
    for number in range((tap_end - tap_first) * chunks):
        tap, c = tap_first + number // chunks, number % chunks * g.chunk
        channels = make_weights(g, kind, tiles, u, far, group, k, tap_first, tap, c)
        for xi in range(g.products):
            a = pointer(v + (xi * g.v_xi + (tap * g.part + c) // lanes * g.v_block) * size, kind)
            b, to = pointer(u + xi * g.u_xi * size, kind), pointer(m + xi * g.m_xi * size, kind)
            multiply_panel(count, channels, a, g.v_block, b, to, g.m_block, number, shift(b, g.u_xi), far, kind)


@jit(inline=True)
def few_packed(g, kind, table, v, m, far, count, start, end, group, tap_first, tap_end):
    """``multiply_packed`` for groups with few outputs."""
    begin, whole = tap_first * g.part, (tap_end - tap_first) * g.part
    list_lines(g, table, far, whole, start, end, group)
    a = pointer(v + begin // vector_lanes(kind) * g.v_block * g.itemsize, kind)
    b = shift(pointer(g.weights, kind), panel_at(g, group, 0, 0, g.width) + begin * g.width)
    multiply_few(g, whole, count, a, b, panel_at(g, 0, 0, 1, g.width), pointer(m, kind), 0, far, kind)


@jit(inline=True)
def few_once(g, kind, table, tiles, v, m, u, far, count, start, end, group, k, tap_first, tap_end):
    """``multiply_once`` for groups with few outputs."""
    lanes, chunks = vector_lanes(kind), -(-g.group_inputs // g.chunk)
    for number in range((tap_end - tap_first) * chunks):
        tap, c = tap_first + number // chunks, number % chunks * g.chunk
        channels = make_weights(g, kind, tiles, u, far, group, k, tap_first, tap, c)
        list_lines(g, table, far, channels, start, end, group)
        a = pointer(v + (tap * g.part + c) // lanes * g.v_block * g.itemsize, kind)
        multiply_few(g, channels, count, a, pointer(u, kind), g.u_xi, pointer(m, kind), number, far, kind)


@jit(inline=True)
def items_of_share(few, t, threads, table, kind):
    """Share ``t`` of ``threads`` of a correlation; where ``few`` is None, products of groups with few outputs are not
    compiled at all (Numba leaves branches on None out), else no others."""
    g = Layout(*unpack(table, FIELDS))
    width, lanes = g.width, vector_lanes(kind)
    slab = g.scratch + t * g.thread_bytes
    v = slab + g.slab_bytes
    m = v + g.v_bytes
    rows = m + g.m_bytes
    turned = rows + g.rows_bytes
    vectors = turned + g.turned_bytes
    tiles = vectors + g.vectors_bytes
    u = tiles + g.integers_bytes
    far, runs = pointer(tiles + 32 * 8, table), pointer(tiles + 64 * 8, table)
    items = g.blocks * g.groups * g.k_parts
    for item in range(items * t // threads, items * (t + 1) // threads):
        rest, part = item // g.k_parts, item % g.k_parts
        block, group = rest // g.groups, rest % g.groups
        numbers = shift(pointer(g.plane_table, table), g.planes * g.plane_numbers + 3 * block)
        start, tap_first, tap_end, end = load(numbers, 0), load(numbers, 1), load(numbers, 2), load(numbers, 3)
        count = transform_block(g, kind, table, tiles, slab, v, start, end, group, tap_first, tap_end)
        k_first, k_last = g.k_blocks * part // g.k_parts, g.k_blocks * (part + 1) // g.k_parts
        for k in range(k_first, k_last, g.k_group):
            k_end = min(k_last, k + g.k_group)
            aim(far, slab, 0, 0, 0, 1, 1)
            if few is None:
                if g.chunk != 0:
                    multiply_once(g, kind, table, tiles, v, m, u, far, count, group, k, tap_first, tap_end)
                else:
                    multiply_packed(
                        g, kind, table, v, m, far, count, start, end, group, k, k_end, k_first, k_last, tap_first,
                        tap_end,
                    )  # fmt: skip
            elif g.chunk != 0:
                few_once(g, kind, table, tiles, v, m, u, far, count, start, end, group, k, tap_first, tap_end)
            else:
                few_packed(g, kind, table, v, m, far, count, start, end, group, tap_first, tap_end)
            first = group * g.group_outputs + k * width
            outputs = min((k_end - k) * width, g.group_outputs - k * width)
            for i in range(0, outputs, lanes):
                source, channels = m + i // lanes * g.m_block * g.itemsize, min(lanes, outputs - i)
                write_block(g, kind, table, tiles, source, rows, turned, vectors, runs, start, end, first + i, channels)


@jit
def forward_range(t, threads, table, chunk, kind):
    """Share ``t`` of ``threads``."""
    items_of_share(None, t, threads, table, kind)


@jit
def few_range(t, threads, table, chunk, kind):
    """The same of groups with few outputs; a kernel of its own, as others' first call takes long enough."""
    items_of_share(1, t, threads, table, kind)


@lru_cache(maxsize=256)
def _made(f: Variant, c: Correlation, itemsize: int, threads: int, taps: Taps) -> Prepare | None:
    chunk = plan(f, c, itemsize, c.useful_threads(threads), columns(itemsize), True).chunk
    return partial(prepare, f, taps=taps) if chunk else None


def _unpacked(f: Variant, c: Correlation, x: np.ndarray, w: np.ndarray, threads: int) -> Prepare | None:
    """``prepare`` for weights of one call, which blocks transform as they need them; None where that is too often."""
    return _made(f, c, w.itemsize, threads, strides(w))


def _variant(f: Variant) -> EntryPoints:
    def by_outputs(c: Correlation, call: Call) -> Any:
        return few_range if few_outputs(f, c, call.itemsize, columns(call.itemsize)) else forward_range

    return entry_points(partial(pack, f), by_outputs, partial(prepare, f), unpacked=partial(_unpacked, f))


(
    f2x2_3x3,
    f3x3_3x3,
    f4x4_3x3,
    f5x5_3x3,
    f6x6_3x3,
    f2x2_5x5,
    f4x4_5x5,
    f4x4_2x2,
    s2_f2x2_3x3,
    s2_f2x2_4x4,
    s2_f4x4_4x4,
    s2_f2x2_5x5,
    f2_3,
    f4_3,
    f6_3,
    s2_f4_3,
) = map(_variant, VARIANTS)
