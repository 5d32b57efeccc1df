"""The end of a convolution: ``out = activation(sum + bias + residual)``, written with the output's strides.

A row of sums in the L1 cache is read, finished and stored a vector at a time: one pass over it. What is not contiguous
costs a pass of its own. The branches are the same for every vector of a row, so that the processor foresees them.
"""

from __future__ import annotations

from .. import ACTIVATIONS
from .activations import activated
from .compile import jit
from .simd import keep_whole, load, pointer, shift, store
from .vector import add, lane_count, load_first, number, splat, store_first

RELU, RELU6 = (1 + ACTIVATIONS.index(name) for name in ("relu", "relu6"))


def activation_id(name: str | None) -> int:
    """0 for None, else the place of ``name`` in ACTIVATIONS, counted from 1 as in RELU."""
    return 0 if name is None else ACTIVATIONS.index(name) + 1


@jit(inline=True)
def finish(row, n, has_bias, bias, bias_step, has_residual, residual, residual_step, activation, out, out_step):
    """Finish ``n`` sums at ``row`` and store them at ``out``; bias_step 0 adds one number to all of them."""
    keep_whole()
    apart = has_residual and residual_step != 1
    if apart:
        for i in range(n):
            store(row, i, load(row, i) + load(residual, i * residual_step))
    to = out if out_step == 1 else row
    zero = number(row, 0.0)
    same = splat(row, load(bias, 0) if has_bias and bias_step == 0 else zero)
    for i in range(0, n, lane_count(row)):
        left = n - i
        v = load_first(row, i, left)
        if has_bias:
            v = add(v, load_first(bias, i, left) if bias_step else same)
        if has_residual and not apart:
            v = add(v, load_first(residual, i, left))
        store_first(to, i, activated(row, v, activation), left)
    if out_step != 1:
        for i in range(n):
            store(out, i * out_step, load(row, i))


@jit(inline=True)
def add_run(runs, count, position, length, out, out_step, residual, residual_step):
    """Append a run of output positions to ``runs``, rows of (position, length, out offset, residual offset), merging
    it with the one before where both arrays go on evenly; returns the new count."""
    if count:
        last = 4 * (count - 1)
        n = load(runs, last + 1)
        if (
            load(runs, last) + n == position
            and load(runs, last + 2) + n * out_step == out
            and load(runs, last + 3) + n * residual_step == residual
        ):
            store(runs, last + 1, n + length)
            return count
    store(runs, 4 * count, position)
    store(runs, 4 * count + 1, length)
    store(runs, 4 * count + 2, out)
    store(runs, 4 * count + 3, residual)
    return count + 1


@jit(inline=True)
def write_channels(g, kind, sums, lds, runs, run_count, channel, channels, has_bias, activation):
    """Finish sums ``[channel][position]``, a row for each of ``channels`` from output channel ``channel``."""
    keep_whole()
    out, residual, bias = pointer(g.out, kind), pointer(g.residual, kind), pointer(g.bias, kind)
    for k in range(channels):
        for i in range(0, 4 * run_count, 4):
            row = shift(sums, k * lds + load(runs, i))
            to = shift(out, load(runs, i + 2) + (channel + k) * g.out_c)
            other = shift(residual, load(runs, i + 3) + (channel + k) * g.residual_c)
            b = shift(bias, channel + k)
            finish(row, load(runs, i + 1), has_bias, b, 0, g.residual, other, g.residual_w, activation, to, g.out_w)


@jit(inline=True)
def write_positions(g, kind, sums, lds, runs, run_count, channel, channels, has_bias, activation):
    """Finish sums ``[position][channel]``, a row for each position: for channels-last output."""
    keep_whole()
    out, residual, bias = pointer(g.out, kind), pointer(g.residual, kind), pointer(g.bias, kind)
    for i in range(0, 4 * run_count, 4):
        for p in range(load(runs, i + 1)):
            row = shift(sums, (load(runs, i) + p) * lds)
            to = shift(out, load(runs, i + 2) + p * g.out_w + channel * g.out_c)
            other = shift(residual, load(runs, i + 3) + p * g.residual_w + channel * g.residual_c)
            b = shift(bias, channel)
            finish(row, channels, has_bias, b, 1, g.residual, other, g.residual_c, activation, to, g.out_c)
