"""How direct convolution cuts its work, and the scratch memory it needs: plain Python (see ``blocking``)."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from functools import lru_cache

from ..geometry import ConvGeometry
from .blocking import (
    CHUNK_BYTES,
    CHUNK_PIXELS,
    LINE_BYTES,
    MAX_COLUMN_BYTES,
    MAX_TILE_ROWS,
    MAX_VECTOR_BYTES,
    REDUCTION_PIXELS,
    TILE_VECTORS,
    Correlation,
    aligned,
    correlation,
    even,
    makespan,
    phase_bytes,
    round_up,
    with_half,
)  # fmt: skip

SLAB_BYTES = 256 << 10
"""Of one thread's packed input rows, or those read in place: 512 KB is 1 to 5% slower on 1x1 layers, 160 KB 1 to 2%."""
BLOCK_PIXELS = 300  # of one thread's block: 98 to 300 measured equal, below 50 the weights' traffic shows
FEW_PIXELS = 98  # fewer in a block, and a slab may be two or four times as large
SELDOM = 2  # blocks of positions, at most, for each of which a tile column's weights are packed again
PAIR_SHARE = 3
"""Of the L2, which part the weights of two tile columns may take at a time, as those that come next are fetched there,
too. A 6th or a 12th: the same, but for 2048 channels of a 1x1, whose one tap cannot be cut (single columns: 8% slower).
All taps of 512 channels at once (1.2 MB; L2 2 MB): 8% slower than single columns on 14x14 at stride 2."""
MAX_LANE_OUTPUTS = 4  # a group: with 8, dense tiles a quarter full (45 GFLOP/s) beat lane by lane
ALIASED_BYTES = 512  # positions this far apart, or a multiple, crowd into few sets of the L1 cache
CROWDED_BYTES = 2048  # the same for the rows of a forward tile, of which each keeps to a line for a while


@dataclass(frozen=True)
class Slabs:
    """How channels are grouped into slabs, the packed channels-last copies of input rows.

    Dense: a slab holds one group's input channels; each is multiplied with a vector of output channels.
    By lane (few outputs a group, depthwise above all): a slab holds, for each of a tile row's output channels, the
    input channel under it, so that lanes multiply lanes and no lane idles.
    """

    by_lane: bool
    count: int  # slabs that cover all channels
    pixel: int  # elements of one slab position
    outputs: int  # output channels computed from one slab
    blocks: int  # tile columns that hold them


@lru_cache(maxsize=512)
def slabs(c: Correlation, itemsize: int, columns: int) -> Slabs:
    if c.groups > 1 and c.group_outputs <= MAX_LANE_OUTPUTS:
        return Slabs(True, -(-c.out_channels // columns), c.group_inputs * columns, columns, 1)
    return Slabs(False, c.groups, c.group_inputs, c.group_outputs, -(-c.group_outputs // columns))


@dataclass(frozen=True)
class Block:
    """A block of output positions, ``images x rows x columns`` of one depth, and the slab under it."""

    images: int
    rows: int
    columns: int
    slab_rows: int
    slab_columns: int

    @property
    def pixels(self) -> int:
        return self.images * self.rows * self.columns


def _block(c: Correlation, pixel_bytes: int, limit: int, pixels: int, most_columns: int, row_parts: int = 1) -> Block:
    depth, height, width = c.axes

    def nbytes(images: int, rows: int, columns: int) -> int:
        return images * depth.kernel * height.extent(rows) * width.extent(columns) * pixel_bytes

    columns = even(width.out, most_columns)
    while columns > MAX_TILE_ROWS and nbytes(1, 1, columns) > limit:
        columns = even(width.out, columns // 2)
    rows = even(height.out, min(pixels // columns, -(-height.out // row_parts)))
    while rows > 1 and nbytes(1, rows, columns) > limit:
        rows = even(height.out, rows - 1)
    images = 1
    if (depth.out, rows, columns) == (1, height.out, width.out):
        images = even(c.batch, pixels // (rows * columns))
        while images > 1 and nbytes(images, rows, columns) > limit:
            images = even(c.batch, images - 1)
    return Block(images, rows, columns, height.extent(rows), width.extent(columns))


@dataclass(frozen=True)
class DirectForward:
    """The plan of a direct correlation; bytes are those of one thread's scratch."""

    slabs: Slabs
    block: Block
    k_parts: int
    scratch: tuple[int, ...]  # slab, sums, sums transposed, tile rows' offsets, output runs, own weights
    packed: int  # elements of the packed weights, 0 where each thread packs those that it needs

    @property
    def thread_bytes(self) -> int:
        return sum(self.scratch)


def _apart(c: Correlation, slabs: Slabs, itemsize: int) -> Slabs:
    """A line between the slab's positions where those of a tile's rows would share one or two sets of the L1 cache.

    The rows read positions a stride apart: 512 float32 channels and a stride of 2 put all 14 of them in one set of 12
    ways (512x38 in, 3x3, stride 2: 76% of the products' floor against 90%).
    """
    crowded = not slabs.by_lane and slabs.pixel * itemsize * c.axes[2].stride % CROWDED_BYTES == 0
    return replace(slabs, pixel=slabs.pixel + LINE_BYTES // itemsize) if crowded else slabs


def _shared(
    c: Correlation, slabs: Slabs, itemsize: int, threads: int, unpacked: bool, limit: int, block: Block
) -> tuple[Block, int]:
    """The block, cut so that threads get equal shares, and the number of parts of the output channels.

    Where few blocks do not divide evenly, rows are cut so that they do, else images or output channels, if that is more
    even (56 rows: 14 blocks of 4, not 11 of 5 and one of 1; 17 rows: 9 and 8; 7 rows and 512 channels: 256 and 256).
    """
    pixel_bytes, height = slabs.pixel * itemsize, c.axes[1].out
    others = -(-c.batch // block.images) * c.axes[0].out * -(-c.axes[2].out // block.columns) * slabs.count
    row_blocks = -(-height // block.rows)

    def largest_share(rows: int, parts_of_k: list[int]) -> float:
        sizes = [rows] * (height // rows) + ([height % rows] if height % rows else [])
        items = [n * part for n in sizes for part in parts_of_k]
        return makespan(items, others, threads) / (others * height * sum(parts_of_k))

    few = threads > 1 and 0 < others * row_blocks < 8 * threads
    if not few or largest_share(block.rows, [1]) * threads <= 1.01:
        return block, 1
    shares: dict[float, int] = {}
    for parts in range(row_blocks, 2 * row_blocks + threads):
        shares.setdefault(largest_share(even(height, -(-height // parts)), [1]), parts)
    least = min(shares)
    whole = threads // math.gcd(others * row_blocks, threads)
    vectors = -(-c.group_outputs * itemsize // MAX_VECTOR_BYTES)
    cut = [min(TILE_VECTORS * (slabs.blocks * i // whole), vectors) for i in range(whole + 1)]
    share_of_k = largest_share(block.rows, [last - first for first, last in itertools.pairwise(cut)])
    # two threads that share the positions both pack all weights; that share the outputs, all input
    many_weights = c.taps * c.group_outputs > 4 * c.batch * math.prod(axis.source.size for axis in c.axes)
    if unpacked and others * row_blocks == slabs.count and many_weights and share_of_k * threads < 1.01:
        return block, whole
    if least * threads < 1.01 or (block.images == 1 and least < share_of_k + 0.02):
        return _block(c, pixel_bytes, limit, BLOCK_PIXELS, 512, shares[least]), 1
    if block.images > 1 and c.batch >= threads:
        return _block(c, pixel_bytes, limit, BLOCK_PIXELS * c.batch // threads // block.images, 512), 1
    return block, whole


@lru_cache(maxsize=512)
def forward(c: Correlation, itemsize: int, threads: int, columns: int = 0, unpacked: bool = False) -> DirectForward:
    """Plan for tiles of ``columns`` elements (0: the widest of any CPU).

    ``unpacked`` weights are packed by the thread that needs them, a tile column at a time, where that is seldom enough.
    """
    # blocks must not depend on the CPU: workspace sizes do not
    widest = _apart(c, slabs(c, itemsize, MAX_COLUMN_BYTES // itemsize), itemsize)
    group = _apart(c, slabs(c, itemsize, columns or MAX_COLUMN_BYTES // itemsize), itemsize)
    columns = columns or MAX_COLUMN_BYTES // itemsize
    for limit in (SLAB_BYTES, 2 * SLAB_BYTES, 4 * SLAB_BYTES):
        block = _block(c, widest.pixel * itemsize, limit, BLOCK_PIXELS, 512)
        if block.pixels >= FEW_PIXELS:  # else reading the weights again costs more than reading a slab beyond the L2
            break
    block, k_parts = _shared(c, widest, itemsize, threads, unpacked, limit, block)
    k_parts = min(max(1, group.blocks), k_parts)
    others = -(-c.batch // block.images) * c.axes[0].out * -(-c.axes[2].out // block.columns) * widest.count
    slab = block.images * c.axes[0].kernel * block.slab_rows * block.slab_columns * group.pixel
    pixels = round_up(block.pixels, MAX_TILE_ROWS) + MAX_TILE_ROWS
    readers = others // widest.count * -(-c.axes[1].out // block.rows)
    own = unpacked and not group.by_lane and readers <= SELDOM
    column = c.taps * c.group_inputs * columns
    several = not group.by_lane and group.blocks > 1
    wide = (1 + several) * columns
    return DirectForward(
        group,
        block,
        k_parts,
        (
            aligned(slab * itemsize),
            aligned(pixels * wide * itemsize),
            aligned(pixels * wide * itemsize),
            aligned(pixels * 8),
            aligned(block.images * block.rows * 4 * 8),
            aligned((1 + several) * column * itemsize if own else 0),
        ),
        0 if own else group.count * group.blocks * column,
    )


@lru_cache(maxsize=512)
def forward_workspace(geometry: ConvGeometry, itemsize: int, threads: int) -> int:
    """Bytes of workspace for ``direct.forward``, its weights packed there too."""
    return with_half(geometry, itemsize, lambda size: _bytes(correlation(geometry), size, threads))


def _bytes(c: Correlation, itemsize: int, threads: int) -> int:
    threads = c.useful_threads(threads)
    plans = [forward(c, itemsize, threads, 0, unpacked) for unpacked in (False, True)]
    return max(aligned(plan.packed * itemsize) + threads * plan.thread_bytes for plan in plans)


@lru_cache(maxsize=512)
def grad_input_workspace(geometry: ConvGeometry, itemsize: int, threads: int) -> int:
    """Bytes of workspace for ``direct.grad_input``."""

    def nbytes(size: int) -> int:
        return phase_bytes(geometry, size, threads, lambda c: _bytes(c, size, threads))

    return with_half(geometry, itemsize, nbytes)


@dataclass(frozen=True)
class DirectWeight:
    """The plan of a direct weight gradient. Chunks depend on the problem alone, so the order of summation does too."""

    slabs: Slabs
    chunk: Block
    rows: int  # of one slab's gradient: taps x group inputs
    padded_rows: int
    pass_rows: int  # output rows summed in registers at once
    slab_bytes: int
    dy_bytes: int
    sum_bytes: int
    segments_bytes: int  # a thread

    @property
    def shared_bytes(self) -> int:
        return self.slab_bytes + self.dy_bytes + self.sum_bytes


def _spread(slabs: Slabs, itemsize: int) -> Slabs:
    """Positions a line further apart where they would share a few sets of the L1 cache.

    A weight gradient's tile rows are a few channels, read at a thousand positions: with 512 float32 channels those lie
    2 KiB apart, in two sets of 64, and the gradient is slower (512x14 in and out, 3x3, batch 16, two threads: 177
    GFLOP/s against 246).
    """
    crowded = not slabs.by_lane and slabs.pixel * itemsize % ALIASED_BYTES == 0
    return replace(slabs, pixel=slabs.pixel + LINE_BYTES // itemsize) if crowded else slabs


def weight_gradient(c: Correlation, itemsize: int, columns: int = 0) -> DirectWeight:
    widest = _spread(slabs(c, itemsize, MAX_COLUMN_BYTES // itemsize), itemsize)
    columns = columns or MAX_COLUMN_BYTES // itemsize
    group = _spread(slabs(c, itemsize, columns), itemsize)
    dy_pixel = widest.blocks * MAX_COLUMN_BYTES
    pixels = max(1, min(CHUNK_PIXELS, CHUNK_BYTES // dy_pixel))
    chunk = _block(c, widest.pixel * itemsize, CHUNK_BYTES, pixels, REDUCTION_PIXELS)
    slab = chunk.images * c.axes[0].kernel * chunk.slab_rows * chunk.slab_columns * group.pixel
    rows = c.taps * c.group_inputs
    padded_rows = rows + MAX_TILE_ROWS
    return DirectWeight(
        group,
        chunk,
        rows,
        padded_rows,
        max(1, REDUCTION_PIXELS // chunk.columns),
        aligned(slab * itemsize),
        aligned(group.blocks * chunk.pixels * columns * itemsize),
        aligned(group.blocks * padded_rows * columns * itemsize),
        aligned(chunk.images * chunk.rows * 8),
    )


@lru_cache(maxsize=512)
def grad_weight_workspace(geometry: ConvGeometry, itemsize: int, threads: int) -> int:
    """Bytes of workspace for ``direct.grad_weight``."""

    def nbytes(size: int) -> int:
        plan = weight_gradient(correlation(geometry), size)
        return plan.shared_bytes + threads * plan.segments_bytes

    return with_half(geometry, itemsize, nbytes)
