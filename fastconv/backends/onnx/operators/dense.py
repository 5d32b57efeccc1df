"""Gemm and MatMul by constant matrices: dense layers. Few rows run on a kernel of their own, many as a convolution 1×1.

Products of two arrays that both vary are NumPy's, in :mod:`.arithmetic`.
"""

from __future__ import annotations

import math
from functools import cache, partial
from typing import Any

import numpy as np

from .... import plan
from ....settings import get_num_threads
from ..graph import Array
from .task import Call, Run, Spec, Task

FEW = 8
"""Rows up to which weights are best read as they lie; from there reusing them from registers pays for packing."""


def dense(call: Call, w: Array, bias: Array | None, made: tuple[int, ...]) -> Task:
    """activation(x · wᵀ + bias), w (N, K), for x of any number of rows (…, K)."""
    spec = call.spec()
    rows, (outputs, inputs) = math.prod(made[:-1]), w.shape
    activation = call.attribute("activation")
    kernel = rows <= FEW and spec.dtype.kind == "f" and spec.dtype.itemsize >= 4
    prepared = cache(partial(_few if kernel else _many, rows, w, bias, activation))  # packs when it first runs

    def flat(x: Array, out: Array) -> None:
        x = np.ascontiguousarray(x).reshape(rows, inputs)
        prepared()(x, out.reshape(rows, outputs))

    note = " + ".join(filter(None, ("dense" if kernel else "pointwise", activation)))
    return Task((Spec(made, spec.dtype),), flat, (0,), note=lambda orders: note, strided=False)


def _few(rows: int, w: Array, bias: Array | None, activation: str | None) -> Run:
    from ....kernels.cpu.dense import forward

    w, threads = np.ascontiguousarray(w), get_num_threads()
    return lambda x, out: forward(x, w, bias, out, activation=activation, threads=threads)


def _many(rows: int, w: Array, bias: Array | None, activation: str | None) -> Run:
    if not rows:
        return lambda x, out: None
    made = plan.plan_conv1d((1, rows, w.shape[1]), w[:, :, None], bias, activation=activation, layout="NWC")
    return lambda x, out: made.run(x.T[None], None, out.T[None])


def gemm_weights(call: Call) -> tuple[Array, Array | None] | None:
    """Weights (N, K) and bias (N,) of a Gemm, or None where they vary or the bias is another for each row."""
    w, c = call.constant(1), call.constant(2)
    if w is None or call.unknown(2) or w.size == 0 or call.attribute("transA", 0) or not call.floating(*call.present):
        return None
    alpha, beta = call.attribute("alpha", 1.0), call.attribute("beta", 1.0)
    w = w if call.attribute("transB", 0) else w.T
    if alpha != 1:
        w = w * w.dtype.type(alpha)
    if c is None or beta == 0:
        return w, None
    if c.ndim > 2 or (c.ndim == 2 and c.shape[0] != 1):
        return None
    row: Any = np.broadcast_to(c.reshape(-1), w.shape[:1])
    return w, np.ascontiguousarray(row if beta == 1 else row * c.dtype.type(beta))
