"""The tape: what is recorded, how gradients run back through it, what is freed and when."""

import gc
import sys
import weakref

import numpy as np
import pytest

from fastconv import Tensor, no_grad
from fastconv import autograd as ag
from fastconv.autograd import defvjp, defvjp_joint, primitive
from fastconv.testing import check_grads

RNG = np.random.default_rng(0)


def positive(*shape):
    return RNG.uniform(0.5, 2.0, shape)


def test_arrays_in_arrays_out():
    assert type(ag.relu(np.ones(3))) is np.ndarray
    assert type(ag.relu(Tensor(np.ones(3)))) is Tensor


def test_backward_accumulates_into_leaves_only():
    x = Tensor([1.0, 2.0], requires_grad=True)
    for _ in range(2):
        y = x * 3
        y.sum().backward()
        assert y.grad is None
    assert x.grad.tolist() == [6, 6]


def test_gradients_are_not_shared():
    """Users scale ``grad`` in place, so nobody else may hold that array."""
    a, b = (Tensor([1.0, 2.0], requires_grad=True) for _ in range(2))
    given = np.ones(2)
    (a + b).backward(given)
    a.grad *= 5
    assert b.grad.tolist() == given.tolist() == [1, 1]
    a.grad = None
    a.sum().backward()
    a.grad *= 2  # sum's gradient is a read-only view before it becomes a leaf's
    leaf = Tensor([1.0], requires_grad=True)
    seed = np.ones(1)
    leaf.backward(seed)
    leaf.grad *= 7
    assert seed[0] == 1


def test_scalar_gradients_are_arrays():
    x = Tensor(2.0, requires_grad=True)
    for expected in (4, 8):
        (x * x).backward()
        assert type(x.grad) is np.ndarray
        assert x.grad.item() == expected


def test_deep_chains_need_no_recursion():
    x = y = Tensor([1.0], requires_grad=True)
    for _ in range(20_000):
        y = y + 1
    assert sys.getrecursionlimit() < 20_000
    y.backward()
    assert x.grad.tolist() == [1]
    for _ in range(20_000):
        y = y + x
    del y  # dropping a graph that was never used recurses no more


def test_nodes_run_once_when_their_gradient_is_complete():
    calls = []

    @primitive
    def watch(x):
        return x + 0

    defvjp(watch, lambda ans, x: lambda g: (calls.append(g.copy()), g)[1])
    x = Tensor([1.0], requires_grad=True)
    y = watch(x)
    z = y
    for _ in range(10):
        z = z + y
    z.backward()
    assert [c.tolist() for c in calls] == [[11]]


def test_only_wanted_gradients_are_made():
    made = []

    @primitive
    def f(a, b, c):
        return a + b + c

    def maker(name):
        return lambda ans, *args: made.append(name) or (lambda g: g)

    defvjp(f, maker("a"), maker("b"), maker("c"))
    f(Tensor([1.0]), Tensor([1.0], requires_grad=True), np.ones(1)).backward()
    with no_grad():
        f(Tensor([1.0], requires_grad=True), 1, 2)
    assert made == ["b"]


def test_argnums_constants_and_missing_gradients():
    @primitive
    def f(a, b, c):
        return a * b * c

    x = Tensor([2.0], requires_grad=True)
    with pytest.raises(NotImplementedError, match="f has no gradient; call it under no_grad"):
        f(x, 3.0, 4.0)
    defvjp(f, lambda ans, a, b, c: lambda g: g * a * b, None, argnums=(2, 1))
    f(2.0, 3.0, x).backward()
    assert x.grad.tolist() == [6]
    assert not f(2.0, x, 3.0).requires_grad
    with pytest.raises(NotImplementedError, match="f has no gradient for its positional argument 0"):
        f(x, 2.0, 3.0)


def test_joint_gradients_and_extra_results():
    @primitive
    def divmod_(a, b):
        return a * b, np.sign(a)

    defvjp_joint(divmod_, lambda wanted, ans, args, kw: lambda g: [g * args[1 - i] * (ans[1] != 0) for i in wanted])
    y, sign = divmod_(Tensor([2.0], requires_grad=True), np.array([3.0]))
    assert (type(y), type(sign)) == (Tensor, np.ndarray)
    check_grads(lambda a, b: divmod_(a, b)[0], positive(3), positive(3))
    check_grads(lambda b: divmod_(np.ones(3), b)[0], positive(3))


def test_keyword_arguments_are_constants():
    @primitive
    def scale(x, *, by):
        return x * by

    defvjp(scale, lambda ans, x, by: lambda g: g * by)
    x, by = Tensor([1.0], requires_grad=True), Tensor([3.0])
    assert scale(x, by=by).data.tolist() == [3]
    assert type(scale(np.ones(1), by=by)) is Tensor
    with pytest.raises(TypeError, match="scale: keyword argument 'by' is not differentiated"):
        scale(x, by=x)
    with no_grad():
        scale(x, by=x)


def test_graphs_are_freed():
    x = Tensor([1.0, 2.0], requires_grad=True)
    kept = np.array([3.0, 4.0])
    alive = weakref.ref(kept)
    y = (x * kept).sum()
    y.backward(retain_graph=True)
    y.backward()
    assert x.grad.tolist() == [6, 8]
    del kept
    gc.collect()
    assert alive() is None
    with pytest.raises(RuntimeError, match=r"backward through sum a second time.*retain_graph=True"):
        y.backward()
    shared = x * 2
    shared.sum().backward()
    with pytest.raises(RuntimeError, match="backward through multiply a second time"):
        shared.mean().backward()


def test_shapes_do_not_keep_arrays_alive():
    """What a gradient does not need is not held until backward."""
    x = Tensor(np.ones((2, 3)), requires_grad=True)
    for operation in (
        lambda y: y + 1, lambda y: 2 - y, lambda y: y / 2, lambda y: y.sum(0), lambda y: y.mean(), lambda y: y.exp()[0],
        lambda y: ag.concatenate([y, x]), lambda y: ag.pad(y, [(1, 0), (0, 0)]), lambda y: y.astype(np.float32),
        lambda y: y @ np.ones(3), lambda y: y.sqrt(), lambda y: y.max(), lambda y: ag.where(np.ones(3) > 0, y, 0.0),
    ):  # fmt: skip
        y = x * 2
        alive = weakref.ref(y.data)
        z = operation(y)
        del y
        assert alive() is None
        z.sum().backward()


def test_backward_errors():
    x = Tensor([1.0, 2.0], requires_grad=True)
    with pytest.raises(ValueError, match=r"needs a single element, this Tensor has shape \(2,\).*y.sum\(\).backward"):
        (x * 2).backward()
    with pytest.raises(ValueError, match=r"gradient must have the Tensor's shape \(2,\), got shape \(3,\)"):
        (x * 2).backward(np.ones(3))
    with pytest.raises(RuntimeError, match="requires no gradient"):
        Tensor([1.0]).backward()
    with pytest.raises(RuntimeError, match="requires no gradient"):
        x.detach().sum().backward()
    assert x.grad is None


def test_a_vjp_of_the_wrong_shape_is_named():
    @primitive
    def total(x):
        return x.sum()

    defvjp(total, lambda ans, x: lambda g: g)
    with pytest.raises(RuntimeError, match=r"the vjp of total returned shape \(\) for an input of shape \(3,\)"):
        total(Tensor(np.ones(3), requires_grad=True)).backward()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda ans, x: lambda g: g * x,  # the square's, without its factor
        lambda ans, x: lambda g: g * 2 * x * (1 + 1e-3),
        lambda ans, x: lambda g: g * 2 * np.where(np.arange(x.size) == 2, 0, x),
        lambda ans, x: lambda g: g * 2 * np.where(np.arange(x.size) == 1, np.nan, x),
    ],
)
def test_the_checker_can_fail(wrong):
    @primitive
    def square(x):
        return x * x

    defvjp(square, lambda ans, x: lambda g: 2 * g * x)
    check_grads(square, positive(4))
    defvjp(square, wrong)
    with pytest.raises(AssertionError, match="argument 0"):
        check_grads(square, positive(4))
