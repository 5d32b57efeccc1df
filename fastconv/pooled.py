"""Poolings that have run before: all that follows from shapes and parameters, kept, so that a call costs microseconds.

A small pooling takes the kernel less time than validating its arguments, so a call that differs from an earlier one
only in the elements of its arrays looks up what was decided then and writes three addresses into a kernel's table.
Only contiguous, aligned float32 and float64 arrays go this way; the result is the same as by the long way of
:func:`fastconv.pooling.pool`, which also handles everything else.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .kernels.geometry import Sizes
from .problem import PoolProblem

KEPT = 1024

KERNELS = {"max_pool": "largest", "min_pool": "smallest", "avg_pool": "mean", "lp_pool": "norm"}


class Ready:
    """A pooling bound to its kernels. Returns (y, indices or None, problem), or None if the arrays are not plain."""

    __slots__ = ("address", "bound", "dtype", "indices", "nbytes", "problem", "run", "shape")

    def __init__(
        self, pool: Any, bound: Any, problem: PoolProblem, dtype: Any, shape: Sizes, nbytes: Any, indices: Any
    ):
        self.run, self.address, self.bound, self.problem = pool.run_bound, pool.address, bound, problem
        self.dtype, self.shape, self.nbytes, self.indices = dtype, shape, nbytes, indices

    def __call__(self, x: np.ndarray, out: Any) -> tuple[Any, Any, PoolProblem] | None:
        if not x.flags.c_contiguous:
            return None
        address = self.address
        start = address(x)
        if out is None:
            y = np.empty(self.shape, self.dtype)
            target = address(y)
        else:
            if type(out) is not np.ndarray or out.dtype is not self.dtype or out.shape != self.shape:
                return None
            y, flags = out, out.flags
            target = address(y)
            apart = target + self.nbytes[1] <= start or start + self.nbytes[0] <= target
            if not (apart and flags.c_contiguous and flags.writeable):
                return None
        if (start | target) % self.dtype.itemsize:
            return None
        if self.indices is None:
            self.run(self.bound, start, target)
            return y, None, self.problem
        positions = np.empty(self.shape, self.indices)
        self.run(self.bound, start, target, address(positions))
        return y, positions, self.problem


class ReadyCalls(dict[Any, Any]):
    """The poolings and convolutions kept; the oldest goes when there are too many."""

    def __setitem__(self, key: Any, ready: Any) -> None:
        for oldest in list(self)[: len(self) - KEPT + 1] if len(self) >= KEPT else ():
            self.pop(oldest, None)  # another thread may have been quicker
        super().__setitem__(key, ready)


ready_calls = ReadyCalls()


def ready_pool(
    choice: Any, problem: PoolProblem, x: np.ndarray, shape: Sizes, indices: Any, threads: int
) -> Ready | None:
    """What ``choice`` runs for x and an output of this shape (both as the user sees them), or None if not this way."""
    norm = problem.geometry.norm_type
    if choice.row.algorithm != "direct" or x.dtype.char not in "fd" or not x.dtype.isnative or not x.size:
        return None
    if problem.op not in KERNELS or (problem.op == "lp_pool" and norm not in (1, 2)):
        return None
    from .kernels.cpu import pool

    wanted = None if indices is None else np.dtype(indices)
    items = int(np.prod(shape))
    nbytes = (x.nbytes, items * x.itemsize)
    index_bytes = 0 if wanted is None else wanted.itemsize
    which = "sum" if problem.op == "lp_pool" and norm == 1 else KERNELS[problem.op]
    last = problem.layout == "channels_last" and problem.geometry.channels > 1
    threads = pool.useful_threads(threads, sum(nbytes) + index_bytes * items)
    bound = pool.bind_forward(which, problem.geometry, last, x.dtype, index_bytes, threads)
    return Ready(pool, bound, problem, x.dtype, shape, nbytes, wanted)
