"""What the convolution kernels' Python halves share: views with three spatial axes, addresses, scratch."""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..geometry import ConvGeometry

KIND = {np.dtype(t): t(0) for t in (np.float32, np.float64)}
"""A number of each dtype: what tells a compiled kernel its element type (all data are passed by address)."""


def _from_interface(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def _from_object(array: np.ndarray) -> int:
    return ctypes.c_size_t.from_address(id(array) + object.__basicsize__).value


def _fastest() -> Callable[[np.ndarray], int]:
    """A call of a small convolution needs six addresses, 0.9 µs each by NumPy's dictionary. In CPython the data pointer
    is the first field of the array object (PyArrayObject in NumPy's C API), 0.2 µs away."""
    if sys.implementation.name == "cpython":
        samples = [np.arange(3.0), np.zeros((2, 3), np.float32)[1:, ::-1]]
        if all(_from_object(a) == _from_interface(a) for a in samples):
            return _from_object
    return _from_interface


address = _fastest()
"""``address(array)``: where its first element lies."""


def aligned(array: np.ndarray) -> np.ndarray:
    """The array, or a copy where its elements are misaligned, which vector loads forbid."""
    return array if array.flags.aligned else array.copy()


def lifted(array: np.ndarray) -> np.ndarray:
    """The array as (N, C, D, H, W), a view unless it is misaligned."""
    return aligned(array)[(slice(None), slice(None)) + (None,) * (5 - array.ndim)]


def layout(array: np.ndarray) -> tuple[int, ...]:
    """A lifted array's address and its strides in elements."""
    return (address(array), *(stride // array.itemsize for stride in array.strides))


class writable:
    """``with writable(out) as target``: an aligned array to write, copied to ``out`` at the end where it is another."""

    def __init__(self, out: np.ndarray) -> None:
        self.out = out
        self.target = out if out.flags.aligned else np.empty(out.shape, out.dtype)

    def __enter__(self) -> np.ndarray:
        return self.target

    def __exit__(self, kind: Any, *_: Any) -> None:
        if self.target is not self.out and kind is None:
            self.out[...] = self.target


def aligned_empty(size: int, dtype: np.dtype) -> np.ndarray:
    """An uninitialised 1-D array on a cache line."""
    memory = np.empty(size * dtype.itemsize + 64, np.uint8)
    start = -address(memory) % 64
    return memory[start : start + size * dtype.itemsize].view(dtype)


def computable(w: np.ndarray) -> np.ndarray:
    """Weights in the dtype that the kernels compute in."""
    return w.astype(np.float32) if w.dtype.itemsize == 2 else w


def bias_row(bias: np.ndarray | None) -> np.ndarray | None:
    """The bias as the kernels read it: contiguous, and float32 where it has 16 bits."""
    if bias is not None and bias.dtype.itemsize == 2:
        return bias.astype(np.float32)
    if bias is None or (bias.flags.c_contiguous and bias.flags.aligned):
        return bias
    return np.require(bias, requirements=["C", "A"])


class Workspace:
    """A bump allocator over a kernel's workspace, in whole cache lines."""

    def __init__(self, memory: np.ndarray) -> None:
        self.memory = memory
        self.used = 0

    def take(self, shape: Sequence[int] | int, dtype: np.dtype) -> np.ndarray:
        nbytes = (shape if isinstance(shape, int) else math.prod(shape)) * dtype.itemsize
        start, self.used = self.used, self.used + -(-nbytes // 64) * 64
        if start + nbytes > self.memory.size:
            raise ValueError(f"workspace: at least {start + nbytes} bytes needed, got {self.memory.size}")
        taken = self.memory[start : start + nbytes].view(dtype)
        return taken if isinstance(shape, int) else taken.reshape(shape)

    def rest(self) -> int:
        """The address of what is left."""
        return address(self.memory) + self.used


def weight_view(geometry: ConvGeometry, w: np.ndarray) -> np.ndarray:
    """Weights as (groups, K/groups, C/groups, D, R, S): a view, axes are only split and added."""
    w = aligned(w)
    ones = (1,) * (5 - w.ndim)
    return w.reshape(geometry.groups, geometry.out_channels // geometry.groups, w.shape[1], *ones, *w.shape[2:])
