"""Elementwise operators, reductions, products of matrices: NumPy's functions, writing where they are told."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ....autograd import activations
from ..graph import Array
from .dense import dense, gemm_weights
from .task import Call, Run, Spec, Task, operator


def _result(call: Call) -> Spec:
    return Spec(np.broadcast_shapes(*(call.spec(i).shape for i in call.present)), call.spec().dtype)


def _elementwise(call: Call, run: Run, dtype: Any = None) -> Task:
    """A task of all inputs, broadcast, that is as fast in any order that they share."""
    if call.node.version < 7 and call.attribute("axis") is not None:
        call, run = _aligned(call, run)
    spec = _result(call)
    spec = spec if dtype is None else Spec(spec.shape, np.dtype(dtype))
    return Task((spec,), run, call.present, orders="any")


def _aligned(call: Call, run: Run) -> tuple[Call, Run]:
    """Before version 7 an attribute said along which axis of the first input the second one begins."""
    x, y = call.spec(0).shape, call.spec(1)
    after = len(x) - call.axis(call.attribute("axis"), len(x)) - len(y.shape)
    shape = (*y.shape, *(1,) * after)
    aligned = Call(call.node, (call.spec(0), Spec(shape, y.dtype)), call.constants, call.weights)
    return aligned, lambda a, b, out: run(a, b.reshape(shape), out)


def _unary(function: Callable[[Array], Array]) -> Callable[[Call], Task | None]:
    """An operator that computes on floating-point numbers whatever has no ``out`` of its own."""

    def build(call: Call) -> Task | None:
        return _elementwise(call, lambda x, out: np.copyto(out, function(x), casting="same_kind"))

    return build


def _ufunc(function: Any) -> Callable[[Call], Task | None]:
    return lambda call: _elementwise(call, lambda *arrays: function(*arrays[:-1], out=arrays[-1]))


for _name, _function in {
    "Sub": np.subtract, "Mul": np.multiply, "Neg": np.negative, "Abs": np.absolute, "Sqrt": np.sqrt,
    "Exp": np.exp, "Log": np.log, "Tanh": np.tanh, "Floor": np.floor, "Ceil": np.ceil, "Reciprocal": np.reciprocal,
    "And": np.logical_and, "Or": np.logical_or, "Not": np.logical_not, "Round": np.rint, "Sign": np.sign,
}.items():  # fmt: skip
    operator(_name)(_ufunc(_function))

for _name, _unit in {
    "Sigmoid": activations.sigmoid, "HardSwish": activations.hardswish,
    "Softplus": lambda x: np.logaddexp(x, 0), "Erf": lambda x: 2 * activations.normal_cdf(x * math.sqrt(2)) - 1,
}.items():  # fmt: skip
    operator(_name)(_unary(_unit))


@operator("Relu")
def relu(call: Call) -> Task | None:
    zero = call.spec().dtype.type(0)
    return _elementwise(call, lambda x, out: np.maximum(x, zero, out=out))


@operator("Add", "Sum")
def add(call: Call) -> Task | None:
    def run(*arrays: Array) -> None:
        *terms, out = arrays
        if len(terms) == 1:
            np.copyto(out, terms[0])
            return
        np.add(terms[0], terms[1], out=out)
        for term in terms[2:]:
            np.add(out, term, out=out)

    return _elementwise(call, run)


@operator("Div")
def divide(call: Call) -> Task | None:
    kind = call.spec().dtype.kind
    if kind == "u":
        return _ufunc(np.floor_divide)(call)
    return _ufunc(np.divide)(call) if kind in "fV" else None  # integers divide towards zero: the reference's rule


@operator("Max", "Min")
def extreme(call: Call) -> Task | None:
    function = np.maximum if call.node.op == "Max" else np.minimum

    def run(*arrays: Array) -> None:
        *terms, out = arrays
        np.copyto(out, terms[0])
        for term in terms[1:]:
            function(out, term, out=out)

    return _elementwise(call, run)


@operator("Pow")
def power(call: Call) -> Task | None:
    same = call.spec(0).dtype == call.spec(1).dtype and call.spec().dtype.kind == "f"
    return _ufunc(np.power)(call) if same else None


for _name, _function in {
    "Equal": np.equal, "Less": np.less, "Greater": np.greater,
    "LessOrEqual": np.less_equal, "GreaterOrEqual": np.greater_equal,
}.items():  # fmt: skip

    def _compare(call: Call, function: Any = _function) -> Task | None:
        return _elementwise(call, lambda x, y, out: function(x, y, out=out), bool)

    operator(_name)(_compare)


@operator("Where")
def where(call: Call) -> Task | None:
    spec = Spec(_result(call).shape, call.spec(1).dtype)
    return Task((spec,), lambda c, x, y, out: np.copyto(out, np.where(c, x, y)), (0, 1, 2), orders="any")


@operator("Clip")
def clip(call: Call) -> Task | None:
    if call.unknown(1, 2):
        return None
    bounds = [call.constant(i) if call.has(i) else call.attribute(name) for i, name in ((1, "min"), (2, "max"))]
    dtype = call.spec().dtype
    low, high = (None if b is None else dtype.type(np.asarray(b).item()) for b in bounds)

    def run(x: Array, out: Array) -> None:
        if low is None and high is None:
            np.copyto(out, x)
            return
        np.clip(x, low, high, out=out)

    return Task((call.spec(),), run, (0,), orders="any")


@operator("LeakyRelu")
def leaky_relu(call: Call) -> Task | None:
    slope = call.spec().dtype.type(call.attribute("alpha", 0.01))

    def run(x: Array, out: Array) -> None:
        np.multiply(x, slope, out=out)
        np.copyto(out, x, where=x >= 0)

    return _elementwise(call, run)


@operator("PRelu")
def prelu(call: Call) -> Task | None:
    if call.node.version < 7:  # a slope for each channel then, where it is not one for all
        return None
    return _elementwise(call, lambda x, slope, out: np.copyto(out, np.where(x < 0, x * slope, x)))


@operator("Elu")
def elu(call: Call) -> Task | None:
    alpha = call.spec().dtype.type(call.attribute("alpha", 1.0))
    return _elementwise(call, lambda x, out: np.copyto(out, np.where(x < 0, alpha * np.expm1(np.minimum(x, 0)), x)))


@operator("HardSigmoid")
def hard_sigmoid(call: Call) -> Task | None:
    alpha, beta = (call.spec().dtype.type(call.attribute(n, v)) for n, v in (("alpha", 0.2), ("beta", 0.5)))

    def run(x: Array, out: Array) -> None:
        np.multiply(x, alpha, out=out)
        np.add(out, beta, out=out)
        np.clip(out, 0, 1, out=out)

    return _elementwise(call, run)


@operator("Gelu")
def gelu(call: Call) -> Task | None:
    if call.attribute("approximate", "none") != "none":
        return None
    return _unary(activations.gelu)(call)


@operator("Softmax")
def softmax(call: Call) -> Task | None:
    spec = call.spec()
    rank = len(spec.shape)
    if call.node.version >= 13:
        axes: tuple[int, ...] = (call.axis(call.attribute("axis", -1), rank),)
    else:  # everything from the axis on, as one row
        axes = tuple(range(call.attribute("axis", 1) % max(rank, 1), rank))

    def run(x: Array, out: Array) -> None:
        np.subtract(x, x.max(axis=axes, keepdims=True, initial=-np.inf), out=out)
        np.exp(out, out=out)
        np.divide(out, out.sum(axis=axes, keepdims=True), out=out)

    return Task((spec,), run, (0,)) if spec.dtype.kind == "f" else None


@operator("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd")
def reduce(call: Call) -> Task | None:
    function: Any = {
        "ReduceMean": np.mean, "ReduceSum": np.sum, "ReduceMax": np.max, "ReduceMin": np.min, "ReduceProd": np.prod,
    }[call.node.op]  # fmt: skip
    spec = call.spec()
    if call.unknown(1) or (call.node.op == "ReduceMean" and spec.dtype.kind not in "fV") or 0 in spec.shape:
        return None
    rank = len(spec.shape)
    axes = call.integers(1, "axes")
    if not axes:
        axes = [] if call.attribute("noop_with_empty_axes", 0) else list(range(rank))
    chosen, keep = tuple(sorted(call.axis(a, rank) for a in axes)), bool(call.attribute("keepdims", 1))
    shape = tuple(1 if i in chosen else n for i, n in enumerate(spec.shape) if keep or i not in chosen)

    def run(x: Array, out: Array) -> None:
        if not chosen:
            np.copyto(out, x)
        else:
            function(x, axis=chosen, keepdims=keep, out=out)

    return Task((Spec(shape, spec.dtype),), run, (0,))


@operator("MatMul")
def matmul(call: Call) -> Task | None:
    x, y = call.spec(0), call.spec(1)
    if x.dtype.kind != "f" or not x.shape or not y.shape:
        return None
    a, b = (1, *x.shape) if len(x.shape) == 1 else x.shape, (*y.shape, 1) if len(y.shape) == 1 else y.shape
    if a[-1] != b[-2]:
        raise ValueError(f"{call.node}: cannot multiply matrices of shapes {x.shape} and {y.shape}")
    rows, columns = (() if len(s.shape) == 1 else (n,) for s, n in ((x, a[-2]), (y, b[-1])))
    shape = (*np.broadcast_shapes(a[:-2], b[:-2]), *rows, *columns)
    w = call.constant(1)
    if w is not None and w.ndim == 2 and w.size and call.floating(0, 1):
        return dense(call, w.T, None, shape)
    return Task((Spec(shape, x.dtype),), lambda p, q, out: _product(p, q, out), (0, 1))


def _product(x: Array, y: Array, out: Array) -> None:
    if out.ndim:
        np.matmul(x, y, out=out)
    else:
        out[...] = x @ y


@operator("Gemm")
def gemm(call: Call) -> Task | None:
    x, w = call.spec(0), call.spec(1)
    if len(x.shape) != 2 or len(w.shape) != 2:
        return None
    alpha, beta = (x.dtype.type(call.attribute(name, 1.0)) for name in ("alpha", "beta"))
    turn_x, turn_w = bool(call.attribute("transA", 0)), bool(call.attribute("transB", 0))
    (m, k), (depth, n) = x.shape[:: -1 if turn_x else 1], w.shape[:: -1 if turn_w else 1]
    if k != depth:
        raise ValueError(f"{call.node}: cannot multiply matrices of shapes {(m, k)} and {(depth, n)}")
    if (weights := gemm_weights(call)) is not None:
        return dense(call, *weights, (m, n))
    if x.dtype.kind != "f":
        return None

    def run(*arrays: Array) -> None:
        p, q, *c, out = arrays
        np.matmul(p.T if turn_x else p, q.T if turn_w else q, out=out)
        if alpha != 1:
            np.multiply(out, alpha, out=out)
        if c:
            np.add(out, c[0] if beta == 1 else c[0] * beta, out=out)

    return Task((Spec((m, n), x.dtype),), run, call.present)


@operator("BatchNormalization")
def batch_normalization(call: Call) -> Task | None:
    if call.attribute("training_mode", 0) or sum(map(bool, call.node.outputs)) > 1 or call.unknown(1, 2, 3, 4):
        return None
    spec = call.spec()
    scale, shift = normalisation(call.constants, call.attribute("epsilon", 1e-5))
    along = (-1, *(1,) * (len(spec.shape) - 2))
    scale, shift = (v.astype(spec.dtype).reshape(along) for v in (scale, shift))

    def run(x: Array, out: Array) -> None:
        np.multiply(x, scale, out=out)
        np.add(out, shift, out=out)

    return Task((spec,), run, (0,), orders="any")


def normalisation(constants: Any, epsilon: float) -> tuple[Array, Array]:
    """The factors and the summands, in float64, that batch normalisation comes to."""
    scale, bias, mean, variance = (np.asarray(constants[i], np.float64) for i in (1, 2, 3, 4))
    factor = scale / np.sqrt(variance + epsilon)
    return factor, bias - mean * factor
