"""Activation layers: the functions of :mod:`fastconv.autograd.activations`, and dropout."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import autograd
from ..autograd import array_module, is_floating
from . import init, loss
from .module import Module


class _Activation(Module):
    """A function of one array without parameters."""

    operation: str

    def forward(self, x: Any) -> Any:
        return getattr(autograd, self.operation)(x)


class ReLU(_Activation):
    """max(x, 0).

    >>> import numpy as np
    >>> from fastconv import nn
    >>> nn.ReLU()(np.array([-1.0, 2.0])).tolist()
    [0.0, 2.0]
    """

    operation = "relu"


class ReLU6(_Activation):
    """min(max(x, 0), 6)."""

    operation = "relu6"


class SiLU(_Activation):
    """x · sigmoid(x), also called swish."""

    operation = "silu"


class GELU(_Activation):
    """x · Φ(x), the exact form, through erf."""

    operation = "gelu"


class Sigmoid(_Activation):
    """1 / (1 + exp(-x))."""

    operation = "sigmoid"


class Tanh(_Activation):
    """The hyperbolic tangent."""

    operation = "tanh"


class Hardswish(_Activation):
    """x · relu6(x + 3) / 6."""

    operation = "hardswish"


class LeakyReLU(Module):
    """x where it is positive, ``negative_slope * x`` elsewhere.

    >>> import numpy as np
    >>> from fastconv import nn
    >>> nn.LeakyReLU(0.5)(np.array([-1.0, 2.0])).tolist()
    [-0.5, 2.0]
    """

    def __init__(self, negative_slope: float = 0.01) -> None:
        self.negative_slope = negative_slope

    def forward(self, x: Any) -> Any:
        return autograd.leaky_relu(x, self.negative_slope)

    def extra_repr(self) -> str:
        return f"negative_slope={self.negative_slope}"


class Softmax(Module):
    """Positive numbers that sum to 1 along ``dim``. For training use :func:`cross_entropy` on what goes in here."""

    def __init__(self, dim: int = -1) -> None:
        self.dim = dim

    def forward(self, x: Any) -> Any:
        return loss.softmax(x, self.dim)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"


class LogSoftmax(Softmax):
    """The logarithm of :class:`Softmax`, without its rounding."""

    def forward(self, x: Any) -> Any:
        return loss.log_softmax(x, self.dim)


class Dropout(Module):
    """In training zero each element with probability ``p`` and scale the others by 1/(1-p); else the identity.

    >>> import numpy as np
    >>> from fastconv import nn
    >>> sorted(set(nn.Dropout(0.5)(np.ones(100)).tolist())), nn.Dropout(0.5).eval()(np.ones(2)).tolist()
    ([0.0, 2.0], [1.0, 1.0])

    Parameters
    ----------
    p : probability of a zero, 0 ≤ p < 1.
    generator : a NumPy generator to draw from, by default the one that ``nn.manual_seed`` seeds. On a GPU it only seeds
        the device's own generator for each call.

    Source: Srivastava et al., Dropout, JMLR 15 (2014).
    """

    def __init__(self, p: float = 0.5, *, generator: np.random.Generator | None = None) -> None:
        if not 0 <= p < 1:
            raise ValueError(f"p must be at least 0 and below 1, got {p}")
        self.p, self.generator = p, generator

    def forward(self, x: Any) -> Any:
        if not self.training or self.p == 0:
            return x
        if not is_floating(x.dtype):
            raise TypeError(f"dropout needs floating-point data, got {x.dtype}")
        xp = array_module(x)
        draw = self.generator or init.default_generator()
        if xp is not np:
            # Philox begins where it is told; the default generator would skip ahead once for each of its threads
            draw = xp.random.Generator(xp.random.Philox4x3210(int(draw.integers(2**63))))
        mask = (draw.random(x.shape, dtype=np.float32) >= self.p).astype(x.dtype)
        mask *= 1 / (1 - self.p)
        return x * mask

    def extra_repr(self) -> str:
        return f"p={self.p}"
