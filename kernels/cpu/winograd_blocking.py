"""How Winograd convolution cuts its work, and the scratch memory it needs: plain Python, no Numba.

A block of tiles is transformed, multiplied and written before the next one begins, so that what passes between the
three steps stays in the L2 cache, and so that the transformed weights U, streamed from L3, serve many tiles:

    slab  padded input rows under the block, a vector of channels        [row][column][lane]
    V     transformed input                                             [ξ][tile][c]
    M     products for ``k_group`` tile columns of output channels        [ξ][tile][k]
    U     transformed weights                            [group][k block][ξ][c][COLUMNS]
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

from ..geometry import ConvGeometry
from ..winograd_matrices import VARIANTS, Variant
from .blocking import (
    LINE_BYTES,
    MAX_COLUMN_BYTES,
    MAX_TILE_ROWS,
    MAX_VECTOR_BYTES,
    TILE_VECTORS,
    Correlation,
    _with_half,
    aligned,
    correlation,
    phase_bytes,
    round_up,
)

HELD_BYTES = 1 << 20  # of V and M together: half of a 2 MiB L2
PACK_CHANNELS = 16  # input channels whose taps are gathered at once
ROW_BYTES = 64 << 10


@dataclass(frozen=True)
class Plan:
    """The plan of a Winograd correlation. Tiles are counted; blocks cut an axis of n into b as n * i // b."""

    image_blocks: int
    row_blocks: int
    column_blocks: int
    k_parts: int
    k_group: int  # tile columns of output channels multiplied before their outputs are transformed
    k_blocks: int
    tile_rows: int
    tile_columns: int
    tiles: int  # of the largest block
    slab_rows: int
    slab_columns: int
    v_tile: int  # elements from one tile to the next
    v_xi: int
    m_tile: int
    m_xi: int
    scratch: tuple[int, int, int, int, int, int, int]  # slab, V, M, output rows, turned, vectors, integers
    packed: int  # elements of U
    gathered_bytes: int  # of taps and a few numbers, while one thread packs U

    @property
    def thread_bytes(self) -> int:
        return sum(self.scratch)


def _largest(n: int, blocks: int) -> int:
    return -(-n // blocks)


@lru_cache(maxsize=256)
def plan(f: Variant, c: Correlation, itemsize: int, threads: int, columns: int = 0) -> Plan:
    """Plan for tiles of ``columns`` elements (0: the widest of any CPU)."""
    width = columns or MAX_COLUMN_BYTES // itemsize
    lanes = width // TILE_VECTORS
    _, height, across = c.axes
    tile_rows, tile_columns = _largest(height.out, f.rows[0]), _largest(across.out, f.columns[0])
    channels = round_up(c.group_inputs, MAX_VECTOR_BYTES // itemsize)
    k_blocks = _largest(c.group_outputs, MAX_COLUMN_BYTES // itemsize)
    k_group = K_GROUP or 1
    tiles = TILES or 49
    cut = _cut(max(c.batch, 1), tile_rows, tile_columns, tiles, threads)
    images, rows, cols = (
        _largest(n, b) for n, b in zip((max(c.batch, 1), tile_rows, tile_columns), cut, strict=True)
    )
    tiles = images * rows * cols
    items = math.prod(cut) * c.groups
    k_parts = threads if items % threads and items < 4 * threads else 1
    k_blocks = _largest(c.group_outputs, width)
    k_group = min(k_group, _largest(k_blocks, k_parts))
    slab_rows, slab_columns = rows * f.rows[0] + f.rows[1] - 1, cols * f.columns[0] + f.columns[1] - 1
    line = LINE_BYTES // itemsize
    v_tile, m_tile = channels, k_group * width
    v_xi, m_xi = tiles * v_tile + line, (tiles + MAX_TILE_ROWS) * m_tile + line
    row = f.rows[0] * (cols * f.columns[0])
    integers = 64 + tiles + MAX_TILE_ROWS + 4 * f.rows[0]
    return Plan(
        *cut,
        k_parts,
        k_group,
        k_blocks,
        tile_rows,
        tile_columns,
        tiles,
        slab_rows,
        slab_columns,
        v_tile,
        v_xi,
        m_tile,
        m_xi,
        (
            aligned(slab_rows * slab_columns * lanes * itemsize),
            aligned(f.products * v_xi * itemsize),
            aligned(f.products * m_xi * itemsize),
            aligned((row + lanes) * lanes * itemsize),
            aligned(round_up(row, lanes) * lanes * itemsize),
            aligned(4 * lanes * itemsize),
            aligned(integers * 8),
        ),
        c.groups * k_blocks * f.products * c.group_inputs * width,
        aligned(PACK_CHANNELS * f.taps * lanes * itemsize + 32 * 8),
    )

TILES = 0
K_GROUP = 0

def _cut(batch: int, rows: int, columns: int, tiles: int, threads: int) -> tuple[int, int, int]:
    """How many blocks each of images, tile rows and tile columns are cut into, for about ``tiles`` tiles a block."""
    column_blocks = _largest(columns, tiles)
    wide = _largest(columns, column_blocks)
    if rows * wide > tiles or batch == 1:
        row_blocks = _largest(rows, max(1, tiles // wide))
        if batch % threads:
            while row_blocks < rows and batch * row_blocks * column_blocks % threads:
                row_blocks += 1
        return batch, row_blocks, column_blocks
    image_blocks = _largest(batch, tiles // (rows * wide))
    if image_blocks % threads and image_blocks < 8 * threads:
        image_blocks = min(batch, round_up(image_blocks, threads))
    return image_blocks, 1, column_blocks


def _bytes(f: Variant, c: Correlation, itemsize: int, threads: int) -> int:
    p = plan(f, c, itemsize, c.useful_threads(threads))
    return aligned(p.packed * itemsize) + threads * (p.thread_bytes + p.gathered_bytes)


class Workspaces(NamedTuple):
    """The functions that state how many bytes of workspace a variant needs."""

    variant: Variant

    def forward(self, geometry: ConvGeometry, itemsize: int, threads: int) -> int:
        return _bytes(self.variant, correlation(geometry), itemsize, threads)

    def grad_input(self, geometry: ConvGeometry, itemsize: int, threads: int) -> int:
        return phase_bytes(geometry, itemsize, threads, lambda c: _bytes(self.variant, c, itemsize, threads))


f2x2_3x3, f4x4_3x3, f6x6_3x3, f2x2_5x5, f4x4_5x5, f2_3, f4_3, f6_3 = map(Workspaces, VARIANTS)
