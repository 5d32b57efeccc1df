"""Optimisers against PyTorch's over ten steps, their states and errors, and schedules."""

import json
import sys

import numpy as np
import pytest

from fastconv import Tensor, optim
from fastconv.optim import optimizer
from tests import fake_cupy
from tests.support import require

RNG = np.random.default_rng(0)
SHAPES = [(3, 4), (5,), ()]

OPTIMISERS = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.02}),
    ("SGD", {"lr": 0.1, "momentum": 0.5, "dampening": 0.3, "weight_decay": 0.1}),
    ("SGD", {"lr": 0.1, "weight_decay": 0.1}),
    ("Adam", {}),
    ("Adam", {"lr": 0.05, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1}),
    ("Adam", {"lr": 0.05, "amsgrad": True}),
    ("AdamW", {"lr": 0.05}),
    ("AdamW", {"lr": 0.05, "weight_decay": 0.2, "amsgrad": True}),
]


def start(dtype=np.float64):
    generator = np.random.default_rng(1)
    return [Tensor(np.asarray(generator.standard_normal(s), dtype), requires_grad=True) for s in SHAPES]


def gradients(step, dtype=np.float64):
    """Large ones at first, so that the largest mean square is not the latest."""
    generator = np.random.default_rng((2, step))
    return [np.asarray(generator.standard_normal(s) * (10 - step), dtype) for s in SHAPES]


def run(opt, steps, first=0):
    dtype = opt.parameters[0].dtype
    for step in range(first, first + steps):
        for p, g in zip(opt.parameters, gradients(step, dtype), strict=True):
            p.grad = g
        opt.step()


@pytest.mark.parametrize("block", [2, 1 << 15])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(("kind", "options"), OPTIMISERS)
def test_ten_steps_are_pytorchs(monkeypatch, kind, options, dtype, block):
    torch = require("torch")
    monkeypatch.setattr(optimizer, "_BLOCK_ELEMENTS", block)
    ours = start(dtype)
    theirs = [torch.tensor(p.numpy().copy(), requires_grad=True) for p in ours]
    opt, their_opt = getattr(optim, kind)(ours, **options), getattr(torch.optim, kind)(theirs, **options)
    run(opt, 10)
    for step in range(10):
        for t, g in zip(theirs, gradients(step, dtype), strict=True):
            t.grad = torch.tensor(g)
        their_opt.step()
    tolerance = 1e-12 if dtype == np.float64 else 1e-5
    for p, t in zip(ours, theirs, strict=True):
        assert p.dtype == dtype
        np.testing.assert_allclose(p.numpy(), t.detach().numpy(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("kind", "options"), OPTIMISERS)
def test_state_goes_round_bit_for_bit(kind, options):
    straight = getattr(optim, kind)(start(np.float32), **options)
    run(straight, 6)
    first = getattr(optim, kind)(start(np.float32), **options)
    run(first, 3)
    first.lr *= 1
    state = first.state_dict()
    arrays = state.pop("arrays")
    state = json.loads(json.dumps(state)) | {"arrays": arrays}  # all but the arrays may go through JSON
    second = getattr(optim, kind)(first.parameters, lr=9.0)
    second.load_state_dict(state)
    for array in arrays.values():
        array[...] = 99  # what was loaded is a copy
    assert repr(second) == repr(first)
    run(second, 3, first=3)
    for p, q in zip(straight.parameters, second.parameters, strict=True):
        np.testing.assert_array_equal(p.numpy(), q.numpy())


def test_updates_are_in_place_and_leave_gradients_alone():
    p = Tensor(np.ones(3), requires_grad=True)
    data = p.data
    for opt in (optim.SGD([p], 0.1, 0.9, weight_decay=0.1, nesterov=True), optim.Adam([p], weight_decay=0.1)):
        p.grad = g = np.ones(3)
        opt.step()
        opt.step()
        assert p.data is data
        assert g.tolist() == [1, 1, 1]
        opt.zero_grad()
        assert p.grad is None


def test_parameters_without_gradient_stay():
    a, b = (Tensor(np.ones(2), requires_grad=True) for _ in range(2))
    opt = optim.Adam([a, b, Tensor(np.ones(2))], lr=0.1)
    a.grad = np.ones(2)
    opt.step()
    assert b.data.tolist() == [1, 1]
    b.grad = np.ones(2)
    opt.step()
    np.testing.assert_allclose(b.data, 0.9)  # its first step, with the first step's bias correction


def test_strided_parameters_are_updated_too():
    backing = np.ones((4, 6))
    p = Tensor(backing[::2, ::3].T, requires_grad=True)
    opt = optim.Adam([p], lr=0.5)
    p.grad = np.ones((2, 2))
    opt.step()
    np.testing.assert_allclose(backing[::2, ::3], 0.5)
    assert (backing[1::2] == 1).all()


W = Tensor([1.0], requires_grad=True)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: optim.SGD([W], lr=-1), ValueError, "lr must be finite and at least 0, got -1"),
        (lambda: optim.SGD([W], lr="fast"), TypeError, "lr must be a number, got 'fast'"),
        (lambda: optim.SGD([W], lr=float("nan")), ValueError, "lr must be finite and at least 0, got nan"),
        (lambda: optim.SGD([W], momentum=-0.1), ValueError, "momentum must be finite and at least 0, got -0.1"),
        (lambda: optim.SGD([W], momentum=0.9, dampening=2), ValueError, "dampening must be between 0 and 1, got 2"),
        (lambda: optim.SGD([W], weight_decay=-1), ValueError, "weight_decay must be finite and at least 0, got -1"),
        (lambda: optim.SGD([W], nesterov=True), ValueError, "nesterov needs momentum > 0 and dampening = 0"),
        (lambda: optim.Adam([W], betas=(0.9, 1.0)), ValueError, r"betas must be two numbers.*got \(0.9, 1.0\)"),
        (lambda: optim.Adam([W], betas=(0.9,)), ValueError, "betas must be two numbers"),
        (lambda: optim.Adam([W], eps=-1e-8), ValueError, "eps must be finite and at least 0, got -1e-08"),
        (lambda: optim.AdamW([W], lr=float("inf")), ValueError, "lr must be finite and at least 0, got inf"),
        (lambda: optim.Adam([]), ValueError, "parameters is empty"),
        (lambda: optim.Adam(W), TypeError, "parameters must be a list of Tensors, got a single one"),
        (lambda: optim.Adam([W, np.ones(3)]), TypeError, "parameters must be Tensors, got ndarray as number 1"),
        (lambda: optim.Adam([Tensor([1.0])]), ValueError, "parameters holds none that requires a gradient"),
        (lambda: optim.Adam([W * 2]), ValueError, "parameter 0 is the result of a call.*pass a leaf"),
        (lambda: optim.Adam([W, W]), ValueError, "parameters lists one Tensor twice"),
        (lambda: optim.StepLR(optim.SGD([W]), 0), ValueError, "step_size must be a positive integer, got 0"),
        (lambda: optim.CosineAnnealingLR(optim.SGD([W]), 1.5), ValueError, "T_max must be a positive integer, got 1.5"),
        (lambda: optim.LinearWarmup(optim.SGD([W]), 0), ValueError, "steps must be a positive integer, got 0"),
        (lambda: optim.OneCycleLR(optim.SGD([W]), 1.0, 10, 1.0), ValueError, "pct_start must be above 0 and below 1"),
        (
            lambda: optim.OneCycleLR(optim.SGD([W]), 1.0, 9, div_factor=0),
            ValueError,
            "div_factor must be above 0",
        ),
    ],
)
def test_wrong_hyperparameters_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_states_that_do_not_fit_are_refused():
    opt = optim.SGD(start(), momentum=0.9)
    run(opt, 1)
    state = opt.state_dict()
    with pytest.raises(ValueError, match="state is of SGD, this optimiser is Adam"):
        optim.Adam(start()).load_state_dict(state)
    with pytest.raises(ValueError, match="state is for 3 parameters, this optimiser has 1"):
        optim.SGD([W]).load_state_dict(state)
    other = optim.SGD([Tensor(np.ones(s), requires_grad=True) for s in ((3, 4), (6,), ())], lr=0.5, momentum=0.1)
    with pytest.raises(ValueError, match=r"state 1.velocity has shape \(5,\), parameter 1 has \(6,\)"):
        other.load_state_dict(state)
    assert (other.lr, other.state, other.steps) == (0.5, [{}, {}, {}], [0, 0, 0])


# --- schedules ---------------------------------------------------------------------------------------------------

SCHEDULES = [
    ("StepLR", {"step_size": 3, "gamma": 0.5}),
    ("MultiStepLR", {"milestones": [2, 5], "gamma": 0.3}),
    ("ExponentialLR", {"gamma": 0.9}),
    ("CosineAnnealingLR", {"T_max": 9, "eta_min": 0.01}),
    ("OneCycleLR", {"max_lr": 2.0, "total_steps": 10}),
    ("OneCycleLR", {"max_lr": 2.0, "total_steps": 10, "pct_start": 0.5, "div_factor": 5.0, "final_div_factor": 10.0}),
]


@pytest.mark.parametrize(("kind", "options"), SCHEDULES)
def test_schedules_are_pytorchs(kind, options):
    torch = require("torch")
    opt = optim.SGD([Tensor([1.0], requires_grad=True)], lr=0.4)
    their_opt = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.4)
    ours, theirs = getattr(optim, kind)(opt, **options), getattr(torch.optim.lr_scheduler, kind)(their_opt, **options)
    for _ in range(9):
        assert opt.lr == pytest.approx(their_opt.param_groups[0]["lr"], rel=1e-9)
        their_opt.step()
        theirs.step()
        ours.step()
    assert opt.lr == pytest.approx(their_opt.param_groups[0]["lr"], rel=1e-9)


def test_warmup_rises_then_follows():
    opt = optim.SGD([W], lr=1.0)
    cosine = optim.CosineAnnealingLR(opt, T_max=2)
    schedule, rates = optim.LinearWarmup(opt, 4, start_factor=0.2, after=cosine), []
    for _ in range(8):
        rates.append(opt.lr)
        schedule.step()
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 0.5, 0, 0])
    alone = optim.LinearWarmup(optim.SGD([W], lr=2.0), 2)
    assert [alone.rate(i) for i in range(4)] == [0, 1, 2, 2]


def test_schedules_go_round():
    opt = optim.SGD([W], lr=1.0)
    schedule = optim.ExponentialLR(opt, 0.5)
    for _ in range(3):
        schedule.step()
    other = optim.ExponentialLR(optim.SGD([W], lr=7.0), 0.5)
    other.load_state_dict(json.loads(json.dumps(schedule.state_dict())))
    assert other.optimizer.lr == opt.lr == 0.125


# --- the GPU's path, without a GPU -------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "options"), OPTIMISERS)
def test_updates_stay_in_their_arrays_module(monkeypatch, kind, options):
    cupy = fake_cupy.module()
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    here = getattr(optim, kind)(start(), **options)
    there = getattr(optim, kind)(
        [Tensor(cupy.asarray(p.numpy().copy()), requires_grad=True) for p in start()], **options
    )
    run(here, 3)
    for step in range(3):
        for p, g in zip(there.parameters, gradients(step), strict=True):
            p.grad = cupy.asarray(g)
        there.step()
    for p, q in zip(here.parameters, there.parameters, strict=True):
        np.testing.assert_allclose(q.data.get(), p.data, rtol=1e-14)
    there.load_state_dict(here.state_dict())
    assert all(type(a) is cupy.ndarray for slots in there.state for a in slots.values())
