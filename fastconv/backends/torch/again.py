"""Calls that have run before, as one look into a dictionary: PyTorch's arguments to fastconv's, ready made.

Checking and unfolding PyTorch's many forms of the same parameters takes as long as a small convolution. A call of which
only the numbers are wanted, with tensors and parameters like those of an earlier one, skips all of it. What is kept
lies beside fastconv's own kept calls, and goes with them (``fastconv.cache_clear``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import forward_ad

from fastconv.pooled import ready_calls
from fastconv.settings import default_threads

from .tensors import array, tensor

_PLAIN = frozenset({torch.Tensor, torch.nn.Parameter, type(None)})


def unwatched(*tensors: torch.Tensor | None) -> bool:
    """Whether nobody but autograd looks at which operators run on these tensors."""
    if torch.compiler.is_compiling():
        return False
    c: Any = torch._C
    for t in tensors:  # autograd's own batches, of several gradients at once, are no level of torch.func
        if t is not None and (type(t) not in _PLAIN or t.is_meta or c._functorch.is_legacy_batchedtensor(t)):
            return False
    return (
        forward_ad._current_level < 0
        and c._len_torch_dispatch_stack() == 0
        and c._functorch.peek_interpreter_stack() is None
        and c._get_tracing_state() is None
    )


def only_numbers(*tensors: torch.Tensor | None) -> bool:
    """Whether nobody at all does: autograd records nothing, either."""
    return unwatched(*tensors) and not recorded(*tensors)


def recorded(*tensors: torch.Tensor | None) -> bool:
    """Whether autograd records what is done with these tensors."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def autocast_dtype(x: torch.Tensor) -> torch.dtype | None:
    """The dtype in which autocast wants convolutions of x, where it is on; float64 it leaves alone."""
    if x.dtype is torch.float64:
        return None
    kind = "cuda" if x.is_cuda else "cpu"
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


_LONG = None, None


def find(op: str, tensors: tuple[Any, ...], parameters: tuple[Any, ...]) -> tuple[Any, Any]:
    """What a call depends on besides its tensors' elements, None where it must go the long way; and the call kept
    under that, or None.

    1, True and 1.0 are equal and not the same: some of them are errors.
    """
    if not only_numbers(*tensors):
        return _LONG
    threads, x = default_threads(), tensors[0]
    if not threads or x is None or not x.is_cpu or x.layout is not torch.strided or torch.is_autocast_enabled("cpu"):
        return _LONG
    types: Any = tuple(map(type, parameters))
    if tuple in types:
        types = tuple([tuple(map(type, p)) if type(p) is tuple else type(p) for p in parameters])
    key = [op, _LONG, threads, x.stride(), parameters, types]
    for t in tensors:
        key += (None,) if t is None else (t.shape, t.dtype, t.is_cpu)
    found = tuple(key)
    try:
        return found, ready_calls.get(found)
    except TypeError:  # lists
        return _LONG


class Again:
    """An earlier call, ready to run on the arrays of other tensors."""

    __slots__ = ("function", "last")

    def __init__(self, function: Callable[..., Any], last: bool) -> None:
        self.function, self.last = function, last

    def __call__(self, *tensors: torch.Tensor | None) -> Any:
        arrays = [None if t is None else array(t) for t in tensors]
        if not self.last:
            result = self.function(*arrays)
            return tensor(result) if type(result) is not tuple else tuple(map(tensor, result))
        first: Any = arrays[0]
        arrays[0] = first.transpose(0, *range(2, first.ndim), 1)
        back = (0, first.ndim - 1, *range(1, first.ndim - 1))
        result = self.function(*arrays)
        if type(result) is tuple:
            return tuple(tensor(r.transpose(back)) for r in result)
        return tensor(result.transpose(back))


def keep(key: Any, function: Callable[..., Any], last: bool) -> None:
    """From now on, calls of this key are ``function`` on their tensors' arrays."""
    ready_calls[key] = Again(function, last)
