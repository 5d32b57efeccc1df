"""Running a kernel on several threads.

Every kernel is a serial function of a share of its work, ``kernel(t, threads, table, chunk, kind)``; :func:`launch`
runs all shares. Fork-join costs 1.5 µs with ``omp`` and 74 µs with ``workqueue``, so the layers are tried in the order
omp, tbb, workqueue, unless the user has chosen (NUMBA_THREADING_LAYER or its priority list).
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

PRIORITY = ["omp", "tbb", "workqueue"]

_launch_lock = threading.Lock()
_workqueue_lock = threading.Lock()
_layer: str | None = None
_forked = False


def _after_fork() -> None:
    global _forked, _launch_lock, _workqueue_lock
    numba_loops = sys.modules.get("numba.np.ufunc.parallel")  # the parent may have run parallel functions of its own
    _forked = _layer is not None or getattr(numba_loops, "_is_initialized", False)  # else a child is free to
    _launch_lock, _workqueue_lock = threading.Lock(), threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


SPINS = "2000"


@contextlib.contextmanager
def _spinning_briefly() -> Iterator[None]:
    """Let libgomp, which reads its settings when it is loaded, wait 0.1 ms before it sleeps, unless the user chose.

    Not waiting at all (OMP_WAIT_POLICY=passive), every call wakes the other threads anew: an empty launch takes 15 µs
    against 5, a convolution of 49 µs 62. Its default waits for milliseconds and gets in the way of others: beside a
    busy process on two cores the same convolution took 374 µs in the mean (3e5 spins), 138 (1e4), 111 (1e3) and 87
    (none).
    """
    if any(name in os.environ for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")):
        yield
        return
    os.environ["GOMP_SPINCOUNT"] = SPINS
    try:
        yield
    finally:
        os.environ.pop("GOMP_SPINCOUNT", None)


def threading_layer() -> str:
    """The threading layer in use: ``"omp"``, ``"tbb"`` or ``"workqueue"``. Starts it if nothing has yet."""
    global _layer
    with _launch_lock:
        if _layer is None:
            import numba
            from numba.np.ufunc import parallel

            chosen = numba.config.THREADING_LAYER_PRIORITY
            if "NUMBA_THREADING_LAYER_PRIORITY" not in os.environ:
                numba.config.THREADING_LAYER_PRIORITY = PRIORITY
            torch = sys.modules.get("torch")  # starting OpenMP must not change the threads it uses
            torch_threads = torch.get_num_threads() if torch else 0
            try:
                with _spinning_briefly():
                    parallel._launch_threads()
            finally:
                numba.config.THREADING_LAYER_PRIORITY = chosen
                if torch and torch.get_num_threads() != torch_threads:
                    torch.set_num_threads(torch_threads)
            _layer = numba.threading_layer()
    return _layer


class Recorder(threading.local):
    """Where launches are noted instead of made, in threads that set ``launches`` (see ``sequence.record``); None there
    stands for one that cannot be noted."""

    launches: list[Any] | None = None


recorder = Recorder()


def run_shares(kernel: Any, threads: int, table: np.ndarray, chunk: np.ndarray, kind: Any) -> None:
    """:func:`launch` with tables given as arrays."""
    if recorder.launches is not None:
        recorder.launches.append(None)
        return
    addresses = (table.__array_interface__["data"][0], chunk.__array_interface__["data"][0])
    launch(kernel, threads, *addresses, kind)


def launch(kernel: Any, threads: int, table: int, chunk: int, kind: Any) -> None:
    """Run ``kernel(t, threads, table, chunk, kind)`` for every share ``t``.

    A ``prange`` loop around each kernel would compile it a second time (4 s for the largest). Instead all share one
    loop, which calls the compiled kernel by its address. A kernel takes numbers only: ``table`` and ``chunk`` are
    addresses of int64 arrays, ``kind`` (a number of the element type) selects the compiled version.

    One share alone runs as a plain call; so does everything in a child of ``fork``, where an OpenMP region would abort
    the process, and where Numba's ``workqueue`` layer is busy in another thread (it, too, aborts).
    """
    if threads <= 1 or _forked:
        kernel(0, 1, table, chunk, kind)
    elif (_layer or threading_layer()) != "workqueue":
        _parallel(kernel, threads, table, chunk, kind)
    elif _workqueue_lock.acquire(blocking=False):
        try:
            _parallel(kernel, threads, table, chunk, kind)
        finally:
            _workqueue_lock.release()
    else:
        kernel(0, 1, table, chunk, kind)


class _Loop:
    """What a parallel call needs, imported once: 2 µs of import statements a call otherwise."""

    def __init__(self) -> None:
        import numba

        from .shares import every_share, native_address

        self.every_share, self.native_address = every_share, native_address
        self.get, self.set, self.most = numba.get_num_threads, numba.set_num_threads, numba.config.NUMBA_NUM_THREADS


_loop: _Loop | None = None


def _parallel(kernel: Any, threads: int, table: int, chunk: int, kind: Any) -> None:
    global _loop
    loop = _loop = _loop or _Loop()
    function = loop.native_address(kernel, kind)
    before, wanted = loop.get(), min(threads, loop.most)
    if wanted != before:
        loop.set(wanted)  # this thread's own setting
    try:
        loop.every_share(function, threads, table, chunk, kind)
    finally:
        if wanted != before:
            loop.set(before)
