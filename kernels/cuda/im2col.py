"""Launches ``im2col.cu``: convolution as an implicit matrix product, forward and gradient of the input.

A :class:`Correlation` is one product: forward is one, the input gradient one for each phase of the stride (a dense
convolution of dy, see ``geometry.Phase``), with input and output channels exchanged. Weights are packed by a kernel of
their own, ahead of time (``pack_*``) or into the workspace; partial sums of a split reduction follow them there.

``entry_points(quads=True)`` are those of ``pointwise.py``: 1x1 kernels on contiguous planes, read 16 bytes at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np

from ..geometry import PADDING_MODES, ConvGeometry, transposed_phases
from . import gemm
from .gemm_tiles import DEPTH, NARROW, SLIM, TILES, Choice, Tile, choose, part_bytes
from .launch import (
    CONV,
    NULL,
    Strides,
    activation_id,
    beside,
    both_directions,
    contiguous,
    elements,
    grid,
    moved,
    pointers,
    readable,
    whole,
    writable,
)
from .module import Grid, Instance, Struct, driver

ITEM = 4  # bytes of a float
LARGEST_FEW = 1024
"""Products of one sum up to which FEW's table of the reduction fits into shared memory beside the tiles."""
LEAST_WASTE = 1.15  # padding of channels to a whole step, from which FEW is worth its table

FEW_TILES = (NARROW, SLIM)
WINDOW_BYTES, POINTER_BYTES, FEW_BYTES = 24, 8, 24
"""Of ``struct Window``, of an address, of ``struct Few``."""


class Correlation(NamedTuple):
    """One product: sizes of three spatial axes, and the part of output and weights that it covers."""

    batch: int
    groups: int
    inputs: int  # of a group
    outputs: int
    input: tuple[int, ...]
    output: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[int, ...]  # before
    mode: int
    grid: tuple[slice, ...]  # of the output
    taps: tuple[slice, ...]  # of the weights

    @property
    def rows(self) -> int:
        return self.batch * math.prod(self.output)

    @property
    def few(self) -> bool:
        """Whether steps of the reduction go on across taps."""
        products = math.prod(self.kernel) * self.inputs
        padded = math.prod(self.kernel) * -(-self.inputs // DEPTH)
        return products <= LARGEST_FEW and padded > LEAST_WASTE * -(-products // DEPTH)

    @property
    def steps(self) -> int:
        taps = math.prod(self.kernel)
        return -(-taps * self.inputs // DEPTH) if self.few else taps * -(-self.inputs // DEPTH)

    @property
    def pitch(self) -> int:
        return self.outputs + 3 & ~3

    @property
    def packed_bytes(self) -> int:
        return self.groups * self.steps * DEPTH * self.pitch * ITEM

    def choice(self, multiprocessors: int, room: int | None = None) -> Choice:
        """Tile and splits; ``room`` bounds the bytes of partial sums."""
        tiles = FEW_TILES if self.few else TILES
        sizes = self.rows, self.outputs, self.groups
        return choose(
            *sizes, self.steps, multiprocessors, tiles, *(() if room is None else (room // part_bytes(*sizes),))
        )


@lru_cache(maxsize=1024)
def correlations(direction: str, geometry: ConvGeometry) -> tuple[Correlation, ...]:
    """The products that compute a direction."""
    g = geometry.lifted()
    inputs, outputs = g.in_channels // g.groups, g.out_channels // g.groups
    everything = (slice(None),) * 3
    if direction == "forward":
        before = tuple(b for b, _ in g.padding)
        return (
            Correlation(
                g.batch, g.groups, inputs, outputs, g.input_size, g.output_size, g.kernel_size, g.stride, g.dilation,
                before, PADDING_MODES.index(g.padding_mode), everything, everything,
            ),
        )  # fmt: skip
    return tuple(
        Correlation(
            g.batch, g.groups, outputs, inputs, g.output_size, p.output_size, p.kernel_size, (1, 1, 1), p.dilation,
            tuple(b for b, _ in p.padding), 0, p.grid, p.taps or everything,
        )
        for p in transposed_phases(g)
    )  # fmt: skip


def workspace_bytes(direction: str, geometry: ConvGeometry) -> int:
    """Packed weights of all products, then the partial sums of one after the other."""
    products, parts = correlations(direction, geometry), 0
    for c in products:
        splits = c.choice(gemm.multiprocessors()).splits
        if splits > 1:
            parts = max(parts, splits * part_bytes(c.rows, c.outputs, c.groups))
    return sum(c.packed_bytes for c in products) + parts


class Call(NamedTuple):
    """The launches of one product; offsets are bytes from the arrays' addresses."""

    kernel: Instance
    grid: Grid
    block: Grid
    shared: int
    conv: Any
    result: Any
    out: int
    residual: int
    packed: int
    splits: int
    add_grid: Grid


class Pack(NamedTuple):
    """The launch that packs the weights of one product."""

    packing: Any
    grid: Grid
    w: int
    packed: int


class Plan(NamedTuple):
    """What follows from geometry and strides; ``parts`` is where partial sums begin behind the packed weights."""

    calls: tuple[Call, ...]
    packs: tuple[Pack, ...]
    parts: int


def _gather(c: Correlation, x: Strides, quads: bool) -> str:
    """How im2col.cu reads x, by strides in elements."""
    if quads and math.prod(c.kernel) == 1 and c.stride == (1, 1, 1) and not any(c.padding) and c.input == c.output:
        size, steps = gemm.merged(c.input, x[2:])
        if len(size) == 1 and steps == (1,) and not any(n % 4 for n in (*size, x[1], x[0] if c.batch > 1 else 0)):
            return "QUADS"
    if c.few:
        return "FEW"
    return "CHANNELS" if x[1] == 1 else "POSITIONS"


def _extra_bytes(gather: str, tile: Tile, steps: int) -> int:
    """Of shared memory, behind the stages."""
    return {
        "POSITIONS": tile.rows * WINDOW_BYTES,
        "CHANNELS": tile.rows * (WINDOW_BYTES + 2 * POINTER_BYTES),
        "FEW": steps * DEPTH * FEW_BYTES,
        "QUADS": 0,
    }[gather]


def kernel(gather: str, tile: Tile) -> Instance:
    return gemm.instance("im2col", "im2col_forward", tile, ("GATHER", gather))


def _instances(quads: bool) -> tuple[Instance, ...]:
    gathers = {"POSITIONS": TILES, "CHANNELS": TILES, **({"QUADS": TILES} if quads else {"FEW": FEW_TILES})}
    return (*(kernel(g, tile) for g, tiles in gathers.items() for tile in tiles), gemm.PACK, gemm.ADD)


def _start(slices: tuple[slice, ...], strides: Strides) -> int:
    return sum((s.start or 0) * stride for s, stride in zip(slices, strides, strict=True))


@lru_cache(maxsize=1024)
def _packs(direction: str, geometry: ConvGeometry, w: Strides) -> tuple[Pack, ...]:
    """How the weights of each product are packed, for w of these strides in bytes."""
    k, c_stride, *taps = elements(w, ITEM)
    packs, at = [], 0
    for c in correlations(direction, geometry):
        output, inward, group = (k, c_stride, c.outputs * k) if direction == "forward" else (c_stride, k, c.inputs * k)
        steps = tuple(stride * (s.step or 1) for s, stride in zip(c.taps, taps, strict=True))
        rows = c.steps * DEPTH
        padded = c.inputs if c.few else -(-c.inputs // DEPTH) * DEPTH
        fields = (c.groups, c.inputs, c.outputs, padded, rows, c.pitch, c.kernel, group, output, inward, steps)
        blocks = c.groups * -(-rows // gemm.PACK_SIDE) * -(-c.pitch // gemm.PACK_SIDE)
        if blocks:
            packs.append(Pack(Struct.of(gemm.PACKING, *fields), grid(blocks), _start(c.taps, tuple(taps)) * ITEM, at))
        at += c.packed_bytes
    return tuple(packs)


@lru_cache(maxsize=1024)
def _plan(
    direction: str, geometry: ConvGeometry, x: Strides, w: Strides, residual: Strides | None, y: Strides,
    activation: str | None, quads: bool, aligned: bool, multiprocessors: int, room: int, prepared: bool,
) -> Plan | None:  # fmt: skip
    """x and y are what is read and written, in bytes; ``aligned`` says whether both (and the residual) begin at
    multiples of 16 bytes, ``room`` is the workspace. None where elements do not lie on multiples of their size."""
    if not whole(ITEM, x, y, residual) or (not prepared and not whole(ITEM, w)):
        return None
    products = correlations(direction, geometry)
    parts = 0 if prepared else sum(c.packed_bytes for c in products)
    xs, ys, rs = (elements(s, ITEM) for s in (x, y, residual or y))
    calls, packed = [], 0
    for c in products:
        tile, splits, _ = choice = c.choice(multiprocessors, room - parts)
        gather = _gather(c, xs, quads and aligned)
        conv = Struct.of(CONV)
        for name in ("batch", "groups", "inputs", "outputs", "mode", "input", "output", "kernel", "stride", "dilation"):
            conv[name] = getattr(c, name)
        conv["padding"], conv["x"] = c.padding, xs
        rows, others = (
            (s[0], *(stride * (part.step or 1) for part, stride in zip(c.grid, s[2:], strict=True))) for s in (ys, rs)
        )
        out, other = (_start(c.grid, s[2:]) * ITEM for s in (ys, rs))
        result = gemm.result(
            (c.batch, *c.output), c.outputs, c.groups, rows, ys[1], others, rs[1],
            splits=splits, activation=activation_id(activation), aligned=aligned and out % 16 == other % 16 == 0,
        )  # fmt: skip
        shared = tile.shared_bytes + _extra_bytes(gather, tile, -(-c.steps // splits))
        calls.append(
            Call(
                kernel(gather, tile), grid(choice.blocks(c.rows, c.outputs, c.groups)), (tile.threads, 1, 1), shared,
                conv, result, out, other, packed, splits, grid(-(-c.rows * c.outputs * c.groups // 256)),
            )
        )  # fmt: skip
        packed += c.packed_bytes
    return Plan(tuple(calls), _packs(direction, geometry, w) if not prepared else (), parts)


def _run(
    quads: bool, direction: str, geometry: ConvGeometry, x: Any, w: Any, bias: Any, residual: Any, out: Any,
    activation: str | None, packed: Any, workspace: Any,
) -> None:  # fmt: skip
    if not out.size:
        return
    current = driver()
    arrays = None
    if bias is None or bias.flags.c_contiguous:
        arrays = pointers(current, ITEM, x, w if packed is None else packed, bias, residual, out, workspace)
    if arrays is not None:
        at, weights, bias_at, other, to, scratch = arrays
        plan = _plan(
            direction, geometry, x.strides, () if packed is not None else w.strides,
            None if residual is None else residual.strides, out.strides, activation, quads,
            not (at | other | to) & np.uint64(15), current.multiprocessors,
            0 if workspace is None else workspace.size, packed is not None,
        )  # fmt: skip
    if arrays is None or plan is None:
        w = w if packed is not None else readable(w)
        copies = readable(x), w, contiguous(bias), None if residual is None else readable(residual)
        with writable(out) as target:
            _run(quads, direction, geometry, *copies, target, activation, packed, workspace)
        return
    if packed is None:
        _pack(plan.packs, weights, scratch)
        weights = scratch
    parts = moved(scratch, plan.parts)
    for call in plan.calls:
        y, residual_at = moved(to, call.out), moved(other, call.residual) if other else NULL
        arguments = call.conv, call.result, at, moved(weights, call.packed), bias_at, residual_at, y, parts
        current.function(call.kernel)(call.grid, call.block, arguments, call.shared)
        if call.splits > 1:
            added = call.result, parts, bias_at, residual_at, y
            current.function(gemm.ADD)(call.add_grid, gemm.PASS_BLOCK, added, 0)


def _pack(packs: tuple[Pack, ...], w: Any, packed: Any) -> None:
    for pack in packs:
        arguments = pack.packing, moved(w, pack.w), moved(packed, pack.packed)
        driver().function(gemm.PACK)(pack.grid, gemm.PASS_BLOCK, arguments, gemm.PACK_SHARED)


def _prepare(direction: str, geometry: ConvGeometry, w: Any) -> Any:
    """Weights packed for a direction, in an array of their own beside w."""
    if not whole(ITEM, w.strides) or driver().address(w) % ITEM:
        w = readable(w)
    size = sum(c.packed_bytes for c in correlations(direction, geometry))
    packed = beside(w, max(size // ITEM, 1), np.float32)
    addresses = pointers(driver(), ITEM, w, packed)
    assert addresses is not None, "both lie on multiples of the item size"
    if geometry.batch:
        _pack(_packs(direction, geometry, w.strides), *addresses)
    return packed


class EntryPoints(NamedTuple):
    """The functions of the kernel contract that correlate."""

    forward: Callable[..., None]
    grad_input: Callable[..., None]
    pack_forward: Callable[..., Any]
    pack_grad_input: Callable[..., Any]
    forward_workspace: Callable[..., int]
    grad_input_workspace: Callable[..., int]
    forward_instances: Callable[[], tuple[Instance, ...]]
    grad_input_instances: Callable[[], tuple[Instance, ...]]


def entry_points(*, quads: bool) -> EntryPoints:
    """The contract's functions; ``quads`` lets 1x1 kernels read four positions at once."""

    forward, grad_input = both_directions(partial(_run, quads))

    def pack_forward(geometry: ConvGeometry, w: Any) -> Any:
        """Weights packed for ``forward``."""
        return _prepare("forward", geometry, w)

    def pack_grad_input(geometry: ConvGeometry, w: Any) -> Any:
        """Weights packed for ``grad_input``, one phase behind the other."""
        return _prepare("grad_input", geometry, w)

    def forward_workspace(geometry: ConvGeometry, itemsize: int, threads: int) -> int:
        """Bytes of workspace for ``forward``."""
        return workspace_bytes("forward", geometry)

    def grad_input_workspace(geometry: ConvGeometry, itemsize: int, threads: int) -> int:
        """Bytes of workspace for ``grad_input``."""
        return workspace_bytes("grad_input", geometry)

    def instances() -> tuple[Instance, ...]:
        """Every instance that may be launched."""
        return _instances(quads)

    return EntryPoints(
        forward,
        grad_input,
        pack_forward,
        pack_grad_input,
        forward_workspace,
        grad_input_workspace,
        instances,
        instances,
    )


(
    forward, grad_input, pack_forward, pack_grad_input, forward_workspace, grad_input_workspace, forward_instances,
    grad_input_instances,
) = entry_points(quads=False)  # fmt: skip
