"""Depthwise and narrow grouped convolution: windows slide over lines of the input, no transposition, no im2col.

    out[n, k, p] = sum over c of k's group, r  w[k, c, r] * x[n, c, p * stride + r * dilation - padding]

Lanes are the pixels of a row (NCHW) or the channels of a pixel (channels-last), and tiles (see ``window``) hold a few
lines of them, so that a loaded vector serves every tap along the tile's lines:

                     lanes              lines of a tile      taps along the lines    segments: the other taps
    NCHW             pixels of a row    rows                 kernel rows             planes, kernel columns, channels
    channels-last    channels           pixels of a row      kernel columns          planes, kernel rows

    item: an image, a group (NCHW), a band of output rows; threads share the items
        the table of line addresses: rows (pixels) of x in place; zeros where padding shows none
        for each output channel of the group (or vector of channels)
            tiles: sums in registers, bias, relu, stores    x, w -> out
            with a residual or another activation: sums in L1, finished there

NCHW rows are read in place, and a little of what lies beside them (of the first and last rows of x, where that may not
be memory, a copy), where neighbouring outputs read neighbouring elements. Otherwise (a stride along the row,
padding that is not zeros, another layout) a band's rows are copied to a slab in L1, padded, the columns of each phase
of the stride together.

Squares of 3, 5 and 7 whose rows are read in place, without a residual, are left to ``depthwise_slide`` (AVX-512).

Weights of a plain call are not packed for lanes of pixels: a channel's are put in the order of its passes before its
tiles, by the thread that needs them (576 channels of 14x14, two threads: 73 to 45 us; one thread packed them for both
kinds of lanes).

Loses to direct where groups are wide: it computes one output channel at a time.
"""

from __future__ import annotations

import math
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np

from . import depthwise_plan, simd
from .arrays import KIND, Workspace, address, aligned_empty
from .blocking import Correlation, round_up
from .bound import Call, Prepare
from .compile import jit
from .depthwise_lines import (
    FIELD_COUNT,
    Layout,
    find_lines,
    find_pixels,
    find_rows,
    gather_taps,
    pack_lines,
    rows_in_memory,
)
from .depthwise_plan import (
    ABSENT,
    EVENS,
    Pass,
    in_place,
    neighbours,
    packed_sizes,
    places,
    plan,
    reached,
)
from .depthwise_slide import SLIDES, slides_down
from .epilogue import RELU6, activation_id, finish
from .gemm import zero
from .phases import entry_points
from .simd import load, pointer, shift, store, unpack, vector_lanes
from .threads import run_shares
from .window import HIGH, LINES, MERGES, NARROW, TALL, WIDE, WIDTH, channel_window, pixel_window
from .window_slide import AHEAD

_PASS = 5


@jit
def pixel_range(t, threads, table, chunk, kind):
    """Share ``t`` of ``threads`` of a correlation, lanes being pixels."""
    g = Layout(*unpack(table, FIELD_COUNT))
    lanes = vector_lanes(kind)
    memory = g.scratch + t * g.thread_bytes
    zeros, sums = memory, pointer(memory + g.zeros_bytes, kind)
    lines = pointer(memory + g.zeros_bytes + g.sums_bytes, 0)
    offsets = pointer(memory + g.zeros_bytes + g.sums_bytes + g.table_bytes // 2, 0)
    own = pointer(memory + g.zeros_bytes + g.sums_bytes + g.table_bytes, kind)
    slab = memory + g.zeros_bytes + g.sums_bytes + g.table_bytes + g.weights_bytes
    zero(pointer(zeros, kind), g.zeros_bytes // g.itemsize)
    beside = g.x_w == 1 and g.row_limit > 0
    segments, first, step, limit = pointer(g.slab_segments, 0), 0, 1, g.places_w
    if beside:
        segments, first, step, limit = pointer(g.row_segments, 0), g.row_first, g.stride_w, g.row_limit
    first_row, last_row, zero_row = ABSENT, -ABSENT - 1, zeros
    if MERGES and beside:
        first_row, last_row = rows_in_memory(table)
        zero_row -= min(0, g.row_first) * g.itemsize
    ahead = LINES * g.x_h if g.far and beside and step == g.stride_h == 1 else 0  # at stride 2: below
    evens = EVENS if beside and step == 2 else 0
    passes = pointer(g.passes, 0)
    quick = g.residual == 0 and g.activation <= RELU6 and g.out_w == 1
    ending = quick and (g.bias != 0 or g.activation != 0)
    whole = quick and g.pass_count == 1
    bands = -(-g.out_height // g.rows)
    items = g.batch * g.out_depth * bands * g.groups
    first_item, last_item = items * t // threads, items * (t + 1) // threads
    group, rest = first_item % g.groups - 1, first_item // g.groups
    found, line_count, oh0, od, rows, n = -1, 0, 0, 0, 0, 0
    for _ in range(first_item, last_item):
        group += 1
        if group == g.groups:
            group = 0
            rest += 1
        if found != rest:  # divisions only here: a group may be 50 ns of work
            n, oh0 = rest // bands // g.out_depth, rest % bands * g.rows
            od, rows = rest // bands % g.out_depth, min(g.rows, g.out_height - oh0)
            line_count = find_rows(table, offsets, od, oh0, rows)
            found = rest
        start = g.x + (n * g.x_n + group * g.group_inputs * g.x_c) * g.itemsize
        if beside:
            find_lines(table, lines, offsets, line_count, start, zero_row, slab, first_row, last_row, kind)
        else:
            pack_lines(table, lines, offsets, line_count, start, zeros, slab, kind)
        upcoming = 0
        if MERGES and evens and g.far:
            upcoming = start + (g.group_inputs * g.x_c + oh0 * g.stride_h * g.x_h) * g.itemsize
        for k in range(group * g.group_outputs, (group + 1) * g.group_outputs):
            weights = shift(pointer(g.weights, kind), k * g.taps)
            if g.places:
                source = shift(pointer(g.weights, kind), group * g.w_g + (k - group * g.group_outputs) * g.w_k)
                gather_taps(source, pointer(g.places, 0), own, g.taps)
                weights = own
            bias = shift(pointer(g.bias, kind), k) if g.bias else pointer(zeros, kind)
            i = 0
            while i < rows:
                tall = TALL > 0 and g.out_width <= lanes and rows - i > LINES
                most = TALL if tall else LINES
                height = min(most, rows - i)
                to = n * g.out_n + k * g.out_c + od * g.out_d + (oh0 + i) * g.out_h
                other = n * g.residual_n + k * g.residual_c + od * g.residual_d + (oh0 + i) * g.residual_h
                q = 0
                while q < g.out_width:
                    left = g.out_width - q
                    wide = WIDTH == 1 or left > lanes
                    form = WIDE if wide else HIGH if tall else NARROW
                    tile = WIDTH * lanes if wide else lanes
                    count = min(left, tile)
                    if whole and wide:  # a row of tiles at once, but for a last one that is narrow
                        spare = left % (WIDTH * lanes)
                        count = left - spare if WIDTH > 1 and 0 < spare <= lanes else left
                    for p in range(g.pass_count):
                        last = quick and p == g.pass_count - 1
                        fields = shift(passes, p * _PASS)
                        y = shift(pointer(g.out, kind), to + q) if last else sums
                        pixel_window(
                            load(fields, 0) + evens, form, load(fields, 2), shift(segments, 3 * load(fields, 1)),
                            shift(lines, i), load(fields, 4), first + q * step, limit, shift(weights, load(fields, 3)),
                            p > 0, sums, last and ending, bias, g.activation,
                            y, g.out_h if last else WIDTH * lanes, height if last else most,
                            count if last else tile, (2 * ahead if tall else ahead) if last else 0,
                            upcoming and upcoming + (i * g.stride_h * g.x_h + q * 4 * LINES) * g.itemsize,
                        )  # fmt: skip
                    if not quick:
                        for r in range(height):
                            y = shift(pointer(g.out, kind), to + r * g.out_h + q * g.out_w)
                            z = shift(pointer(g.residual, kind), other + r * g.residual_h + q * g.residual_w)
                            row = shift(sums, r * WIDTH * lanes)
                            finish(row, count, g.bias, bias, 0, g.residual, z, g.residual_w, g.activation, y, g.out_w)
                    q += count
                i += height


@jit
def channel_range(t, threads, table, chunk, kind):
    """Share ``t`` of ``threads`` of a correlation, lanes being channels."""
    g = Layout(*unpack(table, FIELD_COUNT))
    lanes = vector_lanes(kind)
    memory = g.scratch + t * g.thread_bytes
    zeros, sums = memory, pointer(memory + g.zeros_bytes, kind)
    biases = shift(sums, LINES * WIDTH * lanes)
    lines = pointer(memory + g.zeros_bytes + g.sums_bytes, 0)
    zero(pointer(zeros, kind), g.zeros_bytes // g.itemsize)
    passes, segments = pointer(g.channel_passes, 0), pointer(g.channel_segments, 0)
    quick = g.residual == 0 and g.activation <= RELU6 and g.out_c == 1 and g.group_outputs == 1
    ending = quick and (g.bias != 0 or g.activation != 0)
    whole = quick and g.channel_pass_count == 1
    bands, blocks = -(-g.out_height // g.channel_rows), -(-g.groups // (WIDTH * lanes))
    row_lines = g.stride_w * g.channel_places
    items = g.batch * g.out_depth * bands * blocks
    found = -1
    for item in range(items * t // threads, items * (t + 1) // threads):
        rest, block = item // blocks, item % blocks
        band, oh0 = rest, rest % bands * g.channel_rows
        n, od = rest // bands // g.out_depth, rest // bands % g.out_depth
        rows = min(g.channel_rows, g.out_height - oh0)
        if found != band:
            find_pixels(table, lines, zeros, n, od, oh0, rows)
            found = band
        c = block * WIDTH * lanes
        count = min(g.groups - c, WIDTH * lanes)
        for j in range(g.group_outputs):
            weights = pointer(g.weights, kind)
            weights = shift(weights, g.channel_weights + (j * blocks + block) * g.taps * WIDTH * lanes)
            bias = pointer(zeros, kind)
            if g.bias:
                bias = shift(pointer(g.bias, kind), c)
                if g.group_outputs > 1:
                    for lane in range(count):
                        store(biases, lane, load(pointer(g.bias, kind), (c + lane) * g.group_outputs + j))
                    bias = biases
            k, k_step = c * g.group_outputs + j, g.group_outputs
            for row in range(rows):
                q = 0
                while q < g.out_width:
                    height = g.out_width - q if whole else min(LINES, g.out_width - q)
                    to = n * g.out_n + k * g.out_c + od * g.out_d + (oh0 + row) * g.out_h + q * g.out_w
                    for p in range(g.channel_pass_count):
                        last = quick and p == g.channel_pass_count - 1
                        fields = shift(passes, p * _PASS)
                        y = shift(pointer(g.out, kind), to) if last else sums
                        channel_window(
                            load(fields, 0), 1, load(fields, 2), shift(segments, 3 * load(fields, 1)),
                            shift(lines, row * g.stride_h * row_lines + q), load(fields, 4), c, g.groups,
                            shift(weights, load(fields, 3) * WIDTH * lanes),
                            p > 0, sums, last and ending, bias, g.activation,
                            y, g.out_w if last else WIDTH * lanes, height if last else LINES,
                            count if last else WIDTH * lanes, 0, 0,
                        )  # fmt: skip
                    if not quick:
                        other = n * g.residual_n + k * g.residual_c + od * g.residual_d
                        other += (oh0 + row) * g.residual_h + q * g.residual_w
                        for i in range(height):
                            y = shift(pointer(g.out, kind), to + i * g.out_w)
                            z = shift(pointer(g.residual, kind), other + i * g.residual_w)
                            finish(
                                shift(sums, i * WIDTH * lanes), count, g.bias, bias, 1,
                                g.residual, z, g.residual_c * k_step, g.activation, y, g.out_c * k_step,
                            )  # fmt: skip
                    q += height


def _by_channel(c: Correlation, x: tuple[int, ...]) -> bool:
    """Whether lanes are channels, for x of these strides."""
    return x[1] == 1 and x[-1] != 1 and c.group_inputs == 1


def by_layout(c: Correlation, call: Call) -> Any:
    """The kernel for a call. Each is compiled when it is first needed: 1 to 2.5 s."""
    if _by_channel(c, call.x):
        return channel_range
    quick = not call.residual and activation_id(call.activation) <= RELU6
    if quick and call.x[-1] == call.out[-1] == 1 and slides_down(c, call.itemsize):
        return SLIDES[c.kernel[-1]]
    return pixel_range


def _pass_rows(found: list[Pass], phase: int, segments: int) -> np.ndarray:
    """Passes as rows of (tile, first segment, segments, first weight, lines to the second run)."""
    rows, weight = [], 0
    for i, p in enumerate(found):
        index = [a * phase + at for a, at in p.starts]
        rows.append((p.shape, i * segments, segments, weight, index[-1] - index[0]))
        weight += segments * len(p.taps)
    return np.array(rows, np.int64).reshape(-1, _PASS)


@lru_cache(maxsize=256)
def _prepare(
    c: Correlation, itemsize: int, threads: int, w_strides: tuple[int, ...] = ()
) -> tuple[tuple[int, ...], tuple[np.ndarray, ...]]:
    """The constant part of a Layout, and the arrays whose addresses are in it. ``w_strides``: of weights that are not
    packed, in elements."""
    cut = plan(c, itemsize, threads)
    depth, height, width = axes = reached(c)
    by_row, by_column = (depthwise_plan.passes(a.kernel, a.stride, a.dilation) for a in (height, width))
    places_h = places(height, round_up(cut.rows + AHEAD, LINES))
    places_w = places(width, width.out)
    channel_places = places_w + LINES - 1

    # Segments in the order of the packed weights; those of a pass share the place of its first run.
    by_position, in_slab, in_pixels = [], [], []
    for p in by_row:
        first = p.starts[0][0] * places_h + p.starts[0][1]
        for plane in range(c.group_inputs * depth.kernel):
            for s in range(width.kernel):
                line, tap = plane * height.stride * places_h + first, s * width.dilation
                by_position.append((line, tap, tap))
                place = tap // width.stride
                in_slab.append((line, tap % width.stride * places_w + place, place))
    row_lines = width.stride * channel_places
    slots = (cut.channel_rows - 1) * height.stride + height.span
    for p in by_column:
        first = p.starts[0][0] * channel_places + p.starts[0][1]
        in_pixels += [
            ((plane * slots + r * height.dilation) * row_lines + first, 0, 0)
            for plane in range(depth.kernel)
            for r in range(height.kernel)
        ]

    pass_rows = _pass_rows(by_row, places_h, c.group_inputs * depth.kernel * width.kernel)
    channel_pass_rows = _pass_rows(by_column, channel_places, depth.kernel * height.kernel)
    segments = [np.array(rows, np.int64) for rows in (by_position, in_slab, in_pixels)]
    first, source, count = neighbours(width.source)
    row_first, row_limit = in_place(height, width)
    elements = c.batch * (c.in_channels * math.prod(a.source.size for a in axes) + c.out_channels * math.prod(c.out))
    far = elements * itemsize > threads * depthwise_plan.NEAR_BYTES
    in_depth, in_height = (max(1, int(a.source.max(initial=0)) + 1) for a in (depth, height))
    phases = np.arange(width.stride)
    starts, ends = (np.clip(-((phases - n) // width.stride), 0, places_w) for n in (first, first + count))
    inner = np.stack((starts, ends, source + starts * width.stride + phases - first), axis=1).astype(np.int64)
    sources = tuple(np.ascontiguousarray(a.source, np.int64) for a in axes)
    w_places = _offsets(c, w_strides[2:]) if w_strides else np.empty(0, np.int64)
    fixed = (
        cut.thread_bytes, *cut.scratch[:4], address(w_places) if w_strides else 0, *(w_strides or (0, 0))[:2],
        itemsize, *(address(s) for s in sources),
        address(pass_rows), len(pass_rows), address(channel_pass_rows), len(channel_pass_rows),
        *(address(s) for s in segments), row_first, row_limit,
        depthwise_plan.read_beside(width, itemsize)[1], in_depth, in_height, far,
        c.batch, c.groups, c.group_inputs, c.group_outputs, cut.taps,
        packed_sizes(c, itemsize, WIDTH * simd.lanes(itemsize))[0],
        cut.rows, cut.channel_rows, depth.kernel, depth.stride, depth.dilation, depth.out,
        height.stride, height.span, places_h, height.out, width.stride, places_w, channel_places,
        width.source.size, address(inner), width.out,
    )  # fmt: skip
    return fixed, (*sources, pass_rows, channel_pass_rows, inner, w_places, *segments)


@lru_cache(maxsize=256)
def _own(w_strides: tuple[int, ...]) -> Prepare:
    return partial(_prepare, w_strides=w_strides)


def _unpacked(c: Correlation, x: np.ndarray, w: np.ndarray, threads: int) -> Prepare | None:
    """``_prepare`` for weights as they are, whose taps ``pixel_range`` puts in order; ``channel_range`` does not."""
    if _by_channel(c, tuple(stride // x.itemsize for stride in x.strides)) or not c.taps:
        return None
    return _own(tuple(stride // w.itemsize for stride in w.strides))


# ------------------------------------------------------------------------------------------------- weights


class PackLayout(NamedTuple):
    """What ``pack_range`` is told."""

    w: int
    w_g: int
    w_k: int
    offsets: int  # in w, of each weight of an output channel, lanes being pixels; then lanes being channels
    packed: int
    channel_weights: int  # 0: none
    groups: int
    group_outputs: int
    taps: int
    width: int


_PACK_FIELDS = len(PackLayout._fields)


@jit
def pack_range(t, threads, table, chunk, kind):
    """Share ``t`` of the output channels: ``[channel][tap]``, then ``[output of a group][block][tap][lane]``."""
    g = PackLayout(*unpack(table, _PACK_FIELDS))
    packed, offsets = pointer(g.packed, kind), pointer(g.offsets, 0)
    blocks = -(-g.groups // g.width)
    for k in range(g.groups * g.group_outputs * t // threads, g.groups * g.group_outputs * (t + 1) // threads):
        group, j = k // g.group_outputs, k % g.group_outputs
        source = shift(pointer(g.w, kind), group * g.w_g + j * g.w_k)
        target = shift(packed, k * g.taps)
        for i in range(g.taps):
            store(target, i, load(source, load(offsets, i)))
        if g.channel_weights:
            lane = group % g.width
            target = shift(packed, g.channel_weights + (j * blocks + group // g.width) * g.taps * g.width + lane)
            for i in range(g.taps):
                store(target, i * g.width, load(source, load(offsets, g.taps + i)))
            if group == g.groups - 1:
                for spare in range(1, g.width - lane):
                    for i in range(g.taps):
                        store(target, i * g.width + spare, 0.0)


@lru_cache(maxsize=256)
def _offsets(c: Correlation, strides: tuple[int, ...]) -> np.ndarray:
    """Where each packed weight of an output channel lies, for strides of (c, d, r, s)."""
    (kd, kr, ks), (in_step, d_step, r_step, s_step) = c.kernel, strides
    by_row, by_column = (depthwise_plan.passes(a.kernel, a.stride, a.dilation) for a in c.axes[1:])
    out = [
        i * in_step + d * d_step + s * s_step + r * r_step
        for p in by_row for i in range(c.group_inputs) for d in range(kd) for s in range(ks) for r in p.taps
    ]  # fmt: skip
    out += [
        d * d_step + r * r_step + s * s_step
        for p in by_column for d in range(kd) for r in range(kr) for s in p.taps
    ]  # fmt: skip
    return np.array(out, np.int64)


def _pack(c: Correlation, w: np.ndarray, scratch: Workspace | None, threads: int) -> np.ndarray:
    """Weights (groups, K/groups, C/groups, D, R, S) packed for ``c``, in the workspace or an array of their own."""
    width = WIDTH * simd.lanes(w.itemsize)
    by_pixel, by_channel = packed_sizes(c, w.itemsize, width)
    if not c.taps:  # not in the workspace, where only kernels may write: see ``repeat``
        return np.zeros(by_pixel + by_channel, w.dtype)
    packed = scratch.take(by_pixel + by_channel, w.dtype) if scratch else aligned_empty(by_pixel + by_channel, w.dtype)
    w_g, w_k, *steps = (stride // w.itemsize for stride in w.strides)
    offsets = _offsets(c, tuple(steps))
    fields = (
        address(w), w_g, w_k, address(offsets), address(packed), by_pixel if by_channel else 0,
        c.groups, c.group_outputs, c.taps * c.group_inputs, width,
    )  # fmt: skip
    table = np.array(PackLayout._make(fields), np.int64)
    run_shares(pack_range, 1, table, table, KIND[w.dtype])
    return packed


forward, grad_input, pack_forward, pack_grad_input = entry_points(_pack, by_layout, _prepare, unpacked=_unpacked)
