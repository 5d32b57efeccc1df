"""Checks of hyper-parameters: each raises ValueError or TypeError that names the argument, its limits and what was
given."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def in_range(name: str, value: float, low: float, high: float) -> float:
    """A finite number from ``low`` to ``high``, both included."""
    if not isinstance(value, int | float | np.number):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not low <= value <= high or math.isinf(value):
        limits = f"between {low} and {high}" if math.isfinite(high) else f"finite and at least {low}"
        raise ValueError(f"{name} must be {limits}, got {value}")
    return float(value)


def at_least_zero(name: str, value: float) -> float:
    """A finite number that is not negative."""
    return in_range(name, value, 0, math.inf)


def count(name: str, value: Any) -> int:
    """An integer above 0."""
    if not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r}")
    return int(value)
