"""``torch.nn.functional``'s convolutions and poolings, by fastconv: the same names, arguments and results.

A function checks and unfolds its arguments and calls an operator of :mod:`.library`, which autograd, ``torch.compile``,
``torch.export`` and ``torch.func`` know. Of calls without gradients those after the first do not come so far
(:mod:`.again`).
"""

from __future__ import annotations

import math
from typing import Any

import torch

from fastconv.arguments import check_choice, integer, is_sequence
from fastconv.kernels.geometry import PADDING_MODES
from fastconv.problem import adaptive_pool_problem, pool_problem
from fastconv.ranks import per_rank

from . import again, convolutions, poolings
from .again import autocast_dtype, only_numbers
from .library import Operator
from .tensors import is_channels_last, why_not


def _check(op: str, *tensors: Any, bias: Any = None) -> None:
    reason = "takes tensors, not None" if any(t is None for t in tensors) else why_not(*tensors, bias)
    if reason is not None:
        raise TypeError(f"{op}: fastconv {reason}")


def _numbers(op: str, name: str, value: Any, rank: int, least: int = 1) -> tuple[Any, ...]:
    """One number an axis, at least ``least``, from one for all or a sequence, as PyTorch takes them."""
    if isinstance(value, (tuple, list, torch.Size)):
        if len(value) == rank:
            return tuple([_integer(op, name, v, least) for v in value])
        if len(value) != 1:
            raise ValueError(f"{op}: {name} must be a number or {rank} of them, got {value!r}")
        (value,) = value
    return (_integer(op, name, value, least),) * rank


def _integer(op: str, name: str, value: Any, least: int) -> Any:
    """A checked integer; while PyTorch traces it may be a symbol. Later calls are told apart by its value alone, which
    True and 1.0 share with 1."""
    if isinstance(value, torch.SymInt):
        return value
    number = value if type(value) is int else integer(op, name, value)
    if number < least:
        raise ValueError(f"{op}: {name} must be >= {least}, got {value!r}")
    return number


def _batched(op: str, x: torch.Tensor, rank: int) -> tuple[torch.Tensor, bool]:
    if x.dim() == rank + 2:
        return x, True
    if x.dim() != rank + 1:
        raise ValueError(
            f"{op}: input must have {rank + 2} dimensions, or {rank + 1} without the batch, got shape {tuple(x.shape)}"
        )
    return x.unsqueeze(0), False


def _autocast(*tensors: Any) -> tuple[Any, ...]:
    """The tensors in autocast's dtype, where it is on: as PyTorch treats its own convolutions."""
    dtype = autocast_dtype(tensors[0]) if isinstance(tensors[0], torch.Tensor) else None
    if dtype is None:
        return tensors
    low = (torch.float32, torch.float16, torch.bfloat16)
    return tuple(t.to(dtype) if isinstance(t, torch.Tensor) and t.dtype in low else t for t in tensors)


# ------------------------------------------------------------------------------------------------------- convolution


def _padding(op: str, padding: Any, x: Any, w: Any, stride: Any, dilation: Any) -> tuple[Any, ...]:
    """Before and after each axis."""
    rank = len(stride)
    if not isinstance(padding, str):
        return tuple(p for p in _numbers(op, "padding", padding, rank, 0) for _ in range(2))
    if padding == "valid":
        return (0,) * (2 * rank)
    if padding != "same":
        raise ValueError(f"{op}: padding must be numbers, 'valid' or 'same', got {padding!r}")
    if any(s != 1 for s in stride):
        raise ValueError(f"{op}: padding='same' needs stride 1, got {stride}")
    spans = [d * (k - 1) for d, k in zip(dilation, w.shape[2:], strict=True)]
    return tuple(n for span in spans for n in (span // 2, span - span // 2))


@per_rank("conv{}d")
def conv(
    op: str, rank: int, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, stride: Any = 1,
    padding: Any = 0, dilation: Any = 1, groups: int = 1, *, padding_mode: str = "zeros",
) -> torch.Tensor:  # fmt: skip
    """``torch.nn.functional.conv{rank}d`` by fastconv, differentiable; ``padding_mode`` also pads other than by zeros.

    >>> import torch
    >>> from fastconv.backends import torch as fct
    >>> fct.{op}(torch.ones(1, 3, {dims:8}), torch.ones(4, 3, {dims:3}), padding=1).shape
    torch.Size([1, 4, {dims:8}])

    Raises
    ------
    TypeError : tensors that fastconv does not read: other dtypes than float32, float64, float16, bfloat16, other
        devices than CPU and CUDA, sparse or quantised ones.
    ValueError : sizes or parameters that do not fit.
    """
    key, ready = again.find(op, (input, weight, bias), (stride, padding, dilation, groups, padding_mode))
    if ready is not None:
        return ready(input, weight, bias)
    input, weight, bias = _autocast(input, weight, bias)
    _check(op, input, weight, bias=bias)
    x, batched = _batched(op, input, rank)
    strides, dilations = _numbers(op, "stride", stride, rank), _numbers(op, "dilation", dilation, rank)
    pads = _padding(op, padding, x, weight, strides, dilations)
    check_choice(op, "padding_mode", padding_mode, PADDING_MODES)
    parameters = strides, pads, dilations, _integer(op, "groups", groups, 1), padding_mode
    y: torch.Tensor = convolutions.conv(x, weight, bias, *parameters)
    if key is not None and batched:
        last = is_channels_last(x)
        again.keep(key, convolutions.on_arrays(last, (x, weight, bias), *parameters), last)
    return y if batched else y.squeeze(0)


@per_rank("conv_transpose{}d")
def conv_transpose(
    op: str, rank: int, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, stride: Any = 1,
    padding: Any = 0, output_padding: Any = 0, groups: int = 1, dilation: Any = 1,
) -> torch.Tensor:  # fmt: skip
    """``torch.nn.functional.conv_transpose{rank}d`` by fastconv, differentiable.

    >>> import torch
    >>> from fastconv.backends import torch as fct
    >>> fct.{op}(torch.ones(1, 3, {dims:4}), torch.ones(3, 2, {dims:2}), stride=2).shape
    torch.Size([1, 2, {dims:8}])

    Raises
    ------
    TypeError, ValueError : as ``conv{rank}d``.
    """
    key, ready = again.find(op, (input, weight, bias), (stride, padding, output_padding, groups, dilation))
    if ready is not None:
        return ready(input, weight, bias)
    input, weight, bias = _autocast(input, weight, bias)
    _check(op, input, weight, bias=bias)
    dy, batched = _batched(op, input, rank)
    strides, dilations = _numbers(op, "stride", stride, rank), _numbers(op, "dilation", dilation, rank)
    groups = _integer(op, "groups", groups, 1)
    pads, extra = _numbers(op, "padding", padding, rank, 0), _numbers(op, "output_padding", output_padding, rank, 0)
    for e, p, s, d in zip(extra, pads, strides, dilations, strict=True):
        if e >= s and (e >= d or e - p >= s):
            raise ValueError(
                f"{op}: output_padding must be smaller than stride (or than dilation and padding + stride), got "
                f"{output_padding}"
            )
    if dy.shape[1] != weight.shape[0]:
        raise ValueError(
            f"{op}: weight of shape {tuple(weight.shape)} takes {weight.shape[0]} channels, input has {dy.shape[1]}"
        )
    size = tuple(
        (n - 1) * s - 2 * p + d * (k - 1) + 1 + e
        for n, s, p, d, k, e in zip(dy.shape[2:], strides, pads, dilations, weight.shape[2:], extra, strict=True)
    )
    # What is added at the end is less of the padding there, as long as there is any.
    both = tuple(n for p, e in zip(pads, extra, strict=True) for n in (p, max(p - e, 0)))
    x: torch.Tensor = convolutions.conv_input(weight, dy, bias, size, strides, both, dilations, groups, "zeros")
    if key is not None and batched:
        last = is_channels_last(dy)
        tensors = dy, weight, bias
        on_arrays = convolutions.transposed_on_arrays(last, tensors, strides, pads, extra, dilations, groups)
        again.keep(key, on_arrays, last)
    return x if batched else x.squeeze(0)


# ----------------------------------------------------------------------------------------------------------- pooling


def _pooled(op: str, x: Any, rank: int) -> tuple[torch.Tensor, bool]:
    """The input with a batch dimension, and whether it had one. On the CPU autocast has three-dimensional poolings in
    float32, as PyTorch does."""
    _check(op, x)
    if rank == 3 and x.is_cpu and x.dtype is not torch.float64 and autocast_dtype(x) is not None:
        x = x.float()
    return _batched(op, x, rank)


def _stride(op: str, stride: Any, kernel: tuple[Any, ...]) -> tuple[Any, ...]:
    """None and an empty sequence mean the kernel's size."""
    return kernel if stride is None or stride == [] or stride == () else _numbers(op, "stride", stride, len(kernel))


def _check_padding(op: str, padding: tuple[Any, ...], kernel: tuple[Any, ...], dilation: tuple[Any, ...]) -> None:
    for p, k, d in zip(padding, kernel, dilation, strict=True):
        if not p <= (d * (k - 1) + 1) // 2:
            raise ValueError(f"{op}: padding must be at most half the window, got {padding} for a window of {kernel}")


def _keep(key: Any, kind: str, builder: Any, x: torch.Tensor, batched: bool, **parameters: Any) -> None:
    if key is not None and batched:
        again.keep(key, poolings.on_arrays(kind, builder, x, **parameters), is_channels_last(x))


def _picked(operator: Operator, x: torch.Tensor, batched: bool, return_indices: bool, *parameters: Any) -> Any:
    wanted = return_indices or (torch.is_grad_enabled() and x.requires_grad) or not only_numbers(x)
    y, indices = operator(x, *parameters, wanted)
    if not batched:
        y, indices = y.squeeze(0), indices.squeeze(0) if return_indices else indices
    return (y, indices) if return_indices else y


@per_rank("max_pool{}d")
def max_pool(
    op: str, rank: int, input: torch.Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
    ceil_mode: bool = False, return_indices: bool = False,
) -> Any:  # fmt: skip
    """``torch.nn.functional.max_pool{rank}d`` by fastconv, differentiable.

    >>> import torch
    >>> from fastconv.backends import torch as fct
    >>> fct.{op}(torch.ones(1, 3, {dims:8}), 2).shape
    torch.Size([1, 3, {dims:4}])

    Raises
    ------
    TypeError, ValueError : as ``conv{rank}d``.
    """
    key, ready = again.find(op, (input,), (kernel_size, stride, padding, dilation, ceil_mode, return_indices))
    if ready is not None:
        return ready(input)
    x, batched = _pooled(op, input, rank)
    kernel, dilations = _numbers(op, "kernel_size", kernel_size, rank), _numbers(op, "dilation", dilation, rank)
    pads = _numbers(op, "padding", padding, rank, 0)
    _check_padding(op, pads, kernel, (1,) * rank)  # PyTorch does not look at the dilation here
    windows = kernel, _stride(op, stride, kernel), pads, dilations, ceil_mode
    result = _picked(poolings.max_pool, x, batched, return_indices, *windows)
    _keep(key, "max_pool", pool_problem, x, batched, indices=return_indices, **poolings.windows(*windows))
    return result


@per_rank("adaptive_max_pool{}d")
def adaptive_max_pool(op: str, rank: int, input: torch.Tensor, output_size: Any, return_indices: bool = False) -> Any:
    """``torch.nn.functional.adaptive_max_pool{rank}d`` by fastconv, differentiable.

    >>> import torch
    >>> from fastconv.backends import torch as fct
    >>> fct.{op}(torch.ones(1, 3, {dims:7}), 2).shape
    torch.Size([1, 3, {dims:2}])

    Raises
    ------
    TypeError, ValueError : as ``conv{rank}d``.
    """
    key, ready = again.find(op, (input,), (output_size, return_indices))
    if ready is not None:
        return ready(input)
    x, batched = _pooled(op, input, rank)
    size = _output_size(op, output_size, x)
    result = _picked(poolings.adaptive_max_pool, x, batched, return_indices, size)
    _keep(key, "max_pool", adaptive_pool_problem, x, batched, indices=return_indices, output_size=size)
    return result


def _output_size(op: str, output_size: Any, x: torch.Tensor) -> tuple[Any, ...]:
    size = x.shape[2:]
    wanted = tuple(output_size) if is_sequence(output_size) else (output_size,)
    wanted = wanted * len(size) if len(wanted) == 1 else wanted
    if len(wanted) == len(size):
        wanted = tuple(n if o is None else o for o, n in zip(wanted, size, strict=True))
    return _numbers(op, "output_size", wanted, len(size))


@per_rank("avg_pool{}d")
def avg_pool(
    op: str, rank: int, input: torch.Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0,
    ceil_mode: bool = False, count_include_pad: bool = True, divisor_override: int | None = None,
) -> torch.Tensor:  # fmt: skip
    """``torch.nn.functional.avg_pool{rank}d`` by fastconv, differentiable.

    >>> import torch
    >>> from fastconv.backends import torch as fct
    >>> fct.{op}(torch.ones(1, 3, {dims:8}), 2).shape
    torch.Size([1, 3, {dims:4}])

    Raises
    ------
    TypeError, ValueError : as ``conv{rank}d``.
    """
    key, ready = again.find(
        op, (input,), (kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
    )
    if ready is not None:
        return ready(input)
    x, batched = _pooled(op, input, rank)
    kernel, pads = _numbers(op, "kernel_size", kernel_size, rank), _numbers(op, "padding", padding, rank, 0)
    _check_padding(op, pads, kernel, (1,) * rank)
    if divisor_override == 0:
        raise ValueError(f"{op}: divisor_override must not be 0")
    means = kernel, _stride(op, stride, kernel), pads, ceil_mode, count_include_pad, divisor_override or 0
    y: torch.Tensor = poolings.avg_pool(x, *means)
    _keep(key, "avg_pool", pool_problem, x, batched, **poolings.means(*means))
    return y if batched else y.squeeze(0)


@per_rank("adaptive_avg_pool{}d")
def adaptive_avg_pool(op: str, rank: int, input: torch.Tensor, output_size: Any) -> torch.Tensor:
    """``torch.nn.functional.adaptive_avg_pool{rank}d`` by fastconv, differentiable.

    >>> import torch
    >>> from fastconv.backends import torch as fct
    >>> fct.{op}(torch.ones(1, 3, {dims:7}), 1).shape
    torch.Size([1, 3, {dims:1}])

    Raises
    ------
    TypeError, ValueError : as ``conv{rank}d``.
    """
    key, ready = again.find(op, (input,), (output_size,))
    if ready is not None:
        return ready(input)
    x, batched = _pooled(op, input, rank)
    size = _output_size(op, output_size, x)
    y: torch.Tensor = poolings.adaptive_avg_pool(x, size)
    _keep(key, "avg_pool", adaptive_pool_problem, x, batched, output_size=size)
    return y if batched else y.squeeze(0)


@per_rank("lp_pool{}d")
def lp_pool(
    op: str, rank: int, input: torch.Tensor, norm_type: float, kernel_size: Any, stride: Any = None,
    ceil_mode: bool = False,
) -> torch.Tensor:  # fmt: skip
    """``torch.nn.functional.lp_pool{rank}d`` by fastconv, differentiable: as there, windows that a ceil_mode cuts off
    count as if they were whole.

    >>> import torch
    >>> from fastconv.backends import torch as fct
    >>> float(fct.{op}(torch.ones(1, 1, {dims:2}), 1, 2).sum()) == 2**{rank}
    True

    Raises
    ------
    TypeError, ValueError : as ``conv{rank}d``.
    """
    key, ready = again.find(op, (input,), (norm_type, kernel_size, stride, ceil_mode))
    if ready is not None:
        return ready(input)
    kernel = _numbers(op, "kernel_size", kernel_size, rank)
    x, batched = _pooled(op, input, rank)
    if only_numbers(x) and not ceil_mode:
        strides = _stride(op, stride, kernel)
        y = poolings.compute_lp(x, norm_type, kernel, strides)
        _keep(key, "lp_pool", pool_problem, x, batched, norm_type=norm_type, kernel_size=kernel, stride=strides)
        return y if batched else y.squeeze(0)
    mean: torch.Tensor = (avg_pool1d, avg_pool2d, avg_pool3d)[rank - 1](
        input.pow(norm_type), kernel_size, stride, 0, ceil_mode
    )
    return mean.mul(math.prod(kernel)).pow(1.0 / norm_type)


@per_rank("max_unpool{}d")
def max_unpool(
    op: str, rank: int, input: torch.Tensor, indices: torch.Tensor, kernel_size: Any, stride: Any = None,
    padding: Any = 0, output_size: Any = None,
) -> torch.Tensor:  # fmt: skip
    """``torch.nn.functional.max_unpool{rank}d`` by fastconv, differentiable.

    >>> import torch
    >>> from fastconv.backends import torch as fct
    >>> y, indices = fct.max_pool{rank}d(torch.ones(1, 1, {dims:4}), 2, return_indices=True)
    >>> fct.{op}(y, indices, 2).shape
    torch.Size([1, 1, {dims:4}])

    Raises
    ------
    TypeError, ValueError : as ``conv{rank}d``.
    """
    _check(op, input)
    if not isinstance(indices, torch.Tensor) or indices.dtype != torch.int64 or indices.device != input.device:
        raise TypeError(f"{op}: indices must be an int64 tensor on {input.device}, got {indices!r}")
    if indices.shape != input.shape:
        raise ValueError(f"{op}: indices must have input's shape {tuple(input.shape)}, got {tuple(indices.shape)}")
    x, batched = _batched(op, input, rank)
    positions = indices if batched else indices.unsqueeze(0)
    kernel = _numbers(op, "kernel_size", kernel_size, rank)
    strides, pads = _stride(op, stride, kernel), _numbers(op, "padding", padding, rank, 0)
    usual = tuple((n - 1) * s - 2 * p + k for n, s, p, k in zip(x.shape[2:], strides, pads, kernel, strict=True))
    size = usual
    if output_size is not None:
        given = tuple(output_size) if is_sequence(output_size) else (output_size,)
        size = _numbers(op, "output_size", given[-rank:], rank)
    for n, u, s in zip(size, usual, strides, strict=True):
        if not u - s < n < u + s:
            raise ValueError(f"{op}: output_size must be within a stride of {usual}, got {size}")
    y: torch.Tensor = poolings.max_unpool(x, positions, size)
    return y if batched else y.squeeze(0)


conv1d, conv2d, conv3d = conv
conv_transpose1d, conv_transpose2d, conv_transpose3d = conv_transpose
max_pool1d, max_pool2d, max_pool3d = max_pool
adaptive_max_pool1d, adaptive_max_pool2d, adaptive_max_pool3d = adaptive_max_pool
avg_pool1d, avg_pool2d, avg_pool3d = avg_pool
adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d = adaptive_avg_pool
lp_pool1d, lp_pool2d, lp_pool3d = lp_pool
max_unpool1d, max_unpool2d, max_unpool3d = max_unpool
