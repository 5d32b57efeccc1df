"""Launches ``depthwise.cu``, ``depthwise_strided.cu`` and ``depthwise_any.cu``: groups of one input channel.

The equations and thread mappings are in those files. Here are the choice between them, tiles again (a test holds them
to those), and the input gradient at stride 1 as a forward convolution of dy with the weights turned around.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from ..geometry import ConvGeometry
from .launch import (
    ELEMENTS,
    Strides,
    contiguous,
    conv_struct,
    index_type,
    pointers,
    readable,
    whole,
    writable,
)
from .module import Grid, Instance, driver
from .tiles import blocks, is_channels_last, rows_of_fours, tiles

ANY_THREADS, THREADS = 256, 128
"""Threads of a block in ``depthwise_any.cu``, and in the others."""
SIZES, STRIDES = (3, 5, 7), (1, 2)
"""Square kernels, and strides of both axes, with kernels of their own."""
GRADIENT_ROWS = 4
CHUNK, WARP = 8, 32
ROUND = THREADS // WARP
"""Taps that a block adds up at a time: CHUNK in ``depthwise_any.cu``, ROUND in ``depthwise.cu``."""

FULL_DEVICE = 1024
"""Blocks that keep a large GPU busy: a weight gradient with fewer cuts its tiles into splits. A constant, so that every
GPU adds in the same order."""
LEAST_TILES = 4  # of a thread: with fewer, adding up costs more than the splits gain


class Plan(NamedTuple):
    """What follows from geometry, dtype, strides and whether arrays begin on 16 bytes."""

    instance: Instance
    grid: Grid
    structs: tuple[Any, Any]
    flags: tuple[Any, ...] = ()
    shared: int = 0
    weights_at: int = 0  # bytes from the beginning of w to where the struct's strides begin
    finish: Instance | None = None
    finish_grid: Grid = (1, 1, 1)


def _any(symbol: str, dtype: str, index: str) -> Instance:
    return Instance("depthwise_any", symbol, (("ELEMENT", ELEMENTS[dtype]), ("INDEX", index)), ANY_THREADS)


def _fixed(symbol: str, size: int, stride: int) -> Instance:
    defines = (("ELEMENT", "float"), ("INDEX", "int"), ("KERNEL_SIZE", size), ("STRIDE", stride))
    return Instance("depthwise", symbol, defines, THREADS)


def _strided(size: int) -> Instance:
    defines = (("ELEMENT", "float"), ("INDEX", "int"), ("KERNEL_SIZE", size))
    return Instance("depthwise_strided", "depthwise_strided_grad_input", defines, THREADS)


def _instances(general: tuple[str, ...], *fixed: str, strides: tuple[int, ...] = STRIDES) -> tuple[Instance, ...]:
    return (
        *(_any(symbol, dtype, index) for symbol in general for dtype in ELEMENTS for index in ("int", "long long")),
        *(_fixed(symbol, size, stride) for symbol in fixed for size in SIZES for stride in strides),
    )


_CORRELATIONS = ("depthwise", "depthwise_fours", "depthwise_across")


def forward_instances() -> tuple[Instance, ...]:
    """Every instance that ``forward`` may launch."""
    return _instances(("depthwise_any",), *_CORRELATIONS)


def grad_input_instances() -> tuple[Instance, ...]:
    """Every instance that ``grad_input`` may launch."""
    strided = tuple(_strided(size) for size in SIZES)
    return (*_instances(("depthwise_any_grad_input",), *_CORRELATIONS, strides=(1,)), *strided)


def grad_weight_instances() -> tuple[Instance, ...]:
    """Every instance that ``grad_weight`` may launch."""
    symbols = (f"depthwise_grad_weight{how}" for how in ("", "_fours", "_across"))
    return _instances(("depthwise_any_grad_weight", "depthwise_add_splits"), *symbols)


# ------------------------------------------------------------------------------------------------------------- plans


def _window(g: ConvGeometry) -> tuple[int, int] | None:
    """The kernel size and stride that a kernel of its own has, or None."""
    f = g.lifted()
    flat = (f.input_size[0], f.kernel_size[0], f.stride[0], f.padding[0]) == (1, 1, 1, (0, 0))
    if not flat or set(f.dilation) != {1} or g.padding_mode != "zeros":
        return None
    (size, stride), width = ((f.kernel_size[a], f.stride[a]) for a in (1, 2))
    return (size, stride) if (size, stride) == width and size in SIZES and stride in STRIDES else None


def _rows(window: tuple[int, int], columns: int) -> int:
    """Rows of a tile in ``depthwise.cu``."""
    size, stride = window
    if columns == 4:
        return 4 if stride == 1 else 2
    return 4 if stride == 2 or size == 3 else 8


def turned(g: ConvGeometry) -> ConvGeometry:
    """The convolution of dy, with the weights turned around, that is the input gradient of ``g``, at stride 1."""
    pads = []
    for size, out, k, (before, _) in zip(g.input_size, g.output_size, g.kernel_size, g.padding, strict=True):
        first = k - 1 - before
        pads.append((first, size + k - 1 - out - first))
    return ConvGeometry(
        g.batch, g.out_channels, g.in_channels, g.output_size, g.kernel_size, g.stride, tuple(pads), groups=g.groups
    )


def _index(g: ConvGeometry, itemsize: int, x: Strides, w: Strides, y: Strides, *more: tuple[Any, Any, int]) -> str:
    shapes = (g.input_shape, g.weight_shape, g.output_shape)
    return index_type(*((shape, by, itemsize) for shape, by in zip(shapes, (x, w, y), strict=True)), *more)


@lru_cache(maxsize=1024)
def _correlation_plan(
    direction: str, g: ConvGeometry, dtype: np.dtype[Any], given: Strides, w: Strides, residual: Strides | None,
    out: Strides, activation: str | None, aligned: tuple[bool, bool],
) -> Plan | None:  # fmt: skip
    """``given``: what is read, x or dy; ``aligned``: given and out. None where strides are no multiples of elements."""
    size = dtype.itemsize
    if not whole(size, given, w, out, residual):
        return None
    forward = direction == "forward"
    x, y = (given, out) if forward else (out, given)
    written = g.output_shape if forward else g.input_shape
    index = _index(g, size, x, w, y, *(() if residual is None else ((written, residual, size),)))
    window = _window(g) if (dtype.name, index) == ("float32", "int") else None
    last = is_channels_last(written, out)
    if window is None or (not forward and window[1] == 2):
        struct = conv_struct(g, size, x, w, y, residual, activation)
        spatial = g.lifted().output_size if forward else g.lifted().input_size
        if window is None:
            work = tiles(written[0], written[1], spatial, (1, 1), last)
            name = "depthwise_any" if forward else "depthwise_any_grad_input"
            instance = _any(name, dtype.name, index)
        else:  # tiles begin where row + padding is even
            odd = g.lifted().padding[1][0] % 2
            work = tiles(written[0], written[1], (1, spatial[1] + odd, spatial[2]), (GRADIENT_ROWS, 1), last)
            instance = _strided(window[0])
        return Plan(instance, blocks(work["items"].item(), instance.threads), (struct, work))
    at = 0
    if not forward:
        g, at = turned(g), sum((k - 1) * s for k, s in zip(g.kernel_size, w[2:], strict=True))
        multiplier = g.in_channels // g.groups
        w = (w[0] * multiplier, w[0], *(-s for s in w[2:]))
    how = _how(g, window, given, size, last, aligned[0])
    struct = conv_struct(g, size, given, w, out, residual, activation)
    columns = 1 if how == "" else 4
    work = tiles(written[0], written[1], g.lifted().output_size, (_rows(window, columns), columns), last)
    by_fours = aligned[1] and rows_of_fours(written, out, size)
    instance = _fixed(f"depthwise{how}", *window)
    return Plan(instance, blocks(work["items"].item(), THREADS), (struct, work), (np.int32(by_fours),), 0, at)


def _how(g: ConvGeometry, window: tuple[int, int], x: Strides, itemsize: int, last: bool, aligned: bool) -> str:
    """The suffix of the kernel for an input that lies so."""
    if last:
        return "_across"
    middle = g.padding[-1][0] == window[0] // 2
    return "_fours" if aligned and middle and rows_of_fours(g.input_shape, x, itemsize) else ""


@lru_cache(maxsize=1024)
def _weight_plan(
    g: ConvGeometry, dtype: np.dtype[Any], x: Strides, dw: Strides, dy: Strides, aligned: bool
) -> Plan | None:
    """``aligned``: x and dy begin on 16 bytes. None where strides are no multiples of elements."""
    size = dtype.itemsize
    if not whole(size, x, dw, dy):
        return None
    index = _index(g, size, x, dw, dy)
    window = _window(g) if (dtype.name, index) == ("float32", "int") else None
    last = is_channels_last(g.output_shape, dy)
    struct, spatial = conv_struct(g, size, x, dw, dy, None, None), g.lifted().output_size
    count = g.out_channels * math.prod(g.kernel_size)
    finish = _any("depthwise_add_splits", dtype.name, index)
    if window is None:
        splits = _splits(g, CHUNK)
        work = tiles(g.batch, 1, spatial, (1, 1), last)
        instance = _any("depthwise_any_grad_weight", dtype.name, index)
        grid, shared = (
            splits * g.out_channels * -(-math.prod(g.kernel_size) // CHUNK),
            CHUNK * ANY_THREADS * max(size, 4),
        )
    else:
        fours = spatial[2] % 4 == 0  # tiles of four columns must not hang over: an infinite x times 0 is NaN
        how = _how(g, window, x, size, last, aligned and rows_of_fours(g.output_shape, dy, size))
        columns = 4 if how and fours else 1
        instance = _fixed(f"depthwise_grad_weight{how if columns == 4 else ''}", *window)
        work = tiles(g.batch, 1, spatial, (_rows(window, columns), columns), last)
        splits = _splits(g, WARP if last else 1, across=last)
        grid, shared = splits * -(-g.out_channels // (WARP if last else 1)), ROUND * THREADS * size
    return Plan(
        instance, blocks(grid, 1), (struct, work), (np.int32(splits),), shared, 0, finish, blocks(count, ANY_THREADS)
    )


def _splits(g: ConvGeometry, width: int, across: bool = False) -> int:
    """Into how many shares a weight gradient is cut. ``width``: channels of a block, or taps."""
    lanes = THREADS // WARP if across else THREADS
    units = -(-g.out_channels // width) if across else g.out_channels
    positions = g.batch * math.prod(g.output_size)
    return max(1, min(FULL_DEVICE // units, positions // (4 * LEAST_TILES * lanes)))


@lru_cache(maxsize=1024)
def grad_weight_workspace(g: ConvGeometry, itemsize: int, threads: int) -> int:
    """Bytes of workspace for ``grad_weight``: the sums of the shares."""
    splits = max(_splits(g, 1), _splits(g, WARP, across=True))
    return splits * g.out_channels * math.prod(g.kernel_size) * max(itemsize, 4)


# --------------------------------------------------------------------------------------------- the contract's functions


def _correlate(
    direction: str, geometry: ConvGeometry, given: Any, w: Any, bias: Any, residual: Any, out: Any,
    activation: str | None,
) -> None:  # fmt: skip
    if not out.size:
        return
    current, plan, addresses = driver(), None, None
    if bias is None or bias.flags.c_contiguous:
        addresses = pointers(current, out.itemsize, given, w, bias, residual, out)
    if addresses is not None:
        plan = _correlation_plan(
            direction, geometry, out.dtype, given.strides, w.strides, None if residual is None else residual.strides,
            out.strides, activation, (addresses[0] % 16 == 0, addresses[4] % 16 == 0),
        )  # fmt: skip
    if plan is None or addresses is None:
        copies = readable(given), readable(w), contiguous(bias), None if residual is None else readable(residual)
        with writable(out) as target:
            _correlate(direction, geometry, *copies, target, activation)
        return
    if plan.weights_at:
        x, weights, *others = addresses
        addresses = (x, np.uint64(int(weights) + plan.weights_at), *others)
    current.function(plan.instance)(
        plan.grid, (plan.instance.threads, 1, 1), (*plan.structs, *addresses, *plan.flags), plan.shared
    )


def forward(
    geometry: ConvGeometry, x: Any, w: Any, bias: Any, residual: Any, out: Any, *, activation: str | None = None,
    packed: Any = None, workspace: Any = None, threads: int = 1,
) -> None:  # fmt: skip
    """``out = activation(conv(x, w) + bias + residual)``."""
    _correlate("forward", geometry, x, w, bias, residual, out, activation)


def grad_input(
    geometry: ConvGeometry, dy: Any, w: Any, bias: Any, residual: Any, out: Any, *, activation: str | None = None,
    packed: Any = None, workspace: Any = None, threads: int = 1,
) -> None:  # fmt: skip
    """``out = activation(gradient of the input + bias + residual)``: also the transposed convolution."""
    _correlate("grad_input", geometry, dy, w, bias, residual, out, activation)


def grad_weight(geometry: ConvGeometry, x: Any, dy: Any, out: Any, *, workspace: Any = None, threads: int = 1) -> None:
    """``out`` = gradient of the weights."""
    if not out.size:
        return
    if not dy.size:  # there is no workspace for an empty batch
        out[...] = 0
        return
    current, plan = driver(), None
    addresses = pointers(current, out.itemsize, x, dy, out, workspace)
    if addresses is not None:
        aligned = addresses[0] % 16 == 0 and addresses[1] % 16 == 0
        plan = _weight_plan(geometry, out.dtype, x.strides, out.strides, dy.strides, aligned)
    if plan is None or addresses is None:
        with writable(out) as target:
            grad_weight(geometry, readable(x), readable(dy), target, workspace=workspace, threads=threads)
        return
    (struct, work), (splits,) = plan.structs, plan.flags
    given, gradient, weights, partial = addresses
    current.function(plan.instance)(
        plan.grid, (plan.instance.threads, 1, 1), (struct, work, given, gradient, partial, splits), plan.shared
    )
    assert plan.finish is not None
    current.function(plan.finish)(plan.finish_grid, (ANY_THREADS, 1, 1), (struct, partial, weights, splits), 0)
