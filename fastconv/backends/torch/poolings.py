"""Pooling as custom operators.

    max_pool(x) -> y, indices         avg_pool(x)         lp_pool(x)             windows of one size
    adaptive_max_pool(x) -> …         adaptive_avg_pool(x)                       windows that divide the input evenly
    max_unpool(x, indices)            values back to their positions
    …_input(dy, …)                    the gradient of each with respect to x

``indices`` are int64, flat within a channel plane; where none are wanted the tensor is empty. ``divisor`` 0 means none.
"""

from __future__ import annotations

from typing import Any

import torch

from fastconv import call, pooling
from fastconv.kernels.geometry import PoolGeometry
from fastconv.problem import PoolProblem, adaptive_pool_problem, pool_problem

from .library import Operator, as_images
from .tensors import array, channels_first_view, channels_last_view, empty, is_channels_last, on_device, tensor

WINDOWS = "SymInt[] kernel_size, SymInt[] stride, SymInt[] padding, SymInt[] dilation, bool ceil_mode"
MEANS = "SymInt[] kernel_size, SymInt[] stride, SymInt[] padding, bool ceil_mode, bool count_include_pad, int divisor"


def pooled_size(size: Any, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool) -> list[Any]:
    """Spatial sizes of a pooling's result; they may be symbols. A last window that would begin in the padding after
    the input is left out."""
    result = []
    for n, k, s, p, d in zip(size, kernel, stride, padding, dilation, strict=True):
        span = n + 2 * p - d * (k - 1) - 1
        if ceil_mode:  # without a branch, which would bind a symbol to what it is now
            result.append(torch.sym_min((span + s - 1) // s + 1, (n + p + s - 1) // s))
        else:
            result.append(span // s + 1)
    return result


def windows(kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool) -> dict[str, Any]:
    return {
        "kernel_size": tuple(kernel_size), "stride": tuple(stride), "padding": tuple(padding),
        "dilation": tuple(dilation), "ceil_mode": ceil_mode,
    }  # fmt: skip


def means(
    kernel_size: Any, stride: Any, padding: Any, ceil_mode: bool, count_include_pad: bool, divisor: int
) -> dict[str, Any]:
    return {
        "kernel_size": tuple(kernel_size), "stride": tuple(stride), "padding": tuple(padding), "ceil_mode": ceil_mode,
        "count_include_pad": count_include_pad, "divisor_override": divisor or None,
    }  # fmt: skip


# ----------------------------------------------------------------------------------------------------- on the arrays


def _pool(kind: str, builder: Any, x: torch.Tensor, indices: bool = False, **parameters: Any) -> list[torch.Tensor]:
    """The pooled tensor, and the indices if they are wanted."""
    rank, last = x.dim() - 2, is_channels_last(x)
    with on_device(x):
        source = channels_last_view(array(x)) if last else array(x)
        found = pooling.pool(
            _name(kind, builder, rank), rank, builder, kind, source, **_keywords(last, indices), **parameters
        )
        return [tensor(channels_first_view(a) if last else a) for a in (found[:2] if indices else found[:1])]


def _name(kind: str, builder: Any, rank: int) -> str:
    return f"adaptive_{kind}{rank}d" if builder is adaptive_pool_problem else f"{kind}{rank}d"


def _keywords(last: bool, indices: bool) -> dict[str, Any]:
    return {"layout": "channels_last" if last else None, "indices": "int64" if indices else None}


def on_arrays(kind: str, builder: Any, x: torch.Tensor, indices: bool = False, **parameters: Any) -> Any:
    """A pooling that has run as a function of arrays like that of x, which gives y, or y and the indices."""
    rank, last = x.dim() - 2, is_channels_last(x)
    op, keywords = _name(kind, builder, rank), {**_keywords(last, indices), **parameters}
    source = channels_last_view(array(x)) if last else array(x)
    ready = pooling.kept_pool(op, builder, source, **keywords)

    def pool(source: Any, out: Any = None) -> Any:
        found = None if ready is None else ready(source, out)  # which is particular about where memory lies
        found = found or pooling.pool(op, rank, builder, kind, source, out=out, **keywords)
        return found[:2] if indices else found[0]

    return pool


def _gradient(
    kind: str, builder: Any, dy: torch.Tensor, input_size: Any, *others: torch.Tensor, **parameters: Any
) -> torch.Tensor:
    """The gradient of a pooling of an input of these spatial sizes; ``others`` are what its kernel takes after dy."""
    rank = dy.dim() - 2
    last = is_channels_last(dy)
    with on_device(dy):
        arrays = [array(t) for t in (dy, *others)]
        if last:
            arrays = [channels_last_view(a) for a in arrays]
        problem: PoolProblem = call.build(
            builder, f"{kind}{rank}d", rank, kind, (*dy.shape[:2], *input_size), dtype=arrays[0].dtype.name,
            layout="channels_last" if last else "channels_first", device="cuda" if dy.is_cuda else "cpu",
            indices=bool(others), **parameters,
        )  # fmt: skip
        dx = pooling.pool_gradient(problem, *arrays, like=arrays[0], batched=True)
        return tensor(channels_first_view(dx) if last else dx)


def _like(x: Any, size: Any, last: bool) -> Any:
    return empty(x, (*x.shape[:2], *size), last)


def _none(x: Any) -> Any:
    return x.new_empty(0, dtype=torch.int64)


def _positions(x: Any, y: Any, wanted: bool) -> Any:
    return torch.empty_like(y, dtype=torch.int64) if wanted else _none(x)


def _found(x: torch.Tensor, found: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    return found[0], found[1] if len(found) == 2 else _none(x)


def _at(g: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """The elements of g at each plane's indices."""
    return g.flatten(2).gather(2, indices.flatten(2)).view_as(indices)


# ------------------------------------------------------------------------------------------------------------ maximum


def compute_max(
    x: torch.Tensor, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool, indices: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    parameters = windows(kernel_size, stride, padding, dilation, ceil_mode)
    return _found(x, _pool("max_pool", pool_problem, x, indices, **parameters))


def _max_shape(x: Any, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: Any, indices: Any) -> Any:
    size = pooled_size(x.shape[2:], kernel_size, stride, padding, dilation, ceil_mode)
    y = _like(x, size, is_channels_last(x))
    return y, _positions(x, y, indices)


def _max_input(
    dy: torch.Tensor, indices: torch.Tensor, input_size: Any, kernel_size: Any, stride: Any, padding: Any,
    dilation: Any, ceil_mode: bool,
) -> torch.Tensor:  # fmt: skip
    parameters = windows(kernel_size, stride, padding, dilation, ceil_mode)
    return _gradient("max_pool", pool_problem, dy, input_size, indices, **parameters)


def _max_input_shape(dy: Any, indices: Any, input_size: Any, *windows: Any) -> Any:
    return _like(dy, input_size, is_channels_last(dy))


max_pool = Operator(f"max_pool(Tensor x, {WINDOWS}, bool indices) -> (Tensor, Tensor)", compute_max, _max_shape)
max_pool_input = Operator(
    f"max_pool_input(Tensor dy, Tensor indices, SymInt[] input_size, {WINDOWS}) -> Tensor",
    _max_input,
    _max_input_shape,
)


def compute_adaptive_max(x: torch.Tensor, output_size: Any, indices: bool) -> tuple[torch.Tensor, torch.Tensor]:
    return _found(x, _pool("max_pool", adaptive_pool_problem, x, indices, output_size=tuple(output_size)))


def _adaptive_max_shape(x: Any, output_size: Any, indices: Any) -> Any:
    y = _like(x, output_size, is_channels_last(x))
    return y, _positions(x, y, indices)


def _adaptive_max_input(dy: torch.Tensor, indices: torch.Tensor, input_size: Any) -> torch.Tensor:
    return _gradient("max_pool", adaptive_pool_problem, dy, input_size, indices, output_size=tuple(dy.shape[2:]))


adaptive_max_pool = Operator(
    "adaptive_max_pool(Tensor x, SymInt[] output_size, bool indices) -> (Tensor, Tensor)",
    compute_adaptive_max,
    _adaptive_max_shape,
)
adaptive_max_pool_input = Operator(
    "adaptive_max_pool_input(Tensor dy, Tensor indices, SymInt[] input_size) -> Tensor",
    _adaptive_max_input,
    _max_input_shape,
)


def _keep_indices(ctx: Any, inputs: Any, output: Any) -> None:
    _, indices = output
    ctx.mark_non_differentiable(indices)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(indices)
    ctx.size, ctx.windows, ctx.indices = inputs[0].shape[2:], inputs[1:-1], inputs[-1]


def _keep_only_indices(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(inputs[1])
    ctx.more = len(inputs) - 1


def _need_indices(ctx: Any) -> torch.Tensor:
    if not ctx.indices:
        raise RuntimeError("the gradient of a maximum pooling needs indices=True in its forward pass")
    (indices,) = ctx.saved_tensors
    found: torch.Tensor = indices
    return found


def _max_backward(ctx: Any, g: Any, _: Any) -> tuple[Any, ...]:
    dx = None if g is None else max_pool_input(g, _need_indices(ctx), ctx.size, *ctx.windows)
    return dx, *(None,) * 6


def _adaptive_max_backward(ctx: Any, g: Any, _: Any) -> tuple[Any, ...]:
    return None if g is None else adaptive_max_pool_input(g, _need_indices(ctx), ctx.size), None, None


def _gather_backward(ctx: Any, g: torch.Tensor) -> tuple[Any, ...]:
    return _at(g, ctx.saved_tensors[0]), *(None,) * ctx.more


max_pool.define(_keep_indices, _max_backward, as_images(max_pool))
max_pool_input.define(_keep_only_indices, _gather_backward, as_images(max_pool_input))
adaptive_max_pool.define(_keep_indices, _adaptive_max_backward, as_images(adaptive_max_pool))
adaptive_max_pool_input.define(_keep_only_indices, _gather_backward, as_images(adaptive_max_pool_input))


# --------------------------------------------------------------------------------------------------------------- mean


def compute_avg(
    x: torch.Tensor, kernel_size: Any, stride: Any, padding: Any, ceil_mode: bool, count_include_pad: bool, divisor: int
) -> torch.Tensor:
    parameters = means(kernel_size, stride, padding, ceil_mode, count_include_pad, divisor)
    return _pool("avg_pool", pool_problem, x, **parameters)[0]


def _avg_shape(
    x: Any, kernel_size: Any, stride: Any, padding: Any, ceil_mode: Any, count_include_pad: Any, divisor: Any
) -> Any:
    size = pooled_size(x.shape[2:], kernel_size, stride, padding, (1,) * len(stride), ceil_mode)
    return _like(x, size, is_channels_last(x))


def _avg_input(
    dy: torch.Tensor, input_size: Any, kernel_size: Any, stride: Any, padding: Any, ceil_mode: bool,
    count_include_pad: bool, divisor: int,
) -> torch.Tensor:  # fmt: skip
    parameters = means(kernel_size, stride, padding, ceil_mode, count_include_pad, divisor)
    return _gradient("avg_pool", pool_problem, dy, input_size, **parameters)


def _input_shape(dy: Any, input_size: Any, *parameters: Any) -> Any:
    return _like(dy, input_size, is_channels_last(dy))


avg_pool = Operator(f"avg_pool(Tensor x, {MEANS}) -> Tensor", compute_avg, _avg_shape)
avg_pool_input = Operator(
    f"avg_pool_input(Tensor dy, SymInt[] input_size, {MEANS}) -> Tensor", _avg_input, _input_shape
)


def compute_adaptive_avg(x: torch.Tensor, output_size: Any) -> torch.Tensor:
    return _pool("avg_pool", adaptive_pool_problem, x, output_size=tuple(output_size))[0]


def _adaptive_avg_shape(x: Any, output_size: Any) -> Any:
    return _like(x, output_size, is_channels_last(x))


def _adaptive_avg_input(dy: torch.Tensor, input_size: Any) -> torch.Tensor:
    return _gradient("avg_pool", adaptive_pool_problem, dy, input_size, output_size=tuple(dy.shape[2:]))


adaptive_avg_pool = Operator(
    "adaptive_avg_pool(Tensor x, SymInt[] output_size) -> Tensor", compute_adaptive_avg, _adaptive_avg_shape
)
adaptive_avg_pool_input = Operator(
    "adaptive_avg_pool_input(Tensor dy, SymInt[] input_size) -> Tensor", _adaptive_avg_input, _input_shape
)


def _keep_size(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.size, ctx.parameters = inputs[0].shape[2:], inputs[1:]


def _keep_parameters(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.size, ctx.parameters = inputs[0].shape[2:], inputs[2:]


def _avg_backward(ctx: Any, g: torch.Tensor) -> tuple[Any, ...]:
    return avg_pool_input(g, ctx.size, *ctx.parameters), *(None,) * 6


def _avg_input_backward(ctx: Any, g: torch.Tensor) -> tuple[Any, ...]:
    return avg_pool(g, *ctx.parameters), *(None,) * 7


def _adaptive_avg_backward(ctx: Any, g: torch.Tensor) -> tuple[Any, ...]:
    return adaptive_avg_pool_input(g, ctx.size), None


def _adaptive_avg_input_backward(ctx: Any, g: torch.Tensor) -> tuple[Any, ...]:
    return adaptive_avg_pool(g, ctx.size), None


avg_pool.define(_keep_size, _avg_backward, as_images(avg_pool))
avg_pool_input.define(_keep_parameters, _avg_input_backward, as_images(avg_pool_input))
adaptive_avg_pool.define(_keep_size, _adaptive_avg_backward, as_images(adaptive_avg_pool))
adaptive_avg_pool_input.define(_keep_parameters, _adaptive_avg_input_backward, as_images(adaptive_avg_pool_input))


# --------------------------------------------------------------------------------------------------------------- norm


def compute_lp(x: torch.Tensor, norm_type: float, kernel_size: Any, stride: Any) -> torch.Tensor:
    """(sum of x^p)^(1/p) of each window. No operator: PyTorch has none either, its gradient is that of the parts."""
    return _pool("lp_pool", pool_problem, x, norm_type=norm_type, kernel_size=tuple(kernel_size), stride=tuple(stride))[
        0
    ]


# ---------------------------------------------------------------------------------------------------------- unpooling


def compute_unpool(x: torch.Tensor, indices: torch.Tensor, output_size: Any) -> torch.Tensor:
    rank = x.dim() - 2
    last = is_channels_last(x)
    with on_device(x):
        source, positions = array(x), array(indices)
        if last:
            source, positions = channels_last_view(source), channels_last_view(positions)
        y, _ = pooling.unpool(
            f"max_unpool{rank}d", rank, _any_size, source, positions, tuple(output_size),
            layout="channels_last" if last else None,
        )  # fmt: skip
        return tensor(channels_first_view(y) if last else y)


def _any_size(op: str, rank: int, shape: Any, size: Any, *, dtype: str, layout: str, device: str) -> PoolProblem:
    """Unpooling into planes of any size: PyTorch asks for none that a pooling could have had."""
    geometry = PoolGeometry(shape[0], shape[1], size, shape[2:])
    return PoolProblem("max_unpool", geometry, "forward", dtype, layout, device, True)


def _unpool_shape(x: Any, indices: Any, output_size: Any) -> Any:
    return _like(x, output_size, is_channels_last(x))


max_unpool = Operator(
    "max_unpool(Tensor x, Tensor indices, SymInt[] output_size) -> Tensor", compute_unpool, _unpool_shape
)
max_unpool.define(_keep_only_indices, _gather_backward, as_images(max_unpool))
