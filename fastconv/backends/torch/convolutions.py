"""Convolution as three custom operators, each the derivative of the others.

    conv(x, w, bias)     y[n, k, p] = sum over c, r  w[k, c, r] * x[n, c, p * stride + r * dilation - before] + bias[k]
    conv_input(w, dy, bias)         the transpose in x: dx, or a transposed convolution with its bias
    conv_weight(x, dy)              the transpose in w: dw

All three are linear in each of their tensors and sum over the same triples (x, w, dy): the gradient of any of them
with respect to one tensor is the operator that leaves this tensor out.

``padding`` has two numbers an axis, before and after. ``input_size`` and ``kernel_size`` are spatial sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any

import torch

from fastconv import call

from .library import Operator, samples_first
from .tensors import array, channels_first_view, channels_last_view, empty, is_channels_last, on_device, tensor

PARAMETERS = "SymInt[] stride, SymInt[] padding, SymInt[] dilation, SymInt groups, str padding_mode"


def pairs(padding: Sequence[int]) -> tuple[tuple[int, int], ...]:
    return tuple(zip(padding[::2], padding[1::2], strict=True))


def _shortest(padding: tuple[int, ...]) -> tuple[Any, ...]:
    """One number an axis where it is the same before and after: a cache looks such parameters up faster."""
    before, after = padding[::2], padding[1::2]
    return before if before == after else pairs(padding)


@lru_cache(maxsize=1024)
def _keywords(
    stride: tuple[int, ...], padding: tuple[int, ...], dilation: tuple[int, ...], groups: int, padding_mode: str
) -> dict[str, Any]:
    return {
        "stride": stride, "padding": _shortest(padding), "dilation": dilation, "groups": groups,
        "padding_mode": padding_mode,
    }  # fmt: skip


def output_size(size: Any, kernel: Any, stride: Any, padding: Any, dilation: Any) -> list[Any]:
    """Spatial sizes of a convolution's output; they may be symbols."""
    return [
        (n + before + after - d * (k - 1) - 1) // s + 1
        for n, k, s, (before, after), d in zip(size, kernel, stride, pairs(padding), dilation, strict=True)
    ]


# ---------------------------------------------------------------------------------------------------------- forward


def compute(
    x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None, stride: Any, padding: Any, dilation: Any,
    groups: int, padding_mode: str,
) -> torch.Tensor:  # fmt: skip
    """What ``fastconv::conv`` does."""
    rank = x.dim() - 2
    last = is_channels_last(x)
    with on_device(x):
        source = channels_last_view(array(x)) if last else array(x)
        y = call.conv(
            call.CONV, f"conv{rank}d", rank, source, array(w), None if bias is None else array(bias),
            layout="channels_last" if last else None,
            **_keywords(tuple(stride), tuple(padding), tuple(dilation), groups, padding_mode),
        )  # fmt: skip
        return tensor(channels_first_view(y) if last else y)


def on_arrays(last: bool, tensors: tuple[Any, ...], *parameters: Any) -> Any:
    """:func:`compute` as a function of arrays like those of the tensors, of which it has run."""
    return _ready(call.CONV, f"conv{tensors[0].dim() - 2}d", last, tensors, **_keywords(*parameters))


def _ready(kind: call.Kind, op: str, last: bool, tensors: tuple[Any, ...], **keywords: Any) -> Any:
    """The kept call of fastconv's itself, which looks into no dictionary again, or one that finds its own way."""
    x, *others = (None if t is None else array(t) for t in tensors)
    x = channels_last_view(x) if last else x
    layout = "channels_last" if last else None
    ready = call.ready_conv(kind, op, x, *others, layout=layout, **keywords)
    return ready or partial(call.conv, kind, op, tensors[0].dim() - 2, layout=layout, **keywords)


def _shape(x: Any, w: Any, bias: Any, stride: Any, padding: Any, dilation: Any, groups: Any, padding_mode: Any) -> Any:
    size = output_size(x.shape[2:], w.shape[2:], stride, padding, dilation)
    return empty(x, (x.shape[0], w.shape[0], *size), is_channels_last(x))


conv = Operator(f"conv(Tensor x, Tensor w, Tensor? bias, {PARAMETERS}) -> Tensor", compute, _shape)


# --------------------------------------------------------------------------------------------------- input gradient


def compute_input(
    w: torch.Tensor, dy: torch.Tensor, bias: torch.Tensor | None, input_size: Any, stride: Any, padding: Any,
    dilation: Any, groups: int, padding_mode: str,
) -> torch.Tensor:  # fmt: skip
    """What ``fastconv::conv_input`` does."""
    rank = dy.dim() - 2
    last = is_channels_last(dy)
    layout = "channels_last" if last else None
    keywords = _keywords(tuple(stride), tuple(padding), tuple(dilation), groups, padding_mode)
    size = (dy.shape[0], w.shape[1] * groups, *input_size)
    with on_device(dy):
        given, weights = array(dy), array(w)
        if last:
            given = channels_last_view(given)
        if bias is None:
            shape = (size[0], *size[2:], size[1]) if last else size
            dx = call.input_gradient(
                call.CONV, f"conv{rank}d_input", rank, shape, weights, given, layout=layout, **keywords
            )
        else:
            extra = output_padding(dy.shape[2:], w.shape[2:], input_size, stride, padding, dilation)
            zeros = {name: value for name, value in keywords.items() if name != "padding_mode"}
            dx = call.conv(
                call.TRANSPOSED, f"conv_transpose{rank}d", rank, given, weights, array(bias), output_padding=extra,
                layout=layout, **zeros,
            )  # fmt: skip
        return tensor(channels_first_view(dx) if last else dx)


def transposed_on_arrays(
    last: bool, tensors: tuple[Any, ...], stride: Any, padding: Any, output_padding: Any, dilation: Any, groups: int
) -> Any:
    """A transposed convolution as a function of arrays like those of the tensors: x, w and bias."""
    return _ready(
        call.TRANSPOSED, f"conv_transpose{tensors[0].dim() - 2}d", last, tensors, stride=stride, padding=padding,
        output_padding=output_padding, dilation=dilation, groups=groups,
    )  # fmt: skip


def output_padding(size: Any, kernel: Any, wanted: Any, stride: Any, padding: Any, dilation: Any) -> tuple[int, ...]:
    """What a transposed convolution's result is longer by than the least that gives this size back."""
    axes = zip(size, kernel, wanted, stride, pairs(padding), dilation, strict=True)
    return tuple(m - ((n - 1) * s - before - after + d * (k - 1) + 1) for n, k, m, s, (before, after), d in axes)


def _input_shape(
    w: Any,
    dy: Any,
    bias: Any,
    input_size: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    padding_mode: Any,
) -> Any:
    return empty(dy, (dy.shape[0], w.shape[1] * groups, *input_size), is_channels_last(dy))


conv_input = Operator(
    f"conv_input(Tensor w, Tensor dy, Tensor? bias, SymInt[] input_size, {PARAMETERS}) -> Tensor",
    compute_input,
    _input_shape,
)


# -------------------------------------------------------------------------------------------------- weight gradient


def compute_weight(
    x: torch.Tensor, dy: torch.Tensor, kernel_size: Any, stride: Any, padding: Any, dilation: Any, groups: int,
    padding_mode: str,
) -> torch.Tensor:  # fmt: skip
    """What ``fastconv::conv_weight`` does."""
    rank = x.dim() - 2
    last = is_channels_last(x) and (is_channels_last(dy) or not dy.is_contiguous())
    size = (dy.shape[1], x.shape[1] // groups, *kernel_size)
    with on_device(x):
        source, given = array(x), array(dy)
        if last:
            source, given = channels_last_view(source), channels_last_view(given)
        dw = call.weight_gradient(
            call.CONV, f"conv{rank}d_weight", rank, source, size, given, layout="channels_last" if last else None,
            **_keywords(tuple(stride), tuple(padding), tuple(dilation), groups, padding_mode),
        )  # fmt: skip
        return tensor(dw)


def _weight_shape(
    x: Any, dy: Any, kernel_size: Any, stride: Any, padding: Any, dilation: Any, groups: Any, padding_mode: Any
) -> Any:
    return x.new_empty((dy.shape[1], x.shape[1] // groups, *kernel_size))


conv_weight = Operator(
    f"conv_weight(Tensor x, Tensor dy, SymInt[] kernel_size, {PARAMETERS}) -> Tensor", compute_weight, _weight_shape
)


# ---------------------------------------------------------------------------------------------------------- gradients


def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    first, second, *_ = inputs
    ctx.save_for_backward(first, second)
    ctx.parameters = inputs[-5:]


def _sum(dy: torch.Tensor) -> torch.Tensor:
    return dy.sum((0, *range(2, dy.dim())))


def _conv_backward(ctx: Any, g: torch.Tensor) -> tuple[Any, ...]:
    x, w = ctx.saved_tensors
    dx = conv_input(w, g, None, x.shape[2:], *ctx.parameters) if ctx.needs_input_grad[0] else None
    dw = conv_weight(x, g, w.shape[2:], *ctx.parameters) if ctx.needs_input_grad[1] else None
    return dx, dw, _sum(g) if ctx.needs_input_grad[2] else None, *(None,) * 5


def _input_backward(ctx: Any, g: torch.Tensor) -> tuple[Any, ...]:
    w, dy = ctx.saved_tensors
    dw = conv_weight(g, dy, w.shape[2:], *ctx.parameters) if ctx.needs_input_grad[0] else None
    back = conv(g, w, None, *ctx.parameters) if ctx.needs_input_grad[1] else None
    return dw, back, _sum(g) if ctx.needs_input_grad[2] else None, *(None,) * 6


def _weight_backward(ctx: Any, g: torch.Tensor) -> tuple[Any, ...]:
    x, dy = ctx.saved_tensors
    dx = conv_input(g, dy, None, x.shape[2:], *ctx.parameters) if ctx.needs_input_grad[0] else None
    return dx, conv(x, g, None, *ctx.parameters) if ctx.needs_input_grad[1] else None, *(None,) * 6


# --------------------------------------------------------------------------------------------------------------- vmap
# Samples with weights of their own are groups of one convolution; samples that share them are more images.


def _beside(t: torch.Tensor, axis: int | None, size: int) -> torch.Tensor:
    """(N, size * C, …): the channels of all samples side by side."""
    return samples_first(t, axis, size).movedim(0, 1).flatten(1, 2)


def _stacked(t: torch.Tensor | None, axis: int | None, size: int) -> torch.Tensor | None:
    """(size * K, …)."""
    return None if t is None else samples_first(t, axis, size).flatten(0, 1)


def _apart(y: torch.Tensor, size: int) -> torch.Tensor:
    return y.unflatten(1, (size, -1))


def _grouped(parameters: Any, size: int) -> Any:
    stride, padding, dilation, groups, padding_mode = parameters
    return stride, padding, dilation, groups * size, padding_mode


def _conv_samples(size: int, in_dims: Any, x: Any, w: Any, bias: Any, *parameters: Any) -> Any:
    if in_dims[1] is None and in_dims[2] is None:
        y = conv(samples_first(x, in_dims[0], size).flatten(0, 1), w, bias, *parameters)
        return y.unflatten(0, (size, -1)), 0
    x, w, bias = _beside(x, in_dims[0], size), _stacked(w, in_dims[1], size), _stacked(bias, in_dims[2], size)
    return _apart(conv(x, w, bias, *_grouped(parameters, size)), size), 1


def _input_samples(size: int, in_dims: Any, w: Any, dy: Any, bias: Any, input_size: Any, *parameters: Any) -> Any:
    if in_dims[0] is None and in_dims[2] is None:
        dx = conv_input(w, samples_first(dy, in_dims[1], size).flatten(0, 1), bias, input_size, *parameters)
        return dx.unflatten(0, (size, -1)), 0
    w, dy, bias = _stacked(w, in_dims[0], size), _beside(dy, in_dims[1], size), _stacked(bias, in_dims[2], size)
    return _apart(conv_input(w, dy, bias, input_size, *_grouped(parameters, size)), size), 1


def _weight_samples(size: int, in_dims: Any, x: Any, dy: Any, kernel_size: Any, *parameters: Any) -> Any:
    x, dy = _beside(x, in_dims[0], size), _beside(dy, in_dims[1], size)
    return conv_weight(x, dy, kernel_size, *_grouped(parameters, size)).unflatten(0, (size, -1)), 0


conv.define(_keep, _conv_backward, _conv_samples)
conv_input.define(_keep, _input_backward, _input_samples)
conv_weight.define(_keep, _weight_backward, _weight_samples)
