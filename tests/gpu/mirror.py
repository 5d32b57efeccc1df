"""A GPU in the place of the emulator: its kernels run there, while their arrays stay NumPy's.

Every array whose address a launcher asks for is copied into memory of the device, a mirror, between two zones of
NaNs; after every launch what changed in a mirror is copied back, and changes in a zone, or in an array that is
read-only, are errors. Slow, and right for any strides, so that every test written for the emulator runs on a GPU:

    FASTCONV_GPU=1 python -m pytest tests/test_registry.py tests/kernels/test_cuda_conv.py -k cuda

With ``FASTCONV_GPU_REHEARSAL=1`` as well the emulator plays the device, to test this file without one.
"""

from __future__ import annotations

import ctypes
import os
import unittest
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from fastconv.arrays import span
from fastconv.kernels.cpu.arrays import address
from fastconv.kernels.cuda import module
from fastconv.kernels.cuda.module import Device, Driver, Grid, Instance, Launch
from tests.cuda_emulator.driver import HEADERS, EmulatedError, Emulator

REHEARSAL = os.environ.get("FASTCONV_GPU_REHEARSAL") == "1"
ZONE = 512
"""Bytes of NaNs before and after a mirror."""
LARGEST = 1 << 30
"""Bytes of an array that is mirrored at most: it is copied at every launch."""
LINE = 256
"""An array lies on its mirror as it lies in memory, modulo this: what a kernel does with an odd address shows."""


class _Emulated(Emulator):
    """The emulator itself, also where its name stands for a GPU."""


class Held:
    """An array's bytes [start, start + size) on the host, and their mirror."""

    def __init__(self, array: np.ndarray, start: int, size: int) -> None:
        self.array, self.start, self.size = array, start, size
        self.before = ZONE + start % LINE
        self.total = self.before + size + ZONE
        self.bytes = np.full(self.total, 0xFF, np.uint8)
        """What the mirror held at the last look, zones included."""
        self.allocate()

    def host(self) -> np.ndarray:
        """The array's bytes where they lie."""
        return np.frombuffer((ctypes.c_char * self.size).from_address(self.start), np.uint8)

    def upload(self) -> None:
        """Make the mirror what the array is now."""
        self.bytes[self.before : self.before + self.size] = self.host()
        self.write(self.bytes)

    def download(self, who: str) -> None:
        """Make the array what the mirror is now, and complain where nothing should have changed."""
        now = self.read()
        changed = np.flatnonzero(now != self.bytes)
        if not changed.size:
            return
        inside = changed[(changed >= self.before) & (changed < self.before + self.size)]
        if inside.size < changed.size:
            raise EmulatedError(f"{who}: {changed.size - inside.size} bytes written outside of an array")
        if not self.array.flags.writeable:
            raise EmulatedError(f"{who}: {inside.size} bytes written into a read-only array")
        self.host()[inside - self.before] = now[inside]
        self.bytes = now

    # the device's memory

    def allocate(self) -> None:
        import cupy

        self.memory = cupy.cuda.alloc(self.total)
        self.base: int = self.memory.ptr

    def write(self, data: np.ndarray) -> None:
        self.memory.copy_from_host(ctypes.c_void_p(data.ctypes.data), data.nbytes)

    def read(self) -> np.ndarray:
        data = np.empty(self.total, np.uint8)
        self.memory.copy_to_host(ctypes.c_void_p(data.ctypes.data), data.nbytes)
        return data


class HostHeld(Held):
    """The rehearsal's: a mirror in the host's memory."""

    def allocate(self) -> None:
        self.memory = np.empty(self.total + LINE, np.uint8)
        start = -self.memory.ctypes.data % LINE
        self.memory = self.memory[start : start + self.total]
        self.base = self.memory.ctypes.data

    def write(self, data: np.ndarray) -> None:
        self.memory[:] = data

    def read(self) -> np.ndarray:
        return self.memory.copy()


@cache
def _device(folder: Path) -> Driver:
    if REHEARSAL:
        return _Emulated(folder=folder, multiprocessors=132, l2_bytes=60 << 20)  # an H200's
    import cupy

    return Device(cupy.cuda.runtime.getDevice(), folder)


class Mirror:
    """A driver for :func:`fastconv.kernels.cuda.module.use`; takes what the emulator takes. Facts of the device are the
    GPU's own, except those that are given."""

    def __init__(
        self, order: str = "forward", *, eager: bool = False, folder: Path = module.FOLDER,
        extra: tuple[str, ...] = (), **facts: Any,
    ) -> None:  # fmt: skip
        if folder not in (module.FOLDER, HEADERS):
            raise unittest.SkipTest("a planted mistake, which on a GPU could end the process")
        self.device = _device(folder)
        for name in ("arch", "multiprocessors", "shared_bytes_per_block", "l2_bytes"):
            setattr(self, name, facts.get(name, getattr(self.device, name)))
        self.launches: list[str] = []
        """Symbols launched, in order."""
        self._held: dict[tuple[int, int], Held] = {}

    def address(self, array: Any) -> int:
        """The address of the array's mirror, which is now equal to the array."""
        first, last = span(array.shape, array.strides, array.itemsize)
        start, size = address(array) + first, last - first
        if size > LARGEST:
            raise unittest.SkipTest(f"an array over {size >> 30} GiB; tests/gpu has such arrays on the device itself")
        held = self._held.get((start, size))
        if held is None or held.array.flags.writeable != array.flags.writeable:
            held = self._held[start, size] = (HostHeld if REHEARSAL else Held)(array, start, size)
        held.upload()
        return held.base + held.before - first

    def function(self, instance: Instance) -> Launch:
        launch = self.device.function(instance)

        def run(grid: Grid, block: Grid, args: Sequence[Any], shared_bytes: int) -> None:
            wrong = [type(a).__name__ for a in args if not isinstance(a, np.generic | np.ndarray)]
            if wrong:
                raise EmulatedError(f"{instance.symbol}: arguments are {', '.join(wrong)}")
            self.launches.append(instance.symbol)
            launch(grid, block, args, shared_bytes)
            if not REHEARSAL:
                import cupy

                cupy.cuda.runtime.deviceSynchronize()
            for held in self._held.values():
                held.download(instance.symbol)

        return run
