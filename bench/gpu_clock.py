"""Time on a GPU: events around each call, queued behind a wait so that the host's own time is not measured."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastconv.kernels.cuda import module
from fastconv.kernels.cuda.module import Instance, Launch

FOLDER = Path(__file__).resolve().parent
QUEUE = 400
"""Calls queued at most: a stream takes about a thousand launches before the host waits, and a call may be a few."""
LONGEST_WAIT = 0.05
CYCLES = 2e9
"""A second of the wait, about: CUDA 13 no longer tells the clock rate."""


class Times(NamedTuple):
    """Seconds of one call: their median, and how far the slower half's middle lies above it."""

    median: float
    spread: float

    @classmethod
    def of(cls, seconds: list[float]) -> Times:
        median = statistics.median(seconds)
        return cls(median, sorted(seconds)[len(seconds) * 3 // 4] / median - 1 if median else 0.0)


YARDSTICKS = {symbol: Instance("peak", symbol, threads=256) for symbol in ("multiply_adds", "copy", "spin")}
"""The kernels of ``peak.cu``."""


def yardstick(symbol: str) -> Launch:
    """One of them, for CuPy's current device."""
    import cupy

    return module.Device(cupy.cuda.runtime.getDevice(), FOLDER).function(YARDSTICKS[symbol])


class DeviceClock:
    """Times calls that work on CuPy's null stream, which is PyTorch's default stream too."""

    def __init__(self) -> None:
        import cupy

        self.cuda = cupy.cuda
        self.spin = yardstick("spin")

    def event(self) -> Any:
        event = self.cuda.Event()
        event.record()
        return event

    def time(self, call: Callable[[], Any], seconds: float, least: int = 7) -> Times:
        """Median over at least ``least`` calls and about ``seconds``."""
        for _ in range(2):  # the first compiles, allocates and lets a library look for its fastest algorithm
            call()
        self.cuda.runtime.deviceSynchronize()
        first, start = self.event(), time.perf_counter()
        for _ in range(3):
            call()
        issue = (time.perf_counter() - start) / 3
        last = self.event()
        last.synchronize()
        once = self.cuda.get_elapsed_time(first, last) / 3e3
        calls = max(least, min(int(seconds / max(once, 1e-6)), QUEUE, int(LONGEST_WAIT / max(issue, 1e-6))))
        if issue > 0.3 * once:
            wait = min(1.5 * issue * calls + 1e-4, 2 * LONGEST_WAIT)
            self.spin((1, 1, 1), (1, 1, 1), (np.int64(wait * CYCLES),), 0)
        events = [self.event()]
        for _ in range(calls):
            call()
            events.append(self.event())
        events[-1].synchronize()
        return Times.of([self.cuda.get_elapsed_time(a, b) / 1e3 for a, b in pairwise(events)])


class HostClock:
    """The rehearsal's: the host's time of a few calls."""

    def time(self, call: Callable[[], Any], seconds: float, least: int = 1) -> Times:
        del seconds
        found = []
        for _ in range(least):
            start = time.perf_counter()
            call()
            found.append(time.perf_counter() - start)
        return Times.of(found)
