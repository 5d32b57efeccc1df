"""Tensor: a variable with the operators and methods people expect of an array."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from . import activations, array_ops
from .array_ops import Axis
from .tape import Array, Variable, array_module, on_device


class Tensor(Variable):
    """An array that remembers how it was computed, so that gradients can flow back.

    >>> from fastconv import Tensor
    >>> w = Tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    >>> ((w @ [1.0, 1.0]) ** 2).sum().backward()
    >>> w.grad
    array([[ 6.,  6.],
           [14., 14.]])

    Operators broadcast like NumPy's; comparisons give plain boolean arrays. Do not modify ``data`` in place between a
    forward and its backward pass: the tape does not notice.

    Parameters
    ----------
    data : a NumPy or CuPy array, kept without a copy, or anything ``numpy.asarray`` takes.
    requires_grad : whether ``backward`` leaves a gradient here, in ``grad``; for floating-point data only.

    Raises
    ------
    ValueError : ``requires_grad`` for data that are not floating-point.
    """

    __slots__ = ()
    __array_ufunc__ = None  # array + tensor is the tensor's business

    # --- what it is --------------------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.data.dtype

    @property
    def ndim(self) -> int:
        return self.data.ndim

    @property
    def size(self) -> int:
        return self.data.size

    @property
    def device(self) -> str:
        """``"cpu"`` or ``"cuda"``."""
        return "cpu" if array_module(self.data) is np else "cuda"

    def numpy(self) -> np.ndarray:
        """The data as a NumPy array: the same memory on the CPU, a copy from the GPU. Gradients do not follow it."""
        return self.data if self.device == "cpu" else self.data.get()

    def item(self) -> Any:
        """The only element, as a Python number."""
        return self.data.item()

    def detach(self) -> Tensor:
        """A Tensor of the same data that gradients do not pass."""
        return Tensor(self.data)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if self.requires_grad:
            raise TypeError(
                "a Tensor that requires a gradient does not turn into an array by itself, because the gradient "
                "would be lost: use tensor.numpy(), or fastconv's functions in place of NumPy's"
            )
        array = self.numpy()
        if copy is False and dtype is not None and array.dtype != dtype:
            raise ValueError(f"copy=False, but converting {array.dtype} to {np.dtype(dtype)} needs a copy")
        return array.astype(dtype or array.dtype, copy=bool(copy))

    def __repr__(self) -> str:
        body = np.array2string(self.numpy(), separator=", ", prefix="Tensor(")
        extra = "" if self.dtype in (np.float64, np.int64, np.bool_) else f", dtype={self.dtype}"
        extra += ", device='cuda'" if self.device == "cuda" else ""
        extra += ", requires_grad=True" if self.requires_grad else ""
        return f"Tensor({body}{extra})"

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    def __bool__(self) -> bool:
        return bool(self.data)

    def __float__(self) -> float:
        return float(self.data)

    def __int__(self) -> int:
        return int(self.data)

    # --- operators ---------------------------------------------------------------------------------------------

    def _operand(self, other: Any) -> Any:
        """Lists stand for arrays of this dtype; everything else is an operand as it is."""
        if not isinstance(other, list | tuple):
            return other
        with on_device(self.data):
            return array_module(self.data).asarray(other, self.dtype)

    def __add__(self, other: Any) -> Tensor:
        return array_ops.add(self, self._operand(other))

    def __radd__(self, other: Any) -> Tensor:
        return array_ops.add(self._operand(other), self)

    def __sub__(self, other: Any) -> Tensor:
        return array_ops.subtract(self, self._operand(other))

    def __rsub__(self, other: Any) -> Tensor:
        return array_ops.subtract(self._operand(other), self)

    def __mul__(self, other: Any) -> Tensor:
        return array_ops.multiply(self, self._operand(other))

    def __rmul__(self, other: Any) -> Tensor:
        return array_ops.multiply(self._operand(other), self)

    def __truediv__(self, other: Any) -> Tensor:
        return array_ops.divide(self, self._operand(other))

    def __rtruediv__(self, other: Any) -> Tensor:
        return array_ops.divide(self._operand(other), self)

    def __pow__(self, other: Any) -> Tensor:
        return array_ops.power(self, self._operand(other))

    def __rpow__(self, other: Any) -> Tensor:
        return array_ops.power(self._operand(other), self)

    def __matmul__(self, other: Any) -> Tensor:
        return array_ops.matmul(self, self._operand(other))

    def __rmatmul__(self, other: Any) -> Tensor:
        return array_ops.matmul(self._operand(other), self)

    def __neg__(self) -> Tensor:
        return array_ops.negative(self)

    def __abs__(self) -> Tensor:
        return array_ops.absolute(self)

    def __getitem__(self, index: Any) -> Tensor:
        return array_ops.getitem(self, _index(index))

    def __lt__(self, other: Any) -> Array:
        return _compare(operator.lt, self.data, other)

    def __le__(self, other: Any) -> Array:
        return _compare(operator.le, self.data, other)

    def __gt__(self, other: Any) -> Array:
        return _compare(operator.gt, self.data, other)

    def __ge__(self, other: Any) -> Array:
        return _compare(operator.ge, self.data, other)

    def __eq__(self, other: object) -> Array:
        return _compare(operator.eq, self.data, other)

    def __ne__(self, other: object) -> Array:
        return _compare(operator.ne, self.data, other)

    __hash__ = object.__hash__  # by identity: == compares elements

    # --- methods -----------------------------------------------------------------------------------------------

    @property
    def T(self) -> Tensor:
        """The axes reversed."""
        return array_ops.transpose(self)

    def reshape(self, *shape: Any) -> Tensor:
        """The same elements in another shape, given as a tuple or as several numbers; one may be -1."""
        return array_ops.reshape(self, _sequence(shape))

    def transpose(self, *axes: Any) -> Tensor:
        """The axes in the order given, NumPy's meaning; reversed if none is."""
        return array_ops.transpose(self, _sequence(axes) or None)

    def astype(self, dtype: Any) -> Tensor:
        """Converted elements; the gradient is converted back."""
        return array_ops.astype(self, dtype)

    def sum(self, axis: Axis = None, keepdims: bool = False) -> Tensor:
        """The sum over one axis, several, or all."""
        return array_ops.sum(self, axis, keepdims)

    def mean(self, axis: Axis = None, keepdims: bool = False) -> Tensor:
        """The arithmetic mean over one axis, several, or all."""
        return array_ops.mean(self, axis, keepdims)

    def max(self, axis: Axis = None, keepdims: bool = False) -> Tensor:
        """The largest elements over one axis, several, or all."""
        return array_ops.max(self, axis, keepdims)

    def min(self, axis: Axis = None, keepdims: bool = False) -> Tensor:
        """The smallest elements over one axis, several, or all."""
        return array_ops.min(self, axis, keepdims)

    def exp(self) -> Tensor:
        """The exponential of each element."""
        return array_ops.exp(self)

    def log(self) -> Tensor:
        """The natural logarithm of each element."""
        return array_ops.log(self)

    def sqrt(self) -> Tensor:
        """The square root of each element."""
        return array_ops.sqrt(self)

    def abs(self) -> Tensor:
        """The absolute value of each element."""
        return array_ops.absolute(self)

    def tanh(self) -> Tensor:
        """The hyperbolic tangent of each element."""
        return activations.tanh(self)

    def sigmoid(self) -> Tensor:
        """1 / (1 + exp(-x)) of each element."""
        return activations.sigmoid(self)

    def relu(self) -> Tensor:
        """max(x, 0) of each element."""
        return activations.relu(self)


Tensor.result_type = Tensor


def _compare(relation: Callable[[Any, Any], Array], data: Array, other: Any) -> Array:
    with on_device(data):
        return relation(data, _data(other))


def _data(value: Any) -> Any:
    return value.data if isinstance(value, Variable) else value


def _index(index: Any) -> Any:
    return tuple(map(_data, index)) if isinstance(index, tuple) else _data(index)


def _sequence(values: tuple[Any, ...]) -> tuple[int, ...]:
    """``f(2, 3)`` and ``f((2, 3))`` mean the same."""
    return tuple(values[0]) if len(values) == 1 and isinstance(values[0], tuple | list) else values
