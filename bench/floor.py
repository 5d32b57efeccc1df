"""The least time a task can take, measured like a library: alone in a process, in turn with the others.

    memory-bound tasks (poolings, depthwise)    one pass over the task's own bytes: input read, output written
    all other convolutions                      multiply-adds alone, as many as the direct algorithm's

Each at the task's own size, so that what fits the caches is measured in the caches, and on as many threads as the
libraries get. A floor is no library: it computes nothing, is not validated and takes no part in ratios.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from fastconv.problem import ConvProblem

from . import machine
from .tasks import Task, memory_bound

BLOCK = 2048


def least(task: Task, threads: int) -> tuple[Callable[[], Any], float, str]:
    """A call, the share of the task's work that it does, and what it is."""
    problem = task.problem
    if memory_bound(task.case):
        if isinstance(problem, ConvProblem):
            g = problem.geometry
            shapes: tuple[tuple[int, ...], ...] = (g.input_shape, g.output_shape)
        else:
            shapes = (problem.geometry.input_shape, problem.geometry.output_shape)
        x, y = (np.zeros(math.prod(shape), np.float32) for shape in shapes)
        x[:] = 1
        rest = np.zeros(BLOCK * threads, np.float32)
        return lambda: _pass()(x, y, rest, threads), 1.0, "copy"
    loop, flops = machine.multiply_adds(calls=20_000)  # 4 ms: handing it to the threads takes 0.04 to 0.12
    calls = [loop] * threads
    pool = machine.workers(threads)

    def call() -> None:
        list(pool.map(lambda work: work(0), calls))

    return call, flops * threads / problem.flops, "multiply-adds"


@cache
def _pass() -> Callable[..., None]:
    """Copies while both arrays last, then reads the rest of x (into a block that stays in L1), or fills the rest of y.

    The copy is the C library's, one call a thread: above some size it stores past the caches. A plain loop, which also
    reads what it is about to overwrite, was slower than a depthwise convolution of PyTorch's (58 MB: 40 GB/s).
    """
    import numba

    copy = ctypes.CDLL(None).memcpy
    copy.argtypes, copy.restype = [ctypes.c_size_t] * 3, ctypes.c_size_t

    @numba.njit(parallel=True, fastmath=True)
    def run(x, y, rest, threads):  # type: ignore[no-untyped-def]
        n, m = x.size, y.size
        both = min(n, m)
        for t in numba.prange(threads):
            first, last = both * t // threads, both * (t + 1) // threads
            copy(y.ctypes.data + 4 * first, x.ctypes.data + 4 * first, 4 * (last - first))
            for i in range(both + (m - both) * t // threads, both + (m - both) * (t + 1) // threads):
                y[i] = 0
            last = both + (n - both) * (t + 1) // threads
            for i in range(both + (n - both) * t // threads, last, BLOCK):
                copy(rest.ctypes.data + 4 * BLOCK * t, x.ctypes.data + 4 * i, 4 * min(BLOCK, last - i))

    compiled: Callable[..., None] = run
    return compiled
