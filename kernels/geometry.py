"""Sizes of convolutions and poolings: the only place where they are computed.

A window of ``kernel`` taps, ``dilation`` apart, spans ``(kernel - 1) * dilation + 1`` elements. Slid over
``before + size + after`` elements in steps of ``stride`` it fits

    output = (before + size + after - span) // stride + 1

times. Everything else here follows from that line: transposed convolution solves it for ``size``, ``"same"``
for the padding, ``ceil_mode`` rounds the other way. Spatial tuples have one entry per spatial dimension;
a padding is a tuple of ``(before, after)`` pairs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import product
from typing import Any, TypeVar

import numpy as np

Sizes = tuple[int, ...]
Pads = tuple[tuple[int, int], ...]

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")

T = TypeVar("T")


def hashed_once(cls: type[T]) -> type[T]:
    """A frozen dataclass that computes its hash once: geometries and problems are the keys of every cache.

    >>> @hashed_once
    ... @dataclass(frozen=True)
    ... class Point:
    ...     x: int
    >>> hash(Point(1)) == hash(Point(1))
    True
    """
    compute = cls.__hash__

    def cached(self: Any) -> int:
        known: dict[str, Any] = self.__dict__
        if "_hash" not in known:
            known["_hash"] = compute(self)
        return int(known["_hash"])

    def state(self: Any) -> dict[str, Any]:  # hashes of strings differ from process to process
        return {name: value for name, value in self.__dict__.items() if name != "_hash"}

    setattr(cls, "__hash__", cached)  # noqa: B010 (mypy allows no assignment to a method)
    setattr(cls, "__getstate__", state)  # noqa: B010
    return cls


@hashed_once
@dataclass(frozen=True)
class ConvGeometry:
    """A convolution's sizes, resolved: what a convolution kernel needs to know besides its arrays.

    >>> g = ConvGeometry(1, 3, 8, (32, 32), (3, 3), stride=(2, 2), padding=((1, 1), (1, 1)))
    >>> g.output_size, g.reduction
    ((16, 16), 27)
    """

    batch: int
    in_channels: int
    out_channels: int
    input_size: Sizes
    kernel_size: Sizes
    stride: Sizes
    padding: Pads
    dilation: Sizes = ()
    groups: int = 1
    padding_mode: str = "zeros"

    def __post_init__(self) -> None:
        if not self.dilation:
            object.__setattr__(self, "dilation", (1,) * len(self.input_size))

    @property
    def rank(self) -> int:
        """Number of spatial dimensions."""
        return len(self.input_size)

    @cached_property
    def output_size(self) -> Sizes:
        return conv_output_size(self.input_size, self.kernel_size, self.stride, self.padding, self.dilation)

    @property
    def input_shape(self) -> Sizes:
        return (self.batch, self.in_channels, *self.input_size)

    @property
    def weight_shape(self) -> Sizes:
        return (self.out_channels, self.in_channels // self.groups, *self.kernel_size)

    @property
    def output_shape(self) -> Sizes:
        return (self.batch, self.out_channels, *self.output_size)

    @property
    def reduction(self) -> int:
        """Products summed for one output element."""
        return self.in_channels // self.groups * math.prod(self.kernel_size)

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of the direct algorithm, padding included; the same for both gradients."""
        return self.batch * self.out_channels * math.prod(self.output_size) * self.reduction

    def lifted(self) -> ConvGeometry:
        """The same convolution with three spatial dimensions: leading ones of size 1 are added."""
        n = 3 - self.rank
        ones = (1,) * n
        return ConvGeometry(
            self.batch, self.in_channels, self.out_channels, ones + self.input_size, ones + self.kernel_size,
            ones + self.stride, ((0, 0),) * n + self.padding, ones + self.dilation, self.groups, self.padding_mode,
        )  # fmt: skip


@hashed_once
@dataclass(frozen=True)
class PoolGeometry:
    """A pooling's sizes and parameters, resolved. ``kernel_size`` is empty for adaptive pooling.

    >>> PoolGeometry(1, 3, (5, 5), (2, 2), kernel_size=(2, 2), stride=(2, 2), padding=((0, 0), (0, 0))).windows[0].start
    array([0, 2])
    """

    batch: int
    channels: int
    input_size: Sizes
    output_size: Sizes
    kernel_size: Sizes = ()
    stride: Sizes = ()
    padding: Pads = ()
    dilation: Sizes = ()
    count_include_pad: bool = True
    divisor_override: int | None = None
    norm_type: float = 2.0

    def __post_init__(self) -> None:
        if not self.dilation:
            object.__setattr__(self, "dilation", (1,) * len(self.input_size))

    @property
    def rank(self) -> int:
        """Number of spatial dimensions."""
        return len(self.input_size)

    @property
    def adaptive(self) -> bool:
        return not self.kernel_size

    @property
    def input_shape(self) -> Sizes:
        return (self.batch, self.channels, *self.input_size)

    @property
    def output_shape(self) -> Sizes:
        return (self.batch, self.channels, *self.output_size)

    @cached_property
    def windows(self) -> tuple[Windows, ...]:
        """One :class:`Windows` per spatial dimension."""
        if self.adaptive:
            return tuple(adaptive_windows(i, o) for i, o in zip(self.input_size, self.output_size, strict=True))
        return tuple(
            pool_windows(*axis)
            for axis in zip(
                self.input_size,
                self.output_size,
                self.kernel_size,
                self.stride,
                self.padding,
                self.dilation,
                strict=True,
            )
        )

    def lifted(self) -> PoolGeometry:
        """The same pooling with three spatial dimensions: leading ones of size 1 are added."""
        n = 3 - self.rank
        ones = (1,) * n
        fixed = not self.adaptive
        return PoolGeometry(
            self.batch, self.channels, ones + self.input_size, ones + self.output_size,
            ones + self.kernel_size if fixed else (), ones + self.stride if fixed else (),
            ((0, 0),) * n + self.padding if fixed else (), ones + self.dilation,
            self.count_include_pad, self.divisor_override, self.norm_type,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Windows:
    """The windows of one pooled axis: window o holds elements ``start[o] + j * dilation``, ``j < count[o]``.

    All of them are valid positions; padding is already cut off. ``padded_count`` also counts the taps on the
    explicit padding (not those ``ceil_mode`` puts beyond it): the divisor of ``count_include_pad``.
    """

    start: np.ndarray
    count: np.ndarray
    padded_count: np.ndarray
    dilation: int


def span(kernel_size: int, dilation: int) -> int:
    """Elements from a window's first tap to its last.

    >>> span(3, 2)
    5
    """
    return (kernel_size - 1) * dilation + 1


def conv_output_size(input_size: Sizes, kernel_size: Sizes, stride: Sizes, padding: Pads, dilation: Sizes) -> Sizes:
    """Output sizes of a convolution; an entry below 1 means that the kernel does not fit.

    >>> conv_output_size((28, 28), (3, 3), (1, 1), ((0, 0), (0, 0)), (1, 1))
    (26, 26)
    """
    return tuple(
        (before + size + after - span(k, d)) // s + 1
        for size, k, s, (before, after), d in zip(input_size, kernel_size, stride, padding, dilation, strict=True)
    )


def conv_transpose_output_size(
    input_size: Sizes, kernel_size: Sizes, stride: Sizes, padding: Pads, dilation: Sizes, output_padding: Sizes
) -> Sizes:
    """Output sizes of a transposed convolution: the inverse of :func:`conv_output_size`.

    ``output_padding`` picks among the ``stride`` sizes that a convolution maps to the same output.

    >>> conv_transpose_output_size((7, 7), (2, 2), (2, 2), ((0, 0), (0, 0)), (1, 1), (0, 0))
    (14, 14)
    """
    return tuple(
        (size - 1) * s - before - after + span(k, d) + extra
        for size, k, s, (before, after), d, extra in zip(
            input_size, kernel_size, stride, padding, dilation, output_padding, strict=True
        )
    )


def pool_output_size(
    input_size: Sizes, kernel_size: Sizes, stride: Sizes, padding: Pads, dilation: Sizes, ceil_mode: bool
) -> Sizes:
    """Output sizes of a pooling. With ``ceil_mode`` a last, partial window counts too, provided that it starts
    inside the input or its leading padding (PyTorch's rule).

    >>> pool_output_size((5,), (2,), (2,), ((0, 0),), (1,), ceil_mode=True)
    (3,)
    """
    out = []
    for size, k, s, (before, after), d in zip(input_size, kernel_size, stride, padding, dilation, strict=True):
        room = before + size + after - span(k, d)
        n = (-(-room // s) if ceil_mode else room // s) + 1
        if ceil_mode and (n - 1) * s >= before + size:
            n -= 1
        out.append(n)
    return tuple(out)


def same_padding(input_size: Sizes, kernel_size: Sizes, stride: Sizes, dilation: Sizes, *, lower: bool = False) -> Pads:
    """Padding for an output of ``ceil(input / stride)``; an odd remainder goes after, or before if ``lower``.

    These are ONNX's SAME_UPPER and SAME_LOWER.

    >>> same_padding((5,), (2,), (2,), (1,))
    ((0, 1),)
    """
    pads = []
    for size, k, s, d in zip(input_size, kernel_size, stride, dilation, strict=True):
        total = max((-(-size // s) - 1) * s + span(k, d) - size, 0)
        small, large = total // 2, total - total // 2
        pads.append((large, small) if lower else (small, large))
    return tuple(pads)


@lru_cache(maxsize=512)
def source_indices(size: int, before: int, after: int, mode: str = "zeros") -> np.ndarray:
    """For each position of a padded axis the input position it shows, or -1 for a zero. Read-only.

    >>> source_indices(4, 2, 1, "reflect").tolist(), source_indices(3, 1, 1).tolist()
    ([2, 1, 0, 1, 2, 3, 2], [-1, 0, 1, 2, -1])
    """
    i = np.arange(-before, size + after)
    if mode == "zeros":
        i[(i < 0) | (i >= size)] = -1
    elif mode == "replicate":
        i = i.clip(0, size - 1)
    elif mode == "circular":
        i %= size
    elif mode == "reflect":
        i = size - 1 - abs(size - 1 - abs(i))
    else:
        raise ValueError(f"padding_mode must be one of {PADDING_MODES}, got {mode!r}")
    i.flags.writeable = False
    return i


def pool_windows(size: int, out: int, kernel: int, stride: int, padding: tuple[int, int], dilation: int) -> Windows:
    """The windows of one axis, cut to the input.

    >>> pool_windows(5, 3, 3, 2, (1, 1), 1).start.tolist(), pool_windows(5, 3, 3, 2, (1, 1), 1).count.tolist()
    ([0, 1, 3], [2, 3, 2])
    """
    before, after = padding
    first = np.arange(out) * stride - before
    skipped = np.maximum(0, -(first // dilation))  # taps on the leading padding: ceil(-first / dilation)
    start = first + skipped * dilation
    last = np.minimum(kernel - 1, (size - 1 - first) // dilation)
    last_padded = np.minimum(kernel - 1, (size + after - 1 - first) // dilation)
    return Windows(start, np.maximum(last - skipped + 1, 0), last_padded + 1, dilation)


def adaptive_windows(size: int, out: int) -> Windows:
    """Windows that share an axis out evenly: window o is ``[floor(o*size/out), ceil((o+1)*size/out))``.

    >>> adaptive_windows(5, 2).start.tolist(), adaptive_windows(5, 2).count.tolist()
    ([0, 2], [3, 3])
    """
    o = np.arange(out)
    start = o * size // out
    count = -(-(o + 1) * size // out) - start
    return Windows(start, count, count, 1)


@dataclass(frozen=True)
class Phase:
    """One phase of a transposed convolution: an ordinary stride-1 convolution of dy.

    A transposed convolution of stride s writes s interleaved grids an axis. Each grid sees only every s-th tap (at
    dilation 1), so it is a dense convolution with fewer taps, and no zero is ever multiplied:

        out[:, :, grid] = conv(dy, w[:, :, taps], stride=1, padding=padding, dilation=dilation)

    ``grid`` and ``taps`` are one slice an axis (``taps`` run backwards: transposing flips a kernel); ``padding``
    may be negative, which crops dy. ``taps`` is None where no tap reaches the grid: its result is zero.
    """

    grid: tuple[slice, ...]
    taps: tuple[slice, ...] | None
    output_size: Sizes
    kernel_size: Sizes
    padding: Pads
    dilation: Sizes


def transposed_phases(geometry: ConvGeometry) -> Iterator[Phase]:
    """The phases whose outputs tile the input gradient of ``geometry`` (zero padding only).

    >>> g = ConvGeometry(1, 1, 1, (6,), (3,), stride=(2,), padding=((1, 1),))
    >>> [(p.grid[0].start, p.kernel_size) for p in transposed_phases(g)]
    [(0, (1,)), (1, (2,))]
    """
    axes = []
    for a in range(geometry.rank):
        size, out, k = geometry.input_size[a], geometry.output_size[a], geometry.kernel_size[a]
        s, d, (before, _) = geometry.stride[a], geometry.dilation[a], geometry.padding[a]
        tap_step = s // math.gcd(s, d)  # taps r with (first + before - r*d) % s == 0 are this far apart
        dy_step = d // math.gcd(s, d)  # and their positions in dy this far
        axis: list[tuple[slice, slice | None, int, int, tuple[int, int], int]] = []
        for first in range(min(s, size)):
            grid = slice(first, None, s)
            n = len(range(first, size, s))
            hit = [r for r in range(min(tap_step, k)) if (first + before - r * d) % s == 0]
            if not hit:
                axis.append((grid, None, n, 0, (0, 0), 1))
                continue
            taps = range(hit[0], k, tap_step)
            low = (first + before - taps[-1] * d) // s  # position in dy of the last tap, for grid point 0
            after = low + (n - 1) + (len(taps) - 1) * dy_step - (out - 1)
            backwards = slice(taps[-1], taps[0] - tap_step if taps[0] >= tap_step else None, -tap_step)
            axis.append((grid, backwards, n, len(taps), (-low, after), dy_step))
        axes.append(axis)
    for combination in product(*axes):
        grid, taps, n, k, pads, step = zip(*combination, strict=True)
        yield Phase(grid, None if None in taps else taps, n, k, pads, step)


@lru_cache(maxsize=1024)
def phases_as_channels(geometry: ConvGeometry) -> ConvGeometry:
    """The same convolution without a stride and padding: each phase of the padded input as channels of its own.

    A phase sees every ``stride``-th tap, the last of which may be beyond the kernel, where taps are zeros.

    >>> g = ConvGeometry(1, 3, 64, (224, 224), (11, 11), stride=(4, 4), padding=((2, 2), (2, 2)))
    >>> inner = phases_as_channels(g)
    >>> inner.in_channels, inner.input_size, inner.kernel_size, inner.output_size == g.output_size
    (48, (57, 57), (3, 3), True)
    """
    g, ones = geometry, (1,) * geometry.rank
    taps = tuple(-(-k // s) for k, s in zip(g.kernel_size, g.stride, strict=True))
    size = tuple(n + r - 1 for n, r in zip(g.output_size, taps, strict=True))
    channels = g.in_channels * math.prod(g.stride)
    return ConvGeometry(
        g.batch, channels, g.out_channels, size, taps, ones, ((0, 0),) * g.rank, ones, g.groups
    )  # fmt: skip
