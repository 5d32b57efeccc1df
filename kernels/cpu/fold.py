"""Folding the gradient of a padded input back onto the input: ``dx[i] = sum of dpadded[p] where p shows i``.

Where padding reflects, repeats or wraps, several padded positions show one input position. They are added in the
order of p, plane by plane, so the result does not depend on threads.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .arrays import KIND, address, layout
from .compile import jit
from .epilogue import activation_id, finish
from .gemm import zero
from .simd import load, pointer, shift, store, unpack
from .threads import run_shares


class Layout(NamedTuple):
    """What the compiled function is told: addresses, strides and sizes in elements."""

    padded: int
    planes: int
    channels: int
    first: int  # image
    depth: int
    height: int
    width: int
    padded_depth: int
    padded_height: int
    padded_width: int
    source_d: int
    source_h: int
    source_w: int
    out: int
    out_n: int
    out_c: int
    out_d: int
    out_h: int
    out_w: int
    residual: int  # 0: none
    residual_n: int
    residual_c: int
    residual_d: int
    residual_h: int
    residual_w: int
    bias: int  # 0: none
    activation: int
    rows: int
    row_stride: int


_FIELDS = len(Layout._fields)


@jit
def fold_range(t, threads, table, chunk, kind):
    """Share ``t`` of the (image, channel) planes."""
    g = Layout(*unpack(table, _FIELDS))
    source_d, source_h, source_w = pointer(g.source_d, t), pointer(g.source_h, t), pointer(g.source_w, t)
    row = shift(pointer(g.rows, kind), t * g.row_stride)
    for plane in range(g.planes * t // threads, g.planes * (t + 1) // threads):
        n, c = g.first + plane // g.channels, plane % g.channels
        mine = shift(pointer(g.padded, kind), plane * g.padded_depth * g.padded_height * g.padded_width)
        for d in range(g.depth):
            for h in range(g.height):
                zero(row, g.width)
                for i in range(g.padded_depth):
                    for j in range(g.padded_height):
                        if load(source_d, i) == d and load(source_h, j) == h:
                            for k in range(g.padded_width):
                                w = load(source_w, k)
                                v = load(mine, (i * g.padded_height + j) * g.padded_width + k)
                                store(row, w, load(row, w) + v)
                y = n * g.out_n + c * g.out_c + d * g.out_d + h * g.out_h
                z = n * g.residual_n + c * g.residual_c + d * g.residual_d + h * g.residual_h
                out, residual = shift(pointer(g.out, kind), y), shift(pointer(g.residual, kind), z)
                b = shift(pointer(g.bias, kind), c)
                finish(row, g.width, g.bias, b, 0, g.residual, residual, g.residual_w, g.activation, out, g.out_w)


def fold(
    padded: np.ndarray, sources: tuple[np.ndarray, ...], first: int, rows: np.ndarray, bias: np.ndarray | None,
    residual: np.ndarray | None, out: np.ndarray, activation: str | None, threads: int,
) -> None:  # fmt: skip
    """Fold ``padded`` (n, C, padded sizes), contiguous, into images ``first`` to ``first + n`` of ``out``.

    ``rows``: scratch of ``threads`` rows of the input's width.
    """
    fields = (
        address(padded), padded.shape[0] * padded.shape[1], padded.shape[1], first, *out.shape[2:], *padded.shape[2:],
        *(address(s) for s in sources), *layout(out), *((0,) * 6 if residual is None else layout(residual)),
        0 if bias is None else address(bias), activation_id(activation), address(rows), rows.shape[1],
    )  # fmt: skip
    table = np.array(Layout._make(fields), np.int64)
    run_shares(fold_range, threads, table, table, KIND[out.dtype])
