"""Launches ``im2col_weight.cu``: the gradient of a convolution's weights as a product over the output's positions.

Splits of the positions are a pure function of sizes and multiprocessors; their partial sums lie in the workspace and
are added in order, so that a result never depends on which block is done first.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from ..geometry import ConvGeometry
from . import gemm
from .gemm_tiles import DEPTH, LARGE, NARROW, SMALL, Choice, Tile, choose, part_bytes
from .launch import NULL, Strides, conv_struct, elements, grid, pointers, readable, whole, writable
from .module import Grid, Instance, driver

ITEM = 4  # bytes of a float
TILES = (LARGE, NARROW, SMALL)
POINTER_BYTES, TAP_BYTES, ROW_BYTES = 8, 12, 16
"""Of an address, of ``struct Tap``, of ``struct Row``."""


class Plan(NamedTuple):
    """What follows from geometry and strides."""

    kernel: Instance
    grid: Grid
    block: Grid
    shared: int
    conv: Any
    result: Any
    slots: Any
    splits: int
    add_grid: Grid


def _kernel(gather: str, width: int, tile: Tile) -> Instance:
    return gemm.instance("im2col_weight", "im2col_grad_weight", tile, ("GATHER", gather), ("WIDTH", width))


def grad_weight_instances() -> tuple[Instance, ...]:
    """Every instance that ``grad_weight`` may launch."""
    wide = (_kernel(gather, width, tile) for gather, width in (("POSITIONS", 1), ("CHANNELS", 4)) for tile in TILES)
    return (*wide, _kernel("CHANNELS", 1, SMALL), gemm.ADD)


def _sizes(g: ConvGeometry) -> tuple[int, int, int]:
    """Rows and columns of a group, groups."""
    return g.in_channels // g.groups * math.prod(g.kernel_size), g.out_channels // g.groups, g.groups


def choice(g: ConvGeometry, multiprocessors: int, tiles: tuple[Tile, ...] = TILES, room: int | None = None) -> Choice:
    """Tile and splits; ``room`` bounds the bytes of partial sums."""
    sizes, steps = _sizes(g), -(-g.batch * math.prod(g.output_size) // DEPTH)
    return choose(*sizes, steps, multiprocessors, tiles, *(() if room is None else (room // part_bytes(*sizes),)))


def grad_weight_workspace(g: ConvGeometry, itemsize: int, threads: int) -> int:
    """Bytes of workspace for ``grad_weight``: the partial sums of the splits."""
    splits = choice(g, gemm.multiprocessors()).splits
    return splits * part_bytes(*_sizes(g)) if splits > 1 else 0


def _slots(tile: Tile, g: ConvGeometry) -> int:
    """Taps that the rows of a tile reach at most."""
    inputs = g.in_channels // g.groups
    return min((inputs + tile.rows - 2) // inputs + 1, math.prod(g.kernel_size))


def _shared(gather: str, tile: Tile, g: ConvGeometry) -> int:
    """Bytes of shared memory of a block. A group of few channels has many slots."""
    slots = _slots(tile, g)
    bytes_of_rows = tile.rows * ROW_BYTES if gather == "POSITIONS" else 0
    tables = 2 * (slots + 1) * DEPTH * POINTER_BYTES + (slots * TAP_BYTES + 15) // 16 * 16
    return tile.shared_bytes + tables + bytes_of_rows


@lru_cache(maxsize=1024)
def _plan(
    g: ConvGeometry, x: Strides, dy: Strides, dw: Strides, aligned: bool, multiprocessors: int, shared: int, room: int
) -> Plan | None:
    """``aligned`` says whether all arrays begin at multiples of 16 bytes; ``shared`` is what a block may have, ``room``
    the workspace. None where elements do not lie on multiples of their size."""
    if not whole(ITEM, x, dy, dw):
        return None
    rows, columns, groups = _sizes(g)
    inputs = g.in_channels // g.groups
    xs, ys, ws = (elements(s, ITEM) for s in (x, dy, dw))
    gather, width = "POSITIONS", 1
    tiles: tuple[Tile, ...] = TILES
    if xs[1] == ys[1] == 1:
        quads = aligned and not any(
            n % 4 for n in (inputs, columns, *_steps(g.input_shape, xs), *_steps(g.output_shape, ys))
        )
        gather, width, tiles = ("CHANNELS", 4, TILES) if quads else ("CHANNELS", 1, (SMALL,))
    fitting = tuple(tile for tile in tiles if _shared(gather, tile, g) <= shared)  # on Turing not always all
    chosen = choice(g, multiprocessors, fitting, room)
    tile, splits, _ = chosen
    taps = (1,) * (3 - g.rank) + g.kernel_size
    axes = (ws[2], ws[3], ws[4], ws[1])
    result = gemm.result((*taps, inputs), columns, groups, axes, ws[0], axes, ws[0], splits=splits, aligned=aligned)
    return Plan(
        _kernel(gather, width, tile), grid(chosen.blocks(rows, columns, groups)), (tile.threads, 1, 1),
        _shared(gather, tile, g), conv_struct(g, ITEM, x, dw, dy, None, None), result, np.int32(_slots(tile, g)),
        splits, grid(-(-rows * columns * groups // 256)),
    )  # fmt: skip


def _steps(shape: tuple[int, ...], strides: Strides) -> list[int]:
    """Strides in elements of all axes but the channels that have more than one element."""
    lifted = (*shape[:2], *(1,) * (5 - len(shape)), *shape[2:])
    return [stride for i, (n, stride) in enumerate(zip(lifted, strides, strict=True)) if n > 1 and i != 1]


def grad_weight(geometry: ConvGeometry, x: Any, dy: Any, out: Any, *, workspace: Any = None, threads: int = 1) -> None:
    """``out`` = gradient of the weights."""
    if not x.size or not dy.size:
        out[...] = 0
        return
    current = driver()
    arrays = pointers(current, ITEM, x, dy, out, workspace)
    plan = None
    if arrays is not None:
        x_at, dy_at, to, parts = arrays
        aligned = not (x_at | dy_at | to) & np.uint64(15)
        room = 0 if workspace is None else workspace.size
        facts = current.multiprocessors, current.shared_bytes_per_block
        plan = _plan(geometry, x.strides, dy.strides, out.strides, aligned, *facts, room)
    if plan is None:
        with writable(out) as target:
            grad_weight(geometry, readable(x), readable(dy), target, workspace=workspace, threads=threads)
        return
    arguments = plan.conv, plan.result, x_at, dy_at, to, parts, plan.slots
    current.function(plan.kernel)(plan.grid, plan.block, arguments, plan.shared)
    if plan.splits > 1:
        current.function(gemm.ADD)(plan.add_grid, gemm.PASS_BLOCK, (plan.result, parts, NULL, NULL, to), 0)
