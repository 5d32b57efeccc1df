"""What a thread has set for its calls: the options of a ``with`` block, and how many threads kernels may use."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from .arguments import check_choice, flag
from .kernels.geometry import hashed_once
from .registry import families

PRECISIONS = ("ieee", "tf32", "emulated")
MOST_THREADS = 1024


@hashed_once
@dataclass(frozen=True)
class Options:
    """What :func:`options` sets; None leaves the default."""

    algorithm: str = "auto"
    max_error: float | None = None
    workspace_limit: int | None = None
    deterministic: bool = False
    precision: str = "ieee"
    num_threads: int | None = None


DEFAULTS = Options()


class Current(threading.local):
    """A thread's options, and whether :func:`fastconv.explain` only wants to know what a call would run."""

    options = DEFAULTS
    probing = False


current = Current()
_num_threads: int | None = None


def current_options() -> Options:
    """The options in force in this thread."""
    return current.options


@contextmanager
def options(
    *, algorithm: str | None = None, max_error: float | None = None, workspace_limit: int | None = None,
    deterministic: bool | None = None, precision: str | None = None, num_threads: int | None = None,
) -> Iterator[Options]:  # fmt: skip
    """Set options for this thread inside a ``with`` block; what is not given keeps its value.

    >>> import numpy as np, fastconv
    >>> x, w = np.ones((1, 2, 5, 5), np.float32), np.ones((3, 2, 3, 3), np.float32)
    >>> with fastconv.options(algorithm="im2col", num_threads=1):
    ...     y = fastconv.conv2d(x, w)
    >>> y.shape
    (1, 3, 3, 3)

    Parameters
    ----------
    algorithm : a family or variant name, or ``"auto"``. Operations without a kernel of that name (pooling, under
        ``"im2col"``) choose automatically; one whose kernel of that name refuses the problem raises.
    max_error : largest error bound allowed, in multiples of the direct algorithm's for the same problem and dtype:
        1 admits only algorithms as accurate as direct. Explicit limits bind forced algorithms too.
    workspace_limit : most bytes of scratch memory a kernel may use.
    deterministic : only kernels that give the same bits on every run.
    precision : ``"ieee"``; ``"emulated"`` to also allow float32 products made of bfloat16 ones, as exact but for the
        smallest and largest numbers, on CPUs with AMX; ``"tf32"`` to also allow such kernels on GPUs.
    num_threads : CPU threads a call may use, 1 to 1024.

    Raises
    ------
    ValueError, TypeError : naming the option.
    """
    given: dict[str, Any] = {
        "algorithm": algorithm, "max_error": max_error, "workspace_limit": workspace_limit,
        "deterministic": deterministic, "precision": precision, "num_threads": num_threads,
    }  # fmt: skip
    previous = current.options
    changed = replace(previous, **{k: v for k, v in given.items() if v is not None})
    _check_options(changed)
    current.options = changed
    try:
        yield changed
    finally:
        current.options = previous


def _check_options(o: Options) -> None:
    check_algorithm("options", o.algorithm)
    for name in ("max_error", "workspace_limit"):
        value = getattr(o, name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float, np.number))):
            raise TypeError(f"options: {name} must be a number, got {value!r}")
    if o.max_error is not None and not o.max_error > 0:
        raise ValueError(f"options: max_error must be positive, got {o.max_error!r}")
    if o.workspace_limit is not None and not o.workspace_limit >= 0:
        raise ValueError(f"options: workspace_limit must be >= 0 bytes, got {o.workspace_limit!r}")
    check_choice("options", "precision", o.precision, PRECISIONS)
    flag("options", "deterministic", o.deterministic)
    if o.num_threads is not None:
        check_threads("options", o.num_threads)


def check_algorithm(op: str, algorithm: Any) -> None:
    if not isinstance(algorithm, str) or algorithm not in ("auto", *families()):
        raise ValueError(
            f"{op}: algorithm must be 'auto' or one of {', '.join(map(repr, families()))}; got {algorithm!r}"
        )


def check_threads(op: str, n: Any, name: str = "num_threads") -> None:
    """Raise unless ``n`` is a number of threads that calls can use."""
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)):
        raise TypeError(f"{op}: {name} must be an integer, got {n!r}")
    if not 1 <= n <= MOST_THREADS:
        raise ValueError(f"{op}: {name} must be between 1 and {MOST_THREADS}, got {n}")


def set_num_threads(n: int) -> None:
    """Set how many CPU threads calls use, in every thread that does not say otherwise by :func:`options`.

    >>> import fastconv
    >>> before = fastconv.get_num_threads()
    >>> fastconv.set_num_threads(1); fastconv.get_num_threads()
    1
    >>> fastconv.set_num_threads(before)
    """
    global _num_threads
    check_threads("set_num_threads", n)
    _num_threads = int(n)


def get_num_threads() -> int:
    """How many CPU threads a call may use: by :func:`options`, :func:`set_num_threads`, else the process's share.

    The default is the number of CPUs the process may run on, or fewer where OMP_NUM_THREADS says so.

    >>> import fastconv
    >>> fastconv.get_num_threads() >= 1
    True
    """
    return current.options.num_threads or _num_threads or _default_threads()


def default_threads() -> int:
    """How many threads a call may use that chooses by the default options; 0 where other options are in force, or
    :func:`explain` is looking."""
    if current.options is not DEFAULTS or current.probing:
        return 0
    return _num_threads or _default_threads()


@lru_cache(maxsize=1)
def _default_threads() -> int:
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    return max(1, min(cpus, int(wanted))) if wanted.isdecimal() else cpus
