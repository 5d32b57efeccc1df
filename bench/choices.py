"""What dispatch chooses, beside the fastest kernel: every convolution of the named suites, forward and gradients.

    python -m bench.choices --threads 2 --out bench/results/choices.json

Each row of the registry that can run a problem is timed through the dispatcher's own ``execute``, weights packed in
the call, and forward a second time with weights prepared beforehand, as in a plan. The rows take turns, three times
each, and the best of all calls counts. ``loss`` is the chosen row's time over the fastest one's. The constants of
``fastconv/costs.py`` were read off this table.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fastconv import dispatch, settings
from fastconv.problem import ConvProblem
from fastconv.targets import resolve
from fastconv.testing import cases

from . import machine

MOST_MULTIPLY_ADDS = 8e9  # larger ones behave like their smaller batch


def problems() -> Iterator[tuple[str, ConvProblem]]:
    """Every convolution of the suites, in three directions, forward also prepared, in either layout."""
    for case in cases(op="conv"):
        for batch in case.batches("cpu"):
            problem = case.problem(batch)
            if isinstance(problem, ConvProblem) and problem.geometry.multiply_adds <= MOST_MULTIPLY_ADDS:
                for direction in ("forward", "grad_input", "grad_weight"):
                    yield f"{case.name} batch {batch}", replace(problem, direction=direction)
                for layout in ("channels_first", "channels_last"):
                    yield f"{case.name} batch {batch}", replace(problem, prepared=True, layout=layout)


def caller(candidate: dispatch.Candidate, problem: ConvProblem, threads: int) -> Callable[[], None]:
    """A call of one row, on random numbers: AMX is faster with zeros, and ones are split into two of them."""
    g, numbers = problem.geometry, np.random.default_rng(0).standard_normal(1 << 16, np.float32)
    x, w, y = (np.resize(numbers, shape) for shape in (g.input_shape, g.weight_shape, g.output_shape))
    if problem.layout == "channels_last":
        x, y = (np.moveaxis(np.ascontiguousarray(np.moveaxis(a, 1, -1)), -1, 1) for a in (x, y))
    if problem.direction == "grad_weight":
        return partial(dispatch.execute, candidate, problem, x, y, w, threads=threads)
    packed = None
    if problem.prepared and candidate.row.prepare is not None:
        packed = resolve(candidate.row.prepare)(g, w)
    given, out = (x, y) if problem.direction == "forward" else (y, x)
    return partial(
        dispatch.execute, candidate, problem, given, w, None, None, out, threads=threads, activation=None, packed=packed
    )


def best_seconds(calls: dict[str, Callable[[], None]], seconds: float, rounds: int = 3) -> dict[str, float]:
    """The least time of each call, all taking turns."""
    best = dict.fromkeys(calls, math.inf)
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            call()  # its arrays come back into the caches
            end = time.perf_counter() + seconds / rounds
            while True:
                start = time.perf_counter()
                call()
                now = time.perf_counter()
                best[name] = min(best[name], now - start)
                if now >= end:
                    break
    return best


def measure(threads: int, seconds: float, precision: str) -> list[dict[str, Any]]:
    """One record a problem: GFLOP/s of each row, the one chosen, and what the choice loses."""
    records, allowed = [], settings.Options(precision=precision)
    for name, problem in problems():
        rows = dispatch.candidates(problem, allowed, threads)
        able = [c for c in rows if c.able and c.row.family != "reference"]
        times = best_seconds({c.algorithm: caller(c, problem, threads) for c in able}, seconds)
        chosen = dispatch.choose(problem, allowed, threads).algorithm
        records.append(
            {
                "case": name,
                "direction": problem.direction
                + ", prepared" * problem.prepared
                + ", channels last" * (problem.layout == "channels_last"),
                "GFLOP/s": {a: round(problem.flops / t / 1e9, 1) for a, t in times.items()},
                "chosen": chosen,
                "loss": round(times[chosen] / min(times.values()), 3),
            }
        )
    return records


def markdown(report: dict[str, Any]) -> str:
    """The records as a table, and how often the choice is right."""
    records = report["records"]
    names = sorted({a for r in records for a in r["GFLOP/s"]})
    lines = [
        f"{report['machine']['cpu']}, {report['threads']} threads, {report['date']}, ceilings {report['ceilings']}",
        "",
        f"`{report['command']}`",
        "",
        *(f"- within {p}% of the fastest row: {_within(records, p)} of {len(records)}" for p in (5, 10, 25)),
        "",
        f"| case | direction | {' | '.join(f'{n} GFLOP/s' for n in names)} | chosen | loss |",
        f"|---|---|{'---:|' * len(names)}---|---:|",
    ]
    for r in records:
        rates = " | ".join(str(r["GFLOP/s"].get(n, "–")) for n in names)
        lines.append(f"| {r['case']} | {r['direction']} | {rates} | {r['chosen']} | {r['loss']:.2f} |")
    return "\n".join(lines) + "\n"


def _within(records: list[dict[str, Any]], percent: int) -> int:
    return sum(r["loss"] <= 1 + percent / 100 for r in records)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.choices", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=0.02, help="spent on one measurement, at least (0.02)")
    parser.add_argument("--precision", choices=settings.PRECISIONS, default="ieee")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write; the table goes beside it as .md")
    options = parser.parse_args(arguments)
    report = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": "python -m bench.choices " + " ".join(sys.argv[1:] if arguments is None else arguments),
        "machine": machine.describe(), "versions": machine.versions(), "threads": options.threads,
        "ceilings": machine.ceilings(options.threads),
        "records": measure(options.threads, options.seconds, options.precision),
    }  # fmt: skip
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(markdown(report))
    print(markdown(report).partition("| case")[0], end="")


if __name__ == "__main__":
    main()
