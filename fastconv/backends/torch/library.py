"""The library of custom operators, ``torch.ops.fastconv.*``, and how one is defined.

An operator has four parts: what it computes, on CPU and CUDA tensors alike; the sizes and strides of its result without
data (for ``torch.compile`` and ``torch.export``); its gradient, which calls operators again, so that gradients of
gradients work too; and what ``torch.func.vmap`` makes of it.

PyTorch's way to a custom operator takes about 15 µs, and 45 where its gradient is wanted. Where no tracing and no mode
of PyTorch's watches operators, a call computes at once, or as an ``autograd.Function``, which takes 10.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .again import recorded, unwatched

LIBRARY = torch.library.Library("fastconv", "DEF")


class Operator:
    """``torch.ops.fastconv.name``; call it like a function.

    Inside transforms of ``torch.func`` a call goes through an ``autograd.Function``, because PyTorch's transforms do
    not look into a custom operator's registered gradient.
    """

    def __init__(self, schema: str, compute: Callable[..., Any], shape: Callable[..., Any]) -> None:
        self.name = schema.partition("(")[0]
        self.compute = compute
        LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
        LIBRARY.impl(self.name, compute, "CPU")
        LIBRARY.impl(self.name, compute, "CUDA")
        torch.library.register_fake(f"fastconv::{self.name}", shape, lib=LIBRARY)
        self.op = getattr(torch.ops.fastconv, self.name).default
        self._recorded: Any = None
        self._transformed: Any = None

    def __call__(self, *arguments: Any) -> Any:
        tensors = [a for a in arguments if isinstance(a, torch.Tensor)]
        if unwatched(*tensors):
            return self._recorded.apply(*arguments) if recorded(*tensors) else self.compute(*arguments)
        if torch._C._are_functorch_transforms_active():
            return self._transformed.apply(*arguments)
        return self.op(*arguments)

    def define(self, setup: Callable[..., None], backward: Callable[..., Any], samples: Callable[..., Any]) -> None:
        """The operator's derivative, and its rule for ``vmap``.

        ``setup(ctx, inputs, output)`` keeps what ``backward(ctx, *grads)`` needs. ``samples(size, in_dims,
        *arguments)`` takes the number of samples and where each argument has their axis, and returns the result and
        where it has it.
        """

        def rule(info: Any, in_dims: Any, *arguments: Any) -> Any:
            return samples(info.batch_size, in_dims, *arguments)

        name = f"fastconv::{self.name}"
        torch.library.register_autograd(name, backward, setup_context=setup, lib=LIBRARY)
        torch.library.register_vmap(name, rule, lib=LIBRARY)
        self._transformed = _function(
            f"Transformed_{self.name}", forward=self.op, setup_context=setup, backward=backward, vmap=rule
        )

        def forward(ctx: Any, *arguments: Any) -> Any:
            result = self.compute(*arguments)
            setup(ctx, arguments, result)
            return result

        self._recorded = _function(f"Recorded_{self.name}", forward=forward, backward=backward)


def _function(name: str, **methods: Callable[..., Any]) -> Any:
    """An ``autograd.Function`` with these methods."""
    return type(name, (torch.autograd.Function,), {key: staticmethod(method) for key, method in methods.items()})


def samples_first(t: torch.Tensor, axis: int | None, size: int) -> torch.Tensor:
    """The tensor with the samples' axis in front; one that has none is repeated, without a copy."""
    return t.expand(size, *t.shape) if axis is None else t.movedim(axis, 0)


def as_images(operator: Operator) -> Callable[..., Any]:
    """The rule for ``vmap`` of an operator that treats every image alike: samples are more images."""

    def samples(size: int, in_dims: Any, *arguments: Any) -> Any:
        merged = [
            samples_first(a, axis, size).flatten(0, 1) if isinstance(a, torch.Tensor) else a
            for a, axis in zip(arguments, in_dims, strict=True)
        ]
        results = operator(*merged)
        several = isinstance(results, tuple)
        split = [
            r.unflatten(0, (size, -1)) if r.dim() > 1 else r.expand(size, *r.shape)  # no indices: nothing to split
            for r in (results if several else (results,))
        ]
        return (tuple(split), (0,) * len(split)) if several else (split[0], 0)

    return samples
