"""Plans: same results as the functions, weights frozen, threads apart."""

import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import fastconv as fc

RNG = np.random.default_rng(0)


def random(*shape, dtype=np.float32):
    return RNG.standard_normal(shape).astype(dtype)


CASES = [
    (fc.plan_conv1d, fc.conv1d, (2, 4, 20), (6, 2, 3), {"groups": 2, "padding": ((2, 0),)}),
    (fc.plan_conv2d, fc.conv2d, (2, 4, 9, 9), (6, 4, 3, 3), {"stride": 2, "padding": 1, "padding_mode": "reflect"}),
    (fc.plan_conv2d, fc.conv2d, (4, 9, 9), (6, 4, 3, 3), {"activation": "gelu"}),
    (fc.plan_conv2d, fc.conv2d, (2, 9, 9, 4), (6, 4, 3, 3), {"layout": "NHWC", "padding": "same"}),
    (fc.plan_conv3d, fc.conv3d, (1, 4, 5, 5, 5), (6, 4, 3, 3, 3), {"dilation": 2}),
    (fc.plan_conv_transpose2d, fc.conv_transpose2d, (2, 4, 5, 5), (4, 6, 3, 3), {"stride": 2, "output_padding": 1}),
]


@pytest.mark.parametrize("algorithm", ["auto", "direct", "im2col", "reference"])
@pytest.mark.parametrize(("plan", "function", "x_shape", "w_shape", "options"), CASES)
def test_a_plan_gives_what_the_function_gives(plan, function, x_shape, w_shape, options, algorithm):
    x, w, bias = random(*x_shape), random(*w_shape), random(6)
    prepared = plan(x_shape, w, bias, algorithm=algorithm, **options)
    expected = function(x, w, bias, algorithm=prepared.algorithm, **options)  # prepared, another may be best
    assert (prepared(x) == expected).all()
    assert prepared.output_shape == expected.shape
    out = np.empty_like(expected)
    assert prepared(x, out=out) is out
    assert (out == expected).all()
    if algorithm != "auto":
        assert prepared.algorithm == algorithm


def test_later_changes_to_weights_are_not_seen():
    for algorithm in ("direct", "im2col", "reference"):
        x, w, bias = random(1, 2, 6, 6), random(3, 2, 3, 3), random(3)
        plan = fc.plan_conv2d(x.shape, w, bias, algorithm=algorithm)
        before = plan(x)
        w[...] = 0
        bias[...] = 0
        assert (plan(x) == before).all()


def test_residual():
    x, w, r = random(1, 2, 6, 6), random(3, 2, 3, 3), random(1, 3, 4, 4)
    plan = fc.plan_conv2d(x.shape, w, residual=True, activation="relu")
    assert (plan(x, residual=r) == fc.conv2d(x, w, residual=r, activation="relu")).all()


def test_dtype_converts_weights():
    w = random(3, 2, 3, 3)
    plan = fc.plan_conv2d((1, 2, 6, 6), w, random(3), dtype="float64")
    assert plan(random(1, 2, 6, 6, dtype=np.float64)).dtype == np.float64


def test_out_may_be_the_residual_or_overlap_the_input():
    x, w = random(1, 3, 6, 6), random(3, 3, 3, 3)
    plan = fc.plan_conv2d(x.shape, w, padding=1, residual=True)
    expected = plan(x, residual=x)
    assert (plan(x, residual=x, out=x) == expected).all()


def test_one_plan_serves_many_threads():
    x, w = [random(1, 8, 20, 20) for _ in range(16)], random(16, 8, 3, 3)
    plan = fc.plan_conv2d(x[0].shape, w, padding=1)
    expected = [plan(v) for v in x]
    with ThreadPoolExecutor(8) as pool:
        for got, wanted in zip(pool.map(plan, x * 4), expected * 4, strict=True):
            assert (got == wanted).all()


def test_tensors_come_back_as_tensors():
    x, w = random(1, 2, 6, 6), random(3, 2, 3, 3)
    plan = fc.plan_conv2d(x.shape, fc.Tensor(w))
    y = plan(fc.Tensor(x))
    assert isinstance(y, fc.Tensor)
    assert (y.data == plan(x)).all()
    with fc.no_grad():
        assert (plan(fc.Tensor(x, requires_grad=True)).data == y.data).all()


def test_bfloat16_by_name():
    plan = fc.plan_conv2d((1, 2, 6, 6), random(3, 2, 3, 3), random(3), dtype="bfloat16")
    assert plan(np.zeros((1, 2, 6, 6), np.dtype("bfloat16"))).dtype.name == "bfloat16"


def test_it_says_what_it_is():
    plan = fc.plan_conv2d((1, 2, 6, 6), random(3, 2, 3, 3))
    assert plan.algorithm in repr(plan)
    assert plan.explain().chosen == plan.algorithm
    assert fc.explain(plan, random(1, 2, 6, 6)) is plan.explain()
    assert plan.workspace_bytes == next(c for c in plan.explain().rows if c.algorithm == plan.algorithm).workspace_bytes


def test_empty_batch():
    assert fc.plan_conv2d((0, 2, 6, 6), random(3, 2, 3, 3))(random(0, 2, 6, 6)).shape == (0, 3, 4, 4)


@pytest.mark.parametrize("algorithm", ["direct", "im2col", "winograd_f4x4_3x3"])
def test_a_second_call_with_out_allocates_nothing(algorithm):
    x, w = np.ones((2, 40, 30, 30), np.float32), np.ones((40, 40, 3, 3), np.float32)
    plan = fc.plan_conv2d(x.shape, w, padding=1, algorithm=algorithm)
    out = np.empty(plan.output_shape, np.float32)
    plan(x, out=out)
    tracemalloc.start()
    try:
        plan(x, out=out)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4096, f"{peak} bytes"  # call frames and small integers
