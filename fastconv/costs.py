"""What the CPU's kernels are predicted to cost, in seconds: pure functions of a problem and the number of threads.

A kernel packs, computes and writes out in turn, so the times add up. For each kernel a function counts its work, in
units of what it does most (multiplications in its tiles, elements packed, weights streamed through the cache), and
``COSTS`` holds the seconds of one unit:

    seconds(problem, threads) = sum over the kinds of work of  amount(problem) / threads * COSTS[kernel][kind]

Linear on purpose: ``python -m bench.calibrate`` fits all constants to measured times (``python -m bench.choices``) by
non-negative least squares, so a faster kernel needs a run of two commands and no judgement. Only ratios between the
rows of one operation matter, because the least prediction is chosen. The constants are those of two cores of a
Sapphire Rapids server.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from .kernels.geometry import ConvGeometry, phases_as_channels
from .kernels.winograd_matrices import Variant, axis_tiles
from .problem import ITEMSIZE, ConvProblem, PoolProblem, Problem

# calibrated: begin
COSTS: dict[str, dict[str, float]] = {
    "depthwise": {
        "gathered": 3.6e-11,
        "grouped": 5.16e-12,
        "products": 1.13e-11,
        "rows": 3.97e-09,
        "strided": 1.03e-10,
        "written": 1.69e-10,
    },
    "direct": {
        "copied": 5.76e-10,
        "finished": 2.93e-10,
        "packed": 6.27e-10,
        "phases": 1.5e-05,
        "prepared": 2.23e-10,
        "products": 1.07e-11,
        "ragged": 2e-08,
        "streamed": 7.17e-13,
        "sums": 1.52e-09,
    },
    "direct weight": {
        "crowded": 1.52e-11,
        "packed": 2.2e-10,
        "products": 4.4e-12,
        "shallow": 1.31e-10,
        "single": 1.91e-11,
        "strided, crowded": 1.82e-11,
        "weights": 2.71e-10,
    },
    "im2col": {
        "elementwise": 5.27e-11,
        "packed": 9.02e-11,
        "phases": 1.5e-05,
        "pieces": 2.48e-09,
        "prepared": 1.8e-09,
        "products": 1.94e-11,
        "streamed": 2.86e-10,
        "sums": 5.89e-15,
        "taps": 1.64e-08,
        "written": 5.39e-10,
    },
    "im2col weight": {
        "elementwise": 6.03e-11,
        "moved": 1.83e-10,
        "packed": 4.01e-10,
        "pieces": 1.15e-08,
        "products": 1.04e-11,
        "weights": 1.02e-09,
    },
    "lanes": {
        "packed": 3.31e-10,
        "phases": 1.5e-05,
        "products": 2.6e-11,
        "spread": 3e-09,
        "sums": 3.86e-10,
        "turned": 1.37e-10,
    },
    "lanes weight": {
        "packed": 7.64e-10,
        "products": 1.63e-11,
        "weights": 5.33e-08,
    },
    "planar": {
        "elementwise": 3.4e-10,
        "gathered": 1.1e-09,
        "packed": 3.98e-10,
        "prepared": 8e-10,
        "products": 1.15e-11,
        "scattered": 1.31e-09,
        "streamed": 2.92e-10,
        "strided": 2.5e-10,
        "sums": 3e-11,
        "written": 2.18e-11,
    },
    "pointwise": {
        "elementwise": 1.47e-09,
        "packed": 1.1e-10,
        "phases": 1.65e-05,
        "prepared": 1.03e-09,
        "products": 1.64e-11,
        "scattered": 4.25e-09,
        "strided": 2.73e-10,
        "written": 5.86e-11,
    },
    "winograd": {
        "calls": 4e-08,
        "entered": 4.96e-09,
        "entered, spilled": 2.25e-09,
        "launches": 1e-05,
        "left, spilled": 1.94e-10,
        "made": 1.1e-10,
        "moved": 3.3e-11,
        "phase rows": 8e-08,
        "phases": 5e-10,
        "prepared": 2.43e-10,
        "prepared call": 7.9e-05,
        "products": 9.2e-12,
        "scattered": 6.5e-10,
        "streamed": 9.88e-11,
        "sums": 4.9e-11,
        "taps": 2e-09,
        "turned": 3.71e-09,
    },
    "bf16x3 direct": {
        "packed": 2e-10,
        "prepared": 6e-10,
        "products": 6.27e-12,
        "turned": 2.63e-10,
        "written": 2.46e-10,
    },
    "bf16x3 winograd": {
        "entered": 3.34e-09,
        "left": 6.74e-09,
        "prepared": 4e-10,
        "products": 6.15e-12,
        "streamed": 2.04e-10,
    },
    "bfloat16": {
        "products": 1.6e-12,
        "packed": 1e-10,
        "written": 2e-10,
        "prepared": 1e-09,
    },
}
# calibrated: end

REFERENCE_FLOPS = 0.2e9
THREAD_WORK = 1 << 19  # multiply-adds that pay for another thread
BLOCK_PIXELS = 300  # of direct's block of positions: each block reads all weights
PANEL_PIXELS = 192  # of im2col's
PLANE_BYTES = 256 << 10  # of planar's
PANEL_BYTES = 160 << 10  # of pointwise's
PANEL = 48  # pixels of a full tile of planar's
LAID_BETWEEN = 1.1  # what planar's products take with their sums laid between those of other phases
STRIDED_TAPS = 6  # times that taps of a stride's phases, gathered one by one, take of those that are neighbours
FEW_TILES = 32  # of a block of Winograd's groups with few outputs: kernels/cpu/winograd_blocking.py
L2_BYTES = 1.5e6  # of weights that stay in the cache from one block to the next

Work = dict[str, float]


def _up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


class _Sizes:
    """The sizes of a convolution as the kernels see it: an input gradient exchanges input and output."""

    def __init__(self, problem: ConvProblem) -> None:
        g = problem.geometry
        back = problem.direction == "grad_input"
        x, y = math.prod(g.input_shape), math.prod(g.output_shape)
        self.read, self.written = (y, x) if back else (x, y)
        self.size = g.input_size if back else g.output_size
        self.groups, self.batch = g.groups, g.batch
        self.inputs = (g.out_channels if back else g.in_channels) // g.groups
        self.outputs = (g.in_channels if back else g.out_channels) // g.groups
        self.taps = math.prod(g.kernel_size)
        self.pixels = max(1, g.batch * math.prod(self.size))
        self.weights = math.prod(g.weight_shape)
        self.strided = max(g.stride) > 1
        self.last = problem.layout == "channels_last"
        self.phases = math.prod(g.stride) - 1 if back else 0  # beyond the first, most kernels compute one by one
        # a phase of the stride sees only its share of the taps
        self.depth = max(1.0, g.multiply_adds / max(1, self.pixels * self.outputs * g.groups))


def _seconds(kernel: str, problem: Problem, threads: int, work: Work, moved: float) -> float:
    """The sum; arithmetic of 64-bit numbers counts twice, 16-bit ones are converted before and after."""
    wide = max(4, ITEMSIZE[problem.dtype]) / 4
    costs = COSTS[kernel]
    if isinstance(problem, ConvProblem):
        threads = max(1, min(threads, problem.geometry.multiply_adds // THREAD_WORK))
    total = sum(costs.get(kind, 0.0) * amount for kind, amount in work.items()) * wide
    if ITEMSIZE[problem.dtype] == 2:
        total += moved * CONVERSION_SECONDS
    return CALL_SECONDS + total / threads


CALL_SECONDS = 8e-6
CONVERSION_SECONDS = 0.3e-9  # an element, 16 bits to 32 or back

# ------------------------------------------------------------------------------------------------- counting the work


def direct_work(problem: ConvProblem) -> Work:
    """Lanes are output channels, 32 or 16 at once; the input is packed in squares of 16 channels. Channels-last input
    is copied as it lies, or for 1x1 kernels read in place, and the sums go from registers to the output."""
    s = _Sizes(problem)
    outputs = _up(s.outputs, 16)
    blocks = max(1.0, s.pixels / BLOCK_PIXELS)
    return {
        "products": s.pixels * s.depth * outputs * s.groups,
        "sums": 0.0 if s.last else s.pixels * outputs * s.groups,
        "finished": s.pixels * outputs * s.groups if s.last else 0.0,
        "packed": 0.0 if s.last else s.read * _up(s.inputs, 16) / s.inputs,
        "copied": s.read if s.last and s.taps > 1 else 0.0,
        # pixels whose sums are less than a vector; those of one tap, or of a stride of 2, took no longer for it
        "ragged": s.pixels * s.groups if s.last and s.taps > 1 and not s.strided and s.outputs < 16 else 0.0,
        "streamed": blocks * s.weights,
        "phases": s.phases,
        "prepared": 0.0 if problem.prepared else s.weights,
    }


def lanes_work(problem: ConvProblem) -> Work:
    """Direct for few outputs a group: each lane has a group of its own."""
    s = _Sizes(problem)
    lanes = _up(s.groups * s.outputs, 32)
    return {
        "products": s.pixels * s.depth * lanes,
        "sums": s.pixels * lanes,
        "packed": s.read,
        "spread": s.read if s.inputs > 1 else 0.0,  # a lane's inputs lie this far apart, and are packed one by one
        "turned": 0.0 if s.last else s.written,
        "phases": s.phases,
        "prepared": 0.0 if problem.prepared else s.weights,
    }


def direct_weight_work(problem: ConvProblem) -> Work:
    """Rows of the tile are (tap, input channel) pairs, the sum runs over pixels, read in place: strides and many
    channels spread them over the cache, and a single tap has no reuse to pay for the packing."""
    s = _Sizes(problem)
    products = s.pixels * _up(s.inputs * s.taps, 14) * _up(s.outputs, 32) * s.groups
    return {
        "products": products,
        "strided": products if s.strided else 0.0,
        "strided, crowded": products if s.strided and s.inputs >= 128 else 0.0,
        "crowded": products if s.inputs >= 512 else 0.0,
        "single": products if s.inputs >= 256 and s.taps == 1 else 0.0,
        "shallow": products / max(1, s.inputs * s.taps),
        "packed": s.read + s.written,
        "weights": s.weights,
    }


def lanes_weight_work(problem: ConvProblem) -> Work:
    """The same lane by lane."""
    s = _Sizes(problem)
    return {
        "products": s.pixels * s.inputs * s.taps * _up(s.groups * s.outputs, 32),
        "packed": s.read + s.written,
        "weights": s.weights,
    }


def planar_work(problem: ConvProblem) -> Work:
    """Lanes are pixels of a row, 8 output channels a tile. Rows that leave tiles half empty take longer, or tiles go on
    to the next row. Blocks are small where channels are many, and each reads all weights. An input gradient computes
    the phases of its stride from one block."""
    from .kernels.cpu.planar_blocking import row_times  # a kernel module: none is imported with fastconv

    s, g = _Sizes(problem), problem.geometry
    columns, stride = max(1, s.size[-1]), g.stride
    # of channels-last input each element is taken from a line of its own, or some
    gathered = {"gathered": s.read * min(1.0, s.inputs * s.groups / 16) if s.last else 0.0}
    if problem.direction == "forward" or stride[-1] == 1:
        rows = s.pixels / columns * _up(s.outputs, 8) * s.groups
        between = -(-g.dilation[-1] * (g.kernel_size[-1] - 1) // stride[-1])
        times = row_times(math.ceil(s.depth), columns, columns + between)
        work = _pixel_work(problem, s, columns, PLANE_BYTES // max(stride)) | gathered
        return {**work, "products": rows * PANEL * min(times)}
    work = _pixel_work(problem, s, -(-columns // stride[-1]), PLANE_BYTES * math.prod(stride)) | gathered
    return {**work, "products": work["products"] * LAID_BETWEEN, "scattered": 0.0, "phases": 0.0}


def pointwise_work(problem: ConvProblem) -> Work:
    """The same where the kernel is one tap: lanes are pixels of a plane."""
    s = _Sizes(problem)
    return _pixel_work(problem, s, math.prod(s.size), PANEL_BYTES)


def _pixel_work(problem: ConvProblem, s: _Sizes, width: int, slab: int) -> Work:
    """Lanes are pixels, of which ``width`` are in one piece; a block's input is packed in ``slab`` bytes."""
    width = max(1, width)
    pixels = s.pixels * _up(width, 16) / width
    sums = pixels * _up(s.outputs, 8) * s.groups
    block, g = max(48, slab // (max(1, s.inputs) * 4)), problem.geometry
    slices = max(1.0, g.kernel_size[0] / g.stride[0]) if g.rank > 2 else 1.0  # packed for each that sees them
    return {
        "products": sums * s.depth,
        "sums": sums,
        "packed": s.read * slices,
        "written": s.written,
        "strided": s.read if s.strided else 0.0,
        "scattered": s.written if s.strided and problem.direction == "grad_input" else 0.0,
        "elementwise": float(s.read + s.written) if s.last else 0.0,
        "streamed": s.batch * max(1.0, math.prod(s.size) / block) * s.weights,
        "phases": s.phases,
        "prepared": 0.0 if problem.prepared else s.weights,
    }


def im2col_work(problem: ConvProblem) -> Work:
    """Lanes are pixels, 14 output channels a tile; every element of the matrix is packed once, in pieces of rows."""
    s = _Sizes(problem)
    matrix = s.pixels * s.depth * s.groups * s.inputs / max(1, s.inputs)
    return {
        "products": s.pixels * s.depth * _up(s.outputs, 14) * s.groups,
        "sums": s.pixels * _up(s.outputs, 14) * s.groups,
        "packed": matrix,
        "pieces": matrix / max(1, s.size[-1]),
        "taps": s.pixels * s.taps / max(1, s.size[-1]),
        "streamed": max(1.0, s.pixels / PANEL_PIXELS) * s.weights,
        "written": s.written,
        "elementwise": matrix if s.strided or s.last else 0.0,
        "phases": s.phases,
        "prepared": 0.0 if problem.prepared else s.weights,
    }


def im2col_weight_work(problem: ConvProblem) -> Work:
    """The sum runs over pixels."""
    s = _Sizes(problem)
    matrix = s.pixels * s.inputs * s.taps * s.groups
    return {
        "products": s.pixels * _up(s.inputs * s.taps, 14) * _up(s.outputs, 32) * s.groups,
        "packed": matrix,
        "pieces": matrix / max(1, s.size[-1]),
        "elementwise": matrix if s.strided or s.last else 0.0,
        "moved": s.read + s.written,
        "weights": s.weights,
    }


def depthwise_work(problem: ConvProblem) -> Work:
    """Lanes are pixels of a row, or channels where the layout is channels-last and each is a group of its own."""
    s = _Sizes(problem)
    lanes = _up(s.groups, 16) / s.groups if s.last else _up(s.size[-1], 16) / max(1, s.size[-1])
    products = s.pixels * s.depth * s.outputs * s.groups * lanes
    return {
        "products": products,
        "strided": products if s.strided else 0.0,
        "gathered": products if s.last and s.inputs > 1 else 0.0,
        "grouped": products if s.inputs > 1 else 0.0,
        "sums": s.pixels * s.outputs * s.groups * lanes,
        "rows": s.pixels * s.outputs * s.groups / max(1, s.size[-1]),
        "read": s.read,
        "written": s.written,
    }


def bfloat16_work(problem: ConvProblem) -> Work:
    """Tiles of 32 positions x 32 outputs; input channels in whole chunks of 32."""
    s = _Sizes(problem)
    return {
        "products": s.pixels * s.taps * _up(s.inputs, 32) * _up(s.outputs, 32) * s.groups,
        "packed": s.read * _up(s.inputs, 32) / s.inputs,
        "written": s.written,
        "turned": 0.0 if s.last else s.read + s.written,
        "prepared": 0.0 if problem.prepared else s.weights,
    }


def winograd_work(variant: Variant, problem: ConvProblem, threads: int) -> Work:
    """Products of whole tiles, 14, 12, 8 or 4 a time; transforms, a vector of 16 channels at once; the transformed
    weights, which every block reads; threads share the tiles, or where those are few the output channels. A volume is
    its planes, with as many times the input channels as slices are under the kernel; blocks of one depth leave out
    those of padding."""
    g = problem.geometry
    if problem.direction == "grad_input" and max(g.stride[-2:]) > 1:  # phase by phase, each with its weights
        phases = math.prod(g.stride[-2:])
        work = winograd_work(variant, replace(problem, geometry=_phase(g)), threads)
        # of a row each phase writes every stride-th number, to as many lines as all of them
        scattered = 0.0 if problem.layout == "channels_last" else float(math.prod(g.input_shape) * g.stride[-1])
        work = {kind: amount * phases for kind, amount in work.items()}
        return work | {"launches": (phases - 1.0) * threads, "scattered": scattered}
    s = _Sizes(problem)
    depth, height, width = (1, 1, *s.size)[-3:]
    down, across = (1, *g.dilation)[-2:]
    plane = axis_tiles(variant.rows, height, down) * axis_tiles(variant.columns, width, across)
    tiles = max(1, s.batch * depth * plane)
    slices, inside = _slices(problem)
    share_outputs = threads > 1 and tiles < 16 * threads and s.outputs >= 32 * threads
    small = 28 * 36 * variant.parts * slices * s.inputs * 4 <= 768 << 10
    block = -(-(28 if small else 64) * 36 // variant.products)
    blocks = 1 if share_outputs else max(threads, -(-tiles // block))
    whole = _up(s.inputs, 16) if max(g.kernel_size[:-2], default=1) > 1 else s.inputs  # slices have whole vectors
    every = variant.multiplications * slices * whole * s.outputs * s.groups
    if tiles <= blocks * plane or (s.batch > 1 and 2 * plane <= block):
        slices = inside
    channels = slices * whole
    inputs, outputs = variant.parts * slices * -(-s.inputs // 16), -(-s.outputs // 16)
    narrow = variant.parts == 1 and s.outputs <= 16  # tiles of one vector, half as many calls of them
    few = narrow or (variant.parts == 1 and s.groups > 1 and s.outputs <= 32)
    if few and 0 < plane <= FEW_TILES:
        blocks = max(1, -(-s.batch * depth // (FEW_TILES // plane)))
    heights = _narrow_heights if narrow else _heights
    rows = blocks * heights(-(-tiles // blocks))
    weights = variant.multiplications * channels * s.outputs * s.groups
    beyond = max(0.0, 1 - L2_BYTES / max(1, 4 * weights))
    spilled = max(0, math.isqrt(variant.products) - 6) if variant.rows[0] > 1 else 0
    sums = rows * variant.products * _up(s.outputs, 16 if narrow else 32) * s.groups
    entered = tiles * inputs * s.groups * (threads if share_outputs else 1) * variant.products
    left = tiles * outputs * s.groups
    # each block makes what it needs of U just before it does
    made = (
        not problem.prepared and variant.stride == 1 and (share_outputs or blocks <= threads) and 4 * weights > 1 << 20
    )
    kept = not problem.prepared and not made
    return {
        "products": sums / variant.products * variant.multiplications * channels,
        "sums": sums,
        "calls": blocks * variant.products * s.groups,  # of the tiles: few channels a group make them short
        "entered": entered * variant.stride,  # V of all phases goes through L3: twice the time on 128 channels of 56x56
        "entered, spilled": entered * spilled,
        "left": left * variant.products,
        "left, spilled": left * variant.products * spilled,
        "turned": left * variant.outputs,
        "streamed": 0.0 if made else weights * beyond * max(1, blocks),
        "moved": s.read + s.written,
        "made": every * (1 + variant.taps / variant.multiplications) * max(1, blocks) if made else 0.0,  # and gathered
        "prepared": every * (STRIDED_TAPS if variant.parts > 1 else 1) if kept else 0.0,
        "prepared, beyond": every * beyond if kept else 0.0,
        "prepared call": threads if kept else 0.0,
    }


def _phase(g: ConvGeometry) -> ConvGeometry:
    """About what one phase of a transposed convolution's stride in rows and columns is, as one without."""
    kept = g.rank - min(2, g.rank)
    taps = tuple(k // s for k, s in zip(g.kernel_size[kept:], g.stride[kept:], strict=True))
    size = tuple(-(-n // s) for n, s in zip(g.input_size[kept:], g.stride[kept:], strict=True))
    pads = tuple(((r - 1) // 2, r // 2) for r in taps)
    return replace(
        g, input_size=g.input_size[:kept] + size, kernel_size=g.kernel_size[:kept] + taps,
        stride=g.stride[:kept] + (1,) * len(taps), padding=g.padding[:kept] + pads, padding_mode="zeros",
    )  # fmt: skip


def winograd_phases_work(variant: Variant, problem: ConvProblem, threads: int) -> Work:
    """That of the convolution without a stride; input and taps are copied before it, the taps by one thread."""
    inner = replace(problem, geometry=phases_as_channels(problem.geometry))
    g = inner.geometry
    copied = {"phases": float(math.prod(g.input_shape)), "phase rows": float(math.prod(g.input_shape[:-1]))}
    if not problem.prepared:
        copied["taps"] = float(math.prod(g.weight_shape) * threads)
    return winograd_work(variant, inner, threads) | copied


def _slices(problem: ConvProblem) -> tuple[float, float]:
    """Slices of a volume under the kernel, all and without those of padding, on average over output planes."""
    g = problem.geometry
    if g.rank < 3:
        return 1, 1
    size, kernel, stride = g.input_size[0], g.kernel_size[0], g.stride[0]
    planes, slices = g.output_size[0], float(kernel)
    places = [p * stride + t * g.dilation[0] - g.padding[0][0] for p in range(planes) for t in range(kernel)]
    if problem.direction == "grad_input":
        planes, slices = size, kernel / stride
    if g.padding_mode != "zeros":
        return slices, slices
    return slices, min(slices, sum(0 <= place < size for place in places) / max(1, planes))


def bf16x3_winograd_work(variant: Variant, problem: ConvProblem, threads: int) -> Work:
    """Products of 16 tiles x 16 output channels, input channels in whole 32s; transforms, and the weights, as above."""
    s = _Sizes(problem)
    height, width = (1, *s.size)[-2:]
    down, across = (1, *problem.geometry.dilation)[-2:]
    tiles = axis_tiles(variant.rows, height, down) * axis_tiles(variant.columns, width, across)
    tiles = max(1, s.batch * tiles)
    share_outputs = threads > 1 and tiles < 32 * threads and s.outputs >= 16 * threads
    rows = _up(tiles, 16)
    blocks = 1 if share_outputs else max(threads, -(-tiles // 128))
    weights = variant.products * _up(s.inputs, 32) * _up(s.outputs, 16) * s.groups
    return {
        "products": rows * weights,
        "entered": rows * -(-s.inputs // 16) * s.groups * (threads if share_outputs else 1) * variant.products,
        "left": rows * -(-s.outputs // 16) * s.groups * variant.products,
        "streamed": weights * max(1, blocks),
        "prepared": 0.0 if problem.prepared else weights,
    }


def _heights(tiles: int) -> int:
    """Rows computed for so many, in pieces of 14, the last one of 4, 8, 12 or 14, or the last two of 8."""
    whole, left = divmod(tiles, 14)
    return tiles if whole and left == 2 else 14 * whole + min(14, _up(left, 4))


def _narrow_heights(tiles: int) -> int:
    """The same in pieces of 28, 16 and 8, as tiles one vector wide have them."""
    whole, left = divmod(tiles, 28)
    return 28 * whole + (28 if left > 24 else _up(left, 8))


# --------------------------------------------------------------------------------------------------- predicted seconds


def _predict(kernel: str, work: Callable[[ConvProblem], Work]) -> Callable[[ConvProblem, int], float]:
    def seconds(problem: ConvProblem, threads: int) -> float:
        g = problem.geometry
        moved = math.prod(g.input_shape) + math.prod(g.output_shape)
        return _seconds(kernel, problem, threads, work(problem), moved)

    return seconds


LANE_OUTPUTS = 4  # at most so many outputs a group run lane by lane in direct

_direct, _direct_weight = _predict("direct", direct_work), _predict("direct weight", direct_weight_work)
_lanes, _lanes_weight = _predict("lanes", lanes_work), _predict("lanes weight", lanes_weight_work)
_im2col, _im2col_weight = _predict("im2col", im2col_work), _predict("im2col weight", im2col_weight_work)
planar_seconds = _predict("planar", planar_work)
pointwise_seconds = _predict("pointwise", pointwise_work)
depthwise_seconds = _predict("depthwise", depthwise_work)
bf16x3_direct_seconds = _predict("bf16x3 direct", bfloat16_work)
bfloat16_seconds = _predict("bfloat16", bfloat16_work)


def by_lane(problem: ConvProblem) -> bool:
    """Whether direct multiplies lane by lane."""
    g = problem.geometry
    outputs = (g.in_channels if problem.direction == "grad_input" else g.out_channels) // g.groups
    return g.groups > 1 and outputs <= LANE_OUTPUTS


def direct_seconds(problem: ConvProblem, threads: int) -> float:
    if problem.direction == "grad_weight":
        return (_lanes_weight if by_lane(problem) else _direct_weight)(problem, threads)
    return (_lanes if by_lane(problem) else _direct)(problem, threads)


def im2col_seconds(problem: ConvProblem, threads: int) -> float:
    return (_im2col_weight if problem.direction == "grad_weight" else _im2col)(problem, threads)


def winograd_seconds(variant: Variant, problem: ConvProblem, threads: int) -> float:
    threads = max(1, min(threads, problem.geometry.multiply_adds // THREAD_WORK))
    return _seconds("winograd", problem, threads, winograd_work(variant, problem, threads), 0.0)


def winograd_phases_seconds(variant: Variant, problem: ConvProblem, threads: int) -> float:
    threads = max(1, min(threads, problem.geometry.multiply_adds // THREAD_WORK))
    return _seconds("winograd", problem, threads, winograd_phases_work(variant, problem, threads), 0.0)


def bf16x3_winograd_seconds(variant: Variant, problem: ConvProblem, threads: int) -> float:
    threads = max(1, min(threads, problem.geometry.multiply_adds // THREAD_WORK))
    work = bf16x3_winograd_work(variant, problem, threads)
    return _seconds("bf16x3 winograd", problem, threads, work, 0.0)


def pool_seconds(problem: PoolProblem, threads: int) -> float:
    """Bandwidth; each pooling has one kernel, so nothing is chosen by it."""
    return CALL_SECONDS + problem.bytes / 20e9 / threads


def reference_seconds(problem: Problem, threads: int) -> float:
    """NumPy, one tap at a time."""
    return 100e-6 + problem.flops / REFERENCE_FLOPS


def work_of(algorithm: str, variant: Any, problem: ConvProblem, threads: int) -> tuple[str, Work]:
    """The entry of COSTS and the work behind a row's prediction, for calibration."""
    if variant is not None and algorithm.endswith("_bf16x3"):
        return "bf16x3 winograd", bf16x3_winograd_work(variant, problem, threads)
    if variant is not None and algorithm.endswith("_phases"):
        return "winograd", winograd_phases_work(variant, problem, threads)
    if variant is not None:
        return "winograd", winograd_work(variant, problem, threads)
    if problem.direction == "grad_weight":
        if algorithm == "im2col":
            return "im2col weight", im2col_weight_work(problem)
        lanes = by_lane(problem)
        return ("lanes weight", lanes_weight_work(problem)) if lanes else ("direct weight", direct_weight_work(problem))
    if algorithm == "direct" and by_lane(problem):
        return "lanes", lanes_work(problem)
    kernel, work = {
        "direct": ("direct", direct_work), "im2col": ("im2col", im2col_work),
        "pointwise": ("pointwise", pointwise_work), "direct_planar": ("planar", planar_work),
        "depthwise": ("depthwise", depthwise_work), "direct_bfloat16": ("bfloat16", bfloat16_work),
        "direct_bf16x3": ("bf16x3 direct", bfloat16_work),
    }[algorithm]  # fmt: skip
    return kernel, work(problem)
