"""How the kernels whose lanes are pixels (``planar``, ``pointwise``) cut their work: plain Python, no Numba."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from ..geometry import ConvGeometry, Phase, Sizes
from .blocking import (
    LINE_BYTES,
    MAX_PIXEL_ROWS,
    MAX_VECTOR_BYTES,
    PIXEL_VECTORS,
    Correlation,
    _axis,
    aligned,
    correlation,
    even,
    makespan,
    padded,
    phase_bytes,
    phase_correlations,
    round_up,
    with_half,
)

PLANE_BYTES = 256 << 10  # of one thread's packed planes
OWN_WEIGHTS = 1 << 12  # that each thread packs for itself: launching a kernel for it takes longer
PAGE_BYTES = 4096
PANEL_BYTES = 160 << 10  # of each of a 1x1's two slabs; 96 loses up to 8% (fewest channels), 640 up to 14% (most)
PLANE_PIXELS = 8192  # of one thread's block of planes
SQUARE_ROWS = MAX_VECTOR_BYTES // 4  # of tiles one below the other, to be turned: as many as a vector has lanes
TILE_BYTES = aligned(SQUARE_ROWS * PIXEL_VECTORS * MAX_VECTOR_BYTES)


class PhaseTaps(NamedTuple):
    """One phase of an input gradient: the weights that it sees, and their places in the slab, for each axis."""

    taps: tuple[slice, ...]
    places: tuple[range, ...]


@dataclass(frozen=True, eq=False)
class Joined(Correlation):
    """All phases of an input gradient (see ``geometry.transposed_phases``) as correlations of one slab of dy.

    The axes are those of the longest phase; their kernels are the positions that some phase reads for one of its
    outputs, of which each phase has its own: for 4 taps at stride 2

        phase 0 reads dy  i - 1  i                  the slab has
        phase 1 reads dy         i  i + 1           i - 1  i  i + 1
    """

    size: Sizes  # of the gradient
    stride: Sizes
    counts: Sizes  # of the phases along each axis
    phases: tuple[PhaseTaps | None, ...]  # None where no tap reaches

    @property
    def taps(self) -> int:
        """Those of all phases."""
        return sum(math.prod(map(len, phase.places)) for phase in self.phases if phase)


@lru_cache(maxsize=256)
def joined_phases(geometry: ConvGeometry) -> tuple[tuple[Phase, Correlation], ...]:
    """How ``planar`` computes an input gradient: phases whose columns lie between each other's in one go."""
    g, apart = padded(geometry).lifted(), phase_correlations(geometry)
    if g.stride[-1] == 1 or len(apart) == 1:
        return apart
    reached = [phase for phase, _ in apart if phase.taps]
    axes, firsts = [], []
    for a, size in enumerate(g.output_size):
        lows = [-phase.padding[a][0] for phase in reached]
        lasts = [low + (p.kernel_size[a] - 1) * p.dilation[a] for low, p in zip(lows, reached, strict=True)]
        first, last = min(lows, default=0), max(lasts, default=-1)
        count = -(-g.input_size[a] // g.stride[a])
        axes.append(_axis(size, last - first + 1, 1, (-first, last + count - size), 1, count, "zeros"))
        firsts.append(first)
    phases = []
    for phase, _ in apart:
        starts = [-pads[0] - first for pads, first in zip(phase.padding, firsts, strict=True)]
        places = zip(starts, phase.kernel_size, phase.dilation, strict=True)
        found = tuple(range(start, start + n * step, step) for start, n, step in places)
        phases.append(PhaseTaps(phase.taps, found) if phase.taps else None)
    counts = tuple(min(s, n) for s, n in zip(g.stride, g.input_size, strict=True))
    shape = (g.batch, g.out_channels, g.in_channels, g.groups)
    joined = Joined(*shape, (axes[0], axes[1], axes[2]), g.input_size, g.stride, counts, tuple(phases))
    whole = (slice(None),) * 3
    return ((Phase(whole, whole, g.input_size, g.kernel_size, g.padding, g.dilation), joined),)


@dataclass(frozen=True)
class PlanarForward:
    """The plan of a planar correlation: blocks of ``rows x columns`` output positions of one depth of one image."""

    rows: int
    columns: int
    row_blocks: int
    column_blocks: int
    slab_rows: int
    slab_columns: int  # padded positions under a row of the block
    phases: int  # of the columns: the stride
    row_phases: int
    pitch: int  # elements from what an output row reads to what the next row reads, in each phase
    phase_step: int  # elements from a phase to the next
    plane_step: int
    channel_step: int
    joined: bool  # tiles go on from one row of the block to the next
    k_blocks: int
    k_parts: int
    scratch: tuple[int, ...]  # slab, a row before or after its phases lie apart, tiles, own weights, output runs
    packed: int  # elements of the packed weights

    @property
    def thread_bytes(self) -> int:
        return sum(self.scratch)


def _cut(n: int, most: int, others: int, threads: int, multiple: int = 1) -> int:
    """Rows (or columns) of a block: at most about ``most``, even for the threads where there are few blocks."""
    least = -(-n // max(1, min(n, most)))
    candidates: dict[float, int] = {}
    for parts in range(least, 2 * least + threads):
        size = round_up(-(-n // parts), multiple)
        count = -(-n // size)
        if count * others > 16 * threads:
            candidates.setdefault(n * others / threads, size)  # many blocks: as even as can be
            break
        sizes = [size] * (count - 1) + [n - size * (count - 1)]
        candidates.setdefault(makespan(sizes, others, threads), size)
    return candidates[min(candidates)]


# What a step takes in tiles of 0 to 3 vectors, a tile's beginning and end, and copying its sums to their rows: in the
# time that 3 vectors take for a step (4.5 ns).
TILE_STEP, TILE_ENDS, TILE_COPY = (0.0, 0.4, 0.69, 1.0), 4.0, 8.0


def row_times(steps: int, columns: int, pitch: int, lanes: int = SQUARE_ROWS) -> tuple[float, float]:
    """What eight channels of an output row take, in such times: in tiles of its own, and where tiles go on from row to
    row, though they also multiply what lies between rows ``pitch`` apart.

    55 pixels are three vectors and half of another, which has a tile of its own; of rows 57 apart no tile is less than
    full.

    >>> row_times(363, 55, 57)
    (516.2, 445.3125)
    """
    vectors, panel = -(-columns // lanes), PIXEL_VECTORS * lanes
    tiles = [min(PIXEL_VECTORS, vectors - i) for i in range(0, vectors, PIXEL_VECTORS)]
    apart = sum(steps * TILE_STEP[n] + TILE_ENDS for n in tiles)
    return apart, pitch / panel * (steps + TILE_ENDS + TILE_COPY)


def _joins_rows(c: Correlation, columns: int, pitch: int, lanes: int) -> bool:
    apart, joined = row_times(c.group_inputs * c.taps, columns, pitch, lanes)
    return c.taps > 0 and joined < apart


@lru_cache(maxsize=512)
def planar_forward(c: Correlation, itemsize: int, threads: int, tile_rows: int = MAX_PIXEL_ROWS) -> PlanarForward:
    depth, height, width = c.axes
    lanes, line = MAX_VECTOR_BYTES // itemsize, LINE_BYTES // itemsize
    phases, row_phases = max(width.stride, 1), max(height.stride, 1)

    def steps_of(rows: int, columns: int) -> tuple[int, int, int, int, bool]:
        pitch = -(-width.extent(columns) // phases)
        joined = rows > 1 and not isinstance(c, Joined) and _joins_rows(c, columns, pitch, lanes)
        pitch = pitch if joined else round_up(pitch, lanes)
        phase = -(-height.extent(rows) // row_phases) * pitch + lanes  # packing and tiles reach past the last row
        plane = row_phases * phases * phase
        # an odd number of lines: channels spread over the cache's sets
        return pitch, phase, plane, (-(-depth.kernel * plane // line) | 1) * line, joined

    def fits(rows: int, columns: int) -> bool:
        return c.group_inputs * steps_of(rows, columns)[3] * itemsize <= PLANE_BYTES

    most = min(width.out, PLANE_PIXELS)
    while most > PIXEL_VECTORS * lanes and not fits(1, most):
        most = max(PIXEL_VECTORS * lanes, most // 2)
    others = c.batch * depth.out * c.groups
    columns = width.out if most >= width.out else most
    if height.out == 1:
        columns = min(width.out, _cut(width.out, columns, others, threads, lanes))
    elif columns < width.out:
        columns = round_up(even(width.out, columns), lanes)
    column_blocks = -(-width.out // columns) if width.out else 0
    rows = max(1, min(height.out, PLANE_PIXELS // columns))
    while rows > 1 and not fits(rows, columns):
        rows -= 1
    rows = _cut(height.out, rows, others * column_blocks, threads) if height.out else 1
    row_blocks = -(-height.out // rows)
    k_blocks = -(-c.group_outputs // tile_rows)
    k_parts = max(1, min(-(-c.group_outputs // MAX_PIXEL_ROWS), threads // max(1, others * row_blocks * column_blocks)))
    steps = steps_of(rows, columns)
    slab = c.group_inputs * steps[3] + PIXEL_VECTORS * lanes
    extent = width.extent(columns)
    line_bytes, tile_bytes = (2 * extent + 4 * lanes) * itemsize, TILE_BYTES
    if isinstance(c, Joined):
        line_bytes = c.stride[-1] * PIXEL_VECTORS * MAX_VECTOR_BYTES
        tile_bytes = MAX_PIXEL_ROWS * line_bytes
    packed = c.groups * k_blocks * tile_rows * c.taps * c.group_inputs
    most = c.groups * round_up(c.group_outputs, MAX_PIXEL_ROWS) * c.taps * c.group_inputs  # on every CPU
    own = 0 if isinstance(c, Joined) or most > OWN_WEIGHTS else packed
    return PlanarForward(
        rows, columns, row_blocks, column_blocks, height.extent(rows), extent, phases, row_phases, *steps,
        k_blocks, k_parts,
        (aligned(slab * itemsize), aligned(line_bytes), tile_bytes, aligned(own * itemsize), aligned(rows * 4 * 8)),
        packed,
    )  # fmt: skip


@dataclass(frozen=True)
class PointwiseForward:
    """The plan of a 1x1 correlation: blocks of whole panels of one image's output plane, counted along its rows.

    The last block of a plane also has the pixels that fill no panel: as a block of their own, the 4 that 14 x 14 leaves
    would read all weights again.
    """

    blocks: int  # of a plane
    panels: int  # of ``unit`` pixels in a plane
    unit: int
    k_blocks: int
    k_parts: int
    scratch: tuple[int, int, int, int]  # a slab (of two), a channel's pixels, a tile, output runs
    packed: int  # elements of the packed weights

    @property
    def thread_bytes(self) -> int:
        return sum(self.scratch) + self.scratch[0]


def _parts(n: int, most: int, others: int, threads: int) -> int:
    """Into how many even parts to cut ``n``: each at most ``most``, even for the threads where there are few."""
    least = -(-n // most)
    candidates: dict[float, int] = {}
    for parts in range(least, min(n, 2 * least + threads) + 1):
        if parts * others > 16 * threads:
            candidates.setdefault(n * others / threads, parts)
            break
        sizes = [n * (i + 1) // parts - n * i // parts for i in range(parts)]
        candidates.setdefault(makespan(sizes, others, threads), parts)
    return candidates[min(candidates)]


@lru_cache(maxsize=512)
def pointwise_forward(c: Correlation, itemsize: int, threads: int, tile_rows: int = MAX_PIXEL_ROWS) -> PointwiseForward:
    depth, height, width = c.axes
    panel = PIXEL_VECTORS * MAX_VECTOR_BYTES // itemsize
    plane, others = height.out * width.out, c.batch * depth.out * c.groups
    panels = max(1, plane // panel)
    most = max(1, min(PLANE_PIXELS, PANEL_BYTES // max(1, c.group_inputs * itemsize)) // panel)
    blocks = _parts(panels, most, others, threads)
    pixels = (-(-panels // blocks) + 1) * panel  # at most
    k_parts = max(1, min(-(-c.group_outputs // MAX_PIXEL_ROWS), threads // max(1, others * blocks)))
    # a page to spare: where in it a slab begins changes from block to block (see ``pointwise``)
    slab = round_up(c.group_inputs * pixels * itemsize, PAGE_BYTES) + PAGE_BYTES
    k_blocks = -(-c.group_outputs // tile_rows)
    runs = pixels // max(1, width.out) + 2 + pixels * itemsize // (PIXEL_VECTORS * 16)  # cut at panels of any target
    scratch = (slab, aligned(pixels * itemsize), TILE_BYTES, aligned(runs * 4 * 8))
    packed = c.groups * k_blocks * tile_rows * c.taps * c.group_inputs
    return PointwiseForward(blocks, panels, panel, k_blocks, k_parts, scratch, packed)


def _workspaces(
    plan: Callable[[Correlation, int, int], PlanarForward | PointwiseForward],
    phases: Callable[[ConvGeometry], tuple[tuple[Phase, Correlation], ...]],
) -> tuple[Callable[[ConvGeometry, int, int], int], Callable[[ConvGeometry, int, int], int]]:
    """The functions that state the bytes of workspace of ``forward``, its weights packed there too, and
    ``grad_input``."""

    def nbytes(c: Correlation, itemsize: int, threads: int) -> int:
        threads = c.useful_threads(threads)
        p = plan(c, itemsize, threads)
        return aligned(p.packed * itemsize) + threads * p.thread_bytes

    @lru_cache(maxsize=512)
    def forward(geometry: ConvGeometry, itemsize: int, threads: int) -> int:
        return with_half(geometry, itemsize, lambda size: nbytes(correlation(geometry), size, threads))

    @lru_cache(maxsize=512)
    def grad_input(geometry: ConvGeometry, itemsize: int, threads: int) -> int:
        def of_phases(size: int) -> int:
            return phase_bytes(geometry, size, threads, lambda c: nbytes(c, size, threads), phases)

        return with_half(geometry, itemsize, of_phases)

    return forward, grad_input


planar_forward_workspace, planar_grad_input_workspace = _workspaces(planar_forward, joined_phases)
pointwise_forward_workspace, pointwise_grad_input_workspace = _workspaces(pointwise_forward, phase_correlations)
