"""The input gradient as stride-1 correlations of dy, one a phase: shared by the direct and im2col algorithms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from ..geometry import ConvGeometry, Phase, source_indices
from . import blocking
from .arrays import Workspace, weight_view
from .fold import fold


def phase_weights(geometry: ConvGeometry, phase: Phase, w: np.ndarray) -> np.ndarray:
    """A phase's taps as (groups, C/groups, K/groups, D, R, S): input and output channels exchanged."""
    w = weight_view(geometry, w).swapaxes(1, 2)
    return w[(slice(None),) * 3 + (phase.taps or (slice(0),) * 3)]


def correlate_phases(
    pack: Callable[..., np.ndarray], correlate: Callable[..., None], geometry: ConvGeometry, dy: np.ndarray,
    w: np.ndarray, bias: np.ndarray | None, residual: np.ndarray | None, out: np.ndarray, activation: str | None,
    packed: list[np.ndarray] | None, workspace: Workspace, threads: int,
) -> None:  # fmt: skip
    """Write ``activation(input gradient + bias + residual)`` into ``out`` (N, C, D, H, W).

    ``pack(c, phase, geometry, w, workspace, threads)`` and ``correlate(c, x, packed, bias, residual, out, activation,
    scratch address, threads)`` are the algorithm's own.
    """
    if geometry.padding_mode == "zeros":
        _phases(pack, correlate, geometry, dy, w, bias, residual, out, activation, packed, workspace, threads)
        return
    images = blocking.fold_images(geometry, out.itemsize)
    size = blocking.padded(geometry).input_size
    held = workspace.take((images, geometry.in_channels, *size), out.dtype)
    rows = workspace.take((threads, blocking.fold_row(geometry)), out.dtype)
    lifted = geometry.lifted()
    sources = tuple(
        np.ascontiguousarray(source_indices(n, *pads, geometry.padding_mode), np.int64)
        for n, pads in zip(lifted.input_size, lifted.padding, strict=True)
    )
    for first in range(0, geometry.batch, images):
        part = replace(geometry, batch=min(images, geometry.batch - first))
        gradient = held[: part.batch]
        mark = workspace.used
        arguments = (dy[first : first + part.batch], w, None, None, gradient, None, packed, workspace, threads)
        _phases(pack, correlate, part, *arguments)
        workspace.used = mark
        fold(gradient, sources, first, rows, bias, residual, out, activation, threads)


def _phases(
    pack: Any, correlate: Any, geometry: ConvGeometry, dy: np.ndarray, w: np.ndarray, bias: np.ndarray | None,
    residual: np.ndarray | None, out: np.ndarray, activation: str | None, packed: list[np.ndarray] | None,
    workspace: Workspace, threads: int,
) -> None:  # fmt: skip
    for i, (phase, c) in enumerate(blocking.phase_correlations(geometry)):
        grid = (slice(None), slice(None), *phase.grid)
        mark = workspace.used
        weights = pack(c, phase, geometry, w, workspace, threads) if packed is None else packed[i]
        other = None if residual is None else residual[grid]
        correlate(c, dy, weights, bias, other, out[grid], activation, workspace.rest(), threads)
        workspace.used = mark
