"""What Winograd's compiled functions are told, and how it follows from a geometry (see ``winograd``)."""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from ..winograd_matrices import VARIANTS, Variant
from .arrays import address
from .blocking import Axis, Correlation, progressions
from .simd import columns
from .winograd_blocking import Plan, dilation, plan
from .winograd_transforms import compiled, input_tiles, output_tiles, weight_tiles
from .winograd_weights import Taps


class Layout(NamedTuple):
    """What the compiled functions are told, as integers: addresses, then strides and sizes in elements."""

    x: int
    x_n: int
    x_c: int
    x_d: int
    x_h: int
    x_w: int
    out: int
    out_n: int
    out_c: int
    out_d: int
    out_h: int
    out_w: int
    residual: int  # 0: none
    residual_n: int
    residual_c: int
    residual_d: int
    residual_h: int
    residual_w: int
    bias: int  # 0: none
    activation: int
    weights: int  # transformed
    scratch: int  # thread t's begins at scratch + t * thread_bytes
    # from here on the same in every call with this geometry
    thread_bytes: int
    slab_bytes: int
    v_bytes: int
    m_bytes: int
    rows_bytes: int
    turned_bytes: int
    vectors_bytes: int
    integers_bytes: int
    planes: int  # of the outputs
    plane_table: int  # see ``_planes``
    plane_numbers: int  # of a plane there
    source_h: int
    rows_of_tiles: int  # for each its place in source_h, its first output row, and how many it has
    segments: int
    segment_count: int
    transform_input: int  # addresses of code
    transform_output: int
    transform_weights: int
    tile_h: int  # outputs of a tile
    tile_w: int
    dilation_h: int
    dilation_w: int
    cell_w: int  # output columns of a cell
    stride_h: int
    stride_w: int
    lacking: int  # not 0: phases of a stride lack the last tap
    part: int  # channels from one phase of a stride, or slice of a volume, to the next
    depth: int  # of the products
    points_h: int
    points_w: int
    overlap_h: int  # inputs that a tile shares with the one below, of its phase
    overlap_w: int  # and a cell with the next
    products: int
    taps: int
    groups: int
    group_inputs: int
    group_outputs: int
    out_height: int
    out_width: int
    tile_rows: int
    cell_columns: int
    strip: int  # cell columns of a strip
    blocks: int  # of consecutive cells
    unit: int  # cells of which blocks are multiples
    k_parts: int
    k_group: int
    k_blocks: int
    chunk: int  # input channels whose U is made at once; 0: the weights are U
    u_xi: int
    w_g: int  # of weights that are not packed, in elements
    w_k: int
    w_c: int
    w_d: int
    w_r: int
    w_s: int
    columns: int
    tap_step: int
    together: int
    u_group: int
    width: int
    slab_columns: int
    v_block: int
    v_xi: int
    m_block: int
    m_xi: int
    fetch_input: int  # not 0: while one block is multiplied, the next one's input is prefetched
    configuration: int  # of AMX's tile registers; 0: not used
    itemsize: int


FIELDS = len(Layout._fields)


def extended(source: np.ndarray, size: int) -> np.ndarray:
    """A source table, cut or extended with zeros (-1) to ``size`` positions: the last tile reaches beyond it."""
    out = np.full(size, -1, np.int64)
    out[: min(size, source.size)] = source[:size]
    return out


def _planes(c: Correlation, p: Plan) -> np.ndarray:
    """The planes of the outputs, in the order of their cells; for each its image, its depth and the slice of the input
    under each tap along the depth (-1: zeros). Behind them for each block its first cell, the first of these taps that
    sees more than zeros, and one past the last (of none the first)."""
    deep, starts = c.axes[0], []
    rows: list[tuple[int, ...]] = []
    places = np.arange(deep.out)[:, None] * deep.stride + np.arange(deep.kernel) * deep.dilation
    slices = deep.source[places].tolist() if deep.kernel else [[-1]] * deep.out
    turns = p.turns or c.batch
    for turn in range(turns):
        images = range(c.batch * turn // turns, c.batch * (turn + 1) // turns)
        for d, under in enumerate(slices):
            starts.append(len(rows) * p.grid.plane)
            rows += [(n, d, *under) for n in images]
    if not p.turns:
        units = -(-p.grid.total // p.unit)
        starts = [units * b // p.blocks * p.unit for b in range(p.blocks)]
    inside = [[t for t, source in enumerate(under) if source >= 0] or [0] for under in slices]
    blocks = []
    for start, end in pairwise([*starts, p.grid.total] if rows else []):
        depths = {row[1] for row in rows[start // p.grid.plane : -(-end // p.grid.plane)]}
        blocks += [start, min(inside[d][0] for d in depths), 1 + max(inside[d][-1] for d in depths)]
    return np.array([n for row in rows for n in row] + [*blocks, p.grid.total], np.int64)


def _rows_of_tiles(f: Variant, height: Axis) -> tuple[np.ndarray, np.ndarray]:
    """The source tables of all phases, one after another, and for each row of tiles its place there, its first output
    row and how many it has.

    Phases take turns, so that a thread's rows lie together: with one phase after another, two threads write to the same
    lines, 64 channels of 56x56 and dilation 2 take 9% longer.
    """
    m, d, s = f.rows[0], dilation(f.rows, height), f.strides[0]
    sources, rows, begin = [], [], 0
    for phase in range(min(d, height.out)):
        outputs = -(-(height.out - phase) // d)
        tiles = -(-outputs // m)
        sources.append(extended(height.source[phase::d], s * (tiles * m + f.rows[1] - 1)))
        rows += [(i, begin + i * s * m, phase + i * m * d, min(m, outputs - i * m)) for i in range(tiles)]
        begin += sources[-1].size
    rows.sort()
    return np.concatenate(sources), np.array([row[1:] for row in rows], np.int64)


@lru_cache(maxsize=256)
def prepare(
    f: Variant, c: Correlation, itemsize: int, threads: int, taps: Taps | None = None
) -> tuple[tuple[int, ...], tuple[np.ndarray, ...]]:
    """The constant part of a Layout, and the arrays whose addresses are in it; ``taps``: of weights not packed."""
    return fixed(f, c, itemsize, plan(f, c, itemsize, threads, columns(itemsize), taps is not None), taps)


def fixed(
    f: Variant, c: Correlation, itemsize: int, p: Plan, taps: Taps | None = None, configuration: int = 0
) -> tuple[tuple[int, ...], tuple[np.ndarray, ...]]:
    """The same for a plan."""
    dtype, variant = np.dtype(f"f{itemsize}"), VARIANTS.index(f)
    deep, height, width = c.axes
    planes = _planes(c, p)
    source_h, rows = _rows_of_tiles(f, height)
    stride_h, stride_w = f.strides
    g = p.grid
    overlap = stride_w * (f.columns[1] - 1) * g.dilation_w
    segments, segment_count = progressions(extended(width.source, stride_w * g.cell_columns * g.cell_w + overlap))
    numbers = (
        p.thread_bytes, *p.scratch[:7],
        g.planes, address(planes), 2 + max(1, deep.kernel),
        address(source_h), address(rows), address(segments), segment_count,
        compiled(input_tiles, dtype, variant), compiled(output_tiles, dtype, variant),
        compiled(weight_tiles, dtype, variant),
        f.rows[0], f.columns[0], g.dilation_h, g.dilation_w, g.cell_w, *f.strides,
        f.stride > 1 and not f.even, p.part, p.depth,
        *f.points, stride_h * (f.rows[1] - 1), overlap, f.products, f.taps,
        c.groups, c.group_inputs, c.group_outputs, height.out, width.out,
        g.tile_rows, g.cell_columns, g.strip, p.blocks, p.unit,
        p.k_parts, p.k_group, p.k_blocks, p.chunk, p.u_xi, *(taps or (0,) * len(Taps._fields)), p.u_group,
        p.width, p.slab_columns, p.v_block, p.v_xi, p.m_block, p.m_xi, p.fetch_input, configuration, itemsize,
    )  # fmt: skip
    return numbers, (planes, source_h, rows, segments)
