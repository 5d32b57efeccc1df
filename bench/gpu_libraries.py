"""fastconv and cuDNN on the same arrays of a GPU: how each is given a task in the way that suits it best.

Arrays are CuPy's, in the task's layout: channels-last ones are contiguous (N, *spatial, C). PyTorch, which is how
cuDNN is called, sees the same memory through DLPack.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from fastconv.kernels.geometry import ConvGeometry

from .tasks import Task

Arrays = dict[str, Any]


@dataclass
class Ready:
    """The task ready to be done, with one call for each set of arrays; ``note`` says by which kernel.

    Called, it does the task with the next set.
    """

    calls: list[Callable[[], Any]]
    note: str = ""
    turn: int = 0

    def first(self) -> Any:
        """The result for the first set."""
        return self.calls[0]()

    def __call__(self) -> Any:
        self.turn = (self.turn + 1) % len(self.calls)
        return self.calls[self.turn]()


def shapes(task: Task) -> dict[str, tuple[int, ...]]:
    """The arrays that the task reads, channels first."""
    g = task.problem.geometry
    found = {"x": g.input_shape, "dy": g.output_shape}
    needed: tuple[str, ...] = ("x",) if task.direction == "forward" else ("x", "dy")
    if isinstance(g, ConvGeometry):
        found["w"] = g.weight_shape
        needed = {"forward": ("x", "w"), "grad_input": ("dy", "w"), "grad_weight": ("x", "dy")}[task.direction]
    return {name: found[name] for name in needed}


def laid(task: Task, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """An array's shape as the task's layout shows it; weights are the same in both."""
    n, c, *spatial = shape
    return (n, *spatial, c) if task.layout == "channels_last" and name != "w" else shape


def _sizes(task: Task) -> dict[str, Any]:
    c = task.case
    sizes = {"stride": c.stride, "padding": c.padding, "dilation": c.dilation}
    return {**sizes, "groups": c.groups} if c.op == "conv" else sizes


# --------------------------------------------------------------------------------------------------------- fastconv


def fastconv(task: Task, sets: list[Arrays], algorithm: str = "auto") -> Ready:
    """Convolutions forward as plans, weights packed once, into given arrays; gradients by the functions of
    ``fastconv.grad``, which allocate; poolings as functions, their gradients as backward runs them. Each call takes the
    next set of arrays."""
    return (_convolution if task.case.op == "conv" else _pooling)(task, sets, algorithm)


def _convolution(task: Task, sets: list[Arrays], algorithm: str) -> Ready:
    import cupy

    import fastconv as fc

    op = f"conv{task.case.rank}d"
    options = {**_sizes(task), "layout": task.layout, "algorithm": algorithm}
    if task.direction == "forward":
        plan = getattr(fc, f"plan_{op}")(sets[0]["x"].shape, sets[0]["w"], **options)
        calls = [partial(plan, s["x"], out=cupy.empty(plan.output_shape, np.float32)) for s in sets]
        return Ready(calls, plan.algorithm)
    g = task.problem.geometry
    if task.direction == "grad_input":
        function, size = getattr(fc.grad, f"{op}_input"), laid(task, "x", g.input_shape)
        calls = [partial(function, size, s["w"], s["dy"], **options) for s in sets]
    else:
        function = getattr(fc.grad, f"{op}_weight")
        calls = [partial(function, s["x"], g.weight_shape, s["dy"], **options) for s in sets]
    return Ready(calls, fc.explain(calls[0]).chosen)


def _pooling(task: Task, sets: list[Arrays], algorithm: str) -> Ready:
    import fastconv as fc
    from fastconv import pooling
    from fastconv.problem import adaptive_pool_problem, pool_problem

    case = task.case
    options: dict[str, Any] = {"layout": task.layout} | (_sizes(task) if case.kernel else {})
    build, size, prefix = (pool_problem, case.kernel, "") if case.kernel else (adaptive_pool_problem, 1, "adaptive_")
    with fc.options(algorithm=algorithm):
        if task.direction == "forward":
            function = getattr(fc, f"{prefix}{case.op}{case.rank}d")
            calls = [partial(function, s["x"], size, **options) for s in sets]
            if case.kernel:
                calls = [partial(c, out=c()) for c in calls]
            return Ready(calls, fc.explain(calls[0]).chosen)
        calls = []
        for s in sets:  # what a recorded forward pass leaves for backward: compact positions of the maxima
            wanted = "int32" if case.op == "max_pool" else None
            y, indices, problem = pooling.pool(
                case.op, case.rank, build, case.op, s["x"], size, indices=wanted, **options
            )
            saved = () if indices is None else (indices,)
            calls.append(partial(pooling.pool_gradient, problem, s["dy"], *saved, like=y, batched=True))
        return Ready(calls, fc.explain(calls[0]).chosen)


# ------------------------------------------------------------------------------------------------------------ cuDNN


def peer(task: Task, sets: list[Arrays], tensor: Callable[[Any], Any]) -> Ready:
    """PyTorch's functions, as eager code calls them; ``tensor`` makes one of an array. Channels-last arrays become
    tensors in PyTorch's channels-last format, which one dimension lacks."""
    import torch

    form = {"channels_first": torch.contiguous_format}.get(task.layout) or {
        4: torch.channels_last, 5: torch.channels_last_3d,
    }[task.case.rank + 2]  # fmt: skip
    given = []
    for s in sets:
        tensors = {name: tensor(a) for name, a in s.items()}
        if task.layout == "channels_last":
            for name in set(tensors) - {"w"}:
                tensors[name] = tensors[name].movedim(-1, 1)
        if "w" in tensors:
            tensors["w"] = tensors["w"].contiguous(memory_format=form)
        given.append(tensors)
    calls = [(_torch_convolution if task.case.op == "conv" else _torch_pooling)(torch, task, t, form) for t in given]
    return Ready(calls)


def _torch_convolution(torch: Any, task: Task, t: Arrays, form: Any) -> Callable[[], Any]:
    case, g = task.case, task.problem.geometry
    if task.direction == "forward":
        function = getattr(torch.nn.functional, f"conv{case.rank}d")
        return torch.no_grad()(partial(function, t["x"], t["w"], None, **_sizes(task)))
    wanted = 0 if task.direction == "grad_input" else 1
    like = t["dy"]
    x = t.get("x")
    if x is None:  # of which only the shape is used
        x = torch.empty(g.input_shape, dtype=like.dtype, device=like.device, memory_format=form)
    w = t.get("w")
    if w is None:
        w = torch.empty(g.weight_shape, dtype=like.dtype, device=like.device, memory_format=form)
    mask = [wanted == 0, wanted == 1, False]
    arguments = (case.stride, case.padding, case.dilation, False, [0] * case.rank, case.groups, mask)
    backward = torch.ops.aten.convolution_backward
    return lambda: backward(like, x, w, None, *arguments)[wanted]


def _torch_pooling(torch: Any, task: Task, t: Arrays, form: Any) -> Callable[[], Any]:
    del form
    case = task.case
    if not case.kernel:
        function = partial(getattr(torch.nn.functional, f"adaptive_{case.op}{case.rank}d"), output_size=1)
    else:
        sizes = _sizes(task)
        if case.op == "avg_pool":
            del sizes["dilation"]
        function = partial(getattr(torch.nn.functional, f"{case.op}{case.rank}d"), kernel_size=case.kernel, **sizes)
    if task.direction == "forward":
        return torch.no_grad()(partial(function, t["x"]))
    x = t["x"].detach().requires_grad_()
    y = function(x)
    return lambda: torch.autograd.grad(y, x, t["dy"], retain_graph=True)[0]


def channels_first(task: Task, result: Any) -> Any:
    """fastconv's result as PyTorch's lies: channels first, for comparing."""
    if task.layout == "channels_first" or task.direction == "grad_weight":
        return result
    return result.transpose(0, result.ndim - 1, *range(1, result.ndim - 1))
