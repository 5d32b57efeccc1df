"""What it costs to begin: import time, first calls from an empty and from a filled cache, the overhead of small calls,
the first call after a pause.

    python -m bench.startup --out bench/results/startup.json

Each number is the best of ``--rounds`` fresh processes. First calls exclude the import before them; every round has a
cache directory of its own, empty for its first process and filled for its second. A first call includes ``import
numba``, which is also timed alone. No process has environment variables that change threads or kernels.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from . import machine

TIMED = "import time; start = time.perf_counter()\n{}\nprint(time.perf_counter() - start)"
LAYER = "import numpy as np, fastconv; x, w = np.ones((1, 64, 56, 56), 'f4'), np.ones((64, 64, 3, 3), 'f4')\n"
TINY = "import numpy as np, {}; x, w = np.ones((1, 8, 8, 8), 'f4'), np.ones((8, 8, 3, 3), 'f4')\n"
REPEATED = """
import timeit
call = lambda: {}
for _ in range(200): call()
print(min(timeit.repeat(call, number=200, repeat=20)) / 200)
"""
IMPORTS = {
    "import numba after NumPy": "import numpy\n" + TIMED.format("import numba"),
    "import numpy": TIMED.format("import numpy"),
    "import fastconv, NumPy included": TIMED.format("import fastconv"),
    "import fastconv after NumPy": "import numpy\n" + TIMED.format("import fastconv"),
}
FIRST = {
    "conv2d 64x56x56": LAYER + TIMED.format("fastconv.conv2d(x, w, padding=1)"),
    "max_pool2d 64x56x56": LAYER + TIMED.format("fastconv.max_pool2d(x, 2)"),
}
OURS, PLAN = TINY.format("fastconv"), "plan = fastconv.plan_conv2d(x.shape, w, padding=1)"
TORCH = TINY.format("torch.nn.functional as f") + "x, w = f.torch.from_numpy(x), f.torch.from_numpy(w)"
SMALL = {
    "conv2d 1x8x8x8": OURS + REPEATED.format("fastconv.conv2d(x, w, padding=1)"),
    "conv2d 1x8x8x8, planned": OURS + PLAN + REPEATED.format("plan(x)"),
    "max_pool2d 1x8x8x8": OURS + REPEATED.format("fastconv.max_pool2d(x, 2)"),
    "torch conv2d 1x8x8x8": TORCH + REPEATED.format("f.conv2d(x, w, padding=1)"),
    "torch max_pool2d 1x8x8x8": TORCH + REPEATED.format("f.max_pool2d(x, 2)"),
}
PAUSED = """
import statistics, time
call = lambda: {}
def timed(pause):
    if pause: time.sleep(0.1)
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
for _ in range(50): call()
warm, paused = [], []
for _ in range(20):  # in turn, so that both see the same clock
    paused.append(timed(True))
    warm.append(statistics.median(timed(False) for _ in range(20)))
print(statistics.median({}))
"""
AFTER_PAUSES = {
    f"{name}, {which}": code + PAUSED.format(call, value)
    for name, code, call in (
        ("conv2d 64x56x56", LAYER, "fastconv.conv2d(x, w, padding=1)"),
        ("max_pool2d 64x56x56", LAYER, "fastconv.max_pool2d(x, 2)"),
        ("max_pool2d 64x56x56, one thread", LAYER + "fastconv.set_num_threads(1)", "fastconv.max_pool2d(x, 2)"),
        ("copy of 64x56x56 by NumPy", LAYER, "x.copy()"),
        (
            "torch conv2d 64x56x56",
            TORCH.replace("1, 8, 8, 8", "1, 64, 56, 56").replace("8, 8, 3, 3", "64, 64, 3, 3"),
            "f.conv2d(x, w, padding=1)",
        ),
    )
    for which, value in (("warm", "warm"), ("after 100 ms without a call", "paused"))
}
STEERING = ("OMP_", "GOMP_", "KMP_", "MKL_", "NUMBA_", "FASTCONV_TUNING", "FASTCONV_RECORD", "MALLOC_")


def seconds(code: str, **environment: str) -> float:
    """What a fresh process running ``code`` prints last, a number."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(STEERING)}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**plain, **environment}, capture_output=True, text=True, check=True
    )
    return float(done.stdout.split()[-1])


def measure(rounds: int) -> dict[str, float]:
    """Every number in seconds, by what it is."""
    torch = machine.versions()["torch"] != "not installed"
    warm = {
        name: code for name, code in (IMPORTS | SMALL | AFTER_PAUSES).items() if torch or not name.startswith("torch")
    }
    found = {name: min(seconds(code) for _ in range(rounds)) for name, code in warm.items()}
    for name, code in FIRST.items():
        pairs = []
        for _ in range(rounds):
            with tempfile.TemporaryDirectory() as folder:
                pairs.append([seconds(code, FASTCONV_CACHE_DIR=folder) for _ in range(2)])
        for cache, times in zip(("empty", "filled"), zip(*pairs, strict=True), strict=True):
            found[f"{name}, first call, {cache} cache"] = min(times)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.startup", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="fresh processes a number (default 3)")
    parser.add_argument("--out", type=Path, help="JSON file to write; the table goes beside it as .md")
    options = parser.parse_args(arguments)
    found = measure(options.rounds)
    rows = [f"| {name} | {f'{t * 1e6:.1f} µs' if t < 2e-3 else f'{t * 1e3:.0f} ms'} |" for name, t in found.items()]
    table = "\n".join(["| what | best time |", "|---|---:|", *rows]) + "\n"
    print(table, end="")
    if options.out:
        report = {
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "machine": machine.describe(), "versions": machine.versions(), "rounds": options.rounds, "seconds": found,
        }  # fmt: skip
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=1) + "\n")
        options.out.with_suffix(".md").write_text(table)


if __name__ == "__main__":
    main()
