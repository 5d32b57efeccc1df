"""A dense layer on few rows: ``out[m, n] = activation(sum over k  x[m, k] * w[n, k] + bias[n])``.

Shapes: x (M, K), w (N, K) as it lies, bias (N,), out (M, N). For one image it is a matrix times a vector, 2 operations
for 4 bytes of weights, each read once: a bandwidth problem, so nothing is packed. Loops, outermost first:

    share: a range of n                       threads read disjoint rows of w
        4 rows of w                           four streams, which the prefetcher follows
            m                                 the rows are in L2 when the second m comes
                k, a vector at a time         x is loaded once for the four rows

NumPy's product (OpenBLAS) is as fast on its own, but its threads go on spinning for milliseconds and take the cores of
the next kernels. For many rows a pointwise convolution is faster: it reuses w from registers.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from .arrays import KIND, address
from .bound import Bound
from .compile import jit
from .epilogue import activation_id, finish
from .simd import pointer, shift, store, unpack, vector_lanes
from .vector import add_product, load_within, number, splat, total
from .vector import load as load_vector

ROWS = 4
THREAD_BYTES = 1 << 17
"""Bytes of weights that pay for another thread."""


class Layout(NamedTuple):
    """What the compiled function is told: addresses, and sizes in elements."""

    x: int
    w: int
    bias: int  # 0: none
    out: int
    batch: int
    inputs: int
    outputs: int
    x_row: int
    w_row: int
    out_row: int
    activation: int


_FIELDS = len(Layout._fields)


@jit
def forward_range(t, threads, table, chunk, kind):
    """Share ``t`` of the outputs, in groups of ROWS."""
    g = Layout(*unpack(table, _FIELDS))
    lanes = vector_lanes(kind)
    x, w, out, bias = pointer(g.x, kind), pointer(g.w, kind), pointer(g.out, kind), pointer(g.bias, kind)
    groups = -(-g.outputs // ROWS)
    first, last = groups * t // threads * ROWS, min(groups * (t + 1) // threads * ROWS, g.outputs)
    whole = g.inputs // lanes * lanes
    for n in range(first, last, ROWS):
        rows = min(ROWS, last - n)
        # the last group repeats its last row
        a, b = shift(w, n * g.w_row), shift(w, (n + min(1, rows - 1)) * g.w_row)
        c, d = shift(w, (n + min(2, rows - 1)) * g.w_row), shift(w, (n + rows - 1) * g.w_row)
        for m in range(g.batch):
            u = shift(x, m * g.x_row)
            zero = splat(x, number(x, 0.0))
            p, q, r, s = zero, zero, zero, zero
            for k in range(0, whole, lanes):
                v = load_vector(u, k)
                p = add_product(load_vector(a, k), v, p)
                q = add_product(load_vector(b, k), v, q)
                r = add_product(load_vector(c, k), v, r)
                s = add_product(load_vector(d, k), v, s)
            if whole < g.inputs:
                none = number(x, 0.0)
                v = load_within(u, 0, whole, g.inputs, none)
                p = add_product(load_within(a, 0, whole, g.inputs, none), v, p)
                q = add_product(load_within(b, 0, whole, g.inputs, none), v, q)
                r = add_product(load_within(c, 0, whole, g.inputs, none), v, r)
                s = add_product(load_within(d, 0, whole, g.inputs, none), v, s)
            y = shift(out, m * g.out_row + n)
            store(y, rows - 1, total(s))
            if rows > 1:
                store(y, 0, total(p))
            if rows > 2:
                store(y, 1, total(q))
            if rows > 3:
                store(y, 2, total(r))
            if g.bias or g.activation:
                finish(y, rows, g.bias, shift(bias, n), 1, 0, y, 1, g.activation, y, 1)


@lru_cache(maxsize=256)
def _bind(
    dtype: np.dtype[Any], sizes: tuple[int, int, int], rows: tuple[int, int, int], activation: str | None, threads: int
) -> Bound:
    fields = (0, 0, 0, 0, *sizes, *rows, activation_id(activation))
    _, inputs, outputs = sizes
    threads = max(1, min(threads, inputs * outputs * dtype.itemsize // THREAD_BYTES, -(-outputs // ROWS)))
    return Bound(forward_range, KIND[dtype], threads, fields, (0, 1, 2, 3))


def forward(
    x: np.ndarray, w: np.ndarray, bias: np.ndarray | None, out: np.ndarray, *, activation: str | None = None,
    threads: int = 1,
) -> None:  # fmt: skip
    """Write ``out`` (M, N). All arrays are float32, or all float64; the elements of a row lie side by side."""
    sizes, size = (x.shape[0], x.shape[1], w.shape[0]), out.itemsize
    rows = (x.strides[0] // size, w.strides[0] // size, out.strides[0] // size)
    bound = _bind(out.dtype, sizes, rows, activation, threads)
    bound(address(x), address(w), 0 if bias is None else address(bias), address(out))
