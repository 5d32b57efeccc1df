"""Kernels by name: tables hold ``module:function`` strings, so that nothing is imported before it first runs."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from operator import attrgetter
from typing import Any

CPU = "fastconv.kernels.cpu."
CUDA = "fastconv.kernels.cuda."


@cache  # bounded by the table
def resolve(target: str) -> Callable[..., Any]:
    """The function a ``module:function`` string names; ``module:variant.function`` where a module has variants.

    >>> resolve("fastconv.kernels.reference:forward").__name__
    'forward'
    """
    module, function = target.split(":")
    kernel: Callable[..., Any] = attrgetter(function)(importlib.import_module(module))
    return kernel
