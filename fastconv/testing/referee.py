"""One registry row, one problem: run the kernel, and hold it to the reference and to the bounds that the row states.

With β the row's bound, y64 the float64 reference and "magnitude" the reference on absolute values,

    |y - y64| <= β · magnitude            every element          (assert_matches)
    rms((y - y64) / magnitude) <= 3 · typical                    (assert_rms)

and on small integers the result must be equal wherever the sums are exact. Where a row computes by tiles the bound
is relative to a wider magnitude, ``neighbourhood``, and the root mean square error is not.

An activation passes on the error of its argument times its largest slope (``SLOPES``) and rounds its own value, so the
magnitude becomes slope · magnitude + |y64|. Powers and roots of Lp pooling: see ``_lp_factor``.

The kernel is given what a careless one trips over: a workspace of exactly the stated size, full of NaNs, an output
full of NaNs, channels-last arrays as views, read-only inputs. Where a row prepares weights it runs both ways.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from ..kernels import reference
from ..kernels.geometry import ConvGeometry, Sizes, source_indices, span
from ..problem import ConvProblem, PoolProblem, Problem
from ..registry import Row
from ..targets import resolve
from .checks import Array, assert_matches, assert_rms, dtype_of, integers

SLOPES = {
    None: 1.0,
    "relu": 1.0,
    "relu6": 1.0,
    "leaky_relu": 1.0,
    "sigmoid": 0.25,
    "tanh": 1.0,
    "silu": 1.1,  # at 2.4
    "gelu": 1.13,  # at √2
    "hardswish": 1.5,  # at 3
}
"""The largest slope of each activation, rounded up: how much of its argument's error it can pass on."""

EXACT_ACTIVATIONS = (None, "relu", "relu6")
LARGEST_EXACT_SUM = {"float32": 2**24, "float64": 2**53, "float16": 2**24, "bfloat16": 2**24}
PICKING = ("max_pool", "min_pool", "max_unpool")


@dataclass(frozen=True)
class Expected:
    """The truth about one run: float64 values, how large what was summed is, and whether equality is due."""

    values: Array
    magnitude: Array
    exact: bool
    indices: Array | None = None
    neighbourhood: Array | None = None  # what the bound is relative to, where that is not the magnitude


def check_row(
    row: Row, problem: Problem, *, rng: np.random.Generator, integers: bool = False, threads: int = 1,
    empty: Callable[[Sizes, Any], Array] = np.empty,
) -> None:  # fmt: skip
    """Run one row of the registry on one problem and hold it to its own bounds.

    >>> from fastconv.registry import rows_for
    >>> from fastconv.testing import cases
    >>> row = rows_for("conv", "forward", "cpu")[-1]
    >>> check_row(row, cases("lecture")[0].problem(), rng=np.random.default_rng(0))

    Parameters
    ----------
    row : a row whose operation and direction are the problem's, and which does not refuse it.
    problem : what to run; its layout, bias, residual, activation and indices count.
    rng : where the data come from.
    integers : draw small integers and demand equality where the sums are exact, else standard normal numbers.
    threads : given to the kernel.
    empty : makes the arrays that the kernel is given, from a shape and a dtype: one whose arrays end at a page that may
        not be touched shows stray accesses.

    Raises
    ------
    AssertionError : the kernel is wrong, or wrote to an input; the message names row, problem and worst element.
    ValueError : the row cannot run the problem, or the problem is too large for exact integer sums.
    """
    if (row.op, row.direction, row.device) != (problem.op, problem.direction, problem.device):
        raise ValueError(f"check_row: {row.name} does not compute {problem}")
    refusal = row.refuses(problem)
    if refusal is not None:
        raise ValueError(f"check_row: {row.name} refuses {problem}: {refusal}")
    if integers and 16 * problem.reduction >= LARGEST_EXACT_SUM[problem.dtype]:
        raise ValueError(f"check_row: sums of {problem.reduction} products of integers are not exact: {problem}")
    draw = _Draw(problem, rng, integers, empty)
    if isinstance(problem, ConvProblem):
        _check_conv(row, problem, draw, threads)
    else:
        _check_pool(row, problem, draw, threads)


class _Draw:
    """Arrays of the problem's dtype and layout."""

    def __init__(self, problem: Problem, rng: np.random.Generator, integers: bool, empty: Callable[..., Array]):
        self.dtype = dtype_of(problem.dtype)
        self.rng, self.integers, self.empty = rng, integers, empty
        self.last = problem.layout == "channels_last"

    def plain(self, shape: Sizes, low: int = -4) -> Array:
        """Random numbers in C order; not negative if ``low`` is not."""
        if self.integers:
            data = integers(shape, self.dtype, self.rng, low=low)
        else:
            data = self.rng.standard_normal(shape)
            data = (np.abs(data) + low if low >= 0 else data).astype(self.dtype)
        return self.placed(data)

    def placed(self, data: Array) -> Array:
        """A read-only copy in C order where ``empty`` puts it."""
        copy = self.empty(data.shape, data.dtype)
        copy[...] = data
        copy.flags.writeable = False
        return copy

    def weights(self, shape: Sizes, integer_scale: int) -> Array:
        """Random numbers in C order; integers only multiples of ``integer_scale``."""
        data = self.plain(shape)
        if self.integers and integer_scale > 1 and self.dtype == np.float64:
            data = self.placed(data * integer_scale)
        return data

    def image(self, shape: Sizes, low: int = -4) -> Array:
        """Random numbers in the problem's layout, viewed channels first."""
        return self.laid(self.plain(shape, low))

    def laid(self, data: Array) -> Array:
        if not self.last:
            return data if not data.flags.writeable else self.placed(data)
        return np.moveaxis(self.placed(np.moveaxis(data, 1, -1)), -1, 1)

    def unwritten(self, shape: Sizes) -> Array:
        """NaNs to be overwritten."""
        n, c, *spatial = shape
        out = self.empty((n, *spatial, c) if self.last else shape, self.dtype)
        out[...] = np.nan
        return np.moveaxis(out, -1, 1) if self.last else out

    def workspace(self, nbytes: int) -> Array:
        """64-byte aligned scratch in which every float is a NaN."""
        raw = self.empty((-(-nbytes // 64) * 64 + 64,), np.uint8)
        raw[:] = 0xFF
        start = 64 - raw.ctypes.data % 64
        return raw[start : start + nbytes]


# ------------------------------------------------------------------------------------------------------ convolution


def _check_conv(row: Row, problem: ConvProblem, draw: _Draw, threads: int) -> None:
    g = problem.geometry
    oracle = getattr(reference, row.direction)
    if row.direction == "grad_weight":
        shape = g.weight_shape
        operands: list[Array | None] = [draw.image(g.input_shape), draw.image(g.output_shape)]
        out = draw.empty(shape, draw.dtype)
        out[...] = np.nan
        epilogue: dict[str, Any] = {}
    else:
        forward = row.direction == "forward"
        given, shape = (g.input_shape, g.output_shape) if forward else (g.output_shape, g.input_shape)
        bias = draw.plain(shape[1:2]) if problem.bias else None
        residual = draw.image(shape) if problem.residual else None
        operands = [draw.image(given), draw.weights(g.weight_shape, row.integer_scale), bias, residual]
        out = draw.unwritten(shape)
        epilogue = {"activation": problem.activation}
    truth, size = np.empty(shape), np.empty(shape)
    oracle(g, *operands, truth, **epilogue)
    positive: list[Any] = [None if a is None else np.abs(a.astype(np.float64)) for a in operands]
    oracle(g, *positive, size)
    exact = draw.integers and problem.activation in EXACT_ACTIVATIONS
    around = None
    if row.tile:
        exact = exact and problem.dtype == "float64"
        data, w = positive[:2]
        assert data is not None
        assert w is not None
        around = neighbourhood(g, row.direction, data, w, row.tile)
        for addend, axes in ((positive[2], (-1, *(1,) * g.rank)), (positive[3], shape)):
            around += 0 if addend is None else addend.reshape(axes)
        if size.size:  # outputs in a corner sum few products themselves, but have the errors of their tile
            size = np.broadcast_to(size.max(tuple(range(2, size.ndim)), keepdims=True), shape)
    if problem.activation is not None:
        size = SLOPES[problem.activation] * size + np.abs(truth)
        around = None if around is None else SLOPES[problem.activation] * around + np.abs(truth)
    expected = Expected(truth, size, exact, neighbourhood=around)

    kernel = resolve(row.target)
    workspace = draw.workspace(row.workspace_bytes(problem, threads))
    before = _copies(operands)
    kernel(g, *operands, out, workspace=workspace, threads=threads, **epilogue)
    _hold(row, problem, "", out, expected)
    if row.prepare is not None:
        packed = resolve(row.prepare)(g, operands[1])
        out[...] = np.nan
        workspace.fill(0xFF)
        kernel(
            g, operands[0], None, *operands[2:], out, packed=packed, workspace=workspace, threads=threads, **epilogue
        )
        _hold(row, problem, ", prepared", out, expected)
    _untouched(row, problem, operands, before)


def neighbourhood(g: ConvGeometry, direction: str, data: Array, w: Array, tile: Sizes) -> Array:
    """Every weight of an output's kernel times every input that a tile around the output may hold, summed; all >= 0.

    Tiles of m outputs and kernels of r taps may lie anywhere around output o, so its tile's inputs are among
    s (o - (m - 1)) ... s (o + m - 1) + r - 1 of the padded input, s the stride: a box of 2 s (m - 1) + r, in steps of
    the dilation, and at stride 2, where m > 1, one more, under the tap that odd inputs lack. For an input gradient the
    padded input's gradient at i depends on dy (at a stride, with zeros between, and tiles of outputs s apart) around
    i - (r - 1) ... i likewise, and is then folded back; also where negative padding cuts i off: that gradient is 0, but
    computed in a tile with others.
    """
    outputs = (1, *tile)[-g.rank :]
    forward = direction == "forward"
    cut = [(0, 0) if forward else (max(0, -before), max(0, -after)) for before, after in g.padding]
    sources = [
        source_indices(n, before + more[0], after + more[1], g.padding_mode)
        for n, (before, after), more in zip(g.input_size, g.padding, cut, strict=True)
    ]
    axes = zip(outputs, g.kernel_size, g.stride, g.dilation, sources, cut, strict=True)
    for axis, (m, r, s, d, source, more) in enumerate(axes, 2):
        if forward:
            data = np.take(data, source, axis) * (source >= 0).reshape((-1,) + (1,) * (data.ndim - axis - 1))
        odd, left_over = s - 1 if forward and m > 1 else 0, 0
        if not forward and s > 1:  # zeros between what strides skip, as far as the padded input goes
            at = np.arange(data.shape[axis]) * s
            spread = np.zeros((at[-1] + 1, *np.delete(data.shape, axis)))
            spread[at] = np.moveaxis(data, axis, 0)
            left_over = source.size - sum(more) - at[-1] - span(r, d)
            data, m, s = np.moveaxis(spread, 0, axis), s * (m - 1) + 1, 1  # a tile is of outputs s apart
        wide = (s * (m - 1) if forward else m + r - 2) * d
        ends = (wide + more[0], wide + more[1] + odd + left_over)
        data = np.pad(data, [ends if a == axis else (0, 0) for a in range(data.ndim)])
        data = sliding_window_view(data, span(2 * s * (m - 1) + r + odd, d), axis)[..., ::d].sum(-1)
        data = data[(slice(None),) * axis + (slice(None, None, s),)]
    groups = g.groups
    sums = w.reshape(groups, g.out_channels // groups, g.in_channels // groups, -1).sum(-1)
    given, made = (g.in_channels, g.out_channels) if forward else (g.out_channels, g.in_channels)
    split = data.reshape(g.batch, groups, given // groups, math.prod(data.shape[2:]))
    around = np.einsum("gkc,ngcp->ngkp" if forward else "gkc,ngkp->ngcp", sums, split)
    around = around.reshape(g.batch, made, *data.shape[2:])
    if forward:
        return around
    for axis, (source, n) in enumerate(zip(sources, g.input_size, strict=True), 2):
        folded = np.zeros((n, *np.delete(around.shape, axis)))
        np.add.at(folded, source[source >= 0], np.moveaxis(around, axis, 0)[source >= 0])
        around = np.moveaxis(folded, 0, axis)
    return around


# ---------------------------------------------------------------------------------------------------------- pooling


def _check_pool(row: Row, problem: PoolProblem, draw: _Draw, threads: int) -> None:
    g = problem.geometry
    forward = row.direction == "forward"
    given = g.input_shape if forward or row.op == "lp_pool" else g.output_shape
    shape = g.output_shape if forward else g.input_shape
    if row.op == "max_unpool":
        given, shape = (g.output_shape, g.input_shape) if forward else (g.input_shape, g.output_shape)
    # Odd and fractional powers want numbers that are not negative, fractional ones below 1 also no zeros.
    p = g.norm_type
    low = -4 if row.op != "lp_pool" or p % 2 == 0 else 0 if p >= 1 else 1
    x = draw.image(given, low)
    operands: list[Array | None] = [x]
    out = draw.unwritten(shape)
    written: Array | None = None
    if row.op in PICKING and forward and row.op != "max_unpool":
        written = np.full_like(out, -2, np.int64) if problem.indices else None
        operands.append(written)
    elif row.op in PICKING:
        operands.append(draw.laid(_indices(row.op, problem, draw)))
    elif row.op == "lp_pool" and not forward:
        y = np.empty(g.output_shape)
        reference.lp_forward(g, x, y)
        operands += [draw.laid(y.astype(draw.dtype)), draw.image(g.output_shape)]
    expected = _pool_truth(row, problem, operands, shape, draw.integers)

    before = _copies(operands)
    resolve(row.target)(g, *operands, out, threads=threads)
    _hold(row, problem, "", out, expected)
    if written is not None:
        assert expected.indices is not None
        assert_matches(written, expected.indices.astype(np.float64), bound=0, magnitude=1, what=f"{row.name}: indices")
        operands[1] = before[1] = None
    _untouched(row, problem, operands, before)


def _indices(op: str, problem: PoolProblem, draw: _Draw) -> Array:
    """Positions for a gradient: those of a maximum; for unpooling any, also repeated ones and -1 for nowhere."""
    g = problem.geometry
    kind = np.int64 if problem.indices else np.int32
    if op == "max_unpool":
        plane = math.prod(g.input_size)
        return draw.rng.integers(-1 - plane // 8, plane, g.output_shape).clip(-1).astype(kind)
    indices, y = np.empty(g.output_shape, kind), np.empty(g.output_shape)
    find = reference.max_forward if op == "max_pool" else reference.min_forward
    find(g, draw.rng.standard_normal(g.input_shape), indices, y)
    return indices


def _pool_truth(row: Row, problem: PoolProblem, operands: list[Array | None], shape: Sizes, integers: bool) -> Expected:
    g = problem.geometry
    stem = row.op.removeprefix("max_") if row.op == "max_unpool" else row.op.removesuffix("_pool")
    oracle = getattr(reference, f"{stem}_{row.direction}")
    truth, size = np.empty(shape), np.empty(shape)
    first, *others = operands
    assert first is not None
    if row.op in PICKING:
        finds = row.op != "max_unpool" and row.direction == "forward"
        indices = np.empty(shape, np.int64) if finds else others[0]
        oracle(g, first, indices, truth)
        if finds or row.op == "max_unpool":  # elements are copied, not summed
            return Expected(truth, np.abs(truth), exact=True, indices=indices)
        oracle(g, np.abs(first.astype(np.float64)), indices, size)
        return Expected(truth, size, exact=integers)
    oracle(g, *operands, truth)
    oracle(g, *(np.abs(a.astype(np.float64)) for a in operands if a is not None), size)
    size = np.abs(size)  # a divisor may be negative
    if row.op == "lp_pool":
        size *= _lp_factor(g.norm_type)
    return Expected(truth, size, exact=False)


def _lp_factor(p: float) -> float:
    """What powers and roots add to an Lp pooling's error.

    The relative error of a sum S of n powers is within γ_n plus a power's own few roundings; S^(1/p) keeps 1/p of it
    and rounds again; its gradient multiplies x^(p-1) by S^(1/p-1), or by y^(1-p) with y already rounded to the dtype,
    which keeps |1-p| times y's error.
    """
    return 2 + p + 1 / p


# ---------------------------------------------------------------------------------------------------------- holding


def _hold(row: Row, problem: Problem, how: str, out: Array, expected: Expected) -> None:
    what = f"{row.name}{how} ({problem})"
    if expected.exact:
        rounded = expected.values.astype(out.dtype).astype(np.float64)  # a 16-bit result is rounded once, from exact
        assert_matches(out, rounded, bound=0, magnitude=expected.magnitude, what=what)
        return
    around = expected.magnitude if expected.neighbourhood is None else expected.neighbourhood
    assert_matches(out, expected.values, bound=row.bound(problem), magnitude=around, what=what)
    assert_rms(out, expected.values, typical=row.typical(problem), magnitude=expected.magnitude, what=what)


def _copies(operands: list[Array | None]) -> list[Array | None]:
    return [None if a is None else a.copy() for a in operands]


def _untouched(row: Row, problem: Problem, operands: list[Array | None], before: list[Array | None]) -> None:
    for n, (now, then) in enumerate(zip(operands, before, strict=True)):
        if now is not None and then is not None and now.tobytes() != then.tobytes():
            raise AssertionError(f"{row.name} ({problem}) wrote to its input {n}")
