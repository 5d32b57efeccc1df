"""How im2col convolution cuts its work, and the scratch memory it needs: plain Python (see ``blocking``)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from ..geometry import ConvGeometry
from .blocking import (
    CHUNK_BYTES,
    CHUNK_PIXELS,
    MAX_COLUMN_BYTES,
    MAX_TILE_ROWS,
    MAX_VECTOR_BYTES,
    Correlation,
    aligned,
    correlation,
    even,
    phase_bytes,
    round_up,
    with_half,
)  # fmt: skip

PANEL_PIXELS = 192  # of an im2col block
PANEL_DEPTH = 384  # rows of an im2col block (input channels x taps)


@dataclass(frozen=True)
class Im2colForward:
    """The plan of an im2col correlation: blocks of output positions, flat over (image, depth, row, column)."""

    pixels: int  # of a block
    blocks: int
    channels: int  # input channels of a group unrolled at once
    group_batch: int  # groups unrolled at once
    tiles: int  # tile rows that hold a group's output channels
    k_parts: int
    scratch: tuple[int, int, int, int, int]  # panels, sums, sums transposed, input runs, output runs
    packed: int  # elements of the packed weights

    @property
    def thread_bytes(self) -> int:
        return sum(self.scratch)


@lru_cache(maxsize=512)
def forward(c: Correlation, itemsize: int, threads: int, tile_rows: int = MAX_TILE_ROWS) -> Im2colForward:
    width = MAX_COLUMN_BYTES // itemsize
    pixels = min(PANEL_PIXELS, round_up(max(c.pixels, 1), width))
    if c.pixels * c.groups < 8 * threads * pixels:  # few blocks: an even number for each thread
        share = -(-c.pixels // threads)
        pixels = min(pixels, round_up(even(share, pixels), width))
    blocks = -(-c.pixels // pixels)
    k_parts = max(1, min(-(-c.group_outputs // MAX_TILE_ROWS), threads // max(1, blocks * c.groups)))
    most_channels = max(1, PANEL_DEPTH // max(c.taps, 1))
    channels = min(c.group_inputs, most_channels)
    group_batch = even(c.groups, most_channels // c.group_inputs)
    sums = (c.group_outputs // k_parts + 2 * MAX_TILE_ROWS) * pixels * itemsize
    panels = aligned(group_batch * channels * c.taps * pixels * itemsize)
    tiles = -(-c.group_outputs // tile_rows)
    scratch = (panels, aligned(sums), aligned(sums), aligned(pixels * 6 * 8), aligned(pixels * 4 * 8))
    packed = c.groups * tiles * tile_rows * c.taps * c.group_inputs
    return Im2colForward(pixels, blocks, channels, group_batch, tiles, k_parts, scratch, packed)


def _bytes(c: Correlation, itemsize: int, threads: int) -> int:
    threads = c.useful_threads(threads)
    packed = c.groups * (c.group_outputs + MAX_TILE_ROWS) * c.taps * c.group_inputs
    return aligned(packed * itemsize) + threads * forward(c, itemsize, threads).thread_bytes


@lru_cache(maxsize=512)
def forward_workspace(geometry: ConvGeometry, itemsize: int, threads: int) -> int:
    """Bytes of workspace for ``im2col.forward``, its weights packed there too."""
    return with_half(geometry, itemsize, lambda size: _bytes(correlation(geometry), size, threads))


@lru_cache(maxsize=512)
def grad_input_workspace(geometry: ConvGeometry, itemsize: int, threads: int) -> int:
    """Bytes of workspace for ``im2col.grad_input``."""

    def nbytes(size: int) -> int:
        return phase_bytes(geometry, size, threads, lambda c: _bytes(c, size, threads))

    return with_half(geometry, itemsize, nbytes)


@dataclass(frozen=True)
class Im2colWeight:
    """The plan of an im2col weight gradient; chunks depend on the problem alone."""

    group_batch: int  # groups of a chunk
    pixels: int  # of a chunk
    row_stride: int  # of the unrolled matrix, in elements
    rows: int  # of a group's unrolled matrix: taps x group inputs
    padded_rows: int
    k_blocks: int
    matrix_bytes: int
    dy_bytes: int
    sum_bytes: int
    runs_bytes: int  # a thread

    @property
    def shared_bytes(self) -> int:
        return self.matrix_bytes + self.dy_bytes + self.sum_bytes


def weight_gradient(c: Correlation, itemsize: int, columns: int = 0) -> Im2colWeight:
    columns = columns or MAX_COLUMN_BYTES // itemsize
    rows = c.taps * c.group_inputs
    group_batch = even(c.groups, PANEL_DEPTH // rows)
    k_bytes = round_up(c.group_outputs, MAX_COLUMN_BYTES // itemsize) * itemsize
    pixels = max(128, min(CHUNK_PIXELS, CHUNK_BYTES // (group_batch * max(rows * itemsize, k_bytes))))
    pixels = min(pixels, c.pixels)
    line = MAX_VECTOR_BYTES // itemsize
    row_stride = (round_up(pixels, line) // line | 1) * line  # an odd number of lines: rows spread over cache sets
    k_blocks = -(-c.group_outputs // columns)
    padded_rows = rows + MAX_TILE_ROWS
    return Im2colWeight(
        group_batch,
        pixels,
        row_stride,
        rows,
        padded_rows,
        k_blocks,
        aligned(group_batch * rows * row_stride * itemsize),
        aligned(group_batch * k_blocks * pixels * columns * itemsize),
        aligned(group_batch * k_blocks * padded_rows * columns * itemsize),
        aligned(pixels * 6 * 8),
    )


@lru_cache(maxsize=512)
def grad_weight_workspace(geometry: ConvGeometry, itemsize: int, threads: int) -> int:
    """Bytes of workspace for ``im2col.grad_weight``."""

    def nbytes(size: int) -> int:
        plan = weight_gradient(correlation(geometry), size)
        return plan.shared_bytes + threads * plan.runs_bytes

    return with_half(geometry, itemsize, nbytes)
