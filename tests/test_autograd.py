"""The operations of arrays, their dtypes and modes, and Tensor: every gradient against central differences."""

import sys
import threading

import numpy as np
import pytest

from fastconv import Tensor, no_grad
from fastconv import autograd as ag
from fastconv.autograd import is_grad_enabled
from fastconv.autograd.activations import normal_cdf
from fastconv.testing import check_grads
from tests import fake_cupy
from tests.support import require

RNG = np.random.default_rng(0)


def away_from_kinks(*shape):
    """Numbers of both signs, none closer than 0.1 to 0 or to another."""
    n = int(np.prod(shape))
    values = (np.arange(n) - n // 2 + 0.5) * 0.3
    return RNG.permutation(values).reshape(shape)


def positive(*shape):
    return RNG.uniform(0.5, 2.0, shape)


BROADCASTS = [((3, 4), (3, 4)), ((3, 4), (4,)), ((3, 1), (1, 4)), ((2, 3, 4), (3, 1)), ((), (2, 3)), ((1, 1), (2, 3))]

BINARY = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "divide": lambda a, b: a / b,
    "power": lambda a, b: a**b,
    "maximum": ag.maximum,
    "minimum": ag.minimum,
    "where": lambda a, b: ag.where((a + b).numpy() > 1, a, b),
}

UNARY = {
    "negative": lambda x: -x,
    "exp": lambda x: x.exp(),
    "log": lambda x: abs(x).log(),
    "sqrt": lambda x: x.abs().sqrt(),
    "abs": abs,
    "tanh": lambda x: x.tanh(),
    "sigmoid": lambda x: x.sigmoid(),
    "relu": lambda x: x.relu(),
    "relu6": lambda x: ag.relu6(3 * x),
    "leaky_relu": ag.leaky_relu,
    "leaky_relu with a slope": lambda x: ag.leaky_relu(x, 0.3),
    "silu": ag.silu,
    "gelu": ag.gelu,
    "hardswish": lambda x: ag.hardswish(2 * x + 0.05),
    "number + x": lambda x: 2 + x,
    "number - x": lambda x: 2 - x,
    "number * x": lambda x: 2 * x,
    "number / x": lambda x: 2 / x,
    "number ** x": lambda x: 2**x,
    "x - number": lambda x: x - 2,
    "x / number": lambda x: x / 2,
    "x ** 3": lambda x: x**3,
    "x ** -1": lambda x: x**-1,
    "x ** 0": lambda x: x**0 + x,
    "list * x": lambda x: [1.0, 2.0, 3.0, 4.0] * x,
    "sum": lambda x: x.sum(),
    "sum 0": lambda x: x.sum(0),
    "sum -1 keepdims": lambda x: x.sum(-1, keepdims=True),
    "sum 0, 1": lambda x: x.sum((0, 1)) * x,
    "mean": lambda x: x.mean(),
    "mean 1": lambda x: x.mean(1),
    "mean 0, -1": lambda x: x.mean((0, -1), keepdims=True),
    "max": lambda x: x.max(),
    "max 0": lambda x: x.max(0),
    "max 0, 1": lambda x: x.max((0, 1), keepdims=True),
    "min": lambda x: x.min(),
    "min 1": lambda x: x.min(axis=1, keepdims=True),
    "reshape": lambda x: x.reshape(2, 6),
    "reshape -1": lambda x: x.reshape((-1, 3)),
    "transpose": lambda x: x.transpose(),
    "T": lambda x: x.T,
    "transpose axes": lambda x: x.reshape(3, 2, 2).transpose(-1, 0, 1),
    "row": lambda x: x[1],
    "element": lambda x: x[1, 2],
    "slices": lambda x: x[::-2, 1:3],
    "new axis": lambda x: x[..., None, 1],
    "repeated rows": lambda x: x[[0, 2, 0]],
    "iteration": lambda x: sum(row * i for i, row in enumerate(x)),
    "pad": lambda x: ag.pad(x, [(1, 0), (0, 2)], value=3.0) ** 2,
    "concatenate": lambda x: ag.concatenate([x, 2 * x, x[:1]]) ** 2,
    "concatenate -1": lambda x: ag.concatenate([x, x[:, :1]], axis=-1) ** 2,
    "stack": lambda x: ag.stack([x, x * x, 2 * x]) ** 2,
    "stack -1": lambda x: ag.stack([x, 2 * x], axis=-1) ** 2,
    "used three times": lambda x: x * x + x,
    "a diamond": lambda x: (x.exp() + x) * (x.exp() - x),
}

BESIDE_ARRAYS = {
    "x ** array": lambda x: x ** np.array([1.0, 2.0, 3.0, 0.0]) + x,
    "array - x": lambda x: np.ones((3, 4)) - x,
    "mask": lambda x: x[np.eye(3, 4, dtype=bool)],
    "repeated elements": lambda x: x[np.array([0, 1, 0]), np.array([1, 1, 1])],
    "tensor as index": lambda x: x[Tensor(np.array([2, 2]))],
    "tensor in index": lambda x: x[1:, Tensor(np.array([2, 2]))],
    "concatenate": lambda x: ag.concatenate([np.ones((1, 4)), x, [[1.0] * 4]]) ** 2,
    "stack": lambda x: ag.stack([np.ones((3, 4)), x]) ** 2,
    "astype": lambda x: x.astype(np.float64) * 3,
}

MATMULS = [
    ((3, 4), (4, 2)), ((4,), (4,)), ((3, 4), (4,)), ((4,), (4, 2)), ((5, 3, 4), (5, 4, 2)), ((5, 3, 4), (4, 2)),
    ((3, 4), (5, 4, 2)), ((5, 3, 4), (4,)), ((4,), (5, 4, 2)), ((2, 1, 3, 4), (5, 4, 2)),
]  # fmt: skip


@pytest.mark.parametrize("name", UNARY)
def test_gradient_of_one_argument(name):
    check_grads(UNARY[name], away_from_kinks(3, 4))


@pytest.mark.parametrize("name", BESIDE_ARRAYS)
def test_gradient_beside_plain_arrays(name):
    check_grads(BESIDE_ARRAYS[name], away_from_kinks(3, 4))


@pytest.mark.parametrize(("left", "right"), BROADCASTS)
@pytest.mark.parametrize("name", BINARY)
def test_gradient_of_two_arguments(name, left, right):
    a, b = (positive, positive) if name == "power" else (away_from_kinks, positive)
    check_grads(BINARY[name], a(*left), b(*right) + 0.01)
    check_grads(lambda x, y: BINARY[name](y, x), b(*right) + 0.01, a(*left) if name != "divide" else b(*left))


@pytest.mark.parametrize(("left", "right"), MATMULS)
def test_gradient_of_matmul(left, right):
    a, b = RNG.standard_normal(left), RNG.standard_normal(right)
    check_grads(lambda x, y: x @ y, a, b)
    np.testing.assert_array_equal((Tensor(a) @ Tensor(b)).data, a @ b)
    check_grads(lambda y: a @ y, b)


def test_ties_share_the_gradient():
    x = Tensor([2.0, 2.0, 1.0], requires_grad=True)
    x.max().backward()
    assert x.grad.tolist() == [0.5, 0.5, 0]
    a, b = (Tensor([1.0], requires_grad=True) for _ in range(2))
    ag.maximum(a, b).backward()
    assert a.grad.tolist() == b.grad.tolist() == [0.5]


def test_relu_and_power_at_zero():
    x = Tensor([0.0, -1.0, 3.0], requires_grad=True)
    (x.relu() + x**2 + x**1).sum().backward()
    assert x.grad.tolist() == [1, -1, 8]
    n = Tensor([2.0], requires_grad=True)
    (np.zeros(1) ** n).backward()
    assert n.grad.tolist() == [0]


@pytest.mark.parametrize("name", ["relu", "relu6", "leaky_relu", "sigmoid", "tanh", "silu", "hardswish", "gelu"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_activations_are_pytorchs(name, dtype):
    torch = require("torch")
    x = np.concatenate([np.linspace(-8, 8, 401), [-100, 100, 0, 3, -3, 6]]).astype(dtype)
    ours, theirs = Tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    y = getattr(ag, name)(ours)
    expected = getattr(torch.nn.functional, name)(theirs)
    y.sum().backward()
    expected.sum().backward()
    bound = 4 * np.finfo(dtype).eps
    assert y.dtype == ours.grad.dtype == dtype
    np.testing.assert_allclose(y.numpy(), expected.detach().numpy(), rtol=bound, atol=bound * 4)
    kinks = {"hardswish": [-3, 3], "relu6": []}.get(name, [])  # one of the two slopes, as you please
    smooth = ~np.isin(x, kinks)
    np.testing.assert_allclose(ours.grad[smooth], theirs.grad.numpy()[smooth], rtol=bound, atol=bound * 8)


def test_normal_distribution_against_scipy():
    special = require("scipy.special")
    x = np.linspace(-37, 37, 10001)
    np.testing.assert_allclose(normal_cdf(x), special.ndtr(x), rtol=1e-12, atol=1e-15)
    single = normal_cdf(x.astype(np.float32))
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, special.ndtr(x), rtol=0, atol=4e-7)


# --- dtypes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", UNARY)
def test_float32_stays_float32(name):
    x = Tensor(away_from_kinks(3, 4).astype(np.float32), requires_grad=True)
    y = UNARY[name](x)
    assert y.dtype == np.float32
    y.sum().backward()
    assert x.grad.dtype == np.float32


def test_gradients_have_their_arguments_dtype():
    a = Tensor(np.ones(3, np.float32), requires_grad=True)
    b = Tensor(np.ones(3), requires_grad=True)
    (a * b).sum().backward()
    assert (a.grad.dtype, b.grad.dtype) == (np.float32, np.float64)


# --- modes -------------------------------------------------------------------------------------------------------


def test_no_grad_as_context_and_decorator():
    x = Tensor([1.0], requires_grad=True)

    @no_grad()
    def double(n):
        assert not is_grad_enabled()
        return double(n - 1) if n else x * 2

    assert not double(3).requires_grad
    assert is_grad_enabled()
    with pytest.raises(ZeroDivisionError), no_grad():
        _ = 1 / 0
    assert is_grad_enabled()
    with no_grad():
        with no_grad():
            pass
        assert not is_grad_enabled()


def test_no_grad_is_of_this_thread():
    seen = []
    with no_grad():
        thread = threading.Thread(target=lambda: seen.append(is_grad_enabled()))
        thread.start()
        thread.join()
    assert seen == [True]


def test_threads_differentiate_independently():
    shared = np.arange(1.0, 100.0)

    def work(results, i):
        x = Tensor(shared * i, requires_grad=True)
        (x * x).sum().backward()
        results[i] = x.grad

    results = [None] * 8
    threads = [threading.Thread(target=work, args=(results, i)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all((results[i] == 2 * i * shared).all() for i in range(8))


# --- Tensor ------------------------------------------------------------------------------------------------------


def test_attributes():
    x = Tensor(np.zeros((2, 3), np.float32))
    assert (x.shape, x.dtype, x.ndim, x.size, x.device, len(x)) == ((2, 3), np.float32, 2, 6, "cpu", 2)
    assert (x.requires_grad, x.grad) == (False, None)
    assert Tensor(3.5).item() == float(Tensor(3.5)) == 3.5
    assert int(Tensor(7)) == 7
    assert bool(Tensor([1])) is True
    assert not Tensor([0.0])
    with pytest.raises(ValueError, match="ambiguous"):
        bool(x)


def test_data_is_kept_without_a_copy():
    array = np.zeros(3)
    x = Tensor(array, requires_grad=True)
    assert x.data is array
    assert x.numpy() is array
    assert x.detach().data is array
    assert not x.detach().requires_grad


def test_comparisons_are_arrays_and_tensors_hash_by_identity():
    x, y = Tensor([1.0, 2.0], requires_grad=True), Tensor([2.0, 2.0])
    for result, expected in (
        (x < y, [True, False]), (x <= 2, [True, True]), (x > 1, [False, True]), (x >= y.data, [False, True]),
        (x == y, [False, True]), (x != y, [True, False]), (np.array([1.0, 0.0]) == x, [True, False]),
    ):  # fmt: skip
        assert type(result) is np.ndarray
        assert result.tolist() == expected
    assert len({x, y, x}) == 2


def test_conversion_to_an_array():
    assert np.asarray(Tensor([1.0, 2.0])).tolist() == [1, 2]
    assert np.array(Tensor([1.0]), dtype=np.float32).dtype == np.float32
    with pytest.raises(TypeError, match=r"requires a gradient does not turn into an array by itself.*tensor.numpy\(\)"):
        np.asarray(Tensor([1.0], requires_grad=True))
    with pytest.raises(TypeError):
        np.exp(Tensor([1.0]))


def test_construction_errors():
    with pytest.raises(ValueError, match="requires_grad=True needs a floating-point array, got dtype int64"):
        Tensor(np.arange(3), requires_grad=True)
    with pytest.raises(TypeError, match=r"use tensor\.detach"):
        Tensor(Tensor([1.0]))
    y = Tensor([1.0], requires_grad=True) * 2
    with pytest.raises(ValueError, match=r"leaves only; use detach\(\)"):
        y.requires_grad = False
    with pytest.raises(ValueError, match=r"axis must be in \[-2, 1\]"):
        ag.stack([np.ones(2)], axis=2)


def test_bfloat16_can_be_differentiated():
    ml_dtypes = require("ml_dtypes")
    x = Tensor(np.ones(3, ml_dtypes.bfloat16), requires_grad=True)
    (x * x).sum().backward()
    assert x.grad.dtype == ml_dtypes.bfloat16


def test_repr():
    assert repr(Tensor([1.0, 2.0])) == "Tensor([1., 2.])"
    assert repr(Tensor(np.ones(1, np.float32), requires_grad=True)) == "Tensor([1.], dtype=float32, requires_grad=True)"


# --- the GPU's paths, without a GPU ------------------------------------------------------------------------------


@pytest.fixture
def cupy(monkeypatch):
    module = fake_cupy.module()
    monkeypatch.setitem(sys.modules, "cupy", module)
    return module


@pytest.mark.parametrize("name", UNARY)
def test_every_operation_stays_in_its_arrays_module(cupy, name):
    values = away_from_kinks(3, 4)
    here, there = Tensor(values, requires_grad=True), Tensor(cupy.asarray(values), requires_grad=True)
    for x in (here, there):
        y = UNARY[name](x)
        assert y.device == x.device
        y.sum().backward()
    assert there.device == "cuda"
    assert type(there.grad) is cupy.ndarray
    np.testing.assert_array_equal(there.grad.get(), here.grad)
    assert "device='cuda'" in repr(there)


@pytest.mark.parametrize("name", [n for n in BINARY if n != "where"])
def test_two_arguments_stay_in_their_module(cupy, name):
    values = positive(3, 4), positive(4)
    here = [Tensor(v, requires_grad=True) for v in values]
    there = [Tensor(cupy.asarray(v), requires_grad=True) for v in values]
    for tensors in (here, there):
        BINARY[name](*tensors).sum().backward()
    for a, b in zip(here, there, strict=True):
        np.testing.assert_array_equal(b.grad.get(), a.grad)


def test_products_and_choices_stay_in_their_module(cupy):
    values = away_from_kinks(4, 4)
    grads = []
    for x in (Tensor(values, requires_grad=True), Tensor(cupy.asarray(values), requires_grad=True)):
        z = x @ x[0] + x[0] @ x
        ag.where(z > 0, z, 0.5 * z).sum().backward()
        grads.append(x.grad if x.device == "cpu" else x.grad.get())
    np.testing.assert_array_equal(*grads)


def test_devices_do_not_mix(cupy):
    there = Tensor(cupy.asarray(np.ones(3)), requires_grad=True)
    with pytest.raises(TypeError, match="unsupported type"):
        there * Tensor(np.ones(3))
