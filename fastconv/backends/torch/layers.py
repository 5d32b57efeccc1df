"""PyTorch's convolution and pooling modules, run by fastconv: the classes that ``convert`` gives to modules.

Each is a subclass of PyTorch's own and adds no parameter and no buffer, so a module changes its class and stays the
same object in everything else: parameters, ``state_dict``, hooks, copies, device moves. A call goes one of three ways:

    a plan        a convolution in eval mode of which only the numbers are wanted: weights are packed ahead, and what
                  follows may be folded in (:mod:`.folding`)
    an operator   with gradients, in training mode, under ``torch.compile``, ``torch.export``, ``torch.func`` …
    PyTorch       what fastconv refuses; the reason is kept for ``explain``

A plan belongs to one shape, format, dtype and number of threads, and to its parameters as they were: it holds on to
their memory and compares it and PyTorch's version counters at each call.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

import fastconv
from fastconv.arrays import empty
from fastconv.settings import current_options, default_threads, get_num_threads

from . import convolutions, functions
from .again import autocast_dtype, only_numbers
from .folding import Fold, observed
from .tensors import array, is_channels_last, on_device, tensor
from .use import refusal

KEPT_PLANS = 4
"""Plans a module keeps: each holds its own packed weights. The oldest goes first."""

UNCOUNTED = "parameters made in inference mode have no version counters, so weights are packed in each call"


class State:
    """What a converted module remembers of its calls. Copies and pickles of the module have no plans."""

    def __init__(self) -> None:
        self.plans: dict[Any, Prepared] = {}
        self.operators = False
        """Whether a call ran outside a plan."""
        self.reason: str | None = None
        """Why the latest call that was left to PyTorch was."""
        self.unfolded: str | None = None
        """Why nothing is folded in: the calling module cannot be traced, or the latest call that did not fold."""

    def __getstate__(self) -> dict[str, Any]:
        return {**State().__dict__, "unfolded": self.unfolded}

    def keep(self, key: Any, prepared: Prepared) -> None:
        self.plans[key] = prepared
        for oldest in list(self.plans)[:-KEPT_PLANS]:
            self.plans.pop(oldest, None)  # another thread may have been quicker


class Prepared:
    """A plan, or the reason why there is none, and what it was made of."""

    def __init__(
        self, plan: Any, reason: str | None, last: bool, tensors: tuple[torch.Tensor | None, ...], parameters: Any
    ) -> None:
        self.plan, self.reason, self.parameters = plan, reason, parameters
        self.low: torch.dtype | None = None
        """What autocast has the input converted to."""
        self.shape: tuple[int, ...] = () if plan is None else plan.logical_output
        self.order = None if not last else (0, len(self.shape) - 1, *range(1, len(self.shape) - 1))
        # The aliases keep the memory from being freed: no other tensor can come to lie where these lay.
        self.seen: list[Any] = [
            (t, None if t is None else t._version, None if t is None else t.detach()) for t in tensors
        ]

    def current(self, tensors: tuple[torch.Tensor | None, ...], parameters: Any) -> bool:
        """Whether these are the tensors and the parameters of then, and nobody has written to the tensors."""
        if parameters != self.parameters:
            return False
        for t, (then, version, alias) in zip(tensors, self.seen, strict=True):
            if t is not then or (t is not None and (t._version != version or not t.is_set_to(alias))):
                return False
        return True

    def __call__(self, x: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
        if x.is_cuda:
            with on_device(x):
                source = array(x)
                y = empty(source, self.shape, "channels_last" if self.order else "channels_first")
                self.plan.run(source, None if residual is None else array(residual), y)
                return tensor(y)
        source = array(x)  # (N, C, *spatial), as the kernels take it, in either format
        if self.order is None:
            y = np.empty(self.shape, source.dtype)
        else:
            n, c, *spatial = self.shape
            y = np.empty((n, *spatial, c), source.dtype).transpose(self.order)
        self.plan.run(source, None if residual is None else array(residual), y)
        return tensor(y)


class _Thread(threading.local):
    plain = False
    """Whether converted modules leave everything to PyTorch."""


thread = _Thread()


@contextmanager
def left_to_pytorch() -> Iterator[None]:
    """Converted modules are PyTorch's in this thread inside the block."""
    thread.plain = True
    try:
        yield
    finally:
        thread.plain = False


class Layer(nn.Module):
    """A converted module."""

    rank: int

    def _state(self) -> State:
        state: State | None = self.__dict__.get("_fastconv")
        if state is None:  # made by its class, not by convert
            state = self.__dict__["_fastconv"] = State()
        return state

    def _call(self, function: Callable[..., Any], tensors: tuple[Any, ...], *parameters: Any, **named: Any) -> Any:
        """The function's result, or NotImplemented where fastconv cannot run it."""
        if thread.plain or not isinstance(tensors[0], torch.Tensor):  # symbols of torch.fx
            return NotImplemented
        reason = refusal([t for t in tensors if t is not None])
        if torch.compiler.is_compiling():
            return NotImplemented if reason else function(*tensors, *parameters, **named)
        state = self._state()
        if reason is None:
            try:
                result = function(*tensors, *parameters, **named)
            except (TypeError, ValueError) as error:  # PyTorch may be able, or says so in its own words
                reason = str(error)
            else:
                state.operators = True
                return result
        state.reason = reason
        return NotImplemented


# ------------------------------------------------------------------------------------------------------- convolutions


class _Convolution(Layer):
    """What convolutions and transposed ones share."""

    groups: int
    stride: Any
    padding: Any
    dilation: Any
    output_padding: Any
    padding_mode: Any
    folds = True
    """Whether what follows can be folded in; :mod:`.tracing` asks."""
    adds = False
    """Whether a residual can be folded in."""

    def planned(self, input: Any, fold: Fold | None = None, residual: Any = None) -> Any:
        """The result of a plan, or NotImplemented where none may be used."""
        prepared = self.prepared(input, fold, residual)
        if prepared is None:
            return NotImplemented
        return prepared(input if prepared.low is None else input.to(prepared.low), residual)

    def prepared(self, input: Any, fold: Fold | None, residual: Any) -> Prepared | None:
        """The plan of such a call, made now if it is new or was made of what is no more; None where it may not be."""
        tensors, parameters = self._made_of(fold)
        if self.training or tensors[0] is None or thread.plain or not only_numbers(input, residual, *tensors):
            return None
        if input.layout is not torch.strided or (fold is not None and not fold.possible(input, residual)):
            return None
        low = autocast_dtype(input)
        threads = default_threads() or (get_num_threads(), current_options())
        device = input.device if input.is_cuda else None
        sum_shape = None if residual is None else residual.shape
        key = (input.shape, input.stride(), input.dtype, device, threads, sum_shape, fold, low)
        state = self.__dict__.get("_fastconv") or self._state()
        prepared: Prepared | None = state.plans.get(key)
        if prepared is None or not prepared.current(tensors, parameters):
            if input.dim() != self.rank + 2:  # no batch dimension
                return None
            if any(t is not None and t.is_inference() for t in tensors):
                state.unfolded = UNCOUNTED
                return None
            prepared = self._prepare(input, *tensors[:2], fold, low, tensors, parameters)
            if residual is not None and prepared.plan is not None and sum_shape != prepared.shape:
                prepared = Prepared(None, f"the residual has shape {tuple(residual.shape)}", False, tensors, parameters)
            prepared.low = low
            state.keep(key, prepared)
        if prepared.plan is None:
            if fold is None:
                state.reason = prepared.reason
            else:
                state.unfolded = prepared.reason
            return None
        return prepared

    def stands(self, prepared: Prepared, fold: Fold | None) -> bool:
        """Whether a call like the one that gave this plan would find it again, its input and modes being alike."""
        tensors, parameters = self._made_of(fold)
        if self.training or (torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)):
            return False
        unchanged = not observed(self) if fold is None else fold.undisturbed()
        return unchanged and prepared.current(tensors, parameters)

    def _made_of(self, fold: Fold | None) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """The tensors, weights and bias first, and the parameters that a plan is made of."""
        own = self._parameters
        w, bias = own.get("weight"), own.get("bias")
        parameters = (
            self.stride, self.padding, self.dilation, self.groups, self.padding_mode, self.output_padding,
            None if fold is None or fold.norm is None else fold.norm.eps,
        )  # fmt: skip
        return (w, bias) if fold is None else (w, bias, *fold.tensors), parameters

    def _prepare(self, x: Any, w: Any, bias: Any, fold: Any, low: Any, *seen: Any) -> Prepared:
        last = is_channels_last(x)
        reason = refusal([x, w, *([] if bias is None else [bias])]) if low is None else refusal([x])
        if reason is not None:
            return Prepared(None, reason, last, *seen)
        activation = None
        if fold is not None:
            activation = fold.activation_name()
            w, bias = fold.weights(w, bias, isinstance(self, TransposedConvolution), self.groups)
        if low is not None:
            w, bias = w.to(low), None if bias is None else bias.to(low)
        size = (x.shape[0], *x.shape[2:], x.shape[1]) if last else tuple(x.shape)
        try:
            if fold is not None and not bool(w.isfinite().all()):
                raise ValueError("the batch normalisation's scale times the weights is not finite")
            with on_device(w):
                plan = self._plan(
                    size, array(w), None if bias is None else array(bias), layout="channels_last" if last else None,
                    activation=activation, **({"residual": True} if fold is not None and fold.add is not None else {}),
                )  # fmt: skip
                if w.is_cuda:
                    torch.cuda.current_stream(w.device).synchronize()  # calls may come on other streams
        except (TypeError, ValueError) as error:
            return Prepared(None, str(error), last, *seen)
        return Prepared(plan, None, last, *seen)

    def _plan(self, size: Any, w: Any, bias: Any, **named: Any) -> Any:
        """A plan for inputs of this size; each kind makes its own."""
        raise NotImplementedError


class Convolution(_Convolution):
    adds = True

    def forward(self, input: Any) -> Any:
        y = self.planned(input)
        if y is NotImplemented:
            y = self._call(
                (functions.conv1d, functions.conv2d, functions.conv3d)[self.rank - 1],
                (input, self.weight, self.bias), self.stride, self.padding, self.dilation, self.groups,
                padding_mode=self.padding_mode,
            )  # fmt: skip
        return super().forward(input) if y is NotImplemented else y

    def _plan(self, size: Any, w: Any, bias: Any, **named: Any) -> Any:
        make = (fastconv.plan_conv1d, fastconv.plan_conv2d, fastconv.plan_conv3d)[self.rank - 1]
        padding = functions._padding(f"conv{self.rank}d", self.padding, None, w, self.stride, self.dilation)
        return make(
            size, w, bias, stride=self.stride, padding=convolutions.pairs(padding), dilation=self.dilation,
            groups=self.groups, padding_mode=self.padding_mode, **named,
        )  # fmt: skip


class TransposedConvolution(_Convolution):
    def forward(self, input: Any, output_size: Any = None) -> Any:
        y = self.planned(input) if output_size is None else NotImplemented
        if y is NotImplemented and self.padding_mode == "zeros" and isinstance(input, torch.Tensor):
            extra = self._output_padding(  # type: ignore[operator]
                input, output_size, self.stride, self.padding, self.kernel_size, self.rank, self.dilation
            )
            y = self._call(
                (functions.conv_transpose1d, functions.conv_transpose2d, functions.conv_transpose3d)[self.rank - 1],
                (input, self.weight, self.bias), self.stride, self.padding, extra, self.groups, self.dilation,
            )  # fmt: skip
        return super().forward(input, output_size) if y is NotImplemented else y

    def _plan(self, size: Any, w: Any, bias: Any, **named: Any) -> Any:
        make = (fastconv.plan_conv_transpose1d, fastconv.plan_conv_transpose2d, fastconv.plan_conv_transpose3d)
        return make[self.rank - 1](
            size, w, bias, stride=self.stride, padding=self.padding, output_padding=self.output_padding,
            dilation=self.dilation, groups=self.groups, **named,
        )  # fmt: skip


# ----------------------------------------------------------------------------------------------------------- poolings


class Pooling(Layer):
    """A pooling; ``arguments`` are the attributes that its function takes after the input, in order."""

    function: Callable[..., Any]
    arguments: tuple[str, ...]

    def values(self) -> tuple[Any, ...]:
        """The arguments as they are now."""
        return tuple([getattr(self, name) for name in self.arguments])

    def forward(self, input: Any) -> Any:
        y = self._call(type(self).function, (input,), *self.values())
        return super().forward(input) if y is NotImplemented else y


class Unpooling(Layer):
    function: Callable[..., Any]
    arguments = ()

    def forward(self, input: Any, indices: Any, output_size: Any = None) -> Any:
        y = self._call(type(self).function, (input,), indices, self.kernel_size, self.stride, self.padding, output_size)
        return super().forward(input, indices, output_size) if y is NotImplemented else y


WINDOW = ("kernel_size", "stride", "padding")
KINDS: dict[str, tuple[type[Layer], str, tuple[str, ...]]] = {
    "Conv": (Convolution, "conv", ()),
    "ConvTranspose": (TransposedConvolution, "conv_transpose", ()),
    "MaxPool": (Pooling, "max_pool", (*WINDOW, "dilation", "ceil_mode", "return_indices")),
    "AvgPool": (Pooling, "avg_pool", (*WINDOW, "ceil_mode", "count_include_pad", "divisor_override")),
    "LPPool": (Pooling, "lp_pool", ("norm_type", "kernel_size", "stride", "ceil_mode")),
    "AdaptiveMaxPool": (Pooling, "adaptive_max_pool", ("output_size", "return_indices")),
    "AdaptiveAvgPool": (Pooling, "adaptive_avg_pool", ("output_size",)),
    "MaxUnpool": (Unpooling, "max_unpool", ()),
}
"""By the stem of the module's name: the class that runs it, the stem of fastconv's function, what that takes."""


def _subclasses() -> dict[type[nn.Module], type[Layer]]:
    """PyTorch's class -> ours, which has its name."""
    classes: dict[type[nn.Module], type[Layer]] = {}
    for stem, (kind, function, arguments) in KINDS.items():
        for rank in (1, 2, 3):
            theirs = getattr(nn, f"{stem}{rank}d", None)  # LPPool3d came with PyTorch 2.5
            if theirs is None:
                continue
            body = {
                "__module__": __name__, "__doc__": f"``torch.nn.{theirs.__name__}`` by fastconv.", "rank": rank,
                "function": staticmethod(getattr(functions, f"{function}{rank}d")),
                "arguments": tuple(a for a in arguments if rank > 1 or a != "divisor_override"),
            }  # fmt: skip
            classes[theirs] = type(theirs.__name__, (kind, theirs), body)
    return classes


CONVERTED = _subclasses()
globals().update({ours.__name__: ours for ours in CONVERTED.values()})  # where pickle looks for them
