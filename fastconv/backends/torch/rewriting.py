"""Modules whose ``forward`` runs as its graph with folds (:mod:`.tracing`) where only the numbers are wanted.

The graph runs in eval mode, without gradients, on plain tensors; the first such call of each dtype, device and mode
also runs PyTorch's modules and compares. Everything else (training, ``torch.compile``, hooks on a
module of the graph, other arguments) goes to ``forward`` itself. Where the modules are not as they were when they were
traced, they are traced anew.
"""

from __future__ import annotations

import functools
import random
import threading
import warnings
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as module_hooks

from . import layers
from .again import only_numbers
from .folding import observed
from .reading import NotTraced, State
from .tracing import Graph, is_convolution, state

_tracing = threading.RLock()
"""torch.fx stands in for every module's call while it traces."""

TRACES = 4
"""How often a module is traced before it is left as it is: it changes itself."""


class Folding:
    """What a rewritten module remembers. Copies and pickles of the module trace it again."""

    def __init__(self, graph: Graph | None = None) -> None:
        self.graph, self.traces = graph, int(graph is not None)
        self.reason: str | None = None
        """Why nothing is folded any more."""

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: Any) -> None:
        Folding.__init__(self)

    def current(self, module: nn.Module) -> Graph | None:
        """The graph of the module as it is now; None where it has none."""
        if self.reason is not None:
            return None
        if self.graph is not None and self.graph.same():
            return self.graph
        with _tracing:
            return self._traced(module)

    def _traced(self, module: nn.Module) -> Graph | None:
        if self.graph is not None and self.graph.same():  # another thread was quicker
            return self.graph
        try:
            if self.traces == TRACES:
                raise NotTraced(f"it changed after each of {TRACES} times it was traced")
            self.traces += 1
            found, reasons = graphs(module)
            if module not in found:
                raise NotTraced(reasons.get(module, "none of its convolutions is fastconv's"))
            self.graph = found[module]
        except NotTraced as error:
            self.graph, self.reason = None, str(error)
        return self.graph


class Rewritten(nn.Module):
    """A module that folds; its class is made by :func:`rewritten`."""

    fastconv_base: type[nn.Module]
    """The module's own class."""

    def __init_subclass__(cls, **named: Any) -> None:
        """Nothing: its own class may keep a list of its subclasses, and this is none of them."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced: Any = super().__reduce_ex__(protocol)
        made, arguments, *others = reduced
        if made.__name__ == "__newobj__" and arguments[0] is type(self):
            made, arguments = _remade, (self.fastconv_base, *arguments[1:])
        return (made, arguments, *others)


def _remade(kind: Any, *arguments: Any) -> Any:
    made = rewritten(kind)
    return made.__new__(made, *arguments)


@functools.lru_cache(maxsize=256)
def rewritten(kind: Any) -> type[Rewritten]:
    """The subclass of ``kind`` whose ``forward`` folds; it has its name."""
    own = kind.forward

    @functools.wraps(own)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        folding = self.__dict__.get("_fastconv")
        if folding is None or kwargs or self.training or layers.thread.plain or not only_numbers(*args):
            return own(self, *args, **kwargs)
        if folding.graph is not None and folding.graph.module is not self:  # a shallow copy, with modules of its own
            folding = self.__dict__["_fastconv"] = Folding()
        graph = folding.current(self)
        if graph is None or len(args) != graph.arity or not _runs(graph, args):
            return own(self, *args)
        kind = (*[(a.dtype, a.device, a.dim()) for a in args], state())
        if kind not in graph.checked:
            return _check(self, folding, graph, own, args, kind)
        try:
            return graph.run(self, *args)
        except Exception:  # in the module's own words, or not at all
            return own(self, *args)

    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    return type(kind.__name__, (Rewritten, kind), {**names, "fastconv_base": kind, "forward": forward})


def _runs(graph: Graph, args: tuple[Any, ...]) -> bool:
    """Whether a graph may stand for its module now."""
    if any(a is None for a in args) or not graph.unobserved():
        return False
    if torch.is_grad_enabled() and any(p.requires_grad for f in graph.folds for p in f.parameters):
        return False
    h = module_hooks
    return not (
        h._global_forward_hooks or h._global_forward_pre_hooks or h._global_backward_hooks
        or h._global_backward_pre_hooks
    )  # fmt: skip


def _check(
    module: nn.Module, folding: Folding, graph: Graph, own: Any, args: tuple[torch.Tensor, ...], kind: Any
) -> Any:
    """The graph's result, which calls of this kind give from now on, if it is PyTorch's; else PyTorch's."""
    if any(m.training or observed(m) for m in module.modules() if m is not module):
        return own(module, *args)  # who listens, or counts, is not called twice
    copies = [a.clone(memory_format=torch.preserve_format) for a in args]
    before, random_numbers = State(module), _random_states(args)
    with layers.left_to_pytorch():
        expected = own(module, *copies)
    if not before.same(State(module)):
        folding.graph, folding.reason = None, "a call changes the module, or one inside it"
        _write_back(args, copies)
        return expected
    after = _random_states(args)
    _set_random_states(random_numbers)
    try:
        y = graph.run(module, *args)
        wrong = None if _alike([y, *args], [expected, *copies]) else "gives another result"
    except Exception as error:
        wrong = f"fails: {error}"
    _set_random_states(after)
    if wrong is None:
        graph.checked.add(kind)
        return y
    folding.graph, folding.reason = None, f"its graph, as torch.fx traced it, {wrong}"
    warnings.warn(f"{type(module).__name__}: nothing is folded: {folding.reason}", stacklevel=4)
    _write_back(args, copies)
    return expected


def _write_back(args: tuple[torch.Tensor, ...], copies: list[torch.Tensor]) -> None:
    """What PyTorch's modules have changed in the copies of their inputs."""
    for a, c in zip(args, copies, strict=True):
        if not bool(((a == c) | ((a != a) & (c != c))).all()):
            a.copy_(c)


def _random_states(args: tuple[torch.Tensor, ...]) -> list[tuple[Any, Any]]:
    """The states of the generators that a call may use, each with the function that sets it."""
    states: list[tuple[Any, Any]] = [(torch.set_rng_state, torch.get_rng_state()), (random.setstate, random.getstate())]
    devices = {a.device for a in args if a.is_cuda}
    return states + [
        (functools.partial(torch.cuda.set_rng_state, device=device), torch.cuda.get_rng_state(device))
        for device in devices
    ]


def _set_random_states(states: list[tuple[Any, Any]]) -> None:
    for put, generator in states:
        put(generator)


def _alike(a: Any, b: Any) -> bool:
    """Whether two results have the same structure, and tensors differ by no more than roundings may have done."""
    if type(a) is not type(b):
        return False
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(_alike, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_alike(a[k], b[k]) for k in a)
    if not isinstance(a, torch.Tensor):
        return bool(a is b or a == b)
    if a.shape != b.shape or a.dtype is not b.dtype or not a.is_floating_point() or not a.numel():
        return a.shape == b.shape and a.dtype is b.dtype
    a, b = a.detach(), b.detach()  # PyTorch warns of numbers that lose their gradients
    finite = b.isfinite()
    low = a.dtype in (torch.float16, torch.bfloat16)
    most = (0.1 if low else 0.01) * float(torch.where(finite, b, 0).abs().max())
    off = float(torch.where(finite, a - b, 0).abs().max())
    return off <= most


def graphs(model: nn.Module) -> tuple[dict[nn.Module, Graph], dict[nn.Module, str]]:
    """The graphs of all modules that contain convolutions, and the reasons why others have none."""
    found: dict[nn.Module, Graph] = {}
    reasons: dict[nn.Module, str] = {}

    def visit(module: nn.Module) -> None:
        for child in called(module):
            visit(child)
        if module in found or module in reasons or is_convolution(module):
            return
        if any(map(is_convolution, module.modules())):
            try:
                found[module] = Graph(module, set(found))
            except NotTraced as error:
                reasons[module] = str(error)

    with _tracing:
        visit(model)
    return found, reasons


def called(module: nn.Module) -> list[nn.Module]:
    """The modules that a module's forward may call: its children, and those in its lists and dictionaries."""
    found = []
    for child in module.children():
        found += called(child) if isinstance(child, (nn.ModuleList, nn.ModuleDict)) else [child]
    return found
