"""The CPU pooling kernels against the reference: exactly where results are exact, else within their stated bounds."""

from __future__ import annotations

import math
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from fastconv.kernels import reference
from fastconv.kernels.cpu import pool
from fastconv.kernels.geometry import PoolGeometry, pool_output_size
from tests.guard import GUARDS, guarded

Array = np.ndarray[Any, Any]


def fixed(size: tuple[int, ...], kernel: Any, stride: Any = None, padding: Any = 0, **rest: Any) -> PoolGeometry:
    """A geometry; an int stands for itself on every axis."""
    dilation, ceil_mode = rest.pop("dilation", 1), rest.pop("ceil_mode", False)
    batch, channels = rest.pop("batch", 2), rest.pop("channels", 3)
    stride = kernel if stride is None else stride
    kernel, stride, dilation = ((a,) * len(size) if isinstance(a, int) else a for a in (kernel, stride, dilation))
    padding = ((padding, padding),) * len(size) if isinstance(padding, int) else padding
    out = pool_output_size(size, kernel, stride, padding, dilation, ceil_mode)
    return PoolGeometry(batch, channels, size, out, kernel, stride, padding, dilation, **rest)


GEOMETRIES = {
    "1d": fixed((37,), 3, 2, 1),
    "1d one tap": fixed((5,), 1),
    "2x2": fixed((14, 14), 2),
    "2x2 odd": fixed((9, 35), 2),
    "2x2 of each second slice": fixed((5, 7, 12), (1, 2, 2), (2, 2, 2)),
    "3x3 same": fixed((9, 34), 3, 1, 1),
    "3x3 same, short rows": fixed((2, 6, 21), (1, 3, 3), 1, ((0, 0), (2, 0), (0, 2)), dilation=(1, 1, 3)),
    "3x3 stride 2": fixed((11, 70), 3, 2, 1),
    "a vector wide": fixed((4, 16), 1),
    "below a vector": fixed((4, 15), 2, 1),
    "above a vector": fixed((4, 33), 2, 2),
    "window 1, stride 3": fixed((7, 50), 1, 3),
    "stride above the kernel": fixed((10, 41), 2, (3, 5)),
    "window is the input": fixed((7, 7), 7, 1),
    "window is the padded input": fixed((6, 7), (8, 9), 1, 1),
    "rows pooled whole": fixed((12, 5), (3, 5), (2, 1)),
    "rows pooled whole, stride 2": fixed((12, 3), (3, 3), (2, 2)),
    "3x3 stride 2, ends early": fixed((7, 38), 3, 2),
    "5x5 stride 2": fixed((8, 45), 5, 2, 2),
    "wide windows": fixed((20, 80), (3, 40), (2, 20), ((1, 1), (7, 20))),
    "asymmetric padding": fixed((8, 21), 3, 2, ((0, 1), (1, 0))),
    "dilated": fixed((13, 40), 3, 1, 1, dilation=(2, 3)),
    "dilated, strided": fixed((13, 40), (2, 3), (2, 4), 1, dilation=(3, 6)),
    "ceil": fixed((8, 36), 3, 2, 1, ceil_mode=True),
    "ceil, partial": fixed((8, 38), 5, 4, 2, ceil_mode=True),
    "3d": fixed((5, 6, 19), (2, 3, 2), (1, 2, 2), ((1, 0), (1, 1), (0, 1))),
    "3d whole": fixed((3, 4, 5), (3, 4, 5), 1),
    "many channels": fixed((6, 7), 3, 2, 1, channels=35),
    "a vector of channels": fixed((5, 6), 2, 1, channels=16),
    "more than a scatter's block": fixed((4, 5), 2, 1, channels=70, batch=1),
    "one channel": fixed((6, 20), 2, channels=1),
    "adaptive 1": PoolGeometry(2, 3, (9, 11), (1, 1)),
    "adaptive, dividing": PoolGeometry(2, 3, (8, 36), (4, 18)),
    "adaptive, irregular": PoolGeometry(2, 3, (7, 40), (3, 17)),
    "adaptive, larger": PoolGeometry(2, 3, (3, 5), (5, 23)),
    "adaptive 3d": PoolGeometry(1, 20, (4, 5, 6), (3, 1, 4)),
    "empty batch": fixed((6, 6), 2, batch=0),
    "empty windows": PoolGeometry(1, 3, (2, 3), (3, 6), (1, 1), (1, 1), ((0, 1), (1, 2))),
}
geometries = pytest.mark.parametrize("g", GEOMETRIES.values(), ids=GEOMETRIES)
dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def first(a: Array) -> Array:
    return np.ascontiguousarray(a)


def last(a: Array) -> Array:
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(a, 1, -1)), -1, 1)


def scattered(a: Array) -> Array:
    """The same values with no axis contiguous, and the rows and channels backwards in memory."""
    wide = np.zeros(tuple(2 * n for n in a.shape), a.dtype)
    view = wide[
        (slice(None, None, 2), slice(None, None, -2), slice(None, None, -2), *(slice(1, None, 2),) * (a.ndim - 3))
    ]
    view[...] = a
    return view


def misaligned(a: Array) -> Array:
    memory = np.empty(a.nbytes + 1, np.uint8)
    view = memory[1:].view(a.dtype).reshape(a.shape)
    view[...] = a
    view.flags.writeable = False
    return view


layouts = pytest.mark.parametrize("lay", [first, last])


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def integers(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> Array:
    """Few values, so that there are ties."""
    return rng.integers(-4, 5, shape).astype(dtype)


def empty(lay: Callable[[Array], Array], shape: tuple[int, ...], dtype: Any) -> Array:
    return lay(np.full(shape, -77, dtype))


def indices_of(g: PoolGeometry, x: Array) -> Array:
    indices = np.empty(g.output_shape, np.int64)
    reference.max_forward(g, x, indices, np.empty(g.output_shape))
    return indices


def sums_of_windows(g: PoolGeometry, function: Callable[..., None], a: Array, shape: tuple[int, ...]) -> Array:
    out = np.empty(shape)
    function(replace(g, divisor_override=1), a, out)
    return out


# --- against the reference ---


@geometries
@layouts
@dtypes
def test_extremes(g: PoolGeometry, lay: Any, dtype: Any, rng: np.random.Generator) -> None:
    x = integers(rng, g.input_shape, dtype)
    for name, index_dtype in (("max_forward", np.int64), ("min_forward", np.int32)):
        expected, where = np.empty(g.output_shape), np.empty(g.output_shape, np.int64)
        getattr(reference, name)(g, x, where, expected)
        alone, y = empty(lay, g.output_shape, dtype), empty(lay, g.output_shape, dtype)
        indices = empty(lay, g.output_shape, index_dtype)
        getattr(pool, name)(g, lay(x), None, alone)
        getattr(pool, name)(g, lay(x), indices, y)
        np.testing.assert_array_equal(alone, expected)
        np.testing.assert_array_equal(y, expected)
        np.testing.assert_array_equal(indices, where)


@geometries
@layouts
def test_extremes_of_non_finite_values(g: PoolGeometry, lay: Any, rng: np.random.Generator) -> None:
    """NaN wins and the first one has the index; -inf is a value, and not the absence of one."""
    for values in ([np.nan, np.inf, -np.inf, 0, 1], [-np.inf, np.inf, 1], [-np.inf], [np.inf, np.nan], [np.inf]):
        x = rng.choice(np.array(values, np.float32), g.input_shape)
        for name, index_dtype in (("max_forward", np.int64), ("min_forward", np.int32)):
            expected, where = np.empty(g.output_shape), np.empty(g.output_shape, np.int64)
            getattr(reference, name)(g, x, where, expected)
            y, indices = empty(lay, g.output_shape, np.float32), empty(lay, g.output_shape, index_dtype)
            getattr(pool, name)(g, lay(x), indices, y)
            np.testing.assert_array_equal(y, expected)
            np.testing.assert_array_equal(indices, where)
            getattr(pool, name)(g, lay(x), None, y)
            np.testing.assert_array_equal(y, expected)


@geometries
@layouts
@dtypes
@pytest.mark.parametrize("include", [True, False])
def test_average(g: PoolGeometry, lay: Any, dtype: Any, include: bool, rng: np.random.Generator) -> None:
    """Integer sums are exact and one division rounds like the reference's."""
    x, dy = integers(rng, g.input_shape, dtype), integers(rng, g.output_shape, dtype)
    for case in (replace(g, count_include_pad=include), replace(g, divisor_override=7)):
        y, expected = empty(lay, g.output_shape, dtype), np.empty(g.output_shape, dtype)
        pool.avg_forward(case, lay(x), y)
        reference.avg_forward(case, x, expected)
        np.testing.assert_array_equal(y, expected)
        dx, expected = empty(lay, g.input_shape, dtype), np.empty(g.input_shape)
        pool.avg_grad_input(case, lay(dy), dx)
        reference.avg_grad_input(case, dy, expected)
        bound = sums_of_windows(g, reference.avg_grad_input, abs(dy), g.input_shape)
        covering = sums_of_windows(g, reference.avg_grad_input, np.ones_like(dy), g.input_shape)
        assert (abs(dx - expected) <= (covering + 1) * np.finfo(dtype).eps * bound).all()


@geometries
@layouts
def test_average_within_its_bound(g: PoolGeometry, lay: Any, rng: np.random.Generator) -> None:
    x = rng.standard_normal(g.input_shape).astype(np.float32)
    y, expected, magnitude = empty(lay, g.output_shape, np.float32), np.empty(g.output_shape), np.empty(g.output_shape)
    pool.avg_forward(g, lay(x), y)
    reference.avg_forward(g, x, expected)
    reference.avg_forward(g, abs(x), magnitude)
    n = sums_of_windows(g, reference.avg_forward, np.ones_like(x), g.output_shape)
    assert (abs(y - expected) <= 1.01 * (n + 1) * 2.0**-24 * magnitude).all()


@geometries
@layouts
@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
def test_lp(g: PoolGeometry, lay: Any, p: float, rng: np.random.Generator) -> None:
    g, u = replace(g, norm_type=p), 2.0**-24
    x = abs(rng.standard_normal(g.input_shape)).astype(np.float32)
    x[rng.random(g.input_shape) < 0.3] = 0  # some windows hold nothing else: their gradient is 0
    dy = rng.standard_normal(g.output_shape).astype(np.float32)
    y, expected = empty(lay, g.output_shape, np.float32), np.empty(g.output_shape)
    pool.lp_forward(g, lay(x), y)
    reference.lp_forward(g, x, expected)
    n = sums_of_windows(g, reference.avg_forward, np.ones_like(x), g.output_shape)
    assert (abs(y - expected) <= 1.01 * (n + 2) * u * expected).all()
    dx, expected_dx, magnitude = empty(lay, g.input_shape, np.float32), np.empty(g.input_shape), np.empty(g.input_shape)
    pool.lp_grad_input(g, lay(x), lay(expected.astype(np.float32)), lay(dy), dx)
    reference.lp_grad_input(g, x, expected, dy, expected_dx)
    reference.lp_grad_input(g, x, expected, abs(dy), magnitude)
    covering = sums_of_windows(g, reference.avg_grad_input, np.ones_like(dy), g.input_shape)
    assert (abs(dx - expected_dx) <= 1.01 * (covering + 4) * u * magnitude).all()


def test_lp_of_integers_is_exact(rng: np.random.Generator) -> None:
    g = replace(GEOMETRIES["3x3 stride 2"], norm_type=2.0)
    x = integers(rng, g.input_shape, np.float32)
    y, expected = np.empty(g.output_shape, np.float32), np.empty(g.output_shape, np.float32)
    pool.lp_forward(g, x, y)
    reference.lp_forward(g, x, expected)
    np.testing.assert_array_equal(y, expected)


@geometries
@layouts
@dtypes
@pytest.mark.parametrize("index_dtype", [np.int32, np.int64])
def test_index_gradients_and_unpooling(
    g: PoolGeometry, lay: Any, dtype: Any, index_dtype: Any, rng: np.random.Generator
) -> None:
    """Overlapping windows share indices: gradients add up, unpooling keeps the last."""
    if (dtype, index_dtype) == (np.float64, np.int32):
        index_dtype = np.int64  # three of the four compiled versions are enough
    indices = indices_of(g, rng.integers(0, 5, g.input_shape))
    small, large = integers(rng, g.output_shape, dtype), integers(rng, g.input_shape, dtype)
    for name, given, shape in (
        ("max_grad_input", small, g.input_shape),
        ("min_grad_input", small, g.input_shape),
        ("unpool_forward", small, g.input_shape),
        ("unpool_grad_input", large, g.output_shape),
    ):
        out, expected = empty(lay, shape, dtype), np.empty(shape)
        getattr(pool, name)(g, lay(given), lay(indices.astype(index_dtype)), out)
        getattr(reference, name)(g, given, indices, expected)
        np.testing.assert_array_equal(out, expected, err_msg=name)


def test_unpooling_to_another_size_and_past_the_end() -> None:
    g = fixed((4,), 2, batch=1, channels=1)
    x, indices = np.array([[[5.0, 7.0]]]), np.array([[[9, 10]]])
    out = np.full((1, 1, 10), np.nan)
    pool.unpool_forward(g, x, indices, out)
    assert out.tolist() == [[[0] * 9 + [5]]]
    back = np.full((1, 1, 2), np.nan)
    pool.unpool_grad_input(g, out, indices, back)
    assert back.tolist() == [[[5, 0]]]


# --- arrays of every kind ---

KINDS = {
    "channels last into first": (last, first),
    "channels first into last": (first, last),
    "scattered": (scattered, scattered),
    "misaligned and read-only": (misaligned, first),
}


@pytest.mark.parametrize(("given", "taken"), KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("name", ["3x3 stride 2", "3d", "1d", "adaptive, irregular"])
def test_any_strides(given: Any, taken: Any, name: str, rng: np.random.Generator) -> None:
    g = replace(GEOMETRIES[name], divisor_override=1)  # sums are exact: each layout adds in an order of its own
    x, dy = integers(rng, g.input_shape, np.float32), integers(rng, g.output_shape, np.float32)
    where = indices_of(g, x)
    calls: list[tuple[str, tuple[Array, ...], tuple[int, ...]]] = [
        ("avg_forward", (x,), g.output_shape),
        ("avg_grad_input", (dy,), g.input_shape),
        ("max_grad_input", (dy, where), g.input_shape),
        ("unpool_grad_input", (x, where), g.output_shape),
    ]
    for function, arguments, shape in calls:
        before = [a.copy() for a in arguments]
        out, expected = empty(taken, shape, np.float32), empty(first, shape, np.float32)
        getattr(pool, function)(g, *(given(a) for a in arguments), out)
        getattr(pool, function)(g, *arguments, expected)
        np.testing.assert_array_equal(out, expected, err_msg=function)
        for a, b in zip(arguments, before, strict=True):
            np.testing.assert_array_equal(a, b)
    y, indices = empty(taken, g.output_shape, np.float32), empty(taken, g.output_shape, np.int64)
    expected = np.empty(g.output_shape)
    pool.max_forward(g, given(x), indices, y)
    reference.max_forward(g, x, None, expected)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(indices, where)


def test_a_row_longer_than_the_stack_holds(rng: np.random.Generator) -> None:
    for g in (fixed((2, 20000), 3, 2, 1, batch=1, channels=2), fixed((3, 40), 3, 1, 1, batch=1, channels=300)):
        for lay in (first, last):
            x = integers(rng, g.input_shape, np.float32)
            y, expected = empty(lay, g.output_shape, np.float32), np.empty(g.output_shape)
            for name in ("max_forward", "avg_forward"):
                case = replace(g, divisor_override=2)
                getattr(pool, name)(case, lay(x), *([None] * (name == "max_forward")), y)
                getattr(reference, name)(case, x, *([None] * (name == "max_forward")), expected)
                np.testing.assert_array_equal(y, expected)


def test_an_average_divides_exactly(rng: np.random.Generator) -> None:
    """The quotient comes from a reciprocal: it must round as a division does, also at infinity and NaN."""
    g = fixed((64, 64), 3, 3, 0, batch=1, channels=1)
    for divisor in (3, 7, 9, 49, 121, 10007):
        x = np.zeros(g.input_shape, np.float32)
        x[..., ::3, ::3] = rng.standard_normal((22, 22), np.float32) * np.float32(10.0) ** rng.integers(-30, 30)
        x[0, 0, 0, :9:3] = np.inf, -np.inf, np.nan
        y, plain = np.empty(g.output_shape, np.float32), x[..., :-1:3, :-1:3]
        pool.avg_forward(replace(g, divisor_override=divisor), x, y)
        np.testing.assert_array_equal(y, plain / np.float32(divisor))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: Any, rng: np.random.Generator) -> None:
    """One rounding at the end: a sum of 4,096 would stop growing long before in either 16-bit type."""
    g = PoolGeometry(1, 2, (64, 64), (1, 1))
    y = np.empty(g.output_shape, dtype)
    pool.avg_forward(replace(g, divisor_override=1), np.ones(g.input_shape, dtype), y)
    assert (y == 4096).all()
    g = GEOMETRIES["3x3 stride 2"]
    x = rng.standard_normal(g.input_shape).astype(dtype)
    y, indices, expected = np.empty(g.output_shape, dtype), np.empty(g.output_shape, np.int64), np.empty(g.output_shape)
    pool.max_forward(g, x, indices, y)
    reference.max_forward(g, x, None, expected)
    np.testing.assert_array_equal(y.astype(np.float64), expected)
    np.testing.assert_array_equal(indices, indices_of(g, x))
    for function, given, shape in (("avg_grad_input", y, g.input_shape), ("lp_forward", abs(x), g.output_shape)):
        out, expected = np.empty(shape, dtype), np.empty(shape, dtype)
        getattr(pool, function)(g, given, out)
        getattr(reference, function)(g, given, expected)
        assert (abs(out.astype(float) - expected.astype(float)) <= 2 * ml_dtypes.finfo(dtype).eps * abs(expected)).all()


@pytest.mark.skipif(not GUARDS, reason="guard pages need Linux's mprotect")
@pytest.mark.parametrize("at", ["start", "end"])
@geometries
def test_nothing_outside_the_arrays_is_touched(g: PoolGeometry, at: str, rng: np.random.Generator) -> None:
    def guard(a: Array, channels_last: bool) -> Array:
        ordered = np.moveaxis(a, 1, -1) if channels_last else a
        copy = guarded(ordered.shape, a.dtype, at=at)
        copy[...] = ordered
        return np.moveaxis(copy, -1, 1) if channels_last else copy

    x, dy = integers(rng, g.input_shape, np.float32), integers(rng, g.output_shape, np.float32)
    where = indices_of(g, x)
    for channels_last in (False, True):
        x_, dy_, where_ = (guard(a, channels_last) for a in (x, dy, where))
        y, dx, indices = (guard(a, channels_last) for a in (np.zeros_like(dy), np.zeros_like(x), np.zeros_like(where)))
        pool.max_forward(g, x_, None, y)
        pool.max_forward(g, x_, indices, y)
        pool.avg_forward(g, x_, y)
        pool.lp_forward(g, x_, y)
        pool.avg_grad_input(g, dy_, dx)
        pool.max_grad_input(g, dy_, where_, dx)
        pool.unpool_grad_input(g, x_, where_, y)
        np.testing.assert_array_equal(indices, where)


# --- threads ---


@layouts
@pytest.mark.parametrize("name", ["2x2 odd", "3x3 same", "3d", "adaptive, irregular", "many channels", "adaptive 1"])
def test_threads_do_not_change_a_bit(
    name: str, lay: Any, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "SERIAL_BYTES", 0)
    g = GEOMETRIES[name]
    x = lay(rng.standard_normal(g.input_shape).astype(np.float32))
    dy = lay(rng.standard_normal(g.output_shape).astype(np.float32))
    where = lay(indices_of(g, x))
    calls: list[tuple[str, tuple[Array, ...], tuple[int, ...]]] = [
        ("avg_forward", (x,), g.output_shape),
        ("avg_grad_input", (dy,), g.input_shape),
        ("max_grad_input", (dy, where), g.input_shape),
        ("unpool_grad_input", (x, where), g.output_shape),
    ]
    for function, arguments, shape in calls:
        results = []
        for threads in (1, 2, 5):
            results.append(empty(lay, shape, np.float32))
            getattr(pool, function)(g, *arguments, results[-1], threads=threads)
        np.testing.assert_array_equal(results[1], results[0], err_msg=function)
        np.testing.assert_array_equal(results[2], results[0], err_msg=function)
    expected = np.empty(g.output_shape)
    reference.max_forward(g, x, None, expected)
    for threads in (1, 2, 5):
        y, indices = empty(lay, g.output_shape, np.float32), empty(lay, g.output_shape, np.int64)
        pool.max_forward(g, x, None, y, threads=threads)
        np.testing.assert_array_equal(y, expected)
        pool.max_forward(g, x, indices, y, threads=threads)
        np.testing.assert_array_equal(y, expected)
        np.testing.assert_array_equal(indices, where)


def test_other_vector_lengths() -> None:
    """The same under AVX2, in a process that Numba is told to compile for it."""
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("compiles for x86-64 with AVX2")
    features = "+avx,+avx2,+fma,+f16c,+bmi,+bmi2,+popcnt,+sse3,+ssse3,+sse4.1,+sse4.2"
    code = """
import numpy as np
from fastconv.kernels import reference
from fastconv.kernels.cpu import pool, simd
from tests.kernels.test_cpu_pool import GEOMETRIES, empty, first, last
assert simd.VECTOR_BYTES == 32
for g in GEOMETRIES.values():
    x = np.random.default_rng(3).integers(-4, 5, g.input_shape).astype(np.float32)
    expected, where = np.empty(g.output_shape, np.float32), np.empty(g.output_shape, np.int64)
    for lay in (first, last):
        y, indices = empty(lay, g.output_shape, np.float32), empty(lay, g.output_shape, np.int64)
        pool.max_forward(g, lay(x), indices, y)
        reference.max_forward(g, x, where, expected)
        assert (y == expected).all() and (indices == where).all()
        pool.avg_forward(g, lay(x), y)
        reference.avg_forward(g, x, expected)
        assert (y == expected).all()
"""
    environment = os.environ | {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": features}
    root = Path(__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", code], env=environment, cwd=root, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_long_sums_stay_accurate() -> None:
    """A global average over 200 x 210 float32 elements errs by few units, not by thousands."""
    g = PoolGeometry(1, 17, (200, 210), (1, 1))
    x = np.random.default_rng(0).random(g.input_shape, np.float32)
    for lay in (first, last):
        y = np.empty(g.output_shape, np.float32)
        pool.avg_forward(g, lay(x), y)
        exact = x.astype(np.float64).mean(axis=(2, 3), keepdims=True)
        assert (abs(y / exact - 1) < math.sqrt(200 + 210) * 2.0**-24).all()
