"""How im2col by bf16x3 cuts its work, and the scratch memory it needs: plain Python, no Numba."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from ..geometry import ConvGeometry
from .blocking import Correlation, aligned, correlation, even, phase_bytes, round_up

WIDTH = CHUNK = 32  # positions of a panel and output channels of a tile; rows of a chunk
PIXELS = 192  # of a block, at most
SPLIT_BYTES = 640 << 10  # of a block's matrix, split, in L2
DEPTH = 384  # rows of the matrix at once, unless a tap of 32 channels has more


@dataclass(frozen=True)
class Plan:
    """Blocks of output positions, flat over (image, depth, row, column)."""

    pixels: int  # of a block
    blocks: int
    channels: int  # input channels of a group unrolled at once
    tiles: int  # of 32, that hold a group's output channels
    k_parts: int
    depth: int  # rows of a group's matrix, in whole chunks
    scratch: tuple[int, int, int, int, int]  # panels and what they are split into, sums, turned, input and output runs
    packed: int  # elements of the split weights, of two bytes

    @property
    def thread_bytes(self) -> int:
        return sum(self.scratch)


@lru_cache(maxsize=512)
def im2col(c: Correlation, threads: int) -> Plan:
    taps = max(c.taps, 1)
    channels = c.group_inputs
    if channels * taps > DEPTH:  # steps of whole chunks
        channels = min(channels, max(CHUNK, DEPTH // taps // CHUNK * CHUNK))
    rows = round_up(channels * taps, CHUNK)
    pixels = max(WIDTH, min(PIXELS, SPLIT_BYTES // (6 * rows)) // WIDTH * WIDTH)
    pixels = min(pixels, round_up(max(c.pixels, 1), WIDTH))
    if c.pixels * c.groups < 8 * threads * pixels:  # few blocks: an even number for each thread
        share = -(-c.pixels // threads)
        pixels = min(pixels, round_up(even(share, pixels), WIDTH))
    blocks = -(-c.pixels // pixels)
    tiles = -(-c.group_outputs // WIDTH)
    k_parts = max(1, min(tiles, threads // max(1, blocks * c.groups)))
    depth = round_up(c.group_inputs * c.taps, CHUNK)
    held = 1 if channels == c.group_inputs else -(-tiles // k_parts)  # tiles whose sums wait for more channels
    scratch = (
        aligned(pixels * rows * (4 + 6)), aligned(held * WIDTH * pixels * 4), aligned(WIDTH * pixels * 4),
        aligned(pixels * 6 * 8), aligned(pixels * 4 * 8),
    )  # fmt: skip
    return Plan(pixels, blocks, channels, tiles, k_parts, depth, scratch, c.groups * tiles * WIDTH * depth * 3)


def _bytes(c: Correlation, threads: int) -> int:
    threads = c.useful_threads(threads)
    plan = im2col(c, threads)
    return aligned(plan.packed * 2) + aligned(plan.packed // 3 * 4) + threads * plan.thread_bytes


@lru_cache(maxsize=512)
def forward_workspace(geometry: ConvGeometry, itemsize: int, threads: int) -> int:
    """Bytes of workspace for ``bf16x3_im2col.forward``, its weights packed there too."""
    return _bytes(correlation(geometry), threads)


@lru_cache(maxsize=512)
def grad_input_workspace(geometry: ConvGeometry, itemsize: int, threads: int) -> int:
    """Bytes of workspace for ``bf16x3_im2col.grad_input``."""
    return phase_bytes(geometry, itemsize, threads, lambda c: _bytes(c, threads))
