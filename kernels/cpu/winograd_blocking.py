"""How Winograd convolution cuts its work, and the scratch memory it needs: plain Python, no Numba.

A block of tiles (whole cells, see ``winograd``) is transformed, multiplied and written before the next one begins, so
that what passes between the three steps stays in the L2 cache, and so that the transformed weights U, streamed from L3,
serve many tiles:

    slab  padded input rows under the block, a vector of channels        [row][column][lane]
    V     transformed input                            [ξ][c // lanes][tile][c % lanes]
    M     products for ``k_group`` tile columns of output channels        [ξ][k // lanes][tile][k % lanes]
    U     transformed weights                   [group][k // u_group][ξ][k block][c][COLUMNS], in order of use

Weights that serve one call, where each thread has one block and U would go through L3, are read as they are: a block
transforms ``CHUNK_BYTES`` of U, some input channels of a tile column, just before it multiplies them. Two threads, µs,
after and before: 256 channels of 14x14 567 and 775, 512 of 7x7 (F(2x2)) 1040 and 1330, 512 of 14x14 2070 and 2910.
With plans U is faster (334 us and 450 for the first), even where it comes from memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from ..geometry import ConvGeometry
from ..winograd_matrices import VARIANTS, Variant, axis_tiles
from .blocking import (
    LINE_BYTES,
    MAX_COLUMN_BYTES,
    MAX_TILE_ROWS,
    TILE_VECTORS,
    Axis,
    Correlation,
    aligned,
    correlation,
    even,
    phase_bytes,
    round_up,
)
from .caches import caches

PACK_CHANNELS = 16  # input channels whose taps are gathered at once


class Grid(NamedTuple):
    """The cells of a plane, by strips of ``strip`` cell columns, in each strip row by row."""

    dilation_h: int
    dilation_w: int
    tile_rows: int  # of all phases
    cell_columns: int
    cell_w: int  # output columns of a cell
    strip: int
    phases: int  # tiles of a cell
    planes: int  # of the outputs: one of each image, or in volumes for each depth
    plane: int  # cells
    total: int  # cells of all planes, 1 where there are none
    tiles: int

    def buffers(self, f: Variant, cells: int, lanes: int) -> tuple[int, int, int, int]:
        """Columns of a slab, and elements of a slab, rows of the output and those turned, for blocks of ``cells``."""
        narrowest = self.cell_columns - (self.cell_columns - 1) // self.strip * self.strip  # here blocks have most rows
        rows, (stride_h, stride_w) = min(self.tile_rows, -(-cells // narrowest) + 1), f.strides
        columns = stride_w * (self.strip * self.cell_w + (f.columns[1] - 1) * self.dilation_w)
        positions = f.rows[0] * self.strip * self.cell_w
        slab = stride_h * (rows * f.rows[0] + f.rows[1] - 1) * columns * lanes
        return columns, slab, (positions + lanes) * lanes, round_up(positions, lanes) * lanes


@dataclass(frozen=True)
class Plan:
    """The plan of a Winograd correlation.

    Cells are numbered plane by plane, in each by strips of ``strip`` cell columns, in each strip row by row. A block is
    a range of these numbers, so blocks are as equal as can be whatever the size of the image.
    """

    grid: Grid
    turns: int  # of images whose planes of one depth are a block; 0: blocks are equal, and cross planes
    blocks: int
    unit: int  # cells of which blocks are multiples
    k_parts: int
    k_group: int  # tile columns of output channels multiplied before their outputs are transformed
    k_blocks: int
    chunk: int  # input channels whose U is made at once, just before its use; 0: U is packed
    u_xi: int
    u_group: int  # tile columns whose U of one ξ are neighbours: the k_group of one thread
    width: int  # elements of a row of U: a tile column, or a vector where that holds all outputs of a group
    depth: int  # of the products: input channels, of all phases of a stride and all slices under a volume's taps
    part: int  # channels from one phase or slice to the next, whole vectors
    slab_columns: int
    v_block: int  # elements from one vector of channels to the next
    v_xi: int
    m_block: int
    m_xi: int
    fetch_input: bool
    scratch: tuple[int, int, int, int, int, int, int, int]  # slab, V, M, output rows, turned, vectors, integers, chunk
    packed: int  # elements of U; 0 where a chunk at a time is made
    gathered_bytes: int  # of taps and a few numbers, while one thread packs U

    @property
    def thread_bytes(self) -> int:
        return sum(self.scratch)


STRIP_TILES = 56  # tile columns of a strip
L2_PRODUCTS = 28 * 36  # tiles x products of a block whose V stays in L2
L3_PRODUCTS = 64 * 36  # of a block whose V does not
SMALL_L2 = 1 << 20  # an L2 cache below this is small
SMALL_L3_PRODUCTS = 32 * 36
L2_V_BYTES = 768 << 10  # of V in L2, and no more than three quarters of it
ONCE_BLOCKS = 1  # of tiles, a thread's; with 2, 5x5 kernels take a quarter longer
ONCE_BYTES = 1 << 20  # of U, more than stays in L2 beside V
CHUNK_BYTES = 600 << 10
FEW_TILES = 32  # of groups with few outputs, in whole planes: whose input and output is one piece of memory
V_BYTES = 6 << 20  # of V and M at most: with them a thread needs less than 16 MiB, where no single cell needs more
M_BYTES = 8 << 20


def dilation(f: tuple[int, int], axis: Axis) -> int:
    """The distance of the taps that F(m, r) tells apart."""
    return axis.dilation if f[1] > 1 else 1


@lru_cache(maxsize=256)
def grid(f: Variant, c: Correlation) -> Grid:
    deep, height, across = c.axes
    dilation_h, dilation_w = dilation(f.rows, height), dilation(f.columns, across)
    tile_rows, cell_w = axis_tiles(f.rows, height.out, dilation_h), f.columns[0] * dilation_w
    columns = -(-across.out // cell_w)
    planes, plane = c.batch * deep.out, tile_rows * columns
    strip, total = even(columns, STRIP_TILES // dilation_w), max(1, planes * plane)
    tiles = max(1, planes * tile_rows * axis_tiles(f.columns, across.out, dilation_w))
    phases = max(1, min(dilation_w, across.out))
    return Grid(dilation_h, dilation_w, tile_rows, columns, cell_w, strip, phases, planes, plane, total, tiles)


def parts(f: Variant, c: Correlation) -> int:
    """What V and U hold of the input channels: each phase of a stride, under each tap of a volume's kernel."""
    return f.parts * max(1, c.axes[0].kernel)  # zeros for none, as in phases of a stride that no tap reaches


def few_outputs(f: Variant, c: Correlation, itemsize: int, columns: int) -> bool:
    """Whether groups have at most one tile column of outputs, and products of their own (see ``winograd_few``)."""
    widest = MAX_COLUMN_BYTES // itemsize
    return f.parts == 1 and c.group_outputs <= min(columns, widest if c.groups > 1 else widest // TILE_VECTORS)


@lru_cache(maxsize=256)
def plan(f: Variant, c: Correlation, itemsize: int, threads: int, columns: int = 0, once: bool = False) -> Plan:
    """Plan for tiles of ``columns`` elements (0: the widest of any CPU); ``once``: for weights that serve one call."""
    widest = MAX_COLUMN_BYTES // itemsize
    width = columns or widest
    lanes, line = width // TILE_VECTORS, LINE_BYTES // itemsize
    cells_of = grid(f, c)
    total, phases = cells_of.total, cells_of.phases
    held, k_blocks = parts(f, c), -(-c.group_outputs // width)
    part = c.group_inputs if held == 1 else round_up(c.group_inputs, lanes)
    channels, depth = held * round_up(c.group_inputs, line), held * part
    most, group, k_parts = _block(f, c, itemsize, cells_of.tiles, cells_of.strip * phases, threads)
    most = max(1, most // phases)
    turns = _turns(c, cells_of, most, threads)
    # whether blocks are whole planes must not depend on the CPU, whether U has narrow rows may
    few = few_outputs(f, c, itemsize, widest)
    narrow = f.parts == 1 and c.group_outputs <= lanes
    blocks, unit = turns * c.axes[0].out or -(-total // most), 1
    if few and not turns and 0 < cells_of.plane * phases <= FEW_TILES:
        unit = cells_of.plane
        blocks = max(1, -(-cells_of.planes // (FEW_TILES // (unit * phases))))
    if k_parts == 1 and blocks * c.groups < 16 * threads and not turns:
        blocks = min(-(-total // unit), round_up(blocks, threads))
    cells = -(-c.batch // turns) * cells_of.plane if turns else -(-total // (blocks * unit)) * unit
    tiles = cells * phases  # a dilation beyond the width has fewer
    u_group = min(group * (widest // width), k_blocks)
    width = lanes if narrow else width
    packed = f.products * c.groups * (k_blocks * depth * width + -(-k_blocks // u_group) * line)
    chunk, slices = 0, held // f.parts
    transformed = f.products * c.out_channels * held * c.group_inputs  # on every CPU: workspaces do not ask
    if once and f.parts == 1 and transformed * itemsize > ONCE_BYTES and blocks <= ONCE_BLOCKS * threads:
        longest = max(lanes, CHUNK_BYTES // (f.products * MAX_COLUMN_BYTES) // lanes * lanes)
        chunk, u_group, packed = min(round_up(c.group_inputs, lanes), longest), 1, 0
    gathered = c.group_inputs if slices > 1 else chunk  # their taps: a chunk is of one slice
    k_group, u_xi = min(u_group, -(-k_blocks // k_parts)), chunk * width + line
    v_block, m_block = (tiles | 1) * lanes, (tiles + MAX_TILE_ROWS | 1) * lanes
    v_xi, m_xi = channels // lanes * v_block + line, k_group * width // lanes * m_block + line
    elements = cells_of.tiles * f.outputs * (c.in_channels + c.out_channels)  # of input and output, about
    flat = cells_of.planes == c.batch and c.axes[0].kernel == 1
    slab_columns, slab, rows, turned = cells_of.buffers(f, cells, lanes)
    return Plan(
        cells_of,
        turns,
        blocks,
        unit,
        k_parts,
        k_group,
        k_blocks,
        chunk,
        u_xi,
        u_group,
        width,
        depth,
        part,
        slab_columns,
        v_block,
        v_xi,
        m_block,
        m_xi,
        flat and caches().l2 < SMALL_L2 and itemsize * (elements + packed) > caches().l3,
        (
            aligned(slab * itemsize),
            aligned((f.products * v_xi + MAX_TILE_ROWS * lanes) * itemsize),
            aligned(f.products * m_xi * itemsize),
            aligned(rows * itemsize),
            aligned(turned * itemsize),
            aligned(4 * lanes * itemsize),
            aligned((64 + tiles + MAX_TILE_ROWS + 4 * f.rows[0]) * 8),
            aligned((f.products * u_xi + gathered * slices * f.taps * width) * itemsize) if chunk else 0,
        ),
        packed,
        aligned(PACK_CHANNELS * slices * f.taps * lanes * itemsize + 32 * 8),
    )


def _turns(c: Correlation, cells_of: Grid, most: int, threads: int) -> int:
    """How many turns of images to take, whose planes of one depth are a block of at most so many cells; or 0.

    Where padding reaches over whole slices, a block of one depth leaves them out.
    """
    depths, images = c.axes[0].out, most // max(1, cells_of.plane)
    if depths < 2 or min(images, c.batch) < 2:
        return 0
    turns = round_up(-(-c.batch // images), threads // math.gcd(threads, depths))
    return turns if turns <= c.batch else 0


def _block(f: Variant, c: Correlation, itemsize: int, total: int, strip: int, threads: int) -> tuple[int, int, int]:
    """Tiles of a block, tile columns of outputs multiplied at once, and parts that output channels are cut into.

    Up to 128 channels (F(4, 3), float32) V fits in L2: small blocks, one tile column after another reads all of V.
    With more channels U is so large that blocks must be, too; then V and M go through L3, and each ξ is multiplied with
    all columns in turn, which reads V once. GFLOP/s of direct convolution, two threads, batch 1:

        channels, size      28 tiles, 1 column    49 tiles, 1 or 2    49 tiles, all    98 tiles, all
        64, 224 -> 64               1028                 895               906              808
        128, 112 -> 128             1318                1104              1095             1066
        256, 56 -> 256              1064                1275              1353             1379
        512, 28 -> 512              1079                1203              1299             1294

    With 512 KiB of L2 (Zen 3) the same at half the size: 64 channels keep V in L2, 128 do not, and 28 to 36 tiles
    instead of 64 take 9 to 11% less time for 256 and 512 channels of 56x56, 2 to 5% less for 28x28 and 14x14. Whole
    rows of tiles share more rows of the slab: 28 of them, where a row has 14 or 28, beat 24 by 5%, 31 and 36 by 3%.
    """
    k_blocks = -(-c.group_outputs // (MAX_COLUMN_BYTES // itemsize))
    channels = parts(f, c) * round_up(c.group_inputs, LINE_BYTES // itemsize)
    # Few tiles: each thread reads its part of U and transforms all tiles, rather than the other way round.
    k_parts = threads if total < threads * MAX_TILE_ROWS and k_blocks >= threads else 1
    most = tiles = -(-L2_PRODUCTS // f.products)
    k_group = 1
    l2 = caches().l2
    if L2_PRODUCTS * channels * itemsize > min(L2_V_BYTES, l2 * 3 // 4):
        k_group = k_blocks
        most = tiles = -(-(L3_PRODUCTS if l2 >= SMALL_L2 else SMALL_L3_PRODUCTS) // f.products)
        if l2 < SMALL_L2:
            whole = (n for n in range(tiles, tiles * 3 // 4, -1) if total % n == 0 and n % strip == 0)
            tiles = next(whole, tiles)
        most, tiles = (max(1, min(n, V_BYTES // (f.products * channels * itemsize))) for n in (most, tiles))
    # by ``most``, not by ``tiles``: weights packed for a batch serve pieces of it
    k_group = max(1, min(k_group, M_BYTES // (f.products * (most + MAX_TILE_ROWS) * MAX_COLUMN_BYTES)))
    return tiles, k_group, k_parts


def _bytes(f: Variant, c: Correlation, itemsize: int, threads: int, once: bool) -> int:
    p = plan(f, c, itemsize, c.useful_threads(threads), once=once)
    return aligned(p.packed * itemsize) + threads * (p.thread_bytes + p.gathered_bytes)


class Workspaces(NamedTuple):
    """The functions that state how many bytes of workspace a variant needs."""

    variant: Variant

    def forward(self, geometry: ConvGeometry, itemsize: int, threads: int) -> int:
        c = correlation(geometry)
        prepared = threads * plan(self.variant, c, itemsize, c.useful_threads(threads)).thread_bytes
        return max(prepared, _bytes(self.variant, c, itemsize, threads, True))

    def grad_input(self, geometry: ConvGeometry, itemsize: int, threads: int) -> int:
        return phase_bytes(geometry, itemsize, threads, lambda c: _bytes(self.variant, c, itemsize, threads, False))


(
    f2x2_3x3,
    f3x3_3x3,
    f4x4_3x3,
    f5x5_3x3,
    f6x6_3x3,
    f2x2_5x5,
    f4x4_5x5,
    f4x4_2x2,
    s2_f2x2_3x3,
    s2_f2x2_4x4,
    s2_f4x4_4x4,
    s2_f2x2_5x5,
    f2_3,
    f4_3,
    f6_3,
    s2_f4_3,
) = map(Workspaces, VARIANTS)
