"""The structs of ``tile.cuh``: divisors as multiplications, and the order in which threads take the work."""

from __future__ import annotations

import numpy as np

from .launch import Strides
from .module import MAX_GRID, Grid, Struct

DIVISOR = np.dtype([("divisor", np.uint32), ("magic", np.uint32), ("shift", np.uint32)])
"""``struct Divisor``."""

TILES = np.dtype(
    [
        ("items", np.int64),
        ("columns", DIVISOR),
        ("rows", DIVISOR),
        ("depth", DIVISOR),
        ("channels", DIVISOR),
        ("channels_last", np.int32),
    ],
    align=True,
)
"""``struct Tiles``."""


def divisor(n: int) -> tuple[int, int, int]:
    """``struct Divisor`` of n, 1 <= n < 2^31.

    >>> d, magic, shift = divisor(7)
    >>> all(((i * magic >> 32) + i) >> shift == i // 7 for i in (0, 6, 7, 2**31 - 1))
    True
    """
    shift = (n - 1).bit_length()
    return n, (((1 << shift) - n) << 32) // n + 1, shift


def tiles(batch: int, channels: int, size: tuple[int, ...], tile: tuple[int, int], last: bool) -> Struct:
    """``struct Tiles`` of arrays (batch, channels, *size), cut into tiles of rows and columns.

    >>> tiles(2, 3, (1, 5, 9), (4, 4), False)["items"].item()
    36
    """
    depth, rows, columns = size[0], -(-size[1] // tile[0]), -(-size[2] // tile[1])
    items = batch * channels * depth * rows * columns
    parts = (divisor(max(n, 1)) for n in (columns, rows, depth, channels))
    return Struct.of(TILES, items, *parts, last)


def blocks(items: int, threads: int) -> Grid:
    """A grid of blocks for so many items, a thread each."""
    return (min(-(-items // threads), MAX_GRID), 1, 1)


def is_channels_last(shape: tuple[int, ...], strides: Strides) -> bool:
    """Whether channels lie closer together than pixels.

    >>> is_channels_last((2, 8, 5, 5), (800, 4, 160, 32)), is_channels_last((2, 8, 5, 5), (800, 100, 20, 4))
    (True, False)
    """
    pixel = min((abs(s) for s, size in zip(strides[2:], shape[2:], strict=True) if size > 1), default=0)
    return shape[1] > 1 and abs(strides[1]) < pixel


def rows_of_fours(shape: tuple[int, ...], strides: Strides, itemsize: int) -> bool:
    """Whether every row of an array lies side by side and on a multiple of four elements, its beginning given.

    >>> rows_of_fours((1, 2, 3, 8), (192, 96, 32, 4), 4), rows_of_fours((1, 2, 3, 6), (144, 72, 24, 4), 4)
    (True, False)
    """
    *others, step = strides
    sizes = shape[:-1]
    whole = all(s % (4 * itemsize) == 0 for s, n in zip(others, sizes, strict=True) if n > 1)
    return step == itemsize and shape[-1] % 4 == 0 and whole
