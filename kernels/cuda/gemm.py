"""What the launchers of matrix products share: where results go, partial sums, packed weights.

Structs and instances of ``gemm.cuh``, ``result.cuh`` and ``gemm_passes.cu``. A result has rows (positions of up to four
axes) and columns (one stride); axes that lie behind one another in memory are merged here, so that the kernel divides
less, and :func:`result` finds whether four of its elements can be written at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .gemm_tiles import Tile
from .module import Instance, Struct, driver

ACROSS = {"nothing": 0, "rows": 1, "columns": 2}
"""``enum Across``: what lies side by side, by fours."""

RESULT = np.dtype(
    [
        ("rows", np.int32),
        ("columns", np.int32),
        ("groups", np.int32),
        ("splits", np.int32),
        ("across", np.int32),
        ("activation", np.int32),
        ("axes", np.int32),
        ("size", np.int32, 4),
        ("row", np.int64, 4),
        ("column", np.int64),
        ("residual_row", np.int64, 4),
        ("residual_column", np.int64),
    ],
    align=True,
)
"""``struct Result`` of ``result.cuh``, field by field."""

PACKING = np.dtype(
    [
        ("groups", np.int32),
        ("inputs", np.int32),
        ("outputs", np.int32),
        ("padded_inputs", np.int32),
        ("rows", np.int32),
        ("pitch", np.int32),
        ("kernel", np.int32, 3),
        ("group", np.int64),
        ("output", np.int64),
        ("input", np.int64),
        ("tap", np.int64, 3),
    ],
    align=True,
)
"""``struct Packing`` of ``gemm_passes.cu``, field by field."""

PACK = Instance("gemm_passes", "pack_weights")
ADD = Instance("gemm_passes", "add_parts")
PASS_BLOCK = (256, 1, 1)
PACK_SIDE, PACK_SHARED = 32, 32 * 33 * 4

H200_MULTIPROCESSORS = 132


def multiprocessors() -> int:
    """Of the device that the next launch goes to; of an H200 where there is none, for predictions."""
    try:
        return driver().multiprocessors
    except RuntimeError:
        return H200_MULTIPROCESSORS


def instance(stem: str, symbol: str, tile: Tile, *defines: tuple[str, str | int]) -> Instance:
    """A kernel of ``stem.cu`` for a tile."""
    sizes = (
        ("TILE_ROWS", tile.rows), ("TILE_COLUMNS", tile.columns), ("THREAD_COLUMNS", tile.thread_columns),
        ("BLOCKS", tile.blocks),
    )  # fmt: skip
    return Instance(stem, symbol, (*sizes, *defines), tile.threads, max_registers=65536 // tile.blocks // tile.threads)


def merged(sizes: Sequence[int], *strides: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Axes without those of size 1, neighbours that every one of ``strides`` walks through in one run made one.

    >>> merged((2, 1, 3, 4), (60, 9, 4, 1), (12, 0, 4, 1))
    ((2, 12), (60, 1), (12, 1))
    """
    axes = [axis for axis in zip(sizes, *strides, strict=True) if axis[0] != 1]
    kept: list[tuple[int, ...]] = []
    for n, *steps in axes:
        if kept and all(before == n * step for before, step in zip(kept[-1][1:], steps, strict=True)):
            kept[-1] = (kept[-1][0] * n, *steps)
        else:
            kept.append((n, *steps))
    return tuple(zip(*(kept or [(1,) + (0,) * len(strides)]), strict=True))


def result(
    sizes: Sequence[int], columns: int, groups: int, row: Sequence[int], column: int, other_row: Sequence[int],
    other_column: int, *, splits: int = 1, activation: int = 0, aligned: bool = False,
) -> Struct:  # fmt: skip
    """The struct of a result. ``aligned``: it and the residual begin at multiples of 16 bytes.

    Rows are positions of axes of ``sizes`` with strides ``row`` (the residual's: ``other_row``), in elements; a result
    without a residual gives its own strides twice.
    """
    size, at, other = merged(sizes, row, other_row)
    pad = (0,) * (4 - len(size))
    across = "nothing"
    if aligned:
        rest = (*at[:-1], *other[:-1])
        if at[-1] == other[-1] == 1 and not any(n % 4 for n in (size[-1], column, other_column, *rest)):
            across = "rows"
        elif column == other_column == 1 and not any(n % 4 for n in (columns, *at, *other)):
            across = "columns"
    fields = (
        int(np.prod(size, dtype=np.int64)), columns, groups, splits, ACROSS[across], activation, len(size),
        (*size, *(1 for _ in pad)), (*at, *pad), column, (*other, *pad), other_column,
    )  # fmt: skip
    return Struct.of(RESULT, *fields)
