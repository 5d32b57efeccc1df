"""Launches ``pool.cu``, ``pool_fixed.cu`` and ``unpool.cu``: every pooling, its gradient, and unpooling.

The equations and thread mappings are in those files. Here are the struct they take, and which kernel runs:

    fixed     float32, a window of FIXED: tiles of outputs, by vectors where rows lie on 16 bytes
    split     windows of SPLIT positions and more: several threads share a window
    spread    the gradient of an average over whole planes
    general   everything else

Indices must be a pooling's own, each within its window: gradients look for them there. Unpooling takes any.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np

from ..geometry import PoolGeometry
from .launch import ELEMENTS, NULL, WINDOW, Strides, elements, index_type, readable, whole, writable
from .module import Defines, Grid, Instance, Struct, driver
from .tiles import DIVISOR, blocks, divisor, is_channels_last, rows_of_fours, tiles

THREADS = 256
BLOCK = (THREADS, 1, 1)
FIXED = ((2, 2, 0), (3, 2, 1), (3, 1, 1))
"""Windows with kernels of their own: size, stride and padding of both axes."""
GRADIENT_ROWS = 4
PIECE = 12288  # positions times channels of a block of unpooling

SPLIT = 32
"""Positions of a window from which threads share it: fewer than that a warp's lines stay in the L1 cache."""
FULL_DEVICE = 1 << 18
"""Threads that keep a large GPU busy. A constant, so that every GPU adds in the same order."""

POOL = np.dtype(
    [
        ("batch", np.int32),
        ("channels", np.int32),
        ("adaptive", np.int32),
        *WINDOW,
        ("by", DIVISOR, 3),
        ("include_padding", np.int32),
        ("sign", np.int32),
        ("index_bytes", np.int32),
        ("divisor", np.float64),
        ("norm", np.float64),
        ("x", np.int64, 5),
        ("dx", np.int64, 5),
        ("y", np.int64, 5),
        ("dy", np.int64, 5),
        ("indices", np.int64, 5),
    ],
    align=True,
)
"""``struct Pool`` of ``pool.cuh``, field by field."""


class Operand(NamedTuple):
    """What a plan knows of an array: its field in POOL, strides in bytes, whether it begins on four elements."""

    field: str
    strides: Strides
    itemsize: int
    aligned: bool


class Plan(NamedTuple):
    """What follows from geometry, dtypes and strides. ``before`` and ``after``: arguments around the arrays."""

    instance: Instance
    grid: Grid
    before: tuple[Any, ...]
    after: tuple[Any, ...] = ()
    shared: int = 0


@dataclass(frozen=True)
class Kernels:
    """The kernels of one operation: symbols in ``pool.cu``, and in ``pool_fixed.cu`` where it has any."""

    general: tuple[str, ...]
    fixed: tuple[str, ...] = ()
    stem: str = "pool"

    def instances(self) -> tuple[Instance, ...]:
        """Every instance that may be launched."""
        return (
            *(_instance(self.stem, s, d, i) for s in self.general for d in ELEMENTS for i in ("int", "long long")),
            *(_fixed_instance(s, window) for s in self.fixed for window in FIXED),
        )


def _instance(stem: str, symbol: str, dtype: str, index: str, more: Defines = ()) -> Instance:
    return Instance(stem, symbol, (("ELEMENT", ELEMENTS[dtype]), ("INDEX", index), *more), THREADS)


def _fixed_instance(symbol: str, window: tuple[int, int, int]) -> Instance:
    names = ("WINDOW", "STRIDE", "PADDING")
    return _instance("pool_fixed", symbol, "float32", "int", tuple(zip(names, window, strict=True)))


EXTREME = Kernels(
    ("pool_extreme", "pool_extreme_split"),
    ("pool_fixed_largest", "pool_fixed_largest_fours", "pool_fixed_extreme", "pool_fixed_extreme_fours"),
)
AVERAGE = Kernels(("pool_average", "pool_average_split"), ("pool_fixed_average", "pool_fixed_average_fours"))
NORM = Kernels(("pool_norm", "pool_norm_split"))
PICK_GRADIENT = Kernels(("pool_pick_gradient",), ("pool_fixed_pick_gradient",))
AVERAGE_GRADIENT = Kernels(("pool_average_gradient", "pool_spread"), ("pool_fixed_average_gradient",))
NORM_GRADIENT = Kernels(("pool_norm_gradient",))
UNPOOL = Kernels(("unpool_forward",), stem="unpool")
UNPOOL_GRADIENT = Kernels(("unpool_gradient",), stem="unpool")


# ------------------------------------------------------------------------------------------------------------- plans


def pool_struct(geometry: PoolGeometry, sign: int, constant: float, operands: tuple[Operand, ...]) -> Any:
    """``struct Pool``; ``constant``: the divisor of every window, or 0."""
    g = geometry.lifted()
    struct = Struct.of(POOL)
    struct["batch"], struct["channels"], struct["adaptive"] = g.batch, g.channels, g.adaptive
    struct["input"], struct["output"], struct["dilation"] = g.input_size, g.output_size, g.dilation
    by = g.input_size if g.adaptive else g.stride
    if not g.adaptive:
        before, after = zip(*g.padding, strict=True)
        struct["kernel"], struct["stride"], struct["padding"], struct["padding_after"] = (
            g.kernel_size, g.stride, before, after,
        )  # fmt: skip
    struct["by"] = [divisor(max(n, 1)) for n in by]
    struct["include_padding"], struct["sign"], struct["divisor"] = g.count_include_pad, sign, constant
    struct["norm"] = g.norm_type
    for operand in operands:
        struct[operand.field] = elements(operand.strides, operand.itemsize)
        if operand.field == "indices":
            struct["index_bytes"] = operand.itemsize
    return struct


def uniform_divisor(g: PoolGeometry) -> float:
    """The divisor that all windows of an average share, or 0.

    >>> uniform_divisor(PoolGeometry(1, 1, (4,), (2,), (2,), (2,), ((0, 0),)))
    2.0
    """
    if g.divisor_override is not None:
        return float(g.divisor_override)
    axes = [np.unique(w.padded_count if g.count_include_pad else w.count) for w in g.windows]
    return math.prod(float(a[0]) for a in axes) if all(len(a) == 1 for a in axes) else 0.0


def _taps(g: PoolGeometry) -> int:
    """Positions of the largest window."""
    return math.prod(int(w.count.max(initial=0)) for w in g.windows)


def _whole(g: PoolGeometry) -> bool:
    """Whether the one window is the plane."""
    return math.prod(g.output_size) == 1 and _taps(g) == math.prod(g.input_size)


def _walkable(size: tuple[int, ...], strides: Strides) -> bool:
    """Whether the stride of the last axis leads through all of a plane."""
    step = strides[-1] * size[-1]
    for n, stride in zip(size[-2::-1], strides[-2:1:-1], strict=True):
        if n > 1 and stride != step:
            return False
        step *= n
    return size[-1] > 1 or math.prod(size) == 1


def _flattened(g: PoolGeometry, x: Operand) -> tuple[PoolGeometry, Operand] | None:
    """A pooling of whole planes as one of rows, where the planes can be walked."""
    if g.rank == 1 or not _whole(g) or not _walkable(g.input_size, x.strides):
        return None
    n = math.prod(g.input_size)
    flat = replace(
        g, input_size=(n,), output_size=(1,), kernel_size=(n,), stride=(1,), padding=((0, 0),), dilation=(1,)
    )
    return flat, x._replace(strides=(*x.strides[:2], x.strides[-1]))


def _window(g: PoolGeometry, dtype: str, index: str) -> tuple[int, int, int] | None:
    """The entry of FIXED that a pooling has."""
    if dtype != "float32" or index != "int" or g.adaptive:
        return None
    f = g.lifted()
    before = [pads[0] for pads in f.padding]
    if set(f.dilation) != {1} or (f.input_size[0], f.kernel_size[0], f.stride[0], before[0]) != (1, 1, 1, 0):
        return None
    height, width = ((f.kernel_size[a], f.stride[a], before[a]) for a in (1, 2))
    return height if height == width and height in FIXED and f.output_size[0] == 1 else None


def _on_elements(operands: tuple[Operand, ...]) -> bool:
    return all(whole(o.itemsize, o.strides) for o in operands)


def _extents(g: PoolGeometry, operands: tuple[Operand, ...]) -> str:
    shape = {"x": g.input_shape, "dx": g.input_shape}
    return index_type(*((shape.get(o.field, g.output_shape), o.strides, o.itemsize) for o in operands))


@lru_cache(maxsize=1024)
def _forward_plan(which: str, g: PoolGeometry, dtype: str, sign: int, operands: tuple[Operand, ...]) -> Plan | None:
    """``which``: extreme, average or norm. Operands: x, y and, where there are any, indices."""
    if not _on_elements(operands):
        return None
    x, y, *others = operands
    index, constant = _extents(g, operands), uniform_divisor(g)
    last = is_channels_last(g.input_shape, x.strides)
    window = None if which == "norm" else _window(g, dtype, index)
    if window is not None:
        fours = x.aligned and rows_of_fours(g.input_shape, x.strides, x.itemsize)
        by_fours = all(o.aligned and rows_of_fours(g.output_shape, o.strides, o.itemsize) for o in (y, *others))
        name = "average" if which == "average" else "extreme" if others else "largest"
        tile = (4 if window[1] == 1 else 2, 4 if fours else 1)
        work = tiles(g.batch, g.channels, g.lifted().output_size, tile, last)
        return Plan(
            _fixed_instance(f"pool_fixed_{name}{'_fours' if fours else ''}", window),
            blocks(work["items"].item(), THREADS),
            (pool_struct(g, sign, constant, operands), work),
            (*(() if others else (NULL,)), np.int32(by_fours)),
        )
    flat = _flattened(g, x)
    if flat is not None:
        g, x = flat
        operands = (x, *(o._replace(strides=(*o.strides[:2], 0)) for o in (y, *others)))
    work = tiles(g.batch, g.channels, g.lifted().output_size, (1, 1), last)
    windows, taps = work["items"].item(), _taps(g)
    before = (pool_struct(g, sign, constant, operands), work)
    absent = (NULL,) if which == "extreme" and not others else ()
    if taps >= SPLIT and not (last and windows >= FULL_DEVICE):
        if last:
            lanes = 8 if windows * 8 >= FULL_DEVICE or taps < 1024 else 32
        else:
            lanes = 8 if taps < 256 else 32 if taps < 4096 else 256
        result = 16 if which == "extreme" and (index == "long long" or dtype == "float64") else 8
        instance = _instance("pool", f"pool_{which}_split", dtype, index)
        return Plan(instance, blocks(windows, THREADS // lanes), before, (*absent, np.int32(lanes)), THREADS * result)
    return Plan(_instance("pool", f"pool_{which}", dtype, index), blocks(windows, THREADS), before, absent)


@lru_cache(maxsize=1024)
def _gradient_plan(which: str, g: PoolGeometry, dtype: str, operands: tuple[Operand, ...]) -> Plan | None:
    """``which``: pick, average or norm. Operands in the order of the kernel's arguments, dx last."""
    if not _on_elements(operands):
        return None
    dx, index = operands[-1], _extents(g, operands)
    constant = uniform_divisor(g)
    last = is_channels_last(g.input_shape, dx.strides)
    if which == "average" and constant and _whole(g):
        spread = _spread_plan(g, dtype, index, constant, last, *operands)
        if spread is not None:
            return spread
    window = None if which == "norm" else _window(g, dtype, index)
    if which == "pick" and elements(*operands[0][1:3]) != elements(*operands[1][1:3]):
        window = None  # the fixed kernels find dy and its index at one offset
    tile = (1, 1) if window is None else (GRADIENT_ROWS, 1)
    work = tiles(g.batch, g.channels, g.lifted().input_size, tile, last)
    if window is None:
        instance = _instance("pool", f"pool_{which}_gradient", dtype, index)
    else:
        instance = _fixed_instance(f"pool_fixed_{which}_gradient", window)
    return Plan(instance, blocks(work["items"].item(), THREADS), (pool_struct(g, 1, constant, operands), work))


def _spread_plan(
    g: PoolGeometry, dtype: str, index: str, constant: float, last: bool, dy: Operand, dx: Operand
) -> Plan | None:
    """The gradient of whole planes' averages, where dy and dx are contiguous; dx in either layout."""
    size, n = dx.itemsize, math.prod(g.input_size)
    image = g.channels * n * size
    pixel, plane = (g.channels * size, size) if last else (size, n * size)
    dense = _is(dy.strides[:2], (g.channels * size, size), g.output_shape) and _is(
        dx.strides[:2], (image, plane), g.input_shape
    )
    if not (dense and _walkable(g.input_size, dx.strides) and (dx.strides[-1] == pixel or n == 1)):
        return None
    inner, kinds = (g.channels * n, g.channels) if last else (n, 1)
    if max(inner, kinds) >= 2**31:
        return None
    count = g.batch * g.channels * n
    after = (
        np.int64(count), _divisor_scalar(inner), _divisor_scalar(kinds), np.float64(constant), np.int32(dx.aligned),
    )  # fmt: skip
    return Plan(_instance("pool", "pool_spread", dtype, index), blocks(-(-count // 4), THREADS), (), after)


def _is(strides: Strides, expected: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    return all(n == 1 or s == e for s, e, n in zip(strides, expected, shape, strict=False))


def _divisor_scalar(n: int) -> Any:
    return Struct.of(DIVISOR, *divisor(n))


def _unpooled(g: PoolGeometry, operands: tuple[Operand, ...]) -> tuple[str, Any, Any]:
    """Of an unpooling: the type of offsets, whether all planes can be walked with the last stride, the struct."""
    shapes = [g.input_shape if o.field in ("y", "dy") else g.output_shape for o in operands]
    index = index_type(*((s, o.strides, o.itemsize) for s, o in zip(shapes, operands, strict=True)))
    flat = np.int32(all(_walkable(s[2:], o.strides) for s, o in zip(shapes, operands, strict=True)))
    return index, flat, pool_struct(g, 1, 0.0, operands)


@lru_cache(maxsize=1024)
def _unpool_plan(g: PoolGeometry, dtype: str, operands: tuple[Operand, ...]) -> Plan | None:
    """Operands: x, indices, y; y lies as the pooling's input."""
    if not _on_elements(operands):
        return None
    index, flat, struct = _unpooled(g, operands)
    group = 8 if is_channels_last(g.input_shape, operands[2].strides) else 1
    plane = math.prod(g.input_size)
    length = min(PIECE // group, plane)
    items = g.batch * -(-g.channels // group) * -(-plane // length)
    instance = _instance("unpool", "unpool_forward", dtype, index)
    return Plan(instance, blocks(items, 1), (struct,), (np.int32(group), flat), length * group * 4)


@lru_cache(maxsize=1024)
def _unpool_gradient_plan(g: PoolGeometry, dtype: str, operands: tuple[Operand, ...]) -> Plan | None:
    """Operands: dy, which lies as the pooling's input, indices, dx."""
    if not _on_elements(operands):
        return None
    index, flat, struct = _unpooled(g, operands)
    last = is_channels_last(g.input_shape, operands[0].strides)
    work = tiles(g.batch, g.channels, g.lifted().output_size, (1, 1), last)
    instance = _instance("unpool", "unpool_gradient", dtype, index)
    return Plan(instance, blocks(work["items"].item(), THREADS), (struct, work), (flat,))


# ----------------------------------------------------------------------------------------------------------- launching


def _launched(plan_of: Callable[[tuple[Operand, ...]], Plan | None], **arrays: Any) -> bool:
    """Launch what ``plan_of`` plans for the arrays, in the order of the kernel's arguments. False where elements of one
    do not lie on multiples of their size: the caller then starts again with copies."""
    current = driver()
    operands, addresses = [], []
    for field, array in arrays.items():
        where, size = current.address(array), array.itemsize
        if where % size:
            return False
        operands.append(Operand(field, array.strides, size, where % (4 * size) == 0))
        addresses.append(np.uint64(where))
    plan = plan_of(tuple(operands))
    if plan is None:
        return False
    current.function(plan.instance)(plan.grid, BLOCK, (*plan.before, *addresses, *plan.after), plan.shared)
    return True


def _forward(which: str, g: PoolGeometry, x: Any, indices: Any, out: Any, sign: int = 1) -> None:
    if not out.size:
        return
    found = {} if indices is None else {"indices": indices}
    if not _launched(partial(_forward_plan, which, g, out.dtype.name, sign), x=x, y=out, **found):
        with writable(out) as y, nullcontext() if indices is None else writable(indices) as positions:
            _forward(which, g, readable(x), positions, y, sign)


def _gradient(plan_of: Callable[[tuple[Operand, ...]], Plan | None], out: Any, **given: Any) -> None:
    if out.size and not _launched(plan_of, **given, dx=out):
        with writable(out) as dx:
            _gradient(plan_of, dx, **{field: readable(array) for field, array in given.items()})


# --------------------------------------------------------------------------------------------- the contract's functions


def max_forward(geometry: PoolGeometry, x: Any, indices: Any, out: Any, *, threads: int = 1) -> None:
    """Maximum of each window, and where it was first met."""
    _forward("extreme", geometry, x, indices, out)


def min_forward(geometry: PoolGeometry, x: Any, indices: Any, out: Any, *, threads: int = 1) -> None:
    """Minimum of each window, and where it was first met."""
    _forward("extreme", geometry, x, indices, out, -1)


def avg_forward(geometry: PoolGeometry, x: Any, out: Any, *, threads: int = 1) -> None:
    """Sum of each window over its divisor."""
    _forward("average", geometry, x, None, out)


def lp_forward(geometry: PoolGeometry, x: Any, out: Any, *, threads: int = 1) -> None:
    """(sum of x^p)^(1/p) of each window, p = ``geometry.norm_type``."""
    _forward("norm", geometry, x, None, out)


def max_grad_input(geometry: PoolGeometry, dy: Any, indices: Any, out: Any, *, threads: int = 1) -> None:
    """Each element of dy is added where its window's index points."""
    _gradient(partial(_gradient_plan, "pick", geometry, out.dtype.name), out, dy=dy, indices=indices)


min_grad_input = max_grad_input


def avg_grad_input(geometry: PoolGeometry, dy: Any, out: Any, *, threads: int = 1) -> None:
    """Each element of ``out`` is the sum of dy over divisor of the windows that hold it."""
    _gradient(partial(_gradient_plan, "average", geometry, out.dtype.name), out, dy=dy)


def lp_grad_input(geometry: PoolGeometry, x: Any, y: Any, dy: Any, out: Any, *, threads: int = 1) -> None:
    """x^(p-1) times the sum of dy * y^(1-p) over the windows that hold the element; windows with y = 0 give 0."""
    _gradient(partial(_gradient_plan, "norm", geometry, out.dtype.name), out, x=x, y=y, dy=dy)


def unpool_forward(geometry: PoolGeometry, x: Any, indices: Any, out: Any, *, threads: int = 1) -> None:
    """Zeros, and each element of x where its index points; of equal indices the last one stays."""
    plan_of = partial(_unpool_plan, geometry, out.dtype.name)
    if out.size and not _launched(plan_of, x=x, indices=indices, y=out):
        with writable(out) as y:
            unpool_forward(geometry, readable(x), readable(indices), y)


def unpool_grad_input(geometry: PoolGeometry, dy: Any, indices: Any, out: Any, *, threads: int = 1) -> None:
    """Each element of ``out`` is dy where its index points, 0 where that is outside the plane."""
    _gradient(partial(_unpool_gradient_plan, geometry, out.dtype.name), out, dy=dy, indices=indices)
