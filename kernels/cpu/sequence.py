"""Kernels one after another in one parallel region: a network's layers without Python between them.

A call of a small layer is 8 µs of Python and 5 µs of handing its shares to the threads; on 14 x 14 pixels that is a
third of the layer. :func:`record` notes what a call would launch instead of launching it, and a :class:`Sequence` of
such launches runs as one kernel of its own:

    for each launch, on every thread
        claim shares that nobody has claimed, the thread's own number first, and compute them
        wait until all shares of the launch are done

No thread waits for one that has not come: shares are claimed, not dealt out, so the first thread computes everything
if it is alone. Waiting threads spin, and offer their core to others every so often.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Ordered
from functools import cached_property
from itertools import chain, pairwise
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .arrays import address, aligned_empty
from .bound import Bound, Launch
from .compile import jit
from .shares import I64, call_at, current, native_address, pause
from .simd import load, pointer, shift
from .threads import launch, recorder

ABLE = hasattr(os, "sched_yield")
"""Whether waiting threads can offer their core to others; without it there are no sequences."""

SPINS = 1 << 12
_LINE = 8  # int64 numbers
_ROW = ("function", "shares", "table", "claims")  # of a launch, in a line; another line counts the shares done

_I8 = ir.IntType(8)


def record(run: Callable[..., Any], *arrays: np.ndarray, kept: Iterable[np.ndarray] = ()) -> list[Launch] | None:
    """What ``run(*arrays)`` would launch, or None where it does more than that.

    16-bit arrays are converted around the kernels, the last few numbers by NumPy. A launch must use each of
    ``arrays`` itself, and no other memory than theirs and that of ``kept``: a copy made beforehand, or afterwards,
    is nothing that would happen again.
    """
    before, recorder.launches = recorder.launches, []
    try:
        run(*arrays)
        launches = recorder.launches
    finally:
        recorder.launches = before
    spans = [span(a) for a in (*arrays, *kept) if a.size]
    if not launches or None in launches or any(a.itemsize == 2 for a in arrays):
        return None
    used = {a for one in launches for a in one.addresses if a}
    itself = all(address(a) in used for a in arrays)
    return launches if itself and all(any(low <= a < high for low, high in spans) for a in used) else None


def span(array: np.ndarray) -> tuple[int, int]:
    """The addresses from the first byte of an array to behind its last (in NumPy only since version 2)."""
    steps = [(n - 1) * stride for n, stride in zip(array.shape, array.strides, strict=True)]
    first = address(array)
    return first + sum(s for s in steps if s < 0), first + sum(s for s in steps if s > 0) + array.itemsize


@intrinsic
def _claim(typingctx: Any, byte: Any) -> Any:
    """Set a byte to 1 and give what it was."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        place = builder.inttoptr(args[0], _I8.as_pointer())
        return builder.zext(builder.atomic_rmw("xchg", place, ir.Constant(_I8, 1), "acq_rel"), I64)

    return types.int64(types.int64), codegen


@intrinsic
def _add_one(typingctx: Any, number: Any) -> Any:
    """Count one more, visibly for all threads after whatever this one has stored."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        place = builder.inttoptr(args[0], I64.as_pointer())
        builder.atomic_rmw("add", place, ir.Constant(I64, 1), "acq_rel")
        return context.get_dummy_value()

    return types.void(types.int64), codegen


_offer_core = types.ExternalFunction("sched_yield", types.int32())
_read_clock = types.ExternalFunction("clock_gettime", types.int32(types.int32, types.int64))
_MONOTONIC = getattr(time, "CLOCK_MONOTONIC", 0)


@jit
def note_time(t, threads, table, chunk, kind):
    """A launch that writes the time, seconds and nanoseconds, into its table."""
    _read_clock(_MONOTONIC, table)


@jit
def sequence_range(t, threads, table, chunk, kind):
    """Thread ``t`` of all launches; ``table`` holds their number, the threads, and their rows from the next line on."""
    numbers = pointer(table, table)
    for i in range(load(numbers, 0)):
        row = shift(numbers, (2 * i + 1) * _LINE)
        done = table + 8 * (2 * i + 2) * _LINE
        function, shares, own, claims = load(row, 0), load(row, 1), load(row, 2), load(row, 3)
        for k in range(shares):
            share = (t + k) % shares
            if _claim(claims + share) == 0:
                call_at(function, share, shares, own, own, kind)
                _add_one(done)
        spins = 0
        while current(done) < shares:
            spins += 1
            if spins % SPINS == 0:
                _offer_core()
            pause()


class Sequence:
    """Launches of one element type, to be called without arguments, by one thread at a time."""

    def __init__(self, launches: Ordered[Launch], kept: Any = None) -> None:
        """``kept``: what must live as long as this, such as the arrays whose addresses are in the launches."""
        kinds = {type(one.bound.kind) for one in launches}
        if len(kinds) != 1:
            raise ValueError(f"launches: of one element type needed, got {sorted(k.__name__ for k in kinds)}")
        self.kind, self.kept = launches[0].bound.kind, (list(launches), kept)
        self.threads = max(one.bound.threads for one in launches)
        count = len(launches)
        self.table = aligned_empty((2 * count + 1) * _LINE, np.dtype(np.int64))
        self.table[:] = 0
        self.claims = np.zeros((count, self.threads), np.uint8)
        self.table[0] = count
        lines = self.table[_LINE:].reshape(count, 2, _LINE)
        for line, one, claims in zip(lines[:, 0], launches, self.claims, strict=True):
            function = native_address(one.bound.kernel, one.bound.kind)
            line[: len(_ROW)] = function, one.bound.threads, address(one.table), address(claims)
        self.done = lines[:, 1, 0]

    def __call__(self) -> None:
        self.claims.fill(0)
        self.done.fill(0)
        where = address(self.table)
        launch(sequence_range, self.threads, where, where, self.kind)

    @cached_property
    def _clocked(self) -> tuple[list[Launch], Sequence]:
        """Launches that note the time, and this sequence with one before each launch and one at the end."""
        launches, kept = self.kept
        clock = Bound(note_time, self.kind, 1, (), ())
        notes = [Launch(clock, np.zeros(2, np.int64), ()) for _ in range(len(launches) + 1)]
        return notes, Sequence([*chain(*zip(notes, launches, strict=False)), notes[-1]], kept)

    def timed(self) -> list[float]:
        """Run, and the seconds of each launch among the others, with the caches as those have left them."""
        notes, clocked = self._clocked
        clocked()
        times = [1_000_000_000 * int(note.table[0]) + int(note.table[1]) for note in notes]
        return [1e-9 * (end - start) for start, end in pairwise(times)]
