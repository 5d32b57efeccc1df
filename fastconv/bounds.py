"""How wrong a result can be, and how wrong it usually is: the bounds that rows state and their tests hold them to.

With u the unit roundoff of the arithmetic, a sum of n products computed in any order satisfies

    |y - y64| <= gamma(n) * (|w| ⊛ |x|)        gamma(n) = n*u / (1 - n*u)

(Higham, *Accuracy and Stability of Numerical Algorithms*, 2nd ed., section 3.1). That is a worst case: rounding errors
mostly cancel, and their root mean square grows as √n. Every row states both, its tests hold it to both.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from .kernels.geometry import phases_as_channels
from .kernels.winograd_matrices import Variant
from .problem import ConvProblem, Problem

UNIT_ROUNDOFF = {"float32": 2.0**-24, "float64": 2.0**-53, "float16": 2.0**-11, "bfloat16": 2.0**-8}


def gamma(n: float, u: float) -> float:
    """Higham's γ_n = n·u / (1 - n·u); infinite where n·u >= 1.

    >>> gamma(2, 0.25)
    1.0
    """
    return n * u / (1 - n * u) if n * u < 1 else math.inf


def _units(problem: Problem) -> tuple[float, float]:
    """Unit roundoff of the accumulation (float32 for 16-bit types) and of the stored result where it is coarser."""
    store = UNIT_ROUNDOFF[problem.dtype]
    compute = min(store, UNIT_ROUNDOFF["float32"])
    return compute, store if store > compute else 0.0


def sum_bound(problem: Problem) -> float:
    """γ_{n+2} of a sum of n products, plus one rounding on storing a 16-bit result."""
    compute, store = _units(problem)
    return gamma(problem.reduction + 2, compute) + store


def sum_typical(problem: Problem) -> float:
    """Root mean square error relative to |w| ⊛ |x|: about u/2·√n, plus the storing of a 16-bit result."""
    compute, store = _units(problem)
    return 0.5 * compute * math.sqrt(problem.reduction + 2) + 0.6 * store


BF16X3_LOST = 2.0**-23.9
"""Of |w x|: what the three smallest of nine bfloat16 products would add; see ``kernels/cpu/bf16x3.py``."""


def emulated_bound(problem: Problem) -> float:
    """A sum of n float32 products, each computed as six of bfloat16 numbers that are summed in float32.

    Larger than :func:`sum_bound` in theory only: AMX sums 16 products before it adds them to the others, so that fewer
    roundings follow one another; but sums of short depth, padded to whole chunks, may see more than n.
    """
    n = problem.reduction + 2
    return gamma(6 * n, UNIT_ROUNDOFF["float32"]) * (1 + 2.0**-6) + BF16X3_LOST


def emulated_typical(problem: Problem) -> float:
    """Root mean square error relative to |w| ⊛ |x|: no more than a sum of float32 products has."""
    return sum_typical(problem) + BF16X3_LOST / 8


def float64_bound(problem: Problem) -> float:
    """The reference: float64 sums, rounded once to the problem's dtype."""
    return gamma(problem.reduction + 2, UNIT_ROUNDOFF["float64"]) + UNIT_ROUNDOFF[problem.dtype]


def winograd_bound(variant: Variant, problem: Problem) -> float:
    """Winograd's, relative to the neighbourhood of an output:

        |y - y64| <= gamma(C + d) * |A'| ((|G||w|) ⊙ (|B'||x|)), summed over C channels; d: roundings in A', B', G
                  <= gamma(C + d) * amplification * (every |w| of the kernel times every |x| of the tile, summed)

    Stated for the C * taps products of the sum, as the other rows' bounds are, which is a little more: divided by
    direct's bound it is then the amplification, for any number of channels.
    """
    return variant.amplification * gamma(problem.reduction + variant.depth, UNIT_ROUNDOFF[problem.dtype])


def winograd_emulated_bound(variant: Variant, problem: Problem) -> float:
    """:func:`winograd_bound` with each product of transformed numbers computed as in :func:`emulated_bound`.

    A sum over C channels has 6 C roundings then; that bound has room for C * taps, and kernels have 9 or 25.
    """
    return winograd_bound(variant, problem) + variant.amplification * BF16X3_LOST


def winograd_emulated_typical(variant: Variant, problem: Problem) -> float:
    """:func:`winograd_typical`: what is left out of a product is less than a rounding, and of either sign."""
    return winograd_typical(variant, problem) * 1.1


def winograd_typical(variant: Variant, problem: Problem) -> float:
    """Root mean square error relative to |w| ⊛ |x|, of random numbers.

    Transforms round a tile about ``depth`` times, sums over the channels round partial sums; both are ``spread`` times
    larger than in a plain sum. What the transforms lose averages out over channels, and |w| ⊛ |x| grows as the number
    of taps where the numbers themselves grow as its root.
    """
    taps = math.prod(variant.kernel)
    channels = problem.reduction / taps
    return 0.5 * UNIT_ROUNDOFF[problem.dtype] * variant.spread * math.sqrt((1 + variant.depth / channels) / taps)


def of_phases(bound: Callable[[Problem], float], problem: ConvProblem) -> float:
    """A bound of the convolution that a stride's phases, as channels, make without a stride."""
    return bound(replace(problem, geometry=phases_as_channels(problem.geometry)))
