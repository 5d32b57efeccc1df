"""The constants of ``fastconv/costs.py``, fitted to measured times.

    python -m bench.choices --out bench/results/choices.json
    python -m bench.calibrate bench/results/choices.json --write

Each kernel's predicted time is a sum of amounts of work, each times a constant. First the constants are fitted to the
times, kernel by kernel: non-negative least squares on relative errors, a few times with outliers weighted down (a
neighbour on the machine makes some measurements too long). Then all are moved a little together, to where the
predictions *choose* best: the least time that choices lose, with near ties counted by how likely they fall either way.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import minimize, nnls

from fastconv import costs
from fastconv.kernels.winograd_matrices import VARIANTS

from .choices import problems

KEPT = {kernel: costs.COSTS[kernel] for kernel in ("bfloat16", "bf16x3 direct", "bf16x3 winograd")}
"""Not among a default run's choices, which are of float32 by its own products: read off ResNet's layers in bfloat16,
fitted by themselves to prepared layers of up to 1.2e9 multiply-adds under ``precision="emulated"``."""

TIE = 0.04  # predictions so close, relatively, may fall either way
STIFFNESS = 0.02  # how much a constant resists being moved away from its fit

Array = np.ndarray[Any, np.dtype[np.float64]]
Constant = tuple[str, str]


class Samples(NamedTuple):
    """A row for each measured time; those of one problem follow each other."""

    constants: list[Constant]  # (kernel, kind of work)
    work: Array  # (samples, constants): of one thread
    seconds: Array
    kernels: list[str]
    starts: Array  # where each problem's samples begin


def samples(path: Path) -> Samples:
    """The measured times of a file of :mod:`bench.choices`, and the work that they took."""
    report = json.loads(path.read_text())
    variants = {f"winograd_{v.name}{how}": v for v in VARIANTS for how in ("", "_phases")}
    rows: list[tuple[str, costs.Work, float]] = []
    starts = []
    for (name, problem), record in zip(problems(), report["records"], strict=True):
        if record["case"] != name:
            raise ValueError(f"{path} was measured on other problems: {record['case']} where {name} is now")
        threads = max(1, min(report["threads"], problem.geometry.multiply_adds // costs.THREAD_WORK))
        starts.append(len(rows))
        for algorithm, rate in record["GFLOP/s"].items():
            kernel, work = costs.work_of(algorithm, variants.get(algorithm), problem, threads)
            shared = {kind: amount / threads for kind, amount in work.items()}
            rows.append((kernel, shared, problem.flops / max(rate, 0.05) / 1e9))
    constants = sorted({(kernel, kind) for kernel, work, _ in rows for kind in work})
    index = {constant: i for i, constant in enumerate(constants)}
    matrix = np.zeros((len(rows), len(constants)))
    for i, (kernel, work, _) in enumerate(rows):
        for kind, amount in work.items():
            matrix[i, index[kernel, kind]] = amount
    return Samples(constants, matrix, np.array([t for *_, t in rows]), [k for k, *_ in rows], np.array(starts))


def fit(s: Samples) -> Array:
    """Seconds of a unit of each kind of work, kernel by kernel."""
    constants = np.zeros(len(s.constants))
    for kernel in sorted(set(s.kernels)):
        mine = np.array([k == kernel for k in s.kernels])
        columns = [i for i, (k, _) in enumerate(s.constants) if k == kernel]
        seconds = np.maximum(s.seconds[mine] - costs.CALL_SECONDS, 1e-6)
        work = s.work[mine][:, columns] / seconds[:, None]
        scale = np.maximum(work.max(axis=0), 1e-300)
        weight = np.ones(len(seconds))
        for _ in range(20):
            found, _ = nnls(work / scale * weight[:, None], weight)
            error = np.abs(work / scale @ found - 1)
            weight = 1 / np.sqrt(1 + (error / 0.1) ** 2)
        constants[columns] = found / scale
        print(f"{kernel:14s} {len(seconds):4d} times, {len(columns):2d} constants, median error {np.median(error):.0%}")
    return constants


def sharpen(s: Samples, fitted: Array) -> Array:
    """The constants moved to where the predictions choose best."""
    used = np.flatnonzero(fitted)
    counts = np.diff([*s.starts, len(s.seconds)])
    best = np.repeat(np.minimum.reduceat(s.seconds, s.starts), counts)
    loss = np.minimum(np.log(s.seconds / best), 0.5)

    def chances(steps: Array) -> Array:
        predicted = np.log(costs.CALL_SECONDS + s.work[:, used] @ (fitted[used] * np.exp(steps)))
        least = np.repeat(np.minimum.reduceat(predicted, s.starts), counts)
        likely = np.exp((least - predicted) / TIE)
        return np.asarray(likely / np.repeat(np.add.reduceat(likely, s.starts), counts))

    def lost(steps: Array) -> float:
        return float(chances(steps) @ loss) + STIFFNESS * float(steps @ steps)

    result = minimize(lost, np.zeros(len(used)), method="L-BFGS-B", options={"maxiter": 60})
    print(
        f"lost by choosing: {lost(np.zeros(len(used))):.2f} before, {chances(result.x) @ loss:.2f} after (sum of logs)"
    )
    moved = fitted.copy()
    moved[used] *= np.exp(result.x)
    return moved


def source(s: Samples, constants: Array) -> str:
    table: dict[str, dict[str, float]] = {}
    for (kernel, kind), value in zip(s.constants, constants, strict=True):
        if value:
            table.setdefault(kernel, {})[kind] = float(f"{value:.3g}")
    lines = ["COSTS: dict[str, dict[str, float]] = {"]
    for kernel, found in (table | KEPT).items():
        lines.append(f'    "{kernel}": {{')
        lines += [f'        "{kind}": {value!r},' for kind, value in found.items()]
        lines.append("    },")
    return "\n".join([*lines, "}"]) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.calibrate", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("choices", type=Path)
    parser.add_argument("--write", action="store_true", help="into fastconv/costs.py; otherwise print them")
    options = parser.parse_args(arguments)
    measured = samples(options.choices)
    text = source(measured, sharpen(measured, fit(measured)))
    if not options.write:
        print(text)
        return
    path = Path(costs.__file__)
    pattern = re.compile(r"(# calibrated: begin\n).*(# calibrated: end\n)", re.DOTALL)
    path.write_text(pattern.sub(lambda m: m[1] + text + m[2], path.read_text()))


if __name__ == "__main__":
    main()
