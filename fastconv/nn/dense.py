"""The fully connected layer, as one primitive: a matrix product of the array's module with the bias added in place."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..autograd import Array, Tensor, array_module, defvjp, primitive
from . import init
from .module import Module, Parameter


@primitive
def _linear(x: Array, weight: Array, bias: Array | None) -> Array:
    y = x @ weight.T
    if bias is not None:
        y += bias
    return y


def _rows(array: Array) -> Array:
    return array.reshape(-1, array.shape[-1])


defvjp(
    _linear,
    lambda y, x, weight, bias: lambda g: g @ weight,
    lambda y, x, weight, bias: lambda g: _rows(g).T @ _rows(x),
    lambda y, x, weight, bias: lambda g: _rows(g).sum(axis=0),
)


def linear(x: Any, weight: Any, bias: Any = None) -> Any:
    """x · weightᵀ + bias over the last axis.

    >>> import numpy as np
    >>> from fastconv import nn
    >>> nn.linear(np.array([[1.0, 2.0]]), np.array([[3.0, 4.0]]), np.array([0.5])).tolist()
    [[11.5]]

    Parameters
    ----------
    x : (…, in_features), array or Tensor.
    weight : (out_features, in_features), of x's dtype and device.
    bias : (out_features,) or None.

    Raises
    ------
    ValueError : sizes that do not fit.
    TypeError : different dtypes or devices; nothing is converted silently.
    """
    if weight.ndim != 2:
        raise ValueError(f"linear: weight must have shape (out_features, in_features), got {weight.shape}")
    outputs, inputs = weight.shape
    if x.ndim < 1 or x.shape[-1] != inputs:
        raise ValueError(
            f"linear: x must have {inputs} features in its last axis, weight's in_features, got shape {x.shape}"
            + ("; put nn.Flatten() before the layer" if x.ndim > 2 else "")
        )
    if bias is not None and bias.shape != (outputs,):
        raise ValueError(f"linear: bias must have shape ({outputs},), got {bias.shape}")
    for name, other in (("weight", weight), ("bias", bias)):
        if other is None:
            continue
        if array_module(x) is not array_module(other):
            raise TypeError(f"linear: x and {name} are on different devices; move one, as with model.to('cuda')")
        if x.dtype != other.dtype:
            raise TypeError(
                f"linear: x is {x.dtype} and {name} {other.dtype}; convert one, as with x.astype({name}.dtype)"
            )
    return _linear(x, weight, bias)


class Linear(Module):
    """A fully connected layer with a learned ``weight`` (out_features, in_features) and ``bias`` (out_features,).

    >>> import numpy as np
    >>> from fastconv import nn
    >>> nn.Linear(4, 2)(np.zeros((3, 4), np.float32)).shape
    (3, 2)

    Parameters
    ----------
    dtype : of the weights; float32 by default.
    generator : a NumPy generator to draw them from, by default the one that ``nn.manual_seed`` seeds.

    Raises
    ------
    ValueError : an input without ``in_features`` entries in its last axis.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        dtype: Any = np.float32,
        generator: np.random.Generator | None = None,
    ) -> None:
        for name, value in (("in_features", in_features), ("out_features", out_features)):
            if not isinstance(value, int | np.integer) or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value!r}")
        self.in_features, self.out_features = in_features, out_features
        weight, start = init.weight_and_bias((out_features, in_features), out_features, bias, dtype, generator)
        self.weight = Parameter(weight)
        self.bias = None if start is None else Parameter(start)

    def forward(self, x: Any) -> Tensor:
        return linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        bias = self.bias is not None
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={bias}"
