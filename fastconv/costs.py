"""What the CPU's kernels are predicted to cost, in seconds: pure functions of a problem and the number of threads.

A kernel takes the time of its arithmetic, at the share of the peak that its tiles can use, and that of the memory it
moves: these kernels pack, compute and write out in turn, so the times add up. Only ratios between the rows of one
operation matter, because the least prediction is chosen. The constants are one core of a Sapphire Rapids server, the
shares were read off the layers of the named suites. ``python -m bench.choices`` times every row on them and shows what
each choice loses; its table is ``bench/results/choices.md``.
"""

from __future__ import annotations

import math

from .problem import ConvProblem, PoolProblem, Problem

CORE_FLOPS = {"float32": 190e9, "float64": 95e9, "float16": 180e9, "bfloat16": 180e9}
CORE_BYTES = 10e9
CALL_SECONDS = 15e-6
REFERENCE_FLOPS = 0.2e9
WORTH_THREADS = 50e-6

TILE_COLUMNS = 32  # of direct's register tile: output channels
TILE_ROWS = 14  # of im2col's: output channels too, its columns are pixels
LANE_OUTPUTS = 4  # at most so many outputs a group run lane by lane in direct


def _seconds(problem: Problem, threads: int, efficiency: float, packing: float = 0.0) -> float:
    """Arithmetic at ``efficiency`` of the peak, packing, and every byte once, plus the call."""
    arithmetic = problem.flops / (CORE_FLOPS[problem.dtype] * efficiency)
    work = arithmetic + packing + problem.bytes / CORE_BYTES
    return CALL_SECONDS + work / (threads if work > WORTH_THREADS else 1)


def _used(n: int, tile: int) -> float:
    """The share of a tile that n rows or columns fill on average."""
    return n / (-(-n // tile) * tile)


def _outputs(problem: ConvProblem) -> tuple[int, int]:
    """Channels a group that the kernel computes, and the products it sums for each element."""
    g = problem.geometry
    k, c = g.out_channels // g.groups, g.in_channels // g.groups
    taps = math.prod(g.kernel_size)
    return (c, k * taps) if problem.direction == "grad_input" else (k, c * taps)


def direct_seconds(problem: ConvProblem, threads: int) -> float:
    """Lanes are output channels; short reductions pay for starting and storing a tile."""
    g = problem.geometry
    outputs, products = _outputs(problem)
    if g.groups > 1 and outputs <= LANE_OUTPUTS:
        share = 0.08 if problem.direction == "grad_weight" else 0.2
    elif problem.direction == "grad_weight":
        # Rows of the tile are (tap, input channel) pairs, the sum runs over pixels, read in place: strides and many
        # channels spread them over the cache, and a single tap has no reuse to pay for the packing.
        channels = g.in_channels // g.groups
        share = 0.85 * _used(outputs, TILE_COLUMNS) * _used(products, TILE_ROWS)
        share *= 0.6 if max(g.stride) > 1 else 1.0
        share *= 0.75 if channels >= 512 else 1.0
        share *= 0.45 if channels >= 256 and math.prod(g.kernel_size) == 1 else 1.0
    else:
        share = 0.9 * _used(outputs, TILE_COLUMNS) * products / (products + 30)
    return _seconds(problem, threads, share)


def planar_seconds(problem: ConvProblem, threads: int) -> float:
    """As direct."""
    return direct_seconds(problem, threads)


def im2col_seconds(problem: ConvProblem, threads: int) -> float:
    """Lanes are pixels, rows of the tile output channels; every element of the matrix is packed once."""
    g = problem.geometry
    outputs, products = _outputs(problem)
    share = 0.82 * _used(outputs, TILE_ROWS)
    if problem.direction == "grad_weight":  # the sum runs over pixels
        seconds_an_element = 0.6e-9
    else:
        share *= products / (products + 20)
        channels = products // math.prod(g.kernel_size)  # packed together; few of them are packed in short pieces
        seconds_an_element = max(0.1e-9, 0.8e-9 / channels)
    elements = g.multiply_adds / outputs
    return _seconds(problem, threads, share, elements * seconds_an_element)


def pool_seconds(problem: PoolProblem, threads: int) -> float:
    """Bandwidth."""
    return CALL_SECONDS + problem.bytes / CORE_BYTES / threads


def reference_seconds(problem: Problem, threads: int) -> float:
    """NumPy, one tap at a time."""
    return 100e-6 + problem.flops / REFERENCE_FLOPS
