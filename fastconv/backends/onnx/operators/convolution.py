"""Conv and ConvTranspose on plans; on the functions where the weights are no constants.

After :mod:`..passes` a Conv may have a residual as its fourth input and an attribute ``activation``:
y = activation(conv(x, w) + bias + residual).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

from .... import functional, plan
from ....arrays import dtype_name
from ....dispatch import Candidate, Workspace, select
from ....plan import ConvPlan
from ....problem import ConvProblem, conv_problem, conv_transpose_problem
from ..graph import Array
from .task import Call, Orders, Replay, Run, Sizes, Spec, Task, operator
from .windows import Window, pairs, sizes, spatial_rank, window


class Kind(NamedTuple):
    """An operator's public name, and what plans or runs it in one to three dimensions."""

    name: str
    problem: Any
    plans: tuple[Any, ...]
    functions: tuple[Any, ...]


KINDS = {
    "Conv": Kind("conv", conv_problem, plan.plan_conv, functional.conv),
    "ConvTranspose": Kind(
        "conv_transpose", conv_transpose_problem, plan.plan_conv_transpose, functional.conv_transpose
    ),
}

TURNING = 8e9
"""Bytes a second of an output that is written in another order than the input is read in."""


@operator("Conv")
def conv(call: Call) -> Task | None:
    used = _window(call)
    parameters = {"stride": used.stride, "padding": used.padding, "dilation": used.dilation}
    return _task(call, {**parameters, "groups": call.attribute("group", 1)})


@operator("ConvTranspose")
def conv_transpose(call: Call) -> Task | None:
    used = _window(call)
    rank, spatial = used.rank, call.spec().shape[2:]
    extra = sizes(call, "output_padding", rank, 0)
    automatic, wanted = call.attribute("auto_pad", "NOTSET"), call.attribute("output_shape")
    padding = pairs(call, rank) if automatic in ("NOTSET", "") else ((0, 0),) * rank
    if wanted is not None or automatic.startswith("SAME"):
        out = (
            sizes(call, "output_shape", rank, 0)
            if wanted
            else tuple(n * s for n, s in zip(spatial, used.stride, strict=True))
        )
        spans = [(k - 1) * d + 1 for k, d in zip(used.kernel, used.dilation, strict=True)]
        totals = [
            s * (n - 1) + e + span - m
            for s, n, e, span, m in zip(used.stride, spatial, extra, spans, out, strict=True)
        ]  # fmt: skip
        extra = tuple(e - min(t, 0) for e, t in zip(extra, totals, strict=True))
        halves = [(max(t, 0) // 2, max(t, 0) - max(t, 0) // 2) for t in totals]
        padding = tuple((a, b) if automatic == "SAME_UPPER" else (b, a) for a, b in halves)
    parameters = {"stride": used.stride, "padding": padding, "dilation": used.dilation, "output_padding": extra}
    return _task(call, {**parameters, "groups": call.attribute("group", 1)})


def _window(call: Call) -> Window:
    rank, shape = spatial_rank(call), call.spec(1).shape
    if len(shape) != rank + 2:
        raise ValueError(f"{call.node}: weights of shape {shape} for an input of shape {call.spec().shape}")
    told = call.attribute("kernel_shape")
    if told is not None and tuple(told) != shape[2:]:
        raise ValueError(f"{call.node}: kernel_shape is {list(told)}, and the weights have the shape {shape}")
    return window(call, shape[2:])


def last(shape: Sizes) -> Sizes:
    """A shape with its channels last."""
    return (shape[0], *shape[2:], shape[1])


def _task(call: Call, parameters: dict[str, Any]) -> Task:
    places = [i for i in (0, 1, 2) if call.has(i)]
    if not call.floating(*places):
        given = ", ".join(str(call.spec(i).dtype) for i in places)
        raise ValueError(f"{call.node}: inputs must be of one floating-point dtype, got {given}")
    x, w = call.spec(0), call.spec(1)
    kind, rank = KINDS[call.node.op], len(x.shape) - 2
    bias = call.spec(2).shape if call.has(2) else None
    build = partial(
        kind.problem, f"{kind.name}{rank}d", rank, x.shape, w.shape, bias_shape=bias, dtype=dtype_name(x.dtype),
        **parameters,
    )  # fmt: skip
    problem = build()
    g = problem.geometry
    made = Spec(g.output_shape if problem.direction == "forward" else g.input_shape, x.dtype)
    return _dynamic(call, made, parameters) if call.unknown(1, 2) else _planned(call, made, parameters, build)


def _planned(call: Call, made: Spec, parameters: dict[str, Any], build: Callable[..., ConvProblem]) -> Task:
    x, make = call.spec(), KINDS[call.node.op].plans[len(call.spec().shape) - 3]
    activation, residual = call.attribute("activation"), call.has(3)
    options = {**parameters, "activation": activation, **({"residual": True} if residual else {})}
    w, bias = call.constant(1), call.constant(2)
    plans: dict[bool, ConvPlan] = {}

    def planned(channels_last: bool) -> ConvPlan:
        if channels_last not in plans:
            shape, layout = (last(x.shape), "channels_last") if channels_last else (x.shape, None)
            plans[channels_last] = call.weights.shared(make(shape, w, bias, layout=layout, **options), w)
        return plans[channels_last]

    def prepare(orders: Orders) -> Run:
        run = planned(orders.given).run
        return run if residual else lambda x, out: run(x, None, out)

    def replay(orders: Orders) -> Replay:
        chosen = planned(orders.given)

        def record(workspace: Array, x: Array, *others: Array) -> list[Any] | None:
            return chosen.launches(x, others[0] if residual else None, others[-1], workspace)

        return Replay(chosen.workspace_bytes, record)

    def seconds(orders: Orders) -> float:
        turned = made.nbytes / TURNING if orders.given != orders.made else 0.0
        layout = "channels_last" if orders.given else "channels_first"
        return choice(layout).seconds + turned

    def choice(layout: str) -> Candidate:
        more = {"residual_shape": True} if residual else {}
        return select(build(layout=layout, activation=activation, prepared=True, **more), warn=False)

    def note(orders: Orders) -> str:
        return " + ".join(filter(None, (planned(orders.given).algorithm, "residual" if residual else "", activation)))

    return Task(
        (made,), None, (0, 3) if residual else (0,), orders="own", prepare=prepare, seconds=seconds, note=note,
        replay=replay,
    )  # fmt: skip


def _dynamic(call: Call, made: Spec, parameters: dict[str, Any]) -> Task:
    function = KINDS[call.node.op].functions[len(call.spec().shape) - 3]
    options = {**parameters, "activation": call.attribute("activation")}
    names = [("x", "w", "bias", "residual")[i] for i in call.present]

    def run(*arrays: Array) -> None:
        function(**dict(zip(names, arrays, strict=False)), out=arrays[-1], **options)

    return Task((made,), run, call.present, note=lambda orders: "weights not constant")


class Packed:
    """The weights that an executor's plans have packed. Plans of one weight for several shapes share them.

    All of them share one workspace: with one each, every layer of a network would find its own cold.
    """

    def __init__(self) -> None:
        self.workspace = Workspace()
        self.plans: WeakValueDictionary[tuple[int, str], ConvPlan] = WeakValueDictionary()

    def shared(self, prepared: ConvPlan, w: Array) -> ConvPlan:
        """The plan, its packed weights those of an earlier plan where they are equal. ``w`` lives as long as this."""
        prepared.work_in(self.workspace)
        key = id(w), prepared.algorithm
        if (earlier := self.plans.get(key)) is not None:
            prepared.share(earlier)
        self.plans[key] = prepared
        return prepared
