"""Input gradients whose phases are interleaved: every stride's way of doing so, its tails, and what is added after."""

import math
from itertools import product

import numpy as np
import pytest

from fastconv.kernels.cpu import planar_blocking, weights
from fastconv.kernels.geometry import transposed_phases
from tests.kernels.test_cpu_conv import channels_last, compute, conv, expected, integers, operands
from tests.support import threads_for_small_problems

GRADIENTS = {
    "2x2 at 2, several tiles a row": conv(1, 11, 9, (6, 230), 2, stride=2),
    "3x3 at 2": conv(2, 9, 5, (9, 14), 3, stride=2, pad=1),
    "4x4 at 2, an odd row": conv(1, 8, 6, (7, 203), 4, stride=2, pad=1),
    "a row that ends between two vectors": conv(1, 8, 3, (3, 163), 2, stride=2),
    "4x4 at 4": conv(1, 9, 3, (8, 211), 4, stride=4),
    "6x6 at 4, every tail": conv(1, 16, 3, (11, 150), 6, stride=4, pad=3),
    "3x3 at 3": conv(1, 8, 7, (9, 154), 3, stride=3),
    "gaps": conv(1, 8, 7, (11, 140), 2, stride=(3, 4), pad=1),
    "one tap in gaps": conv(1, 12, 7, (9, 61), 1, stride=2),
    "no tap reaches some rows": conv(2, 3, 4, (9, 9), 2, stride=2, dilation=2),
    "fewer columns than the stride": conv(2, 9, 4, (5, 3), 3, stride=(2, 4), pad=1),
    "dilation": conv(1, 8, 4, (16, 40), 3, stride=(2, 3), dilation=(3, 2), pad=2),
    "groups": conv(1, 24, 18, (8, 60), 3, stride=2, pad=1, groups=2),
    "1-D": conv(2, 9, 4, (3000,), 8, stride=4, pad=2),
    "3-D": conv(1, 9, 4, (5, 6, 37), (3, 2, 3), stride=(2, 2, 2), pad=1),
    "reflect": conv(2, 8, 4, (9, 11), 3, stride=2, pad=2, mode="reflect"),
}


@pytest.fixture(scope="module", autouse=True)
def small_problems_use_threads_too():
    with threads_for_small_problems(weights, sizes=[planar_blocking.planar_grad_input_workspace]):
        yield


@pytest.mark.parametrize("name", GRADIENTS)
def test_interleaved_phases_are_exact(name):
    geometry, rng = GRADIENTS[name], np.random.default_rng(1)
    shape = geometry.input_shape
    for dtype in (np.float32, np.float64):
        arrays = operands(geometry, "grad_input", dtype)
        bias, residual = integers(rng, shape[1], dtype), integers(rng, shape, dtype)
        for extra in ({}, {"bias": bias, "activation": "relu6"}, {"bias": bias, "residual": residual}):
            want = expected("grad_input", geometry, arrays, **extra)
            for threads, layout in product((1, 3), (np.asarray, channels_last)):
                out = layout(np.full(shape, np.nan, dtype))
                compute("planar", "grad_input", geometry, arrays, out, threads=threads, **extra)
                np.testing.assert_array_equal(out, want)


@pytest.mark.parametrize("name", GRADIENTS)
def test_joined_phases_see_what_they_see_apart(name):
    """Every tap of the kernel belongs to one phase, and its place in the slab shows the dy that it is multiplied by."""
    geometry = planar_blocking.padded(GRADIENTS[name]).lifted()
    ((_, joined),) = planar_blocking.joined_phases(GRADIENTS[name])
    assert joined.taps == sum(math.prod(p.kernel_size) for p in transposed_phases(geometry) if p.taps)
    phases = zip(transposed_phases(geometry), joined.phases, strict=True)
    for apart, found in phases:
        assert (apart.taps is None) == (found is None)
        for axis in range(3 if found else 0):
            low, step = -apart.padding[axis][0], apart.dilation[axis]
            wanted = [low + step * i for i in range(apart.kernel_size[axis])]
            source = joined.axes[axis].source
            for place, dy in zip(found.places[axis], wanted, strict=True):
                assert source[place] == (dy if 0 <= dy < geometry.output_size[axis] else -1)
