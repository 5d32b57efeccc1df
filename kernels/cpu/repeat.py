"""A call's launches, made again for other arrays.

What a call launches, and where in its arrays, follows from their shapes and strides. Noted once (``sequence.record``),
a further call only adds those places to its own arrays' addresses, and skips the Python that every launch otherwise
takes to find how it was bound. What NumPy would do again in the given arrays goes unnoticed: in a workspace, and in
an output, a kernel's Python half writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .arrays import address
from .bound import Bound
from .sequence import record, span

Place = tuple[int, int]  # which array, and bytes from its first element


class Repeat:
    """``repeat(*arrays)`` launches what was noted, for arrays with the shapes, strides and dtypes of those of then."""

    def __init__(self, launches: list[tuple[Bound, list[Place]]]) -> None:
        self.launches = launches

    def __call__(self, *arrays: np.ndarray) -> None:
        starts = [*map(address, arrays), 0]
        for bound, places in self.launches:
            bound(*[starts[i] + offset for i, offset in places])


def repeat(run: Callable[..., None], x: np.ndarray, w: np.ndarray, y: np.ndarray, *others: np.ndarray) -> Repeat | None:
    """What ``run(x, w, y, *others)`` does, made repeatable; None where it does more than launch kernels on these
    arrays (the others may also be left alone)."""
    arrays = (x, w, y, *others)
    launches = record(lambda *_: run(*arrays), x, w, y, kept=others)
    if launches is None:
        return None
    spans = [span(a) for a in arrays]

    def place(where: int) -> Place:
        i = next((i for i, (low, high) in enumerate(spans) if low <= where < high), len(arrays))
        return i, where - (address(arrays[i]) if i < len(arrays) else 0)

    return Repeat([(one.bound, [place(where) for where in one.addresses]) for one in launches])
