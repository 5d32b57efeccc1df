"""What dispatch chooses, beside the fastest kernel: every convolution of the named suites, forward and gradients.

    python -m bench.choices --threads 2 --out bench/results/choices.json

Each row of the registry that can run a problem is timed through the dispatcher's own ``execute``, weights packed in
the call; the best of at least three calls counts. ``loss`` is the chosen row's time over the fastest one's. The
constants of ``fastconv/costs.py`` were read off this table.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fastconv import dispatch
from fastconv.problem import ConvProblem
from fastconv.testing import cases

from . import machine

MOST_MULTIPLY_ADDS = 8e9  # larger ones behave like their smaller batch


def problems() -> Iterator[tuple[str, ConvProblem]]:
    """Every convolution of the suites, in three directions."""
    for case in cases(op="conv"):
        for batch in case.batches("cpu"):
            problem = case.problem(batch)
            if isinstance(problem, ConvProblem) and problem.geometry.multiply_adds <= MOST_MULTIPLY_ADDS:
                for direction in ("forward", "grad_input", "grad_weight"):
                    yield f"{case.name} batch {batch}", replace(problem, direction=direction)


def best_seconds(candidate: dispatch.Candidate, problem: ConvProblem, threads: int, seconds: float) -> float:
    """The least time of a call."""
    g = problem.geometry
    x, w, y = (np.ones(shape, np.float32) for shape in (g.input_shape, g.weight_shape, g.output_shape))
    arrays: tuple[Any, ...] = {
        "forward": (x, w, None, None, y), "grad_input": (y, w, None, None, x), "grad_weight": (x, y, w),
    }[problem.direction]  # fmt: skip
    keywords = {} if problem.direction == "grad_weight" else {"activation": None, "packed": None}
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 4 or time.perf_counter() < end:
        start = time.perf_counter()
        dispatch.execute(candidate, problem, *arrays, threads=threads, **keywords)
        times.append(time.perf_counter() - start)
    return min(times[1:])


def measure(threads: int, seconds: float) -> list[dict[str, Any]]:
    """One record a problem: GFLOP/s of each row, the one chosen, and what the choice loses."""
    records = []
    for name, problem in problems():
        rows = dispatch.candidates(problem, dispatch.Options(), threads)
        able = [c for c in rows if c.able and c.row.family != "reference"]
        times = {c.algorithm: best_seconds(c, problem, threads, seconds) for c in able}
        chosen = dispatch.choose(problem, threads=threads).algorithm
        records.append(
            {
                "case": name,
                "direction": problem.direction,
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
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write; the table goes beside it as .md")
    options = parser.parse_args(arguments)
    report = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": "python -m bench.choices " + " ".join(sys.argv[1:] if arguments is None else arguments),
        "machine": machine.describe(), "versions": machine.versions(), "threads": options.threads,
        "ceilings": machine.ceilings(options.threads), "records": measure(options.threads, options.seconds),
    }  # fmt: skip
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(markdown(report))
    print(markdown(report).partition("| case")[0], end="")


if __name__ == "__main__":
    main()
