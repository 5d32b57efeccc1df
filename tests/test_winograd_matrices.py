"""Winograd's matrices, derived a second time: exact identities over the rationals, and the published examples."""

import random
from fractions import Fraction
from itertools import product

import pytest

from fastconv.kernels.winograd_matrices import POINTS, VARIANTS, amplification, depth, matrices, spread

PAIRS = [(m, r) for m, r in product(range(1, 9), range(1, 8)) if m + r - 2 <= len(POINTS)]


def times(matrix, vector):
    return [sum(a * b for a, b in zip(row, vector, strict=True)) for row in matrix]


def unit(n, i):
    return [Fraction(i == j) for j in range(n)]


@pytest.mark.parametrize(("m", "r"), PAIRS)
def test_the_algorithm_is_the_correlation(m, r):
    """A' [(G g) ⊙ (B' d)] is bilinear: it is the correlation if it is for all pairs of unit vectors."""
    f = matrices(m, r)
    assert f.tile == m + r - 1 == len(f.a[0]) == len(f.b[0]) == len(f.g)
    for k, t in product(range(r), range(f.tile)):
        products = [u * v for u, v in zip(times(f.g, unit(r, k)), times(f.b, unit(f.tile, t)), strict=True)]
        assert times(f.a, products) == [Fraction(t == i + k) for i in range(m)]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.name)
def test_nested_in_two_dimensions(variant):
    """Random rationals: Y = A' [(G g G') ⊙ (B' d B)] A."""
    draw = random.Random(variant.name)
    down, across = matrices(*variant.rows), matrices(*variant.columns)
    r, s = variant.rows[1], variant.columns[1]

    def square(rows, columns):
        return [[Fraction(draw.randint(-9, 9), draw.randint(1, 9)) for _ in range(columns)] for _ in range(rows)]

    def both(left, right, x):
        half = [times(left, column) for column in zip(*x, strict=True)]
        return [times(right, row) for row in zip(*half, strict=True)]

    g, d = square(r, s), square(down.tile, across.tile)
    u, v = both(down.g, across.g, g), both(down.b, across.b, d)
    y = both(down.a, across.a, [[p * q for p, q in zip(*rows, strict=True)] for rows in zip(u, v, strict=True)])
    for i, j in product(range(variant.rows[0]), range(variant.columns[0])):
        assert y[i][j] == sum(g[k][t] * d[i + k][j + t] for k in range(r) for t in range(s))
    assert variant.products == down.tile * across.tile


def test_published_matrices():
    """Lavin and Gray's F(2, 3) and F(4, 3), up to the signs of rows."""
    f = matrices(4, 3)
    assert f.a == ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))
    assert f.b[0] == (4, 0, -5, 0, 1, 0)
    assert f.b[5] == (0, 4, 0, -5, 0, 1)
    assert f.g[0] == (Fraction(1, 4), 0, 0)
    assert f.g[3] == (Fraction(1, 24), Fraction(1, 12), Fraction(1, 6))
    assert (f.denominator, matrices(2, 3).denominator, matrices(6, 3).denominator) == (24, 2, 90)


def test_data_and_sums_are_transformed_exactly():
    """A' and B' hold only fractions of powers of two, so floating point holds them as they are."""
    for v in VARIANTS:
        for pair in (v.rows, v.columns):
            f = matrices(*pair)
            assert all(c.denominator & (c.denominator - 1) == 0 for rows in (f.a, f.b) for row in rows for c in row)


def test_the_point_one_enters_every_output_once():
    """Why the bias may be added to the product of the points (1, 1)."""
    for v in VARIANTS:
        for pair in (v.rows, v.columns):
            f = matrices(*pair)
            assert all(row[min(1, f.tile - 1)] == 1 for row in f.a)


def test_errors_grow_with_the_tile():
    assert amplification(1, 1) == spread(1, 1) == 1
    for measure in (amplification, spread, depth):
        assert measure(2, 3) < measure(4, 3) < measure(6, 3)
    by_name = {v.name: v for v in VARIANTS}
    assert by_name["f4x4_3x3"].amplification == pytest.approx((32 / 3) ** 2)
    assert by_name["f4_3"].amplification == pytest.approx(32 / 3)


def test_too_many_points():
    with pytest.raises(ValueError, match=r"F\(9, 9\) needs 16 points, there are 11"):
        matrices(9, 9)
