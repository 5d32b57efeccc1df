"""The matrices of Winograd's minimal filtering F(m, r), derived by the Toom-Cook construction.

F(m, r) computes m outputs of a correlation with r taps from a tile of n = m + r - 1 inputs with n multiplications
instead of m * r:

    y = A' [(G g) ⊙ (B' d)]        g: r taps, d: n inputs, y[i] = sum over k of g[k] d[i + k]

**Derivation.** The transpose of "y from d" is the product of two polynomials, of degree m - 1 and r - 1: degree n - 1.
Such a polynomial is known from its values at n points p_0 ... p_{n-2} and ∞ (its leading coefficient): evaluate both
factors (A and G), multiply n pairs of numbers, interpolate by Lagrange (B). Transposing the whole gives the algorithm
above:

    A'[i, j] = p_j^i                                             and 1 at i = m - 1 for j = ∞
    G [j, k] = p_j^k / N_j       N_j = product of (p_j - p_l)    and 1 at k = r - 1 for j = ∞
    B'[j, l] = coefficient of x^l in the product of (x - p_l) over the other points l; over all points for j = ∞

In two dimensions the same is done to rows and columns: Y = A' [(G g G') ⊙ (B' d B)] A, n² multiplications for m² r².

**Error.** |ŷ - y| is bounded by rounding errors times |A'| [(|G||g|) ⊙ (|B'||d|)]: intermediate numbers are larger
than the result. Small points, in pairs ±p and with reciprocals, keep the matrices small; ``amplification`` measures
them, and it grows fast with n (Barabasz et al.): float32 loses 1 digit with F(4, 3), 2 with F(6, 3). F(5, 3) has the
amplification of F(4, 3): it uses one point of the next pair.

S. Winograd, *Arithmetic Complexity of Computations* (1980); A. Lavin, S. Gray, *Fast Algorithms for Convolutional
Neural Networks* (2016); B. Barabasz, A. Anderson, K. Soodhalter, D. Gregg, *Error Analysis and Improving the Accuracy
of Winograd Convolution for Deep Neural Networks* (2020).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

POINTS = tuple(Fraction(p) for p in ("0", "1", "-1", "2", "-2", "1/2", "-1/2", "4", "-4", "1/4", "-1/4"))
"""Points in the order they are used; fractions of powers of two, so that A' and B' are exact in floating point."""

Rows = tuple[tuple[Fraction, ...], ...]


class Matrices(NamedTuple):
    """F(m, r): ``a`` is A' (m, n), ``b`` is B' (n, n), ``g`` is G (n, r), all exact."""

    a: Rows
    b: Rows
    g: Rows

    @property
    def tile(self) -> int:
        """n: the inputs of a tile, and its multiplications."""
        return len(self.b)

    @property
    def denominator(self) -> int:
        """What the taps must be multiples of for G to give integers (A' and B' do, times a power of two)."""
        return math.lcm(*(value.denominator for row in self.g for value in row))


@lru_cache(maxsize=64)
def matrices(m: int, r: int) -> Matrices:
    """A', B', G for m outputs and r taps; F(1, 1) is a plain multiplication.

    >>> [[int(v) for v in row] for row in matrices(2, 3).a]
    [[1, 1, 1, 0], [0, 1, -1, 1]]
    >>> [[str(v) for v in row] for row in matrices(2, 3).g]
    [['1', '0', '0'], ['1/2', '1/2', '1/2'], ['1/2', '-1/2', '1/2'], ['0', '0', '1']]
    """
    n = m + r - 1
    if n - 1 > len(POINTS):
        raise ValueError(f"F({m}, {r}) needs {n - 1} points, there are {len(POINTS)}")
    points = POINTS[: n - 1]
    a, b, g = [], [], []
    for j, p in enumerate(points):
        others = points[:j] + points[j + 1 :]
        scale = math.prod((p - q for q in others), start=Fraction(1))
        sign = 1 if scale > 0 else -1  # moved from G to B': G's rows then begin with positive numbers
        a.append([p**i for i in range(m)])
        g.append([p**k / abs(scale) for k in range(r)])
        b.append([sign * v for v in _from_roots(others)] + [Fraction(0)])
    a.append([Fraction(i == m - 1) for i in range(m)])
    g.append([Fraction(k == r - 1) for k in range(r)])
    b.append(_from_roots(points))
    return Matrices(_frozen(zip(*a, strict=True)), _frozen(b), _frozen(g))


def _from_roots(roots: tuple[Fraction, ...]) -> list[Fraction]:
    """Coefficients, lowest first, of the product of (x - root)."""
    out = [Fraction(1)]
    for root in roots:
        out = [low - root * high for low, high in zip([Fraction(0), *out], [*out, Fraction(0)], strict=True)]
    return out


def _frozen(rows: Iterable[Iterable[Fraction]]) -> Rows:
    return tuple(tuple(row) for row in rows)


@lru_cache(maxsize=64)
def amplification(m: int, r: int) -> float:
    """The largest sum over j of |A'[i, j]| |G[j, k]| |B'[j, l]|: how many times a product g[k] d[l] can enter
    the error of an output, where it should count at most once.

    >>> amplification(1, 1), amplification(2, 3), round(amplification(4, 3), 1), round(amplification(6, 3), 1)
    (1.0, 2.0, 10.7, 14.3)
    """
    f = matrices(m, r)
    # in floats: with fractions this took 15 ms of a process's first convolution
    a, g, b = ([[abs(float(v)) for v in row] for row in rows] for rows in (f.a, f.g, f.b))
    return max(
        sum(a[i][j] * g[j][k] * b[j][t] for j in range(f.tile))
        for i in range(m)
        for k in range(r)
        for t in range(f.tile)
    )


@lru_cache(maxsize=64)
def spread(m: int, r: int) -> float:
    """The root mean square over outputs of sum over j of A'[i, j]² |G[j]|² |B'[j]|² / r: how many times larger than a
    sum of r products of random numbers, squared, are the numbers that an output is made of.

    >>> spread(1, 1), round(spread(2, 3), 1), round(spread(4, 3), 1), round(spread(6, 3), 1)
    (1.0, 1.3, 3.3, 4.5)
    """
    f = matrices(m, r)
    size = [sum(v * v for v in f.g[j]) * sum(v * v for v in f.b[j]) for j in range(f.tile)]
    return math.sqrt(float(sum(f.a[i][j] ** 2 * size[j] for i in range(m) for j in range(f.tile)) / (m * r)))


def depth(m: int, r: int) -> int:
    """Roundings on the longest way of a number through B', or a tap through G, and on through A': one a term."""
    return sum(max(sum(v != 0 for v in row) for row in rows) for rows in matrices(m, r))


class Variant(NamedTuple):
    """F(m, r) along the rows (height) and along the columns (width) of an image; F(1, 1) leaves an axis alone.

    With stride 2 it is F(m, r) of each phase of the input: every second row and column under every second tap. A kernel
    of 2 r - 1 taps has r for even inputs and r - 1 for odd ones, whose product at ∞, the last tap's, is zero; one of
    2 r taps (``even``) has r for both.
    """

    name: str
    rows: tuple[int, int]
    columns: tuple[int, int]
    stride: int = 1
    even: bool = False

    @property
    def strides(self) -> tuple[int, int]:
        rows, columns = (self.stride if r > 1 else 1 for r in (self.rows[1], self.columns[1]))
        return (rows, columns)

    @property
    def parts(self) -> int:
        """Phases of the input."""
        return math.prod(self.strides)

    @property
    def kernel(self) -> tuple[int, int]:
        last = self.stride if self.even else 1  # how many phases have an r-th tap
        rows, columns = (self.stride * (r - 1) + last for r in (self.rows[1], self.columns[1]))
        return (rows, columns)

    @property
    def points(self) -> tuple[int, int]:
        return (sum(self.rows) - 1, sum(self.columns) - 1)

    @property
    def taps(self) -> int:
        """That are transformed at a time."""
        return self.rows[1] * self.columns[1]

    @property
    def outputs(self) -> int:
        """Of a tile."""
        return self.rows[0] * self.columns[0]

    @property
    def products(self) -> int:
        """Elements of a transformed tile."""
        return math.prod(self.points)

    @property
    def multiplications(self) -> int:
        """Of a tile and an input channel: one for each element of each phase that is not zero."""
        zero = 0 if self.even else 1
        return math.prod(n * s - zero * (s - 1) for n, s in zip(self.points, self.strides, strict=True))

    @property
    def amplification(self) -> float:
        return amplification(*self.rows) * amplification(*self.columns)

    @property
    def spread(self) -> float:
        return spread(*self.rows) * spread(*self.columns)

    @property
    def depth(self) -> int:
        return depth(*self.rows) + depth(*self.columns)

    @property
    def denominator(self) -> int:
        """Weights that are multiples of this are transformed without rounding."""
        return matrices(*self.rows).denominator * matrices(*self.columns).denominator


def axis_tiles(f: tuple[int, int], outputs: int, dilation: int) -> int:
    """Tiles of F(m, r) along an axis: taps ``dilation`` apart see as many interleaved signals, each with its own tiles.

    >>> axis_tiles((4, 3), 56, 1), axis_tiles((4, 3), 56, 2), axis_tiles((4, 3), 65, 4)
    (14, 14, 17)
    """
    m, r = f
    d = dilation if r > 1 else 1
    return outputs // (m * d) * d + min(d, outputs % (m * d))


VARIANTS = (
    Variant("f2x2_3x3", (2, 3), (2, 3)),
    Variant("f3x3_3x3", (3, 3), (3, 3)),
    Variant("f4x4_3x3", (4, 3), (4, 3)),
    Variant("f5x5_3x3", (5, 3), (5, 3)),
    Variant("f6x6_3x3", (6, 3), (6, 3)),
    Variant("f2x2_5x5", (2, 5), (2, 5)),
    Variant("f4x4_5x5", (4, 5), (4, 5)),
    Variant("f4x4_2x2", (4, 2), (4, 2)),
    Variant("s2_f2x2_3x3", (2, 2), (2, 2), 2),
    Variant("s2_f2x2_4x4", (2, 2), (2, 2), 2, even=True),
    Variant("s2_f4x4_4x4", (4, 2), (4, 2), 2, even=True),
    Variant("s2_f2x2_5x5", (2, 3), (2, 3), 2),
    Variant("f2_3", (1, 1), (2, 3)),
    Variant("f4_3", (1, 1), (4, 3)),
    Variant("f6_3", (1, 1), (6, 3)),
    Variant("s2_f4_3", (1, 1), (4, 2), 2),
)
"""What there are kernels for. A larger tile needs fewer products for an output and more weights, and may fit worse:
14 x 14 outputs are 49 tiles of 16 products, 25 of 25, 16 of 36, or 9 of 49, with 1.8, 2.8, 4 or 5.4 times the weights.
"""
