"""What is measured: one direction of one case at one batch size, its data, the check of a result, the timing."""

from __future__ import annotations

import gc
import statistics
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastconv.kernels.geometry import ConvGeometry
from fastconv.problem import Problem
from fastconv.testing import Case

Array = np.ndarray[Any, np.dtype[Any]]

TOLERANCE = 1e-4
"""A result counts as right if no element is off by more than this share of the largest one. float32 Winograd stays
below 2e-5, half-precision arithmetic does not, and a forgotten tap is off by 1e-2 and more."""


class WrongResult(Exception):
    """A library's answer differs from the reference: its time means nothing."""


@dataclass(frozen=True)
class Task:
    """One measurement to be made. The direction ``call`` is a forward convolution as one unprepared function call,
    weights packed and the output allocated inside; ``forward`` may do both beforehand."""

    case: Case
    batch: int
    direction: str
    layout: str

    @property
    def name(self) -> str:
        last = ", channels last" if self.layout == "channels_last" else ""
        return f"{self.case.name}, batch {self.batch}, {self.direction}{last}"

    @property
    def problem(self) -> Problem:
        direction = "forward" if self.direction == "call" else self.direction
        return self.case.problem(self.batch, direction=direction, layout=self.layout)

    @property
    def work(self) -> tuple[float, str]:
        """Floating-point operations of the direct algorithm, or for a pooling the bytes of its input and output."""
        return (self.problem.flops, "GFLOP/s") if self.case.op == "conv" else (self.problem.bytes, "GB/s")


def memory_bound(case: Case) -> bool:
    """Poolings and depthwise convolutions: their bytes take longer than their arithmetic."""
    return case.op != "conv" or case.groups == case.channels > 1


def inputs(task: Task) -> dict[str, Array]:
    """Standard normal x, w and dy, as far as the direction needs them, channels first: the same in every process.

    A weight gradient is given w too, because PyTorch differentiates a forward pass with it.
    """
    g = task.problem.geometry
    rng = np.random.default_rng(zlib.crc32(f"{task.case.name} {task.batch}".encode()))
    shapes = {"x": g.input_shape, "dy": g.output_shape}
    if isinstance(g, ConvGeometry):
        shapes["w"] = g.weight_shape
        needed = {"forward": "x w", "call": "x w", "grad_input": "dy w", "grad_weight": "x dy w"}
    else:
        needed = {"forward": "x", "grad_input": "x dy"}
    return {name: rng.standard_normal(shapes[name], np.float32) for name in needed[task.direction].split()}


def check(task: Task, result: Array, truth: Array) -> None:
    """Raise :class:`WrongResult` unless ``result``, channels first, is what ``libraries.expected`` says."""
    g = task.problem.geometry
    shapes = {
        "forward": g.output_shape,
        "call": g.output_shape,
        "grad_input": g.input_shape,
        "grad_weight": truth.shape,
    }
    if result.shape != shapes[task.direction]:
        raise WrongResult(f"wrong shape {result.shape}, expected {shapes[task.direction]}")
    seen = result if task.direction == "grad_weight" else result[[0, -1]]
    error = float(np.abs(seen - truth).max() / np.abs(truth).max())
    if not error <= TOLERANCE:
        raise WrongResult(f"wrong result: off by {error:.2g} of the largest element, {TOLERANCE:g} is allowed")


def median_seconds(call: Callable[[], Any], seconds: float) -> float:
    """The median time of a call: at least 3 of them and for about ``seconds``, after a warm-up of a quarter of that."""
    for budget, least in ((seconds / 4, 1), (seconds, 3)):
        times: list[float] = []
        gc.disable()
        end = time.perf_counter() + budget
        while len(times) < least or time.perf_counter() < end:
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        gc.enable()
    return statistics.median(times)
