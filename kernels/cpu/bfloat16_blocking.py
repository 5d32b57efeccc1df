"""How convolution in bfloat16 products cuts its work, and the scratch memory it needs: plain Python, no Numba."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from ..geometry import ConvGeometry
from .blocking import Axis, Correlation, aligned, correlation, even, phase_bytes, round_up

ROWS = COLUMNS = CHUNK = 32  # of a tile: positions, output channels, input channels a step
SLAB_BYTES = 768 << 10  # of one thread's packed input rows
BLOCK_PIXELS = 1024  # of one thread's block: the packed weights stream through L2 once for each
WEIGHT_BYTES = 1 << 20  # of packed weights of a 1x1 kernel that may stay in L2
SMALL_PIXELS = 64  # of a block of channels-last output then: its slab stays in L1


def row_shorts(itemsize: int) -> int:
    """Elements, of 2 bytes, of a packed row of 32 channels: bfloat16's, or those of float32 in three parts."""
    return CHUNK * (1 if itemsize == 2 else 3)


@dataclass(frozen=True)
class Plan:
    """Blocks of ``rows x columns`` output positions of one depth of one image, and the slab under one.

    The slab's positions are sorted by the phases of the stride, [plane][row phase][column phase][row][column], so that
    under every tap neighbouring outputs lie one pixel apart. A block's positions are computed as if its rows were
    ``pitch`` long, as the slab's are: those between the rows are thrown away.
    """

    single: bool  # one tap: blocks are cut from the positions of all images, which count as rows of one column
    all_rows: int  # that blocks are cut from
    rows: int
    columns: int
    small: int  # rows of channels-last output, or 0 where those should not be fewer
    slab_rows: int  # padded input rows and columns under the block
    slab_columns: int
    phase_rows: int  # of one phase
    pitch: int  # columns of one phase
    chunks: int
    chunk_step: int  # elements from one chunk of channels to the next
    tile_step: int  # elements from one tile's positions to the next's
    positions: int  # of a block, in whole tiles
    k_blocks: int
    k_parts: int
    scratch: tuple[int, ...]  # bytes: slab, a tile's sums, the block's sums transposed, 16 positions, runs
    packed: int  # elements of the packed weights

    @property
    def thread_bytes(self) -> int:
        return sum(self.scratch)


def _shared(width: Axis, columns: int) -> int:
    """Columns of padding with which a row of the slab may end in the next row, which begins with as many zeros."""
    if columns < width.out or width.stride > 1:
        return 0
    zeros = (width.source[: width.extent(columns)] < 0).tolist()
    return min(ROWS, *([*line, False].index(False) for line in (zeros, zeros[::-1])))


@lru_cache(maxsize=512)
def plan(c: Correlation, itemsize: int, threads: int) -> Plan:
    depth, height, width = c.axes
    row, chunks = row_shorts(itemsize), -(-c.group_inputs // CHUNK)
    single = c.taps == 1
    all_rows, all_columns = (c.pixels, 1) if single else (height.out, width.out)
    packed = c.groups * -(-c.group_outputs // COLUMNS) * c.taps * chunks * COLUMNS * row
    small = SMALL_PIXELS if single and packed // c.groups * 2 <= WEIGHT_BYTES else 0

    def slab(rows: int, columns: int) -> tuple[int, int, int]:
        """Rows and columns of a phase, positions of the slab; a tile may read past the last."""
        if single:
            return rows, columns, round_up(rows * columns, ROWS)
        phase_rows = max(rows, -(-height.extent(rows) // height.stride))
        pitch = -(-width.extent(columns) // width.stride) - _shared(width, columns)
        pitch = max(columns, pitch)  # also where no tap reaches the block
        planes = depth.kernel * height.stride * width.stride
        return phase_rows, pitch, planes * phase_rows * pitch + ROWS

    def slab_bytes(rows: int, columns: int) -> int:
        return slab(rows, columns)[2] * chunks * row * 2

    columns = even(all_columns, BLOCK_PIXELS)
    while columns > ROWS and slab_bytes(1, columns) > SLAB_BYTES:
        columns = even(all_columns, columns // 2)
    rows = even(all_rows, max(1, BLOCK_PIXELS // columns))
    while rows > 1 and slab_bytes(rows, columns) > SLAB_BYTES:
        rows = even(all_rows, rows - 1)
    k_blocks, k_parts = -(-c.group_outputs // COLUMNS), 1
    others = -(-all_columns // columns) * c.groups * (1 if single else c.batch * depth.out)
    row_blocks = -(-all_rows // rows)
    if threads > 1 and others * row_blocks % threads and others * row_blocks < 8 * threads:
        parts = [p for p in range(row_blocks, row_blocks + threads) if others * p % threads == 0]
        if parts and parts[0] <= all_rows:
            rows = even(all_rows, -(-all_rows // parts[0]))
        else:
            k_parts = min(k_blocks, threads // math.gcd(others * row_blocks, threads))
    phase_rows, pitch, held = slab(rows, columns)
    positions = round_up(max((rows - 1) * pitch + columns, 1), ROWS)
    tile = ROWS * row
    chunk_step, tile_step = (tile, tile * chunks) if single else (held * row, tile)
    scratch = (
        held * chunks * row * 2, ROWS * COLUMNS * 4, COLUMNS * positions * 4,
        ROWS // 2 * CHUNK * 4, rows * 4 * 8,
    )  # fmt: skip
    extents = (height.extent(rows), width.extent(columns))
    return Plan(
        single, all_rows, rows, columns, small, *extents, phase_rows, pitch, chunks, chunk_step, tile_step, positions,
        k_blocks, k_parts, tuple(map(aligned, scratch)), packed,
    )  # fmt: skip


def unpacked(c: Correlation) -> int:
    """Elements of the weights in float32, sorted by tile columns, from which they are packed."""
    return c.groups * -(-c.group_outputs // COLUMNS) * COLUMNS * c.taps * c.group_inputs


def _nbytes(c: Correlation, itemsize: int, threads: int) -> int:
    threads = c.useful_threads(threads)
    chosen = plan(c, itemsize, threads)
    return aligned(chosen.packed * 2) + max(aligned(unpacked(c) * 4), threads * chosen.thread_bytes)


@lru_cache(maxsize=512)
def forward_workspace(geometry: ConvGeometry, itemsize: int, threads: int) -> int:
    """Bytes of workspace for ``bfloat16.forward``, its weights packed there too."""
    return _nbytes(correlation(geometry), itemsize, threads)


@lru_cache(maxsize=512)
def grad_input_workspace(geometry: ConvGeometry, itemsize: int, threads: int) -> int:
    """Bytes of workspace for ``bfloat16.grad_input``, whose phases run one after another."""
    return phase_bytes(geometry, itemsize, threads, lambda c: _nbytes(c, itemsize, threads))
