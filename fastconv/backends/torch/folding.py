"""Batch normalisation, a residual and an activation folded into the convolution before them.

    y = activation(scale * (w * x + b - mean) + beta + residual)
      = activation((scale w) * x + (scale (b - mean) + beta) + residual),    scale = gamma / sqrt(var + eps)

*Where* is found once, in the graph of the module that calls all of them (:mod:`.tracing`). *Whether* is decided anew at
each call: a fold takes over in eval mode, with no gradients wanted, and without hooks that would see what lies between.
In every other case the modules of a fold run one after another, as they are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

ACTIVATIONS: dict[Any, str] = {
    nn.ReLU: "relu", nn.ReLU6: "relu6", nn.LeakyReLU: "leaky_relu", nn.SiLU: "silu", nn.GELU: "gelu",
    nn.Sigmoid: "sigmoid", nn.Tanh: "tanh", nn.Hardswish: "hardswish",
}  # fmt: skip
FUNCTIONS: dict[Any, str] = {
    F.relu: "relu", torch.relu: "relu", torch.relu_: "relu", F.relu6: "relu6", F.silu: "silu", F.gelu: "gelu",
    torch.sigmoid: "sigmoid", F.sigmoid: "sigmoid", torch.tanh: "tanh", F.tanh: "tanh", F.hardswish: "hardswish",
    "relu": "relu", "relu_": "relu", "sigmoid": "sigmoid", "tanh": "tanh",
}  # fmt: skip
"""Functions, and methods of tensors, that are activations when they are given nothing else."""
NORMS: dict[type[nn.Module], int] = {nn.BatchNorm1d: 1, nn.BatchNorm2d: 2, nn.BatchNorm3d: 3}


def observed(module: nn.Module) -> bool:
    """Whether somebody wants to know when the module is called."""
    d = module.__dict__
    hooks = d["_forward_hooks"] or d["_forward_pre_hooks"] or d["_backward_hooks"] or d["_backward_pre_hooks"]
    return bool(hooks) or "forward" in d


class Fold:
    """A convolution with what it takes over: a batch normalisation, the sum with a residual, an activation, or several.

    ``add(y, residual)`` is the sum as the module has it; ``activation`` a module, or a function of one tensor.
    """

    __module__ = __name__  # torch.fx asks a function's module and name

    def __init__(self, convolution: Any, norm: Any, add: Any, activation: Any, function: str | None) -> None:
        self.convolution, self.norm, self.add, self.activation = convolution, norm, add, activation
        self.function = function
        """The name of an activation that is no module."""
        self.modules = convolution, *self.followers
        self.__name__ = "fold"

    @property
    def followers(self) -> tuple[nn.Module, ...]:
        """The modules whose work is taken over."""
        return tuple(m for m in (self.norm, self.activation) if isinstance(m, nn.Module))

    @property
    def parameters(self) -> tuple[torch.Tensor, ...]:
        """Those of all its modules."""
        return tuple(p for m in self.modules for p in m._parameters.values() if p is not None)

    @property
    def tensors(self) -> tuple[torch.Tensor | None, ...]:
        """What the folded weights are computed from besides the convolution's own, and the count of batches: PyTorch
        updates running statistics without counting a new version of them."""
        if self.norm is None:
            return ()
        p, b = self.norm._parameters, self.norm._buffers  # an attribute of a module takes four times as long
        return p.get("weight"), p.get("bias"), *map(b.get, ("running_mean", "running_var", "num_batches_tracked"))

    def __call__(self, x: Any, residual: Any = None) -> Any:
        y = self.convolution.planned(x, self, residual)
        if y is not NotImplemented:
            return y
        y = self.convolution(x)
        if self.norm is not None:
            y = self.norm(y)
        if self.add is not None:
            y = self.add(y, residual)
        return y if self.activation is None else self.activation(y)

    def activation_name(self) -> str | None:
        """None also for parameters that fastconv's activation does not have."""
        if self.activation is None or self.function is not None:
            return self.function
        own = self.activation.__dict__  # an attribute that a module lacks takes a microsecond
        if own.get("approximate", "none") != "none" or own.get("negative_slope", 0.01) != 0.01:
            return None
        return ACTIVATIONS[type(self.activation)]

    def undisturbed(self) -> bool:
        """Whether the followers do now what they do in eval mode, unobserved, and kernels have their activation."""
        for m in self.modules:
            if observed(m):
                return False
        if self.activation is not None and self.activation_name() is None:
            return False
        norm = self.norm
        if norm is None:
            return True
        return not norm.training and "weight" in norm._parameters and "bias" in norm._parameters

    def possible(self, x: Any, residual: Any) -> bool:
        """Whether that is so, and a kernel can do it for these tensors."""
        if not self.undisturbed():
            return False
        if self.add is not None and not (
            residual.dtype is x.dtype and residual.device == x.device and residual.layout is torch.strided
            and not torch.is_autocast_enabled(x.device.type)
        ):  # fmt: skip
            return False
        if self.norm is None:
            return True
        _, _, mean, var, batches = self.tensors
        if mean is None or var is None or batches is None or mean.device != x.device:
            return False
        return mean.dtype is x.dtype or mean.dtype is torch.float32

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
