"""A stand-in for CuPy: arrays that NumPy's functions refuse, to show where code names NumPy instead of asking.

It has what NumPy has, less the names and parameters that CuPy lacks where CuPy is installed. Its arrays compute with
NumPy inside, but like CuPy's they convert to NumPy only by ``get()``, no operation mixes them with NumPy arrays, and
each lies on one of two devices: whatever computes or allocates does so on the current device, and an array of the other
one is refused (CuPy would at best go through peer access). Installed as ``sys.modules["cupy"]``, together with
:class:`Emulated` as the driver of kernels, it makes tests of the GPU's paths that need no GPU.
"""

from __future__ import annotations

import inspect
import operator
import types
from collections.abc import Iterator
from functools import wraps
from typing import Any

import numpy as np

from .cuda_emulator.driver import Emulator

try:
    import cupy as _real
except ImportError:
    _real = None

DEVICES = 2


class _State:
    """The current device, each device's current stream, and how often memory was asked for."""

    device = 0
    streams: list[Any]
    allocations = 0


class _Memory:
    """``array.data``: the address of the first element, and the device."""

    def __init__(self, ptr: int, device_id: int) -> None:
        self.ptr, self.device_id = ptr, device_id


class ndarray:
    """One array of the stand-in."""

    __array_ufunc__ = None
    __module__ = "cupy"

    def __init__(self, array: np.ndarray, device: int | None = None) -> None:
        self._array = array
        self._device = _State.device if device is None else device
        self.dtype, self.itemsize, self.flags = array.dtype, array.itemsize, array.flags

    @property
    def data(self) -> _Memory:
        return _Memory(self._array.__array_interface__["data"][0], self._device)

    @property
    def device(self) -> _Device:
        return _Device(self._device)

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        raise TypeError("implicit conversion to a NumPy array is not allowed; use get()")

    def get(self) -> np.ndarray:
        _wait()
        return self._array.copy()

    def item(self) -> Any:
        _wait()
        return self._array.item()

    def tolist(self) -> Any:
        _wait()
        return self._array.tolist()

    @property
    def base(self) -> Any:
        return self._array.base

    @property
    def T(self) -> ndarray:
        return ndarray(self._array.T, self._device)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or (_real and not hasattr(_real.ndarray, name)):
            raise AttributeError(name)
        return _lifted(getattr(self._array, name), self)

    def __len__(self) -> int:
        return len(self._array)

    def __bool__(self) -> bool:
        _wait()
        return bool(self._array)

    def __float__(self) -> float:
        _wait()
        return float(self._array)

    def __int__(self) -> int:
        _wait()
        return int(self._array)

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))

    def __neg__(self) -> ndarray:
        return _lift(-self._array, self)

    def __abs__(self) -> ndarray:
        return _lift(abs(self._array), self)

    def __getitem__(self, index: Any) -> Any:
        return _lift(self._array[_lower(index)], self)

    def __setitem__(self, index: Any, value: Any) -> None:
        _on_current(self)
        self._array[_lower(index)] = _lower(value)


def _binary(name: str) -> Any:
    def method(self: ndarray, other: Any) -> Any:
        if isinstance(other, ndarray | int | float | np.generic):
            if name.startswith("__i") and name != "__invert__":
                _on_current(self)
                self._array = getattr(operator, name)(self._array, _lower(other))
                return self
            return _lift(getattr(self._array, name)(_lower(other)), self)
        if type(other).__array_ufunc__ is None:
            return NotImplemented
        raise TypeError(f"unsupported type {type(other)}")

    return method


for _name in ("add", "sub", "mul", "truediv", "pow", "matmul"):
    for _prefix in ("", "r", "i"):
        setattr(ndarray, f"__{_prefix}{_name}__", _binary(f"__{_prefix}{_name}__"))
for _name in ("eq", "ne", "lt", "le", "gt", "ge", "and", "or"):
    setattr(ndarray, f"__{_name}__", _binary(f"__{_name}__"))


def _wait() -> None:
    """What the host waits for the device with, or hands it memory of its own."""
    if _State.streams[_State.device].capturing:
        raise _RuntimeError("cudaErrorStreamCaptureUnsupported: operation not permitted when stream is capturing")


def _on_current(array: ndarray) -> None:
    if array._device != _State.device:
        raise ValueError(f"the array lies on device {array._device}, the current one is {_State.device}")


def _lower(value: Any) -> Any:
    """What NumPy computes with; the arrays among it must lie on the current device."""
    if isinstance(value, ndarray):
        _on_current(value)
        return value._array
    if isinstance(value, np.ndarray):
        raise TypeError("a NumPy array among CuPy's")
    if isinstance(value, tuple | list):
        return type(value)(map(_lower, value))
    return value


def _lift(value: Any, given: ndarray | None = None) -> Any:
    """Reductions give arrays without axes, as CuPy's do, and not scalars. A view of ``given`` lies where that does and
    costs nothing; anything else was computed on the current device, from arrays there."""
    if not isinstance(value, np.ndarray | np.generic):
        return value
    array = np.asarray(value)
    if given is not None and array.size and np.may_share_memory(array, given._array):
        return ndarray(array, given._device)
    if given is not None:
        _on_current(given)
    _State.allocations += 1
    return ndarray(array)


def _lifted(attribute: Any, given: ndarray | None = None) -> Any:
    if not callable(attribute) or isinstance(attribute, type):
        return attribute

    def function(*args: Any, **kwargs: Any) -> Any:
        return _lift(attribute(*_lower(args), **{k: _lower(v) for k, v in kwargs.items()}), given)

    return function


class _Add:
    @staticmethod
    def at(target: ndarray, index: Any, value: ndarray) -> None:
        np.add.at(_lower(target), _lower(index), _lower(value))


class _Device:
    """One of the devices."""

    def __init__(self, number: int | None = None) -> None:
        self.id = _State.device if number is None else int(number)
        self.before: list[int] = []

    @property
    def compute_capability(self) -> str:
        if not 0 <= self.id < DEVICES:
            raise _RuntimeError("cudaErrorInvalidDevice: invalid device ordinal")
        return "90"

    def synchronize(self) -> None:
        _wait()

    def __enter__(self) -> _Device:
        self.before.append(_State.device)
        _State.device = self.id
        return self

    def __exit__(self, *error: object) -> None:
        _State.device = self.before.pop()


class _Stream:
    """A stream of the device that was current when it was made; the null stream belongs to all."""

    def __init__(self, null: bool = False, non_blocking: bool = False) -> None:
        self.ptr = 0 if null else id(self)
        self.device_id = -1 if null else _State.device
        self.capturing = False
        self.before: list[Any] = []

    def is_capturing(self) -> bool:
        return self.capturing

    def begin_capture(self) -> None:
        self.capturing = True

    def end_capture(self) -> None:
        self.capturing = False

    def synchronize(self) -> None:
        _wait()

    def __enter__(self) -> _Stream:
        self.before.append(_State.streams[_State.device])
        _State.streams[_State.device] = self
        return self

    def __exit__(self, *error: object) -> None:
        _State.streams[_State.device] = self.before.pop()


class _RuntimeError(RuntimeError):
    """Stands for cupy.cuda.runtime.CUDARuntimeError."""


class _Generator:
    def __init__(self, bits: Any) -> None:
        self._generator = np.random.Generator(bits)

    def random(self, size: Any, dtype: Any) -> ndarray:
        return ndarray(self._generator.random(size, dtype))


def _standard_normal(size: Any, dtype: Any) -> ndarray:
    return ndarray(np.random.default_rng(0).standard_normal(size, dtype))


def _asarray(value: Any, dtype: Any = None) -> ndarray:
    if isinstance(value, ndarray) and dtype in (None, value.dtype):
        return value
    return _array(value, dtype)


def _array(value: Any, dtype: Any = None) -> ndarray:
    if not isinstance(value, ndarray):
        _wait()
    return ndarray(np.array(_host(value), dtype))


def _host(value: Any) -> Any:
    return value._array if isinstance(value, ndarray) else value


class Exporter:
    """Another library's array on a GPU: it notes on which stream CuPy asks for it."""

    def __init__(self, array: np.ndarray, device: int = 0, kind: int = 2) -> None:
        self.array, self.device, self.kind = array, device, kind
        self.asked: list[Any] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.kind, self.device

    def __dlpack__(self, *, stream: Any = None, max_version: Any = None, copy: Any = None) -> Any:
        self.asked.append(stream)
        return ndarray(self.array, self.device)


def _from_dlpack(x: Any) -> ndarray:
    with _Device(x.__dlpack_device__()[1]):
        return x.__dlpack__(stream=_State.streams[_State.device].ptr or 1, max_version=(1, 0), copy=None)


class _Module(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or (_real and not hasattr(_real, name)):
            raise AttributeError(name)
        return _taking(getattr(_real, name, None), _lifted(getattr(np, name)))


def _taking(theirs: Any, function: Any) -> Any:
    """The function, refusing arguments that CuPy's of the same name does not take."""
    if not inspect.isfunction(theirs):  # a ufunc, a type: nothing says what it takes
        return function
    signature = inspect.signature(theirs)

    @wraps(theirs)
    def checked(*args: Any, **kwargs: Any) -> Any:
        signature.bind(*args, **kwargs)
        return function(*args, **kwargs)

    return checked


def module() -> types.ModuleType:
    """A fresh ``cupy`` to put into ``sys.modules``."""
    cupy = _Module("cupy")
    null = _Stream(null=True)
    _State.device, _State.streams, _State.allocations = 0, [null] * DEVICES, 0
    runtime = types.SimpleNamespace(CUDARuntimeError=_RuntimeError, getDevice=lambda: _State.device)
    cuda = types.SimpleNamespace(
        Device=_Device, Stream=_Stream, runtime=runtime, get_current_stream=lambda: _State.streams[_State.device]
    )
    for name, value in {
        "ndarray": ndarray,
        "asarray": _asarray,
        "array": _array,
        "add": _Add,
        "asnumpy": lambda a: a.get(),
        "from_dlpack": _from_dlpack,
        "cuda": cuda,
        "random": types.SimpleNamespace(
            Generator=_Generator, Philox4x3210=np.random.Philox, standard_normal=_standard_normal
        ),
        "allocations": lambda: _State.allocations,
    }.items():
        setattr(cupy, name, value)
    return cupy


class Emulated(Emulator):
    """Kernels on the stand-in's arrays: the emulator, refusing arrays that do not lie on the current device."""

    def address(self, array: Any) -> int:
        _on_current(array)
        return int(array.data.ptr)
