"""One definition, three public functions: ``conv`` becomes ``conv1d``, ``conv2d`` and ``conv3d``.

The definition takes the public name and the number of spatial dimensions first; its docstring is a template:

    {op} {rank} {plural}   the public name, the number of dimensions, "" or "s"
    {dims:5}               the spatial part of a shape whose sizes are all 5: "5, 5" in two dimensions
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class _Dims:
    def __init__(self, rank: int):
        self.rank = rank

    def __format__(self, size: str) -> str:
        return ", ".join([size] * self.rank)


def _check_call(op: str, signature: inspect.Signature, args: Any, kwargs: Any) -> None:
    """Raise for arguments that do not fit the public signature: Python's own message would count ``op`` and ``rank``,
    and name the definition."""
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        bare = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
        raise TypeError(f"{op}: {error}; it is {op}{inspect.Signature(bare)}") from None


def per_rank(
    names: str,
) -> Callable[[Callable[Concatenate[str, int, P], R]], tuple[Callable[P, R], Callable[P, R], Callable[P, R]]]:
    """Make the three functions called ``names.format(rank)``."""

    def make(fun: Callable[Concatenate[str, int, P], R]) -> tuple[Callable[P, R], Callable[P, R], Callable[P, R]]:
        def at(rank: int) -> Callable[P, R]:
            op = names.format(rank)

            def function(*args: P.args, **kwargs: P.kwargs) -> R:
                try:
                    return fun(op, rank, *args, **kwargs)
                except TypeError:
                    _check_call(op, public, args, kwargs)
                    raise

            signature = inspect.signature(fun)
            public = signature.replace(parameters=list(signature.parameters.values())[2:])
            function.__name__ = function.__qualname__ = op
            function.__module__ = fun.__module__
            function.__dict__["__signature__"] = public
            function.__annotations__ = {k: v for k, v in fun.__annotations__.items() if k not in ("op", "rank")}
            template = inspect.cleandoc(fun.__doc__ or "")
            function.__doc__ = template.format(op=op, rank=rank, plural="" if rank == 1 else "s", dims=_Dims(rank))
            return function

        return at(1), at(2), at(3)

    return make
