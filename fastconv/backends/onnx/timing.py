"""A model timed by one library alone in its process: ``python -m fastconv.backends.onnx.timing LIBRARY FOLDER``.

Processes of several libraries take turns (:func:`turns`), so that a disturbance meets all of them and no library's
waiting threads take a core from another. A process prints its library's version once the model has run, then answers
each line on its input, a number of seconds, with a median.

The folder holds ``request.json`` (model, threads), ``inputs.npz``, and afterwards ``LIBRARY.npz`` with the results.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...extras import extra

ROUNDS = 5
REST = 0.1  # seconds between turns: threads that wait by spinning have gone to sleep by then

LIBRARIES = {"fastconv": "fastconv", "onnxruntime": "ONNX Runtime"}


class Timed(NamedTuple):
    """What a library needed for a run: the best of its rounds' medians, and its results; or why there are none."""

    library: str
    seconds: float
    results: list[np.ndarray]
    refused: str = ""


def turns(
    libraries: Sequence[str], model: Path, inputs: dict[str, np.ndarray], threads: int, seconds: float, folder: Path
) -> list[Timed]:
    """Time each library, in processes that take turns; each round takes every library ``seconds / ROUNDS``."""
    request = {"model": str(model.resolve()), "threads": threads, "names": list(inputs)}
    (folder / "request.json").write_text(json.dumps(request))
    np.savez(folder / "inputs.npz", **{str(i): x for i, x in enumerate(inputs.values())})  # type: ignore[arg-type]
    running = [_Process(name, folder) for name in libraries]
    medians: dict[str, list[float]] = {name: [] for name in libraries}
    try:
        started = {process.name: process.started() for process in running}
        for _ in range(ROUNDS):
            for process in running:
                if not started[process.name].get("refused"):
                    medians[process.name].append(process.turn(seconds / ROUNDS))
                    time.sleep(REST)
    finally:
        for process in running:
            process.end()
    timed = []
    for name in libraries:
        told = started[name]
        if told.get("refused"):
            timed.append(Timed(LIBRARIES[name], float("nan"), [], told["refused"]))
            continue
        with np.load(folder / f"{name}.npz", allow_pickle=False) as saved:
            results = [saved[key] for key in sorted(saved, key=lambda key: int(key[4:]))]
        timed.append(Timed(f"{LIBRARIES[name]} {told['version']}", min(medians[name]), results))
    return timed


class _Process:
    """The other end of :func:`main`."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.log = open(folder / f"{name}.log", "w+")  # noqa: SIM115  # closed by end()
        self.child = subprocess.Popen(
            [sys.executable, "-m", "fastconv.backends.onnx.timing", name, str(folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True,
        )  # fmt: skip

    def started(self) -> dict[str, str]:
        assert self.child.stdout is not None
        line = self.child.stdout.readline()
        if not line:
            self.log.seek(0)
            last = (self.log.read().strip().splitlines() or ["its process ended"])[-1]
            return {"refused": last}
        told: dict[str, str] = json.loads(line)
        return told

    def turn(self, seconds: float) -> float:
        assert self.child.stdin is not None
        assert self.child.stdout is not None
        self.child.stdin.write(f"{seconds}\n")
        self.child.stdin.flush()
        return float(self.child.stdout.readline())

    def end(self) -> None:
        self.child.kill()
        self.child.communicate()
        self.log.close()


# ----------------------------------------------------------------------------------------------------- in the process


def _fastconv(model: str, inputs: dict[str, np.ndarray], threads: int) -> tuple[str, Callable[[], Sequence[Any]]]:
    from ... import __version__
    from .executor import Executor

    run = Executor(model, threads=threads).run
    return __version__, lambda: run(inputs)


def _onnxruntime(model: str, inputs: dict[str, np.ndarray], threads: int) -> tuple[str, Callable[[], Sequence[Any]]]:
    runtime = extra("onnxruntime", "bench", "a comparison with ONNX Runtime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
    session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return runtime.__version__, lambda: session.run(None, inputs)


def median(run: Callable[[], Any], seconds: float) -> float:
    """The median duration of runs over so many seconds, three runs at least."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main(name: str, folder: Path) -> None:
    """Run the model once, say so, and then answer each line of standard input."""
    request = json.loads((folder / "request.json").read_text())
    with np.load(folder / "inputs.npz", allow_pickle=False) as saved:
        inputs = {given: saved[str(i)] for i, given in enumerate(request["names"])}
    build = {"fastconv": _fastconv, "onnxruntime": _onnxruntime}[name]
    version, run = build(request["model"], inputs, request["threads"])
    np.savez(folder / f"{name}.npz", *(np.asarray(y) for y in run()))
    print(json.dumps({"version": version}), flush=True)
    for line in sys.stdin:
        print(median(run, float(line)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
