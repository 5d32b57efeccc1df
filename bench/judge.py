"""Holds results of ``bench.compare`` to the project's goals for the CPU, class by class.

    python -m bench.compare --suite resnet vgg --direction forward call --out bench/results/a.json
    python -m bench.compare --suite depthwise pooling --direction forward call --out bench/results/b.json
    python -m bench.judge bench/results/a.json bench/results/b.json --out bench/results/judged.md

Ratios are fastconv's rate over a peer's in the same run; a task that several files hold counts as the last one says.
Every miss is listed by name, with its share of the floor that the same run measured (:mod:`bench.floor`).
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastconv.testing import Case, cases

from .libraries import FLOOR
from .tasks import memory_bound

Result = dict[str, Any]
OURS, ONE = "fastconv", "fastconv-one-thread"
TORCH = ("torch", "torch-channels-last")
ENGINES = ("onnxruntime", "openvino")
BIG = ("torch", "torch-channels-last", "onnxruntime", "openvino")  # those that goals call the best peer, ncnn apart
EVERYONE = (*BIG, "ncnn")
NEAR_FLOOR = 0.85
NEAR_PEAK, PEAK_FLOPS = 0.92, 1e9
SCALING, SCALING_SECONDS = 1.85, 5e-3
CASES = {case.name: case for case in cases()}


@dataclass(frozen=True)
class Goal:
    """The best of ``peers`` is to be beaten by ``mean`` (geometric) over a class, by ``worst`` on each of its tasks.

    With ``or_floor`` a task that runs at 85% of its floor counts as ``mean`` times as fast, whatever the peers do.
    """

    peers: tuple[str, ...]
    mean: float
    worst: float
    or_floor: bool = False

    def __str__(self) -> str:
        each = f", none under {self.worst:g}" if self.worst < self.mean else ", each"
        floor = f" or {NEAR_FLOOR:.0%} of the floor" * self.or_floor
        return f"≥ {self.mean:g}{each}{floor} × {self.rivals}"

    @property
    def rivals(self) -> str:
        """The peers in few words."""
        return {BIG: "the best but ncnn", EVERYONE: "the best"}.get(self.peers, " or ".join(self.peers))


@dataclass(frozen=True)
class Class:
    """Tasks that share their goals; a task belongs to the first class that takes it."""

    name: str
    takes: Callable[[Case, Result], bool]
    goals: tuple[Goal, ...]


def _square(case: Case, kernel: int) -> bool:
    return case.op == "conv" and set(case.kernel) == {kernel} and case.rank == 2 and set(case.stride) == {1}


def _wide(case: Case, result: Result) -> bool:
    plain = case.groups == 1 and set(case.dilation) == {1}
    return plain and _square(case, 3) and min(case.channels, case.filters) >= 64 and min(case.size) >= 14


CLASSES = (
    Class("one unprepared call", lambda c, r: r["direction"] == "call", (Goal(("torch",), 1.3, 0.95),)),
    Class(
        "3×3, 512 channels at 14 px, batch 1",
        lambda c, r: _wide(c, r) and c.channels >= 512 and max(c.size) <= 14 and r["batch"] == 1,
        (Goal(BIG, 1.5, 1.5), Goal(("ncnn",), 1.5, 1.5)),
    ),
    Class("3×3, ≥ 64 channels, ≥ 14 px", _wide, (Goal(BIG, 3.0, 2.0), Goal(("ncnn",), 2.0, 1.5))),
    Class("depthwise", lambda c, r: c.op == "conv" and memory_bound(c), (Goal(EVERYONE, 1.3, 1.3, or_floor=True),)),
    Class("5×5", lambda c, r: _square(c, 5) and c.suite != "awkward", (Goal(EVERYONE, 1.5, 1.5),)),
    Class("other convolutions", lambda c, r: c.op == "conv", (Goal(EVERYONE, 1.0, 0.92),)),
    Class(
        "pooling",
        lambda c, r: True,
        (
            Goal(("torch",), 10.0, 10.0, or_floor=True),
            Goal(("torch-channels-last",), 1.2, 1.2, or_floor=True),
            Goal(ENGINES, 1.2, 1.2, or_floor=True),
        ),
    ),
)


# ------------------------------------------------------------------------------------------------------- arithmetic


def rate(result: Result, library: str) -> float | None:
    found: float | None = result["libraries"].get(library, {}).get("rate")
    return found


def ratio(result: Result, peers: Iterable[str]) -> float | None:
    """fastconv's rate over the best of some peers'; None where either has none."""
    ours, theirs = rate(result, OURS), [r for p in peers if (r := rate(result, p)) is not None]
    return ours / max(theirs) if ours is not None and theirs else None


def floor_share(result: Result) -> float | None:
    """How much of what the machine could do at most, in the same run."""
    return ratio(result, [FLOOR])


def mean(ratios: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, ratios)) / len(ratios))


@dataclass
class Verdict:
    """What one goal found on one class at one batch size."""

    title: str
    goal: Goal
    ratios: dict[str, float] = field(default_factory=dict)
    misses: list[str] = field(default_factory=list)
    unmeasured: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return bool(self.ratios) and not self.misses and not self.unmeasured and self.mean_reached

    @property
    def mean_reached(self) -> bool:
        return self.goal.worst == self.goal.mean or mean(list(self.ratios.values())) >= self.goal.mean


def judge(results: Sequence[Result]) -> list[Verdict]:
    """One verdict for each class, batch size and goal that has tasks."""
    verdicts: dict[tuple[str, int, Goal], Verdict] = {}
    for r in sorted(results, key=lambda r: r["batch"]):
        if r["direction"] not in ("forward", "call") or r["layout"] != "channels_first":
            continue
        case = CASES[r["case"]]
        kind = next(k for k in CLASSES if k.takes(case, r))
        for goal in kind.goals:
            if goal.peers == ("ncnn",) and r["batch"] != 1:
                continue
            title = f"{kind.name}, batch {r['batch']}" if "batch" not in kind.name else kind.name
            verdict = verdicts.setdefault((kind.name, r["batch"], goal), Verdict(title, goal))
            _weigh(verdict, r)
    order = {k.name: i for i, k in enumerate(CLASSES)}
    return [v for _, v in sorted(verdicts.items(), key=lambda item: (order[item[0][0]], item[0][1]))]


def _weigh(verdict: Verdict, result: Result) -> None:
    goal, found, share = verdict.goal, ratio(result, verdict.goal.peers), floor_share(result)
    if found is None:
        reasons = [r.get("refused") for r in result["libraries"].values() if "refused" in r]
        if rate(result, OURS) is None or reasons:  # a peer that does not do the task at all is no miss
            verdict.unmeasured.append(f"{result['case']} ({'; '.join(filter(None, reasons)) or 'not measured'})")
        return
    verdict.ratios[result["case"]] = found
    if found < goal.worst and not (goal.or_floor and share is not None and share >= NEAR_FLOOR):
        notes = [result["libraries"][OURS].get("note"), None if share is None else f"{share:.0%} of the floor"]
        verdict.misses.append(f"{result['case']} {found:.2f} ({', '.join(filter(None, notes))})")


def at_peak(results: Sequence[Result]) -> list[tuple[str, float]]:
    """Share of the multiply-adds' peak of direct and pointwise kernels on layers over 1 GFLOP."""
    return [
        (f"{r['case']} batch {r['batch']}", share)
        for r in results
        if r["direction"] == "forward"
        and r["work"] > PEAK_FLOPS
        and r["libraries"].get(OURS, {}).get("note") in ("direct", "pointwise")
        and not memory_bound(CASES[r["case"]])
        and (share := floor_share(r)) is not None
    ]


def scaling(results: Sequence[Result]) -> list[tuple[str, float]]:
    """What the threads gain over one, on layers that take one thread over 5 ms."""
    return [
        (f"{r['case']} batch {r['batch']}", gain)
        for r in results
        if r["direction"] == "forward"
        and r["libraries"].get(ONE, {}).get("seconds", 0.0) > SCALING_SECONDS
        and (gain := ratio(r, [ONE])) is not None
    ]


# ---------------------------------------------------------------------------------------------------------- a table


def markdown(results: Sequence[Result]) -> str:
    """The verdicts as a table, then every miss."""
    lines = ["| class | goal | tasks | mean | worst | verdict |", "|---|---|---:|---:|---:|---|"]
    misses: list[str] = []
    for v in judge(results):
        values = list(v.ratios.values())
        shown = f"{len(values)} | {mean(values):.2f} | {min(values):.2f}" if values else "0 | – | –"
        failed = len(v.misses) + len(v.unmeasured)
        word = "pass" if v.passed else "not measured" if not values else f"{failed} miss{'es' * (failed != 1)}"
        if values and not v.mean_reached:
            word += ", mean"
        lines.append(f"| {v.title} | {v.goal} | {shown} | {word} |")
        misses += [f"- {v.title} (× {v.goal.rivals}): {text}" for text in (*v.misses, *v.unmeasured)]
    for name, found, least in (
        ("direct and pointwise over 1 GFLOP, share of the peak", at_peak(results), NEAR_PEAK),
        ("threads over one, layers over 5 ms", scaling(results), SCALING),
    ):
        if found:
            values = [value for _, value in found]
            short = [f"- {name}: {task} {value:.2f}" for task, value in found if value < least]
            word = "pass" if not short else f"{len(short)} miss{'es' * (len(short) != 1)}"
            lines.append(f"| {name} | ≥ {least:g} | {len(found)} | {mean(values):.2f} | {min(values):.2f} | {word} |")
            misses += short
    return "\n".join([*lines, "", *misses]).rstrip() + "\n"


def read(paths: Sequence[Path]) -> tuple[list[Result], list[str]]:
    """The files' results, a later file's word last, and a line about each file."""
    results: dict[tuple[Any, ...], Result] = {}
    about = []
    for path in paths:
        report = json.loads(path.read_text())
        for r in report["results"]:
            results[r["case"], r["batch"], r["direction"], r["layout"]] = r
        ceiling = report["ceilings"]["before"]
        about.append(
            f"- {path.name}: {report['machine']['cpu']}, {report['threads']} threads, {report['rounds']} rounds, "
            f"{report['date'][:10]}, {ceiling['GFLOP/s']:g} GFLOP/s, copy {ceiling['GB/s']:g} GB/s"
        )
    return list(results.values()), about


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.judge", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("results", nargs="+", type=Path, help="JSON files of bench.compare")
    parser.add_argument("--out", type=Path, help="file to write the table to as well")
    options = parser.parse_args(arguments)
    results, about = read(options.results)
    text = "\n".join([*about, "", markdown(results)])
    print(text, end="")
    if options.out:
        options.out.write_text(text)


if __name__ == "__main__":
    main()
