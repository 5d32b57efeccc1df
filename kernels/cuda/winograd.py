"""Launches ``winograd.cu`` and ``winograd_products.cu``: Winograd F(4x4, 3x3) in chunks of tiles, float32.

A chunk is transformed to V, multiplied to M and transformed back before the next one begins. How many tiles it has is
a trade, made by ``chunks`` from the device's facts: V and M of a small one stay in the L2 cache, a large one fills all
multiprocessors to the end and is launched less often. The result does not depend on it.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np

from ..geometry import ConvGeometry
from . import gemm
from .gemm_tiles import DEPTH, LARGE, NARROW, Tile, choose
from .launch import both_directions, grid
from .module import AMPERE, Grid, Instance, driver
from .winograd_weights import (
    BLOCK_OUTPUTS,
    Call,
    Layout,
    Packing,
    aligned_vector,
    correlate,
    correlation,
    matrix_defines,
    padded,
    tile_count,
)

OUTPUTS, PRODUCTS = 4, 36
TILES, CHANNELS = 128, 2  # of winograd_input; TILES also rows of a tile of the products
PRODUCT_TILES = (LARGE, NARROW)
TURNED_TILES, TURNED_CHANNELS, TURNED_PITCH = 8, 32, 9  # of winograd_input_last
_DEFINES = matrix_defines(OUTPUTS)
PACKING = Packing("winograd", (("INDEX", "int"), *_DEFINES), OUTPUTS, 1, panels=False)


def instance(symbol: str, index: str) -> Instance:
    threads = TURNED_TILES * TURNED_CHANNELS if symbol == "winograd_input_last" else TILES
    return Instance("winograd", symbol, (("INDEX", index), *_DEFINES), threads, AMPERE)


def products_instance(tile: Tile) -> Instance:
    return gemm.instance("winograd_products", "winograd_products", tile)


def forward_instances() -> tuple[Instance, ...]:
    """Every instance that ``forward`` or ``grad_input`` may launch."""
    symbols = ("winograd_input", "winograd_input_last", "winograd_output")
    transforms = (instance(symbol, index) for symbol in symbols for index in ("int", "long long"))
    return (PACKING.instance, *transforms, *map(products_instance, PRODUCT_TILES))


grad_input_instances = forward_instances

# ------------------------------------------------------------------------------------------------------------- chunks

H200 = (50 << 20, 132)  # bytes of its L2 cache, its multiprocessors: where no device is at hand
L2_SHARE = 0.75  # of the L2 cache that V and M may fill before their lines are evicted
MAX_BYTES = 256 << 20  # of V and M

# Cycles of an H200, predicted: of the three launches of a chunk, each with an idle start and end; of a byte of V and M
# that a transform moves, in the L2 cache and beyond. The products move the same bytes again, behind their arithmetic.
LAUNCH_CYCLES = 9000.0
L2_BYTES_PER_CYCLE, MEMORY_BYTES_PER_CYCLE = 3000, 2000


class Chunks(NamedTuple):
    """Tiles of a chunk, a multiple of TILES; the tile of its products; cycles predicted for all chunks."""

    tiles: int
    tile: Tile
    cycles: float


def chunk_bytes(c: ConvGeometry) -> int:
    """Bytes of V and M for TILES tiles."""
    outputs = c.groups * padded(c.out_channels // c.groups, BLOCK_OUTPUTS)
    return 4 * PRODUCTS * TILES * (c.in_channels + outputs)


@lru_cache(maxsize=1024)
def chunks(c: ConvGeometry, l2_bytes: int, multiprocessors: int, room: int) -> Chunks:
    """The chunks that are predicted to be fastest among those whose V and M take at most ``room`` bytes.

    >>> layer = ConvGeometry(32, 256, 256, (28, 28), (3, 3), (1, 1), ((1, 1), (1, 1)))
    >>> chunks(layer, *H200, MAX_BYTES).tiles
    1664
    """
    blocks = max(1, -(-tile_count(c, OUTPUTS) // TILES))
    size, steps = chunk_bytes(c), -(-(c.in_channels // c.groups) // DEPTH)
    outputs = padded(c.out_channels // c.groups, BLOCK_OUTPUTS)

    def cut(rows: int) -> Chunks:
        products = choose(rows * TILES, outputs, PRODUCTS * c.groups, steps, multiprocessors, PRODUCT_TILES, 1)
        rate = L2_BYTES_PER_CYCLE if rows * size <= L2_SHARE * l2_bytes else MEMORY_BYTES_PER_CYCLE
        cycles = LAUNCH_CYCLES + rows * size / rate + products.cycles
        return Chunks(rows * TILES, products.tile, -(-blocks // rows) * cycles)

    fewest = -(-blocks // max(1, min(blocks, room // size)))
    rows = {-(-blocks // count) for count in range(fewest, min(blocks, fewest + 63) + 1)}
    return min(map(cut, sorted(rows)), key=lambda found: found.cycles)


def _facts() -> tuple[int, int]:
    try:
        device = driver()
    except RuntimeError:  # sizes are asked for where there is no GPU, too
        return H200
    return device.l2_bytes, device.multiprocessors


def _workspace(direction: str, geometry: ConvGeometry, itemsize: int, threads: int) -> int:
    c = correlation(direction, geometry)
    return PACKING.nbytes(c) + chunks(c, *_facts(), MAX_BYTES).tiles // TILES * chunk_bytes(c)


forward_workspace = partial(_workspace, "forward")
grad_input_workspace = partial(_workspace, "grad_input")
pack_forward = partial(PACKING.packed, "forward")
pack_grad_input = partial(PACKING.packed, "grad_input")

# ------------------------------------------------------------------------------------------------------------ launches


class Plan(NamedTuple):
    """What follows from a layout, the device and the room: three launches for each chunk, input, products, output."""

    kernels: tuple[Instance, Instance, Instance]
    grids: tuple[Grid, Grid, Grid]
    blocks: tuple[Grid, Grid, Grid]
    shared: tuple[int, int]
    chunks: tuple[tuple[Any, Any, Any], ...]  # first tile, tiles, pitch
    v_bytes: int
    read: tuple[Any, ...]  # the last arguments of each
    sizes: tuple[Any, ...]
    written: tuple[Any, ...]


@lru_cache(maxsize=1024)
def _plan(known: Layout, l2_bytes: int, multiprocessors: int, room: int, wide: bool, width: int) -> Plan:
    """``wide``: whether columns 1 to 4 of a tile are aligned to 16 bytes; ``width``: outputs stored at once."""
    c = known.correlation
    total = tile_count(c, OUTPUTS)
    pitch, product_tile, _ = chunks(c, l2_bytes, multiprocessors, room)
    outputs = c.out_channels // c.groups
    padding = padded(outputs, BLOCK_OUTPUTS)
    number, tile = np.int32, np.int32 if known.offsets == "int" else np.int64

    read: tuple[Any, ...] = (number(wide),)
    transform, threads, shared = "winograd_input", TILES, 0
    blocks = pitch // TILES * -(-c.in_channels // CHANNELS)
    if known.input_last:
        read, transform, threads = (), "winograd_input_last", TURNED_TILES * TURNED_CHANNELS
        shared = 4 * PRODUCTS * TURNED_CHANNELS * TURNED_PITCH
        blocks = pitch // TURNED_TILES * -(-c.in_channels // TURNED_CHANNELS)
    last = number(known.output_last)
    product_blocks = PRODUCTS * c.groups * pitch // TILES * -(-padding // product_tile.columns)
    written = -(-outputs // 32) * (pitch // (TILES // 32)) if known.output_last else outputs * (pitch // TILES)
    return Plan(
        (
            instance(transform, known.offsets),
            products_instance(product_tile),
            instance("winograd_output", known.offsets),
        ),
        (grid(blocks), grid(product_blocks), grid(written * c.groups)),
        ((threads, 1, 1), (product_tile.threads, 1, 1), (TILES, 1, 1)),
        (shared, product_tile.shared_bytes),
        tuple((tile(first), number(min(pitch, total - first)), number(pitch)) for first in range(0, total, pitch)),
        4 * PRODUCTS * c.in_channels * pitch,
        read,
        (*map(number, (PRODUCTS * c.groups, c.in_channels // c.groups, pitch, padding)), last),
        (number(padding), last, number(width)),
    )


def _run(call: Call) -> None:
    known, device = call.layout, call.driver
    # Columns 1 to 4 of a tile are aligned where the padding is 1: the tile's first output then lies on them.
    wide = known.input_vector == 4 and known.correlation.padding[1][0] == 1 and not int(call.given) % 16
    width = aligned_vector(known.output_vector, int(call.out), int(call.residual))
    plan = _plan(known, device.l2_bytes, device.multiprocessors, min(call.room, MAX_BYTES), wide, width)
    v, m = np.uint64(call.scratch), np.uint64(call.scratch + plan.v_bytes)
    products = (v, call.weights, m, *plan.sizes)
    to_v, to_m, to_y = map(device.function, plan.kernels)
    (v_grid, m_grid, y_grid), (v_block, m_block, y_block) = plan.grids, plan.blocks
    for chunk in plan.chunks:
        to_v(v_grid, v_block, (known.struct, call.given, v, *chunk, *plan.read), plan.shared[0])
        to_m(m_grid, m_block, products, plan.shared[1])
        arguments = (known.struct, m, call.bias, call.residual, call.out, *chunk, *plan.written)
        to_y(y_grid, y_block, arguments, 0)


forward, grad_input = both_directions(partial(correlate, _run, PACKING))
