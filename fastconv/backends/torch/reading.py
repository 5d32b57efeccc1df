"""What a module's ``forward`` reads besides its inputs: a graph holds for as long as all of that is as it was.

Read are attributes of the module and what lies in them, attributes of its class, and the global constants that
``forward``, or a function that it calls by name, looks up.
"""

from __future__ import annotations

import dis
import functools
import inspect
import logging
import random
import time
import types
from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

_BASIC = frozenset(nn.Module().__dict__) | {"_fastconv"}
"""The attributes that every module has, and ours."""


class NotTraced(Exception):
    """The reason why a module has no graph."""


def own_class(module: nn.Module) -> Any:
    """The class that a module had before it was converted."""
    return getattr(type(module), "fastconv_base", type(module))


# ---------------------------------------------------------------------------------------------------------- attributes

_CONTAINERS = (dict, list, tuple, set, deque)
_CONSTANT = (int, float, str, bool, types.NoneType, torch.dtype)
_OPAQUE = (*_CONSTANT, torch.Tensor, nn.Module, types.ModuleType, types.FunctionType, types.MethodType, type)
_LONGEST = 64
"""Longer containers (labels, vocabularies) are known by their length: no ``forward`` is wired by them."""


def _own(module: nn.Module) -> dict[str, Any]:
    return {n: v for n, v in module.__dict__.items() if n not in _BASIC}


def _contents(values: Any, depth: int = 4) -> list[Any]:
    """All that lies in containers and objects, one after another."""
    found: list[Any] = []
    for value in values:
        found.append(value)
        if isinstance(value, _CONTAINERS):
            found.append(len(value))
            if depth and len(value) <= _LONGEST:
                found += _contents(value, depth - 1)
                if isinstance(value, dict):
                    found += _contents(value.values(), depth - 1)
        elif depth and not isinstance(value, _OPAQUE) and hasattr(value, "__dict__"):
            found += _contents(vars(value).values(), depth - 1)
    return found


def _same(a: list[Any], b: list[Any]) -> bool:
    return len(a) == len(b) and all(
        x is y or (type(x) is type(y) and isinstance(x, _CONSTANT) and x == y) for x, y in zip(a, b, strict=True)
    )


class State:
    """All that a call may change in a module and those inside it."""

    def __init__(self, module: nn.Module) -> None:
        modules = list(module.modules())
        self.contents = _contents([v for m in modules for v in _own(m).values()])
        tensors = [t for m in modules for t in (*m._parameters.values(), *m._buffers.values())]
        tensors += [v for v in self.contents if isinstance(v, torch.Tensor)]
        self.tensors = [t for t in tensors if t is not None]
        self.versions = [0 if t.is_inference() else t._version for t in self.tensors]

    def same(self, other: State) -> bool:
        return (
            _same(self.contents, other.contents)
            and _same(self.tensors, other.tensors)
            and self.versions == other.versions
        )


# ----------------------------------------------------------------------------------------------------------- variables

_HARMLESS = (types.ModuleType, type, logging.Logger)
_FIXED = {"torch", "math", "numpy", "operator", "functools", "itertools", "typing"}
"""Modules whose constants are constant."""
_MODES = {"autocast", "is_autocast_enabled", "is_grad_enabled", "no_grad", "enable_grad", "set_grad_enabled"}


def _names(code: types.CodeType, kind: str = "") -> set[str]:
    """The names that a function and those within it look up: global variables, or these and attributes."""
    inner = [_names(c, kind) for c in code.co_consts if isinstance(c, types.CodeType)]
    if not kind:
        return set(code.co_names).union(*inner)
    return {str(i.argval) for i in dis.get_instructions(code) if i.opname == kind}.union(*inner)


def _plain(value: Any) -> Any:
    """The function behind a method, a property or a decorator."""
    if isinstance(value, property):
        value = value.fget
    elif isinstance(value, functools.partial):
        value = value.func
    value = getattr(value, "__func__", value)
    return inspect.unwrap(value) if isinstance(value, types.FunctionType) else value


def _classes(kind: type) -> Iterator[type]:
    """A class and its bases that are not PyTorch's."""
    return (c for c in kind.__mro__ if c is not object and c.__module__.partition(".")[0] != "torch")


class Variables:
    """The global constants and the attributes of classes that modules' ``forward`` look up, and their values."""

    def __init__(self) -> None:
        self.read: dict[tuple[int, str], tuple[Any, str, Any]] = {}
        self.functions: set[types.FunctionType] = set()

    def add(self, module: nn.Module) -> None:
        kind = own_class(module)
        self._keep(kind, "forward", kind.forward)
        waiting = [kind.forward]
        while waiting:
            function: Any = _plain(waiting.pop())
            if not isinstance(function, types.FunctionType) or function in self.functions:
                continue
            if function.__module__ is not None and function.__module__.partition(".")[0] in ("torch", "fastconv"):
                continue
            self.functions.add(function)
            names = _names(function.__code__)
            for mode in names & _MODES:
                raise NotTraced(f"it uses {mode}")
            there = function.__globals__
            variables = _names(function.__code__, "LOAD_GLOBAL")
            if "print" in variables - there.keys():
                raise NotTraced("it uses print")
            for name in variables & there.keys():
                self._variable(there, name, there[name], names)
                waiting.append(there[name])
            for name, value in inspect.getclosurevars(function).nonlocals.items():
                self._variable(None, name, value, names)
                waiting.append(value)
            for c in _classes(kind):
                for name in names & vars(c).keys():
                    self._keep(c, name, vars(c)[name])
                    waiting.append(vars(c)[name])
            waiting += [module.__dict__[name] for name in names & module.__dict__.keys()]

    def _variable(self, where: Any, name: str, value: Any, names: set[str]) -> None:
        if isinstance(value, types.ModuleType) and value in (random, time):
            raise NotTraced(f"it uses {name}")
        if not (isinstance(value, (*_CONSTANT, *_HARMLESS)) or callable(value)):
            raise NotTraced(f"it reads the variable {name}")
        if isinstance(value, _CONSTANT) and where is not None:
            self._keep(where, name, value)
        if isinstance(value, (types.ModuleType, type)):
            home = value.__name__ if isinstance(value, types.ModuleType) else value.__module__
            if home.partition(".")[0] not in _FIXED:
                for n in names & vars(value).keys():
                    if isinstance(vars(value)[n], _CONSTANT):
                        self._keep(value, n, vars(value)[n])

    def _keep(self, where: Any, name: str, value: Any) -> None:
        self.read[id(where), name] = where if isinstance(where, dict) else vars(where), name, value

    def same(self) -> bool:
        return all(namespace.get(name) is value for namespace, name, value in self.read.values())


# ------------------------------------------------------------------------------------------------------------- modules


class Seen:
    """A module as it was when it was traced."""

    def __init__(self, module: nn.Module) -> None:
        d = module.__dict__
        self.module, self.kind, self.names, self.children = module, own_class(module), _length(d), dict(d["_modules"])
        self.own = _own(module)
        self.contents = _contents(self.own.values())
        if len(self.contents) == len(self.own):  # nothing that could have changed inside
            self.contents = []
        self.missing = self._missing()

    def _missing(self) -> list[str]:
        d = self.module.__dict__
        if not d["_parameters"] and not d["_buffers"]:
            return []
        return [name for part in (d["_parameters"], d["_buffers"]) for name, t in part.items() if t is None]

    def same(self) -> bool:
        """Whether all that a trace may have read of the module is still so."""
        m, d = self.module, self.module.__dict__
        if own_class(m) is not self.kind or _length(d) != self.names:
            return False
        if d["_modules"] != self.children or self._missing() != self.missing:
            return False
        for name, value in self.own.items():
            if name not in d or d[name] is not value:
                return False
        return not self.contents or _same(self.contents, _contents([d[name] for name in self.own]))


def _length(d: dict[str, Any]) -> int:
    return len(d) - ("_fastconv" in d)
