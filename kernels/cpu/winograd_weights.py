"""Winograd's weights: where they are, and U, the transformed ones.

U     [group][column // u_group][ξ][column of outputs][c][COLUMNS]          in the order in which products read it
taps  [c][slice of a volume][tap][lane]                                     gathered for ``weight_tiles``
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from ..winograd_matrices import VARIANTS, Variant
from .arrays import KIND, Workspace, address, aligned_empty
from .blocking import LINE_BYTES, Correlation
from .bound import Bound
from .compile import jit
from .gemm import transpose, zero
from .simd import columns, load, pointer, shift, store, unpack, vector_lanes
from .weights import _tap_step
from .winograd_blocking import PACK_CHANNELS, plan
from .winograd_transforms import compiled, transform, weight_tiles


class Taps(NamedTuple):
    """Strides of weights in elements, and what they allow."""

    w_g: int
    w_k: int
    w_c: int
    w_d: int
    w_r: int
    w_s: int
    columns: int
    tap_step: int  # from one tap to the next where that is 1 or -1 throughout, else 0
    together: int  # not 0: all the taps of an output channel are neighbours


@jit(inline=True)
def gather_taps(w, slices, taps, lanes, source, target, outputs, channels):
    """Taps of ``channels`` input channels, a vector of output channels each: [c][slice][tap][lane]. ``w``: strides."""
    of_slice = taps
    taps *= slices
    if outputs < lanes:
        zero(target, channels * taps * lanes)
    if outputs <= 0:
        return
    if w.together != 0:
        transpose(lanes, source, w.w_k, target, lanes, outputs, channels * taps)
        return
    for c in range(channels):
        s, to = shift(source, c * w.w_c), shift(target, c * taps * lanes)
        if w.tap_step > 0:
            transpose(lanes, s, w.w_k, to, lanes, outputs, taps)
        elif w.tap_step < 0:
            transpose(lanes, shift(s, 1 - taps), w.w_k, shift(to, (taps - 1) * lanes), -lanes, outputs, taps)
        else:
            for tap in range(taps):
                place = tap % of_slice
                where = tap // of_slice * w.w_d + place // w.columns * w.w_r + place % w.columns * w.w_s
                for k in range(outputs):
                    store(to, tap * lanes + k, load(s, where + k * w.w_k))


@jit(inline=True)
def gather_part(g, part, lanes, source, target, outputs, channels, inputs):
    """The taps of one phase of a stride: ``gather_taps`` of every second one, zeros where the kernel has none.

    So are channels beyond the first ``inputs``.
    """
    taps, p, q = g.rows * g.columns, part // g.stride_w, part % g.stride_w
    zero(target, channels * taps * lanes)
    for c in range(inputs):
        for tap in range(taps):
            r, s = p + tap // g.columns * g.stride_h, q + tap % g.columns * g.stride_w
            if r < g.kernel_h and s < g.kernel_w:
                place = shift(source, c * g.w_c + r * g.w_r + s * g.w_s)
                for k in range(outputs):
                    store(target, (c * taps + tap) * lanes + k, load(place, k * g.w_k))


@jit(inline=True)
def panel_at(g, group, k_block, xi, width):
    """Where a panel of U begins: the weights of one ξ for a tile column of output channels.

    A line is left free behind each ξ: at a multiple of 4 KiB from one to the next, all of them would be written to the
    same few lines of L1 (94 ns a vector of F(4x4) instead of 49).
    """
    number, inside = k_block // g.u_group, k_block % g.u_group
    first, panel, line = k_block - inside, g.depth * width, LINE_BYTES // g.itemsize
    columns = min(g.u_group, g.k_blocks - first)
    before = (group * g.k_blocks + first) * panel + (group * -(-g.k_blocks // g.u_group) + number) * line
    return before * g.products + xi * (columns * panel + line) + inside * panel


def strides(w: np.ndarray) -> Taps:
    """Of weights (groups, K/groups, C/groups, D, R, S)."""
    g, k, c, d, r, s = (stride // w.itemsize for stride in w.strides)
    step = _tap_step(w.shape[3:], (d, r, s))
    together = step == 1 and (c == math.prod(w.shape[3:]) or w.shape[2] == 1)
    return Taps(g, k, c, d, r, s, w.shape[5], step, int(together))


class Weights(NamedTuple):
    """What the packing of weights is told."""

    w: int
    groups: int
    outputs: int  # of a group
    group_inputs: int
    kernel_d: int
    depth: int
    part: int
    kernel_h: int
    kernel_w: int
    stride_h: int
    stride_w: int
    rows: int  # of taps transformed at a time
    w_g: int  # from here on as in Taps
    w_k: int
    w_c: int
    w_d: int
    w_r: int
    w_s: int
    columns: int
    tap_step: int
    together: int
    packed: int
    gathered: int  # thread t's begins at gathered + t * gathered_bytes
    gathered_bytes: int
    products: int
    k_blocks: int
    u_group: int
    width: int
    transform: int  # address of code
    itemsize: int


_WEIGHT_FIELDS = len(Weights._fields)


@jit
def pack_range(t, threads, table, chunk, kind):
    """Share ``t`` of packing the weights, vectors of output channels: U, or for ``multiply_once``

    [group][column of outputs][half of the column][c][tap][lane]
    """
    g = Weights(*unpack(table, _WEIGHT_FIELDS))
    lanes, size = vector_lanes(kind), g.itemsize
    width, slices, taps = g.width, g.kernel_d, g.rows * g.columns
    halves = width // lanes
    mine = g.gathered + t * g.gathered_bytes
    gathered = pointer(mine, kind)
    tiles = mine + PACK_CHANNELS * slices * taps * lanes * size
    a = pointer(tiles, table)
    store(a, 2, slices * taps * lanes)
    store(a, 5, width)
    items = g.groups * g.k_blocks * halves
    for item in range(items * t // threads, items * (t + 1) // threads):
        block, half = item // halves, item % halves
        group, first = block // g.k_blocks, block % g.k_blocks * width + half * lanes
        outputs = max(0, min(lanes, g.outputs - first))
        column = block % g.k_blocks
        start = panel_at(g, group, column, 0, width)
        to = g.packed + (start + half * lanes) * size
        store(a, 6, panel_at(g, group, column, 1, width) - start)
        for c0 in range(0, g.part, PACK_CHANNELS):
            count, inputs = min(PACK_CHANNELS, g.part - c0), max(0, min(PACK_CHANNELS, g.group_inputs - c0))
            source = shift(pointer(g.w, kind), group * g.w_g + first * g.w_k + c0 * g.w_c)
            if g.stride_w == 1:
                gather_taps(g, slices, taps, lanes, source, gathered, outputs, inputs)
                zero(shift(gathered, inputs * slices * taps * lanes), (count - inputs) * slices * taps * lanes)
            for part in range(slices * g.stride_h * g.stride_w):
                if g.stride_w > 1:
                    gather_part(g, part, lanes, source, gathered, outputs, count, inputs)
                store(a, 0, count)
                store(a, 1, mine + (part * taps * lanes * size if g.stride_w == 1 else 0))
                store(a, 4, to + (part * g.part + c0) * width * size)
                transform(g.transform, tiles, kind)


THREAD_ELEMENTS = 1 << 14  # weights that pay for another thread


@lru_cache(maxsize=256)
def _bind(
    f: Variant, shape: tuple[int, ...], taps: Taps, dtype: np.dtype, gathered_bytes: int, k_blocks: int, u_group: int,
    width: int, depth: int, part: int, threads: int,
) -> Bound:  # fmt: skip
    """The packing of weights of this shape and with these strides."""
    taps = taps._replace(columns=f.columns[1])
    fields = (
        0, *shape[:4], depth, part, *f.kernel, *f.strides, f.rows[1], *taps, 0, 0, gathered_bytes,
        f.products, k_blocks, u_group, width, compiled(weight_tiles, dtype, VARIANTS.index(f)), dtype.itemsize,
    )  # fmt: skip
    places = tuple(Weights._fields.index(name) for name in ("w", "packed", "gathered"))
    return Bound(pack_range, KIND[dtype], threads, Weights._make(fields), places)


def pack(f: Variant, c: Correlation, w: np.ndarray, scratch: Workspace | None, threads: int) -> np.ndarray:
    """Weights (groups, K/groups, C/groups, D, R, S) transformed, in the workspace or an array of their own."""
    p = plan(f, c, w.itemsize, c.useful_threads(threads), columns(w.itemsize))
    threads = max(1, min(threads, w.size // THREAD_ELEMENTS))
    held, nbytes = np.dtype(np.uint8), threads * p.gathered_bytes
    packed = scratch.take(p.packed, w.dtype) if scratch else aligned_empty(p.packed, w.dtype)
    gathered = scratch.take(nbytes, held) if scratch else aligned_empty(nbytes, held)
    if not w.size:
        packed[...] = 0
    elif packed.size:
        bound = _bind(
            f, w.shape, strides(w), w.dtype, p.gathered_bytes, p.k_blocks, p.u_group, p.width, p.depth, p.part, threads
        )
        bound(address(w), address(packed), address(gathered))
    return packed
