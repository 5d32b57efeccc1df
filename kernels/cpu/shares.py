"""The one ``prange`` loop of the convolution kernels: it calls a compiled kernel by its address.

A loop around each kernel would link the kernel in and compile it again, twice as much work for every kernel.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from numba import prange, typeof, types
from numba.extending import intrinsic

from .compile import jit


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


@jit(parallel=True)
def every_share(function, threads, table, chunk, kind):
    for t in prange(threads):
        call_at(function, t, threads, table, chunk, kind)
