"""fastconv beside cuDNN on a GPU: ceilings, overhead, every case of every suite, as JSON and as a Markdown table.

    python -m bench.gpu --out bench/results --seconds 300

cuDNN is called through PyTorch (``cudnn.benchmark``, TF32 off). Tasks are done in an order that begins with what
matters most, until the time is over; the report names what was left out. A process that dies loses one task, and both
files are written every few seconds, so that a run that is ended leaves what it had measured.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fastconv.testing import Case, cases

from .gpu_worker import REHEARSAL, TINY, case_named
from .tasks import Task

ROOT = Path(__file__).resolve().parent.parent
ORDER = (
    "resnet", "vgg", "pointwise", "depthwise", "pooling", "unet", "strided", "first", "awkward", "lecture", "conv1d",
    "conv3d",
)  # fmt: skip
LAYOUTS = ("channels_first", "channels_last")
ROUNDS = ((32, True), (128, True), (32, False), (128, False))
"""Batch sizes, first for what has goals of its own, convolutions forward and poolings, then for the other gradients."""
LONGEST_JOB = 90.0
"""Seconds without news after which a process is ended: a kernel does not come back."""
MARGIN = 8.0
KEEP = 10.0
"""Seconds between two writings of what has been measured."""
Job = dict[str, Any]
Results = dict[int, dict[str, Any]]
"""By number of the job."""


def ordered() -> Iterator[Case]:
    found = TINY if REHEARSAL else cases()
    return iter(sorted(found, key=lambda case: ORDER.index(case.suite) if case.suite in ORDER else len(ORDER)))


def jobs() -> list[Job]:
    """What there is to do, the most important first; each task once, also where a case has a batch of its own."""
    found: list[Job] = [{"kind": kind} for kind in ("describe", "ceilings", "overhead")]
    for batch, first in ROUNDS:
        for layout in LAYOUTS:
            for case in ordered():
                size = 2 if REHEARSAL else case.batch or batch
                found += [
                    {"kind": "task", "case": case.name, "batch": size, "direction": direction, "layout": layout}
                    for direction in case.directions
                    if (direction == "forward" or case.op != "conv") is first
                ]
    return [job for n, job in enumerate(found) if job not in found[:n]]


def run(wanted: list[Job], seconds: float, keep: Callable[[Results], object] = lambda found: None) -> Results:
    """The results; those that are missing were not begun in time. ``keep`` is shown them every few seconds."""
    found: Results = {}
    deadline = time.time() + seconds
    with tempfile.TemporaryDirectory() as folder:
        request, log = Path(folder, "request"), Path(folder, "log")
        while True:
            left = [(n, job) for n, job in enumerate(wanted) if n not in found]
            if not left or time.time() > deadline - MARGIN:
                return found
            before = found
            request.write_text(json.dumps({"jobs": left, "deadline": deadline - MARGIN}))
            log.write_text("")
            ended = _process(request, log, deadline, lambda before=before: keep(before | _read(log)[0]))
            done, started = _read(log)
            found = before | done
            if started is not None:
                found[started] = {"failed": f"the process ended: {ended}"}
            if len(found) == len(before):  # it did not come to its first job
                if time.time() < deadline - MARGIN:
                    found[left[0][0]] = {"failed": f"the process ended: {ended}"}
                    print(f"bench.gpu: {ended}", file=sys.stderr)
                return found


def _read(log: Path) -> tuple[Results, int | None]:
    """What a worker has written: the results, and the job that it has begun and not finished."""
    found: Results = {}
    started = None
    for line in log.read_text().splitlines(keepends=True):
        if not line.endswith("\n"):  # still being written
            break
        entry = json.loads(line)
        if "started" in entry:
            started = entry["started"]
        else:
            found[entry["done"]], started = entry["result"], None
    return found, started


def _process(request: Path, log: Path, deadline: float, keep: Callable[[], object]) -> str:
    """A worker, until it has ended, has been silent for too long, or the time is over; how it ended."""
    with tempfile.TemporaryFile("w+") as errors:
        command = [sys.executable, "-m", "bench.gpu_worker", str(request), str(log)]
        process = subprocess.Popen(command, cwd=ROOT, stderr=errors)
        size, news, kept, reason = 0, time.time(), time.time(), ""
        while process.poll() is None:
            time.sleep(0.05)
            if log.stat().st_size != size:
                size, news = log.stat().st_size, time.time()
                if news > kept + KEEP:
                    kept = news
                    keep()
            if time.time() > deadline + MARGIN or time.time() > news + LONGEST_JOB:
                reason = f"nothing was heard of it for {time.time() - news:.0f} s"
                process.kill()
                process.wait()
        errors.seek(0)
        lines = errors.read().strip().splitlines()
        return reason or (lines[-1] if lines else f"exit status {process.returncode}")


# ----------------------------------------------------------------------------------------------------------- report


def report(wanted: list[Job], found: Results, command: str) -> dict[str, Any]:
    """All of it as plain data."""
    general = {job["kind"]: found.get(n, {}) for n, job in enumerate(wanted) if job["kind"] != "task"}
    ceilings = general["ceilings"]
    results, left_out = [], []
    for n, job in enumerate(wanted):
        if job["kind"] != "task":
            continue
        if n not in found:
            left_out.append(job)
            continue
        task = Task(case_named(job["case"]), job["batch"], job["direction"], job["layout"])
        work, unit = task.work
        entry: dict[str, Any] = {**job, "suite": task.case.suite, "unit": unit, "work": work, **found[n]}
        if "seconds" in entry:
            entry["rate"] = work / entry["seconds"] / 1e9
            floor = max(
                task.problem.flops / (ceilings.get("TFLOP/s", math.inf) * 1e12) if unit == "GFLOP/s" else 0.0,
                task.problem.bytes / (ceilings.get("GB/s", math.inf) * 1e9),
            )
            entry["share of the roofline"] = floor / entry["seconds"]
            if "cuDNN seconds" in entry:
                entry["ratio"] = entry["cuDNN seconds"] / entry["seconds"]
        results.append(entry)
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "command": command,
        **general["describe"], "ceilings": ceilings, "overhead_us": general["overhead"],
        "geometric_means": means(results), "results": results, "left_out": left_out,
    }  # fmt: skip


def means(results: list[dict[str, Any]]) -> dict[str, float]:
    """Geometric mean of cuDNN's time over fastconv's by suite, direction and layout."""
    groups: dict[str, list[float]] = {}
    for r in results:
        if "ratio" in r:
            groups.setdefault(f"{r['suite']}, {r['direction']}, {r['layout']}", []).append(r["ratio"])
    return {name: math.exp(sum(map(math.log, ratios)) / len(ratios)) for name, ratios in groups.items()}


def markdown(found: dict[str, Any]) -> str:
    """The report as a table for people."""
    versions = ", ".join(f"{name} {version}" for name, version in found.get("versions", {}).items())
    limits, overhead = (
        ", ".join(f"{value:.3g} {name}" for name, value in found[key].items() if isinstance(value, float))
        for key in ("ceilings", "overhead_us")
    )
    intro = (
        f"{found.get('device', 'unknown device')}, {versions}, {found['date'][:10]}. Ceilings in this run: {limits}. "
        f"Microseconds of the host for a small call: {overhead}."
    )
    legend = (
        "TFLOP/s of the direct algorithm, or GB/s of input and output for poolings; roofline: the least time of the "
        "direct algorithm, by its multiply-adds or its bytes at the ceilings, over the time taken (Winograd may exceed "
        "100%). Ratio: cuDNN's time over fastconv's, above 1 fastconv is faster. ±: third quartile above the median."
    )
    lines = [
        intro,
        "",
        legend,
        "",
        "| task | rate | unit | roofline | kernel | cuDNN | ratio |",
        "|---|---:|---|---:|---|---:|---:|",
    ]
    for r in found["results"]:
        last = ", channels last" if r["layout"] == "channels_last" else ""
        name = f"{r['case']}, batch {r['batch']}, {r['direction']}{last}"
        if "seconds" not in r:
            lines.append(f"| {name} | – | | | {r.get('kernel', '')} | | {r.get('failed', 'failed')} |")
            continue
        scale, unit = (1e3, "TFLOP/s") if r["unit"] == "GFLOP/s" else (1, "GB/s")
        theirs = f"{r['work'] / r['cuDNN seconds'] / 1e9 / scale:.3g}" if "cuDNN seconds" in r else "–"
        ratio = f"{r['ratio']:.2f}" if "ratio" in r else r.get("no cuDNN", "–")
        rate, share = f"{r['rate'] / scale:.3g} ±{r['seconds, spread']:.0%}", f"{r['share of the roofline']:.0%}"
        lines.append(f"| {name} | {rate} | {unit} | {share} | {r['kernel']} | {theirs} | {ratio} |")
    if found["geometric_means"]:
        lines += ["", "| geometric mean of ratios | |", "|---|---:|"]
        lines += [f"| {name} | {mean:.2f} |" for name, mean in found["geometric_means"].items()]
    if found["left_out"]:
        names = "; ".join(
            f"{j['case']}, batch {j['batch']}, {j['direction']}, {j['layout']}" for j in found["left_out"]
        )
        lines += ["", f"Left out for lack of time, {len(found['left_out'])} tasks: {names}"]
    return "\n".join(lines) + "\n"


def summary(found: dict[str, Any]) -> str:
    """A few lines for the end of a log."""
    failed = [r for r in found["results"] if "failed" in r]
    lines = [f"{name:<45} {mean:5.2f}" for name, mean in found["geometric_means"].items()]
    lines += [f"FAILED {r['case']}, batch {r['batch']}, {r['direction']}, {r['layout']}: {r['failed']}" for r in failed]
    measured = len(found["results"]) - len(failed)
    counts = f"{measured} tasks measured, {len(failed)} failed, {len(found['left_out'])} left out for lack of time"
    return "\n".join([*lines, f"ceilings {found['ceilings']}", f"overhead in µs {found['overhead_us']}", counts])


def write(folder: Path, found: dict[str, Any]) -> None:
    """The report's two files, each replaced in one step."""
    for name, text in (("gpu.json", json.dumps(found, indent=1) + "\n"), ("gpu.md", markdown(found))):
        unfinished = folder / f"{name}.part"
        unfinished.write_text(text)
        unfinished.replace(folder / name)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="the folder for gpu.json and gpu.md")
    parser.add_argument("--seconds", type=float, default=300, help="after which no task is begun (300)")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    wanted, command = jobs(), f"python -m bench.gpu --seconds {options.seconds:g}"

    def keep(results: Results) -> dict[str, Any]:
        found = report(wanted, results, command)
        write(options.out, found)
        return found

    found = keep(run(wanted, options.seconds, keep))
    print(summary(found))
    if not any("seconds" in r for r in found["results"]) or any("failed" in r for r in found["results"]):
        sys.exit(1)


if __name__ == "__main__":
    main()
