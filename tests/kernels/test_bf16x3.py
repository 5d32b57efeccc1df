"""float32 numbers as three bfloat16 numbers, and their products by AMX: exact parts, float32 accuracy, guard pages."""

import numpy as np
import pytest

from fastconv.kernels.cpu.amx import CONFIGURATION, begin_tiles, end_tiles, unavailable
from fastconv.kernels.cpu.arrays import address
from fastconv.kernels.cpu.bf16x3 import CHUNK, ROW, SIDE, product, split
from fastconv.kernels.cpu.compile import jit
from fastconv.kernels.cpu.simd import pointer, shift
from tests.guard import guarded

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=f"{unavailable()}")

FLOAT, SHORT = np.float32(0), np.int16(0)
PAIRS = np.arange(CHUNK).reshape(2, SIDE).T.ravel()  # the order of 32 numbers in a split row: 0, 16, 1, 17, ...


@jit
def split_rows(rows, source, upper, step, target, kind, short):
    for i in range(rows):
        s = shift(pointer(source, kind), i * step)
        split(s, shift(s, upper), shift(pointer(target, short), i * ROW))


@jit
def multiply(configuration, chunks, a, b, c, columns, more, kind, short):
    begin_tiles(configuration)
    product(chunks, pointer(a, short), pointer(b, short), pointer(c, kind), columns, more)
    end_tiles()


@pytest.fixture
def rng():
    return np.random.default_rng(16)


def parts(rows):
    """The three parts of split rows as float32, [part][row][32]."""
    bits = rows.view(np.uint16).reshape(-1, 3, CHUNK).astype(np.uint32) << 16
    return np.moveaxis(bits.view(np.float32), 1, 0)


def as_rows(matrix):
    """Rows of 32 numbers, split."""
    rows = guarded(matrix.shape[0] * ROW, np.int16)
    split_rows(matrix.shape[0], address(matrix), SIDE, matrix.shape[1], address(rows), FLOAT, SHORT)
    return rows


def as_pairs(matrix):
    """32 rows of 16 numbers, split: rows p and p + 16 are pairs."""
    rows = guarded(SIDE * ROW, np.int16)
    split_rows(SIDE, address(matrix), SIDE * matrix.shape[1], matrix.shape[1], address(rows), FLOAT, SHORT)
    return rows


def place(array, at="end"):
    target = guarded(array.shape, array.dtype, at=at)
    target[...] = array
    return target


@pytest.mark.parametrize("at", ["start", "end"])
def test_three_parts_make_up_a_number(rng, at):
    numbers = rng.standard_normal((500, CHUNK)) * 2.0 ** rng.integers(-100, 127, (500, CHUNK))
    x = place(numbers.clip(-3.38e38, 3.38e38).astype(np.float32), at)
    x[0, :6] = 2.0**128 - 2.0**120, 1 + 2.0**-23, 0.0, -0.0, 2.0**-103, -1 - 2.0**-8
    first, second, third = parts(as_rows(x)).astype(np.float64)
    wanted = x[:, PAIRS].astype(np.float64)
    assert (first + second + third == wanted).all()
    assert (abs(second) <= 2.0**-8 * abs(wanted)).all()
    assert (abs(third) <= 2.0**-17 * abs(wanted)).all()


@pytest.mark.parametrize("spread", [0, 8, 30])
def test_products_are_as_exact_as_float32(rng, spread):
    """At least as exact as one float32 product after another: numbers of one size, or up to 2**60 apart."""
    chunks, side = 6, 2 * SIDE
    x, w = (
        (rng.standard_normal(shape) * 2.0 ** rng.integers(-spread, spread + 1, shape)).astype(np.float32)
        for shape in ((chunks, side, CHUNK), (chunks, 2, CHUNK, SIDE))
    )
    a = place(np.concatenate([as_rows(place(block)) for block in x]))
    b = place(np.concatenate([as_pairs(place(block)) for block in w.reshape(-1, CHUNK, SIDE)]))
    w = np.moveaxis(w, 1, 2).reshape(chunks, CHUNK, side)
    truth = np.einsum("jrc,jck->rk", x.astype(np.float64), w.astype(np.float64))
    size = np.einsum("jrc,jck->rk", abs(x).astype(np.float64), abs(w).astype(np.float64))
    chain = np.zeros((side, side), np.float32)
    for left, right in zip(np.moveaxis(x, 1, -1).reshape(-1, side), w.reshape(-1, side), strict=True):
        chain += np.outer(left, right)
    c = guarded((side, side + 4), np.float32)
    for times in (1, 2):
        operands = address(a), address(b), address(c)
        multiply(address(CONFIGURATION), chunks, *operands, side + 4, times - 1, FLOAT, SHORT)
        error, other = (abs(y - times * truth) / size for y in (c[:, :side], times * chain))
        assert np.sqrt((error**2).mean()) < 1.1 * np.sqrt((other**2).mean())
        assert error.max() < times * 8 * 2.0**-24
        assert np.isnan(c[:, side:]).all()  # as they were


def test_what_is_not_finite_stays_in_its_row_and_column(rng):
    side = 2 * SIDE
    x, w = (rng.standard_normal(shape).astype(np.float32) for shape in ((side, CHUNK), (2, CHUNK, SIDE)))
    x[3, 5], x[27, 20], w[1, 9, 11] = np.inf, np.nan, -np.inf
    a, b, c = as_rows(x), np.concatenate([as_pairs(block) for block in w]), np.empty((side, side), np.float32)
    multiply(address(CONFIGURATION), 1, address(a), address(b), address(c), side, 0, FLOAT, SHORT)
    finite = np.isfinite(c)
    assert not finite[[3, 27]].any()
    assert not finite[:, SIDE + 11].any()
    assert np.delete(np.delete(finite, [3, 27], 0), SIDE + 11, 1).all()
