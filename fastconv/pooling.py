"""From a user's arrays to a pooling kernel and back, as :mod:`fastconv.call` does it for convolutions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from .arguments import mismatch
from .arrays import device_of, dtype_name, empty, float_dtype, intake, place, same_kind
from .autograd import on_device
from .call import Layout, Output, build, call_key
from .dispatch import execute, select
from .kernels.geometry import PoolGeometry
from .pooled import Ready, ready_calls, ready_pool
from .problem import PoolProblem
from .settings import default_threads


def pool(
    op: str, rank: int, builder: Callable[..., PoolProblem], kind: str, x: Any, *arguments: Any,
    layout: str | None = None, indices: Any = None, out: Any = None, **parameters: Any,
) -> tuple[Any, Any, PoolProblem]:  # fmt: skip
    """Any pooling. ``indices`` is the dtype of the indices wanted, or None. Returns (y, indices or None, problem)."""
    threads = default_threads()
    key = None
    if threads and type(x) is np.ndarray:
        key = call_key(op, threads, builder, x, (layout, indices, *arguments), parameters)
        ready = ready_calls.get(key)
        if ready is not None:
            result = ready(x, out)
            if result is not None:
                return result
            key = None
    given, x = x, intake(op, "x", x)
    float_dtype(op, "x", x.dtype)
    lay = Layout(op, rank, layout)
    view = lay.first("x", x)
    problem = build(
        builder,
        op, rank, kind, view.shape, *arguments, dtype=dtype_name(x.dtype), layout=lay.name, device=device_of(x),
        indices=indices is not None, **parameters,
    )  # fmt: skip
    shape = problem.geometry.output_shape
    choice = select(problem, op=op)
    output = Output(lay, out, x, shape, x)
    if kind not in ("max_pool", "min_pool"):
        execute(choice, problem, view, output.target)
        positions = None
    else:
        positions = None if indices is None else empty(x, shape, lay.name, indices)
        execute(choice, problem, view, positions, output.target)
    if key is not None and x is given:  # not a copy in another byte order
        ready = ready_pool(choice, problem, x, lay.seen(shape), indices, threads)
        if ready is not None:
            ready_calls[key] = ready
    return output.result(), None if positions is None else lay.back(positions), problem


def kept_pool(
    op: str, builder: Callable[..., PoolProblem], x: Any, *, layout: str | None, indices: Any, **parameters: Any
) -> Ready | None:
    """What :func:`pool` kept of such a call, for callers that know by other signs which calls are alike; or None."""
    key = call_key(op, default_threads(), builder, x, (layout, indices), parameters)
    ready: Ready | None = ready_calls.get(key)
    return ready


def pool_gradient(problem: PoolProblem, *arrays: Any, like: Any, batched: bool) -> Any:
    """Input gradient of a pooling from the arrays its kernel takes, in the user's layout; ``like`` gives the dtype."""
    backward = replace(problem, direction="grad_input")
    g = backward.geometry
    lay = Layout(problem.op, g.rank, problem.layout)
    lay.batched = batched
    views = [lay.view("dy", a) for a in arrays]
    choice = select(backward, op=problem.op)
    shape = g.output_shape if problem.op == "max_unpool" else g.input_shape
    output = Output(lay, None, like, shape)
    execute(choice, backward, *views, output.target)
    return output.result()


def picked_gradient(
    op: str, rank: int, builder: Callable[..., PoolProblem], kind: str, x: Any, dy: Any, *arguments: Any,
    layout: str | None = None, **parameters: Any,
) -> Any:  # fmt: skip
    """Gradient of a maximum or minimum pooling of x: finds the positions again."""
    dy = _pool_dy(op, "x", x, dy)
    _, indices, problem = pool(op, rank, builder, kind, x, *arguments, indices="int64", layout=layout, **parameters)
    lay = Layout(op, rank, layout)
    lay.first("x", x)
    lay.gradient(dy, problem.geometry.output_shape)
    return pool_gradient(problem, dy, indices, like=dy, batched=lay.batched)


def lp_gradient(
    op: str, rank: int, builder: Callable[..., PoolProblem], x: Any, dy: Any, *arguments: Any,
    layout: str | None = None, **parameters: Any,
) -> Any:  # fmt: skip
    """Gradient of an Lp pooling of x: computes the norms again."""
    dy = _pool_dy(op, "x", x, dy)
    y, _, problem = pool(op, rank, builder, "lp_pool", x, *arguments, layout=layout, **parameters)
    lay = Layout(op, rank, layout)
    lay.first("x", x)
    lay.gradient(dy, problem.geometry.output_shape)
    return pool_gradient(problem, intake(op, "x", x), y, dy, like=dy, batched=lay.batched)


def avg_gradient(
    op: str, rank: int, builder: Callable[..., PoolProblem], input_size: Any, dy: Any, *arguments: Any,
    layout: str | None = None, **parameters: Any,
) -> Any:  # fmt: skip
    """Gradient of an average pooling whose input had the shape ``input_size``."""
    dy = intake(op, "dy", dy)
    float_dtype(op, "dy", dy.dtype)
    lay = Layout(op, rank, layout)
    shape = lay.logical("input_size", input_size)
    problem = build(
        builder,
        op,
        rank,
        "avg_pool",
        shape,
        *arguments,
        dtype=dtype_name(dy.dtype),
        layout=lay.name,
        device=device_of(dy),
        **parameters,
    )
    lay.gradient(dy, problem.geometry.output_shape)
    return pool_gradient(problem, dy, like=dy, batched=lay.batched)


def unpool_gradient(op: str, rank: int, indices: Any, dy: Any, *, layout: str | None = None) -> Any:
    """Gradient of an unpooling: dy at the positions in ``indices``."""
    dy, indices = intake(op, "dy", dy), _positions(op, indices, "dy", dy)
    float_dtype(op, "dy", dy.dtype)
    lay = Layout(op, rank, layout)
    size, out = lay.first("dy", dy).shape, lay.view("indices", indices).shape
    if size[:2] != out[:2]:
        raise ValueError(
            f"{op}: indices of shape {indices.shape} and dy of shape {dy.shape} need the same batch and channels"
        )
    geometry = PoolGeometry(size[0], size[1], size[2:], out[2:])
    _in_plane(op, indices, geometry)
    problem = PoolProblem("max_unpool", geometry, "grad_input", dtype_name(dy.dtype), lay.name, device_of(dy), True)
    return pool_gradient(problem, dy, indices, like=dy, batched=lay.batched)


def _pool_dy(op: str, name: str, x: Any, dy: Any) -> Any:
    dy = intake(op, "dy", dy)
    same_kind(op, (name, intake(op, name, x)), ("dy", dy))
    return dy


def _positions(op: str, indices: Any, name: str, x: Any) -> Any:
    indices = intake(op, "indices", indices)
    if dtype_name(indices.dtype) not in ("int64", "int32"):
        raise TypeError(
            f"{op}: indices must be int64 or int32 (as return_indices=True gives them), got {indices.dtype}"
        )
    if place(x) != place(indices):
        raise TypeError(f"{op}: {name} is on {place(x)} and indices on {place(indices)}; move one of them")
    return indices


def _in_plane(op: str, indices: Any, geometry: PoolGeometry) -> None:
    plane = math.prod(geometry.input_size)
    if not indices.size:
        return
    with on_device(indices):
        least, most = int(indices.min()), int(indices.max())
    if not (least >= -1 and most < plane):
        raise ValueError(
            f"{op}: indices must lie in [0, {plane}), the positions of a plane of {geometry.input_size} "
            f"(-1: nowhere); got {least} to {most}"
        )


def unpool(
    op: str,
    rank: int,
    builder: Callable[..., PoolProblem],
    x: Any,
    indices: Any,
    *arguments: Any,
    layout: str | None = None,
    **parameters: Any,
) -> tuple[Any, PoolProblem]:
    """Max unpooling: values of x to the positions that ``indices`` gives, zeros elsewhere."""
    x = intake(op, "x", x)
    float_dtype(op, "x", x.dtype)
    indices = _positions(op, indices, "x", x)
    lay = Layout(op, rank, layout)
    view = lay.first("x", x)
    positions = lay.view("indices", indices)
    if positions.shape != view.shape:
        mismatch(op, "indices", indices.shape, x.shape, " (that of x)")
    problem = build(
        builder,
        op,
        rank,
        view.shape,
        *arguments,
        dtype=dtype_name(x.dtype),
        layout=lay.name,
        device=device_of(x),
        **parameters,
    )
    _in_plane(op, indices, problem.geometry)
    choice = select(problem, op=op)
    output = Output(lay, None, x, problem.geometry.input_shape)
    execute(choice, problem, view, positions, output.target)
    return output.result(), problem
