"""The machine: what it is, and what it can do at most. Ceilings are measured in the same run as the results."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

PACKAGES = ("numpy", "numba", "llvmlite", "torch", "onnxruntime", "openvino", "ncnn")
COPY_BYTES = 256 << 20


def describe() -> dict[str, Any]:
    """CPU model, vector extensions, cores this process may use, memory, system."""
    info = Path("/proc/cpuinfo")
    fields: dict[str, str] = {}
    if info.exists():
        pairs = (line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
        fields = {key.strip(): value.strip() for key, value in pairs}
    flags = [f for f in fields.get("flags", "").split() if f.startswith(("avx", "fma", "amx", "f16c", "bf16"))]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": fields.get("model name", platform.processor()),
        "flags": " ".join(sorted(set(flags))),
        "cores": cores,
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def versions() -> dict[str, str]:
    """The libraries compared, as installed."""
    import fastconv

    found = {"fastconv": fastconv.__version__}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def ceilings(threads: int) -> dict[str, float]:
    """GFLOP/s of multiply-adds alone, on one thread and on all, and GB/s (read plus written) of a copy larger than most
    caches; best of five."""
    loop, flops = multiply_adds()
    one, fma = (max(_rate(loop, n) for _ in range(5)) * flops / 1e9 for n in (1, threads))
    source, target = np.ones(COPY_BYTES // 4, np.float32), np.zeros(COPY_BYTES // 4, np.float32)
    cuts = np.linspace(0, source.size, threads + 1).astype(int)

    def copy(part: int) -> None:
        np.copyto(target[cuts[part] : cuts[part + 1]], source[cuts[part] : cuts[part + 1]])

    copies = max(_rate(copy, threads) for _ in range(5)) / threads * 2 * COPY_BYTES / 1e9
    return {"GFLOP/s": round(fma, 1), "GFLOP/s, 1 thread": round(one, 1), "GB/s": round(copies, 1)}


def _rate(work: Callable[[int], None], threads: int) -> float:
    """How often a second all threads together do their share of ``work``."""
    pool = workers(threads)
    list(pool.map(work, range(threads)))
    start = time.perf_counter()
    list(pool.map(work, range(threads)))
    return threads / (time.perf_counter() - start)


@cache
def workers(threads: int) -> ThreadPoolExecutor:
    """Threads that wait asleep between calls."""
    return ThreadPoolExecutor(threads)


@cache
def multiply_adds(calls: int = 20_000) -> tuple[Callable[[int], None], int]:
    """fastconv's own register tile on operands that stay in the L1 cache, and its operations a call."""
    import numba

    from fastconv.kernels.cpu.simd import TILE_ROWS, columns, pointer, tile

    length = 128
    offsets = np.zeros(TILE_ROWS + 1, np.int64)
    offsets[:TILE_ROWS] = np.arange(TILE_ROWS) * length

    @numba.njit(nogil=True)
    def loop(calls, segments, rows, a, b, c, kind, index):  # type: ignore[no-untyped-def]
        for _ in range(calls):
            tile(
                1, pointer(segments, index), length, 1, pointer(a, kind), pointer(rows, index), pointer(b, kind),
                pointer(c, kind), c_stride, 0,
            )  # fmt: skip

    c_stride = columns(4)

    def work(_: int) -> None:
        a, b, c = (np.zeros(n, np.float32) for n in (TILE_ROWS * length, length * c_stride, TILE_ROWS * c_stride))
        zero = np.zeros(1, np.int64)
        addresses = [x.ctypes.data for x in (zero, offsets, a, b, c)]
        loop(calls, *addresses, np.float32(0), np.int64(0))

    return work, 2 * TILE_ROWS * c_stride * length * calls
