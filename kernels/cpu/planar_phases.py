"""Input gradients with a stride, pixels in the lanes: the phases of a row are computed side by side.

    out[n, c, q * stride + f] = sum over k, r of phase f  w[k, c, r] * dy[n, k, q + place(f, r)]

A transposed convolution of stride s writes s grids that lie between each other (see ``geometry.transposed_phases``).
Phase by phase every line of the output is fetched and written s times, a number in s. Here tiles of all phases of a
row wait in the L1 cache until their pixels are interleaved, and the output is written once, in whole lines:

    phase 0  | a0 a1 a2 ... |
    phase 1  | b0 b1 b2 ... |  ->  a0 b0 a1 b1 a2 b2 ...      bias and relu are in the tiles already, all else is added
                                                              to the line

Loops, outermost first; threads share the items:

    item: a block of rows of the longest phase, one group, a part of its output channels
        pack dy under the block, the positions that any phase reads                     dy -> slab (see ``planar``)
        for each 8 output channels
            for each output row under the block, for each 48 pixels of a phase
                a tile for each phase, from its own table of slab offsets and its own weights         slab, w -> sums
                interleave them, finish, store                                                sums -> out

Against phase after phase, two threads, batch 1: 2x2 kernels at stride 2, 64 to 32 channels of 112 x 112, 1.75 ms became
1.0 (0.5 of it multiply-adds at the peak; asking for the lines of the output ahead is 2% of that); 256 to 128 of 28 x 28
1.25 became 0.9; 4x4 at stride 4, 96 to 3 channels of 56 x 56, 1.15 became 0.38.

Loses where rows of a phase are short (7 pixels: ``direct`` takes half the time) and to channels-last arrays.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .arrays import address
from .compile import jit
from .epilogue import RELU6, finish
from .gemm import multiply_pixels, zero
from .planar_blocking import Joined, PlanarForward
from .planar_slab import FIELDS, Layout, constants, pack_planes
from .simd import keep_whole, load, pointer, prefetch_write, shift, store, unpack, vector_lanes
from .tiles import PIXEL_ROWS
from .vector import interleaved_high, interleaved_low, store_first
from .vector import load as load_vector
from .weights import pack_rows


class Phases(NamedTuple):
    """What follows a planar ``Layout`` in the table."""

    phases: int  # a row of numbers for each: steps, address of offsets, where its weights begin in the packed ones
    depth_phases: int
    row_phases: int
    column_phases: int
    stride_d: int
    stride_h: int
    stride_w: int
    depth: int  # of the output
    height: int
    width: int


_PHASE_FIELDS = len(Phases._fields)
_PHASE = 3  # numbers in such a row


@jit(inline=True)
def interleave(stride, lanes, sums, pitch, out, n):
    """``out[i * stride + f] = sums[f * pitch + i]`` for the first ``n`` of ``out``."""
    keep_whole()
    if stride == 2:
        for i in range(0, n, 2 * lanes):
            a, b, left = load_vector(sums, i // 2), load_vector(sums, pitch + i // 2), n - i
            store_first(out, i, interleaved_low(a, b), left)
            if left > lanes:
                store_first(out, i + lanes, interleaved_high(a, b), left - lanes)
    elif stride == 4:
        for i in range(0, n, 4 * lanes):
            a, c = load_vector(sums, i // 4), load_vector(sums, 2 * pitch + i // 4)
            b, d = load_vector(sums, pitch + i // 4), load_vector(sums, 3 * pitch + i // 4)
            even, odd, left = interleaved_low(a, c), interleaved_low(b, d), n - i
            store_first(out, i, interleaved_low(even, odd), left)
            if left > lanes:
                store_first(out, i + lanes, interleaved_high(even, odd), left - lanes)
            even, odd, left = interleaved_high(a, c), interleaved_high(b, d), left - 2 * lanes
            if left > 0:
                store_first(out, i + 2 * lanes, interleaved_low(even, odd), left)
            if left > lanes:
                store_first(out, i + 3 * lanes, interleaved_high(even, odd), left - lanes)
    else:
        for f in range(min(stride, n)):
            for i in range((n - f + stride - 1) // stride):
                store(out, i * stride + f, load(sums, f * pitch + i))


@jit(inline=True)
def write_row(table, kind, slab, line, sums, n, group, k_block, outer, r, depth, row, ow0, columns):
    """A row of 8 output channels, as far as ``columns`` pixels of its phases reach; ``outer`` is the row's phase."""
    keep_whole()
    g, h = Layout(*unpack(table, FIELDS)), Phases(*unpack(table + 8 * FIELDS, _PHASE_FIELDS))
    lanes = vector_lanes(kind)
    panel = 3 * lanes
    pitch = PIXEL_ROWS * panel
    none = pointer(0, kind)
    channel = group * g.group_outputs + k_block * PIXEL_ROWS
    height = min(PIXEL_ROWS, g.group_outputs - k_block * PIXEL_ROWS)
    phases = shift(pointer(h.phases, table), outer * h.column_phases * _PHASE)
    weights, bias = pointer(g.weights, kind), shift(pointer(g.bias, kind), channel)
    out = shift(pointer(g.out, kind), n * g.out_n + depth * g.out_d + row * g.out_h + channel * g.out_c)
    y = n * g.residual_n + depth * g.residual_d + row * g.residual_h + channel * g.residual_c
    residual = shift(pointer(g.residual, kind), y)
    # tiles add the bias to whole blocks of channels, and apply what only limits unless something comes first
    biased = g.bias != 0 and height == PIXEL_ROWS
    limited = g.activation <= RELU6 and g.residual == 0 and (g.bias == 0 or biased)
    start, activation = bias if biased else none, g.activation if limited else 0
    straight = limited and g.out_w == 1
    for p in range(0, columns, panel):
        wide, first = min(panel, columns - p), (ow0 + p) * h.stride_w
        length = min(wide * h.stride_w, h.width - first)
        if straight:  # while the tiles multiply
            for k in range(height):
                for i in range(0, length, lanes):
                    prefetch_write(shift(out, first + i + k * g.out_c))
        for f in range(h.column_phases):
            steps, offsets = load(phases, f * _PHASE), pointer(load(phases, f * _PHASE + 1), table)
            w = load(phases, f * _PHASE + 2) + (group * g.k_blocks + k_block) * steps * PIXEL_ROWS
            to, b = shift(sums, f * pitch), shift(slab, r * g.pitch + p)
            if steps:
                multiply_pixels(
                    -(-wide // lanes), steps, offsets, shift(weights, w), b, to, panel, panel, start, none, -1,
                    activation,
                )  # fmt: skip
                continue
            zero(to, pitch)  # no tap reaches this phase
            for k in range(height):
                to_k = shift(to, k * panel)
                finish(to_k, wide, biased, shift(bias, k), 0, 0, none, 1, activation, to_k, 1)
        for k in range(height):
            to = shift(out, first * g.out_w + k * g.out_c)
            interleave(h.stride_w, lanes, shift(sums, k * panel), pitch, to if straight else line, length)
            if not straight:
                other = shift(residual, first * g.residual_w + k * g.residual_c)
                finish(
                    line, length, g.bias != 0 and not biased, shift(bias, k), 0, g.residual, other, g.residual_w,
                    g.activation - activation, to, g.out_w,
                )  # fmt: skip


@jit
def phases_range(t, threads, table, chunk, kind):
    """Share ``t`` of ``threads`` of an input gradient."""
    g, h = Layout(*unpack(table, FIELDS)), Phases(*unpack(table + 8 * FIELDS, _PHASE_FIELDS))
    memory = g.scratch + t * g.thread_bytes
    slab, memory = pointer(memory, kind), memory + g.slab_bytes
    line, sums = pointer(memory, kind), pointer(memory + g.line_bytes, kind)
    packed_block = -1
    items = g.batch * g.out_depth * g.row_blocks * g.column_blocks * g.groups * g.k_parts
    for item in range(items * t // threads, items * (t + 1) // threads):
        block, part = item // g.k_parts, item % g.k_parts
        rest, group = block // g.groups, block % g.groups
        rest, ow0 = rest // g.column_blocks, rest % g.column_blocks * g.columns
        rest, oh0 = rest // g.row_blocks, rest % g.row_blocks * g.rows
        n, od = rest // g.out_depth, rest % g.out_depth
        rows, columns = min(g.rows, g.out_height - oh0), min(g.columns, g.out_width - ow0)
        if block != packed_block:
            packed_block = block
            pack_planes(table, kind, slab, line, n, group * g.group_inputs, od, oh0, rows, ow0, columns)
        for k_block in range(g.k_blocks * part // g.k_parts, g.k_blocks * (part + 1) // g.k_parts):
            for d in range(h.depth_phases):
                for i in range(rows * h.row_phases):
                    r, f = i // h.row_phases, i % h.row_phases
                    depth, row, outer = od * h.stride_d + d, (oh0 + r) * h.stride_h + f, d * h.row_phases + f
                    if depth < h.depth and row < h.height:
                        write_row(
                            table, kind, slab, line, sums, n, group, k_block, outer, r, depth, row, ow0, columns
                        )  # fmt: skip


def phase_constants(c: Joined, plan: PlanarForward) -> tuple[tuple[int, ...], Any]:
    """The fields of the table that do not change from call to call, and the arrays that they point to."""
    channels = np.arange(c.group_inputs).reshape(-1, 1, 1, 1) * plan.channel_step
    rows, kept, place = [], [], 0
    for phase in c.phases:
        d, r, s = np.ix_(*phase.places) if phase else np.ix_((), (), ())
        offsets = np.ascontiguousarray((channels + d * plan.plane_step + r * plan.pitch + s).ravel(), np.int64)
        rows.append((offsets.size, address(offsets), place))
        kept.append(offsets)
        place += c.groups * plan.k_blocks * PIXEL_ROWS * offsets.size
    phases = np.array(rows, np.int64)
    fixed, arrays = constants(c, plan, phases)
    return (*fixed, address(phases), *c.counts, *c.stride, *c.size), (arrays, kept)


def pack_phases(c: Joined, w: np.ndarray, packed: np.ndarray, threads: int) -> None:
    """Weights (groups, K/groups, C/groups, D, R, S), phase after phase."""
    place = 0
    for phase in filter(None, c.phases):
        taps = w[(slice(None),) * 3 + phase.taps]
        size = -(-taps.shape[1] // PIXEL_ROWS) * PIXEL_ROWS * taps.size // taps.shape[1]
        pack_rows(taps, packed[place : place + size], PIXEL_ROWS, threads)
        place += size
