"""What the convolution kernels' Python halves share: views with three spatial axes, addresses, scratch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np

from ..geometry import ConvGeometry

KIND = {np.dtype(t): t(0) for t in (np.float32, np.float64)}
"""A number of each dtype: what tells a compiled kernel its element type (all data are passed by address)."""


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def lifted(array: np.ndarray) -> np.ndarray:
    """The array as (N, C, D, H, W), a view unless it is misaligned, which vector loads of its elements forbid."""
    if not array.flags.aligned:
        array = array.copy()
    return array[(slice(None), slice(None)) + (None,) * (5 - array.ndim)]


def layout(array: np.ndarray) -> tuple[int, ...]:
    """A lifted array's address and its strides in elements."""
    return (address(array), *(stride // array.itemsize for stride in array.strides))


@contextlib.contextmanager
def writable(out: np.ndarray) -> Iterator[np.ndarray]:
    """``out`` lifted, or where it is misaligned a copy that is written back at the end."""
    if out.flags.aligned:
        yield lifted(out)
    else:
        copy = np.empty(out.shape, out.dtype)
        yield lifted(copy)
        out[...] = copy


def aligned_empty(size: int, dtype: np.dtype) -> np.ndarray:
    """An uninitialised 1-D array on a cache line."""
    memory = np.empty(size * dtype.itemsize + 64, np.uint8)
    start = -address(memory) % 64
    return memory[start : start + size * dtype.itemsize].view(dtype)


def computable(w: np.ndarray) -> np.ndarray:
    """Weights in the dtype that the kernels compute in."""
    return w.astype(np.float32) if w.dtype.itemsize == 2 else w


def bias_row(bias: np.ndarray | None) -> np.ndarray | None:
    return None if bias is None else np.require(bias, requirements=["C", "A"])


class Workspace:
    """A bump allocator over a kernel's workspace, in whole cache lines."""

    def __init__(self, memory: np.ndarray) -> None:
        self.memory = memory
        self.used = 0

    def take(self, shape: Sequence[int] | int, dtype: np.dtype) -> np.ndarray:
        nbytes = int(np.prod(shape)) * dtype.itemsize
        start, self.used = self.used, self.used + -(-nbytes // 64) * 64
        return self.memory[start : start + nbytes].view(dtype).reshape(shape)

    def rest(self) -> int:
        """The address of what is left."""
        return address(self.memory) + self.used


def weight_view(geometry: ConvGeometry, w: np.ndarray) -> np.ndarray:
    """Weights as (groups, K/groups, C/groups, D, R, S)."""
    w = lifted(w)
    k = geometry.out_channels // geometry.groups
    return np.lib.stride_tricks.as_strided(w, (geometry.groups, k, *w.shape[1:]), (w.strides[0] * k, *w.strides))
