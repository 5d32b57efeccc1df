"""Which tile a matrix product is cut into, and how often its reduction is split: pure functions of sizes.

A block computes one tile; a multiprocessor gets ``blocks / multiprocessors`` of them, rounded up. Two losses follow:
in the last round multiprocessors are idle (a tail), and few blocks do not fill them at all. Smaller tiles and splits of
the reduction mend both, at a price: a small tile loads more for a product, a split writes partial sums and adds them.
:func:`choose` counts cycles for every tile and some numbers of splits, and takes the least.

    cycles = blocks of a multiprocessor * (steps * cycles of a step / how full it is + START)  [+ partial sums]
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

DEPTH, STAGES = 16, 3
"""Of ``gemm.cuh``: the reduction of a step, and the steps that are in shared memory."""

FFMA = 128
"""Multiply-adds of a multiprocessor in a cycle."""
WARPS = 8
"""Warps that fill a multiprocessor: two a scheduler, with 32 or 64 independent multiply-adds each."""
START = 2500.0
"""Cycles of a tile besides its steps: first copies, epilogue; less where another block computes meanwhile."""
PART_BYTES = 2000.0
"""Bytes of partial sums that the device writes or reads in a cycle."""
PASS = 5000.0
"""Cycles of one more launch."""
SPLITS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64, 96, 128)
LEAST_STEPS = 4  # of a split


class Tile(NamedTuple):
    """A tile of ``gemm.cuh``: its sizes, a thread's columns, blocks of it on a multiprocessor, and the share of its
    instructions that are multiply-adds."""

    rows: int
    columns: int
    thread_columns: int
    blocks: int
    share: float

    @property
    def threads(self) -> int:
        return self.rows // 8 * (self.columns // self.thread_columns)

    @property
    def shared_bytes(self) -> int:
        """Of the stages; also what the epilogue takes."""
        return STAGES * DEPTH * (self.rows + 4 + self.columns + 4) * 4


LARGE = Tile(128, 128, 8, 2, 0.88)
NARROW = Tile(128, 64, 8, 4, 0.87)
SMALL = Tile(64, 64, 4, 4, 0.80)
SLIM = Tile(128, 32, 4, 4, 0.78)
TILES = (LARGE, NARROW, SMALL, SLIM)


class Choice(NamedTuple):
    """A tile, the splits of the reduction, and the cycles that they are predicted to take."""

    tile: Tile
    splits: int
    cycles: float

    def blocks(self, rows: int, columns: int, groups: int) -> int:
        """Blocks of the launch."""
        return -(-rows // self.tile.rows) * -(-columns // self.tile.columns) * groups * self.splits


@lru_cache(maxsize=4096)
def choose(
    rows: int, columns: int, groups: int, steps: int, multiprocessors: int, tiles: tuple[Tile, ...] = TILES,
    most_splits: int = SPLITS[-1],
) -> Choice:  # fmt: skip
    """The tile and splits of the least predicted cycles for ``groups`` products of rows x columns, of ``steps`` steps.

    >>> choose(100352, 256, 1, 36, 132).tile == LARGE, choose(49, 512, 1, 288, 132).splits > 4
    (True, True)
    """
    best = None
    for tile in tiles:
        for splits in SPLITS:
            if splits > 1 and (splits > most_splits or steps < splits * LEAST_STEPS):
                break
            if splits > 1 and rows * columns * groups >= 2**31:  # elements of a part are counted in 32 bits
                break
            cycles = _cycles(rows, columns, groups, steps, multiprocessors, tile, splits)
            if best is None or cycles < best.cycles:
                best = Choice(tile, splits, cycles)
    assert best is not None, "there are tiles"
    return best


def _cycles(rows: int, columns: int, groups: int, steps: int, multiprocessors: int, tile: Tile, splits: int) -> float:
    blocks = Choice(tile, splits, 0).blocks(rows, columns, groups)
    each = max(1, -(-blocks // multiprocessors))
    together = min(each, tile.blocks)
    full = min(1.0, together * tile.threads / 32 / WARPS)
    step = tile.rows * tile.columns * DEPTH / FFMA / tile.share
    cycles = each * (-(-steps // splits) * step / full + START / together)
    if splits > 1:
        cycles += 2 * 4 * rows * columns * groups * splits / PART_BYTES + PASS
    return cycles


def part_bytes(rows: int, columns: int, groups: int) -> int:
    """Bytes of the partial sums of one split, whichever way they lie."""
    return 4 * groups * max(rows * (columns + 3 & ~3), columns * (rows + 3 & ~3))
