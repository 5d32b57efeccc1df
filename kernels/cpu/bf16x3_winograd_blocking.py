"""How Winograd convolution by bf16x3 cuts its work, and the scratch memory it needs: plain Python, no Numba.

As in ``winograd_blocking``; what differs follows from the tiles of 16 rows by 16 columns, of sums over 32 channels at a
time, and from products three times as fast:

    V     transformed input, float32                [ξ][c // 16][tile][c % 16]      channels in whole 32s
    A     V of a step, split, and of the next one   [c // 32][tile // 16][tile % 16][part][32]
    M     products                                  [ξ][k // 16][tile][k % 16]
    U     transformed weights, split                [group][ξ][c // 64][k // 16][c // 32 % 2][c % 16][part][32]

A step is 64 tiles and 64 channels of one ξ, 24 KB that stay in L1, times all columns of outputs: so V is split once.
A block has whole 16s of tiles.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from ..geometry import ConvGeometry
from ..winograd_matrices import VARIANTS, Variant
from .blocking import Correlation, aligned, correlation, phase_bytes, round_up
from .winograd_blocking import M_BYTES, V_BYTES, Plan, grid

CHUNK = 32  # channels that a step sums over
SIDE = 16  # tiles and output channels of a register
BLOCK = SIDE * 3 * CHUNK  # 16-bit elements of 16 split rows
A_BYTES = 2 * 4 * BLOCK * 2  # of 64 tiles and 64 channels
QUEUE = 8  # numbers of ``bf16x3_panels``' queue
TILES = 128  # of a block: U comes from L3. With 32 256 channels of 56x56 and 128 of 112x112 take 25% longer


@lru_cache(maxsize=256)
def plan(f: Variant, c: Correlation, threads: int) -> Plan:
    cells_of = grid(f, c)
    total, phases = cells_of.total, cells_of.phases
    chunks, k_blocks = -(-c.group_inputs // CHUNK), -(-c.group_outputs // SIDE)
    unit = max(1, SIDE // phases)
    units = -(-total // unit)
    # Few tiles: each thread reads its part of U and transforms all tiles, rather than the other way round.
    k_parts = threads if units < 2 * threads and k_blocks >= threads else 1
    most = max(1, min(TILES, V_BYTES // (f.products * chunks * CHUNK * 4)) // (unit * phases))  # units of a block
    blocks = -(-units // most)
    if k_parts == 1 and blocks * c.groups < 16 * threads:
        blocks = min(units, round_up(blocks, threads))
    cells = -(-units // blocks) * unit
    tiles = cells * phases  # a dilation beyond the width has fewer
    rows = round_up(tiles, SIDE)
    k_group = max(1, min(-(-k_blocks // k_parts), M_BYTES // (f.products * (rows + 1) * SIDE * 4)))
    v_block = m_block = (rows | 1) * SIDE
    v_xi, m_xi = 2 * chunks * v_block + SIDE, k_group * m_block + SIDE
    slab_columns, slab, positions, turned = cells_of.buffers(f, cells, SIDE)
    return Plan(
        cells_of,
        0,
        blocks,
        unit,
        k_parts,
        k_group,
        k_blocks,
        0,
        0,
        0,
        SIDE,
        c.group_inputs,
        c.group_inputs,
        slab_columns,
        v_block,
        v_xi,
        m_block,
        m_xi,
        False,
        (
            aligned(slab * 4),
            aligned((f.products * v_xi + SIDE * SIDE) * 4),
            aligned(f.products * m_xi * 4),
            aligned(positions * 4),
            aligned(turned * 4),
            aligned(4 * SIDE * 4),
            aligned((64 + 4 * f.rows[0] + QUEUE) * 8),
            2 * A_BYTES,
        ),
        c.groups * f.products * k_blocks * chunks * BLOCK,
        aligned(CHUNK * f.taps * SIDE * 4 + 32 * 8) + f.products * (CHUNK * SIDE + SIDE) * 4,
    )


def _bytes(f: Variant, c: Correlation, threads: int) -> int:
    p = plan(f, c, c.useful_threads(threads))
    return aligned(p.packed * 2) + threads * (p.thread_bytes + p.gathered_bytes)


class Workspaces(NamedTuple):
    """The functions that state how many bytes of workspace a variant needs."""

    variant: Variant

    def forward(self, geometry: ConvGeometry, itemsize: int, threads: int) -> int:
        return _bytes(self.variant, correlation(geometry), threads)

    def grad_input(self, geometry: ConvGeometry, itemsize: int, threads: int) -> int:
        return phase_bytes(geometry, itemsize, threads, lambda c: _bytes(self.variant, c, threads))


COMPUTED = tuple(v for v in VARIANTS if v.name in ("f4x4_3x3", "f4x4_5x5"))
"""Those that gain; any of two dimensions and stride 1 could be."""

f4x4_3x3, f4x4_5x5 = map(Workspaces, COMPUTED)
