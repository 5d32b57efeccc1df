"""Which convolutions of a module can take over what follows them: its ``forward`` is traced by ``torch.fx``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn

from .folding import ACTIVATIONS, NORMS, Fold, base


class _Tracer(fx.Tracer):
    """Every submodule is one node: only the module's own ``forward`` is looked at."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


class _SideEffect(Exception):
    pass


@contextmanager
def _watched(module: nn.Module) -> Iterator[None]:
    """Undo and report what happens to the module's attributes: a tensor that it keeps goes to more places than the
    graph shows."""
    before = dict(module.__dict__)
    contents = {name: _copied(value) for name, value in before.items() if isinstance(value, (list, dict, set))}
    module.training = False
    try:
        yield
        after = {**module.__dict__, "training": before["training"]}
        changed = [name for name in {**before, **after} if before.get(name) is not after.get(name)]
        changed += [name for name, kept in contents.items() if not _same(kept, before[name])]
    finally:
        module.__dict__.clear()
        module.__dict__.update(before)
        for name, kept in contents.items():
            if not _same(kept, before[name]):
                before[name].clear()
                (before[name].extend if isinstance(kept, list) else before[name].update)(kept)
    if changed:
        raise _SideEffect(f"its forward changes self.{changed[0]}")


def _copied(value: Any) -> Any:
    return value.copy()


def _same(a: Any, b: Any) -> bool:
    pairs: list[Any] = [(a.keys(), b.keys()), (a.values(), b.values())] if isinstance(a, dict) else [(a, b)]
    return len(a) == len(b) and all(
        x is y or (isinstance(x, str) and x == y) for p, q in pairs for x, y in zip(p, q, strict=True)
    )


def folds(module: nn.Module, is_convolution: Callable[[nn.Module], bool]) -> tuple[dict[nn.Module, Fold], str | None]:
    """The folds of the convolutions that ``module`` calls itself, or the reason why its forward cannot be traced."""
    if "forward" in module.__dict__ or isinstance(module, torch.jit.ScriptModule):
        return {}, "its forward is not its class's"
    try:
        with _watched(module):
            graph = _Tracer().trace(module)
    except Exception as error:  # whatever a forward may raise that meets symbols instead of tensors
        return {}, f"its forward cannot be traced: {str(error).partition(chr(10))[0]}"
    found: dict[nn.Module, Fold | None] = {}
    modules = dict(module.named_modules(remove_duplicate=False))
    for node in graph.nodes:
        if node.op != "call_module" or not is_convolution(modules[node.target]):
            continue
        convolution = modules[node.target]
        fold = _fold(convolution, node, modules)
        if convolution in found:  # called more than once: what follows must be the same each time
            fold = _common(found[convolution], fold)
        found[convolution] = fold
    return {convolution: fold for convolution, fold in found.items() if fold is not None}, None


def _common(a: Fold | None, b: Fold | None) -> Fold | None:
    if a is None or b is None or a.norm is not b.norm:
        return None
    if a.activation is b.activation:
        return a
    return Fold(a.norm, None) if a.norm is not None else None


def _fold(convolution: Any, node: fx.Node, modules: dict[str, nn.Module]) -> Fold | None:
    if len(node.args) != 1 or node.kwargs:
        return None  # a transposed convolution that is told its output's size
    norm, activation = None, None
    following, after = _only_user(node, modules)
    if following is not None and NORMS.get(base(following)) == convolution.rank:
        if following.num_features != convolution.out_channels:
            return None
        norm = following
        following, _ = _only_user(after, modules)
    if following is not None and base(following) in ACTIVATIONS:
        activation = following
    return None if norm is None and activation is None else Fold(norm, activation)


def _only_user(node: Any, modules: dict[str, nn.Module]) -> tuple[Any, Any]:
    """The one module that a node's result goes to, as its only argument, and that module's node."""
    if len(node.users) == 1:
        (user,) = node.users
        if user.op == "call_module" and user.args == (node,) and not user.kwargs:
            return modules[user.target], user
    return None, None
