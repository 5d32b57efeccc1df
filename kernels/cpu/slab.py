"""Packing input rows into a slab: a padded, channels-last copy that tiles read in place.

    input (N, C, D, H, W), any strides   ->   slab [image][plane][row][column][channel]

``source_d``, ``source_h`` and the segments of the last axis say which input position each slab position shows
(see ``blocking``), so padding of every mode is written here, once, and the tiles never test for it. NCHW rows are
transposed in squares of one vector's lanes a side (7.6 ns for 16 x 16).
"""

from __future__ import annotations

from .compile import jit
from .gemm import gather, zero
from .simd import load, shift, store


@jit(inline=True)
def gather_lanes(g, source, position_stride, target, first_output, outputs, positions):
    """Slab positions for lane-by-lane products: ``[c][lane]`` is input channel c of the lane's group."""
    width = g.pixel // g.group_inputs
    for lane in range(outputs):
        channel = (first_output + lane) // g.group_outputs * g.group_inputs
        for c in range(g.group_inputs):
            s, t = shift(source, (channel + c) * g.x_c), shift(target, c * width + lane)
            for p in range(positions):
                store(t, p * g.pixel, load(s, p * position_stride))


@jit(inline=True)
def pack_row(g, lanes, segments, source, inside, target, slab, first_column, columns):
    """One slab row: ``columns`` positions from padded column ``first_column``; zeros where not ``inside``."""
    if not inside:
        zero(target, columns * g.pixel)
        return
    first_output = slab * g.slab_outputs
    outputs = min(g.slab_outputs, g.groups * g.group_outputs - first_output)
    if g.by_lane and outputs < g.slab_outputs:
        zero(target, columns * g.pixel)  # stale bits may be subnormal numbers, which multiply slowly
    by_lane = g.by_lane and (g.group_inputs > 1 or g.group_outputs > 1)
    channel, channels = (first_output, outputs) if g.by_lane else (slab * g.group_inputs, g.group_inputs)
    for i in range(0, 4 * g.segment_count, 4):
        start, first, step, count = (
            load(segments, i),
            load(segments, i + 1),
            load(segments, i + 2),
            load(segments, i + 3),
        )
        begin = max(start, first_column)
        n = min(start + count, first_column + columns) - begin
        if n <= 0:
            continue
        t = shift(target, (begin - first_column) * g.pixel)
        s = shift(source, (first + (begin - start) * step) * g.x_w)
        if first < 0:
            zero(t, n * g.pixel)
        elif by_lane:
            gather_lanes(g, s, step * g.x_w, t, first_output, outputs, n)
        else:
            gather(lanes, shift(s, channel * g.x_c), g.x_c, step * g.x_w, t, g.pixel, channels, n)
