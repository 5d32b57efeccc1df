"""What the convolution launchers share: the struct ``Conv`` of ``conv.cuh``, index widths, grids.

A launch has two parts. What follows from geometry, dtype and strides (the struct, the grid, the compiled function) is
computed once and cached; a call only fills in addresses.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from .. import ACTIVATIONS
from ..geometry import PADDING_MODES, ConvGeometry
from .module import MAX_GRID, Driver, Struct, driver

Strides = tuple[int, ...]

WINDOW = [
    ("input", np.int32, 3),
    ("output", np.int32, 3),
    ("kernel", np.int32, 3),
    ("stride", np.int32, 3),
    ("dilation", np.int32, 3),
    ("padding", np.int32, 3),
    ("padding_after", np.int32, 3),
]
"""The fields that convolutions and poolings share."""

CONV = np.dtype(
    [
        ("batch", np.int32),
        ("groups", np.int32),
        ("inputs", np.int32),
        ("outputs", np.int32),
        ("mode", np.int32),
        ("activation", np.int32),
        *WINDOW,
        ("x", np.int64, 5),
        ("w", np.int64, 5),
        ("y", np.int64, 5),
        ("residual", np.int64, 5),
    ],
    align=True,
)
"""``struct Conv`` of ``conv.cuh``, field by field."""

ELEMENTS = {"float32": "float", "float64": "double", "float16": "float16", "bfloat16": "bfloat16"}
"""The names that the CUDA sources have for dtypes."""

NULL = np.uint64(0)


def both_directions(run: Callable[..., None]) -> tuple[Callable[..., None], Callable[..., None]]:
    """``forward`` and ``grad_input`` of the kernel contract, for a ``run`` that is told the direction first."""

    def forward(
        geometry: ConvGeometry, x: Any, w: Any, bias: Any, residual: Any, out: Any, *, activation: str | None = None,
        packed: Any = None, workspace: Any = None, threads: int = 1,
    ) -> None:  # fmt: skip
        """``out = activation(conv(x, w) + bias + residual)``."""
        run("forward", geometry, x, w, bias, residual, out, activation, packed, workspace)

    def grad_input(
        geometry: ConvGeometry, dy: Any, w: Any, bias: Any, residual: Any, out: Any, *, activation: str | None = None,
        packed: Any = None, workspace: Any = None, threads: int = 1,
    ) -> None:  # fmt: skip
        """``out = activation(gradient of the input + bias + residual)``: also the transposed convolution."""
        run("grad_input", geometry, dy, w, bias, residual, out, activation, packed, workspace)

    return forward, grad_input


def conv_struct(
    geometry: ConvGeometry, itemsize: int, x: Strides, w: Strides, y: Strides, residual: Strides | None,
    activation: str | None,
) -> Struct:  # fmt: skip
    """The struct of a convolution whose arrays have these strides in bytes, of any rank."""
    g = geometry.lifted()
    before, after = zip(*g.padding, strict=True)
    fields = (
        g.batch, g.groups, g.in_channels // g.groups, g.out_channels // g.groups,
        PADDING_MODES.index(g.padding_mode), activation_id(activation),
        g.input_size, g.output_size, g.kernel_size, g.stride, g.dilation, before, after,
        *(elements(s, itemsize) for s in (x, w, y, residual or (0,) * (geometry.rank + 2))),
    )  # fmt: skip
    return Struct.of(CONV, *fields)


def activation_id(name: str | None) -> int:
    """0 for None, else the place of ``name`` in ACTIVATIONS counted from 1, as the enum of ``epilogue.cuh``."""
    return 0 if name is None else ACTIVATIONS.index(name) + 1


def elements(strides: Strides, itemsize: int) -> Strides:
    """Strides in bytes as strides in elements with three spatial axes.

    >>> elements((48, 16, 4), 4)
    (12, 4, 0, 0, 1)
    """
    n, c, *spatial = (s // itemsize for s in strides)
    return (n, c, *(0,) * (3 - len(spatial)), *spatial)


def index_type(*extents: tuple[tuple[int, ...], Strides, int]) -> str:
    """``"int"`` where 32 bits hold every offset into these arrays (shape, strides, item size), else ``"long long"``.

    Offsets are compared with a quarter of the range: sums on the way to one, and the end of a last tile, fit too.

    >>> index_type(((4, 5), (20, 4), 4)), index_type(((2, 1 << 31), (1 << 31, 1), 1))
    ('int', 'long long')
    """
    reach = max(
        max(sum((n - 1) * abs(s) for n, s in zip(shape, strides, strict=True)) // itemsize, math.prod(shape))
        for shape, strides, itemsize in extents
    )
    return "int" if reach < 2**29 else "long long"


def grid(blocks: int) -> tuple[int, int, int]:
    """``blocks`` along x; kernels step by ``gridDim.x`` over what is left."""
    return (min(blocks, MAX_GRID), 1, 1)


def readable(array: Any) -> Any:
    """The array, or a copy where elements do not lie on multiples of their size (a view into packed records)."""
    return array if _aligned(array) else array.copy()


class writable:
    """``with writable(out) as target``: an aligned array to write, copied to ``out`` at the end where it is another."""

    def __init__(self, out: Any) -> None:
        self.out = out
        self.target = readable(out)

    def __enter__(self) -> Any:
        return self.target

    def __exit__(self, kind: Any, *_: Any) -> None:
        if self.target is not self.out and kind is None:
            self.out[...] = self.target


def _aligned(array: Any) -> bool:
    itemsize = array.itemsize
    return not (driver().address(array) % itemsize or any(stride % itemsize for stride in array.strides))


def contiguous(row: Any) -> Any:
    """A bias as kernels read it: its elements side by side."""
    return row if row is None or (row.flags.c_contiguous and _aligned(row)) else row.copy()


def pointer(array: Any) -> Any:
    """An array's address as an argument; null for None."""
    return NULL if array is None else np.uint64(driver().address(array))


def pointers(driver: Driver, itemsize: int, *arrays: Any) -> tuple[Any, ...] | None:
    """The addresses of arrays as arguments, null for None. None altogether where one is no multiple of the item size:
    the caller then starts again with copies (:func:`readable`, :class:`writable`)."""
    address, found = driver.address, []
    for array in arrays:
        if array is None:
            found.append(NULL)
            continue
        where = address(array)
        if where % itemsize:
            return None
        found.append(np.uint64(where))
    return tuple(found)


def moved(pointer: Any, offset: int) -> Any:
    """An address as an argument, so many bytes further."""
    return np.uint64(int(pointer) + offset) if offset else pointer


def whole(itemsize: int, *strides: Strides | None) -> bool:
    """Whether strides in bytes are multiples of the item size.

    >>> whole(4, (16, 4), None), whole(4, (10, 5))
    (True, False)
    """
    return not any(s % itemsize for each in strides if each is not None for s in each)


def beside(array: Any, count: int, dtype: Any) -> Any:
    """A new array of ``count`` numbers, of the array's kind and on the current device."""
    return sys.modules[type(array).__module__.partition(".")[0]].empty(count, dtype)
