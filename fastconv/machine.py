"""The machine that measurements belong to: its CPU, the vector features that kernels are compiled for, its cores."""

from __future__ import annotations

import os
import platform
from pathlib import Path

INTERESTING_FEATURES = (
    "avx512f",
    "avx512bf16",
    "avx512fp16",
    "amx-bf16",
    "avx2",
    "fma",
    "f16c",
    "neon",
    "fullfp16",
    "bf16",
    "sve",
)
"""CPU features that change which register tiles or instructions kernels use, in LLVM's spelling."""


def cpu_model() -> str:
    """The processor's name as the system gives it.

    >>> cpu_model() != ""
    True
    """
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(filter(None, names), platform.processor() or platform.machine() or "unknown")


def features() -> tuple[str, ...]:
    """The interesting features that kernels are compiled for: the host's, or those that Numba was told to assume.

    >>> set(features()) <= set(INTERESTING_FEATURES)
    True
    """
    from numba.core.registry import cpu_target  # knows NUMBA_CPU_NAME and NUMBA_CPU_FEATURES

    _, _, enabled = cpu_target.target_context.codegen().magic_tuple()
    return tuple(f for f in INTERESTING_FEATURES if f"+{f}" in enabled.split(","))


def fingerprint() -> dict[str, str | int]:
    """What two runs must share for the measurements of one to hold in the other.

    >>> list(fingerprint())
    ['cpu', 'features', 'cores']
    """
    return {"cpu": cpu_model(), "features": " ".join(features()), "cores": os.cpu_count() or 1}
