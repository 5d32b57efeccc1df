"""Random numbers of layers: the generator they share, and PyTorch's default initialisers.

Everything is drawn on the CPU and in float64, so a seed gives the same weights on every device and in every dtype.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

_default = np.random.default_rng()


def manual_seed(seed: int) -> None:
    """Restart the generator that layers draw from when they are given none.

    >>> from fastconv import nn
    >>> nn.manual_seed(0)
    >>> first = nn.Linear(2, 2).weight.numpy()
    >>> nn.manual_seed(0)
    >>> bool((nn.Linear(2, 2).weight == first).all())
    True
    """
    global _default
    _default = np.random.default_rng(seed)


def default_generator() -> np.random.Generator:
    """The generator that layers draw from when they are given none."""
    return _default


def get_rng_state() -> dict[str, Any]:
    """The state of the default generator: numbers and strings, ready for JSON.

    >>> from fastconv import nn
    >>> nn.set_rng_state(nn.get_rng_state())
    """
    return dict(_default.bit_generator.state)


def set_rng_state(state: dict[str, Any]) -> None:
    """Continue from a state that :func:`get_rng_state` returned.

    Raises
    ------
    ValueError : the state is of another kind of generator.
    """
    _default.bit_generator.state = state


def uniform(
    shape: tuple[int, ...], bound: float, dtype: Any = np.float32, generator: np.random.Generator | None = None
) -> np.ndarray:
    """Numbers drawn evenly from [-bound, bound)."""
    return (generator or _default).uniform(-bound, bound, shape).astype(dtype)


def weight_and_bias(
    shape: tuple[int, ...], outputs: int, bias: bool, dtype: Any, generator: np.random.Generator | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """What Linear and the convolutions start from, as in PyTorch.

    The weight is Kaiming-uniform with a = √5, which is uniform in ±1/√fan_in, and so is the bias; fan_in is the
    product of all sizes of the weight but the first.

    Source: He et al., Delving deep into rectifiers, arXiv:1502.01852.
    """
    fan_in = math.prod(shape[1:])
    bound = 1 / math.sqrt(fan_in) if fan_in else 0.0
    weight = uniform(shape, bound, dtype, generator)
    return weight, uniform((outputs,), bound, dtype, generator) if bias else None
