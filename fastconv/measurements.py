"""Measured times of kernels, kept in a file that dispatch prefers to its prediction.

``fastconv tune`` (:mod:`fastconv.tuning`) measures and writes; here the file is read, checked against this machine, and
asked. It is JSON with one entry a line:

    {"threads": 2, "chosen": "direct", "seconds": {"direct": 1.1e-4, "im2col": 1.9e-4}, "problem": {…}}

An entry speaks for every epilogue: bias, residual and activation are fused and cost each kernel the same, so problems
are looked up without them. Function calls, which pack the weights, and plans, which have packed them, are problems of
their own (``prepared``).

The file is ``FASTCONV_TUNING``, or ``tuning.json`` in the user's configuration directory; ``FASTCONV_TUNING=off`` (or
empty) reads none. It is read once a process, when dispatch first chooses.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ._version import __version__
from .machine import fingerprint
from .problem import ConvProblem, Problem
from .problem_files import as_data, from_data, record

TUNING = "FASTCONV_TUNING"
FORMAT = "fastconv tuning 1"


class TuningWarning(UserWarning):
    """A file of measurements exists and is not used."""


def versions() -> dict[str, str]:
    """What else must be the same for measurements to hold: fastconv, Numba and the kernels' sources."""
    from importlib import metadata

    from .kernels.cpu.compile import source_digest

    return {"fastconv": __version__, "numba": metadata.version("numba"), "kernels": source_digest()[:12]}


def plain(problem: Problem) -> Problem:
    """The problem without its epilogue: what measurements are kept by.

    >>> from fastconv.problem import conv_problem
    >>> p = conv_problem("conv2d", 2, (1, 3, 8, 8), (4, 3, 3, 3), activation="relu")
    >>> plain(p) == conv_problem("conv2d", 2, (1, 3, 8, 8), (4, 3, 3, 3))
    True
    """
    if isinstance(problem, ConvProblem) and (problem.bias or problem.residual or problem.activation):
        return replace(problem, bias=False, residual=False, activation=None)
    return problem


@dataclass(frozen=True)
class Entry:
    """One problem's measurements: seconds by algorithm, and the algorithm to take."""

    problem: Problem
    threads: int
    seconds: Mapping[str, float]
    choice: str

    @property
    def key(self) -> tuple[Problem, int]:
        return self.problem, self.threads


@dataclass(frozen=True)
class Table:
    """The measurements of one machine with one set of versions."""

    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    date: str
    entries: tuple[Entry, ...]

    @cached_property
    def by_key(self) -> dict[tuple[Problem, int], Entry]:
        return {entry.key: entry for entry in self.entries}

    def find(self, problem: Problem, threads: int) -> Entry | None:
        """The entry that speaks for a problem, whatever its epilogue."""
        return self.by_key.get((plain(problem), threads))

    def why_not(self) -> str | None:
        """None where the measurements hold here, else what differs."""
        for ours, theirs in ((fingerprint(), self.machine), (versions(), self.versions)):
            for name, value in ours.items():
                if theirs.get(name) != value:
                    return f"it was measured with {name} {theirs.get(name)!r}, here it is {value!r}"
        return None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file whole or not at all: readers never see half of one."""
        import tempfile

        head = {"format": FORMAT, "date": self.date, "machine": dict(self.machine), "versions": dict(self.versions)}
        lines = [f" {json.dumps(_entry_data(entry))}" for entry in self.entries]
        text = json.dumps(head, indent=1)[:-2] + ',\n "entries": [\n' + ",\n".join(lines) + "\n]}\n"
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, fresh = tempfile.mkstemp(dir=path.parent, prefix=path.name, text=True)
        try:
            with open(handle, "w", encoding="utf-8") as file:
                file.write(text)
            os.chmod(fresh, path.stat().st_mode if path.exists() else 0o666 & ~_umask())  # mkstemp's are private
            os.replace(fresh, path)
        except BaseException:
            Path(fresh).unlink(missing_ok=True)
            raise


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _entry_data(entry: Entry) -> dict[str, Any]:
    ranked = sorted(entry.seconds.items(), key=lambda item: item[1])
    seconds = {name: float(f"{t:.4g}") for name, t in ranked}
    return {"threads": entry.threads, "chosen": entry.choice, "seconds": seconds, "problem": as_data(entry.problem)}


def read(path: str | os.PathLike[str]) -> Table:
    """The measurements in a file, whatever machine they are of.

    Raises
    ------
    OSError : the file cannot be read.
    ValueError : it holds something else; the message names the file and what is wrong.
    """
    try:
        data = json.loads(Path(path).read_text("utf-8"))
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not a tuning file (not UTF-8 text)") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not a tuning file (line {error.lineno}: {error.msg})") from None
    except RecursionError:
        raise ValueError(f"{path}: not a tuning file (nested too deeply)") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ValueError(f"{path}: not a tuning file (no 'format': {FORMAT!r})")
    for name, kind in (("machine", dict), ("versions", dict), ("date", str), ("entries", list)):
        if not isinstance(data.get(name), kind):
            raise ValueError(f"{path}: {name!r} is missing or not {'a list' if kind is list else f'a {kind.__name__}'}")
    entries = []
    for number, entry in enumerate(data["entries"], 1):
        try:
            entries.append(_entry(entry))
        except ValueError as error:
            raise ValueError(f"{path}, entry {number}: {error}") from None
    return Table(data["machine"], data["versions"], data["date"], tuple(entries))


def _entry(data: Any) -> Entry:
    if not isinstance(data, dict):
        raise ValueError(f"an entry is an object, got {data!r}")
    threads = data.get("threads")
    if type(threads) is not int or threads < 1:
        raise ValueError(f"threads must be a whole number >= 1, got {threads!r}")
    seconds = data.get("seconds")
    right = isinstance(seconds, dict) and all(type(t) in (int, float) and 0 < t < math.inf for t in seconds.values())
    if not isinstance(seconds, dict) or not right or not seconds:
        raise ValueError(f"'seconds' must map algorithms to seconds, got {seconds!r}")
    if not isinstance(data.get("chosen"), str) or data["chosen"] not in seconds:
        raise ValueError(f"'chosen' must be one of {', '.join(seconds)}; got {data.get('chosen')!r}")
    return Entry(plain(from_data(data.get("problem"))), threads, seconds, data["chosen"])


# ---------------------------------------------------------------------------------------------- what dispatch asks


class Candidate(Protocol):
    """What dispatch weighs."""

    @property
    def algorithm(self) -> str: ...


C = TypeVar("C", bound=Candidate)
_UNREAD = object()
_active: Any = _UNREAD


def location() -> Path | None:
    """The file that a new process would read and ``fastconv tune`` writes; None where measurements are switched off."""
    given = os.environ.get(TUNING)
    if given is not None:
        return None if given.lower() in ("", "off") else Path(given).absolute()
    import platformdirs

    return platformdirs.user_config_path("fastconv", appauthor=False) / "tuning.json"


def active() -> Table | None:
    """The measurements in use. The first call reads the file; one that cannot be used costs one warning."""
    global _active
    if _active is _UNREAD:
        _active = _found()
    table: Table | None = _active
    return table


def activate(table: Table | None) -> None:
    """Use these measurements, or none, in this process from now on."""
    global _active
    _active = table


def reset() -> None:
    """Forget them; the next choice reads the file again."""
    global _active
    _active = _UNREAD


def _found() -> Table | None:
    path = location()
    if path is None or not (path.exists() or TUNING in os.environ):
        return None
    try:
        table = read(path)
        reason = table.why_not()
    except ValueError as error:
        table, reason = None, str(error).removeprefix(f"{path}: ")
    except OSError as error:
        table, reason = None, error.strerror or type(error).__name__
    if table is not None and reason is None:
        return table
    message = (
        f"the measurements in {path} are not used: {reason}; measure again with fastconv tune, or set {TUNING}=off"
    )
    warnings.warn(message, TuningWarning, stacklevel=2)
    return None


def prefer(problem: Problem, threads: int, able: Sequence[C], predicted: C, deterministic: bool) -> C:
    """The candidate to run: the measured choice among the able ones, else the predicted one.

    ``predicted`` stays where nothing is known of the problem, where it was not itself measured (a limit admits a row
    that tuning did not see), and where choices must not depend on clocks. Problems asked about are recorded on demand.
    """
    record(problem)
    table = None if deterministic else active()
    entry = table.find(problem, threads) if table else None
    if entry is None:
        return predicted
    seconds, choice = entry.seconds, entry.choice
    measured = [c for c in able if c.algorithm in seconds]
    if predicted not in measured:
        return predicted
    return min(measured, key=lambda c: (c.algorithm != choice, seconds[c.algorithm]))


def reason(problem: Problem, threads: int, algorithm: str) -> str | None:
    """What :func:`fastconv.explain` says of a choice that was measured; None for another."""
    table = active()
    entry = table.find(problem, threads) if table else None
    if entry is None or algorithm not in entry.seconds:
        return None
    time, threads_used = entry.seconds[algorithm] * 1e3, f"{threads} thread{'s' * (threads > 1)}"
    return f"measured by tune: {time:.3g} ms on {threads_used}, of {len(entry.seconds)} kernels"
