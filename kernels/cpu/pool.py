"""Pooling on the CPU: maximum, minimum, average and Lp norm, their gradients, and unpooling.

    y[n, c, o]  =  reduce over taps j of  x[n, c, o*s + j*d - before]          and the transposed sums for gradients

Shapes and meanings are the kernel contract's (:mod:`fastconv.kernels`). Work is cut into rows of the output (scatters:
planes or blocks of channels), each written by one thread in a fixed order, so results do not depend on ``threads``.

**How.** Arrays are read where they lie if they are contiguous channels-first or channels-last; any other strides cost
one copy. :mod:`.pool_walk` turns the geometry into a table of integers, once, and one of three loops of
:mod:`.pool_kernels` reduces: *rows* (channels first, and channels last at stride 1: down the window into a buffer in
L1, then along it), *pixels* (channels last: lanes are channels) or *planes* (windows that are whole planes); or, in
registers, windows 3x3 at stride 1 by :mod:`.pool_slide` (along each row, then down) and, channels first, 2x2 at stride
2 by :mod:`.pool_pairs`. Sums that are transposed
give the gradients of the average and the norm: each element gathers from the windows that cover it and is written once.
Indices are found by the loops of :mod:`.pool_indices`, which take every tap of every window; the maximum's gradient and
unpooling scatter, serially within a plane.

**Speed** is memory's for all but the smallest maps. It loses where vectors are mostly empty (channels-last with C below
a vector's lanes, channels-first rows with fewer outputs than one that overlap), where loads are gathers
(channels-first with stride 3 and more, and their gradients), and in channels-last scatters, which are scalar.

**Semantics.** NaN propagates and counts as larger (minimum: smaller) than any number; of equal elements the first has
the index. A window without an element gives -inf (minimum: inf), index -1, average and norm 0.

**Error.** Sums run in x's precision u (16-bit: float32's): down each column of a window, then over the columns
(channels last, and 3x3 at stride 1: along each row, then over the rows), and for windows reduced across over the lanes
in a tree. A term of a window of n elements meets at most n - 1 additions, then divisor and division round: an average
is within γ_{n+1} of the mean absolute value (γ_k = ku / (1 - ku)), whatever the order, and an L1 or L2 norm within
γ_{n+2} of itself. Other p are computed in float64. The maximum is exact.
Gradients: n counts the windows that cover an element; dy over the divisor may round before them, so γ_{n+1}, and
γ_{n+4} of the sum of absolute values for the norm's.

Planes (rows x width, and x channels if channels-last) have fewer than 2^31 elements: indices are int32 inside.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..geometry import PoolGeometry
from . import pool_indices, pool_kernels, pool_pairs, pool_slide
from .arrays import KIND, address
from .bound import Bound
from .pool_walk import ADDRESSES, Fields, Walk, divisors, forward_walk, transposed_walk, uniform_divisor
from .simd import lanes

Array = NDArray[Any]

SERIAL_BYTES = 1 << 20
"""Below this many bytes read and written one thread is used: 0.5 MB took one thread 12.6 µs and two 11.3, 1.2 MB 40 and
25, where the second waits for work; to wake it takes 40 µs and more."""


# --- the contract's functions ---


def max_forward(geometry: PoolGeometry, x: Array, indices: Array | None, out: Array, *, threads: int = 1) -> None:
    """Maximum of each window, and where it was first met.

    >>> g = PoolGeometry(1, 1, (4,), (2,), kernel_size=(2,), stride=(2,), padding=((0, 0),))
    >>> y = np.empty((1, 1, 2))
    >>> max_forward(g, np.array([[[1.0, 3.0, 5.0, 4.0]]]), None, y)
    >>> y
    array([[[3., 5.]]])
    """
    _forward("largest", geometry, x, indices, out, threads)


def min_forward(geometry: PoolGeometry, x: Array, indices: Array | None, out: Array, *, threads: int = 1) -> None:
    """Minimum of each window, and where it was first met."""
    _forward("smallest", geometry, x, indices, out, threads)


def avg_forward(geometry: PoolGeometry, x: Array, out: Array, *, threads: int = 1) -> None:
    """Sum of each window over its divisor."""
    _forward("mean", geometry, x, None, out, threads)


def lp_forward(geometry: PoolGeometry, x: Array, out: Array, *, threads: int = 1) -> None:
    """(sum of x^p)^(1/p) of each window, p = ``geometry.norm_type``."""
    p = geometry.norm_type
    if p in (1, 2):
        _forward("sum" if p == 1 else "norm", geometry, x, None, out, threads)
        return
    y = np.empty_like(out, dtype=np.float64)
    with np.errstate(all="ignore"):
        _forward("sum", geometry, x.astype(np.float64) ** p, None, y, threads)
        out[...] = y ** (1 / p)


def max_grad_input(geometry: PoolGeometry, dy: Array, indices: Array, out: Array, *, threads: int = 1) -> None:
    """Each element of dy is added where its index points."""
    _scatter(dy, indices, out, True, threads)


min_grad_input = max_grad_input


def avg_grad_input(geometry: PoolGeometry, dy: Array, out: Array, *, threads: int = 1) -> None:
    """Each element of ``out`` is the sum of dy over divisor of the windows that cover it."""
    divisor = uniform_divisor(geometry)
    if divisor is None:
        dy = dy.astype(_compute_dtype(dy), copy=False)
        dy = dy / divisors(geometry).astype(dy.dtype)
        divisor = 1
    _sum_transposed(geometry, dy, out, divisor, threads)


def lp_grad_input(geometry: PoolGeometry, x: Array, y: Array, dy: Array, out: Array, *, threads: int = 1) -> None:
    """x^(p-1) times the sum of dy * y^(1-p) over the windows that cover the element; windows with y = 0 give 0."""
    p = geometry.norm_type
    dtype = _compute_dtype(x) if p in (1, 2) else np.dtype(np.float64)
    x, y, dy = (a.astype(dtype, copy=False) for a in (x, y, dy))
    with np.errstate(all="ignore"):
        slope = np.where(y == 0, 0, dy if p == 1 else dy / y if p == 2 else dy * y ** (1 - p)).astype(dtype, copy=False)
        gathered = np.empty_like(out, dtype=dtype)
        _sum_transposed(geometry, slope, gathered, 1, threads)
        if p != 1:
            gathered *= np.where(gathered == 0, 0, x if p == 2 else x ** (p - 1))
        out[...] = gathered


def unpool_forward(geometry: PoolGeometry, x: Array, indices: Array, out: Array, *, threads: int = 1) -> None:
    """Zeros, and each element of x where its index points; of equal indices the last one stays.

    ``geometry`` is the pooling's that is undone, and only the arrays' shapes matter: x and indices alike, out any.
    An index outside the plane is skipped.
    """
    _scatter(x, indices, out, False, threads)


def unpool_grad_input(geometry: PoolGeometry, dy: Array, indices: Array, out: Array, *, threads: int = 1) -> None:
    """Each element of ``out`` is dy where its index points, 0 where that is outside the plane."""
    if out.size == 0:
        return
    last = _is_channels_last(out)
    target = _output(out, last, _compute_dtype(out))
    source, where_from = _flat(dy, last, target.dtype), _flat(indices, last, indices.dtype)
    _by_index("gather", out, last, source, where_from, target, False, threads)


# --- running kernels ---


@lru_cache(maxsize=1024)
def bind_forward(
    which: str, geometry: PoolGeometry, last: bool, dtype: np.dtype[Any], index_bytes: int, threads: int
) -> tuple[Bound, ...]:
    """The kernels of a forward pooling, to be called in turn with the addresses of x, y, the indices and the scratch.

    ``which``: largest, smallest, mean, sum or norm. x and y are contiguous, channels last or first, of the dtype that
    is computed in; indices, of 4 or 8 bytes (0: none), lie as y does.
    """
    walk = forward_walk(geometry, last, lanes(dtype.itemsize), dtype, which == "mean", index_bytes > 0)
    name = "sum" if which == "mean" else which
    fields = walk.fields._replace(index_bytes=index_bytes)
    if index_bytes and not walk.across:
        return (_bound(getattr(pool_indices, f"{name}_of_windows_at"), fields, dtype, threads, walk),)
    first = _bound(_loop(name, walk), fields, dtype, threads, walk)
    return (first, _bound(pool_indices.find_in_windows, fields, dtype, threads, walk)) if index_bytes else (first,)


@lru_cache(maxsize=1024)
def _bind_transposed(
    geometry: PoolGeometry, last: bool, dtype: np.dtype[Any], divisor: float, threads: int
) -> tuple[Bound, ...]:
    walk = transposed_walk(geometry, last, lanes(dtype.itemsize), dtype, divisor)
    return (_bound(_loop("sum", walk), walk.fields, dtype, threads, walk),)


@lru_cache(maxsize=1024)
def _bind_index(
    kernel: str, dtype: np.dtype[Any], threads: int, planes: int, channels: int, x_plane: int, y_plane: int,
    accumulate: bool,
) -> tuple[Bound, ...]:  # fmt: skip
    fields = Fields(*[0] * len(Fields._fields))._replace(
        rows=planes, channels=channels, plane_size=x_plane, out_row=y_plane, accumulate=int(accumulate)
    )
    return (_bound(getattr(pool_indices, kernel), fields, dtype, threads, None),)


def _loop(name: str, walk: Walk) -> Any:
    modules = {"slides": pool_slide, "pairs": pool_pairs}
    return getattr(modules.get(walk.form, pool_kernels), f"{name}_of_{walk.form}")


def _bound(kernel: Any, fields: Fields, dtype: np.dtype[Any], threads: int, kept: Walk | None) -> Bound:
    return Bound(kernel, KIND[dtype], threads, fields, ADDRESSES, (fields, kept))


def run_bound(bound: tuple[Bound, ...], *addresses: int) -> None:
    """Run kernels one after the other at the addresses of x, y and, where there are any, indices."""
    x, y, at = addresses if len(addresses) == 3 else (*addresses, 0)
    for kernel in bound:
        each = kernel.kept[0].scratch_bytes
        scratch = np.empty(each * kernel.threads + 64, np.uint8) if each else None
        kernel(x, y, at, 0 if scratch is None else address(scratch))


def useful_threads(threads: int, moved: int) -> int:
    """How many threads are worth waking to move so many bytes."""
    return threads if moved >= SERIAL_BYTES else 1


def _forward(which: str, geometry: PoolGeometry, x: Array, indices: Array | None, out: Array, threads: int) -> None:
    if out.size == 0:
        return
    last = _is_channels_last(x)
    dtype = _compute_dtype(x)
    source, target = _flat(x, last, dtype), _output(out, last, dtype)
    at = None if indices is None else _output(indices, last, indices.dtype)
    arrays = (source, target) if at is None else (source, target, at)
    threads = useful_threads(threads, sum(a.nbytes for a in arrays))
    bound = bind_forward(which, geometry, last, dtype, 0 if at is None else at.itemsize, threads)
    run_bound(bound, *(address(a) for a in arrays))
    if indices is not None and at is not None:
        _finish(at, indices, last)
    _finish(target, out, last)


def _sum_transposed(geometry: PoolGeometry, dy: Array, out: Array, divisor: float, threads: int) -> None:
    if out.size == 0:
        return
    last = _is_channels_last(out)
    dtype = _compute_dtype(dy)
    source, target = _flat(dy, last, dtype), _output(out, last, dtype)
    threads = useful_threads(threads, source.nbytes + target.nbytes)
    run_bound(_bind_transposed(geometry, last, dtype, divisor, threads), address(source), address(target))
    _finish(target, out, last)


def _scatter(dy: Array, indices: Array, out: Array, accumulate: bool, threads: int) -> None:
    if out.size == 0:
        return
    last = _is_channels_last(out)
    target = _output(out, last, _compute_dtype(out))
    source, to = _flat(dy, last, target.dtype), _flat(indices, last, indices.dtype)
    _by_index("scatter", out, last, source, to, target, accumulate, threads)


def _by_index(
    how: str, out: Array, last: bool, source: Array, indices: Array, target: Array, accumulate: bool, threads: int
) -> None:
    """Values moved by index: scattered or gathered."""
    planes, channels = (out.shape[0], out.shape[1]) if last else (out.shape[0] * out.shape[1], 1)
    threads = useful_threads(threads, source.nbytes + indices.nbytes + target.nbytes)
    bound = _bind_index(
        f"{how}_by_{indices.dtype.name}", target.dtype, threads, planes, channels, source.size // planes,
        target.size // planes, accumulate,
    )  # fmt: skip
    run_bound(bound, address(source), address(target), address(indices))
    _finish(target, out, last)


# --- preparing arrays ---


def _compute_dtype(a: Array) -> np.dtype[Any]:
    return np.dtype(np.float32) if a.dtype.itemsize == 2 else a.dtype


def _is_channels_last(a: Array) -> bool:
    """Whether channels lie closer together than pixels."""
    pixel = min((abs(s) for s, size in zip(a.strides[2:], a.shape[2:], strict=True) if size > 1), default=0)
    return a.shape[1] > 1 and abs(a.strides[1]) < pixel


def _in_order(a: Array, last: bool) -> Array:
    return np.moveaxis(a, 1, -1) if last else a


def _flat(a: Array, last: bool, dtype: Any) -> Array:
    """The array as a contiguous vector, copied if it is neither that nor aligned nor of the dtype."""
    return np.require(_in_order(a, last), dtype, ["C", "ALIGNED"]).reshape(-1)


def _output(a: Array, last: bool, dtype: Any) -> Array:
    """A contiguous vector to write in place of ``a``: its own memory if possible."""
    ordered = _in_order(a, last)
    if ordered.flags.c_contiguous and ordered.flags.aligned and ordered.dtype == dtype:
        return ordered.reshape(-1)
    return np.empty(a.size, dtype)


def _finish(flat: Array, a: Array, last: bool) -> None:
    """Copy what was written to ``a``, if it was not written there."""
    ordered = _in_order(a, last)
    if not np.may_share_memory(flat, a):
        with np.errstate(over="ignore"):
            ordered[...] = flat.reshape(ordered.shape)
