"""``with use():`` PyTorch's own functions and modules run on fastconv inside the block."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from . import functions
from .tensors import why_not


def _with_indices(function: Callable[..., Any]) -> Callable[..., Any]:
    def both(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **{**kwargs, "return_indices": True})

    both.__name__ = function.__name__
    return both


def _table() -> dict[Any, Callable[..., Any]]:
    """PyTorch's function -> fastconv's."""
    table: dict[Any, Callable[..., Any]] = {}
    stems = (
        "conv",
        "conv_transpose",
        "max_pool",
        "avg_pool",
        "lp_pool",
        "max_unpool",
        "adaptive_max_pool",
        "adaptive_avg_pool",
    )
    for stem in stems:
        for rank in (1, 2, 3):
            name = f"{stem}{rank}d"
            ours = getattr(functions, name)
            for home in (F, torch):
                theirs = getattr(home, name, None)
                # torch.adaptive_max_pool1d returns indices where F's does not
                if theirs is not None and not (home is torch and stem == "adaptive_max_pool"):
                    table[theirs] = ours
            if stem in ("max_pool", "adaptive_max_pool"):
                table[getattr(F, f"{name}_with_indices")] = _with_indices(ours)
    return table


TABLE = _table()


def refusal(tensors: list[Any]) -> str | None:
    """None where fastconv may be asked to run these tensors, else the reason."""
    floating = [t for t in tensors if not isinstance(t, torch.Tensor) or t.dtype != torch.int64]
    odd = next((t for t in tensors if isinstance(t, torch.Tensor) and t.numel() == 0), None)
    if odd is not None and 0 in odd.shape[1:]:
        return f"takes no dimension of size 0 but the batch, got shape {tuple(odd.shape)}"
    return why_not(*floating) if floating else "takes floating-point tensors"


class use(TorchFunctionMode):  # a verb, as in: with use():
    """Run PyTorch's convolutions and poolings by fastconv inside a ``with`` block, whoever calls them.

    >>> import torch
    >>> from fastconv.backends import torch as fct
    >>> layer = torch.nn.Conv2d(3, 4, 3)
    >>> with fct.use() as used:
    ...     y = layer(torch.ones(1, 3, 8, 8))
    >>> used.calls
    {'conv2d': 1}
    >>> print(used.explain())
    conv2d: 1 call by fastconv

    What fastconv cannot run goes to PyTorch as if the block were not there, and is counted with its reason: see
    :meth:`explain`. Gradients follow the forward pass, also after the block. The block counts for the thread that
    enters it; ``torch.compile``'s compiled functions do not look at it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._calls: Counter[str] = Counter()
        self._fallbacks: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        ours = TABLE.get(func)
        if ours is None:
            return func(*args, **kwargs)
        name = ours.__name__
        tensors = [v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor)]
        reason = refusal(tensors)
        if reason is None:
            try:
                result = ours(*args, **kwargs)
            except (TypeError, ValueError) as error:  # PyTorch may be able, or says so in its own words
                reason = str(error)
            else:
                with self._lock:
                    self._calls[name] += 1
                return result
        with self._lock:
            self._fallbacks[name, reason] += 1
        return func(*args, **kwargs)

    @property
    def calls(self) -> dict[str, int]:
        """How many calls of each function fastconv ran."""
        return dict(self._calls)

    @property
    def fallbacks(self) -> dict[tuple[str, str], int]:
        """How many calls PyTorch ran, by function and reason."""
        return dict(self._fallbacks)

    def explain(self) -> str:
        """What ran where, a line a function and reason."""
        lines = [f"{name}: {n} call{'s' * (n > 1)} by fastconv" for name, n in sorted(self._calls.items())]
        for (name, reason), n in sorted(self._fallbacks.items()):
            lines.append(f"{name}: {n} call{'s' * (n > 1)} left to PyTorch: fastconv {reason}")
        return "\n".join(lines) or "no convolution or pooling was called"
