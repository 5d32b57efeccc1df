"""Packing weights for tiles of bfloat16 products: rows of B, of the numbers as they are or in three parts.

    w (groups, K/groups, C/groups, D, R, S)  ->  [group, block of 32 outputs][chunk][tap][16 outputs][pair of inputs]

in two steps, through the float32 columns of ``weights``. 0.6 to 0.9 ns a weight, of which the columns take 0.3.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from . import bfloat16_blocking as blocking
from .arrays import Workspace, address, aligned_empty, computable
from .bfloat16_blocking import CHUNK, COLUMNS
from .bfloat16_tiles import pack_pairs, row_shorts
from .blocking import Correlation
from .bound import Bound
from .compile import jit
from .gemm import zero
from .simd import pointer, shift, unpack
from .weights import pack_columns


class Weights(NamedTuple):
    """What ``pack_range`` is told."""

    columns: int  # float32 weights, [block][tap][input][output of the block]
    packed: int
    blocks: int
    inputs: int
    taps: int
    zeros: int  # the weights of a channel that is missing


ZEROS = np.zeros(16, np.float32)
_WEIGHT_FIELDS = len(Weights._fields)


@jit(inline=True)
def pack_share(t, threads, table, kind):
    """Share ``t`` of the weights: rows of B, [block][chunk][tap][16 outputs][pair of inputs], missing ones zeros."""
    g = Weights(*unpack(table, _WEIGHT_FIELDS))
    row, none = row_shorts(kind), pointer(g.zeros, np.float32(0))
    apart = 1 if row == CHUNK else CHUNK // 2  # two channels of a pair
    for block in range(g.blocks * t // threads, g.blocks * (t + 1) // threads):
        columns = shift(pointer(g.columns, np.float32(0)), block * g.taps * g.inputs * COLUMNS)
        target = shift(pointer(g.packed, np.int16(0)), block * -(-g.inputs // CHUNK) * g.taps * COLUMNS * row)
        for c in range(0, g.inputs, CHUNK):
            for tap in range(g.taps):
                for k in range(0, COLUMNS, 16):
                    for p in range(16):
                        lower = c + (2 * p if apart == 1 else p)
                        source = shift(columns, (tap * g.inputs + lower) * COLUMNS + k)
                        if lower + apart < g.inputs:
                            pack_pairs(kind, source, shift(source, apart * COLUMNS), target)
                        elif lower < g.inputs:
                            pack_pairs(kind, source, none, target)
                        else:
                            zero(target, row)
                        target = shift(target, row)


@jit
def pack_bfloat16(t, threads, table, chunk, kind):
    """Share ``t`` of the weights in one part."""
    pack_share(t, threads, table, np.int16(0))


@jit
def pack_float32(t, threads, table, chunk, kind):
    """Share ``t`` of the weights in three parts."""
    pack_share(t, threads, table, np.float32(0))


THREAD_ELEMENTS = 1 << 16  # that pay for another thread
_SHORT, _SINGLE = np.dtype(np.int16), np.dtype(np.float32)


@lru_cache(maxsize=256)
def _bind_pack(c: Correlation, itemsize: int, threads: int) -> Bound:
    blocks = c.groups * blocking.plan(c, itemsize, 1).k_blocks
    fields = Weights(0, 0, blocks, c.group_inputs, c.taps, address(ZEROS))
    return Bound(pack_bfloat16 if itemsize == 2 else pack_float32, np.float32(0), threads, fields, (0, 1))


def pack(c: Correlation, w: np.ndarray, scratch: Workspace | None, threads: int) -> np.ndarray:
    """Weights (groups, K/groups, C/groups, D, R, S) packed for ``c``, in the workspace or an array of their own."""
    size, more = blocking.plan(c, w.itemsize, 1).packed, blocking.unpacked(c)
    packed = scratch.take(size, _SHORT) if scratch else aligned_empty(size, _SHORT)
    if size:
        mark = scratch.used if scratch else 0
        columns = scratch.take(more, _SINGLE) if scratch else aligned_empty(more, _SINGLE)
        pack_columns(computable(w), columns, False, COLUMNS, threads)
        bound = _bind_pack(c, w.itemsize, min(threads, max(1, w.size // THREAD_ELEMENTS)))
        bound(address(columns), address(packed))
        if scratch:
            scratch.used = mark
    return packed
