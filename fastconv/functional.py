"""The public operations: arrays in, arrays out; any Tensor in, Tensor out.

Each operation is defined once for 1, 2 and 3 spatial dimensions. Beside it stands its vector-Jacobian product, which
calls the kernels of :mod:`fastconv.grad`. While gradients are recorded, the fused epilogue of a convolution (residual,
activation) runs as separate operations, because the activation's gradient needs what lies between them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import autograd, call, pooling
from .arguments import IntOrSequence, Padding, check_choice, flag
from .arrays import intake, same_kind
from .autograd import Tensor, defvjp, is_grad_enabled, primitive
from .kernels import ACTIVATIONS
from .problem import PoolProblem, adaptive_pool_problem, pool_problem, unpool_problem
from .ranks import per_rank

INT32_MAX = 2**31 - 1


def _is_tensor(*values: Any) -> bool:
    return any(isinstance(v, Tensor) for v in values)


def _records(*values: Any) -> bool:
    """Whether a call with these arguments leaves a node on the tape."""
    return is_grad_enabled() and any(isinstance(v, Tensor) and v.requires_grad for v in values)


def _data(value: Any) -> Any:
    return value.data if isinstance(value, Tensor) else value


def _activated(y: Any, activation: str | None) -> Any:
    return y if activation is None else getattr(autograd, activation)(y)


def _no_out(op: str, out: Any) -> None:
    if out is not None:
        raise ValueError(
            f"{op}: out= cannot be used while gradients are recorded; leave it out, or call under no_grad()"
        )


# ------------------------------------------------------------------------------------------------------ convolution


@primitive
def _conv(x: Any, w: Any, bias: Any, *, op: str, rank: int, **parameters: Any) -> Any:
    return call.conv(call.CONV, op, rank, x, w, bias, **parameters)


@primitive
def _conv_transpose(x: Any, w: Any, bias: Any, *, op: str, rank: int, **parameters: Any) -> Any:
    return call.conv(call.TRANSPOSED, op, rank, x, w, bias, **parameters)


def _conv_vjps(kind: call.Kind) -> tuple[Callable[..., Any], ...]:
    """vjps for x, w and bias; how gradients are computed is chosen automatically, whatever forward was told."""

    def for_input(ans: Any, x: Any, w: Any, bias: Any, *, op: str, rank: int, algorithm: str, **parameters: Any) -> Any:
        shape = x.shape
        return lambda g: call.input_gradient(kind, op, rank, shape, w, g, **parameters)

    def for_weight(
        ans: Any, x: Any, w: Any, bias: Any, *, op: str, rank: int, algorithm: str, **parameters: Any
    ) -> Any:
        shape = w.shape
        return lambda g: call.weight_gradient(kind, op, rank, x, shape, g, **parameters)

    def for_bias(
        ans: Any, x: Any, w: Any, bias: Any, *, op: str, rank: int, layout: str | None, **parameters: Any
    ) -> Any:
        return lambda g: call.bias_gradient(op, rank, g, layout=layout)

    return for_input, for_weight, for_bias


defvjp(_conv, *_conv_vjps(call.CONV))
defvjp(_conv_transpose, *_conv_vjps(call.TRANSPOSED))


@per_rank("conv{}d")
def conv(
    op: str, rank: int, x: Any, w: Any, bias: Any = None, *, stride: IntOrSequence = 1, padding: Padding = 0,
    dilation: IntOrSequence = 1, groups: int = 1, padding_mode: str = "zeros", layout: str | None = None,
    activation: str | None = None, residual: Any = None, algorithm: str = "auto", out: Any = None,
) -> Any:  # fmt: skip
    """Convolution (as everywhere in deep learning: cross-correlation) over {rank} spatial dimension{plural}.

    y[n, k, p] = activation(Σ_c Σ_r w[k, c, r] · x[n, c, p·stride + r·dilation − padding] + bias[k] + residual[n, k, p])

    >>> import numpy as np, fastconv
    >>> x = np.ones((1, 3, {dims:8}), np.float32)
    >>> w = np.ones((4, 3, {dims:3}), np.float32)
    >>> fastconv.{op}(x, w, padding=1).shape
    (1, 4, {dims:8})

    Parameters
    ----------
    x : (N, C, *spatial) array or Tensor, float32, float64, float16 or bfloat16; unbatched without N.
    w : (C_out, C/groups, *kernel), of x's dtype and device, in any strides, whatever the layout.
    bias : (C_out,) or None.
    stride, dilation : an integer or one per spatial dimension, at least 1.
    padding : an integer, or one entry per spatial dimension, an integer or a (before, after) pair; ``"valid"`` (none);
        ``"same"`` (output = ceil(input / stride), odd remainder after) or ``"same_lower"`` (before).
    groups : channels are split into this many independent convolutions; C for depthwise.
    padding_mode : ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``.
    layout : None or ``"channels_first"``, or ``"channels_last"`` for x, residual and result of (N, *spatial, C);
        the rank's own names (NCHW, NHWC, …) too.
    activation : None, relu, relu6, leaky_relu (slope 0.01), silu, gelu (erf), sigmoid, tanh or hardswish.
    residual : array of the result's shape, added before the activation.
    algorithm : ``"auto"``, or a family or variant that :func:`fastconv.explain` lists.
    out : array to write into, of the result's shape and dtype; may overlap the inputs.

    Returns
    -------
    Array (or Tensor, if any argument was one) of x's kind, dtype and layout.

    Raises
    ------
    ValueError, TypeError : naming the argument, what was given and what was needed. Nothing is written then.

    Source: Dumoulin & Visin, "A guide to convolution arithmetic for deep learning", arXiv:1603.07285.
    """
    fixed: dict[str, Any] = {
        "op": op, "rank": rank, "stride": stride, "padding": padding, "dilation": dilation, "groups": groups,
        "padding_mode": padding_mode, "layout": layout,
    }  # fmt: skip
    if not _is_tensor(x, w, bias, residual):
        return call.conv(
            call.CONV, x=x, w=w, bias=bias, residual=residual, activation=activation, algorithm=algorithm, out=out,
            **fixed,
        )  # fmt: skip
    if not _records(x, w, bias, residual):
        arrays = {"x": _data(x), "w": _data(w), "bias": _data(bias), "residual": _data(residual)}
        return Tensor(call.conv(call.CONV, **arrays, activation=activation, algorithm=algorithm, out=out, **fixed))
    _no_out(op, out)
    if activation is not None:
        check_choice(op, "activation", activation, ACTIVATIONS, none=True)
    y = _conv(x, w, bias, algorithm=algorithm, **fixed)
    if residual is not None:
        residual = residual if isinstance(residual, Tensor) else intake(op, "residual", residual)
        if residual.shape != y.shape:
            raise ValueError(f"{op}: residual must have the output's shape {y.shape}, got {residual.shape}")
        same_kind(op, ("x", y.data), ("residual", _data(residual)))
        y = y + residual
    return _activated(y, activation)


conv1d, conv2d, conv3d = conv


@per_rank("conv_transpose{}d")
def conv_transpose(
    op: str, rank: int, x: Any, w: Any, bias: Any = None, *, stride: IntOrSequence = 1, padding: Padding = 0,
    output_padding: IntOrSequence = 0, dilation: IntOrSequence = 1, groups: int = 1, layout: str | None = None,
    activation: str | None = None, algorithm: str = "auto", out: Any = None,
) -> Any:  # fmt: skip
    """Transposed convolution over {rank} spatial dimension{plural}: the input gradient of {op} without ``_transpose``.

    Every input element adds its multiple of the kernel to the output; strides lie between the input's elements, so the
    output is larger: (size − 1)·stride − padding + (kernel − 1)·dilation + 1 + output_padding.

    >>> import numpy as np, fastconv
    >>> x = np.ones((1, 3, {dims:4}), np.float32)
    >>> w = np.ones((3, 2, {dims:2}), np.float32)
    >>> fastconv.{op}(x, w, stride=2).shape
    (1, 2, {dims:8})

    Parameters
    ----------
    x : (N, C_in, *spatial) array or Tensor, float32, float64, float16 or bfloat16; unbatched without N.
    w : (C_in, C_out/groups, *kernel), of x's dtype and device.
    bias : (C_out,) or None.
    stride, dilation : an integer or one per spatial dimension, at least 1.
    padding : what the convolution would have padded: cut off the result. All forms of ``conv{rank}d``;
        ``"same"`` gives size·stride.
    output_padding : extra size at the end of each dimension, smaller than stride or dilation.
    groups, layout, activation, algorithm, out : as for ``conv{rank}d``. Non-finite *weights* may make NaN of elements
        near the edge, where they meet zero padding.

    Returns
    -------
    Array (or Tensor, if any argument was one) of x's kind, dtype and layout.

    Raises
    ------
    ValueError, TypeError : naming the argument, what was given and what was needed.

    Source: Dumoulin & Visin, arXiv:1603.07285, chapter 4.
    """
    fixed: dict[str, Any] = {
        "op": op, "rank": rank, "stride": stride, "padding": padding, "output_padding": output_padding,
        "dilation": dilation, "groups": groups, "layout": layout,
    }  # fmt: skip
    if not _records(x, w, bias):
        fused = call.conv(
            call.TRANSPOSED,
            x=_data(x),
            w=_data(w),
            bias=_data(bias),
            activation=activation,
            algorithm=algorithm,
            out=out,
            **fixed,
        )
        return Tensor(fused) if _is_tensor(x, w, bias) else fused
    _no_out(op, out)
    if activation is not None:
        check_choice(op, "activation", activation, ACTIVATIONS, none=True)
    return _activated(_conv_transpose(x, w, bias, algorithm=algorithm, **fixed), activation)


conv_transpose1d, conv_transpose2d, conv_transpose3d = conv_transpose


# ---------------------------------------------------------------------------------------------------------- pooling


@primitive
def _pool(
    x: Any, *, op: str, rank: int, build: Callable[..., PoolProblem], kind: str, size: Any, **parameters: Any
) -> Any:
    """(y, indices or None, problem): of such a result the first element is differentiable."""
    return pooling.pool(op, rank, build, kind, x, size, **parameters)


@primitive
def _unpool(x: Any, *, op: str, rank: int, indices: Any, size: Any, **parameters: Any) -> Any:
    """(y, problem)"""
    return pooling.unpool(op, rank, unpool_problem, x, indices, size, **parameters)


def _pool_vjp(ans: Any, x: Any, *, rank: int, **parameters: Any) -> Any:
    y, indices, problem = ans
    batched = x.ndim == rank + 2
    if problem.op == "lp_pool":
        return lambda g: pooling.pool_gradient(problem, x, y, g, like=x, batched=batched)
    saved = () if indices is None else (indices,)
    return lambda g: pooling.pool_gradient(problem, g, *saved, like=g, batched=batched)


def _unpool_vjp(ans: Any, x: Any, *, rank: int, indices: Any, **parameters: Any) -> Any:
    return lambda g: pooling.pool_gradient(ans[1], g, indices, like=g, batched=g.ndim == rank + 2)


defvjp(_pool, _pool_vjp)
defvjp(_unpool, _unpool_vjp)


def _pick_pool(
    op: str, rank: int, build: Callable[..., PoolProblem], kind: str, x: Any, size: Any, *, return_indices: bool,
    out: Any = None, **parameters: Any,
) -> Any:  # fmt: skip
    """Maximum or minimum pooling picks elements; the gradient needs their positions, compact unless asked for."""
    return_indices = flag(op, "return_indices", return_indices)
    recording = isinstance(x, Tensor) and _records(x)
    if recording:
        _no_out(op, out)
    wanted: str | None = None
    if return_indices or recording:
        wanted = "int64" if return_indices or x.size > INT32_MAX else "int32"
    if isinstance(x, Tensor):
        y, indices, _ = _pool(
            x, op=op, rank=rank, build=build, kind=kind, size=size, indices=wanted, out=out, **parameters
        )
    else:
        y, indices, _ = pooling.pool(op, rank, build, kind, x, size, indices=wanted, out=out, **parameters)
    return (y, indices) if return_indices else y


def _sum_pool(
    op: str,
    rank: int,
    build: Callable[..., PoolProblem],
    kind: str,
    x: Any,
    size: Any,
    *,
    out: Any = None,
    **parameters: Any,
) -> Any:
    """Average or Lp pooling."""
    if not isinstance(x, Tensor):
        return pooling.pool(op, rank, build, kind, x, size, out=out, **parameters)[0]
    if _records(x):
        _no_out(op, out)
    return _pool(x, op=op, rank=rank, build=build, kind=kind, size=size, out=out, **parameters)[0]


@per_rank("max_pool{}d")
def max_pool(
    op: str, rank: int, x: Any, kernel_size: IntOrSequence, *, stride: IntOrSequence | None = None,
    padding: Padding = 0, dilation: IntOrSequence = 1, ceil_mode: bool = False, return_indices: bool = False,
    layout: str | None = None, out: Any = None,
) -> Any:  # fmt: skip
    """Maximum of each window over {rank} spatial dimension{plural}.

    >>> import numpy as np, fastconv
    >>> fastconv.{op}(np.ones((1, 3, {dims:8}), np.float32), 2).shape
    (1, 3, {dims:4})

    Parameters
    ----------
    x : (N, C, *spatial) array or Tensor, float32, float64, float16 or bfloat16; unbatched without N.
    kernel_size, dilation : an integer or one per spatial dimension, at least 1.
    stride : the same; None means kernel_size.
    padding : every form that ``conv{rank}d`` takes, smaller than the window. Padding is never the maximum.
    ceil_mode : round the output size up, so that a partial last window counts.
    return_indices : also return each maximum's position, int64, flat within its unpadded channel plane; the first
        of equal ones; −1 for a window without elements (possible with dilation), whose maximum is −inf.
    layout : None or ``"channels_first"``, ``"channels_last"``, or the rank's own names.
    out : array to write into, of the result's shape and dtype.

    Returns
    -------
    The maxima, or (maxima, indices). NaN in a window makes its maximum NaN.

    Raises
    ------
    ValueError, TypeError : naming the argument, what was given and what was needed.
    """
    return _pick_pool(
        op, rank, pool_problem, "max_pool", x, kernel_size, stride=stride, padding=padding, dilation=dilation,
        ceil_mode=ceil_mode, return_indices=return_indices, layout=layout, out=out,
    )  # fmt: skip


@per_rank("min_pool{}d")
def min_pool(
    op: str, rank: int, x: Any, kernel_size: IntOrSequence, *, stride: IntOrSequence | None = None,
    padding: Padding = 0, dilation: IntOrSequence = 1, ceil_mode: bool = False, return_indices: bool = False,
    layout: str | None = None, out: Any = None,
) -> Any:  # fmt: skip
    """Minimum of each window over {rank} spatial dimension{plural}; parameters and errors as ``max_pool{rank}d``.

    >>> import numpy as np, fastconv
    >>> y, indices = fastconv.{op}(np.zeros((1, 1, {dims:4})), 2, return_indices=True)
    >>> int(indices.flat[0])
    0

    Returns
    -------
    The minima, or (minima, indices). NaN in a window makes its minimum NaN; a window without elements gives +inf.
    """
    return _pick_pool(
        op, rank, pool_problem, "min_pool", x, kernel_size, stride=stride, padding=padding, dilation=dilation,
        ceil_mode=ceil_mode, return_indices=return_indices, layout=layout, out=out,
    )  # fmt: skip


@per_rank("avg_pool{}d")
def avg_pool(
    op: str, rank: int, x: Any, kernel_size: IntOrSequence, *, stride: IntOrSequence | None = None,
    padding: Padding = 0, dilation: IntOrSequence = 1, ceil_mode: bool = False, count_include_pad: bool = True,
    divisor_override: int | None = None, layout: str | None = None, out: Any = None,
) -> Any:  # fmt: skip
    """Mean of each window over {rank} spatial dimension{plural}.

    >>> import numpy as np, fastconv
    >>> y = fastconv.{op}(np.ones((1, 3, {dims:8}), np.float32), 2)
    >>> y.shape, float(y.max())
    ((1, 3, {dims:4}), 1.0)

    Parameters
    ----------
    x : (N, C, *spatial) array or Tensor, float32, float64, float16 or bfloat16; unbatched without N.
    kernel_size, stride, padding, dilation, ceil_mode, layout, out : as for ``max_pool{rank}d``.
    count_include_pad : whether padding's zeros count in the divisor. What ``ceil_mode`` adds beyond it never does.
    divisor_override : divide by this integer instead.

    Returns
    -------
    Array (or Tensor) of x's kind, dtype and layout. A window without elements gives 0.

    Raises
    ------
    ValueError, TypeError : naming the argument, what was given and what was needed.
    """
    return _sum_pool(
        op, rank, pool_problem, "avg_pool", x, kernel_size, stride=stride, padding=padding,
        dilation=dilation, ceil_mode=ceil_mode, count_include_pad=count_include_pad, divisor_override=divisor_override,
        layout=layout, out=out,
    )  # fmt: skip


@per_rank("lp_pool{}d")
def lp_pool(
    op: str, rank: int, x: Any, norm_type: float, kernel_size: IntOrSequence, *, stride: IntOrSequence | None = None,
    padding: Padding = 0, dilation: IntOrSequence = 1, ceil_mode: bool = False, layout: str | None = None,
    out: Any = None,
) -> Any:  # fmt: skip
    """(Σ x^p)^(1/p) of each window over {rank} spatial dimension{plural}.

    >>> import numpy as np, fastconv
    >>> fastconv.{op}(np.ones((1, 1, {dims:2})), 1, 2).item() == 2**{rank}
    True

    Parameters
    ----------
    x : (N, C, *spatial) array or Tensor, float32, float64, float16 or bfloat16; unbatched without N.
    norm_type : p > 0. As in PyTorch x keeps its sign, so an odd p can meet a negative sum, whose root is NaN; take
        ``abs(x)`` first for the mathematical norm (and ONNX's LpPool). The partial windows of ``ceil_mode`` are sums of
        what they hold; PyTorch scales those up to the whole window.
    kernel_size, stride, padding, dilation, ceil_mode, layout, out : as for ``max_pool{rank}d``.

    Returns
    -------
    Array (or Tensor) of x's kind, dtype and layout. The gradient is 0 where the sum is 0.

    Raises
    ------
    ValueError, TypeError : naming the argument, what was given and what was needed.
    """
    return _sum_pool(
        op, rank, pool_problem, "lp_pool", x, kernel_size, norm_type=norm_type, stride=stride,
        padding=padding, dilation=dilation, ceil_mode=ceil_mode, layout=layout, out=out,
    )  # fmt: skip


@per_rank("adaptive_max_pool{}d")
def adaptive_max_pool(
    op: str, rank: int, x: Any, output_size: Any, *, return_indices: bool = False, layout: str | None = None
) -> Any:
    """Maximum over windows that divide the input evenly, over {rank} spatial dimension{plural}.

    Window o of size n into m covers [floor(o·n/m), ceil((o+1)·n/m)).

    >>> import numpy as np, fastconv
    >>> fastconv.{op}(np.ones((1, 3, {dims:7}), np.float32), 2).shape
    (1, 3, {dims:2})

    Parameters
    ----------
    x : (N, C, *spatial) array or Tensor; unbatched without N.
    output_size : an integer or one per spatial dimension; None keeps the input's size.
    return_indices : also return each maximum's position, int64, flat within its channel plane.
    layout : None or ``"channels_first"``, ``"channels_last"``, or the rank's own names.

    Raises
    ------
    ValueError, TypeError : naming the argument, what was given and what was needed.
    """
    return _pick_pool(
        op, rank, adaptive_pool_problem, "max_pool", x, output_size, return_indices=return_indices, layout=layout
    )


@per_rank("adaptive_avg_pool{}d")
def adaptive_avg_pool(op: str, rank: int, x: Any, output_size: Any, *, layout: str | None = None) -> Any:
    """Mean over windows that divide the input evenly, over {rank} spatial dimension{plural}; 1 is global pooling.

    >>> import numpy as np, fastconv
    >>> fastconv.{op}(np.ones((1, 3, {dims:7}), np.float32), 1).shape
    (1, 3, {dims:1})

    Parameters
    ----------
    x : (N, C, *spatial) array or Tensor; unbatched without N.
    output_size : an integer or one per spatial dimension; None keeps the input's size.
    layout : None or ``"channels_first"``, ``"channels_last"``, or the rank's own names.

    Raises
    ------
    ValueError, TypeError : naming the argument, what was given and what was needed.
    """
    return _sum_pool(op, rank, adaptive_pool_problem, "avg_pool", x, output_size, layout=layout)


@per_rank("max_unpool{}d")
def max_unpool(
    op: str, rank: int, x: Any, indices: Any, kernel_size: IntOrSequence, *, stride: IntOrSequence | None = None,
    padding: Padding = 0, output_size: Any = None, layout: str | None = None,
) -> Any:  # fmt: skip
    """The partial inverse of ``max_pool{rank}d``: each value goes back to its position, everything else is zero.

    >>> import numpy as np, fastconv
    >>> y, indices = fastconv.max_pool{rank}d(np.ones((1, 1, {dims:4})), 2, return_indices=True)
    >>> fastconv.{op}(y, indices, 2).shape
    (1, 1, {dims:4})

    Parameters
    ----------
    x : (N, C, *spatial) array or Tensor: the maxima, or values in their place.
    indices : int64 or int32 of x's shape, as ``return_indices=True`` gives them. Where two are equal the later wins.
    kernel_size, stride, padding : those of the pooling (numbers only).
    output_size : the pooling's input size, where several are possible.
    layout : None or ``"channels_first"``, ``"channels_last"``, or the rank's own names.

    Raises
    ------
    ValueError, TypeError : naming the argument, what was given and what was needed.
    """
    return _unpool(
        x, op=op, rank=rank, indices=_data(indices), size=kernel_size, stride=stride, padding=padding,
        output_size=output_size, layout=layout,
    )[0]  # fmt: skip


max_pool1d, max_pool2d, max_pool3d = max_pool
min_pool1d, min_pool2d, min_pool3d = min_pool
avg_pool1d, avg_pool2d, avg_pool3d = avg_pool
lp_pool1d, lp_pool2d, lp_pool3d = lp_pool
adaptive_max_pool1d, adaptive_max_pool2d, adaptive_max_pool3d = adaptive_max_pool
adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d = adaptive_avg_pool
max_unpool1d, max_unpool2d, max_unpool3d = max_unpool
