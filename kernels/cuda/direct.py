"""Launches ``direct.cu``: the general convolution, able wherever memory holds the arrays.

The equations and the thread mapping are in the ``.cu`` file; here are the tile's sizes again (a test holds them to
those), the grids, and the choice of an instance by element type and width of an offset.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from ..geometry import ConvGeometry
from .launch import ELEMENTS, Strides, contiguous, conv_struct, grid, index_type, pointers, readable, whole, writable
from .module import AMPERE, EVERY, Grid, Instance, driver

THREADS, PIXELS, CHANNELS, CHUNK = 128, 2, 8, 64
BLOCK = (THREADS, 1, 1)

FULL_DEVICE = 1024
"""Blocks that keep a large GPU busy: a weight gradient with fewer cuts its positions into splits. A constant, not the
device's own number, so that every GPU adds in the same order."""
LEAST_SPLIT = 1024  # positions: below it the second kernel costs more than the splits gain


class Plan(NamedTuple):
    """What follows from geometry, dtype and strides."""

    instance: Instance
    grid: Grid
    struct: Any
    shared: int
    itemsize: int
    splits: int
    finish: Instance
    finish_grid: Grid


def instance(symbol: str, dtype: str, index: str) -> Instance:
    archs = EVERY if index == "int" else AMPERE  # arrays of gigabytes come with large GPUs
    return Instance("direct", symbol, (("ELEMENT", ELEMENTS[dtype]), ("INDEX", index)), THREADS, archs)


def _every(*symbols: str) -> tuple[Instance, ...]:
    return tuple(instance(s, d, i) for s in symbols for d in ELEMENTS for i in ("int", "long long"))


def forward_instances() -> tuple[Instance, ...]:
    """Every instance that ``forward`` may launch."""
    return _every("direct_forward")


def grad_input_instances() -> tuple[Instance, ...]:
    """Every instance that ``grad_input`` may launch."""
    return _every("direct_grad_input")


def grad_weight_instances() -> tuple[Instance, ...]:
    """Every instance that ``grad_weight`` may launch."""
    return _every("direct_grad_weight", "direct_add_splits")


@lru_cache(maxsize=1024)
def _plan(
    symbol: str, g: ConvGeometry, dtype: np.dtype[Any], x: Strides, w: Strides, residual: Strides | None, y: Strides,
    activation: str | None,
) -> Plan | None:  # fmt: skip
    """x, w and y are strides of the geometry's input, weights and output, whichever of them is written. None where
    elements do not lie on multiples of their size."""
    size = dtype.itemsize
    if not whole(size, x, w, y, residual):
        return None
    arrays = [(g.input_shape, x, size), (g.weight_shape, w, size), (g.output_shape, y, size)]
    forward = symbol == "direct_forward"
    if residual is not None:
        arrays.append((g.output_shape if forward else g.input_shape, residual, size))
    splits = weight_splits(g)
    if symbol == "direct_grad_weight":
        blocks = splits * _weight_blocks(g)
        arrays.append(((splits * math.prod(g.weight_shape),), (1,), 1))
    else:
        pixels = g.batch * math.prod(g.output_size if forward else g.input_size)
        channels = (g.out_channels if forward else g.in_channels) // g.groups
        blocks = -(-pixels // (THREADS * PIXELS)) * g.groups * -(-channels // CHANNELS)
    kernel = instance(symbol, dtype.name, index_type(*arrays))
    return Plan(
        kernel,
        grid(blocks),
        conv_struct(g, size, x, w, y, residual, activation),
        CHUNK * CHANNELS * max(size, 4),
        size,
        splits,
        replace(kernel, symbol="direct_add_splits"),
        grid(-(-math.prod(g.weight_shape) // THREADS)),
    )


def _weight_blocks(g: ConvGeometry) -> int:
    """Blocks of a weight gradient that is not split."""
    columns = g.in_channels // g.groups * math.prod(g.kernel_size)
    return g.groups * -(-(g.out_channels // g.groups) // CHANNELS) * -(-columns // THREADS)


@lru_cache(maxsize=1024)
def weight_splits(g: ConvGeometry) -> int:
    """Into how many parts the weight gradient cuts its sums over positions."""
    positions = g.batch * math.prod(g.output_size)
    return max(1, min(FULL_DEVICE // _weight_blocks(g), positions // LEAST_SPLIT))


def grad_weight_workspace(g: ConvGeometry, itemsize: int, threads: int) -> int:
    """Bytes of workspace for ``grad_weight``: the sums of the splits."""
    splits = weight_splits(g)
    return splits * math.prod(g.weight_shape) * max(itemsize, 4) if splits > 1 else 0


def _correlate(
    symbol: str, geometry: ConvGeometry, given: Any, w: Any, bias: Any, residual: Any, out: Any, activation: str | None
) -> None:
    if not out.size:
        return
    x, y = (given, out) if symbol == "direct_forward" else (out, given)
    other = None if residual is None else residual.strides
    plan = _plan(symbol, geometry, out.dtype, x.strides, w.strides, other, y.strides, activation)
    addresses = None
    if plan is not None and (bias is None or bias.flags.c_contiguous):
        current = driver()
        addresses = pointers(current, plan.itemsize, given, w, bias, residual, out)
    if plan is None or addresses is None:
        copies = readable(given), readable(w), contiguous(bias), None if residual is None else readable(residual)
        with writable(out) as target:
            _correlate(symbol, geometry, *copies, target, activation)
        return
    current.function(plan.instance)(plan.grid, BLOCK, (plan.struct, *addresses), plan.shared)


def forward(
    geometry: ConvGeometry, x: Any, w: Any, bias: Any, residual: Any, out: Any, *, activation: str | None = None,
    packed: Any = None, workspace: Any = None, threads: int = 1,
) -> None:  # fmt: skip
    """``out = activation(conv(x, w) + bias + residual)``."""
    _correlate("direct_forward", geometry, x, w, bias, residual, out, activation)


def grad_input(
    geometry: ConvGeometry, dy: Any, w: Any, bias: Any, residual: Any, out: Any, *, activation: str | None = None,
    packed: Any = None, workspace: Any = None, threads: int = 1,
) -> None:  # fmt: skip
    """``out = activation(gradient of the input + bias + residual)``: also the transposed convolution."""
    _correlate("direct_grad_input", geometry, dy, w, bias, residual, out, activation)


def grad_weight(geometry: ConvGeometry, x: Any, dy: Any, out: Any, *, workspace: Any = None, threads: int = 1) -> None:
    """``out`` = gradient of the weights."""
    if not out.size:
        return
    plan = _plan("direct_grad_weight", geometry, out.dtype, x.strides, out.strides, None, dy.strides, None)
    addresses = None
    if plan is not None:
        current, partial = driver(), workspace if plan.splits > 1 else None
        addresses = pointers(current, plan.itemsize, x, dy, out, partial)
    if plan is None or addresses is None:
        with writable(out) as target:
            grad_weight(geometry, readable(x), readable(dy), target, workspace=workspace, threads=threads)
        return
    splits = np.int32(plan.splits)
    current.function(plan.instance)(plan.grid, BLOCK, (plan.struct, *addresses, splits), plan.shared)
    if plan.splits > 1:
        arguments = (plan.struct, addresses[3], addresses[2], splits)
        current.function(plan.finish)(plan.finish_grid, BLOCK, arguments, 0)
