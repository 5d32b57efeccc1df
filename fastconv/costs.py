"""What the CPU's kernels are predicted to cost, in seconds: pure functions of a problem and the number of threads.

A kernel takes the time of its arithmetic, at the share of the peak that its tiles can use, and that of the memory it
moves: these kernels pack, compute and write out in turn, so the times add up. Only ratios between the rows of one
operation matter, because the least prediction is chosen. The constants are one core of a Sapphire Rapids server, the
shares were read off the layers of the named suites. ``python -m bench.choices`` times every row on them and shows what
each choice loses; its table is ``bench/results/choices.md``.
"""

from __future__ import annotations

import math

from .kernels.winograd_matrices import Variant
from .problem import ITEMSIZE, ConvProblem, PoolProblem, Problem

CORE_FLOPS = {"float32": 190e9, "float64": 95e9, "float16": 180e9, "bfloat16": 180e9}
CORE_BYTES = 10e9
CALL_SECONDS = 15e-6
REFERENCE_FLOPS = 0.2e9
WORTH_THREADS = 50e-6

TILE_COLUMNS = 32  # of direct's register tile: output channels
TILE_ROWS = 14  # of im2col's: output channels too, its columns are pixels
TRANSFORM_SECONDS = 1.5e-9  # of a vector of a tile: computed, stored and read again
TRANSPOSE_SECONDS = 1.5e-9
WEIGHT_BYTES = 40e9  # a second, of transformed weights
PACKED_BYTES = 6.5e9  # of them written in a second where they are not prepared, and then fetched from the core that did
PLANE_BYTES = 256 << 10  # of a block of planar
WEIGHT_STREAM_BYTES = 20e9  # a second, of weights read again by every block of planar
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


def _elements(problem: ConvProblem) -> tuple[int, int]:
    """How many are read and written besides the weights."""
    g = problem.geometry
    x, y = math.prod(g.input_shape), math.prod(g.output_shape)
    return (y, x) if problem.direction == "grad_input" else (x, y)


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
        # A tile may be half as wide. Packing turns squares of 16 channels, which few channels leave empty; sums are
        # turned on their way out.
        share = 0.95 * _used(outputs, TILE_COLUMNS // 2) * products / (products + 10)
        read, written = _elements(problem)
        channels = max(1.0, products / math.prod(g.kernel_size))
        packing = read * max(0.2e-9, 6.4e-9 / channels if channels < 16 else 0.0)
        packing += 0.0 if problem.layout == "channels_last" else written * 0.3e-9
        return _seconds(problem, threads, share, packing)
    return _seconds(problem, threads, share)


def bfloat16_seconds(problem: ConvProblem, threads: int) -> float:
    """Tiles of 32 output channels; input channels in whole chunks of 32."""
    outputs, products = _outputs(problem)
    channels = products / math.prod(problem.geometry.kernel_size)
    share = 3.5 * _used(outputs, 32) * min(1.0, channels / (-(-channels // 32) * 32))
    return _seconds(problem, threads, share)


def planar_seconds(problem: ConvProblem, threads: int) -> float:
    """Lanes are pixels of a row (of a plane, where the kernel is one tap), 8 output channels a tile. Blocks are small
    where channels are many, and each block reads all weights."""
    g = problem.geometry
    outputs, products = _outputs(problem)
    size = g.input_size if problem.direction == "grad_input" else g.output_size
    taps, strided = math.prod(g.kernel_size), max(g.stride) > 1
    width = math.prod(size) if taps == 1 else size[-1]
    share = 0.95 * _used(outputs, 8) * _used(width, 16) * products / (products + 10)
    share *= 0.9 if width % 16 else 1.0  # a row's last pixels pass through memory
    read, written = _elements(problem)
    channels, itemsize = max(1, products // taps), max(4, ITEMSIZE[problem.dtype])
    block = max(48, PLANE_BYTES // (channels * itemsize) // (1 if taps == 1 else max(g.stride)))
    blocks = g.batch * max(1, math.prod(size) // block)
    packing = read * 0.2e-9 + blocks * outputs * products * itemsize / WEIGHT_STREAM_BYTES
    if problem.layout == "channels_last":  # element by element
        packing += (read + written) * 1e-9
    elif problem.direction == "grad_input" and strided:
        packing += written * 0.7e-9
    return _seconds(problem, threads, share, packing)


def im2col_seconds(problem: ConvProblem, threads: int) -> float:
    """Lanes are pixels, rows of the tile output channels; every element of the matrix is packed once."""
    g = problem.geometry
    outputs, products = _outputs(problem)
    share = (0.82 if problem.direction == "grad_weight" else 0.76) * _used(outputs, TILE_ROWS)
    if problem.direction == "grad_weight":  # the sum runs over pixels
        seconds_an_element = 0.6e-9
    else:
        share *= products / (products + 20)
        channels = products // math.prod(g.kernel_size)  # packed together; few of them are packed in short pieces
        seconds_an_element = max(0.1e-9, 0.8e-9 / channels)
    elements = g.multiply_adds / outputs
    return _seconds(problem, threads, share, elements * seconds_an_element)


def depthwise_seconds(problem: ConvProblem, threads: int) -> float:
    """Lanes are pixels of a row, or channels where the layout is channels-last and each is a group of its own."""
    g = problem.geometry
    size = g.input_size if problem.direction == "grad_input" else g.output_size
    _, products = _outputs(problem)
    channels = products // math.prod(g.kernel_size)
    if problem.layout == "channels_last":
        lanes = g.groups
        share = 0.35 * _used(lanes, 16) if channels == 1 else 0.1
    else:
        lanes = size[-1]
        share = 0.45 * _used(lanes, 16)
    share *= 0.7 if max(g.stride) > 1 else 1.0
    return _seconds(problem, threads, share)


def winograd_seconds(variant: Variant, problem: ConvProblem, threads: int) -> float:
    """Products of whole tiles, the transforms of input and output, and reading the transformed weights."""
    g = problem.geometry
    outputs, products = _outputs(problem)
    inputs = products // max(math.prod(g.kernel_size), 1)
    size = g.output_size if problem.direction == "forward" else g.input_size
    height, width = (1, *size)[-2:]
    tiles = g.batch * -(-height // variant.rows[0]) * -(-width // variant.columns[0])
    itemsize = ITEMSIZE[problem.dtype]
    share = 0.9 * _used(outputs, TILE_COLUMNS) * inputs / (inputs + 30)
    arithmetic = 2 * tiles * variant.products * outputs * inputs * g.groups / (CORE_FLOPS[problem.dtype] * share)
    vector = 64 // itemsize
    vectors = g.groups * (-(-inputs // vector) + -(-outputs // vector)) * tiles
    transforms = vectors * (TRANSFORM_SECONDS * variant.products + TRANSPOSE_SECONDS * variant.outputs)
    weights = variant.products * outputs * inputs * g.groups * itemsize / WEIGHT_BYTES
    if not problem.prepared:
        weights += variant.products * outputs * inputs * g.groups * itemsize / PACKED_BYTES
    work = arithmetic + transforms + weights + problem.bytes / CORE_BYTES
    return CALL_SECONDS + work / (threads if work > WORTH_THREADS else 1)


def pool_seconds(problem: PoolProblem, threads: int) -> float:
    """Bandwidth."""
    return CALL_SECONDS + problem.bytes / CORE_BYTES / threads


def reference_seconds(problem: Problem, threads: int) -> float:
    """NumPy, one tap at a time."""
    return 100e-6 + problem.flops / REFERENCE_FLOPS
