"""Winograd convolution with a stride: its phases as input channels, by one more pass over the input.

With stride s every window begins s positions after the one before it, so positions that are equal modulo s always meet
the same taps. Each such phase of the rows and columns becomes a plane, and a convolution of C channels is one of C s²
channels without a stride, whose kernel has every s-th tap of the other, ceil(k / s) an axis and zeros where k ends:

    s = 2, k = 6      x   a b a b a b a b          planes    a a a a       b b b b
                          └─────────┘ window                 └───┘ taps    └───┘
                              └─────────┘                      └───┘         └───┘

Planes and taps are copied so and left to ``winograd``: F(4x4) of three taps an axis needs a quarter of direct's
multiplications. Padding, of any mode, becomes part of the planes. Some images at a time; how many was not varied.

For first layers of networks: 3 channels under 11x11 taps at stride 4 become 48 under 3x3, 1.4 to 1.8 times as fast as
``direct_planar``. Kernels of 3, 4 and 5 taps at stride 2 have variants of ``winograd`` that need no copy and leave out
products that are zero. Tried: 2x2 taps a phase (8x8 at stride 4, 4 to 32 channels of 84x84: 0.5 to 0.9 of planar's
speed, channels last 0.8 to 1.6; 7x7 at stride 4, 3 to 64 channels of 224x224: 0.8 to 1.25), 4x4 taps (7x7 at stride 2:
12 channels are too few).

Non-finite inputs: as ``winograd``; and a window also sees the input under taps that are zero, up to s - 1 beyond k.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from ..geometry import ConvGeometry, phases_as_channels
from . import winograd, winograd_blocking
from .arrays import KIND, Workspace, address, aligned, aligned_empty
from .blocking import aligned as whole_lines
from .blocking import correlation, progressions
from .bound import Bound
from .compile import jit
from .gemm import copy_strided, zero
from .phases import EntryPoints
from .simd import load, pointer, shift, store, unpack
from .winograd_layout import extended

IMAGE_BYTES = 8 << 20
"""Of planes at a time: they are read from L3 at the latest."""


class Planes(NamedTuple):
    """What the copying of the input is told: addresses, then strides and sizes in elements."""

    x: int
    planes: int
    x_n: int
    x_c: int
    x_h: int
    x_w: int
    images: int
    channels: int
    stride_h: int
    stride_w: int
    rows: int  # of a plane
    columns: int
    source_h: int
    segments: int
    segment_count: int


@jit
def plane_range(t, threads, table, chunk, kind):
    """Share ``t`` of the planes, a row of all a channel's column phases at a time: [n][c][phase][row][column]."""
    g = Planes(*unpack(table, PLANES))
    sources, segments = pointer(g.source_h, table), pointer(g.segments, table)
    plane, per_channel = g.rows * g.columns, g.stride_h * g.rows
    items = g.images * g.channels * per_channel
    for item in range(items * t // threads, items * (t + 1) // threads):
        image, line = item // per_channel, item % per_channel
        phase, row = line // g.rows, line % g.rows
        target = (image * g.stride_h + phase) * g.stride_w * plane + row * g.columns
        y = shift(pointer(g.planes, kind), target)
        h = load(sources, row * g.stride_h + phase)
        n, c = image // g.channels, image % g.channels
        x = shift(pointer(g.x, kind), n * g.x_n + c * g.x_c + max(h, 0) * g.x_h)
        for i in range(0, 4 * g.segment_count, 4):
            start, first, step = load(segments, i), load(segments, i + 1), load(segments, i + 2)
            for q in range(g.stride_w):
                j = (start - q + g.stride_w - 1) // g.stride_w
                count = (start + load(segments, i + 3) - q + g.stride_w - 1) // g.stride_w - j
                to = shift(y, q * plane + j)
                if count <= 0:
                    continue
                if h < 0 or first < 0:
                    zero(to, count)
                else:
                    begin = first + (j * g.stride_w + q - start) * step
                    copy_strided(shift(x, begin * g.x_w), step * g.stride_w * g.x_w, to, count)


PLANES = len(Planes._fields)


class Taps(NamedTuple):
    """What the copying of the weights is told."""

    w: int
    taps: int
    w_k: int
    w_c: int
    w_r: int
    w_s: int
    outputs: int
    channels: int  # of a group
    kernel_h: int
    kernel_w: int
    stride_h: int
    stride_w: int
    rows: int  # taps of a phase
    columns: int


@jit
def tap_range(t, threads, table, chunk, kind):
    """Share ``t`` of the taps of each phase: [k][c][phase][row][column]."""
    g = Taps(*unpack(table, TAPS))
    size = g.stride_h * g.stride_w * g.rows * g.columns
    for k in range(g.outputs * t // threads, g.outputs * (t + 1) // threads):
        for c in range(g.channels):
            w = shift(pointer(g.w, kind), k * g.w_k + c * g.w_c)
            target = shift(pointer(g.taps, kind), (k * g.channels + c) * size)
            i = 0
            for p in range(g.stride_h):
                for q in range(g.stride_w):
                    for r in range(p, p + g.rows * g.stride_h, g.stride_h):
                        for s in range(q, q + g.columns * g.stride_w, g.stride_w):
                            store(target, i, 0.0)
                            if r < g.kernel_h and s < g.kernel_w:
                                store(target, i, load(w, r * g.w_r + s * g.w_s))
                            i += 1


TAPS = len(Taps._fields)


def _images(inner: ConvGeometry, itemsize: int) -> int:
    """Images whose planes are made at a time: a divisor of the batch."""
    image = inner.in_channels * inner.input_size[0] * inner.input_size[1] * itemsize
    most = max(1, min(inner.batch, IMAGE_BYTES // max(1, image)))
    return next(n for n in range(most, 0, -1) if inner.batch % n == 0)


@lru_cache(maxsize=256)
def _bind_planes(
    geometry: ConvGeometry, images: int, strides: tuple[int, ...], dtype: np.dtype, threads: int
) -> Bound:  # fmt: skip
    inner = phases_as_channels(geometry)
    _, height, width = correlation(geometry).axes
    (stride_h, stride_w), (rows, columns) = geometry.stride, inner.input_size
    source_h = extended(height.source, rows * stride_h)
    segments, count = progressions(extended(width.source, columns * stride_w))
    x_n, x_c, x_h, x_w = (stride // dtype.itemsize for stride in strides)
    fields = Planes(
        0, 0, x_n, x_c, x_h, x_w, images, geometry.in_channels, stride_h, stride_w, rows, columns,
        address(source_h), address(segments), count,
    )  # fmt: skip
    return Bound(plane_range, KIND[dtype], threads, fields, (0, 1), (source_h, segments))


@lru_cache(maxsize=256)
def _bind_taps(geometry: ConvGeometry, strides: tuple[int, ...], dtype: np.dtype) -> Bound:
    inner = phases_as_channels(geometry)
    w_k, w_c, w_r, w_s = (stride // dtype.itemsize for stride in strides)
    fields = Taps(
        0, 0, w_k, w_c, w_r, w_s, geometry.out_channels, geometry.in_channels // geometry.groups,
        *geometry.kernel_size, *geometry.stride, *inner.kernel_size,
    )  # fmt: skip
    return Bound(tap_range, KIND[dtype], 1, fields, (0, 1))


def _gather(geometry: ConvGeometry, w: np.ndarray, taps: np.ndarray) -> None:
    w = aligned(w)
    _bind_taps(geometry, w.strides, w.dtype)(address(w), address(taps))


class Phases(NamedTuple):
    """The functions of the kernel contract, for one variant of ``winograd``."""

    variant: EntryPoints
    workspaces: winograd_blocking.Workspaces

    def forward(
        self, geometry: ConvGeometry, x: np.ndarray, w: np.ndarray, bias: np.ndarray | None,
        residual: np.ndarray | None, out: np.ndarray, *, activation: str | None = None, packed: Any = None,
        workspace: np.ndarray, threads: int = 1,
    ) -> None:  # fmt: skip
        """``out = activation(conv(x, w) + bias + residual)``."""
        if not out.size:
            return
        whole, scratch = phases_as_channels(geometry), Workspace(workspace)
        images = _images(whole, x.itemsize)
        inner = replace(whole, batch=images)
        x, taps = aligned(x), None
        if packed is None:
            taps = scratch.take(inner.weight_shape, x.dtype)
            _gather(geometry, w, taps)
        planes = scratch.take(inner.input_shape, x.dtype)
        useful = correlation(geometry).useful_threads(threads)
        rest, copy = workspace[scratch.used :], _bind_planes(geometry, images, x.strides, x.dtype, useful)
        for first in range(0, geometry.batch, images):
            some = slice(first, first + images)
            copy(address(x[some]), address(planes))
            other = None if residual is None else residual[some]
            self.variant.forward(
                inner, planes, taps, bias, other, out[some], activation=activation, packed=packed, workspace=rest,
                threads=threads,
            )  # fmt: skip

    def pack_forward(self, geometry: ConvGeometry, w: np.ndarray) -> np.ndarray:
        """Weights packed for ``forward``."""
        whole = phases_as_channels(geometry)
        inner = replace(whole, batch=_images(whole, w.itemsize))
        taps = aligned_empty(math.prod(inner.weight_shape), w.dtype).reshape(inner.weight_shape)
        _gather(geometry, w, taps)
        packed: np.ndarray = self.variant.pack_forward(inner, taps)
        return packed

    def forward_workspace(self, geometry: ConvGeometry, itemsize: int, threads: int) -> int:
        """How many bytes of workspace ``forward`` needs."""
        whole = phases_as_channels(geometry)
        inner = replace(whole, batch=_images(whole, itemsize))
        sizes = (inner.weight_shape, inner.input_shape)
        held = sum(whole_lines(math.prod(size) * itemsize) for size in sizes)
        return held + self.workspaces.forward(inner, itemsize, threads)


f4x4_3x3 = Phases(winograd.f4x4_3x3, winograd_blocking.f4x4_3x3)
