"""AMX, the tile registers of Intel's CPUs since Sapphire Rapids: whether they may be used, and the instructions.

Eight registers of 16 rows of 64 bytes. TDPBF16PS multiplies two and adds to a third, 8,192 products in 16 cycles:

    C[i][k] += sum over p < 16, h < 2 of  A[i][2 p + h] * B[p][2 k + h]        A, B bfloat16, C 16 x 16 float32

Rows of A are 32 numbers along the sum; B has *pairs* of neighbours along the sum, a pair a column. Loading a register
takes 8 cycles, from L1 or L2, beside the products. Subnormal numbers count as zero, results are never subnormal.

A core keeps the tile registers of a thread that has configured them, and sleeps less deeply: so a kernel's share
begins with :func:`begin_tiles` and ends with :func:`end_tiles`.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic

I8, I64 = ir.IntType(8), ir.IntType(64)


def _allowed() -> bool:
    """Whether Linux lets this process use AMX's tile registers: they must be asked for."""
    if not sys.platform.startswith("linux"):
        return False
    arch_prctl, request, tile_data = 158, 0x1023, 18  # SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return ctypes.CDLL(None).syscall(arch_prctl, request, tile_data) == 0


def features() -> set[str]:
    """What the code that Numba makes may use: the host's, or what NUMBA_CPU_FEATURES says."""
    return set(cpu_target.target_context.codegen().magic_tuple()[2].split(","))


AMX = {"+avx512bf16", "+avx512bw", "+amx-tile", "+amx-bf16"} <= features() and _allowed()


def unavailable() -> str | None:
    """Why this process cannot multiply by AMX, or None."""
    return None if AMX else "the CPU has no AMX-BF16, or the system does not let this process use it"


CONFIGURATION = np.frombuffer(
    bytes([1] + [0] * 15)
    + b"".join((64).to_bytes(2, "little") for _ in range(8))
    + bytes(16)
    + bytes([16] * 8 + [0] * 8),
    np.uint8,
)
"""Palette 1, eight registers of 16 rows of 64 bytes (Intel SDM, LDTILECFG)."""


def emit(b: ir.IRBuilder, name: str, *arguments: ir.Value | int) -> None:
    """An AMX instruction by its LLVM name; numbers are registers."""
    values = [ir.Constant(I8, a) if isinstance(a, int) else a for a in arguments]
    signature = ir.FunctionType(ir.VoidType(), [a.type for a in values])
    b.call(cgutils.get_or_insert_function(b.module, signature, f"llvm.x86.{name}"), values)


@intrinsic
def begin_tiles(typingctx: Any, configuration: Any) -> Any:
    """Configure this thread's tile registers; ``configuration`` is the address of :data:`CONFIGURATION`."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        emit(builder, "ldtilecfg", builder.inttoptr(args[0], I8.as_pointer()))
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@intrinsic
def end_tiles(typingctx: Any) -> Any:
    """Give the tile registers back."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        emit(builder, "tilerelease")
        return context.get_dummy_value()

    return types.void(), codegen
