"""Gradients as functions of arrays, named as in ``torch.nn.grad``: for those who write their own backward pass.

Each takes the parameters of the operation it belongs to and raises ``ValueError`` or ``TypeError`` as that does, naming
the argument. ``dy`` is the gradient of the operation's result and has its shape.
"""

from __future__ import annotations

from typing import Any

from . import call, pooling
from .arguments import IntOrSequence, Padding
from .problem import adaptive_pool_problem, pool_problem
from .ranks import per_rank


@per_rank("conv{}d_input")
def conv_input(
    op: str, rank: int, input_size: Any, w: Any, dy: Any, *, stride: IntOrSequence = 1, padding: Padding = 0,
    dilation: IntOrSequence = 1, groups: int = 1, padding_mode: str = "zeros", layout: str | None = None,
    algorithm: str = "auto",
) -> Any:  # fmt: skip
    """Gradient of ``conv{rank}d`` with respect to its input, whose whole shape is ``input_size``.

    >>> import numpy as np, fastconv
    >>> w, dy = np.ones((4, 3, {dims:3})), np.ones((1, 4, {dims:6}))
    >>> fastconv.grad.{op}((1, 3, {dims:8}), w, dy).shape
    (1, 3, {dims:8})
    """
    return call.input_gradient(
        call.CONV, op, rank, input_size, w, dy, stride=stride, padding=padding, dilation=dilation, groups=groups,
        padding_mode=padding_mode, layout=layout, algorithm=algorithm,
    )  # fmt: skip


@per_rank("conv{}d_weight")
def conv_weight(
    op: str, rank: int, x: Any, weight_size: Any, dy: Any, *, stride: IntOrSequence = 1, padding: Padding = 0,
    dilation: IntOrSequence = 1, groups: int = 1, padding_mode: str = "zeros", layout: str | None = None,
    algorithm: str = "auto",
) -> Any:  # fmt: skip
    """Gradient of ``conv{rank}d`` with respect to its weights, whose shape is ``weight_size``.

    >>> import numpy as np, fastconv
    >>> x, dy = np.ones((1, 3, {dims:8})), np.ones((1, 4, {dims:6}))
    >>> fastconv.grad.{op}(x, (4, 3, {dims:3}), dy).shape
    (4, 3, {dims:3})
    """
    return call.weight_gradient(
        call.CONV, op, rank, x, weight_size, dy, stride=stride, padding=padding, dilation=dilation, groups=groups,
        padding_mode=padding_mode, layout=layout, algorithm=algorithm,
    )  # fmt: skip


@per_rank("conv{}d_bias")
def conv_bias(op: str, rank: int, dy: Any, *, layout: str | None = None) -> Any:
    """Gradient of ``conv{rank}d`` or its transpose with respect to its bias: dy summed over all but the channels.

    >>> import numpy as np, fastconv
    >>> fastconv.grad.{op}(np.ones((2, 4, {dims:6}))).shape
    (4,)
    """
    return call.bias_gradient(op, rank, dy, layout=layout)


@per_rank("conv_transpose{}d_input")
def conv_transpose_input(
    op: str, rank: int, input_size: Any, w: Any, dy: Any, *, stride: IntOrSequence = 1, padding: Padding = 0,
    output_padding: IntOrSequence = 0, dilation: IntOrSequence = 1, groups: int = 1, layout: str | None = None,
    algorithm: str = "auto",
) -> Any:  # fmt: skip
    """Gradient of ``conv_transpose{rank}d`` with respect to its input: an ordinary convolution of dy.

    >>> import numpy as np, fastconv
    >>> w, dy = np.ones((3, 2, {dims:2})), np.ones((1, 2, {dims:8}))
    >>> fastconv.grad.{op}((1, 3, {dims:4}), w, dy, stride=2).shape
    (1, 3, {dims:4})
    """
    return call.input_gradient(
        call.TRANSPOSED, op, rank, input_size, w, dy, stride=stride, padding=padding,
        output_padding=output_padding, dilation=dilation, groups=groups, layout=layout, algorithm=algorithm,
    )  # fmt: skip


@per_rank("conv_transpose{}d_weight")
def conv_transpose_weight(
    op: str, rank: int, x: Any, weight_size: Any, dy: Any, *, stride: IntOrSequence = 1, padding: Padding = 0,
    output_padding: IntOrSequence = 0, dilation: IntOrSequence = 1, groups: int = 1, layout: str | None = None,
    algorithm: str = "auto",
) -> Any:  # fmt: skip
    """Gradient of ``conv_transpose{rank}d`` with respect to its weights.

    >>> import numpy as np, fastconv
    >>> x, dy = np.ones((1, 3, {dims:4})), np.ones((1, 2, {dims:8}))
    >>> fastconv.grad.{op}(x, (3, 2, {dims:2}), dy, stride=2).shape
    (3, 2, {dims:2})
    """
    return call.weight_gradient(
        call.TRANSPOSED, op, rank, x, weight_size, dy, stride=stride, padding=padding,
        output_padding=output_padding, dilation=dilation, groups=groups, layout=layout, algorithm=algorithm,
    )  # fmt: skip


@per_rank("max_pool{}d_input")
def max_pool_input(
    op: str, rank: int, x: Any, dy: Any, kernel_size: IntOrSequence, *, stride: IntOrSequence | None = None,
    padding: Padding = 0, dilation: IntOrSequence = 1, ceil_mode: bool = False, layout: str | None = None,
) -> Any:  # fmt: skip
    """Gradient of ``max_pool{rank}d`` with respect to x: each dy goes to the first maximum of its window.

    >>> import numpy as np, fastconv
    >>> float(fastconv.grad.{op}(np.zeros((1, 1, {dims:4})), np.ones((1, 1, {dims:2})), 2).sum()) == 2**{rank}
    True
    """
    return pooling.picked_gradient(
        op, rank, pool_problem, "max_pool", x, dy, kernel_size, stride=stride, padding=padding, dilation=dilation,
        ceil_mode=ceil_mode, layout=layout,
    )  # fmt: skip


@per_rank("min_pool{}d_input")
def min_pool_input(
    op: str, rank: int, x: Any, dy: Any, kernel_size: IntOrSequence, *, stride: IntOrSequence | None = None,
    padding: Padding = 0, dilation: IntOrSequence = 1, ceil_mode: bool = False, layout: str | None = None,
) -> Any:  # fmt: skip
    """Gradient of ``min_pool{rank}d`` with respect to x: each dy goes to the first minimum of its window.

    >>> import numpy as np, fastconv
    >>> float(fastconv.grad.{op}(np.zeros((1, 1, {dims:4})), np.ones((1, 1, {dims:2})), 2).sum()) == 2**{rank}
    True
    """
    return pooling.picked_gradient(
        op, rank, pool_problem, "min_pool", x, dy, kernel_size, stride=stride, padding=padding, dilation=dilation,
        ceil_mode=ceil_mode, layout=layout,
    )  # fmt: skip


@per_rank("avg_pool{}d_input")
def avg_pool_input(
    op: str, rank: int, input_size: Any, dy: Any, kernel_size: IntOrSequence, *, stride: IntOrSequence | None = None,
    padding: Padding = 0, dilation: IntOrSequence = 1, ceil_mode: bool = False, count_include_pad: bool = True,
    divisor_override: int | None = None, layout: str | None = None,
) -> Any:  # fmt: skip
    """Gradient of ``avg_pool{rank}d`` with respect to its input, whose whole shape is ``input_size``.

    >>> import numpy as np, fastconv
    >>> float(fastconv.grad.{op}((1, 1, {dims:4}), np.ones((1, 1, {dims:2})), 2).sum()) == 2**{rank}
    True
    """
    return pooling.avg_gradient(
        op, rank, pool_problem, input_size, dy, kernel_size, stride=stride, padding=padding, dilation=dilation,
        ceil_mode=ceil_mode, count_include_pad=count_include_pad, divisor_override=divisor_override, layout=layout,
    )  # fmt: skip


@per_rank("lp_pool{}d_input")
def lp_pool_input(
    op: str, rank: int, x: Any, dy: Any, norm_type: float, kernel_size: IntOrSequence, *,
    stride: IntOrSequence | None = None, padding: Padding = 0, dilation: IntOrSequence = 1, ceil_mode: bool = False,
    layout: str | None = None,
) -> Any:  # fmt: skip
    """Gradient of ``lp_pool{rank}d`` with respect to x; 0 where a window's sum is 0.

    >>> import numpy as np, fastconv
    >>> float(fastconv.grad.{op}(np.ones((1, 1, {dims:4})), np.ones((1, 1, {dims:2})), 1, 2).max())
    1.0
    """
    return pooling.lp_gradient(
        op, rank, pool_problem, x, dy, kernel_size, norm_type=norm_type, stride=stride, padding=padding,
        dilation=dilation, ceil_mode=ceil_mode, layout=layout,
    )  # fmt: skip


@per_rank("adaptive_max_pool{}d_input")
def adaptive_max_pool_input(op: str, rank: int, x: Any, dy: Any, output_size: Any, *, layout: str | None = None) -> Any:
    """Gradient of ``adaptive_max_pool{rank}d`` with respect to x.

    >>> import numpy as np, fastconv
    >>> float(fastconv.grad.{op}(np.zeros((1, 1, {dims:4})), np.ones((1, 1, {dims:1})), 1).sum())
    1.0
    """
    return pooling.picked_gradient(op, rank, adaptive_pool_problem, "max_pool", x, dy, output_size, layout=layout)


@per_rank("adaptive_avg_pool{}d_input")
def adaptive_avg_pool_input(
    op: str, rank: int, input_size: Any, dy: Any, output_size: Any, *, layout: str | None = None
) -> Any:
    """Gradient of ``adaptive_avg_pool{rank}d`` with respect to its input, whose whole shape is ``input_size``.

    >>> import numpy as np, fastconv
    >>> float(fastconv.grad.{op}((1, 1, {dims:4}), np.ones((1, 1, {dims:1})), 1).sum())
    1.0
    """
    return pooling.avg_gradient(op, rank, adaptive_pool_problem, input_size, dy, output_size, layout=layout)


@per_rank("max_unpool{}d_input")
def max_unpool_input(op: str, rank: int, indices: Any, dy: Any, *, layout: str | None = None) -> Any:
    """Gradient of ``max_unpool{rank}d`` with respect to x: dy's values at ``indices``.

    >>> import numpy as np, fastconv
    >>> y, indices = fastconv.max_pool{rank}d(np.ones((1, 1, {dims:4})), 2, return_indices=True)
    >>> fastconv.grad.{op}(indices, np.ones((1, 1, {dims:4}))).shape
    (1, 1, {dims:2})
    """
    return pooling.unpool_gradient(op, rank, indices, dy, layout=layout)


conv1d_input, conv2d_input, conv3d_input = conv_input
conv1d_weight, conv2d_weight, conv3d_weight = conv_weight
conv1d_bias, conv2d_bias, conv3d_bias = conv_bias
conv_transpose1d_input, conv_transpose2d_input, conv_transpose3d_input = conv_transpose_input
conv_transpose1d_weight, conv_transpose2d_weight, conv_transpose3d_weight = conv_transpose_weight
max_pool1d_input, max_pool2d_input, max_pool3d_input = max_pool_input
min_pool1d_input, min_pool2d_input, min_pool3d_input = min_pool_input
avg_pool1d_input, avg_pool2d_input, avg_pool3d_input = avg_pool_input
lp_pool1d_input, lp_pool2d_input, lp_pool3d_input = lp_pool_input
adaptive_max_pool1d_input, adaptive_max_pool2d_input, adaptive_max_pool3d_input = adaptive_max_pool_input
adaptive_avg_pool1d_input, adaptive_avg_pool2d_input, adaptive_avg_pool3d_input = adaptive_avg_pool_input
max_unpool1d_input, max_unpool2d_input, max_unpool3d_input = max_unpool_input
