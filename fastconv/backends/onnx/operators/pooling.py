"""Poolings on fastconv's functions. ONNX's indices count through the whole array, fastconv's within a channel."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np

from .... import functional
from ....arrays import dtype_name
from ....dispatch import select
from ....problem import pool_problem
from ....settings import get_num_threads
from ....targets import resolve
from ..graph import Array
from .task import Call, Replay, Run, Sizes, Spec, Task, operator
from .windows import Window, spatial_rank, window

KINDS = {"MaxPool": "max_pool", "AveragePool": "avg_pool", "LpPool": "lp_pool"}
WHOLE = {"GlobalMaxPool": "MaxPool", "GlobalAveragePool": "AveragePool", "GlobalLpPool": "LpPool"}

WIDER = np.dtype(np.float16)

RATE, TURNED_RATE = 3e10, 3e9
"""Bytes a second of a pooling, and of one whose input and output lie in unlike orders, which copies."""


def _pool(call: Call, kind: str, used: Window, options: dict[str, Any]) -> Task:
    x, rank, name = call.spec(), used.rank, KINDS[kind]
    if _narrow(kind, x):
        x = Spec(x.shape, WIDER)
    elif not call.floating(0):
        raise ValueError(f"{call.node}: x must be of a floating-point dtype, got {x.dtype}")
    sizes: dict[str, Any] = {"stride": used.stride, "padding": used.padding, "dilation": used.dilation, **options}
    if kind == "LpPool":
        sizes["norm_type"] = float(call.attribute("p", 2))
    op = f"{name}{rank}d"
    problem = pool_problem(op, rank, name, x.shape, used.kernel, dtype=dtype_name(x.dtype), **sizes)
    made = Spec(problem.geometry.output_shape, call.spec().dtype)
    choice = select(problem, op=op)
    kernel = partial(resolve(choice.row.target), problem.geometry, threads=get_num_threads())
    picks = (None,) if kind == "MaxPool" else ()  # no indices
    # ONNX's norm is of magnitudes; fastconv's, as PyTorch's, of the elements, which differ where p is odd
    of_magnitudes = kind == "LpPool" and sizes["norm_type"] % 2 == 1

    def pool(x: Array, out: Array) -> None:
        kernel(np.abs(x) if of_magnitudes else x, *picks, out)

    run = _widened(pool) if _narrow(kind, call.spec()) else pool

    def record(workspace: Array, *arrays: Array) -> list[Any] | None:
        from ....kernels.cpu import sequence

        return sequence.record(run, *arrays)

    nbytes = made.nbytes + x.nbytes
    return Task(
        (made,), None, (0,), orders="own", prepare=lambda orders: run,
        seconds=lambda orders: nbytes / (RATE if orders.given == orders.made else TURNED_RATE),
        note=lambda orders: f"{name} {choice.algorithm}", replay=lambda orders: Replay(0, record),
    )  # fmt: skip


def _narrow(kind: str, x: Spec) -> bool:
    """Whether elements are bytes, which no kernel here takes: they are pooled as float16, which holds all of them."""
    return kind == "MaxPool" and x.dtype in (np.int8, np.uint8)


def _widened(run: Run) -> Run:
    """``run(x, out, *others)`` of float16 arrays as one of bytes."""

    def widened(x: Array, out: Array, *others: Array) -> None:
        wide = np.empty_like(out, WIDER)
        run(x.astype(WIDER), wide, *others)
        np.copyto(out, wide, casting="unsafe")

    return widened


@operator("MaxPool", "AveragePool", "LpPool")
def pool(call: Call) -> Task | None:
    kind, used = call.node.op, window(call)
    ceil = bool(call.attribute("ceil_mode", 0)) and call.attribute("auto_pad", "NOTSET") in ("NOTSET", "")
    options: dict[str, Any] = {"ceil_mode": ceil}
    if kind == "AveragePool":
        options["count_include_pad"] = bool(call.attribute("count_include_pad", 0))
    if kind == "MaxPool" and len(call.node.outputs) > 1 and call.node.outputs[1]:
        return _with_indices(call, used, _pool(call, kind, used, options).outputs[0].shape, options)
    return _pool(call, kind, used, options)


def _with_indices(call: Call, used: Window, made: Sizes, options: dict[str, Any]) -> Task:
    spec, function = call.spec(), functional.max_pool[used.rank - 1]
    planes = np.arange(math.prod(made[:2]), dtype=np.int64).reshape(*made[:2], *(1,) * used.rank)
    planes *= math.prod(spec.shape[2:])
    columns_first = bool(call.attribute("storage_order", 0))

    def run(x: Array, out: Array, indices: Array) -> None:
        _, positions = function(
            x, used.kernel, stride=used.stride, padding=used.padding, dilation=used.dilation, return_indices=True,
            out=out, **options,
        )  # fmt: skip
        if columns_first:
            along = np.unravel_index(positions, spec.shape[2:])
            positions = np.ravel_multi_index(along, spec.shape[2:], order="F")
        np.add(positions, planes, out=indices)

    outputs = (Spec(made, spec.dtype), Spec(made, np.dtype(np.int64)))
    return Task(
        outputs, _widened(run) if _narrow("MaxPool", spec) else run, (0,), note=lambda orders: "pooling with indices"
    )


@operator("GlobalMaxPool", "GlobalAveragePool", "GlobalLpPool")
def whole_pool(call: Call) -> Task | None:
    rank, shape = spatial_rank(call), call.spec().shape
    used = Window(shape[2:], (1,) * rank, (1,) * rank, ((0, 0),) * rank)
    return _pool(call, WHOLE[call.node.op], used, {})


@operator("MaxUnpool")
def unpool(call: Call) -> Task | None:
    used, spec = window(call), call.spec()
    small = tuple(
        (n - 1) * s - sum(p) + k
        for n, s, p, k in zip(spec.shape[2:], used.stride, used.padding, used.kernel, strict=True)
    )
    wanted = call.integers(2, "output_shape")
    if call.unknown(2):
        return None
    made = (*spec.shape[:2], *small) if wanted is None else tuple(wanted)
    if len(made) != len(spec.shape) or any(m < n for m, n in zip(made, (*spec.shape[:2], *small), strict=True)):
        raise ValueError(f"{call.node}: output_shape {made} is smaller than the pooled array was, {small}")
    function = functional.max_unpool[used.rank - 1]
    planes = np.arange(math.prod(spec.shape[:2]), dtype=np.int64).reshape(*spec.shape[:2], *(1,) * used.rank)
    planes *= math.prod(small)
    part = tuple(slice(0, n) for n in (*spec.shape[:2], *small))

    def run(x: Array, indices: Array, out: Array) -> None:
        y = function(x, indices - planes, used.kernel, stride=used.stride, padding=used.padding, output_size=small)
        out[...] = 0
        out[part] = y

    return Task((Spec(made, spec.dtype),), run, (0, 1), note=lambda orders: "unpooling")
