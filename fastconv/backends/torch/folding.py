"""Batch normalisation and activations folded into the convolution before them, where that can change no result.

    y = activation(scale * (w * x + b - mean) + beta)  =  activation((scale w) * x + (scale (b - mean) + beta))
    scale = gamma / sqrt(var + eps)

*Where* is found once, by looking at the module that calls all three: its ``forward`` is traced with every submodule as
a leaf, and a fold is made where the convolution's output goes to that batch normalisation alone and its output to that
activation alone.

*Whether* is decided anew at each call. The calling module, the **scope** of its folds, says through two hooks when it
runs. A convolution folds only inside its scope, in eval mode, with no gradients wanted, and without hooks that would
see what lies between. Its result then lies in the scope with the modules whose work is done, and each of them hands
exactly this tensor on. In every other case everyone does their own work: called alone, in training, with other tensors.

A result that nobody has fetched when the scope ends went another way than when it was traced (a ``forward`` that
branches on an attribute): the scope then runs again without folds, and makes none from then on.
"""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as module_hooks

from .again import only_numbers

ACTIVATIONS: dict[type[nn.Module], str] = {
    nn.ReLU: "relu", nn.ReLU6: "relu6", nn.LeakyReLU: "leaky_relu", nn.SiLU: "silu", nn.GELU: "gelu",
    nn.Sigmoid: "sigmoid", nn.Tanh: "tanh", nn.Hardswish: "hardswish",
}  # fmt: skip
NORMS: dict[type[nn.Module], int] = {nn.BatchNorm1d: 1, nn.BatchNorm2d: 2, nn.BatchNorm3d: 3}


class Fold:
    """What a convolution takes over: a batch normalisation, an activation, or both."""

    def __init__(self, norm: Any, activation: Any) -> None:
        self.norm, self.activation = norm, activation

    @property
    def followers(self) -> tuple[nn.Module, ...]:
        return tuple(m for m in (self.norm, self.activation) if m is not None)

    @property
    def tensors(self) -> tuple[torch.Tensor | None, ...]:
        """What the folded weights are computed from besides the convolution's own, and the count of batches: PyTorch
        updates running statistics without counting a new version of them."""
        n = self.norm
        return () if n is None else (n.weight, n.bias, n.running_mean, n.running_var, n.num_batches_tracked)

    def activation_name(self) -> str | None:
        """None also for parameters that fastconv's activation does not have."""
        a = self.activation
        if a is None or getattr(a, "approximate", "none") != "none" or getattr(a, "negative_slope", 0.01) != 0.01:
            return None
        return ACTIVATIONS[base(a)]

    def possible(self, x: torch.Tensor) -> bool:
        """Whether the followers do now what they do in eval mode, unobserved."""
        if any(m._forward_hooks or m._forward_pre_hooks or "forward" in m.__dict__ for m in self.followers):
            return False
        if self.activation is not None and self.activation_name() is None:
            return False
        norm = self.norm
        if norm is None:
            return True
        mean, var = norm._buffers.get("running_mean"), norm._buffers.get("running_var")
        if norm.training or mean is None or var is None or norm._buffers.get("num_batches_tracked") is None:
            return False
        if mean.device != x.device:
            return False
        if mean.dtype is not x.dtype and mean.dtype is not torch.float32:
            return False
        return {"weight", "bias"} <= norm._parameters.keys() and only_numbers(*self.tensors)

    def weights(self, w: Any, bias: Any, transposed: bool, groups: int) -> tuple[Any, Any]:
        """The weights and the bias that do the batch normalisation's work too."""
        if self.norm is None:
            return w, bias
        found: list[Any] = [None if t is None else t.double() for t in self.tensors[:4]]
        gamma, beta, mean, var = found
        scale = (var + self.norm.eps).rsqrt()
        scale = scale if gamma is None else scale * gamma
        shift = -mean * scale if bias is None else (bias.double() - mean) * scale
        shift = shift if beta is None else shift + beta
        if not transposed:
            wide = w.double() * scale.view(-1, *(1,) * (w.dim() - 1))
        else:  # (C_in, C_out/groups, …): the groups of output channels lie along the first axis
            wide = w.double().unflatten(0, (groups, -1)) * scale.view(groups, 1, -1, *(1,) * (w.dim() - 2))
            wide = wide.flatten(0, 1)
        return wide.to(w.dtype), shift.to(w.dtype)


# -------------------------------------------------------------------------------------------------------- at each call


class _Running:
    """A scope that is running: results not yet fetched, with who is still to fetch them, and the frame it runs in."""

    def __init__(self, scope: Scope, folds: dict[nn.Module, Fold], frame: Any) -> None:
        self.scope, self.folds, self.frame = scope, folds, frame
        self.pending: dict[int, tuple[torch.Tensor, tuple[nn.Module, ...]]] = {}


class _Thread(threading.local):
    def __init__(self) -> None:
        self.scopes: list[_Running] = []
        self.suspended = False


_thread = _Thread()


class Scope:
    """The folds of the convolutions that one module calls; ``enter`` and ``leave`` are hooks of this module."""

    def __init__(self, folds: dict[nn.Module, Fold]) -> None:
        self.folds = folds
        self.broken = False

    def enter(self, module: nn.Module, args: Any) -> None:
        if not torch.compiler.is_compiling():
            folds = {} if module.training or self.broken else self.folds
            _thread.scopes.append(_Running(self, folds, sys._getframe(1)))

    def leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        if torch.compiler.is_compiling():
            return None
        running = _thread.scopes.pop()
        while running.scope is not self:  # one that was interrupted before it could leave
            running = _thread.scopes.pop()
        if output is None or not running.pending:  # None: also after an exception
            return None
        self.broken = True
        warnings.warn(
            f"{type(module).__name__}: a convolution's output did not go where it went when the model was converted; "
            "the call was repeated without folding, and nothing is folded here from now on",
            stacklevel=2,
        )
        with suspended():
            return module.forward(*args, **kwargs)


@contextmanager
def suspended() -> Iterator[None]:
    """Nothing is folded in this thread inside the block."""
    before, _thread.suspended = _thread.suspended, True
    try:
        yield
    finally:
        _thread.suspended = before


def _current() -> _Running | None:
    """The innermost scope whose frame is still below the caller's: one that was interrupted (Ctrl-C) never left."""
    scopes = _thread.scopes
    while scopes:
        frame, wanted = sys._getframe(1), scopes[-1].frame
        while frame is not None and frame is not wanted:
            frame = frame.f_back  # type: ignore[assignment]
        if frame is not None:
            return scopes[-1]
        scopes.pop()
    return None


def fold_now(convolution: nn.Module, x: torch.Tensor) -> Fold | None:
    """What the convolution is to take over in this call."""
    if not _thread.scopes or _thread.suspended or convolution._forward_hooks:
        return None
    if module_hooks._global_forward_hooks or module_hooks._global_forward_pre_hooks:
        return None
    running = _current()
    fold = None if running is None else running.folds.get(convolution)
    return None if fold is None or not fold.possible(x) else fold


def mark(y: torch.Tensor, fold: Fold) -> None:
    """The work of the fold's modules is done in y."""
    _thread.scopes[-1].pending[id(y)] = y, fold.followers


def _fetched(module: nn.Module, x: torch.Tensor) -> bool:
    """Whether the module's work is done in x, which is noted only once."""
    if not _thread.scopes:
        return False
    pending = _thread.scopes[-1].pending
    y, followers = pending.get(id(x), (None, ()))
    if y is not x or followers[0] is not module:
        return False
    if len(followers) == 1:
        del pending[id(x)]
    else:
        pending[id(x)] = x, followers[1:]
    return True


class Follower(nn.Module):
    """A batch normalisation or an activation that hands on what a convolution has done for it."""

    base: type[nn.Module]

    def forward(self, input: Any) -> Any:
        if not torch.compiler.is_compiling() and _fetched(self, input):
            return input
        return super().forward(input)


FOLLOWERS: dict[type[nn.Module], type[Follower]] = {
    theirs: type(
        theirs.__name__, (Follower, theirs), {"__module__": __name__, "__doc__": theirs.__doc__, "base": theirs}
    )
    for theirs in (*NORMS, *ACTIVATIONS)
}
"""PyTorch's class -> ours, which has its name."""

globals().update({ours.__name__: ours for ours in FOLLOWERS.values()})  # where pickle looks for them


def base(module: nn.Module) -> type[nn.Module]:
    """The class that PyTorch gave the module."""
    return module.base if isinstance(module, Follower) else type(module)
