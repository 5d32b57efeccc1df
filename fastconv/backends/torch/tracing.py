"""The graph of a module's ``forward``, by ``torch.fx``, with convolutions that do the work of what follows them.

A fold is made where a convolution's output goes to a batch normalisation alone, its output into a sum alone, the sum to
an activation alone, or to some of these in this order:

    x ── conv ── norm ──┐                           x ───────────────┐
                        + ── relu ── y        →                      fold ── y
    x ── shortcut ──────┘                           x ── shortcut ───┘

The fold stands where the sum stood (where the convolution stood, if there is no sum). Submodules that contain
convolutions are part of the graph if they can be traced themselves; all others are called as they are.

A graph is what ``forward`` did when it was traced. What it read of its modules is remembered (:mod:`.reading`), and
:meth:`Graph.same` says whether all of that is as it was. A ``forward`` that does more than compute with its inputs is
not traced: one that changes attributes, reads global variables that may change, makes random numbers, computes numbers
from tensors of its own, or runs under its own autocast.
"""

from __future__ import annotations

import inspect
import operator
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.overrides import TorchFunctionMode

from .folding import ACTIVATIONS, FUNCTIONS, NORMS, Fold, observed
from .reading import NotTraced, Seen, Variables
from .rows import join


def is_convolution(module: nn.Module) -> bool:
    """Whether a module is a converted convolution."""
    return getattr(type(module), "folds", False)


# ------------------------------------------------------------------------------------------------------------ tracing


def _in_place(name: str) -> Callable[..., Any]:
    """``operator.iadd`` and so on: torch.fx would take ``x += y`` for ``x = x + y``."""
    change = getattr(operator, name)

    def function(a: Any, b: Any) -> Any:
        return change(a, b)

    function.__name__ = function.__qualname__ = name
    return function


_IN_PLACE = {
    name: _in_place(name)
    for name in ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul", "iand", "ior", "ixor")
}


def _recorded(function: Callable[..., Any]) -> Any:
    return lambda proxy, other: proxy.tracer.create_proxy("call_function", function, (proxy, other), {})


_Proxy: Any = type("_Proxy", (fx.Proxy,), {f"__{name}__": _recorded(f) for name, f in _IN_PLACE.items()})


class _Tracer(fx.Tracer):
    def __init__(self, inlined: set[nn.Module]) -> None:
        super().__init__()
        self.inlined = inlined
        self.proxy_buffer_attributes = True
        self.state = state()
        self.thread = threading.get_ident()

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        """torch.fx stands in for every module's call: also for those of other threads, which trace nothing."""
        if threading.get_ident() != self.thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: Any) -> Any:
        if threading.get_ident() != self.thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        result: fx.Proxy = _Proxy(node, self)
        return result

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return m not in self.inlined

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        """Symbols for the arguments that every call brings; the others have their defaults."""
        _, *parameters = inspect.signature(root_fn).parameters.values()
        needed = [p for p in parameters if p.default is p.empty and p.kind <= p.POSITIONAL_OR_KEYWORD]
        return root_fn, [self.root, *(self.create_proxy("placeholder", p.name, (), {}) for p in needed)]

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if state() != self.state:
            raise NotTraced("it changes autocast or the gradient mode")
        return super().create_node(*args, **kwargs)

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, (dict, list, tuple)) and type(a) not in (dict, list, tuple, torch.Size):
            raise NotTraced(f"it makes a {type(a).__name__}")
        return super().create_arg(a)


def state() -> tuple[Any, ...]:
    """The modes on which a ``forward`` may depend."""
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), *map(torch.is_autocast_enabled, ("cpu", "cuda"))


class _NothingElse(TorchFunctionMode):
    """Refuses functions of tensors that do not come from the inputs: their results would stay as they are now."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name not in _ASKS and not any(issubclass(t, fx.Proxy) for t in types):
            raise NotTraced(f"it computes {name} of no input")
        return func(*args, **(kwargs or {}))


_ASKS = {"__get__", "size", "dim", "ndimension", "numel", "is_floating_point", "__len__", "__hash__", "__eq__"}
"""What tells nothing of a tensor's elements."""


@contextmanager
def _no_random_numbers() -> Iterator[None]:
    before = random.getstate(), _numpy_state()
    yield
    after = random.getstate(), _numpy_state()
    if after != before:
        random.setstate(before[0])
        raise NotTraced("it makes random numbers")


def _numpy_state() -> Any:
    state: Any = np.random.get_state()  # noqa: NPY002  # the generator that all code shares
    _, keys, position, *gauss = state
    return bytes(keys), position, gauss


@contextmanager
def _watched(root: nn.Module) -> Iterator[None]:
    """Undo and report what happens to the modules' attributes: a tensor that is kept goes to more places than the graph
    shows."""
    before = {m: dict(m.__dict__) for m in root.modules()}
    contents = {m: {n: v.copy() for n, v in d.items() if isinstance(v, (list, dict, set))} for m, d in before.items()}
    changed = []
    for m in before:
        m.__dict__["training"] = False
    try:
        yield
    finally:
        for m, d in before.items():
            m.__dict__["training"] = d["training"]
            names = [name for name in {**d, **m.__dict__} if d.get(name) is not m.__dict__.get(name)]
            changed += names
            for name in names:
                if name in d:
                    m.__dict__[name] = d[name]
                else:
                    del m.__dict__[name]
            for name, kept in contents[m].items():
                if kept != d[name] if isinstance(kept, set) else not _same_items(kept, d[name]):
                    changed.append(name)
                    d[name].clear()
                    (d[name].extend if isinstance(kept, list) else d[name].update)(kept)
    if changed:
        raise NotTraced(f"it changes self.{changed[0]}")


def _same_items(a: Any, b: Any) -> bool:
    pairs: list[Any] = [(a.keys(), b.keys()), (a.values(), b.values())] if isinstance(a, dict) else [(a, b)]
    return len(a) == len(b) and all(
        x is y or (isinstance(x, str) and x == y) for p, q in pairs for x, y in zip(p, q, strict=True)
    )


class Graph:
    """A module's ``forward`` with folds, as a function: ``run(module, *tensors)``."""

    def __init__(self, module: nn.Module, inlined: set[nn.Module]) -> None:
        if isinstance(module, torch.jit.ScriptModule):
            raise NotTraced("it is TorchScript")
        if "forward" in module.__dict__:
            raise NotTraced("it is not its class's")
        tracer = _Tracer({m for m in inlined if not observed(m)})
        try:
            with _watched(module), _no_random_numbers(), _NothingElse():
                graph = tracer.trace(module)
        except NotTraced:
            raise
        except Exception as error:  # whatever a forward may raise that meets symbols instead of tensors
            raise NotTraced(f"it cannot be traced: {str(error).partition(chr(10))[0]}") from None
        modules: dict[Any, nn.Module] = dict(module.named_modules(remove_duplicate=False))
        self.folds = _fold_all(graph, modules)
        self.rows = join(graph, modules)
        self.arity = sum(node.op == "placeholder" for node in graph.nodes)
        used = [module, *(m for m in module.modules() if m is not module and m in tracer.inlined)]
        self.module = module
        self.variables = Variables()
        for m in used:
            self.variables.add(m)
        self.seen = [Seen(m) for m in used]
        self.inlined = used[1:]
        code = graph.python_code("self")
        names = dict(code.globals)
        exec(code.src, names)
        self.run: Callable[..., Any] = names["forward"]
        self.checked: set[Any] = set()
        """The kinds of calls of which one has shown that the result is the module's own."""

    def unobserved(self) -> bool:
        """Whether no module of the graph trains or is watched."""
        return not any(m.training or observed(m) for m in self.inlined)

    def same(self) -> bool:
        """Whether the modules are as they were."""
        return all(seen.same() for seen in self.seen) and self.variables.same()


# -------------------------------------------------------------------------------------------------------------- folds

_SUMS = {operator.add, _IN_PLACE["iadd"], torch.add, "add", "add_"}


def _fold_all(graph: fx.Graph, modules: dict[Any, nn.Module]) -> list[Fold]:
    """Replace each convolution that has followers, and these, by one call; the folds made."""
    folds = []
    for node in list(graph.nodes):
        if node.op != "call_module" or not is_convolution(modules[node.target]) or len(node.args) != 1:
            continue
        if node.kwargs:
            continue
        last, residual, fold = _chain(modules[node.target], node, modules)
        if last is node:
            continue
        with graph.inserting_before(node if residual is None else last):
            new = graph.call_function(fold, (node.args[0],) if residual is None else (node.args[0], residual))
        last.replace_all_uses_with(new)
        while last is not node:
            previous = next(n for n in last.all_input_nodes if n is not residual)
            graph.erase_node(last)
            last = previous
        graph.erase_node(node)
        folds.append(fold)
    return folds


def _chain(convolution: Any, node: fx.Node, modules: dict[Any, nn.Module]) -> tuple[fx.Node, Any, Any]:
    """The last node of those that the convolution takes over, the residual's node if there is one, and the fold."""
    last, norm, add, residual, activation, function = node, None, None, None, None, None
    following = _only_user(last)
    module = _module(following, modules)
    if NORMS.get(type(module)) == convolution.rank:
        if module.num_features != convolution.out_channels:
            return node, None, None
        last, norm, following = following, module, _only_user(following)
    other = _other(following, last) if convolution.adds else None
    if other is not None and not _changes_between(node, following, modules):
        add = _call(following) if following.args[0] is last else _turned(_call(following))
        last, residual, following = following, other, _only_user(following)
    module = _module(following, modules)
    if type(module) in ACTIVATIONS:
        last, activation = following, module
    elif _is_activation(following, last):
        last, activation, function = following, _call(following), FUNCTIONS[following.target]
    return last, residual, Fold(convolution, norm, add, activation, function)


def _only_user(node: Any) -> Any:
    """The one node that a node's result goes to."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def _module(node: Any, modules: dict[Any, nn.Module]) -> Any:
    """The module that a node calls with one tensor."""
    plain = node is not None and node.op == "call_module" and len(node.args) == 1 and not node.kwargs
    return modules[node.target] if plain else None


def _other(node: Any, summand: fx.Node) -> Any:
    """What a node adds to a summand, if it adds two tensors."""
    if node is None or node.op == "call_module" or node.target not in _SUMS or node.kwargs or len(node.args) != 2:
        return None
    a, b = node.args
    if node.target in (_IN_PLACE["iadd"], "add_") and a is not summand:
        return None  # others may see that the residual changes
    other = b if a is summand else a
    return other if isinstance(other, fx.Node) and other is not summand else None


def _is_activation(node: Any, input: fx.Node) -> bool:
    known = node is not None and node.op in ("call_function", "call_method") and node.target in FUNCTIONS
    return known and node.args == (input,) and not node.kwargs.keys() - {"inplace"}


def _call(node: fx.Node) -> Callable[..., Any]:
    if isinstance(node.target, str):
        name = node.target
        return lambda x, *others: getattr(x, name)(*others)
    return partial(node.target, **node.kwargs)


def _turned(add: Callable[..., Any]) -> Callable[..., Any]:
    return lambda y, residual: add(residual, y)


def _changes_between(start: fx.Node, end: fx.Node, modules: dict[Any, nn.Module]) -> bool:
    """Whether a tensor may be changed in place between two nodes: what is computed later would see it."""
    node = start.next
    while node is not end:
        if node.op == "call_module":
            module = modules[node.target]
            known = type(module).__module__.startswith(("torch.nn.modules.", "fastconv.backends.torch."))
            if not known or getattr(module, "inplace", False):
                return True
        elif node.op in ("call_function", "call_method"):
            name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "_")
            if (
                node.target in _IN_PLACE.values()
                or name.endswith("_")
                or "inplace" in node.kwargs
                or "out" in node.kwargs
            ):
                return True
        node = node.next
    return False
