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
import time
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


WAIT = 2e-4
"""Seconds that threads wait for the next call before they sleep, and for each other at the end of one."""


@contextlib.contextmanager
def _waiting_briefly() -> Iterator[None]:
    """Let libgomp, which reads its settings when it is loaded, wait ``WAIT`` before it sleeps, unless the user chose.

    It counts looks at a number, and one takes 10 ns on some CPUs and 45 on others of the same maker. Waking a thread
    takes 40 to 100 µs on a virtual machine. After 20 µs of waiting, little more than Python takes between two calls, a
    convolution of 2 x 325 µs took 435 µs on two threads, after 0.1 to 1 ms 355 to 370; a pooling 50 µs after the last
    call 100 and 31. The default of 3e5 looks gets in the way of others: beside a busy process on two cores a
    convolution of 70 µs took 200 µs in the mean (20 µs of waiting), 370 (0.1 and 0.2 ms), 580 (0.5) and 1000 (3).
    """
    if any(name in os.environ for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")):
        yield
        return
    os.environ["GOMP_SPINCOUNT"] = str(_spins(WAIT))
    try:
        yield
    finally:
        os.environ.pop("GOMP_SPINCOUNT", None)


def _spins(seconds: float) -> int:
    """How often a waiting thread looks in so many seconds."""
    from .shares import spin

    number = np.zeros(1, np.int64)
    where, some, fastest = number.__array_interface__["data"][0], 1000, 1.0
    spin(1, where)
    for _ in range(3):
        start = time.perf_counter()
        spin(some, where)
        fastest = min(fastest, time.perf_counter() - start)
    return max(1000, min(int(seconds * some / fastest), 300_000))


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
                with _waiting_briefly():
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
