"""How a pooling kernel walks its arrays: geometry turned into tables, in plain Python and cached.

Every pooling, and every gradient of a sum, is a reduction of windows of an array seen as

    planes x depth x height x row,        a row: width numbers (channels first) or width x C (channels last)

and written row by row. Depth and height say, for each output position, where the window starts and how many taps it
has. A row of output is cut into *strips*, runs of outputs that a vector can walk, one output a lane:

    channels first, stride 2, kernel 3               channels last
      row      . 0 1 2 3 4 5 6 7 8 ...                 row    c c c c | c c c c | c c c c | ...   pixels of C channels
      tap 0    ^   ^   ^   ^                           tap 0  ^ ^ ^ ^
      tap 1      ^   ^   ^   ^                         tap 1            ^ ^ ^ ^
      tap 2        ^   ^   ^   ^
      one strip, step 2, tap_step 1                    a strip a pixel, step 1, tap_step C

    output l of a strip, tap j:   row[start + l * step + j * tap_step]  ->  out[out_start + l]

where positions outside [0, limit) hold no element. Windows much wider than apart (global pooling) are walked the
other way: lanes are neighbouring elements of one window, combined at the end (``across``).

Channels first, values alone go through a buffer: a batch of rows reduced downwards, ``pitch`` apart, each after
``lead`` neutral elements for the padding. Windows that tile the row without overlap leave no gap between the batch's
rows, which are then one long row (``flat``).

The gradient of a sum is a sum too: element i receives from the outputs whose windows cover it, and those outputs are
a window of the output (``_transposed``). So each element is written once, by one thread. On channels-first rows with a
stride these windows are irregular, and each lane looks up its own (step 0).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..geometry import PoolGeometry, Windows
from .arrays import address

Table = NDArray[np.int64]

SCRATCH_BYTES = 32 << 10  # of the stack, for the buffer of rows
BATCH_BYTES = 16 << 10  # as many rows as fit: a third of L1, the rest is the input's
BLOCKS = 8  # channels last: few rows are cut into about so many blocks of channels, for all threads
UNDIVIDED, MULTIPLY, DIVIDE, DIVIDE_EACH = range(4)


class Fields(NamedTuple):
    """What a kernel is told, all int64, in this order. Addresses of arrays and tables, sizes and steps in elements."""

    x: int
    y: int
    at: int  # the indices
    scratch: int  # 0: the buffer is on the stack
    rows: int  # of the output, in all
    depths: int  # output positions along depth and height,
    heights: int
    depth: int  # and their tables: first tap, taps
    height: int
    plane_size: int  # of the input
    slice_size: int
    row_size: int
    depth_step: int  # from tap to tap
    height_step: int
    strips: int
    strip_count: int
    step: int  # from output to output; 0: as ``starts`` says
    taps: int
    tap_step: int
    out_row: int
    channels: int  # interleaved: 1 if channels first
    block: int  # channels that one thread reduces at a time
    across: int
    starts: int  # int32: first column of each window
    counts: int  # int32: its taps
    divide: int  # UNDIVIDED, MULTIPLY or DIVIDE by ``divisor``, DIVIDE_EACH by the product of three tables' entries
    divisor: int  # the bits of a float64, and of its inverse
    inverse: int
    by_depth: int
    by_height: int
    by_width: int
    skip: int  # columns of the input before those that are read
    columns: int
    lead: int  # where column ``skip`` lies in a row of the buffer, where the first window begins,
    origin: int
    pitch: int  # and where the next row does
    batch: int  # rows in the buffer
    above: int  # windows of three rows at stride 1: the input row, not in the table, where the first one begins
    advance: int  # from a row's first element to the next one's, among those that are alike:
    alike_everywhere: int  # all rows
    alike_from: int  # or these heights: windows of equal size, evenly spaced
    alike_to: int
    flat: int
    pairs: int  # gradients at stride 2: even and odd elements have windows of their own, each a run of the buffer,
    even_first: int  # which begins here for element 0,
    even_taps: int
    odd_first: int
    odd_taps: int
    spread: int  # every element has the same window of one element
    buffer_size: int
    scratch_bytes: int  # a thread
    index_bytes: int
    accumulate: int


PAIRS = ("even_first", "even_taps", "odd_first", "odd_taps")
FIELD_COUNT = len(Fields._fields)
ADDRESSES = (0, 1, 2, 3)
"""The fields that a call fills in."""

STRIDED = 4  # a load of stride 3 or more is a gather, which costs about as much as 4 loads
SHORT_ROW = 64  # rows pooled whole are merged below this size: longer ones fill vectors, and sum in two levels
SLIDE_BYTES = 192
"""Of a row, that a walk down the rows may be fast: rows of 7 to 28 floats took 20 to 30% less time, of 40 10% less, of
56 the same, of 112 10% more, and channels last, where a row is 21 KB, 40% more (one thread, AVX-512)."""
COMBINE = 3  # combining the lanes of a vector, in loads


@dataclass(frozen=True, eq=False)
class Walk:
    """One reduction, as the kernels take it. ``kept`` holds the arrays whose addresses are in ``fields``."""

    fields: Fields
    kept: tuple[Any, ...]
    form: str  # the loop it is for: rows, pixels or planes (pool_kernels), slides (pool_slide) or pairs (pool_pairs)

    @property
    def across(self) -> bool:
        return bool(self.fields.across)


@dataclass(frozen=True, eq=False)
class _Axis:
    """One pooled axis: its windows, and (kernel, stride, padding before, dilation) if they are regular."""

    size: int
    windows: Windows
    regular: tuple[int, int, int, int] | None

    @property
    def outputs(self) -> int:
        return len(self.windows.start)

    @property
    def stride(self) -> int:
        """The distance of regular windows; of others the first two's."""
        if self.regular is not None:
            return self.regular[1]
        return int(self.windows.start[1] - self.windows.start[0]) if self.outputs > 1 else self.size

    def spread(self, channels: int) -> _Axis:
        """The axis of stride 1 with each element a pixel of so many numbers, as an axis of numbers."""
        assert self.regular is not None
        w, (kernel, _, before, dilation) = self.windows, self.regular
        start = (w.start[:, None] * channels + np.arange(channels)).reshape(-1)
        windows = Windows(
            start, np.repeat(w.count, channels), np.repeat(w.padded_count, channels), w.dilation * channels
        )
        return _Axis(self.size * channels, windows, (kernel, 1, before * channels, dilation * channels))

    def is_whole(self) -> bool:
        """One window, the whole axis."""
        w = self.windows
        return self.outputs == 1 and w.count[0] == self.size and w.dilation == 1


@lru_cache(maxsize=256)
def forward_walk(
    geometry: PoolGeometry, channels_last: bool, lanes: int, dtype: np.dtype[Any], average: bool = False,
    indices: bool = False,
) -> Walk:  # fmt: skip
    """The walk from an input to its pooled output, divided by the windows' divisors if it is an average.

    >>> g = PoolGeometry(1, 1, (8,), (4,), (2,), (2,), ((0, 0),))
    >>> w = forward_walk(g, channels_last=False, lanes=4, dtype=np.dtype(np.float32))
    >>> w.fields.step, w.fields.taps, w.fields.out_row, bool(w.fields.flat)
    (2, 2, 4, True)
    """
    axes = _axes(geometry, channels_last)
    width = axes[2]
    channels, planes = _interleaved(geometry, channels_last)
    across = not channels_last and _across_is_faster(width, lanes)
    if channels_last and not indices and _is_one_row(width, channels, dtype):
        axes[2], channels = width.spread(channels), 1
        strips, step, tap_step = _row_strip(axes[2])
    elif channels_last:
        strips, step, tap_step = _pixel_strips(width, channels), 1, width.windows.dilation * channels
    elif across:
        windows = zip(width.windows.start, width.windows.count, strict=True)
        strips = [(s, -(-n // lanes), s + n, o, 1, s) for o, (s, n) in enumerate(windows)]
        step, tap_step = 1, lanes
    else:
        strips, step, tap_step = _row_strip(width)
    divisors = _divisors(geometry, axes) if average else tuple(np.ones(axis.outputs) for axis in axes)
    return _walk(planes, axes, channels, strips, step, tap_step, across, lanes, dtype, divisors)


@lru_cache(maxsize=256)
def transposed_walk(
    geometry: PoolGeometry, channels_last: bool, lanes: int, dtype: np.dtype[Any], divisor: float = 1
) -> Walk:
    """The walk from the gradient of the output to that of the input: sums over the windows that cover an element.

    >>> g = PoolGeometry(1, 1, (8,), (4,), (2,), (2,), ((0, 0),))
    >>> w = transposed_walk(g, channels_last=False, lanes=4, dtype=np.dtype(np.float32))
    >>> w.kept[3].tolist()  # the output that covers each element, and how many do
    [[0, 0, 1, 1, 2, 2, 3, 3], [1, 1, 1, 1, 1, 1, 1, 1]]
    """
    pooled = _axes(geometry, channels_last)
    axes = [_transposed(axis) for axis in pooled]
    width = axes[2]
    channels, planes = _interleaved(geometry, channels_last)
    if channels_last and _is_one_row(width, channels, dtype):
        axes[2], channels = width.spread(channels), 1
        strips, step, tap_step = _row_strip(axes[2])
    elif channels_last:
        strips, step, tap_step = _pixel_strips(width, channels), 1, width.windows.dilation * channels
    elif width.regular is not None:
        strips, step, tap_step = _row_strip(width)
    else:
        strips, step, tap_step = [(0, width.windows.count.max(), 0, 0, width.outputs, 0)], 0, width.windows.dilation
    pairs = None if channels_last else _pairs(pooled[2])
    ones = tuple(np.ones(axis.outputs) for axis in axes)
    ones[0][:] = divisor
    return _walk(planes, axes, channels, strips, step, tap_step, False, lanes, dtype, ones, pairs)


@lru_cache(maxsize=256)
def uniform_divisor(geometry: PoolGeometry) -> float | None:
    """The divisor of every window of an average pooling, or None where they differ."""
    per_axis = [np.unique(d) for d in _divisors(geometry, _axes(geometry, True))]
    return math.prod(float(d[0]) for d in per_axis) if all(len(d) == 1 for d in per_axis) else None


def divisors(geometry: PoolGeometry) -> NDArray[np.float64]:
    """The divisor of each window of an average pooling: an array of the output's spatial shape."""
    depth, height, width = _divisors(geometry, _axes(geometry, True))
    return (depth[:, None, None] * height[:, None] * width).reshape(geometry.output_size)


def _interleaved(geometry: PoolGeometry, channels_last: bool) -> tuple[int, int]:
    """Channels that are interleaved in each plane, and planes."""
    if channels_last and geometry.channels > 1:
        return geometry.channels, geometry.batch
    return 1, geometry.batch * geometry.channels


def _pairs(pooled: _Axis) -> tuple[int, int, int, int] | None:
    """Stride 2: for the even and the odd elements of a row, how far from element 0's or 1's half the first window that
    covers it lies, and how many there are: i = 2m + a is covered by outputs o with 0 <= i + before - 2o < kernel."""
    if pooled.regular is None or pooled.regular[1] != 2 or pooled.regular[3] != 1:
        return None
    kernel, _, before, _ = pooled.regular
    runs = []
    for a in (0, 1):
        first, last = -((kernel - 1 - a - before) // 2), (a + before) // 2
        runs += [first, last - first + 1]
    return runs[0], runs[1], runs[2], runs[3]


def _is_one_row(width: _Axis, channels: int, dtype: np.dtype[Any]) -> bool:
    """Whether rows of pixels are better walked as rows of numbers: overlapping windows (3 of 9 loads then come from
    memory), if they fit the buffer. With stride 1 that is the same but for the distance of taps."""
    if width.regular is None or channels == 1:
        return False
    kernel, stride, before, _ = width.regular
    row = (width.size + 2 * abs(before)) * channels * dtype.itemsize
    return stride == 1 and kernel > 1 and row <= SCRATCH_BYTES - 1024


def _pixel_strips(width: _Axis, channels: int) -> list[Any]:
    """Channels last: a strip for each output pixel, its lanes the channels."""
    windows = enumerate(zip(width.windows.start, width.windows.count, strict=True))
    return [(s * channels, n, width.size * channels, o * channels, channels, s) for o, (s, n) in windows]


def _row_strip(width: _Axis) -> tuple[list[Any], int, int]:
    """Channels first, regular windows: the row is one strip, its lanes neighbouring outputs."""
    assert width.regular is not None
    kernel, stride, before, dilation = width.regular
    return [(-before, kernel, width.size, 0, width.outputs, -before)], stride, dilation


def _walk(
    planes: int, axes: list[_Axis], channels: int, strips: list[Any], step: int, tap_step: int,
    across: bool, lanes: int, dtype: np.dtype[Any], divisors: tuple[NDArray[np.float64], ...],
    pairs: tuple[int, int, int, int] | None = None,
) -> Walk:  # fmt: skip
    depth, height, width = axes
    windows, in_row = width.windows, width.size * channels
    starts = np.where(windows.count > 0, windows.start, -1)
    tables = np.stack([starts, windows.count]).astype(np.int32)
    strip_table = np.array(strips, dtype=np.int64).reshape(-1, 6)
    rows = planes * depth.outputs * height.outputs
    how, divisor = _how_to_divide(divisors, dtype)
    advance, alike = _alike(height)
    everywhere = depth.outputs == 1 and alike == (0, height.outputs) and advance * height.outputs == height.size
    everywhere &= depth.size == 1
    lead, origin, skip, columns, pitch = _buffer_row(width, step, across, lanes)
    if pairs is not None:
        begin, end = min(pairs[0], pairs[2]), max(pairs[0] + pairs[1], pairs[2] + pairs[3])
        lead = max(0, -begin)
        pitch = -(-(lead + max(width.size, -(-width.outputs // 2) + end)) // lanes) * lanes
    flat = step in (1, 2) and not across and pitch == step * width.outputs and how != DIVIDE_EACH
    slack = (2 * max(step, 1) + 1) * lanes  # the last vectors of a row are written, and read, whole
    room = BATCH_BYTES // dtype.itemsize - slack
    batch = max(1, min(room // pitch, rows))
    size = -(-(batch * pitch + slack) // lanes) * lanes
    kept: tuple[NDArray[Any], ...] = (
        _starts(depth), _starts(height), strip_table, tables, *(d.astype(dtype) for d in divisors)
    )  # fmt: skip
    where = [address(a) for a in kept]
    fields = Fields(
        x=0, y=0, at=0, scratch=0,
        rows=rows, depths=depth.outputs, heights=height.outputs, depth=where[0], height=where[1],
        plane_size=depth.size * height.size * in_row, slice_size=height.size * in_row, row_size=in_row,
        depth_step=depth.windows.dilation * height.size * in_row, height_step=height.windows.dilation * in_row,
        strips=where[2], strip_count=len(strips), step=step, taps=int(strip_table[:, 1].max(initial=0)),
        tap_step=tap_step, out_row=width.outputs * channels, channels=channels,
        block=_channel_block(channels, rows, lanes), across=int(across),
        starts=where[3], counts=where[3] + tables.strides[0],
        divide=how, divisor=_bits(divisor), inverse=_bits(1 / divisor),
        by_depth=where[4], by_height=where[5], by_width=where[6],
        skip=skip, columns=columns, lead=lead, origin=origin, pitch=pitch, batch=batch,
        above=-height.regular[2] if height.regular else 0, advance=advance * in_row,
        alike_everywhere=int(everywhere), alike_from=alike[0], alike_to=alike[1], flat=int(flat),
        pairs=int(pairs is not None), **dict(zip(PAIRS, pairs or (0, 0, 0, 0), strict=True)),
        spread=int(step == 0 and width.size == 1 and bool((windows.count == 1).all())), buffer_size=size,
        scratch_bytes=0 if size * dtype.itemsize <= SCRATCH_BYTES else size * dtype.itemsize,
        index_bytes=0, accumulate=0,
    )  # fmt: skip
    whole = all(axis.is_whole() for axis in axes)
    slides = step == 1 and not across and how != DIVIDE_EACH and bool((depth.windows.count == 1).all())
    slides &= _slides(height) and _slides(width) and height.windows.dilation == 1
    slides &= in_row * dtype.itemsize <= SLIDE_BYTES
    pairs_of_rows = step == 2 and channels == 1 and how != DIVIDE_EACH and pairs is None
    pairs_of_rows &= _is_paired(height) and _is_paired(width) and bool((depth.windows.count == 1).all())
    form = "pixels" if channels > 1 else "planes" if whole else "slides" if slides else "rows"
    return Walk(fields, kept, "pairs" if pairs_of_rows else form)


def _is_paired(axis: _Axis) -> bool:
    """Whether the windows are two elements each, one behind the other from the first element on."""
    return axis.regular == (2, 2, 0, 1) and bool((axis.windows.count == 2).all())


def _slides(axis: _Axis) -> bool:
    """Whether the windows have three taps, padding included, and each begins an element after the one before."""
    return axis.regular is not None and axis.regular[:2] == (3, 1)


def _buffer_row(width: _Axis, step: int, across: bool, lanes: int) -> tuple[int, int, int, int, int]:
    """Channels first, a row in the buffer: see ``lead`` to ``columns`` in :class:`Fields`.

    Rows begin on a cache line unless that leaves a gap between windows: vectors across two lines are stored, and
    loaded, in two steps.
    """
    if across or step == 0 or width.regular is None:
        return 0, 0, 0, width.size, -(-width.size // lanes) * lanes
    kernel, stride, before, dilation = width.regular
    covered = (width.outputs - 1) * stride + (kernel - 1) * dilation + 1
    lead, skip = max(0, before), max(0, -before)
    columns = max(0, min(width.size, covered - before) - skip)
    if (kernel - 1) * dilation < stride and lead + columns <= width.outputs * stride:
        return lead, 0, skip, columns, width.outputs * stride
    origin = -lead % lanes
    return origin + lead, origin, skip, columns, -(-(origin + max(covered, lead + columns)) // lanes) * lanes


def _bits(value: float) -> int:
    return int(np.float64(value).view(np.int64))


def _alike(axis: _Axis) -> tuple[int, tuple[int, int]]:
    """The longest run of windows of equal size that are evenly spaced: how far apart, its first one and its end."""
    start, count = axis.windows.start, axis.windows.count
    differs = (np.diff(start) != axis.stride) | (np.diff(count) != 0)
    ends = [0, *(np.flatnonzero(differs) + 1).tolist(), axis.outputs]
    length, first = max((b - a, -a) for a, b in pairwise(ends))
    return axis.stride, (-first, length - first)


def _channel_block(channels: int, rows: int, lanes: int) -> int:
    """Channels last, few rows: threads share the channels, in whole groups of four vectors."""
    if rows >= BLOCKS:
        return channels
    return min(channels, -(-channels // (4 * lanes * BLOCKS)) * 4 * lanes)


def _how_to_divide(divisors: tuple[NDArray[np.float64], ...], dtype: np.dtype[Any]) -> tuple[int, float]:
    """A divisor that all windows share, and whether its reciprocal is exact, which saves a division."""
    if any((d != d[0]).any() for d in divisors):
        return DIVIDE_EACH, 1.0
    divisor = math.prod(float(d[0]) for d in divisors)
    if divisor == 1:
        return UNDIVIDED, 1.0
    mantissa, exponent = math.frexp(divisor)
    return (MULTIPLY, 1 / divisor) if mantissa == 0.5 and exponent < 100 else (DIVIDE, divisor)


def _starts(axis: _Axis) -> Table:
    return np.stack([axis.windows.start, axis.windows.count], axis=1).astype(np.int64)


def _axes(geometry: PoolGeometry, channels_last: bool) -> list[_Axis]:
    """Depth, height and width. Channels first, a short axis pooled whole is merged with the one outside it."""
    lifted = geometry.lifted()
    axes = []
    for a in range(3):
        size, windows = lifted.input_size[a], lifted.windows[a]
        if not lifted.adaptive:
            regular = (lifted.kernel_size[a], lifted.stride[a], lifted.padding[a][0], lifted.dilation[a])
        elif size % lifted.output_size[a] == 0:
            regular = (size // lifted.output_size[a], size // lifted.output_size[a], 0, 1)
        else:
            regular = None
        axes.append(_Axis(size, windows, regular))
    if not channels_last:
        for outer in (1, 0):
            if not (axes[2].size < SHORT_ROW and axes[2].is_whole() and axes[outer].windows.dilation == 1):
                break  # depth lies next to the row only once height is part of it
            axes[2] = _merged(axes[outer], axes[2])
            axes[outer] = _ONE
    return axes


_ONE = _Axis(1, Windows(np.zeros(1, np.int64), np.ones(1, np.int64), np.ones(1, np.int64), 1), (1, 1, 0, 1))


def _merged(outer: _Axis, inner: _Axis) -> _Axis:
    """Both axes as one, ``inner`` being pooled whole: a window of m outer elements is a run of m * inner.size."""
    w, n = outer.windows, inner.size
    regular = outer.regular and (outer.regular[0] * n, outer.regular[1] * n, outer.regular[2] * n, 1)
    padded = w.padded_count * inner.windows.padded_count[0]
    return _Axis(outer.size * n, Windows(w.start * n, w.count * n, padded, 1), regular)


def _across_is_faster(width: _Axis, lanes: int) -> bool:
    if width.regular is None:
        return True
    kernel, stride, _, dilation = width.regular
    down = -(-width.outputs // lanes) * kernel * (stride if stride <= 2 else STRIDED)
    return dilation == 1 and width.outputs * (-(-kernel // lanes) + COMBINE) < down


def _divisors(geometry: PoolGeometry, axes: list[_Axis]) -> tuple[NDArray[np.float64], ...]:
    """One factor an axis; a window's divisor is their product. At least 1, as the sum of no element is 0."""
    if geometry.divisor_override is not None:
        ones = [np.ones(axis.outputs) for axis in axes]
        ones[0] *= geometry.divisor_override
        return tuple(ones)
    counts = (a.windows.padded_count if geometry.count_include_pad else a.windows.count for a in axes)
    return tuple(np.maximum(count, 1).astype(np.float64) for count in counts)


def _transposed(axis: _Axis) -> _Axis:
    """The axis of a gradient: for each element the outputs whose windows cover it, an arithmetic progression."""
    w, step, regular = axis.windows, 1, None
    if axis.regular is not None:
        kernel, stride, before, dilation = axis.regular
        step = dilation // math.gcd(stride, dilation)
        if stride == 1:
            regular = (kernel, 1, (kernel - 1) * dilation - before, dilation)
    output = np.repeat(np.arange(axis.outputs), w.count)
    tap = np.arange(len(output)) - np.repeat(np.cumsum(w.count) - w.count, w.count)
    element = w.start[output] + tap * w.dilation
    output, element = output[order := np.argsort(element, kind="stable")], element[order]
    count = np.bincount(element, minlength=axis.size)
    start = np.zeros(axis.size, dtype=np.int64)
    start[count > 0] = output[np.searchsorted(element, np.flatnonzero(count))]
    return _Axis(axis.outputs, Windows(start, count, count, step), regular)
