"""Depthwise convolution by strips that slide down the rows of a channel (see ``window_slide``).

    item: an image, a channel, a band of its output rows; threads share the items
        for each strip of columns: once down the rows of x, but those of padding    x, w -> out

Here a line of the table is an offset from the channel, so the table is made once for all of them. One kernel for each
size of window, compiled when it is first needed (3x3 0.9 s, 5x5 1.4, 7x7 2.0).
"""

from __future__ import annotations

from functools import lru_cache

from . import simd
from .blocking import Correlation
from .compile import jit
from .depthwise_lines import FIELD_COUNT, Layout, all_in_memory, find_lines, find_rows, gather_taps, rows_in_memory
from .depthwise_plan import ABSENT, in_place, reached
from .gemm import zero
from .simd import load, pointer, shift, unpack, vector_lanes
from .window_slide import STRIPS, slide3, slide5, slide7, slides


@jit(inline=True)
def present(offsets, places, phases):
    """The first of a band's lines, in any phase, that is not padding, and the one after the last."""
    begin, end = places, 0
    for phase in range(phases):
        for i in range(places):
            if load(offsets, phase * places + i) != ABSENT:
                begin, end = min(begin, i), max(end, i + 1)
    return begin, end


@jit(inline=True)
def _share(slide, strip, kernel, t, threads, table, kind):
    """Share ``t`` of ``threads``, in strips of ``strip`` vectors."""
    g = Layout(*unpack(table, FIELD_COUNT))
    lanes = vector_lanes(kind)
    memory = g.scratch + t * g.thread_bytes
    zeros, spare = memory, pointer(memory + g.zeros_bytes, kind)
    lines = pointer(memory + g.zeros_bytes + g.sums_bytes, 0)
    offsets = pointer(memory + g.zeros_bytes + g.sums_bytes + g.table_bytes // 2, 0)
    own = pointer(memory + g.zeros_bytes + g.sums_bytes + g.table_bytes, kind)
    slab = memory + g.zeros_bytes + g.sums_bytes + g.table_bytes + g.weights_bytes
    zero(pointer(zeros, kind), g.zeros_bytes // g.itemsize)
    zeros -= min(0, g.row_first) * g.itemsize
    lowest, highest = rows_in_memory(table)
    ending = g.bias != 0 or g.activation != 0
    opened = (kernel - 1) // g.stride_h
    bands = -(-g.out_height // g.rows)
    items = g.batch * g.out_depth * bands * g.groups
    first_item, last_item = items * t // threads, items * (t + 1) // threads
    group, rest = first_item % g.groups - 1, first_item // g.groups
    found, count, oh0, od, rows, n, begin, end = -1, 0, 0, 0, 0, 0, 0, 0
    for _ in range(first_item, last_item):
        group += 1
        if group == g.groups:
            group = 0
            rest += 1
        if found != rest:  # divisions only here: a group may be 50 ns of work
            n, oh0 = rest // bands // g.out_depth, rest % bands * g.rows
            od, rows = rest // bands % g.out_depth, min(g.rows, g.out_height - oh0)
            count = find_rows(table, offsets, od, oh0, rows)
            begin, end = present(offsets, g.places_h, g.stride_h)
            begin, end = min(begin, opened), max(end, rows)  # see ``slide``
            found = rest
        start = g.x + (n * g.x_n + group * g.x_c) * g.itemsize
        base, rows_at = start, offsets
        if not all_in_memory(offsets, count, start, lowest, highest):
            find_lines(table, lines, offsets, count, start, zeros, slab, lowest, highest, kind)
            base, rows_at = 0, lines
        for k in range(group * g.group_outputs, (group + 1) * g.group_outputs):
            weights = shift(pointer(g.weights, kind), k * g.taps)
            if g.places:
                source = shift(pointer(g.weights, kind), group * g.w_g + (k - group * g.group_outputs) * g.w_k)
                gather_taps(source, pointer(g.places, 0), own, g.taps)
                weights = own
            bias = shift(pointer(g.bias, kind), k) if g.bias else pointer(zeros, kind)
            out = shift(pointer(g.out, kind), n * g.out_n + k * g.out_c + od * g.out_d + oh0 * g.out_h)
            for q in range(0, g.out_width, strip * lanes):
                columns = min(strip * lanes, g.out_width - q)
                slide(
                    g.stride_h, -(-columns // lanes), rows, begin, end, base, rows_at, zeros, g.places_h,
                    g.row_first + q * g.stride_w, g.row_limit, weights, ending, bias, g.activation, shift(out, q),
                    g.out_h, columns, spare,
                )  # fmt: skip


_WIDTH3, _WIDTH5, _WIDTH7 = (STRIPS[kernel][0] for kernel in (3, 5, 7))


@jit
def slide3_range(t, threads, table, chunk, kind):
    """Share ``t`` of ``threads`` of a depthwise correlation by windows of 3x3."""
    _share(slide3, _WIDTH3, 3, t, threads, table, kind)


@jit
def slide5_range(t, threads, table, chunk, kind):
    """Share ``t`` of ``threads`` of a depthwise correlation by windows of 5x5."""
    _share(slide5, _WIDTH5, 5, t, threads, table, kind)


@jit
def slide7_range(t, threads, table, chunk, kind):
    """Share ``t`` of ``threads`` of a depthwise correlation by windows of 7x7."""
    _share(slide7, _WIDTH7, 7, t, threads, table, kind)


SLIDES = {3: slide3_range, 5: slide5_range, 7: slide7_range}


@lru_cache(maxsize=256)
def slides_down(c: Correlation, itemsize: int) -> bool:
    """Whether strips serve a correlation whose rows, of x and out, lie in memory one element after the other."""
    depth, height, width = reached(c)
    first, limit = in_place(height, width)
    return (
        c.group_inputs * depth.kernel == 1
        and limit > 0
        and slides(
            (height.kernel, width.kernel), (height.stride, width.stride), (height.dilation, width.dilation),
            first, limit, width.out, simd.lanes(itemsize),
        )
    )  # fmt: skip
