"""The array operations a network needs around its kernels, each beside its vector-Jacobian product.

All of them run in the module of the array they get: NumPy on the CPU, CuPy on the GPU. Operands broadcast as NumPy's
do, and a gradient is summed back to its operand's shape. float32 stays float32: Python numbers do not widen it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from types import EllipsisType
from typing import Any

import numpy as np

from .tape import Array, Vjp, array_module, defvjp, defvjp_joint, primitive

Axis = int | tuple[int, ...] | None


def unbroadcast(g: Array, shape: tuple[int, ...]) -> Array:
    """Sum a gradient over the axes along which an operand of this shape was broadcast.

    >>> import numpy as np
    >>> unbroadcast(np.ones((4, 2, 3)), (2, 1))
    array([[12.],
           [12.]])
    """
    if g.shape == shape:
        return g
    lead = g.ndim - len(shape)
    stretched = tuple(lead + i for i, n in enumerate(shape) if n == 1 and g.shape[lead + i] != 1)
    return g.sum(axis=(*range(lead), *stretched), keepdims=True).reshape(shape)


def _like(operand: Any, vjp: Vjp = lambda g: g) -> Vjp:
    """``vjp``, summed back to an operand's shape. Only the shape is kept, not the operand."""
    shape = operand.shape
    return lambda g: unbroadcast(vjp(g), shape)


# --- element by element ------------------------------------------------------------------------------------------


@primitive
def add(a: Array, b: Array) -> Array:
    return a + b


defvjp(add, lambda ans, a, b: _like(a), lambda ans, a, b: _like(b))


@primitive
def subtract(a: Array, b: Array) -> Array:
    return a - b


defvjp(subtract, lambda ans, a, b: _like(a), lambda ans, a, b: _like(b, lambda g: -g))


@primitive
def multiply(a: Array, b: Array) -> Array:
    return a * b


defvjp(multiply, lambda ans, a, b: _like(a, lambda g: g * b), lambda ans, a, b: _like(b, lambda g: g * a))


@primitive
def divide(a: Array, b: Array) -> Array:
    return a / b


defvjp(
    divide,
    lambda ans, a, b: _like(a, lambda g: g / b),
    lambda ans, a, b: _like(b, lambda g: -g * ans / b),
)


@primitive
def power(a: Array, b: Array) -> Array:
    return a**b


def _power_vjp_base(ans: Array, a: Array, b: Any) -> Vjp:
    if isinstance(b, int | float):
        return lambda g: g * (b * a ** (b - 1)) if b else g * 0  # no 0 * inf at a = 0, b = 0
    xp = array_module(ans)
    return _like(a, lambda g: g * (b * a ** xp.where(b == 0, 1, b - 1)))


def _power_vjp_exponent(ans: Array, a: Any, b: Array) -> Vjp:
    xp = array_module(ans)
    # 0**b is 0 for every b > 0, so its derivative is 0 although log(0) is not finite.
    return _like(b, lambda g: g * ans * xp.log(xp.where(ans == 0, xp.ones_like(ans), a)))


defvjp(power, _power_vjp_base, _power_vjp_exponent)


@primitive
def negative(x: Array) -> Array:
    return -x


defvjp(negative, lambda ans, x: lambda g: -g)


@primitive
def exp(x: Array) -> Array:
    """The exponential of each element.

    >>> exp([0.0]).tolist()
    [1.0]
    """
    return array_module(x).exp(x)


defvjp(exp, lambda ans, x: lambda g: g * ans)


@primitive
def log(x: Array) -> Array:
    """The natural logarithm of each element.

    >>> log([1.0]).tolist()
    [0.0]
    """
    return array_module(x).log(x)


defvjp(log, lambda ans, x: lambda g: g / x)


@primitive
def sqrt(x: Array) -> Array:
    """The square root of each element.

    >>> sqrt([9.0]).tolist()
    [3.0]
    """
    return array_module(x).sqrt(x)


defvjp(sqrt, lambda ans, x: lambda g: g * 0.5 / ans)


@primitive
def absolute(x: Array) -> Array:
    """The absolute value of each element; its gradient at 0 is 0.

    >>> absolute([-2.0]).tolist()
    [2.0]
    """
    return array_module(x).abs(x)


defvjp(absolute, lambda ans, x: lambda g: g * array_module(x).sign(x))


def _share(ans: Array, x: Any, y: Any) -> Array:
    """The share of x in the gradient of max(x, y) or min(x, y): 1 where it is the result, half in a tie."""
    xp = array_module(ans)
    return xp.where(x == y, 0.5, x == ans).astype(ans.dtype)


@primitive
def maximum(a: Array, b: Array) -> Array:
    """The larger of two elements; the gradient of a tie is shared equally.

    >>> maximum([1.0, 5.0], 3.0).tolist()
    [3.0, 5.0]
    """
    return array_module(a, b).maximum(a, b)


@primitive
def minimum(a: Array, b: Array) -> Array:
    """The smaller of two elements; the gradient of a tie is shared equally.

    >>> minimum([1.0, 5.0], 3.0).tolist()
    [1.0, 3.0]
    """
    return array_module(a, b).minimum(a, b)


for _extremum in (maximum, minimum):
    defvjp(
        _extremum,
        lambda ans, a, b: _like(a, lambda g: g * _share(ans, a, b)),
        lambda ans, a, b: _like(b, lambda g: g * _share(ans, b, a)),
    )


@primitive
def where(condition: Array, a: Array, b: Array) -> Array:
    """Elements of ``a`` where the condition holds, of ``b`` elsewhere.

    >>> where([True, False], [1.0, 2.0], 0.0).tolist()
    [1.0, 0.0]
    """
    return array_module(condition, a, b).where(condition, a, b)


defvjp(
    where,
    None,
    lambda ans, condition, a, b: _like(a, lambda g: array_module(g).where(condition, g, g.dtype.type(0))),
    lambda ans, condition, a, b: _like(b, lambda g: array_module(g).where(condition, g.dtype.type(0), g)),
)


@primitive
def astype(x: Array, dtype: Any) -> Array:
    return x.astype(dtype, copy=False)


defvjp(astype, lambda ans, x, dtype: lambda g: g)  # the tape converts gradients to their argument's dtype


# --- reductions --------------------------------------------------------------------------------------------------


def _spread(g: Array, shape: tuple[int, ...], axis: Axis, keepdims: bool) -> Array:
    """A reduced array as a read-only view in the shape of what was reduced."""
    xp, rank = array_module(g), len(shape)
    if axis is not None and not keepdims:
        axes = axis if isinstance(axis, tuple) else (axis,)
        g = xp.expand_dims(g, tuple(a % rank for a in axes))
    elif not keepdims:
        g = g.reshape((1,) * rank)
    return xp.broadcast_to(g, shape)


@primitive
def sum(x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    """Sum over one axis, several, or all.

    >>> sum([[1.0, 2.0], [3.0, 4.0]], axis=0).tolist()
    [4.0, 6.0]
    """
    return array_module(x).sum(x, axis=axis, keepdims=keepdims)


def _sum_vjp(ans: Array, x: Array, axis: Axis = None, keepdims: bool = False) -> Vjp:
    shape = x.shape
    return lambda g: _spread(g, shape, axis, keepdims)


defvjp(sum, _sum_vjp)


@primitive
def mean(x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    """Arithmetic mean over one axis, several, or all.

    >>> mean([[1.0, 2.0], [3.0, 4.0]], axis=0).tolist()
    [2.0, 3.0]
    """
    return array_module(x).mean(x, axis=axis, keepdims=keepdims)


def _mean_vjp(ans: Array, x: Array, axis: Axis = None, keepdims: bool = False) -> Vjp:
    shape, share = x.shape, ans.size / x.size if x.size else 0.0
    return lambda g: _spread(g * g.dtype.type(share), shape, axis, keepdims)


defvjp(mean, _mean_vjp)


@primitive
def max(x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    """Largest element over one axis, several, or all; equal ones share the gradient.

    >>> max([[1.0, 2.0], [3.0, 0.0]], axis=0).tolist()
    [3.0, 2.0]
    """
    return array_module(x).max(x, axis=axis, keepdims=keepdims)


@primitive
def min(x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    """Smallest element over one axis, several, or all; equal ones share the gradient.

    >>> min([[1.0, 2.0], [3.0, 0.0]], axis=0).tolist()
    [1.0, 0.0]
    """
    return array_module(x).min(x, axis=axis, keepdims=keepdims)


def _extremum_vjp(ans: Array, x: Array, axis: Axis = None, keepdims: bool = False) -> Vjp:
    shape = x.shape
    hit = x == _spread(ans, shape, axis, keepdims)
    count = hit.sum(axis=axis, keepdims=keepdims)
    return lambda g: _spread(g / count.astype(g.dtype), shape, axis, keepdims) * hit


defvjp(max, _extremum_vjp)
defvjp(min, _extremum_vjp)


# --- shapes ------------------------------------------------------------------------------------------------------


@primitive
def reshape(x: Array, shape: Sequence[int]) -> Array:
    """The same elements in another shape; one size may be -1.

    >>> reshape([1.0, 2.0], (2, 1)).tolist()
    [[1.0], [2.0]]
    """
    return array_module(x).reshape(x, shape)


def _reshape_vjp(ans: Array, x: Array, shape: Sequence[int]) -> Vjp:
    before = x.shape
    return lambda g: g.reshape(before)


defvjp(reshape, _reshape_vjp)


@primitive
def transpose(x: Array, axes: Sequence[int] | None = None) -> Array:
    """Axes in another order; reversed without ``axes``.

    >>> transpose([[1.0, 2.0]]).tolist()
    [[1.0], [2.0]]
    """
    return array_module(x).transpose(x, axes)


def _transpose_vjp(ans: Array, x: Array, axes: Sequence[int] | None = None) -> Vjp:
    rank = x.ndim
    back = None if axes is None else sorted(range(rank), key=lambda i: axes[i] % rank)
    return lambda g: g.transpose(back)


defvjp(transpose, _transpose_vjp)


def _is_basic(index: Any) -> bool:
    """Whether an index is made of numbers and slices, so that no element can be picked twice."""
    parts = index if isinstance(index, tuple) else (index,)
    return all(part is None or isinstance(part, int | np.integer | slice | EllipsisType) for part in parts)


@primitive
def getitem(x: Array, index: Any) -> Array:
    return x[index]


def _getitem_vjp(ans: Array, x: Array, index: Any) -> Vjp:
    xp, shape = array_module(x), x.shape

    def vjp(g: Array) -> Array:
        out = xp.zeros(shape, g.dtype)
        if _is_basic(index):
            out[index] = g
        else:
            xp.add.at(out, index, g)
        return out

    return vjp


defvjp(getitem, _getitem_vjp)


@primitive
def pad(x: Array, pad_width: Sequence[tuple[int, int]], value: float = 0.0) -> Array:
    """Put a border of ``value`` around an array: one (before, after) pair for each axis.

    >>> pad([1.0], [(1, 2)]).tolist()
    [0.0, 1.0, 0.0, 0.0]
    """
    return array_module(x).pad(x, pad_width, constant_values=value)


def _pad_vjp(ans: Array, x: Array, pad_width: Sequence[tuple[int, int]], value: float = 0.0) -> Vjp:
    inside = tuple(slice(before, before + n) for (before, _), n in zip(pad_width, x.shape, strict=True))
    return lambda g: g[inside]


defvjp(pad, _pad_vjp)


@primitive
def _join(axis: int, *arrays: Array) -> Array:
    return array_module(*arrays).concatenate(arrays, axis=axis)


def _join_vjp(
    wanted: Sequence[int], ans: Array, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Callable[[Array], list[Array]]:
    axis, *arrays = args
    ends = [0, *accumulate(array.shape[axis] for array in arrays)]
    ahead = (slice(None),) * (axis % ans.ndim)
    return lambda g: [g[(*ahead, slice(ends[i - 1], ends[i]))] for i in wanted]


defvjp_joint(_join, _join_vjp)


def concatenate(arrays: Sequence[Array], axis: int = 0) -> Array:
    """Join arrays along an axis they have.

    >>> concatenate([[1.0, 2.0], [3.0]]).tolist()
    [1.0, 2.0, 3.0]
    """
    return _join(axis, *(_array(a) for a in arrays))


def stack(arrays: Sequence[Array], axis: int = 0) -> Array:
    """Join arrays of one shape along a new axis.

    >>> stack([[1.0, 2.0], [3.0, 4.0]], axis=1).tolist()
    [[1.0, 3.0], [2.0, 4.0]]
    """
    arrays = [_array(a) for a in arrays]
    rank = len(arrays[0].shape) + 1
    if not -rank <= axis < rank:
        raise ValueError(f"axis must be in [{-rank}, {rank - 1}] to stack arrays of rank {rank - 1}, got {axis}")
    axis %= rank
    return _join(axis, *(reshape(a, (*a.shape[:axis], 1, *a.shape[axis:])) for a in arrays))


def _array(value: Any) -> Any:
    return value if hasattr(value, "shape") else array_module(value).asarray(value)


# --- products ----------------------------------------------------------------------------------------------------


@primitive
def matmul(a: Array, b: Array) -> Array:
    """Matrix product over the last two axes, NumPy's rules for vectors and stacks of matrices.

    >>> matmul([[1.0, 2.0]], [3.0, 4.0]).tolist()
    [11.0]
    """
    return array_module(a, b).matmul(a, b)


def _matmul_vjp_a(ans: Array, a: Array, b: Array) -> Vjp:
    row = a.ndim == 1

    def vjp(g: Array) -> Array:
        if b.ndim == 1:
            return g[..., None] * b
        product = (g[..., None, :] if row else g) @ b.swapaxes(-1, -2)
        return product[..., 0, :] if row else product

    return _like(a, vjp)


def _matmul_vjp_b(ans: Array, a: Array, b: Array) -> Vjp:
    column = b.ndim == 1

    def vjp(g: Array) -> Array:
        if a.ndim == 1:
            return a * g if column else a[:, None] * g[..., None, :]
        product = a.swapaxes(-1, -2) @ (g[..., None] if column else g)
        return product[..., 0] if column else product

    return _like(b, vjp)


defvjp(matmul, _matmul_vjp_a, _matmul_vjp_b)
