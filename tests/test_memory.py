"""What a call needs of memory: input, output, and the workspace that it states; measured in a process of its own.

The peak of the resident size is the kernel's (``VmHWM`` of ``/proc/self/status``, reset by ``clear_refs``): Python's
own tracing would see neither a kernel's allocations nor pages that are reserved and never touched.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastconv.problem import ITEMSIZE, conv_problem
from fastconv.registry import rows_for
from fastconv.testing import cases

THREADS = 2
PER_THREAD = 16 << 20
SLACK = 1 << 20  # stacks of threads, allocator's rounding
ROWS = [r for r in rows_for("conv", "forward", "cpu") if r.family != "reference" and "float32" in r.dtypes]
LEAN = [r for r in ROWS if r.family in ("direct", "im2col")]

PROGRAM = """
import json, sys
import numpy as np
import fastconv

def status(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith(name))

def growth(call):
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak starts again here
    before = status("VmRSS")
    call()
    return status("VmHWM") - before

fastconv.set_num_threads(2)
algorithm, precision, shape, filters, kernel, stride, padding, groups = json.loads(sys.argv[1])
allowed = fastconv.options(precision=precision)
allowed.__enter__()
x, w = np.ones(shape, np.float32), np.ones((filters, shape[1] // groups, kernel, kernel), np.float32)
options = {"stride": stride, "padding": padding, "groups": groups, "algorithm": algorithm}
plan = fastconv.plan_conv2d(x.shape, w, **options)
out = np.ones(plan.output_shape, np.float32)
tiny = fastconv.plan_conv2d((1, shape[1], kernel + 1, kernel + 1), w, **options)
tiny(x[:1, :, : kernel + 1, : kernel + 1])  # compiled, threads started
first = growth(lambda: plan(x, out=out))
second = growth(lambda: plan(x, out=out))
unprepared = growth(lambda: fastconv.conv2d(x, w, out=out, **options))
result = growth(lambda: fastconv.conv2d(x, w, **options)) - out.nbytes
control = growth(lambda: np.ones(1 << 22, np.float32))
print(json.dumps([control, plan.workspace_bytes, first, second, unprepared, result]))
"""
LAYERS = {
    "3×3": ((2, 64, 112, 112), 128, 3, 1, 1, 1),
    "5×5": ((2, 64, 56, 56), 64, 5, 1, 2, 1),
    "first layer": ((2, 3, 224, 224), 64, 7, 2, 3, 1),
    "pointwise": ((2, 256, 56, 56), 64, 1, 1, 0, 1),
    "depthwise": ((2, 64, 112, 112), 64, 3, 1, 1, 64),
}


def problem(layer):
    shape, filters, kernel, stride, padding, groups = LAYERS[layer]
    weights = (filters, shape[1] // groups, kernel, kernel)
    return conv_problem("conv2d", 2, shape, weights, stride=stride, padding=padding, groups=groups)


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="reads Linux's accounts of memory")
@pytest.mark.parametrize(
    ("row", "layer"),
    [
        pytest.param(r, name, id=f"{r.algorithm}-{name}")
        for r in ROWS
        for name in LAYERS
        if r.refuses(problem(name)) is None
    ],
)
def test_a_call_takes_the_memory_that_it_states(row, layer):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps([row.algorithm, row.precision, *LAYERS[layer]])],
        capture_output=True, text=True, cwd=Path(os.sep), env={**os.environ, "MALLOC_TOP_PAD_": "0"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    control, stated, first, second, unprepared, result = json.loads(done.stdout)
    assert control > 15 << 20  # 16 MiB, were they allocated, would be seen
    assert first <= stated + SLACK
    assert second <= SLACK  # nothing is allocated after the first call
    assert unprepared <= stated + SLACK
    assert result <= SLACK  # the output itself is counted apart; the workspace is kept from the call before


@pytest.mark.parametrize("row", LEAN, ids=lambda row: row.algorithm)
def test_stated_workspaces_hold_the_limit(row):
    """On every case of the suites: 16 MiB a thread, and the packed weights where a call packs them itself."""
    for case in cases(op="conv"):
        for batch in case.batches("cpu"):
            for prepared in (False, True):
                problem = case.problem(batch, prepared=prepared)
                if row.refuses(problem) is None:
                    weights = 0 if prepared else packed_bytes(problem)
                    stated = row.workspace_bytes(problem, THREADS)
                    assert stated <= THREADS * PER_THREAD + weights, (case.name, batch, prepared, stated / 2**20)


def packed_bytes(problem):
    """Weights as tiles read them: channels of each group rounded up to a tile's columns, at most."""
    g = problem.geometry
    k, c, *taps = g.weight_shape
    filters = -(-(k // g.groups) // 64) * 64 * g.groups
    total = filters * c * ITEMSIZE[problem.dtype]
    for n in taps:
        total *= n
    return total
