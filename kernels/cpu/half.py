"""float16 and bfloat16 through the float32 kernels: operands are converted into the workspace, results rounded once.

NumPy converts one number at a time (float16: 1.2 ns to float32 and 2.0 ns back, more than many convolutions take);
``convert_range`` takes 16 at once on every thread. Arrays whose elements fill one piece of memory, in any order of
axes, are converted as that piece, so the copy lies in memory as the original does.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from .arrays import Workspace, address
from .bound import Bound
from .compile import jit
from .simd import pointer, shift, unpack

LANES = 16
THREAD_ELEMENTS = 1 << 16  # that pay for another thread
_SINGLE = np.dtype(np.float32)
_I16, _I32 = ir.IntType(16), ir.IntType(32)
_SHORTS, _INTS = ir.VectorType(_I16, LANES), ir.VectorType(_I32, LANES)
_FLOATS, _HALVES = ir.VectorType(ir.FloatType(), LANES), ir.VectorType(ir.HalfType(), LANES)


def _converts_float16() -> bool:
    """Whether the CPU does; elsewhere LLVM would call a function that Numba does not have."""
    features = set(cpu_target.target_context.codegen().magic_tuple()[2].split(","))
    return platform.machine() in ("aarch64", "arm64") or bool(features & {"+f16c", "+avx512f"})


FLOAT16 = _converts_float16()


def _splat(value: int) -> ir.Constant:
    return ir.Constant(_INTS, [value] * LANES)


def _widened(b: ir.IRBuilder, shorts: ir.Value, brain: bool) -> ir.Value:
    if brain:  # a bfloat16 is the upper half of a float32
        return b.bitcast(b.shl(b.zext(shorts, _INTS), _splat(16)), _FLOATS)
    return b.fpext(b.bitcast(shorts, _HALVES), _FLOATS)


def _narrowed(b: ir.IRBuilder, floats: ir.Value, brain: bool) -> ir.Value:
    if not brain:
        return b.bitcast(b.fptrunc(floats, _HALVES), _SHORTS)
    bits = b.bitcast(floats, _INTS)
    odd = b.and_(b.lshr(bits, _splat(16)), _splat(1))
    rounded = b.add(bits, b.add(odd, _splat(0x7FFF)))  # to nearest, ties to even
    quiet = b.or_(bits, _splat(0x400000))  # adding could carry a NaN into infinity
    kept = b.select(b.fcmp_unordered("uno", floats, floats), quiet, rounded)
    return b.trunc(b.lshr(kept, _splat(16)), _SHORTS)


def _conversion(widen: bool, brain: bool) -> Any:
    @intrinsic
    def convert(typingctx: Any, source: Any, target: Any) -> Any:
        """16 numbers."""

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            source, target = args
            given, wanted = (_SHORTS, _FLOATS) if widen else (_FLOATS, _SHORTS)
            value = builder.load(builder.bitcast(source, given.as_pointer()), align=2 if widen else 4)
            value = (_widened if widen else _narrowed)(builder, value, brain)
            builder.store(value, builder.bitcast(target, wanted.as_pointer()), align=4 if widen else 2)
            return context.get_dummy_value()

        return types.void(source, target), codegen

    return convert


_from_float16, _from_bfloat16 = _conversion(True, False), _conversion(True, True)
_to_float16, _to_bfloat16 = _conversion(False, False), _conversion(False, True)


class Conversion(NamedTuple):
    """What the compiled function is told."""

    source: int
    target: int
    vectors: int
    widen: int
    brain: int


_FIELDS = len(Conversion._fields)


@jit
def convert_range(t, threads, table, chunk, kind):
    """Share ``t`` of a conversion."""
    g = Conversion(*unpack(table, _FIELDS))
    for i in range(g.vectors * t // threads, g.vectors * (t + 1) // threads):
        if g.widen:
            source = shift(pointer(g.source, np.int16(0)), i * LANES)
            target = shift(pointer(g.target, kind), i * LANES)
            if g.brain:
                _from_bfloat16(source, target)
            elif FLOAT16:
                _from_float16(source, target)
        else:
            source = shift(pointer(g.source, kind), i * LANES)
            target = shift(pointer(g.target, np.int16(0)), i * LANES)
            if g.brain:
                _to_bfloat16(source, target)
            elif FLOAT16:
                _to_float16(source, target)


@lru_cache(maxsize=256)
def _bound(vectors: int, widen: bool, brain: bool, threads: int) -> Bound:
    fields = Conversion(0, 0, vectors, int(widen), int(brain))
    return Bound(convert_range, np.float32(0), threads, fields, (0, 1))


def _convert(source: np.ndarray, target: np.ndarray, threads: int) -> None:
    """Contiguous 1-D arrays of one length; the last few numbers go through NumPy."""
    sixteen = source if source.dtype.itemsize == 2 else target
    brain = sixteen.dtype != np.float16
    whole = source.size // LANES * LANES if brain or FLOAT16 else 0
    if whole:
        bound = _bound(whole // LANES, source is sixteen, brain, min(threads, max(1, whole // THREAD_ELEMENTS)))
        bound(address(source), address(target))
    with np.errstate(over="ignore", invalid="ignore"):  # as silent as the vectors
        target[whole:] = source[whole:]


def _piece(array: np.ndarray) -> np.ndarray | None:
    """The array's elements in the order of memory, if they fill one piece of it."""
    reach = sum((n - 1) * stride for n, stride in zip(array.shape, array.strides, strict=True))
    dense = array.size and min(array.strides) > 0 and reach + array.itemsize == array.nbytes and array.flags.aligned
    return np.lib.stride_tricks.as_strided(array, (array.size,), (array.itemsize,)) if dense else None


def _single(scratch: Workspace, array: np.ndarray, threads: int, *, filled: bool = True) -> np.ndarray:
    """A float32 copy of the array in the workspace (with ``filled`` False only room for it)."""
    memory, piece = scratch.take(array.size, _SINGLE), _piece(array)
    if piece is None:
        copy = memory.reshape(array.shape)
        if filled:
            copy[...] = array
        return copy
    if filled:
        _convert(piece, memory, threads)
    return np.ndarray(array.shape, _SINGLE, memory, 0, tuple(2 * stride for stride in array.strides))


def in_float32(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let a kernel function take 16-bit arrays.

    The workspace holds float32 copies of every operand (see ``blocking.with_half``) in front of the kernel's own
    scratch. A residual is placed where the result will be: the epilogue reads each element before it writes it.
    """

    @wraps(function)
    def kernel(geometry: Any, *arrays: np.ndarray | None, workspace: np.ndarray, **options: Any) -> None:
        out = arrays[-1]
        assert out is not None
        if out.dtype.itemsize != 2:
            function(geometry, *arrays, workspace=workspace, **options)
            return
        if geometry.batch == 0:  # the stated workspace is empty, too
            out[...] = 0  # a weight gradient; no other result has elements
            return
        scratch, threads = Workspace(workspace), options.get("threads", 1)
        result = _single(scratch, out, threads, filled=False)
        singles: list[np.ndarray | None] = []
        prepacked = options.get("packed") is not None
        for i, array in enumerate(arrays[:-1]):
            if i == 1 and prepacked:  # the weights are not read
                singles.append(None)
            elif array is None or array.ndim == 1:  # a bias is small
                singles.append(None if array is None else array.astype(_SINGLE))
            elif i == 3:
                result[...] = array
                singles.append(result)
            else:
                singles.append(_single(scratch, array, threads))
        function(geometry, *singles, result, workspace=workspace[scratch.used :], **options)
        there, here = _piece(out), _piece(result)  # the same order of axes
        if there is None or here is None:
            out[...] = result
        else:
            _convert(here, there, threads)

    return kernel
