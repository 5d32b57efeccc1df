"""A stand-in for CuPy: arrays that NumPy's functions refuse, to show where code names NumPy instead of asking.

Its arrays compute with NumPy inside, but like CuPy's they convert to NumPy only by ``get()``, and no operation mixes
them with NumPy arrays. Installed as ``sys.modules["cupy"]`` it makes a test of the GPU's paths that needs no GPU.
"""

from __future__ import annotations

import operator
import types
from collections.abc import Iterator
from typing import Any

import numpy as np


class ndarray:
    """One array of the stand-in."""

    __array_ufunc__ = None
    __module__ = "cupy"

    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        raise TypeError("implicit conversion to a NumPy array is not allowed; use get()")

    def get(self) -> np.ndarray:
        return self._array.copy()

    def item(self) -> Any:
        return self._array.item()

    def tolist(self) -> Any:
        return self._array.tolist()

    @property
    def base(self) -> Any:
        return self._array.base

    @property
    def T(self) -> ndarray:
        return ndarray(self._array.T)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _lifted(getattr(self._array, name))

    def __len__(self) -> int:
        return len(self._array)

    def __bool__(self) -> bool:
        return bool(self._array)

    def __float__(self) -> float:
        return float(self._array)

    def __int__(self) -> int:
        return int(self._array)

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))

    def __neg__(self) -> ndarray:
        return ndarray(-self._array)

    def __abs__(self) -> ndarray:
        return ndarray(abs(self._array))

    def __getitem__(self, index: Any) -> Any:
        return _lift(self._array[_lower(index)])

    def __setitem__(self, index: Any, value: Any) -> None:
        self._array[_lower(index)] = _lower(value)


def _binary(name: str) -> Any:
    def method(self: ndarray, other: Any) -> Any:
        if isinstance(other, ndarray | int | float | np.generic):
            if name.startswith("__i") and name != "__invert__":
                self._array = getattr(operator, name)(self._array, _lower(other))
                return self
            return _lift(getattr(self._array, name)(_lower(other)))
        if type(other).__array_ufunc__ is None:
            return NotImplemented
        raise TypeError(f"unsupported type {type(other)}")

    return method


for _name in ("add", "sub", "mul", "truediv", "pow", "matmul"):
    for _prefix in ("", "r", "i"):
        setattr(ndarray, f"__{_prefix}{_name}__", _binary(f"__{_prefix}{_name}__"))
for _name in ("eq", "ne", "lt", "le", "gt", "ge", "and", "or"):
    setattr(ndarray, f"__{_name}__", _binary(f"__{_name}__"))


def _lower(value: Any) -> Any:
    if isinstance(value, ndarray):
        return value._array
    if isinstance(value, np.ndarray):
        raise TypeError("a NumPy array among CuPy's")
    if isinstance(value, tuple | list):
        return type(value)(map(_lower, value))
    return value


def _lift(value: Any) -> Any:
    """Reductions give arrays without axes, as CuPy's do, and not scalars."""
    if isinstance(value, np.ndarray | np.generic):
        return ndarray(np.asarray(value))
    return value


def _lifted(attribute: Any) -> Any:
    if not callable(attribute) or isinstance(attribute, type):
        return attribute

    def function(*args: Any, **kwargs: Any) -> Any:
        return _lift(attribute(*_lower(args), **{k: _lower(v) for k, v in kwargs.items()}))

    return function


class _Add:
    @staticmethod
    def at(target: ndarray, index: Any, value: ndarray) -> None:
        np.add.at(target._array, _lower(index), _lower(value))


class _Device:
    """The only device, number 0."""

    def __init__(self, number: int = 0) -> None:
        self.id = number

    @property
    def compute_capability(self) -> str:
        if self.id != 0:
            raise _RuntimeError("cudaErrorInvalidDevice: invalid device ordinal")
        return "90"

    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None: ...


class _RuntimeError(RuntimeError):
    """Stands for cupy.cuda.runtime.CUDARuntimeError."""


class _Generator:
    def __init__(self, seed: int) -> None:
        self._generator = np.random.default_rng(seed)

    def random(self, size: Any, dtype: Any) -> ndarray:
        return ndarray(self._generator.random(size, dtype))


def _asarray(value: Any, dtype: Any = None) -> ndarray:
    return ndarray(np.asarray(value._array if isinstance(value, ndarray) else value, dtype))


def _array(value: Any, dtype: Any = None) -> ndarray:
    return ndarray(np.array(value._array if isinstance(value, ndarray) else value, dtype))


class _Module(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _lifted(getattr(np, name))


def module() -> types.ModuleType:
    """A fresh ``cupy`` to put into ``sys.modules``."""
    cupy = _Module("cupy")
    runtime = types.SimpleNamespace(CUDARuntimeError=_RuntimeError)
    for name, value in {
        "ndarray": ndarray,
        "asarray": _asarray,
        "array": _array,
        "add": _Add,
        "cuda": types.SimpleNamespace(Device=_Device, runtime=runtime),
        "random": types.SimpleNamespace(default_rng=_Generator),
    }.items():
        setattr(cupy, name, value)
    return cupy
