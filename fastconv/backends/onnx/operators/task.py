"""What an operator tells the executor: one node with all shapes known, ready to run.

An operator is a function ``(call) -> Task | None``, registered under ONNX's name by :func:`operator`. ``call`` holds
the node, the shape and dtype of each input, and the arrays of those that are constant; None says that this form of the
operator is not done here, and the node then runs through ``onnx.reference``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ....arrays import dtype_name
from ....problem import DTYPES
from ...memory import check_fits
from ..graph import Array, Node

Sizes = tuple[int, ...]
Run = Callable[..., None]


class Spec(NamedTuple):
    """The shape and the dtype of an array."""

    shape: Sizes
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Orders(NamedTuple):
    """Whether channels come last in memory: of a task's first input and of its output."""

    given: bool = False
    made: bool = False


class Replay(NamedTuple):
    """How to note what a task launches: ``record(workspace, *arrays)`` gives the launches on these arrays and on
    ``nbytes`` of scratch memory, or None where ``run`` does more than launch kernels."""

    nbytes: int
    record: Callable[..., list[Any] | None]


@dataclass(frozen=True)
class Task:
    """One node, all shapes known.

    outputs   shape and dtype of each result
    run       ``run(*inputs, *outputs)``: the arrays of the inputs at the places ``reads``, then those to be written
    view      gives the one output as a view of the first input, or as a copy where that cannot be; ``run`` then copies
    known     the result itself, where it follows from shapes
    orders    how arrays may lie: "any" ``run`` is as fast however they lie, as long as all lie alike; "first" channels
              first; "own": ``prepare(orders)`` gives a ``run`` for channels first or last, ``seconds(orders)`` its time
    note      what :meth:`Executor.explain` says of it
    strided   whether the output may be a part of a larger array
    replay    for tasks that only launch kernels: several in a row run without Python between them
    """

    outputs: tuple[Spec, ...]
    run: Run | None = None
    reads: tuple[int, ...] = ()
    view: Callable[[Array], Array] | None = None
    known: Array | None = None
    orders: str = "first"
    prepare: Callable[[Orders], Run] | None = None
    seconds: Callable[[Orders], float] | None = None
    note: Callable[[Orders], str] | None = None
    strided: bool = True
    replay: Callable[[Orders], Replay] | None = None


class Call:
    """A node with what is known of its inputs. ``weights`` is where an executor keeps what it has packed."""

    def __init__(
        self, node: Node, specs: Sequence[Spec | None], constants: Sequence[Array | None], weights: Any = None
    ):
        self.node, self.specs, self.constants, self.weights = node, specs, constants, weights

    def attribute(self, name: str, default: Any = None) -> Any:
        return self.node.attributes.get(name, default)

    def has(self, place: int) -> bool:
        return self.node.has(place)

    def spec(self, place: int = 0) -> Spec:
        found = self.specs[place]
        assert found is not None
        return found

    def constant(self, place: int) -> Array | None:
        """The input at this place, where it is given and constant."""
        return self.constants[place] if self.has(place) else None

    def unknown(self, *places: int) -> bool:
        """Whether one of these inputs is given without being constant."""
        return any(self.has(i) and self.constants[i] is None for i in places)

    def integers(self, place: int, attribute: str) -> list[int] | None:
        """What newer versions of an operator take as an input, and older ones as an attribute."""
        if self.has(place):
            given = self.constant(place)
            return None if given is None else [int(v) for v in np.ravel(given)]
        value = self.attribute(attribute)
        return None if value is None else [int(v) for v in value]

    def axis(self, given: int, rank: int) -> int:
        """An axis of so many dimensions, counted from the front."""
        if not -rank <= given < rank:
            raise ValueError(f"{self.node}: there is no axis {given} in {rank} dimensions")
        return int(given) % rank

    @property
    def present(self) -> tuple[int, ...]:
        return tuple(i for i, name in enumerate(self.node.inputs) if name)

    def floating(self, *places: int) -> bool:
        """Whether these inputs are of a dtype that fastconv's kernels take, and of one."""
        dtypes = {self.spec(i).dtype for i in places}
        return len(dtypes) == 1 and dtype_name(next(iter(dtypes))) in DTYPES


Operator = Callable[[Call], Task | None]

OPERATORS: dict[str, Operator] = {}
"""By ONNX's name, all of its default domain."""


def operator(*names: str) -> Callable[[Operator], Operator]:
    """Register an operator under these names of ONNX's."""

    def register(function: Operator) -> Operator:
        OPERATORS.update(dict.fromkeys(names, function))
        return function

    return register


def task_of(call: Call) -> Task | None:
    """The node as a task, or None where it does not run here."""
    function = OPERATORS.get(call.node.op) if call.node.domain == "" else None
    if function is None or any(spec is not None and spec.dtype.hasobject for spec in call.specs):
        return None  # strings have no place in a block of memory
    try:
        task = function(call)
    except Exception as error:  # shapes that do not go together, attributes out of range: NumPy names no node
        said = str(error) or type(error).__name__
        raise ValueError(said if str(call.node) in said else f"{call.node}: {said}") from error
    for spec in task.outputs if task is not None else ():
        check_fits(str(call.node), spec.nbytes)
    return task


def evaluate(node: Node, inputs: Sequence[Array | None], limit: int) -> list[Array] | None:
    """What a node gives for these arrays; None where it has no task or would give more than ``limit`` bytes."""
    if node.op not in OPERATORS or node.domain:
        return None
    specs = [None if a is None else Spec(a.shape, a.dtype) for a in inputs]
    task = task_of(Call(node, specs, inputs))
    if task is None:
        return None
    if task.known is not None:
        return [task.known]
    if task.run is None or sum(s.nbytes for s in task.outputs) > limit:
        return None
    results = [np.empty(s.shape, s.dtype) for s in task.outputs]
    with np.errstate(all="ignore"):
        task.run(*(inputs[i] for i in task.reads), *results)
    return results
