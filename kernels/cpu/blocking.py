"""How the CPU convolutions cut their work, and the scratch memory they need: plain Python, no Numba.

Everything is first lifted to three spatial axes. An :class:`Axis` knows a padded position's source, so every
padding mode (and the negative padding of a transposed convolution's phases) is a table look-up while packing.
Sizes are stated for the largest tile of any CPU; a smaller tile needs less.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np

from ..geometry import ConvGeometry, Phase, source_indices, span, transposed_phases

TILE_VECTORS = 2  # vectors in one row of a register tile
MAX_TILE_ROWS = 16  # no tile is higher
PIXEL_VECTORS = 3  # vectors in one row of a tile whose lanes are pixels
MAX_PIXEL_ROWS = 8  # output channels in one such tile
MAX_VECTOR_BYTES = 64
MAX_COLUMN_BYTES = TILE_VECTORS * MAX_VECTOR_BYTES

SLAB_BYTES = 256 << 10
"""Of one thread's packed input rows, or those read in place: 512 KB is 1 to 5% slower on 1x1 layers, 160 KB 1 to 2%."""
BLOCK_PIXELS = 300  # of one thread's block: 98 to 300 measured equal, below 50 the weights' traffic shows
SELDOM = 2  # blocks of positions, at most, for each of which a tile column's weights are packed again
PAIR_SHARE = 3
"""Of the L2, which part the weights of two tile columns may take at a time, as those that come next are fetched there,
too. A 6th or a 12th: the same, but for 2048 channels of a 1x1, whose one tap cannot be cut (single columns: 8% slower).
All taps of 512 channels at once (1.2 MB; L2 2 MB): 8% slower than single columns on 14x14 at stride 2."""
FEW_PIXELS = 98  # fewer in a block, and a slab may be two or four times as large
CHUNK_BYTES = 8 << 20  # of one operand of a weight gradient: all threads share a chunk
CHUNK_PIXELS = 1 << 14
REDUCTION_PIXELS = 1024  # summed in registers at once by a weight gradient
MAX_LANE_OUTPUTS = 4  # a group: with 8, dense tiles a quarter full (45 GFLOP/s) beat lane by lane
PANEL_PIXELS = 192  # of an im2col block
PANEL_DEPTH = 384  # rows of an im2col block (input channels x taps)
THREAD_WORK = 1 << 19  # multiply-adds that pay for another thread: about 6 µs, fork and join cost 1.5 to 10
MOVED_WORK = 8  # multiply-adds in the time of an element read or written: what a depthwise layer's time is
LINE_BYTES = 64
ALIASED_BYTES = 512  # positions this far apart, or a multiple, crowd into few sets of the L1 cache
CROWDED_BYTES = 2048  # the same for the rows of a forward tile, of which each keeps to a line for a while
FOLD_BYTES = 8 << 20  # of padded gradient held at once where padding is not zeros


def round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def aligned(nbytes: int) -> int:
    """Rounded up to whole cache lines, as every piece of a workspace is."""
    return round_up(nbytes, 64)


def even(n: int, largest: int) -> int:
    """The size of equal pieces of ``n``, none above ``largest``; 1 where there is nothing to cut.

    >>> even(56, 10)
    10
    >>> even(28, 10)
    10
    >>> even(14, 10)
    7
    """
    return -(-n // -(-n // max(1, min(n, largest)))) if n else 1


@dataclass(frozen=True, eq=False)
class Axis:
    """One spatial axis: output o's tap t reads padded position ``o * stride + t * dilation``, which shows
    input position ``source[...]`` (-1: a zero)."""

    source: np.ndarray
    kernel: int
    stride: int
    dilation: int
    out: int

    @property
    def span(self) -> int:
        return span(self.kernel, self.dilation) if self.kernel else 0

    def extent(self, outputs: int) -> int:
        """Padded positions under consecutive outputs."""
        return (outputs - 1) * self.stride + self.span if self.kernel else 0


def _axis(size: int, kernel: int, stride: int, pads: tuple[int, int], dilation: int, out: int, mode: str) -> Axis:
    source = np.ascontiguousarray(source_indices(size, *pads, mode), np.int64)
    if kernel and stride >= span(kernel, dilation):  # windows do not touch: keep only the positions they read
        taps = np.arange(out)[:, None] * stride + np.arange(kernel) * dilation
        return Axis(np.ascontiguousarray(source[taps.ravel()]), kernel, kernel, 1, out)
    return Axis(source, kernel, stride, dilation, out)


@dataclass(frozen=True, eq=False)
class Correlation:
    """A correlation over three axes: what forward is, and each phase of an input gradient."""

    batch: int
    in_channels: int
    out_channels: int
    groups: int
    axes: tuple[Axis, Axis, Axis]

    @property
    def group_inputs(self) -> int:
        return self.in_channels // self.groups

    @property
    def group_outputs(self) -> int:
        return self.out_channels // self.groups

    @property
    def kernel(self) -> tuple[int, ...]:
        return tuple(axis.kernel for axis in self.axes)

    @property
    def taps(self) -> int:
        return math.prod(self.kernel)

    @property
    def out(self) -> tuple[int, ...]:
        return tuple(axis.out for axis in self.axes)

    @property
    def pixels(self) -> int:
        """Output positions of the whole batch."""
        return self.batch * math.prod(self.out)

    def useful_threads(self, threads: int) -> int:
        """At most ``threads``; fewer where the work would not repay them."""
        moved = self.batch * self.in_channels * math.prod(axis.source.size for axis in self.axes)
        moved += self.pixels * self.out_channels
        work = self.pixels * self.out_channels * self.taps * self.group_inputs + MOVED_WORK * moved
        return max(1, min(threads, work // THREAD_WORK))

    @cached_property
    def segments(self) -> tuple[np.ndarray, int]:
        """The last axis' padded positions as arithmetic progressions: rows of (position, source, step, count), the
        source -1 for zeros, and how many rows."""
        return progressions(self.axes[2].source)


def progressions(source: np.ndarray) -> tuple[np.ndarray, int]:
    """A source table as rows (position, first source or -1, step, count).

    >>> progressions(np.array([-1, 0, 1, 2, -1]))[0].tolist()
    [[0, -1, 0, 1], [1, 0, 1, 3], [4, -1, 0, 1]]
    >>> progressions(np.array([1, 0, -1]))[0].tolist()  # zeros do not go on counting down
    [[0, 1, -1, 2], [2, -1, 0, 1]]
    """
    values = source.tolist()
    rows = []
    i = 0
    while i < len(values):
        first, j = values[i], i + 1
        step = 0 if first < 0 or j == len(values) or values[j] < 0 else values[j] - first
        while j < len(values) and values[j] == first + step * (j - i) and (first < 0 or values[j] >= 0):
            j += 1
        rows.append((i, first, step, j - i))
        i = j
    return np.array(rows, np.int64).reshape(-1, 4), len(rows)


@lru_cache(maxsize=256)
def correlation(geometry: ConvGeometry) -> Correlation:
    """A forward convolution as a :class:`Correlation`."""
    g = geometry.lifted()
    sizes = zip(g.input_size, g.kernel_size, g.stride, g.padding, g.dilation, g.output_size, strict=True)
    axes = [_axis(n, k, s, pads, d, out, g.padding_mode) for n, k, s, pads, d, out in sizes]
    return Correlation(g.batch, g.in_channels, g.out_channels, g.groups, (axes[0], axes[1], axes[2]))


@lru_cache(maxsize=256)
def padded(geometry: ConvGeometry) -> ConvGeometry:
    """The zero-padded convolution (of padding 0) whose input gradient, folded, is that of another padding mode."""
    g = geometry.lifted()
    if g.padding_mode == "zeros":
        return g
    size = tuple(before + n + after for n, (before, after) in zip(g.input_size, g.padding, strict=True))
    none = ((0, 0),) * 3
    return ConvGeometry(
        g.batch, g.in_channels, g.out_channels, size, g.kernel_size, g.stride, none, g.dilation, g.groups
    )


@lru_cache(maxsize=256)
def phase_correlations(geometry: ConvGeometry) -> tuple[tuple[Phase, Correlation], ...]:
    """The phases of the input gradient, each a stride-1 correlation of dy (see ``geometry.transposed_phases``)."""
    g = padded(geometry)
    out = []
    for phase in transposed_phases(g):
        axes = []
        for size, kernel, pads, dilation, n in zip(
            g.output_size, phase.kernel_size, phase.padding, phase.dilation, phase.output_size, strict=True
        ):
            axes.append(_axis(size, kernel if phase.taps else 0, 1, pads, dilation, n, "zeros"))
        shape = (g.batch, g.out_channels, g.in_channels, g.groups)
        out.append((phase, Correlation(*shape, (axes[0], axes[1], axes[2]))))
    return tuple(out)


def fold_images(geometry: ConvGeometry, itemsize: int) -> int:
    """Images whose padded input gradients are held at once (0 where padding is zeros: none is)."""
    if geometry.padding_mode == "zeros":
        return 0
    image = geometry.in_channels * math.prod(padded(geometry).input_size) * itemsize
    return max(1, min(geometry.batch, FOLD_BYTES // max(image, 1)))


def fold_row(geometry: ConvGeometry) -> int:
    """Elements of one thread's row while folding, in whole cache lines of either dtype."""
    return round_up(geometry.input_size[-1], 16)


def fold_bytes(geometry: ConvGeometry, itemsize: int, threads: int) -> int:
    images = fold_images(geometry, itemsize)
    if not images:
        return 0
    plane = math.prod(padded(geometry).input_size)
    return aligned(images * geometry.in_channels * plane * itemsize) + threads * fold_row(geometry) * itemsize


def phase_bytes(
    geometry: ConvGeometry, itemsize: int, threads: int, nbytes: Callable[[Correlation], int],
    phases: Callable[[ConvGeometry], tuple[tuple[Phase, Correlation], ...]] = phase_correlations,
) -> int:  # fmt: skip
    """Workspace of an input gradient whose phases need ``nbytes`` each, one after another."""
    batches = {geometry.batch}
    images = fold_images(geometry, itemsize)
    if images:
        batches = {images, geometry.batch % images or images}
    geometries = [replace(geometry, batch=n) for n in batches]
    most = max((nbytes(c) for g in geometries for _, c in phases(g)), default=0)
    return most + fold_bytes(geometry, itemsize, threads)


# ------------------------------------------------------------------------------------------------ direct


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


def makespan(sizes: list[int], others: int, threads: int) -> int:
    """The largest share when ``others`` sequences of tasks of these sizes are dealt out in order."""
    items, count = sizes * others, len(sizes) * others
    return max(sum(items[count * t // threads : count * (t + 1) // threads]) for t in range(threads))


def _apart(c: Correlation, slabs: Slabs, itemsize: int) -> Slabs:
    """A line between the slab's positions where those of a tile's rows would share one or two sets of the L1 cache.

    The rows read positions a stride apart: 512 float32 channels and a stride of 2 put all 14 of them in one set of 12
    ways (512x38 in, 3x3, stride 2: 76% of the products' floor against 90%).
    """
    crowded = not slabs.by_lane and slabs.pixel * itemsize * c.axes[2].stride % CROWDED_BYTES == 0
    return replace(slabs, pixel=slabs.pixel + LINE_BYTES // itemsize) if crowded else slabs


@lru_cache(maxsize=512)
def direct_forward(
    c: Correlation, itemsize: int, threads: int, columns: int = 0, unpacked: bool = False
) -> DirectForward:
    """Plan for tiles of ``columns`` elements (0: the widest of any CPU).

    ``unpacked`` weights are packed by the thread that needs them, a tile column at a time, where that is seldom enough.
    """
    # blocks must not depend on the CPU: workspace sizes do not
    widest = _apart(c, slabs(c, itemsize, MAX_COLUMN_BYTES // itemsize), itemsize)
    group = _apart(c, slabs(c, itemsize, columns or MAX_COLUMN_BYTES // itemsize), itemsize)
    columns = columns or MAX_COLUMN_BYTES // itemsize
    pixel_bytes, height = widest.pixel * itemsize, c.axes[1].out
    for limit in (SLAB_BYTES, 2 * SLAB_BYTES, 4 * SLAB_BYTES):
        block = _block(c, pixel_bytes, limit, BLOCK_PIXELS, 512)
        if block.pixels >= FEW_PIXELS:  # else reading the weights again costs more than reading a slab beyond the L2
            break
    others = -(-c.batch // block.images) * c.axes[0].out * -(-c.axes[2].out // block.columns) * widest.count
    k_parts, row_blocks = 1, -(-height // block.rows)

    def largest_share(rows: int, parts_of_k: list[int]) -> float:
        sizes = [rows] * (height // rows) + ([height % rows] if height % rows else [])
        items = [n * part for n in sizes for part in parts_of_k]
        return makespan(items, others, threads) / (others * height * sum(parts_of_k))

    few = threads > 1 and 0 < others * row_blocks < 8 * threads
    if few and largest_share(block.rows, [1]) * threads > 1.01:
        # few tasks that do not divide evenly: cut rows so that they do, else images or output channels, if that is
        # more even (56 rows: 14 blocks of 4, not 11 of 5 and one of 1; 17 rows: 9 and 8; 7 rows and 512 channels: 256
        # and 256)
        shares: dict[float, int] = {}
        for parts in range(row_blocks, 2 * row_blocks + threads):
            shares.setdefault(largest_share(even(height, -(-height // parts)), [1]), parts)
        least = min(shares)
        whole = threads // math.gcd(others * row_blocks, threads)
        vectors = -(-c.group_outputs * itemsize // MAX_VECTOR_BYTES)
        cut = [min(TILE_VECTORS * (widest.blocks * i // whole), vectors) for i in range(whole + 1)]
        share_of_k = largest_share(block.rows, [last - first for first, last in itertools.pairwise(cut)])
        # two threads that share the positions both pack all weights; that share the outputs, all input
        many_weights = c.taps * c.group_outputs > 4 * c.batch * math.prod(axis.source.size for axis in c.axes)
        cut_weights = unpacked and others * row_blocks == widest.count and many_weights and share_of_k * threads < 1.01
        if not cut_weights and (least * threads < 1.01 or (block.images == 1 and least < share_of_k + 0.02)):
            block = _block(c, pixel_bytes, limit, BLOCK_PIXELS, 512, shares[least])
        elif not cut_weights and block.images > 1 and c.batch >= threads:
            block = _block(c, pixel_bytes, limit, BLOCK_PIXELS * c.batch // threads // block.images, 512)
        else:
            k_parts = min(group.blocks, whole)
    slab = block.images * c.axes[0].kernel * block.slab_rows * block.slab_columns * group.pixel
    pixels = round_up(block.pixels, MAX_TILE_ROWS) + MAX_TILE_ROWS
    readers = others // widest.count * -(-height // block.rows)
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
def direct_forward_workspace(geometry: ConvGeometry, itemsize: int, threads: int) -> int:
    """Bytes of workspace for ``direct.forward``, its weights packed there too."""
    return _with_half(geometry, itemsize, lambda size: _direct_bytes(correlation(geometry), size, threads))


def _direct_bytes(c: Correlation, itemsize: int, threads: int) -> int:
    threads = c.useful_threads(threads)
    plans = [direct_forward(c, itemsize, threads, 0, unpacked) for unpacked in (False, True)]
    return max(aligned(plan.packed * itemsize) + threads * plan.thread_bytes for plan in plans)


@lru_cache(maxsize=512)
def direct_grad_input_workspace(geometry: ConvGeometry, itemsize: int, threads: int) -> int:
    """Bytes of workspace for ``direct.grad_input``."""

    def nbytes(size: int) -> int:
        return phase_bytes(geometry, size, threads, lambda c: _direct_bytes(c, size, threads))

    return _with_half(geometry, itemsize, nbytes)


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


def direct_weight(c: Correlation, itemsize: int, columns: int = 0) -> DirectWeight:
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
def direct_grad_weight_workspace(geometry: ConvGeometry, itemsize: int, threads: int) -> int:
    """Bytes of workspace for ``direct.grad_weight``."""

    def nbytes(size: int) -> int:
        plan = direct_weight(correlation(geometry), size)
        return plan.shared_bytes + threads * plan.segments_bytes

    return _with_half(geometry, itemsize, nbytes)


# ------------------------------------------------------------------------------------------------ im2col


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
def im2col_forward(c: Correlation, itemsize: int, threads: int, tile_rows: int = MAX_TILE_ROWS) -> Im2colForward:
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


def _im2col_bytes(c: Correlation, itemsize: int, threads: int) -> int:
    threads = c.useful_threads(threads)
    packed = c.groups * (c.group_outputs + MAX_TILE_ROWS) * c.taps * c.group_inputs
    return aligned(packed * itemsize) + threads * im2col_forward(c, itemsize, threads).thread_bytes


@lru_cache(maxsize=512)
def im2col_forward_workspace(geometry: ConvGeometry, itemsize: int, threads: int) -> int:
    """Bytes of workspace for ``im2col.forward``, its weights packed there too."""
    return _with_half(geometry, itemsize, lambda size: _im2col_bytes(correlation(geometry), size, threads))


@lru_cache(maxsize=512)
def im2col_grad_input_workspace(geometry: ConvGeometry, itemsize: int, threads: int) -> int:
    """Bytes of workspace for ``im2col.grad_input``."""

    def nbytes(size: int) -> int:
        return phase_bytes(geometry, size, threads, lambda c: _im2col_bytes(c, size, threads))

    return _with_half(geometry, itemsize, nbytes)


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


def im2col_weight(c: Correlation, itemsize: int, columns: int = 0) -> Im2colWeight:
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
def im2col_grad_weight_workspace(geometry: ConvGeometry, itemsize: int, threads: int) -> int:
    """Bytes of workspace for ``im2col.grad_weight``."""

    def nbytes(size: int) -> int:
        plan = im2col_weight(correlation(geometry), size)
        return plan.shared_bytes + threads * plan.runs_bytes

    return _with_half(geometry, itemsize, nbytes)


def _with_half(geometry: ConvGeometry, itemsize: int, nbytes: Callable[[int], int]) -> int:
    """The bytes of a kernel, for 16-bit arrays with float32 copies of input, weights and output in front."""
    if itemsize != 2:
        return nbytes(itemsize)
    shapes = (geometry.input_shape, geometry.weight_shape, geometry.output_shape)
    return nbytes(4) + sum(aligned(4 * math.prod(shape)) for shape in shapes)
