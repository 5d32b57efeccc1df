"""Measuring which kernel is fastest here: what ``fastconv tune`` runs.

    table = tuning.tune(tuning.suite_problems(["resnet"]))      measure every kernel able, problem by problem
    table.save("resnet.json")                                   readable, written whole or not at all
    tuning.load("resnet.json")                                  prefer these measurements to the prediction from now on

A new process loads the file in its default place by itself, or the one that ``FASTCONV_TUNING`` names; see
:mod:`fastconv.measurements` for its form and docs/tuning.md for the whole procedure.

Each kernel is timed through the dispatcher's own ``execute``: medians of repeated calls, in rounds that take the
kernels in turn, the best round counting. Weights are packed inside the call, or before it where the problem says
``prepared``, as a plan's does.
"""

from __future__ import annotations

import datetime
import math
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from . import dispatch, measurements
from .arrays import as_dtype
from .dispatch import Candidate, Workspace, candidates, execute
from .machine import fingerprint
from .measurements import Entry, Table, location, plain, read, versions
from .problem import ConvProblem, Problem
from .problem_files import read_problems
from .settings import Options, get_num_threads, options
from .targets import resolve

__all__ = [
    "Entry", "Stale", "Table", "load", "location", "measure", "merge", "read", "read_problems", "suite_problems",
    "tune", "verify",
]  # fmt: skip

ROUNDS = 3
HOPELESS = 3.0  # a kernel so many times slower than the fastest after one round is not timed again
SAME = 0.03  # within so much of the fastest the predicted kernel is kept: a choice should not follow noise
TOLERANCE = 0.10  # how far a chosen kernel may fall behind before verify calls it stale

Report = Callable[[Problem, "Entry | None"], None]


def load(path: str | os.PathLike[str] | None = None) -> Table | None:
    """Use measurements from a file in this process from now on, instead of those found when it started.

    >>> load("off") is None
    True

    Parameters
    ----------
    path : the file; ``"off"`` uses none; None goes back to what a new process does: the file that ``FASTCONV_TUNING``
        names, or the default place's, or none.

    Returns
    -------
    Table : what is in use now, or None.

    Raises
    ------
    OSError, ValueError : the file cannot be read, holds something else, or was measured on another machine or with
        other versions.
    """
    if path is None:
        measurements.reset()
    elif path == "off":
        measurements.activate(None)
    else:
        table = read(path)
        reason = table.why_not()
        if reason is not None:
            raise ValueError(f"{path}: {reason}; measure again with fastconv tune")
        measurements.activate(table)
    dispatch.cache_clear()
    return measurements.active()


def tune(
    problems: Iterable[Problem], *, threads: int | None = None, seconds: float = 0.1, report: Report | None = None,
    into: Table | None = None,
) -> Table:  # fmt: skip
    """Measure every kernel able to run each problem; nothing is changed or written.

    >>> problem = suite_problems(["lecture"], batches=[1])[0]
    >>> table = tune([problem], threads=1, seconds=0.001)
    >>> table.entries[0].choice in table.entries[0].seconds
    True

    Parameters
    ----------
    problems : what to measure: :func:`suite_problems`, :func:`read_problems`. Epilogues are left out, GPU problems and
        those that one kernel alone can run are passed over.
    threads : CPU threads of each call; None means :func:`fastconv.get_num_threads`.
    seconds : spent on each kernel of a problem, about, once it is compiled.
    report : called with each problem and its entry (None where it was passed over) as soon as it is known.
    into : measurements that the new ones are added to, replacing those of the same problems and threads.

    Returns
    -------
    Table : its ``save(path)`` writes it.
    """
    with options(num_threads=threads):
        threads = get_num_threads()
    kept = {} if into is None else dict(into.by_key)
    for problem in dict.fromkeys(map(plain, problems)):
        entry = measure(problem, threads, seconds)
        if entry is not None:
            kept[entry.key] = entry
        if report is not None:
            report(problem, entry)
    return _table(kept.values())


def _table(entries: Iterable[Entry]) -> Table:
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return Table(fingerprint(), versions(), date, tuple(entries))


def merge(first: Table, second: Table) -> Table:
    """Both tables' measurements; where they know the same problem and threads, the second's.

    Raises
    ------
    ValueError : they are of different machines or versions.
    """
    for name in ("machine", "versions"):
        ours, theirs = getattr(first, name), getattr(second, name)
        if ours != theirs:
            differing = ", ".join(n for n in {**ours, **theirs} if ours.get(n) != theirs.get(n))
            raise ValueError(f"measurements that differ in {name} ({differing}) cannot be merged")
    return replace(second, entries=tuple({**first.by_key, **second.by_key}.values()))


@dataclass(frozen=True)
class Stale:
    """An entry whose choice is no longer among the fastest: it takes ``loss`` times as long as the fastest one."""

    old: Entry
    new: Entry
    loss: float


def verify(
    table: Table, *, seconds: float = 0.1, tolerance: float = TOLERANCE, report: Report | None = None
) -> list[Stale]:
    """Measure a table's problems again; the entries whose choice is now slower than the fastest kernel by more than
    ``tolerance``.

    Parameters
    ----------
    table : of this machine; each entry is measured with its own number of threads.
    seconds, report : as for :func:`tune`.
    tolerance : 0.1 allows 10%.

    Raises
    ------
    ValueError : the table is of another machine or other versions.
    """
    reason = table.why_not()
    if reason is not None:
        raise ValueError(f"these measurements are of no use here: {reason}")
    stale = []
    for old in table.entries:
        new = measure(old.problem, old.threads, seconds)
        if report is not None:
            report(old.problem, new)
        if new is None:
            continue
        loss = new.seconds.get(old.choice, math.inf) / new.seconds[new.choice]
        if loss > 1 + tolerance:
            stale.append(Stale(old, new, loss))
    return stale


def suite_problems(
    suites: Sequence[str] = (), *, batches: Sequence[int] | None = None, directions: Sequence[str] = ("forward",),
    dtype: str = "float32", layout: str = "channels_first",
) -> list[Problem]:  # fmt: skip
    """The problems of named suites (:data:`fastconv.testing.SUITES`), to be measured.

    A forward convolution comes twice: as a function calls it, and prepared, as a plan does.

    >>> len(suite_problems(["resnet"], batches=[1], directions=["forward", "grad_input"]))
    12

    Parameters
    ----------
    suites : their names; none means all.
    batches : batch sizes of the cases that have none of their own; None means each case's own, 1 and 16.
    directions : ``"forward"``, ``"grad_input"``, ``"grad_weight"``; what a case does not have is left out.
    dtype, layout : of every problem.

    Raises
    ------
    ValueError : an unknown suite.
    """
    from .testing import cases

    return [
        case.problem(batch, direction=direction, dtype=dtype, layout=layout, **how)
        for name in suites or (None,)
        for case in cases(name)
        for batch in (batches if batches and case.batch is None else case.batches("cpu"))
        for direction in directions
        if direction in case.directions
        for how in ([{}, {"prepared": True}] if case.op == "conv" and direction == "forward" else [{}])
    ]


# --------------------------------------------------------------------------------------------------------- measuring


def measure(problem: Problem, threads: int, seconds: float = 0.1) -> Entry | None:
    """Time every kernel able to run a problem; None where there is no choice to make.

    Rows that only a wider ``max_error`` admits are timed too: the choice among able rows is made when one is asked for.

    Parameters
    ----------
    problem, threads : what to run, on how many threads.
    seconds : spent on each kernel, about.
    """
    if problem.device != "cpu" or problem.geometry.batch == 0:
        return None
    problem = plain(problem)
    weighed = candidates(problem, Options(max_error=math.inf), threads)
    able = [c for c in weighed if c.able and c.row.family != "reference"]
    if len(able) < 2:
        return None
    usual = {c.algorithm for c in candidates(problem, Options(), threads) if c.able}
    arrays = _arrays(problem)
    measured = _best_medians({c.algorithm: _call(c, problem, arrays, threads) for c in able}, seconds)
    ranked = sorted((c for c in able if c.algorithm in usual), key=lambda c: c.seconds) or able
    return Entry(problem, threads, measured, _choice(measured, [c.algorithm for c in ranked]))


def _choice(seconds: dict[str, float], usual: Sequence[str]) -> str:
    """The fastest of the algorithms that a default call may take; the predicted one, the first, if it is as fast."""
    best = min(seconds[name] for name in usual)
    return next(name for name in usual if seconds[name] <= best * (1 + SAME))


def _arrays(problem: Problem) -> tuple[Any, ...]:
    """Operands in the kernel contract's order, the result last: of the problem's dtype, lying as its layout says."""
    if not isinstance(problem, ConvProblem):
        raise ValueError(f"only convolutions have several kernels to measure, not {problem.op}")
    g, rng = problem.geometry, np.random.default_rng(0)
    dtype = as_dtype("tune", "dtype", problem.dtype)

    def image(shape: tuple[int, ...]) -> Any:
        n, c, *spatial = shape
        if problem.layout == "channels_last":
            return np.moveaxis(rng.standard_normal((n, *spatial, c), np.float32).astype(dtype), -1, 1)
        return rng.standard_normal(shape, np.float32).astype(dtype)

    x, y = image(g.input_shape), image(g.output_shape)
    w = rng.standard_normal(g.weight_shape, np.float32).astype(dtype)
    return {
        "forward": (x, w, None, None, y), "grad_input": (y, w, None, None, x), "grad_weight": (x, y, w),
    }[problem.direction]  # fmt: skip


def _call(candidate: Candidate, problem: Problem, arrays: tuple[Any, ...], threads: int) -> Callable[[], None]:
    workspace = Workspace()
    keywords: dict[str, Any] = {}
    if problem.direction != "grad_weight":
        prepare = candidate.row.prepare if isinstance(problem, ConvProblem) and problem.prepared else None
        packed = resolve(prepare)(problem.geometry, arrays[1]) if prepare else None
        keywords = {"activation": None, "packed": packed}

    def call() -> None:
        execute(candidate, problem, *arrays, workspace=workspace, threads=threads, **keywords)

    return call


def _best_medians(calls: dict[str, Callable[[], None]], seconds: float) -> dict[str, float]:
    """The best round's median of each call, the calls taking turns."""
    best: dict[str, float] = {}
    for call in calls.values():
        call()  # compiled, its workspace allocated
    for _ in range(ROUNDS):
        limit = HOPELESS * min(best.values(), default=math.inf)
        for name, call in calls.items():
            if best.get(name, 0.0) <= limit:
                best[name] = min(best.get(name, math.inf), statistics.median(_times(call, seconds / ROUNDS)))
    return best


def _times(call: Callable[[], None], seconds: float) -> Iterator[float]:
    end = time.perf_counter() + seconds
    done = 0
    while done < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        yield time.perf_counter() - start
        done += 1
