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
def multiply_adds(calls: int = 60_000) -> tuple[Callable[[int], None], int]:
    """Multiply-adds of registers and nothing else, and their operations a call.

    Twelve sums: as many as are on their way in two units of four to six cycles, and no more than 16 registers hold.
    The library's register tile, which also loads and stores, is about 1% slower on Zen 3 with 1,024 products a sum and
    9% with 64: as a ceiling it would flatter.
    """
    import numba

    from fastconv.kernels.cpu.simd import lanes, pointer
    from fastconv.kernels.cpu.vector import add_square, load, store

    count, steps = lanes(4), 128

    @numba.njit(nogil=True)
    def loop(rounds, memory, kind):  # type: ignore[no-untyped-def]
        p = pointer(memory, kind)
        v = load(p, 0)
        a, b, c, d = load(p, count), load(p, 2 * count), load(p, 3 * count), load(p, 4 * count)
        e, f, g, h = load(p, 5 * count), load(p, 6 * count), load(p, 7 * count), load(p, 8 * count)
        i, j, k, m = load(p, 9 * count), load(p, 10 * count), load(p, 11 * count), load(p, 12 * count)
        for _ in range(rounds):
            a, b, c, d = add_square(v, a), add_square(v, b), add_square(v, c), add_square(v, d)
            e, f, g, h = add_square(v, e), add_square(v, f), add_square(v, g), add_square(v, h)
            i, j, k, m = add_square(v, i), add_square(v, j), add_square(v, k), add_square(v, m)
        where = 0
        for s in (a, b, c, d, e, f, g, h, i, j, k, m):  # each to a place of its own: what nobody reads is not computed
            store(p, where, s)
            where += count

    def work(_: int) -> None:
        memory = np.zeros(13 * count, np.float32)
        loop(calls * steps, memory.ctypes.data, np.float32(0))

    return work, 2 * 12 * count * steps * calls
