"""A small problem for every CUDA row, for compute-sanitizer: ``compute-sanitizer python -m tests.gpu.sample``.

No memory pool: every array is an allocation of its own, beyond whose end the sanitizer sees each access.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace

import numpy as np

from fastconv.kernels.cuda import module
from fastconv.problem import conv_problem, pool_problem, unpool_problem
from fastconv.registry import ROWS
from fastconv.testing import check_row
from tests.gpu.mirror import REHEARSAL, Mirror

SECONDS = 60
"""After which no row is begun: under the sanitizer each takes seconds."""
CONVS = (
    conv_problem("conv2d", 2, (1, 18, 9, 11), (20, 18, 3, 3), padding=1),
    conv_problem("conv2d", 2, (1, 16, 8, 8), (24, 16, 1, 1)),
    conv_problem("conv2d", 2, (1, 6, 9, 9), (6, 1, 3, 3), groups=6, padding=1),
)


def problems(op: str) -> list:
    """Problems of an operation, small."""
    if op == "conv":
        return list(CONVS)
    if op == "max_unpool":
        return [unpool_problem("unpool", 2, (1, 3, 5, 6), 2)]
    return [
        pool_problem("pool", 2, op, (1, 3, 9, 8), 3, stride=2, padding=1),
        pool_problem("pool", 2, op, (1, 3, 9, 10), 2),
    ]


def main() -> None:
    start, ran, left = time.perf_counter(), 0, []
    if not REHEARSAL:
        import cupy

        cupy.cuda.set_allocator(None)
    for row in ROWS:
        if row.device != "cuda":
            continue
        if time.perf_counter() > start + SECONDS:
            left.append(row.name)
            continue
        for problem in problems(row.op):
            for layout in ("channels_first", "channels_last"):
                asked = replace(problem, direction=row.direction, device="cuda", dtype="float32", layout=layout)
                if row.refuses(asked) is None:
                    with module.use(Mirror()):
                        check_row(row, asked, rng=np.random.default_rng(0), integers=True)
                    ran += 1
    print(f"{ran} problems ran" + (f"; no time for {', '.join(left)}" if left else ""))
    sys.exit(0 if ran else 1)


if __name__ == "__main__":
    main()
