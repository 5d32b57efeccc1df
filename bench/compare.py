"""fastconv beside other libraries on the named suites, as JSON and as a Markdown table.

    python -m bench.compare --suite resnet pooling --batch 1 16 --threads 2 --rounds 3 --out bench/results/today.json

Every library runs alone in a process of its own; the processes take turns, ``--rounds`` times, so that a disturbance
hits all of them. Each result is validated before it is timed. Of the rounds' medians the best is kept, and how far the
worst lies above it is the spread. ``python -m bench.judge`` holds the results to the project's goals.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import pickle
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastconv.testing import SUITES, cases

from . import machine
from .libraries import FLOOR, LIBRARIES, expected
from .tasks import Task

ROOT = Path(__file__).resolve().parent.parent
DIRECTIONS = ("forward", "call", "grad_input", "grad_weight")
DEFAULT_LIBRARIES = [name for name in LIBRARIES if name not in ("fastconv-direct", "fastconv-im2col")]
LAYOUTS = ("channels_first", "channels_last")
HEAP = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40), "MALLOC_TOP_PAD_": str(1 << 26)}
"""glibc keeps freed memory. A library that returns a fresh array a call would otherwise be timed faulting its pages."""
UNTUNED = {"FASTCONV_TUNING": "off"}
"""What is compared is what everyone gets."""


def tasks_of(options: argparse.Namespace) -> list[Task]:
    return [
        Task(case, batch, direction, layout)
        for suite in options.suite
        for case in cases(suite)
        if re.search(options.case, case.name)
        for layout in options.layout
        for direction in (*case.directions, *(["call"] if case.op == "conv" else []))
        if direction in options.direction
        for batch in ((case.batch,) if case.batch else options.batch)
    ]


def run_worker(library: str, tasks: Sequence[tuple[Task, Path]], options: argparse.Namespace) -> list[dict[str, Any]]:
    """One process of one library over all tasks."""
    threads = str(options.threads)
    limits = {f"{name}_NUM_THREADS": threads for name in ("OMP", "MKL", "OPENBLAS", "NUMBA")}
    with tempfile.TemporaryDirectory() as folder:
        request = Path(folder, "request")
        request.write_bytes(pickle.dumps((library, tasks, options.threads, options.seconds)))
        done = subprocess.run(
            [sys.executable, "-m", "bench.worker", request], env={**os.environ, **limits, **HEAP, **UNTUNED},
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
            return [{"refused": f"the process failed: {last}"}] * len(tasks)
        results: list[dict[str, Any]] = pickle.loads(request.read_bytes())
        return results


def merge(rounds: list[dict[str, Any]], work: float) -> dict[str, Any]:
    """The rounds of one library on one task: best median, spread and rate; or the reason why there is none."""
    bad = [r for r in rounds if "seconds" not in r]
    if bad:
        return bad[0]
    times = [r["seconds"] for r in rounds]
    best = min(times)
    rate = {"rate": work / best / 1e9, "spread": max(times) / best - 1, "medians": times}
    return {**rounds[0], "seconds": best, **rate}


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Run everything; the report as plain data."""
    tasks = tasks_of(options)
    rounds: dict[str, list[list[dict[str, Any]]]] = {library: [] for library in options.libraries}
    before = machine.ceilings(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        truths: dict[tuple[Any, ...], Path] = {}
        for task in tasks:
            path = truths.setdefault(_truth(task), Path(folder, f"{len(truths)}.npy"))
            if not path.exists():
                np.save(path, expected(task))
        given = [(task, truths[_truth(task)]) for task in tasks]
        for n in range(options.rounds):
            for i in range(len(options.libraries)):
                library = options.libraries[(i + n) % len(options.libraries)]
                print(f"round {n + 1} of {options.rounds}: {library}", file=sys.stderr, flush=True)
                rounds[library].append(run_worker(library, given, options))
    results = []
    for t, task in enumerate(tasks):
        work, unit = task.work
        merged = {library: merge([r[t] for r in rounds[library]], work) for library in options.libraries}
        ours, peers = _best(merged, True), _best(merged, False)
        ratio = ours / peers if ours and peers else None
        results.append({
            "suite": task.case.suite, "case": task.case.name, "batch": task.batch, "direction": task.direction,
            "layout": task.layout, "unit": unit, "work": work, "ratio": ratio, "libraries": merged,
        })  # fmt: skip
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": options.command, "machine": machine.describe(), "versions": machine.versions(),
        "threads": options.threads, "rounds": options.rounds,
        "ceilings": {"before": before, "after": machine.ceilings(options.threads)},
        "geometric_means": geometric_means(results), "results": results,
    }  # fmt: skip


def _truth(task: Task) -> tuple[Any, ...]:
    """What decides a task's result: neither its layout nor how it is called."""
    return task.case, task.batch, "forward" if task.direction == "call" else task.direction


def _best(merged: dict[str, dict[str, Any]], ours: bool) -> float | None:
    """The rate that counts: what ``fastconv`` chooses by itself (the best of its variants where that was not asked
    for), or the best of the others."""
    rates = {n: r["rate"] for n, r in merged.items() if "rate" in r and n.startswith("fastconv") == ours and n != FLOOR}
    return rates.get("fastconv", max(rates.values(), default=None))


def geometric_means(results: list[dict[str, Any]]) -> dict[str, float]:
    """Mean ratio to the best peer by suite, direction and layout, over the tasks that a peer does too."""
    groups: dict[str, list[float]] = {}
    for r in results:
        if r["ratio"] is not None:
            groups.setdefault(f"{r['suite']}, {r['direction']}, {r['layout']}", []).append(r["ratio"])
    return {name: math.exp(sum(map(math.log, ratios)) / len(ratios)) for name, ratios in groups.items()}


def markdown(report: dict[str, Any]) -> str:
    """The report as a table for people."""
    libraries = list(report["results"][0]["libraries"]) if report["results"] else []
    ceiling = report["ceilings"]["before"]
    intro = (
        f"{report['machine']['cpu']}, threads: {report['threads']}, rounds: {report['rounds']}, {report['date'][:10]}. "
        f"Ceilings in this run: {ceiling['GFLOP/s']:g} GFLOP/s ({ceiling['GFLOP/s, 1 thread']:g} on one thread), copy "
        f"{ceiling['GB/s']:g} GB/s. `*`: weights prepacked. "
        "±: the worst round's median above the best's. Ratio: fastconv to the best other library; above 1 fastconv is "
        "faster."
    )
    lines = [
        intro,
        "",
        "| task | unit | " + " | ".join(libraries) + " | ratio |",
        "|---|---|" + "---:|" * (len(libraries) + 1),
    ]
    reasons: dict[str, set[str]] = {}
    for r in report["results"]:
        cells = []
        for name, found in r["libraries"].items():
            if "rate" in found:
                note = f" {found['note']}" if name == "fastconv" and found["note"] else ""
                mark = "*" if found["prepacked"] else ""
                cells.append(f"{found['rate']:.3g}{mark} ±{found['spread']:.0%}{note}")
            else:
                cells.append("wrong" if "refused" in found else "–")
                reasons.setdefault(name, set()).add(found.get("skipped") or found["refused"])
        last = ", channels last" if r["layout"] == "channels_last" else ""
        ratio = "–" if r["ratio"] is None else f"{r['ratio']:.2f}"
        task = f"{r['case']}, batch {r['batch']}, {r['direction']}{last}"
        lines.append(f"| {task} | {r['unit']} | " + " | ".join(cells) + f" | {ratio} |")
    if report["geometric_means"]:
        lines += ["", "| geometric mean of ratios | |", "|---|---:|"]
        lines += [f"| {name} | {mean:.2f} |" for name, mean in report["geometric_means"].items()]
    lines += ["", *(f"- {name}: {'; '.join(sorted(why))}" for name, why in reasons.items())]
    return "\n".join(lines).rstrip() + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.compare", description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--suite", nargs="+", choices=SUITES, default=list(SUITES), help="default: all")
    add("--case", default="", help="only cases whose name this regular expression finds")
    add("--batch", nargs="+", type=int, default=[1, 16], help="default: 1 16")
    add("--direction", nargs="+", choices=DIRECTIONS, default=DIRECTIONS, help="default: all")
    add("--layout", nargs="+", choices=LAYOUTS, default=LAYOUTS[:1], help="default: channels_first")
    add(
        "--libraries", nargs="+", choices=LIBRARIES, default=DEFAULT_LIBRARIES, help="default: all, no forced algorithm"
    )
    add("--threads", type=int, default=machine.describe()["cores"], help="CPU threads of each library")
    add("--rounds", type=int, default=3, help="processes of each library (3)")
    add("--seconds", type=float, default=0.3, help="time spent on one measurement (0.3)")
    add("--out", type=Path, required=True, help="the JSON file; the table goes beside it as .md")
    options = parser.parse_args(arguments)
    options.command = "python -m bench.compare " + shlex.join(sys.argv[1:] if arguments is None else arguments)
    report = compare(options)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    table = markdown(report)
    options.out.with_suffix(".md").write_text(table)
    print(table, end="")


if __name__ == "__main__":
    main()
