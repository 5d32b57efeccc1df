"""Rows of layers: convolutions and poolings of a traced module that follow each other, run as one.

    conv ── pool ── conv ──┬── conv ── + ── linear        a row of five, and linear as it was
                           └── conv ───┘

Called one by one, each layer is Python, a look whether its plan still holds, fresh memory for what it gives, and work
handed out to the threads anew. The second call of a row with inputs of some shapes notes what its layers launch (see
``kernels.cpu.sequence``); later ones make the same checks, write the addresses of inputs and outputs into the launches'
tables and run them in one parallel region. What lies between the layers lies in memory that the row keeps, so a row is
for one thread at a time; others call its layers one by one, as does everyone where something has changed.

One image of 224 x 224, two threads: ResNet-18 13.0 ms layer by layer (11.9 with one workspace for all), 10.0 as a row.
"""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import fx, nn

from fastconv.settings import default_threads

from ..memory import Life, block, offsets
from . import again
from .again import only_numbers
from .folding import Fold, observed
from .layers import Pooling, _Convolution, thread
from .tensors import channels_last_view, tensor

KEPT = 4
"""Kinds of inputs for which a row is kept ready."""
DTYPES = (torch.float32, torch.float64)


class Step(NamedTuple):
    """A layer and where its inputs are among a row's values: the row's inputs, then what each step gives."""

    run: Fold | nn.Module
    places: tuple[int, ...]

    @property
    def fold(self) -> Fold | None:
        return self.run if isinstance(self.run, Fold) else None

    @property
    def layer(self) -> Any:
        return self.run.convolution if isinstance(self.run, Fold) else self.run


class Row:
    """``steps`` on ``arity`` inputs, giving the values at ``outputs``: a tensor, or a tuple of several."""

    __module__ = __name__  # torch.fx asks a function's module and name

    def __init__(self, steps: Sequence[Step], arity: int, outputs: tuple[int, ...]) -> None:
        self.steps, self.arity, self.outputs = tuple(steps), arity, outputs
        self.ready: dict[Any, Ready] = {}
        self.calls: dict[Any, int] = {}
        """By kinds of inputs, as ``ready``: calls whose layers ran one by one."""
        self.__name__ = "row"

    def __call__(self, *inputs: torch.Tensor) -> Any:
        key = _key(inputs)
        ready = self.ready.get(key)
        results = None if ready is None else ready(inputs)
        if results is None:
            values = self._one_by_one(inputs)
            results = [values[i] for i in self.outputs]
            if key is not None and (ready is None or not ready.stands()):
                self._learn(key, values)
        return results[0] if len(results) == 1 else tuple(results)

    def _one_by_one(self, inputs: Sequence[torch.Tensor]) -> list[Any]:
        values: list[Any] = list(inputs)
        for step in self.steps:
            values.append(step.run(*[values[i] for i in step.places]))
        return values

    def _learn(self, key: Any, values: list[Any]) -> None:
        """Be ready for the next call of this kind, after the second one by one, the fourth, the eighth: where layers
        change between calls, or cannot be noted, little is spent on trying."""
        calls = self.calls[key] = self.calls.get(key, 0) + 1
        self.ready.pop(key, None)
        if calls > 1 and calls & (calls - 1) == 0:
            ready = Ready.of(self, values)
            if ready is not None:
                self.ready[key] = ready
        for kept in (self.ready, self.calls):
            for oldest in list(kept)[:-KEPT]:
                kept.pop(oldest, None)  # another thread may have been quicker


def _key(inputs: Sequence[torch.Tensor]) -> Any:
    """What a row depends on besides its modules; None where its layers must run one by one."""
    threads = default_threads()
    if not threads or thread.plain or not only_numbers(*inputs) or torch.is_autocast_enabled("cpu"):
        return None
    key: list[Any] = [threads, torch.is_grad_enabled()]  # a call for gradients leaves what is ready for numbers alone
    for x in inputs:
        if not x.is_cpu or x.layout is not torch.strided or x.dtype not in DTYPES or x.is_neg():
            return None
        key += x.shape, x.stride(), x.dtype
    return tuple(key)


# ------------------------------------------------------------------------------------------------------------ at once


class Noted(NamedTuple):
    """What a row keeps of one layer."""

    nbytes: int
    """Of scratch memory."""
    stands: Callable[[], bool]
    """Whether the layer would do the same again."""
    record: Callable[..., list[Any] | None]
    """Its launches, given arrays of its inputs, its output and the scratch memory."""


def _noted(step: Step, inputs: list[torch.Tensor]) -> Noted | None:
    """Of a layer that has just been called with these inputs."""
    layer = step.layer
    if isinstance(layer, _Convolution):
        found = layer.prepared(inputs[0], step.fold, inputs[1] if len(inputs) > 1 else None)
        if found is None:
            return None
        plan: Any = found.plan

        def record(given: list[np.ndarray], out: np.ndarray, scratch: np.ndarray) -> Any:
            return plan.launches(given[0], given[1] if len(given) > 1 else None, out, scratch)

        return Noted(plan.workspace_bytes, partial(layer.stands, found, step.fold), record)
    arguments = layer.values()
    _, ready = again.find(type(layer).function.__name__, tuple(inputs), arguments)
    if ready is None:
        return None

    def stands() -> bool:
        return not observed(layer) and all(map(operator.is_, layer.values(), arguments))

    def record_pool(given: list[np.ndarray], out: np.ndarray, scratch: np.ndarray) -> Any:
        from fastconv.kernels.cpu.sequence import record

        def run(x: np.ndarray, y: np.ndarray) -> None:
            ready.function(*map(channels_last_view, (x, y)) if ready.last else (x, y))

        return record(run, given[0], out)

    return Noted(0, stands, record_pool)


class Place(NamedTuple):
    """A field of a table that holds an address in an input or an output: in which of them, and how far in."""

    table: np.ndarray
    field: int
    value: int
    offset: int


class Ready:
    """A row's launches, on memory of its own but for inputs and outputs."""

    def __init__(self, row: Row, layers: list[Noted], launches: list[Any], memory: Memory) -> None:
        from fastconv.kernels.cpu.arrays import address
        from fastconv.kernels.cpu.sequence import Sequence as Launches

        self.checks = [layer.stands for layer in layers]
        self.places: list[Place] = []
        for one in launches:
            for field, place in zip(one.bound.places, one.addresses, strict=True):
                for value, (first, last) in enumerate(memory.spans):
                    if first <= place < last:
                        self.places.append(Place(one.table, field, value, place - first))
        self.made = [(memory.arrays[i].dtype, *_order(memory.arrays[i])) for i in row.outputs]
        self.sequence, self.address = Launches(launches, (layers, memory)), address
        self.lock = threading.Lock()

    @classmethod
    def of(cls, row: Row, values: list[Any]) -> Ready | None:
        """After a call that gave these values; None where a layer does more than launch kernels."""
        from fastconv.kernels.cpu.sequence import ABLE

        if not ABLE or any(type(v) is not torch.Tensor or not v.numel() for v in values):
            return None
        layers: list[Noted] = []
        for step in row.steps:
            layer = _noted(step, [values[i] for i in step.places])
            if layer is None:
                return None
            layers.append(layer)
        memory = Memory(row, values, max(layer.nbytes for layer in layers))
        launches: list[Any] = []
        for n, (step, layer) in enumerate(zip(row.steps, layers, strict=True), row.arity):
            found = layer.record([memory.arrays[i] for i in step.places], memory.arrays[n], memory.scratch)
            if found is None:
                return None
            launches += found
        alike = len({type(one.bound.kind) for one in launches}) == 1
        return cls(row, layers, launches, memory) if alike else None

    def stands(self) -> bool:
        """Whether every layer would do the same again."""
        return all(check() for check in self.checks)

    def __call__(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor] | None:
        """The outputs; None where the layers must run one by one."""
        if not self.stands() or not self.lock.acquire(blocking=False):
            return None
        try:
            made = [np.empty(shape, dtype) for dtype, shape, _ in self.made]
            addresses = [x.data_ptr() for x in inputs] + [self.address(a) for a in made]
            itemsize = self.made[0][0].itemsize
            if any(place % itemsize for place in addresses):
                return None
            for table, field, value, offset in self.places:
                table[field] = addresses[value] + offset
            self.sequence()
        finally:
            self.lock.release()
        return [tensor(a.transpose(order)) for a, (_, _, order) in zip(made, self.made, strict=True)]


def _order(a: np.ndarray) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shape of a contiguous array, and how to transpose it for one like ``a``, which has no gaps."""
    axes = sorted(range(a.ndim), key=lambda axis: -a.strides[axis])
    return tuple(a.shape[axis] for axis in axes), tuple(map(axes.index, range(a.ndim)))


class Memory:
    """An array for each of a row's values, none of which overlap while they are needed.

    Those of inputs and outputs only stand for what calls bring and get: their ``spans`` of addresses are told apart
    from all others, whatever the tensors of the call share with each other.
    """

    def __init__(self, row: Row, values: list[torch.Tensor], nbytes: int) -> None:
        from fastconv.kernels.cpu.arrays import aligned_empty
        from fastconv.kernels.cpu.sequence import span

        end, arity = len(row.steps), row.arity
        outer = [*range(arity), *row.outputs]
        last = dict(enumerate([n - arity for n in range(len(values))]))
        for n, step in enumerate(row.steps):
            last.update(dict.fromkeys(step.places, n))
        inner = [i for i in range(arity, len(values)) if i not in outer]
        sizes = [values[i].numel() * values[i].itemsize for i in inner]
        lives = [Life(size, i - arity, min(last[i], end)) for i, size in zip(inner, sizes, strict=True)]
        places, total = offsets(lives)
        self.scratch = aligned_empty(nbytes, np.dtype(np.uint8))
        self.block, beginnings = block(total), dict(zip(inner, places, strict=True))
        self.arrays: list[np.ndarray] = []
        for i, value in enumerate(values):
            like = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype).numpy()
            if i in beginnings:
                like = np.ndarray(like.shape, like.dtype, self.block.data, beginnings[i], like.strides)
            self.arrays.append(like)
        self.spans = [span(self.arrays[i]) for i in outer]


# ---------------------------------------------------------------------------------------------------------- in a graph


def join(graph: fx.Graph, modules: dict[Any, nn.Module]) -> list[Row]:
    """Make rows of the nodes that follow each other and are convolutions or poolings of fastconv's."""
    rows: list[Row] = []
    stretch: list[fx.Node] = []
    for node in list(graph.nodes):
        if _able(node, modules):
            stretch.append(node)
        elif node.op not in ("placeholder", "get_attr"):  # which do nothing
            inside = set(stretch)
            if len(stretch) > 1 and not all(inside.issuperset(node.users) for node in stretch):  # else nobody asks
                rows.append(_replace(graph, stretch, node, modules))
            stretch = []
    return rows


def _able(node: fx.Node, modules: dict[Any, nn.Module]) -> bool:
    if node.kwargs or not node.args or not all(isinstance(a, fx.Node) for a in node.args):
        return False
    if node.op == "call_function":
        return isinstance(node.target, Fold)
    layer = modules[node.target] if node.op == "call_module" and len(node.args) == 1 else None
    return isinstance(layer, _Convolution) or (isinstance(layer, Pooling) and not getattr(layer, "return_indices", 0))


def _replace(graph: fx.Graph, stretch: list[fx.Node], following: fx.Node, modules: dict[Any, nn.Module]) -> Row:
    inside = set(stretch)
    given = list(dict.fromkeys(a for node in stretch for a in node.all_input_nodes if a not in inside))
    places = {node: i for i, node in enumerate([*given, *stretch])}
    made = [node for node in stretch if not inside.issuperset(node.users)]
    steps = []
    for node in stretch:
        run: Any = node.target if node.op == "call_function" else modules[node.target]
        steps.append(Step(run, tuple(places[a] for a in node.args if isinstance(a, fx.Node))))
    row = Row(steps, len(given), tuple(places[node] for node in made))
    with graph.inserting_before(following):
        result = graph.call_function(row, tuple(given))
        for i, node in enumerate(made):
            one = result if len(made) == 1 else graph.call_function(operator.getitem, (result, i))
            node.replace_all_uses_with(one, delete_user_cb=lambda user: user not in inside)
    for node in reversed(stretch):
        graph.erase_node(node)
    return row
