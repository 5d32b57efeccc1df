"""Problems as text: one JSON object a problem, and files of them, a problem a line.

A program run with ``FASTCONV_RECORD=problems.jsonl`` leaves every distinct problem that it met in that file, the moment
it is met: a line appended in one write, so several processes may share the file and none has to end well.
``fastconv tune --problems problems.jsonl`` measures them.

Files may be written by hand, and what they hold is run, so reading checks everything a kernel relies on.
"""

from __future__ import annotations

import json
import os
import threading
import warnings
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from .kernels import ACTIVATIONS
from .kernels.geometry import PADDING_MODES, ConvGeometry, PoolGeometry, pool_output_size, span
from .problem import DTYPES, ConvProblem, PoolProblem, Problem

RECORD = "FASTCONV_RECORD"
DIRECTIONS = {"conv": ("forward", "grad_input", "grad_weight")}
POOL_DIRECTIONS = ("forward", "grad_input")
POOLS = ("max_pool", "min_pool", "avg_pool", "lp_pool", "max_unpool")
_CHOICES = {
    "dtype": DTYPES, "layout": ("channels_first", "channels_last"), "device": ("cpu", "cuda"),
    "padding_mode": PADDING_MODES, "activation": (None, *ACTIVATIONS),
}  # fmt: skip
_LARGEST = 2**40  # of any size: products of a few of them still fit what Python hands to a kernel


# --------------------------------------------------------------------------------------------------- a problem as data


def as_data(problem: Problem) -> dict[str, Any]:
    """A problem as what JSON can hold: its fields and its geometry's in one level, without those left at their default.

    >>> from fastconv.problem import pool_problem
    >>> as_data(pool_problem("max_pool2d", 2, "max_pool", (1, 3, 8, 8), 2))["kernel_size"]
    (2, 2)
    """
    data: dict[str, Any] = {"op": problem.op, "direction": problem.direction}
    for part in (problem, problem.geometry):
        for field in fields(part):
            value = getattr(part, field.name)
            usual = (1,) * problem.geometry.rank if field.name == "dilation" else field.default
            if field.name not in ("op", "direction", "geometry") and (value != usual or field.default is MISSING):
                data[field.name] = value
    return data


def from_data(data: Any) -> Problem:
    """The problem that :func:`as_data` described.

    >>> from fastconv.problem import conv_problem
    >>> problem = conv_problem("conv2d", 2, (1, 3, 8, 8), (4, 3, 3, 3), padding=1)
    >>> from_data(json.loads(json.dumps(as_data(problem)))) == problem
    True

    Raises
    ------
    ValueError : it describes none; the message names the entry.
    """
    if not isinstance(data, dict):
        raise ValueError(f"a problem is an object with an 'op', got {data!r}")
    op = data.get("op")
    if op != "conv" and op not in POOLS:
        raise ValueError(f"op must be one of {', '.join(map(repr, ('conv', *POOLS)))}; got {op!r}")
    kind, shape = (ConvProblem, ConvGeometry) if op == "conv" else (PoolProblem, PoolGeometry)
    known = {f.name: f for part in (kind, shape) for f in fields(part) if f.name not in ("op", "geometry")}
    given = {name: _tuples(value) for name, value in data.items() if name != "op"}
    for name, field in known.items():
        if field.default is MISSING and name not in given:
            raise ValueError(f"a problem of op {op!r} needs {name!r}")
    size = given["input_size"]
    for name, value in given.items():
        if name not in known:
            raise ValueError(f"a problem of op {op!r} has no {name!r}")
        _check(name, value, len(size) if isinstance(size, tuple) else 0)
    if given.get("direction", "forward") not in DIRECTIONS.get(op, POOL_DIRECTIONS):
        allowed = ", ".join(DIRECTIONS.get(op, POOL_DIRECTIONS))
        raise ValueError(f"direction of {op!r} must be one of {allowed}; got {given['direction']!r}")
    sizes = {f.name: given.pop(f.name) for f in fields(shape) if f.name in given}
    problem: Problem
    if op == "conv":
        problem = ConvProblem(ConvGeometry(**sizes), **given)
    else:
        problem = PoolProblem(op, PoolGeometry(**sizes), **given)
    _check_geometry(problem)
    return problem


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def _check(name: str, value: Any, rank: int) -> None:
    """One entry by itself."""
    if name in _CHOICES:
        if value not in _CHOICES[name]:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, _CHOICES[name]))}; got {value!r}")
    elif name in ("input_size", "kernel_size", "output_size", "stride", "dilation"):
        if not (1 <= rank <= 3 and isinstance(value, tuple) and len(value) == rank and all(map(_whole, value))):
            raise ValueError(f"{name} must be one to three whole numbers, as many as input_size has, got {value!r}")
        if min(value) < 1:
            raise ValueError(f"{name} must be >= 1 in every dimension, got {value!r}")
    elif name == "padding":
        if not (isinstance(value, tuple) and len(value) == rank and all(map(_pair, value))):
            raise ValueError(f"padding must be {rank} pairs [before, after], got {value!r}")
    elif name in ("batch", "in_channels", "out_channels", "channels", "groups"):
        if not _whole(value) or value < (name != "batch"):
            raise ValueError(f"{name} must be a whole number >= {int(name != 'batch')}, got {value!r}")
    elif name in ("bias", "residual", "prepared", "indices", "count_include_pad"):
        if not isinstance(value, bool):
            raise ValueError(f"{name} must be true or false, got {value!r}")
    elif name == "divisor_override":
        if value is not None and not (_whole(value) and value):
            raise ValueError(f"divisor_override must be a whole number other than 0, or null, got {value!r}")
    elif name == "norm_type" and not (isinstance(value, int | float) and 0 < value < float("inf")):
        raise ValueError(f"norm_type must be a positive number, got {value!r}")


def _whole(value: Any) -> bool:
    return type(value) is int and abs(value) <= _LARGEST


def _pair(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(map(_whole, value))


def _check_geometry(problem: Problem) -> None:
    """The entries together."""
    g = problem.geometry
    if isinstance(g, ConvGeometry):
        _check_convolution(g)
        return
    if g.adaptive or problem.op == "max_unpool":
        return
    if not (g.stride and g.padding):
        raise ValueError("a pooling with a kernel_size needs stride and padding")
    for pair, k, d in zip(g.padding, g.kernel_size, g.dilation, strict=True):
        if min(pair) < 0 or max(pair) >= span(k, d):
            raise ValueError(f"padding must be >= 0 and smaller than the window, got {pair}")
    outputs = [
        pool_output_size(g.input_size, g.kernel_size, g.stride, g.padding, g.dilation, ceil) for ceil in (False, True)
    ]
    if g.output_size not in outputs:
        raise ValueError(f"output_size must be {outputs[0]} (or {outputs[1]}, rounded up), got {g.output_size}")


def _check_convolution(g: ConvGeometry) -> None:
    if g.in_channels % g.groups or g.out_channels % g.groups:
        raise ValueError(f"groups={g.groups} must divide {g.in_channels} and {g.out_channels} channels")
    if min(g.output_size) < 1:
        raise ValueError(f"the kernel does not fit: the output would be {g.output_size}")
    most = {"reflect": -1, "circular": 0}.get(g.padding_mode, _LARGEST)
    for (before, after), n, s, d in zip(g.padding, g.input_size, g.stride, g.dilation, strict=True):
        # A transposed convolution's output_padding, which is below its stride or dilation, shortens the trailing one.
        least = 1 - max(s, d) if g.padding_mode == "zeros" else 0
        if before < 0 or after < least or max(before, after) > n + most:
            raise ValueError(f"padding {g.padding} does not fit an input of {g.input_size} with {g.padding_mode!r}")


# ------------------------------------------------------------------------------------------------------ files of them


def read_problems(path: str | os.PathLike[str]) -> list[Problem]:
    """The distinct problems of a file: one JSON object a line, in the order of their first appearance.

    Raises
    ------
    OSError : the file cannot be read.
    ValueError : it holds something else; the message names file and line.
    """
    found: dict[Problem, None] = {}
    try:
        lines = Path(path).read_text("utf-8").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not a file of problems (not UTF-8 text)") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                found[from_data(json.loads(line))] = None
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: not JSON: {error.msg}") from None
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
    if not found:
        raise ValueError(f"{path}: holds no problems")
    return list(found)


class Recorder:
    """Appends problems to a file, each once."""

    def __init__(self, path: Path):
        self.path = path
        self._lock = threading.Lock()
        self._broken = False
        try:
            self._seen = set(read_problems(path))
        except (OSError, ValueError):  # none yet, or what appending leaves alone and reading will complain of
            self._seen = set()

    def add(self, problem: Problem) -> None:
        """Append a problem unless it is there; a file that cannot be written costs one warning."""
        with self._lock:
            if self._broken or problem in self._seen:
                return
            self._seen.add(problem)
            try:
                line = (json.dumps(as_data(problem)) + "\n").encode()
                file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
                try:
                    os.write(file, line)
                finally:
                    os.close(file)
            except OSError as error:
                self._broken = True
                reason = error.strerror or type(error).__name__
                warnings.warn(f"{RECORD}: cannot write {self.path}: {reason}", RuntimeWarning, stacklevel=2)


_recorders: dict[str, Recorder] = {}


def record(problem: Problem) -> None:
    """Add a problem to the file that ``FASTCONV_RECORD`` names, if it does."""
    path = os.environ.get(RECORD)
    if path:
        recorder = _recorders.get(path) or _recorders.setdefault(path, Recorder(Path(path).absolute()))
        recorder.add(problem)
