"""Launches ``winograd_fused.cu``: Winograd F(2x2, 3x3) in one kernel, forward and input gradient, float32."""

from __future__ import annotations

from functools import partial
from itertools import product

import numpy as np

from ..geometry import ConvGeometry
from .launch import both_directions, grid
from .module import AMPERE, Instance
from .winograd_weights import (
    BLOCK_OUTPUTS,
    Call,
    Packing,
    aligned_vector,
    correlate,
    correlation,
    matrix_defines,
    tile_count,
)

OUTPUTS, THREADS, TILES, DEPTH = 2, 512, 32, 8
STAGE_FLOATS = DEPTH * (16 * TILES + 4 + 16 * BLOCK_OUTPUTS)
TILE_BYTES = 12  # struct Tile
OFFSETS = 12  # a thread's, where padding is not zeros

_MATRICES = matrix_defines(OUTPUTS)
PACKING = Packing("winograd_fused", (("INDEX", "int"), *_MATRICES, ("ZERO_PADDED", 1)), OUTPUTS, DEPTH, panels=True)


def instance(index: str, zero_padded: bool) -> Instance:
    defines = (("INDEX", index), *_MATRICES, ("ZERO_PADDED", int(zero_padded)))
    return Instance("winograd_fused", "winograd_fused", defines, THREADS, AMPERE)


def forward_instances() -> tuple[Instance, ...]:
    """Every instance that ``forward`` may launch."""
    return (PACKING.instance, *(instance(*which) for which in product(("int", "long long"), (True, False))))


def grad_input_instances() -> tuple[Instance, ...]:
    """Every instance that ``grad_input`` may launch."""
    return (PACKING.instance, instance("int", True), instance("long long", True))


STEP_CYCLES, END_CYCLES = 2800, 6000
"""Of a multiprocessor: a step of DEPTH channels, of which 2048 are multiply-adds; a tile's first loads and its end."""


def blocks(c: ConvGeometry) -> int:
    """Blocks of a launch."""
    return -(-tile_count(c, OUTPUTS) // TILES) * c.groups * -(-(c.out_channels // c.groups) // BLOCK_OUTPUTS)


def cycles(c: ConvGeometry, multiprocessors: int) -> float:
    """Predicted for a launch: each multiprocessor computes one block after the other."""
    steps = -(-(c.in_channels // c.groups) // DEPTH)
    return -(-blocks(c) // multiprocessors) * (steps * STEP_CYCLES + END_CYCLES)


def shared_bytes(zero_padded: bool, index: str = "long long") -> int:
    """Of a block."""
    offsets = 0 if zero_padded else OFFSETS * THREADS * (4 if index == "int" else 8)
    return 2 * 4 * STAGE_FLOATS + TILE_BYTES * TILES + offsets


def _run(call: Call) -> None:
    known, c = call.layout, call.layout.correlation
    zero_padded = c.padding_mode == "zeros"
    width = aligned_vector(known.output_vector, int(call.out), int(call.residual))
    last = np.int32(known.output_last), np.int32(known.input_last), np.int32(width)
    arguments = (known.struct, call.given, call.weights, call.bias, call.residual, call.out, *last)
    call.driver.function(instance(known.offsets, zero_padded))(
        grid(blocks(c)), (THREADS, 1, 1), arguments, shared_bytes(zero_padded, known.offsets)
    )


forward, grad_input = both_directions(partial(correlate, _run, PACKING))


def _workspace(direction: str, geometry: ConvGeometry, itemsize: int, threads: int) -> int:
    return PACKING.nbytes(correlation(direction, geometry))


forward_workspace = partial(_workspace, "forward")
grad_input_workspace = partial(_workspace, "grad_input")
pack_forward = partial(PACKING.packed, "forward")
pack_grad_input = partial(PACKING.packed, "grad_input")
