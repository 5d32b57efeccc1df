"""What the Winograd launchers share: directions as one correlation, the matrices as #defines, transformed weights.

An input gradient of stride 1 is a convolution itself: of dy, with input and output channels exchanged, taps reversed
and padding ``2 - before`` (negative where the forward padding is wider than the kernel, which crops dy). The device
code knows convolutions only; reversed taps are negative strides.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from ..geometry import ConvGeometry
from ..winograd_matrices import Rows, matrices
from .launch import Strides, beside, contiguous, conv_struct, grid, index_type, pointers, readable, whole, writable
from .module import AMPERE, Driver, Grid, Instance, Struct, driver

TAPS = 3
BLOCK_OUTPUTS = 64  # output channels that lie side by side in transformed weights
THREADS, WEIGHT_INPUTS, WEIGHT_OUTPUTS = 256, 8, 32  # of winograd_weights

WEIGHTS = np.dtype(
    [
        ("groups", np.int32),
        ("outputs", np.int32),
        ("inputs", np.int32),
        ("padded_outputs", np.int32),
        ("padded_inputs", np.int32),
        ("reserved", np.int32),
        ("w_group", np.int64),
        ("w_output", np.int64),
        ("w_input", np.int64),
        ("w_row", np.int64),
        ("w_column", np.int64),
        ("u_group", np.int64),
        ("u_block", np.int64),
        ("u_input", np.int64),
        ("u_product", np.int64),
    ],
    align=True,
)
"""``struct Weights`` of ``winograd.cuh``, field by field."""


def padded(n: int, multiple: int) -> int:
    """n rounded up.

    >>> padded(65, 64)
    128
    """
    return -(-n // multiple) * multiple


@lru_cache(maxsize=1024)
def correlation(direction: str, g: ConvGeometry) -> ConvGeometry:
    """The convolution that computes a direction of ``g``.

    >>> c = correlation("grad_input", ConvGeometry(1, 4, 8, (9, 9), (3, 3), (1, 1), ((0, 1), (3, 0))))
    >>> c.in_channels, c.input_size, c.padding, c.output_size
    (8, (8, 10), ((2, 1), (-1, 2)), (9, 9))
    """
    if direction == "forward":
        return g
    turned = tuple((TAPS - 1 - before, TAPS - 1 - after) for before, after in g.padding)
    return ConvGeometry(
        g.batch, g.out_channels, g.in_channels, g.output_size, g.kernel_size, g.stride, turned, g.dilation, g.groups
    )


def tile_count(c: ConvGeometry, outputs: int) -> int:
    """Tiles of ``outputs`` x ``outputs`` in all images.

    >>> tile_count(ConvGeometry(2, 1, 1, (7, 9), (3, 3), (1, 1), ((1, 1), (1, 1))), 4)
    12
    """
    height, width = c.output_size
    return c.batch * -(-height // outputs) * -(-width // outputs)


def matrix_defines(outputs: int) -> tuple[tuple[str, str | int], ...]:
    """The matrices of F(outputs, 3) for ``winograd.cuh``, exact: a fraction is divided by the compiler."""
    f = matrices(outputs, TAPS)
    named = (("INPUT_MATRIX", f.b), ("OUTPUT_MATRIX", f.a), ("WEIGHT_MATRIX", f.g))
    return (("OUTPUTS", outputs), *((name, _initialiser(rows)) for name, rows in named))


def _initialiser(rows: Rows) -> str:
    numbers = (", ".join(f"{v.numerator}.f / {v.denominator}" for v in row) for row in rows)
    return f"{{{', '.join(f'{{{row}}}' for row in numbers)}}}"


class Places(NamedTuple):
    """Where transformed weights lie: the strides of U, and input channels rounded up."""

    group: int
    block: int
    input: int
    product: int
    inputs: int
    elements: int


@dataclass(frozen=True)
class Packing:
    """How a variant transforms weights.

    ``steps`` is what input channels are rounded up to. U is [group][block of 64 outputs][input][product][64] where
    ``panels``, else [product][group][input][outputs].
    """

    stem: str
    defines: tuple[tuple[str, str | int], ...]
    outputs: int
    steps: int
    panels: bool

    @property
    def instance(self) -> Instance:
        return Instance(self.stem, "winograd_weights", self.defines, THREADS, AMPERE)

    def places(self, c: ConvGeometry) -> Places:
        products = (self.outputs + TAPS - 1) ** 2
        inputs = padded(c.in_channels // c.groups, self.steps)
        outputs = padded(c.out_channels // c.groups, BLOCK_OUTPUTS)
        elements = products * c.groups * inputs * outputs
        if self.panels:
            one = inputs * products * BLOCK_OUTPUTS
            blocks = outputs // BLOCK_OUTPUTS
            return Places(blocks * one, one, products * BLOCK_OUTPUTS, BLOCK_OUTPUTS, inputs, elements)
        group = inputs * outputs
        return Places(group, BLOCK_OUTPUTS, outputs, c.groups * group, inputs, elements)

    def nbytes(self, c: ConvGeometry) -> int:
        """Of U; a multiple of 256, so that what follows in a workspace is aligned."""
        return 4 * self.places(c).elements

    def pack(self, direction: str, g: ConvGeometry, w: Any, to: int) -> None:
        """Transform the weights to address ``to``."""
        plan = _weights_plan(self, direction, g, w.strides)
        addresses = None if plan is None else pointers(driver(), 4, w)
        if plan is None or addresses is None:
            self.pack(direction, g, w.copy(), to)
            return
        struct, blocks, offset = plan
        run = driver().function(self.instance)
        run(blocks, (THREADS, 1, 1), (struct, np.uint64(int(addresses[0]) + offset), np.uint64(to)), 0)

    def packed(self, direction: str, g: ConvGeometry, w: Any) -> Any:
        """The transformed weights as an array beside w; of no use, and not transformed, where there is no tile."""
        u = beside(w, self.nbytes(correlation(direction, g)), np.uint8)
        if tile_count(correlation(direction, g), self.outputs):
            self.pack(direction, g, w, driver().address(u))
        return u


@lru_cache(maxsize=1024)
def _weights_plan(p: Packing, direction: str, g: ConvGeometry, strides: Strides) -> tuple[Any, Grid, int] | None:
    """Struct, grid, and bytes from w's first element to the first tap. None where strides are not whole."""
    if not whole(4, strides):
        return None
    c, u = correlation(direction, g), p.places(correlation(direction, g))
    k, channel, row, column = (s // 4 for s in strides)
    group = k * (g.out_channels // g.groups)
    offset = 0
    if direction == "grad_input":
        k, channel, row, column, offset = channel, k, -row, -column, 4 * (TAPS - 1) * (row + column)
    outputs = c.out_channels // c.groups
    fields = (
        c.groups, outputs, c.in_channels // c.groups, padded(outputs, BLOCK_OUTPUTS), u.inputs, 0,
        group, k, channel, row, column, u.group, u.block, u.input, u.product,
    )  # fmt: skip
    blocks = c.groups * padded(outputs, BLOCK_OUTPUTS) // WEIGHT_OUTPUTS * -(-u.inputs // WEIGHT_INPUTS)
    return Struct.of(WEIGHTS, *fields), grid(blocks), offset


@dataclass(frozen=True, eq=False)
class Layout:
    """What follows from the sizes and strides of a call's arrays, whatever the variant; compared by identity."""

    correlation: ConvGeometry
    struct: Any
    offsets: str  # the type of offsets into the arrays: int or long long
    input_last: bool  # neighbouring channels of the input lie closer than neighbouring columns
    output_last: bool
    input_vector: int  # elements that lie side by side and aligned, if the address is: 1, 2 or 4
    output_vector: int


@lru_cache(maxsize=1024)
def layout(
    direction: str, g: ConvGeometry, x: Strides, residual: Strides | None, y: Strides, activation: str | None
) -> Layout | None:
    """x and y are strides in bytes of what is read and written. None where elements are no multiples of their size."""
    if not whole(4, x, y, residual):
        return None
    c = correlation(direction, g)
    arrays = [(c.input_shape, x, 4), (c.output_shape, y, 4)]
    outputs = [y] if residual is None else [y, residual]
    arrays += [(c.output_shape, strides, 4) for strides in outputs[1:]]
    return Layout(
        c,
        conv_struct(c, 4, x, (0,) * 4, y, residual, activation),
        index_type(*arrays),
        abs(x[1]) < abs(x[3]),
        abs(y[1]) < abs(y[3]),
        vector(x),
        min(map(vector, outputs)),
    )


def vector(strides: Strides) -> int:
    """How many elements side by side along a row are aligned to their common size, if the first one is.

    >>> vector((800, 400, 40, 4)), vector((1600, 800, 80, 4)), vector((40, 4, 400, 40))
    (2, 4, 1)
    """
    if strides[-1] != 4:
        return 1
    return next(n for n in (4, 2, 1) if not any(s % (4 * n) for s in strides[:-1]))


def aligned_vector(widest: int, *addresses: int) -> int:
    """``widest``, or what the addresses allow.

    >>> aligned_vector(4, 64, 72), aligned_vector(2, 64, 0)
    (2, 2)
    """
    return next(n for n in (4, 2, 1) if n <= widest and not any(a % (4 * n) for a in addresses))


class Call(NamedTuple):
    """One call, ready to launch: the device, what is known of the layout, addresses."""

    driver: Driver
    layout: Layout
    given: Any
    bias: Any
    residual: Any
    out: Any
    weights: np.uint64
    scratch: int  # what is left of the workspace: address, bytes
    room: int


def prepare(
    packing: Packing, direction: str, geometry: ConvGeometry, given: Any, w: Any, bias: Any, residual: Any, out: Any,
    activation: str | None, packed: Any, workspace: Any,
) -> Call | None:  # fmt: skip
    """A call with its weights transformed, if they were not. None where an array has to be copied first."""
    strides = None if residual is None else residual.strides
    known = layout(direction, geometry, given.strides, strides, out.strides, activation)
    if known is None or not (bias is None or bias.flags.c_contiguous):
        return None
    current = driver()
    addresses = pointers(current, 4, given, bias, residual, out)
    if addresses is None:
        return None
    scratch, room = (0, 0) if workspace is None else (current.address(workspace), workspace.size)
    if packed is not None:
        return Call._make((current, known, *addresses, np.uint64(current.address(packed)), scratch, room))
    packing.pack(direction, geometry, w, scratch)
    used = packing.nbytes(known.correlation)
    return Call._make((current, known, *addresses, np.uint64(scratch), scratch + used, room - used))


def correlate(
    run: Any, packing: Packing, direction: str, geometry: ConvGeometry, given: Any, w: Any, bias: Any, residual: Any,
    out: Any, activation: str | None, packed: Any, workspace: Any,
) -> None:  # fmt: skip
    """``run(call)`` with what can be read and written in place, else with copies."""
    if not out.size:
        return
    call = prepare(packing, direction, geometry, given, w, bias, residual, out, activation, packed, workspace)
    if call is not None:
        run(call)
        return
    copies = readable(given), w, contiguous(bias), None if residual is None else readable(residual)
    with writable(out) as target:
        correlate(run, packing, direction, geometry, *copies, target, activation, packed, workspace)
