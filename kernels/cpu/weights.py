"""Packing weights for the tiles, and unpacking a weight gradient computed in packed layout.

    columns (direct):  w (groups, K/groups, C/groups, D, R, S)  <->  [slab][k block][tap][c][lane], blocks of COLUMNS
    rows (im2col):     the same                                  ->  [group][k block][c][tap][lane], blocks of TILE_ROWS

Lane l of k block b holds output channel b * lanes + l of its slab or group; lanes past the last are zeros.
By lane, a slab is COLUMNS consecutive output channels of all groups (see ``direct_blocking.Slabs``).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from .arrays import KIND, address
from .bound import Bound
from .compile import jit
from .gemm import transpose, zero
from .simd import keep_whole, lanes, load, pointer, shift, store, transpose_half, transpose_to, unpack, vector_lanes


class Layout(NamedTuple):
    """What the compiled functions are told."""

    w: int
    groups: int
    outputs: int  # of a group
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
    tap_step: int  # from one tap to the next in w where that is 1 or -1 throughout, else 0
    packed: int
    block_stride: int
    tap_stride: int
    input_stride: int
    width: int  # lanes of a block
    by_lane: int
    first_block: int
    blocks: int
    unpack: int
    places: int  # where to pack the elements of some row of w that lie side by side; 0: (input, tap) pairs do not


THREAD_ELEMENTS = 1 << 16  # that pay for another thread: about 10 µs

_FIELDS = len(Layout._fields)


@jit(inline=True)
def pack_squares(g, vector, source, packed, places, taps, lanes):
    """A k block whose inputs and taps lie side by side: whole squares, the last one overlapping the one before.

    Input by input, 9 taps fill no square: 0.52 ns a weight of 256 to 256 channels, 3x3, instead of 0.30; a copy 0.27.
    """
    keep_whole()
    n = g.inputs * taps
    for i in range(0, n, vector):
        column = min(i, n - vector)
        s = shift(source, column)
        if lanes < vector:
            transpose_half(s, g.w_k, shift(packed, column * g.width))
            continue
        target, where = shift(packed, column // taps * g.input_stride), shift(places, column % taps)
        for lane in range(0, lanes, vector):
            left = min(lane, lanes - vector)
            transpose_to(shift(s, left * g.w_k), g.w_k, shift(target, left), where)


@jit(inline=True)
def pack_column(table, kind, w, block, packed):
    """A k block of weights whose inputs and taps lie side by side, for a kernel that packs what it needs next.

    ``pack_range`` does this too, and all else, but takes 0.2 s more to compile in every such kernel.
    """
    keep_whole()
    g = Layout(*unpack(table, _FIELDS))
    group_blocks, vector, taps = -(-g.outputs // g.width), vector_lanes(kind), g.depth * g.rows * g.columns
    first = block % group_blocks * g.width
    lanes = min(g.width, g.outputs - first)
    source = shift(w, block // group_blocks * g.w_g + first * g.w_k)
    if lanes < g.width:
        zero(packed, g.block_stride)
    if lanes >= vector:
        pack_squares(g, vector, source, packed, pointer(g.places, table), taps, lanes)
    else:
        for c in range(g.inputs):
            transpose(
                vector, shift(source, c * taps), g.w_k, shift(packed, c * g.input_stride), g.tap_stride, lanes, taps
            )


@jit
def pack_range(t, threads, table, chunk, kind):
    """Share ``t`` of the k blocks, packed or unpacked."""
    g = Layout(*unpack(table, _FIELDS))
    group_blocks, vector = -(-g.outputs // g.width), vector_lanes(kind)
    for i in range(g.blocks * t // threads, g.blocks * (t + 1) // threads):
        block, packed, w = g.first_block + i, shift(pointer(g.packed, kind), i * g.block_stride), pointer(g.w, kind)
        if g.by_lane:
            first = block * g.width
            lanes = min(g.width, g.groups * g.outputs - first)
        else:
            first = block % group_blocks * g.width
            lanes = min(g.width, g.outputs - first)
            w = shift(w, block // group_blocks * g.w_g)
        if g.unpack == 0 and lanes < g.width:
            zero(packed, g.block_stride)
        taps = g.depth * g.rows * g.columns
        if g.places and (lanes >= vector or 2 * g.width == vector == 2 * lanes):
            pack_squares(g, vector, shift(w, first * g.w_k), packed, pointer(g.places, table), taps, lanes)
            continue
        if taps == 1 and g.w_c == 1 and not g.by_lane:
            source, target = shift(w, first * g.w_k), packed
            if g.unpack:
                transpose(vector, target, g.input_stride, source, g.w_k, g.inputs, lanes)
            else:
                transpose(vector, source, g.w_k, target, g.input_stride, lanes, g.inputs)
            continue
        for c in range(g.inputs):
            source, target = shift(w, first * g.w_k + c * g.w_c), shift(packed, c * g.input_stride)
            if g.tap_step and not (g.by_lane and g.outputs > 1):  # the taps lie side by side, in order or backwards
                if g.tap_step < 0:
                    source, target = shift(source, 1 - taps), shift(target, (taps - 1) * g.tap_stride)
                step, lane_stride = g.tap_stride * g.tap_step, g.w_g if g.by_lane else g.w_k
                if g.by_lane:
                    source = shift(source, first * (g.w_g - g.w_k))
                if g.unpack:
                    transpose(vector, target, step, source, lane_stride, taps, lanes)
                else:
                    transpose(vector, source, lane_stride, target, step, lanes, taps)
                continue
            for tap in range(taps):
                d, r, s = tap // (g.rows * g.columns), tap // g.columns % g.rows, tap % g.columns
                for lane in range(lanes):
                    where = d * g.w_d + r * g.w_r + s * g.w_s
                    if g.by_lane:
                        output = first + lane
                        where += output // g.outputs * g.w_g + output % g.outputs * g.w_k - first * g.w_k
                    else:
                        where += lane * g.w_k
                    if g.unpack:
                        store(source, where, load(target, tap * g.tap_stride + lane))
                    else:
                        store(target, tap * g.tap_stride + lane, load(source, where))


def tap_step(sizes: tuple[int, ...], strides: tuple[int, ...]) -> int:
    for step in (1, -1):
        expected, ok = step, True
        for size, stride in zip(sizes[::-1], strides[::-1], strict=True):
            ok = ok and (size == 1 or stride == expected)
            expected *= size
        if ok:
            return step
    return 0


def _table(
    shape: tuple[int, ...], w_strides: tuple[int, ...], dtype: np.dtype, strides: tuple[int, int, int], width: int,
    by_lane: bool, blocks: tuple[int, int] | None, unpack: bool,
) -> tuple[Layout, np.ndarray]:  # fmt: skip
    """The Layout without addresses of w and of what is packed, and an array whose address is in it."""
    groups, outputs = shape[:2]
    first, count = blocks or (0, -(-groups * outputs // width) if by_lane else groups * -(-outputs // width))
    w_strides = tuple(stride // dtype.itemsize for stride in w_strides)
    step = tap_step(shape[3:], w_strides[3:])
    taps, row = math.prod(shape[3:]), math.prod(shape[2:])
    places = np.empty(0, np.int64)
    vector = lanes(dtype.itemsize)
    beside = step == 1 and (shape[2] == 1 or w_strides[2] == taps) and row >= vector
    # a half square's rows are packed one behind the other
    if beside and not by_lane and not unpack and (width >= vector or strides[1:] == (width, taps * width)):
        i = np.arange(taps + vector)
        places = i % taps * strides[1] + i // taps * strides[2]
    where = address(places) if places.size else 0
    fields = (0, *shape, *w_strides, step, 0, *strides, width, int(by_lane), first, count, int(unpack), where)
    return Layout._make(fields), places


@lru_cache(maxsize=512)
def _bind(
    shape: tuple[int, ...], w_strides: tuple[int, ...], dtype: np.dtype, strides: tuple[int, int, int], width: int,
    by_lane: bool, blocks: tuple[int, int] | None, unpack: bool, threads: int,
) -> Bound:  # fmt: skip
    table, places = _table(shape, w_strides, dtype, strides, width, by_lane, blocks, unpack)
    threads = min(threads, max(1, math.prod(shape) // THREAD_ELEMENTS))
    ends = (Layout._fields.index("w"), Layout._fields.index("packed"))
    return Bound(pack_range, KIND[dtype], threads, table, ends, places)


def column_table(
    shape: tuple[int, ...], w_strides: tuple[int, ...], dtype: np.dtype, width: int
) -> tuple[np.ndarray, ...]:
    """The table by which ``pack_column`` packs a block of :func:`pack_columns`, and an array whose address is in it;
    nothing for weights that it cannot pack."""
    inputs, taps = shape[2], math.prod(shape[3:])
    strides = (inputs * taps * width, inputs * width, width)
    table, places = _table(shape, w_strides, dtype, strides, width, False, None, False)
    return (np.array(table, np.int64), places) if places.size else ()


def _run(
    w: np.ndarray, packed: np.ndarray, strides: tuple[int, int, int], width: int, by_lane: bool, threads: int,
    blocks: range | None = None,
) -> None:  # fmt: skip
    """Pack, or unpack the k blocks ``blocks``."""
    some = None if blocks is None else (blocks.start, len(blocks))
    bound = _bind(w.shape, w.strides, w.dtype, strides, width, by_lane, some, blocks is not None, threads)
    bound(address(w), address(packed))


def pack_columns(w: np.ndarray, packed: np.ndarray, by_lane: bool, width: int, threads: int) -> None:
    """Fill ``packed`` (1-D) from ``w`` (6-D): a row of ``width`` output channels for each (tap, c)."""
    inputs, taps = w.shape[2], math.prod(w.shape[3:])
    strides = (inputs * taps * width, inputs * width, width)
    _run(w, packed, strides, width, by_lane, threads)


def pack_rows(w: np.ndarray, packed: np.ndarray, height: int, threads: int) -> None:
    """Fill ``packed`` (1-D) from ``w`` (6-D): ``height`` output channels side by side for each (c, tap)."""
    inputs, taps = w.shape[2], math.prod(w.shape[3:])
    strides = (inputs * taps * height, height, taps * height)
    _run(w, packed, strides, height, False, threads)


def unpack_columns(
    sums: np.ndarray, blocks: range, block_stride: int, w: np.ndarray, by_lane: bool, width: int, threads: int
) -> None:
    """Fill the part of ``w`` that lies in k blocks ``blocks`` from their sums, ``block_stride`` apart."""
    strides = (block_stride, w.shape[2] * width, width)
    _run(w, sums, strides, width, by_lane, threads, blocks)
