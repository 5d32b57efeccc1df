"""Conversions between 16-bit floats and float32: NumPy's results, inside guard pages."""

import ml_dtypes
import numpy as np
import pytest

from fastconv.kernels.cpu import half
from fastconv.problem import conv_problem
from fastconv.registry import ROWS
from fastconv.testing import check_row
from tests.guard import guarded

SIXTEEN = [np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)]
CONV = [r for r in ROWS if (r.op, r.device) == ("conv", "cpu") and r.family != "reference" and "bfloat16" in r.dtypes]


def same(a, b):
    """Equal bits, but any NaN is as good as another."""
    nan = np.isnan(b.astype(np.float64))
    return np.array_equal(a[~nan].view(np.uint8), b[~nan].view(np.uint8)) and np.isnan(a[nan].astype(np.float64)).all()


@pytest.mark.parametrize("dtype", SIXTEEN, ids=str)
def test_every_number_widens(dtype):
    every = np.arange(1 << 16, dtype=np.uint16).view(dtype)
    got = guarded(every.shape, np.float32)
    half._convert(every, got, 2)
    with np.errstate(invalid="ignore"):
        assert same(got, every.astype(np.float32))


@pytest.mark.parametrize("dtype", SIXTEEN, ids=str)
@pytest.mark.parametrize("size", [1, 15, 16, 17, 100_001])
def test_rounds_to_nearest_even(dtype, size):
    rng = np.random.default_rng(size)
    given = guarded((size,), np.float32)
    given[...] = rng.integers(0, 1 << 32, size, dtype=np.uint32).view(np.float32)
    given[: size // 2] = (rng.integers(-2048, 2048, size // 2) + 0.5) / 8  # halfway between neighbours, often
    got = guarded((size,), dtype)
    half._convert(given, got, 3)
    with np.errstate(all="ignore"):
        assert same(got, given.astype(dtype))


@pytest.mark.parametrize("order", ["C", "channels last", "gaps"])
def test_a_copy_lies_as_the_original(order):
    array = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5).astype(np.float16)
    if order == "channels last":
        array = np.moveaxis(np.ascontiguousarray(np.moveaxis(array, 1, -1)), -1, 1)
    elif order == "gaps":
        array = np.repeat(array, 2, axis=3)[..., ::2]
    copy = half._single(half.Workspace(np.empty(4096, np.uint8)), array, 1)
    np.testing.assert_array_equal(copy, array)
    if order != "gaps":
        assert copy.strides == tuple(2 * s for s in array.strides)


@pytest.mark.parametrize("row", CONV, ids=lambda row: f"{row.algorithm}-{row.direction}")
def test_an_empty_batch_needs_no_workspace(row):
    kernel, groups = (1, 1) if row.family == "pointwise" else (3, 64 if row.family == "depthwise" else 1)
    for dtype in row.dtypes:
        problem = conv_problem(
            "conv", 2, (0, 64, 8, 8), (64, 64 // groups, kernel, kernel), groups=groups, dtype=dtype,
            direction=row.direction,
        )  # fmt: skip
        if row.refuses(problem) is None:
            check_row(row, problem, rng=np.random.default_rng(0), empty=guarded)
