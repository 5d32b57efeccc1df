"""Plans: a convolution prepared once and called many times.

A plan fixes the shapes and the parameters, chooses the kernel, and keeps its own copy of the weights, already packed
the way that kernel reads them. Calls then only check x and run. Each calling thread owns its workspace, so one plan
serves many threads; on a GPU each thread and stream, and after its first call ``plan(x, out=y)`` allocates nothing.

A CUDA graph may hold such calls: run the plan once on the stream that will capture, which compiles and allocates, then
capture. The graph uses the plan's weights and workspace, so keep the plan as long as the graph::

    with cupy.cuda.Stream(non_blocking=True) as stream:
        plan(x, out=y)
        stream.begin_capture()
        plan(x, out=y)
        graph = stream.end_capture()
    graph.launch()
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np

from . import call
from .arguments import IntOrSequence, Padding, flag
from .arrays import as_dtype, device_of, empty, float_dtype, intake, same_kind, span
from .autograd import Tensor, array_module, is_grad_enabled, on_device
from .dispatch import Candidate, DeviceWorkspace, Explanation, Workspace, explain, select
from .kernels.geometry import Sizes
from .problem import ConvProblem, conv_problem, conv_transpose_problem
from .ranks import per_rank
from .settings import get_num_threads
from .targets import resolve

KNOWN = 64
"""Kinds of arguments on a GPU that a plan remembers having checked."""


class Known(NamedTuple):
    """Arguments that a plan has checked: the bytes that x and out lie between, counted from their first elements."""

    given: tuple[int, int]
    made: tuple[int, int]


def _likeness(x: Any) -> tuple[Any, ...]:
    """What a plan checks of a CuPy array."""
    return x.shape, x.strides, x.dtype, x.data.device_id


def _equal(a: Any, b: Any) -> bool:
    """Whether packed weights, an array or a list of them, hold the same numbers."""
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(_equal, a, b))
    same = type(a) is type(b) and getattr(a, "shape", None) == getattr(b, "shape", None)
    return same and isinstance(a, np.ndarray) and a.dtype == b.dtype and a.tobytes() == b.tobytes()


class ConvPlan:
    """A prepared convolution; made by :func:`plan_conv2d` and its sisters.

    ``plan(x, *, residual=None, out=None)`` gives what the function call would, for x of the planned shape and dtype, on
    as many threads as were set when it was made.
    """

    def __init__(self, lay: call.Layout, problem: ConvProblem, w: Any, bias: Any, algorithm: str, why: Explanation):
        self.problem = problem
        self._layout = lay
        self._why = why
        self._choice: Candidate = select(problem, algorithm, lay.op)
        prepare = self._choice.row.prepare
        g = problem.geometry
        with on_device(w):
            self._bias = None if bias is None else bias.copy()
            packed = resolve(prepare)(g, w) if prepare else None
            self._w = None if packed is not None else w.copy()
            self._like = array_module(w).empty(0, w.dtype)
            if problem.device == "cuda":  # any stream may call, whichever packed the weights
                array_module(w).cuda.get_current_stream().synchronize()
        self._on_cpu = problem.device == "cpu"
        self._plain = self._on_cpu and lay.batched and lay.name == "channels_first" and not problem.residual
        self._workspace = Workspace()
        self._scratch = DeviceWorkspace()
        self._known: dict[Any, Known] = {}
        keywords: dict[str, Any] = {"threads": get_num_threads()} if self._on_cpu else {}
        kernel = resolve(self._choice.row.target)
        self._kernel = partial(kernel, g, activation=problem.activation, packed=packed, **keywords)
        transposed = problem.direction == "grad_input"
        self._output = g.input_shape if transposed else g.output_shape
        self.input_shape: Sizes = lay.seen(g.output_shape if transposed else g.input_shape)
        """The shape of x, as the layout shows it."""
        self.output_shape: Sizes = lay.seen(self._output)
        """The shape of the result, as the layout shows it."""

    @property
    def algorithm(self) -> str:
        """The chosen kernel's name, a variant."""
        return self._choice.algorithm

    @property
    def workspace_bytes(self) -> int:
        """Scratch memory of one call, in bytes; each calling thread keeps its own."""
        return self._choice.workspace_bytes

    def share(self, other: ConvPlan) -> None:
        """Use the packed weights of another plan where they equal this one's, which are then freed: what plans of one
        layer for several input sizes would otherwise each hold."""
        mine, theirs = (plan._kernel.keywords["packed"] for plan in (self, other))
        if mine is not None and _equal(mine, theirs):
            self._kernel = partial(self._kernel.func, *self._kernel.args, **{**self._kernel.keywords, "packed": theirs})

    def work_in(self, workspace: Workspace) -> None:
        """Take scratch memory from here: plans that run one after the other then find it in the cache."""
        self._workspace = workspace

    def explain(self) -> Explanation:
        """Why this kernel was chosen, as :func:`fastconv.explain` says it."""
        return self._why

    def __call__(self, x: Any, *, residual: Any = None, out: Any = None) -> Any:
        if residual is None and self._is_usual(x, out):  # 3 µs less than the long way
            y = np.empty(self._output, x.dtype) if out is None else out
            self.run(x, None, y)
            return y
        lay = self._layout
        if not self._on_cpu and residual is None:
            again = self._again(x, out)
            if again is not None:
                return again
        if isinstance(x, Tensor) or isinstance(residual, Tensor):
            return self._call_tensor(x, residual, out)
        x = intake(lay.op, "x", x)
        same_kind(lay.op, ("w", self._like), ("x", x))
        if x.shape != self.input_shape:
            raise ValueError(
                f"{lay.op}: this plan is for x of shape {self.input_shape}, got {x.shape}; make another plan"
            )
        if (residual is not None) != self.problem.residual:
            state = "with" if self.problem.residual else "without"
            raise ValueError(
                f"{lay.op}: this plan was made {state} a residual; say residual={not self.problem.residual} when "
                "making it"
            )
        view, other = lay.view("x", x), None
        if residual is not None:
            residual = intake(lay.op, "residual", residual)
            same_kind(lay.op, ("x", x), ("residual", residual))
            if residual.shape != self.output_shape:
                raise ValueError(
                    f"{lay.op}: residual must have the output's shape {self.output_shape}, got {residual.shape}"
                )
            other = lay.view("residual", residual)
        output = call.Output(lay, out, x, self._output, x, residual)
        self.run(view, other, output.target)
        if not self._on_cpu and residual is None and len(self._known) < KNOWN:
            spans = ((0, 0) if a is None else span(a.shape, a.strides, a.itemsize) for a in (x, out))
            self._known[_likeness(x), out if out is None else _likeness(out)] = Known(*spans)
        return output.result()

    def _is_usual(self, x: Any, out: Any) -> bool:
        """Whether x and out are what most calls bring, so that nothing is left to check."""
        if not (self._plain and type(x) is np.ndarray and x.dtype is self._like.dtype and x.shape == self.input_shape):
            return False
        if out is None:
            return True
        if not (type(out) is np.ndarray and out.dtype is x.dtype and out.shape == self._output):
            return False
        flags = out.flags
        return flags.c_contiguous and flags.writeable and not np.may_share_memory(x, out)

    def run(self, x: Any, residual: Any, out: Any) -> None:
        """The kernel on arrays that are known to fit, all of them (N, C, *spatial) whatever the layout: views, for
        callers that have checked them already."""
        nbytes = self._choice.workspace_bytes
        if self._on_cpu:
            workspace = self._workspace.take(nbytes)
            self._kernel(x, self._w, self._bias, residual, out, workspace=workspace)
            self._workspace.give(workspace)
            return
        with on_device(x):
            workspace = self._scratch.get(x, nbytes)
            self._kernel(x, self._w, self._bias, residual, out, workspace=workspace)

    def launches(self, x: Any, residual: Any, out: Any, workspace: Any) -> list[Any] | None:
        """What :meth:`run` would launch with scratch memory here, to be run again and again as a part of a
        ``kernels.cpu.sequence.Sequence``; None where it does more than that."""
        from .kernels.cpu.sequence import record

        def run(*given: Any) -> None:
            self._kernel(x, self._w, self._bias, residual, out, workspace=workspace)

        packed = self._kernel.keywords["packed"]
        weights = packed if isinstance(packed, list) else [packed]  # of each phase of a transposed convolution
        if not self._on_cpu or not all(isinstance(w, np.ndarray) for w in weights):
            return None
        kept = (*weights, workspace) if self._bias is None else (*weights, workspace, self._bias)
        return record(run, *((x, out) if residual is None else (x, residual, out)), kept=kept)

    @property
    def logical_output(self) -> Sizes:
        """The shape of the ``out`` of :meth:`run`: (N, C, *spatial)."""
        return self._output

    def _again(self, x: Any, out: Any) -> Any:
        """The result for CuPy arrays that are like those of an earlier call, which need no checks; None for others."""
        if type(x) is not type(self._like) or not (out is None or type(out) is type(x)):
            return None
        known = self._known.get((_likeness(x), out if out is None else _likeness(out)))
        if known is None:
            return None
        lay = self._layout
        with on_device(x):
            if out is None:
                target = empty(x, self._output, lay.name)
            else:
                start, end = x.data.ptr, out.data.ptr
                if start + known.given[0] < end + known.made[1] and end + known.made[0] < start + known.given[1]:
                    return None  # they overlap
                target = lay.view("out", out)
            workspace = self._scratch.get(x, self._choice.workspace_bytes)
            self._kernel(lay.view("x", x), self._w, self._bias, None, target, workspace=workspace)
        return lay.back(target) if out is None else out

    def _call_tensor(self, x: Any, residual: Any, out: Any) -> Tensor:
        tensors = [v for v in (x, residual) if isinstance(v, Tensor)]
        if is_grad_enabled() and any(t.requires_grad for t in tensors):
            raise ValueError(
                f"{self._layout.op}: a plan records no gradients; call it under no_grad(), "
                "or use the function it stands for"
            )
        x, residual = (v.data if isinstance(v, Tensor) else v for v in (x, residual))
        return Tensor(self(x, residual=residual, out=out))

    def __repr__(self) -> str:
        return f"<{self._layout.op} {self.algorithm}: {self.problem}>"


def _plan(
    op: str, rank: int, build: Any, x_shape: Any, w: Any, bias: Any, dtype: Any, layout: str | None,
    algorithm: str, **parameters: Any,
) -> ConvPlan:  # fmt: skip
    w, bias = (v.data if isinstance(v, Tensor) else v for v in (w, bias))
    w = intake(op, "w", w)
    float_dtype(op, "w", w.dtype)
    if bias is not None:
        bias = intake(op, "bias", bias)
        same_kind(op, ("w", w), ("bias", bias))
    if dtype is not None:
        wanted = as_dtype(op, "dtype", dtype)
        w, bias = w.astype(wanted), None if bias is None else bias.astype(wanted)
    lay = call.Layout(op, rank, layout)
    shape = lay.logical("x_shape", x_shape)
    problem = call.build(
        build, op, rank, shape, w.shape, bias_shape=None if bias is None else bias.shape, dtype=w.dtype.name,
        layout=lay.name, device=device_of(w), prepared=True, **parameters,
    )  # fmt: skip
    return ConvPlan(lay, problem, w, bias, algorithm, explain(select, problem, algorithm, op))


@per_rank("plan_conv{}d")
def plan_conv(
    op: str, rank: int, x_shape: Any, w: Any, bias: Any = None, *, dtype: Any = None, residual: bool = False,
    stride: IntOrSequence = 1, padding: Padding = 0, dilation: IntOrSequence = 1, groups: int = 1,
    padding_mode: str = "zeros", layout: str | None = None, activation: str | None = None, algorithm: str = "auto",
) -> ConvPlan:  # fmt: skip
    """Prepare ``conv{rank}d`` for inputs of one shape: choose the kernel, copy and pack the weights.

    >>> import numpy as np, fastconv
    >>> plan = fastconv.{op}((1, 3, {dims:8}), np.ones((4, 3, {dims:3}), np.float32), padding=1)
    >>> plan(np.ones((1, 3, {dims:8}), np.float32)).shape
    (1, 4, {dims:8})

    Parameters
    ----------
    x_shape : the shape of x, in the layout's order.
    w, bias : weights and bias; later changes to them are not seen. The plan follows w's device.
    dtype : of x, weights and result; None means w's.
    residual : whether calls will bring a residual.
    stride … algorithm : as for ``conv{rank}d``.

    Returns
    -------
    ConvPlan : to be called as ``plan(x, residual=None, out=None)``.

    Raises
    ------
    ValueError, TypeError : naming the argument, what was given and what was needed.
    """
    return _plan(
        op, rank, conv_problem, x_shape, w, bias, dtype, layout, algorithm, stride=stride,
        padding=padding, dilation=dilation, groups=groups, padding_mode=padding_mode, activation=activation,
        residual_shape=True if flag(op, "residual", residual) else None,
    )  # fmt: skip


@per_rank("plan_conv_transpose{}d")
def plan_conv_transpose(
    op: str, rank: int, x_shape: Any, w: Any, bias: Any = None, *, dtype: Any = None, stride: IntOrSequence = 1,
    padding: Padding = 0, output_padding: IntOrSequence = 0, dilation: IntOrSequence = 1, groups: int = 1,
    layout: str | None = None, activation: str | None = None, algorithm: str = "auto",
) -> ConvPlan:  # fmt: skip
    """Prepare ``conv_transpose{rank}d`` for inputs of one shape; parameters as ``plan_conv{rank}d``.

    >>> import numpy as np, fastconv
    >>> plan = fastconv.{op}((1, 3, {dims:4}), np.ones((3, 2, {dims:2}), np.float32), stride=2)
    >>> plan.output_shape
    (1, 2, {dims:8})
    """
    return _plan(
        op, rank, conv_transpose_problem, x_shape, w, bias, dtype, layout, algorithm,
        stride=stride, padding=padding, output_padding=output_padding, dilation=dilation, groups=groups,
        activation=activation,
    )  # fmt: skip


plan_conv1d, plan_conv2d, plan_conv3d = plan_conv
plan_conv_transpose1d, plan_conv_transpose2d, plan_conv_transpose3d = plan_conv_transpose
