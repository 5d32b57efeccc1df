"""The float64 oracle: every operation and every gradient, in NumPy, plain and slow.

What the kernels are held to. It follows the kernel contract (see :mod:`fastconv.kernels`), takes arrays of any
float dtype, converts them to float64 first, and rounds when the result is assigned to ``out`` and nowhere else.
``packed`` is a float64 copy of the weights; ``workspace`` and ``threads`` are accepted and not needed.

Convolution, for every tap r of the kernel (p over output positions, s stride, d dilation, P the padded input):

    y[n, k, p]  =  sum over c, r of  w[k, c, r] * P[n, c, p*s + r*d]            the tap's view of P: ``_tap_views``

so that each tap is one matrix product of channels, and the gradients are that product's transposes. Padding is
``np.take`` through :func:`~fastconv.kernels.geometry.source_indices`; its transpose adds what was taken back.

Pooling walks the output positions and cuts each window out of the input: ``_windows``.
Indices: n batch, g group, c input channel, k output channel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .geometry import ConvGeometry, PoolGeometry, source_indices

Array = NDArray[Any]
Float64 = NDArray[np.float64]
Index = tuple[Any, ...]

quiet = np.errstate(all="ignore")  # non-finite input is legitimate: infinities and NaNs propagate without a warning


# --- activations ---


def _sigmoid(x: Float64) -> Float64:
    e = np.exp(-np.abs(x))  # never overflows
    return np.where(x >= 0, 1 / (1 + e), e / (1 + e))


def _gelu(x: Float64) -> Float64:
    erfc = np.vectorize(math.erfc, otypes=[np.float64])  # erfc(-t), not 1 + erf(t), which cancels for negative t
    return 0.5 * x * erfc(-x / math.sqrt(2))


_ACTIVATIONS: dict[str, Callable[[Float64], Float64]] = {
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "leaky_relu": lambda x: np.where(x < 0, 0.01 * x, x),
    "silu": lambda x: x * _sigmoid(x),
    "gelu": _gelu,
    "sigmoid": _sigmoid,
    "tanh": np.tanh,
    "hardswish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
}


@quiet
def activate(name: str | None, x: Array) -> Float64:
    """The activation ``name`` of x in float64, or x itself where name is None.

    >>> activate("relu", np.array([-1.0, 2.0])).tolist()
    [0.0, 2.0]
    """
    x = x.astype(np.float64)
    return x if name is None else _ACTIVATIONS[name](x)


# --- convolution ---


def pack_forward(geometry: ConvGeometry, w: Array) -> Float64:
    """The weights as ``forward`` wants them: a float64 copy."""
    return w.astype(np.float64)


pack_grad_input = pack_forward


@quiet
def forward(
    geometry: ConvGeometry, x: Array, w: Array, bias: Array | None, residual: Array | None, out: Array,
    *, activation: str | None = None, packed: Float64 | None = None, workspace: Array | None = None, threads: int = 1,
) -> None:  # fmt: skip
    """Convolution (as everywhere in deep learning, a correlation: the kernel is not flipped).

    >>> g = ConvGeometry(1, 1, 1, (4,), (2,), stride=(1,), padding=((0, 0),))
    >>> y = np.empty((1, 1, 3))
    >>> forward(g, np.array([[[1.0, 2.0, 4.0, 8.0]]]), np.array([[[-1.0, 1.0]]]), None, None, y)
    >>> y
    array([[[1., 2., 4.]]])
    """
    padded = _pad(geometry, x.astype(np.float64))
    weights = _by_group(geometry, pack_forward(geometry, w) if packed is None else packed)
    y = np.zeros(geometry.output_shape)
    for tap, view in _tap_views(geometry, padded):
        y += (weights[tap] @ _channels_by_pixels(geometry, view)).reshape(y.shape)
    out[...] = _epilogue(y, bias, residual, activation)


@quiet
def grad_input(
    geometry: ConvGeometry, dy: Array, w: Array, bias: Array | None, residual: Array | None, out: Array,
    *, activation: str | None = None, packed: Float64 | None = None, workspace: Array | None = None, threads: int = 1,
) -> None:  # fmt: skip
    """Gradient of the convolution's input; with bias, residual and activation, the transposed convolution."""
    padded = np.zeros((*geometry.input_shape[:2], *_padded_size(geometry)))
    weights = _by_group(geometry, pack_grad_input(geometry, w) if packed is None else packed)
    dy_matrix = _channels_by_pixels(geometry, dy.astype(np.float64))
    for tap, view in _tap_views(geometry, padded):
        view += (weights[tap].swapaxes(-1, -2) @ dy_matrix).reshape(view.shape)
    out[...] = _epilogue(_fold(geometry, padded), bias, residual, activation)


@quiet
def grad_weight(
    geometry: ConvGeometry, x: Array, dy: Array, out: Array, *, workspace: Array | None = None, threads: int = 1
) -> None:
    """Gradient of the convolution's weights."""
    padded = _pad(geometry, x.astype(np.float64))
    dy_matrix = _channels_by_pixels(geometry, dy.astype(np.float64))
    dw = np.zeros((*geometry.kernel_size, *geometry.weight_shape[:2]))
    for tap, view in _tap_views(geometry, padded):
        by_image = dy_matrix @ _channels_by_pixels(geometry, view).swapaxes(-1, -2)
        dw[tap] = by_image.sum(axis=0).reshape(dw[tap].shape)
    out[...] = np.moveaxis(dw, (-2, -1), (0, 1))


@quiet
def grad_bias(dy: Array, out: Array) -> None:
    """Gradient of the bias: dy summed over all but its channels."""
    out[...] = dy.astype(np.float64).sum(axis=(0, *range(2, dy.ndim)))


def _tap_views(geometry: ConvGeometry, padded: Float64) -> Iterator[tuple[Index, Float64]]:
    """Each tap of the kernel with the (N, C, *output) view of the padded input that it multiplies."""
    for tap in np.ndindex(*geometry.kernel_size):
        cut = tuple(
            slice(r * d, r * d + (size - 1) * s + 1, s) if size else slice(0)
            for r, d, s, size in zip(tap, geometry.dilation, geometry.stride, geometry.output_size, strict=True)
        )
        yield tap, padded[:, :, *cut]


def _channels_by_pixels(geometry: ConvGeometry, a: Float64) -> Float64:
    """(N, channels, *spatial) as matrices: (N, groups, channels of a group, pixels)."""
    channels = a.shape[1] // geometry.groups
    return a.reshape(a.shape[0], geometry.groups, channels, math.prod(a.shape[2:]))


def _by_group(geometry: ConvGeometry, w: Float64) -> Float64:
    """(K, C/groups, *kernel) as matrices, one per tap and group: (*kernel, groups, K/groups, C/groups)."""
    k, c = geometry.weight_shape[:2]
    return np.moveaxis(w, (0, 1), (-2, -1)).reshape(*geometry.kernel_size, geometry.groups, k // geometry.groups, c)


def _sources(geometry: ConvGeometry) -> Iterator[tuple[int, NDArray[np.intp]]]:
    """Each array axis that is padded, with the input position that each padded position shows (-1: a zero)."""
    for axis, (size, (before, after)) in enumerate(zip(geometry.input_size, geometry.padding, strict=True)):
        yield axis + 2, source_indices(size, before, after, geometry.padding_mode)


def _padded_size(geometry: ConvGeometry) -> tuple[int, ...]:
    return tuple(len(source) for _, source in _sources(geometry))


def _pad(geometry: ConvGeometry, x: Float64) -> Float64:
    for axis, source in _sources(geometry):
        x = np.take(x, source, axis=axis)
        np.moveaxis(x, axis, 0)[source < 0] = 0
    return x


def _fold(geometry: ConvGeometry, padded: Float64) -> Float64:
    """The transpose of ``_pad``: each padded position is added to the input position that it shows."""
    for axis, source in _sources(geometry):
        folded = np.zeros((*padded.shape[:axis], geometry.input_shape[axis], *padded.shape[axis + 1 :]))
        inside = source >= 0
        np.add.at(np.moveaxis(folded, axis, 0), source[inside], np.moveaxis(padded, axis, 0)[inside])
        padded = folded
    return padded


def _epilogue(y: Float64, bias: Array | None, residual: Array | None, activation: str | None) -> Float64:
    if bias is not None:
        y = y + bias.astype(np.float64).reshape(-1, *(1,) * (y.ndim - 2))
    if residual is not None:
        y = y + residual.astype(np.float64)
    return activate(activation, y)


# --- pooling ---


def max_forward(geometry: PoolGeometry, x: Array, indices: Array | None, out: Array, *, threads: int = 1) -> None:
    """Maximum of each window; ``indices`` says where it was first met. A NaN is larger than any number.

    A window without an element gives -inf and index -1.

    >>> g = PoolGeometry(1, 1, (5,), (2,), kernel_size=(2,), stride=(2,), padding=((0, 0),))
    >>> y, where = np.empty((1, 1, 2)), np.empty((1, 1, 2), np.int64)
    >>> max_forward(g, np.array([[[1.0, 3.0, 2.0, 2.0, 9.0]]]), where, y)
    >>> y.tolist(), where.tolist()
    ([[[3.0, 2.0]]], [[[1, 2]]])
    """
    _extreme(geometry, x, indices, out, np.argmax, -np.inf)


def min_forward(geometry: PoolGeometry, x: Array, indices: Array | None, out: Array, *, threads: int = 1) -> None:
    """Minimum of each window, as ``max_forward``; NaN wins here too, and a window without an element gives inf."""
    _extreme(geometry, x, indices, out, np.argmin, np.inf)


@quiet
def avg_forward(geometry: PoolGeometry, x: Array, out: Array, *, threads: int = 1) -> None:
    """Sum of each window over its divisor (see ``_divisor``); 0 for a window without an element."""
    x = x.astype(np.float64)
    for o, cut in _windows(geometry):
        out[:, :, *o] = x[:, :, *cut].sum(axis=_spatial(x)) / _divisor(geometry, o)


@quiet
def lp_forward(geometry: PoolGeometry, x: Array, out: Array, *, threads: int = 1) -> None:
    """(sum of x^p)^(1/p) of each window, p = ``geometry.norm_type``. No absolute value is taken, as in PyTorch.

    In extended precision where the machine has it: 1/p in float64 is off by u/p, and a power of S by ln(S) times that.
    """
    x, p = x.astype(np.longdouble), np.longdouble(geometry.norm_type)
    for o, cut in _windows(geometry):
        out[:, :, *o] = (x[:, :, *cut] ** p).sum(axis=_spatial(x)) ** (1 / p)


@quiet
def max_grad_input(geometry: PoolGeometry, dy: Array, indices: Array, out: Array, *, threads: int = 1) -> None:
    """Each element of dy is added where its window's maximum was."""
    planes, flat = np.zeros((*geometry.input_shape[:2], math.prod(geometry.input_size))), _flat(indices)
    n, c, o = np.nonzero(flat >= 0)
    np.add.at(planes, (n, c, flat[n, c, o]), _flat(dy.astype(np.float64))[n, c, o])
    out[...] = planes.reshape(out.shape)


min_grad_input = max_grad_input


@quiet
def avg_grad_input(geometry: PoolGeometry, dy: Array, out: Array, *, threads: int = 1) -> None:
    """Each element of dy, over its window's divisor, is added to every element of the window."""
    dy, dx = dy.astype(np.float64), np.zeros(geometry.input_shape)
    for o, cut in _windows(geometry):
        dx[:, :, *cut] += _over_window(dy[:, :, *o] / _divisor(geometry, o), dx)
    out[...] = dx


@quiet
def lp_grad_input(geometry: PoolGeometry, x: Array, y: Array, dy: Array, out: Array, *, threads: int = 1) -> None:
    """dy * x^(p-1) * S^(1/p - 1) for every element of a window of sum S, 0 where S is 0; y is not read."""
    x, dy, p = x.astype(np.longdouble), dy.astype(np.longdouble), np.longdouble(geometry.norm_type)
    dx = np.zeros(geometry.input_shape, np.longdouble)
    for o, cut in _windows(geometry):
        total = (x[:, :, *cut] ** p).sum(axis=_spatial(x))
        slope = np.where(total == 0, 0, dy[:, :, *o] * total ** (1 / p - 1))
        zero = _over_window(total == 0, dx)
        dx[:, :, *cut] += np.where(zero, 0, x[:, :, *cut] ** (p - 1) * _over_window(slope, dx))
    out[...] = dx


def unpool_forward(geometry: PoolGeometry, x: Array, indices: Array, out: Array, *, threads: int = 1) -> None:
    """Max-unpooling: zeros, and each element of x where ``indices`` says; of equal indices the last one stays.

    ``geometry`` is the pooling's: x and indices have its output's shape, ``out`` its input's.
    """
    planes, flat = np.zeros((*out.shape[:2], math.prod(out.shape[2:]))), _flat(indices)
    n, c, o = np.nonzero(flat >= 0)  # in the order of o, so that the last assignment is the last index
    planes[n, c, flat[n, c, o]] = _flat(x.astype(np.float64))[n, c, o]
    out[...] = planes.reshape(out.shape)


def unpool_grad_input(geometry: PoolGeometry, dy: Array, indices: Array, out: Array, *, threads: int = 1) -> None:
    """Each element of ``out`` is dy where its index points; 0 for index -1."""
    flat = _flat(indices)
    picked = np.take_along_axis(_flat(dy.astype(np.float64)), flat.clip(0), axis=2)
    out[...] = np.where(flat < 0, 0, picked).reshape(out.shape)


def _windows(geometry: PoolGeometry) -> Iterator[tuple[Index, Index]]:
    """Each output position with the slices that cut its window out of the input."""
    for o in np.ndindex(*geometry.output_size):
        yield (
            o,
            tuple(
                slice(w.start[i], w.start[i] + w.count[i] * w.dilation, w.dilation)
                for w, i in zip(geometry.windows, o, strict=True)
            ),
        )


def _divisor(geometry: PoolGeometry, o: Index) -> float:
    """``divisor_override``, or the elements of window o, counting explicit padding if ``count_include_pad``."""
    counts = math.prod(int(w.count[i]) for w, i in zip(geometry.windows, o, strict=True))
    if counts == 0:
        return 1  # the sum is 0
    if geometry.divisor_override is not None:
        return geometry.divisor_override
    if geometry.count_include_pad:
        return math.prod(int(w.padded_count[i]) for w, i in zip(geometry.windows, o, strict=True))
    return counts


def _extreme(
    geometry: PoolGeometry, x: Array, indices: Array | None, out: Array, find: Callable[..., Any], empty: float
) -> None:
    x = x.astype(np.float64)
    plane = np.arange(math.prod(geometry.input_size)).reshape(geometry.input_size)
    for o, cut in _windows(geometry):
        values, positions = _flat(x[:, :, *cut]), plane[cut].ravel()
        best: Array | float = empty
        where: Array | int = -1
        if positions.size:
            first = find(values, axis=2)
            best, where = np.take_along_axis(values, first[..., None], axis=2)[..., 0], positions[first]
        out[:, :, *o] = best
        if indices is not None:
            indices[:, :, *o] = where


def _flat(a: Array) -> Array:
    """(N, C, *spatial) as (N, C, elements of a plane)."""
    return a.reshape(*a.shape[:2], math.prod(a.shape[2:]))


def _spatial(x: Array) -> tuple[int, ...]:
    return tuple(range(2, x.ndim))


def _over_window(a: Array, x: Array) -> Array:
    """(N, C) as (N, C, 1, ...), to be combined with a window of x."""
    return a.reshape(*a.shape, *(1,) * (x.ndim - 2))
