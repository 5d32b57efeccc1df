"""Choosing a kernel, and running it.

    choose(problem, options)   able rows, inside the limits, ranked by predicted time: the first wins
    select(problem)            the same under the caller's options, warning on a slow path
    execute(choice, …)         the kernel, with a workspace of the calling thread's own

The prediction (:mod:`fastconv.costs`) never looks at a clock, so a program makes the same choices on
every run. Choices are cached by problem and options, never by anything an array contains.
"""

from __future__ import annotations

import math
import sys
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from . import measurements
from .autograd import array_module, on_device
from .bounds import sum_bound
from .pooled import ready_calls
from .problem import ConvProblem, Problem
from .registry import ROWS, Row, rows_for
from .settings import DEFAULTS, Options, check_algorithm, current, get_num_threads
from .targets import resolve

DEFAULT_MAX_ERROR = 256.0
"""Limit on automatic choices, in multiples of the direct algorithm's error bound; see :func:`fastconv.options`."""

KEPT_WORKSPACE = 96 << 20
"""Bytes that function calls of a thread keep between them: more than the 66 MiB that is the most suites ask for, in
F(5x5) of 16 images of 512 channels. Allocated anew by each call, those took 24 ms, or 38, instead of 20."""
CACHED_CHOICES = 4096


class SlowPathWarning(UserWarning):
    """Only the float64 reference can run a problem: the result is right, and slow."""


# -------------------------------------------------------------------------------------------------------- choosing


@dataclass(frozen=True)
class Candidate:
    """A row weighed for a problem. ``refusal`` is None where it may run; ``seconds`` is infinite where it cannot."""

    row: Row
    refusal: str | None
    seconds: float
    workspace_bytes: int
    error_bound: float

    @property
    def algorithm(self) -> str:
        return self.row.algorithm

    @property
    def able(self) -> bool:
        return self.refusal is None


@dataclass(frozen=True)
class Explanation:
    """Which kernel runs a problem, and why; printable. Source of the numbers: the rows' own cost and error models."""

    problem: Problem
    rows: tuple[Candidate, ...]
    chosen: str
    reason: str

    def __str__(self) -> str:
        lines = [str(self.problem), f"chosen: {self.chosen} ({self.reason})", ""]
        width = 1 + max(map(len, ("algorithm", *(c.algorithm for c in self.rows))))
        lines.append(f"  {'algorithm':<{width}}{'predicted':>12}{'workspace':>12}{'error bound':>13}  able")
        for c in self.rows:
            mark = ">" if c.algorithm == self.chosen else " "
            seconds = "-" if c.seconds == math.inf else f"{c.seconds * 1e3:.3f} ms"
            workspace = f"{c.workspace_bytes / 1024:.0f} KiB"
            lines.append(
                f"{mark} {c.algorithm:<{width}}{seconds:>12}{workspace:>12}{c.error_bound:>13.1e}  {c.refusal or 'yes'}"
            )
        return "\n".join(lines)


def candidates(problem: Problem, chosen: Options, threads: int) -> tuple[Candidate, ...]:
    """Every row of the problem's operation, each with its refusal, prediction, workspace and error bound."""
    forced = _forced(problem, chosen)
    weighed = []
    for row in rows_for(problem.op, problem.direction, problem.device):
        refusal = _refusal(row, problem, chosen)
        workspace = 0 if refusal else row.workspace_bytes(problem, threads)
        seconds = math.inf if refusal else row.seconds(problem, threads)
        bound = row.bound(problem)
        if refusal is None:
            refusal = _limits(row, problem, chosen, workspace, bound, forced)
        weighed.append(Candidate(row, refusal, seconds, workspace, bound))
    return tuple(weighed)


def _refusal(row: Row, problem: Problem, chosen: Options) -> str | None:
    """Why the row cannot or may not run. Of a precision not asked for nothing else is worked out or imported."""
    if row.precision not in ("ieee", chosen.precision):
        return f"computes in {row.precision}, which precision={row.precision!r} allows"
    return row.refuses(problem)


def _forced(problem: Problem, chosen: Options) -> bool:
    """Whether the option names an algorithm that this operation has."""
    named = {name for r in ROWS if r.op == problem.op for name in (r.family, r.algorithm)}
    return chosen.algorithm != "auto" and chosen.algorithm in named


def _named(row: Row, name: str) -> bool:
    """Whether a user who asks for ``name`` means this row: the one of that name if there is one, else the family."""
    exact = any(r.algorithm == name for r in ROWS if r.op == row.op)
    return name == (row.algorithm if exact else row.family)


def _limits(row: Row, problem: Problem, chosen: Options, workspace: int, bound: float, forced: bool) -> str | None:
    if forced and not _named(row, chosen.algorithm):
        return f"algorithm={chosen.algorithm!r} was asked for"
    limit = chosen.max_error
    if limit is None and not forced:
        if not row.automatic:
            return "is chosen only where it or max_error is asked for: it loses more to rounding than the others"
        limit = DEFAULT_MAX_ERROR
    ratio = bound / sum_bound(problem) if bound else 0.0
    if limit is not None and ratio > limit:
        return f"its error bound is {ratio:.3g} times direct's, max_error={limit:g}"
    if chosen.workspace_limit is not None and workspace > chosen.workspace_limit:
        return f"needs {workspace} bytes of workspace, workspace_limit={chosen.workspace_limit}"
    if chosen.deterministic and not row.deterministic:
        return "is not deterministic"
    return None


def choose(problem: Problem, chosen: Options = DEFAULTS, threads: int = 1, op: str = "") -> Candidate:
    """The able row that was measured to be fastest, else the one with the least predicted time.

    The reference is taken only where nothing else is able. ``op`` is the function's public name, for errors.

    >>> from fastconv.problem import conv_problem
    >>> choose(conv_problem("conv2d", 2, (1, 64, 28, 28), (64, 64, 3, 3))).algorithm
    'winograd_f4x4_3x3'

    Raises
    ------
    ValueError : no row can run it; the message gives each row's reason.
    """
    rows = candidates(problem, chosen, threads)
    able = [c for c in rows if c.able]
    if not able:
        _raise_unable(op or problem.op, problem, rows, chosen)
    fast = [c for c in able if c.row.family != "reference"] or able
    predicted = min(fast, key=lambda c: c.seconds)
    return measurements.prefer(problem, threads, fast, predicted, chosen.deterministic)


_choose_cached = lru_cache(maxsize=CACHED_CHOICES)(choose)


def _raise_unable(op: str, problem: Problem, rows: tuple[Candidate, ...], chosen: Options) -> None:
    if not rows:
        raise ValueError(
            f"{op}: no {problem.device} kernel for {problem.direction} yet; move the arrays to the CPU "
            "(cupy.asnumpy) to run it there"
        )
    wanted = [c for c in rows if chosen.algorithm == "auto" or _named(c.row, chosen.algorithm)] or list(rows)
    reasons = "; ".join(f"{c.algorithm}: {c.refusal}" for c in wanted)
    raise ValueError(f"{op}: no kernel can run this ({problem}). {reasons}")


class _Probed(BaseException):
    """Carries a problem out of a call that :func:`explain` only wants to look at."""

    def __init__(self, explanation: Explanation):
        self.explanation = explanation


def select(problem: Problem, algorithm: str = "auto", op: str = "", *, warn: bool = True) -> Candidate:
    """:func:`choose` under this thread's options; ``algorithm`` overrides them. Warns when it ends at the reference.

    ``op`` is the function's public name, for errors.
    """
    chosen = current.options
    if type(algorithm) is not str or algorithm != "auto":
        check_algorithm(op or problem.op, algorithm)
        chosen = replace(chosen, algorithm=algorithm)
    threads = get_num_threads()
    if current.probing:
        raise _Probed(_explain(problem, chosen, threads, op))
    choice = _choose_cached(problem, chosen, threads, op)
    if warn and choice.row.family == "reference" and chosen.algorithm != "reference":
        message = f"only the float64 reference can run this within the limits set: {problem}"
        warnings.warn(message, SlowPathWarning, stacklevel=_outside())
    return choice


def _outside() -> int:
    """The ``stacklevel`` of the user's line, for a warning that the caller of this function gives."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).partition(".")[0] == "fastconv":
        frame, level = frame.f_back, level + 1
    return level


class Settled(NamedTuple):
    """What a call works out before it looks at data."""

    problem: Any
    choice: Candidate


def settle(builder: Callable[..., Any], op: str, algorithm: str, *arguments: Any, **keywords: Any) -> Settled:
    """The problem that ``builder`` makes of these arguments, whose equality must mean that they are the same, and
    :func:`select`'s choice: one look into a cache. What warns or raises is never kept."""
    if current.probing:
        return _settle(current.options, 0, builder, op, algorithm, *arguments, **keywords)
    settled = _settle_cached(current.options, get_num_threads(), builder, op, algorithm, *arguments, **keywords)
    if settled.choice.row.family == "reference":
        select(settled.problem, algorithm, op)  # warns
    return settled


def _settle(
    chosen: Options, threads: int, builder: Callable[..., Any], op: str, algorithm: str, *arguments: Any,
    **keywords: Any,
) -> Settled:  # fmt: skip
    problem = builder(op, *arguments, **keywords)
    return Settled(problem, select(problem, algorithm, op, warn=False))


def _explain(problem: Problem, chosen: Options, threads: int, op: str) -> Explanation:
    rows = candidates(problem, chosen, threads)
    best = choose(problem, chosen, threads, op)
    if _forced(problem, chosen):
        reason = f"algorithm={chosen.algorithm!r} was asked for"
    elif best.row.family == "reference":
        reason = "nothing else is able"
    elif (ranked := sum(c.able and c.row.family != "reference" for c in rows)) == 1:
        reason = "the only kernel able"
    elif not chosen.deterministic and (measured := measurements.reason(problem, threads, best.algorithm)):
        reason = measured
    else:
        reason = f"least predicted time of {ranked} kernels"
        reason += f", {threads} thread{'s' * (threads > 1)}" if problem.device == "cpu" else ""
    return Explanation(problem, rows, best.algorithm, reason)


def explain(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Explanation:
    """Say which kernel a call would run and why, without running it.

    >>> import numpy as np, fastconv
    >>> x, w = np.ones((1, 64, 28, 28), np.float32), np.ones((64, 64, 3, 3), np.float32)
    >>> why = fastconv.explain(fastconv.conv2d, x, w, padding=1)
    >>> why.chosen, why.chosen in [row.algorithm for row in why.rows if row.able]
    ('winograd_f4x4_3x3', True)

    Parameters
    ----------
    function : a function of fastconv or :mod:`fastconv.grad`, or a plan.
    args, kwargs : what it would be called with.

    Returns
    -------
    Explanation : ``problem``, ``rows`` (each candidate with its refusal, predicted seconds, workspace bytes and error
        bound), ``chosen`` and ``reason``; ``print`` shows a table.

    Raises
    ------
    ValueError, TypeError : what the call itself would raise.
    TypeError : the function runs no kernel.
    """
    if not callable(function):
        raise TypeError(f"explain: function must be callable, got {function!r}; explain(fastconv.conv2d, x, w)")
    if hasattr(function, "explain"):  # a plan has chosen already
        return function.explain()
    before, current.probing = current.probing, True
    try:
        function(*args, **kwargs)
    except _Probed as found:
        return found.explanation
    finally:
        current.probing = before
    raise TypeError(f"explain: {getattr(function, '__name__', function)!r} ran no kernel of fastconv's")


# --------------------------------------------------------------------------------------------------------- running


_NO_BUFFER = np.empty(0, np.uint8)


class Workspace(threading.local):
    """Scratch memory: a calling thread's growing, 64-byte aligned buffer, of at most ``keep`` bytes.

    ``take`` hands it out and ``give`` takes it back: a call that interrupts another one of its thread, in a signal
    handler, gets a buffer of its own. What an exception leaves out is made anew.
    """

    def __init__(self, keep: int | None = None) -> None:
        self.keep = keep
        self.buffer = _NO_BUFFER
        self.generation = 0

    def take(self, nbytes: int, generation: int = 0) -> np.ndarray:
        if self.generation != generation:
            self.buffer, self.generation = _NO_BUFFER, generation
        if self.keep is None or nbytes <= self.keep:
            buffer, self.buffer = self.buffer, _NO_BUFFER
            if buffer.size >= nbytes:
                return buffer
        raw = np.empty(nbytes + 64, np.uint8)
        start = -raw.ctypes.data % 64
        return raw[start : start + nbytes]

    def give(self, buffer: np.ndarray) -> None:
        if self.buffer.size < buffer.size and (self.keep is None or buffer.size <= self.keep):
            self.buffer = buffer


def device_workspace(like: Any, nbytes: int) -> Any:
    """Scratch memory on the current GPU, None where none is needed. CuPy's memory pool hands the same block out again
    without a wait, in the order of the current stream."""
    return array_module(like).empty(nbytes, np.uint8) if nbytes else None


class DeviceWorkspace:
    """A plan's scratch memory on its GPU: a buffer for every thread and stream that calls it, kept as long as the plan,
    so that later calls allocate nothing and a captured graph finds its buffer in place."""

    def __init__(self) -> None:
        self.buffers: dict[tuple[int, int], Any] = {}

    def get(self, like: Any, nbytes: int) -> Any:
        """The buffer of the calling thread and the current stream, None where none is needed."""
        if not nbytes:
            return None
        xp = array_module(like)
        key = threading.get_ident(), xp.cuda.get_current_stream().ptr
        buffer = self.buffers.get(key)
        if buffer is None:
            buffer = self.buffers[key] = xp.empty(nbytes, np.uint8)
        return buffer


_workspace = Workspace(KEPT_WORKSPACE)
_generation = 0


def take_workspace(nbytes: int) -> np.ndarray:
    """Scratch memory of the calling thread, at least so long, to be given back to :func:`give_workspace`."""
    return _workspace.take(nbytes, _generation)


give_workspace = _workspace.give


def execute(
    choice: Candidate,
    problem: Problem,
    *arrays: Any,
    workspace: Workspace | None = None,
    threads: int | None = None,
    **keywords: Any,
) -> None:
    """Run a chosen kernel on ready arrays, ``out`` last. ``workspace``: a plan's own, else the thread's shared one.

    Work on a GPU goes to CuPy's current stream of the arrays' device.
    """
    kernel, out = resolve(choice.row.target), arrays[-1]
    if array_module(out) is np:
        threads = get_num_threads() if threads is None else threads
        if not isinstance(problem, ConvProblem):
            kernel(problem.geometry, *arrays, threads=threads, **keywords)
            return
        take, give = (workspace.take, workspace.give) if workspace else (take_workspace, give_workspace)
        scratch = take(choice.workspace_bytes)
        kernel(problem.geometry, *arrays, threads=threads, workspace=scratch, **keywords)
        give(scratch)
        return
    with on_device(out):
        if choice.row.workspace is not None:
            keywords["workspace"] = device_workspace(out, choice.workspace_bytes)
        kernel(problem.geometry, *arrays, **keywords)


# ---------------------------------------------------------------------------------------------------------- caches

_settle_cached = lru_cache(maxsize=CACHED_CHOICES, typed=True)(_settle)  # typed: True is not 1


@lru_cache(maxsize=CACHED_CHOICES, typed=True)  # typed: True is not 1
def cached_problem(builder: Callable[..., Any], *args: Any, **keywords: Any) -> Any:
    """What ``builder`` makes of hashable arguments."""
    return builder(*args, **keywords)


@dataclass(frozen=True)
class CacheInfo:
    """Entries of the bounded caches, and the calling thread's shared workspace."""

    problems: int
    choices: int
    max_choices: int
    workspace_bytes: int


def cache_info() -> CacheInfo:
    """How much the in-memory caches hold. (Compiled kernels on disk: ``fastconv cache info``.)

    >>> import fastconv
    >>> fastconv.cache_clear(); fastconv.cache_info().choices
    0
    """
    problems = cached_problem.cache_info().currsize + _settle_cached.cache_info().currsize
    return CacheInfo(problems, _choose_cached.cache_info().currsize, CACHED_CHOICES, _workspace.buffer.size)


def cache_clear() -> None:
    """Forget problems and choices, and free the shared workspaces (another thread's at its next call)."""
    global _generation
    _generation += 1
    cached_problem.cache_clear()
    _settle_cached.cache_clear()
    _choose_cached.cache_clear()
    ready_calls.clear()
    _workspace.take(0, _generation)
