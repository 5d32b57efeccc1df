"""The end of a convolution: ``out = activation(sum + bias + residual)``, written with the output's strides.

A row of sums is finished in place in the L1 cache (bias, residual, activation, each a loop that LLVM vectorises)
and then stored. Activations are computed in float64 whatever the dtype, so a float32 result is rounded once. They
avoid the C library, whose scalar calls would stop vectorisation: :func:`exp` reduces by powers of two and sums a
Taylor series; :func:`normal_cdf` is a Chebyshev series of exp(x²) erfc(x), accurate to a few units in the last place.
"""

from __future__ import annotations

import numpy as np

from .. import ACTIVATIONS
from .compile import jit
from .simd import add_clamped, as_bits, copy, from_bits, keep_whole, load, pointer, shift, store

RELU, RELU6, LEAKY_RELU, SILU, GELU, SIGMOID, TANH, HARDSWISH = range(1, 9)


def activation_id(name: str | None) -> int:
    """0 for None, else the place of ``name`` in ACTIVATIONS, counted from 1 as the constants above."""
    return 0 if name is None else ACTIVATIONS.index(name) + 1


_ROUNDER = 1.5 * 2.0**52  # added and subtracted, it rounds to an integer, whose low bits are then the sum's


@jit(inline=True)
def exp(x):
    """e**x: infinite above 709, 0 below -708; NaN stays NaN."""
    given = x
    x = 709.0 if x > 709.0 else x
    x = -708.0 if x < -708.0 else x
    shifted = x * 1.4426950408889634 + _ROUNDER
    n = shifted - _ROUNDER
    r = (x - n * 0.6931471803691238) - n * 1.9082149292705877e-10  # ln 2 in two parts: |r| <= 0.35 exactly enough
    p = 1.0 / 6227020800.0
    p = p * r + 1.0 / 479001600.0
    p = p * r + 1.0 / 39916800.0
    p = p * r + 1.0 / 3628800.0
    p = p * r + 1.0 / 362880.0
    p = p * r + 1.0 / 40320.0
    p = p * r + 1.0 / 5040.0
    p = p * r + 1.0 / 720.0
    p = p * r + 1.0 / 120.0
    p = p * r + 1.0 / 24.0
    p = p * r + 1.0 / 6.0
    p = p * r + 0.5
    p = p * r + 1.0
    p = p * r + 1.0
    p *= from_bits((as_bits(shifted) + 1023) << 52)
    p = np.inf if given > 709.0 else p
    return 0.0 if given < -708.0 else p


@jit(inline=True)
def sigmoid(x):
    return 1.0 / (1.0 + exp(-x))


@jit(inline=True)
def tanh(x):
    """Cephes: a rational function near 0, where the exponential form would lose digits."""
    a = -x if x < 0.0 else x
    z = x * x
    p = (-9.64399179425052238628e-1 * z - 9.92877231001918586564e1) * z - 1.61468768441708447952e3
    q = ((z + 1.12811678491632931402e2) * z + 2.23548839060100448583e3) * z + 4.84406305325125486048e3
    near = x + x * z * p / q
    far = 1.0 - 2.0 / (exp(2.0 * a) + 1.0)
    far = -far if x < 0.0 else far
    return near if a < 0.625 else far


@jit(inline=True)
def normal_cdf(x):
    """P(standard normal <= x) = erfc(-x / sqrt 2) / 2."""
    a = (-x if x < 0.0 else x) * 0.7071067811865476
    a = 27.0 if a > 27.0 else a  # exp(-729) is 0 above
    t = (a - 3.75) / (a + 3.75)
    p = 4.2514690190327064e-10
    p = p * t + 3.1114326199531873e-10
    p = p * t - 5.173988773805476e-09
    p = p * t - 3.7442096395570236e-09
    p = p * t + 3.867533051315e-08
    p = p * t + 2.3263507601499514e-08
    p = p * t - 2.586685016329704e-07
    p = p * t - 5.721822902775565e-08
    p = p * t + 1.7516376436688686e-06
    p = p * t - 9.73559898137086e-07
    p = p * t - 1.1444146234506093e-05
    p = p * t + 2.2384239155889575e-05
    p = p * t + 5.164909889137331e-05
    p = p * t - 0.00029015408054114525
    p = p * t + 0.00029371366559169653
    p = p * t + 0.0017556258528953683
    p = p * t - 0.009746579558029335
    p = p * t + 0.028362277418956392
    p = p * t - 0.05869339858963677
    p = p * t + 0.09230432116037748
    p = p * t - 0.10880393014174886
    p = p * t + 0.0822767384901452
    p = p * t + 0.0035854154854644293
    p = p * t - 0.14024059858554697
    p = p * t + 1.2375126308378275
    tail = 0.5 * exp(-a * a) * p / (1.0 + 2.0 * a)
    return tail if x < 0.0 else 1.0 - tail


@jit(inline=True)
def activate(row, n, activation):
    """The activation, in place."""
    keep_whole()
    if activation == RELU:
        for i in range(n):
            v = load(row, i)
            store(row, i, 0.0 if v < 0.0 else v)  # this way round NaN stays NaN
    elif activation == RELU6:
        for i in range(n):
            v = load(row, i)
            v = 0.0 if v < 0.0 else v
            store(row, i, 6.0 if v > 6.0 else v)
    elif activation == LEAKY_RELU:
        for i in range(n):
            v = float(load(row, i))
            store(row, i, v * 0.01 if v < 0.0 else v)
    elif activation == SILU:
        for i in range(n):
            v = float(load(row, i))
            store(row, i, v * sigmoid(v))
    elif activation == GELU:
        for i in range(n):
            v = float(load(row, i))
            store(row, i, v * normal_cdf(v))
    elif activation == SIGMOID:
        for i in range(n):
            store(row, i, sigmoid(float(load(row, i))))
    elif activation == TANH:
        for i in range(n):
            store(row, i, tanh(float(load(row, i))))
    elif activation == HARDSWISH:
        for i in range(n):
            v = float(load(row, i))
            w = v + 3.0
            w = 0.0 if w < 0.0 else w
            w = 6.0 if w > 6.0 else w
            store(row, i, v * w / 6.0)


@jit(inline=True)
def finish(row, n, has_bias, bias, bias_step, has_residual, residual, residual_step, activation, out, out_step):
    """Finish ``n`` sums at ``row`` and store them at ``out``; bias_step 0 adds one number to all of them.

    What ends a residual block, a residual and at most a clamp, is one pass.
    """
    keep_whole()
    clamps = activation in (0, RELU, RELU6)
    if has_residual and residual_step == 1 and out_step == 1 and bias_step == 0 and clamps:
        constant = load(bias, 0) if has_bias else -0.0  # the number whose addition changes no other
        low, high = 0.0 if activation else -np.inf, 6.0 if activation == RELU6 else np.inf
        add_clamped(row, constant, residual, low, high, out, n)
        return
    if has_bias:
        if bias_step == 0:
            b = load(bias, 0)
            for i in range(n):
                store(row, i, load(row, i) + b)
        else:
            for i in range(n):
                store(row, i, load(row, i) + load(bias, i))
    if has_residual:
        if residual_step == 1:
            for i in range(n):
                store(row, i, load(row, i) + load(residual, i))
        else:
            for i in range(n):
                store(row, i, load(row, i) + load(residual, i * residual_step))
    if activation:
        activate(row, n, activation)
    if out_step == 1:
        copy(row, out, n)
    else:
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
def write_channels(g, kind, sums, lds, runs, run_count, channel, channels):
    """Finish sums ``[channel][position]``, a row for each of ``channels`` from output channel ``channel``."""
    keep_whole()
    out, residual, bias = pointer(g.out, kind), pointer(g.residual, kind), pointer(g.bias, kind)
    for k in range(channels):
        for i in range(0, 4 * run_count, 4):
            row = shift(sums, k * lds + load(runs, i))
            to = shift(out, load(runs, i + 2) + (channel + k) * g.out_c)
            other = shift(residual, load(runs, i + 3) + (channel + k) * g.residual_c)
            b = shift(bias, channel + k)
            finish(row, load(runs, i + 1), g.bias, b, 0, g.residual, other, g.residual_w, g.activation, to, g.out_w)


@jit(inline=True)
def write_positions(g, kind, sums, lds, runs, run_count, channel, channels):
    """Finish sums ``[position][channel]``, a row for each position: for channels-last output."""
    keep_whole()
    out, residual, bias = pointer(g.out, kind), pointer(g.residual, kind), pointer(g.bias, kind)
    for i in range(0, 4 * run_count, 4):
        for p in range(load(runs, i + 1)):
            row = shift(sums, (load(runs, i) + p) * lds)
            to = shift(out, load(runs, i + 2) + p * g.out_w + channel * g.out_c)
            other = shift(residual, load(runs, i + 3) + p * g.residual_w + channel * g.residual_c)
            b = shift(bias, channel)
            finish(row, channels, g.bias, b, 1, g.residual, other, g.residual_c, g.activation, to, g.out_c)
