"""Running a kernel on several threads.

Every kernel is a serial function over a share of its work, and a ``prange`` loop over shares around it:

    serial(t, threads, *arguments)        share t of threads
    parallel(threads, *arguments)         all of them

:func:`run` takes the serial one for one thread, in a child of ``fork`` (an OpenMP region there would abort the
process), and where Numba's ``workqueue`` layer is already busy in another thread (it, too, aborts).
Fork-join costs 1.5 µs with ``omp`` and 74 µs with ``workqueue``, so the layers are tried in the order omp, tbb,
workqueue, unless the user has chosen (NUMBA_THREADING_LAYER or its priority list).
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

PRIORITY = ["omp", "tbb", "workqueue"]

_launch_lock = threading.Lock()
_workqueue_lock = threading.Lock()
_layer: str | None = None
_forked = False


def _after_fork() -> None:
    global _forked, _launch_lock, _workqueue_lock
    _forked = _layer is not None  # a parent that never started threads leaves a child free to
    _launch_lock, _workqueue_lock = threading.Lock(), threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@contextlib.contextmanager
def _waiting_passively() -> Iterator[None]:
    """Let libgomp, which reads its settings when it is loaded, put idle threads to sleep unless the user chose.

    By default it spins at a barrier. Alone on the machine that gains little (on two threads a convolution of 100 µs
    against 117, one of 643 µs against 621); beside a busy process the same 117 µs became 162 waiting passively and
    240 to 470 spinning, and several ms beside more, because the thread that spins is the one the scheduler lets run.
    """
    if any(name in os.environ for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")):
        yield
        return
    os.environ["OMP_WAIT_POLICY"] = "passive"
    try:
        yield
    finally:
        del os.environ["OMP_WAIT_POLICY"]


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
                with _waiting_passively():
                    parallel._launch_threads()
            finally:
                numba.config.THREADING_LAYER_PRIORITY = chosen
                if torch and torch.get_num_threads() != torch_threads:
                    torch.set_num_threads(torch_threads)
            _layer = numba.threading_layer()
    return _layer


def run(serial: Callable[..., None], parallel: Callable[..., None], threads: int, *arguments: Any) -> None:
    """Run a kernel on at most ``threads`` threads."""
    if threads <= 1 or _forked:
        serial(0, 1, *arguments)
    elif threading_layer() != "workqueue":
        _run_parallel(parallel, threads, arguments)
    elif _workqueue_lock.acquire(blocking=False):
        try:
            _run_parallel(parallel, threads, arguments)
        finally:
            _workqueue_lock.release()
    else:
        serial(0, 1, *arguments)


def _run_parallel(parallel: Callable[..., None], threads: int, arguments: tuple[Any, ...]) -> None:
    import numba

    before = numba.get_num_threads()
    wanted = min(threads, numba.config.NUMBA_NUM_THREADS)
    if wanted == before:
        parallel(threads, *arguments)
        return
    numba.set_num_threads(wanted)  # this thread's own setting
    try:
        parallel(threads, *arguments)
    finally:
        numba.set_num_threads(before)


def run_shares(kernel: Any, threads: int, table: np.ndarray, chunk: np.ndarray, kind: Any) -> None:
    """:func:`launch` with tables given as arrays."""
    addresses = (table.__array_interface__["data"][0], chunk.__array_interface__["data"][0])
    launch(kernel, threads, *addresses, kind)


def launch(kernel: Any, threads: int, table: int, chunk: int, kind: Any) -> None:
    """Run ``kernel(t, threads, table, chunk, kind)`` for every share ``t``.

    A ``prange`` loop around each kernel would compile it a second time (4 s for the largest). Instead all share one
    loop, which calls the compiled kernel by its address. A kernel takes numbers only: ``table`` and ``chunk`` are
    addresses of int64 arrays, ``kind`` (a number of the element type) selects the compiled version.
    """
    if threads <= 1 or _forked:
        kernel(0, 1, table, chunk, kind)
        return
    from .shares import every_share, native_address

    run(kernel, partial(every_share, native_address(kernel, kind)), threads, table, chunk, kind)
