"""Looking at operations from the outside: explaining one by its shapes, compiling them all ahead of time."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from . import functional
from .autograd import Tensor
from .dispatch import Explanation, explain, select
from .problem import DTYPES, ConvProblem, Problem
from .registry import ROWS
from .settings import options

KINDS = (
    "conv", "conv_transpose", "max_pool", "min_pool", "avg_pool", "lp_pool", "adaptive_max_pool", "adaptive_avg_pool",
    "max_unpool",
)  # fmt: skip
OPERATIONS: dict[str, tuple[str, int]] = {f"{kind}{rank}d": (kind, rank) for kind in KINDS for rank in (1, 2, 3)}
"""Public operation → its kind and number of spatial dimensions."""


def explain_operation(
    operation: str,
    input_shape: tuple[int, ...],
    *,
    weight_shape: tuple[int, ...] | None = None,
    dtype: str = "float32",
    direction: str = "forward",
    device: str = "cpu",
    **parameters: Any,
) -> Explanation:
    """What :func:`fastconv.explain` says of an operation on arrays of these shapes; none is computed with.

    >>> explain_operation("max_pool2d", (1, 8, 16, 16), kernel_size=2).chosen
    'direct'
    >>> explain_operation("conv2d", (1, 8, 16, 16), weight_shape=(8, 8, 3, 3), direction="weight").problem.direction
    'grad_weight'
    >>> explain_operation("avg_pool2d", (1, 8, 16, 16), device="cuda", kernel_size=2).problem.device
    'cuda'

    Parameters
    ----------
    operation : a name in :data:`OPERATIONS`.
    input_shape, weight_shape : of x and, for convolutions, of the weights.
    dtype : ``"float32"``, ``"float64"``, ``"float16"`` or ``"bfloat16"``.
    direction : ``"forward"``, or the gradient of ``"input"`` or ``"weight"``.
    device : ``"cpu"`` or ``"cuda"``; no GPU is needed to ask.
    parameters : what else the operation takes by name.

    Raises
    ------
    ValueError, TypeError : naming the argument.
    """
    if operation not in OPERATIONS:
        raise ValueError(f"operation must be one of {', '.join(OPERATIONS)}; got {operation!r}")
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}; got {dtype!r}")
    if device not in ("cpu", "cuda"):
        raise ValueError(f"device must be cpu or cuda, got {device!r}")
    kind, _ = OPERATIONS[operation]
    directions = ("forward", "input", "weight") if kind.startswith("conv") else ("forward", "input")
    if direction not in directions:
        raise ValueError(f"direction of {operation} must be one of {', '.join(directions)}; got {direction!r}")
    function = getattr(functional, operation)
    arrays: dict[str, Any] = {"x": _of_shape(input_shape, _numpy_dtype(dtype))}
    if kind.startswith("conv") and weight_shape is not None:
        arrays["w"] = _of_shape(weight_shape, arrays["x"].dtype)
    elif weight_shape is not None:
        raise ValueError(f"{operation} has no weights, got a weight shape {weight_shape}")
    if kind == "max_unpool":
        arrays["indices"] = _of_shape(input_shape, np.int64)
    _check_parameters(operation, function, arrays | parameters)
    if device == "cpu":
        why = explain(function, **arrays, **parameters)
        return why if direction == "forward" else explain(select, gradient_problem(why.problem, direction))
    with options(algorithm="auto"):  # of the CPU's kernels only the problem is wanted
        problem = replace(explain(function, **arrays, **parameters).problem, device=device)
    return explain(select, problem if direction == "forward" else gradient_problem(problem, direction), op=operation)


def _of_shape(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An array of any shape in the memory of one element: nobody looks at its elements."""
    return np.broadcast_to(np.zeros((), dtype), shape)


def gradient_problem(problem: Problem, of: str) -> Problem:
    """The problem that a gradient solves, given the forward problem: the same geometry without the epilogue.

    The input gradient of a convolution is a transposed convolution, and the other way round.

    Parameters
    ----------
    problem : an operation's forward problem.
    of : ``"input"`` or ``"weight"``.
    """
    if not isinstance(problem, ConvProblem):
        return replace(problem, direction="grad_input")
    transposed = problem.direction == "grad_input"
    direction = "grad_weight" if of == "weight" else "forward" if transposed else "grad_input"
    return replace(problem, direction=direction, bias=False, residual=False, activation=None)


def warm_up(dtypes: tuple[str, ...] = ("float32", "float64")) -> Iterator[tuple[str, float]]:
    """Compile the kernels of every operation, forward and gradients, by calling each; yields a name and the seconds.

    Parameters
    ----------
    dtypes : which to compile for.

    Raises
    ------
    ValueError : an unknown dtype.
    """
    for dtype in dtypes:
        if dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}; got {dtype!r}")
    for dtype in dtypes:
        for operation in OPERATIONS:
            for algorithm in _algorithms(operation):
                start = time.perf_counter()
                with options(algorithm=algorithm):
                    _call_once(operation, dtype)
                yield f"{operation:<20} {algorithm:<10} {dtype}", time.perf_counter() - start


def _check_parameters(operation: str, function: Callable[..., Any], given: dict[str, Any]) -> None:
    """ValueError for a parameter that the operation lacks, or needs and did not get."""
    signature = inspect.signature(function).parameters
    for name in given:
        if name not in signature:
            raise ValueError(f"{operation} takes no {name}; it takes {', '.join(signature)}")
    for name, parameter in signature.items():
        if parameter.default is parameter.empty and name not in given:
            raise ValueError(f"{operation} needs {'weight' if name == 'w' else name}")


def _numpy_dtype(name: str) -> Any:
    if name != "bfloat16":
        return np.dtype(name)
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16)


def _algorithms(operation: str) -> list[str]:
    """The CPU families that can run an operation, the reference aside."""
    op = OPERATIONS[operation][0].removeprefix("adaptive_").replace("conv_transpose", "conv")
    return list(dict.fromkeys(r.family for r in ROWS if r.op == op and r.device == "cpu" and r.family != "reference"))


def _call_once(operation: str, dtype: str) -> None:
    """Forward and backward, in both layouts, on a problem large enough for several threads."""
    kind, rank = OPERATIONS[operation]
    function = getattr(functional, operation)
    size = (32,) * 2 if rank == 2 else (1024,) if rank == 1 else (10,) * 3
    for layout in ("channels_first", "channels_last"):
        shape = (2, 16, *size) if layout == "channels_first" else (2, *size, 16)
        x = Tensor(np.ones(shape, np.float32).astype(_numpy_dtype(dtype)), requires_grad=True)
        if kind.startswith("conv"):
            w = Tensor(np.ones((16, 16, *(3,) * rank), np.float32).astype(x.dtype), requires_grad=True)
            bias = Tensor(np.ones(16, np.float32).astype(x.dtype), requires_grad=True)
            y = function(x, w, bias, padding=1, layout=layout)
        elif kind == "max_unpool":
            pooled, indices = getattr(functional, f"max_pool{rank}d")(x, 2, return_indices=True, layout=layout)
            y = function(pooled, indices, 2, layout=layout)
        elif kind.startswith("adaptive"):
            y = function(x, 3, layout=layout)
        elif kind == "lp_pool":
            y = function(x, 2.0, 2, layout=layout)
        else:
            y = function(x, 2, layout=layout)
        y.backward(np.ones(y.shape, np.float32).astype(x.dtype))
