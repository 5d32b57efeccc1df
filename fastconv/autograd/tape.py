"""The tape: records which primitive made which value, and walks back over it. Knows no operation.

A :func:`primitive` is an ordinary function of arrays. Called with :class:`Variable` arguments it computes on their
arrays and, where a gradient will be wanted, leaves a :class:`Node` behind::

    x ──┐                      Node(multiply)
        ├── multiply ── y        parents  (x, w)          leaves, or the nodes that made them
    w ──┘                        vjp      g -> (g·w, g·x)  made on the way forward, so it holds only what it needs

``backward`` visits nodes from the newest to the oldest. A node is younger than everything it depends on, so a heap
ordered by age is a topological order: no recursion, and every node runs once, when all of its gradient is there.

Limits, on purpose: gradients are plain arrays, so there are none of second order; and a value modified in place between
the forward and the backward pass is not noticed, because an array has no version counter.

The design follows HIPS/autograd (Maclaurin, Duvenaud, Adams 2015).
"""

from __future__ import annotations

import functools
import heapq
import itertools
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ContextDecorator, nullcontext
from types import ModuleType, TracebackType
from typing import Any, ClassVar, ParamSpec, TypeVar, cast

import numpy as np

Array = Any
"""A NumPy or CuPy array. CuPy ships no types and may not be installed, so there is nothing narrower to say."""

Vjp = Callable[[Array], Array]
VjpMaker = Callable[..., Vjp]
JointVjp = Callable[[Array], Sequence[Array]]
JointVjpMaker = Callable[[Sequence[int], Any, tuple[Any, ...], dict[str, Any]], JointVjp]

P = ParamSpec("P")
R = TypeVar("R")

_serials = itertools.count()
_joint_vjp_makers: dict[Callable[..., Any], tuple[JointVjpMaker, frozenset[int] | None]] = {}


def array_module(*values: Any) -> ModuleType:
    """The module whose functions work on these arrays: CuPy if one of them is CuPy's, NumPy otherwise.

    >>> array_module(np.zeros(3)).__name__
    'numpy'

    CuPy is never imported here: where a CuPy array exists, it already is.
    """
    for value in values:
        if type(value) is np.ndarray:
            continue
        if isinstance(value, Variable):
            value = value.data
        if type(value).__module__.partition(".")[0] == "cupy":
            return sys.modules["cupy"]
    return np


_HERE = nullcontext()


def on_device(*values: Any) -> AbstractContextManager[Any]:
    """A context in which CuPy allocates and computes on the GPU of the first of these arrays that lies on one; nothing
    where the first array is NumPy's.

    Streams belong to devices: inside the context the current one is that of the array's device.

    >>> with on_device(np.zeros(3)):
    ...     pass
    """
    for value in values:
        array = value.data if isinstance(value, Variable) else value
        if type(array) is np.ndarray:
            break
        xp = array_module(array)
        if xp is not np:
            if array.data.device_id == xp.cuda.runtime.getDevice():
                break
            device: AbstractContextManager[Any] = xp.cuda.Device(array.data.device_id)
            return device
    return _HERE


def is_floating(dtype: np.dtype[Any]) -> bool:
    """Whether gradients of this dtype make sense: the floats of NumPy, and bfloat16.

    >>> is_floating(np.dtype("float32")), is_floating(np.dtype("int64"))
    (True, False)
    """
    return dtype.kind == "f" or dtype.name == "bfloat16"


class Node:
    """One recorded call: how to turn the gradient of its result into those of its inputs.

    ``parents`` are the nodes that made the differentiable inputs, or the leaf variables themselves.
    ``vjp`` is None once the graph has been freed.
    """

    __slots__ = ("dtype", "name", "parents", "serial", "shape", "vjp")

    def __init__(self, name: str, parents: tuple[Node | Variable, ...], vjp: JointVjp, result: Array) -> None:
        self.serial = next(_serials)
        self.name = name
        self.parents = parents
        self.vjp: JointVjp | None = vjp
        self.shape = result.shape
        self.dtype = result.dtype

    def __lt__(self, other: Node) -> bool:
        return self.serial > other.serial  # heapq pops the smallest: the newest node


class Variable:
    """An array that primitives can follow. :class:`~fastconv.autograd.Tensor` adds the operators.

    ``data`` is the array, ``requires_grad`` whether gradients reach it, ``grad`` the gradient that ``backward`` left
    in a leaf (an array of the kind and dtype of ``data``) or None, ``node`` the call that made it, None for a leaf.
    """

    __slots__ = ("__weakref__", "_requires_grad", "data", "grad", "node")

    result_type: ClassVar[type[Variable]]
    """The class of what primitives return for this class of argument: not a sub-class such as a parameter."""

    data: Array
    grad: Array | None
    node: Node | None

    def __init__(self, data: Any, requires_grad: bool = False) -> None:
        if isinstance(data, Variable):
            raise TypeError("data must be an array, got a Tensor; use tensor.detach() for a second Tensor of its data")
        self.data = data if array_module(data) is not np else np.asarray(data)
        self.grad = None
        self.node = None
        self._requires_grad = False
        self.requires_grad = requires_grad

    @property
    def requires_grad(self) -> bool:
        return self._requires_grad

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        if value and not is_floating(self.data.dtype):
            raise ValueError(
                f"requires_grad=True needs a floating-point array, got dtype {self.data.dtype}; convert the data first"
            )
        if not value and self.node is not None:
            raise ValueError("requires_grad can be switched off for leaves only; use detach() on the result of a call")
        self._requires_grad = bool(value)

    def backward(self, gradient: Any = None, *, retain_graph: bool = False) -> None:
        """Add the gradient of this value to the ``grad`` of every leaf it was computed from.

        >>> from fastconv import Tensor
        >>> x = Tensor([1.0, 2.0], requires_grad=True)
        >>> (x * x).sum().backward()
        >>> x.grad
        array([2., 4.])

        Parameters
        ----------
        gradient : the gradient of this value, an array of its shape; 1 by default, for a single element only.
        retain_graph : keep what the graph saved, so that backward can run over it again.

        Raises
        ------
        RuntimeError : this value requires no gradient, or its graph was freed by an earlier backward.
        ValueError : ``gradient`` is missing for more than one element, or has the wrong shape.
        """
        if not self.requires_grad:
            raise RuntimeError(
                "backward on a Tensor that requires no gradient: none of the values it was computed from has "
                "requires_grad=True, or it was computed under no_grad()"
            )
        with on_device(self.data):
            self._backward(gradient, retain_graph)

    def _backward(self, gradient: Any, retain_graph: bool) -> None:
        xp = array_module(self.data)
        if gradient is None:
            if self.data.size != 1:
                raise ValueError(
                    f"backward without a gradient needs a single element, this Tensor has shape {self.data.shape}; "
                    f"reduce it first, as in y.sum().backward(), or pass gradient= of that shape"
                )
            gradient = xp.ones_like(self.data)
        else:
            gradient = gradient.data if isinstance(gradient, Variable) else xp.asarray(gradient)
            if gradient.shape != self.data.shape:
                raise ValueError(f"gradient must have the Tensor's shape {self.data.shape}, got shape {gradient.shape}")
            gradient = gradient.astype(self.data.dtype, copy=False)
        if self.node is None:
            _accumulate(self, gradient, fresh=False)
        else:
            _walk(self.node, gradient, retain_graph)


Variable.result_type = Variable


def _walk(root: Node, gradient: Array, retain_graph: bool) -> None:
    frontier = [root]
    gradients = {root.serial: gradient}
    while frontier:
        node = heapq.heappop(frontier)
        g = gradients.pop(node.serial)
        if node.vjp is None:
            raise RuntimeError(
                f"backward through {node.name} a second time: its saved arrays were freed by the first backward; "
                "run the forward pass again, or pass retain_graph=True to the first backward"
            )
        results = node.vjp(g)
        parents = node.parents
        if not retain_graph:
            node.vjp, node.parents = None, ()
        for i, (parent, result) in enumerate(zip(parents, results, strict=True)):
            expected = parent.data if isinstance(parent, Variable) else parent
            if result.shape != expected.shape:
                raise RuntimeError(
                    f"the vjp of {node.name} returned shape {result.shape} for an input of shape {expected.shape}"
                )
            gradient = result.astype(expected.dtype, copy=False)
            if isinstance(parent, Variable):
                shared = result is g or result.base is not None or any(result is other for other in results[:i])
                _accumulate(parent, gradient, fresh=gradient is not result or not shared)
            elif parent.serial in gradients:
                gradients[parent.serial] = gradients[parent.serial] + gradient
            else:
                gradients[parent.serial] = gradient
                heapq.heappush(frontier, parent)


def _accumulate(leaf: Variable, gradient: Array, *, fresh: bool) -> None:
    """Add to a leaf's gradient. Nobody else may hold the array that becomes ``grad``: users scale it in place."""
    if leaf.grad is not None:
        gradient = leaf.grad + gradient
    elif not fresh:
        gradient = gradient.copy()
    leaf.grad = np.asarray(gradient) if isinstance(gradient, np.generic) else gradient


def primitive(fun: Callable[P, R]) -> Callable[P, R]:
    """Let a function of arrays take Tensors too.

    >>> from fastconv import Tensor
    >>> double = primitive(lambda x: 2 * x)
    >>> defvjp(double, lambda ans, x: lambda g: 2 * g)
    >>> x = Tensor([1.0, 2.0], requires_grad=True)
    >>> double(x).backward([1.0, 10.0])
    >>> x.grad, double(np.ones(2))
    (array([ 2., 20.]), array([2., 2.]))

    Without a Tensor among the arguments the result is ``fun(...)`` itself. Otherwise ``fun`` gets the Tensors' arrays
    and its result comes back as a Tensor, recorded if gradients are enabled and a positional argument requires one.
    A result that is a tuple is differentiable in its first element; the others (indices, statistics) stay arrays.
    Keyword arguments are never differentiated: one that requires a gradient raises TypeError.
    """

    function: Callable[..., Any] = fun

    @functools.wraps(fun)
    def call(*args: Any, **kwargs: Any) -> Any:
        variables = [a for a in args if isinstance(a, Variable)]
        for name, value in kwargs.items():
            if isinstance(value, Variable):
                if value.requires_grad and is_grad_enabled():
                    raise TypeError(
                        f"{_name(fun)}: keyword argument {name!r} is not differentiated, and was given a Tensor that "
                        f"requires a gradient; pass {name}.detach() to treat it as a constant"
                    )
                variables.append(value)
                kwargs[name] = value.data
        if not variables:
            if args and type(args[0]) is np.ndarray:  # a context costs a third of a microsecond
                return function(*args, **kwargs)
            with on_device(*args):
                return function(*args, **kwargs)
        arrays = tuple(a.data if isinstance(a, Variable) else a for a in args)
        with on_device(*arrays):
            ans = function(*arrays, **kwargs)
            result = variables[0].result_type(ans[0] if isinstance(ans, tuple) else ans)
            result.node = _record(call, result.data, ans, args, arrays, kwargs)
        result._requires_grad = result.node is not None
        return (result, *ans[1:]) if isinstance(ans, tuple) else result

    return cast(Callable[P, R], call)


def _record(
    call: Callable[..., Any],
    value: Array,
    ans: Any,
    args: tuple[Any, ...],
    arrays: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Node | None:
    if not is_grad_enabled():
        return None
    wanted = [i for i, a in enumerate(args) if isinstance(a, Variable) and a.requires_grad]
    if not wanted:
        return None
    if call not in _joint_vjp_makers:
        raise NotImplementedError(f"{_name(call)} has no gradient; call it under no_grad() or on a detached Tensor")
    maker, constants = _joint_vjp_makers[call]
    if constants is not None:
        wanted = [i for i in wanted if i not in constants]
        if not wanted:
            return None
    parents = tuple(args[i].node or args[i] for i in wanted)
    return Node(_name(call), parents, maker(wanted, ans, arrays, kwargs), value)


def defvjp(fun: Callable[..., Any], *makers: VjpMaker | None, argnums: Sequence[int] | None = None) -> None:
    """State the vector-Jacobian products of a primitive, one maker per positional argument.

    ``maker(ans, *args, **kwargs)`` gets what went in and came out, as arrays, and returns the function from the
    result's gradient to the argument's. It runs on the way forward, and only if its argument requires a gradient; what
    the function refers to is kept until backward. That function must not modify the gradient it gets, and returns it
    (or a view of it) or an array nobody else holds. A maker of None says that the argument is a constant.

    Parameters
    ----------
    makers : for the arguments 0, 1, … or those that ``argnums`` lists.
    """
    numbers = range(len(makers)) if argnums is None else argnums
    by_argument = dict(zip(numbers, makers, strict=True))

    def joint(wanted: Sequence[int], ans: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> JointVjp:
        vjps = []
        for i in wanted:
            maker = by_argument.get(i)
            if maker is None:
                raise NotImplementedError(
                    f"{_name(fun)} has no gradient for its positional argument {i}; pass a detached Tensor"
                )
            vjps.append(maker(ans, *args, **kwargs))
        return lambda g: [vjp(g) for vjp in vjps]

    constants = frozenset(i for i, maker in by_argument.items() if maker is None)
    _joint_vjp_makers[fun] = joint, constants


def defvjp_joint(fun: Callable[..., Any], maker: JointVjpMaker) -> None:
    """State the vector-Jacobian products of all arguments at once, for primitives whose gradients share work.

    ``maker(argnums, ans, args, kwargs)`` returns a function from the result's gradient to a sequence of gradients, one
    for each of ``argnums`` (the positional arguments that require one, ascending) and each an array of its own.
    """
    _joint_vjp_makers[fun] = maker, None


def _name(fun: Callable[..., Any]) -> str:
    return getattr(fun, "__name__", repr(fun))


class _Mode(threading.local):
    grad_enabled = True


_mode = _Mode()


def is_grad_enabled() -> bool:
    """Whether calls are recorded in this thread.

    >>> is_grad_enabled()
    True
    """
    return _mode.grad_enabled


class no_grad(ContextDecorator):
    """Record nothing: inside ``with no_grad():`` or a function decorated with ``@no_grad()``, in this thread.

    >>> from fastconv import Tensor
    >>> x = Tensor([1.0], requires_grad=True)
    >>> with no_grad():
    ...     y = x * 2
    >>> y.requires_grad
    False
    """

    def __enter__(self) -> None:
        self._before = _mode.grad_enabled
        _mode.grad_enabled = False

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _mode.grad_enabled = self._before

    def _recreate_cm(self) -> no_grad:
        return no_grad()  # a decorated function may recurse: each call remembers its own state
