"""Compile every CUDA kernel for one architecture, on all CPUs, into the cache: ``python -m tests.gpu.compile sm_90a``.

Without an argument: for the current GPU. Tests and benchmarks then wait for no compiler.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor

from fastconv.kernels.cuda import module
from fastconv.kernels.cuda.module import Instance, compile_cubin
from fastconv.registry import ROWS
from fastconv.targets import resolve


def instances() -> list[Instance]:
    """One instance a source: the kernels of a file come together."""
    listed = (i for row in ROWS if row.instances is not None for i in resolve(row.instances)())
    return list({module.source(i.stem, i.defines): i for i in listed}.values())


def main(arguments: list[str]) -> None:
    start, arch = time.perf_counter(), arguments[0] if arguments else module.driver().arch
    wanted = instances()[: int(os.environ.get("FASTCONV_COMPILE_ONLY", "0")) or None]
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        list(pool.map(compile_cubin, wanted, [arch] * len(wanted)))
    print(f"{len(wanted)} sources compiled for {arch} in {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main(sys.argv[1:])
