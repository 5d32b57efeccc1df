"""Winograd convolution in float32 whose products are bf16x3's, by AMX: see ``winograd`` for all but the products.

    item: a block of tiles, a group, a part of its output channels
        transform the input                                                     x -> V[ξ], float32
        for ``k_group`` columns of 16 output channels at a time: all, unless M would be too large
            for each ξ, each 64 input channels, each 64 tiles: a step
                M[ξ][k][tile] (+)= sum over c of V[ξ][tile][c] U[ξ][c][k]       for all columns k
                meanwhile split what the next step takes                        V -> A, bfloat16
            transform the output                                                M[ξ] -> out

The products wait for memory: of 256 channels of 56x56, one thread, they take 3.6 ms of 4.7, 2.9 without splitting, 2.1
with U and M in L1, too. That is AMX's 425 GFLOP/s, as the core's clock falls from 3.1 to 2.5 GHz. Gains over FMA, the
fastest variants of both, two threads: 1.1 to 1.4 with 128 to 512 channels and many tiles; nothing with 64, or where U
serves few tiles, as it has 6 bytes a number instead of 4.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np

from ..winograd_matrices import VARIANTS, Variant
from .amx import CONFIGURATION, begin_tiles, end_tiles
from .arrays import KIND, Workspace, address, aligned_empty
from .bf16x3 import BLOCK, CHUNK, ROW, SIDE, split
from .bf16x3_panels import DEPTH, HEIGHT, enqueue, finish_queue, multiply_columns
from .bf16x3_winograd_blocking import A_BYTES, COMPUTED, plan
from .blocking import Correlation
from .bound import Bound
from .compile import jit
from .gemm import zero
from .phases import EntryPoints, entry_points
from .simd import pointer, shift, store, unpack
from .winograd import transform_block, write_block
from .winograd_layout import FIELDS, Layout, fixed
from .winograd_transforms import compiled, transform, weight_tiles
from .winograd_weights import THREAD_ELEMENTS, Taps, gather_taps, strides


@jit(inline=True)
def clear_missing(g, kind, v, tiles):
    """Zeros in V for what is split but not there: a vector of channels, for its sums; tiles, as what another use of the
    memory has left may be subnormal, which takes a hundred times as long."""
    vectors, missing = -(-g.depth // SIDE), -tiles % SIDE * SIDE
    for xi in range(g.products):
        place = pointer(v + xi * g.v_xi * g.itemsize, kind)
        for i in range(vectors if missing else 0):
            zero(shift(place, i * g.v_block + tiles * SIDE), missing)
        if vectors % 2:
            zero(shift(place, vectors * g.v_block), tiles * SIDE + missing)


@jit(inline=True)
def step_at(g, v, step, blocks, chunks):
    """What a step of :func:`multiply` takes: a ξ, its first chunk and how many, the first block and how many, V."""
    panels, passes = -(-blocks // HEIGHT), -(-chunks // DEPTH)
    panel, chunk, xi = step % panels, step // panels % passes * DEPTH, step // (panels * passes)
    first = blocks * panel // panels
    height, depth = blocks * (panel + 1) // panels - first, min(DEPTH, chunks - chunk)
    source = v + (xi * g.v_xi + 2 * chunk * g.v_block + first * SIDE * SIDE) * g.itemsize
    return xi, chunk, depth, first, height, source


@jit(inline=True)
def multiply(g, kind, v, m, queue, a, tiles, group, k, k_end):
    """M of so many tiles for the columns ``k`` to ``k_end``."""
    short = np.int16(0)
    blocks, chunks = -(-tiles // SIDE), -(-g.depth // CHUNK)
    weights = pointer(g.weights, short)
    steps = g.products * -(-blocks // HEIGHT) * -(-chunks // DEPTH)
    now = step_at(g, v, 0, blocks, chunks)
    following = step_at(g, v, min(1, steps - 1), blocks, chunks)
    enqueue(queue, now[2], now[4], now[5], following[5], g.v_block, a)
    for step in range(steps):
        finish_queue(queue, kind)
        xi, chunk, depth, first, height, _ = now
        now, following = following, step_at(g, v, min(step + 2, steps - 1), blocks, chunks)
        if step + 1 < steps:
            enqueue(queue, now[2], now[4], now[5], following[5], g.v_block, a + (step + 1) % 2 * A_BYTES)
        panel = ((group * g.products + xi) * chunks + chunk) * g.k_blocks + k * depth
        c = pointer(m + (xi * g.m_xi + first * SIDE * SIDE) * g.itemsize, kind)
        here = pointer(a + step % 2 * A_BYTES, short)
        multiply_columns(height, depth, here, shift(weights, panel * BLOCK), k_end - k, c, g.m_block, chunk, queue)


@jit
def forward_range(t, threads, table, chunk, kind):
    """Share ``t`` of ``threads`` of a correlation."""
    g = Layout(*unpack(table, FIELDS))
    size = g.itemsize
    slab = g.scratch + t * g.thread_bytes
    v = slab + g.slab_bytes
    m = v + g.v_bytes
    rows = m + g.m_bytes
    turned = rows + g.rows_bytes
    vectors = turned + g.turned_bytes
    tiles = vectors + g.vectors_bytes
    queue = tiles + (64 + 4 * g.tile_h) * 8
    a = tiles + g.integers_bytes
    runs = pointer(tiles + 64 * 8, table)
    total = g.planes * g.tile_rows * g.cell_columns
    units = -(-total // g.unit)
    items = g.blocks * g.groups * g.k_parts
    begin_tiles(g.configuration)
    for item in range(items * t // threads, items * (t + 1) // threads):
        rest, part = item // g.k_parts, item % g.k_parts
        block, group = rest // g.groups, rest % g.groups
        start, end = units * block // g.blocks * g.unit, min(total, units * (block + 1) // g.blocks * g.unit)
        count = transform_block(g, kind, table, tiles, slab, v, start, end, group, 0, 1)
        clear_missing(g, kind, v, count)
        k_first, k_last = g.k_blocks * part // g.k_parts, g.k_blocks * (part + 1) // g.k_parts
        for k in range(k_first, k_last, g.k_group):
            k_end = min(k_last, k + g.k_group)
            multiply(g, kind, v, m, pointer(queue, table), a, count, group, k, k_end)
            for kb in range(k, k_end):
                source, channels = m + (kb - k) * g.m_block * size, min(SIDE, g.group_outputs - kb * SIDE)
                first = group * g.group_outputs + kb * SIDE
                write_block(g, kind, table, tiles, source, rows, turned, vectors, runs, start, end, first, channels)
    end_tiles()


class Weights(NamedTuple):
    """What the packing of weights is told."""

    w: int
    groups: int
    outputs: int  # of a group
    inputs: int
    taps: int
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
    transform: int  # address of code


_WEIGHT_FIELDS = len(Weights._fields)


@jit
def pack_range(t, threads, table, chunk, kind):
    """Share ``t`` of packing the weights: U of 32 input and 16 output channels at a time in float32, then split."""
    g = Weights(*unpack(table, _WEIGHT_FIELDS))
    chunks, short = -(-g.inputs // CHUNK), np.int16(0)
    gathered = g.gathered + t * g.gathered_bytes
    tiles = gathered + CHUNK * g.taps * SIDE * 4
    u, u_xi = tiles + 32 * 8, (CHUNK + 1) * SIDE  # a line more than a power of two
    a, packed = pointer(tiles, table), pointer(g.packed, short)
    store(a, 1, gathered)
    store(a, 2, g.taps * SIDE)
    store(a, 4, u)
    store(a, 5, SIDE)
    store(a, 6, u_xi)
    items = g.groups * g.k_blocks * chunks
    for item in range(items * t // threads, items * (t + 1) // threads):
        column, j = item // chunks, item % chunks
        group, kb = column // g.k_blocks, column % g.k_blocks
        chunk = j // DEPTH * DEPTH
        depth = min(DEPTH, chunks - chunk)
        outputs, channels = min(SIDE, g.outputs - kb * SIDE), min(CHUNK, g.inputs - j * CHUNK)
        source = shift(pointer(g.w, kind), group * g.w_g + kb * SIDE * g.w_k + j * CHUNK * g.w_c)
        gather_taps(g, 1, g.taps, SIDE, source, pointer(gathered, kind), outputs, channels)
        store(a, 0, channels)
        transform(g.transform, tiles, kind)
        for xi in range(g.products):
            rows = pointer(u + xi * u_xi * 4, kind)
            zero(shift(rows, channels * SIDE), (CHUNK - channels) * SIDE)
            panel = ((group * g.products + xi) * chunks + chunk) * g.k_blocks + kb * depth + j - chunk
            target = shift(packed, panel * BLOCK)
            for p in range(SIDE):
                split(shift(rows, p * SIDE), shift(rows, (p + SIDE) * SIDE), shift(target, p * ROW))


@lru_cache(maxsize=256)
def _bind(f: Variant, shape: tuple[int, ...], taps: Taps, gathered_bytes: int, k_blocks: int, threads: int) -> Bound:
    """The packing of weights of this shape and with these strides."""
    dtype = np.dtype(np.float32)
    code = compiled(weight_tiles, dtype, VARIANTS.index(f))
    fields = Weights._make((0, *shape[:3], f.taps, *taps, 0, 0, gathered_bytes, f.products, k_blocks, code))
    places = tuple(Weights._fields.index(name) for name in ("w", "packed", "gathered"))
    return Bound(pack_range, KIND[dtype], threads, fields, places)


def _pack(f: Variant, c: Correlation, w: np.ndarray, scratch: Workspace | None, threads: int) -> np.ndarray:
    """Weights (groups, K/groups, C/groups, 1, R, S) as U, in the workspace or an array of their own."""
    p, short, held = plan(f, c, c.useful_threads(threads)), np.dtype(np.int16), np.dtype(np.uint8)
    threads = max(1, min(threads, w.size // THREAD_ELEMENTS))
    nbytes = threads * p.gathered_bytes
    packed = scratch.take(p.packed, short) if scratch else aligned_empty(p.packed, short)
    gathered = scratch.take(nbytes, held) if scratch else aligned_empty(nbytes, held)
    if packed.size:
        bound = _bind(f, w.shape, strides(w), p.gathered_bytes, p.k_blocks, threads)
        bound(address(w), address(packed), address(gathered))
    return packed


@lru_cache(maxsize=256)
def _prepare(f: Variant, c: Correlation, itemsize: int, threads: int) -> tuple[tuple[int, ...], tuple[np.ndarray, ...]]:
    return fixed(f, c, itemsize, plan(f, c, threads), configuration=address(CONFIGURATION))


def _variant(f: Variant) -> EntryPoints:
    return entry_points(partial(_pack, f), forward_range, partial(_prepare, f))


f4x4_3x3, f4x4_5x5 = map(_variant, COMPUTED)
