"""Activation functions and their derivatives: PyTorch's definitions and defaults, one pass of array operations each.

All are primitives of one array x; the ones a convolution can fuse carry the names of ``kernels.ACTIVATIONS``.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from .tape import Array, array_module, defvjp, primitive


@primitive
def relu(x: Array) -> Array:
    """max(x, 0); its gradient at 0 is 0.

    >>> relu([-1.0, 2.0]).tolist()
    [0.0, 2.0]
    """
    return array_module(x).maximum(x, 0)


# A boolean mask costs one compare; numpy.where in its place is ten times slower (6.1 ms against 0.6 on 5.5 MB).
defvjp(relu, lambda y, x: lambda g: g * (y > 0))


@primitive
def relu6(x: Array) -> Array:
    """min(max(x, 0), 6); its gradient at 0 and at 6 is 0.

    >>> relu6([-1.0, 2.0, 9.0]).tolist()
    [0.0, 2.0, 6.0]
    """
    return array_module(x).clip(x, 0, 6)


defvjp(relu6, lambda y, x: lambda g: g * ((y > 0) & (y < 6)))


@primitive
def leaky_relu(x: Array, negative_slope: float = 0.01) -> Array:
    """x where it is positive, ``negative_slope * x`` elsewhere.

    >>> leaky_relu([-1.0, 2.0]).tolist()
    [-0.01, 2.0]
    """
    xp = array_module(x)
    x = xp.asarray(x)
    return x * _leaky_slope(x, negative_slope)


def _leaky_slope(x: Array, negative_slope: float) -> Array:
    slope = (x > 0).astype(x.dtype)
    slope *= 1 - negative_slope
    slope += negative_slope
    return slope


defvjp(leaky_relu, lambda y, x, negative_slope=0.01: lambda g: g * _leaky_slope(x, negative_slope))


@primitive
def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), without overflow at either end.

    >>> sigmoid([0.0, -1000.0]).tolist()
    [0.5, 0.0]
    """
    xp = array_module(x)
    top = xp.exp(xp.minimum(x, 0))
    return top / (top + xp.exp(-xp.maximum(x, 0)))


defvjp(sigmoid, lambda y, x: lambda g: g * (y * (1 - y)))


@primitive
def tanh(x: Array) -> Array:
    """The hyperbolic tangent.

    >>> tanh([0.0]).tolist()
    [0.0]
    """
    return array_module(x).tanh(x)


defvjp(tanh, lambda y, x: lambda g: g * (1 - y * y))


@primitive
def silu(x: Array) -> Array:
    """x · sigmoid(x), also called swish.

    >>> silu([0.0, 1000.0]).tolist()
    [0.0, 1000.0]
    """
    return x * sigmoid(x)


def _silu_slope(y: Array, x: Array) -> Array:
    s = sigmoid(x)
    return s + y * (1 - s)


defvjp(silu, lambda y, x: lambda g: g * _silu_slope(y, x))


@primitive
def hardswish(x: Array) -> Array:
    """x · relu6(x + 3) / 6.

    >>> hardswish([-1.5, 0.0, 3.0]).tolist()
    [-0.375, 0.0, 3.0]
    """
    xp = array_module(x)
    return x * xp.clip(xp.asarray(x) + 3, 0, 6) / 6


def _hardswish_slope(x: Array) -> Array:
    inside = abs(x) < 3
    return array_module(x).clip(x + 3, 0, 6) / 6 + x * inside / 6


defvjp(hardswish, lambda y, x: lambda g: g * _hardswish_slope(x))


@primitive
def gelu(x: Array) -> Array:
    """x · Φ(x), with Φ the distribution function of the normal distribution (the exact form, through erf).

    >>> round(float(gelu(np.array([1.0]))[0]), 6)
    0.841345

    Source: Hendrycks and Gimpel, Gaussian error linear units, arXiv:1606.08415.
    """
    return x * normal_cdf(x)


def _gelu_slope(x: Array) -> Array:
    xp = array_module(x)
    return normal_cdf(x) + x * xp.exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi))


defvjp(gelu, lambda y, x: lambda g: g * _gelu_slope(x))

_ERFC_LIMIT = 26.0  # erfc is the smallest float64 there
_ERFC_SCALE = 3.0  # of 1, 2, 3, 4 the one with the fewest terms


def normal_cdf(x: Array) -> Array:
    """The distribution function of the normal distribution, ½ erfc(-x/√2), to the precision of x.

    >>> normal_cdf(np.array([0.0, -40.0])).round(12)
    array([0.5, 0. ])

    NumPy has no erf. With z = |x|/√2 and u = (3 - z)/(3 + z), which takes [0, ∞) to (-1, 1], exp(z²)·erfc(z) is a
    polynomial in u to all digits; its Chebyshev coefficients come from the standard library's erfc.
    """
    xp = array_module(x)
    x = xp.asarray(x)
    single = x.dtype.itemsize <= 4
    work = np.float32 if single else np.float64
    z = xp.minimum(abs(x).astype(work) * work(math.sqrt(0.5)), work(_ERFC_LIMIT))
    low = (_ERFC_SCALE - _ERFC_LIMIT) / (_ERFC_SCALE + _ERFC_LIMIT)
    u = ((_ERFC_SCALE - z) / (_ERFC_SCALE + z) - low) * (2 / (1 - low)) - 1
    tail = 0.5 * _chebyshev_sum(_erfc_coefficients(10 if single else 20, low), u) * xp.exp(-z * z)
    positive = x > 0
    return (tail + positive * (1 - 2 * tail)).astype(x.dtype, copy=False)


def _chebyshev_sum(coefficients: tuple[float, ...], u: Array) -> Array:
    """Clenshaw's recurrence."""
    b1, b2 = u * 0, u * 0
    for c in coefficients[:0:-1]:
        b1, b2 = 2 * u * b1 - b2 + c, b1
    return u * b1 - b2 + coefficients[0]


@lru_cache
def _erfc_coefficients(degree: int, low: float) -> tuple[float, ...]:
    """Of exp(z²)·erfc(z) for u in [low, 1], from its values at the Chebyshev nodes."""
    n = degree + 1
    angles = [math.pi * (i + 0.5) / n for i in range(n)]
    values = []
    for angle in angles:
        u = low + (math.cos(angle) + 1) * (1 - low) / 2
        z = _ERFC_SCALE * (1 - u) / (1 + u)
        values.append(math.exp(z * z) * math.erfc(z))
    sums = [math.fsum(v * math.cos(k * a) for v, a in zip(values, angles, strict=True)) for k in range(n)]
    return (sums[0] / n, *(2 * s / n for s in sums[1:]))
