"""Data that sums exactly, and assertions that say which element is wrong, by how much, and how much was allowed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from ..autograd import Tensor, no_grad

RMS_SLACK = 3.0
"""How many times the stated typical error a result's root mean square error may be."""

Array = np.ndarray[Any, np.dtype[Any]]


def dtype_of(dtype: Any) -> np.dtype[Any]:
    """A dtype by name too, bfloat16 included, which NumPy knows only through ml_dtypes."""
    return np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


def integers(
    shape: Sequence[int], dtype: Any = "float32", seed: int | np.random.Generator = 0, low: int = -4, high: int = 4
) -> Array:
    """Small random integers as floats: their products and sums are exact, so that results must be equal, not close.

    In float32, 2^20 products of such numbers sum exactly in any order.

    >>> integers((2, 3), "float32", seed=0).dtype
    dtype('float32')

    Parameters
    ----------
    shape : of the array.
    dtype : float32, float64, float16 or bfloat16, all of which hold these integers exactly.
    seed : an integer, or the generator to draw from.
    low, high : the smallest and the largest integer.
    """
    return np.random.default_rng(seed).integers(low, high, tuple(shape), endpoint=True).astype(dtype_of(dtype))


def assert_matches(actual: Array, expected64: Array, *, bound: float, magnitude: Any, what: str = "result") -> None:
    """Assert ``|actual - expected64| <= bound * magnitude`` for every element.

    Non-finite elements must be equal (NaN where NaN is expected). One smallest subnormal of ``actual``'s dtype is
    allowed on top: a relative bound says nothing about underflow.

    >>> assert_matches(np.float32([1.0, 2.0]), np.array([1.0, 2.0]), bound=0.0, magnitude=0.0)
    >>> assert_matches(np.float32([1.0, 2.5]), np.array([1.0, 2.0]), bound=0.01, magnitude=2.0)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    AssertionError: result: element (1,) is 2.5, expected 2.0: its error 0.5 is 25 times the allowed 0.02 ...

    Parameters
    ----------
    actual : what is being tested.
    expected64 : the truth, float64, of the same shape.
    bound : multiple of ``magnitude`` that every element may be off by; 0 for exact equality.
    magnitude : array of that shape, or a number: the size of what was summed, such as |w| ⊛ |x|.
    what : begins the message.

    Raises
    ------
    AssertionError : naming the worst element, its value, the expected one, and the excess.
    """
    _same_shape(actual, expected64, what)
    got = actual.astype(np.float64)
    with np.errstate(invalid="ignore"):  # inf - inf, and 0 * inf where a window without elements has the maximum -inf
        allowed = np.broadcast_to(bound * np.asarray(magnitude, np.float64), got.shape) + _smallest(actual.dtype)
        error = np.abs(got - expected64)
    agree = (got == expected64) | (np.isnan(got) & np.isnan(expected64))
    error = np.where(agree, 0.0, np.where(np.isnan(error), np.inf, error))
    # bound 0 means equal: not even the subnormal is allowed then
    wrong = ~agree if bound == 0 else error > allowed
    if not wrong.any():
        return
    excess = np.where(wrong, error if bound == 0 else error / allowed, 0.0)
    worst = np.unravel_index(int(excess.argmax()), excess.shape)
    where = tuple(int(i) for i in worst)
    size = float(np.broadcast_to(magnitude, got.shape)[worst])
    limit = f"{excess[worst]:.3g} times the allowed {bound * size:.3g} (bound {bound:.3g} × magnitude {size:.3g})"
    if bound == 0:
        limit = "not zero, but it must be equal"
    raise AssertionError(
        f"{what}: element {where} is {got[worst]}, expected {expected64[worst]}: its error {error[worst]:.3g} is "
        f"{limit}; {int(wrong.sum())} of {got.size} elements are wrong"
    )


def assert_rms(actual: Array, expected64: Array, *, typical: float, magnitude: Any, what: str = "result") -> None:
    """Assert that the root mean square of ``error / magnitude`` is at most three times ``typical``.

    A worst-case bound over thousands of products is loose enough to hide a lost one; this is not.

    >>> assert_rms(np.float32([1.0, 3.0]), np.array([1.0, 2.0]), typical=1e-7, magnitude=1.0)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    AssertionError: result: the root mean square error is 0.707 of the magnitude, 7.07e+06 times the typical 1e-07; ...

    Parameters
    ----------
    actual, expected64, magnitude, what : as for :func:`assert_matches`. Elements of magnitude 0, and those whose
        expected value is not finite, do not count.
    typical : root mean square error expected, as a multiple of ``magnitude``.

    Raises
    ------
    AssertionError : the error is larger, or not a number.
    """
    _same_shape(actual, expected64, what)
    size = np.broadcast_to(np.asarray(magnitude, np.float64), actual.shape)
    counts = (size > 0) & np.isfinite(expected64)
    if not counts.any():
        return
    error = np.abs(actual.astype(np.float64)[counts] - expected64[counts])
    relative = np.maximum(error - _smallest(actual.dtype), 0) / size[counts]
    rms = float(np.sqrt(np.mean(relative**2)))
    if not rms <= RMS_SLACK * typical:
        raise AssertionError(
            f"{what}: the root mean square error is {rms:.3g} of the magnitude, {rms / typical:.3g} times the typical "
            f"{typical:.3g}; {RMS_SLACK:g} is allowed"
        )


def _same_shape(actual: Array, expected64: Array, what: str) -> None:
    if actual.shape != expected64.shape:
        raise AssertionError(f"{what}: the shape is {actual.shape}, expected {expected64.shape}")


def _smallest(dtype: np.dtype[Any]) -> float:
    """The smallest subnormal, what rounding may lose to underflow; 0 for integers."""
    return 0.0 if dtype.kind in "iu" else float(ml_dtypes.finfo(dtype).smallest_subnormal)


def check_grads(
    f: Callable[..., Any], *arrays: Any, eps: float = 1e-6, atol: float = 1e-6, rtol: float = 1e-5, seed: int = 0
) -> None:
    """Check the gradient of ``f`` in every argument against central differences, in float64.

    ``f`` is given a :class:`~fastconv.Tensor` per array and returns one of any shape. Its elements are combined with
    fixed random weights, so that every element of the Jacobian counts.

    >>> check_grads(lambda x, y: x * y + x.exp(), np.array([1.0, 2.0]), np.array([3.0, 4.0]))
    >>> check_grads(lambda x: x * x.detach(), np.array([1.0, 2.0]))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    AssertionError: check_grads: the gradient of argument 0 is wrong at (1,): backward gives ...

    Parameters
    ----------
    f : a function of Tensors to a Tensor, differentiable at the arrays given: no ties under a maximum.
    arrays : what to differentiate in; converted to float64.
    eps : step of the central differences.
    atol, rtol : entries may differ by ``atol + rtol * |difference quotient|``.
    seed : of the random weights.

    Raises
    ------
    AssertionError : naming the argument, the worst entry, and both values.
    TypeError : ``f`` does not return a Tensor.
    """
    values = [np.array(a, np.float64) for a in arrays]
    tensors = [Tensor(v.copy(), requires_grad=True) for v in values]
    y = f(*tensors)
    if not isinstance(y, Tensor):
        raise TypeError(f"check_grads: the function must return a Tensor, got {type(y).__name__}")
    weights = np.random.default_rng(seed).standard_normal(y.shape)
    y.backward(weights)

    def combined() -> float:
        with no_grad():
            result: float = (f(*(Tensor(v.copy()) for v in values)).numpy() * weights).sum()
        return result

    for n, (value, tensor) in enumerate(zip(values, tensors, strict=True)):
        quotient = np.empty_like(value)
        for i in np.ndindex(*value.shape):
            kept = value[i]
            value[i] = kept + eps
            above = combined()
            value[i] = kept - eps
            quotient[i] = (above - combined()) / (2 * eps)
            value[i] = kept
        _compare(n, np.zeros_like(value) if tensor.grad is None else tensor.grad, quotient, atol, rtol)


def _compare(n: int, gradient: Array, quotient: Array, atol: float, rtol: float) -> None:
    if gradient.shape != quotient.shape:
        raise AssertionError(
            f"check_grads: the gradient of argument {n} has shape {gradient.shape}, expected {quotient.shape}"
        )
    error = np.abs(gradient - quotient)
    excess = np.where(np.isnan(error), np.inf, error) / (atol + rtol * np.abs(quotient))
    if excess.size and excess.max() > 1:
        worst = np.unravel_index(int(excess.argmax()), excess.shape)
        where = tuple(int(i) for i in worst)
        raise AssertionError(
            f"check_grads: the gradient of argument {n} is wrong at {where}: backward gives {gradient[worst]:.10g}, "
            f"central differences {quotient[worst]:.10g} (off by {error[worst]:.3g})"
        )
