"""In which order each array of a program lies in memory: channels first or channels last.

Convolutions and poolings run in either order, and may read one and write the other; elementwise operators are fast
where all their arrays lie alike; everything else reads and writes channels first. So arrays that elementwise operators
tie together form a group of one order, and the choice is which groups come channels last. It starts with none of them,
and with all; from there the group that saves most is turned, again and again, until none saves anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from .graph import Node
from .operators import Orders, Spec, Task

COPY_RATE = 4e9
"""Bytes a second of an array that is read in an order that does not suit."""

WORTH = 0.98
"""Predicted time below which channels last are taken: predictions are not better than that."""


class Work(NamedTuple):
    """A node and what it comes to."""

    node: Node
    task: Task


class Groups:
    """Names tied together, and whether a group is free to turn."""

    def __init__(self) -> None:
        self.above: dict[str, str] = {}
        self.fixed: set[str] = set()

    def of(self, name: str) -> str:
        while (above := self.above.setdefault(name, name)) != name:
            self.above[name] = name = self.above.setdefault(above, above)
        return name

    def tie(self, a: str, b: str) -> None:
        a, b = self.of(a), self.of(b)
        if a != b:
            self.above[a] = b
            if a in self.fixed:
                self.fixed.add(b)

    def fix(self, name: str) -> None:
        self.fixed.add(self.of(name))

    def free(self, name: str) -> bool:
        return self.of(name) not in self.fixed


def _groups(works: Iterable[Work], specs: Mapping[str, Spec], fixed: Iterable[str]) -> Groups:
    groups = Groups()
    for name in fixed:
        groups.fix(name)
    for node, task in works:
        outputs = [name for name in node.outputs if name]
        if task.orders == "first":
            for name in outputs:
                groups.fix(name)
        elif task.orders == "any":
            shape = task.outputs[0].shape
            reads = [node.inputs[i] for i in task.reads]
            for name in (*reads, *outputs):
                if name in specs and len(specs[name].shape) == len(shape) and len(shape) > 2:
                    groups.tie(name, outputs[0])
        for name in outputs:
            if not 3 <= len(specs[name].shape) <= 5:
                groups.fix(name)
    return groups


def choose(works: Sequence[Work], specs: Mapping[str, Spec], fixed: Iterable[str]) -> dict[str, bool]:
    """For each name, whether its channels come last. ``fixed``: names that stay channels first."""
    groups = _groups(works, specs, fixed)
    touching: dict[str, list[Work]] = {}
    for work in works:
        for name in {groups.of(n) for n in (*work.node.inputs, *work.node.outputs) if n in specs}:
            touching.setdefault(name, []).append(work)
    free = [name for name in touching if groups.free(name)]

    def cost(some: Iterable[Work], last: set[str]) -> float:
        return sum(_seconds(work, specs, lambda name: groups.of(name) in last) for work in some)

    def improved(last: set[str]) -> tuple[float, set[str]]:
        while True:
            gains = {name: cost(touching[name], last) - cost(touching[name], last ^ {name}) for name in free}
            best = max(gains, key=lambda name: gains[name], default="")
            if not gains or gains[best] <= 1e-9:
                return cost(works, last), last
            last = last ^ {best}

    plain, last = cost(works, set()), set[str]()
    found, candidate = min((improved(set()), improved(set(free))), key=lambda pair: pair[0])
    if found < WORTH * plain:
        last = candidate
    return {name: groups.of(name) in last for name in specs}


def _seconds(work: Work, specs: Mapping[str, Spec], is_last: Callable[[str], bool]) -> float:
    """The part of a task's time that depends on orders."""
    node, task = work
    reads = [node.inputs[i] for i in task.reads if node.inputs[i] in specs]
    if task.orders == "own" and task.seconds is not None and reads:
        orders = Orders(is_last(reads[0]), is_last(node.outputs[0]))
        others = [n for n in reads[1:] if is_last(n) != orders.made]
        return task.seconds(orders) + sum(specs[n].nbytes for n in others) / COPY_RATE
    if task.orders == "first":
        return sum(specs[n].nbytes for n in reads if is_last(n)) / COPY_RATE
    return 0.0
