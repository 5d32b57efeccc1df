"""Every case of every suite in every direction, with the kernel that fastconv chooses.

pytest bench --benchmark-only -k resnet
"""

from typing import Any

import pytest

from fastconv.testing import Case, cases

from .libraries import expected, fastconv
from .tasks import Task, check, inputs

EVERY = [(case, direction) for case in cases() for direction in case.directions]


@pytest.mark.parametrize(("case", "direction"), EVERY, ids=[f"{case.name}-{direction}" for case, direction in EVERY])
def test_speed(benchmark: Any, request: pytest.FixtureRequest, case: Case, direction: str) -> None:
    task = Task(case, case.batch or request.config.getoption("--batch"), direction, "channels_first")
    data = inputs(task)
    ready = fastconv(task, data)
    check(task, ready.result(ready.call()), expected(task))
    work, unit = task.work
    benchmark.extra_info |= {"work": work, "unit": unit, "kernel": ready.note, "prepacked": ready.prepacked}
    benchmark(ready.call)
