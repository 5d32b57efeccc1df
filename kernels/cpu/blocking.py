"""How the CPU convolutions cut their work, and the scratch memory they need: plain Python, no Numba.

Everything is first lifted to three spatial axes. An :class:`Axis` knows a padded position's source, so every
padding mode (and the negative padding of a transposed convolution's phases) is a table look-up while packing.
Sizes are stated for the largest tile of any CPU; a smaller tile needs less.
"""

from __future__ import annotations

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

CHUNK_BYTES = 8 << 20  # of one operand of a weight gradient: all threads share a chunk
CHUNK_PIXELS = 1 << 14
REDUCTION_PIXELS = 1024  # summed in registers at once by a weight gradient
THREAD_WORK = 1 << 19  # multiply-adds that pay for another thread: about 6 µs, fork and join cost 1.5 to 10
MOVED_WORK = 8  # multiply-adds in the time of an element read or written: what a depthwise layer's time is
LINE_BYTES = 64
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


def makespan(sizes: list[int], others: int, threads: int) -> int:
    """The largest share when ``others`` sequences of tasks of these sizes are dealt out in order."""
    items, count = sizes * others, len(sizes) * others
    return max(sum(items[count * t // threads : count * (t + 1) // threads]) for t in range(threads))


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


def with_half(geometry: ConvGeometry, itemsize: int, nbytes: Callable[[int], int]) -> int:
    """The bytes of a kernel, for 16-bit arrays with float32 copies of input, weights and output in front."""
    if itemsize != 2:
        return nbytes(itemsize)
    shapes = (geometry.input_shape, geometry.weight_shape, geometry.output_shape)
    return nbytes(4) + sum(aligned(4 * math.prod(shape)) for shape in shapes)
