"""The one ``prange`` loop of the convolution kernels: it calls a compiled kernel by its address.

A loop around each kernel would link the kernel in and compile it again, twice as much work for every kernel.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from llvmlite import ir
from numba import prange, typeof, types
from numba.core import cgutils
from numba.extending import intrinsic

from .compile import jit

I64 = ir.IntType(64)


def _signature(kind: Any) -> tuple[Any, ...]:
    """Argument types of a kernel: share, shares, two addresses, a number of the element type."""
    return (types.int64, types.int64, types.int64, types.int64, kind)


@cache  # bounded by the kernels
def _address(kernel: Any, kind: Any) -> int:
    signature = _signature(typeof(kind(0)))
    kernel.compile(signature)
    compiled = kernel.overloads[signature]
    return int(compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name))


def native_address(kernel: Any, kind: Any) -> int:
    """Where the kernel's machine code for ``kind``, a NumPy number, begins; compiles it on first use."""
    element: Any = type(kind)
    return _address(kernel, element)


@intrinsic
def call_at(typingctx: Any, function: Any, t: Any, threads: Any, table: Any, chunk: Any, kind: Any) -> Any:
    """Call the kernel at an address, by Numba's own calling convention. Kernels raise nothing."""
    arguments = _signature(kind)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        convention = context.call_conv
        pointer = builder.inttoptr(args[0], convention.get_function_type(types.none, arguments).as_pointer())
        convention.call_function(builder, pointer, types.none, arguments, args[1:])
        return context.get_dummy_value()

    return types.void(types.int64, *arguments), codegen


@intrinsic
def current(typingctx: Any, number: Any) -> Any:
    """A number that other threads count."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        place = builder.inttoptr(args[0], I64.as_pointer())
        return builder.load_atomic(place, "acquire", 8)

    return types.int64(types.int64), codegen


@intrinsic
def pause(typingctx: Any) -> Any:
    """A moment's rest in a loop that waits, where the CPU has an instruction for it."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if builder.module.triple.startswith(("x86_64", "i686")):
            name = "llvm.x86.sse2.pause"
            builder.call(cgutils.get_or_insert_function(builder.module, ir.FunctionType(ir.VoidType(), []), name), [])
        return context.get_dummy_value()

    return types.void(), codegen


@jit
def spin(times, number):
    """Wait as libgomp does: look whether a number, at an address, is still 0, and rest, so many times."""
    for _ in range(times):
        if current(number) != 0:
            return
        pause()


@jit(parallel=True)
def every_share(function, threads, table, chunk, kind):
    for t in prange(threads):
        call_at(function, t, threads, table, chunk, kind)
