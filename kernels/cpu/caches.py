"""The caches of the core that runs this: what the sizes of blocks depend on. Plain Python, read once.

    Linux    /sys/devices/system/cpu/cpu0/cache      macOS    sysctl      elsewhere, or where neither says    FALLBACK

L1 and L2 are given whole: kernels run one thread a core. The last level is shared by the cores of a cluster, so what is
given is a core's part of it.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import NamedTuple


class Caches(NamedTuple):
    """Bytes of data cache for one core; ``l3`` is 0 where there is none."""

    l1: int
    l2: int
    l3: int


FALLBACK = Caches(32 << 10, 1 << 20, 2 << 20)
"""Where the system does not say: L1 and L2 of most servers."""
_LINUX = Path("/sys/devices/system/cpu/cpu0/cache")
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@cache
def caches() -> Caches:
    """The caches of a core of this machine.

    >>> caches().l1 <= caches().l2
    True
    """
    found = _macos() if sys.platform == "darwin" else linux(_LINUX)
    return found if found and 0 < found.l1 <= found.l2 else FALLBACK


def linux(root: Path) -> Caches | None:
    """What a directory ``index0, index1, ...`` of files ``level, type, size, shared_cpu_list`` says; None: nothing."""
    sizes, sharers = {}, {}
    try:
        for index in root.glob("index*"):
            level, kind, size, shared = (
                (index / name).read_text().strip() for name in ("level", "type", "size", "shared_cpu_list")
            )
            if kind != "Instruction":
                sizes[int(level)] = int(size[:-1]) * _UNITS[size[-1]] if size[-1] in _UNITS else int(size)
                sharers[int(level)] = processors(shared.split(","))
    except (OSError, ValueError, KeyError, IndexError):  # a container that hides them, or a kernel that leaves one out
        return None
    if not {1, 2} <= sizes.keys():
        return None
    cores = max(1, sharers.get(3, 1) // max(1, sharers[1]))  # hyperthreads share an L1, too
    return Caches(sizes[1], sizes[2], sizes.get(3, 0) // cores)


def processors(ranges: Iterable[str]) -> int:
    """How many processors a list of numbers and ranges names.

    >>> processors(["0-3", "8", "10-11"])
    7
    """
    ends = [[int(n) for n in part.split("-")] for part in ranges]
    return sum(end[-1] - end[0] + 1 for end in ends)


def _macos() -> Caches | None:
    """The caches of a performance core, whose cluster shares the L2; or of any core, before Apple's own processors."""
    library = ctypes.CDLL(None)

    def read(name: str) -> int:
        value, size = ctypes.c_int64(0), ctypes.c_size_t(8)
        failed = library.sysctlbyname(name.encode(), ctypes.byref(value), ctypes.byref(size), None, ctypes.c_size_t(0))
        return 0 if failed else value.value

    l1, l2 = read("hw.perflevel0.l1dcachesize"), read("hw.perflevel0.l2cachesize")
    if l1 and l2:
        return Caches(l1, l2 // max(1, read("hw.perflevel0.cpusperl2")), 0)
    cores = max(1, read("hw.physicalcpu"))
    return Caches(read("hw.l1dcachesize"), read("hw.l2cachesize"), read("hw.l3cachesize") // cores)
