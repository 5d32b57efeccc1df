"""How depthwise and narrow grouped convolutions cut their work: plain Python, no Numba (see ``depthwise``).

A window's taps along the tile's lines are split into *runs* of consecutive lines. At stride s the table of lines holds
every s-th line together (one phase after another), so taps r and r + s are neighbours:

    kernel 3, stride 2       lines 0 2 4 6 8 | 1 3 5 7        taps 0 and 2: a run of two, tap 1: a run of one
    kernel 3, dilation 2     lines 0 1 2 3 4 5 ...            three runs of one

A :class:`Pass` sums one run, or a pair where a tile has it; passes add up.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ..geometry import ConvGeometry
from .blocking import (
    MAX_VECTOR_BYTES,
    Axis,
    Correlation,
    aligned,
    correlation,
    even,
    phase_bytes,
    round_up,
    with_half,
)  # fmt: skip

TILES = (
    *(((1,), 1), ((2,), 1), ((3,), 1), ((5,), 1), ((7,), 1), ((2, 1), 1), ((3, 2), 1)),
    *(((2, 1), 2), ((3, 2), 2)),
)
"""Heights of the runs of each tile, and the distance of the elements that its lanes read, by its number."""
EVENS = 2  # numbers from the tiles with two runs to those that read every second element
RUNS = tuple(runs for runs, step in TILES if step == 1)
MAX_WIDTH = 2  # vectors in a line of a tile: no tile has more
MAX_LINES = 8  # of a tile: no tile has more
SLAB_BYTES = 32 << 10  # of a thread's packed rows, which should stay in a 48 KiB L1
BAND_BYTES = 256 << 10  # of the input rows that a channels-last band reads: they should stay in L2
NEAR_BYTES = 2 << 20  # of x and out for each thread, which stay in L2
TABLE_LINES = 1 << 14  # of a band's table of addresses
ABSENT = int(np.iinfo(np.int64).min)  # the offset of a row of padding


@dataclass(frozen=True)
class Pass:
    """Runs of taps that one tile sums."""

    shape: int  # into RUNS
    starts: tuple[tuple[int, int], ...]  # (phase, place in the phase) of each run's first line
    taps: tuple[int, ...]  # in the order of the weights


def _pieces(height: int) -> list[int]:
    """Heights of tiles with one run that add up to ``height``.

    >>> _pieces(9), _pieces(4), _pieces(31)
    ([7, 2], [2, 2], [7, 7, 7, 7, 3])
    """
    single = sorted((runs[0] for runs in RUNS if len(runs) == 1), reverse=True)
    pieces = []
    while height:
        piece = height if height in single else next(h for h in single if h < height - 1)
        pieces.append(piece)
        height -= piece
    return pieces


def passes(kernel: int, stride: int, dilation: int) -> list[Pass]:
    """The passes over an axis.

    >>> [(RUNS[p.shape], p.taps) for p in passes(5, 2, 1)]
    [((3, 2), (0, 2, 4, 1, 3))]
    """
    runs: list[list[int]] = []
    for phase in range(stride):
        previous = None
        for tap in (r for r in range(kernel) if r * dilation % stride == phase):
            if previous is None or tap * dilation != previous * dilation + stride:
                runs.append([])
            runs[-1].append(tap)
            previous = tap

    def start(tap: int) -> tuple[int, int]:
        return tap * dilation % stride, tap * dilation // stride

    heights = tuple(len(run) for run in runs)
    if len(runs) == 2 and heights in RUNS:
        return [Pass(RUNS.index(heights), (start(runs[0][0]), start(runs[1][0])), (*runs[0], *runs[1]))]
    out = []
    for run in runs:
        first = 0
        for height in _pieces(len(run)):
            out.append(Pass(RUNS.index((height,)), (start(run[first]),), tuple(run[first : first + height])))
            first += height
    return out


def places(axis: Axis, outputs: int) -> int:
    """Lines of one phase under consecutive outputs."""
    return outputs + (axis.span - 1) // axis.stride


def reached(c: Correlation) -> tuple[Axis, Axis, Axis]:
    """The axes; where no tap reaches, those of a single tap that reads zeros."""
    if c.taps:
        return c.axes
    depth, height, width = (Axis(np.full(n, -1, np.int64), 1, 1, 1, n) for n in c.out)
    return depth, height, width


def neighbours(source: np.ndarray) -> tuple[int, int, int]:
    """The longest run of padded columns that shows neighbouring columns: its first, that one's source, its length."""
    breaks = np.flatnonzero((np.diff(source) != 1) | (source[:-1] < 0)) + 1
    edges = [0, *breaks.tolist(), source.size]
    runs = [(b - a, a) for a, b in itertools.pairwise(edges) if b > a and source[a] >= 0]
    length, first = max(runs, default=(0, 0))
    return first, int(source[first]) if length else 0, length


def in_place(height: Axis, width: Axis) -> tuple[int, int]:
    """The position in a row of x of padded column 0, and how many a row has: 0 where rows are not read in place.

    In place the columns before the first are told by their number, below 0: zeros before a later column are not.
    """
    first, source, count = neighbours(width.source)
    outside = np.concatenate((width.source[:first], width.source[first + count :]))
    cuts = passes(height.kernel, height.stride, height.dilation)
    loads = width.stride == 1 or (width.stride == 2 and all((RUNS[p.shape], 2) in TILES for p in cuts))
    serves = loads and (outside < 0).all() and (source == 0 or first == 0)
    return source - first, source + count if serves else 0


def read_beside(width: Axis, itemsize: int) -> tuple[int, int]:
    """The positions, from the first to behind the last, that are read of a row in place, outside the row too."""
    first, source, count = neighbours(width.source)
    vectors = round_up(width.out, MAX_VECTOR_BYTES // itemsize)
    return min(0, source - first), max(source + count, source - first + vectors * width.stride + width.span)


@dataclass(frozen=True)
class Plan:
    """The plan of a correlation; bytes are those of one thread's scratch."""

    rows: int  # of a band, lanes being pixels
    channel_rows: int  # of a band, lanes being channels
    taps: int  # weights of an output channel
    scratch: tuple[int, int, int, int, int]  # zeros, sums, tables of lines, weights of a channel, slab

    @property
    def thread_bytes(self) -> int:
        return sum(self.scratch)


def _band(rows: int, parts: int, most: int) -> int:
    """Rows of equal bands: at least ``parts`` of them, none above ``most``."""
    return even(rows, min(most, -(-rows // parts)))


def plan(c: Correlation, itemsize: int, threads: int) -> Plan:
    """Sizes are stated for the longest vectors and tiles of any CPU."""
    depth, height, width = reached(c)
    column = MAX_WIDTH * MAX_VECTOR_BYTES // itemsize
    pitch = width.stride * places(width, width.out)
    planes = c.group_inputs * depth.kernel
    others = c.batch * depth.out

    def lines(rows: int) -> int:
        return planes * height.stride * (places(height, rows) + MAX_LINES)

    def slab(rows: int) -> int:
        return planes * height.extent(rows) * pitch * itemsize

    items = others * c.groups
    rows = _band(height.out, 1 if items >= 8 * threads or items % threads == 0 else threads, height.out)
    while rows > MAX_LINES and (slab(rows) > SLAB_BYTES or lines(rows) > TABLE_LINES):
        rows = even(height.out, rows - 1)

    line = c.in_channels * width.source.size * itemsize
    row_lines = depth.kernel * width.stride * (places(width, width.out) + MAX_LINES)
    parts = 1 if others % threads == 0 else threads
    channel_rows = 1
    if c.group_inputs == 1:
        most = min(BAND_BYTES // line, TABLE_LINES // row_lines) - height.span
        channel_rows = _band(height.out, parts, max(1, most // height.stride))
        table = max(lines(rows), row_lines * height.extent(channel_rows))
    else:
        table = lines(rows)
    begin, end = read_beside(width, itemsize)
    row = max(pitch, end - begin) * itemsize
    zeros = max(end - begin, c.in_channels, pitch) + column
    taps = math.prod((depth.kernel, height.kernel, width.kernel)) * c.group_inputs
    return Plan(
        rows,
        channel_rows,
        taps,
        (
            aligned(zeros * itemsize),
            aligned(2 * MAX_LINES * column * itemsize),  # lanes of channels: a row of them for biases
            aligned((table + 2) * 8) * 2,  # find_rows adds the least and the greatest
            aligned(taps * itemsize),
            aligned(planes * height.extent(rows) * row + column * itemsize),
        ),
    )


def packed_sizes(c: Correlation, itemsize: int, columns: int = 0) -> tuple[int, int]:
    """Elements of the packed weights for lanes of pixels, and for lanes of channels."""
    columns = columns or MAX_WIDTH * MAX_VECTOR_BYTES // itemsize
    taps = max(1, c.taps) * c.group_inputs
    by_pixel = round_up(c.out_channels * taps, MAX_VECTOR_BYTES // itemsize)
    if c.group_inputs > 1:
        return by_pixel, 0
    return by_pixel, c.group_outputs * -(-c.groups // columns) * columns * taps


def _bytes(c: Correlation, itemsize: int, threads: int) -> int:
    threads = c.useful_threads(threads)
    return aligned(sum(packed_sizes(c, itemsize)) * itemsize) + threads * plan(c, itemsize, threads).thread_bytes


@lru_cache(maxsize=512)
def forward_workspace(geometry: ConvGeometry, itemsize: int, threads: int) -> int:
    """Bytes of workspace for ``depthwise.forward``, its weights packed there too."""
    return with_half(geometry, itemsize, lambda size: _bytes(correlation(geometry), size, threads))


@lru_cache(maxsize=512)
def grad_input_workspace(geometry: ConvGeometry, itemsize: int, threads: int) -> int:
    """Bytes of workspace for ``depthwise.grad_input``."""

    def nbytes(size: int) -> int:
        return phase_bytes(geometry, size, threads, lambda c: _bytes(c, size, threads))

    return with_half(geometry, itemsize, nbytes)
