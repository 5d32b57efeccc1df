"""One library alone in a process: ``python -m bench.worker REQUEST`` validates and times it, task after task."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np

from .libraries import LIBRARIES, Skipped
from .tasks import Task, WrongResult, check, inputs, median_seconds


def run_task(library: str, task: Task, truth: Path, threads: int, seconds: float) -> dict[str, Any]:
    """The median time of one call, or why there is none. Nothing is timed that has not just given the right result."""
    data = inputs(task)  # some libraries are bound to its addresses and do not keep it alive
    try:
        ready = LIBRARIES[library](task, data, threads)
        answer = ready.call()
        if ready.result is not None:
            check(task, ready.result(answer), np.load(truth))
    except ImportError as error:
        return {"skipped": f"not installed ({error})"}
    except Skipped as reason:
        return {"skipped": str(reason)}
    except WrongResult as reason:
        return {"refused": str(reason)}
    except Exception as error:  # one broken task must not lose the others' times
        return {"refused": f"{type(error).__name__}: {error}"}
    return {
        "seconds": median_seconds(ready.call, seconds) / ready.share,
        "prepacked": ready.prepacked,
        "note": ready.note,
    }


def main(request: Path) -> None:
    library, tasks, threads, seconds = pickle.loads(request.read_bytes())
    results = [run_task(library, task, truth, threads, seconds) for task, truth in tasks]
    request.write_bytes(pickle.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
