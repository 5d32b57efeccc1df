"""A compiled correlation bound to everything but addresses: what makes a call cheap.

A kernel is told what to do by one table of integers (``direct_slab.Layout``). Most of it follows from the geometry, the
arrays' strides and the number of threads, so it is built once, 20 µs, and kept; a call writes six addresses into it,
less than 1 µs. Every table begins with the same 22 fields, those of ``CALL``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from inspect import isfunction
from typing import Any, NamedTuple

import numpy as np

from .arrays import KIND, address
from .blocking import Correlation
from .epilogue import activation_id
from .threads import launch, recorder

CALL = (
    "x", "x_n", "x_c", "x_d", "x_h", "x_w", "out", "out_n", "out_c", "out_d", "out_h", "out_w",
    "residual", "residual_n", "residual_c", "residual_d", "residual_h", "residual_w",
    "bias", "activation", "weights", "scratch",
)  # fmt: skip
"""How the table of every correlating kernel begins: addresses, and strides in elements; 0 for what is absent."""

ADDRESSES = tuple(CALL.index(name) for name in ("x", "out", "residual", "bias", "weights", "scratch"))

Prepare = Callable[[Correlation, int, int], tuple[tuple[int, ...], Any]]
"""``prepare(c, itemsize, threads)``: the fields after ``CALL``, and the arrays whose addresses are among them."""


class Launch(NamedTuple):
    """A call of a :class:`Bound` that has not been made: its table, with these addresses in it."""

    bound: Bound
    table: np.ndarray
    addresses: tuple[int, ...]


class Bound:
    """One kernel with its table, complete but for the addresses at ``places``. Tables not in use wait in ``free``."""

    def __init__(
        self, kernel: Any, kind: Any, threads: int, fields: tuple[int, ...], places: tuple[int, ...], kept: Any = None
    ) -> None:
        self.kernel, self.kind, self.threads = kernel, kind, threads
        self.fields, self.places, self.kept = fields, places, kept
        self.free: list[tuple[memoryview, int]] = []

    def _table(self) -> tuple[memoryview, int]:
        table = np.array(self.fields, np.int64)
        return table.data, address(table)

    def __call__(self, *addresses: int) -> None:
        """Run at these addresses, in the order of ``places``; 0 for an array that is absent."""
        if recorder.launches is not None:
            noted = np.array(self.fields, np.int64)
            noted[list(self.places)] = addresses
            recorder.launches.append(Launch(self, noted, addresses))
            return
        try:
            entry = self.free.pop()
        except IndexError:  # the first call, or all tables are in use by other threads
            entry = self._table()
        table, where = entry
        for place, value in zip(self.places, addresses, strict=True):
            table[place] = value
        launch(self.kernel, self.threads, where, where, self.kind)
        self.free.append(entry)


def _strides(strides: tuple[int, ...] | None, itemsize: int) -> tuple[int, ...]:
    """An address yet unknown and an array's strides in elements, lifted to (N, C, D, H, W)."""
    if strides is None:
        return (0,) * 6
    n, c, *spatial = (stride // itemsize for stride in strides)
    return (0, n, c, *(0,) * (3 - len(spatial)), *spatial)


class Call(NamedTuple):
    """What a kernel may be chosen by: the arrays' strides are in elements, of (N, C, D, H, W)."""

    itemsize: int
    x: tuple[int, ...]
    out: tuple[int, ...]
    residual: bool
    activation: str | None


@lru_cache(maxsize=1024)
def bind(
    kernel: Any, prepare: Prepare, c: Correlation, dtype: np.dtype, threads: int, x: tuple[int, ...],
    out: tuple[int, ...], residual: tuple[int, ...] | None, activation: str | None,
) -> Bound:  # fmt: skip
    """The correlation ``c`` (compared by identity) of arrays with these strides, in bytes.

    ``kernel`` is compiled, or a plain function that picks one for a :class:`Call`.
    """
    if isfunction(kernel):
        size = dtype.itemsize
        kernel = kernel(c, Call(size, _strides(x, size)[1:], _strides(out, size)[1:], residual is not None, activation))
    threads = c.useful_threads(threads)
    fixed, kept = prepare(c, dtype.itemsize, threads)
    arrays = (_strides(strides, dtype.itemsize) for strides in (x, out, residual))
    call = (*(n for array in arrays for n in array), 0, activation_id(activation), 0, 0)
    return Bound(kernel, KIND.get(dtype, np.float32(0)), threads, call + fixed, ADDRESSES, (kept, c))


def correlate(
    kernel: Any, prepare: Prepare, c: Correlation, x: np.ndarray, packed: np.ndarray, bias: np.ndarray | None,
    residual: np.ndarray | None, out: np.ndarray, activation: str | None, scratch: int, threads: int,
) -> None:  # fmt: skip
    """Run a correlation of aligned arrays (N, C, *spatial)."""
    other = None if residual is None else residual.strides
    bound = bind(kernel, prepare, c, out.dtype, threads, x.strides, out.strides, other, activation)
    bound(
        address(x),
        address(out),
        0 if residual is None else address(residual),
        0 if bias is None else address(bias),
        address(packed),
        scratch,
    )
