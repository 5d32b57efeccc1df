"""What several test modules share: optional peers."""

import importlib
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from fastconv.kernels.cpu import blocking, planar_blocking
from fastconv.kernels.cuda import module
from fastconv.registry import Row
from fastconv.targets import resolve
from fastconv.testing import check_row

from .cuda_emulator.driver import Emulator, build, unavailable
from .guard import guarded

REQUIRED = frozenset(filter(None, os.environ.get("FASTCONV_REQUIRE", "").split(",")))
"""Names whose absence is a failure rather than a skip; ``.ci/run`` sets it."""


def require(name: str) -> Any:
    """Import an optional peer; without it the test is skipped, or fails where ``FASTCONV_REQUIRE`` names it."""
    try:
        return importlib.import_module(name)
    except ImportError:
        if name in REQUIRED:
            pytest.fail(f"FASTCONV_REQUIRE names {name}, which cannot be imported")
        reason = f"needs {name} (pip install {name}); FASTCONV_REQUIRE={name} makes this a failure"
        pytest.skip(reason, allow_module_level=True)


@contextmanager
def threads_for_small_problems(*elements: ModuleType, sizes: list[Any]) -> Iterator[None]:
    """Every problem on the CPU uses the threads it is given, and the modules' passes over ``elements`` too.

    How many threads a problem uses is part of what is cached. Plans belong to a geometry's correlation, ``sizes`` (of
    workspaces) to the geometry; with either left from outside, a kernel would run in a workspace of another one's size.
    """
    cuts = (blocking.phase_correlations, planar_blocking.joined_phases)
    caches = (blocking.correlation, blocking.padded, *cuts, *sizes)

    def forget() -> None:
        for cached in caches:
            cached.cache_clear()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocking, "THREAD_WORK", 1)
        for home in elements:
            patch.setattr(home, "THREAD_ELEMENTS", 1)
        forget()
        yield
    forget()


EMULATORS = (("forward", True), ("reverse", False), ("shuffled", False))
"""Orders of warps, and whether asynchronous copies land at once."""


def require_emulator() -> None:
    """Skip the test where CUDA kernels cannot be emulated, or fail where ``FASTCONV_REQUIRE`` names the emulator."""
    reason = unavailable()
    if reason is not None:
        if "emulator" in REQUIRED:
            pytest.fail(f"FASTCONV_REQUIRE names emulator: {reason}")
        pytest.skip(reason)


def require_nvrtc() -> None:
    """Skip the test where CUDA kernels cannot be compiled, or fail where ``FASTCONV_REQUIRE`` names nvrtc."""
    try:
        module.nvrtc()
    except ImportError as error:
        reason = f"needs CuPy and NVRTC (cupy-cuda13x, nvidia-cuda-nvrtc): {error}"
        if "nvrtc" in REQUIRED:
            pytest.fail(f"FASTCONV_REQUIRE names nvrtc: {reason}")
        pytest.skip(f"{reason}; FASTCONV_REQUIRE=nvrtc makes this a failure")


def device(row: Row, turn: int = 0) -> AbstractContextManager[Any]:
    """Where the row's kernel runs: CUDA kernels on the emulator, in one of its orders."""
    if row.device != "cuda":
        return nullcontext()
    require_emulator()
    _build_all(row)
    order, eager = EMULATORS[turn % len(EMULATORS)]
    return module.use(Emulator(order, eager=eager))


@cache
def _build_all(row: Row) -> None:
    """Build what the row may launch, several files at a time; wide offsets only where a test asks for them."""
    assert row.instances is not None
    build(i for i in resolve(row.instances)() if ("INDEX", "long long") not in i.defines)


def hold(row: Row, problem: Any, *, seed: int, integers: bool, threads: int = 1) -> None:
    """:func:`check_row` where the row's kernel runs. An emulated kernel's arrays end at guard pages."""
    turn = seed + sum(str(problem).encode())  # in every order some problems, in the same one on every run
    empty = guarded if row.device == "cuda" else np.empty
    with device(row, turn):
        check_row(row, problem, rng=np.random.default_rng(seed), integers=integers, threads=threads, empty=empty)
