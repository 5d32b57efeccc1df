"""One CPU for each thread while many kernels run one after the other.

Left alone, the scheduler may wake a worker on the CPU that its caller occupies, and then two threads take turns on one
core until it moves one of them, which takes longer than a layer of a network. On two virtual cores ResNet-18 took 31 ms
with threads left alone and 22 with each on a core of its own; MobileNetV2 18.6 and 11.5.

Threads are only placed where they are as many as the process has CPUs: then no placement is worse than another's. The
workers stay where they are put, the calling thread is free again at the end.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
from numba import types

from .arrays import address
from .compile import jit
from .simd import pointer, store
from .threads import launch, threading_layer

_gettid = types.ExternalFunction("gettid", types.int32())
CHOSEN = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")


@jit
def note_thread(t, threads, table, chunk, kind):
    """The system's number of the thread that runs share ``t``, into ``table[t]``."""
    store(pointer(table, 0), t, np.int64(_gettid()))


@cache
def _placeable() -> bool:
    """Whether the system lets threads be placed, and the user has not done it."""
    if not hasattr(os, "sched_setaffinity") or any(name in os.environ for name in CHOSEN):
        return False
    return hasattr(ctypes.CDLL(None), "gettid") and threading_layer() == "omp"  # whose workers belong to their caller


class _Placed(threading.local):
    """The CPUs that the calling thread's workers were placed for."""

    cpus: tuple[int, ...] = ()


_placed = _Placed()


def _place_workers(cpus: tuple[int, ...]) -> bool:
    """Put every worker of the calling thread on a CPU of its own, the first of ``cpus`` left over."""
    numbers = np.zeros(len(cpus), np.int64)
    launch(note_thread, len(cpus), address(numbers), 0, np.float32(0))
    workers = [int(n) for n in numbers if n != threading.get_native_id()]
    if len(set(workers)) != len(cpus) - 1 or 0 in workers:
        return False
    for worker, cpu in zip(workers, cpus[1:], strict=True):
        os.sched_setaffinity(worker, {cpu})
    return True


@contextmanager
def spread(threads: int) -> Iterator[None]:
    """Inside the block the calling thread and its workers run on a CPU each, if they are as many as there are."""
    if threads < 2 or not _placeable():
        yield
        return
    before = os.sched_getaffinity(0)
    cpus = tuple(sorted(before))
    if len(cpus) != threads or (_placed.cpus != cpus and not _place_workers(cpus)):
        yield
        return
    _placed.cpus = cpus
    os.sched_setaffinity(0, {cpus[0]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
