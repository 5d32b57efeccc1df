"""Memory planned once: arrays that are never alive together share a place in one block.

step      0    1    2    3    4
a         |----|                        a and c lie at the same place, b beside them;
b              |---------|              d takes the whole block once both are gone
c                   |----|
d                             |
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

LINE = 64


class Life(NamedTuple):
    """Bytes that are needed from one step to another, both included."""

    nbytes: int
    first: int
    last: int


def offsets(lives: Sequence[Life]) -> tuple[list[int], int]:
    """Where each begins, and how long the block is: the largest first, each as low as those beside it allow.

    >>> offsets([Life(128, 0, 1), Life(64, 1, 2), Life(128, 2, 3)])
    ([0, 128, 0], 192)
    """
    found = [0] * len(lives)
    placed: list[int] = []
    total = 0
    for i in sorted(range(len(lives)), key=lambda i: (-lives[i].nbytes, lives[i].first)):
        life, at = lives[i], 0
        beside = [j for j in placed if lives[j].first <= life.last and life.first <= lives[j].last]
        for j in sorted(beside, key=lambda j: found[j]):
            if at + life.nbytes <= found[j]:
                break
            at = max(at, found[j] + -(-lives[j].nbytes // LINE) * LINE)
        found[i] = at
        placed.append(i)
        total = max(total, at + life.nbytes)
    return found, total


@cache
def machine_memory() -> int | None:
    """Bytes of memory of this machine, where the system says."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def check_fits(what: str, nbytes: int) -> None:
    """Raise ValueError for an array that this machine cannot hold. The system might grant it, and end the process when
    it is written to."""
    memory = machine_memory()
    if memory is not None and nbytes > memory:
        raise ValueError(f"{what} would take {nbytes:,} bytes, this machine has {memory:,}")


def block(nbytes: int) -> np.ndarray:
    """So many bytes, uninitialised, beginning at a page: neither a cache line nor, where pages are huge, more is
    shared with others."""
    check_fits("what lies between the nodes", nbytes)
    page = 4096
    raw = np.empty(nbytes + page, np.uint8)
    start = -raw.ctypes.data % page
    return raw[start : start + nbytes]
