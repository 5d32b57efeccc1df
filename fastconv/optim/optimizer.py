"""Optimisers, with PyTorch's names, defaults and update rules.

Updates are made in place, in the arrays' own module. On the CPU they run over blocks that stay in the L2 cache, because
an update is a dozen array operations on the same few arrays.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..autograd import Array, Tensor, array_module, on_device
from ._checks import at_least_zero, in_range

_BLOCK_ELEMENTS = 1 << 15  # of 2^13 to 2^17 the fastest for Adam: five arrays of 128 KB


class Optimizer:
    """Base class: holds parameters, their state and the learning rate ``lr``, which may be set between steps.

    A sub-class names its state arrays in ``_slots()`` and defines ``_update``.
    """

    def __init__(self, parameters: Iterable[Tensor], lr: float) -> None:
        if isinstance(parameters, Tensor):
            raise TypeError("parameters must be a list of Tensors, got a single one; write [parameter]")
        self.parameters = list(parameters)
        if not self.parameters:
            raise ValueError("parameters is empty: nothing to optimise")
        for i, parameter in enumerate(self.parameters):
            if not isinstance(parameter, Tensor):
                raise TypeError(f"parameters must be Tensors, got {type(parameter).__name__} as number {i}")
            if parameter.node is not None:
                raise ValueError(
                    f"parameter {i} is the result of a call, which gets no gradient of its own; pass a leaf"
                )
        if not any(parameter.requires_grad for parameter in self.parameters):
            raise ValueError("parameters holds none that requires a gradient: nothing to optimise")
        if len({id(parameter) for parameter in self.parameters}) < len(self.parameters):
            raise ValueError("parameters lists one Tensor twice: it would be updated twice a step")
        self.lr = at_least_zero("lr", lr)
        self.steps = [0] * len(self.parameters)
        """Updates that each parameter has had."""
        self.state: list[dict[str, Array]] = [{} for _ in self.parameters]

    def zero_grad(self) -> None:
        """Forget the gradients of all parameters."""
        for parameter in self.parameters:
            parameter.grad = None

    def step(self) -> None:
        """Update every parameter that has a gradient, in place."""
        for i, parameter in enumerate(self.parameters):
            if parameter.grad is None:
                continue
            with on_device(parameter):
                self._step(i, parameter)

    def _step(self, i: int, parameter: Tensor) -> None:
        state = self.state[i]
        for name in self._slots():
            if name not in state:
                state[name] = array_module(parameter.data).zeros_like(parameter.data)
        arrays = [parameter.data, parameter.grad, *(state[name] for name in self._slots())]
        self.steps[i] += 1
        for block in _blocks(arrays):
            self._update(self.steps[i], *block)

    def _slots(self) -> tuple[str, ...]:
        """Names of the arrays, of a parameter's shape, that are kept with it."""
        return ()

    def _update(self, step: int, work: Array, p: Array, g: Array, *state: Array) -> None:
        """Change a block of a parameter and of its state in place, given its gradient, which stays as it is.

        ``work`` has the block's shape and no meaning. ``step`` counts from 1.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define an update")

    def state_dict(self) -> dict[str, Any]:
        """Options and updates made, as plain values, and copies of the state ``arrays`` by ``"number.name"``."""
        private = ("parameters", "steps", "state")
        options = {name: value for name, value in vars(self).items() if name not in private}
        arrays = {}
        for i, slots in enumerate(self.state):
            for name, array in slots.items():
                with on_device(array):
                    arrays[f"{i}.{name}"] = array.copy()
        return {"kind": type(self).__name__, "options": options, "steps": list(self.steps), "arrays": arrays}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state_dict` returned, learning rate and options included.

        Raises
        ------
        ValueError : the state is another optimiser's or for other parameters; nothing is changed then.
        """
        if state["kind"] != type(self).__name__:
            raise ValueError(f"state is of {state['kind']}, this optimiser is {type(self).__name__}")
        if len(state["steps"]) != len(self.parameters):
            raise ValueError(
                f"state is for {len(state['steps'])} parameters, this optimiser has {len(self.parameters)}"
            )
        slots: list[dict[str, Array]] = [{} for _ in self.parameters]
        for key, array in state["arrays"].items():
            number, _, name = key.partition(".")
            data = self.parameters[int(number)].data
            if array.shape != data.shape:
                raise ValueError(f"state {key} has shape {array.shape}, parameter {number} has {data.shape}")
            with on_device(data):
                slots[int(number)][name] = array_module(data).array(array, dtype=data.dtype)  # a copy
        self.state, self.steps = slots, list(state["steps"])
        for name, value in state["options"].items():
            setattr(self, name, tuple(value) if isinstance(value, list) else value)

    def __repr__(self) -> str:
        options = {k: v for k, v in vars(self).items() if k not in ("parameters", "steps", "state")}
        return f"{type(self).__name__}({', '.join(f'{k}={v}' for k, v in options.items())})"


class SGD(Optimizer):
    """Stochastic gradient descent, with momentum if asked for.

    >>> from fastconv import Tensor, optim
    >>> w = Tensor([1.0], requires_grad=True)
    >>> opt = optim.SGD([w], lr=0.1)
    >>> for _ in range(3):
    ...     opt.zero_grad()
    ...     (w * w).sum().backward()
    ...     opt.step()
    >>> w.data.round(3)
    array([0.512])

    v ← momentum·v + (1 - dampening)·g, then p ← p - lr·v, with g ← g + weight_decay·p before; v starts as g.

    Parameters
    ----------
    parameters : leaf Tensors, such as ``model.parameters()``.
    lr : learning rate, ≥ 0.
    momentum : ≥ 0.
    dampening : of the gradient's share in the velocity, 0 ≤ dampening ≤ 1.
    weight_decay : factor of the L2 penalty's gradient, ≥ 0.
    nesterov : look ahead: step by g + momentum·v; needs momentum and no dampening.

    Raises
    ------
    ValueError : a value out of range; names the parameter.

    Source: Sutskever et al., On the importance of initialization and momentum, ICML 2013.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        super().__init__(parameters, lr)
        self.momentum = at_least_zero("momentum", momentum)
        self.dampening = in_range("dampening", dampening, 0, 1)
        self.weight_decay = at_least_zero("weight_decay", weight_decay)
        self.nesterov = bool(nesterov)
        if nesterov and (momentum == 0 or dampening != 0):
            raise ValueError(f"nesterov needs momentum > 0 and dampening = 0, got {momentum} and {dampening}")

    def _slots(self) -> tuple[str, ...]:
        return ("velocity",) if self.momentum else ()

    def _update(self, step: int, work: Array, p: Array, g: Array, *state: Array) -> None:
        xp = array_module(p)
        if self.weight_decay:
            g = _plus_multiple(g, p, self.weight_decay, work)
        if state:
            (v,) = state
            v *= self.momentum
            v += g if step == 1 or not self.dampening else (1 - self.dampening) * g
            g = g + self.momentum * v if self.nesterov else v
        xp.multiply(g, self.lr, out=work)
        p -= work


class Adam(Optimizer):
    """Adam: steps of the gradient's running mean over the root of its running mean square.

    >>> from fastconv import Tensor, optim
    >>> w = Tensor([1.0, -3.0], requires_grad=True)
    >>> opt = optim.Adam([w], lr=0.1)
    >>> (w * w).sum().backward()
    >>> opt.step()
    >>> w.data.round(3)
    array([ 0.9, -2.9])

    Parameters
    ----------
    parameters : leaf Tensors, such as ``model.parameters()``.
    lr : learning rate, ≥ 0: about the size of a step.
    betas : decay of the two running means, each 0 ≤ beta < 1.
    eps : added to the root, ≥ 0.
    weight_decay : factor of the L2 penalty's gradient, ≥ 0.
    amsgrad : divide by the largest mean square so far.

    Raises
    ------
    ValueError : a value out of range; names the parameter.

    Source: Kingma and Ba, Adam, arXiv:1412.6980; amsgrad: Reddi et al., ICLR 2018.
    """

    # The running means are kept without their factors 1 - beta, as m/(1 - β1) and v/(1 - β2): two passes fewer. The
    # factors join the bias correction, which is a number.

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
    ) -> None:
        super().__init__(parameters, lr)
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas must be two numbers, each at least 0 and below 1, got {betas}")
        self.betas = (float(betas[0]), float(betas[1]))
        self.eps = at_least_zero("eps", eps)
        self.weight_decay = at_least_zero("weight_decay", weight_decay)
        self.amsgrad = bool(amsgrad)

    def _slots(self) -> tuple[str, ...]:
        return ("sum", "square_sum", "max_square_sum") if self.amsgrad else ("sum", "square_sum")

    def _update(self, step: int, work: Array, p: Array, g: Array, *state: Array) -> None:
        if self.weight_decay:
            g = self._decay(p, g, work)
        xp = array_module(p)
        beta1, beta2 = self.betas
        m, v = state[:2]
        m *= beta1
        m += g
        v *= beta2
        xp.multiply(g, g, out=work)
        v += work
        if self.amsgrad:
            v = xp.maximum(state[2], v, out=state[2])
        root = math.sqrt((1 - beta2) / (1 - beta2**step))
        rate = self.lr * (1 - beta1) / (1 - beta1**step)
        xp.sqrt(v, out=work)
        work += self.eps / root
        xp.divide(m, work, out=work)
        work *= rate / root
        p -= work

    def _decay(self, p: Array, g: Array, work: Array) -> Array:
        return _plus_multiple(g, p, self.weight_decay, work)


class AdamW(Adam):
    """Adam with weight decay apart from the gradient: p ← p - lr·weight_decay·p, then Adam's step.

    >>> from fastconv import Tensor, optim
    >>> w = Tensor([1.0], requires_grad=True)
    >>> opt = optim.AdamW([w], lr=0.1, weight_decay=0.5)
    >>> (w * w).sum().backward()
    >>> opt.step()
    >>> w.data.round(3)
    array([0.85])

    Parameters are Adam's, ``weight_decay`` 0.01 by default.

    Source: Loshchilov and Hutter, Decoupled weight decay regularization, arXiv:1711.05101.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
    ) -> None:
        super().__init__(parameters, lr, betas, eps, weight_decay, amsgrad)

    def _decay(self, p: Array, g: Array, work: Array) -> Array:
        p *= 1 - self.lr * self.weight_decay
        return g


def _blocks(arrays: Sequence[Array]) -> Iterator[Sequence[Array]]:
    """An array to work in, then the arrays: flat pieces of them if each is one piece of CPU memory, else whole."""
    if not all(type(a) is np.ndarray and a.flags.c_contiguous for a in arrays):
        yield [array_module(arrays[0]).empty_like(arrays[0]), *arrays]
        return
    flat = [a.reshape(-1) for a in arrays]
    size = flat[0].size
    work = np.empty(min(size, _BLOCK_ELEMENTS), flat[0].dtype)
    for i in range(0, size, _BLOCK_ELEMENTS):
        pieces = [a[i : i + _BLOCK_ELEMENTS] for a in flat]
        yield [work[: len(pieces[0])], *pieces]


def _plus_multiple(g: Array, p: Array, factor: float, work: Array) -> Array:
    """g + factor·p, in a new array: ``work`` is needed while this one is."""
    array_module(p).multiply(p, factor, out=work)
    return g + work
