"""Module: a part of a network that owns parameters, buffers and smaller modules.

There is no registration and no attribute magic: a module's parameters are those of its attributes that are
:class:`Parameter`, its children those that are :class:`Module` or lists of them, in the order of assignment.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import numpy as np

from ..autograd import Array, Tensor, array_module, is_floating, on_device

M = TypeVar("M", bound="Module")


class Parameter(Tensor):
    """A Tensor that a module learns: it requires a gradient, and its module's ``parameters()`` lists it.

    >>> from fastconv import nn
    >>> nn.Parameter([1.0, 2.0])
    Parameter([1., 2.], requires_grad=True)
    """

    __slots__ = ()

    def __init__(self, data: Any, requires_grad: bool = True) -> None:
        super().__init__(data, requires_grad)

    def __repr__(self) -> str:
        return "Parameter" + super().__repr__().removeprefix("Tensor")


class Module:
    """Base class of layers and networks: assign parameters and modules as attributes, define ``forward``.

    >>> from fastconv import nn
    >>> class Residual(nn.Module):
    ...     def __init__(self, channels):
    ...         self.conv = nn.Conv2d(channels, channels, 3, padding=1)
    ...     def forward(self, x):
    ...         return x + self.conv(x).relu()
    >>> [name for name, _ in Residual(8).named_parameters()]
    ['conv.weight', 'conv.bias']
    """

    training: bool = True
    buffer_names: tuple[str, ...] = ()
    """Attributes that are arrays to save and move with the parameters, but not learned."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the output; every module defines its own."""
        raise NotImplementedError(f"{type(self).__name__} does not define forward")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with on_device(*args):
            return self.forward(*args, **kwargs)

    # --- what it is made of ------------------------------------------------------------------------------------

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """The modules among the attributes; a list of modules gives ``name.0``, ``name.1``, …"""
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value
            elif isinstance(value, list | tuple):
                yield from ((f"{name}.{i}", item) for i, item in enumerate(value) if isinstance(item, Module))

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """This module, named ``prefix``, and all below it."""
        yield prefix, self
        for name, child in self.named_children():
            yield from child.named_modules(f"{prefix}.{name}" if prefix else name)

    def modules(self) -> Iterator[Module]:
        """This module and all below it."""
        return (module for _, module in self.named_modules())

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Every parameter once, with the path of attributes to it."""
        seen: set[int] = set()
        for path, module in self.named_modules():
            for name, value in vars(module).items():
                if isinstance(value, Parameter) and id(value) not in seen:
                    seen.add(id(value))
                    yield f"{path}.{name}".lstrip("."), value

    def parameters(self) -> Iterator[Parameter]:
        """Every parameter once: what an optimiser takes."""
        return (parameter for _, parameter in self.named_parameters())

    def register_buffer(self, name: str, array: Array | None) -> None:
        """Set an attribute that is saved and moved with the parameters, but not learned."""
        setattr(self, name, array)
        self.buffer_names = (*self.buffer_names, name)

    def named_buffers(self) -> Iterator[tuple[str, Array]]:
        """Every buffer with the path of attributes to it."""
        for path, module in self.named_modules():
            for name in module.buffer_names:
                if getattr(module, name) is not None:
                    yield f"{path}.{name}".lstrip("."), getattr(module, name)

    def buffers(self) -> Iterator[Array]:
        """Every buffer."""
        return (buffer for _, buffer in self.named_buffers())

    # --- modes and gradients -----------------------------------------------------------------------------------

    def train(self: M, mode: bool = True) -> M:
        """Switch to training mode (batch statistics, dropout), here and below; returns self."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self: M) -> M:
        """Switch to evaluation mode, here and below; returns self."""
        return self.train(False)

    def zero_grad(self) -> None:
        """Forget the gradients of all parameters."""
        for parameter in self.parameters():
            parameter.grad = None

    # --- saving and moving -------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Array]:
        """Copies of all parameters and buffers, by name."""
        arrays = {name: parameter.data for name, parameter in self.named_parameters()} | dict(self.named_buffers())
        return {name: _copy(array) for name, array in arrays.items()}

    def load_state_dict(self, state: Mapping[str, Any], *, strict: bool = True) -> None:
        """Copy values into the parameters and buffers, converted to their dtype and device.

        Parameters
        ----------
        state : arrays by name, as :meth:`state_dict` returns them.
        strict : whether names that are missing, or not the module's, are errors.

        Raises
        ------
        TypeError : state is no mapping.
        ValueError : listing every missing and unexpected name and every wrong shape; nothing is changed then.
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"state must be a mapping of names to arrays, got {type(state).__name__}")
        targets = {name: parameter.data for name, parameter in self.named_parameters()} | dict(self.named_buffers())
        problems = []
        if strict:
            if missing := [name for name in targets if name not in state]:
                problems.append(f"missing: {', '.join(missing)}")
            if unexpected := [name for name in state if name not in targets]:
                problems.append(f"unexpected: {', '.join(unexpected)}")
        shapes = {name: tuple(np.shape(state[name])) for name in targets if name in state}
        problems += [
            f"{name}: shape {shape} given, {targets[name].shape} needed"
            for name, shape in shapes.items()
            if shape != targets[name].shape
        ]
        if problems:
            raise ValueError(f"state does not fit {type(self).__name__}: " + "; ".join(problems))
        for name in shapes:
            target, value = targets[name], state[name]
            if array_module(target) is np and array_module(value) is not np:
                value = value.get()
            with on_device(target):
                target[...] = array_module(target).asarray(value)

    def to(self: M, device: str | None = None, dtype: Any = None) -> M:
        """Move parameters and buffers to a device, or convert those that are floating-point; returns self.

        Move a model before making its optimiser: state that an optimiser already holds stays where it is.

        Parameters
        ----------
        device : ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
        dtype : ``"float32"``, ``"float64"``, …

        Raises
        ------
        ImportError : ``"cuda"`` without CuPy (the extra ``fastconv[cuda13]`` or ``fastconv[cuda12]``).
        RuntimeError : ``"cuda"`` without a usable GPU.
        """
        move = _mover(device)
        for module in self.modules():
            for name, value in vars(module).items():
                if isinstance(value, Parameter):
                    value.data = _converted(move(value.data), dtype)
                    value.grad = None if value.grad is None else _converted(move(value.grad), dtype)
                elif name in module.buffer_names and value is not None:
                    setattr(module, name, _converted(move(value), dtype))
        return self

    # --- printing ----------------------------------------------------------------------------------------------

    def extra_repr(self) -> str:
        """What stands between the parentheses of a module without children."""
        return ""

    def __repr__(self) -> str:
        children = "".join(f"\n({name}): {child!r}" for name, child in self.named_children())
        body = children.replace("\n", "\n  ") + "\n" if children else self.extra_repr()
        return f"{type(self).__name__}({body})"


class Sequential(Module):
    """Modules applied one after another.

    >>> import numpy as np
    >>> from fastconv import nn
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    >>> model(np.zeros((5, 1, 8, 8), np.float32)).shape
    (5, 10)

    Indexing gives a module, slicing a Sequential that shares them; parameters are named ``0.weight``, ``1.bias``, …
    """

    def __init__(self, *modules: Module) -> None:
        for i, module in enumerate(modules):
            if not isinstance(module, Module):
                raise TypeError(f"Sequential takes modules, got {type(module).__name__} as number {i}")
        self.layers = list(modules)

    def named_children(self) -> Iterator[tuple[str, Module]]:
        return ((str(i), layer) for i, layer in enumerate(self.layers))

    def forward(self, x: Any) -> Any:
        for layer in self.layers:
            x = layer(x)
        return x

    def append(self, module: Module) -> Sequential:
        """Add a module at the end; returns self."""
        if not isinstance(module, Module):
            raise TypeError(f"Sequential takes modules, got {type(module).__name__}")
        self.layers.append(module)
        return self

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[Module]:
        return iter(self.layers)

    def __getitem__(self, index: int | slice) -> Any:
        return Sequential(*self.layers[index]) if isinstance(index, slice) else self.layers[index]


class Flatten(Module):
    """Merge the axes from ``start_dim`` to ``end_dim`` into one.

    >>> import numpy as np
    >>> from fastconv import nn
    >>> nn.Flatten()(np.zeros((5, 3, 2, 2))).shape
    (5, 12)
    """

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        self.start_dim, self.end_dim = start_dim, end_dim

    def forward(self, x: Any) -> Any:
        start, end = (d + x.ndim if d < 0 else d for d in (self.start_dim, self.end_dim))
        if not 0 <= start <= end < x.ndim:
            raise ValueError(f"Flatten({self.start_dim}, {self.end_dim}) does not fit an input of shape {x.shape}")
        merged = math.prod(x.shape[start : end + 1])
        return x.reshape((*x.shape[:start], merged, *x.shape[end + 1 :]))

    def extra_repr(self) -> str:
        return f"start_dim={self.start_dim}, end_dim={self.end_dim}"


class Identity(Module):
    """The input itself: a place that another module may take.

    >>> from fastconv import nn
    >>> nn.Identity()(3)
    3
    """

    def forward(self, x: Any) -> Any:
        return x


def _copy(array: Array) -> Array:
    with on_device(array):
        return array.copy()


def _mover(device: str | None) -> Any:
    """A function that copies an array to a device, if it is not there."""
    if device is None:
        return lambda array: array
    kind, _, number = device.partition(":")
    if kind == "cpu" and not number:
        return lambda array: array if array_module(array) is np else array.get()
    if kind != "cuda" or not (number.isdecimal() or number == ""):
        raise ValueError(f'device must be "cpu", "cuda" or "cuda:N", got {device!r}')
    try:
        import cupy
    except ImportError:
        raise ImportError(
            f'device "{device}" needs CuPy: python -m pip install "fastconv[cuda12]" or "fastconv[cuda13]", '
            "whichever your CUDA driver supports"
        ) from None
    try:
        index = int(number) if number else cupy.cuda.Device().id
        cupy.cuda.Device(index).compute_capability  # noqa: B018  # fails where there is no such GPU
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise RuntimeError(f'device "{device}" cannot be used: {error}') from error

    def move(array: Array) -> Array:
        with cupy.cuda.Device(index):
            return cupy.asarray(array)

    return move


def _converted(array: Array, dtype: Any) -> Array:
    return array if dtype is None or not is_floating(array.dtype) else array.astype(dtype, copy=False)
