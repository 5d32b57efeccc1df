"""Sizes, paddings and windows against brute force: positions are listed one by one and counted."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastconv.kernels.geometry import (
    ConvGeometry,
    PoolGeometry,
    adaptive_windows,
    conv_output_size,
    conv_transpose_output_size,
    pool_output_size,
    pool_windows,
    same_padding,
    source_indices,
    span,
    transposed_phases,
)

pair = st.tuples(st.integers(0, 6), st.integers(0, 6))
axis = st.tuples(st.integers(1, 12), st.integers(1, 5), st.integers(1, 4), pair, st.integers(1, 3))
"""size, kernel, stride, (before, after), dilation"""


def positions(size, kernel, stride, padding, dilation):
    """Every window that fits the padded axis, as lists of input positions (which may lie on the padding)."""
    before, after = padding
    starts = range(-before, size + after - span(kernel, dilation) + 1, stride)
    return [[start + j * dilation for j in range(kernel)] for start in starts]


@given(axis)
def test_conv_output_size_counts_the_windows(a):
    size, kernel, stride, padding, dilation = a
    (n,) = conv_output_size((size,), (kernel,), (stride,), (padding,), (dilation,))
    assert max(n, 0) == len(positions(*a))


@given(axis, st.integers(0, 3))
def test_transposed_size_inverts_conv_size(a, extra):
    size, kernel, stride, padding, dilation = a
    (n,) = conv_transpose_output_size((size,), (kernel,), (stride,), (padding,), (dilation,), (extra % stride,))
    if n >= 1:
        assert conv_output_size((n,), (kernel,), (stride,), (padding,), (dilation,)) == (size,)


@given(axis, st.booleans())
def test_same_padding_gives_ceil_of_size_over_stride(a, lower):
    size, kernel, stride, _, dilation = a
    ((before, after),) = same_padding((size,), (kernel,), (stride,), (dilation,), lower=lower)
    assert conv_output_size((size,), (kernel,), (stride,), ((before, after),), (dilation,)) == (-(-size // stride),)
    assert before - after in ((0, 1) if lower else (0, -1))


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize(("before", "after"), [(0, 0), (2, 3), (4, 0), (0, 4)])
def test_source_indices_are_numpy_pad(mode, before, after):
    x = np.arange(1, 6)
    numpy_mode = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}[mode]
    source = source_indices(x.size, before, after, mode)
    assert np.where(source >= 0, x[source], 0).tolist() == np.pad(x, (before, after), numpy_mode).tolist()
    assert not source.flags.writeable


def test_negative_padding_crops():
    assert source_indices(6, -2, -1).tolist() == [2, 3, 4]


@given(axis, st.booleans())
def test_pool_windows_list_the_valid_positions(a, ceil_mode):
    size, kernel, stride, padding, dilation = a
    (n,) = pool_output_size((size,), (kernel,), (stride,), (padding,), (dilation,), ceil_mode)
    if n < 1:
        return
    windows = pool_windows(size, n, kernel, stride, padding, dilation)
    before, after = padding
    for o in range(n):
        taps = [o * stride - before + j * dilation for j in range(kernel)]
        valid = [t for t in taps if 0 <= t < size]
        got = [windows.start[o] + j * windows.dilation for j in range(windows.count[o])]
        assert got == valid
        assert windows.padded_count[o] == sum(-before <= t < size + after for t in taps)


def test_ceil_mode_drops_windows_that_start_beyond_the_input():
    assert pool_output_size((4,), (2,), (3,), ((0, 0),), (1,), True) == (2,)
    assert pool_output_size((3,), (2,), (3,), ((0, 1),), (1,), True) == (1,)  # a second one would start on padding


@given(st.integers(1, 20), st.integers(1, 25))
def test_adaptive_windows_cover_the_axis(size, out):
    windows = adaptive_windows(size, out)
    covered = {int(s) + j for s, c in zip(windows.start, windows.count, strict=True) for j in range(c)}
    assert covered == set(range(size))
    assert windows.count.max() - windows.count.min() <= 1 + (size % out > 0)
    assert all(windows.start[o] == int(np.floor(o * size / out)) for o in range(out))


@given(st.lists(axis, min_size=1, max_size=2))
def test_phases_compute_the_input_gradient(axes):
    sizes, kernels, strides, pads, dilations = map(tuple, zip(*axes, strict=True))
    g = ConvGeometry(1, 1, 1, sizes, kernels, strides, pads, dilations)
    if min(g.output_size) < 1:
        return
    rng = np.random.default_rng(0)
    w, dy = rng.integers(-4, 5, kernels), rng.integers(-4, 5, g.output_size)
    wanted = np.zeros(sizes, int)
    for p, r in product(np.ndindex(*g.output_size), np.ndindex(*kernels)):
        i = tuple(o * s + t * d - b for o, s, t, d, (b, _) in zip(p, strides, r, dilations, pads, strict=True))
        if all(0 <= v < n for v, n in zip(i, sizes, strict=True)):
            wanted[i] += dy[p] * w[r]
    got = np.full(sizes, 10**6)
    for phase in transposed_phases(g):
        if phase.taps is None:
            got[phase.grid] = 0
            continue
        taps = w[phase.taps]
        assert taps.shape == phase.kernel_size
        padded = dy
        for a, (before, after) in enumerate(phase.padding):
            source = source_indices(g.output_size[a], before, after)
            mask = (source >= 0).reshape([-1 if b == a else 1 for b in range(g.rank)])
            padded = np.take(padded, source, axis=a) * mask
        part = np.zeros(phase.output_size, int)
        for r in np.ndindex(*taps.shape):
            window = tuple(
                slice(t * d, t * d + n) for t, d, n in zip(r, phase.dilation, phase.output_size, strict=True)
            )
            part += taps[r] * padded[window]
        got[phase.grid] = part
    assert (got == wanted).all()


def test_lifting_adds_leading_dimensions_of_size_one():
    g = ConvGeometry(2, 3, 4, (9,), (3,), (2,), ((1, 0),), (2,))
    assert g.lifted().output_size == (1, 1, *g.output_size)
    assert g.lifted().reduction == g.reduction
    p = PoolGeometry(2, 3, (9, 9), (4, 4), (3, 3), (2, 2), ((0, 0), (0, 0)))
    assert p.lifted().windows[1].start.tolist() == p.windows[0].start.tolist()
    adaptive = PoolGeometry(2, 3, (9,), (4,)).lifted()
    assert adaptive.adaptive
    assert adaptive.output_size == (1, 1, 4)
