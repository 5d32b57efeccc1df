"""Folding the gradient of a padded input back onto the input: ``dx[i] = sum of dpadded[p] where p shows i``.

Where padding reflects, repeats or wraps, several padded positions show one input position. They are added in the
order of p, plane by plane, so the result does not depend on threads.
"""

from __future__ import annotations

import numpy as np
from numba import carray

from .arrays import KIND, address, layout
from .compile import jit
from .epilogue import activation_id, finish
from .gemm import zero
from .simd import load, pointer, shift, store, vector_lanes
from .threads import run_shares


@jit
def fold_range(t, threads, table, chunk, kind):
    padded, planes, channels, first = pointer(table[0], kind), table[1], table[2], table[3]
    depth, height, width, dp, hp, wp = table[4], table[5], table[6], table[7], table[8], table[9]
    source_d, source_h, source_w = pointer(table[10], table), pointer(table[11], table), pointer(table[12], table)
    out, residual, bias, activation = pointer(table[13], kind), pointer(table[19], kind), table[25], table[26]
    row = shift(pointer(table[27], kind), t * table[28])
    for plane in range(planes * t // threads, planes * (t + 1) // threads):
        n, c = first + plane // channels, plane % channels
        mine = shift(padded, plane * dp * hp * wp)
        for d in range(depth):
            for h in range(height):
                zero(row, width)
                for i in range(dp):
                    for j in range(hp):
                        if load(source_d, i) == d and load(source_h, j) == h:
                            for k in range(wp):
                                w = load(source_w, k)
                                store(row, w, load(row, w) + load(mine, (i * hp + j) * wp + k))
                to = shift(out, n * table[14] + c * table[15] + d * table[16] + h * table[17])
                other = shift(residual, n * table[20] + c * table[21] + d * table[22] + h * table[23])
                b = shift(pointer(bias, kind), c)
                finish(row, width, bias, b, 0, table[19], other, table[24], activation, to, table[18])


def fold(
    padded: np.ndarray, sources: tuple[np.ndarray, ...], first: int, rows: np.ndarray, bias: np.ndarray | None,
    residual: np.ndarray | None, out: np.ndarray, activation: str | None, threads: int,
) -> None:  # fmt: skip
    """Fold ``padded`` (n, C, padded sizes), contiguous, into images ``first`` to ``first + n`` of ``out`` (N, C, D, H, W).

    ``rows``: scratch of ``threads`` rows of the input's width.
    """
    table = np.array(
        (
            address(padded), padded.shape[0] * padded.shape[1], padded.shape[1], first, *out.shape[2:],
            *padded.shape[2:], *(address(s) for s in sources), *layout(out),
            *((0,) * 6 if residual is None else layout(residual)), 0 if bias is None else address(bias),
            activation_id(activation), address(rows), rows.shape[1],
        ),
        np.int64,
    )  # fmt: skip
    run_shares(fold_range, threads, table, KIND[out.dtype])
