"""The driver that the tests install: builds a ``.cu`` file with g++ and runs its kernels on NumPy arrays.

With ``FASTCONV_GPU=1`` a GPU stands in its place (:class:`tests.gpu.mirror.Mirror`), so that the same tests run there.

Linux on x86-64 with g++ 10 or later; :func:`unavailable` says what is missing elsewhere. What is built is kept in
``cache_dir() / "emulator"``, each library named by a digest of its source, the emulator's headers and the options.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from fastconv.kernels.cpu.arrays import address
from fastconv.kernels.cpu.compile import cache_dir
from fastconv.kernels.cuda import module
from fastconv.kernels.cuda.module import Grid, Instance, Launch

ON_GPU = os.environ.get("FASTCONV_GPU") == "1"
"""Whether tests that would emulate kernels run them on a GPU."""

HEADERS = Path(__file__).resolve().parent
OPTIONS = (
    "-O2", "-std=c++17", "-march=native", "-ffp-contract=off", "-fPIC", "-shared", "-pthread", "-mtls-dialect=gnu2",
    "-fno-strict-aliasing", "-Wno-unknown-pragmas",
    "-fsanitize=alignment", "-nodefaultlibs",  # undefined.h in the place of g++'s library
)  # fmt: skip
UNDEFINED = "-fsanitize=bounds,shift,signed-integer-overflow"
"""A further option, for which a file is built in twice the time: what else undefined.h can show."""
LIBRARIES = ("-lpthread", "-lm", "-lc", "-lgcc")
ORDERS = {"forward": 0, "reverse": 1, "shuffled": 20011}
_KERNEL = re.compile(r"^KERNEL\([^)]*\)\s+(\w+)\s*\(", re.MULTILINE)


@cache
def unavailable() -> str | None:
    """Why kernels cannot be emulated here, or None."""
    if ON_GPU:
        return None
    if not sys.platform.startswith("linux") or platform.machine() != "x86_64":
        return f"the CUDA emulator switches stacks of x86-64 Linux, not of {platform.machine()} {platform.system()}"
    if shutil.which("g++") is None:
        return "the CUDA emulator needs g++, which is not installed"
    return None


class EmulatedError(RuntimeError):
    """A kernel did what would be an error, or undefined, on a GPU."""


class Emulator:
    """A driver for :func:`fastconv.kernels.cuda.module.use`.

    Parameters
    ----------
    order : in which warps run: "forward", "reverse" or "shuffled". A kernel that needs no luck gives the same bits.
    eager : whether asynchronous copies land at once, instead of as late as the waits allow.
    arch, multiprocessors, shared_bytes_per_block, l2_bytes : the facts that launchers look at.
    folder : where the ``.cu`` files are.
    extra : further options of g++.
    """

    def __new__(cls, *args: Any, **options: Any) -> Any:
        if ON_GPU and cls is Emulator:
            from tests.gpu.mirror import Mirror

            return Mirror(*args, **options)
        return super().__new__(cls)

    def __init__(
        self, order: str = "forward", *, eager: bool = False, arch: str = "sm_90a", multiprocessors: int = 4,
        shared_bytes_per_block: int = 227 << 10, l2_bytes: int = 50 << 20, folder: Path = module.FOLDER,
        extra: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        self.order = (ctypes.c_uint * 2)(ORDERS[order], eager)
        self.arch, self.multiprocessors = arch, multiprocessors
        self.shared_bytes_per_block, self.l2_bytes = shared_bytes_per_block, l2_bytes
        self.folder, self.extra = folder, extra
        self.launches: list[str] = []
        """Symbols launched, in order."""

    def address(self, array: Any) -> int:
        return address(array) if isinstance(array, np.ndarray) else int(array.data.ptr)

    def function(self, instance: Instance) -> Launch:
        library = _load(_library(instance, self.folder, self.extra))
        launch = getattr(library, f"launch_{instance.symbol}")
        taken = _sizes(library, instance.symbol)

        def run(grid: Grid, block: Grid, args: Sequence[Any], shared_bytes: int) -> None:
            self._check(instance, taken, grid, block, args, shared_bytes)
            values = [np.asarray(a) for a in args]
            addresses = (ctypes.c_void_p * len(values))(*(v.ctypes.data for v in values))
            message = ctypes.create_string_buffer(512)
            threads = len(os.sched_getaffinity(0))
            self.launches.append(instance.symbol)
            sizes = (ctypes.c_uint * 3)(*grid), (ctypes.c_uint * 3)(*block)
            if launch(*sizes, ctypes.c_size_t(shared_bytes), addresses, self.order, threads, message):
                raise EmulatedError(f"{instance.symbol}: {message.value.decode()}")

        return run

    def _check(
        self, instance: Instance, taken: list[int], grid: Grid, block: Grid, args: Sequence[Any], shared_bytes: int
    ) -> None:
        """What the CUDA driver would refuse, or silently do wrong."""
        problems = []
        given = [np.asarray(a).nbytes for a in args]
        if not all(_by_value(a) for a in args):
            kinds = [type(a).__name__ for a in args]
            problems.append(f"arguments must be NumPy scalars, and structs arrays of one element; got {kinds}")
        elif given != taken:
            problems.append(f"arguments have {given} bytes, the kernel takes {taken}")
        if min(grid) < 1 or grid[0] > module.MAX_GRID or max(grid[1:]) > 65535:
            problems.append(f"the grid is {grid}")
        if not 1 <= np.prod(block) <= instance.threads:
            problems.append(f"the block is {block}, the instance has {instance.threads} threads")
        if shared_bytes > self.shared_bytes_per_block:
            problems.append(f"{shared_bytes} bytes of shared memory, there are {self.shared_bytes_per_block}")
        if problems:
            raise EmulatedError(f"{instance.symbol}: {'; '.join(problems)}")


def _by_value(argument: Any) -> bool:
    """Whether CuPy takes an argument as it is meant."""
    if isinstance(argument, np.ndarray):
        return argument.size == 1 and argument.dtype.names is not None
    return isinstance(argument, np.generic) and not isinstance(argument, np.void)


def build(instances: Iterable[Instance], folder: Path = module.FOLDER) -> None:
    """Compile what is not yet compiled, as many at a time as there are CPUs."""
    if ON_GPU:
        return
    texts = {_library_text(i, folder): i for i in instances}
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(lambda i: _library(i, folder, ()), texts.values()))


@cache
def _library_text(instance: Instance, folder: Path) -> str:
    text = module.source(instance.stem, instance.defines, folder)
    wrappers = "".join(
        f'extern "C" int launch_{name}(const unsigned *g, const unsigned *b, size_t s, void **a, const unsigned *o, '
        f"int t, char *m) {{ return emulator::launch({name}, g, b, s, a, o, t, m); }}\n"
        f'extern "C" int sizes_{name}(size_t *out) {{ return emulator::sizes({name}, out); }}\n'
        for name in _KERNEL.findall(text)
    )
    return f'#define FASTCONV_EMULATOR\n#include "cuda.h"\n{text}\n{wrappers}'


@cache
def _common() -> str:
    """What every digest holds besides the source."""
    headers = "".join(path.read_text("utf-8") for path in sorted(HEADERS.glob("*.h")))
    version = subprocess.run(["g++", "-dumpfullversion"], capture_output=True, text=True, check=True).stdout
    flags = re.search(r"^flags.*$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return repr((headers, version, OPTIONS, flags and flags[0]))


_locks: dict[str, threading.Lock] = {}


@cache
def _library(instance: Instance, folder: Path, extra: tuple[str, ...]) -> Path:
    text = _library_text(instance, folder)
    digest = hashlib.sha256(repr((text, _common(), extra)).encode()).hexdigest()[:40]
    path = cache_dir() / "emulator" / f"{instance.stem}-{digest}.so"
    with _locks.setdefault(digest, threading.Lock()):
        if path.exists():
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            unit, built = Path(scratch, f"{instance.stem}.cpp"), Path(scratch, "built.so")
            unit.write_text(text, "utf-8")
            command = ["g++", *OPTIONS, *extra, f"-I{HEADERS}", str(unit), "-o", str(built), *LIBRARIES]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"{instance.stem}.cu for the emulator, {instance.defines}:\n{done.stderr[:6000]}")
            built.rename(path)
    return path


@cache
def _load(path: Path) -> ctypes.CDLL:
    return ctypes.CDLL(str(path))


@cache
def _sizes(library: ctypes.CDLL, symbol: str) -> list[int]:
    out = (ctypes.c_size_t * 64)()
    return list(out[: getattr(library, f"sizes_{symbol}")(out)])
