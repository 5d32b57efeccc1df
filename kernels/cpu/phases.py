"""The contract's functions for any algorithm that can correlate: shared by direct, im2col and their sisters.

An algorithm brings three functions,

    pack(c, w, workspace, threads) -> packed       weights (groups, K/groups, C/groups, D, R, S) as its tiles read them,
                                                   in the workspace, or in an array of their own where that is None
    kernel(t, threads, table, chunk, kind)         share t of the correlation, compiled
    prepare(c, itemsize, threads)                  the constant part of its table (see ``bound``)

for a :class:`~fastconv.kernels.cpu.blocking.Correlation` ``c``. Forward is one correlation; the input gradient is one
of dy for each phase of the stride, with input and output channels exchanged (``planar`` has one for all phases).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from ..geometry import ConvGeometry, Phase, source_indices
from . import blocking
from .arrays import Workspace, aligned, bias_row, computable, lifted, weight_view, writable
from .bound import Prepare, correlate
from .fold import fold
from .half import in_float32

Pack = Callable[..., np.ndarray]
Phases = Callable[[ConvGeometry], tuple[tuple[Phase, blocking.Correlation], ...]]
Unpacked = Callable[..., Prepare | None]


def _identity(value: Any) -> Any:
    return value


class EntryPoints(NamedTuple):
    """The functions of the kernel contract that correlate."""

    forward: Callable[..., None]
    grad_input: Callable[..., None]
    pack_forward: Callable[..., np.ndarray]
    pack_grad_input: Callable[..., list[np.ndarray]]


def entry_points(
    pack: Pack, kernel: Any, prepare: Prepare, *, native16: bool = False, unpacked: Unpacked | None = None,
    phases: Phases = blocking.phase_correlations,
) -> EntryPoints:  # fmt: skip
    """The contract's functions of the algorithm that ``pack``, ``kernel`` and ``prepare`` are.

    16-bit arrays are converted to float32 around it, unless it takes them as they are (``native16``; the bias then
    comes in float32). ``unpacked`` says how to prepare a forward kernel that packs its weights itself, where it should;
    ``phases`` by which correlations an input gradient is computed.
    """
    converted: Any = _identity if native16 else in_float32
    weights: Any = _identity if native16 else computable

    @converted
    def forward(
        geometry: ConvGeometry, x: np.ndarray, w: np.ndarray, bias: np.ndarray | None, residual: np.ndarray | None,
        out: np.ndarray, *, activation: str | None = None, packed: Any = None, workspace: np.ndarray, threads: int = 1,
    ) -> None:  # fmt: skip
        """``out = activation(conv(x, w) + bias + residual)``."""
        if not out.size:
            return
        c, scratch = blocking.correlation(geometry), Workspace(workspace)
        x, bias, how = aligned(x), bias_row(bias), prepare
        if packed is None:
            packed = weight_view(geometry, w)
            own = unpacked and unpacked(c, x, packed, threads)
            if own:
                how = own
            else:
                packed = pack(c, packed, scratch, threads)
        residual = None if residual is None else aligned(residual)
        with writable(out) as target:
            correlate(kernel, how, c, x, packed, bias, residual, target, activation, scratch.rest(), threads)

    @converted
    def grad_input(
        geometry: ConvGeometry, dy: np.ndarray, w: np.ndarray, bias: np.ndarray | None, residual: np.ndarray | None,
        out: np.ndarray, *, activation: str | None = None, packed: Any = None, workspace: np.ndarray, threads: int = 1,
    ) -> None:  # fmt: skip
        """``out = activation(gradient of the input + bias + residual)``: also the transposed convolution."""
        if not out.size:
            return
        with writable(out) as target:
            other = None if residual is None else lifted(residual)
            arrays = (lifted(dy), w, bias_row(bias), other, lifted(target))
            scratch = Workspace(workspace)
            correlate_gradient(pack, kernel, prepare, phases, geometry, *arrays, activation, packed, scratch, threads)

    def pack_forward(geometry: ConvGeometry, w: np.ndarray) -> np.ndarray:
        """Weights packed for ``forward`` (in float32 where they have 16 bits)."""
        return pack(blocking.correlation(geometry), weight_view(geometry, weights(w)), None, 1)

    def pack_grad_input(geometry: ConvGeometry, w: np.ndarray) -> list[np.ndarray]:
        """Weights packed for ``grad_input``, one array a phase."""
        w = weights(w)
        return [pack(c, phase_weights(geometry, phase, w), None, 1) for phase, c in phases(geometry)]

    return EntryPoints(forward, grad_input, pack_forward, pack_grad_input)


def phase_weights(geometry: ConvGeometry, phase: Phase, w: np.ndarray) -> np.ndarray:
    """A phase's taps as (groups, C/groups, K/groups, D, R, S): input and output channels exchanged."""
    w = weight_view(geometry, w).swapaxes(1, 2)
    return w[(slice(None),) * 3 + (phase.taps or (slice(0),) * 3)]


def correlate_gradient(
    pack: Pack, kernel: Any, prepare: Prepare, phases: Phases, geometry: ConvGeometry, dy: np.ndarray,
    w: np.ndarray, bias: np.ndarray | None, residual: np.ndarray | None, out: np.ndarray, activation: str | None,
    packed: list[np.ndarray] | None, workspace: Workspace, threads: int,
) -> None:  # fmt: skip
    """Write ``activation(input gradient + bias + residual)`` into ``out`` (N, C, D, H, W).

    With padding that is not zeros: the gradient of the padded input first, then folded back.
    """
    if geometry.padding_mode == "zeros":
        arrays = (dy, w, bias, residual, out)
        _phases(pack, kernel, prepare, phases, geometry, *arrays, activation, packed, workspace, threads)
        return
    images = blocking.fold_images(geometry, out.itemsize)
    size = blocking.padded(geometry).input_size
    held = workspace.take((images, geometry.in_channels, *size), out.dtype)
    rows = workspace.take((threads, blocking.fold_row(geometry)), out.dtype)
    volume = geometry.lifted()
    sources = tuple(
        np.ascontiguousarray(source_indices(n, *pads, geometry.padding_mode), np.int64)
        for n, pads in zip(volume.input_size, volume.padding, strict=True)
    )
    for first in range(0, geometry.batch, images):
        part = replace(geometry, batch=min(images, geometry.batch - first))
        gradient = held[: part.batch]
        mark = workspace.used
        arguments = (dy[first : first + part.batch], w, None, None, gradient, None, packed, workspace, threads)
        _phases(pack, kernel, prepare, phases, part, *arguments)
        workspace.used = mark
        fold(gradient, sources, first, rows, bias, residual, out, activation, threads)


def _phases(
    pack: Pack, kernel: Any, prepare: Prepare, phases: Phases, geometry: ConvGeometry, dy: np.ndarray, w: np.ndarray,
    bias: np.ndarray | None, residual: np.ndarray | None, out: np.ndarray, activation: str | None,
    packed: list[np.ndarray] | None, workspace: Workspace, threads: int,
) -> None:  # fmt: skip
    for i, (phase, c) in enumerate(phases(geometry)):
        grid = (slice(None), slice(None), *phase.grid)
        mark = workspace.used
        if packed is None:
            weights = pack(c, phase_weights(geometry, phase, w), workspace, threads)
        else:
            weights = packed[i]
        other = None if residual is None else residual[grid]
        rest = workspace.rest()
        correlate(kernel, prepare, c, dy, weights, bias, other, out[grid], activation, rest, threads)
        workspace.used = mark
