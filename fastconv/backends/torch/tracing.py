"""The graph of a module's ``forward``, by ``torch.fx``, with convolutions that do the work of what follows them.

A fold is made where a convolution's output goes to a batch normalisation alone, its output into a sum alone, the sum to
an activation alone, or to some of these in this order:

    x ── conv ── norm ──┐                           x ───────────────┐
                        + ── relu ── y        →                      fold ── y
    x ── shortcut ──────┘                           x ── shortcut ───┘

The fold stands where the sum stood (where the convolution stood, if there is no sum). Submodules that contain
convolutions are part of the graph if they can be traced themselves; all others are called as they are.

A graph is what ``forward`` did when it was traced. What it read of its modules is remembered, and :meth:`Graph.same`
says whether all of that is as it was. A ``forward`` that does more than compute is not traced: one that changes
attributes, reads global variables that may change, makes random numbers, or runs under its own autocast.
"""

from __future__ import annotations

import inspect
import logging
import operator
import random
import time
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import fx, nn

from .folding import ACTIVATIONS, FUNCTIONS, NORMS, Fold, observed

_BASIC = frozenset(nn.Module().__dict__) | {"_fastconv"}
"""The attributes that every module has, and ours."""


def is_convolution(module: nn.Module) -> bool:
    """Whether a module is a converted convolution."""
    return getattr(type(module), "folds", False)


def own_class(module: nn.Module) -> Any:
    """The class that a module had before it was converted."""
    return getattr(type(module), "fastconv_base", type(module))


class NotTraced(Exception):
    """The reason why a module has no graph."""


# ------------------------------------------------------------------------------------------------------------ tracing


class _Tracer(fx.Tracer):
    def __init__(self, inlined: set[nn.Module]) -> None:
        super().__init__()
        self.inlined = inlined
        self.proxy_buffer_attributes = True
        self.state = _state()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return m not in self.inlined

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        """Symbols for the arguments that every call brings; the others have their defaults."""
        _, *parameters = inspect.signature(root_fn).parameters.values()
        needed = [p for p in parameters if p.default is p.empty and p.kind <= p.POSITIONAL_OR_KEYWORD]
        return root_fn, [self.root, *(self.create_proxy("placeholder", p.name, (), {}) for p in needed)]

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if _state() != self.state:
            raise NotTraced("it changes autocast or the gradient mode")
        return super().create_node(*args, **kwargs)

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, (dict, list, tuple)) and type(a) not in (dict, list, tuple, torch.Size):
            raise NotTraced(f"it makes a {type(a).__name__}")
        return super().create_arg(a)


def _state() -> tuple[Any, ...]:
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), *map(torch.is_autocast_enabled, ("cpu", "cuda"))


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
            after = {**m.__dict__, "training": d["training"]}
            changed += [name for name in {**d, **after} if d.get(name) is not after.get(name)]
            m.__dict__.clear()
            m.__dict__.update(d)
            for name, kept in contents[m].items():
                if not _same(kept, d[name]):
                    changed.append(name)
                    d[name].clear()
                    (d[name].extend if isinstance(kept, list) else d[name].update)(kept)
    if changed:
        raise NotTraced(f"it changes self.{changed[0]}")


def _same(a: Any, b: Any) -> bool:
    pairs: list[Any] = [(a.keys(), b.keys()), (a.values(), b.values())] if isinstance(a, dict) else [(a, b)]
    return len(a) == len(b) and all(
        x is y or (isinstance(x, str) and x == y) for p, q in pairs for x, y in zip(p, q, strict=True)
    )


_CONSTANT = (int, float, str, bool, types.NoneType, torch.dtype)
_HARMLESS = (types.ModuleType, type, logging.Logger)


def _variables(forward: Any) -> list[tuple[Any, str, Any]]:
    """The global constants that a function reads: where they are, their names, their values."""
    function = inspect.unwrap(forward)
    if not isinstance(function, types.FunctionType):
        return []
    read = inspect.getclosurevars(function)
    for name, value in {**read.globals, **read.nonlocals, **read.builtins}.items():
        if value in (random, time) if isinstance(value, types.ModuleType) else value is print:
            raise NotTraced(f"it uses {name}")
        if not (isinstance(value, (*_CONSTANT, *_HARMLESS)) or callable(value)):
            raise NotTraced(f"it reads the variable {name}")
    return [(function.__globals__, n, v) for n, v in read.globals.items() if isinstance(v, _CONSTANT)]


def _names(d: dict[str, Any]) -> int:
    return len(d) - ("_fastconv" in d)


class _Seen:
    """A module as it was when it was traced."""

    def __init__(self, module: nn.Module) -> None:
        d = module.__dict__
        self.module, self.kind, self.names, self.children = module, own_class(module), _names(d), dict(d["_modules"])
        self.forward: Any = self.kind.forward
        self.variables = _variables(self.forward)
        self.own = {n: v for n, v in d.items() if n not in _BASIC}
        self.contents = {n: v.copy() for n, v in self.own.items() if isinstance(v, (list, dict, set))}
        self.missing = self._missing()

    def _missing(self) -> list[str]:
        d = self.module.__dict__
        if not d["_parameters"] and not d["_buffers"]:
            return []
        return [name for part in (d["_parameters"], d["_buffers"]) for name, t in part.items() if t is None]

    def same(self) -> bool:
        """Whether all that a trace may have read is still so."""
        m, d = self.module, self.module.__dict__
        if own_class(m) is not self.kind or self.kind.forward is not self.forward or _names(d) != self.names:
            return False
        if d["_modules"] != self.children or self._missing() != self.missing:
            return False
        for name, value in self.own.items():
            if name not in d or d[name] is not value:
                return False
        for name, kept in self.contents.items():
            if not _same(kept, d[name]):
                return False
        return not self.variables or all(names.get(n) is v for names, n, v in self.variables)


class Graph:
    """A module's ``forward`` with folds, as a function: ``run(module, *tensors)``."""

    def __init__(self, module: nn.Module, inlined: set[nn.Module]) -> None:
        if isinstance(module, torch.jit.ScriptModule):
            raise NotTraced("it is TorchScript")
        if "forward" in module.__dict__:
            raise NotTraced("it is not its class's")
        tracer = _Tracer({m for m in inlined if not observed(m)})
        try:
            with _watched(module):
                graph = tracer.trace(module)
        except NotTraced:
            raise
        except Exception as error:  # whatever a forward may raise that meets symbols instead of tensors
            raise NotTraced(f"it cannot be traced: {str(error).partition(chr(10))[0]}") from None
        self.folds = _fold_all(graph, dict(module.named_modules(remove_duplicate=False)))
        self.arity = sum(node.op == "placeholder" for node in graph.nodes)
        used = [module, *(m for m in module.modules() if m is not module and m in tracer.inlined)]
        self.seen = [_Seen(m) for m in used]
        self.inlined = used[1:]
        code = graph.python_code("self")
        names = dict(code.globals)
        exec(code.src, names)
        self.run: Callable[..., Any] = names["forward"]
        self.checked = False
        """Whether a call has shown that the result is the module's own."""

    def unobserved(self) -> bool:
        """Whether no module of the graph trains or is watched."""
        return not any(m.training or observed(m) for m in self.inlined)

    def same(self) -> bool:
        """Whether the modules are as they were."""
        return all(seen.same() for seen in self.seen)


# -------------------------------------------------------------------------------------------------------------- folds

_SUMS = {operator.add, operator.iadd, torch.add, "add", "add_"}
_IN_PLACE = {
    operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ifloordiv, operator.imod, operator.ipow,
    operator.setitem,
}  # fmt: skip


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
            if node.target in _IN_PLACE or name.endswith("_") or "inplace" in node.kwargs or "out" in node.kwargs:
                return True
        node = node.next
    return False
