"""Where the lines of the input lie that a depthwise convolution reads: tables of addresses (see ``depthwise``)."""

from __future__ import annotations

from typing import NamedTuple

from .compile import jit
from .depthwise_plan import ABSENT
from .simd import copy, keep_whole, load, pointer, shift, store, unpack
from .window import copy_even


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
    zeros_bytes: int
    sums_bytes: int
    table_bytes: int
    weights_bytes: int
    places: int  # in w, of the weights of an output channel, where they are not packed; else 0
    w_g: int
    w_k: int
    itemsize: int
    source_d: int  # input position of each padded position, -1 for a zero
    source_h: int
    source_w: int
    passes: int  # lanes of pixels: rows of (tile, segments, how many, weights, distance of the second run)
    pass_count: int
    channel_passes: int
    channel_pass_count: int
    row_segments: int  # rows of x in place: rows of (index in the table, offset, position)
    slab_segments: int
    channel_segments: int
    row_first: int  # the position of padded column 0, and how many there are
    row_limit: int  # 0: rows cannot be read in place
    row_end: int  # the position after those that are read
    in_depth: int
    in_height: int
    far: int  # x and out do not stay in the caches
    batch: int
    groups: int
    group_inputs: int
    group_outputs: int
    taps: int  # weights of an output channel
    channel_weights: int  # where the weights for lanes of channels begin
    rows: int  # of a band
    channel_rows: int
    kernel_d: int
    stride_d: int
    dilation_d: int
    out_depth: int
    stride_h: int
    span_h: int
    places_h: int  # of a phase in the table
    out_height: int
    stride_w: int
    places_w: int
    channel_places: int
    width: int  # padded
    inner: int  # where a phase's columns show neighbours: rows of (first place, last, input column of the first)
    out_width: int


FIELD_COUNT = len(Layout._fields)


@jit(inline=True)
def pack_edge(table, source, target, phase, first, last):
    """Places ``first`` to ``last`` of a phase of a row, looked up one by one."""
    keep_whole()
    g = Layout(*unpack(table, FIELD_COUNT))
    for i in range(first, last):
        column = i * g.stride_w + phase
        at = load(pointer(g.source_w, 0), column) if column < g.width else -1
        store(target, i, load(source, at * g.x_w) if at >= 0 else 0.0)


@jit(inline=True)
def pack_line(table, source, target):
    """A row of x, padded, the columns of each phase of the stride together."""
    keep_whole()
    g = Layout(*unpack(table, FIELD_COUNT))
    for phase in range(g.stride_w):
        t, inner = shift(target, phase * g.places_w), shift(pointer(g.inner, 0), 3 * phase)
        first, last = load(inner, 0), load(inner, 1)
        pack_edge(table, source, t, phase, 0, first)
        pack_edge(table, source, t, phase, last, g.places_w)
        start, t, n = shift(source, load(inner, 2) * g.x_w), shift(t, first), last - first
        if g.x_w == 1 and g.stride_w == 1:
            copy(start, t, n)
        elif g.x_w == 1 and g.stride_w == 2:
            copy_even(start, t, n)
        else:
            for i in range(n):
                store(t, i, load(start, i * g.stride_w * g.x_w))


@jit(inline=True)
def find_rows(table, offsets, od, oh0, rows):
    """Where the rows under a band lie in a group of an image, in bytes, ABSENT for padding: ``[channel][plane][phase of
    the row stride][row]``, then the least and the greatest."""
    keep_whole()
    g = Layout(*unpack(table, FIELD_COUNT))
    at, lowest, highest = 0, -ABSENT - 1, ABSENT
    source_d, source_h = pointer(g.source_d, 0), pointer(g.source_h, 0)
    used = (rows - 1) * g.stride_h + g.span_h
    for c in range(g.group_inputs):
        for kd in range(g.kernel_d):
            d = load(source_d, od * g.stride_d + kd * g.dilation_d)
            for phase in range(g.stride_h):
                for i in range(g.places_h):
                    row = i * g.stride_h + phase
                    h = load(source_h, oh0 * g.stride_h + row) if row < used else -1
                    where = (c * g.x_c + d * g.x_d + h * g.x_h) * g.itemsize
                    if d >= 0 and h >= 0:
                        lowest, highest = min(lowest, where), max(highest, where)
                    else:
                        where = ABSENT
                    store(offsets, at, where)
                    at += 1
    store(offsets, at, lowest)
    store(offsets, at + 1, highest)
    return at


@jit(inline=True)
def rows_in_memory(table):
    """The addresses of the first and the last row beside which as much may be read as rows in place want."""
    keep_whole()
    g = Layout(*unpack(table, FIELD_COUNT))
    first = last = g.x
    for size, pitch in (
        (g.batch, g.x_n), (g.groups * g.group_inputs, g.x_c), (g.in_depth, g.x_d), (g.in_height, g.x_h),
    ):  # fmt: skip
        first += min(0, (size - 1) * pitch) * g.itemsize
        last += max(0, (size - 1) * pitch) * g.itemsize
    return first - min(0, g.row_first) * g.itemsize, last - (g.row_end - g.row_limit) * g.itemsize


@jit(inline=True)
def all_in_memory(offsets, count, start, first, last):
    """Whether all rows of a group that begins at ``start`` lie between two."""
    lowest, highest = start + load(offsets, count), start + load(offsets, count + 1)
    return load(offsets, count + 1) == ABSENT or (lowest >= first and highest <= last)


@jit(inline=True)
def find_lines(table, lines, offsets, count, start, zeros, slab, first, last, kind):
    """The addresses of rows in place, or of a copy where what is read beside the row may not be: beside the rows from
    ``first`` to ``last`` it may."""
    keep_whole()
    if all_in_memory(offsets, count, start, first, last):
        for i in range(count):
            where = load(offsets, i)
            store(lines, i, zeros if where == ABSENT else start + where)
        return
    g = Layout(*unpack(table, FIELD_COUNT))
    for i in range(count):
        where = load(offsets, i)
        if where != ABSENT and not first <= start + where <= last:
            slab -= min(0, g.row_first) * g.itemsize
            copy(pointer(start + where, kind), pointer(slab, kind), g.row_limit)
            store(lines, i, slab)
            slab += g.row_end * g.itemsize
        else:
            store(lines, i, zeros if where == ABSENT else start + where)


@jit(inline=True)
def pack_lines(table, lines, offsets, count, start, zeros, slab, kind):
    """Rows packed into the slab, and their addresses there."""
    keep_whole()
    g = Layout(*unpack(table, FIELD_COUNT))
    for i in range(count):
        where = load(offsets, i)
        if where == ABSENT:
            store(lines, i, zeros)
        else:
            pack_line(table, pointer(start + where, kind), pointer(slab, kind))
            store(lines, i, slab)
            slab += g.stride_w * g.places_w * g.itemsize


@jit(inline=True)
def find_pixels(table, lines, zeros, n, od, oh0, rows):
    """The addresses of the pixels under a band: ``[plane][row][phase of the column stride][column]``."""
    keep_whole()
    g = Layout(*unpack(table, FIELD_COUNT))
    at = 0
    source_d, source_h, source_w = pointer(g.source_d, 0), pointer(g.source_h, 0), pointer(g.source_w, 0)
    slots = (g.channel_rows - 1) * g.stride_h + g.span_h
    used = (rows - 1) * g.stride_h + g.span_h
    for kd in range(g.kernel_d):
        d = load(source_d, od * g.stride_d + kd * g.dilation_d)
        for row in range(slots):
            h = load(source_h, oh0 * g.stride_h + row) if row < used else -1
            where = n * g.x_n + d * g.x_d + h * g.x_h
            for phase in range(g.stride_w):
                for i in range(g.channel_places):
                    column = i * g.stride_w + phase
                    w = load(source_w, column) if column < g.width else -1
                    inside = d >= 0 and h >= 0 and w >= 0
                    store(lines, at, g.x + (where + w * g.x_w) * g.itemsize if inside else zeros)
                    at += 1


@jit(inline=True)
def gather_taps(source, places, target, taps):
    """An output channel's weights in the order of its passes."""
    for i in range(taps):
        store(target, i, load(source, load(places, i)))
