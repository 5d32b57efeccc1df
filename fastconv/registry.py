"""THE table: one row a kernel. Dispatch, tests, benchmarks, documentation and ``explain`` enumerate it.

To add a kernel write one file in ``kernels/`` and one row here; CONTRIBUTING walks through it. A row is data and a
few pure functions of a problem: nothing here imports a kernel, Numba or CuPy; ``module:function`` strings resolve
when a kernel first runs.

**Error bounds.** With u the unit roundoff of the arithmetic, a sum of n products computed in any order satisfies

    |y - y64| <= gamma(n) * (|w| ⊛ |x|)        gamma(n) = n*u / (1 - n*u)

(Higham, *Accuracy and Stability of Numerical Algorithms*, 2nd ed., section 3.1). That is a worst case: rounding errors
mostly cancel, and their root mean square grows as √n. Every row states both, its tests hold it to both.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from .costs import direct_seconds, im2col_seconds, planar_seconds, pool_seconds, reference_seconds
from .problem import ITEMSIZE, PoolProblem, Problem

Predicate = Callable[[Any], str | None]

UNIT_ROUNDOFF = {"float32": 2.0**-24, "float64": 2.0**-53, "float16": 2.0**-11, "bfloat16": 2.0**-8}


@dataclass(frozen=True)
class Row:
    """One kernel: what it computes, where it lives, when it can run, and what it costs.

    Variants of one algorithm share a ``family``; left out, it is the algorithm's own name.
    """

    op: str
    direction: str
    device: str
    algorithm: str
    target: str
    summary: str
    dtypes: tuple[str, ...]
    why_not: Predicate
    seconds: Callable[[Any, int], float]
    bound: Callable[[Any], float]
    typical: Callable[[Any], float]
    workspace: str | None = None
    prepare: str | None = None
    family: str = ""
    deterministic: bool = True
    precision: str = "ieee"

    def __post_init__(self) -> None:
        if not self.family:
            object.__setattr__(self, "family", self.algorithm)

    def refuses(self, problem: Problem) -> str | None:
        """None where the kernel can run the problem, else the reason."""
        if problem.dtype not in self.dtypes:
            return f"computes {', '.join(self.dtypes)}, not {problem.dtype}"
        return self.why_not(problem)

    def workspace_bytes(self, problem: Problem, threads: int) -> int:
        """Bytes of scratch memory the kernel needs for the problem."""
        if self.workspace is None or problem.geometry.batch == 0:
            return 0
        return int(resolve(self.workspace)(problem.geometry, ITEMSIZE[problem.dtype], threads))

    @property
    def name(self) -> str:
        return f"{self.device}/{self.op}/{self.direction}/{self.algorithm}"


@cache  # bounded by the table
def resolve(target: str) -> Callable[..., Any]:
    """The function a ``module:function`` string names.

    >>> resolve("fastconv.kernels.reference:forward").__name__
    'forward'
    """
    module, function = target.split(":")
    kernel: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return kernel


# --------------------------------------------------------------------------------------------------------- errors


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


def float64_bound(problem: Problem) -> float:
    """The reference: float64 sums, rounded once to the problem's dtype."""
    return gamma(problem.reduction + 2, UNIT_ROUNDOFF["float64"]) + UNIT_ROUNDOFF[problem.dtype]


# -------------------------------------------------------------------------------------------------- when rows refuse


def always(problem: Problem) -> str | None:
    return None


def _plane_too_large(problem: PoolProblem) -> str | None:
    g = problem.geometry
    plane = math.prod(g.input_size) * (g.channels if problem.layout == "channels_last" else 1)
    return None if plane < 2**31 else f"counts positions in 32 bits, a plane has {plane} elements"


# ---------------------------------------------------------------------------------------------------------- the table

FLOATS = ("float32", "float64", "float16", "bfloat16")
CPU = "fastconv.kernels.cpu."
REFERENCE = "fastconv.kernels.reference:"


CORRELATIONS = ("forward", "grad_input")


def _conv(
    algorithm: str, summary: str, seconds: Callable[[Any, int], float],
    directions: tuple[str, ...] = (*CORRELATIONS, "grad_weight"), why_not: Predicate = always, family: str = "",
) -> Iterator[Row]:  # fmt: skip
    """A CPU convolution, a row a direction; ``module:direction`` computes, ``pack_direction`` prepares weights."""
    for direction in directions:
        yield Row(
            op="conv",
            direction=direction,
            device="cpu",
            algorithm=algorithm,
            target=f"{CPU}{algorithm}:{direction}",
            prepare=None if direction == "grad_weight" else f"{CPU}{algorithm}:pack_{direction}",
            workspace=f"{CPU}blocking:{algorithm}_{direction}_workspace",
            summary=summary,
            dtypes=FLOATS,
            why_not=why_not,
            seconds=seconds,
            bound=sum_bound,
            typical=sum_typical,
            family=family,
        )


def _pool(op: str, stem: str, summary: str) -> Iterator[Row]:
    """A CPU pooling, adaptive windows included, and its gradient."""
    for direction in ("forward", "grad_input"):
        yield Row(
            op=op,
            direction=direction,
            device="cpu",
            algorithm="direct",
            target=f"{CPU}pool:{stem}_{direction}",
            summary=summary,
            dtypes=FLOATS,
            why_not=_plane_too_large,
            seconds=pool_seconds,
            bound=sum_bound,
            typical=sum_typical,
        )


def _reference(op: str, stem: str, *directions: str) -> Iterator[Row]:
    """The float64 oracle: always able on the CPU, never the fast choice."""
    for direction in directions:
        yield Row(
            op=op,
            direction=direction,
            device="cpu",
            algorithm="reference",
            target=f"{REFERENCE}{stem}{direction}",
            summary="NumPy in float64, for checking",
            dtypes=FLOATS,
            why_not=always,
            seconds=reference_seconds,
            bound=float64_bound,
            typical=float64_bound,
        )


ROWS: tuple[Row, ...] = (
    *_conv("direct", "taps of a padded channels-last slab, summed in register tiles", direct_seconds),
    *_conv("planar", "planes read in place, pixels in the lanes", planar_seconds, CORRELATIONS),
    *_conv("im2col", "blocks of the im2col matrix times the weights", im2col_seconds),
    *_pool("max_pool", "max", "running maximum of each window, the first one wins"),
    *_pool("min_pool", "min", "running minimum of each window, the first one wins"),
    *_pool("avg_pool", "avg", "mean of each window"),
    *_pool("lp_pool", "lp", "p-norm of each window"),
    *_pool("max_unpool", "unpool", "values scattered to the positions of their indices"),
    *_reference("conv", "", "forward", "grad_input", "grad_weight"),
    *_reference("max_pool", "max_", "forward", "grad_input"),
    *_reference("min_pool", "min_", "forward", "grad_input"),
    *_reference("avg_pool", "avg_", "forward", "grad_input"),
    *_reference("lp_pool", "lp_", "forward", "grad_input"),
    *_reference("max_unpool", "unpool_", "forward", "grad_input"),
)


def rows_for(op: str, direction: str, device: str) -> tuple[Row, ...]:
    """The rows of one operation, in the table's order.

    >>> {"direct", "reference"} <= {row.algorithm for row in rows_for("conv", "forward", "cpu")}
    True
    """
    return tuple(r for r in ROWS if (r.op, r.direction, r.device) == (op, direction, device))


def families() -> tuple[str, ...]:
    """Every name ``algorithm=`` takes besides ``"auto"``: families first, then variants."""
    names = [r.family for r in ROWS] + [r.algorithm for r in ROWS]
    return tuple(dict.fromkeys(names))
