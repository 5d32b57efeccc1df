"""How the bfloat16 convolution cuts its work, and the scratch memory it needs: plain Python, no Numba."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from ..geometry import ConvGeometry
from .blocking import Correlation, aligned, correlation, even, phase_correlations, round_up

ROWS = COLUMNS = CHUNK = 32  # of a tile: positions, output channels, input channels a step
SLAB_BYTES = 512 << 10  # of one thread's packed input rows
BLOCK_PIXELS = 512  # of one thread's block: the packed weights stream through L2 once for each


@dataclass(frozen=True)
class Plan:
    """Blocks of ``rows x columns`` output positions of one depth of one image, and the slab under one.

    The slab's positions are sorted by the phases of the stride, [plane][row phase][column phase][row][column], so that
    under every tap neighbouring outputs lie one pixel apart. A block's positions are computed as if its rows were
    ``pitch`` long, as the slab's are: those between the rows are thrown away.
    """

    rows: int
    columns: int
    slab_rows: int  # padded input rows and columns under the block
    slab_columns: int
    phase_rows: int  # of one phase
    pitch: int  # columns of one phase
    pixel: int  # input channels of a group, in whole chunks
    positions: int  # of a block, in whole tiles
    k_blocks: int
    k_parts: int
    scratch: tuple[int, int, int, int]  # slab, a tile's sums, the block's sums transposed, a run of the residual
    packed: int  # elements of the packed weights

    @property
    def thread_bytes(self) -> int:
        return sum(self.scratch)


@lru_cache(maxsize=512)
def plan(c: Correlation, threads: int) -> Plan:
    depth, height, width = c.axes
    pixel = round_up(c.group_inputs, CHUNK)

    def slab(rows: int, columns: int) -> tuple[int, int, int]:
        """Rows and columns of a phase, bytes of the slab; a tile may read past the last position."""
        phase_rows = max(rows, -(-height.extent(rows) // height.stride))
        pitch = max(columns, -(-width.extent(columns) // width.stride))  # also where no tap reaches the block
        planes = depth.kernel * height.stride * width.stride
        return phase_rows, pitch, (planes * phase_rows * pitch + ROWS) * pixel * 2

    columns = even(width.out, BLOCK_PIXELS)
    while columns > ROWS and slab(1, columns)[2] > SLAB_BYTES:
        columns = even(width.out, columns // 2)
    rows = even(height.out, max(1, BLOCK_PIXELS // columns))
    while rows > 1 and slab(rows, columns)[2] > SLAB_BYTES:
        rows = even(height.out, rows - 1)
    k_blocks, k_parts = -(-c.group_outputs // COLUMNS), 1
    others = c.batch * depth.out * -(-width.out // columns) * c.groups
    row_blocks = -(-height.out // rows)
    if threads > 1 and others * row_blocks % threads and others * row_blocks < 8 * threads:
        parts = [p for p in range(row_blocks, row_blocks + threads) if others * p % threads == 0]
        if parts and parts[0] <= height.out:
            rows = even(height.out, -(-height.out // parts[0]))
        else:
            k_parts = min(k_blocks, threads // math.gcd(others * row_blocks, threads))
    phase_rows, pitch, slab_bytes = slab(rows, columns)
    positions = round_up(max((rows - 1) * pitch + columns, 1), ROWS)
    scratch = (slab_bytes, ROWS * COLUMNS * 4, COLUMNS * positions * 4, positions * 4)
    packed = c.groups * k_blocks * c.taps * pixel * COLUMNS
    extents = (height.extent(rows), width.extent(columns))
    return Plan(
        rows, columns, *extents, phase_rows, pitch, pixel, positions, k_blocks, k_parts,
        (aligned(scratch[0]), *scratch[1:3], aligned(scratch[3])), packed,
    )  # fmt: skip


def _nbytes(c: Correlation, threads: int) -> int:
    threads = c.useful_threads(threads)
    chosen = plan(c, threads)
    return aligned(chosen.packed * 2) + threads * chosen.thread_bytes


@lru_cache(maxsize=512)
def forward_workspace(geometry: ConvGeometry, itemsize: int, threads: int) -> int:
    """Bytes of workspace for ``bfloat16.forward``, its weights packed there too."""
    return _nbytes(correlation(geometry), threads)


@lru_cache(maxsize=512)
def grad_input_workspace(geometry: ConvGeometry, itemsize: int, threads: int) -> int:
    """Bytes of workspace for ``bfloat16.grad_input``, whose phases run one after another."""
    return max((_nbytes(c, threads) for _, c in phase_correlations(geometry)), default=0)
