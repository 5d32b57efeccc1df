"""What the CUDA kernels are predicted to cost, in seconds: a roofline of one GPU, pure functions of a problem.

    seconds = LAUNCH + max(operations / (share * FLOPS), bytes / BANDWIDTH)

A kernel is described by the share of the arithmetic peak that it reaches on large problems, one constant in ``SHARES``,
and by the bytes it moves. Only ratios between the rows of one operation matter, because the least prediction is chosen.
The constants are those of an H200.
"""

from __future__ import annotations

from typing import Any

from .problem import ConvProblem, PoolProblem

LAUNCH = 4e-6
"""Seconds of one launch, as a stream of them feels it."""

FLOPS = {"float32": 60e12, "float64": 30e12, "float16": 60e12, "bfloat16": 60e12}
"""Operations a second outside of the tensor cores; 16-bit types are computed in float32."""

BANDWIDTH = 4.3e12
"""Bytes a second that a copy reads and writes."""

SHARES = {"direct": 0.15, "depthwise": 0.4, "depthwise_any": 0.06, "pool": 0.08}
"""The share of FLOPS that a kernel reaches on large problems."""


def roofline(problem: Any, share: float, *, operations: float | None = None, launches: int = 1) -> float:
    """Seconds of a kernel that does ``operations`` (the problem's own, where None) and moves each array once.

    >>> from fastconv.problem import conv_problem
    >>> small = conv_problem("conv2d", 2, (1, 1, 4, 4), (1, 1, 3, 3))
    >>> LAUNCH <= roofline(small, 0.5) < 2 * LAUNCH
    True
    """
    work = (problem.flops if operations is None else operations) / (share * FLOPS[problem.dtype])
    return launches * LAUNCH + max(work, problem.bytes / BANDWIDTH)


def cuda_direct_seconds(problem: ConvProblem, threads: int) -> float:
    """The tile's channels beyond the group's last are computed in vain."""
    g = problem.geometry
    outputs = (g.in_channels if problem.direction == "grad_input" else g.out_channels) // g.groups
    return roofline(problem, SHARES["direct"], operations=problem.flops * -(-outputs // 8) * 8 / max(outputs, 1))


MULTIPROCESSORS = 132
CLOCK = 1.77e9
"""Cycles a second under load: FLOPS["float32"] of the multiprocessors with 128 multiply-adds a cycle."""


def cuda_gemm_seconds(problem: ConvProblem, threads: int, gain: float = 1.0) -> float:
    """The cycles by which kernels/cuda/gemm_tiles.py chooses tiles; weights that are not prepared are packed first."""
    from .kernels.cuda import im2col

    products = im2col.correlations(problem.direction, problem.geometry)
    work = moved = 0.0
    launches = 0
    for c in products:
        choice = c.choice(MULTIPROCESSORS)
        work += choice.cycles / CLOCK / gain
        launches += 1 + (not problem.prepared and c.steps > 0)
        moved += 0 if problem.prepared else 2 * c.packed_bytes / BANDWIDTH
    return launches * LAUNCH + max(work, problem.bytes / BANDWIDTH) + moved


def cuda_pointwise_seconds(problem: ConvProblem, threads: int) -> float:
    """Fewer copies than im2col's."""
    return cuda_gemm_seconds(problem, threads, 1.03)


def cuda_gemm_weight_seconds(problem: ConvProblem, threads: int) -> float:
    """As im2col's; partial sums of the splits are added by a second launch."""
    from .kernels.cuda import im2col_weight

    choice = im2col_weight.choice(problem.geometry, MULTIPROCESSORS)
    return (1 + (choice.splits > 1)) * LAUNCH + max(choice.cycles / CLOCK, problem.bytes / BANDWIDTH)


def cuda_winograd_fused_seconds(problem: ConvProblem, threads: int) -> float:
    """F(2x2, 3x3): the cycles that its launcher counts."""
    from .kernels.cuda import winograd_fused as launcher
    from .kernels.cuda.winograd_weights import correlation

    work = launcher.cycles(correlation(problem.direction, problem.geometry), MULTIPROCESSORS) / CLOCK
    return LAUNCH + max(work, problem.bytes / BANDWIDTH) + _transformed(problem, launcher.PACKING)


def cuda_winograd_seconds(problem: ConvProblem, threads: int) -> float:
    """F(4x4, 3x3): the cycles by which its launcher cuts tiles into chunks, and what it reads and writes of memory."""
    from .kernels.cuda import winograd as launcher
    from .kernels.cuda.winograd_weights import correlation

    cut = launcher.chunks(correlation(problem.direction, problem.geometry), *launcher.H200, launcher.MAX_BYTES)
    return cut.cycles / CLOCK + problem.bytes / BANDWIDTH + _transformed(problem, launcher.PACKING)


def _transformed(problem: ConvProblem, packing: Any) -> float:
    """Transforming the weights of a call: they are written, and read by the kernel that follows."""
    if problem.prepared:
        return 0.0
    from .kernels.cuda.winograd_weights import correlation

    return LAUNCH + 2 * packing.nbytes(correlation(problem.direction, problem.geometry)) / BANDWIDTH


def cuda_pool_seconds(problem: PoolProblem, threads: int) -> float:
    """Memory's time, but for windows that overlap much."""
    return roofline(problem, SHARES["pool"])


def cuda_depthwise_seconds(problem: ConvProblem, threads: int) -> float:
    """Square kernels of 3, 5 and 7 in float32 have kernels of their own."""
    g = problem.geometry
    tiled = problem.dtype == "float32" and g.rank == 2 and g.kernel_size in ((3, 3), (5, 5), (7, 7))
    tiled = tiled and g.stride in ((1, 1), (2, 2)) and set(g.dilation) == {1} and g.padding_mode == "zeros"
    launches = 2 if problem.direction == "grad_weight" else 1
    return roofline(problem, SHARES["depthwise" if tiled else "depthwise_any"], launches=launches)
