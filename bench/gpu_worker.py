"""One process on the GPU: ``python -m bench.gpu_worker REQUEST LOG``, started by bench/gpu.py.

It does the jobs that the request lists, until the request's deadline, and writes a line of JSON before and after each:
a kernel that ends the process loses one job, and bench/gpu.py starts another process for those left.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from fastconv.testing import Case, cases

from .gpu_clock import DeviceClock, HostClock, yardstick
from .gpu_libraries import Arrays, Ready, channels_first, fastconv, laid, peer, shapes
from .tasks import TOLERANCE, Task

REHEARSAL = os.environ.get("FASTCONV_GPU_REHEARSAL") == "1"
TINY = tuple(
    Case("rehearsal", op, 8, (6, 7), filters, (3, 3), (1, 1), (1, 1), (1, 1))
    for op, filters in (("conv", 8), ("max_pool", 8), ("avg_pool", 8))
)
"""What a rehearsal measures instead of the suites."""
ROTATE = 128 << 20
"""Bytes that the sets of arrays used in turn have at least, together: twice the largest L2 cache."""
SETS = 8
SECONDS = 0.06
"""Time spent on a measurement."""
SUMS = 1e-3
"""A weight gradient sums millions of products: PyTorch's own error is then a few times that of a convolution."""
OVERHEAD_CALLS = 300


def case_named(name: str) -> Case:
    return next(case for case in (*cases(), *TINY) if case.name == name)


def describe() -> dict[str, Any]:
    """The device and the versions of what is compared."""
    import cupy

    import fastconv as fc

    found: dict[str, Any] = {"fastconv": fc.__version__, "numpy": np.__version__, "python": sys.version.split()[0]}
    if REHEARSAL:
        return {"device": "none: a rehearsal on the emulator", "versions": found}
    runtime = cupy.cuda.runtime
    properties = runtime.getDeviceProperties(runtime.getDevice())
    found |= {
        "cupy": cupy.__version__,
        "CUDA runtime": runtime.runtimeGetVersion(),
        "driver": runtime.driverGetVersion(),
    }
    with suppress(Exception):  # as in _torch
        import torch

        found |= {"torch": torch.__version__, "cuDNN": torch.backends.cudnn.version()}
    name = properties["name"]
    return {
        "device": name.decode() if isinstance(name, bytes) else str(name),
        "multiprocessors": properties["multiProcessorCount"],
        "l2_bytes": properties["l2CacheSize"],
        "memory_bytes": properties["totalGlobalMem"],
        "versions": found,
    }


class Worker:
    """What the jobs share: CuPy, PyTorch where it finds the GPU, the clock."""

    def __init__(self) -> None:
        self.torch: Any = None
        if REHEARSAL:
            from fastconv.kernels.cuda import module
            from tests import fake_cupy

            sys.modules["cupy"] = fake_cupy.module()
            self.driver = module.use(fake_cupy.Emulated())
            self.driver.__enter__()
            self.clock: Any = HostClock()
        else:
            self.clock = DeviceClock()
            self.torch = _torch()
        import cupy

        self.cupy: Any = cupy

    def job(self, job: dict[str, Any]) -> dict[str, Any]:
        if job["kind"] == "describe":
            return describe()
        if job["kind"] == "ceilings":
            return self.ceilings()
        if job["kind"] == "overhead":
            return self.overhead()
        return self.measure(Task(case_named(job["case"]), job["batch"], job["direction"], job["layout"]))

    # --- ceilings and overhead ---------------------------------------------------------------------------------

    def ceilings(self) -> dict[str, float]:
        """TFLOP/s of multiply-adds alone, GB/s (read plus written) of copies of 2 GiB by a kernel and by the driver."""
        if REHEARSAL:
            return {"TFLOP/s": 1e-3, "GB/s": 10.0}
        cupy = self.cupy
        processors = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.runtime.getDevice())["multiProcessorCount"]
        out, rounds, blocks = cupy.zeros(1, np.float32), 20_000, processors * 8
        loop, copy = yardstick("multiply_adds"), yardstick("copy")
        arguments = (np.uint64(out.data.ptr), np.int32(rounds))
        seconds = self.clock.time(lambda: loop((blocks, 1, 1), (256, 1, 1), arguments, 0), 0.2).median
        n = 1 << 27
        source, target = (cupy.full(4 * n, i, np.float32) for i in (1, 2))
        vectors = (np.uint64(source.data.ptr), np.uint64(target.data.ptr), np.int64(n))
        by_kernel = self.clock.time(lambda: copy((processors * 32, 1, 1), (256, 1, 1), vectors, 0), 0.1).median
        by_driver = self.clock.time(lambda: target.data.copy_from_device_async(source.data, source.nbytes), 0.1).median
        moved = 2 * source.nbytes
        return {
            "TFLOP/s": 2 * 16 * rounds * blocks * 256 / seconds / 1e12,
            "GB/s": moved / min(by_kernel, by_driver) / 1e9,
            "GB/s, kernel": moved / by_kernel / 1e9,
            "GB/s, driver": moved / by_driver / 1e9,
        }

    def overhead(self) -> dict[str, float]:
        """Microseconds of the host for one call of a convolution so small that the GPU is never behind."""
        import fastconv as fc

        cupy = self.cupy
        x, w = (cupy.random.standard_normal(shape, dtype=np.float32) for shape in ((1, 8, 8, 8), (8, 8, 3, 3)))
        plan = fc.plan_conv2d(x.shape, w, padding=1)
        y = cupy.empty(plan.output_shape, np.float32)
        pooled = fc.max_pool2d(x, 2)
        calls: dict[str, Callable[[], Any]] = {
            "plan(x, out=y)": lambda: plan(x, out=y),
            "plan(x)": lambda: plan(x),
            "conv2d(x, w)": lambda: fc.conv2d(x, w, padding=1),
            "max_pool2d(x, 2, out=y)": lambda: fc.max_pool2d(x, 2, out=pooled),
            "grad.conv2d_weight(x, shape, dy)": lambda: fc.grad.conv2d_weight(x, w.shape, y, padding=1),
        }
        if self.torch is not None:
            a, b = (self.torch.from_dlpack(array) for array in (x, w))
            calls["torch conv2d"] = self.torch.no_grad()(lambda: self.torch.nn.functional.conv2d(a, b, padding=1))
        found = {}
        for name, call in calls.items():
            best = float("inf")
            for _ in range(2 if REHEARSAL else 6):
                call()
                cupy.cuda.Device().synchronize()
                start = time.perf_counter()
                for _ in range(3 if REHEARSAL else OVERHEAD_CALLS):
                    call()
                best = min(best, (time.perf_counter() - start) / (3 if REHEARSAL else OVERHEAD_CALLS))
                cupy.cuda.Device().synchronize()
            found[name] = best * 1e6
        return found

    # --- tasks -------------------------------------------------------------------------------------------------

    def arrays(self, task: Task) -> list[Arrays]:
        """Sets of standard normal numbers, more than the L2 cache holds where several fit."""
        wanted = {name: laid(task, name, shape) for name, shape in shapes(task).items()}
        nbytes = 4 * sum(int(np.prod(shape)) for shape in wanted.values())
        count = 1 if REHEARSAL else max(1, min(SETS, ROTATE // nbytes + 1))
        normal = self.cupy.random.standard_normal
        sets = [{name: normal(shape, dtype=np.float32) for name, shape in wanted.items()} for _ in range(count)]
        for s in sets[1:]:
            if "w" in s:
                s["w"] = sets[0]["w"]  # weights stay the same, as in a network
        return sets

    def measure(self, task: Task) -> dict[str, Any]:
        """Both libraries on one task, the results compared before they are timed."""
        sets = self.arrays(task)
        ours = fastconv(task, sets)
        found: dict[str, Any] = {"kernel": ours.note}
        theirs, why = self.peer(task, sets)
        if why:
            found["no cuDNN"] = why
        if theirs is not None:
            error = self.difference(task, ours, theirs)
            if not error <= (SUMS if task.direction == "grad_weight" else TOLERANCE):
                return {**found, "failed": f"differs from PyTorch by {error:.2g} of the largest element"}
            found["difference"] = error
        for name, ready in (("seconds", ours), ("cuDNN seconds", theirs)):
            if ready is not None:
                found[name], found[f"{name}, spread"] = self.clock.time(ready, SECONDS)
        return found

    def peer(self, task: Task, sets: list[Arrays]) -> tuple[Ready | None, str]:
        """PyTorch on the task, or why not."""
        if REHEARSAL:  # another kernel stands for it
            return fastconv(task, sets, "direct"), ""
        if self.torch is None:
            return None, "PyTorch with CUDA is not installed"
        if task.layout == "channels_last" and task.case.rank == 1:
            return None, "PyTorch has no channels-last format in one dimension"
        try:
            ready = peer(task, sets, self.torch.from_dlpack)
            ready.first()
        except Exception as error:  # out of memory, or something that it cannot do
            return None, f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
        return ready, ""

    def difference(self, task: Task, ours: Ready, theirs: Ready) -> float:
        """The largest difference on the first set of arrays, as a share of the largest element."""
        xp, got, expected = self.cupy, channels_first(task, ours.first()), theirs.first()
        if REHEARSAL:
            expected = channels_first(task, expected)
        else:
            expected = xp.from_dlpack(expected.detach())
        if got.shape != expected.shape:
            return float("inf")
        worst = float(xp.abs(got - expected).max()) / max(float(xp.abs(expected).max()), 1e-30)
        return worst if np.isfinite(worst) else float("inf")

    def free(self) -> None:
        """Give the memory of the last tasks back."""
        gc.collect()
        if not REHEARSAL:
            self.cupy.get_default_memory_pool().free_all_blocks()
            if self.torch is not None:
                self.torch.cuda.empty_cache()


def _torch() -> Any:
    """PyTorch, told to let cuDNN look for its fastest algorithms, without TF32; None without it or its CUDA."""
    try:
        import torch

        if not torch.cuda.is_available():
            return None
    except Exception as error:  # ImportError, or what a library that it loads says of another one's version
        print(f"without PyTorch: {error}", file=sys.stderr)
        return None
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    return torch


def main(request: Path, log: Path) -> None:
    given = json.loads(request.read_text())
    worker, case, parent = Worker(), None, os.getppid()
    with log.open("a", buffering=1) as lines:
        for number, job in given["jobs"]:
            if time.time() > given["deadline"] or os.getppid() != parent:  # the time is over, or bench/gpu.py has ended
                break
            if job.get("case") != case:
                worker.free()
                case = job.get("case")
            print(json.dumps({"started": number}), file=lines)
            start = time.perf_counter()
            try:
                found = worker.job(job)
            except Exception as error:
                text = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
                print(json.dumps({"done": number, "result": {"failed": text}}), file=lines)
                worker.cupy.cuda.Device().synchronize()  # fails after a device error: begin anew in another process
                worker.free()
                continue
            if job["kind"] == "task":
                found["took"] = time.perf_counter() - start
            print(json.dumps({"done": number, "result": found}), file=lines)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
