"""From a user's arrays to a kernel and back: intake, problem, choice, output, run. No Tensors here.

Each function takes the public name ``op`` for its error messages and the number of spatial dimensions, and does four
things in this order, so that nothing is allocated or written before everything has been checked:
arrays in (:mod:`fastconv.arrays`), problem (:mod:`fastconv.problem`), choice (:mod:`fastconv.dispatch`), kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from .arguments import freeze, mismatch, normalize_layout, shape_of
from .arrays import (
    channels_first,
    check_out,
    device_of,
    dtype_name,
    empty,
    float_dtype,
    intake,
    overlaps,
    restore,
    same_kind,
)
from .autograd import array_module, on_device
from .dispatch import (
    Settled,
    cached_problem,
    device_workspace,
    execute,
    give_workspace,
    select,
    settle,
    take_workspace,
)
from .kernels.geometry import Sizes
from .pooled import ready_calls
from .problem import ConvProblem, conv_problem, conv_transpose_problem
from .settings import default_threads
from .targets import resolve


class Layout:
    """How one call's arrays lie: op and rank for messages, the layout's name, whether there is a batch dimension."""

    def __init__(self, op: str, rank: int, layout: str | None):
        self.op, self.rank = op, rank
        self.name = normalize_layout(op, rank, layout)
        self.batched = True

    def first(self, name: str, x: Any) -> Any:
        """The call's first array, viewed channels first; it decides whether there is a batch dimension."""
        view, self.batched = channels_first(self.op, name, x, self.rank, self.name)
        return view

    def view(self, name: str, x: Any) -> Any:
        """A further array, viewed channels first."""
        view, batched = channels_first(self.op, name, x, self.rank, self.name)
        if batched != self.batched:
            raise ValueError(f"{self.op}: {name} of shape {x.shape} and x disagree about having a batch dimension")
        return view

    def gradient(self, dy: Any, shape: Sizes) -> Any:
        """A gradient viewed channels first; its shape must be the output's."""
        view = self.view("dy", dy)
        if view.shape != shape:
            mismatch(self.op, "dy", dy.shape, self.seen(shape), " (the output's)")
        return view

    def back(self, x: Any) -> Any:
        """A channels-first view as the user sees it."""
        return restore(x, self.rank, self.name, self.batched)

    def seen(self, shape: Sizes) -> Sizes:
        """A logical shape as the user sees it."""
        n, c, *spatial = shape
        shown = (n, *spatial, c) if self.name == "channels_last" else shape
        return shown if self.batched else shown[1:]

    def logical(self, name: str, shape: Any) -> Sizes:
        """A shape that the user gave, as (N, C, *spatial); like :meth:`first`, it decides about the batch."""
        shape = shape_of(self.op, name, shape)
        self.batched = len(shape) == self.rank + 2
        if not self.batched and len(shape) != self.rank + 1:
            raise ValueError(
                f"{self.op}: {name} must have {self.rank + 2} entries, or {self.rank + 1} without the batch, got "
                f"{shape}"
            )
        full = shape if self.batched else (1, *shape)
        return (full[0], full[-1], *full[1:-1]) if self.name == "channels_last" else full


class Output:
    """Where a result goes: a fresh array, the user's ``out``, or a fresh one first where ``out`` overlaps an input."""

    def __init__(self, lay: Layout, out: Any, like: Any, shape: Sizes, *inputs: Any):
        self.lay, self.out = lay, out
        if out is None:
            self.target = empty(like, shape, lay.name)
            return
        check_out(lay.op, out, like, lay.seen(shape))
        self.view = lay.view("out", out)
        self.target = empty(like, shape, lay.name) if overlaps(out, *inputs) else self.view

    def result(self) -> Any:
        """The finished result in the user's layout."""
        if self.out is None:
            return self.lay.back(self.target)
        if self.target is not self.view:
            with on_device(self.out):
                self.view[...] = self.target
        return self.out


_SCALARS = frozenset({int, str, bool, float, type(None)})


def build(builder: Callable[..., Any], *args: Any, **keywords: Any) -> Any:
    """The problem, from the cache where a cache can tell the arguments apart."""
    exact = True
    for name, value in keywords.items():
        if type(value) not in _SCALARS:
            keywords[name] = value = freeze(value)
            exact = exact and _exact(value)
    for value in args:
        if type(value) not in _SCALARS and not _exact(value):
            args = tuple(freeze(v) for v in args)
            exact = exact and all(_exact(v) for v in args)
            break
    return cached_problem(builder, *args, **keywords) if exact else builder(*args, **keywords)


_INTEGERS = frozenset({int})


def _only_integers(value: tuple[Any, ...]) -> bool:
    return frozenset(map(type, value)) <= _INTEGERS  # a third of the time of a generator expression


def _exact(value: Any) -> bool:
    """Whether equal keys mean equal arguments: inside a tuple a cache cannot tell 1 from True or 1.0."""
    if type(value) is not tuple:
        return type(value) in _SCALARS
    return _only_integers(value) or all(type(v) is int or (type(v) is tuple and _exact(v)) for v in value)


def call_key(
    op: str, threads: int, builder: Any, x: Any, arguments: tuple[Any, ...], parameters: dict[str, Any]
) -> Any:
    """What a call depends on besides its arrays' elements; None where a dictionary cannot tell it apart.

    Equal numbers of different types (1, True, 1.0) are different arguments: some of them are errors.
    """
    values = (*arguments, *parameters.values())
    types = [*map(type, values)]
    if not _SCALARS.issuperset(types):
        for value in values:
            if type(value) is tuple and _only_integers(value):
                continue
            if type(value) not in _SCALARS and (type(value) is not tuple or not _exact(value)):
                return None
    return (op, threads, builder, x.shape, x.dtype, values, *parameters, *types)


# ------------------------------------------------------------------------------------------------------ convolution


class Kind(NamedTuple):
    """A convolution or its transpose: how its problem is built, and which of a convolution's directions it runs."""

    builder: Callable[..., ConvProblem]
    forward: str
    input_gradient: str

    def shapes(self, problem: ConvProblem) -> tuple[Sizes, Sizes]:
        """The logical shapes of x and of y."""
        g = problem.geometry
        plain = self.forward == "forward"
        return (g.input_shape, g.output_shape) if plain else (g.output_shape, g.input_shape)

    def problem(
        self, lay: Layout, x_shape: Sizes, w_shape: Sizes, like: Any, parameters: dict[str, Any]
    ) -> ConvProblem:
        problem: ConvProblem = build(
            self.builder, lay.op, lay.rank, x_shape, w_shape, dtype=dtype_name(like.dtype), layout=lay.name,
            device=device_of(like), **parameters,
        )  # fmt: skip
        return problem

    def settle(
        self, lay: Layout, algorithm: str, x_shape: Sizes, w_shape: Sizes, like: Any, parameters: dict[str, Any]
    ) -> Settled:
        """The forward problem and its kernel, from the cache where a cache can tell the parameters apart."""
        exact = type(algorithm) is str
        for name, value in parameters.items():
            if type(value) not in _SCALARS:
                parameters[name] = value = freeze(value)
                exact = exact and _exact(value)
        if not exact:
            problem = self.problem(lay, x_shape, w_shape, like, {"direction": self.forward, **parameters})
            return Settled(problem, select(problem, algorithm, lay.op))
        return settle(
            self.builder, lay.op, algorithm, lay.rank, x_shape, w_shape, dtype=dtype_name(like.dtype),
            layout=lay.name, device=device_of(like), direction=self.forward, **parameters,
        )  # fmt: skip


CONV = Kind(conv_problem, "forward", "grad_input")
TRANSPOSED = Kind(conv_transpose_problem, "grad_input", "forward")


REPEATS = 4  # layouts of one call's arrays, at most, whose launches are kept


class ReadyConv:
    """A convolution that has run before, of arrays like those of then: nothing is left to decide or to check."""

    __slots__ = ("dtype", "kernel", "lay", "nbytes", "on_cpu", "plain", "repeats", "shape")

    def __init__(self, lay: Layout, settled: Settled, shape: Sizes, dtype: Any, threads: int) -> None:
        problem, choice = settled
        self.lay, self.shape, self.dtype, self.nbytes = lay, shape, dtype, choice.workspace_bytes
        self.on_cpu = problem.device == "cpu"
        self.plain = self.on_cpu and lay.batched and lay.name == "channels_first"
        kernel = resolve(choice.row.target)
        self.kernel = partial(kernel, problem.geometry, activation=problem.activation, packed=None, threads=threads)
        self.repeats: dict[Any, Any] = {}  # by strides: what to launch

    def __call__(self, x: Any, w: Any, bias: Any, out: Any = None) -> Any:
        lay = self.lay
        if self.plain and out is None:
            y = np.empty(self.shape, self.dtype)
            self._run(x, w, bias, y)
            return y
        output = Output(lay, out, x, self.shape, x, w, bias)
        if self.on_cpu:
            self._run(lay.view("x", x), w, bias, output.target)
            return output.result()
        with on_device(x):
            scratch = device_workspace(x, self.nbytes)
            self.kernel(lay.view("x", x), w, bias, None, output.target, workspace=scratch)
        return output.result()

    def _run(self, x: Any, w: Any, bias: Any, y: Any) -> None:
        """The kernel on NumPy's arrays, by what is known of a call with their strides."""
        workspace = take_workspace(self.nbytes)
        arrays = (x, w, y, workspace) if bias is None else (x, w, y, workspace, bias)
        strides = (x.strides, w.strides, y.strides, bias is None or bias.strides)
        again = self.repeats.get(strides)
        aligned = x.flags.aligned and w.flags.aligned and y.flags.aligned and (bias is None or bias.flags.aligned)
        if again and aligned:
            again(*arrays)
        else:
            if again is None and len(self.repeats) < REPEATS:
                self.repeats[strides] = self._repeat(*arrays) or False
            self.kernel(x, w, bias, None, y, workspace=workspace)
        give_workspace(workspace)

    def _repeat(self, *arrays: Any) -> Any:
        """The launches of a call with these arrays, to be made again; None where it does more."""
        from .kernels.cpu.repeat import repeat

        def run(x: Any, w: Any, y: Any, workspace: Any, bias: Any = None) -> None:
            self.kernel(x, w, bias, None, y, workspace=workspace)

        return repeat(run, *arrays)


def _where(x: Any, *others: Any) -> Any:
    """Which device arrays of one kind and dtype lie on; None where the short way is not theirs."""
    kind, dtype = type(x), x.dtype
    for y in others:
        if type(y) is not kind or y.dtype is not dtype:
            return None
    if kind is np.ndarray:
        return "cpu" if dtype.isnative else None
    if array_module(x) is np:
        return None
    device = x.data.device_id
    return device if all(y.data.device_id == device for y in others) else None


def _conv_key(
    kind: Kind, op: str, threads: int, x: Any, w: Any, bias: Any, layout: Any, algorithm: Any,
    parameters: dict[str, Any],
) -> Any:  # fmt: skip
    """:func:`call_key` of a convolution; None also where its arrays or the options are not for a kept call."""
    if not threads or not hasattr(x, "dtype"):
        return None
    others = (w,) if bias is None else (w, bias)
    where = _where(x, *others)
    if where is None:
        return None
    return call_key(op, threads, kind, x, (layout, algorithm, where, *[y.shape for y in others]), parameters)


def ready_conv(
    kind: Kind, op: str, x: Any, w: Any, bias: Any, *, layout: str | None, **parameters: Any
) -> ReadyConv | None:
    """What :func:`conv` kept of such a call, for callers that know by other signs which calls are alike; or None."""
    key = _conv_key(kind, op, default_threads(), x, w, bias, layout, "auto", parameters)
    ready: ReadyConv | None = ready_calls.get(key)
    return ready


def conv(
    kind: Kind, op: str, rank: int, x: Any, w: Any, bias: Any = None, *, residual: Any = None,
    layout: str | None = None, algorithm: str = "auto", out: Any = None, **parameters: Any,
) -> Any:  # fmt: skip
    """A convolution or its transpose. ``parameters`` are those of the kind's builder."""
    threads = default_threads()
    key = _conv_key(kind, op, threads, x, w, bias, layout, algorithm, parameters) if residual is None else None
    ready = ready_calls.get(key)
    if ready is not None:
        return ready(x, w, bias, out)
    x, w = intake(op, "x", x), intake(op, "w", w)
    bias = None if bias is None else intake(op, "bias", bias)
    residual = None if residual is None else intake(op, "residual", residual)
    float_dtype(op, "x", x.dtype)
    same_kind(op, ("x", x), ("w", w), ("bias", bias), ("residual", residual))
    lay = Layout(op, rank, layout)
    view = lay.first("x", x)
    other = None if residual is None else lay.view("residual", residual)
    if other is not None:
        parameters["residual_shape"] = other.shape
    if bias is not None:
        parameters["bias_shape"] = bias.shape
    problem, choice = kind.settle(lay, algorithm, view.shape, w.shape, x, parameters)
    shape = kind.shapes(problem)[1]
    output = Output(lay, out, x, shape, x, w, bias, residual)
    execute(choice, problem, view, w, bias, other, output.target, activation=problem.activation, packed=None)
    if key is not None and choice.row.family != "reference":  # which warns at every call
        ready_calls[key] = ReadyConv(lay, Settled(problem, choice), shape, x.dtype, threads)
    return output.result()


def input_gradient(
    kind: Kind, op: str, rank: int, input_size: Any, w: Any, dy: Any, *, layout: str | None = None,
    algorithm: str = "auto", **parameters: Any,
) -> Any:  # fmt: skip
    """Gradient with respect to an input of the shape ``input_size``."""
    w, dy = intake(op, "w", w), intake(op, "dy", dy)
    float_dtype(op, "dy", dy.dtype)
    same_kind(op, ("dy", dy), ("w", w))
    lay = Layout(op, rank, layout)
    shape = lay.logical("input_size", input_size)
    problem = kind.problem(lay, shape, w.shape, dy, {"direction": kind.input_gradient, **parameters})
    view = lay.gradient(dy, kind.shapes(problem)[1])
    choice = select(problem, algorithm, op)
    output = Output(lay, None, dy, shape)
    execute(choice, problem, view, w, None, None, output.target, activation=None, packed=None)
    return output.result()


def weight_gradient(
    kind: Kind, op: str, rank: int, x: Any, weight_size: Any, dy: Any, *, layout: str | None = None,
    algorithm: str = "auto", **parameters: Any,
) -> Any:  # fmt: skip
    """Gradient with respect to weights of the shape ``weight_size``. To a transposed convolution x is what dy is to a
    convolution, and dy what x is."""
    x, dy = intake(op, "x", x), intake(op, "dy", dy)
    float_dtype(op, "x", x.dtype)
    same_kind(op, ("x", x), ("dy", dy))
    lay = Layout(op, rank, layout)
    view = lay.first("x", x)
    shape = shape_of(op, "weight_size", weight_size)
    problem = kind.problem(lay, view.shape, shape, x, {"direction": "grad_weight", **parameters})
    gradient = lay.gradient(dy, kind.shapes(problem)[1])
    choice = select(problem, algorithm, op)
    out = empty(x, shape, "channels_first")
    execute(choice, problem, *((view, gradient) if kind is CONV else (gradient, view)), out)
    return out


def bias_gradient(op: str, rank: int, dy: Any, *, layout: str | None = None) -> Any:
    """Gradient with respect to the bias of either kind: the sum of dy over everything but the channels."""
    dy = intake(op, "dy", dy)
    float_dtype(op, "dy", dy.dtype)
    lay = Layout(op, rank, layout)
    view = lay.first("dy", dy)
    with on_device(view):
        return view.sum(axis=(0, *range(2, rank + 2)))
