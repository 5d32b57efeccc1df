"""Whole networks in PyTorch: eager, channels last, beside the same model after ``convert``.

    python -m bench.torch_networks --out bench/results/torch_networks.json

One image of 224×224, in inference mode. Each way runs alone in a process of its own, and the processes take turns,
``--rounds`` times; of the rounds' medians the best is kept. Before a process is timed its result is compared with the
eager model's in float64: off by more than 1e-4 of the largest element, it has no time.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import machine
from .compare import HEAP, UNTUNED
from .torch_models import NETWORKS, build

WAYS = ("eager", "eager-channels-last", "converted", "converted-channels-last")
TOLERANCE = 1e-4


def measure(name: str, way: str, threads: int, seconds: float, size: int) -> dict[str, Any]:
    """The median time of a call in this process, in milliseconds, and how far the result is off."""
    import torch

    import fastconv
    from fastconv.backends import torch as fct

    torch.set_num_threads(threads)
    fastconv.set_num_threads(threads)
    model = build(name)
    x = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    if way.endswith("channels-last"):  # weights made in inference mode have no version counters, and so no plans
        x, model = x.to(memory_format=torch.channels_last), model.to(memory_format=torch.channels_last)
    if way.startswith("converted"):
        model = fct.convert(model)
    with torch.inference_mode():
        exact = build(name).double()(x.double())
        y = model(x)  # compiles, packs
        off = float((y - exact).abs().max() / exact.abs().max())
        if not off <= TOLERANCE:
            return {"off": off, "ms": None}
        times: list[float] = []
        warm = time.perf_counter() + seconds / 4
        while time.perf_counter() < warm:
            model(x)
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or len(times) < 5:
            start = time.perf_counter()
            model(x)
            times.append(time.perf_counter() - start)
    return {"off": off, "ms": statistics.median(times) * 1e3, "calls": len(times)}


def run(name: str, way: str, options: argparse.Namespace) -> dict[str, Any]:
    """:func:`measure` in a process of its own."""
    threads = str(options.threads)
    command = [sys.executable, "-m", "bench.torch_networks", "--worker", name, way, "--threads", threads]
    command += ["--seconds", str(options.seconds), "--size", str(options.size)]
    done = subprocess.run(
        command, env={**os.environ, **HEAP, **UNTUNED, "OMP_NUM_THREADS": threads}, stdout=subprocess.PIPE, text=True,
        check=True, cwd=Path(__file__).resolve().parent.parent,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def table(results: dict[str, dict[str, list[dict[str, Any]]]]) -> str:
    """Milliseconds of the best round, and how many times faster than eager, channels last, the better converted is."""
    lines = ["| network | " + " | ".join(f"{w}, ms" for w in WAYS) + " | eager-channels-last ÷ converted | off by |"]
    lines.append("|---" * (len(WAYS) + 3) + "|")
    for name, ways in results.items():
        best = {w: min((r["ms"] for r in ways[w] if r["ms"] is not None), default=None) for w in ways}
        cells = ["wrong" if best.get(w) is None else f"{best[w]:.1f}" if w in ways else "" for w in WAYS]
        ours = [best[w] for w in WAYS[2:] if best.get(w)]
        theirs = best.get("eager-channels-last")
        ratio = f"{theirs / min(ours):.2f}" if ours and theirs else ""
        off = max(r["off"] for w in WAYS[2:] for r in ways.get(w, ()))
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {ratio} | {off:.1e} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--size", type=int, default=224, help="height and width of the image")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", nargs=2, metavar=("NETWORK", "WAY"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        name, way = options.worker
        print(json.dumps(measure(name, way, options.threads, options.seconds, options.size)))
        return
    results: dict[str, Any] = {name: {way: [] for way in WAYS} for name in options.network}
    for turn in range(options.rounds):
        for name in options.network:
            for i in range(len(WAYS)):
                way = WAYS[(turn + i) % len(WAYS)]
                results[name][way].append(run(name, way, options))
    text = table(results)
    print(text)
    if options.out:
        facts = {
            "date": datetime.date.today().isoformat(), "machine": machine.describe(), "versions": machine.versions(),
            "command": shlex.join(["python", "-m", "bench.torch_networks", *(arguments or sys.argv[1:])]),
        }  # fmt: skip
        options.out.write_text(json.dumps({**facts, "results": results}, indent=1) + "\n")
        options.out.with_suffix(".md").write_text(text + "\n")


if __name__ == "__main__":
    main()
